//! A request's body on its way from the client's connection to whoever reads it, one piece at a time.
//!
//! Picture a hatch between two rooms. The connection puts a piece in when somebody has asked for one, and never two; who
//! asks may be the same task or another. So what nobody takes stays with the client.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Frame;

use super::body::BoxError;

/// The connection's side.
pub(crate) struct Feed(Arc<Shared>);

/// The reader's side.
pub(crate) struct Fed {
    shared: Arc<Shared>,
    /// How much is to come, if that was announced.
    left: Option<u64>,
    is_over: bool,
}

struct Shared {
    hatch: Mutex<Hatch>,
    /// The connection's task.
    connection: Waker,
}

#[derive(Default)]
struct Hatch {
    piece: Option<Result<Frame<Bytes>, BoxError>>,
    has_ended: bool,
    is_wanted: bool,
    reader: Option<Waker>,
}

impl Feed {
    /// Both sides of a body with so many bytes, if that is known.
    pub(crate) fn new(connection: &Waker, left: Option<u64>) -> (Self, Fed) {
        let shared = Arc::new(Shared { hatch: Mutex::default(), connection: connection.clone() });
        (Self(Arc::clone(&shared)), Fed { shared, left, is_over: false })
    }

    /// True if somebody waits for a piece.
    pub(crate) fn is_wanted(&self) -> bool {
        let hatch = self.0.lock();
        hatch.is_wanted && hatch.piece.is_none()
    }

    /// Hands a piece over.
    pub(crate) fn put(&self, piece: Result<Frame<Bytes>, BoxError>) {
        self.change(|hatch| hatch.piece = Some(piece));
    }

    /// There is no more.
    pub(crate) fn end(&self) {
        self.change(|hatch| hatch.has_ended = true);
    }

    /// Wakes a reader in another task: our own reads again anyway.
    fn change(&self, how: impl FnOnce(&mut Hatch)) {
        let mut hatch = self.0.lock();
        hatch.is_wanted = false;
        how(&mut hatch);
        let reader = hatch.reader.take();
        drop(hatch);
        reader.into_iter().filter(|reader| !reader.will_wake(&self.0.connection)).for_each(Waker::wake);
    }
}

impl Drop for Feed {
    /// A connection that ends leaves nobody waiting.
    fn drop(&mut self) {
        self.change(|hatch| {
            if !hatch.has_ended && hatch.piece.is_none() {
                hatch.piece = Some(Err("the client's connection has ended".into()));
            }
        });
    }
}

impl Fed {
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut hatch = self.shared.lock();
        if let Some(piece) = hatch.piece.take() {
            let bytes = piece.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
            self.left = self.left.map(|left| left.saturating_sub(bytes as u64));
            self.is_over = piece.is_err() || self.left == Some(0);
            return Poll::Ready(Some(piece));
        }
        if hatch.has_ended || self.is_over {
            self.is_over = true;
            return Poll::Ready(None);
        }
        hatch.is_wanted = true;
        let is_ours = self.shared.connection.will_wake(cx.waker());
        hatch.reader = Some(cx.waker().clone());
        drop(hatch);
        if !is_ours {
            self.shared.connection.wake_by_ref();
        }
        Poll::Pending
    }

    /// True if no more will come.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// How much is to come, if that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        self.left
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Hatch> {
        self.hatch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
