//! What a call aims at beyond its upstream: a version, by its route's coin, and an endpoint it belongs to.
//!
//! Not here: how the coin falls and who is chosen (`core::balance`).

use std::sync::PoisonError;

use http::header::COOKIE;
use seawall_core::balance::assign::{Unit, VersionCounts, cookie, mark};
use seawall_core::id::RouteId;

use crate::http::fields::Fields;
use crate::node::Worker;
use crate::route::RouteState;

/// Both only with the endpoints of the route's own upstream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Aim {
    /// Its place among the upstream's versions.
    pub(crate) version: Option<usize>,
    /// What calls stay together by.
    pub(crate) value: Option<u64>,
}

impl Aim {
    pub(crate) fn take(worker: &Worker, route: &RouteState, headers: &Fields) -> Self {
        let (policy, placement) = (&route.policy, &route.policy.placement);
        let value = placement.sticky.as_ref().and_then(|by| mark_of(&policy.name, by, headers));
        let version = placement.versions.as_ref().and_then(|split| {
            let own = || worker.prng.lock().unwrap_or_else(PoisonError::into_inner).next_u64();
            let coin = mark_of(&policy.name, &split.by, headers).unwrap_or_else(own);
            let (name, _) = split.weights.get(split.version_of(coin)?)?;
            worker.node.upstreams[policy.upstream.index()].versions.iter().position(|(known, _)| known == name)
        });
        Self { version, value }
    }

    /// Counts what a request came to that was meant for a version.
    pub(crate) fn answered(self, worker: &Worker, id: RouteId, status: u16) {
        self.count(worker, id, |counts| counts.answers[usize::from(status / 100).clamp(1, 5) - 1] += 1);
    }

    /// Counts a try that went to another version.
    pub(crate) fn went_elsewhere(self, worker: &Worker, id: RouteId) {
        self.count(worker, id, |counts| counts.elsewhere += 1);
    }

    fn count(self, worker: &Worker, id: RouteId, add: impl FnOnce(&mut VersionCounts)) {
        let Some(version) = self.version else { return };
        let upstream = worker.node.policy.route(id).upstream;
        let (name, _) = &worker.node.upstreams[upstream.index()].versions[version];
        let mut counts = worker.counts[id.index()].versions.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(name) {
            Some(known) => add(known),
            None => add(counts.entry(name.clone()).or_default()),
        }
    }
}

/// The coin of what a request carries; `None` if it does not carry it.
fn mark_of(route: &str, by: &Unit, headers: &Fields) -> Option<u64> {
    let value = match by {
        Unit::Request => None,
        Unit::Header(name) => headers.get(name.as_str()).map(http::HeaderValue::as_bytes),
        Unit::Cookie(name) => {
            let mut lines = headers.get_all(COOKIE).filter_map(|line| line.to_str().ok());
            lines.find_map(|line| cookie(line, name)).map(str::as_bytes)
        }
    };
    value.filter(|value| !value.is_empty()).map(|value| mark(route, value))
}
