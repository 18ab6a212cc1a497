//! The index of the spool: which record is where in its life, which may go next, and which keys are known.
//!
//! Picture a shelf of numbered letters. A letter is *waiting*, *leased* to somebody who tries to deliver it, *parked*
//! (dead letter) until a person decides, or settled: *delivered* or *discarded*. Letters with the same lane (upstream
//! and order key) stand in a row in the order accepted, and only the first of a row can be leased; a letter without a
//! lane waits for nobody. Rows take turns: who became ready first goes first, so a long row does not starve a short
//! one.
//!
//! Invariants: at most one record of a lane is leased. A lease carries a generation: an answer that comes after the
//! lease expired changes nothing. A parked record leaves its row, so a poisoned letter does not block its key for ever;
//! retried, it takes the place its number gives it, before everything accepted later, and expires no more. Who is ready
//! goes by priority first; one lease in eight goes to those who would otherwise wait for ever. A settled record's
//! idempotency key is remembered for `remember_for`, at most `remember_max` of them, the oldest forgotten first and
//! counted.
//!
//! Memory: a waiting record takes 80 bytes and its entries in two hash tables, 97 bytes in all at ten million (91 to
//! 104, as the tables are fuller or emptier). To that come about 50 bytes for every order key with a record waiting or
//! leased, 40 for a record that can expire, 100 while a record waits out a delay or is leased, about 150 and the texts
//! for a dead letter, and 150 for a remembered key, and about 20 bytes for every second in which a record was accepted
//! that waits. Memory is given back as records leave. Who enqueues bounds their number.
//!
//! Not here: payloads and files (`store`), retries' delays (`guard`), clocks.

mod ids;
mod life;
mod line;
mod slab;
mod table;
mod texts;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::time::Duration;

pub use self::life::{
    Admission, Depth, Footprint, IndexConfig, Known, LAST_WORDS_BYTES_MAX, Lease, NotHere, NotParked, Outcome, Parked,
    REASON_BYTES_MAX, Settled, State, View, cut,
};

use self::ids::IdSet;
use self::line::{Line, Links, Members, NONE};
use self::slab::Slab;
use self::table::{Table, fold};
use self::texts::{TextId, Texts, Tries, TriesId};
use super::record::{FingerprintHalf, KeyHash, LaneKey, Priority};
use super::replica::{Look, Stage};
use crate::id::RecordId;
use crate::time::{Mono, Wall};

/// The top bit of a number: a lane among those who are ready, a settled record among those who are known.
const OTHER: u32 = 1 << 31;

/// Every so many leases of an upstream, those of lower priority go first.
const TURNS: u64 = 8;

/// The machine. See the module's text.
#[derive(Debug)]
pub struct Index<P> {
    config: IndexConfig,
    upstreams: Vec<Upstream>,
    names: BTreeMap<String, u16>,
    origins: Vec<Origin>,
    live: Slab<Slot<P>>,
    remembered: Slab<Remembered<P>>,
    lanes: Slab<Lane>,
    /// Of every live and every remembered record, the latter marked [`OTHER`].
    ids: Table,
    /// Of every record that has its key: all but those whose key a newer one took in a replay.
    keys: Table,
    lane_keys: Table,
    tries: Tries,
    reasons: Texts,
    /// Before when a record must not go, until when it is leased: of those for whom there is such a moment.
    dues: BTreeMap<u32, Mono>,
    leases: BTreeMap<(Mono, RecordId), Leasehold>,
    forget_order: BTreeMap<(Wall, RecordId), u32>,
    forgotten_early_total: u64,
    next_generation: u64,
}

/// A live record. There may be ten million: every byte counts.
#[derive(Clone, Copy, Debug)]
struct Slot<P> {
    id: RecordId,
    key: KeyHash,
    fingerprint: FingerprintHalf,
    brief: Brief,
    place: P,
    tries: TriesId,
    /// Seconds since 1970; 0 for never.
    expires: u32,
    /// [`NONE`] for a record without a lane, and for a dead letter.
    lane: u32,
    /// In its lane's row or, without a lane, among those who are ready.
    links: Links,
}

/// When a record was accepted (42 bits of milliseconds, to the year 2109), whence (16 bits), its priority (2 bits) and
/// its phase (4 bits).
#[derive(Clone, Copy, Debug)]
struct Brief(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// In its row, behind another or behind one that is leased.
    Waiting,
    /// May be leased next: without a lane, or the first of one.
    Ready,
    /// Would be ready, if its time had come.
    Delayed,
    Leased,
    Parked,
}

#[derive(Clone, Copy, Debug)]
struct Lane {
    key: LaneKey,
    row: Line,
    /// Who was put into the middle of the row last: the next one that is put there often belongs behind it.
    finger: u32,
    leased: u32,
    /// The record of this lane that is ready or delayed.
    listed: u32,
    /// Among those who are ready.
    links: Links,
}

#[derive(Clone, Copy, Debug)]
struct Leasehold {
    slot: u32,
    generation: u64,
}

/// An upstream and a route by which records for it came.
#[derive(Debug)]
struct Origin {
    upstream: u16,
    /// Of its records that are live.
    bytes: u64,
}

#[derive(Debug)]
struct Upstream {
    /// Origins by the route's name.
    routes: BTreeMap<String, u16>,
    /// Records without a lane, and lanes marked [`OTHER`], by priority.
    ready: [Line; Priority::ALL.len()],
    /// Leases so far: whose turn it is.
    turn: u64,
    /// By second.
    expiries: BTreeMap<(u32, RecordId), u32>,
    delayed: BTreeMap<(Mono, RecordId), u32>,
    /// Waiting or leased.
    pending: IdSet,
    /// How many of them were accepted in a second, by the second: numbers do not tell, for a record that was adopted
    /// got a late one, and clocks go back.
    ages: BTreeMap<u64, u32>,
    parked: BTreeMap<RecordId, DeadLetter>,
    waiting: u64,
    leased: u64,
    bytes: u64,
}

#[derive(Debug)]
struct DeadLetter {
    parked: Parked,
    lane: Option<LaneKey>,
}

#[derive(Clone, Copy, Debug)]
struct Remembered<P> {
    id: RecordId,
    key: KeyHash,
    fingerprint: FingerprintHalf,
    at: Wall,
    place: P,
    end: End,
}

/// An [`Outcome`] whose reason is kept elsewhere.
#[derive(Clone, Copy, Debug)]
enum End {
    Delivered(u16),
    Discarded(TextId),
    Expired,
    HandedOver(TextId),
}

impl<P: Footprint> Index<P> {
    /// Empty.
    #[must_use]
    pub fn new(config: IndexConfig) -> Self {
        Self {
            config,
            upstreams: Vec::new(),
            names: BTreeMap::new(),
            origins: Vec::new(),
            live: Slab::new(),
            remembered: Slab::new(),
            lanes: Slab::new(),
            ids: Table::new(),
            keys: Table::new(),
            lane_keys: Table::new(),
            tries: Tries::default(),
            reasons: Texts::default(),
            dues: BTreeMap::new(),
            leases: BTreeMap::new(),
            forget_order: BTreeMap::new(),
            forgotten_early_total: 0,
            next_generation: 0,
        }
    }

    /// Takes a record in; it waits at the end of its row.
    ///
    /// # Panics
    /// If its number or its key is known already: ask [`Self::lookup`] first.
    pub fn enqueue(&mut self, new: Admission<'_, P>) {
        assert!(self.find_key(new.key).is_none(), "record {} claims the key of another record", new.id);
        assert!(self.find(new.id).is_none(), "record {} exists already", new.id);
        let origin = self.origin(new.upstream, new.route);
        let expires = new.terms.expires.map_or(0, seconds_up);
        let slot = self.live.insert(Slot {
            id: new.id,
            key: new.key,
            fingerprint: new.fingerprint,
            brief: Brief::new(new.accepted, origin, new.terms.priority),
            place: new.place,
            tries: self.tries.keep(new.attempts, cut(new.last_error, REASON_BYTES_MAX)),
            expires,
            lane: NONE,
            links: Links::ALONE,
        });
        let (live, remembered, seed) = (&self.live, &self.remembered, self.config.hash_seed);
        self.ids.insert(hash_id(new.id, seed), slot, |number| hash_id(id_of(live, remembered, number), seed));
        self.keys.insert(hash_key(new.key, seed), slot, |number| hash_key(key_of(live, remembered, number), seed));
        let upstream = self.count_bytes(origin, new.place.bytes(), 0);
        if expires > 0 {
            upstream.expiries.insert((expires, new.id), slot);
        }
        self.wait(slot, new.lane, Mono::ZERO);
    }

    /// Undoes [`Self::enqueue`] of a record that could not be kept: its number and key are free again.
    pub fn withdraw(&mut self, id: RecordId) {
        if let Some(slot) = self.find_live(id) {
            let Slot { key, .. } = self.remove(slot);
            self.unclaim(key, slot);
            self.forget_id(id, slot);
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
            && let Some(member) = self.upstreams[usize::from(upstream)].next_ready()
        {
            let slot = if member & OTHER == 0 { member } else { self.lanes[member & !OTHER].listed };
            leases.push(self.hand_out(slot, until));
        }
        leases
    }

    /// The upstream took it. False (and nothing changes) if the lease is no longer the record's.
    pub fn ack(&mut self, lease: &Lease, status: u16, at: Wall) -> bool {
        let Some(slot) = self.holder(lease) else { return false };
        self.settle_now(slot, End::Delivered(status), at);
        true
    }

    /// The try failed; the record waits again, and not before a moment. False if the lease is no longer the record's.
    pub fn nack(&mut self, lease: &Lease, not_before: Mono, error: &str) -> bool {
        let Some(slot) = self.holder(lease) else { return false };
        self.note_failure(slot, error);
        self.wait_again(slot, not_before);
        true
    }

    /// Gives a lease back without a try: nothing is counted. False if the lease is no longer the record's.
    pub fn release(&mut self, lease: &Lease) -> bool {
        let Some(slot) = self.holder(lease) else { return false };
        self.wait_again(slot, Mono::ZERO);
        true
    }

    /// Makes it a dead letter after a last failed try; its row goes on. False if the lease is no longer the record's.
    pub fn park(&mut self, lease: &Lease, parked: Parked) -> bool {
        let Some(slot) = self.holder(lease) else { return false };
        self.note_failure(slot, &parked.reason);
        self.park_now(slot, parked);
        true
    }

    /// A dead letter waits again, in its old place of its row, to be tried at once.
    ///
    /// # Errors
    /// [`NotParked`].
    pub fn retry(&mut self, id: RecordId) -> Result<(), NotParked> {
        match self.state(id) {
            Some(State::Parked) => {}
            state => return Err(NotParked { state }),
        }
        let slot = self.find_live(id).expect("a dead letter is live");
        self.wait_again(slot, Mono::ZERO);
        Ok(())
    }

    /// A dead letter, or a record that waits, is not to be delivered from here: it is given up, or another's.
    ///
    /// # Errors
    /// [`NotHere`]: it is on its way right now, or has left.
    pub fn give_up(&mut self, id: RecordId, settled: Settled) -> Result<(), NotHere> {
        match self.state(id) {
            Some(State::Waiting | State::Parked) => {}
            state => return Err(NotHere { state }),
        }
        self.settle(id, settled);
        Ok(())
    }

    /// Up to `max` records of an upstream that wait and whose time is over, the first to expire first. To be settled as
    /// [`Outcome::Expired`].
    #[must_use]
    pub fn overdue(&self, upstream: &str, now: Wall, max: usize) -> Vec<RecordId> {
        let Some(&upstream) = self.names.get(upstream) else { return Vec::new() };
        let last = u32::try_from(now.as_millis() / 1000).unwrap_or(u32::MAX);
        let over = self.upstreams[usize::from(upstream)].expiries.range(..=(last, RecordId(u64::MAX)));
        let waiting = over.filter(|&(_, &slot)| self.state_of(slot) == State::Waiting);
        waiting.map(|((_, id), _)| *id).take(max).collect()
    }

    /// Bytes of the live records for an upstream that came by a route.
    #[must_use]
    pub fn route_bytes(&self, upstream: &str, route: &str) -> u64 {
        let upstream = self.names.get(upstream).map(|&index| &self.upstreams[usize::from(index)]);
        let origin = upstream.and_then(|upstream| upstream.routes.get(route));
        origin.map_or(0, |&origin| self.origins[usize::from(origin)].bytes)
    }

    /// What is known of a key: records that live, and settled ones within the window.
    #[must_use]
    pub fn lookup(&self, key: KeyHash) -> Option<Known> {
        let number = self.find_key(key)?;
        let (id, fingerprint) = if number & OTHER == 0 {
            let slot = &self.live[number];
            (slot.id, slot.fingerprint)
        } else {
            let remembered = &self.remembered[number & !OTHER];
            (remembered.id, remembered.fingerprint)
        };
        Some(Known { id, fingerprint, state: self.state_of(number) })
    }

    /// Where a record is in its life; `None` if it never was or is forgotten.
    #[must_use]
    pub fn state(&self, id: RecordId) -> Option<State> {
        self.find(id).map(|number| self.state_of(number))
    }

    /// What a try needs to know of a live record: where its bytes are, tries so far, why the last one failed.
    #[must_use]
    pub fn live(&self, id: RecordId) -> Option<(P, u32, &str)> {
        let slot = &self.live[self.find_live(id)?];
        let (attempts, last_error) = self.tries.get(slot.tries);
        Some((slot.place, attempts, last_error))
    }

    /// Everything known of a record.
    #[must_use]
    pub fn view(&self, id: RecordId) -> Option<View<P>> {
        let number = self.find(id)?;
        let state = self.state_of(number);
        if number & OTHER != 0 {
            let Remembered { key, at, place, end, .. } = self.remembered[number & !OTHER];
            let settled = Some(Settled { outcome: end.outcome(&self.reasons), at });
            let last_error = String::new();
            return Some(View { state, attempts: 0, last_error, parked: None, settled, place, key, expires: false });
        }
        let Slot { key, place, tries, brief, expires, .. } = self.live[number];
        let dead_letter = self.upstream_of(brief).parked.get(&id);
        let parked = dead_letter.map(|dead_letter| dead_letter.parked.clone());
        let (attempts, last_error) = self.tries.get(tries);
        let (last_error, expires) = (last_error.into(), expires > 0);
        Some(View { state, attempts, last_error, parked, settled: None, place, key, expires })
    }

    /// The first `limit` records in a state, or of all that have not left, oldest first.
    #[must_use]
    pub fn list(&self, state: impl Into<Option<State>>, limit: usize) -> Vec<RecordId> {
        self.list_above(RecordId(0), state, limit)
    }

    /// As [`Self::list`], beginning with the first number above one.
    #[must_use]
    pub fn list_above(&self, id: RecordId, state: impl Into<Option<State>>, limit: usize) -> Vec<RecordId> {
        let state = state.into();
        let mut ids = Vec::new();
        for upstream in &self.upstreams {
            let parked = upstream.parked.range((Bound::Excluded(id), Bound::Unbounded)).map(|(id, _)| *id);
            match state {
                None => {
                    ids.extend(upstream.pending.above(id).take(limit));
                    ids.extend(parked.take(limit));
                }
                Some(State::Parked) => ids.extend(parked.take(limit)),
                Some(state @ (State::Waiting | State::Leased)) => {
                    ids.extend(upstream.pending.above(id).filter(|&id| self.state(id) == Some(state)).take(limit));
                }
                Some(State::Delivered | State::Discarded | State::Expired | State::HandedOver) => {}
            }
        }
        if let Some(state @ (State::Delivered | State::Discarded | State::Expired | State::HandedOver)) = state {
            let settled = self.forget_order.values().map(|&number| &self.remembered[number]);
            let wanted = settled.filter(|settled| settled.end.state() == state && settled.id > id);
            ids.extend(wanted.map(|settled| settled.id));
        }
        ids.sort_unstable();
        ids.truncate(limit);
        ids
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
        self.find_lane(lane).is_some()
    }

    /// The lane of a live record.
    #[must_use]
    pub fn lane(&self, id: RecordId) -> Option<LaneKey> {
        let slot = &self.live[self.find_live(id)?];
        if slot.lane != NONE {
            return Some(self.lanes[slot.lane].key);
        }
        self.upstream_of(slot.brief).parked.get(&id)?.lane
    }

    /// How long until something more can be leased for an upstream: zero if now, `None` if nothing waits.
    #[must_use]
    pub fn ready_in(&self, upstream: &str, now: Mono) -> Option<Duration> {
        let upstream = &self.upstreams[usize::from(*self.names.get(upstream)?)];
        if upstream.ready.iter().any(|line| line.first().is_some()) {
            return Some(Duration::ZERO);
        }
        let delayed = upstream.delayed.keys().next().map(|(not_before, _)| *not_before);
        let expiry = if upstream.leased > 0 { self.leases.keys().next().map(|(until, _)| *until) } else { None };
        [delayed, expiry].into_iter().flatten().min().map(|at| now.until(at))
    }

    /// Leases that have run out; their records wait again. A try that may have happened is counted as one.
    pub fn expire(&mut self, now: Mono) {
        while let Some((&(until, _), &Leasehold { slot, .. })) = self.leases.first_key_value()
            && until <= now
        {
            self.note_failure(slot, "the lease expired before anybody said what became of it");
            self.wait_again(slot, Mono::ZERO);
        }
    }

    /// Forgets keys of settled records that are out of the window or too many. Returns which, and where their bytes
    /// were.
    pub fn forget(&mut self, now: Wall) -> Vec<(RecordId, P)> {
        let mut forgotten = Vec::new();
        while let Some((&(at, _), &number)) = self.forget_order.first_key_value() {
            let outdated = now.since(at) > self.config.remember_for;
            if !outdated && self.remembered.len() <= self.config.remember_max {
                break;
            }
            self.forgotten_early_total += u64::from(!outdated);
            let remembered = self.forget_one(number);
            self.unclaim(remembered.key, number | OTHER);
            forgotten.push((remembered.id, remembered.place));
        }
        forgotten
    }

    /// A page of everything there is, live or remembered, by number: the first `max` above one.
    #[must_use]
    pub fn survey(&self, above: RecordId, max: usize) -> Vec<(RecordId, Look)> {
        let mut ids = self.list_above(above, None, max);
        ids.extend(self.forget_order.values().map(|&number| self.remembered[number].id).filter(|&id| id > above));
        if ids.len() > max {
            // A page of many: only what is on it is put in order.
            ids.select_nth_unstable(max);
            ids.truncate(max);
        }
        ids.sort_unstable();
        ids.into_iter().filter_map(|id| Some((id, self.look(id)?))).collect()
    }

    /// A record at a glance.
    #[must_use]
    pub fn look(&self, id: RecordId) -> Option<Look> {
        let stage = match self.state(id)? {
            State::Waiting | State::Leased => Stage::Waiting,
            State::Parked => Stage::Parked,
            State::Delivered | State::Discarded | State::Expired | State::HandedOver => Stage::Settled,
        };
        Some(Look { stage, attempts: self.live(id).map_or(0, |(_, attempts, _)| attempts) })
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
        self.find(id).map(|number| self.place_of(number))
    }

    /// The bytes of a record are somewhere else now. Returns where they were.
    pub fn set_place(&mut self, id: RecordId, place: P) -> Option<P> {
        let number = self.find(id)?;
        if number & OTHER != 0 {
            return Some(std::mem::replace(&mut self.remembered[number & !OTHER].place, place));
        }
        let slot = &mut self.live[number];
        let (before, origin) = (std::mem::replace(&mut slot.place, place), slot.brief.origin());
        self.count_bytes(origin, place.bytes(), before.bytes());
        Some(before)
    }

    /// Replays an enqueue. Whoever had its key before was forgotten since, or its end is lost: the newer one has it.
    pub fn replay_enqueue(&mut self, new: Admission<'_, P>) {
        if let Some(number) = self.find_key(new.key) {
            self.unclaim(new.key, number);
            if number & OTHER != 0 {
                self.forget_one(number & !OTHER);
            }
        }
        self.enqueue(new);
    }

    /// Every record's and every remembered key's place; true for those that are settled.
    pub fn places(&self) -> impl Iterator<Item = (P, bool)> {
        self.ids.iter().map(|number| (self.place_of(number), number & OTHER != 0))
    }

    /// Lanes of all records that are waiting or leased, once per record.
    pub fn held_lanes(&self) -> impl Iterator<Item = LaneKey> {
        let live = self.ids.iter().filter(|number| number & OTHER == 0).map(|number| self.live[number].lane);
        live.filter(|&lane| lane != NONE).map(|lane| self.lanes[lane].key)
    }

    /// Replays a failed try.
    pub fn replay_failed(&mut self, id: RecordId, attempts: u32, error: &str) {
        if let Some(slot) = self.find_live(id) {
            self.set_failure(slot, attempts, error);
        }
    }

    /// Replays that a record became a dead letter, whoever held it.
    pub fn replay_parked(&mut self, id: RecordId, parked: Parked) -> bool {
        let Some(slot) = self.find_live(id) else { return false };
        self.park_now(slot, parked);
        true
    }

    /// Ends a live record, whoever held it. Its key is remembered. False if there is none.
    pub fn settle(&mut self, id: RecordId, settled: Settled) -> bool {
        let Some(slot) = self.find_live(id) else { return false };
        let end = End::keep(&settled.outcome, &mut self.reasons);
        self.settle_now(slot, end, settled.at);
        true
    }

    /// Replays a settled record of which only the key is left. Nothing happens if the key or number is known already.
    pub fn replay_remembered(
        &mut self,
        id: RecordId,
        key: KeyHash,
        fingerprint: FingerprintHalf,
        settled: Settled,
        place: P,
    ) {
        if self.find_key(key).is_some() || self.find(id).is_some() {
            return;
        }
        let end = End::keep(&settled.outcome, &mut self.reasons);
        let number = self.remember(Remembered { id, key, fingerprint, at: settled.at, place, end }) | OTHER;
        let (live, remembered, seed) = (&self.live, &self.remembered, self.config.hash_seed);
        self.ids.insert(hash_id(id, seed), number, |number| hash_id(id_of(live, remembered, number), seed));
        self.keys.insert(hash_key(key, seed), number, |number| hash_key(key_of(live, remembered, number), seed));
    }

    // Finding.

    fn find(&self, id: RecordId) -> Option<u32> {
        self.ids.find(hash_id(id, self.config.hash_seed), |number| id_of(&self.live, &self.remembered, number) == id)
    }

    fn find_live(&self, id: RecordId) -> Option<u32> {
        self.find(id).filter(|number| number & OTHER == 0)
    }

    fn find_key(&self, key: KeyHash) -> Option<u32> {
        self.keys
            .find(hash_key(key, self.config.hash_seed), |number| key_of(&self.live, &self.remembered, number) == key)
    }

    fn find_lane(&self, key: LaneKey) -> Option<u32> {
        self.lane_keys.find(hash_lane(key, self.config.hash_seed), |lane| self.lanes[lane].key == key)
    }

    /// The record a lease is for, if it still is.
    fn holder(&self, lease: &Lease) -> Option<u32> {
        let hold = self.leases.get(&(lease.until, lease.id))?;
        (hold.generation == lease.generation).then_some(hold.slot)
    }

    fn state_of(&self, number: u32) -> State {
        if number & OTHER != 0 {
            return self.remembered[number & !OTHER].end.state();
        }
        match self.live[number].brief.phase() {
            Phase::Waiting | Phase::Ready | Phase::Delayed => State::Waiting,
            Phase::Leased => State::Leased,
            Phase::Parked => State::Parked,
        }
    }

    fn place_of(&self, number: u32) -> P {
        if number & OTHER == 0 { self.live[number].place } else { self.remembered[number & !OTHER].place }
    }

    fn depth_at(&self, index: u16) -> Depth {
        let upstream = &self.upstreams[usize::from(index)];
        let accepted = |id| self.live[self.find_live(id).expect("a record that waits is live")].brief.accepted();
        Depth {
            waiting: upstream.waiting,
            leased: upstream.leased,
            parked: upstream.parked.len() as u64,
            bytes: upstream.bytes,
            oldest: upstream.oldest(upstream.pending.first().map(accepted)),
        }
    }

    fn origin(&mut self, name: &str, route: &str) -> u16 {
        const MANY: &str = "more than 65,536 upstreams and routes";
        let upstream = self.names.get(name).copied().unwrap_or_else(|| {
            let index = u16::try_from(self.upstreams.len()).expect(MANY);
            self.upstreams.push(Upstream::new());
            self.names.insert(name.into(), index);
            index
        });
        let routes = &mut self.upstreams[usize::from(upstream)].routes;
        if let Some(&origin) = routes.get(route) {
            return origin;
        }
        let origin = u16::try_from(self.origins.len()).expect(MANY);
        self.origins.push(Origin { upstream, bytes: 0 });
        routes.insert(route.into(), origin);
        origin
    }

    fn upstream_of(&self, brief: Brief) -> &Upstream {
        &self.upstreams[usize::from(self.origins[brief.origin()].upstream)]
    }

    fn upstream_of_mut(&mut self, brief: Brief) -> &mut Upstream {
        &mut self.upstreams[usize::from(self.origins[brief.origin()].upstream)]
    }

    fn count_bytes(&mut self, origin: impl Into<usize>, more: u64, less: u64) -> &mut Upstream {
        let origin = &mut self.origins[origin.into()];
        origin.bytes = origin.bytes + more - less;
        let upstream = &mut self.upstreams[usize::from(origin.upstream)];
        upstream.bytes = upstream.bytes + more - less;
        upstream
    }

    // What becomes of a record: it is taken out of the phase it is in, and put into another.

    /// A record that is in no phase waits: in its lane's row, or by itself.
    fn wait(&mut self, slot: u32, lane: Option<LaneKey>, not_before: Mono) {
        let Slot { id, brief, .. } = self.live[slot];
        let upstream = self.upstream_of_mut(brief);
        upstream.begin(id, brief.accepted());
        upstream.waiting += 1;
        if not_before > Mono::ZERO {
            self.dues.insert(slot, not_before);
        }
        self.live[slot].brief = brief.with_phase(Phase::Waiting);
        match lane {
            Some(key) => {
                let lane = self.lane_for(key);
                self.live[slot].lane = lane;
                self.join_row(lane, slot);
                self.relist(lane);
            }
            None => self.enlist(slot),
        }
    }

    fn wait_again(&mut self, slot: u32, not_before: Mono) {
        let lane = self.lane(self.live[slot].id);
        // Its lane is kept while it is out: it would be made anew at once.
        self.take_out(slot);
        self.wait(slot, lane, not_before);
    }

    fn hand_out(&mut self, slot: u32, until: Mono) -> Lease {
        self.take_out(slot);
        let generation = self.next_generation;
        self.next_generation += 1;
        let Slot { id, brief, lane, .. } = self.live[slot];
        self.live[slot].brief = brief.with_phase(Phase::Leased);
        let upstream = self.upstream_of_mut(brief);
        upstream.begin(id, brief.accepted());
        upstream.leased += 1;
        self.dues.insert(slot, until);
        self.leases.insert((until, id), Leasehold { slot, generation });
        if lane != NONE {
            self.lanes[lane].leased = slot;
        }
        Lease { id, generation, until }
    }

    fn park_now(&mut self, slot: u32, parked: Parked) {
        let Slot { id, brief, lane: left, .. } = self.live[slot];
        let lane = self.lane(id);
        let parked = Parked {
            reason: cut(&parked.reason, REASON_BYTES_MAX).into(),
            last_words: cut(&parked.last_words, LAST_WORDS_BYTES_MAX).into(),
            at: parked.at,
        };
        self.take_out(slot);
        self.stop_expiry(slot);
        self.live[slot].brief = brief.with_phase(Phase::Parked);
        self.live[slot].lane = NONE;
        self.upstream_of_mut(brief).parked.insert(id, DeadLetter { parked, lane });
        self.relist_if_any(left);
    }

    fn settle_now(&mut self, slot: u32, end: End, at: Wall) {
        let Slot { id, key, fingerprint, place, .. } = self.remove(slot);
        let number = self.remember(Remembered { id, key, fingerprint, at, place, end }) | OTHER;
        let seed = self.config.hash_seed;
        self.ids.replace(hash_id(id, seed), slot, number);
        self.keys.replace(hash_key(key, seed), slot, number);
    }

    /// Takes a live record out for good; its number and key still point to its slot.
    fn remove(&mut self, slot: u32) -> Slot<P> {
        self.take_out(slot);
        self.stop_expiry(slot);
        let removed = self.live.remove(slot);
        self.count_bytes(removed.brief.origin(), 0, removed.place.bytes());
        self.tries.release(removed.tries);
        self.relist_if_any(removed.lane);
        removed
    }

    /// Takes a record off every list its phase put it on. Its lane is to be listed anew by whoever called.
    fn take_out(&mut self, slot: u32) {
        self.delist(slot);
        let Slot { id, brief, lane, .. } = self.live[slot];
        let due = self.dues.remove(&slot);
        let upstream = self.upstream_of_mut(brief);
        if brief.phase() == Phase::Parked {
            upstream.parked.remove(&id);
            return;
        }
        upstream.end(id, brief.accepted());
        if brief.phase() == Phase::Leased {
            upstream.leased -= 1;
            self.leases.remove(&(due.expect("a lease ends"), id));
            if lane != NONE {
                self.lanes[lane].leased = NONE;
            }
        } else {
            upstream.waiting -= 1;
            if lane != NONE {
                self.leave_row(lane, slot);
            }
        }
    }

    fn stop_expiry(&mut self, slot: u32) {
        let Slot { id, brief, expires, .. } = self.live[slot];
        if expires > 0 {
            self.live[slot].expires = 0;
            self.upstream_of_mut(brief).expiries.remove(&(expires, id));
        }
    }

    fn note_failure(&mut self, slot: u32, error: &str) {
        let (attempts, _) = self.tries.get(self.live[slot].tries);
        self.set_failure(slot, attempts.saturating_add(1), error);
    }

    fn set_failure(&mut self, slot: u32, attempts: u32, error: &str) {
        let tries = self.tries.keep(attempts, cut(error, REASON_BYTES_MAX));
        self.tries.release(std::mem::replace(&mut self.live[slot].tries, tries));
    }

    fn remember(&mut self, remembered: Remembered<P>) -> u32 {
        let number = self.remembered.insert(remembered);
        self.forget_order.insert((remembered.at, remembered.id), number);
        number
    }

    /// Forgets a settled record; its key may still point to it.
    fn forget_one(&mut self, number: u32) -> Remembered<P> {
        let remembered = self.remembered[number];
        self.forget_order.remove(&(remembered.at, remembered.id));
        self.forget_id(remembered.id, number | OTHER);
        if let End::Discarded(text) | End::HandedOver(text) = remembered.end {
            self.reasons.release(text);
        }
        self.remembered.remove(number)
    }

    fn forget_id(&mut self, id: RecordId, number: u32) {
        let (live, remembered, seed) = (&self.live, &self.remembered, self.config.hash_seed);
        self.ids.remove(hash_id(id, seed), number, |number| hash_id(id_of(live, remembered, number), seed));
    }

    /// A key is free again, unless it is another's by now.
    fn unclaim(&mut self, key: KeyHash, number: u32) {
        let (live, remembered, seed) = (&self.live, &self.remembered, self.config.hash_seed);
        self.keys.remove(hash_key(key, seed), number, |number| hash_key(key_of(live, remembered, number), seed));
    }

    // Rows, and who is ready.

    fn lane_for(&mut self, key: LaneKey) -> u32 {
        if let Some(lane) = self.find_lane(key) {
            return lane;
        }
        let lane = Lane { key, row: Line::EMPTY, finger: NONE, leased: NONE, listed: NONE, links: Links::ALONE };
        let number = self.lanes.insert(lane);
        let (lanes, seed) = (&self.lanes, self.config.hash_seed);
        self.lane_keys.insert(hash_lane(key, seed), number, |lane| hash_lane(lanes[lane].key, seed));
        number
    }

    /// In the order accepted: nearly always at the end, and for a dead letter that is retried near the front.
    fn join_row(&mut self, lane: u32, slot: u32) {
        let id = self.live[slot].id;
        let Lane { row, finger, .. } = &mut self.lanes[lane];
        let precedes = |other: &u32| self.live[*other].id < id;
        if let Some(last) = row.last().filter(precedes) {
            row.insert_after(Some(last), slot, &mut Row(&mut self.live));
            return;
        }
        let mut before = Some(*finger).filter(|&finger| finger != NONE).filter(precedes);
        let mut next = before.map_or(row.first(), |before| Some(self.live[before].links.next));
        while let Some(other) = next.filter(precedes) {
            before = Some(other);
            next = Some(self.live[other].links.next);
        }
        row.insert_after(before, slot, &mut Row(&mut self.live));
        *finger = slot;
    }

    fn leave_row(&mut self, lane: u32, slot: u32) {
        let Lane { row, finger, .. } = &mut self.lanes[lane];
        if *finger == slot {
            *finger = self.live[slot].links.prev;
        }
        row.remove(slot, &mut Row(&mut self.live));
    }

    fn relist_if_any(&mut self, lane: u32) {
        if lane != NONE {
            self.relist(lane);
        }
    }

    /// Makes the first of a lane, and only it, a candidate; nobody while one of the lane is leased. An empty lane goes.
    fn relist(&mut self, number: u32) {
        let Lane { key, row, leased, listed, .. } = self.lanes[number];
        let wanted = if leased == NONE { row.first().unwrap_or(NONE) } else { NONE };
        if leased == NONE && wanted == NONE {
            let (lanes, seed) = (&self.lanes, self.config.hash_seed);
            self.lane_keys.remove(hash_lane(key, seed), number, |lane| hash_lane(lanes[lane].key, seed));
            self.lanes.remove(number);
            return;
        }
        if listed == wanted {
            return;
        }
        if listed != NONE {
            self.delist(listed);
        }
        if wanted != NONE {
            self.enlist(wanted);
        }
    }

    /// A record may be leased: now, or when its time has come.
    fn enlist(&mut self, slot: u32) {
        let Slot { id, brief, lane, .. } = self.live[slot];
        let due = self.dues.get(&slot).copied();
        let upstream = &mut self.upstreams[usize::from(self.origins[brief.origin()].upstream)];
        let phase = if let Some(due) = due {
            upstream.delayed.insert((due, id), slot);
            Phase::Delayed
        } else {
            let line = &mut upstream.ready[brief.priority()];
            line.push(member(slot, lane), &mut Ready(&mut self.live, &mut self.lanes));
            Phase::Ready
        };
        self.live[slot].brief = brief.with_phase(phase);
        if lane != NONE {
            self.lanes[lane].listed = slot;
        }
    }

    fn delist(&mut self, slot: u32) {
        let Slot { id, brief, lane, .. } = self.live[slot];
        let upstream = &mut self.upstreams[usize::from(self.origins[brief.origin()].upstream)];
        match brief.phase() {
            Phase::Ready => {
                let line = &mut upstream.ready[brief.priority()];
                line.remove(member(slot, lane), &mut Ready(&mut self.live, &mut self.lanes));
            }
            Phase::Delayed => _ = upstream.delayed.remove(&(self.dues[&slot], id)),
            Phase::Waiting | Phase::Leased | Phase::Parked => return,
        }
        self.live[slot].brief = brief.with_phase(Phase::Waiting);
        if lane != NONE {
            self.lanes[lane].listed = NONE;
        }
    }

    /// The delayed records of an upstream whose time has come get in line.
    fn promote(&mut self, upstream: u16, now: Mono) {
        while let Some((&(not_before, _), &slot)) = self.upstreams[usize::from(upstream)].delayed.first_key_value()
            && not_before <= now
        {
            self.delist(slot);
            self.dues.remove(&slot);
            self.enlist(slot);
        }
    }
}

impl Brief {
    const PRIORITY_SHIFT: u32 = 4;
    const ORIGIN_SHIFT: u32 = 6;
    const ACCEPTED_SHIFT: u32 = 22;
    const PHASES: [Phase; 5] = [Phase::Waiting, Phase::Ready, Phase::Delayed, Phase::Leased, Phase::Parked];

    fn new(accepted: Wall, origin: u16, priority: Priority) -> Self {
        let accepted = accepted.as_millis().min(u64::MAX >> Self::ACCEPTED_SHIFT) << Self::ACCEPTED_SHIFT;
        let (origin, priority) = (u64::from(origin) << Self::ORIGIN_SHIFT, (priority as u64) << Self::PRIORITY_SHIFT);
        Self(accepted | origin | priority).with_phase(Phase::Waiting)
    }

    const fn accepted(self) -> Wall {
        Wall::from_millis(self.0 >> Self::ACCEPTED_SHIFT)
    }

    const fn origin(self) -> usize {
        (self.0 >> Self::ORIGIN_SHIFT) as u16 as usize
    }

    const fn priority(self) -> usize {
        (self.0 >> Self::PRIORITY_SHIFT & 0b11) as usize
    }

    const fn phase(self) -> Phase {
        Self::PHASES[(self.0 & 0xf) as usize]
    }

    const fn with_phase(self, phase: Phase) -> Self {
        Self(self.0 & !0xf | phase as u64)
    }
}

impl End {
    fn keep(outcome: &Outcome, texts: &mut Texts) -> Self {
        match outcome {
            Outcome::Delivered { status } => Self::Delivered(*status),
            Outcome::Discarded { reason } => Self::Discarded(texts.keep(cut(reason, REASON_BYTES_MAX))),
            Outcome::Expired => Self::Expired,
            Outcome::HandedOver { to } => Self::HandedOver(texts.keep(cut(to, REASON_BYTES_MAX))),
        }
    }

    fn outcome(self, texts: &Texts) -> Outcome {
        match self {
            Self::Delivered(status) => Outcome::Delivered { status },
            Self::Discarded(reason) => Outcome::Discarded { reason: texts.get(reason).into() },
            Self::Expired => Outcome::Expired,
            Self::HandedOver(to) => Outcome::HandedOver { to: texts.get(to).into() },
        }
    }

    const fn state(self) -> State {
        match self {
            Self::Delivered(_) => State::Delivered,
            Self::Discarded(_) => State::Discarded,
            Self::Expired => State::Expired,
            Self::HandedOver(_) => State::HandedOver,
        }
    }
}

impl Upstream {
    const fn new() -> Self {
        Self {
            routes: BTreeMap::new(),
            ready: [Line::EMPTY; Priority::ALL.len()],
            turn: 0,
            expiries: BTreeMap::new(),
            delayed: BTreeMap::new(),
            pending: IdSet::new(),
            ages: BTreeMap::new(),
            parked: BTreeMap::new(),
            waiting: 0,
            leased: 0,
            bytes: 0,
        }
    }

    /// A record waits or is leased from here on.
    fn begin(&mut self, id: RecordId, accepted: Wall) {
        self.pending.insert(id);
        *self.ages.entry(second_of(accepted)).or_default() += 1;
    }

    /// It does not any more.
    fn end(&mut self, id: RecordId, accepted: Wall) {
        self.pending.remove(id);
        if let Entry::Occupied(mut age) = self.ages.entry(second_of(accepted)) {
            *age.get_mut() -= 1;
            if *age.get() == 0 {
                age.remove();
            }
        }
    }

    /// When the oldest was accepted: the first by number if it is as old as any, or else to the second.
    fn oldest(&self, first: Option<Wall>) -> Option<Wall> {
        let (&second, _) = self.ages.first_key_value()?;
        first.filter(|&first| second_of(first) == second).or(Some(Wall::from_millis(second * 1000)))
    }

    /// Who is leased next: by priority, but every eighth time the lower ones in turn come first.
    fn next_ready(&mut self) -> Option<u32> {
        let [high, normal, low] = self.ready;
        let order = match self.turn % (2 * TURNS) {
            turn if turn == TURNS - 1 => [normal, low, high],
            turn if turn == 2 * TURNS - 1 => [low, normal, high],
            _ => [high, normal, low],
        };
        let next = order.iter().find_map(Line::first)?;
        self.turn += 1;
        Some(next)
    }
}

/// The records of one lane's row.
struct Row<'a, P>(&'a mut Slab<Slot<P>>);

impl<P> Members for Row<'_, P> {
    fn links(&mut self, member: u32) -> &mut Links {
        &mut self.0[member].links
    }
}

/// Records without a lane and, in the place of their first record, lanes.
struct Ready<'a, P>(&'a mut Slab<Slot<P>>, &'a mut Slab<Lane>);

impl<P> Members for Ready<'_, P> {
    fn links(&mut self, member: u32) -> &mut Links {
        if member & OTHER == 0 { &mut self.0[member].links } else { &mut self.1[member & !OTHER].links }
    }
}

const fn second_of(at: Wall) -> u64 {
    at.as_millis() / 1000
}

/// A moment in whole seconds, not before it, and never 0.
fn seconds_up(at: Wall) -> u32 {
    u32::try_from(at.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

/// Who stands among the ready for a record.
const fn member(slot: u32, lane: u32) -> u32 {
    if lane == NONE { slot } else { lane | OTHER }
}

fn id_of<P>(live: &Slab<Slot<P>>, remembered: &Slab<Remembered<P>>, number: u32) -> RecordId {
    if number & OTHER == 0 { live[number].id } else { remembered[number & !OTHER].id }
}

fn key_of<P>(live: &Slab<Slot<P>>, remembered: &Slab<Remembered<P>>, number: u32) -> KeyHash {
    if number & OTHER == 0 { live[number].key } else { remembered[number & !OTHER].key }
}

const fn hash_id(id: RecordId, seed: u64) -> u64 {
    fold(id.0, 0, seed)
}

fn hash_key(key: KeyHash, seed: u64) -> u64 {
    hash_bytes(key.0, seed)
}

fn hash_lane(key: LaneKey, seed: u64) -> u64 {
    hash_bytes(key.0, seed)
}

const fn hash_bytes(bytes: [u8; 16], seed: u64) -> u64 {
    let bits = u128::from_le_bytes(bytes);
    fold(bits as u64, (bits >> 64) as u64, seed)
}

#[cfg(test)]
mod tests;
