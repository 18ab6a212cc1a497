//! The ledger as the data path sees it: a stamp for each record accepted, and what became of it.

use sha2::{Digest, Sha256};

/// Keeps the account of records. Calls never wait: what must be durable first was made so ahead of time.
pub trait Records: Send + Sync {
    /// The next number of a stream with its tag, as the `Seawall-Record` header carries it, for a record with this
    /// idempotency key. `None` while the ledger cannot number records; the write goes on without.
    fn stamp(&self, stream: &str, key: &str, digest: [u8; 32]) -> Option<String>;

    /// What became of a stamped record.
    fn settle(&self, stamp: &str, fate: Fate);
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The upstream took it and the client was told so.
    Accepted,
    /// Certainly not executed, and the client was told so.
    Refused,
    /// May or may not have been executed; the client was told no success.
    Indeterminate,
    /// Promised to the client, waits in the spool.
    Spooled,
    /// The spool delivered it.
    Delivered,
    /// The spool holds it as a dead letter.
    Parked,
    /// The spool gave it up: its time was over.
    Expired,
}

/// No ledger: for nodes without a store, and tests of other things.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRecords;

impl Records for NoRecords {
    fn stamp(&self, _: &str, _: &str, _: [u8; 32]) -> Option<String> {
        None
    }

    fn settle(&self, _: &str, _: Fate) {}
}

/// SHA-256.
pub(crate) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
