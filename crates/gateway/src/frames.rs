//! HTTP/2 to upstreams: connections that many calls share.
//!
//! Picture a train instead of cars: each call gets a seat, and another train is ordered only when all are full. How many
//! seats there are the upstream says, and we never let more queue in front of it than it lets run: what waits there would
//! be blamed on it. A call that the upstream has refused to begin (REFUSED_STREAM, or a connection that is going away) was
//! not begun, and may be sent again.
//! Not here: connections that one call has to itself (`pool.rs`), and who waits for what.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::header::HOST;
use http::uri::{Authority, Parts as UriParts, Scheme};
use http::{Request, Response, Uri, Version};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use seawall_core::outcome::Failure;
use seawall_core::time::Mono;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::JoinSet;

use crate::http::body::ReqBody;
use crate::net::Stream as NetStream;
use crate::pool::OpenCount;

/// Calls that share a connection at most, whatever the upstream allows: one that breaks takes no more with it.
const STREAMS_MAX: usize = 100;
/// A connection with calls on it is asked whether it is there when it has been silent for so long.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for an answer on its way, for each call and for all of a connection.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Connections to one endpoint that calls share.
#[derive(Default)]
pub(crate) struct Frames {
    open: Mutex<Vec<Arc<Shared>>>,
    crew: Crew,
    /// One opens a connection at a time: whoever waits may find a seat on it.
    pub(crate) opening: tokio::sync::Mutex<()>,
}

/// Runs what the library wants run, for as long as there is anybody to talk for.
#[derive(Clone, Default)]
struct Crew(Arc<Mutex<JoinSet<()>>>);

impl<F> Executor<F> for Crew
where
    F: Future + Send + 'static,
{
    fn execute(&self, future: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move { drop(future.await) });
    }
}

/// One connection.
pub(crate) struct Shared {
    sender: SendRequest<ReqBody>,
    seats: AtomicUsize,
    taken: AtomicUsize,
    born: Mono,
    /// Since when nobody has used it, in nanoseconds of [`Mono`].
    idle_since: AtomicU64,
    is_over: AtomicBool,
    is_sealed: bool,
    returned: Arc<Notify>,
    _open: OpenCount,
    _slot: Option<OwnedSemaphorePermit>,
}

/// A call's seat on a connection.
pub(crate) struct Seat {
    shared: Arc<Shared>,
    sender: SendRequest<ReqBody>,
    pub(crate) reused: bool,
    /// The upstream has not begun with the last request.
    was_refused: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.taken.fetch_sub(1, Relaxed);
        self.shared.returned.notify_one();
    }
}

impl Frames {
    /// A seat on a connection that is there.
    pub(crate) fn seat(&self, now: Mono, age_max: Duration) -> Option<Seat> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|shared| !shared.is_gone());
        open.iter().filter(|shared| now.since(shared.born) < age_max).find_map(|shared| shared.seat(true))
    }

    /// Makes a connection of a stream, for others too unless it is only looked at.
    pub(crate) async fn open(
        &self,
        stream: NetStream,
        now: Mono,
        held: (OpenCount, Option<OwnedSemaphorePermit>),
        returned: &Arc<Notify>,
    ) -> Result<Seat, Failure> {
        let is_sealed = stream.is_sealed();
        if is_sealed && !stream.agreed_on_h2() {
            return Err(Failure::Tls);
        }
        let is_shared = held.1.is_some();
        let mut builder = Builder::new(self.crew.clone());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            // Second copies and tries that are given up reset their streams; that is no reason to give up a connection.
            .max_local_error_reset_streams(None)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|_| Failure::ConnectionLost)?;
        let (open, slot) = held;
        let shared = Arc::new(Shared {
            sender,
            seats: AtomicUsize::new(STREAMS_MAX),
            taken: AtomicUsize::new(0),
            born: now,
            idle_since: AtomicU64::new(now.as_nanos()),
            is_over: AtomicBool::new(false),
            is_sealed,
            returned: Arc::clone(returned),
            _open: open,
            _slot: slot,
        });
        let of_driver = Arc::downgrade(&shared);
        self.crew.execute(async move {
            let mut connection = pin!(connection);
            let drive = |cx: &mut Context<'_>| {
                if let Some(shared) = Weak::upgrade(&of_driver) {
                    shared.seats.store(connection.current_max_send_streams().min(STREAMS_MAX), Relaxed);
                }
                connection.as_mut().poll(cx)
            };
            if let Err(error) = std::future::poll_fn(drive).await {
                tracing::debug!(%error, "a connection to an upstream ended");
            }
            if let Some(shared) = Weak::upgrade(&of_driver) {
                shared.is_over.store(true, Relaxed);
                shared.returned.notify_waiters();
            }
        });
        let seat = shared.seat(false).ok_or(Failure::ConnectionLost)?;
        if is_shared {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).push(shared);
        }
        Ok(seat)
    }

    /// Closes what has been without a call for too long.
    pub(crate) fn sweep(&self, now: Mono, idle_timeout: Duration) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|shared| {
            let is_idle = shared.taken.load(Relaxed) == 0
                && now.since(Mono::from_nanos(shared.idle_since.load(Relaxed))) >= idle_timeout;
            !is_idle && !shared.is_gone()
        });
    }
}

impl Shared {
    fn is_gone(&self) -> bool {
        self.is_over.load(Relaxed) || self.sender.is_closed()
    }

    fn seat(self: &Arc<Self>, reused: bool) -> Option<Seat> {
        if self.taken.fetch_add(1, Relaxed) >= self.seats.load(Relaxed) || self.is_gone() {
            self.taken.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Seat { shared: Arc::clone(self), sender: self.sender.clone(), reused, was_refused: false })
    }
}

impl Seat {
    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(&mut self, request: Request<ReqBody>) -> Result<Response<Incoming>, Failure> {
        let request = as_frames(request, self.shared.is_sealed).ok_or(Failure::Protocol)?;
        self.was_refused = false;
        let sent = self.sender.try_send_request(request).await;
        sent.map_err(|mut error| {
            let reason = reason(error.error());
            let unsent = error.take_message().is_some();
            self.was_refused = unsent || reason == Some(Reason::REFUSED_STREAM);
            if self.was_refused || reason.is_none() {
                // Going away, or gone: nobody else should find that out.
                self.shared.is_over.store(true, Relaxed);
            }
            failure(reason)
        })
    }

    /// The next piece of a body; the connection is driven elsewhere.
    pub(crate) fn poll_body(
        incoming: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let polled = std::pin::Pin::new(incoming).poll_frame(cx);
        polled.map(|frame| frame.map(|frame| frame.map_err(|error| failure(reason(&error)))))
    }

    /// True if the upstream has certainly not begun with the request.
    pub(crate) fn was_refused(&self) -> bool {
        self.was_refused
    }

    /// After a whole answer.
    pub(crate) fn leave(self, now: Mono) {
        self.shared.idle_since.store(now.as_nanos(), Relaxed);
    }
}

/// What HTTP/1 says in its first line and in `Host`, said in pseudo-headers (RFC 9113, section 8.3.1).
fn as_frames(request: Request<ReqBody>, is_sealed: bool) -> Option<Request<ReqBody>> {
    let (mut parts, body) = request.into_parts();
    let host = parts.headers.remove(HOST)?;
    let mut uri = UriParts::default();
    uri.scheme = Some(if is_sealed { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(Authority::try_from(host.as_bytes()).ok()?);
    uri.path_and_query = parts.uri.into_parts().path_and_query;
    parts.uri = Uri::from_parts(uri).ok()?;
    parts.version = Version::HTTP_2;
    Some(Request::from_parts(parts, body))
}

/// Why HTTP/2 says a stream or a connection has ended, if it was HTTP/2 that said so.
pub(crate) fn reason(error: &hyper::Error) -> Option<Reason> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<h2::Error>() {
            return cause.reason();
        }
        source = cause.source();
    }
    None
}

/// What a reset or a farewell means for the guards.
fn failure(reason: Option<Reason>) -> Failure {
    match reason {
        Some(Reason::ENHANCE_YOUR_CALM) => Failure::Throttled,
        Some(
            Reason::PROTOCOL_ERROR
            | Reason::FRAME_SIZE_ERROR
            | Reason::FLOW_CONTROL_ERROR
            | Reason::COMPRESSION_ERROR
            | Reason::HTTP_1_1_REQUIRED,
        ) => Failure::Protocol,
        _ => Failure::ConnectionLost,
    }
}
