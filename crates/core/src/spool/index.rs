//! The index of the spool: which record is where in its life, which may go next, and which keys are known.
//!
//! Picture a shelf of numbered letters. A letter is *waiting*, *leased* to somebody who tries to deliver it, *parked*
//! (dead letter) until a person decides, or settled: *delivered* or *discarded*. Letters with the same lane (upstream
//! and order key) stand in a row in the order accepted, and only the first of a row can be leased; a letter without a
//! lane waits for nobody. Rows take turns: who became ready first goes first, so a long row does not starve a short one.
//!
//! Invariants: at most one record of a lane is leased. A lease carries a generation: an answer that comes after the
//! lease expired changes nothing. A parked record leaves its row, so a poisoned letter does not block its key for ever;
//! retried, it takes the place its number gives it, before everything accepted later. A settled record's idempotency
//! key is remembered for `remember_for`, at most `remember_max` of them, the oldest forgotten first and counted.
//!
//! Memory: about 300 bytes per live record and 150 per remembered key (plus error and reason texts, at most 256 bytes
//! each, and 1 KiB of last words per parked record). Who enqueues bounds the number of live records.
//!
//! Not here: payloads and files (`store`), retries' delays (`guard`), clocks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::{KeyHash, LaneKey};
use crate::id::RecordId;
use crate::time::{Mono, Wall};

/// Longest error or reason kept, in bytes; the rest is cut off.
pub const REASON_BYTES_MAX: usize = 256;
/// Longest last words of an upstream kept, in bytes; the rest is cut off.
pub const LAST_WORDS_BYTES_MAX: usize = 1024;

/// Where a record is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for its turn.
    Waiting,
    /// Somebody tries to deliver it.
    Leased,
    /// Dead letter: a person decides.
    Parked,
    /// The upstream took it.
    Delivered,
    /// A person gave it up.
    Discarded,
}

impl State {
    /// Its name in JSON and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Leased => "leased",
            Self::Parked => "parked",
            Self::Delivered => "delivered",
            Self::Discarded => "discarded",
        }
    }
}

/// Bounds of what is remembered of settled records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexConfig {
    /// How long the key of a settled record is remembered.
    pub remember_for: Duration,
    /// How many such keys at most.
    pub remember_max: usize,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { remember_for: Duration::from_secs(24 * 3600), remember_max: 500_000 }
    }
}

/// A record as the index takes it in. `P` is where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission<P> {
    /// Its number, higher than any before.
    pub id: RecordId,
    /// For whom.
    pub upstream: String,
    /// Its row; `None` waits for nobody.
    pub lane: Option<LaneKey>,
    /// Its idempotency key.
    pub key: KeyHash,
    /// What the request looked like.
    pub fingerprint: [u8; 32],
    /// When it was accepted.
    pub accepted: Wall,
    /// Bytes it takes.
    pub bytes: u64,
    /// Tries so far.
    pub attempts: u32,
    /// Why the last of them failed.
    pub last_error: String,
    /// Where its bytes are.
    pub place: P,
}

/// The right to deliver a record, until it expires. Given back by value: nothing is acknowledged twice.
#[must_use = "a lease that is dropped hands the record to another worker only when it expires"]
#[derive(Debug, PartialEq, Eq)]
pub struct Lease {
    id: RecordId,
    generation: u64,
    until: Mono,
}

impl Lease {
    /// Which record.
    #[must_use]
    pub const fn id(&self) -> RecordId {
        self.id
    }

    /// When it expires.
    #[must_use]
    pub const fn until(&self) -> Mono {
        self.until
    }
}

/// Why a record became a dead letter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parked {
    /// Why nobody tries any more.
    pub reason: String,
    /// What the upstream said last.
    pub last_words: String,
    /// Since when.
    pub at: Wall,
}

/// How a record ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The upstream's status if it was delivered, the reason if it was discarded.
    pub outcome: Outcome,
    /// When.
    pub at: Wall,
}

/// The two ends a record can come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream took it.
    Delivered {
        /// And answered with this.
        status: u16,
    },
    /// A person gave it up.
    Discarded {
        /// Because of this.
        reason: String,
    },
}

impl Outcome {
    /// The state of a record that ended so.
    #[must_use]
    pub const fn state(&self) -> State {
        match self {
            Self::Delivered { .. } => State::Delivered,
            Self::Discarded { .. } => State::Discarded,
        }
    }
}

/// What is known of an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The record it belongs to.
    pub id: RecordId,
    /// What the request looked like.
    pub fingerprint: [u8; 32],
    /// Where the record is in its life.
    pub state: State,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Records that wait.
    pub waiting: u64,
    /// Records somebody tries to deliver.
    pub leased: u64,
    /// Dead letters.
    pub parked: u64,
    /// Bytes of all of these.
    pub bytes: u64,
    /// When the oldest that is waiting or leased was accepted.
    pub oldest: Option<Wall>,
}

/// What is known of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View<P> {
    /// Where it is in its life.
    pub state: State,
    /// Tries so far; 0 once settled.
    pub attempts: u32,
    /// Why the last of them failed; empty once settled.
    pub last_error: String,
    /// Set for dead letters.
    pub parked: Option<Parked>,
    /// Set for settled records.
    pub settled: Option<Settled>,
    /// Where its bytes are, or were.
    pub place: P,
    /// Its idempotency key.
    pub key: KeyHash,
    /// What the request looked like.
    pub fingerprint: [u8; 32],
}

/// A record that waits or is parked was asked for and there is none with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHere {
    /// What it is instead; `None` if it is not known at all.
    pub state: Option<State>,
}

/// A dead letter was asked for and there is none with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotParked {
    /// What it is instead; `None` if it is not known at all.
    pub state: Option<State>,
}

/// The machine. See the module's text.
#[derive(Debug)]
pub struct Index<P> {
    config: IndexConfig,
    upstreams: Vec<Upstream>,
    names: BTreeMap<String, u32>,
    records: BTreeMap<RecordId, Slot<P>>,
    lanes: BTreeMap<LaneKey, Lane>,
    leases: BTreeSet<(Mono, RecordId)>,
    keys: BTreeMap<KeyHash, (RecordId, [u8; 32])>,
    remembered: BTreeMap<RecordId, Remembered<P>>,
    forget_order: BTreeSet<(Wall, RecordId)>,
    forgotten_early_total: u64,
    next_ticket: u64,
    next_generation: u64,
}

#[derive(Debug)]
struct Slot<P> {
    upstream: u32,
    lane: Option<LaneKey>,
    key: KeyHash,
    accepted: Wall,
    bytes: u64,
    attempts: u32,
    last_error: Box<str>,
    place: P,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Waiting { not_before: Mono, listed: Listed },
    Leased { until: Mono, generation: u64 },
    Parked(Box<Parked>),
}

/// Whether a waiting record may be leased next: only the first of a lane is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    No,
    Ready(u64),
    Delayed,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<RecordId>,
    leased: Option<RecordId>,
    listed: Option<RecordId>,
}

#[derive(Debug, Default)]
struct Upstream {
    ready: BTreeMap<u64, RecordId>,
    delayed: BTreeSet<(Mono, RecordId)>,
    pending: BTreeSet<RecordId>,
    parked: BTreeSet<RecordId>,
    leased: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Remembered<P> {
    key: KeyHash,
    settled: Settled,
    place: P,
}

impl<P: Copy> Index<P> {
    /// Empty.
    #[must_use]
    pub fn new(config: IndexConfig) -> Self {
        Self {
            config,
            upstreams: Vec::new(),
            names: BTreeMap::new(),
            records: BTreeMap::new(),
            lanes: BTreeMap::new(),
            leases: BTreeSet::new(),
            keys: BTreeMap::new(),
            remembered: BTreeMap::new(),
            forget_order: BTreeSet::new(),
            forgotten_early_total: 0,
            next_ticket: 0,
            next_generation: 0,
        }
    }

    /// Takes a record in; it waits at the end of its row.
    ///
    /// # Panics
    /// If its number or its key is known already: ask [`Self::lookup`] first.
    pub fn enqueue(&mut self, new: Admission<P>) {
        let known = self.keys.insert(new.key, (new.id, new.fingerprint));
        assert!(known.is_none(), "record {} claims the key of another record", new.id);
        let upstream = self.upstream_index(&new.upstream);
        let phase = Phase::Waiting { not_before: Mono::ZERO, listed: Listed::No };
        let slot = Slot {
            upstream,
            lane: new.lane,
            key: new.key,
            accepted: new.accepted,
            bytes: new.bytes,
            attempts: new.attempts,
            last_error: cut(&new.last_error, REASON_BYTES_MAX).into(),
            place: new.place,
            phase,
        };
        self.upstreams[upstream as usize].bytes += slot.bytes;
        let before = self.records.insert(new.id, slot);
        assert!(before.is_none(), "record {} exists already", new.id);
        self.put_in(new.id);
    }

    /// Undoes [`Self::enqueue`] of a record that could not be kept: its number and key are free again.
    pub fn withdraw(&mut self, id: RecordId) {
        if self.records.contains_key(&id) {
            let slot = self.remove(id);
            self.unclaim(slot.key, id);
        }
    }

    /// Hands out up to `max` records that may go now, the ones that became ready first.
    pub fn lease(&mut self, upstream: &str, max: usize, now: Mono, lease_for: Duration) -> Vec<Lease> {
        self.expire(now);
        let Some(&upstream) = self.names.get(upstream) else { return Vec::new() };
        self.promote(upstream, now);
        let until = now + lease_for;
        let mut leases = Vec::new();
        while leases.len() < max
            && let Some((_, &id)) = self.upstreams[upstream as usize].ready.first_key_value()
        {
            let generation = self.next_generation;
            self.next_generation += 1;
            self.move_to(id, Phase::Leased { until, generation });
            leases.push(Lease { id, generation, until });
        }
        leases
    }

    /// The upstream took it. False (and nothing changes) if the lease is no longer the record's.
    pub fn ack(&mut self, lease: &Lease, status: u16, at: Wall) -> bool {
        self.holds(lease) && self.settle(lease.id, Settled { outcome: Outcome::Delivered { status }, at })
    }

    /// The try failed; the record waits again, and not before a moment. False if the lease is no longer the record's.
    pub fn nack(&mut self, lease: &Lease, not_before: Mono, error: &str) -> bool {
        if !self.holds(lease) {
            return false;
        }
        self.note_failure(lease.id, error);
        self.move_to(lease.id, Phase::Waiting { not_before, listed: Listed::No });
        true
    }

    /// Gives a lease back without a try: nothing is counted. False if the lease is no longer the record's.
    pub fn release(&mut self, lease: &Lease) -> bool {
        if !self.holds(lease) {
            return false;
        }
        self.move_to(lease.id, Phase::Waiting { not_before: Mono::ZERO, listed: Listed::No });
        true
    }

    /// Makes it a dead letter after a last failed try; its row goes on. False if the lease is no longer the record's.
    pub fn park(&mut self, lease: &Lease, parked: Parked) -> bool {
        if !self.holds(lease) {
            return false;
        }
        self.note_failure(lease.id, &parked.reason);
        self.park_now(lease.id, parked)
    }

    /// A dead letter waits again, in its old place of its row, to be tried at once.
    ///
    /// # Errors
    /// [`NotParked`].
    pub fn retry(&mut self, id: RecordId) -> Result<(), NotParked> {
        self.check_parked(id)?;
        self.move_to(id, Phase::Waiting { not_before: Mono::ZERO, listed: Listed::No });
        Ok(())
    }

    /// A dead letter, or a record that waits, is given up.
    ///
    /// # Errors
    /// [`NotHere`]: it is on its way right now, or has left.
    pub fn discard(&mut self, id: RecordId, reason: &str, at: Wall) -> Result<(), NotHere> {
        match self.state(id) {
            Some(State::Waiting | State::Parked) => {}
            state => return Err(NotHere { state }),
        }
        self.settle(id, Settled { outcome: Outcome::Discarded { reason: reason.into() }, at });
        Ok(())
    }

    /// What is known of a key: records that live, and settled ones within the window.
    #[must_use]
    pub fn lookup(&self, key: KeyHash) -> Option<Known> {
        let (id, fingerprint) = *self.keys.get(&key)?;
        Some(Known { id, fingerprint, state: self.state(id)? })
    }

    /// Where a record is in its life; `None` if it never was or is forgotten.
    #[must_use]
    pub fn state(&self, id: RecordId) -> Option<State> {
        if let Some(remembered) = self.remembered.get(&id) {
            return Some(remembered.settled.outcome.state());
        }
        Some(match self.records.get(&id)?.phase {
            Phase::Waiting { .. } => State::Waiting,
            Phase::Leased { .. } => State::Leased,
            Phase::Parked(_) => State::Parked,
        })
    }

    /// What a try needs to know of a live record: where its bytes are, tries so far, why the last one failed.
    #[must_use]
    pub fn live(&self, id: RecordId) -> Option<(P, u32, &str)> {
        self.records.get(&id).map(|slot| (slot.place, slot.attempts, &*slot.last_error))
    }

    /// Everything known of a record.
    #[must_use]
    pub fn view(&self, id: RecordId) -> Option<View<P>> {
        let state = self.state(id)?;
        let fingerprint_of = |key: &KeyHash| self.keys.get(key).map_or([0; 32], |(_, fingerprint)| *fingerprint);
        if let Some(slot) = self.records.get(&id) {
            let parked = if let Phase::Parked(parked) = &slot.phase { Some((**parked).clone()) } else { None };
            return Some(View {
                state,
                attempts: slot.attempts,
                last_error: slot.last_error.to_string(),
                parked,
                settled: None,
                place: slot.place,
                key: slot.key,
                fingerprint: fingerprint_of(&slot.key),
            });
        }
        let remembered = self.remembered.get(&id)?;
        Some(View {
            state,
            attempts: 0,
            last_error: String::new(),
            parked: None,
            settled: Some(remembered.settled.clone()),
            place: remembered.place,
            key: remembered.key,
            fingerprint: fingerprint_of(&remembered.key),
        })
    }

    /// The first `limit` records in a state, or of all that have not left, oldest first.
    #[must_use]
    pub fn list(&self, state: impl Into<Option<State>>, limit: usize) -> Vec<RecordId> {
        let Some(state) = state.into() else { return self.records.keys().copied().take(limit).collect() };
        let in_state = |id: &RecordId| self.state(*id) == Some(state);
        match state {
            State::Parked => {
                let mut parked: Vec<RecordId> =
                    self.upstreams.iter().flat_map(|upstream| upstream.parked.iter().take(limit).copied()).collect();
                parked.sort_unstable();
                parked.truncate(limit);
                parked
            }
            State::Waiting | State::Leased => self.records.keys().copied().filter(in_state).take(limit).collect(),
            State::Delivered | State::Discarded => {
                self.remembered.keys().copied().filter(in_state).take(limit).collect()
            }
        }
    }

    /// How much there is for one upstream.
    #[must_use]
    pub fn depth(&self, upstream: &str) -> Depth {
        self.names.get(upstream).map_or_else(Depth::default, |&index| self.depth_at(index))
    }

    /// How much there is in all.
    #[must_use]
    pub fn depth_total(&self) -> Depth {
        let mut total = Depth::default();
        for depth in self.depths().map(|(_, depth)| depth) {
            total.waiting += depth.waiting;
            total.leased += depth.leased;
            total.parked += depth.parked;
            total.bytes += depth.bytes;
            total.oldest = [total.oldest, depth.oldest].into_iter().flatten().min();
        }
        total
    }

    /// Every upstream that ever had a record, by name.
    pub fn depths(&self) -> impl Iterator<Item = (&str, Depth)> {
        self.names.iter().map(|(name, &index)| (name.as_str(), self.depth_at(index)))
    }

    /// True while a record of this lane is waiting or leased: a newer request must not overtake it.
    #[must_use]
    pub fn holds_key(&self, lane: LaneKey) -> bool {
        self.lanes.contains_key(&lane)
    }

    /// The lane of a live record.
    #[must_use]
    pub fn lane(&self, id: RecordId) -> Option<LaneKey> {
        self.records.get(&id)?.lane
    }

    /// How long until something more can be leased for an upstream: zero if now, `None` if nothing waits.
    #[must_use]
    pub fn ready_in(&self, upstream: &str, now: Mono) -> Option<Duration> {
        let upstream = &self.upstreams[*self.names.get(upstream)? as usize];
        if !upstream.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let delayed = upstream.delayed.first().map(|(not_before, _)| *not_before);
        let expiry = if upstream.leased > 0 { self.leases.first().map(|(until, _)| *until) } else { None };
        [delayed, expiry].into_iter().flatten().min().map(|at| now.until(at))
    }

    /// Leases that have run out; their records wait again. A try that may have happened is counted as one.
    pub fn expire(&mut self, now: Mono) {
        while let Some(&(until, id)) = self.leases.first()
            && until <= now
        {
            self.note_failure(id, "the lease expired before anybody said what became of it");
            self.move_to(id, Phase::Waiting { not_before: Mono::ZERO, listed: Listed::No });
        }
    }

    /// Forgets keys of settled records that are out of the window or too many. Returns where their bytes were.
    pub fn forget(&mut self, now: Wall) -> Vec<P> {
        let mut places = Vec::new();
        while let Some(&(at, id)) = self.forget_order.first() {
            let outdated = now.since(at) > self.config.remember_for;
            if !outdated && self.remembered.len() <= self.config.remember_max {
                break;
            }
            self.forgotten_early_total += u64::from(!outdated);
            self.forget_order.pop_first();
            let remembered = self.remembered.remove(&id).expect("remembered as long as it is in the order");
            self.unclaim(remembered.key, id);
            places.push(remembered.place);
        }
        places
    }

    /// Keys forgotten before their time because there were too many.
    #[must_use]
    pub const fn forgotten_early_total(&self) -> u64 {
        self.forgotten_early_total
    }

    /// Keys of settled records that are remembered.
    #[must_use]
    pub fn remembered_len(&self) -> usize {
        self.remembered.len()
    }

    /// Where the bytes of a record are, live or settled.
    #[must_use]
    pub fn place(&self, id: RecordId) -> Option<P> {
        self.records
            .get(&id)
            .map(|slot| slot.place)
            .or_else(|| self.remembered.get(&id).map(|remembered| remembered.place))
    }

    /// The bytes of a record are somewhere else now. Returns where they were.
    pub fn set_place(&mut self, id: RecordId, place: P) -> Option<P> {
        let current = match self.records.get_mut(&id) {
            Some(slot) => &mut slot.place,
            None => &mut self.remembered.get_mut(&id)?.place,
        };
        Some(std::mem::replace(current, place))
    }

    /// Replays an enqueue. Whoever had its key before was forgotten since, or its end is lost: the newer one has it.
    pub fn replay_enqueue(&mut self, new: Admission<P>) {
        if let Some((before, _)) = self.keys.remove(&new.key)
            && let Some(remembered) = self.remembered.remove(&before)
        {
            self.forget_order.remove(&(remembered.settled.at, before));
        }
        self.enqueue(new);
    }

    /// Every record's and every remembered key's place; true for those that are settled.
    pub fn places(&self) -> impl Iterator<Item = (P, bool)> {
        let live = self.records.values().map(|slot| (slot.place, false));
        live.chain(self.remembered.values().map(|remembered| (remembered.place, true)))
    }

    /// Lanes of all records that are waiting or leased, once per record.
    pub fn held_lanes(&self) -> impl Iterator<Item = LaneKey> {
        let held = self.records.values().filter(|slot| !matches!(slot.phase, Phase::Parked(_)));
        held.filter_map(|slot| slot.lane)
    }

    /// Replays a failed try.
    pub fn replay_failed(&mut self, id: RecordId, attempts: u32, error: &str) {
        if let Some(slot) = self.records.get_mut(&id) {
            slot.attempts = attempts;
            slot.last_error = cut(error, REASON_BYTES_MAX).into();
        }
    }

    /// Replays that a record became a dead letter, whoever held it.
    pub fn replay_parked(&mut self, id: RecordId, parked: Parked) -> bool {
        self.records.contains_key(&id) && self.park_now(id, parked)
    }

    /// Ends a live record, whoever held it. Its key is remembered. False if there is none.
    pub fn settle(&mut self, id: RecordId, mut settled: Settled) -> bool {
        if !self.records.contains_key(&id) {
            return false;
        }
        if let Outcome::Discarded { reason } = &mut settled.outcome {
            *reason = cut(reason, REASON_BYTES_MAX).into();
        }
        let slot = self.remove(id);
        self.remember(id, slot.key, settled, slot.place);
        true
    }

    /// Replays a settled record of which only the key is left. Nothing happens if the key or number is known already.
    pub fn replay_remembered(&mut self, id: RecordId, key: KeyHash, fingerprint: [u8; 32], settled: Settled, place: P) {
        if self.keys.contains_key(&key) || self.state(id).is_some() {
            return;
        }
        self.keys.insert(key, (id, fingerprint));
        self.remember(id, key, settled, place);
    }

    fn unclaim(&mut self, key: KeyHash, id: RecordId) {
        if self.keys.get(&key).is_some_and(|(owner, _)| *owner == id) {
            self.keys.remove(&key);
        }
    }

    fn remember(&mut self, id: RecordId, key: KeyHash, settled: Settled, place: P) {
        self.forget_order.insert((settled.at, id));
        self.remembered.insert(id, Remembered { key, settled, place });
    }

    fn upstream_index(&mut self, name: &str) -> u32 {
        if let Some(&index) = self.names.get(name) {
            return index;
        }
        let index = u32::try_from(self.upstreams.len()).expect("more than four billion upstreams");
        self.upstreams.push(Upstream::default());
        self.names.insert(name.into(), index);
        index
    }

    fn depth_at(&self, index: u32) -> Depth {
        let upstream = &self.upstreams[index as usize];
        Depth {
            waiting: upstream.pending.len() as u64 - upstream.leased,
            leased: upstream.leased,
            parked: upstream.parked.len() as u64,
            bytes: upstream.bytes,
            oldest: upstream.pending.first().map(|id| self.slot(*id).accepted),
        }
    }

    fn slot(&self, id: RecordId) -> &Slot<P> {
        self.records.get(&id).expect("a record that is listed exists")
    }

    fn slot_mut(&mut self, id: RecordId) -> &mut Slot<P> {
        self.records.get_mut(&id).expect("a record that is listed exists")
    }

    fn holds(&self, lease: &Lease) -> bool {
        self.records.get(&lease.id).is_some_and(
            |slot| matches!(slot.phase, Phase::Leased { generation, .. } if generation == lease.generation),
        )
    }

    fn check_parked(&self, id: RecordId) -> Result<(), NotParked> {
        match self.state(id) {
            Some(State::Parked) => Ok(()),
            state => Err(NotParked { state }),
        }
    }

    fn note_failure(&mut self, id: RecordId, error: &str) {
        let slot = self.slot_mut(id);
        slot.attempts = slot.attempts.saturating_add(1);
        slot.last_error = cut(error, REASON_BYTES_MAX).into();
    }

    fn park_now(&mut self, id: RecordId, parked: Parked) -> bool {
        let parked = Parked {
            reason: cut(&parked.reason, REASON_BYTES_MAX).into(),
            last_words: cut(&parked.last_words, LAST_WORDS_BYTES_MAX).into(),
            at: parked.at,
        };
        self.move_to(id, Phase::Parked(Box::new(parked)));
        true
    }

    /// The delayed records of an upstream whose time has come get in line.
    fn promote(&mut self, upstream: u32, now: Mono) {
        while let Some(&(not_before, id)) = self.upstreams[upstream as usize].delayed.first()
            && not_before <= now
        {
            self.unlist(id);
            self.slot_mut(id).phase = Phase::Waiting { not_before: Mono::ZERO, listed: Listed::No };
            self.list_record(id);
        }
    }

    fn move_to(&mut self, id: RecordId, phase: Phase) {
        self.take_out(id);
        self.slot_mut(id).phase = phase;
        self.put_in(id);
    }

    fn remove(&mut self, id: RecordId) -> Slot<P> {
        self.take_out(id);
        let slot = self.records.remove(&id).expect("the caller looked");
        self.upstreams[slot.upstream as usize].bytes -= slot.bytes;
        if let Some(lane) = slot.lane {
            self.relist(lane);
        }
        slot
    }

    /// Takes a record off every list its phase put it on; its lane is listed anew by whoever called.
    fn take_out(&mut self, id: RecordId) {
        self.unlist(id);
        let slot = self.records.get(&id).expect("a record that is listed exists");
        let upstream = &mut self.upstreams[slot.upstream as usize];
        let lane = slot.lane.and_then(|lane| self.lanes.get_mut(&lane));
        match slot.phase {
            Phase::Waiting { .. } => {
                upstream.pending.remove(&id);
                if let Some(lane) = lane {
                    lane.remove(id);
                }
            }
            Phase::Leased { until, .. } => {
                upstream.pending.remove(&id);
                upstream.leased -= 1;
                self.leases.remove(&(until, id));
                if let Some(lane) = lane {
                    lane.leased = None;
                }
            }
            Phase::Parked(_) => {
                upstream.parked.remove(&id);
            }
        }
    }

    /// Puts a record on the lists its phase asks for.
    fn put_in(&mut self, id: RecordId) {
        let slot = self.records.get(&id).expect("a record that is listed exists");
        let upstream = &mut self.upstreams[slot.upstream as usize];
        match slot.phase {
            Phase::Waiting { .. } => {
                upstream.pending.insert(id);
                match slot.lane {
                    Some(lane) => self.lanes.entry(lane).or_default().insert(id),
                    None => self.list_record(id),
                }
            }
            Phase::Leased { until, .. } => {
                upstream.pending.insert(id);
                upstream.leased += 1;
                self.leases.insert((until, id));
                if let Some(lane) = slot.lane {
                    self.lanes.entry(lane).or_default().leased = Some(id);
                }
            }
            Phase::Parked(_) => {
                upstream.parked.insert(id);
            }
        }
        if let Some(lane) = self.slot(id).lane {
            self.relist(lane);
        }
    }

    /// Makes the first of a lane, and only it, a candidate; nobody while one of the lane is leased.
    fn relist(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get(&key) else { return };
        let wanted = if lane.leased.is_some() { None } else { lane.waiting.front().copied() };
        if lane.leased.is_none() && wanted.is_none() {
            self.lanes.remove(&key);
            return;
        }
        let listed = lane.listed;
        if listed == wanted {
            return;
        }
        if let Some(listed) = listed {
            self.unlist(listed);
        }
        if let Some(wanted) = wanted {
            self.list_record(wanted);
        }
    }

    fn list_record(&mut self, id: RecordId) {
        let ticket = self.next_ticket;
        let slot = self.records.get_mut(&id).expect("a record that is listed exists");
        let upstream = &mut self.upstreams[slot.upstream as usize];
        let Phase::Waiting { not_before, listed } = &mut slot.phase else {
            unreachable!("only waiting records are listed")
        };
        if *not_before > Mono::ZERO {
            *listed = Listed::Delayed;
            upstream.delayed.insert((*not_before, id));
        } else {
            *listed = Listed::Ready(ticket);
            upstream.ready.insert(ticket, id);
            self.next_ticket += 1;
        }
        if let Some(lane) = slot.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            lane.listed = Some(id);
        }
    }

    fn unlist(&mut self, id: RecordId) {
        let slot = self.records.get_mut(&id).expect("a record that is listed exists");
        let Phase::Waiting { not_before, listed } = &mut slot.phase else { return };
        let upstream = &mut self.upstreams[slot.upstream as usize];
        match std::mem::replace(listed, Listed::No) {
            Listed::No => return,
            Listed::Ready(ticket) => {
                upstream.ready.remove(&ticket);
            }
            Listed::Delayed => {
                upstream.delayed.remove(&(*not_before, id));
            }
        }
        if let Some(lane) = slot.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            lane.listed = None;
        }
    }
}

impl Lane {
    /// In the order accepted: nearly always at one of the ends.
    fn insert(&mut self, id: RecordId) {
        let at = self.waiting.partition_point(|&other| other < id);
        self.waiting.insert(at, id);
    }

    fn remove(&mut self, id: RecordId) {
        if let Ok(at) = self.waiting.binary_search(&id) {
            self.waiting.remove(at);
        }
    }
}

/// The first `max` bytes of a text, never half a character.
#[must_use]
pub fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests;
