//! Faults on a stream of bytes: what becomes of them, and when.
//!
//! Picture a pipe with gadgets screwed in. Bytes enter at one end, each gadget (a [`Fault`] at work) holds, cuts, slows
//! or swallows them, and what comes out at the other end is written to the peer. A connection is two such pipes, one
//! for each [`Direction`], and they know nothing of each other. A [`Link`] is one pipe: it is fed, asked what to write
//! and when to be asked again, and told which faults come, change and go while bytes are inside.
//!
//! Invariants: bytes leave in the order they came; a fault that is lifted loses no byte that it had not lost before; a
//! fault that has lost bytes ends the connection when it is lifted, so that nobody reads a stream with a hole in it;
//! the same seed, bytes and moments give the same output.
//! Not here: sockets and timers (the gateway's), the words of an API (the control side's). Who may place a fault, for
//! how long and on how much of the traffic is asked before a fault reaches a link: a link obeys [`Link::put`] and
//! [`Link::lift`], so a lease that runs out, a cap or a kill switch is one call away from every pipe.
//!
//! Faults of a node, on calls and connections, with leases, caps and a kill switch: [`book`].

pub mod book;

mod chance;
mod link;
mod slice;
mod stage;

use std::sync::Arc;
use std::time::Duration;

use crate::units::Ratio;

pub use chance::link_prng;
pub use link::{Ending, Link, Out};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the client to the upstream.
    Upstream,
    /// From the upstream to the client.
    Downstream,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Upstream, Self::Downstream];

    /// As metrics and APIs write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Downstream => "downstream",
        }
    }
}

/// A fault's name among the faults of one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FaultId(pub Arc<str>);

impl From<&str> for FaultId {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

/// How many of the connections a fault touches, as a share; the draw is made once for each link.
///
/// One draw stays with the link: a share that grows touches more connections and lets none go, and a neighbour that
/// comes or goes changes nobody's fate.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Share(f64);

impl Share {
    /// Every connection.
    pub const ALL: Self = Self(1.0);

    /// Anything is a share: below 0 it touches nothing, above 1 everything, and what is no number touches nothing.
    #[must_use]
    pub fn clamped(share: f64) -> Self {
        Self(if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) })
    }

    /// Whether a link with this draw from `0.0..1.0` is touched.
    pub(crate) fn touches(self, draw: f64) -> bool {
        draw < self.0
    }
}

/// What is done to the bytes of one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Its name.
    pub id: FaultId,
    /// Whose bytes.
    pub direction: Direction,
    /// Which links.
    pub share: Share,
    /// And how.
    pub effect: Effect,
}

/// The kinds of harm. Every number makes sense: whoever takes them from outside clamps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect {
    /// None: bytes pass.
    Noop,
    /// Each chunk leaves so long after it was received, give or take `jitter` in whole milliseconds, and never before;
    /// a chunk never overtakes another. Chunks wait side by side, so the rate stays what it was. Connecting and closing
    /// are not delayed.
    Latency {
        /// In milliseconds; below zero it makes `jitter` late less often.
        delay_ms: i64,
        /// At most this much more or less.
        jitter: Duration,
    },
    /// At most so many bytes a second, in pieces of at most a tenth of a second; none at 0.
    Bandwidth {
        /// In bytes.
        bytes_per_second: u64,
    },
    /// Bytes pass; the end of the stream comes later.
    SlowClose {
        /// So much later.
        delay: Duration,
    },
    /// Swallows everything. Closes the connection when nothing has come for so long; `None` never does.
    Timeout {
        /// Since the last chunk, or since the fault began.
        after: Option<Duration>,
    },
    /// Swallows the first chunk, or the end, and resets the connection later. A connection on which nothing happens is
    /// left alone.
    ResetPeer {
        /// After the first chunk.
        after: Duration,
    },
    /// Ends the direction as if its sender had no more to say; what the sender says later is thrown away. The other
    /// direction goes on.
    HalfClose {
        /// Since the fault began.
        after: Duration,
    },
    /// Cuts chunks into pieces that are written one by one.
    Slicer {
        /// In bytes, at least 1.
        average: usize,
        /// A piece may be so many bytes longer or shorter.
        variation: usize,
        /// After each piece.
        delay: Duration,
    },
    /// Closes the connection once so many bytes have passed; with 0, when the first one comes.
    LimitData {
        /// Of one connection, in all.
        bytes: u64,
    },
    /// Bytes become others, each with the same probability.
    Corrupt {
        /// Of the bytes.
        share: Ratio,
    },
    /// Chunks are lost, each with the same probability.
    Loss {
        /// Of the chunks.
        share: Ratio,
    },
}
