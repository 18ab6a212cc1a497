//! `seawall explain ROUTE`: what a request of a route meets, in which order, with which numbers, and the worst that can
//! come of it.

mod connections;
mod worst;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use seawall_core::guard::breaker::{BreakerConfig, WindowConfig};
use seawall_core::guard::bulkhead::Order;
use seawall_core::guard::health::Ask;
use seawall_core::guard::pipeline::STAGES;
use seawall_core::guard::retry::{Jitter, RetryOn};
use seawall_core::policy::{Fallback, Guards, Policy, Protocol, Route, Upstream};
use seawall_core::units::format_duration;
use serde_json::{Value, json};

pub(super) use worst::Worst;

use super::{CONFIG_FILE, Ended, print, print_json, which};

pub(super) const EXAMPLES: &str = "\
Examples:
  seawall explain events
  seawall explain quotes --config prod.yaml --json

Exit status: 0 explained; 1 the configuration cannot be used; 2 there is no such route.";

#[derive(Args, Clone, Debug)]
pub(super) struct ExplainArgs {
    /// The route's name
    route: String,
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ExplainArgs) -> anyhow::Result<Ended> {
    let policy = which::load(&args.config)?;
    let route = which::find(&policy, &args.route, &args.config)?;
    if args.json { print_json(&as_json(&policy, route)) } else { print(&as_text(&policy, route)) }
}

fn as_json(policy: &Policy, route: &Route) -> Value {
    if route.protocol == Protocol::Tcp {
        return connections::as_json(policy, route);
    }
    let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
    let worst = Worst::of(route);
    let stages: Vec<Value> = STAGES
        .iter()
        .map(|stage| {
            let setting = setting(stage.name, policy, route);
            json!({
                "name": stage.name,
                "rule": stage.rule,
                "question": stage.question,
                "every_try": stage.every_try,
                "on": setting.is_some(),
                "setting": setting,
            })
        })
        .collect();
    let fallbacks: Vec<Value> = route
        .fallbacks
        .iter()
        .map(|fallback| json!({ "kind": fallback.name(), "does": fallback_words(fallback, policy) }))
        .collect();
    json!({
        "route": route.name,
        "protocol": route.protocol,
        "takes": which::matched(&route.matcher),
        "upstream": policy.upstream(route.upstream).name,
        "upgrade": route.upgrades,
        "stages": stages,
        "fallbacks": fallbacks,
        "worst_case": {
            "tries": worst.tries,
            "hedges": worst.hedges,
            "resends": worst.resends,
            "calls": worst.calls(),
            "calls_to_fallback_upstream": worst.to_another,
            "place_wait_ms": ms(worst.place_wait),
            "waits_ms": worst.waits.iter().map(|wait| ms(*wait)).collect::<Vec<_>>(),
            "unbounded_ms": ms(worst.unbounded),
            "takes_ms": ms(worst.takes),
            "tries_begun": worst.tries_begun,
            "last_try_has_ms": ms(worst.last_try_has),
            "may_repeat": route.may_repeat(),
        },
    })
}

fn as_text(policy: &Policy, route: &Route) -> String {
    if route.protocol == Protocol::Tcp {
        return connections::as_text(policy, route);
    }
    let upstream = policy.upstream(route.upstream);
    let mut text = format!("{}: {}, to {}\n", route.name, which::matched(&route.matcher), upstream.name);
    let width = STAGES.iter().map(|stage| stage.name.len()).max().unwrap_or(0);
    let mut every_try = None;
    for (index, stage) in STAGES.iter().enumerate() {
        if every_try != Some(stage.every_try) {
            every_try = Some(stage.every_try);
            text += if stage.every_try { "\nFor each try\n" } else { "\nOnce for a request\n" };
        }
        let setting = setting(stage.name, policy, route).unwrap_or_else(|| "off".into());
        line(&mut text, format_args!("{:>3}  {:width$}  {}", index + 1, stage.name, stage.question));
        line(&mut text, format_args!("     {:width$}  {setting}", ""));
    }
    text += "\nWhen that fails\n";
    for (index, fallback) in route.fallbacks.iter().enumerate() {
        line(
            &mut text,
            format_args!("{:>3}  {:width$}  {}", index + 1, fallback.name(), fallback_words(fallback, policy)),
        );
    }
    let last_word = route.fallbacks.iter().any(|fallback| matches!(fallback, Fallback::Static { .. }));
    if !last_word {
        let otherwise = if route.fallbacks.is_empty() { "" } else { "otherwise " };
        line(&mut text, format_args!("     {otherwise}the failure, or the refusal with its rule and numbers"));
    }
    if !route.upgrades.is_empty() {
        let idle = route.guards.idle_timeout.map_or_else(
            || "it may be silent for ever".into(),
            |idle| format!("it is cut after {} without a byte in either direction", format_duration(idle)),
        );
        let upgrades = route.upgrades.join(" or ");
        text += "\nOnce upgraded\n";
        line(
            &mut text,
            format_args!("     {upgrades}: bytes are carried as they come, in its place of the bulkhead; {idle}"),
        );
    }
    text += "\nAt worst\n";
    for sentence in worst_words(route) {
        line(&mut text, format_args!("     {sentence}"));
    }
    text
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    writeln!(text, "{words}").expect("a String takes everything");
}

/// A keeper's numbers in words; `None` where it is off.
fn setting(stage: &str, policy: &Policy, route: &Route) -> Option<String> {
    let guards = &route.guards;
    let time = format_duration;
    Some(match stage {
        "limits.pending" => {
            format!("{} requests in work at the same time, those of every route", policy.limits.pending_max)
        }
        "timeout" => format!("{} in all, waits and tries; a caller's shorter patience wins", time(guards.timeout)),
        "bulkhead" => bulkhead_words(guards),
        "breaker" => breaker_words(guards.breaker.as_ref()?),
        "concurrency" => {
            let limit = guards.concurrency?;
            format!(
                "found out, from {} to {} calls at once; begins at {}",
                limit.limit_min, limit.limit_max, limit.limit_initial
            )
        }
        "throttle" => {
            let throttle = guards.throttle.as_ref()?;
            let most = throttle.multipliers.first().copied().unwrap_or(1.0);
            format!(
                "at most {most} calls for each one it takes on, over {}; spared by chance beyond",
                time(throttle.window)
            )
        }
        "rate" => {
            let rate = guards.rate?;
            format!("{} calls in {}, {} of them at once", rate.cells, time(rate.per), rate.burst)
        }
        "learned_limit" => {
            let learned = guards.learned_limit?;
            format!(
                "{} of what its refusals and headers say; looks for more after {}",
                learned.hold,
                time(learned.probe_after)
            )
        }
        "health" => endpoint_words(policy.upstream(route.upstream)),
        "try_timeout" => format!("{} for each try, never beyond what is left of `timeout`", time(guards.try_timeout)),
        "hedge" => {
            let hedge = guards.hedge?;
            format!(
                "a second copy after the time that {} of calls need, {} at least",
                hedge.quantile,
                time(hedge.delay_min)
            )
        }
        "retry" => retry_words(guards)?,
        _ => return None,
    })
}

fn bulkhead_words(guards: &Guards) -> String {
    let bulkhead = guards.bulkhead;
    let order = match bulkhead.order {
        Order::Fifo => "first come, first served",
        Order::AdaptiveLifo => "newest first while it is crowded",
    };
    match bulkhead.waiting_max {
        0 => format!("{} calls at once, nobody waits", bulkhead.calls_max),
        waiting => {
            let wait = format_duration(bulkhead.wait_max);
            format!("{} calls at once; {waiting} more wait up to {wait}, {order}", bulkhead.calls_max)
        }
    }
}

fn breaker_words(breaker: &BreakerConfig) -> String {
    let time = format_duration;
    let mut rules = vec![format!("{} failed", breaker.failure_rate_max)];
    if let Some(slow) = breaker.slow {
        rules.push(format!("{} took over {}", slow.rate_max, time(slow.over)));
    }
    let window = match breaker.window {
        WindowConfig::Calls(calls) => format!("the last {calls} calls"),
        WindowConfig::Time { span, .. } => format!("the last {}", time(span)),
    };
    let in_a_row =
        breaker.consecutive_failures_max.map(|most| format!(", or {most} failed in a row")).unwrap_or_default();
    let wait = &breaker.wait;
    let longest = wait.max.filter(|max| *max > wait.first && wait.multiplier > 1.0);
    let longer = longest.map(|max| format!(", longer each time up to {}", time(max))).unwrap_or_default();
    let ramp = breaker.ramp.as_ref().map(|ramp| {
        let shares: Vec<String> = ramp.steps.iter().map(ToString::to_string).collect();
        format!(", then {} of the calls for {} each", shares.join(", "), time(ramp.step_for))
    });
    format!(
        "opens when {} of {window}, judged on {} or more{in_a_row}; open for {}{longer}; then {} probes{}",
        rules.join(" or "),
        breaker.calls_min,
        time(wait.first),
        breaker.half_open.calls,
        ramp.unwrap_or_default()
    )
}

fn endpoint_words(upstream: &Upstream) -> String {
    let many = upstream.endpoints.len();
    let ejects = if upstream.outlier.is_some() { ", outliers ejected for a while" } else { "" };
    let endpoints = format!("{many} endpoint{}{ejects}", if many == 1 { "" } else { "s" });
    match &upstream.health {
        None => format!("{endpoints}, never asked how they are"),
        Some(health) => format!(
            "{endpoints}; {} every {}, out after {} failures, back after {} successes",
            match &health.ask {
                Ask::Connection => "a connection".into(),
                Ask::Path(path) => format!("GET {path}"),
                Ask::Grpc(service) if service.is_empty() => "gRPC's health of the whole server".into(),
                Ask::Grpc(service) => format!("gRPC's health of {service}"),
            },
            format_duration(health.every),
            health.unhealthy_after,
            health.healthy_after
        ),
    }
}

fn retry_words(guards: &Guards) -> Option<String> {
    let (retry, budget) = (&guards.retry, &guards.budget);
    if retry.attempts_max < 2 {
        return None;
    }
    let jitter = match retry.jitter {
        Jitter::None => "",
        _ => ", jittered",
    };
    let after = if retry.on == RetryOn::default() { "" } else { "; only after the failures that `on` names" };
    let total =
        retry.total_max.map(|total| format!("; none begins after {}", format_duration(total))).unwrap_or_default();
    Some(format!(
        "{} tries in all, waits up to {}{jitter}; retries within {} of the requests and {}/s{total}{after}",
        retry.attempts_max,
        format_duration(retry.wait_max),
        budget.ratio,
        budget.floor_per_s
    ))
}

fn fallback_words(fallback: &Fallback, policy: &Policy) -> String {
    match fallback {
        Fallback::Spool => "a write is made durable, answered 202, and delivered later".into(),
        Fallback::Stale { for_at_most } => {
            format!("the last good answer to the same GET, up to {} old", format_duration(*for_at_most))
        }
        Fallback::Static { status, content_type, .. } => format!("a fixed answer: {status}, {content_type}"),
        Fallback::Upstream(other) => {
            format!(
                "{}, asked once in what is left of the time, if sending again is safe",
                policy.upstream(*other).name
            )
        }
    }
}

fn worst_words(route: &Route) -> Vec<String> {
    let (worst, guards, time) = (Worst::of(route), &route.guards, format_duration);
    let tries = if worst.tries == 1 { "1 try".into() } else { format!("{} tries", worst.tries) };
    let copies = if worst.hedges > 0 { format!(" and {} copies", worst.hedges) } else { String::new() };
    let mut words = vec![format!(
        "calls   {} of its upstream for one request: {tries}{copies}, each sent once more where a pooled connection \
         turns out closed",
        worst.calls()
    )];
    if worst.to_another > 0 {
        words.push(format!("        and {} of the fallback's upstream, counted the same way", worst.to_another));
    }
    if !route.may_repeat() && worst.tries > 1 {
        words.push("        what may have arrived is not sent again, unless it carries an `Idempotency-Key`".into());
    }
    let place = (!worst.place_wait.is_zero()).then(|| format!("{} for a place", time(worst.place_wait)));
    let mut parts: Vec<String> = place.into_iter().collect();
    parts.push(format!("{tries} of {}", time(guards.try_timeout)));
    parts.extend(worst.waits.iter().map(|wait| format!("{} waiting", time(*wait))));
    let (takes, sum) = (time(worst.takes), parts.join(" + "));
    words.push(match worst.unbounded > guards.timeout {
        true => format!("time    {takes}, where `timeout` cuts it; {sum} would be {}", time(worst.unbounded)),
        false => format!("time    {takes}: {sum}"),
    });
    let has = time(worst.last_try_has);
    words.push(match (worst.tries_begun, worst.tries) {
        (0, _) => "tries   none: the wait for a place alone may take all the time".into(),
        (1, 1) => format!("tries   the only one has {has}"),
        (begun, all) if begun < all => {
            format!("tries   {begun} of {all} begin when each takes all its time; the last of them has {has}")
        }
        (_, all) => format!("tries   all {all} begin even when each takes all its time; the last has {has}"),
    });
    if worst.tries > 1 && !guards.retry.retry_after_max.is_zero() {
        let most = time(guards.retry.retry_after_max);
        words.push(format!("        `Retry-After` up to {most} takes the place of a shorter wait, within `timeout`"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const CONFIG: &str = "\
listeners: [{ address: \"127.0.0.1:8080\", routes: [
  { name: events, match: { path: /events, method: POST }, upstream: queue, policy: writes },
  { name: quotes, match: { path_prefix: /quotes }, upstream: carrier, policy: reads, upgrade: websocket }] }]
upstreams:
  queue: { endpoints: [{ address: \"10.0.0.1:80\" }, { address: \"10.0.0.2:80\" }], health: { path: /up } }
  carrier: { url: \"http://10.0.0.3\" }
  spare: { url: \"http://10.0.0.4\" }
policies:
  writes:
    timeout: 2s
    try_timeout: 500ms
    retry: { attempts: 3, backoff: 50ms..1s }
    breaker: { failure_rate: 50%, slow: 60% over 400ms, window: 10s, calls_min: 20, consecutive_failures: 7, ramp: 1% 25% each 5s }
    bulkhead: { calls: 10, waiting: 0 }
    fallback: spool
  reads:
    retry: off
    breaker: off
    rate: 100/s burst 20
    throttle: on
    learned_limit: on
    concurrency: on
    fallback: [{ stale: 10m }, { upstream: spare }]
";

    fn policy() -> Policy {
        config::check("f", CONFIG.as_bytes(), &|_| None)
            .into_result()
            .unwrap_or_else(|report| panic!("{report}"))
            .0
            .policy
    }

    fn text(name: &str) -> String {
        let policy = policy();
        as_text(&policy, which::find(&policy, name, std::path::Path::new("f")).unwrap())
    }

    #[test]
    fn every_keeper_has_words_for_its_numbers() {
        let mut policy = policy();
        // With everything on, no keeper of the order may be without words: whoever adds one adds them here.
        let breaker = policy.routes[0].guards.breaker.clone();
        policy.routes[1].guards.breaker = breaker;
        policy.routes[1].guards.retry.attempts_max = 2;
        policy.routes[1].guards.hedge = Some(Default::default());
        for stage in STAGES {
            assert!(setting(stage.name, &policy, &policy.routes[1]).is_some(), "{}", stage.name);
        }
        assert_eq!(setting("nothing", &policy, &policy.routes[1]), None);
    }

    #[test]
    fn the_order_the_numbers_and_the_worst_are_told() {
        let text = text("events");
        for words in [
            "events: POST, /events, to queue\n",
            "Once for a request\n  1  limits.pending",
            "10 calls at once, nobody waits",
            "For each try\n  4  breaker",
            "opens when 50% failed or 60% took over 400ms of the last 10s, judged on 20 or more, or 7 failed in a row; open \
             for 10s, longer each time up to 1m; then 5 probes, then 1%, 25% of the calls for 5s each",
            "2 endpoints; GET /up every 2s, out after 3 failures, back after 2 successes",
            "3 tries in all, waits up to 1s, jittered; retries within 20% of the requests and 1/s",
            "  1  spool           a write is made durable",
            "calls   6 of its upstream for one request: 3 tries, each sent once more",
            "time    1.65s: 3 tries of 500ms + 50ms waiting + 100ms waiting\n",
            "tries   all 3 begin even when each takes all its time; the last has 500ms",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        let positions: Vec<Option<usize>> = STAGES
            .iter()
            .map(|stage| text.find(&format!("  {}  ", stage.name)).or(text.find(&format!("  {} ", stage.name))))
            .collect();
        assert!(positions.is_sorted() && positions.iter().all(Option::is_some), "{positions:?}");
    }

    #[test]
    fn what_is_off_says_so_and_fallbacks_stand_in_order() {
        let text = text("quotes");
        for words in [
            "quotes: any method, /quotes and below, to carrier",
            "is the upstream thought well?\n                     off\n",
            "100 calls in 1s, 20 of them at once",
            "  1  stale           the last good answer to the same GET, up to 10m old\n  2  upstream        spare, asked once",
            "otherwise the failure",
            "calls   2 of its upstream for one request: 1 try, each",
            "and 2 of the fallback's upstream",
            "time    30s, where `timeout` cuts it; 1s for a place + 1 try of 30s would be 31s",
            "tries   the only one has 29s",
            "Once upgraded\n     websocket: bytes are carried as they come, in its place of the bulkhead; it may be silent for ever\n",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert!(!text.contains("Retry-After"), "{text}");
    }

    #[test]
    fn json_says_the_same() {
        let policy = policy();
        let json = as_json(&policy, &policy.routes[0]);
        assert_eq!(json["worst_case"]["calls"], 6);
        assert_eq!(json["worst_case"]["waits_ms"], json!([50.0, 100.0]));
        assert_eq!(json["stages"].as_array().unwrap().len(), STAGES.len());
        assert_eq!((&json["stages"][5]["name"], &json["stages"][5]["on"]), (&json!("throttle"), &json!(false)));
        assert_eq!(json["fallbacks"][0]["kind"], "spool");
    }

    #[test]
    fn an_unknown_route_is_told_with_those_there_are() {
        let policy = policy();
        let error = which::find(&policy, "event", std::path::Path::new("f")).unwrap_err().to_string();
        assert_eq!(error, "`f` has no route `event`; did you mean `events`? There are `events`, `quotes`");
        let error = which::find(&policy, "zzzzz", std::path::Path::new("f")).unwrap_err().to_string();
        assert_eq!(error, "`f` has no route `zzzzz`; known here: `events`, `quotes`");
        let error = which::find_or_only(&policy, None, std::path::Path::new("f")).unwrap_err().to_string();
        assert_eq!(error, "`f` has several routes; say which with `--route`: `events`, `quotes`");
    }
}
