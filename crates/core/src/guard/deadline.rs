//! Deadline: the time a request has in all, tries, waits and backoffs together.
//!
//! Picture a parcel with a time stamped on it: whoever passes it on hands over what is left, less what the way takes,
//! and who sees that it cannot arrive in time says so at once instead of carrying it. It shrinks per hop and per retry
//! and is never prolonged.
//! Not here: the timer that ends a call, where the caller's patience is read from.

use std::time::Duration;

use super::Refusal;
use crate::time::Mono;

/// A moment after which nobody waits for the answer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    at: Mono,
    timeout: Duration,
}

impl Deadline {
    /// The route's timeout from now, or the caller's own remaining time if that is shorter.
    #[must_use]
    pub fn new(now: Mono, timeout: Duration, callers: Option<Duration>) -> Self {
        let timeout = callers.map_or(timeout, |callers| callers.min(timeout));
        Self { at: now + timeout, timeout }
    }

    /// The moment.
    #[must_use]
    pub fn at(&self) -> Mono {
        self.at
    }

    /// What is left.
    #[must_use]
    pub fn left(&self, now: Mono) -> Duration {
        now.until(self.at)
    }

    /// When a try that begins now must end.
    #[must_use]
    pub fn of_try(&self, now: Mono, try_timeout: Duration) -> Mono {
        self.at.min(now + try_timeout)
    }

    /// True if a wait of this long leaves time to do anything after it.
    #[must_use]
    pub fn affords(&self, now: Mono, wait: Duration) -> bool {
        now + wait < self.at
    }

    /// # Errors
    /// [`Refusal::DeadlineSpent`] when nothing is left: the call is not begun.
    pub fn check(&self, now: Mono) -> Result<(), Refusal> {
        if now < self.at { Ok(()) } else { Err(Refusal::DeadlineSpent { timeout: self.timeout }) }
    }

    /// Like [`Self::check`], and looks ahead: a call that usually takes longer than what is left is not begun either.
    /// `usual` is the median of what such calls took, `None` while nobody knows.
    ///
    /// # Errors
    /// [`Refusal::DeadlineSpent`], or [`Refusal::DeadlineTooShort`] when it cannot be met.
    pub fn check_ahead(&self, now: Mono, usual: Option<Duration>) -> Result<(), Refusal> {
        self.check(now)?;
        match usual {
            Some(usual) if self.left(now) < usual => Err(Refusal::DeadlineTooShort { left: self.left(now), usual }),
            _ => Ok(()),
        }
    }

    /// What the next hop is told it has: what is left, less what the way there and back takes.
    #[must_use]
    pub fn for_hop(&self, now: Mono, way: Duration) -> Duration {
        self.left(now).saturating_sub(way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_of_ours_and_the_callers() {
        let (now, second) = (Mono::from_millis(100), Duration::from_secs(1));
        let deadline = Deadline::new(now, second, None);
        assert_eq!(deadline.at(), Mono::from_millis(1_100));
        assert_eq!(Deadline::new(now, second, Some(Duration::from_millis(50))).at(), Mono::from_millis(150));
        assert_eq!(Deadline::new(now, second, Some(Duration::from_secs(9))).at(), Mono::from_millis(1_100));
        assert_eq!(deadline.of_try(now, Duration::from_millis(300)), Mono::from_millis(400));
        assert_eq!(deadline.of_try(Mono::from_millis(1_000), Duration::from_millis(300)), Mono::from_millis(1_100));
        assert_eq!(deadline.left(Mono::from_millis(600)), Duration::from_millis(500));
        assert!(deadline.affords(now, Duration::from_millis(999)) && !deadline.affords(now, second));
        assert!(deadline.check(Mono::from_millis(1_099)).is_ok());
        assert_eq!(deadline.check(Mono::from_millis(1_100)), Err(Refusal::DeadlineSpent { timeout: second }));
        assert_eq!(deadline.for_hop(Mono::from_millis(600), Duration::from_millis(20)), Duration::from_millis(480));
        assert_eq!(deadline.for_hop(Mono::from_millis(1_095), Duration::from_millis(20)), Duration::ZERO);
    }

    #[test]
    fn what_cannot_be_met_is_not_begun() {
        let deadline = Deadline::new(Mono::ZERO, Duration::from_millis(100), None);
        let usual = Some(Duration::from_millis(30));
        assert!(deadline.check_ahead(Mono::from_millis(70), usual).is_ok());
        let refusal = deadline.check_ahead(Mono::from_millis(71), usual).unwrap_err();
        assert_eq!(refusal.to_string(), "29ms are left for what usually takes 30ms");
        assert!(deadline.check_ahead(Mono::from_millis(71), None).is_ok(), "nobody knows");
        assert!(deadline.check_ahead(Mono::from_millis(100), None).is_err());
    }
}
