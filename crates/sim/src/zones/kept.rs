//! What a change of the configuration must leave as it is: looked at in the moment before and the moment after.
//!
//! The table is that of docs/guide/reload.md.

use std::fmt::Debug;

use seawall_core::observation::{EndpointSnapshot, NodeSnapshot, RouteSnapshot, UpstreamSnapshot};
use seawall_core::policy::{Policy, Upstream};

/// What was lost of what had not changed; nothing if all is well.
pub(crate) fn lost((old, before): (&Policy, &NodeSnapshot), (new, after): (&Policy, &NodeSnapshot)) -> Vec<String> {
    let mut lost = Lost(Vec::new());
    lost.compare("clients' connections", before.connections, after.connections);
    lost.compare("accepted connections", before.connections_total, after.connections_total);
    lost.compare("rejected", &before.rejected, &after.rejected);
    let limits = |seen: &NodeSnapshot| seen.limits.iter().map(|it| (it.name, it.used)).collect::<Vec<_>>();
    lost.compare("limits", limits(before), limits(after));
    // What there is and what of it stays is for the two policies to say, whatever is seen.
    lost.names("routes", new.routes.iter().map(|it| &it.name), after.routes.iter().map(|it| &it.name));
    for (is_of, route) in new.routes.iter().map(|route| (&new.upstream(route.upstream).name, route)) {
        let Some(was_route) = old.routes.iter().find(|it| it.name == route.name) else { continue };
        if old.upstream(was_route.upstream).name != *is_of {
            continue;
        }
        let seen =
            |of: &NodeSnapshot| of.routes.iter().find(|it| it.name == route.name && it.upstream == *is_of).cloned();
        if let Some((was, is)) = lost.both(&route.name, seen(before), seen(after)) {
            lost.route(&was, &is, was_route.guards.breaker == route.guards.breaker);
        }
    }
    lost.names("upstreams", new.upstreams.iter().map(|it| &it.name), after.upstreams.iter().map(|it| &it.name));
    for new in &new.upstreams {
        let Some(old) = old.upstreams.iter().find(|it| it.name == new.name) else { continue };
        let seen = |of: &NodeSnapshot| of.upstreams.iter().find(|it| it.name == new.name).cloned();
        if let Some((was, is)) = lost.both(&new.name, seen(before), seen(after)) {
            lost.upstream((old, &was), (new, &is));
        }
    }
    lost.0
}

struct Lost(Vec<String>);

impl Lost {
    fn compare<T: PartialEq + Debug>(&mut self, what: &str, was: T, is: T) {
        if was != is {
            self.0.push(format!("{what}: {was:?} is {is:?}"));
        }
    }

    /// In any order.
    fn names<'a>(
        &mut self,
        what: &str,
        wanted: impl Iterator<Item = &'a String>,
        seen: impl Iterator<Item = &'a String>,
    ) {
        let (mut wanted, mut seen): (Vec<_>, Vec<_>) = (wanted.collect(), seen.collect());
        wanted.sort();
        seen.sort();
        self.compare(what, wanted, seen);
    }

    /// What stays must have been seen before and after.
    fn both<T>(&mut self, what: &str, was: Option<T>, is: Option<T>) -> Option<(T, T)> {
        self.compare(&format!("{what}: seen"), (true, true), (was.is_some(), is.is_some()));
        was.zip(is)
    }

    fn route(&mut self, was: &RouteSnapshot, is: &RouteSnapshot, same_breaker: bool) {
        let name = &was.name;
        self.compare(&format!("{name}: answers"), was.answers, is.answers);
        let counts = |route: &RouteSnapshot| {
            [
                route.requests_total,
                route.failures_total,
                route.retries_total,
                route.hedges_total,
                route.retries_refused_total,
                route.degraded_total,
                route.cancelled_total,
                route.in_flight,
                route.waiting,
            ]
        };
        self.compare(&format!("{name}: counts"), counts(was), counts(is));
        self.compare(&format!("{name}: degraded since"), was.degraded_since_ms, is.degraded_since_ms);
        if same_breaker {
            let (was, is) = (&was.breaker, &is.breaker);
            self.compare(&format!("{name}: breaker"), (was.state, was.opened_total), (is.state, is.opened_total));
            self.compare(&format!("{name}: breaker since"), was.since_s, is.since_s);
            let window = |it: &seawall_core::observation::BreakerSnapshot| (it.failure_rate, it.slow_rate);
            self.compare(&format!("{name}: breaker's window"), window(was), window(is));
        }
    }

    fn upstream(&mut self, (old, was): (&Upstream, &UpstreamSnapshot), (new, is): (&Upstream, &UpstreamSnapshot)) {
        let name = &was.name;
        self.compare(&format!("{name}: spilled"), was.spilled_total, is.spilled_total);
        let addresses = |upstream: &Upstream| -> Vec<String> {
            upstream.endpoints.iter().map(|endpoint| endpoint.address.clone()).collect()
        };
        self.names(
            &format!("{name}: endpoints"),
            new.endpoints.iter().map(|it| &it.address),
            is.endpoints.iter().map(|it| &it.address),
        );
        let knows_health = old.health == new.health;
        let knows_ejections = old.outlier == new.outlier && addresses(old) == addresses(new);
        let keeps_connections = old.connections_max == new.connections_max
            && old.idle_timeout == new.idle_timeout
            && old.connect_timeout == new.connect_timeout
            && old.http2 == new.http2;
        let all_were_healthy = was.endpoints.iter().all(|was| was.healthy);
        for is in &is.endpoints {
            let what = format!("{name}/{}", is.address);
            let Some(was) = was.endpoints.iter().find(|was| was.address == is.address) else {
                self.compare(&format!("{what}: comes slowly"), !new.balance.slow_start.is_zero(), is.ramp < 1.0);
                continue;
            };
            let known = |it: &EndpointSnapshot| (it.draining, it.calls_total, it.in_flight);
            self.compare(&format!("{what}: drain, calls, calls in flight"), known(was), known(is));
            // Checked by other rules it is well until they say something else, and if it was not, it comes back.
            let comes_back = !knows_health && !was.healthy;
            self.compare(&format!("{what}: health"), was.healthy || comes_back, is.healthy);
            if comes_back {
                self.compare(&format!("{what}: comes back slowly"), !new.balance.slow_start.is_zero(), is.ramp < 1.0);
            } else {
                self.compare(&format!("{what}: latency"), was.latency_ms, is.latency_ms);
            }
            // With somebody well again, too few may be ill for ejections to be ignored.
            let heeds_as_before = knows_health || all_were_healthy;
            if !knows_ejections || heeds_as_before {
                self.compare(&format!("{what}: ejected"), was.ejected && knows_ejections, is.ejected);
            }
            if keeps_connections {
                self.compare(&format!("{what}: connections"), was.connections, is.connections);
            }
            if old.balance.slow_start == new.balance.slow_start && !comes_back {
                self.compare(&format!("{what}: slow start"), was.ramp, is.ramp);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use seawall_core::observation::LimitSnapshot;

    use super::*;
    use crate::zones::plan;

    /// A node in the middle of its work.
    fn seen(policy: &Policy) -> NodeSnapshot {
        let endpoint = |of: &seawall_core::policy::Endpoint| EndpointSnapshot {
            address: of.address.clone(),
            healthy: false,
            ejected: true,
            calls_total: 9,
            in_flight: 1,
            connections: 2,
            latency_ms: 3.0,
            ramp: 0.5,
            ..EndpointSnapshot::default()
        };
        let upstreams = policy.upstreams.iter().map(|upstream| UpstreamSnapshot {
            name: upstream.name.clone(),
            endpoints: upstream.endpoints.iter().map(endpoint).collect(),
            spilled_total: 4,
            is_spilling: true,
        });
        let routes = policy.routes.iter().map(|route| {
            let mut seen = RouteSnapshot {
                name: route.name.clone(),
                upstream: policy.upstream(route.upstream).name.clone(),
                requests_total: 7,
                ..RouteSnapshot::default()
            };
            seen.breaker.state = "open";
            seen.breaker.failure_rate = Some(0.6);
            seen
        });
        NodeSnapshot {
            upstreams: upstreams.collect(),
            routes: routes.collect(),
            limits: vec![LimitSnapshot { name: "pending", used: Some(1), ..LimitSnapshot::default() }],
            connections: 5,
            ..NodeSnapshot::default()
        }
    }

    /// What is found when the policy changes so and what is seen so.
    fn found(policy: impl Fn(&mut Policy), after: impl Fn(&mut NodeSnapshot)) -> String {
        let old = plan::first(0);
        let (mut new, before) = (old.clone(), seen(&old));
        let mut now = before.clone();
        policy(&mut new);
        after(&mut now);
        lost((&old, &before), (&new, &now)).join("; ")
    }

    /// As other endpoints of the upstream have it done.
    fn forget_ejections(seen: &mut NodeSnapshot) {
        seen.upstreams[0].endpoints.iter_mut().for_each(|it| it.ejected = false);
    }

    #[test]
    fn what_stays_is_no_loss() {
        assert_eq!(found(|_| {}, |_| {}), "");
        assert_eq!(found(|policy| policy.routes.reverse(), |seen| seen.routes.reverse()), "", "by name, not by number");
        let other = |policy: &mut Policy| policy.routes[0].guards.breaker = None;
        assert_eq!(found(other, |seen| seen.routes[0].breaker.state = "off"), "");
        let forgets = |policy: &mut Policy| policy.upstreams[0].health = None;
        let comes_back = |seen: &mut NodeSnapshot| {
            seen.upstreams[0]
                .endpoints
                .iter_mut()
                .for_each(|it| (it.healthy, it.ramp, it.latency_ms) = (true, 0.1, 0.0));
        };
        assert_eq!(found(forgets, comes_back), "");
        assert_ne!(found(|_| {}, comes_back), "");
    }

    #[test]
    fn every_loss_is_named() {
        let lost = |after: fn(&mut NodeSnapshot)| found(|_| {}, after);
        assert_eq!(lost(|seen| seen.connections = 0), "clients' connections: 5 is 0");
        let limits = lost(|seen| seen.limits[0].used = Some(0));
        assert_eq!(limits, r#"limits: [("pending", Some(1))] is [("pending", Some(0))]"#);
        assert!(lost(|seen| seen.routes[0].requests_total = 0).starts_with("reads: counts: [7, "));
        assert_eq!(
            lost(|seen| seen.routes[1].breaker.state = "closed"),
            r#"events: breaker: ("open", 0) is ("closed", 0)"#
        );
        assert!(lost(|seen| seen.routes[0].breaker.failure_rate = None).contains("breaker's window"));
        assert_eq!(lost(|seen| seen.upstreams[0].spilled_total = 0), "quotes: spilled: 4 is 0");
        for (at, of) in [(0, "health"), (1, "ejected"), (2, "connections"), (3, "slow start"), (4, "latency")] {
            let text = found(
                |_| {},
                |seen| {
                    let endpoint = &mut seen.upstreams[0].endpoints[1];
                    match at {
                        0 => endpoint.healthy = true,
                        1 => endpoint.ejected = false,
                        2 => endpoint.connections = 0,
                        3 => endpoint.ramp = 1.0,
                        _ => endpoint.latency_ms = 0.0,
                    }
                },
            );
            assert!(text.starts_with("quotes/api-a2:7001: ") && text.contains(of), "{text}");
        }
        let new = |seen: &mut NodeSnapshot| {
            seen.upstreams[0].endpoints[0].address = "new:1".into();
            seen.upstreams[0].endpoints[0].ramp = 1.0;
            forget_ejections(seen);
        };
        let adds = |policy: &mut Policy| policy.upstreams[0].endpoints[0].address = "new:1".into();
        assert_eq!(found(adds, new), "quotes/new:1: comes slowly: true is false");
    }

    #[test]
    fn what_stays_is_seen_again_and_nothing_else_is() {
        let lost = |after: fn(&mut NodeSnapshot)| found(|_| {}, after);
        let gone = "seen: (true, true) is (true, false)";
        let none = lost(|seen| drop(seen.routes.remove(0)));
        assert_eq!(none, format!(r#"routes: ["events", "reads"] is ["events"]; reads: {gone}"#));
        assert_eq!(lost(|seen| seen.routes[0].upstream = "orders".into()), format!("reads: {gone}"));
        let renamed = lost(|seen| seen.upstreams[0].name = "other".into());
        assert!(renamed.ends_with(&format!("quotes: {gone}")), "{renamed}");
        let fewer = lost(|seen| drop(seen.upstreams[0].endpoints.pop()));
        assert!(fewer.starts_with(r#"quotes: endpoints: ["api-a1:7001", "#), "{fewer}");
        let without = |policy: &mut Policy| drop(policy.upstreams[0].endpoints.pop());
        let goes = |seen: &mut NodeSnapshot| {
            drop(seen.upstreams[0].endpoints.pop());
            forget_ejections(seen);
        };
        assert_eq!(found(without, goes), "");
        assert!(found(without, forget_ejections).contains("quotes: endpoints"), "one that was removed is there still");
    }
}
