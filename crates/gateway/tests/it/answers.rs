//! Answers on their way: kept connections, bodies as they come, trailers, interim answers, cut ones, stale connections.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use crate::world::{Do, Server, World, answer, ok, policy, post, route, upstream, wait_until};

#[test]
fn connections_are_kept_on_both_sides() {
    let server = Server::start(|_, _| ok("x"));
    let world = World::simple(&server);
    let mut client = world.client();
    for _ in 0..5 {
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").body, "x");
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 5);
    assert!(seen.iter().all(|seen| seen.connection == 0), "one connection served all five");
}

#[test]
fn head_has_no_body_and_keeps_its_length() {
    let server = Server::start(|_, _| Do::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n".to_vec()));
    let world = World::simple(&server);
    let mut client = world.client();
    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n");
        let answer = client.next_of(true).unwrap();
        assert_eq!((answer.status, answer.must("content-length").as_str()), (200, "99"));
    }
}

#[test]
fn http_1_0_clients_get_a_body_that_ends_with_the_connection_or_its_length() {
    let server = Server::start(|_, _| {
        Do::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec())
    });
    let world = World::simple(&server);
    let mut client = world.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let text = client.rest();
    assert!(text.ends_with("\r\n\r\nabc"), "{text}");
    assert!(!text.to_ascii_lowercase().contains("transfer-encoding"));
}

#[test]
fn chunks_pass_as_they_come_and_trailers_follow() {
    let server = Server::start(|_, _| {
        Do::Send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\
              X-Sum: 7\r\n\r\n"
                .to_vec(),
        )
    });
    let world = World::simple(&server);
    let mut client = world.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n");
    let mut lines = Vec::new();
    while let Some(line) = client.line() {
        lines.push(line);
        if lines.last().unwrap().is_empty() && lines.iter().filter(|line| line.is_empty()).count() == 2 {
            break;
        }
    }
    let text = lines.join("\n").to_ascii_lowercase();
    assert!(text.ends_with("0\nx-sum: 7\n"), "{text}");
    assert_eq!(world.route(0).trailers_dropped_total, 0);
}

#[test]
fn a_connection_whose_answer_ended_with_trailers_is_used_again() {
    let server = Server::start(|_, _| {
        Do::Send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n"
                .to_vec(),
        )
    });
    let world = World::simple(&server);
    let mut client = world.client();
    for _ in 0..3 {
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n").body, "abc");
    }
    let connections: Vec<_> = server.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 0, 0]);
}

#[test]
fn trailers_that_nobody_announced_are_counted_and_end_here() {
    let reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-Sum: 7\r\n\r\n".to_vec();
    let server = Server::start(move |_, _| Do::Send(reply.clone()));
    let world = World::simple(&server);
    let mut client = world.client();
    for seen in 1..3 {
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n").body, "ab");
        assert_eq!(world.route(0).trailers_dropped_total, seen);
    }
}

/// Announced or not: whoever merges trailers into a head must not be told by them who asks.
#[test]
fn trailers_that_say_who_asks_end_here_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let upstream_saw = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"x-sum: 9\r\n\r\n") {
            let mut piece = [0; 1024];
            let length = stream.read(&mut piece).unwrap();
            assert!(length > 0, "{}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&piece[..length]);
        }
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Host, X-Sum\r\n\r\n2\r\nab\r\n0\r\nHost: x\r\nX-Sum: 7\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(seen).unwrap()
    });
    let world = World::new(policy(vec![route("r", 0)], vec![upstream("u", &[address])]));
    let mut client = world.client();
    client.send(
        "POST / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\
         Trailer: Client-Cert, X-Sum\r\n\r\n2\r\nab\r\n0\r\nClient-Cert: :eA==:\r\nX-Sum: 9\r\n\r\n",
    );
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line: &String| !line.to_ascii_lowercase().starts_with("x-sum")) {
        lines.push(client.line().expect("an answer"));
    }
    assert!(lines.iter().all(|line| !line.to_ascii_lowercase().starts_with("host:")), "{lines:?}");
    let saw = upstream_saw.join().unwrap().to_ascii_lowercase();
    assert!(!saw.contains("client-cert:") && saw.ends_with("0\r\nx-sum: 9\r\n\r\n"), "{saw}");
    assert_eq!(world.route(0).trailers_dropped_total, 1);
}

#[test]
fn a_request_body_streams_while_the_client_still_sends() {
    let server = Server::start(|seen, _| ok(&seen.body.len().to_string()));
    let world = World::simple(&server);
    let mut client = world.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    wait_until("the upstream is connected before the body ends", || {
        (world.view)().upstreams[0].endpoints[0].in_flight == 1
    });
    client.send("6\r\n world\r\n0\r\n\r\n");
    assert_eq!(client.next().unwrap().body, "11");
    let long = "y".repeat(3 << 20);
    assert_eq!(world.post("/", "", &long).body, (3 << 20).to_string());
}

#[test]
fn long_answers_stream_whole() {
    let body = "z".repeat(2 << 20);
    let reply = answer("200 OK", "", &body);
    let server = Server::start(move |_, _| reply.clone());
    let world = World::simple(&server);
    let mut client = world.client();
    for _ in 0..2 {
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").body, body);
    }
    assert!(server.seen().iter().all(|seen| seen.connection == 0), "a streamed answer gives its connection back");
}

#[test]
fn expect_100_continue_is_answered_when_the_body_is_wanted() {
    let server = Server::start(|seen, _| ok(&String::from_utf8_lossy(&seen.body)));
    let world = World::simple(&server);
    let mut client = world.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.next().unwrap().status, 100);
    client.send("body");
    assert_eq!(client.next().unwrap().body, "body");
    assert_eq!(server.seen()[0].header("expect"), None, "the promise was ours");
}

#[test]
fn early_hints_pass_before_the_answer() {
    let server = Server::start(|_, _| {
        let hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x\r\n\r\n".to_vec();
        let Do::Send(rest) = ok("page") else { unreachable!() };
        Do::Send([hints, rest].concat())
    });
    let world = World::simple(&server);
    let mut client = world.client();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        let hints = client.next().unwrap();
        assert_eq!((hints.status, hints.must("link").as_str()), (103, "</a.css>; rel=preload"));
        assert_eq!(hints.header("connection"), None);
        assert_eq!(client.next().unwrap().body, "page");
    }
}

#[test]
fn a_cut_short_answer_is_a_failed_try_and_is_tried_again() {
    let cut = Do::SendAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec());
    let server = Server::playing(vec![cut, ok("whole")]);
    let world = World::simple(&server);
    assert_eq!(world.get("/").body, "whole");
    let route = world.route(0);
    assert_eq!((route.retries_total, route.failures_total), (1, 1));
    assert!(route.failures.contains(&("incomplete", 1)));
}

#[test]
fn a_cut_answer_is_never_passed_on_as_whole() {
    for head in ["Transfer-Encoding: chunked", "Content-Length: 99999999"] {
        let reply = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n");
        let server = Server::start(move |_, _| Do::SendAndClose(reply.clone().into_bytes()));
        let world = World::simple(&server);
        let mut client = world.client();
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(client.next().is_none(), "no whole answer may come of half a one ({head})");
        wait_until("it is counted", || world.route(0).cut_total == 1);
        assert!(world.route(0).failures.contains(&("incomplete", 1)));
        // Without a byte of it, it would look as if nobody had read the request.
        let broken = world.client().send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").rest();
        assert!(broken.starts_with("HTTP/1.1 200 OK") && broken.contains("hello"), "{broken:?}");
    }
}

#[test]
fn a_stale_connection_gets_one_free_resend_where_that_is_safe() {
    // Answers the first request of a connection, and closes after reading the second.
    let script = |seen: &crate::world::Seen, _: usize| {
        if seen.line().contains("/second") && seen.connection == 0 { Do::Close } else { ok("fine") }
    };
    let cases = [
        ("GET /second HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), 200),
        (post("/second", "Idempotency-Key: \"k\"\r\n", "x"), 200),
        (post("/second", "", "x"), 502),
    ];
    for (request, status) in cases {
        let server = Server::start(script);
        let mut route = route("r", 0);
        route.guards.retry.attempts_max = 1;
        let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
        let mut client = world.client();
        assert_eq!(client.ask("GET /first HTTP/1.1\r\nHost: h\r\n\r\n").status, 200);
        let answer = client.ask(&request);
        assert_eq!(answer.status, status, "{request:?}");
        assert_eq!(world.route(0).retries_total, 0, "free of charge");
        assert_eq!(world.route(0).resends_total, u64::from(status == 200));
        if status == 502 {
            assert!(answer.must("proxy-status").contains("error=connection_terminated"));
        }
    }
}

#[test]
fn an_idle_connection_closed_by_the_upstream_is_noticed_before_use() {
    let server = Server::start(|_, _| {
        let Do::Send(bytes) = ok("x") else { unreachable!() };
        Do::SendAndClose(bytes)
    });
    let world = World::simple(&server);
    let mut client = world.client();
    for _ in 0..2 {
        assert_eq!(client.ask(&post("/", "", "not idempotent")).status, 200);
        wait_until("its end has been noticed", || (world.view)().upstreams[0].endpoints[0].connections == 0);
    }
    assert_eq!(world.route(0).failures_total, 0);
}

#[test]
fn failures_have_the_status_and_words_of_rfc_9209() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut quick = route("r", 0);
    quick.guards.retry.attempts_max = 1;
    quick.guards.try_timeout = Duration::from_millis(100);
    let refused = World::new(policy(vec![quick.clone()], vec![upstream("u", &[nobody])])).get("/");
    assert_eq!((refused.status, refused.must("proxy-status").contains("error=connection_refused")), (502, true));
    let hang = Server::start(|_, _| Do::Hang);
    let late = World::new(policy(vec![quick.clone()], vec![upstream("u", &[hang.address])])).get("/");
    assert_eq!((late.status, late.must("proxy-status").contains("error=http_response_timeout")), (504, true));
    let reset = Server::start(|_, _| Do::Reset);
    let lost = World::new(policy(vec![quick.clone()], vec![upstream("u", &[reset.address])])).get("/");
    assert_eq!((lost.status, lost.must("proxy-status").contains("error=connection_terminated")), (502, true));
    let mut unknown = upstream("u", &[]);
    unknown.endpoints.push(seawall_core::policy::Endpoint::at("no.such.name.invalid:80"));
    let nameless = World::new(policy(vec![quick], vec![unknown])).get("/");
    assert_eq!((nameless.status, nameless.must("proxy-status").contains("error=dns_error")), (502, true));
}

#[test]
fn no_route_is_a_404_that_says_so() {
    let server = Server::start(|_, _| ok("x"));
    let world =
        World::new(policy(vec![crate::world::on_path(route("r", 0), "/only")], vec![upstream("u", &[server.address])]));
    assert_eq!(world.get("/only?q").status, 200);
    let answer = world.get("/other");
    assert_eq!(answer.status, 404);
    assert!(answer.must("proxy-status").contains("destination_not_found") && answer.body.contains("GET /other"));
    assert!((world.view)().rejected.contains(&("no_route", 1)));
}

#[test]
fn calls_take_turns_on_the_connections_an_upstream_may_have() {
    let server = Server::start(|_, _| Do::Wait(Duration::from_millis(30), Box::new(ok("x"))));
    let mut narrow = upstream("u", &[server.address]);
    narrow.connections_max = 1;
    let world = World::new(policy(vec![route("r", 0)], vec![narrow]));
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..10).map(|_| scope.spawn(|| world.get("/").status)).collect();
        assert!(calls.into_iter().all(|call| call.join().unwrap() == 200));
    });
    assert_eq!(world.route(0).failures_total, 0);
}

#[test]
fn no_connection_in_time_is_our_limit_and_not_the_upstreams_failure() {
    let server = Server::start(|_, _| Do::Hang);
    let mut narrow = upstream("u", &[server.address]);
    narrow.connections_max = 1;
    let (mut patient, mut hasty) = (crate::world::on_path(route("patient", 0), "/1"), route("hasty", 0));
    patient.guards.timeout = Duration::from_secs(10);
    patient.guards.try_timeout = Duration::from_secs(10);
    hasty.guards.try_timeout = Duration::from_millis(50);
    let world = World::new(policy(vec![patient, hasty], vec![narrow]));
    // One worker's share of one connection is one: hold it on both.
    let mut holders: Vec<_> = (0..16).map(|_| world.client()).collect();
    for holder in &mut holders {
        holder.send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    wait_until("both workers hold theirs", || server.count() == 2);
    let refused = world.get("/2");
    assert_eq!((refused.status, refused.body.contains("connections of the upstream")), (503, true), "{refused:?}");
    assert_eq!(world.route(1).failures_total, 0);
}

#[test]
fn an_answer_with_two_lengths_is_refused() {
    let both = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let server = Server::start(move |_, _| Do::Send(both.to_vec()));
    let world = World::simple(&server);
    let answer = world.post("/", "", "x");
    assert_eq!((answer.status, answer.must("proxy-status").contains("http_protocol_error")), (502, true));
}

#[test]
fn a_cut_answer_shows_to_a_client_whose_answer_ends_with_its_connection() {
    let server = Server::start(|_, _| {
        Do::SendAndClose(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".to_vec())
    });
    let world = World::simple(&server);
    let mut client = world.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let mut bytes = Vec::new();
    let ended = std::io::Read::read_to_end(&mut client.stream, &mut bytes);
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_client_that_does_not_send_its_body_is_not_the_upstreams_failure() {
    let server = Server::start(|_, _| ok("x"));
    let mut route = route("r", 0);
    route.guards.try_timeout = Duration::from_millis(50);
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    let mut client = world.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    assert_eq!(client.next().map(|answer| answer.status), Some(408));
    assert_eq!(world.route(0).failures_total, 0);
}
