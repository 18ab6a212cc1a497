//! The breaker's tests: data in, text out; then arbitrary sequences; then the shared breaker against the plain one.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::outcome::Failure;
use crate::units::Ratio;

const FAIL: Outcome = Outcome::Failure(Failure::Timeout);
const QUICK: Duration = Duration::from_millis(1);

fn ratio(share: f64) -> Ratio {
    Ratio::new(share).expect("a share")
}

fn config() -> BreakerConfig {
    BreakerConfig {
        window: WindowConfig::Calls(10),
        calls_min: 4,
        wait: OpenWait {
            first: Duration::from_millis(100),
            max: Some(Duration::from_millis(300)),
            ..OpenWait::default()
        },
        half_open: HalfOpen { calls: 2, probe_for: Some(Duration::from_millis(50)), ..HalfOpen::default() },
        slow: Some(SlowRule { rate_max: ratio(0.6), over: Duration::from_millis(10), in_flight: true }),
        ..BreakerConfig::default()
    }
}

fn breaker(config: BreakerConfig) -> Breaker {
    Breaker::new(config, 7, Mono::ZERO).expect("sane")
}

/// One word a millisecond: `ok`, `fail`, `slow`, `skip` (ignored) make a call, `ask` begins one that never ends, `+N`
/// lets N ms pass. Prints every transition and refusal.
fn run_with(config: BreakerConfig, script: &str) -> String {
    let mut breaker = breaker(config);
    let (mut now_ms, mut told) = (0_u64, Vec::new());
    let say = |told: &mut Vec<String>, now_ms: u64, event: Option<Told>| {
        let transition = event.and_then(|event| event.transition);
        let share = |share: Ratio| format!(" {share}");
        told.extend(transition.map(|t| format!("{now_ms} {}{}", t.to.name(), t.share.map_or(String::new(), share))));
    };
    for word in script.split_whitespace() {
        if let Some(gap) = word.strip_prefix('+') {
            now_ms += gap.parse::<u64>().expect("a number");
            say(&mut told, now_ms, breaker.on_time(Mono::from_millis(now_ms)));
            continue;
        }
        now_ms += 1;
        let now = Mono::from_millis(now_ms);
        match breaker.admit(now) {
            Err(_) => told.push(format!("{now_ms} refused")),
            Ok((permit, event)) => {
                say(&mut told, now_ms, event);
                let (outcome, took) = match word {
                    "ask" => continue,
                    "fail" => (FAIL, QUICK),
                    "slow" => (Outcome::Success, Duration::from_millis(11)),
                    "skip" => (Outcome::Ignored, QUICK),
                    _ => (Outcome::Success, QUICK),
                };
                say(&mut told, now_ms, breaker.record(now, permit, outcome, took));
            }
        }
    }
    told.join(", ")
}

fn run(script: &str) -> String {
    run_with(config(), script)
}

#[test]
fn opens_at_the_threshold_not_before() {
    assert_eq!(run("fail ok fail ok"), "4 open");
    assert_eq!(run("fail fail fail"), "", "too few calls to judge");
    assert_eq!(run("ok ok ok ok fail fail"), "", "a third is not half");
    assert_eq!(run("ok ok ok ok ok ok ok ok ok ok fail fail fail fail fail"), "15 open", "old calls slide out");
    assert_eq!(run("fail skip skip skip skip fail fail"), "", "what says nothing counts for nothing");
}

#[test]
fn slowness_opens_too_and_a_success_may_be_what_tips_it() {
    assert_eq!(run("slow slow slow ok"), "4 open");
    assert_eq!(run("slow slow ok ok"), "");
}

#[test]
fn refuses_while_open_then_probes_decide() {
    assert_eq!(run("fail fail fail fail ok +100 ok ok ok"), "4 open, 5 refused, 106 half_open, 107 closed");
    assert_eq!(run("fail fail fail fail +100 fail ok"), "4 open, 105 half_open, 106 open");
    assert_eq!(run("fail fail fail fail +99 ok"), "4 open, 104 refused", "the wait is over after its last moment");
}

#[test]
fn calls_that_hang_open_it_without_a_single_answer() {
    // Ten milliseconds are slow. Three calls that never end and one good one: 75 % are slow once they are overdue.
    assert_eq!(run("ok ask ask ask +7 +5 ok"), "16 open, 17 refused");
    let blind = BreakerConfig { slow: Some(SlowRule { in_flight: false, ..config().slow.unwrap() }), ..config() };
    assert_eq!(run_with(blind, "ok ask ask ask +7 +5 ok"), "", "finished calls alone never show it");
    assert_eq!(run("ok ok ok ok ask ask +7 +6 ok"), "", "a third of the calls is not 60 %");
}

#[test]
fn a_call_that_hung_and_then_ended_counts_once() {
    let mut breaker = breaker(config());
    let (hung, _) = breaker.admit(Mono::ZERO).unwrap();
    let later = Mono::from_millis(14);
    assert_eq!(breaker.on_time(later), None);
    assert_eq!(breaker.overdue(), 1);
    assert_eq!(breaker.record(later, hung, FAIL, Duration::from_millis(14)), None);
    assert_eq!(breaker.overdue(), 0);
    assert_eq!(breaker.seen(later), Seen { calls: 1, failed: 1, slow: 1, slow_failed: 1 });
    // Given back unused it is not overdue either.
    let (unused, _) = breaker.admit(later).unwrap();
    breaker.release(unused);
    let _ = breaker.on_time(Mono::from_millis(40));
    assert_eq!(breaker.overdue(), 0);
}

#[test]
fn failures_in_a_row_open_it_whatever_the_rate() {
    let config = BreakerConfig { consecutive_failures_max: NonZeroU32::new(3), calls_min: 10, ..config() };
    assert_eq!(run_with(config.clone(), "ok ok ok fail fail ok fail fail fail"), "9 open");
    assert_eq!(run_with(config, "fail fail ok fail fail ok"), "");
}

#[test]
fn each_reopening_waits_longer_up_to_a_bound_and_a_close_forgets() {
    let mut breaker = breaker(config());
    let (mut now, mut waits) = (Mono::ZERO, Vec::new());
    for _ in 0..10 {
        let (permit, _) = breaker.admit(now).unwrap();
        if let Some(wait) = breaker.record(now, permit, FAIL, QUICK).and_then(|told| told.transition?.open_for) {
            waits.push(wait.as_millis());
            now = now + wait + Duration::from_nanos(1);
        }
    }
    assert_eq!(waits, [100, 200, 300, 300]);
    assert_eq!(breaker.opened_total(), 4);
    for _ in 0..2 {
        let (permit, _) = breaker.admit(now).unwrap();
        let _ = breaker.record(now, permit, Outcome::Success, QUICK);
    }
    assert_eq!(breaker.state(), StateName::Closed);
    let told = breaker.move_to(now, StateName::Open).unwrap().unwrap();
    assert_eq!(told.transition.unwrap().open_for, Some(Duration::from_millis(100)));
}

#[test]
fn waits_are_those_of_the_original() {
    // exp(100 ms, x1.5, cap 1000), recorded from the original.
    let wait = OpenWait {
        first: Duration::from_millis(100),
        multiplier: 1.5,
        max: Some(Duration::from_secs(1)),
        jitter: Ratio::ZERO,
        retry_after_max: None,
    };
    let waits: Vec<u64> = (1..=8).map(|visit| wait.millis(visit)).collect();
    assert_eq!(waits, [100, 150, 225, 337, 505, 757, 1000, 1000]);
    assert_eq!(OpenWait { multiplier: 1.0, ..wait }.millis(u32::MAX), 100);
    let unbounded = OpenWait { multiplier: 100.0, max: None, ..wait };
    assert!(unbounded.millis(u32::MAX) > 1_000_000_000_000, "no bound but the end of time, and no panic");
    // Jitter stays inside its share, and inside the cap.
    let (jittered, mut prng) = (OpenWait { jitter: ratio(0.5), ..wait }, Prng::new(3));
    let drawn: Vec<u64> = (0..1_000).map(|_| jittered.until(Mono::ZERO, 1, None, &mut prng).as_millis()).collect();
    assert!(drawn.iter().all(|ms| (50..=150).contains(ms)) && drawn.iter().any(|ms| *ms < 60) && drawn.contains(&150));
    assert!((0..100).all(|_| jittered.until(Mono::ZERO, 9, None, &mut prng) <= Mono::from_millis(1_000)));
}

#[test]
fn the_upstreams_own_wish_lengthens_the_wait_within_bounds() {
    let wait = OpenWait { retry_after_max: Some(Duration::from_secs(2)), ..config().wait };
    for (wish_ms, open_for_ms) in [(50, 100), (700, 700), (3_600_000, 2_000)] {
        let mut breaker = breaker(BreakerConfig { wait, ..config() });
        let mut waited = None;
        for _ in 0..4 {
            let (permit, _) = breaker.admit(Mono::ZERO).unwrap();
            let retry_after = Some(Duration::from_millis(wish_ms));
            let report = Report { retry_after, ..Report::new(Outcome::Failure(Failure::Status(503)), QUICK) };
            waited = breaker.report(Mono::ZERO, permit, report).and_then(|told| told.transition?.open_for);
        }
        assert_eq!(waited, Some(Duration::from_millis(open_for_ms)));
    }
}

#[test]
fn of_several_wishes_the_one_that_ends_last_counts() {
    let mut breaker = breaker(config());
    let mut until = None;
    for (at_ms, wish_ms) in [(0, 50), (10, 700), (20, 500), (30, 0)] {
        let now = Mono::from_millis(at_ms);
        let (permit, _) = breaker.admit(now).unwrap();
        let report = Report { retry_after: Some(Duration::from_millis(wish_ms)), ..Report::new(FAIL, QUICK) };
        until = breaker.report(now, permit, report).and_then(|told| Some(now + told.transition?.open_for?));
    }
    assert_eq!(until, Some(Mono::from_millis(710)));
}

#[test]
fn one_answer_may_open_it() {
    for (trip, open_for_ms, next_ms) in [(Trip::Now, 100, 200), (Trip::For(Duration::from_millis(7)), 7, 100)] {
        let mut breaker = breaker(config());
        let (permit, _) = breaker.admit(Mono::ZERO).unwrap();
        let report = Report { trip: Some(trip), ..Report::new(FAIL, QUICK) };
        let transition = breaker.report(Mono::ZERO, permit, report).unwrap().transition.unwrap();
        assert_eq!((transition.why, transition.open_for), (Why::Tripped, Some(Duration::from_millis(open_for_ms))));
        // A wait that an answer named is no step of our own.
        let told = breaker.move_to(Mono::ZERO, StateName::Open).unwrap();
        assert_eq!(told, None, "it is open");
        assert_eq!(breaker.admits_at(), Some(Mono::from_millis(next_ms) + Duration::from_nanos(1)));
    }
}

#[test]
fn a_late_answer_never_decides_about_a_newer_state() {
    let mut breaker = breaker(config());
    let (late, _) = breaker.admit(Mono::ZERO).unwrap();
    for _ in 0..4 {
        let (permit, _) = breaker.admit(Mono::ZERO).unwrap();
        let _ = breaker.record(Mono::ZERO, permit, FAIL, QUICK);
    }
    assert_eq!(breaker.state(), StateName::Open);
    let now = Mono::from_millis(101);
    let (probe, told) = breaker.admit(now).unwrap();
    assert_eq!(told.unwrap().transition.unwrap().to, StateName::HalfOpen);
    assert!(!breaker.is_of_now(&late) && breaker.is_of_now(&probe));
    assert_eq!(breaker.record(now, late, FAIL, QUICK), None);
    let (second, _) = breaker.admit(now).unwrap();
    assert!(breaker.admit(now).is_err(), "two probes, not three");
    assert_eq!(breaker.not_permitted(), 1);
    assert_eq!(breaker.record(now, probe, Outcome::Success, QUICK), None);
    let closed = breaker.record(now, second, Outcome::Success, QUICK).unwrap().transition.unwrap();
    assert_eq!((closed.to, closed.why), (StateName::Closed, Why::ProbesGood));
    assert_eq!(breaker.seen(now), Seen::default(), "closed begins with an empty window");
}

#[test]
fn a_probe_given_back_can_be_taken_again_and_a_lost_one_expires() {
    let mut breaker = breaker(config());
    for _ in 0..4 {
        let (permit, _) = breaker.admit(Mono::ZERO).unwrap();
        let _ = breaker.record(Mono::ZERO, permit, FAIL, QUICK);
    }
    let now = Mono::from_millis(101);
    let (lost, _) = breaker.admit(now).unwrap();
    assert_eq!(breaker.admits_at(), None);
    let (given_back, _) = breaker.admit(now).unwrap();
    assert_eq!(breaker.admits_at(), Some(Mono::from_millis(151)));
    assert_eq!(breaker.next_timer(), Some(Mono::from_millis(151)));
    breaker.release(given_back);
    let (ignored, _) = breaker.admit(now).unwrap();
    assert_eq!(breaker.record(now, ignored, Outcome::Ignored, QUICK), None);
    let (good, _) = breaker.admit(now).unwrap();
    assert_eq!(breaker.record(now, good, Outcome::Success, QUICK), None);
    assert_eq!(breaker.on_time(Mono::from_millis(150)), None);
    let expired = breaker.on_time(Mono::from_millis(151)).unwrap().transition.unwrap();
    assert_eq!((expired.to, expired.seen.failed), (StateName::Open, 1));
    assert_eq!(breaker.record(Mono::from_millis(152), lost, Outcome::Success, QUICK), None);
    assert_eq!(breaker.on_time(Mono::from_millis(152)), None);
    assert_eq!(breaker.since(), Mono::from_millis(151));
}

#[test]
fn probes_given_back_many_times_are_told_apart() {
    let shared = SharedBreaker::new(config(), 7, 1, Mono::ZERO, |_| {}).unwrap();
    shared.move_to(Mono::ZERO, StateName::Open).unwrap();
    let now = Mono::from_millis(101);
    for _ in 0..70_000 {
        drop(shared.acquire(now).expect("given back each time"));
    }
    for _ in 0..2 {
        shared.acquire(now).expect("a probe").record(now, Outcome::Success);
    }
    assert_eq!(shared.state(), StateName::Closed);
}

#[test]
fn probes_may_be_the_drivers_own() {
    let half_open = HalfOpen { synthetic: true, ..config().half_open };
    let mut breaker = breaker(BreakerConfig { half_open, ..config() });
    assert!(breaker.admit_probe(Mono::ZERO).is_err(), "nothing to find out");
    breaker.move_to(Mono::ZERO, StateName::Open).unwrap();
    assert_eq!(breaker.next_timer(), Some(Mono::from_millis(100)), "it leaves open by itself");
    assert!(breaker.admit(Mono::from_millis(500)).is_err(), "no user's call is a probe");
    let now = Mono::from_millis(500);
    assert_eq!(breaker.on_time(now).unwrap().transition.unwrap().to, StateName::HalfOpen);
    assert!(breaker.admit(now).is_err());
    for _ in 0..2 {
        let probe = breaker.admit_probe(now).unwrap();
        let _ = breaker.record(now, probe, Outcome::Success, QUICK);
    }
    assert_eq!(breaker.state(), StateName::Closed);
}

#[test]
fn a_visit_without_a_verdict_ends() {
    for (ends_in, state) in [(HalfOpenEnd::Open, StateName::Open), (HalfOpenEnd::Closed, StateName::Closed)] {
        let half_open =
            HalfOpen { ends_after: Some(Duration::from_millis(20)), probe_for: None, ends_in, ..config().half_open };
        let mut breaker = breaker(BreakerConfig { half_open, initial: StateName::HalfOpen, ..config() });
        assert_eq!(breaker.next_timer(), Some(Mono::from_millis(20)));
        assert_eq!(breaker.on_time(Mono::from_millis(19)), None);
        let transition = breaker.on_time(Mono::from_millis(20)).unwrap().transition.unwrap();
        assert_eq!((transition.to, transition.why), (state, Why::HalfOpenOver));
    }
}

fn ramping() -> BreakerConfig {
    let ramp = Ramp { steps: vec![ratio(0.25), ratio(0.5)], step_for: Duration::from_millis(100), calls_min: 2 };
    BreakerConfig { ramp: Some(ramp), ..config() }
}

#[test]
fn traffic_comes_back_by_degrees_and_steps_back_when_a_step_fails() {
    let (fails, oks) = ("fail fail fail fail +100 ok ok", |n: usize| vec!["ok"; n].join(" "));
    let told = run_with(ramping(), &format!("{fails} {} +80 +20 {} +80", oks(20), oks(20)));
    let counted = told.matches("refused").count();
    let told: Vec<&str> = told.split(", ").filter(|event| !event.ends_with("refused")).collect();
    assert_eq!(told, ["4 open", "105 half_open", "106 recovering 25%", "206 recovering 50%", "326 closed"]);
    assert!((23..=27).contains(&counted), "three quarters of twenty and half of twenty are kept away: {counted}");
    // A step that fails: at the first, open again; at the second, back to the first.
    let step_fails = |script: &str| {
        let told = run_with(ramping(), script);
        told.split(", ").filter(|event| !event.ends_with("refused")).skip(3).map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(step_fails(&format!("{fails} {}", ["fail"; 12].join(" "))).len(), 1);
    let back = step_fails(&format!("{fails} {} +100 {}", oks(20), ["fail"; 5].join(" ")));
    assert!(back[0].ends_with("recovering 50%") && back[1].ends_with("recovering 25%"), "{back:?}");
}

#[test]
fn beyond_its_share_a_call_is_told_when_the_step_ends() {
    let mut breaker = breaker(ramping());
    breaker.recover(Mono::ZERO, 0, Why::ProbesGood, Seen::default());
    let now = Mono::from_millis(30);
    let waits: Vec<_> = (0..8).filter_map(|_| breaker.admit(now).err()?.retry_in()).collect();
    assert_eq!(waits, [Duration::from_millis(70); 6], "two of eight are its quarter");
}

#[test]
fn a_quiet_upstream_is_judged_too() {
    let ramp = Ramp { steps: vec![ratio(0.01)], step_for: Duration::from_millis(100), calls_min: 1 };
    // One call in a hundred is let through by its share; this one comes every 101 ms, and is.
    let told = run_with(BreakerConfig { ramp: Some(ramp), ..config() }, "fail fail fail fail +100 ok ok +100 ok");
    assert_eq!(told, "4 open, 105 half_open, 106 recovering 1%, 207 closed");
}

#[test]
fn by_hand_it_goes_where_it_may_and_nowhere_else() {
    let mut breaker = breaker(config());
    let now = Mono::from_millis(1);
    assert_eq!(
        breaker.move_to(now, StateName::HalfOpen).unwrap_err().to_string(),
        "a breaker that is closed cannot become half_open"
    );
    assert!(breaker.move_to(now, StateName::Recovering).is_err());
    breaker.move_to(now, StateName::ForcedOpen).unwrap();
    let refusal = breaker.admit(Mono::from_nanos(u64::MAX)).unwrap_err();
    assert_eq!(refusal.to_string(), "the breaker was opened by hand");
    assert_eq!(breaker.admits_at(), Some(Mono::from_nanos(u64::MAX)));
    breaker.move_to(now, StateName::Disabled).unwrap();
    for _ in 0..20 {
        let (permit, _) = breaker.admit(now).unwrap();
        assert_eq!(breaker.record(now, permit, FAIL, QUICK), None);
    }
    assert_eq!(breaker.seen(now), Seen::default(), "disabled counts nothing");
    let told = breaker.reset(now).transition.unwrap();
    assert_eq!((told.from, told.to, told.why), (StateName::Disabled, StateName::Closed, Why::ByHand));
    assert_eq!(breaker.move_to(now, StateName::Closed), Ok(None), "to itself it begins anew and tells nothing");
    breaker.open_until(now, Mono::from_millis(60)).unwrap();
    assert_eq!(breaker.admits_at(), Some(Mono::from_millis(60) + Duration::from_nanos(1)));
    breaker.move_to(now, StateName::ObserveOnly).unwrap();
    assert!(breaker.open_until(now, now).is_err());
}

#[test]
fn observing_only_tells_each_excess_once_and_refuses_nothing() {
    let mut breaker = breaker(BreakerConfig { initial: StateName::ObserveOnly, ..config() });
    let mut told = Vec::new();
    for call in 0..12 {
        let (permit, _) = breaker.admit(Mono::ZERO).unwrap();
        let took = if call < 8 { QUICK } else { Duration::from_secs(1) };
        told.extend(breaker.record(Mono::ZERO, permit, FAIL, took).map(|told| (call, told.exceeded)));
    }
    let failure = Exceeded { failure_rate: Some(100.0), slow_rate: None };
    assert_eq!(told, [(3, failure)], "a rate of 40 % slow calls is below its threshold");
    for _ in 0..4 {
        let (permit, _) = breaker.admit(Mono::ZERO).unwrap();
        let told = breaker.record(Mono::ZERO, permit, FAIL, Duration::from_secs(1));
        assert!(told.is_none_or(|told| told.exceeded.slow_rate == Some(60.0)), "{told:?}");
    }
    assert_eq!(breaker.state(), StateName::ObserveOnly);
}

#[test]
fn observing_only_tells_of_calls_that_hang_too() {
    let mut breaker = breaker(BreakerConfig { initial: StateName::ObserveOnly, ..config() });
    let _hung: Vec<_> = (0..4).map(|_| breaker.admit(Mono::ZERO).unwrap()).collect();
    assert_eq!(breaker.on_time(Mono::from_millis(10)), None);
    let told = breaker.on_time(Mono::from_millis(14)).unwrap();
    assert_eq!((told.exceeded.slow_rate, told.transition), (Some(100.0), None));
    assert_eq!(breaker.on_time(Mono::from_millis(15)), None, "told once");
}

#[test]
fn every_reason_has_a_name() {
    let reasons = [
        Why::FailureRate,
        Why::SlowRate,
        Why::ConsecutiveFailures,
        Why::Tripped,
        Why::WaitOver,
        Why::ProbesGood,
        Why::HalfOpenOver,
        Why::StepHeld,
        Why::ByHand,
    ];
    assert_eq!(
        reasons.map(Why::name).join(" "),
        "failure_rate slow_rate consecutive_failures tripped wait_over probes_good half_open_over step_held by_hand"
    );
}

#[test]
fn every_number_that_makes_no_guard_is_refused_with_its_key() {
    let millis = Duration::from_millis;
    let half_open = config().half_open;
    let slow = SlowRule { rate_max: ratio(0.5), over: millis(10), in_flight: true };
    let ramp = |steps: &[f64]| Some(Ramp { steps: steps.iter().map(|step| ratio(*step)).collect(), ..Ramp::default() });
    let wrong = [
        (BreakerConfig { failure_rate_max: Ratio::ZERO, ..config() }, "failure_rate"),
        (BreakerConfig { slow: Some(SlowRule { rate_max: Ratio::ZERO, ..slow }), ..config() }, "slow"),
        (BreakerConfig { slow: Some(SlowRule { over: Duration::ZERO, ..slow }), ..config() }, "slow"),
        (BreakerConfig { window: WindowConfig::Calls(0), ..config() }, "window"),
        (BreakerConfig { window: WindowConfig::Calls(2_000_000), ..config() }, "window"),
        (BreakerConfig { window: WindowConfig::time(Duration::ZERO), ..config() }, "window"),
        (BreakerConfig { window: WindowConfig::time(millis(9_999_999)), ..config() }, "window"),
        (BreakerConfig { window: WindowConfig::Time { span: millis(10), slices: 0 }, ..config() }, "window"),
        (BreakerConfig { calls_min: 0, ..config() }, "calls_min"),
        (BreakerConfig { wait: OpenWait { first: Duration::ZERO, ..config().wait }, ..config() }, "open_for"),
        (BreakerConfig { wait: OpenWait { multiplier: f64::NAN, ..config().wait }, ..config() }, "open_for"),
        (BreakerConfig { wait: OpenWait { max: Some(millis(1)), ..config().wait }, ..config() }, "open_for_max"),
        (BreakerConfig { half_open: HalfOpen { calls: 0, ..half_open }, ..config() }, "half_open_calls"),
        (
            BreakerConfig { half_open: HalfOpen { probe_for: Some(millis(0)), ..half_open }, ..config() },
            "half_open_for",
        ),
        (
            BreakerConfig { half_open: HalfOpen { ends_after: Some(millis(0)), ..half_open }, ..config() },
            "half_open_ends_after",
        ),
        (BreakerConfig { ramp: ramp(&[]), ..config() }, "ramp"),
        (BreakerConfig { ramp: ramp(&[0.5, 0.5]), ..config() }, "ramp"),
        (BreakerConfig { ramp: ramp(&[0.5, 1.0]), ..config() }, "ramp"),
        (BreakerConfig { ramp: ramp(&[0.0, 0.5]), ..config() }, "ramp"),
        (
            BreakerConfig { ramp: ramp(&std::array::from_fn::<_, 21, _>(|step| (step + 1) as f64 / 22.0)), ..config() },
            "ramp",
        ),
        (BreakerConfig { ramp: Some(Ramp { step_for: millis(0), ..Ramp::default() }), ..config() }, "ramp"),
        (BreakerConfig { ramp: Some(Ramp { calls_min: 0, ..Ramp::default() }), ..config() }, "ramp"),
        (BreakerConfig { initial: StateName::Recovering, ..config() }, "initial"),
    ];
    for (config, key) in wrong {
        let invalid = Breaker::new(config.clone(), 0, Mono::ZERO).expect_err(key);
        assert_eq!(invalid.key, key, "{invalid}");
        assert!(breaker(self::config()).reconfigure(config, Mono::ZERO).is_err());
    }
    let invalid = Breaker::new(BreakerConfig { calls_min: 0, ..config() }, 0, Mono::ZERO).unwrap_err();
    assert_eq!(invalid.to_string(), "`calls_min` is 0; allowed is 1 or more");
    assert_eq!(BreakerConfig { ramp: Some(Ramp::default()), ..BreakerConfig::default() }.check(), Ok(()));
}

#[test]
fn numbers_at_the_edge_of_what_is_allowed_make_a_breaker() {
    let millis = Duration::from_millis(1);
    let edges = BreakerConfig {
        failure_rate_max: ratio(0.000_001),
        slow: Some(SlowRule { rate_max: Ratio::ONE, over: Duration::from_nanos(1), in_flight: true }),
        window: WindowConfig::Calls(1_000_000),
        calls_min: 1,
        wait: OpenWait { first: millis, max: Some(millis), multiplier: 100.0, ..OpenWait::default() },
        half_open: HalfOpen { calls: 10_000, probe_for: Some(millis), ends_after: Some(millis), ..HalfOpen::default() },
        ramp: Some(Ramp {
            steps: (1..=20).map(|step| ratio(f64::from(step) / 21.0)).collect(),
            step_for: millis,
            calls_min: 1,
        }),
        ..config()
    };
    assert_eq!(edges.check(), Ok(()));
    let window = WindowConfig::Time { span: Duration::from_secs(3_600), slices: 3_600 };
    assert_eq!(BreakerConfig { window, ..edges }.check(), Ok(()));
    let window = WindowConfig::Time { span: millis, slices: 1 };
    assert_eq!(BreakerConfig { window, ..config() }.check(), Ok(()));
}

#[test]
fn another_configuration_keeps_what_is_known() {
    let mut breaker = breaker(config());
    for outcome in [Outcome::Success, Outcome::Success, Outcome::Success, FAIL, FAIL, Outcome::Success] {
        let (permit, _) = breaker.admit(Mono::ZERO).unwrap();
        assert_eq!(breaker.record(Mono::ZERO, permit, outcome, QUICK), None);
    }
    let (on_the_way, _) = breaker.admit(Mono::ZERO).unwrap();
    let smaller = BreakerConfig { window: WindowConfig::Calls(8), failure_rate_max: ratio(0.25), ..config() };
    breaker.reconfigure(smaller, Mono::ZERO).unwrap();
    assert_eq!(breaker.seen(Mono::ZERO).failed, 2);
    let told = breaker.record(Mono::ZERO, on_the_way, Outcome::Success, QUICK).unwrap();
    assert_eq!(told.exceeded.failure_rate, Some(200.0 / 7.0), "the new threshold judges the old calls");
    // Probes out stay out: one of two is taken, so that of three two are left.
    let now = Mono::from_millis(101);
    let (probe, _) = breaker.admit(now).unwrap();
    let half_open = HalfOpen { calls: 3, ..config().half_open };
    breaker.reconfigure(BreakerConfig { half_open, ..config() }, now).unwrap();
    let more: Vec<_> = std::iter::from_fn(|| breaker.admit(now).ok()).collect();
    assert_eq!(more.len(), 2);
    assert!(breaker.is_of_now(&probe));
    // A ramp that is no longer there lets everything through.
    let mut breaker = self::breaker(ramping());
    breaker.recover(Mono::ZERO, 1, Why::ProbesGood, Seen::default());
    breaker
        .reconfigure(BreakerConfig { ramp: Some(Ramp { steps: vec![ratio(0.1)], ..Ramp::default() }), ..config() }, now)
        .unwrap();
    assert_eq!(breaker.state(), StateName::Recovering);
    breaker.reconfigure(config(), now).unwrap();
    assert_eq!(breaker.state(), StateName::Closed);
}

#[test]
fn a_restart_goes_on_where_it_stopped() {
    let second = Duration::from_secs(1);
    let mut open = breaker(config());
    open.open_until(Mono::ZERO, Mono::from_millis(5_000)).unwrap();
    let kept = serde_json::to_string(&open.snapshot(Mono::from_millis(1_000))).unwrap();
    let kept: Snapshot = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept.state(), StateName::Open);
    let now = Mono::from_millis(10);
    let mut again = Breaker::restore(config(), &kept, second, 1, now).unwrap();
    assert_eq!(again.admits_at(), Some(now + second * 3 + Duration::from_nanos(1)), "of 4 s left, one has passed");
    assert_eq!((again.opened_total(), again.seen(now)), (1, Seen::default()));
    for initial in [StateName::Closed, StateName::HalfOpen, StateName::Disabled, StateName::ObserveOnly] {
        let kept = breaker(BreakerConfig { initial, ..config() }).snapshot(now);
        assert_eq!(Breaker::restore(config(), &kept, second, 1, now).unwrap().state(), initial);
    }
    let mut recovering = breaker(ramping());
    recovering.recover(now, 1, Why::StepHeld, Seen::default());
    let kept = recovering.snapshot(now);
    assert_eq!(Breaker::restore(ramping(), &kept, second, 1, now).unwrap().state(), StateName::Recovering);
    assert_eq!(Breaker::restore(config(), &kept, second, 1, now).unwrap().state(), StateName::Closed);
    assert!(Breaker::restore(BreakerConfig { calls_min: 0, ..config() }, &kept, second, 1, now).is_err());
    // A ramp with fewer steps than before: the last one.
    let short = BreakerConfig { ramp: Some(Ramp { steps: vec![ratio(0.5)], ..Ramp::default() }), ..config() };
    let mut again = Breaker::restore(short, &kept, Duration::ZERO, 1, now).unwrap();
    assert_eq!((0..10).filter(|_| again.admit(now).is_ok()).count(), 5);
}

#[test]
fn time_windows_judge_what_is_recent() {
    let config = BreakerConfig { window: WindowConfig::time(Duration::from_secs(1)), ..config() };
    let mut breaker = breaker(config.clone());
    assert_eq!(breaker.config(), &config);
    for at_ms in [0, 10, 20] {
        let (permit, _) = breaker.admit(Mono::from_millis(at_ms)).unwrap();
        assert_eq!(breaker.record(Mono::from_millis(at_ms), permit, FAIL, QUICK), None);
    }
    let much_later = Mono::from_millis(60_000);
    let (permit, _) = breaker.admit(much_later).unwrap();
    assert_eq!(breaker.record(much_later, permit, FAIL, QUICK), None, "the three old ones are gone");
    assert_eq!(breaker.seen(much_later), Seen { calls: 1, failed: 1, ..Seen::default() });
}

#[test]
fn a_rate_that_time_alone_raises_is_judged_by_the_next_answer() {
    let window = WindowConfig::time(Duration::from_secs(1));
    for (initial, then) in [(StateName::Closed, StateName::Open), (StateName::ObserveOnly, StateName::ObserveOnly)] {
        let mut breaker = breaker(BreakerConfig { window, initial, ..config() });
        for (at_ms, outcome, calls) in [(0, Outcome::Success, 5), (900, FAIL, 4)] {
            for _ in 0..calls {
                let (permit, _) = breaker.admit(Mono::from_millis(at_ms)).unwrap();
                assert_eq!(breaker.record(Mono::from_millis(at_ms), permit, outcome, QUICK), None, "four of nine");
            }
        }
        // The successes are forgotten by now.
        let later = Mono::from_millis(1_500);
        assert_eq!(breaker.on_time(later), None);
        let (permit, _) = breaker.admit(later).unwrap();
        let told = breaker.record(later, permit, Outcome::Success, QUICK).unwrap();
        assert_eq!((told.exceeded.failure_rate, breaker.state()), (Some(80.0), then));
    }
}

fn any_config() -> impl Strategy<Value = BreakerConfig> {
    let window = prop_oneof![
        (1_u32..12).prop_map(WindowConfig::Calls),
        (50_u64..2_000, 1_u32..10)
            .prop_map(|(span_ms, slices)| WindowConfig::Time { span: Duration::from_millis(span_ms), slices }),
    ];
    let rest = (1_u32..8, 1_u32..4, any::<[bool; 5]>(), 0.1_f64..1.0, prop::option::of(1_u32..5));
    (window, rest).prop_map(
        |(window, (calls_min, probes, [ramps, by_timer, in_flight, counted, jitters], rate, row))| BreakerConfig {
            window,
            calls_min,
            failure_rate_max: ratio(rate),
            slow: Some(SlowRule { rate_max: ratio(rate), over: Duration::from_millis(40), in_flight }),
            consecutive_failures_max: row.and_then(NonZeroU32::new),
            wait: OpenWait { jitter: if jitters { ratio(0.3) } else { Ratio::ZERO }, ..config().wait },
            half_open: HalfOpen { calls: probes, by_timer, ..config().half_open },
            ramp: if ramps { ramping().ramp } else { None },
            late_results: if counted { LateResults::Counted } else { LateResults::Ignored },
            ..config()
        },
    )
}

/// What a driver may do: which step, how long after the one before, and a number to choose with.
fn any_steps() -> impl Strategy<Value = Vec<(u8, u64, u8)>> {
    let gap = prop_oneof![8 => 0_u64..30, 2 => 30_u64..400, 1 => Just(86_400_000_u64), 3 => Just(0_u64)];
    prop::collection::vec((0_u8..12, gap, any::<u8>()), 1..200)
}

proptest! {
    /// Whatever happens: never more probes out than allowed, open means refused, a refusal says when to come back,
    /// timers lie ahead or are due, no panic at the end of time.
    #[test]
    fn holds_its_invariants_under_any_sequence(config in any_config(), steps in any_steps(), jump: u64) {
        let probes = config.half_open.calls;
        let counted = config.late_results == LateResults::Counted;
        let mut breaker = breaker(config.clone());
        let (mut now, mut held) = (Mono::ZERO, Vec::new());
        for (step, gap_ms, choice) in steps {
            now = now + Duration::from_millis(gap_ms);
            match step {
                0..=4 => match breaker.admit(now) {
                    Ok((permit, _)) => {
                        prop_assert!(!matches!(breaker.state(), StateName::Open | StateName::ForcedOpen));
                        held.push((permit, now));
                    }
                    Err(refusal) => prop_assert!(refusal.retry_in().is_some()),
                },
                5..=7 => if !held.is_empty() {
                    let (permit, begun) = held.swap_remove(usize::from(choice) % held.len());
                    let was_of_now = breaker.is_of_now(&permit);
                    let before = breaker.state();
                    let outcome = if choice % 3 == 0 { FAIL } else { Outcome::Success };
                    let told = breaker.record(now, permit, outcome, now.since(begun));
                    if !was_of_now && !counted {
                        prop_assert!(told.is_none(), "a late result told {told:?}");
                        prop_assert_eq!(breaker.state(), before);
                    }
                },
                8 => if let Some((permit, _)) = held.pop() { breaker.release(permit); },
                9 => { let _ = breaker.on_time(now); }
                10 => { let _ = breaker.move_to(now, StateName::ALL[usize::from(choice) % 7]); }
                _ => {
                    let config = BreakerConfig { calls_min: u32::from(choice % 7) + 1, ..config.clone() };
                    prop_assert!(breaker.reconfigure(config, now).is_ok());
                }
            }
            if let State::HalfOpen { permits_left, out, .. } = &breaker.state {
                prop_assert!(out.len() as u32 + permits_left <= probes || counted);
                prop_assert!(*permits_left <= probes);
            }
            let seen = breaker.seen(now);
            prop_assert!(seen.failed <= seen.calls && seen.slow <= seen.calls);
            prop_assert!(seen.slow_failed <= seen.failed && seen.slow_failed <= seen.slow);
        }
        let end = now + Duration::from_nanos(jump);
        let _ = (breaker.on_time(end), breaker.admit(end), breaker.on_time(Mono::from_nanos(u64::MAX)));
        let kept = breaker.snapshot(end);
        prop_assert!(Breaker::restore(config, &kept, Duration::from_nanos(jump), 0, Mono::ZERO).is_ok());
    }

    /// Against the plainest model there is: a list of the last outcomes.
    #[test]
    fn opens_exactly_when_a_list_of_outcomes_would(
        calls in prop::collection::vec((any::<bool>(), any::<bool>()), 1..100), size in 1_usize..20, min in 1_usize..20,
    ) {
        let config = BreakerConfig {
            window: WindowConfig::Calls(size as u32),
            calls_min: min as u32,
            slow: Some(SlowRule { rate_max: ratio(0.6), over: Duration::from_millis(10), in_flight: false }),
            ..config()
        };
        let (mut breaker, mut list) = (breaker(config), Vec::new());
        for (failed, slow) in calls {
            let (permit, _) = breaker.admit(Mono::ZERO).expect("closed");
            let outcome = if failed { FAIL } else { Outcome::Success };
            let took = if slow { Duration::from_millis(11) } else { Duration::from_millis(10) };
            let opened = breaker.record(Mono::ZERO, permit, outcome, took).is_some();
            list.push((failed, slow));
            let last = &list[list.len().saturating_sub(size)..];
            let (failed, slow) = (last.iter().filter(|c| c.0).count(), last.iter().filter(|c| c.1).count());
            let opens = last.len() >= min.min(size) && (2 * failed >= last.len() || 10 * slow >= 6 * last.len());
            prop_assert_eq!(opened, opens);
            if opened { break; }
        }
    }

    /// The shared breaker is the plain one, call for call, however calls are spread over shards.
    #[test]
    fn many_sheets_and_one_machine_agree(config in any_config(), steps in any_steps()) {
        // In-flight slots are cut alike, but turn with the traffic of each shard; what hangs is compared below.
        let slow = config.slow.map(|slow| SlowRule { in_flight: false, ..slow });
        let config = BreakerConfig { slow, ..config };
        let told = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&told);
        let shared = SharedBreaker::new(config.clone(), 7, 4, Mono::ZERO, move |event| hears.lock().unwrap().push(*event)).unwrap();
        let (mut plain, mut plain_told) = (breaker(config), Vec::new());
        let (mut now, mut held) = (Mono::ZERO, Vec::new());
        for (step, gap_ms, choice) in steps {
            now = now + Duration::from_millis(gap_ms);
            match step {
                0..=4 => {
                    let ours = shared.admit_as(usize::from(choice % 6), now);
                    // The shared one looks at the clock itself where it takes the lock, which is where it matters.
                    plain_told.extend(plain.on_time(now));
                    let theirs = plain.admit(now);
                    match (ours, theirs) {
                        (Ok(ours), Ok((theirs, event))) => {
                            plain_told.extend(event);
                            held.push((ours, theirs, now));
                        }
                        (Err(ours), Err(theirs)) => prop_assert_eq!(ours, theirs),
                        (ours, theirs) => prop_assert!(false, "{:?} and {:?}", ours, theirs),
                    }
                }
                5..=8 => if !held.is_empty() {
                    let (ours, theirs, begun) = held.swap_remove(usize::from(choice) % held.len());
                    let outcome = match choice % 5 { 0 => FAIL, 1 => Outcome::Ignored, _ => Outcome::Success };
                    shared.record_as(usize::from(choice / 6 % 6), now, ours, outcome, now.since(begun));
                    plain_told.extend(plain.record(now, theirs, outcome, now.since(begun)));
                },
                9 => if let Some((ours, theirs, _)) = held.pop() {
                    shared.release(ours);
                    plain.release(theirs);
                },
                _ => {
                    let to = StateName::ALL[usize::from(choice) % 7];
                    prop_assert_eq!(shared.move_to(now, to).is_ok(), plain.move_to(now, to).map(|event| plain_told.extend(event)).is_ok());
                }
            }
            if choice % 4 == 0 {
                prop_assert_eq!(shared.seen(now), plain.seen(now));
                prop_assert_eq!(shared.state(), plain.state());
            }
        }
        prop_assert_eq!(&*told.lock().unwrap(), &plain_told);
        prop_assert_eq!(shared.rates(now), plain.rates(now));
    }

    /// Calls that hang are counted by the shared breaker as by the plain one.
    #[test]
    fn what_hangs_is_seen_through_many_sheets(
        begun in prop::collection::vec((prop_oneof![0_u64..60, 0_u64..8_000], any::<u8>(), any::<bool>()), 1..60)
    ) {
        let config = BreakerConfig { calls_min: 1_000, window: WindowConfig::Calls(1_000), ..config() };
        let shared = SharedBreaker::new(config.clone(), 7, 4, Mono::ZERO, |_| {}).unwrap();
        let (mut plain, mut now, mut held) = (breaker(config), Mono::ZERO, std::collections::VecDeque::new());
        for (gap, worker, ends) in begun {
            let permits = (shared.admit_as(usize::from(worker % 6), now).unwrap(), plain.admit(now).unwrap().0);
            held.push_back((now, permits));
            if ends && let Some((since, permits)) = if worker > 127 { held.pop_back() } else { held.pop_front() } {
                let took = now.since(since);
                shared.record_as(usize::from(worker / 6 % 6), now, permits.0, Outcome::Success, took);
                let _ = plain.record(now, permits.1, Outcome::Success, took);
            }
            now = now + Duration::from_micros(gap * 20);
            shared.on_time(now);
            let _ = plain.on_time(now);
            prop_assert_eq!(shared.look(now, |machine| machine.overdue()), plain.overdue());
            prop_assert_eq!(shared.next_timer().is_some(), plain.next_timer().is_some());
        }
    }
}

#[test]
fn the_shared_one_hears_and_does_what_the_machine_does() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&told);
    let hear = move |event: &Told| hears.lock().unwrap().extend(event.transition.map(|change| change.to.name()));
    let shared = SharedBreaker::new(config(), 7, 3, Mono::ZERO, hear).unwrap();
    let now = Mono::from_millis(1);
    assert_eq!(shared.admits_at(), None);
    for _ in 0..4 {
        shared.acquire(now).unwrap().record(Mono::from_millis(2), FAIL);
    }
    assert_eq!((shared.state(), shared.in_flight()), (StateName::Open, 0));
    assert_eq!(shared.admits_at(), Some(Mono::from_millis(102) + Duration::from_nanos(1)));
    assert!(shared.acquire(now).is_err() && shared.admit_probe(now).is_err());
    // A pass that is dropped gives its probe back, again and again.
    let later = Mono::from_millis(103);
    for _ in 0..20 {
        drop(shared.acquire(later).unwrap());
    }
    let probe = shared.admit_probe(later).unwrap();
    shared.release(probe);
    let retry_after = Some(Duration::from_millis(200));
    for _ in 0..2 {
        let report = Report { retry_after, ..Report::new(FAIL, QUICK) };
        shared.acquire(later).unwrap().report(later, report);
    }
    assert_eq!(shared.admits_at(), Some(Mono::from_millis(303) + Duration::from_nanos(1)));
    shared.reset(later);
    let trip = Report { trip: Some(Trip::Now), ..Report::new(Outcome::Success, QUICK) };
    shared.acquire(later).unwrap().report(later, trip);
    shared.open_until(later, Mono::from_millis(400)).unwrap();
    let kept = shared.snapshot(later);
    let again = SharedBreaker::restore(config(), (&kept, Duration::ZERO), 7, 1, later, |_| {}).unwrap();
    assert_eq!(again.state(), StateName::Open);
    assert!(again.reconfigure(BreakerConfig { calls_min: 0, ..config() }, later).is_err());
    again.reconfigure(BreakerConfig { calls_min: 3, ..config() }, later).unwrap();
    assert_eq!(again.look(later, |machine| machine.config().calls_min), 3);
    assert!(format!("{again:?}").contains("Open"));
    assert_eq!(*told.lock().unwrap(), ["open", "half_open", "open", "closed", "open"]);
}

/// A success on a sheet is not judged, so sheets are for moments in which none could tip the breaker.
#[test]
fn the_success_that_tips_it_is_judged() {
    for outcomes in [
        [(Outcome::Success, 11), (Outcome::Success, 11), (Outcome::Success, 11), (Outcome::Success, 1)],
        [(FAIL, 1), (FAIL, 1), (Outcome::Success, 1), (Outcome::Success, 1)],
    ] {
        let shared = SharedBreaker::new(config(), 7, 1, Mono::ZERO, |_| {}).unwrap();
        for (outcome, took_ms) in outcomes {
            assert_eq!(shared.state(), StateName::Closed);
            let permit = shared.admit_as(0, Mono::ZERO).unwrap();
            shared.record_as(0, Mono::ZERO, permit, outcome, Duration::from_millis(took_ms));
        }
        assert_eq!(shared.state(), StateName::Open, "{outcomes:?}");
    }
}

#[test]
fn the_shared_one_lets_time_pass() {
    let half_open = HalfOpen { by_timer: true, ..config().half_open };
    let shared = SharedBreaker::new(BreakerConfig { half_open, ..config() }, 7, 1, Mono::ZERO, |_| {}).unwrap();
    shared.move_to(Mono::ZERO, StateName::Open).unwrap();
    let over = shared.next_timer().unwrap();
    shared.on_time(over - Duration::from_nanos(1));
    assert_eq!(shared.state(), StateName::Open);
    shared.on_time(over);
    assert_eq!((over, shared.state()), (Mono::from_millis(100), StateName::HalfOpen));
}

#[test]
fn an_answer_that_has_begun_is_ended_once() {
    let shared = SharedBreaker::new(config(), 7, 1, Mono::ZERO, |_| {}).unwrap();
    let (mut begun, hung) = (shared.admit_as(0, Mono::ZERO).unwrap(), shared.admit_as(0, Mono::ZERO).unwrap());
    shared.answered(&mut begun);
    assert_eq!(shared.in_flight(), 1);
    shared.record_as(0, Mono::ZERO, begun, Outcome::Success, QUICK);
    assert_eq!((shared.in_flight(), shared.seen(Mono::ZERO).calls), (1, 1));
    shared.release(hung);
    assert_eq!(shared.in_flight(), 0);
}

/// Thirty times the limit and more, on sheets that turn and on sheets that lag.
#[test]
fn who_hangs_long_is_not_forgotten_until_it_must_be() {
    let config = BreakerConfig { calls_min: 1_000, window: WindowConfig::Calls(1_000), ..config() };
    let shared = SharedBreaker::new(config.clone(), 7, 2, Mono::ZERO, |_| {}).unwrap();
    let mut plain = breaker(config);
    let (mut hung, mut hung_too) = (Vec::new(), Vec::new());
    for call in 0..30 {
        let now = Mono::from_millis(call);
        hung.push(shared.admit_as(call as usize % 3, now).unwrap());
        hung_too.push(plain.admit(now).unwrap().0);
    }
    for now in (50..300).step_by(10).map(Mono::from_millis) {
        // The first sheet is used now and then, the second never again.
        let quick = shared.admit_as(0, now).unwrap();
        shared.record_as(0, now, quick, Outcome::Success, Duration::ZERO);
        let _ = plain.on_time(now);
        assert_eq!((shared.look(now, |machine| machine.overdue()), plain.overdue()), (30, 30), "{now:?}");
    }
    let now = Mono::from_millis(310);
    for (ours, theirs) in hung.drain(..20).zip(hung_too.drain(..20)) {
        shared.record_as(1, now, ours, Outcome::Ignored, Duration::ZERO);
        let _ = plain.record(now, theirs, Outcome::Ignored, Duration::ZERO);
    }
    assert_eq!((shared.look(now, |machine| machine.overdue()), plain.overdue()), (10, 10));
    let now = Mono::from_millis(1_000);
    let _ = plain.on_time(now);
    assert_eq!((shared.look(now, |machine| machine.overdue()), plain.overdue()), (0, 0), "nobody will give them back");
    hung.drain(..).for_each(|permit| shared.release(permit));
    hung_too.drain(..).for_each(|permit| plain.release(permit));
    let _ = plain.on_time(now);
    assert_eq!((shared.in_flight(), plain.overdue()), (0, 0), "late, and no harm");
}

#[test]
fn another_slow_limit_begins_to_count_anew_who_hangs() {
    let shared = SharedBreaker::new(config(), 7, 1, Mono::ZERO, |_| {}).unwrap();
    let now = Mono::from_millis(1_000);
    let before = shared.admit_as(0, now).unwrap();
    let slow = SlowRule { over: Duration::from_millis(100), ..config().slow.unwrap() };
    shared.reconfigure(BreakerConfig { slow: Some(slow), ..config() }, now).unwrap();
    let _after = shared.admit_as(0, Mono::from_millis(1_003)).unwrap();
    assert_eq!(shared.in_flight(), 1, "who was on the way is not seen to hang");
    let overdue = |at_ms| shared.look(Mono::from_millis(at_ms), |machine| machine.overdue());
    assert_eq!((overdue(1_100), overdue(1_140)), (0, 1));
    shared.record_as(0, Mono::from_millis(1_140), before, Outcome::Success, QUICK);
    assert_eq!(
        (overdue(1_140), shared.seen(Mono::from_millis(1_140)).calls),
        (1, 1),
        "it counts, and ends nobody else"
    );
}

/// Threads that really run at the same time lose no call and count none twice.
#[test]
fn threads_at_the_same_time_lose_no_call() {
    const CALLS: u64 = 20_000;
    let config = BreakerConfig {
        window: WindowConfig::time(Duration::from_secs(3_000)),
        failure_rate_max: Ratio::ONE,
        slow: None,
        calls_min: 1_000_000,
        ..BreakerConfig::default()
    };
    let shared = SharedBreaker::new(config, 7, 3, Mono::ZERO, |_| {}).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let shared = &shared;
            scope.spawn(move || {
                for call in 0..CALLS {
                    let now = Mono::from_millis(call);
                    let permit = shared.admit(now).unwrap();
                    let outcome = if call % 100 == 0 { FAIL } else { Outcome::Success };
                    shared.record(now, permit, outcome, QUICK);
                }
            });
        }
    });
    let seen = shared.seen(Mono::from_millis(CALLS));
    assert_eq!((u64::from(seen.calls), u64::from(seen.failed)), (4 * CALLS, 4 * CALLS / 100));
    assert_eq!(shared.in_flight(), 0);
}
