//! The breaker for many threads: a healthy call reads one shared word and writes only to its own shard.
//!
//! Picture tally sheets handed to the workers. While the breaker is CLOSED and calm, a quick success can change nothing
//! but counts (rates only fall by it), so each worker marks its own sheet. Whatever could decide something (a failure,
//! a slow call, a turn of the clock, a sheet that is full) takes the lock, adds up every sheet first, and only then lets
//! the one machine of `mod.rs` judge. The result is that of the machine alone, call for call.
//!
//! Invariants: a mark carries the generation it was made in, so that a call that ends in the very moment of a
//! transition is never counted for the state after it; what is told is told under the lock, in the order it happened.
//! Not here: any decision of its own.

use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::config::{BreakerConfig, StateName};
use super::flight::{Cut, SLOTS, place};
use super::snapshot::Snapshot;
use super::{Breaker, IllegalTransition, Rates, Report, Told, cut, earlier};
use crate::guard::{Invalid, Refusal, Seen};
use crate::outcome::Outcome;
use crate::time::Mono;

/// Leave to make one call. Give it back through [`SharedBreaker::report`] or [`SharedBreaker::release`], or hold it in a
/// [`Pass`], which does so when dropped.
#[must_use = "a permit that is not given back holds a probe until it expires"]
#[derive(Debug, PartialEq, Eq)]
pub struct SharedPermit {
    generation: u64,
    probe: u32,
    shard: u32,
    slot: u64,
}

/// The machine and the sheets.
pub struct SharedBreaker {
    /// `generation << 1 | calm`.
    word: AtomicU64,
    /// Calls that took longer are slow, in nanoseconds.
    slow_over: AtomicU64,
    shards: Box<[Shard]>,
    machine: Mutex<Breaker>,
    tell: Box<dyn Fn(&Told) + Send + Sync>,
}

/// One worker's sheet, on cache lines of its own (two at a time, since processors fetch them in pairs).
#[repr(align(128))]
struct Shard {
    /// Until when the newest slot, and the newest slice of the window, are the right ones.
    turns_at: AtomicU64,
    newest: AtomicU64,
    /// By when calls began: [`Cell`]s.
    cells: [AtomicU64; SLOTS as usize],
}

/// What a sheet holds for one slot, in one word: `generation (12 bits) | on their way (24) | good (28)`.
#[derive(Clone, Copy)]
struct Cell(u64);

impl Cell {
    const GOOD: u64 = (1 << 28) - 1;
    const ONE_GOOD: u64 = 1;
    const ONE_LIVE: u64 = 1 << 28;
    const LIVE_MAX: u64 = (1 << 24) - 1;

    fn empty(generation: u64) -> Self {
        Self(generation << 52)
    }

    fn is_of(self, generation: u64) -> bool {
        self.0 >> 52 == generation & 0xfff
    }

    fn live(self) -> u64 {
        self.0 >> 28 & Self::LIVE_MAX
    }

    fn good(self) -> u64 {
        self.0 & Self::GOOD
    }
}

const CALM: u64 = 1;
/// The slot of a call that is on no sheet.
const LANDED: u64 = u64::MAX;

impl SharedBreaker {
    /// For `shards` workers, rounded up to a power of two. `tell` hears every transition, in order and under the lock:
    /// it must be quick and must not call back.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no breaker.
    pub fn new(
        config: BreakerConfig,
        seed: u64,
        shards: usize,
        now: Mono,
        tell: impl Fn(&Told) + Send + Sync + 'static,
    ) -> Result<Self, Invalid> {
        Ok(Self::over(Breaker::new(config, seed, now)?, shards, now, Box::new(tell)))
    }

    /// One that goes on where another stopped; see [`Breaker::restore`].
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no breaker.
    pub fn restore(
        config: BreakerConfig,
        (snapshot, age): (&Snapshot, Duration),
        seed: u64,
        shards: usize,
        now: Mono,
        tell: impl Fn(&Told) + Send + Sync + 'static,
    ) -> Result<Self, Invalid> {
        Ok(Self::over(Breaker::restore(config, snapshot, age, seed, now)?, shards, now, Box::new(tell)))
    }

    fn over(mut machine: Breaker, shards: usize, now: Mono, tell: Box<dyn Fn(&Told) + Send + Sync>) -> Self {
        machine.own_flights = false;
        let shards = (0..shards.clamp(1, 1_024).next_power_of_two()).map(|_| Shard {
            turns_at: AtomicU64::new(0),
            newest: AtomicU64::new(cut(&machine.config).slot(now)),
            cells: std::array::from_fn(|_| AtomicU64::new(Cell::empty(machine.generation).0)),
        });
        let shards = shards.collect();
        let slow_over = AtomicU64::new(slow_over(&machine.config));
        let shared = Self { word: AtomicU64::new(0), slow_over, shards, machine: Mutex::new(machine), tell };
        drop(shared.lock(now));
        shared
    }

    /// Asks leave for one call, on behalf of the worker with this number. See [`Breaker::admit`].
    ///
    /// # Errors
    /// [`Refusal::BreakerOpen`].
    #[inline]
    pub fn admit(&self, worker: usize, now: Mono) -> Result<SharedPermit, Refusal> {
        let word = self.word.load(Acquire);
        let index = worker & (self.shards.len() - 1);
        let shard = &self.shards[index];
        if word & CALM != 0 && now.as_nanos() < shard.turns_at.load(Relaxed) {
            let slot = shard.newest.load(Relaxed);
            if shard.change(slot, word >> 1, Cell::begun) {
                return Ok(SharedPermit { generation: word >> 1, probe: 0, shard: index as u32, slot });
            }
        }
        self.admit_slowly(index, now)
    }

    /// Like [`Self::admit`], as a value that gives itself back.
    ///
    /// # Errors
    /// [`Refusal::BreakerOpen`].
    pub fn acquire(&self, worker: usize, now: Mono) -> Result<Pass<'_>, Refusal> {
        let permit = self.admit(worker, now)?;
        Ok(Pass { breaker: self, permit: Some(permit), started: now })
    }

    /// Takes in what a call came to. See [`Breaker::record`].
    #[inline]
    pub fn record(&self, now: Mono, permit: SharedPermit, outcome: Outcome, took: Duration) {
        // Split, so that the common case compares whole words and no more.
        let is_quick = took.as_nanos() <= u128::from(self.slow_over.load(Relaxed));
        if outcome == Outcome::Success && is_quick && self.marks_good(now, &permit) {
            return;
        }
        self.report_slowly(now, permit, Report::new(outcome, took));
    }

    /// Takes in what a call came to, with what the upstream asked for. See [`Breaker::report`].
    pub fn report(&self, now: Mono, permit: SharedPermit, report: Report) {
        if report.trip.is_none() {
            return if report.retry_after.is_none() {
                self.record(now, permit, report.outcome, report.took);
            } else {
                self.report_slowly(now, permit, report);
            };
        }
        self.report_slowly(now, permit, report);
    }

    /// Gives a permit back unused.
    pub fn release(&self, permit: SharedPermit) {
        let shard = &self.shards[permit.shard as usize];
        shard.end(&permit);
        if permit.probe != 0 || self.word.load(Acquire) >> 1 != permit.generation {
            // Without a clock to look at: nothing is folded, so nothing can be put into the wrong slice.
            self.machine().give_back(permit.generation, permit.probe);
        }
    }

    /// The answer to a call has begun, and its end will be reported later: it hangs no more, however long it is.
    pub fn answered(&self, permit: &mut SharedPermit) {
        self.shards[permit.shard as usize].end(permit);
        permit.slot = LANDED;
    }

    /// Asks leave for a probe of the driver's own. See [`Breaker::admit_probe`].
    ///
    /// # Errors
    /// [`Refusal::BreakerOpen`] while no probe is wanted.
    pub fn admit_probe(&self, now: Mono) -> Result<SharedPermit, Refusal> {
        let mut machine = self.lock(now);
        let permit = machine.admit_probe(now)?;
        Ok(SharedPermit { generation: permit.generation, probe: permit.probe, shard: 0, slot: LANDED })
    }

    /// Lets time pass. See [`Breaker::on_time`].
    pub fn on_time(&self, now: Mono) {
        let mut machine = self.lock(now);
        let told = machine.on_time_with(now);
        self.tell(told);
    }

    /// When [`Self::on_time`] may have something to do.
    #[must_use]
    pub fn next_timer(&self) -> Option<Mono> {
        let machine = self.machine();
        let of_flights = (machine.counts_flights() && self.in_flight() > 0).then(|| {
            let cut = cut(&machine.config);
            let newest = self.shards.iter().map(|shard| shard.newest.load(Relaxed)).max().unwrap_or(0);
            cut.turns_at(newest)
        });
        earlier(machine.next_timer(), of_flights)
    }

    /// When a call may be admitted: `None` for now. See [`Breaker::admits_at`].
    #[must_use]
    pub fn admits_at(&self) -> Option<Mono> {
        if self.word.load(Acquire) & CALM != 0 { None } else { self.machine().admits_at() }
    }

    /// Moves it by hand. See [`Breaker::move_to`].
    ///
    /// # Errors
    /// [`IllegalTransition`] where [`StateName::may_become`] says no.
    pub fn move_to(&self, now: Mono, to: StateName) -> Result<(), IllegalTransition> {
        let mut machine = self.lock(now);
        let told = machine.move_to(now, to)?;
        self.tell(told);
        Ok(())
    }

    /// Opens it by hand until a moment. See [`Breaker::open_until`].
    ///
    /// # Errors
    /// [`IllegalTransition`] where it may not become open.
    pub fn open_until(&self, now: Mono, until: Mono) -> Result<(), IllegalTransition> {
        let mut machine = self.lock(now);
        let told = machine.open_until(now, until)?;
        self.tell(told);
        Ok(())
    }

    /// Closes it by hand, with an empty window.
    pub fn reset(&self, now: Mono) {
        let mut machine = self.lock(now);
        let told = machine.reset(now);
        self.tell(Some(told));
    }

    /// Follows another configuration and keeps its state. See [`Breaker::reconfigure`].
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no breaker; nothing has changed.
    pub fn reconfigure(&self, config: BreakerConfig, now: Mono) -> Result<(), Invalid> {
        let mut machine = self.lock(now);
        machine.reconfigure(config, now)?;
        self.slow_over.store(slow_over(&machine.config), Relaxed);
        machine.clear();
        Ok(())
    }

    /// The state by name.
    #[must_use]
    pub fn state(&self) -> StateName {
        self.machine().state()
    }

    /// What the window holds now.
    #[must_use]
    pub fn seen(&self, now: Mono) -> Seen {
        self.lock(now).seen(now)
    }

    /// The rates over that; `None` while too few calls are in it to judge.
    #[must_use]
    pub fn rates(&self, now: Mono) -> Option<Rates> {
        self.lock(now).rates(now)
    }

    /// Calls on their way that a slow limit looks at.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.shards.iter().flat_map(|shard| &shard.cells).map(|cell| Cell(cell.load(Relaxed)).live()).sum()
    }

    /// Looks at the machine itself: for what is asked for rarely.
    pub fn look<R>(&self, now: Mono, at: impl FnOnce(&mut Breaker) -> R) -> R {
        at(&mut self.lock(now))
    }

    /// Everything worth keeping.
    #[must_use]
    pub fn snapshot(&self, now: Mono) -> Snapshot {
        self.lock(now).snapshot(now)
    }

    /// True if the success could be marked on the worker's own sheet.
    #[inline]
    fn marks_good(&self, now: Mono, permit: &SharedPermit) -> bool {
        let shard = &self.shards[permit.shard as usize];
        permit.slot != LANDED
            && self.word.load(Acquire) == (permit.generation << 1 | CALM)
            && now.as_nanos() < shard.turns_at.load(Relaxed)
            && shard.change(permit.slot, permit.generation, Cell::ended_good)
    }

    #[cold]
    fn admit_slowly(&self, index: usize, now: Mono) -> Result<SharedPermit, Refusal> {
        let mut machine = self.lock(now);
        let told = machine.on_time_with(now);
        self.tell(told);
        let (permit, told) = machine.admit(now)?;
        self.tell(told);
        let shard = &self.shards[index];
        machine.turn(shard);
        let (generation, slot) = (permit.generation, shard.newest.load(Relaxed));
        shard.change(slot, generation, Cell::begun);
        Ok(SharedPermit { generation, probe: permit.probe, shard: index as u32, slot })
    }

    #[cold]
    fn report_slowly(&self, now: Mono, permit: SharedPermit, report: Report) {
        let shard = &self.shards[permit.shard as usize];
        shard.end(&permit);
        let mut machine = self.lock(now);
        let told = machine.take_in(now, permit.generation, permit.probe, report);
        self.tell(told);
        machine.turn(shard);
    }

    fn tell(&self, told: Option<Told>) {
        if let Some(told) = told {
            (self.tell)(&told);
        }
    }

    fn machine(&self) -> MutexGuard<'_, Breaker> {
        // A panic while locked cannot leave the machine half-changed in a way worse than refusing all calls.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine with every sheet added up, which publishes what it is when let go.
    fn lock(&self, now: Mono) -> Locked<'_> {
        let mut machine = self.machine();
        let (cut, counts_flights) = (cut(&machine.config), machine.counts_flights());
        let (mut good, mut overdue) = (0, 0);
        for shard in &self.shards {
            let newest = shard.newest.load(Relaxed);
            for slot in Cut::oldest(newest)..=newest {
                let cell = &shard.cells[place(slot)];
                let mut seen = Cell(cell.load(Relaxed));
                if seen.good() > 0 {
                    seen = Cell(cell.fetch_and(!Cell::GOOD, AcqRel));
                }
                if seen.is_of(machine.generation) {
                    good += seen.good();
                    if counts_flights && seen.live() > 0 && cut.is_overdue(slot, now) {
                        overdue += seen.live();
                    }
                }
            }
        }
        if good > 0 {
            machine.window.record_good(good);
        }
        machine.overdue = u32::try_from(overdue).unwrap_or(u32::MAX);
        Locked { generation: machine.generation, shared: self, machine, now }
    }
}

impl std::fmt::Debug for SharedBreaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedBreaker").field("state", &self.state()).field("shards", &self.shards.len()).finish()
    }
}

impl Shard {
    /// Wipes the mark of a call that has ended, if its slot is still on the sheet.
    fn end(&self, permit: &SharedPermit) {
        let newest = self.newest.load(Relaxed);
        if (Cut::oldest(newest)..=newest).contains(&permit.slot) {
            self.change(permit.slot, permit.generation, Cell::ended);
        }
    }

    /// Changes a cell, if it is of this generation and the change is possible.
    #[inline]
    fn change(&self, slot: u64, generation: u64, change: impl Fn(Cell) -> Option<Cell>) -> bool {
        let cell = &self.cells[place(slot)];
        let mut seen = cell.load(Relaxed);
        while Cell(seen).is_of(generation)
            && let Some(Cell(new)) = change(Cell(seen))
        {
            match cell.compare_exchange_weak(seen, new, AcqRel, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }
}

impl Cell {
    fn begun(self) -> Option<Self> {
        (self.live() < Self::LIVE_MAX).then_some(Self(self.0 + Self::ONE_LIVE))
    }

    fn ended(self) -> Option<Self> {
        (self.live() > 0).then(|| Self(self.0 - Self::ONE_LIVE))
    }

    fn ended_good(self) -> Option<Self> {
        (self.live() > 0 && self.good() < Self::GOOD).then(|| Self(self.0 - Self::ONE_LIVE + Self::ONE_GOOD))
    }
}

/// The machine under its lock. Letting go of it publishes whether it is calm.
struct Locked<'a> {
    shared: &'a SharedBreaker,
    machine: MutexGuard<'a, Breaker>,
    generation: u64,
    now: Mono,
}

impl std::ops::Deref for Locked<'_> {
    type Target = Breaker;

    fn deref(&self) -> &Breaker {
        &self.machine
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Breaker {
        &mut self.machine
    }
}

impl Locked<'_> {
    /// Gives a shard the slot and the slice of this moment.
    fn turn(&mut self, shard: &Shard) {
        if self.machine.generation != self.generation {
            self.clear();
        }
        let now = self.now;
        self.machine.window.seen(now);
        let cut = cut(&self.machine.config);
        let (old, newest) = (shard.newest.load(Relaxed), cut.slot(now));
        for step in 0..newest.saturating_sub(old).min(SLOTS) {
            let dropped = Cell(shard.cells[place(newest - step)].swap(Cell::empty(self.generation).0, AcqRel));
            if dropped.good() > 0 && dropped.is_of(self.generation) {
                self.machine.window.record_good(dropped.good());
            }
        }
        let newest = newest.max(old);
        shard.newest.store(newest, Relaxed);
        let never = Mono::from_nanos(u64::MAX);
        let flights = if self.machine.counts_flights() { cut.turns_at(newest) } else { never };
        shard.turns_at.store(flights.min(self.machine.window.turns_at()).as_nanos(), Relaxed);
    }

    /// Blank sheets for the generation there is now.
    fn clear(&mut self) {
        self.generation = self.machine.generation;
        let newest = cut(&self.machine.config).slot(self.now);
        for shard in &self.shared.shards {
            shard.turns_at.store(0, Relaxed);
            shard.newest.store(newest, Relaxed);
            for cell in &shard.cells {
                let dropped = Cell(cell.swap(Cell::empty(self.generation).0, AcqRel));
                // Marked since the sheets were added up, and of this very generation: it was only recut.
                if dropped.good() > 0 && dropped.is_of(self.generation) {
                    self.machine.window.record_good(dropped.good());
                }
            }
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.machine.generation != self.generation {
            self.clear();
        }
        let is_calm = self.machine.is_calm(self.now);
        // Sheets before word: who reads the new word finds sheets of its generation, and who still holds the old one
        // finds none that it could mark.
        self.shared.word.store(self.machine.generation << 1 | u64::from(is_calm), Release);
    }
}

/// Leave to make one call, as a value that gives itself back: a call that is dropped half way says nothing about the
/// upstream and leaves no probe behind.
#[must_use = "dropping it at once gives it back"]
#[derive(Debug)]
pub struct Pass<'a> {
    breaker: &'a SharedBreaker,
    permit: Option<SharedPermit>,
    started: Mono,
}

impl Pass<'_> {
    /// Takes in what the call came to.
    pub fn record(self, now: Mono, outcome: Outcome) {
        let took = now.since(self.started);
        self.report(now, Report::new(outcome, took));
    }

    /// Takes in what the call came to, with what the upstream asked for.
    pub fn report(mut self, now: Mono, report: Report) {
        if let Some(permit) = self.permit.take() {
            self.breaker.report(now, permit, report);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.breaker.release(permit);
        }
    }
}

fn slow_over(config: &BreakerConfig) -> u64 {
    config.slow.map_or(u64::MAX, |slow| u64::try_from(slow.over.as_nanos()).unwrap_or(u64::MAX))
}
