//! Clients of HTTP/2 that mean no good, scripted frame by frame with PyPI's `h2` and `hyperframe`, beside others that
//! only want to be served: what becomes of the first is what RFC 9113 asks for, it is counted, and the others notice
//! nothing.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::house::{Client, Held, Node, Place, wait_until};
use crate::process::{Process, code};
use crate::script::Script;
use crate::server::{Do, Server, ok};

const HOSTILE: Script = Script { tools: "h2", file: "hostile.py" };

/// A node, and an upstream that answers at once, at length or never.
pub fn world(limits: &str) -> (Server, Node, Place) {
    let (large, huge) = ("w".repeat(512 << 10), "w".repeat(6 << 20));
    let server = Server::start(move |seen| match seen.line().split(' ').nth(1) {
        Some("/hang") => Do::Hang,
        Some("/large") => ok(&large),
        Some("/huge") => ok(&huge),
        _ => ok("small"),
    });
    let (node, place) = Place::new(&format!(
        "limits: {{ header_bytes: 16KiB, {limits} }}\n\
         listeners: [{{ address: \"127.0.0.1:0\", routes: [\
         {{ name: drip, match: {{ path: /drip }}, upstream: up, policy: hasty }}, \
         {{ name: api, upstream: up, policy: patient }}] }}]\n\
         upstreams: {{ up: {{ url: \"http://{}\", connections: 2000 }} }}\n\
         policies:\n  patient: {{ timeout: 60s, try_timeout: 60s, breaker: off, retry: off }}\n  \
         hasty: {{ timeout: 2s, try_timeout: 2s, breaker: off, retry: off }}\n",
        server.address
    ))
    .node_of();
    (server, node, place)
}

/// What is counted of those who are not served, by reason.
pub fn rejected(node: &Node) -> BTreeMap<String, u64> {
    let reason = |line: &str| {
        let (reason, count) = line.strip_prefix("seawall_rejected_total{reason=\"")?.split_once("\"} ")?;
        Some((reason.to_owned(), count.parse().ok()?))
    };
    node.metrics().0.lines().filter_map(reason).collect()
}

/// Memory of a process that is its own, in KiB, and how many descriptors it has.
pub fn holds(node: &Node) -> (u64, u64) {
    let held = Held::by(&node.process);
    (held.own_memory_kib, held.descriptors())
}

/// Clients who only want to be served, by HTTP/1 and HTTP/2, for as long as it lasts.
pub struct Honest {
    stop: Arc<AtomicBool>,
    lines: Option<JoinHandle<usize>>,
    frames: Process,
}

impl Honest {
    pub fn begin(node: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, address) = (Arc::clone(&stop), node.address());
        let lines = std::thread::spawn(move || {
            let mut served = 0;
            while !stopped.load(Relaxed) {
                let mut client = Client::new(address);
                for _ in 0..20 {
                    let answer = client.ask("GET /honest HTTP/1.1\r\nHost: h\r\n\r\n");
                    assert_eq!((answer.status, answer.body.as_str()), (200, "small"), "{answer:?}");
                    served += 1;
                }
            }
            served
        });
        let frames = Process::start(HOSTILE.command().args(["honest", &address.to_string()]));
        wait_until("all are at work", || frames.lines().iter().any(|line| line == "begins"));
        Self { stop, lines: Some(lines), frames }
    }

    /// Panics unless each was served, every time.
    pub fn end(mut self) {
        self.stop.store(true, Relaxed);
        let by_lines = self.lines.take().unwrap().join().expect("every answer was right");
        self.frames.signal(Signal::TERM);
        assert_eq!(code(self.frames.wait()), 0, "{:?}", self.frames.lines());
        let told: Value = serde_json::from_str(self.frames.lines().last().unwrap()).unwrap();
        assert_eq!(told["failed"], json!([]), "{told}");
        assert!(by_lines > 0 && told["served"].as_u64() > Some(0), "{by_lines}, {told}");
    }
}

/// What must become of an attack.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The connection ends by a `GOAWAY` with this code.
    Ended(&'static str),
    /// The connection ends without a word: nothing can be said, or nobody listens.
    Cut,
    /// The stream is reset; the request behind it is answered.
    Reset,
    /// It is answered so, and so is the request behind it, with 200.
    Answered(&'static str),
    /// All of it is answered so, and the connection goes on.
    AllAnswered(&'static str),
    /// So many answers are begun and taken back, all others are whole, and the connection goes on.
    TakenBack(u64),
}
use Fate::{AllAnswered, Answered, Cut, Ended, Reset, TakenBack};

const CALM: Fate = Ended("ENHANCE_YOUR_CALM");
const PROTOCOL: Fate = Ended("PROTOCOL_ERROR");

fn attack(node: &Node, name: &str, fate: Fate, reason: &str) {
    let before = rejected(node);
    let output = HOSTILE.command().args([name, &node.address().to_string()]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(code(output.status), 0, "{name}: {errors}");
    let did: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{name}: {error}: {errors}"));
    let is_so = match fate {
        Ended(code) => did["closed"] == true && did["goaway"] == code,
        Cut => did["closed"] == true && did["goaway"].is_null(),
        Reset => did["resets"] == json!({ "PROTOCOL_ERROR": 1 }) && did["statuses"] == json!({ "200": 1 }),
        Answered("200") => did["resets"] == json!({}) && did["statuses"] == json!({ "200": 2 }),
        Answered(status) => did["statuses"] == json!({ status: 1, "200": 1 }),
        TakenBack(count) => {
            let all_well = did["statuses"].as_object().unwrap().keys().eq(["200"]);
            did["resets"] == json!({ "CANCEL": count }) && all_well && did["goaway"].is_null()
        }
        AllAnswered(status) => did["statuses"].as_object().unwrap().keys().eq([status]) && did["goaway"].is_null(),
    };
    assert!(is_so, "{name}: {fate:?}: {did}");
    if !matches!(fate, Ended(_) | Cut) {
        assert_eq!(did["closed"], false, "{name}: {did}");
    }
    let more = || -> BTreeMap<String, u64> {
        let after = rejected(node).into_iter();
        after.map(|(reason, count)| (reason.clone(), count - before[&reason])).filter(|(_, more)| *more > 0).collect()
    };
    if !reason.is_empty() {
        wait_until(&format!("{name} is counted as {reason}"), || more().contains_key(reason));
    }
    // Streams that broke on the way to the end of a connection, and their bodies, count too.
    let others =
        more().into_keys().find(|other| other != reason && !["h2_stream", "body_cut"].contains(&other.as_str()));
    assert_eq!(others, None, "{name}: {did}");
}

/// All of them one after the other; then everything is given back.
fn attacks(table: &[(&str, Fate, &str)], limits: &str) -> (Server, Node, Place) {
    let (server, node, place) = world(limits);
    assert_eq!(node.get("/large").body.len(), 512 << 10);
    let (memory, files) = holds(&node);
    let honest = Honest::begin(&node);
    for (name, fate, reason) in table {
        attack(&node, name, *fate, reason);
        let (after, _) = holds(&node);
        assert!(after < memory + (48 << 10), "{name}: from {memory} to {after} KiB");
    }
    honest.end();
    wait_until("all are gone", || node.metrics().get("seawall_client_connections") == 0);
    wait_until("no call is left", || node.metrics().get("seawall_in_flight{route=\"api\"}") == 0);
    // What is kept for the next calls to the upstream is no leak.
    let kept = node.status()["upstreams"][0]["endpoints"][0]["connections"].as_u64().unwrap();
    let (_, after) = holds(&node);
    assert!(after <= files + kept + 8, "{after} files, {files} before, {kept} to the upstream");
    (server, node, place)
}

/// Names and numbers of attacks there are stories about.
#[test]
fn floods_are_cut() {
    let limits = "header_timeout: 1s, body_idle_timeout: 2s, idle_timeout: 60s";
    let (server, node, _place) = attacks(
        &[
            // CVE-2023-44487, and what the server is made to take back itself: CVE-2025-8671.
            ("rapid_reset", CALM, "h2_resets"),
            ("rapid_reset_after_a_while", CALM, "h2_resets"),
            ("reset_by_window_overflow", CALM, "h2_resets"),
            ("reset_by_own_dependency", CALM, "h2_resets"),
            ("reset_by_window_zero", PROTOCOL, "h2_connection"),
            ("reset_by_data_after_the_end", PROTOCOL, "h2_connection"),
            ("reset_by_head_after_the_end", PROTOCOL, "h2_connection"),
            ("reset_by_priority_of_wrong_length", PROTOCOL, "h2_connection"),
            ("reset_before_the_head_is_whole", PROTOCOL, "h2_connection"),
            ("more_than_allowed_at_once", CALM, "h2_resets"),
            // CVE-2024-27316 and its kin.
            ("continuations_without_end", CALM, "h2_flood"),
            ("small_continuations", CALM, "h2_flood"),
            ("empty_continuations", CALM, "h2_flood"),
            ("long_heads_that_end", AllAnswered("431"), "header_bytes"),
            ("many_small_headers", AllAnswered("431"), "headers"),
            ("header_bomb", CALM, "header_bytes"),
            ("headers_without_names", PROTOCOL, "h2_connection"),
            ("table_sizes", PROTOCOL, "h2_connection"),
            // Slow ones.
            ("half_a_head", Cut, "header_timeout"),
            ("half_a_frame", Cut, "header_timeout"),
            ("half_a_body", Answered("408"), "body_idle_timeout"),
            // CVE-2019-9512, 9515, 9513, 9518, 9514.
            ("pings", CALM, "h2_flood"),
            ("settings", CALM, "h2_flood"),
            ("empty_settings", CALM, "h2_flood"),
            ("table_size_settings", CALM, "h2_flood"),
            ("priorities", CALM, "h2_flood"),
            ("empty_data", CALM, "h2_flood"),
            ("small_data", CALM, "h2_flood"),
            ("resets_of_nothing", CALM, "h2_flood"),
            ("unknown_frames", CALM, "h2_flood"),
            ("windows", CALM, "h2_flood"),
            ("small_windows", CALM, "h2_flood"),
            ("pings_never_read", Cut, "h2_flood"),
            ("small_bites", AllAnswered("200"), ""),
            // CVE-2019-9511, 9517.
            ("never_reads", Cut, "h2_stalled"),
            ("no_window_of_the_connection", Cut, "h2_stalled"),
            ("no_window", TakenBack(100), "unread"),
            ("one_without_a_window", TakenBack(1), "unread"),
            ("window_by_drops", CALM, "h2_flood"),
        ],
        limits,
    );
    let begun = server.seen().iter().filter(|seen| seen.line().contains("/hang")).count();
    assert!(begun < 2_000, "{begun} calls were begun for those who took them back");
    assert_eq!(node.metrics().answers("api", "5xx"), 0);
    let is_told = |line: &String| line.contains("a slow reader") && line.contains("\"client\":\"127.0.0.1\"");
    assert!(node.process.lines().iter().any(is_told), "{:?}", node.process.lines());
}

#[test]
fn what_is_not_http_2_ends_the_connection() {
    let protocol = [
        "data_before_a_head",
        "data_on_no_stream",
        "head_on_no_stream",
        "head_on_an_even_stream",
        "streams_backwards",
        "continuation_of_nothing",
        "ping_within_a_head",
        "continuation_of_another",
        "settings_on_a_stream",
        "settings_of_wrong_length",
        "settings_window_too_large",
        "settings_frame_size_too_small",
        "settings_ack_with_words",
        "ping_of_wrong_length",
        "ping_on_a_stream",
        "push_promise",
        "reset_of_an_idle_stream",
        "window_of_an_idle_stream",
        "connection_window_zero",
        "padding_longer_than_the_frame",
        "head_that_is_no_hpack",
        "index_of_nothing",
    ];
    let mut table: Vec<_> = protocol.into_iter().map(|name| (name, PROTOCOL, "h2_connection")).collect();
    table.extend([
        ("connection_window_overflow", Ended("FLOW_CONTROL_ERROR"), "h2_connection"),
        ("frame_too_large", Ended("FRAME_SIZE_ERROR"), "h2_connection"),
        ("settings_not_first", PROTOCOL, "h2_connection"),
        ("preface_that_is_none", Cut, "version"),
    ]);
    attacks(&table, "");
}

#[test]
fn requests_that_are_none_or_two_are_refused() {
    // What the library cannot even read as a header ends the connection, as it may (RFC 9113, section 5.4.1).
    let unreadable = [
        "crlf_in_a_value",
        "cr_in_a_value",
        "lf_in_a_value",
        "nul_in_a_value",
        "unknown_pseudo_header",
        "method_with_space",
        "method_with_crlf",
        "uppercase_name",
        "name_with_space",
        "name_with_colon",
        "name_with_crlf",
        "name_of_nothing",
        "trailers_with_crlf",
    ];
    let malformed = [
        "crlf_in_a_path",
        "space_in_a_path",
        "path_without_slash",
        "empty_path",
        "no_path",
        "no_method",
        "no_scheme",
        "authority_with_space",
        "authority_with_path",
        "two_paths",
        "two_methods",
        "pseudo_header_of_answers",
        "pseudo_header_after_others",
        "scheme_with_crlf",
        "connection_header",
        "keep_alive_header",
        "proxy_connection_header",
        "upgrade_header",
        "transfer_encoding",
        "te_other_than_trailers",
        "connect_with_a_path",
        "length_more_than_data",
        "length_less_than_data",
        "length_without_data",
        "two_lengths",
        "length_that_is_none",
        "length_as_list",
        "length_far_too_long",
    ];
    let mut table: Vec<_> = unreadable.into_iter().map(|name| (name, PROTOCOL, "h2_connection")).collect();
    table.extend(malformed.into_iter().map(|name| (name, Reset, "h2_stream")));
    table.extend([
        ("star", Answered("400"), "target"),
        ("no_authority", Answered("400"), "host"),
        ("authority_with_user", Answered("400"), "host"),
        ("two_hosts", Answered("400"), "host"),
        ("host_is_another", Answered("400"), "host_mismatch"),
        ("connect", Answered("405"), "method"),
        // Offered, and this route does not take it.
        ("extended_connect", Answered("501"), ""),
        ("extended_connect_to_something_else", Answered("501"), "protocol"),
        ("trace", Answered("405"), "method"),
        ("verdict_header", Answered("400"), "header_name"),
        // A body is a body, whatever it looks like; what trailers may not say goes no further.
        ("smuggled_request", Answered("200"), ""),
        ("pseudo_header_in_trailers", Answered("200"), ""),
        ("forbidden_trailers", Answered("200"), ""),
        // Nobody sends it; the library leaves it out.
        ("fragment", Answered("200"), ""),
    ]);
    let (server, _node, _place) = attacks(&table, "");
    let evil: Vec<_> = server.seen().into_iter().filter(|seen| seen.head.contains("evil")).collect();
    assert!(evil.is_empty(), "{evil:?}");
}

fn h2load(node: &Node, clients: u32, streams: u32, requests: u32) -> String {
    let output = Command::new("h2load")
        .args([format!("--clients={clients}"), format!("--max-concurrent-streams={streams}")])
        .args([format!("--requests={requests}"), format!("http://{}/small", node.address())])
        .output()
        .expect("h2load runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Who keeps to the limits is served; who does not takes nothing from those at other addresses.
#[test]
fn one_source_has_its_share_and_no_more() {
    let (_server, node, _place) = world("connections_per_source: 20, connections: 200, streams: 10");
    let text = h2load(&node, 20, 10, 4_000);
    assert!(text.contains("4000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
    wait_until("all are gone", || node.metrics().get("seawall_client_connections") == 0);
    let turned_away = || rejected(&node)["connections_per_source"];
    assert_eq!(turned_away(), 0);
    let (stop, address) = (Arc::new(AtomicBool::new(false)), node.address());
    let stopped = Arc::clone(&stop);
    let elsewhere = std::thread::spawn(move || {
        let mut served = 0;
        while !stopped.load(Relaxed) {
            let answer = Client::from([127, 0, 0, 2], address).ask("GET /small HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!((answer.status, answer.body.as_str()), (200, "small"), "{answer:?}");
            served += 1;
        }
        served
    });
    // All that it may have stay open.
    let held: Vec<Client> = (0..20).map(|_| node.client()).collect();
    wait_until("all are in", || node.metrics().get("seawall_client_connections") >= 20);
    let refused = node.client().next().expect("an answer");
    assert_eq!((refused.status, refused.must("retry-after").as_str()), (429, "1"));
    assert!(refused.must("proxy-status").contains("`connections_per_source` is reached"), "{refused:?}");
    let text = h2load(&node, 50, 10, 5_000);
    assert!(text.contains("0 succeeded, 5000 failed"), "{text}");
    assert_eq!(turned_away(), 51);
    assert_eq!(node.metrics().get("seawall_limit_reached_total{limit=\"connections_per_source\"}"), 51);
    stop.store(true, Relaxed);
    assert!(elsewhere.join().expect("every answer was right") > 0);
    drop(held);
    wait_until("all are gone", || node.metrics().get("seawall_client_connections") == 0);
    let text = h2load(&node, 20, 10, 1_000);
    assert!(text.contains("1000 succeeded, 0 failed"), "{text}");
}
