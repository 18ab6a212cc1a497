//! One request of an HTTP/2 connection and its answer: how long its client is waited for, both ways.
//!
//! Picture a counter with a clock on each side. A client that does not go on with its body, and one that does not take
//! its answer, is let go after a while, alone: those at the other counters of the same hall notice nothing. Of an
//! answer no more is handed to the library than its client has made room for; the rest stays here, where it can be
//! taken back. A body that its client breaks off is broken, however politely it says so: it never ends as a whole one
//! would. Not here: clients who take nothing of anything (`h2.rs`), what the answer is (`chain.rs`).

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use seawall_core::time::Mono;

use super::body::{BoxError, Tracked};
use super::conn::ConnState;
use super::fields::Fields;
use super::gate::Verdict;
use super::h2::Traffic;
use super::headers::{KEEP_ALIVE, PROXY_CONNECTION, clean_trailers};
use super::message::Response;
use super::serve::date;
use crate::clock::Clock;

/// Somebody who waits for a client, and for how long.
pub(crate) struct Waiting {
    clock: Clock,
    /// Since when, in nanoseconds of [`Mono`]; zero if nobody does.
    since: AtomicU64,
    /// There is no more to come, or nobody wants it.
    pub(crate) is_over: AtomicBool,
    pub(crate) is_overdue: AtomicBool,
    waiter: Mutex<Option<Waker>>,
}

impl Waiting {
    fn new(clock: &Clock) -> Self {
        Self {
            clock: clock.clone(),
            since: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            is_overdue: AtomicBool::new(false),
            waiter: Mutex::new(None),
        }
    }

    /// Ready once it has been too long.
    pub(crate) fn poll_overdue(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_overdue.load(Relaxed) {
            return Poll::Ready(());
        }
        if self.since.load(Relaxed) == 0 {
            self.since.store(self.clock.now().as_nanos().max(1), Relaxed);
        }
        let mut waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
        if waiter.as_ref().is_none_or(|waiter| !waiter.will_wake(cx.waker())) {
            *waiter = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Somebody waits, and may do so for ever.
    pub(crate) fn waits(&self) {
        self.since.store(self.clock.now().as_nanos().max(1), Relaxed);
    }

    /// The client has said all.
    pub(crate) fn ends(&self) {
        self.is_over.store(true, Relaxed);
    }

    /// The client has gone on.
    pub(crate) fn goes_on(&self) {
        self.since.store(0, Relaxed);
    }

    pub(crate) fn is_waited_for(&self) -> bool {
        self.since.load(Relaxed) != 0
    }

    /// True while something may lie here that nobody reads: the client may not be allowed to send any more.
    pub(crate) fn is_untaken(&self) -> bool {
        !self.is_over.load(Relaxed) && !self.is_waited_for()
    }

    /// It counts from here.
    pub(crate) fn begin_anew(&self, now: Mono) {
        let since = self.since.load(Relaxed);
        if since != 0 {
            // Whoever has stopped waiting meanwhile is not made to wait.
            let _ = self.since.compare_exchange(since, now.as_nanos().max(1), Relaxed, Relaxed);
        }
    }

    pub(crate) fn end_overdue(&self, now: Mono, patience: Duration) {
        let since = self.since.load(Relaxed);
        if since != 0 && now.since(Mono::from_nanos(since)) >= patience && !self.is_overdue.swap(true, Relaxed) {
            let waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner).take();
            waiter.into_iter().for_each(Waker::wake);
        }
    }
}

/// A request's body as it comes.
pub(crate) struct Coming {
    body: RecvStream,
    /// What is left of the length its head tells.
    left: Option<u64>,
    /// Only trailers are to come.
    has_all_data: bool,
    waiting: Arc<Waiting>,
    conn: Arc<ConnState>,
}

impl Coming {
    pub(crate) fn new(body: RecvStream, headers: &HeaderMap, flow: &Flow, conn: &Arc<ConnState>) -> Self {
        let told = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let left = if body.is_end_stream() { Some(0) } else { told };
        Self { body, left, has_all_data: false, waiting: Arc::clone(&flow.coming), conn: Arc::clone(conn) }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = self.poll_next(cx) else {
            return self.waiting.poll_overdue(cx).map(|()| {
                self.conn.break_body(Verdict::BodyTooSlow);
                Some(Err(Verdict::BodyTooSlow.words().into()))
            });
        };
        self.waiting.goes_on();
        if !matches!(frame, Some(Ok(_))) {
            self.waiting.is_over.store(true, Relaxed);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.has_all_data {
            if let Some(data) = ready!(self.body.poll_data(cx)) {
                return Poll::Ready(Some(data.map(|data| {
                    let bytes = data.len();
                    // Of a stream that is gone nothing is to be given back.
                    let _ = self.body.flow_control().release_capacity(bytes);
                    self.left = self.left.map(|left| left.saturating_sub(bytes as u64));
                    Frame::data(data)
                })));
            }
            self.has_all_data = true;
        }
        let trailers = ready!(self.body.poll_trailers(cx)).transpose();
        let cleaned = |mut trailers| {
            clean_trailers(&mut trailers);
            Frame::trailers(trailers)
        };
        Poll::Ready(trailers.map(|trailers| trailers.map(cleaned)))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.left.map_or(SizeHint::new(), SizeHint::with_exact)
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.waiting.is_over.store(true, Relaxed);
    }
}

/// A request in work, from its head to the last byte of its answer.
pub(crate) struct Flow {
    traffic: Arc<Traffic>,
    clock: Clock,
    /// For more of its body.
    pub(crate) coming: Arc<Waiting>,
    /// For room for its answer.
    pub(crate) taking: Waiting,
    /// All of its answer has been handed over.
    is_whole: AtomicBool,
    /// Its answer's head has.
    pub(crate) has_begun: AtomicBool,
    /// Its answer broke on our side, which says nothing about the client; or it was counted already.
    is_broken: AtomicBool,
}

impl Flow {
    pub(crate) fn begin(traffic: &Arc<Traffic>, clock: &Clock) -> Arc<Self> {
        let flow = Arc::new(Self {
            traffic: Arc::clone(traffic),
            clock: clock.clone(),
            coming: Arc::new(Waiting::new(clock)),
            taking: Waiting::new(clock),
            is_whole: AtomicBool::new(false),
            has_begun: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
        });
        traffic.begins(&flow);
        flow
    }

    /// Its answer is whole.
    pub(crate) fn is_over(&self) {
        self.is_whole.store(true, Relaxed);
    }

    /// True while it is the client that must make room for more.
    pub(crate) fn is_held(&self) -> bool {
        self.taking.is_waited_for()
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let (is_whole, is_broken) = (self.is_whole.load(Relaxed), self.is_broken.load(Relaxed));
        self.traffic.ends(self.clock.now(), (!is_broken).then_some(is_whole));
    }
}

/// Why an answer has not been sent whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// The client has gone, or has taken its request back.
    Gone,
    /// The client does not take it.
    Untaken,
    /// It broke on our side.
    Broken,
}

/// Waits for an answer for as long as its client does.
pub(crate) async fn unless_taken_back<T>(
    respond: &mut SendResponse<Bytes>,
    answer: impl Future<Output = T>,
) -> Result<T, Unsent> {
    let mut answer = std::pin::pin!(answer);
    std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(Ok(answer)),
        Poll::Pending => respond.poll_reset(cx).map(|_| Err(Unsent::Gone)),
    })
    .await
}

/// Sends an answer.
pub(crate) async fn send<G: Unpin>(
    flow: &Flow,
    respond: &mut SendResponse<Bytes>,
    answer: Response<Tracked<G>>,
) -> Result<(), Unsent> {
    let Response { mut head, mut body } = answer;
    let is_empty = body.is_end_stream();
    if let (false, Some(length)) = (is_empty, body.size_hint().exact()) {
        head.headers.insert_if_absent(CONTENT_LENGTH, || length.into());
    }
    let mut out = send_head(flow, respond, head.status, head.headers, is_empty)?;
    if !is_empty {
        send_body(flow, &mut body, &mut out).await?;
    }
    flow.is_whole.store(true, Relaxed);
    Ok(())
}

/// Sends an answer's head, without what HTTP/2 does not say.
pub(crate) fn send_head(
    flow: &Flow,
    respond: &mut SendResponse<Bytes>,
    status: StatusCode,
    mut headers: Fields,
    is_all: bool,
) -> Result<SendStream<Bytes>, Unsent> {
    const OF_HTTP_1: [HeaderName; 5] = [CONNECTION, TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION];
    headers.remove_all(|name| OF_HTTP_1.contains(name));
    let date = || HeaderValue::from_bytes(&date(flow.clock.now(), &flow.clock));
    if let (false, Ok(date)) = (headers.has(DATE), date()) {
        headers.insert(DATE, date);
    }
    let mut answer = http::Response::new(());
    (*answer.status_mut(), *answer.headers_mut(), *answer.version_mut()) = (status, headers.into(), Version::HTTP_2);
    let out = respond.send_response(answer, is_all).map_err(|error| {
        tracing::debug!(%error, "an answer cannot be said in HTTP/2");
        // Said to nobody if the client has taken its request back at this moment.
        respond.send_reset(Reason::INTERNAL_ERROR);
        Unsent::Gone
    })?;
    flow.has_begun.store(true, Relaxed);
    Ok(out)
}

async fn send_body<G: Unpin>(flow: &Flow, body: &mut Tracked<G>, out: &mut SendStream<Bytes>) -> Result<(), Unsent> {
    let is_gone = |_| Unsent::Gone;
    loop {
        let frame = std::future::poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => out.poll_reset(cx).map(|_| Err(Unsent::Gone)),
        });
        let frame = match frame.await? {
            None => return out.send_data(Bytes::new(), true).map_err(is_gone),
            Some(Ok(frame)) => frame,
            Some(Err(_)) => {
                flow.is_broken.store(true, Relaxed);
                out.send_reset(Reason::INTERNAL_ERROR);
                return Err(Unsent::Broken);
            }
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => return out.send_trailers(trailers).map_err(is_gone),
                Err(_) => continue,
            },
        };
        while !data.is_empty() {
            out.reserve_capacity(data.len());
            let room = std::future::poll_fn(|cx| {
                // What is still to be sent of the request goes on meanwhile.
                body.drive(cx);
                flow.poll_room(cx, out)
            });
            let piece = data.split_to(room.await?.min(data.len()));
            let is_last = data.is_empty() && body.is_end_stream();
            out.send_data(piece, is_last).map_err(is_gone)?;
            if is_last {
                return Ok(());
            }
        }
        if body.is_end_stream() {
            return out.send_data(Bytes::new(), true).map_err(is_gone);
        }
    }
}

impl Flow {
    /// How much the client has made room for, once it has.
    fn poll_room(&self, cx: &mut Context<'_>, out: &mut SendStream<Bytes>) -> Poll<Result<usize, Unsent>> {
        match poll_room(cx, out) {
            Poll::Ready(room) => {
                self.taking.goes_on();
                Poll::Ready(room.ok_or(Unsent::Gone))
            }
            Poll::Pending => self.taking.poll_overdue(cx).map(|()| {
                self.taking.goes_on();
                self.is_broken.store(true, Relaxed);
                out.send_reset(Reason::CANCEL);
                Err(Unsent::Untaken)
            }),
        }
    }
}

/// How much of what is reserved may be sent, once something may; none if the client has gone.
pub(crate) fn poll_room(cx: &mut Context<'_>, out: &mut SendStream<Bytes>) -> Poll<Option<usize>> {
    loop {
        let room = out.capacity();
        if room > 0 {
            return Poll::Ready(Some(room));
        }
        // It tells of every change, and not of what has been there.
        match ready!(out.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(None),
        }
    }
}
