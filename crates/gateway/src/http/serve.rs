//! HTTP/1 with a client: one request after the other, each answered before the next is looked at.
//!
//! Picture a clerk at a window. A request is read and its answer awaited in the connection's own task; meanwhile the
//! clerk hands on what comes of its body if somebody asks for it, passes interim answers out, and notices when the
//! client leaves. Between two requests the window holds no buffer. Not here: what may come in (`gate.rs`), what bytes
//! mean (`wire.rs`), what is answered (`chain.rs`), HTTP/2 (`h2.rs`).

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, UNIX_EPOCH};

use bytes::{Buf as _, Bytes};
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};
use http_body::{Body as _, Frame};
use seawall_core::time::Mono;
use tokio::io::AsyncWrite as _;

use super::body::{Incoming, Tracked};
use super::conn::{ClientIo, ConnState};
use super::feed::Feed;
use super::gate::{VERDICT_HEADER, Verdict};
use super::headers::clean_trailers;
use super::message::{Request, Response};
use super::outgoing::Outgoing;
use super::wire::{self, Asked, Malformed, Piece, Reading, Written};
use crate::clock::Clock;

/// Of a body that nobody wanted so much is read, so that the connection can go on.
const UNWANTED_MAX: usize = 256 << 10;
/// How old the date on an answer may be.
const DATE_EVERY: Duration = Duration::from_millis(500);
const DATE_BYTES: usize = 29;

thread_local! {
    /// When it was last written, and how.
    static DATE: Cell<(Option<Mono>, [u8; DATE_BYTES])> = const { Cell::new((None, [b' '; DATE_BYTES])) };
}

/// What a connection is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    GoOn,
    /// No request after this one.
    Drain,
    /// Nothing any more.
    Stop,
}

/// How HTTP/1 ended on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With the connection.
    Closed,
    /// It may go on as something else.
    Switched,
}

/// Serves a connection for as long as it is HTTP/1. `orders` is asked whenever the connection is nudged.
pub(crate) async fn serve_connection<G: Unpin, F: Future<Output = Response<Tracked<G>>>>(
    io: &mut ClientIo,
    state: &ConnState,
    clock: &Clock,
    orders: impl Fn() -> Order,
    is_last: impl Fn() -> bool,
    mut answer: impl FnMut(Request<Incoming>) -> F,
) -> End {
    let mut window = Window {
        io,
        state,
        orders,
        is_last,
        is_draining: false,
        has_asked: false,
        come: Bytes::new(),
        reading: Reading::Over,
        feed: None,
        will_continue: false,
        out: Outgoing::default(),
    };
    loop {
        let (asked, request) = match std::future::poll_fn(|cx| window.poll_request(cx)).await {
            Next::Request(request) => *request,
            Next::End => break,
            Next::Gone => return End::Closed,
            Next::Frames => return End::Switched,
        };
        let response = {
            let mut answering = pin!(answer(request));
            std::future::poll_fn(|cx| window.poll_answer(cx, answering.as_mut())).await
        };
        let Ok(response) = response else { return End::Closed };
        let date = date(clock.now(), clock);
        let Ok(keeps_open) = window.write(response, asked, &date).await else { return End::Closed };
        match keeps_open {
            Keeps::Open => {}
            Keeps::Nothing => break,
            Keeps::Switched => return End::Switched,
        }
    }
    // Whoever is still sending would lose the answer to a plain close.
    let _ = std::future::poll_fn(|cx| {
        if state.is_nudged(cx) && ((window.orders)() == Order::Stop || state.is_overdue()) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut *window.io).poll_shutdown(cx)
    })
    .await;
    End::Closed
}

/// The client or the connection is gone, or must not go on.
#[derive(Debug)]
struct Gone;

enum Next {
    Request(Box<(Asked, Request<Incoming>)>),
    /// No request any more; what was written may be on its way.
    End,
    Gone,
    /// It is HTTP/2.
    Frames,
}

enum Keeps {
    Open,
    Nothing,
    Switched,
}

struct Window<'a, O, L> {
    io: &'a mut ClientIo,
    state: &'a ConnState,
    orders: O,
    /// True while every answer is the last of its connection.
    is_last: L,
    is_draining: bool,
    /// A first request has come.
    has_asked: bool,
    /// What has come and has not been looked at.
    come: Bytes,
    /// The present request's body.
    reading: Reading,
    /// Who reads it.
    feed: Option<Feed>,
    /// The client waits to be told to send it.
    will_continue: bool,
    out: Outgoing,
}

impl<O: Fn() -> Order, L: Fn() -> bool> Window<'_, O, L> {
    /// Looks around if it is to.
    fn look(&mut self, cx: &Context<'_>) -> Result<(), Gone> {
        if self.state.is_nudged(cx) {
            match (self.orders)() {
                Order::GoOn => {}
                Order::Drain => self.is_draining = true,
                Order::Stop => return Err(Gone),
            }
            if self.state.is_blind() && self.io.is_broken() {
                return Err(Gone);
            }
        }
        Ok(())
    }

    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if let Err(Gone) = self.look(cx) {
            return Poll::Ready(Next::Gone);
        }
        loop {
            // Who has not asked for anything yet may be asking just now; the sweep ends it if it is not.
            if self.is_draining && self.has_asked && self.come.is_empty() && self.io.is_idle() {
                return Poll::Ready(Next::End);
            }
            if !self.come.is_empty() {
                self.has_asked = true;
                return Poll::Ready(Next::Request(Box::new(self.take_request(cx))));
            }
            match ready!(self.io.poll_come(cx)) {
                Ok(Some(come)) => self.come = come,
                Ok(None) => return Poll::Ready(Next::End),
                Err(_) => return Poll::Ready(if self.io.has_frames() { Next::Frames } else { Next::Gone }),
            }
        }
    }

    /// The head in front of what has come.
    fn take_request(&mut self, cx: &mut Context<'_>) -> (Asked, Request<Incoming>) {
        let Some((head, marks, rest)) = wire::request(&self.come) else {
            // The gate and the parser differ about what a target may look like.
            self.come = Bytes::new();
            let mut request = Request::new(Method::GET, Uri::from_static("/"), Incoming::Empty);
            request
                .head
                .headers
                .insert(HeaderName::from_static(VERDICT_HEADER), HeaderValue::from_static(Verdict::Target.name()));
            let asked = Asked { is_head: false, version: http::Version::HTTP_11, keeps_open: false };
            return (asked, request);
        };
        self.come = rest;
        self.reading = Reading::of_request(&head.headers, marks);
        let body = if self.reading == Reading::Over {
            Incoming::Empty
        } else {
            self.will_continue = head.version == http::Version::HTTP_11 && marks.expects;
            let (feed, fed) = Feed::new(cx.waker(), self.reading.left());
            self.feed = Some(feed);
            Incoming::Lines(fed)
        };
        (Asked::of(&head, marks), Request { head, body })
    }

    /// Waits for the answer to the present request.
    fn poll_answer<R>(
        &mut self,
        cx: &mut Context<'_>,
        mut answering: Pin<&mut impl Future<Output = R>>,
    ) -> Poll<Result<R, Gone>> {
        self.look(cx)?;
        loop {
            if let Poll::Ready(response) = answering.as_mut().poll(cx) {
                return Poll::Ready(Ok(response));
            }
            let has_fed = self.feed(cx)?;
            self.put_interim();
            if !self.out.is_empty() {
                let _ = self.poll_leave(cx)?;
            }
            // Our own reader is polled again for what it was handed, whoever does not take interim answers.
            if !has_fed {
                return Poll::Pending;
            }
        }
    }

    fn put_interim(&mut self) {
        if self.state.has_interim() {
            self.state.take_interim(self.out.head());
        }
    }

    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Gone> {
        match self.out.poll_leave(self.io, cx, &mut 0) {
            Poll::Ready(Ok(())) => Ok(Poll::Ready(())),
            Poll::Ready(Err(_)) => Err(Gone),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Hands on what is there of the body, if somebody has asked. True if so. Else notices whether the client is still
    /// there, where its next words are not the body.
    fn feed(&mut self, cx: &mut Context<'_>) -> Result<bool, Gone> {
        let Some(feed) = &self.feed else {
            return self.notice_end(cx).map(|()| false);
        };
        let is_wanted = feed.is_wanted();
        self.state.await_body(&self.io.clock, is_wanted);
        self.state.set_blind(!is_wanted);
        if !is_wanted {
            return Ok(false);
        }
        let mut has_come_all = false;
        loop {
            let piece = match self.reading.next(&self.come) {
                Ok((framing, piece)) => {
                    self.come.advance(framing);
                    piece
                }
                Err(Malformed) => {
                    feed.put(Err("a chunk is malformed".into()));
                    self.feed = None;
                    return Ok(true);
                }
            };
            match piece {
                Piece::Data(bytes) => {
                    feed.put(Ok(Frame::data(self.come.split_to(bytes))));
                    if self.reading == Reading::Over {
                        feed.end();
                        self.feed = None;
                    }
                }
                Piece::Trailers(mut trailers) => {
                    clean_trailers(&mut trailers);
                    feed.put(Ok(Frame::trailers(trailers)));
                    feed.end();
                    self.feed = None;
                }
                Piece::End => {
                    feed.end();
                    self.feed = None;
                }
                Piece::More if has_come_all => return Ok(false),
                Piece::More => {
                    if self.will_continue {
                        self.will_continue = false;
                        self.out.head().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                    match self.io.poll_come(cx) {
                        Poll::Ready(Ok(Some(come))) => self.come = come,
                        Poll::Ready(end) => {
                            let why = end.err().map_or("the client left off".into(), Into::into);
                            feed.put(Err(why));
                            self.feed = None;
                            return Ok(true);
                        }
                        Poll::Pending => has_come_all = true,
                    }
                    continue;
                }
            }
            self.will_continue = false;
            return Ok(true);
        }
    }

    /// A client that has ended its side while it waits is gone. Where its next request or a rest of its body lies
    /// there, only one that breaks off is: who asks for several things and then ends his side wants all the answers.
    fn notice_end(&mut self, cx: &mut Context<'_>) -> Result<(), Gone> {
        let can_see = self.reading == Reading::Over && self.come.is_empty();
        self.state.set_blind(!can_see);
        if can_see {
            match self.io.poll_come(cx) {
                Poll::Ready(Ok(Some(come))) => self.come = come,
                Poll::Ready(Ok(None) | Err(_)) => return Err(Gone),
                Poll::Pending => {}
            }
        }
        Ok(())
    }

    /// Writes an answer to its end. Tells whether the connection goes on.
    async fn write<G: Unpin>(
        &mut self,
        response: Response<Tracked<G>>,
        asked: Asked,
        date: &[u8],
    ) -> Result<Keeps, Gone> {
        let Response { head, mut body } = response;
        self.put_interim();
        self.state.begin_answer();
        // Told to go on now, the client would take it for a part of the answer.
        self.will_continue = false;
        let mut has_all = true;
        if self.feed.as_ref().is_some_and(Feed::is_alone) {
            self.feed = None;
            has_all = std::future::poll_fn(|cx| Poll::Ready(self.skip_body(cx))).await;
        }
        let is_last = self.is_draining || (self.is_last)();
        let asked = Asked { keeps_open: asked.keeps_open && has_all && !is_last, ..asked };
        let left = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        let (status, reason) = (head.status, head.reason.as_deref());
        let mut written = wire::put_answer(self.out.head(), asked, status, reason, &head.headers, left, date);
        // Its values are slices of what came with it, and the body may be long.
        drop(head);
        std::future::poll_fn(|cx| self.poll_write(cx, &mut body, &mut written)).await?;
        drop(body);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.io.unread(std::mem::take(&mut self.come));
            return Ok(Keeps::Switched);
        }
        self.feed = None;
        let goes_on = written.keeps_open && std::future::poll_fn(|cx| Poll::Ready(self.skip_body(cx))).await;
        self.will_continue = false;
        Ok(if goes_on { Keeps::Open } else { Keeps::Nothing })
    }

    fn poll_write<G: Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Tracked<G>,
        written: &mut Written,
    ) -> Poll<Result<(), Gone>> {
        self.look(cx)?;
        loop {
            if self.out.is_full() && self.poll_leave(cx)?.is_pending() {
                // Who is slow to read may still be sending.
                body.drive(cx);
                if self.feed(cx)? {
                    continue;
                }
                return Poll::Pending;
            }
            let Some(writing) = &mut written.writing else {
                return self.poll_leave(cx).map_or_else(|gone| Poll::Ready(Err(gone)), |left| left.map(Ok));
            };
            let frame = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(frame) => frame.transpose(),
                Poll::Pending => {
                    // Whoever was just asked may have asked for more of the request.
                    let has_fed = self.feed(cx)?;
                    let _ = self.poll_leave(cx)?;
                    if has_fed {
                        continue;
                    }
                    return Poll::Pending;
                }
            };
            let Ok(frame) = frame else {
                // A broken answer breaks off, so that nobody takes it for a whole one. What there is of it leaves
                // first: a connection that ends without a byte looks as if nobody had read the request, and it would be
                // sent again.
                let _ = self.poll_leave(cx)?;
                return Poll::Ready(Err(Gone));
            };
            if self.out.frame(writing, frame).map_err(|Malformed| Gone)? {
                written.writing = None;
            }
        }
    }

    /// Reads what is there of a body that nobody wanted. True if that was the rest of it.
    fn skip_body(&mut self, cx: &mut Context<'_>) -> bool {
        let mut skipped = 0;
        while skipped <= UNWANTED_MAX {
            let Ok((framing, piece)) = self.reading.next(&self.come) else { return false };
            self.come.advance(framing);
            match piece {
                Piece::Data(bytes) => {
                    self.come.advance(bytes);
                    skipped += bytes;
                }
                Piece::End | Piece::Trailers(_) => return true,
                Piece::More => match self.io.poll_come(cx) {
                    Poll::Ready(Ok(Some(come))) => self.come = come,
                    _ => return false,
                },
            }
        }
        false
    }
}

/// The date for an answer.
pub(crate) fn date(now: Mono, clock: &Clock) -> [u8; DATE_BYTES] {
    let (at, mut date) = DATE.get();
    if at.is_none_or(|at| now.since(at) >= DATE_EVERY) {
        let wall = UNIX_EPOCH + Duration::from_millis(clock.wall().as_millis());
        let text = httpdate::fmt_http_date(wall);
        if let Ok(text) = text.as_bytes().try_into() {
            date = text;
        }
        DATE.set((Some(now), date));
    }
    date
}
