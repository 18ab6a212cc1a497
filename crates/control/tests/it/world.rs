//! A node whose parts the test holds in its hands, and a client of few words.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use seawall_control::{
    Admin, AdminParts, BoxFuture, ConfigPort, FaultPort, Foreign, LedgerPort, LedgerRefusal, NodeInfo, NotReloaded,
    Reloaded,
};
use seawall_core::balance::assign::VersionCounts;
use seawall_core::ledger::census::{Census, Member, Salt};
use seawall_core::ledger::{Counted, Counts, Place, Receipts, State, StreamSummary, Summary, Verdict};
use seawall_core::observation::CertificateSnapshot;
use seawall_core::observation::{
    BreakerSnapshot, EndpointSnapshot, LimitSnapshot, NodeSnapshot, RouteSnapshot, UpstreamSnapshot,
};
use seawall_core::spool::{NewRecord, Terms};
use seawall_core::time::{Mono, Wall};
use seawall_store::{ClockFn, EngineThreads, SimDisk, Store, StoreOptions};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::drains::FakeDrains;
use crate::faults::FakeFaults;

pub(crate) const START: Wall = Wall::from_millis(1_700_000_000_000);

/// What the ledger was told, and what it answers.
#[derive(Default)]
pub(crate) struct FakeLedger {
    pub(crate) batches: Mutex<Vec<Receipts>>,
    pub(crate) moves: Mutex<Vec<(String, Place)>>,
    pub(crate) refusal: Mutex<Option<LedgerRefusal>>,
    pub(crate) sealed: AtomicBool,
}

impl LedgerPort for FakeLedger {
    fn receipts(&self, batch: Receipts) -> BoxFuture<'_, Result<u64, LedgerRefusal>> {
        Box::pin(async move {
            if let Some(refusal) = self.refusal.lock().unwrap().clone() {
                return Err(refusal);
            }
            let accepted = batch.receipts.len() as u64;
            self.batches.lock().unwrap().push(batch);
            Ok(accepted)
        })
    }

    fn seal(&self) -> BoxFuture<'_, Result<Summary, LedgerRefusal>> {
        Box::pin(async move {
            self.sealed.store(true, Ordering::SeqCst);
            Ok(self.summary())
        })
    }

    fn summary(&self) -> Summary {
        let sealed = self.sealed.load(Ordering::SeqCst);
        let counts = Counts { accepted: 7, delivered: 5, waiting: 2, ..Counts::default() };
        let stream = |epoch, counts| StreamSummary {
            stream: "events".into(),
            producer: "us-east-1".into(),
            epoch,
            adopted: false,
            state: if sealed { State::Sealed } else { State::Open },
            counts,
        };
        let one = Counts { accepted: 1, delivered: 1, ..Counts::default() };
        let verdict = if sealed { Verdict::Balanced } else { Verdict::Unknown };
        let totals = Counts { accepted: 8, delivered: 6, ..counts };
        Summary { verdict, streams: vec![stream(1, counts), stream(2, one)], totals }
    }

    fn census(&self, stream: &str, since: u64, until: u64) -> Option<Counted> {
        (stream == "events").then(|| {
            let mut census = Census::default();
            census.count(&Member::of(&self.salt(), "k1"));
            Counted { since, until, is_complete: true, census }
        })
    }

    fn salt(&self) -> Salt {
        Salt([1; 32])
    }

    fn moved(&self, stamp: &str, to: Place) {
        self.moves.lock().unwrap().push((stamp.into(), to));
    }

    fn adopt(&self, records: Vec<Foreign>) -> BoxFuture<'_, Result<Vec<Option<String>>, LedgerRefusal>> {
        Box::pin(async move {
            let refusal = self.refusal.lock().unwrap().clone();
            let restamped = |it: &Foreign| it.stamp.contains(";tag=").then(|| format!("{} of ours", it.stamp));
            refusal.map_or_else(|| Ok(records.iter().map(restamped).collect()), Err)
        })
    }

    fn adopted(&self, records: Vec<(String, Place)>) -> BoxFuture<'_, Result<(), LedgerRefusal>> {
        self.moves.lock().unwrap().extend(records);
        Box::pin(async { Ok(()) })
    }
}

/// A served node.
pub(crate) struct World {
    pub(crate) address: String,
    pub(crate) store: Store,
    pub(crate) ledger: Arc<FakeLedger>,
    pub(crate) snapshot: Arc<Mutex<NodeSnapshot>>,
    pub(crate) ready: Arc<Mutex<Result<(), String>>>,
    pub(crate) admin: Admin,
    pub(crate) now: Arc<AtomicU64>,
    pub(crate) stop: CancellationToken,
    pub(crate) served: JoinHandle<()>,
    threads: Option<EngineThreads>,
}

pub(crate) async fn world() -> World {
    world_with(None).await
}

pub(crate) async fn world_with(token: Option<&str>) -> World {
    world_of(token, None).await
}

/// A node that allows faults.
pub(crate) async fn world_with_faults(faults: FakeFaults) -> World {
    world_of(None, Some(faults)).await
}

async fn world_of(token: Option<&str>, faults: Option<FakeFaults>) -> World {
    let now = Arc::new(AtomicU64::new(START.as_millis()));
    let wall = {
        let now = Arc::clone(&now);
        move || Wall::from_millis(now.load(Ordering::SeqCst))
    };
    let options = StoreOptions::new("data", "us-east-1");
    let opened =
        Store::open(SimDisk::new(1), options, ClockFn(|| Mono::ZERO, wall.clone()), || [7; 32]).expect("a store");
    let threads = opened.engine.spawn_threads().expect("threads");
    let store = opened.store;
    let ledger = Arc::new(FakeLedger::default());
    let snapshot = Arc::new(Mutex::new(snapshot()));
    let ready = Arc::new(Mutex::new(Ok(())));
    let admin = Admin::new(AdminParts {
        info: NodeInfo {
            node: "us-east-1".into(),
            zone: "us-east".into(),
            zones: vec!["us-east".into(), "us-west".into()],
            version: "0.1.0".into(),
            git: None,
            started_at: START,
        },
        view: {
            let snapshot = Arc::clone(&snapshot);
            Arc::new(move || snapshot.lock().unwrap().clone())
        },
        spool: store.spool.clone(),
        journal: store.journal.clone(),
        ledger: Arc::clone(&ledger) as Arc<dyn LedgerPort>,
        ready: {
            let ready = Arc::clone(&ready);
            Arc::new(move || ready.lock().unwrap().clone())
        },
        wall: Arc::new(wall),
        config: Arc::new(FakeConfig),
        certificates: Arc::new(|| {
            vec![CertificateSnapshot {
                subject: "listener:0.0.0.0:8443".into(),
                file: "server.pem".into(),
                names: "api.example".into(),
                not_after_ms: 1_800_000_000_000,
                pin: "sha256/AAAA".into(),
            }]
        }),
        faults: faults.map(|faults| Arc::new(faults) as Arc<dyn FaultPort>),
        drains: Arc::new(FakeDrains(Arc::clone(&snapshot))),
        token: token.map(Into::into),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let stop = CancellationToken::new();
    let served = {
        let (admin, stop) = (admin.clone(), stop.clone());
        TaskTracker::new()
            .spawn(async move { admin.serve(listener, stop, Duration::from_secs(5), CancellationToken::new()).await })
    };
    World { address, store, ledger, snapshot, ready, admin, now, stop, served, threads: Some(threads) }
}

impl World {
    /// Stops everything and waits for it.
    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        self.served.await.expect("served to the end");
        self.store.close().await;
        if let Some(threads) = self.threads.take() {
            threads.join();
        }
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.call(&format!("GET {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)).await
    }

    pub(crate) async fn post(&self, target: &str, body: &str) -> Answer {
        self.post_with(target, "", body).await
    }

    /// `headers` each ended by CR LF.
    pub(crate) async fn post_with(&self, target: &str, headers: &str, body: &str) -> Answer {
        let (host, length) = (&self.address, body.len());
        let head =
            format!("POST {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n");
        self.call(&format!("{head}{headers}\r\n{body}")).await
    }

    pub(crate) async fn post_bytes(&self, target: &str, body: &[u8]) -> Answer {
        let (host, length) = (&self.address, body.len());
        let head =
            format!("POST {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        self.call_bytes(&[head.as_bytes(), body].concat()).await
    }

    pub(crate) async fn call(&self, request: &str) -> Answer {
        self.call_bytes(request.as_bytes()).await
    }

    async fn call_bytes(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).await.expect("connected");
        stream.write_all(request).await.expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("answered");
        Answer::parse(&String::from_utf8(answer).expect("text"))
    }

    /// Keeps a record.
    pub(crate) async fn keep(&self, key: &str) -> u64 {
        let id = self.store.spool.enqueue(&record(key)).await.expect("kept").id;
        self.settle().await;
        id.0
    }

    /// The spool's depth is told at the end of a batch, after its answers: another question is another batch.
    async fn settle(&self) {
        self.store.spool.lookup("any").await.expect("answered");
    }

    /// Keeps a record and makes it a dead letter.
    pub(crate) async fn park(&self, key: &str) -> u64 {
        let id = self.store.spool.enqueue(&record(key)).await.expect("kept").id;
        let mut leases = self.store.spool.lease("queue", 1, Duration::from_secs(60)).await.expect("leased");
        let lease = leases.leased.remove(0).lease;
        assert!(self.store.spool.park(lease, "refused with 422", "no <such> shipment").await.expect("parked"));
        self.settle().await;
        id.0
    }
}

pub(crate) fn record(key: &str) -> NewRecord {
    NewRecord {
        upstream: "queue".into(),
        route: "events".into(),
        order_key: Some(b"s-1".to_vec()),
        idempotency_key: key.into(),
        fingerprint: [3; 32],
        ledger: Some(format!("events.us-east-1.1.{key};tag=00")),
        method: "POST".into(),
        target: "/events".into(),
        headers: vec![("authorization".into(), b"Bearer hunter2".to_vec())],
        body: b"the payload".to_vec(),
        accepted: START,
        first_failure: "the breaker is open".into(),
        attempts: 1,
        terms: Terms::default(),
    }
}

pub(crate) fn snapshot() -> NodeSnapshot {
    let breaker =
        |state| BreakerSnapshot { state, failure_rate: Some(0.25), slow_rate: None, since_s: 3.0, opened_total: 2 };
    let route = |name: &str, state| RouteSnapshot {
        name: name.into(),
        upstream: "queue".into(),
        spools: true,
        breaker: breaker(state),
        answers: [0, 90, 0, 5, 5],
        requests_total: 100,
        failures: vec![("timeout", 4), ("status", 1)],
        failures_total: 5,
        refused: vec![("breaker", 2)],
        degraded: vec![("spool", 6)],
        degraded_total: 6,
        retries_total: 3,
        latency_counts: vec![0, 10, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10],
        latency_sum_s: 12.5,
        latency_p50_ms: 2.5,
        latency_p99_ms: 60_000.0,
        learned_limit_per_s: (state == "off").then_some(49.5),
        mirrored: vec![("2xx", 4)],
        versions: [("canary".to_owned(), VersionCounts { answers: [0, 5, 0, 0, 1], elsewhere: 2 })].into(),
        concurrency_limit: (state == "off").then_some(12),
        ..RouteSnapshot::default()
    };
    let endpoint = |address: &str, zone: Option<&str>, healthy| EndpointSnapshot {
        address: address.into(),
        zone: zone.map(Into::into),
        version: zone.map(|_| "v2".into()),
        weight: 2,
        priority: 1,
        healthy,
        ejected: false,
        draining: false,
        ramp: if zone == Some("us-west") { 0.25 } else { 1.0 },
        latency_ms: 1.5,
        calls_total: 7,
        in_flight: 1,
        connections: 4,
        addresses: vec!["10.0.0.1:80".parse().unwrap()],
        lookups_failed_total: 2,
    };
    let endpoints = vec![
        endpoint("10.0.0.1:80", Some("us-east"), true),
        endpoint("10.1.0.1:80", Some("us-west"), true),
        endpoint("10.2.0.1:80", Some("mars"), true),
        endpoint("10.3.0.1:80", None, true),
    ];
    NodeSnapshot {
        routes: vec![route("events", "closed"), route("quotes", "off")],
        upstreams: vec![UpstreamSnapshot { name: "queue".into(), endpoints, spilled_total: 3, is_spilling: true }],
        limits: vec![
            LimitSnapshot { name: "connections", value: 10_000, used: Some(4), reached_total: 1 },
            LimitSnapshot { name: "body_bytes", value: 1 << 20, used: None, reached_total: 0 },
        ],
        connections: 4,
        connections_total: 44,
        rejected: vec![("no_route", 9)],
        drains: Vec::new(),
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in `{text}`"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Self { status, head: head.to_ascii_lowercase(), body: body.into() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// True if the head has this line, in lower case.
    pub(crate) fn has(&self, line: &str) -> bool {
        self.head.lines().any(|known| known == line)
    }
}

/// A file that can be taken in once it is asked for without a rehearsal.
struct FakeConfig;

impl ConfigPort for FakeConfig {
    fn digest(&self) -> String {
        "ab".repeat(32)
    }

    fn reload(&self, dry_run: bool) -> BoxFuture<'_, Result<Reloaded, NotReloaded>> {
        Box::pin(async move {
            if dry_run {
                let (changed, warnings) = (vec!["route r: timeout".into()], vec!["hm\n".into()]);
                return Ok(Reloaded { digest: "cd".repeat(32), changed, warnings });
            }
            let findings = vec![serde_json::json!({ "line": 3 })];
            Err(NotReloaded { error: "it is wrong".into(), report: "f:3:1: no".into(), findings })
        })
    }
}
