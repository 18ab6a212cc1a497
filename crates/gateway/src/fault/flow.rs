//! Moves the bytes of one direction: from a socket into a link, from the link into the other socket.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use seawall_core::fault::{Ending, Link, Out};
use seawall_core::time::Mono;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::time::Sleep;

use super::share::Commons;
use super::{Traffic, lock};
use crate::Clock;
use crate::net::Stream;

/// The most that is read at once: what a fault sees as one chunk.
const CHUNK_BYTES_MAX: usize = 32 << 10;
/// What is read and thrown away of a connection that ends: bytes that nobody has read would turn the end into a reset.
const UNREAD_BYTES_MAX: usize = 4 << 20;

thread_local! {
    /// One buffer for all connections of a thread: an idle connection costs none.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK_BYTES_MAX]);
}

/// A link that others may reach into while its bytes are being moved.
#[derive(Debug)]
pub(super) struct Line(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    link: Link,
    /// Of the task that moves the bytes.
    waker: Option<Waker>,
}

impl Line {
    pub(super) fn new(link: Link) -> Self {
        Self(Mutex::new(Inner { link, waker: None }))
    }

    pub(super) fn arms_reset(&self) -> bool {
        lock(&self.0).link.arms_reset()
    }

    pub(super) fn is_sender_unheard(&self) -> bool {
        lock(&self.0).link.is_sender_unheard()
    }

    /// Changes the faults on a link; its task looks at it again.
    pub(super) fn change(&self, how: impl FnOnce(&mut Link)) {
        let mut inner = lock(&self.0);
        how(&mut inner.link);
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }
}

/// What those who move bytes have in common.
#[derive(Debug)]
pub(super) struct Means {
    pub(super) clock: Clock,
    pub(super) held_bytes: Commons,
    /// What a sender that broke off ends its direction with.
    pub(super) on_broken: Ending,
}

/// One direction at work.
pub(super) struct Flow<'a> {
    means: &'a Means,
    line: &'a Line,
    traffic: &'a Traffic,
    sleep: Pin<Box<Sleep>>,
    sleeps_until: Option<Mono>,
    held_bytes: usize,
    /// Of all links of its place.
    place_held_bytes: &'a AtomicUsize,
}

impl<'a> Flow<'a> {
    pub(super) fn new(
        means: &'a Means,
        line: &'a Line,
        traffic: &'a Traffic,
        place_held_bytes: &'a AtomicUsize,
    ) -> Self {
        let sleep = Box::pin(tokio::time::sleep_until(means.clock.instant(Mono::ZERO)));
        Self { means, line, traffic, sleep, sleeps_until: None, held_bytes: 0, place_held_bytes }
    }

    /// Moves what can be moved; there is nothing to read from a socket that is gone. Ready with how the direction
    /// ended, once: what that means for the receiver is the caller's to do.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, from: Option<&mut Stream>, to: &mut Stream) -> Poll<Ending> {
        let line = self.line;
        let mut inner = lock(&line.0);
        let ended = self.advance(cx, &mut inner.link, from, to);
        let held_bytes = inner.link.held_bytes();
        self.account(held_bytes);
        match ended {
            Poll::Ready(_) => {}
            Poll::Pending if inner.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) => {}
            Poll::Pending => inner.waker = Some(cx.waker().clone()),
        }
        ended
    }

    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link,
        mut from: Option<&mut Stream>,
        to: &mut Stream,
    ) -> Poll<Ending> {
        loop {
            let now = self.means.clock.now();
            match link.next(now) {
                Out::Write(bytes) => match Pin::new(&mut *to).poll_write(cx, &bytes) {
                    Poll::Ready(Ok(written)) if written > 0 => {
                        self.traffic.sent_bytes.fetch_add(written as u64, Relaxed);
                        link.wrote(written);
                        continue;
                    }
                    // Nobody reads any more.
                    Poll::Ready(_) => return Poll::Ready(Ending::Close),
                    Poll::Pending => {}
                },
                Out::End(ending) => return Poll::Ready(ending),
                Out::Wait(_) => {}
            }
            if let Some(from) = from.as_deref_mut().filter(|_| link.wants_input() && self.may_hold_more(link)) {
                match read(cx, from) {
                    Poll::Ready(Ok(bytes)) if bytes.is_empty() => {
                        link.end(Ending::Half);
                        continue;
                    }
                    Poll::Ready(Ok(bytes)) => {
                        self.traffic.received_bytes.fetch_add(bytes.len() as u64, Relaxed);
                        link.push(now, bytes);
                        continue;
                    }
                    Poll::Ready(Err(_)) => {
                        link.end(self.means.on_broken);
                        continue;
                    }
                    Poll::Pending => {}
                }
            }
            match link.due() {
                Some(due) if self.poll_sleep(cx, due).is_ready() => {}
                _ => return Poll::Pending,
            }
        }
    }

    /// Who holds nothing may always begin: nobody starves, and everybody who waits has something of his own to let go.
    fn may_hold_more(&mut self, link: &Link) -> bool {
        self.account(link.held_bytes());
        self.held_bytes == 0 || self.means.held_bytes.has_more(self.place_held_bytes.load(Relaxed))
    }

    fn account(&mut self, held_bytes: usize) {
        let before = std::mem::replace(&mut self.held_bytes, held_bytes);
        match held_bytes.checked_sub(before) {
            Some(0) => {}
            Some(more) => {
                self.place_held_bytes.fetch_add(more, Relaxed);
                self.means.held_bytes.take(more);
            }
            None => {
                self.place_held_bytes.fetch_sub(before - held_bytes, Relaxed);
                self.means.held_bytes.give_back(before - held_bytes);
            }
        }
    }

    fn poll_sleep(&mut self, cx: &mut Context<'_>, due: Mono) -> Poll<()> {
        if self.sleeps_until != Some(due) {
            self.sleep.as_mut().reset(self.means.clock.instant(due));
            self.sleeps_until = Some(due);
        }
        let slept = self.sleep.as_mut().poll(cx);
        if slept.is_ready() {
            self.sleeps_until = None;
        }
        slept
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        self.account(0);
    }
}

fn read(cx: &mut Context<'_>, from: &mut Stream) -> Poll<io::Result<Bytes>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buf = ReadBuf::new(scratch);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(Bytes::copy_from_slice(buf.filled())))
    })
}

/// Throws away what comes, until the sender has ended or broken off.
pub(super) fn poll_discard(cx: &mut Context<'_>, from: &mut Stream) -> Poll<io::Result<()>> {
    loop {
        if ready!(read(cx, from))?.is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
}

/// Passes on that nothing more comes; false if the receiver is gone already.
pub(super) async fn end_half(to: &mut Stream) -> bool {
    poll_fn(|cx| Pin::new(&mut *to).poll_shutdown(cx)).await.is_ok()
}

/// Ends a connection: with a reset, or so that the peer reads what was sent and then the end.
pub(super) async fn finish(mut stream: Stream, ending: Ending) {
    if ending == Ending::Reset {
        return stream.reset_on_close();
    }
    let drain = poll_fn(|cx| {
        let _ = Pin::new(&mut stream).poll_shutdown(cx);
        let mut unread_bytes = 0;
        while let Poll::Ready(Ok(bytes)) = read(cx, &mut stream) {
            unread_bytes += bytes.len();
            if bytes.is_empty() || unread_bytes >= UNREAD_BYTES_MAX {
                break;
            }
        }
        Poll::Ready(())
    });
    // A task that has used up its turn is told that nothing is there, which would leave bytes unread.
    tokio::task::unconstrained(drain).await;
}
