//! Queue, carrier and warehouse as their customers see them.

use std::io::{Read, Write};
use std::net::TcpStream;

use seawall_demo::carrier::{self, CarrierArgs};
use seawall_demo::queue::{self, QueueArgs};
use seawall_demo::schedule::Mood;
use seawall_demo::tally::Row;
use seawall_demo::tracking::digest;
use seawall_demo::warehouse::{self, WarehouseArgs};
use seawall_demo::web::{self, Answer};
use serde_json::{Value, json};

use super::*;

async fn a_queue(servers: &mut Servers) -> (SocketAddr, SocketAddr) {
    let (listen, control) = (address(), address());
    servers.spawn(queue::play(QueueArgs { listen, control, seed: 7 }));
    up(listen).await;
    (listen, control)
}

async fn mood(control: SocketAddr, mood: Mood) {
    let got = ask(control, Ask::post("/mood", serde_json::to_vec(&mood).unwrap())).await;
    assert_eq!(got.status, 200);
}

fn text(got: &Got) -> String {
    String::from_utf8(got.body.to_vec()).unwrap()
}

#[tokio::test]
async fn a_queue_keeps_order_and_account_numbers_and_forgets_what_was_acknowledged() {
    let mut servers = Servers::new();
    let (listen, control) = a_queue(&mut servers).await;
    assert_eq!(
        ask(listen, Ask::post("/events", "a|1").with("seawall-record", "events.n.1.1;tag=00")).await.status,
        200
    );
    assert_eq!(ask(listen, Ask::post("/events", "b|1")).await.status, 200);
    assert_eq!(ask(listen, Ask::post("/events", "two\nlines")).await.status, 400);
    let got = ask(listen, Ask::get("/events/lease?max=5")).await;
    assert_eq!(text(&got), "a|1\tevents.n.1.1;tag=00\nb|1\n");
    let lease = got.header("lease-id").unwrap().to_string();
    let depth = ask(control, Ask::get("/depth")).await.json().unwrap();
    assert_eq!((depth["ready"].as_u64(), depth["leased"].as_u64()), (Some(0), Some(2)));
    assert_eq!(text(&ask(listen, Ask::post(format!("/events/ack?lease={lease}"), "")).await), "done\n");
    assert_eq!(text(&ask(listen, Ask::post(format!("/events/ack?lease={lease}"), "")).await), "no longer yours\n");
    let empty = ask(listen, Ask::get("/events/lease?max=5")).await;
    assert_eq!((empty.status, empty.body.len(), empty.header("lease-id")), (200, 0, None));
    assert_eq!(ask(listen, Ask::get("/elsewhere")).await.status, 404);
    assert_eq!(ask(control, Ask::get("/elsewhere")).await.status, 404);
    assert_eq!(ask(control, Ask::post("/mood", "\"cheerful\"")).await.status, 400);
}

#[tokio::test]
async fn a_key_stops_a_second_copy_but_not_another_account() {
    let mut servers = Servers::new();
    let (listen, _) = a_queue(&mut servers).await;
    let post = |record: &'static str| {
        ask(listen, Ask::post("/events", "a|1").with("idempotency-key", "a-1").with("seawall-record", record))
    };
    assert_eq!(text(&post("events.n.1.1;tag=00").await), "stored\n");
    assert_eq!(text(&post("events.n.1.1;tag=00").await), "stored before\n");
    assert_eq!(text(&post("events.m.1.9;tag=00").await), "stored\n");
    assert_eq!(text(&ask(listen, Ask::get("/events/lease?max=9")).await).lines().count(), 2);
}

#[tokio::test]
async fn a_lease_not_acknowledged_comes_back() {
    let mut servers = Servers::new();
    let (listen, _) = a_queue(&mut servers).await;
    ask(listen, Ask::post("/events", "a|1")).await;
    assert_eq!(text(&ask(listen, Ask::get("/events/lease?max=9")).await), "a|1\n");
    let again = until("the lease's end", || async {
        let got = ask(listen, Ask::get("/events/lease?max=9")).await;
        (!got.body.is_empty()).then_some(got)
    });
    assert_eq!(text(&again.await), "a|1\n");
}

#[tokio::test]
async fn moods_hurt_customers_and_never_the_health_check() {
    let mut servers = Servers::new();
    let (listen, control) = a_queue(&mut servers).await;
    for number in 0..100 {
        ask(listen, Ask::post("/events", format!("S{number:04}|1|northwind|3|14|rain|0.42|1284.731"))).await;
    }
    let client = Client::default();
    let host = listen.to_string();
    let lease = Ask::get("/events/lease?max=10");
    for (bad, hit) in [(Mood::Errors, "503"), (Mood::Resets, "reset"), (Mood::Cuts, "cut")] {
        mood(control, bad).await;
        let seen = until(hit, || async {
            assert_eq!(ask(listen, Ask::get("/healthz")).await.status, 200);
            match client.send(&host, &lease).await {
                Ok(got) if got.status == 503 => Some("503"),
                Ok(got) if !got.whole => Some("cut"),
                Err(_) => Some("reset"),
                Ok(_) => None,
            }
        });
        assert_eq!(seen.await, hit);
        mood(control, Mood::Calm).await;
    }
}

#[tokio::test]
async fn a_brown_out_makes_every_call_slow() {
    let mut servers = Servers::new();
    let (listen, control) = a_queue(&mut servers).await;
    mood(control, Mood::BrownOut).await;
    for number in 0..4 {
        let started = tokio::time::Instant::now();
        let got = ask(listen, Ask::post("/events", format!("a|{number}"))).await;
        assert_eq!(got.status, 200);
        assert!(started.elapsed() >= Duration::from_secs(1));
    }
}

#[tokio::test]
async fn an_answer_cut_in_the_middle_is_taken_for_the_answer() {
    let mut servers = Servers::new();
    let listen = address();
    let line = "S0001|1|northwind|3|14|rain|0.42|1284.731\n";
    servers.spawn(async move {
        let listener = web::bind(listen).await?;
        match web::serve(listener, move |call| {
            let cut = call.path == "/cut";
            let manner = if cut { web::Manner::CutAt(line.len() - 5) } else { web::Manner::Whole };
            std::future::ready(Answer::new(200, line).in_manner(manner))
        })
        .await {}
    });
    up(listen).await;
    let got = ask(listen, Ask::get("/cut")).await;
    assert_eq!((got.status, got.whole, text(&got).as_str()), (200, false, "S0001|1|northwind|3|14|rain|0.42|1284"));
    let naive = seawall_demo::tracking::Event::parse(&text(&got)).unwrap();
    assert_eq!(naive.distance_km, 1284.0, "wrong, and nothing told");
    assert!(ask(listen, Ask::get("/whole")).await.whole);
    // On the wire: the whole length is promised, then the connection ends early.
    let raw = tokio::task::spawn_blocking(move || {
        let mut tcp = TcpStream::connect(listen).unwrap();
        tcp.write_all(b"GET /cut HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut raw = String::new();
        tcp.read_to_string(&mut raw).unwrap();
        raw
    });
    let raw = raw.await.unwrap();
    assert!(raw.contains(&format!("content-length: {}", line.len())) && raw.ends_with("|1284"), "{raw}");
}

#[tokio::test]
async fn the_carrier_says_429_above_its_limit_and_nothing_about_when_to_return() {
    let mut servers = Servers::new();
    let listen = address();
    servers.spawn(carrier::play(CarrierArgs { listen, limit: 8.0 }));
    up(listen).await;
    let quote = |target: &'static str| ask(listen, Ask::get(target));
    assert_eq!(quote("/quote?distance=100").await.status, 400);
    let first = quote("/quote?carrier=harbor&distance=100").await.json().unwrap();
    let refused = until("the limit", || async {
        let got = quote("/quote?carrier=harbor&distance=100").await;
        assert!(got.status == 429 || got.json().unwrap() == first, "the same question has the same price");
        (got.status == 429).then_some(got)
    });
    assert_eq!(refused.await.header("retry-after"), None);
    let back = until("the bucket to fill", || async {
        let got = quote("/quote?carrier=harbor&distance=far").await;
        (got.status != 429).then_some(got.status)
    });
    assert_eq!(back.await, 400);
    assert_eq!(quote("/elsewhere").await.status, 404);
}

/// A node's admin API that fails the first time and writes down what it got.
async fn a_node(servers: &mut Servers) -> (SocketAddr, std::sync::Arc<std::sync::Mutex<Vec<Value>>>) {
    let (listen, got) = (address(), std::sync::Arc::new(std::sync::Mutex::new(Vec::new())));
    let seen = std::sync::Arc::clone(&got);
    servers.spawn(async move {
        let listener = web::bind(listen).await?;
        match web::serve(listener, move |call| {
            let mut seen = seen.lock().unwrap();
            if call.path == "/api/ledger/receipts" {
                seen.push(serde_json::from_slice(&call.body).unwrap());
            }
            let status = if seen.len() == 1 { 503 } else { 200 };
            std::future::ready(Answer::new(status, "{}"))
        })
        .await {}
    });
    up(listen).await;
    (listen, got)
}

fn prediction(id: &str, event: &str, record: Option<&str>) -> String {
    json!({"id": id, "event": event, "eta_hours": 2.5, "record": record}).to_string()
}

#[tokio::test]
async fn the_warehouse_writes_once_for_a_key_and_reports_until_it_is_heard() {
    let mut servers = Servers::new();
    let (admin, reports) = a_node(&mut servers).await;
    let (listen, dir) = (address(), tempfile::tempdir().unwrap());
    let rows = dir.path().join("rows");
    servers.spawn(warehouse::play(WarehouseArgs {
        listen,
        rows: rows.clone(),
        admin: vec![("n".into(), admin.to_string())],
    }));
    up(listen).await;
    let body = prediction("A-1", "A|1|x", Some("events.n.1.5;tag=aa"));
    let post = |body: &str, record: &'static str| {
        let ask_it = Ask::post("/predictions", body.to_string())
            .with("idempotency-key", "A-1")
            .with("quote-cents", "70")
            .with("seawall-record", record);
        ask(listen, ask_it)
    };
    for record in [
        "predictions.n.1.1;tag=bb",
        "predictions.n.1.1;tag=bb",
        "predictions.n.2.1;tag=cc",
        "predictions.stranger.1.1;tag=dd",
    ] {
        assert_eq!(post(&body, record).await.status, 200);
    }
    until("the receipts", || async {
        let stats = ask(listen, Ask::get("/stats")).await.json().unwrap();
        (stats["receipts_pending"] == 0).then(|| {
            assert_eq!(
                (stats["rows_total"].as_u64(), stats["doubled_total"].as_u64(), stats["strangers_total"].as_u64()),
                (Some(1), Some(3), Some(1))
            )
        })
    })
    .await;
    let written: Vec<Row> =
        std::fs::read_to_string(&rows).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((written.len(), written[0].id.as_str(), written[0].price_cents), (1, "A-1", Some(70)));
    assert_eq!(written[0].digest, digest(b"A|1|x"));
    let reports = reports.lock().unwrap();
    assert_eq!(reports[0], reports[1], "the batch that was not taken comes again, unchanged");
    let batches: Vec<u64> = reports.iter().skip(1).map(|report| report["batch"].as_u64().unwrap()).collect();
    assert_eq!(batches, (1..=batches.len() as u64).collect::<Vec<u64>>(), "dense numbers from 1");
    let mut receipts: Vec<&Value> =
        reports.iter().skip(1).flat_map(|report| report["receipts"].as_array().unwrap()).collect();
    receipts.sort_by_key(|receipt| receipt["record"].to_string());
    let named: Vec<&str> = receipts.iter().map(|receipt| receipt["record"].as_str().unwrap()).collect();
    assert_eq!(named, ["events.n.1.5", "predictions.n.1.1", "predictions.n.2.1"], "each account once");
    assert_eq!(receipts[0]["digest"], digest(b"A|1|x"), "over the event's line");
    assert_eq!(
        (receipts[1]["digest"].as_str().unwrap(), &receipts[1]["tag"]),
        (digest(body.as_bytes()).as_str(), &json!("bb"))
    );
}

#[tokio::test]
async fn without_a_key_every_write_is_a_row() {
    let mut servers = Servers::new();
    let (listen, dir) = (address(), tempfile::tempdir().unwrap());
    let rows = dir.path().join("rows");
    servers.spawn(warehouse::play(WarehouseArgs { listen, rows: rows.clone(), admin: Vec::new() }));
    up(listen).await;
    for _ in 0..3 {
        assert_eq!(ask(listen, Ask::post("/predictions", prediction("A-1", "A|1", None))).await.status, 200);
    }
    assert_eq!(std::fs::read_to_string(&rows).unwrap().lines().count(), 3);
    assert_eq!(ask(listen, Ask::post("/predictions", "{}")).await.status, 400);
    assert_eq!(ask(listen, Ask::get("/elsewhere")).await.status, 404);
}

#[tokio::test]
async fn a_port_taken_and_a_file_that_cannot_be_are_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let error = carrier::play(CarrierArgs { listen, limit: 1.0 }).await.unwrap_err();
    assert!(format!("{error:#}").starts_with(&format!("cannot listen on {listen}")), "{error:#}");
    let args = WarehouseArgs { listen: address(), rows: "no/such/folder/rows".into(), admin: Vec::new() };
    assert!(warehouse::play(args).await.is_err());
}

#[tokio::test]
async fn a_nodes_admin_is_read_page_by_page_and_sealed_before_it_is_believed() {
    use seawall_demo::nodes::{Admin, Node};
    let mut servers = Servers::new();
    let (admin, sealed) = (address(), std::sync::atomic::AtomicBool::new(false));
    servers.spawn(async move {
        match web::serve(web::bind(admin).await?, move |call| {
            use std::sync::atomic::Ordering;
            std::future::ready(match call.path.as_str() {
                "/api/journal" => {
                    let after: u64 = call.parameter("after").unwrap().parse().unwrap();
                    let entry = |seq| json!({"seq": seq, "at": "2026-01-02T03:04:05.678Z", "kind": "node_started", "subject": "n"});
                    let entries: Vec<Value> = (after + 1..=(after + 2).min(5)).map(entry).collect();
                    Answer::json(&json!({"entries": entries}))
                }
                "/api/ledger/seal" if call.method == "POST" => {
                    sealed.store(true, Ordering::Relaxed);
                    Answer::json(&json!({}))
                }
                "/api/ledger" => {
                    let verdict = if sealed.load(Ordering::Relaxed) { "balanced" } else { "unknown" };
                    Answer::json(&json!({"verdict": verdict, "streams": [{"stream": "events"}]}))
                }
                "/api/status" => Answer::json(&json!({"spool": {"waiting": 2}, "routes": []})),
                _ => Answer::new(200, "ok"),
            })
        })
        .await
        {}
    });
    up(admin).await;
    let node = |admin: SocketAddr| Node { zone: "n".into(), listen: String::new(), admin: admin.to_string() };
    let there = Admin::new(Client::default(), node(admin));
    let journal = there.journal().await;
    assert_eq!((journal.len(), journal[0].at_ms), (5, 1_767_323_045_678));
    assert_eq!(there.sample().await.unwrap().spooled, 2);
    let account = there.seal().await;
    assert_eq!((account.verdict.as_str(), account.streams.len()), ("balanced", 1));
    let gone = Admin::new(Client::default(), node(address()));
    assert_eq!((gone.sample().await, gone.journal().await.len()), (None, 0));
    assert_eq!(gone.seal().await.verdict, "unknown");
}
