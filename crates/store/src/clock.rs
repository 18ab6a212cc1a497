//! The store asks for the time, it never looks: whoever opens it hands over a [`Clock`].

use std::fmt;

use seawall_core::time::{Mono, Wall};

/// Tells the time. The real one lives in `app`, the simulator has its own.
pub trait Clock: Send + Sync + 'static {
    /// Now, on the clock that never steps back.
    fn mono(&self) -> Mono;
    /// Now, as people write it.
    fn wall(&self) -> Wall;
}

impl fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// A clock made of two closures.
pub struct ClockFn<M, W>(
    /// Tells [`Clock::mono`].
    pub M,
    /// Tells [`Clock::wall`].
    pub W,
);

impl<M, W> Clock for ClockFn<M, W>
where
    M: Fn() -> Mono + Send + Sync + 'static,
    W: Fn() -> Wall + Send + Sync + 'static,
{
    fn mono(&self) -> Mono {
        self.0()
    }

    fn wall(&self) -> Wall {
        self.1()
    }
}
