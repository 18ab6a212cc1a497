//! A node under load for a while, with faults that come and go at random, reloads, drains and rude clients beside them.
//! What it held for them, counted once all is quiet, is what it held before: descriptors, permits, connections, leases,
//! memory. And its account is balanced.
//!
//! `SOAK_SECONDS=600 cargo test -p seawall --test e2e soak -- --nocapture` takes ten minutes and tells the counts;
//! `E2E_SEED` repeats the choices of a run, not its moments.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use seawall_client::Outbox;
use seawall_core::prng::Prng;
use serde_json::{Value, json};

use crate::house::{Client, Held, Node, Place, post, seed, wait_for, wait_until};
use crate::nginx::Nginx;
use crate::server::{Server, ok};

const SECONDS_USUAL: u64 = 10;
/// Of a file that `/files/large` is answered with.
const LARGE_BYTES: usize = 300_000;
const WRITERS: usize = 4;
/// For calls that block; the runtime ends those that have been idle for some seconds.
const BLOCKING_THREADS: u64 = 4;
/// What a node may have grown by, from a third of its time to its end.
const GROWTH_KIB: u64 = 32 << 10;

/// The shop that is written to, and reports what arrived.
struct Sink {
    outbox: Outbox,
    keys: BTreeSet<String>,
}

impl Sink {
    /// Whatever is delivered again with the same key is one arrival.
    fn take(&mut self, key: String, stamp: &str, body: &[u8]) {
        if self.keys.insert(key) {
            self.outbox.note(stamp, body).unwrap();
            self.outbox.sync().unwrap();
        }
    }
}

/// Retries, hedges, limits and breakers, two zones, writes that spool. The two differ in what a reload must bring about
/// under load.
fn config(web: [&Nginx; 2], sink: &Server, other: bool) -> String {
    let [own, far] = web.map(Nginx::address);
    let (weight, attempts, limit) = if other { (3, 2, 60) } else { (1, 3, 80) };
    format!(
        "node: here\nzone: a\nfaults: {{ share_max: 100%, ttl_max: 1m, count_max: 12 }}\n\
         listeners:\n\
         - address: \"127.0.0.1:0\"\n  routes:\n\
         \x20 - {{ name: writes, match: {{ method: POST }}, upstream: sink, policy: writes }}\n\
         \x20 - {{ name: web, upstream: web, policy: web }}\n\
         - {{ address: \"127.0.0.1:0\", protocol: tcp, upstream: tcp }}\n\
         upstreams:\n\
         \x20 sink: {{ url: \"http://{}\" }}\n\
         \x20 tcp: {{ url: \"tcp://{}\" }}\n\
         \x20 web:\n    endpoints:\n\
         \x20   - {{ address: \"{own}\", zone: a, weight: {weight} }}\n    - {{ address: \"{far}\", zone: b }}\n\
         \x20   health: {{ path: /, every: 500ms }}\n\
         policies:\n\
         \x20 writes: {{ timeout: 2s, fallback: spool, breaker: {{ failure_rate: 50%, open_for: 1s }} }}\n\
         \x20 web:\n    timeout: 2s\n    try_timeout: 500ms\n    retry: {{ attempts: {attempts} }}\n    hedge: p95\n\
         \x20   concurrency: on\n    bulkhead: {{ calls: {limit} }}\n    breaker: {{ failure_rate: 50%, open_for: 1s }}\n",
        sink.address,
        web[0].address(),
    )
}

/// A program that loads the node, again and again.
fn load(until: Instant, arguments: &[&str]) {
    while Instant::now() < until {
        let mut command = Command::new(arguments[0]);
        let ended = command.args(&arguments[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(ended.is_ok_and(|ended| ended.success()), "{arguments:?}");
    }
}

/// Writes with keys of its own; those that were taken, as far as the client was told.
fn write(until: Instant, node: SocketAddr, writer: usize, mut prng: Prng) -> BTreeSet<String> {
    let mut taken = BTreeSet::new();
    let mut number = 0;
    while Instant::now() < until {
        let Ok(mut client) = Client::connect(node) else { continue };
        loop {
            let key = format!("\"{writer}-{number}\"");
            let body = "x".repeat([10, 3_000, 60_000][prng.below(3) as usize]);
            number += 1;
            let answer = client.try_ask(&post("/write", &format!("Idempotency-Key: {key}\r\n"), &body));
            match answer {
                Some(answer) if matches!(answer.status, 200 | 202) => _ = taken.insert(key),
                Some(_) => {}
                None => break,
            }
            if Instant::now() >= until {
                break;
            }
        }
    }
    taken
}

/// Clients that go away in the middle of a word, or of an answer.
fn be_rude(until: Instant, node: SocketAddr, mut prng: Prng) -> u64 {
    let mut times = 0;
    while Instant::now() < until {
        let Ok(mut stream) = TcpStream::connect(node) else { continue };
        let words = match prng.below(5) {
            0 => "GET / HTTP/1.1\r\nHo",
            1 => "POST /write HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nxxx",
            2 => "GET /files/large HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\n",
            3 => "GET /files/large HTTP/1.1\r\nHost: h\r\n\r\n",
            _ => "\0garbage\r\n\r\n",
        };
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let _ = stream.write_all(words.as_bytes());
        if prng.chance(0.5) {
            let _ = stream.read(&mut [0; 1_000]);
        }
        if prng.chance(0.5) {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        } else {
            let _ = stream.shutdown(Shutdown::Both);
        }
        times += 1;
        thread::sleep(Duration::from_millis(prng.below(20)));
    }
    times
}

/// One fault, for a short time, that nobody takes away.
fn fault(prng: &mut Prng) -> Value {
    let calls = [
        json!({ "latency": { "delay": "200ms", "jitter": "100ms" } }),
        json!({ "abort": { "status": 503, "retry_after": "1s" } }),
        json!({ "grpc": { "code": 14 } }),
        json!({ "head_latency": { "delay": "100ms" } }),
        json!({ "body_latency": { "delay": "100ms" } }),
        json!({ "bandwidth": { "per_second": "64KiB" } }),
        json!({ "corrupt": { "bytes": "1%" } }),
        json!({ "huge_head": { "size": "600KiB" } }),
        "refuse".into(),
        "hang".into(),
        "swallow".into(),
        "cut".into(),
        "short_body".into(),
        "long_body".into(),
        "garbled_head".into(),
        "duplicate".into(),
    ];
    let connections = [
        json!({ "tcp_latency": { "delay": "50ms", "jitter": "20ms", "way": "both" } }),
        json!({ "tcp_bandwidth": { "per_second": "64KiB" } }),
        json!({ "tcp_corrupt": { "bytes": "1%" } }),
        json!({ "chunk_loss": { "chunks": "10%" } }),
        json!({ "slow_close": { "delay": "300ms" } }),
        json!({ "slicer": { "size": "100B", "pause": "1ms" } }),
        json!({ "limit_data": { "size": "10KiB" } }),
        "refuse".into(),
        "hang".into(),
        "black_hole".into(),
        "reset".into(),
        "half_close".into(),
    ];
    let ttl = ["500ms", "1s", "2s"][prng.below(3) as usize];
    let mut fault = json!({ "owner": "soak", "ttl": ttl, "seed": prng.below(1_000) });
    let mut one_of = |kinds: &[Value]| kinds[prng.below(kinds.len() as u64) as usize].clone();
    let (upstream, kind) = match one_of(&["web".into(), "web".into(), "sink".into(), "tcp".into(), "zone".into()]) {
        kind if kind == "zone" => {
            fault["zone"] = "b".into();
            fault["kind"] = "zone_cut".into();
            return fault;
        }
        upstream if upstream == "tcp" => (upstream, one_of(&connections)),
        upstream => (upstream, one_of(&calls)),
    };
    fault["upstream"] = upstream;
    fault["kind"] = kind;
    let share = one_of(&["5%".into(), "20%".into(), "40%".into()]);
    if one_of(&[true.into(), false.into()]) == true {
        fault["flap"] = json!({ "on": "100ms", "off": "200ms" });
    }
    fault["share"] = share;
    fault
}

/// Faults without end, now and then the kill switch, a drain, a reload. How many of each there were, and what was
/// refused.
fn disturb(until: Instant, node: &Node, reload: impl Fn(bool), mut prng: Prng) -> BTreeMap<String, u64> {
    let mut done = BTreeMap::new();
    let mut count = |what: String| *done.entry(what).or_insert(0) += 1;
    let mut other = false;
    while Instant::now() < until {
        let answer = node.admin_post("/api/faults", &fault(&mut prng));
        match answer.status {
            201 => count("fault".into()),
            // More than may be at once, or the same twice. Else it was not sound, and had to do with nobody beside it.
            _ => {
                let beside =
                    ["with what lies there already", "does the same to the same requests", "`faults.count_max`"];
                assert!(beside.iter().any(|words| answer.body.contains(words)), "{answer:?}");
                count("refused".into());
            }
        }
        let why = json!({ "reason": "soak" });
        match prng.below(20) {
            0 => {
                assert_eq!(node.admin_post("/api/faults/kill", &why).status, 200);
                assert_eq!(node.admin_post("/api/faults/release", &why).status, 200);
                count("kill switch".into());
            }
            1 | 2 => {
                other = !other;
                reload(other);
                assert_eq!(node.admin_post("/api/reload", &json!({})).status, 200);
                count("reload".into());
            }
            3 => {
                let route = json!({ "route": "web" });
                assert_eq!(node.admin_post("/api/drain", &route).status, 200);
                assert_eq!(node.admin_post("/api/resume", &route).status, 200);
                count("drain".into());
            }
            _ => {}
        }
        thread::sleep(Duration::from_millis(50 + prng.below(250)));
    }
    done
}

/// All samples of a metric with these words in their labels, added up.
fn sum(metrics: &str, name: &str, labels: &str) -> f64 {
    assert!(metrics.contains(&format!("# TYPE {name} ")), "no metric `{name}`");
    let samples =
        metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")));
    samples
        .filter(|line| line.contains(labels))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// Connections to upstreams, those for the next call among them.
fn pooled(node: &Node) -> u64 {
    sum(&node.metrics().0, "seawall_endpoint_connections", "") as u64
}

/// What of a node's work is under way, by its own account.
const UNDER_WAY: [&str; 11] = [
    "seawall_in_flight",
    "seawall_waiting",
    "seawall_limit_used",
    "seawall_client_connections",
    "seawall_connections_open",
    "seawall_endpoint_in_flight",
    "seawall_faults_active",
    "seawall_faults_killed",
    "seawall_drains",
    "seawall_spool_records",
    "seawall_ledger_outstanding",
];

#[test]
fn whatever_was_taken_is_given_back() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(SECONDS_USUAL, |seconds| seconds.parse().expect("a number"));
    let seed = seed();
    println!("E2E_SEED={seed}");
    let mut prng = Prng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(dir.path(), "sink").unwrap();
    let sink = Arc::new(Mutex::new(Sink { outbox, keys: BTreeSet::new() }));
    let at_the_sink = Arc::clone(&sink);
    let server = Server::forgetful(move |seen| {
        let header = |name| seen.header(name).unwrap_or_else(|| panic!("every write has `{name}`: {}", seen.head));
        at_the_sink.lock().unwrap().take(header("idempotency-key"), &header("seawall-record"), &seen.body);
        ok("taken")
    });
    let web = [Nginx::start(), Nginx::start()];
    web.iter().for_each(|nginx| nginx.file("large", &"x".repeat(LARGE_BYTES)));
    let web = [&web[0], &web[1]];
    let place = Place::new(&config(web, &server, false));
    let node = place.node();
    let (http, tcp) = (node.addresses[0], node.addresses[1]);
    // Health checks come and go.
    let before = wait_for("it rests", || {
        let held = Held::by(&node.process);
        (Held::by(&node.process).sockets == held.sockets && pooled(&node) == 0).then_some(held)
    });
    let desk = seawall_client::Node::new("here", node.admin.to_string());
    let until = Instant::now() + Duration::from_secs(seconds);
    let (root, large, raw) =
        (format!("http://{http}/"), format!("http://{http}/files/large"), format!("http://{tcp}/"));
    let rude = AtomicU64::new(0);
    let (taken, done, early) = thread::scope(|scope| {
        for arguments in [
            ["wrk", "-t1", "-c16", "-d2s", &root].as_slice(),
            &["wrk", "-t1", "-c8", "-d2s", &large],
            &["wrk", "-t1", "-c8", "-d2s", "-H", "Connection: close", &root],
            &["wrk", "-t1", "-c8", "-d2s", &raw],
            &["h2load", "-c4", "-m8", "-D2", &root],
        ] {
            let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
            scope.spawn(move || load(until, &arguments.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        let forks: Vec<Prng> = (0..WRITERS).map(|_| prng.fork()).collect();
        let writers = forks.into_iter().enumerate();
        let writers: Vec<_> =
            writers.map(|(writer, prng)| scope.spawn(move || write(until, http, writer, prng))).collect();
        let of_rude = prng.fork();
        scope.spawn(|| rude.store(be_rude(until, http, of_rude), Relaxed));
        let early = scope.spawn(|| {
            thread::sleep(Duration::from_secs(seconds) / 3);
            Held::by(&node.process)
        });
        let done = disturb(until, &node, |other| place.configure(&config(web, &server, other)), prng);
        let taken: Vec<_> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        (taken, done, early.join().unwrap())
    });
    let loaded = Held::by(&node.process);
    let metrics = node.metrics().0;
    wait_until("nothing is under way, and all is reported", || {
        let sent = sink.lock().unwrap().outbox.send(&desk);
        let metrics = node.metrics().0;
        let left = UNDER_WAY.into_iter().filter(|name| sum(&metrics, name, "") > 0.0);
        sent.is_ok() && left.count() == 0
    });
    // Connections to upstreams stay for the next call, and are counted.
    wait_until("sockets and threads are given back", || {
        let (pooled, held) = (pooled(&node), Held::by(&node.process));
        held.sockets == before.sockets + pooled && held.threads <= before.threads + BLOCKING_THREADS
    });
    let after = Held::by(&node.process);
    println!("{before:?} before, {early:?} early, {loaded:?} at the end, {after:?} after");
    println!("{} writes taken, {} rude clients; {done:?}", taken.len(), rude.load(Relaxed));
    for (name, labels) in [
        ("seawall_requests_total", "web"),
        ("seawall_faulted_total", ""),
        ("seawall_endpoint_calls_total", "tcp"),
        ("seawall_retries_total", ""),
    ] {
        let many = sum(&metrics, name, labels);
        println!("{name} {labels}: {many}");
        assert!(many > 0.0, "this proved nothing: {name}");
    }
    assert!(taken.len() > 10 && rude.load(Relaxed) > 10 && done["fault"] > 10, "this proved nothing");
    assert!(after.files <= before.files + 8, "{before:?} {after:?}");
    assert!(after.memory_kib <= early.memory_kib + GROWTH_KIB, "{early:?} {after:?}");
    assert_eq!(node.api("/api/faults")["faults"], json!([]));
    let ledger = node.admin_post("/api/ledger/seal", &Value::Null).json();
    println!("{}", ledger["totals"]);
    assert_eq!(ledger["verdict"], "balanced", "{ledger:#}");
    let arrived = &sink.lock().unwrap().keys;
    let lost: Vec<_> = taken.iter().filter(|key| !arrived.contains(*key)).collect();
    assert!(lost.is_empty(), "taken and never delivered: {lost:?}");
    node.stop();
}
