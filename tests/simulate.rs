//! `seawall simulate` and `seawall explain` as somebody types them: the same bytes twice, words that agree with
//! figures, mistakes told with their place, and a page that opens.

use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::house::{Journal, Place, Said, wait_until};
use crate::process::code;
use crate::server::{Server, ok, sick};

const CONFIG: &str = "\
listeners: [{ address: \"127.0.0.1:0\", routes: [
  { name: events, match: { path: /events, method: POST }, upstream: queue, policy: writes },
  { name: quotes, match: { path_prefix: /quotes, method: GET }, upstream: carrier, policy: reads }] }]
upstreams:
  queue: { url: \"http://127.0.0.1:3000\" }
  carrier: { url: \"http://127.0.0.1:3001\" }
policies:
  writes: { timeout: 2s, breaker: { open_for: 5s }, fallback: spool }
  reads: { timeout: 2s, try_timeout: 800ms, breaker: { window: 10s, calls_min: 100, open_for: 2s } }
";

const OUTAGE: [&str; 7] = ["simulate", "--rate", "200/s", "--for", "2m", "--fault", "60s..90s down"];

fn said(place: &Place, more: &[&str]) -> Said {
    let said = place.seawall(&[&OUTAGE[..], more].concat());
    assert_eq!((said.code, said.err.as_str()), (0, ""), "nothing to tell where nobody watches");
    said
}

#[test]
fn the_same_command_gives_the_same_bytes() {
    let place = Place::empty();
    let page = |name: &str| {
        said(&place, &["--html", name]);
        std::fs::read(place.path().join(name)).unwrap()
    };
    assert_eq!(page("a.html"), page("b.html"));
    assert_eq!(said(&place, &[]).out, said(&place, &[]).out);
    let first = said(&place, &["--json"]).out;
    assert_eq!(said(&place, &["--json"]).out, first);
    assert_ne!(said(&place, &["--json", "--seed", "8"]).out, first);
    assert!(!said(&place, &[]).out.contains('\u{1b}'), "no colours where nobody sees them");
}

/// The block of the README that begins so, without its first line if that is a command.
fn of_readme(beginning: &str) -> String {
    let readme = include_str!("../README.md");
    let from = readme.find(beginning).unwrap_or_else(|| panic!("the README has no `{beginning}`"));
    let block = &readme[from..];
    block[..block.find("```").unwrap()].to_owned()
}

/// A session to paste is only worth something while it is what comes out.
#[test]
fn the_readme_shows_what_is_printed() {
    let config = of_readme("listeners:\n  - address: 127.0.0.1:8080");
    let place = Place::empty();
    place.write("seawall.yaml", &config);
    let session = of_readme("$ seawall simulate --rate 200/s --for 2m --fault \"60s..90s hangs\"\n");
    let (_, shown) = session.split_once('\n').unwrap();
    let said = place.seawall(&["simulate", "--rate", "200/s", "--for", "2m", "--fault", "60s..90s hangs"]);
    assert_eq!((said.code, said.out.as_str()), (0, shown));
}

#[test]
fn words_and_figures_agree() {
    let place = Place::new(CONFIG);
    let route = ["--route", "events"];
    let report = said(&place, &[&route[..], &["--json"]].concat()).json();
    let summary = &report["summary"];
    let number = |key: &str| summary[key].as_f64().unwrap();
    let grouped = |number: u64| {
        if number < 1_000 { number.to_string() } else { format!("{},{:03}", number / 1_000, number % 1_000) }
    };
    let of = |value: &Value| grouped(value.as_u64().unwrap());
    let text = said(&place, &route);
    text.shows(&[
        "seawall.yaml, route events\n200 requests/s at random for 2m, seed 7\nthe dependency: 60s..90s down\n",
        &format!(
            "100 % of {} requests: {} in full, {} reduced (spool); 0 failed",
            of(&summary["offered"]),
            of(&summary["good"]),
            of(&summary["reduced"])
        ),
        &format!("{} at most; the last is delivered {:.0} s after", of(&summary["kept_max"]), number("to_empty_s")),
        &format!("opens {:.1} s after the outage begins", number("to_open_s")),
        &format!("refuses {} of {} requests", of(&summary["refused"]["breaker"]), of(&summary["offered"])),
        &format!("{:.1} s after it is over", number("to_recover_s")),
        &format!(
            "{:.2} calls reach the dependency for each request; {} retries",
            number("amplification"),
            of(&summary["retried"])
        ),
    ]);
    let rows = report["rows"].as_array().unwrap();
    let sum = |key: &str| rows.iter().map(|row| row[key].as_u64().unwrap()).sum::<u64>();
    for key in ["offered", "good", "reduced", "failed", "sent", "retried", "hedged"] {
        assert_eq!(sum(key), summary[key].as_u64().unwrap(), "{key}");
    }
    assert_eq!(rows.len(), 120);
    assert!(number("to_open_s") < 1.0 && number("to_recover_s") < 10.0, "{summary}");
    assert_eq!(
        report["scenario"]["dependency"]["faults"],
        json!([{ "from_s": 60.0, "until_s": 90.0, "what": "down" }])
    );
    assert_eq!((&report["seed"], &report["scenario"]["route"]), (&json!(7), &json!("events")));
}

#[test]
fn two_configurations_meet_the_same_traffic() {
    let place = Place::new(CONFIG);
    place.write("other.yaml", &CONFIG.replace("calls_min: 100", "calls_min: 20"));
    let compare = ["--route", "quotes", "--compare", "other.yaml"];
    let both = said(&place, &[&compare[..], &["--json"]].concat()).json();
    assert_eq!(both["a"]["summary"]["offered"], both["b"]["summary"]["offered"]);
    assert_eq!(
        [&both["a"], &both["b"]]
            .map(|side| (side["scenario"]["breaker_blind_below_per_s"].as_f64().unwrap() * 100.0).round()),
        [750.0, 83.0]
    );
    let text = said(&place, &compare);
    text.shows(&[
        "A is seawall.yaml, route quotes; B is other.yaml, route quotes",
        "B - A",
        "blind below about 7.5 requests/s",
        "blind below about 0.8 requests/s",
    ]);
}

#[test]
fn a_record_is_replayed_and_a_broken_one_told_line_by_line() {
    let place = Place::empty();
    let mut record = String::from("at,latency_ms,outcome\n");
    for n in 0..600 {
        record += &format!("{}.{:02},20,{}\n", n / 20, n % 20 * 5, if (200..400).contains(&n) { "503" } else { "ok" });
    }
    place.write("record.csv", &record);
    let report = place.seawall(&["simulate", "--traffic", "record.csv", "--json"]).json();
    assert_eq!((&report["summary"]["offered"], &report["scenario"]["lasts_s"]), (&json!(600), &json!(30.0)));
    assert!(
        report["summary"]["opened"].as_u64() >= Some(1) && report["summary"]["first_opened_s"].as_f64() > Some(10.0)
    );

    place.write("broken.csv", "at,latency_ms,outcome\n1,20,ok\n2,fast,ok\n3,20,perhaps\n4,20\n");
    let broken = place.seawall(&["simulate", "--traffic", "broken.csv"]);
    assert_eq!((broken.code, broken.out.as_str()), (1, ""));
    broken.tells(&[
        "seawall: cannot replay `broken.csv`\nbroken.csv:3:3: `fast` is not a number\n   |  2,fast,ok\n   |    ^^^^\n",
        "broken.csv:4:6: `perhaps` is no outcome; known are ok,",
        "broken.csv:5:1: 2 cells where the header has 3",
    ]);
    let missing = place.seawall(&["simulate", "--traffic", "nowhere.csv"]);
    assert_eq!(missing.code, 1);
    missing.tells(&["cannot read `nowhere.csv`"]);
}

/// A node under a little traffic is stopped; what its journal says of it is played against other guards.
#[test]
fn what_the_journal_tells_of_the_traffic_is_played() {
    let ill = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&ill);
    let server = Server::start(move |_| if of_server.load(Relaxed) { sick() } else { ok("well") });
    let (node, place) = Place::new(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: quotes, upstream: up, policy: p }}] }}]\n\
         upstreams: {{ up: {{ url: \"http://{}\" }} }}\npolicies: {{ p: {{ retry: off, breaker: off }} }}\n",
        server.address
    ))
    .node_of();
    let mut client = node.client();
    for n in 0..40 {
        ill.store(n % 4 == 0, Relaxed);
        let status = client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status;
        assert_eq!(status, if n % 4 == 0 { 503 } else { 200 });
    }
    drop(client);
    assert_eq!(code(node.stop()), 0);
    let printed = place.seawall(&["journal", "--data", "data", "--json"]);
    let journal = Journal::of(&printed.json());
    assert_eq!(journal.count("traffic_changed"), 1);
    let told = journal.first("traffic_changed");
    assert_eq!(journal.story(told), ["traffic_changed", "config_loaded", "node_started"]);
    let field = |name: &str| told["fields"][name].as_str().unwrap();
    assert_eq!((told["subject"].as_str(), field("calls"), field("failed")), (Some("route:quotes"), "40", "25%"));

    let played = |line: &[&str]| {
        place.write("journal.json", &printed.out);
        let said = place.seawall(&[&["simulate", "--journal", "journal.json", "--for", "60s"], line].concat());
        assert_eq!((said.code, said.err.as_str()), (0, ""));
        said
    };
    let report = played(&["--json"]).json();
    let rate: f64 = field("per_second").parse().unwrap();
    assert_eq!(report["scenario"]["traffic"]["pieces"], json!([{ "from_s": 0.0, "per_second": rate }]));
    assert_eq!(report["scenario"]["dependency"]["course"][0]["failure_rate"], 0.25);
    // Poisson and binomial counts lie within five standard deviations of what is to be expected.
    let count = |key: &str| report["summary"][key].as_f64().unwrap();
    let (offered, failed) = (count("offered"), count("failed"));
    assert!((offered - rate * 60.0).abs() < 5.0 * (rate * 60.0).sqrt(), "{offered} of {rate}/s");
    assert!((failed / offered - 0.25).abs() < 5.0 * (0.25 * 0.75 / offered).sqrt() + 1.0 / offered, "{failed}");

    // Through a pipe as well, with a fault on top.
    let fault = ["--fault", "20s..30s down"];
    played(&fault).shows(&["one recorded rate, ", "a median of ", "25% of its calls fail", "20s..30s down"]);
    let arguments = [&["simulate", "--journal", "-", "--for", "60s"][..], &fault].concat();
    let mut command = place.command(&arguments);
    let mut piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(printed.out.as_bytes()).unwrap();
    let out = piped.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), played(&fault).out);

    let unknown =
        place.seawall(&["simulate", "--config", "nowhere.yaml", "--journal", "journal.json", "--route", "events"]);
    assert_eq!(unknown.code, 1);
    unknown.tells(&["`journal.json` tells nothing of the traffic of route `events`; it does of `quotes`"]);
    place.write("broken.json", &printed.out.replace("\"failed\": \"25%\"", "\"failed\": \"often\""));
    let broken = place.seawall(&["simulate", "--journal", "broken.json"]);
    assert_eq!((broken.code, broken.out.as_str()), (1, ""));
    broken
        .tells(&["cannot play `broken.json`\nbroken.json:", "the share of failed calls: `often` is not a percentage"]);
}

#[test]
fn a_route_that_is_not_there_is_told_with_those_that_are() {
    let place = Place::new(CONFIG);
    for command in [&["explain", "quote"][..], &["simulate", "--route", "quote"]] {
        let said = place.seawall(command);
        assert_eq!((said.code, said.out.as_str()), (2, ""));
        said.tells(&["`seawall.yaml` has no route `quote`; did you mean `quotes`? There are `events`, `quotes`"]);
    }
    let which = place.seawall(&["simulate"]);
    assert_eq!(which.code, 2);
    which.tells(&["has several routes; say which with `--route`: `events`, `quotes`"]);
    place.write("seawall.yaml", "listeners: []\nfoo: 1\n");
    let broken = place.seawall(&["explain", "events"]);
    assert_eq!(broken.code, 1);
    broken.tells(&["cannot use `seawall.yaml`", "unknown key `foo`"]);
}

#[test]
fn a_route_is_explained_in_the_order_of_its_keepers() {
    let place = Place::new(CONFIG);
    let explained = place.seawall(&["explain", "events"]);
    assert_eq!(explained.code, 0);
    explained.shows(&[
        "events: POST, /events, to queue\n",
        "For each try\n  4  breaker         is the upstream thought well?\n",
        "  1  spool           a write is made durable",
        "calls   6 of its upstream for one request: 3 tries",
        "time    2s, where `timeout` cuts it; 1s for a place + 3 tries of 2s + 50ms waiting + 100ms waiting would be 7.15s",
        "tries   1 of 3 begin when each takes all its time; the last of them has 1s",
    ]);
    let json = place.seawall(&["explain", "events", "--json"]).json();
    assert_eq!((&json["worst_case"]["calls"], &json["worst_case"]["takes_ms"]), (&json!(6), &json!(2_000.0)));
}

/// A phone and a desk, by day and by night: nothing is cut off, nothing is fetched, every plot says what it shows.
#[test]
fn the_page_opens_in_a_browser() {
    let place = Place::new(CONFIG);
    said(&place, &["--route", "events", "--compare", "seawall.yaml", "--html", "page.html"]);
    let browser = Browser::start();
    browser.open(&format!("file://{}", place.path().join("page.html").display()));
    assert_eq!(
        browser.eval("document.title"),
        "Seawall simulation: seawall.yaml, route events beside seawall.yaml, route events"
    );
    assert_eq!(browser.eval("document.querySelectorAll('section').length"), 2);
    assert!(browser.text("dl").contains("after the outage begins"));
    let untold = "[...document.querySelectorAll('svg')].filter(it => !document.getElementById(it.getAttribute('aria-labelledby'))?.textContent.trim()).length";
    assert_eq!(browser.eval(untold), 0);
    let background = || browser.eval("getComputedStyle(document.body).backgroundColor");
    browser.scheme("light");
    let day = background();
    browser.scheme("dark");
    assert_ne!(background(), day, "it knows the night");
    for (width, height) in [(320, 568), (1_280, 800)] {
        browser.screen(width, height);
        wait_until("the screen is that wide", || browser.eval("window.innerWidth") == width);
        assert_eq!(browser.eval("document.documentElement.scrollWidth <= window.innerWidth"), true, "at {width}");
        let flat = "[...document.querySelectorAll('svg')].filter(it => it.getBoundingClientRect().width < 150).length";
        assert_eq!(browser.eval(flat), 0, "at {width}");
        let beside =
            "new Set([...document.querySelectorAll('section')].map(it => it.getBoundingClientRect().top)).size";
        assert_eq!(browser.eval(beside), if width > 1_000 { 1 } else { 2 }, "side by side where there is room");
    }
    assert_eq!(browser.eval("performance.getEntriesByType('resource').length"), 0, "nothing is fetched");
    assert_eq!(browser.complaints(), [] as [Value; 0], "nothing on the console");
}
