//! kill -9 at random moments under writes: what was acknowledged arrives, once, in order, and the account agrees.
//!
//! Eight writers, each at one shipment at a time, each write numbered; a write is repeated under the same key until
//! somebody says yes. The sink is moody: it refuses, works and then says no, cuts its answer, resets. It writes a row
//! for every key it has not seen, before it answers, and its file decides what arrived, not Seawall's word. It reports
//! receipts to whichever node is alive, in numbered batches, each repeated until it is taken.
//!
//! And once more on a replicated route, where some deaths take the disk along: then the stream is what is left.
//! `CRASH_ROUNDS=500` kills more often.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use seawall_core::prng::Prng;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::house::{Client, Node, Place, post, seed, wait_until};
use crate::nats::{Cluster, Sync};
use crate::process::code;
use crate::server::{Do, Seen, Server, ok, sick};

const ROUNDS: u64 = 60;
/// With disks that go: a new life asks three servers what it was.
const WIPED_ROUNDS: u64 = 10;
const WRITERS: usize = 8;
/// Writes of one shipment, one after the other; then its writer begins the next. What waits for an old shipment does
/// not keep the writes of a new one from going straight through: both ways are to be taken often.
const PER_SHIPMENT: u64 = 25;

/// Where the living node is; nobody while there is none.
#[derive(Default)]
pub struct Addresses {
    pub data: Mutex<Option<SocketAddr>>,
    pub admin: Mutex<Option<SocketAddr>>,
}

impl Addresses {
    pub fn set(&self, node: Option<&Node>) {
        *self.data.lock().unwrap() = node.map(Node::address);
        *self.admin.lock().unwrap() = node.map(|node| node.admin);
    }
}

/// The books of the sink.
struct Books {
    prng: Prng,
    mood: Mood,
    mood_left: u64,
    keys: BTreeSet<String>,
    reported: BTreeSet<String>,
    receipts: Vec<Value>,
    rows: File,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    Refuses,
    WorksThenRefuses,
    Cuts,
    Resets { works: bool },
}

struct Sink {
    books: Mutex<Books>,
    calm: AtomicBool,
    sick_answers: AtomicU64,
}

impl Sink {
    fn answer(&self, seen: &Seen) -> Do {
        let mut books = self.books.lock().unwrap();
        let mood = if self.calm.load(Relaxed) { Mood::Well } else { books.mood() };
        if mood != Mood::Well {
            self.sick_answers.fetch_add(1, Relaxed);
        }
        if !matches!(mood, Mood::Refuses | Mood::Resets { works: false }) {
            books.take(seen);
        }
        match mood {
            Mood::Well => ok("taken"),
            Mood::Refuses | Mood::WorksThenRefuses => sick(),
            Mood::Cuts => Do::SendAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\ntak".to_vec()),
            Mood::Resets { .. } => Do::Reset,
        }
    }
}

impl Books {
    /// Bad moods last for a few calls, good ones longer: most writes are to go straight through, the rest by the spool.
    fn mood(&mut self) -> Mood {
        if self.mood_left == 0 {
            self.mood = match self.prng.below(10) {
                _ if self.mood != Mood::Well => Mood::Well,
                0..4 => Mood::Refuses,
                4 | 5 => Mood::WorksThenRefuses,
                6 | 7 => Mood::Cuts,
                _ => Mood::Resets { works: self.prng.chance(0.5) },
            };
            self.mood_left = 1 + self.prng.below(if self.mood == Mood::Well { 80 } else { 8 });
        }
        self.mood_left -= 1;
        self.mood
    }

    fn take(&mut self, seen: &Seen) {
        let key = seen.header("idempotency-key").expect("every write has a key");
        if self.keys.insert(key) {
            self.rows.write_all(format!("{}\n", seen.text()).as_bytes()).unwrap();
        }
        let stamp = seen.header("seawall-record").expect("every write is numbered");
        let (record, tag) = stamp.split_once(";tag=").expect("a number and its tag");
        if self.reported.insert(record.to_owned()) {
            let digest: String = Sha256::digest(&seen.body).iter().map(|byte| format!("{byte:02x}")).collect();
            self.receipts.push(json!({ "record": record, "tag": tag, "digest": digest }));
        }
    }
}

/// Reports until told to stop and everything is told.
fn report(sink: &Sink, addresses: &Addresses, stop: &AtomicBool) {
    let mut number = 1;
    loop {
        let batch: Vec<Value> = sink.books.lock().unwrap().receipts.iter().take(200).cloned().collect();
        if batch.is_empty() {
            if stop.load(Relaxed) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let body = json!({ "sink": "warehouse", "batch": number, "receipts": batch }).to_string();
        let request = post("/api/ledger/receipts", "Content-Type: application/json\r\n", &body);
        let told = patiently(|| {
            let admin = (*addresses.admin.lock().unwrap())?;
            Client::connect(admin).ok()?.try_ask(&request)
        });
        assert_eq!(told.status, 200, "batch {number}: {}", told.body);
        sink.books.lock().unwrap().receipts.drain(..batch.len());
        number += 1;
    }
}

/// Asks again until there is an answer, whoever dies meanwhile.
pub fn patiently<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "nobody answers any more");
        thread::sleep(Duration::from_millis(1));
    }
}

/// What the writers were told.
#[derive(Default)]
pub struct Told {
    pub acknowledged: AtomicU64,
    pub spooled: AtomicU64,
    pub again: AtomicU64,
}

/// One writer's writes, each until it is acknowledged; tells how many there were.
fn write_all(writer: usize, mut prng: Prng, addresses: &Addresses, told: &Told, stop: &AtomicBool) -> u64 {
    let (mut client, mut number) = (None::<(SocketAddr, Client)>, 0);
    while !stop.load(Relaxed) {
        let shipment = number / PER_SHIPMENT;
        let headers = format!("Shipment-Id: s{writer}-{shipment}\r\nIdempotency-Key: \"{writer}-{number}\"\r\n");
        let request = post("/events", &headers, &format!("{writer} {number}"));
        let status = patiently(|| {
            let address = (*addresses.data.lock().unwrap())?;
            if client.as_ref().is_none_or(|(of, _)| *of != address) {
                client = Some((address, Client::connect(address).ok()?));
            }
            let answer = client.as_mut().and_then(|(_, client)| client.try_ask(&request));
            match answer {
                Some(answer) if (200..300).contains(&answer.status) => Some(answer.status),
                Some(answer) => {
                    // Its first try may still be running, or its replica is not reached yet; nothing else is a reason
                    // to say no.
                    let is_unsafe = answer.status == 503 && answer.body.contains("\"durability\"");
                    assert!(answer.status == 409 || is_unsafe, "{answer:?}");
                    told.again.fetch_add(1, Relaxed);
                    None
                }
                None => {
                    client = None;
                    told.again.fetch_add(1, Relaxed);
                    None
                }
            }
        });
        told.acknowledged.fetch_add(1, Relaxed);
        told.spooled.fetch_add(u64::from(status == 202), Relaxed);
        number += 1;
        thread::sleep(Duration::from_micros(prng.below(4_000)));
    }
    number
}

/// One life of a node: it starts, works for a while, and is killed in the middle of something.
pub fn live_and_die(place: &Place, addresses: &Addresses, told: &Told, prng: &mut Prng) {
    let mut node = place.spawn(&["run"], &[]);
    let begin = Instant::now();
    if prng.chance(0.15) {
        // While it reads what the last one left behind.
        let wait = Duration::from_micros(prng.below(40_000));
        while begin.elapsed() < wait {
            thread::sleep(Duration::from_micros(200));
        }
        return node.kill();
    }
    assert!(node.wait_ready(), "a node did not come back: {:#?}", node.process.lines());
    addresses.set(Some(&node));
    let enough = told.acknowledged.load(Relaxed) + prng.below(120);
    let (begin, limit) = (Instant::now(), Duration::from_millis(20 + prng.below(400)));
    while told.acknowledged.load(Relaxed) < enough && begin.elapsed() < limit {
        thread::sleep(Duration::from_micros(100));
    }
    if prng.chance(0.15) {
        // In the middle of a drain.
        node.process.signal(Signal::TERM);
        let (begin, wait) = (Instant::now(), Duration::from_micros(prng.below(8_000)));
        while begin.elapsed() < wait {
            thread::sleep(Duration::from_micros(100));
        }
    }
    // Killed first and taken off the map after: writers are to be caught in the middle of a word.
    node.process.kill();
    addresses.set(None);
}

pub fn rounds(usual: u64) -> u64 {
    std::env::var("CRASH_ROUNDS").map_or(usual, |rounds| rounds.parse().expect("a number"))
}

#[test]
fn killed_sixty_times_and_nothing_is_lost() {
    let ledger = kill(rounds(ROUNDS), None);
    let totals = &ledger["totals"];
    assert_eq!(ledger["verdict"], "balanced", "{ledger:#}");
    for class in ["lost", "duplicated", "corrupted", "phantom", "resurrected", "waiting", "parked", "expired"] {
        assert_eq!(totals[class], 0, "{class}: {totals:#}");
    }
    assert!(totals["delivered"].as_u64() >= Some(1), "{totals:#}");
}

/// The account is the disk's, and goes with it: here the sink alone decides.
#[test]
fn killed_with_its_disk_and_nothing_acknowledged_is_lost() {
    let cluster = Cluster::start(3, Sync::Always);
    kill(rounds(WIPED_ROUNDS), Some(&cluster));
}

/// Kills a node so many times, sometimes with its disk if there is a cluster to start again from. The sealed ledger.
fn kill(rounds: u64, cluster: Option<&Cluster>) -> Value {
    let seed = seed();
    println!("E2E_SEED={seed}");
    let mut prng = Prng::new(seed);
    let place = Place::empty();
    let rows = place.path().join("rows");
    let sink = Arc::new(Sink {
        books: Mutex::new(Books {
            prng: Prng::new(seed ^ 1),
            mood: Mood::Well,
            mood_left: 0,
            keys: BTreeSet::new(),
            reported: BTreeSet::new(),
            receipts: Vec::new(),
            rows: File::create(&rows).unwrap(),
        }),
        calm: AtomicBool::new(false),
        sick_answers: AtomicU64::new(0),
    });
    let of_server = Arc::clone(&sink);
    let server = Server::start(move |seen| of_server.answer(seen));
    place.configure(&format!(
        "node: n\nlisteners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: events, upstream: queue, policy: writes }}] }}]\n\
         upstreams: {{ queue: {{ url: \"http://{}\" }} }}\n\
         policies:\n  writes:\n    timeout: 2s\n    try_timeout: 500ms\n    retry: {{ attempts: 2, backoff: 1ms..5ms }}\n    \
         breaker: {{ failure_rate: 50%, window: 20 calls, calls_min: 10, open_for: 20ms, open_for_max: 20ms }}\n    \
         fallback: spool\n    order_by: header:Shipment-Id\n    delivery: {{ attempts: 1000000, parallel: 8{} }}\n{}",
        server.address,
        if cluster.is_some() { ", durability: replicated" } else { "" },
        cluster.map(Cluster::store).unwrap_or_default()
    ));
    let (addresses, told) = (Addresses::default(), Told::default());
    let (stop, written, no_more) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
    let guard = Released([&stop, &written, &no_more]);
    let (counts, ledger) = thread::scope(|scope| {
        // A failed assertion below must not leave the scope waiting for its threads.
        let guard = guard;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn({
                    let (addresses, told, stop) = (&addresses, &told, &stop);
                    let prng = Prng::new(seed ^ (writer as u64 + 2));
                    move || write_all(writer, prng, addresses, told, stop)
                })
            })
            .collect();
        // Batches are numbered by the disk's account.
        let reporter = cluster.is_none().then(|| scope.spawn(|| report(&sink, &addresses, &no_more)));
        for _ in 0..rounds {
            live_and_die(&place, &addresses, &told, &mut prng);
            if cluster.is_some() && prng.chance(0.4) {
                // One that was killed before it had a disk has none to lose.
                let _ = std::fs::remove_dir_all(place.data());
            }
        }
        let node = place.node();
        addresses.set(Some(&node));
        stop.store(true, Relaxed);
        let counts: Vec<u64> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        sink.calm.store(true, Relaxed);
        wait_until("the spool is empty", || node.spooled() == 0);
        no_more.store(true, Relaxed);
        reporter.into_iter().for_each(|reporter| reporter.join().unwrap());
        let sealed = node.admin_post("/api/ledger/seal", &Value::Null);
        assert_eq!(sealed.status, 200, "{sealed:?}");
        assert_eq!(node.status()["spool"]["parked"], 0);
        assert_eq!(code(node.stop()), 0);
        drop(guard);
        (counts, sealed.json())
    });
    judge(&rows, &counts);
    let totals = &ledger["totals"];
    println!(
        "{} writes acknowledged, {} of them from the spool, {} asked again, {} sick answers, {} bytes of rows; {}: {totals}",
        told.acknowledged.load(Relaxed),
        told.spooled.load(Relaxed),
        told.again.load(Relaxed),
        sink.sick_answers.load(Relaxed),
        rows.metadata().unwrap().len(),
        ledger["verdict"],
    );
    let straight = told.acknowledged.load(Relaxed) - told.spooled.load(Relaxed);
    // Fewer lives, fewer writes: a start with an empty disk takes seconds.
    let (least, least_again) = if cluster.is_some() { (5, 5) } else { (50, 10) };
    let proved = told.spooled.load(Relaxed) > least && straight > least && told.again.load(Relaxed) > least_again;
    assert!(proved, "this proved nothing");
    ledger
}

/// Ends every thread's wait when the test ends, however it does.
pub struct Released<'a>(pub [&'a AtomicBool; 3]);

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|flag| flag.store(true, Relaxed));
    }
}

/// The sink's own rows: every acknowledged write once, in order per shipment, and nothing else.
fn judge(rows: &std::path::Path, counts: &[u64]) {
    let mut text = String::new();
    File::open(rows).unwrap().read_to_string(&mut text).unwrap();
    let mut arrived: BTreeMap<(usize, u64), Vec<u64>> = BTreeMap::new();
    for row in text.lines() {
        let (writer, number) = row.split_once(' ').expect("a whole row");
        let (writer, number) = (writer.parse().unwrap(), number.parse::<u64>().unwrap());
        arrived.entry((writer, number / PER_SHIPMENT)).or_default().push(number);
    }
    for (writer, acknowledged) in counts.iter().enumerate() {
        for shipment in 0..acknowledged.div_ceil(PER_SHIPMENT) {
            let first = shipment * PER_SHIPMENT;
            let wanted: Vec<u64> = (first..acknowledged.min(&(first + PER_SHIPMENT)).to_owned()).collect();
            let got = arrived.remove(&(writer, shipment)).unwrap_or_default();
            assert_eq!(got, wanted, "shipment s{writer}-{shipment}: what arrived, against what was acknowledged");
        }
    }
    assert!(arrived.is_empty(), "rows nobody wrote: {arrived:?}");
}
