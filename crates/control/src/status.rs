//! `GET /api/status`: one node at a glance, drawn from the same snapshot as metrics and page.

use std::collections::BTreeMap;

use seawall_core::observation::{ConnectionsSnapshot, NodeSnapshot, RouteSnapshot, UpstreamSnapshot};
use seawall_core::policy::Protocol;
use seawall_core::time::Wall;
use seawall_store::{ReplicaState, ReplicaStatus, SpoolDepth};
use serde::Serialize;
use serde_json::Value;

use crate::drains::standing_json;
use crate::parts::AdminParts;
use crate::text::rfc3339;

/// What `/api/status` answers.
#[derive(Debug, Serialize)]
pub struct Status {
    node: String,
    zone: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    git: Option<String>,
    config_digest: String,
    started_at: String,
    uptime_s: f64,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_ready_because: Option<String>,
    routes: Vec<Route>,
    upstreams: Vec<UpstreamSnapshot>,
    drains: Vec<Value>,
    spool: SpoolStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<ReplicaView>,
    limits: Vec<seawall_core::observation::LimitSnapshot>,
}

#[derive(Debug, Serialize)]
struct Route {
    name: String,
    upstream: String,
    protocol: Protocol,
    breaker: seawall_core::observation::BreakerSnapshot,
    degraded_since: Option<String>,
    requests_total: u64,
    failures_total: u64,
    retries_total: u64,
    degraded_total: u64,
    learned_limit_per_s: Option<f64>,
    concurrency_limit: Option<u32>,
    in_flight: u64,
    waiting: u64,
    latency_p50_ms: f64,
    latency_p99_ms: f64,
    /// Of a route that carries any. Where it carries nothing else, latency is the time until they stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Connections>,
}

#[derive(Debug, Serialize)]
struct Connections {
    opened_total: u64,
    open: u64,
    ended: BTreeMap<&'static str, u64>,
    bytes_up_total: u64,
    bytes_down_total: u64,
}

impl Connections {
    fn of(seen: ConnectionsSnapshot) -> Self {
        Self {
            opened_total: seen.opened_total,
            open: seen.open,
            ended: seen.ended.into_iter().collect(),
            bytes_up_total: seen.bytes_up_total,
            bytes_down_total: seen.bytes_down_total,
        }
    }
}

#[derive(Debug, Serialize)]
struct SpoolStatus {
    waiting: u64,
    leased: u64,
    parked: u64,
    bytes: u64,
    bytes_max: u64,
    oldest_s: Option<f64>,
    disk_full: bool,
    /// Records to be delivered to upstreams that no route keeps writes for, by upstream: nobody delivers them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    deserted: BTreeMap<String, u64>,
}

/// The copy of the spool in the replicated engine.
#[derive(Debug, Serialize)]
struct ReplicaView {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    down_s: Option<f64>,
    behind: u64,
    held: u64,
    bytes: u64,
}

impl ReplicaView {
    fn of(status: &ReplicaStatus, now: Wall) -> Self {
        let down_s = match &status.state {
            ReplicaState::Down { since, .. } => Some(now.since(*since).as_secs_f64()),
            _ => None,
        };
        Self {
            state: status.state.name(),
            reason: status.state.reason().map(Into::into),
            down_s,
            behind: status.behind,
            held: status.held,
            bytes: status.held_bytes,
        }
    }
}

impl Status {
    pub(crate) fn of(parts: &AdminParts) -> Self {
        let (info, now) = (&parts.info, (parts.wall)());
        let view = (parts.view)();
        let deserted = deserted(parts, &view);
        let NodeSnapshot { routes, upstreams, limits, drains, .. } = view;
        let ready = (parts.ready)();
        Self {
            node: info.node.clone(),
            zone: info.zone.clone(),
            version: info.version.clone(),
            git: info.git.clone(),
            config_digest: parts.config.digest(),
            started_at: rfc3339(info.started_at),
            uptime_s: now.since(info.started_at).as_secs_f64(),
            ready: ready.is_ok(),
            not_ready_because: ready.err(),
            routes: routes.into_iter().map(Route::of).collect(),
            upstreams,
            drains: drains.iter().map(standing_json).collect(),
            spool: SpoolStatus::of(parts.spool.depth(), deserted, now),
            replica: parts.spool.replica().map(|status| ReplicaView::of(&status, now)),
            limits,
        }
    }
}

impl Route {
    fn of(route: RouteSnapshot) -> Self {
        Self {
            degraded_since: route.degraded_since_ms.map(|millis| rfc3339(Wall::from_millis(millis))),
            name: route.name,
            upstream: route.upstream,
            protocol: route.protocol,
            connections: route.carries_connections.then(|| Connections::of(route.connections)),
            breaker: route.breaker,
            requests_total: route.requests_total,
            failures_total: route.failures_total,
            retries_total: route.retries_total,
            degraded_total: route.degraded_total,
            learned_limit_per_s: route.learned_limit_per_s,
            concurrency_limit: route.concurrency_limit,
            in_flight: route.in_flight,
            waiting: route.waiting,
            latency_p50_ms: route.latency_p50_ms,
            latency_p99_ms: route.latency_p99_ms,
        }
    }
}

/// Records to be delivered to upstreams that no route keeps writes for.
pub(crate) fn deserted(parts: &AdminParts, view: &NodeSnapshot) -> BTreeMap<String, u64> {
    let serves = |name: &str| view.routes.iter().any(|route| route.spools && route.upstream == name);
    let held = parts.spool.depths().into_iter().map(|(name, depth)| (name, depth.waiting + depth.leased));
    held.filter(|(name, held)| *held > 0 && !serves(name)).collect()
}

impl SpoolStatus {
    fn of(depth: SpoolDepth, deserted: BTreeMap<String, u64>, now: Wall) -> Self {
        Self {
            waiting: depth.waiting,
            leased: depth.leased,
            parked: depth.parked,
            bytes: depth.bytes,
            bytes_max: depth.bytes_max,
            oldest_s: depth.oldest.map(|at| now.since(at).as_secs_f64()),
            disk_full: depth.disk_full,
            deserted,
        }
    }
}
