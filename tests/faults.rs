//! Faults on the calls of a running node, as whoever breaks things meets them: the command line, real clients, a lease
//! that outlives nobody, a switch that ends all.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::house::{Client, Node, Place, Said, post, wait_for, wait_until};
use crate::process::{Process, code};
use crate::server::{Server, ok};

/// One route `api` to one upstream, under these rules; faults as said.
fn place(server: &Server, faults: &str, rules: &str) -> Place {
    Place::new(&config(server, faults, rules))
}

fn config(server: &Server, faults: &str, rules: &str) -> String {
    format!(
        "listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: api, upstream: up, policy: rules }}] }}]\n\
         upstreams: {{ up: {{ url: \"http://{}\" }} }}\n\
         policies:\n  rules:\n{rules}{faults}\n",
        server.address
    )
}

const ALL: &str = "faults: { share_max: 100% }";
const PLAIN: &str = "    timeout: 20s\n    try_timeout: 300ms\n    retry: off\n    breaker: off\n";

/// A node and the folder its commands are typed in.
struct House {
    node: Node,
    place: Place,
    admin: String,
}

impl House {
    fn new(server: &Server, faults: &str, rules: &str) -> Self {
        Self::of(place(server, faults, rules))
    }

    fn of(place: Place) -> Self {
        let node = place.node();
        let admin = format!("http://{}", node.admin);
        Self { node, place, admin }
    }

    fn arguments<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        [&["fault"], words, &["--admin", self.admin.as_str()]].concat()
    }

    fn fault(&self, words: &[&str]) -> Said {
        self.place.seawall(&self.arguments(words))
    }

    /// Places a fault on all of `api`, and tells its name.
    fn put(&self, kind: &[&str]) -> String {
        let words = [&["place", "--route", "api", "--every", "1", "--ttl", "5m", "--json"], kind].concat();
        let said = self.fault(&words);
        assert_eq!(said.code, 0, "{said:?}");
        said.json()["id"].as_str().unwrap().to_owned()
    }

    fn remove(&self, id: &str) {
        let said = self.fault(&["rm", id]);
        assert_eq!(said.code, 0, "{said:?}");
        said.shows(&[&format!("fault {id} is gone; requests touched: ")]);
    }

    /// `fault place --hold`, once its fault is there.
    fn hold(&self, ttl: &str) -> (Process, Value) {
        let words =
            ["place", "--route", "api", "--abort", "503", "--every", "1", "--ttl", ttl, "--owner", "o", "--hold"];
        let process = Process::start(&mut self.place.command(&self.arguments(&words)));
        let held = wait_for("it is placed", || self.standing().pop());
        (process, held)
    }

    fn standing(&self) -> Vec<Value> {
        self.node.api("/api/faults")["faults"].as_array().unwrap().clone()
    }
}

#[test]
fn each_kind_seen_from_a_client() {
    let long = "x".repeat(4 << 20);
    let body = long.clone();
    let server = Server::start(move |seen| if seen.line().contains("/long") { ok(&body) } else { ok("well") });
    let house = House::new(&server, ALL, PLAIN);
    assert_eq!(house.node.get("/").header("seawall-fault"), None);
    // What is typed, the status, what `Proxy-Status` says, whether the upstream gets it.
    let kinds: [(&[&str], u16, &str, bool); 14] = [
        (&["--latency", "60ms", "--jitter", "20ms"], 200, "", true),
        (&["--abort", "418"], 418, "", false),
        (&["--refuse"], 502, "error=connection_refused", false),
        (&["--hang"], 504, "error=http_response_timeout", false),
        (&["--swallow"], 502, "error=connection_terminated", true),
        (&["--cut"], 502, "error=http_response_incomplete", true),
        (&["--head-latency", "60ms", "--jitter", "20ms", "--spread", "tail"], 200, "", true),
        (&["--body-latency", "60ms"], 200, "", true),
        (&["--bandwidth", "50B"], 200, "", true),
        (&["--short-body"], 200, "", true),
        (&["--long-body"], 504, "error=http_response_timeout", true),
        (&["--corrupt", "100%"], 200, "", true),
        (&["--huge-head", "1MiB"], 502, "error=http_protocol_error", true),
        (&["--garbled-head"], 502, "error=http_protocol_error", true),
    ];
    for (kind, status, told, arrives) in kinds {
        let id = house.put(kind);
        let (before, begin) = (server.count(), Instant::now());
        let answer = house.node.get("/");
        let took = begin.elapsed();
        assert_eq!((answer.status, answer.must("seawall-fault")), (status, id.clone()), "{kind:?}");
        assert!(told.is_empty() || answer.must("proxy-status").contains(told), "{kind:?}: {}", answer.head);
        assert_eq!(server.count() - before, usize::from(arrives), "{kind:?}");
        let least = match kind[0] {
            "--latency" | "--head-latency" | "--body-latency" => 60,
            "--hang" | "--long-body" => 300,
            // Four bytes.
            "--bandwidth" => 80,
            _ => 0,
        };
        assert!(took >= Duration::from_millis(least), "{kind:?}: {took:?}");
        let sample =
            format!("seawall_fault_requests_total{{fault=\"{id}\",kind=\"{}\"}}", kind[0][2..].replace('-', "_"));
        let metrics = house.node.metrics();
        assert_eq!((metrics.get(&sample), metrics.get("seawall_faults_active")), (1, 1));
        house.remove(&id);
        assert_eq!(house.node.get("/").header("seawall-fault"), None, "{kind:?}");
    }
    let id = house.put(&["--cut"]);
    let cut = house.node.client().send(b"GET /long HTTP/1.1\r\nHost: h\r\n\r\n").rest();
    let (head, body) = cut.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains(&format!("seawall-fault: {id}")), "{head}");
    assert!(body.len() < long.len(), "and its connection ends before its body");
    assert_eq!(house.node.metrics().get("seawall_faulted_total{route=\"api\"}"), 15);
    house.node.stop();
}

/// The upstream has done it, its answer is lost: the same key goes there again, and the account is right.
#[test]
fn a_swallowed_write_is_sent_again_with_its_key_and_counted_once() {
    let server = Server::start(|_| ok("done"));
    let rules = format!("{PLAIN}    fallback: spool\n");
    let house = House::new(&server, ALL, &rules);
    let said = house.fault(&["place", "--upstream", "up", "--swallow", "--first", "1", "--ttl", "1m"]);
    said.shows(&["is in force, seed ", "gone at 20"]);
    let kept = house.node.post("/", "", "x");
    assert_eq!(kept.status, 202, "{kept:?}");
    assert!(kept.must("seawall-fault").starts_with('f'));
    wait_until("it is delivered", || house.node.spooled() == 0);
    let keys: Vec<_> = server.seen().iter().map(|seen| seen.header("idempotency-key")).collect();
    assert_eq!((keys.len(), &keys[0]), (2, &keys[1]));
    let totals = house.node.api("/api/ledger")["totals"].clone();
    assert_eq!((&totals["accepted"], &totals["lost"], &totals["indeterminate"]), (&json!(1), &json!(0), &json!(0)));
    let journal = house.node.journal();
    let story = journal.story(journal.first("degraded_started"));
    assert_eq!(story, ["degraded_started", "calls_failing", "fault_placed", "config_loaded", "node_started"]);
    house.node.stop();
}

#[test]
fn a_breaker_that_a_fault_trips_names_it() {
    let server = Server::start(|_| ok("well"));
    let rules = "    retry: off\n    breaker: { window: 10 calls, calls_min: 5, open_for: 100ms, open_for_max: 100ms, half_open_calls: 1 }\n";
    let house = House::new(&server, ALL, rules);
    let id = house.put(&["--abort", "503"]);
    let refused = house.node.refused_by_breaker("/");
    assert_eq!(refused.header("seawall-fault"), None, "a breaker that is open sends nothing that could be touched");
    let journal = house.node.journal();
    assert_eq!(journal.story(journal.first("breaker_opened"))[..2], ["breaker_opened", "fault_placed"]);
    house.remove(&id);
    wait_until("it is well again", || house.node.get("/").status == 200 && house.node.breaker("api") == "closed");
    house.node.stop();
}

#[test]
fn a_held_fault_stays_until_its_holder_is_stopped() {
    let server = Server::start(|_| ok("well"));
    let house = House::new(&server, ALL, PLAIN);
    let (mut holder, held) = house.hold("900ms");
    let id = held["id"].as_str().unwrap();
    wait_until("it is renewed again and again", || house.node.journal().count("fault_renewed") >= 4);
    assert_eq!(house.standing().len(), 1, "longer than its own time");
    assert_eq!(house.node.get("/").must("seawall-fault"), id);
    let listed = house.fault(&["ls"]);
    listed.shows(&["ID", "abort 503", "route api", "one in 1", id]);
    let stranger = house.fault(&["renew", id, "--ttl", "1m", "--owner", "p"]);
    assert_eq!(stranger.code, 1);
    stranger.tells(&["is held by `o`"]);
    holder.signal(Signal::INT);
    assert_eq!(code(holder.wait()), 0, "{:?}", holder.lines());
    assert_eq!((house.standing().len(), house.node.get("/").status), (0, 200));
    let journal = house.node.journal();
    let ended = journal.last("fault_ended");
    assert_eq!((&ended["fields"]["why"], &ended["subject"]), (&json!("removed"), &json!(format!("fault:{id}"))));
    assert_eq!(journal.story(ended), ["fault_ended", "fault_placed", "config_loaded", "node_started"]);
    assert_eq!(journal.story(journal.last("fault_renewed"))[..2], ["fault_renewed", "fault_placed"]);
    house.fault(&["ls"]).shows(&["no faults"]);
    house.node.stop();
}

/// Whoever broke it is gone without a word: so is the fault, when its time is over.
#[test]
fn a_fault_whose_holder_was_killed_is_gone_within_its_time() {
    let server = Server::start(|_| ok("well"));
    let house = House::new(&server, ALL, PLAIN);
    let (mut holder, _) = house.hold("1500ms");
    wait_until("it is renewed", || house.node.journal().has("fault_renewed"));
    holder.kill();
    let left = house.standing().first().map_or(0.0, |fault| fault["left_s"].as_f64().unwrap());
    assert!(left <= 1.5, "{left}");
    wait_until("nothing is touched any more", || house.node.get("/").status == 200);
    assert!(house.standing().is_empty());
    wait_until("the journal knows", || house.node.journal().has("fault_ended"));
    let journal = house.node.journal();
    assert_eq!(journal.last("fault_ended")["fields"]["why"], "expired");
    let at = |kind: &str| journal.last(kind)["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let lasted = at("fault_ended").duration_since(at("fault_renewed"));
    // The journal may hear a little later on a busy machine; a request does not.
    assert!((1_400..6_500).contains(&lasted.as_millis()), "{lasted:?}");
    house.node.stop();
}

/// No fault is remembered by anybody: not across a restart, where its name means nothing any more.
#[test]
fn a_node_that_starts_again_has_no_faults() {
    let server = Server::start(|_| ok("well"));
    let mut house = House::new(&server, ALL, PLAIN);
    let old = house.put(&["--refuse"]);
    assert_eq!(house.node.get("/").status, 502);
    house.node.kill();
    house.node = house.place.node();
    house.admin = format!("http://{}", house.node.admin);
    assert_eq!((house.node.get("/").status, house.standing().len()), (200, 0));
    assert_ne!(house.put(&["--refuse"]), old);
    let renewed = house.fault(&["renew", &old, "--ttl", "1m"]);
    assert_eq!(renewed.code, 1);
    renewed.tells(&[&format!("there is no fault `{old}`")]);
    house.node.stop();
}

#[test]
fn the_kill_switch_ends_all_and_keeps_all_out() {
    let server = Server::start(|_| ok("well"));
    let rules = "    timeout: 60s\n    try_timeout: 60s\n    retry: off\n    breaker: off\n";
    let house = House::new(&server, ALL, rules);
    let (mut holder, _) = house.hold("1m");
    let hang =
        house.fault(&["place", "--route", "api", "--hang", "--path-prefix", "/hang", "--first", "1", "--ttl", "1m"]);
    assert_eq!(hang.code, 0, "{hang:?}");
    // The older one answers first; so it goes before the other is met.
    let held = house.standing()[0]["id"].as_str().unwrap().to_owned();
    house.remove(&held);
    let mut waiting = house.node.client();
    waiting.send(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("it hangs", || house.standing()[0]["tries"] == 1);
    let killed = house.fault(&["kill", "--reason", "customers notice"]);
    assert_eq!(killed.code, 0, "{killed:?}");
    killed.shows(&["is gone; requests touched: 1", "the kill switch is on"]);
    assert_eq!(waiting.next().map(|answer| answer.status), Some(200), "who hung goes on at once");
    assert_eq!(house.node.metrics().get("seawall_faults_killed"), 1);
    let refused = house.fault(&["place", "--route", "api", "--refuse", "--first", "1", "--ttl", "1m"]);
    assert_eq!(refused.code, 1);
    refused.tells(&["the kill switch is on (`customers notice`)"]);
    house.fault(&["ls"]).shows(&["the kill switch is on (customers notice)"]);
    house.fault(&["release", "--reason", "over"]).shows(&["faults can be placed again"]);
    house.put(&["--refuse"]);
    let journal = house.node.journal();
    assert_eq!(journal.story(journal.first("faults_released"))[..2], ["faults_released", "faults_killed"]);
    assert_eq!(journal.first("faults_killed")["fields"]["reason"], "customers notice");
    // Its fault was taken away behind its back: it says so when it next looks, and is no success.
    holder.signal(Signal::TERM);
    assert_eq!(code(holder.wait()), 1);
    assert!(holder.lines().join("\n").contains("cannot take fault"), "{:?}", holder.lines());
    house.node.stop();
}

#[test]
fn a_holder_whose_fault_is_killed_says_so() {
    let server = Server::start(|_| ok("well"));
    let house = House::new(&server, ALL, PLAIN);
    let (mut holder, held) = house.hold("600ms");
    house.fault(&["kill"]);
    assert_eq!(code(holder.wait()), 1);
    let said = holder.lines().join("\n");
    assert!(said.contains(&format!("fault `{}` is not held any more", held["id"].as_str().unwrap())), "{said}");
    house.node.stop();
}

#[test]
fn a_share_touches_its_share_and_the_same_seed_the_same_requests() {
    let server = Server::start(|_| ok("well"));
    let house = House::new(&server, "faults: on", PLAIN);
    let run = || {
        let words =
            ["place", "--route", "api", "--abort", "500", "--share", "25%", "--seed", "42", "--ttl", "1m", "--json"];
        let placed = house.fault(&words);
        let id = placed.json()["id"].as_str().unwrap().to_owned();
        // On one connection: one worker, one order.
        let mut client = house.node.client();
        let statuses: Vec<u16> = (0..200).map(|_| client.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status).collect();
        house.remove(&id);
        statuses
    };
    let first = run();
    assert_eq!(first, run());
    let touched = first.iter().filter(|status| **status == 500).count();
    assert!((15..=90).contains(&touched), "{touched} of 200");
    house.node.stop();
}

#[test]
fn only_the_scope_is_touched() {
    let server = Server::start(|_| ok("well"));
    let house = House::new(&server, ALL, PLAIN);
    let scope = ["--method", "POST", "--path-prefix", "/orders/", "--header", "X-Tenant=acme"];
    house.put(&[&["--abort", "503"], scope.as_slice()].concat());
    let status = |request: &str| house.node.client().ask(request).status;
    assert_eq!(status(&post("/orders/1", "x-tenant: acme\r\n", "x")), 503);
    for other in [
        post("/orders/1", "x-tenant: other\r\n", "x"),
        post("/orders", "x-tenant: acme\r\n", "x"),
        "GET /orders/1 HTTP/1.1\r\nHost: h\r\nX-Tenant: acme\r\n\r\n".into(),
    ] {
        assert_eq!(status(&other), 200, "{other}");
    }
    for own in ["/api/status", "/api/faults", "/healthz", "/metrics"] {
        let answer = house.node.admin_get(own);
        assert_eq!((answer.status, answer.header("seawall-fault")), (200, None));
    }
    house.node.stop();
}

/// A route of connections beside one of calls, and a zone beside one's own.
#[test]
fn whatever_is_typed_comes_to_the_node() {
    let server = Server::start(|_| ok("well"));
    let house = House::of(Place::new(&format!(
        "zone: here\nzones: [here, there]\n\
         listeners:\n\
         - {{ address: \"127.0.0.1:0\", routes: [{{ name: api, upstream: up }}] }}\n\
         - {{ address: \"127.0.0.2:0\", protocol: tcp, upstream: up, name: bytes }}\n\
         upstreams:\n  up: {{ endpoints: [{{ address: \"{0}\", zone: here, version: v1 }}, {{ address: \"[::1]:1\", zone: there }}] }}\n\
         faults: {{ share_max: 100%, deny: [{{ path_prefix: /pay/ }}] }}\n",
        server.address
    )));
    let endpoint = server.address.to_string();
    let calls = ["--route", "api", "--first", "1"];
    let bytes = ["--route", "bytes", "--first", "1"];
    let narrow = [
        "--upstream",
        "up",
        "--endpoint",
        &endpoint,
        "--zone",
        "here",
        "--version",
        "v1",
        "--listener",
        "127.0.0.1:0",
        "--source",
        "10.0.0.0/8",
        "--path",
        "/x",
        "--connections",
        "10%",
        "--refuse",
        "--after",
        "1s",
        "--lasts",
        "2s",
        "--flap",
        "500ms/2s",
        "--abort-when",
        "20%",
        "--abort-over",
        "5s",
    ];
    let cases: [(&[&str], &[&str], Value); 16] = [
        (&calls, &["--grpc", "14"], json!({ "grpc": { "code": 14 } })),
        (&calls, &["--duplicate"], json!("duplicate")),
        (&calls, &["--abort", "503", "--retry-at", "-2h"], json!({ "abort": { "status": 503, "retry_at": "-2h" } })),
        (
            &calls,
            &["--abort", "503", "--retry-after", "2m"],
            json!({ "abort": { "status": 503, "retry_after": "120s" } }),
        ),
        (
            &bytes,
            &["--tcp-latency", "20ms", "--jitter", "5ms", "--way", "both"],
            json!({ "tcp_latency": { "delay": "20ms", "jitter": "5ms", "way": "both" } }),
        ),
        (&bytes, &["--tcp-bandwidth", "10KiB"], json!({ "tcp_bandwidth": { "per_second": "10KiB", "way": "down" } })),
        (&bytes, &["--slow-close", "2s"], json!({ "slow_close": { "delay": "2s", "way": "down" } })),
        (&bytes, &["--black-hole", "--way", "up"], json!({ "black_hole": { "after": null, "way": "up" } })),
        (&bytes, &["--reset"], json!({ "reset": { "after": "0s", "way": "down" } })),
        (&bytes, &["--half-close", "--way", "up"], json!({ "half_close": { "after": "0s", "way": "up" } })),
        (
            &bytes,
            &["--slicer", "10B", "--pause", "1ms"],
            json!({ "slicer": { "size": "10B", "variation": "0B", "pause": "1ms", "way": "down" } }),
        ),
        (&bytes, &["--limit-data", "1KiB"], json!({ "limit_data": { "size": "1KiB", "way": "down" } })),
        (&bytes, &["--tcp-corrupt", "1%"], json!({ "tcp_corrupt": { "bytes": "1%", "way": "down" } })),
        (&bytes, &["--chunk-loss", "10%"], json!({ "chunk_loss": { "chunks": "10%", "way": "down" } })),
        (&["--zone", "there"], &["--zone-cut"], json!({ "zone_cut": { "way": "both" } })),
        (&narrow, &[], json!("refuse")),
    ];
    for (on, what, wanted) in cases {
        let placed = house.fault(&[&["place", "--ttl", "1m", "--json"], on, what].concat());
        assert_eq!((placed.code, &placed.json()["kind"]), (0, &wanted), "{placed:?}");
        let told = placed.json();
        let listed = house.fault(&["ls"]);
        listed.shows(&[wanted.as_str().unwrap_or_else(|| wanted.as_object().unwrap().keys().next().unwrap())]);
        if what.is_empty() {
            listed.shows(&[
                "upstream up, endpoint ",
                "zone here, version v1",
                "source 10.0.0.0/8",
                "10% of connections",
            ]);
            assert_eq!((&told["flap"], &told["after"]), (&json!({ "on": "500ms", "off": "2s" }), &json!("1s")));
            assert_eq!(told["abort_when"], json!({ "failed": "20%", "over": "5s", "requests_min": 20 }));
        }
        house.remove(told["id"].as_str().unwrap());
    }
    let id = house.put(&["--abort", "503"]);
    assert_eq!(house.node.get("/").must("seawall-fault"), id);
    assert_eq!(house.node.get("/pay/1").header("seawall-fault"), None, "denied in the configuration");
    house.node.stop();
}

#[test]
fn where_faults_are_off_it_is_said_what_to_write() {
    let server = Server::start(|_| ok("well"));
    for faults in ["", "faults: off"] {
        let house = House::new(&server, faults, PLAIN);
        for words in [
            &["place", "--route", "api", "--refuse", "--first", "1", "--ttl", "1m"][..],
            &["ls"],
            &["rm", "f1-1"],
            &["kill"],
        ] {
            let refused = house.fault(words);
            assert_eq!(refused.code, 1, "{refused:?}");
            refused.tells(&["faults are off on this node", "faults: on"]);
        }
        assert_eq!(house.node.get("/").status, 200);
        house.node.stop();
    }
}

#[test]
fn faults_are_switched_on_and_off_while_the_node_runs() {
    let server = Server::start(|_| ok("well"));
    let rules = "    timeout: 50s\n    try_timeout: 50s\n    retry: off\n    breaker: off\n";
    let house = House::new(&server, "", rules);
    let take_in = |faults: &str| {
        house.place.configure(&config(&server, faults, rules));
        let said = house.place.seawall(&["reload", "--admin", &house.admin]);
        assert_eq!(said.code, 0, "{said:?}");
        said.shows(&["faults"]);
    };
    take_in(ALL);
    let hang = house.put(&["--hang"]);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| house.node.get("/").status);
        wait_until("it hangs", || house.standing()[0]["requests"] == 1);
        take_in("faults: off");
        assert_eq!(waits.join().unwrap(), 200, "whoever hung goes on");
    });
    house.fault(&["ls"]).tells(&["faults are off on this node"]);
    let refused = house.fault(&["place", "--route", "api", "--refuse", "--first", "1", "--ttl", "1m"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert_eq!(house.node.get("/").status, 200);
    let ended = house.node.journal().last("fault_ended").clone();
    assert_eq!((&ended["subject"], &ended["fields"]["why"]), (&json!(format!("fault:{hang}")), &json!("reconfigured")));

    // On again nothing is there, and what is placed is gone with the limits it was placed under.
    take_in(ALL);
    assert_eq!(house.standing(), [] as [Value; 0]);
    house.put(&["--abort", "503"]);
    assert_eq!(house.node.get("/").status, 503);
    take_in("faults: { share_max: 50% }");
    assert_eq!((house.standing().len(), house.node.get("/").status), (0, 200));
    house.node.stop();
}

#[test]
fn every_mistake_is_told_and_nothing_is_placed() {
    let server = Server::start(|_| ok("well"));
    let house = House::new(&server, "faults: { share_max: 20%, ttl_max: 1m, count_max: 1 }", PLAIN);
    let good = ["place", "--route", "api", "--refuse", "--first", "1", "--ttl", "30s"];
    // In place of the words at this position: others.
    let instead = |at: usize, words: &[&'static str]| {
        let mut all = good.to_vec();
        all.splice(at..at + 2, words.iter().copied());
        all
    };
    let cases = [
        (instead(1, &["--route", "apo"]), 1, "there is no route `apo` (allowed: api)"),
        (instead(1, &["--upstream", "down"]), 1, "there is no upstream `down` (allowed: up)"),
        (instead(1, &[]), 2, "--route"),
        (instead(4, &["--share", "21%"]), 1, "more than 0%, at most 20%"),
        (instead(4, &["--share", "0.2"]), 2, "needs a unit"),
        (instead(4, &["--every", "4"]), 1, "(allowed: 5 or more)"),
        (instead(4, &["--first", "0"]), 1, "1 to 1000"),
        (instead(4, &[]), 2, "--share"),
        (instead(6, &["--ttl", "61s"]), 1, "more than 0s, at most 1m"),
        (instead(6, &["--ttl", "0s"]), 1, "more than 0s, at most 1m"),
        (instead(6, &[]), 2, "--ttl"),
        (instead(6, &["--ttl", "30s", "--hang"]), 2, "cannot be used with"),
        (instead(6, &["--ttl", "30s", "--jitter", "1s"]), 2, "cannot be used with"),
        (instead(6, &["--ttl", "30s", "--header", "x"]), 2, "is not a header"),
        (instead(6, &["--ttl", "30s", "--path-prefix", "x"]), 1, "is not the beginning of a path"),
    ];
    for (words, code, told) in cases {
        let refused = house.fault(&words);
        assert_eq!(refused.code, code, "{words:?}: {refused:?}");
        refused.tells(&[told]);
    }
    assert!(house.standing().is_empty());
    assert_eq!(house.fault(&good).code, 0);
    let same = house.fault(&good);
    same.tells(&["does the same to the same requests"]);
    let more = house.fault(&[&good[..3], &["--hang"], &good[4..]].concat());
    more.tells(&["1 faults lie here already"]);
    let unknown = house.node.admin_post("/api/faults", &json!({ "owner": "o", "percent": 3 }));
    assert_eq!((unknown.status, &unknown.json()["field"]), (400, &json!("percent")));
    let foreign = format!(
        "POST /api/faults/kill HTTP/1.1\r\nHost: {0}\r\nOrigin: http://evil.example\r\nContent-Length: 0\r\n\r\n",
        house.node.admin
    );
    assert_eq!(Client::new(house.node.admin).ask(&foreign).status, 403, "no page of another site moves this lever");
    assert_eq!(house.standing().len(), 1);
    house.node.stop();
}
