//! The writer of the journal: takes what was recorded, writes it, syncs at most every 100 ms. Whatever fails, the node
//! goes on: entries that could not be written are counted, and the journal says so itself once it can be written again.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use seawall_core::journal::chain::{Anchor, ChainKey, Ends, LINK_BYTES, Linked, Tag, Verified, Verifier};
use seawall_core::journal::{DecodeError, Draft, Entry, Kind};
use seawall_core::time::Wall;
use tokio::sync::mpsc;

use super::LogReport;
use super::log::{Log, LogError, LogOptions, segment_bytes_for};
use super::segment::LogKind;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::{OpenError, StoreError};
use crate::journal::{Command, Found, JournalShared, Query, TAIL_ENTRIES_MAX};
use crate::options::{OnDamage, StoreOptions};

/// How long an entry waits for its sync at most.
const SYNC_EVERY: Duration = Duration::from_millis(100);
/// The longest entry written.
const ENTRY_BYTES_MAX: usize = 64 << 10;
/// The number of the first segment a journal ever had.
const FIRST_SEGMENT: u32 = 1;

/// The writer. See the module's text.
#[derive(Debug)]
pub(crate) struct JournalEngine<D: Disk> {
    log: Log<D>,
    shared: Arc<JournalShared>,
    bytes_max: u64,
    key: ChainKey,
    /// The tag of the last entry written.
    head: Tag,
    keep: Option<Duration>,
    clock: Arc<dyn Clock>,
    /// What each segment holds.
    contents: BTreeMap<u32, Contents>,
    /// The last of the segments whose going is told and that go once that is safe.
    leaving: Option<u32>,
    /// Dropped entries the journal has told about.
    told: u64,
    is_closing: bool,
}

/// The entries of one segment.
#[derive(Clone, Copy, Debug)]
struct Contents {
    first: u64,
    last: Anchor,
    last_at: Wall,
    entries: u64,
}

impl Contents {
    fn count(contents: &mut BTreeMap<u32, Self>, segment: u32, entry: &Entry, tag: Tag) {
        let (last, last_at) = (Anchor { seq: entry.seq.0, tag }, entry.at);
        let fresh = Self { first: last.seq, last, last_at, entries: 0 };
        let here = contents.entry(segment).or_insert(fresh);
        *here = Self { first: here.first, last, last_at: here.last_at.max(last_at), entries: here.entries + 1 };
    }
}

/// What recovery of the journal found.
#[derive(Debug)]
pub(crate) struct JournalFound<D: Disk> {
    pub(crate) engine: JournalEngine<D>,
    pub(crate) shared: Arc<JournalShared>,
    pub(crate) log: LogReport,
    pub(crate) unreadable: u64,
}

impl<D: Disk> JournalEngine<D> {
    pub(crate) fn open(
        disk: D,
        options: &StoreOptions,
        salt_key: [u8; 32],
        clock: Arc<dyn Clock>,
    ) -> Result<JournalFound<D>, OpenError> {
        let segment_bytes_min = segment_bytes_for((ENTRY_BYTES_MAX + LINK_BYTES) as u64);
        let log_options = LogOptions {
            kind: LogKind::Journal,
            dir: options.dir.join("journal"),
            segment_bytes: options.journal_segment_bytes.max(segment_bytes_min),
            segment_bytes_min,
            // A damaged journal must not keep the node from starting.
            on_damage: OnDamage::Quarantine,
            salt_key,
        };
        let (mut tail, mut contents, mut unreadable, mut head) = (VecDeque::new(), BTreeMap::new(), 0, Tag::default());
        let (log, report) = Log::open(disk, log_options, &mut |place, bytes| match decode(bytes) {
            Ok((entry, tag)) => {
                head = tag.unwrap_or(head);
                Contents::count(&mut contents, place.segment, &entry, head);
                if tail.len() == TAIL_ENTRIES_MAX {
                    tail.pop_front();
                }
                tail.push_back(Arc::new(entry));
            }
            Err(_) => unreadable += 1,
        })?;
        let next = tail.back().map_or(0, |entry| entry.seq.0) + 1;
        let shared = Arc::new(JournalShared::new(Arc::clone(&clock), next, tail));
        shared.disk_bytes.store(log.disk_bytes(), Ordering::Relaxed);
        let bytes_max = options.journal_bytes_max;
        let key = ChainKey::new(&salt_key);
        let engine = Self {
            log,
            shared: Arc::clone(&shared),
            bytes_max,
            key,
            head,
            keep: options.journal_keep,
            clock,
            contents,
            leaving: None,
            told: 0,
            is_closing: false,
        };
        Ok(JournalFound { engine, shared, log: report, unreadable })
    }

    /// Works until it is told to stop, or every handle is gone.
    pub(crate) async fn drive(mut self, mut commands: mpsc::Receiver<Command>) {
        let shared = Arc::clone(&self.shared);
        while !self.is_closing {
            tokio::select! {
                biased;
                () = shared.recorded.notified() => {}
                command = commands.recv() => self.obey(command),
            }
            self.write_out();
            self.pause(&mut commands).await;
        }
        self.write_out();
    }

    /// Between two syncs: questions are answered, entries gather.
    async fn pause(&mut self, commands: &mut mpsc::Receiver<Command>) {
        let pause = tokio::time::sleep(SYNC_EVERY);
        tokio::pin!(pause);
        while !self.is_closing {
            tokio::select! {
                biased;
                () = &mut pause => return,
                command = commands.recv() => self.obey(command),
            }
        }
    }

    fn obey(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Query { query, answer }) => {
                self.write_out();
                _ = answer.send(self.query(&query));
            }
            Some(Command::Verify { anchor, answer }) => {
                self.write_out();
                _ = answer.send(self.verify(anchor));
            }
            Some(Command::Flush { answer }) => {
                self.write_out();
                _ = answer.send(());
            }
            Some(Command::Close { answer }) => {
                self.is_closing = true;
                self.write_out();
                _ = answer.send(());
            }
            None => self.is_closing = true,
        }
    }

    /// Writes and syncs what was recorded, tells what was dropped, and keeps to the limit.
    pub(crate) fn write_out(&mut self) {
        let entries = self.shared.take_queue();
        let (mut safe, mut staged, mut plain, mut bytes) = (0, 0, Vec::new(), Vec::new());
        // Where the chain is if what is staged gets written.
        let mut head = self.head;
        for entry in &entries {
            plain.clear();
            entry.encode(&mut plain);
            if !self.log.fits(plain.len() + LINK_BYTES) {
                // The batch so far belongs to the segment that is full.
                safe += self.write(&mut head).map_or(0, |()| staged);
                staged = 0;
            }
            if plain.len() > ENTRY_BYTES_MAX {
                continue;
            }
            bytes.clear();
            let tag = self.key.link(head, &plain, &mut bytes);
            if let Ok(place) = self.log.append(&bytes) {
                Contents::count(&mut self.contents, place.segment, entry, tag);
                head = tag;
                staged += 1;
            }
        }
        let done = self.write(&mut head).and_then(|()| self.log.sync());
        safe += if done.is_ok() { staged } else { 0 };
        self.shared.count_dropped(entries.len() as u64 - safe);
        let kept = done.and_then(|()| self.keep_to_limit());
        if kept.is_ok() {
            self.tell_dropped();
        }
        self.shared.disk_bytes.store(self.log.disk_bytes(), Ordering::Relaxed);
        // What is to go goes at once: each time there are fewer.
        if kept.is_ok() && self.leaving.is_some() {
            self.write_out();
        }
    }

    /// Writes what is staged. What could not be written is no link of the chain: the next entry continues the last one
    /// that was.
    fn write(&mut self, head: &mut Tag) -> Result<(), LogError> {
        let written = self.log.write();
        if written.is_ok() {
            self.head = *head;
        }
        *head = self.head;
        written
    }

    fn tell_dropped(&mut self) {
        let dropped = self.shared.dropped();
        if dropped > self.told {
            let draft = Draft::new(Kind::LimitReached, "journal").with("entries_dropped", dropped - self.told);
            self.told = dropped;
            self.shared.record(draft);
        }
    }

    /// The oldest segments go when they are too old or there is too much, and only after the journal says that they go.
    fn keep_to_limit(&mut self) -> Result<(), LogError> {
        // What was said of these is synced by now.
        if let Some(last) = self.leaving.take() {
            while self.log.front() <= last && self.log.front() != self.log.active() {
                let front = self.log.front();
                self.log.free_front()?;
                self.contents.remove(&front);
            }
        }
        let Some((last, why)) = self.outlived() else { return Ok(()) };
        let mut draft = Draft::new(Kind::JournalTrimmed, "journal").with("because", why);
        let going = || self.contents.range(..=last).map(|(_, contents)| contents);
        if let (Some(Contents { first, .. }), Some(Contents { last, .. })) = (going().next(), going().next_back()) {
            let entries: u64 = going().map(|contents| contents.entries).sum();
            draft = draft.with("entries", entries).with("from", first).with("through", last.seq).with("tag", last.tag);
        }
        self.shared.record(draft);
        self.leaving = Some(last);
        Ok(())
    }

    /// The last of the oldest segments that have to go, and why.
    fn outlived(&self) -> Option<(u32, &'static str)> {
        let (now, mut bytes, mut found) = (self.clock.wall(), self.log.disk_bytes(), None);
        let is_old = |number: &u32| {
            let newest = self.contents.get(number).map(|contents| contents.last_at);
            self.keep.zip(newest).is_some_and(|(keep, newest)| now.since(newest) > keep)
        };
        for number in self.log.segments().take_while(|number| *number != self.log.active()) {
            found = match (bytes > self.bytes_max, is_old(&number)) {
                (true, _) => Some((number, "size")),
                (false, true) => Some((number, "age")),
                (false, false) => break,
            };
            bytes = bytes.saturating_sub(self.log.segment_bytes(number));
        }
        found
    }

    fn query(&self, query: &Query) -> Result<Vec<Entry>, StoreError> {
        let mut found = Found::new(query);
        let mut last = query.after;
        let from = self
            .contents
            .iter()
            .rev()
            .find(|(_, contents)| contents.first <= query.after.saturating_add(1))
            .map_or(0, |(number, _)| *number);
        for number in self.log.segments().filter(|number| *number >= from) {
            let seen = self.log.visit(number, &mut |_, bytes| {
                if let Ok((entry, _)) = decode(bytes) {
                    last = last.max(entry.seq.0);
                    found.take(&entry);
                }
            });
            seen.map_err(|error| unread(number, &error))?;
        }
        // What could not be written is in memory for a while.
        self.shared.tail().iter().filter(|entry| entry.seq.0 > last).for_each(|entry| found.take(entry));
        Ok(found.into_entries())
    }

    fn verify(&self, anchor: Option<Anchor>) -> Result<Verified, StoreError> {
        let mut verifier = Verifier::new(self.key.clone(), anchor);
        for number in self.log.segments() {
            let seen = self.log.visit(number, &mut |_, bytes| verifier.take(bytes));
            seen.map_err(|error| unread(number, &error))?;
        }
        let is_front_there = self.log.front() == FIRST_SEGMENT;
        Ok(verifier.finish(Ends { last: self.head, is_front_there }))
    }
}

/// An entry and its tag; one written before there was a chain has none.
fn decode(bytes: &[u8]) -> Result<(Entry, Option<Tag>), DecodeError> {
    let Linked { link, entry } = Linked::read(bytes)?;
    Ok((Entry::decode(entry)?, link.map(|(_, tag)| tag)))
}

fn unread(segment: u32, error: &io::Error) -> StoreError {
    StoreError::Read { what: format!("journal segment {segment}"), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use seawall_core::journal::Seq;
    use seawall_core::time::Mono;

    use super::*;
    use crate::clock::ClockFn;
    use crate::disk::SimDisk;

    fn open(disk: &SimDisk) -> JournalEngine<SimDisk> {
        let clock = Arc::new(ClockFn(|| Mono::ZERO, Wall::default));
        JournalEngine::open(disk.clone(), &StoreOptions::new("data", "n"), [7; 32], clock).unwrap().engine
    }

    #[test]
    fn a_journal_from_before_the_chain_is_read_and_continued() {
        let disk = SimDisk::new(1);
        let mut engine = open(&disk);
        for seq in 1..=2 {
            let mut bytes = Vec::new();
            Draft::new(Kind::NodeStarted, "node").numbered(Seq(seq), Wall::default()).encode(&mut bytes);
            engine.log.append(&bytes).unwrap();
        }
        engine.log.write().unwrap();
        engine.log.sync().unwrap();
        let mut engine = open(&disk);
        assert_eq!(engine.shared.record(Draft::new(Kind::NodeStarted, "node")), Seq(3));
        engine.write_out();
        let all = Query { limit: 9, ..Query::default() };
        assert_eq!(engine.query(&all).unwrap().len(), 3);
        let found = engine.verify(None).unwrap();
        assert_eq!((found.unlinked, found.linked, found.breaks_total), (2, 1, 2), "nothing vouches for the old ones");
    }
}
