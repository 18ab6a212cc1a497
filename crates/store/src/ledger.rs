//! The handle of the ledger's log: bytes appended in order and read back at the next start. What they mean is the
//! business of whoever keeps the account.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{mpsc, oneshot};

use crate::error::StoreError;

/// Appends that may wait to be written.
pub(crate) const COMMANDS_MAX: usize = 4096;

/// Keeps the ledger's records. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LedgerLog {
    commands: mpsc::Sender<Command>,
    shared: Arc<LedgerShared>,
}

impl LedgerLog {
    pub(crate) fn new(shared: Arc<LedgerShared>) -> (Self, mpsc::Receiver<Command>) {
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        (Self { commands, shared }, queue)
    }

    /// Appends without waiting; synced about 100 ms later. False (and counted) if too many wait already: the account
    /// must then be told that it is incomplete.
    pub fn append(&self, bytes: Vec<u8>) -> bool {
        let taken = self.commands.try_send(Command::Append { bytes, answer: None }).is_ok();
        if !taken {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Appends; it and everything before it is synced when this returns.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], [`StoreError::Stopped`].
    ///
    /// # Cancel safety
    /// Dropped while waiting, the bytes may or may not have been kept.
    pub async fn append_synced(&self, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.ask(|answer| Command::Append { bytes, answer: Some(answer) }).await
    }

    /// Replaces everything appended before by a snapshot and what came since it was taken; synced when this returns.
    /// After a crash either these or everything they replace is read back.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], [`StoreError::Stopped`]; then everything is as before.
    pub async fn compact(&self, snapshot: Vec<u8>, since: Vec<Vec<u8>>) -> Result<(), StoreError> {
        self.ask(|answer| Command::Compact { snapshot, since, answer }).await
    }

    /// Lazy appends that are not on the disk and never will be.
    #[must_use]
    pub fn lost_total(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Why it stopped for good, once it has: nothing more can be made durable here.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<str>> {
        self.shared.failure.get().cloned()
    }

    /// Bytes of the files: when it is worth a [`Self::compact`].
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.shared.disk_bytes.load(Ordering::Relaxed)
    }

    /// Syncs what was appended before and stops; later calls return `Stopped`.
    pub async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Close { answer }).await.is_ok() {
            let _ = answered.await;
        }
    }

    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), StoreError>>) -> Command,
    ) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        let stopped = || StoreError::Stopped { reason: "the ledger's log is closed".into() };
        self.commands.send(command(answer)).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

/// What the writer is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Append { bytes: Vec<u8>, answer: Option<oneshot::Sender<Result<(), StoreError>>> },
    Compact { snapshot: Vec<u8>, since: Vec<Vec<u8>>, answer: oneshot::Sender<Result<(), StoreError>> },
    Close { answer: oneshot::Sender<()> },
}

/// What handles and the writer share.
#[derive(Debug, Default)]
pub(crate) struct LedgerShared {
    pub(crate) lost: AtomicU64,
    pub(crate) disk_bytes: AtomicU64,
    pub(crate) failure: OnceLock<Arc<str>>,
}
