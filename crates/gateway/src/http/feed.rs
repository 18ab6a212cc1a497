//! A request's body on its way from the client's connection to whoever reads it, one piece at a time.
//!
//! Picture a hatch between two rooms. The connection puts a piece in when somebody has asked for one, and never two;
//! who asks may be the same task or another. So what nobody takes stays with the client.

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

    /// True if nobody is there any more to read it.
    pub(crate) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicU32);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn data(bytes: &'static [u8]) -> Result<Frame<Bytes>, BoxError> {
        Ok(Frame::data(Bytes::from_static(bytes)))
    }

    #[test]
    fn a_reader_in_another_task_is_woken_and_wakes_the_connection() {
        let (connection, reader) = (Arc::new(Counter::default()), Arc::new(Counter::default()));
        let (here, there) = (Waker::from(Arc::clone(&connection)), Waker::from(Arc::clone(&reader)));
        let (feed, mut fed) = Feed::new(&here, Some(3));
        let woken = || (connection.0.load(Relaxed), reader.0.load(Relaxed));
        assert!(!feed.is_wanted());
        assert!(fed.poll_frame(&mut Context::from_waker(&there)).is_pending() && feed.is_wanted());
        assert_eq!(woken(), (1, 0));
        feed.put(data(b"ab"));
        assert_eq!((woken(), feed.is_wanted()), ((1, 1), false));
        assert!(matches!(fed.poll_frame(&mut Context::from_waker(&here)), Poll::Ready(Some(Ok(_)))));
        assert!(fed.poll_frame(&mut Context::from_waker(&here)).is_pending());
        feed.put(data(b"c"));
        assert_eq!(woken(), (1, 1), "who reads in the connection's own task is not woken");
        assert!(matches!(fed.poll_frame(&mut Context::from_waker(&here)), Poll::Ready(Some(Ok(_)))));
        assert!(fed.is_over() && fed.left() == Some(0));
        assert!(matches!(fed.poll_frame(&mut Context::from_waker(&here)), Poll::Ready(None)));
    }

    #[test]
    fn nobody_waits_for_a_connection_that_has_ended() {
        let mut cx = Context::from_waker(Waker::noop());
        let (feed, mut fed) = Feed::new(Waker::noop(), None);
        assert!(fed.poll_frame(&mut cx).is_pending());
        drop(feed);
        assert!(matches!(fed.poll_frame(&mut cx), Poll::Ready(Some(Err(_)))));
        assert!(matches!(fed.poll_frame(&mut cx), Poll::Ready(None)));
        let (feed, mut fed) = Feed::new(Waker::noop(), None);
        feed.end();
        drop(feed);
        assert!(matches!(fed.poll_frame(&mut cx), Poll::Ready(None)), "a body that was whole stays whole");
    }
}
