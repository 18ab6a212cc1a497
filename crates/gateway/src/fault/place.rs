//! One place: it accepts, calls its upstream, and keeps a list of its connections so that faults reach them.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use seawall_core::fault::{Direction, Ending, Fault, FaultId, Link, link_prng};
use seawall_core::time::Mono;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::flow::{Line, finish};
use super::pipes::Pipes;
use super::{Opening, Series, Shared, Traffic, lock};
use crate::net::{HungUp, Listener, Stream};

/// After a failed accept (no descriptor left, say) the next is tried after this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A client that has said something and ended its side may have gone, or wait for its words to arrive: the kernel does
/// not tell. So long is the upstream still called for it.
const CALL_AFTER_END: Duration = Duration::from_secs(15);
/// Connections beyond the limit are told of this often at most.
const REFUSED_TOLD_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    name: String,
    upstream: String,
    target: Result<(String, u16), String>,
    half_close: AtomicBool,
    /// Upstream, downstream.
    traffic: [Arc<Traffic>; 2],
    connections: AtomicUsize,
    /// Inside all its links.
    held_bytes: AtomicUsize,
    side: Mutex<Side>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Changed together, so that no connection misses a fault.
#[derive(Debug)]
struct Side {
    faults: Vec<Fault>,
    lines: BTreeMap<u64, [Arc<Line>; 2]>,
    next_connection: u64,
}

impl Place {
    pub(super) fn open(shared: &Arc<Shared>, opening: Opening, listener: Listener, address: SocketAddr) -> Arc<Self> {
        let Opening { name, upstream, target, half_close, faults, .. } = opening;
        let half_close = AtomicBool::new(half_close.unwrap_or(shared.half_close));
        let traffic = Direction::ALL.map(|direction| {
            let (proxy, upstream) = (name.clone(), upstream.clone());
            shared.counter(Series { direction, listener: address, proxy, upstream })
        });
        let side = Mutex::new(Side { faults, lines: BTreeMap::new(), next_connection: 0 });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (shared, connections, held_bytes) = (Arc::clone(shared), AtomicUsize::new(0), AtomicUsize::new(0));
        let place = Arc::new(Self {
            shared,
            name,
            upstream,
            target,
            half_close,
            traffic,
            connections,
            held_bytes,
            side,
            stop,
            tasks,
        });
        place.tasks.spawn(accept(Arc::clone(&place), listener));
        place
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(super) fn put(&self, fault: &Fault) {
        let mut side = lock(&self.side);
        match side.faults.iter_mut().find(|known| known.id == fault.id) {
            Some(known) => known.clone_from(fault),
            None => side.faults.push(fault.clone()),
        }
        let now = self.shared.means.clock.now();
        side.lines.values().flatten().for_each(|line| line.change(|link| link.put(now, fault.clone())));
    }

    pub(super) fn lift(&self, id: &FaultId) -> bool {
        let mut side = lock(&self.side);
        let count = side.faults.len();
        side.faults.retain(|fault| fault.id != *id);
        side.lines.values().flatten().for_each(|line| {
            line.change(|link| {
                link.lift(id);
            })
        });
        side.faults.len() < count
    }

    pub(super) fn set_half_close(&self, half_close: Option<bool>) {
        self.half_close.store(half_close.unwrap_or(self.shared.half_close), Relaxed);
    }

    /// The n-th connection's number, in the order they were accepted, and its place among all there may be; none where
    /// there are too many.
    fn admit(self: &Arc<Self>) -> Option<Admitted> {
        if !self.shared.connections.take_one(self.connections.load(Relaxed)) {
            return None;
        }
        self.connections.fetch_add(1, Relaxed);
        let mut side = lock(&self.side);
        side.next_connection += 1;
        Some(Admitted { place: Arc::clone(self), number: side.next_connection - 1 })
    }

    /// The links of a connection, with the faults of this moment, and on the list from this moment on.
    fn enter(self: &Arc<Self>, number: u64) -> Listed {
        let mut side = lock(&self.side);
        let now = self.shared.means.clock.now();
        let lines = Direction::ALL.map(|direction| {
            let prng = link_prng(self.shared.seed, &self.name, number, direction);
            Arc::new(Line::new(Link::new(now, direction, prng, &side.faults)))
        });
        side.lines.insert(number, lines.clone());
        Listed { place: Arc::clone(self), number, lines }
    }

    async fn dial(&self) -> io::Result<Stream> {
        let (host, port) = self.target.as_ref().map_err(|told| io::Error::other(told.as_str()))?;
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.shared.addresses(host, *port).await? {
            match self.shared.net.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Done when nobody waits for the upstream any more.
    async fn wait_until_left(&self, client: &Stream) {
        match client.hung_up().await {
            HungUp::Broken => {}
            // Without half-close the first thing the upstream would be told is the end.
            HungUp::Ended { has_words: false } if !self.half_close.load(Relaxed) => {}
            HungUp::Ended { .. } => {
                tokio::select! {
                    () = client.broken() => {}
                    () = tokio::time::sleep(CALL_AFTER_END) => {}
                }
            }
        }
    }

    async fn serve(client: Stream, admitted: Admitted) {
        let place = &admitted.place;
        let upstream = tokio::select! {
            dialled = place.dial() => dialled,
            () = place.wait_until_left(&client) => {
                tracing::debug!(proxy = place.name, upstream = place.upstream, "the client left before the upstream came");
                return finish(client, Ending::Close).await;
            }
            () = place.stop.cancelled() => return finish(client, Ending::Close).await,
        };
        match upstream {
            Ok(upstream) => place.carry([client, upstream], &place.enter(admitted.number)).await,
            Err(error) => {
                tracing::warn!(proxy = place.name, upstream = place.upstream, %error, "cannot reach the upstream");
                finish(client, Ending::Close).await;
            }
        }
    }

    async fn carry(&self, sockets: [Stream; 2], listed: &Listed) {
        let traffic = [&*self.traffic[0], &*self.traffic[1]];
        let mut pipes = Pipes::new(&self.shared.means, sockets, &listed.lines, traffic, &self.held_bytes);
        while pipes.is_open() {
            let next = poll_fn(|cx| pipes.poll_end(cx));
            let Some((way, ending)) = self.stop.run_until_cancelled(next).await else { break };
            if !pipes.end(way, ending, self.half_close.load(Relaxed)).await {
                break;
            }
        }
        pipes.close().await;
    }
}

/// Takes a connection off the list, however it ended.
struct Listed {
    place: Arc<Place>,
    number: u64,
    lines: [Arc<Line>; 2],
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.place.side).lines.remove(&self.number);
    }
}

/// One of the connections there may be, for as long as it lives.
struct Admitted {
    place: Arc<Place>,
    number: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.place.connections.fetch_sub(1, Relaxed);
        self.place.shared.connections.give_back(1);
    }
}

/// Accepts until stopped. The call to the upstream is the connection's own: an upstream that does not answer keeps
/// nobody else waiting.
async fn accept(place: Arc<Place>, listener: Listener) {
    let mut told: Option<Mono> = None;
    while let Some(accepted) = place.stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((client, _)) => match place.admit() {
                Some(admitted) => drop(place.tasks.spawn(Place::serve(client, admitted))),
                None => {
                    finish(client, Ending::Close).await;
                    let refused = place.traffic[0].refused.fetch_add(1, Relaxed) + 1;
                    let now = place.shared.means.clock.now();
                    if told.is_none_or(|told| now.since(told) >= REFUSED_TOLD_EVERY) {
                        told = Some(now);
                        let open = place.connections.load(Relaxed);
                        tracing::warn!(proxy = place.name, open, refused, "too many connections: new ones are closed");
                    }
                }
            },
            Err(error) => {
                tracing::warn!(proxy = place.name, %error, "cannot accept: raise the limit of open files if it is that");
                let _ = place.stop.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
}
