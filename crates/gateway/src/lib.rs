//! What Seawall carries: listeners, the strict gate, the chain of guards, connections to upstreams, the forwarder.
//!
//! Thread per core: each worker accepts, serves and calls on its own thread, and connections never cross. Workers
//! share the guards of a route, the store's handles and little else. A [`Gateway`] reads a policy and hands up
//! snapshots; it knows no config file, no API and no dashboard.

mod aim;
pub mod announce;
mod chain;
mod clock;
mod dns;
mod drains;
mod duplex;
mod ejection;
mod fallback;
pub mod fault;
mod forwarder;
mod frames;
mod heritage;
pub mod http;
mod lines;
mod listener;
mod mirror;
mod name;
pub mod net;
mod node;
mod observe;
mod pool;
mod records;
mod relay;
mod route;
mod seat;
mod sources;
mod stale;
mod tcp;
pub mod tls;
mod traffic;
mod upgrade;
mod watch;
mod writes;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use seawall_core::journal::Seq;
use seawall_core::observation::NodeSnapshot;
use seawall_core::policy::Policy;
use seawall_core::prng::Prng;
use seawall_core::time::Mono;

pub use clock::Clock;
pub use drains::Drains;
pub use heritage::Heritage;
pub use node::Parts;
pub use records::{Fate, NoRecords, Records};
pub use seat::{Handed, Prepared};
pub use traffic::TRAFFIC_EVERY;

use crate::listener::{QUIET, Stop};
use crate::net::listen_shared;
use crate::node::{Node, Worker};
use crate::seat::{Door, Hall, Opening, Seat};
use crate::tls::Tls;

/// While something must end.
const LOOK_EVERY: Duration = Duration::from_millis(10);

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
                io::ErrorKind::AddrInUse => Some(
                    "another process listens there, or a listener of ours that is still closing: stop it, or choose another port",
                ),
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
    hall: Arc<Hall>,
    /// Since when nobody new is let in.
    drains_since: Option<Mono>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Gateway {
    /// Starts `workers` threads on the kernel's network. Returns once every listener accepts.
    ///
    /// # Errors
    /// [`StartError`]; nothing goes on then.
    pub async fn start(parts: Parts, workers: usize) -> Result<Self, StartError> {
        Self::take_up(parts, workers, Vec::new(), (&Heritage::default(), Duration::ZERO)).await
    }

    /// The same, by sockets that another process listened on before, where the policy has listeners for them, and with
    /// what that process knew so long ago.
    ///
    /// # Errors
    /// [`StartError`]; nothing goes on then.
    pub async fn take_up(
        parts: Parts,
        workers: usize,
        mut handed: Vec<Handed>,
        heritage: (&Heritage, Duration),
    ) -> Result<Self, StartError> {
        let (mut prng, cause, workers) = (Prng::new(parts.seed), parts.cause, workers.max(1));
        let stop = Stop::default();
        let mut sockets: Vec<Vec<(Arc<Door>, Opening)>> = (0..workers).map(|_| Vec::new()).collect();
        let mut doors = Vec::new();
        for wanted in &parts.policy.listeners {
            // Several on port 0 are told apart by their order.
            let place = handed.iter().position(|handed| handed.configured == wanted.address);
            let (door, openings) = match place.map(|place| handed.remove(place)) {
                Some(handed) => reopen(handed, workers, &stop)?,
                None => bind(wanted.address, wanted.address, workers, &stop)?,
            };
            for (place, opening) in openings.into_iter().enumerate() {
                sockets[place % workers].push((Arc::clone(&door), opening));
            }
            doors.push(door);
        }
        drop(handed);
        let node = Arc::new(Node::new(parts, doors, heritage));
        let seats = (0..workers).map(|_| Seat::new(Worker::new(&node, workers, prng.next_u64()))).collect();
        let hall = Arc::new(Hall::new(node, seats, stop.clone()));
        let (works, working) = std::sync::mpsc::sync_channel(workers);
        let mut threads = Vec::new();
        for (index, (seat, sockets)) in hall.seats().iter().zip(sockets).enumerate() {
            let job = Job { seat: Arc::clone(seat), sockets, first: index == 0, stop: stop.clone() };
            let works = works.clone();
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || run_worker(job, &works))
                .map_err(|source| StartError::Worker { index, source })?;
            threads.push(thread);
        }
        drop(works);
        // Each says once that it works; one that does not come up hangs up.
        let _ = tokio::task::spawn_blocking(move || working.iter().take(workers).for_each(drop)).await;
        hall.begin(cause);
        Ok(Self { hall, drains_since: None, threads })
    }

    /// Asks whether every listener of a policy could listen now, for those who want to know before they write anything.
    ///
    /// # Errors
    /// [`StartError::Listen`], as [`Gateway::take_up`] would.
    pub fn could_listen(policy: &Policy, handed: &[Handed]) -> Result<(), StartError> {
        let is_handed = |address: SocketAddr| handed.iter().any(|handed| handed.configured == address);
        policy.listeners.iter().filter(|it| !is_handed(it.address)).try_for_each(|listener| ask(listener.address))
    }

    /// Its listening sockets once more, for whoever takes its place. As long as anybody has them, connections that
    /// nobody accepts wait.
    ///
    /// # Errors
    /// The kernel's; out of descriptors among them.
    pub fn shared(&self) -> io::Result<Vec<Handed>> {
        let doors = self.hall.node().doors.clone();
        // One that is drained is closed, and opened anew.
        doors.iter().filter(|door| !door.drain.is_cancelled()).map(|door| door.shared()).collect()
    }

    /// With `true`, every answer of HTTP/1 ends its connection from now on: who keeps on asking comes by another, and
    /// can be met by whoever takes our place.
    pub fn part(&self, parting: bool) {
        self.hall.stop.parting.store(parting, Relaxed);
    }

    /// True while no client is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hall.node().connections.used.load(Relaxed) == 0
    }

    /// What it knows of its upstreams, for whoever takes its place.
    #[must_use]
    pub fn heritage(&self) -> Heritage {
        Heritage::of(&self.hall.node())
    }

    /// Takes no new connections, and waits until nothing needs the store any more: calls of routes that spool and
    /// deliveries have ended, or their grace period has, or `hurry` is done. Other calls and connections go on;
    /// [`Gateway::stop`] sees to their end.
    pub async fn settle(&mut self, hurry: impl Future<Output = ()>) {
        self.hall.stop.drain.cancel();
        let node = self.hall.node();
        node.hand_over_drains();
        self.drains_since = Some(node.clock.now());
        let settled = async {
            // A request that is on its way by a connection that stands is as good as here; by a silent one it is not.
            let may_ask = || self.hall.seats().iter().any(|seat| seat.open.may_ask());
            let _ = tokio::time::timeout(QUIET * 2, until(|| !may_ask())).await;
            until(|| node.of_store.used.load(Relaxed) == 0).await;
        };
        tokio::select! {
            biased;
            () = settled => {}
            () = tokio::time::sleep(node.policy.limits.grace) => {}
            () = hurry => {}
        }
    }

    /// Where it listens, in the policy's order: tells the port where port 0 was asked for.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.hall.node().doors.iter().map(|door| door.address).collect()
    }

    /// Everything seen so far.
    #[must_use]
    pub fn snapshot(&self) -> NodeSnapshot {
        self.hall.node().snapshot()
    }

    /// A door to [`Gateway::snapshot`] for others.
    #[must_use]
    pub fn view(&self) -> Arc<dyn Fn() -> NodeSnapshot + Send + Sync> {
        let hall = Arc::clone(&self.hall);
        Arc::new(move || hall.node().snapshot())
    }

    /// What takes things out of service while the gateway runs, and back.
    #[must_use]
    pub fn drains(&self) -> Drains {
        Drains(Arc::clone(&self.hall))
    }

    /// What changes the policy while the gateway runs.
    #[must_use]
    pub fn changer(&self) -> Changer {
        Changer(Arc::clone(&self.hall))
    }

    /// Stops: no new connections, requests in work may end within the grace period (of which [`Gateway::settle`] may
    /// have taken some), or until `hurry` is done. Tells how many connections were cut off.
    pub async fn stop(self, hurry: impl Future<Output = ()>) -> u64 {
        self.hall.stop.drain.cancel();
        let node = self.hall.node();
        node.end_drains();
        let used = || node.connections.used.load(Relaxed);
        let drained_for = self.drains_since.map_or(Duration::ZERO, |since| node.clock.now().since(since));
        let grace = node.policy.limits.grace.saturating_sub(drained_for);
        tokio::select! {
            biased;
            () = until(|| used() == 0) => {}
            () = tokio::time::sleep(grace) => {}
            () = hurry => {}
        }
        let cut_off = used();
        self.hall.stop.now.cancel();
        let threads = self.threads;
        let _ = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join()))).await;
        cut_off
    }
}

/// Looks now and then.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Changes the policy of a running gateway. Cheap to clone.
#[derive(Clone)]
pub struct Changer(Arc<Hall>);

impl Changer {
    /// Does all that can fail: binds the sockets of listeners that are new. Nothing is different yet; dropped, nothing
    /// was.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub fn prepare(&self, policy: Arc<Policy>) -> Result<Prepared, StartError> {
        let known = self.0.doors_for(&policy);
        let mut doors = Vec::new();
        for (wanted, known) in policy.listeners.iter().zip(known) {
            doors.push(match known {
                Some(door) => (door, Vec::new()),
                None => bind(wanted.address, wanted.address, self.0.seats().len(), &self.0.stop)?,
            });
        }
        Ok(self.0.prepared(policy, doors))
    }

    /// Puts the prepared policy in force: requests from now on go by it, those in work end by the one before.
    /// Connections stay, and so does what is known of routes and endpoints that have not changed. `cause` is the
    /// journal's entry about it.
    pub fn change(&self, prepared: Prepared, tls: Tls, cause: Option<Seq>, seed: u64) {
        self.0.change(prepared, tls, cause, seed);
    }
}

/// A gateway inside the current runtime: how the simulator hosts one. Dropped with its runtime it ends as a killed
/// process does.
#[cfg(feature = "sim")]
pub struct Hosted {
    hall: Arc<Hall>,
    net: net::Net,
}

#[cfg(feature = "sim")]
impl Hosted {
    /// A door to everything seen so far.
    #[must_use]
    pub fn view(&self) -> Arc<dyn Fn() -> NodeSnapshot + Send + Sync> {
        let hall = Arc::clone(&self.hall);
        Arc::new(move || hall.node().snapshot())
    }

    /// A door to the policy in force.
    #[must_use]
    pub fn policies(&self) -> Arc<dyn Fn() -> Arc<Policy> + Send + Sync> {
        let hall = Arc::clone(&self.hall);
        Arc::new(move || Arc::clone(&hall.node().policy))
    }

    /// Puts another policy in force, as [`Changer`] does.
    ///
    /// # Errors
    /// [`StartError::Listen`]; nothing is different then.
    pub async fn change(&self, policy: Arc<Policy>, cause: Option<Seq>, seed: u64) -> Result<(), StartError> {
        let known = self.hall.doors_for(&policy);
        let mut doors = Vec::new();
        for (wanted, known) in policy.listeners.iter().zip(known) {
            doors.push(match known {
                Some(door) => (door, Vec::new()),
                None => bind_here(self.net, wanted.address, &self.hall.stop).await?,
            });
        }
        let prepared = self.hall.prepared(policy, doors);
        self.hall.change(prepared, Tls::default(), cause, seed);
        Ok(())
    }

    /// Stops as [`Gateway::stop`] does: requests in work may end within the grace period. Tells how many connections
    /// were cut off.
    pub async fn stop(self) -> u64 {
        let node = self.hall.node();
        let used = || node.connections.used.load(Relaxed);
        self.hall.stop.drain.cancel();
        let until = tokio::time::Instant::now() + node.policy.limits.grace;
        while used() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let cut_off = used();
        self.hall.stop.now.cancel();
        let tasks = &self.hall.seats()[0].tasks;
        tasks.close();
        tasks.wait().await;
        cut_off
    }
}

/// Starts a gateway inside the current runtime, on one worker. Returns once every listener accepts.
///
/// # Errors
/// [`StartError::Listen`]; nothing goes on then.
#[cfg(feature = "sim")]
pub async fn run_here(parts: Parts) -> Result<Hosted, StartError> {
    let (net, seed, cause, stop) = (parts.net, parts.seed, parts.cause, Stop::default());
    let mut opened = Vec::new();
    for wanted in &parts.policy.listeners {
        let (door, mut openings) = bind_here(net, wanted.address, &stop).await?;
        opened.extend(openings.pop().and_then(Opening::listener).map(|listener| (door, listener)));
    }
    let doors = opened.iter().map(|(door, _)| Arc::clone(door)).collect();
    let node = Arc::new(Node::new(parts, doors, (&Heritage::default(), Duration::ZERO)));
    let seat = Seat::new(Worker::new(&node, 1, seed));
    let hall = Arc::new(Hall::new(node, vec![Arc::clone(&seat)], stop.clone()));
    seat.begin(opened, true, &stop);
    hall.begin(cause);
    Ok(Hosted { hall, net })
}

#[cfg(feature = "sim")]
async fn bind_here(net: net::Net, address: SocketAddr, stop: &Stop) -> Result<(Arc<Door>, Vec<Opening>), StartError> {
    let listener = net.listen(address).await.map_err(|source| StartError::Listen { address, source })?;
    let actual = listener.local_addr().unwrap_or(address);
    Ok((Door::new(address, actual, stop), vec![Opening::Ready(listener)]))
}

/// What a worker's thread runs.
struct Job {
    seat: Arc<Seat>,
    sockets: Vec<(Arc<Door>, Opening)>,
    /// The first worker also forwards, checks and watches.
    first: bool,
    stop: Stop,
}

/// Sharing a port among our workers would also share it with another node of the same user: asked first, alone.
fn ask(address: SocketAddr) -> Result<(), StartError> {
    if address.port() != 0 {
        drop(listen_shared(address, false).map_err(|source| StartError::Listen { address, source })?);
    }
    Ok(())
}

/// Opens a door: a socket for each worker on the same address.
fn bind(
    configured: SocketAddr,
    address: SocketAddr,
    workers: usize,
    stop: &Stop,
) -> Result<(Arc<Door>, Vec<Opening>), StartError> {
    let failed = |source| StartError::Listen { address, source };
    ask(address)?;
    // Asked for any port, the kernel may give a shared socket one that another node of ours shares already, and each of
    // the two would get half of the other's connections. A socket that does not share finds one that is free.
    let actual = match address.port() {
        0 => listen_shared(address, false).and_then(|probe| probe.local_addr()).map_err(failed)?,
        _ => address,
    };
    let open = || listen_shared(actual, true)?.into_std().map(Opening::Std);
    let openings = (0..workers).map(|_| open().map_err(failed)).collect::<Result<_, _>>()?;
    Ok((Door::new(configured, actual, stop), openings))
}

/// Opens a door by sockets that stand: each has connections of its own that wait. Where there are more workers than
/// those, they get one each.
fn reopen(handed: Handed, workers: usize, stop: &Stop) -> Result<(Arc<Door>, Vec<Opening>), StartError> {
    let Handed { configured, address, sockets } = handed;
    let open = || listen_shared(address, true)?.into_std();
    let more = (sockets.len()..workers).map(|_| open().map_err(|source| StartError::Listen { address, source }));
    let openings = sockets.into_iter().map(Ok).chain(more).map(|socket| socket.map(Opening::Std));
    Ok((Door::new(configured, address, stop), openings.collect::<Result<_, _>>()?))
}

fn run_worker(job: Job, works: &std::sync::mpsc::SyncSender<()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker's runtime did not come up");
            return;
        }
    };
    runtime.block_on(async move {
        let Job { seat, sockets, first, stop } = job;
        let doors = sockets.into_iter().filter_map(|(door, opening)| Some((door, opening.listener()?)));
        seat.begin(doors.collect(), first, &stop);
        let _ = works.send(());
        stop.now.cancelled().await;
        seat.tasks.close();
        if tokio::time::timeout(Duration::from_secs(2), seat.tasks.wait()).await.is_err() {
            tracing::warn!(left = seat.tasks.len(), "tasks did not end in time");
        }
    });
    // A name that is still being looked up on a thread of its own is nobody's any more.
    runtime.shutdown_background();
}
