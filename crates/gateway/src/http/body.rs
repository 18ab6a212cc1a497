//! Bodies on their way: from the client to an upstream, and back.
//!
//! An answer that is relayed while it arrives owns what it needs to arrive: the connection, the breaker's pass, the
//! place in the bulkhead. Its end is told to the guards; a broken one breaks the client's answer too, so that a cut
//! answer is never taken for a whole one.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{Method, Uri};
use http_body::{Body, Frame, SizeHint};
use seawall_core::fault::book::Id as FaultId;

use super::conn::ConnState;
use super::feed::Fed;
use super::fields::Fields;
use super::gate::Verdict;
use super::message::RequestHead;
use super::stream::Coming;
use crate::fault::border::Border;
use crate::relay::Relay;
use crate::upgrade::Handover;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body as it comes from the client.
pub(crate) enum Incoming {
    /// None.
    Empty,
    /// By HTTP/1.
    Lines(Fed),
    /// By HTTP/2.
    Frames(Coming),
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Lines(fed) => fed.poll_frame(cx),
            Self::Frames(coming) => coming.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Lines(fed) => fed.is_over(),
            Self::Frames(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Lines(fed) => fed.left().map_or(SizeHint::new(), SizeHint::with_exact),
            Self::Frames(incoming) => incoming.size_hint(),
        }
    }
}

/// A request as the upstream gets it.
pub(crate) struct Sending<'a> {
    pub(crate) method: &'a Method,
    /// Origin form.
    pub(crate) target: &'a Uri,
    pub(crate) headers: Cow<'a, Fields>,
    pub(crate) body: ReqBody,
}

impl<'a> Sending<'a> {
    /// A request of our own.
    pub(crate) fn of(head: &'a RequestHead, body: ReqBody) -> Self {
        Self { method: &head.method, target: &head.uri, headers: Cow::Borrowed(&head.headers), body }
    }
}

/// A request's body as the upstream gets it.
pub(crate) enum ReqBody {
    /// None.
    Empty,
    /// Kept whole: may be sent again.
    Whole(Option<Bytes>),
    /// Passed on as it comes: may be sent once.
    Stream(ClientBody),
}

/// A client's body passed on as it comes.
pub(crate) struct ClientBody {
    /// What of it had come already, the last first.
    pub(crate) come: Vec<Frame<Bytes>>,
    pub(crate) incoming: Incoming,
    pub(crate) progress: Arc<Progress>,
    /// Of the zone it goes to, if that can be cut off.
    pub(crate) border: Option<Box<Border>>,
}

/// How far a client's body has come: what the client does to it is not the upstream's fault.
pub(crate) struct Progress {
    conn: Arc<ConnState>,
    /// Bytes it may still have. What comes by HTTP/1 has been counted by the gate.
    left: AtomicU64,
    /// The client broke it.
    pub(crate) broken: AtomicBool,
    /// Its last byte has come.
    pub(crate) ended: AtomicBool,
    /// A fault keeps it from going on, and nobody asks the client for more.
    held_up: AtomicBool,
    /// The faults that did.
    touched: Mutex<Vec<FaultId>>,
}

impl Progress {
    /// Of a body on this connection that may have so many bytes.
    pub(crate) fn new(conn: &Arc<ConnState>, bytes_max: u64) -> Self {
        Self {
            conn: Arc::clone(conn),
            left: AtomicU64::new(bytes_max),
            broken: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            held_up: AtomicBool::new(false),
            touched: Mutex::default(),
        }
    }

    /// True if it is the client who has to go on.
    pub(crate) fn awaits_client(&self) -> bool {
        !self.ended.load(Relaxed) && !self.held_up.load(Relaxed)
    }

    pub(crate) fn set_held_up(&self, is_held_up: bool) {
        self.held_up.store(is_held_up, Relaxed);
    }

    /// The faults that have touched it on its way.
    pub(crate) fn touched(&self) -> MutexGuard<'_, Vec<FaultId>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if that was too much.
    fn takes(&self, bytes: usize) -> bool {
        let left = self.left.load(Relaxed).checked_sub(bytes as u64);
        match left {
            Some(left) => self.left.store(left, Relaxed),
            None => {
                self.broken.store(true, Relaxed);
                self.conn.break_body(Verdict::BodyTooLong);
            }
        }
        left.is_some()
    }
}

impl ReqBody {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Whole(Some(bytes)) }
    }
}

impl Body for ReqBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(body) => {
                if let Some(border) = &mut body.border {
                    ready!(border.poll_open(cx));
                }
                let frame = match body.come.pop() {
                    Some(come) => Some(Ok(come)),
                    None => ready!(Pin::new(&mut body.incoming).poll_frame(cx)),
                };
                let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
                if !body.progress.takes(bytes) {
                    return Poll::Ready(Some(Err(Verdict::BodyTooLong.words().into())));
                }
                match &frame {
                    Some(Err(_)) => body.progress.broken.store(true, Relaxed),
                    None => body.progress.ended.store(true, Relaxed),
                    Some(Ok(_)) if body.come.is_empty() && body.incoming.is_end_stream() => {
                        body.progress.ended.store(true, Relaxed)
                    }
                    Some(Ok(_)) => {}
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(body) => body.come.is_empty() && body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(body) => body.incoming.size_hint(),
        }
    }
}

/// A body that is read whole: its only piece as it came, or all of them in one.
#[derive(Default)]
pub(crate) struct Pieces {
    first: Option<Bytes>,
    rest: BytesMut,
}

impl Pieces {
    pub(crate) fn push(&mut self, data: Bytes) {
        match &self.first {
            None => self.first = Some(data),
            Some(first) => {
                if self.rest.is_empty() {
                    self.rest.extend_from_slice(first);
                }
                self.rest.extend_from_slice(&data);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rest.len().max(self.first.as_ref().map_or(0, Bytes::len))
    }

    pub(crate) fn whole(self) -> Bytes {
        if self.rest.is_empty() { self.first.unwrap_or_default() } else { self.rest.freeze() }
    }
}

/// An answer's body as the client gets it.
pub(crate) enum ResBody {
    /// None.
    Empty,
    /// At hand.
    Whole(Option<Bytes>),
    /// Passed on as it comes.
    Relay(Box<Relay>),
    /// None: the connection goes on as something else.
    Switched(Box<Handover>),
}

impl ResBody {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Whole(Some(bytes)) }
    }

    /// The whole body, if it is at hand.
    pub(crate) fn bytes(&self) -> Option<Bytes> {
        match self {
            Self::Empty => Some(Bytes::new()),
            Self::Whole(bytes) => bytes.clone(),
            Self::Relay(_) | Self::Switched(_) => None,
        }
    }
}

/// Wraps an answer's body with what must end with it.
pub(crate) struct Tracked<G> {
    body: ResBody,
    /// Dropped at the end of the body, or with it.
    guard: Option<G>,
}

impl<G> Tracked<G> {
    pub(crate) fn new(body: ResBody, guard: G) -> Self {
        Self { body, guard: Some(guard) }
    }

    /// Has what is still to be sent of the request go on.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        if let ResBody::Relay(relay) = &mut self.body {
            relay.drive(cx);
        }
    }

    /// The same without a byte.
    pub(crate) fn emptied(self) -> Self {
        Self { body: ResBody::Empty, guard: self.guard }
    }
}

impl<G: Unpin> Body for Tracked<G> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = match &mut this.body {
            ResBody::Empty | ResBody::Switched(_) => Poll::Ready(None),
            ResBody::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            ResBody::Relay(relay) => relay.poll_frame(cx),
        };
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) || this.body.is_over() {
            this.guard = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            ResBody::Empty | ResBody::Switched(_) => SizeHint::with_exact(0),
            ResBody::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            ResBody::Relay(relay) => relay.size_hint(),
        }
    }
}

impl ResBody {
    fn is_over(&self) -> bool {
        match self {
            Self::Empty | Self::Switched(_) => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Relay(relay) => relay.is_over(),
        }
    }
}
