//! The gateway's clock: monotonic time from the runtime, so that a simulator that owns the runtime owns the time, and
//! wall time from whoever wired us.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use seawall_core::time::{Mono, Wall};
use tokio::time::Instant;

/// Tells the time. Cheap to clone.
#[derive(Clone)]
pub struct Clock {
    origin: Instant,
    wall: Arc<dyn Fn() -> Wall + Send + Sync>,
}

impl Clock {
    /// A clock whose [`Mono`] begins at `origin`.
    #[must_use]
    pub fn new(origin: Instant, wall: Arc<dyn Fn() -> Wall + Send + Sync>) -> Self {
        Self { origin, wall }
    }

    /// Now, for decisions.
    #[must_use]
    pub fn now(&self) -> Mono {
        let nanos = Instant::now().duration_since(self.origin).as_nanos();
        Mono::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Now, for people.
    #[must_use]
    pub fn wall(&self) -> Wall {
        (self.wall)()
    }

    /// The runtime's name for a moment, to sleep until it.
    #[must_use]
    pub fn instant(&self, at: Mono) -> Instant {
        self.origin + std::time::Duration::from_nanos(at.as_nanos())
    }
}

/// Something that is told now and then, however often it happens.
#[derive(Debug, Default)]
pub(crate) struct Seldom(
    /// When it was last told, in nanoseconds of [`Mono`]; zero for never.
    AtomicU64,
);

impl Seldom {
    const EVERY: Duration = Duration::from_secs(10);

    /// True if it is to be told now.
    pub(crate) fn is_due(&self, now: Mono) -> bool {
        let last = self.0.load(Relaxed);
        let is_due = last == 0 || now.since(Mono::from_nanos(last)) >= Self::EVERY;
        if is_due {
            self.0.store(now.as_nanos().max(1), Relaxed);
        }
        is_due
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}
