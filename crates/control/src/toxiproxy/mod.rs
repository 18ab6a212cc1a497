//! Toxiproxy's HTTP API: what its clients call works here unchanged, word for word and byte for byte.
//!
//! Picture a counter clerk who speaks a foreign language perfectly, to a workshop that does not: bodies are read and
//! errors told as Go's library would, proxies and toxics are kept as sent, and what reaches the data path
//! ([`ProxyPort`]) are `seawall_core::fault::Fault`s with sane numbers.
//! Version 2.12.0 is spoken. What the original does wrong on the data path is done right there; see
//! `docs/guide/toxiproxy.md`.
//!
//! Bounds: bodies of [`BODY_BYTES_MAX`], [`CONNECTIONS_MAX`] connections, one call at a time; names are looked up
//! before, so that a slow lookup keeps its own call waiting and no other.

mod address;
mod answer;
mod bind;
mod desk;
mod json;
mod metrics;
mod routes;
mod serve;
mod toxic;
mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use seawall_core::fault::{Direction, Fault};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BoxFuture;
use address::Names;
pub use answer::{Answer, ApiError};
use desk::{Desk, Outcome};
use routes::Call;
pub use serve::CONNECTIONS_MAX;
use serve::Limits;

/// What `/version` says: the original whose contract this is.
pub const VERSION: &str = "2.12.0";

/// The longest body that is read.
pub const BODY_BYTES_MAX: usize = 4 << 20;

/// Calls that may wait for the desk; more wait in their connections.
const CALLS_MAX: usize = 64;

/// A proxy that is to listen.
#[derive(Clone, Debug)]
pub struct OpenProxy {
    /// Its name.
    pub name: String,
    /// Where; of no address in particular, on every interface and both families.
    pub listen: SocketAddr,
    /// As sent: what metrics call it.
    pub upstream: String,
    /// Its host and port, or why it has none; each connection is told.
    pub target: Result<(String, u16), String>,
    /// Whether a side that has ended may still be answered; without, as the server was told.
    pub half_close: Option<bool>,
    /// What lies on it, in order.
    pub faults: Vec<Fault>,
}

/// Bytes of one direction of one proxy, so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficSeries {
    /// Their way.
    pub direction: Direction,
    /// Where the proxy listens.
    pub listener: SocketAddr,
    /// Its name.
    pub proxy: String,
    /// Its upstream.
    pub upstream: String,
    /// From the sender.
    pub received_bytes: u64,
    /// To the receiver.
    pub sent_bytes: u64,
    /// Connections that were closed unserved because there were too many, counted with the way upstream.
    pub refused_connections: u64,
}

/// The data path as this API needs it; `app` puts the gateway behind it. Nothing here waits for a peer.
pub trait ProxyPort: Send + Sync {
    /// Every address of a host.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;

    /// Begins to listen, and tells where.
    fn open(&self, proxy: OpenProxy) -> BoxFuture<'_, io::Result<SocketAddr>>;

    /// Stops listening and closes every connection; done when it returns. Without such a proxy, nothing.
    fn close<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()>;

    /// Chooses whether a side that has ended may still be answered, on open connections too. Without such a proxy,
    /// nothing.
    fn set_half_close(&self, name: &str, half_close: Option<bool>);

    /// Places or changes a fault, on open connections too. Without such a proxy, nothing.
    fn put(&self, name: &str, fault: Fault);

    /// Lifts a fault. Without one, nothing.
    fn lift(&self, name: &str, fault: &str);

    /// What has passed.
    fn traffic(&self) -> Vec<TrafficSeries>;
}

/// The API. Cheap to clone.
#[derive(Clone)]
pub struct Toxiproxy {
    jobs: mpsc::Sender<Job>,
    port: Arc<dyn ProxyPort>,
    tasks: TaskTracker,
    has_metrics: bool,
    ids: Arc<serve::RequestIds>,
}

struct Job {
    call: Call,
    body: Bytes,
    names: Arc<Names>,
    reply: oneshot::Sender<Outcome>,
}

impl std::fmt::Debug for Toxiproxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Toxiproxy").field("has_metrics", &self.has_metrics).finish_non_exhaustive()
    }
}

impl Toxiproxy {
    /// Begins with no proxies, inside the current runtime. Serves nobody until [`Self::serve`]. With `has_metrics`,
    /// `/metrics` exists; `seed` makes the ids of requests.
    #[must_use]
    pub fn start(port: Arc<dyn ProxyPort>, has_metrics: bool, seed: u64) -> Self {
        let (jobs, mut waiting) = mpsc::channel::<Job>(CALLS_MAX);
        let tasks = TaskTracker::new();
        let mut desk = Desk::new(Arc::clone(&port));
        tasks.spawn(async move {
            loop {
                let expiry = desk.next_expiry();
                let job = tokio::select! {
                    job = waiting.recv() => job,
                    () = tokio::time::sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => {
                        desk.expire(Instant::now());
                        continue;
                    }
                };
                let Some(Job { call, body, names, reply }) = job else { break };
                // Who has gone away does not read it; what was asked is done all the same.
                let _ = reply.send(desk.answer(call, &body, &names, Instant::now()).await);
            }
            desk.close().await;
        });
        Self { jobs, port, tasks, has_metrics, ids: Arc::new(serve::RequestIds::new(seed)) }
    }

    /// Creates what an array of proxies asks for, as `/populate` does.
    ///
    /// # Errors
    /// With the text that `/populate` would answer; what came before the failing proxy stays.
    pub async fn populate(&self, proxies: Bytes) -> Result<(), String> {
        let answer = self.ask(Call::Populate, proxies).await;
        if answer.status == 201 { Ok(()) } else { Err(answer.body) }
    }

    /// Serves connections until `stop` is cancelled, lets calls in work end within `grace`, then closes every proxy.
    ///
    /// # Cancel safety
    /// Dropped, connections to the API end at once; proxies end with the last clone.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken, grace: Duration) {
        let tasks = self.tasks.clone();
        serve::run(self, listener, stop, grace, Limits::ORIGINAL).await;
        tasks.close();
        tasks.wait().await;
    }

    /// # Cancel safety
    /// Dropped while names are being looked up, nothing has been done.
    async fn ask(&self, call: Call, body: Bytes) -> Answer {
        let mut names = Arc::default();
        loop {
            let (reply, outcome) = oneshot::channel();
            let job = Job { call: call.clone(), body: body.clone(), names: Arc::clone(&names), reply };
            let sent = self.jobs.send(job).await;
            let hosts = match (sent, outcome.await) {
                (Ok(()), Ok(Outcome::Done(answer))) => return answer,
                (Ok(()), Ok(Outcome::Names(hosts))) => hosts,
                _ => return Answer::empty(503),
            };
            // What there is may change meanwhile, and with it what has to be looked up: the desk decides again.
            for host in hosts {
                let found = self.port.resolve(&host).await.unwrap_or_default();
                Arc::make_mut(&mut names).insert(host, found);
            }
        }
    }
}
