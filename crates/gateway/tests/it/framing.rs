//! What the gate refuses, seen from outside: every row of the table of differences between proxies, over a raw socket.
//! No byte after a refused message ever reaches the upstream.

use crate::world::{Client, Do, Server, World, ok, post, wait_until};

fn strict() -> (Server, World) {
    let server = Server::start(|_, _| ok("hello"));
    let world = World::simple(&server);
    (server, world)
}

/// The statuses answered until the connection ends, and what the upstream saw.
fn statuses(world: &World, bytes: &str) -> Vec<u16> {
    let mut client = world.client();
    client.send(bytes);
    let mut statuses = Vec::new();
    while let Some(answer) = client.next() {
        statuses.push(answer.status);
        if answer.header("connection").is_some_and(|value| value == "close") {
            break;
        }
    }
    statuses
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn no_request_with_two_meanings_reaches_the_upstream() {
    let (server, world) = strict();
    let long_header = "x".repeat(40 << 10);
    let many_headers: String = (0..150).map(|n| format!("H{n}: x\r\n")).collect();
    let head = |headers: &str| format!("POST /a HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
    let cases: Vec<(&str, String, u16)> = vec![
        ("CL + TE", head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400),
        ("TE identity + chunked", head("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"), 400),
        ("TE chunked twice", head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400),
        ("CL twice, equal", head("Content-Length: 3\r\nContent-Length: 3\r\n") + "abc", 400),
        ("CL list", head("Content-Length: 3, 3\r\n") + "abc", 400),
        ("obs-fold", head("A: b\r\n c\r\n"), 400),
        ("NUL in a value", head("A: b\0c\r\n"), 400),
        ("bare LF lines", "GET / HTTP/1.1\nHost: h\n\n".into(), 400),
        ("no Host", "GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), 400),
        ("absolute-form host differs", "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n".into(), 400),
        ("CONNECT", "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n".into(), 405),
        ("TRACE", "TRACE / HTTP/1.1\r\nHost: h\r\n\r\n".into(), 405),
        ("OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
        ("150 headers", format!("GET / HTTP/1.1\r\nHost: h\r\n{many_headers}\r\n"), 431),
        ("40 KB header", format!("GET / HTTP/1.1\r\nHost: h\r\nA: {long_header}\r\n\r\n"), 431),
        ("HTTP/2 in lines", "GET / HTTP/2.0\r\nHost: h\r\n\r\n".into(), 505),
        ("nearly HTTP/2", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".into(), 505),
        ("garbage", "\u{16}\u{3}\u{1}\u{2}\r\n\r\n".into(), 400),
        ("unmet expectation", head("Expect: teapot\r\nContent-Length: 1\r\n"), 417),
        ("body beyond the limit", head("Content-Length: 99999999\r\n"), 413),
    ];
    for (name, bytes, status) in &cases {
        assert_eq!(statuses(&world, &format!("{bytes}{SMUGGLED}")), [*status], "{name}");
    }
    assert_eq!(server.count(), 0, "{:?}", server.seen());
    let rejected: u64 = (world.view)().rejected.iter().map(|(_, count)| count).sum();
    assert_eq!(rejected, cases.len() as u64, "each is counted");
}

#[test]
fn a_bad_chunk_is_the_clients_fault_and_never_a_whole_body() {
    let (server, world) = strict();
    for body in ["3;ext\n\r\nabc\r\n0\r\n\r\n", "zz\r\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n"] {
        let request = format!("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}{SMUGGLED}");
        assert_eq!(statuses(&world, &request), [400], "{body:?}");
    }
    assert!(server.seen().iter().all(|seen| !seen.line().contains("smuggled")));
    assert_eq!(world.route(0).failures_total, 0, "the upstream is not blamed");
}

#[test]
fn what_is_well_formed_passes() {
    let (server, world) = strict();
    for request in [
        "OPTIONS /a HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
        "GET http://h:80/abs?q=1 HTTP/1.1\r\nHost: h:80\r\n\r\n".to_owned(),
        "\r\n\r\nGET /blank-lines-first HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n".to_owned(),
        post("/", "", "abc"),
    ] {
        assert_eq!(world.client().ask(&request).status, 200, "{request:?}");
    }
    let lines: Vec<String> = server.seen().iter().map(|seen| seen.line().to_owned()).collect();
    assert_eq!(lines[0], "OPTIONS /a HTTP/1.1");
    assert_eq!(lines[1], "GET /abs?q=1 HTTP/1.1");
}

#[test]
fn pipelined_answers_come_in_order_and_a_refusal_ends_them() {
    let (server, world) = strict();
    let good = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(statuses(&world, &format!("{good}{good}GET / HTTP/1.1\r\n\r\n{SMUGGLED}")), [200, 200, 400]);
    assert_eq!(server.count(), 2);
}

#[test]
fn a_refused_client_that_goes_on_sending_still_gets_its_answer() {
    let (_server, world) = strict();
    let mut client = world.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n");
    for _ in 0..64 {
        client.send(&"x".repeat(16 << 10));
    }
    assert_eq!(client.next().map(|answer| answer.status), Some(413));
}

#[test]
fn hop_by_hop_headers_end_here() {
    let (server, world) = strict();
    let request = "GET / HTTP/1.1\r\nHost: h\r\nConnection: x-foo, host, keep-alive\r\nX-Foo: 1\r\nKeep-Alive: 5\r\n\
        Upgrade: h2c\r\nTE: trailers, gzip\r\nProxy-Connection: x\r\nX-Forwarded-For: 6.6.6.6\r\n\
        Forwarded: for=6.6.6.6\r\nSeawall-Record: forged\r\nTraceparent: 00-1-2-01\r\n\r\n";
    assert_eq!(world.client().ask(request).status, 200);
    let seen = &server.seen()[0];
    for gone in ["x-foo", "keep-alive", "upgrade", "proxy-connection", "forwarded", "seawall-record", "connection"] {
        assert_eq!(seen.header(gone), None, "{gone} in {}", seen.head);
    }
    assert_eq!(seen.header("host").as_deref(), Some("h"), "Connection cannot name Host away");
    assert_eq!(seen.header("te").as_deref(), Some("trailers"));
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(seen.header("traceparent").as_deref(), Some("00-1-2-01"));
    assert_eq!(seen.header("via").as_deref(), Some("1.1 seawall-node"));
    assert_eq!(seen.header("x-request-id").map(|id| id.len()), Some(16));
}

#[test]
fn a_loop_is_broken() {
    let (server, world) = strict();
    let answer = world.client().ask("GET / HTTP/1.1\r\nHost: h\r\nVia: 1.1 a, 1.1 seawall-node\r\n\r\n");
    assert_eq!(answer.status, 502);
    assert!(answer.must("proxy-status").contains("error=proxy_loop_detected"));
    assert_eq!(server.count(), 0);
}

#[test]
fn an_answer_that_is_not_http_is_a_502() {
    let server = Server::start(|_, _| Do::SendAndClose(b"\x15\x03\x01garbage\r\n\r\n".to_vec()));
    let world = World::simple(&server);
    let answer = world.post("/", "", "x");
    assert_eq!(answer.status, 502);
    assert!(answer.must("proxy-status").contains("error=http_protocol_error"), "{}", answer.head);
}

#[test]
fn a_client_that_leaves_is_counted_and_its_upstream_call_ends() {
    let server = Server::start(|_, _| Do::Hang);
    let world = World::simple(&server);
    let mut client = Client::new(world.address);
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("the upstream has the request", || server.count() == 1);
    drop(client);
    wait_until("it is counted", || world.route(0).cancelled_total == 1);
    assert_eq!((world.view)().upstreams[0].endpoints[0].in_flight, 0);
    assert_eq!(world.route(0).in_flight, 0, "no place is left behind");
}
