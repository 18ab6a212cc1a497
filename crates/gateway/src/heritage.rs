//! What a gateway has found out about its upstreams, as plain data for the process that takes its place: so that a
//! restart or an upgrade does not begin by asking a dead upstream again.
//!
//! Over go breakers with their windows, limits that were learned, health, ejections and the addresses of names. Moments
//! are ages, as the next process has a clock of its own. Everything goes by name: whoever is called otherwise, or
//! reached elsewhere, begins anew. Not here: what is counted for people (metrics), what guards find out within seconds
//! (budgets, hedges, concurrency), and how it gets to the other process.

use std::net::SocketAddr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use seawall_core::guard::health::Health;
use seawall_core::guard::{outlier, pipeline};
use seawall_core::time::Mono;
use serde::{Deserialize, Serialize};

use crate::ejection;
use crate::node::{Node, UpstreamState};

/// What is known. Its fields are its own; it is written and read whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heritage {
    routes: Vec<OfRoute>,
    upstreams: Vec<OfUpstream>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OfRoute {
    name: String,
    upstream: String,
    guards: pipeline::Snapshot,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OfUpstream {
    name: String,
    endpoints: Vec<OfEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OfEndpoint {
    address: String,
    health: Health,
    ejection: Option<outlier::Snapshot>,
    /// Its name's, when somebody last knew.
    addresses: Vec<SocketAddr>,
}

impl Heritage {
    /// Of a gateway at this moment.
    pub(crate) fn of(node: &Node) -> Self {
        let now = node.clock.now();
        let routes = node.routes.iter().map(|route| OfRoute {
            name: route.policy.name.clone(),
            upstream: route.upstream_name.clone(),
            guards: route.snapshot(now),
        });
        Self { routes: routes.collect(), upstreams: node.upstreams.iter().map(|it| OfUpstream::of(it, now)).collect() }
    }

    /// What the guards of a route to an upstream knew.
    pub(crate) fn guards(&self, route: &str, upstream: &str) -> Option<&pipeline::Snapshot> {
        self.routes.iter().find(|of| of.name == route && of.upstream == upstream).map(|of| &of.guards)
    }

    /// Has an upstream of a gateway that begins know what was known of it `age` ago.
    pub(crate) fn tell(&self, state: &UpstreamState, is_checked: bool, age: Duration, now: Mono) {
        let Some(known) = self.upstreams.iter().find(|known| known.name == state.name) else { return };
        for (place, endpoint) in state.endpoints.iter().enumerate() {
            let Some(of) = known.endpoints.iter().find(|of| of.address == endpoint.endpoint.address) else { continue };
            // Where nobody checks, nobody would ever find it well again.
            if is_checked {
                endpoint.healthy.store(of.health.is_healthy(), Relaxed);
                *endpoint.health.lock().unwrap_or_else(PoisonError::into_inner) = of.health.clone();
                ejection::on_health(state, place, of.health.is_healthy());
            }
            endpoint.load.known.restore(of.addresses.clone());
            if let Some(ejection) = of.ejection {
                ejection::go_on(state, place, ejection, age, now);
            }
        }
    }
}

impl OfUpstream {
    fn of(state: &UpstreamState, now: Mono) -> Self {
        let ejections = state.outlier.as_ref().map(|outlier| {
            let outlier = outlier.lock().unwrap_or_else(PoisonError::into_inner);
            outlier.snapshot(now)
        });
        let endpoints = state.endpoints.iter().enumerate().map(|(place, endpoint)| OfEndpoint {
            address: endpoint.endpoint.address.clone(),
            health: endpoint.health.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ejection: ejections.as_ref().and_then(|ejections| ejections.get(place).copied()),
            addresses: endpoint.load.known.addresses(),
        });
        Self { name: state.name.clone(), endpoints: endpoints.collect() }
    }
}
