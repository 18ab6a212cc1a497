//! Latencies of the recent past, by quantile: a histogram in fixed memory that forgets.
//!
//! Picture a ruler whose marks lie ever further apart: up to a microsecond every 64 ns, then 16 marks for each
//! doubling, up to 73 minutes. A latency is counted between two marks; a quantile answers with the upper one. There are
//! [`SLICES`] rulers, one for each slice of the window, and their sum: when a slice has passed, its counts leave the
//! sum.
//!
//! Invariants: the answer is never below the true order statistic and at most [`ERROR`] above it (64 ns below a
//! microsecond; all above 73 minutes counts as that); the sum is the sum of the live slices; 20 KB, all taken at the
//! start; recording is O(1), a quantile at most 48 steps, neither allocates.
//! Not here: what is measured, and what follows from it (`hedge.rs`, `concurrency.rs`, `learned.rs`, `deadline.rs`).

use std::time::Duration;

use super::Invalid;
use crate::time::Mono;
use crate::units::Ratio;

/// A latency leaves between seven and eight eighths of the window after it was recorded.
pub const SLICES: usize = 8;
/// How far above the true quantile an answer may lie: 1/16 of it.
pub const ERROR: f64 = 1.0 / 16.0;

const SUBS: usize = 16;
const UNIT_BITS: u32 = 6;
/// 64 ns times 2^36 is 73 minutes: one linear row and 32 doublings.
const ROWS: usize = 33;
const BUCKETS: usize = SUBS * ROWS;

/// The histogram.
///
/// ```
/// use std::time::Duration;
/// use seawall_core::{guard::latency::Latencies, time::Mono, units::Ratio};
///
/// let mut latencies = Latencies::new(Duration::from_secs(60), Mono::ZERO).unwrap();
/// (1..=100).for_each(|ms| latencies.record(Mono::ZERO, Duration::from_millis(ms)));
/// let p95 = latencies.quantile(Mono::ZERO, Ratio::new(0.95).unwrap()).unwrap();
/// assert!((95..=101).contains(&p95.as_millis()));
/// ```
#[derive(Clone, Debug)]
pub struct Latencies {
    slice_nanos: u64,
    head: u64,
    slices: Box<[[u32; BUCKETS]; SLICES]>,
    sum: Box<[u32; BUCKETS]>,
    rows: [u64; ROWS],
    count: u64,
}

impl Latencies {
    /// Nothing is known yet.
    ///
    /// # Errors
    /// [`Invalid`] for a window of less than 8 ns or more than 584 years.
    pub fn new(window: Duration, now: Mono) -> Result<Self, Invalid> {
        let slice_nanos = slice_nanos(window)?;
        Ok(Self {
            slice_nanos,
            head: now.as_nanos() / slice_nanos,
            slices: Box::new([[0; BUCKETS]; SLICES]),
            sum: Box::new([0; BUCKETS]),
            rows: [0; ROWS],
            count: 0,
        })
    }

    /// Counts one. A clock that stepped back counts into the newest slice.
    pub fn record(&mut self, now: Mono, latency: Duration) {
        self.advance(now);
        let bucket = bucket_of(latency);
        // A bucket that is full stays full: then quantiles are off by what four billion more would have changed.
        if self.sum[bucket] < u32::MAX {
            self.slices[self.head as usize % SLICES][bucket] += 1;
            self.sum[bucket] += 1;
            self.rows[bucket / SUBS] += 1;
            self.count += 1;
        }
    }

    /// How many are in the window.
    pub fn count(&mut self, now: Mono) -> u64 {
        self.advance(now);
        self.count
    }

    /// The latency that this share of the window's did not exceed; `None` if the window is empty.
    pub fn quantile(&mut self, now: Mono, share: Ratio) -> Option<Duration> {
        self.advance(now);
        // The rank is one-based and at least 1: the 0-quantile is the least. One step of rounding cannot lose a rank.
        let rank = ((share.get() * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut below = 0;
        let row = self.rows.iter().position(|&count| reaches(&mut below, count, rank))?;
        let subs = &self.sum[row * SUBS..][..SUBS];
        let sub = subs.iter().position(|&count| reaches(&mut below, u64::from(count), rank))?;
        Some(upper_mark(row * SUBS + sub))
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        for slice in self.slices.iter_mut() {
            slice.fill(0);
        }
        self.sum.fill(0);
        self.rows.fill(0);
        self.count = 0;
    }

    fn advance(&mut self, now: Mono) {
        let target = (now.as_nanos() / self.slice_nanos).max(self.head);
        let steps = (target - self.head).min(SLICES as u64);
        for step in 0..steps {
            let slice = &mut self.slices[(target - step) as usize % SLICES];
            for (bucket, count) in slice.iter_mut().enumerate().filter(|(_, count)| **count > 0) {
                self.sum[bucket] -= *count;
                self.rows[bucket / SUBS] -= u64::from(*count);
                self.count -= u64::from(*count);
                *count = 0;
            }
        }
        self.head = target;
    }
}

fn slice_nanos(window: Duration) -> Result<u64, Invalid> {
    match u64::try_from(window.as_nanos()) {
        Ok(nanos) if nanos >= SLICES as u64 => Ok(nanos / SLICES as u64),
        _ => Err(Invalid { key: "window", value: format!("{window:?}"), allowed: "8ns to about 584 years" }),
    }
}

/// Adds until the rank is reached; leaves out what reached it, so that the finer search may go on from there.
fn reaches(below: &mut u64, count: u64, rank: u64) -> bool {
    let reached = *below + count >= rank && count > 0;
    if !reached {
        *below += count;
    }
    reached
}

/// Bucket b holds latencies above the mark before it, up to and including its own.
fn bucket_of(latency: Duration) -> usize {
    let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
    let units = (nanos.saturating_sub(1) >> UNIT_BITS) as usize;
    if units < SUBS {
        return units;
    }
    // The leading bit chooses the row, the four bits after it the mark.
    let doublings = (units.ilog2() - SUBS.ilog2()) as usize;
    ((doublings + 1) * SUBS + ((units >> doublings) & (SUBS - 1))).min(BUCKETS - 1)
}

fn upper_mark(bucket: usize) -> Duration {
    let (row, sub) = (bucket / SUBS, (bucket % SUBS) as u64);
    let units = match row {
        0 => sub + 1,
        _ => (SUBS as u64 + sub + 1) << (row - 1),
    };
    Duration::from_nanos(units << UNIT_BITS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn marks_and_buckets_agree() {
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(upper_mark(bucket)), bucket);
            let next = upper_mark(bucket) + Duration::from_nanos(1);
            assert_eq!(bucket_of(next), (bucket + 1).min(BUCKETS - 1));
        }
        assert_eq!((bucket_of(Duration::ZERO), bucket_of(Duration::MAX)), (0, BUCKETS - 1));
        assert_eq!(upper_mark(BUCKETS - 1), Duration::from_nanos(64 << 36), "73 minutes");
    }

    #[test]
    fn windows_that_are_none_are_refused() {
        let message = Latencies::new(Duration::from_nanos(7), Mono::ZERO).unwrap_err().to_string();
        assert_eq!(message, "`window` is 7ns; allowed is 8ns to about 584 years");
        assert!(Latencies::new(Duration::MAX, Mono::ZERO).is_err());
        assert!(Latencies::new(Duration::from_nanos(8), Mono::ZERO).is_ok());
    }

    #[test]
    fn the_old_leave_a_slice_at_a_time_and_an_idle_gap_empties_it() {
        let mut latencies = Latencies::new(Duration::from_secs(8), Mono::ZERO).unwrap();
        for second in 0..8 {
            latencies.record(Mono::from_millis(second * 1_000), Duration::from_millis(second + 1));
        }
        let at = Mono::from_millis;
        let counts = [7_999, 8_000, 9_500, 14_999, 15_000].map(|ms| latencies.count(at(ms)));
        assert_eq!(counts, [8, 7, 6, 1, 0]);
        latencies.record(at(16_000), Duration::from_millis(1));
        assert_eq!(latencies.count(at(3)), 1, "an older clock changes nothing");
        assert_eq!(latencies.count(Mono::from_nanos(u64::MAX)), 0);
        assert_eq!(latencies.quantile(Mono::ZERO, Ratio::ONE), None);
        latencies.record(Mono::ZERO, Duration::from_millis(1));
        latencies.clear();
        assert_eq!((latencies.count(Mono::ZERO), latencies.quantile(Mono::ZERO, Ratio::ONE)), (0, None));
    }

    /// Latencies over all orders of size.
    fn latency() -> impl Strategy<Value = u64> {
        (0_u32..43, any::<u64>()).prop_map(|(bits, nanos)| nanos & ((1 << bits) - 1))
    }

    proptest! {
        #[test]
        fn as_a_sorted_list_within_the_stated_error(
            steps in prop::collection::vec((prop_oneof![8 => 0_u64..900, 1 => 0_u64..100_000], latency()), 1..200),
            share in 0.0..=1.0,
        ) {
            let share = Ratio::new(share).unwrap();
            let mut latencies = Latencies::new(Duration::from_secs(8), Mono::ZERO).unwrap();
            let (mut now_ms, mut model) = (0, Vec::new());
            for (gap_ms, nanos) in steps {
                now_ms += gap_ms;
                let now = Mono::from_millis(now_ms);
                latencies.record(now, Duration::from_nanos(nanos));
                model.push((now_ms / 1_000, nanos));
                model.retain(|(slice, _)| slice + 8 > now_ms / 1_000);
                let mut sorted: Vec<u64> = model.iter().map(|(_, nanos)| *nanos).collect();
                sorted.sort_unstable();
                let rank = ((share.get() * sorted.len() as f64).ceil() as usize).max(1);
                let (truth, told) = (sorted[rank - 1], latencies.quantile(now, share).unwrap().as_nanos() as u64);
                prop_assert_eq!(latencies.count(now) as usize, sorted.len());
                prop_assert!(told >= truth, "{told} {truth}");
                prop_assert!(told as f64 <= (truth as f64 * (1.0 + ERROR)).max(truth as f64 + 64.0), "{told} {truth}");
            }
        }

        #[test]
        fn no_clock_panics(steps in prop::collection::vec((any::<u64>(), any::<u64>()), 1..50), window in 8_u64..) {
            let mut latencies = Latencies::new(Duration::from_nanos(window), Mono::ZERO).unwrap();
            for (at, nanos) in steps {
                latencies.record(Mono::from_nanos(at), Duration::from_nanos(nanos));
                prop_assert!(latencies.quantile(Mono::from_nanos(at), Ratio::ONE).is_some());
            }
        }
    }
}
