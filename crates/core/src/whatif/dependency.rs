//! Who answers: how fast, how many at once, and when it is ill.

use std::time::Duration;

use super::traffic::{exponential, seconds};
use crate::guard::Invalid;
use crate::guard::rate::RateConfig;
use crate::prng::Prng;
use crate::time::Mono;
use crate::units::{Ratio, format_duration};

/// A model of a dependency.
#[derive(Clone, Debug, PartialEq)]
pub struct Dependency {
    /// How long it takes to serve a call.
    pub latency: Latency,
    /// Calls it serves at the same time; `None` for any number.
    pub workers: Option<u32>,
    /// Calls that may wait for one of them; beyond it, 503 at once. They are served even if nobody waits any more.
    pub queue_max: u32,
    /// How much slower serving becomes per full round of waiting calls: 0.1 means a tenth slower for as many waiting as
    /// there are workers. What makes goodput collapse rather than level off.
    pub drag: f64,
    /// A share of calls that fail although it is well.
    pub failure_rate: Ratio,
    /// A rate limit, told or not.
    pub rate_limit: Option<RateLimit>,
    /// When it is ill.
    pub troubles: Vec<Trouble>,
    /// How it did by a record, in order of time; before the first of these `latency` and `failure_rate` hold.
    pub course: Vec<Stretch>,
}

/// How fast it is and how often it fails, from a moment on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    /// Since the start.
    pub from: Duration,
    /// In place of [`Dependency::latency`].
    pub latency: Latency,
    /// In place of [`Dependency::failure_rate`].
    pub failure_rate: Ratio,
}

impl Default for Dependency {
    fn default() -> Self {
        Self {
            latency: Latency::LogNormal { median: Duration::from_millis(20), p99: Duration::from_millis(80) },
            workers: None,
            queue_max: 1_000,
            drag: 0.0,
            failure_rate: Ratio::ZERO,
            rate_limit: None,
            troubles: Vec::new(),
            course: Vec::new(),
        }
    }
}

/// How long serving takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Latency {
    /// Always the same.
    Fixed(Duration),
    /// Anything between.
    Uniform(Duration, Duration),
    /// Memoryless, with this mean.
    Exponential(Duration),
    /// The usual shape: half below the median, one in a hundred above `p99`.
    LogNormal {
        /// Half are faster.
        median: Duration,
        /// One in a hundred is slower.
        p99: Duration,
    },
}

/// A limit on how often it may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The limit.
    pub rate: RateConfig,
    /// True if its 429 says when to come back.
    pub says_when: bool,
}

/// An illness, from when to when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trouble {
    /// Since the start.
    pub from: Duration,
    /// Since the start.
    pub until: Duration,
    /// What it is.
    pub ailment: Ailment,
}

/// What ails it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ailment {
    /// Nobody listens.
    Down,
    /// It takes calls and never answers.
    Hangs,
    /// Everything takes so many times longer.
    Slow(f64),
    /// This share of calls fails with 503, at the speed of good ones.
    Fails(Ratio),
}

/// The 99th percentile of the standard normal distribution.
const Z99: f64 = 2.326_347_874_040_841;

impl Latency {
    pub(super) fn draw(self, prng: &mut Prng) -> Duration {
        match self {
            Self::Fixed(latency) => latency,
            Self::Uniform(low, high) => low + (high.saturating_sub(low)).mul_f64(prng.unit()),
            Self::Exponential(mean) => seconds(exponential(mean.as_secs_f64(), prng)),
            Self::LogNormal { median, p99 } => {
                let sigma = (p99.as_secs_f64() / median.as_secs_f64()).ln() / Z99;
                seconds(median.as_secs_f64() * (sigma * normal(prng)).exp())
            }
        }
    }

    fn check(self) -> Result<(), Invalid> {
        let (low, high) = match self {
            Self::Fixed(latency) | Self::Exponential(latency) => (latency, latency),
            Self::Uniform(low, high) => (low, high),
            Self::LogNormal { median, p99 } => (median, p99),
        };
        if low.is_zero() || high < low || high > Duration::from_secs(3_600) {
            let value = format!("{} to {}", format_duration(low), format_duration(high));
            return Err(Invalid {
                key: "latency",
                value,
                allowed: "more than nothing, up to 1h, the lower number first",
            });
        }
        Ok(())
    }
}

/// Standard normal, by Box and Muller (1958).
fn normal(prng: &mut Prng) -> f64 {
    let radius = (-2.0 * (1.0 - prng.unit()).ln()).sqrt();
    radius * (std::f64::consts::TAU * prng.unit()).cos()
}

impl Dependency {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let invalid = |key, value: String, allowed| Err(Invalid { key, value, allowed });
        self.latency.check()?;
        self.course.iter().try_for_each(|stretch| stretch.latency.check())?;
        if !self.course.is_sorted_by(|one, next| one.from < next.from) {
            return invalid("traffic", format!("{} stretches", self.course.len()), "stretches in order of time");
        }
        if self.workers == Some(0) {
            return invalid("capacity", "0".into(), "1 or more");
        }
        if !(0.0..=100.0).contains(&self.drag) {
            return invalid("drag", self.drag.to_string(), "0 to 100");
        }
        for trouble in &self.troubles {
            if trouble.until <= trouble.from {
                let value = format!("{}..{}", format_duration(trouble.from), format_duration(trouble.until));
                return invalid("fault", value, "an end after the beginning");
            }
            if matches!(trouble.ailment, Ailment::Slow(factor) if !(1.0..=10_000.0).contains(&factor)) {
                return invalid("fault", format!("{:?}", trouble.ailment), "slow x1 to x10000");
            }
        }
        Ok(())
    }

    /// How fast it is at this moment, and how often it fails, but for what ails it.
    pub(super) fn mood(&self, now: Mono) -> (Latency, Ratio) {
        let now = now.since(Mono::ZERO);
        let begun = self.course.partition_point(|stretch| stretch.from <= now);
        let stretch = begun.checked_sub(1).map(|place| &self.course[place]);
        stretch.map_or((self.latency, self.failure_rate), |stretch| (stretch.latency, stretch.failure_rate))
    }

    /// What ails it at this moment, the worst first as they were written.
    pub(super) fn ailments(&self, now: Mono) -> impl Iterator<Item = Ailment> {
        let now = now.since(Mono::ZERO);
        self.troubles.iter().filter(move |it| (it.from..it.until).contains(&now)).map(|trouble| trouble.ailment)
    }
}
