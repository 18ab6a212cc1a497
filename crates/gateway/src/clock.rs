//! The gateway's clock: monotonic time from the runtime, so that a simulator that owns the runtime owns the time, and
//! wall time from whoever wired us.

use std::sync::Arc;

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

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}
