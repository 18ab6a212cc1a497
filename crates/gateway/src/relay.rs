//! An answer's body on its way from an upstream to the client, frame by frame.
//!
//! It owns what it needs to arrive: the connection, the breaker's pass, the place in the bulkhead. Its end is told to
//! the guards; a broken one breaks the client's answer too. Whoever wants the whole of it (an old answer to fall back
//! on, the answer of an idempotency key) gets it at the end, if it is short enough, and nothing of it if it breaks.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::{Frame, SizeHint};
use seawall_core::guard::learned::Signals;
use seawall_core::guard::pipeline::Answered;
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::outcome::{Failure, Outcome};
use seawall_core::time::Mono;

use crate::chain::InFlight;
use crate::fault::body::{Damage, Step};
use crate::fault::border::Border;
use crate::http::body::BoxError;
use crate::http::conn::ConnState;
use crate::http::fields::Fields;
use crate::http::grpc;
use crate::http::headers::clean_trailers;
use crate::node::{Node, Worker};
use crate::pool::Link;
use crate::route::{Pass, Place};
use crate::stale;
use crate::writes::{Claiming, DoneAnswer};

/// Who wants an answer that is still arriving.
pub(crate) enum Wish {
    /// The store of last good answers: under which key, with which head.
    Stale(stale::Key, (StatusCode, Fields)),
    /// The holder of an idempotency key: who asks again shall get the same. Held until the end, so that nobody else
    /// runs meanwhile.
    Replay(Claiming, (StatusCode, Fields)),
}

/// An answer kept while it passes.
pub(crate) struct Keeping {
    wish: Wish,
    bytes: BytesMut,
    bytes_max: u64,
}

impl Keeping {
    /// False once it is too long to be kept.
    fn takes(&mut self, data: &Bytes) -> bool {
        let fits = (self.bytes.len() + data.len()) as u64 <= self.bytes_max;
        if fits {
            self.bytes.extend_from_slice(data);
        }
        fits
    }

    fn end(self, node: &Node, now: Mono) {
        let body = self.bytes.freeze();
        match self.wish {
            Wish::Stale(key, (status, headers)) => node.stale.keep(&key, now, status, &headers, &body),
            Wish::Replay(claiming, (status, headers)) => claiming.finish(now, DoneAnswer { status, headers, body }),
        }
    }
}

/// How far an answer is that a fault ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Early {
    /// None does.
    No,
    /// Half of the first piece will pass.
    AtFirstPiece,
    /// It has passed, and must leave before the end.
    Flushing,
    /// It has left.
    Now,
}

/// An answer's body on its way from the upstream to the client.
pub(crate) struct Relay {
    pub(crate) link: Option<Link>,
    pub(crate) pass: Option<Pass>,
    pub(crate) head_at: Mono,
    pub(crate) status: u16,
    /// What its head says about limits.
    pub(crate) signals: Option<Box<Signals>>,
    pub(crate) trailers_announced: bool,
    /// Of a call of gRPC: what its head or, once they have come, its trailers say became of it.
    pub(crate) grpc: Option<Option<Outcome>>,
    pub(crate) worker: Arc<Worker>,
    pub(crate) route: RouteId,
    pub(crate) upstream: UpstreamId,
    pub(crate) endpoint: usize,
    /// The client's connection, if its end is all that ends the answer (HTTP/1.0).
    pub(crate) ends_with_connection: Option<Arc<ConnState>>,
    /// Runs while nothing comes.
    pub(crate) idle: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Who wants the whole of it at the end, and what has come so far.
    pub(crate) keeping: Option<Keeping>,
    /// A fault may want it to end early.
    pub(crate) early: Early,
    /// Of the zone it comes from, if that can be cut off.
    pub(crate) border: Option<Border>,
    /// A fault may meddle with it.
    pub(crate) damage: Option<Box<Damage>>,
    pub(crate) _load: InFlight,
    pub(crate) _place: Option<Place>,
}

impl Relay {
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.early {
            Early::Flushing => {
                // What there is leaves when nothing more is at hand.
                self.early = Early::Now;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Early::Now => {
                self.early = Early::No;
                return Poll::Ready(Some(Err(self.cut(Failure::ConnectionLost))));
            }
            Early::No | Early::AtFirstPiece => {}
        }
        if let (Some(border), true) = (&mut self.border, self.link.is_some())
            && border.poll_open(cx).is_pending()
        {
            self.drive(cx);
            return self.poll_idle(cx);
        }
        if self.damage.is_some() {
            return self.poll_damaged(cx);
        }
        loop {
            let Some(link) = &mut self.link else { return Poll::Ready(None) };
            match link.poll_body(cx) {
                Poll::Ready(Some(Ok(frame))) if self.early == Early::AtFirstPiece => {
                    let data = frame.into_data().unwrap_or_default();
                    (self.early, self.keeping) = (Early::Flushing, None);
                    return Poll::Ready(Some(Ok(Frame::data(data.slice(..data.len() / 2)))));
                }
                Poll::Ready(None) if self.early == Early::AtFirstPiece => {
                    return Poll::Ready(Some(Err(self.cut(Failure::ConnectionLost))));
                }
                Poll::Ready(Some(Ok(mut frame))) => {
                    self.idle = None;
                    self.hear(&mut frame);
                    if let (Some(keeping), Some(data)) = (&mut self.keeping, frame.data_ref())
                        && !keeping.takes(data)
                    {
                        self.keeping = None;
                    }
                    if frame.is_trailers() && !self.passes_trailers() {
                        continue;
                    }
                    if frame.is_trailers() || self.link.as_ref().is_none_or(Link::is_over) {
                        // Nobody asks again after trailers, or after the last byte of a known length.
                        self.end();
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Poll::Ready(None) => {
                    self.end();
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(failure))) => return Poll::Ready(Some(Err(self.cut(failure)))),
                Poll::Pending => return self.poll_idle(cx),
            }
        }
    }

    /// As [`Self::poll_frame`], with a fault in between. Its connection has seen too much to be used again.
    fn poll_damaged(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let (Some(link), Some(damage)) = (&mut self.link, &mut self.damage) else { return Poll::Ready(None) };
            match damage.next(cx) {
                Step::Data(data) => {
                    self.idle = None;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Step::End(trailers) => {
                    self.link = None;
                    self.end();
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Step::Broken => return Poll::Ready(Some(Err(self.cut(Failure::Incomplete)))),
                Step::Wait => return self.poll_idle(cx),
                Step::More => {}
            }
            match link.poll_body(cx) {
                Poll::Ready(Some(Ok(mut frame))) => {
                    self.hear(&mut frame);
                    let passes = !frame.is_trailers() || self.passes_trailers();
                    let Some(damage) = &mut self.damage else { continue };
                    match frame.into_data() {
                        Ok(data) => damage.push(data),
                        Err(frame) => damage.end(frame.into_trailers().ok().filter(|_| passes)),
                    }
                }
                Poll::Ready(None) => damage.end(None),
                Poll::Ready(Some(Err(failure))) => return Poll::Ready(Some(Err(self.cut(failure)))),
                Poll::Pending => return self.poll_idle(cx),
            }
        }
    }

    /// Takes in what trailers say of a call of gRPC, and takes from them what they may not say.
    fn hear(&mut self, frame: &mut Frame<Bytes>) {
        let Some(trailers) = frame.trailers_mut() else { return };
        if let Some(told) = &mut self.grpc {
            *told = grpc::outcome(trailers).or(*told);
        }
        if clean_trailers(trailers) > 0 {
            self.drop_trailers("trailers that would frame a message or say who asks end here");
        }
    }

    fn drop_trailers(&self, why: &str) {
        self.worker.counts[self.route.index()].trailers_dropped.add(1);
        tracing::debug!("{why}");
    }

    /// Only announced trailers are written; an unannounced one cannot follow.
    fn passes_trailers(&self) -> bool {
        if !self.trailers_announced {
            self.drop_trailers("trailers that the answer did not announce end here");
        }
        self.trailers_announced
    }

    /// Hands the whole of it to somebody at the end, if it has not more than `bytes_max` and no trailers.
    pub(crate) fn keep_for(&mut self, wish: Wish, bytes_max: u64) {
        if !self.trailers_announced && self.damage.is_none() {
            self.keeping = Some(Keeping { wish, bytes: BytesMut::new(), bytes_max });
        }
    }

    /// Has what is still to be sent of the request go on.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        self.link.iter_mut().for_each(|link| link.drive(cx));
    }

    /// Holds a place in the bulkhead until its end.
    pub(crate) fn keep_place(&mut self, place: Option<Place>) {
        self._place = place;
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        // The head says it where it is known, the truth or not.
        let left = if self.damage.is_some() { None } else { self.link.as_ref().map_or(Some(0), Link::left) };
        left.map_or(SizeHint::new(), SizeHint::with_exact)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.link.is_none()
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let patience = self.worker.node.policy.limits.body_idle_timeout;
        let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match idle.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(self.cut(Failure::Timeout)))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn end(&mut self) {
        let now = self.worker.node.clock.now();
        // Without a word of what became of it, a call of gRPC has been cut.
        let outcome = match self.grpc {
            None => Outcome::Success,
            Some(told) => told.unwrap_or(Outcome::Failure(Failure::Incomplete)),
        };
        if let Outcome::Failure(failure) = outcome {
            // What failed by its head has been judged and counted by that.
            if self.pass.is_some() {
                self.worker.counts[self.route.index()].failed(failure);
            }
            self.keeping = None;
        }
        self.record(now, outcome);
        if let Some(keeping) = self.keeping.take() {
            keeping.end(&self.worker.node, now);
        }
        if let Some(link) = self.link.take() {
            self.worker.pool(self.upstream, self.endpoint).checkin(now, link);
        }
    }

    /// The answer broke after its head had gone out. The client's connection is broken off, so that it can tell.
    fn cut(&mut self, failure: Failure) -> BoxError {
        let failure = if failure == Failure::ConnectionLost { Failure::Incomplete } else { failure };
        (self.link, self.keeping) = (None, None);
        if let Some(conn) = &self.ends_with_connection {
            conn.end_with_reset();
        }
        self.record(self.worker.node.clock.now(), Outcome::Failure(failure));
        let counts = &self.worker.counts[self.route.index()];
        counts.failed(failure);
        counts.cut.add(1);
        format!("the upstream's answer broke off: {failure}").into()
    }

    /// Slow is who is slow to answer, not whose answer is long: the time runs to the head.
    fn record(&mut self, now: Mono, outcome: Outcome) {
        if let Some(pass) = self.pass.take() {
            let signals = self.signals.as_deref();
            let answered = Answered { status: Some(self.status), signals, ..Answered::default() };
            let counts = &self.worker.counts[self.route.index()];
            pass.report(counts, now, self.head_at, outcome, answered);
        }
    }
}
