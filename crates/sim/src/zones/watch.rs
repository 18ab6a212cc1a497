//! What must hold of a node from one look to the next. All of it is said of what the node itself tells: whoever says
//! that an endpoint is out must not send it anything.

use std::sync::Arc;
use std::time::Duration;

use seawall_core::observation::{EndpointSnapshot, NodeSnapshot, UpstreamSnapshot};
use seawall_core::policy::{Policy, Upstream};

use super::plan::{BUDGET_FLOOR_MAX, BUDGET_RATIO_MAX};

/// What is seen of a living node.
#[derive(Clone)]
pub(super) struct Look {
    pub(super) at_ms: u64,
    /// Which life of the node.
    pub(super) life: u64,
    pub(super) policy: Arc<Policy>,
    pub(super) seen: NodeSnapshot,
    /// Upstreams that a change has just touched: calls that began before it still go by what was.
    pub(super) unsettled: Vec<String>,
}

impl Look {
    fn upstream(&self, name: &str) -> Option<(&Upstream, &UpstreamSnapshot)> {
        let policy = self.policy.upstreams.iter().find(|it| it.name == name)?;
        Some((policy, self.seen.upstreams.iter().find(|it| it.name == name)?))
    }

    /// True if its balancer heeds nobody's illness.
    fn panics(upstream: &Upstream, seen: &UpstreamSnapshot) -> bool {
        let weight = |asked: fn(&&EndpointSnapshot) -> bool| -> f64 {
            seen.endpoints.iter().filter(|it| !it.draining).filter(asked).map(|it| f64::from(it.weight)).sum()
        };
        let below = upstream.balance.panic_below.get();
        below > 0.0 && weight(|it| it.healthy && !it.ejected) < below * weight(|_| true)
    }

    /// True if the same rules hold as at another look at the same life.
    pub(super) fn goes_on_from(&self, before: &Self) -> bool {
        self.life == before.life && Arc::ptr_eq(&self.policy, &before.policy)
    }
}

/// Calls between two looks that should not have been: to an endpoint that was out at both, or while the breaker was
/// open. The looks must follow each other closely: what comes back and goes again in between is not seen.
pub(super) fn forbidden(before: &Look, after: &Look) -> Vec<String> {
    let mut found = Vec::new();
    for was in &before.seen.upstreams {
        let Some((policy, is)) = after.upstream(&was.name) else { continue };
        // Whatever route leads there; no other does in these worlds.
        let breaker = |look: &Look| {
            let route = look.seen.routes.iter().find(|route| route.upstream == was.name)?;
            (route.breaker.state == "open").then_some(route.breaker.opened_total)
        };
        let stays_open = breaker(before).is_some() && breaker(before) == breaker(after);
        let panics = Look::panics(policy, was) || Look::panics(policy, is);
        let is_settled = !after.unsettled.contains(&was.name);
        for (was, is) in was.endpoints.iter().zip(&is.endpoints) {
            let calls = is.calls_total.saturating_sub(was.calls_total);
            if calls == 0 || was.address != is.address {
                continue;
            }
            // For one and the same reason: between two there may be a moment in which neither holds.
            let stays_ill = !was.healthy && !is.healthy || was.ejected && is.ejected;
            let mut forbid = |why: &str, so: bool| {
                if so {
                    found.push(format!("{calls} calls to {}/{} {why}", policy.name, is.address));
                }
            };
            forbid("while the breaker is open", stays_open);
            forbid("while it is drained", was.draining && is.draining);
            forbid("while it is ill", is_settled && stays_ill && !panics);
            forbid("which has no weight", is_settled && is.weight == 0);
        }
    }
    found
}

/// Retries and second copies of a life so far, against what its traffic afforded at most.
pub(super) fn beyond_budget(look: &Look, lived: Duration) -> Option<String> {
    // Deliveries from the spool pay in too and are not counted as requests: reads have an upstream of their own.
    let route = look.seen.routes.iter().find(|route| !route.spools)?;
    let begun = route.requests_total + route.cancelled_total + route.in_flight + route.waiting;
    // The floor is given for ten seconds at a time.
    let floor = BUDGET_FLOOR_MAX * (lived.as_secs_f64() + 10.0);
    let afforded = BUDGET_RATIO_MAX * begun as f64 + floor;
    let extra = route.retries_total + route.hedges_total;
    (extra as f64 > afforded).then(|| format!("{extra} extra tries for {begun} requests in {lived:?}"))
}

/// What endpoints got that have just come back, from one look to a later one, beside what they should have at most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Coming {
    calls: u64,
    fair: f64,
}

impl Coming {
    /// Up to this share of its own an endpoint has just come back: later, half of a zone's calls are no stampede.
    const EARLY: f64 = 0.3;

    pub(super) fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.fair += other.fair;
    }

    /// Says so if they got more than chance explains.
    pub(super) fn stampede(self) -> Option<String> {
        let Self { calls, fair } = self;
        let is_more = calls as f64 > fair + 4.0 * fair.sqrt() + 3.0;
        is_more.then(|| {
            format!("a stampede: {calls} calls to endpoints that have just come back, of {fair:.0} that are theirs")
        })
    }
}

/// What came to endpoints in the first part of their slow start. Only under the same rules, and where others that are
/// fully there could have had it.
pub(super) fn coming(before: &Look, after: &Look) -> Coming {
    let mut sum = Coming::default();
    if !after.goes_on_from(before) {
        return sum;
    }
    for was in &before.seen.upstreams {
        let Some((policy, is)) = after.upstream(&was.name) else { continue };
        let pairs = || was.endpoints.iter().zip(&is.endpoints);
        let is_there = |it: &EndpointSnapshot| it.healthy && !it.ejected && it.ramp >= 1.0 && it.weight > 0;
        let mut zones: Vec<_> =
            pairs().filter(|(was, is)| is_there(was) && is_there(is)).map(|(_, is)| is.zone.clone()).collect();
        zones.sort();
        zones.dedup();
        if zones.len() < 2 || Look::panics(policy, was) || Look::panics(policy, is) {
            continue;
        }
        let total: u64 = pairs().map(|(was, is)| is.calls_total.saturating_sub(was.calls_total)).sum();
        for (was, is) in pairs() {
            // One that comes in between had another share before.
            if is.ramp <= Coming::EARLY && was.ramp <= is.ramp {
                // Its share only grows: this is the most it had.
                sum.add(Coming { calls: is.calls_total.saturating_sub(was.calls_total), fair: is.ramp * total as f64 });
            }
        }
    }
    sum
}

/// What is not at rest in a node that nobody asks for anything.
pub(super) fn restless(seen: &NodeSnapshot) -> Vec<String> {
    let mut found = Vec::new();
    let mut note = |what: String, left: u64| {
        if left > 0 {
            found.push(format!("{what}: {left}"));
        }
    };
    for route in &seen.routes {
        note(format!("{} in flight", route.name), route.in_flight);
        note(format!("{} waiting", route.name), route.waiting);
    }
    for upstream in &seen.upstreams {
        for endpoint in &upstream.endpoints {
            note(format!("{}/{} in flight", upstream.name, endpoint.address), endpoint.in_flight);
        }
    }
    for limit in seen.limits.iter().filter(|limit| limit.name != "connections") {
        note(format!("limit {}", limit.name), limit.used.unwrap_or(0));
    }
    found
}

/// The share of an upstream's calls between two looks that went elsewhere than to the nearest endpoints; nothing where
/// there were too few.
pub(super) fn away(before: &Look, after: &Look, upstream: &str) -> Option<f64> {
    let calls = |look: &Look| {
        let (_, seen) = look.upstream(upstream)?;
        Some((seen.endpoints.iter().map(|it| it.calls_total).sum::<u64>(), seen.spilled_total))
    };
    let ((was, was_away), (is, is_away)) = (calls(before)?, calls(after)?);
    let total = is.saturating_sub(was);
    (total >= 20).then(|| is_away.saturating_sub(was_away) as f64 / total as f64)
}

#[cfg(test)]
mod tests {
    use seawall_core::observation::{LimitSnapshot, RouteSnapshot};
    use seawall_core::units::Ratio;

    use super::*;
    use crate::zones::plan;

    /// A node at peace, with a hundred calls to each endpoint.
    fn calm() -> Look {
        let policy = plan::first(0);
        let endpoint = |of: &seawall_core::policy::Endpoint| EndpointSnapshot {
            address: of.address.clone(),
            zone: of.zone.clone(),
            weight: 1,
            healthy: true,
            ramp: 1.0,
            calls_total: 100,
            ..EndpointSnapshot::default()
        };
        let upstreams = policy.upstreams.iter().map(|upstream| UpstreamSnapshot {
            name: upstream.name.clone(),
            endpoints: upstream.endpoints.iter().map(endpoint).collect(),
            ..UpstreamSnapshot::default()
        });
        let routes = policy.routes.iter().map(|route| RouteSnapshot {
            name: route.name.clone(),
            upstream: policy.upstream(route.upstream).name.clone(),
            spools: route.spools(),
            requests_total: 600,
            ..RouteSnapshot::default()
        });
        let seen = NodeSnapshot { upstreams: upstreams.collect(), routes: routes.collect(), ..NodeSnapshot::default() };
        Look { at_ms: 0, life: 1, policy: Arc::new(policy), seen, unsettled: Vec::new() }
    }

    /// Both looks so, then so many calls to the first endpoint of `quotes`.
    fn after(both: impl Fn(&mut Look), calls: u64) -> (Look, Look) {
        let mut before = calm();
        both(&mut before);
        let mut after = before.clone();
        after.at_ms += 1_000;
        after.seen.upstreams[0].endpoints[0].calls_total += calls;
        (before, after)
    }

    #[test]
    fn calls_to_whom_none_may_go_are_found() {
        let found = |both: fn(&mut Look)| {
            let (before, after) = after(both, 2);
            forbidden(&before, &after).join("; ")
        };
        assert_eq!(found(|_| {}), "");
        assert_eq!(found(|it| it.seen.routes[1].breaker.state = "open"), "", "of another upstream");
        let of = "2 calls to quotes/api-a1:7001";
        assert_eq!(found(|it| it.seen.routes[0].breaker.state = "open"), format!("{of} while the breaker is open"));
        assert_eq!(found(|it| it.seen.upstreams[0].endpoints[0].healthy = false), format!("{of} while it is ill"));
        assert_eq!(found(|it| it.seen.upstreams[0].endpoints[0].ejected = true), format!("{of} while it is ill"));
        assert_eq!(found(|it| it.seen.upstreams[0].endpoints[0].draining = true), format!("{of} while it is drained"));
        assert_eq!(found(|it| it.seen.upstreams[0].endpoints[0].weight = 0), format!("{of} which has no weight"));
        let panics = |it: &mut Look| {
            let mut policy = plan::first(0);
            policy.upstreams[0].balance.panic_below = Ratio::new(0.4).expect("a share");
            it.policy = Arc::new(policy);
            it.seen.upstreams[0].endpoints[..4].iter_mut().for_each(|it| it.healthy = false);
        };
        assert_eq!(found(panics), "", "the documented panic");
        let (before, mut reopened) = after(|it| it.seen.routes[0].breaker.state = "open", 2);
        reopened.seen.routes[0].breaker.opened_total += 1;
        assert_eq!(forbidden(&before, &reopened), [""; 0], "half-open in between");
    }

    #[test]
    fn retries_without_budget_are_found() {
        let mut look = calm();
        // 0.3 of 600, and 4 a second.
        look.seen.routes[0].retries_total = 180 + 80;
        assert_eq!(beyond_budget(&look, Duration::from_secs(10)), None);
        look.seen.routes[0].hedges_total = 1;
        let found = beyond_budget(&look, Duration::from_secs(10));
        assert_eq!(found.as_deref(), Some("261 extra tries for 600 requests in 10s"));
    }

    #[test]
    fn a_stampede_is_found() {
        let comes = |it: &mut Look| it.seen.upstreams[0].endpoints[0].ramp = 0.1;
        let (before, mut later) = after(comes, 20);
        later.seen.upstreams[0].endpoints[1].calls_total += 80;
        let mut sum = coming(&before, &later);
        assert_eq!((sum, sum.stampede()), (Coming { calls: 20, fair: 10.0 }, None), "chance explains 12.6 and 3 more");
        (0..3).for_each(|_| sum.add(coming(&before, &later)));
        let found = sum.stampede().expect("it does not explain it again and again");
        assert_eq!(found, "a stampede: 80 calls to endpoints that have just come back, of 40 that are theirs");
        later.policy = Arc::new(plan::first(0));
        assert_eq!(coming(&before, &later), Coming::default(), "not across a change");
        let (before, lonely) = after(|it| it.seen.upstreams[0].endpoints.iter_mut().for_each(|it| it.ramp = 0.1), 100);
        assert_eq!(coming(&before, &lonely), Coming::default(), "nobody else could have had it");
    }

    #[test]
    fn what_is_left_is_named() {
        let mut seen = calm().seen;
        assert_eq!(restless(&seen), [""; 0]);
        seen.routes[0].in_flight = 1;
        seen.routes[1].waiting = 2;
        seen.upstreams[1].endpoints[5].in_flight = 3;
        seen.limits = vec![
            LimitSnapshot { name: "connections", used: Some(9), ..LimitSnapshot::default() },
            LimitSnapshot { name: "pending", used: Some(4), ..LimitSnapshot::default() },
        ];
        let found = restless(&seen).join("; ");
        assert_eq!(found, "reads in flight: 1; events waiting: 2; orders/api-c2:7001 in flight: 3; limit pending: 4");
    }

    #[test]
    fn the_share_away_needs_calls_to_be_one() {
        let (before, mut after) = after(|_| {}, 19);
        assert_eq!(away(&before, &after, "quotes"), None);
        after.seen.upstreams[0].endpoints[3].calls_total += 1;
        after.seen.upstreams[0].spilled_total += 1;
        assert_eq!(away(&before, &after, "quotes"), Some(0.05));
    }
}
