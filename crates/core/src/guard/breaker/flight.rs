//! Calls on their way, by when they began: enough to tell how many are past the slow limit, without a list of them.
//!
//! Picture a ring of [`SLOTS`] tally marks, each for a short while. A call that begins makes a mark in the newest, a
//! call that ends wipes one from where it began. Marks in slots older than the limit are overdue. A slot that falls off
//! the ring takes its marks with it: a permit that nobody gives back counts for a few times the limit, not for ever.

use std::time::Duration;

use crate::time::Mono;

/// Slots of a ring: at least four of them pass within the limit, and the ring holds at least twice the limit.
pub(super) const SLOTS: u64 = 16;

/// How a clock is cut into slots: by a power of two, so that finding one is a shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    shift: u32,
    over_nanos: u64,
}

impl Cut {
    /// Slots between an eighth and a quarter of the limit.
    pub(super) fn new(over: Duration) -> Self {
        let over_nanos = u64::try_from(over.as_nanos()).unwrap_or(u64::MAX);
        Self { shift: (over_nanos / 4).max(1).ilog2(), over_nanos }
    }

    pub(super) fn slot(self, now: Mono) -> u64 {
        now.as_nanos() >> self.shift
    }

    /// The oldest slot that a ring whose newest is `newest` still holds.
    pub(super) fn oldest(newest: u64) -> u64 {
        newest.saturating_sub(SLOTS - 1)
    }

    /// True if every call that began in this slot has been on its way for longer than the limit.
    pub(super) fn is_overdue(self, slot: u64, now: Mono) -> bool {
        u64::try_from(now.since(self.turns_at(slot)).as_nanos()).unwrap_or(u64::MAX) >= self.over_nanos
    }

    /// When the slot after this one begins.
    pub(super) fn turns_at(self, slot: u64) -> Mono {
        let next = slot.saturating_add(1);
        Mono::from_nanos(if next.leading_zeros() < self.shift { u64::MAX } else { next << self.shift })
    }
}

/// The ring of one owner.
#[derive(Clone, Debug)]
pub(super) struct Flights {
    cut: Cut,
    newest: u64,
    marks: [u32; SLOTS as usize],
}

impl Flights {
    pub(super) fn new(cut: Cut, now: Mono) -> Self {
        Self { cut, newest: cut.slot(now), marks: [0; SLOTS as usize] }
    }

    /// A call begins. Tells the slot it must give back.
    pub(super) fn begin(&mut self, now: Mono) -> u64 {
        self.turn(now);
        self.marks[place(self.newest)] += 1;
        self.newest
    }

    /// A call that began in this slot has ended.
    pub(super) fn end(&mut self, slot: u64) {
        if (Cut::oldest(self.newest)..=self.newest).contains(&slot) {
            let mark = &mut self.marks[place(slot)];
            *mark = mark.saturating_sub(1);
        }
    }

    /// How many calls are past the limit. Late by one slot at most, never early.
    pub(super) fn overdue(&mut self, now: Mono) -> u32 {
        self.turn(now);
        let slots = Cut::oldest(self.newest)..=self.newest;
        slots.filter(|slot| self.cut.is_overdue(*slot, now)).map(|slot| self.marks[place(slot)]).sum()
    }

    /// When the count of overdue calls may next rise, if any call is on its way.
    pub(super) fn turns_at(&self) -> Option<Mono> {
        self.marks.iter().any(|mark| *mark > 0).then(|| self.cut.turns_at(self.newest))
    }

    fn turn(&mut self, now: Mono) {
        let newest = self.cut.slot(now);
        let steps = newest.saturating_sub(self.newest).min(SLOTS);
        (0..steps).for_each(|step| self.marks[place(newest - step)] = 0);
        self.newest = newest.max(self.newest);
    }
}

pub(super) fn place(slot: u64) -> usize {
    (slot % SLOTS) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain list: never early, late by a slot at most, and never wrong about a call that has ended.
        #[test]
        fn tells_who_is_overdue(steps in prop::collection::vec((0_u64..300, 0_u8..3), 0..300)) {
            let over = Duration::from_millis(1_000);
            let (mut flights, mut model) = (Flights::new(Cut::new(over), Mono::ZERO), Vec::new());
            let mut now = Mono::ZERO;
            for (gap_ms, step) in steps {
                now = now + Duration::from_millis(gap_ms);
                match step {
                    0 | 1 => model.push((now, flights.begin(now))),
                    _ => if !model.is_empty() { flights.end(model.remove(0).1); },
                }
                let past = |limit: Duration| model.iter().filter(|(begun, _)| now.since(*begun) > limit).count();
                let overdue = flights.overdue(now) as usize;
                // Twice the limit is where the ring may begin to forget.
                let forgotten = past(over * 2);
                prop_assert!(overdue <= past(over), "never early");
                prop_assert!(overdue + forgotten >= past(over + over / 4), "late by a slot at most");
            }
        }
    }

    #[test]
    fn the_edges_of_time_do_no_harm() {
        for over in [Duration::from_nanos(1), Duration::from_secs(60), Duration::MAX] {
            let mut flights = Flights::new(Cut::new(over), Mono::ZERO);
            assert_eq!(flights.turns_at(), None, "nobody is on the way");
            let slot = flights.begin(Mono::ZERO);
            assert!(flights.turns_at().is_some());
            let end = Mono::from_nanos(u64::MAX);
            assert!(flights.overdue(end) <= 1);
            flights.begin(end);
            flights.end(slot);
            assert_eq!(flights.overdue(end), 0);
        }
    }
}
