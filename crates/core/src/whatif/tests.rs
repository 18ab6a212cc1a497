//! Experiments whose outcome is known: from queueing theory, from arithmetic, or from the incidents they replay.

use std::time::Duration;

use super::*;
use crate::guard::breaker::{BreakerConfig, SlowRule};
use crate::guard::learned::LearnedConfig;
use crate::guard::rate::RateConfig;
use crate::policy::Guards;
use crate::units::Ratio;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn guards() -> Guards {
    Guards { timeout: 2 * S, try_timeout: S, ..Guards::default() }
}

fn scenario(per_second: f64) -> Scenario {
    Scenario {
        seed: 7,
        lasts: 60 * S,
        traffic: Traffic::Poisson { per_second },
        layers: vec![Layer::gateway(guards())],
        dependency: Dependency::default(),
    }
}

fn trouble(from_s: u32, until_s: u32, ailment: Ailment) -> Vec<Trouble> {
    vec![Trouble { from: from_s * S, until: until_s * S, ailment }]
}

fn run(scenario: &Scenario) -> Report {
    scenario.run().expect("a sane experiment")
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_does_not() {
    let mut scenario = scenario(200.0);
    scenario.dependency.troubles = trouble(20, 30, Ailment::Fails(Ratio::new(0.7).unwrap()));
    let bytes = |scenario: &Scenario| serde_json::to_vec(&run(scenario)).unwrap();
    let first = bytes(&scenario);
    assert_eq!(bytes(&scenario), first);
    scenario.seed = 8;
    assert_ne!(bytes(&scenario), first);
}

#[test]
fn a_healthy_hour_is_what_the_model_says() {
    let report = run(&scenario(200.0));
    let summary = &report.summary;
    assert!((11_500..12_500).contains(&summary.offered), "{summary:?}");
    // What is still on its way at the end is neither.
    assert!(summary.good + 20 >= summary.offered && summary.failed == 0, "{summary:?}");
    assert!((summary.latency_p50_ms - 20.0).abs() < 1.0 && (summary.latency_p99_ms - 80.0).abs() < 10.0, "{summary:?}");
    assert_eq!((summary.retried, summary.opened, report.rows.len()), (0, 0, 60));
    assert!((summary.amplification - 1.0).abs() < 0.01);
}

#[test]
fn arrivals_are_as_asked_for() {
    let mut scenario = scenario(50.0);
    scenario.traffic = Traffic::Constant { per_second: 50.0 };
    assert!(run(&scenario).rows.iter().all(|row| (49..=51).contains(&row.offered)));
    scenario.traffic = Traffic::Diurnal { low: 10.0, high: 200.0, period: 60 * S };
    let rows = run(&scenario).rows;
    let around = |second: usize| rows[second - 2..second + 3].iter().map(|row| row.offered).sum::<u32>() / 5;
    assert!(around(3) < 30 && around(30) > 150 && around(56) < 40, "{} {} {}", around(3), around(30), around(56));
    let recorded = |at_s: u32, well| Recorded { at: at_s * S, latency: 30 * MS, well };
    scenario.traffic = Traffic::Recorded(vec![recorded(1, true), recorded(2, false), recorded(5, true)]);
    scenario.layers[0].guards.retry.attempts_max = 1;
    let summary = run(&scenario).summary;
    assert_eq!((summary.offered, summary.good, summary.failed), (3, 2, 1));
    assert!((summary.latency_p50_ms - 30.0).abs() < 0.1);
}

/// M/M/1 at 80 % load: the mean time in the system is 1 / (mu - lambda) = 50 ms, the median ln 2 of it.
#[test]
fn a_queue_is_as_long_as_theory_says() {
    let mut scenario = scenario(80.0);
    scenario.lasts = 1_200 * S;
    scenario.dependency.workers = Some(1);
    scenario.dependency.latency = Latency::Exponential(10 * MS);
    scenario.layers[0].guards.breaker = None;
    let p50 = run(&scenario).summary.latency_p50_ms;
    assert!((p50 - 34.7).abs() < 4.0, "{p50}");
}

#[test]
fn an_outage_opens_the_breaker_and_its_end_closes_it() {
    for (ailment, opens_within_s) in [(Ailment::Down, 1.0), (Ailment::Hangs, 12.0), (Ailment::Slow(100.0), 12.0)] {
        let mut scenario = scenario(200.0);
        scenario.dependency.troubles = trouble(20, 40, ailment);
        scenario.lasts = 120 * S;
        let slow = SlowRule { rate_max: Ratio::new(0.6).unwrap(), over: 500 * MS, in_flight: true };
        scenario.layers[0].guards.breaker = Some(BreakerConfig { slow: Some(slow), ..BreakerConfig::default() });
        let report = run(&scenario);
        let summary = &report.summary;
        assert!(summary.to_open_s.is_some_and(|s| s < opens_within_s), "{ailment:?}: {summary:?}");
        assert!(summary.to_recover_s.is_some_and(|s| s < 30.0), "{ailment:?}: {summary:?}");
        assert!(summary.refused["breaker"] > 1_000 && summary.opened > 0, "{ailment:?}: {summary:?}");
        assert!(report.rows[35].not_closed == 1 && report.rows[119].not_closed == 0, "{ailment:?}");
    }
}

/// Callers who retry three times at each of two layers make sixteen calls of one; with owners named they make four.
#[test]
fn retries_multiply_across_layers_unless_one_owns_them() {
    let outage = |marks| {
        let mut scenario = scenario(20.0);
        let mut outer = Layer::naive("callers", 1, S, 4);
        outer.marks_retries = marks;
        let inner = Layer { marks_retries: marks, ..Layer::naive("service", 1, S, 4) };
        scenario.layers = vec![outer, inner];
        scenario.dependency.failure_rate = Ratio::ONE;
        run(&scenario).summary.amplification
    };
    assert!((outage(false) - 16.0).abs() < 0.5, "{}", outage(false));
    assert!((outage(true) - 4.0).abs() < 0.5, "{}", outage(true));
}

/// A dependency at 80 % of its capacity is slow for ten seconds. Callers who retry keep it down for good (Bronson et
/// al., "Metastable Failures in Distributed Systems", HotOS 2021); behind guards it comes back.
#[test]
fn a_metastable_failure_outlives_its_cause_without_guards_and_not_with_them() {
    let mut naive = scenario(80.0);
    naive.lasts = 180 * S;
    naive.dependency = Dependency {
        latency: Latency::Exponential(100 * MS),
        workers: Some(10),
        queue_max: 1_000,
        troubles: trouble(30, 40, Ailment::Slow(10.0)),
        ..Dependency::default()
    };
    naive.layers = vec![Layer::naive("callers", 20, S, 4)];
    let report = run(&naive);
    assert_eq!(report.summary.to_recover_s, None, "{:?}", report.summary);
    assert!(report.rows[170].good < 10 && report.rows[170].sent > 200, "two minutes later: {:?}", report.rows[170]);
    let mut guarded = naive.clone();
    let slow = SlowRule { rate_max: Ratio::new(0.5).unwrap(), over: 500 * MS, in_flight: true };
    let breaker = BreakerConfig { slow: Some(slow), ..BreakerConfig::default() };
    guarded.layers = vec![Layer::gateway(Guards { breaker: Some(breaker), ..guards() })];
    let summary = run(&guarded).summary;
    assert!(summary.to_recover_s.is_some_and(|s| s < 60.0), "{summary:?}");
    assert!(summary.amplification < 1.3, "{summary:?}");
}

#[test]
fn a_rate_limit_that_nobody_told_is_learned() {
    let mut scenario = scenario(100.0);
    scenario.lasts = 300 * S;
    let rate = RateConfig { cells: 50, per: S, burst: 10 };
    scenario.dependency.rate_limit = Some(RateLimit { rate, says_when: false });
    let refused_by_upstream = |scenario: &Scenario| {
        let summary = run(scenario).summary;
        (summary.sent - summary.good) as f64 / summary.sent as f64
    };
    scenario.layers[0].guards.breaker = None;
    let blind = refused_by_upstream(&scenario);
    scenario.layers[0].guards.learned_limit = Some(LearnedConfig::default());
    let learned = refused_by_upstream(&scenario);
    assert!(blind > 0.4 && learned < 0.05, "{blind} and {learned}");
    assert!(run(&scenario).summary.good > 300 * 40);
}

/// A retry that was afforded and then found the breaker open is given back: after the outage there are retries again.
#[test]
fn an_outage_does_not_use_up_the_budget_for_good() {
    let mut scenario = scenario(200.0);
    scenario.lasts = 180 * S;
    let fails = |share: f64| Ailment::Fails(Ratio::new(share).unwrap());
    scenario.dependency.troubles = [trouble(20, 40, Ailment::Down), trouble(120, 150, fails(0.1))].concat();
    let report = run(&scenario);
    let retried: u32 = report.rows[120..150].iter().map(|row| row.retried).sum();
    assert!(retried > 300, "one in ten of 6,000 requests: {retried}");
}

#[test]
fn a_full_house_queues_refuses_and_drags() {
    let mut scenario = scenario(200.0);
    scenario.dependency = Dependency {
        latency: Latency::Uniform(40 * MS, 60 * MS),
        workers: Some(5),
        queue_max: 20,
        drag: 0.2,
        ..Dependency::default()
    };
    scenario.layers[0].guards.breaker = None;
    scenario.layers[0].guards.bulkhead.calls_max = 10;
    scenario.layers[0].guards.bulkhead.waiting_max = 5;
    let report = run(&scenario);
    assert!(report.summary.refused["bulkhead"] > 1_000, "{:?}", report.summary);
    assert!(report.rows[30].queued <= 5, "ten inside, five of them served");
    scenario.layers[0].guards.bulkhead.calls_max = 100;
    let report = run(&scenario);
    assert!(report.rows[30].queued == 20, "{:?}", report.rows[30]);
}

#[test]
fn what_makes_no_experiment_is_refused() {
    let sane = scenario(1.0);
    let of_dependency = |dependency| Scenario { dependency, ..sane.clone() };
    let default = Dependency::default();
    let wrong = [
        (Scenario { layers: Vec::new(), ..sane.clone() }, "layers"),
        (Scenario { layers: vec![Layer { instances: 0, ..sane.layers[0].clone() }], ..sane.clone() }, "instances"),
        (Scenario { lasts: Duration::ZERO, ..sane.clone() }, "for"),
        (Scenario { traffic: Traffic::Poisson { per_second: f64::NAN }, ..sane.clone() }, "rate"),
        (Scenario { traffic: Traffic::Diurnal { low: 2.0, high: 1.0, period: S }, ..sane.clone() }, "rate"),
        (Scenario { traffic: Traffic::Recorded(Vec::new()), ..sane.clone() }, "traffic"),
        (of_dependency(Dependency { latency: Latency::Fixed(Duration::ZERO), ..default.clone() }), "latency"),
        (of_dependency(Dependency { workers: Some(0), ..default.clone() }), "capacity"),
        (of_dependency(Dependency { drag: -1.0, ..default.clone() }), "drag"),
        (of_dependency(Dependency { troubles: trouble(2, 1, Ailment::Down), ..default.clone() }), "fault"),
        (of_dependency(Dependency { troubles: trouble(60, 90, Ailment::Down), ..default.clone() }), "fault"),
        (of_dependency(Dependency { troubles: trouble(1, 2, Ailment::Slow(0.5)), ..default.clone() }), "fault"),
        (
            Scenario {
                layers: vec![Layer::gateway(Guards {
                    retry: crate::guard::retry::RetryConfig { attempts_max: 0, ..Default::default() },
                    ..guards()
                })],
                ..sane.clone()
            },
            "retry",
        ),
    ];
    for (scenario, key) in wrong {
        assert_eq!(scenario.run().expect_err(key).key, key);
    }
}

/// Nobody is told no, everything is delivered after the outage, and nothing is delivered twice or forgotten.
#[test]
fn what_is_kept_goes_out_when_the_outage_is_over() {
    for (instances, ailment) in [(1, Ailment::Down), (3, Ailment::Hangs), (2, Ailment::Fails(Ratio::ONE))] {
        let mut scenario = scenario(100.0);
        scenario.dependency.troubles = trouble(20, 40, ailment);
        scenario.lasts = 120 * S;
        scenario.layers[0].instances = instances;
        scenario.layers[0].stand_in = StandIn::Promise { parallel: 16 };
        scenario.layers[0].guards.retry.attempts_max = 1;
        let report = run(&scenario);
        let summary = &report.summary;
        let unfinished = summary.offered - summary.good - summary.reduced;
        assert!(summary.failed == 0 && unfinished < 20, "{summary:?}");
        assert!(summary.kept_max > 500 && summary.reduced >= u64::from(summary.kept_max), "{summary:?}");
        assert!(summary.kept_at_end == 0 && summary.to_empty_s.is_some_and(|s| s > 0.0 && s < 60.0), "{summary:?}");
        let before = report.rows[..20].iter().map(|row| row.reduced + row.kept).sum::<u32>();
        assert_eq!(before, 0, "nothing is reduced while all is well");
        // One call is enough for each, but for probes and for those that reached the dependency before they were kept.
        assert!(summary.sent < summary.offered + summary.reduced / 10 + 500, "{summary:?}");
        scenario.lasts = 45 * S;
        let early = run(&scenario).summary;
        assert!(early.kept_at_end > 0 && early.to_empty_s.is_none(), "{early:?}");
    }
}

#[test]
fn what_is_kept_comes_back_gently_under_a_rate_limit() {
    let mut scenario = scenario(40.0);
    scenario.dependency.troubles = trouble(10, 20, Ailment::Down);
    scenario.dependency.rate_limit =
        Some(RateLimit { rate: RateConfig { cells: 60, per: S, burst: 10 }, says_when: true });
    scenario.lasts = 180 * S;
    scenario.layers[0].stand_in = StandIn::Promise { parallel: 16 };
    let summary = run(&scenario).summary;
    assert!(
        summary.kept_max > 200 && summary.kept_at_end == 0,
        "what is refused with 429 waits and goes out: {summary:?}"
    );
}

/// A reduced answer is an answer: callers who would have tried again do not.
#[test]
fn a_stand_in_spares_the_dependency_the_retries_of_its_callers() {
    let outage = |stand_in| {
        let mut scenario = scenario(50.0);
        let mut inner = Layer::gateway(Guards { breaker: None, ..guards() });
        (inner.stand_in, inner.guards.retry.attempts_max) = (stand_in, 1);
        scenario.layers = vec![Layer::naive("callers", 1, S, 4), inner];
        scenario.dependency.failure_rate = Ratio::ONE;
        run(&scenario).summary
    };
    let (bare, stood_in) = (outage(StandIn::Nothing), outage(StandIn::Answer));
    assert!(bare.amplification > 3.8 && bare.reduced == 0 && bare.failed > 2_500, "{bare:?}");
    assert!((stood_in.amplification - 1.0).abs() < 0.01 && stood_in.failed == 0, "{stood_in:?}");
    assert!(stood_in.reduced > 2_500 && (stood_in.good, stood_in.kept_max) == (0, 0), "{stood_in:?}");
}

/// One call in twenty takes a second here: copies after the 95th percentile take the tail away, for 5 % more load.
#[test]
fn copies_cut_the_tail_and_cost_little() {
    let hedge = crate::guard::hedge::HedgeConfig::default();
    let with = |change: &dyn Fn(&mut Scenario)| {
        let mut scenario = scenario(200.0);
        scenario.dependency.latency = Latency::LogNormal { median: 20 * MS, p99: 800 * MS };
        scenario.layers[0].guards.try_timeout = 2 * S;
        change(&mut scenario);
        run(&scenario).summary
    };
    let plain = with(&|_| {});
    let copied = with(&|scenario| scenario.layers[0].guards.hedge = Some(hedge));
    assert!(plain.hedged == 0 && plain.latency_p99_ms > 600.0, "{plain:?}");
    let share = copied.hedged as f64 / copied.offered as f64;
    assert!((0.03..0.07).contains(&share), "{copied:?}");
    assert!(copied.latency_p99_ms < plain.latency_p99_ms / 2.0, "{copied:?} and without {plain:?}");
    assert_eq!(copied.sent, copied.offered + copied.hedged + copied.retried);
    // Nobody pays, nobody may be asked twice, or what is kept needs no copy: none is sent.
    let none: [&dyn Fn(&mut Scenario); 3] = [
        &|it| (it.layers[0].guards.budget.ratio, it.layers[0].guards.budget.floor_per_s) = (Ratio::ZERO, 0.0),
        &|it| it.layers[0].idempotent = false,
        &|it| it.layers[0].stand_in = StandIn::Promise { parallel: 1 },
    ];
    for change in none {
        let summary = with(&|scenario| {
            scenario.layers[0].guards.hedge = Some(hedge);
            change(scenario);
        });
        assert_eq!(summary.hedged, 0, "{summary:?}");
    }
}

/// With every third answer a failure, whichever copy comes first: no request ends twice or never.
#[test]
fn copies_that_fail_leave_the_other_its_chance() {
    let mut scenario = scenario(200.0);
    scenario.dependency.failure_rate = Ratio::new(0.33).unwrap();
    scenario.layers[0].guards.hedge = Some(crate::guard::hedge::HedgeConfig::default());
    scenario.layers[0].guards.breaker = None;
    scenario.layers[0].guards.retry.attempts_max = 1;
    let summary = run(&scenario).summary;
    let failed = summary.failed as f64 / (summary.good + summary.failed) as f64;
    assert!(summary.hedged > 200 && summary.offered - summary.good - summary.failed < 30, "{summary:?}");
    // A copy is sent of one call in twenty and saves some of those whose first copy fails late.
    assert!((0.30..0.335).contains(&failed), "{failed} of {summary:?}");
}
