//! Where work is done, and what may change under it: a worker's seat, the doors clients come in by, and the change from
//! one policy to the next.
//!
//! Picture a counter with several clerks. A [`Seat`] is a clerk's place, for as long as the process lives; on it lies
//! the
//! [`Worker`] of the policy in force. A change puts another one there, between two requests: who is being served is served
//! to the end by the old rules, the next is served by the new ones. A [`Door`] is a listening address; it stays open
//! over a change if the next policy has it too, and so do the connections that came in by it. Invariants: a change is
//! prepared (sockets are bound) before anything is different, and then cannot fail; a door is closed only when no
//! policy in force has it. Not here: what is kept of routes and endpoints (`Node::succeed`, `Worker::succeed`), where
//! policies come from.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use seawall_core::id::UpstreamId;
use seawall_core::journal::Seq;
use seawall_core::policy::Policy;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::listener::{self, Open, Stop};
use crate::net::Listener;
use crate::node::{Node, Worker};
use crate::tls::Tls;
use crate::{StartError, bind, forwarder, traffic, watch};

/// A door that closes is waited for so often, and so long each time.
const LETS_GO_LOOKS: u32 = 200;
const LETS_GO_PAUSE: Duration = Duration::from_millis(1);

/// A worker's place.
pub(crate) struct Seat {
    current: ArcSwap<Worker>,
    /// Doors that are being closed, and the worker of the last policy that had them: who came in by one is served to
    /// the end by its rules.
    closing: Mutex<Vec<(Arc<Door>, Arc<Worker>)>>,
    pub(crate) open: Open,
    pub(crate) tasks: TaskTracker,
    /// The runtime it works in, known once it runs.
    handle: OnceLock<Handle>,
}

/// An address that clients come in by.
#[derive(Debug)]
pub(crate) struct Door {
    /// As the policy says it: with port 0 for any.
    pub(crate) configured: SocketAddr,
    /// As it is.
    pub(crate) address: SocketAddr,
    /// No new requests by this door; those in work may end.
    pub(crate) drain: CancellationToken,
    /// The entry of its drain while it is drained, or zero: answers are the last of their connections.
    pub(crate) parting: AtomicU64,
    /// Held by every connection that came in by it.
    pub(crate) guests: Arc<()>,
    /// Of each worker, while it waits on it.
    sockets: Mutex<Vec<Weak<Listener>>>,
}

impl Door {
    pub(crate) fn new(configured: SocketAddr, address: SocketAddr, stop: &Stop) -> Arc<Self> {
        let (drain, guests, sockets) = (stop.drain.child_token(), Arc::default(), Mutex::default());
        Arc::new(Self { configured, address, drain, parting: AtomicU64::new(0), guests, sockets })
    }

    /// Its sockets once more, for whoever takes our place.
    pub(crate) fn shared(&self) -> io::Result<Handed> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let sockets =
            sockets.iter().filter_map(Weak::upgrade).map(|socket| socket.shared()).collect::<Result<_, _>>()?;
        Ok(Handed { configured: self.configured, address: self.address, sockets })
    }
}

impl Seat {
    pub(crate) fn new(worker: Arc<Worker>) -> Arc<Self> {
        let tasks = worker.tasks.clone();
        let (current, closing, open) = (ArcSwap::new(worker), Mutex::default(), Open::default());
        Arc::new(Self { current, closing, open, tasks, handle: OnceLock::new() })
    }

    /// The worker of the policy in force.
    pub(crate) fn worker(&self) -> Arc<Worker> {
        self.current.load_full()
    }

    /// The worker for whoever came in by a door: of the policy in force, or of the last that had it.
    pub(crate) fn worker_for(&self, door: &Arc<Door>) -> Arc<Worker> {
        let worker = self.worker();
        if worker.node.listener(door).is_some() {
            return worker;
        }
        let closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        let last = closing.iter().find(|(closed, _)| Arc::ptr_eq(closed, door));
        last.map_or(worker, |(_, last)| Arc::clone(last))
    }

    /// Lets go of doors by which nobody is in any more.
    pub(crate) fn sweep_doors(&self) {
        self.closing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(door, _)| Arc::strong_count(&door.guests) > 1);
    }

    /// Begins to work in the current runtime. The first seat also looks after what concerns all.
    pub(crate) fn begin(self: &Arc<Self>, doors: Vec<(Arc<Door>, Listener)>, first: bool, stop: &Stop) {
        let _ = self.handle.set(Handle::current());
        doors.into_iter().for_each(|(door, listener)| self.open_door(door, listener, stop));
        self.tasks.spawn(listener::sweep(Arc::clone(self), stop.clone()));
        self.tasks.spawn(watch::sweep_pools(Arc::clone(self), stop.now.clone()));
        if first {
            self.tasks.spawn(watch::watch_spool(Arc::clone(self), stop.now.clone()));
            self.tasks.spawn(watch::watch_deserted(Arc::clone(self), stop.now.clone()));
            self.tasks.spawn(watch::watch_guards(Arc::clone(self), stop.now.clone()));
            self.tasks.spawn(watch::watch_limits(Arc::clone(self), stop.now.clone()));
            self.tasks.spawn(traffic::watch_traffic(Arc::clone(self), stop.now.clone()));
            if let Some(faults) = self.worker().node.faults.clone() {
                self.tasks.spawn(faults.keep_swept(Arc::clone(self), stop.now.clone()));
            }
        }
    }

    fn open_door(self: &Arc<Self>, door: Arc<Door>, listener: Listener, stop: &Stop) {
        let listener = Arc::new(listener);
        door.sockets.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&listener));
        self.tasks.spawn(listener::accept(Arc::clone(self), door, listener, stop.clone()));
    }
}

/// What runs under one policy and ends with it.
pub(crate) struct Reign {
    /// For forwarders: what is on its way may end.
    stop: Stop,
    /// For health checks.
    over: CancellationToken,
}

impl Reign {
    /// On the current runtime, or on the first seat's.
    fn begin(seat: &Seat, stop: &Stop, cause: Option<Seq>) -> Self {
        let reign =
            Self { stop: Stop { drain: stop.drain.child_token(), ..stop.clone() }, over: stop.now.child_token() };
        let worker = seat.worker();
        let Some(handle) = seat.handle.get() else { return reign };
        for (place, upstream) in worker.node.policy.upstreams.iter().enumerate() {
            let id = UpstreamId(u32::try_from(place).unwrap_or(u32::MAX));
            seat.tasks.spawn_on(forwarder::forward(Arc::clone(&worker), id, reign.stop.clone()), handle);
            for endpoint in 0..upstream.endpoints.len() {
                let checks = watch::check_endpoint(Arc::clone(&worker), id, endpoint, cause, reign.over.clone());
                seat.tasks.spawn_on(checks, handle);
            }
        }
        reign
    }

    fn end(&self) {
        self.stop.drain.cancel();
        self.over.cancel();
    }
}

/// Every seat, and the policy they work by.
pub(crate) struct Hall {
    seats: Vec<Arc<Seat>>,
    node: ArcSwap<Node>,
    reign: Mutex<Option<Reign>>,
    pub(crate) stop: Stop,
}

/// A change that cannot fail any more.
pub struct Prepared {
    policy: Arc<Policy>,
    doors: Vec<Arc<Door>>,
    /// For each seat.
    opened: Vec<Vec<(Arc<Door>, Opening)>>,
}

/// An address and the sockets that listen there, from one process to the next.
#[derive(Debug)]
pub struct Handed {
    /// As the configuration says it: with port 0 for any.
    pub configured: SocketAddr,
    /// As it is.
    pub address: SocketAddr,
    /// The kernel shares its connections out among these.
    pub sockets: Vec<std::net::TcpListener>,
}

/// A socket on its way to the runtime that will wait on it.
pub(crate) enum Opening {
    Std(std::net::TcpListener),
    #[cfg(feature = "sim")]
    Ready(Listener),
}

impl Opening {
    /// In the runtime.
    pub(crate) fn listener(self) -> Option<Listener> {
        match self {
            Self::Std(listener) => tokio::net::TcpListener::from_std(listener)
                .inspect_err(|error| tracing::error!(%error, "a listener was lost"))
                .ok()
                .map(Listener::Real),
            #[cfg(feature = "sim")]
            Self::Ready(listener) => Some(listener),
        }
    }
}

impl Hall {
    pub(crate) fn new(node: Arc<Node>, seats: Vec<Arc<Seat>>, stop: Stop) -> Self {
        Self { seats, node: ArcSwap::new(node), reign: Mutex::new(None), stop }
    }

    pub(crate) fn node(&self) -> Arc<Node> {
        self.node.load_full()
    }

    pub(crate) fn seats(&self) -> &[Arc<Seat>] {
        &self.seats
    }

    /// Begins what runs under the first policy, once the first seat works.
    pub(crate) fn begin(&self, cause: Option<Seq>) {
        let reign = Reign::begin(&self.seats[0], &self.stop, cause);
        *self.reign.lock().unwrap_or_else(PoisonError::into_inner) = Some(reign);
    }

    /// The doors that the next policy shares with the present one, in its order; `None` where one must be opened.
    pub(crate) fn doors_for(&self, policy: &Policy) -> Vec<Option<Arc<Door>>> {
        let mut known = self.node().doors.clone();
        let mut take = |address: SocketAddr| {
            // Several on port 0 are told apart by their order.
            let place = known.iter().position(|door| door.configured == address)?;
            Some(known.remove(place))
        };
        policy.listeners.iter().map(|listener| take(listener.address)).collect()
    }

    pub(crate) fn prepared(&self, policy: Arc<Policy>, doors: Vec<(Arc<Door>, Vec<Opening>)>) -> Prepared {
        let mut opened: Vec<Vec<_>> = self.seats.iter().map(|_| Vec::new()).collect();
        let mut all = Vec::new();
        for (door, openings) in doors {
            for (seat, opening) in opened.iter_mut().zip(openings) {
                seat.push((Arc::clone(&door), opening));
            }
            all.push(door);
        }
        Prepared { policy, doors: all, opened }
    }

    /// Held while something changes that another change must not meet half done.
    pub(crate) fn one_change(&self) -> MutexGuard<'_, Option<Reign>> {
        self.reign.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes a door after a time, if it is still being drained because of this entry.
    pub(crate) fn refuse_after(&self, door: Arc<Door>, entry: Seq, time: Duration) {
        let Some(handle) = self.seats[0].handle.get().filter(|_| !time.is_zero()) else { return door.drain.cancel() };
        let closing = async move {
            tokio::select! {
                biased;
                () = door.drain.cancelled() => {}
                () = tokio::time::sleep(time) => {
                    if door.parting.load(Relaxed) == entry.0 {
                        door.drain.cancel();
                    }
                }
            }
        };
        self.seats[0].tasks.spawn_on(closing, handle);
    }

    /// A change to the same policy, with another door in the place of one that was closed.
    pub(crate) fn reopening(&self, closed: &Arc<Door>) -> Result<Prepared, StartError> {
        // Workers that have only just been told to close let go of the address within a moment, on their own threads.
        let mut looks = 0..LETS_GO_LOOKS;
        let opened = loop {
            match bind(closed.configured, closed.address, self.seats.len(), &self.stop) {
                Err(StartError::Listen { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse && looks.next().is_some() =>
                {
                    std::thread::sleep(LETS_GO_PAUSE);
                }
                bound => break bound?,
            }
        };
        let mut opened = Some(opened);
        let node = self.node();
        let doors = node.doors.iter().map(|door| {
            let opened = if Arc::ptr_eq(door, closed) { opened.take() } else { None };
            opened.unwrap_or_else(|| (Arc::clone(door), Vec::new()))
        });
        Ok(self.prepared(Arc::clone(&node.policy), doors.collect()))
    }

    /// Puts the next policy in force.
    pub(crate) fn change(&self, prepared: Prepared, tls: Tls, cause: Option<Seq>, seed: u64) {
        self.change_within(&mut self.one_change(), prepared, tls, cause, seed);
    }

    /// Puts the next policy in force, for whoever lets no other change in between.
    pub(crate) fn change_within(
        &self,
        reign: &mut Option<Reign>,
        prepared: Prepared,
        tls: Tls,
        cause: Option<Seq>,
        seed: u64,
    ) {
        let Prepared { policy, doors, opened } = prepared;
        let old = self.node();
        let doors = doors.into_iter().map(|door| reopened(&old, door, &opened)).collect();
        if let Some(faults) = &old.faults {
            faults.follow(&policy);
        }
        let next = Arc::new(old.succeed(policy, doors, tls, cause, seed));
        let workers: Vec<_> = self.seats.iter().map(|seat| seat.worker().succeed(&next, self.seats.len())).collect();
        self.node.store(Arc::clone(&next));
        next.follow_drains();
        let gone = || old.doors.iter().filter(|door| !next.doors.iter().any(|other| Arc::ptr_eq(door, other)));
        for (seat, worker) in self.seats.iter().zip(workers) {
            let last = gone().map(|door| (Arc::clone(door), seat.worker()));
            seat.closing.lock().unwrap_or_else(PoisonError::into_inner).extend(last);
            seat.current.store(worker);
        }
        for (seat, doors) in self.seats.iter().zip(opened) {
            let (seat_of_task, stop) = (Arc::clone(seat), self.stop.clone());
            let Some(handle) = seat.handle.get() else { continue };
            let opening = async move {
                for (door, opening) in doors {
                    if let Some(listener) = opening.listener() {
                        seat_of_task.open_door(door, listener, &stop);
                    }
                }
            };
            seat.tasks.spawn_on(opening, handle);
        }
        gone().for_each(|door| door.drain.cancel());
        if let Some(past) = reign.replace(Reign::begin(&self.seats[0], &self.stop, cause)) {
            past.end();
        }
    }
}

/// The door that has taken the place of one since the change was prepared: a listener that came back is another door.
fn reopened(old: &Node, door: Arc<Door>, opened: &[Vec<(Arc<Door>, Opening)>]) -> Arc<Door> {
    let is_new = opened.iter().flatten().any(|(new, _)| Arc::ptr_eq(new, &door));
    let is_in_force = old.doors.iter().any(|other| Arc::ptr_eq(other, &door));
    let mut others = old.doors.iter().filter(|_| !is_new && !is_in_force);
    others.find(|other| other.address == door.address).map_or(door, Arc::clone)
}
