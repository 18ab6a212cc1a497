//! The breaker for many threads: a healthy call reads one shared word and writes only to a sheet of its thread's own.
//!
//! Picture tally sheets handed to the threads. While the breaker is CLOSED and calm, a quick success can change nothing
//! but counts (rates only fall by it), so each thread marks its own sheet: a plain load and store, since nobody else
//! writes there. Whatever could decide something (a failure, a slow call, a turn of the clock, a thread without a
//! sheet) takes the lock, adds up every sheet first, and only then lets the one machine of `mod.rs` judge. The result
//! is that of the machine alone, call for call.
//!
//! Invariants: only its thread writes to a sheet, and begins it anew only under the lock; a sheet belongs to a
//! generation, so that a call that ends in the very moment of a transition is never counted for the state after it;
//! what is told is told under the lock, in the order it happened. Not here: any decision of its own.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::config::{BreakerConfig, StateName};
use super::flight::{Cut, Fallen, SLOTS, place};
use super::snapshot::Snapshot;
use super::{Breaker, IllegalTransition, Rates, Report, Told, cut, earlier};
use crate::guard::{Invalid, Refusal, Seen};
use crate::outcome::Outcome;
use crate::time::Mono;

/// Leave to make one call. Give it back through [`SharedBreaker::report`] or [`SharedBreaker::release`], or hold it in
/// a
/// [`Pass`], which does so when dropped. Any thread may give it back.
#[must_use = "a permit that is not given back holds a probe until it expires"]
#[derive(Debug, PartialEq, Eq)]
pub struct SharedPermit {
    /// `no longer marked (1 bit) | probe (15) | slot (16) | edition (32)`: one word, so that the healthy way keeps it
    /// in a register.
    packed: u64,
}

/// The machine and the sheets.
pub struct SharedBreaker {
    /// `edition << 1 | calm`.
    word: AtomicU64,
    /// Calls that took longer are slow, in nanoseconds.
    slow_over: AtomicU64,
    sheets: Box<[Sheet]>,
    desk: Mutex<Desk>,
    tell: Box<dyn Fn(&Told) + Send + Sync>,
}

/// What the lock protects.
struct Desk {
    machine: Breaker,
    /// Sheets of another edition mean nothing: `generation << 8 | times the slots were cut anew`, as far as they fit.
    edition: u32,
    recuts: u32,
    /// Of each sheet's ends, how many are in the window already.
    added: Box<[u32]>,
    /// Calls that began or ended under the lock, by slot.
    newest: u64,
    begun: [u32; SLOTS as usize],
    ended: [u32; SLOTS as usize],
    /// What has fallen off the sheets and off this.
    fallen: Fallen,
}

/// One thread's sheet, on cache lines of its own (two at a time, since processors fetch them in pairs).
#[derive(Default)]
#[repr(align(128))]
struct Sheet {
    /// Until when the newest slot, and the newest slice of the window, are the right ones.
    turns_at: AtomicU64,
    newest: AtomicU64,
    edition: AtomicU32,
    /// Calls that began, by slot.
    begun: [AtomicU32; SLOTS as usize],
    /// Quick successes that ended, by the slot they began in.
    ended: [AtomicU32; SLOTS as usize],
}

const CALM: u64 = 1;

impl SharedBreaker {
    /// With sheets for so many threads; further threads take the lock. `tell` hears every transition, in order and
    /// under the lock: it must be quick and must not call back.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no breaker.
    pub fn new(
        config: BreakerConfig,
        seed: u64,
        sheets: usize,
        now: Mono,
        tell: impl Fn(&Told) + Send + Sync + 'static,
    ) -> Result<Self, Invalid> {
        Ok(Self::over(Breaker::new(config, seed, now)?, sheets, now, Box::new(tell)))
    }

    /// One that goes on where another stopped; see [`Breaker::restore`].
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no breaker.
    pub fn restore(
        config: BreakerConfig,
        (snapshot, age): (&Snapshot, Duration),
        seed: u64,
        sheets: usize,
        now: Mono,
        tell: impl Fn(&Told) + Send + Sync + 'static,
    ) -> Result<Self, Invalid> {
        Ok(Self::over(Breaker::restore(config, snapshot, age, seed, now)?, sheets, now, Box::new(tell)))
    }

    fn over(mut machine: Breaker, sheets: usize, now: Mono, tell: Box<dyn Fn(&Told) + Send + Sync>) -> Self {
        machine.own_flights = false;
        let sheets: Box<[Sheet]> = (0..sheets.min(1_024)).map(|_| Sheet::default()).collect();
        let slow_over = AtomicU64::new(slow_over(&machine.config));
        let desk = Desk {
            edition: 0,
            recuts: 0,
            added: vec![0; sheets.len()].into(),
            newest: cut(&machine.config).slot(now),
            begun: [0; SLOTS as usize],
            ended: [0; SLOTS as usize],
            fallen: Fallen::default(),
            machine,
        };
        let shared = Self { word: AtomicU64::new(0), slow_over, sheets, desk: Mutex::new(desk), tell };
        drop(shared.lock(now));
        shared
    }

    /// Asks leave for one call. See [`Breaker::admit`].
    ///
    /// # Errors
    /// [`Refusal::BreakerOpen`].
    #[inline]
    pub fn admit(&self, now: Mono) -> Result<SharedPermit, Refusal> {
        self.admit_as(thread_number(), now)
    }

    #[inline]
    pub(super) fn admit_as(&self, thread: usize, now: Mono) -> Result<SharedPermit, Refusal> {
        let word = self.word.load(Acquire);
        let edition = (word >> 1) as u32;
        if word & CALM != 0
            && let Some(sheet) = self.sheet_of(thread, edition, now)
        {
            let slot = sheet.newest.load(Relaxed);
            mark(&sheet.begun[place(slot)]);
            return Ok(SharedPermit::new(edition, slot, 0));
        }
        self.admit_slowly(thread, now)
    }

    /// Like [`Self::admit`], as a value that gives itself back.
    ///
    /// # Errors
    /// [`Refusal::BreakerOpen`].
    pub fn acquire(&self, now: Mono) -> Result<Pass<'_>, Refusal> {
        let permit = self.admit(now)?;
        Ok(Pass { breaker: self, permit: Some(permit), started: now })
    }

    /// Takes in what a call came to. See [`Breaker::record`].
    #[inline]
    pub fn record(&self, now: Mono, permit: SharedPermit, outcome: Outcome, took: Duration) {
        self.record_as(thread_number(), now, permit, outcome, took);
    }

    #[inline]
    pub(super) fn record_as(&self, thread: usize, now: Mono, permit: SharedPermit, outcome: Outcome, took: Duration) {
        let is_quick = took.as_nanos() <= u128::from(self.slow_over.load(Relaxed));
        if outcome == Outcome::Success
            && is_quick
            && self.word.load(Acquire) == (u64::from(permit.edition()) << 1 | CALM)
            && permit.is_plain()
            && let Some(sheet) = self.sheet_of(thread, permit.edition(), now)
            && let Some(slot) = permit.slot_of(sheet.newest.load(Relaxed))
        {
            mark(&sheet.ended[place(slot)]);
            return;
        }
        self.report_slowly(thread, now, permit, Report::new(outcome, took));
    }

    /// The thread's own sheet, if it may be marked at this moment.
    #[inline]
    fn sheet_of(&self, thread: usize, edition: u32, now: Mono) -> Option<&Sheet> {
        let sheet = self.sheets.get(thread)?;
        (sheet.edition.load(Relaxed) == edition && now.as_nanos() < sheet.turns_at.load(Relaxed)).then_some(sheet)
    }

    /// Takes in what a call came to, with what the upstream asked for. See [`Breaker::report`].
    pub fn report(&self, now: Mono, permit: SharedPermit, report: Report) {
        if report.trip.is_none() && report.retry_after.is_none() {
            self.record(now, permit, report.outcome, report.took);
        } else {
            self.report_slowly(thread_number(), now, permit, report);
        }
    }

    /// Gives a permit back unused.
    pub fn release(&self, permit: SharedPermit) {
        // Without a clock to look at: nothing is added up, so nothing can be put into the wrong slice.
        let mut desk = self.desk();
        desk.end(&permit);
        let generation = desk.generation_of(&permit);
        desk.machine.give_back(generation, permit.probe());
    }

    /// The answer to a call has begun, and its end will be reported later: it hangs no more, however long it is.
    pub fn answered(&self, permit: &mut SharedPermit) {
        self.desk().end(permit);
        permit.packed |= SharedPermit::UNMARKED;
    }

    /// Asks leave for a probe of the driver's own. See [`Breaker::admit_probe`].
    ///
    /// # Errors
    /// [`Refusal::BreakerOpen`] while no probe is wanted.
    pub fn admit_probe(&self, now: Mono) -> Result<SharedPermit, Refusal> {
        let mut desk = self.lock(now);
        let permit = desk.machine.admit_probe(now)?;
        let SharedPermit { packed } = SharedPermit::new(desk.edition_now(), 0, permit.probe);
        Ok(SharedPermit { packed: packed | SharedPermit::UNMARKED })
    }

    /// Lets time pass. See [`Breaker::on_time`].
    pub fn on_time(&self, now: Mono) {
        let mut desk = self.lock(now);
        let told = desk.machine.on_time_with(now);
        self.tell(told);
    }

    /// When [`Self::on_time`] may have something to do.
    #[must_use]
    pub fn next_timer(&self) -> Option<Mono> {
        let desk = self.desk();
        let hangs_next = (desk.machine.counts_flights() && self.live(&desk, |_| true) > 0).then(|| {
            let newest = self.sheets.iter().map(|sheet| sheet.newest.load(Relaxed)).max().unwrap_or(0);
            cut(&desk.machine.config).turns_at(newest.max(desk.newest))
        });
        earlier(desk.machine.next_timer(), hangs_next)
    }

    /// When a call may be admitted: `None` for now. See [`Breaker::admits_at`].
    #[must_use]
    pub fn admits_at(&self) -> Option<Mono> {
        if self.word.load(Acquire) & CALM != 0 { None } else { self.desk().machine.admits_at() }
    }

    /// Moves it by hand. See [`Breaker::move_to`].
    ///
    /// # Errors
    /// [`IllegalTransition`] where [`StateName::may_become`] says no.
    pub fn move_to(&self, now: Mono, to: StateName) -> Result<(), IllegalTransition> {
        let mut desk = self.lock(now);
        let told = desk.machine.move_to(now, to)?;
        self.tell(told);
        Ok(())
    }

    /// Opens it by hand until a moment. See [`Breaker::open_until`].
    ///
    /// # Errors
    /// [`IllegalTransition`] where it may not become open.
    pub fn open_until(&self, now: Mono, until: Mono) -> Result<(), IllegalTransition> {
        let mut desk = self.lock(now);
        let told = desk.machine.open_until(now, until)?;
        self.tell(told);
        Ok(())
    }

    /// Closes it by hand, with an empty window.
    pub fn reset(&self, now: Mono) {
        let mut desk = self.lock(now);
        let told = desk.machine.reset(now);
        self.tell(Some(told));
    }

    /// Follows another configuration and keeps its state. See [`Breaker::reconfigure`].
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no breaker; nothing has changed.
    pub fn reconfigure(&self, config: BreakerConfig, now: Mono) -> Result<(), Invalid> {
        let mut desk = self.lock(now);
        let recut = cut(&config) != cut(&desk.machine.config);
        desk.machine.reconfigure(config, now)?;
        self.slow_over.store(slow_over(&desk.machine.config), Relaxed);
        // Slots of another cut mean nothing, and a window of another shape turns at another moment.
        desk.recuts = desk.recuts.wrapping_add(1);
        if recut {
            desk.newest = cut(&desk.machine.config).slot(now);
        }
        Ok(())
    }

    /// The state by name.
    #[must_use]
    pub fn state(&self) -> StateName {
        self.desk().machine.state()
    }

    /// What the window holds now.
    #[must_use]
    pub fn seen(&self, now: Mono) -> Seen {
        self.look(now, |machine| machine.seen(now))
    }

    /// The rates over that; `None` while too few calls are in it to judge.
    #[must_use]
    pub fn rates(&self, now: Mono) -> Option<Rates> {
        self.look(now, |machine| machine.rates(now))
    }

    /// Calls on their way that a slow limit looks at.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.live(&self.desk(), |_| true)
    }

    /// Looks at the machine itself: for what is asked for rarely.
    pub fn look<R>(&self, now: Mono, at: impl FnOnce(&mut Breaker) -> R) -> R {
        at(&mut self.lock(now).machine)
    }

    /// Everything worth keeping.
    #[must_use]
    pub fn snapshot(&self, now: Mono) -> Snapshot {
        self.look(now, |machine| machine.snapshot(now))
    }

    #[cold]
    fn admit_slowly(&self, thread: usize, now: Mono) -> Result<SharedPermit, Refusal> {
        let mut desk = self.lock(now);
        let told = desk.machine.on_time_with(now);
        self.tell(told);
        let (permit, told) = desk.machine.admit(now)?;
        self.tell(told);
        desk.turn(thread);
        let slot = desk.newest;
        desk.begun[place(slot)] += 1;
        Ok(SharedPermit::new(desk.edition, slot, permit.probe))
    }

    #[cold]
    fn report_slowly(&self, thread: usize, now: Mono, permit: SharedPermit, report: Report) {
        let mut desk = self.lock_after(now, |desk| desk.end(&permit));
        let generation = desk.generation_of(&permit);
        let told = desk.machine.take_in(now, generation, permit.probe(), report);
        self.tell(told);
        desk.turn(thread);
    }

    fn tell(&self, told: Option<Told>) {
        if let Some(told) = told {
            (self.tell)(&told);
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // A panic while locked cannot leave the machine half-changed in a way worse than refusing all calls.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self, now: Mono) -> Locked<'_> {
        self.lock_after(now, |_| {})
    }

    /// The desk with every sheet added up, after a last word. Letting go of it publishes whether the breaker is calm.
    fn lock_after(&self, now: Mono, first: impl FnOnce(&mut Desk)) -> Locked<'_> {
        let mut guard = self.desk();
        let desk = &mut *guard;
        first(desk);
        let mut good = 0;
        for (sheet, added) in self.sheets.iter().zip(&mut desk.added) {
            if sheet.edition.load(Acquire) == desk.edition {
                let ended = sheet.ended.iter().map(|ended| ended.load(Relaxed)).fold(0, u32::wrapping_add);
                good += u64::from(ended.wrapping_sub(*added));
                *added = ended;
            }
        }
        if good > 0 {
            desk.machine.window.record_good(good);
        }
        let cut = cut(&desk.machine.config);
        desk.turn_slots(cut.slot(now));
        let overdue = if desk.machine.counts_flights() { self.live(desk, |slot| cut.is_overdue(slot, now)) } else { 0 };
        desk.machine.overdue = u32::try_from(overdue).unwrap_or(u32::MAX);
        Locked { shared: self, desk: guard, now }
    }

    /// Calls on their way that began in slots of this kind, and those that began longer ago than any slot tells.
    fn live(&self, desk: &Desk, counts: impl Fn(u64) -> bool) -> u64 {
        let counted = |newest: u64| {
            (Cut::oldest(newest)..=newest).filter(|slot| counts(*slot) && desk.fallen.remembers(*slot)).map(place)
        };
        let mut live = desk.fallen.sum();
        for place in counted(desk.newest) {
            live += i64::from(desk.begun[place]) - i64::from(desk.ended[place]);
        }
        for sheet in self.sheets.iter().filter(|sheet| sheet.edition.load(Acquire) == desk.edition) {
            // A sheet that lags holds slots that have fallen off the others: what is on it is as old as it says.
            for place in counted(sheet.newest.load(Relaxed)) {
                live += i64::from(sheet.begun[place].load(Relaxed)) - i64::from(sheet.ended[place].load(Relaxed));
            }
        }
        u64::try_from(live).unwrap_or(0)
    }
}

impl SharedPermit {
    const UNMARKED: u64 = 1 << 63;

    #[inline]
    fn new(edition: u32, slot: u64, probe: u32) -> Self {
        Self { packed: u64::from(edition) | (slot & 0xffff) << 32 | u64::from(probe & 0x7fff) << 48 }
    }

    #[inline]
    fn edition(&self) -> u32 {
        self.packed as u32
    }

    fn probe(&self) -> u32 {
        (self.packed >> 48) as u32 & 0x7fff
    }

    /// Marked, and no probe.
    #[inline]
    fn is_plain(&self) -> bool {
        self.packed >> 48 == 0
    }

    /// The slot it began in, if a ring whose newest is this one still holds it.
    #[inline]
    fn slot_of(&self, newest: u64) -> Option<u64> {
        let ago = u64::from((newest as u16).wrapping_sub((self.packed >> 32) as u16));
        (ago < SLOTS).then(|| newest.wrapping_sub(ago))
    }

    /// The slot it began in, as far as sixteen bits tell: who is older than that is forgotten anyway.
    fn old_slot_of(&self, newest: u64) -> u64 {
        newest.wrapping_sub(u64::from((newest as u16).wrapping_sub((self.packed >> 32) as u16)))
    }
}

impl std::fmt::Debug for SharedBreaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedBreaker").field("state", &self.state()).field("sheets", &self.sheets.len()).finish()
    }
}

/// Only the sheet's own thread writes, so that a load and a store are enough.
#[inline]
fn mark(count: &AtomicU32) {
    count.store(count.load(Relaxed).wrapping_add(1), Release);
}

impl Sheet {
    /// Empties a place, for whoever holds the lock on the sheet's own thread. Tells what was begun and ended there.
    fn wipe(&self, place: usize) -> (u32, u32) {
        let (begun, ended) = (self.begun[place].load(Relaxed), self.ended[place].load(Relaxed));
        self.begun[place].store(0, Relaxed);
        self.ended[place].store(0, Relaxed);
        (begun, ended)
    }
}

impl Desk {
    fn edition_now(&self) -> u32 {
        (self.machine.generation as u32) << 8 | self.recuts & 0xff
    }

    /// The generation a permit was given in; zero, which no state has, if that is not the one there is now.
    fn generation_of(&self, permit: &SharedPermit) -> u64 {
        if permit.edition() >> 8 == self.machine.generation as u32 & 0xff_ffff { self.machine.generation } else { 0 }
    }

    /// A call of this edition has ended.
    fn end(&mut self, permit: &SharedPermit) {
        let is_marked = permit.packed & SharedPermit::UNMARKED == 0;
        if !is_marked || permit.edition() != self.edition {
            return;
        }
        match permit.slot_of(self.newest) {
            Some(slot) => self.ended[place(slot)] += 1,
            None => self.fallen.add(permit.old_slot_of(self.newest), -1),
        }
    }

    /// Puts together what is too old to be told apart.
    fn turn_slots(&mut self, newest: u64) {
        let newest = newest.max(self.newest);
        self.fallen.turn(newest);
        for slot in Cut::falling(self.newest, newest) {
            let (begun, ended) = (&mut self.begun[place(slot)], &mut self.ended[place(slot)]);
            self.fallen.add(slot, i64::from(std::mem::take(begun)) - i64::from(std::mem::take(ended)));
        }
        self.newest = newest;
    }
}

/// The desk under its lock. Letting go of it publishes whether the breaker is calm.
struct Locked<'a> {
    shared: &'a SharedBreaker,
    desk: MutexGuard<'a, Desk>,
    now: Mono,
}

impl std::ops::Deref for Locked<'_> {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.desk
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Desk {
        &mut self.desk
    }
}

impl Locked<'_> {
    /// Gives the sheet of this thread the edition, the slot and the slice of this moment.
    fn turn(&mut self, thread: usize) {
        self.renew();
        let Some(sheet) = self.shared.sheets.get(thread) else { return };
        let (now, desk) = (self.now, &mut *self.desk);
        desk.machine.window.seen(now);
        let newest = desk.newest;
        if sheet.edition.load(Relaxed) == desk.edition {
            for slot in Cut::falling(sheet.newest.load(Relaxed), newest) {
                let (begun, ended) = sheet.wipe(place(slot));
                desk.added[thread] = desk.added[thread].wrapping_sub(ended);
                desk.fallen.add(slot, i64::from(begun) - i64::from(ended));
            }
        } else {
            // All of it is dropped: what was added up of another edition is no more.
            (0..SLOTS as usize).for_each(|place| _ = sheet.wipe(place));
            desk.added[thread] = 0;
        }
        sheet.newest.store(newest, Relaxed);
        let cut = cut(&desk.machine.config);
        let never = Mono::from_nanos(u64::MAX);
        let flights = if desk.machine.counts_flights() { cut.turns_at(newest) } else { never };
        sheet.turns_at.store(flights.min(desk.machine.window.turns_at()).as_nanos(), Relaxed);
        sheet.edition.store(desk.edition, Release);
    }

    /// A new edition, if the generation or the cut has changed: what is on the sheets means nothing any more.
    fn renew(&mut self) {
        let edition = self.desk.edition_now();
        if self.desk.edition != edition {
            self.desk.edition = edition;
            (self.desk.begun, self.desk.ended) = ([0; SLOTS as usize], [0; SLOTS as usize]);
            let mut fallen = Fallen::default();
            fallen.turn(self.desk.newest);
            self.desk.fallen = fallen;
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.renew();
        let now = self.now;
        let is_calm = self.desk.machine.is_calm(now);
        self.shared.word.store(u64::from(self.desk.edition) << 1 | u64::from(is_calm), Release);
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

/// The number of this thread: the smallest that no other living thread has, so that sheets are used again.
#[inline]
fn thread_number() -> usize {
    NUMBER.with(|number| match number.get() {
        NO_NUMBER => take_number(),
        known => known,
    })
}

const NO_NUMBER: usize = usize::MAX;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(NO_NUMBER) };
    static HELD: Held = const { Held(Cell::new(NO_NUMBER)) };
}

/// Numbers given back by threads that have ended, and the smallest never given out.
static FREE: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

/// Gives its number back when the thread ends.
struct Held(Cell<usize>);

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.get() != NO_NUMBER {
            // Whatever runs after this on the thread has no sheet, and takes the lock.
            let _ = NUMBER.try_with(|number| number.set(NO_NUMBER - 1));
            FREE.lock().unwrap_or_else(PoisonError::into_inner).0.push(self.0.get());
        }
    }
}

#[cold]
fn take_number() -> usize {
    // At the very end of a thread there is nobody to give it back: no number then.
    HELD.try_with(|held| {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let smallest = (0..free.0.len()).min_by_key(|place| free.0[*place]);
        let number = match smallest {
            Some(place) => free.0.swap_remove(place),
            None => {
                free.1 += 1;
                free.1 - 1
            }
        };
        held.0.set(number);
        NUMBER.with(|own| own.set(number));
        number
    })
    .unwrap_or(NO_NUMBER)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What makes it cheap: where nothing could be decided, a call leaves marks on the sheet of its thread, and only
    /// there.
    #[test]
    fn a_calm_call_takes_no_lock() {
        let shared = SharedBreaker::new(BreakerConfig::default(), 7, 2, Mono::ZERO, |_| {}).unwrap();
        let marks = |thread: usize| {
            let sum = |counts: &[AtomicU32]| counts.iter().map(|count| count.load(Relaxed)).sum::<u32>();
            let sheet = &shared.sheets[thread];
            (sum(&sheet.begun), sum(&sheet.ended))
        };
        for _ in 0..10 {
            let permit = shared.admit_as(1, Mono::ZERO).unwrap();
            shared.record_as(1, Mono::ZERO, permit, Outcome::Success, Duration::ZERO);
        }
        assert_eq!((marks(0), marks(1)), ((0, 0), (9, 10)), "the first call found no sheet and began one");
        assert_eq!(shared.desk().begun.iter().sum::<u32>(), 1);
        assert_eq!(shared.in_flight(), 0);
    }

    #[test]
    fn threads_have_numbers_of_their_own_while_they_live() {
        let own = thread_number();
        assert_eq!(thread_number(), own);
        let others: Vec<usize> = (0..200).map(|_| std::thread::spawn(thread_number).join().unwrap()).collect();
        let given = FREE.lock().unwrap().1;
        assert!(others.iter().all(|other| *other != own && *other < given), "{own} {others:?}");
        assert!(given < 200, "numbers are used again: {given}");
    }
}
