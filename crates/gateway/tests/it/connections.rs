//! Faults on connections: before they come about, on those that are new and on those that stand; and zones that are cut
//! off.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use seawall_core::fault::Effect;
use seawall_core::fault::book::{Flap, Id, Kind as Fault, Order, Portion, Scope, Timing, Way};
use seawall_core::guard::health::{Ask, HealthConfig};
use seawall_core::guard::retry::RetryConfig;
use seawall_core::journal::Kind;
use seawall_core::policy::{Endpoint, Mirror, Policy, Protocol, Route};
use seawall_core::units::Ratio;

use crate::calls::{ALL, order, put, touched};
use crate::tcp::{Far, is_reset, named, patient, read, rest};
use crate::world::{Server, World, breaker, ok, policy, route, upstream, wait_until};

const PAUSE: Duration = Duration::from_millis(80);

/// A route of connections. Nothing is tried twice, and nobody waits long for a connection.
fn world(endpoints: &[SocketAddr], tune: impl FnOnce(&mut Policy)) -> World {
    let mut route = Route { protocol: Protocol::Tcp, ..route("r", 0) };
    route.guards.retry = RetryConfig::off();
    route.guards.breaker = Some(breaker());
    let mut policy = policy(vec![route], vec![upstream("u", endpoints)]);
    policy.upstreams[0].connect_timeout = Duration::from_millis(200);
    tune(&mut policy);
    World::new(policy)
}

fn call(world: &World) -> TcpStream {
    patient(TcpStream::connect(world.address).unwrap())
}

/// A client and the upstream it is joined to.
fn joined(world: &World, far: &Far) -> (TcpStream, TcpStream) {
    (call(world), far.accept())
}

fn bytes(way: Way, effect: Effect) -> Fault {
    Fault::Bytes { way, effect }
}

fn latency(delay: Duration) -> Effect {
    Effect::Latency { delay_ms: delay.as_millis() as i64, jitter: Duration::ZERO }
}

fn percent(share: u64) -> Ratio {
    Ratio::of(share, 100).unwrap()
}

fn ended(world: &World, how: &str) -> u64 {
    named(&world.route(0).connections.ended, how)
}

/// How long it takes until the other side has what one says.
fn took(from: &mut TcpStream, to: &mut TcpStream) -> Duration {
    let begin = Instant::now();
    from.write_all(b"word").unwrap();
    assert_eq!(read(to, 4), "word");
    begin.elapsed()
}

#[test]
fn a_connection_can_be_refused_and_the_guards_are_told_so() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let id = put(&world, Fault::Refuse, ALL);
    for _ in 0..4 {
        assert!(is_reset(&mut call(&world)));
    }
    assert_eq!((named(&world.route(0).failures, "connect_refused"), touched(&world, id)), (4, (4, 4)));
    assert_eq!((world.route(0).faulted_total, ended(&world, "failed")), (4, 4));
    let (opened, placed) = (&world.entries(Kind::BreakerOpened)[0], &world.entries(Kind::FaultPlaced)[0]);
    assert_eq!((opened.cause, placed.fields["scope"].as_str()), (Some(placed.seq), "route r"));
}

#[test]
fn a_connection_that_hangs_times_out_and_another_endpoint_takes_it() {
    let (near, far) = (Far::new(), Far::new());
    let world = world(&[near.address(), far.address()], |policy| {
        policy.routes[0].guards.retry = RetryConfig { attempts_max: 2, ..RetryConfig::default() };
        policy.upstreams[0].endpoints[1].priority = 1;
    });
    let mut hang = order("r", Fault::Hang, ALL);
    hang.scope.endpoint = Some(near.address().to_string());
    let id = world.faults.place(hang).unwrap().fault.id;
    let begin = Instant::now();
    let (mut client, mut server) = joined(&world, &far);
    assert!(begin.elapsed() >= Duration::from_millis(190), "{:?}", begin.elapsed());
    took(&mut client, &mut server);
    assert_eq!((named(&world.route(0).failures, "connect_timeout"), world.route(0).retries_total), (1, 1));
    assert_eq!(touched(&world, id), (1, 1));
    // Taken away, it lets go of who waits for it.
    world.faults.remove(id).unwrap();
    let mut hang = order("r", Fault::Hang, Portion::First(1));
    hang.scope.endpoint = Some(near.address().to_string());
    let id = world.faults.place(hang).unwrap().fault.id;
    let client = call(&world);
    wait_until("it hangs", || touched(&world, id).0 == 1);
    world.faults.remove(id).unwrap();
    let mut near = near.accept();
    drop(client);
    assert_eq!(rest(&mut near).unwrap(), "");
}

#[test]
fn bytes_of_new_and_of_standing_connections_are_late() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (mut old_client, mut old_server) = joined(&world, &far);
    took(&mut old_client, &mut old_server);
    let id = put(&world, bytes(Way::Both, latency(PAUSE)), ALL);
    wait_until("the one that stands has been found", || touched(&world, id).0 == 1);
    let (mut client, mut server) = joined(&world, &far);
    for (from, to) in [(&mut old_client, &mut old_server), (&mut client, &mut server)] {
        assert!(took(from, to) >= PAUSE && took(to, from) >= PAUSE);
    }
    assert_eq!((touched(&world, id), world.route(0).faulted_total), ((2, 2), 2));
    let begin = Instant::now();
    client.write_all(b"late").unwrap();
    world.faults.remove(id).unwrap();
    assert_eq!(read(&mut server, 4), "late", "what is held goes on when it is taken away");
    assert!(begin.elapsed() < Duration::from_secs(5));
    old_client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut old_server).unwrap(), "", "an end is passed on as an end");
    old_server.write_all(b"answer").unwrap();
    drop(old_server);
    assert_eq!(rest(&mut old_client).unwrap(), "answer");
    wait_until("it has ended well", || ended(&world, "done") == 1);
    let snapshot = world.route(0).connections;
    assert!(snapshot.bytes_up_total >= 12 && snapshot.bytes_down_total >= 14, "{snapshot:?}");
}

/// A fault that comes while the buckets are full takes over what is in them.
#[test]
fn a_transfer_that_is_under_way_goes_on_through_a_fault_and_loses_nothing() {
    const LENGTH: usize = 24 << 20;
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (mut client, mut server) = joined(&world, &far);
    let whole: Vec<u8> = (0..LENGTH).map(|place| (place % 251) as u8).collect();
    let sent = whole.clone();
    let sender = thread::spawn(move || {
        server.write_all(&sent).unwrap();
        server
    });
    let mut got = vec![0; 1 << 20];
    client.read_exact(&mut got).unwrap();
    for pause in [1, 2, 3] {
        let id = put(&world, bytes(Way::Down, latency(Duration::from_millis(pause))), ALL);
        wait_until("it is found", || touched(&world, id).0 == 1);
        let mut more = vec![0; 2 << 20];
        client.read_exact(&mut more).unwrap();
        got.extend_from_slice(&more);
        world.faults.remove(id).unwrap();
    }
    drop(sender);
    let mut more = vec![0; LENGTH - got.len()];
    client.read_exact(&mut more).unwrap();
    got.extend_from_slice(&more);
    assert!(got == whole);
}

#[test]
fn bytes_come_no_faster_than_they_may() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    put(&world, bytes(Way::Up, Effect::Bandwidth { bytes_per_second: 200_000 }), ALL);
    let (mut client, mut server) = joined(&world, &far);
    let begin = Instant::now();
    let sender = thread::spawn(move || client.write_all(&[7; 100_000]));
    assert_eq!(read(&mut server, 100_000).len(), 100_000);
    assert!(begin.elapsed() >= Duration::from_millis(450), "{:?}", begin.elapsed());
    sender.join().unwrap().unwrap();
}

#[test]
fn a_reset_is_the_upstreams_to_the_guards_also_on_a_connection_that_stands() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (mut client, mut server) = joined(&world, &far);
    let id = put(&world, bytes(Way::Down, Effect::ResetPeer { after: Duration::ZERO }), ALL);
    wait_until("it is found", || touched(&world, id).0 == 1);
    server.write_all(b"lost").unwrap();
    assert!(is_reset(&mut client));
    wait_until("it counts as one", || ended(&world, "upstream_reset") == 1);
    let (mut client, _server) = joined(&world, &far);
    client.write_all(b"x").unwrap();
    assert!(world.route(0).connections.bytes_down_total == 0);
}

#[test]
fn a_black_hole_swallows_and_closes_when_it_is_over() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (mut client, mut server) = joined(&world, &far);
    took(&mut client, &mut server);
    let id = put(&world, bytes(Way::Up, Effect::Timeout { after: None }), ALL);
    wait_until("it is found", || touched(&world, id).0 == 1);
    client.write_all(b"lost").unwrap();
    assert!(took(&mut server, &mut client) < Duration::from_secs(10), "the other way is open");
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(matches!(server.read(&mut [0; 4]), Err(error) if error.kind() == ErrorKind::WouldBlock));
    world.faults.remove(id).unwrap();
    let server = &mut patient(server);
    assert_eq!(rest(server).unwrap(), "", "nobody reads on after a hole");
    assert_eq!(rest(&mut client).unwrap(), "");
}

#[test]
fn a_black_hole_is_silence_to_who_waits_for_words() {
    let far = Far::new();
    let world = world(&[far.address()], |policy| {
        policy.routes[0].guards.idle_timeout = Some(Duration::from_millis(300));
    });
    put(&world, bytes(Way::Both, Effect::Timeout { after: None }), ALL);
    let (mut client, _server) = joined(&world, &far);
    client.write_all(b"lost").unwrap();
    assert!(is_reset(&mut client));
    wait_until("it counts as one", || ended(&world, "idle") == 1);
}

/// Each way in turn: who listens there reads the end, may go on talking, and is heard; who talks there is not held up.
#[test]
fn a_half_closed_connection_goes_on_the_other_way() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    for way in [Way::Down, Way::Up] {
        let (mut client, mut server) = joined(&world, &far);
        took(&mut client, &mut server);
        took(&mut server, &mut client);
        let id = put(&world, bytes(way, Effect::HalfClose { after: Duration::ZERO }), ALL);
        let (mut listener, mut talker) = if way == Way::Down { (client, server) } else { (server, client) };
        assert_eq!(rest(&mut listener).unwrap(), "", "{way:?}");
        // More than any socket holds: nobody listens, and somebody reads.
        talker.write_all(&vec![7; 16 << 20]).unwrap();
        took(&mut listener, &mut talker);
        world.faults.remove(id).unwrap();
        talker.write_all(b"unheard").unwrap();
        took(&mut listener, &mut talker);
        let before = ended(&world, "done");
        drop(listener);
        assert_eq!(rest(&mut talker).unwrap(), "");
        wait_until("it has ended well", || ended(&world, "done") == before + 1);
    }
}

#[test]
fn who_breaks_off_a_half_closed_connection_ends_it() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let half_close = bytes(Way::Down, Effect::HalfClose { after: PAUSE });
    let begin = Instant::now();
    put(&world, half_close, ALL);
    let (mut client, server) = joined(&world, &far);
    assert_eq!(rest(&mut client).unwrap(), "");
    assert!(begin.elapsed() >= PAUSE, "{:?}", begin.elapsed());
    socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    wait_until("it counts as the upstream's", || ended(&world, "upstream_reset") == 1);
    let mut byte = [0];
    wait_until("the client is told", || client.write_all(b"x").is_err());
    assert!(!matches!(client.read(&mut byte), Ok(1..)));
}

#[test]
fn connections_on_which_faults_lie_end_with_the_node() {
    let far = Far::new();
    let mut world = world(&[far.address()], |_| {});
    let (mut client, mut server) = joined(&world, &far);
    let id = put(&world, bytes(Way::Both, latency(PAUSE)), ALL);
    wait_until("it is found", || touched(&world, id).0 == 1);
    took(&mut client, &mut server);
    assert_eq!(world.stop(true), 1);
    assert!(is_reset(&mut client));
}

#[test]
fn every_other_harm_to_bytes() {
    let far = Far::new();
    let with = |way, effect| {
        let world = world(&[far.address()], |_| {});
        let id = put(&world, bytes(way, effect), ALL);
        let pair = joined(&world, &far);
        wait_until("it is found", || touched(&world, id).0 == 1);
        (world, pair)
    };

    let (world, (mut client, mut server)) = with(Way::Down, Effect::LimitData { bytes: 3 });
    server.write_all(b"12345").unwrap();
    assert_eq!(rest(&mut client).unwrap(), "123");
    drop(world);

    let (world, (mut client, server)) = with(Way::Down, Effect::SlowClose { delay: PAUSE });
    let begin = Instant::now();
    drop(server);
    assert_eq!(rest(&mut client).unwrap(), "");
    assert!(begin.elapsed() >= PAUSE, "{:?}", begin.elapsed());
    drop(world);

    let slicer = Effect::Slicer { average: 2, variation: 0, delay: Duration::from_millis(20) };
    let (world, (mut client, mut server)) = with(Way::Up, slicer);
    let begin = Instant::now();
    client.write_all(b"12345678").unwrap();
    assert_eq!(read(&mut server, 8), "12345678");
    assert!(begin.elapsed() >= Duration::from_millis(50), "{:?}", begin.elapsed());
    drop(world);

    let (world, (mut client, mut server)) = with(Way::Up, Effect::Corrupt { share: percent(100) });
    client.write_all(&[7; 1_000]).unwrap();
    let mut got = [0; 1_000];
    server.read_exact(&mut got).unwrap();
    assert!(got.iter().all(|byte| *byte != 7));
    drop(world);

    let (world, (mut client, mut server)) = with(Way::Up, Effect::Loss { share: percent(100) });
    client.write_all(b"lost").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut server).unwrap(), "");
    drop(world);
}

/// What is in the way only for some time lets bytes pass before and after, and when its lease is over.
#[test]
fn bytes_are_harmed_for_as_long_as_the_fault_is_on() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (mut client, mut server) = joined(&world, &far);
    let flap = Some(Flap { on: Duration::from_secs(60), off: Duration::from_secs(60) });
    let timing = Timing { after: Duration::from_millis(300), lasts: None, flap };
    let late = Order {
        timing,
        ttl: Some(Duration::from_millis(900)),
        ..order("r", bytes(Way::Up, latency(Duration::from_secs(30))), ALL)
    };
    let begin = Instant::now();
    let id = world.faults.place(late).unwrap().fault.id;
    took(&mut client, &mut server);
    assert!(begin.elapsed() < Duration::from_millis(300) || touched(&world, id).0 == 1);
    wait_until("it begins", || touched(&world, id).0 == 1);
    client.write_all(b"held").unwrap();
    assert_eq!(read(&mut server, 4), "held");
    let passed = begin.elapsed();
    assert!(passed >= Duration::from_millis(890) && passed < Duration::from_secs(20), "{passed:?}");
}

/// Where both sockets are always ready nobody ever waits: what lies there ends all the same.
#[test]
fn a_fault_on_a_connection_that_never_rests_ends_with_its_lease_and_with_the_kill_switch() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let (mut client, mut server) = joined(&world, &far);
    let sender = thread::spawn(move || {
        let zeros = vec![0; 1 << 20];
        while server.write_all(&zeros).is_ok() {}
    });
    let mut got = vec![0; 1 << 20];
    let mut is_harmed = || {
        client.read_exact(&mut got).unwrap();
        got.iter().any(|byte| *byte != 0)
    };
    let corrupt = order("r", bytes(Way::Down, Effect::Corrupt { share: percent(10) }), ALL);
    let brief = Order { ttl: Some(Duration::from_millis(300)), ..corrupt.clone() };
    let begin = Instant::now();
    world.faults.place(brief).unwrap();
    while !is_harmed() {}
    while is_harmed() {
        assert!(begin.elapsed() < Duration::from_secs(10), "its lease is over");
    }
    world.faults.place(corrupt).unwrap();
    while !is_harmed() {}
    let begin = Instant::now();
    world.faults.kill("enough");
    while is_harmed() {
        assert!(begin.elapsed() < Duration::from_secs(10), "it was killed");
    }
    drop(client);
    sender.join().unwrap();
}

#[test]
fn only_some_connections_and_only_those_of_the_route() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let id = put(&world, bytes(Way::Up, Effect::Corrupt { share: percent(100) }), Portion::First(1));
    let first = joined(&world, &far);
    // Which is the first is chosen when its upstream has taken it.
    wait_until("it is chosen", || touched(&world, id).0 == 1);
    let whole = [first, joined(&world, &far)].map(|(mut client, mut server)| {
        client.write_all(b"word").unwrap();
        let mut got = [0; 4];
        server.read_exact(&mut got).unwrap();
        got == *b"word"
    });
    assert_eq!((whole, touched(&world, id)), ([false, true], (1, 1)));
    let refused = world.faults.place(order("r", Fault::Cut, ALL)).unwrap_err();
    assert_eq!(refused.field(), Some("kind"), "{refused}");
}

#[test]
fn a_standing_connection_keeps_its_fault_under_another_policy() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    let id = put(&world, bytes(Way::Up, latency(PAUSE)), ALL);
    let (mut client, mut server) = joined(&world, &far);
    assert!(took(&mut client, &mut server) >= PAUSE);
    let mut route = Route { protocol: Protocol::Tcp, ..route("r", 0) };
    route.guards.retry = RetryConfig::off();
    world.change(policy(vec![route], vec![upstream("u", &[far.address()])]));
    assert!(took(&mut client, &mut server) >= PAUSE);
    assert_eq!(touched(&world, id), (1, 1));
}

/// Two endpoints, one in the node's zone and one elsewhere; the one elsewhere is asked first.
pub fn zones(here: SocketAddr, there: SocketAddr, tune: impl FnOnce(&mut Policy)) -> World {
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[here, there])]);
    policy.routes[0].guards.retry.attempts_max = 1;
    policy.routes[0].guards.try_timeout = Duration::from_millis(300);
    let upstream = &mut policy.upstreams[0];
    upstream.connect_timeout = Duration::from_millis(200);
    for (endpoint, (zone, priority)) in upstream.endpoints.iter_mut().zip([("here", 1), ("there", 0)]) {
        *endpoint = Endpoint { zone: Some(zone.into()), priority, ..endpoint.clone() };
    }
    tune(&mut policy);
    World::new(policy)
}

pub fn cut(world: &World, way: Way) -> Id {
    let scope = Scope { zone: Some("there".into()), ..Scope::default() };
    world.faults.place(Order { scope, ..order("r", Fault::ZoneCut { way }, ALL) }).unwrap().fault.id
}

#[test]
fn nothing_comes_to_a_zone_that_is_cut_off() {
    let (here, there) = (Server::start(|_, _| ok("here")), Server::start(|_, _| ok("there")));
    let world = zones(here.address, there.address, |_| {});
    assert_eq!(world.get("/").body, "there");
    for way in [Way::Up, Way::Both] {
        let id = cut(&world, way);
        let begin = Instant::now();
        let answer = world.get("/");
        assert_eq!((answer.status, answer.must("seawall-fault")), (504, id.to_string()), "{}", answer.head);
        assert!(answer.must("proxy-status").contains("connection_timeout"), "{}", answer.head);
        assert!(begin.elapsed() >= Duration::from_millis(190), "{:?}", begin.elapsed());
        world.faults.remove(id).unwrap();
    }
    assert_eq!((there.count(), world.get("/").body.as_str()), (1, "there"));
}

#[test]
fn what_a_zone_does_that_cannot_answer_is_done_and_nobody_knows() {
    let (here, there) = (Server::start(|_, _| ok("here")), Server::start(|_, _| ok("there")));
    let world = zones(here.address, there.address, |_| {});
    let id = cut(&world, Way::Down);
    let answer = world.get("/");
    assert_eq!((answer.status, there.count()), (504, 1), "{}", answer.head);
    assert!(answer.must("proxy-status").contains("http_response_timeout"), "{}", answer.head);
    world.faults.remove(id).unwrap();
    assert_eq!(world.get("/").body, "there");
}

/// Whoever is retried goes where it can be done, and checks find out what a zone's end does to it.
#[test]
fn a_zone_that_is_cut_off_is_ill_and_well_again() {
    let (here, there) = (Server::start(|_, _| ok("here")), Server::start(|_, _| ok("there")));
    let world = zones(here.address, there.address, |policy| {
        policy.upstreams[0].health = Some(HealthConfig {
            every: Duration::from_millis(50),
            timeout: Duration::from_millis(100),
            ask: Ask::Path("/health".into()),
            ..HealthConfig::default()
        });
    });
    let healthy = |address: SocketAddr| {
        let endpoints = (world.view)().upstreams.remove(0).endpoints;
        endpoints.into_iter().find(|endpoint| endpoint.address == address.to_string()).unwrap().healthy
    };
    for way in Way::ALL {
        let id = cut(&world, way);
        wait_until("the zone is found ill", || !healthy(there.address));
        assert!(healthy(here.address));
        assert_eq!(world.get("/").body, "here");
        world.faults.remove(id).unwrap();
        wait_until("and well again", || healthy(there.address));
    }
    let unhealthy = &world.entries(Kind::EndpointUnhealthy)[0];
    assert_eq!(unhealthy.fields["reason"], "no answer in time");
}

#[test]
fn copies_do_not_come_to_a_zone_that_is_cut_off() {
    let (here, there) = (Server::start(|_, _| ok("here")), Server::start(|_, _| ok("there")));
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[here.address]), upstream("m", &[there.address])]);
    policy.upstreams[1].endpoints[0].zone = Some("there".into());
    policy.routes[0].placement.mirror = Some(Mirror {
        to: seawall_core::id::UpstreamId(1),
        share: Ratio::ONE,
        timeout: Duration::from_millis(200),
        writes: false,
    });
    let world = World::new(policy);
    let id = cut(&world, Way::Up);
    assert_eq!(world.get("/").body, "here");
    wait_until("the copy has been given up", || named(&world.route(0).mirrored, "timed_out") == 1);
    assert_eq!(there.count(), 0);
    world.faults.remove(id).unwrap();
    assert_eq!(world.get("/").body, "here");
    wait_until("the next one comes", || there.count() == 1);
}

#[test]
fn connections_into_a_zone_that_is_cut_off_are_silent() {
    let (here, there) = (Far::new(), Far::new());
    let world = zones(here.address(), there.address(), |policy| policy.routes[0].protocol = Protocol::Tcp);
    let (mut client, mut server) = joined(&world, &there);
    took(&mut client, &mut server);
    let id = cut(&world, Way::Down);
    wait_until("it is found", || touched(&world, id).0 == 1);
    assert!(took(&mut client, &mut server) < Duration::from_secs(10));
    server.write_all(b"lost").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(matches!(client.read(&mut [0; 4]), Err(error) if error.kind() == ErrorKind::WouldBlock));
    world.faults.remove(id).unwrap();
    let id = cut(&world, Way::Both);
    assert!(is_reset(&mut call(&world)), "no new one comes about");
    assert_eq!(named(&world.route(0).failures, "connect_timeout"), 1);
    world.faults.remove(id).unwrap();
}

#[test]
fn a_fault_that_is_handed_over_is_told_and_nobody_can_place_another() {
    let far = Far::new();
    let world = world(&[far.address()], |_| {});
    put(&world, bytes(Way::Up, latency(Duration::from_secs(30))), ALL);
    let (mut client, mut server) = joined(&world, &far);
    client.write_all(b"held").unwrap();
    world.faults.hand_over();
    assert_eq!(read(&mut server, 4), "held");
    let ended = &world.entries(Kind::FaultEnded)[0];
    assert_eq!(ended.fields["why"].as_str(), "handed_over");
    assert!(world.entries(Kind::FaultsKilled).is_empty());
    let refused = world.faults.place(order("r", Fault::Refuse, ALL)).unwrap_err();
    assert!(refused.to_string().contains("another process takes"), "{refused}");
}
