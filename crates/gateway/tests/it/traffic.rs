//! What the journal hears of the traffic: when it begins, when it changes, and at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use seawall_core::journal::{Entry, Kind};
use seawall_core::policy::Fallback;
use seawall_core::units::parse_duration;

use crate::world::{Do, Server, World, answer, ok, policy, route, upstream, wait_until};

const NEVER: Duration = Duration::from_secs(3_600);

fn told(world: &World) -> Vec<Entry> {
    world.entries(Kind::TrafficChanged)
}

fn number(fields: &BTreeMap<String, String>, name: &str) -> f64 {
    fields[name].trim_end_matches('%').parse().unwrap()
}

/// A server that takes 20 ms and more, and fails while it is told to.
fn server() -> (Server, Arc<AtomicBool>) {
    let sick = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&sick);
    let server = Server::start(move |_, _| {
        let next = if of_server.load(Relaxed) { answer("503 Service Unavailable", "", "sick") } else { ok("well") };
        Do::Wait(Duration::from_millis(20), Box::new(next))
    });
    (server, sick)
}

#[test]
fn a_node_that_stops_says_what_it_saw() {
    let (server, sick) = server();
    let mut two = vec![route("r", 0), route("idle", 0)];
    two[0].guards.retry.attempts_max = 1;
    let mut world = World::watched(policy(two, vec![upstream("u", &[server.address])]), NEVER);
    let mut client = world.client();
    for n in 0..20 {
        sick.store(n >= 15, Relaxed);
        let status = client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status;
        assert_eq!(status, if n < 15 { 200 } else { 503 });
    }
    assert!(told(&world).is_empty(), "an hour is not over");
    world.stop(true);
    let told = told(&world);
    assert_eq!(told.iter().map(|entry| entry.subject.as_str()).collect::<Vec<_>>(), ["route:r"], "one saw nothing");
    let fields = &told[0].fields;
    assert_eq!((fields["calls"].as_str(), fields["failed"].as_str()), ("20", "25%"));
    let requests = number(fields, "per_second") * number(fields, "seconds");
    assert!((requests - 20.0).abs() < 0.1, "{fields:?}");
    let [p50, p99] = ["p50", "p99"].map(|name| parse_duration(&fields[name]).unwrap());
    assert!(p50 >= Duration::from_millis(18) && p50 <= p99, "to the bucket, an eighth below at most: {fields:?}");
}

/// The client sees quick answers all the time; the entry tells of the upstream.
#[test]
fn what_stands_in_is_no_call() {
    let (server, sick) = server();
    sick.store(true, Relaxed);
    let stand_in = Server::playing(vec![ok("stand-in")]);
    let mut reads = route("r", 0);
    reads.fallbacks = vec![Fallback::Upstream(seawall_core::id::UpstreamId(1))];
    reads.guards.retry.attempts_max = 2;
    let upstreams = vec![upstream("u", &[server.address]), upstream("other", &[stand_in.address])];
    let mut world = World::watched(policy(vec![reads], upstreams), NEVER);
    for _ in 0..5 {
        assert_eq!(world.get("/").body, "stand-in");
    }
    world.stop(true);
    let fields = told(&world).remove(0).fields;
    assert_eq!((fields["calls"].as_str(), fields["failed"].as_str()), ("10", "100%"), "each of five tried twice");
    assert!(!fields.contains_key("p50") && !fields.contains_key("p99"), "no good answer, no latency: {fields:?}");
}

#[test]
fn only_changes_are_told() {
    let (server, sick) = server();
    let one = || policy(vec![route("r", 0)], vec![upstream("u", &[server.address])]);
    let world = World::watched(one(), Duration::from_millis(5));
    let mut client = world.client();
    let mut ask = || client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status;
    ask();
    wait_until("the first is told", || told(&world).len() == 1);
    sick.store(true, Relaxed);
    let fails = |entry: &Entry| entry.fields.get("failed").is_some_and(|share| share == "100%");
    wait_until("the failing is told", || {
        ask();
        told(&world).last().is_some_and(fails)
    });
    let (entries, failing) = (told(&world), world.entries(Kind::CallsFailing));
    assert!(entries.is_sorted_by_key(|entry| entry.at) && failing.is_empty(), "no fallbacks: {failing:?}");
    for pair in entries.windows(2) {
        assert_ne!(pair[0].fields, pair[1].fields, "the same is not told twice");
    }
}
