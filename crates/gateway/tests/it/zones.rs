//! Endpoints in several zones: the node's own first, the others when it is ill or full, and back by degrees.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use seawall_core::balance::BalanceConfig;
use seawall_core::balance::assign::{Split, Unit};
use seawall_core::guard::health::HealthConfig;
use seawall_core::guard::outlier::OutlierConfig;
use seawall_core::id::UpstreamId;
use seawall_core::journal::Kind;
use seawall_core::observation::{EndpointSnapshot, UpstreamSnapshot};
use seawall_core::policy::{Endpoint, Mirror, Policy, Protocol, Upstream};
use seawall_core::units::Ratio;

use crate::world::{Do, Server, World, answer, ok, policy, route, spooling, upstream, wait_until};

const MS: Duration = Duration::from_millis(1);

/// A server that answers with the name of its zone, and can be ill.
struct Zone {
    name: &'static str,
    server: Server,
    is_ill: Arc<AtomicBool>,
}

impl Zone {
    fn new(name: &'static str) -> Self {
        let is_ill = Arc::new(AtomicBool::new(false));
        let ill = Arc::clone(&is_ill);
        let server =
            Server::start(
                move |_, _| {
                    if ill.load(Relaxed) { answer("503 Service Unavailable", "", "ill") } else { ok(name) }
                },
            );
        Self { name, server, is_ill }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint { zone: Some(self.name.into()), ..Endpoint::at(self.server.address.to_string()) }
    }
}

fn in_zones(endpoints: Vec<Endpoint>) -> Upstream {
    let balance = BalanceConfig { slow_start: Duration::ZERO, ..BalanceConfig::default() };
    Upstream { endpoints, balance, ..upstream("u", &[]) }
}

/// The node is `here`.
fn one_route(upstream: Upstream) -> Policy {
    let mut route = route("r", 0);
    route.guards.breaker = None;
    policy(vec![route], vec![upstream])
}

fn seen(world: &World) -> UpstreamSnapshot {
    (world.view)().upstreams.remove(0)
}

fn of_endpoints<T>(world: &World, of: impl Fn(&EndpointSnapshot) -> T) -> Vec<T> {
    seen(world).endpoints.iter().map(of).collect()
}

/// Who answered how many of so many requests.
fn answered(world: &World, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        *counts.entry(world.get("/").body).or_default() += 1;
    }
    counts
}

#[test]
fn own_zone_is_left_and_come_back_to_and_both_are_told_once() {
    let (here, there) = (Zone::new("here"), Zone::new("there"));
    let mut upstream = in_zones(vec![there.endpoint(), here.endpoint()]);
    let every = 10 * MS;
    upstream.health = Some(HealthConfig { every, unhealthy_after: 1, healthy_after: 1, ..HealthConfig::default() });
    let world = World::new(one_route(upstream));
    assert_eq!(answered(&world, 30), BTreeMap::from([("here".into(), 30)]));
    here.is_ill.store(true, Relaxed);
    wait_until("the check has seen it", || of_endpoints(&world, |it| it.healthy) == [true, false]);
    assert_eq!(answered(&world, 30), BTreeMap::from([("there".into(), 30)]));
    wait_until("the journal is told", || {
        world.get("/");
        seen(&world).is_spilling
    });
    assert!(seen(&world).spilled_total >= 30);
    let (ill, away) = (world.entries(Kind::EndpointUnhealthy).remove(0), world.entries(Kind::TrafficSpilled).remove(0));
    assert_eq!((away.subject.as_str(), away.cause), ("upstream:u", Some(ill.seq)));
    here.is_ill.store(false, Relaxed);
    wait_until("the check has seen that, too", || of_endpoints(&world, |it| it.healthy) == [true, true]);
    assert_eq!(answered(&world, 30), BTreeMap::from([("here".into(), 30)]));
    wait_until("the journal is told", || {
        world.get("/");
        !seen(&world).is_spilling
    });
    let well = world.entries(Kind::EndpointHealthy).remove(0);
    let home = world.entries(Kind::TrafficHome);
    assert_eq!((home.len(), home[0].cause), (1, Some(well.seq)));
    assert_eq!(world.entries(Kind::TrafficSpilled).len(), 1);
}

#[test]
fn who_comes_back_begins_slowly() {
    let (here, there) = (Zone::new("here"), Zone::new("there"));
    let mut upstream = in_zones(vec![here.endpoint(), there.endpoint()]);
    // So long that it is at its beginning for the whole test.
    upstream.balance.slow_start = Duration::from_secs(3_600);
    upstream.outlier = Some(OutlierConfig {
        consecutive_failures: 3,
        ejection_base: 300 * MS,
        ejection_jitter: Duration::ZERO,
        ..OutlierConfig::default()
    });
    let world = World::new(one_route(upstream));
    assert_eq!(of_endpoints(&world, |it| it.ramp), [1.0, 1.0], "who was there from the beginning does not");
    here.is_ill.store(true, Relaxed);
    wait_until("it is ejected", || {
        assert_eq!(world.get("/").body, "there", "what fails here is tried there");
        !world.entries(Kind::EndpointEjected).is_empty()
    });
    here.is_ill.store(false, Relaxed);
    wait_until("it is back", || !world.entries(Kind::EndpointReturned).is_empty());
    assert_eq!(of_endpoints(&world, |it| it.ramp), [0.1, 1.0]);
    let counts = answered(&world, 200);
    // A tenth; six deviations of a coin are 25 more.
    assert!((1..45).contains(counts.get("here").unwrap_or(&0)), "{counts:?}");
    assert_eq!(counts.values().sum::<usize>(), 200);
}

#[test]
fn what_finds_no_room_goes_on() {
    let there = Zone::new("there");
    let here = Server::start(|seen, _| {
        if seen.head.contains("/held") { Do::Wait(5_000 * MS, Box::new(ok("here"))) } else { ok("here") }
    });
    let near = Endpoint { zone: Some("here".into()), ..Endpoint::at(here.address.to_string()) };
    let mut upstream = in_zones(vec![near, there.endpoint()]);
    upstream.balance.calls_max = Some(1);
    let world = World::new(one_route(upstream));
    assert_eq!(world.get("/").body, "here");
    let mut held = world.client();
    held.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("it is on its way", || of_endpoints(&world, |it| it.in_flight) == [1, 0]);
    assert_eq!(answered(&world, 5), BTreeMap::from([("there".into(), 5)]));
    assert_eq!(seen(&world).spilled_total, 5);
}

#[test]
fn connections_go_to_the_own_zone_first() {
    let (here, there) = (Zone::new("here"), Zone::new("there"));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Endpoint { zone: Some("here".into()), ..Endpoint::at(nobody.to_string()) };
    for (near, who) in [(here.endpoint(), "here"), (gone, "there")] {
        let mut policy = one_route(in_zones(vec![there.endpoint(), near]));
        policy.routes[0].protocol = Protocol::Tcp;
        policy.routes[0].guards.budget.ratio = Ratio::ONE;
        let world = World::new(policy);
        assert_eq!(answered(&world, 5), BTreeMap::from([(who.into(), 5)]));
        assert_eq!(seen(&world).spilled_total, if who == "here" { 0 } else { 5 });
    }
}

#[test]
fn what_is_known_of_endpoints_outlives_a_change() {
    let zones = [Zone::new("here"), Zone::new("there"), Zone::new("there")];
    let mut upstream = in_zones(zones[..2].iter().map(Zone::endpoint).collect());
    upstream.balance.slow_start = Duration::from_secs(3_600);
    let world = World::new(one_route(upstream.clone()));
    answered(&world, 20);
    let before = seen(&world).endpoints;
    assert!(before[0].calls_total == 20 && before[0].latency_ms > 0.0 && before[0].connections > 0, "{before:?}");
    upstream.endpoints[0].weight = 7;
    upstream.endpoints[0].version = Some("v2".into());
    upstream.endpoints.push(zones[2].endpoint());
    world.change(one_route(upstream));
    let after = seen(&world).endpoints;
    assert_eq!((after[0].weight, after[0].version.as_deref(), after[0].calls_total), (7, Some("v2"), 20));
    assert!(after[0].latency_ms > 0.0 && after[0].connections > 0, "its connections are kept: {after:?}");
    assert_eq!(after.iter().map(|it| it.ramp).collect::<Vec<_>>(), [1.0, 1.0, 0.1], "the new one begins slowly");
}

/// Two of each version, and shares by a header.
fn split(zones: &[Zone], by: Unit) -> Policy {
    let versions = ["stable", "canary"];
    let endpoint = |(place, zone): (usize, &Zone)| Endpoint {
        zone: None,
        version: Some(versions[place / 2].into()),
        ..zone.endpoint()
    };
    let endpoints = zones.iter().enumerate().map(endpoint).collect();
    let mut upstream = in_zones(endpoints);
    upstream.health =
        Some(HealthConfig { every: 10 * MS, unhealthy_after: 1, healthy_after: 1, ..HealthConfig::default() });
    let mut policy = one_route(upstream);
    let weights = vec![("stable".into(), 80), ("canary".into(), 20)];
    policy.routes[0].placement.versions = Some(Split { weights, by });
    policy
}

fn ask_as(world: &World, header: &str) -> String {
    world.client().ask(&format!("GET / HTTP/1.1\r\nHost: h\r\n{header}\r\n\r\n")).body
}

#[test]
fn a_user_keeps_the_version_and_each_is_counted() {
    let zones = ["s1", "s2", "c1", "c2"].map(Zone::new);
    let world = World::new(split(&zones, Unit::Header("user".into())));
    let of_user = |user: usize| ask_as(&world, &format!("User: u{user}")).remove(0);
    let first: Vec<char> = (0..60).map(of_user).collect();
    assert_eq!(first, (0..60).map(of_user).collect::<Vec<_>>(), "the same user, the same version");
    let canary = first.iter().filter(|version| **version == 'c').count();
    assert!((3..25).contains(&canary), "{canary}");
    let other = World::new(split(&zones, Unit::Header("user".into())));
    let there = |user: usize| ask_as(&other, &format!("User: u{user}")).remove(0);
    assert_eq!(first, (0..60).map(there).collect::<Vec<_>>(), "on another node, too");
    let versions = world.route(0).versions;
    assert_eq!(versions["canary"].answers, [0, 2 * canary as u64, 0, 0, 0]);
    assert_eq!(versions["stable"].answers, [0, 2 * (60 - canary as u64), 0, 0, 0]);
    let lone: BTreeMap<char, usize> = (0..100).fold(BTreeMap::new(), |mut counts, _| {
        *counts.entry(ask_as(&world, "Other: x").remove(0)).or_default() += 1;
        counts
    });
    assert!(lone.len() == 2, "who says nothing is thrown a coin each time: {lone:?}");
}

#[test]
fn a_version_that_is_gone_is_stood_in_for() {
    let zones = ["s1", "s2", "c1", "c2"].map(Zone::new);
    let world = World::new(split(&zones, Unit::Cookie("id".into())));
    let version = |user: usize| ask_as(&world, &format!("Cookie: x=y; id=u{user}")).remove(0);
    let user = (0..200).find(|user| version(*user) == 'c').expect("one in five");
    zones[2..].iter().for_each(|zone| zone.is_ill.store(true, Relaxed));
    wait_until("its checks have failed", || of_endpoints(&world, |it| it.healthy) == [true, true, false, false]);
    assert_eq!(version(user), 's');
    let counts = &world.route(0).versions["canary"];
    assert_eq!(counts.elsewhere, 1);
    zones[3].is_ill.store(false, Relaxed);
    wait_until("it is back", || of_endpoints(&world, |it| it.healthy) == [true, true, false, true]);
    assert_eq!(version(user), 'c');
}

#[test]
fn what_belongs_together_stays_together() {
    let zones = ["a", "b", "c"].map(Zone::new);
    let mut upstream = in_zones(zones.iter().map(|zone| Endpoint { zone: None, ..zone.endpoint() }).collect());
    upstream.health =
        Some(HealthConfig { every: 10 * MS, unhealthy_after: 1, healthy_after: 1, ..HealthConfig::default() });
    let mut policy = one_route(upstream);
    policy.routes[0].placement.sticky = Some(Unit::Cookie("id".into()));
    let world = World::new(policy);
    let all = || (0..40).map(|user| ask_as(&world, &format!("Cookie: id=u{user}"))).collect::<Vec<_>>();
    let first = all();
    assert_eq!(first, all());
    assert!(zones.iter().all(|zone| first.iter().any(|by| by == zone.name)), "{first:?}");
    zones[0].is_ill.store(true, Relaxed);
    wait_until("its check has failed", || of_endpoints(&world, |it| it.healthy) == [false, true, true]);
    let without = all();
    let kept = first.iter().zip(&without).filter(|(before, after)| before == after).count();
    assert_eq!(kept, first.iter().filter(|by| *by != "a").count(), "only those move whose endpoint is gone");
}

#[test]
fn copies_are_sent_beside_and_never_waited_for() {
    let (real, shadow) = (Server::start(|_, _| ok("real")), Server::start(|_, _| Do::Hang));
    let mut mirrored = route("r", 0);
    let mirror = Mirror { to: UpstreamId(1), share: Ratio::ONE, timeout: 50 * MS, writes: false };
    mirrored.placement.mirror = Some(mirror);
    let upstreams = vec![upstream("u", &[real.address]), upstream("shadow", &[shadow.address])];
    let world = World::new(policy(vec![mirrored], upstreams));
    assert_eq!((world.get("/a?b").body.as_str(), world.post("/p", "", "body").body.as_str()), ("real", "real"));
    wait_until("both copies have come", || shadow.count() == 2);
    let fate = |world: &World, word| world.route(0).mirrored.iter().find(|(known, _)| *known == word).unwrap().1;
    wait_until("both have timed out", || fate(&world, "timed_out") == 2);
    let mut copies = shadow.seen();
    copies.sort_by_key(|copy| copy.line().to_owned());
    assert_eq!((copies[0].line(), copies[1].line()), ("GET /a?b HTTP/1.1", "POST /p HTTP/1.1"));
    assert!(copies.iter().all(|copy| copy.header("seawall-mirror").as_deref() == Some("copy")));
    assert_eq!(copies[1].body, b"body");
    assert!(real.seen().iter().all(|seen| seen.header("seawall-mirror").is_none()));
    let route = world.route(0);
    assert_eq!((route.failures_total, route.retries_total, route.answers[1]), (0, 0, 2), "nobody else hears of it");
    // What is a copy already is not copied again; what comes in pieces cannot be.
    world.client().ask("GET / HTTP/1.1\r\nHost: h\r\nSeawall-Mirror: copy\r\n\r\n");
    world.client().ask("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n");
    assert_eq!((fate(&world, "body"), shadow.count()), (1, 2));
}

#[test]
fn too_many_copies_are_not_made_and_writes_that_are_kept_are_not_copied() {
    let (real, shadow) = (Server::start(|_, _| ok("real")), Server::start(|_, _| Do::Hang));
    let mut kept = spooling("r", 0);
    let mirror = Mirror { to: UpstreamId(1), share: Ratio::ONE, timeout: 60_000 * MS, writes: false };
    kept.placement.mirror = Some(mirror);
    let mut other = upstream("shadow", &[shadow.address]);
    other.connections_max = 1_000;
    let world = World::new(policy(vec![kept], vec![upstream("u", &[real.address]), other]));
    assert_eq!(world.post("/", "", "x").body, "real");
    (0..70).for_each(|_| assert_eq!(world.get("/").body, "real"));
    let fate = |word| world.route(0).mirrored.iter().find(|(known, _)| *known == word).unwrap().1;
    assert_eq!(fate("busy"), 6, "64 are on their way, none of them a write");
    let limits = (world.view)().limits;
    let limit = limits.iter().find(|limit| limit.name == "mirrors").unwrap();
    assert_eq!((limit.used, limit.reached_total), (Some(64), 6));
}

#[test]
fn a_well_shadow_is_counted_by_status_and_its_connection_kept() {
    let (real, shadow) =
        (Server::start(|_, _| ok("real")), Server::playing(vec![ok("a"), answer("500 Oh", "", "b"), Do::Reset]));
    let mut mirrored = route("r", 0);
    mirrored.placement.mirror =
        Some(Mirror { to: UpstreamId(1), share: Ratio::ONE, timeout: 5_000 * MS, writes: false });
    let upstreams = vec![upstream("u", &[real.address]), upstream("shadow", &[shadow.address])];
    let world = World::new(policy(vec![mirrored], upstreams));
    let fate = |word| world.route(0).mirrored.iter().find(|(known, _)| *known == word).unwrap().1;
    for word in ["2xx", "5xx", "failed"] {
        assert_eq!(world.get("/").body, "real");
        wait_until(word, || fate(word) == 1);
    }
    assert_eq!(world.route(0).breaker.opened_total, 0);
}
