//! The command line against a running node, a stopped one, and none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::SystemTime;

use serde_json::Value;

use crate::house::{Node, Place, wait_until};
use crate::process::code;
use crate::server::{Server, answer};

/// A node that holds a dead letter, its record number, and the status its upstream answers with.
fn with_a_dead_letter() -> (Node, Place, u64, Arc<AtomicU16>, Server) {
    let mode = Arc::new(AtomicU16::new(503));
    let of_server = Arc::clone(&mode);
    let server = Server::start(move |_| match of_server.load(Relaxed) {
        200 => answer("200 OK", "", "taken"),
        422 => answer("422 Unprocessable Content", "", "field `weight` \u{1b}[31mis missing"),
        _ => answer("503 Service Unavailable", "", "sick"),
    });
    let (node, place) = Place::new(&format!(
        "zone: us-east\n\
         listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: events, upstream: queue, policy: writes }}] }}]\n\
         upstreams: {{ queue: {{ url: \"http://{}\" }} }}\n\
         policies: {{ writes: {{ retry: off, fallback: spool, order_by: \"header:Shipment-Id\" }} }}\n",
        server.address
    ))
    .node_of();
    let kept = node.post("/events", "Shipment-Id: s-1\r\nAuthorization: Bearer hush\r\n", "the payload");
    assert_eq!(kept.status, 202);
    mode.store(422, Relaxed);
    wait_until("it is parked", || node.status()["spool"]["parked"] == 1);
    let id = kept.must("location").rsplit('/').next().unwrap().parse().unwrap();
    (node, place, id, mode, server)
}

#[test]
fn a_dead_letter_is_found_shown_and_delivered_after_all() {
    let (node, place, id, mode, server) = with_a_dead_letter();
    let admin = node.admin.to_string();
    let seawall = |arguments: &[&str]| place.seawall(&[arguments, &["--admin", &admin]].concat());
    let id = id.to_string();

    let status = seawall(&["status"]);
    assert_eq!(status.code, 0);
    status.shows(&["us-east in us-east", "events", "queue", "closed", "dead letters", &server.address.to_string()]);
    let status = seawall(&["status", "--json"]).json();
    assert_eq!((&status["spool"]["parked"], &status["ready"]), (&1.into(), &true.into()));

    seawall(&["spool", "ls"]).shows(&[&id, "parked"]);
    assert_eq!(seawall(&["spool", "ls", "--state", "waiting"]).out, "nothing\n");
    let listed = seawall(&["spool", "ls", "--state", "parked"]);
    listed.shows(&[&id, "parked", "queue", "s-1", "refused it with 422"]);
    let listed = seawall(&["spool", "ls", "--state", "parked", "--json"]).json();
    assert_eq!(listed["records"][0]["id"], id.parse::<u64>().unwrap());
    let shown = seawall(&["spool", "show", &id]);
    shown.shows(&["POST", "/events", "s-1", "field `weight`", "is missing", "answered 503", "body_bytes"]);
    assert!(!shown.out.contains("the payload") && !shown.out.contains("hush"), "no payload, no secret: {}", shown.out);
    assert!(!shown.out.contains('\u{1b}'), "what an upstream said does not steer the terminal");

    let told = node.get(&format!("/.seawall/records/{id}")).json();
    assert_eq!((&told["state"], &told["status"]), (&"parked".into(), &Value::Null), "{told}");
    assert!(told["reason"].as_str().unwrap().contains("422"), "whoever asks for the outcome is told why: {told}");

    mode.store(200, Relaxed);
    let retried = seawall(&["spool", "retry", &id]);
    assert_eq!((retried.code, retried.out), (0, format!("record {id} waits for delivery again\n")));
    wait_until("it is delivered", || node.get(&format!("/.seawall/records/{id}")).json()["state"] == "delivered");
    let again = seawall(&["spool", "retry", &id]);
    assert_eq!(again.code, 1, "{again:?}");
    again.tells(&["seawall: the node refused: "]);
    let none = seawall(&["spool", "show", "999"]);
    assert_eq!(none.code, 1);
    none.tells(&["999"]);

    let kinds = node.journal();
    // The level of the spool is looked at, not followed: what fills and drains within a moment may go untold.
    for kind in ["record_parked", "record_retried"] {
        assert!(kinds.has(kind), "{kind}: {:?}", kinds.kinds());
    }
    let parked = kinds.first("record_parked");
    assert_eq!(parked["subject"], format!("record:{id}"));
    let ledger = seawall(&["ledger"]);
    assert_eq!(ledger.code, 0);
    ledger.shows(&["events", "us-east", "total", "unknown: no sink has reported yet"]);
    let ledger = seawall(&["ledger", "--json"]).json();
    assert_eq!((&ledger["totals"]["accepted"], &ledger["totals"]["parked"]), (&1.into(), &0.into()), "{ledger:#}");
}

#[test]
fn a_dead_letter_is_given_up_with_a_reason() {
    let (node, place, id, ..) = with_a_dead_letter();
    let (admin, id) = (node.admin.to_string(), id.to_string());
    let seawall = |arguments: &[&str]| place.seawall(&[arguments, &["--admin", &admin]].concat());
    assert_eq!(seawall(&["spool", "discard", &id]).code, 2, "a reason is asked for");
    let empty = seawall(&["spool", "discard", &id, "--reason", " "]);
    assert_eq!(empty.code, 1);
    empty.tells(&["say why"]);
    let done = seawall(&["spool", "discard", &id, "--reason", "a test order"]);
    assert_eq!((done.code, done.out), (0, format!("record {id} is given up\n")));
    let said = seawall(&["journal", "--kind", "record_discarded"]);
    said.shows(&[&format!("record:{id}"), "reason=\"a test order\""]);
    assert_eq!(node.get(&format!("/.seawall/records/{id}")).json()["state"], "discarded");
    seawall(&["spool", "show", &id]).shows(&["discarded", "a test order"]);
    let totals = seawall(&["ledger", "--json"]).json()["totals"].clone();
    assert_eq!((&totals["expired"], &totals["parked"]), (&1.into(), &0.into()), "{totals:#}");
}

#[test]
fn the_journal_is_filtered_and_followed() {
    let (node, place, ..) = with_a_dead_letter();
    let admin = node.admin.to_string();
    let seawall = |arguments: &[&str]| place.seawall(&[arguments, &["--admin", &admin]].concat());
    let all = seawall(&["journal"]).out;
    assert!(all.lines().count() >= 5, "{all}");
    assert!(all.lines().next().unwrap().contains("node_started"), "oldest first: {all}");
    assert!(all.contains("because of 1"), "causes by number: {all}");
    let kinds = seawall(&["journal", "--kind", "record_parked"]).out;
    assert!(kinds.lines().count() == 1 && kinds.contains("record_parked"), "{kinds}");
    let route = seawall(&["journal", "--subject", "route:events"]).out;
    assert!(!route.is_empty() && route.lines().all(|line| line.contains("route:events")), "{route}");
    assert_eq!(seawall(&["journal", "--limit", "2"]).out.lines().count(), 2);
    let after = seawall(&["journal", "--after", "2", "--limit", "1", "--json"]).json();
    assert_eq!(after["entries"][0]["seq"], 3);
    for entry in seawall(&["journal", "--json"]).json()["entries"].as_array().unwrap() {
        let keys: Vec<&String> = entry.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["at", "cause", "fields", "kind", "seq", "subject"], "{entry}");
        assert!(!entry.to_string().contains("the payload"), "never a payload: {entry}");
    }
    assert_eq!(seawall(&["journal", "--kind", "odd"]).code, 2);
    let mut follower = place.command(&["journal", "--follow", "--json", "--kind", "record_parked", "--admin", &admin]);
    let mut follower = crate::process::Process::start(&mut follower);
    node.post("/events", "Shipment-Id: s-2\r\n", "another");
    drop(node);
    let ended = code(follower.wait());
    assert_eq!(ended, 3, "it ends with the node: {:?}", follower.lines());
}

/// Without a node, its folder tells the same.
#[test]
fn a_stopped_nodes_folder_is_read() {
    let (node, place, id, ..) = with_a_dead_letter();
    let admin = node.admin.to_string();
    let live = place.seawall(&["spool", "show", &id.to_string(), "--admin", &admin, "--json"]).json();
    let busy = place.seawall(&["journal", "--data", "data"]);
    assert_eq!(busy.code, 1);
    busy.tells(&["is in use by another running node", "leave out `--data`"]);
    assert_eq!(code(node.stop()), 0);
    let dead = place.seawall(&["spool", "show", &id.to_string(), "--data", "data", "--json"]).json();
    for key in ["id", "state", "parked", "target", "idempotency_key", "record", "order_key"] {
        assert_eq!(dead[key], live[key], "{key}");
    }
    let before = files(&place.path().join("data"));
    place.seawall(&["spool", "ls", "--state", "parked", "--data", "data"]).shows(&["parked", "s-1"]);
    let books = place.seawall(&["ledger", "--data", "data", "--json"]).json();
    assert_eq!((&books["totals"]["parked"], &books["verdict"]), (&1.into(), &"unknown".into()), "{books}");
    place.seawall(&["ledger", "--data", "data"]).shows(&["STREAM", "events"]);
    let journal = place.seawall(&["journal", "--data", "data"]);
    journal.shows(&["node_started", "record_parked", "node_draining", "node_stopped"]);
    let only = place.seawall(&["journal", "--data", "data", "--kind", "node_stopped", "--json"]).json();
    assert_eq!(only["entries"].as_array().map(Vec::len), Some(1));
    assert_eq!(files(&place.path().join("data")), before, "looking changes nothing");
    let key = dead["idempotency_key"].as_str().unwrap();
    assert!(key.starts_with("seawall-") && !key.contains('\n'), "as the client and the upstream know it: {key:?}");
    for arguments in [&["status"][..], &["journal"], &["spool", "ls"], &["spool", "show", "1"], &["ledger"]] {
        let said = place.seawall(&[arguments, &["--admin", &admin]].concat());
        assert_eq!((said.code, said.out.as_str()), (3, ""), "{arguments:?}");
        said.tells(&[&format!("cannot reach a node at `http://{admin}`"), "--data DIR"]);
    }
    let none = place.seawall(&["journal", "--data", "elsewhere"]);
    assert_eq!(none.code, 1);
    none.tells(&["`elsewhere` is not the data directory of a node"]);
    assert!(!place.path().join("elsewhere").exists(), "looking makes nothing");
}

/// After kill -9 too: what a start would cut, mend and count is seen as after it, and left for it to do.
#[test]
fn looking_at_what_a_crash_left_changes_nothing() {
    let (node, place, id, ..) = with_a_dead_letter();
    node.kill();
    let data = place.path().join("data");
    let before = files(&data);
    for arguments in [&["journal"][..], &["spool", "ls"], &["spool", "show", &id.to_string()], &["ledger"]] {
        let said = place.seawall(&[arguments, &["--data", "data"]].concat());
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    }
    assert_eq!(files(&data), before);
    std::fs::remove_file(data.join("LOCK")).unwrap();
    place.seawall(&["spool", "ls", "--data", "data"]).shows(&["parked", "s-1"]);
    assert!(!data.join("LOCK").exists(), "a copy is read as well, and stays as it is");
}

/// Every file below a folder: its name, its bytes, and when it was last written.
fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            let written = path.metadata().unwrap().modified().unwrap();
            found.insert(path.clone(), (std::fs::read(&path).unwrap(), written));
        }
    }
    found
}

/// Somebody else behind the address is not taken for a node.
#[test]
fn what_is_not_a_node() {
    let server = Server::start(|_| answer("200 OK", "Content-Type: text/html\r\n", "<html>"));
    let said = Place::empty().seawall(&["status", "--admin", &server.address.to_string()]);
    assert_eq!(said.code, 1);
    said.tells(&["is not a node of Seawall"]);
}

const MISTAKES: &str = "\
zone: us-east
zones: [us-west, eu-central]
colour: red
slos: [slos/*.yaml]
store: { path: ./data, spool_max: 10 }
limits: { grace: 30, headers: many }
listeners:
  - address: 8080
    routes:
      - { name: a, match: { path: /a, method: POST }, upstream: queue, policy: writes }
      - { name: a, match: { path: /b }, upstream: que }
      - { match: { path: /a, method: POST }, upstream: queue, policy: reads }
  - { address: \"127.0.0.1:8081\", protocol: mqtt, routes: [] }
upstreams:
  queue: { url: \"ftp://queue.example\" }
  other: { endpoints: [{ address: \"127.0.0.1\", zone: mars }], connections: 0 }
policies:
  writes:
    timeout: 2
    try_timeout: 5s
    retry: { attempts: 0, backoff: 1s..50ms, budget: 0.2 }
    breaker: { failure_rat: 50%, slow: 60% after 1s, window: 5 calls, calls_min: 10 }
    fallback: { stale: 10m, spool: yes }
    order_by: Shipment-Id
admin: { address: \"127.0.0.1:9900\", token: abc }
zone: again
";

/// All of them at once, each with its place, an excerpt and what to write instead.
#[test]
fn check_tells_every_mistake_at_once() {
    let place = Place::empty();
    place.write("bad.yaml", MISTAKES);
    let said = place.seawall(&["check", "--config", "bad.yaml"]);
    assert_eq!((said.code, said.err.as_str()), (1, ""));
    let told: Vec<&str> = said.out.lines().filter(|line| line.starts_with("bad.yaml:")).collect();
    for (line, words) in [
        (1, "us-east"),
        (3, "unknown key `colour`"),
        (4, "slos"),
        (5, "needs a unit"),
        (6, "`grace`"),
        (6, "`headers`"),
        (8, "`8080` has no port"),
        (11, "`que`"),
        (11, "`a`"),
        (12, "`reads`"),
        (13, "no protocol"),
        (15, "`ftp` is not supported"),
        (16, "`127.0.0.1` has no port"),
        (16, "mars"),
        (16, "`connections`"),
        (19, "`timeout`"),
        (21, "`attempts`"),
        (21, "`backoff`"),
        (21, "`budget`"),
        (22, "unknown key `failure_rat`"),
        (22, "`slow`"),
        (22, "`calls_min`"),
        (24, "`order_by`"),
        (25, "unknown key `token`"),
        (26, "`zone` is given twice"),
    ] {
        let at = format!("bad.yaml:{line}:");
        assert!(told.iter().any(|it| it.starts_with(&at) && it.contains(words)), "no {at} {words} in\n{}", said.out);
    }
    said.shows(&["   |  ", "^^^^", "did you mean `failure_rate`?", "did you mean `us-west`?"]);
    let count = told.len().checked_sub(1).unwrap();
    let of = |kind: &str| told.iter().filter(|line| line.contains(kind)).count();
    let (warnings, audits) = (of(": warning: "), of(": audit: "));
    let sum = said.out.lines().last().unwrap();
    assert!(sum.starts_with(&format!("bad.yaml: {} mistakes", count - warnings - audits)), "{sum} of {told:#?}");
    let json = place.seawall(&["check", "--config", "bad.yaml", "--json"]);
    let findings = json.json()["findings"].as_array().unwrap().clone();
    assert_eq!((json.code, findings.len()), (1, count));
    assert!(findings.iter().all(|it| it["line"].is_u64() && it["column"].is_u64() && it["message"].is_string()));
    let refused = place.refused(&["run", "--config", "bad.yaml"]);
    assert_eq!(refused.code, 1);
    // Whoever starts a node is told what stands in the way, and the audit is told by `check`.
    told[..count].iter().filter(|line| !line.contains(": audit: ")).for_each(|line| refused.tells(&[line]));
    assert!(!refused.err.contains(": audit: "), "{}", refused.err);
}

#[test]
fn whatever_a_configuration_is_it_is_answered() {
    let place = Place::empty();
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("zeros", &[0; 64]),
        ("text", b"hello"),
        ("open", b"{{{{[[["),
        ("deep", "[".repeat(5_000).as_bytes()),
        ("tabs", b"\ta:\t\tb"),
        ("anchors", b"a: &a [*a, *a]\nb: *c"),
        ("laughs", b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nzones: *c"),
        ("latin", b"zone: \xe9t\xe9"),
    ] {
        std::fs::write(place.path().join(name), bytes).unwrap();
        let said = place.seawall(&["check", "--config", name]);
        assert_eq!(said.code, 1, "{name}: {said:?}");
        assert!((said.out.clone() + &said.err).contains(name), "{name}: {said:?}");
    }
    let said = place.seawall(&["check"]);
    assert_eq!(said.code, 1);
    said.tells(&["`seawall init` writes one"]);
}

/// What `init` writes is started as it is.
#[test]
fn init_then_run() {
    let place = Place::empty();
    assert_eq!(place.seawall(&["init", "--yes"]).code, 0);
    assert_eq!(place.seawall(&["check"]).out, "seawall.yaml: ok, 2 routes\n");
    let server = Server::start(|_| answer("200 OK", "", "fine"));
    let text = std::fs::read_to_string(place.path().join("seawall.yaml")).unwrap();
    let text = text.replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:9900", "127.0.0.1:0");
    place.write("seawall.yaml", &text.replace("127.0.0.1:3000", &server.address.to_string()));
    let node = place.node();
    assert_eq!((node.get("/").body.as_str(), node.post("/", "", "x").body.as_str()), ("fine", "fine"));
    let status: Value = node.status();
    assert_eq!(status["routes"].as_array().map(Vec::len), Some(2));
}
