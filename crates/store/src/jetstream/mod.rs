//! The replicated engine: what the spool holds, kept a second time in a NATS JetStream, one copy a zone.
//!
//! Local first. A record is synced in the node's own directory, and goes from there to the stream; an answer may wait
//! for the first or for both. The node delivers what it holds whether the stream can be reached or not. The stream is
//! for the day when the directory is gone: a node that starts with an empty one takes over what its former self left
//! there ([`Inherited`]), and what a node that is gone for good left there is taken in by another
//! ([`Inherited::fence`]).
//!
//! Picture a diary and its carbon copies in three towns. One hand writes, page after page; who wants to take over draws
//! a line under the last page, and the old hand, should it come back, finds the line and stops.
//!
//! Invariants: one writer a node, kept by the number of the last message (no clock decides it); what the stream is told
//! is safe at home before; nothing is thrown away there that is not settled, or written out again behind it.

mod diary;
mod heritage;
mod message;
mod port;
mod registry;
pub(crate) mod shipper;
mod stream;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use seawall_core::journal::Entry;
use seawall_core::spool::NewRecord;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::registry::{PRESENT_FOR, REGISTRY_BUCKET};
pub use self::shipper::{ReplicaState, ReplicaStatus};
pub use self::stream::{JOURNAL_STREAM, Password, ReplicaOptions, SPOOL_STREAM};

use self::diary::Diary;
use self::heritage::{Heritage, Restamp, begin, end};
use self::message::{HEAD_BYTES, Incarnation};
use self::port::{Stream, StreamError};
use self::registry::{Claim, Presence, Registry, is_present};
use self::shipper::{Shipper, ShipperParts, is_older, whose};
use self::stream::{JetStream, Purpose};
use crate::Store;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::embedded::Opened;
use crate::embedded::{marks, meta};
use crate::error::OpenError;
use crate::wrap::{SealKeys, Wrap};

/// Bytes of a message that are not its body: our head, and room for the headers.
const HEAD_ROOM_BYTES: usize = HEAD_BYTES + 512;
/// Lives that a node may have had without a word to the replica.
const EPOCHS_SKIPPED: u64 = 1024;
/// Questions that may wait; beyond it callers wait their turn.
const ASKS_MAX: usize = 4096;
/// Why a replica could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// It passes by itself.
    #[error("{0}")]
    Lost(String),
    /// A person must act.
    #[error("{0}")]
    Refused(String),
    /// A message that cannot be understood.
    #[error("message {number} of the replica cannot be understood: {reason}")]
    Message {
        /// Its number in the stream.
        number: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The data directory said no.
    #[error(transparent)]
    Disk(#[from] OpenError),
    /// The spool could not take a record in.
    #[error("cannot write what the replica holds into the data directory: {0}")]
    Restore(String),
}

impl From<StreamError> for ReplicaError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Lost(reason) | StreamError::Full(reason) => Self::Lost(reason),
            StreamError::Refused(reason) | StreamError::Superseded(reason) => Self::Refused(reason),
        }
    }
}

/// A clerk who panics must not look like one who is at work.
struct PanicWatch(watch::Sender<ReplicaStatus>);

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "its thread panicked: see the log".into();
            self.0.send_modify(|status| status.state = ReplicaState::Refused { reason });
        }
    }
}

/// A replica that is being kept. Dropped, nothing more is sent.
#[derive(Debug)]
pub struct Replica {
    status: watch::Receiver<ReplicaStatus>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Replica {
    /// Begins to keep a replica of a store's spool and journal (of the latter as many bytes as the directory may hold),
    /// on a thread of its own, and to say in the registry that this node is there. `facts` are what others may want to
    /// know of it.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn keep(
        store: &Store,
        options: ReplicaOptions,
        seal_keys: Option<&SealKeys>,
        packs: bool,
        journal_bytes_max: u64,
        facts: &BTreeMap<&str, String>,
        clock: impl Clock,
    ) -> std::io::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let wrap = stream_wrap(seal_keys, packs, &options.node);
        let node = options.node.clone();
        let stream = Arc::new(JetStream::new(options.clone(), Purpose::Spool));
        let presence = Presence::new(Registry::new(Arc::clone(&stream)), &node, facts, Arc::clone(&clock));
        let diary = Diary::new(Arc::new(JetStream::new(options, Purpose::Journal)), store, journal_bytes_max);
        let (shipper, status) = shipper(store, stream, wrap, clock);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let watch = PanicWatch(shipper.status());
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("seawall-replica".into()).spawn(move || {
            let _watch = watch;
            runtime.block_on(async {
                tokio::select! {
                    () = shipper.run() => {}
                    () = presence.run() => {}
                    () = diary.run() => {}
                    _ = stopped => {}
                }
            });
            // A name that is being looked up would hold the end back.
            runtime.shutdown_background();
        })?;
        Ok(Self { status, stop: Some(stop), thread: Some(thread) })
    }

    /// How it is, and changes of that.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<ReplicaStatus> {
        self.status.clone()
    }

    /// Sends nothing more. What it does not have yet goes there after the next start; to have it all,
    /// wait for [`crate::Spool::all_replicated`] first.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It said on its own why it panicked, if it did.
            let _ = thread.join();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.end();
    }
}

/// A shipper for a store's spool, whose callers can ask it from now on.
pub(crate) fn shipper<S: Stream>(
    store: &Store,
    stream: S,
    wrap: Wrap,
    clock: Arc<dyn Clock>,
) -> (Shipper<S>, watch::Receiver<ReplicaStatus>) {
    let (ask, asks) = mpsc::channel(ASKS_MAX);
    let status = watch::Sender::new(ReplicaStatus::new());
    let receiver = status.subscribe();
    store.spool.attach_replica(ask, receiver.clone());
    let parts = ShipperParts {
        stream,
        spool: store.spool.clone(),
        clock,
        wrap,
        incarnation: incarnation(&store.secret.0),
        epoch: store.epoch,
        asks,
        status,
    };
    (Shipper::new(parts), receiver)
}

/// Tells a directory from any other, and tells nothing of its secret.
fn incarnation(secret: &[u8; 32]) -> Incarnation {
    let hash = blake3::derive_key("seawall 2026 replica incarnation", secret);
    std::array::from_fn(|at| hash[at])
}

/// How records are sealed and packed in the stream: so that any directory with the key file can open them.
fn stream_wrap(keys: Option<&SealKeys>, packs: bool, node: &str) -> Wrap {
    Wrap::new(keys, &blake3::derive_key("seawall 2026 replica of a node", node.as_bytes()), packs)
}

/// Shows the entries of a node's journal, as far as its replica has them, oldest first; those of a former directory of
/// the node come before those of the one that followed.
///
/// # Errors
/// [`ReplicaError`].
pub async fn read_journal(options: ReplicaOptions, visit: impl FnMut(Entry)) -> Result<(), ReplicaError> {
    diary::read(&Arc::new(JetStream::new(options, Purpose::Journal)), visit).await
}

/// Looks whether the servers can be used, and changes nothing there.
///
/// # Errors
/// [`ReplicaError`].
pub async fn examine_replica(options: ReplicaOptions) -> Result<(), ReplicaError> {
    Ok(JetStream::new(options, Purpose::Spool).examine().await?)
}

/// Marks a directory whose records are another's to deliver: it is not opened again, whether that can be asked or not.
///
/// # Errors
/// [`OpenError`].
pub fn mark_superseded<D: Disk>(disk: &D, dir: &Path, reason: &str) -> Result<(), OpenError> {
    marks::mark(disk, dir, meta::SUPERSEDED, reason)
}

/// Why a directory is not opened again, if [`mark_superseded`] was told.
pub fn superseded_before<D: Disk>(disk: &D, dir: &Path) -> Option<String> {
    marks::words(disk, dir, meta::SUPERSEDED)
}

/// Asks the stream whether what a directory holds is still its own to deliver. `None` if it is, or why not.
///
/// # Errors
/// [`ReplicaError`] if that cannot be asked.
pub async fn superseded(store: &Store, options: ReplicaOptions) -> Result<Option<String>, ReplicaError> {
    let last = Arc::new(JetStream::new(options, Purpose::Spool)).last().await?;
    let ours = incarnation(&store.secret.0);
    if let Some(reason) = is_older(last.as_ref(), ours, store.epoch) {
        return Ok(Some(reason));
    }
    match whose(last, ours) {
        Ok(_) => Ok(None),
        Err(StreamError::Superseded(reason)) => Ok(Some(reason)),
        Err(error) => Err(error.into()),
    }
}

/// True if a directory has never been opened, or only begun to take over what a stream holds.
///
/// # Errors
/// [`OpenError`] if it cannot be looked at.
pub fn is_new<D: Disk>(disk: &D, dir: &Path) -> Result<bool, OpenError> {
    let marked = disk.read(&dir.join(meta::RESTORING)).is_ok();
    Ok(marked || !meta::is_there(disk, dir)?)
}

/// What the stream holds of a node whose directory is gone.
#[derive(Debug)]
pub struct Inherited {
    heritage: Heritage<Arc<JetStream>>,
    registry: Registry,
    node: String,
}

impl Inherited {
    /// Looks what the stream holds of a node.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn look(
        options: ReplicaOptions,
        seal_keys: Option<&SealKeys>,
        packs: bool,
    ) -> Result<Self, ReplicaError> {
        let wrap = stream_wrap(seal_keys, packs, &options.node);
        let node = options.node.clone();
        let stream = Arc::new(JetStream::new(options, Purpose::Spool));
        let registry = Registry::new(Arc::clone(&stream));
        Ok(Self { heritage: Heritage::of(stream, wrap).await?, registry, node })
    }

    /// True if the node that the records belong to is there: watched for as long as it takes to be sure, at most
    /// [`PRESENT_FOR`].
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn is_present(&self, clock: &dyn Clock) -> Result<bool, ReplicaError> {
        Ok(is_present(&self.registry, &self.node, clock).await?)
    }

    /// Does something with the node's records while nobody else does. Given up if that cannot be kept up.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn alone<T>(
        &self,
        who: &str,
        clock: &dyn Clock,
        work: impl Future<Output = T>,
    ) -> Result<T, ReplicaError> {
        let key = format!("adopt.{}", self.node);
        let Some(mut claim) = Claim::take(&self.registry, &key, who, clock).await? else {
            return Err(ReplicaError::Refused(format!("somebody else is taking in the records of `{}`", self.node)));
        };
        let done = tokio::select! {
            done = work => done,
            lost = claim.keep(who, clock) => {
                return Err(ReplicaError::Lost(format!("cannot keep others from `{}`'s records: {lost}", self.node)));
            }
        };
        claim.give_back().await?;
        Ok(done)
    }

    /// True if the stream never had a message of this node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heritage.last.is_none()
    }

    /// The epoch in which a directory that follows must begin ([`crate::StoreOptions::epoch_min`]): far above the last
    /// one in which the node wrote, as it may have lived some more without being heard, so that the numbers of its
    /// account do not come again.
    #[must_use]
    pub fn epoch_min(&self) -> u64 {
        match self.heritage.epoch() {
            0 => 1,
            epoch => epoch + EPOCHS_SKIPPED,
        }
    }

    /// Marks a directory as one that takes over, before it is opened for the first time.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn begin<D: Disk>(&self, disk: &D, dir: &Path) -> Result<(), OpenError> {
        begin(disk, dir)
    }

    /// Every record gets another stamp as it is taken over: the directory it came from had a key of its own.
    #[must_use]
    pub fn restamped_by(self, restamp: impl Fn(&mut NewRecord) + Send + Sync + 'static) -> Self {
        Self { heritage: self.heritage.restamped_by(Restamp(Box::new(restamp))), ..self }
    }

    /// Takes over: writes what the stream holds into the directory just opened, syncs, and only then says in the stream
    /// whose it is now. Returns how many entries there were.
    ///
    /// # Errors
    /// [`ReplicaError`]; the directory can be opened again and goes on.
    pub async fn take_over<D: Disk>(self, opened: &mut Opened<D>, disk: &D, dir: &Path) -> Result<u64, ReplicaError> {
        let restored = self.heritage.take_over(opened).await?;
        end(disk, dir)?;
        Ok(restored)
    }

    /// Marks a directory before it is opened with `OnDamage::Quarantine`: what it turns out to have lost is taken from
    /// the replica, in this start or the next.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn begin_fill<D: Disk>(disk: &D, dir: &Path) -> Result<(), OpenError> {
        marks::mark(disk, dir, meta::FILLING, "")
    }

    /// True if a directory is marked by [`Self::begin_fill`].
    pub fn is_filling<D: Disk>(disk: &D, dir: &Path) -> bool {
        disk.read(&dir.join(meta::FILLING)).is_ok()
    }

    /// Takes in what the replica has and a damaged directory has lost: records that wait or are parked there and are
    /// not known here at all. Returns how many.
    ///
    /// # Errors
    /// [`ReplicaError`]; the same can be done again.
    pub async fn fill<D: Disk>(&self, opened: &mut Opened<D>) -> Result<u64, ReplicaError> {
        self.heritage.fill(opened).await
    }

    /// A directory has what it lost, or had lost nothing.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn end_fill<D: Disk>(disk: &D, dir: &Path) -> Result<(), OpenError> {
        marks::unmark(disk, dir, meta::FILLING)
    }

    /// True if all of it is another's already: a line was drawn.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.heritage.is_fenced()
    }

    /// Draws a line under what the stream holds: the node it belongs to writes no more, and says why. Drawn before, it
    /// stays.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn fence(&mut self, words: &str) -> Result<(), ReplicaError> {
        self.heritage.fence(words).await
    }

    /// Writes what lies above the line into a directory just opened, and syncs it. Returns how many entries there were.
    ///
    /// # Errors
    /// [`ReplicaError`]; the same can be done again, into a new directory.
    pub async fn copy_into<D: Disk>(&self, opened: &mut Opened<D>) -> Result<u64, ReplicaError> {
        self.heritage.copy_into(opened).await
    }

    /// All of it is somewhere else now: what lies above the line is thrown away.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn clear(self) -> Result<(), ReplicaError> {
        self.heritage.clear().await
    }
}

#[cfg(test)]
mod tests;
