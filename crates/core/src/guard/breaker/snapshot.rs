//! A breaker as plain data, so that a restart or an upgrade does not begin by asking a dead upstream again.
//!
//! Moments become ages: the clock of the next process has another origin. Probes are not kept, since who made them is
//! gone: a half-open breaker begins its visit anew.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::{BreakerConfig, StateName};
use super::window::{Kept, Window};
use super::{Breaker, State, Why};
use crate::guard::{Invalid, Seen};
use crate::time::Mono;

/// What is kept of a breaker. Its fields are its own; it is written and read whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    state: StateName,
    in_state_for: Duration,
    /// What is left of the wait, while open.
    opens_for: Duration,
    step: usize,
    attempts: u32,
    opened_total: u64,
    not_permitted: u64,
    consecutive: u32,
    of_probes: bool,
    window: Kept,
}

impl Snapshot {
    /// The state it was taken in.
    #[must_use]
    pub fn state(&self) -> StateName {
        self.state
    }
}

impl Breaker {
    /// Everything worth keeping, as it is now.
    #[must_use]
    pub fn snapshot(&self, now: Mono) -> Snapshot {
        let opens_for = if let State::Open { until } = self.state { now.until(until) } else { Duration::ZERO };
        let step = if let State::Recovering { step, .. } = self.state { step } else { 0 };
        Snapshot {
            state: self.state(),
            in_state_for: now.since(self.since),
            opens_for,
            step,
            attempts: self.attempts,
            opened_total: self.opened_total,
            not_permitted: self.not_permitted,
            consecutive: self.consecutive,
            of_probes: self.of_probes,
            window: self.window.kept(),
        }
    }

    /// A breaker that goes on where another stopped `age` ago, following `config`.
    ///
    /// # Errors
    /// [`Invalid`] when the configuration makes no breaker.
    pub fn restore(
        config: BreakerConfig,
        snapshot: &Snapshot,
        age: Duration,
        seed: u64,
        now: Mono,
    ) -> Result<Self, Invalid> {
        let mut breaker = Self::new(BreakerConfig { initial: StateName::Closed, ..config.clone() }, seed, now)?;
        breaker.config.initial = config.initial;
        match (snapshot.state, &config.ramp) {
            (StateName::Open, _) => {
                // Not longer than a wait may be under this configuration, or than an upstream may ask for.
                let wait = &config.wait;
                let most = wait.max.map(|max| wait.retry_after_max.map_or(max, |asked| max.max(asked)));
                let left = snapshot.opens_for.saturating_sub(age).min(most.unwrap_or(Duration::MAX));
                breaker.open(now, Some(now + left), Why::ByHand, Seen::default());
            }
            (StateName::HalfOpen, _) => {
                breaker.half_open(now, Why::ByHand);
            }
            (StateName::Recovering, Some(ramp)) => {
                breaker.recover(now, snapshot.step.min(ramp.steps.len() - 1), Why::ByHand, Seen::default());
            }
            (StateName::Recovering, None) => {}
            (by_hand, _) => {
                breaker.go(now, by_hand, Why::ByHand);
            }
        }
        if snapshot.state != StateName::HalfOpen {
            let shape =
                if snapshot.of_probes { super::WindowConfig::Calls(config.half_open.calls) } else { config.window };
            breaker.window = Window::restore(&snapshot.window, age, shape, now);
            breaker.of_probes = snapshot.of_probes;
            if snapshot.of_probes {
                breaker.calls_min = config.calls_min.min(config.half_open.calls);
            }
            breaker.not_permitted = snapshot.not_permitted;
            breaker.consecutive = snapshot.consecutive;
        }
        breaker.since = now - snapshot.in_state_for.saturating_add(age);
        breaker.attempts = snapshot.attempts;
        breaker.opened_total = snapshot.opened_total;
        Ok(breaker)
    }
}
