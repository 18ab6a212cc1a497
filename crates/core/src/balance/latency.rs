//! The usual latency of an endpoint, pessimistic: a peak counts at once, and is forgotten slowly.
//!
//! Peak EWMA: a sample above the mean becomes the mean; one below moves it by `1 - exp(-passed / DECAY)`. Without
//! samples the mean decays, so that an endpoint nobody asks because it was slow is asked again. Source: Finagle,
//! `P2CPeakEwma`, and its decay time of 10 s.
//!
//! A call without an answer counts as one of [`PENALTY`] at least: who refuses connections is quick at it, and would be
//! given ever more. Not where endpoints are ejected for it (`guard/outlier.rs`): one that is quietly avoided would
//! never be. An answer that tells of a failure never makes an endpoint look better than it was.
//! Two numbers, written one after the other by whoever ends a call: of two writers at the same moment one may be lost,
//! which no mean minds.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::outcome::{Failure, Outcome};
use crate::time::Mono;

/// After so long without a sample, a mean has fallen to 1/e of what it was.
pub const DECAY: Duration = Duration::from_secs(10);
/// What a call without an answer took at least.
pub const PENALTY: Duration = Duration::from_secs(1);
/// Latencies are alike if the longer is not half as long again: less than that is noise of the mean, and would draw all
/// calls of a quiet hour to one endpoint.
const ALIKE: f64 = 1.5;

/// The mean of one endpoint, shared by all threads.
#[derive(Debug, Default)]
pub struct PeakEwma {
    /// In seconds, as bits of an `f64`; zero before the first sample.
    mean: AtomicU64,
    /// When it was written, in nanoseconds of [`Mono`].
    at: AtomicU64,
}

impl PeakEwma {
    /// Takes in how long a call took and what it came to. `penalty` is what one without an answer counts as at least;
    /// without it, such calls do not count.
    pub fn record(&self, now: Mono, outcome: Outcome, took: Duration, penalty: Option<Duration>) {
        let (mean, seconds) = (self.at(now), took.as_secs_f64());
        let next = match outcome {
            Outcome::Success if mean > seconds => {
                let kept = self.kept(now);
                f64::from_bits(self.mean.load(Relaxed)) * kept + seconds * (1.0 - kept)
            }
            Outcome::Success | Outcome::Failure(Failure::Status(_) | Failure::Throttled) => mean.max(seconds),
            Outcome::Failure(_) => match penalty {
                Some(penalty) => mean.max(seconds).max(penalty.as_secs_f64()),
                None => return,
            },
            Outcome::Ignored => return,
        };
        self.mean.store(next.to_bits(), Relaxed);
        self.at.store(now.as_nanos(), Relaxed);
    }

    /// The mean, decayed until now, in seconds; zero before the first sample.
    #[must_use]
    pub fn at(&self, now: Mono) -> f64 {
        let mean = f64::from_bits(self.mean.load(Relaxed));
        if mean > 0.0 { mean * self.kept(now) } else { 0.0 }
    }

    /// Forgets everything: the endpoint comes back, and is not what it was.
    pub fn forget(&self) {
        self.mean.store(0, Relaxed);
    }

    fn kept(&self, now: Mono) -> f64 {
        let passed = now.since(Mono::from_nanos(self.at.load(Relaxed)));
        (-passed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// True if latencies do not differ by enough to choose by them. One that is not known is like every other.
#[must_use]
pub fn are_alike(one: f64, other: f64) -> bool {
    one <= 0.0 || other <= 0.0 || one.max(other) < one.min(other) * ALIKE
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn play(course: &[(u64, Outcome, Duration)]) -> Vec<u64> {
        let mean = PeakEwma::default();
        let step = |(at_ms, outcome, took): &(u64, Outcome, Duration)| {
            mean.record(Mono::from_millis(*at_ms), *outcome, *took, Some(PENALTY));
            (mean.at(Mono::from_millis(*at_ms)) * 1e3).round() as u64
        };
        course.iter().map(step).collect()
    }

    #[test]
    fn a_peak_counts_at_once_and_is_forgotten_slowly() {
        let ok = Outcome::Success;
        let course =
            [(0, ok, MS * 10), (0, ok, MS * 100), (0, ok, MS * 10), (10_000, ok, MS * 10), (40_000, ok, MS * 10)];
        // After one decay time: 100/e + 10·(1 - 1/e).
        assert_eq!(play(&course), [10, 100, 100, 43, 10]);
        let mean = PeakEwma::default();
        mean.record(Mono::ZERO, ok, MS * 100, None);
        mean.record(Mono::ZERO, Outcome::Failure(Failure::Timeout), MS * 900, None);
        assert_eq!((mean.at(Mono::from_millis(10_000)) * 1e3).round(), 37.0, "it decays while nobody asks");
        mean.forget();
        assert_eq!(mean.at(Mono::ZERO), 0.0);
    }

    #[test]
    fn failures_never_look_quick() {
        let [refused, sick] = [Failure::ConnectRefused, Failure::Status(503)].map(Outcome::Failure);
        assert_eq!(play(&[(0, Outcome::Success, MS * 20), (1, sick, MS), (2, sick, MS * 30)]), [20, 20, 30]);
        assert_eq!(
            play(&[(0, refused, MS), (1, refused, MS * 3_000), (2, Outcome::Ignored, MS)]),
            [1_000, 3_000, 3_000]
        );
    }

    #[test]
    fn only_what_differs_clearly_is_different() {
        assert!(are_alike(0.0, 9.0) && are_alike(9.0, 0.0) && are_alike(1.0, 1.4) && are_alike(1.4, 1.0));
        assert!(!are_alike(1.0, 1.5) && !are_alike(3.0, 1.0));
    }
}
