//! Bytes on their way out of a connection: a head or a piece of framing, data that is passed on as it came, and what
//! ends the piece. A short piece is copied behind its head, which costs less than telling the kernel of two; a long one
//! never is.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http_body::Frame;
use tokio::io::AsyncWrite;

use super::wire::{Malformed, Writing};

/// Data up to this long is copied.
const SHORT: usize = 4 << 10;
/// What waits to leave is written when it is so much.
const FULL: usize = 16 << 10;
/// A buffer that has grown beyond this is not kept.
const SPARE_MAX: usize = 64 << 10;

thread_local! {
    /// Between two messages a connection holds no buffer: the thread keeps one for the next.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is to leave.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    head: Vec<u8>,
    head_at: usize,
    data: Bytes,
    after: &'static [u8],
}

impl Outgoing {
    /// True if all has left.
    pub(crate) fn is_empty(&self) -> bool {
        self.head_at == self.head.len() && self.data.is_empty() && self.after.is_empty()
    }

    /// True if it is to leave before more is added.
    pub(crate) fn is_full(&self) -> bool {
        !self.data.is_empty() || !self.after.is_empty() || self.head.len() - self.head_at >= FULL
    }

    /// Adds the next piece of a body, or its end. True after the end. To be asked only while it is not full.
    ///
    /// # Errors
    /// If the body is longer or shorter than was announced.
    pub(crate) fn frame(&mut self, writing: &mut Writing, frame: Option<Frame<Bytes>>) -> Result<bool, Malformed> {
        match frame.map(Frame::into_data) {
            Some(Ok(data)) if data.is_empty() => Ok(false),
            Some(Ok(data)) => {
                writing.begin_piece(self.head(), data.len())?;
                self.piece(data, writing.end_piece());
                Ok(false)
            }
            Some(Err(trailers)) => writing.end(self.head(), trailers.trailers_ref()).map(|()| true),
            None => writing.end(self.head(), None).map(|()| true),
        }
    }

    /// Where to write what leaves before the next piece of data. To be asked for only while there is no data.
    pub(crate) fn head(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.data.is_empty() && self.after.is_empty(), "what comes before data must not come behind it");
        if self.head.capacity() == 0 {
            self.head = SPARE.take();
        }
        &mut self.head
    }

    /// Data, and what ends the piece.
    pub(crate) fn piece(&mut self, data: Bytes, after: &'static [u8]) {
        if data.len() <= SHORT {
            let head = self.head();
            head.extend_from_slice(&data);
            head.extend_from_slice(after);
        } else {
            (self.data, self.after) = (data, after);
        }
    }

    /// Nothing more can leave.
    pub(crate) fn give_up(&mut self) {
        (self.data, self.after) = (Bytes::new(), b"");
        self.keep_spare();
    }

    /// Writes until all has been handed to the kernel.
    pub(crate) fn poll_leave<W: AsyncWrite + Unpin>(
        &mut self,
        to: &mut W,
        cx: &mut Context<'_>,
        written: &mut u64,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let bytes = if self.data.is_empty() && self.after.is_empty() {
                ready!(Pin::new(&mut *to).poll_write(cx, &self.head[self.head_at..]))?
            } else {
                let slices = [&self.head[self.head_at..], &self.data, self.after].map(IoSlice::new);
                ready!(Pin::new(&mut *to).poll_write_vectored(cx, &slices))?
            };
            if bytes == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += bytes as u64;
            self.advance(bytes);
        }
        self.keep_spare();
        Pin::new(to).poll_flush(cx)
    }

    fn advance(&mut self, bytes: usize) {
        let of_head = bytes.min(self.head.len() - self.head_at);
        self.head_at += of_head;
        let of_data = (bytes - of_head).min(self.data.len());
        self.data.advance(of_data);
        self.after = &self.after[bytes - of_head - of_data..];
    }

    fn keep_spare(&mut self) {
        self.head_at = 0;
        if self.head.capacity() > 0 {
            let mut head = std::mem::take(&mut self.head);
            head.clear();
            if head.capacity() <= SPARE_MAX {
                SPARE.set(head);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes so many bytes at a time, and remembers.
    struct Slow {
        at_a_time: usize,
        taken: Vec<u8>,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let bytes = &bytes[..bytes.len().min(self.at_a_time)];
            self.taken.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all = slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<_>>();
            self.as_mut().poll_write(cx, &all)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn all_of_it_leaves_in_order_however_little_is_taken_at_a_time() {
        let mut cx = Context::from_waker(Waker::noop());
        for at_a_time in [1, 3, 4_096, usize::MAX] {
            for length in [0, 5, SHORT, SHORT + 1, 3 * SHORT] {
                let (mut out, mut written) = (Outgoing::default(), 0);
                let mut slow = Slow { at_a_time, taken: Vec::new() };
                out.head().extend_from_slice(b"head ");
                out.piece(Bytes::from(vec![b'x'; length]), b" end");
                assert_eq!(out.is_full(), length > SHORT);
                assert!(out.poll_leave(&mut slow, &mut cx, &mut written).is_ready() && out.is_empty());
                let expected = [&b"head "[..], &vec![b'x'; length], b" end"].concat();
                assert_eq!((slow.taken == expected, written), (true, expected.len() as u64));
            }
        }
    }

    #[test]
    fn who_takes_nothing_is_gone() {
        let (mut out, mut slow) = (Outgoing::default(), Slow { at_a_time: 0, taken: Vec::new() });
        out.head().extend_from_slice(&vec![b'x'; SPARE_MAX + 1]);
        let left = out.poll_leave(&mut slow, &mut Context::from_waker(Waker::noop()), &mut 0);
        assert!(matches!(left, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::WriteZero));
        assert!(out.is_full());
        out.give_up();
        assert!(out.is_empty() && out.head().is_empty());
    }
}
