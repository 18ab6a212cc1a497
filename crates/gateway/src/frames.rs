//! HTTP/2 to upstreams: connections that many calls share.
//!
//! Picture a train instead of cars: each call gets a seat, and another train is ordered only when all are full. How
//! many seats there are the upstream says, and we never let more queue in front of it than it lets run: what waits
//! there would be blamed on it. A call that the upstream has refused to begin (REFUSED_STREAM, or a connection that is
//! going away) was not begun, and may be sent again. Not here: connections that one call has to itself (`pool.rs`), and
//! who waits for what.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::header::{CONNECTION, HOST, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::uri::{Authority, Parts as UriParts, Scheme};
use http::{Method, Request, StatusCode, Uri, Version};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::ext::Protocol;
use hyper::rt::Executor;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use seawall_core::outcome::Failure;
use seawall_core::time::Mono;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::JoinSet;

use crate::http::body::{ReqBody, Sending};
use crate::http::message::ResponseHead;
use crate::http::tunnel::Tunnel;
use crate::name::{Bearing, Name};
use crate::net::Stream as NetStream;
use crate::pool::{OpenCount, Switched};
use crate::upgrade;

/// Calls that share a connection at most, whatever the upstream allows: one that breaks takes no more with it.
const STREAMS_MAX: usize = 100;
/// A connection whose upstream has refused a call is given one call more at once after so many answers.
const ANSWERS_FOR_ONE_MORE: usize = 64;
/// What the library says before the upstream has said how many calls it takes. No upstream says just this.
const UNSAID: usize = (1 << 31) - 2;
/// How soon and how often a connection is looked at for what its upstream says beside its answers.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_MOST: Duration = Duration::from_secs(1);
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
    /// How many have been opened, or not, and what the last failed by.
    attempts: Mutex<(u64, Option<Failure>)>,
}

/// Wakes whoever waits for a seat to look again, however an attempt to open a connection ends.
pub(crate) struct Waking<'a>(pub(crate) &'a Notify);

impl Drop for Waking<'_> {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
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
    /// What the upstream has said.
    seats: AtomicUsize,
    /// The upstream lets streams become connections (RFC 8441).
    takes_connect: AtomicBool,
    /// What it was seen to take, where it has said more.
    borne: AtomicUsize,
    /// Calls answered since `borne` last changed.
    answered: AtomicUsize,
    taken: AtomicUsize,
    born: Mono,
    bearing: Mutex<Bearing>,
    /// Since when nobody has used it, in nanoseconds of [`Mono`].
    idle_since: AtomicU64,
    is_over: AtomicBool,
    is_sealed: bool,
    /// By what an upstream is asked for whose client named none.
    address: HeaderValue,
    returned: Arc<Notify>,
    _open: OpenCount,
    slot: Mutex<Option<OwnedSemaphorePermit>>,
}

/// A call's seat on a connection.
pub(crate) struct Seat {
    shared: Arc<Shared>,
    sender: SendRequest<ReqBody>,
    reused: bool,
    /// The upstream has not begun with the last request.
    was_refused: bool,
    /// The connection broke under the last request.
    was_lost: bool,
    /// The answer's body.
    incoming: Option<Incoming>,
    /// What the stream has become in place of an answer.
    switched: Option<Box<Tunnel>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.taken.fetch_sub(1, Relaxed);
        self.shared.returned.notify_one();
    }
}

impl Frames {
    /// A seat on a connection that is there. One that is too old, or leads where the name is no more, gives none, nor
    /// keeps its place among those that may be open: it lives for as long as it has calls.
    pub(crate) fn seat(&self, name: &Name, now: Mono, age_max: Duration) -> Option<Seat> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|shared| {
            shared.keep_if(!shared.is_gone() && now.since(shared.born) < age_max && shared.still_leads_to(name))
        });
        open.iter().find_map(|shared| shared.seat(true))
    }

    /// How many attempts to open a connection have come to an end.
    pub(crate) fn attempts(&self) -> u64 {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// One more has.
    pub(crate) fn attempted(&self, failure: Option<Failure>) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        *attempts = (attempts.0 + 1, failure);
    }

    /// What the last attempt failed by, if it ended after there had been so many. It stands for all who waited for it:
    /// an upstream that cannot be reached is not tried by one after the other.
    pub(crate) fn failed_since(&self, attempts: u64) -> Option<Failure> {
        let last = *self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        last.1.filter(|_| last.0 > attempts)
    }

    /// Makes a connection of a stream, for others too unless it is only looked at.
    pub(crate) async fn open(
        &self,
        stream: NetStream,
        name: &Name,
        bearing: Bearing,
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
            .initial_max_send_streams(UNSAID)
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
            seats: AtomicUsize::new(0),
            takes_connect: AtomicBool::new(false),
            borne: AtomicUsize::new(STREAMS_MAX),
            answered: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            born: now,
            bearing: Mutex::new(bearing),
            idle_since: AtomicU64::new(now.as_nanos()),
            is_over: AtomicBool::new(false),
            is_sealed,
            address: HeaderValue::from_str(name.as_str())
                .ok()
                .filter(can_say)
                .unwrap_or(HeaderValue::from_static("localhost")),
            returned: Arc::clone(returned),
            _open: open,
            slot: Mutex::new(slot),
        });
        let of_driver = Arc::downgrade(&shared);
        self.crew.execute(async move {
            let mut connection = pin!(connection);
            let drive = |cx: &mut Context<'_>| {
                let polled = connection.as_mut().poll(cx);
                if let Some(shared) = Weak::upgrade(&of_driver) {
                    shared.takes_connect.store(connection.is_extended_connect_protocol_enabled(), Relaxed);
                    let said = connection.current_max_send_streams();
                    let seats = if said == UNSAID { 0 } else { said.min(STREAMS_MAX) };
                    if shared.seats.swap(seats, Relaxed) < seats {
                        shared.returned.notify_waiters();
                    }
                }
                polled
            };
            let mut drive = std::future::poll_fn(drive);
            let mut wait = LOOK_FIRST;
            let ended = loop {
                // The library does not say when the upstream has said how many calls it takes.
                tokio::select! {
                    biased;
                    ended = &mut drive => break ended,
                    () = tokio::time::sleep(wait) => wait = (wait * 2).min(LOOK_MOST),
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to an upstream ended");
            }
            if let Some(shared) = Weak::upgrade(&of_driver) {
                shared.is_over.store(true, Relaxed);
                shared.returned.notify_waiters();
            }
        });
        // The first thing an upstream says. To guess until then would be to open too many connections, or send too
        // much.
        let seat = loop {
            let mut said = pin!(returned.notified());
            said.as_mut().enable();
            if shared.is_gone() {
                return Err(Failure::ConnectionLost);
            }
            if let Some(seat) = shared.seat(false) {
                break seat;
            }
            said.await;
        };
        if is_shared {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).push(shared);
        }
        Ok(seat)
    }

    /// Closes what has been without a call for too long, or leads where the name is no more, once its calls are over.
    pub(crate) fn sweep(&self, name: &Name, now: Mono, idle_timeout: Duration) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|shared| {
            let is_idle = shared.taken.load(Relaxed) == 0
                && now.since(Mono::from_nanos(shared.idle_since.load(Relaxed))) >= idle_timeout;
            shared.keep_if(!is_idle && !shared.is_gone() && shared.still_leads_to(name))
        });
    }
}

impl Shared {
    fn still_leads_to(&self, name: &Name) -> bool {
        name.still_leads(&mut self.bearing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_gone(&self) -> bool {
        self.is_over.load(Relaxed) || self.sender.is_closed()
    }

    /// What is not kept makes room for another at once.
    fn keep_if(&self, keep: bool) -> bool {
        if !keep {
            drop(self.slot.lock().unwrap_or_else(PoisonError::into_inner).take());
            self.returned.notify_waiters();
        }
        keep
    }

    fn seat(self: &Arc<Self>, reused: bool) -> Option<Seat> {
        let seats = self.seats.load(Relaxed).min(self.borne.load(Relaxed));
        if self.taken.fetch_add(1, Relaxed) >= seats || self.is_gone() {
            self.taken.fetch_sub(1, Relaxed);
            return None;
        }
        let (shared, sender) = (Arc::clone(self), self.sender.clone());
        Some(Seat { shared, sender, reused, was_refused: false, was_lost: false, incoming: None, switched: None })
    }

    /// The upstream took all but one of those that are on their way, whatever it has said.
    fn bear_less(&self) {
        let others = self.taken.load(Relaxed).saturating_sub(1).max(1);
        self.borne.fetch_min(others, Relaxed);
        self.answered.store(0, Relaxed);
    }

    /// It may take more than it once did: one more for every so many answers.
    fn bear_more(&self) {
        if self.borne.load(Relaxed) < STREAMS_MAX && self.answered.fetch_add(1, Relaxed) + 1 >= ANSWERS_FOR_ONE_MORE {
            self.answered.store(0, Relaxed);
            self.borne.fetch_add(1, Relaxed);
            self.returned.notify_one();
        }
    }
}

impl Seat {
    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(&mut self, sending: Sending<'_>) -> Result<ResponseHead, Failure> {
        (self.was_refused, self.was_lost) = (false, false);
        let asked = sending.headers.get(UPGRADE).cloned();
        let key = asked.as_ref().and_then(|_| sending.headers.get(SEC_WEBSOCKET_KEY).cloned());
        if asked.as_ref().is_some_and(|asked| !is_websocket(asked) || !self.shared.takes_connect.load(Relaxed)) {
            return Err(Failure::Upgrade);
        }
        let request = as_frames(sending, &self.shared).ok_or(Failure::Protocol)?;
        let sent = self.sender.try_send_request(request).await;
        let answer = sent.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            let cause = cause(error.error());
            let reason = cause.and_then(h2::Error::reason);
            // What it says when it leaves concerns the calls it has not begun with, and no others (RFC 9113, 6.8).
            let is_leaving = cause.is_some_and(|cause| cause.is_go_away() && cause.is_remote());
            let is_refused = reason == Some(Reason::REFUSED_STREAM) && !is_leaving;
            self.was_refused = unsent || is_leaving || is_refused;
            self.was_lost = reason.is_none() || is_leaving;
            if is_refused {
                self.shared.bear_less();
            } else if unsent || self.was_lost {
                // Going away, or gone: nobody else should find that out.
                self.shared.is_over.store(true, Relaxed);
            }
            failure(reason)
        })?;
        let (mut parts, incoming) = answer.into_parts();
        self.incoming = Some(incoming);
        let agreed = parts.extensions.remove::<OnUpgrade>();
        let mut head = ResponseHead::from(parts);
        if let (Some(asked), Some(agreed)) = (asked, agreed) {
            let upgraded = agreed.await.map_err(|_| Failure::ConnectionLost)?;
            self.switched = Some(Box::new(Tunnel::to_upstream(upgraded)));
            // As HTTP/1.1 would have said it.
            head.status = StatusCode::SWITCHING_PROTOCOLS;
            upgrade::say(&mut head.headers, asked);
            head.headers.remove(SEC_WEBSOCKET_ACCEPT);
            head.headers.extend(key.as_ref().and_then(upgrade::accept).map(|accept| (SEC_WEBSOCKET_ACCEPT, accept)));
        }
        Ok(head)
    }

    /// What the stream has become; the seat stays taken for as long as that lives.
    pub(crate) fn into_switched(mut self) -> Result<Switched, Failure> {
        let tunnel = self.switched.take().ok_or(Failure::Protocol)?;
        Ok(Switched { stream: NetStream::Tunnel(tunnel), said: Bytes::new(), _whole: None, _part: Some(self) })
    }

    /// The next piece of the answer's body; the connection is driven elsewhere.
    pub(crate) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let polled = std::pin::Pin::new(incoming).poll_frame(cx);
        polled.map(|frame| frame.map(|frame| frame.map_err(|error| failure(reason(&error)))))
    }

    /// How long the rest of the body is, if that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        self.incoming.as_ref().map_or(Some(0), |incoming| incoming.size_hint().exact())
    }

    /// True if nothing of the body is to come.
    pub(crate) fn is_over(&self) -> bool {
        self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    /// True if the upstream has certainly not begun with the request.
    pub(crate) fn was_refused(&self) -> bool {
        self.was_refused
    }

    /// True if the connection was there before, and broke before an answer came: the upstream may never have seen it.
    pub(crate) fn may_be_stale(&self) -> bool {
        self.reused && self.was_lost || self.was_refused
    }

    /// After a whole answer.
    pub(crate) fn leave(self, now: Mono) {
        self.shared.bear_more();
        self.shared.idle_since.store(now.as_nanos(), Relaxed);
    }
}

fn is_websocket(asked: &HeaderValue) -> bool {
    asked.as_bytes().eq_ignore_ascii_case(upgrade::WEBSOCKET.as_bytes())
}

/// True for a `Host` that HTTP/2 can say: its `:authority` takes less.
pub(crate) fn can_say(host: &HeaderValue) -> bool {
    Authority::try_from(host.as_bytes()).is_ok()
}

/// What HTTP/1 says in its first line and in `Host`, said in pseudo-headers (RFC 9113, section 8.3.1). Who was not
/// asked for by name is asked for by address.
fn as_frames(sending: Sending<'_>, shared: &Shared) -> Option<Request<ReqBody>> {
    let Sending { method, target, headers, body } = sending;
    let mut request = Request::new(body);
    let mut headers = headers.into_owned();
    let host = headers.remove(HOST).unwrap_or_else(|| shared.address.clone());
    let mut uri = UriParts::default();
    uri.scheme = Some(if shared.is_sealed { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(Authority::try_from(host.as_bytes()).ok()?);
    uri.path_and_query = target.path_and_query().cloned();
    *request.headers_mut() = headers.into();
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.method_mut() = method.clone();
    *request.version_mut() = Version::HTTP_2;
    if request.headers().contains_key(UPGRADE) {
        // The one that may be asked for here (RFC 8441, section 5).
        [UPGRADE, CONNECTION, SEC_WEBSOCKET_KEY].iter().for_each(|name| drop(request.headers_mut().remove(name)));
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(Protocol::from_static(upgrade::WEBSOCKET));
    }
    Some(request)
}

/// Why HTTP/2 says a stream or a connection has ended, if it was HTTP/2 that said so.
pub(crate) fn reason(error: &hyper::Error) -> Option<Reason> {
    cause(error).and_then(h2::Error::reason)
}

fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<h2::Error>() {
            return Some(cause);
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::name::tests::{moves, name};
    use crate::net::Net;
    use crate::pool::EndpointLoad;

    /// A connection to a server that answers everything, and what it is counted by.
    async fn connected(frames: &Frames, slots: &Arc<Semaphore>, returned: &Arc<Notify>) -> Seat {
        connected_to(frames, &name("unix:/a b"), slots, returned).await
    }

    async fn connected_to(frames: &Frames, name: &Name, slots: &Arc<Semaphore>, returned: &Arc<Notify>) -> Seat {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        frames.crew.execute(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let answer = http::Response::new(());
                respond.send_response(answer, true).unwrap();
            }
        });
        let stream = Net::Real.connect(address).await.unwrap();
        let bearing = name.bearing(&stream);
        let held = (OpenCount::of(&Arc::new(EndpointLoad::default())), slots.clone().try_acquire_owned().ok());
        frames.open(stream, name, bearing, Mono::from_millis(0), held, returned).await.unwrap()
    }

    async fn ask(seat: &mut Seat) -> http::StatusCode {
        let (target, headers) = (Uri::from_static("/"), std::borrow::Cow::default());
        let sending = Sending { method: &http::Method::GET, target: &target, headers, body: ReqBody::Empty };
        seat.send(sending).await.unwrap().status
    }

    #[tokio::test]
    async fn one_that_is_too_old_keeps_nobody_from_a_new_one_and_ends_its_calls() {
        let (frames, slots, returned) = (Frames::default(), Arc::new(Semaphore::new(1)), Arc::new(Notify::new()));
        let mut seat = connected(&frames, &slots, &returned).await;
        let age = Duration::from_secs(600);
        assert!(frames.seat(&name("unix:/a b"), Mono::from_millis(599_999), age).is_some());
        assert_eq!(slots.available_permits(), 0);
        let mut woken = pin!(returned.notified());
        woken.as_mut().enable();
        assert!(frames.seat(&name("unix:/a b"), Mono::from_millis(600_000), age).is_none());
        assert_eq!(slots.available_permits(), 1);
        woken.await;
        assert_eq!(ask(&mut seat).await, 200, "whoever has a seat keeps it");
    }

    #[tokio::test]
    async fn one_that_leads_where_the_name_is_no_more_gets_no_new_call_and_ends_its_own() {
        let (frames, slots, returned) = (Frames::default(), Arc::new(Semaphore::new(1)), Arc::new(Notify::new()));
        let name = name("depot.invalid:80");
        let mut seat = connected_to(&frames, &name, &slots, &returned).await;
        let here = seat.shared.bearing.lock().unwrap().peer.unwrap();
        let elsewhere = SocketAddr::from(([127, 0, 0, 9], 80));
        let has_seat = || frames.seat(&name, Mono::from_millis(0), Duration::from_secs(600)).is_some();
        moves(&name, vec![elsewhere, here]);
        assert!(has_seat(), "it is among several");
        moves(&name, vec![elsewhere]);
        frames.sweep(&name, Mono::from_millis(0), Duration::from_secs(600));
        assert!(!has_seat());
        assert_eq!(slots.available_permits(), 1);
        assert_eq!(ask(&mut seat).await, 200);
    }

    #[tokio::test]
    async fn an_upstream_that_takes_less_than_it_says_is_given_less_and_by_and_by_more() {
        let (frames, slots, returned) = (Frames::default(), Arc::new(Semaphore::new(1)), Arc::new(Notify::new()));
        let first = connected(&frames, &slots, &returned).await;
        let seat = || frames.seat(&name("unix:/a b"), Mono::from_millis(1), Duration::from_secs(600));
        let others: Vec<_> = (0..4).map(|_| seat().unwrap()).collect();
        first.shared.bear_less();
        assert!(seat().is_none(), "five were too many");
        drop(others);
        assert_eq!(std::iter::from_fn(seat).take(10).collect::<Vec<_>>().len(), 3);
        for _ in 0..ANSWERS_FOR_ONE_MORE {
            first.shared.bear_more();
        }
        assert_eq!(std::iter::from_fn(seat).take(10).collect::<Vec<_>>().len(), 4);
    }
}
