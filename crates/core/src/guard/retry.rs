//! Retry: whether a failed try may be sent again, and after how long.
//!
//! Full jitter (Brooker, "Exponential Backoff And Jitter", 2015): the wait before try n+1 is uniform in
//! 0..min(max, base · 2^(n-1)), so that callers who failed together do not come back together. An upstream's
//! `Retry-After` is a floor under it. Whether the traffic affords the retry is the budget's to say.

use std::time::Duration;

use crate::outcome::Failure;
use crate::prng::Prng;

/// How often and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryConfig {
    /// Tries in all, the first included.
    pub attempts_max: u32,
    /// Upper bound of the first wait.
    pub backoff_base: Duration,
    /// Upper bound of any wait.
    pub backoff_max: Duration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { attempts_max: 3, backoff_base: Duration::from_millis(50), backoff_max: Duration::from_secs(1) }
    }
}

/// What is known of the request when a try has failed.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    /// Tries made so far, at least one.
    pub attempts: u32,
    /// How the last one failed.
    pub failure: Failure,
    /// True if sending it twice does what sending it once does: an idempotent method, or an idempotency key.
    pub idempotent: bool,
    /// True if the body can be sent again: there is none, or it was kept whole.
    pub replayable: bool,
    /// The upstream's own wish.
    pub retry_after: Option<Duration>,
}

impl RetryConfig {
    /// The wait before the next try; `None` if there must be none.
    #[must_use]
    pub fn next_wait(&self, tried: Tried, prng: &mut Prng) -> Option<Duration> {
        let safe = tried.idempotent || tried.failure.never_sent();
        if tried.attempts >= self.attempts_max || !safe || !tried.replayable {
            return None;
        }
        let jittered = self.backoff(tried.attempts, prng);
        Some(tried.retry_after.map_or(jittered, |wish| wish.max(jittered)))
    }

    /// Full jitter after so many tries, uniform and never beyond `backoff_max`.
    #[must_use]
    pub fn backoff(&self, attempts: u32, prng: &mut Prng) -> Duration {
        let doubled = self.backoff_base.saturating_mul(1 << attempts.saturating_sub(1).min(30));
        let bound = u64::try_from(doubled.min(self.backoff_max).as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(prng.below(bound.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tried(attempts: u32, failure: Failure) -> Tried {
        Tried { attempts, failure, idempotent: true, replayable: true, retry_after: None }
    }

    #[test]
    fn only_what_is_safe_is_sent_again() {
        let (config, mut prng) = (RetryConfig::default(), Prng::new(1));
        let mut waits = |tried| config.next_wait(tried, &mut prng).is_some();
        assert!(waits(tried(1, Failure::Timeout)) && waits(tried(2, Failure::Timeout)));
        assert!(!waits(tried(3, Failure::Timeout)), "three tries in all");
        assert!(!waits(Tried { idempotent: false, ..tried(1, Failure::ConnectionLost) }));
        assert!(waits(Tried { idempotent: false, ..tried(1, Failure::ConnectRefused) }), "it was never sent");
        assert!(!waits(Tried { replayable: false, ..tried(1, Failure::Timeout) }));
    }

    #[test]
    fn retry_after_is_a_floor() {
        let (config, mut prng) = (RetryConfig::default(), Prng::new(1));
        let wish = Some(Duration::from_secs(7));
        let wait = config.next_wait(Tried { retry_after: wish, ..tried(1, Failure::Status(503)) }, &mut prng);
        assert_eq!(wait, wish);
    }

    proptest! {
        #[test]
        fn jitter_keeps_its_cap(attempts in 0_u32..200, seed: u64, base_ms in 0_u64..10_000, max_ms in 0_u64..10_000) {
            let config = RetryConfig {
                attempts_max: 1_000,
                backoff_base: Duration::from_millis(base_ms),
                backoff_max: Duration::from_millis(max_ms),
            };
            prop_assert!(config.backoff(attempts, &mut Prng::new(seed)) <= config.backoff_max);
        }
    }

    #[test]
    fn jitter_is_full() {
        let (config, mut prng) = (RetryConfig::default(), Prng::new(3));
        let waits: Vec<Duration> = (0..1_000).map(|_| config.backoff(2, &mut prng)).collect();
        let mean = waits.iter().sum::<Duration>() / 1_000;
        assert!((Duration::from_millis(45)..Duration::from_millis(55)).contains(&mean), "{mean:?} of 0..100ms");
    }
}
