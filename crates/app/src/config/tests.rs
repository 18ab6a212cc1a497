//! A text in, a report out: `tests/bad.txt` holds every kind of mistake with the report it must give, word for word.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use seawall_core::balance::BalanceConfig;
use seawall_core::balance::assign::Unit;
use seawall_core::fault::book::Deny;
use seawall_core::guard::breaker::WindowConfig;
use seawall_core::guard::bulkhead::Order;
use seawall_core::guard::health::Ask;
use seawall_core::guard::outlier::OutlierConfig;
use seawall_core::guard::rate::RateConfig;
use seawall_core::guard::retry::{Backoff, Jitter};
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::outcome::Failure;
use seawall_core::policy::{Fallback, Limits, PathMatch, Resolver};
use seawall_core::units::Ratio;

use seawall_gateway::tls::{Oldest, PassedOn};

use super::policies::Rules;
use super::*;

fn environment(name: &str) -> Option<String> {
    match name {
        "ZONE" => Some("eu".into()),
        "EMPTY" => Some(String::new()),
        "PORT" => Some("8080".into()),
        "TIMEOUT" => Some("soon".into()),
        "BRACES" => Some("{ a: [b] }".into()),
        _ => None,
    }
}

fn read(text: &str) -> Checked {
    check("seawall.yaml", text.as_bytes(), &environment)
}

fn config(text: &str) -> AppConfig {
    let checked = read(text);
    checked.config.unwrap_or_else(|| panic!("{}", checked.report))
}

/// What every case leaves out: the rest of a good configuration.
const REST: [(&str, &str); 2] = [
    ("listeners:", "listeners: [{ address: \":8080\", routes: [{ upstream: api }] }]\n"),
    ("upstreams:", "upstreams: { api: { url: \"http://127.0.0.1:3000\" } }\n"),
];

/// `=== title` / text / `>>>` / report, again and again. The text `...` at its end asks for the [`REST`].
fn cases(table: &str) -> Vec<(&str, String, &str)> {
    table
        .split("=== ")
        .skip(1)
        .map(|case| {
            let (title, rest) = case.split_once('\n').expect("a title");
            let (text, report) = rest.split_once("\n>>>\n").expect("a report");
            let Some(text) = text.strip_suffix("...") else { return (title, format!("{text}\n"), report) };
            let missing = REST.iter().filter(|(key, _)| !text.starts_with(key) && !text.contains(&format!("\n{key}")));
            (title, format!("{text}{}", missing.map(|(_, rest)| *rest).collect::<String>()), report)
        })
        .collect()
}

#[test]
fn every_mistake_is_told_with_its_spot() {
    let table = include_str!("tests/bad.txt");
    let mut told = String::new();
    let mut wrong = Vec::new();
    for (title, text, expected) in cases(table) {
        let checked = read(&text);
        let report = checked.report.to_string();
        assert_eq!(checked.config.is_some(), checked.report.errors() == 0, "{title}");
        if report.trim_end() != expected.trim_end() {
            wrong.push(format!("=== {title}\n{text}>>>\n{report}"));
        }
        told.push_str(&report);
    }
    assert!(wrong.is_empty(), "{} cases say something else:\n{}", wrong.len(), wrong.join("\n"));
    assert!(told.lines().filter(|line| line.starts_with("seawall.yaml:")).count() > 100);
}

#[test]
fn the_whole_grammar_is_understood() {
    let AppConfig { policy, store, admin, toxiproxy, faults, tls } = config(include_str!("tests/whole.yaml"));
    assert_eq!((policy.node.as_str(), policy.zone.as_str()), ("us-east-1", "us-east"));
    assert_eq!(policy.zones, ["us-east", "us-west", "eu-central"]);
    assert_eq!(policy.digest.len(), 64);
    let names: Vec<&str> = policy.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["events", "carrier", "queue", "queue-2", "inner", "carrier-2", "sessions"]);
    assert_eq!(policy.listeners[0].routes, [RouteId(0), RouteId(1), RouteId(2), RouteId(3)]);
    assert_eq!(policy.listeners[1].address.to_string(), "[::1]:8081");
    let [None, Some(shown), None] = tls.listeners.as_slice() else { panic!("{:?}", tls.listeners) };
    let files = shown.pairs.iter().map(|pair| format!("{} {}", pair.cert.path.display(), pair.key.path.display()));
    assert_eq!(files.collect::<Vec<_>>(), ["a.pem a.key", "b.pem b.key"]);
    assert_eq!(shown.client_ca.as_ref().unwrap().path.to_str(), Some("clients.pem"));
    assert_eq!((shown.client_required, shown.oldest), (false, Oldest::V13));
    assert_eq!(shown.client_passed_on, PassedOn::Chain);
    let [None, Some(plain), Some(said), None] = tls.upstreams.as_slice() else { panic!("{:?}", tls.upstreams) };
    assert!(plain.verifies && plain.ca.is_none() && plain.pair.is_none() && plain.pins.is_empty());
    assert_eq!((said.name.as_deref(), said.pins.as_slice()), (Some("inner.example"), &[[0; 32]][..]));
    assert_eq!(said.pair.as_ref().map(|pair| pair.cert.path.to_str().unwrap()), Some("us.pem"));
    let hosts: Vec<_> = policy.upstreams.iter().map(|upstream| upstream.host.as_deref()).collect();
    let frames: Vec<_> = policy.upstreams.iter().map(|upstream| upstream.http2).collect();
    assert_eq!((frames, policy.limits.streams_max), (vec![false, false, true, false], 7));
    let front = &policy.listeners[1];
    let texts = |blocks: &[seawall_core::block::Block]| blocks.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&front.announced_by), ["10.0.0.0/8", "::1/128"]);
    assert_eq!(
        (texts(&front.trusted), policy.limits.connections_per_source),
        (vec!["192.168.0.0/16".into()], Some(20))
    );
    assert_eq!(policy.upstreams[3].announce, Some(seawall_core::policy::Announce::Frame));
    let resolvers: Vec<_> = policy.upstreams.iter().map(|upstream| upstream.resolver).collect();
    assert_eq!(resolvers[..2], [Resolver::System, Resolver::Own]);
    assert_eq!(hosts, [Some("inner:81"), Some("api.example"), None, None]);
    let events = policy.route(RouteId(0));
    assert_eq!(events.matcher.path, PathMatch::Exact("/events".into()));
    assert_eq!(events.matcher.methods, ["POST"]);
    assert_eq!(events.guards.timeout, Duration::from_secs(2));
    assert_eq!(events.guards.try_timeout, Duration::from_millis(700));
    assert_eq!((events.guards.retry.attempts_max, events.guards.retry.wait_max), (4, Duration::from_secs(1)));
    let budget = events.guards.budget;
    assert_eq!((budget.ratio.to_string(), budget.floor_per_s, budget.in_flight_min), ("10%".into(), 3.0, 30));
    let breaker = events.guards.breaker.as_ref().unwrap();
    assert_eq!((breaker.window, breaker.calls_min), (WindowConfig::Calls(10), 10));
    assert_eq!(breaker.slow.unwrap().over, Duration::from_millis(500));
    assert_eq!((breaker.wait.first, breaker.wait.max), (Duration::from_secs(90), Some(Duration::from_secs(90))));
    assert_eq!((events.guards.bulkhead.calls_max, events.guards.bulkhead.waiting_max), (256, 0));
    assert_eq!((events.guards.replay_bytes_max, events.guards.answer_bytes_max), (131_072, 0));
    assert_eq!(events.fallbacks, [Fallback::Spool]);
    assert!(events.spools());
    assert_eq!(events.order_by.as_deref(), Some("shipment-id"));
    assert_eq!((events.delivery.attempts_max, events.delivery.parallel), (7, 3));
    let within = (events.delivery.durability.name(), events.delivery.replicated_within);
    assert_eq!(within, ("replicated_or_local", Duration::from_secs(3)));
    let quotes = policy.route(RouteId(1));
    assert_eq!(quotes.matcher.host.as_deref(), Some("api.example"));
    assert_eq!(quotes.matcher.methods, ["GET", "HEAD"]);
    assert!(quotes.guards.breaker.is_none());
    assert_eq!(quotes.guards.retry.attempts_max, 1);
    assert_eq!(quotes.guards.try_timeout, Duration::from_millis(800));
    assert_eq!(quotes.stale_for(), Some(Duration::from_secs(600)));
    assert_eq!(quotes.fallbacks[1], Fallback::Upstream(UpstreamId(0)));
    let body = "{\"price\": null}".into();
    assert_eq!(quotes.fallbacks[2], Fallback::Static { status: 200, content_type: "application/json".into(), body });
    let plain = policy.route(RouteId(2));
    assert_eq!(plain.upgrades, ["websocket", "other/1"]);
    assert!(plain.carries_connections() && !events.carries_connections());
    assert!(plain.fallbacks.is_empty() && plain.guards.breaker.is_some());
    let timed = &policy.route(RouteId(3)).guards;
    assert_eq!(timed.rate, Some(RateConfig { cells: 100, per: Duration::from_secs(1), burst: 20 }));
    let limits = timed.concurrency.map(|limit| (limit.limit_initial, limit.limit_min, limit.limit_max));
    assert_eq!(limits, Some((10, 2, 50)));
    assert_eq!(timed.throttle.as_ref().map(|throttle| throttle.multipliers.clone()), Some(vec![1.5]));
    assert!(timed.learned_limit.is_some() && timed.bulkhead.order == Order::AdaptiveLifo);
    let hedge = timed.hedge.unwrap();
    assert_eq!((hedge.quantile, hedge.delay_min), (Ratio::new(0.9).unwrap(), Duration::from_millis(10)));
    assert!(timed.look_ahead);
    let retry = &timed.retry;
    assert_eq!(retry.backoff, Backoff::Decorrelated { base: Duration::from_millis(100) });
    assert_eq!(
        (retry.jitter, retry.total_max),
        (Jitter::Share(Ratio::new(0.25).unwrap()), Some(Duration::from_secs(20)))
    );
    assert!(retry.on.takes(Failure::Status(503)) && !retry.on.takes(Failure::Status(500)));
    let time = timed.breaker.as_ref().unwrap();
    assert_eq!((time.wait.jitter.to_string(), time.wait.retry_after_max), ("20%".into(), None));
    assert_eq!(time.consecutive_failures_max.map(NonZeroU32::get), Some(7));
    assert_eq!(time.ramp.as_ref().map(|ramp| ramp.steps.len()), Some(3));
    assert_eq!((time.window, time.calls_min), (WindowConfig::time(Duration::from_secs(10)), 500));
    let queue = policy.upstream(UpstreamId(0));
    assert_eq!(queue.endpoints[1].zone.as_deref(), Some("us-west"));
    assert_eq!(queue.endpoints[2].address, "queue.example:80");
    assert_eq!((queue.connections_max, queue.idle_timeout), (64, Duration::from_secs(9)));
    let placement = &policy.route(RouteId(2)).placement;
    let split = placement.versions.as_ref().unwrap();
    assert_eq!(split.weights, [("v2".to_owned(), 5), ("v1".to_owned(), 95)], "in the order written");
    assert_eq!(
        (&split.by, &placement.sticky),
        (&Unit::Header("user-id".into()), &Some(Unit::Cookie("session".into())))
    );
    let mirror = placement.mirror.as_ref().unwrap();
    assert_eq!((policy.upstream(mirror.to).name.as_str(), mirror.share.to_string()), ("inner", "10%".into()));
    assert_eq!((mirror.timeout, mirror.writes), (Duration::from_millis(200), true));
    let west = &queue.endpoints[1];
    assert_eq!((west.version.as_deref(), west.weight, west.priority), (Some("v2"), 3, 1));
    let BalanceConfig { spare, slow_start, panic_below, calls_max } = queue.balance;
    assert_eq!((spare.to_string(), panic_below.to_string()), ("25%".into(), "30%".into()));
    assert_eq!((slow_start, calls_max), (Duration::from_secs(60), Some(40)));
    assert_eq!(policy.upstream(UpstreamId(1)).balance, BalanceConfig::default());
    let outlier = queue.outlier.unwrap();
    assert_eq!((outlier.consecutive_failures, outlier.latency_factor), (7, Some(2.5)));
    assert_eq!((outlier.ejection_base, outlier.ejected_max.to_string()), (Duration::from_secs(10), "50%".into()));
    assert_eq!(policy.upstream(UpstreamId(1)).outlier, Some(OutlierConfig::default()));
    let health = queue.health.as_ref().unwrap();
    assert_eq!((&health.ask, health.unhealthy_after, health.healthy_after), (&Ask::Path("/healthz".into()), 5, 1));
    assert_eq!(policy.upstream(UpstreamId(1)).endpoints[0].address, "api.example:443");
    assert_eq!(policy.upstream(UpstreamId(1)).health, None);
    assert_eq!((policy.tcp_route(1), policy.tcp_route(2)), (None, Some(RouteId(6))));
    let sessions = policy.route(RouteId(6));
    let guards = &sessions.guards;
    assert_eq!((guards.idle_timeout, guards.timeout), (Some(Duration::from_secs(3_600)), Duration::from_secs(5)));
    assert!(guards.retry.on.takes(Failure::ConnectRefused) && !guards.retry.on.takes(Failure::ConnectTimeout));
    let cache = policy.upstream(sessions.upstream);
    assert_eq!(
        (cache.endpoints[0].address.as_str(), &cache.health.as_ref().unwrap().ask),
        ("cache.example:6379", &Ask::Connection)
    );
    assert_eq!(policy.limits.grace, Duration::from_secs(5));
    assert_eq!(policy.limits.header_bytes_max, 16 << 10);
    assert_eq!(policy.limits.headers_max, Limits::default().headers_max);
    assert_eq!(store.path, Path::new("./data-eu"));
    assert_eq!((store.spool_bytes_max, store.record_bytes_max), (2 << 30, 1 << 20));
    let replica = store.replica.unwrap();
    assert_eq!(replica.servers, ["nats://n1:4222", "tls://n2:4222", "nats://[::1]:4223"]);
    assert_eq!((replica.copies, replica.user.as_deref(), replica.accepts_unsynced), (5, Some("seawall"), true));
    assert_eq!(replica.monitors, ["n1:8222", "n2:8222"]);
    assert_eq!((replica.password_file.is_some(), replica.ca_file.is_some()), (true, true));
    assert_eq!(admin.address.to_string(), "127.0.0.1:9901");
    assert_eq!(admin.token_file.as_deref(), Some(Path::new("/run/secrets/seawall")));
    assert_eq!(toxiproxy.unwrap().listen.to_string(), "127.0.0.1:8474");
    let faults = faults.unwrap();
    assert_eq!((faults.share_max, faults.ttl_max, faults.count_max), (Ratio::ONE, Duration::from_secs(3_600), 3));
    let deny = |route: Option<&str>, upstream: Option<&str>, path: Option<&str>| Deny {
        route: route.map(Into::into),
        upstream: upstream.map(Into::into),
        path_prefix: path.map(Into::into),
    };
    let denied = [deny(Some("sessions"), None, None), deny(None, Some("inner"), Some("/pay/"))];
    assert_eq!(faults.deny, denied);
}

/// Of an upstream that requests go to as well, health is asked for as HTTP.
#[test]
fn health_is_a_connection_where_only_connections_go() {
    let asked = |listeners: &str, health: &str| {
        let upstreams = format!("upstreams: {{ a: {{ endpoints: [\"h:1\"], {health} }} }}\n");
        let config = config(&format!("listeners: [{listeners}]\n{upstreams}"));
        config.policy.upstream(UpstreamId(0)).health.clone().unwrap().ask
    };
    let tcp = "{ address: \":1\", protocol: tcp, upstream: a }";
    let http = "{ address: \":2\", routes: [{ upstream: a }] }";
    assert_eq!(asked(tcp, "health: { every: 1s }"), Ask::Connection);
    assert_eq!(asked(tcp, "health: { path: /up }"), Ask::Path("/up".into()), "who says so knows");
    assert_eq!(asked(&format!("{tcp}, {http}"), "health: { every: 1s }"), Ask::Path("/healthz".into()));
    assert_eq!(asked(http, "http2: on, health: { grpc: shop.Stock }"), Ask::Grpc("shop.Stock".into()));
    assert_eq!(asked(http, "http2: on, health: { grpc: \"\" }"), Ask::Grpc(String::new()));
}

#[test]
fn faults_are_off_unless_they_are_allowed() {
    let faults = |text: &str| config(&format!("{text}\n{}", REST.map(|(_, rest)| rest).concat())).faults;
    assert_eq!((faults(""), faults("faults: off")), (None, None));
    assert_eq!((faults("faults: on"), faults("faults: {}")), (Some(Caps::default()), Some(Caps::default())));
    let caps = faults("faults: { share_max: 10% }").unwrap();
    assert_eq!((caps.share_max.to_string().as_str(), caps.count_max), ("10%", 8));
}

#[test]
fn what_is_not_written_takes_its_default() {
    let AppConfig { policy, store, admin, toxiproxy, faults, tls } = config(&REST.map(|(_, rest)| rest).concat());
    assert_eq!((policy.node.as_str(), policy.zone.as_str()), ("seawall", "local"));
    assert_eq!(policy.zones, ["local"]);
    assert_eq!(policy.limits, Limits::default());
    assert!(tls.listeners.iter().all(Option::is_none) && tls.upstreams.iter().all(Option::is_none));
    assert_eq!((store, admin, toxiproxy, faults), (StoreConfig::default(), AdminConfig::default(), None, None));
    let (route, rules) = (&policy.routes[0], Rules::default());
    assert_eq!((route.guards.timeout, route.guards.breaker.clone()), (rules.guards.timeout, rules.guards.breaker));
    assert_eq!(admin_default(), ADMIN_ADDRESS);
}

fn admin_default() -> String {
    AdminConfig::default().address.to_string()
}

#[test]
fn the_only_zone_is_this_nodes() {
    let rest = REST.map(|(_, rest)| rest).concat();
    assert_eq!(config(&format!("zones: [a]\n{rest}")).policy.zone, "a");
    let named = config(&format!("zone: b\n{rest}")).policy;
    assert_eq!((named.zones, named.node.as_str()), (vec!["b".to_string()], "b"));
}

#[test]
fn the_environment_is_filled_in_as_text() {
    let text = "zone: ${ZONE}\nnode: ${NONE:-n}-${EMPTY:-1}\nstore: { path: \"./$${HOME}/${BRACES}\" }\n";
    let config = config(&format!("{text}{}", REST.map(|(_, rest)| rest).concat()));
    assert_eq!((config.policy.zone.as_str(), config.policy.node.as_str()), ("eu", "n-1"));
    assert_eq!(config.store.path, Path::new("./${HOME}/{ a: [b] }"), "a value never becomes structure");
}

#[test]
fn an_anchor_may_be_used_again() {
    let text = "upstreams: { a: { endpoints: &e [\"h:1\"] }, b: { endpoints: *e } }\n\
                listeners: [{ address: \":1\", routes: [{ upstream: a, match: { path: /a } }, { upstream: b }] }]\n";
    let config = config(text);
    assert_eq!(config.policy.upstreams[0].endpoints, config.policy.upstreams[1].endpoints);
}

#[test]
fn bytes_that_are_no_text_are_told() {
    let report = check("f.yaml", b"zone: a\nnode: \xff", &environment).report.to_string();
    assert_eq!(report, "f.yaml:2:7: byte 0xff is not text: save the file as UTF-8\n   |  node:\n   |        ^\n");
    let huge = check("f.yaml", &vec![b'#'; FILE_BYTES_MAX + 1], &environment).report;
    assert!(huge.to_string().starts_with("f.yaml:1:1: the file has 4194305 bytes"), "{huge}");
    assert!(
        check("f.yaml", format!("\u{feff}{}", REST.map(|(_, rest)| rest).concat()).as_bytes(), &environment)
            .config
            .is_some()
    );
}

#[test]
fn trees_that_would_not_fit_in_memory_are_refused() {
    let bomb = (1..9).fold(String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"), |text, level| {
        let alias = format!("*a{}, ", level - 1).repeat(10);
        format!("{text}a{level}: &a{level} [{}]\n", alias.trim_end_matches(", "))
    });
    assert!(read(&bomb).report.to_string().contains("more than 100000 values"));
    let nested = |levels: usize| read(&format!("a: {}", "[".repeat(levels))).report.to_string();
    assert!(nested(100).contains("nested deeper than 32 levels"), "{}", nested(100));
    assert!(nested(100_000).contains("not YAML: recursion limit"));
}

#[test]
fn a_file_is_read_or_its_absence_explained() {
    let directory = std::env::temp_dir().join(format!("seawall-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("seawall.yaml");
    let missing = load(&path, &environment).unwrap_err().to_string();
    assert!(missing.contains("seawall.yaml`: ") && missing.ends_with("; `seawall init` writes one"), "{missing}");
    assert!(!load(&directory, &environment).unwrap_err().to_string().contains("init"));
    std::fs::write(&path, REST.map(|(_, rest)| rest).concat()).unwrap();
    let (config, report) = load(&path, &environment).unwrap().into_result().unwrap();
    assert_eq!((config.policy.routes.len(), report.findings.len()), (1, 0));
    std::fs::write(&path, "zone: a b").unwrap();
    assert!(load(&path, &environment).unwrap().into_result().is_err());
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Fragments that meet the grammar more often than chance would.
fn fragment() -> impl Strategy<Value = String> {
    let words = [
        "zone",
        "zones",
        "node",
        "store",
        "limits",
        "listeners",
        "upstreams",
        "policies",
        "admin",
        "routes",
        "match",
        "upstream",
        "policy",
        "url",
        "endpoints",
        "address",
        "retry",
        "breaker",
        "fallback",
        "window",
        "backoff",
        "slow",
        "spool",
        "stale",
        "static",
        "100 calls",
        "50%",
        "10s",
        "60% over 5s",
        "50ms..1s",
        "off",
        ": ",
        ", ",
        "{",
        "}",
        "[",
        "]",
        "\n",
        "\n  ",
        "\n- ",
        "&a ",
        "*a",
        "!!str ",
        "!x ",
        "\"",
        "'",
        "${ZONE}",
        "${",
        "}",
        "|\n",
        "#",
        "~",
        "http://a:1",
        ":80",
        "-",
        "%",
        "\t",
        "---\n",
        "é",
        "\u{0}",
    ];
    prop_oneof![8 => prop::sample::select(words.to_vec()).prop_map(String::from), 1 => ".{0,6}"]
}

proptest! {
    #[test]
    fn no_text_panics(parts in prop::collection::vec(fragment(), 0..60)) {
        let checked = read(&parts.concat());
        let _ = checked.report.to_string();
        prop_assert_eq!(checked.config.is_some(), checked.report.errors() == 0);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = check("f", &bytes, &environment).report.to_string();
    }

    #[test]
    fn no_damage_to_a_good_file_panics(at in 0_usize..4_000, cut in 0_usize..40, put in ".{0,4}") {
        let whole: Vec<char> = include_str!("tests/whole.yaml").chars().collect();
        let at = at.min(whole.len());
        let after = (at + cut).min(whole.len());
        let text: String = whole[..at].iter().chain(&put.chars().collect::<Vec<_>>()).chain(&whole[after..]).collect();
        let checked = read(&text);
        prop_assert_eq!(checked.config.is_some(), checked.report.errors() == 0);
        for finding in &checked.report.findings {
            prop_assert!(finding.line <= text.split(['\n', '\r']).count() + 1, "{}", finding);
        }
    }
}

/// What arithmetic does not see is played; what it sees already is told once.
#[test]
fn a_policy_that_says_its_traffic_is_rehearsed() {
    let text = |breaker: &str, expects: &str| {
        format!(
            "listeners: [{{ address: \":8080\", routes: [{{ upstream: api, policy: p }}] }}]\n\
             upstreams: {{ api: {{ url: \"http://127.0.0.1:3000\" }} }}\n\
             policies:\n  p:\n    timeout: 90s\n    try_timeout: 40s\n    retry: off\n    breaker: {breaker}\n    {expects}\n"
        )
    };
    let told = |text: &str| {
        let checked = read(text);
        assert_eq!(checked.report.audits(), 0, "whoever starts a node does not wait for this\n{}", checked.report);
        checked.rehearsed().report.to_string()
    };
    let blind = text("{ open_for: 5s }", "expects: { rate: 20/s }");
    assert_eq!(
        told(&blind),
        "seawall.yaml:8:5: audit: played at 20/s, an upstream that hangs for 30s does not open the breaker in that time\n   \
         |  breaker: { open_for: 5s }\n   |  ^^^^^^^ write `slow: 60% over 1s`\n"
    );
    assert_eq!(told(&text("{ slow: 60% over 1s }", "expects: { rate: 20/s }")), "", "the remedy is one");
    assert_eq!(told(&text("{ open_for: 5s }", "")), "", "nothing is known of its traffic");
    let twice = read(&text("{ window: 10s, calls_min: 300 }", "expects: { rate: 20/s }")).rehearsed().report;
    assert_eq!(twice.audits(), 1, "{twice}");
}
