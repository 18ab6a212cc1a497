//! What a node of a zone goes by at first, and what a change of its configuration may change.

use std::time::Duration;

use seawall_core::balance::BalanceConfig;
use seawall_core::guard::breaker::{BreakerConfig, HalfOpen, OpenWait};
use seawall_core::guard::budget::BudgetConfig;
use seawall_core::guard::health::HealthConfig;
use seawall_core::guard::hedge::HedgeConfig;
use seawall_core::guard::outlier::OutlierConfig;
use seawall_core::guard::retry::RetryConfig;
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::policy::{
    Delivery, Endpoint, Fallback, Guards, Limits, Listener, Match, PathMatch, Placement, Policy, Protocol, Resolver,
    Route, Upstream,
};
use seawall_core::prng::Prng;
use seawall_core::units::Ratio;

use super::{COUNT, ENDPOINTS, NAMES, endpoint_name, node_name, zone_of};
use crate::faults::one_of;
use crate::policy::{DATA_PORT, QUEUE_PORT, everywhere};

/// The upstream of reads. It has one route, so that what its endpoints are sent is what that route let through.
pub(super) const QUOTES: &str = "quotes";
/// The upstream of writes, at the same endpoints.
pub(super) const ORDERS: &str = "orders";
/// The longest that a call may take under any of these.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);
/// The most that a change may make of a budget.
pub(super) const BUDGET_RATIO_MAX: f64 = 0.3;
pub(super) const BUDGET_FLOOR_MAX: f64 = 4.0;

fn ratio(share: f64) -> Ratio {
    Ratio::new(share).unwrap_or(Ratio::ZERO)
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn address(endpoint: usize) -> String {
    format!("{}:{QUEUE_PORT}", endpoint_name(endpoint))
}

fn endpoint(number: usize) -> Endpoint {
    Endpoint { zone: Some(NAMES[zone_of(number)].into()), ..Endpoint::at(address(number)) }
}

/// What the node of a zone begins by.
pub(super) fn first(zone: usize) -> Policy {
    let reads = Match { path: PathMatch::Prefix("/read".into()), methods: vec!["GET".into()], host: None };
    let writes = Match { path: PathMatch::Exact("/events".into()), ..Match::default() };
    Policy {
        node: node_name(zone),
        zone: NAMES[zone].into(),
        zones: NAMES.map(Into::into).into(),
        listeners: vec![Listener::new(everywhere(DATA_PORT), vec![RouteId(0), RouteId(1)])],
        routes: vec![
            route("reads", reads, UpstreamId(0), Vec::new()),
            route("events", writes, UpstreamId(1), vec![Fallback::Spool]),
        ],
        upstreams: vec![upstream(QUOTES), upstream(ORDERS)],
        limits: Limits {
            header_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(20),
            body_idle_timeout: Duration::from_secs(3),
            grace: Duration::from_secs(3),
            ..Limits::default()
        },
        digest: "0".repeat(64),
    }
}

fn route(name: &str, matcher: Match, upstream: UpstreamId, fallbacks: Vec<Fallback>) -> Route {
    Route {
        name: name.into(),
        protocol: Protocol::Http,
        upgrades: Vec::new(),
        matcher,
        upstream,
        guards: Guards {
            timeout: TIMEOUT,
            try_timeout: ms(400),
            retry: RetryConfig::default(),
            budget: BudgetConfig { ratio: ratio(0.2), floor_per_s: 3.0, ..BudgetConfig::default() },
            breaker: Some(breaker(10, 1_000)),
            answer_bytes_max: 1 << 10,
            ..Guards::default()
        },
        order_by: fallbacks.first().map(|_| "shipment-id".into()),
        fallbacks,
        delivery: Delivery { attempts_max: 100_000, parallel: 4, ..Delivery::default() },
        placement: Placement::default(),
    }
}

fn breaker(calls_min: u32, wait_ms: u64) -> BreakerConfig {
    BreakerConfig {
        calls_min,
        wait: OpenWait { first: ms(wait_ms), max: Some(Duration::from_secs(4)), ..OpenWait::default() },
        half_open: HalfOpen { calls: 3, probe_for: Some(Duration::from_secs(2)), ..HalfOpen::default() },
        ..BreakerConfig::default()
    }
}

fn outlier(consecutive_failures: u32) -> OutlierConfig {
    OutlierConfig {
        consecutive_failures,
        interval: Duration::from_secs(3),
        requests_min: 20,
        ejection_base: Duration::from_secs(3),
        ejection_max: Duration::from_secs(12),
        ejection_jitter: Duration::from_secs(1),
        ..OutlierConfig::default()
    }
}

fn upstream(name: &str) -> Upstream {
    let in_use = (0..COUNT * ENDPOINTS).filter(|number| number % ENDPOINTS + 1 < ENDPOINTS);
    Upstream {
        name: name.into(),
        endpoints: in_use.map(endpoint).collect(),
        health: Some(HealthConfig { every: Duration::from_secs(1), timeout: ms(500), ..HealthConfig::default() }),
        outlier: Some(outlier(5)),
        balance: BalanceConfig { slow_start: Duration::from_secs(4), ..BalanceConfig::default() },
        connections_max: 24,
        idle_timeout: Duration::from_secs(4),
        connect_timeout: ms(300),
        announce: None,
        http2: false,
        host: None,
        resolver: Resolver::default(),
    }
}

/// The same policy with one to three things changed.
pub(super) fn changed(policy: &Policy, dice: &mut Prng) -> Policy {
    let mut next = policy.clone();
    for _ in 0..=dice.below(3) {
        change(&mut next, dice);
    }
    next.digest = format!("{:064x}", dice.next_u64());
    next
}

fn change(policy: &mut Policy, dice: &mut Prng) {
    let (of_routes, of_upstreams) = (dice.below(2) as usize, dice.below(2) as usize);
    let zone = dice.below(COUNT as u64) as usize;
    let guards = &mut policy.routes[of_routes].guards;
    let upstream = &mut policy.upstreams[of_upstreams];
    let place = dice.below(upstream.endpoints.len() as u64) as usize;
    match dice.below(14) {
        0 | 1 => add(upstream, zone * ENDPOINTS + dice.below(ENDPOINTS as u64) as usize),
        2 | 3 if upstream.endpoints.len() > COUNT => drop(upstream.endpoints.remove(place)),
        4 => upstream.endpoints[place].zone = Some(NAMES[zone].into()),
        5 => upstream.endpoints[place].weight = one_of(dice, &[0, 1, 1, 2, 4]),
        6 => upstream.endpoints[place].priority = dice.below(2) as u32,
        7 => guards.try_timeout = ms(250 + dice.below(500)),
        8 => {
            guards.retry.attempts_max = 1 + dice.below(4) as u32;
            guards.budget.ratio = ratio(BUDGET_RATIO_MAX * dice.unit());
            guards.budget.floor_per_s = BUDGET_FLOOR_MAX * dice.unit();
        }
        9 => {
            guards.breaker = (dice.below(5) > 0).then(|| breaker(5 + dice.below(20) as u32, 300 + dice.below(2_000)));
        }
        10 => upstream.outlier = (dice.below(4) > 0).then(|| outlier(3 + dice.below(5) as u32)),
        11 => {
            let (every, unhealthy_after) = (ms(300 + dice.below(1_200)), 2 + dice.below(3) as u32);
            upstream.health =
                Some(HealthConfig { every, timeout: ms(500), unhealthy_after, ..HealthConfig::default() });
        }
        12 => {
            upstream.balance.slow_start = ms(1_000 + dice.below(5_000));
            upstream.balance.spare = ratio(dice.unit());
            upstream.balance.panic_below = ratio(one_of(dice, &[0.0, 0.0, 0.4]));
        }
        _ => {
            guards.hedge = (guards.hedge.is_none() && of_routes == 0).then(HedgeConfig::default);
            renumber(policy);
        }
    }
}

fn add(upstream: &mut Upstream, number: usize) {
    let new = endpoint(number);
    if upstream.endpoints.iter().all(|known| known.address != new.address) {
        upstream.endpoints.push(new);
    }
}

/// The same in another order: numbers mean nothing from one policy to the next.
fn renumber(policy: &mut Policy) {
    policy.routes.reverse();
    policy.upstreams.reverse();
    policy.routes.iter_mut().for_each(|route| route.upstream = UpstreamId(1 - route.upstream.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_makes_a_policy_that_holds_together() {
        let (mut dice, mut policy) = (Prng::new(1), first(1));
        let mut told = std::collections::BTreeSet::new();
        for _ in 0..2_000 {
            let next = changed(&policy, &mut dice);
            for change in next.changes_from(&policy) {
                let words: Vec<&str> = change.split(' ').collect();
                told.insert(
                    words[2..].iter().filter(|word| !word.contains(':')).copied().collect::<Vec<_>>().join(" "),
                );
            }
            for route in &next.routes {
                let leads_to = &next.upstream(route.upstream).name;
                assert_eq!(leads_to, if route.name == "reads" { QUOTES } else { ORDERS });
                route.guards.check().expect("guards that hold");
            }
            assert!(next.upstreams.iter().all(|upstream| upstream.endpoints.len() >= COUNT));
            policy = next;
        }
        let told: Vec<String> = told.into_iter().collect();
        let all = [
            "balance",
            "breaker",
            "endpoint added",
            "endpoint changed",
            "endpoint removed",
            "health",
            "hedge",
            "outlier",
            "retry",
            "routes",
            "try_timeout",
        ];
        assert_eq!(told, all);
    }
}
