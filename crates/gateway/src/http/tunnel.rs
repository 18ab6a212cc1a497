//! A stream of HTTP/2 that has become a connection (RFC 8441): bytes both ways, as on a socket of its own.
//!
//! Picture one room of a house whose door is used as if it led outside. The end of the stream's one direction is the
//! end of what that side says, a reset is a reset, and whoever leaves without having said its end resets. What is not
//! read stays with the sender: its window opens only for what has been handed on. Not here: which requests become one
//! (`upgrade.rs`), what passes (`duplex.rs`).

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::{Flow, poll_room};

/// So much at a time is handed to the library.
const PIECE: usize = 16 << 10;

/// One of them, whichever side began it.
pub enum Tunnel {
    /// A client's.
    OfClient(OfClient),
    /// One to an upstream. The library's is no `Sync`; nobody ever waits for this lock.
    ToUpstream(Mutex<TokioIo<Upgraded>>),
}

/// A client's stream.
pub struct OfClient {
    says: RecvStream,
    /// What it has said and nobody has read: in one piece, however small the pieces were that it came in. Its window
    /// bounds it.
    said: BytesMut,
    has_said_all: bool,
    hears: SendStream<Bytes>,
    /// It has been told the end.
    has_ended: bool,
    flow: Arc<Flow>,
}

impl Tunnel {
    pub(crate) fn of_client(says: RecvStream, hears: SendStream<Bytes>, flow: Arc<Flow>) -> Self {
        Self::OfClient(OfClient { says, said: BytesMut::new(), has_said_all: false, hears, has_ended: false, flow })
    }

    pub(crate) fn to_upstream(upgraded: Upgraded) -> Self {
        Self::ToUpstream(Mutex::new(TokioIo::new(upgraded)))
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OfClient(_) => "Tunnel::OfClient",
            Self::ToUpstream(_) => "Tunnel::ToUpstream",
        })
    }
}

impl OfClient {
    /// Takes what has come. In the library small pieces would take up more room than is in them, and end the
    /// connection.
    fn gather(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.has_said_all {
            match self.says.poll_data(cx) {
                Poll::Ready(Some(data)) => self.said.extend_from_slice(&data.map_err(broken)?),
                Poll::Ready(None) => self.has_said_all = true,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.gather(cx)?;
        match (self.said.is_empty(), self.has_said_all) {
            (true, true) => self.flow.coming.ends(),
            (true, false) => {
                // Who is silent needs no room, and may be so for as long as it likes.
                self.said = BytesMut::new();
                self.flow.coming.waits();
                return Poll::Pending;
            }
            (false, _) => self.flow.coming.goes_on(),
        }
        let take = self.said.len().min(buffer.remaining());
        buffer.put_slice(&self.said[..take]);
        self.said.advance(take);
        // Of a stream that is gone nothing is to be given back.
        let _ = self.says.flow_control().release_capacity(take);
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.gather(cx)?;
        self.hears.reserve_capacity(bytes.len().min(PIECE));
        let Some(room) = ready!(poll_room(cx, &mut self.hears)) else { return Poll::Ready(Err(gone())) };
        let piece = &bytes[..bytes.len().min(room).min(PIECE)];
        self.hears.send_data(Bytes::copy_from_slice(piece), false).map_err(broken)?;
        Poll::Ready(Ok(piece.len()))
    }

    /// There is nothing to push: but here it is heard that the client has gone, while nobody reads or writes.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.gather(cx)?;
        match self.hears.poll_reset(cx) {
            Poll::Ready(_) if !self.has_ended => Poll::Ready(Err(gone())),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(&mut self) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.hears.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for OfClient {
    fn drop(&mut self) {
        // It was answered, however it went on.
        self.flow.is_over();
        if !self.has_ended {
            self.hears.send_reset(Reason::CANCEL);
        }
    }
}

fn gone() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

macro_rules! on_tunnel {
    ($self:ident, $of_client:ident => $ours:expr, $upstream:ident => $theirs:expr) => {
        match $self.get_mut() {
            Tunnel::OfClient($of_client) => $ours,
            Tunnel::ToUpstream(locked) => {
                let $upstream = Pin::new(locked.get_mut().unwrap_or_else(PoisonError::into_inner));
                $theirs
            }
        }
    };
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_tunnel!(self, client => client.poll_read(cx, buffer), upstream => upstream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_tunnel!(self, client => client.poll_write(cx, bytes), upstream => upstream.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_tunnel!(self, client => client.poll_flush(cx), upstream => upstream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_tunnel!(self, client => client.poll_shutdown(), upstream => upstream.poll_shutdown(cx))
    }
}
