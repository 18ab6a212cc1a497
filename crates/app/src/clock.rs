//! The real clocks, read here and nowhere else. Everything below takes the time as an argument, or asks the
//! [`RealClock`] it was given.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use seawall_core::time::{Mono, Wall};
use tokio::time::Instant;

/// One origin for every part of a node, so that their moments can be compared.
#[derive(Clone, Debug)]
pub struct RealClock {
    origin: Instant,
}

impl RealClock {
    /// Begins now.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }

    /// The gateway's view of it.
    #[must_use]
    pub fn gateway(&self) -> seawall_gateway::Clock {
        seawall_gateway::Clock::new(self.origin, Arc::new(wall_now))
    }
}

impl Default for RealClock {
    fn default() -> Self {
        Self::new()
    }
}

impl seawall_store::Clock for RealClock {
    fn mono(&self) -> Mono {
        Mono::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn wall(&self) -> Wall {
        wall_now()
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
fn wall_now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
