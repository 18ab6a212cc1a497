//! Leases between machines that share no clock: who holds a thing, and when it is free again.
//!
//! Picture a chalk board in another town. Whoever holds a thing writes the board anew every few seconds, and the board
//! numbers what is written. An onlooker trusts no time that is written there: he notes the number, looks at his own
//! watch, and only if the number has stood still for the whole of the lease does he take it for lapsed. The holder, for
//! his part, counts from before he began to write: so he stops before anybody can take him for gone.
//!
//! The number is the fencing token: what is done in the name of a lease is done against it, and refused if it has
//! moved. Not here: the board (`store/jetstream/registry.rs`).

use std::time::Duration;

use crate::time::Mono;

/// What an onlooker thinks of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody has held it for a whole lease: never, or it was given back.
    Free,
    /// It is written anew.
    Held,
    /// It may be held: it has not been watched long enough.
    Unsure,
    /// It has stood still for a whole lease.
    Lapsed,
}

/// An onlooker. See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct Onlooker {
    lease_for: Duration,
    seen: Option<(Option<u64>, Mono)>,
    has_moved: bool,
}

impl Onlooker {
    /// Of leases of so long.
    #[must_use]
    pub const fn new(lease_for: Duration) -> Self {
        Self { lease_for, seen: None, has_moved: false }
    }

    /// Looks at the board: the number of what is written there, if anything is. An empty board is watched, too: it may
    /// have been wiped while somebody holds the thing, who writes it anew within the lease.
    pub fn look(&mut self, now: Mono, number: Option<u64>) -> Verdict {
        let since = match self.seen {
            Some((seen, since)) if seen == number => since,
            seen => {
                self.has_moved = seen.is_some();
                self.seen = Some((number, now));
                now
            }
        };
        match number {
            _ if now.since(since) < self.lease_for && !(self.has_moved && number.is_some()) => Verdict::Unsure,
            Some(_) if now.since(since) < self.lease_for => Verdict::Held,
            Some(_) => Verdict::Lapsed,
            None => Verdict::Free,
        }
    }
}

/// A holder. See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    lease_for: Duration,
    /// When the last writing that is known to have reached the board was begun.
    written: Option<Mono>,
}

impl Holder {
    /// Of a lease of so long, not held yet.
    #[must_use]
    pub const fn new(lease_for: Duration) -> Self {
        Self { lease_for, written: None }
    }

    /// How often to write: three tries fit into a lease.
    #[must_use]
    pub fn write_every(&self) -> Duration {
        self.lease_for / 3
    }

    /// A writing that was begun then has reached the board.
    pub fn written(&mut self, begun: Mono) {
        self.written = Some(begun);
    }

    /// True while nobody can take it for gone.
    #[must_use]
    pub fn holds(&self, now: Mono) -> bool {
        self.written.is_some_and(|begun| now.since(begun) < self.lease_for)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(9);

    fn at(millis: u64) -> Mono {
        Mono::from_millis(millis)
    }

    #[test]
    fn an_onlooker_trusts_his_own_watch_only() {
        let mut onlooker = Onlooker::new(LEASE);
        assert_eq!(onlooker.look(at(1000), Some(7)), Verdict::Unsure);
        assert_eq!(onlooker.look(at(9999), Some(7)), Verdict::Unsure);
        assert_eq!(onlooker.look(at(10_000), Some(7)), Verdict::Lapsed);
        assert_eq!(onlooker.look(at(11_000), Some(8)), Verdict::Held, "he was only slow");
        assert_eq!(onlooker.look(at(19_999), Some(8)), Verdict::Held);
        assert_eq!(onlooker.look(at(20_000), Some(8)), Verdict::Lapsed);
        assert_eq!(onlooker.look(at(21_000), None), Verdict::Unsure, "given back, or wiped");
        assert_eq!(onlooker.look(at(29_999), None), Verdict::Unsure);
        assert_eq!(onlooker.look(at(30_000), None), Verdict::Free);
        let mut onlooker = Onlooker::new(LEASE);
        assert_eq!(onlooker.look(at(0), None), Verdict::Unsure);
        assert_eq!(onlooker.look(at(5000), Some(1)), Verdict::Held, "the board was wiped, and is written anew");
    }

    #[test]
    fn a_holder_counts_from_before_he_wrote() {
        let mut holder = Holder::new(LEASE);
        assert_eq!(holder.write_every(), Duration::from_secs(3));
        assert!(!holder.holds(at(0)));
        holder.written(at(1000));
        assert!(holder.holds(at(9999)) && !holder.holds(at(10_000)));
    }

    proptest! {
        /// Writings take their time, in both directions; watches run alike.
        #[test]
        fn nobody_is_taken_for_gone_who_still_holds(writings in vec((0..6000_u64, 0..4000_u64), 1..20), step in 1..900_u64) {
            let (mut holder, mut onlooker) = (Holder::new(LEASE), Onlooker::new(LEASE));
            // When each was begun, when it reached the board, and when its answer came back.
            let mut plan = Vec::new();
            let mut now = 0;
            for (pause, takes) in writings {
                plan.push((now + pause, now + pause + takes / 2, now + pause + takes));
                now += pause + takes;
            }
            for moment in (0..now + 30_000).step_by(step as usize) {
                for &(begun, _, answered) in &plan {
                    if answered <= moment {
                        holder.written(at(begun));
                    }
                }
                let number = plan.iter().filter(|(_, reached, _)| *reached <= moment).count() as u64;
                let verdict = onlooker.look(at(moment), (number > 0).then_some(number));
                prop_assert!(!(verdict == Verdict::Lapsed && holder.holds(at(moment))), "at {}", moment);
            }
        }
    }
}
