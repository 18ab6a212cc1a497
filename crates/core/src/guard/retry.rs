//! Retry: whether a failed try may be sent again, and after how long.
//!
//! Picture somebody at a closed counter: some doors are worth a second knock, some must never be knocked at twice, and
//! whoever knocks waits a while first, not the same while as everybody else. What is decided here, in this order: is
//! the failure one that may pass, is sending twice safe, are tries and time left, has the upstream said no or later;
//! only then how long to wait. Whether the traffic affords the retry is the budget's to say.
//!
//! Invariants: no wait is longer than `wait_max`, jitter included, but for the upstream's own wish; nothing that may
//! have been carried out is repeated unless repeating it does no harm. Not here: the budget (`budget.rs`), the clock
//! that waits.

use std::time::Duration;

use super::Invalid;
use crate::outcome::Failure;
use crate::prng::Prng;
use crate::units::{Ratio, format_duration};

/// The header that says that a layer above repeats this request if it fails, so that nobody below does: three layers of
/// four tries are 64 calls (Google SRE Book, chapter 22). Its value names the layer.
pub const RETRY_OWNER_HEADER: &str = "seawall-retry-owner";

/// How often, after which failures and how fast.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryConfig {
    /// Tries in all, the first included.
    pub attempts_max: u32,
    /// How the waits grow.
    pub backoff: Backoff,
    /// How callers who failed together are kept from coming back together.
    pub jitter: Jitter,
    /// No wait of ours is longer, jitter included.
    pub wait_max: Duration,
    /// No retry begins later than this after the first try began; `None` to leave that to the deadline.
    pub total_max: Option<Duration>,
    /// An upstream that asks for a longer wait than this is not asked again.
    pub retry_after_max: Duration,
    /// After which failures.
    pub on: RetryOn,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts_max: 3,
            backoff: Backoff::Exponential { base: Duration::from_millis(50), multiplier: 2.0 },
            jitter: Jitter::Full,
            wait_max: Duration::from_secs(1),
            total_max: None,
            retry_after_max: Duration::from_secs(60),
            on: RetryOn::default(),
        }
    }
}

/// How waits grow from one try to the next. `n` is the number of tries made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Backoff {
    /// Always the same.
    Fixed(Duration),
    /// `base + step · (n-1)`.
    Linear {
        /// The first.
        base: Duration,
        /// What each adds.
        step: Duration,
    },
    /// `base · multiplier^(n-1)`.
    Exponential {
        /// The first.
        base: Duration,
        /// 1.0 or more.
        multiplier: f64,
    },
    /// `base` times 1, 1, 2, 3, 5, 8, ...
    Fibonacci {
        /// The first two.
        base: Duration,
    },
    /// Uniform in `base ..= 3 · the wait before` (Brooker, "Exponential Backoff And Jitter", 2015). Takes no other
    /// jitter.
    Decorrelated {
        /// The least.
        base: Duration,
    },
    /// Polly's second form: `(x(t) - x(t before)) · base / 1.4` with `x(t) = 2^t · tanh(√(4t))` and `t = n-1 + chance`:
    /// decorrelated, yet its mean keeps doubling. Takes no other jitter.
    DecorrelatedSmooth {
        /// About the median of the first.
        base: Duration,
    },
}

/// Chance in a wait of `w`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Jitter {
    /// None: for tests, and for a single caller.
    None,
    /// Uniform in `0 ..= w`.
    Full,
    /// Uniform in `w/2 ..= w`.
    Equal,
    /// Uniform in `w - share·w ..= w + share·w`.
    Share(Ratio),
}

/// After which failures another try is worth it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOn {
    /// Kinds by [`Failure::name`], a bit each in the order of [`Failure::NAMES`].
    kinds: u16,
    /// Of the answers that say the upstream failed, only these; all if empty.
    statuses: Vec<u16>,
}

impl Default for RetryOn {
    /// After every failure that may pass.
    fn default() -> Self {
        Self { kinds: u16::MAX, statuses: Vec::new() }
    }
}

impl RetryOn {
    /// After these kinds of failure (by [`Failure::name`]) and these statuses only; `None` if a name is not known.
    #[must_use]
    pub fn only<'a>(kinds: impl IntoIterator<Item = &'a str>, statuses: Vec<u16>) -> Option<Self> {
        let bit = |name: &str| Failure::NAMES.iter().position(|known| *known == name).map(|place| 1 << place);
        let mut bits = if statuses.is_empty() { 0 } else { bit("status")? };
        for kind in kinds {
            bits |= bit(kind)?;
        }
        Some(Self { kinds: bits, statuses })
    }

    /// True if another try is worth it after this.
    #[must_use]
    pub fn takes(&self, failure: Failure) -> bool {
        let place = Failure::NAMES.iter().position(|known| *known == failure.name()).unwrap_or_default();
        let wanted = match failure {
            Failure::Status(status) => self.statuses.is_empty() || self.statuses.contains(&status),
            _ => true,
        };
        wanted && self.kinds & 1 << place != 0
    }
}

/// What the upstream itself says about being asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Not before this has passed (`Retry-After`, `grpc-retry-pushback-ms`).
    After(Duration),
    /// Not at all.
    Never,
}

impl Pushback {
    /// Reads `grpc-retry-pushback-ms`: whole milliseconds; a negative number, or none that can be read, means never.
    /// Source: gRPC proposal A6, "Pushback".
    #[must_use]
    pub fn from_grpc(text: &str) -> Self {
        text.trim().parse().map_or(Self::Never, |millis| Self::After(Duration::from_millis(millis)))
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
    /// True if a layer above repeats it ([`RETRY_OWNER_HEADER`]).
    pub owned_above: bool,
    /// Since the first try began.
    pub elapsed: Duration,
    /// The upstream's own wish.
    pub pushback: Option<Pushback>,
}

/// The waits of one request, which some backoffs must remember.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waits {
    last: Duration,
    smooth: f64,
}

/// Why there is no other try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// Every try was made.
    AttemptsSpent,
    /// The failure is not one that another try would mend.
    NotWorthIt,
    /// It may have been carried out, and carrying it out twice does harm.
    NotSafe,
    /// The body is gone.
    NotReplayable,
    /// A layer above repeats it.
    OwnedAbove,
    /// `total_max` is over, or would be after the wait.
    TimeSpent,
    /// The upstream does not want to be asked again, or not for longer than we wait.
    PushedBack,
}

impl GiveUp {
    /// Its name in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AttemptsSpent => "attempts_spent",
            Self::NotWorthIt => "not_worth_it",
            Self::NotSafe => "not_safe",
            Self::NotReplayable => "not_replayable",
            Self::OwnedAbove => "owned_above",
            Self::TimeSpent => "time_spent",
            Self::PushedBack => "pushed_back",
        }
    }
}

impl RetryConfig {
    /// No retries at all.
    #[must_use]
    pub fn off() -> Self {
        Self { attempts_max: 1, ..Self::default() }
    }

    /// # Errors
    /// [`Invalid`] with the first number that makes no retry.
    pub fn check(&self) -> Result<(), Invalid> {
        let invalid = |value: String, allowed| Err(Invalid { key: "retry", value, allowed });
        if !(1..=100).contains(&self.attempts_max) {
            return invalid(format!("{} attempts", self.attempts_max), "1 to 100 attempts");
        }
        match self.backoff {
            Backoff::Exponential { multiplier, .. } if !(1.0..=100.0).contains(&multiplier) => {
                return invalid(format!("times {multiplier}"), "times 1 to times 100");
            }
            _ => {}
        }
        let base = self.backoff.base();
        if base > self.wait_max {
            let allowed = "a first wait that is not longer than the longest";
            return invalid(format!("{}..{}", format_duration(base), format_duration(self.wait_max)), allowed);
        }
        Ok(())
    }

    /// The wait before the next try.
    ///
    /// # Errors
    /// [`GiveUp`] when there must be none.
    pub fn next_wait(&self, tried: Tried, waits: &mut Waits, prng: &mut Prng) -> Result<Duration, GiveUp> {
        if tried.attempts >= self.attempts_max {
            return Err(GiveUp::AttemptsSpent);
        }
        if !self.on.takes(tried.failure) {
            return Err(GiveUp::NotWorthIt);
        }
        if tried.owned_above && !tried.failure.never_sent() {
            return Err(GiveUp::OwnedAbove);
        }
        if !tried.idempotent && !tried.failure.never_sent() {
            return Err(GiveUp::NotSafe);
        }
        if !tried.replayable {
            return Err(GiveUp::NotReplayable);
        }
        let ours = self.wait(tried.attempts, waits, prng);
        let wait = match tried.pushback {
            Some(Pushback::Never) => return Err(GiveUp::PushedBack),
            Some(Pushback::After(wish)) if wish > self.retry_after_max => return Err(GiveUp::PushedBack),
            Some(Pushback::After(wish)) => wish.max(ours),
            None => ours,
        };
        if self.total_max.is_some_and(|total| tried.elapsed.saturating_add(wait) > total) {
            return Err(GiveUp::TimeSpent);
        }
        Ok(wait)
    }

    /// Our own wait after so many tries, never beyond `wait_max`.
    pub fn wait(&self, attempts: u32, waits: &mut Waits, prng: &mut Prng) -> Duration {
        let steps = attempts.max(1) - 1;
        let wait = match self.backoff {
            Backoff::Decorrelated { base } => {
                let top = waits.last.saturating_mul(3).max(base).min(self.wait_max.max(base));
                base + between(Duration::ZERO, top - base, prng)
            }
            Backoff::DecorrelatedSmooth { base } => {
                let t = f64::from(steps) + prng.unit();
                let x = t.exp2() * (4.0 * t).sqrt().tanh();
                let step = (x - waits.smooth).max(0.0) / 1.4;
                waits.smooth = x;
                times(base, step)
            }
            plain => self.jitter.apply(plain.grown(steps).min(self.wait_max), prng),
        };
        waits.last = wait.min(self.wait_max);
        waits.last
    }
}

impl Backoff {
    fn base(self) -> Duration {
        match self {
            Self::Fixed(base)
            | Self::Linear { base, .. }
            | Self::Exponential { base, .. }
            | Self::Fibonacci { base }
            | Self::Decorrelated { base }
            | Self::DecorrelatedSmooth { base } => base,
        }
    }

    /// The wait after so many steps, before cap and chance.
    fn grown(self, steps: u32) -> Duration {
        match self {
            Self::Linear { base, step } => base.saturating_add(step.saturating_mul(steps)),
            Self::Exponential { base, multiplier } => times(base, multiplier.powf(f64::from(steps))),
            Self::Fibonacci { base } => {
                let (mut one, mut next) = (1_u32, 1_u32);
                for _ in 0..steps.min(60) {
                    (one, next) = (next, one.saturating_add(next));
                }
                base.saturating_mul(one)
            }
            other => other.base(),
        }
    }
}

impl Jitter {
    fn apply(self, wait: Duration, prng: &mut Prng) -> Duration {
        match self {
            Self::None => wait,
            Self::Full => between(Duration::ZERO, wait, prng),
            Self::Equal => between(wait / 2, wait, prng),
            Self::Share(share) => between(times(wait, 1.0 - share.get()), times(wait, 1.0 + share.get()), prng),
        }
    }
}

/// Uniform between two durations, both included, to the nanosecond.
fn between(low: Duration, high: Duration, prng: &mut Prng) -> Duration {
    let span = u64::try_from(high.saturating_sub(low).as_nanos()).unwrap_or(u64::MAX);
    low.saturating_add(Duration::from_nanos(prng.below(span.saturating_add(1))))
}

fn times(duration: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn tried(attempts: u32, failure: Failure) -> Tried {
        Tried {
            attempts,
            failure,
            idempotent: true,
            replayable: true,
            owned_above: false,
            elapsed: Duration::ZERO,
            pushback: None,
        }
    }

    fn decide(config: &RetryConfig, tried: Tried) -> Result<Duration, GiveUp> {
        config.next_wait(tried, &mut Waits::default(), &mut Prng::new(1))
    }

    #[test]
    fn only_what_is_safe_is_sent_again() {
        let config = RetryConfig::default();
        assert!(decide(&config, tried(1, Failure::Timeout)).is_ok());
        assert!(decide(&config, tried(2, Failure::Timeout)).is_ok());
        let lost = tried(1, Failure::ConnectionLost);
        for (tried, give_up) in [
            (tried(3, Failure::Timeout), GiveUp::AttemptsSpent),
            (Tried { idempotent: false, ..lost }, GiveUp::NotSafe),
            (Tried { replayable: false, ..lost }, GiveUp::NotReplayable),
            (Tried { owned_above: true, ..lost }, GiveUp::OwnedAbove),
            (Tried { pushback: Some(Pushback::Never), ..lost }, GiveUp::PushedBack),
            (Tried { pushback: Some(Pushback::After(61_000 * MS)), ..lost }, GiveUp::PushedBack),
        ] {
            assert_eq!(decide(&config, tried), Err(give_up), "{}", give_up.name());
        }
        let never_sent = Tried { idempotent: false, owned_above: true, ..tried(1, Failure::ConnectRefused) };
        assert!(decide(&config, never_sent).is_ok(), "it was never sent");
        assert_eq!(decide(&RetryConfig::off(), lost), Err(GiveUp::AttemptsSpent));
    }

    #[test]
    fn only_what_may_pass_is_worth_it() {
        let only = |kinds: &[&str], statuses: &[u16]| RetryOn::only(kinds.iter().copied(), statuses.to_vec());
        let on = only(&["timeout"], &[503]).unwrap();
        assert!(on.takes(Failure::Timeout) && on.takes(Failure::Status(503)));
        assert!(!on.takes(Failure::Status(500)) && !on.takes(Failure::Throttled));
        assert!(only(&["status"], &[]).unwrap().takes(Failure::Status(500)));
        assert_eq!(only(&["tiemout"], &[]), None);
        let config = RetryConfig { on, ..RetryConfig::default() };
        assert_eq!(decide(&config, tried(1, Failure::Dns)), Err(GiveUp::NotWorthIt));
    }

    #[test]
    fn the_upstreams_wish_is_a_floor() {
        let config = RetryConfig::default();
        let wish = Some(Pushback::After(7_000 * MS));
        assert_eq!(decide(&config, Tried { pushback: wish, ..tried(1, Failure::Status(503)) }), Ok(7_000 * MS));
        let capped = RetryConfig { total_max: Some(6_000 * MS), ..config };
        assert_eq!(decide(&capped, Tried { pushback: wish, ..tried(1, Failure::Timeout) }), Err(GiveUp::TimeSpent));
        for (text, pushback) in [
            ("0", Pushback::After(Duration::ZERO)),
            (" 250 ", Pushback::After(250 * MS)),
            ("-1", Pushback::Never),
            ("soon", Pushback::Never),
        ] {
            assert_eq!(Pushback::from_grpc(text), pushback);
        }
    }

    /// The waits in milliseconds after each of the first eight tries.
    fn waits(backoff: Backoff, jitter: Jitter) -> Vec<u128> {
        let config = RetryConfig { backoff, jitter, wait_max: 1_000 * MS, ..RetryConfig::default() };
        let (mut waits, mut prng) = (Waits::default(), Prng::new(3));
        (1..=8).map(|attempts| config.wait(attempts, &mut waits, &mut prng).as_millis()).collect()
    }

    #[test]
    fn each_family_grows_as_it_says() {
        let base = 100 * MS;
        assert_eq!(waits(Backoff::Fixed(base), Jitter::None), [100; 8]);
        let linear = waits(Backoff::Linear { base, step: 50 * MS }, Jitter::None);
        assert_eq!(linear, [100, 150, 200, 250, 300, 350, 400, 450]);
        let exponential = waits(Backoff::Exponential { base, multiplier: 1.5 }, Jitter::None);
        assert_eq!(exponential, [100, 150, 225, 337, 506, 759, 1_000, 1_000]);
        assert_eq!(waits(Backoff::Fibonacci { base }, Jitter::None), [100, 100, 200, 300, 500, 800, 1_000, 1_000]);
    }

    #[test]
    fn chance_is_spread_as_each_jitter_says() {
        let mut prng = Prng::new(3);
        for (jitter, low, high) in
            [(Jitter::Full, 0, 100), (Jitter::Equal, 50, 100), (Jitter::Share(Ratio::new(0.25).unwrap()), 75, 125)]
        {
            let drawn: Vec<u128> = (0..2_000).map(|_| jitter.apply(100 * MS, &mut prng).as_millis()).collect();
            let mean = drawn.iter().sum::<u128>() / 2_000;
            assert!(drawn.iter().all(|wait| (low..=high).contains(wait)), "{jitter:?}");
            assert!(mean.abs_diff((low + high) / 2) <= 2, "{jitter:?}: {mean}");
        }
    }

    #[test]
    fn decorrelated_waits_grow_on_average_and_stay_inside() {
        for backoff in [Backoff::Decorrelated { base: 10 * MS }, Backoff::DecorrelatedSmooth { base: 10 * MS }] {
            let config = RetryConfig { backoff, wait_max: 10_000 * MS, ..RetryConfig::default() };
            let mut prng = Prng::new(5);
            let mut means = [0.0; 5];
            for _ in 0..2_000 {
                let mut waits = Waits::default();
                for (attempts, mean) in (1..).zip(&mut means) {
                    *mean += config.wait(attempts, &mut waits, &mut prng).as_secs_f64() * 1_000.0 / 2_000.0;
                }
            }
            assert!(means.windows(2).all(|pair| pair[1] > 1.2 * pair[0]), "{backoff:?}: {means:?}");
            assert!(means[0] < 25.0, "{backoff:?}: {means:?}");
        }
    }

    #[test]
    fn decorrelated_waits_keep_to_their_formulas() {
        let mut prng = Prng::new(7);
        let base = 14 * MS;
        for _ in 0..200 {
            let mut drawn = |backoff| {
                let config = RetryConfig { backoff, wait_max: 10_000 * MS, ..RetryConfig::default() };
                let mut waits = Waits::default();
                [1, 2, 3, 4].map(|attempts| config.wait(attempts, &mut waits, &mut prng))
            };
            let plain = drawn(Backoff::Decorrelated { base });
            assert_eq!(plain[0], base, "three times nothing is less");
            assert!(plain.windows(2).all(|pair| (base..=3 * pair[0]).contains(&pair[1])), "{plain:?}");
            // x(t) telescopes: the sum over the first n tries is x(n-1+U) · base / 1.4, between x(n-1) and x(n).
            let x_ms = [0.0, 19.28, 39.72, 79.84, 159.9];
            let mut sum = 0.0;
            for (wait, range) in drawn(Backoff::DecorrelatedSmooth { base }).iter().zip(x_ms.windows(2)) {
                sum += wait.as_secs_f64() * 1e3;
                assert!((range[0] - 0.01..=range[1] + 0.01).contains(&sum), "{sum} {range:?}");
            }
        }
    }

    #[test]
    fn numbers_that_make_no_retry_are_refused() {
        let default = RetryConfig::default();
        let wrong = [
            RetryConfig { attempts_max: 0, ..default.clone() },
            RetryConfig { backoff: Backoff::Exponential { base: MS, multiplier: f64::NAN }, ..default.clone() },
            RetryConfig { backoff: Backoff::Fixed(2 * default.wait_max), ..default.clone() },
        ];
        let told = wrong.map(|config| config.check().expect_err("no retry").to_string());
        assert_eq!(
            told,
            [
                "`retry` is 0 attempts; allowed is 1 to 100 attempts",
                "`retry` is times NaN; allowed is times 1 to times 100",
                "`retry` is 2s..1s; allowed is a first wait that is not longer than the longest",
            ]
        );
        assert_eq!(default.check(), Ok(()));
    }

    proptest! {
        #[test]
        fn caps_hold_after_jitter(
            attempts in prop::collection::vec(any::<u32>(), 1..20), seed: u64, base_ms in 0_u64..10_000,
            max_ms in 0_u64..10_000, family in 0_u8..6, jitter in 0_u8..4, multiplier in 1.0_f64..100.0,
        ) {
            let base = Duration::from_millis(base_ms);
            let backoff = match family {
                0 => Backoff::Fixed(base),
                1 => Backoff::Linear { base, step: base },
                2 => Backoff::Exponential { base, multiplier },
                3 => Backoff::Fibonacci { base },
                4 => Backoff::Decorrelated { base },
                _ => Backoff::DecorrelatedSmooth { base },
            };
            let jitter = match jitter {
                0 => Jitter::None,
                1 => Jitter::Full,
                2 => Jitter::Equal,
                _ => Jitter::Share(Ratio::ONE),
            };
            let wait_max = Duration::from_millis(max_ms);
            let config = RetryConfig { backoff, jitter, wait_max, ..RetryConfig::default() };
            let (mut waits, mut prng) = (Waits::default(), Prng::new(seed));
            for attempts in attempts {
                prop_assert!(config.wait(attempts, &mut waits, &mut prng) <= wait_max);
            }
        }
    }
}
