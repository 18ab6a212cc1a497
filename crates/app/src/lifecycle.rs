//! A node's life: open what is remembered, begin to serve, wait, drain, stop.
//!
//! The first SIGTERM (or Ctrl-C) drains: no new connections, requests in work may end within `limits.grace`, then
//! everything is synced and closed. The second one stops at once; what was acknowledged is on the disk either way.
//!
//! A life can also go on in another process (`handover.rs` has the picture): there it begins with sockets that stand,
//! here it ends with the store closed while connections that do not need it live out their grace period. If the other
//! process falls before it serves, a new life begins here, with the same sockets.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Resource, getrlimit, setrlimit};
use seawall_control::{Admin, AdminParts, NodeInfo};
use seawall_core::fault::book::Book as FaultBook;
use seawall_core::journal::{Draft, Kind, Seq};
use seawall_core::time::Wall;
use seawall_core::units::format_duration;
use seawall_gateway::fault::CallFaults;
use seawall_gateway::net::Net;
use seawall_gateway::{Gateway, Handed, Parts};
use seawall_store::disk::medium::{Doubt, doubts};
use seawall_store::{Clock as _, Opened, RealDisk, RecoveryReport, SealKeys, Store, StoreOptions};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::book::Book;
use crate::clock::RealClock;
use crate::config::{AdminConfig, AppConfig, Report, StoreConfig};
use crate::drains;
use crate::faults;
use crate::handover::{self, Drained, Host, Legacy, Predecessor, Role, Sockets, Successor, wait_for_store};
use crate::reload::{self, Origin, Rules};
use crate::replica::{self, OpenedHere};
use crate::service::{self, Heirs};
use crate::tls;
use crate::toxics::Listening;

/// Calls to the admin API may end for this long after the data path has stopped.
const ADMIN_GRACE: Duration = Duration::from_secs(2);
/// And for so long where another process waits for the store.
const ADMIN_GRACE_HANDED_OVER: Duration = Duration::from_millis(100);
/// Before a process gives up its place, answers end their connections for so long.
const PART_FOR: Duration = Duration::from_secs(1);
/// While the process that takes over does not serve.
const COMPLAIN_EVERY: Duration = Duration::from_secs(3);
const WATCH_STORE_EVERY: Duration = Duration::from_millis(200);

/// Runs a node until it is told to stop.
///
/// # Errors
/// When something a node needs is not to be had: its data directory, an address, a token file. Each says what, and
/// what to do.
pub fn run(mut config: AppConfig, origin: Option<Origin>, take_over: bool) -> anyhow::Result<ExitCode> {
    raise_open_files();
    fit_connections(&mut config, None);
    let origin = origin.map(Arc::new);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let toxics = config.toxiproxy.as_ref().map(|_| tokio::runtime::Builder::new_multi_thread().enable_all().build());
    let toxics = toxics.transpose().context("cannot start the runtime of `toxiproxy`")?;
    let heirs = Heirs::new().context("cannot find this program's own file")?;
    {
        let _entered = runtime.enter();
        // Ends with the runtime.
        runtime.spawn(heirs.start(signal(SignalKind::user_defined2()).context("cannot listen for signals")?));
    }
    let toxics_handle = toxics.as_ref().map(|toxics| toxics.handle().clone());
    let ended = runtime.block_on(async {
        let (outlived, mut begin) = (TaskTracker::new(), if take_over { Begin::TakeOver } else { Begin::Alone });
        let ended = loop {
            match live(config, origin.clone(), toxics_handle.clone(), begin, &outlived).await {
                Ok(Ended::Stopped) => break Ok(ExitCode::SUCCESS),
                Ok(Ended::TookBack(again)) => {
                    (config, begin) = (again.config, Begin::Again(again.sockets, again.legacy))
                }
                Err(error) => break Err(error),
            }
        };
        outlived.close();
        outlived.wait().await;
        ended
    });
    runtime.shutdown_background();
    if let Some(toxics) = toxics {
        toxics.shutdown_background();
    }
    ended
}

/// How a life begins.
enum Begin {
    /// With sockets of its own.
    Alone,
    /// With those of another process, if one runs.
    TakeOver,
    /// With those of the life before, which nobody wanted in the end.
    Again(Sockets, Legacy),
}

/// How a life ends.
enum Ended {
    Stopped,
    TookBack(Box<TookBack>),
}

struct TookBack {
    /// The one in force.
    config: AppConfig,
    sockets: Sockets,
    legacy: Legacy,
}

/// What a life begins with of another process's.
struct TookOver {
    pid: u32,
    program: String,
    sockets: usize,
    /// Its last entry.
    entry: Option<Seq>,
}

/// `outlived` are the connections of lives before.
async fn live(
    config: AppConfig,
    origin: Option<Arc<Origin>>,
    toxics: Option<Handle>,
    begin: Begin,
    outlived: &TaskTracker,
) -> anyhow::Result<Ended> {
    // Asked for before anything is open: a signal that comes early must not find us without ears.
    let mut signals = Signals::new()?;
    let hangups = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    let clock = RealClock::new();
    let token = read_token(&config.admin)?;
    let doors = match tls::load(&config) {
        Ok((doors, doubts)) => {
            doubts.iter().for_each(|doubt| tracing::warn!(at = doubt.line, "{}", doubt.message));
            doors
        }
        Err(findings) => anyhow::bail!("cannot use these certificates\n{}", Report::of(findings)),
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let took_back = matches!(begin, Begin::Again(..));
    let (mut predecessor, mut sockets, mut legacy) = match begin {
        Begin::Alone => (None, Sockets::default(), Legacy::default()),
        Begin::Again(sockets, legacy) => (None, sockets, legacy),
        Begin::TakeOver => match Predecessor::ask(&config.store.path, &config.policy.node).await? {
            Some((predecessor, sockets)) => (Some(predecessor), sockets, Legacy::default()),
            None => {
                tracing::info!(path = %config.store.path.display(), "no process runs this node: nothing to take over");
                (None, Sockets::default(), Legacy::default())
            }
        },
    };
    let sockets_handed = sockets.count();
    // Before anything is written: a start that fails here leaves nothing behind.
    let admin_listener = listen_admin(&config.admin, sockets.take_at(Role::Admin, config.admin.address)).await?;
    let toxics = match (&config.toxiproxy, toxics) {
        (Some(toxiproxy), Some(runtime)) => {
            let handed = sockets.take_at(Role::Toxiproxy, toxiproxy.listen);
            Some(Listening::begin(runtime, toxiproxy.listen, handed).await?)
        }
        _ => None,
    };
    let doors_handed = sockets.take(Role::Listener);
    let could_listen = Gateway::could_listen(&config.policy, &doors_handed);
    could_listen.map_err(hinted(|error: &seawall_gateway::StartError| error.hint()))?;
    let mut others = Sockets::default().and(Role::Admin, config.admin.address, admin_listener.as_fd())?;
    if let (Some(toxics), Some(toxiproxy)) = (&toxics, &config.toxiproxy) {
        others = others.and(Role::Toxiproxy, toxiproxy.listen, toxics.listener().as_fd())?;
    }
    let mut took_over = None;
    if let Some(predecessor) = &mut predecessor {
        tracing::info!(pid = predecessor.pid, version = predecessor.program, "taking over from the process that runs");
        let left = tokio::select! {
            left = predecessor.leaves(&config.store.path) => left,
            () = signals.next() => return Ok(Ended::Stopped),
        };
        let entry = left.map(|left| {
            legacy = left.legacy;
            left.entry
        });
        let (pid, program) = (predecessor.pid, predecessor.program.clone());
        took_over = Some(TookOver { pid, program, sockets: sockets_handed, entry });
    }
    let known_at = clock.gateway().now();
    let OpenedHere { opened, taken_over } = replica::open(&config, &clock).await?;
    let Opened { store, engine, report, ledger_records } = opened;
    let threads = engine.spawn_threads().context("cannot start the store's threads")?;
    let host = Host::open(&config.store.path);
    let file = origin.as_ref().map(|origin| origin.file.as_path());
    let cause = begin_journal(&store, &config, file, &report, took_over.as_ref(), took_back);
    if let Some(entries) = taken_over {
        let draft = Draft::new(Kind::ReplicaTakenOver, "replica").because(Some(cause));
        store
            .journal
            .record(draft.with("entries", entries).with("waiting", report.waiting).with("parked", report.parked));
    }
    let kept = replica::keep(&config, &store, &clock)?;
    let policy = Arc::new(config.policy.clone());
    let streams = policy.routes.iter().filter(|route| route.spools()).map(|route| route.name.clone());
    let wall = clock.clone();
    let wall = Arc::new(move || -> Wall { wall.wall() });
    let (book, keeper) = Book::open(&store, &ledger_records, &policy.node, streams, wall).await?;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    // Calls to the admin API are asked to end by `stop`, and cut off by `cut_admin`.
    let cut_admin = CancellationToken::new();
    tasks.spawn(keeper.run(stop.clone()));
    if let Some(kept) = &kept {
        tasks.spawn(replica::tell(
            kept.status(),
            config.store.path.clone(),
            store.journal.clone(),
            cause,
            stop.clone(),
        ));
    }
    let admin_address = admin_listener.local_addr().unwrap_or(config.admin.address);
    let (board, seed) = (FaultBook::new(config.faults.clone(), &policy, store.epoch), u64::from_le_bytes(entropy()?));
    let faults = CallFaults::new(board, clock.gateway(), store.journal.clone(), Some(cause), seed);
    if let Some(reason) = &legacy.faults_killed {
        faults.kill(reason);
    }
    let gateway = Gateway::take_up(
        Parts {
            policy: Arc::clone(&policy),
            spool: store.spool.clone(),
            journal: store.journal.clone(),
            records: Arc::new(book.clone()),
            clock: clock.gateway(),
            seed: u64::from_le_bytes(entropy()?),
            net: Net::Real,
            cause: Some(cause),
            traffic_every: seawall_gateway::TRAFFIC_EVERY,
            tls: doors.tls(policy.listeners.len(), policy.upstreams.len()),
            faults: Some(faults.clone()),
        },
        workers,
        doors_handed,
        (&legacy.heritage, clock.gateway().now().since(known_at)),
    )
    .await
    .map_err(hinted(|error: &seawall_gateway::StartError| error.hint()))?;
    legacy.drains.iter().for_each(|drained| drained.again(&gateway.drains()));
    let hung_up = Arc::new(Notify::new());
    let certificates = tls::Shared::new(doors);
    let wall = clock.clone();
    let keeping = tls::keep(certificates.clone(), store.journal.clone(), cause, move || wall.wall(), stop.clone());
    tasks.spawn(keeping);
    let in_force = (config.clone(), cause);
    let rules = Rules::new(
        origin.clone(),
        in_force,
        &gateway,
        store.journal.clone(),
        book.clone(),
        certificates.clone(),
        faults.clone(),
    );
    tasks.spawn(Arc::clone(&rules).follow(Arc::clone(&hung_up), stop.clone()));
    let draining = Arc::new(AtomicBool::new(false));
    let seen = Seen {
        policy: &policy,
        gateway: &gateway,
        store: &store,
        book: &book,
        clock: &clock,
        certificates,
        rules: Arc::clone(&rules),
        faults: faults.clone(),
    };
    let admin = admin(seen, token, &draining);
    tasks.spawn({
        let (admin, stop, cut) = (admin.clone(), stop.clone(), cut_admin.clone());
        async move { admin.serve(admin_listener, stop, ADMIN_GRACE, cut).await }
    });
    if let Some(toxics) = toxics {
        // It needs no store: whoever waits for that does not wait for its calls.
        toxics.serve(&clock, stop.clone(), ADMIN_GRACE, outlived)?;
    }
    for (listener, address) in policy.listeners.iter().zip(gateway.addresses()) {
        tracing::info!(%address, routes = listener.routes.len(), "listening");
    }
    tracing::info!(address = %format_args!("http://{admin_address}/"), "overview and admin API");

    tasks.spawn(heed_hangups(hangups, hung_up, stop.clone()));
    service::tell_ready();
    if let Some(predecessor) = predecessor {
        predecessor.relieve().await;
    }
    let mut why = wait_for_end(&mut signals, &store, &gateway, (host.as_ref(), &policy.node, &others)).await;
    let (kind, failure) = match &why {
        Why::Replaced(_) => (Kind::NodeHandingOver, None),
        Why::Told => (Kind::NodeDraining, None),
        Why::Failed(failure) => (Kind::NodeDraining, Some(failure.clone())),
    };
    let drain = Draft::new(kind, "node").because(Some(cause));
    let drain = match &why {
        Why::Replaced(Successor { pid, program, .. }) => drain.with("pid", pid).with("version", program),
        Why::Failed(failure) => draft_failure(drain, failure),
        Why::Told => drain,
    };
    let drain = store.journal.record(drain);
    let (grace, gap_begins) = (policy.limits.grace, clock.gateway().now());
    let (mut cut_off, mut gateway, mut left) = (0, Some(gateway), Legacy::default());
    match &why {
        Why::Replaced(successor) => {
            tracing::info!(pid = successor.pid, version = successor.program, "handing over to another process");
            left.faults_killed = faults.killed();
            // While the journal hears of it: connections that stand may live on for long, and nobody could take them
            // away.
            faults.hand_over();
            if let Some(gateway) = &mut gateway {
                left.drains = Drained::all(&gateway.drains());
                gateway.settle(async { signals.next().await }).await;
                left.heritage = gateway.heritage();
            }
        }
        Why::Told | Why::Failed(_) => {
            draining.store(true, Relaxed);
            service::tell_stopping();
            tracing::info!(?grace, "draining; a second signal stops at once");
            cut_off = end(gateway.take(), &mut signals).await;
        }
    }
    stop.cancel();
    tasks.close();
    if matches!(why, Why::Replaced(_)) && tokio::time::timeout(ADMIN_GRACE_HANDED_OVER, tasks.wait()).await.is_err() {
        cut_admin.cancel();
    }
    tasks.wait().await;
    replica::stop(kept, &store).await;
    book.close().await;
    let last = store.journal.record(match &why {
        Why::Replaced(_) => Draft::new(Kind::NodeHandedOver, "node").because(Some(drain)),
        Why::Told | Why::Failed(_) => {
            Draft::new(Kind::NodeStopped, "node").because(Some(drain)).with("cut_off", cut_off)
        }
    });
    store.close().await;
    // What failed while we were ending has been noticed by nobody yet.
    let failure = failure.or_else(|| {
        let failure = store.failure()?;
        tracing::error!(%failure, "the store stopped before all was written");
        Some(failure.to_string())
    });
    drop((admin, book, store, host, others));
    let _ = tokio::task::spawn_blocking(|| threads.join()).await;
    if let Why::Replaced(successor) = &mut why {
        let pid = successor.pid;
        let serves = tokio::select! {
            serves = successor.serves(last, &left) => serves,
            never = complain(pid) => match never {},
            // Whoever wants this process to end has another one; whether that serves is for them to see.
            () = signals.next() => true,
        };
        if !serves {
            tracing::error!(
                pid = successor.pid,
                "the process that was to take over ended before it served: this one goes on"
            );
            wait_for_store(&config.store.path).await;
            if let Some(gateway) = gateway {
                outlived.spawn(gateway.stop(std::future::pending()));
            }
            let (config, sockets) = (rules.config().await, std::mem::take(&mut successor.sockets));
            return Ok(Ended::TookBack(Box::new(TookBack { config, sockets, legacy: left })));
        }
        drop(std::mem::take(&mut successor.sockets));
        let gap_ms = clock.gateway().now().since(gap_begins).as_millis();
        tracing::info!(
            pid = successor.pid,
            gap_ms,
            "handed over; connections that are left may end, a signal cuts them off"
        );
        end(gateway, &mut signals).await;
    }
    match failure {
        None => Ok(Ended::Stopped),
        Some(failure) => anyhow::bail!("the store stopped: {failure}"),
    }
}

/// Why a life ends.
enum Why {
    Told,
    Failed(String),
    /// Another process takes our place.
    Replaced(Successor),
}

async fn wait_for_end(
    signals: &mut Signals,
    store: &Store,
    gateway: &Gateway,
    (host, node, others): (Option<&Host>, &str, &Sockets),
) -> Why {
    let given = || others.and_gateway(gateway.shared()?);
    loop {
        let successor = async {
            match host {
                Some(host) => host.successor(node, given).await,
                None => std::future::pending().await,
            }
        };
        let successor = tokio::select! {
            () = signals.next() => return Why::Told,
            failure = store_failed(store) => return Why::Failed(failure),
            successor = successor => successor,
        };
        // Clients that ask on and on by one connection are moved to another, so that none is in the middle of asking
        // when its connection ends.
        gateway.part(true);
        let parted = async {
            if !gateway.is_empty() {
                tokio::time::sleep(PART_FOR).await;
            }
        };
        tokio::select! {
            biased;
            () = signals.next() => return Why::Told,
            failure = store_failed(store) => return Why::Failed(failure),
            () = successor.gone() => {}
            () = parted => return Why::Replaced(successor),
        }
        gateway.part(false);
        tracing::warn!(pid = successor.pid, "the process that was to take over ended: this one goes on");
    }
}

/// Says again and again that another process keeps clients waiting. It is not ended from here: who opens a large store
/// needs its time, and only people can tell that from one that hangs.
async fn complain(pid: i32) -> Infallible {
    let mut waited = Duration::ZERO;
    loop {
        tokio::time::sleep(COMPLAIN_EVERY).await;
        waited += COMPLAIN_EVERY;
        tracing::error!(
            pid,
            waited = format_duration(waited),
            "the process that takes over does not serve yet, and clients wait: end it, and this one goes on"
        );
    }
}

/// Stops what still goes on, within its grace period or until the next signal. Tells how many connections were cut off.
async fn end(gateway: Option<Gateway>, signals: &mut Signals) -> u64 {
    let Some(gateway) = gateway else { return 0 };
    let cut_off = gateway.stop(async { signals.next().await }).await;
    if cut_off > 0 {
        tracing::warn!(connections = cut_off, "cut off");
    }
    cut_off
}

/// The terminal is gone, or somebody wants a reload: neither is a reason to drop requests.
async fn heed_hangups(mut hangup: Signal, nudge: Arc<Notify>, stop: CancellationToken) {
    while let Some(Some(())) = stop.run_until_cancelled(hangup.recv()).await {
        tracing::info!("SIGHUP: the configuration and its certificates are read again");
        nudge.notify_one();
    }
}

/// Both ways of asking a node to stop.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Opens a data directory with the limits of its configuration; a new one begins with this epoch.
pub(crate) fn open_store(config: &AppConfig, clock: &RealClock, epoch_min: u64) -> anyhow::Result<Opened<RealDisk>> {
    let StoreConfig {
        path,
        spool_bytes_max,
        journal_bytes_max,
        journal_keep,
        record_bytes_max,
        key_file,
        packs,
        on_damage,
        replica: _,
    } = config.store.clone();
    let seal_keys = key_file.as_deref().map(read_seal_keys).transpose()?;
    let options = StoreOptions {
        spool_bytes_max,
        journal_bytes_max,
        journal_keep,
        record_bytes_max,
        on_damage,
        seal_keys,
        packs,
        epoch_min,
        ..StoreOptions::new(path, config.policy.node.clone())
    };
    let secret: [u8; 32] = entropy()?;
    Store::open(RealDisk, options, clock.clone(), || secret)
        .map_err(hinted(|error: &seawall_store::OpenError| error.hint()))
}

/// The keys that records are sealed with at rest.
pub(crate) fn read_seal_keys(file: &Path) -> anyhow::Result<SealKeys> {
    let named = || format!("the key file `{}`", file.display());
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", named()))?;
    let mode = std::fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "others can read the keys of the spool: `chmod 600` it");
    }
    SealKeys::parse(&text).with_context(named)
}

fn begin_journal(
    store: &Store,
    config: &AppConfig,
    file: Option<&Path>,
    report: &RecoveryReport,
    took_over: Option<&TookOver>,
    took_back: bool,
) -> Seq {
    let journal = &store.journal;
    let started = journal.record(
        Draft::new(Kind::NodeStarted, "node")
            .because(took_over.and_then(|took_over| took_over.entry))
            .with("node", &config.policy.node)
            .with("zone", &config.policy.zone)
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("epoch", store.epoch),
    );
    if let Some(TookOver { pid, program, sockets, .. }) = took_over {
        let draft = Draft::new(Kind::NodeTookOver, "node").because(Some(started));
        journal.record(draft.with("pid", pid).with("version", program).with("sockets", sockets));
    }
    if took_back {
        journal.record(Draft::new(Kind::NodeTookBack, "node").because(Some(started)));
    }
    let logs = [&report.spool, &report.journal, &report.ledger];
    let recovered = Draft::new(Kind::StoreRecovered, "store")
        .because(Some(started))
        .with("waiting", report.waiting)
        .with("parked", report.parked)
        .with("torn_bytes", logs.iter().map(|log| log.torn_bytes).sum::<u64>())
        .with("unreadable", report.unreadable);
    let recovered = if report.meta_is_half { recovered.with("meta_copies_damaged", 1) } else { recovered };
    if report.meta_is_half {
        tracing::warn!(
            path = %config.store.path.join("META").display(),
            "one of the two copies in it was not whole, and is written anew: a start that was cut short, or a disk that fails"
        );
    }
    let doubts = doubts(&config.store.path);
    let recovered = match doubts.first() {
        Some(_) => {
            recovered.with("doubtful_medium", doubts.iter().map(|it| it.what.as_str()).collect::<Vec<_>>().join(", "))
        }
        None => recovered,
    };
    for Doubt { what, why } in &doubts {
        tracing::warn!(path = %config.store.path.display(), what, "a sync may not keep what it promises here: {why}");
    }
    journal.record(match report.is_damaged() {
        false => recovered,
        true => recovered
            .with("damaged_files", logs.iter().map(|log| log.damaged.len()).sum::<usize>())
            .with("lost", logs.iter().map(|log| log.lost).sum::<u64>()),
    });
    if report.is_damaged() {
        tracing::error!(?report, "the store was damaged; what could be saved goes on");
    }
    journal.record(reload::loaded(&config.policy, file, started))
}

/// What the admin side shows and moves.
struct Seen<'n> {
    policy: &'n Arc<seawall_core::policy::Policy>,
    gateway: &'n Gateway,
    store: &'n Store,
    book: &'n Book,
    clock: &'n RealClock,
    certificates: tls::Shared,
    rules: Arc<Rules>,
    faults: CallFaults,
}

fn admin(seen: Seen<'_>, token: Option<String>, draining: &Arc<AtomicBool>) -> Admin {
    let Seen { policy, gateway, store, book, clock, certificates, rules, faults } = seen;
    let (watched, draining, drained) = (store.clone(), Arc::clone(draining), gateway.drains());
    let ready = move || match watched.failure() {
        Some(failure) => Err(format!("the store stopped: {failure}")),
        None if draining.load(Relaxed) => Err("this node is stopping".into()),
        None => drained.listener().map_or(Ok(()), |listener| Err(format!("the {listener} is being drained"))),
    };
    let wall_clock = clock.clone();
    Admin::new(AdminParts {
        info: NodeInfo {
            node: policy.node.clone(),
            zone: policy.zone.clone(),
            zones: policy.zones.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            git: option_env!("SEAWALL_GIT").map(Into::into),
            started_at: clock.wall(),
        },
        view: gateway.view(),
        spool: store.spool.clone(),
        journal: store.journal.clone(),
        ledger: Arc::new(book.clone()),
        ready: Arc::new(ready),
        wall: Arc::new(move || -> Wall { wall_clock.wall() }),
        config: rules,
        certificates: Arc::new(move || certificates.snapshot()),
        drains: Arc::new(drains::Port(gateway.drains())),
        faults: Some(Arc::new(faults::Port(faults))),
        token,
    })
}

async fn listen_admin(config: &AdminConfig, handed: Option<Handed>) -> anyhow::Result<TcpListener> {
    handover::listen(config.address, handed).await.with_context(|| {
        format!("cannot listen on `{}` for the admin API; choose another `admin.address` (`--admin`)", config.address)
    })
}

fn read_token(config: &AdminConfig) -> anyhow::Result<Option<String>> {
    config.token_file.as_deref().map(|path| read_first_line(path, "admin token", "token file")).transpose()
}

/// The first line of a file that holds a secret.
pub(crate) fn read_first_line(path: &Path, what: &str, file: &str) -> anyhow::Result<String> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the {what} from `{}`", path.display()))?;
    let line = text.lines().next().unwrap_or_default().trim();
    anyhow::ensure!(!line.is_empty(), "the first line of the {file} `{}` is empty", path.display());
    Ok(line.to_owned())
}

/// Waits until the store has stopped for good: a spool or ledger that cannot sync must not go on promising.
async fn store_failed(store: &Store) -> String {
    loop {
        if let Some(failure) = store.failure() {
            return failure.to_string();
        }
        tokio::time::sleep(WATCH_STORE_EVERY).await;
    }
}

fn draft_failure(draft: Draft, failure: &str) -> Draft {
    tracing::error!(failure, "the store stopped: this node ends");
    draft.with("failure", failure)
}

/// As many open files as the system lets us have: every connection is one.
pub(crate) fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it was");
    }
}

/// Open files a node needs beside its connections: the store's, the listeners', the runtimes'.
const OPEN_FILES_RESERVED: u64 = 56;

/// How many files may be open, where that is limited.
pub(crate) fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Client connections there are files for, each with the call it makes, where `others` are wanted for something else;
/// of those at most a quarter of all is left out. Nothing where there is no limit.
pub(crate) fn connections_fitting(others: u64) -> Option<u64> {
    let open_files = open_files()?;
    let reserved = OPEN_FILES_RESERVED + others.min(open_files / 4);
    Some((open_files.saturating_sub(reserved) / 2).max(4))
}

/// No more client connections than there are files for them and for the calls they make: what runs out instead would
/// be the store's. Told, unless it has been: `told` is how many there were before a reload.
pub(crate) fn fit_connections(config: &mut AppConfig, told: Option<u32>) {
    // All that may be left out for something else.
    let others = if config.toxiproxy.is_some() { u64::MAX } else { 0 };
    let (Some(open_files), Some(fitting)) = (open_files(), connections_fitting(others)) else {
        return;
    };
    let fitting = u32::try_from(fitting).unwrap_or(u32::MAX);
    let wanted = config.policy.limits.connections_max;
    if wanted > fitting {
        config.policy.limits.connections_max = fitting;
        if told == Some(fitting) {
            return;
        }
        tracing::warn!(
            wanted,
            fitting,
            open_files,
            "`limits.connections` is lowered to what the limit of open files allows; raise that limit to have more"
        );
    }
}

/// Bytes nobody can guess, from the system.
pub(crate) fn entropy<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut source = std::fs::File::open("/dev/urandom").context("cannot open `/dev/urandom`")?;
    source.read_exact(&mut bytes).context("cannot read `/dev/urandom`")?;
    Ok(bytes)
}

/// An error with its hint, where it has one.
fn hinted<E>(hint: fn(&E) -> Option<&'static str>) -> impl FnOnce(E) -> anyhow::Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| match hint(&error) {
        Some(hint) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                let _ = write!(text, ": {cause}");
                source = cause.source();
            }
            anyhow::anyhow!("{text}; {hint}")
        }
        None => error.into(),
    }
}
