//! How fast a backlog goes out: gently after trouble, all at once after success.
//!
//! After a failure one record at a time is on its way, and twice as many with each success, so that an upstream that
//! has just come back is not run over by its own backlog. A guard's no is waited out. A record that failed rests before
//! its next try, longer each time. Not here: sending (`gateway`), order (`index`).

use std::time::Duration;

use crate::guard::retry::{Backoff, RetryConfig, Waits};
use crate::prng::Prng;
use crate::time::Mono;

/// Between tries of the same record, with full jitter.
const REST_BASE: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(5);
/// However long an upstream's `Retry-After` wishes.
const WISH_MAX: Duration = Duration::from_secs(60);
/// After a guard's no.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a delivery came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The upstream answered for good, with yes or no.
    Settled,
    /// It did not.
    Failed,
    /// A guard of ours said no; it may say yes after this long.
    Refused(Duration),
}

/// How many records may be on their way.
#[derive(Clone, Debug)]
pub struct Pace {
    width: usize,
    width_max: usize,
    pause_until: Mono,
}

impl Pace {
    /// Begins with one, and grows up to `width_max`, at least one.
    #[must_use]
    pub fn new(width_max: usize) -> Self {
        Self { width: 1, width_max: width_max.max(1), pause_until: Mono::ZERO }
    }

    /// Takes in what a delivery came to.
    pub fn after(&mut self, delivered: Delivered, now: Mono) {
        match delivered {
            Delivered::Settled => self.width = (self.width * 2).min(self.width_max),
            Delivered::Failed => self.width = 1,
            Delivered::Refused(retry_in) => self.pause_until = now + retry_in.clamp(PAUSE_MIN, PAUSE_MAX),
        }
    }

    /// How many more may go out beside those on their way. Ask [`Self::paused_until`] first.
    #[must_use]
    pub fn free(&self, on_their_way: usize) -> usize {
        self.width.saturating_sub(on_their_way)
    }

    /// A guard said no: nothing goes out before this, if it is still to come.
    #[must_use]
    pub fn paused_until(&self, now: Mono) -> Option<Mono> {
        (now < self.pause_until).then_some(self.pause_until)
    }
}

/// How long a record rests after so many tries that failed. An upstream's own wish is heeded, up to a minute.
#[must_use]
pub fn rest_after(tries: u32, wish: Option<Duration>, prng: &mut Prng) -> Duration {
    let backoff = Backoff::Exponential { base: REST_BASE, multiplier: 2.0 };
    let patient = RetryConfig { backoff, wait_max: REST_MAX, ..RetryConfig::default() };
    let jittered = patient.wait(tries, &mut Waits::default(), prng);
    wish.map_or(jittered, |wish| wish.min(WISH_MAX).max(jittered))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_gently() {
        let mut pace = Pace::new(10);
        let widths: Vec<usize> = [true, true, true, true, true, false, true]
            .into_iter()
            .map(|well| {
                pace.after(if well { Delivered::Settled } else { Delivered::Failed }, Mono::ZERO);
                pace.free(0)
            })
            .collect();
        assert_eq!(widths, [2, 4, 8, 10, 10, 1, 2]);
        assert_eq!((pace.free(1), pace.free(2), pace.free(9)), (1, 0, 0));
        assert_eq!(Pace::new(0).free(0), 1, "somebody must find out when it is over");
    }

    #[test]
    fn a_no_is_waited_out() {
        let mut pace = Pace::new(4);
        let now = Mono::from_millis(500);
        assert_eq!(pace.paused_until(now), None);
        for (retry_in, waits_ms) in [(0, 20), (300, 300), (60_000, 1_000)] {
            pace.after(Delivered::Refused(Duration::from_millis(retry_in)), now);
            let until = Mono::from_millis(500 + waits_ms);
            assert_eq!((pace.paused_until(now), pace.paused_until(until), pace.free(0)), (Some(until), None, 1));
        }
    }

    #[test]
    fn rests_grow_and_wishes_are_heeded() {
        let mut prng = Prng::new(1);
        let mut longest = |tries| (0..200).map(|_| rest_after(tries, None, &mut prng)).max().unwrap_or_default();
        let (first, third, later) = (longest(1), longest(3), longest(50));
        let ms = Duration::from_millis;
        assert!(first <= ms(100) && third <= ms(400) && third > ms(300) && later <= REST_MAX && later > ms(4_500));
        let mut wished = |wish_s| rest_after(1, Some(Duration::from_secs(wish_s)), &mut prng);
        assert_eq!((wished(7).as_secs(), wished(3_600)), (7, WISH_MAX));
        assert!(wished(0) <= ms(100));
    }
}
