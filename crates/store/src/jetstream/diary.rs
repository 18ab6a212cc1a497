//! The journal's copy: every entry once more in the stream, some seconds after it happened.
//!
//! Nobody waits for it and nothing is decided by it: it is for the day when the node's disk is gone and people ask what
//! happened. So it is told events, as they were written, a page at a time, behind the last one it has; where the node's
//! own journal no longer has an entry, there is a gap in the numbers.

use std::collections::VecDeque;
use std::time::Duration;

use seawall_core::journal::Entry;

use super::message::{Assembler, HEAD_BYTES, Head, Incarnation, Whole, entries, head, letter};
use super::port::{Stream, StreamError};
use super::shipper::message_id;
use super::{HEAD_ROOM_BYTES, ReplicaError, incarnation};
use crate::Store;
use crate::journal::{Journal, Query};

/// Entries of a message at most.
const PAGE_ENTRIES: usize = 500;
/// Bytes of a message at most.
const PAGE_BYTES: usize = 256 << 10;
/// How long an entry may wait for others.
const GATHER: Duration = Duration::from_secs(1);
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Writes the copy. See the module's text.
pub(crate) struct Diary<S> {
    stream: S,
    journal: Journal,
    incarnation: Incarnation,
    epoch: u64,
    letter: u64,
    /// Number of the last message.
    last: u64,
    /// Numbers of entries up to here are there.
    after: u64,
    /// Messages written in this life, and their bytes.
    written: VecDeque<(u64, u64)>,
    bytes_max: u64,
}

impl<S: Stream> Diary<S> {
    pub(crate) fn new(stream: S, store: &Store, bytes_max: u64) -> Self {
        Self {
            stream,
            journal: store.journal.clone(),
            incarnation: incarnation(&store.secret.0),
            epoch: store.epoch,
            letter: 0,
            last: 0,
            after: 0,
            written: VecDeque::new(),
            bytes_max,
        }
    }

    /// Works until the journal is closed; for ever where the stream refuses.
    pub(crate) async fn run(mut self) {
        loop {
            match self.work().await {
                Ok(()) => return std::future::pending().await,
                Err(StreamError::Lost(reason)) => tracing::debug!(reason, "the journal's copy waits"),
                Err(error) => tracing::warn!(%error, "the journal is not copied"),
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    async fn work(&mut self) -> Result<(), StreamError> {
        (self.last, self.after) = match self.stream.last().await? {
            None => (0, 0),
            // A former directory's entries had numbers of their own.
            Some((number, bytes)) => match head(&bytes) {
                Ok(head) if head.incarnation == self.incarnation => (number, head.next_id.saturating_sub(1)),
                _ => (number, 0),
            },
        };
        loop {
            let query = Query { after: self.after, limit: PAGE_ENTRIES, ..Query::default() };
            let Ok(page) = self.journal.query(query).await else { return Ok(()) };
            if !page.is_empty() {
                self.write(&page).await?;
            }
            if page.len() < PAGE_ENTRIES {
                tokio::time::sleep(GATHER).await;
            }
        }
    }

    async fn write(&mut self, page: &[Entry]) -> Result<(), StreamError> {
        let room = self.stream.message_bytes_max().saturating_sub(HEAD_ROOM_BYTES).min(PAGE_BYTES);
        let (mut lines, mut bytes) = (Vec::new(), 0);
        for entry in page {
            let mut line = Vec::new();
            entry.encode(&mut line);
            bytes += line.len() + 4;
            if bytes > room && !lines.is_empty() {
                break;
            }
            self.after = entry.seq.0;
            if line.len() + 4 > room {
                tracing::warn!(entry = entry.seq.0, "an entry of the journal is too long for its copy");
                continue;
            }
            lines.push(line);
        }
        self.letter += 1;
        let head =
            Head { incarnation: self.incarnation, epoch: self.epoch, letter: self.letter, next_id: self.after + 1 };
        for message in letter(head, &lines, room + HEAD_BYTES) {
            let bytes = message.len() as u64;
            self.last = self.stream.append(message, self.last, &message_id(head, 0)).await?;
            self.written.push_back((self.last, bytes));
        }
        self.make_room().await
    }

    /// Throws away what is older than what may be kept.
    async fn make_room(&mut self) -> Result<(), StreamError> {
        let mut held: u64 = self.written.iter().map(|(_, bytes)| bytes).sum();
        if held <= self.bytes_max {
            return Ok(());
        }
        while held > self.bytes_max / 2
            && let Some((_, bytes)) = self.written.pop_front()
        {
            held -= bytes;
        }
        match self.written.front() {
            Some(&(number, _)) => self.stream.purge(number).await,
            None => Ok(()),
        }
    }
}

/// Shows every entry there is.
pub(crate) async fn read<S: Stream>(stream: &S, mut visit: impl FnMut(Entry)) -> Result<(), ReplicaError> {
    let (mut from, mut assembler) = (0, Assembler::default());
    loop {
        let page = stream.page(from).await?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        from = last + 1;
        for (number, bytes) in page {
            let misread = |reason: String| ReplicaError::Message { number, reason };
            let whole = assembler.add(number, &bytes).map_err(|error| misread(error.to_string()))?;
            if let Some(Whole::Letter { body, .. }) = whole {
                for bytes in entries(&body).map_err(|error| misread(error.to_string()))? {
                    visit(Entry::decode(bytes).map_err(|error| misread(error.to_string()))?);
                }
            }
        }
    }
}
