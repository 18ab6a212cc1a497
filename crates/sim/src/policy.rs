//! How the node of the world is set up: one guarded route for writes, limits small enough to be reached.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use seawall_core::guard::breaker::{BreakerConfig, HalfOpen, OpenWait};
use seawall_core::guard::budget::BudgetConfig;
use seawall_core::guard::bulkhead::BulkheadConfig;
use seawall_core::guard::health::HealthConfig;
use seawall_core::guard::retry::RetryConfig;
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::policy::{
    Delivery, Endpoint, Fallback, Guards, Limits, Listener, Match, PathMatch, Policy, Protocol, Resolver, Route,
    Upstream,
};
use seawall_core::units::Ratio;
use seawall_store::StoreOptions;

/// The node's name, in this world and in its ledger.
pub(crate) const NODE: &str = "node";
/// The queue's name, in this world and in the policy.
pub(crate) const QUEUE: &str = "queue";
pub(crate) const DATA_PORT: u16 = 8080;
pub(crate) const ADMIN_PORT: u16 = 9900;
pub(crate) const QUEUE_PORT: u16 = 7001;

/// Every port of this host.
pub(crate) fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

pub(crate) fn policy() -> Policy {
    Policy {
        node: NODE.into(),
        zone: "here".into(),
        zones: vec!["here".into()],
        listeners: vec![Listener::new(everywhere(DATA_PORT), vec![RouteId(0)])],
        routes: vec![events()],
        upstreams: vec![queue()],
        limits: Limits {
            header_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(3),
            grace: Duration::from_secs(3),
            ..Limits::default()
        },
        digest: "0".repeat(64),
    }
}

fn events() -> Route {
    Route {
        name: "events".into(),
        protocol: Protocol::Http,
        upgrades: Vec::new(),
        matcher: Match { path: PathMatch::Exact("/events".into()), ..Match::default() },
        upstream: UpstreamId(0),
        guards: Guards {
            timeout: Duration::from_secs(2),
            try_timeout: Duration::from_millis(700),
            retry: RetryConfig::default(),
            budget: BudgetConfig {
                ratio: Ratio::new(0.2).unwrap_or(Ratio::ONE),
                floor_per_s: 3.0,
                ..BudgetConfig::default()
            },
            breaker: Some(BreakerConfig {
                calls_min: 10,
                wait: OpenWait {
                    first: Duration::from_secs(2),
                    max: Some(Duration::from_secs(8)),
                    ..OpenWait::default()
                },
                half_open: HalfOpen { calls: 2, probe_for: Some(Duration::from_secs(5)), ..HalfOpen::default() },
                ..BreakerConfig::default()
            }),
            // Fewer places than producers: some wait, some are refused.
            bulkhead: BulkheadConfig {
                calls_max: 4,
                waiting_max: 2,
                wait_max: Duration::from_millis(300),
                ..BulkheadConfig::default()
            },
            replay_bytes_max: 64 << 10,
            answer_bytes_max: 1 << 10,
            ..Guards::default()
        },
        fallbacks: vec![Fallback::Spool],
        order_by: Some("shipment-id".into()),
        delivery: Delivery { attempts_max: 100_000, parallel: 4, ..Delivery::default() },
        placement: seawall_core::policy::Placement::default(),
    }
}

fn queue() -> Upstream {
    Upstream {
        name: QUEUE.into(),
        endpoints: vec![Endpoint::at(format!("{QUEUE}:{QUEUE_PORT}"))],
        health: Some(HealthConfig { every: Duration::from_secs(1), ..HealthConfig::default() }),
        outlier: None,
        balance: seawall_core::balance::BalanceConfig::default(),
        connections_max: 6,
        idle_timeout: Duration::from_secs(4),
        connect_timeout: Duration::from_millis(500),
        announce: None,
        http2: false,
        host: None,
        resolver: Resolver::default(),
    }
}

/// Small segments, so that little data walks through many.
pub(crate) fn store_options(node: &str) -> StoreOptions {
    StoreOptions {
        record_bytes_max: 16 << 10,
        spool_segment_bytes: 48 << 10,
        journal_segment_bytes: 16 << 10,
        ..StoreOptions::new("data", node)
    }
}
