//! What would these numbers do to my traffic? Traffic against the guards, in virtual time.
//!
//! Picture a wind tunnel: the very guards that stand in the gateway ([`Pipeline`]), callers in front of them, a model
//! of a dependency behind them, and a clock that jumps from one event to the next. An hour of a thousand requests a
//! second passes in seconds, and the same seed gives the same report to the last byte.
//!
//! What is modelled: arrivals ([`Traffic`], made up or recorded), any number of layers that each retry on their own
//! ([`Layer`]), a dependency with latency, capacity, a queue that goes on serving callers who have given up, troubles
//! and a rate limit ([`Dependency`]). That is enough for retry storms and for metastable states, where the load that
//! keeps a dependency down is the retries its failure made. Fallbacks stand in ([`StandIn`]), hedges send copies, and
//! what was kept is delivered as the gateway's forwarder does it. What is not: connections, bytes, the choice between
//! endpoints, keys that must stay in order.

pub mod audit;
mod copies;
mod dependency;
mod kept;
pub mod rehearsal;
mod report;
mod traffic;
mod world;

#[cfg(test)]
mod recorded_tests;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use dependency::{Ailment, Dependency, Latency, RateLimit, Stretch, Trouble};
pub use report::{Report, Row, Summary};
pub use traffic::{Piece, Recorded, Traffic};

use crate::guard::Invalid;
use crate::guard::budget::BudgetConfig;
use crate::guard::bulkhead::BulkheadConfig;
use crate::guard::retry::{Backoff, Jitter, RetryConfig};
use crate::policy::Guards;
use crate::units::Ratio;

#[expect(unused_imports, reason = "the documentation names it")]
use crate::guard::pipeline::Pipeline;

/// One experiment.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Feeds every chance in it.
    pub seed: u64,
    /// How long, in virtual time.
    pub lasts: Duration,
    /// Who asks, and when.
    pub traffic: Traffic,
    /// Who stands between, the one next to the callers first. At least one.
    pub layers: Vec<Layer>,
    /// Who answers.
    pub dependency: Dependency,
}

/// A layer of services or nodes that call the next one.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it is called in the report.
    pub name: String,
    /// How many of them; each has guards of its own, and a call goes to any.
    pub instances: u32,
    /// Its guards.
    pub guards: Guards,
    /// True if its calls may be repeated without harm.
    pub idempotent: bool,
    /// True if it marks what it would repeat, so that layers below do not
    /// ([`crate::guard::retry::RETRY_OWNER_HEADER`]).
    pub marks_retries: bool,
    /// What a caller gets when a call comes to nothing.
    pub stand_in: StandIn,
}

/// What stands in for an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StandIn {
    /// Nothing: it fails.
    #[default]
    Nothing,
    /// An answer that is at hand: the last good one, a fixed one.
    Answer,
    /// A promise: the call is kept, and delivered later through the same guards.
    Promise {
        /// Kept calls on their way at the same time.
        parallel: u32,
    },
}

impl Layer {
    /// One node of Seawall with these guards, whose calls may be repeated, and nothing that stands in.
    #[must_use]
    pub fn gateway(guards: Guards) -> Self {
        let name = "gateway".into();
        Self { name, instances: 1, guards, idempotent: true, marks_retries: true, stand_in: StandIn::Nothing }
    }

    /// Callers as they are commonly written: a timeout, a few immediate retries, nothing else.
    #[must_use]
    pub fn naive(name: &str, instances: u32, timeout: Duration, attempts: u32) -> Self {
        let unbounded = BudgetConfig {
            ratio: Ratio::ONE,
            floor_per_s: 1_000_000.0,
            in_flight_ratio: Ratio::ONE,
            in_flight_min: u32::MAX,
        };
        let guards = Guards {
            timeout: timeout.saturating_mul(attempts).saturating_add(timeout),
            try_timeout: timeout,
            retry: RetryConfig {
                attempts_max: attempts,
                backoff: Backoff::Fixed(Duration::ZERO),
                jitter: Jitter::None,
                ..RetryConfig::default()
            },
            budget: unbounded,
            breaker: None,
            bulkhead: BulkheadConfig { calls_max: u32::MAX, ..BulkheadConfig::default() },
            ..Guards::default()
        };
        Self {
            name: name.into(),
            instances,
            guards,
            idempotent: true,
            marks_retries: false,
            stand_in: StandIn::Nothing,
        }
    }
}

impl Scenario {
    /// Plays it.
    ///
    /// # Errors
    /// [`Invalid`] with the first number that makes no experiment.
    pub fn run(&self) -> Result<Report, Invalid> {
        self.run_telling(&mut |_| {})
    }

    /// Plays it, and tells after each second of virtual time how far it is: for whoever shows progress. What is told
    /// changes nothing.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_telling(&self, tell: &mut dyn FnMut(Duration)) -> Result<Report, Invalid> {
        self.check()?;
        world::play(self, tell)
    }

    fn check(&self) -> Result<(), Invalid> {
        let invalid = |key, value: String, allowed| Err(Invalid { key, value, allowed });
        if self.layers.is_empty() || self.layers.len() > 8 {
            return invalid("layers", self.layers.len().to_string(), "1 to 8");
        }
        if let Some(layer) = self.layers.iter().find(|layer| !(1..=1_000).contains(&layer.instances)) {
            return invalid("instances", layer.instances.to_string(), "1 to 1000");
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(7 * 86_400)).contains(&self.lasts) {
            return invalid("for", crate::units::format_duration(self.lasts), "1s to 7d");
        }
        if let Some(late) = self.dependency.troubles.iter().find(|trouble| trouble.from >= self.lasts) {
            let value = format!("from {} on", crate::units::format_duration(late.from));
            return invalid("fault", value, "a beginning before the end of it all (`for`)");
        }
        self.traffic.check()?;
        self.dependency.check()
    }
}
