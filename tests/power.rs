//! A node on a disk that forgets what was not synced, fails, fills up and rots ([`crate::lossy`]): what it acknowledged
//! is delivered all the same, as it was written and in its order, and what is wrong is told.
//!
//! One short story is told again and again: a first start, writes that are spooled, enough for a new segment, their
//! delivery, more writes, a stop. Each time another call to the disk is the one at which the power goes, or that fails.
//! `./test` takes some of them, chosen by `E2E_SEED`; all of them:
//! `LOSSY_EVERY=1 cargo test -p seawall --test e2e power -- --nocapture`

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use seawall_client::Outbox;
use seawall_core::prng::Prng;
use serde_json::Value;

use crate::house::{Answer, Client, Node, Place, post, seed, wait_for};
use crate::lossy::{Fault, Hit, Lossy, Rest};
use crate::process::code;
use crate::server::{Server, ok, sick};

/// How many calls of a story `./test` chooses for each kind of fault.
const CHOSEN: u64 = 12;
/// Bits flipped in each file.
const FLIPS: u64 = 3;
const SHIPMENTS: usize = 3;
/// A segment takes eleven of these.
const LONG_BYTES: usize = 700 << 10;
/// Before the sink is well, and after it was.
const WRITES: [usize; 2] = [18, 6];

/// Short ones, and long ones so that segments fill.
fn body(number: usize) -> String {
    let length = if number.is_multiple_of(4) { 40 } else { LONG_BYTES };
    let mut prng = Prng::new(number as u64);
    let mut text = format!("{number} ");
    while text.len() < length {
        text += &format!("{:016x}", prng.next_u64());
    }
    text
}

fn number_of(text: &str) -> Option<usize> {
    text.split(' ').next()?.parse().ok()
}

/// What the sink took, in order; it takes each write once, as its key says.
#[derive(Default)]
struct Books {
    keys: BTreeSet<String>,
    taken: Vec<usize>,
    wrong: Vec<String>,
}

/// A disk, a node's folder and its sink, and what was said.
struct Story {
    place: Place,
    is_well: Arc<AtomicBool>,
    books: Arc<Mutex<Books>>,
    _server: Server,
    next: usize,
    acknowledged: BTreeSet<usize>,
    /// Told no for want of room.
    refused: BTreeSet<usize>,
}

/// How a node's life ended.
#[derive(Debug)]
struct End {
    /// It was to end.
    is_told_to: bool,
    code: i32,
    /// It served.
    served: bool,
    lines: Vec<String>,
}

impl End {
    fn says(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.contains(text))
    }
}

impl Story {
    fn new(lossy: &Lossy) -> Self {
        let (is_well, books) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Books::default())));
        let (well, of_server) = (Arc::clone(&is_well), Arc::clone(&books));
        let server = Server::forgetful(move |seen| {
            if !well.load(Relaxed) {
                return sick();
            }
            let (mut books, text) = (of_server.lock().unwrap(), seen.text());
            match number_of(&text).filter(|&number| body(number) == text) {
                Some(number) if books.keys.insert(seen.header("idempotency-key").unwrap_or_default()) => {
                    books.taken.push(number);
                }
                Some(_) => {}
                None => books.wrong.push(text.chars().take(80).collect()),
            }
            ok("taken")
        });
        let place = Place::new(&format!(
            "node: n\nstore: {{ path: \"{}\" }}\n\
             listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: events, upstream: queue, policy: writes }}] }}]\n\
             upstreams: {{ queue: {{ url: \"http://{}\" }} }}\n\
             policies:\n  writes:\n    retry: off\n    replay_max: 768KiB\n    \
             breaker: {{ window: 4 calls, calls_min: 2, open_for: 20ms, open_for_max: 20ms }}\n    \
             fallback: spool\n    order_by: header:Shipment-Id\n    delivery: {{ attempts: 1000000 }}\n",
            // Folders that are not there yet: they are names too.
            lossy.path().join("var/lib/data").display(),
            server.address
        ));
        let (acknowledged, refused) = (BTreeSet::new(), BTreeSet::new());
        Self { place, is_well, books, _server: server, next: 0, acknowledged, refused }
    }

    /// The story, from wherever it begins to wherever it ends.
    fn tell(&mut self) -> End {
        self.is_well.store(false, Relaxed);
        let mut node = self.place.spawn(&["run"], &[]);
        if !node.wait_ready() {
            return end(node, false, false);
        }
        for (part, writes) in WRITES.into_iter().enumerate() {
            self.is_well.store(false, Relaxed);
            for _ in 0..writes {
                if self.write(&node).is_none() {
                    return end(node, false, true);
                }
            }
            self.is_well.store(true, Relaxed);
            if part == 0 && !self.drains(&mut node) {
                return end(node, false, true);
            }
        }
        node.process.signal(Signal::TERM);
        end(node, true, true)
    }

    /// `None` if there was no answer.
    fn write(&mut self, node: &Node) -> Option<Answer> {
        let number = self.next;
        self.next += 1;
        let headers = format!("Shipment-Id: s{}\r\nIdempotency-Key: \"k{number}\"\r\n", number % SHIPMENTS);
        let answer = Client::connect(node.address()).ok()?.try_ask(&post("/events", &headers, &body(number)))?;
        match answer.status {
            200 | 202 => _ = self.acknowledged.insert(number),
            507 => _ = self.refused.insert(number),
            503 => assert!(answer.body.contains("the store has stopped"), "write {number}: {answer:?}"),
            _ => panic!("write {number}: {answer:?}"),
        }
        Some(answer)
    }

    /// True once the spool is empty, false if the node ended.
    fn drains(&self, node: &mut Node) -> bool {
        self.is_well.store(true, Relaxed);
        wait_for("the spool is empty", || {
            if node.process.ended().is_some() {
                return Some(false);
            }
            let status = try_status(node)?;
            let spool = &status["spool"];
            (spool["waiting"] == 0 && spool["leased"] == 0).then_some(true)
        })
    }

    /// What was acknowledged has arrived, as it was written and in its order; nothing else has that was refused.
    fn judge(&self, but: &BTreeSet<usize>) {
        let books = self.books.lock().unwrap();
        assert!(books.wrong.is_empty(), "delivered, and written by nobody: {:?}", books.wrong);
        let taken: BTreeSet<usize> = books.taken.iter().copied().collect();
        let lost: Vec<usize> = self.acknowledged.difference(&taken).filter(|it| !but.contains(it)).copied().collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let undead: Vec<_> = self.refused.intersection(&taken).collect();
        assert!(undead.is_empty(), "refused and delivered: {undead:?}");
        let mut last = BTreeMap::new();
        for number in &books.taken {
            let before = last.insert(number % SHIPMENTS, *number);
            assert!(before.is_none_or(|before| before < *number), "out of order: {:?}", books.taken);
        }
    }

    /// Some writes that wait, and a kill.
    fn spools(&mut self) {
        let node = self.place.node();
        for _ in 0..WRITES[1] {
            assert_eq!(self.write(&node).expect("it serves").status, 202);
        }
        node.kill();
    }

    /// A start on what is left: everything is delivered, and the journal holds.
    fn recovers(&mut self) {
        let mut node = self.place.node();
        assert!(self.drains(&mut node), "a node ended by itself: {:#?}", node.process.lines());
        self.judge(&BTreeSet::new());
        let verified = node.api("/api/journal/verify");
        assert_eq!(verified["breaks_total"], 0, "{verified:#}");
        assert_eq!(self.write(&node).expect("it serves").status, 200);
        assert_eq!(code(node.stop()), 0);
    }
}

fn try_status(node: &Node) -> Option<Value> {
    let request = format!("GET /api/status HTTP/1.1\r\nHost: {}\r\n\r\n", node.admin);
    let answer = Client::connect(node.admin).ok()?.try_ask(&request)?;
    (answer.status == 200).then(|| answer.json())
}

/// Waits for it; `is_told_to` if it was asked to stop.
fn end(mut node: Node, is_told_to: bool, served: bool) -> End {
    let status = node.process.wait();
    End { is_told_to, code: code(status), served, lines: node.process.lines() }
}

/// Tells the story once for every chosen call; `None` where no file system can be mounted.
fn at_every_call(fault: Fault, mut judge: impl FnMut(&Hit, &End, &mut Story)) -> Option<()> {
    let seed = seed();
    println!("E2E_SEED={seed}");
    let mut lossy = Lossy::new(seed)?;
    let mut story = Story::new(&lossy);
    let clean = story.tell();
    assert_eq!((clean.code, clean.is_told_to), (0, true), "{clean:#?}");
    assert!(clean.says("fuse"), "a file system that another program decides about is a doubt, and told");
    let calls = lossy.calls();
    lossy.power_cycle(Rest::Lost);
    story.recovers();
    let rolls = lossy.files().keys().filter(|path| path.ends_with("spool/0000000001.log")).count();
    assert_eq!(rolls, 0, "the first segment is full, and gone: {:?}", lossy.files().keys());
    drop((story, lossy));

    let every = std::env::var("LOSSY_EVERY").map(|every| every.parse().expect("a number"));
    let every = every.unwrap_or(calls.div_ceil(CHOSEN)).max(1);
    let (mut at, mut hits) = (1 + Prng::new(seed).below(every), BTreeMap::<String, u64>::new());
    while at <= calls {
        println!("{fault:?} at call {at} of {calls}");
        let mut lossy = Lossy::new(seed ^ at)?;
        let mut story = Story::new(&lossy);
        lossy.choose(at, fault);
        let end = story.tell();
        // Two stories are not quite alike: this one may have taken fewer calls.
        if let Some(hit) = lossy.hit() {
            println!("  {} `{}`: {}", hit.call, hit.path, end.code);
            *hits.entry(format!("{} {}", hit.call, kind_of(&hit.path))).or_default() += 1;
            judge(&hit, &end, &mut story);
            // On the same machine: what a failed sync left in the cache reads well, and more is written behind it.
            if fault == Fault::Io {
                story.is_well.store(false, Relaxed);
                story.spools();
            }
        }
        lossy.power_cycle(Rest::ByChance);
        story.recovers();
        at += every;
    }
    println!("{fault:?}: {hits:#?}");
    assert!(!hits.is_empty(), "this proved nothing");
    Some(())
}

/// A path without its numbers.
fn kind_of(path: &str) -> String {
    path.replace(|letter: char| letter.is_ascii_digit(), "")
}

#[test]
fn the_power_goes_at_any_call() {
    at_every_call(Fault::Cut, |hit, end, _| {
        assert_eq!(end.code, -9, "{hit:?}: {end:#?}");
    });
}

#[test]
fn any_call_fails() {
    at_every_call(Fault::Io, |hit, end, _| {
        // The journal is not asked: data goes on without it.
        let is_log = !hit.path.contains("/journal/") && hit.path.ends_with(".log");
        if end.served && is_log && matches!(hit.call, "write" | "fsync" | "rename") {
            assert!(!matches!(end.code, 0 | -9), "it went on with a disk that failed: {hit:?}, {end:#?}");
            let name = hit.path.rsplit('/').next().expect("a name");
            assert!(end.says(name) && end.says("os error 5"), "not told: {hit:?}, {end:#?}");
        }
    });
}

#[test]
fn any_call_finds_the_disk_full() {
    at_every_call(Fault::NoSpace, |hit, end, _| {
        if end.served {
            assert_eq!((end.code, end.is_told_to), (0, true), "a full disk ended it: {hit:?}, {end:#?}");
        } else {
            assert!(
                end.code == 1 && (end.says("No space left on device") || end.says("the disk is full")),
                "{hit:?}: {end:#?}"
            );
        }
    });
}

/// A failed write just before the end: nobody was promised it, and the end is not a good one.
#[test]
fn a_failure_on_the_way_out_is_told() {
    let Some(lossy) = Lossy::new(seed()) else { return };
    let mut story = Story::new(&lossy);
    let node = story.place.node();
    assert_eq!(story.write(&node).expect("it serves").status, 202);
    while !lossy.hit().is_some_and(|hit| hit.path.contains("/spool/")) {
        lossy.choose(1, Fault::Io);
        story.write(&node).expect("it serves");
    }
    node.process.signal(Signal::TERM);
    let end = end(node, true, true);
    assert!(end.code == 1 && end.says("os error 5") && end.says("the store stopped"), "{end:#?}");
}

/// The folders that were made for it included.
#[test]
fn an_outbox_survives_a_power_cut() {
    let Some(mut lossy) = Lossy::new(seed()) else { return };
    let dir = lossy.path().join("var/lib/outbox");
    let mut outbox = Outbox::open(&dir, "warehouse").unwrap();
    outbox.note("events.n.1.1;tag=00112233445566778899aabbccddeeff", b"body").unwrap();
    outbox.sync().unwrap();
    drop(outbox);
    lossy.power_cycle(Rest::Lost);
    assert_eq!(Outbox::open(&dir, "warehouse").unwrap().waiting(), 1);
}

/// A bit of what was synced is another one at the next start: it is told where, and `--quarantine` loses no more than
/// it tells. The last batch of a log is no exception but in its words: nothing says that it was synced, so it is a torn
/// tail, and told as that.
#[test]
fn bits_flip_while_a_node_is_down() {
    let seed = seed();
    println!("E2E_SEED={seed}");
    let Some(mut lossy) = Lossy::new(seed) else { return };
    let mut story = Story::new(&lossy);
    story.spools();
    let (image, files, mut prng) = (lossy.image(), lossy.files(), Prng::new(seed));
    let mut flips = Vec::new();
    for (path, bytes) in files.iter().filter(|(path, _)| path.ends_with(".log") || path.ends_with("META")) {
        let written: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        flips.extend((0..FLIPS).map(|_| (path, written[prng.below(written.len() as u64) as usize])));
    }
    // In the first record of all, which is followed by others.
    let spool = files.keys().find(|path| path.contains("/spool/") && path.ends_with(".log")).expect("a spool");
    let first = files[spool].windows(body(0).len()).position(|bytes| bytes == body(0).as_bytes()).expect("a record");
    flips.push((spool, first));
    let mut refused = 0;
    for (path, offset) in flips {
        lossy.insert(&image);
        lossy.flip(path, offset, 1 << prng.below(8));
        *story.books.lock().unwrap() = Books::default();
        story.is_well.store(false, Relaxed);
        let mut node = story.place.spawn(&["run"], &[]);
        let starts = node.wait_ready();
        if !starts {
            let end = end(node, false, false);
            let name = path.rsplit('/').next().expect("a name");
            assert!(end.code == 1 && end.says(name) && end.says("--quarantine"), "{path} at {offset}: {end:#?}");
            node = story.place.node_with(&["run", "--quarantine"], &[]);
            refused += 1;
        }
        let told = node.journal().last("store_recovered")["fields"].clone();
        assert!(story.drains(&mut node), "{:#?}", node.process.lines());
        let missing: BTreeSet<usize> = {
            let books = story.books.lock().unwrap();
            story.acknowledged.iter().copied().filter(|number| !books.taken.contains(number)).collect()
        };
        println!("{path} at {offset}: missing {missing:?}, told {told}");
        let number = |field: &str| told[field].as_str().map_or(0, |number| number.parse::<u64>().expect("a number"));
        // A journal that is damaged stops nobody: it says so.
        let signs = ["torn_bytes", "meta_copies_damaged", "damaged_files"];
        let is_told = !starts || signs.into_iter().any(|sign| number(sign) > 0);
        assert!(is_told, "{path} at {offset}: not told: {told}");
        let is_tail = number("torn_bytes") > 0 && missing == BTreeSet::from([story.next - 1]);
        assert!(missing.len() as u64 <= number("lost") || is_tail, "lost {missing:?}, told {told}");
        if offset == first {
            assert_eq!((missing.clone(), number("lost")), (BTreeSet::from([0]), 1), "{told}");
        }
        story.judge(&missing);
        assert_eq!(code(node.stop()), 0);
    }
    assert!(refused > 0, "this proved nothing");
}
