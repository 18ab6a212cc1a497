//! Upstreams that are dead, frozen, slow, cut short, or talk nonsense: what clients see, what the journal tells, and
//! how it comes right again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::house::{Node, Place, post, wait_until};
use crate::nginx::Nginx;
use crate::server::{Do, Server, answer, ok, sick};

/// One route `api` to one upstream, under these rules.
fn place(url: &str, rules: &str) -> Place {
    Place::new(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: api, upstream: up, policy: rules }}] }}]\n\
         upstreams: {{ up: {{ url: \"{url}\" }} }}\n\
         policies:\n  rules:\n{rules}"
    ))
}

fn url(server: &Server) -> String {
    format!("http://{}", server.address)
}

const BREAKER: &str = "    breaker: { failure_rate: 50%, window: 10 calls, calls_min: 5, open_for: 300ms, open_for_max: 300ms, half_open_calls: 1 }\n";

/// Asks until the breaker is closed again, and checks that the journal tells the way there.
fn recovers(node: &Node, target: &str) {
    wait_until("the breaker closes", || {
        node.get(target);
        node.breaker("api") == "closed"
    });
    let journal = node.journal();
    let story = journal.story(journal.last("breaker_closed"));
    assert_eq!(story[..3], ["breaker_closed", "breaker_half_opened", "breaker_opened"], "{story:?}");
    assert_eq!(story.last(), Some(&"node_started"), "every story begins with the node's start: {story:?}");
    assert_eq!(node.get(target).status, 200);
}

#[test]
fn killed() {
    let mut nginx = Nginx::start();
    let (node, _place) = place(&nginx.url(), &format!("    retry: off\n{BREAKER}")).node_of();
    assert_eq!(node.get("/").body, "hello");
    nginx.kill();
    let first = node.get("/");
    assert_eq!(first.status, 502, "{first:?}");
    wait_until("a fresh connection is refused", || {
        let answer = node.get("/");
        answer.status == 502 && answer.must("proxy-status").contains("error=connection_refused") || answer.status == 503
    });
    let refused = node.refused_by_breaker("/");
    refused.is_ours(503, "destination_unavailable");
    let problem = refused.json();
    assert_eq!((&problem["status"], &problem["rule"]), (&503.into(), &"breaker".into()), "{problem}");
    assert!(problem["detail"].as_str().unwrap().starts_with("the breaker is open ("), "{problem}");
    let journal = node.journal();
    let opened = journal.first("breaker_opened");
    assert_eq!(opened["subject"], "route:api");
    assert_eq!(opened["fields"]["upstream"], "up");
    assert!(opened["fields"]["failed"].as_str().unwrap().parse::<u32>().unwrap() >= 3, "{opened}");
    nginx.run();
    recovers(&node, "/");
}

/// The kernel still accepts for a frozen process: only a timeout tells.
#[test]
fn frozen_and_thawed() {
    let nginx = Nginx::start();
    let rules = format!("    timeout: 500ms\n    try_timeout: 200ms\n    retry: off\n{BREAKER}");
    let (node, _place) = place(&nginx.url(), &rules).node_of();
    assert_eq!(node.get("/").status, 200);
    nginx.pause();
    let begin = Instant::now();
    node.get("/").is_ours(504, "http_response_timeout");
    assert!(begin.elapsed() >= Duration::from_millis(190), "{:?}", begin.elapsed());
    node.refused_by_breaker("/").is_ours(503, "destination_unavailable");
    nginx.resume();
    recovers(&node, "/");
}

/// Writes during a freeze are kept, marked, and delivered in order when it thaws.
#[test]
fn writes_go_on_while_it_is_frozen() {
    let nginx = Nginx::start();
    let rules = format!(
        "    timeout: 500ms\n    try_timeout: 100ms\n    retry: off\n    fallback: spool\n    \
         order_by: header:Shipment-Id\n{BREAKER}"
    );
    let (node, _place) = place(&nginx.url(), &rules).node_of();
    assert_eq!(node.post("/", "Shipment-Id: s\r\n", "0").status, 200);
    nginx.pause();
    for n in 1..=10 {
        let kept = node.post("/", "Shipment-Id: s\r\n", &n.to_string());
        assert_eq!(kept.status, 202, "{kept:?}");
        let degraded = kept.must("seawall-degraded");
        assert!(degraded.starts_with("spool; since=20") && degraded.ends_with('Z'), "{degraded}");
        assert!(kept.must("location").starts_with("/.seawall/records/"));
        assert!(kept.must("proxy-status").starts_with("seawall; error="));
        assert!(!kept.must("idempotency-key").is_empty());
    }
    assert_eq!(node.spooled(), 10);
    nginx.resume();
    wait_until("everything is delivered", || node.spooled() == 0);
    wait_until("the breaker closes", || node.breaker("api") == "closed");
    wait_until("writes go straight through", || node.post("/", "Shipment-Id: s\r\n", "n").status == 200);
    wait_until("the journal knows that it is over", || {
        node.post("/", "", "n");
        node.journal().has("degraded_ended") && node.journal().has("spool_drained")
    });
    let journal = node.journal();
    let ended = journal.story(journal.first("degraded_ended"));
    assert_eq!(ended[..2], ["degraded_ended", "degraded_started"], "{ended:?}");
    assert_eq!(journal.first("degraded_started")["fields"]["how"], "spool");
    assert!(journal.story(journal.first("spool_drained")).contains(&"node_started"));
    let ledger = node.api("/api/ledger");
    assert_eq!((&ledger["totals"]["waiting"], &ledger["totals"]["lost"]), (&0.into(), &0.into()), "{ledger}");
    assert_eq!(ledger["verdict"], "unknown", "no sink has reported: unknown is never shown as good");
}

/// Shipments that never pause: once the upstream is well, what waits is delivered faster than more comes, and writes
/// go straight through again. A spool that only grows is an outage that outlives its cause.
#[test]
fn the_backlog_of_a_short_outage_goes_away_under_load() {
    let (well, server) = Server::moody();
    let rules = format!("    retry: off\n    fallback: spool\n    order_by: header:Shipment-Id\n{BREAKER}");
    let (node, _place) = place(&url(&server), &rules).node_of();
    let stop = AtomicBool::new(false);
    let straight: Vec<AtomicUsize> = (0..8).map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        for (writer, straight) in straight.iter().enumerate() {
            let (node, stop) = (&node, &stop);
            scope.spawn(move || {
                let mut client = node.client();
                while !stop.load(Relaxed) {
                    let answer = client.ask(&post("/", &format!("Shipment-Id: s{writer}\r\n"), "x"));
                    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
                    straight.fetch_add(usize::from(answer.status == 200), Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        let stopped = StopOnDrop(&stop);
        wait_until("a backlog", || node.spooled() > 300);
        well.store(true, Relaxed);
        wait_until("every shipment goes straight through", || straight.iter().all(|count| count.load(Relaxed) > 0));
        wait_until("nothing waits", || node.spooled() == 0);
        drop(stopped);
    });
}

/// Ends the writers also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn too_slow_is_as_good_as_down() {
    let slow = Arc::new(AtomicBool::new(true));
    let of_server = Arc::clone(&slow);
    let server = Server::start(move |_| match of_server.load(Relaxed) {
        true => Do::Wait(Duration::from_millis(120), Box::new(ok("late"))),
        false => ok("quick"),
    });
    let rules = "    breaker: { failure_rate: 90%, slow: 50% over 60ms, window: 10 calls, calls_min: 4, \
                 open_for: 300ms, open_for_max: 300ms, half_open_calls: 1 }\n";
    let (node, _place) = place(&url(&server), rules).node_of();
    for _ in 0..4 {
        assert_eq!(node.get("/").body, "late", "a slow answer is still an answer");
    }
    node.refused_by_breaker("/").is_ours(503, "destination_unavailable");
    let journal = node.journal();
    let opened = journal.first("breaker_opened");
    assert_eq!((&opened["fields"]["failed"], &opened["fields"]["slow"]), (&"0".into(), &"4".into()), "{opened}");
    slow.store(false, Relaxed);
    recovers(&node, "/");
}

#[test]
fn answers_that_are_cut_are_never_passed_on_as_whole() {
    let server = Server::start(|seen| match seen.line().split(' ').nth(1).unwrap() {
        "/short" => Do::SendAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this".to_vec()),
        "/long" => {
            let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n".to_vec();
            bytes.resize(300_000, b'x');
            Do::SendAndClose(bytes)
        }
        "/chunks" => {
            Do::SendAndClose(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n20\r\ncut".to_vec())
        }
        "/head" => Do::SendAndClose(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()),
        _ => ok("whole"),
    });
    let (node, _place) = place(&url(&server), "    retry: off\n    breaker: off\n").node_of();
    node.get("/short").is_ours(502, "http_response_incomplete");
    assert_eq!(node.get("/head").status, 502);
    for cut in ["/long", "/chunks"] {
        let mut client = node.client();
        let whole = client.try_ask(&format!("GET {cut} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(whole.is_none(), "{cut} came as if it were whole: {whole:?}");
    }
    assert_eq!(node.get("/").body, "whole");
    let metrics = node.metrics();
    assert_eq!(metrics.get("seawall_cut_total{route=\"api\"}"), 2);
    assert!(metrics.get("seawall_failures_total{route=\"api\",kind=\"incomplete\"}") >= 3);
}

#[test]
fn cut_answers_are_tried_again_where_that_is_safe() {
    let calls = Arc::new(AtomicUsize::new(0));
    let of_server = Arc::clone(&calls);
    let server = Server::start(move |_| match of_server.fetch_add(1, Relaxed) % 2 {
        0 => Do::SendAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this".to_vec()),
        _ => ok("whole"),
    });
    let rules = "    retry: { attempts: 3, backoff: 1ms..5ms, budget_floor: 50/s }\n    breaker: off\n";
    let (node, _place) = place(&url(&server), rules).node_of();
    for _ in 0..5 {
        assert_eq!(node.get("/").body, "whole");
    }
    assert_eq!((calls.load(Relaxed), node.metrics().get("seawall_retries_total{route=\"api\"}")), (10, 5));
    let write = node.post("/", "", "a write without a key is not sent twice");
    write.is_ours(502, "http_response_incomplete");
    assert_eq!(calls.load(Relaxed), 11);
}

#[test]
fn garbage_is_not_http() {
    let server = Server::start(|seen| {
        let garbage: &[u8] = match seen.line().split(' ').nth(1).unwrap() {
            "/ssh" => b"SSH-2.0-OpenSSH_9.9\r\n",
            "/zeros" => &[0; 512],
            "/tls" => b"\x15\x03\x01\x00\x02\x02\x28",
            "/two-lengths" => b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 5\r\n\r\nhello",
            "/bad-length" => b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
            "/bad-status" => b"HTTP/1.1 2x0 OK\r\n\r\n",
            "/bad-header" => b"HTTP/1.1 200 OK\r\nna me: value\r\nContent-Length: 0\r\n\r\n",
            "/bad-chunk" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
            "/upgrade" => b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine",
        };
        Do::SendAndClose(garbage.to_vec())
    });
    let (node, _place) = place(&url(&server), "    retry: off\n    breaker: off\n").node_of();
    for target in ["/ssh", "/zeros", "/tls", "/two-lengths", "/bad-length", "/bad-status", "/bad-header", "/upgrade"] {
        node.get(target).is_ours(502, "http_protocol_error");
    }
    let chunk = node.client().try_ask("GET /bad-chunk HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(chunk.as_ref().is_none_or(|answer| answer.status == 502), "{chunk:?}");
    assert_eq!(node.get("/").body, "fine");
}

/// The oldest race of keep-alive: a connection that was fine a moment ago.
#[test]
fn idle_connections_closed_by_the_upstream_are_not_the_clients_trouble() {
    // It announces keep-alive, answers once, and closes at once, after a moment, or with a reset.
    let calls = Arc::new(AtomicUsize::new(0));
    let of_server = Arc::clone(&calls);
    let server = Server::start(move |_| {
        let whole = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok".to_vec();
        match of_server.fetch_add(1, Relaxed) % 3 {
            0 => Do::SendAndClose(whole),
            _ => Do::Send(whole),
        }
    });
    let (node, _place) = place(&url(&server), "    retry: off\n    breaker: off\n    fallback: spool\n").node_of();
    let mut client = node.client();
    for n in 0..150 {
        let answer = client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "request {n}");
        // A key makes a write safe to send again: Seawall gives it one where the client does not.
        let answer = client.ask(&post("/", "", "x"));
        assert_eq!(answer.status, 200, "write {n}: {answer:?}");
    }
    assert_eq!(node.metrics().answers("api", "5xx"), 0);
}

#[test]
fn resets_become_errors_that_say_so() {
    let server = Server::start(|_| Do::Reset);
    let (node, _place) = place(&url(&server), "    retry: off\n    breaker: off\n").node_of();
    node.get("/").is_ours(502, "connection_terminated");
    let hangs = Server::start(|_| Do::Hang);
    let rules = "    timeout: 300ms\n    retry: off\n    breaker: off\n";
    let (node, _place) = place(&url(&hangs), rules).node_of();
    node.get("/").is_ours(504, "http_response_timeout");
}

/// A place for two, no queue: the third is told at once, and there is room again when one has left.
#[test]
fn too_many_at_once() {
    let go_on = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&go_on);
    let server = Server::start(move |_| {
        wait_until("it may answer", || of_server.load(Relaxed));
        ok("done")
    });
    let rules = "    bulkhead: { calls: 2, waiting: 0, wait: 0s }\n    breaker: off\n";
    let (node, _place) = place(&url(&server), rules).node_of();
    let mut inside = [node.client(), node.client()];
    for client in &mut inside {
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    wait_until("both are in", || server.count() == 2);
    let refused = node.get("/");
    refused.is_ours(503, "connection_limit_reached");
    assert_eq!(refused.json()["rule"], "bulkhead", "{refused:?}");
    go_on.store(true, Relaxed);
    assert!(inside.iter_mut().all(|client| client.next().is_some_and(|answer| answer.body == "done")));
    assert_eq!(node.get("/").body, "done");
    assert_eq!(node.metrics().get("seawall_refused_total{route=\"api\",rule=\"bulkhead\"}"), 1);
}

/// An honest "not now" of the upstream's own goes through as it is.
#[test]
fn what_the_upstream_says_itself_is_passed_on() {
    let server = Server::start(|seen| match seen.line().split(' ').nth(1).unwrap() {
        "/busy" => answer("503 Service Unavailable", "Retry-After: 7\r\n", "busy"),
        "/fast" => answer("429 Too Many Requests", "Retry-After: 3\r\n", "slow down"),
        _ => answer("404 Not Found", "", "nothing here"),
    });
    let (node, _place) = place(&url(&server), "    retry: off\n    breaker: off\n").node_of();
    let busy = node.get("/busy");
    assert_eq!((busy.status, busy.body.as_str(), busy.must("retry-after").as_str()), (503, "busy", "7"));
    let fast = node.get("/fast");
    assert_eq!((fast.status, fast.body.as_str(), fast.must("retry-after").as_str()), (429, "slow down", "3"));
    let none = node.get("/none");
    assert_eq!((none.status, none.header("proxy-status"), none.header("seawall-degraded")), (404, None, None));
}

/// The last good answer stands in for a while, marked with its age; a fixed one where there is none.
#[test]
fn stale_then_static() {
    let (well, server) = Server::moody();
    well.store(true, Relaxed);
    let rules = format!(
        "    retry: off\n    fallback: [{{ stale: 10m }}, {{ static: {{ status: 200, content_type: text/plain, \
         body: \"no quote today\" }} }}]\n{BREAKER}"
    );
    let (node, _place) = place(&url(&server), &rules).node_of();
    assert_eq!(node.get("/a").body, "taken");
    well.store(false, Relaxed);
    let stale = node.get("/a");
    assert_eq!((stale.status, stale.body.as_str()), (200, "taken"));
    assert!(stale.must("age").parse::<u64>().is_ok(), "{stale:?}");
    assert!(stale.must("seawall-degraded").starts_with("stale; since="), "{stale:?}");
    let fixed = node.get("/b");
    assert_eq!((fixed.status, fixed.body.as_str()), (200, "no quote today"));
    assert!(fixed.must("seawall-degraded").starts_with("static; since="), "{fixed:?}");
    assert!(fixed.must("proxy-status").contains("answered 503"), "{fixed:?}");
    wait_until("the breaker opens", || {
        node.get("/a");
        node.breaker("api") == "open"
    });
    assert_eq!(node.get("/a").body, "taken", "clients see no difference but the marks");
    well.store(true, Relaxed);
    wait_until("whole answers again", || node.get("/a").header("seawall-degraded").is_none());
}

/// Of two endpoints, the one that fails its checks is left out; the journal tells when and why.
#[test]
fn health_checks_take_an_endpoint_out_and_back() {
    let (mut one, two) = (Nginx::start(), Nginx::start());
    one.configure("one", "");
    two.configure("two", "");
    one.reload();
    two.reload();
    let place = Place::new(&format!(
        "zone: a\nzones: [a, b]\n\
         listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: api, upstream: pair }}] }}]\n\
         upstreams:\n  pair:\n    endpoints:\n      - {{ address: \"127.0.0.1:{}\", zone: a }}\n      \
         - {{ address: \"127.0.0.1:{}\", zone: b }}\n    \
         health: {{ path: /, every: 50ms, timeout: 1s, unhealthy_after: 2, healthy_after: 2 }}\n",
        one.port, two.port
    ));
    let node = place.node();
    // Twenty in a row would not come about by chance. At first nginx may still answer by the configuration before.
    wait_until("its own zone answers, and no other", || (0..20).all(|_| node.get("/").body == "one"));
    one.kill();
    let healthy = || node.status()["upstreams"][0]["endpoints"][0]["healthy"] == true;
    wait_until("the dead one is found out", || !healthy());
    for _ in 0..20 {
        assert_eq!(node.get("/").body, "two");
    }
    let journal = node.journal();
    let gone = journal.first("endpoint_unhealthy");
    assert_eq!(gone["subject"], format!("endpoint:pair/127.0.0.1:{}", one.port));
    assert_eq!(gone["fields"]["reason"], "connection refused");
    assert!(journal.story(gone).ends_with(&["config_loaded", "node_started"]), "{:?}", journal.story(gone));
    one.run();
    wait_until("it is back", healthy);
    let journal = node.journal();
    assert_eq!(journal.story(journal.first("endpoint_healthy"))[..2], ["endpoint_healthy", "endpoint_unhealthy"]);
    wait_until("it gets its share again", || node.get("/").body == "one");
}

/// Nobody healthy: told at once, with the time of the next check.
#[test]
fn no_endpoint_is_healthy() {
    let server = Server::start(|_| sick());
    let place = Place::new(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: api, upstream: up }}] }}]\n\
         upstreams: {{ up: {{ url: \"{}\", health: {{ path: /, every: 50ms, timeout: 1s }} }} }}\n",
        url(&server)
    ));
    let node = place.node();
    wait_until("it is found out", || node.journal().has("endpoint_unhealthy"));
    let refused = node.get("/");
    refused.is_ours(503, "destination_unavailable");
    assert!(refused.must("proxy-status").contains("none of 1 endpoints is healthy"), "{refused:?}");
    let reason = node.journal().first("endpoint_unhealthy")["fields"]["reason"].clone();
    assert_eq!(reason, "answered 503 Service Unavailable");
}
