//! The writer of the ledger's log: appends, syncs when somebody waits or 100 ms later, and starts over from a snapshot.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::LogReport;
use super::log::{Log, LogError, LogOptions, segment_bytes_for};
use super::segment::{FRAME_BYTES, LogKind};
use crate::disk::Disk;
use crate::error::{OpenError, StoreError};
use crate::ledger::{COMMANDS_MAX, Command, LedgerShared};
use crate::options::StoreOptions;

/// How long a lazy append waits for its sync at most.
const SYNC_EVERY: Duration = Duration::from_millis(100);
/// The first byte of a record of the log.
const RECORD: u8 = 0;
const SNAPSHOT: u8 = 1;

/// The writer. See the module's text.
#[derive(Debug)]
pub(crate) struct LedgerEngine<D: Disk> {
    log: Log<D>,
    shared: Arc<LedgerShared>,
    waiting: Vec<oneshot::Sender<Result<(), StoreError>>>,
    /// Lazy appends in the batch being made.
    lazy: u64,
    has_unsynced: bool,
    is_closing: bool,
}

/// What recovery of the ledger's log found.
#[derive(Debug)]
pub(crate) struct LedgerFound<D: Disk> {
    pub(crate) engine: LedgerEngine<D>,
    pub(crate) shared: Arc<LedgerShared>,
    pub(crate) log: LogReport,
    pub(crate) records: Vec<Vec<u8>>,
}

impl<D: Disk> LedgerEngine<D> {
    pub(crate) fn open(disk: D, options: &StoreOptions, salt_key: [u8; 32]) -> Result<LedgerFound<D>, OpenError> {
        let log_options = LogOptions {
            kind: LogKind::Ledger,
            dir: options.dir.join("ledger"),
            segment_bytes: options.journal_segment_bytes,
            // Where there is little room; a longer record gets a segment that fits.
            segment_bytes_min: segment_bytes_for(2 << 10),
            on_damage: options.on_damage,
            salt_key,
        };
        let mut records = Vec::new();
        let (log, report) = Log::open(disk, log_options, &mut |_, bytes| {
            let Some((kind, bytes)) = bytes.split_first() else { return };
            if *kind == SNAPSHOT {
                records.clear();
            }
            records.push(bytes.to_vec());
        })?;
        let shared = Arc::new(LedgerShared::default());
        shared.disk_bytes.store(log.disk_bytes(), Ordering::Relaxed);
        let engine = Self {
            log,
            shared: Arc::clone(&shared),
            waiting: Vec::new(),
            lazy: 0,
            has_unsynced: false,
            is_closing: false,
        };
        Ok(LedgerFound { engine, shared, log: report, records })
    }

    /// Works until it is told to stop, or every handle is gone.
    pub(crate) async fn drive(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut batch = Vec::new();
        while !self.is_closing {
            let received = commands.recv_many(&mut batch, COMMANDS_MAX);
            let received =
                if self.has_unsynced { tokio::time::timeout(SYNC_EVERY, received).await } else { Ok(received.await) };
            match received {
                Ok(0) => self.is_closing = true,
                Ok(_) => self.run_batch(batch.drain(..)),
                Err(_) => {
                    _ = self.sync();
                    self.publish();
                }
            }
        }
        _ = self.sync();
    }

    /// Carries out a batch of commands, with one sync if anybody waits for it.
    pub(crate) fn run_batch(&mut self, commands: impl IntoIterator<Item = Command>) {
        let mut closed = Vec::new();
        for command in commands {
            match command {
                Command::Append { bytes, answer } => self.append(&bytes, answer),
                Command::Compact { snapshot, since, answer } => {
                    self.commit();
                    _ = answer.send(self.compact(&snapshot, &since).map_err(told));
                }
                Command::Close { answer } => closed.push(answer),
            }
        }
        self.commit();
        if !closed.is_empty() {
            self.is_closing = true;
            _ = self.sync();
        }
        self.publish();
        closed.into_iter().for_each(|answer| _ = answer.send(()));
    }

    fn publish(&self) {
        self.shared.disk_bytes.store(self.log.disk_bytes(), Ordering::Relaxed);
        if let Some(reason) = self.log.failure() {
            _ = self.shared.failure.set(reason.into());
        }
    }

    fn append(&mut self, bytes: &[u8], answer: Option<oneshot::Sender<Result<(), StoreError>>>) {
        let framed = framed(RECORD, bytes);
        if !self.log.fits(framed.len()) {
            // The batch so far belongs to the segment that is full.
            self.commit();
        }
        match (self.log.append(&framed), answer) {
            (Ok(_), Some(answer)) => self.waiting.push(answer),
            (Ok(_), None) => self.lazy += 1,
            (Err(error), Some(answer)) => _ = answer.send(Err(told(error))),
            (Err(_), None) => self.count_lost(1),
        }
    }

    fn commit(&mut self) {
        let (lazy, waiting) = (std::mem::take(&mut self.lazy), std::mem::take(&mut self.waiting));
        let mut done = self.log.write();
        self.has_unsynced |= lazy > 0;
        if done.is_err() {
            self.count_lost(lazy);
        } else if !waiting.is_empty() {
            done = self.sync();
        }
        for answer in waiting {
            _ = answer.send(done.clone().map_err(told));
        }
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.has_unsynced = false;
        self.log.sync()
    }

    /// Everything before the snapshot goes only when the snapshot, and what came since, is safe. These are one batch: a
    /// crash leaves all of it or nothing.
    fn compact(&mut self, snapshot: &[u8], since: &[Vec<u8>]) -> Result<(), LogError> {
        let records: Vec<Vec<u8>> = std::iter::once(framed(SNAPSHOT, snapshot))
            .chain(since.iter().map(|bytes| framed(RECORD, bytes)))
            .collect();
        self.log.roll(records.iter().map(|record| (record.len() + FRAME_BYTES) as u64).sum())?;
        for record in &records {
            self.log.append(record)?;
        }
        self.log.write()?;
        self.log.sync()?;
        self.has_unsynced = false;
        while self.log.front() != self.log.active() {
            self.log.free_front()?;
        }
        self.publish();
        Ok(())
    }

    fn count_lost(&self, appends: u64) {
        self.shared.lost.fetch_add(appends, Ordering::Relaxed);
    }
}

fn framed(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(bytes.len() + 1);
    framed.push(kind);
    framed.extend_from_slice(bytes);
    framed
}

fn told(error: LogError) -> StoreError {
    match error {
        LogError::NoSpace => StoreError::DiskFull,
        LogError::Stopped(reason) => StoreError::Stopped { reason },
    }
}
