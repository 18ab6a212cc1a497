//! The account of records that another node takes in: it comes with them, once, and the sink's word fits it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use seawall_client::Outbox;
use serde_json::{Value, json};

use crate::house::{Node, Place, Said, wait_until};
use crate::nats::{Cluster, Sync};
use crate::server::{Do, Server, ok, sick};

fn config(name: &str, upstream: &Server, store: &str, durability: &str) -> String {
    format!(
        "node: {name}\nlisteners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: events, upstream: queue, policy: writes }}] }}]\n\
         upstreams: {{ queue: {{ url: \"http://{}\" }} }}\n\
         policies: {{ writes: {{ timeout: 8s, retry: off, replay_max: 1MiB, fallback: spool, order_by: \"header:Shipment-Id\", \
         breaker: {{ calls_min: 2, window: 4 calls, open_for: 20ms, open_for_max: 20ms }}, \
         delivery: {{ attempts: 1000000, durability: {durability} }} }} }}\n{store}",
        upstream.address
    )
}

fn write(node: &Node, number: usize) -> u16 {
    let headers = format!("Idempotency-Key: \"k{number}\"\r\nShipment-Id: s{}\r\n", number % 3);
    node.post("/events", &headers, &format!("body {number}")).status
}

/// A sink that is sick for the first so many requests, and then takes everything and keeps a receipt of it, in an
/// outbox of its own.
struct Sink {
    server: Server,
    outbox: Arc<Mutex<Outbox>>,
    refusals: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

impl Sink {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Arc::new(Mutex::new(Outbox::open(dir.path(), "sink").unwrap()));
        let refusals = Arc::new(AtomicUsize::new(0));
        let (at_the_sink, refuses) = (Arc::clone(&outbox), Arc::clone(&refusals));
        let server = Server::start(move |seen| {
            if refuses.load(Relaxed) > 0 {
                return sick();
            }
            let mut outbox = at_the_sink.lock().unwrap();
            outbox.note(&seen.header("seawall-record").expect("numbered"), &seen.body).unwrap();
            outbox.sync().unwrap();
            ok("taken")
        });
        Self { server, outbox, refusals, _dir: dir }
    }

    fn is_sick(&self, is_sick: bool) {
        self.refusals.store(usize::from(is_sick), Relaxed);
    }

    /// Reports what belongs to one node at another's desk. How many receipts these were.
    fn report(&self, of: &str, at: &Node) -> u64 {
        let desk = seawall_client::Node::new(of, at.admin.to_string());
        self.outbox.lock().unwrap().send(&desk).unwrap().receipts
    }
}

/// Stands between the command and a node, and hangs up instead of passing the answer on, after so many were passed on.
fn cut_line(node: SocketAddr, answers: usize) -> Server {
    let passed = AtomicUsize::new(0);
    Server::start(move |seen| {
        let mut stream = TcpStream::connect(node).unwrap();
        let head: Vec<&str> = seen.head.lines().filter(|line| !line.to_lowercase().starts_with("connection")).collect();
        let head = format!("{}\r\nConnection: close\r\n\r\n", head.join("\r\n").trim_end());
        stream.write_all(&[head.as_bytes(), &seen.body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let is_batch = seen.line().contains("/api/spool/adopt");
        if is_batch && passed.fetch_add(1, Relaxed) >= answers { Do::Reset } else { Do::SendAndClose(answer) }
    })
}

fn ledger(place: &Place, node: &Node, arguments: &[&str]) -> Said {
    place.seawall(&[&["ledger", "--json"], arguments, &["--admin", &format!("http://{}", node.admin)]].concat())
}

fn counts<const N: usize>(of: &Value, classes: [&str; N]) -> [u64; N] {
    classes.map(|class| of[class].as_u64().unwrap_or(0))
}

const CLASSES: [&str; 7] = ["accepted", "delivered", "handed_over", "lost", "duplicated", "phantom", "unproven"];

#[test]
fn an_account_comes_with_its_records_once_however_often_it_is_cut_short() {
    let sink = Sink::new();
    let dead = Place::new(&config("dead", &sink.server, "", "local"));
    let node = dead.node();
    // Some it delivers itself, and the sink has reported them.
    (0..10).for_each(|number| assert_eq!(write(&node, number), 200));
    assert_eq!(sink.report("dead", &node), 10);
    sink.is_sick(true);
    (10..210).for_each(|number| assert_eq!(write(&node, number), 202));
    let written = Instant::now();
    node.kill();
    let dir = dead.data().to_string_lossy().into_owned();
    let place = Place::new(&config("heir", &sink.server, "", "local"));
    let heir = place.node();
    wait_until("another second begins", || written.elapsed() > Duration::from_secs(1));
    assert_eq!(write(&heir, 300), 202);
    // The second batch is taken in, and the answer lost; then the node that took it dies too.
    let line = cut_line(heir.admin, 1);
    let said = place.seawall(&["spool", "adopt", &dir, "--admin", &format!("http://{}", line.address)]);
    assert_eq!(said.code, 3, "{said:?}");
    assert_eq!(heir.spooled(), 1 + 128, "two batches");
    let age_s = written.elapsed().as_secs_f64();
    let oldest_s = heir.status()["spool"]["oldest_s"].as_f64().unwrap();
    assert!(oldest_s >= age_s, "the oldest is of the dead node: {oldest_s} is less than {age_s}");
    heir.kill();
    let heir = place.node();
    let row = heir.api("/api/ledger")["streams"].as_array().unwrap().clone();
    let adopted: Vec<&Value> = row.iter().filter(|row| row["producer"] == "dead").collect();
    assert_eq!(
        (adopted.len(), &adopted[0]["adopted"], counts(adopted[0], ["accepted", "waiting"])),
        (1, &json!(true), [128, 128])
    );
    let said = place.seawall(&["spool", "adopt", &dir, "--json", "--admin", &format!("http://{}", heir.admin)]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(counts(&said.json(), ["adopted", "already", "left"]), [72, 64, 0]);
    sink.is_sick(false);
    wait_until("all is delivered", || heir.spooled() == 0);
    // Under the numbers they had. The sink tells the heir what it counted for the dead node.
    assert_eq!(sink.outbox.lock().unwrap().nodes(), ["dead", "heir"]);
    assert_eq!((sink.report("dead", &heir), sink.report("heir", &heir)), (200, 1));
    let said = ledger(&place, &heir, &["--seal"]);
    assert_eq!(said.code, 0, "{said:?}");
    let answer = said.json();
    assert_eq!(
        (counts(&answer["totals"], CLASSES), &answer["verdict"]),
        ([201, 201, 0, 0, 0, 0, 0], &json!("balanced"))
    );
    // The other side of it: nothing there is lost, and nothing is delivered from there any more.
    let said = dead.seawall(&["ledger", "--json", "--data", "data"]);
    assert_eq!(counts(&said.json()["totals"], CLASSES), [210, 10, 200, 0, 0, 0, 0]);
    // Not only because its spool remembers: that is for a day.
    let bare = dead.path().join("bare");
    std::fs::create_dir_all(bare.join("ledger")).unwrap();
    std::fs::copy(dead.data().join("META"), bare.join("META")).unwrap();
    for entry in std::fs::read_dir(dead.data().join("ledger")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, bare.join("ledger").join(path.file_name().unwrap())).unwrap();
    }
    let said = dead.seawall(&["ledger", "--json", "--data", "bare"]);
    assert_eq!(counts(&said.json()["totals"], CLASSES), [210, 10, 200, 0, 0, 0, 0], "{said:?}");
    let seen = sink.server.count();
    let old = dead.node();
    let said = ledger(&dead, &old, &["--seal"]);
    assert_eq!((said.code, counts(&said.json()["totals"], CLASSES)), (0, [210, 10, 200, 0, 0, 0, 0]), "{said:?}");
    assert_eq!(said.json()["verdict"], "balanced");
    let record = old.api("/api/spool/11");
    assert_eq!(
        (&record["state"], record["settled"]["handed_over"].as_str().unwrap().split(' ').next()),
        (&json!("handed_over"), Some("heir"))
    );
    assert_eq!((old.spooled(), sink.server.count()), (0, seen));
}

/// Writes until two zones have it: a stream that was just made has no leader for a moment.
fn write_first(node: &Node, number: usize) {
    let headers = format!("Idempotency-Key: \"k{number}\"\r\nShipment-Id: s{}\r\n", number % 3);
    wait_until("the replica takes it", || {
        let answer = node.post("/events", &headers, &format!("body {number}"));
        answer.status == 202 && answer.header("seawall-durability").as_deref() == Some("replicated")
    });
}

#[test]
fn an_account_comes_with_its_records_from_the_replica() {
    let cluster = Cluster::start(3, Sync::Always);
    let sink = Sink::new();
    sink.is_sick(true);
    let gone = Place::new(&config("gone", &sink.server, &cluster.store(), "replicated"));
    let node = gone.node();
    write_first(&node, 0);
    (1..150).for_each(|number| assert_eq!(write(&node, number), 202));
    node.kill();
    let place = Place::new(&config("heir", &sink.server, &cluster.store(), "local"));
    let heir = place.node();
    // Cut short in the middle, and the node that takes in dies too.
    let line = cut_line(heir.admin, 1);
    let said = place.seawall(&["spool", "adopt", "--replica", "gone", "--admin", &format!("http://{}", line.address)]);
    assert_eq!(said.code, 3, "{said:?}");
    heir.kill();
    let heir = place.node();
    let said =
        place.seawall(&["spool", "adopt", "--json", "--replica", "gone", "--admin", &format!("http://{}", heir.admin)]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(counts(&said.json(), ["adopted", "already", "left"]), [22, 128, 0]);
    sink.is_sick(false);
    wait_until("all is delivered", || heir.spooled() == 0);
    assert_eq!(sink.report("gone", &heir), 150);
    let said = ledger(&place, &heir, &["--seal"]);
    assert_eq!(said.code, 0, "{said:?}");
    let answer = said.json();
    assert_eq!(
        (counts(&answer["totals"], CLASSES), &answer["verdict"]),
        ([150, 150, 0, 0, 0, 0, 0], &json!("balanced"))
    );
    // The old directory delivers nothing, and once it is adopted too its books say where the records went.
    let dir = gone.data().to_string_lossy().into_owned();
    let said = place.seawall(&["spool", "adopt", &dir, "--json", "--admin", &format!("http://{}", heir.admin)]);
    assert_eq!((said.code, counts(&said.json(), ["adopted", "already", "left"])), (0, [0, 150, 0]), "{said:?}");
    let said = gone.seawall(&["ledger", "--json", "--data", "data"]);
    assert_eq!(counts(&said.json()["totals"], CLASSES), [150, 0, 150, 0, 0, 0, 0]);
    let again = ledger(&place, &heir, &[]);
    assert_eq!(counts(&again.json()["totals"], CLASSES), [150, 150, 0, 0, 0, 0, 0]);
}

#[test]
fn a_node_that_lost_its_disk_keeps_the_account_of_what_it_takes_over() {
    let cluster = Cluster::start(1, Sync::Always);
    let sink = Sink::new();
    let place = Place::new(&config("a", &sink.server, &cluster.store(), "replicated"));
    let node = place.node();
    assert_eq!(write(&node, 0), 200);
    sink.is_sick(true);
    write_first(&node, 1);
    (2..40).for_each(|number| assert_eq!(write(&node, number), 202));
    node.kill();
    std::fs::remove_dir_all(place.data()).unwrap();
    let node = place.node();
    assert_eq!(node.spooled(), 39);
    sink.is_sick(false);
    wait_until("all is delivered", || node.spooled() == 0);
    assert_eq!(write(&node, 40), 200);
    // The first was delivered before the loss: that it was sent from here nobody can know any more.
    assert_eq!(sink.report("a", &node), 41);
    let said = ledger(&place, &node, &["--seal"]);
    assert_eq!(said.code, 0, "{said:?}");
    let answer = said.json();
    assert_eq!((counts(&answer["totals"], CLASSES), &answer["verdict"]), ([40, 40, 0, 0, 0, 0, 1], &json!("unknown")));
    // Also after a kill.
    node.kill();
    let node = place.node();
    assert_eq!(counts(&node.api("/api/ledger")["totals"], CLASSES), [40, 40, 0, 0, 0, 0, 1]);
}

#[test]
fn what_was_handed_over_is_not_taken_back_as_known() {
    let sink = Sink::new();
    sink.is_sick(true);
    let first = Place::new(&config("first", &sink.server, "", "local"));
    let second = Place::new(&config("second", &sink.server, "", "local"));
    let adopt = |at: &Place, node: &Node, from: &Place| {
        let dir = from.data().to_string_lossy().into_owned();
        at.seawall(&["spool", "adopt", &dir, "--admin", &format!("http://{}", node.admin)])
    };
    let node = first.node();
    (0..3).for_each(|number| assert_eq!(write(&node, number), 202));
    node.kill();
    let node = second.node();
    assert_eq!(adopt(&second, &node, &first).code, 0);
    node.kill();
    // The first is back, and remembers their keys: as handed over, which is not as kept.
    let node = first.node();
    let said = adopt(&first, &node, &second);
    assert_ne!(said.code, 0, "{said:?}");
    said.tells(&["3 records stay where they are", "which was handed over to second as record"]);
    assert_eq!(node.spooled(), 0);
    node.kill();
    let node = second.node();
    assert_eq!(node.spooled(), 3, "they are where they were");
    sink.is_sick(false);
    wait_until("all is delivered", || node.spooled() == 0);
}

#[test]
fn a_node_whose_disk_comes_back_takes_in_what_is_on_it() {
    let sink = Sink::new();
    let place = Place::new(&config("a", &sink.server, "", "local"));
    let node = place.node();
    (0..5).for_each(|number| assert_eq!(write(&node, number), 200));
    assert_eq!(sink.report("a", &node), 5);
    sink.is_sick(true);
    (5..15).for_each(|number| assert_eq!(write(&node, number), 202));
    node.kill();
    let old = place.path().join("old");
    std::fs::rename(place.data(), &old).unwrap();
    // Numbers begin at one again; in an epoch that the old directory never had.
    let node = place.node();
    (20..30).for_each(|number| assert_eq!(write(&node, number), 202));
    let old = old.to_string_lossy();
    let said = place.seawall(&["spool", "adopt", &old, "--admin", &format!("http://{}", node.admin)]);
    assert!(said.code == 0 && said.out.contains("10 records of `a` are `a`'s"), "{said:?}");
    sink.is_sick(false);
    wait_until("all is delivered", || node.spooled() == 0);
    // The books are new, and the sink's batches go on from where they were.
    assert_eq!(sink.report("a", &node), 20);
    let answer = ledger(&place, &node, &["--seal"]).json();
    assert_eq!((counts(&answer["totals"], CLASSES), &answer["verdict"]), ([20, 20, 0, 0, 0, 0, 0], &json!("balanced")));
    let said = place.seawall(&["ledger", "--json", "--data", &old]);
    assert_eq!(counts(&said.json()["totals"], CLASSES), [15, 5, 10, 0, 0, 0, 0]);
}

/// More than the old spool remembers of what it handed over.
#[test]
fn the_old_books_know_all_that_was_handed_over() {
    let sink = Sink::new();
    sink.is_sick(true);
    let dead = Place::new(&config("dead", &sink.server, "", "local"));
    let node = dead.node();
    for number in 0..40 {
        let body = format!("{number}{}", " ".repeat(500 << 10));
        assert_eq!(node.post("/events", "Shipment-Id: s\r\n", &body).status, 202);
    }
    node.kill();
    let place = Place::new(&config("heir", &sink.server, "", "local"));
    let heir = place.node();
    let dir = dead.data().to_string_lossy().into_owned();
    let said = place.seawall(&["spool", "adopt", &dir, "--admin", &format!("http://{}", heir.admin)]);
    assert_eq!(said.code, 0, "{said:?}");
    for _ in 0..2 {
        let totals = dead.seawall(&["ledger", "--json", "--data", "data"]).json()["totals"].clone();
        assert_eq!((counts(&totals, CLASSES), &totals["missing_so_far"]), ([40, 0, 40, 0, 0, 0, 0], &json!(0)));
        // Also to the node itself, should it start again.
        dead.node().stop();
    }
}

#[test]
fn what_one_node_began_to_take_in_no_other_is_given() {
    let sink = Sink::new();
    sink.is_sick(true);
    let dead = Place::new(&config("dead", &sink.server, "", "local"));
    let node = dead.node();
    (0..100).for_each(|number| assert_eq!(write(&node, number), 202));
    node.kill();
    let dir = dead.data().to_string_lossy().into_owned();
    let [first, second] = ["first", "second"].map(|name| Place::new(&config(name, &sink.server, "", "local")));
    let (heir, other) = (first.node(), second.node());
    // Taken in, and not marked there.
    let line = cut_line(heir.admin, 0);
    let adopt = |at: SocketAddr| first.seawall(&["spool", "adopt", &dir, "--admin", &format!("http://{at}")]);
    assert_eq!(adopt(line.address).code, 3);
    let said = adopt(other.admin);
    assert_eq!(said.code, 1, "{said:?}");
    said.tells(&["`first` has begun to take in what", "`--although-begun`"]);
    assert_eq!((heir.spooled(), other.spooled()), (64, 0));
    assert_eq!(adopt(heir.admin).code, 0);
    assert_eq!(heir.spooled(), 100);
    // All is done: the mark is gone, and there is nothing left for the other one.
    assert!(!dead.data().join("ADOPTER").exists());
    let said = adopt(other.admin);
    assert!(said.code == 0 && said.out.contains("0 records of `dead`"), "{said:?}");
    // Begun again, by one that dies for good; what it has goes the same way.
    heir.kill();
    let line = cut_line(other.admin, 0);
    let from_first = first.data().to_string_lossy().into_owned();
    let adopt = |dir: &str, at: SocketAddr, more: &[&str]| {
        first.seawall(&[&["spool", "adopt", dir, "--admin", &format!("http://{at}")], more].concat())
    };
    assert_eq!(adopt(&from_first, line.address, &[]).code, 3);
    other.kill();
    let third = Place::new(&config("third", &sink.server, "", "local"));
    let last = third.node();
    assert_eq!(adopt(&from_first, last.admin, &[]).code, 1);
    assert_eq!(adopt(&from_first, last.admin, &["--although-begun"]).code, 0);
    let said = adopt(&second.data().to_string_lossy(), last.admin, &[]);
    assert!(said.code == 0 && said.out.contains("64 were there already"), "{said:?}");
    assert_eq!(last.spooled(), 100, "known by their keys");
}
