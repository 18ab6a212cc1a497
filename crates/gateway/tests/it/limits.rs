//! Limits have a name, a value and a counter, and a stop lets work in hand end.

use std::io::Write as _;
use std::time::{Duration, Instant};

use seawall_core::journal::Kind;
use seawall_core::observation::LimitSnapshot;
use seawall_core::policy::Policy;

use crate::world::{Client, Do, Server, World, ok, policy, route, upstream, wait_until};

fn limited(server: &Server, tune: impl FnOnce(&mut Policy)) -> World {
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[server.address])]);
    tune(&mut policy);
    World::new(policy)
}

fn limit(world: &World, name: &str) -> LimitSnapshot {
    (world.view)().limits.into_iter().find(|limit| limit.name == name).unwrap()
}

#[test]
fn one_connection_too_many_is_told_so() {
    let server = Server::start(|_, _| ok("x"));
    let world = limited(&server, |policy| policy.limits.connections_max = 2);
    let mut kept: Vec<Client> = (0..2).map(|_| world.client()).collect();
    for client in &mut kept {
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status, 200);
    }
    let refused = world.client().next().unwrap();
    assert_eq!(refused.status, 503);
    assert!(
        refused.must("proxy-status").contains("connection_limit_reached") && refused.header("retry-after").is_some()
    );
    let told = limit(&world, "connections");
    assert_eq!((told.value, told.used, told.reached_total), (2, Some(2), 1));
    wait_until("the journal knows", || {
        world.entries(Kind::LimitReached).iter().any(|entry| entry.subject == "limit:connections")
    });
    drop(kept.pop());
    wait_until("a place is free again", || limit(&world, "connections").used == Some(1));
    assert_eq!(world.get("/").status, 200);
}

#[test]
fn pending_requests_are_bounded() {
    let server = Server::start(|_, _| Do::Hang);
    let world = limited(&server, |policy| policy.limits.pending_max = 1);
    let mut first = world.client();
    first.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("the first is on its way", || server.count() == 1);
    let refused = world.get("/");
    assert_eq!(refused.status, 503);
    assert!(refused.body.contains("the limit `pending` of 1 is reached"));
    assert_eq!(limit(&world, "pending").reached_total, 1);
}

#[test]
fn a_head_that_trickles_is_ended_with_408() {
    let server = Server::start(|_, _| ok("x"));
    let world = limited(&server, |policy| policy.limits.header_timeout = Duration::from_millis(200));
    let mut client = world.client();
    client.send("GET / HTTP/1.1\r\n");
    let answer = client.next().unwrap();
    assert_eq!((answer.status, answer.must("connection").as_str()), (408, "close"));
    assert_eq!(limit(&world, "header_timeout").reached_total, 1);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let server = Server::start(|_, _| ok("x"));
    let world = limited(&server, |policy| policy.limits.idle_timeout = Duration::from_millis(200));
    let mut client = world.client();
    assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status, 200);
    assert!(client.is_closed());
}

#[test]
fn a_body_that_stops_ends_the_request() {
    let server = Server::start(|_, _| ok("x"));
    let world = limited(&server, |policy| policy.limits.body_idle_timeout = Duration::from_millis(200));
    let mut client = world.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(client.next().map(|answer| answer.status), Some(408));
    assert_eq!(server.count(), 0);
    assert_eq!(limit(&world, "body_idle_timeout").reached_total, 1);
}

#[test]
fn an_answer_that_stops_is_cut_off() {
    let server =
        Server::start(|_, _| Do::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n".to_vec()));
    let world = limited(&server, |policy| policy.limits.body_idle_timeout = Duration::from_millis(200));
    let mut client = world.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(client.next().is_none());
    assert_eq!(world.route(0).cut_total, 1);
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let body = "w".repeat(64 << 20);
    let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
    let server = Server::start(move |_, _| Do::Send(reply.clone()));
    let world = limited(&server, |policy| policy.limits.body_idle_timeout = Duration::from_millis(200));
    let mut client = world.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("it is let go", || limit(&world, "connections").used == Some(0));
}

#[test]
fn a_stop_lets_work_in_hand_end_and_takes_no_more() {
    let server = Server::start(|_, _| Do::Wait(Duration::from_millis(300), Box::new(ok("late, but whole"))));
    let mut world = World::simple(&server);
    let mut client = world.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("it is on its way", || server.count() == 1);
    assert_eq!(world.stop(false), 0);
    let answer = client.next().unwrap();
    assert_eq!((answer.body.as_str(), answer.must("connection").as_str()), ("late, but whole", "close"));
    assert!(std::net::TcpStream::connect(world.address).is_err(), "nobody listens any more");
}

#[test]
fn a_hurried_stop_waits_for_nobody() {
    let server = Server::start(|_, _| Do::Hang);
    let mut world = World::simple(&server);
    let mut client = world.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("it is on its way", || server.count() == 1);
    let begin = Instant::now();
    assert_eq!(world.stop(true), 1);
    assert!(begin.elapsed() < Duration::from_secs(4), "the grace period is five seconds");
}

#[test]
fn a_port_that_is_taken_is_told_with_a_hint() {
    use seawall_gateway::net::Net;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start(|_, _| ok("x"));
    let world = World::simple(&server);
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[server.address])]);
    policy.listeners[0].address = taken.local_addr().unwrap();
    let clock = seawall_gateway::Clock::new(
        tokio::time::Instant::now(),
        std::sync::Arc::new(|| seawall_core::time::Wall::from_millis(0)),
    );
    assert!(format!("{clock:?}").starts_with("Clock("));
    let parts = seawall_gateway::Parts {
        policy: std::sync::Arc::new(policy),
        spool: world.store.spool.clone(),
        journal: world.store.journal.clone(),
        records: std::sync::Arc::new(seawall_gateway::NoRecords),
        clock,
        seed: 1,
        net: Net::Real,
        cause: None,
        traffic_every: seawall_gateway::TRAFFIC_EVERY,
        tls: seawall_gateway::tls::Tls::default(),
        faults: None,
    };
    let error = world.block_on(seawall_gateway::Gateway::start(parts, 1)).err().unwrap();
    assert!(error.to_string().starts_with("cannot listen on `127.0.0.1:"));
    assert_eq!(
        error.hint(),
        Some(
            "another process listens there, or a listener of ours that is still closing: stop it, or choose another port"
        )
    );
}

/// Breaks the connection off, whatever it has been sent.
fn reset(client: &Client) {
    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_client_that_breaks_off_behind_its_next_request_is_noticed() {
    let server = Server::start(|_, _| Do::Hang);
    let world = limited(&server, |_| {});
    let mut client = world.client();
    client.send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("the upstream has the first", || server.count() == 1);
    reset(&client);
    drop(client);
    wait_until("its call is given up", || world.route(0).cancelled_total == 1);
    assert_eq!((world.route(0).in_flight, server.count()), (0, 1), "and the second is never made");
}

#[test]
fn a_client_that_breaks_off_behind_a_body_that_nobody_takes_is_noticed() {
    // Takes connections and reads nothing of them.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[listener.local_addr().unwrap()])]);
    policy.limits.body_bytes_max = 1 << 30;
    let world = World::new(policy);
    let mut client = world.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n");
    let (mut stream, piece) = (client.stream.try_clone().unwrap(), [b'x'; 64 << 10]);
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    // Until nothing more fits in between.
    while stream.write_all(&piece).is_ok() {}
    assert_eq!(world.route(0).in_flight, 1);
    reset(&client);
    drop((client, stream));
    wait_until("its call is given up", || world.route(0).cancelled_total == 1);
    assert_eq!(world.route(0).in_flight, 0);
}

#[test]
fn who_asks_twice_and_ends_its_side_gets_the_first_answer() {
    // Longer than it takes to notice one that breaks off.
    let server = Server::start(|seen, _| Do::Wait(Duration::from_millis(800), Box::new(ok(seen.line()))));
    let world = limited(&server, |_| {});
    let mut client = world.client();
    client.send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.next().unwrap().body, "GET /1 HTTP/1.1");
}
