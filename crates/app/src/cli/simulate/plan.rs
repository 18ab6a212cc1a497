//! From the command line and a route to an experiment, and back to words for it.

use std::time::Duration;

use seawall_core::guard::breaker::WindowConfig;
use seawall_core::policy::{Fallback, Guards, Route};
use seawall_core::units::{format_duration, parse_duration, parse_ratio};
use seawall_core::whatif::{Ailment, Dependency, Latency, Layer, RateLimit, Scenario, StandIn, Traffic, Trouble};
use serde_json::{Value, json};

use super::{Pattern, SimulateArgs, course};

/// More requests than that are an evening's wait and gigabytes of latencies.
const REQUESTS_MAX: f64 = 100_000_000.0;

/// Whose guards are tried.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The file and the route, in words.
    pub(super) label: String,
    /// The file, if there is one.
    pub(super) config: Option<String>,
    /// The route, if there is one.
    pub(super) route: Option<String>,
    pub(super) guards: Guards,
    pub(super) idempotent: bool,
    /// What stands in, and its word.
    pub(super) stand_in: (StandIn, &'static str),
}

/// What a caller of a route gets who gets no answer: of its fallbacks the first that does for most of its requests.
fn stand_in(route: &Route) -> (StandIn, &'static str) {
    let reads = |method: &String| matches!(method.as_str(), "GET" | "HEAD");
    let does = |fallback: &&Fallback| match fallback {
        Fallback::Spool => !route.matcher.methods.iter().all(reads) || route.matcher.methods.is_empty(),
        Fallback::Stale { .. } => !route.spools() || route.matcher.methods.iter().any(reads),
        Fallback::Static { .. } | Fallback::Upstream(_) => true,
    };
    let stands = |fallback: &Fallback| match fallback {
        Fallback::Spool => (StandIn::Promise { parallel: route.delivery.parallel }, fallback.name()),
        _ => (StandIn::Answer, fallback.name()),
    };
    route.fallbacks.iter().find(does).map_or((StandIn::Nothing, ""), stands)
}

impl Subject {
    /// Guards that nobody configured.
    pub(super) fn default_guards() -> Self {
        Self {
            label: "the default guards".into(),
            config: None,
            route: None,
            guards: Guards::default(),
            idempotent: true,
            stand_in: (StandIn::Nothing, ""),
        }
    }

    pub(super) fn of(file: &str, route: &Route) -> Self {
        Self {
            label: format!("{file}, route {}", route.name),
            config: Some(file.into()),
            route: Some(route.name.clone()),
            guards: route.guards.clone(),
            idempotent: route.may_repeat(),
            stand_in: stand_in(route),
        }
    }
}

/// The experiment.
///
/// # Errors
/// What is out of bounds and not for the core to say.
pub(super) fn scenario(args: &SimulateArgs, traffic: Traffic, subject: &Subject) -> Result<Scenario, String> {
    let lasts = lasts(args, &traffic);
    let peak = match &traffic {
        Traffic::Constant { per_second } | Traffic::Poisson { per_second } => *per_second,
        Traffic::Diurnal { high, .. } => *high,
        Traffic::Recorded(_) | Traffic::Pieces { .. } => 0.0,
    };
    let requests = traffic.recorded_requests(lasts).unwrap_or(peak * lasts.as_secs_f64());
    if requests > REQUESTS_MAX {
        return Err(format!(
            "{requests:.0} requests are too many: {REQUESTS_MAX:.0} at most; lower `--rate` or `--for`"
        ));
    }
    let gateway = Layer {
        instances: args.nodes,
        idempotent: subject.idempotent,
        stand_in: subject.stand_in.0,
        ..Layer::gateway(subject.guards.clone())
    };
    let callers =
        args.callers.map(|callers| Layer::naive("callers", callers, args.caller_timeout, args.caller_attempts));
    Ok(Scenario {
        seed: args.seed,
        lasts,
        traffic,
        layers: callers.into_iter().chain([gateway]).collect(),
        dependency: dependency(args),
    })
}

/// What was asked for, or long enough for the whole record and what it sets off.
fn lasts(args: &SimulateArgs, traffic: &Traffic) -> Duration {
    let recorded = match traffic {
        Traffic::Recorded(recorded) => recorded.last().map(|last| last.at + last.latency),
        Traffic::Pieces { until, .. } => Some(until.saturating_sub(Duration::from_nanos(1))),
        _ => None,
    };
    let whole = |span: Duration| Duration::from_secs(span.as_secs() + 1);
    args.lasts.or(recorded.map(whole)).unwrap_or(Duration::from_secs(600))
}

/// Arrivals as the command line describes them.
pub(super) fn described(args: &SimulateArgs) -> Result<Traffic, String> {
    let per_second = args.rate;
    match (args.pattern, args.peak) {
        (Pattern::Constant, None) => Ok(Traffic::Constant { per_second }),
        (Pattern::Poisson, None) => Ok(Traffic::Poisson { per_second }),
        (Pattern::Diurnal, Some(high)) => {
            Ok(Traffic::Diurnal { low: per_second, high, period: args.lasts.unwrap_or(Duration::from_secs(600)) })
        }
        (Pattern::Diurnal, None) => Err("`--pattern diurnal` rises from `--rate` to `--peak`; say how high".into()),
        (_, Some(_)) => Err("`--peak` belongs to `--pattern diurnal`".into()),
    }
}

fn dependency(args: &SimulateArgs) -> Dependency {
    let median = args.latency;
    let p99 = args.latency_p99.unwrap_or(median.saturating_mul(4));
    let default = Dependency::default();
    Dependency {
        latency: Latency::LogNormal { median, p99 },
        workers: args.capacity,
        queue_max: args.queue.unwrap_or(default.queue_max),
        drag: args.drag.unwrap_or(default.drag),
        failure_rate: args.failure_rate.unwrap_or(default.failure_rate),
        rate_limit: args.rate_limit.map(|rate| RateLimit { rate, says_when: args.rate_limit_told }),
        troubles: args.fault.clone(),
        course: Vec::new(),
    }
}

/// Reads `60s..90s down`, `1m..2m hangs`, `10s..20s slow x20`, `10s..20s fails 70%`.
pub(super) fn parse_fault(text: &str) -> Result<Trouble, String> {
    let example =
        || format!("`{text}` is no fault, such as `60s..90s down`, `.. hangs`, `.. slow x20` or `.. fails 70%`");
    let (span, what) = text.trim().split_once(char::is_whitespace).ok_or_else(example)?;
    let (from, until) = span.split_once("..").ok_or_else(example)?;
    let time = |text: &str| parse_duration(text).map_err(|error| error.to_string());
    let (from, until) = (time(from)?, time(until)?);
    if until <= from {
        return Err(format!(
            "`{text}` ends before it begins; write `{}..{}`",
            format_duration(until),
            format_duration(from)
        ));
    }
    let ailment = match what.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["down"] => Ailment::Down,
        ["hangs"] => Ailment::Hangs,
        ["slow", factor] => match factor.strip_prefix('x').map(str::parse::<f64>) {
            Some(Ok(factor)) if (1.0..=10_000.0).contains(&factor) => Ailment::Slow(factor),
            Some(Ok(_)) => return Err(format!("`{factor}` is out of range: x1 to x10000")),
            _ => return Err(example()),
        },
        ["fails", share] => Ailment::Fails(parse_ratio(share).map_err(|error| error.to_string())?),
        _ => return Err(example()),
    };
    Ok(Trouble { from, until, ailment })
}

/// What ails the dependency, as it was typed.
pub(super) fn ailment_words(ailment: Ailment) -> String {
    match ailment {
        Ailment::Down => "down".into(),
        Ailment::Hangs => "hangs".into(),
        Ailment::Slow(factor) => format!("slow x{factor}"),
        Ailment::Fails(share) => format!("fails {share}"),
    }
}

/// The trouble, as it could be typed. In seconds, as the table counts them.
pub(super) fn trouble_words(trouble: &Trouble) -> String {
    let (from, until) = (trouble.from.as_secs_f64(), trouble.until.as_secs_f64());
    format!("{from}s..{until}s {}", ailment_words(trouble.ailment))
}

/// What a breaker can see of a total outage, by arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sight {
    /// Below about so many requests a second, over all nodes, it does not open, but by chance; zero where there is no
    /// such rate.
    pub(super) blind_below_per_s: f64,
    /// So many calls in a row must fail on a node, its window full of good ones before.
    pub(super) failures: f64,
}

impl Sight {
    /// Of a breaker on each of some nodes that get `per_second` requests between them; `None` where it is off.
    pub(super) fn of(guards: &Guards, nodes: u32, per_second: f64) -> Option<Self> {
        let (breaker, nodes) = (guards.breaker.as_ref()?, f64::from(nodes));
        let share = breaker.failure_rate_max.get();
        let (blind, failures) = match breaker.window {
            // A full window of N: the oldest good ones go as the failed ones come.
            WindowConfig::Calls(calls) => (0.0, (share * f64::from(calls)).ceil()),
            // The window never holds more than a node's rate times its span.
            WindowConfig::Time { span, .. } => {
                let (span, calls_min) = (span.as_secs_f64(), f64::from(breaker.calls_min));
                let failures = (share * span * per_second / nodes).ceil().max(1.0);
                (requests_for(guards, calls_min / span) * nodes, failures)
            }
        };
        Some(match breaker.consecutive_failures_max {
            Some(most) => Self { blind_below_per_s: 0.0, failures: failures.min(most.get().into()) },
            None => Self { blind_below_per_s: blind, failures },
        })
    }
}

/// Requests a second on one node that come to so many calls a second when every call fails: each is tried
/// `attempts_max` times, as far as the budget affords it.
fn requests_for(guards: &Guards, calls_per_s: f64) -> f64 {
    let tries = f64::from(guards.retry.attempts_max);
    let (ratio, floor) = (guards.budget.ratio.get(), guards.budget.floor_per_s);
    (calls_per_s / tries).max((calls_per_s - floor) / (1.0 + ratio))
}

/// Calls a second on average, as far as they can be told beforehand.
pub(super) fn mean_rate(scenario: &Scenario) -> f64 {
    match &scenario.traffic {
        Traffic::Constant { per_second } | Traffic::Poisson { per_second } => *per_second,
        Traffic::Diurnal { low, high, .. } => (low + high) / 2.0,
        Traffic::Recorded(recorded) => recorded.len() as f64 / scenario.lasts.as_secs_f64(),
        Traffic::Pieces { .. } => {
            scenario.traffic.recorded_requests(scenario.lasts).unwrap_or_default() / scenario.lasts.as_secs_f64()
        }
    }
}

/// Who asks, in words.
pub(super) fn traffic_words(scenario: &Scenario) -> String {
    match &scenario.traffic {
        Traffic::Constant { per_second } => format!("{per_second} requests/s, evenly"),
        Traffic::Poisson { per_second } => format!("{per_second} requests/s at random"),
        Traffic::Diurnal { low, high, .. } => format!("{low} to {high} requests/s and back"),
        Traffic::Recorded(recorded) => format!("{} recorded requests", recorded.len()),
        Traffic::Pieces { pieces, .. } => course::rate_words(pieces),
    }
}

/// The experiment as JSON.
pub(super) fn as_json(subject: &Subject, scenario: &Scenario) -> Value {
    let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
    let traffic = match &scenario.traffic {
        Traffic::Constant { per_second } => json!({ "pattern": "constant", "per_second": per_second }),
        Traffic::Poisson { per_second } => json!({ "pattern": "poisson", "per_second": per_second }),
        Traffic::Diurnal { low, high, period } => {
            json!({ "pattern": "diurnal", "low_per_second": low, "high_per_second": high, "period_s": period.as_secs_f64() })
        }
        Traffic::Recorded(recorded) => json!({ "pattern": "recorded", "requests": recorded.len() }),
        Traffic::Pieces { pieces, until } => course::rates_json(pieces, *until),
    };
    let layer = |layer: &Layer| {
        json!({
            "name": layer.name,
            "instances": layer.instances,
            "idempotent": layer.idempotent,
            "timeout_ms": ms(layer.guards.timeout),
            "try_timeout_ms": ms(layer.guards.try_timeout),
            "attempts": layer.guards.retry.attempts_max,
        })
    };
    let trouble = |trouble: &Trouble| {
        let (from, until) = (trouble.from.as_secs_f64(), trouble.until.as_secs_f64());
        json!({ "from_s": from, "until_s": until, "what": ailment_words(trouble.ailment) })
    };
    let of = &scenario.dependency;
    let dependency = match (&scenario.traffic, of.latency) {
        // The record says what it did.
        (Traffic::Recorded(_), _) => Value::Null,
        (_, Latency::LogNormal { median, p99 }) => json!({
            "latency_p50_ms": ms(median),
            "latency_p99_ms": ms(p99),
            "capacity": of.workers,
            "queue": of.workers.map(|_| of.queue_max),
            "drag": of.drag,
            "failure_rate": of.failure_rate,
            "rate_limit_per_s": of.rate_limit.map(|limit| f64::from(limit.rate.cells) / limit.rate.per.as_secs_f64()),
            "course": course::stretches_json(&of.course),
            "faults": of.troubles.iter().map(trouble).collect::<Vec<_>>(),
        }),
        _ => Value::Null,
    };
    let nodes = scenario.layers.last().map_or(1, |layer| layer.instances);
    let sight = Sight::of(&subject.guards, nodes, mean_rate(scenario));
    json!({
        "config": subject.config,
        "route": subject.route,
        "lasts_s": scenario.lasts.as_secs_f64(),
        "traffic": traffic,
        "layers": scenario.layers.iter().map(layer).collect::<Vec<_>>(),
        "dependency": dependency,
        "breaker_blind_below_per_s": sight.map(|sight| sight.blind_below_per_s),
        "stands_in": Some(subject.stand_in.1).filter(|word| !word.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use seawall_core::guard::breaker::BreakerConfig;
    use seawall_core::guard::retry::RetryConfig;

    use super::*;

    #[test]
    fn a_fault_is_read_as_it_is_printed() {
        for text in ["60s..90s down", "0s..120s hangs", "0.5s..1.5s slow x20", "1s..2s fails 70%", "1s..2s slow x1.5"] {
            assert_eq!(trouble_words(&parse_fault(text).unwrap()), text);
        }
        let many = parse_fault(" 1s..2s   slow   x2 ").unwrap();
        assert_eq!(many.ailment, Ailment::Slow(2.0));
    }

    #[test]
    fn what_is_no_fault_is_told_with_what_would_be() {
        for (text, words) in [
            ("", "is no fault, such as `60s..90s down`"),
            ("60s..90s", "is no fault"),
            ("60s down", "is no fault"),
            ("60..90 down", "needs a unit"),
            ("90s..60s down", "ends before it begins; write `1m..90s`"),
            ("1s..1s down", "ends before it begins"),
            ("1s..2s dead", "is no fault"),
            ("1s..2s slow 20", "is no fault"),
            ("1s..2s slow x0.5", "`x0.5` is out of range: x1 to x10000"),
            ("1s..2s fails 0.7", "needs a unit"),
            ("1s..2s fails 170%", "out of range"),
            ("1s..2s down now", "is no fault"),
        ] {
            let error = parse_fault(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_a_breaker_sees_is_arithmetic() {
        let guards = |window, calls_min| {
            let breaker = BreakerConfig { window, calls_min, ..BreakerConfig::default() };
            Guards { breaker: Some(breaker), retry: RetryConfig::off(), ..Guards::default() }
        };
        let sight = |guards: &Guards, nodes, per_second| {
            let sight = Sight::of(guards, nodes, per_second).unwrap();
            (sight.blind_below_per_s, sight.failures)
        };
        assert_eq!(sight(&guards(WindowConfig::Calls(100), 20), 3, 10.0), (0.0, 50.0), "half of a hundred");
        let of_time = guards(WindowConfig::time(Duration::from_secs(10)), 20);
        assert_eq!(sight(&of_time, 1, 100.0), (2.0, 500.0), "20 in 10 s; half of 10 s of 100/s");
        assert_eq!(sight(&of_time, 3, 100.0).0, 6.0, "each node sees a third");
        // Retries are calls too. Three tries, within a fifth of the requests and one a second: 10 calls/s are 7.5
        // requests and 2.5 retries. Where the floor affords every retry, a third of the calls are requests.
        let retry = RetryConfig::default();
        let retried = Guards { retry: retry.clone(), ..guards(WindowConfig::time(Duration::from_secs(10)), 100) };
        assert!((sight(&retried, 1, 1.0).0 - 7.5).abs() < 1e-9);
        let retried = Guards { retry, ..guards(WindowConfig::time(Duration::from_secs(10)), 3) };
        assert!((sight(&retried, 1, 1.0).0 - 0.1).abs() < 1e-9);
        let mut in_a_row = of_time;
        in_a_row.breaker.as_mut().unwrap().consecutive_failures_max = NonZeroU32::new(5);
        assert_eq!(sight(&in_a_row, 1, 0.1), (0.0, 1.0));
        assert_eq!(Sight::of(&Guards { breaker: None, ..Guards::default() }, 1, 1.0), None);
    }
}
