//! The guards around a call, in the order they stand on its way:
//!
//! [`deadline`] (is there time left?) → [`bulkhead`] (is there a place?) → attempt loop { [`breaker`] (is the upstream
//! thought well?) → the call under its per-try timeout → [`retry`] (may it be sent again, and when?) within
//! [`budget`] (does the traffic afford it?) }. [`health`] looks at endpoints from the side.
//!
//! Every guard is a plain machine: the driver brings the time, the chance and the outcome, and carries out what the
//! guard decides. Every refusal is a [`Refusal`]: which rule, with which numbers, and when to come back.

pub mod breaker;
pub mod budget;
pub mod bulkhead;
pub mod concurrency;
pub mod deadline;
pub mod health;
pub mod hedge;
pub mod latency;
pub mod learned;
pub mod outlier;
pub mod pipeline;
pub mod rate;
pub mod retry;
pub mod throttle;

use std::fmt;
use std::time::Duration;

use crate::units::{Ratio, format_duration};

/// Why a guard said no.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The breaker is open, or its probes are all out.
    BreakerOpen {
        /// Its state: open, half-open with every probe out, recovering with the share of this moment used up, or forced
        /// open by hand.
        state: breaker::StateName,
        /// Until it may let a call through.
        retry_in: Duration,
        /// What it saw when it opened.
        seen: Seen,
    },
    /// Too many calls at the same time, and the queue is full or the wait was too long.
    BulkheadFull {
        /// Calls allowed at the same time.
        calls_max: u32,
        /// Calls waiting already.
        waiting: u32,
        /// A guess at when a place is free.
        retry_in: Duration,
    },
    /// No time was left before the call began.
    DeadlineSpent {
        /// The time there was.
        timeout: Duration,
    },
    /// Less time is left than such a call usually takes.
    DeadlineTooShort {
        /// What is left.
        left: Duration,
        /// The median of such calls.
        usual: Duration,
    },
    /// The traffic does not afford another retry.
    BudgetSpent {
        /// The share of traffic that may be retries.
        ratio: Ratio,
        /// Requests in the window.
        requests: u64,
        /// Retries and hedges in the window, those waiting in backoff included.
        retries: u64,
        /// Of those, waiting or under way now.
        out: u64,
    },
    /// Every endpoint fails its health check.
    NoHealthyEndpoint {
        /// How many there are.
        endpoints: u32,
        /// Until the next health check.
        retry_in: Duration,
    },
    /// It was taken out of service by hand.
    Draining {
        /// `route` or `upstream`.
        what: &'static str,
        /// Its name.
        name: String,
        /// A guess: nobody knows when it is back.
        retry_in: Duration,
    },
    /// A limit of the whole node.
    LimitReached {
        /// Its name.
        limit: &'static str,
        /// Its value.
        value: u64,
        /// A guess at when to come back.
        retry_in: Duration,
    },
    /// The configured rate is used up for now.
    RateLimited {
        /// So many cells ...
        cells: u32,
        /// ... in this time.
        per: Duration,
        /// Cells that may come at once after a pause.
        burst: u32,
        /// Until this very request would pass, to the nanosecond, if no other comes first.
        retry_in: Duration,
    },
    /// The request is heavier than a whole burst: it never passes, whatever it waits.
    OverBurst {
        /// Its weight.
        cells: u32,
        /// The heaviest that could pass.
        burst: u32,
    },
    /// The upstream takes on so few of these calls that some are spared it by chance.
    Throttled {
        /// The chance with which they are.
        probability: Ratio,
        /// Calls in the window, those refused here included.
        requests: u64,
        /// Of those, taken on by the upstream.
        accepts: u64,
        /// Until the window has moved on by a slice: the next may fare better at any time.
        retry_in: Duration,
    },
    /// As many calls are on their way as the upstream serves without a queue.
    ConcurrencyLimited {
        /// So many, as measured.
        limit: u32,
        /// Calls on their way.
        in_flight: u32,
        /// A guess at when one of them ends.
        retry_in: Duration,
    },
    /// The upstream's own limit, as learned from its answers, is used up for now.
    LearnedLimit {
        /// Calls per second that it is believed to allow.
        per_second: f64,
        /// How that is known.
        source: learned::Source,
        /// Until a call is due.
        retry_in: Duration,
    },
}

/// What a breaker counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Seen {
    /// Calls in the window.
    pub calls: u32,
    /// Of those, failed.
    pub failed: u32,
    /// Of those, slow.
    pub slow: u32,
    /// Of those, both.
    pub slow_failed: u32,
}

impl Seen {
    pub(crate) fn add(&mut self, failed: bool, slow: bool) {
        self.calls = self.calls.saturating_add(1);
        self.failed = self.failed.saturating_add(u32::from(failed));
        self.slow = self.slow.saturating_add(u32::from(slow));
        self.slow_failed = self.slow_failed.saturating_add(u32::from(failed && slow));
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.failed = self.failed.saturating_add(other.failed);
        self.slow = self.slow.saturating_add(other.slow);
        self.slow_failed = self.slow_failed.saturating_add(other.slow_failed);
    }
}

/// A number that makes no guard. Refused where a configuration becomes a machine, so that nothing panics later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {value}; allowed is {allowed}")]
pub struct Invalid {
    /// The offending key, as it is written in a configuration.
    pub key: &'static str,
    /// What it is.
    pub value: String,
    /// What it may be.
    pub allowed: &'static str,
}

impl Refusal {
    /// The rule's name, in metrics, journal and `Proxy-Status`.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::BreakerOpen { .. } => "breaker",
            Self::BulkheadFull { .. } => "bulkhead",
            Self::DeadlineSpent { .. } | Self::DeadlineTooShort { .. } => "deadline",
            Self::BudgetSpent { .. } => "budget",
            Self::NoHealthyEndpoint { .. } => "health",
            Self::Draining { .. } => "drain",
            Self::LimitReached { .. } => "limit",
            Self::RateLimited { .. } => "rate",
            Self::OverBurst { .. } => "rate_burst",
            Self::Throttled { .. } => "throttle",
            Self::ConcurrencyLimited { .. } => "concurrency",
            Self::LearnedLimit { .. } => "learned",
        }
    }

    /// Every rule, for metrics that must show zeros too.
    pub const RULES: [&'static str; 12] = [
        "breaker",
        "bulkhead",
        "deadline",
        "budget",
        "health",
        "drain",
        "limit",
        "rate",
        "rate_burst",
        "throttle",
        "concurrency",
        "learned",
    ];

    /// When trying again makes sense; `None` where waiting does not help.
    #[must_use]
    pub const fn retry_in(&self) -> Option<Duration> {
        match self {
            Self::BreakerOpen { retry_in, .. }
            | Self::BulkheadFull { retry_in, .. }
            | Self::NoHealthyEndpoint { retry_in, .. }
            | Self::Draining { retry_in, .. }
            | Self::LimitReached { retry_in, .. }
            | Self::RateLimited { retry_in, .. }
            | Self::Throttled { retry_in, .. }
            | Self::ConcurrencyLimited { retry_in, .. }
            | Self::LearnedLimit { retry_in, .. } => Some(*retry_in),
            Self::DeadlineSpent { .. }
            | Self::DeadlineTooShort { .. }
            | Self::BudgetSpent { .. }
            | Self::OverBurst { .. } => None,
        }
    }

    /// The status a client sees when this refusal is all we have.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::DeadlineSpent { .. } | Self::DeadlineTooShort { .. } => 504,
            Self::RateLimited { .. } | Self::OverBurst { .. } => 429,
            _ => 503,
        }
    }

    /// The error type of RFC 9209 section 2.3.
    #[must_use]
    pub const fn proxy_status(&self) -> &'static str {
        match self {
            Self::BreakerOpen { .. } | Self::NoHealthyEndpoint { .. } | Self::Draining { .. } => {
                "destination_unavailable"
            }
            Self::BulkheadFull { .. } | Self::LimitReached { .. } | Self::ConcurrencyLimited { .. } => {
                "connection_limit_reached"
            }
            Self::DeadlineSpent { .. } | Self::DeadlineTooShort { .. } => "http_response_timeout",
            Self::BudgetSpent { .. } | Self::Throttled { .. } | Self::LearnedLimit { .. } => "destination_unavailable",
            Self::RateLimited { .. } | Self::OverBurst { .. } => "http_request_denied",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BreakerOpen { state: breaker::StateName::ForcedOpen, .. } => {
                f.write_str("the breaker was opened by hand")
            }
            Self::BreakerOpen { state, retry_in, seen } => write!(
                f,
                "the breaker is {} ({} failed and {} slow of {} calls); next probe in {}",
                state.name().replace('_', "-"),
                seen.failed,
                seen.slow,
                seen.calls,
                format_duration(whole_millis(*retry_in)),
            ),
            Self::BulkheadFull { calls_max, waiting, .. } => {
                write!(f, "{calls_max} calls are on their way already and {waiting} wait")
            }
            Self::DeadlineSpent { timeout } => write!(f, "nothing is left of {}", format_duration(*timeout)),
            Self::DeadlineTooShort { left, usual } => {
                let (left, usual) = (format_duration(whole_millis(*left)), format_duration(whole_millis(*usual)));
                write!(f, "{left} are left for what usually takes {usual}")
            }
            Self::BudgetSpent { ratio, requests, retries, out } => {
                write!(
                    f,
                    "{retries} retries for {requests} requests are what a budget of {ratio} affords; {out} are out"
                )
            }
            Self::NoHealthyEndpoint { endpoints, .. } => write!(f, "none of {endpoints} endpoints is healthy"),
            Self::Draining { what, name, .. } => write!(f, "the {what} `{name}` is being drained"),
            Self::LimitReached { limit, value, .. } => write!(f, "the limit `{limit}` of {value} is reached"),
            Self::RateLimited { cells, per, burst, .. } => {
                write!(f, "the rate of {cells} per {} with bursts of {burst} is used up", format_duration(*per))
            }
            Self::OverBurst { cells, burst } => write!(f, "a weight of {cells} never fits into a burst of {burst}"),
            Self::Throttled { probability, requests, accepts, .. } => {
                write!(f, "{accepts} of {requests} calls were taken on; {probability} are spared")
            }
            Self::ConcurrencyLimited { limit, in_flight, .. } => {
                write!(f, "{in_flight} calls are on their way and {limit} are what the upstream serves without a queue")
            }
            Self::LearnedLimit { per_second, source, .. } => {
                write!(f, "the upstream allows about {per_second:.1} calls per second, as {source} told")
            }
        }
    }
}

fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_tells_rule_numbers_and_when_to_come_back() {
        let second = Duration::from_secs(1);
        let seen = Seen { calls: 20, failed: 12, slow: 3, slow_failed: 1 };
        let refusals = [
            Refusal::BreakerOpen { state: breaker::StateName::Open, retry_in: second, seen },
            Refusal::BulkheadFull { calls_max: 4, waiting: 2, retry_in: second },
            Refusal::DeadlineSpent { timeout: second },
            Refusal::BudgetSpent { ratio: Ratio::new(0.2).unwrap(), requests: 10, retries: 2, out: 1 },
            Refusal::NoHealthyEndpoint { endpoints: 2, retry_in: second },
            Refusal::Draining { what: "route", name: "events".into(), retry_in: second },
            Refusal::LimitReached { limit: "pending", value: 9, retry_in: second },
            Refusal::RateLimited { cells: 5, per: second, burst: 3, retry_in: second },
            Refusal::OverBurst { cells: 4, burst: 3 },
            Refusal::Throttled { probability: Ratio::ONE, requests: 9, accepts: 2, retry_in: second },
            Refusal::ConcurrencyLimited { limit: 8, in_flight: 9, retry_in: second },
            Refusal::LearnedLimit { per_second: 20.04, source: learned::Source::Refusals, retry_in: second },
        ];
        assert_eq!(refusals.each_ref().map(Refusal::rule), Refusal::RULES);
        let words: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "the breaker is open (12 failed and 3 slow of 20 calls); next probe in 1s",
                "4 calls are on their way already and 2 wait",
                "nothing is left of 1s",
                "2 retries for 10 requests are what a budget of 20% affords; 1 are out",
                "none of 2 endpoints is healthy",
                "the route `events` is being drained",
                "the limit `pending` of 9 is reached",
                "the rate of 5 per 1s with bursts of 3 is used up",
                "a weight of 4 never fits into a burst of 3",
                "2 of 9 calls were taken on; 100% are spared",
                "9 calls are on their way and 8 are what the upstream serves without a queue",
                "the upstream allows about 20.0 calls per second, as its refusals told",
            ]
        );
        assert_eq!(
            refusals.each_ref().map(Refusal::status),
            [503, 503, 504, 503, 503, 503, 503, 429, 429, 503, 503, 503]
        );
        assert_eq!(refusals.iter().filter(|refusal| refusal.retry_in().is_some()).count(), 9);
        assert!(refusals.iter().all(|refusal| !refusal.proxy_status().is_empty()));
    }
}
