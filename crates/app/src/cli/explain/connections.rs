//! What a connection of a TCP listener meets: the guards around connecting, and what holds once it stands.

use std::fmt::Write as _;
use std::time::Duration;

use seawall_core::policy::{Policy, Route};
use seawall_core::units::format_duration;
use serde_json::{Value, json};

use super::{Worst, bulkhead_words, setting};

/// One question on its way.
struct Stage {
    name: &'static str,
    question: &'static str,
    every_try: bool,
    setting: Option<String>,
}

fn stages(policy: &Policy, route: &Route) -> Vec<Stage> {
    let (guards, upstream, time) = (&route.guards, policy.upstream(route.upstream), format_duration);
    let known = |name| setting(name, policy, route);
    let room = format!("{} connections of clients, those of every listener", policy.limits.connections_max);
    let all = format!("{} from its first moment until it stands, waits and tries", time(guards.timeout));
    let places = bulkhead_words(guards).replace("calls", "connections");
    let rate = guards
        .rate
        .map(|rate| format!("{} connections in {}, {} of them at once", rate.cells, time(rate.per), rate.burst));
    let breaker = known("breaker").map(|words| words.replace("calls", "connections"));
    let most = upstream.connections_max;
    let endpoints = known("health").map(|words| format!("{words}; {most} connections to each at most"));
    let connect = format!("{} for each try, never beyond what is left of `timeout`", time(try_time(policy, route)));
    let idle = guards.idle_timeout.map(|idle| format!("cut after {} without a byte in either direction", time(idle)));
    let rows = [
        ("limits.connections", "is there room in this node at all?", false, Some(room)),
        ("timeout", "is there time left?", false, Some(all)),
        ("bulkhead", "is there a place among the connections of this route?", false, Some(places)),
        ("breaker", "is the upstream thought well?", true, breaker),
        ("rate", "is the configured rate kept?", true, rate),
        ("health", "which endpoint is healthy, not yet tried, less loaded, and has room?", true, endpoints),
        ("connect", "did the connection come about in time?", true, Some(connect)),
        ("retry", "is another try in time, and afforded?", true, known("retry")),
        ("idle_timeout", "once it stands: has anybody said anything?", false, idle),
    ];
    rows.map(|(name, question, every_try, setting)| Stage { name, question, every_try, setting }).into()
}

/// The time one try has: the shorter of two.
fn try_time(policy: &Policy, route: &Route) -> Duration {
    route.guards.try_timeout.min(policy.upstream(route.upstream).connect_timeout)
}

fn worst(policy: &Policy, route: &Route) -> Worst {
    let mut route = route.clone();
    route.guards.try_timeout = try_time(policy, &route);
    Worst::of(&route)
}

pub(super) fn as_json(policy: &Policy, route: &Route) -> Value {
    let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
    let (worst, upstream) = (worst(policy, route), policy.upstream(route.upstream));
    let stage = |stage: Stage| {
        json!({
            "name": stage.name,
            "question": stage.question,
            "every_try": stage.every_try,
            "on": stage.setting.is_some(),
            "setting": stage.setting,
        })
    };
    json!({
        "route": route.name,
        "protocol": route.protocol,
        "takes": "every connection of its listener",
        "upstream": upstream.name,
        "stages": stages(policy, route).into_iter().map(stage).collect::<Vec<_>>(),
        "fallbacks": [],
        "worst_case": {
            "tries": worst.tries,
            "place_wait_ms": ms(worst.place_wait),
            "waits_ms": worst.waits.iter().map(|wait| ms(*wait)).collect::<Vec<_>>(),
            "takes_ms": ms(worst.takes),
            "tries_begun": worst.tries_begun,
        },
    })
}

pub(super) fn as_text(policy: &Policy, route: &Route) -> String {
    let upstream = policy.upstream(route.upstream);
    let mut text = format!("{}: every connection of its listener (TCP), to {}\n", route.name, upstream.name);
    let mut every_try = None;
    for (index, stage) in stages(policy, route).into_iter().enumerate() {
        if every_try != Some(stage.every_try) {
            text += match (stage.every_try, every_try) {
                (true, _) => "\nFor each try\n",
                (false, None) => "\nOnce for a connection\n",
                (false, Some(_)) => "\nOnce it stands\n",
            };
            every_try = Some(stage.every_try);
        }
        let setting = stage.setting.unwrap_or_else(|| "off".into());
        let _ = writeln!(text, "{:>3}  {:18}  {}\n     {:18}  {setting}", index + 1, stage.name, stage.question, "");
    }
    text +=
        "\nWhen that fails\n     the client's connection is reset, counted by rule or kind, and told in the journal\n";
    let (worst, time) = (worst(policy, route), format_duration);
    let tries = if worst.tries == 1 { "1 try".into() } else { format!("{} tries", worst.tries) };
    let _ = writeln!(
        text,
        "\nAt worst\n     tries   {tries} of {}, {} of them begin\n     time    {} until the client is reset",
        time(try_time(policy, route)),
        worst.tries_begun,
        time(worst.takes)
    );
    text
}

#[cfg(test)]
mod tests {
    use seawall_core::id::RouteId;

    use super::*;
    use crate::config;

    fn policy(more: &str) -> Policy {
        let text = format!(
            "listeners: [{{ address: \"127.0.0.1:6379\", protocol: tcp, upstream: cache, policy: p }}]\n\
             upstreams: {{ cache: {{ endpoints: [\"a:1\", \"b:1\"], health: {{ every: 5s }}, connect_timeout: 500ms }} }}\n\
             policies: {{ p: {{ retry: {{ attempts: 2, backoff: 100ms }}, {more} }} }}\n"
        );
        config::check("f", text.as_bytes(), &|_| None)
            .into_result()
            .unwrap_or_else(|report| panic!("{report}"))
            .0
            .policy
    }

    #[test]
    fn a_connection_is_explained_as_one() {
        let policy = policy("rate: 10/s, idle_timeout: 1h, bulkhead: { calls: 5, waiting: 0 }");
        let text = as_text(&policy, policy.route(RouteId(0)));
        for words in [
            "cache: every connection of its listener (TCP), to cache\n",
            "5 connections at once, nobody waits",
            "of the last 100 connections, judged on",
            "10 connections in 1s, 1 of them at once",
            "2 endpoints; a connection every 5s, out after 3 failures, back after 2 successes; 256 connections to each",
            "500ms for each try",
            "cut after 1h without a byte",
            "tries   2 tries of 500ms, 2 of them begin\n     time    1.1s until the client is reset\n",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        for nonsense in ["hedge", "fallback", "GET", "answered", "calls"] {
            assert!(!text.contains(nonsense), "{nonsense}\n{text}");
        }
    }

    #[test]
    fn json_says_the_same() {
        let policy = policy("breaker: off");
        let json = as_json(&policy, policy.route(RouteId(0)));
        assert_eq!((&json["protocol"], &json["worst_case"]["takes_ms"]), (&json!("tcp"), &json!(2_100.0)));
        let on =
            |name: &str| json["stages"].as_array().unwrap().iter().find(|it| it["name"] == name).unwrap()["on"].clone();
        assert_eq!(["breaker", "rate", "idle_timeout", "retry"].map(on), [false, false, false, true]);
    }
}
