//! Faults on calls: what each kind does to a request, and what the guards, the spool and the account make of it.

use std::time::{Duration, Instant};

use seawall_core::fault::book::{Id, Kind as Fault, Order, Portion, Refused, Scope, Timing};
use seawall_core::guard::health::HealthConfig;
use seawall_core::guard::hedge::HedgeConfig;
use seawall_core::journal::Kind;
use seawall_core::outcome::Failure;
use seawall_core::policy::{Fallback, Route};
use seawall_gateway::Fate;

use crate::world::{Do, Server, World, answer, breaker, ok, policy, post, route, spooling, upstream, wait_until};

pub fn order(route: &str, kind: Fault, portion: Portion) -> Order {
    let scope = Scope { route: Some(route.into()), ..Scope::default() };
    let (timing, ttl, seed) = (Timing::default(), Some(Duration::from_secs(60)), Some(1));
    Order { owner: "test".into(), scope, portion, kind, timing, abort_when: None, ttl, seed }
}

pub const ALL: Portion = Portion::Every(1);

pub fn put(world: &World, kind: Fault, portion: Portion) -> Id {
    world.faults.place(order("r", kind, portion)).unwrap().fault.id
}

pub fn world_of(server: &Server, change: impl FnOnce(&mut Route)) -> World {
    let mut route = route("r", 0);
    change(&mut route);
    World::new(policy(vec![route], vec![upstream("u", &[server.address])]))
}

/// Requests and tries touched, standing or ended.
pub fn touched(world: &World, id: Id) -> (u64, u64) {
    let look = world.faults.look();
    let all = look.standing.into_iter().map(|it| it.fault).chain(look.ended);
    all.filter(|fault| fault.id == id).map(|fault| (fault.requests, fault.tries)).next().unwrap()
}

#[test]
fn without_faults_nothing_is_marked() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |_| {});
    assert_eq!(world.get("/").header("seawall-fault"), None);
    assert_eq!(world.route(0).faulted_total, 0);
}

#[test]
fn latency_comes_before_the_try_and_is_marked() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |_| {});
    let (delay, jitter) = (Duration::from_millis(80), Duration::from_millis(20));
    let id = put(&world, Fault::late(delay, jitter), ALL);
    let begin = Instant::now();
    let late = world.get("/");
    assert!(begin.elapsed() >= delay, "{:?}", begin.elapsed());
    assert_eq!((late.status, late.body.as_str(), late.must("seawall-fault")), (200, "well", id.to_string()));
    assert_eq!((touched(&world, id), world.route(0).faulted_total), ((1, 1), 1));
    world.faults.remove(id).unwrap();
    assert_eq!(world.get("/").header("seawall-fault"), None);
    let (placed, ended) = (&world.entries(Kind::FaultPlaced)[0], &world.entries(Kind::FaultEnded)[0]);
    assert_eq!((ended.cause, ended.subject.as_str()), (Some(placed.seq), "fault:f1-1"));
    assert_eq!((ended.fields["why"].as_str(), ended.fields["requests"].as_str()), ("removed", "1"));
    assert_eq!(placed.fields["kind"], "latency 80ms to 100ms");
    assert_eq!((placed.fields["scope"].as_str(), placed.fields["portion"].as_str()), ("route r", "every one"));
}

#[test]
fn an_abort_is_the_upstreams_answer_to_everybody_but_the_upstream() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |route| {
        route.guards.retry.attempts_max = 1;
        route.guards.breaker = Some(breaker());
    });
    let id = put(&world, Fault::abort(503), ALL);
    for _ in 0..4 {
        let aborted = world.get("/");
        assert_eq!((aborted.status, aborted.must("seawall-fault")), (503, id.to_string()));
    }
    let refused = world.get("/");
    assert!(refused.body.contains("the breaker is open"), "{}", refused.body);
    assert_eq!(refused.header("seawall-fault"), None, "no try, no fault");
    assert_eq!((server.count(), touched(&world, id)), (0, (4, 4)));
    let (placed, opened) = (&world.entries(Kind::FaultPlaced)[0], &world.entries(Kind::BreakerOpened)[0]);
    assert_eq!(opened.cause, Some(placed.seq), "the trip names what led to it");
    world.faults.remove(id).unwrap();
    wait_until("the breaker closes", || world.get("/").status == 200 && world.route(0).breaker.state == "closed");
}

#[test]
fn a_status_that_is_no_failure_passes_the_guards() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |_| {});
    let id = put(&world, Fault::abort(404), Portion::First(1));
    assert_eq!((world.get("/").status, world.get("/").status, server.count()), (404, 200, 1));
    assert_eq!((world.route(0).failures_total, touched(&world, id)), (0, (1, 1)));
}

#[test]
fn a_retry_is_a_try_of_its_own() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |_| {});
    let id = put(&world, Fault::abort(503), Portion::First(2));
    let answer = world.get("/");
    assert_eq!((answer.status, answer.must("seawall-fault")), (200, id.to_string()), "touched twice, and well at last");
    assert_eq!((server.count(), world.route(0).retries_total), (1, 2));
    assert_eq!((touched(&world, id), world.route(0).faulted_total), ((1, 2), 1), "one request, two tries");
}

#[test]
fn a_refused_connection_was_never_made() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |route| route.guards.retry.attempts_max = 2);
    let id = put(&world, Fault::Refuse, Portion::First(3));
    let refused = world.get("/");
    assert_eq!(refused.status, 502);
    assert!(refused.must("proxy-status").contains("error=connection_refused"), "{}", refused.head);
    assert_eq!(world.post("/", "", "x").body, "well", "even a write is sent again: it cannot have arrived");
    assert_eq!((server.count(), touched(&world, id)), (1, (2, 3)));
    assert!(world.route(0).failures.contains(&(Failure::ConnectRefused.name(), 3)));
}

#[test]
fn a_hang_lasts_until_the_trys_timeout() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |route| {
        route.guards.try_timeout = Duration::from_millis(100);
        route.guards.retry.attempts_max = 1;
    });
    put(&world, Fault::Hang, Portion::First(1));
    let begin = Instant::now();
    let hung = world.get("/");
    assert!(begin.elapsed() >= Duration::from_millis(100));
    assert_eq!((hung.status, server.count()), (504, 0));
    assert!(hung.must("proxy-status").contains("error=http_response_timeout"));
    assert_eq!(world.get("/").status, 200);
}

/// Whoever takes a fault away, or lets it run out, does not leave those waiting who wait for it.
#[test]
fn who_waits_for_a_fault_waits_no_longer_than_it_is_there() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |route| {
        (route.guards.timeout, route.guards.try_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
    });
    let late = Fault::late(Duration::from_secs(50), Duration::ZERO);
    let ends: [&dyn Fn(Id); 4] = [
        &|id| drop(world.faults.remove(id).unwrap()),
        &|_| assert_eq!(world.faults.kill("enough").len(), 1),
        &|id| drop(world.faults.renew(id, "test", Some(Duration::from_millis(30))).unwrap()),
        &|_| {}, // It runs out.
    ];
    for (kind, (number, end)) in [Fault::Hang, late].into_iter().cycle().zip(ends.into_iter().enumerate()) {
        let ttl = Duration::from_millis(if number == 3 { 300 } else { 60_000 });
        let order = Order { ttl: Some(ttl), ..order("r", kind, Portion::First(1)) };
        let id = world.faults.place(order).unwrap().fault.id;
        let begin = Instant::now();
        let mut client = world.client();
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        wait_until("it waits", || touched(&world, id) == (1, 1));
        end(id);
        let answer = client.next().unwrap();
        assert_eq!((answer.status, answer.must("seawall-fault")), (200, id.to_string()));
        assert!(begin.elapsed() < Duration::from_secs(40), "{kind}: {:?}", begin.elapsed());
        world.faults.release("go on");
    }
    let whys = || world.entries(Kind::FaultEnded).iter().map(|entry| entry.fields["why"].clone()).collect::<Vec<_>>();
    wait_until("the journal knows of the last", || whys().len() == 4);
    assert_eq!(whys(), ["removed", "killed", "expired", "expired"]);
}

#[test]
fn a_swallowed_write_was_done_and_is_not_repeated_blindly() {
    let server = Server::start(|_, _| ok("done"));
    let world = world_of(&server, |_| {});
    put(&world, Fault::Swallow, Portion::First(1));
    let lost = world.post("/", "", "x");
    assert_eq!(lost.status, 502);
    assert!(lost.must("proxy-status").contains("error=connection_terminated"), "{}", lost.head);
    assert_eq!(server.seen()[0].body, b"x", "the upstream has done it");
    assert_eq!(server.count(), 1, "nobody said that it may be sent twice");
}

/// The case that idempotency keys and the account are for.
#[test]
fn a_swallowed_write_of_a_spooling_route_is_kept_and_sent_again_with_its_key() {
    let server = Server::start(|_, _| ok("done"));
    let mut route = spooling("r", 0);
    route.guards.retry.attempts_max = 1;
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    let id = put(&world, Fault::Swallow, Portion::First(1));
    let kept = world.post("/", "", "x");
    assert_eq!((kept.status, kept.must("seawall-fault")), (202, id.to_string()));
    wait_until("it is delivered", || world.get(&kept.must("location")).body.contains("\"state\":\"delivered\""));
    let keys: Vec<_> = server.seen().iter().map(|seen| seen.header("idempotency-key")).collect();
    assert_eq!(keys.len(), 2, "done and thrown away, and done again");
    assert!(keys[0].is_some() && keys[0] == keys[1]);
    wait_until("the account knows", || world.fates() == [Fate::Spooled, Fate::Delivered]);
}

#[test]
fn after_a_swallowed_try_a_no_says_nothing_about_it() {
    let server = Server::playing(vec![ok("done"), answer("404 Not Found", "", "no")]);
    let world = World::new(policy(vec![spooling("r", 0)], vec![upstream("u", &[server.address])]));
    put(&world, Fault::Swallow, Portion::First(1));
    assert_eq!(world.post("/", "", "x").status, 404);
    wait_until("the account knows", || world.fates() == [Fate::Indeterminate]);
}

#[test]
fn a_short_answer_that_is_cut_is_a_failed_try() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |route| route.guards.retry.attempts_max = 1);
    put(&world, Fault::Cut, Portion::First(1));
    let cut = world.get("/");
    assert_eq!((cut.status, server.count()), (502, 1));
    assert!(cut.must("proxy-status").contains("error=http_response_incomplete"), "{}", cut.head);
    assert_eq!(world.get("/").body, "well");
}

#[test]
fn a_long_answer_that_is_cut_breaks_the_clients_too() {
    let long = "x".repeat(100_000);
    let body = long.clone();
    let server = Server::start(move |_, _| ok(&body));
    let chunked = Server::start(|_, _| {
        Do::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n0\r\n\r\n".to_vec())
    });
    for server in [&server, &chunked] {
        let world = world_of(server, |route| route.guards.breaker = Some(breaker()));
        let id = put(&world, Fault::Cut, Portion::First(1));
        let mut client = world.client();
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        let part = client.rest();
        let (head, body) = part.split_once("\r\n\r\n").expect("the head has come");
        assert!(head.starts_with("HTTP/1.1 200") && head.contains(&format!("seawall-fault: {id}")), "{head}");
        assert!(!body.is_empty() && body.len() < long.len() && !body.ends_with("0\r\n\r\n"), "{} bytes", body.len());
        assert_eq!(world.route(0).cut_total, 1);
        assert_eq!(world.route(0).breaker.state, "closed");
        assert_eq!(world.get("/").status, 200);
    }
}

/// A fault leaves nothing behind when it is gone: no answer of its making is remembered for a key, and no record is
/// parked for it.
#[test]
fn what_a_fault_answered_is_not_remembered() {
    let server = Server::start(|_, _| ok("done"));
    let world = World::new(policy(vec![spooling("r", 0)], vec![upstream("u", &[server.address])]));
    let id = put(&world, Fault::abort(422), ALL);
    let refused = world.post("/", "Idempotency-Key: \"k\"\r\n", "x");
    assert_eq!((refused.status, refused.must("idempotency-key").as_str()), (422, "\"k\""));
    assert_eq!(world.fates(), [Fate::Refused]);
    world.faults.remove(id).unwrap();
    let done = world.post("/", "Idempotency-Key: \"k\"\r\n", "x");
    assert_eq!((done.status, done.body.as_str(), done.header("idempotency-replayed")), (200, "done", None));
}

#[test]
fn no_dead_letter_is_a_faults() {
    let server = Server::start(|_, _| ok("done"));
    let mut route = spooling("r", 0);
    route.guards.retry.attempts_max = 1;
    route.delivery.attempts_max = 1;
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    put(&world, Fault::Refuse, Portion::First(1));
    let id = put(&world, Fault::abort(422), ALL);
    let kept = world.post("/", "", "x");
    assert_eq!(kept.status, 202);
    wait_until("deliveries are touched", || touched(&world, id).1 >= 3);
    assert!(world.entries(Kind::RecordParked).is_empty());
    world.faults.remove(id).unwrap();
    wait_until("it is delivered", || world.get(&kept.must("location")).body.contains("\"state\":\"delivered\""));
    assert_eq!(server.count(), 1);
}

#[test]
fn what_fails_because_of_a_fault_says_so_in_the_journal() {
    let server = Server::start(|_, _| ok("done"));
    let mut route = spooling("r", 0);
    route.guards.retry.attempts_max = 1;
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    put(&world, Fault::abort(503), Portion::First(1));
    assert_eq!(world.post("/", "", "x").status, 202);
    let placed = world.entries(Kind::FaultPlaced)[0].seq;
    assert_eq!(world.entries(Kind::CallsFailing)[0].cause, Some(placed));
    assert_eq!(world.entries(Kind::DegradedStarted)[0].cause, Some(world.entries(Kind::CallsFailing)[0].seq));
}

#[test]
fn only_what_is_in_scope_is_touched() {
    let (own, other) = (Server::start(|_, _| ok("own")), Server::start(|_, _| ok("other")));
    let mut guarded = route("r", 0);
    guarded.guards.retry.attempts_max = 1;
    guarded.fallbacks = vec![Fallback::Upstream(seawall_core::id::UpstreamId(1))];
    let mut checked = upstream("u", &[own.address]);
    checked.health =
        Some(HealthConfig { every: Duration::from_millis(10), unhealthy_after: 1, ..HealthConfig::default() });
    let world = World::new(policy(vec![guarded], vec![checked, upstream("v", &[other.address])]));
    let id = put(&world, Fault::Refuse, ALL);
    let stood_in = world.get("/a");
    assert_eq!((stood_in.body.as_str(), stood_in.must("seawall-fault")), ("other", id.to_string()));
    let probes = own.count();
    wait_until("health checks go on", || own.count() > probes + 3);
    assert!((world.view)().upstreams[0].endpoints[0].healthy, "and are no part of it");
    assert_eq!(world.get("/.seawall/records/1").header("seawall-fault"), None);
    world.faults.remove(id).unwrap();
    let scope = Scope {
        method: Some("GET".into()),
        path_prefix: Some("/a".into()),
        header: Some(("x-tenant".into(), "acme".into())),
        ..order("r", Fault::Refuse, ALL).scope
    };
    world.faults.place(Order { scope, ..order("r", Fault::abort(418), ALL) }).unwrap();
    let ask = |request: &str| world.client().ask(request).status;
    assert_eq!(ask("GET /a/b HTTP/1.1\r\nHost: h\r\nX-Tenant: acme\r\n\r\n"), 418);
    for other in [
        "GET /a/b HTTP/1.1\r\nHost: h\r\nX-Tenant: other\r\n\r\n",
        "GET /a/b HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /b HTTP/1.1\r\nHost: h\r\nX-Tenant: acme\r\n\r\n",
        &post("/a", "X-Tenant: acme\r\n", "x"),
    ] {
        assert_eq!(ask(other), 200, "{other}");
    }
}

#[test]
fn a_fault_on_an_upstream_is_met_where_it_stands_in() {
    let (own, other) = (Server::start(|_, _| Do::Close), Server::start(|_, _| ok("other")));
    let mut guarded = route("r", 0);
    guarded.guards.retry.attempts_max = 1;
    guarded.fallbacks = vec![Fallback::Upstream(seawall_core::id::UpstreamId(1))];
    let world = World::new(policy(vec![guarded], vec![upstream("u", &[own.address]), upstream("v", &[other.address])]));
    let scope = Scope { upstream: Some("v".into()), ..Scope::default() };
    let id = world.faults.place(Order { scope, ..order("r", Fault::Refuse, ALL) }).unwrap().fault.id;
    let answer = world.get("/");
    assert_eq!((answer.status, answer.must("seawall-fault"), other.count()), (502, id.to_string(), 0));
}

#[test]
fn a_lease_runs_out_by_itself_and_the_journal_hears_of_it() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |route| route.guards.retry.attempts_max = 1);
    let order = Order { ttl: Some(Duration::from_millis(150)), ..order("r", Fault::Refuse, ALL) };
    let begin = Instant::now();
    let id = world.faults.place(order).unwrap().fault.id;
    wait_until("it is gone", || world.get("/").status == 200);
    assert!(begin.elapsed() >= Duration::from_millis(150), "and not before its time");
    wait_until("the journal knows", || !world.entries(Kind::FaultEnded).is_empty());
    let ended = world.entries(Kind::FaultEnded).remove(0);
    assert_eq!((ended.fields["why"].as_str(), ended.cause), ("expired", Some(world.entries(Kind::FaultPlaced)[0].seq)));
    assert_eq!(ended.fields["requests"], touched(&world, id).0.to_string());
    assert!(matches!(
        world.faults.renew(id, "test", None),
        Err(Refused::Invalid { field: "ttl", .. } | Refused::Unknown { .. })
    ));
}

#[test]
fn the_kill_switch_is_told_and_released() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |_| {});
    put(&world, Fault::Refuse, ALL);
    put(&world, Fault::Hang, Portion::First(1));
    assert_eq!((world.faults.kill("pager").len(), world.faults.kill("again").len()), (2, 0));
    assert_eq!(world.get("/").status, 200);
    let refused = world.faults.place(order("r", Fault::Cut, ALL)).unwrap_err();
    assert_eq!(refused, Refused::Killed { reason: "pager".into() });
    assert!(world.faults.release("over") && !world.faults.release("over"));
    assert!(world.faults.place(order("r", Fault::Cut, ALL)).is_ok());
    let (killed, released) = (world.entries(Kind::FaultsKilled), world.entries(Kind::FaultsReleased));
    assert_eq!((killed.len(), released.len(), released[0].cause), (1, 1, Some(killed[0].seq)));
    assert_eq!((killed[0].fields["reason"].as_str(), released[0].fields["reason"].as_str()), ("pager", "over"));
    assert!(world.entries(Kind::FaultEnded).iter().all(|entry| entry.fields["why"] == "killed"));
}

/// Two copies of a call are two tries, and one request.
#[test]
fn a_second_copy_helps_against_a_fault_on_the_first() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |route| {
        let delay_max = Duration::from_millis(20);
        route.guards.hedge = Some(HedgeConfig { samples_min: 20, delay_max, ..HedgeConfig::default() });
    });
    (0..20).for_each(|_| assert_eq!(world.get("/").body, "well"));
    let id = put(&world, Fault::Hang, Portion::First(1));
    let helped = world.get("/");
    assert_eq!((helped.status, helped.must("seawall-fault")), (200, id.to_string()));
    assert_eq!((world.route(0).hedges_won_total, touched(&world, id)), (1, (1, 1)));
    world.faults.remove(id).unwrap();
    let late = Fault::late(Duration::from_millis(100), Duration::ZERO);
    let both = put(&world, late, Portion::First(2));
    assert_eq!(world.get("/").must("seawall-fault"), both.to_string(), "once, though it touched both");
    assert_eq!(touched(&world, both), (1, 2));
}

/// A body that is passed on as it comes is still the client's when a fault answers.
#[test]
fn a_long_upload_meets_faults_too() {
    let server = Server::start(|_, _| ok("well"));
    let long = "x".repeat(200_000);
    for (kind, status, arrives) in [
        (Fault::abort(503), 503, 0),
        (Fault::Refuse, 502, 0),
        (Fault::Swallow, 502, 1),
        (Fault::late(Duration::from_millis(30), Duration::ZERO), 200, 1),
    ] {
        let world = world_of(&server, |_| {});
        let before = server.count();
        put(&world, kind, Portion::First(1));
        assert_eq!((world.post("/", "", &long).status, server.count() - before), (status, arrives), "{kind}");
        assert_eq!(world.get("/").status, 200);
    }
}

/// The budget sees what a fault does to it as it sees the real thing.
#[test]
fn retries_under_a_fault_cost_what_retries_cost() {
    let server = Server::start(|_, _| ok("well"));
    let world = world_of(&server, |route| route.guards.budget.floor_per_s = 0.1);
    put(&world, Fault::abort(503), ALL);
    for _ in 0..30 {
        assert_eq!(world.get("/").status, 503);
    }
    assert!(world.route(0).retries_refused_total > 0, "{:?}", world.route(0));
    assert_eq!(server.count(), 0);
}

/// Two nodes, one seed, the same requests in the same order: the same ones are touched.
#[test]
fn a_seed_can_be_played_again() {
    let server = Server::start(|_, _| ok("well"));
    let run = || {
        let world = world_of(&server, |route| route.guards.retry.attempts_max = 1);
        let half = seawall_core::units::Ratio::of(1, 2).unwrap();
        let order = Order { seed: Some(7), ..order("r", Fault::abort(500), Portion::Share(half)) };
        world.faults.place(order).unwrap();
        let mut client = world.client();
        (0..40).map(|_| client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status).collect::<Vec<_>>()
    };
    let first = run();
    assert_eq!(first, run());
    let aborted = first.iter().filter(|status| **status == 500).count();
    assert!((8..=32).contains(&aborted), "{aborted} of 40");
}
