//! A disk that runs full, and a spool that does: refused with the time to come back, nothing half-written, and well
//! again by itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::house::{Answer, Node, Place, wait_until};
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

struct Sink {
    well: Arc<AtomicBool>,
    server: Server,
}

impl Sink {
    fn new() -> Self {
        let well = Arc::new(AtomicBool::new(false));
        let of_server = Arc::clone(&well);
        Self { well, server: Server::start(move |_| if of_server.load(Relaxed) { ok("taken") } else { sick() }) }
    }

    fn place(&self, store: &str) -> Place {
        Place::new(&format!(
            "store: {store}\n\
             listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: events, upstream: queue, policy: writes }}] }}]\n\
             upstreams: {{ queue: {{ url: \"http://{}\" }} }}\n\
             policies:\n  writes:\n    retry: off\n    breaker: {{ window: 10 calls, calls_min: 5, open_for: 100ms, open_for_max: 100ms }}\n    \
             fallback: spool\n    order_by: header:Shipment-Id\n    delivery: {{ attempts: 1000000 }}\n",
            self.server.address
        ))
    }

    /// The writes it took, from the moment it was well: each once, whole.
    fn taken(&self, since: usize) -> BTreeSet<usize> {
        let mut taken = BTreeSet::new();
        for seen in &self.server.seen()[since..] {
            let number: usize = seen.text().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(seen.text(), body(number), "a write arrived changed");
            assert!(taken.insert(number), "write {number} arrived twice");
        }
        taken
    }
}

fn body(number: usize) -> String {
    format!("{number} {}", "b".repeat(BODY_BYTES))
}

fn write(node: &Node, number: usize) -> Answer {
    let headers = format!("Shipment-Id: s{}\r\nIdempotency-Key: \"k{number}\"\r\n", number % 7);
    node.post("/events", &headers, &body(number))
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
    let since = sink.server.count();
    sink.well.store(true, Relaxed);
    wait_until("everything is delivered", || node.spooled() == 0);
    // One sick try may have been counted just before the sink became well.
    let taken =
        sink.taken(since + sink.server.seen()[since..].iter().take_while(|seen| seen.text().is_empty()).count());
    assert_eq!(&taken, acknowledged, "exactly what was acknowledged arrives");
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
    let small = node.post("/events", "Shipment-Id: small\r\n", "100000 ");
    assert!(matches!(small.status, 202 | 503), "{small:?}");
    if small.status == 202 {
        // What fits is still taken; it is no write of ours to count.
        wait_until("it is one more", || node.spooled() == acknowledged.len() as u64 + 1);
        return;
    }
    let node = survives_a_kill(&place, node, acknowledged.len());
    drains(&node, &sink, &acknowledged);
    sink.well.store(false, Relaxed);
    wait_until("there is room again", || write(&node, 400_000).status == 202);
    acknowledged.insert(400_000);
    sink.well.store(true, Relaxed);
    wait_until("everything is delivered", || node.spooled() == 0);
}
