//! The Seawall node of the world: the real store on the simulated disk, the real ledger, gateway and admin side on the
//! simulated network, wired as `app` wires them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use seawall_app::book::{Book, Keeper, OpenBookError};
use seawall_control::{Admin, AdminParts, BoxFuture, ConfigPort, DrainPort, NodeInfo, NotReloaded, Reloaded};
use seawall_core::drain::{self, Target};
use seawall_core::journal::{Draft, Entry, Kind};
use seawall_core::policy::Policy;
use seawall_gateway::net::Net;
use seawall_gateway::{Clock, Hosted, Parts, run_here};
use seawall_store::{ClockFn, OpenError, Opened, SimDisk, Store};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turmoil::net::TcpListener;

use crate::policy::{ADMIN_PORT, everywhere, store_options};
use crate::stage::{NodeDoor, Seen, Stage};
use crate::zones::kept;

/// One life of the node, until it is killed, ends by itself, or is asked to.
pub(crate) async fn live(stage: Arc<Stage>) -> turmoil::Result {
    let life = stage.next_life();
    match begin(&stage, life).await {
        Ok(node) => node.go_on(&stage, life).await,
        Err(reason) => stage.tell(&stage.name, format_args!("life {life} did not begin: {reason}")),
    }
    stage.set_node(None);
    stage.is_node_over.store(true, Relaxed);
    // The conductor takes the process away: until then nothing of it may go on, and its tasks have nobody to serve.
    std::future::pending().await
}

/// A running node.
struct Node {
    store: Store,
    book: Book,
    gateway: Hosted,
    stop: CancellationToken,
    tasks: TaskTracker,
    engine: TaskTracker,
}

async fn begin(stage: &Arc<Stage>, life: u64) -> Result<Node, String> {
    // Whoever begins reads the file as it is.
    drop(stage.take_wish());
    let clock = {
        let score = Arc::clone(&stage.score);
        Clock::new(Instant::now(), Arc::new(move || score.wall()))
    };
    let Opened { store, engine, report, ledger_records } = open_store(stage, &clock)?;
    if report.is_damaged() {
        stage.violation(&stage.name, format_args!("a crash looks like damage: {report:?}"));
    }
    stage.tell(
        &stage.name,
        format_args!(
            "life {life}: {} wait, {} parked, {} keys, torn {} bytes",
            report.waiting,
            report.parked,
            report.keys,
            report.spool.torn_bytes + report.journal.torn_bytes + report.ledger.torn_bytes,
        ),
    );
    let (stop, tasks, writers) = (CancellationToken::new(), TaskTracker::new(), TaskTracker::new());
    writers.spawn(engine.drive());
    tasks.spawn(follow(Arc::clone(stage), store.journal.subscribe()));
    let cause = store.journal.record(Draft::new(Kind::NodeStarted, "node").with("epoch", store.epoch));
    let (book, keeper) = open_book(stage, &store, &ledger_records).await.map_err(|error| error.to_string())?;
    tasks.spawn(keeper.run(stop.clone()));
    let gateway = run_here(Parts {
        policy: Arc::new(stage.policy()),
        spool: store.spool.clone(),
        journal: store.journal.clone(),
        records: Arc::new(book.clone()),
        clock: clock.clone(),
        seed: stage.dice(1, life).next_u64(),
        net: Net::Sim,
        cause: Some(cause),
        traffic_every: seawall_gateway::TRAFFIC_EVERY,
        tls: seawall_gateway::tls::Tls::default(),
        faults: None,
    });
    let gateway = gateway.await.map_err(|error| error.to_string())?;
    let listener = TcpListener::bind(everywhere(ADMIN_PORT)).await.map_err(|error| error.to_string())?;
    tasks.spawn(serve_admin(admin(stage, &store, &book, &gateway), listener, tasks.clone()));
    stage.set_node(Some(NodeDoor { spool: store.spool.clone(), view: gateway.view() }));
    Ok(Node { store, book, gateway, stop, tasks, engine: writers })
}

/// A store that does not open after a crash is a failure of its own, unless the disk failed just then.
fn open_store(stage: &Arc<Stage>, clock: &Clock) -> Result<Opened<SimDisk>, String> {
    let (mono, wall) = (clock.clone(), clock.clone());
    let looking = Arc::clone(&stage.score);
    let now = move || {
        looking.look_at_clock();
        mono.now()
    };
    let store_clock = ClockFn(now, move || wall.wall());
    let secret = std::array::from_fn(|i| i as u8);
    Store::open(stage.disk(), store_options(&stage.name), store_clock, || secret).map_err(|error| {
        if !matches!(error, OpenError::Io { .. }) {
            stage.violation(&stage.name, format_args!("the store does not open: {error}"));
        }
        error.to_string()
    })
}

async fn open_book(stage: &Arc<Stage>, store: &Store, records: &[Vec<u8>]) -> Result<(Book, Keeper), OpenBookError> {
    let policy = stage.policy();
    let streams = policy.routes.iter().filter(|route| route.spools()).map(|route| route.name.clone());
    let score = Arc::clone(&stage.score);
    Book::open(store, records, &policy.node, streams, Arc::new(move || score.wall())).await
}

fn admin(stage: &Arc<Stage>, store: &Store, book: &Book, gateway: &Hosted) -> Admin {
    let score = Arc::clone(&stage.score);
    Admin::new(AdminParts {
        info: NodeInfo {
            node: stage.name.clone(),
            zone: stage.policy().zone,
            zones: stage.policy().zones,
            version: "sim".into(),
            git: None,
            started_at: stage.score.wall(),
        },
        view: gateway.view(),
        spool: store.spool.clone(),
        journal: store.journal.clone(),
        ledger: Arc::new(book.clone()),
        ready: Arc::new(|| Ok(())),
        wall: Arc::new(move || score.wall()),
        config: Arc::new(Unchanging),
        certificates: Arc::new(Vec::new),
        faults: None,
        drains: Arc::new(Undrained),
        token: None,
    })
}

/// The admin API on the simulated network; the real one listens on the kernel's.
async fn serve_admin(admin: Admin, listener: TcpListener, tasks: TaskTracker) {
    let service = TowerToHyperService::new(admin.router());
    while let Ok((stream, _)) = listener.accept().await {
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
        tasks.spawn(async move { drop(connection.await) });
    }
}

/// Copies the journal into the trace: what the node says happened, beside what did.
async fn follow(stage: Arc<Stage>, mut entries: broadcast::Receiver<Arc<Entry>>) {
    let who = format!("{} journal", stage.name);
    loop {
        match entries.recv().await {
            Ok(entry) => {
                let fields = serde_json::to_string(&entry.fields).unwrap_or_default();
                stage.tell(&who, format_args!("{} {} {} {fields}", entry.seq, entry.kind.name(), entry.subject));
            }
            Err(RecvError::Lagged(missed)) => {
                stage.violation(&who, format_args!("{missed} entries came too fast to be read"));
            }
            Err(RecvError::Closed) => return,
        }
    }
}

impl Node {
    async fn go_on(self, stage: &Arc<Stage>, life: u64) {
        loop {
            if let Some(failure) = self.store.failure() {
                return stage.tell(&stage.name, format_args!("life {life} ends: {failure}"));
            }
            if stage.is_drain_wanted.swap(false, Relaxed) {
                return self.drain(stage, life).await;
            }
            if let Some(policy) = stage.take_wish() {
                self.reload(stage, policy).await;
            }
            if stage.shows {
                let (policy, snapshot) = (self.gateway.policies()(), self.gateway.view()());
                stage.show(Seen { at_ms: stage.now_ms(), life, policy, snapshot });
            }
            tokio::time::sleep(stage.look_every).await;
        }
    }

    /// SIGHUP, as `app` answers it.
    async fn reload(&self, stage: &Arc<Stage>, policy: Policy) {
        let old = self.gateway.policies()();
        let changed = policy.changes_from(&old).join("; ");
        let streams = policy.routes.iter().filter(|route| route.spools()).map(|route| route.name.clone());
        if let Err(error) = self.book.count_also(streams).await {
            // Where policies change no disk fails. The node would go on by another policy than the world thinks.
            let what = format_args!("no reload: the ledger cannot count its streams: {error}");
            return stage.violation(&stage.name, what);
        }
        let entry = self.store.journal.record(Draft::new(Kind::ConfigLoaded, "config").with("changed", changed));
        let (view, seed) = (self.gateway.view(), stage.dice(7, stage.now_ms()).next_u64());
        let before = view();
        let policy = Arc::new(policy);
        match self.gateway.change(Arc::clone(&policy), Some(entry), seed).await {
            Ok(()) => {
                stage.reloaded();
                for lost in kept::lost((&old, &before), (&policy, &view())) {
                    stage.violation(&stage.name, format_args!("lost by a reload: {lost}"));
                }
            }
            Err(error) => stage.violation(&stage.name, format_args!("no reload: {error}")),
        }
    }

    /// SIGTERM, as `app` answers it.
    async fn drain(self, stage: &Arc<Stage>, life: u64) {
        let Self { store, book, gateway, stop, engine, tasks: _tasks } = self;
        stage.tell(&stage.name, format_args!("life {life} drains"));
        let cut_off = gateway.stop().await;
        stop.cancel();
        book.close().await;
        store.close().await;
        engine.close();
        engine.wait().await;
        stage.tell(&stage.name, format_args!("life {life} has stopped, {cut_off} connections cut off"));
    }
}

/// Nobody takes anything out of service here.
struct Undrained;

impl DrainPort for Undrained {
    fn drain(&self, target: &Target, _: &str, _: Duration) -> Result<drain::Standing, drain::Refused> {
        Err(drain::Refused::Unknown { target: target.clone(), known: Vec::new() })
    }

    fn resume(&self, _: &Target) -> Result<bool, drain::Refused> {
        Ok(false)
    }
}

/// A configuration that stays as it is.
struct Unchanging;

impl ConfigPort for Unchanging {
    fn digest(&self) -> String {
        "0".repeat(64)
    }

    fn reload(&self, _: bool) -> BoxFuture<'_, Result<Reloaded, NotReloaded>> {
        let error = "a simulated node has no file".to_owned();
        Box::pin(async { Err(NotReloaded { error, report: String::new(), findings: Vec::new() }) })
    }
}
