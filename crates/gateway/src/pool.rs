//! Connections to upstreams: kept warm, capped, and never trusted further than what was seen of them.
//!
//! A pool belongs to one worker, so connections never cross threads. Who drives a connection is whoever uses it: the
//! call polls it in its own task, without a task of its own and the hand-overs that would cost. An idle one is looked
//! at before it is used again, and closed by the sweep before the upstream would close it.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use seawall_core::balance::latency::PeakEwma;
use seawall_core::outcome::Failure;
use seawall_core::time::Mono;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::clock::{Clock, Seldom};
use crate::frames::{Frames, Seat, Waking};
use crate::http::body::{Pieces, Sending};
use crate::http::message::ResponseHead;
use crate::lines::Lines;
use crate::name::{Known, Name};
use crate::net::{Net, Stream};
use crate::tls::{ClientSide, Untrusted};

/// Connections older than this are not used again: what stands between (a balancer, a proxy of its own) drifts too.
const AGE_MAX: Duration = Duration::from_secs(600);

/// What all workers share of an endpoint.
#[derive(Debug, Default)]
pub(crate) struct EndpointLoad {
    pub(crate) in_flight: AtomicU32,
    pub(crate) connections: AtomicU32,
    pub(crate) known: Arc<Known>,
    pub(crate) calls: AtomicU64,
    pub(crate) latency: PeakEwma,
    /// When it last came (back), in nanoseconds of [`Mono`]; zero if it was there from the beginning.
    since: AtomicU64,
}

impl EndpointLoad {
    /// It is there (again), and not what it was.
    pub(crate) fn comes(&self, now: Mono) {
        self.latency.forget();
        self.since.store(now.as_nanos().max(1), Relaxed);
    }

    /// When it last came (back).
    pub(crate) fn since(&self) -> Option<Mono> {
        let since = self.since.load(Relaxed);
        (since > 0).then(|| Mono::from_nanos(since))
    }
}

/// One worker's connections to one endpoint.
pub(crate) struct EndpointPool {
    name: Name,
    clock: Clock,
    tls: Option<Arc<ClientSide>>,
    /// Why TLS fails.
    told: Seldom,
    connect_timeout: Duration,
    idle_timeout: Duration,
    load: Arc<EndpointLoad>,
    slots: Arc<Semaphore>,
    /// Wakes whoever waits longest when a connection comes back.
    returned: Arc<Notify>,
    idle: Mutex<VecDeque<Box<Lines>>>,
    /// In place of `idle`, where HTTP/2 is spoken.
    frames: Option<Frames>,
}

/// A connection in somebody's hands.
pub(crate) enum Link {
    /// All of it: HTTP/1.
    Lines(Box<Lines>),
    /// A part of it: HTTP/2.
    Frames(Seat),
}

/// A connection that is no HTTP any more.
pub(crate) struct Switched {
    pub(crate) stream: Stream,
    /// What the upstream has said already.
    pub(crate) said: Bytes,
    /// What of its pool it has for as long as it lives: a connection (HTTP/1), ...
    pub(crate) _whole: Option<(OpenCount, Option<OwnedSemaphorePermit>)>,
    /// ... or a part of one (HTTP/2).
    pub(crate) _part: Option<Seat>,
}

/// Counts an open connection for as long as it lives.
pub(crate) struct OpenCount(Arc<EndpointLoad>);

impl OpenCount {
    pub(crate) fn of(load: &Arc<EndpointLoad>) -> Self {
        load.connections.fetch_add(1, Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

impl EndpointPool {
    pub(crate) fn new(
        address: &str,
        net: Net,
        clock: Clock,
        upstream: &seawall_core::policy::Upstream,
        tls: Option<Arc<ClientSide>>,
        connections_max: usize,
        load: Arc<EndpointLoad>,
    ) -> Self {
        Self {
            name: Name::new(address, upstream.resolver, net, clock.clone(), Arc::clone(&load.known)),
            clock,
            tls,
            told: Seldom::default(),
            connect_timeout: upstream.connect_timeout,
            idle_timeout: upstream.idle_timeout,
            load,
            slots: Arc::new(Semaphore::new(connections_max.max(1))),
            returned: Arc::default(),
            idle: Mutex::new(VecDeque::new()),
            frames: upstream.http2.then(Frames::default),
        }
    }

    /// A connection: the one used last, if it is still good, or a new one. Waits its turn (first come, first served)
    /// when as many are open as may be; `waiting` is true meanwhile, so that a wait in vain is not blamed on the
    /// upstream.
    pub(crate) async fn checkout(&self, now: Mono, fresh: bool, waiting: &mut bool) -> Result<Link, Failure> {
        if let Some(frames) = &self.frames {
            return Box::pin(self.checkout_seat(frames, waiting)).await;
        }
        loop {
            if fresh {
                // An idle one in our place makes room for a fresh one.
                if self.slots.available_permits() == 0 {
                    drop(self.lock().pop_front());
                }
            } else if let Some(link) = self.take_idle(now) {
                *waiting = false;
                return Ok(Link::Lines(link));
            }
            if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
                *waiting = false;
                // In a box, like every way that is rarely gone.
                return Box::pin(self.connect_in_time(Some(slot))).await;
            }
            *waiting = true;
            tokio::select! {
                biased;
                () = self.returned.notified() => {}
                slot = Arc::clone(&self.slots).acquire_owned() => {
                    *waiting = false;
                    return Box::pin(self.connect_in_time(slot.ok())).await;
                }
            }
        }
    }

    /// Counts a connection beside the pool, which is about to be made, if fewer than `most` are open.
    pub(crate) fn reserve(&self, most: u32) -> Option<OpenCount> {
        let open = OpenCount(Arc::clone(&self.load));
        if self.load.connections.fetch_add(1, Relaxed) < most { Some(open) } else { None }
    }

    /// A place on a connection that has one, or on a new one. One that is going away has none.
    async fn checkout_seat(&self, frames: &Frames, waiting: &mut bool) -> Result<Link, Failure> {
        let attempts = frames.attempts();
        loop {
            let mut returned = pin!(self.returned.notified());
            // Heard from before the look on: what comes back between the look and the wait is not missed.
            returned.as_mut().enable();
            *waiting = false;
            if let Some(seat) = frames.seat(&self.name, self.clock.now(), AGE_MAX) {
                return Ok(Link::Frames(seat));
            }
            if let Some(failure) = frames.failed_since(attempts) {
                return Err(failure);
            }
            let one_at_a_time = tokio::select! {
                biased;
                locked = frames.opening.lock() => locked,
                () = returned.as_mut() => continue,
            };
            if let Some(seat) = frames.seat(&self.name, self.clock.now(), AGE_MAX) {
                return Ok(Link::Frames(seat));
            }
            if let Some(failure) = frames.failed_since(attempts) {
                return Err(failure);
            }
            if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
                let _waking = Waking(&self.returned);
                let connected = self.connect_in_time(Some(slot)).await;
                frames.attempted(connected.as_ref().err().copied());
                return connected;
            }
            drop(one_at_a_time);
            *waiting = true;
            returned.await;
        }
    }

    /// A connection beside the pool, for bytes as they come. `said` goes first, before it is sealed.
    pub(crate) async fn dial_in_time(&self, said: &[u8]) -> Result<Stream, Failure> {
        let dialled = tokio::time::timeout(self.connect_timeout, self.dial(said)).await;
        dialled.unwrap_or(Err(Failure::ConnectTimeout))
    }

    /// A connection beside the pool, for looking at an endpoint as a new caller would see it.
    pub(crate) async fn probe(&self) -> Result<Link, Failure> {
        self.connect_in_time(None).await
    }

    async fn connect_in_time(&self, slot: Option<OwnedSemaphorePermit>) -> Result<Link, Failure> {
        match tokio::time::timeout(self.connect_timeout, self.connect(slot)).await {
            Ok(connected) => connected,
            Err(_) => Err(Failure::ConnectTimeout),
        }
    }

    /// Gives a connection back after a whole answer.
    pub(crate) fn checkin(&self, now: Mono, link: Link) {
        let mut link = match link {
            Link::Lines(link) => link,
            Link::Frames(seat) => return seat.leave(now),
        };
        if !link.is_done() || now.since(link.born) >= AGE_MAX || !self.name.still_leads(&mut link.bearing) {
            return;
        }
        link.idle_since = now;
        self.lock().push_back(link);
        self.returned.notify_one();
    }

    /// Closes what has been idle too long, was closed from the other side, or leads where the name is no more; of an
    /// endpoint that is drained, all that is idle.
    pub(crate) fn sweep(&self, draining: bool) {
        let (now, idle_timeout) = (self.clock.now(), if draining { Duration::ZERO } else { self.idle_timeout });
        // While there are connections enough nobody dials, and nobody would notice that the name has moved.
        if self.load.connections.load(Relaxed) > 0 {
            self.name.look();
        }
        self.frames.iter().for_each(|frames| frames.sweep(&self.name, now, idle_timeout));
        self.lock().retain_mut(|link| self.is_good(now, idle_timeout, link));
    }

    fn take_idle(&self, now: Mono) -> Option<Box<Lines>> {
        loop {
            let mut link = self.lock().pop_back()?;
            if self.is_good(now, self.idle_timeout, &mut link) {
                link.reused = true;
                return Some(link);
            }
        }
    }

    fn is_good(&self, now: Mono, idle_timeout: Duration, link: &mut Lines) -> bool {
        now.since(link.idle_since) < idle_timeout && self.name.still_leads(&mut link.bearing) && link.is_quiet()
    }

    async fn connect(&self, slot: Option<OwnedSemaphorePermit>) -> Result<Link, Failure> {
        let stream = self.dial(b"").await?;
        let (open, bearing) = (OpenCount::of(&self.load), self.name.bearing(&stream));
        if let Some(frames) = &self.frames {
            let held = (open, slot);
            let seat = frames.open(stream, &self.name, bearing, self.clock.now(), held, &self.returned).await;
            return seat.map(Link::Frames);
        }
        Ok(Link::Lines(Lines::new(stream, bearing, self.clock.now(), open, slot)))
    }

    async fn dial(&self, said: &[u8]) -> Result<Stream, Failure> {
        let mut stream = self.name.dial().await?;
        stream.write_all(said).await.map_err(|_| Failure::ConnectionLost)?;
        self.seal(stream).await
    }

    async fn seal(&self, stream: Stream) -> Result<Stream, Failure> {
        let Some(tls) = &self.tls else { return Ok(stream) };
        tls.connect(self.name.as_str(), stream).await.map_err(|Untrusted { failure, why }| {
            if self.told.is_due(self.clock.now()) {
                tracing::warn!(endpoint = self.name.as_str(), why, "{failure}");
            }
            failure
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Box<Lines>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Sends a request and waits for the head of its answer. `interim` hears of those that come before it, where HTTP/1
    /// is spoken.
    pub(crate) async fn send(
        &mut self,
        sending: Sending<'_>,
        interim: impl FnMut(&ResponseHead),
    ) -> Result<ResponseHead, Failure> {
        match self {
            Self::Lines(lines) => lines.send(sending, interim).await,
            Self::Frames(seat) => seat.send(sending).await,
        }
    }

    /// The next piece of the answer's body.
    pub(crate) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self {
            Self::Lines(lines) => lines.poll_body(cx),
            Self::Frames(seat) => seat.poll_body(cx),
        }
    }

    /// Has what is still to be sent of the request go on, where nobody else does.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Self::Lines(lines) = self {
            lines.drive(cx);
        }
    }

    /// How long the rest of the answer's body is, if that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        match self {
            Self::Lines(lines) => lines.left(),
            Self::Frames(seat) => seat.left(),
        }
    }

    /// True if nothing of the answer is to come.
    pub(crate) fn is_over(&self) -> bool {
        match self {
            Self::Lines(lines) => lines.is_over(),
            Self::Frames(seat) => seat.is_over(),
        }
    }

    /// True if the connection may have been closed from the other side before the request came there: it had been used
    /// before, and not one byte of an answer has come. Or if the upstream has said that it has not begun.
    pub(crate) fn may_be_stale(&self) -> bool {
        match self {
            Self::Lines(lines) => lines.reused && lines.nothing_read(),
            Self::Frames(seat) => seat.may_be_stale(),
        }
    }

    /// Takes the connection out of HTTP, after a `101`.
    pub(crate) fn into_switched(self) -> Result<Switched, Failure> {
        match self {
            Self::Lines(lines) => Ok(lines.into_switched()),
            Self::Frames(seat) => seat.into_switched(),
        }
    }

    /// True if the upstream has nothing of the request.
    pub(crate) fn nothing_written(&self) -> bool {
        match self {
            Self::Lines(lines) => lines.nothing_written(),
            Self::Frames(seat) => seat.was_refused(),
        }
    }

    /// Reads a whole body of known length.
    pub(crate) async fn read_whole(&mut self) -> Result<Bytes, Failure> {
        let mut pieces = Pieces::default();
        loop {
            match std::future::poll_fn(|cx| self.poll_body(cx)).await {
                None => return Ok(pieces.whole()),
                Some(frame) => frame?.into_data().into_iter().for_each(|data| pieces.push(data)),
            }
        }
    }
}
