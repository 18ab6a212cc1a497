//! Faults on answers, and which requests meet a fault: what the upstream gets, what the guards make of it, what the
//! client sees.

use std::time::{Duration, Instant};

use seawall_core::fault::book::{
    AbortWhen, Flap, Kind as Fault, Moment, Order, Portion, RetryAfter, Scope, Spread, Timing,
};
use seawall_core::id::RouteId;
use seawall_core::journal::Kind;
use seawall_core::policy::{Endpoint, Fallback, Listener, Route};
use seawall_core::units::Ratio;

use crate::calls::{ALL, order, put, touched, world_of};
use crate::h2::{Wire, request};
use crate::world::{Do, Server, World, answer, breaker, ok, policy, post, route, spooling, upstream, wait_until};

const LENGTH: usize = 100_000;

/// Answers `/long` with a long body that is passed on as it comes, anything else with a short one.
fn server() -> Server {
    Server::start(|seen, _| if seen.line().contains("/long") { ok(&long()) } else { ok("0123456789") })
}

fn long() -> String {
    (0..LENGTH).map(|place| char::from(b'a' + (place % 23) as u8)).collect()
}

fn once(route: &mut Route) {
    route.guards.retry.attempts_max = 1;
    route.guards.try_timeout = Duration::from_millis(400);
}

fn percent(share: u64) -> Ratio {
    Ratio::of(share, 100).unwrap()
}

fn late(of: Moment, millis: u64) -> Fault {
    Fault::Latency { of, delay: Duration::from_millis(millis), jitter: Duration::ZERO, spread: Spread::Even }
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
}

/// Head and body of whatever comes until the connection ends.
fn broken_off(world: &World, target: &str) -> (String, String) {
    let told = world.client().send(&get(target)).rest();
    let (head, body) = told.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {told}"));
    (head.to_owned(), body.to_owned())
}

#[test]
fn a_late_head_is_late_and_a_late_body_has_a_head_before_it() {
    let server = server();
    let world = world_of(&server, |_| {});
    for (of, target) in [(Moment::Head, "/"), (Moment::Head, "/long"), (Moment::Body, "/"), (Moment::Body, "/long")] {
        let id = put(&world, late(of, 120), ALL);
        let begin = Instant::now();
        let mut client = world.client();
        assert_eq!(client.send(&get(target)).line().as_deref(), Some("HTTP/1.1 200 OK"));
        let head_took = begin.elapsed();
        let is_late = head_took >= Duration::from_millis(120);
        // A short answer is read whole before anything of it goes on.
        assert_eq!(is_late, of == Moment::Head || target == "/", "{of:?} {target}: {head_took:?}");
        let begin = Instant::now();
        let whole = world.get(target);
        assert!(whole.body == if target == "/" { "0123456789".into() } else { long() }, "{of:?} {target}");
        assert!(begin.elapsed() >= Duration::from_millis(120), "{of:?} {target}");
        assert_eq!(whole.must("seawall-fault"), id.to_string());
        world.faults.remove(id).unwrap();
    }
    assert_eq!(server.count(), 8, "the upstream has done each of them");
}

/// The time of a try runs to the head of its answer, and to the end of a short one.
#[test]
fn a_head_that_comes_too_late_is_a_timeout_of_something_done() {
    let server = server();
    let world = world_of(&server, once);
    put(&world, late(Moment::Head, 60_000), Portion::First(1));
    let answer = world.get("/");
    assert_eq!((answer.status, server.count()), (504, 1));
    assert!(answer.must("proxy-status").contains("http_response_timeout"), "{}", answer.head);
}

#[test]
fn a_slow_body_takes_its_time_and_is_whole() {
    let server = server();
    let world = world_of(&server, once);
    let id = put(&world, Fault::Bandwidth { bytes_per_second: 200_000 }, ALL);
    let begin = Instant::now();
    assert!(world.get("/long").body == long());
    assert!(begin.elapsed() >= Duration::from_millis(450), "{:?}", begin.elapsed());
    world.faults.remove(id).unwrap();
    put(&world, Fault::Bandwidth { bytes_per_second: 10 }, ALL);
    assert_eq!(world.get("/").status, 504, "a short one is read whole, and that takes a second");
}

/// Whoever waits in the middle of a body is let go with the fault.
#[test]
fn a_body_that_waits_for_a_fault_goes_on_when_it_is_taken_away() {
    let server = server();
    let world = world_of(&server, |_| {});
    let id = put(&world, Fault::Bandwidth { bytes_per_second: 1_000 }, Portion::First(1));
    let mut client = world.client();
    client.send(&get("/long"));
    while client.line().is_some_and(|line| !line.is_empty()) {}
    world.faults.remove(id).unwrap();
    let begin = Instant::now();
    let mut rest = vec![0; LENGTH];
    let read = std::io::Read::read(&mut client.stream, &mut rest).unwrap();
    assert!(read > 0);
    std::io::Read::read_exact(&mut client.stream, &mut rest[read..]).unwrap_or_default();
    assert!(begin.elapsed() < Duration::from_secs(10), "at that rate it would be a hundred seconds");
}

#[test]
fn half_an_answer_that_says_it_is_whole_is_believed() {
    let server = server();
    let world = world_of(&server, |route| {
        once(route);
        route.guards.breaker = Some(breaker());
    });
    let id = put(&world, Fault::Short, ALL);
    for (target, whole) in [("/", "0123456789".to_owned()), ("/long", long())] {
        let half = world.get(target);
        assert_eq!((half.status, half.body.len()), (200, whole.len() / 2), "{target}");
        assert!(whole.starts_with(&half.body) && half.must("content-length") == half.body.len().to_string());
        assert_eq!(half.must("seawall-fault"), id.to_string());
    }
    assert_eq!(world.route(0).failures_total, 0, "nobody can tell");
    world.faults.remove(id).unwrap();
    assert_eq!(world.get("/").body, "0123456789");
}

/// Without a length the half is the first byte, and the end looks like one.
#[test]
fn a_body_of_unknown_length_is_short_by_all_but_a_byte() {
    let server = Server::playing(vec![Do::Send(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n3\r\nfgh\r\n0\r\n\r\n".to_vec(),
    )]);
    let world = world_of(&server, once);
    put(&world, Fault::Short, Portion::First(1));
    assert_eq!(world.get("/").body, "a");
    assert_eq!(world.get("/").body, "abcdefgh");
}

#[test]
fn an_answer_that_says_it_is_longer_never_ends() {
    let server = server();
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[server.address])]);
    once(&mut policy.routes[0]);
    policy.limits.body_idle_timeout = Duration::from_millis(300);
    let world = World::new(policy);
    put(&world, Fault::Long, ALL);
    assert_eq!(world.get("/").status, 504, "read whole, it runs into the timeout of the try");
    let begin = Instant::now();
    let (head, body) = broken_off(&world, "/long");
    assert!(head.contains(&format!("content-length: {}", 2 * LENGTH)), "{head}");
    assert!(body == long(), "all there is");
    assert!(begin.elapsed() >= Duration::from_millis(300), "and then silence until nobody waits any more");
    wait_until("it is counted as cut", || world.route(0).cut_total == 1);
}

#[test]
fn an_answer_that_says_it_is_longer_is_cut_when_its_fault_is_gone() {
    let server = server();
    let world = world_of(&server, |_| {});
    let id = put(&world, Fault::Long, Portion::First(2));
    let mut client = world.client();
    client.send(&get("/long"));
    while client.line().is_some_and(|line| !line.is_empty()) {}
    world.faults.remove(id).unwrap();
    assert!(client.rest() == long(), "its connection ends before what it has announced");
}

#[test]
fn corrupted_bytes_are_as_many_as_were_sent_and_the_same_again_for_a_seed() {
    let server = server();
    let corrupted = || {
        let world = world_of(&server, once);
        put(&world, Fault::Corrupt { share: percent(1) }, ALL);
        let bodies = ["/long", "/", "/long"].map(|target| {
            let mut client = world.client();
            client.send(&get(target));
            let mut head = Vec::new();
            while let Some(line) = client.line().filter(|line| !line.is_empty()) {
                head.push(line);
            }
            let length = if target == "/" { 10 } else { LENGTH };
            assert!(head.iter().any(|line| *line == format!("content-length: {length}")), "{head:?}");
            drop(client.stream.shutdown(std::net::Shutdown::Write));
            client.rest().into_bytes()
        });
        let others = bodies[0].iter().zip(long().bytes()).filter(|(got, sent)| **got != *sent).count();
        assert!(others > 0);
        bodies
    };
    let first = corrupted();
    assert_eq!(first, corrupted());
    assert_ne!(first[0], first[2], "each answer has its own");
}

#[test]
fn a_head_that_cannot_be_read_is_judged_as_an_upstreams() {
    let server = server();
    let world = world_of(&server, |route| {
        once(route);
        route.guards.breaker = Some(breaker());
    });
    let id = put(&world, Fault::GarbledHead, ALL);
    for _ in 0..4 {
        let answer = world.get("/");
        assert_eq!((answer.status, answer.must("seawall-fault")), (502, id.to_string()), "{}", answer.head);
        assert!(answer.must("proxy-status").contains("http_protocol_error"), "{}", answer.head);
    }
    assert_eq!((server.count(), world.get("/").status), (4, 503), "done each time, and then the breaker is open");
    let (opened, placed) = (&world.entries(Kind::BreakerOpened)[0], &world.entries(Kind::FaultPlaced)[0]);
    assert_eq!(opened.cause, Some(placed.seq));
}

#[test]
fn a_long_head_passes_or_fails_by_our_own_limits() {
    let server = server();
    let world = world_of(&server, once);
    let id = put(&world, Fault::HugeHead { bytes: 20_000 }, ALL);
    let answer = world.get("/long");
    assert_eq!((answer.status, answer.must("x-padding").len()), (200, 20_000));
    assert!(answer.body == long());
    world.faults.remove(id).unwrap();
    put(&world, Fault::HugeHead { bytes: 1 << 20 }, ALL);
    let answer = world.get("/");
    assert_eq!(answer.status, 502);
    assert!(answer.must("proxy-status").contains("http_protocol_error"), "{}", answer.head);
}

#[test]
fn a_duplicate_comes_twice_and_is_answered_once() {
    let server = Server::start(|seen, number| ok(&format!("{number} {}", seen.body.len())));
    let world = world_of(&server, |_| {});
    let id = put(&world, Fault::Duplicate, Portion::First(1));
    let mut client = world.client();
    let answer = client.ask(&post("/", "", "12345"));
    assert_eq!((answer.body.as_str(), answer.must("seawall-fault")), ("1 5", id.to_string()));
    assert_eq!(client.ask(&get("/")).body, "2 0", "and the connection is where it should be");
    let seen = server.seen();
    assert_eq!((seen.len(), &seen[0].body, &seen[0].head), (3, &seen[1].body, &seen[1].head));
    assert_eq!(touched(&world, id), (1, 1));
}

/// The upstream does what it does with two of the same, and the account knows of one record.
#[test]
fn a_duplicated_write_has_its_key_twice() {
    let server = Server::start(|_, _| ok("done"));
    let world = World::new(policy(vec![spooling("r", 0)], vec![upstream("u", &[server.address])]));
    put(&world, Fault::Duplicate, Portion::First(1));
    assert_eq!(world.post("/", "", "x").status, 200);
    let keys: Vec<_> = server.seen().iter().map(|seen| seen.header("idempotency-key").unwrap()).collect();
    assert!(keys.len() == 2 && keys[0] == keys[1], "{keys:?}");
    assert_eq!(world.fates(), [seawall_gateway::Fate::Accepted]);
}

/// A changed answer is neither kept for who asks with the same key, nor for a bad day.
#[test]
fn a_damaged_answer_is_not_remembered() {
    let server = server();
    let mut policy = policy(
        vec![spooling("r", 0), crate::world::on_path(route("s", 0), "/stale")],
        vec![upstream("u", &[server.address])],
    );
    policy.routes.reverse();
    policy.routes[0].fallbacks = vec![Fallback::Stale { for_at_most: Duration::from_secs(60) }];
    let world = World::new(policy);
    for (name, kind) in [("r", Fault::Short), ("s", Fault::Corrupt { share: percent(100) })] {
        world.faults.place(order(name, kind, Portion::First(1))).unwrap();
    }
    let write = post("/", "Idempotency-Key: \"k\"\r\n", "x");
    assert_eq!(world.client().ask(&write).body, "01234");
    let again = world.client().ask(&write);
    assert_eq!((again.body.as_str(), again.header("idempotency-replayed")), ("0123456789", None));
    assert!(world.fates().iter().all(|fate| *fate == seawall_gateway::Fate::Accepted), "{:?}", world.fates());
    assert_ne!(world.get("/stale").body, "0123456789");
    world.faults.place(order("s", Fault::Refuse, Portion::First(9))).unwrap();
    assert_eq!(world.get("/stale").status, 502, "there is nothing to fall back on");
}

#[test]
fn an_abort_says_when_to_come_back_and_may_lie() {
    let server = server();
    let world = world_of(&server, once);
    let day = Duration::from_secs(86_400);
    for (retry, told) in
        [(RetryAfter::Seconds(7), "7"), (RetryAfter::Ahead(day), "GMT"), (RetryAfter::Ago(366 * day), "GMT")]
    {
        let id = put(&world, Fault::Abort { status: 503, retry: Some(retry) }, ALL);
        let answer = world.get("/");
        assert!(answer.status == 503 && answer.must("retry-after").ends_with(told), "{}", answer.head);
        world.faults.remove(id).unwrap();
    }
}

/// What is told far ahead is not waited for: the client's time would be over.
#[test]
fn retries_judge_a_lying_date_as_an_upstreams() {
    let server = server();
    let world = world_of(&server, |route| {
        route.guards.retry.attempts_max = 2;
        route.guards.timeout = Duration::from_secs(5);
    });
    let abort = |retry| Fault::Abort { status: 503, retry: Some(retry) };
    let day = Duration::from_secs(86_400);
    let id = put(&world, abort(RetryAfter::Ahead(day)), Portion::First(1));
    let begin = Instant::now();
    assert_eq!((world.get("/").status, world.route(0).retries_total), (503, 0));
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    world.faults.remove(id).unwrap();
    put(&world, abort(RetryAfter::Ago(day)), Portion::First(1));
    assert_eq!((world.get("/").status, world.route(0).retries_total), (200, 1), "a date that has passed is no wait");
}

#[test]
fn a_call_of_grpc_fails_in_its_own_words() {
    let server = server();
    let world = world_of(&server, |route| {
        once(route);
        route.guards.breaker = Some(breaker());
    });
    let id = put(&world, Fault::Grpc { code: 14 }, ALL);
    assert_eq!(world.get("/").status, 200, "nothing else is touched");
    let wire = Wire::new(world.address);
    let call = || {
        let request = request("POST", "/svc/m").header("content-type", "application/grpc").header("te", "trailers");
        wire.ask(request.body(()).unwrap(), b"").unwrap()
    };
    let heard = call();
    assert_eq!((heard.status, heard.headers["grpc-status"].as_bytes()), (200, &b"14"[..]));
    assert_eq!((heard.headers["seawall-fault"].to_str().unwrap(), heard.body.len()), (id.to_string().as_str(), 0));
    (0..3).for_each(|_| drop(call()));
    wait_until("the breaker takes it for what it says", || world.entries(Kind::BreakerOpened).len() == 1);
    assert_eq!(server.count(), 1);
}

#[test]
fn a_fault_that_flaps_is_there_and_away_and_lets_go_of_who_hangs() {
    let server = server();
    let world = world_of(&server, |_| {});
    let flap = Some(Flap { on: Duration::from_millis(300), off: Duration::from_secs(60) });
    let timing = Timing { flap, ..Timing::default() };
    world.faults.place(Order { timing, ..order("r", Fault::Hang, ALL) }).unwrap();
    let begin = Instant::now();
    let hung = world.get("/");
    assert!(hung.status == 200 && hung.header("seawall-fault").is_some(), "{}", hung.head);
    assert!(begin.elapsed() >= Duration::from_millis(250), "{:?}", begin.elapsed());
    assert_eq!(world.get("/").header("seawall-fault"), None, "it is off for a minute");
    assert_eq!(world.entries(Kind::FaultPlaced)[0].fields["timing"], "300ms on, 1m off");
}

#[test]
fn a_fault_may_begin_later_and_be_over_before_its_lease() {
    let server = server();
    let world = world_of(&server, once);
    let (after, lasts) = (Duration::from_millis(200), Some(Duration::from_millis(200)));
    let timing = Timing { after, lasts, flap: None };
    world.faults.place(Order { timing, ..order("r", Fault::abort(500), ALL) }).unwrap();
    assert_eq!(world.get("/").status, 200);
    wait_until("it begins", || world.get("/").status == 500);
    wait_until("it is over", || world.get("/").status == 200);
    assert_eq!(world.faults.look().standing.len(), 1, "and lies there still");
}

/// Two listeners, and two endpoints that differ, of which one gets all there is.
#[test]
fn only_who_comes_that_way_is_touched() {
    let servers = [Server::start(|_, _| ok("one")), Server::start(|_, _| ok("two"))];
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[servers[0].address, servers[1].address])]);
    once(&mut policy.routes[0]);
    let second: std::net::SocketAddr = "127.0.0.2:0".parse().unwrap();
    policy.listeners.push(Listener::new(second, vec![RouteId(0)]));
    for (endpoint, name) in policy.upstreams[0].endpoints.iter_mut().zip(["one", "two"]) {
        let (zone, version) = (Some(format!("zone-{name}")), Some(name.into()));
        *endpoint = Endpoint { zone, version, weight: u32::from(name == "one"), ..endpoint.clone() };
    }
    let world = World::new(policy);
    let listeners = world.addresses();
    let scoped = |change: &dyn Fn(&mut Scope)| {
        let mut order = order("r", Fault::abort(500), ALL);
        change(&mut order.scope);
        world.faults.place(order).unwrap().fault.id
    };
    let statuses = |listener: usize| {
        let mut client = crate::world::Client::new(listeners[listener]);
        let answers: Vec<_> = (0..24).map(|_| client.ask(&get("/"))).collect();
        answers.iter().filter(|answer| answer.status == 500).count()
    };
    let id = scoped(&|scope| scope.listener = Some(second));
    assert_eq!((statuses(0), statuses(1)), (0, 24));
    world.faults.remove(id).unwrap();
    // Whoever calls `127.0.0.2` comes from `127.0.0.1` all the same.
    for (block, aborted) in [("127.0.0.0/8", 24), ("10.0.0.0/8", 0)] {
        let id = scoped(&|scope| scope.source = block.parse().ok());
        assert_eq!(statuses(0), aborted, "{block}");
        world.faults.remove(id).unwrap();
    }
    let addresses = servers.each_ref().map(|server| server.address.to_string());
    for (place, aborted) in [(0, 24), (1, 0)] {
        let name = ["one", "two"][place];
        for change in [
            &(|scope: &mut Scope| scope.version = Some(name.into())) as &dyn Fn(&mut Scope),
            &|scope| scope.zone = Some(format!("zone-{name}")),
            &|scope| scope.endpoint = Some(addresses[place].clone()),
        ] {
            let id = scoped(change);
            assert_eq!(statuses(0), aborted, "{name}");
            world.faults.remove(id).unwrap();
        }
    }
    let id = scoped(&|scope| scope.path = Some("/other".into()));
    assert_eq!(statuses(0), 0);
    assert_eq!(world.get("/other?x=y").status, 500, "a query is no part of a path");
    world.faults.remove(id).unwrap();
}

#[test]
fn a_share_of_connections_is_theirs_from_first_to_last() {
    let server = server();
    let world = world_of(&server, once);
    put(&world, Fault::abort(500), Portion::Connections(percent(50)));
    let mut fates = Vec::new();
    for _ in 0..30 {
        let mut client = world.client();
        let statuses: Vec<u16> = (0..3).map(|_| client.ask(&get("/")).status).collect();
        assert!(statuses.windows(2).all(|pair| pair[0] == pair[1]), "{statuses:?}");
        fates.push(statuses[0]);
    }
    let aborted = fates.iter().filter(|status| **status == 500).count();
    assert!((5..=25).contains(&aborted), "{aborted} of 30");
}

/// Whoever breaks more than was meant is stopped, and it is told why.
#[test]
fn a_fault_that_does_too_much_ends_by_itself() {
    let server = server();
    let world = world_of(&server, once);
    let when = AbortWhen { failed_max: percent(30), over: Duration::from_secs(60), requests_min: 10 };
    let careful = |kind| Order { abort_when: Some(when), ..order("r", kind, ALL) };
    let id = world.faults.place(careful(Fault::abort(500))).unwrap().fault.id;
    wait_until("it is enough", || world.get("/").status == 200);
    assert!(world.faults.look().standing.is_empty());
    let ended = world.entries(Kind::FaultEnded).remove(0);
    assert_eq!((ended.subject.as_str(), ended.fields["why"].as_str()), (format!("fault:{id}").as_str(), "aborted"));
    let because = ended.fields["because"].clone();
    assert!(because.contains("of route r failed within 1m"), "{because}");
    // What others make good is no harm.
    let mut helped = route("r", 0);
    helped.fallbacks = vec![Fallback::Upstream(seawall_core::id::UpstreamId(1))];
    helped.guards.retry.attempts_max = 1;
    let stand_in = Server::start(|_, _| ok("instead"));
    let two = vec![upstream("u", &[server.address]), upstream("v", &[stand_in.address])];
    let world = World::new(policy(vec![helped], two));
    world.faults.place(careful(Fault::Refuse)).unwrap();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(400) {
        assert_eq!(world.get("/").body, "instead");
    }
    assert_eq!(world.faults.look().standing.len(), 1);
}

/// What waits in the spool comes from nobody's connection.
#[test]
fn deliveries_have_no_client() {
    let server = Server::playing(vec![answer("503 No", "", ""), ok("done")]);
    let mut route = spooling("r", 0);
    route.guards.retry.attempts_max = 1;
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    let mut hang = order("r", Fault::Hang, Portion::First(9));
    hang.scope.source = "127.0.0.0/8".parse().ok();
    let timing = Timing { after: Duration::from_secs(1), ..Timing::default() };
    hang.timing = timing;
    let id = world.faults.place(hang).unwrap().fault.id;
    assert_eq!(world.post("/", "", "x").status, 202);
    wait_until("it is delivered", || server.count() >= 2);
    assert_eq!(touched(&world, id), (0, 0));
}
