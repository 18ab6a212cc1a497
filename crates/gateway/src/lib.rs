//! What Seawall carries: listeners, the strict gate, the chain of guards, connections to upstreams, the forwarder.
//!
//! Thread per core: each worker accepts, serves and calls on its own thread, and connections never cross. Workers
//! share the guards of a route, the store's handles and little else. A [`Gateway`] reads a policy and hands up
//! snapshots; it knows no config file, no API and no dashboard.

mod chain;
mod clock;
mod ejection;
mod fallback;
pub mod fault;
mod forwarder;
pub mod http;
mod listener;
pub mod net;
mod node;
mod observe;
mod pool;
mod records;
mod relay;
mod route;
mod stale;
pub mod tls;
mod traffic;
mod watch;
mod writes;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use seawall_core::id::UpstreamId;
use seawall_core::journal::Seq;
use seawall_core::observation::NodeSnapshot;
use seawall_core::policy::Policy;
use seawall_core::prng::Prng;
use tokio_util::task::TaskTracker;

pub use clock::Clock;
pub use node::Parts;
pub use records::{Fate, NoRecords, Records};
pub use traffic::TRAFFIC_EVERY;

use crate::listener::{Open, Stop};
use crate::net::{Listener, listen_shared};
use crate::node::{Node, Worker};

/// A gateway could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A worker's thread or runtime did not come up.
    #[error("cannot start worker {index}")]
    Worker {
        /// Which.
        index: usize,
        /// What the system said.
        source: io::Error,
    },
}

impl StartError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Listen { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => Some("another process listens there: stop it, or choose another port"),
                io::ErrorKind::PermissionDenied => Some("ports below 1024 need a privilege: choose a higher one"),
                io::ErrorKind::AddrNotAvailable => Some("this machine does not have that address"),
                _ => None,
            },
            Self::Worker { .. } => None,
        }
    }
}

/// A running gateway.
pub struct Gateway {
    node: Arc<Node>,
    addresses: Vec<SocketAddr>,
    stop: Stop,
    threads: Vec<std::thread::JoinHandle<()>>,
    grace: Duration,
}

impl Gateway {
    /// Starts `workers` threads on the kernel's network. Returns once every listener accepts.
    ///
    /// # Errors
    /// [`StartError`]; nothing goes on then.
    pub async fn start(parts: Parts, workers: usize) -> Result<Self, StartError> {
        let (mut prng, cause) = (Prng::new(parts.seed), parts.cause);
        let node = Arc::new(Node::new(parts));
        let grace = node.policy.limits.grace;
        let stop = Stop::default();
        let mut listeners: Vec<Vec<std::net::TcpListener>> = (0..workers.max(1)).map(|_| Vec::new()).collect();
        let mut addresses = Vec::new();
        for wanted in &node.policy.listeners {
            addresses.push(bind(wanted.address, &mut listeners)?);
        }
        let mut threads = Vec::new();
        for (index, listeners) in listeners.into_iter().enumerate() {
            let worker = Worker::new(&node, workers.max(1), prng.next_u64());
            let job = Job { worker, stop: stop.clone(), first: index == 0, cause };
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || run_worker(job, listeners))
                .map_err(|source| StartError::Worker { index, source })?;
            threads.push(thread);
        }
        Ok(Self { node, addresses, stop, threads, grace })
    }

    /// Asks whether every listener of a policy could listen now, for those who want to know before they write anything.
    ///
    /// # Errors
    /// [`StartError::Listen`], as [`Gateway::start`] would.
    pub fn could_listen(policy: &Policy) -> Result<(), StartError> {
        policy.listeners.iter().try_for_each(|listener| ask(listener.address))
    }

    /// Where it listens, in the policy's order: tells the port where port 0 was asked for.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Everything seen so far.
    #[must_use]
    pub fn snapshot(&self) -> NodeSnapshot {
        self.node.snapshot()
    }

    /// A door to [`Gateway::snapshot`] for others.
    #[must_use]
    pub fn view(&self) -> Arc<dyn Fn() -> NodeSnapshot + Send + Sync> {
        let node = Arc::clone(&self.node);
        Arc::new(move || node.snapshot())
    }

    /// Stops: no new connections, requests in work may end within the grace period, or until `hurry` is done. Tells
    /// how many connections were cut off.
    pub async fn stop(self, hurry: impl Future<Output = ()>) -> u64 {
        self.stop.drain.cancel();
        let drained = async {
            while self.node.connections.used.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            biased;
            () = drained => {}
            () = tokio::time::sleep(self.grace) => {}
            () = hurry => {}
        }
        let cut_off = self.node.connections.used.load(std::sync::atomic::Ordering::Relaxed);
        self.stop.now.cancel();
        let threads = self.threads;
        let _ = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join()))).await;
        cut_off
    }
}

/// A gateway inside the current runtime: how the simulator hosts one. Dropped with its runtime it ends as a killed
/// process does.
#[cfg(feature = "sim")]
pub struct Hosted {
    node: Arc<Node>,
    stop: Stop,
    tasks: TaskTracker,
}

#[cfg(feature = "sim")]
impl Hosted {
    /// A door to everything seen so far.
    #[must_use]
    pub fn view(&self) -> Arc<dyn Fn() -> NodeSnapshot + Send + Sync> {
        let node = Arc::clone(&self.node);
        Arc::new(move || node.snapshot())
    }

    /// Stops as [`Gateway::stop`] does: requests in work may end within the grace period. Tells how many connections
    /// were cut off.
    pub async fn stop(self) -> u64 {
        let used = || self.node.connections.used.load(std::sync::atomic::Ordering::Relaxed);
        self.stop.drain.cancel();
        let until = tokio::time::Instant::now() + self.node.policy.limits.grace;
        while used() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let cut_off = used();
        self.stop.now.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        cut_off
    }
}

/// Starts a gateway inside the current runtime, on one worker. Returns once every listener accepts.
///
/// # Errors
/// [`StartError::Listen`]; nothing goes on then.
#[cfg(feature = "sim")]
pub async fn run_here(parts: Parts) -> Result<Hosted, StartError> {
    let (net, seed, cause) = (parts.net, parts.seed, parts.cause);
    let node = Arc::new(Node::new(parts));
    let worker = Worker::new(&node, 1, seed);
    let mut listeners = Vec::new();
    for wanted in &node.policy.listeners {
        let address = wanted.address;
        listeners.push(net.listen(address).await.map_err(|source| StartError::Listen { address, source })?);
    }
    let stop = Stop::default();
    let tasks = spawn_all(Job { worker, stop: stop.clone(), first: true, cause }, listeners);
    Ok(Hosted { node, stop, tasks })
}

/// What a worker's thread runs.
struct Job {
    worker: Arc<Worker>,
    stop: Stop,
    /// The first worker also forwards, checks and watches.
    first: bool,
    cause: Option<Seq>,
}

/// Sharing a port among our workers would also share it with another node of the same user: asked first, alone.
fn ask(address: SocketAddr) -> Result<(), StartError> {
    if address.port() != 0 {
        drop(listen_shared(address, false).map_err(|source| StartError::Listen { address, source })?);
    }
    Ok(())
}

/// Listens once per worker on the same address.
fn bind(address: SocketAddr, listeners: &mut [Vec<std::net::TcpListener>]) -> Result<SocketAddr, StartError> {
    let failed = |source| StartError::Listen { address, source };
    ask(address)?;
    // Asked for any port, the kernel may give a shared socket one that another node of ours shares already, and each of the
    // two would get half of the other's connections. A socket that does not share finds one that is free.
    let actual = match address.port() {
        0 => listen_shared(address, false).and_then(|probe| probe.local_addr()).map_err(failed)?,
        _ => address,
    };
    for listeners in listeners {
        let listener = listen_shared(actual, true).map_err(failed)?;
        listeners.push(listener.into_std().map_err(failed)?);
    }
    Ok(actual)
}

fn run_worker(job: Job, listeners: Vec<std::net::TcpListener>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker's runtime did not come up");
            return;
        }
    };
    runtime.block_on(async move {
        let listeners = listeners.into_iter().filter_map(|listener| {
            tokio::net::TcpListener::from_std(listener)
                .inspect_err(|error| tracing::error!(%error, "a listener was lost"))
                .ok()
                .map(Listener::Real)
        });
        let stop = job.stop.clone();
        let tasks = spawn_all(job, listeners.collect());
        stop.now.cancelled().await;
        tasks.close();
        if tokio::time::timeout(Duration::from_secs(2), tasks.wait()).await.is_err() {
            tracing::warn!(left = tasks.len(), "tasks did not end in time");
        }
    });
    // A name that is still being looked up on a thread of its own is nobody's any more.
    runtime.shutdown_background();
}

fn spawn_all(job: Job, listeners: Vec<Listener>) -> TaskTracker {
    let Job { worker, stop, first, cause } = job;
    let tasks = worker.tasks.clone();
    let open = Arc::new(Open::default());
    for (index, listener) in listeners.into_iter().enumerate() {
        tasks.spawn(listener::accept(Arc::clone(&worker), listener, index, Arc::clone(&open), stop.clone()));
    }
    tasks.spawn(listener::sweep(Arc::clone(&worker), open, stop.now.clone()));
    tasks.spawn(watch::sweep_pools(Arc::clone(&worker), stop.now.clone()));
    if first {
        tasks.spawn(watch::watch_spool(Arc::clone(&worker), stop.now.clone()));
        tasks.spawn(watch::watch_guards(Arc::clone(&worker), stop.now.clone()));
        tasks.spawn(watch::watch_limits(Arc::clone(&worker), stop.now.clone()));
        if let Some(faults) = worker.node.faults.clone() {
            tasks.spawn(faults.keep_swept(stop.now.clone()));
        }
        tasks.spawn(traffic::watch_traffic(Arc::clone(&worker), stop.now.clone()));
        for (place, upstream) in worker.node.policy.upstreams.iter().enumerate() {
            let id = UpstreamId(u32::try_from(place).unwrap_or(u32::MAX));
            tasks.spawn(forwarder::forward(Arc::clone(&worker), id, stop.clone()));
            for endpoint in 0..upstream.endpoints.len() {
                let checks = watch::check_endpoint(Arc::clone(&worker), id, endpoint, cause, stop.now.clone());
                tasks.spawn(checks);
            }
        }
    }
    tasks
}
