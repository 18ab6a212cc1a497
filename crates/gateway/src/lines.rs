//! HTTP/1 to upstreams: a connection that one call at a time has to itself.
//!
//! Picture a telephone: whoever holds it speaks and listens, nobody stands between. The call polls the connection in
//! its own task, writes its request, and reads the answer; an upstream that answers before it has heard all is heard.
//! Between two calls it holds no buffer. It may be used again only if everything was said on both sides and nothing
//! else was. Not here: where connections come from and wait (`pool.rs`), what bytes mean (`http/wire.rs`).

use std::future::Future as _;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode};
use http_body::{Body as _, Frame};
use memchr::memmem;
use seawall_core::outcome::Failure;
use seawall_core::time::Mono;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use crate::http::body::{ReqBody, Sending};
use crate::http::message::ResponseHead;
use crate::http::outgoing::Outgoing;
use crate::http::wire::{self, Answer, Malformed, Piece, Reading, Writing};
use crate::name::Bearing;
use crate::net::{Stream, with_scratch};
use crate::pool::{OpenCount, Switched};

/// A body with so much to come is read where it will stay, this much at a time, and not copied.
const LONG: usize = 64 << 10;
/// A read that brings so much tells that there is more to come.
const MUCH: usize = 16 << 10;
/// Interim answers to one request.
const INTERIM_MAX: u32 = 32;

/// An HTTP/1 connection.
pub(crate) struct Lines {
    stream: Stream,
    /// An answer's head that has not come whole.
    head: Vec<u8>,
    /// What has come of a body and has not been taken.
    come: Bytes,
    reading: Reading,
    out: Outgoing,
    /// What of the request is still to leave.
    body: Option<(ReqBody, Writing)>,
    /// The upstream does not take what is to leave.
    is_deaf: bool,
    /// It goes on with the connection after this answer.
    keeps_open: bool,
    /// The last read of a body of unknown length brought much.
    comes_fast: bool,
    /// Interim answers to the present request.
    interims: u32,
    method: Method,
    /// Bytes since the present request began.
    read: u64,
    written: u64,
    pub(crate) born: Mono,
    pub(crate) idle_since: Mono,
    pub(crate) reused: bool,
    pub(crate) bearing: Bearing,
    _open: OpenCount,
    /// Probes have none: a pool that is all in use must not make its endpoint look sick.
    _slot: Option<OwnedSemaphorePermit>,
}

impl Lines {
    pub(crate) fn new(
        stream: Stream,
        bearing: Bearing,
        now: Mono,
        open: OpenCount,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Box<Self> {
        Box::new(Self {
            stream,
            head: Vec::new(),
            come: Bytes::new(),
            reading: Reading::Over,
            out: Outgoing::default(),
            body: None,
            is_deaf: false,
            keeps_open: true,
            comes_fast: false,
            interims: 0,
            method: Method::GET,
            read: 0,
            written: 0,
            born: now,
            idle_since: now,
            reused: false,
            bearing,
            _open: open,
            _slot: slot,
        })
    }

    /// Sends a request and waits for the head of its answer. `interim` hears of those that come before it.
    pub(crate) async fn send(
        &mut self,
        sending: Sending<'_>,
        mut interim: impl FnMut(&ResponseHead),
    ) -> Result<ResponseHead, Failure> {
        self.begin(sending);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(Err(failure)) = self.poll_out(cx) {
                return Poll::Ready(Err(failure));
            }
            self.poll_head(cx, &mut interim)
        })
        .await
    }

    fn begin(&mut self, sending: Sending<'_>) {
        let Sending { method, target, headers, body } = sending;
        (self.read, self.written, self.comes_fast, self.interims) = (0, 0, false, 0);
        let out = self.out.head();
        wire::put_request_line(out, method, target);
        let mut announced = None;
        for (name, value) in &*headers {
            if name == CONTENT_LENGTH {
                announced = value.to_str().ok().and_then(|length| length.parse().ok());
            }
            wire::put_header(out, name, value);
        }
        let writing = match (announced, body.size_hint().exact()) {
            (Some(length), _) => Writing::Sized(length),
            (None, Some(0)) => Writing::Sized(0),
            (None, Some(length)) => {
                wire::put_header(out, &CONTENT_LENGTH, &length.into());
                Writing::Sized(length)
            }
            (None, None) => {
                wire::put_header(out, &TRANSFER_ENCODING, &HeaderValue::from_static("chunked"));
                Writing::chunked(&headers)
            }
        };
        out.extend_from_slice(b"\r\n");
        self.method = method.clone();
        match body {
            ReqBody::Empty => {}
            ReqBody::Whole(bytes) => self.out.piece(bytes.unwrap_or_default(), b""),
            body => self.body = Some((body, writing)),
        }
    }

    /// Sends what is to be sent. Fails only by what the client does; an upstream that does not take it may have
    /// answered.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            if self.out.is_full() {
                ready!(self.poll_leave(cx));
            }
            let Some((body, writing)) = &mut self.body else { return self.poll_leave(cx).map(Ok) };
            let frame = match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => frame.transpose(),
                Poll::Pending => {
                    ready!(self.poll_leave(cx));
                    return Poll::Pending;
                }
            };
            match frame.map_err(|_| Malformed).and_then(|frame| self.out.frame(writing, frame)) {
                Ok(false) => {}
                Ok(true) => self.body = None,
                Err(Malformed) => {
                    (self.is_deaf, self.body) = (true, None);
                    return Poll::Ready(Err(Failure::ConnectionLost));
                }
            }
        }
    }

    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(self.out.poll_leave(&mut self.stream, cx, &mut self.written)).is_err() {
            (self.is_deaf, self.body) = (true, None);
            self.out.give_up();
        }
        Poll::Ready(())
    }

    /// Has what is still to be sent go on while nobody asks for the answer.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        if self.body.is_some() || !self.out.is_empty() {
            let _ = self.poll_out(cx);
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        interim: &mut impl FnMut(&ResponseHead),
    ) -> Poll<Result<ResponseHead, Failure>> {
        let mut seen = Ok(None);
        loop {
            match seen {
                Ok(Some(Answer { head, marks, rest })) => {
                    self.head = Vec::new();
                    if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
                        self.interims += 1;
                        if self.interims > INTERIM_MAX {
                            return Poll::Ready(Err(Failure::Protocol));
                        }
                        interim(&head);
                        self.head.extend_from_slice(&rest);
                        seen = if rest.is_empty() { Ok(None) } else { wire::answer(&self.head) };
                        continue;
                    }
                    let reading = Reading::of_answer(&self.method, &head, marks);
                    self.keeps_open = wire::keeps_open(head.version, &head.headers, marks);
                    self.come = rest;
                    self.reading = match reading {
                        Ok(reading) => reading,
                        Err(Malformed) => return Poll::Ready(Err(Failure::Protocol)),
                    };
                    return Poll::Ready(Ok(head));
                }
                Ok(None) => {}
                Err(Malformed) => return Poll::Ready(Err(Failure::Protocol)),
            }
            seen = ready!(self.poll_more_head(cx))?;
        }
    }

    /// Reads on in a head, and takes it apart if it has come whole.
    fn poll_more_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Result<Option<Answer>, Malformed>, Failure>> {
        with_scratch(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            let come = buffer.filled();
            if read.is_err() || come.is_empty() {
                return Poll::Ready(Err(Failure::ConnectionLost));
            }
            self.read += come.len() as u64;
            if !self.head.is_empty() {
                let from = self.head.len().saturating_sub(3);
                self.head.extend_from_slice(come);
                let has_end = memmem::find(&self.head[from..], b"\n\r\n").is_some()
                    || memmem::find(&self.head[from..], b"\n\n").is_some()
                    || self.head.len() > wire::ANSWER_HEAD_MAX;
                return Poll::Ready(Ok(if has_end { wire::answer(&self.head) } else { Ok(None) }));
            }
            let seen = wire::answer(come);
            if matches!(seen, Ok(None)) {
                self.head.extend_from_slice(come);
            }
            Poll::Ready(Ok(seen))
        })
    }

    /// The next piece of the answer's body. What of the request is still to leave goes on leaving meanwhile.
    pub(crate) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if (self.body.is_some() || !self.out.is_empty())
            && let Poll::Ready(Err(failure)) = self.poll_out(cx)
        {
            return Poll::Ready(Some(Err(failure)));
        }
        loop {
            let Ok((framing, piece)) = self.reading.next(&self.come) else {
                return Poll::Ready(Some(Err(Failure::Protocol)));
            };
            self.come.advance(framing);
            match piece {
                Piece::Data(bytes) => return Poll::Ready(Some(Ok(Frame::data(self.come.split_to(bytes))))),
                Piece::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Piece::End => return Poll::Ready(None),
                Piece::More => match ready!(self.poll_more_body(cx)) {
                    Ok(0) if self.reading == Reading::ToEnd => {
                        (self.reading, self.keeps_open) = (Reading::Over, false);
                    }
                    Ok(0) => return Poll::Ready(Some(Err(Failure::Incomplete))),
                    Ok(_) => {}
                    Err(_) => return Poll::Ready(Some(Err(Failure::ConnectionLost))),
                },
            }
        }
    }

    fn poll_more_body(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let is_long = self.reading.left().map_or(self.comes_fast, |left| left >= LONG as u64);
        self.come = if is_long {
            let mut come = BytesMut::with_capacity(LONG);
            ready!(pin!(self.stream.read_buf(&mut come)).poll(cx))?;
            come.freeze()
        } else {
            ready!(with_scratch(|scratch| {
                let mut buffer = ReadBuf::new(scratch);
                let read = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
                read.map_ok(|()| Bytes::copy_from_slice(buffer.filled()))
            }))?
        };
        self.comes_fast = self.come.len() >= MUCH;
        self.read += self.come.len() as u64;
        Poll::Ready(Ok(self.come.len()))
    }

    /// How long the rest of the body is, if that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        self.reading.left()
    }

    /// True if there is nothing of the body to come.
    pub(crate) fn is_over(&self) -> bool {
        self.reading == Reading::Over
    }

    /// True if not one byte of an answer has come since the request began.
    pub(crate) fn nothing_read(&self) -> bool {
        self.read == 0
    }

    /// True if not one byte of the request has left since it began.
    pub(crate) fn nothing_written(&self) -> bool {
        self.written == 0
    }

    /// Takes the connection out of HTTP, after a `101`.
    pub(crate) fn into_switched(self) -> Switched {
        Switched { stream: self.stream, said: self.come, _whole: Some((self._open, self._slot)), _part: None }
    }

    /// True if all has been said on both sides, and the upstream has not announced that it ends here.
    pub(crate) fn is_done(&self) -> bool {
        let has_left = self.body.is_none() && self.out.is_empty() && !self.is_deaf;
        has_left && self.is_over() && self.keeps_open && self.come.is_empty() && self.head.is_empty()
    }

    /// True if the upstream has neither ended it nor said what nobody asked for since.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut byte = [0; 1];
        let mut buffer = ReadBuf::new(&mut byte);
        let read = std::future::poll_fn(|cx| Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
        // However long its task has been at work already.
        let read = pin!(tokio::task::coop::unconstrained(read));
        read.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}
