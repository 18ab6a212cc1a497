//! Every endpoint: what it answers, and how it refuses.

use seawall_control::LedgerRefusal;
use seawall_core::id::RecordId;
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::ledger::Place;
use seawall_core::spool::NewRecord;
use seawall_core::spool::index::Parked;
use seawall_store::Orphan;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{START, record, world, world_with};

#[tokio::test]
async fn probes_say_what_they_are_asked() {
    let world = world().await;
    let healthy = world.get("/healthz").await;
    assert_eq!((healthy.status, healthy.json()), (200, json!({"status": "ok"})));
    assert!(healthy.has("cache-control: no-store") && healthy.has("content-type: application/json"));
    assert_eq!(world.get("/readyz").await.json(), json!({"ready": true}));
    *world.ready.lock().unwrap() = Err("draining".into());
    let unready = world.get("/readyz").await;
    assert_eq!((unready.status, unready.json()), (503, json!({"ready": false, "reason": "draining"})));
    let status = world.get("/api/status").await.json();
    assert_eq!((&status["ready"], &status["not_ready_because"]), (&json!(false), &json!("draining")));
    world.end().await;
}

#[tokio::test]
async fn status_has_the_shape_of_the_contract() {
    let world = world().await;
    world.keep("k").await;
    world.snapshot.lock().unwrap().routes[0].degraded_since_ms = Some(START.as_millis() + 500);
    world.now.store(START.as_millis() + 2_500, std::sync::atomic::Ordering::SeqCst);
    let status = world.get("/api/status").await.json();
    assert_eq!(status["started_at"], "2023-11-14T22:13:20.000Z");
    assert_eq!(
        (&status["uptime_s"], &status["node"], &status["zone"]),
        (&json!(2.5), &json!("us-east-1"), &json!("us-east"))
    );
    assert_eq!(
        status["routes"][0],
        json!({
            "name": "events", "upstream": "queue", "protocol": "http",
            "breaker": {"state": "closed", "failure_rate": 0.25, "slow_rate": null, "since_s": 3.0, "opened_total": 2},
            "degraded_since": "2023-11-14T22:13:20.500Z", "requests_total": 100, "failures_total": 5,
            "retries_total": 3, "degraded_total": 6, "in_flight": 0, "waiting": 0,
            "latency_p50_ms": 2.5, "latency_p99_ms": 60000.0,
            "learned_limit_per_s": null, "concurrency_limit": null,
        })
    );
    let other = &status["routes"][1];
    assert_eq!((&other["degraded_since"], &other["learned_limit_per_s"]), (&Value::Null, &json!(49.5)));
    assert_eq!(
        status["upstreams"][0]["endpoints"][1],
        json!({
            "address": "10.1.0.1:80", "zone": "us-west", "version": "v2", "weight": 2, "priority": 1,
            "healthy": true, "draining": false, "ejected": false, "ramp": 0.25, "latency_ms": 1.5, "calls_total": 7,
            "in_flight": 1, "connections": 4, "addresses": ["10.0.0.1:80"], "lookups_failed_total": 2,
        })
    );
    let upstream = &status["upstreams"][0];
    assert_eq!((&upstream["spilled_total"], &upstream["is_spilling"]), (&json!(3), &json!(true)));
    let spool = &status["spool"];
    assert_eq!((&spool["waiting"], &spool["leased"], &spool["parked"]), (&json!(1), &json!(0), &json!(0)));
    assert_eq!((&spool["oldest_s"], &spool["disk_full"]), (&json!(2.5), &json!(false)));
    assert_eq!(status["limits"][0], json!({"name": "connections", "value": 10000, "used": 4, "reached_total": 1}));
    world.end().await;
}

#[tokio::test]
async fn the_journal_is_read_forwards_from_a_number_and_otherwise_from_its_end() {
    let world = world().await;
    let opened =
        world.store.journal.record(Draft::new(Kind::BreakerOpened, "route:events").with("failure_rate", "57%"));
    world.store.journal.record(Draft::new(Kind::DegradedStarted, "route:events").because(Some(opened)));
    world.store.journal.record(Draft::new(Kind::BreakerOpened, "route:quotes"));
    let seqs = |answer: Value| -> Vec<u64> {
        answer["entries"].as_array().unwrap().iter().map(|entry| entry["seq"].as_u64().unwrap()).collect()
    };
    let first = opened.0;
    let all = world.get("/api/journal").await.json();
    assert_eq!(
        all["entries"][0],
        json!({
            "seq": first, "at": "2023-11-14T22:13:20.000Z", "kind": "breaker_opened", "subject": "route:events",
            "cause": null, "fields": {"failure_rate": "57%"},
        })
    );
    assert_eq!(all["entries"][1]["cause"], json!(first));
    assert_eq!(seqs(world.get("/api/journal?limit=2").await.json()), [first + 1, first + 2]);
    assert_eq!(seqs(world.get("/api/journal?after=0&limit=1").await.json()), [first]);
    assert_eq!(seqs(world.get(&format!("/api/journal?after={first}")).await.json()), [first + 1, first + 2]);
    assert_eq!(seqs(world.get("/api/journal?kind=breaker_opened").await.json()), [first, first + 2]);
    assert_eq!(seqs(world.get(&format!("/api/journal?cause={first}")).await.json()), [first + 1]);
    let early = "/api/journal?until=2023-11-14T22:13:20Z";
    assert_eq!(seqs(world.get(early).await.json()), [0; 0]);
    assert_eq!(
        seqs(world.get("/api/journal?since=2023-11-14T22:13:20Z&limit=1").await.json()),
        [first],
        "oldest first"
    );
    for wrong in ["yesterday", "1969-01-01T00:00:00Z"] {
        let refused = world.get(&format!("/api/journal?since={wrong}")).await;
        assert_eq!((refused.status, &refused.json()["field"]), (400, &json!("since")));
    }
    let chain = world.get("/api/journal/verify").await.json();
    assert_eq!((&chain["holds"], &chain["linked"], &chain["breaks"]), (&json!(true), &json!(3), &json!([])));
    let tag = chain["head"]["tag"].as_str().unwrap().to_owned();
    let held_against = |seq: u64| format!("/api/journal/verify?anchor={seq}:{tag}");
    assert_eq!(world.get(&held_against(first + 2)).await.json()["holds"], true);
    let other = world.get(&held_against(first)).await.json();
    assert_eq!((&other["holds"], &other["breaks"][0]["flaw"]), (&json!(false), &json!("not_the_anchor")));
    let refused = world.get("/api/journal/verify?anchor=5").await;
    assert_eq!((refused.status, &refused.json()["field"]), (400, &json!("anchor")));
    assert_eq!(seqs(world.get("/api/journal?after=0&subject=route%3Aquotes").await.json()), [first + 2]);
    world.end().await;
}

#[tokio::test]
async fn a_bad_call_is_told_which_field_and_what_would_do() {
    let world = world().await;
    for (target, status, body) in [
        (
            "/api/journal?limit=0",
            400,
            json!({"error": "`0` is out of range", "field": "limit", "allowed": ["1 to 1000"]}),
        ),
        ("/api/journal?limit=many", 400, json!({"error": "`many` is not a whole number", "field": "limit"})),
        ("/api/journal?after=-1", 400, json!({"error": "`-1` is not a whole number", "field": "after"})),
        ("/api/journal?limit=1&limit=2", 400, json!({"error": "`limit` is given twice"})),
        (
            "/api/journal?knd=x",
            400,
            json!({"error": "unknown parameter `knd`", "allowed": ["after", "limit", "kind", "subject", "cause", "since", "until"]}),
        ),
        (
            "/api/spool?state=delivered",
            400,
            json!({"error": "`delivered` is not known", "field": "state", "allowed": ["waiting", "leased", "parked"]}),
        ),
        ("/api/spool/x", 400, json!({"error": "`x` is not the number of a record", "field": "id"})),
        ("/api/spool/0", 400, json!({"error": "`0` is not the number of a record", "field": "id"})),
        ("/api/spool/99", 404, json!({"error": "there is no record 99; settled records are forgotten after a day"})),
        (
            "/events?after=x",
            400,
            json!({"error": "`after=x` is not understood", "field": "after", "allowed": ["after=SEQ"]}),
        ),
        ("/events?x=1", 400, json!({"error": "`x=1` is not understood", "field": "after", "allowed": ["after=SEQ"]})),
    ] {
        let answer = world.get(target).await;
        assert_eq!((answer.status, answer.json()), (status, body), "{target}");
    }
    let kinds = world.get("/api/journal?kind=x").await.json();
    assert_eq!((&kinds["field"], kinds["allowed"].as_array().unwrap().len()), (&json!("kind"), Kind::ALL.len()));
    let nothing = world.get("/api/nothing").await;
    assert_eq!((nothing.status, &nothing.json()["error"]), (404, &json!("there is nothing at `/api/nothing`")));
    world.end().await;
}

#[tokio::test]
async fn another_method_is_told_the_right_one() {
    let world = world().await;
    let answer = world.post("/api/status", "").await;
    assert_eq!(answer.status, 405);
    assert!(answer.has("allow: get, head"), "{}", answer.head);
    assert_eq!(answer.json(), json!({"error": "`POST` does not apply here", "allowed": ["GET", "HEAD"]}));
    assert_eq!(world.get("/api/ledger/seal").await.status, 405);
    assert_eq!(world.post("/metrics", "").await.status, 405);
    world.end().await;
}

#[tokio::test]
async fn a_configuration_is_rehearsed_and_refused() {
    let world = world().await;
    let rehearsed = world.post("/api/reload", r#"{"dry_run": true}"#).await;
    assert_eq!(rehearsed.status, 200);
    let told =
        json!({"dry_run": true, "digest": "cd".repeat(32), "changed": ["route r: timeout"], "warnings": ["hm\n"]});
    assert_eq!(rehearsed.json(), told);
    for body in ["", "{}", r#"{"dry_run": false}"#] {
        let refused = world.post("/api/reload", body).await;
        assert_eq!(refused.status, 422, "{body}");
        let told = json!({"error": "it is wrong", "report": "f:3:1: no", "findings": [{"line": 3}]});
        assert_eq!(refused.json(), told);
    }
    for (body, field) in [("[]", "body"), (r#"{"dry": true}"#, "dry"), (r#"{"dry_run": 1}"#, "dry_run")] {
        let refused = world.post("/api/reload", body).await;
        assert_eq!((refused.status, refused.json()["field"].as_str().unwrap()), (400, field), "{body}");
    }
    assert_eq!(world.get("/api/reload").await.status, 405);
    world.end().await;
}

#[tokio::test]
async fn a_dead_letter_is_shown_without_its_payload_and_can_be_retried() {
    let world = world().await;
    let id = world.park("7").await;
    let listed = world.get("/api/spool?state=parked").await;
    let record = &listed.json()["records"][0];
    assert_eq!((&record["id"], &record["state"], &record["upstream"]), (&json!(id), &json!("parked"), &json!("queue")));
    assert_eq!(record["parked"]["reason"], "refused with 422");
    assert_eq!((&record["order_key"], &record["headers"]), (&json!("s-1"), &json!(["authorization"])));
    assert_eq!(record["body_bytes"], 11);
    let shown = world.get(&format!("/api/spool/{id}")).await;
    assert_eq!(&shown.json(), record);
    assert!(!listed.body.contains("hunter2") && !listed.body.contains("the payload"));
    assert_eq!(world.get("/api/spool").await.json(), listed.json(), "without a state: all that have not left");
    assert_eq!(world.get("/api/spool?state=waiting").await.json(), json!({"records": []}));
    let retried = world.post(&format!("/api/spool/{id}/retry"), "").await;
    assert_eq!((retried.status, retried.json()), (200, json!({"id": id, "state": "waiting"})));
    let again = world.post(&format!("/api/spool/{id}/retry"), "").await;
    assert_eq!(again.status, 409);
    assert!(again.json()["error"].as_str().unwrap().starts_with(&format!("record {id} is waiting, not parked")));
    assert_eq!(*world.ledger.moves.lock().unwrap(), [("events.us-east-1.1.7;tag=00".to_string(), Place::Waiting)]);
    let entry = &world.get("/api/journal?kind=record_retried").await.json()["entries"][0];
    assert_eq!((&entry["subject"], &entry["fields"]["route"]), (&json!(format!("record:{id}")), &json!("events")));
    assert_eq!(world.get("/api/spool?state=waiting&limit=5").await.json()["records"][0]["id"], json!(id));
    world.end().await;
}

#[tokio::test]
async fn giving_up_a_record_takes_a_reason() {
    let world = world().await;
    let id = world.park("8").await;
    let target = format!("/api/spool/{id}/discard");
    for body in ["", "{}", "{\"reason\": \"  \"}", "{\"reason\": 3}", "{\"reason\":\"a\",\"x\":1}"] {
        let answer = world.post(&target, body).await;
        assert_eq!((answer.status, &answer.json()["field"]), (400, &json!("reason")), "{body}");
    }
    let long = json!({"reason": "x".repeat(257)}).to_string();
    assert_eq!(world.post(&target, &long).await.status, 400);
    let answer = world.post(&target, r#"{"reason": " test order "}"#).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"id": id, "state": "discarded"})));
    assert_eq!(world.ledger.moves.lock().unwrap()[0].1, Place::Discarded);
    let entry = &world.get("/api/journal?kind=record_discarded").await.json()["entries"][0];
    assert_eq!(entry["fields"]["reason"], "test order");
    let settled = world.get(&format!("/api/spool/{id}")).await.json();
    assert_eq!((&settled["state"], &settled["settled"]["reason"]), (&json!("discarded"), &json!("test order")));
    assert_eq!(world.post("/api/spool/99/discard", r#"{"reason":"r"}"#).await.status, 404);
    world.end().await;
}

#[tokio::test]
async fn a_delivered_record_shows_its_status() {
    let world = world().await;
    let id = world.store.spool.enqueue(&record("9")).await.unwrap().id;
    let mut leases = world.store.spool.lease("queue", 1, std::time::Duration::from_secs(9)).await.unwrap();
    let listed = world.get("/api/spool?state=leased").await.json();
    assert_eq!(listed["records"][0]["state"], "leased");
    let busy = world.post(&format!("/api/spool/{id}/discard"), r#"{"reason":"r"}"#).await;
    assert_eq!(busy.status, 409);
    assert!(busy.json()["error"].as_str().unwrap().contains("being delivered right now"), "{}", busy.body);
    assert!(world.store.spool.ack(leases.leased.remove(0).lease, 201).await.unwrap());
    let shown = world.get(&format!("/api/spool/{id}")).await.json();
    assert_eq!((&shown["state"], &shown["settled"]["status"]), (&json!("delivered"), &json!(201)));
    assert_eq!(world.post(&format!("/api/spool/{id}/retry"), "").await.status, 409);
    world.end().await;
}

#[tokio::test]
async fn receipts_go_to_the_ledger_and_its_refusals_come_back() {
    let world = world().await;
    let batch = r#"{"sink":"warehouse","batch":1,"receipts":[{"record":"events.n.1.1","tag":"00","digest":"00"}]}"#;
    let answer = world.post("/api/ledger/receipts", batch).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"accepted": 1})));
    assert_eq!(world.ledger.batches.lock().unwrap()[0].receipts[0].record, "events.n.1.1");
    for (body, field) in [
        ("{", "receipts"),
        (r#"{"batch":1,"receipts":[]}"#, "sink"),
        (r#"{"sink":"w","receipts":[]}"#, "batch"),
        (r#"{"sink":"w","batch":1}"#, "receipts"),
    ] {
        let answer = world.post("/api/ledger/receipts", body).await;
        assert_eq!((answer.status, &answer.json()["field"]), (400, &json!(field)), "{body}");
    }
    for (refusal, status, body) in [
        (
            LedgerRefusal::Gap { expected: 4 },
            409,
            json!({"error": "a batch is missing: batch 4 comes next", "field": "batch", "allowed": ["4"]}),
        ),
        (
            LedgerRefusal::Invalid { field: "sink", message: "no name".into() },
            400,
            json!({"error": "no name", "field": "sink"}),
        ),
        (LedgerRefusal::Unavailable { message: "the disk is full".into() }, 503, json!({"error": "the disk is full"})),
    ] {
        *world.ledger.refusal.lock().unwrap() = Some(refusal);
        let answer = world.post("/api/ledger/receipts", batch).await;
        assert_eq!((answer.status, answer.json()), (status, body));
        assert_eq!(answer.has("retry-after: 5"), status == 503);
    }
    world.end().await;
}

#[tokio::test]
async fn the_ledger_is_shown_and_sealed() {
    let world = world().await;
    let open = world.get("/api/ledger").await.json();
    assert_eq!((&open["verdict"], &open["totals"]["accepted"]), (&json!("unknown"), &json!(8)));
    assert_eq!(
        open["streams"][0],
        json!({
            "stream": "events", "producer": "us-east-1", "epoch": 1, "state": "open", "accepted": 7, "refused": 0,
            "indeterminate": 0, "delivered": 5, "waiting": 2, "parked": 0, "expired": 0, "lost": 0, "duplicated": 0,
            "corrupted": 0, "recovered": 0, "resurrected": 0, "phantom": 0, "missing_so_far": 0,
        })
    );
    let sealed = world.post("/api/ledger/seal", "").await.json();
    assert_eq!((&sealed["verdict"], &sealed["streams"][0]["state"]), (&json!("balanced"), &json!("sealed")));
    world.end().await;
}

#[tokio::test]
async fn a_token_is_asked_for_everything_but_probes_and_metrics() {
    let world = world_with(Some("s3cret")).await;
    for open in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(world.get(open).await.status, 200, "{open}");
    }
    for closed in ["/", "/events", "/assets/overview.css", "/api/status", "/api/journal", "/api/spool", "/api/ledger"] {
        let answer = world.get(closed).await;
        assert_eq!((answer.status, &answer.json()["field"]), (401, &json!("Authorization")), "{closed}");
        assert!(answer.has("www-authenticate: bearer realm=\"seawall\""), "{}", answer.head);
    }
    assert_eq!(world.post("/api/ledger/seal", "").await.status, 401);
    let with = |value: &str| {
        let host = &world.address;
        format!("GET /api/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: {value}\r\n\r\n")
    };
    assert_eq!(world.call(&with("Bearer s3cret")).await.status, 200);
    assert_eq!(world.call(&with("Basic YTpzM2NyZXQ=")).await.status, 200, "a:s3cret");
    assert_eq!(world.call(&with("Bearer wrong!")).await.status, 401);
    world.end().await;
}

#[tokio::test]
async fn pages_of_other_sites_cannot_write() {
    let world = world().await;
    let answer = world.post_with("/api/ledger/seal", "Origin: http://evil.example\r\n", "").await;
    assert_eq!((answer.status, &answer.json()["field"]), (403, &json!("Origin")));
    let own = format!("Origin: http://{}\r\n", world.address);
    assert_eq!(world.post_with("/api/ledger/seal", &own, "").await.status, 200);
    world.end().await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_or_cut_short_is_refused() {
    let world = world().await;
    let mut stream = tokio::net::TcpStream::connect(&world.address).await.unwrap();
    let length = seawall_control::api::BODY_BYTES_MAX + 1;
    let head = format!("POST /api/ledger/receipts HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let send = async {
        // The node may answer and close before all is sent.
        for _ in 0..=(length >> 20) {
            if writer.write_all(&vec![b' '; 1 << 20]).await.is_err() {
                break;
            }
        }
    };
    let mut answer = [0; 12];
    let (_, read) = tokio::join!(send, reader.read_exact(&mut answer));
    read.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    let mut stream = tokio::net::TcpStream::connect(&world.address).await.unwrap();
    let head = "POST /api/ledger/receipts HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    world.end().await;
}

#[tokio::test]
async fn garbage_is_answered_and_the_node_goes_on() {
    let world = world().await;
    assert_eq!(world.call("\u{0}garbage\r\n\r\n").await.status, 400);
    let long = format!("/api/journal?subject={}", "x".repeat(5_000));
    assert_eq!(world.get(&long).await.status, 200);
    assert_eq!(world.get("/api/journal?subject=%ff%00").await.status, 200);
    let debug = format!("{:?}", world.admin);
    assert!(debug.contains("us-east-1"), "{debug}");
    world.end().await;
}

#[tokio::test]
async fn once_the_store_is_closed_calls_say_so() {
    let world = world().await;
    world.store.close().await;
    for target in ["/api/spool", "/api/spool/1"] {
        let answer = world.get(target).await;
        assert_eq!(answer.status, 503, "{target}");
        assert!(answer.json()["error"].as_str().unwrap().starts_with("the store has stopped"), "{}", answer.body);
    }
    assert_eq!(world.get("/api/journal").await.status, 200, "memory still answers");
    assert_eq!(world.store.journal.last().map_or(Seq(0), |seq| seq).0, world.store.journal.recent(9).len() as u64);
    world.end().await;
}

#[tokio::test]
async fn the_census_of_a_stream_is_told_with_its_salt() {
    let world = world().await;
    let period = "since=2026-11-25T13:00:03Z&until=2026-11-25T14:00:00Z";
    let told = world.get(&format!("/api/ledger/census?stream=events&{period}")).await;
    assert_eq!(told.status, 200);
    let told = told.json();
    assert_eq!((&told["since"], &told["is_complete"]), (&json!("2026-11-25T13:00:03.000Z"), &json!(true)));
    assert_eq!((&told["census"]["bag"]["count"], &told["salt"]), (&json!(1), &json!("01".repeat(32))));
    assert!(told["census"]["sketch"][0][1]["ids"].is_string(), "beyond the numbers of JSON: {told}");
    for (target, status, field) in [
        (format!("stream=quotes&{period}"), 404, "stream"),
        (period.to_owned(), 400, "stream"),
        ("stream=events&since=2026-11-25T13:00:03Z".to_owned(), 400, "until"),
        ("stream=events&since=yesterday&until=2026-11-25T13:00:03Z".to_owned(), 400, "since"),
    ] {
        let refused = world.get(&format!("/api/ledger/census?{target}")).await;
        assert_eq!((refused.status, &refused.json()["field"]), (status, &json!(field)), "{target}");
    }
    world.end().await;
}

fn framed(orphans: &[Orphan]) -> Vec<u8> {
    let mut body = Vec::new();
    for orphan in orphans {
        let mut bytes = Vec::new();
        orphan.encode(&mut bytes);
        body.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
        body.extend(bytes);
    }
    body
}

#[tokio::test]
async fn orphans_are_adopted_row_by_row() {
    let world = world().await;
    let orphan = |id: u64, key: &str| Orphan {
        id: RecordId(id),
        record: record(key),
        attempts: 2,
        last_error: "503".into(),
        parked: None,
    };
    let large = Orphan { record: NewRecord { body: vec![0; 2 << 20], ..record("2") }, ..orphan(2, "2") };
    let free = Orphan { record: NewRecord { order_key: None, ..record("4") }, ..orphan(4, "4") };
    let body = framed(&[orphan(1, "1"), large, orphan(3, "3"), free]);
    let answer = world.post_bytes("/api/spool/adopt?node=dead", &body).await;
    assert_eq!(answer.status, 200);
    let told = answer.json();
    assert_eq!(told["adopted"], 2, "{told}");
    let from: Vec<u64> = told["records"].as_array().unwrap().iter().map(|it| it["from"].as_u64().unwrap()).collect();
    assert_eq!(from, [1, 2, 4], "what comes behind the one that found no room waits with it");
    assert!(told["records"][1]["error"].as_str().unwrap().contains("store.record_max"), "{told}");
    let again = world.post_bytes("/api/spool/adopt?node=dead", &framed(&[orphan(1, "1")])).await.json();
    assert_eq!((&again["adopted"], &again["records"][0]["already"]), (&json!(0), &json!(true)));
    let cut = world.post_bytes("/api/spool/adopt?node=dead", &body[..body.len() - 1]).await;
    assert_eq!((cut.status, &cut.json()["field"]), (400, &json!("body")));
    let stranger = Orphan { record: NewRecord { upstream: "nobody".into(), ..record("5") }, ..orphan(5, "5") };
    let told = world.post_bytes("/api/spool/adopt?node=dead", &framed(&[stranger, orphan(6, "6")])).await.json();
    assert!(told["records"][0]["error"].as_str().unwrap().contains("for an upstream `nobody`"), "{told}");
    assert_eq!((&told["adopted"], &told["records"][1]["from"]), (&json!(1), &json!(6)));
    let listed = world.get("/api/spool?after=1&limit=1").await.json();
    assert_eq!(listed["records"][0]["id"], 2);
    // Its account comes with it, before and after; what is here already under another number is on the books as that.
    let stamped = |id: u64, key: &str| {
        let headers = vec![("Seawall-Record".into(), b"e.dead.1.9;tag=0".to_vec())];
        let record = NewRecord { ledger: Some("e.dead.1.9;tag=0".into()), headers, ..record(key) };
        Orphan { record, ..orphan(id, key) }
    };
    let parked = Some(Parked { reason: "refused".into(), ..Parked::default() });
    let batch = framed(&[stamped(7, "7"), Orphan { parked, ..stamped(8, "8") }, stamped(9, "6")]);
    for already in [false, true] {
        world.ledger.moves.lock().unwrap().clear();
        let told = world.post_bytes("/api/spool/adopt?node=dead", &batch).await.json();
        assert_eq!((&told["records"][0]["already"], &told["records"][2]["already"]), (&json!(already), &json!(true)));
        let ours = || "e.dead.1.9;tag=0 of ours".to_owned();
        assert_eq!(*world.ledger.moves.lock().unwrap(), [(ours(), Place::Waiting), (ours(), Place::Parked)]);
        let leased =
            world.store.spool.get(RecordId(told["records"][0]["id"].as_u64().unwrap())).await.unwrap().unwrap();
        assert_eq!(leased.record.unwrap().headers[0].1, ours().into_bytes(), "it travels under it");
    }
    *world.ledger.refusal.lock().unwrap() = Some(LedgerRefusal::Unavailable { message: "no room".into() });
    let refused = world.post_bytes("/api/spool/adopt?node=dead", &framed(&[orphan(10, "10")])).await;
    assert_eq!((refused.status, world.store.spool.lookup("10").await.unwrap()), (503, None), "not without its account");
    world.end().await;
}
