//! The account of sinks that report by file, and of those that cannot report at all.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use seawall_client::Outbox;
use seawall_core::time::Wall;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::house::{Node, Place, Said, wait_until};
use crate::server::{Seen, Server, ok};

fn place(server: &Server) -> Place {
    Place::new(&format!(
        "node: n\nlisteners: [{{ address: \"127.0.0.1:0\", routes: [{{ name: events, upstream: sink, policy: writes }}] }}]\n\
         upstreams: {{ sink: {{ url: \"http://{}\" }} }}\npolicies: {{ writes: {{ fallback: spool }} }}\n",
        server.address
    ))
}

fn write(node: &Node, number: usize) {
    let headers = format!("Idempotency-Key: \"order-{number}\"\r\n");
    assert_eq!(node.post("/events", &headers, &format!("body {number}")).status, 200);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn stamps(server: &Server) -> Vec<String> {
    server.seen().iter().map(|seen| seen.header("seawall-record").expect("numbered")).collect()
}

fn ledger(place: &Place, node: &Node, arguments: &[&str]) -> Said {
    place.seawall(&[&["ledger"], arguments, &["--admin", &format!("http://{}", node.admin)]].concat())
}

#[test]
fn receipts_come_from_a_file_and_the_same_file_again_changes_nothing() {
    let server = Server::start(|_| ok("taken"));
    let place = place(&server);
    let node = place.node();
    (0..30).for_each(|number| write(&node, number));
    let stamps = stamps(&server);
    let body = |number: usize| format!("body {number}");
    // All but the last, one twice, one damaged: as CSV with bodies, and as JSON lines with digests.
    let mut csv = "record,body\n".to_owned();
    (0..20).for_each(|number| csv += &format!("{},{}\n", stamps[number], body(number)));
    csv += &format!("{},{}\n", stamps[3], body(3));
    place.write("receipts.csv", &csv);
    let mut lines = String::new();
    for (number, stamp) in stamps.iter().enumerate().take(29).skip(20) {
        let (record, tag) = stamp.split_once(";tag=").unwrap();
        let arrived = if number == 25 { body(999) } else { body(number) };
        lines += &format!("{}\n", json!({ "record": record, "tag": tag, "digest": hex(&Sha256::digest(arrived)) }));
    }
    place.write("receipts.jsonl", &lines);
    for _ in 0..2 {
        let said = ledger(&place, &node, &["import", "receipts.csv"]);
        assert_eq!(said.code, 0, "{said:?}");
        assert!(said.out.starts_with("21 receipts of `file-"), "{said:?}");
        let said = ledger(&place, &node, &["import", "receipts.jsonl"]);
        assert_eq!(said.code, 0, "{said:?}");
    }
    let said = ledger(&place, &node, &["--seal", "--json"]);
    assert_eq!(said.code, 1);
    let totals = &said.json()["totals"];
    let counts =
        ["accepted", "delivered", "lost", "duplicated", "corrupted", "phantom"].map(|class| totals[class].clone());
    assert_eq!(counts, [30, 28, 1, 1, 1, 0].map(Value::from), "{totals}");
    place.write("late.csv", &format!("record,body\n{},{}\n", stamps[29], body(29)));
    assert_eq!(ledger(&place, &node, &["import", "late.csv"]).code, 0);
    assert_eq!(node.api("/api/ledger")["totals"]["late"], 1);
    for (text, wanted) in [
        ("record,body\nevents.n.1.1,x\n", "bad.csv:2: record `events.n.1.1` has no tag"),
        ("record,tag\nevents.n.1.1,00\n", "bad.csv:2: record `events.n.1.1` has neither `digest` nor `body`"),
        ("number\n1\n", "bad.csv:1: there is no column `record`; there are number"),
        ("", "`bad.csv` is empty"),
    ] {
        place.write("bad.csv", text);
        let said = ledger(&place, &node, &["import", "bad.csv"]);
        assert_eq!(said.code, 1);
        said.tells(&[wanted]);
    }
}

#[test]
fn a_sink_with_the_client_crate_accounts_for_every_arrival() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Mutex::new(Outbox::open(dir.path(), "sink").unwrap()));
    let at_the_sink = Arc::clone(&outbox);
    let server = Server::start(move |seen| {
        let mut outbox = at_the_sink.lock().unwrap();
        outbox.note(&seen.header("seawall-record").expect("numbered"), &seen.body).unwrap();
        outbox.sync().unwrap();
        ok("taken")
    });
    let place = place(&server);
    let mut node = place.node();
    (0..20).for_each(|number| write(&node, number));
    let desk = |node: &Node| seawall_client::Node::new("n", node.admin.to_string());
    assert_eq!(outbox.lock().unwrap().send(&desk(&node)).unwrap().receipts, 20);
    // The node dies, and what arrives while nobody takes reports waits.
    node.kill();
    let nobody = seawall_client::Node::new("n", "127.0.0.1:1");
    node = place.node();
    (20..30).for_each(|number| write(&node, number));
    assert!(outbox.lock().unwrap().send(&nobody).is_err());
    let sent = outbox.lock().unwrap().send(&desk(&node)).unwrap();
    assert_eq!((sent.batches, sent.receipts), (1, 10));
    let said = ledger(&place, &node, &["--seal", "--json"]);
    assert_eq!(said.code, 0, "{said:?}");
    let totals = &said.json()["totals"];
    let counts =
        ["accepted", "delivered", "lost", "duplicated", "corrupted", "phantom"].map(|class| totals[class].clone());
    assert_eq!(counts, [30, 30, 0, 0, 0, 0].map(Value::from), "{totals}");
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn time(second: u64) -> String {
    Wall::from_millis(second * 1000).rfc3339()
}

#[test]
fn a_sink_that_cannot_report_is_compared_by_its_keys() {
    let server = Server::start(|_| ok("taken"));
    let place = place(&server);
    let node = place.node();
    // The life began in this period: what it accepted before is not of the test.
    let since = now_s().next_multiple_of(10);
    wait_until("the period has begun", || now_s() >= since);
    (0..200).for_each(|number| write(&node, number));
    let until = now_s().next_multiple_of(10) + u64::from(now_s().is_multiple_of(10)) * 10;
    let (since, until) = (time(since), time(until));
    wait_until("the period is over", || {
        let told = node.api(&format!("/api/ledger/census?stream=events&since={since}&until={until}"));
        told["is_complete"] == true && told["census"]["bag"]["count"] == 200
    });
    let keys = |server: &Server| -> Vec<String> {
        server.seen().iter().map(|seen: &Seen| seen.header("idempotency-key").unwrap().replace('"', "")).collect()
    };
    let all = keys(&server);
    let rows =
        |keys: &[String]| keys.iter().fold("id,idempotency_key\n".to_owned(), |rows, key| rows + "1," + key + "\n");
    place.write("all.csv", &rows(&all));
    let period = ["--since", &since, "--until", &until];
    let compare =
        |file: &str, more: &[&str]| ledger(&place, &node, &[&["reconcile", file], &period[..], more].concat());
    let said = compare("all.csv", &[]);
    assert_eq!(said.code, 0, "{said:?}");
    said.shows(&["200 keys accepted, 200 rows in the file", "the same keys, each as often"]);
    // One missing, one twice, one nobody knows.
    let mut wrong = all[1..].to_vec();
    wrong.extend([all[7].clone(), "stranger".into()]);
    place.write("wrong.csv", &rows(&wrong));
    let said = compare("wrong.csv", &["--sent", "all.csv", "--json"]);
    assert_eq!(said.code, 1, "{said:?}");
    let found = said.json();
    let of = |class: &str| (found[class][0]["key"].clone(), found[class][0]["times"].clone(), found[class][1].clone());
    assert_eq!(of("missing"), (json!(all[0]), json!(1), Value::Null));
    assert_eq!(of("duplicated"), (json!(all[7]), json!(1), Value::Null));
    assert_eq!(of("extra"), (json!("stranger"), json!(1), Value::Null));
    assert_eq!((&found["is_same"], &found["all_named"], &found["rows"]), (&json!(false), &json!(true), &json!(201)));
    compare("wrong.csv", &[]).shows(&["missing", "(accepted, and not in the file)", "these are all the differences"]);
    place.write("few.csv", &rows(&all[..20]));
    compare("few.csv", &[]).shows(&["there are more differences than can be named: choose a shorter period"]);
    // What nobody can say is said.
    let early = ["--since", "2026-11-25T00:00:00Z", "--until", &until];
    let said = ledger(&place, &node, &[&["reconcile", "all.csv"], &early[..]].concat());
    assert_eq!(said.code, 1, "the keys are the same, and the time is not covered: {said:?}");
    said.shows(&["the node cannot say everything it accepted in this time", "the same keys"]);
    compare("all.csv", &["--stream", "quotes"]).tells(&["no record of a stream `quotes` was accepted here"]);
    compare("all.csv", &["--column", "order"])
        .tells(&["all.csv:1: there is no column `order`; there are id, idempotency_key"]);
    let said = ledger(&place, &node, &["reconcile", "all.csv", "--since", &until, "--until", &since]);
    assert_eq!(said.code, 2);
    let odd = since.replace("0.000Z", "3.000Z");
    let said = ledger(&place, &node, &["reconcile", "all.csv", "--since", &odd, "--until", &until]);
    assert_eq!(said.code, 1);
    said.tells(&["the node keeps this time in periods that end elsewhere: export what was accepted from"]);
    let said = ledger(&place, &node, &["reconcile", "-", "--sent", "-", "--since", &since, "--until", &until]);
    assert_eq!(said.code, 2);
    // A restart keeps the account; kill -9 leaves a gap, and what was told before it stands.
    node.kill();
    let node = place.node();
    let said = ledger(&place, &node, &[&["reconcile", "all.csv"], &period[..]].concat());
    assert_eq!(said.code, 0, "{said:?}");
}
