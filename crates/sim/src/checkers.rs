//! The one who sees everything: what was produced, what was promised, what arrived, and whether that is right.
//!
//! Checked at every step: an arrival is byte for byte what was produced, under its own key, and the first arrivals of a
//! row come in order without a gap; an answer is never half; a 4xx is never given to a right request. Checked at the
//! end: what was promised has arrived, and the ledger's counts are the arrivals.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use seawall_core::ledger::{Receipt, RecordRef, Stamp};
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

    /// What the node's ledger said when it was sealed.
    #[must_use]
    pub fn sealed(&self) -> Option<&Value> {
        self.sealed.as_ref()
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
            let digest = seawall_core::ledger::Digest::of(body).to_string();
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

    /// Records that arrived, by number.
    #[must_use]
    pub fn records(&self) -> Vec<RecordRef> {
        self.reported.iter().filter_map(|record| record.parse().ok()).collect()
    }
}
