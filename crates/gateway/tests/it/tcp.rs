//! Connections whose bytes nobody reads: guarded while they come about, carried until they end.

use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use seawall_core::guard::bulkhead::BulkheadConfig;
use seawall_core::guard::health::{Ask, HealthConfig};
use seawall_core::guard::outlier::OutlierConfig;
use seawall_core::guard::rate::RateConfig;
use seawall_core::guard::retry::RetryConfig;
use seawall_core::journal::Kind;
use seawall_core::policy::{Policy, Protocol, Route};

use crate::world::{PATIENCE, World, breaker, policy, route, upstream, wait_until};

/// A route of connections to the first upstream. Nothing is tried twice.
fn tcp() -> Route {
    let mut route = Route { protocol: Protocol::Tcp, ..route("r", 0) };
    route.guards.retry = RetryConfig::off();
    route
}

fn world(endpoints: &[SocketAddr], tune: impl FnOnce(&mut Policy)) -> World {
    let mut policy = policy(vec![tcp()], vec![upstream("u", endpoints)]);
    tune(&mut policy);
    World::new(policy)
}

/// An upstream that does what the test does.
pub struct Far(TcpListener);

impl Far {
    pub fn new() -> Self {
        Self(TcpListener::bind(("127.0.0.1", 0)).unwrap())
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub fn accept(&self) -> TcpStream {
        patient(self.0.accept().unwrap().0)
    }
}

/// Where nobody listens.
pub fn nobody() -> SocketAddr {
    Far::new().address()
}

pub fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn call(world: &World) -> TcpStream {
    patient(TcpStream::connect(world.address).unwrap())
}

pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

pub fn read(stream: &mut TcpStream, bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    stream.read_exact(&mut buffer).unwrap();
    String::from_utf8(buffer).unwrap()
}

pub fn rest(stream: &mut TcpStream) -> Result<String, ErrorKind> {
    let mut text = String::new();
    let kind = |error: Error| error.kind();
    stream.read_to_string(&mut text).map_err(kind).map(|_| text)
}

pub fn is_reset(stream: &mut TcpStream) -> bool {
    rest(stream) == Err(ErrorKind::ConnectionReset)
}

pub fn named(counts: &[(&'static str, u64)], name: &str) -> u64 {
    counts.iter().find(|(known, _)| *known == name).unwrap().1
}

fn ended(world: &World, how: &str) -> u64 {
    named(&world.route(0).connections.ended, how)
}

fn refused(world: &World, rule: &str) -> u64 {
    named(&world.route(0).refused, rule)
}

fn failed(world: &World, kind: &str) -> u64 {
    named(&world.route(0).failures, kind)
}

fn breaker_is(world: &World, state: &str) {
    wait_until(state, || world.route(0).breaker.state == state);
}

#[test]
fn an_end_is_passed_on_and_the_other_side_may_still_speak() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (mut client, mut server) = (call(&world), far.accept());
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut server).unwrap(), "question");
    server.write_all(b"answer").unwrap();
    drop(server);
    assert_eq!(rest(&mut client).unwrap(), "answer");

    let (mut client, mut server) = (call(&world), far.accept());
    server.write_all(b"welcome").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client).unwrap(), "welcome");
    client.write_all(b"thanks").unwrap();
    drop(client);
    assert_eq!(rest(&mut server).unwrap(), "thanks");

    wait_until("both are over", || ended(&world, "done") == 2);
    let route = world.route(0);
    let seen = &route.connections;
    assert_eq!((seen.opened_total, seen.open), (2, 0));
    assert_eq!((seen.bytes_up_total, seen.bytes_down_total), (14, 13));
    assert_eq!((seen.duration_counts.iter().sum::<u64>(), route.latency_counts.iter().sum::<u64>()), (2, 2));
    assert_eq!((route.in_flight, route.requests_total, route.failures_total), (0, 0, 0));
    let endpoint = &(world.view)().upstreams[0].endpoints[0];
    assert_eq!((endpoint.in_flight, endpoint.connections), (0, 0));
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (mut client, mut server) = (call(&world), far.accept());
    client.write_all(b"x").unwrap();
    read(&mut server, 1);
    reset(client);
    assert!(is_reset(&mut server));
    let (mut client, mut server) = (call(&world), far.accept());
    server.write_all(b"y").unwrap();
    read(&mut client, 1);
    reset(server);
    assert!(is_reset(&mut client));
    wait_until("both are counted", || ended(&world, "client_reset") == 1 && ended(&world, "upstream_reset") == 1);
}

/// Nobody reads from somebody who has ended: whether it is still there must be asked.
#[test]
fn a_reset_after_an_end_is_noticed_without_a_byte() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (mut client, mut server) = (call(&world), far.accept());
    client.write_all(b"x").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut server).unwrap(), "x");
    reset(client);
    let byte = server.read(&mut [0]);
    assert!(matches!(byte, Ok(0)), "the end stays the end: {byte:?}");
    wait_until("it is noticed", || ended(&world, "client_reset") == 1);
    wait_until("the upstream hears of it", || server.write(b"y").is_err());
}

/// The last word of an upstream that closes while the client still speaks reaches the client.
#[test]
fn the_last_word_arrives_although_nobody_listens_any_more() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (mut client, mut server) = (call(&world), far.accept());
    client.write_all(b"AB").unwrap();
    read(&mut server, 1);
    server.write_all(b"-ERR too many").unwrap();
    // One byte was never read: the kernel resets.
    drop(server);
    assert_eq!(read(&mut client, 13), "-ERR too many");
    let after = client.read(&mut [0]);
    assert!(after.is_err(), "{after:?}");
    wait_until("it is counted", || ended(&world, "upstream_reset") == 1);
    assert_eq!(world.route(0).failures_total, 0, "it had answered");
}

/// An upstream that has gone after its last word takes nothing more: whoever still speaks is told by a reset.
#[test]
fn speaking_to_somebody_who_has_gone_ends_in_a_reset() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (mut client, mut server) = (call(&world), far.accept());
    server.write_all(b"bye").unwrap();
    drop(server);
    assert_eq!(rest(&mut client).unwrap(), "bye");
    wait_until("it is told", || client.write_all(&[0; 1_000]).is_err());
    wait_until("it is counted", || ended(&world, "upstream_reset") == 1);
    assert_eq!(world.route(0).connections.open, 0);
}

#[test]
fn an_upstream_that_refuses_is_tried_again_and_then_the_client_is_reset() {
    let world = world(&[nobody()], |policy| {
        policy.routes[0].guards.retry = route("r", 0).guards.retry;
    });
    assert!(is_reset(&mut call(&world)));
    wait_until("it is counted", || ended(&world, "failed") == 1);
    assert_eq!((failed(&world, "connect_refused"), world.route(0).retries_total), (3, 2));
    let entry = world.entries(Kind::CallsFailing).remove(0);
    assert_eq!((entry.subject.as_str(), entry.fields["reason"].as_str()), ("route:r", "connection refused"));
}

#[test]
fn another_endpoint_is_tried() {
    let far = Far::new();
    let world = world(&[nobody(), far.address()], |policy| policy.routes[0].guards.retry.attempts_max = 2);
    for _ in 0..10 {
        let (mut client, mut server) = (call(&world), far.accept());
        server.write_all(b"here").unwrap();
        assert_eq!(read(&mut client, 4), "here");
    }
    let route = world.route(0);
    assert!(route.failures_total > 0, "two choices by chance, ten times");
    assert_eq!(route.failures_total, route.retries_total);
}

#[test]
fn retries_that_the_budget_does_not_afford_are_not_made() {
    let world = world(&[nobody()], |policy| {
        let guards = &mut policy.routes[0].guards;
        (guards.retry, guards.budget.floor_per_s) = (route("r", 0).guards.retry, 0.0);
    });
    assert!(is_reset(&mut call(&world)));
    wait_until("it is counted", || ended(&world, "failed") == 1);
    assert_eq!((refused(&world, "budget"), world.route(0).retries_total), (1, 0));
}

#[test]
fn the_breaker_opens_and_refuses_and_closes_again() {
    let address = nobody();
    let world = world(&[address], |policy| policy.routes[0].guards.breaker = Some(breaker()));
    for n in 1..=4 {
        assert!(is_reset(&mut call(&world)));
        wait_until("it is counted", || ended(&world, "failed") == n);
    }
    assert!(is_reset(&mut call(&world)));
    wait_until("the breaker refuses", || refused(&world, "breaker") == 1);
    assert_eq!((ended(&world, "refused"), failed(&world, "connect_refused")), (1, 4));
    let opened = world.entries(Kind::BreakerOpened).remove(0);
    assert_eq!((opened.subject.as_str(), opened.fields["failed"].as_str()), ("route:r", "4"));
    let far = Far(TcpListener::bind(address).unwrap());
    let echo = thread::spawn(move || {
        let mut server = far.accept();
        server.write_all(b"well again").unwrap();
        far
    });
    wait_until("a probe comes through", || rest(&mut call(&world)).is_ok_and(|text| text == "well again"));
    drop(echo.join().unwrap());
    breaker_is(&world, "closed");
}

/// What stands in front of a dead server often takes the call and hangs up.
#[test]
fn hung_up_without_a_word_is_a_failure() {
    let far = Far::new();
    let world = world(&[far.address()], |policy| policy.routes[0].guards.breaker = Some(breaker()));
    let mut client = call(&world);
    drop(far.accept());
    assert_eq!(rest(&mut client).unwrap(), "", "an end is passed on as an end");
    let mut client = call(&world);
    reset(far.accept());
    assert!(is_reset(&mut client));
    wait_until("both have failed", || failed(&world, "connection_lost") == 2);
    drop(client);
    let entry = world.entries(Kind::CallsFailing).remove(0);
    assert_eq!(entry.fields["reason"], "connection lost");
    for _ in 0..2 {
        let mut client = call(&world);
        reset(far.accept());
        assert!(is_reset(&mut client));
    }
    breaker_is(&world, "open");
}

/// Who only listens has taken the call all the same, and who is silent for a second too.
#[test]
fn silence_is_no_failure() {
    let far = Far::new();
    let world = world(&[far.address()], |policy| {
        policy.routes[0].guards.breaker = Some(breaker());
    });
    for _ in 0..3 {
        let (mut client, mut server) = (call(&world), far.accept());
        client.write_all(b"log line").unwrap();
        drop(client);
        assert_eq!(rest(&mut server).unwrap(), "log line");
    }
    wait_until("they are over", || ended(&world, "done") == 3);
    let (_client, _server) = (call(&world), far.accept());
    wait_until("the breaker has heard of all four", || world.route(0).breaker.failure_rate == Some(0.0));
    assert_eq!((world.route(0).connections.open, world.route(0).in_flight), (1, 1));
}

#[test]
fn a_connection_that_says_nothing_for_too_long_is_cut() {
    let far = Far::new();
    let idle = Duration::from_millis(700);
    let world = world(&[far.address()], |policy| policy.routes[0].guards.idle_timeout = Some(idle));
    let (mut client, mut server) = (call(&world), far.accept());
    let begin = Instant::now();
    while begin.elapsed() < idle * 2 {
        server.write_all(b"tick").unwrap();
        assert_eq!(read(&mut client, 4), "tick");
    }
    assert_eq!(ended(&world, "idle"), 0, "it lives on by what one side says");
    assert!(is_reset(&mut client) && is_reset(&mut server));
    wait_until("it is counted", || ended(&world, "idle") == 1);
}

#[test]
fn connections_have_places_and_wait_for_them() {
    let far = Far::new();
    let one = BulkheadConfig { calls_max: 1, waiting_max: 1, wait_max: PATIENCE, ..BulkheadConfig::default() };
    let world = world(&[far.address()], |policy| policy.routes[0].guards.bulkhead = one);
    let (first, _server) = (call(&world), far.accept());
    let mut second = call(&world);
    wait_until("the second waits", || world.route(0).waiting == 1);
    assert!(is_reset(&mut call(&world)), "one waits already");
    assert_eq!(refused(&world, "bulkhead"), 1);
    drop(first);
    drop(_server);
    let mut server = far.accept();
    server.write_all(b"served").unwrap();
    assert_eq!(read(&mut second, 6), "served");
    let third = call(&world);
    wait_until("the third waits", || world.route(0).waiting == 1);
    reset(third);
    wait_until("who has gone does not wait", || world.route(0).waiting == 0);
    assert_eq!(ended(&world, "left"), 1);
    assert!(world.entries(Kind::CallsFailing)[0].fields["reason"].starts_with("1 calls are on their way already"));
}

#[test]
fn limits_of_the_node_and_the_upstream_hold() {
    let far = Far::new();
    let world = world(&[far.address()], |policy| {
        (policy.limits.connections_max, policy.upstreams[0].connections_max) = (2, 1);
    });
    let (first, _server) = (call(&world), far.accept());
    assert!(is_reset(&mut call(&world)), "the upstream takes one");
    wait_until("it is over", || (world.view)().connections == 1);
    let told = &world.entries(Kind::CallsFailing)[0].fields["reason"];
    assert_eq!(told, "the limit `connections of the upstream` of 1 is reached");
    drop((first, _server));
    wait_until("it is free", || (world.view)().connections == 0);
    let (_first, _server) = (call(&world), far.accept());
    let limit = || (world.view)().limits.into_iter().find(|limit| limit.name == "connections").unwrap().reached_total;
    wait_until("two hold all there are", || {
        let kept: Vec<TcpStream> = (0..3).map(|_| call(&world)).collect();
        let told = limit() > 0;
        drop(kept);
        told
    });
    assert!(refused(&world, "limit") > 1);
}

#[test]
fn a_full_endpoint_gives_way_to_one_with_room() {
    let (one, two) = (Far::new(), Far::new());
    let world = world(&[one.address(), two.address()], |policy| policy.upstreams[0].connections_max = 1);
    let kept = [call(&world), call(&world)];
    let servers = [one.accept(), two.accept()];
    assert!(is_reset(&mut call(&world)), "both are full");
    assert_eq!(refused(&world, "limit"), 1);
    drop((kept, servers));
}

#[test]
fn a_rate_is_kept() {
    let far = Far::new();
    let one = RateConfig { cells: 1, per: Duration::from_secs(3_600), burst: 1 };
    let world = world(&[far.address()], |policy| policy.routes[0].guards.rate = Some(one));
    let (_client, _server) = (call(&world), far.accept());
    assert!(is_reset(&mut call(&world)));
    assert_eq!(refused(&world, "rate"), 1);
}

/// Its queue is full: the kernel lets who comes wait.
#[test]
fn an_upstream_that_does_not_take_the_call_in_time_is_a_failure() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let _queue: Vec<_> = (0..2).map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(200))).collect();
    let world = world(&[address], |policy| policy.upstreams[0].connect_timeout = Duration::from_millis(50));
    assert!(is_reset(&mut call(&world)));
    wait_until("it is counted", || failed(&world, "connect_timeout") == 1);
}

#[test]
fn health_is_whether_a_connection_comes_about() {
    let (address, well) = (nobody(), Far::new());
    let world = world(&[address, well.address()], |policy| {
        let every = Duration::from_millis(20);
        policy.upstreams[0].health = Some(HealthConfig {
            ask: Ask::Connection,
            every,
            unhealthy_after: 2,
            healthy_after: 1,
            ..HealthConfig::default()
        });
    });
    let healthy = |place: usize| (world.view)().upstreams[0].endpoints[place].healthy;
    wait_until("the dead one is out", || !healthy(0));
    assert!(healthy(1));
    let entry = world.entries(Kind::EndpointUnhealthy).remove(0);
    assert_eq!(entry.fields["reason"], "connection refused");
    let _far = TcpListener::bind(address).unwrap();
    wait_until("it is back", || healthy(0));
    drop(well);
}

#[test]
fn no_healthy_endpoint_is_a_refusal() {
    let world = world(&[nobody()], |policy| {
        let every = Duration::from_millis(20);
        policy.upstreams[0].health =
            Some(HealthConfig { ask: Ask::Connection, every, unhealthy_after: 1, ..HealthConfig::default() });
    });
    wait_until("the only one is out", || !(world.view)().upstreams[0].endpoints[0].healthy);
    assert!(is_reset(&mut call(&world)));
    assert_eq!((refused(&world, "health"), failed(&world, "connect_refused")), (1, 0));
}

#[test]
fn an_endpoint_that_does_not_take_calls_is_ejected() {
    let far = Far::new();
    let world = world(&[nobody(), far.address()], |policy| {
        policy.routes[0].guards.retry.attempts_max = 2;
        policy.upstreams[0].outlier = Some(OutlierConfig { consecutive_failures: 2, ..OutlierConfig::default() });
    });
    wait_until("it is ejected", || {
        let (mut client, mut server) = (call(&world), far.accept());
        server.write_all(b"x").unwrap();
        read(&mut client, 1);
        (world.view)().upstreams[0].endpoints[0].ejected
    });
}

/// Bytes by which a lost, doubled or swapped piece would show.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u32 / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// Each side writes all it has while the other reads little at a time.
#[test]
fn much_goes_both_ways_at_once_and_arrives_whole() {
    const BYTES: usize = 24 << 20;
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (client, server) = (call(&world), far.accept());
    let speak = |stream: &TcpStream| {
        let mut stream = stream.try_clone().unwrap();
        thread::spawn(move || {
            stream.write_all(&pattern(BYTES)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        })
    };
    let hear = |mut stream: TcpStream| {
        thread::spawn(move || {
            let (mut seen, mut some) = (Vec::new(), vec![0; 9_973]);
            while let read @ 1.. = stream.read(&mut some).unwrap() {
                seen.extend_from_slice(&some[..read]);
                thread::yield_now();
            }
            seen == pattern(BYTES)
        })
    };
    let speakers = [speak(&client), speak(&server)];
    let hearers = [hear(client), hear(server)];
    speakers.into_iter().for_each(|speaker| speaker.join().unwrap());
    assert_eq!(hearers.map(|hearer| hearer.join().unwrap()), [true, true]);
    wait_until("it is over", || ended(&world, "done") == 1);
    let seen = world.route(0).connections;
    assert_eq!((seen.bytes_up_total, seen.bytes_down_total), (BYTES as u64, BYTES as u64));
}

#[test]
fn a_stop_lets_connections_end() {
    let far = Far::new();
    let mut world = world(&[far.address()], |policy| policy.limits.grace = PATIENCE);
    let (mut client, mut server) = (call(&world), far.accept());
    let address = world.address;
    let ends = thread::spawn(move || {
        wait_until("nobody is taken on any more", || TcpStream::connect(address).is_err());
        client.write_all(b"still here").unwrap();
        assert_eq!(read(&mut server, 10), "still here");
    });
    assert_eq!(world.stop(false), 0);
    ends.join().unwrap();
}

#[test]
fn a_stop_cuts_what_has_not_ended_when_its_grace_is_over() {
    let far = Far::new();
    let mut world = world(&[far.address()], |policy| policy.limits.grace = Duration::from_millis(50));
    let (mut client, mut server) = (call(&world), far.accept());
    wait_until("it stands", || world.route(0).in_flight == 1);
    assert_eq!(world.stop(false), 1);
    assert!(is_reset(&mut client) && is_reset(&mut server));
    assert_eq!((ended(&world, "cut"), world.route(0).connections.open), (1, 0));
}

#[test]
fn a_stop_cuts_who_still_waits() {
    let far = Far::new();
    let one = BulkheadConfig { calls_max: 1, waiting_max: 1, wait_max: PATIENCE, ..BulkheadConfig::default() };
    let mut world = world(&[far.address()], |policy| policy.routes[0].guards.bulkhead = one);
    let (_first, _server) = (call(&world), far.accept());
    let mut second = call(&world);
    wait_until("the second waits", || world.route(0).waiting == 1);
    assert_eq!(world.stop(true), 2);
    assert!(is_reset(&mut second));
    assert_eq!(ended(&world, "cut"), 2);
}

#[test]
fn a_connection_is_a_request_to_whoever_tells_of_traffic() {
    let far = Far::new();
    let mut world = world(&[far.address()], |_| {});
    for _ in 0..3 {
        let (mut client, mut server) = (call(&world), far.accept());
        server.write_all(b"x").unwrap();
        read(&mut client, 1);
    }
    wait_until("they are over", || ended(&world, "done") == 3);
    world.stop(true);
    let told = world.entries(Kind::TrafficChanged).remove(0);
    assert_eq!((told.subject.as_str(), told.fields["calls"].as_str()), ("route:r", "3"));
    assert!(told.fields["per_second"].parse::<f64>().unwrap() > 0.0, "{told:?}");
}
