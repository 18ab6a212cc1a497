//! What people do with the spool: retry and discard several, drain, give each route its terms, adopt a dead node's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::house::{Node, Place, wait_until};
use crate::server::{Seen, Server, answer, ok, sick};

/// A node with two routes to one upstream, each with its own rules of delivery.
fn config(server: &Server, name: &str, events: &str, labels: &str) -> String {
    let policy = |delivery: &str| {
        format!(
            "{{ timeout: 2s, retry: off, breaker: {{ calls_min: 2, window: 4 calls, open_for: 20ms, open_for_max: 20ms }}, \
             fallback: spool, order_by: \"header:Shipment-Id\", delivery: {{ attempts: 100000{delivery} }} }}"
        )
    };
    format!(
        "node: {name}\nlisteners: [{{ address: \"127.0.0.1:0\", routes: [\
         {{ name: labels, match: {{ path: /labels }}, upstream: queue, policy: labels }}, \
         {{ name: events, upstream: queue, policy: events }}] }}]\n\
         upstreams: {{ queue: {{ url: \"http://{}\" }} }}\npolicies: {{ events: {}, labels: {} }}\n",
        server.address,
        policy(events),
        policy(labels)
    )
}

fn write(node: &Node, path: &str, shipment: &str, body: &str) -> (u16, Value) {
    let key = &body[..body.len().min(40)];
    let headers = format!("Shipment-Id: {shipment}\r\nIdempotency-Key: \"{key}\"\r\n");
    let answer = node.post(path, &headers, body);
    (answer.status, serde_json::from_str(&answer.body).unwrap_or(Value::Null))
}

fn bodies(server: &Server) -> Vec<String> {
    server.seen().iter().map(Seen::text).collect()
}

#[test]
fn a_dead_nodes_records_are_delivered_by_another_once_and_in_order() {
    // The upstream of the first node is sick and stays so; the second one's takes everything but one.
    let (_, sick_server) = Server::moody();
    let well = Server::start(|seen| if seen.text() == "bad" { answer("422 No", "", "no") } else { ok("taken") });
    let dead = Place::new(&config(&sick_server, "dead", "", ""));
    let node = dead.node();
    for n in 0..150 {
        let (status, _) = write(&node, "/events", &format!("s{}", n % 3), &format!("{n}"));
        assert_eq!(status, 202);
    }
    node.kill();
    let dir = dead.data().to_string_lossy().into_owned();
    let place = Place::new(&config(&well, "heir", "", ""));
    let node = place.node();
    let (status, bad) = write(&node, "/events", "s9", "bad");
    assert_eq!(status, 422, "{bad}");
    let admin = format!("http://{}", node.admin);
    let adopt = |arguments: &[&str]| place.seawall(&[&["spool", "adopt", "--admin", &admin], arguments].concat());
    let said = adopt(&[&dir]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.out, "150 records of `dead` are `heir`'s to deliver now\n");
    wait_until("all is delivered", || node.spooled() == 0);
    let mut rows: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for seen in well.seen().iter().filter(|seen| seen.text() != "bad") {
        rows.entry(seen.header("shipment-id").unwrap()).or_default().push(seen.text().parse().unwrap());
    }
    let expected = |rest: u32| (0..150).filter(|n| n % 3 == rest).collect::<Vec<u32>>();
    assert_eq!(rows.into_values().collect::<Vec<_>>(), [expected(0), expected(1), expected(2)]);
    // Nothing is left there, and nothing is taken twice: neither by the same command nor by the old node itself.
    let again = adopt(&[&dir, "--json"]);
    assert_eq!((again.code, &again.json()["adopted"], &again.json()["left"]), (0, &json!(0), &json!(0)), "{again:?}");
    let old = dead.node();
    assert_eq!(old.spooled(), 0);
    let journal = old.journal();
    assert_eq!(journal.last("records_adopted")["fields"]["already"], "0");
    assert_eq!(node.journal().count("records_adopted"), 3, "one entry a batch");
    let totals = node.api("/api/ledger")["totals"].clone();
    assert_eq!((&totals["accepted"], &totals["missing_so_far"]), (&json!(150), &json!(150)), "no sink has reported");
    let said = adopt(&[&dir]);
    assert_eq!(said.code, 1);
    said.tells(&["in use", "its node runs"]);
    assert_eq!(well.count(), 151);
    assert!(well.seen()[1..].iter().all(|seen| seen.header("seawall-record").unwrap().starts_with("events.dead.")));
}

#[test]
fn what_cannot_be_adopted_stays_and_is_told() {
    let (_, sick_server) = Server::moody();
    let dead = Place::new(&config(&sick_server, "dead", "", ""));
    let node = dead.node();
    for n in 0..5 {
        assert_eq!(write(&node, "/events", "s", &format!("{n} {}", "x".repeat(2_000))).0, 202);
    }
    node.kill();
    let dir = dead.data().to_string_lossy().into_owned();
    let other = "node: heir\nlisteners: [{ address: \"127.0.0.1:0\", routes: [{ upstream: stock, policy: p }] }]\n\
                 upstreams: { stock: { url: \"http://127.0.0.1:1\" } }\npolicies: { p: { fallback: spool } }\n";
    let place = Place::new(other);
    let node = place.node();
    let admin = format!("http://{}", node.admin);
    let adopt = |dir: &str| place.seawall(&["spool", "adopt", dir, "--admin", &admin]);
    let said = adopt(&dir);
    assert_eq!(said.code, 1);
    said.tells(&[
        "5 records stay where they are: record 1: no route of this node keeps writes for an upstream `queue`",
    ]);
    adopt("/nowhere").tells(&["`/nowhere` is not the data directory of a node"]);
    drop(node);
    // A node whose spool has room for some of them only.
    let small = config(&sick_server, "heir", "", "")
        .replace("node: heir", "node: heir\nstore: { path: ./data, record_max: 1KiB }")
        .replace("retry: off", "retry: off, replay_max: 512B");
    let place = Place::new(&small);
    let node = place.node();
    let said = place.seawall(&["spool", "adopt", &dir, "--admin", &format!("http://{}", node.admin)]);
    assert_eq!(said.code, 1);
    said.tells(&["5 records stay where they are: record 1: the record takes", "raise `store.record_max`"]);
    assert_eq!(node.spooled(), 0, "what comes behind it in its row must not go before it");
    let batch = node.admin_post("/api/spool/adopt", &Value::Null);
    assert_eq!((batch.status, &batch.json()["field"]), (400, &json!("node")));
    let batch = node.admin_post("/api/spool/adopt?node=x", &json!({ "not": "records" }));
    assert_eq!((batch.status, &batch.json()["field"]), (400, &json!("body")));
}

#[test]
fn drain_waits_and_tells_what_is_left() {
    let (well, server) = Server::moody();
    let place = Place::new(&config(&server, "n", "", ""));
    let node = place.node();
    for n in 0..20 {
        assert_eq!(write(&node, "/events", "s", &n.to_string()).0, 202);
    }
    let admin = format!("http://{}", node.admin);
    let drain = |arguments: &[&str]| place.seawall(&[&["spool", "drain", "--admin", &admin], arguments].concat());
    let said = drain(&["--for-at-most", "1s"]);
    assert_eq!(said.code, 1, "{said:?}");
    said.shows(&["20 still to deliver after 1", "`seawall status` says why"]);
    well.store(true, Relaxed);
    let said = drain(&[]);
    assert_eq!((said.code, said.out.as_str()), (0, "nothing waits to be delivered\n"));
    assert_eq!(drain(&["--json"]).json(), json!({ "left": 0, "parked": 0 }));
    let good: Vec<String> = server.seen()[server.count() - 20..].iter().map(Seen::text).collect();
    assert_eq!(good, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn many_dead_letters_are_retried_or_given_up_with_one_command() {
    let refuses = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&refuses);
    let server = Server::start(move |_| if of_server.load(Relaxed) { answer("422 No", "", "no") } else { sick() });
    let place = Place::new(&config(&server, "n", "", ""));
    let node = place.node();
    for n in 0..4 {
        assert_eq!(write(&node, "/events", "s", &n.to_string()).0, 202);
    }
    refuses.store(true, Relaxed);
    wait_until("they are dead letters", || node.status()["spool"]["parked"] == 4);
    let admin = format!("http://{}", node.admin);
    let spool = |arguments: &[&str]| place.seawall(&[&["spool"], arguments, &["--admin", &admin]].concat());
    let said = spool(&["retry", "--parked"]);
    assert_eq!((said.code, said.out.as_str()), (0, "4 records: each waits for delivery again\n"), "{said:?}");
    wait_until("they are dead letters again", || node.status()["spool"]["parked"] == 4);
    let listed = spool(&["ls", "--state", "parked", "--json"]).json();
    let ids: Vec<String> =
        listed["records"].as_array().unwrap().iter().map(|record| record["id"].to_string()).collect();
    let said = spool(&["discard", &ids[0], &ids[1], "9999", "--reason", "a test"]);
    assert_eq!((said.code, said.out.as_str()), (1, "2 records: each is given up\n"), "{said:?}");
    said.tells(&["1 of 3: the node refused: there is no record 9999"]);
    let said = spool(&["discard", "--parked", "--reason", "a test"]);
    assert_eq!((said.code, said.out.as_str()), (0, "2 records: each is given up\n"), "{said:?}");
    assert_eq!(node.journal().count("record_discarded"), 4);
    assert_eq!(spool(&["retry"]).code, 2, "which ones?");
}

#[test]
fn routes_have_terms_of_their_own() {
    let (well, server) = Server::moody();
    let place = Place::new(&config(&server, "n", ", priority: low, max: 8KB", ", priority: high, expire: 1s"));
    let node = place.node();
    let mut kept = 0;
    loop {
        let (status, said) = write(&node, "/events", &format!("s{kept}"), &format!("event {kept} {}", "x".repeat(500)));
        if status != 202 {
            assert_eq!(status, 503, "{said}");
            break;
        }
        kept += 1;
    }
    assert!((5..16).contains(&kept), "{kept} records of half a kilobyte in 8 KB");
    assert_eq!(write(&node, "/labels", "a", "label 1").0, 202, "another route has its own room");
    wait_until("its time is over", || node.journal().has("records_expired"));
    let entry = node.journal().first("records_expired").clone();
    assert_eq!((&entry["subject"], &entry["fields"]["records"]), (&json!("upstream:queue"), &json!("1")));
    assert_eq!(node.api("/api/ledger")["totals"]["expired"], 1);
    assert_eq!(node.spooled(), kept);
    for n in 2..5 {
        assert_eq!(write(&node, "/labels", &format!("l{n}"), &format!("label {n}")).0, 202);
    }
    let before = server.count();
    well.store(true, Relaxed);
    wait_until("all is delivered", || node.spooled() == 0);
    let order: Vec<String> = bodies(&server)[before..].iter().map(|body| body[..5].to_owned()).collect();
    let labels = order.iter().rposition(|body| body == "label").expect("they were delivered in time");
    let events = order.iter().rposition(|body| body == "event").unwrap();
    assert!(labels < events && labels < 8, "the urgent first: {order:?}");
    let place = Place::empty();
    place.write("bad.yaml", &config(&server, "n", ", priority: urgent, expire: 1ms, max: 1B", ""));
    let said = place.seawall(&["check", "--config", "bad.yaml"]);
    assert_eq!(said.code, 1);
    said.shows(&["`urgent` is no priority; known are high, normal and low", "1s to", "4KiB to"]);
}

#[test]
fn records_that_no_route_delivers_are_told_and_expire_as_they_were_accepted() {
    let (_, server) = Server::moody();
    let place = Place::new(&config(&server, "n", ", expire: 1h", ", expire: 3s"));
    let node = place.node();
    assert_eq!(write(&node, "/labels", "a", "label").0, 202);
    assert_eq!(write(&node, "/events", "b", "event").0, 202);
    // The routes, and their upstream, leave the configuration.
    let other = "node: n\nlisteners: [{ address: \"127.0.0.1:0\", routes: [{ upstream: stock, policy: p }] }]\n\
                 upstreams: { stock: { url: \"http://127.0.0.1:1\" } }\npolicies: { p: { fallback: spool } }\n";
    place.configure(other);
    let said = place.seawall(&["reload", "--admin", &format!("http://{}", node.admin)]);
    assert_eq!(said.code, 0, "{said:?}");
    wait_until("it is told", || node.journal().has("records_deserted"));
    let entry = node.journal().first("records_deserted").clone();
    assert_eq!((&entry["subject"], &entry["fields"]["waiting"]), (&json!("upstream:queue"), &json!("2")));
    // The first expires by the terms it was accepted under.
    wait_until("its time is over", || node.journal().has("records_expired"));
    assert_eq!((node.spooled(), node.api("/api/ledger")["totals"]["expired"].clone()), (1, json!(1)));
    assert_eq!(node.status()["spool"]["deserted"], json!({ "queue": 1 }));
    assert_eq!(node.metrics().get("seawall_spool_deserted_records"), 1);
    let said = place.seawall(&["status", "--admin", &format!("http://{}", node.admin)]);
    said.shows(&["1 records for `queue` are not delivered: no route keeps writes for it"]);
    // After a restart too, and told once. Then a route comes back, and takes what is left along.
    node.kill();
    let node = place.node();
    wait_until("it is told again", || node.journal().count("records_deserted") == 2);
    assert_eq!(node.status()["spool"]["deserted"], json!({ "queue": 1 }));
    let (well, server) = Server::moody();
    well.store(true, Relaxed);
    place.configure(&config(&server, "n", "", ""));
    let said = place.seawall(&["reload", "--admin", &format!("http://{}", node.admin)]);
    assert_eq!(said.code, 0, "{said:?}");
    wait_until("it is delivered", || node.spooled() == 0);
    assert_eq!((bodies(&server), node.status()["spool"]["deserted"].clone()), (vec!["event".to_owned()], Value::Null));
    assert_eq!(node.journal().count("records_deserted"), 2);
}

#[test]
fn records_are_sealed_at_rest_with_a_key_from_a_file() {
    let (_, sick_server) = Server::moody();
    let (well, server) = Server::moody();
    well.store(true, Relaxed);
    let sealed = |server: &Server, name: &str| {
        config(server, name, "", "") + "store: { path: ./data, key_file: keys, compress: lz4 }\n"
    };
    let place = Place::new(&sealed(&sick_server, "n"));
    place.refused(&["run"]).tells(&["cannot read the key file `keys`"]);
    place.write("keys", "# none yet\nabc\n");
    place.refused(&["run"]).tells(&["the key file `keys`", "line 2 is no key", "64 hex digits"]);
    place.write("keys", &format!("{}\n", "5f".repeat(32)));
    let node = place.node();
    for n in 0..10 {
        assert_eq!(write(&node, "/events", "s", &format!("{n} {}", "secret payload ".repeat(20))).0, 202);
    }
    wait_until("others may read the key", || node.process.lines().iter().any(|line| line.contains("chmod 600")));
    node.kill();
    let segment = std::fs::read(place.data().join("spool/0000000001.log")).unwrap();
    let shows = |text: &[u8]| segment.windows(text.len()).any(|window| window == text);
    assert!(!shows(b"secret payload") && !shows(b"Shipment-Id") && !shows(b"shipment-id"));
    // Looked at, adopted and opened only with the key; it is found by the configuration that lies there.
    assert!(place.seawall(&["spool", "ls", "--data", "data"]).out.lines().count() > 10);
    let dir = place.data().to_string_lossy().into_owned();
    let heir = Place::new(&config(&server, "heir", "", ""));
    heir.seawall(&["spool", "ls", "--data", &dir]).tells(&["no key was given", "--key-file"]);
    let node = heir.node();
    let admin = format!("http://{}", node.admin);
    heir.write("other", &format!("{}\n", "77".repeat(32)));
    let said = heir.seawall(&["spool", "adopt", &dir, "--admin", &admin, "--key-file", "other"]);
    assert_eq!(said.code, 1);
    said.tells(&["sealed with another key"]);
    let keys = place.path().join("keys").to_string_lossy().into_owned();
    let said = heir.seawall(&["spool", "adopt", &dir, "--admin", &admin, "--key-file", &keys]);
    assert_eq!((said.code, said.out.as_str()), (0, "10 records of `n` are `heir`'s to deliver now\n"), "{said:?}");
    wait_until("all is delivered", || node.spooled() == 0);
    assert_eq!(server.count(), 10);
    place.write("bad.yaml", &config(&server, "n", "", "").replace("node: n", "node: n\nstore: { compress: zip }"));
    place.seawall(&["check", "--config", "bad.yaml"]).shows(&["`zip` is no way to compress; known are lz4 and off"]);
}
