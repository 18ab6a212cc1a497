//! From an endpoint's name, address or path to a connection: a name is asked for now and then, kept when nobody
//! answers, and raced when an address keeps silent.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall_core::addresses::{Addresses, Answer, Found};
use seawall_core::outcome::Failure;
use seawall_core::policy::Resolver;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Seldom};
use crate::net::{Net, Stream};

/// The next address is tried beside one that has kept silent for this long (RFC 8305, section 5).
const PATIENCE: Duration = Duration::from_millis(250);

/// `host:port`, and where that is.
#[derive(Clone)]
pub(crate) struct Name {
    host_port: Arc<str>,
    place: Place,
    known: Arc<Known>,
    asking: TaskTracker,
    resolver: Resolver,
    net: Net,
    clock: Clock,
}

/// Where a name leads: what is an address already needs no asking.
#[derive(Clone, Debug)]
enum Place {
    Asked,
    Given(SocketAddr),
    Socket(PathBuf),
}

impl Place {
    fn of(text: &str) -> Self {
        match text.strip_prefix("unix:") {
            Some(path) => Self::Socket(path.into()),
            None => text.parse().map_or(Self::Asked, Self::Given),
        }
    }
}

/// What all workers share of an endpoint's name.
#[derive(Debug, Default)]
pub(crate) struct Known {
    addresses: Mutex<Addresses>,
    answered: Notify,
    /// How often it was found to have other addresses than before.
    moves: AtomicU64,
    failed: AtomicU64,
    /// That the name does not resolve.
    told: Seldom,
}

/// A question that is under way: it is answered even if whoever asked does not live to hear it.
struct Question {
    name: Name,
    answer: io::Result<Found>,
}

/// Where a connection leads, and when that was last compared with where its name is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bearing {
    /// Nothing where no name is asked for.
    pub(crate) peer: Option<SocketAddr>,
    moves: u64,
}

impl Name {
    pub(crate) fn new(host_port: &str, resolver: Resolver, net: Net, clock: Clock, known: Arc<Known>) -> Self {
        let (place, asking) = (Place::of(host_port), TaskTracker::new());
        Self { host_port: host_port.into(), place, known, asking, resolver, net, clock }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.host_port
    }

    /// A connection to the first address that takes it. Takes as long as it takes.
    pub(crate) async fn dial(&self) -> Result<Stream, Failure> {
        match &self.place {
            Place::Given(address) => self.connect(*address).await,
            Place::Socket(path) => self.net.connect_unix(path).await.map_err(|error| refusal(&error)),
            Place::Asked => match self.addresses().await[..] {
                [only] => self.connect_to_only(only).await,
                ref several => self.race(several).await,
            },
        }
    }

    /// Where a connection that was just made leads.
    pub(crate) fn bearing(&self, stream: &Stream) -> Bearing {
        let peer = if matches!(self.place, Place::Asked) { stream.peer() } else { None };
        // As if it were an old one: the name may have moved while it was made.
        Bearing { peer, moves: 0 }
    }

    /// False if the name is elsewhere by now. Costs one atomic load while it stays where it is.
    pub(crate) fn still_leads(&self, bearing: &mut Bearing) -> bool {
        let moves = self.known.moves.load(Relaxed);
        let Some(peer) = bearing.peer.filter(|_| bearing.moves != moves) else { return true };
        bearing.moves = moves;
        self.known.lock().known().contains(&peer)
    }

    async fn connect(&self, address: SocketAddr) -> Result<Stream, Failure> {
        self.net.connect(address).await.map_err(|error| refusal(&error))
    }

    async fn connect_to_only(&self, address: SocketAddr) -> Result<Stream, Failure> {
        let connected = self.connect(address).await;
        if connected.is_err() {
            self.known.lock().try_last(self.clock.now(), address);
        }
        connected
    }

    /// Asks beside if it is time to. Nothing where it is an address itself.
    pub(crate) fn look(&self) {
        if matches!(self.place, Place::Asked) {
            self.look_beside();
        }
    }

    /// True if nothing is known yet, and somebody asks.
    fn look_beside(&self) -> bool {
        let mut addresses = self.known.lock();
        if addresses.ask(self.clock.now()) {
            // On its own, so that the answer is there for the next call even where this one cannot wait for it.
            self.asking.spawn(self.clone().ask());
        }
        addresses.is_empty() && addresses.is_asking()
    }

    /// Waits only where nothing is known yet; otherwise asks beside.
    async fn addresses(&self) -> Vec<SocketAddr> {
        let mut answered = std::pin::pin!(self.known.answered.notified());
        answered.as_mut().enable();
        if self.look_beside() {
            answered.await;
        }
        self.known.lock().in_turn(self.clock.now())
    }

    fn ask(self) -> impl Future<Output = ()> + Send {
        let gone = io::Error::other("whoever asked was stopped");
        let mut question = Question { name: self, answer: Err(gone) };
        async move {
            let answer = question.name.net.resolve(question.name.as_str(), question.name.resolver).await;
            drop(std::mem::replace(&mut question.answer, answer));
        }
    }

    fn answered(&self, answer: io::Result<Found>) {
        let now = self.clock.now();
        let change = {
            let mut addresses = self.known.lock();
            let change = addresses.answered(now, answer);
            if change == Answer::Changed {
                self.known.moves.fetch_add(1, Relaxed);
            }
            change
        };
        if matches!(change, Answer::Kept(_) | Answer::Unknown(_)) {
            self.known.failed.fetch_add(1, Relaxed);
        }
        self.known.answered.notify_waiters();
        let name = self.as_str();
        match change {
            Answer::Same => {}
            Answer::Changed => tracing::debug!(name, "has other addresses now"),
            Answer::Kept(why) if self.known.told.is_due(now) => {
                tracing::warn!(name, why, "does not resolve; its last addresses are kept");
            }
            Answer::Unknown(why) if self.known.told.is_due(now) => tracing::warn!(name, why, "does not resolve"),
            Answer::Kept(_) | Answer::Unknown(_) => {}
        }
    }

    /// One after the other, without waiting for those that keep silent.
    async fn race(&self, addresses: &[SocketAddr]) -> Result<Stream, Failure> {
        let mut rest = addresses.iter().copied();
        let mut runners = JoinSet::new();
        let mut running = Vec::new();
        let mut failure = Failure::Dns;
        loop {
            if let Some(address) = rest.next() {
                let net = self.net;
                running.push(address);
                runners.spawn(async move { (address, net.connect(address).await) });
            }
            let patience = async {
                if rest.len() == 0 {
                    return std::future::pending().await;
                }
                tokio::time::sleep(PATIENCE).await;
            };
            let arrived = tokio::select! {
                biased;
                arrived = runners.join_next() => arrived,
                () = patience => continue,
            };
            match arrived {
                None => return Err(failure),
                // The runtime is stopping.
                Some(Err(_)) => failure = Failure::ConnectionLost,
                Some(Ok((address, connected))) => {
                    let place = running.iter().position(|other| *other == address).unwrap_or_default();
                    let overtaken = match connected {
                        Ok(_) => running.drain(..place).collect(),
                        Err(_) => vec![running.remove(place)],
                    };
                    let now = self.clock.now();
                    overtaken.into_iter().for_each(|other| self.known.lock().try_last(now, other));
                    match connected {
                        Ok(stream) => return Ok(stream),
                        Err(error) => failure = refusal(&error),
                    }
                }
            }
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let nobody = io::ErrorKind::Other.into();
        self.name.answered(std::mem::replace(&mut self.answer, Err(nobody)));
    }
}

impl Known {
    /// What the name was last found to be; nothing where it is an address itself.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.lock().known().to_vec()
    }

    /// How often it was asked for in vain.
    pub(crate) fn failed_total(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// What another process knew last.
    pub(crate) fn restore(&self, addresses: Vec<SocketAddr>) {
        self.lock().restore(addresses);
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::TimedOut => Failure::ConnectTimeout,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Failure::ConnectionLost,
        _ => Failure::ConnectRefused,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::TcpListener;

    use seawall_core::time::Wall;
    use tokio::time::Instant;

    use super::*;

    pub(crate) fn name(host_port: &str) -> Name {
        let clock = Clock::new(Instant::now(), Arc::new(|| Wall::from_millis(0)));
        Name::new(host_port, Resolver::default(), Net::Real, clock, Arc::default())
    }

    /// Its addresses from here on.
    pub(crate) fn moves(name: &Name, found: Vec<SocketAddr>) {
        name.known.lock().ask(name.clock.now());
        name.answered(Ok(found.into()));
    }

    fn knowing(found: Vec<SocketAddr>) -> Name {
        let name = name("depot.invalid:80");
        moves(&name, found);
        name
    }

    /// Somebody listens there.
    fn open() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Nobody listens there.
    fn shut() -> SocketAddr {
        open().1
    }

    /// Somebody listens there and keeps silent: the kernel drops what comes when nobody accepts.
    fn silent() -> (Vec<socket2::Socket>, SocketAddr) {
        use socket2::{Domain, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = (0..4).map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address);
            socket
        });
        let mut sockets: Vec<_> = waiting.collect();
        sockets.push(listener);
        (sockets, address.as_socket().unwrap())
    }

    fn peer(stream: &Stream) -> SocketAddr {
        match stream {
            Stream::Real(stream) => stream.peer_addr().unwrap(),
            _ => unreachable!("the kernel's"),
        }
    }

    #[tokio::test]
    async fn one_that_refuses_and_one_that_keeps_silent_hold_nobody_up_and_come_last_after() {
        let ((_open, open), (_silent, silent), shut) = (open(), silent(), shut());
        let name = knowing(vec![shut, silent, open]);
        assert_eq!(peer(&name.dial().await.unwrap()), open);
        assert_eq!(name.known.lock().in_turn(name.clock.now()), [open, shut, silent]);
        assert_eq!(peer(&name.dial().await.unwrap()), open);
    }

    #[tokio::test]
    async fn when_all_refuse_the_call_is_refused() {
        let name = knowing(vec![shut(), shut()]);
        assert_eq!(name.dial().await.unwrap_err(), Failure::ConnectRefused);
        assert_eq!(name.known.lock().in_turn(name.clock.now()).len(), 2);
    }

    #[tokio::test]
    async fn a_name_the_system_knows_is_found_and_one_it_does_not_is_not() {
        let (_open, open) = open();
        let found = name(&format!("localhost:{}", open.port()));
        assert_eq!(peer(&found.dial().await.unwrap()), open);
        let lost = name("depot.invalid:80");
        assert_eq!(lost.dial().await.unwrap_err(), Failure::Dns);
        assert_eq!(lost.dial().await.unwrap_err(), Failure::Dns);
        assert_eq!(lost.as_str(), "depot.invalid:80");
    }

    #[tokio::test]
    async fn an_answer_that_nobody_waits_for_any_more_is_there_for_the_next() {
        let (_open, open) = open();
        let name = name(&format!("localhost:{}", open.port()));
        tokio::select! {
            biased;
            _ = name.dial() => unreachable!("nothing is known yet"),
            () = std::future::ready(()) => {}
        }
        while name.known.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(peer(&name.dial().await.unwrap()), open);
    }

    #[tokio::test]
    async fn an_answer_nobody_lives_to_hear_is_one_all_the_same() {
        let name = name("localhost:80");
        assert!(name.known.lock().ask(name.clock.now()));
        drop(name.clone().ask());
        assert!(!name.known.lock().is_asking());
        assert!(name.known.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_worked_is_kept_while_nobody_answers() {
        let (_open, open) = open();
        let name = knowing(vec![open]);
        tokio::time::advance(Duration::from_secs(60)).await;
        let mut answered = std::pin::pin!(name.known.answered.notified());
        answered.as_mut().enable();
        assert_eq!(peer(&name.dial().await.unwrap()), open);
        answered.await;
        assert_eq!(name.known.lock().in_turn(name.clock.now()), [open]);
        assert!(!name.known.told.is_due(name.clock.now()), "it was told, once");
    }

    #[test]
    fn how_a_connection_fails_has_a_name() {
        for (kind, failure) in [
            (io::ErrorKind::TimedOut, Failure::ConnectTimeout),
            (io::ErrorKind::ConnectionReset, Failure::ConnectionLost),
            (io::ErrorKind::ConnectionAborted, Failure::ConnectionLost),
            (io::ErrorKind::ConnectionRefused, Failure::ConnectRefused),
            (io::ErrorKind::NotFound, Failure::ConnectRefused),
        ] {
            assert_eq!(refusal(&kind.into()), failure);
        }
    }
}
