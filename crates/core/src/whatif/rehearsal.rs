//! A fire drill for a policy: three troubles of half a minute, played against its guards at the rate it expects.
//!
//! Arithmetic ([`super::audit`]) sees numbers that cannot work; this sees numbers that each work and together do not: a
//! breaker that hanging calls never open, a recovery that takes longer than the outage, retries that keep a dependency
//! down. A remedy is only named if the same trouble, played again with it, does not show the same.
//! Not here: troubles and dependencies of your own choice (`seawall simulate`).

use std::time::Duration;

use super::audit::{AuditLine, Expects, per_second_words};
use super::{Ailment, Dependency, Latency, Layer, Report, Row, Scenario, Traffic, Trouble};
use crate::guard::breaker::{BreakerConfig, SlowRule};
use crate::guard::budget::BudgetConfig;
use crate::policy::Guards;
use crate::units::{Ratio, format_duration};

/// Faster traffic is played at this rate: it shows the same, a little later.
const PER_SECOND_MAX: f64 = 200.0;
/// Fewer requests in a trouble show nothing but chance.
const REQUESTS_MIN: f64 = 300.0;
const BEGINS: Duration = Duration::from_secs(30);
const LASTS: Duration = Duration::from_secs(30);
/// Who needs longer than that to get over it has a second outage of its own making.
const OVER_MAX: Duration = Duration::from_secs(45);
const WATCHED: Duration = Duration::from_secs(90);
/// The first seconds are left out: what fills is not yet what it will be.
const SETTLES_S: usize = 5;
/// Answers are good again when this share of what was good before is, over so many seconds.
const GOOD_AGAIN: f64 = 0.9;
const GOOD_FOR_S: usize = 10;

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    /// Connections are refused.
    Down,
    /// Calls are never answered.
    Hangs,
    /// Everything takes twenty times as long, and there is room for twice the traffic, no more.
    Crowded,
}

/// What the drill finds, with remedies that were tried. `may_repeat` is [`crate::policy::Route::may_repeat`] of the
/// route that is called so; an empty name is not told.
#[must_use]
pub fn rehearse(guards: &Guards, expects: &Expects, may_repeat: bool, route: &str) -> Vec<AuditLine> {
    let Some(per_second) = expects.per_second.map(|rate| rate.min(PER_SECOND_MAX)) else { return Vec::new() };
    if per_second * LASTS.as_secs_f64() < REQUESTS_MIN {
        return Vec::new();
    }
    let stage = |trial, guards: &Guards| scenario(trial, guards, expects, (per_second, may_repeat));
    let play = |trial, guards: &Guards| stage(trial, guards).run().ok();
    let mut lines: Vec<AuditLine> = Vec::new();
    for trial in [Trial::Down, Trial::Hangs, Trial::Crowded] {
        let Some(fault) = play(trial, guards).and_then(|report| fault(trial, guards, &report)) else { continue };
        if lines.iter().any(|line| line.key == fault.key()) {
            // The same weakness seen twice is told once.
            continue;
        }
        let helps = |remedy: &Remedy| play(trial, &remedy.guards).is_some_and(|it| fault.is_gone(trial, &it, guards));
        let fix = fault.remedies(guards).into_iter().find(helps).map_or_else(
            || format!("look at it with `{}`", as_typed(&stage(trial, guards), trial, route)),
            |remedy| format!("write {}", remedy.words),
        );
        let message = format!("played at {}, {}", per_second_words(per_second), fault.message(trial));
        lines.push(AuditLine { key: fault.key(), of_traffic: true, message, fix });
        if matches!(fault, Fault::NeverWell(_)) {
            // Whoever is not well before it cannot get well after it.
            break;
        }
    }
    lines
}

fn scenario(trial: Trial, guards: &Guards, expects: &Expects, (per_second, may_repeat): (f64, bool)) -> Scenario {
    // As quick as the policy plainly takes a good answer to be.
    let slow = guards.breaker.as_ref().and_then(|breaker| breaker.slow).map_or(Duration::MAX, |slow| slow.over);
    let median = Duration::from_millis(20).min(slow / 20).min(guards.try_timeout / 20).max(Duration::from_micros(100));
    let crowded = trial == Trial::Crowded;
    let workers = (2.0 * per_second * median.as_secs_f64() * 1.2).ceil().max(2.0);
    let ailment = match trial {
        Trial::Down => Ailment::Down,
        Trial::Hangs => Ailment::Hangs,
        Trial::Crowded => Ailment::Slow(20.0),
    };
    let callers = (expects.caller_attempts > 1).then(|| {
        let patience = expects.caller_timeout.unwrap_or(guards.timeout);
        Layer::naive("callers", CALLERS, patience, expects.caller_attempts)
    });
    let gateway = Layer { idempotent: may_repeat, ..Layer::gateway(guards.clone()) };
    Scenario {
        seed: 7,
        lasts: BEGINS + LASTS + WATCHED,
        traffic: Traffic::Poisson { per_second },
        layers: callers.into_iter().chain([gateway]).collect(),
        dependency: Dependency {
            latency: Latency::LogNormal { median, p99: median * 4 },
            workers: crowded.then_some(workers as u32),
            failure_rate: expects.failure_rate,
            troubles: vec![Trouble { from: BEGINS, until: BEGINS + LASTS, ailment }],
            ..Dependency::default()
        },
    }
}

const CALLERS: u32 = 10;

/// The command that plays the same.
fn as_typed(scenario: &Scenario, trial: Trial, route: &str) -> String {
    let mut words = String::from("seawall simulate");
    if !route.is_empty() {
        words += &format!(" --route {route}");
    }
    if let Traffic::Poisson { per_second } = scenario.traffic {
        words += &format!(" --rate {}", per_second_words(per_second));
    }
    words += &format!(" --for {}", format_duration(scenario.lasts));
    if let [callers, _] = scenario.layers.as_slice() {
        let (tries, patience) = (callers.guards.retry.attempts_max, format_duration(callers.guards.try_timeout));
        words += &format!(" --callers {CALLERS} --caller-attempts {tries} --caller-timeout {patience}");
    }
    if let Latency::LogNormal { median, .. } = scenario.dependency.latency {
        words += &format!(" --latency {}", format_duration(median));
    }
    if scenario.dependency.failure_rate.get() > 0.0 {
        words += &format!(" --failure-rate {}", scenario.dependency.failure_rate);
    }
    if let Some(workers) = scenario.dependency.workers {
        words += &format!(" --capacity {workers}");
    }
    words + &format!(" --fault \"30s..60s {}\"", trial.fault_as_typed())
}

impl Trial {
    const fn words(self) -> &'static str {
        match self {
            Self::Down => "an upstream that is down for 30s",
            Self::Hangs => "an upstream that hangs for 30s",
            Self::Crowded => "an upstream that is slow for 30s, with room for twice this traffic",
        }
    }

    const fn fault_as_typed(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Hangs => "hangs",
            Self::Crowded => "slow x20",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Hardly anything is answered well although there is no trouble: this share.
    NeverWell(f64),
    /// The breaker does not see it.
    Unseen,
    /// It takes so many seconds more until answers are good; `None` if they are not while anybody looks.
    Lasting(Option<usize>),
    /// Load that retries made outlives its cause.
    Storm,
}

/// Guards with one thing changed.
struct Remedy {
    words: String,
    guards: Guards,
}

/// Everything is judged by what it was before the trouble: expected failures and a rate that is kept are no faults.
fn fault(trial: Trial, guards: &Guards, report: &Report) -> Option<Fault> {
    let begins = BEGINS.as_secs() as usize;
    let ends = begins + LASTS.as_secs() as usize;
    let (before, during, after) = (&report.rows[SETTLES_S..begins], &report.rows[begins..ends], &report.rows[ends..]);
    let well = share(before, |row| row.good);
    if well < 0.5 {
        return Some(Fault::NeverWell(well));
    }
    let again = |rows: &[Row]| share(rows, |row| row.good) >= GOOD_AGAIN * well;
    let recovers = after.windows(GOOD_FOR_S).position(again);
    let over = recovers.filter(|seconds| *seconds <= OVER_MAX.as_secs() as usize);
    let unseen = during.iter().all(|row| row.not_closed == 0);
    match trial {
        Trial::Crowded => {
            // Long after the trouble more reaches the upstream than it did before.
            let late = share(&after[OVER_MAX.as_secs() as usize..], |row| row.sent);
            (over.is_none() && late > 1.2 * share(before, |row| row.sent)).then_some(Fault::Storm)
        }
        Trial::Down | Trial::Hangs if unseen && guards.breaker.is_some() => Some(Fault::Unseen),
        Trial::Down | Trial::Hangs => over.is_none().then_some(Fault::Lasting(recovers)),
    }
}

/// So many for each request that came.
fn share(rows: &[Row], of: fn(&Row) -> u32) -> f64 {
    let sum = |of: fn(&Row) -> u32| rows.iter().map(|row| f64::from(of(row))).sum::<f64>();
    sum(of) / sum(|row| row.offered).max(1.0)
}

impl Fault {
    const fn key(self) -> &'static str {
        match self {
            Self::NeverWell(_) => "expects",
            Self::Unseen | Self::Lasting(_) => "breaker",
            Self::Storm => "retry",
        }
    }

    fn is_gone(self, trial: Trial, report: &Report, before: &Guards) -> bool {
        let kind = |fault: &Self| std::mem::discriminant(fault);
        fault(trial, before, report).is_none_or(|fault| kind(&fault) != kind(&self))
    }

    fn message(self, trial: Trial) -> String {
        let what = trial.words();
        match self {
            Self::NeverWell(share) => {
                format!("only {:.0} % of requests are answered well before there is any trouble", share * 100.0)
            }
            Self::Unseen => format!("{what} does not open the breaker in that time"),
            Self::Lasting(Some(seconds)) => format!("answers are good again only {seconds} s after {what}"),
            Self::Lasting(None) => format!("answers are not good again within {} s after {what}", WATCHED.as_secs()),
            Self::Storm => {
                format!("{what} does not get well when its slowness is over: the retries are load enough")
            }
        }
    }

    /// Smallest first.
    fn remedies(self, guards: &Guards) -> Vec<Remedy> {
        let with = |words: String, change: &dyn Fn(&mut Guards)| {
            let mut guards = guards.clone();
            change(&mut guards);
            Remedy { words, guards }
        };
        let with_breaker = |words: String, change: &dyn Fn(&mut BreakerConfig)| {
            with(words, &|guards: &mut Guards| guards.breaker.iter_mut().for_each(change))
        };
        let (second, ten) = (Duration::from_secs(1), Duration::from_secs(10));
        match self {
            Self::NeverWell(_) => Vec::new(),
            Self::Unseen => {
                let over = second.min(guards.try_timeout / 2);
                let rule = SlowRule { rate_max: Ratio::new(0.6).unwrap_or(Ratio::ONE), over, in_flight: true };
                vec![
                    with_breaker("`consecutive_failures: 5`".into(), &|breaker| {
                        breaker.consecutive_failures_max = std::num::NonZeroU32::new(5);
                    }),
                    with_breaker(format!("`slow: 60% over {}`", format_duration(over)), &|breaker| {
                        breaker.slow = Some(rule);
                    }),
                ]
            }
            Self::Lasting(_) => vec![
                with_breaker("`open_for_max: 10s`".into(), &|breaker| {
                    breaker.wait.first = breaker.wait.first.min(ten);
                    breaker.wait.max = Some(ten);
                }),
                with_breaker("`open_for: 5s` and `open_for_max: 5s`".into(), &|breaker| {
                    (breaker.wait.first, breaker.wait.max) = (5 * second, Some(5 * second));
                }),
            ],
            Self::Storm => vec![
                with("`budget: 20%`".into(), &|guards| guards.budget = BudgetConfig::default()),
                with("`retry: off`".into(), &|guards| guards.retry.attempts_max = 1),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::breaker::{OpenWait, WindowConfig};

    const S: Duration = Duration::from_secs(1);

    fn guards() -> Guards {
        Guards { timeout: 3 * S, try_timeout: S, ..Guards::default() }
    }

    fn at(per_second: f64) -> Expects {
        Expects { per_second: Some(per_second), ..Expects::default() }
    }

    fn told(guards: &Guards, expects: &Expects) -> Vec<(&'static str, String)> {
        rehearse(guards, expects, true, "r")
            .into_iter()
            .map(|line| (line.key, format!("{}; {}", line.message, line.fix)))
            .collect()
    }

    #[test]
    fn what_holds_is_not_blamed() {
        for rate in [10.0, 50.0, 200.0, 5_000.0] {
            assert_eq!(told(&guards(), &at(rate)), [], "{rate}");
            // By default a call is slow after ten seconds, and eight in ten must be.
            let (by_default, seen) = (told(&Guards::default(), &at(rate)), rate > 10.0);
            assert_eq!(by_default.is_empty(), seen, "{rate}: {by_default:?}");
        }
        assert_eq!(told(&guards(), &Expects::default()), [], "no rate, no drill");
        assert_eq!(told(&guards(), &at(5.0)), [], "150 requests show little");
    }

    /// What the policy expects, or refuses by itself, is there before any trouble and after it.
    #[test]
    fn what_was_so_before_is_not_blamed_on_the_trouble() {
        let off = Guards { retry: crate::guard::retry::RetryConfig::off(), ..guards() };
        let kept = crate::guard::rate::RateConfig { cells: 40, per: S, burst: 40 };
        assert_eq!(told(&Guards { rate: Some(kept), ..off.clone() }, &at(50.0)), [], "a rate that is kept");
        for failing in [0.03, 0.06, 0.2] {
            for rate in [10.0, 100.0] {
                let expects = Expects { failure_rate: Ratio::new(failing).unwrap(), ..at(rate) };
                let told = told(&off, &expects);
                assert_eq!(told, [], "{failing} at {rate}");
            }
        }
        let one = crate::guard::bulkhead::BulkheadConfig { calls_max: 1, waiting_max: 0, ..off.bulkhead };
        let [(key, words)] = told(&Guards { bulkhead: one, ..off }, &at(200.0)).try_into().unwrap();
        assert!(
            key == "expects" && words.contains("% of requests are answered well before there is any trouble"),
            "{words}"
        );
        assert!(words.contains("`seawall simulate --route r --rate 200/s --for 150s --latency 20ms"), "{words}");
    }

    #[test]
    fn a_breaker_that_sees_no_hanging_calls_is_told() {
        // Half a minute is over before a call that hangs has failed.
        let breaker = BreakerConfig { slow: None, ..BreakerConfig::default() };
        let patient = Guards { timeout: 120 * S, try_timeout: 60 * S, breaker: Some(breaker), ..guards() };
        let words = "played at 50/s, an upstream that hangs for 30s does not open the breaker in that time; write `slow: \
                     60% over 1s`";
        assert_eq!(told(&patient, &at(50.0)), [("breaker", words.to_owned())]);
        // A window that holds ten minutes, and must be all but full of failures.
        let (window, failure_rate_max) = (WindowConfig::Calls(30_000), Ratio::new(0.9).unwrap());
        let long = BreakerConfig { window, failure_rate_max, slow: None, ..BreakerConfig::default() };
        let [(key, words)] = told(&Guards { breaker: Some(long), ..guards() }, &at(50.0)).try_into().unwrap();
        assert!(
            key == "breaker"
                && words.ends_with("does not open the breaker in that time; write `consecutive_failures: 5`"),
            "{words}"
        );
    }

    #[test]
    fn a_recovery_that_is_an_outage_of_its_own_is_told() {
        let wait = OpenWait { first: 80 * S, max: None, ..OpenWait::default() };
        let breaker = BreakerConfig { wait, ..BreakerConfig::default() };
        let [(key, words)] = told(&Guards { breaker: Some(breaker), ..guards() }, &at(50.0)).try_into().unwrap();
        assert_eq!(key, "breaker");
        assert!(words.starts_with("played at 50/s, answers are good again only 5"), "{words}");
        assert!(words.ends_with("s after an upstream that is down for 30s; write `open_for_max: 10s`"), "{words}");
    }

    #[test]
    fn retries_that_keep_an_upstream_down_are_told() {
        let unbounded =
            BudgetConfig { ratio: Ratio::ONE, floor_per_s: 1e6, in_flight_ratio: Ratio::ONE, in_flight_min: u32::MAX };
        let mut stormy = Guards { breaker: None, budget: unbounded, ..guards() };
        stormy.retry.attempts_max = 5;
        let expects = Expects { caller_attempts: 3, caller_timeout: Some(S), ..at(100.0) };
        let words = told(&stormy, &expects);
        assert!(
            words.iter().any(|(key, words)| *key == "retry" && words.contains("the retries are load enough")),
            "{words:?}"
        );
        let alone = Expects { caller_attempts: 1, ..expects };
        let of_posts: Vec<_> = rehearse(&stormy, &alone, false, "").into_iter().map(|line| line.key).collect();
        assert!(!of_posts.contains(&"retry"), "who makes no retries makes no storm");
    }
}
