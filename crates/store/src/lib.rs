//! What Seawall remembers: the spool (writes to be delivered), the journal (what happened) and the ledger's log (the
//! account of every record), durable on one machine.
//!
//! Picture three ledgers in one locked cabinet, the data directory. Each is a segmented append-only log with one
//! writer; handles ([`Spool`], [`Journal`], [`LedgerLog`]) are cheap to clone and send it commands. An answer that says
//! "kept" is given after the sync, and one sync serves everybody who waits for one.
//!
//! Invariants: what was acknowledged survives power cuts; nothing half-written is ever seen; a failed sync stops the
//! engine and is never repeated; a full disk is an answer and passes by itself; record numbers are never used twice.
//! Not here: what records mean, when to try again, HTTP.
//!
//! ```no_run
//! # use seawall_store::{Clock, RealDisk, Store, StoreOptions};
//! # async fn example(clock: impl Clock, secret: [u8; 32]) -> Result<(), Box<dyn std::error::Error>> {
//! let opened = Store::open(RealDisk, StoreOptions::new("seawall-data", "us-east-1"), clock, || secret)?;
//! let threads = opened.engine.spawn_threads()?;
//! println!("{} records wait", opened.report.waiting);
//! opened.store.close().await;
//! threads.join();
//! # Ok(())
//! # }
//! ```

pub mod disk;

mod adoption;
mod clock;
mod embedded;
mod error;
mod jetstream;
mod journal;
mod ledger;
mod options;
mod spool;
mod wrap;

pub use adoption::{adopter, begin_adoption, end_adoption};
pub use clock::{Clock, ClockFn};
pub use disk::{Disk, LookDisk, RealDisk, SimDisk};
pub use embedded::{Engine, EngineThreads, LogReport, Opened, RecoveryReport, is_in_use};
pub use error::{EnqueueError, NotReplicated, OpenError, StoreError};
pub use jetstream::{
    Inherited, JOURNAL_STREAM, PRESENT_FOR, Password, REGISTRY_BUCKET, Replica, ReplicaError, ReplicaOptions,
    ReplicaState, ReplicaStatus, SPOOL_STREAM, examine_replica, is_new, mark_superseded, read_journal, superseded,
    superseded_before,
};
pub use journal::{Journal, QUEUE_ENTRIES_MAX, Query, SUBSCRIBER_LAG_MAX, TAIL_ENTRIES_MAX};
pub use ledger::LedgerLog;
pub use options::{OnDamage, StoreOptions};
pub use spool::{Account, Enqueued, Expired, HeldRecord, Leased, Leases, Orphan, Spool, SpoolDepth, WorkSignal};
pub use wrap::{NoKeys, SealKeys};

/// The three handles of one data directory, and what the directory says of itself. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    /// Writes to be delivered.
    pub spool: Spool,
    /// What happened.
    pub journal: Journal,
    /// The account's log.
    pub ledger: LedgerLog,
    /// How often this directory has been opened, from 1: durable before [`Store::open`] returns, so that whatever
    /// carries it is told apart from everything before a restart.
    pub epoch: u64,
    /// The key given at the first open: it signs what the ledger hands out.
    pub secret: Secret,
}

/// Thirty-two bytes that must not be printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(
    /// The bytes.
    pub [u8; 32],
);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Store {
    /// Opens a data directory, or makes one: takes its lock, counts its epoch up, reads the logs, cuts what a crash
    /// left torn. Nothing runs until the returned [`Engine`] is given threads or driven.
    ///
    /// `secret` is called at the first open only; afterwards the kept one is used.
    ///
    /// # Errors
    /// [`OpenError`]; each says what, where and, by [`OpenError::hint`], what to do.
    pub fn open<D: Disk>(
        disk: D,
        options: StoreOptions,
        clock: impl Clock,
        secret: impl FnOnce() -> [u8; 32],
    ) -> Result<Opened<D>, OpenError> {
        embedded::open(disk, &options, std::sync::Arc::new(clock), secret)
    }

    /// Why nothing more can be promised here, once that is so: the spool or the ledger's log has stopped for good. The
    /// journal is not asked: data goes on without it.
    #[must_use]
    pub fn failure(&self) -> Option<std::sync::Arc<str>> {
        self.spool.failure().or_else(|| self.ledger.failure())
    }

    /// Finishes and syncs everything asked for before, then stops the engines. Later calls return `Stopped`.
    pub async fn close(&self) {
        self.spool.close().await;
        self.ledger.close().await;
        self.journal.close().await;
    }
}
