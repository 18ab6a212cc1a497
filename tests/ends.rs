//! kill -9 at random moments, and every end a write can have: delivered, out of its time, given up by hand, a dead
//! letter; and now and then a node dies for good, and another one adopts what it had. Each acknowledged write has
//! exactly one end, and none has an end that nobody gave it.
//!
//! The sink says no for good to some writes, and thinks better of it at times; a clerk retries dead letters or gives
//! them up. What waits on `/soon` for more than a second expires. Where a write was accepted its `202` says; what
//! became of it, the directory of that node is asked for at the end, and, where it was adopted, that of the next.
//! `CRASH_ROUNDS=500` kills more often.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use seawall_core::prng::Prng;
use serde_json::{Value, json};

use crate::crash::{Addresses, Released, Told, live_and_die, patiently, rounds};
use crate::house::{Client, Node, Place, post, seed, wait_until};
use crate::process::code;
use crate::server::{Do, Seen, Server, answer, ok, sick};

const ROUNDS: u64 = 50;
const WRITERS: usize = 6;
/// In the last rounds the clerk is off duty: what is refused stays a dead letter.
const LEFT_ALONE: u64 = 10;
/// One death in so many is for good.
const FOR_GOOD: f64 = 0.12;
const BY_HAND: &str = "the clerk gave it up";

/// What takes writes: its books, and its moods.
struct Sink {
    prng: Mutex<Prng>,
    taken: Mutex<BTreeSet<String>>,
    calm: AtomicBool,
}

impl Sink {
    fn answer(&self, seen: &Seen) -> Do {
        let (text, mut prng) = (seen.text(), self.prng.lock().unwrap());
        let is_calm = self.calm.load(Relaxed);
        let is_soon = text.starts_with("soon");
        if is_bad(&text) && (is_calm || prng.chance(0.7)) {
            return answer("422 No", "", "never");
        }
        let take = || _ = self.taken.lock().unwrap().insert(text.clone());
        match prng.below(if is_soon { 100 } else { 20 }) {
            _ if is_calm => take(),
            0..12 => take(),
            12 | 13 => {
                take();
                return sick();
            }
            14 | 15 => {
                take();
                return Do::Reset;
            }
            _ => return sick(),
        }
        ok("taken")
    }
}

fn is_bad(text: &str) -> bool {
    text.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok()).is_some_and(|number| number % 7 == 3)
}

/// Where a write was accepted: the node's generation, and the number of the record there.
type Accepted = (usize, u64);

/// The writes of one writer, each until it is accepted or refused for good: straight to the sink, or where.
fn write_all(
    writer: usize,
    mut prng: Prng,
    addresses: &Addresses,
    generation: &AtomicUsize,
    told: &Told,
    stop: &AtomicBool,
) -> BTreeMap<String, Option<Accepted>> {
    let mut accepted = BTreeMap::new();
    for number in 0_u64.. {
        if stop.load(Relaxed) {
            break;
        }
        let path = if prng.chance(0.3) { "soon" } else { "late" };
        let text = format!("{path} {writer} {number}");
        let headers = format!("Shipment-Id: {path}{writer}-{}\r\nIdempotency-Key: \"{text}\"\r\n", number / 5);
        let request = post(&format!("/{path}"), &headers, &text);
        let (answer, by) = patiently(|| {
            let by = generation.load(SeqCst);
            let address = (*addresses.data.lock().unwrap())?;
            let answer = Client::connect(address).ok().and_then(|mut client| client.try_ask(&request));
            if !answer.as_ref().is_some_and(|answer| matches!(answer.status, 200 | 202 | 422)) {
                // Its first try may still be running; nothing else is a reason to say no.
                assert!(answer.as_ref().is_none_or(|answer| answer.status == 409), "{answer:?}");
                told.again.fetch_add(1, Relaxed);
                return None;
            }
            // One that may be another generation's is asked for again: the key is known by now.
            (generation.load(SeqCst) == by).then_some(answer?).map(|answer| (answer, by))
        });
        match answer.status {
            422 => assert!(is_bad(&text), "{answer:?}"),
            200 => _ = accepted.insert(text, None),
            _ => {
                let place = answer.must("location");
                let id = place.rsplit('/').next().and_then(|id| id.parse().ok()).expect("a number");
                told.spooled.fetch_add(1, Relaxed);
                accepted.insert(text, Some((by, id)));
            }
        }
        told.acknowledged.fetch_add(1, Relaxed);
        thread::sleep(Duration::from_micros(prng.below(8_000)));
    }
    accepted
}

/// Retries dead letters, or gives them up, on whichever node is alive. Tells which ones it was told are given up.
fn clerk(mut prng: Prng, addresses: &Addresses, generation: &AtomicUsize, stop: &AtomicBool) -> BTreeSet<Accepted> {
    let mut given_up = BTreeSet::new();
    let ask = |request: &str| {
        let admin = (*addresses.admin.lock().unwrap())?;
        Client::connect(admin).ok()?.try_ask(request).filter(|answer| answer.status == 200)
    };
    while !stop.load(Relaxed) {
        let by = generation.load(SeqCst);
        let listed = ask("GET /api/spool?state=parked&limit=5 HTTP/1.1\r\nHost: localhost\r\n\r\n");
        for record in listed.iter().flat_map(|answer| answer.json()["records"].as_array().cloned().unwrap_or_default())
        {
            let (verb, body) = match prng.below(10) {
                0..3 => ("discard", json!({ "reason": BY_HAND }).to_string()),
                3..6 => ("retry", String::new()),
                _ => continue,
            };
            let target = format!("/api/spool/{}/{verb}", record["id"]);
            let done = ask(&post(&target, "Content-Type: application/json\r\n", &body)).is_some();
            if done && verb == "discard" && generation.load(SeqCst) == by {
                given_up.insert((by, record["id"].as_u64().expect("a number")));
            }
        }
        thread::sleep(Duration::from_millis(prng.below(30)));
    }
    given_up
}

/// A node's folder, and those of the nodes that died for good.
struct Lineage {
    place: Place,
    sink: SocketAddr,
    generation: AtomicUsize,
}

impl Lineage {
    fn configure(&self, generation: usize, data: &str) {
        let policy = |more: &str| {
            format!(
                "{{ timeout: 2s, try_timeout: 500ms, retry: off, fallback: spool, order_by: \"header:Shipment-Id\", \
                 breaker: {{ failure_rate: 50%, window: 20 calls, calls_min: 10, open_for: 20ms, open_for_max: 20ms }}, \
                 delivery: {{ attempts: 1000000, parallel: 8{more} }} }}"
            )
        };
        self.place.configure(&format!(
            "node: n{generation}\nstore: {{ path: ./{data} }}\nlisteners: [{{ address: \"127.0.0.1:0\", routes: [\
             {{ name: soon, match: {{ path: /soon }}, upstream: soon, policy: soon }}, \
             {{ name: late, upstream: late, policy: late }}] }}]\n\
             upstreams: {{ soon: {{ url: \"http://{0}\" }}, late: {{ url: \"http://{0}\" }} }}\n\
             policies: {{ soon: {1}, late: {2} }}\n",
            self.sink,
            policy(", expire: 1s"),
            policy(""),
        ));
    }

    fn generation(&self) -> usize {
        self.generation.load(SeqCst)
    }

    fn living(&self) {
        let generation = self.generation();
        self.configure(generation, &format!("data{generation}"));
    }

    /// The next node begins with nothing.
    fn bury(&self) {
        self.generation.fetch_add(1, SeqCst);
        self.living();
    }

    /// The living node takes in what a dead one had. True once nothing is left there.
    fn adopt(&self, generation: usize, admin: SocketAddr) -> bool {
        let dir = format!("data{generation}");
        if !self.place.path().join(&dir).join("META").is_file() {
            // It was killed before it had a directory.
            return true;
        }
        let said = self.place.seawall(&[
            "spool",
            "adopt",
            &dir,
            "--although-begun",
            "--json",
            "--admin",
            &format!("http://{admin}"),
        ]);
        said.code == 0 && said.json()["left"] == 0
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Delivered,
    Expired,
    Discarded,
    Dead,
}

/// What a node says of a record, or which record of which node it is instead.
fn end_of(state: &Value) -> Result<End, Accepted> {
    let reason = state["reason"].as_str().unwrap_or_default();
    match state["state"].as_str() {
        Some("delivered") => Ok(End::Delivered),
        Some("expired") => Ok(End::Expired),
        Some("parked") => Ok(End::Dead),
        Some("discarded") if reason == BY_HAND => Ok(End::Discarded),
        Some("handed_over") => {
            let heir = reason.strip_prefix('n').and_then(|rest| rest.split_once(" as record "));
            let (generation, id) = heir.unwrap_or_else(|| panic!("to nobody: {state}"));
            Err((generation.parse().expect("a generation"), id.parse().expect("a number")))
        }
        _ => panic!("it has no end: {state}"),
    }
}

#[test]
fn killed_fifty_times_and_every_write_has_one_end() {
    let seed = seed();
    println!("E2E_SEED={seed}");
    let mut prng = Prng::new(seed);
    let sink = Arc::new(Sink {
        prng: Mutex::new(Prng::new(seed ^ 1)),
        taken: Mutex::new(BTreeSet::new()),
        calm: AtomicBool::new(false),
    });
    let of_server = Arc::clone(&sink);
    let server = Server::forgetful(move |seen| of_server.answer(seen));
    let lineage = Lineage { place: Place::empty(), sink: server.address, generation: AtomicUsize::new(0) };
    lineage.living();
    let (addresses, told) = (Addresses::default(), Told::default());
    let (stop, off_duty, unused) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
    let guard = Released([&stop, &off_duty, &unused]);
    let (accepted, given_up) = thread::scope(|scope| {
        // A failed assertion below must not leave the scope waiting for its threads.
        let guard = guard;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (addresses, generation, told, stop) = (&addresses, &lineage.generation, &told, &stop);
                let prng = Prng::new(seed ^ (writer as u64 + 2));
                scope.spawn(move || write_all(writer, prng, addresses, generation, told, stop))
            })
            .collect();
        let on_duty = scope.spawn(|| clerk(Prng::new(seed ^ 99), &addresses, &lineage.generation, &off_duty));
        // Of those that died for good, who may still have something.
        let mut estates = BTreeSet::new();
        let rounds = rounds(ROUNDS);
        for round in 0..rounds {
            if round + LEFT_ALONE == rounds {
                off_duty.store(true, Relaxed);
            }
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                let (lineage, addresses, estates, over) = (&lineage, &addresses, &mut estates, &is_over);
                let executor = scope.spawn(move || {
                    while !over.load(Relaxed) {
                        let admin = *addresses.admin.lock().unwrap();
                        let Some(admin) = admin else {
                            thread::sleep(Duration::from_millis(1));
                            continue;
                        };
                        estates.retain(|&generation| !lineage.adopt(generation, admin));
                        return;
                    }
                });
                live_and_die(&lineage.place, addresses, &told, &mut prng);
                is_over.store(true, Relaxed);
                executor.join().unwrap();
            });
            if prng.chance(FOR_GOOD) {
                estates.insert(lineage.generation());
                lineage.bury();
            }
        }
        let node = lineage.place.node();
        addresses.set(Some(&node));
        stop.store(true, Relaxed);
        let accepted: BTreeMap<String, Option<Accepted>> =
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        wait_until("nothing is left to adopt", || {
            estates.retain(|&generation| !lineage.adopt(generation, node.admin));
            estates.is_empty()
        });
        off_duty.store(true, Relaxed);
        let given_up = on_duty.join().unwrap();
        sink.calm.store(true, Relaxed);
        wait_until("nothing waits", || node.spooled() == 0);
        assert_eq!(code(node.stop()), 0);
        drop(guard);
        (accepted, given_up)
    });
    let taken = sink.taken.lock().unwrap().clone();
    judge(&lineage, &taken, accepted, &given_up);
    println!("{} asked again, {} died for good", told.again.load(Relaxed), lineage.generation());
}

/// Asks every generation what became of what it had accepted.
fn judge(
    lineage: &Lineage,
    taken: &BTreeSet<String>,
    accepted: BTreeMap<String, Option<Accepted>>,
    given_up: &BTreeSet<Accepted>,
) {
    let total = accepted.len();
    let mut ends: BTreeMap<End, usize> = BTreeMap::new();
    let mut open: BTreeMap<usize, Vec<(String, u64)>> = BTreeMap::new();
    for (text, place) in accepted {
        match place {
            None => {
                assert!(taken.contains(&text), "`{text}`: answered, and lost");
                *ends.entry(End::Delivered).or_default() += 1;
            }
            Some((generation, id)) => open.entry(generation).or_default().push((text, id)),
        }
    }
    // An heir is younger than whom it inherits from.
    while let Some((generation, records)) = open.pop_first() {
        lineage.configure(generation, &format!("data{generation}"));
        let node = lineage.place.node();
        for (text, id) in records {
            match end_of(&state(&node, id)) {
                Err((heir, id)) => {
                    assert!(heir > generation, "`{text}` went from n{generation} to n{heir}");
                    open.entry(heir).or_default().push((text, id));
                }
                Ok(end) => {
                    let is_given_up = given_up.contains(&(generation, id));
                    assert!(!is_given_up || end == End::Discarded, "`{text}` was given up, and is {end:?}");
                    let is_taken = taken.contains(&text);
                    match end {
                        End::Delivered => assert!(is_taken, "`{text}`: delivered, and the sink has not got it"),
                        End::Expired => assert!(text.starts_with("soon"), "`{text}` does not expire"),
                        End::Discarded | End::Dead => assert!(is_bad(&text), "`{text}` was refused by nobody"),
                    }
                    // What the sink took, and a kill or its own mood kept from being known, is delivered all the same.
                    *ends.entry(if is_taken { End::Delivered } else { end }).or_default() += 1;
                }
            }
        }
        assert_eq!(code(node.stop()), 0);
    }
    println!("{total} acknowledged: {ends:?}");
    assert_eq!(ends.values().sum::<usize>(), total);
    for end in [End::Delivered, End::Expired, End::Discarded, End::Dead] {
        assert!(ends.contains_key(&end), "this proved nothing: {ends:?}");
    }
}

fn state(node: &Node, id: u64) -> Value {
    let answer = node.get(&format!("/.seawall/records/{id}"));
    assert_eq!(answer.status, 200, "record {id}: {answer:?}");
    answer.json()
}
