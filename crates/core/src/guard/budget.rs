//! Retry budget: how many extra tries a destination's traffic affords, so that a sick upstream is not beaten while it
//! is down.
//!
//! Picture one purse for each destination, which every route to it and every kind of extra try, retry or hedge, pays
//! from. Each request puts its share in, each extra try takes a whole coin out, and what was put in is worth something
//! for [`WINDOW`] only. A second rule bounds what is out at the same time. A retry is counted when it is decided,
//! before its backoff: those that wait are load that is already on its way.
//!
//! Invariants: over the window, extra tries are at most `ratio` of the requests plus a small floor, exactly, at any
//! ratio; extra tries out at once are at most `in_flight_ratio` of the requests in work, or `in_flight_min` if that is
//! more. Whole numbers throughout.
//! Not here: whether a retry is safe (`retry.rs`), when a hedge is worth it (`hedge.rs`).

use std::time::Duration;

use super::{Invalid, Refusal};
use crate::time::Mono;
use crate::units::Ratio;

/// What counts: the last ten seconds, in one-second slices.
pub const WINDOW: Duration = Duration::from_secs(10);
const SLICES: usize = 10;

/// How many extra tries are afforded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetConfig {
    /// Extra tries as a share of requests.
    pub ratio: Ratio,
    /// Extra tries per second that are always afforded, so that a quiet route can retry at all.
    pub floor_per_s: f64,
    /// Extra tries at the same time, waiting or under way, as a share of the requests in work.
    pub in_flight_ratio: Ratio,
    /// So many at the same time are always afforded.
    pub in_flight_min: u32,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            ratio: Ratio::new(0.2).unwrap_or(Ratio::ZERO),
            floor_per_s: 1.0,
            in_flight_ratio: Ratio::new(0.2).unwrap_or(Ratio::ZERO),
            in_flight_min: 3,
        }
    }
}

impl BudgetConfig {
    /// # Errors
    /// [`Invalid`] when a number makes no budget.
    pub fn check(&self) -> Result<(), Invalid> {
        if (0.0..=1_000_000.0).contains(&self.floor_per_s) {
            return Ok(());
        }
        Err(Invalid { key: "budget_floor", value: format!("{}/s", self.floor_per_s), allowed: "0/s to 1000000/s" })
    }
}

/// An extra try that the budget affords. Give it back with [`Budget::done`] when the try is over, or was not made.
#[must_use = "an extra try that is never given back counts as under way for ever"]
#[derive(Debug, PartialEq, Eq)]
pub struct Coin(());

/// The account of one destination.
#[derive(Clone, Debug)]
pub struct Budget {
    slices: [Slice; SLICES],
    head_s: u64,
    sum: Slice,
    /// Requests in work.
    active: u64,
    /// Extra tries waiting or under way.
    out: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    requests: u64,
    extra: u64,
}

impl Budget {
    /// An empty account.
    #[must_use]
    pub fn new(now: Mono) -> Self {
        Self { slices: Default::default(), head_s: seconds(now), sum: Slice::default(), active: 0, out: 0 }
    }

    /// A request begins (its first try).
    pub fn deposit(&mut self, now: Mono) {
        self.advance(now).requests += 1;
        self.sum.requests += 1;
        self.active += 1;
    }

    /// A request has ended.
    pub fn end(&mut self) {
        self.active = self.active.saturating_sub(1);
    }

    /// Takes one extra try, under the rule of whoever asks: routes to one destination may differ in what they dare.
    ///
    /// # Errors
    /// [`Refusal::BudgetSpent`] when the traffic does not afford it.
    pub fn withdraw(&mut self, now: Mono, config: &BudgetConfig) -> Result<Coin, Refusal> {
        self.advance(now);
        let floor = (config.floor_per_s * WINDOW.as_secs_f64()) as u64;
        let afforded_ppm = self.sum.requests * config.ratio.per_million() + floor * 1_000_000;
        let at_once = self.active * config.in_flight_ratio.per_million() / 1_000_000;
        let at_once = at_once.max(config.in_flight_min.into());
        if (self.sum.extra + 1) * 1_000_000 > afforded_ppm || self.out + 1 > at_once {
            let Slice { requests, extra } = self.sum;
            return Err(Refusal::BudgetSpent { ratio: config.ratio, requests, retries: extra, out: self.out });
        }
        self.advance(now).extra += 1;
        self.sum.extra += 1;
        self.out += 1;
        Ok(Coin(()))
    }

    /// An extra try is over, or was not made after all. What it cost stays paid: load that was decided was load.
    pub fn done(&mut self, coin: Coin) {
        let Coin(()) = coin;
        self.out = self.out.saturating_sub(1);
    }

    /// Requests and extra tries of the window, and extra tries waiting or under way.
    pub fn look(&mut self, now: Mono) -> (u64, u64, u64) {
        self.advance(now);
        (self.sum.requests, self.sum.extra, self.out)
    }

    fn advance(&mut self, now: Mono) -> &mut Slice {
        let target_s = seconds(now).max(self.head_s);
        let steps = (target_s - self.head_s).min(SLICES as u64);
        for step in 0..steps {
            let slice = &mut self.slices[(target_s - step) as usize % SLICES];
            self.sum.requests -= slice.requests;
            self.sum.extra -= slice.extra;
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

    /// A rule without a bound on what is out at once.
    fn rule(ratio: f64, floor_per_s: f64) -> BudgetConfig {
        BudgetConfig {
            ratio: Ratio::new(ratio).unwrap(),
            floor_per_s,
            in_flight_ratio: Ratio::ONE,
            in_flight_min: u32::MAX,
        }
    }

    #[test]
    fn exact_at_any_ratio() {
        // Finagle's anchor: ratio 0.2 and no reserve, 1,000 requests afford 200 retries. Others truncate at 0.3 or 0.6.
        for (ratio, afforded) in [(0.2, 200), (0.3, 300), (0.6, 600), (0.9, 900), (1.0, 1_000), (0.0, 0)] {
            let (mut budget, rule) = (Budget::new(Mono::ZERO), rule(ratio, 0.0));
            (0..1_000).for_each(|_| budget.deposit(Mono::ZERO));
            let taken = (0..2_000).filter(|_| budget.withdraw(Mono::ZERO, &rule).is_ok()).count();
            assert_eq!(taken, afforded, "ratio {ratio}");
        }
    }

    #[test]
    fn a_quiet_route_has_its_floor_and_time_gives_it_back() {
        let (mut budget, rule) = (Budget::new(Mono::ZERO), rule(0.2, 0.5));
        let taken = (0..100).filter(|_| budget.withdraw(Mono::ZERO, &rule).is_ok()).count();
        assert_eq!(taken, 5);
        let refusal = budget.withdraw(Mono::from_millis(9_999), &rule).unwrap_err();
        assert_eq!(refusal.to_string(), "5 retries for 0 requests are what a budget of 20% affords; 5 are out");
        assert!(budget.withdraw(Mono::from_millis(10_000), &rule).is_ok());
    }

    #[test]
    fn what_is_out_at_once_is_bounded_backoff_included() {
        // Envoy's anchors, 20 % and 3: 25 requests in work afford 5 at once, 2 afford 3.
        for (active, at_once) in [(25, 5), (2, 3)] {
            let (mut budget, rule) = (Budget::new(Mono::ZERO), BudgetConfig::default());
            let rule = BudgetConfig { ratio: Ratio::ONE, floor_per_s: 1_000.0, ..rule };
            (0..active).for_each(|_| budget.deposit(Mono::ZERO));
            let mut coins: Vec<Coin> = Vec::new();
            coins.extend(std::iter::from_fn(|| budget.withdraw(Mono::ZERO, &rule).ok()));
            assert_eq!(coins.len(), at_once, "of {active}");
            budget.done(coins.remove(0));
            coins.push(budget.withdraw(Mono::ZERO, &rule).expect("one came back"));
            assert!(budget.withdraw(Mono::ZERO, &rule).is_err());
            let (requests, extra, out) = budget.look(Mono::ZERO);
            assert_eq!((requests, extra as usize, out as usize), (active, at_once + 1, at_once));
            // Requests that end take their share with them.
            (0..active).for_each(|_| budget.end());
            assert!(budget.withdraw(Mono::ZERO, &rule).is_err());
            coins.drain(..).for_each(|coin| budget.done(coin));
            assert_eq!(std::iter::from_fn(|| budget.withdraw(Mono::ZERO, &rule).ok()).count(), 3, "of none");
        }
    }

    #[test]
    fn a_floor_that_is_no_number_is_refused() {
        let invalid = BudgetConfig { floor_per_s: f64::NAN, ..BudgetConfig::default() }.check().unwrap_err();
        assert_eq!(invalid.to_string(), "`budget_floor` is NaN/s; allowed is 0/s to 1000000/s");
        assert_eq!(BudgetConfig::default().check(), Ok(()));
    }

    proptest! {
        /// Against lists of moments: at a withdrawal the account holds, to the last coin.
        #[test]
        fn never_beyond_the_ratio(steps in prop::collection::vec((0_u8..4, 0_u64..3_000), 0..400)) {
            let (mut budget, rule) = (Budget::new(Mono::ZERO), rule(0.25, 0.0));
            let (mut now_ms, mut requests, mut retries) = (0, Vec::new(), Vec::new());
            for (step, gap_ms) in steps {
                now_ms += gap_ms;
                let (now, first) = (Mono::from_millis(now_ms), (now_ms / 1_000 + 1).saturating_sub(10));
                let live = |all: &[u64]| all.iter().filter(|&&second| second >= first).count() as u64;
                if step > 0 {
                    budget.deposit(now);
                    requests.push(now_ms / 1_000);
                    continue;
                }
                let affords = (live(&retries) + 1) * 4 <= live(&requests);
                prop_assert_eq!(budget.withdraw(now, &rule).is_ok(), affords);
                if affords { retries.push(now_ms / 1_000); }
                let (seen_requests, seen_retries, _) = budget.look(now);
                prop_assert_eq!((seen_requests, seen_retries), (live(&requests), live(&retries)));
            }
            let _ = budget.withdraw(Mono::from_nanos(u64::MAX), &rule);
        }
    }
}
