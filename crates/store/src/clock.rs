//! The store asks for the time, it never looks: whoever opens it hands over a [`Clock`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

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

/// A step of the wall clock that is told.
const STEP_TOLD: Duration = Duration::from_secs(60);

/// A clock, and the time counted on from one look at its wall: what a wall that is set later cannot shift. By it
/// records expire and keys are forgotten, so that neither happens because somebody set the clock.
#[derive(Debug)]
pub(crate) struct Steady {
    clock: Arc<dyn Clock>,
    from: (Mono, Wall),
    /// How far ahead and how far behind the wall was when it was last told.
    told: (Duration, Duration),
}

impl Steady {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let from = (clock.mono(), clock.wall());
        Self { clock, from, told: Default::default() }
    }

    pub(crate) fn mono(&self) -> Mono {
        self.clock.mono()
    }

    /// The time as people write it, and as they have set it.
    pub(crate) fn wall(&self) -> Wall {
        self.clock.wall()
    }

    /// The time that nobody has set since.
    pub(crate) fn steady(&self) -> Wall {
        self.from.1 + self.clock.mono().since(self.from.0)
    }

    /// A moment of the wall clock as it stands now, on the steady one.
    pub(crate) fn moment(&self, at: Wall) -> Wall {
        let (wall, steady) = (self.wall(), self.steady());
        let behind = u64::try_from(wall.since(at).as_millis()).unwrap_or(u64::MAX);
        Wall::from_millis(steady.as_millis().saturating_sub(behind)) + at.since(wall)
    }

    /// How far the wall is ahead and behind, if it was set since that was last asked.
    pub(crate) fn step(&mut self) -> Option<(Duration, Duration)> {
        let (wall, steady) = (self.wall(), self.steady());
        let (ahead, behind) = (wall.since(steady), steady.since(wall));
        let is_news = ahead.abs_diff(self.told.0) + behind.abs_diff(self.told.1) > STEP_TOLD;
        is_news.then(|| {
            self.told = (ahead, behind);
            self.told
        })
    }
}
