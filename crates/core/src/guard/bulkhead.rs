//! Bulkhead: so many calls at the same time and no more, with a short, bounded queue in front.
//!
//! One slow upstream must not take every connection, task and byte of memory with it. Picture a ship's compartments:
//! what floods one does not sink the others. Who cannot be served before its own deadline is refused at once instead of
//! waiting for nothing. More urgent calls are served first, and when the queue is full the least urgent, newest one
//! makes room. Within one urgency: first come, first served; or, with [`Order::AdaptiveLifo`], the newest first while
//! the queue is more than half full, since those at its end have mostly been given up by their callers (Maurer, "Fail
//! at Scale", ACM Queue 2015).
//!
//! Invariants: never more than `calls_max` inside; a place is neither lost nor made up; nobody waits beyond its
//! deadline. Not here: the waiting itself (the driver's), limits that move by themselves (`concurrency.rs`).

use std::collections::VecDeque;
use std::time::Duration;

use super::{Invalid, Refusal};
use crate::time::Mono;

/// How many, and how many may wait for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BulkheadConfig {
    /// Calls at the same time.
    pub calls_max: u32,
    /// Calls waiting for a place.
    pub waiting_max: u32,
    /// The longest wait.
    pub wait_max: Duration,
    /// Who of those waiting is served first.
    pub order: Order,
}

impl Default for BulkheadConfig {
    fn default() -> Self {
        Self { calls_max: 1_024, waiting_max: 1_024, wait_max: Duration::from_secs(1), order: Order::Fifo }
    }
}

impl BulkheadConfig {
    /// # Errors
    /// [`Invalid`] when nobody could ever enter.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.calls_max > 0 {
            return Ok(());
        }
        Err(Invalid { key: "bulkhead", value: "0 calls".into(), allowed: "1 call or more" })
    }
}

/// Who of those waiting is served first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The one who waits longest.
    #[default]
    Fifo,
    /// The newest while the queue is more than half full, the one who waits longest otherwise.
    AdaptiveLifo,
}

/// How urgent a call is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody is hurt if it waits.
    Critical,
    /// The usual.
    #[default]
    Normal,
    /// Nobody waits for it.
    Background,
}

const PRIORITIES: usize = 3;

/// What became of somebody who asked for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Go; call [`Bulkhead::leave`] at the end.
    Admitted,
    /// Wait until named by [`Bulkhead::leave`], or [`Bulkhead::abandon`] at this moment.
    Waiting {
        /// Its place in the queue.
        ticket: Ticket,
        /// No longer than this.
        until: Mono,
        /// Who had to make room: it must be told that it is refused.
        evicted: Option<Ticket>,
    },
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// The machine.
#[derive(Clone, Debug)]
pub struct Bulkhead {
    config: BulkheadConfig,
    in_flight: u32,
    queues: [VecDeque<Ticket>; PRIORITIES],
    next_ticket: u64,
}

impl Bulkhead {
    /// Empty.
    #[must_use]
    pub fn new(config: BulkheadConfig) -> Self {
        Self { config, in_flight: 0, queues: Default::default(), next_ticket: 0 }
    }

    /// Asks for a place. `deadline` is the caller's own: it never waits beyond it.
    ///
    /// # Errors
    /// [`Refusal::BulkheadFull`] when the queue is full of calls at least as urgent, or there is no time to wait.
    pub fn enter(&mut self, now: Mono, deadline: Mono, priority: Priority) -> Result<Entry, Refusal> {
        if self.in_flight < self.config.calls_max {
            self.in_flight += 1;
            return Ok(Entry::Admitted);
        }
        let until = deadline.min(now + self.config.wait_max);
        if until <= now {
            return Err(self.refusal());
        }
        let evicted = if self.waiting() >= self.config.waiting_max { Some(self.evict(priority)?) } else { None };
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.queues[priority as usize].push_back(ticket);
        Ok(Entry::Waiting { ticket, until, evicted })
    }

    /// A call has ended. Whoever is named has the place now and must [`Bulkhead::leave`] it in turn.
    pub fn leave(&mut self) -> Option<Ticket> {
        if self.in_flight > self.config.calls_max {
            // The limit was lowered: the place is not given on.
            self.in_flight -= 1;
            return None;
        }
        let newest_first = self.config.order == Order::AdaptiveLifo && 2 * self.waiting() > self.config.waiting_max;
        let queue = self.queues.iter_mut().find(|queue| !queue.is_empty());
        let next = queue.and_then(|queue| if newest_first { queue.pop_back() } else { queue.pop_front() });
        if next.is_none() {
            self.in_flight = self.in_flight.checked_sub(1).expect("nobody leaves who has not entered");
        }
        next
    }

    /// The wait is over without a place. `None` if the place was given just before: then it is the caller's.
    pub fn abandon(&mut self, ticket: Ticket) -> Option<Refusal> {
        for queue in &mut self.queues {
            // Tickets are given out in order, so that each queue is sorted.
            if let Ok(place) = queue.binary_search(&ticket) {
                queue.remove(place);
                return Some(self.refusal());
            }
        }
        None
    }

    /// Follows another configuration. Who is inside stays; the driver calls [`Bulkhead::leave`] for nobody on its
    /// account.
    pub fn reconfigure(&mut self, config: BulkheadConfig) {
        self.config = config;
    }

    /// Calls on their way.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Calls waiting.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        u32::try_from(self.queues.iter().map(VecDeque::len).sum::<usize>()).unwrap_or(u32::MAX)
    }

    /// What somebody is told who finds it full.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal::BulkheadFull {
            calls_max: self.config.calls_max,
            waiting: self.waiting(),
            retry_in: self.config.wait_max.max(Duration::from_secs(1)),
        }
    }

    /// Makes room for a call of this urgency: the newest of the least urgent goes, if it is less urgent.
    fn evict(&mut self, priority: Priority) -> Result<Ticket, Refusal> {
        let less_urgent = &mut self.queues[priority as usize + 1..];
        match less_urgent.iter_mut().rev().find_map(VecDeque::pop_back) {
            Some(evicted) => Ok(evicted),
            None => Err(self.refusal()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Priority::{Background, Critical, Normal};
    use super::*;

    const FAR: Mono = Mono::from_millis(10_000);

    fn config() -> BulkheadConfig {
        BulkheadConfig { calls_max: 2, waiting_max: 2, wait_max: Duration::from_millis(100), order: Order::Fifo }
    }

    fn waits(entry: Result<Entry, Refusal>) -> (Ticket, Mono, Option<Ticket>) {
        let Ok(Entry::Waiting { ticket, until, evicted }) = entry else { panic!("must wait: {entry:?}") };
        (ticket, until, evicted)
    }

    #[test]
    fn first_come_first_served_within_bounds() {
        let mut bulkhead = Bulkhead::new(config());
        let now = Mono::from_millis(5);
        assert_eq!(bulkhead.enter(now, FAR, Normal), Ok(Entry::Admitted));
        assert_eq!(bulkhead.enter(now, FAR, Normal), Ok(Entry::Admitted));
        let (first, until, _) = waits(bulkhead.enter(now, FAR, Normal));
        assert_eq!(until, Mono::from_millis(105));
        let soon = Mono::from_millis(20);
        let (second, until, _) = waits(bulkhead.enter(now, soon, Normal));
        assert_eq!(until, soon, "never beyond the caller's own deadline");
        let refusal = bulkhead.enter(now, FAR, Normal).unwrap_err();
        assert_eq!(refusal.to_string(), "2 calls are on their way already and 2 wait");
        assert_eq!(refusal.retry_in(), Some(Duration::from_secs(1)), "no sooner than in a second");
        assert_eq!(bulkhead.leave(), Some(first));
        assert!(bulkhead.abandon(second).is_some());
        assert_eq!(bulkhead.abandon(second), None, "only once");
        assert_eq!((bulkhead.leave(), bulkhead.leave()), (None, None));
        assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
    }

    #[test]
    fn who_has_no_time_does_not_wait() {
        let mut bulkhead = Bulkhead::new(config());
        let now = Mono::from_millis(5);
        let _ = (bulkhead.enter(now, now, Normal), bulkhead.enter(now, now, Normal));
        assert!(bulkhead.enter(now, now, Normal).is_err());
    }

    #[test]
    fn the_urgent_are_served_first_and_the_least_urgent_make_room() {
        let mut bulkhead = Bulkhead::new(config());
        let now = Mono::ZERO;
        let _ = (bulkhead.enter(now, FAR, Normal), bulkhead.enter(now, FAR, Background));
        let (patient, ..) = waits(bulkhead.enter(now, FAR, Background));
        let (usual, ..) = waits(bulkhead.enter(now, FAR, Normal));
        assert!(bulkhead.enter(now, FAR, Background).is_err(), "nobody is less urgent");
        let (urgent, _, evicted) = waits(bulkhead.enter(now, FAR, Critical));
        assert_eq!(evicted, Some(patient));
        assert_eq!(bulkhead.abandon(patient), None, "it was told already");
        assert_eq!((bulkhead.leave(), bulkhead.leave()), (Some(urgent), Some(usual)));
    }

    #[test]
    fn a_long_queue_is_served_from_its_new_end() {
        let mut bulkhead = Bulkhead::new(BulkheadConfig { waiting_max: 4, order: Order::AdaptiveLifo, ..config() });
        let _ = (bulkhead.enter(Mono::ZERO, FAR, Normal), bulkhead.enter(Mono::ZERO, FAR, Normal));
        let tickets: Vec<Ticket> = (0..4).map(|_| waits(bulkhead.enter(Mono::ZERO, FAR, Normal)).0).collect();
        let served: Vec<Option<Ticket>> = (0..4).map(|_| bulkhead.leave()).collect();
        assert_eq!(served, [3, 2, 0, 1].map(|place: usize| Some(tickets[place])), "newest first, then in turn");
    }

    #[test]
    fn a_lower_limit_takes_places_back_as_they_are_left() {
        let mut bulkhead = Bulkhead::new(config());
        let _ = (bulkhead.enter(Mono::ZERO, FAR, Normal), bulkhead.enter(Mono::ZERO, FAR, Normal));
        let (waiting, ..) = waits(bulkhead.enter(Mono::ZERO, FAR, Normal));
        bulkhead.reconfigure(BulkheadConfig { calls_max: 1, ..config() });
        assert_eq!((bulkhead.leave(), bulkhead.in_flight()), (None, 1));
        assert_eq!(bulkhead.leave(), Some(waiting));
        assert!(BulkheadConfig { calls_max: 0, ..config() }.check().is_err());
        assert_eq!(config().check(), Ok(()));
    }

    proptest! {
        #[test]
        fn places_are_neither_lost_nor_made_up(
            steps in prop::collection::vec((0_u8..3, 0_u8..3, any::<usize>()), 0..200), lifo: bool,
        ) {
            let order = if lifo { Order::AdaptiveLifo } else { Order::Fifo };
            let mut bulkhead = Bulkhead::new(BulkheadConfig { order, waiting_max: 5, ..config() });
            let (mut inside, mut waiting) = (0_u32, Vec::new());
            for (step, urgency, choice) in steps {
                let priority = [Critical, Normal, Background][usize::from(urgency)];
                match step {
                    0 => match bulkhead.enter(Mono::ZERO, Mono::from_millis(1), priority) {
                        Ok(Entry::Admitted) => inside += 1,
                        Ok(Entry::Waiting { ticket, evicted, .. }) => {
                            if let Some(evicted) = evicted {
                                let place = waiting.iter().position(|(ticket, _)| *ticket == evicted).expect("it waits");
                                prop_assert!(waiting.remove(place).1 > priority);
                            }
                            waiting.push((ticket, priority));
                        }
                        Err(_) => prop_assert!(waiting.len() == 5 && waiting.iter().all(|(_, other)| *other <= priority)),
                    },
                    1 if inside > 0 => match bulkhead.leave() {
                        Some(ticket) => {
                            let place = waiting.iter().position(|(other, _)| *other == ticket).expect("it waits");
                            let (_, served) = waiting.remove(place);
                            prop_assert!(waiting.iter().all(|(_, other)| served <= *other), "the urgent first");
                        }
                        None => inside -= 1,
                    },
                    _ => if !waiting.is_empty() {
                        let (ticket, _) = waiting.remove(choice % waiting.len());
                        prop_assert!(bulkhead.abandon(ticket).is_some());
                    },
                }
                prop_assert!(inside <= 2);
                prop_assert_eq!((bulkhead.in_flight(), bulkhead.waiting() as usize), (inside, waiting.len()));
            }
        }
    }
}
