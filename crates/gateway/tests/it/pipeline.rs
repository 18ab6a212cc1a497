//! Guards that a route may have beside the usual ones: rates, limits that are found out, second copies, ejections, and
//! retries that belong to one layer only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use seawall_core::guard::breaker::{BreakerConfig, Ramp, SlowRule};
use seawall_core::guard::concurrency::ConcurrencyConfig;
use seawall_core::guard::hedge::HedgeConfig;
use seawall_core::guard::learned::LearnedConfig;
use seawall_core::guard::outlier::OutlierConfig;
use seawall_core::guard::rate::RateConfig;
use seawall_core::guard::throttle::ThrottleConfig;
use seawall_core::journal::Kind;
use seawall_core::observation::EndpointSnapshot;
use seawall_core::units::Ratio;

use crate::world::{Do, Server, World, answer, breaker, ok, policy, route, upstream, wait_until};

const MS: Duration = Duration::from_millis(1);

fn ratio(share: f64) -> Ratio {
    Ratio::new(share).expect("a share")
}

#[test]
fn a_rate_is_kept_and_the_refusal_says_when_to_come_back() {
    let server = Server::start(|_, _| ok("well"));
    let mut route = route("r", 0);
    route.guards.rate = Some(RateConfig { cells: 1, per: Duration::from_secs(60), burst: 3 });
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    let statuses: Vec<u16> = (0..4).map(|_| world.get("/").status).collect();
    assert_eq!(statuses, [200, 200, 200, 429]);
    let refused = world.get("/");
    assert_eq!(refused.must("retry-after"), "60");
    assert!(refused.body.contains("\"rule\":\"rate\"") && server.count() == 3, "{refused:?}");
}

#[test]
fn an_upstreams_own_limit_is_learned_from_its_answers() {
    let server = Server::start(|_, count| {
        if count < 2 { ok("well") } else { answer("429 Too Many Requests", "Retry-After: 30\r\n", "slow down") }
    });
    let mut route = route("r", 0);
    route.guards.retry.attempts_max = 1;
    route.guards.learned_limit = Some(LearnedConfig::default());
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    let answers: Vec<u16> = (0..6).map(|_| world.get("/").status).collect();
    assert_eq!(answers[..3], [200, 200, 429]);
    let refused = world.get("/");
    assert!(refused.status == 503 && refused.body.contains("\"rule\":\"learned\""), "{refused:?}");
    assert!(server.count() < 6, "the upstream is left alone for as long as it asked");
}

#[test]
fn more_at_once_than_an_upstream_serves_are_refused() {
    let free = Arc::new(AtomicBool::new(false));
    let held = Arc::clone(&free);
    let server = Server::start(move |_, _| {
        while !held.load(Relaxed) {
            std::thread::yield_now();
        }
        ok("well")
    });
    let mut route = route("r", 0);
    let limits = ConcurrencyConfig { limit_initial: 1, limit_min: 1, limit_max: 1, ..ConcurrencyConfig::default() };
    route.guards.concurrency = Some(limits);
    route.guards.throttle = Some(ThrottleConfig::default());
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| world.get("/").status);
        wait_until("the first is on its way", || server.count() == 1);
        let refused = world.get("/");
        assert!(refused.status == 503 && refused.body.contains("\"rule\":\"concurrency\""), "{refused:?}");
        free.store(true, Relaxed);
        assert_eq!(first.join().expect("it answers"), 200);
    });
    assert_eq!(world.get("/").status, 200, "the place was given back");
}

/// The first twenty answers teach what is usual; then one endpoint hangs and the copy at the other wins.
#[test]
fn a_second_copy_answers_when_the_first_is_slow() {
    let (hangs, copies) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (slow, counted) = (Arc::clone(&hangs), Arc::clone(&copies));
    let server = Server::start(move |_, _| {
        if slow.load(Relaxed) && counted.fetch_add(1, Relaxed).is_multiple_of(2) {
            return Do::Wait(Duration::from_secs(3), Box::new(ok("first")));
        }
        ok("quick")
    });
    let mut hedged = route("r", 0);
    let hedge = HedgeConfig { quantile: ratio(0.9), samples_min: 20, delay_max: 50 * MS, ..HedgeConfig::default() };
    hedged.guards.hedge = Some(hedge);
    let world = World::new(policy(vec![hedged], vec![upstream("u", &[server.address])]));
    (0..20).for_each(|_| assert_eq!(world.get("/").body, "quick"));
    assert_eq!(world.route(0).hedges_total, 0, "nothing was known");
    hangs.store(true, Relaxed);
    assert_eq!(world.get("/").body, "quick");
    let route = world.route(0);
    assert_eq!((route.hedges_total, route.hedges_won_total, route.failures_total), (1, 1, 0));
    assert_eq!(world.post("/", "", "x").body, "first", "what is not idempotent has no second copy");
    assert_eq!(world.route(0).hedges_total, 1);
    assert_eq!(route.in_flight, 0);
}

#[test]
fn a_copy_that_fails_leaves_the_first_its_chance() {
    let (slow, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (is_slow, counted) = (Arc::clone(&slow), Arc::clone(&calls));
    let server = Server::start(move |_, _| {
        if !is_slow.load(Relaxed) {
            return ok("quick");
        }
        match counted.fetch_add(1, Relaxed) {
            0 => Do::Wait(200 * MS, Box::new(ok("first"))),
            _ => Do::Reset,
        }
    });
    let mut hedged = route("r", 0);
    let hedge = HedgeConfig { quantile: ratio(0.9), samples_min: 20, delay_max: 20 * MS, ..HedgeConfig::default() };
    hedged.guards.hedge = Some(hedge);
    hedged.guards.retry.attempts_max = 1;
    let world = World::new(policy(vec![hedged], vec![upstream("u", &[server.address])]));
    (0..20).for_each(|_| assert_eq!(world.get("/").body, "quick"));
    slow.store(true, Relaxed);
    assert_eq!(world.get("/").body, "first");
    assert_eq!((world.route(0).hedges_total, world.route(0).hedges_won_total), (1, 0));
}

#[test]
fn an_endpoint_that_fails_in_a_row_is_ejected_and_comes_back() {
    let sick = Arc::new(AtomicBool::new(true));
    let is_sick = Arc::clone(&sick);
    let odd = Server::start(move |_, _| {
        if is_sick.load(Relaxed) { answer("500 Internal Server Error", "", "odd") } else { ok("mended") }
    });
    let well: Vec<Server> = (0..2).map(|_| Server::start(|_, _| ok("well"))).collect();
    let mut upstream = upstream("u", &[odd.address, well[0].address, well[1].address]);
    upstream.outlier = Some(OutlierConfig {
        consecutive_failures: 3,
        ejection_base: 400 * MS,
        ejection_jitter: Duration::ZERO,
        ..OutlierConfig::default()
    });
    let mut route = route("r", 0);
    route.guards.retry.attempts_max = 1;
    let world = World::new(policy(vec![route], vec![upstream]));
    wait_until("the odd one is ejected", || {
        world.get("/");
        !world.entries(Kind::EndpointEjected).is_empty()
    });
    let entry = world.entries(Kind::EndpointEjected).remove(0);
    assert_eq!((entry.fields["why"].as_str(), entry.fields["failures"].as_str()), ("consecutive", "3"), "{entry:?}");
    assert!(entry.subject.ends_with(&odd.address.to_string()), "{entry:?}");
    let endpoints = |of: fn(&EndpointSnapshot) -> bool| -> Vec<bool> {
        (world.view)().upstreams[0].endpoints.iter().map(of).collect()
    };
    assert_eq!(endpoints(|it| it.ejected), [true, false, false], "it is seen in the status");
    assert_eq!(endpoints(|it| it.healthy), [true; 3], "no health check fails");
    sick.store(false, Relaxed);
    wait_until("it comes back and serves", || world.get("/").body == "mended");
    let returned = world.entries(Kind::EndpointReturned);
    assert_eq!((returned.len(), returned[0].cause), (1, Some(entry.seq)));
}

/// Each of its calls is outrun by a copy elsewhere, so that none ever ends in a failure.
#[test]
fn an_endpoint_that_hangs_behind_copies_is_ejected_all_the_same() {
    let hangs = Arc::new(AtomicBool::new(false));
    let is_hanging = Arc::clone(&hangs);
    let odd =
        Server::start(
            move |_, _| {
                if is_hanging.load(Relaxed) { Do::Wait(3_000 * MS, Box::new(ok("at last"))) } else { ok("odd") }
            },
        );
    let well: Vec<Server> = (0..2).map(|_| Server::start(|_, _| ok("well"))).collect();
    let mut upstream = upstream("u", &[odd.address, well[0].address, well[1].address]);
    upstream.outlier =
        Some(OutlierConfig { interval: 200 * MS, requests_min: 5, endpoints_min: 3, ..OutlierConfig::default() });
    let mut hedged = route("r", 0);
    let hedge = HedgeConfig { quantile: ratio(0.9), samples_min: 20, delay_max: 20 * MS, ..HedgeConfig::default() };
    hedged.guards.hedge = Some(hedge);
    let slow = SlowRule { over: 4 * MS, rate_max: ratio(0.9), in_flight: true };
    hedged.guards.breaker = Some(BreakerConfig { slow: Some(slow), ..BreakerConfig::default() });
    hedged.guards.budget.ratio = Ratio::ONE;
    let world = World::new(policy(vec![hedged], vec![upstream]));
    (0..20).for_each(|_| assert_eq!(world.get("/").status, 200));
    hangs.store(true, Relaxed);
    wait_until("it is ejected", || {
        assert_eq!(world.get("/").body, "well");
        !world.entries(Kind::EndpointEjected).is_empty()
    });
    let entry = world.entries(Kind::EndpointEjected).remove(0);
    assert_eq!(entry.fields["why"], "latency", "{entry:?}");
    assert!(entry.subject.ends_with(&odd.address.to_string()), "{entry:?}");
    assert!(world.route(0).breaker.slow_rate.is_some_and(|rate| rate > 0.0), "and the breaker has seen slow calls");
}

/// The second copy wins and its answer is long; that its client leaves says nothing about the upstream.
#[test]
fn a_client_that_leaves_a_winning_copy_is_no_slow_call() {
    let (slow, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (is_slow, counted) = (Arc::clone(&slow), Arc::clone(&calls));
    let server = Server::start(move |_, _| match is_slow.load(Relaxed).then(|| counted.fetch_add(1, Relaxed)) {
        None => ok("quick"),
        Some(0) => Do::Hang,
        Some(_) => Do::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n".to_vec()),
    });
    let mut hedged = route("r", 0);
    let hedge = HedgeConfig { quantile: ratio(0.9), samples_min: 20, delay_max: 20 * MS, ..HedgeConfig::default() };
    hedged.guards.hedge = Some(hedge);
    let over = 300 * MS;
    let slow_rule = SlowRule { over, rate_max: ratio(0.9), in_flight: true };
    hedged.guards.breaker = Some(BreakerConfig { slow: Some(slow_rule), ..BreakerConfig::default() });
    let world = World::new(policy(vec![hedged], vec![upstream("u", &[server.address])]));
    (0..20).for_each(|_| assert_eq!(world.get("/").body, "quick"));
    slow.store(true, Relaxed);
    let mut client = world.client();
    let begun = std::time::Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("the long answer begins", || client.line().is_some_and(|line| line == "begun"));
    wait_until("a slow call would be slow by now", || begun.elapsed() > over + 20 * MS);
    drop(client);
    wait_until("the gateway has let go of it", || world.route(0).in_flight == 0);
    let route = world.route(0);
    assert_eq!((route.hedges_won_total, route.breaker.slow_rate), (1, Some(0.0)));
}

#[test]
fn an_upstream_that_asks_for_less_is_not_shut_out() {
    let server = Server::start(|_, _| answer("429 Too Many Requests", "", "slower"));
    let mut route = route("r", 0);
    route.guards.breaker = Some(BreakerConfig { calls_min: 5, ..BreakerConfig::default() });
    route.guards.retry.attempts_max = 1;
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    (0..20).for_each(|_| assert_eq!(world.get("/").status, 429));
    let route = world.route(0);
    assert_eq!((server.count(), route.breaker.state, route.failures_total), (20, "closed", 20));
}

#[test]
fn only_one_layer_repeats() {
    let server = Server::start(|_, _| answer("503 Service Unavailable", "", "no"));
    let world = World::simple(&server);
    assert_eq!(world.get("/").status, 503);
    let ours = server.count();
    assert!(ours > 1 && server.seen().iter().all(|seen| seen.header("seawall-retry-owner").is_some()), "{ours} tries");
    let mut client = world.client();
    let asked = client.ask("GET / HTTP/1.1\r\nHost: h\r\nSeawall-Retry-Owner: 1.1 above\r\n\r\n");
    assert_eq!((asked.status, server.count()), (503, ours + 1), "the layer above repeats it");
    assert_eq!(server.seen().last().and_then(|seen| seen.header("seawall-retry-owner")), Some("1.1 above".into()));
}

#[test]
fn who_cannot_wait_long_enough_is_told_at_once() {
    let server = Server::start(|_, _| Do::Wait(60 * MS, Box::new(ok("slow but well"))));
    let mut route = route("r", 0);
    route.guards.look_ahead = true;
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    (0..20).for_each(|_| assert_eq!(world.get("/").status, 200));
    let mut client = world.client();
    let hasty = client.ask("GET / HTTP/1.1\r\nHost: h\r\nX-Envoy-Expected-Rq-Timeout-Ms: 20\r\n\r\n");
    assert_eq!((hasty.status, server.count()), (504, 20), "{hasty:?}");
    assert!(hasty.body.contains("are left for what usually takes"), "{hasty:?}");
}

/// An upstream that answers nothing opens the breaker although not one call has ended.
#[test]
fn calls_that_hang_open_the_breaker_and_traffic_comes_back_by_degrees() {
    let hangs = Arc::new(AtomicBool::new(true));
    let is_hung = Arc::clone(&hangs);
    let server = Server::start(move |_, _| {
        if is_hung.load(Relaxed) { Do::Wait(Duration::from_secs(2), Box::new(ok("late"))) } else { ok("well") }
    });
    let mut route = route("r", 0);
    let slow = SlowRule { rate_max: ratio(0.6), over: 100 * MS, in_flight: true };
    let ramp = Ramp { steps: vec![ratio(0.5)], step_for: 200 * MS, calls_min: 1 };
    route.guards.breaker = Some(BreakerConfig { slow: Some(slow), ramp: Some(ramp), ..breaker() });
    let world = World::new(policy(vec![route], vec![upstream("u", &[server.address])]));
    std::thread::scope(|scope| {
        let hung: Vec<_> = (0..4).map(|_| scope.spawn(|| world.get("/").body)).collect();
        wait_until("the breaker opens", || !world.entries(Kind::BreakerOpened).is_empty());
        assert!(hung.iter().all(|call| !call.is_finished()), "not one has ended");
        hangs.store(false, Relaxed);
        wait_until("it is closed again", || {
            world.get("/");
            !world.entries(Kind::BreakerClosed).is_empty()
        });
    });
    let opened = world.entries(Kind::BreakerOpened).remove(0);
    assert_eq!(opened.fields["why"], "slow_rate");
    let recovering = world.entries(Kind::BreakerRecovering);
    assert_eq!(recovering.last().map(|entry| entry.fields["share"].as_str()), Some("50%"));
}
