//! What is different between two policies, in words a person can check against what he meant.

use std::collections::BTreeMap;

use super::{Fallback, Guards, Listener, Mirror, Policy, Route, Upstream};
use crate::id::UpstreamId;

impl Policy {
    /// What this policy changes in another, a line each: `route events: timeout`, `upstream queue: endpoint b:80
    /// added`. Nothing if they do the same.
    #[must_use]
    pub fn changes_from(&self, old: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        named(&mut changes, "listener", listeners(old), listeners(self), |(was, old), (is, new), tell| {
            tell("routes", was != is);
            tell("proxy_protocol", old.announced_by != new.announced_by);
            tell("trusted", old.trusted != new.trusted);
        });
        let routes = |policy| by_name(policy, &policy.routes, |route| route.name.clone());
        named(&mut changes, "route", routes(old), routes(self), route);
        let upstreams = |policy| by_name(policy, &policy.upstreams, |upstream| upstream.name.clone());
        named(&mut changes, "upstream", upstreams(old), upstreams(self), upstream);
        if old.limits != self.limits {
            changes.push("limits".into());
        }
        changes
    }

    /// A route's own and other names in place of numbers, which another policy gives to others.
    fn leads_to(&self, route: &Route) -> Vec<&str> {
        let name = |id: UpstreamId| self.upstream(id).name.as_str();
        let others = route.fallbacks.iter().filter_map(|fallback| match fallback {
            Fallback::Upstream(other) => Some(name(*other)),
            _ => None,
        });
        [name(route.upstream)].into_iter().chain(others).collect()
    }
}

/// Each listener with the names of its routes, by address; several on port 0 are told apart by their order.
fn listeners(policy: &Policy) -> BTreeMap<String, (Vec<&str>, &Listener)> {
    let mut found = BTreeMap::new();
    for listener in &policy.listeners {
        let mut address = listener.address.to_string();
        while found.contains_key(&address) {
            address.push('+');
        }
        let routes = listener.routes.iter().map(|id| policy.route(*id).name.as_str()).collect();
        found.insert(address, (routes, listener));
    }
    found
}

fn by_name<'p, T>(
    policy: &'p Policy,
    list: &'p [T],
    name: impl Fn(&T) -> String,
) -> BTreeMap<String, (&'p T, &'p Policy)> {
    list.iter().map(|it| (name(it), (it, policy))).collect()
}

/// Tells what came, what went, and by `compare` what is different in what stayed.
fn named<T>(
    changes: &mut Vec<String>,
    what: &str,
    old: BTreeMap<String, T>,
    new: BTreeMap<String, T>,
    compare: impl Fn(&T, &T, &mut dyn FnMut(&str, bool)),
) {
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        changes.push(format!("{what} {name}: removed"));
    }
    for (name, is) in &new {
        match old.get(name) {
            None => changes.push(format!("{what} {name}: added")),
            Some(was) => compare(was, is, &mut |key, differs| {
                if differs {
                    changes.push(format!("{what} {name}: {key}"));
                }
            }),
        }
    }
}

fn route((was, old): &(&Route, &Policy), (is, new): &(&Route, &Policy), tell: &mut dyn FnMut(&str, bool)) {
    tell("protocol", was.protocol != is.protocol);
    tell("match", was.matcher != is.matcher);
    tell("upgrade", was.upgrades != is.upgrades);
    tell("upstream", old.leads_to(was) != new.leads_to(is));
    // Upstreams that stand in are compared by name above.
    let own = |route: &Route| {
        let kinds = route.fallbacks.iter().filter(|fallback| !matches!(fallback, Fallback::Upstream(_)));
        kinds.cloned().collect::<Vec<_>>()
    };
    tell("fallback", own(was) != own(is));
    tell("order_by", was.order_by != is.order_by);
    tell("delivery", was.delivery != is.delivery);
    tell("versions", was.placement.versions != is.placement.versions);
    let mirror = |route: &Route, policy: &Policy| {
        let mirror = route.placement.mirror.clone()?;
        Some((policy.upstream(mirror.to).name.clone(), Mirror { to: UpstreamId(0), ..mirror }))
    };
    tell("mirror", mirror(was, old) != mirror(is, new));
    tell("sticky", was.placement.sticky != is.placement.sticky);
    guards(&was.guards, &is.guards, tell);
}

fn guards(was: &Guards, is: &Guards, tell: &mut dyn FnMut(&str, bool)) {
    tell("timeout", was.timeout != is.timeout);
    tell("try_timeout", was.try_timeout != is.try_timeout);
    tell("idle_timeout", was.idle_timeout != is.idle_timeout);
    tell("retry", was.retry != is.retry || was.budget != is.budget);
    tell("breaker", was.breaker != is.breaker);
    tell("bulkhead", was.bulkhead != is.bulkhead);
    tell("throttle", was.throttle != is.throttle);
    tell("rate", was.rate != is.rate);
    tell("learned_limit", was.learned_limit != is.learned_limit);
    tell("concurrency", was.concurrency != is.concurrency);
    tell("hedge", was.hedge != is.hedge);
    tell("look_ahead", was.look_ahead != is.look_ahead);
    tell("replay_max", was.replay_bytes_max != is.replay_bytes_max);
    tell("answer_max", was.answer_bytes_max != is.answer_bytes_max);
}

fn upstream((was, _): &(&Upstream, &Policy), (is, _): &(&Upstream, &Policy), tell: &mut dyn FnMut(&str, bool)) {
    for gone in was.endpoints.iter().filter(|old| is.endpoints.iter().all(|new| new.address != old.address)) {
        tell(&format!("endpoint {} removed", gone.address), true);
    }
    for endpoint in &is.endpoints {
        match was.endpoints.iter().find(|old| old.address == endpoint.address) {
            None => tell(&format!("endpoint {} added", endpoint.address), true),
            Some(old) => tell(&format!("endpoint {} changed", endpoint.address), old != endpoint),
        }
    }
    tell("health", was.health != is.health);
    tell("outlier", was.outlier != is.outlier);
    tell("balance", was.balance != is.balance);
    tell("connections", was.connections_max != is.connections_max);
    tell("idle_timeout", was.idle_timeout != is.idle_timeout);
    tell("connect_timeout", was.connect_timeout != is.connect_timeout);
    tell("proxy_protocol", was.announce != is.announce);
    tell("http2", was.http2 != is.http2);
    tell("host", was.host != is.host);
    tell("resolver", was.resolver != is.resolver);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::id::RouteId;
    use crate::policy::{Endpoint, Limits, Match};

    fn policy() -> Policy {
        let route = |name: &str, upstream| Route {
            name: name.into(),
            protocol: crate::policy::Protocol::Http,
            matcher: Match::default(),
            upgrades: Vec::new(),
            upstream: UpstreamId(upstream),
            guards: Guards::default(),
            fallbacks: vec![Fallback::Upstream(UpstreamId(1 - upstream)), Fallback::Spool],
            order_by: None,
            delivery: crate::policy::Delivery::default(),
            placement: crate::policy::Placement::default(),
        };
        let upstream = |name: &str| Upstream {
            name: name.into(),
            endpoints: vec![Endpoint::at(format!("{name}:80"))],
            health: None,
            outlier: None,
            balance: crate::balance::BalanceConfig::default(),
            connections_max: 1,
            idle_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            announce: None,
            http2: false,
            host: None,
            resolver: crate::policy::Resolver::default(),
        };
        Policy {
            node: "n".into(),
            zone: "z".into(),
            zones: vec!["z".into()],
            listeners: vec![Listener::new(([127, 0, 0, 1], 0).into(), vec![RouteId(0), RouteId(1)])],
            routes: vec![route("one", 0), route("two", 1)],
            upstreams: vec![upstream("a"), upstream("b")],
            limits: Limits::default(),
            digest: "d".into(),
        }
    }

    fn changed(change: impl FnOnce(&mut Policy)) -> Vec<String> {
        let (old, mut new) = (policy(), policy());
        change(&mut new);
        new.changes_from(&old)
    }

    #[test]
    fn every_change_is_told_and_nothing_else() {
        assert_eq!(changed(|policy| policy.digest = "other".into()), [] as [&str; 0]);
        // Numbers are not what anybody means: the same under other numbers is the same.
        let turned = |policy: &mut Policy| {
            policy.upstreams.reverse();
            policy.routes.reverse();
            policy.listeners[0].routes.reverse();
            for route in &mut policy.routes {
                route.upstream = UpstreamId(1 - route.upstream.0);
                route.fallbacks[0] = Fallback::Upstream(UpstreamId(1 - route.upstream.0));
            }
        };
        assert_eq!(changed(turned), [] as [&str; 0]);
        let several = |policy: &mut Policy| {
            policy.listeners.push(policy.listeners[0].clone());
            policy.listeners[0].routes.pop();
            let share = crate::units::Ratio::ONE;
            let mirror = Mirror { to: UpstreamId(1), share, timeout: Duration::ZERO, writes: false };
            policy.routes[0].placement.mirror = Some(mirror);
            policy.routes[0].placement.sticky = Some(crate::balance::assign::Unit::Cookie("id".into()));
            policy.routes[0].guards.timeout = Duration::from_secs(1);
            policy.routes[0].guards.breaker = None;
            policy.routes[1].name = "three".into();
            policy.routes[0].upstream = UpstreamId(1);
            policy.routes[0].fallbacks.pop();
            policy.upstreams[0].endpoints = vec![Endpoint::at("c:80"), Endpoint::at("d:80")];
            policy.upstreams[0].balance.slow_start = Duration::ZERO;
            policy.upstreams[1].endpoints[0].zone = Some("z".into());
            policy.upstreams[1].host = Some("h".into());
            policy.upstreams[1].resolver = crate::policy::Resolver::System;
            policy.limits.pending_max = 1;
        };
        assert_eq!(
            changed(several),
            [
                "listener 127.0.0.1:0: routes",
                "listener 127.0.0.1:0+: added",
                "route two: removed",
                "route one: upstream",
                "route one: fallback",
                "route one: mirror",
                "route one: sticky",
                "route one: timeout",
                "route one: breaker",
                "route three: added",
                "upstream a: endpoint a:80 removed",
                "upstream a: endpoint c:80 added",
                "upstream a: endpoint d:80 added",
                "upstream a: balance",
                "upstream b: endpoint b:80 changed",
                "upstream b: host",
                "upstream b: resolver",
                "limits",
            ]
        );
    }
}
