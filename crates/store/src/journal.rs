//! The handle of the journal: facts are numbered at once and written soon after. Nobody ever waits for it, and a
//! journal that cannot be written never stops the node: what is lost is counted, and told by an entry when it can be.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use seawall_core::journal::chain::{Anchor, Verified};
use seawall_core::journal::{Draft, Entry, Kind, Seq};
use seawall_core::time::Wall;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

use crate::clock::Clock;
use crate::error::StoreError;
use crate::spool::lock;

/// Entries kept in memory for quick answers.
pub const TAIL_ENTRIES_MAX: usize = 4096;
/// Entries that may wait to be written; beyond it they are dropped from the disk (not from the tail) and counted.
pub const QUEUE_ENTRIES_MAX: usize = 4096;
/// Entries a slow subscriber may lag behind before it misses some.
pub const SUBSCRIBER_LAG_MAX: usize = 1024;

/// Which entries to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Only entries with a higher number; 0 for all.
    pub after: u64,
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Only this subject.
    pub subject: Option<String>,
    /// Only entries that this one led to, directly.
    pub cause: Option<Seq>,
    /// Only what was seen at this time or later. Clocks jump: every entry's own time is asked.
    pub since: Option<Wall>,
    /// Only what was seen before this time.
    pub until: Option<Wall>,
    /// At most so many.
    pub limit: usize,
    /// The newest of those that match; otherwise the oldest. They come oldest first either way.
    pub newest: bool,
}

impl Query {
    /// True for an entry that was asked for.
    #[must_use]
    pub fn matches(&self, entry: &Entry) -> bool {
        entry.seq.0 > self.after
            && self.kind.is_none_or(|kind| kind == entry.kind)
            && self.subject.as_ref().is_none_or(|subject| *subject == entry.subject)
            && self.cause.is_none_or(|cause| entry.cause == Some(cause))
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
    }
}

/// What a query has found so far.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    query: &'a Query,
    entries: VecDeque<Entry>,
}

impl<'a> Found<'a> {
    pub(crate) const fn new(query: &'a Query) -> Self {
        Self { query, entries: VecDeque::new() }
    }

    /// Takes an entry, if it is wanted. They come in the order of their numbers.
    pub(crate) fn take(&mut self, entry: &Entry) {
        let Query { limit, newest, .. } = *self.query;
        if limit == 0 || (!newest && self.entries.len() == limit) || !self.query.matches(entry) {
            return;
        }
        if self.entries.len() == limit {
            self.entries.pop_front();
        }
        self.entries.push_back(entry.clone());
    }

    pub(crate) fn into_entries(self) -> Vec<Entry> {
        self.entries.into()
    }
}

/// Records facts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<JournalShared>,
    commands: mpsc::Sender<Command>,
}

impl Journal {
    pub(crate) fn new(shared: Arc<JournalShared>) -> (Self, mpsc::Receiver<Command>) {
        let (commands, queue) = mpsc::channel(64);
        (Self { shared, commands }, queue)
    }

    /// Records a fact and returns its number at once. It is on the disk about 100 ms later; if it cannot be, it is
    /// counted in [`Self::dropped_total`] and the node goes on.
    pub fn record(&self, draft: Draft) -> Seq {
        self.shared.record(draft)
    }

    /// The newest `count` entries, oldest of them first; at most [`TAIL_ENTRIES_MAX`].
    #[must_use]
    pub fn recent(&self, count: usize) -> Vec<Arc<Entry>> {
        let state = lock(&self.shared.state);
        let skip = state.tail.len().saturating_sub(count);
        state.tail.iter().skip(skip).cloned().collect()
    }

    /// Entries that match, oldest first, from memory if they are there and from the segments if not.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Stopped`].
    pub async fn query(&self, query: Query) -> Result<Vec<Entry>, StoreError> {
        if let Some(found) = self.shared.query_tail(&query) {
            return Ok(found);
        }
        self.ask(|answer| Command::Query { query, answer }).await?
    }

    /// Walks along the whole chain on the disk: whether any entry was changed, taken out, put in or moved. An anchor,
    /// kept from an earlier walk, shows as well whether the end was cut off.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Stopped`].
    pub async fn verify(&self, anchor: Option<Anchor>) -> Result<Verified, StoreError> {
        self.ask(|answer| Command::Verify { anchor, answer }).await?
    }

    /// Entries as they are recorded, from now on. A receiver that lags more than [`SUBSCRIBER_LAG_MAX`] entries
    /// misses some and is told how many.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Entry>> {
        self.shared.live.subscribe()
    }

    /// Number of the newest entry; `None` before the first.
    #[must_use]
    pub fn last(&self) -> Option<Seq> {
        let next = lock(&self.shared.state).next;
        next.checked_sub(1).filter(|&last| last > 0).map(Seq)
    }

    /// Entries that are missing on the disk because it could not keep up or could not be written.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Bytes of the files.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.shared.disk_bytes.load(Ordering::Relaxed)
    }

    /// Returns when everything recorded before is on the disk, or counted as dropped.
    ///
    /// # Errors
    /// [`StoreError::Stopped`].
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.ask(|answer| Command::Flush { answer }).await
    }

    /// Writes what was recorded before and stops. Entries recorded later stay in memory only.
    pub async fn close(&self) {
        let _ = self.ask(|answer| Command::Close { answer }).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let stopped = || StoreError::Stopped { reason: "the journal is closed".into() };
        self.commands.send(command(answer)).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())
    }
}

/// What the writer is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Query { query: Query, answer: oneshot::Sender<Result<Vec<Entry>, StoreError>> },
    Verify { anchor: Option<Anchor>, answer: oneshot::Sender<Result<Verified, StoreError>> },
    Flush { answer: oneshot::Sender<()> },
    Close { answer: oneshot::Sender<()> },
}

/// What handles and the writer share.
#[derive(Debug)]
pub(crate) struct JournalShared {
    clock: Arc<dyn Clock>,
    state: Mutex<JournalState>,
    live: broadcast::Sender<Arc<Entry>>,
    pub(crate) recorded: Notify,
    dropped: AtomicU64,
    pub(crate) disk_bytes: AtomicU64,
}

#[derive(Debug)]
struct JournalState {
    next: u64,
    tail: VecDeque<Arc<Entry>>,
    queue: VecDeque<Arc<Entry>>,
}

impl JournalShared {
    pub(crate) fn new(clock: Arc<dyn Clock>, next: u64, tail: VecDeque<Arc<Entry>>) -> Self {
        Self {
            clock,
            state: Mutex::new(JournalState { next, tail, queue: VecDeque::new() }),
            live: broadcast::Sender::new(SUBSCRIBER_LAG_MAX),
            recorded: Notify::new(),
            dropped: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn record(&self, draft: Draft) -> Seq {
        let at: Wall = self.clock.wall();
        let mut state = lock(&self.state);
        let seq = Seq(state.next);
        state.next += 1;
        let entry = Arc::new(draft.numbered(seq, at));
        if state.tail.len() == TAIL_ENTRIES_MAX {
            state.tail.pop_front();
        }
        state.tail.push_back(Arc::clone(&entry));
        if state.queue.len() < QUEUE_ENTRIES_MAX {
            state.queue.push_back(Arc::clone(&entry));
        } else {
            self.count_dropped(1);
        }
        // Inside the lock, so that subscribers see the numbers in order; nobody listening is no error.
        let _ = self.live.send(entry);
        drop(state);
        self.recorded.notify_one();
        seq
    }

    pub(crate) fn count_dropped(&self, entries: u64) {
        self.dropped.fetch_add(entries, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn take_queue(&self) -> VecDeque<Arc<Entry>> {
        std::mem::take(&mut lock(&self.state).queue)
    }

    /// Answers from memory; `None` if what was asked for begins before the tail.
    pub(crate) fn query_tail(&self, query: &Query) -> Option<Vec<Entry>> {
        let state = lock(&self.state);
        let first = state.tail.front().map_or(state.next, |entry| entry.seq.0);
        let matching = state.tail.iter().filter(|entry| query.matches(entry));
        let is_whole = first <= 1 || query.after.saturating_add(1) >= first;
        let is_enough = query.newest && matching.clone().count() >= query.limit;
        if !is_whole && !is_enough {
            return None;
        }
        let mut found = Found::new(query);
        matching.for_each(|entry| found.take(entry));
        Some(found.into_entries())
    }

    /// The whole tail, to complete what the segments hold.
    pub(crate) fn tail(&self) -> Vec<Arc<Entry>> {
        lock(&self.state).tail.iter().cloned().collect()
    }
}
