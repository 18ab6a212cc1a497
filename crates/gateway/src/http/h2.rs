//! HTTP/2 from clients: the strict gate for requests that come as frames, and bounds on what a connection may cost.
//!
//! What the gate does to bytes (`gate.rs`) a library does to frames: sizes, order, header names. What it leaves open is
//! decided here, request by request, before anything is routed: one host, a path, no second framing, nothing of ours.
//! A connection is let go when it has been idle too long, when an answer waits too long for a client that does not read, in
//! our hands or, once the connection is to end, in the library's, and when a client mostly takes back what it has asked for (CVE-2023-44487 and its kin): each is counted by its name.
//! Not here: how a request is answered (`chain.rs`), how connections are accepted (`listener.rs`).

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderValue};
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use seawall_core::policy::Limits;
use seawall_core::time::Mono;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::task::TaskTracker;

use super::body::{BoxError, Incoming, Tracked};
use super::conn::{ClientIo, ConnState};
use super::gate::{VERDICT_HEADER, Verdict, is_host, is_path};
use super::grpc;
use crate::chain::{Ending, Peer, serve};
use crate::clock::Clock;
use crate::frames::reason;
use crate::listener::Stop;
use crate::seat::{Door, Seat};

/// What a client says first that begins with HTTP/2 at once (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How often a connection is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What is taken back is counted over this long.
const RESETS_WINDOW: Duration = Duration::from_secs(10);
/// So many taken back, and more than there were answered, end a connection.
const RESETS_MAX: u32 = 100;
/// Resets that the library holds before we have seen them.
const PENDING_RESETS_MAX: usize = 20;
/// Resets that a client made us send by errors of its own (CVE-2025-8671).
const LOCAL_RESETS_MAX: usize = 200;
/// Room for a body on its way from a client, for each stream and for all of a connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// An answer held for a client, for each stream.
const SEND_BUFFER: usize = 256 << 10;
/// An answer is handed to the library in pieces of a frame's usual size, the next when the one before has room: what it
/// holds of an answer that is out of our hands is less than that.
const PIECE: usize = 16 << 10;
/// So much written is progress; less may be a few PINGs.
const PROGRESS: u64 = 256;
/// A silent client is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs what the library wants run, counted among the tasks of its owner.
#[derive(Clone)]
pub(crate) struct Tasks(pub(crate) TaskTracker);

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// What is known of one connection.
#[derive(Default)]
struct Traffic {
    /// Requests in work.
    open: AtomicU32,
    /// When the last one ended, in nanoseconds of [`Mono`].
    last: AtomicU64,
    answered: AtomicU32,
    taken_back: AtomicU32,
    /// Bytes that have left.
    written: AtomicU64,
    answers: Mutex<Vec<Weak<Flow>>>,
}

/// An answer on its way to the client.
struct Flow {
    traffic: Arc<Traffic>,
    clock: Clock,
    /// When it last gave a piece, in nanoseconds of [`Mono`].
    last: AtomicU64,
    /// True while it is the client that must ask for more.
    is_held: AtomicBool,
    is_whole: AtomicBool,
    /// It broke on our side, which says nothing about the client.
    is_broken: AtomicBool,
}

impl Flow {
    fn begin(traffic: &Arc<Traffic>, clock: &Clock) -> Arc<Self> {
        traffic.open.fetch_add(1, Relaxed);
        let flow = Arc::new(Self {
            traffic: Arc::clone(traffic),
            clock: clock.clone(),
            last: AtomicU64::new(clock.now().as_nanos()),
            is_held: AtomicBool::new(false),
            is_whole: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
        });
        traffic.answers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&flow));
        flow
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.traffic.open.fetch_sub(1, Relaxed);
        self.traffic.last.store(self.clock.now().as_nanos(), Relaxed);
        if self.is_broken.load(Relaxed) {
            return;
        }
        let count = if self.is_whole.load(Relaxed) { &self.traffic.answered } else { &self.traffic.taken_back };
        count.fetch_add(1, Relaxed);
    }
}

/// An answer's body that notes when the client stops asking for it.
struct Watched<B> {
    body: B,
    /// What is left of the frame that came last.
    rest: Bytes,
    flow: Arc<Flow>,
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Watched<B> {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) if frame.data_ref().is_some_and(|data| data.len() > PIECE) => {
                    self.rest = frame.into_data().unwrap_or_default();
                }
                other => return Poll::Ready(other),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        this.flow.is_held.store(false, Relaxed);
        let polled = this.poll_piece(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.flow.last.store(this.flow.clock.now().as_nanos(), Relaxed);
                this.flow.is_held.store(true, Relaxed);
                // Nobody asks again after trailers, or after the last byte of a known length.
                this.flow.is_whole.store(frame.is_trailers() || this.is_end_stream(), Relaxed);
            }
            Poll::Ready(None) => this.flow.is_whole.store(true, Relaxed),
            Poll::Ready(Some(Err(_))) => this.flow.is_broken.store(true, Relaxed),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (of_body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        of_body.upper().into_iter().for_each(|upper| hint.set_upper(upper + rest));
        hint
    }
}

/// A connection that counts what leaves by it.
struct Counted {
    io: ClientIo,
    traffic: Arc<Traffic>,
}

impl Counted {
    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.traffic.written.fetch_add(bytes as u64, Relaxed);
        }
        written
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io.poll_read_frames(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve_connection(seat: Arc<Seat>, io: ClientIo, peer: Arc<Peer>, door: Arc<Door>, stop: Stop) {
    let node = Arc::clone(&seat.worker().node);
    let (clock, traffic) = (node.clock.clone(), Arc::new(Traffic::default()));
    traffic.last.store(clock.now().as_nanos(), Relaxed);
    let service = service_fn({
        let (seat, traffic, clock) = (Arc::clone(&seat), Arc::clone(&traffic), clock.clone());
        move |request| answer(Arc::clone(&seat), Arc::clone(&peer), Flow::begin(&traffic, &clock), request)
    });
    let io = TokioIo::new(Counted { io, traffic: Arc::clone(&traffic) });
    let connection = builder(&node.policy.limits, &seat.tasks).serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let (mut is_draining, mut window_since) = (false, clock.now());
    let mut leaving = Leaving { written: 0, since: clock.now() };
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::trace!(%error, "a connection ended");
                    if reason(&error) == Some(Reason::ENHANCE_YOUR_CALM) {
                        // The library has had enough of resets that it never showed us.
                        seat.worker().rejections.taken_back.add(1);
                    }
                }
                return;
            }
            () = door.drain.cancelled(), if !is_draining => {
                is_draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = stop.now.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {
                let (now, worker) = (clock.now(), seat.worker());
                let limits = &worker.node.policy.limits;
                if traffic.is_abused() {
                    worker.rejections.taken_back.add(1);
                    return;
                }
                let is_stuck = leaving.is_stuck(now, limits.body_idle_timeout, &traffic, is_draining);
                if is_stuck || traffic.is_stalled(now, limits.body_idle_timeout) {
                    worker.rejections.stalled.add(1);
                    return;
                }
                if !is_draining && traffic.is_idle(now, limits.idle_timeout) {
                    is_draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                if now.since(window_since) >= RESETS_WINDOW {
                    window_since = now;
                    traffic.begin_window();
                }
            }
        }
    }
}

fn builder(limits: &Limits, tasks: &TaskTracker) -> http2::Builder<Tasks> {
    let mut builder = http2::Builder::new(Tasks(tasks.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(limits.header_bytes_max)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// How far a connection is that only has to leave: nothing is in work, but the library may hold ends of answers.
struct Leaving {
    /// Bytes that had left when it last went on.
    written: u64,
    since: Mono,
}

impl Leaving {
    fn is_stuck(&mut self, now: Mono, patience: Duration, traffic: &Traffic, is_draining: bool) -> bool {
        let written = traffic.written.load(Relaxed);
        if !is_draining || traffic.open.load(Relaxed) > 0 || written - self.written >= PROGRESS {
            *self = Self { written, since: now };
        }
        now.since(self.since) >= patience
    }
}

impl Traffic {
    fn is_abused(&self) -> bool {
        let taken_back = self.taken_back.load(Relaxed);
        taken_back >= RESETS_MAX && taken_back > self.answered.load(Relaxed)
    }

    fn is_idle(&self, now: Mono, patience: Duration) -> bool {
        self.open.load(Relaxed) == 0 && now.since(Mono::from_nanos(self.last.load(Relaxed))) >= patience
    }

    fn is_stalled(&self, now: Mono, patience: Duration) -> bool {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_stalled = false;
        answers.retain(|flow| {
            let Some(flow) = flow.upgrade() else { return false };
            // A whole one too: the library still has its last piece in hand.
            is_stalled |=
                flow.is_held.load(Relaxed) && now.since(Mono::from_nanos(flow.last.load(Relaxed))) >= patience;
            true
        });
        is_stalled
    }

    fn begin_window(&self) {
        self.answered.store(0, Relaxed);
        self.taken_back.store(0, Relaxed);
    }
}

async fn answer(
    seat: Arc<Seat>,
    peer: Arc<Peer>,
    flow: Arc<Flow>,
    mut request: Request<hyper::body::Incoming>,
) -> Result<Response<Watched<Tracked<Ending>>>, Infallible> {
    let (worker, is_grpc) = (seat.worker_for(&peer.door), grpc::is_grpc(request.headers()));
    if let Err(verdict) = admit(&mut request, &worker.node.policy.limits) {
        request.headers_mut().clear();
        request.headers_mut().insert(VERDICT_HEADER, HeaderValue::from_static(verdict.name()));
    }
    let mut answered = serve(worker, Arc::new(ConnState::default()), peer, request.map(Incoming::Frames)).await;
    if is_grpc && grpc::say(&mut answered) {
        answered = answered.map(Tracked::emptied);
    }
    Ok(answered.map(|body| {
        flow.is_whole.store(body.is_end_stream(), Relaxed);
        Watched { body, rest: Bytes::new(), flow }
    }))
}

/// What the gate asks of bytes, asked of a request; and what HTTP/1.1 wants of it, so that it can go on as either.
fn admit(request: &mut Request<hyper::body::Incoming>, limits: &Limits) -> Result<(), Verdict> {
    let (uri, headers) = (request.uri().clone(), request.headers());
    if request.method() == Method::CONNECT || request.method() == Method::TRACE {
        return Err(Verdict::Method);
    }
    if headers.len() > limits.headers_max as usize {
        return Err(Verdict::TooManyHeaders);
    }
    // Only the gate may say it.
    if headers.contains_key(VERDICT_HEADER) {
        return Err(Verdict::HeaderName);
    }
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    if !target.starts_with('/') || !is_path(target.as_bytes()) {
        return Err(Verdict::Target);
    }
    check_body(headers, limits)?;
    if headers.get_all(EXPECT).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Verdict::Expectation);
    }
    let host = host(request)?;
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    join_cookies(headers);
    Ok(())
}

fn check_body(headers: &HeaderMap, limits: &Limits) -> Result<(), Verdict> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(()) };
    let digits = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match (digits.and_then(|digits| digits.parse::<u64>().ok()), lengths.next()) {
        (Some(length), None) if length <= limits.body_bytes_max => Ok(()),
        (Some(_), None) => Err(Verdict::BodyTooLong),
        _ => Err(Verdict::ContentLength),
    }
}

/// The one host a request names (RFC 9113, section 8.3.1).
fn host(request: &Request<hyper::body::Incoming>) -> Result<HeaderValue, Verdict> {
    let mut named = request.headers().get_all(HOST).iter();
    let (header, more) = (named.next(), named.next());
    if more.is_some() {
        return Err(Verdict::Host);
    }
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let mut said = authority.map(str::as_bytes).into_iter().chain(header.map(HeaderValue::as_bytes));
    if !said.all(is_host) {
        return Err(Verdict::Host);
    }
    match (authority, header) {
        (Some(authority), Some(header)) if !header.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => {
            Err(Verdict::HostMismatch)
        }
        (Some(authority), _) => HeaderValue::from_str(authority).map_err(|_| Verdict::Host),
        (None, Some(header)) => Ok(header.clone()),
        (None, None) => Err(Verdict::Host),
    }
}

/// One line for what may come in pieces (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let pieces: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if pieces.len() < 2 {
        return;
    }
    if let Ok(joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}
