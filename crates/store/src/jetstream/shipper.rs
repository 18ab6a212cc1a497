//! Keeps a replica of the spool in a stream: looks at what has changed, writes about it, waits until a majority has it.
//!
//! Picture the clerk of `core::spool::replica` at his desk. He opens every day by reading what lies in the other town
//! and comparing it with the shelf. Then: a letter at a time, each behind the last one he knows of and behind no other.
//! If no answer comes he does not guess; he looks what lies there now. If he finds a letter that is not his, he puts
//! the pen down for good: somebody else keeps this shelf.
//!
//! Not here: what the letters say (`message`), which records they are about (`core`), the wire (`stream`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use seawall_core::id::RecordId;
use seawall_core::spool::index::{Outcome, Settled};
use seawall_core::spool::replica::{Form, Line, Replica, Stage, Want};
use seawall_core::time::{Mono, Wall};
use tokio::sync::{mpsc, oneshot, watch};

use super::HEAD_ROOM_BYTES;
use super::message::{Assembler, Head, Incarnation, Whole, entries, head, letter, lines};
use super::port::{Stream, StreamError};
use crate::clock::Clock;
use crate::embedded::entry::SpoolEntry;
use crate::spool::Spool;
use crate::wrap::Wrap;

/// Records a letter is about at most.
const LETTER_RECORDS: usize = 512;
/// Bytes of entries after which a letter is closed.
const LETTER_BYTES: usize = 256 << 10;
/// And where there is hardly room for one.
const LETTER_BYTES_MIN: usize = 2 << 10;
/// Records compared at once when the spool is compared with the stream.
const SURVEY_RECORDS: usize = 16_384;
/// Changes noted while nothing can be written, beyond which all is compared again instead.
const CHANGES_MAX: u64 = 1 << 20;
/// Letters written out again in one go.
const MOVES_MAX: usize = 256;
/// Pause between tries where a person must act.
const RETRY_REFUSED_AFTER: Duration = Duration::from_secs(30);
/// Less than this is not worth a purge.
const PURGE_BYTES_MIN: u64 = 1 << 20;
/// How often it is looked whether letters can go, while nothing else happens.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether the last message is still ours.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Pauses between tries to reach the stream: the first, doubling up to the last.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// How a replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// The stream is being reached, read and compared with the spool.
    Comparing,
    /// Every change goes there as it happens.
    Current,
    /// It cannot be reached; tried again by itself.
    Down {
        /// What went wrong last.
        reason: Arc<str>,
        /// Since when.
        since: Wall,
    },
    /// It cannot be written to, and a person must act; tried again now and then.
    Refused {
        /// Why.
        reason: Arc<str>,
    },
    /// What is here is another's to deliver; nothing more is.
    Superseded {
        /// By whom.
        reason: Arc<str>,
    },
}

impl ReplicaState {
    /// One word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Comparing => "comparing",
            Self::Current => "current",
            Self::Down { .. } => "down",
            Self::Refused { .. } => "refused",
            Self::Superseded { .. } => "superseded",
        }
    }

    /// Why it is not written to, if so.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Comparing | Self::Current => None,
            Self::Down { reason, .. } | Self::Refused { reason } | Self::Superseded { reason } => Some(reason),
        }
    }
}

/// What a replica holds and has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// How it is.
    pub state: ReplicaState,
    /// Records whose latest it does not have.
    pub behind: u64,
    /// Records and remembered keys it holds.
    pub held: u64,
    /// Bytes of its messages.
    pub held_bytes: u64,
    /// Letters confirmed since the start.
    pub letters_total: u64,
    /// Records these were about.
    pub records_total: u64,
    /// Letters without an answer, or refused.
    pub lost_total: u64,
    /// Records that could not be read here when they were to be written about.
    pub unreadable_total: u64,
    /// Messages of the stream that could not be understood.
    pub misread_total: u64,
    /// Records that only the replica has: this directory has lost them.
    pub missing: u64,
}

impl ReplicaStatus {
    pub(crate) const fn new() -> Self {
        Self {
            state: ReplicaState::Comparing,
            behind: 0,
            held: 0,
            held_bytes: 0,
            letters_total: 0,
            records_total: 0,
            lost_total: 0,
            unreadable_total: 0,
            misread_total: 0,
            missing: 0,
        }
    }
}

/// Somebody waits until a record is safe elsewhere.
#[derive(Debug)]
pub(crate) struct Ask {
    /// `None` for everything that has changed up to now.
    pub(crate) id: Option<RecordId>,
    pub(crate) answer: Answer,
}

/// An error says why it is not there.
type Answer = oneshot::Sender<Result<(), Arc<str>>>;

/// The clerk. See the module's text.
pub(crate) struct Shipper<S> {
    stream: S,
    spool: Spool,
    clock: Arc<dyn Clock>,
    /// Seals records for the stream, which another directory must be able to open.
    wrap: Wrap,
    incarnation: Incarnation,
    epoch: u64,
    letter: u64,
    /// Bytes after which the next letter is closed: fewer while there is little room.
    letter_bytes: usize,
    replica: Replica,
    /// Number of the last message known.
    last: u64,
    /// Of a letter that goes on in the next message.
    assembler: Assembler,
    has_compared: bool,
    /// Something was written since the last failure.
    has_written: bool,
    /// What was warned of last.
    warned: Option<String>,
    asks: mpsc::Receiver<Ask>,
    waiting: BTreeMap<RecordId, Vec<Answer>>,
    waiting_for_all: Vec<Answer>,
    status: watch::Sender<ReplicaStatus>,
    next_id: u64,
}

/// Why work ended.
enum End {
    /// The spool is gone.
    Closed,
    Stream(StreamError),
}

impl From<StreamError> for End {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

/// What a shipper is made of.
pub(crate) struct ShipperParts<S> {
    pub(crate) stream: S,
    pub(crate) spool: Spool,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) wrap: Wrap,
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: u64,
    pub(crate) asks: mpsc::Receiver<Ask>,
    pub(crate) status: watch::Sender<ReplicaStatus>,
}

impl<S: Stream> Shipper<S> {
    /// Changes are noted from here on.
    pub(crate) fn new(parts: ShipperParts<S>) -> Self {
        let ShipperParts { stream, spool, clock, wrap, incarnation, epoch, asks, status } = parts;
        spool.changes().begin();
        Self {
            stream,
            spool,
            clock,
            wrap,
            incarnation,
            epoch,
            letter: 0,
            letter_bytes: LETTER_BYTES,
            replica: Replica::new(),
            last: 0,
            assembler: Assembler::default(),
            has_compared: false,
            has_written: false,
            warned: None,
            asks,
            waiting: BTreeMap::new(),
            waiting_for_all: Vec::new(),
            status,
            next_id: 1,
        }
    }

    /// Where its state is told.
    pub(crate) fn status(&self) -> watch::Sender<ReplicaStatus> {
        self.status.clone()
    }

    /// Works until the spool is closed.
    pub(crate) async fn run(mut self) {
        let mut pause = RETRY_AFTER.0;
        loop {
            let Err(end) = self.work().await;
            self.replica.lost();
            let (reason, rest) = match end {
                End::Closed => return,
                End::Stream(StreamError::Lost(reason) | StreamError::Full(reason)) => {
                    if std::mem::take(&mut self.has_written) {
                        pause = RETRY_AFTER.0;
                    }
                    let rest = pause;
                    pause = (pause * 2).min(RETRY_AFTER.1);
                    self.warn(&reason);
                    self.down(&reason);
                    (reason, rest)
                }
                End::Stream(StreamError::Refused(reason)) => {
                    self.warn(&reason);
                    let told: Arc<str> = reason.as_str().into();
                    self.tell(|status| status.state = ReplicaState::Refused { reason: told });
                    (reason, RETRY_REFUSED_AFTER)
                }
                End::Stream(StreamError::Superseded(reason)) => {
                    tracing::error!(reason, "nothing more is taken or delivered here");
                    // Before anybody can ask for another record: somebody else delivers them.
                    self.spool.give_up(&reason);
                    let told: Arc<str> = reason.as_str().into();
                    self.tell(|status| status.state = ReplicaState::Superseded { reason: told });
                    while self.rest(RETRY_AFTER.1, &reason).await.is_some() {}
                    return;
                }
            };
            if self.rest(rest, &reason).await.is_none() {
                return;
            }
        }
    }

    /// Once for each reason: it may stay for hours.
    fn warn(&mut self, reason: &str) {
        if self.warned.as_deref() != Some(reason) {
            tracing::warn!(reason, "the replica is not written to; records stay safe here, and go there later");
            self.warned = Some(reason.into());
        }
    }

    fn tell(&self, change: impl FnOnce(&mut ReplicaStatus)) {
        self.status.send_modify(|status| {
            status.behind = self.replica.behind();
            status.held = self.replica.held();
            status.held_bytes = self.replica.held_bytes();
            status.missing = self.replica.missing();
            change(status);
        });
    }

    fn down(&self, reason: &str) {
        let now = self.clock.wall();
        self.tell(|status| {
            let since = match &status.state {
                ReplicaState::Down { since, .. } => *since,
                _ => now,
            };
            status.lost_total += 1;
            status.state = ReplicaState::Down { reason: reason.into(), since };
        });
    }

    /// Waits; who asks meanwhile is told at once. `None` when the spool is closed.
    async fn rest(&mut self, pause: Duration, reason: &str) -> Option<()> {
        let reason: Arc<str> = reason.into();
        let waiting = std::mem::take(&mut self.waiting).into_values().flatten();
        for answer in waiting.chain(self.waiting_for_all.drain(..)) {
            let _ = answer.send(Err(Arc::clone(&reason)));
        }
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => break,
                ask = self.asks.recv() => { let _ = ask?.answer.send(Err(Arc::clone(&reason))); }
            }
        }
        self.note_changes();
        if self.replica.behind() > CHANGES_MAX {
            self.replica.forget_changes();
            self.has_compared = false;
        }
        self.tell(|_| ());
        Some(())
    }

    fn note_changes(&mut self) {
        for id in self.spool.changes().take() {
            self.replica.touch(id);
        }
    }

    async fn work(&mut self) -> Result<std::convert::Infallible, End> {
        self.catch_up().await?;
        // What is not needed goes first: there may be no room for another word.
        self.purge(0).await?;
        self.note_changes();
        if self.replica.behind() > 0 {
            self.write().await?;
        }
        self.warned = None;
        self.tell(|status| status.state = ReplicaState::Current);
        let mut tidied = self.clock.mono();
        let mut looked = tidied;
        loop {
            self.note_changes();
            self.take_asks()?;
            if self.replica.behind() > 0 {
                self.write().await?;
            }
            let now = self.clock.mono();
            if now.since(tidied) >= TIDY_EVERY {
                tidied = now;
                self.tidy().await?;
            }
            if now.since(looked) >= LOOK_EVERY {
                looked = now;
                // Whoever has nothing to write must learn, too, that he may not any more.
                if whose(self.stream.last().await?, self.incarnation)? != self.last {
                    return Err(StreamError::Lost("another message came in between".into()).into());
                }
            }
            if self.replica.behind() == 0 {
                self.await_work(tidied).await?;
            }
        }
    }

    async fn await_work(&mut self, tidied: Mono) -> Result<(), End> {
        let changes = self.spool.changes();
        let pause = TIDY_EVERY.saturating_sub(self.clock.mono().since(tidied));
        tokio::select! {
            () = changes.arrived() => {}
            ask = self.asks.recv() => {
                let ask = ask.ok_or(End::Closed)?;
                // What it asks for was noted before it asked.
                self.note_changes();
                self.take(ask);
            }
            () = tokio::time::sleep(pause) => {}
        }
        Ok(())
    }

    fn take_asks(&mut self) -> Result<(), End> {
        loop {
            match self.asks.try_recv() {
                Ok(ask) => {
                    self.note_changes();
                    self.take(ask);
                }
                Err(mpsc::error::TryRecvError::Empty) => return Ok(()),
                Err(mpsc::error::TryRecvError::Disconnected) => return Err(End::Closed),
            }
        }
    }

    fn take(&mut self, ask: Ask) {
        match ask.id {
            None if self.replica.behind() > 0 => self.waiting_for_all.push(ask.answer),
            Some(id) if !self.replica.is_current(id) => self.waiting.entry(id).or_default().push(ask.answer),
            Some(id) => _ = ask.answer.send(self.is_held(id)),
            None => _ = ask.answer.send(Ok(())),
        }
    }

    /// One letter, there and back.
    async fn write(&mut self) -> Result<(), End> {
        let wants = self.replica.begin(LETTER_RECORDS);
        let asked: Vec<RecordId> = wants.iter().map(|want: &Want| want.id).collect();
        let written = self.spool.letter(wants, self.letter_bytes).await.map_err(|_| End::Closed)?;
        self.next_id = self.next_id.max(written.next_id);
        self.replica.postpone(asked.into_iter().skip(written.lines.len()));
        if written.lines.is_empty() {
            // No file can be opened for now.
            return Err(StreamError::Lost("records cannot be read: no more files can be opened".into()).into());
        }
        let mut entries = self.sealed(written.entries);
        entries.extend(written.lines.iter().filter_map(|line| self.end_of(line)));
        let letter = match entries.is_empty() {
            true => None,
            false => match self.send(&entries).await {
                Err(error @ StreamError::Full(_)) => {
                    self.replica.lost();
                    // Whoever waits goes on waiting: a shorter one is tried at once, if there is more room.
                    let is_shorter = self.letter_bytes > LETTER_BYTES_MIN;
                    self.letter_bytes = (self.letter_bytes / 2).max(LETTER_BYTES_MIN);
                    return if self.make_room().await? && is_shorter { Ok(()) } else { Err(error.into()) };
                }
                sent => Some(sent?),
            },
        };
        self.has_written |= letter.is_some();
        self.letter_bytes = (2 * self.letter_bytes).min(LETTER_BYTES);
        for id in self.replica.confirmed(letter, &written.lines) {
            for answer in self.waiting.remove(&id).into_iter().flatten() {
                let _ = answer.send(self.is_held(id));
            }
        }
        if self.replica.behind() == 0 {
            self.waiting_for_all.drain(..).for_each(|answer| _ = answer.send(Ok(())));
        }
        self.tell(|status| {
            status.letters_total += u64::from(letter.is_some());
            status.records_total += written.lines.len() as u64;
            status.unreadable_total += written.unreadable;
        });
        Ok(())
    }

    /// What whoever waits for a record is told once there is nothing left to tell of it.
    fn is_held(&self, id: RecordId) -> Result<(), Arc<str>> {
        if self.replica.holds(id) { Ok(()) } else { Err("it does not hold this record".into()) }
    }

    /// Sends a letter. Returns the number of its first message, and the bytes of that.
    async fn send(&mut self, entries: &[Vec<u8>]) -> Result<(u64, u64), StreamError> {
        self.letter += 1;
        let head = self.head();
        let body_bytes_max = self.stream.message_bytes_max().saturating_sub(HEAD_ROOM_BYTES).max(1024);
        let mut first = None;
        for (part, message) in letter(head, entries, body_bytes_max).into_iter().enumerate() {
            let (bytes, id) = (message.len() as u64, message_id(head, part));
            self.last = self.stream.append(message, self.last, &id).await?;
            // Should the rest not follow, it takes room all the same.
            self.replica.learn(self.last, bytes, &[]);
            first.get_or_insert((self.last, bytes));
        }
        Ok(first.expect("a letter has a message"))
    }

    const fn head(&self) -> Head {
        Head { incarnation: self.incarnation, epoch: self.epoch, letter: self.letter, next_id: self.next_id }
    }

    fn sealed(&self, entries: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        if self.wrap.is_plain() {
            return entries;
        }
        let seal = |bytes: Vec<u8>| match SpoolEntry::decode(&bytes) {
            Ok(SpoolEntry::Moved { id, attempts, error, parked, record }) => {
                let record = self.wrap.wrap(record.to_vec());
                SpoolEntry::Moved { id, attempts, error, parked, record: &record }.to_bytes()
            }
            _ => bytes,
        };
        entries.into_iter().map(seal).collect()
    }

    /// The end of a record that is forgotten here, key and all, and that the stream takes for one to be delivered.
    fn end_of(&self, line: &Line) -> Option<Vec<u8>> {
        let is_live = self.replica.look(line.id).is_some_and(|look| look.stage != Stage::Settled);
        let settled = Settled { outcome: Outcome::Discarded { reason: "forgotten".into() }, at: self.clock.wall() };
        (line.form == Form::Gone && is_live).then(|| SpoolEntry::Settled { id: line.id, settled }.to_bytes())
    }

    /// Throws away what is not needed, and has written out again what keeps old letters alone.
    async fn tidy(&mut self) -> Result<(), End> {
        self.purge(PURGE_BYTES_MIN).await?;
        for _ in 0..MOVES_MAX {
            if self.replica.move_front() == 0 {
                break;
            }
            while self.replica.behind() > 0 {
                self.write().await?;
            }
            self.purge(PURGE_BYTES_MIN).await?;
        }
        Ok(())
    }

    async fn purge(&mut self, bytes_min: u64) -> Result<(), StreamError> {
        if let Some((below, bytes)) = self.replica.purgeable()
            && (bytes >= bytes_min || self.replica.held() == 0)
        {
            self.stream.purge(below).await?;
            self.replica.purged(below);
            self.tell(|_| ());
        }
        Ok(())
    }

    /// The stream is full, so that not even the end of a record can be written. What is not needed goes; if that is
    /// nothing, letters whose records have all ended here are thrown away without a word, and their keys are told
    /// again. True if there is more room.
    async fn make_room(&mut self) -> Result<bool, End> {
        let held = self.replica.held_bytes();
        self.purge(0).await?;
        if self.replica.held_bytes() < held {
            return Ok(true);
        }
        while let Some(residents) = self.replica.front() {
            for &id in &residents {
                let above = RecordId(id.0.saturating_sub(1));
                let found = self.spool.survey(above, 1).await.map_err(|_| End::Closed)?;
                if found.first().is_some_and(|(found, look)| *found == id && look.stage != Stage::Settled) {
                    return Ok(false);
                }
            }
            self.replica.abandon(&residents);
            self.purge(0).await?;
            if self.replica.held_bytes() < held {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads what lies in the stream behind the last message known: all of it at first, and after a letter whose fate
    /// is not known. Cut short, it goes on where it was.
    async fn catch_up(&mut self) -> Result<(), End> {
        let last = self.stream.last().await?;
        if self.letter == 0 {
            self.is_behind(last.as_ref())?;
        }
        let last = whose(last, self.incarnation)?;
        if last < self.last {
            // Somebody began the stream anew.
            self.replica.forget_stream();
            (self.last, self.assembler, self.has_compared) = (0, Assembler::default(), false);
        }
        self.read_on().await?;
        if !self.has_compared {
            self.compare().await?;
            self.has_compared = true;
        }
        Ok(())
    }

    /// Before the first letter of a life: a message of this directory that was written in this life, or a later one,
    /// was written by another copy of it.
    fn is_behind(&self, last: Option<&(u64, Bytes)>) -> Result<(), StreamError> {
        is_older(last, self.incarnation, self.epoch).map_or(Ok(()), |reason| Err(StreamError::Superseded(reason)))
    }

    /// Compares the stream, which was read, with the spool.
    async fn compare(&mut self) -> Result<(), End> {
        self.note_changes();
        let mut above = RecordId(0);
        loop {
            let page = self.spool.survey(above, SURVEY_RECORDS).await.map_err(|_| End::Closed)?;
            for (id, look) in &page {
                self.replica.survey(*id, *look);
            }
            match page.last() {
                Some((last, _)) => above = *last,
                None => break,
            }
        }
        self.replica.end_survey();
        Ok(())
    }

    /// Takes note of all messages behind the last one known.
    async fn read_on(&mut self) -> Result<(), StreamError> {
        loop {
            let page = self.stream.page(self.last + 1).await?;
            if page.is_empty() {
                return Ok(());
            }
            page.iter().for_each(|(number, bytes)| self.read(*number, bytes));
        }
    }

    fn read(&mut self, number: u64, bytes: &[u8]) {
        self.last = number;
        self.replica.learn(number, bytes.len() as u64, &[]);
        match self.assembler.add(number, bytes) {
            Ok(None | Some(Whole::Fence { .. })) => {}
            Ok(Some(Whole::Letter { head, number, first_bytes, body })) => {
                self.next_id = self.next_id.max(head.next_id);
                match entries(&body).and_then(|entries| lines(&entries)) {
                    Ok(lines) => self.replica.learn(number, first_bytes, &lines),
                    Err(error) => self.misread(number, &error.to_string()),
                }
            }
            Err(error) => self.misread(number, &error.to_string()),
        }
    }

    /// What it said will be said again: its records are not at home anywhere.
    fn misread(&self, number: u64, error: &str) {
        tracing::error!(
            number,
            error,
            "a message of the replica cannot be understood; its records are written out again"
        );
        self.tell(|status| status.misread_total += 1);
    }
}

/// The number of the last message, if it is ours or there is none.
pub(crate) fn whose(last: Option<(u64, Bytes)>, ours: Incarnation) -> Result<u64, StreamError> {
    let Some((number, bytes)) = last else { return Ok(0) };
    match Assembler::default().add(number, &bytes) {
        Ok(Some(Whole::Fence { head, words })) if head.incarnation == ours => {
            Err(StreamError::Superseded(format!("this node's records are another's to deliver: {words}")))
        }
        Ok(Some(Whole::Fence { words, .. })) => Err(StreamError::Superseded(format!(
            "another directory of this node took over what this one held, and its records are another's now: {words}"
        ))),
        Ok(_) => match head(&bytes) {
            Ok(head) if head.incarnation == ours => Ok(number),
            _ => Err(StreamError::Superseded(
                "another data directory writes under this node's name, and may have taken over what this one held; give \
                 each node a name of its own"
                    .into(),
            )),
        },
        Err(error) => Err(StreamError::Refused(format!("message {number} of the stream is not ours: {error}"))),
    }
}

/// Why a directory is older than what its replica holds, if it is: it was restored from a backup, or copied.
pub(crate) fn is_older(last: Option<&(u64, Bytes)>, ours: Incarnation, epoch: u64) -> Option<String> {
    let head = head(&last?.1).ok().filter(|head| head.incarnation == ours)?;
    // A life that began by taking over has said so itself, in a letter without a number.
    let is_newer = head.epoch > epoch || (head.epoch == epoch && head.letter > 0);
    if !is_newer {
        return None;
    }
    Some(format!(
        "this directory is older than what its replica holds (its life {} there, {epoch} here): a backup of it, or a copy, \
         does not know what was accepted since; an empty directory takes over what the replica holds",
        head.epoch
    ))
}

/// Names a message, the same for the same message only.
pub(crate) fn message_id(head: Head, part: usize) -> String {
    let tag: String = head.incarnation[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{tag}-{}-{}-{part}", head.epoch, head.letter)
}
