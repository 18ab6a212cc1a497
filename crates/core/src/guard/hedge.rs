//! Hedge: whether and when to send a second copy of a call that takes unusually long.
//!
//! Most calls answer soon, a few are stuck somewhere. After the delay that all but the slowest few do not need, a copy
//! goes to another endpoint; the first good answer wins, the loser is cancelled (Dean and Barroso, "The Tail at Scale",
//! 2013: after the 95th percentile, for about 5 % more load).
//!
//! Invariants: never before `delay_min`, never later than `delay_max` for each copy; nothing before `samples_min` calls
//! were seen; at most `hedges_max` copies; only idempotent calls; the budget is asked last, so that nothing is
//! withdrawn for a hedge that is not sent. Deciding does not allocate.
//!
//! Record the time from the call's begin to its first answer, or to its end without one, hedged or not. Then the share
//! of calls above the delay stays what it would be without hedging (a hedged call has already taken longer than the
//! delay), and the percentile does not feed on its own success.
//! Not here: cancelling the loser (the driver's), which endpoint (`balance`), what is afforded (`budget.rs`).

use std::time::Duration;

use super::Invalid;
use super::latency::Latencies;
use crate::time::Mono;
use crate::units::{Ratio, format_duration};

/// Who gets a second copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HedgeConfig {
    /// A copy is sent after the delay that this share of calls does not need.
    pub quantile: Ratio,
    /// Calls seen in the window before any copy is sent.
    pub samples_min: u32,
    /// Never sooner, however fast the upstream: copies of calls that take a moment gain nothing.
    pub delay_min: Duration,
    /// Never later, however slow.
    pub delay_max: Duration,
    /// Copies beside the first, each a delay after the one before.
    pub hedges_max: u32,
    /// What counts as recent.
    pub window: Duration,
}

impl Default for HedgeConfig {
    fn default() -> Self {
        Self {
            quantile: Ratio::new(0.95).unwrap_or(Ratio::ONE),
            samples_min: 100,
            delay_min: Duration::from_millis(5),
            delay_max: Duration::from_secs(10),
            hedges_max: 1,
            window: Duration::from_secs(60),
        }
    }
}

impl HedgeConfig {
    fn check(&self) -> Result<(), Invalid> {
        let invalid = |key, value, allowed| Err(Invalid { key, value, allowed });
        if !(0.5..1.0).contains(&self.quantile.get()) {
            return invalid("quantile", self.quantile.to_string(), "50% to less than 100%");
        }
        // Below this many the quantile is the slowest call of all.
        if f64::from(self.samples_min) * (1.0 - self.quantile.get()) < 0.999 {
            return invalid("samples_min", self.samples_min.to_string(), "at least 1 / (1 - quantile)");
        }
        if self.delay_min < Duration::from_millis(1) {
            return invalid("delay_min", format_duration(self.delay_min), "1ms or more");
        }
        if self.delay_max < self.delay_min {
            return invalid("delay_max", format_duration(self.delay_max), "`delay_min` or more");
        }
        if self.hedges_max == 0 {
            return invalid("hedges_max", "0".into(), "1 or more");
        }
        Ok(())
    }
}

/// A call on its way, as the hedge sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// When its first copy was sent.
    pub started: Mono,
    /// Copies sent since.
    pub hedges: u32,
    /// True if sending it twice does what sending it once does.
    pub idempotent: bool,
}

/// Why no copy is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// Sending it twice is not sending it once.
    #[error("the call is not idempotent")]
    NotIdempotent,
    /// It has its copies.
    #[error("{sent} copies were sent already")]
    Exhausted {
        /// So many.
        sent: u32,
    },
    /// Nobody knows yet what is unusually long.
    #[error("only {samples} of {samples_min} calls were seen")]
    TooFewSamples {
        /// Calls in the window.
        samples: u64,
        /// Calls needed.
        samples_min: u32,
    },
    /// It is not unusually long yet.
    #[error("too soon")]
    TooSoon {
        /// When to ask again.
        due: Mono,
    },
    /// The traffic does not afford it.
    #[error("the budget does not afford a copy")]
    NotAfforded,
}

/// The machine.
///
/// ```
/// use std::time::Duration;
/// use seawall_core::{guard::hedge::{Call, Hedge, HedgeConfig}, time::Mono};
///
/// let mut hedge = Hedge::new(HedgeConfig::default(), Mono::ZERO).unwrap();
/// (1..=100).for_each(|ms| hedge.record(Mono::ZERO, Duration::from_millis(ms)));
/// let call = Call { started: Mono::ZERO, hedges: 0, idempotent: true };
/// let due = hedge.due(Mono::ZERO, call).unwrap();
/// assert!((95..=101).contains(&due.as_millis()));
/// assert!(hedge.fire(due, call, || true).is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct Hedge {
    config: HedgeConfig,
    latencies: Latencies,
}

impl Hedge {
    /// Nothing is known yet, so nothing is hedged.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no hedge.
    pub fn new(config: HedgeConfig, now: Mono) -> Result<Self, Invalid> {
        config.check()?;
        Ok(Self { config, latencies: Latencies::new(config.window, now)? })
    }

    /// Takes in a call's whole time, from its first copy to its first answer or its end without one. O(1).
    pub fn record(&mut self, now: Mono, took: Duration) {
        self.latencies.record(now, took);
    }

    /// The delay between copies; `None` while too few calls were seen.
    pub fn delay(&mut self, now: Mono) -> Option<Duration> {
        if self.latencies.count(now) < u64::from(self.config.samples_min) {
            return None;
        }
        let quantile = self.latencies.quantile(now, self.config.quantile)?;
        Some(quantile.clamp(self.config.delay_min, self.config.delay_max))
    }

    /// When the next copy of this call is due; then ask [`Hedge::fire`].
    ///
    /// # Errors
    /// [`Withheld`] if none will be, as far as is known now.
    pub fn due(&mut self, now: Mono, call: Call) -> Result<Mono, Withheld> {
        if !call.idempotent {
            return Err(Withheld::NotIdempotent);
        }
        if call.hedges >= self.config.hedges_max {
            return Err(Withheld::Exhausted { sent: call.hedges });
        }
        let Some(delay) = self.delay(now) else {
            let samples = self.latencies.count(now);
            return Err(Withheld::TooFewSamples { samples, samples_min: self.config.samples_min });
        };
        Ok(call.started + delay.saturating_mul(call.hedges.saturating_add(1)))
    }

    /// Says whether to send a copy now. `afford` is asked only when all else agrees, and withdraws from the budget.
    ///
    /// # Errors
    /// [`Withheld`] with the reason; [`Withheld::TooSoon`] if calls have become slower since [`Hedge::due`].
    pub fn fire(&mut self, now: Mono, call: Call, afford: impl FnOnce() -> bool) -> Result<(), Withheld> {
        let due = self.due(now, call)?;
        if now < due {
            return Err(Withheld::TooSoon { due });
        }
        if afford() { Ok(()) } else { Err(Withheld::NotAfforded) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prng::Prng;

    const CALL: Call = Call { started: Mono::ZERO, hedges: 0, idempotent: true };

    fn with(config: HedgeConfig, latency: impl Fn(u32) -> Duration) -> Hedge {
        let mut hedge = Hedge::new(config, Mono::ZERO).unwrap();
        (1..=100).for_each(|i| hedge.record(Mono::ZERO, latency(i)));
        hedge
    }

    fn millis(i: u32) -> Duration {
        Duration::from_millis(u64::from(i))
    }

    #[test]
    fn each_no_has_its_reason() {
        let mut hedge = with(HedgeConfig { hedges_max: 2, ..HedgeConfig::default() }, millis);
        let late = Mono::from_millis(500);
        let mut why = |call, now, afforded| match hedge.fire(now, call, || afforded) {
            Ok(()) => "sent".to_string(),
            Err(withheld) => withheld.to_string(),
        };
        assert_eq!(why(CALL, late, true), "sent");
        assert_eq!(why(Call { hedges: 1, ..CALL }, late, true), "sent");
        assert_eq!(why(Call { hedges: 1, ..CALL }, Mono::from_millis(150), true), "too soon", "the second waits twice");
        assert_eq!(why(Call { hedges: 2, ..CALL }, late, true), "2 copies were sent already");
        assert_eq!(why(Call { idempotent: false, ..CALL }, late, true), "the call is not idempotent");
        assert_eq!(why(CALL, late, false), "the budget does not afford a copy");
        assert_eq!(why(CALL, Mono::from_millis(70_000), true), "only 0 of 100 calls were seen");
    }

    #[test]
    fn the_budget_is_asked_last() {
        let mut hedge = with(HedgeConfig::default(), millis);
        let unasked = || -> bool { panic!("must not be asked") };
        assert!(hedge.fire(Mono::from_millis(50), CALL, unasked).is_err());
        assert!(hedge.fire(Mono::from_millis(500), Call { hedges: 1, ..CALL }, unasked).is_err());
    }

    #[test]
    fn fast_and_even_upstreams_are_not_doubled() {
        // Resilience4j's average of whole milliseconds is 0 here: it doubles every call.
        let mut fast = with(HedgeConfig::default(), |i| Duration::from_micros(u64::from(i)));
        assert_eq!(fast.delay(Mono::ZERO), Some(Duration::from_millis(5)));
        // Every call takes the same: the answer lies above it, never below.
        let mut even = with(HedgeConfig::default(), |_| millis(20));
        assert!(even.delay(Mono::ZERO).unwrap() >= millis(20));
        let mut slow = with(HedgeConfig::default(), |_| Duration::from_secs(60));
        assert_eq!(slow.delay(Mono::ZERO), Some(Duration::from_secs(10)));
    }

    #[test]
    fn five_percent_stay_five_percent_and_the_tail_is_cut() {
        // Exponential around 20 ms, one call in fifty stuck for a second; 200/s for five minutes.
        let mut prng = Prng::new(11);
        let mut draw = || {
            if prng.chance(0.02) { 1_000.0 } else { -20.0 * (1.0 - prng.unit()).ln() }
        };
        let mut hedge = Hedge::new(HedgeConfig::default(), Mono::ZERO).unwrap();
        let (mut sent, mut plain, mut hedged) = (0_u32, Vec::new(), Vec::new());
        for i in 0..60_000_u64 {
            let now = Mono::from_millis(i * 5);
            let call = Call { started: now, ..CALL };
            let first = draw();
            let mut took = first;
            if let Ok(due) = hedge.due(now, call) {
                let delay = now.until(due).as_secs_f64() * 1e3;
                if first > delay {
                    sent += 1;
                    took = first.min(delay + draw());
                }
            }
            hedge.record(now, Duration::from_secs_f64(took / 1e3));
            plain.push(first);
            hedged.push(took);
        }
        let p99 = |all: &mut Vec<f64>| {
            all.sort_by(f64::total_cmp);
            all[all.len() * 99 / 100]
        };
        let share = f64::from(sent) / 60_000.0;
        assert!((0.04..0.055).contains(&share), "{share}");
        let (plain, hedged) = (p99(&mut plain), p99(&mut hedged));
        assert!(plain >= 1_000.0 && hedged < 180.0, "{plain} {hedged}");
    }

    #[test]
    fn contradictions_are_named() {
        let default = HedgeConfig::default();
        let message = |config| Hedge::new(config, Mono::ZERO).unwrap_err().to_string();
        let micro = Duration::from_micros(10);
        for (config, told) in [
            (HedgeConfig { quantile: Ratio::ONE, ..default }, "`quantile` is 100%; allowed is 50% to less than 100%"),
            (HedgeConfig { samples_min: 5, ..default }, "`samples_min` is 5; allowed is at least 1 / (1 - quantile)"),
            (HedgeConfig { delay_min: micro, ..default }, "`delay_min` is 10us; allowed is 1ms or more"),
            (HedgeConfig { delay_max: micro, ..default }, "`delay_max` is 10us; allowed is `delay_min` or more"),
            (HedgeConfig { hedges_max: 0, ..default }, "`hedges_max` is 0; allowed is 1 or more"),
            (HedgeConfig { window: Duration::ZERO, ..default }, "`window` is 0ns; allowed is 8ns to about 584 years"),
        ] {
            assert_eq!(message(config), told);
        }
        let milli = Duration::from_millis(1);
        let least = HedgeConfig { samples_min: 20, delay_min: milli, delay_max: milli, ..default };
        assert!(Hedge::new(least, Mono::ZERO).is_ok());
    }

    proptest! {
        #[test]
        fn never_before_the_floor_nor_after_the_cap(
            steps in prop::collection::vec((any::<u64>(), any::<u64>(), 0_u32..5, any::<bool>(), any::<bool>()), 1..200),
        ) {
            let config = HedgeConfig { samples_min: 20, hedges_max: 3, ..HedgeConfig::default() };
            let mut hedge = Hedge::new(config, Mono::ZERO).unwrap();
            for (at, nanos, hedges, idempotent, days) in steps {
                // Mostly within the window, sometimes anywhere.
                let now = Mono::from_nanos(if days { at } else { at % 1_000_000_000 });
                hedge.record(now, Duration::from_nanos(nanos));
                let call = Call { started: now, hedges, idempotent };
                if let Ok(due) = hedge.due(now, call) {
                    prop_assert!(idempotent && hedges < 3);
                    prop_assert!(due >= now + config.delay_min * (hedges + 1));
                    prop_assert!(due <= now + config.delay_max * (hedges + 1));
                    prop_assert_eq!(hedge.fire(due - Duration::from_nanos(1), call, || true).is_ok(), due == now);
                }
            }
        }
    }
}
