//! Carries TCP through faults: places that listen, connections to upstreams, and one `Link` for each direction.
//!
//! Picture a street of toll gates. Each [`place`](Opening) listens on its own address and passes every connection on to
//! its upstream; faults hang on the place and work on every connection in it, also on those that are open already. What
//! becomes of bytes is decided in `seawall_core::fault`; here are the sockets and the timers.
//!
//! Bounds: [`FaultProxies::new`] is told how many connections there may be, and those beyond are closed. A link holds
//! what its faults let it hold, all links together [`HELD_BYTES_MAX`], those of one place no more than they leave free,
//! and one chunk each; beyond that senders wait. A call of [`FaultProxies`] never waits for a peer: a change is done
//! when it returns. Not here: who may place faults and in which words (the control side), names and lists of faults.
//!
//! Faults of a node hang elsewhere: on calls in the chain's attempt loop, on connections where they are carried
//! ([`CallFaults`]).

pub(crate) mod body;
pub(crate) mod border;
mod calls;
pub(crate) mod connection;
mod flow;
mod head;
mod pipes;
mod place;
mod share;
pub(crate) mod tries;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use seawall_core::fault::{Direction, Ending, Fault, FaultId};
use seawall_core::id::UpstreamId;
use seawall_core::policy::Resolver;

pub use calls::CallFaults;

use crate::Clock;
use crate::net::Net;
use crate::node::Worker;
use flow::Means;
use place::Place;
use share::Commons;

/// Connections through all places together, where nobody says otherwise.
pub const CONNECTIONS_MAX: usize = 16_384;

/// What all links together may hold before senders wait; those of one place wait when they hold more than is left.
pub const HELD_BYTES_MAX: usize = 256 << 20;

/// Series of traffic that are remembered for places that are closed.
const SERIES_MAX: usize = 4_096;

/// A place that is to listen.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Its name: unique, and part of what its connections draw their chance from.
    pub name: String,
    /// Where it listens. Of no address in particular, it listens on all of both families.
    pub listen: SocketAddr,
    /// What its upstream is called in metrics and logs.
    pub upstream: String,
    /// The upstream's host, looked up for each connection, and its port; or why it cannot be called, which is logged
    /// for each connection.
    pub target: Result<(String, u16), String>,
    /// Whether a sender that has no more to say may still be answered; without, what [`FaultProxies::new`] was told.
    pub half_close: Option<bool>,
    /// What lies on it from the first connection on.
    pub faults: Vec<Fault>,
}

/// Whose bytes are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// Their way.
    pub direction: Direction,
    /// Where the place listens.
    pub listener: SocketAddr,
    /// The place.
    pub proxy: String,
    /// Its upstream.
    pub upstream: String,
}

/// Bytes that came from the sender and bytes that went to the receiver, counted as they pass.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    /// Connections that were closed because there were too many: of the place, counted with the way to its upstream.
    pub(crate) refused: AtomicU64,
}

/// What a series has counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes from senders.
    pub received_bytes: u64,
    /// Bytes to receivers.
    pub sent_bytes: u64,
    /// Connections that were closed unserved because there were too many; always 0 for [`Direction::Downstream`].
    pub refused_connections: u64,
}

/// Every place of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FaultProxies(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) net: Net,
    pub(crate) seed: u64,
    pub(crate) half_close: bool,
    connections: Commons,
    means: Means,
    places: Mutex<BTreeMap<String, Arc<Place>>>,
    traffic: Mutex<BTreeMap<Series, Arc<Traffic>>>,
}

impl FaultProxies {
    /// None yet. The same `seed` gives the n-th connection of a place the same fate. With `half_close` a sender that
    /// has no more to say may still be answered; without, its end closes the connection to the receiver. A place may
    /// choose for itself. There are at most `connections_max` connections, and a place has at most as many as it leaves
    /// free for others; whoever comes beyond that is closed at once.
    #[must_use]
    pub fn new(net: Net, clock: Clock, seed: u64, half_close: bool, connections_max: usize) -> Self {
        let (places, traffic) = Default::default();
        let connections = Commons::new(connections_max);
        let means = Means { clock, held_bytes: Commons::new(HELD_BYTES_MAX), on_broken: Ending::Close };
        Self(Arc::new(Shared { net, seed, half_close, connections, means, places, traffic }))
    }

    /// Begins to listen, and tells where. One of the same name is closed first.
    ///
    /// # Errors
    /// The kernel's: address in use, not ours, not allowed.
    pub async fn open(&self, opening: Opening) -> io::Result<SocketAddr> {
        self.close(&opening.name).await;
        let listener = match opening.listen {
            SocketAddr::V4(address) if address.ip().is_unspecified() => {
                let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
                match self.0.net.listen_alone(both).await {
                    // A machine without IPv6.
                    Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                        self.0.net.listen_alone(address.into()).await
                    }
                    listening => listening,
                }
            }
            address => self.0.net.listen_alone(address).await,
        }?;
        let address = listener.local_addr()?;
        let place = Place::open(&self.0, opening, listener, address);
        lock(&self.0.places).insert(place.name().to_owned(), place);
        Ok(address)
    }

    /// Stops listening and closes every connection of a place; done when it returns. Without such a place, nothing.
    ///
    /// # Cancel safety
    /// Dropped, the place still closes.
    pub async fn close(&self, name: &str) {
        let place = lock(&self.0.places).remove(name);
        if let Some(place) = place {
            place.close().await;
        }
    }

    /// Places a fault, or changes it, on a place and all its connections. Tells whether there is such a place.
    pub fn put(&self, name: &str, fault: &Fault) -> bool {
        self.place(name).is_some_and(|place| {
            place.put(fault);
            true
        })
    }

    /// Lifts a fault from a place and all its connections. Tells whether there was one.
    pub fn lift(&self, name: &str, id: &FaultId) -> bool {
        self.place(name).is_some_and(|place| place.lift(id))
    }

    /// Lets those who have ended their side be answered, or not; without a choice, as [`FaultProxies::new`] was told.
    /// Holds for whatever ends from now on, on open connections too. Tells whether there is such a place.
    pub fn set_half_close(&self, name: &str, half_close: Option<bool>) -> bool {
        self.place(name).is_some_and(|place| {
            place.set_half_close(half_close);
            true
        })
    }

    /// Looks a host's addresses up.
    ///
    /// # Errors
    /// When it has none.
    pub async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok(self.0.addresses(host, 0).await?.into_iter().map(|address| address.ip()).collect())
    }

    /// What has passed so far, also of places that are closed.
    #[must_use]
    pub fn traffic(&self) -> Vec<(Series, Counts)> {
        let all = lock(&self.0.traffic);
        let read = |(series, traffic): (&Series, &Arc<Traffic>)| {
            let counts = Counts {
                received_bytes: traffic.received_bytes.load(Relaxed),
                sent_bytes: traffic.sent_bytes.load(Relaxed),
                refused_connections: traffic.refused.load(Relaxed),
            };
            (series.clone(), counts)
        };
        all.iter().map(read).collect()
    }

    fn place(&self, name: &str) -> Option<Arc<Place>> {
        lock(&self.0.places).get(name).cloned()
    }
}

/// Waits for as long as a fault cuts off the zone of an endpoint. For what goes there and is no call: whoever waits in
/// vain gives up by himself.
pub(crate) async fn stand_before_cut(worker: &Worker, upstream: UpstreamId, endpoint: usize) {
    let state = &worker.node.upstreams[upstream.index()];
    if let (Some(faults), Some(zone)) = (&worker.node.faults, &state.endpoints[endpoint].endpoint.zone)
        && let Some(cut) = faults.cut(&state.name, zone)
    {
        faults.hold(cut, None).await;
    }
}

impl Shared {
    /// Every address of a host, at this port.
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let host_port = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(self.net.resolve(&host_port, Resolver::Own).await?.addresses)
    }

    /// The counter of a series, new or the one it had before.
    fn counter(&self, series: Series) -> Arc<Traffic> {
        let mut all = lock(&self.traffic);
        if all.len() >= SERIES_MAX {
            all.retain(|_, traffic| Arc::strong_count(traffic) > 1);
        }
        Arc::clone(all.entry(series).or_default())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
