//! Rates, latencies and failures that follow a record piece by piece. Counts are Poisson, so that how far they may lie
//! from what was asked for can be computed: five standard deviations, one in 1.7 million.

use std::time::Duration;

use super::*;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// 100/s, nothing, 400/s, 20/s.
const RATES: [(u32, f64); 4] = [(0, 100.0), (60, 0.0), (90, 400.0), (120, 20.0)];
const UNTIL_S: u32 = 240;

fn pieces() -> Vec<Piece> {
    RATES.iter().map(|(from_s, per_second)| Piece { from: *from_s * S, per_second: *per_second }).collect()
}

fn scenario(seed: u64) -> Scenario {
    let guards = Guards {
        timeout: 2 * S,
        try_timeout: S,
        breaker: None,
        retry: RetryConfig { attempts_max: 1, ..RetryConfig::default() },
        ..Guards::default()
    };
    Scenario {
        seed,
        lasts: UNTIL_S * S,
        traffic: Traffic::Pieces { pieces: pieces(), until: UNTIL_S * S },
        layers: vec![Layer::gateway(guards)],
        dependency: Dependency::default(),
    }
}

fn run(scenario: &Scenario) -> Report {
    scenario.run().expect("a sane experiment")
}

/// Sums over the seconds of each piece, with what is to be expected.
fn by_piece(report: &Report, of: fn(&Row) -> u32) -> Vec<(u32, f64)> {
    let ends = RATES.iter().skip(1).map(|(from_s, _)| *from_s).chain([UNTIL_S]);
    let sum = |((from_s, per_second), end_s): (&(u32, f64), u32)| {
        let rows = &report.rows[*from_s as usize..end_s as usize];
        (rows.iter().map(of).sum(), per_second * f64::from(end_s - from_s))
    };
    RATES.iter().zip(ends).map(sum).collect()
}

#[test]
fn each_piece_has_its_rate() {
    for seed in 0..20 {
        for (offered, expected) in by_piece(&run(&scenario(seed)), |row| row.offered) {
            assert!((f64::from(offered) - expected).abs() <= 5.0 * expected.sqrt(), "{offered} for {expected}");
        }
    }
}

/// Gaps of a Poisson process are exponential: the variance of the counts by second is their mean. Of 59 seconds a
/// variance deviates by the root of 2 / 58 of itself.
#[test]
fn arrivals_within_a_piece_are_independent() {
    let report = run(&scenario(3));
    let counts: Vec<f64> = report.rows[..59].iter().map(|row| f64::from(row.offered)).collect();
    let mean = counts.iter().sum::<f64>() / 59.0;
    let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 58.0;
    assert!((variance / mean - 1.0).abs() < 5.0 * (2.0_f64 / 58.0).sqrt(), "{variance} of {mean}");
}

#[test]
fn the_last_piece_goes_on_and_a_silent_one_ends_it() {
    let mut long = scenario(1);
    long.lasts = 1_200 * S;
    let late = |report: &Report| report.rows[240..].iter().map(|row| row.offered).sum::<u32>();
    let expected = 20.0 * 960.0_f64;
    assert!((f64::from(late(&run(&long))) - expected).abs() < 5.0 * expected.sqrt());
    let mut silent = pieces();
    silent.push(Piece { from: 200 * S, per_second: 0.0 });
    long.traffic = Traffic::Pieces { pieces: silent, until: 240 * S };
    assert_eq!(late(&run(&long)), 0);
    // A silence at the beginning is one, and a record of next to nothing may hold no request at all.
    let quiet = vec![Piece { from: Duration::ZERO, per_second: 0.0 }, Piece { from: 60 * S, per_second: 10.0 }];
    long.traffic = Traffic::Pieces { pieces: quiet, until: 240 * S };
    let report = run(&long);
    assert_eq!(report.rows[..60].iter().map(|row| row.offered).sum::<u32>(), 0);
    assert!(report.rows[60..70].iter().any(|row| row.offered > 0));
    let rare = vec![Piece { from: Duration::ZERO, per_second: 0.001 }, Piece { from: S, per_second: 0.0 }];
    long.traffic = Traffic::Pieces { pieces: rare, until: 240 * S };
    assert_eq!(run(&long).summary.offered, 0);
}

#[test]
fn what_is_to_be_expected_is_a_sum() {
    let traffic = scenario(1).traffic;
    let expected = |until_s: u32| traffic.recorded_requests(until_s * S);
    assert_eq!(
        [30, 60, 75, 100, 240, 340].map(expected).map(Option::unwrap),
        [3_000.0, 6_000.0, 6_000.0, 10_000.0, 20_400.0, 22_400.0]
    );
    assert_eq!(Traffic::Poisson { per_second: 1.0 }.recorded_requests(S), None);
}

/// A median of n good answers deviates by 1.2533 sigma / root n of itself, where sigma is that of the logarithm; a
/// count of failures as binomial counts do.
#[test]
fn latency_and_failures_follow_the_course() {
    let log_normal = |median: u32, p99: u32| Latency::LogNormal { median: median * MS, p99: p99 * MS };
    let share = |share: f64| Ratio::new(share).unwrap();
    let mut scenario = scenario(5);
    scenario.dependency = Dependency {
        latency: log_normal(5, 10),
        failure_rate: share(0.1),
        course: vec![
            Stretch { from: 30 * S, latency: log_normal(40, 160), failure_rate: Ratio::ZERO },
            Stretch { from: 90 * S, latency: log_normal(80, 80), failure_rate: share(0.3) },
            Stretch { from: 120 * S, latency: log_normal(40, 80), failure_rate: Ratio::ONE },
        ],
        ..Dependency::default()
    };
    let report = run(&scenario);
    // Seconds in which a stretch begins have answers of both.
    for (rows, median_ms, p99_ms, fails) in
        [(1..30, 5.0_f64, 10.0, 0.1), (31..60, 40.0, 160.0, 0.0), (91..120, 80.0, 80.0, 0.3), (121..240, 0.0, 0.0, 1.0)]
    {
        let rows = &report.rows[rows];
        let (good, failed) = rows
            .iter()
            .fold((0.0, 0.0), |(good, failed), row| (good + f64::from(row.good), failed + f64::from(row.failed)));
        let calls: f64 = good + failed;
        let deviation = (calls * fails * (1.0 - fails)).sqrt();
        assert!((failed - calls * fails).abs() <= 5.0 * deviation, "{failed} of {calls} for {fails}");
        if median_ms > 0.0 {
            let sigma = (p99_ms / median_ms).ln() / 2.326_35;
            let medians: Vec<f64> = rows.iter().map(|row| row.latency_p50_ms).collect();
            let mean = medians.iter().sum::<f64>() / medians.len() as f64;
            // To the microsecond, and a mean of medians of about a hundred lies a hundredth beside the median.
            let slack = 5.0 * 1.2533 * sigma / good.sqrt() + 0.01;
            assert!((mean / median_ms - 1.0).abs() < slack, "{mean} for {median_ms}");
        }
    }
}

#[test]
fn troubles_come_on_top() {
    let mut scenario = scenario(2);
    let latency = Latency::Fixed(10 * MS);
    scenario.dependency.course = vec![Stretch { from: Duration::ZERO, latency, failure_rate: Ratio::ZERO }];
    scenario.dependency.troubles = vec![
        Trouble { from: 10 * S, until: 20 * S, ailment: Ailment::Down },
        Trouble { from: 30 * S, until: 40 * S, ailment: Ailment::Slow(3.0) },
    ];
    let report = run(&scenario);
    assert_eq!(report.rows[11..19].iter().map(|row| row.good).sum::<u32>(), 0);
    assert_eq!([report.rows[5].latency_p50_ms, report.rows[35].latency_p50_ms], [10.0, 30.0]);
}

#[test]
fn what_is_no_course_is_refused() {
    let piece = |from_s: u32, per_second| Piece { from: from_s * S, per_second };
    for (pieces, until_s, key) in [
        (vec![], 10, "traffic"),
        (vec![piece(1, 1.0)], 10, "traffic"),
        (vec![piece(0, 0.0)], 10, "traffic"),
        (vec![piece(0, 1.0), piece(5, 2.0), piece(5, 3.0)], 10, "traffic"),
        (vec![piece(0, 1.0), piece(10, 2.0)], 10, "traffic"),
        (vec![piece(0, 1.0), piece(5, f64::NAN)], 10, "rate"),
        (vec![piece(0, -1.0)], 10, "rate"),
        (vec![piece(0, 2e6)], 10, "rate"),
    ] {
        let traffic = Traffic::Pieces { pieces, until: until_s * S };
        let wrong = Scenario { traffic, ..scenario(1) };
        assert_eq!(wrong.run().expect_err(key).key, key, "{wrong:?}");
    }
    let stretch = |from_s: u32, latency| Stretch { from: from_s * S, latency, failure_rate: Ratio::ZERO };
    let (well, none) = (Latency::Fixed(MS), Latency::Fixed(Duration::ZERO));
    for (course, key) in [(vec![stretch(1, well), stretch(1, well)], "traffic"), (vec![stretch(0, none)], "latency")] {
        let mut wrong = scenario(1);
        wrong.dependency.course = course;
        assert_eq!(wrong.run().expect_err(key).key, key);
    }
}
