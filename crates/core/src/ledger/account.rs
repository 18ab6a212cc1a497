//! The producer's side of the books: who gives numbers out, and what became of each of them.
//!
//! Picture a cloakroom. [`Issuer`] tears numbered tickets off a roll, and a new roll is written into the register
//! before its first ticket is torn, so that after a fire nobody has to guess how far the numbers can have gone.
//! `Account` is the page of the register for one roll: which tickets were promised a coat, which were refused, which
//! nobody remembers, where the coats hang now, and which came out at the other door.
//! Invariants: no number is given twice; a promise is never taken back; a surer word replaces a vaguer one.
//! Not here: which sink reported (`receipt.rs`), what the numbers add up to (`seal.rs`).
//!
//! Memory: an account is eight sets of runs, about 40 bytes a run and one to three runs a set while records go their
//! usual way; runs grow with what is out of order or out of the ordinary, never with the number of records.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::Applied;
use super::event::Event;
use super::id::{RecordRef, RefError, check_name};
use super::interval::IntervalSet;

/// How many numbers are reserved at once unless told otherwise. One durable write covers so many records; at most so
/// many are doubtful after a crash.
pub const BLOCK: u64 = 1024;

/// Gives out the numbers of one stream: dense, from 1, from blocks that were made durable first (hi-lo).
///
/// ```
/// use seawall_core::ledger::{Issuer, Ledger};
///
/// let mut ledger = Ledger::new("us-east-1")?;
/// let mut issuer = Issuer::new("events", "us-east-1", ledger.next_epoch())?;
/// assert!(issuer.issue().is_none(), "nothing is reserved yet");
/// let reservation = issuer.reservation().unwrap();
/// // Write `reservation.encode()` to the ledger's log and sync it; only then:
/// let applied = ledger.apply(&reservation)?;
/// issuer.confirm(&reservation, applied);
/// assert_eq!(issuer.issue().unwrap().to_string(), "events.us-east-1.1.1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Issuer {
    stream: String,
    producer: String,
    epoch: u64,
    block: u64,
    issued: u64,
    reserved: u64,
    /// Up to where a reservation is under way; equal to `reserved` when none is.
    asked: u64,
}

impl Issuer {
    /// An issuer for a stream in this epoch, which must be greater than every one before
    /// ([`super::Ledger::next_epoch`]).
    ///
    /// # Errors
    /// [`RefError::Name`] for a stream or producer that could not be read back.
    pub fn new(stream: impl Into<String>, producer: impl Into<String>, epoch: u64) -> Result<Self, RefError> {
        let (stream, producer) = (stream.into(), producer.into());
        check_name("stream", &stream)?;
        check_name("producer", &producer)?;
        Ok(Self { stream, producer, epoch, block: BLOCK, issued: 0, reserved: 0, asked: 0 })
    }

    /// With blocks of another size than [`BLOCK`]; at least 1.
    #[must_use]
    pub fn with_block(mut self, block: u64) -> Self {
        self.block = block.max(1);
        self
    }

    /// The next number. `None`: nothing reserved is left, so make a [`Self::reservation`] durable first.
    pub fn issue(&mut self) -> Option<RecordRef> {
        if self.issued >= self.reserved {
            return None;
        }
        self.issued += 1;
        Some(RecordRef {
            stream: self.stream.clone(),
            producer: self.producer.clone(),
            epoch: self.epoch,
            seq: self.issued,
        })
    }

    /// The event to make durable next, when a quarter of a block or less is left and none is under way already.
    pub fn reservation(&mut self) -> Option<Event> {
        if self.asked > self.reserved || self.reserved - self.issued > self.block / 4 {
            return None;
        }
        self.asked = self.reserved.saturating_add(self.block);
        Some(Event::Reserved { stream: self.stream.clone(), epoch: self.epoch, up_to: self.asked })
    }

    /// The reservation is durable and [`super::Ledger::apply`] took it: its numbers may be given out. One that the
    /// ledger knew already gives nothing: somebody else may have used its numbers. Nor does one of another stream or
    /// epoch.
    pub fn confirm(&mut self, reservation: &Event, applied: Applied) {
        if let Event::Reserved { stream, epoch, up_to } = reservation
            && (*stream == self.stream && *epoch == self.epoch && applied == Applied::Changed)
        {
            self.reserved = self.reserved.max(*up_to);
            self.asked = self.asked.max(self.reserved);
        }
    }

    /// The reservation under way could not be made durable: the next call of [`Self::reservation`] makes another.
    pub fn give_up(&mut self) {
        self.asked = self.reserved;
    }

    /// Ends this epoch and begins another, greater one. The event that closes the old one, to be made durable, if it
    /// ever reserved a number. Call it with the current epoch plus one at a clean stop too. If the only reservation was
    /// under way and failed, the ledger refuses the event as one of an unknown account: that is all right.
    ///
    /// # Panics
    /// When `epoch` is not greater: numbers would be given twice.
    pub fn roll(&mut self, epoch: u64) -> Option<Event> {
        assert!(epoch > self.epoch, "epoch {epoch} does not follow {}: numbers would be given twice", self.epoch);
        let closed = Event::Closed { stream: self.stream.clone(), epoch: self.epoch, issued: self.issued };
        // A reservation under way counts: it may become durable without us.
        let was_used = self.asked > 0;
        (self.epoch, self.issued, self.reserved, self.asked) = (epoch, 0, 0, 0);
        was_used.then_some(closed)
    }

    /// The epoch of the numbers it gives out.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many numbers it gave out in this epoch.
    #[must_use]
    pub const fn issued(&self) -> u64 {
        self.issued
    }
}

/// What the client was told about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// It was promised: 2xx, or 202 from the spool.
    Accepted,
    /// It was refused, and for sure never carried out.
    Refused,
    /// Nobody knows: a timeout, a cut connection, a crash. It may or may not arrive.
    Indeterminate,
}

/// Where a record is that went through the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In the spool, to be delivered.
    Waiting,
    /// Handed to the upstream, which acknowledged it. Only a sink's receipt proves that it arrived.
    Delivered,
    /// Among the dead letters, visible, to be decided about.
    Parked,
    /// Given up by a person or by policy.
    Discarded,
    /// Another node's to deliver: it took the record in.
    HandedOver,
}

/// How an account's epoch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// It did not: numbers are still given out.
    Open,
    /// In a crash: every reserved number may have been given out.
    Crashed,
    /// Cleanly: numbers beyond `issued` are void.
    Closed {
        /// The last number given out.
        issued: u64,
    },
}

/// What was missing when the account was sealed, and whether it changed since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seal {
    /// Accepted records that were neither received nor kept anywhere.
    pub(super) missing: IntervalSet,
    /// Whether any event changed the account since.
    pub(super) is_amended: bool,
}

/// The books of one (stream, producer, epoch).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) reserved: u64,
    pub(super) end: End,
    pub(super) accepted: IntervalSet,
    pub(super) refused: IntervalSet,
    pub(super) indeterminate: IntervalSet,
    pub(super) waiting: IntervalSet,
    pub(super) parked: IntervalSet,
    pub(super) discarded: IntervalSet,
    /// Another node's to deliver.
    #[serde(default, skip_serializing_if = "IntervalSet::is_empty")]
    pub(super) handed_over: IntervalSet,
    /// For an account that another node began: the numbers of it that were taken in here. All others are that node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) adopted: Option<IntervalSet>,
    /// Arrived at least once with the right tag.
    pub(super) whole: IntervalSet,
    /// Arrived at least once with a tag that does not fit.
    pub(super) damaged: IntervalSet,
    /// Whole arrivals beyond the first of their record.
    pub(super) repeats: u64,
    /// Damaged arrivals beyond the first of their record.
    pub(super) damaged_repeats: u64,
    /// Arrivals with a number that was not even reserved.
    pub(super) beyond: u64,
    /// Promises, counted one by one as they were made: checked against what the sets add up to.
    pub(super) promises: u64,
    /// Arrivals, counted one by one as they were reported: checked in the same way.
    pub(super) arrivals: u64,
    /// Writes that went on without a number.
    #[serde(default)]
    pub(super) unnumbered: u64,
    pub(super) seal: Option<Seal>,
}

/// Why an account does not take an event. It is left as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Objection {
    /// The number was not reserved, or the account was closed before it.
    Beyond { bound: u64 },
    /// The account gives out no more numbers.
    Ended,
    /// Another sure word is on the books already.
    Contradiction { was: Class, now: Class },
    /// A close that leaves out a number already on the books, or differs from the close on the books.
    Misclosed { known: u64 },
    /// A seal on an account that still gives out numbers.
    StillOpen,
}

/// What a reported arrival turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    First,
    Repeat,
    Damaged,
    Beyond,
    /// A number of another node's that was not taken in here.
    Anothers,
    /// A number that was taken in, under a tag that is not ours: the other node's, or a damaged one.
    Unproven,
}

impl Account {
    pub(super) fn new(reserved: u64) -> Self {
        Self {
            reserved,
            end: End::Open,
            accepted: IntervalSet::new(),
            refused: IntervalSet::new(),
            indeterminate: IntervalSet::new(),
            waiting: IntervalSet::new(),
            parked: IntervalSet::new(),
            discarded: IntervalSet::new(),
            handed_over: IntervalSet::new(),
            adopted: None,
            whole: IntervalSet::new(),
            damaged: IntervalSet::new(),
            repeats: 0,
            damaged_repeats: 0,
            beyond: 0,
            promises: 0,
            arrivals: 0,
            unnumbered: 0,
            seal: None,
        }
    }

    /// Of numbers that another node gave out, none of them yet. That node is gone: it gives out no more.
    pub(super) fn of_another() -> Self {
        Self { end: End::Crashed, adopted: Some(IntervalSet::new()), ..Self::new(0) }
    }

    /// Numbers of another node whose records are about to be taken in here. Whether they were is not known yet.
    pub(super) fn adopt(&mut self, first: u64, last: u64) -> Result<bool, Objection> {
        let bound = self.bound();
        let adopted = self.adopted.as_mut().ok_or(Objection::Ended)?;
        if first == 0 || last < first {
            return Err(Objection::Beyond { bound });
        }
        let changed = adopted.insert_range(first, last) > 0;
        self.reserved = self.reserved.max(last);
        if changed {
            self.amend();
        }
        Ok(changed)
    }

    /// The numbers that may have been given out, as far as they are this node's to account for.
    pub(super) fn given(&self) -> Cow<'_, IntervalSet> {
        self.adopted.as_ref().map_or_else(|| Cow::Owned(IntervalSet::up_to(self.bound())), Cow::Borrowed)
    }

    /// The greatest number that may have been given out.
    pub(super) fn bound(&self) -> u64 {
        match self.end {
            End::Open | End::Crashed => self.reserved,
            End::Closed { issued } => issued,
        }
    }

    pub(super) fn runs_count(&self) -> usize {
        let missing = self.seal.as_ref().map_or(0, |seal| seal.missing.runs_count());
        let adopted = self.adopted.as_ref().map_or(0, IntervalSet::runs_count);
        self.sets().iter().map(|set| set.runs_count()).sum::<usize>() + missing + adopted
    }

    fn sets(&self) -> [&IntervalSet; 9] {
        [
            &self.accepted,
            &self.refused,
            &self.indeterminate,
            &self.waiting,
            &self.parked,
            &self.discarded,
            &self.handed_over,
            &self.whole,
            &self.damaged,
        ]
    }

    pub(super) fn reserve(&mut self, up_to: u64) -> Result<bool, Objection> {
        if up_to <= self.reserved {
            return Ok(false);
        }
        if self.end != End::Open {
            return Err(Objection::Ended);
        }
        self.reserved = up_to;
        Ok(true)
    }

    pub(super) fn unnumbered(&mut self, total: u64) -> bool {
        let is_more = total > self.unnumbered;
        if is_more {
            self.unnumbered = total;
            self.amend();
        }
        is_more
    }

    /// A promise, a refusal, or the admission that nobody knows. A surer word replaces "nobody knows", never the other
    /// way round, and two sure words that differ are refused.
    pub(super) fn outcome(&mut self, seq: u64, class: Class) -> Result<bool, Objection> {
        self.check_issued(seq)?;
        match (self.class_of(seq), class) {
            (Some(was), now) if was == now || now == Class::Indeterminate => return Ok(false),
            (Some(Class::Indeterminate), _) => {
                self.indeterminate.remove(seq);
            }
            (Some(was), now) => return Err(Objection::Contradiction { was, now }),
            (None, _) => {}
        }
        match class {
            Class::Accepted => {
                self.promises += 1;
                self.accepted.insert(seq)
            }
            Class::Refused => self.refused.insert(seq),
            Class::Indeterminate => self.indeterminate.insert(seq),
        };
        self.amend();
        Ok(true)
    }

    /// A record that went through the spool is promised: whoever finds it there will deliver it.
    pub(super) fn moved(&mut self, seq: u64, to: Place) -> Result<bool, Objection> {
        let mut changed = self.outcome(seq, Class::Accepted)?;
        for (place, set) in [
            (Place::Waiting, &mut self.waiting),
            (Place::Parked, &mut self.parked),
            (Place::Discarded, &mut self.discarded),
            (Place::HandedOver, &mut self.handed_over),
        ] {
            changed |= if place == to { set.insert(seq) } else { set.remove(seq) };
        }
        if changed {
            self.amend();
        }
        Ok(changed)
    }

    /// Only the producer knows how far it went, so its word counts even after the epoch was taken for crashed.
    pub(super) fn close(&mut self, issued: u64) -> Result<bool, Objection> {
        if self.adopted.is_some() {
            return Err(Objection::Ended);
        }
        if let End::Closed { issued: known } = self.end {
            return if known == issued { Ok(false) } else { Err(Objection::Misclosed { known }) };
        }
        if issued > self.reserved {
            return Err(Objection::Beyond { bound: self.reserved });
        }
        let known = self.greatest_known();
        if issued < known {
            return Err(Objection::Misclosed { known });
        }
        self.end = End::Closed { issued };
        self.amend();
        Ok(true)
    }

    /// The epoch is over without a close.
    pub(super) fn crash(&mut self) -> bool {
        let was_open = self.end == End::Open;
        if was_open {
            self.end = End::Crashed;
        }
        was_open
    }

    pub(super) fn arrive(&mut self, seq: u64, is_whole: bool) -> Arrived {
        if self.adopted.as_ref().is_some_and(|adopted| !adopted.contains(seq)) {
            return Arrived::Anothers;
        }
        self.arrivals += 1;
        self.amend();
        if seq == 0 || seq > self.reserved {
            self.beyond += 1;
            return Arrived::Beyond;
        }
        match (is_whole, if is_whole { self.whole.insert(seq) } else { self.damaged.insert(seq) }) {
            (true, true) => Arrived::First,
            (true, false) => {
                self.repeats += 1;
                Arrived::Repeat
            }
            (false, is_first) => {
                self.damaged_repeats += u64::from(!is_first);
                if self.adopted.is_some() { Arrived::Unproven } else { Arrived::Damaged }
            }
        }
    }

    pub(super) fn has_arrivals(&self) -> bool {
        !self.whole.is_empty() || !self.damaged.is_empty()
    }

    /// Remembers a change after the seal.
    fn amend(&mut self) {
        if let Some(seal) = &mut self.seal {
            seal.is_amended = true;
        }
    }

    fn check_issued(&self, seq: u64) -> Result<(), Objection> {
        let bound = self.bound();
        let is_anothers = self.adopted.as_ref().is_some_and(|adopted| !adopted.contains(seq));
        if seq == 0 || seq > bound || is_anothers { Err(Objection::Beyond { bound }) } else { Ok(()) }
    }

    fn class_of(&self, seq: u64) -> Option<Class> {
        let sets = [
            (&self.accepted, Class::Accepted),
            (&self.refused, Class::Refused),
            (&self.indeterminate, Class::Indeterminate),
        ];
        sets.into_iter().find(|(set, _)| set.contains(seq)).map(|(_, class)| class)
    }

    fn greatest_known(&self) -> u64 {
        let last = [&self.accepted, &self.refused, &self.indeterminate].map(|set| set.last().unwrap_or(0));
        last.into_iter().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer() -> Issuer {
        Issuer::new("events", "node", 1).unwrap().with_block(8)
    }

    #[test]
    fn numbers_are_given_only_from_durable_blocks() {
        let mut issuer = issuer();
        assert!(issuer.issue().is_none());
        let first = issuer.reservation().unwrap();
        assert_eq!(first, Event::Reserved { stream: "events".into(), epoch: 1, up_to: 8 });
        assert!(issuer.reservation().is_none(), "one is under way");
        assert!(issuer.issue().is_none(), "it is not durable yet");
        issuer.confirm(&first, Applied::Changed);
        let given: Vec<u64> = std::iter::from_fn(|| issuer.issue()).map(|record| record.seq).collect();
        assert_eq!(given, (1..=8).collect::<Vec<_>>());
        assert_eq!((issuer.issued(), issuer.epoch()), (8, 1));
    }

    #[test]
    fn the_next_block_is_asked_for_before_the_last_one_is_used_up() {
        let mut issuer = issuer();
        let first = issuer.reservation().unwrap();
        issuer.confirm(&first, Applied::Changed);
        for _ in 0..5 {
            issuer.issue();
            assert!(issuer.reservation().is_none());
        }
        issuer.issue();
        assert_eq!(issuer.reservation(), Some(Event::Reserved { stream: "events".into(), epoch: 1, up_to: 16 }));
        issuer.give_up();
        assert!(issuer.reservation().is_some(), "the disk refused the first one");
        issuer.confirm(&first, Applied::Changed);
        assert!(issuer.reservation().is_none(), "an old confirmation does not end the one under way");
    }

    #[test]
    fn a_confirmation_for_somebody_else_reserves_nothing() {
        let mut issuer = issuer();
        issuer.confirm(&Event::Reserved { stream: "other".into(), epoch: 1, up_to: 8 }, Applied::Changed);
        issuer.confirm(&Event::Reserved { stream: "events".into(), epoch: 2, up_to: 8 }, Applied::Changed);
        issuer.confirm(&Event::Reserved { stream: "events".into(), epoch: 1, up_to: 8 }, Applied::Known);
        issuer.confirm(&Event::Began { epoch: 1 }, Applied::Changed);
        assert!(issuer.issue().is_none());
    }

    #[test]
    fn a_new_epoch_begins_at_one_and_closes_the_old() {
        let mut issuer = issuer();
        assert_eq!(issuer.roll(2), None, "nothing was reserved");
        let reserved = issuer.reservation().unwrap();
        issuer.confirm(&reserved, Applied::Changed);
        issuer.issue();
        assert_eq!(issuer.roll(3), Some(Event::Closed { stream: "events".into(), epoch: 2, issued: 1 }));
        issuer.confirm(&reserved, Applied::Changed);
        assert!(issuer.issue().is_none(), "a late confirmation belongs to the old epoch");
        assert!(issuer.reservation().is_some());
        assert!(issuer.roll(4).is_some(), "the reservation under way may become durable");
    }

    #[test]
    #[should_panic(expected = "numbers would be given twice")]
    fn an_epoch_never_comes_back() {
        issuer().roll(1);
    }

    #[test]
    fn names_are_checked_and_a_block_holds_at_least_one() {
        assert!(Issuer::new("a b", "node", 1).is_err());
        assert!(Issuer::new("a", "", 1).is_err());
        let mut issuer = issuer().with_block(0);
        assert!(matches!(issuer.reservation(), Some(Event::Reserved { up_to: 1, .. })));
    }

    #[test]
    fn a_surer_word_replaces_a_vaguer_one_only() {
        let mut account = Account::new(8);
        assert_eq!(account.outcome(1, Class::Indeterminate), Ok(true));
        assert_eq!(account.outcome(1, Class::Accepted), Ok(true));
        assert_eq!(account.outcome(1, Class::Indeterminate), Ok(false));
        assert_eq!(account.outcome(1, Class::Accepted), Ok(false));
        let contradiction = Objection::Contradiction { was: Class::Accepted, now: Class::Refused };
        assert_eq!(account.outcome(1, Class::Refused), Err(contradiction));
        assert_eq!(account.outcome(2, Class::Refused), Ok(true));
        let contradiction = Objection::Contradiction { was: Class::Refused, now: Class::Accepted };
        assert_eq!(account.moved(2, Place::Waiting), Err(contradiction));
        assert_eq!(account.outcome(0, Class::Accepted), Err(Objection::Beyond { bound: 8 }));
        assert_eq!(account.outcome(9, Class::Accepted), Err(Objection::Beyond { bound: 8 }));
        assert_eq!((account.accepted.len(), account.indeterminate.len(), account.promises), (1, 0, 1));
    }

    #[test]
    fn a_record_is_in_one_place_at_a_time() {
        let mut account = Account::new(8);
        for to in [Place::Waiting, Place::Parked, Place::Waiting, Place::Discarded, Place::Delivered] {
            assert_eq!(account.moved(3, to), Ok(true));
            assert_eq!(account.moved(3, to), Ok(false));
            let places = [&account.waiting, &account.parked, &account.discarded].map(|set| set.len());
            assert_eq!(places.iter().sum::<u64>(), u64::from(to != Place::Delivered));
        }
        assert_eq!(account.accepted.len(), 1);
    }

    #[test]
    fn a_close_fits_what_is_known() {
        let mut account = Account::new(8);
        account.outcome(5, Class::Refused).unwrap();
        assert_eq!(account.close(4), Err(Objection::Misclosed { known: 5 }));
        assert_eq!(account.close(9), Err(Objection::Beyond { bound: 8 }));
        assert!(account.crash());
        assert!(!account.crash());
        assert_eq!(account.close(6), Ok(true), "the producer knows better than the crash");
        assert_eq!(account.close(6), Ok(false));
        assert_eq!(account.close(7), Err(Objection::Misclosed { known: 6 }));
        assert_eq!(account.reserve(8), Ok(false));
        assert_eq!(account.reserve(9), Err(Objection::Ended));
        assert_eq!(account.outcome(7, Class::Accepted), Err(Objection::Beyond { bound: 6 }));
    }
}
