//! A connection to the API that does not let itself be kept: by a head that never ends, or by an answer nobody reads.
//!
//! Picture a watchman who sees bytes and no words, and is told by the service when a call begins and ends ([`Calls`]).
//! A head begins with the connection, later with the first byte after an answer, and ends where its call begins. What
//! is written begins with its first byte and ends when all of it is on its way, which is when the HTTP library flushes.
//! Not here: connections on which nothing happens (the library's own timer), bodies (the service's).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

const HEAD: u8 = 0;
const CALL: u8 = 1;
const ANSWER: u8 = 2;

/// What the service tells the watchman.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls(Arc<AtomicU8>);

impl Calls {
    /// A head has been read to its end.
    pub(super) fn begin(&self) {
        self.0.store(CALL, Relaxed);
    }

    /// There is an answer.
    pub(super) fn end(&self) {
        self.0.store(ANSWER, Relaxed);
    }
}

/// A deadline that may be set and lifted.
#[derive(Debug)]
struct Limit {
    within: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Limit {
    /// From now on, unless it runs already.
    fn begin(&mut self) {
        let within = self.within;
        self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
    }

    fn lift(&mut self) {
        self.sleep = None;
    }

    /// Whether it is over; if not, the task is woken when it is.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.sleep.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready())
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    calls: Calls,
    head: Limit,
    answer: Limit,
}

impl Wire {
    /// A head has to be complete `head` after its first byte, the first one after it was accepted; an answer has to be
    /// taken within `answer`.
    pub(super) fn new(stream: TcpStream, head: Duration, answer: Duration) -> (Self, Calls) {
        let calls = Calls::default();
        let [mut head, answer] = [head, answer].map(|within| Limit { within, sleep: None });
        head.begin();
        (Self { stream, calls: calls.clone(), head, answer }, calls)
    }

    fn watch_answer<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.answer.begin();
        if written.is_pending() && self.answer.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        written
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut wire.stream).poll_read(cx, buf);
        if wire.calls.0.load(Relaxed) != HEAD {
            wire.head.lift();
        } else if buf.filled().len() > before {
            wire.head.begin();
        }
        if read.is_pending() && wire.head.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        let written = Pin::new(&mut wire.stream).poll_write(cx, bytes);
        wire.watch_answer(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        let written = Pin::new(&mut wire.stream).poll_write_vectored(cx, slices);
        wire.watch_answer(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        if wire.answer.sleep.is_some() {
            wire.answer.lift();
            // Unless what was written only asks for the body, or the next call has begun already.
            let _ = wire.calls.0.compare_exchange(ANSWER, HEAD, Relaxed, Relaxed);
        }
        Pin::new(&mut wire.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
