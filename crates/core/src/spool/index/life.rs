//! The words for a record's life: the states it can be in, what is asked about it and what is answered.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::RecordId;
use crate::spool::record::{FingerprintHalf, KeyHash, LaneKey, Terms};
use crate::time::{Mono, Wall};

/// Longest error or reason kept, in bytes; the rest is cut off.
pub const REASON_BYTES_MAX: usize = 256;
/// Longest last words of an upstream kept, in bytes; the rest is cut off.
pub const LAST_WORDS_BYTES_MAX: usize = 1024;

/// Where a record is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for its turn.
    Waiting,
    /// Somebody tries to deliver it.
    Leased,
    /// Dead letter: a person decides.
    Parked,
    /// The upstream took it.
    Delivered,
    /// A person gave it up.
    Discarded,
    /// Its time was over before it could be delivered.
    Expired,
    /// Another node has taken it in, and delivers it.
    HandedOver,
}

impl State {
    /// Its name in JSON and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Leased => "leased",
            Self::Parked => "parked",
            Self::Delivered => "delivered",
            Self::Discarded => "discarded",
            Self::Expired => "expired",
            Self::HandedOver => "handed_over",
        }
    }
}

/// Bounds of what is remembered of settled records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexConfig {
    /// How long the key of a settled record is remembered.
    pub remember_for: Duration,
    /// How many such keys at most.
    pub remember_max: usize,
    /// Anything that nobody outside knows: with it, nobody can choose keys that crowd one place of a hash table.
    pub hash_seed: u64,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { remember_for: Duration::from_secs(24 * 3600), remember_max: 500_000, hash_seed: 0 }
    }
}

/// Where the bytes of a record are, and how many.
pub trait Footprint: Copy {
    /// Bytes the record takes there.
    fn bytes(&self) -> u64;
}

/// A record as the index takes it in; `P` is where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission<'a, P> {
    /// Its number, higher than any before.
    pub id: RecordId,
    /// For whom.
    pub upstream: &'a str,
    /// By which route it came.
    pub route: &'a str,
    /// Its row; `None` waits for nobody.
    pub lane: Option<LaneKey>,
    /// Its idempotency key.
    pub key: KeyHash,
    /// What the request looked like.
    pub fingerprint: FingerprintHalf,
    /// When it was accepted.
    pub accepted: Wall,
    /// Tries so far.
    pub attempts: u32,
    /// Why the last of them failed.
    pub last_error: &'a str,
    /// On what terms it is kept; expiry to the second, rounded up.
    pub terms: Terms,
    /// Where its bytes are.
    pub place: P,
}

/// The right to deliver a record, until it expires. Given back by value: nothing is acknowledged twice.
#[must_use = "a lease that is dropped hands the record to another worker only when it expires"]
#[derive(Debug, PartialEq, Eq)]
pub struct Lease {
    pub(super) id: RecordId,
    pub(super) generation: u64,
    pub(super) until: Mono,
}

impl Lease {
    /// Which record.
    #[must_use]
    pub const fn id(&self) -> RecordId {
        self.id
    }

    /// When it expires.
    #[must_use]
    pub const fn until(&self) -> Mono {
        self.until
    }
}

/// Why a record became a dead letter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parked {
    /// Why nobody tries any more.
    pub reason: String,
    /// What the upstream said last.
    pub last_words: String,
    /// Since when.
    pub at: Wall,
}

/// How a record ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The upstream's status if it was delivered, the reason if it was discarded, where to if it was handed over.
    pub outcome: Outcome,
    /// When.
    pub at: Wall,
}

/// The ends a record can come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream took it.
    Delivered {
        /// And answered with this.
        status: u16,
    },
    /// A person gave it up.
    Discarded {
        /// Because of this.
        reason: String,
    },
    /// Its time was over: [`Terms::expires`].
    Expired,
    /// Another node has taken it in.
    HandedOver {
        /// Which one, and under which number.
        to: String,
    },
}

impl Outcome {
    /// The state of a record that ended so.
    #[must_use]
    pub const fn state(&self) -> State {
        match self {
            Self::Delivered { .. } => State::Delivered,
            Self::Discarded { .. } => State::Discarded,
            Self::Expired => State::Expired,
            Self::HandedOver { .. } => State::HandedOver,
        }
    }
}

/// What is known of an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The record it belongs to.
    pub id: RecordId,
    /// What the request looked like.
    pub fingerprint: FingerprintHalf,
    /// Where the record is in its life.
    pub state: State,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Records that wait.
    pub waiting: u64,
    /// Records somebody tries to deliver.
    pub leased: u64,
    /// Dead letters.
    pub parked: u64,
    /// Bytes of all of these.
    pub bytes: u64,
    /// When the oldest that is waiting or leased was accepted: exactly where that is the first by number, or else
    /// within a second.
    pub oldest: Option<Wall>,
}

/// What is known of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View<P> {
    /// Where it is in its life.
    pub state: State,
    /// Tries so far; 0 once settled.
    pub attempts: u32,
    /// Why the last of them failed; empty once settled.
    pub last_error: String,
    /// Set for dead letters.
    pub parked: Option<Parked>,
    /// Set for settled records.
    pub settled: Option<Settled>,
    /// Where its bytes are, or were.
    pub place: P,
    /// Its idempotency key.
    pub key: KeyHash,
    /// False for what is settled, never expires, or once was a dead letter.
    pub expires: bool,
}

/// A record that waits or is parked was asked for and there is none with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHere {
    /// What it is instead; `None` if it is not known at all.
    pub state: Option<State>,
}

/// A dead letter was asked for and there is none with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotParked {
    /// What it is instead; `None` if it is not known at all.
    pub state: Option<State>,
}

/// The first `max` bytes of a text, never half a character.
#[must_use]
pub fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}
