//! What the store may use, and what it does when it finds damage.

use std::path::PathBuf;
use std::time::Duration;

use crate::wrap::SealKeys;

/// Where the store is and how much it may hold.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The data directory; made if it is not there.
    pub dir: PathBuf,
    /// The node's name: a data directory belongs to one.
    pub node: String,
    /// Bytes of records that are waiting, leased or parked; beyond it [`crate::EnqueueError::Full`]. The files take up
    /// to twice as much plus four segments in the worst case, and about as much as this normally.
    pub spool_bytes_max: u64,
    /// Bytes of journal kept; the oldest segments go first.
    pub journal_bytes_max: u64,
    /// How long entries of the journal are kept; `None` for as long as there is room.
    pub journal_keep: Option<Duration>,
    /// Bytes of one record, headers and bookkeeping included; beyond it [`crate::EnqueueError::TooLarge`].
    pub record_bytes_max: u64,
    /// Bytes of one segment file of the spool. At least twice `record_bytes_max` is used.
    pub spool_segment_bytes: u64,
    /// Bytes of one segment file of the journal and of the ledger's log.
    pub journal_segment_bytes: u64,
    /// How long the idempotency key of a settled record is remembered.
    pub remember_for: Duration,
    /// How many such keys at most, about 150 bytes of memory each.
    pub remember_max: usize,
    /// What to do about damage that no crash explains.
    pub on_damage: OnDamage,
    /// Seals the records of the spool at rest; `None` leaves new ones open and cannot read sealed ones.
    pub seal_keys: Option<SealKeys>,
    /// A new directory begins with this epoch, or the next: above all epochs of the one it follows.
    pub epoch_min: u64,
    /// Packs records with LZ4 where that makes them shorter. What is packed is read either way.
    pub packs: bool,
}

impl StoreOptions {
    /// The defaults: 1 GiB of spool, 256 MiB of journal, records up to 1 MiB, keys remembered for 24 hours.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, node: impl Into<String>) -> Self {
        Self {
            dir: dir.into(),
            node: node.into(),
            spool_bytes_max: 1 << 30,
            journal_bytes_max: 256 << 20,
            journal_keep: None,
            record_bytes_max: 1 << 20,
            spool_segment_bytes: 8 << 20,
            journal_segment_bytes: 4 << 20,
            remember_for: Duration::from_secs(24 * 3600),
            remember_max: 500_000,
            on_damage: OnDamage::Refuse,
            seal_keys: None,
            epoch_min: 1,
            packs: false,
        }
    }
}

/// What to do when synced bytes do not read as they were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDamage {
    /// Do not open: a person decides.
    #[default]
    Refuse,
    /// Keep the damaged file under a name that ends in `.damaged`, go on with what can be saved, and count what not.
    Quarantine,
}
