//! Requests that ask their connection to become something else.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use seawall_core::fault::Effect;
use seawall_core::fault::book::{Kind as Fault, Order, Scope, Way};
use seawall_core::guard::bulkhead::BulkheadConfig;
use seawall_core::id::UpstreamId;
use seawall_core::policy::{Fallback, Policy, Route};

use crate::calls::{ALL, order};
use crate::tcp::{Far, is_reset, named, nobody, patient, read, reset, rest};
use crate::world::{
    Client, PATIENCE, Server, World, breaker, header, ok, on_path, policy, route, upstream, wait_until,
};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
    Sec-WebSocket-Key: k\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
    sec-websocket-accept: a\r\n\r\n";

pub fn allowing(route: Route) -> Route {
    Route { upgrades: vec!["websocket".into()], ..route }
}

fn world(far: &Far, tune: impl FnOnce(&mut Policy)) -> World {
    let mut policy = policy(vec![allowing(route("r", 0))], vec![upstream("u", &[far.address()])]);
    tune(&mut policy);
    World::new(policy)
}

fn call(world: &World) -> TcpStream {
    patient(TcpStream::connect(world.address).unwrap())
}

/// A head, to its empty line and no further.
pub fn head(stream: &mut TcpStream) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head += &read(stream, 1);
    }
    head
}

/// Both sides of a connection that has been switched.
fn switched(world: &World, far: &Far) -> [TcpStream; 2] {
    let mut client = call(world);
    client.write_all(ASK.as_bytes()).unwrap();
    let mut server = far.accept();
    head(&mut server);
    server.write_all(AGREE.as_bytes()).unwrap();
    assert!(head(&mut client).starts_with("HTTP/1.1 101 "));
    [client, server]
}

#[test]
fn a_connection_is_put_through_with_what_was_said_too_early() {
    let far = Far::new();
    let world = world(&far, |_| {});
    let mut client = call(&world);
    client.write_all(format!("{ASK}early").as_bytes()).unwrap();
    let mut server = far.accept();
    let asked = head(&mut server);
    let of = |head: &str, name: &str| header(head, name).unwrap_or_default();
    assert_eq!((of(&asked, "connection").as_str(), of(&asked, "upgrade").as_str()), ("upgrade", "WebSocket"));
    assert_eq!(of(&asked, "sec-websocket-key"), "k");
    client.write_all(b" and more").unwrap();
    server.write_all(format!("{AGREE}soon").as_bytes()).unwrap();
    let answer = head(&mut client);
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert_eq!((of(&answer, "connection").as_str(), of(&answer, "upgrade").as_str()), ("upgrade", "WebSocket"));
    assert_eq!((of(&answer, "sec-websocket-accept").as_str(), header(&answer, "content-length")), ("a", None));
    assert_eq!((read(&mut client, 4), read(&mut server, 14)), ("soon".into(), "early and more".into()));
    for n in 0..100 {
        let word = format!("word {n:03}");
        // A frame in two pieces.
        client.write_all(&word.as_bytes()[..3]).unwrap();
        client.write_all(&word.as_bytes()[3..]).unwrap();
        assert_eq!(read(&mut server, 8), word);
        server.write_all(word.as_bytes()).unwrap();
        assert_eq!(read(&mut client, 8), word);
    }
    let seen = world.route(0);
    assert_eq!((seen.answers[0], seen.connections.open, seen.in_flight), (1, 1, 1));
    let pending = (world.view)().limits.into_iter().find(|limit| limit.name == "pending").unwrap();
    assert_eq!((pending.used, (world.view)().connections), (Some(0), 1), "it is a connection, and no request any more");
    assert_eq!((world.view)().upstreams[0].endpoints[0].connections, 1);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut server).unwrap(), "");
    server.write_all(b"bye").unwrap();
    drop(server);
    assert_eq!(rest(&mut client).unwrap(), "bye");
    wait_until("all is given back", || (world.view)().connections == 0);
    let seen = world.route(0);
    assert_eq!((seen.connections.open, seen.in_flight, named(&seen.connections.ended, "done")), (0, 0, 1));
    assert_eq!((seen.connections.bytes_up_total, seen.connections.bytes_down_total), (814, 807));
    assert_eq!((world.view)().upstreams[0].endpoints[0].connections, 0);
    assert_eq!((seen.failures_total, seen.cancelled_total), (0, 0));
}

#[test]
fn faults_lie_on_the_bytes_of_what_was_put_through() {
    let far = Far::new();
    let world = world(&far, |_| {});
    let hole = |path_prefix: &str| {
        let kind = Fault::Bytes { way: Way::Down, effect: Effect::Timeout { after: None } };
        let scope = Scope { path_prefix: Some(path_prefix.into()), ..order("r", kind, ALL).scope };
        world.faults.place(Order { scope, ..order("r", kind, ALL) }).unwrap().fault.id
    };
    let elsewhere = hole("/other");
    let [mut client, mut server] = switched(&world, &far);
    server.write_all(b"before").unwrap();
    assert_eq!((read(&mut client, 6).as_str(), world.route(0).faulted_total), ("before", 0));
    // It stands already.
    let id = hole("/cha");
    wait_until("it is found", || world.route(0).faulted_total == 1);
    server.write_all(b"lost").unwrap();
    client.write_all(b"up").unwrap();
    assert_eq!(read(&mut server, 2), "up", "one way only");
    [id, elsewhere].into_iter().for_each(|id| drop(world.faults.remove(id).unwrap()));
    assert_eq!(rest(&mut client).unwrap(), "", "nobody reads on after a hole");
    drop(server);
    wait_until("all is given back", || (world.view)().connections == 0);

    // One that comes about under a fault.
    let late = Fault::Bytes { way: Way::Down, effect: Effect::ResetPeer { after: Duration::ZERO } };
    let id = world.faults.place(order("r", late, ALL)).unwrap().fault.id;
    let [mut client, mut server] = switched(&world, &far);
    server.write_all(b"word").unwrap();
    assert!(is_reset(&mut client));
    assert_eq!(world.faults.remove(id).unwrap().requests, 1);

    let half_close = Fault::Bytes { way: Way::Down, effect: Effect::HalfClose { after: Duration::ZERO } };
    let id = world.faults.place(order("r", half_close, ALL)).unwrap().fault.id;
    let [mut client, mut server] = switched(&world, &far);
    assert_eq!(rest(&mut client).unwrap(), "");
    client.write_all(b"goes on").unwrap();
    assert_eq!(read(&mut server, 7), "goes on");
    assert_eq!(world.faults.remove(id).unwrap().requests, 1);
}

/// What follows a request that is answered as any other are requests.
#[test]
fn any_other_answer_is_an_ordinary_one() {
    for allowed in [true, false] {
        let server = Server::start(|seen, _| ok(&format!("{} {}", seen.line(), seen.header("upgrade").is_some())));
        let mut only = route("r", 0);
        only.upgrades = if allowed { vec!["websocket".into()] } else { Vec::new() };
        let world = World::new(policy(vec![only], vec![upstream("u", &[server.address])]));
        let mut client = world.client();
        client.send(&format!("{ASK}GET /next HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(client.next().unwrap().body, format!("GET /chat HTTP/1.1 {allowed}"));
        assert_eq!(client.next().unwrap().body, "GET /next HTTP/1.1 false");
        assert_eq!(client.ask(ASK).body, format!("GET /chat HTTP/1.1 {allowed}"));
        assert_eq!(client.ask("GET /last HTTP/1.1\r\nHost: h\r\n\r\n").body, "GET /last HTTP/1.1 false");
        assert_eq!(world.route(0).connections.opened_total, 0);
    }
}

/// Answers of ours too: the connection goes on.
#[test]
fn who_is_refused_may_ask_for_something_else() {
    let server = Server::start(|_, _| ok("x"));
    let known = allowing(on_path(route("r", 0), "/known"));
    let world = World::new(policy(vec![known], vec![upstream("u", &[server.address])]));
    let mut client = world.client();
    assert_eq!(client.ask(ASK).status, 404);
    assert_eq!(client.ask("GET /known HTTP/1.1\r\nHost: h\r\n\r\n").status, 200);
}

#[test]
fn a_switch_that_nobody_asked_for_is_no_answer() {
    let far = Far::new();
    let world = world(&far, |policy| policy.routes[0].guards.retry.attempts_max = 1);
    let to = |upgrade: &str, connection: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}{connection}\r\n");
    let agreed = (ASK, "Upgrade: websocket\r\n", "Connection: upgrade\r\n");
    for (ask, upgrade, connection) in [
        ("GET /chat HTTP/1.1\r\nHost: h\r\n\r\n", agreed.1, agreed.2),
        ("GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n", agreed.1, agreed.2),
        (ASK, "Upgrade: h2c\r\n", agreed.2),
        (ASK, "", agreed.2),
        (ASK, "Upgrade: websocket\r\nUpgrade: other\r\n", agreed.2),
        (ASK, agreed.1, ""),
    ] {
        let mut client = Client::new(world.address);
        client.send(ask);
        let mut server = far.accept();
        head(&mut server);
        server.write_all(to(upgrade, connection).as_bytes()).unwrap();
        let answer = client.next().unwrap();
        assert_eq!(answer.status, 502, "{ask}{upgrade}{connection}");
        assert!(answer.must("proxy-status").contains("http_protocol_error"), "{answer:?}");
    }
    assert_eq!(named(&world.route(0).failures, "protocol"), 6);
}

#[test]
fn what_two_readers_might_take_apart_differently_is_not_passed_on() {
    let server = Server::start(|seen, _| ok(&format!("{}{}", seen.line(), seen.header("upgrade").is_some())));
    let world = World::new(policy(vec![allowing(route("r", 0))], vec![upstream("u", &[server.address])]));
    let ask = |method: &str, headers: &str, body: &str| {
        world.client().ask(&format!("{method} / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\n{headers}\r\n{body}"))
    };
    for (headers, body) in [
        ("Upgrade: websocket\r\nContent-Length: 3\r\n", "abc"),
        ("Upgrade: websocket\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ] {
        for method in ["GET", "POST"] {
            let refused = ask(method, headers, body);
            assert_eq!(refused.status, 400, "{method} {headers}");
            assert!(refused.body.contains("asks for an upgrade has no body"), "{refused:?}");
        }
    }
    assert_eq!((world.view)().rejected.iter().find(|(reason, _)| *reason == "upgrade_body").unwrap().1, 4);
    for headers in [
        "Upgrade: h2c\r\nHTTP2-Settings: x\r\n",
        "Upgrade: H2C\r\nContent-Length: 0\r\n",
        "Upgrade: websocket, h2c\r\n",
        "Upgrade: websocket\r\nUpgrade: h2c\r\n",
        "Upgrade: HTTP/3.0\r\n",
        "Upgrade: TLS/1.0\r\n",
        "Upgrade: other\r\n",
    ] {
        assert_eq!(ask("GET", headers, "").body, "GET / HTTP/1.1false", "{headers}");
    }
    assert_eq!(ask("POST", "Upgrade: websocket\r\nContent-Length: 0\r\n", "").body, "POST / HTTP/1.1false");
    let with_body = ask("POST", "Upgrade: h2c\r\nContent-Length: 2\r\n", "ab");
    assert_eq!((with_body.status, with_body.body.as_str()), (200, "POST / HTTP/1.1false"));
}

#[test]
fn guards_stand_before_the_switch() {
    let world = World::new({
        let mut policy = policy(vec![allowing(route("r", 0))], vec![upstream("u", &[nobody()])]);
        policy.routes[0].guards.breaker = Some(breaker());
        policy
    });
    let mut client = world.client();
    wait_until("the breaker refuses", || client.ask(ASK).body.contains("the breaker is open"));
    let refused = client.ask(ASK);
    assert_eq!((refused.status, refused.header("upgrade")), (503, None));
    assert!(refused.must("proxy-status").contains("destination_unavailable"));
}

#[test]
fn a_switched_connection_keeps_its_place() {
    let far = Far::new();
    let one = BulkheadConfig { calls_max: 1, waiting_max: 0, ..BulkheadConfig::default() };
    let world = world(&far, |policy| policy.routes[0].guards.bulkhead = one);
    let sides = switched(&world, &far);
    assert_eq!(world.client().ask(ASK).status, 503);
    drop(sides);
    wait_until("it is free", || world.route(0).in_flight == 0);
    drop(switched(&world, &far));
}

#[test]
fn resets_and_silence_end_it_as_they_end_any_connection() {
    let far = Far::new();
    let world = world(&far, |policy| policy.routes[0].guards.idle_timeout = Some(Duration::from_secs(2)));
    let [client, mut server] = switched(&world, &far);
    reset(client);
    assert!(is_reset(&mut server));
    let [mut client, server] = switched(&world, &far);
    reset(server);
    assert!(is_reset(&mut client));
    let [mut client, mut server] = switched(&world, &far);
    assert!(is_reset(&mut client) && is_reset(&mut server));
    let ended = |how: &str| named(&world.route(0).connections.ended, how);
    wait_until("all are counted", || ["client_reset", "upstream_reset", "idle"].map(ended) == [1, 1, 1]);
}

#[test]
fn much_goes_both_ways_after_a_switch() {
    const BYTES: usize = 8 << 20;
    let far = Far::new();
    let world = world(&far, |_| {});
    let sides = switched(&world, &far);
    let text: Vec<u8> = (0..BYTES as u32 / 4).flat_map(u32::to_le_bytes).collect();
    let work = sides.map(|mut side| {
        let (mut writer, text) = (side.try_clone().unwrap(), text.clone());
        let expected = text.clone();
        let writes = thread::spawn(move || {
            writer.write_all(&text).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let reads = thread::spawn(move || {
            let mut seen = Vec::new();
            side.read_to_end(&mut seen).unwrap();
            seen == expected
        });
        (writes, reads)
    });
    for (writes, reads) in work {
        writes.join().unwrap();
        assert!(reads.join().unwrap(), "changed on the way");
    }
}

#[test]
fn a_stop_cuts_it_when_the_grace_is_over() {
    let far = Far::new();
    let mut world = world(&far, |policy| policy.limits.grace = Duration::from_millis(50));
    let [mut client, mut server] = switched(&world, &far);
    assert_eq!(world.stop(false), 1);
    assert!(is_reset(&mut client) && is_reset(&mut server));
    assert_eq!(named(&world.route(0).connections.ended, "cut"), 1);
}

#[test]
fn a_stop_lets_it_end() {
    let far = Far::new();
    let mut world = world(&far, |policy| policy.limits.grace = PATIENCE);
    let [mut client, mut server] = switched(&world, &far);
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
fn who_leaves_before_the_answer_leaves_nothing_behind() {
    let far = Far::new();
    let world = world(&far, |_| {});
    let mut client = call(&world);
    client.write_all(format!("{ASK}early").as_bytes()).unwrap();
    let mut server = far.accept();
    head(&mut server);
    reset(client);
    assert!(matches!(server.read(&mut [0]), Ok(0) | Err(_)), "the upstream is let go");
    wait_until("it is counted", || world.route(0).cancelled_total == 1);
    let seen = world.route(0);
    assert_eq!((seen.in_flight, seen.connections.opened_total), (0, 0));
}

/// More than fits is left with the client until it is known what it is.
#[test]
fn what_comes_early_is_bounded_and_whole() {
    let far = Far::new();
    let world = world(&far, |_| {});
    let client = call(&world);
    let early: String = (0..40_000).map(|n| format!("{n:07} ")).collect();
    let (mut writer, text) = (client.try_clone().unwrap(), early.clone());
    let writes = thread::spawn(move || writer.write_all(format!("{ASK}{text}").as_bytes()).unwrap());
    let mut server = far.accept();
    head(&mut server);
    server.write_all(AGREE.as_bytes()).unwrap();
    assert!(read(&mut server, early.len()) == early, "changed on the way");
    writes.join().unwrap();
}

#[test]
fn the_fallbacks_upstream_may_agree_too() {
    let far = Far::new();
    let mut only = allowing(route("r", 0));
    only.fallbacks = vec![Fallback::Upstream(UpstreamId(1))];
    let upstreams = vec![upstream("u", &[nobody()]), upstream("other", &[far.address()])];
    let world = World::new(policy(vec![only], upstreams));
    let [mut client, mut server] = switched(&world, &far);
    server.write_all(b"here").unwrap();
    assert_eq!(read(&mut client, 4), "here");
}

#[test]
fn an_agreement_that_comes_after_a_change_is_kept_by_the_old_rules() {
    let far = Far::new();
    let world = world(&far, |policy| {
        policy.routes.insert(0, on_path(route("first", 0), "/first"));
        policy.listeners[0].routes = (0..2).map(seawall_core::id::RouteId).collect();
    });
    let mut client = call(&world);
    client.write_all(ASK.as_bytes()).unwrap();
    let mut server = far.accept();
    head(&mut server);
    world.change(policy(vec![route("another", 0)], vec![upstream("u", &[far.address()])]));
    server.write_all(AGREE.as_bytes()).unwrap();
    assert!(head(&mut client).starts_with("HTTP/1.1 101 "));
    client.write_all(b"hello").unwrap();
    assert_eq!(read(&mut server, 5), "hello");
    server.write_all(b"there").unwrap();
    assert_eq!(read(&mut client, 5), "there");
}
