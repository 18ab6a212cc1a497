//! What the books add up to: exact counts, the equations they must satisfy, and the verdict.
//!
//! Every number of an account has exactly one fate (`Fate`), found by laying its sets above each other. With
//! O = promised (accepted), R = refused, I = doubtful (indeterminate), D = arrived whole at least once:
//! ```text
//! delivered = |O∩D|    recovered = |I∩D|    resurrected = |R∩D|    (refused, yet it arrived)
//! lost      = |O \ D| less what waits, is parked, was given up, or arrived damaged; only once sealed
//! phantom   = arrivals nobody here sent: unknown stream, producer or epoch, a number never given out
//! duplicated = whole arrivals beyond the first of their record      Σ(m-1)
//! corrupted  = arrivals whose tag does not fit
//! ```
//! Nothing is shed after it was accepted: there is no event for it, so that term of the equation is always 0.
//! Two equations hold or the ledger itself is wrong ([`Tally::residue`]):
//! ```text
//! accepted = delivered + waiting + parked + expired + handed_over + damaged + lost (before the seal: missing_so_far)
//! arrivals = whole first arrivals + duplicated + corrupted + unproven + phantom
//! ```
//! A damaged arrival is neither delivered nor lost. A record that arrived *only* damaged, and is kept nowhere to be
//! sent again, is one `damaged` in the first equation; `corrupted` counts all damaged arrivals, also of records that
//! arrived whole besides. A record is counted at the first of these that is true: arrived whole, waits, is parked, was
//! given up, was handed over, arrived damaged, is missing. So what arrived and still waits (its acknowledgement was
//! lost) is delivered.
//!
//! Of an account that was adopted, only the records taken in are counted, here as accepted and there as handed over.
//! What arrives with a tag that is not ours may bear the tag of the node that began the account, which is not known
//! here, or be damaged: it is `unproven`, not corrupted, and keeps the verdict from being good.
//!
//! Life cycle: open -> settling (no more numbers; arrivals on their way) -> sealed -> amended. What arrives after the
//! seal moves from `lost` to `late`; both stay visible.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::account::{Account, End, Objection, Seal};
use super::id::RecordRef;
use super::interval::{IntervalSet, sweep};
use super::{Ledger, SAMPLES_MAX, adopted_name};

/// What a ledger says about a node's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every promise was kept or is visibly kept safe, and nothing arrived that should not have.
    Balanced,
    /// It cannot be said: no sink reported, arrivals are still on their way, or writes went on without a number.
    Unknown,
    /// Something was lost, repeated, damaged or never sent by us, or the ledger contradicts itself.
    Imbalanced,
}

/// Where an account is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Numbers are given out.
    Open,
    /// No more numbers; arrivals may be on their way.
    Settling,
    /// What is missing is lost.
    Sealed,
    /// Sealed, and changed since.
    Amended,
}

/// The numbers of an account, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Records promised to a client.
    pub accepted: u64,
    /// Records refused for sure.
    pub refused: u64,
    /// Records of which nobody knows whether they were carried out.
    pub indeterminate: u64,
    /// Accepted records that arrived whole.
    pub delivered: u64,
    /// Accepted records that wait in the spool.
    pub waiting: u64,
    /// Accepted records among the dead letters.
    pub parked: u64,
    /// Accepted records given up by a person or by policy.
    pub expired: u64,
    /// Accepted records that another node has taken in. Left out of JSON while there are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub handed_over: u64,
    /// Accepted records that are nowhere. Only said once sealed and when a sink reported.
    pub lost: u64,
    /// Whole arrivals beyond the first of their record.
    pub duplicated: u64,
    /// Arrivals whose tag does not fit number and body.
    pub corrupted: u64,
    /// Indeterminate records that arrived.
    pub recovered: u64,
    /// Refused records that arrived.
    pub resurrected: u64,
    /// Arrivals that nobody here sent.
    pub phantom: u64,
    /// Accepted records that are nowhere so far. Not lost: they may be on their way.
    pub missing_so_far: u64,
    /// Records missing at the seal that arrived later. Left out of JSON while there are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late: u64,
    /// Arrivals of another node's records that cannot be judged here: their tag is not ours, or they were not taken in.
    /// Left out of JSON while there are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unproven: u64,
    /// Writes that went on without a number, so that nothing can be said of them. Left out of JSON while there are
    /// none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unnumbered: u64,
}

pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Counts {
    /// Sums stop at the greatest number: a log that claims more must not bring the reader down.
    fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.accepted, other.accepted),
            (&mut self.refused, other.refused),
            (&mut self.indeterminate, other.indeterminate),
            (&mut self.delivered, other.delivered),
            (&mut self.waiting, other.waiting),
            (&mut self.parked, other.parked),
            (&mut self.expired, other.expired),
            (&mut self.handed_over, other.handed_over),
            (&mut self.lost, other.lost),
            (&mut self.duplicated, other.duplicated),
            (&mut self.corrupted, other.corrupted),
            (&mut self.recovered, other.recovered),
            (&mut self.resurrected, other.resurrected),
            (&mut self.phantom, other.phantom),
            (&mut self.missing_so_far, other.missing_so_far),
            (&mut self.late, other.late),
            (&mut self.unproven, other.unproven),
            (&mut self.unnumbered, other.unnumbered),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// Whether something happened that no waiting can mend.
    fn shows_harm(&self) -> bool {
        [self.lost, self.duplicated, self.corrupted, self.phantom, self.resurrected].iter().any(|&count| count > 0)
    }
}

/// The numbers of one account with its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSummary {
    /// The stream.
    pub stream: String,
    /// The node that gave the numbers.
    pub producer: String,
    /// The epoch.
    pub epoch: u64,
    /// Records of this account were taken in from that node, and only they are counted here. Left out of JSON
    /// otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// Where it is in its life.
    pub state: State,
    /// Its numbers.
    #[serde(flatten)]
    pub counts: Counts,
}

impl StreamSummary {
    /// The name of the account, as in [`super::Event`] and [`Ledger::tally`].
    #[must_use]
    pub fn account(&self) -> Cow<'_, str> {
        if self.adopted { Cow::Owned(adopted_name(&self.stream, &self.producer)) } else { Cow::Borrowed(&self.stream) }
    }
}

/// What `/api/ledger` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The verdict over all streams.
    pub verdict: Verdict,
    /// Every account, by stream and epoch.
    pub streams: Vec<StreamSummary>,
    /// The sums; `phantom` also counts arrivals that belong to no stream here.
    pub totals: Counts,
}

/// The numbers of one account with those that prove them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The numbers shown.
    pub counts: Counts,
    /// Accepted records that arrived only damaged and are kept nowhere: the term of the equation for them.
    pub damaged: u64,
    /// Numbers reserved and perhaps given out whose outcome is not known yet; only while open.
    pub in_flight: u64,
    /// Numbers reserved and never given out, by the producer's own word.
    pub void: u64,
    /// By how much the equations fail. Anything but 0 is a fault of the ledger itself.
    pub residue: u64,
}

/// Something a ledger can name records for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// What [`Counts::lost`] counts.
    Lost,
    /// What [`Counts::missing_so_far`] counts.
    Missing,
    /// Arrived more than once; a record may be named more than once.
    Duplicated,
    /// Arrived damaged.
    Corrupted,
    /// Arrived though never sent.
    Phantom,
    /// Arrived though refused.
    Resurrected,
    /// Arrived though nobody knew.
    Recovered,
    /// What [`Counts::unproven`] counts, each time it was seen.
    Unproven,
}

/// What became of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Delivered,
    Waiting,
    Parked,
    Expired,
    HandedOver,
    Damaged,
    Missing,
    Refused,
    Resurrected,
    Indeterminate,
    Recovered,
    InFlight,
    Phantom,
    /// Two words that exclude each other: a fault of the ledger itself.
    Contradiction,
}

const GIVEN: u32 = 1;
const ACCEPTED: u32 = 1 << 1;
const REFUSED: u32 = 1 << 2;
const INDETERMINATE: u32 = 1 << 3;
const WAITING: u32 = 1 << 4;
const PARKED: u32 = 1 << 5;
const DISCARDED: u32 = 1 << 6;
const WHOLE: u32 = 1 << 7;
const DAMAGED: u32 = 1 << 8;
const MISSED: u32 = 1 << 9;
const HANDED_OVER: u32 = 1 << 10;
const CLASS: u32 = ACCEPTED | REFUSED | INDETERMINATE;
const PLACE: u32 = WAITING | PARKED | DISCARDED | HANDED_OVER;

/// The one place where words become a fate. `is_over`: no outcome is on its way any more.
const fn fate(mask: u32, is_over: bool) -> Fate {
    let arrived = mask & WHOLE != 0;
    match mask & (GIVEN | CLASS) {
        0 if mask & PLACE == 0 && mask & (WHOLE | DAMAGED) != 0 => Fate::Phantom,
        accepted if accepted == GIVEN | ACCEPTED => fate_of_a_promise(mask),
        _ if mask & PLACE != 0 => Fate::Contradiction,
        refused if refused == GIVEN | REFUSED => {
            if arrived {
                Fate::Resurrected
            } else {
                Fate::Refused
            }
        }
        GIVEN if !is_over => Fate::InFlight,
        doubtful if doubtful == GIVEN || doubtful == GIVEN | INDETERMINATE => {
            if arrived {
                Fate::Recovered
            } else {
                Fate::Indeterminate
            }
        }
        _ => Fate::Contradiction,
    }
}

const fn fate_of_a_promise(mask: u32) -> Fate {
    match mask & PLACE {
        0 | WAITING | PARKED | DISCARDED | HANDED_OVER if mask & WHOLE != 0 => Fate::Delivered,
        WAITING => Fate::Waiting,
        PARKED => Fate::Parked,
        DISCARDED => Fate::Expired,
        HANDED_OVER => Fate::HandedOver,
        0 if mask & DAMAGED != 0 => Fate::Damaged,
        0 => Fate::Missing,
        _ => Fate::Contradiction,
    }
}

impl Account {
    /// What is missing now is lost.
    pub(super) fn seal(&mut self) -> Result<bool, Objection> {
        if self.end == End::Open {
            return Err(Objection::StillOpen);
        }
        if self.seal.is_some() {
            return Ok(false);
        }
        let mut missing = IntervalSet::new();
        self.walk(|fate, _, first, last| {
            if fate == Fate::Missing {
                missing.insert_range(first, last);
            }
        });
        self.seal = Some(Seal { missing, is_amended: false });
        Ok(true)
    }

    fn state(&self) -> State {
        match (&self.seal, self.end) {
            (Some(Seal { is_amended: false, .. }), _) => State::Sealed,
            (Some(_), _) => State::Amended,
            (None, End::Open) => State::Open,
            (None, _) => State::Settling,
        }
    }

    /// Calls `visit(fate, words, first, last)` for each stretch of numbers with the same words about them.
    fn walk(&self, mut visit: impl FnMut(Fate, u32, u64, u64)) {
        let given = self.given();
        let nothing = IntervalSet::new();
        let missed = self.seal.as_ref().map_or(&nothing, |seal| &seal.missing);
        let sets = [
            &*given,
            &self.accepted,
            &self.refused,
            &self.indeterminate,
            &self.waiting,
            &self.parked,
            &self.discarded,
            &self.whole,
            &self.damaged,
            missed,
            &self.handed_over,
        ];
        let is_over = self.end != End::Open;
        sweep(sets, |mask, first, last| visit(fate(mask, is_over), mask, first, last));
    }

    /// `is_reported`: some sink reported something of this stream, so that silence about a record means something.
    fn tally(&self, is_reported: bool) -> Tally {
        let mut tally = Tally { void: self.reserved - self.bound(), ..Tally::default() };
        let (mut whole, mut damaged, mut void_arrivals) = (0, 0, 0);
        let may_be_lost = self.seal.is_some() && is_reported;
        self.walk(|fate, mask, first, last| {
            let count = last - first + 1;
            tally.count(fate, count, may_be_lost);
            let [is_given, is_whole, is_damaged] = [GIVEN, WHOLE, DAMAGED].map(|bit| u64::from(mask & bit != 0));
            whole += count * is_given * is_whole;
            damaged += count * is_given * is_damaged;
            void_arrivals += count * (1 - is_given) * (is_whole + is_damaged);
            if mask & MISSED != 0 && mask & (WHOLE | DAMAGED) != 0 {
                tally.counts.late += count;
            }
        });
        let counts = &mut tally.counts;
        counts.duplicated = self.repeats;
        counts.unnumbered = self.unnumbered;
        let not_ours = damaged + self.damaged_repeats;
        (counts.corrupted, counts.unproven) = if self.adopted.is_some() { (0, not_ours) } else { (not_ours, 0) };
        counts.phantom = void_arrivals + self.beyond;
        tally.residue += self.promises.abs_diff(counts.accepted);
        let arrivals = whole + counts.duplicated + counts.corrupted + counts.unproven + counts.phantom;
        tally.residue += self.arrivals.abs_diff(arrivals);
        tally
    }

    /// `None` when there is nothing to judge: nothing was promised and nothing arrived.
    fn verdict(&self, tally: &Tally, is_reported: bool) -> Option<Verdict> {
        let counts = &tally.counts;
        if tally.residue > 0 || counts.shows_harm() {
            return Some(Verdict::Imbalanced);
        }
        if counts.accepted == 0 && counts.unnumbered == 0 && !self.has_arrivals() {
            return None;
        }
        let is_told = counts.accepted == 0 || is_reported;
        let is_settled = self.state() != State::Settling && counts.missing_so_far == 0;
        let is_known = counts.unnumbered == 0 && counts.unproven == 0;
        Some(if is_told && is_settled && is_known { Verdict::Balanced } else { Verdict::Unknown })
    }
}

impl Tally {
    /// Puts `count` numbers where their fate belongs.
    fn count(&mut self, fate: Fate, count: u64, may_be_lost: bool) {
        let counts = &mut self.counts;
        match fate {
            Fate::Delivered => counts.delivered += count,
            Fate::Waiting => counts.waiting += count,
            Fate::Parked => counts.parked += count,
            Fate::Expired => counts.expired += count,
            Fate::HandedOver => counts.handed_over += count,
            Fate::Damaged => self.damaged += count,
            Fate::Missing if may_be_lost => counts.lost += count,
            Fate::Missing => counts.missing_so_far += count,
            Fate::Resurrected => counts.resurrected += count,
            Fate::Recovered => counts.recovered += count,
            Fate::InFlight => self.in_flight += count,
            Fate::Contradiction => self.residue += count,
            Fate::Refused | Fate::Indeterminate | Fate::Phantom => {}
        }
        match fate {
            Fate::Delivered
            | Fate::Waiting
            | Fate::Parked
            | Fate::Expired
            | Fate::HandedOver
            | Fate::Damaged
            | Fate::Missing => counts.accepted += count,
            Fate::Refused | Fate::Resurrected => counts.refused += count,
            Fate::Indeterminate | Fate::Recovered => counts.indeterminate += count,
            Fate::InFlight | Fate::Phantom | Fate::Contradiction => {}
        }
    }
}

impl Ledger {
    /// The whole picture. O(runs): cheap while few numbers are out of order, whatever the number of records.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut totals = Counts { phantom: self.strangers, unproven: self.unproven, ..Counts::default() };
        let mut verdicts =
            vec![(self.strangers > 0).then_some(Verdict::Imbalanced), (self.unproven > 0).then_some(Verdict::Unknown)];
        let mut streams = Vec::new();
        let reported: BTreeSet<&str> =
            self.streams.keys().map(String::as_str).filter(|s| self.is_reported(s)).collect();
        for (stream, epoch, account) in self.accounts() {
            let is_reported = reported.contains(stream);
            let tally = account.tally(is_reported);
            totals.add(&tally.counts);
            verdicts.push(account.verdict(&tally, is_reported));
            let (stream, producer) = self.parts(stream);
            let (stream, producer) = (stream.to_owned(), producer.to_owned());
            let (state, adopted) = (account.state(), account.adopted.is_some());
            streams.push(StreamSummary { stream, producer, epoch, adopted, state, counts: tally.counts });
        }
        // Where nothing was promised nothing can be said: that is not good news.
        let verdict = verdicts.into_iter().flatten().max().unwrap_or(Verdict::Unknown);
        Summary { verdict, streams, totals }
    }

    /// One account's numbers with those that prove them. `stream` as in [`super::Event`].
    #[must_use]
    pub fn tally(&self, stream: &str, epoch: u64) -> Option<Tally> {
        Some(self.streams.get(stream)?.get(&epoch)?.tally(self.is_reported(stream)))
    }

    /// Records behind a number, at most [`SAMPLES_MAX`]: a record each, or for a phantom the text that arrived.
    #[must_use]
    pub fn samples(&self, finding: Finding) -> Vec<String> {
        let named = |fate: Fate, mask: u32, may_be_lost: bool, is_adopted: bool| match finding {
            Finding::Lost => fate == Fate::Missing && may_be_lost,
            Finding::Missing => fate == Fate::Missing && !may_be_lost,
            Finding::Corrupted => mask & DAMAGED != 0 && mask & GIVEN != 0 && !is_adopted,
            Finding::Phantom => fate == Fate::Phantom,
            Finding::Resurrected => fate == Fate::Resurrected,
            Finding::Recovered => fate == Fate::Recovered,
            Finding::Duplicated | Finding::Unproven => false,
        };
        let mut samples = match finding {
            Finding::Duplicated => self.repeated.iter().map(RecordRef::to_string).collect(),
            Finding::Phantom => self.phantoms.clone(),
            Finding::Unproven => self.unproven_samples.clone(),
            _ => Vec::new(),
        };
        for (stream, epoch, account) in self.accounts() {
            let may_be_lost = account.seal.is_some() && self.is_reported(stream);
            let (stream, producer) = self.parts(stream);
            account.walk(|fate, mask, first, last| {
                let room = (SAMPLES_MAX - samples.len()) as u64;
                if room > 0 && named(fate, mask, may_be_lost, account.adopted.is_some()) {
                    let seqs = first..=last.min(first.saturating_add(room - 1));
                    samples.extend(seqs.map(|seq| format!("{stream}.{producer}.{epoch}.{seq}")));
                }
            });
        }
        samples
    }

    /// Whether any sink ever reported a record of this stream. One that never did is silent, which proves nothing.
    fn is_reported(&self, stream: &str) -> bool {
        self.streams.get(stream).is_some_and(|epochs| epochs.values().any(|account| account.has_arrivals()))
    }
}
