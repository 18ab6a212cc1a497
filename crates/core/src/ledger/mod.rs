//! The integrity ledger: exact accounts of every record accepted and received.
//!
//! Picture two people who count the same parcels at the two ends of a road and never talk. Each writes intervals of
//! numbers; laid above each other ([`interval`]) they show what was lost, repeated, damaged or never sent, number by
//! number. One (stream, producer, epoch) is an account. Its numbers are dense, so a hole is a fact and not a guess.
//!
//! - `id`: a record's number and the tag that binds it to its body.
//! - `account`: the producer's side: numbers reserved, promised, refused, doubtful, and where the spool has them.
//! - `receipt`: the sink's side: what arrived, judged by its tag.
//! - `census`: what was accepted, to be compared with a sink that cannot report; `periods`: over time.
//! - `recall`: what the spool holds, against what the books say of it.
//! - `event`: the changes of the books, and their bytes in the log.
//! - `seal`: what the numbers add up to, and the verdict.
//!
//! [`Ledger::apply`] is the one change of state: the log of events, replayed, is the ledger. An event that is refused
//! leaves everything as it was, so a log that holds one replays to the same books. An event that comes again changes
//! nothing, at any time, with two exceptions: where a record is ([`Event::Moved`]) is decided by the last word, and a
//! census told after the clock went back ([`Told::steps_back`]) counts beside what was told before.
//!
//! The order on disk: a reservation is durable before its first number is given out, a promise before the client hears
//! it, a batch of receipts before the sink does. Then a crash leaves doubt (indeterminate), never a wrong count.
//!
//! Memory: about 0.8 KiB an account and 40 bytes a run beyond the first of each kind, at most [`RUNS_MAX`] runs from
//! receipts (receipts that would go beyond are refused, for the sink to send again; the producer's own words are always
//! taken). Independent of the number of records as long as they go their usual way. A stream's census of a day takes 2
//! MiB at most.
//! [`Ledger::runs_count`] is the gauge to watch.
//!
//! Every arrival counts, from whatever sink: a record is meant to arrive once, at one sink.
//!
//! Records of a node that is gone, taken in here, keep their numbers, on an account of their own ([`Event::Adopted`]).
//! Of that account only they are this node's; an arrival that this node cannot judge, as it bears the other one's tag
//! or a number that was not taken in, is `unproven`: neither good nor harm.

pub mod interval;

mod account;
pub mod census;
mod event;
mod id;
mod periods;
mod recall;
mod receipt;
mod seal;
mod taker;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use account::{BLOCK, Class, Issuer, Place};
pub use event::{DecodeError, Event};
pub use id::{Digest, HexError, LedgerKey, NAME_BYTES_MAX, RecordRef, RefError, Stamp, StampError, Tag, check_name};
pub use interval::IntervalSet;
pub use periods::{Counted, PERIOD_S, Told, period_of};
pub use recall::{Held, Recalled};
pub use receipt::{Arrival, RECEIPTS_MAX, Receipt, ReceiptBatch, ReceiptError, Receipts};
pub use seal::{Counts, Finding, State, StreamSummary, Summary, Tally, Verdict};
pub use taker::CensusTaker;

use account::{Account, Arrived, Objection};
use periods::Periods;

/// Most runs of numbers that receipts may bring the ledger to: about 40 MB.
pub const RUNS_MAX: usize = 1 << 20;

/// Most sinks that may report to one node.
pub const SINKS_MAX: usize = 1024;

/// Most samples kept or named of each kind of finding.
pub const SAMPLES_MAX: usize = 1000;

/// All accounts of a node and what the sinks reported about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    producer: String,
    /// The greatest epoch seen; 0 before the first.
    epoch: u64,
    /// The first epoch of these books; 0 if that is not known. What came before was another directory's of this node.
    #[serde(default, skip_serializing_if = "seal::is_zero")]
    first_epoch: u64,
    /// Stream, then epoch. What was adopted stands under `stream.producer`, which is no stream's name.
    streams: BTreeMap<String, BTreeMap<u64, Box<Account>>>,
    /// The last batch of each sink.
    sinks: BTreeMap<String, u64>,
    /// Arrivals that belong to no account.
    strangers: u64,
    /// Records that arrived more than once, the first [`SAMPLES_MAX`] times it was seen.
    repeated: Vec<RecordRef>,
    /// Arrivals that nobody here sent, the first [`SAMPLES_MAX`].
    phantoms: Vec<String>,
    /// Arrivals of records of nodes whose records were adopted that this node has not taken in: theirs to judge.
    #[serde(default, skip_serializing_if = "seal::is_zero")]
    unproven: u64,
    /// Arrivals that cannot be judged here, the first [`SAMPLES_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unproven_samples: Vec<String>,
    /// Which keys each stream accepted, and when.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    periods: BTreeMap<String, Periods>,
}

/// Whether an event changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The books are different now.
    Changed,
    /// It was on the books already.
    Known,
}

/// An event that the ledger does not take. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A stream or sink without a usable name.
    #[error("cannot keep books under this name")]
    Name(#[from] RefError),
    /// Nothing was ever reserved there.
    #[error("no number of stream `{stream}` was reserved in epoch {epoch}")]
    UnknownAccount {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
    },
    /// A reservation in an epoch that is over: its numbers would be given twice.
    #[error("stream `{stream}` cannot reserve numbers in epoch {epoch}: it is over (now {current})")]
    EpochOver {
        /// The stream.
        stream: String,
        /// The epoch asked for.
        epoch: u64,
        /// The epoch of the ledger.
        current: u64,
    },
    /// A number that was never given out.
    #[error("number {number} of stream `{stream}`, epoch {epoch}, is beyond the last one given out ({bound})")]
    Beyond {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
        /// The number.
        number: u64,
        /// The last that may have been given out.
        bound: u64,
    },
    /// A promise taken back, or a refusal turned into a promise.
    #[error("record {seq} of stream `{stream}`, epoch {epoch}, is {was:?} and cannot become {now:?}")]
    Contradiction {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
        /// The record.
        seq: u64,
        /// What the books say.
        was: Class,
        /// What the event says.
        now: Class,
    },
    /// A close that does not fit what is on the books.
    #[error("stream `{stream}`, epoch {epoch}, cannot close at {issued}: the books know of number {known}")]
    Misclosed {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
        /// The last number given out, as the event says.
        issued: u64,
        /// The number that the books know of.
        known: u64,
    },
    /// A seal on an account that still gives out numbers.
    #[error("stream `{stream}`, epoch {epoch}, cannot be sealed: it still gives out numbers")]
    StillOpen {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
    },
    /// A batch of receipts is missing before this one.
    #[error("sink `{sink}` sent batch {batch}, but batch {expected} comes next")]
    Gap {
        /// The sink.
        sink: String,
        /// What it sent.
        batch: u64,
        /// What it has to send first.
        expected: u64,
    },
    /// Too many sinks.
    #[error("sink `{sink}` cannot report: {SINKS_MAX} others do already")]
    TooManySinks {
        /// The one too many.
        sink: String,
    },
    /// Too many holes to remember.
    #[error("cannot take more receipts: the ledger holds {runs} runs of numbers (at most {RUNS_MAX})")]
    Crowded {
        /// How many runs there are.
        runs: usize,
    },
}

impl Ledger {
    /// Empty books of a node; `producer` is its name.
    ///
    /// # Errors
    /// [`RefError::Name`] for a name that could not be read back from a record's number.
    pub fn new(producer: impl Into<String>) -> Result<Self, RefError> {
        let producer = producer.into();
        check_name("producer", &producer)?;
        Ok(Self {
            producer,
            epoch: 0,
            first_epoch: 0,
            streams: BTreeMap::new(),
            sinks: BTreeMap::new(),
            strangers: 0,
            repeated: Vec::new(),
            phantoms: Vec::new(),
            unproven: 0,
            unproven_samples: Vec::new(),
            periods: BTreeMap::new(),
        })
    }

    /// The one change of state. Call it with the events of the log in their order, and with each new one once it is
    /// durable. An event that was applied before changes nothing.
    ///
    /// After a start: replay the log, then make [`Event::Began`] with [`Self::next_epoch`] durable and apply it.
    ///
    /// # Errors
    /// [`ApplyError`] when the event contradicts the books; they stay as they were.
    pub fn apply(&mut self, event: &Event) -> Result<Applied, ApplyError> {
        let changed = match event {
            Event::Began { epoch } => self.begin(*epoch),
            Event::Reserved { stream, epoch, up_to } => self.reserve(stream, *epoch, *up_to)?,
            Event::Outcome { stream, epoch, seq, class } => {
                self.change(stream, *epoch, *seq, |account| account.outcome(*seq, *class))?
            }
            Event::Moved { stream, epoch, seq, to } => {
                self.change(stream, *epoch, *seq, |account| account.moved(*seq, *to))?
            }
            Event::Receipts(batch) => self.receive(batch)?,
            Event::Closed { stream, epoch, issued } => {
                self.change(stream, *epoch, *issued, |account| account.close(*issued))?
            }
            Event::Sealed { stream, epoch } => self.change(stream, *epoch, 0, Account::seal)?,
            Event::Adopted { stream, producer, epoch, first, last } => {
                self.adopt(stream, producer, *epoch, *first, *last)?
            }
            Event::Unnumbered { stream, epoch, total } => self.leave_out(stream, *epoch, *total)?,
            Event::Census { stream, life, since, start, said, census } => {
                check_name("stream", stream)?;
                let changed =
                    self.periods.entry(stream.clone()).or_default().take(*life, *since, *start, census, *said);
                if changed {
                    // Streams that nobody configures any more grow old with the others.
                    self.periods.values_mut().for_each(|periods| periods.grow_old(*start));
                }
                changed
            }
        };
        Ok(if changed { Applied::Changed } else { Applied::Known })
    }

    /// The epoch that a start of the node, or a seal, begins: greater than every one before.
    #[must_use]
    pub const fn next_epoch(&self) -> u64 {
        self.epoch.saturating_add(1)
    }

    /// The batch that has to come next, when this one has come. A sink that these books never heard of goes on from
    /// where it stands: it may have reported to another node, or to this one before it lost its directory. What should
    /// have come before and did not is missing on the account, and told there.
    #[must_use]
    pub fn next_batch(&self, sink: &str, batch: u64) -> u64 {
        self.sinks.get(sink).map_or(batch.max(1), |last| last.saturating_add(1))
    }

    /// The events that seal every account now, in their order, to be made durable and applied. `closed` is what
    /// [`Issuer::roll`] gave for each live stream, rolled to [`Self::next_epoch`]; a stream without an issuer counts as
    /// crashed.
    #[must_use]
    pub fn seal_all(&self, closed: impl IntoIterator<Item = Event>) -> Vec<Event> {
        let is_known = |event: &Event| match event {
            Event::Closed { stream, epoch, .. } => self.streams.get(stream).is_some_and(|all| all.contains_key(epoch)),
            _ => false,
        };
        let mut events: Vec<Event> = closed.into_iter().filter(is_known).collect();
        events.push(Event::Began { epoch: self.next_epoch() });
        let unsealed = self.accounts().filter(|(_, _, account)| account.seal.is_none());
        events.extend(unsealed.map(|(stream, epoch, _)| Event::Sealed { stream: stream.into(), epoch }));
        events
    }

    /// Which keys a stream accepted between two moments, in seconds since 1970; `None` for one nobody counted.
    #[must_use]
    pub fn census(&self, stream: &str, since: u64, until: u64) -> Option<Counted> {
        Some(self.periods.get(stream)?.between(since, until))
    }

    /// The node's name.
    #[must_use]
    pub fn producer(&self) -> &str {
        &self.producer
    }

    /// How many runs of numbers the ledger holds: the measure of its memory.
    #[must_use]
    pub fn runs_count(&self) -> usize {
        self.accounts().map(|(_, _, account)| account.runs_count()).sum()
    }

    /// The name of the account that a record is on: its stream, and after a dot its producer if it was adopted. `None`
    /// if it is not this node's to account for.
    #[must_use]
    pub fn account_of<'a>(&self, record: &'a RecordRef) -> Option<Cow<'a, str>> {
        let has = |name: &str| self.streams.get(name).is_some_and(|epochs| epochs.contains_key(&record.epoch));
        if record.producer == self.producer && has(&record.stream) {
            return Some(Cow::Borrowed(&record.stream));
        }
        Some(adopted_name(&record.stream, &record.producer)).filter(|name| has(name)).map(Cow::Owned)
    }

    /// As [`Self::account_of`]; of a record that is on no account here, the name of the one that adopting it would
    /// make.
    #[must_use]
    pub fn account_for<'a>(&self, record: &'a RecordRef) -> Cow<'a, str> {
        self.account_of(record).unwrap_or_else(|| Cow::Owned(adopted_name(&record.stream, &record.producer)))
    }

    /// Stream and producer of an account's name.
    fn parts<'a>(&'a self, name: &'a str) -> (&'a str, &'a str) {
        adopted_parts(name).unwrap_or((name, &self.producer))
    }

    fn accounts(&self) -> impl Iterator<Item = (&str, u64, &Account)> {
        self.streams.iter().flat_map(|(stream, epochs)| {
            epochs.iter().map(move |(&epoch, account)| (stream.as_str(), epoch, &**account))
        })
    }

    fn begin(&mut self, epoch: u64) -> bool {
        if epoch <= self.epoch {
            return false;
        }
        if self.epoch == 0 {
            self.first_epoch = epoch;
        }
        self.epoch = epoch;
        for account in self.streams.values_mut().flat_map(BTreeMap::values_mut) {
            account.crash();
        }
        true
    }

    fn reserve(&mut self, stream: &str, epoch: u64, up_to: u64) -> Result<bool, ApplyError> {
        check_name("stream", stream)?;
        let current = self.epoch;
        let over = || ApplyError::EpochOver { stream: stream.into(), epoch, current };
        if let Some(account) = self.streams.get_mut(stream).and_then(|epochs| epochs.get_mut(&epoch)) {
            return account.reserve(up_to).map_err(|_| over());
        }
        if epoch < current {
            return Err(over());
        }
        self.begin(epoch);
        self.streams.entry(stream.into()).or_default().insert(epoch, Box::new(Account::new(up_to)));
        Ok(true)
    }

    fn adopt(&mut self, stream: &str, producer: &str, epoch: u64, first: u64, last: u64) -> Result<bool, ApplyError> {
        check_name("stream", stream)?;
        check_name("producer", producer)?;
        let beyond = || ApplyError::Beyond { stream: stream.into(), epoch, number: first, bound: last };
        if first == 0 || last < first {
            return Err(beyond());
        }
        let epochs = self.streams.entry(adopted_name(stream, producer)).or_default();
        let account = epochs.entry(epoch).or_insert_with(|| Box::new(Account::of_another()));
        account.adopt(first, last).map_err(|_| beyond())
    }

    /// The account may be new: no number was ever reserved in it.
    fn leave_out(&mut self, stream: &str, epoch: u64, total: u64) -> Result<bool, ApplyError> {
        check_name("stream", stream)?;
        // Nothing was left out: no account comes of that.
        if total == 0 {
            return Ok(false);
        }
        self.begin(epoch);
        let is_over = epoch < self.epoch;
        let account =
            self.streams.entry(stream.into()).or_default().entry(epoch).or_insert_with(|| Box::new(Account::new(0)));
        if is_over {
            account.crash();
        }
        Ok(account.unnumbered(total))
    }

    fn change(
        &mut self,
        stream: &str,
        epoch: u64,
        number: u64,
        change: impl FnOnce(&mut Account) -> Result<bool, Objection>,
    ) -> Result<bool, ApplyError> {
        let account = self.streams.get_mut(stream).and_then(|epochs| epochs.get_mut(&epoch));
        let stream = || stream.to_owned();
        let account = account.ok_or_else(|| ApplyError::UnknownAccount { stream: stream(), epoch })?;
        change(account).map_err(|objection| match objection {
            Objection::Beyond { bound } => ApplyError::Beyond { stream: stream(), epoch, number, bound },
            Objection::Contradiction { was, now } => {
                ApplyError::Contradiction { stream: stream(), epoch, seq: number, was, now }
            }
            Objection::Misclosed { known } => ApplyError::Misclosed { stream: stream(), epoch, issued: number, known },
            Objection::StillOpen | Objection::Ended => ApplyError::StillOpen { stream: stream(), epoch },
        })
    }

    fn receive(&mut self, batch: &ReceiptBatch) -> Result<bool, ApplyError> {
        let (sink, node) = batch.sink.split_once('.').unwrap_or((&batch.sink, &self.producer));
        check_name("sink", sink)?;
        check_name("node", node)?;
        let expected = self.next_batch(&batch.sink, batch.batch);
        if batch.batch != 0 && batch.batch < expected {
            return Ok(false);
        }
        if batch.batch != expected {
            return Err(ApplyError::Gap { sink: batch.sink.clone(), batch: batch.batch, expected });
        }
        if !self.sinks.contains_key(&batch.sink) && self.sinks.len() >= SINKS_MAX {
            return Err(ApplyError::TooManySinks { sink: batch.sink.clone() });
        }
        let runs = self.runs_count();
        if runs + batch.arrivals.len() > RUNS_MAX {
            return Err(ApplyError::Crowded { runs });
        }
        self.sinks.insert(batch.sink.clone(), batch.batch);
        for arrival in &batch.arrivals {
            self.arrive(arrival);
        }
        Ok(true)
    }

    fn arrive(&mut self, arrival: &Arrival) {
        let (record, is_whole) = match arrival {
            Arrival::Record { record, is_whole } => (record, *is_whole),
            Arrival::Unreadable { text } => return self.stranger(text.clone()),
        };
        let name = self.account_of(record);
        let account = name.and_then(|name| self.streams.get_mut(&*name)?.get_mut(&record.epoch));
        let Some(account) = account else {
            return if self.is_elsewhere(record) { self.unproven(record) } else { self.stranger(record.to_string()) };
        };
        match account.arrive(record.seq, is_whole) {
            Arrived::Beyond => keep_sample(&mut self.phantoms, || record.to_string()),
            Arrived::Anothers => self.unproven(record),
            Arrived::Unproven => keep_sample(&mut self.unproven_samples, || record.to_string()),
            Arrived::Repeat => keep_sample(&mut self.repeated, || record.clone()),
            Arrived::First | Arrived::Damaged => {}
        }
    }

    /// Whether a record that is on no account here may be on other books: those of a node whose records were adopted,
    /// or those that this node had before it lost its directory.
    fn is_elsewhere(&self, record: &RecordRef) -> bool {
        let is_earlier = record.producer == self.producer && (1..self.first_epoch).contains(&record.epoch);
        is_earlier || self.streams.keys().any(|name| adopted_parts(name).is_some_and(|(_, of)| of == record.producer))
    }

    fn unproven(&mut self, record: &RecordRef) {
        self.unproven += 1;
        keep_sample(&mut self.unproven_samples, || record.to_string());
    }

    fn stranger(&mut self, text: String) {
        self.strangers += 1;
        keep_sample(&mut self.phantoms, || text);
    }
}

/// The name of an account that another node began.
fn adopted_name(stream: &str, producer: &str) -> String {
    format!("{stream}.{producer}")
}

/// Stream and producer of such a name; `None` for a stream of the node's own.
fn adopted_parts(name: &str) -> Option<(&str, &str)> {
    name.split_once('.')
}

fn keep_sample<T>(samples: &mut Vec<T>, sample: impl FnOnce() -> T) {
    if samples.len() < SAMPLES_MAX {
        samples.push(sample());
    }
}
