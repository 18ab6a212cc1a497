//! The whole ledger: planted faults are found and named exactly, the vectors of Jepsen's checkers, replay, verdicts.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::account::End;
use super::*;
use crate::prng::Prng;

const KEY: LedgerKey = LedgerKey::new([9; 32]);
const NODE: &str = "node-1";

/// A node with its log, and the sinks behind it.
struct World {
    ledger: Ledger,
    log: Vec<Vec<u8>>,
}

impl World {
    fn new() -> Self {
        Self { ledger: Ledger::new(NODE).unwrap(), log: Vec::new() }
    }

    /// Makes an event durable and applies what can be read back, as a node does.
    fn tell(&mut self, event: &Event) -> Applied {
        self.try_tell(event).unwrap()
    }

    fn try_tell(&mut self, event: &Event) -> Result<Applied, ApplyError> {
        self.log.push(event.encode());
        self.ledger.apply(&Event::decode(self.log.last().unwrap()).unwrap())
    }

    fn report(&mut self, sink: &str, receipts: Vec<Receipt>) -> Event {
        let batch = Receipts { sink: sink.into(), node: None, batch: self.ledger.next_batch(sink, 1), receipts };
        let event = Event::Receipts(batch.verify(&KEY).unwrap());
        assert_eq!(self.tell(&event), Applied::Changed);
        event
    }

    fn issue(&mut self, issuer: &mut Issuer) -> RecordRef {
        if let Some(reservation) = issuer.reservation() {
            let applied = self.tell(&reservation);
            issuer.confirm(&reservation, applied);
        }
        issuer.issue().expect("a block was reserved")
    }

    fn outcome(&mut self, record: &RecordRef, class: Class) {
        let (stream, epoch, seq) = (record.stream.clone(), record.epoch, record.seq);
        self.tell(&Event::Outcome { stream, epoch, seq, class });
    }

    fn moved(&mut self, record: &RecordRef, places: &[Place]) {
        for &to in places {
            let (stream, epoch, seq) = (record.stream.clone(), record.epoch, record.seq);
            self.tell(&Event::Moved { stream, epoch, seq, to });
        }
    }

    fn seal(&mut self, issuers: impl IntoIterator<Item = Issuer>) -> Summary {
        let epoch = self.ledger.next_epoch();
        let closed: Vec<Event> = issuers.into_iter().filter_map(|mut issuer| issuer.roll(epoch)).collect();
        for event in self.ledger.seal_all(closed) {
            self.tell(&event);
        }
        self.ledger.summary()
    }
}

fn issuer(stream: &str, epoch: u64) -> Issuer {
    Issuer::new(stream, NODE, epoch).unwrap()
}

/// What an honest sink says about a record it got as it was sent.
fn receipt(record: &RecordRef, sent: &[u8]) -> Receipt {
    receipt_of(record, sent, sent)
}

/// What an honest sink says about a record that was sent with one body and arrived with another.
fn receipt_of(record: &RecordRef, sent: &[u8], arrived: &[u8]) -> Receipt {
    let stamp = Stamp::new(&KEY, record.clone(), &Digest::of(sent));
    Receipt { record: record.to_string(), tag: stamp.tag.to_string(), digest: Digest::of(arrived).to_string() }
}

mod planted {
    //! A seeded run of a node with several lives, in which every fault is planted and counted as it is planted.

    use super::*;

    type Key = (String, u64);

    struct Run {
        world: World,
        prng: Prng,
        /// What was planted, by account.
        planted: BTreeMap<Key, Counts>,
        /// Accepted records that arrived only damaged, by account.
        damaged: BTreeMap<Key, u64>,
        strangers: u64,
        /// Streams of which a sink saw a record that can be ours.
        reported: BTreeMap<String, bool>,
        /// On their way to the sinks.
        receipts: Vec<Receipt>,
        /// Records that will arrive after the seal.
        late: Vec<RecordRef>,
        /// How often something goes wrong.
        trouble: f64,
    }

    impl Run {
        fn new(seed: u64) -> Self {
            let mut prng = Prng::new(seed);
            // Every fourth run is free of harm, so that "balanced" is tested as hard as its opposite.
            let trouble = if seed.is_multiple_of(4) { 0.0 } else { prng.unit() * 0.5 };
            Self {
                world: World::new(),
                prng,
                planted: BTreeMap::new(),
                damaged: BTreeMap::new(),
                strangers: 0,
                reported: BTreeMap::new(),
                receipts: Vec::new(),
                late: Vec::new(),
                trouble,
            }
        }

        fn counts(&mut self, record: &RecordRef) -> &mut Counts {
            self.planted.entry((record.stream.clone(), record.epoch)).or_default()
        }

        fn body(&mut self) -> Vec<u8> {
            (0..=self.prng.below(40)).map(|_| self.prng.next_u64() as u8).collect()
        }

        fn arrives(&mut self, record: &RecordRef, times: u64) {
            let body = self.body();
            let receipt = receipt(record, &body);
            self.receipts.extend((0..times).map(|_| receipt.clone()));
            self.reported.insert(record.stream.clone(), true);
        }

        fn arrives_damaged(&mut self, record: &RecordRef, times: u64) {
            let sent = self.body();
            let mut arrived = sent.clone();
            let at = self.prng.below(arrived.len() as u64) as usize;
            arrived[at] ^= 1 << self.prng.below(8);
            let receipt = if self.prng.chance(0.8) {
                receipt_of(record, &sent, &arrived)
            } else {
                Receipt { tag: "not a tag any more".into(), ..receipt(record, &sent) }
            };
            self.receipts.extend((0..times).map(|_| receipt.clone()));
            self.counts(record).corrupted += times;
            self.reported.insert(record.stream.clone(), true);
        }

        /// One record lives its life. Returns whether it was harmed.
        fn record(&mut self, record: &RecordRef) {
            if self.prng.chance(self.trouble) { self.harmed(record) } else { self.unharmed(record) }
        }

        fn unharmed(&mut self, record: &RecordRef) {
            match self.prng.below(12) {
                0 => {
                    self.world.outcome(record, Class::Refused);
                    self.counts(record).refused += 1;
                }
                1 => {
                    self.world.outcome(record, Class::Indeterminate);
                    self.counts(record).indeterminate += 1;
                }
                2 => {
                    self.world.outcome(record, Class::Indeterminate);
                    self.arrives(record, 1);
                    self.counts(record).indeterminate += 1;
                    self.counts(record).recovered += 1;
                }
                // In flight when the node died or stopped: no outcome is ever written.
                3 => self.counts(record).indeterminate += 1,
                4 => {
                    self.arrives(record, 1);
                    self.counts(record).indeterminate += 1;
                    self.counts(record).recovered += 1;
                }
                5 => {
                    self.world.outcome(record, Class::Accepted);
                    self.world.moved(record, &[Place::Waiting]);
                    self.counts(record).accepted += 1;
                    self.counts(record).waiting += 1;
                }
                6 => {
                    self.world.moved(record, &[Place::Waiting, Place::Parked]);
                    self.counts(record).accepted += 1;
                    self.counts(record).parked += 1;
                }
                7 => {
                    self.world.moved(record, &[Place::Waiting, Place::Parked, Place::Waiting, Place::Discarded]);
                    self.counts(record).accepted += 1;
                    self.counts(record).expired += 1;
                }
                8 => {
                    // The spool acknowledged, the node died before it wrote so, and finds the record when it is back.
                    self.world.outcome(record, Class::Indeterminate);
                    let delivered: &[Place] = &[Place::Waiting, Place::Delivered];
                    let waits = self.prng.chance(0.5);
                    self.world.moved(record, if waits { &delivered[..1] } else { delivered });
                    self.delivered(record);
                }
                _ => {
                    self.world.outcome(record, Class::Accepted);
                    self.delivered(record);
                }
            }
        }

        fn delivered(&mut self, record: &RecordRef) {
            self.arrives(record, 1);
            self.counts(record).accepted += 1;
            self.counts(record).delivered += 1;
        }

        fn harmed(&mut self, record: &RecordRef) {
            match self.prng.below(8) {
                0 => self.lose(record),
                1 => {
                    let repeats = 1 + self.prng.below(3);
                    self.world.outcome(record, Class::Accepted);
                    self.arrives(record, 1 + repeats);
                    self.counts(record).accepted += 1;
                    self.counts(record).delivered += 1;
                    self.counts(record).duplicated += repeats;
                }
                2 => {
                    self.world.outcome(record, Class::Accepted);
                    let times = 1 + self.prng.below(2);
                    self.arrives_damaged(record, times);
                    self.counts(record).accepted += 1;
                    *self.damaged.entry((record.stream.clone(), record.epoch)).or_default() += 1;
                }
                3 => {
                    self.world.moved(record, &[Place::Waiting, Place::Delivered]);
                    self.arrives_damaged(record, 1);
                    self.delivered(record);
                }
                4 => {
                    self.world.outcome(record, Class::Refused);
                    self.arrives(record, 1);
                    self.counts(record).refused += 1;
                    self.counts(record).resurrected += 1;
                }
                5 => {
                    self.world.moved(record, &[Place::Waiting]);
                    self.arrives_damaged(record, 1);
                    self.counts(record).accepted += 1;
                    self.counts(record).waiting += 1;
                }
                6 => {
                    // A stranger in place of the record, which is refused.
                    self.world.outcome(record, Class::Refused);
                    self.counts(record).refused += 1;
                    self.stranger(record);
                }
                _ => {
                    self.lose(record);
                    self.late.push(record.clone());
                }
            }
        }

        fn lose(&mut self, record: &RecordRef) {
            if self.prng.chance(0.5) {
                self.world.outcome(record, Class::Accepted);
            } else {
                self.world.moved(record, &[Place::Waiting, Place::Delivered]);
            }
            self.counts(record).accepted += 1;
            self.counts(record).lost += 1;
        }

        /// An arrival that nobody here sent, with a tag that is as right as a tag can be.
        fn stranger(&mut self, like: &RecordRef) {
            let mut record = like.clone();
            let known_account = self.prng.below(6);
            match known_account {
                0 => record.seq = u64::MAX - self.prng.below(9),
                1 => record.seq = 0,
                2 => record.epoch += 100,
                3 => record.stream = "nowhere".into(),
                4 => record.producer = "somebody".into(),
                _ => {}
            }
            let mut receipt = receipt(&record, b"never sent");
            if known_account == 5 {
                receipt.record = "torn header".into();
            }
            self.receipts.push(receipt);
            if known_account < 2 { self.counts(like).phantom += 1 } else { self.strangers += 1 }
        }

        /// Some of what is on its way arrives, in any order, and a sink that heard no answer says it again.
        fn arrive_some(&mut self, part: f64) {
            for at in (1..self.receipts.len()).rev() {
                self.receipts.swap(at, self.prng.below(at as u64 + 1) as usize);
            }
            let keep = (self.receipts.len() as f64 * (1.0 - part)) as usize;
            let arrived = self.receipts.split_off(keep);
            let sink = ["warehouse", "archive"][self.prng.below(2) as usize];
            let event = self.world.report(sink, arrived);
            if self.prng.chance(0.3) {
                assert_eq!(self.world.tell(&event), Applied::Known);
            }
        }

        fn life(&mut self, epoch: u64, streams: &[&str], is_last: bool) -> Vec<Issuer> {
            self.world.tell(&Event::Began { epoch });
            let block = 1 + self.prng.below(60);
            let mut issuers: Vec<Issuer> =
                streams.iter().map(|stream| issuer(stream, epoch).with_block(block)).collect();
            for _ in 0..self.prng.below(60) {
                let which = self.prng.below(issuers.len() as u64) as usize;
                let record = self.world.issue(&mut issuers[which]);
                self.record(&record);
                if self.prng.chance(0.1) {
                    self.arrive_some(0.7);
                }
            }
            for issuer in &mut issuers {
                self.lose_the_tail(issuer);
            }
            if !is_last {
                issuers.drain(..).for_each(|issuer| self.end(issuer));
            }
            issuers
        }

        /// The last records of a life vanish, and nothing after them shows a hole.
        fn lose_the_tail(&mut self, issuer: &mut Issuer) {
            if self.trouble > 0.0 && self.prng.chance(0.3) {
                for _ in 0..1 + self.prng.below(4) {
                    let record = self.world.issue(issuer);
                    self.lose(&record);
                }
            }
        }

        /// A life ends cleanly, or in a crash after which nobody knows how far the numbers went.
        fn end(&mut self, mut issuer: Issuer) {
            let issued = issuer.issued();
            let epoch = issuer.epoch();
            let Some(closed @ Event::Closed { .. }) = issuer.roll(epoch + 1) else { return };
            let Event::Closed { stream, .. } = &closed else { unreachable!("just matched") };
            let reserved = self.reserved(stream, epoch);
            let beyond = RecordRef::new(stream.clone(), NODE, epoch, issued + 1).unwrap();
            let can_plant = reserved > issued && self.trouble > 0.0;
            if self.prng.chance(0.5) {
                self.world.tell(&closed);
                if can_plant {
                    // The producer said that it never gave this number out.
                    self.arrives(&beyond, 1);
                    self.counts(&beyond).phantom += 1;
                }
            } else {
                let counts = self.counts(&beyond);
                counts.indeterminate += reserved - issued;
                if can_plant {
                    // The outcome, and even that it was issued, went down with the node.
                    counts.recovered += 1;
                    self.arrives(&beyond, 1);
                }
            }
        }

        fn reserved(&self, stream: &str, epoch: u64) -> u64 {
            self.world.ledger.streams[stream][&epoch].reserved
        }

        fn expected(&self) -> BTreeMap<Key, Counts> {
            let mut expected = self.planted.clone();
            for ((stream, _), counts) in &mut expected {
                if !self.reported.contains_key(stream) {
                    counts.missing_so_far = std::mem::take(&mut counts.lost);
                }
            }
            expected
        }

        fn verdict(&self, expected: &BTreeMap<Key, Counts>) -> Verdict {
            let harm = |c: &Counts| c.lost + c.duplicated + c.corrupted + c.phantom + c.resurrected;
            if self.strangers > 0 || expected.values().any(|counts| harm(counts) > 0) {
                return Verdict::Imbalanced;
            }
            let is_judged = |(stream, counts): (&String, &Counts)| {
                let arrivals = counts.delivered + counts.recovered;
                (counts.accepted + arrivals > 0).then_some(counts.accepted == 0 || self.reported.contains_key(stream))
            };
            let judged: Vec<bool> = expected.iter().filter_map(|((s, _), c)| is_judged((s, c))).collect();
            if !judged.is_empty() && judged.iter().all(|&is_told| is_told) {
                Verdict::Balanced
            } else {
                Verdict::Unknown
            }
        }

        fn check(&self, summary: &Summary) {
            let expected = self.expected();
            let reported: BTreeMap<Key, Counts> = summary
                .streams
                .iter()
                .map(|row| ((row.stream.clone(), row.epoch), row.counts))
                .filter(|(key, counts)| *counts != Counts::default() || expected.contains_key(key))
                .collect();
            assert_eq!(reported, expected);
            assert_eq!(summary.verdict, self.verdict(&expected));
            assert_eq!(summary.totals.phantom, self.strangers + expected.values().map(|c| c.phantom).sum::<u64>());
            for (key, counts) in &expected {
                let tally = self.world.ledger.tally(&key.0, key.1).unwrap();
                let damaged = self.damaged.get(key).copied().unwrap_or(0);
                assert_eq!((tally.residue, tally.damaged, tally.in_flight), (0, damaged, 0));
                let kept = counts.delivered + counts.waiting + counts.parked + counts.expired;
                assert_eq!(counts.accepted, kept + counts.lost + counts.missing_so_far + damaged);
            }
        }

        /// What was lost arrives after all: it moves to `late`, and both stay visible.
        fn arrive_late(&mut self) {
            for record in std::mem::take(&mut self.late) {
                self.arrives(&record, 1);
                let counts = self.counts(&record);
                counts.lost -= 1;
                counts.late += 1;
                counts.delivered += 1;
            }
            self.arrive_some(1.0);
        }

        /// The log is the ledger: any part of it, kept as a snapshot, and the rest give the same books.
        fn check_replay(&mut self) {
            let cut = self.prng.below(self.world.log.len() as u64 + 1) as usize;
            let mut ledger = Ledger::new(NODE).unwrap();
            for bytes in &self.world.log[..cut] {
                ledger.apply(&Event::decode(bytes).unwrap()).unwrap();
            }
            let mut ledger: Ledger = serde_json::from_str(&serde_json::to_string(&ledger).unwrap()).unwrap();
            for bytes in &self.world.log[cut..] {
                let event = Event::decode(bytes).unwrap();
                ledger.apply(&event).unwrap();
                assert_eq!(ledger.apply(&event), Ok(Applied::Known));
            }
            assert_eq!(ledger, self.world.ledger);
        }
    }

    fn run(seed: u64) -> Verdict {
        let mut run = Run::new(seed);
        let streams = &["events", "quotes", "alerts"][..1 + run.prng.below(3) as usize];
        let lives = 1 + run.prng.below(3);
        let mut issuers = Vec::new();
        for epoch in 1..=lives {
            issuers = run.life(epoch, streams, epoch == lives);
        }
        run.arrive_some(1.0);
        let summary = run.world.seal(issuers);
        run.check(&summary);
        assert!(summary.streams.iter().all(|row| row.state == State::Sealed));
        run.arrive_late();
        let summary = run.world.ledger.summary();
        run.check(&summary);
        run.check_replay();
        summary.verdict
    }

    #[test]
    fn what_is_reported_is_what_was_planted() {
        let mut verdicts = BTreeMap::new();
        for seed in 0..1500 {
            let outcome = std::panic::catch_unwind(|| run(seed));
            let verdict = outcome.unwrap_or_else(|_| panic!("seed {seed}"));
            *verdicts.entry(verdict).or_insert(0) += 1;
        }
        assert!(verdicts[&Verdict::Balanced] > 200 && verdicts[&Verdict::Imbalanced] > 700, "{verdicts:?}");
        assert!(verdicts[&Verdict::Unknown] > 0, "{verdicts:?}");
    }
}

mod adopted {
    //! A node dies, another takes its records in: what is said at both is what was planted, and together they add up.

    use super::*;

    const GONE: &str = "gone";
    const GONE_KEY: LedgerKey = LedgerKey::new([1; 32]);

    fn name(record: &RecordRef) -> (String, u64, u64) {
        (format!("{}.{GONE}", record.stream), record.epoch, record.seq)
    }

    fn adopting(record: &RecordRef) -> Event {
        let RecordRef { stream, producer, epoch, seq } = record.clone();
        Event::Adopted { stream, producer, epoch, first: seq, last: seq }
    }

    fn moved(heir: &mut World, record: &RecordRef, to: Place) {
        let (stream, epoch, seq) = name(record);
        heir.tell(&Event::Moved { stream, epoch, seq, to });
    }

    /// What the sink says of a record as the dead node sent it itself.
    fn by_the_dead(record: &RecordRef, body: &[u8]) -> Receipt {
        let stamp = Stamp::new(&GONE_KEY, record.clone(), &Digest::of(body));
        Receipt { tag: stamp.tag.to_string(), ..receipt(record, body) }
    }

    fn run(seed: u64) {
        let mut prng = Prng::new(seed);
        let mut gone = World { ledger: Ledger::new(GONE).unwrap(), log: Vec::new() };
        let mut heir = World::new();
        heir.tell(&Event::Began { epoch: 1 });
        let epoch = 1 + prng.below(5);
        gone.tell(&Event::Began { epoch });
        let mut issuer = Issuer::new("events", GONE, epoch).unwrap();
        let (mut at_heir, mut receipts) = (Counts::default(), Vec::new());
        let mut elsewhere = 0;
        for _ in 0..prng.below(80) {
            let record = gone.issue(&mut issuer);
            if prng.chance(0.3) {
                // The dead node delivered it itself. Its sink may tell the heir, who cannot know.
                gone.outcome(&record, Class::Accepted);
                if prng.chance(0.2) {
                    receipts.push(by_the_dead(&record, b"body"));
                    elsewhere += 1;
                }
                continue;
            }
            gone.moved(&record, &[Place::Waiting]);
            assert_eq!(heir.tell(&adopting(&record)), Applied::Changed);
            assert_eq!(heir.tell(&adopting(&record)), Applied::Known, "the same again, after a kill");
            if prng.chance(0.1) {
                // It was not taken in, or nobody knows; it waits where it was.
                at_heir.indeterminate += 1;
                continue;
            }
            gone.moved(&record, &[Place::HandedOver]);
            at_heir.accepted += 1;
            moved(&mut heir, &record, Place::Waiting);
            match prng.below(8) {
                0 => at_heir.waiting += 1,
                1 => {
                    moved(&mut heir, &record, Place::Parked);
                    at_heir.parked += 1;
                }
                2 => {
                    moved(&mut heir, &record, Place::Delivered);
                    at_heir.lost += 1;
                }
                3 => {
                    // It was on its way when the node died: it arrives from there too.
                    moved(&mut heir, &record, Place::Delivered);
                    receipts.extend([by_the_dead(&record, b"body"), receipt(&record, b"body")]);
                    at_heir.unproven += 1;
                    at_heir.delivered += 1;
                }
                4 => {
                    moved(&mut heir, &record, Place::Delivered);
                    receipts.extend([receipt(&record, b"body"), receipt(&record, b"body")]);
                    at_heir.duplicated += 1;
                    at_heir.delivered += 1;
                }
                5 => {
                    moved(&mut heir, &record, Place::HandedOver);
                    at_heir.handed_over += 1;
                }
                _ => {
                    moved(&mut heir, &record, Place::Delivered);
                    receipts.push(receipt(&record, b"body"));
                    at_heir.delivered += 1;
                }
            }
        }
        let is_adopted = at_heir.accepted + at_heir.indeterminate > 0;
        heir.report("sink", receipts);
        let sum = heir.seal([]);
        let reported = at_heir.delivered + at_heir.unproven > 0;
        if !reported {
            at_heir.missing_so_far = std::mem::take(&mut at_heir.lost);
        }
        let rows: Vec<Counts> = sum.streams.iter().map(|row| row.counts).collect();
        assert_eq!(rows, if is_adopted { vec![at_heir] } else { vec![] });
        for row in &sum.streams {
            assert_eq!((row.producer.as_str(), row.adopted), (GONE, true));
            assert_eq!(heir.ledger.tally(&row.account(), row.epoch).unwrap().residue, 0);
        }
        // Nobody's numbers are phantoms, but where nothing was ever adopted from their node.
        let (phantom, unproven) = if is_adopted { (0, elsewhere) } else { (elsewhere, 0) };
        assert_eq!((sum.totals.phantom, sum.totals.unproven), (phantom, unproven + at_heir.unproven));
        let harm = at_heir.lost + at_heir.duplicated + phantom;
        let in_doubt = sum.totals.unproven + at_heir.missing_so_far;
        let is_silent = !reported && at_heir.accepted > 0 || at_heir.accepted == 0 && elsewhere == 0;
        let wanted = match (harm, in_doubt) {
            (0, 0) if !is_silent => Verdict::Balanced,
            (0, _) => Verdict::Unknown,
            _ => Verdict::Imbalanced,
        };
        assert_eq!(sum.verdict, wanted);
        assert_eq!(heir.ledger.samples(Finding::Unproven).len() as u64, sum.totals.unproven);
        assert_eq!(heir.ledger.samples(Finding::Corrupted), Vec::<String>::new());
        let at_gone = gone.seal([issuer]).totals;
        assert_eq!(
            (at_gone.handed_over, at_gone.waiting),
            (at_heir.accepted, at_heir.indeterminate),
            "as many there as here"
        );
        let mut again = Ledger::new(NODE).unwrap();
        heir.log.iter().for_each(|bytes| _ = again.apply(&Event::decode(bytes).unwrap()));
        assert_eq!(again, heir.ledger);
        let kept = serde_json::to_string(&heir.ledger).unwrap();
        assert_eq!(serde_json::from_str::<Ledger>(&kept).unwrap(), heir.ledger);
    }

    #[test]
    fn both_ledgers_say_what_was_planted() {
        for seed in 0..600 {
            std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
        }
    }

    #[test]
    fn a_directory_of_ones_own_name_is_another_nodes() {
        let mut world = World::new();
        world.tell(&Event::Began { epoch: 1 << 20 });
        let record = RecordRef::new("events", NODE, 7, 3).unwrap();
        world.tell(&adopting(&record));
        let stream = format!("events.{NODE}");
        world.tell(&Event::Moved { stream, epoch: 7, seq: 3, to: Place::Delivered });
        world.report("sink", vec![by_the_dead(&record, b"x"), receipt(&record, b"x")]);
        let totals = world.seal([]).totals;
        assert_eq!((totals.delivered, totals.unproven, totals.corrupted, totals.phantom), (1, 1, 0, 0));
    }

    #[test]
    fn what_came_before_these_books_began_is_not_theirs_to_judge() {
        let mut world = World::new();
        world.tell(&Event::Began { epoch: 1025 });
        world.tell(&Event::Began { epoch: 1026 });
        let of = |epoch| receipt(&RecordRef::new("events", NODE, epoch, 3).unwrap(), b"x");
        world.report("sink", vec![of(1024), of(1)]);
        let summary = world.ledger.summary();
        assert_eq!((summary.totals.unproven, summary.totals.phantom, summary.verdict), (2, 0, Verdict::Unknown));
        assert_eq!(world.ledger.samples(Finding::Unproven), ["events.node-1.1024.3", "events.node-1.1.3"]);
        world.report("sink", vec![of(0), of(1025)]);
        assert_eq!(world.ledger.summary().totals.phantom, 2, "these are nobody's");
    }

    #[test]
    fn what_a_sink_counted_for_the_dead_node_goes_on_where_it_stood() {
        let mut world = World::new();
        let record = RecordRef::new("events", GONE, 1, 1).unwrap();
        world.tell(&adopting(&record));
        let batch = |batch| {
            let receipts = vec![receipt(&record, b"body")];
            let batch = Receipts { sink: "sink".into(), node: Some(GONE.into()), batch, receipts };
            Event::Receipts(batch.verify(&KEY).unwrap())
        };
        world.report("sink", vec![]);
        assert_eq!(world.tell(&batch(18)), Applied::Changed, "17 were signed for there");
        assert_eq!(world.tell(&batch(18)), Applied::Known);
        assert_eq!(world.tell(&batch(17)), Applied::Known);
        let error = world.try_tell(&batch(20)).unwrap_err();
        assert_eq!(error, ApplyError::Gap { sink: "sink.gone".into(), batch: 20, expected: 19 });
        assert_eq!(world.ledger.next_batch("sink", 1), 2, "its own count goes its own way");
        assert_eq!(world.ledger.summary().totals.recovered, 1);
    }

    #[test]
    fn what_is_no_number_is_refused_and_changes_nothing() {
        let mut world = World::new();
        let before = world.ledger.clone();
        let adopt = |stream: &str, first, last| Event::Adopted {
            stream: stream.into(),
            producer: GONE.into(),
            epoch: 1,
            first,
            last,
        };
        for event in [adopt("events", 0, 3), adopt("events", 4, 3), adopt("a.b", 1, 1)] {
            world.try_tell(&event).unwrap_err();
            assert_eq!(world.ledger, before);
        }
        world.tell(&adopt("events", 5, 9));
        let stream = || "events.gone".to_owned();
        let refused = [
            Event::Moved { stream: stream(), epoch: 1, seq: 4, to: Place::Waiting },
            Event::Reserved { stream: stream(), epoch: 1, up_to: 90 },
            Event::Closed { stream: stream(), epoch: 1, issued: 9 },
            Event::Unnumbered { stream: stream(), epoch: 1, total: 9 },
        ];
        for event in refused {
            world.try_tell(&event).unwrap_err();
        }
        assert_eq!(world.ledger.summary().totals.indeterminate, 5);
    }
}

mod jepsen {
    //! The vectors of Jepsen's own checkers (`jepsen/test/jepsen/checker_test.clj`), in our words: an acknowledged
    //! operation is accepted, a failed one refused, one that only began or ended in `:info` indeterminate; what was
    //! read or dequeued is what the sink received; unexpected is phantom.

    use super::*;

    /// `attempts`: a value and what became of it. `read`: the values that came out.
    fn check(attempts: &[(&str, Option<Class>)], read: &[&str]) -> (Counts, Verdict, World) {
        let mut world = World::new();
        world.tell(&Event::Began { epoch: 1 });
        let mut issuer = issuer("queue", 1);
        let mut records: BTreeMap<&str, RecordRef> = BTreeMap::new();
        for (value, class) in attempts {
            let record = world.issue(&mut issuer);
            if let Some(class) = class {
                world.outcome(&record, *class);
            }
            records.insert(value, record);
        }
        let receipts = read.iter().enumerate().map(|(index, value)| {
            let never_sent = RecordRef::new("queue", NODE, 1, 1_000_000 + index as u64).unwrap();
            receipt(records.get(value).unwrap_or(&never_sent), value.as_bytes())
        });
        let receipts: Vec<Receipt> = receipts.collect();
        world.report("reader", receipts);
        let summary = world.seal([issuer]);
        (summary.totals, summary.verdict, world)
    }

    const OK: Option<Class> = Some(Class::Accepted);
    const INFO: Option<Class> = Some(Class::Indeterminate);
    const FAIL: Option<Class> = Some(Class::Refused);

    #[test]
    fn writes_without_a_number_leave_the_verdict_open() {
        let (_, balanced, mut world) = check(&[("1", OK)], &["1"]);
        assert_eq!(balanced, Verdict::Balanced);
        for (total, seen) in [(2, 2), (1, 2), (3, 3)] {
            world.tell(&Event::Unnumbered { stream: "queue".into(), epoch: 7, total });
            let summary = world.ledger.summary();
            assert_eq!((summary.verdict, summary.totals.unnumbered), (Verdict::Unknown, seen));
        }
        let summary = world.seal([]);
        assert_eq!((summary.verdict, summary.streams.len()), (Verdict::Unknown, 2), "no seal makes up for them");
    }

    #[test]
    fn total_queue_empty() {
        let (counts, verdict, _) = check(&[], &[]);
        // Jepsen calls an empty history valid; to us no traffic is neither good nor bad.
        assert_eq!((counts, verdict), (Counts::default(), Verdict::Unknown));
    }

    #[test]
    fn total_queue_sane() {
        let (counts, verdict, _) = check(&[("1", None), ("2", OK)], &["1", "2"]);
        let expected = Counts { accepted: 1, delivered: 1, indeterminate: 1, recovered: 1, ..Counts::default() };
        assert_eq!((counts, verdict), (expected, Verdict::Balanced));
    }

    #[test]
    fn total_queue_pathological() {
        let attempts = [("hung", None), ("enqueued", OK), ("dup", OK)];
        let (counts, verdict, world) = check(&attempts, &["wtf", "dup", "dup"]);
        let expected = Counts {
            accepted: 2,
            indeterminate: 1,
            delivered: 1,
            lost: 1,
            duplicated: 1,
            phantom: 1,
            ..Counts::default()
        };
        assert_eq!((counts, verdict), (expected, Verdict::Imbalanced));
        assert_eq!(world.ledger.samples(Finding::Lost), ["queue.node-1.1.2"]);
        assert_eq!(world.ledger.samples(Finding::Duplicated), ["queue.node-1.1.3"]);
        assert_eq!(world.ledger.samples(Finding::Phantom), ["queue.node-1.1.1000000"]);
    }

    #[test]
    fn set() {
        let attempts = [("0", OK), ("1", OK), ("10", INFO), ("11", INFO), ("20", FAIL), ("21", FAIL)];
        let (counts, verdict, world) = check(&attempts, &["0", "10", "20", "30"]);
        let expected = Counts {
            accepted: 2,
            refused: 2,
            indeterminate: 2,
            delivered: 1,
            lost: 1,
            // Jepsen counts both 10 and 20 as recovered; that 20 was refused is worse, and has a name of its own here.
            recovered: 1,
            resurrected: 1,
            phantom: 1,
            ..Counts::default()
        };
        assert_eq!((counts, verdict), (expected, Verdict::Imbalanced));
        assert_eq!(world.ledger.samples(Finding::Lost), ["queue.node-1.1.2"]);
        assert_eq!(world.ledger.samples(Finding::Recovered), ["queue.node-1.1.3"]);
        assert_eq!(world.ledger.samples(Finding::Resurrected), ["queue.node-1.1.5"]);
    }

    #[test]
    fn set_full_never_read() {
        let mut world = World::new();
        let mut issuer = issuer("queue", 1);
        let record = world.issue(&mut issuer);
        world.outcome(&record, Class::Accepted);
        let summary = world.seal([issuer]);
        assert_eq!((summary.totals.missing_so_far, summary.totals.lost), (1, 0));
        assert_eq!(summary.verdict, Verdict::Unknown);
        assert_eq!(world.ledger.samples(Finding::Missing), ["queue.node-1.1.1"]);
        assert!(world.ledger.samples(Finding::Lost).is_empty());
    }

    #[test]
    fn unique_ids() {
        let attempts = [("0", OK), ("1", OK), ("2", OK), ("3", OK)];
        let (counts, verdict, world) = check(&attempts, &["0", "1", "0", "2", "3", "3", "3"]);
        assert_eq!((counts.duplicated, counts.delivered, verdict), (3, 4, Verdict::Imbalanced));
        let twice = ["queue.node-1.1.1", "queue.node-1.1.4", "queue.node-1.1.4"];
        assert_eq!(world.ledger.samples(Finding::Duplicated), twice);
    }
}

/// A stream with `accepted` promises, of which the sink saw those named.
fn stream(accepted: u64, arrived: &[u64]) -> (World, Issuer) {
    let mut world = World::new();
    let mut issuer = issuer("events", 1);
    let records: Vec<RecordRef> = (0..accepted).map(|_| world.issue(&mut issuer)).collect();
    for record in &records {
        world.outcome(record, Class::Accepted);
    }
    if !arrived.is_empty() {
        world.report("warehouse", arrived.iter().map(|&seq| receipt(&records[seq as usize - 1], b"body")).collect());
    }
    (world, issuer)
}

fn record(seq: u64) -> RecordRef {
    RecordRef::new("events", NODE, 1, seq).unwrap()
}

#[test]
fn nothing_is_called_lost_before_its_time() {
    let (mut world, issuer) = stream(3, &[1]);
    let summary = world.ledger.summary();
    assert_eq!((summary.verdict, summary.streams[0].state), (Verdict::Unknown, State::Open));
    assert_eq!((summary.totals.missing_so_far, summary.totals.lost), (2, 0));
    assert_eq!(world.ledger.samples(Finding::Missing), ["events.node-1.1.2", "events.node-1.1.3"]);

    world.tell(&Event::Began { epoch: 2 });
    let summary = world.ledger.summary();
    assert_eq!((summary.verdict, summary.streams[0].state), (Verdict::Unknown, State::Settling));
    assert_eq!((summary.totals.missing_so_far, summary.totals.lost), (2, 0));

    let summary = world.seal([issuer]);
    assert_eq!((summary.verdict, summary.streams[0].state), (Verdict::Imbalanced, State::Sealed));
    assert_eq!((summary.totals.missing_so_far, summary.totals.lost), (0, 2));

    world.report("warehouse", vec![receipt(&record(2), b"body")]);
    let summary = world.ledger.summary();
    assert_eq!((summary.verdict, summary.streams[0].state), (Verdict::Imbalanced, State::Amended));
    assert_eq!((summary.totals.lost, summary.totals.late), (1, 1));

    world.report("warehouse", vec![receipt(&record(3), b"body")]);
    let summary = world.ledger.summary();
    assert_eq!((summary.verdict, summary.totals.lost, summary.totals.late), (Verdict::Balanced, 0, 2));
}

#[test]
fn an_open_stream_balances_while_every_promise_is_kept_or_kept_safe() {
    let (mut world, mut issuer) = stream(3, &[3, 1, 2]);
    assert_eq!(world.ledger.summary().verdict, Verdict::Balanced);
    let record = world.issue(&mut issuer);
    world.moved(&record, &[Place::Waiting]);
    let summary = world.ledger.summary();
    assert_eq!((summary.verdict, summary.totals.waiting), (Verdict::Balanced, 1));
    world.moved(&record, &[Place::Delivered]);
    assert_eq!(world.ledger.summary().verdict, Verdict::Unknown, "acknowledged by the upstream is not received");
    world.tell(&Event::Began { epoch: 2 });
    world.report("warehouse", vec![receipt(&record, b"")]);
    assert_eq!(world.ledger.summary().verdict, Verdict::Unknown, "settling");
}

#[test]
fn a_silent_sink_proves_nothing() {
    let (mut world, issuer) = stream(2, &[]);
    world.report("warehouse", Vec::new());
    let summary = world.seal([issuer]);
    assert_eq!((summary.verdict, summary.totals.missing_so_far), (Verdict::Unknown, 2));
    assert_eq!(Ledger::new(NODE).unwrap().summary().verdict, Verdict::Unknown);
}

#[test]
fn harm_shows_at_once() {
    let (mut world, _) = stream(2, &[1, 2]);
    world.report("warehouse", vec![receipt(&record(1), b"body")]);
    assert_eq!(world.ledger.summary().verdict, Verdict::Imbalanced);
    let (mut world, _) = stream(2, &[1, 2]);
    world.report("warehouse", vec![Receipt { record: "?".into(), ..receipt(&record(1), b"body") }]);
    let summary = world.ledger.summary();
    assert_eq!((summary.verdict, summary.totals.phantom), (Verdict::Imbalanced, 1));
    assert_eq!(world.ledger.samples(Finding::Phantom), ["?"]);
}

#[test]
fn what_was_reserved_before_a_crash_is_doubtful_and_after_a_clean_stop_void() {
    let (mut crashed, _) = stream(3, &[1, 2, 3]);
    crashed.tell(&Event::Began { epoch: 2 });
    let tally = crashed.ledger.tally("events", 1).unwrap();
    assert_eq!((tally.counts.indeterminate, tally.void, tally.in_flight), (BLOCK - 3, 0, 0));

    let (mut stopped, mut issuer) = stream(3, &[1, 2, 3]);
    assert_eq!(stopped.ledger.tally("events", 1).unwrap().in_flight, BLOCK - 3);
    stopped.tell(&issuer.roll(2).unwrap());
    let tally = stopped.ledger.tally("events", 1).unwrap();
    assert_eq!((tally.counts.indeterminate, tally.void, tally.in_flight), (0, BLOCK - 3, 0));
    assert_eq!(stopped.ledger.tally("events", 2), None);
    assert_eq!(stopped.ledger.tally("nowhere", 1), None);
    stopped.report("warehouse", vec![receipt(&record(9), b""), receipt_of(&record(9), b"", b"x")]);
    assert_eq!(stopped.ledger.summary().totals.phantom, 2);
    assert_eq!(stopped.ledger.samples(Finding::Phantom), ["events.node-1.1.9"]);
}

#[test]
fn a_counter_that_begins_again_fills_no_hole() {
    // The fault of counting by sequence alone: the node restarts at 1, and the new record 2 hides that the old one was
    // lost.
    let (mut world, _) = stream(3, &[1, 3]);
    // The same epoch again gives no number out, though the block is on the books.
    let mut again = issuer("events", 1);
    let reservation = again.reservation().unwrap();
    let applied = world.tell(&reservation);
    again.confirm(&reservation, applied);
    assert!(again.issue().is_none());
    // Nor does an epoch that is over, for whatever stream.
    world.tell(&Event::Began { epoch: 2 });
    for stream in ["events", "other"] {
        let error = world.ledger.apply(&Event::Reserved { stream: stream.into(), epoch: 1, up_to: 2 * BLOCK });
        assert_eq!(error, Err(ApplyError::EpochOver { stream: stream.into(), epoch: 1, current: 2 }));
    }
    let mut restarted = issuer("events", 2);
    let records: Vec<RecordRef> = (0..3).map(|_| world.issue(&mut restarted)).collect();
    let receipts = records.iter().map(|record| receipt(record, b"new")).collect();
    records.iter().for_each(|record| world.outcome(record, Class::Accepted));
    world.report("warehouse", receipts);
    let summary = world.seal([restarted]);
    let lost: Vec<(u64, u64)> = summary.streams.iter().map(|row| (row.epoch, row.counts.lost)).collect();
    assert_eq!(lost, [(1, 1), (2, 0)]);
    assert_eq!(world.ledger.samples(Finding::Lost), ["events.node-1.1.2"]);
}

#[test]
fn an_answer_in_flight_at_the_seal_amends_it() {
    let (mut world, mut issuer) = stream(1, &[1]);
    let late = world.issue(&mut issuer);
    let summary = world.seal([issuer]);
    assert_eq!((summary.verdict, summary.totals.indeterminate), (Verdict::Balanced, 1));
    world.moved(&late, &[Place::Waiting]);
    let summary = world.ledger.summary();
    assert_eq!((summary.streams[0].state, summary.totals.waiting), (State::Amended, 1));
    world.moved(&late, &[Place::Delivered]);
    assert_eq!(world.ledger.summary().totals.lost, 1);
}

#[test]
fn a_seal_opens_a_new_epoch_for_everybody() {
    let (mut world, mut issuer) = stream(2, &[1, 2]);
    let epoch = world.ledger.next_epoch();
    let closed = issuer.roll(epoch);
    let unused = Event::Closed { stream: "unused".into(), epoch: 1, issued: 0 };
    let events = world.ledger.seal_all(closed.into_iter().chain([unused, Event::Began { epoch: 77 }]));
    let stream = || "events".to_string();
    assert_eq!(
        events,
        [
            Event::Closed { stream: stream(), epoch: 1, issued: 2 },
            Event::Began { epoch: 2 },
            Event::Sealed { stream: stream(), epoch: 1 },
        ]
    );
    events.iter().for_each(|event| assert_eq!(world.tell(event), Applied::Changed));
    let next = world.issue(&mut issuer);
    assert_eq!((next.epoch, next.seq), (2, 1));
    let summary = world.ledger.summary();
    assert_eq!(summary.verdict, Verdict::Balanced, "an account without promises is not judged");
    assert_eq!(world.ledger.seal_all([]).len(), 2);
    assert_eq!(world.ledger.producer(), NODE);
}

#[test]
fn a_batch_counts_once_and_none_is_skipped() {
    let (mut world, _) = stream(2, &[1]);
    let batch = |batch| {
        let receipts =
            Receipts { sink: "warehouse".into(), node: None, batch, receipts: vec![receipt(&record(2), b"body")] };
        Event::Receipts(receipts.verify(&KEY).unwrap())
    };
    let gap = |batch, expected| Err(ApplyError::Gap { sink: "warehouse".into(), batch, expected });
    assert_eq!(world.try_tell(&batch(0)), gap(0, 2), "0 is no batch, so it is not taken for one that was applied");
    assert_eq!(world.try_tell(&batch(3)), gap(3, 2));
    assert_eq!(world.try_tell(&batch(2)), Ok(Applied::Changed));
    assert_eq!(world.try_tell(&batch(2)), Ok(Applied::Known));
    assert_eq!(world.try_tell(&batch(1)), Ok(Applied::Known));
    assert_eq!((world.ledger.next_batch("warehouse", 1), world.ledger.next_batch("other", 9)), (3, 9));
    assert_eq!(world.ledger.summary().verdict, Verdict::Balanced);
}

#[test]
fn limits_are_told_not_crossed() {
    let mut world = World::new();
    for sink in 0..SINKS_MAX {
        world.report(&format!("sink-{sink}"), Vec::new());
    }
    let one_more = Event::Receipts(ReceiptBatch { sink: "one-more".into(), batch: 1, arrivals: Vec::new() });
    assert_eq!(world.try_tell(&one_more), Err(ApplyError::TooManySinks { sink: "one-more".into() }));
    world.report("sink-0", Vec::new());

    let (mut world, _) = stream(1, &[1]);
    let account = world.ledger.streams.get_mut("events").unwrap().get_mut(&1).unwrap();
    account.refused = (0..RUNS_MAX as u64).map(|n| 2 * n).collect();
    let runs = world.ledger.runs_count();
    let batch = ReceiptBatch { sink: "warehouse".into(), batch: 2, arrivals: Vec::new() };
    assert_eq!(world.try_tell(&Event::Receipts(batch)), Err(ApplyError::Crowded { runs }));
    assert_eq!(runs, RUNS_MAX + 2);
}

#[test]
fn samples_are_few() {
    let (mut world, issuer) = stream(3000, &[1, 1, 2]);
    let strangers = (0..1500).map(|n| Receipt { record: format!("? {n}"), ..receipt(&record(1), b"") });
    world.report("warehouse", strangers.collect());
    world.report("warehouse", (0..1500).map(|_| receipt(&record(1), b"body")).collect());
    world.report("warehouse", (3..1500).map(|seq| receipt_of(&record(seq), b"body", b"bodY")).collect());
    let summary = world.seal([issuer]);
    assert_eq!((summary.totals.phantom, summary.totals.duplicated, summary.totals.corrupted), (1500, 1501, 1497));
    assert_eq!(summary.totals.lost, 3000 - 1499);
    for finding in [Finding::Phantom, Finding::Duplicated, Finding::Corrupted, Finding::Lost] {
        assert_eq!(world.ledger.samples(finding).len(), SAMPLES_MAX, "{finding:?}");
    }
    assert_eq!(world.ledger.samples(Finding::Corrupted)[0], "events.node-1.1.3");
}

#[test]
fn a_ledger_that_contradicts_itself_says_so() {
    let broken: [fn(&mut Account); 8] = [
        |account| account.promises += 1,
        |account| account.arrivals += 1,
        |account| account.repeats += 1,
        |account| assert!(account.refused.insert(1)),
        |account| assert!(account.waiting.insert(2) && account.parked.insert(2)),
        |account| assert!(account.waiting.insert(7)),
        |account| {
            account.end = End::Closed { issued: 2 };
            account.waiting.insert(9);
        },
        |account| account.end = End::Closed { issued: 1 },
    ];
    for (index, break_it) in broken.into_iter().enumerate() {
        let (mut world, _) = stream(2, &[1, 2]);
        assert_eq!(world.ledger.summary().verdict, Verdict::Balanced);
        let account = world.ledger.streams.get_mut("events").unwrap().get_mut(&1).unwrap();
        break_it(account);
        assert!(world.ledger.tally("events", 1).unwrap().residue > 0, "{index}");
        assert_eq!(world.ledger.summary().verdict, Verdict::Imbalanced, "{index}");
    }
}

#[test]
fn an_event_that_makes_no_sense_is_refused_with_reason() {
    let (mut world, _) = stream(2, &[]);
    let before = world.ledger.clone();
    let at = |epoch, seq, class| Event::Outcome { stream: "events".into(), epoch, seq, class };
    let refusals = [
        (at(9, 1, Class::Accepted), "no number of stream `events` was reserved in epoch 9"),
        (
            at(1, 5000, Class::Accepted),
            "number 5000 of stream `events`, epoch 1, is beyond the last one given out (1024)",
        ),
        (at(1, 1, Class::Refused), "record 1 of stream `events`, epoch 1, is Accepted and cannot become Refused"),
        (
            Event::Closed { stream: "events".into(), epoch: 1, issued: 1 },
            "stream `events`, epoch 1, cannot close at 1: the books know of number 2",
        ),
        (
            Event::Sealed { stream: "events".into(), epoch: 1 },
            "stream `events`, epoch 1, cannot be sealed: it still gives out numbers",
        ),
        (
            Event::Receipts(ReceiptBatch { sink: "warehouse".into(), batch: 0, arrivals: Vec::new() }),
            "sink `warehouse` sent batch 0, but batch 1 comes next",
        ),
        (
            Event::Reserved { stream: "events".into(), epoch: 0, up_to: 7 },
            "stream `events` cannot reserve numbers in epoch 0: it is over (now 1)",
        ),
        (Event::Reserved { stream: "a b".into(), epoch: 1, up_to: 7 }, "cannot keep books under this name"),
        (
            Event::Receipts(ReceiptBatch { sink: "a b".into(), batch: 1, arrivals: Vec::new() }),
            "cannot keep books under this name",
        ),
    ];
    for (event, reason) in refusals {
        assert_eq!(world.try_tell(&event).unwrap_err().to_string(), reason);
        assert_eq!(world.ledger, before);
    }
    assert!(Ledger::new("a b").is_err());
}

/// Found by chance: an account that came of nothing was called known.
#[test]
fn nothing_left_out_is_no_account_and_a_later_epoch_begins() {
    let mut ledger = Ledger::new(NODE).unwrap();
    let left_out = |epoch, total| Event::Unnumbered { stream: "a".into(), epoch, total };
    assert_eq!(ledger.apply(&left_out(0, 0)), Ok(Applied::Known));
    assert_eq!(ledger, Ledger::new(NODE).unwrap());
    assert_eq!(ledger.apply(&left_out(5, 1)), Ok(Applied::Changed));
    assert_eq!(ledger.next_epoch(), 6, "an account is never ahead of its book");
}

#[test]
fn the_summary_has_the_names_of_the_api() {
    let (mut world, _) = stream(2, &[1]);
    world.report("warehouse", vec![receipt_of(&record(2), b"body", b"bodY")]);
    let text = serde_json::to_string(&world.ledger.summary()).unwrap();
    let numbers = concat!(
        r#""accepted":2,"refused":0,"indeterminate":0,"delivered":1,"waiting":0,"parked":0,"expired":0,"lost":0,"#,
        r#""duplicated":0,"corrupted":1,"recovered":0,"resurrected":0,"phantom":0,"missing_so_far":0"#,
    );
    let stream = format!(r#"{{"stream":"events","producer":"node-1","epoch":1,"state":"open",{numbers}}}"#);
    assert_eq!(text, format!(r#"{{"verdict":"imbalanced","streams":[{stream}],"totals":{{{numbers}}}}}"#));
    assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), world.ledger.summary());
}

#[test]
fn absurd_numbers_bring_nobody_down() {
    let mut ledger = Ledger::new(NODE).unwrap();
    for stream in ["a", "b"] {
        ledger.apply(&Event::Reserved { stream: stream.into(), epoch: u64::MAX - 1, up_to: u64::MAX }).unwrap();
    }
    ledger.apply(&Event::Began { epoch: u64::MAX }).unwrap();
    assert_eq!(ledger.summary().totals.indeterminate, u64::MAX);
    assert_eq!(ledger.next_epoch(), u64::MAX);
}

#[test]
fn records_in_a_row_are_a_few_runs() {
    let mut ledger = Ledger::new(NODE).unwrap();
    let stream = || "events".to_string();
    ledger.apply(&Event::Reserved { stream: stream(), epoch: 1, up_to: 1_000_000 }).unwrap();
    for seq in 1..=200_000 {
        ledger.apply(&Event::Moved { stream: stream(), epoch: 1, seq, to: Place::Waiting }).unwrap();
        ledger.apply(&Event::Moved { stream: stream(), epoch: 1, seq, to: Place::Delivered }).unwrap();
    }
    assert_eq!(ledger.runs_count(), 1);
}

/// Events that mostly make sense, about few records, so that they meet.
fn likely() -> impl Strategy<Value = Event> {
    let stream = || prop_oneof![Just("a".to_string()), Just("b".to_string())];
    let (epoch, seq) = (|| 1..4_u64, || 0..14_u64);
    let class = prop_oneof![Just(Class::Accepted), Just(Class::Refused), Just(Class::Indeterminate)];
    let places = [Place::Waiting, Place::Delivered, Place::Parked, Place::Discarded, Place::HandedOver];
    let place = prop::sample::select(places.to_vec());
    let producer = || prop_oneof![2 => Just(NODE), 1 => Just("gone")];
    let account = || prop_oneof![4 => stream(), 1 => Just("a.gone".to_owned()), 1 => Just("b.node-1".to_owned())];
    let arrival =
        (stream(), producer(), epoch(), seq(), any::<bool>()).prop_map(|(stream, producer, epoch, seq, is_whole)| {
            Arrival::Record { record: RecordRef::new(stream, producer, epoch, seq).unwrap(), is_whole }
        });
    prop_oneof![
        1 => epoch().prop_map(|epoch| Event::Began { epoch }),
        4 => (stream(), epoch(), seq()).prop_map(|(stream, epoch, up_to)| Event::Reserved { stream, epoch, up_to }),
        2 => (stream(), producer(), epoch(), seq(), seq()).prop_map(|(stream, producer, epoch, first, last)| {
            Event::Adopted { stream, producer: producer.into(), epoch, first, last }
        }),
        8 => (account(), epoch(), seq(), class)
            .prop_map(|(stream, epoch, seq, class)| Event::Outcome { stream, epoch, seq, class }),
        6 => (account(), epoch(), seq(), place)
            .prop_map(|(stream, epoch, seq, to)| Event::Moved { stream, epoch, seq, to }),
        4 => (1..5_u64, vec(arrival, 0..6)).prop_map(|(batch, arrivals)| {
            Event::Receipts(ReceiptBatch { sink: "s".into(), batch, arrivals })
        }),
        1 => (account(), epoch(), seq()).prop_map(|(stream, epoch, issued)| Event::Closed { stream, epoch, issued }),
        2 => (account(), epoch()).prop_map(|(stream, epoch)| Event::Sealed { stream, epoch }),
        2 => (stream(), epoch(), 0..3_u64)
            .prop_map(|(stream, epoch, total)| Event::Unnumbered { stream, epoch, total }),
        2 => (stream(), epoch(), 0..200_u64, 0..200_u64, 0..8_u64).prop_map(|(stream, life, since, start, key)| {
            let said = Told { ends: key & 1 != 0, steps_back: key & 2 != 0, in_doubt: key & 4 != 0 };
            let mut census = census::Census::default();
            census.count(&census::Member::of(&census::Salt([0; 32]), &key.to_string()));
            Event::Census { stream, life, since, start, said, census }
        }),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_equations_hold(
        events in vec(prop_oneof![20 => likely(), 1 => event::tests::event()], 0..80),
    ) {
        let mut ledger = Ledger::new(NODE).unwrap();
        for event in &events {
            let before = ledger.clone();
            let first = ledger.apply(event);
            prop_assert_eq!(before == ledger, first != Ok(Applied::Changed));
            // The same event again is known, or refused for the same reason.
            let after = ledger.clone();
            prop_assert_eq!(ledger.apply(event), first.map(|_| Applied::Known));
            prop_assert_eq!(&ledger, &after);
        }
        let summary = ledger.summary();
        for row in &summary.streams {
            let tally = ledger.tally(&row.account(), row.epoch).unwrap();
            let counts = tally.counts;
            prop_assert_eq!(tally.residue, 0);
            let kept = counts.delivered + counts.waiting + counts.parked + counts.expired + counts.handed_over;
            prop_assert_eq!(counts.accepted, kept + tally.damaged + counts.lost + counts.missing_so_far);
            prop_assert!(counts.lost == 0 || matches!(row.state, State::Sealed | State::Amended));
        }
    }

    #[test]
    fn any_prefix_and_the_rest_make_the_whole(events in vec(likely(), 0..60), cut: prop::sample::Index) {
        let replay = |ledger: &mut Ledger, events: &[Event]| {
            for event in events {
                let _ = ledger.apply(&Event::decode(&event.encode()).unwrap());
            }
        };
        let (mut whole, mut parts) = (Ledger::new(NODE).unwrap(), Ledger::new(NODE).unwrap());
        replay(&mut whole, &events);
        let cut = cut.index(events.len() + 1);
        replay(&mut parts, &events[..cut]);
        let mut parts: Ledger = serde_json::from_str(&serde_json::to_string(&parts).unwrap()).unwrap();
        replay(&mut parts, &events[cut..]);
        prop_assert_eq!(parts, whole);
    }
}
