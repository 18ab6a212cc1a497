//! HTTP/2 from clients: the strict gate for requests that come as frames, and bounds on what a connection may cost.
//!
//! What the gate does to bytes (`gate.rs`) a library does to frames: sizes, order, header names. What it leaves open is
//! decided here, request by request, before anything is routed: one host, a path, no second framing, nothing of ours.
//! An answer that its client does not take is taken back alone (`stream.rs`). A connection is let go when it has been
//! idle too long, when a head does not come to its end, when its client takes nothing of any answer, or not even the
//! end of one when the connection is to go, when a client mostly takes back what it has asked for (CVE-2023-44487 and
//! its kin), and when it mostly sends frames that carry nothing (CVE-2019-9512 and its kin): each is counted by its
//! name, and so is what the library ends by itself. Not here: how long one request may take (`stream.rs`), how it is
//! answered (`chain.rs`), how connections are accepted (`listener.rs`).

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::{Builder, Connection, Handshake, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderValue};
use http::{Method, Request, StatusCode};
use seawall_core::fault::book::Client;
use seawall_core::policy::Limits;
use seawall_core::time::Mono;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::body::{Incoming, Tracked};
use super::conn::{ClientIo, ConnState};
use super::gate::{VERDICT_HEADER, Verdict, is_host, is_path};
use super::grpc;
use super::message::{self, RequestHead};
use super::passing::{
    CONTINUATION, DATA, END_STREAM, GOAWAY, HEADERS, Passing, RST_STREAM, SETTINGS, Seen, Unfinished, WINDOW_UPDATE,
};
use super::stream::{self, Coming, Flow, Unsent};
use super::tunnel::Tunnel;
use crate::chain::{Peer, serve};
use crate::clock::Clock;
use crate::listener::Stop;
use crate::net::Stream as NetStream;
use crate::observe::Rejections;
use crate::seat::{Door, Seat};
use crate::upgrade;

/// What a client says first that begins with HTTP/2 at once (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How often a connection is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What is taken back, and what carries nothing, is counted over this long.
const WINDOW: Duration = Duration::from_secs(10);
/// So many taken back, and more than there were answered, end a connection.
const RESETS_MAX: u32 = 100;
/// Resets that the library holds before we have seen them.
const PENDING_RESETS_MAX: usize = 20;
/// Resets that a client made us send by errors of its own (CVE-2025-8671).
const LOCAL_RESETS_MAX: usize = 200;
/// So many frames that carry nothing in ten seconds, and more than four for each that carries something, end a
/// connection.
const EMPTY_MAX: u32 = 1_000;
const EMPTY_PER_USE: u32 = 4;
/// DATA with less than this is no use to anybody: it comes of windows that are opened by drops.
const DRIBBLE: u32 = 8;
/// DATA that comes with less than this is no use either: the least that a message of gRPC or of a WebSocket takes.
const LEAST: u32 = 5;
/// DATA that leaves is as useful as one frame for each of so many bytes: a client opens its window for all of them, and
/// may do so a little at a time.
const USE_BYTES: u32 = 32;
/// Room for a body on its way from a client, for each stream and for all of a connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// What a connection lets us send before its client makes more room (RFC 9113, section 6.9.2).
const WINDOW_FIRST: i64 = 65_535;
/// An answer held by the library for a client whose window is open and who does not read, for each stream.
const SEND_BUFFER: usize = 64 << 10;
/// So much is read at a time, then whoever reads bodies has a turn: what lies in the library in small pieces is
/// bounded.
const READ_A_TURN: u64 = 64 << 10;
/// Room for small pieces of bodies beyond what is in them, for all of a connection: more than comes in a turn.
const PIECES_BYTES: usize = 2 << 20;
/// So much written is progress; less may be a few PINGs.
const PROGRESS: u64 = 256;
/// A silent client is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What is known of one connection.
pub(crate) struct Traffic {
    /// Requests in work.
    open: AtomicU32,
    /// When the last one ended, in nanoseconds of [`Mono`].
    last: AtomicU64,
    answered: AtomicU32,
    taken_back: AtomicU32,
    /// Frames that carry nothing, and those that carry something.
    empty: AtomicU32,
    useful: AtomicU32,
    /// Since when a head, or a frame, has been on its way, in nanoseconds of [`Mono`]; zero if none is.
    head_since: AtomicU64,
    /// Streams that the library has reset because of what the client did, and that are not counted yet.
    broken: AtomicU32,
    /// Heads that the library has answered because of their length, and that are not counted yet.
    heads_long: AtomicU32,
    /// The client's first frame has come.
    has_begun: AtomicBool,
    /// It was another than it must be.
    is_no_client: AtomicBool,
    /// What the library said when it ended the connection: `OF_RESETS`, `OF_HEADS`, or zero.
    farewell: AtomicU8,
    /// Bytes that have left, and that have come.
    written: AtomicU64,
    read: AtomicU64,
    /// How many had come when this turn began.
    turn: AtomicU64,
    /// What the client lets us send, all streams together.
    window: AtomicI64,
    flows: Mutex<Vec<Weak<Flow>>>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            open: AtomicU32::new(0),
            last: AtomicU64::new(0),
            answered: AtomicU32::new(0),
            taken_back: AtomicU32::new(0),
            empty: AtomicU32::new(0),
            useful: AtomicU32::new(0),
            head_since: AtomicU64::new(0),
            broken: AtomicU32::new(0),
            heads_long: AtomicU32::new(0),
            has_begun: AtomicBool::new(false),
            is_no_client: AtomicBool::new(false),
            farewell: AtomicU8::new(0),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            window: AtomicI64::new(WINDOW_FIRST),
            flows: Mutex::default(),
        }
    }
}

/// A connection that counts what comes and leaves by it.
struct Counted {
    io: ClientIo,
    traffic: Arc<Traffic>,
    coming: Passing,
    leaving: Passing,
    /// Streams whose answers have begun and not ended.
    open: Vec<u32>,
    /// The last stream that the client has begun.
    last: u32,
}

impl Counted {
    fn note(&mut self, slices: &[io::IoSlice<'_>], written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.traffic.written.fetch_add(bytes as u64, Relaxed);
            let mut left = bytes;
            for slice in slices {
                let take = left.min(slice.len());
                self.leaving.see(&slice[..take], |frame| {
                    self.traffic.note_leaving(frame, self.open.contains(&frame.stream));
                    note_open(&mut self.open, frame);
                });
                left -= take;
            }
        }
        written
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(abuse) = this.traffic.abuse() {
            // Of somebody who is to go nothing more is read. Why, it is told where that cuts nothing in two.
            if this.leaving.is_between() {
                let _ = Pin::new(&mut this.io).poll_write(cx, &goaway(this.last, abuse.code()));
            }
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if this.traffic.read.load(Relaxed) - this.traffic.turn.load(Relaxed) >= READ_A_TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let had = buffer.filled().len();
        ready!(this.io.poll_read_frames(cx, buffer))?;
        this.traffic.read.fetch_add((buffer.filled().len() - had) as u64, Relaxed);
        let unfinished = this.coming.see(&buffer.filled()[had..], |frame| {
            this.traffic.note_coming(frame);
            match frame.kind {
                RST_STREAM => note_open(&mut this.open, frame),
                HEADERS => this.last = this.last.max(frame.stream),
                _ => {}
            }
        });
        this.traffic.note_head(unfinished, &this.io.clock);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.note(&[io::IoSlice::new(bytes)], written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.note(slices, written)
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

/// The library's end of a connection.
enum Library {
    Greets(Handshake<Counted, Bytes>),
    Serves(Connection<Counted, Bytes>, PingPong),
}

impl Library {
    /// Goes on until the end; `begin` hears of every request.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        is_draining: bool,
        begin: &mut impl FnMut(Request<RecvStream>, SendResponse<Bytes>),
    ) -> Poll<Result<(), h2::Error>> {
        loop {
            match self {
                Self::Greets(handshake) => {
                    let mut connection = ready!(Pin::new(handshake).poll(cx))?;
                    if is_draining {
                        connection.graceful_shutdown();
                    }
                    let Some(pings) = connection.ping_pong() else {
                        unreachable!("nobody else has asked for it");
                    };
                    *self = Self::Serves(connection, pings);
                }
                Self::Serves(connection, pings) => {
                    // Only so that the next can be sent.
                    let _ = pings.poll_pong(cx);
                    match ready!(connection.poll_accept(cx)).transpose()? {
                        Some((request, respond)) => begin(request, respond),
                        None => return Poll::Ready(Ok(())),
                    }
                }
            }
        }
    }

    /// Takes no more requests, and says so.
    fn drain(&mut self) {
        if let Self::Serves(connection, _) = self {
            connection.graceful_shutdown();
        }
    }

    /// Asks the client whether it is there.
    fn ask(&mut self) {
        if let Self::Serves(_, pings) = self {
            // One that is on its way already will do.
            let _ = pings.send_ping(Ping::opaque());
        }
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve_connection(seat: Arc<Seat>, io: ClientIo, peer: Arc<Peer>, door: Arc<Door>, stop: Stop) {
    let node = Arc::clone(&seat.worker().node);
    let (clock, traffic) = (node.clock.clone(), Arc::new(Traffic::default()));
    traffic.last.store(clock.now().as_nanos(), Relaxed);
    let state = io.state();
    let client = state.client.get().copied();
    let mut begin = |request: Request<RecvStream>, respond: SendResponse<Bytes>| {
        let flow = Flow::begin(&traffic, &clock);
        let whose = Whose { peer: Arc::clone(&peer), client, stop: stop.now.clone() };
        seat.tasks.spawn(serve_stream(Arc::clone(&seat), whose, flow, request, respond));
    };
    let (coming, leaving) = (Passing::of_client(), Passing::of_server());
    let counted = Counted { io, traffic: Arc::clone(&traffic), coming, leaving, open: Vec::new(), last: 0 };
    let mut library = Library::Greets(builder(&node.policy.limits).handshake(counted));
    let (mut is_draining, mut window_since) = (false, clock.now());
    let mut leaving = Leaving { written: 0, since: clock.now() };
    let mut block = Block { written: 0, since: clock.now() };
    let mut silence = Silence { read: 0, since: clock.now(), has_asked: false };
    loop {
        // What looks at the connection comes first: one that has something to do without end would never let it look.
        tokio::select! {
            biased;
            () = stop.now.cancelled() => break,
            () = door.drain.cancelled(), if !is_draining => {
                is_draining = true;
                library.drain();
            }
            () = tokio::time::sleep(LOOK_EVERY) => {
                let (now, worker) = (clock.now(), seat.worker());
                let limits = &worker.node.policy.limits;
                traffic.end_overdue(now, limits.body_idle_timeout);
                let is_blocked = state.is_stalled() || traffic.window.load(Relaxed) <= 0;
                let is_stuck = leaving.is_stuck(now, limits.body_idle_timeout, &traffic, is_draining)
                    || block.is_stuck(now, limits.body_idle_timeout, &traffic, is_blocked);
                if let Some(abuse) = traffic.abuse() {
                    abuse.count(&worker.rejections);
                    break;
                } else if traffic.is_head_slow(now, limits.header_timeout) {
                    worker.rejections.count(Verdict::HeadTooSlow);
                    break;
                } else if is_stuck {
                    worker.rejections.stalled.add(1);
                    break;
                }
                traffic.end_untaken(now, limits.body_idle_timeout, is_blocked);
                traffic.count_seen(&worker.rejections);
                match silence.look(now, &traffic) {
                    Silent::No => {}
                    Silent::Ask => library.ask(),
                    Silent::Gone => break,
                }
                if !is_draining && traffic.is_idle(now, limits.idle_timeout) {
                    is_draining = true;
                    library.drain();
                }
                if now.since(window_since) >= WINDOW {
                    window_since = now;
                    traffic.begin_window();
                }
            }
            ended = std::future::poll_fn(|cx| {
                traffic.turn.store(traffic.read.load(Relaxed), Relaxed);
                library.poll(cx, is_draining, &mut begin)
            }) => {
                let rejections = &seat.worker().rejections;
                if let Some(abuse) = traffic.abuse() {
                    abuse.count(rejections);
                } else if state.was_unread() {
                    rejections.stalled.add(1);
                } else if let Err(error) = ended {
                    tracing::trace!(%error, "a connection ended");
                    count_end(&error, &traffic, rejections);
                }
                break;
            }
        }
    }
    traffic.count_seen(&seat.worker().rejections);
}

/// Counts what the library ended a connection for.
fn count_end(error: &h2::Error, traffic: &Traffic, rejections: &Rejections) {
    match (error.reason(), traffic.farewell.load(Relaxed)) {
        (Some(Reason::NO_ERROR) | None, _) => {}
        // Of resets that it never showed us.
        (Some(Reason::ENHANCE_YOUR_CALM), OF_RESETS) => rejections.taken_back.add(1),
        (Some(Reason::ENHANCE_YOUR_CALM), OF_HEADS) => rejections.count(Verdict::HeadTooLong),
        (Some(Reason::ENHANCE_YOUR_CALM), _) => rejections.flooded.add(1),
        (Some(_), _) => rejections.connections_broken.add(1),
    }
}

fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(limits.header_bytes_max)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(PIECES_BYTES)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX));
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

/// Since when a client has taken nothing at all, while answers wait for it.
struct Block {
    /// Bytes that had left when it last took something.
    written: u64,
    since: Mono,
}

impl Block {
    fn is_stuck(&mut self, now: Mono, patience: Duration, traffic: &Traffic, is_blocked: bool) -> bool {
        let written = traffic.written.load(Relaxed);
        // A PING is not what it was asked for.
        if !is_blocked || !traffic.is_holding() || written - self.written >= PROGRESS {
            *self = Self { written, since: now };
        }
        now.since(self.since) >= patience
    }
}

/// Since when nothing has come.
struct Silence {
    /// Bytes that had come when something last did.
    read: u64,
    since: Mono,
    has_asked: bool,
}

enum Silent {
    No,
    Ask,
    /// It does not even answer.
    Gone,
}

impl Silence {
    fn look(&mut self, now: Mono, traffic: &Traffic) -> Silent {
        let read = traffic.read.load(Relaxed);
        if read != self.read {
            *self = Self { read, since: now, has_asked: false };
        }
        let silent_for = now.since(self.since);
        if silent_for >= PING_EVERY + PING_TIMEOUT {
            return Silent::Gone;
        }
        if silent_for < PING_EVERY || self.has_asked {
            return Silent::No;
        }
        self.has_asked = true;
        Silent::Ask
    }
}

/// What a client does that is to go at once.
enum Abuse {
    TakesBack,
    Floods,
    /// It does not begin as HTTP/2 does.
    IsNoClient,
}

impl Abuse {
    fn code(&self) -> Reason {
        match self {
            Self::TakesBack | Self::Floods => Reason::ENHANCE_YOUR_CALM,
            Self::IsNoClient => Reason::PROTOCOL_ERROR,
        }
    }

    fn count(self, rejections: &Rejections) {
        match self {
            Self::TakesBack => rejections.taken_back.add(1),
            Self::Floods => rejections.flooded.add(1),
            Self::IsNoClient => rejections.connections_broken.add(1),
        }
    }
}

impl Traffic {
    /// A request comes into work.
    pub(crate) fn begins(&self, flow: &Arc<Flow>) {
        self.open.fetch_add(1, Relaxed);
        self.flows.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(flow));
    }

    /// One is over, and its answer was sent whole, or taken back; neither where that was not the client's doing.
    pub(crate) fn ends(&self, now: Mono, was_answered: Option<bool>) {
        self.open.fetch_sub(1, Relaxed);
        self.last.store(now.as_nanos(), Relaxed);
        match was_answered {
            Some(true) => self.answered.fetch_add(1, Relaxed),
            Some(false) => self.taken_back.fetch_add(1, Relaxed),
            None => 0,
        };
    }

    /// Requests in work.
    fn flows(&self) -> Vec<Arc<Flow>> {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.retain(|flow| flow.strong_count() > 0);
        flows.iter().filter_map(Weak::upgrade).collect()
    }

    fn abuse(&self) -> Option<Abuse> {
        let (taken_back, empty) = (self.taken_back.load(Relaxed), self.empty.load(Relaxed));
        if taken_back >= RESETS_MAX && taken_back > self.answered.load(Relaxed) {
            return Some(Abuse::TakesBack);
        }
        let is_flooded = empty >= EMPTY_MAX && empty / EMPTY_PER_USE > self.useful.load(Relaxed);
        if is_flooded {
            return Some(Abuse::Floods);
        }
        self.is_no_client.load(Relaxed).then_some(Abuse::IsNoClient)
    }

    fn note_coming(&self, frame: Seen<'_>) {
        // The library would take any frame first (RFC 9113, section 3.4).
        if !self.has_begun.swap(true, Relaxed) && frame.kind != SETTINGS {
            self.is_no_client.store(true, Relaxed);
        }
        if (frame.kind, frame.stream) == (WINDOW_UPDATE, 0) {
            self.window.fetch_add((frame.number() & (u32::MAX >> 1)).into(), Relaxed);
        }
        let is_useful = match frame.kind {
            HEADERS => true,
            DATA => frame.bytes >= LEAST || frame.has(END_STREAM),
            // They are bounded by the length of a head.
            CONTINUATION if frame.bytes > 0 => return,
            _ => false,
        };
        let count = if is_useful { &self.useful } else { &self.empty };
        count.fetch_add(1, Relaxed);
    }

    fn note_leaving(&self, frame: Seen<'_>, is_open: bool) {
        if frame.kind == DATA {
            self.window.fetch_sub(frame.bytes.into(), Relaxed);
        }
        let count = match frame.kind {
            HEADERS if !is_open && is_bare(frame) => &self.heads_long,
            HEADERS => &self.useful,
            // Few bytes are a small message, or all that a client's window lets out of a large one.
            DATA if frame.bytes >= DRIBBLE || frame.has(END_STREAM) || (frame.bytes > 0 && !self.is_holding()) => {
                self.useful.fetch_add(frame.bytes / USE_BYTES, Relaxed);
                &self.useful
            }
            RST_STREAM if is_blame(frame.number()) => &self.broken,
            GOAWAY => return self.farewell.store(farewell(frame.note), Relaxed),
            _ => return,
        };
        count.fetch_add(1, Relaxed);
    }

    fn note_head(&self, unfinished: Unfinished, clock: &Clock) {
        match unfinished {
            Unfinished::Same => {}
            Unfinished::Other => self.head_since.store(clock.now().as_nanos().max(1), Relaxed),
            Unfinished::Nothing => self.head_since.store(0, Relaxed),
        }
    }

    fn is_head_slow(&self, now: Mono, patience: Duration) -> bool {
        let since = self.head_since.load(Relaxed);
        since != 0 && now.since(Mono::from_nanos(since)) >= patience
    }

    /// Counts what the library has done by itself since the last time.
    fn count_seen(&self, rejections: &Rejections) {
        rejections.streams_broken.add(u64::from(self.broken.swap(0, Relaxed)));
        (0..self.heads_long.swap(0, Relaxed)).for_each(|_| rejections.count(Verdict::HeadTooLong));
    }

    fn is_idle(&self, now: Mono, patience: Duration) -> bool {
        self.open.load(Relaxed) == 0 && now.since(Mono::from_nanos(self.last.load(Relaxed))) >= patience
    }

    /// Ends bodies that do not go on. One that waits beside another that is not read here may have no room left in the
    /// connection's window, which is not its client's doing; and once an answer goes out, the request may be silent for
    /// as long as that lasts, as a subscription is.
    fn end_overdue(&self, now: Mono, patience: Duration) {
        let flows = self.flows();
        let is_room_ours = flows.iter().any(|flow| flow.coming.is_untaken());
        for flow in flows {
            if is_room_ours || flow.has_begun.load(Relaxed) {
                flow.coming.begin_anew(now);
            } else {
                flow.coming.end_overdue(now, patience);
            }
        }
    }

    /// Takes back answers that their client does not take, each alone. While it takes nothing at all, that is not the
    /// doing of any of them.
    fn end_untaken(&self, now: Mono, patience: Duration, is_blocked: bool) {
        for flow in self.flows() {
            if is_blocked {
                flow.taking.begin_anew(now);
            } else {
                flow.taking.end_overdue(now, patience);
            }
        }
    }

    /// True while an answer waits for its client.
    fn is_holding(&self) -> bool {
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.iter().filter_map(Weak::upgrade).any(|flow| flow.is_held())
    }

    fn begin_window(&self) {
        for count in [&self.answered, &self.taken_back, &self.empty, &self.useful] {
            count.store(0, Relaxed);
        }
    }
}

const OF_RESETS: u8 = 1;
const OF_HEADS: u8 = 2;

/// What a GOAWAY was for, where its code is `ENHANCE_YOUR_CALM`: only the library's words tell its reasons apart.
fn farewell(note: &[u8]) -> u8 {
    let words = note.get(8..).unwrap_or_default();
    match words {
        _ if words.starts_with(b"too_many_re") || words.starts_with(b"too_many_in") => OF_RESETS,
        _ if words.starts_with(b"header_list") => OF_HEADS,
        _ => 0,
    }
}

/// An answer that is nothing but a status is the library's 431: ours say more. In its header block the status is named
/// by the table, or spelled out once in three bytes (RFC 7541, section 6.2.1).
fn is_bare(frame: Seen<'_>) -> bool {
    const STATUS: u8 = 0x48;
    frame.has(END_STREAM) && (frame.bytes == 1 || frame.bytes == 5 && frame.note.first() == Some(&STATUS))
}

/// The last word to a client: which of its streams was the last, and why no other is taken.
fn goaway(last: u32, code: Reason) -> [u8; 17] {
    let ([a, b, c, d], [e, f, g, h]) = (last.to_be_bytes(), u32::from(code).to_be_bytes());
    [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h]
}

/// Follows which answers have begun and not ended.
fn note_open(open: &mut Vec<u32>, frame: Seen<'_>) {
    match (frame.kind, frame.has(END_STREAM)) {
        (HEADERS, false) => open.push(frame.stream),
        (HEADERS | DATA, true) | (RST_STREAM, _) => open.retain(|stream| *stream != frame.stream),
        _ => {}
    }
}

/// True if a stream is reset with this for what its client did. What breaks on our side says other things.
fn is_blame(code: u32) -> bool {
    let blames = [
        Reason::PROTOCOL_ERROR,
        Reason::FLOW_CONTROL_ERROR,
        Reason::STREAM_CLOSED,
        Reason::FRAME_SIZE_ERROR,
        Reason::REFUSED_STREAM,
        Reason::ENHANCE_YOUR_CALM,
    ];
    blames.contains(&Reason::from(code))
}

/// Whose request it is.
struct Whose {
    peer: Arc<Peer>,
    /// As faults ask for it.
    client: Option<Client>,
    /// Of a connection that it has become.
    stop: CancellationToken,
}

/// Serves one request, for as long as its client wants it.
async fn serve_stream(
    seat: Arc<Seat>,
    Whose { peer, client, stop }: Whose,
    flow: Arc<Flow>,
    mut request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (worker, is_grpc) = (seat.worker_for(&peer.door), grpc::is_grpc(request.headers()));
    let wants = request.extensions_mut().remove::<Protocol>();
    let admitted = admit(&mut request, wants.as_ref(), &worker.node.policy.limits);
    if let Err(verdict) = admitted {
        request.headers_mut().clear();
        request.headers_mut().insert(VERDICT_HEADER, HeaderValue::from_static(verdict.name()));
    }
    let asks = wants.is_some() && admitted.is_ok();
    let conn = Arc::new(if asks { ConnState::that_asks() } else { ConnState::default() });
    if let Some(client) = client {
        let _ = conn.client.set(client);
    }
    let (parts, body) = request.into_parts();
    // What follows a request to become a connection is the connection's.
    let (body, says) = if asks { (None, Some(body)) } else { (Some(body), None) };
    let incoming = body.map(|body| Incoming::Frames(Coming::new(body, &parts.headers, &flow, &conn)));
    let mut head = RequestHead::from(parts);
    if asks {
        upgrade::as_lines(&mut head, &worker.prng);
    }
    let request = message::Request { head, body: incoming.unwrap_or(Incoming::Empty) };
    let answer = Box::pin(serve(Arc::clone(&worker), Arc::clone(&conn), Arc::clone(&peer), request));
    let Ok(mut answered) = stream::unless_taken_back(&mut respond, answer).await else { return };
    if is_grpc && grpc::say(&mut answered) {
        answered = answered.map(Tracked::emptied);
    }
    if let (Some(handover), Some(says)) = (conn.take_switch(), says) {
        let headers = upgrade::as_frames(std::mem::take(answered.headers_mut()));
        // It is a connection from here on, and no request any more.
        drop(answered);
        if let Ok(hears) = stream::send_head(&flow, &mut respond, StatusCode::OK, headers, false) {
            let client = NetStream::Tunnel(Box::new(Tunnel::of_client(says, hears, flow)));
            upgrade::go_on(*handover, client, Vec::new(), &stop).await;
        }
        return;
    }
    if stream::send(&flow, &mut respond, answered).await == Err(Unsent::Untaken) {
        worker.rejections.untaken(&peer.ip_text, worker.node.clock.now());
    }
}

/// What the gate asks of bytes, asked of a request; and what HTTP/1.1 wants of it, so that it can go on as either.
fn admit(request: &mut Request<RecvStream>, wants: Option<&Protocol>, limits: &Limits) -> Result<(), Verdict> {
    let (uri, headers) = (request.uri().clone(), request.headers());
    match wants {
        // Names of protocols are compared as the registry writes them (RFC 8441, section 4).
        Some(protocol) if protocol.as_str() != upgrade::WEBSOCKET => return Err(Verdict::Protocol),
        Some(_) if headers.contains_key(CONTENT_LENGTH) => return Err(Verdict::UpgradeBody),
        None if request.method() == Method::CONNECT => return Err(Verdict::Method),
        _ if request.method() == Method::TRACE => return Err(Verdict::Method),
        _ => {}
    }
    if headers.len() > limits.headers_max as usize {
        return Err(Verdict::TooManyHeaders);
    }
    // RFC 9113, section 8.2.1. Written as HTTP/1.1 it would be another value.
    let is_padded = |value: &HeaderValue| value.as_bytes().trim_ascii().len() < value.len();
    if headers.values().any(is_padded) {
        return Err(Verdict::HeaderValue);
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
fn host(request: &Request<RecvStream>) -> Result<HeaderValue, Verdict> {
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

#[cfg(test)]
mod tests {
    use seawall_core::time::Wall;

    use std::task::Waker;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn clock() -> Clock {
        Clock::new(tokio::time::Instant::now(), Arc::new(|| Wall::from_millis(0)))
    }

    /// A request that waits for its body from now on.
    fn waits(traffic: &Arc<Traffic>, clock: &Clock) -> Arc<Flow> {
        let flow = Flow::begin(traffic, clock);
        assert!(flow.coming.poll_overdue(&Context::from_waker(Waker::noop())).is_pending());
        flow
    }

    fn is_overdue(flow: &Flow) -> bool {
        flow.coming.is_overdue.load(Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_waited_for_only_as_long_as_its_client_may_send_it() {
        let (traffic, clock) = (Arc::new(Traffic::default()), clock());
        tokio::time::advance(Duration::from_secs(1)).await;
        let (asks, is_answered) = (waits(&traffic, &clock), waits(&traffic, &clock));
        is_answered.has_begun.store(true, Relaxed);
        // Its body lies here, and takes up the connection's room.
        let untaken = Flow::begin(&traffic, &clock);
        tokio::time::advance(PATIENCE).await;
        traffic.end_overdue(clock.now(), PATIENCE);
        assert!(!is_overdue(&asks) && !is_overdue(&is_answered));
        untaken.coming.is_over.store(true, Relaxed);
        tokio::time::advance(PATIENCE - Duration::from_millis(1)).await;
        traffic.end_overdue(clock.now(), PATIENCE);
        assert!(!is_overdue(&asks), "it counts from when there was room");
        tokio::time::advance(Duration::from_millis(1)).await;
        traffic.end_overdue(clock.now(), PATIENCE);
        assert!(is_overdue(&asks) && !is_overdue(&is_answered));
        assert!(asks.coming.poll_overdue(&Context::from_waker(Waker::noop())).is_ready());
    }

    #[tokio::test]
    async fn a_small_message_is_of_use_and_what_a_small_window_lets_out_is_not() {
        let (traffic, clock) = (Arc::new(Traffic::default()), clock());
        let flow = Flow::begin(&traffic, &clock);
        let five = Seen { kind: DATA, flags: 0, stream: 1, bytes: 5, note: b"abcd" };
        traffic.note_leaving(five, true);
        assert_eq!(traffic.useful.load(Relaxed), 1);
        assert!(flow.taking.poll_overdue(&Context::from_waker(Waker::noop())).is_pending());
        traffic.note_leaving(five, true);
        traffic.note_leaving(Seen { bytes: 0, ..five }, true);
        assert_eq!(traffic.useful.load(Relaxed), 1);
    }
}
