//! Against upstreams in virtual time that keep a limit nobody was told.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::prng::Prng;

const SECOND: u64 = 1_000_000_000;

/// How an upstream keeps its limit.
enum Keeps {
    /// So many in each window from its own beginning.
    Fixed { window_ns: u64, window: u64, used: u64 },
    /// So many in any stretch of this length.
    Sliding { window_ns: u64, taken: VecDeque<u64> },
    /// Tokens that come evenly, up to a bound.
    Bucket { size: f64, tokens: f64, at_ns: u64 },
    /// So many at the same time, per second of their 50 ms.
    Places,
    /// Nobody is refused: calls wait their turn.
    Queue { free_at_ns: u64 },
}

struct Upstream {
    keeps: Keeps,
    per_second: f64,
    /// What a refusal says; a share of the truth is not known here, so a constant.
    retry_after: Option<Duration>,
    in_flight: u64,
}

impl Upstream {
    /// When the answer leaves, or a refusal.
    fn take(&mut self, now: u64) -> Option<u64> {
        let per_window = |window_ns: u64| (self.per_second * window_ns as f64 / 1e9).round() as u64;
        let taken = match &mut self.keeps {
            Keeps::Fixed { window_ns, window, used } => {
                if now / *window_ns != *window {
                    (*window, *used) = (now / *window_ns, 0);
                }
                *used += 1;
                *used <= per_window(*window_ns)
            }
            Keeps::Sliding { window_ns, taken } => {
                while taken.front().is_some_and(|at| at + *window_ns <= now) {
                    taken.pop_front();
                }
                let room = (taken.len() as u64) < per_window(*window_ns);
                if room {
                    taken.push_back(now);
                }
                room
            }
            Keeps::Bucket { size, tokens, at_ns } => {
                *tokens = (*tokens + (now - *at_ns) as f64 / 1e9 * self.per_second).min(*size);
                *at_ns = now;
                let room = *tokens >= 1.0;
                *tokens -= if room { 1.0 } else { 0.0 };
                room
            }
            Keeps::Places => (self.in_flight as f64) < self.per_second * 0.05,
            Keeps::Queue { free_at_ns } => {
                *free_at_ns = (*free_at_ns).max(now) + (1e9 / self.per_second) as u64;
                self.in_flight += 1;
                return Some(*free_at_ns);
            }
        };
        self.in_flight += u64::from(taken);
        taken.then_some(now)
    }
}

struct World {
    learned: Learned,
    upstream: Upstream,
    prng: Prng,
    now: u64,
    next: u64,
    demand: fn(u64) -> f64,
    out: BinaryHeap<Reverse<(u64, u64)>>,
    calls: Vec<Option<(Permit, bool)>>,
    free: Vec<usize>,
    headers: fn(f64) -> Signals,
}

#[derive(Debug, Default)]
struct Tally {
    sent: u32,
    refused: u32,
    accepted: u32,
}

impl World {
    fn new(keeps: Keeps, per_second: f64) -> Self {
        Self {
            learned: Learned::new(LearnedConfig::default(), Mono::ZERO).unwrap(),
            upstream: Upstream { keeps, per_second, retry_after: None, in_flight: 0 },
            prng: Prng::new(23),
            now: 0,
            next: 0,
            demand: |_| 400.0,
            out: BinaryHeap::new(),
            calls: Vec::new(),
            free: Vec::new(),
            headers: |_| Signals::default(),
        }
    }

    fn run(&mut self, seconds: u64) -> Tally {
        let (end, mut tally) = (self.now + seconds * SECOND, Tally::default());
        loop {
            let back = self.out.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
            self.now = back.min(self.next).min(end);
            let now = Mono::from_nanos(self.now);
            if self.now == end {
                return tally;
            }
            if self.now == back {
                let Reverse((_, slot)) = self.out.pop().unwrap();
                let (permit, accepted) = self.calls[slot as usize].take().unwrap();
                self.free.push(slot as usize);
                self.upstream.in_flight -= u64::from(accepted);
                tally.accepted += u32::from(accepted);
                let mut signals = (self.headers)(self.upstream.per_second);
                if !accepted {
                    signals.retry_after = self.upstream.retry_after;
                }
                let answer = if accepted { Answer::Accepted } else { Answer::Refused };
                self.learned.record(now, permit, answer, &signals);
                continue;
            }
            let demand = (self.demand)(self.now / SECOND);
            if demand == 0.0 {
                self.next = (self.now / SECOND + 1) * SECOND;
                continue;
            }
            match self.learned.admit(now) {
                Ok(permit) => {
                    tally.sent += 1;
                    self.next = self.now + (SECOND as f64 / demand) as u64;
                    let taken = self.upstream.take(self.now);
                    tally.refused += u32::from(taken.is_none());
                    let latency = if taken.is_some() { 45_000_000 + self.prng.below(10_000_000) } else { 5_000_000 };
                    let at = taken.unwrap_or(self.now) + latency;
                    let slot = self.free.pop().unwrap_or_else(|| {
                        self.calls.push(None);
                        self.calls.len() - 1
                    });
                    self.calls[slot] = Some((permit, taken.is_some()));
                    self.out.push(Reverse((at, slot as u64)));
                }
                Err(refusal) => self.next = self.now + refusal.retry_in().unwrap().as_nanos().max(1_000) as u64,
            }
        }
    }

    /// Warm-up, then judged: (share refused, share of the true limit).
    fn settle(&mut self, warm_s: u64, seconds: u64) -> (f64, f64) {
        self.run(warm_s);
        let tally = self.run(seconds);
        let refused = f64::from(tally.refused) / f64::from(tally.sent.max(1));
        (refused, f64::from(tally.accepted) / seconds as f64 / self.upstream.per_second)
    }
}

fn fixed(seconds: u64) -> Keeps {
    Keeps::Fixed { window_ns: seconds * SECOND, window: 0, used: 0 }
}

fn sliding(seconds: u64) -> Keeps {
    Keeps::Sliding { window_ns: seconds * SECOND, taken: VecDeque::new() }
}

fn bucket(size: f64) -> Keeps {
    Keeps::Bucket { size, tokens: size, at_ns: 0 }
}

#[test]
fn whatever_keeps_the_limit() {
    let mut told = Vec::new();
    for (name, keeps, per_second, goodput_min) in [
        ("fixed 1 s", fixed(1), 100.0, 0.85),
        ("fixed 10 s", fixed(10), 100.0, 0.85),
        ("fixed 60 s", fixed(60), 50.0, 0.85),
        ("sliding 1 s", sliding(1), 100.0, 0.85),
        ("sliding 10 s", sliding(10), 100.0, 0.85),
        ("bucket of 20", bucket(20.0), 100.0, 0.85),
        ("bucket of 500", bucket(500.0), 100.0, 0.85),
        ("bucket, slow", bucket(5.0), 2.0, 0.85),
        ("places", Keeps::Places, 100.0, 0.75),
        ("queue", Keeps::Queue { free_at_ns: 0 }, 100.0, 0.85),
    ] {
        let mut world = World::new(keeps, per_second);
        let (refused, goodput) = world.settle(300, 600);
        let belief = world.learned.belief();
        told.push((name, refused, goodput, goodput_min, belief.source, belief.per_second));
    }
    let well = |(_, refused, goodput, min, ..): &(_, f64, f64, f64, _, _)| {
        refused < &0.02 && goodput >= min && goodput < &1.05
    };
    assert!(told.iter().all(well), "{told:#?}");
}

#[test]
fn a_limit_that_rises_is_found_and_one_that_falls_obeyed() {
    for (name, keeps) in [("fixed", fixed(1)), ("sliding", sliding(10)), ("bucket", bucket(20.0))] {
        let mut world = World::new(keeps, 100.0);
        world.run(300);
        world.upstream.per_second = 300.0;
        let (refused, goodput) = world.settle(60, 120);
        assert!(goodput >= 0.85 && refused < 0.02, "{name}, a minute after three times as much: {refused} {goodput}");
        world.upstream.per_second = 100.0;
        let (refused, goodput) = world.settle(60, 120);
        assert!(goodput >= 0.8 && refused < 0.02, "{name}, a minute after a third: {refused} {goodput}");
    }
}

#[test]
fn a_retry_after_that_lies_is_seen_through() {
    for (name, wish) in [("ten minutes", 600), ("half a minute", 30), ("nothing", 0)] {
        let mut world = World::new(bucket(20.0), 100.0);
        world.upstream.retry_after = Some(Duration::from_secs(wish));
        let (refused, goodput) = world.settle(900, 600);
        assert!(goodput >= 0.85 && refused < 0.02, "{name}: {refused} {goodput}");
    }
}

#[test]
fn demand_in_bursts_teaches_the_same() {
    let mut world = World::new(bucket(20.0), 100.0);
    world.demand = |second| if second % 5 == 0 { 500.0 } else { 0.0 };
    world.run(300);
    let tally = world.run(600);
    assert!(f64::from(tally.refused) < 0.02 * f64::from(tally.sent), "{tally:?}");
    assert!(f64::from(tally.accepted) >= 0.85 * 100.0 * 120.0, "of the one second in five: {tally:?}");
}

#[test]
fn headers_are_believed_at_once_up_and_down() {
    let mut world = World::new(fixed(1), 100.0);
    world.headers = |per_second| Signals { per_second: Some(per_second), ..Signals::default() };
    let (refused, goodput) = world.settle(2, 60);
    assert!(refused < 0.001 && goodput > 0.93, "{refused} {goodput}");
    assert_eq!(world.learned.belief().source, Source::Headers);
    world.upstream.per_second = 300.0;
    let (refused, goodput) = world.settle(2, 60);
    assert!(refused < 0.001 && goodput > 0.93, "{refused} {goodput}");
    world.upstream.per_second = 30.0;
    let (refused, goodput) = world.settle(2, 60);
    assert!(refused < 0.01 && goodput > 0.9, "{refused} {goodput}");
}

#[test]
fn what_is_left_is_spread_over_its_time() {
    let mut learned = Learned::new(LearnedConfig::default(), Mono::ZERO).unwrap();
    let permit = learned.admit(Mono::ZERO).unwrap();
    let left = |calls| Signals { left: Some(Left { calls, resets_in: Duration::from_secs(10) }), ..Signals::default() };
    learned.record(Mono::ZERO, permit, Answer::Accepted, &left(5));
    let permit = learned.admit(Mono::ZERO).unwrap();
    let refusal = learned.admit(Mono::ZERO).unwrap_err();
    assert_eq!(refusal.to_string(), "the upstream allows about 0.5 calls per second, as its headers told");
    assert_eq!(refusal.retry_in(), Some(Duration::from_secs(2)));
    learned.record(Mono::ZERO, permit, Answer::Accepted, &left(0));
    assert_eq!(learned.admit(Mono::from_millis(9_000)).unwrap_err().retry_in(), Some(Duration::from_secs(1)));
    assert!(learned.admit(Mono::from_millis(10_000)).is_ok());
}

#[test]
fn the_next_process_believes_what_this_one_found_out() {
    let mut world = World::new(bucket(20.0), 100.0);
    world.run(300);
    let (before, now) = (world.learned.belief(), Mono::from_nanos(world.now));
    let kept = serde_json::to_string(&world.learned.snapshot(now).unwrap()).unwrap();
    let kept: Snapshot = serde_json::from_str(&kept).unwrap();
    let age = Duration::from_secs(1);
    world.learned = Learned::restore(LearnedConfig::default(), &kept, age, now).unwrap();
    let after = world.learned.belief();
    assert_eq!((after.per_second, after.source), (before.per_second, before.source));
    assert_eq!(after.confirmed_at, before.confirmed_at - age);
    let tally = world.run(10);
    assert!(tally.refused <= 20 && tally.accepted > 800, "no flood, and no standstill: {tally:?}");

    assert_eq!(new().snapshot(Mono::ZERO), None, "nothing was found out");
    let pauses = refused(20, Some(Duration::from_secs(30))).snapshot(Mono::from_millis(5_000)).unwrap();
    let now = Mono::from_millis(1);
    let mut goes_on = Learned::restore(LearnedConfig::default(), &pauses, Duration::from_secs(5), now).unwrap();
    assert_eq!(goes_on.admit(now).unwrap_err().retry_in(), Some(Duration::from_secs(20)));
}

#[test]
fn an_outage_of_503s_ends_no_belief() {
    let mut world = World::new(bucket(20.0), 100.0);
    world.run(300);
    let before = world.learned.belief().per_second.unwrap();
    world.upstream.per_second = 0.0;
    let tally = world.run(600);
    assert!(tally.sent < 40, "one trial at a time, ever rarer: {tally:?}");
    world.upstream.per_second = 100.0;
    let (refused, goodput) = world.settle(120, 120);
    assert!(refused < 0.02 && goodput > 0.8, "{before} {refused} {goodput}");
}

#[test]
fn nothing_is_believed_without_reason_and_old_reasons_are_forgotten() {
    let mut world = World::new(bucket(500.0), 1_000.0);
    let tally = world.run(600);
    assert_eq!((tally.refused, world.learned.belief().per_second), (0, None));
    assert!((tally.sent as f64) > 600.0 * 399.0, "all calls passed");
    world.upstream.per_second = 50.0;
    world.run(60);
    let belief = world.learned.belief();
    assert!(belief.per_second.is_some() && belief.samples >= EVIDENCE_MIN && belief.since <= belief.confirmed_at);
    world.demand = |_| 0.5;
    world.run(3_700);
    let belief = world.learned.belief();
    assert_eq!((belief.per_second, belief.pace, belief.source), (None, None, Source::Nothing));
}

fn new() -> Learned {
    Learned::new(LearnedConfig::default(), Mono::ZERO).unwrap()
}

/// So many calls begun at the beginning of time and refused at once.
fn refused(calls: usize, retry_after: Option<Duration>) -> Learned {
    let mut learned = new();
    let permits: Vec<Permit> = (0..calls).map(|_| learned.admit(Mono::ZERO).unwrap()).collect();
    let signals = Signals { retry_after, ..Signals::default() };
    permits.into_iter().for_each(|permit| learned.record(Mono::ZERO, permit, Answer::Refused, &signals));
    learned
}

fn retry_in(learned: &mut Learned, now: Mono) -> Duration {
    learned.admit(now).unwrap_err().retry_in().unwrap()
}

#[test]
fn after_a_refusal_one_trial_at_a_time() {
    let (mut learned, none) = (refused(1, None), Signals::default());
    assert_eq!(retry_in(&mut learned, Mono::from_nanos(99_999_999)), Duration::from_nanos(1));
    let now = Mono::from_millis(100);
    let trial = learned.admit(now).unwrap();
    assert_eq!(retry_in(&mut learned, now), PAUSE_MIN, "it may come back at any time");
    learned.record(now, trial, Answer::Unknown, &none);
    let trial = learned.admit(now).expect("nobody knows: another");
    learned.record(now, trial, Answer::Refused, &none);
    assert_eq!(retry_in(&mut learned, now), PAUSE_MIN * 2);
    let trial = learned.admit(Mono::from_millis(300)).unwrap();
    assert_eq!(learned.belief().pace, Some(0.0));
    learned.record(Mono::from_millis(310), trial, Answer::Accepted, &none);
    let belief = learned.belief();
    assert_eq!((belief.per_second, belief.pace), (Some(20.0), Some(19.0)), "one in no time is one in 50 ms");
}

#[test]
fn a_wish_is_obeyed_and_every_fourth_put_to_the_test() {
    let wish = Some(Duration::from_secs(10));
    assert_eq!(retry_in(&mut refused(1, wish), Mono::ZERO), Duration::from_secs(10));
    for (trial_at_s, trust) in [(5, 0.5), (10, 1.0)] {
        let mut learned = new();
        learned.wishes = 3;
        let permit = learned.admit(Mono::ZERO).unwrap();
        learned.record(Mono::ZERO, permit, Answer::Refused, &Signals { retry_after: wish, ..Signals::default() });
        assert_eq!(retry_in(&mut learned, Mono::ZERO), Duration::from_secs(5));
        let now = Mono::from_millis(trial_at_s * 1_000);
        let trial = learned.admit(now).unwrap();
        learned.record(now, trial, Answer::Accepted, &Signals::default());
        assert_eq!(learned.trust, trust, "only a trial before the wish was over tells");
    }
}

#[test]
fn the_first_refusal_is_worth_what_was_sent_before_it() {
    let mut learned = new();
    for call in 0..120 {
        let now = Mono::from_millis(call * 25);
        let permit = learned.admit(now).unwrap();
        learned.record(now, permit, Answer::Accepted, &Signals::default());
    }
    let permit = learned.admit(Mono::from_millis(3_000)).unwrap();
    learned.record(Mono::from_millis(3_900), permit, Answer::Refused, &Signals::default());
    assert_eq!(learned.belief().per_second, Some(40.0));
}

#[test]
fn a_probe_begins_when_the_last_refusals_are_paid_for() {
    for (refusals, accepts) in [(1, 100), (2, 200)] {
        let mut learned = refused(refusals, None);
        let trial = learned.admit(Mono::from_millis(100)).unwrap();
        learned.record(Mono::from_millis(100), trial, Answer::Accepted, &Signals::default());
        learned.accepts = accepts - 1;
        learned.on_time(Mono::from_millis(10_100));
        assert!(matches!(learned.phase, Phase::Hold), "{refusals}");
        learned.accepts = accepts;
        learned.on_time(Mono::from_millis(10_099));
        assert!(matches!(learned.phase, Phase::Hold), "too soon");
        learned.on_time(Mono::from_millis(10_100));
        assert!(matches!(learned.phase, Phase::Probe { .. }), "{refusals}");
    }
}

#[test]
fn what_headers_tell_is_the_pace_and_bounds_every_probe() {
    let told = |per_second| Signals { per_second: Some(per_second), ..Signals::default() };
    let (mut learned, mut seen) = (new(), Vec::new());
    for (at_s, per_second) in [(0, 0.5), (10, 10.0), (20, 10.0)] {
        let now = Mono::from_millis(at_s * 1_000);
        let permit = learned.admit(now).unwrap();
        learned.record(now, permit, Answer::Accepted, &told(per_second));
        let Belief { pace, since, confirmed_at, .. } = learned.belief();
        seen.push((pace.unwrap(), since.as_millis(), confirmed_at.as_millis()));
    }
    assert_eq!(seen, [(0.475, 0, 0), (9.5, 10_000, 10_000), (9.5, 10_000, 20_000)]);
    learned.phase = Phase::Probe { step: 0, base: 10.0, since: Mono::ZERO, accepts: 0 };
    learned.next_step(Mono::ZERO);
    assert_eq!(learned.rate, 9.5, "9.75 without them");
}

#[test]
fn a_quota_lasts_until_its_reset_within_reason() {
    for (calls, resets_in, waits_s) in
        [(1, Duration::from_secs(120), 120), (0, Duration::from_secs(120), 60), (1, Duration::MAX, 31 * 86_400)]
    {
        let mut learned = new();
        let permit = learned.admit(Mono::ZERO).unwrap();
        let left = Some(Left { calls, resets_in });
        learned.record(Mono::ZERO, permit, Answer::Accepted, &Signals { left, ..Signals::default() });
        (0..calls).for_each(|_| drop(learned.admit(Mono::ZERO).unwrap()));
        assert_eq!(retry_in(&mut learned, Mono::ZERO), Duration::from_secs(waits_s), "{calls} {resets_in:?}");
    }
}

#[test]
fn a_probe_that_was_mostly_pause_measured_nothing() {
    for (paused_s, source) in [(2, Source::Refusals), (3, Source::Probes)] {
        let mut learned = new();
        (learned.ceiling, learned.source) = (100.0, Source::Probes);
        learned.phase = Phase::Probe { step: 3, base: 100.0, since: Mono::ZERO, accepts: 0 };
        learned.paused_in = Duration::from_secs(paused_s);
        let permit = Permit { sent: Mono::from_millis(9_990), trial: false };
        learned.refused(Mono::from_millis(10_000), permit, None);
        assert_eq!((learned.source, learned.ceiling), (source, 100.0), "{paused_s} of ten seconds");
    }
}

#[test]
fn calls_that_wait_at_the_upstream_are_its_limit() {
    let mut learned = new();
    // One second: so many out, so many back, each after so long.
    let mut second = 0;
    let mut period = |sent, back: u64, latency_ms| {
        learned.knee.sent += sent;
        for answer in 1..=back {
            let now = Mono::from_millis(second * 1_000 + answer * 1_000 / back);
            learned.watch_latency(now, Duration::from_millis(latency_ms));
        }
        second += 1;
        let Belief { source, per_second, pace, .. } = learned.belief();
        (source, per_second, pace)
    };
    let nothing = (Source::Nothing, None, None);
    (0..5).for_each(|_| assert_eq!(period(25, 25, 50), nothing, "the usual"));
    (0..3).for_each(|_| assert_eq!(period(25, 25, 200), nothing, "slower, but all come back"));
    (0..3).for_each(|_| assert_eq!(period(50, 25, 60), nothing, "fewer, but soon"));
    assert_eq!(period(50, 25, 200), nothing, "once is chance");
    assert_eq!(period(50, 25, 200), (Source::Latency, Some(25.0), Some(20.0)), "what waits there must go first");
    assert_eq!(period(20, 20, 90), (Source::Latency, Some(25.0), Some(20.0)));
    assert_eq!(period(20, 20, 60), (Source::Latency, Some(25.0), Some(23.75)), "it has gone");
}

#[test]
fn numbers_that_make_no_limit_are_named() {
    let default = LearnedConfig::default();
    for (key, config) in [
        ("hold", LearnedConfig { hold: Ratio::ONE, ..default }),
        ("refusal_share_max", LearnedConfig { refusal_share_max: Ratio::ZERO, ..default }),
        ("pause_max", LearnedConfig { pause_max: Duration::ZERO, ..default }),
        ("burst", LearnedConfig { burst: Duration::MAX, ..default }),
        ("probe_after", LearnedConfig { probe_after: Duration::ZERO, ..default }),
        ("forget_after", LearnedConfig { forget_after: Duration::from_secs(9), ..default }),
    ] {
        assert_eq!(Learned::new(config, Mono::ZERO).unwrap_err().key, key);
    }
    assert_eq!(Answer::of_status(429), Answer::Refused);
    assert_eq!(Answer::of_status(500), Answer::Accepted);
}

fn signals() -> impl Strategy<Value = Signals> {
    let wait = || prop_oneof![0_u64..100_000, any::<u64>()].prop_map(Duration::from_millis);
    (
        prop::option::of(wait()),
        prop::option::weighted(0.2, 1e-9..1e12),
        prop::option::weighted(
            0.2,
            (any::<u64>(), wait()).prop_map(|(calls, resets_in)| Left { calls: calls % 9, resets_in }),
        ),
    )
        .prop_map(|(retry_after, per_second, left)| Signals { retry_after, per_second, left })
}

proptest! {
    #[test]
    fn sane_whatever_the_clock_and_the_upstream(
        steps in prop::collection::vec(
            (0_u8..8, prop_oneof![8 => 0_u64..300, 1 => 0_u64..900_000_000, 1 => any::<u64>()], signals()), 1..300),
    ) {
        let mut learned = Learned::new(LearnedConfig::default(), Mono::ZERO).unwrap();
        let (mut now, mut out) = (Mono::ZERO, Vec::new());
        for (step, gap_ms, signals) in steps {
            now = now + Duration::from_millis(gap_ms);
            match step {
                0..=3 => match learned.admit(now) {
                    Ok(permit) => out.push(permit),
                    // Whoever is sent away is told a time, and no refusal lasts for ever.
                    Err(refusal) => prop_assert!(refusal.retry_in().unwrap() <= Duration::from_secs(32 * 86_400)),
                },
                _ => if let Some(permit) = out.pop() {
                    let answer = [Answer::Accepted, Answer::Refused, Answer::Unknown, Answer::Refused][step as usize - 4];
                    let before = learned.belief();
                    learned.record(now, permit, answer, &signals);
                    let after = learned.belief();
                    if answer == Answer::Refused && signals.per_second.is_none()
                        && let (Some(before), Some(after)) = (before.per_second, after.per_second)
                    {
                        prop_assert!(after <= before * 1.000_001 || learned.source != Source::Refusals);
                    }
                },
            }
            let belief = learned.belief();
            prop_assert!(belief.per_second.is_none_or(|rate| (0.01..=1e9).contains(&rate)));
            prop_assert!(belief.since <= belief.confirmed_at && belief.confirmed_at <= now);
        }
    }
}
