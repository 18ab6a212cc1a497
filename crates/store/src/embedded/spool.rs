//! The writer of the spool: takes commands in batches, writes what they say, syncs once, then answers them all.
//!
//! Picture a clerk with a ledger and a card index. Whatever lies in the tray is entered line by line, the cards are
//! turned as he goes, the page is blotted once, and only then is anybody told. What could not be entered for want of
//! paper is taken back out of the index; what was decided elsewhere already (a delivery) is noted on a slip and entered
//! first thing when there is paper again.
//!
//! Invariants: nothing is answered, and nothing is leased, before it is synced. New records are taken only while a
//! spare segment is there, so that acknowledgements always have paper. Segments go from the front, when nothing in
//! them lives; what lives too long is moved forward, so that files take at most twice the live bytes plus four
//! segments.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use seawall_core::id::RecordId;
use seawall_core::spool::index::{
    Admission, Footprint, IndexConfig, Lease, NotHere, NotParked, Outcome, Parked, Settled, View,
};
use seawall_core::spool::replica::{Form, Line, Look, Stage, Want};
use seawall_core::spool::wire::DecodeError;
use seawall_core::spool::{FingerprintHalf, Index, LaneKey, NewRecord, Outline, State, Terms};
use tokio::sync::{mpsc, oneshot};

use super::LogReport;
use super::entry::SpoolEntry;
use super::log::{Log, LogError, LogOptions, Place, segment_bytes_for};
use super::segment::LogKind;
use crate::clock::{Clock, Steady};
use crate::disk::Disk;
use crate::error::{EnqueueError, OpenError, StoreError};
use crate::options::{OnDamage, StoreOptions};
use crate::spool::{
    Account, Command, Enqueued, Expired, HeldPage, Leased, Leases, Letter, Orphan, RecordDraft, SpoolDepth, SpoolShared,
};
use crate::wrap::{UnwrapError, Wrap};

/// Commands taken in one batch: what 4096 producers can have waiting.
const BATCH_MAX: usize = 4096;
/// How often a full disk is asked whether it still is, while nobody else asks.
const FULL_DISK_PROBE: Duration = Duration::from_secs(1);
/// What a remembered key weighs against the segment it is in: the entry that would be moved.
const REMEMBERED_BYTES: u64 = 96;
/// Bookkeeping around a record: its entry, should it be moved with everything known about it.
const ENTRY_OVERHEAD_BYTES: u64 = 2048;
/// Numbers skipped for every damaged segment, more than it can have held: none is ever given twice.
const IDS_SKIPPED: u64 = 1 << 24;

/// Why what a replica holds could not be taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("an entry cannot be understood: {0}")]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What recovery of the spool found.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpoolReport {
    pub(crate) log: LogReport,
    pub(crate) unreadable: u64,
}

/// The writer. See the module's text.
#[derive(Debug)]
pub(crate) struct SpoolEngine<D: Disk> {
    log: Log<D>,
    index: Index<Place>,
    shared: Arc<SpoolShared>,
    clock: Steady,
    record_bytes_max: u64,
    next_id: u64,
    /// Bytes of records that are waiting, leased or parked.
    queued_bytes: u64,
    /// Bytes in each segment that are still needed.
    live: BTreeMap<u32, u64>,
    /// The sum of these: with a long backlog there are thousands.
    live_total: u64,
    batch: Batch,
    /// Entries for which there was no room: facts that hold already and are yet to be written.
    owed: VecDeque<Vec<u8>>,
    is_disk_full: bool,
    /// The oldest segment, if something in it cannot be moved.
    stuck: Option<u32>,
    /// True once the active segment says which numbers were given out.
    has_begin: bool,
    is_closing: bool,
}

/// A writer that panics must not look like one that was asked to stop.
struct PanicWatch(Arc<SpoolShared>);

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the spool's writer panicked: see the log");
        }
    }
}

/// What was staged and not yet committed.
#[derive(Debug, Default)]
struct Batch {
    enqueued: Vec<RecordId>,
    entries: Vec<Vec<u8>>,
    answers: Vec<Answer>,
    /// For whoever keeps a replica.
    changed: Vec<RecordId>,
    /// Rows that a dead letter leaves: held until that is safe, or what is behind it could overtake it.
    left: Vec<LaneKey>,
    needs_sync: bool,
    has_work: bool,
    /// The disk was asked for room already.
    asked_for_room: bool,
}

/// An answer that waits for the sync.
#[derive(Debug)]
enum Answer {
    Enqueued(oneshot::Sender<Result<Enqueued, EnqueueError>>, Enqueued),
    Bool(oneshot::Sender<bool>, bool),
    Expired(oneshot::Sender<Vec<Expired>>, Vec<Expired>),
    Done(oneshot::Sender<Result<(), StoreError>>),
}

impl<D: Disk> SpoolEngine<D> {
    pub(crate) fn open(
        disk: D,
        options: &StoreOptions,
        salt_key: [u8; 32],
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, SpoolReport), OpenError> {
        let segment_bytes_min = segment_bytes_for(options.record_bytes_max + ENTRY_OVERHEAD_BYTES);
        let log_options = LogOptions {
            kind: LogKind::Spool,
            dir: options.dir.join("spool"),
            segment_bytes: options.spool_segment_bytes.max(segment_bytes_min),
            segment_bytes_min,
            on_damage: options.on_damage,
            salt_key,
        };
        let config = IndexConfig {
            remember_for: options.remember_for,
            remember_max: options.remember_max,
            hash_seed: seed_of(salt_key),
        };
        let wrap = Wrap::new(options.seal_keys.as_ref(), &salt_key, options.packs);
        let mut index = Index::new(config);
        let mut replay = Replay { index: &mut index, next_id: 1, misread: Vec::new(), wrap: &wrap, sealed: None };
        let (log, log_report) = Log::open(disk, log_options, &mut |place, bytes| replay.entry(place, bytes))?;
        let mut report = SpoolReport { log: log_report, unreadable: 0 };
        replay.check(&log, options.on_damage, &mut report)?;
        let next_id = replay.next_id;
        let mut shared = SpoolShared::new(options.spool_bytes_max, options.record_bytes_max);
        shared.wrap = wrap;
        let mut engine = Self {
            log,
            index,
            shared: Arc::new(shared),
            clock: Steady::new(clock),
            record_bytes_max: options.record_bytes_max,
            next_id: next_id + IDS_SKIPPED * report.log.damaged.len() as u64,
            queued_bytes: 0,
            live: BTreeMap::new(),
            live_total: 0,
            batch: Batch::default(),
            owed: VecDeque::new(),
            is_disk_full: false,
            stuck: None,
            has_begin: false,
            is_closing: false,
        };
        engine.count_up();
        Ok((engine, report))
    }

    pub(crate) fn shared(&self) -> Arc<SpoolShared> {
        Arc::clone(&self.shared)
    }

    pub(crate) const fn next_id(&self) -> u64 {
        self.next_id
    }

    pub(crate) const fn index(&self) -> &Index<Place> {
        &self.index
    }

    /// Works until it is told to stop, or every handle is gone, or a sync fails.
    pub(crate) async fn drive(mut self, mut commands: mpsc::Receiver<Command>) {
        let _watch = PanicWatch(self.shared());
        let mut batch = Vec::new();
        loop {
            let received = commands.recv_many(&mut batch, BATCH_MAX);
            if self.is_disk_full || !self.owed.is_empty() {
                // No command may ever come to find out that there is room again.
                if let Ok(0) = tokio::time::timeout(FULL_DISK_PROBE, received).await {
                    break;
                }
            } else if received.await == 0 {
                break;
            }
            if !self.run_batch(batch.drain(..)) {
                break;
            }
        }
        self.finish();
    }

    /// Carries out a batch of commands with one sync, and answers them. False when it was the last.
    pub(crate) fn run_batch(&mut self, commands: impl IntoIterator<Item = Command>) -> bool {
        let mut questions = Vec::new();
        let mut closed = Vec::new();
        if self.shared.is_failed() {
            // Stopped from outside: what is here is another's. Nothing more is promised.
            self.is_closing = true;
            return false;
        }
        self.pay_debts();
        for command in commands {
            match command {
                Command::Close { answer } => closed.push(answer),
                command => self.take(command, &mut questions),
            }
        }
        self.commit();
        for question in questions {
            self.answer(question);
        }
        self.commit();
        self.maintain();
        self.publish();
        if !closed.is_empty() {
            self.finish();
            closed.into_iter().for_each(|answer| _ = answer.send(()));
        }
        !self.is_closing
    }

    fn take(&mut self, command: Command, questions: &mut Vec<Command>) {
        match command {
            Command::Enqueue { draft, answer } => self.enqueue(*draft, answer),
            Command::Ack { lease, status, answer } => self.ack(&lease, status, answer),
            Command::Nack { lease, not_before, error, answer } => self.nack(&lease, not_before, &error, answer),
            Command::Release { lease, answer } => {
                let released = self.index.release(&lease);
                self.batch.has_work |= released;
                self.batch.answers.push(Answer::Bool(answer, released));
            }
            Command::Park { lease, reason, last_words, answer } => {
                let parked = self.park(&lease, reason, last_words);
                self.batch.answers.push(Answer::Bool(answer, parked));
            }
            Command::Retry { id, answer } => self.retry(id, answer),
            Command::GiveUp { id, outcome, answer } => self.give_up(id, outcome, answer),
            // Answered after the commit: nobody may see what is not safe yet, and what is not written cannot be read.
            question => questions.push(question),
        }
    }

    fn enqueue(&mut self, draft: RecordDraft, answer: oneshot::Sender<Result<Enqueued, EnqueueError>>) {
        match self.try_enqueue(draft) {
            Ok(enqueued) => self.batch.answers.push(Answer::Enqueued(answer, enqueued)),
            Err(error) => _ = answer.send(Err(error)),
        }
    }

    fn try_enqueue(&mut self, draft: RecordDraft) -> Result<Enqueued, EnqueueError> {
        if let Some(known) = self.index.lookup(draft.key) {
            if known.fingerprint != FingerprintHalf::of(&draft.fingerprint) {
                return Err(EnqueueError::KeyConflict { id: known.id });
            }
            return Ok(Enqueued { id: known.id, already: true });
        }
        let limit_bytes = self.shared.bytes_max;
        if self.queued_bytes + draft.bytes.len() as u64 > limit_bytes {
            return Err(EnqueueError::Full { used_bytes: self.queued_bytes, limit_bytes });
        }
        if let Some(limit_bytes) = draft.route_bytes_max {
            let used_bytes = self.index.route_bytes(&draft.upstream, &draft.route);
            if used_bytes + draft.bytes.len() as u64 > limit_bytes {
                return Err(EnqueueError::RouteFull { route: draft.route, used_bytes, limit_bytes });
            }
        }
        let place = self.stage_record(&draft).map_err(|error| match error {
            LogError::NoSpace => EnqueueError::DiskFull,
            LogError::Stopped(reason) => EnqueueError::Stopped { reason },
        })?;
        let id = RecordId(self.next_id);
        self.next_id += 1;
        let terms = Terms { expires: draft.terms.expires.map(|at| self.clock.moment(at)), ..draft.terms };
        self.index.enqueue(Admission { terms, ..draft.admission(id, place) });
        let parked = draft.adopted.flatten().is_some_and(|parked| self.index.replay_parked(id, parked));
        self.queued_bytes += place.footprint();
        self.weigh(place.segment, place.footprint());
        if let (Some(lane), false) = (self.index.lane(id), parked) {
            self.shared.held.add(lane);
        }
        self.batch.enqueued.push(id);
        self.touch(id);
        self.batch.needs_sync = true;
        self.batch.has_work = true;
        Ok(Enqueued { id, already: false })
    }

    /// Stages a new record, if acknowledgements keep a spare segment for themselves.
    fn stage_record(&mut self, draft: &RecordDraft) -> Result<Place, LogError> {
        self.ensure_room()?;
        if let Some(place) = self.log.stage(|out| draft.entry(self.next_id).encode(out)) {
            return Ok(place);
        }
        self.commit();
        self.roll()?;
        self.batch.asked_for_room = false;
        self.ensure_room()?;
        Ok(self.log.stage(|out| draft.entry(self.next_id).encode(out)).expect("a new segment has room for it"))
    }

    fn ensure_room(&mut self) -> Result<(), LogError> {
        if self.log.has_spare() {
            return Ok(());
        }
        if std::mem::replace(&mut self.batch.asked_for_room, true) {
            return Err(LogError::NoSpace);
        }
        let made = self.log.ensure_spare(self.record_bytes_max + ENTRY_OVERHEAD_BYTES);
        self.is_disk_full = made.is_err();
        made
    }

    fn ack(&mut self, lease: &Lease, status: u16, answer: oneshot::Sender<bool>) {
        let (lane, place) = (self.index.lane(lease.id()), self.index.place(lease.id()));
        let acked = self.index.ack(lease, status, self.clock.steady());
        if let (true, Some(place)) = (acked, place) {
            if let Some(lane) = lane {
                self.shared.held.remove(lane);
                self.batch.has_work = true;
            }
            self.weigh_settled(place);
            self.touch(lease.id());
            self.note_settled(lease.id(), Outcome::Delivered { status });
        }
        self.batch.answers.push(Answer::Bool(answer, acked));
    }

    fn nack(&mut self, lease: &Lease, not_before: Duration, error: &str, answer: oneshot::Sender<bool>) {
        let id = lease.id();
        let waits = self.index.nack(lease, self.clock.mono() + not_before, error);
        if waits {
            self.touch(id);
        }
        if let (true, Some((_, attempts, error))) = (waits, self.index.live(id)) {
            self.batch.has_work = true;
            let entry = SpoolEntry::Failed { id, attempts, error };
            // Lost by a crash it costs a count: no sync, and no room is owed to it on a full disk.
            if !self.is_disk_full {
                _ = self.stage_fact(&entry.to_bytes());
            }
        }
        self.batch.answers.push(Answer::Bool(answer, waits));
    }

    fn park(&mut self, lease: &Lease, reason: String, last_words: String) -> bool {
        let (id, lane) = (lease.id(), self.index.lane(lease.id()));
        let parked = self.index.park(lease, Parked { reason, last_words, at: self.clock.wall() });
        if let (true, Some(View { attempts, parked: Some(kept), .. })) = (parked, self.index.view(id)) {
            if let Some(lane) = lane {
                self.batch.left.push(lane);
            }
            self.batch.has_work = true;
            self.touch(id);
            self.note(&SpoolEntry::Parked { id, attempts, parked: kept });
        }
        parked
    }

    fn retry(&mut self, id: RecordId, answer: oneshot::Sender<Result<(), StoreError>>) {
        if let Err(error) = self.index.retry(id) {
            _ = answer.send(Err(not_parked(id, error)));
            return;
        }
        if let Some(lane) = self.index.lane(id) {
            self.shared.held.add(lane);
        }
        self.batch.has_work = true;
        self.touch(id);
        self.note(&SpoolEntry::Retried { id });
        self.batch.answers.push(Answer::Done(answer));
    }

    fn give_up(&mut self, id: RecordId, outcome: Outcome, answer: oneshot::Sender<Result<(), StoreError>>) {
        let settled = Settled { outcome: outcome.clone(), at: self.clock.steady() };
        let (place, lane, state) = (self.index.place(id), self.index.lane(id), self.index.state(id));
        match (self.index.give_up(id, settled), place) {
            (Ok(()), Some(place)) => {
                if let (Some(State::Waiting), Some(lane)) = (state, lane) {
                    self.batch.left.push(lane);
                    self.batch.has_work = true;
                }
                self.weigh_settled(place);
                self.touch(id);
                self.note_settled(id, outcome);
                self.batch.answers.push(Answer::Done(answer));
            }
            (Ok(()), None) => unreachable!("a record that has not left has a place"),
            (Err(error), _) => _ = answer.send(Err(not_here(id, error))),
        }
    }

    /// In the log is the time as people have set it: after a start there is no other.
    fn note_settled(&mut self, id: RecordId, outcome: Outcome) {
        let settled = Settled { outcome, at: self.clock.wall() };
        self.note(&SpoolEntry::Settled { id, settled });
    }

    /// Settles what waits and is out of its time.
    fn expire(&mut self, upstream: &str, max: usize) -> Vec<Expired> {
        let (at, steady) = (self.clock.wall(), self.clock.steady());
        let mut expired = Vec::new();
        for id in self.index.overdue(upstream, steady, max) {
            self.touch(id);
            let (place, attempts, _) = self.index.live(id).expect("it waits");
            let lane = self.index.lane(id);
            match self.read(id, place) {
                Err(_) if self.log.is_out_of_files() => break,
                // As with a lease: people see it among the dead letters.
                Err(error) => {
                    let parked = Parked { reason: error.to_string(), last_words: String::new(), at };
                    self.index.replay_parked(id, parked.clone());
                    self.note(&SpoolEntry::Parked { id, attempts, parked });
                }
                Ok(record) => {
                    self.index.settle(id, Settled { outcome: Outcome::Expired, at: steady });
                    self.weigh_settled(place);
                    self.note_settled(id, Outcome::Expired);
                    expired.push(Expired { id, record, attempts });
                }
            }
            self.batch.left.extend(lane);
            self.batch.has_work = true;
        }
        expired
    }

    /// A replica is to be told of it, once it is safe here.
    fn touch(&mut self, id: RecordId) {
        if self.shared.changes.are_wanted() {
            self.batch.changed.push(id);
        }
    }

    /// Writes down a fact that holds already: with this batch, or when there is room.
    fn note(&mut self, entry: &SpoolEntry<'_>) {
        self.write_down(entry.to_bytes());
    }

    fn write_down(&mut self, bytes: Vec<u8>) {
        match self.stage_fact(&bytes) {
            Ok(()) => self.batch.entries.push(bytes),
            Err(_) => self.owed.push_back(bytes),
        }
        // Only now: staging may have committed what was staged before, and with it the wish for a sync.
        self.batch.needs_sync = true;
    }

    fn stage_fact(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        if self.log.stage(|out| out.extend_from_slice(bytes)).is_none() {
            self.commit();
            self.roll()?;
            _ = self.log.stage(|out| out.extend_from_slice(bytes)).ok_or(LogError::NoSpace)?;
        }
        Ok(())
    }

    /// First thing in a batch: what is owed.
    fn pay_debts(&mut self) {
        for bytes in std::mem::take(&mut self.owed) {
            self.write_down(bytes);
        }
    }

    /// Begins a new segment and makes it say which numbers were given out: only then may older ones go.
    fn roll(&mut self) -> Result<(), LogError> {
        self.log.roll(self.record_bytes_max + ENTRY_OVERHEAD_BYTES)?;
        self.has_begin = false;
        self.write_begin()
    }

    fn write_begin(&mut self) -> Result<(), LogError> {
        let entry = SpoolEntry::Begin { next_id: self.next_id };
        self.log.stage(|out| entry.encode(out)).ok_or(LogError::NoSpace)?;
        self.log.write()?;
        self.log.sync()?;
        self.has_begin = true;
        Ok(())
    }

    /// Writes and syncs what was staged, then answers.
    fn commit(&mut self) {
        let mut done = self.log.write();
        if self.batch.needs_sync {
            done = done.and_then(|()| self.log.sync());
        }
        let batch = &mut self.batch;
        let (answers, enqueued) = (std::mem::take(&mut batch.answers), std::mem::take(&mut batch.enqueued));
        let (entries, left) = (std::mem::take(&mut batch.entries), std::mem::take(&mut batch.left));
        if !matches!(done, Err(LogError::Stopped(_))) {
            left.into_iter().for_each(|lane| self.shared.held.remove(lane));
        }
        if !matches!(done, Err(LogError::Stopped(_))) {
            // Before anybody is told: who has an answer and asks the replica must not hear of an older state.
            self.shared.changes.note(&mut batch.changed);
        }
        match done {
            Ok(()) => {
                batch.needs_sync = false;
                let has_work = std::mem::take(&mut batch.has_work);
                if has_work || !answers.is_empty() {
                    // Before anybody is told: who has an answer must find it in the depth.
                    self.publish();
                }
                if has_work {
                    self.shared.announce_work();
                }
                answers.into_iter().for_each(Answer::confirm);
            }
            Err(LogError::NoSpace) => {
                self.is_disk_full = true;
                self.owed.extend(entries);
                self.take_back(&enqueued);
                self.publish();
                answers.into_iter().for_each(|answer| answer.refuse(&enqueued));
            }
            // Unanswered: whether these were kept is not known.
            Err(LogError::Stopped(reason)) => self.stop(&reason),
        }
    }

    /// Undoes enqueues that did not reach the disk: their numbers were told to nobody.
    fn take_back(&mut self, enqueued: &[RecordId]) {
        for &id in enqueued.iter().rev() {
            let place = self.index.place(id).expect("enqueued in this batch");
            if let (Some(lane), Some(State::Waiting)) = (self.index.lane(id), self.index.state(id)) {
                self.shared.held.remove(lane);
            }
            self.queued_bytes -= place.footprint();
            self.lighten(place.segment, place.footprint());
            self.index.withdraw(id);
            self.next_id = id.0;
        }
    }

    fn stop(&mut self, reason: &str) {
        self.shared.fail(reason);
        self.is_closing = true;
    }

    fn answer(&mut self, question: Command) {
        if self.shared.is_failed() {
            return;
        }
        match question {
            Command::Lease { upstream, max, lease_for, answer } => self.lease(&upstream, max, lease_for, answer),
            Command::Expire { upstream, max, answer } => {
                let expired = self.expire(&upstream, max);
                self.batch.answers.push(Answer::Expired(answer, expired));
            }
            Command::Get { id, answer } => _ = answer.send(self.account(id)),
            Command::List { above, state, limit, answer } => {
                let ids = self.index.list_above(above, state, limit);
                let accounts = ids.into_iter().filter_map(|id| self.account(id).transpose()).collect();
                _ = answer.send(accounts);
            }
            Command::Held { from, answer } => _ = answer.send(self.held(from)),
            Command::Lookup { key, answer } => _ = answer.send(self.index.lookup(key)),
            Command::Letter { wants, bytes_max, answer } => _ = answer.send(self.letter(&wants, bytes_max)),
            Command::Survey { above, max, answer } => _ = answer.send(self.index.survey(above, max)),
            _ => unreachable!("not a question"),
        }
    }

    fn lease(&mut self, upstream: &str, max: usize, lease_for: Duration, answer: oneshot::Sender<Leases>) {
        let now = self.clock.mono();
        let mut leased = Vec::new();
        for lease in self.index.lease(upstream, max, now, lease_for) {
            let (place, attempts, last_error) = self.index.live(lease.id()).expect("leased just now");
            let last_error = last_error.to_owned();
            match self.read(lease.id(), place) {
                // It is whole, only out of reach for now.
                Err(_) if self.log.is_out_of_files() => _ = self.index.release(&lease),
                Ok(record) => leased.push(Leased { lease, record, attempts, last_error }),
                // It must not block its row, and it must not vanish: people see it among the dead letters.
                Err(error) => _ = self.park(&lease, error.to_string(), String::new()),
            }
        }
        let leases = Leases { leased, ready_in: self.index.ready_in(upstream, now) };
        if let Err(leases) = answer.send(leases) {
            // Nobody waits for it any more: the records are free again at once.
            for Leased { lease, .. } in leases.leased {
                self.index.release(&lease);
                self.batch.has_work = true;
            }
        }
    }

    fn account(&mut self, id: RecordId) -> Result<Option<Account>, StoreError> {
        let Some(view) = self.index.view(id) else { return Ok(None) };
        let record = if view.settled.is_some() { None } else { Some(self.read(id, view.place)?) };
        let View { state, attempts, last_error, parked, settled, expires, .. } = view;
        // One that was retried does not expire any more, whatever its bytes say.
        let record = record.map(|mut record| {
            record.terms.expires = record.terms.expires.filter(|_| expires);
            record
        });
        Ok(Some(Account { id, state, attempts, last_error, parked, settled, record }))
    }

    /// The records of the first segment from a number on that are there or were given up.
    fn held(&self, from: u32) -> Result<HeldPage, StoreError> {
        let mut segments = self.log.segments().skip_while(|&number| number < from);
        let Some(segment) = segments.next() else { return Ok(HeldPage::default()) };
        let mut page = HeldPage { records: Vec::new(), next: segments.next() };
        let mut visit = |place: Place, bytes: &[u8]| {
            let Ok(SpoolEntry::Enqueue { id, record } | SpoolEntry::Moved { id, record, .. }) =
                SpoolEntry::decode(bytes)
            else {
                return;
            };
            let is_here = self.index.place(id) == Some(place);
            let state = self.index.state(id).filter(|state| is_here && *state != State::Delivered);
            if let (Some(state), Ok(plain)) = (state, self.shared.wrap.unwrap(record))
                && let Ok(outline) = Outline::of(&plain)
            {
                page.records.push((id, state, outline.ledger.map(Into::into)));
            }
        };
        let failed =
            |error: io::Error| StoreError::Read { what: format!("segment {segment}"), reason: error.to_string() };
        self.log.visit(segment, &mut visit).map_err(failed)?;
        Ok(page)
    }

    /// What a replica is to be told, of as many as find room.
    fn letter(&mut self, wants: &[Want], bytes_max: usize) -> Letter {
        let mut letter = Letter { next_id: self.next_id, ..Letter::default() };
        let mut bytes = 0;
        for want in wants {
            if bytes >= bytes_max {
                break;
            }
            let Ok((line, entries)) = self.line(*want, &mut letter.unreadable) else { break };
            bytes += entries.iter().map(Vec::len).sum::<usize>();
            letter.lines.push(line);
            letter.entries.extend(entries);
        }
        letter
    }

    /// Fails only where no file can be opened for now.
    fn line(&mut self, want: Want, unreadable: &mut u64) -> Result<(Line, Vec<Vec<u8>>), StoreError> {
        let id = want.id;
        let (Some(look), Some(place)) = (self.index.look(id), self.index.place(id)) else {
            let look = Look { stage: Stage::Settled, attempts: 0 };
            return Ok((Line { id, form: Form::Gone, look }, Vec::new()));
        };
        let whole = if look.stage == Stage::Settled {
            let read = self
                .log
                .read(place)
                .map_err(|error| StoreError::Read { what: id.to_string(), reason: error.to_string() });
            read.map(|bytes| moved(&self.index, &self.shared.wrap, place, &bytes).map(|(_, entry)| entry))
        } else if want.whole {
            self.account(id).map(|account| {
                let mut entry = Vec::new();
                account.and_then(Orphan::of)?.encode(&mut entry);
                Some(entry)
            })
        } else {
            let entries = self.change(id, look.attempts);
            return Ok((Line { id, form: Form::Change, look }, entries));
        };
        match whole {
            Ok(Some(entry)) => {
                let bytes = u32::try_from(entry.len()).expect("a record is below 4 GiB");
                Ok((Line { id, form: Form::Whole { bytes }, look }, vec![entry]))
            }
            Err(error) if self.log.is_out_of_files() => Err(error),
            Ok(None) | Err(_) => {
                *unreadable += 1;
                Ok((Line { id, form: Form::Change, look }, Vec::new()))
            }
        }
    }

    /// What became of a live record since it was written out.
    fn change(&self, id: RecordId, attempts: u32) -> Vec<Vec<u8>> {
        let view = self.index.view(id).expect("it is live");
        match view.parked {
            Some(parked) => vec![SpoolEntry::Parked { id, attempts, parked }.to_bytes()],
            None => {
                let failed = SpoolEntry::Failed { id, attempts, error: &view.last_error };
                let retried = SpoolEntry::Retried { id };
                if view.expires {
                    return vec![retried.to_bytes(), failed.to_bytes()];
                }
                // One that a person asked for after it was parked expires no more, and only a retried dead letter says
                // so.
                let parked = Parked { reason: String::new(), last_words: String::new(), at: self.clock.wall() };
                let parked = SpoolEntry::Parked { id, attempts, parked };
                vec![parked.to_bytes(), retried.to_bytes(), failed.to_bytes()]
            }
        }
    }

    /// Takes in what a replica holds of this node's former directory, in the order it was told. Not yet safe.
    pub(crate) fn restore(&mut self, next_id: u64, entries: &[&[u8]]) -> Result<(), RestoreError> {
        for &bytes in entries {
            let sealed;
            let bytes = match SpoolEntry::decode(bytes)? {
                SpoolEntry::Moved { id, attempts, error, parked, record } => {
                    let record = self.shared.wrap.wrap(record.to_vec());
                    sealed = SpoolEntry::Moved { id, attempts, error, parked, record: &record }.to_bytes();
                    &sealed
                }
                _ => bytes,
            };
            let place = self.stage_move(bytes)?;
            let wrap = &self.shared.wrap;
            let mut replay =
                Replay { index: &mut self.index, next_id: self.next_id, misread: Vec::new(), wrap, sealed: None };
            replay.try_entry(place, bytes)?;
            self.next_id = replay.next_id;
        }
        // Numbers that were given out after the replica was told last must not come again either.
        self.next_id = self.next_id.max(next_id + IDS_SKIPPED);
        Ok(())
    }

    /// Makes what was restored safe.
    pub(crate) fn end_restore(&mut self) -> Result<(), RestoreError> {
        self.log.write()?;
        // The numbers given out, too.
        self.roll()?;
        self.count_up();
        Ok(())
    }

    fn read(&mut self, id: RecordId, place: Place) -> Result<NewRecord, StoreError> {
        let failed = |reason: String| StoreError::Read { what: format!("record {id}"), reason };
        let bytes = self.log.read(place).map_err(|error| failed(error.to_string()))?;
        match SpoolEntry::decode(&bytes) {
            Ok(SpoolEntry::Enqueue { record, .. } | SpoolEntry::Moved { record, .. }) => {
                let plain = self.shared.wrap.unwrap(record).map_err(|error| failed(error.to_string()))?;
                NewRecord::decode(&plain).map_err(|error| failed(error.to_string()))
            }
            _ => Err(failed("there is no record in its place".into())),
        }
    }

    /// After the answers: what nobody waits for.
    fn maintain(&mut self) {
        if self.shared.is_failed() {
            return;
        }
        if let Some((ahead, behind)) = self.clock.step() {
            tracing::warn!(
                ahead_s = ahead.as_secs(),
                behind_s = behind.as_secs(),
                "the wall clock was set: until the next start records expire and keys are forgotten as if it had not been"
            );
        }
        for (id, place) in self.index.forget(self.clock.steady()) {
            self.lighten(place.segment, settled_bytes(place));
            self.touch(id);
        }
        self.batch.asked_for_room = false;
        let kept = self.try_maintain();
        self.is_disk_full = !self.log.has_spare();
        match kept {
            Err(LogError::Stopped(reason)) => self.stop(&reason),
            Ok(()) | Err(LogError::NoSpace) => {}
        }
    }

    fn try_maintain(&mut self) -> Result<(), LogError> {
        if !self.has_begin {
            self.write_begin().inspect_err(|_| self.log.unstage())?;
        }
        while self.log.front() != self.log.active() && self.live_bytes(self.log.front()) == 0 {
            self.free_front()?;
        }
        let room = self.log.ensure_spare(self.record_bytes_max + ENTRY_OVERHEAD_BYTES);
        if self.log.closed_bytes() > 2 * self.live_total {
            self.move_front(room.is_err())?;
        }
        room
    }

    fn free_front(&mut self) -> Result<(), LogError> {
        let front = self.log.front();
        self.log.free_front()?;
        self.live.remove(&front);
        Ok(())
    }

    /// Moves what lives in the oldest segment to the newest, then throws the oldest away.
    fn move_front(&mut self, is_tight: bool) -> Result<(), LogError> {
        let front = self.log.front();
        let is_too_much = is_tight && 2 * self.live_bytes(front) > self.log.room();
        if front == self.log.active() || self.stuck == Some(front) || is_too_much {
            return Ok(());
        }
        let mut entries = Vec::new();
        let (index, wrap) = (&self.index, &self.shared.wrap);
        let seen = self.log.visit(front, &mut |place, bytes| {
            if let Some((id, entry)) = moved(index, wrap, place, bytes) {
                entries.push((id, place, entry));
            }
        });
        // What cannot be read stays where it is; leasing it tells people.
        self.stuck = seen.is_err().then_some(front);
        let mut moves = Vec::new();
        for (id, from, entry) in entries {
            let to = self.stage_move(&entry)?;
            moves.push((id, from, to));
        }
        self.log.write()?;
        self.log.sync()?;
        for (id, from, to) in moves {
            self.replace(id, from, to);
        }
        if self.live_bytes(front) == 0 {
            return self.free_front();
        }
        self.stuck = Some(front);
        Ok(())
    }

    fn stage_move(&mut self, entry: &[u8]) -> Result<Place, LogError> {
        if let Some(place) = self.log.stage(|out| out.extend_from_slice(entry)) {
            return Ok(place);
        }
        self.log.write()?;
        self.roll()?;
        self.log.stage(|out| out.extend_from_slice(entry)).ok_or(LogError::NoSpace)
    }

    fn replace(&mut self, id: RecordId, from: Place, to: Place) {
        self.index.set_place(id, to);
        let is_settled = self.index.view(id).is_some_and(|view| view.settled.is_some());
        let weight = |place: Place| if is_settled { settled_bytes(place) } else { place.footprint() };
        self.lighten(from.segment, weight(from));
        self.weigh(to.segment, weight(to));
        if !is_settled {
            self.queued_bytes = self.queued_bytes - from.footprint() + to.footprint();
        }
    }

    fn live_bytes(&self, segment: u32) -> u64 {
        self.live.get(&segment).copied().unwrap_or(0)
    }

    fn weigh(&mut self, segment: u32, bytes: u64) {
        *self.live.entry(segment).or_default() += bytes;
        self.live_total += bytes;
    }

    fn lighten(&mut self, segment: u32, bytes: u64) {
        self.live_total -= bytes;
        let live = self.live.get_mut(&segment).expect("what lives was counted");
        *live = live.checked_sub(bytes).expect("no more is freed than was counted");
    }

    /// A live record has become a remembered key.
    fn weigh_settled(&mut self, place: Place) {
        self.queued_bytes -= place.footprint();
        self.lighten(place.segment, place.footprint() - settled_bytes(place));
    }

    /// After recovery: everything that is counted as it goes, counted from what is there.
    fn count_up(&mut self) {
        (self.live_total, self.queued_bytes) = (0, 0);
        self.live.clear();
        self.shared.held.clear();
        for (_, place) in self.index.forget(self.clock.steady()) {
            self.live.entry(place.segment).or_default();
        }
        for (place, is_settled) in self.index.places() {
            let weight = if is_settled { settled_bytes(place) } else { place.footprint() };
            *self.live.entry(place.segment).or_default() += weight;
            self.live_total += weight;
            self.queued_bytes += if is_settled { 0 } else { place.footprint() };
        }
        for lane in self.index.held_lanes() {
            self.shared.held.add(lane);
        }
        self.maintain();
        self.publish();
    }

    fn publish(&self) {
        let total = self.index.depth_total();
        let depth = SpoolDepth {
            waiting: total.waiting,
            leased: total.leased,
            parked: total.parked,
            bytes: self.queued_bytes,
            bytes_max: self.shared.bytes_max,
            disk_bytes: self.log.disk_bytes(),
            oldest: total.oldest,
            disk_full: self.is_disk_full,
            keys_forgotten_early_total: self.index.forgotten_early_total(),
        };
        self.shared.publish(&depth, self.index.depths());
    }

    /// The last sync.
    fn finish(&mut self) {
        self.is_closing = true;
        self.pay_debts();
        self.batch.needs_sync = true;
        self.commit();
    }
}

impl Answer {
    fn confirm(self) {
        match self {
            Self::Enqueued(answer, enqueued) => _ = answer.send(Ok(enqueued)),
            Self::Bool(answer, value) => _ = answer.send(value),
            Self::Expired(answer, expired) => _ = answer.send(expired),
            Self::Done(answer) => _ = answer.send(Ok(())),
        }
    }

    /// There was no room. Facts hold all the same and are owed; records of this batch were taken back.
    fn refuse(self, taken_back: &[RecordId]) {
        match self {
            Self::Enqueued(answer, enqueued) if taken_back.contains(&enqueued.id) => {
                _ = answer.send(Err(EnqueueError::DiskFull));
            }
            other => other.confirm(),
        }
    }
}

impl Footprint for Place {
    fn bytes(&self) -> u64 {
        self.footprint()
    }
}

/// Of the directory's secret: nobody outside can know it.
fn seed_of(key: [u8; 32]) -> u64 {
    let hash = blake3::keyed_hash(&key, b"seed of the hash tables of the spool's index");
    u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]))
}

impl RecordDraft {
    /// What the log says of it under a number.
    fn entry(&self, id: u64) -> SpoolEntry<'_> {
        let (id, record) = (RecordId(id), self.bytes.as_slice());
        match &self.adopted {
            None => SpoolEntry::Enqueue { id, record },
            Some(parked) => {
                let (attempts, error, parked) = (self.attempts, self.first_failure.as_str(), parked.clone());
                SpoolEntry::Moved { id, attempts, error, parked, record }
            }
        }
    }

    fn admission(&self, id: RecordId, place: Place) -> Admission<'_, Place> {
        Admission {
            id,
            upstream: &self.upstream,
            route: &self.route,
            lane: self.lane,
            key: self.key,
            fingerprint: FingerprintHalf::of(&self.fingerprint),
            accepted: self.accepted,
            attempts: self.attempts,
            last_error: &self.first_failure,
            terms: self.terms,
            place,
        }
    }
}

fn settled_bytes(place: Place) -> u64 {
    place.footprint().min(REMEMBERED_BYTES)
}

fn not_here(id: RecordId, error: NotHere) -> StoreError {
    match error.state {
        Some(state) => StoreError::NotHere { id, state },
        None => StoreError::NotFound { id },
    }
}

fn not_parked(id: RecordId, error: NotParked) -> StoreError {
    match error.state {
        Some(state) => StoreError::NotParked { id, state },
        None => StoreError::NotFound { id },
    }
}

/// The entry that stands for what lives at a place, if anything does.
fn moved(index: &Index<Place>, wrap: &Wrap, place: Place, bytes: &[u8]) -> Option<(RecordId, Vec<u8>)> {
    let (id, record, fingerprint) = match SpoolEntry::decode(bytes).ok()? {
        SpoolEntry::Enqueue { id, record } | SpoolEntry::Moved { id, record, .. } => {
            (id, record, Outline::of(&wrap.unwrap(record).ok()?).ok()?.fingerprint)
        }
        SpoolEntry::Remembered { id, fingerprint, .. } => (id, &[][..], fingerprint),
        _ => return None,
    };
    let view = index.view(id).filter(|view| view.place == place)?;
    let entry = match view.settled {
        Some(settled) => SpoolEntry::Remembered { id, key: view.key, fingerprint, settled },
        None => {
            let record = if view.expires { record.into() } else { without_expiry(wrap, record) };
            let (attempts, error, parked) = (view.attempts, view.last_error.as_str(), view.parked);
            return Some((id, SpoolEntry::Moved { id, attempts, error, parked, record: &record }.to_bytes()));
        }
    };
    Some((id, entry.to_bytes()))
}

/// A dead letter that was retried does not expire any more, and must not begin to when what says so is gone.
fn without_expiry<'a>(wrap: &Wrap, bytes: &'a [u8]) -> Cow<'a, [u8]> {
    let Ok(plain) = wrap.unwrap(bytes) else { return bytes.into() };
    let expires = Outline::of(&plain).is_ok_and(|record| record.terms.expires.is_some());
    match NewRecord::decode(&plain) {
        Ok(mut record) if expires => {
            record.terms.expires = None;
            let mut plain = Vec::with_capacity(record.encoded_len());
            record.encode(&mut plain);
            wrap.wrap(plain).into()
        }
        _ => bytes.into(),
    }
}

/// Builds the index from the log.
struct Replay<'a> {
    index: &'a mut Index<Place>,
    next_id: u64,
    misread: Vec<(Place, DecodeError)>,
    wrap: &'a Wrap,
    /// The first record for which the key is missing.
    sealed: Option<(Place, UnwrapError)>,
}

impl Replay<'_> {
    fn entry(&mut self, place: Place, bytes: &[u8]) {
        if let Err(error) = self.try_entry(place, bytes) {
            self.misread.push((place, error));
        }
    }

    fn try_entry(&mut self, place: Place, bytes: &[u8]) -> Result<(), DecodeError> {
        match SpoolEntry::decode(bytes)? {
            SpoolEntry::Begin { next_id } => self.next_id = self.next_id.max(next_id),
            SpoolEntry::Enqueue { id, record } => {
                self.record(id, record, place)?;
            }
            SpoolEntry::Failed { id, attempts, error } => self.index.replay_failed(id, attempts, error),
            SpoolEntry::Parked { id, attempts, parked } => {
                self.index.replay_failed(id, attempts, &parked.reason);
                self.index.replay_parked(id, parked);
            }
            // Of a record that is gone nothing needs to be known.
            SpoolEntry::Retried { id } => _ = self.index.retry(id),
            SpoolEntry::Settled { id, settled } => _ = self.index.settle(id, settled),
            SpoolEntry::Moved { id, attempts, error, parked, record } => {
                if self.index.state(id).is_none() {
                    self.record(id, record, place)?;
                }
                self.index.set_place(id, place);
                self.index.replay_failed(id, attempts, error);
                match parked {
                    Some(parked) => _ = self.index.replay_parked(id, parked),
                    // It says how the record is, whatever was said before: a replica may not have been told the rest.
                    None => _ = self.index.retry(id),
                }
            }
            SpoolEntry::Remembered { id, key, fingerprint, settled } => {
                let half = FingerprintHalf::of(&fingerprint);
                self.index.replay_remembered(id, key, half, settled.clone(), place);
                self.index.settle(id, settled);
                self.index.set_place(id, place);
                self.next_id = self.next_id.max(id.0 + 1);
            }
        }
        Ok(())
    }

    fn record(&mut self, id: RecordId, bytes: &[u8], place: Place) -> Result<(), DecodeError> {
        let plain = match self.wrap.unwrap(bytes) {
            Ok(plain) => plain,
            Err(error @ (UnwrapError::NoKey | UnwrapError::OtherKey)) => {
                self.sealed.get_or_insert((place, error));
                return Ok(());
            }
            Err(UnwrapError::BrokenSeal) => return Err(DecodeError::Invalid("a seal that does not fit what it seals")),
            Err(UnwrapError::BrokenPack) => return Err(DecodeError::Invalid("a record that cannot be unpacked")),
        };
        let record = Outline::of(&plain)?;
        if self.index.state(id).is_none() {
            self.index.replay_enqueue(Admission {
                id,
                upstream: record.upstream,
                route: record.route,
                lane: record.lane(),
                key: record.key(),
                fingerprint: FingerprintHalf::of(&record.fingerprint),
                accepted: record.accepted,
                attempts: record.attempts,
                last_error: record.first_failure,
                terms: record.terms,
                place,
            });
        }
        self.next_id = self.next_id.max(id.0 + 1);
        Ok(())
    }

    /// What passed its checksum and was not understood was written by another version, or by a broken one.
    fn check<D: Disk>(&self, log: &Log<D>, policy: OnDamage, report: &mut SpoolReport) -> Result<(), OpenError> {
        if let Some((place, error)) = self.sealed {
            return Err(OpenError::Sealed { path: log.path(place.segment), reason: error.to_string() });
        }
        let Some((place, error)) = self.misread.first() else { return Ok(()) };
        let path = log.path(place.segment);
        if let DecodeError::Version { found, known } = error {
            return Err(OpenError::Newer { path, found: u32::from(*found), known: u32::from(*known) });
        }
        if policy == OnDamage::Refuse {
            return Err(OpenError::Damaged { path, offset: place.offset.into(), what: error.to_string() });
        }
        let mut segments: Vec<u32> = self.misread.iter().map(|(place, _)| place.segment).collect();
        segments.dedup();
        for segment in segments {
            report.log.damaged.push(log.keep_damaged(segment)?);
        }
        report.unreadable += self.misread.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::task::{Context, Wake};

    use seawall_core::spool::wire::Writer;
    use seawall_core::time::{Mono, Wall};

    use super::*;
    use crate::clock::ClockFn;
    use crate::disk::{Fault, SimDisk};

    fn options(on_damage: OnDamage) -> StoreOptions {
        StoreOptions { record_bytes_max: 1000, spool_segment_bytes: 0, on_damage, ..StoreOptions::new("data", "n") }
    }

    fn open(disk: &SimDisk, on_damage: OnDamage) -> Result<(SpoolEngine<SimDisk>, SpoolReport), OpenError> {
        let clock = Arc::new(ClockFn(|| Mono::ZERO, Wall::default));
        SpoolEngine::open(disk.clone(), &options(on_damage), [7; 32], clock)
    }

    /// A spool whose log holds one more entry, as only another version would write it.
    fn with_entry(bytes: &[u8]) -> SimDisk {
        let disk = SimDisk::new(1);
        let (mut engine, _) = open(&disk, OnDamage::Refuse).unwrap();
        engine.log.append(bytes).unwrap();
        engine.log.write().unwrap();
        engine.log.sync().unwrap();
        disk
    }

    #[test]
    fn an_entry_nobody_understands_is_told_and_kept() {
        let disk = with_entry(&[99; 20]);
        let error = open(&disk, OnDamage::Refuse).map(|_| ()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("0000000001.log") && text.contains("a kind of entry that is not known"), "{text}");
        let (engine, report) = open(&disk, OnDamage::Quarantine).unwrap();
        assert_eq!(report.unreadable, 1);
        assert!(disk.read(&report.log.damaged[0]).is_ok());
        assert!(engine.next_id > IDS_SKIPPED);
        assert!(format!("{engine:?}").contains("Clock"));
    }

    /// Notes the depth at the moment an answer arrives.
    struct SeenAt(Arc<SpoolShared>, Mutex<Option<SpoolDepth>>);

    impl Wake for SeenAt {
        fn wake(self: Arc<Self>) {
            *self.1.lock().unwrap() = Some(self.0.depth());
        }
    }

    #[test]
    fn whoever_has_an_answer_finds_it_in_the_depth() {
        let disk = SimDisk::new(1);
        let (mut engine, _) = open(&disk, OnDamage::Refuse).unwrap();
        let (spool, mut queue) = crate::Spool::new(engine.shared());
        let mut at_the_answer = |fault: Option<Fault>| {
            let seen = Arc::new(SeenAt(engine.shared(), Mutex::new(None)));
            let (waker, record) = (seen.clone().into(), record(if fault.is_some() { "b" } else { "a" }));
            let mut enqueued = std::pin::pin!(spool.enqueue(&record));
            assert!(enqueued.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            if let Some(fault) = fault {
                disk.fail_call(1, fault);
            }
            engine.run_batch([queue.try_recv().unwrap()]);
            seen.1.lock().unwrap().expect("an answer")
        };
        assert_eq!(at_the_answer(None).waiting, 1);
        let full = at_the_answer(Some(Fault::NoSpace));
        assert_eq!((full.waiting, full.disk_full), (1, true));
    }

    fn record(key: &str) -> NewRecord {
        NewRecord {
            upstream: "queue".into(),
            route: "events".into(),
            order_key: None,
            idempotency_key: key.into(),
            fingerprint: [0; 32],
            ledger: None,
            method: "POST".into(),
            target: "/".into(),
            headers: Vec::new(),
            body: Vec::new(),
            accepted: Wall::default(),
            first_failure: "timeout".into(),
            attempts: 1,
            terms: Terms::default(),
        }
    }

    #[test]
    fn a_panic_is_told_to_those_who_ask_afterwards() {
        let shared = Arc::new(SpoolShared::new(1, 1));
        let watch = PanicWatch(Arc::clone(&shared));
        let writer = std::thread::spawn(move || {
            let _watch = watch;
            panic!("as planned");
        });
        assert!(writer.join().is_err());
        assert!(shared.stop_reason().contains("panicked"));
        drop(PanicWatch(Arc::new(SpoolShared::new(1, 1))));
    }

    #[test]
    fn a_record_of_a_newer_version_is_told() {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes).u8(1).u64(1).u8(3).raw(&[0; 80]);
        let error = open(&with_entry(&bytes), OnDamage::Quarantine).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 3, known: 2, .. }), "{error}");
    }
}
