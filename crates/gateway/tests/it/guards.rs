//! Guards on a real route: retries within their budget, the breaker, the bulkhead, deadlines, health, fallbacks.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use seawall_core::guard::budget::BudgetConfig;
use seawall_core::guard::bulkhead::BulkheadConfig;
use seawall_core::guard::health::{Ask, HealthConfig};
use seawall_core::id::UpstreamId;
use seawall_core::journal::Kind;
use seawall_core::policy::Fallback;
use seawall_core::units::Ratio;

use crate::world::{Do, Server, World, answer, breaker, ok, policy, post, route, upstream, wait_until};

fn unavailable() -> Do {
    answer("503 Service Unavailable", "", "no")
}

#[test]
fn a_failed_get_is_tried_again_and_a_post_is_not() {
    let server = Server::playing(vec![unavailable(), Do::Reset, ok("third")]);
    let world = World::simple(&server);
    assert_eq!(world.get("/").body, "third");
    let route = world.route(0);
    assert_eq!((route.retries_total, route.resends_total), (1, 1), "the reset hit a reused connection: free");
    let server = Server::playing(vec![unavailable(), ok("never asked")]);
    let world = World::simple(&server);
    let refused = world.post("/", "", "x");
    assert_eq!((refused.status, refused.body.as_str()), (503, "no"), "the upstream's own answer");
    assert_eq!(server.count(), 1);
    let server = Server::playing(vec![unavailable(), ok("keyed")]);
    let world = World::simple(&server);
    assert_eq!(world.post("/", "Idempotency-Key: k\r\n", "x").body, "keyed");
    let bodies: Vec<Vec<u8>> = server.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, [b"x", b"x"], "the body was kept whole and sent again");
}

#[test]
fn the_budget_bounds_retries() {
    let server = Server::start(|_, _| unavailable());
    let mut route = route("r", 0);
    route.guards.budget = BudgetConfig { ratio: Ratio::new(0.2).unwrap(), floor_per_s: 0.0, ..BudgetConfig::default() };
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    let mut client = world.client();
    for _ in 0..100 {
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status, 503);
    }
    let route = world.route(0);
    assert!((15..=20).contains(&route.retries_total), "{} retries for 100 requests", route.retries_total);
    assert_eq!(server.count() as u64, 100 + route.retries_total);
    assert!(route.retries_refused_total >= 80);
}

#[test]
fn the_breaker_opens_tells_the_journal_and_finds_its_way_back() {
    let well = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&well);
    let server = Server::start(move |_, _| if of_server.load(Relaxed) { ok("well") } else { unavailable() });
    let mut route = route("r", 0);
    route.guards.retry.attempts_max = 1;
    route.guards.breaker = Some(breaker());
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    for _ in 0..4 {
        assert_eq!(world.get("/").body, "no");
    }
    let refused = world.get("/");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.must("retry-after"), "1");
    assert!(refused.must("proxy-status").contains("the breaker is open (4 failed and 0 slow of 4 calls)"));
    assert!(refused.body.contains("\"rule\":\"breaker\""));
    assert_eq!(server.count(), 4, "an open breaker spares the upstream");
    assert_eq!(world.route(0).breaker.state, "open");
    well.store(true, Relaxed);
    wait_until("a probe goes through", || world.get("/").status == 200);
    assert_eq!(world.route(0).breaker.state, "closed");
    let opened = world.entries(Kind::BreakerOpened).remove(0);
    assert_eq!((opened.subject.as_str(), opened.fields["failed"].as_str()), ("route:r", "4"));
    let half = world.entries(Kind::BreakerHalfOpened).remove(0);
    let closed = world.entries(Kind::BreakerClosed).remove(0);
    assert_eq!((half.cause, closed.cause), (Some(opened.seq), Some(half.seq)), "each names what led to it");
}

#[test]
fn slow_answers_open_the_breaker_too() {
    let server = Server::start(|_, _| Do::Wait(Duration::from_millis(30), Box::new(ok("slow"))));
    let mut route = route("r", 0);
    let slow = seawall_core::guard::breaker::SlowRule {
        rate_max: Ratio::new(0.6).unwrap(),
        over: Duration::from_millis(10),
        in_flight: true,
    };
    route.guards.breaker = Some(seawall_core::guard::breaker::BreakerConfig { slow: Some(slow), ..breaker() });
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    let statuses: Vec<u16> = (0..5).map(|_| world.get("/").status).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 503]);
}

#[test]
fn the_bulkhead_queues_a_few_and_refuses_the_rest() {
    let release = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&release);
    let server = Server::start(move |_, _| {
        while !of_server.load(Relaxed) {
            std::thread::yield_now();
        }
        ok("done")
    });
    let mut route = route("r", 0);
    route.guards.bulkhead =
        BulkheadConfig { calls_max: 1, waiting_max: 1, wait_max: Duration::from_secs(10), ..BulkheadConfig::default() };
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| world.get("/1").status);
        wait_until("the first is on its way", || world.route(0).in_flight == 1 && server.count() == 1);
        let second = scope.spawn(|| {
            barrier.wait();
            world.get("/2").status
        });
        barrier.wait();
        wait_until("the second waits", || world.route(0).waiting == 1);
        let third = world.get("/3");
        assert_eq!(third.status, 503);
        assert!(third.must("proxy-status").contains("1 calls are on their way already and 1 wait"));
        assert!(third.header("retry-after").is_some());
        release.store(true, Relaxed);
        assert_eq!((first.join().unwrap(), second.join().unwrap()), (200, 200));
    });
    assert_eq!((world.route(0).in_flight, world.route(0).waiting), (0, 0));
}

#[test]
fn nobody_waits_longer_than_they_have_time() {
    let server = Server::start(|_, _| Do::Hang);
    let mut route = route("r", 0);
    route.guards.timeout = Duration::from_millis(200);
    route.guards.bulkhead = BulkheadConfig {
        calls_max: 1,
        waiting_max: 5,
        wait_max: Duration::from_millis(50),
        ..BulkheadConfig::default()
    };
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| world.get("/1").status);
        wait_until("the first is on its way", || world.route(0).in_flight == 1);
        assert_eq!(world.get("/2").status, 503, "waited 50 ms in vain");
        assert_eq!(first.join().unwrap(), 504);
    });
    let spent = world.client().ask("GET / HTTP/1.1\r\nHost: h\r\nX-Envoy-Expected-Rq-Timeout-Ms: 0\r\n\r\n");
    assert_eq!((spent.status, server.count()), (504, 1), "no time left: the upstream is not asked");
    let mut client = world.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\nX-Envoy-Expected-Rq-Timeout-Ms: 100\r\n\r\n");
    assert_eq!(client.next().unwrap().status, 504);
    let passed: u64 = server.seen()[1].header("x-envoy-expected-rq-timeout-ms").unwrap().parse().unwrap();
    assert!(passed <= 100, "what is left is passed on, not what there was");
}

#[test]
fn the_healthy_endpoint_gets_the_calls() {
    let sick = Server::start(|_, _| unavailable());
    let well = Server::start(|_, _| ok("well"));
    let mut upstream = upstream("u", &[sick.address, well.address]);
    upstream.health = Some(HealthConfig {
        ask: Ask::Path("/healthz".into()),
        every: Duration::from_millis(20),
        timeout: Duration::from_millis(500),
        unhealthy_after: 2,
        healthy_after: 1,
    });
    let world = World::new(policy(vec![route("r", 0)], vec![upstream]));
    wait_until("the sick one is taken out", || !(world.view)().upstreams[0].endpoints[0].healthy);
    for _ in 0..10 {
        assert_eq!(world.get("/").body, "well");
    }
    assert!(sick.seen().iter().all(|seen| seen.line().contains("/healthz")));
    assert_eq!(world.route(0).failures_total, 0);
    let entry = world.entries(Kind::EndpointUnhealthy).remove(0);
    assert!(entry.subject.starts_with("endpoint:u/127.0.0.1:") && entry.fields["reason"].contains("503"));
}

#[test]
fn a_retry_goes_to_the_other_endpoint() {
    let sick = Server::start(|_, _| Do::Reset);
    let well = Server::start(|_, _| ok("well"));
    let world = World::new(policy(vec![route("r", 0)], vec![upstream("u", &[sick.address, well.address])]));
    for _ in 0..20 {
        assert_eq!(world.get("/").body, "well");
    }
    assert!(sick.count() <= 20 && world.route(0).retries_total == sick.count() as u64);
}

#[test]
fn no_healthy_endpoint_is_told() {
    let sick = Server::start(|_, _| unavailable());
    let mut upstream = upstream("u", &[sick.address]);
    upstream.health =
        Some(HealthConfig { every: Duration::from_millis(20), unhealthy_after: 1, ..HealthConfig::default() });
    let world = World::new(policy(vec![route("r", 0)], vec![upstream]));
    wait_until("it is taken out", || !(world.view)().upstreams[0].endpoints[0].healthy);
    let answer = world.get("/");
    assert_eq!((answer.status, answer.body.contains("\"rule\":\"health\"")), (503, true));
}

#[test]
fn a_last_good_answer_stands_in_and_is_marked() {
    let server = Server::playing(vec![answer("200 OK", "ETag: \"1\"\r\nAge: 5\r\n", "price: 10"), unavailable()]);
    let mut route = route("r", 0);
    route.fallbacks = vec![Fallback::Stale { for_at_most: Duration::from_secs(600) }];
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    assert_eq!(world.get("/quote?a").header("seawall-degraded"), None);
    let stale = world.get("/quote?a");
    assert_eq!((stale.status, stale.body.as_str(), stale.must("etag").as_str()), (200, "price: 10", "\"1\""));
    assert!(stale.must("seawall-degraded").starts_with("stale; since=20"));
    assert!(stale.must("age").parse::<u64>().unwrap() >= 5);
    assert!(stale.must("proxy-status").contains("answered 503"));
    let unknown = world.get("/quote?b");
    assert_eq!((unknown.status, unknown.body.as_str()), (503, "no"), "another request has no answer to lend");
    assert_eq!(world.entries(Kind::DegradedStarted).len(), 1);
    assert!(world.route(0).degraded_since_ms.is_some() && world.route(0).degraded.contains(&("stale", 1)));
}

#[test]
fn an_answer_in_chunks_is_lent_too_if_it_came_whole_and_is_short() {
    let chunked = |headers: &str, chunks: &str| {
        Do::SendAndClose(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{headers}\r\n{chunks}").into_bytes())
    };
    let long = format!("1001\r\n{}\r\n0\r\n\r\n", "x".repeat(0x1001));
    let cases = [
        (chunked("", "6\r\nprice:\r\n3\r\n 10\r\n0\r\n\r\n"), Some("price: 10")),
        (chunked("", "6\r\nprice:\r\n"), None),
        (chunked("", &long), None),
        (chunked("Trailer: x-sum\r\n", "2\r\nab\r\n0\r\nx-sum: 1\r\n\r\n"), None),
    ];
    for (first, lent) in cases {
        let server = Server::playing(vec![first, unavailable()]);
        let mut route = route("r", 0);
        route.guards.retry.attempts_max = 1;
        route.guards.answer_bytes_max = 0x1000;
        route.fallbacks = vec![Fallback::Stale { for_at_most: Duration::from_secs(600) }];
        let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
        let mut client = world.client();
        client.send("GET /quote HTTP/1.1\r\nHost: h\r\n\r\n");
        let _ = client.next();
        let stale = world.get("/quote");
        assert_eq!((stale.status == 200).then_some(stale.body.as_str()), lent);
        assert_eq!(stale.header("transfer-encoding"), None);
    }
}

#[test]
fn a_fixed_answer_or_another_upstream_stand_in() {
    let sick = Server::start(|_, _| Do::Reset);
    let other = Server::playing(vec![ok("from the other"), Do::Reset]);
    let mut route = route("r", 0);
    route.fallbacks = vec![
        Fallback::Upstream(UpstreamId(1)),
        Fallback::Static { status: 200, content_type: "text/plain".into(), body: "later".into() },
    ];
    let world = World::new(policy(vec![route], vec![upstream("u", &[sick.address]), upstream("v", &[other.address])]));
    let first = world.get("/");
    assert_eq!((first.status, first.body.as_str()), (200, "from the other"));
    assert!(first.must("seawall-degraded").starts_with("upstream; since="));
    let second = world.get("/");
    assert_eq!((second.body.as_str(), second.must("content-type").as_str()), ("later", "text/plain"));
    assert!(second.must("seawall-degraded").starts_with("static; since="));
    let third = world.post("/", "", "x");
    assert_eq!(third.body, "later", "a write that may have been executed is not sent elsewhere");
}

#[test]
fn whole_answers_end_the_reduced_ones() {
    let well = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&well);
    let server = Server::start(move |_, _| if of_server.load(Relaxed) { ok("well") } else { unavailable() });
    let mut route = route("r", 0);
    route.guards.retry.attempts_max = 1;
    route.fallbacks = vec![Fallback::Static { status: 200, content_type: "text/plain".into(), body: "later".into() }];
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    assert_eq!(world.get("/").body, "later");
    well.store(true, Relaxed);
    wait_until("the end is told", || {
        assert_eq!(world.get("/").body, "well");
        !world.entries(Kind::DegradedEnded).is_empty()
    });
    let (began, ended) = (world.entries(Kind::DegradedStarted), world.entries(Kind::DegradedEnded));
    assert_eq!(ended[0].cause, Some(began[0].seq));
    assert_eq!(world.route(0).degraded_since_ms, None);
}

#[test]
fn an_open_breaker_does_not_make_a_client_send_its_body() {
    let server = Server::start(|_, _| unavailable());
    let mut route = route("r", 0);
    route.guards.retry.attempts_max = 1;
    route.guards.breaker = Some(seawall_core::guard::breaker::BreakerConfig {
        wait: crate::world::fixed_wait(Duration::from_secs(60)),
        ..breaker()
    });
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    for _ in 0..4 {
        assert_eq!(world.client().ask(&post("/", "", "x")).status, 503);
    }
    let mut client = world.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9999\r\n\r\n");
    assert_eq!(client.next().unwrap().status, 503, "and not 100");
}

#[test]
fn every_reduced_answer_is_marked_whatever_its_status() {
    let sick = Server::start(|_, _| Do::Reset);
    for (status, retry_after) in [(404, None), (503, Some("1".to_owned()))] {
        let mut route = route("r", 0);
        route.fallbacks = vec![Fallback::Static { status, content_type: "text/plain".into(), body: "no".into() }];
        let world = World::new(policy(vec![route], vec![upstream("u", &[sick.address])]));
        let answer = world.get("/");
        assert_eq!((answer.status, answer.header("retry-after")), (status, retry_after));
        assert!(answer.must("seawall-degraded").starts_with("static; since="));
        assert!(answer.must("proxy-status").starts_with("seawall; error="));
    }
}
