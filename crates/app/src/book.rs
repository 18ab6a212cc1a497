//! The ledger at work: core's account of every record, kept in memory, logged through the store, asked by the gateway
//! for stamps and by the admin side for receipts and seals.
//!
//! What must be durable before it counts is synced first: an epoch before its numbers, a block of numbers before any
//! of them is given out, a batch of receipts before it is acknowledged. What became of a record is logged without
//! waiting; a crash in between leaves it in doubt, and the account says so.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use seawall_control::{BoxFuture, Foreign, LedgerPort, LedgerRefusal};
use seawall_core::journal::{Draft, Kind};
use seawall_core::ledger::census::{Member, Salt};
use seawall_core::ledger::{
    Applied, ApplyError, CensusTaker, Class, Counted, Digest, Event, Held, IntervalSet, Issuer, Ledger, LedgerKey,
    Place, Recalled, Receipts, RecordRef, RefError, Stamp, Summary,
};
use seawall_core::spool::{NewRecord, State};
use seawall_core::time::Wall;
use seawall_gateway::{Fate, Records};
use seawall_store::{HeldRecord, Journal, LedgerLog, Secret, Spool, Store, StoreError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Numbers reserved at a time: a few seconds of the fastest stream, so that a reservation is never waited for.
const BLOCK: u64 = 4_096;
/// Reservations on their way: one per stream at most.
const RESERVATIONS_MAX: usize = 1_024;
/// The log is replaced by a snapshot when it has grown beyond this, and three times the last snapshot.
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

impl OpenBookError {
    fn named(name: &str) -> impl FnOnce(RefError) -> Self {
        let name = name.to_owned();
        move |source| Self::Name { name, source }
    }
}

/// The account of one node. Cheap to clone.
#[derive(Clone)]
pub struct Book(Arc<Shared>);

/// The time as people write it.
pub type WallClock = Arc<dyn Fn() -> Wall + Send + Sync>;

struct Shared {
    books: Mutex<Books>,
    key: LedgerKey,
    /// What keys are hashed with.
    salt: Salt,
    producer: String,
    log: LedgerLog,
    journal: Journal,
    reserve: mpsc::Sender<Event>,
    wall: WallClock,
    /// The one that numbers are given out in.
    epoch: OnceLock<u64>,
    /// Of the last snapshot: the log is not replaced by what is as long as itself.
    snapshot_bytes: AtomicU64,
}

struct Books {
    ledger: Ledger,
    census: CensusTaker,
    issuers: BTreeMap<String, Issuer>,
    /// Streams with writes that went on without a number, until that is durable.
    unnumbered: BTreeMap<String, Unnumbered>,
    /// Events that are being made durable, and count once they are.
    keeping: BTreeMap<u64, Vec<u8>>,
    next_keeping: u64,
    /// What has counted since a snapshot was taken that is not in the log yet.
    since: Option<Vec<Vec<u8>>>,
}

/// An event on its way to the log. Given up on the way, it counts for nothing.
struct Keeping<'a> {
    book: &'a Book,
    number: u64,
}

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        self.book.lock().keeping.remove(&self.number);
    }
}

#[derive(Clone, Copy)]
struct Unnumbered {
    epoch: u64,
    total: u64,
    durable: u64,
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
        wall: WallClock,
    ) -> Result<(Self, Keeper), OpenBookError> {
        let (reserve, reservations) = mpsc::channel(RESERVATIONS_MAX);
        let book = Self::of(store, records, producer, reserve, wall)?;
        // A directory that follows another one begins far above its epochs.
        let epoch = book.lock().ledger.next_epoch().max(store.epoch);
        if let Err(error) = book.keep(&Event::Began { epoch }).await? {
            tracing::error!(%error, "the ledger refused to begin an epoch: nothing will be numbered");
        }
        let _ = book.0.epoch.set(epoch);
        book.begin_streams(streams, epoch).await?;
        book.recall(&store.spool).await?;
        book.reserve_all().await?;
        Ok((book.clone(), Keeper { book, reservations }))
    }

    /// Gives out numbers for these streams too, from now on; for those it does already nothing changes.
    ///
    /// # Errors
    /// [`OpenBookError`]; streams named before the one it tells of are counted already, which harms nobody.
    pub async fn count_also(&self, streams: impl IntoIterator<Item = String>) -> Result<(), OpenBookError> {
        let Some(epoch) = self.0.epoch.get() else { return Ok(()) };
        let new: Vec<String> = {
            let books = self.lock();
            streams.into_iter().filter(|stream| !books.issuers.contains_key(stream)).collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        self.begin_streams(new, *epoch).await?;
        Ok(self.reserve_all().await?)
    }

    async fn begin_streams(&self, streams: impl IntoIterator<Item = String>, epoch: u64) -> Result<(), OpenBookError> {
        for stream in streams {
            let issuer = Issuer::new(&*stream, &*self.0.producer, epoch).map_err(OpenBookError::named(&stream))?;
            let began = {
                let mut books = self.lock();
                let began = books.census.begin(&stream);
                books.issuers.insert(stream, issuer.with_block(BLOCK));
                began
            };
            if let Err(error) = self.keep(&began).await? {
                tracing::error!(%error, "the ledger does not count the keys of a stream");
            }
        }
        Ok(())
    }

    /// Another node has these records, and keeps their account from now on. Synced.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn handed_over(&self, stamps: impl Iterator<Item = &str>) -> Result<(), StoreError> {
        let mut last = None;
        for number in stamps.filter_map(number_of) {
            let mut books = self.lock();
            let Some(stream) = books.ledger.account_of(&number).map(Cow::into_owned) else { continue };
            let moved = Event::Moved { stream, epoch: number.epoch, seq: number.seq, to: Place::HandedOver };
            self.note_in(&mut books, &moved);
            last = Some(moved);
        }
        self.sync_behind(last).await
    }

    /// Tells the last of some events that were noted once more, to a log that is synced: then all before it are safe.
    async fn sync_behind(&self, last: Option<Event>) -> Result<(), StoreError> {
        match last {
            Some(event) => self.0.log.append_synced(framed(&event)).await,
            None => Ok(()),
        }
    }

    /// Reads a stopped node's account back, to be looked at: no epoch begins and no number is given out.
    ///
    /// # Errors
    /// [`OpenBookError`].
    pub async fn look(store: &Store, records: &[Vec<u8>], producer: &str) -> Result<Self, OpenBookError> {
        let book = Self::of(store, records, producer, mpsc::channel(1).0, Arc::new(Wall::default))?;
        book.recall(&store.spool).await?;
        Ok(book)
    }

    fn of(
        store: &Store,
        records: &[Vec<u8>],
        producer: &str,
        reserve: mpsc::Sender<Event>,
        wall: WallClock,
    ) -> Result<Self, OpenBookError> {
        let ledger = replay(producer, records).map_err(OpenBookError::named(producer))?;
        let census = CensusTaker::new(ledger.next_epoch().max(store.epoch), seconds(wall()));
        let books = Books {
            ledger,
            census,
            issuers: BTreeMap::new(),
            unnumbered: BTreeMap::new(),
            keeping: BTreeMap::new(),
            next_keeping: 0,
            since: None,
        };
        Ok(Self(Arc::new(Shared {
            books: Mutex::new(books),
            key: LedgerKey::new(store.secret.0),
            salt: Salt::of_secret(&store.secret.0),
            producer: producer.to_owned(),
            log: store.ledger.clone(),
            journal: store.journal.clone(),
            reserve,
            wall,
            epoch: OnceLock::new(),
            snapshot_bytes: AtomicU64::new(0),
        })))
    }

    /// Ends the epoch cleanly: numbers that were reserved and never given out are void, not in doubt.
    pub async fn close(&self) {
        let closed: Vec<Event> = {
            let mut books = self.lock();
            let epoch = books.ledger.next_epoch();
            let mut closed: Vec<Event> = books.issuers.values_mut().filter_map(|issuer| issuer.roll(epoch)).collect();
            closed.extend(books.census.end(self.now_s()));
            closed
        };
        for event in closed {
            let _ = self.keep(&event).await;
        }
    }

    fn now_s(&self) -> u64 {
        seconds((self.0.wall)())
    }

    /// Writes down which keys were accepted in the periods that are over.
    fn note_census(&self) {
        let due = self.lock().census.due(self.now_s());
        due.iter().for_each(|event| self.note(event));
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an event durable, then counts it.
    async fn keep(&self, event: &Event) -> Result<Result<Applied, ApplyError>, StoreError> {
        let bytes = framed(event);
        // A snapshot taken meanwhile does not have it, and what the snapshot replaces may: it is written down behind
        // it.
        let keeping = {
            let mut books = self.lock();
            let number = books.next_keeping;
            books.next_keeping += 1;
            books.keeping.insert(number, bytes.clone());
            Keeping { book: self, number }
        };
        self.0.log.append_synced(bytes.clone()).await?;
        let mut books = self.lock();
        let applied = books.ledger.apply(event);
        books.keeping.remove(&keeping.number);
        books.since.iter_mut().for_each(|since| since.push(bytes.clone()));
        drop(books);
        Ok(applied)
    }

    /// Counts an event and logs it without waiting, in the same order.
    fn note(&self, event: &Event) {
        self.note_in(&mut self.lock(), event);
    }

    /// True if it is news.
    fn note_in(&self, books: &mut Books, event: &Event) -> bool {
        match books.ledger.apply(event) {
            Ok(Applied::Changed) => {}
            Ok(Applied::Known) => return false,
            Err(error) => {
                tracing::warn!(%error, "the ledger refused an event");
                return false;
            }
        }
        let bytes = framed(event);
        books.since.iter_mut().for_each(|since| since.push(bytes.clone()));
        // A log that cannot take it is counted by the store; after a restart the record is in doubt.
        self.0.log.append(bytes);
        true
    }

    /// The spool knows better where its records are: it syncs what the ledger's log takes in lazily. What it still
    /// holds is a promise, even if the crash came before the log knew; what it holds no more has left it. If that was
    /// not to the upstream, no sink will report it, and the seal calls it lost.
    async fn recall(&self, spool: &Spool) -> Result<(), StoreError> {
        let mut held = Held::default();
        let visit = |record: HeldRecord<'_>| {
            let Some(number) = record.ledger.and_then(number_of) else { return };
            let account = self.lock().ledger.account_for(&number).into_owned();
            let RecordRef { epoch, seq, .. } = number;
            match record.state {
                State::Parked => held.is_parked(&account, epoch, seq),
                State::Discarded | State::Expired => held.was_given_up(&account, epoch, seq),
                State::HandedOver => held.was_handed_over(&account, epoch, seq),
                _ => held.waits(&account, epoch, seq),
            }
        };
        spool.visit_held(visit).await?;
        // What a former directory of this node numbered, and what was taken in when nobody kept its account.
        let unknown = self.lock().ledger.unknown(&held);
        unknown.iter().for_each(|event| self.note(event));
        let recalled = self.lock().ledger.recall(&held);
        for Recalled { stream, epoch, first, last, to } in recalled {
            for seq in first..=last {
                self.note(&Event::Moved { stream: stream.clone(), epoch, seq, to });
            }
        }
        Ok(())
    }

    fn tell_sealed(&self, summary: &Summary, stream: &str, epoch: u64) {
        let Some(it) = summary.streams.iter().find(|it| it.account() == stream && it.epoch == epoch) else { return };
        let (counts, subject) = (&it.counts, format!("stream:{stream}"));
        let draft = [
            ("accepted", counts.accepted),
            ("delivered", counts.delivered),
            ("lost", counts.lost),
            ("duplicated", counts.duplicated),
            ("corrupted", counts.corrupted),
            ("unnumbered", counts.unnumbered),
        ]
        .into_iter()
        .fold(Draft::new(Kind::LedgerSealed, subject).with("epoch", epoch), |draft, (name, count)| {
            draft.with(name, count)
        });
        self.0.journal.record(draft);
    }

    /// A write goes on without a number: better that than not at all, but the account must say so.
    fn leave_out(&self, stream: &str, epoch: u64) {
        let now = self.now_s();
        let mut books = self.lock();
        books.census.unnumbered(stream, now);
        let none = Unnumbered { epoch, total: 0, durable: 0 };
        let left_out = books.unnumbered.entry(stream.to_owned()).or_insert(none);
        if left_out.epoch != epoch {
            *left_out = none;
        }
        left_out.total += 1;
        let event = Event::Unnumbered { stream: stream.to_owned(), epoch, total: left_out.total };
        let is_first = left_out.total == 1;
        self.note_in(&mut books, &event);
        drop(books);
        if is_first {
            tracing::error!(stream, epoch, "a write goes on without a number; the ledger's verdict stays unknown");
            let draft = Draft::new(Kind::LedgerUnnumbered, format!("stream:{stream}"));
            self.0.journal.record(draft.with("epoch", epoch));
        }
    }

    /// Makes durable what [`Self::leave_out`] noted while the log may have been unable to take it.
    async fn keep_left_out(&self) {
        let pending: Vec<(String, Unnumbered)> = {
            let books = self.lock();
            let pending = books.unnumbered.iter().filter(|(_, it)| it.durable < it.total);
            pending.map(|(stream, it)| (stream.clone(), *it)).collect()
        };
        for (stream, Unnumbered { epoch, total, .. }) in pending {
            let event = Event::Unnumbered { stream: stream.clone(), epoch, total };
            if self.keep(&event).await.is_err() {
                return;
            }
            if let Some(it) = self.lock().unnumbered.get_mut(&stream).filter(|it| it.epoch == epoch) {
                it.durable = total;
            }
        }
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

    /// Replaces the log by what it came to. A day's census of many streams takes a while to write: only the copy is
    /// made under the lock, and what counts meanwhile goes behind it.
    async fn compact(&self) {
        let ledger = {
            let mut books = self.lock();
            books.since = Some(Vec::new());
            books.ledger.clone()
        };
        let snapshot = tokio::task::spawn_blocking(move || serde_json::to_vec(&ledger)).await;
        let compacted = {
            let mut books = self.lock();
            let mut since = books.since.take().unwrap_or_default();
            let Ok(Ok(snapshot)) = snapshot else { return };
            since.extend(books.keeping.values().cloned());
            self.0.snapshot_bytes.store(snapshot.len() as u64, Relaxed);
            let log = self.0.log.clone();
            let bytes = [&[KIND_SNAPSHOT], snapshot.as_slice()].concat();
            let mut compacted: Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(async move { log.compact(bytes, since).await });
            // Asked for under the lock: no event can slip in between what is written behind the snapshot and what the
            // log gets next.
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
                biased;
                () = stop.cancelled() => return,
                // Before the numbers: it comes once in a while, and they may be asked for all the time.
                _ = look.tick() => {
                    self.book.keep_left_out().await;
                    self.book.note_census();
                    if self.book.0.log.disk_bytes() > LOG_BYTES_MAX + 3 * self.book.0.snapshot_bytes.load(Relaxed) {
                        self.book.compact().await;
                    }
                }
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
            }
        }
    }
}

impl Records for Book {
    fn stamp(&self, stream: &str, key: &str, digest: [u8; 32]) -> Option<String> {
        // Hashed before the lock is held.
        let member = Member::of(&self.0.salt, key);
        let mut books = self.lock();
        let issuer = books.issuers.get_mut(stream)?;
        let record = issuer.issue();
        if let Some(event) = issuer.reservation()
            && self.0.reserve.try_send(event).is_err()
        {
            issuer.give_up();
        }
        let epoch = issuer.epoch();
        if let Some(record) = &record {
            books.census.numbered(stream, record.epoch, record.seq, member);
        }
        drop(books);
        if record.is_none() {
            self.leave_out(stream, epoch);
        }
        Some(Stamp::new(&self.0.key, record?, &Digest(digest)).to_string())
    }

    fn settle(&self, stamp: &str, fate: Fate) {
        let Ok(Stamp { record: number, .. }) = stamp.parse() else { return };
        let mut books = self.lock();
        let Some(stream) = books.ledger.account_of(&number).map(Cow::into_owned) else { return };
        let RecordRef { epoch, seq, .. } = number;
        let is_accepted = matches!(fate, Fate::Accepted | Fate::Spooled);
        let outcome = |class| Event::Outcome { stream: stream.clone(), epoch, seq, class };
        let moved = |to| Event::Moved { stream: stream.clone(), epoch, seq, to };
        let event = match fate {
            Fate::Accepted => outcome(Class::Accepted),
            Fate::Refused => outcome(Class::Refused),
            Fate::Indeterminate => outcome(Class::Indeterminate),
            Fate::Spooled => moved(Place::Waiting),
            Fate::Delivered => moved(Place::Delivered),
            Fate::Parked => moved(Place::Parked),
            Fate::Expired => moved(Place::Discarded),
        };
        let now = self.now_s();
        books.census.settled(&stream, epoch, seq, is_accepted, now);
        let is_late = matches!(fate, Fate::Spooled)
            && matches!(books.ledger.apply(&outcome(Class::Accepted)), Ok(Applied::Known));
        // Delivered before whoever spooled it came to say so: it does not wait any more.
        if !is_late {
            self.note_in(&mut books, &event);
        }
    }
}

impl LedgerPort for Book {
    fn receipts(&self, mut batch: Receipts) -> BoxFuture<'_, Result<u64, LedgerRefusal>> {
        Box::pin(async move {
            let count = batch.receipts.len() as u64;
            batch.node = batch.node.filter(|node| *node != self.0.producer);
            let invalid = |field, message| LedgerRefusal::Invalid { field, message };
            let judged = batch.verify(&self.0.key).map_err(|error| invalid("receipts", error.to_string()))?;
            let (expected, sent) = (self.lock().ledger.next_batch(&judged.sink, judged.batch), judged.batch);
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
            let summary = self.summary();
            for event in &events {
                if let Event::Sealed { stream, epoch } = event {
                    self.tell_sealed(&summary, stream, *epoch);
                }
            }
            Ok(summary)
        })
    }

    fn summary(&self) -> Summary {
        self.lock().ledger.summary()
    }

    fn census(&self, stream: &str, since: u64, until: u64) -> Option<Counted> {
        let told = self.lock().census.asked(self.now_s());
        told.iter().for_each(|event| self.note(event));
        self.lock().ledger.census(stream, since, until)
    }

    fn salt(&self) -> Salt {
        self.0.salt
    }

    fn moved(&self, stamp: &str, to: Place) {
        let Ok(Stamp { record: number, .. }) = stamp.parse() else { return };
        let mut books = self.lock();
        let Some(stream) = books.ledger.account_of(&number).map(Cow::into_owned) else { return };
        self.note_in(&mut books, &Event::Moved { stream, epoch: number.epoch, seq: number.seq, to });
    }

    fn adopt(&self, records: Vec<Foreign>) -> BoxFuture<'_, Result<Vec<Option<String>>, LedgerRefusal>> {
        Box::pin(async move {
            let numbers: Vec<Option<RecordRef>> = records.iter().map(|it| number_of(&it.stamp)).collect();
            for event in runs_of(numbers.iter().flatten()) {
                self.keep(&event).await.map_err(unavailable)?.map_err(refused)?;
            }
            let stamped = |(number, it): (Option<RecordRef>, &Foreign)| {
                Some(Stamp::new(&self.0.key, number?, &Digest(it.digest)).to_string())
            };
            Ok(numbers.into_iter().zip(&records).map(stamped).collect())
        })
    }

    fn adopted(&self, records: Vec<(String, Place)>) -> BoxFuture<'_, Result<(), LedgerRefusal>> {
        Box::pin(async move {
            let mut last = None;
            for (stamp, to) in records {
                let mut books = self.lock();
                let Some(number) = number_of(&stamp) else { continue };
                let Some(stream) = books.ledger.account_of(&number).map(Cow::into_owned) else { continue };
                let RecordRef { epoch, seq, .. } = number;
                let accepted = Event::Outcome { stream: stream.clone(), epoch, seq, class: Class::Accepted };
                // Known: it was taken in before, and may have been delivered since.
                if self.note_in(&mut books, &accepted) {
                    self.note_in(&mut books, &Event::Moved { stream, epoch, seq, to });
                }
                last = Some(accepted);
            }
            self.sync_behind(last).await.map_err(unavailable)
        })
    }
}

/// Gives a record of this node's former self the stamp that it goes on under here: its number, and a tag of this
/// directory's.
pub(crate) fn restamp(secret: &Secret) -> impl Fn(&mut NewRecord) + Send + Sync + 'static {
    let key = LedgerKey::new(secret.0);
    move |record| {
        if let Some(number) = record.ledger.as_deref().and_then(number_of) {
            record.restamp(Stamp::new(&key, number, &Digest::of(&record.body)).to_string());
        }
    }
}

fn unavailable(error: StoreError) -> LedgerRefusal {
    LedgerRefusal::Unavailable { message: error.to_string() }
}

fn refused(error: ApplyError) -> LedgerRefusal {
    LedgerRefusal::Invalid { field: "body", message: error.to_string() }
}

fn number_of(stamp: &str) -> Option<RecordRef> {
    let Stamp { record, .. } = stamp.parse().ok()?;
    // Numbers begin at 1: another is none that a node gave.
    (record.seq > 0).then_some(record)
}

/// What the ledger is told of numbers of other nodes.
fn runs_of<'a>(numbers: impl Iterator<Item = &'a RecordRef>) -> Vec<Event> {
    let mut sets: BTreeMap<(&str, &str, u64), IntervalSet> = BTreeMap::new();
    for RecordRef { stream, producer, epoch, seq } in numbers {
        sets.entry((stream, producer, *epoch)).or_default().insert(*seq);
    }
    let adopted = |(stream, producer, epoch): (&str, &str, u64), first, last| {
        let (stream, producer) = (stream.to_owned(), producer.to_owned());
        Event::Adopted { stream, producer, epoch, first, last }
    };
    sets.iter().flat_map(|(of, set)| set.runs().map(move |(first, last)| adopted(*of, first, last))).collect()
}

fn seconds(at: Wall) -> u64 {
    at.as_millis() / 1000
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

#[cfg(test)]
mod tests {
    use seawall_core::ledger::{Receipt, Verdict};
    use seawall_core::spool::{NewRecord, Terms};
    use seawall_core::time::{Mono, Wall};
    use seawall_store::{ClockFn, Opened, Query, SimDisk, StoreOptions};

    use super::*;

    fn opened(disk: &SimDisk) -> Opened<SimDisk> {
        let clock = ClockFn(|| Mono::ZERO, || Wall::from_millis(0));
        Store::open(disk.clone(), StoreOptions::new("data", "n1"), clock, || [7; 32]).unwrap()
    }

    /// A life of a node's books, ended as by kill -9.
    fn life(disk: &SimDisk, live: impl AsyncFnOnce(&Store, &Book)) {
        let Opened { store, engine, ledger_records, .. } = opened(disk);
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            let living = async {
                let (book, keeper) =
                    Book::open(&store, &ledger_records, "n1", ["events".into()], Arc::new(Wall::default))
                        .await
                        .unwrap();
                // Reservations go on for as long as this life does.
                let kept = keeper.run(CancellationToken::new());
                tokio::select! {
                    biased;
                    () = live(&store, &book) => {}
                    () = kept => unreachable!(),
                }
            };
            tokio::select! {
                biased;
                () = living => {}
                () = async { engine.drive().await; std::future::pending().await } => unreachable!(),
            }
        });
    }

    fn record(key: &str, stamp: &str) -> NewRecord {
        NewRecord {
            upstream: "queue".into(),
            route: "events".into(),
            order_key: None,
            idempotency_key: key.into(),
            fingerprint: [0; 32],
            ledger: Some(stamp.into()),
            method: "POST".into(),
            target: "/".into(),
            headers: Vec::new(),
            body: Vec::new(),
            accepted: Wall::from_millis(0),
            first_failure: "timeout".into(),
            attempts: 1,
            terms: Terms::default(),
        }
    }

    #[test]
    fn the_spool_knows_better_where_its_records_are() {
        let disk = SimDisk::new(1);
        life(&disk, async |store, book| {
            let stamps = [1, 2, 3].map(|n| book.stamp("events", &n.to_string(), [n; 32]).unwrap());
            for (key, stamp) in ["a", "b", "c"].into_iter().zip(&stamps) {
                store.spool.enqueue(&record(key, stamp)).await.unwrap();
            }
            // The ledger's log knows of the first two only, and of nothing that came later.
            stamps[..2].iter().for_each(|stamp| book.settle(stamp, Fate::Spooled));
            store.ledger.close().await;
            let mut leases = store.spool.lease("queue", 1, Duration::from_secs(9)).await.unwrap();
            store.spool.ack(leases.leased.remove(0).lease, 200).await.unwrap();
            store.spool.close().await;
        });
        life(&disk.crash(), async |_, book| {
            let totals = book.summary().totals;
            assert_eq!((totals.accepted, totals.waiting, totals.missing_so_far), (3, 2, 1), "the first one has left");
        });
    }

    /// Compacted all the time, while events are made durable, noted, and on their way; killed after any number of them.
    #[test]
    fn a_snapshot_leaves_nothing_out_that_counts_while_it_is_made() {
        for batches in 1..=24 {
            let disk = SimDisk::new(batches);
            life(&disk, async |_, book| {
                let work = async {
                    for batch in 1..=batches {
                        let stamps: Vec<String> = (0..3).filter_map(|_| book.stamp("events", "k", [1; 32])).collect();
                        stamps.iter().for_each(|stamp| book.settle(stamp, Fate::Accepted));
                        assert_eq!(book.receipts(receipts(batch, &stamps)).await, Ok(3));
                    }
                };
                let compacting = async {
                    loop {
                        book.compact().await;
                        tokio::task::yield_now().await;
                    }
                };
                tokio::select! {
                    biased;
                    () = work => {}
                    () = compacting => {}
                }
            });
            life(&disk.crash(), async |_, book| {
                let totals = book.summary().totals;
                assert_eq!((totals.accepted, totals.delivered, totals.phantom), (3 * batches, 3 * batches, 0));
                assert_eq!(book.lock().ledger.next_batch("s", 1), batches + 1);
            });
        }
    }

    fn receipts(batch: u64, stamps: &[String]) -> Receipts {
        let receipt = |stamp: &String| {
            let (record, tag) = stamp.split_once(";tag=").unwrap();
            Receipt { record: record.into(), tag: tag.into(), digest: Digest([1; 32]).to_string() }
        };
        Receipts { sink: "s".into(), node: None, batch, receipts: stamps.iter().map(receipt).collect() }
    }

    #[test]
    fn what_was_delivered_before_it_was_said_to_wait_does_not_wait() {
        life(&SimDisk::new(3), async |_, book| {
            let stamps = [1, 2].map(|n| book.stamp("events", &n.to_string(), [n; 32]).unwrap());
            book.settle(&stamps[0], Fate::Delivered);
            stamps.iter().for_each(|stamp| book.settle(stamp, Fate::Spooled));
            let totals = book.summary().totals;
            assert_eq!((totals.accepted, totals.waiting, totals.missing_so_far), (2, 1, 1));
        });
    }

    #[test]
    fn writes_without_a_number_are_told_until_the_end_of_the_books() {
        let disk = SimDisk::new(2);
        life(&disk, async |store, book| {
            store.ledger.close().await; // No more reservations.
            let given = (0..=BLOCK).take_while(|_| book.stamp("events", "k", [0; 32]).is_some()).count() as u64;
            assert_eq!(given, BLOCK);
            let summary = book.summary();
            assert_eq!((summary.verdict, summary.totals.unnumbered), (Verdict::Unknown, 1));
            let told = store.journal.query(Query { limit: 99, ..Query::default() }).await.unwrap();
            assert_eq!(told.iter().filter(|entry| entry.kind == Kind::LedgerUnnumbered).count(), 1);
        });
        let disk = disk.crash();
        life(&disk, async |store, book| {
            book.leave_out("events", 2);
            book.leave_out("events", 2);
            book.keep_left_out().await;
            assert!(store.ledger.failure().is_none());
        });
        life(&disk.crash(), async |_, book| {
            book.seal().await.unwrap();
            let summary = book.summary();
            assert_eq!((summary.verdict, summary.totals.unnumbered), (Verdict::Unknown, 2), "also after the seal");
        });
    }

    #[test]
    fn a_seal_is_told_to_the_journal() {
        let disk = SimDisk::new(3);
        life(&disk, async |store, book| {
            let stamp = book.stamp("events", "k", [1; 32]).unwrap();
            book.settle(&stamp, Fate::Accepted);
            book.seal().await.unwrap();
            let told = store.journal.query(Query { limit: 99, ..Query::default() }).await.unwrap();
            let sealed: Vec<_> = told.iter().filter(|entry| entry.kind == Kind::LedgerSealed).collect();
            assert_eq!((sealed.len(), sealed[0].subject.as_str()), (1, "stream:events"));
            assert_eq!(sealed[0].fields["accepted"], "1");
        });
    }
}
