//! The ledger at work: core's account of every record, kept in memory, logged through the store, asked by the gateway
//! for stamps and by the admin side for receipts and seals.
//!
//! What must be durable before it counts is synced first: an epoch before its numbers, a block of numbers before any
//! of them is given out, a batch of receipts before it is acknowledged. What became of a record is logged without
//! waiting; a crash in between leaves it in doubt, and the account says so.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use seawall_control::{BoxFuture, LedgerPort, LedgerRefusal};
use seawall_core::ledger::{
    Applied, ApplyError, Class, Digest, Event, Issuer, Ledger, LedgerKey, Place, Receipts, RecordRef, RefError, Stamp,
    Summary, Verdict,
};
use seawall_core::spool::State;
use seawall_gateway::{Fate, Records};
use seawall_store::{LedgerLog, Spool, Store, StoreError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Numbers reserved at a time: a few seconds of the fastest stream, so that a reservation is never waited for.
const BLOCK: u64 = 4_096;
/// Reservations on their way: one per stream at most.
const RESERVATIONS_MAX: usize = 1_024;
/// The log is replaced by a snapshot when it has grown beyond this.
const LOG_BYTES_MAX: u64 = 32 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// After a reservation that failed.
const RESERVE_AGAIN_AFTER: Duration = Duration::from_millis(200);
const KIND_EVENT: u8 = 0;
const KIND_SNAPSHOT: u8 = 1;

/// The account could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenBookError {
    /// A name that cannot stand in a record's number.
    #[error("the ledger cannot name `{name}`")]
    Name {
        /// The node's or the route's name.
        name: String,
        /// What is wrong with it.
        source: RefError,
    },
    /// The store did not take the first entries.
    #[error("the ledger's log cannot be written")]
    Log(#[from] StoreError),
}

/// The account of one node. Cheap to clone.
#[derive(Clone)]
pub struct Book(Arc<Shared>);

struct Shared {
    books: Mutex<Books>,
    key: LedgerKey,
    producer: String,
    log: LedgerLog,
    reserve: mpsc::Sender<Event>,
    /// Writes that went on without a number because none could be reserved: the account does not cover them.
    unnumbered: AtomicU64,
}

struct Books {
    ledger: Ledger,
    issuers: BTreeMap<String, Issuer>,
}

/// What must run for the account to go on giving out numbers.
pub struct Keeper {
    book: Book,
    reservations: mpsc::Receiver<Event>,
}

impl Book {
    /// Reads the account back, begins a new epoch, and reserves the first numbers of every stream.
    ///
    /// # Errors
    /// [`OpenBookError`].
    pub async fn open(
        store: &Store,
        records: &[Vec<u8>],
        producer: &str,
        streams: impl IntoIterator<Item = String>,
    ) -> Result<(Self, Keeper), OpenBookError> {
        let named = |name: &str| {
            let name = name.to_owned();
            move |source| OpenBookError::Name { name, source }
        };
        let (reserve, reservations) = mpsc::channel(RESERVATIONS_MAX);
        let books = Books { ledger: replay(producer, records).map_err(named(producer))?, issuers: BTreeMap::new() };
        let book = Self(Arc::new(Shared {
            books: Mutex::new(books),
            key: LedgerKey::new(store.secret.0),
            producer: producer.to_owned(),
            log: store.ledger.clone(),
            reserve,
            unnumbered: AtomicU64::new(0),
        }));
        let epoch = book.lock().ledger.next_epoch();
        if let Err(error) = book.keep(&Event::Began { epoch }).await? {
            tracing::error!(%error, "the ledger refused to begin an epoch: nothing will be numbered");
        }
        for stream in streams {
            let issuer = Issuer::new(&*stream, producer, epoch).map_err(named(&stream))?.with_block(BLOCK);
            book.lock().issuers.insert(stream, issuer);
        }
        book.recall(&store.spool).await?;
        book.reserve_all().await?;
        Ok((book.clone(), Keeper { book, reservations }))
    }

    /// Ends the epoch cleanly: numbers that were reserved and never given out are void, not in doubt.
    pub async fn close(&self) {
        let closed: Vec<Event> = {
            let mut books = self.lock();
            let epoch = books.ledger.next_epoch();
            books.issuers.values_mut().filter_map(|issuer| issuer.roll(epoch)).collect()
        };
        for event in closed {
            let _ = self.keep(&event).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an event durable, then counts it.
    async fn keep(&self, event: &Event) -> Result<Result<Applied, ApplyError>, StoreError> {
        self.0.log.append_synced(framed(event)).await?;
        Ok(self.lock().ledger.apply(event))
    }

    /// Counts an event and logs it without waiting, in the same order.
    fn note(&self, event: &Event) {
        let mut books = self.lock();
        if let Err(error) = books.ledger.apply(event) {
            tracing::warn!(%error, "the ledger refused an event");
            return;
        }
        // A log that cannot take it is counted by the store; after a restart the record is in doubt.
        self.0.log.append(framed(event));
    }

    /// What the spool still holds is a promise, even if the crash came before the ledger's log knew.
    async fn recall(&self, spool: &Spool) -> Result<(), StoreError> {
        for (state, to) in [(State::Waiting, Place::Waiting), (State::Parked, Place::Parked)] {
            for account in spool.list(state, usize::MAX).await? {
                let stamp = account.record.and_then(|record| record.ledger?.parse::<Stamp>().ok());
                if let Some(Stamp { record: RecordRef { stream, epoch, seq, .. }, .. }) = stamp {
                    self.note(&Event::Moved { stream, epoch, seq, to });
                }
            }
        }
        Ok(())
    }

    async fn reserve_all(&self) -> Result<(), StoreError> {
        let streams: Vec<String> = self.lock().issuers.keys().cloned().collect();
        for stream in streams {
            let wanted = self.lock().issuers.get_mut(&stream).and_then(Issuer::reservation);
            if let Some(event) = wanted {
                self.reserved(event).await?;
            }
        }
        Ok(())
    }

    async fn reserved(&self, event: Event) -> Result<(), StoreError> {
        let Event::Reserved { stream, .. } = &event else { return Ok(()) };
        let kept = self.keep(&event).await;
        let mut books = self.lock();
        let Some(issuer) = books.issuers.get_mut(stream) else { return Ok(()) };
        match kept {
            Ok(Ok(applied)) => issuer.confirm(&event, applied),
            Ok(Err(error)) => {
                tracing::error!(%error, "the ledger refused a reservation");
                issuer.give_up();
            }
            Err(error) => {
                issuer.give_up();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Replaces the log by what it came to.
    async fn compact(&self) {
        let compacted = {
            let books = self.lock();
            let Ok(snapshot) = serde_json::to_vec(&books.ledger) else { return };
            let log = self.0.log.clone();
            let bytes = [&[KIND_SNAPSHOT], snapshot.as_slice()].concat();
            let mut compacted: Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(async move { log.compact(bytes).await });
            // Asked for under the lock: no event can slip in between the snapshot and its place in the log.
            match compacted.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                std::task::Poll::Ready(done) => Err(done),
                std::task::Poll::Pending => Ok(compacted),
            }
        };
        let done = match compacted {
            Ok(pending) => pending.await,
            Err(done) => done,
        };
        if let Err(error) = done {
            tracing::warn!(%error, "the ledger's log could not be compacted");
        }
    }
}

impl Keeper {
    /// Reserves numbers as they are asked for and keeps the log short, until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_told = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(event) = self.reservations.recv() => {
                    let reserved = self.book.reserved(event).await;
                    if let (Err(error), false) = (&reserved, is_told) {
                        tracing::error!(%error, "no numbers could be reserved for the ledger");
                    }
                    is_told = reserved.is_err();
                    if is_told {
                        tokio::time::sleep(RESERVE_AGAIN_AFTER).await;
                    }
                }
                _ = look.tick() => {
                    if self.book.0.log.disk_bytes() > LOG_BYTES_MAX {
                        self.book.compact().await;
                    }
                }
            }
        }
    }
}

impl Records for Book {
    fn stamp(&self, stream: &str, digest: [u8; 32]) -> Option<String> {
        let mut books = self.lock();
        let issuer = books.issuers.get_mut(stream)?;
        let record = issuer.issue();
        if let Some(event) = issuer.reservation()
            && self.0.reserve.try_send(event).is_err()
        {
            issuer.give_up();
        }
        drop(books);
        if record.is_none() && self.0.unnumbered.fetch_add(1, Relaxed) == 0 {
            tracing::error!(stream, "a write goes on without a number; the ledger's verdict is unknown from here on");
        }
        Some(Stamp::new(&self.0.key, record?, &Digest(digest)).to_string())
    }

    fn settle(&self, stamp: &str, fate: Fate) {
        let Ok(Stamp { record: RecordRef { stream, producer, epoch, seq }, .. }) = stamp.parse() else { return };
        // A record adopted from another node is that node's to account for.
        if producer != self.0.producer {
            return;
        }
        let outcome = |class| Event::Outcome { stream: stream.clone(), epoch, seq, class };
        let moved = |to| Event::Moved { stream: stream.clone(), epoch, seq, to };
        self.note(&match fate {
            Fate::Accepted => outcome(Class::Accepted),
            Fate::Refused => outcome(Class::Refused),
            Fate::Indeterminate => outcome(Class::Indeterminate),
            Fate::Spooled => moved(Place::Waiting),
            Fate::Delivered => moved(Place::Delivered),
            Fate::Parked => moved(Place::Parked),
        });
    }
}

impl LedgerPort for Book {
    fn receipts(&self, batch: Receipts) -> BoxFuture<'_, Result<u64, LedgerRefusal>> {
        Box::pin(async move {
            let count = batch.receipts.len() as u64;
            let invalid = |field, message| LedgerRefusal::Invalid { field, message };
            let judged = batch.verify(&self.0.key).map_err(|error| invalid("receipts", error.to_string()))?;
            let (expected, sent) = (self.lock().ledger.next_batch(&judged.sink), judged.batch);
            if sent > expected {
                return Err(LedgerRefusal::Gap { expected });
            }
            let kept = self.keep(&Event::Receipts(judged)).await;
            match kept.map_err(|error| LedgerRefusal::Unavailable { message: error.to_string() })? {
                Ok(_) => Ok(count),
                Err(ApplyError::Gap { expected, .. }) => Err(LedgerRefusal::Gap { expected }),
                Err(error) => Err(invalid("receipts", error.to_string())),
            }
        })
    }

    fn seal(&self) -> BoxFuture<'_, Result<Summary, LedgerRefusal>> {
        Box::pin(async move {
            let unavailable = |error: StoreError| LedgerRefusal::Unavailable { message: error.to_string() };
            let events = {
                let mut books = self.lock();
                let epoch = books.ledger.next_epoch();
                let closed: Vec<Event> = books.issuers.values_mut().filter_map(|issuer| issuer.roll(epoch)).collect();
                books.ledger.seal_all(closed)
            };
            for event in &events {
                if let Err(error) = self.keep(event).await.map_err(unavailable)? {
                    tracing::warn!(%error, "the ledger refused to seal a stream");
                }
            }
            self.reserve_all().await.map_err(unavailable)?;
            Ok(self.summary())
        })
    }

    fn summary(&self) -> Summary {
        let mut summary = self.lock().ledger.summary();
        if summary.verdict == Verdict::Balanced && self.0.unnumbered.load(Relaxed) > 0 {
            summary.verdict = Verdict::Unknown;
        }
        summary
    }

    fn moved(&self, stamp: &str, to: Place) {
        let Ok(Stamp { record: RecordRef { stream, producer, epoch, seq }, .. }) = stamp.parse() else { return };
        if producer == self.0.producer {
            self.note(&Event::Moved { stream, epoch, seq, to });
        }
    }
}

fn framed(event: &Event) -> Vec<u8> {
    [&[KIND_EVENT], event.encode().as_slice()].concat()
}

/// The account that a log tells. What the ledger refuses changes nothing: replay goes on.
fn replay(producer: &str, records: &[Vec<u8>]) -> Result<Ledger, RefError> {
    let mut ledger = Ledger::new(producer)?;
    for record in records {
        match record.split_first() {
            Some((&KIND_SNAPSHOT, snapshot)) => match serde_json::from_slice(snapshot) {
                Ok(restored) => ledger = restored,
                Err(error) => tracing::error!(%error, "a snapshot of the ledger could not be read"),
            },
            Some((&KIND_EVENT, bytes)) => match Event::decode(bytes) {
                Ok(event) => drop(ledger.apply(&event)),
                Err(error) => tracing::error!(%error, "an entry of the ledger's log could not be read"),
            },
            _ => tracing::error!("an entry of the ledger's log is of no known kind"),
        }
    }
    Ok(ledger)
}
