//! The handle of the spool: what the rest of the node calls. The engine behind it owns the files and decides nothing
//! that `core::spool` could.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use seawall_core::id::RecordId;
use seawall_core::spool::index::{
    Depth, Known, LAST_WORDS_BYTES_MAX, Lease, Outcome, Parked, REASON_BYTES_MAX, Settled, cut,
};
use seawall_core::spool::replica::{Line, Look, Want};
use seawall_core::spool::wire::DecodeError;
use seawall_core::spool::{KeyHash, LaneKey, NewRecord, State, Terms};
use seawall_core::time::Wall;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::embedded::entry::SpoolEntry;
use crate::error::{EnqueueError, NotReplicated, StoreError};
use crate::jetstream::shipper::{Ask, ReplicaStatus};
use crate::wrap::Wrap;

/// Commands that may wait for the engine: a few batches. Beyond it callers wait their turn.
pub(crate) const COMMANDS_MAX: usize = 4096;

/// A record was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// Its number.
    pub id: RecordId,
    /// True if it had been kept before under the same key, with the same payload.
    pub already: bool,
}

/// A record to deliver now.
#[derive(Debug)]
pub struct Leased {
    /// The right to do so: give it back with [`Spool::ack`], [`Spool::nack`], [`Spool::release`] or [`Spool::park`].
    pub lease: Lease,
    /// What to send.
    pub record: NewRecord,
    /// Tries so far, this one not counted.
    pub attempts: u32,
    /// Why the last of them failed.
    pub last_error: String,
}

/// A record whose time was over, and which was given up for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Its number.
    pub id: RecordId,
    /// What it was.
    pub record: NewRecord,
    /// Tries that were made.
    pub attempts: u32,
}

/// A record that has not left, or was given up or handed over and is remembered, as [`Spool::visit_held`] shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRecord<'a> {
    /// Its number.
    pub id: RecordId,
    /// Where it is in its life.
    pub state: State,
    /// The `Seawall-Record` header it is delivered with.
    pub ledger: Option<&'a str>,
}

/// What one segment holds.
#[derive(Debug, Default)]
pub(crate) struct HeldPage {
    pub(crate) records: Vec<(RecordId, State, Option<String>)>,
    /// The segment to ask for next.
    pub(crate) next: Option<u32>,
}

/// What a letter to a replica says of records, and the entries that say it.
#[derive(Debug, Default)]
pub(crate) struct Letter {
    pub(crate) lines: Vec<Line>,
    /// Entries of the spool's log, records neither packed nor sealed.
    pub(crate) entries: Vec<Vec<u8>>,
    /// Numbers below this were given out.
    pub(crate) next_id: u64,
    /// Records that cannot be read here: the stream keeps what it has of them.
    pub(crate) unreadable: u64,
}

/// A record of another spool, as it was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its number there.
    pub id: RecordId,
    /// What is to be delivered.
    pub record: NewRecord,
    /// Tries so far.
    pub attempts: u32,
    /// Why the last of them failed.
    pub last_error: String,
    /// Set for a dead letter, which stays one.
    pub parked: Option<Parked>,
}

impl Orphan {
    /// Of what a spool says of a record; `None` if it has left.
    #[must_use]
    pub fn of(account: Account) -> Option<Self> {
        let Account { id, attempts, last_error, parked, record, .. } = account;
        Some(Self { id, record: record?, attempts, last_error, parked })
    }

    /// Appends its bytes, those of a *moved* entry of the spool's log.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut record = Vec::with_capacity(self.record.encoded_len());
        self.record.encode(&mut record);
        let (error, parked) = (self.last_error.as_str(), self.parked.clone());
        SpoolEntry::Moved { id: self.id, attempts: self.attempts, error, parked, record: &record }.encode(out);
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        match SpoolEntry::decode(bytes)? {
            SpoolEntry::Moved { id, attempts, error, parked, record } => {
                Ok(Self { id, record: NewRecord::decode(record)?, attempts, last_error: error.into(), parked })
            }
            _ => Err(DecodeError::Invalid("not a record of another spool")),
        }
    }
}

/// What [`Spool::lease`] found.
#[derive(Debug, Default)]
pub struct Leases {
    /// Records to deliver now, at most as many as asked for.
    pub leased: Vec<Leased>,
    /// How long until more can be leased: zero if at once, `None` if nothing waits for a time. New work is told by
    /// [`WorkSignal`].
    pub ready_in: Option<Duration>,
}

/// Everything known of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its number.
    pub id: RecordId,
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
    /// The record itself; `None` once settled.
    pub record: Option<NewRecord>,
}

/// How full the spool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolDepth {
    /// Records that wait.
    pub waiting: u64,
    /// Records somebody tries to deliver.
    pub leased: u64,
    /// Dead letters.
    pub parked: u64,
    /// Bytes of all of these.
    pub bytes: u64,
    /// What [`Self::bytes`] may be.
    pub bytes_max: u64,
    /// Bytes of the files.
    pub disk_bytes: u64,
    /// When the oldest that is waiting or leased was accepted: exactly where that is the first by number, or else
    /// within a second.
    pub oldest: Option<Wall>,
    /// True while the disk has no room for another record.
    pub disk_full: bool,
    /// Idempotency keys forgotten before their time because there were too many.
    pub keys_forgotten_early_total: u64,
}

/// Keeps writes until they are delivered. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Spool {
    commands: mpsc::Sender<Command>,
    shared: Arc<SpoolShared>,
}

impl Spool {
    pub(crate) fn new(shared: Arc<SpoolShared>) -> (Self, mpsc::Receiver<Command>) {
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        (Self { commands, shared }, queue)
    }

    /// Keeps a record; it is on the disk, synced, when this returns. A record whose idempotency key is known is not
    /// kept twice: the same fingerprint gives the first record's number, another one is a conflict.
    ///
    /// # Errors
    /// [`EnqueueError`]; nothing was kept, except that [`EnqueueError::Stopped`] leaves it open.
    ///
    /// # Cancel safety
    /// Dropped while waiting, the record may or may not have been kept; the same key asks again.
    pub async fn enqueue(&self, record: &NewRecord) -> Result<Enqueued, EnqueueError> {
        self.enqueue_within(record, None).await
    }

    /// As [`Self::enqueue`], if the records of its route then take no more than so many bytes.
    ///
    /// # Errors
    /// [`EnqueueError`].
    pub async fn enqueue_within(
        &self,
        record: &NewRecord,
        route_bytes_max: Option<u64>,
    ) -> Result<Enqueued, EnqueueError> {
        self.send_draft(record, |draft| RecordDraft { route_bytes_max, ..draft }).await
    }

    /// Takes in a record of a spool whose node is gone, with what was known of it there; synced. Its idempotency key
    /// tells whether it was taken in before. Its stamp, if it has one, is one that this node vouches for.
    ///
    /// # Errors
    /// [`EnqueueError`].
    pub async fn adopt(&self, orphan: Orphan) -> Result<Enqueued, EnqueueError> {
        let Orphan { record, attempts, last_error, parked, .. } = orphan;
        let last_error = cut(&last_error, REASON_BYTES_MAX).to_owned();
        let parked = parked.map(|parked| Parked {
            reason: cut(&parked.reason, REASON_BYTES_MAX).into(),
            last_words: cut(&parked.last_words, LAST_WORDS_BYTES_MAX).into(),
            at: parked.at,
        });
        let adopt = |draft| RecordDraft { attempts, first_failure: last_error, adopted: Some(parked), ..draft };
        self.send_draft(&record, adopt).await
    }

    async fn send_draft(
        &self,
        record: &NewRecord,
        with: impl FnOnce(RecordDraft) -> RecordDraft,
    ) -> Result<Enqueued, EnqueueError> {
        let bytes = record.encoded_len() as u64;
        let limit_bytes = self.shared.record_bytes_max;
        if bytes > limit_bytes {
            return Err(EnqueueError::TooLarge { bytes, limit_bytes });
        }
        let draft = Box::new(with(RecordDraft::of(record, &self.shared.wrap)));
        let (answer, answered) = oneshot::channel();
        let stopped = || EnqueueError::Stopped { reason: self.shared.stop_reason() };
        self.commands.send(Command::Enqueue { draft, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    /// Shows every record that has not left, and those given up whose bytes are still there, segment by segment:
    /// nothing but one segment's is in memory. One that moves meanwhile may be shown twice.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Stopped`].
    pub async fn visit_held(&self, mut visit: impl FnMut(HeldRecord<'_>)) -> Result<(), StoreError> {
        let mut from = 0;
        loop {
            let page = self.ask(|answer| Command::Held { from, answer }).await??;
            for (id, state, ledger) in page.records {
                visit(HeldRecord { id, state, ledger: ledger.as_deref() });
            }
            let Some(next) = page.next else { return Ok(()) };
            from = next;
        }
    }

    /// Gives up to `max` records of an upstream up that wait and whose time is over; synced when this returns.
    ///
    /// # Errors
    /// [`StoreError::Stopped`].
    pub async fn expire(&self, upstream: &str, max: usize) -> Result<Vec<Expired>, StoreError> {
        let upstream = upstream.to_owned();
        self.ask(|answer| Command::Expire { upstream, max, answer }).await
    }

    /// Hands out up to `max` records of an upstream for `lease_for`: the first of every order key, those that became
    /// ready first. Whoever holds the returned leases is alone with these records until then.
    ///
    /// # Errors
    /// [`StoreError::Stopped`].
    ///
    /// # Cancel safety
    /// Dropped while waiting, leases may be lost until they expire.
    pub async fn lease(&self, upstream: &str, max: usize, lease_for: Duration) -> Result<Leases, StoreError> {
        let upstream = upstream.to_owned();
        self.ask(|answer| Command::Lease { upstream, max, lease_for, answer }).await
    }

    /// The upstream took it, with this status; synced when this returns. False if the lease had expired and the record
    /// is no longer the caller's. On a full disk the fact is kept in memory and written when there is room.
    ///
    /// # Errors
    /// [`StoreError::Stopped`].
    pub async fn ack(&self, lease: Lease, status: u16) -> Result<bool, StoreError> {
        self.ask(|answer| Command::Ack { lease, status, answer }).await
    }

    /// The try failed: the record waits again, for at least `not_before` from now, and keeps its place in its row.
    /// False if the lease had expired.
    ///
    /// # Errors
    /// [`StoreError::Stopped`].
    pub async fn nack(&self, lease: Lease, not_before: Duration, error: impl Into<String>) -> Result<bool, StoreError> {
        let error = error.into();
        self.ask(|answer| Command::Nack { lease, not_before, error, answer }).await
    }

    /// Gives a lease back without a try; no attempt is counted. False if the lease had expired.
    ///
    /// # Errors
    /// [`StoreError::Stopped`].
    pub async fn release(&self, lease: Lease) -> Result<bool, StoreError> {
        self.ask(|answer| Command::Release { lease, answer }).await
    }

    /// Makes it a dead letter after a last failed try; synced when this returns. The records behind it in its row go
    /// on without it. False if the lease had expired.
    ///
    /// # Errors
    /// [`StoreError::Stopped`].
    pub async fn park(
        &self,
        lease: Lease,
        reason: impl Into<String>,
        last_words: impl Into<String>,
    ) -> Result<bool, StoreError> {
        let (reason, last_words) = (reason.into(), last_words.into());
        self.ask(|answer| Command::Park { lease, reason, last_words, answer }).await
    }

    /// A dead letter is to be delivered after all, before everything of its row accepted later; synced.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::NotParked`], [`StoreError::Stopped`].
    pub async fn retry(&self, id: RecordId) -> Result<(), StoreError> {
        self.ask(|answer| Command::Retry { id, answer }).await?
    }

    /// A dead letter, or a record that waits, is given up; synced.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::NotHere`], [`StoreError::Stopped`].
    pub async fn discard(&self, id: RecordId, reason: impl Into<String>) -> Result<(), StoreError> {
        let outcome = Outcome::Discarded { reason: reason.into() };
        self.ask(|answer| Command::GiveUp { id, outcome, answer }).await?
    }

    /// Another node has taken in a dead letter, or a record that waits: it is not delivered from here any more; synced.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::NotHere`], [`StoreError::Stopped`].
    pub async fn hand_over(&self, id: RecordId, to: impl Into<String>) -> Result<(), StoreError> {
        let outcome = Outcome::HandedOver { to: to.into() };
        self.ask(|answer| Command::GiveUp { id, outcome, answer }).await?
    }

    /// Everything known of a record; `None` if it never was or is forgotten.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Stopped`].
    pub async fn get(&self, id: RecordId) -> Result<Option<Account>, StoreError> {
        self.ask(|answer| Command::Get { id, answer }).await?
    }

    /// The first `limit` records in a state, or of all that have not left, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Stopped`].
    pub async fn list(&self, state: impl Into<Option<State>>, limit: usize) -> Result<Vec<Account>, StoreError> {
        let state = state.into();
        self.list_above(RecordId(0), state, limit).await
    }

    /// As [`Self::list`], beginning with the first number above one.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Stopped`].
    pub async fn list_above(
        &self,
        id: RecordId,
        state: impl Into<Option<State>>,
        limit: usize,
    ) -> Result<Vec<Account>, StoreError> {
        let state = state.into();
        self.ask(|answer| Command::List { above: id, state, limit, answer }).await?
    }

    /// What is known of an idempotency key.
    ///
    /// # Errors
    /// [`StoreError::Stopped`].
    pub async fn lookup(&self, idempotency_key: &str) -> Result<Option<Known>, StoreError> {
        let key = KeyHash::new(idempotency_key);
        self.ask(|answer| Command::Lookup { key, answer }).await
    }

    /// Finishes what was asked before, syncs and stops; later calls return `Stopped`.
    pub async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Close { answer }).await.is_ok() {
            let _ = answered.await;
        }
    }

    /// How full it is, in all. A few atomic loads.
    #[must_use]
    pub fn depth(&self) -> SpoolDepth {
        self.shared.depth()
    }

    /// How much there is for one upstream.
    #[must_use]
    pub fn depth_of(&self, upstream: &str) -> Depth {
        lock(&self.shared.depths).get(upstream).copied().unwrap_or_default()
    }

    /// How much there is for every upstream that ever had a record here.
    #[must_use]
    pub fn depths(&self) -> Vec<(String, Depth)> {
        lock(&self.shared.depths).iter().map(|(name, depth)| (name.clone(), *depth)).collect()
    }

    /// True while a record of this upstream and order key is waiting or leased: a newer request must queue behind it.
    /// One atomic load while the spool is empty.
    #[must_use]
    pub fn holds_key(&self, upstream: &str, order_key: &[u8]) -> bool {
        self.shared.held.any() && self.shared.held.holds(LaneKey::new(upstream, order_key))
    }

    /// Tells a forwarder when there is something new to look at.
    #[must_use]
    pub fn work_signal(&self) -> WorkSignal {
        WorkSignal(self.shared.work.subscribe())
    }

    /// Bytes of one record at most.
    #[must_use]
    pub fn record_bytes_max(&self) -> u64 {
        self.shared.record_bytes_max
    }

    /// Why the engine has stopped for good, if it has: a failed sync or write. The node should end.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<str>> {
        self.shared.failure.get().cloned()
    }

    /// Returns when the replica has a record that was enqueued here, or what has become of it since.
    ///
    /// # Errors
    /// [`NotReplicated`]; the record is safe here, and goes to the replica when that can be reached.
    ///
    /// # Cancel safety
    /// Safe; the record goes there all the same.
    pub async fn replicated(&self, id: RecordId) -> Result<(), NotReplicated> {
        // Known to be down: nobody waits for what will not come soon.
        if let Some(reason) = self.replica().and_then(|status| status.state.reason().map(Into::into)) {
            return Err(NotReplicated::Down { reason });
        }
        self.ask_replica(Some(id)).await
    }

    /// Returns when the replica has everything that has changed here up to now.
    ///
    /// # Errors
    /// [`NotReplicated`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn all_replicated(&self) -> Result<(), NotReplicated> {
        self.ask_replica(None).await
    }

    async fn ask_replica(&self, id: Option<RecordId>) -> Result<(), NotReplicated> {
        let Some(replica) = self.shared.replica.get() else { return Err(NotReplicated::None) };
        let stopped = || NotReplicated::Down { reason: "the node is stopping".into() };
        let (answer, answered) = oneshot::channel();
        replica.asks.send(Ask { id, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?.map_err(|reason| NotReplicated::Down { reason })
    }

    /// How the replica is; `None` if none is kept.
    #[must_use]
    pub fn replica(&self) -> Option<ReplicaStatus> {
        self.shared.replica.get().map(|replica| replica.status.borrow().clone())
    }

    pub(crate) fn attach_replica(&self, asks: mpsc::Sender<Ask>, status: watch::Receiver<ReplicaStatus>) {
        let attached = self.shared.replica.set(ReplicaDoor { asks, status });
        assert!(attached.is_ok(), "a spool has one replica");
    }

    /// Delivers and takes nothing more: what it holds is another's. The node should end.
    pub(crate) fn give_up(&self, reason: &str) {
        self.shared.fail(reason);
    }

    pub(crate) fn changes(&self) -> &Changes {
        &self.shared.changes
    }

    pub(crate) async fn letter(&self, wants: Vec<Want>, bytes_max: usize) -> Result<Letter, StoreError> {
        self.ask(|answer| Command::Letter { wants, bytes_max, answer }).await
    }

    pub(crate) async fn survey(&self, above: RecordId, max: usize) -> Result<Vec<(RecordId, Look)>, StoreError> {
        self.ask(|answer| Command::Survey { above, max, answer }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let stopped = || StoreError::Stopped { reason: self.shared.stop_reason() };
        self.commands.send(command(answer)).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())
    }
}

/// Wakes a forwarder. Never misses: what arrives between two calls ends the next one at once.
#[derive(Debug)]
pub struct WorkSignal(watch::Receiver<u64>);

impl WorkSignal {
    /// Returns when records were enqueued, retried or freed by their predecessor since the last call; or never, once
    /// the store is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn arrived(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// A record ready for the engine: encoded and hashed by the caller's thread, not by the one writer.
#[derive(Debug)]
pub(crate) struct RecordDraft {
    pub(crate) upstream: String,
    pub(crate) route: String,
    pub(crate) lane: Option<LaneKey>,
    pub(crate) key: KeyHash,
    pub(crate) fingerprint: [u8; 32],
    pub(crate) accepted: Wall,
    pub(crate) attempts: u32,
    pub(crate) first_failure: String,
    pub(crate) terms: Terms,
    pub(crate) route_bytes_max: Option<u64>,
    /// Set for an orphan; and what it says as a dead letter, if it is one.
    pub(crate) adopted: Option<Option<Parked>>,
    pub(crate) bytes: Vec<u8>,
}

impl RecordDraft {
    pub(crate) fn of(record: &NewRecord, wrap: &Wrap) -> Self {
        let mut bytes = Vec::with_capacity(record.encoded_len());
        record.encode(&mut bytes);
        Self {
            upstream: record.upstream.clone(),
            route: record.route.clone(),
            lane: record.lane(),
            key: record.key(),
            fingerprint: record.fingerprint,
            accepted: record.accepted,
            attempts: record.attempts,
            first_failure: record.first_failure.clone(),
            terms: record.terms,
            route_bytes_max: None,
            adopted: None,
            bytes: wrap.wrap(bytes),
        }
    }
}

/// What the engine is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Enqueue {
        draft: Box<RecordDraft>,
        answer: oneshot::Sender<Result<Enqueued, EnqueueError>>,
    },
    Lease {
        upstream: String,
        max: usize,
        lease_for: Duration,
        answer: oneshot::Sender<Leases>,
    },
    Ack {
        lease: Lease,
        status: u16,
        answer: oneshot::Sender<bool>,
    },
    Nack {
        lease: Lease,
        not_before: Duration,
        error: String,
        answer: oneshot::Sender<bool>,
    },
    Release {
        lease: Lease,
        answer: oneshot::Sender<bool>,
    },
    Park {
        lease: Lease,
        reason: String,
        last_words: String,
        answer: oneshot::Sender<bool>,
    },
    Retry {
        id: RecordId,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    GiveUp {
        id: RecordId,
        outcome: Outcome,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    Expire {
        upstream: String,
        max: usize,
        answer: oneshot::Sender<Vec<Expired>>,
    },
    Get {
        id: RecordId,
        answer: oneshot::Sender<Result<Option<Account>, StoreError>>,
    },
    List {
        above: RecordId,
        state: Option<State>,
        limit: usize,
        answer: oneshot::Sender<Result<Vec<Account>, StoreError>>,
    },
    Held {
        from: u32,
        answer: oneshot::Sender<Result<HeldPage, StoreError>>,
    },
    Lookup {
        key: KeyHash,
        answer: oneshot::Sender<Option<Known>>,
    },
    /// What a replica is to be told of these, up to so many bytes of it.
    Letter {
        wants: Vec<Want>,
        bytes_max: usize,
        answer: oneshot::Sender<Letter>,
    },
    /// The next records and remembered keys above a number.
    Survey {
        above: RecordId,
        max: usize,
        answer: oneshot::Sender<Vec<(RecordId, Look)>>,
    },
    Close {
        answer: oneshot::Sender<()>,
    },
}

/// What handles see without asking the engine.
#[derive(Debug)]
pub(crate) struct SpoolShared {
    pub(crate) record_bytes_max: u64,
    pub(crate) bytes_max: u64,
    pub(crate) wrap: Wrap,
    waiting: AtomicU64,
    leased: AtomicU64,
    parked: AtomicU64,
    bytes: AtomicU64,
    disk_bytes: AtomicU64,
    /// Milliseconds; `u64::MAX` for none.
    oldest: AtomicU64,
    forgotten_early: AtomicU64,
    disk_full: AtomicBool,
    depths: Mutex<BTreeMap<String, Depth>>,
    pub(crate) held: HeldLanes,
    pub(crate) changes: Changes,
    replica: OnceLock<ReplicaDoor>,
    work: watch::Sender<u64>,
    failure: OnceLock<Arc<str>>,
}

impl SpoolShared {
    pub(crate) fn new(bytes_max: u64, record_bytes_max: u64) -> Self {
        Self {
            record_bytes_max,
            bytes_max,
            wrap: Wrap::none(),
            waiting: AtomicU64::new(0),
            leased: AtomicU64::new(0),
            parked: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(0),
            oldest: AtomicU64::new(u64::MAX),
            forgotten_early: AtomicU64::new(0),
            disk_full: AtomicBool::new(false),
            depths: Mutex::default(),
            held: HeldLanes::default(),
            changes: Changes::default(),
            replica: OnceLock::new(),
            work: watch::Sender::new(0),
            failure: OnceLock::new(),
        }
    }

    pub(crate) fn depth(&self) -> SpoolDepth {
        let oldest = self.oldest.load(Ordering::Relaxed);
        SpoolDepth {
            waiting: self.waiting.load(Ordering::Relaxed),
            leased: self.leased.load(Ordering::Relaxed),
            parked: self.parked.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            bytes_max: self.bytes_max,
            disk_bytes: self.disk_bytes.load(Ordering::Relaxed),
            oldest: (oldest != u64::MAX).then(|| Wall::from_millis(oldest)),
            disk_full: self.disk_full.load(Ordering::Relaxed),
            keys_forgotten_early_total: self.forgotten_early.load(Ordering::Relaxed),
        }
    }

    /// The engine's view after a batch.
    pub(crate) fn publish<'a>(&self, depth: &SpoolDepth, upstreams: impl Iterator<Item = (&'a str, Depth)>) {
        self.waiting.store(depth.waiting, Ordering::Relaxed);
        self.leased.store(depth.leased, Ordering::Relaxed);
        self.parked.store(depth.parked, Ordering::Relaxed);
        self.bytes.store(depth.bytes, Ordering::Relaxed);
        self.disk_bytes.store(depth.disk_bytes, Ordering::Relaxed);
        self.oldest.store(depth.oldest.map_or(u64::MAX, Wall::as_millis), Ordering::Relaxed);
        self.forgotten_early.store(depth.keys_forgotten_early_total, Ordering::Relaxed);
        self.disk_full.store(depth.disk_full, Ordering::Relaxed);
        let mut depths = lock(&self.depths);
        for (name, depth) in upstreams {
            match depths.get_mut(name) {
                Some(known) => *known = depth,
                None => _ = depths.insert(name.into(), depth),
            }
        }
    }

    pub(crate) fn announce_work(&self) {
        self.work.send_modify(|count| *count += 1);
    }

    pub(crate) fn fail(&self, reason: &str) {
        let _ = self.failure.set(reason.into());
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    pub(crate) fn stop_reason(&self) -> String {
        self.failure.get().map_or_else(|| "the node is stopping".into(), |reason| reason.to_string())
    }
}

/// How a replica is asked.
#[derive(Debug)]
struct ReplicaDoor {
    asks: mpsc::Sender<Ask>,
    status: watch::Receiver<ReplicaStatus>,
}

/// Which records have changed, for whoever keeps a replica. Nothing is noted while nobody does.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    is_wanted: AtomicBool,
    ids: Mutex<Vec<RecordId>>,
    arrived: Notify,
}

/// Noted changes beyond which doubles are taken out.
const CHANGES_MAX: usize = 1 << 20;

impl Changes {
    /// From now on they are noted.
    pub(crate) fn begin(&self) {
        self.is_wanted.store(true, Ordering::Release);
    }

    pub(crate) fn are_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Acquire)
    }

    /// These have changed, and what they are now is safe here.
    pub(crate) fn note(&self, changed: &mut Vec<RecordId>) {
        if changed.is_empty() {
            return;
        }
        let mut ids = lock(&self.ids);
        ids.append(changed);
        if ids.len() > CHANGES_MAX {
            ids.sort_unstable();
            ids.dedup();
        }
        drop(ids);
        self.arrived.notify_one();
    }

    pub(crate) fn take(&self) -> Vec<RecordId> {
        std::mem::take(&mut lock(&self.ids))
    }

    /// Returns when some have been noted since the last call.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

/// How many live records each lane has, where every thread can ask.
#[derive(Debug, Default)]
pub(crate) struct HeldLanes {
    total: AtomicU64,
    shards: [Mutex<BTreeMap<LaneKey, u64>>; 16],
}

impl HeldLanes {
    pub(crate) fn clear(&self) {
        self.shards.iter().for_each(|shard| lock(shard).clear());
        self.total.store(0, Ordering::Release);
    }

    fn any(&self) -> bool {
        self.total.load(Ordering::Acquire) > 0
    }

    fn shard(&self, lane: LaneKey) -> &Mutex<BTreeMap<LaneKey, u64>> {
        &self.shards[usize::from(lane.0[0] & 15)]
    }

    fn holds(&self, lane: LaneKey) -> bool {
        lock(self.shard(lane)).contains_key(&lane)
    }

    pub(crate) fn add(&self, lane: LaneKey) {
        *lock(self.shard(lane)).entry(lane).or_default() += 1;
        self.total.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn remove(&self, lane: LaneKey) {
        let mut shard = lock(self.shard(lane));
        let count = shard.get_mut(&lane).expect("a lane is removed as often as it was added");
        *count -= 1;
        if *count == 0 {
            shard.remove(&lane);
        }
        self.total.fetch_sub(1, Ordering::Release);
    }
}

/// A panic while holding one of these locks leaves plain numbers behind, which are as good as before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
