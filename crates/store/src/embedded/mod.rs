//! The engines behind the handles: three writers on one data directory.

pub(crate) mod entry;
mod journal;
mod ledger;
pub(crate) mod log;
pub(crate) mod marks;
pub(crate) mod meta;
mod segment;
mod spares;
pub(crate) mod spool;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use seawall_core::id::RecordId;
use seawall_core::spool::replica::Replica;
use tokio::sync::mpsc;

use self::journal::JournalEngine;
use self::ledger::LedgerEngine;
use self::log::io_error;
use self::meta::Meta;
use self::spool::{RestoreError, SpoolEngine};
use crate::clock::Clock;
use crate::disk::{Disk, LockError};
use crate::error::OpenError;
use crate::journal::Journal;
use crate::ledger::LedgerLog;
use crate::options::StoreOptions;
use crate::spool::Spool;
use crate::{Secret, Store};

/// Records of one page of a survey.
const SURVEY_RECORDS: usize = 65_536;

/// The lock file of a data directory.
pub(crate) const LOCK_NAME: &str = "LOCK";

/// An open store whose engine does not run yet.
#[derive(Debug)]
pub struct Opened<D: Disk> {
    /// The handles.
    pub store: Store,
    /// What must run for them to work.
    pub engine: Engine<D>,
    /// What was found.
    pub report: RecoveryReport,
    /// The ledger's records since its last snapshot, the snapshot first, in the order appended.
    pub ledger_records: Vec<Vec<u8>>,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// How often this directory has been opened.
    pub epoch: u64,
    /// Records that wait for delivery.
    pub waiting: u64,
    /// One of the two copies of what says whose directory it is was torn, or has rotted: epochs were left out.
    pub meta_is_half: bool,
    /// Dead letters.
    pub parked: u64,
    /// Idempotency keys of settled records that are remembered.
    pub keys: u64,
    /// Entries of logs that could be read and not understood, and were left out.
    pub unreadable: u64,
    /// The spool's log.
    pub spool: LogReport,
    /// The journal's log.
    pub journal: LogReport,
    /// The ledger's log.
    pub ledger: LogReport,
}

impl RecoveryReport {
    /// True if something was found that no crash explains.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.unreadable > 0 || [&self.spool, &self.journal, &self.ledger].iter().any(|log| !log.damaged.is_empty())
    }
}

/// What opening one log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogReport {
    /// Segment files read.
    pub segments: u64,
    /// Records read.
    pub records: u64,
    /// Bytes of a torn tail that were cut: writes no answer had been given for.
    pub torn_bytes: u64,
    /// Damaged files, kept under these names.
    pub damaged: Vec<PathBuf>,
    /// Records known to be lost to damage; batches whose size is unknown count as one.
    pub lost: u64,
}

/// The writers of a store. Run them by [`Self::spawn_threads`] or [`Self::drive`].
#[derive(Debug)]
pub struct Engine<D: Disk> {
    spool: (SpoolEngine<D>, mpsc::Receiver<crate::spool::Command>),
    journal: (JournalEngine<D>, mpsc::Receiver<crate::journal::Command>),
    ledger: (LedgerEngine<D>, mpsc::Receiver<crate::ledger::Command>),
    /// The directory is ours until all of them have stopped.
    lock: Arc<D::Lock>,
}

/// The threads of a running engine.
#[derive(Debug)]
pub struct EngineThreads(Vec<JoinHandle<()>>);

impl<D: Disk> Engine<D> {
    /// Takes in what a replica holds of this node's former directory, in the order it was told. Not yet safe.
    pub(crate) fn restore(&mut self, next_id: u64, entries: &[&[u8]]) -> Result<(), RestoreError> {
        self.spool.0.restore(next_id, entries)
    }

    /// Makes what was restored safe.
    pub(crate) fn end_restore(&mut self) -> Result<(), RestoreError> {
        self.spool.0.end_restore()
    }

    /// Holds what the spool has against what a stream holds.
    pub(crate) fn survey(&self, there: &mut Replica) {
        let mut above = RecordId(0);
        loop {
            let page = self.spool.0.index().survey(above, SURVEY_RECORDS);
            let Some((last, _)) = page.last() else { return };
            above = *last;
            page.into_iter().for_each(|(id, look)| there.survey(id, look));
        }
    }

    /// The number the next record gets.
    pub(crate) const fn next_id(&self) -> u64 {
        self.spool.0.next_id()
    }

    /// Runs each writer on a thread of its own.
    ///
    /// # Errors
    /// If the system has no thread left; writers that have one stop again.
    pub fn spawn_threads(self) -> io::Result<EngineThreads> {
        let Self { spool, journal, ledger, lock } = self;
        Ok(EngineThreads(vec![
            spawn("seawall-spool", spool.0.drive(spool.1), Arc::clone(&lock))?,
            spawn("seawall-journal", journal.0.drive(journal.1), Arc::clone(&lock))?,
            spawn("seawall-ledger", ledger.0.drive(ledger.1), lock)?,
        ]))
    }

    /// Runs the writers in the caller's task, until [`Store::close`] or until every handle is gone. File calls block:
    /// for a simulated disk, or a runtime of its own.
    pub async fn drive(self) {
        let Self { spool, journal, ledger, lock } = self;
        tokio::join!(spool.0.drive(spool.1), journal.0.drive(journal.1), ledger.0.drive(ledger.1));
        drop(lock);
    }
}

impl EngineThreads {
    /// Waits until the writers have stopped: after [`Store::close`], or when every handle is gone.
    pub fn join(self) {
        for thread in self.0 {
            // A writer that panicked has said so on its own; its handles say that it stopped.
            let _ = thread.join();
        }
    }
}

fn spawn<L: Send + Sync + 'static>(
    name: &str,
    work: impl Future<Output = ()> + Send + 'static,
    lock: Arc<L>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name(name.into()).spawn(move || {
        runtime.block_on(work);
        drop(lock);
    })
}

pub(crate) fn open<D: Disk>(
    disk: D,
    options: &StoreOptions,
    clock: Arc<dyn Clock>,
    secret: impl FnOnce() -> [u8; 32],
) -> Result<Opened<D>, OpenError> {
    let dir = &options.dir;
    disk.create_dir_all(dir).map_err(io_error("make folder", dir))?;
    let lock = take_lock(&disk, dir)?;
    // Above the epochs of every directory that the node had before: its numbers are not given out twice, whatever
    // became of that directory. No start takes less than a millisecond.
    let epoch_min = options.epoch_min.max(clock.wall().as_millis());
    let (Meta { epoch, secret, .. }, meta_is_half) = meta::open(&disk, dir, &options.node, epoch_min, secret)?;
    let (spool_engine, found) = SpoolEngine::open(disk.clone(), options, secret, Arc::clone(&clock))?;
    let journal_found = JournalEngine::open(disk.clone(), options, secret, clock)?;
    let ledger_found = LedgerEngine::open(disk.clone(), options, secret)?;
    // The folders of the logs are names too, and so are the directory itself and those above it that were made for it.
    disk.sync_dir(dir).map_err(io_error("sync folder", dir))?;
    disk.sync_above(dir).map_err(io_error("sync the folders above", dir))?;
    let depth = spool_engine.index().depth_total();
    let report = RecoveryReport {
        epoch,
        meta_is_half,
        waiting: depth.waiting,
        parked: depth.parked,
        keys: spool_engine.index().remembered_len() as u64,
        unreadable: found.unreadable + journal_found.unreadable,
        spool: found.log,
        journal: journal_found.log,
        ledger: ledger_found.log,
    };
    let (spool, spool_queue) = Spool::new(spool_engine.shared());
    let (journal, journal_queue) = Journal::new(journal_found.shared);
    let (ledger, ledger_queue) = LedgerLog::new(ledger_found.shared);
    let engine = Engine {
        spool: (spool_engine, spool_queue),
        journal: (journal_found.engine, journal_queue),
        ledger: (ledger_found.engine, ledger_queue),
        lock: Arc::new(lock),
    };
    let store = Store { spool, journal, ledger, epoch, secret: Secret(secret) };
    Ok(Opened { store, engine, report, ledger_records: ledger_found.records })
}

/// True while a running node has the directory.
#[must_use]
pub fn is_in_use<D: Disk>(disk: &D, dir: &Path) -> bool {
    matches!(take_lock(disk, dir), Err(OpenError::InUse { .. }))
}

pub(crate) fn take_lock<D: Disk>(disk: &D, dir: &Path) -> Result<D::Lock, OpenError> {
    let path = dir.join(LOCK_NAME);
    disk.lock(&path).map_err(|error| match error {
        LockError::Held { pid } => OpenError::InUse { dir: dir.into(), pid },
        LockError::Io(error) => io_error("lock", &path)(error),
    })
}
