//! Scanners, predictors and the monitor against the company's real servers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use seawall_demo::caller::{Called, Caller, Kind, LineLog};
use seawall_demo::carrier::{self, CarrierArgs};
use seawall_demo::clock;
use seawall_demo::company::read_lines;
use seawall_demo::model;
use seawall_demo::monitor::{self, MonitorArgs};
use seawall_demo::predictor::{self, PredictorArgs};
use seawall_demo::producer::{self, Due, ProducerArgs};
use seawall_demo::queue::{self, QueueArgs};
use seawall_demo::tally::{Handed, Row, tally};
use seawall_demo::tracking::{Generator, Scan};
use seawall_demo::warehouse::{self, WarehouseArgs};
use seawall_demo::web::{self, Answer, Call, Manner};

use super::*;

/// A server with this handler.
async fn a_server(servers: &mut Servers, handler: impl Fn(Call) -> Answer + Send + Sync + 'static) -> SocketAddr {
    let listen = address();
    servers.spawn(async move {
        let handler = move |call: Call| {
            std::future::ready(if call.path == "/healthz" { Answer::new(200, "ok") } else { handler(call) })
        };
        match web::serve(web::bind(listen).await?, handler).await {}
    });
    up(listen).await;
    listen
}

fn caller(dir: &Path, bases: &[SocketAddr], keyed: bool) -> Caller {
    let log = LineLog::open(&dir.join("calls")).unwrap();
    Caller::new(Client::default(), bases.iter().map(SocketAddr::to_string).collect(), log, keyed)
}

fn calls(dir: &Path) -> Vec<Called> {
    read_lines(&dir.join("calls")).unwrap()
}

#[tokio::test]
async fn three_tries_one_right_after_the_other_then_no_more() {
    let (mut servers, dir) = (Servers::new(), tempfile::tempdir().unwrap());
    let asked = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&asked);
    let sick = a_server(&mut servers, move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Answer::new(503, "no")
    });
    let sick = sick.await;
    assert!(caller(dir.path(), &[sick], false).call(Kind::Quote, None, Ask::get("/")).await.is_none());
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    let [called] = &calls(dir.path())[..] else { panic!("one line a call") };
    assert_eq!((called.tries, called.status, called.kept), (3, 503, false));
}

#[tokio::test]
async fn a_cut_answer_is_success_to_the_code_and_failure_to_the_measuring() {
    let (mut servers, dir) = (Servers::new(), tempfile::tempdir().unwrap());
    let cutting = a_server(&mut servers, |_| Answer::new(200, "0123456789").in_manner(Manner::CutAt(4))).await;
    let got = caller(dir.path(), &[cutting], false).call(Kind::Lease, None, Ask::get("/")).await.unwrap();
    assert_eq!(&got.body[..], b"0123");
    assert!(!calls(dir.path())[0].kept && calls(dir.path())[0].status == 200);
}

#[tokio::test]
async fn the_next_address_is_tried_when_a_connection_fails_or_breaks() {
    let (mut servers, dir) = (Servers::new(), tempfile::tempdir().unwrap());
    let resetting = a_server(&mut servers, |_| Answer::default().in_manner(Manner::Reset)).await;
    let well = a_server(&mut servers, |call| {
        Answer::new(200, call.header("idempotency-key").unwrap_or("none").to_string()).with("seawall-degraded", "stale")
    });
    let bases = [address(), resetting, well.await];
    let key = |keyed| {
        let caller = caller(dir.path(), &bases, keyed);
        async move { caller.call(Kind::Write, Some("A-1"), Ask::post("/", "x")).await.unwrap().body }
    };
    assert_eq!((&key(true).await[..], &key(false).await[..]), (&b"A-1"[..], &b"none"[..]));
    assert!(calls(dir.path()).iter().all(|called| called.tries == 1 && called.kept && called.degraded));
}

/// Queue, carrier and warehouse, a predictor, and a scanner that hands these events over.
async fn hand_over(scans: &[Scan], keyed: bool, folder: &Path) -> (Vec<Handed>, Vec<Row>) {
    let mut servers = Servers::new();
    let (queue_at, control, carrier_at, warehouse_at) = (address(), address(), address(), address());
    servers.spawn(queue::play(QueueArgs { listen: queue_at, control, seed: 1 }));
    servers.spawn(carrier::play(CarrierArgs { listen: carrier_at, limit: 10_000.0 }));
    let rows = folder.join("rows");
    servers.spawn(warehouse::play(WarehouseArgs { listen: warehouse_at, rows: rows.clone(), admin: Vec::new() }));
    for server in [queue_at, carrier_at, warehouse_at] {
        up(server).await;
    }
    let history = folder.join("history.json");
    model::write_history(&history, &Generator::new(1, "H").take(60)).unwrap();
    servers.spawn(predictor::play(PredictorArgs {
        zone: "us-east".into(),
        queue: vec![queue_at.to_string()],
        carrier: vec![carrier_at.to_string()],
        warehouse: vec![warehouse_at.to_string()],
        history,
        log: folder.join("predictor"),
        keyed,
        seed: 7,
    }));
    let due: Vec<String> =
        scans.iter().map(|scan| serde_json::to_string(&Due { at_ms: 0, line: scan.event.line() }).unwrap()).collect();
    let (events, manifest) = (folder.join("events"), folder.join("manifest"));
    std::fs::write(&events, due.join("\n")).unwrap();
    let scanner = ProducerArgs {
        events,
        start_ms: clock::now_ms(),
        target: vec![queue_at.to_string()],
        manifest: manifest.clone(),
        log: folder.join("producer"),
        keyed,
    };
    producer::play(scanner).await.unwrap();
    until("every row", || async {
        let text = std::fs::read_to_string(&rows).unwrap_or_default();
        (text.lines().count() >= scans.len()).then_some(())
    })
    .await;
    let text = std::fs::read_to_string(&rows).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (read_lines(&manifest).unwrap(), rows)
}

#[tokio::test]
async fn on_a_calm_day_everything_arrives_once_with_or_without_keys() {
    for keyed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let scans = Generator::new(5, "S").take(120);
        let (handed, rows) = hand_over(&scans, keyed, dir.path()).await;
        let counts = tally(&handed, &rows).tally;
        assert_eq!((counts.accepted, counts.delivered), (120, 120));
        assert_eq!((counts.lost, counts.duplicated, counts.corrupted), (0, 0, 0));
        assert!(rows.iter().all(|row| row.eta_hours > 0.0 && row.price_cents.is_some()));
    }
}

#[tokio::test]
async fn a_scanner_without_its_events_says_so() {
    let args = ProducerArgs {
        events: "no/such/file".into(),
        start_ms: 0,
        target: vec!["127.0.0.1:1".into()],
        manifest: "no/such/manifest".into(),
        log: "no/such/log".into(),
        keyed: false,
    };
    assert!(format!("{:#}", producer::play(args).await.unwrap_err()).starts_with("cannot read `no/such/file`"));
}

#[tokio::test]
async fn the_monitor_raises_an_alert_for_a_service_that_is_down() {
    let (dir, mut servers) = (tempfile::tempdir().unwrap(), Servers::new());
    let log = dir.path().join("monitor");
    servers.spawn(monitor::play(MonitorArgs { target: address().to_string(), log: log.clone() }));
    let alerts: Vec<Called> = until("the alert", || async {
        let lines: Vec<Called> = read_lines(&log).unwrap();
        (!lines.is_empty()).then_some(lines)
    })
    .await;
    assert_eq!(alerts[0].kind, Kind::Alert);
}
