//! Calls on their way, by when they began: enough to tell how many are past the slow limit, without a list of them.
//!
//! Picture a ring of [`SLOTS`] tally marks, each for a short while. A call that begins makes a mark in the newest, a
//! call that ends wipes one from where it began. Marks in slots older than the limit are overdue. What falls off the
//! ring goes on a second one, sixteen times as coarse: who hangs long is late by any measure. What falls off that is
//! forgotten: a permit that nobody gives back counts for some thirty times the limit, not for ever.

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

    /// The slots that a ring loses when its newest one moves on.
    pub(super) fn falling(from: u64, to: u64) -> impl Iterator<Item = u64> {
        (Self::oldest(from)..=from).take_while(move |slot| *slot < Self::oldest(to))
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

/// What has fallen off a ring, sixteen slots together. All of it is overdue.
#[derive(Clone, Debug, Default)]
pub(super) struct Fallen {
    newest: u64,
    /// Begun less ended: where several owners mark the same calls, one may have begun what another ended.
    marks: [i64; SLOTS as usize],
}

impl Fallen {
    /// Forgets what is too old, now that the ring's newest slot is this one.
    pub(super) fn turn(&mut self, newest_slot: u64) {
        let newest = newest_slot / SLOTS;
        let steps = newest.saturating_sub(self.newest).min(SLOTS);
        (0..steps).for_each(|step| self.marks[place(newest - step)] = 0);
        self.newest = newest.max(self.newest);
    }

    /// True if calls that began in this slot are remembered.
    pub(super) fn remembers(&self, slot: u64) -> bool {
        (Cut::oldest(self.newest)..=self.newest).contains(&(slot / SLOTS))
    }

    pub(super) fn add(&mut self, slot: u64, calls: i64) {
        if self.remembers(slot) {
            self.marks[place(slot / SLOTS)] += calls;
        }
    }

    pub(super) fn sum(&self) -> i64 {
        self.marks.iter().sum()
    }
}

/// The ring of one owner.
#[derive(Clone, Debug)]
pub(super) struct Flights {
    cut: Cut,
    newest: u64,
    marks: [u32; SLOTS as usize],
    fallen: Fallen,
}

impl Flights {
    pub(super) fn new(cut: Cut, now: Mono) -> Self {
        let newest = cut.slot(now);
        let fallen = Fallen { newest: newest / SLOTS, ..Fallen::default() };
        Self { cut, newest, marks: [0; SLOTS as usize], fallen }
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
        } else if slot < self.newest {
            self.fallen.add(slot, -1);
        }
    }

    /// How many calls are past the limit. Late by one slot at most, never early.
    pub(super) fn overdue(&mut self, now: Mono) -> u32 {
        self.turn(now);
        let slots = Cut::oldest(self.newest)..=self.newest;
        let recent: u32 =
            slots.filter(|slot| self.cut.is_overdue(*slot, now)).map(|slot| self.marks[place(slot)]).sum();
        recent.saturating_add(u32::try_from(self.fallen.sum()).unwrap_or(0))
    }

    /// When the count of overdue calls may next rise, if any call is on its way.
    pub(super) fn turns_at(&self) -> Option<Mono> {
        (self.fallen.sum() > 0 || self.marks.iter().any(|mark| *mark > 0)).then(|| self.cut.turns_at(self.newest))
    }

    fn turn(&mut self, now: Mono) {
        let newest = self.cut.slot(now).max(self.newest);
        self.fallen.turn(newest);
        for slot in Cut::falling(self.newest, newest) {
            let marks = std::mem::take(&mut self.marks[place(slot)]);
            self.fallen.add(slot, marks.into());
        }
        self.newest = newest;
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
        fn tells_who_is_overdue(steps in prop::collection::vec((prop_oneof![0_u64..300, 0_u64..20_000], 0_u8..3), 0..300)) {
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
                // Thirty times the limit is where it may begin to forget.
                let forgotten = past(over * 30);
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
