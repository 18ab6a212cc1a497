//! `dist/` is true to the binary: flags, exit codes, limits, system calls, and every metric that a rule or a panel asks
//! for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::house::{Client, Node, Place, SEAWALL, local, port, wait_for, wait_until};
use crate::nats::{Cluster, Sync};
use crate::process::{Process, code};
use crate::server::{Server, ok};
use crate::tls::Authority;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a tool to its end and gives what it wrote to standard output.
fn tool(package: &str, command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}, from Debian's `{package}`: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
    out.into_owned()
}

// --- Prometheus and Grafana ---

/// Names of metrics in a PromQL expression: identifiers that are no function, no keyword, no label and no number.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    const WORDS: [&str; 14] = [
        "and",
        "atan2",
        "bool",
        "by",
        "group_left",
        "group_right",
        "ignoring",
        "inf",
        "nan",
        "offset",
        "on",
        "or",
        "unless",
        "without",
    ];
    /// The words that labels in parentheses follow.
    const BEFORE_LABELS: [&str; 6] = ["by", "group_left", "group_right", "ignoring", "on", "without"];
    let mut rest = expression;
    let mut found = BTreeSet::new();
    let (mut labels_may_follow, is_part) = (false, |it: char| it.is_ascii_alphanumeric() || "_:.".contains(it));
    while let Some(first) = rest.chars().next() {
        let skipped = |closing: char| rest[1..].find(closing).map_or("", |at| &rest[at + 2..]);
        rest = match first {
            '{' => {
                // A brace in a label's value does not end the labels.
                let mut quoted = None;
                let end = rest.char_indices().find(|(at, it)| match quoted {
                    Some(quote) => {
                        if *it == quote && !rest[..*at].ends_with('\\') {
                            quoted = None;
                        }
                        false
                    }
                    None => {
                        quoted = (*it == '"' || *it == '\'').then_some(*it);
                        *it == '}'
                    }
                });
                end.map_or("", |(at, _)| &rest[at + 1..])
            }
            '[' => skipped(']'),
            '(' if labels_may_follow => skipped(')'),
            '"' | '\'' => skipped(first),
            _ if is_part(first) => {
                let end = rest.find(|it| !is_part(it)).unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                let next = after.trim_start();
                let is_call = next.starts_with('(') || next.starts_with("by") || next.starts_with("without");
                let is_name = !first.is_ascii_digit() && first != '.';
                labels_may_follow = BEFORE_LABELS.contains(&word);
                if is_name && !is_call && !WORDS.contains(&word.to_ascii_lowercase().as_str()) {
                    found.insert(word.to_owned());
                }
                rest = after;
                continue;
            }
            _ => &rest[first.len_utf8()..],
        };
        labels_may_follow &= first.is_whitespace();
    }
    found
}

#[test]
fn metrics_are_told_from_functions_and_labels() {
    for (expression, names) in [
        ("up", "up"),
        ("sum by (route, le) (rate(a_total{x=\"b}\",y=~\"c|d\"}[5m])) / c > 0.5e3", "a_total c"),
        ("sum(rate(a[$__rate_interval] offset 5m)) by (b) and on (c) d or 2 * e unless ignoring (state) f", "a d e f"),
        ("histogram_quantile (0.99, sum without(x) (rate(a_bucket[1h])))", "a_bucket"),
        ("x:y:rate5m - min_over_time(x:y:rate5m[1d]) == bool 1", "x:y:rate5m"),
        ("max by (i) (1 * (s{state=\"open\"} == 1) or 2 * (t == 1))", "s t"),
        ("predict_linear(a[15m], 4 * 3600) > b and c{} > NaN", "a b c"),
        ("time() - a", "a"),
    ] {
        assert_eq!(metrics_of(expression).into_iter().collect::<Vec<_>>().join(" "), names, "{expression}");
    }
}

fn dashboard() -> Value {
    serde_json::from_str(&read("dist/grafana/seawall.json")).unwrap()
}

/// The queries of a panel, and its legend.
fn targets(panel: &Value) -> Vec<(String, String)> {
    let text = |it: &Value| it.as_str().unwrap().to_owned();
    let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
    targets.iter().map(|target| (text(&target["expr"]), text(&target["legendFormat"]))).collect()
}

/// What stands in double braces.
fn labels_of(legend: &str) -> impl Iterator<Item = &str> {
    legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")).map(|(label, _)| label)
}

/// As Grafana fills in variables that stand for everything.
fn filled_in(query: &str) -> String {
    let mut query = query.replace("$__rate_interval", "30s");
    for variable in ["$job", "$instance", "$route", "$upstream"] {
        query = query.replace(variable, ".*");
    }
    assert!(!query.contains('$'), "a variable nobody filled in: {query}");
    query
}

/// The query and the label of `label_values(QUERY, LABEL)`.
fn label_values(variable: &Value) -> (String, String) {
    let query = variable["definition"].as_str().unwrap();
    assert_eq!(variable["query"]["query"], query);
    let inner = query.strip_prefix("label_values(").and_then(|it| it.strip_suffix(')')).unwrap();
    let (query, label) = inner.rsplit_once(',').unwrap();
    (query.into(), label.trim().into())
}

#[test]
fn the_dashboard_is_well_made() {
    let dashboard = dashboard();
    let source = json!({ "type": "prometheus", "uid": "${datasource}" });
    let (mut ids, mut places, mut titles) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its number is another's");
        let is_row = panel["type"] == "row";
        assert!(is_row || titles.insert(title), "`{title}` twice");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title}: too wide");
        for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(places.insert((x, y)), "{title}: lies on another");
        }
        assert_eq!(targets(panel).is_empty(), is_row, "{title}");
        assert!(is_row || panel["datasource"] == source, "{title}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"], source, "{title}");
        }
        for (query, _) in targets(panel) {
            // Nodes are chosen in every query, and in each of its selectors.
            assert_eq!(
                query.matches("instance=~\"$instance\"").count(),
                query.matches('{').count(),
                "{title}: {query}"
            );
        }
        assert!(is_row || panel["fieldConfig"]["defaults"]["unit"].is_string() || panel["type"] == "table", "{title}");
    }
}

/// Every feature on that has metrics of its own.
fn everything(cluster: &Cluster, authority: &Authority, queue: &Server, carrier: &Server, raw: u16) -> Place {
    authority.pass("front", "DNS:localhost", "365");
    let [cert, key] = ["front.pem", "front.key"].map(|name| authority.path(name).display().to_string());
    Place::new(&format!(
        "node: a\nzone: z1\nfaults: on\nlimits: {{ headers: 5 }}\nlisteners: [{{ address: \"127.0.0.1:0\", routes: [\
         {{ name: events, match: {{ path: /events, method: POST }}, upstream: queue, policy: writes }}, \
         {{ name: quotes, match: {{ path_prefix: /quotes }}, upstream: carrier, policy: reads, \
         versions: {{ old: 90, new: 10 }}, mirror: {{ to: queue }} }}] }}, \
         {{ address: \"127.0.0.1:0\", tls: {{ cert_file: {cert:?}, key_file: {key:?} }}, routes: [\
         {{ name: sealed, upstream: carrier, policy: reads }}] }}, \
         {{ address: \"127.0.0.1:{raw}\", protocol: tcp, name: raw, upstream: bytes }}]\n\
         upstreams: {{ bytes: {{ url: \"tcp://{}\" }}, queue: {{ url: \"http://{}\" }}, carrier: {{ endpoints: [{{ address: \"{}\", version: old }}, {{ address: \"{}\", version: new }}], \
         outlier: on }} }}\npolicies:\n  writes: {{ retry: off, fallback: spool, breaker: {{ calls_min: 2, window: 4 calls, \
         open_for: 1s }} }}\n  reads: {{ timeout: 800ms, retry: {{ attempts: 2, backoff: 1ms..2ms }}, hedge: p95, \
         concurrency: on, learned_limit: on, rate: 20/s burst 10 }}\n{}",
        carrier.address,
        queue.address,
        carrier.address,
        local(port()),
        cluster.store()
    ))
}

fn some_traffic(node: &Node) {
    for n in 0..6 {
        node.post("/events", "", &n.to_string());
        node.get(&format!("/quotes/{n}"));
    }
    node.get("/nobody");
    let many = "A: b\r\n".repeat(9);
    Client::new(node.address()).ask(&format!("GET /quotes/1 HTTP/1.1\r\nHost: h\r\n{many}\r\n"));
}

/// A Prometheus that scrapes a node and evaluates the rules.
struct Prometheus {
    port: u16,
    _process: Process,
    _place: Place,
}

impl Prometheus {
    fn watch(node: &Node) -> Self {
        let (place, port) = (Place::empty(), port());
        place.write("rules.yaml", &read("dist/prometheus/rules.yaml"));
        let config = place.write(
            "prometheus.yaml",
            &format!(
                "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\nrule_files: [rules.yaml]\n\
                 scrape_configs: [{{ job_name: seawall, static_configs: [{{ targets: [\"{}\"] }}] }}]\n",
                node.admin
            ),
        );
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", place.path().join("tsdb").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let prometheus = Self { port, _process: Process::start(&mut command), _place: place };
        wait_until("Prometheus has scraped", || prometheus.can_be_asked());
        prometheus
    }

    fn can_be_asked(&self) -> bool {
        Client::connect(local(self.port)).is_ok() && {
            let counted = self.query("min(count_over_time(up{job=\"seawall\"}[1m]) and up == 1)");
            counted.first().is_some_and(|sample| sample["value"][1].as_str().unwrap().parse::<f64>().unwrap() >= 2.0)
        }
    }

    fn get(&self, target: &str) -> Value {
        let answer = Client::new(local(self.port)).ask(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
        let told = if answer.body.starts_with('{') { answer.json() } else { Value::Null };
        assert!(told["status"] == "success" || answer.status == 503, "{target}: {}", answer.body);
        told["data"].clone()
    }

    fn query(&self, query: &str) -> Vec<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        self.get(&format!("/api/v1/query?query={encoded}"))["result"].as_array().cloned().unwrap_or_default()
    }
}

/// What a rule is called and asks.
fn rules(prometheus: &Prometheus) -> Vec<Value> {
    let groups = prometheus.get("/api/v1/rules")["groups"].clone();
    groups.as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn a_prometheus_finds_every_metric_that_rules_and_panels_ask_for() {
    let (cluster, authority) = (Cluster::start(1, Sync::Always), Authority::new());
    let ((_well, queue), carrier) = (Server::moody(), Server::start(|_| ok("42")));
    let raw = port();
    let (node, _place) = everything(&cluster, &authority, &queue, &carrier, raw).node_of();
    let some_traffic = |node: &Node| {
        some_traffic(node);
        Client::new(local(raw)).ask("GET /raw HTTP/1.1\r\nHost: h\r\n\r\n");
    };
    let fault = json!({ "owner": "test", "route": "quotes", "every": 4, "kind": { "latency": { "delay": "1ms" } }, "ttl": "10m" });
    assert_eq!(node.admin_post("/api/faults", &fault).status, 201);
    some_traffic(&node);
    let text = node.metrics().0;
    let types: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let prometheus = Prometheus::watch(&node);
    let rules = rules(&prometheus);
    let recorded: BTreeSet<&str> =
        rules.iter().filter(|rule| rule["type"] == "recording").map(|rule| rule["name"].as_str().unwrap()).collect();
    let exists = |name: &str| {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        // `up` is Prometheus's own word on whether it could scrape.
        name == "up"
            || types.contains_key(name)
            || recorded.contains(name)
            || histogram.is_some_and(|name| types.get(name) == Some(&"histogram"))
    };
    let dashboard = dashboard();
    let panels: Vec<&Value> = dashboard["panels"].as_array().unwrap().iter().collect();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variables = variables.iter().filter(|variable| variable["type"] == "query").map(label_values);
    let variables: Vec<(String, String)> = variables.collect();
    let notes = dashboard["annotations"]["list"].as_array().unwrap().iter().filter_map(|note| note["expr"].as_str());
    let asked: Vec<String> = rules
        .iter()
        .map(|rule| rule["query"].as_str().unwrap().to_owned())
        .chain(panels.iter().flat_map(|panel| targets(panel)).map(|(query, _)| query))
        .chain(variables.iter().map(|(query, _)| query.clone()))
        .chain(notes.map(str::to_owned))
        .collect();
    assert!(asked.len() > 100, "{}", asked.len());
    let mut missed: BTreeSet<&str> = types.keys().copied().collect();
    for query in &asked {
        let names = metrics_of(query);
        assert!(!names.is_empty(), "{query}");
        for name in names {
            assert!(exists(&name), "no metric `{name}`, asked for by {query}");
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
            missed.remove(name.as_str());
            missed.remove(base);
        }
    }
    assert!(missed.is_empty(), "neither on the dashboard nor in a rule: {missed:?}");

    // Each panel shows something, and its legend names labels there are.
    let mut empty: BTreeMap<&str, &Value> = panels
        .iter()
        .filter(|panel| panel["type"] != "row")
        .map(|panel| (panel["title"].as_str().unwrap(), *panel))
        .collect();
    wait_until("every panel shows something", || {
        some_traffic(&node);
        empty.retain(|title, panel| {
            let found =
                targets(panel).into_iter().map(|(query, legend)| (prometheus.query(&filled_in(&query)), legend));
            let found: Vec<(Vec<Value>, String)> = found.collect();
            for (sample, legend) in
                found.iter().flat_map(|(samples, legend)| samples.iter().map(move |it| (it, legend)))
            {
                for label in labels_of(legend) {
                    assert!(sample["metric"][label].is_string(), "{title}: no label `{label}` in {sample}");
                }
            }
            found.iter().all(|(samples, _)| samples.is_empty())
        });
        print!("{} ", empty.keys().copied().collect::<Vec<_>>().join(", "));
        empty.is_empty()
    });
    for (query, label) in variables {
        let found = prometheus.query(&filled_in(&query));
        assert!(found.iter().any(|sample| sample["metric"][&label].is_string()), "{query} has no label `{label}`");
    }
    // The rules work on what is really there, and the trouble that there is is told.
    wait_until("the rules have been evaluated", || {
        let rules = self::rules(&prometheus);
        for rule in &rules {
            assert!(rule["lastError"].is_null(), "{rule}");
        }
        rules.iter().all(|rule| rule["health"] == "ok")
    });
    let pending = |name: &str| {
        let alerts = prometheus.get("/api/v1/alerts")["alerts"].clone();
        alerts.as_array().is_some_and(|alerts| alerts.iter().any(|alert| alert["labels"]["alertname"] == name))
    };
    wait_until("an open breaker is told", || {
        some_traffic(&node);
        pending("SeawallBreakerOpen")
    });
    assert!(pending("SeawallFaultsLong") && !pending("SeawallDown") && !pending("SeawallSpoolNearlyFull"));
}

/// Names of alerts, in the file's order.
fn alerts() -> Vec<String> {
    read("dist/prometheus/rules.yaml")
        .lines()
        .filter_map(|it| Some(it.trim().strip_prefix("- alert: ")?.to_owned()))
        .collect()
}

#[test]
fn each_alert_is_raised_and_is_not_raised() {
    let dir = root().join("dist/prometheus");
    tool("prometheus", Command::new("promtool").args(["check", "rules", "rules.yaml"]).current_dir(&dir));
    tool("prometheus", Command::new("promtool").args(["test", "rules", "rules.test.yaml"]).current_dir(&dir));
    let (tests, rules) = (read("dist/prometheus/rules.test.yaml"), read("dist/prometheus/rules.yaml"));
    for name in alerts() {
        let tested: Vec<&str> = tests.lines().filter(|line| line.contains(&format!("alertname: {name}"))).collect();
        assert!(tested.iter().any(|line| line.ends_with("exp_alerts: [] }")), "{name}: nothing shows when it is quiet");
        assert!(tested.iter().any(|line| line.ends_with(&name)), "{name}: nothing shows when it is raised");
        let rule = rules.split("- alert: ").find(|rule| rule.lines().next() == Some(&name)).unwrap();
        let severities = ["critical", "warning", "info"].map(|it| format!("labels: {{ severity: {it} }}"));
        assert!(severities.iter().any(|it| rule.contains(it)), "{name}: how bad is it?");
        for wanted in ["summary: ", "description: "] {
            assert!(rule.contains(wanted), "{name}: no {wanted}");
        }
        let link = format!("/docs/guide/alerts.md#{}\n", name.to_lowercase());
        assert!(rule.contains(&link), "{name}: its run book is not {link}");
    }
}

/// A heading as a link to it is written.
fn slug(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|it| it.is_alphanumeric() || " -_".contains(*it))
        .map(|it| if it == ' ' { '-' } else { it })
        .collect()
}

#[test]
fn the_run_book_has_every_alert_and_its_links_lead_somewhere() {
    let book = read("docs/guide/alerts.md");
    let found: Vec<&str> = book.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(found, alerts());
    for link in book.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let text = if file.is_empty() { book.clone() } else { read(&format!("docs/guide/{file}")) };
        let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| slug(line.trim_start_matches('#')));
        assert!(anchor.is_empty() || headings.into_iter().any(|heading| heading == anchor), "{link} leads nowhere");
    }
    // Commands are those there are.
    let place = Place::empty();
    let mut commands = BTreeSet::new();
    for quoted in book.split('`').skip(1).step_by(2).filter_map(|quoted| quoted.strip_prefix("seawall ")) {
        let words = quoted.split_whitespace().take_while(|word| word.starts_with(|it: char| it.is_ascii_lowercase()));
        commands.insert(words.collect::<Vec<_>>());
        for flag in quoted.split_whitespace().filter(|word| word.starts_with("--")) {
            let command: Vec<&str> =
                quoted.split_whitespace().take_while(|word| !word.starts_with(['-', 'I', 'R'])).collect();
            let help = place.seawall(&[&command[..], &["--help"]].concat());
            assert!(help.out.contains(flag), "`seawall {quoted}`: no {flag} in {}", help.out);
        }
    }
    assert!(commands.len() > 10, "{commands:?}");
    for command in commands {
        let said = place.seawall(&[&command[..], &["--help"]].concat());
        assert_eq!(said.code, 0, "`seawall {}`: {said:?}", command.join(" "));
    }
}

// --- systemd ---

/// Settings of the unit; those that come up more than once, as lines.
fn unit() -> BTreeMap<String, String> {
    let mut settings: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in read("dist/seawall.service").lines().filter_map(|line| line.split_once('=')) {
        if key.starts_with('#') {
            continue;
        }
        let all = settings.entry(key.into()).or_default();
        *all = [all, value].iter().filter(|it| !it.is_empty()).copied().collect::<Vec<&str>>().join("\n");
    }
    settings
}

/// A number of seconds as systemd and the log write it.
fn seconds(text: &str) -> u64 {
    let at = text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[at..] {
        "s" | "" => 1,
        "min" => 60,
        unit => panic!("which unit is `{unit}`?"),
    };
    text[..at].parse::<u64>().unwrap() * factor
}

const ONE_ROUTE: &str = "listeners: [{ address: \"127.0.0.1:0\", routes: [{ name: all, upstream: up, policy: writes }] }]\n\
     policies: { writes: { fallback: spool } }\n";

/// A folder as a machine has it: the configuration somewhere else than the data.
fn machine(more: &str) -> (Place, Place) {
    let etc = Place::empty();
    let config = format!("{ONE_ROUTE}upstreams: {{ up: {{ url: \"http://localhost:{}\" }} }}\n{more}", port());
    etc.write("seawall.yaml", &config);
    (etc, Place::empty())
}

/// The words of a command line of `dist/`, with the configuration where it is here.
fn arguments(words: &[String], etc: &Place) -> Vec<String> {
    let config = etc.path().join("seawall.yaml");
    assert_eq!(words.iter().filter(|word| *word == "/etc/seawall/seawall.yaml").count(), 1, "{words:?}");
    let word =
        |word: &String| if word == "/etc/seawall/seawall.yaml" { config.display().to_string() } else { word.clone() };
    words.iter().map(word).collect()
}

const ADMIN: &str = "admin: { address: \"127.0.0.1:0\" }\n";

/// A node started in `var` with a command line of `dist/`.
fn started(
    mut command: Command,
    words: &[String],
    (etc, var): (&Place, &Place),
    environment: &[(&str, String)],
) -> Node {
    command.args(arguments(words, etc)).current_dir(var.path()).env_remove("SEAWALL_LOG");
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut node = Node::of(Process::start(&mut command));
    assert!(node.wait_ready(), "it ended before it served:\n{}", node.process.lines().join("\n"));
    node
}

fn exec_start() -> Vec<String> {
    let unit = unit();
    let (program, arguments) = unit["ExecStart"].split_once(' ').unwrap();
    assert_eq!(program, "/usr/bin/seawall");
    arguments.split(' ').map(Into::into).collect()
}

#[test]
fn systemd_takes_the_unit_and_calls_it_safe() {
    let place = Place::empty();
    // It wants the program to be there.
    let unit = place.write("seawall.service", &read("dist/seawall.service").replace("/usr/bin/seawall", SEAWALL));
    tool("systemd", Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit));
    let safe = ["security", "--no-pager", "--offline=true", "--threshold=20"];
    tool("systemd", Command::new("systemd-analyze").args(safe).arg(&unit));
}

#[test]
fn the_unit_starts_a_node_and_waits_for_its_end() {
    let unit = unit();
    assert_eq!((unit["StateDirectory"].as_str(), unit["WorkingDirectory"].as_str()), ("seawall", "%S/seawall"));
    let (etc, var) =
        machine("admin: { address: \"127.0.0.1:0\", token_file: \"${CREDENTIALS_DIRECTORY:-/etc/seawall}/token\" }\n");
    etc.write("token", "secret\n");
    let credentials = etc.path().display().to_string();
    let mut node =
        started(Command::new(SEAWALL), &exec_start(), (&etc, &var), &[("CREDENTIALS_DIRECTORY", credentials)]);
    assert_eq!(node.admin_get("/api/status").status, 401, "the token was handed over");
    assert_eq!(node.admin_get("/metrics").status, 200, "and Prometheus needs none");
    assert_eq!(node.post("/", "", "kept").status, 202);
    assert!(var.path().join("seawall-data").is_dir(), "data is in the state directory");
    assert_eq!(std::fs::read_dir(var.path()).unwrap().count(), 1, "and nothing else");

    let log = |node: &Node, key: &str| -> Option<String> {
        let lines = node.process.lines();
        let mut lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find_map(|line| {
            Some(line[key].as_str().map_or_else(|| line[key].to_string(), Into::into)).filter(|it| it != "null")
        })
    };
    // As many as are configured, also where this machine has too few open files for them.
    let connections = log(&node, "wanted")
        .map_or_else(|| node.metrics().get("seawall_limit{limit=\"connections\"}"), |wanted| wanted.parse().unwrap());
    assert!(unit["LimitNOFILE"].parse::<u64>().unwrap() > 2 * connections + 1_000, "{connections}");

    assert_eq!(unit["ExecReload"], "/bin/kill -HUP $MAINPID");
    node.process.signal(Signal::HUP);
    assert_eq!(node.admin_get("/readyz").status, 200, "a reload ends nothing");
    node.process.signal(Signal::TERM);
    assert_eq!((unit["KillSignal"].as_str(), code(node.process.wait())), ("SIGTERM", 0));
    let grace = seconds(&log(&node, "grace").expect("it says how long it drains"));
    assert!(seconds(&unit["TimeoutStopSec"]) >= grace + 15, "{grace} s of grace, and the rest");
    drop(node);
    let again = started(
        Command::new(SEAWALL),
        &exec_start(),
        (&etc, &var),
        &[("CREDENTIALS_DIRECTORY", etc.path().display().to_string())],
    );
    let metrics = again.metrics();
    let kept = |state: &str| metrics.get(&format!("seawall_spool_records{{upstream=\"up\",state=\"{state}\"}}"));
    assert_eq!(kept("waiting") + kept("leased"), 1, "it is still there");
}

#[test]
fn exit_codes_are_those_the_unit_knows() {
    let unit = unit();
    assert_eq!((unit["Restart"].as_str(), unit["RestartPreventExitStatus"].as_str()), ("on-failure", "2"));
    let place = Place::empty();
    assert_eq!(place.seawall(&["run", "--no-such-flag"]).code, 2);
    assert_eq!(place.seawall(&["run", "--config", "nowhere.yaml"]).code, 1);
    // A node that cannot start is started again a few times, not for ever.
    let (burst, pause) = (unit["StartLimitBurst"].parse::<u64>().unwrap(), seconds(&unit["RestartSec"]));
    assert!((burst * (pause + 10)) < seconds(&unit["StartLimitIntervalSec"]), "a start that fails takes seconds");
}

/// The system calls of a filter's groups, as systemd on this machine has them.
fn groups() -> BTreeMap<String, Vec<String>> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in tool("systemd", Command::new("systemd-analyze").args(["syscall-filter", "--no-pager"])).lines() {
        match line.strip_prefix("    ") {
            None => name = line.trim().to_owned(),
            Some(call) if !call.starts_with('#') => {
                groups.entry(name.clone()).or_default().push(call.trim().to_owned())
            }
            Some(_) => {}
        }
    }
    groups
}

fn members(groups: &BTreeMap<String, Vec<String>>, group: &str) -> BTreeSet<String> {
    let of = |name: &String| if name.starts_with('@') { members(groups, name) } else { [name.clone()].into() };
    groups.get(group).unwrap_or_else(|| panic!("no group `{group}`")).iter().flat_map(of).collect()
}

#[test]
fn a_node_makes_no_system_call_that_the_unit_forbids() {
    let (unit, groups) = (unit(), groups());
    let mut allowed = members(&groups, "@default");
    for filter in unit["SystemCallFilter"].lines() {
        match filter.strip_prefix('~') {
            None => allowed.extend(members(&groups, filter)),
            Some(filter) => members(&groups, filter).iter().for_each(|call| _ = allowed.remove(call)),
        }
    }
    let (etc, var) = machine(ADMIN);
    let trace = etc.path().join("trace");
    // `-D`: the node is our child, and strace looks on from aside.
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-q", "-s", "0", "-o"]).arg(&trace).arg("--").arg(SEAWALL);
    let mut node = started(command, &exec_start(), (&etc, &var), &[]);
    for _ in 0..3 {
        assert_eq!(node.post("/", "", "kept").status, 202);
        node.admin_get("/metrics");
    }
    // Another process in its place; what ends last is that.
    node.process.signal(Signal::USR2);
    let heir = wait_for("another takes over", || {
        let lines = node.process.lines();
        let pid = |line: &String| {
            let line: Value = serde_json::from_str(line).ok()?;
            line["message"].as_str()?.starts_with("handed over").then(|| line["pid"].as_u64())?
        };
        lines.iter().find_map(pid)
    });
    crate::process::send(u32::try_from(heir).unwrap(), Signal::TERM);
    assert_eq!(code(node.process.wait()), 0);
    let text = wait_for("strace has written its last line", || {
        let text = std::fs::read_to_string(&trace).unwrap_or_default();
        text.trim_end().ends_with("+++ exited with 0 +++").then_some(text)
    });
    let call = |line: &str| -> Option<String> {
        let line = line.split_once(' ')?.1.trim_start().trim_start_matches("<... ");
        let end = line.find(|it: char| !(it.is_ascii_alphanumeric() || it == '_'))?;
        (line[end..].starts_with(['(', ' ']) && end > 0).then(|| line[..end].to_owned())
    };
    let made: BTreeSet<String> = text.lines().filter_map(call).collect();
    assert!(made.len() > 40 && made.contains("fdatasync"), "{made:?}");
    let forbidden: Vec<&String> = made.difference(&allowed).collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
    let families: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_once("socket(")?.1.split(',').next())
        .filter(|family| family.starts_with("AF_"))
        .collect();
    let known: BTreeSet<&str> = unit["RestrictAddressFamilies"].split(' ').collect();
    assert!(families.contains("AF_INET") && families.is_subset(&known), "{families:?}");
}

// --- The container file ---

/// Its instructions, continued lines joined, stage by stage.
fn stages() -> Vec<Vec<(String, String)>> {
    let text: Vec<String> =
        read("dist/Containerfile").lines().filter(|line| !line.starts_with('#')).map(Into::into).collect();
    let mut stages: Vec<Vec<(String, String)>> = Vec::new();
    for line in text.join("\n").replace("\\\n", " ").lines().filter(|line| !line.trim().is_empty()) {
        let (instruction, rest) = line.split_once(' ').unwrap();
        if instruction == "FROM" {
            stages.push(Vec::new());
        }
        stages.last_mut().expect("FROM comes first").push((instruction.into(), rest.trim().into()));
    }
    stages
}

#[test]
fn the_container_file_builds_what_it_runs() {
    let stages = stages();
    let [build, run] = &stages[..] else { panic!("two stages: {stages:?}") };
    let get = |stage: &[(String, String)], name: &str| -> String {
        let found = stage.iter().rfind(|(instruction, _)| instruction == name);
        found.unwrap_or_else(|| panic!("no {name}")).1.clone()
    };
    let version = format!("rust:{}-", env!("CARGO_PKG_RUST_VERSION"));
    assert!(get(build, "FROM").contains(&version), "the compiler is the one that the workspace asks for: {version}");
    assert!(get(build, "FROM").ends_with("bookworm AS build") && get(run, "FROM").contains(":bookworm-"), "one libc");

    // What is copied is a workspace that cargo reads.
    let place = Place::empty();
    for (_, sources) in build.iter().filter(|(instruction, _)| instruction == "COPY") {
        let mut sources: Vec<&str> = sources.split(' ').collect();
        sources.pop();
        for source in sources {
            std::os::unix::fs::symlink(root().join(source), place.path().join(source)).unwrap();
        }
    }
    let metadata = ["metadata", "--locked", "--offline", "--no-deps", "--format-version=1"];
    let told = tool("cargo", Command::new(env!("CARGO")).args(metadata).current_dir(place.path()));
    assert!(told.contains("\"name\":\"seawall\""));
    let built = ("COPY".into(), "--from=build /src/target/release/seawall /usr/bin/seawall".into());
    assert!(run.contains(&built), "{run:?}");

    let user = get(run, "USER");
    let user: u32 = user.split(':').next().unwrap().parse().expect("a number");
    assert!(user > 0);
    assert_eq!((get(run, "STOPSIGNAL").as_str(), get(run, "WORKDIR")), ("SIGTERM", get(run, "VOLUME")));
    let words = |name: &str| -> Vec<String> { serde_json::from_str(&get(run, name)).unwrap() };
    assert_eq!(words("ENTRYPOINT"), ["/usr/bin/seawall"]);
    let (etc, var) = machine(ADMIN);
    let node = started(Command::new(SEAWALL), &words("CMD"), (&etc, &var), &[]);
    assert!(var.path().join("seawall-data").is_dir(), "data is in the volume");
    assert!(node.stop().success());
    // The admin side is where it says.
    let help = place.seawall(&["status", "--help"]);
    assert!(
        get(run, "EXPOSE").split(' ').any(|port| help.out.contains(&format!("http://127.0.0.1:{port}"))),
        "{help:?}"
    );
}
