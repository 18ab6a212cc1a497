//! Against a shop with tills in virtual time: Poisson arrivals, a first-come-first-served queue, c servers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::prng::Prng;

/// An upstream and those who call it.
struct Shop {
    prng: Prng,
    limit: Concurrency,
    now_ns: u64,
    tills: usize,
    serve_ms: f64,
    /// True: each call takes exactly `serve_ms`; false: exponential around it.
    even: bool,
    arrivals_per_s: f64,
    timeout: Option<Duration>,
    next_arrival_ns: u64,
    busy: BinaryHeap<Reverse<(u64, u64)>>,
    waiting: VecDeque<Permit>,
    serving: Vec<Option<Permit>>,
    free: Vec<usize>,
    tally: Tally,
}

#[derive(Clone, Copy, Default, Debug)]
struct Tally {
    served: u32,
    timed_out: u32,
    refused: u32,
    latency_ms: f64,
    limit_sum: f64,
    arrivals: u32,
    dips: u32,
    slower: u32,
}

impl Tally {
    fn limit(&self) -> f64 {
        self.limit_sum / f64::from(self.arrivals.max(1))
    }

    fn latency(&self) -> f64 {
        self.latency_ms / f64::from(self.served.max(1))
    }
}

impl Shop {
    fn new(config: ConcurrencyConfig, tills: usize, serve_ms: f64, arrivals_per_s: f64) -> Self {
        Self {
            prng: Prng::new(17),
            limit: Concurrency::new(config, Mono::ZERO).unwrap(),
            now_ns: 0,
            tills,
            serve_ms,
            even: false,
            arrivals_per_s,
            timeout: None,
            next_arrival_ns: 0,
            busy: BinaryHeap::new(),
            waiting: VecDeque::new(),
            serving: Vec::new(),
            free: Vec::new(),
            tally: Tally::default(),
        }
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.prng.unit()).ln()
    }

    fn run(&mut self, seconds: u64) -> Tally {
        let end = self.now_ns + seconds * 1_000_000_000;
        self.tally = Tally::default();
        loop {
            let done = self.busy.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
            self.now_ns = done.min(self.next_arrival_ns).min(end);
            if self.now_ns == end {
                return self.tally;
            }
            if self.now_ns == done {
                let Reverse((_, slot)) = self.busy.pop().unwrap();
                let permit = self.serving[slot as usize].take().unwrap();
                self.free.push(slot as usize);
                self.answer(permit);
            } else {
                self.arrive();
            }
            while self.busy.len() < self.tills
                && let Some(permit) = self.waiting.pop_front()
            {
                let serve_ms = if self.even { self.serve_ms } else { self.exponential(self.serve_ms) };
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.serving.push(None);
                    self.serving.len() - 1
                });
                self.serving[slot] = Some(permit);
                self.busy.push(Reverse((self.now_ns + (serve_ms * 1e6) as u64, slot as u64)));
            }
        }
    }

    fn arrive(&mut self) {
        let gap = self.exponential(1e9 / self.arrivals_per_s);
        self.next_arrival_ns = self.now_ns + gap as u64 + 1;
        self.tally.arrivals += 1;
        self.tally.limit_sum += f64::from(self.limit.limit());
        match self.limit.admit(Mono::from_nanos(self.now_ns)) {
            Ok(permit) => self.waiting.push_back(permit),
            Err(_) => self.tally.refused += 1,
        }
    }

    /// A call beyond its timeout is told as one when it ends: late, but a signal.
    fn answer(&mut self, permit: Permit) {
        let now = Mono::from_nanos(self.now_ns);
        let took = now.since(permit.started);
        let timed_out = self.timeout.is_some_and(|timeout| took > timeout);
        let outcome = if timed_out { Outcome::Failure(Failure::Timeout) } else { Outcome::Success };
        self.tally.timed_out += u32::from(timed_out);
        self.tally.served += u32::from(!timed_out);
        self.tally.latency_ms += if timed_out { 0.0 } else { took.as_secs_f64() * 1e3 };
        match self.limit.record(now, permit, outcome).map(|change| change.why) {
            Some(Why::Dip) => self.tally.dips += 1,
            Some(Why::Slower) => self.tally.slower += 1,
            _ => {}
        }
    }
}

/// 25 tills at 50 ms serve 500/s.
fn shop(arrivals_per_s: f64) -> Shop {
    Shop::new(ConcurrencyConfig::default(), 25, 50.0, arrivals_per_s)
}

#[track_caller]
fn assert_near_knee(tally: Tally, tills: f64) {
    assert!((0.95 * tills..1.6 * tills).contains(&tally.limit()), "limit {}: {tally:?}", tally.limit());
}

#[test]
fn overload_settles_at_the_knee() {
    let mut shop = shop(800.0);
    shop.run(60);
    let tally = shop.run(60);
    assert_near_knee(tally, 25.0);
    assert!(tally.served > 60 * 500 * 95 / 100, "goodput {tally:?}");
    assert!(tally.latency() < 50.0 * 1.5, "{}", tally.latency());
}

#[test]
fn even_service_settles_closer() {
    let mut shop = Shop { even: true, ..shop(800.0) };
    shop.run(60);
    let tally = shop.run(60);
    assert!((25.0 * 0.95..25.0 * 1.35).contains(&tally.limit()), "{}", tally.limit());
    assert!(tally.served > 60 * 500 * 97 / 100, "{tally:?}");
}

#[test]
fn two_hours_of_overload_do_not_drift() {
    // 10 tills at 100 ms serve 100/s; 160/s are asked for.
    let mut shop = Shop::new(ConcurrencyConfig::default(), 10, 100.0, 160.0);
    shop.run(600);
    for _ in 0..12 {
        let tally = shop.run(600);
        assert_near_knee(tally, 10.0);
        assert!(tally.served > 600 * 100 * 94 / 100, "{tally:?}");
        assert!(tally.dips > 10 && tally.slower == 0, "{tally:?}");
    }
    let baseline = shop.limit.baseline().unwrap().as_secs_f64() * 1e3;
    assert!((80.0..115.0).contains(&baseline), "{baseline} ms");
}

#[test]
fn a_healthy_upstream_is_not_refused_anything() {
    // Three quarters of capacity: the limit is hardly ever reached, and nothing is pinned to measure.
    let mut shop = shop(375.0);
    shop.run(60);
    let tally = shop.run(600);
    assert!(tally.refused * 500 < tally.arrivals, "{tally:?}");
    assert_eq!(tally.dips, 0);
}

#[test]
fn quiet_hours_do_not_grow_it() {
    let mut shop = shop(50.0);
    shop.run(3_600);
    assert_eq!(shop.limit.limit(), 20, "2.5 calls at a time never reach it");
}

#[test]
fn half_the_tills_close_and_open_again() {
    let mut shop = shop(800.0);
    shop.run(60);
    shop.tills = 12;
    shop.run(20);
    assert_near_knee(shop.run(60), 12.0);
    shop.tills = 25;
    shop.run(20);
    let tally = shop.run(60);
    assert_near_knee(tally, 25.0);
    assert!(tally.served > 60 * 500 * 93 / 100, "{tally:?}");
}

#[test]
fn slower_for_good_is_no_queue() {
    let mut shop = shop(400.0);
    shop.run(120);
    shop.serve_ms = 150.0; // 25 tills now serve 167/s: overload as well.
    let change = shop.run(30);
    assert!(change.slower >= 1, "{change:?}");
    let tally = shop.run(120);
    assert_near_knee(tally, 25.0);
    assert!(tally.served > 120 * 166 * 93 / 100, "{tally:?}");
    shop.serve_ms = 50.0;
    shop.run(30);
    let tally = shop.run(60);
    assert!(tally.refused * 50 < tally.arrivals, "well again: {tally:?}");
}

#[test]
fn constant_timeouts_are_a_signal() {
    let mut shop = Shop { timeout: Some(Duration::from_secs(1)), ..shop(200.0) };
    shop.run(60);
    (shop.even, shop.serve_ms) = (true, 1_001.0);
    shop.run(60);
    assert_eq!(shop.limit.limit(), 2, "all calls time out, always after the same time");
    (shop.even, shop.serve_ms) = (false, 50.0);
    shop.run(30);
    let tally = shop.run(60);
    assert!(tally.refused * 50 < tally.arrivals, "back within half a minute: {tally:?}");
}

#[test]
fn a_healthy_maximum_stops_what_would_be_believed() {
    let config = ConcurrencyConfig { healthy_rtt_max: Some(Duration::from_millis(100)), ..Default::default() };
    let mut shop = Shop::new(config, 25, 50.0, 400.0);
    shop.run(60);
    shop.serve_ms = 300.0;
    let tally = shop.run(120);
    assert_eq!(tally.slower, 0);
    assert_eq!(shop.limit.limit(), 2);
}

#[test]
fn fast_errors_do_not_lower_the_baseline() {
    let mut limit = Concurrency::new(ConcurrencyConfig::default(), Mono::ZERO).unwrap();
    for i in 0..10_000_u64 {
        let permit = limit.admit(Mono::from_millis(i)).unwrap();
        let outcome = Outcome::Failure(if i % 2 == 0 { Failure::Status(500) } else { Failure::ConnectRefused });
        assert_eq!(limit.record(Mono::from_millis(i), permit, outcome), None);
    }
    assert_eq!((limit.baseline(), limit.limit(), limit.in_flight()), (None, 20, 0));
}

#[test]
fn numbers_that_make_no_limit_are_named() {
    let default = ConcurrencyConfig::default();
    for (key, config) in [
        ("limit_min", ConcurrencyConfig { limit_min: 0, ..default }),
        ("limit_max", ConcurrencyConfig { limit_max: 1, ..default }),
        ("limit_max", ConcurrencyConfig { limit_max: 1_000_001, ..default }),
        ("limit_initial", ConcurrencyConfig { limit_initial: 5_000, ..default }),
        ("tolerance", ConcurrencyConfig { tolerance: Ratio::ZERO, ..default }),
        ("healthy_rtt_max", ConcurrencyConfig { healthy_rtt_max: Some(Duration::ZERO), ..default }),
        ("drop_share", ConcurrencyConfig { drop_share: Ratio::ZERO, ..default }),
        ("samples_min", ConcurrencyConfig { samples_min: 9, ..default }),
        ("window_max", ConcurrencyConfig { window_min: Duration::ZERO, window_max: Duration::ZERO, ..default }),
        ("window_max", ConcurrencyConfig { window_min: Duration::from_secs(6), ..default }),
        ("baseline_window", ConcurrencyConfig { baseline_window: Duration::from_secs(1), ..default }),
    ] {
        assert_eq!(Concurrency::new(config, Mono::ZERO).unwrap_err().key, key);
    }
    let second = Duration::from_secs(1);
    let narrow = ConcurrencyConfig {
        limit_initial: 1,
        limit_min: 1,
        limit_max: 1,
        samples_min: 10,
        window_min: second,
        window_max: second,
        baseline_window: second * 10,
        ..default
    };
    assert_eq!(narrow.check(), Ok(()));
}

#[test]
fn who_is_refused_is_told_when_a_place_is_likely_free() {
    let config = ConcurrencyConfig { limit_initial: 4, samples_min: 10, ..Default::default() };
    let mut limit = Concurrency::new(config, Mono::ZERO).unwrap();
    for call in 0..10 {
        let permit = limit.admit(Mono::from_millis(call * 90)).unwrap();
        let _ = limit.record(Mono::from_millis(call * 90 + 90), permit, Outcome::Success);
    }
    let now = Mono::from_millis(1_000);
    let _inside: Vec<_> = (0..4).map(|_| limit.admit(now).unwrap()).collect();
    let refusal = limit.admit(now).unwrap_err();
    assert_eq!(refusal.to_string(), "4 calls are on their way and 4 are what the upstream serves without a queue");
    assert_eq!(refusal.retry_in(), Some(Duration::from_micros(22_500)), "four that take 90 ms each");
}

#[test]
fn a_window_ends_when_it_is_full_or_late_or_failing() {
    // One call after the other, each as long: how many until something is told, and what.
    let told = |each_ms: u64, outcome| {
        let mut limit = Concurrency::new(ConcurrencyConfig::default(), Mono::ZERO).unwrap();
        (1..1_000).find_map(|call| {
            let permit = limit.admit(Mono::from_millis((call - 1) * each_ms)).unwrap();
            let change = limit.record(Mono::from_millis(call * each_ms), permit, outcome)?;
            Some((call, change.why, change.limit))
        })
    };
    let timeout = Outcome::Failure(Failure::Timeout);
    assert_eq!(told(1, Outcome::Success), Some((100, Why::Held, 20)), "full");
    assert_eq!(told(400, Outcome::Success), Some((13, Why::Held, 20)), "late, after five seconds");
    assert_eq!(told(600, Outcome::Success), Some((10, Why::Held, 20)), "late, with ten calls");
    assert_eq!(told(1, timeout), Some((10, Why::Drops, 2)), "failing: one at a time was used, and that was too much");
}

/// As many calls as may go at once, all as long; then the next lot. What each window came to.
fn lots(limit_initial: u32, each_ms: &[u64]) -> String {
    let config = ConcurrencyConfig { limit_initial, samples_min: 10, ..Default::default() };
    let (mut limit, mut told) = (Concurrency::new(config, Mono::ZERO).unwrap(), Vec::new());
    for (second, each_ms) in each_ms.iter().enumerate() {
        let now = Mono::from_millis(second as u64 * 1_000);
        let lot: Vec<Permit> = std::iter::from_fn(|| limit.admit(now).ok()).collect();
        for permit in lot {
            let change = limit.record(now + Duration::from_millis(*each_ms), permit, Outcome::Success);
            told.extend(change.map(|change| format!("{:?} {}", change.why, change.limit)));
        }
    }
    told.join(", ")
}

#[test]
fn the_nearer_latency_comes_to_its_bound_the_slower_it_grows() {
    assert_eq!(lots(16, &[100, 100]), "Grew 20, Grew 24", "by the square root");
    assert_eq!(lots(16, &[100, 110]), "Grew 20, Grew 22", "a part of that");
    assert_eq!(lots(16, &[100, 130]), "Grew 20, Queueing 19");
}

#[test]
fn latency_that_does_not_follow_the_limit_twice_is_no_queue() {
    assert_eq!(lots(100, &[100, 300, 300, 300]), "Grew 110, Queueing 55, Queueing 30, Slower 110");
    assert_eq!(lots(100, &[100, 300, 150, 100]), "Grew 110, Queueing 55, Queueing 46, Grew 52");
}

#[test]
fn drops_of_calls_that_were_on_their_way_together_count_once() {
    let timeout = Outcome::Failure(Failure::Timeout);
    let mut limit = Concurrency::new(ConcurrencyConfig::default(), Mono::ZERO).unwrap();
    let mut lot = |at_ms, calls: usize, outcome| {
        let permits: Vec<Permit> = (0..calls).map(|_| limit.admit(Mono::from_millis(at_ms)).unwrap()).collect();
        let end = Mono::from_millis(at_ms + 100);
        permits.into_iter().filter_map(|permit| limit.record(end, permit, outcome)).collect::<Vec<_>>()
    };
    assert_eq!(lot(0, 20, Outcome::Success), [], "one is as good as the other");
    let changes = lot(100, 20, timeout);
    assert_eq!(changes.iter().map(|change| (change.why, change.limit)).collect::<Vec<_>>(), [(Why::Drops, 10)]);
    assert_eq!(lot(200, 10, timeout), [], "begun no later than the cut");
    let changes = lot(201, 10, timeout);
    assert_eq!(changes.iter().map(|change| (change.limit, change.rtt)).collect::<Vec<_>>(), [(5, Duration::ZERO)]);
}

/// Netflix's Gradient2 with its defaults, for comparison only: what the drift looks like that is avoided here.
struct Gradient2 {
    limit: f64,
    long: f64,
    samples: u32,
}

impl Gradient2 {
    fn sample(&mut self, rtt: f64, in_flight: f64) -> u32 {
        self.samples += 1;
        let factor = 2.0 / 601.0;
        let warm = f64::from(self.samples.min(10));
        self.long = if self.samples <= 10 {
            self.long + (rtt - self.long) / warm
        } else {
            self.long * (1.0 - factor) + rtt * factor
        };
        let long = self.long;
        if long / rtt > 2.0 {
            self.long *= 0.95;
        }
        if in_flight >= self.limit / 2.0 {
            let gradient = (1.5 * long / rtt).clamp(0.5, 1.0);
            let next = self.limit * 0.8 + (self.limit * gradient + 4.0) * 0.2;
            self.limit = next.clamp(20.0, 200.0);
        }
        self.limit as u32
    }
}

#[test]
fn gradient2_as_published_drifts_where_this_does_not() {
    let mut gradient = Gradient2 { limit: 20.0, long: 0.0, samples: 0 };
    let mut limits = vec![];
    for rtt in [10.0; 12].into_iter().chain([40.0; 6]) {
        limits.push(gradient.sample(rtt, gradient.limit));
    }
    assert_eq!(limits[..12], [20, 21, 22, 23, 24, 24, 25, 26, 27, 28, 28, 29], "`facts/guards.md` section 3");
    assert_eq!(limits[12..], [27, 25, 23, 22, 20, 20]);
    // Fixed capacity of 25 at 10 ms in constant overload: each window's latency is limit / 25, once above the knee.
    let mut gradient = Gradient2 { limit: 25.0, long: 0.0, samples: 0 };
    for _ in 0..7_200 {
        gradient.sample(10.0 * (gradient.limit / 25.0).max(1.0), gradient.limit);
    }
    assert!(gradient.limit > 150.0, "two hours of one-second windows: {}", gradient.limit);
}

proptest! {
    #[test]
    fn between_its_bounds_whatever_the_clock(
        steps in prop::collection::vec((0_u8..8, prop_oneof![8 => 0_u64..50, 1 => 0_u64..900_000_000, 1 => any::<u64>()]), 1..600),
    ) {
        let config = ConcurrencyConfig {
            limit_initial: 5, limit_min: 2, limit_max: 9, samples_min: 10, window_min: Duration::ZERO, ..Default::default()
        };
        let mut limit = Concurrency::new(config, Mono::ZERO).unwrap();
        let (mut now, mut held) = (Mono::ZERO, Vec::new());
        for (step, gap_ms) in steps {
            now = now + Duration::from_millis(gap_ms);
            match step {
                0..=3 => match limit.admit(now) {
                    Ok(permit) => held.push(permit),
                    Err(_) => prop_assert!(held.len() as u32 >= limit.limit()),
                },
                _ => if let Some(permit) = held.pop() {
                    let outcome = match step {
                        4 | 5 => Outcome::Success,
                        6 => Outcome::Failure(Failure::Timeout),
                        _ => Outcome::Ignored,
                    };
                    let _ = limit.record(now, permit, outcome);
                },
            }
            prop_assert!((2..=9).contains(&limit.limit()) && limit.limit.is_finite());
            prop_assert_eq!(limit.in_flight() as usize, held.len());
        }
    }
}
