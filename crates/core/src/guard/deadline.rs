//! Deadline: the time a request has in all, tries, waits and backoffs together.

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
    }
}
