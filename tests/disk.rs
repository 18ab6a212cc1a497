//! A disk that runs full, and a spool that does: refused with the time to come back, nothing half-written, and well
//! again by itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::house::{Answer, Client, Node, Place, SEAWALL, post, wait_until};
use crate::process::Process;
use crate::server::{Server, ok, sick};

const BODY_BYTES: usize = 48 << 10;

/// A small file system of our own.
struct Mount(tempfile::TempDir);

impl Mount {
    /// # Errors
    /// What `mount` said.
    fn tmpfs(size: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "seawall-test"]).arg(dir.path());
        let output = command.output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(Self(dir)) } else { Err(said) }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// A sink that is sick until told otherwise, and keeps what it took.
struct Sink {
    well: Arc<AtomicBool>,
    taken: Arc<Mutex<Vec<String>>>,
    server: Server,
}

impl Sink {
    fn new() -> Self {
        let (well, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (of_server, kept) = (Arc::clone(&well), Arc::clone(&taken));
        let server = Server::start(move |seen| {
            if !of_server.load(Relaxed) {
                return sick();
            }
            kept.lock().unwrap().push(seen.text());
            ok("taken")
        });
        Self { well, taken, server }
    }

    fn place(&self, store: &str) -> Place {
        Place::new(&format!(
            "store: {store}\n\
             listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: events, upstream: queue, policy: writes }}] }}]\n\
             upstreams: {{ queue: {{ url: \"http://{}\" }} }}\n\
             policies:\n  writes:\n    retry: off\n    \
             breaker: {{ window: 10 calls, calls_min: 5, open_for: 100ms, open_for_max: 100ms }}\n    \
             fallback: spool\n    order_by: header:Shipment-Id\n    delivery: {{ attempts: 1000000 }}\n",
            self.server.address
        ))
    }

    /// The writes it took: each once, whole.
    fn delivered(&self) -> BTreeSet<usize> {
        let mut delivered = BTreeSet::new();
        for text in self.taken.lock().unwrap().iter() {
            let number: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(*text, body(number), "a write arrived changed");
            assert!(delivered.insert(number), "write {number} arrived twice");
        }
        delivered
    }
}

fn body(number: usize) -> String {
    format!("{number} {}", "b".repeat(BODY_BYTES))
}

fn request(number: usize) -> String {
    let headers = format!("Shipment-Id: s{}\r\nIdempotency-Key: \"k{number}\"\r\n", number % 7);
    post("/events", &headers, &body(number))
}

fn write(node: &Node, number: usize) -> Answer {
    node.client().ask(&request(number))
}

/// Writes until one is refused; tells which were acknowledged, and the refusal.
fn fill(node: &Node, from: usize) -> (BTreeSet<usize>, Answer) {
    let mut acknowledged = BTreeSet::new();
    for number in from..from + 10_000 {
        let answer = write(node, number);
        if answer.status != 202 {
            return (acknowledged, answer);
        }
        acknowledged.insert(number);
    }
    panic!("it never ran full");
}

/// Everything that is kept, after a kill and a start on what is there.
fn survives_a_kill(place: &Place, node: Node, acknowledged: usize) -> Node {
    assert_eq!(node.spooled(), acknowledged as u64, "what is kept is what was acknowledged");
    node.kill();
    let node = place.node();
    assert_eq!(node.spooled(), acknowledged as u64, "nothing half-written, nothing lost, on a disk that is still full");
    node
}

fn drains(node: &Node, sink: &Sink, acknowledged: &BTreeSet<usize>) {
    sink.well.store(true, Relaxed);
    wait_until("everything is delivered", || node.spooled() == 0);
    assert_eq!(&sink.delivered(), acknowledged, "exactly what was acknowledged arrives");
}

#[test]
fn a_disk_that_runs_full() {
    let mount = match Mount::tmpfs("56m") {
        Ok(mount) => mount,
        Err(reason) => {
            println!(
                "no file system can be mounted here ({reason}): only `store.spool_max` shows what a full disk does"
            );
            return a_spool_that_runs_full();
        }
    };
    let ballast = mount.path().join("ballast");
    std::fs::write(&ballast, vec![1; 20 << 20]).unwrap();
    let sink = Sink::new();
    let data: PathBuf = mount.path().join("data");
    let place = sink.place(&format!("{{ path: \"{}\" }}", data.display()));
    let node = place.node();

    let (mut acknowledged, refused) = fill(&node, 0);
    assert!(acknowledged.len() > 50, "{}", acknowledged.len());
    refused.is_ours(507, "destination_unavailable");
    assert_eq!(refused.json()["rule"], "disk", "{refused:?}");
    wait_until("the journal tells", || node.journal().has("spool_full"));
    let status = node.status();
    assert_eq!((&status["spool"]["disk_full"], &status["ready"]), (&true.into(), &true.into()), "{status:#}");
    assert_eq!(node.journal().last("spool_full")["fields"]["disk_full"], "true");
    assert_eq!(write(&node, 100_000).status, 507, "as long as it is full");
    let node = survives_a_kill(&place, node, acknowledged.len());
    assert_eq!(write(&node, 100_001).status, 507, "a start does not make room");

    std::fs::remove_file(&ballast).unwrap();
    wait_until("it takes writes again by itself", || {
        let answer = write(&node, 200_000);
        assert!(matches!(answer.status, 202 | 507), "{answer:?}");
        answer.status == 202
    });
    acknowledged.insert(200_000);
    wait_until("the journal tells", || node.status()["spool"]["disk_full"] == false);
    drains(&node, &sink, &acknowledged);
    assert_eq!(write(&node, 300_000).status, 200, "and straight through when all is well");
    assert!(std::fs::read_dir(&data).unwrap().count() >= 4);
}

/// A disk without room for the first byte: told, with what to do. One with room for a little: as far as it goes.
#[test]
fn a_disk_that_is_full_from_the_start() {
    let Ok(mount) = Mount::tmpfs("10m") else {
        println!("no file system can be mounted here: `a_disk_that_runs_full` says why");
        return;
    };
    let ballast = mount.path().join("ballast");
    let _ = std::fs::write(&ballast, vec![1; 11 << 20]);
    let sink = Sink::new();
    let place = sink.place(&format!("{{ path: \"{}\" }}", mount.path().join("data").display()));
    let said = place.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&["No space left on device", "free some space"]);
    std::fs::remove_file(&ballast).unwrap();
    let node = place.node();
    let (acknowledged, refused) = fill(&node, 0);
    assert_eq!(refused.status, 507, "{refused:?}");
    sink.well.store(true, Relaxed);
    wait_until("everything is delivered", || node.spooled() == 0);
    assert_eq!(sink.delivered(), acknowledged);
    let _ = std::fs::write(&ballast, vec![1; 11 << 20]);
    for number in 200_000..200_050 {
        assert_eq!(write(&node, number).status, 200, "what goes straight through needs no disk");
    }
}

/// Clients that take every descriptor there is are told no; what is promised to others still finds its way to the disk.
#[test]
fn a_process_out_of_descriptors_keeps_its_promises() {
    let sink = Sink::new();
    let place = sink.place("{ path: ./data }");
    let mut command = Command::new("prlimit");
    command.args(["--nofile=64:64", SEAWALL, "run", "--log", "json"]).current_dir(place.path());
    let mut node = Node::of(Process::start(&mut command));
    assert!(node.wait_ready());
    let mut first = node.client();
    assert_eq!(first.ask(&request(0)).status, 202);
    let crowd: Vec<Client> = (0..100).map(|_| node.client()).collect();
    let mut acknowledged = BTreeSet::from([0]);
    // Enough for several files of the spool.
    for number in 1..600 {
        let answer = first.ask(&request(number));
        if answer.status == 202 {
            acknowledged.insert(number);
        } else {
            // "Not now" is honest; "never again" is not.
            assert!(matches!(answer.status, 503 | 507) && answer.header("retry-after").is_some(), "{answer:?}");
        }
    }
    drop(crowd);
    assert!(node.process.ended().is_none(), "clients alone end a node: {:?}", node.process.lines().last());
    wait_until("the crowd is gone", || node.metrics().get("seawall_client_connections") == 1);
    wait_until("writes are kept again", || {
        assert!(node.process.ended().is_none(), "clients alone ended a node: {:?}", node.process.lines().last());
        first.ask(&request(1_000)).status == 202
    });
    acknowledged.insert(1_000);
    let reached = |limit: &str| node.metrics().get(&format!("seawall_limit_reached_total{{limit=\"{limit}\"}}"));
    assert!(reached("descriptors") + reached("connections") > 0, "it is told that there were too many");
    drains(&node, &sink, &acknowledged);
}

#[test]
fn a_spool_that_runs_full() {
    let sink = Sink::new();
    let place = sink.place("{ path: ./data, spool_max: 2MiB }");
    let node = place.node();
    let (mut acknowledged, refused) = fill(&node, 0);
    refused.is_ours(503, "destination_unavailable");
    assert_eq!(refused.json()["rule"], "spool_max", "{refused:?}");
    assert!((20..45).contains(&acknowledged.len()), "{}", acknowledged.len());
    wait_until("the journal tells", || node.journal().has("spool_high"));
    let status = node.status();
    assert!(status["spool"]["bytes"].as_u64() <= status["spool"]["bytes_max"].as_u64(), "{status:#}");
    assert_eq!(status["spool"]["disk_full"], false);
    let node = survives_a_kill(&place, node, acknowledged.len());
    drains(&node, &sink, &acknowledged);
    sink.well.store(false, Relaxed);
    wait_until("it spools again", || node.spooled() == 0 && write(&node, 400_000).status == 202);
    acknowledged.insert(400_000);
    drains(&node, &sink, &acknowledged);
}
