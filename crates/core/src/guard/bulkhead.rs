//! Bulkhead: so many calls at the same time and no more, with a short, bounded queue in front.
//!
//! One slow upstream must not take every connection, task and byte of memory with it. Who waits is served first come,
//! first served; who cannot be served before its own deadline is refused at once instead of waiting for nothing.

use std::collections::VecDeque;
use std::time::Duration;

use super::Refusal;
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
}

impl Default for BulkheadConfig {
    fn default() -> Self {
        Self { calls_max: 1_024, waiting_max: 1_024, wait_max: Duration::from_secs(1) }
    }
}

/// What became of somebody who asked for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Go; call [`Bulkhead::leave`] at the end.
    Admitted,
    /// Wait until named by [`Bulkhead::leave`], or [`Bulkhead::abandon`] at this moment.
    Waiting(Ticket, Mono),
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// The machine.
#[derive(Clone, Debug)]
pub struct Bulkhead {
    config: BulkheadConfig,
    in_flight: u32,
    queue: VecDeque<Ticket>,
    next_ticket: u64,
}

impl Bulkhead {
    /// Empty.
    #[must_use]
    pub fn new(config: BulkheadConfig) -> Self {
        Self { config, in_flight: 0, queue: VecDeque::new(), next_ticket: 0 }
    }

    /// Asks for a place. `deadline` is the caller's own: it never waits beyond it.
    ///
    /// # Errors
    /// [`Refusal::BulkheadFull`] when the queue is full.
    pub fn enter(&mut self, now: Mono, deadline: Mono) -> Result<Entry, Refusal> {
        if self.in_flight < self.config.calls_max {
            self.in_flight += 1;
            return Ok(Entry::Admitted);
        }
        let until = deadline.min(now + self.config.wait_max);
        if self.waiting() >= self.config.waiting_max || until <= now {
            return Err(self.refusal());
        }
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.queue.push_back(ticket);
        Ok(Entry::Waiting(ticket, until))
    }

    /// A call has ended. Whoever is named has the place now and must [`Bulkhead::leave`] it in turn.
    pub fn leave(&mut self) -> Option<Ticket> {
        let next = self.queue.pop_front();
        if next.is_none() {
            self.in_flight = self.in_flight.checked_sub(1).expect("nobody leaves who has not entered");
        }
        next
    }

    /// The wait is over without a place. `None` if the place was given just before: then it is the caller's.
    pub fn abandon(&mut self, ticket: Ticket) -> Option<Refusal> {
        let place = self.queue.iter().position(|waiting| *waiting == ticket)?;
        self.queue.remove(place);
        Some(self.refusal())
    }

    /// Calls on their way.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Calls waiting.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        u32::try_from(self.queue.len()).unwrap_or(u32::MAX)
    }

    fn refusal(&self) -> Refusal {
        Refusal::BulkheadFull {
            calls_max: self.config.calls_max,
            waiting: self.waiting(),
            retry_in: self.config.wait_max.max(Duration::from_secs(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bulkhead() -> Bulkhead {
        Bulkhead::new(BulkheadConfig { calls_max: 2, waiting_max: 2, wait_max: Duration::from_millis(100) })
    }

    #[test]
    fn first_come_first_served_within_bounds() {
        let mut bulkhead = bulkhead();
        let (now, far) = (Mono::from_millis(5), Mono::from_millis(10_000));
        assert_eq!(bulkhead.enter(now, far), Ok(Entry::Admitted));
        assert_eq!(bulkhead.enter(now, far), Ok(Entry::Admitted));
        let Ok(Entry::Waiting(first, until)) = bulkhead.enter(now, far) else { panic!("must wait") };
        assert_eq!(until, Mono::from_millis(105));
        let soon = Mono::from_millis(20);
        let Ok(Entry::Waiting(second, until)) = bulkhead.enter(now, soon) else { panic!("must wait") };
        assert_eq!(until, soon, "never beyond the caller's own deadline");
        let refusal = bulkhead.enter(now, far).unwrap_err();
        assert_eq!(refusal.to_string(), "2 calls are on their way already and 2 wait");
        assert_eq!(bulkhead.leave(), Some(first));
        assert!(bulkhead.abandon(second).is_some());
        assert_eq!(bulkhead.abandon(second), None, "only once");
        assert_eq!((bulkhead.leave(), bulkhead.leave()), (None, None));
        assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
    }

    #[test]
    fn who_has_no_time_does_not_wait() {
        let mut bulkhead = bulkhead();
        let now = Mono::from_millis(5);
        let _ = (bulkhead.enter(now, now), bulkhead.enter(now, now));
        assert!(bulkhead.enter(now, now).is_err());
    }

    proptest! {
        #[test]
        fn places_are_neither_lost_nor_made_up(steps in prop::collection::vec(0_u8..3, 0..200)) {
            let mut bulkhead = bulkhead();
            let (mut inside, mut waiting) = (0_u32, Vec::new());
            for step in steps {
                match step {
                    0 => match bulkhead.enter(Mono::ZERO, Mono::from_millis(1)) {
                        Ok(Entry::Admitted) => inside += 1,
                        Ok(Entry::Waiting(ticket, _)) => waiting.push(ticket),
                        Err(_) => prop_assert_eq!(waiting.len(), 2),
                    },
                    1 if inside > 0 => match bulkhead.leave() {
                        Some(ticket) => prop_assert_eq!(ticket, waiting.remove(0)),
                        None => inside -= 1,
                    },
                    _ => if let Some(ticket) = waiting.pop() { prop_assert!(bulkhead.abandon(ticket).is_some()); },
                }
                prop_assert!(inside <= 2);
                prop_assert_eq!((bulkhead.in_flight(), bulkhead.waiting() as usize), (inside, waiting.len()));
            }
        }
    }
}
