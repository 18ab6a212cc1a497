//! Rate limit: so many cells in so much time, evenly, with bursts up to a bound. One limit, or one for each key.
//!
//! Picture a queue at a till that serves one cell every T = per / cells. GCRA (ITU-T I.371, "generic cell rate
//! algorithm") does not keep the queue, only the moment at which it would be empty, the theoretical arrival time. A
//! request passes if that moment is no further ahead than a burst reaches. There are no windows, hence no edges at
//! which twice the limit slips through, and no timers.
//!
//! Invariants: in any stretch of time t at most burst + t / T cells pass; all arithmetic is in whole ticks of 1/cells
//! nanoseconds, so that 3 per second is exactly that for years; `retry_in` is exact; neither a decision nor a refusal
//! allocates. A keyed limit holds all its memory from the start ([`KEY_BYTES_MAX`] a key).
//! Not here: waiting (the driver's, until `retry_in`), who a key stands for, limits shared between nodes.

use std::time::Duration;

use super::{Invalid, Refusal};
use crate::time::Mono;

/// How many, in what time, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateConfig {
    /// So many cells (a plain request weighs one) ...
    pub cells: u32,
    /// ... in this time.
    pub per: Duration,
    /// Cells that may pass at once after a pause; also the heaviest request that can ever pass.
    pub burst: u32,
}

impl RateConfig {
    fn pace(&self) -> Result<Pace, Invalid> {
        let invalid = |key, value: String, allowed| Err(Invalid { key, value, allowed });
        if self.cells == 0 {
            return invalid("cells", "0".into(), "1 or more");
        }
        if self.burst == 0 {
            return invalid("burst", "0".into(), "1 or more");
        }
        match u64::try_from(self.per.as_nanos()) {
            Ok(per @ 1..) => Ok(Pace::new(self.cells, per, self.burst)),
            _ => invalid("per", format!("{:?}", self.per), "1ns to about 584 years"),
        }
    }

    fn refusal(&self, denied: Denied) -> Refusal {
        let Self { cells, per, burst } = *self;
        match denied {
            Denied::Wait(retry_in) => Refusal::RateLimited { cells, per, burst, retry_in },
            Denied::Never(weight) => Refusal::OverBurst { cells: weight, burst },
        }
    }
}

/// One limit.
///
/// ```
/// use std::time::Duration;
/// use seawall_core::{guard::rate::{Rate, RateConfig}, time::Mono};
///
/// let config = RateConfig { cells: 5, per: Duration::from_secs(1), burst: 3 };
/// let mut rate = Rate::new(config).unwrap();
/// assert!(rate.admit(Mono::ZERO, 3).is_ok());
/// let refusal = rate.admit(Mono::ZERO, 1).unwrap_err();
/// assert_eq!(refusal.retry_in(), Some(Duration::from_millis(200)));
/// ```
#[derive(Clone, Debug)]
pub struct Rate {
    config: RateConfig,
    pace: Pace,
    tat: Ticks,
}

impl Rate {
    /// A full burst is there from the start.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no limit.
    pub fn new(config: RateConfig) -> Result<Self, Invalid> {
        Ok(Self { config, pace: config.pace()?, tat: 0 })
    }

    /// Lets a request of this weight pass, or changes nothing. A weight of zero always passes. O(1), no allocation.
    ///
    /// # Errors
    /// [`Refusal::RateLimited`] with the wait after which it would pass; [`Refusal::OverBurst`] if no wait would help.
    pub fn admit(&mut self, now: Mono, cells: u32) -> Result<(), Refusal> {
        self.tat = self.pace.admit(self.tat, now, cells).map_err(|denied| self.config.refusal(denied))?;
        Ok(())
    }

    /// Cells that would pass now.
    #[must_use]
    pub fn available(&self, now: Mono) -> u32 {
        self.pace.available(self.tat, now)
    }

    /// Takes on other numbers. What was used stays used: the moment at which the limit is whole again is kept.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no limit; nothing has changed.
    pub fn reconfigure(&mut self, config: RateConfig) -> Result<(), Invalid> {
        let pace = config.pace()?;
        let whole_at_nanos = self.tat.div_ceil(u128::from(self.pace.ticks_per_nano));
        self.tat = whole_at_nanos.saturating_mul(u128::from(pace.ticks_per_nano));
        (self.config, self.pace) = (config, pace);
        Ok(())
    }
}

/// Ticks of virtual time: a nanosecond has `ticks_per_nano` of them. 96 bits hold any [`Mono`], so sums stay exact.
pub(super) type Ticks = u128;

/// Why a pace says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// Come back after this.
    Wait(Duration),
    /// Never: this weight is above the burst.
    Never(u32),
}

/// The arithmetic of GCRA, without its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    ticks_per_nano: u32,
    /// Ticks between cells when they come evenly.
    cell: u64,
    burst: u32,
}

impl Pace {
    /// One cell every `cell / ticks_per_nano` nanoseconds. None of the three is zero.
    pub(super) fn new(ticks_per_nano: u32, cell: u64, burst: u32) -> Self {
        Self { ticks_per_nano: ticks_per_nano.max(1), cell: cell.max(1), burst: burst.max(1) }
    }

    /// The new theoretical arrival time.
    pub(super) fn admit(&self, tat: Ticks, now: Mono, cells: u32) -> Result<Ticks, Denied> {
        if cells > self.burst {
            return Err(Denied::Never(cells));
        }
        let now = self.ticks(now);
        let cell = u128::from(self.cell);
        let after = tat.max(now).saturating_add(cell * u128::from(cells));
        let reach = now + cell * u128::from(self.burst);
        if cells == 0 || after <= reach {
            return Ok(after);
        }
        let wait = (after - reach).div_ceil(u128::from(self.ticks_per_nano));
        Err(Denied::Wait(Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))))
    }

    pub(super) fn ticks(&self, at: Mono) -> Ticks {
        u128::from(at.as_nanos()) * u128::from(self.ticks_per_nano)
    }

    /// The arrival time after which nothing of a burst is left.
    pub(super) fn empty_at(&self, now: Mono) -> Ticks {
        self.ticks(now) + u128::from(self.cell) * u128::from(self.burst)
    }

    fn available(&self, tat: Ticks, now: Mono) -> u32 {
        let (now, cell) = (self.ticks(now), u128::from(self.cell));
        let free = (now + cell * u128::from(self.burst)).saturating_sub(tat.max(now)) / cell;
        u32::try_from(free).unwrap_or(self.burst)
    }
}

/// A limit for each key, in memory that is taken once: [`KEY_BYTES_MAX`] for each of at most `keys_max` keys.
///
/// A key without a place has used nothing. When all places are taken, the key that owes least gives its place up: one
/// that is whole again loses nothing by that, and one that still owed is counted, because it begins anew.
#[derive(Clone, Debug)]
pub struct KeyedRate {
    config: RateConfig,
    pace: Pace,
    keys: Box<[u64]>,
    tats: Box<[Ticks]>,
    /// Slots as a binary heap, the one that owes least on top; `place` says where in it a slot is.
    heap: Vec<u32>,
    place: Box<[u32]>,
    /// Open addressing with linear probing, at most half full: slot + 1, or 0.
    index: Box<[u32]>,
    seed: u64,
    evicted: Evicted,
    told: u64,
}

/// What a key costs at most: 16 bytes arrival time, 8 key, 8 heap, and 8 to 16 of the index.
pub const KEY_BYTES_MAX: usize = 48;

/// Keys that had to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// They were whole again: nothing was lost.
    pub whole: u64,
    /// They still owed and begin anew: the limit was not kept for them. More than a few: raise `keys_max`.
    pub owing: u64,
}

impl KeyedRate {
    /// No key is known. `seed` decides where keys lie, so that nobody can crowd them; no answer depends on it.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no limit, or for no keys or more than 16,777,216.
    pub fn new(config: RateConfig, keys_max: u32, seed: u64) -> Result<Self, Invalid> {
        let pace = config.pace()?;
        if !(1..=1 << 24).contains(&keys_max) {
            return Err(Invalid { key: "keys_max", value: keys_max.to_string(), allowed: "1 to 16777216" });
        }
        let slots = keys_max as usize;
        Ok(Self {
            config,
            pace,
            keys: vec![0; slots].into(),
            tats: vec![0; slots].into(),
            heap: Vec::with_capacity(slots),
            place: vec![0; slots].into(),
            index: vec![0; (slots * 2).next_power_of_two()].into(),
            seed,
            evicted: Evicted::default(),
            told: 0,
        })
    }

    /// Lets a request of this key pass, or changes nothing but the key's place. O(log keys), no allocation.
    ///
    /// `key` is a digest of whatever tells callers apart, such as [`key_of`]; two that share one share a limit.
    ///
    /// # Errors
    /// As [`Rate::admit`].
    pub fn admit(&mut self, now: Mono, key: u64, cells: u32) -> Result<(), Refusal> {
        let slot = self.find(key);
        let tat = slot.map_or(0, |slot| self.tats[slot]);
        let after = self.pace.admit(tat, now, cells).map_err(|denied| self.config.refusal(denied))?;
        if cells > 0 {
            let slot = slot.unwrap_or_else(|| self.insert(now, key));
            self.tats[slot] = after;
            self.sink(self.place[slot] as usize);
        }
        Ok(())
    }

    /// Keys that have a place.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.heap.len()
    }

    /// Keys that had to go, since the start.
    #[must_use]
    pub fn evicted(&self) -> Evicted {
        self.evicted
    }

    /// Tells once how many keys were evicted while they owed since this was last asked; `None` if none were. For a log
    /// line: the limit `keys_max` is reached and too low.
    pub fn take_overflow(&mut self) -> Option<u64> {
        let new = self.evicted.owing - self.told;
        self.told = self.evicted.owing;
        (new > 0).then_some(new)
    }

    fn home(&self, key: u64) -> usize {
        // SplitMix64's finish (Steele, Lea and Flood, 2014).
        let mut z = key ^ self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize & (self.index.len() - 1)
    }

    /// Where in the index the key is, or the empty place where it would be. Ends: half of the index is empty.
    fn probe(&self, key: u64) -> usize {
        let mut at = self.home(key);
        while self.index[at] != 0 && self.keys[self.index[at] as usize - 1] != key {
            at = (at + 1) & (self.index.len() - 1);
        }
        at
    }

    fn find(&self, key: u64) -> Option<usize> {
        (self.index[self.probe(key)] as usize).checked_sub(1)
    }

    fn insert(&mut self, now: Mono, key: u64) -> usize {
        let slot = if self.heap.len() < self.keys.len() {
            let slot = self.heap.len();
            // Untouched slots owe nothing, so they may lie anywhere below the top: begin at the bottom and rise.
            self.heap.push(slot as u32);
            self.place[slot] = slot as u32;
            slot
        } else {
            let slot = self.heap[0] as usize;
            let owes = self.tats[slot] > self.pace.ticks(now);
            *(if owes { &mut self.evicted.owing } else { &mut self.evicted.whole }) += 1;
            self.unindex(self.keys[slot]);
            slot
        };
        self.keys[slot] = key;
        self.tats[slot] = 0;
        self.rise(self.place[slot] as usize);
        let at = self.probe(key);
        self.index[at] = slot as u32 + 1;
        slot
    }

    /// Takes a key out of the index and moves those up that had to go past it (Knuth, volume 3, 6.4, algorithm R).
    fn unindex(&mut self, key: u64) {
        let mask = self.index.len() - 1;
        let mut hole = self.probe(key);
        let mut at = hole;
        loop {
            self.index[hole] = 0;
            loop {
                at = (at + 1) & mask;
                let Some(slot) = (self.index[at] as usize).checked_sub(1) else { return };
                let home = self.home(self.keys[slot]);
                if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                    break;
                }
            }
            self.index[hole] = self.index[at];
            hole = at;
        }
    }

    fn tat_at(&self, place: usize) -> Ticks {
        self.tats[self.heap[place] as usize]
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.place[self.heap[a] as usize] = a as u32;
        self.place[self.heap[b] as usize] = b as u32;
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 && self.tat_at(place) < self.tat_at((place - 1) / 2) {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            if left >= self.heap.len() {
                return;
            }
            let least = if right < self.heap.len() && self.tat_at(right) < self.tat_at(left) { right } else { left };
            if self.tat_at(place) <= self.tat_at(least) {
                return;
            }
            self.swap(place, least);
            place = least;
        }
    }
}

/// A key's digest: BLAKE3 with the process's own secret, so that nobody can choose keys that share a limit with
/// another's. Parts are told apart by their length. Of a million keys two share one with a chance of 1 in 37 million.
#[must_use]
pub fn key_of(secret: &[u8; 32], parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let digest = hasher.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest.as_bytes()[i]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write;

    use proptest::prelude::*;

    use super::*;

    fn config(cells: u32, per_ms: u64, burst: u32) -> RateConfig {
        RateConfig { cells, per: Duration::from_millis(per_ms), burst }
    }

    fn run(config: RateConfig, steps: &[(u64, u32)]) -> String {
        let (mut rate, mut told) = (Rate::new(config).unwrap(), String::new());
        for &(at_ms, cells) in steps {
            let now = Mono::from_millis(at_ms);
            match rate.admit(now, cells) {
                Ok(()) => write!(told, "{at_ms} yes, ").unwrap(),
                Err(refusal) => match refusal.retry_in() {
                    Some(wait) => write!(told, "{at_ms} no({}), ", (now + wait).as_millis()).unwrap(),
                    None => write!(told, "{at_ms} never, ").unwrap(),
                },
            }
        }
        told.trim_end_matches(", ").into()
    }

    #[test]
    fn the_published_anchor() {
        // `facts/guards.md` section 3: 5/s with a burst of 3, in milliseconds.
        let steps = [(0, 1), (0, 1), (0, 1), (0, 1), (199, 1), (200, 1), (201, 1), (1_000, 1), (1_000, 3), (1_200, 2)];
        assert_eq!(
            run(config(5, 1_000, 3), &steps),
            "0 yes, 0 yes, 0 yes, 0 no(200), 199 no(200), 200 yes, 201 no(400), 1000 yes, 1000 no(1200), 1200 yes"
        );
    }

    #[test]
    fn an_emptied_pace_lets_cells_pass_evenly_and_no_burst() {
        let pace = Pace::new(1, 100, 5);
        let mut tat = pace.empty_at(Mono::ZERO);
        for cell in 1..=8 {
            let due = Mono::from_nanos(cell * 100);
            assert!(pace.admit(tat, due - Duration::from_nanos(1), 1).is_err());
            tat = pace.admit(tat, due, 1).unwrap();
        }
    }

    #[test]
    fn heavier_than_a_burst_is_no_matter_of_time() {
        assert_eq!(
            run(config(5, 1_000, 3), &[(0, 4), (0, 3), (9, 4), (99_999, 4)]),
            "0 never, 0 yes, 9 never, 99999 never"
        );
        assert_eq!(
            run(config(1, 1_000, 1), &[(0, 1), (1, 0), (999, 1), (1_000, 1)]),
            "0 yes, 1 yes, 999 no(1000), 1000 yes"
        );
    }

    #[test]
    fn thirds_of_a_second_do_not_add_up_to_an_error() {
        // T truncated to whole nanoseconds would let 1 cell too many pass in 11 days; rounded up, one too few.
        let mut rate = Rate::new(config(3, 1_000, 2)).unwrap();
        let mut now = Mono::ZERO;
        for _ in 0..300_000 {
            if let Err(refusal) = rate.admit(now, 1) {
                now = now + refusal.retry_in().unwrap();
                rate.admit(now, 1).unwrap();
            }
        }
        assert_eq!(now, Mono::from_nanos(99_999_333_333_334), "299,998 thirds of a second, the first two at once");
    }

    #[test]
    fn numbers_that_make_no_limit_are_named() {
        let message = |config: RateConfig| Rate::new(config).unwrap_err().to_string();
        assert_eq!(message(config(0, 1, 1)), "`cells` is 0; allowed is 1 or more");
        assert_eq!(message(config(1, 1, 0)), "`burst` is 0; allowed is 1 or more");
        assert_eq!(message(config(1, 0, 1)), "`per` is 0ns; allowed is 1ns to about 584 years");
        assert!(Rate::new(RateConfig { per: Duration::MAX, ..config(1, 1, 1) }).is_err());
        assert!(KeyedRate::new(config(1, 1, 1), 0, 0).is_err());
        assert!(KeyedRate::new(config(1, 1, 1), u32::MAX, 0).is_err());
    }

    #[test]
    fn other_numbers_keep_what_was_used() {
        let mut rate = Rate::new(config(10, 1_000, 10)).unwrap();
        rate.admit(Mono::ZERO, 10).unwrap();
        assert!(rate.reconfigure(config(0, 1, 1)).is_err());
        rate.reconfigure(config(2, 1_000, 1)).unwrap();
        assert_eq!(rate.admit(Mono::ZERO, 1).unwrap_err().retry_in(), Some(Duration::from_secs(1)));
        assert_eq!((rate.available(Mono::from_millis(999)), rate.available(Mono::from_millis(1_000))), (0, 1));
    }

    #[test]
    fn who_owes_least_goes_first_and_debts_forgiven_are_told() {
        let mut keyed = KeyedRate::new(config(1, 1_000, 5), 2, 7).unwrap();
        let at = Mono::from_millis;
        keyed.admit(at(0), 100, 5).unwrap();
        keyed.admit(at(0), 200, 1).unwrap();
        assert_eq!(keyed.take_overflow(), None);
        keyed.admit(at(1_000), 300, 1).unwrap();
        assert_eq!(keyed.evicted(), Evicted { whole: 1, owing: 0 }, "200 was whole again");
        assert!(keyed.admit(at(1_000), 100, 2).is_err(), "100 is still known");
        keyed.admit(at(1_000), 200, 5).unwrap();
        assert_eq!((keyed.keys(), keyed.evicted()), (2, Evicted { whole: 1, owing: 1 }), "300 owed a second");
        assert_eq!((keyed.take_overflow(), keyed.take_overflow()), (Some(1), None));
    }

    #[test]
    fn memory_is_what_is_stated() {
        for keys_max in [1_u32, 3, 1_000, 1_024, 1_025] {
            let keyed = KeyedRate::new(config(1, 1_000, 5), keys_max, 7).unwrap();
            let bytes = keyed.tats.len() * 16
                + keyed.keys.len() * 8
                + keyed.place.len() * 4
                + keyed.index.len() * 4
                + keyed.heap.capacity() * 4;
            assert!(bytes <= KEY_BYTES_MAX * keys_max as usize, "{bytes} for {keys_max}");
        }
    }

    #[test]
    fn keys_are_told_apart_by_parts() {
        let secret = [7; 32];
        assert_ne!(key_of(&secret, &[b"ab", b"c"]), key_of(&secret, &[b"a", b"bc"]));
        assert_ne!(key_of(&secret, &[b"a"]), key_of(&[8; 32], &[b"a"]));
        assert_eq!(key_of(&secret, &[b"a"]), key_of(&secret, &[b"a"]));
    }

    /// A till that serves: how much it still has to do, in ticks.
    struct Model {
        owed: u128,
        at: u64,
    }

    impl Model {
        fn admit(&mut self, now: u64, cells: u32, config: &RateConfig) -> bool {
            self.owed = self.owed.saturating_sub(u128::from(now - self.at) * u128::from(config.cells));
            self.at = now;
            let per = config.per.as_nanos();
            let fits = self.owed + per * u128::from(cells) <= per * u128::from(config.burst);
            if fits {
                self.owed += per * u128::from(cells);
            }
            fits
        }
    }

    /// Gaps as clocks make them: none, small, days, the end of time.
    fn gap() -> impl Strategy<Value = u64> {
        prop_oneof![4 => Just(0), 8 => 0_u64..400_000_000, 1 => 0..864_000_000_000_000_u64, 1 => any::<u64>()]
    }

    proptest! {
        #[test]
        fn a_till_and_nothing_else(
            cells in 1_u32..2_000, per in 1_u64..2_000_000_000, burst in 1_u32..20,
            steps in prop::collection::vec((gap(), 0_u32..25), 1..100),
        ) {
            let config = RateConfig { cells, per: Duration::from_nanos(per), burst };
            let mut rate = Rate::new(config).unwrap();
            let (mut model, mut now) = (Model { owed: 0, at: 0 }, 0_u64);
            for (gap, weight) in steps {
                now = now.saturating_add(gap);
                let at = Mono::from_nanos(now);
                let available = rate.available(at);
                let before = rate.clone();
                let passed = rate.admit(at, weight);
                prop_assert_eq!(passed.is_ok(), model.admit(now, weight, &config));
                prop_assert_eq!(passed.is_ok(), weight <= available);
                match passed {
                    Err(Refusal::RateLimited { retry_in, .. }) if now.checked_add(retry_in.as_nanos() as u64).is_some() => {
                        // Exact: it passes then, and not a nanosecond earlier.
                        prop_assert!(before.clone().admit(at + retry_in, weight).is_ok());
                        prop_assert!(before.clone().admit(at + retry_in - Duration::from_nanos(1), weight).is_err());
                    }
                    Err(Refusal::OverBurst { .. }) => prop_assert!(weight > burst),
                    _ => {}
                }
            }
        }

        #[test]
        fn a_keyed_limit_is_many_limits_while_they_fit(
            seed: u64, steps in prop::collection::vec((gap(), 0_u64..12, 0_u32..5), 1..300),
        ) {
            let mut keyed = KeyedRate::new(config(3, 1_000, 4), 12, seed).unwrap();
            let (mut model, mut now) = (BTreeMap::new(), Mono::ZERO);
            for (gap, key, weight) in steps {
                now = now + Duration::from_nanos(gap);
                let rate = model.entry(key).or_insert_with(|| Rate::new(config(3, 1_000, 4)).unwrap());
                prop_assert_eq!(keyed.admit(now, key, weight), rate.admit(now, weight));
            }
            prop_assert_eq!(keyed.evicted(), Evicted::default());
        }

        #[test]
        fn too_many_keys_lose_only_what_is_counted(
            seed: u64, steps in prop::collection::vec((gap(), 0_u64..40, 1_u32..5), 1..400),
        ) {
            // The model keeps what is owed and evicts by search.
            let mut keyed = KeyedRate::new(config(3, 1_000, 4), 6, seed).unwrap();
            let (mut known, mut now) = (BTreeMap::<u64, Rate>::new(), Mono::ZERO);
            for (gap, key, weight) in steps {
                now = now + Duration::from_nanos(gap);
                let fresh = || Rate::new(config(3, 1_000, 4)).unwrap();
                let mut rate = known.get(&key).cloned().unwrap_or_else(fresh);
                let (before, passed) = (keyed.evicted(), keyed.admit(now, key, weight));
                prop_assert_eq!(&passed, &rate.admit(now, weight));
                if passed.is_ok() {
                    if !known.contains_key(&key) && known.len() == 6 {
                        let least = known.values().map(|rate| rate.tat).min().unwrap();
                        let owing = least > known[known.keys().next().unwrap()].pace.ticks(now);
                        prop_assert_eq!(keyed.evicted().owing - before.owing, u64::from(owing));
                        // Which of several equals went is the heap's affair: ask it.
                        let gone: Vec<u64> = known.keys().copied().filter(|&key| keyed.find(key).is_none()).collect();
                        prop_assert_eq!(gone.len(), 1);
                        prop_assert_eq!(known.remove(&gone[0]).unwrap().tat, least);
                    }
                    known.insert(key, rate);
                }
                prop_assert_eq!(keyed.keys(), known.len());
                prop_assert!(known.keys().all(|&key| keyed.find(key).is_some()));
            }
        }
    }
}
