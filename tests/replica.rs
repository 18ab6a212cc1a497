//! The replicated engine against real NATS servers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::process::Signal;
use seawall_store::{
    Inherited, Opened, Password, RealDisk, Replica, ReplicaOptions, Spool, Store, StoreOptions, is_new,
};

use crate::conformance::{SceneClock, options, plays, record};
use crate::house::{Answer, Node, PATIENCE, Place, wait_for, wait_until};
use crate::nats::{Cluster, Sync};
use crate::server::{Seen, Server, ok};

fn replica(cluster: &Cluster, node: &str) -> ReplicaOptions {
    let copies = cluster.servers.len();
    ReplicaOptions { servers: cluster.urls(), copies, node: node.into(), login: None, ca_file: None }
}

/// Opens a directory as a node with a replica does: a new one takes over what the stream holds.
async fn open(options: StoreOptions, replica: &ReplicaOptions, clock: &SceneClock, secret: u8) -> Opened<RealDisk> {
    let (dir, secret) = (options.dir.clone(), [secret; 32]);
    if !is_new(&RealDisk, &dir).expect("a folder") {
        return Store::open(RealDisk, options, clock.clone(), || secret).expect("opens");
    }
    let inherited = Inherited::look(replica.clone(), None, false).await.expect("the stream can be read");
    inherited.begin(&RealDisk, &dir).expect("a folder");
    let options = StoreOptions { epoch_min: inherited.epoch_min(), ..options };
    let mut opened = Store::open(RealDisk, options, clock.clone(), || secret).expect("opens");
    inherited.take_over(&mut opened, &RealDisk, &dir).await.expect("it takes over");
    opened
}

/// Until the replica has it all, whatever happens on the way.
async fn settle(spool: &Spool) {
    let done = async {
        while let Err(error) = spool.all_replicated().await {
            println!("not yet: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.expect("the replica has it all");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// Every scene begins with an empty directory.
fn conforms(cluster: &Cluster, dir: &Path) {
    for (number, play) in plays().into_iter().enumerate() {
        let (node, clock) = (format!("node-{number}"), SceneClock::default());
        for (act, scene) in play.scenes.into_iter().enumerate() {
            println!("{}, scene {act}", play.name);
            let dir = dir.join(format!("{node}-{act}"));
            runtime().block_on(async {
                let replica = replica(cluster, &node);
                let opened = open(options(&dir, &node), &replica, &clock, act as u8 + 1).await;
                let threads = opened.engine.spawn_threads().expect("threads");
                let kept = Replica::keep(&opened.store, replica, None, false, 1 << 20, &BTreeMap::new(), clock.clone())
                    .expect("a thread");
                scene(&opened.store.spool, &clock).await;
                settle(&opened.store.spool).await;
                kept.stop();
                opened.store.close().await;
                threads.join();
            });
        }
    }
}

#[test]
fn the_replicated_engine_conforms() {
    let cluster = Cluster::start(3, Sync::Always);
    let dir = tempfile::tempdir().expect("a folder");
    conforms(&cluster, dir.path());
}

/// Writes records of which each is a message of its own, takes them over into an empty directory, and tells how many
/// messages the server got for the latter.
async fn written_and_taken_over(cluster: &Cluster, replica: &ReplicaOptions, records: u64) -> u64 {
    let (dir, clock) = (tempfile::tempdir().expect("a folder"), SceneClock::default());
    let opened = open(options(&dir.path().join("1"), &replica.node), replica, &clock, 1).await;
    let threads = opened.engine.spawn_threads().expect("threads");
    let kept = Replica::keep(&opened.store, replica.clone(), None, false, 1 << 20, &BTreeMap::new(), clock.clone())
        .expect("a thread");
    for number in 0..records {
        let record = record(&format!("key {number}"), Some("row"));
        opened.store.spool.enqueue(&record).await.expect("kept");
        settle(&opened.store.spool).await;
    }
    kept.stop();
    opened.store.close().await;
    threads.join();
    let received =
        || cluster.servers[0].ask("/varz").expect("it answers").json()["in_msgs"].as_u64().expect("a number");
    let before = received();
    let opened = open(options(&dir.path().join("2"), &replica.node), replica, &clock, 2).await;
    let asked = received() - before;
    assert_eq!(opened.store.spool.depth().waiting, records, "all of them, each once");
    assert_eq!(opened.store.spool.depth().oldest, Some(record("key 0", None).accepted));
    asked
}

#[test]
fn a_long_replica_is_read_in_pages_and_one_by_one_where_it_must_be() {
    let cluster = Cluster::start(1, Sync::Lazily);
    let asked = runtime().block_on(written_and_taken_over(&cluster, &replica(&cluster, "a"), 1_500));
    assert!(asked < 100, "{asked} messages to the server to read 1,500");
    // Whoever may not have a consumer reads all the same.
    let user = "authorization { users: [{ user: s, password: s, permissions: { publish: { deny: \"$JS.API.CONSUMER.>\" } } }] }";
    let cluster = Cluster::with(1, Sync::Lazily, user);
    let login = Some(("s".into(), Password("s".into())));
    let replica = ReplicaOptions { login, ..replica(&cluster, "a") };
    let asked = runtime().block_on(written_and_taken_over(&cluster, &replica, 30));
    assert!((30..100).contains(&asked), "{asked} messages to the server to read 30");
}

/// A node whose writes all wait: its upstream is sick.
fn config(name: &str, upstream: &Server, durability: &str, store: &str) -> String {
    format!(
        "node: {name}\nlisteners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: events, upstream: queue, policy: writes }}] }}]\n\
         upstreams: {{ queue: {{ url: \"http://{}\" }} }}\n\
         policies: {{ writes: {{ timeout: 8s, retry: off, fallback: spool, order_by: \"header:Shipment-Id\", \
         breaker: {{ calls_min: 2, window: 4 calls, open_for: 20ms, open_for_max: 20ms }}, \
         delivery: {{ attempts: 1000000, durability: {durability} }} }} }}\n{store}",
        upstream.address
    )
}

fn write(node: &Node, key: &str, shipment: &str) -> Answer {
    node.post("/events", &format!("Idempotency-Key: \"{key}\"\r\nShipment-Id: {shipment}\r\n"), key)
}

/// Writes until two zones have it: a stream that was just made has no leader for a moment, and what is refused
/// meanwhile asks again under its key.
fn write_first(node: &Node, key: &str, shipment: &str) {
    wait_until("the replica takes it", || {
        let answer = write(node, key, shipment);
        answer.status == 202 && answer.header("seawall-durability").as_deref() == Some("replicated")
    });
}

fn kinds(node: &Node) -> Vec<String> {
    let entries = node.api("/api/journal?limit=1000")["entries"].clone();
    entries.as_array().unwrap().iter().map(|entry| entry["kind"].as_str().unwrap().to_owned()).collect()
}

fn bodies(server: &Server) -> Vec<String> {
    server.seen().iter().map(Seen::text).collect()
}

#[test]
fn a_node_that_lost_its_disk_goes_on_where_it_was() {
    let cluster = Cluster::start(3, Sync::Always);
    let (is_well, server) = Server::moody();
    let place = Place::new(&config("a", &server, "replicated", &cluster.store()));
    let node = place.node();
    write_first(&node, "k0", "s0");
    for n in 1..40 {
        let answer = write(&node, &format!("k{n}"), &format!("s{}", n % 3));
        assert_eq!((answer.status, answer.must("seawall-durability").as_str()), (202, "replicated"), "{}", answer.body);
    }
    node.kill();
    std::fs::remove_dir_all(place.data()).unwrap();
    let node = place.node();
    assert!(kinds(&node).contains(&"replica_taken_over".to_owned()));
    assert_eq!(node.spooled(), 40);
    // A key from before the loss is known.
    let again = write(&node, "k0", "s0");
    assert_eq!((again.status, again.must("idempotency-replayed").as_str()), (202, "true"));
    assert_eq!(node.post("/events", "Idempotency-Key: \"k0\"\r\nShipment-Id: s0\r\n", "other").status, 422);
    let before = server.count();
    is_well.store(true, Relaxed);
    wait_until("all is delivered", || node.spooled() == 0);
    let delivered = bodies(&server).split_off(before);
    let mut once = delivered.clone();
    once.sort();
    once.dedup();
    assert_eq!((delivered.len(), once.len()), (40, 40), "each once: {delivered:?}");
    for shipment in 0..3 {
        let number = |key: &String| key[1..].parse::<usize>().expect("a number");
        let row: Vec<usize> = delivered.iter().map(number).filter(|n| n % 3 == shipment).collect();
        assert!(row.is_sorted(), "in order: {row:?}");
    }
    // Stopped in good order, started again: nothing is left, and it is the same node.
    assert!(node.stop().success());
    let node = place.node();
    wait_until("the replica is current", || kinds(&node).contains(&"replica_current".to_owned()));
    assert_eq!((node.spooled(), node.status()["replica"]["behind"].as_u64()), (0, Some(0)));
}

#[test]
fn another_node_delivers_what_one_that_is_gone_left_in_the_replica() {
    let cluster = Cluster::start(3, Sync::Always);
    let (_, sick) = Server::moody();
    let well = Server::start(|_| ok("taken"));
    let gone = Place::new(&config("gone", &sick, "replicated", &cluster.store()));
    let node = gone.node();
    write_first(&node, "k0", "row");
    for n in 1..30 {
        assert_eq!(write(&node, &format!("k{n}"), "row").status, 202);
    }
    let heir = Place::new(&config("heir", &well, "local", &cluster.store()));
    let other = heir.node();
    let admin = format!("http://{}", other.admin);
    let adopt = |who: &str| heir.seawall(&["spool", "adopt", "--admin", &admin, "--replica", who]);
    // Its last sign of life may be on its way yet: others believe it gone a while after that.
    let adopt_gone = || {
        wait_for("it is believed gone", || {
            let said = adopt("gone");
            (!said.err.contains("is there, and delivers")).then_some(said)
        })
    };
    let said = adopt("gone");
    assert!(said.code == 1 && said.err.contains("`gone` is there, and delivers its records itself"), "{said:?}");
    let said = adopt("nobody");
    assert!(said.code == 1 && said.err.contains("never heard of a node `nobody`"), "{said:?}");
    let said = adopt("heir");
    assert!(said.code == 1 && said.err.contains("`heir` runs"), "{said:?}");
    node.kill();
    let said = adopt_gone();
    assert!(said.code == 0 && said.out.contains("30 records of `gone` are `heir`'s"), "{said:?}");
    wait_until("all is delivered", || other.spooled() == 0);
    assert_eq!(bodies(&well), (0..30).map(|n| format!("k{n}")).collect::<Vec<_>>());
    // What happened there is told by the copy of its journal, too.
    let said = heir.seawall(&["journal", "export", "--replica", "gone", "--kind", "node_started"]);
    assert!(said.code == 0 && said.out.contains("\"kind\":\"node_started\""), "{said:?}");
    // It comes back with its disk: its records are another's, and it does not start.
    let said = gone.refused(&["run"]);
    assert!(said.code == 1 && said.err.contains("records are another's to deliver: adopted by heir"), "{said:?}");
    // With an empty directory it begins anew.
    std::fs::remove_dir_all(gone.data()).unwrap();
    let node = gone.node();
    assert_eq!(node.spooled(), 0);
    assert_eq!(write(&node, "new", "row").must("seawall-durability"), "replicated");
    // Stopped for longer than others believe in it: what was taken in meanwhile it delivers no more, and ends.
    node.process.signal(Signal::STOP);
    let said = adopt_gone();
    assert!(said.code == 0 && said.out.contains("1 records of `gone`"), "{said:?}");
    node.process.signal(Signal::CONT);
    let mut node = node;
    assert_eq!(crate::process::code(node.process.wait()), 1);
    let lines = node.process.lines().join("\n");
    assert!(lines.contains("records are another's to deliver"), "{lines}");
    // It does not start again, asked or not; what its directory holds can be taken in, and is known by its keys.
    drop(cluster);
    let said = gone.refused(&["run"]);
    assert!(said.code == 1 && said.err.contains("`seawall spool adopt"), "{said:?}");
    let said = heir.seawall(&["spool", "adopt", "--admin", &admin, &gone.data().to_string_lossy()]);
    assert!(
        said.code == 0 && said.out.contains("0 records of `gone`") && said.out.contains("1 were there already"),
        "{said:?}"
    );
}

#[test]
fn without_its_replica_a_route_says_so_or_refuses() {
    let mut cluster = Cluster::start(1, Sync::Always);
    let (_, sick) = Server::moody();
    let strict = Place::new(&config("strict", &sick, "replicated", &cluster.store()));
    let easy = Place::new(&config("easy", &sick, "replicated_or_local, replicated_within: 1s", &cluster.store()));
    let (strict, easy) = (strict.node(), easy.node());
    for node in [&strict, &easy] {
        assert_eq!(write(node, "a", "row").must("seawall-durability"), "replicated");
    }
    cluster.servers[0].kill();
    wait_until("it is missed", || write(&easy, "b", "row").must("seawall-durability").starts_with("local; reason="));
    let refused = crate::house::wait_for("it is refused before anything is kept", || {
        let answer = write(&strict, &format!("c{}", strict.spooled()), "row");
        assert_eq!(answer.status, 503, "{}", answer.body);
        answer.body.contains("nothing was kept").then_some(answer)
    });
    refused.is_ours(503, "destination_unavailable");
    assert!(kinds(&strict).contains(&"replica_down".to_owned()));
    wait_until("it is known to be down", || easy.status()["replica"]["state"] == "down");
    let metrics = easy.admin_get("/metrics").body;
    assert!(metrics.contains("seawall_replica_state{state=\"down\"} 1"), "{metrics}");
    cluster.restart(0);
    cluster.await_health();
    wait_until("it is back", || easy.status()["replica"]["state"] == "current");
    wait_until("it has it all", || easy.status()["replica"]["behind"] == 0);
    assert_eq!(write(&easy, "b", "row").must("seawall-durability").split(';').next(), Some("local"), "as it was told");
    assert_eq!(write(&easy, "d", "row").must("seawall-durability"), "replicated");
}

#[test]
fn servers_that_cannot_be_trusted_are_refused_and_told_why() {
    let lazy = Cluster::start(1, Sync::Lazily);
    let (_, sick) = Server::moody();
    let place = Place::new(&config("a", &sick, "replicated", &lazy.store()));
    let said = place.seawall(&["check"]);
    assert_eq!(said.code, 1, "{said:?}");
    let told = "must not be trusted: it syncs every 120s, and answers before that";
    assert!(
        said.out.contains(told) && said.out.contains("sync_interval: always") && said.out.contains("seawall.yaml:"),
        "{said:?}"
    );
    let said = place.refused(&["run"]);
    assert!(said.code == 1 && said.err.contains(told), "{said:?}");
    let accepting = lazy.store().replace("copies:", "accept_unsynced: true, copies:");
    place.configure(&config("a", &sick, "replicated", &accepting));
    let said = place.seawall(&["check"]);
    assert!(said.code == 0 && said.out.contains(told), "{said:?}");
    let node = place.node();
    assert_eq!(write(&node, "k", "row").must("seawall-durability"), "replicated");
    drop(node);

    // Copies that cannot be had, by a stream that is there and by one that is to be made; no JetStream; too little
    // storage.
    let three = lazy.store().replace("copies: 1", "accept_unsynced: true, copies: 3");
    let refused = |store: &str| {
        let place = Place::new(&config("b", &sick, "replicated", store));
        let said = place.refused(&["run"]);
        assert_eq!(said.code, 1, "{said:?}");
        said.err
    };
    let said = refused(&three);
    assert!(said.contains("copies of a message are 1, and 3 were asked for"), "{said}");
    let plain = Cluster::start(1, Sync::Always);
    let said = refused(&plain.store().replace("copies: 1", "accept_unsynced: true, copies: 3"));
    assert!(said.contains("3 copies need a cluster"), "{said}");
    let bare = Cluster::bare();
    let said = Place::new(&config("a", &sick, "replicated", &bare.store())).seawall(&["check"]);
    assert!(said.code == 1 && said.out.contains("it has no JetStream"), "{said:?}");
    let said = refused(&plain.store().replace("path:", "spool_max: 3GiB, path:"));
    assert!(said.contains("it has storage for") && said.contains("lower `store.spool_max`"), "{said}");
}
