//! The one who sees everything: what was produced, what was promised, what arrived, and whether that is right.
//!
//! Checked at every step: an arrival is byte for byte what was produced, under its own key, and the first arrivals of a
//! row come in order without a gap; an answer is never half; a 4xx is never given to a right request. Checked at the
//! end: what was promised has arrived, and the ledger's counts are the arrivals.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use seawall_core::ledger::{Digest, Receipt, Stamp};
use serde_json::Value;

/// One thing that happened to a shipment: `s3/17` is the seventeenth event of shipment `s3`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Event {
    /// Its row: events of one shipment arrive in order.
    pub shipment: String,
    /// Its number in the row, from 1.
    pub number: u64,
}

impl Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.shipment, self.number)
    }
}

impl Event {
    /// Its idempotency key.
    pub(crate) fn key(&self) -> String {
        format!("{}-{}", self.shipment, self.number)
    }
}

/// Everything there is to know.
#[derive(Debug, Default)]
pub struct Truth {
    bodies: BTreeMap<Event, Vec<u8>>,
    promised: BTreeSet<Event>,
    arrived: BTreeSet<Event>,
    /// Arrivals beyond the first of their event: stopped by the key.
    copies: u64,
    last_of_row: BTreeMap<String, u64>,
    /// Records a receipt was written for.
    reported: BTreeSet<String>,
    unreported: Vec<Receipt>,
    /// The batch of receipts under way.
    batch: Option<(u64, Vec<Receipt>)>,
    batches_done: u64,
    violations: Vec<String>,
    sealed: Option<Value>,
}

impl Truth {
    /// Events promised to their producer by a 2xx.
    #[must_use]
    pub fn promised(&self) -> &BTreeSet<Event> {
        &self.promised
    }

    /// Events that took effect at the queue.
    #[must_use]
    pub fn arrived(&self) -> &BTreeSet<Event> {
        &self.arrived
    }

    /// Copies that the key stopped.
    #[must_use]
    pub fn copies(&self) -> u64 {
        self.copies
    }

    /// What must not have happened and did.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    pub(crate) fn violation(&mut self, what: impl Display) {
        self.violations.push(what.to_string());
    }

    /// An event that must be sent until it is promised, with its body.
    pub(crate) fn produced(&mut self, event: &Event, body: &[u8]) {
        self.bodies.entry(event.clone()).or_insert_with(|| body.to_vec());
    }

    /// The event of a row that is not promised yet, or the next one; and whether it is new.
    pub(crate) fn next_of_row(&self, shipment: &str) -> (Event, bool) {
        let row = Event { shipment: shipment.into(), number: 0 };
        let end = Event { shipment: shipment.into(), number: u64::MAX };
        let last = self.bodies.range(row..end).next_back().map(|(event, _)| event.clone());
        match last {
            Some(last) if !self.promised.contains(&last) => (last, false),
            last => (Event { shipment: shipment.into(), number: last.map_or(1, |last| last.number + 1) }, true),
        }
    }

    /// Events produced and not promised yet.
    pub(crate) fn open(&self) -> u64 {
        (self.bodies.len() - self.promised.len()) as u64
    }

    pub(crate) fn promise(&mut self, event: &Event) {
        self.promised.insert(event.clone());
    }

    /// A write reached the queue whole, as HTTP says, and takes effect. True for the first copy.
    pub(crate) fn arrive(&mut self, event: &Event, key: &str, stamp: Option<&str>, body: &[u8]) -> bool {
        if key.trim_matches('"') != event.key() {
            self.violation(format!("{event} came under the key {key}"));
        }
        match self.bodies.get(event) {
            None => self.violation(format!("{event} was never produced")),
            Some(produced) if produced != body => self.violation(format!("{event} is not what was produced")),
            Some(_) => {}
        }
        let first = self.arrived.insert(event.clone());
        self.copies += u64::from(!first);
        if first {
            let last = self.last_of_row.insert(event.shipment.clone(), event.number).unwrap_or(0);
            if event.number != last + 1 {
                self.violation(format!("{event} arrived after {}/{last}", event.shipment));
            }
        }
        match stamp.map(str::parse::<Stamp>) {
            Some(Ok(stamp)) => self.receipt(&stamp, body),
            _ => self.violation(format!("{event} came without a record number: {stamp:?}")),
        }
        first
    }

    /// A record is reported once, however often it comes.
    fn receipt(&mut self, stamp: &Stamp, body: &[u8]) {
        let record = stamp.record.to_string();
        if self.reported.insert(record.clone()) {
            let digest = Digest::of(body).to_string();
            self.unreported.push(Receipt { record, tag: stamp.tag.to_string(), digest });
        }
    }

    /// The batch of receipts to send now: the same until it is acknowledged.
    pub(crate) fn receipts(&mut self, max: usize) -> Option<(u64, Vec<Receipt>)> {
        if self.batch.is_none() && !self.unreported.is_empty() {
            let count = max.min(self.unreported.len());
            self.batch = Some((self.batches_done + 1, self.unreported.drain(..count).collect()));
        }
        self.batch.clone()
    }

    pub(crate) fn receipts_taken(&mut self, number: u64) {
        if self.batch.as_ref().is_some_and(|(batch, _)| *batch == number) {
            self.batch = None;
            self.batches_done = number;
        }
    }

    pub(crate) fn receipts_left(&self) -> u64 {
        (self.unreported.len() + self.batch.as_ref().map_or(0, |(_, receipts)| receipts.len())) as u64
    }

    /// Events without a promise, and receipts without an answer.
    pub(crate) fn left(&self) -> (u64, u64) {
        (self.open(), self.receipts_left())
    }

    /// Whether what was promised is what has arrived, when nothing is under way.
    pub(crate) fn check_arrivals(&mut self) {
        let odd: Vec<String> =
            self.promised.symmetric_difference(&self.arrived).take(5).map(ToString::to_string).collect();
        if !odd.is_empty() {
            self.violation(format!("promised and not arrived, or the reverse: {odd:?}"));
        }
    }

    pub(crate) fn seal(&mut self, summary: Value) {
        self.sealed = Some(summary);
    }

    /// Whether the ledger agrees with what was seen here.
    pub(crate) fn check_books(&mut self) {
        let Some(summary) = self.sealed.clone() else { return self.violation("the ledger was not sealed") };
        if summary["verdict"] != "balanced" {
            self.violation(format!("the ledger is {}: {}", summary["verdict"], summary["totals"]));
        }
        let totals = &summary["totals"];
        for harm in ["lost", "duplicated", "corrupted", "phantom", "resurrected", "missing_so_far", "waiting", "parked"]
        {
            if totals[harm] != 0 {
                self.violation(format!("the ledger says {harm}: {}", totals[harm]));
            }
        }
        let seen = totals["delivered"].as_u64().unwrap_or(0) + totals["recovered"].as_u64().unwrap_or(0);
        if seen != self.reported.len() as u64 {
            self.violation(format!("the ledger knows {seen} arrivals of {}", self.reported.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use seawall_core::ledger::LedgerKey;
    use serde_json::json;

    use super::*;

    fn event(number: u64) -> Event {
        Event { shipment: "s1".into(), number }
    }

    fn stamp(number: u64, body: &[u8]) -> String {
        let record = format!("events.node.1.{number}").parse().expect("a record's number");
        Stamp::new(&LedgerKey::new([7; 32]), record, &Digest::of(body)).to_string()
    }

    /// Two events produced.
    fn truth() -> Truth {
        let mut truth = Truth::default();
        truth.produced(&event(1), b"one");
        truth.produced(&event(2), b"two");
        truth
    }

    #[test]
    fn what_is_right_is_no_violation() {
        let mut truth = truth();
        assert!(truth.arrive(&event(1), "\"s1-1\"", Some(&stamp(1, b"one")), b"one"));
        assert!(!truth.arrive(&event(1), "s1-1", Some(&stamp(2, b"one")), b"one"), "a copy under another number");
        assert!(truth.arrive(&event(2), "s1-2", Some(&stamp(3, b"two")), b"two"));
        truth.promise(&event(1));
        assert_eq!((truth.copies(), truth.open()), (1, 1));
        assert_eq!(truth.next_of_row("s1"), (event(2), false));
        truth.promise(&event(2));
        assert_eq!(truth.next_of_row("s1"), (event(3), true));
        assert_eq!(truth.violations(), [] as [&str; 0]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |number, key, stamp: Option<&str>, body: &[u8]| {
            let mut truth = truth();
            truth.arrive(&event(number), key, stamp, body);
            truth.violations().join("; ")
        };
        let good = stamp(1, b"one");
        assert_eq!(wrong(1, "k", Some(&good), b"one"), "s1/1 came under the key k");
        assert_eq!(wrong(1, "s1-1", Some(&good), b"on"), "s1/1 is not what was produced");
        assert_eq!(wrong(1, "s1-1", None, b"one"), "s1/1 came without a record number: None");
        assert_eq!(wrong(2, "s1-2", Some(&good), b"two"), "s1/2 arrived after s1/0");
        assert_eq!(wrong(3, "s1-3", Some(&good), b""), "s1/3 was never produced; s1/3 arrived after s1/0");
    }

    #[test]
    fn a_promise_without_an_arrival_is_found() {
        let mut truth = truth();
        truth.arrive(&event(1), "s1-1", Some(&stamp(1, b"one")), b"one");
        truth.promise(&event(1));
        truth.check_arrivals();
        assert_eq!((truth.violations().len(), truth.left()), (0, (1, 1)));
        truth.promise(&event(2));
        truth.check_arrivals();
        assert_eq!(truth.violations(), [r#"promised and not arrived, or the reverse: ["s1/2"]"#]);
    }

    #[test]
    fn receipts_come_in_numbered_batches_until_they_are_taken() {
        let mut truth = truth();
        truth.arrive(&event(1), "s1-1", Some(&stamp(1, b"one")), b"one");
        truth.arrive(&event(2), "s1-2", Some(&stamp(2, b"two")), b"two");
        let (first, receipts) = truth.receipts(1).expect("a batch");
        assert_eq!((first, receipts.len(), truth.receipts_left()), (1, 1, 2));
        assert_eq!(truth.receipts(1), Some((1, receipts)), "the same until it is taken");
        truth.receipts_taken(1);
        truth.receipts_taken(1);
        assert_eq!(truth.receipts(1).map(|(number, _)| number), Some(2));
        truth.receipts_taken(2);
        assert_eq!((truth.receipts(1), truth.receipts_left()), (None, 0));
    }

    #[test]
    fn the_books_must_agree() {
        let mut truth = truth();
        truth.check_books();
        assert_eq!(truth.violations().len(), 1, "not sealed");
        truth.arrive(&event(1), "s1-1", Some(&stamp(1, b"one")), b"one");
        let totals = |delivered, lost| {
            json!({
                "delivered": delivered, "recovered": 0, "lost": lost, "duplicated": 0, "corrupted": 0, "phantom": 0,
                "resurrected": 0, "missing_so_far": 0, "waiting": 0, "parked": 0,
            })
        };
        truth.seal(json!({ "verdict": "balanced", "totals": totals(1, 0) }));
        truth.check_books();
        assert_eq!(truth.violations().len(), 1, "they agree");
        truth.seal(json!({ "verdict": "imbalanced", "totals": totals(0, 1) }));
        truth.check_books();
        assert_eq!(truth.violations().len(), 4, "verdict, loss and sum: {:?}", truth.violations());
    }
}
