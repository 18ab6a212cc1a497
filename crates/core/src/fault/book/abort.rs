//! When a fault does more harm than was meant: what clients see of the routes it may touch, and when that is enough.
//!
//! Every look adds what the routes have counted so far; a verdict is about the difference to the oldest look within the
//! window that is not older than the fault. What retries and fallbacks make good is no harm: only failed answers count.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::Refused;
use crate::id::RouteId;
use crate::time::Mono;
use crate::units::{Ratio, format_duration};

/// Longest time a share of failures is looked at over.
pub const OVER_MAX: Duration = Duration::from_secs(60);
/// Looks that are remembered, whatever their pace.
const LOOKS_MAX: usize = 1_024;

/// A fault ends when more than this share of what clients ask fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AbortWhen {
    /// Of the requests of any one route it may touch, or of its connections.
    pub failed_max: Ratio,
    /// In so much time.
    pub over: Duration,
    /// If it was so many at least.
    pub requests_min: u64,
}

impl AbortWhen {
    pub(super) fn check(&self) -> Result<(), Refused> {
        let refused = |message: &str, allowed: String| Err(Refused::invalid("abort_when", message, [allowed]));
        if self.failed_max >= Ratio::ONE {
            return refused("more than all can never fail", "`failed`: less than 100%".into());
        }
        if self.over.is_zero() || self.over > OVER_MAX {
            return refused(
                "a time that nothing can be learned from",
                format!("`over`: at most {}", format_duration(OVER_MAX)),
            );
        }
        if self.requests_min == 0 {
            return refused("nothing would be enough", "`requests_min`: 1 or more".into());
        }
        Ok(())
    }
}

impl fmt::Display for AbortWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failed_max, over, requests_min } = self;
        write!(f, "more than {failed_max} of {requests_min} or more fail within {}", format_duration(*over))
    }
}

/// What clients have seen of a route so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Requests answered, or connections that have ended.
    pub requests: u64,
    /// Of those, failed.
    pub failed: u64,
}

/// Enough is enough.
#[derive(Clone, Debug, PartialEq)]
pub struct Tripped {
    /// Which route, by name.
    pub route: String,
    /// What its clients saw.
    pub seen: Seen,
    /// In so much time.
    pub over: Duration,
}

impl fmt::Display for Tripped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { route, seen: Seen { requests, failed }, over } = self;
        write!(f, "{failed} of {requests} of route {route} failed within {}", format_duration(*over))
    }
}

/// What was seen when, of all routes in the order of the policy.
#[derive(Clone, Debug, Default)]
pub(super) struct Looks(VecDeque<(Mono, Vec<Seen>)>);

impl Looks {
    pub(super) fn add(&mut self, now: Mono, seen: Vec<Seen>) {
        self.0.push_back((now, seen));
        while self.0.len() > LOOKS_MAX || self.0.get(1).is_some_and(|(second, _)| now.since(*second) > OVER_MAX) {
            self.0.pop_front();
        }
    }

    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// What one of these routes has seen that is too much.
    pub(super) fn too_much(
        &self,
        when: &AbortWhen,
        began: Mono,
        routes: impl Iterator<Item = RouteId>,
    ) -> Option<(RouteId, Seen)> {
        let (now, last) = self.0.back()?;
        let within = |at: Mono| at >= began && now.since(at) <= when.over;
        let (_, first) = self.0.iter().find(|(at, _)| within(*at))?;
        let grown = |route: RouteId| {
            let (first, last) = (first.get(route.index())?, last.get(route.index())?);
            let (requests, failed) =
                (last.requests.checked_sub(first.requests)?, last.failed.checked_sub(first.failed)?);
            Some((route, Seen { requests, failed }))
        };
        let is_too_much = |(_, seen): &(RouteId, Seen)| {
            seen.requests >= when.requests_min && seen.failed as f64 > when.failed_max.get() * seen.requests as f64
        };
        routes.filter_map(grown).find(is_too_much)
    }
}
