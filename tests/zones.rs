//! A zone of the replicated engine goes, in every way it can, while writes are accepted that nobody can deliver yet.
//! What was acknowledged is delivered once, as the sink counts; how long nothing was acknowledged is measured.
//!
//! `ZONE_ROUNDS=20 cargo test -p seawall --test e2e zones -- --nocapture` plays more rounds of each, and prints the
//! gaps.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::house::{Client, Node, Place, post, wait_until};
use crate::nats::Cluster;
use crate::server::{Server, ok, sick};

/// What happens to a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// The server that leads dies.
    Kill,
    /// It is stopped: connections stay, nobody answers.
    Pause,
    /// It is cut off.
    Cut,
    /// All three die.
    KillAll,
    /// It dies, and comes back without its disk.
    Wipe,
}

/// An upstream that counts what it takes, while it is well.
struct Sink {
    server: Server,
    is_well: Arc<AtomicBool>,
    taken: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Sink {
    fn new() -> Self {
        let (is_well, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeMap::new())));
        let (well, counts) = (Arc::clone(&is_well), Arc::clone(&taken));
        let server = Server::start(move |seen| {
            if !well.load(Relaxed) {
                return sick();
            }
            let key = seen.header("idempotency-key").unwrap_or_default();
            *counts.lock().unwrap().entry(key.trim_matches('"').to_owned()).or_default() += 1;
            ok("taken")
        });
        Self { server, is_well, taken }
    }
}

fn config(cluster: &Cluster, sink: &Sink) -> String {
    let policy = |durability: &str| {
        format!(
            "{{ timeout: 8s, retry: off, breaker: {{ calls_min: 2, window: 4 calls, open_for: 20ms, open_for_max: 20ms }}, \
             fallback: spool, delivery: {{ attempts: 1000000, parallel: 64, durability: {durability} }} }}"
        )
    };
    format!(
        "node: a\nlisteners: [{{ address: \"127.0.0.1:0\", routes: [\
         {{ name: near, match: {{ path: /near }}, upstream: queue, policy: near }}, \
         {{ name: far, upstream: queue, policy: far }}] }}]\n\
         upstreams: {{ queue: {{ url: \"http://{}\" }} }}\npolicies: {{ near: {}, far: {} }}\n{}",
        sink.server.address,
        policy("local"),
        policy("replicated"),
        cluster.store()
    )
}

/// What a writer was told.
#[derive(Clone, Debug)]
struct Told {
    at: Instant,
    key: String,
    is_far: bool,
    status: u16,
}

/// Writers that go on until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    /// Writes that were replicated.
    far: Arc<AtomicU64>,
    writers: Vec<thread::JoinHandle<Vec<Told>>>,
}

static KEYS: AtomicU64 = AtomicU64::new(0);

impl Load {
    fn start(node: &Node) -> Self {
        let (stop, far) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |n: usize| {
            let (stop, far, address) = (Arc::clone(&stop), Arc::clone(&far), node.address());
            thread::spawn(move || {
                let (mut client, mut told) = (Client::new(address), Vec::new());
                while !stop.load(Relaxed) {
                    let key = format!("k{}", KEYS.fetch_add(1, Relaxed));
                    let (is_far, headers) = (n.is_multiple_of(2), format!("Idempotency-Key: \"{key}\"\r\n"));
                    let answer = client.ask(&post(if is_far { "/far" } else { "/near" }, &headers, &key));
                    far.fetch_add(u64::from(is_far && answer.status == 202), Relaxed);
                    told.push(Told { at: Instant::now(), key, is_far, status: answer.status });
                    thread::sleep(Duration::from_millis(5));
                }
                told
            })
        };
        let writers = (0..4).map(writer).collect();
        Self { stop, far, writers }
    }

    fn end(self) -> Vec<Told> {
        self.stop.store(true, Relaxed);
        self.writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    }
}

/// The longest time without a yes.
fn gap(told: &[Told], is_far: bool) -> Duration {
    let mut yes: Vec<Instant> =
        told.iter().filter(|it| it.is_far == is_far && it.status == 202).map(|it| it.at).collect();
    yes.sort();
    yes.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn replica_state(node: &Node) -> (String, u64) {
    let replica = &node.status()["replica"];
    (replica["state"].as_str().unwrap_or_default().to_owned(), replica["behind"].as_u64().unwrap_or(u64::MAX))
}

/// One round: the gaps, near and far.
fn round(cluster: &mut Cluster, node: &Node, sink: &Sink, blow: Blow) -> (Duration, Duration) {
    wait_until("the replica is current", || replica_state(node).0 == "current");
    let leader = crate::house::wait_for("a leader", || cluster.leader("SEAWALL_SPOOL"));
    let load = Load::start(node);
    wait_until("writes are replicated", || load.far.load(Relaxed) > 20);
    match blow {
        Blow::Kill | Blow::Wipe => cluster.servers[leader].kill(),
        Blow::Pause => cluster.servers[leader].pause(),
        Blow::Cut => cluster.servers[leader].cut(),
        Blow::KillAll => cluster.servers.iter_mut().for_each(crate::nats::Server::kill),
    }
    if blow == Blow::KillAll {
        thread::sleep(Duration::from_secs(1));
        (0..3).for_each(|n| cluster.restart(n));
    }
    // Until a write is replicated again, by the two that are left or by those that came back.
    let begin = Instant::now();
    let mut client = Client::new(node.address());
    let (mut asked, mut probes) = (0, Vec::new());
    wait_until("writes are replicated again", || {
        asked += 1;
        let key = format!("p{}-{asked}", KEYS.fetch_add(1, Relaxed));
        let answer = client.ask(&post("/far", &format!("Idempotency-Key: \"{key}\"\r\n"), &key));
        probes.push(Told { at: Instant::now(), key, is_far: true, status: answer.status });
        answer.status == 202 && begin.elapsed() > Duration::from_secs(3)
    });
    match blow {
        Blow::Kill => cluster.restart(leader),
        Blow::Pause => cluster.servers[leader].resume(),
        Blow::Cut => cluster.servers[leader].mend(),
        Blow::KillAll => {}
        Blow::Wipe => {
            cluster.servers[leader].wipe();
            cluster.restart(leader);
        }
    }
    let mut told = load.end();
    let gaps = (gap(&told, false), gap(&told, true));
    told.extend(probes);
    cluster.await_health();
    wait_until("the replica has it all", || replica_state(node) == ("current".into(), 0));
    sink.is_well.store(true, Relaxed);
    wait_until("all is delivered", || node.spooled() == 0);
    sink.is_well.store(false, Relaxed);
    let taken = std::mem::take(&mut *sink.taken.lock().unwrap());
    for Told { key, status, .. } in &told {
        let times = taken.get(key).copied().unwrap_or(0);
        match status {
            202 => assert_eq!(times, 1, "{blow:?}: `{key}` was acknowledged"),
            // Kept here all the same, or nothing was: the answer left that open.
            503 => assert!(times <= 1, "{blow:?}: `{key}` came {times} times"),
            other => panic!("{blow:?}: `{key}` was answered with {other}"),
        }
    }
    assert_eq!(taken.values().sum::<u64>(), taken.len() as u64, "{blow:?}: nothing came twice");
    assert!(told.iter().filter(|it| it.status == 202 && it.is_far).count() > 20, "{blow:?}: it was put to the test");
    let near_no = told.iter().filter(|it| !it.is_far && it.status != 202).count();
    assert_eq!(near_no, 0, "{blow:?}: what is safe here waits for nobody");
    gaps
}

#[test]
fn a_zone_goes_and_what_was_acknowledged_is_delivered_once() {
    let rounds: usize = std::env::var("ZONE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut cluster = Cluster::apart(3);
    let sink = Sink::new();
    let place = Place::new(&config(&cluster, &sink));
    let node = place.node();
    let all = [Blow::Kill, Blow::Pause, Blow::Cut, Blow::KillAll, Blow::Wipe];
    let only = std::env::var("ZONE_BLOW").ok();
    let blows = all.into_iter().filter(|blow| only.as_ref().is_none_or(|only| *only == format!("{blow:?}")));
    let mut played = 0;
    let is_apart = cluster.is_apart();
    for blow in blows.filter(|blow| *blow != Blow::Cut || is_apart) {
        played += 1;
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let gaps = round(&mut cluster, &node, &sink, blow);
            near.push(gaps.0);
            far.push(gaps.1);
        }
        near.sort();
        far.sort();
        println!(
            "{blow:?}, {rounds} rounds: longest without a yes, local median {:?} worst {:?}, replicated median {:?} worst {:?}",
            near[rounds / 2],
            near[rounds - 1],
            far[rounds / 2],
            far[rounds - 1]
        );
    }
    assert!(played > 0, "no such blow");
    assert!(node.stop().success());
}
