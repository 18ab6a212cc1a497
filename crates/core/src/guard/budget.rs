//! Retry budget: how many retries a route's traffic affords, so that a sick upstream is not beaten while it is down.
//!
//! Over the last [`WINDOW`], retries may be at most `ratio` of requests plus a small floor, in whole numbers. A retry
//! is counted when it is decided, before its backoff: those that wait are load that is already on its way.

use std::time::Duration;

use super::Refusal;
use crate::time::Mono;
use crate::units::Ratio;

/// What counts: the last ten seconds, in one-second slices.
pub const WINDOW: Duration = Duration::from_secs(10);
const SLICES: usize = 10;

/// How many retries are afforded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetConfig {
    /// Retries as a share of requests.
    pub ratio: Ratio,
    /// Retries per second that are always afforded, so that a quiet route can retry at all.
    pub floor_per_s: f64,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { ratio: Ratio::new(0.2).unwrap_or(Ratio::ZERO), floor_per_s: 1.0 }
    }
}

/// The account of requests and retries.
#[derive(Clone, Debug)]
pub struct Budget {
    config: BudgetConfig,
    slices: [Slice; SLICES],
    head_s: u64,
    sum: Slice,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    requests: u64,
    retries: u64,
}

impl Budget {
    /// An empty account.
    #[must_use]
    pub fn new(config: BudgetConfig, now: Mono) -> Self {
        Self { config, slices: Default::default(), head_s: seconds(now), sum: Slice::default() }
    }

    /// Counts a request (its first try).
    pub fn deposit(&mut self, now: Mono) {
        self.advance(now).requests += 1;
        self.sum.requests += 1;
    }

    /// Takes one retry.
    ///
    /// # Errors
    /// [`Refusal::BudgetSpent`] when the traffic does not afford it.
    pub fn withdraw(&mut self, now: Mono) -> Result<(), Refusal> {
        self.advance(now);
        let floor = (self.config.floor_per_s * WINDOW.as_secs_f64()) as u64;
        let afforded_ppm = self.sum.requests * self.config.ratio.per_million() + floor * 1_000_000;
        if (self.sum.retries + 1) * 1_000_000 > afforded_ppm {
            let Slice { requests, retries } = self.sum;
            return Err(Refusal::BudgetSpent { ratio: self.config.ratio, requests, retries });
        }
        self.advance(now).retries += 1;
        self.sum.retries += 1;
        Ok(())
    }

    fn advance(&mut self, now: Mono) -> &mut Slice {
        let target_s = seconds(now).max(self.head_s);
        let steps = (target_s - self.head_s).min(SLICES as u64);
        for step in 0..steps {
            let slice = &mut self.slices[(target_s - step) as usize % SLICES];
            self.sum.requests -= slice.requests;
            self.sum.retries -= slice.retries;
            *slice = Slice::default();
        }
        self.head_s = target_s;
        &mut self.slices[target_s as usize % SLICES]
    }
}

fn seconds(now: Mono) -> u64 {
    now.as_nanos() / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(ratio: f64, floor_per_s: f64) -> Budget {
        Budget::new(BudgetConfig { ratio: Ratio::new(ratio).unwrap(), floor_per_s }, Mono::ZERO)
    }

    #[test]
    fn exact_at_any_ratio() {
        // Finagle's anchor: ratio 0.2 and no reserve, 1,000 requests afford 200 retries. Others truncate at 0.3 or 0.6.
        for (ratio, afforded) in [(0.2, 200), (0.3, 300), (0.6, 600), (0.9, 900), (1.0, 1_000), (0.0, 0)] {
            let mut budget = budget(ratio, 0.0);
            (0..1_000).for_each(|_| budget.deposit(Mono::ZERO));
            let taken = (0..2_000).filter(|_| budget.withdraw(Mono::ZERO).is_ok()).count();
            assert_eq!(taken, afforded, "ratio {ratio}");
        }
    }

    #[test]
    fn a_quiet_route_has_its_floor_and_time_gives_it_back() {
        let mut budget = budget(0.2, 0.5);
        let taken = (0..100).filter(|_| budget.withdraw(Mono::ZERO).is_ok()).count();
        assert_eq!(taken, 5);
        let refusal = budget.withdraw(Mono::from_millis(9_999)).unwrap_err();
        assert_eq!(refusal.to_string(), "5 retries for 0 requests are what a budget of 20% affords");
        assert!(budget.withdraw(Mono::from_millis(10_000)).is_ok());
    }

    proptest! {
        #[test]
        fn never_beyond_the_ratio(steps in prop::collection::vec((any::<bool>(), 0_u64..3_000), 0..400)) {
            let mut budget = budget(0.25, 0.0);
            let (mut now_ms, mut requests, mut retries) = (0, Vec::new(), Vec::new());
            for (request, gap_ms) in steps {
                now_ms += gap_ms;
                let now = Mono::from_millis(now_ms);
                if request { budget.deposit(now); requests.push(now_ms / 1_000); }
                else if budget.withdraw(now).is_ok() { retries.push(now_ms / 1_000); }
                let first = (now_ms / 1_000 + 1).saturating_sub(10);
                let live = |all: &[u64]| all.iter().filter(|&&second| second >= first).count();
                // Requests may leave the window before the retries they paid for; at the moment of a withdrawal the
                // account holds, so compare when one was just granted.
                if !request && retries.last() == Some(&(now_ms / 1_000)) && budget.sum.retries > 0 {
                    prop_assert_eq!(budget.sum.retries as usize, live(&retries));
                    prop_assert_eq!(budget.sum.requests as usize, live(&requests));
                }
            }
        }
    }
}
