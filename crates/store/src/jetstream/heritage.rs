//! What a stream holds of a node that lost its directory, and how it gets into another one.

use std::path::Path;

use seawall_core::spool::NewRecord;
use seawall_core::spool::replica::Replica;

use super::ReplicaError;
use super::incarnation;
use super::message::{Assembler, Head, Whole, entries, fence, head, letter, lines};
use super::port::{Stream, StreamError};
use super::shipper::message_id;
use crate::disk::Disk;
use crate::embedded::entry::SpoolEntry;
use crate::embedded::log::io_error;
use crate::embedded::marks::{mark, unmark};
use crate::embedded::meta::{NAME as META, RESTORING};
use crate::embedded::spool::RestoreError;
use crate::embedded::{Opened, take_lock};
use crate::error::OpenError;
use crate::wrap::Wrap;

/// The messages of a node, as they were found.
#[derive(Debug)]
pub(crate) struct Heritage<S> {
    stream: S,
    wrap: Wrap,
    /// Who wrote last, and the number of that.
    pub(crate) last: Option<(u64, Head)>,
    /// If that was a fence, what it says.
    fence: Option<String>,
    /// What is done to every record that is taken over.
    restamp: Option<Restamp>,
}

/// Gives a record the stamp under which it goes on.
pub(crate) struct Restamp(pub(crate) Box<dyn Fn(&mut NewRecord) + Send + Sync>);

impl std::fmt::Debug for Restamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Restamp(..)")
    }
}

/// Marks a directory as one that takes over. Cut short, it is done again, from the beginning: nothing was promised from
/// what was copied, and meanwhile another may have taken it in.
pub(crate) fn begin<D: Disk>(disk: &D, dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(RESTORING);
    disk.create_dir_all(dir).map_err(io_error("make folder", dir))?;
    if disk.read(&path).is_ok() {
        // Nobody else may be at it.
        let _lock = take_lock(disk, dir)?;
        for folder in ["spool", "journal", "ledger"].map(|name| dir.join(name)) {
            for name in disk.list(&folder).unwrap_or_default() {
                let path = folder.join(name);
                disk.remove(&path).map_err(io_error("remove", &path))?;
            }
        }
        let meta = dir.join(META);
        if disk.read(&meta).is_ok() {
            disk.remove(&meta).map_err(io_error("remove", &meta))?;
        }
        return disk.sync_dir(dir).map_err(io_error("sync folder", dir));
    }
    mark(disk, dir, RESTORING, "")
}

/// It has taken over.
pub(crate) fn end<D: Disk>(disk: &D, dir: &Path) -> Result<(), OpenError> {
    unmark(disk, dir, RESTORING)
}

impl<S: Stream> Heritage<S> {
    pub(crate) async fn of(stream: S, wrap: Wrap) -> Result<Self, ReplicaError> {
        let (mut last, mut fence) = (None, None);
        if let Some((number, bytes)) = stream.last().await? {
            let misread = |error: seawall_core::spool::wire::DecodeError| message_error(number, &error.to_string());
            last = Some((number, head(&bytes).map_err(misread)?));
            if let Ok(Some(Whole::Fence { words, .. })) = Assembler::default().add(number, &bytes) {
                fence = Some(words);
            }
        }
        Ok(Self { stream, wrap, last, fence, restamp: None })
    }

    pub(crate) fn restamped_by(self, restamp: Restamp) -> Self {
        Self { restamp: Some(restamp), ..self }
    }

    pub(crate) const fn is_fenced(&self) -> bool {
        self.fence.is_some()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.last.map_or(0, |(_, head)| head.epoch)
    }

    pub(crate) async fn take_over<D: Disk>(self, opened: &mut Opened<D>) -> Result<u64, ReplicaError> {
        let ours = incarnation(&opened.store.secret.0);
        let Some((last, _)) = self.last.filter(|(_, head)| head.incarnation != ours) else { return Ok(0) };
        if let Some(words) = &self.fence
            && self.stream.page(0).await?.first().is_some_and(|(first, _)| *first < last)
        {
            return Err(ReplicaError::Refused(format!(
                "what the stream holds of this node is being taken in elsewhere ({words}), and that is not finished: \
                 repeat that `seawall spool adopt` first"
            )));
        }
        let restored = self.copy_into(opened).await?;
        let next_id = opened.engine.next_id();
        let head = Head { incarnation: ours, epoch: opened.store.epoch, letter: 0, next_id };
        let message = letter(head, &[], 1024).remove(0);
        let told = self.stream.append(message, last, &message_id(head, 0)).await;
        told.map_err(|error| match error {
            StreamError::Lost(reason) => ReplicaError::Lost(format!(
                "cannot say that this directory took over ({reason}); is another node of this name running?"
            )),
            other => other.into(),
        })?;
        Ok(restored)
    }

    /// Takes in what the replica has and a damaged directory has lost: records that wait or are parked there and are
    /// not known here at all. Returns how many.
    pub(crate) async fn fill<D: Disk>(&self, opened: &mut Opened<D>) -> Result<u64, ReplicaError> {
        let Some((last, _)) = self.last.filter(|_| self.fence.is_none()) else { return Ok(0) };
        let mut there = Replica::new();
        self.read_to(last, |number, bytes, entries| {
            there.learn(number, bytes, &lines(entries).map_err(|error| error.to_string())?);
            Ok(())
        })
        .await?;
        opened.engine.survey(&mut there);
        let missing = there.unseen();
        let engine = &mut opened.engine;
        self.read_to(last, |_, _, entries| {
            let opened = entries.iter().map(|entry| self.opened_entry(entry)).collect::<Result<Vec<_>, _>>()?;
            let of_missing = |bytes: &&Vec<u8>| SpoolEntry::decode(bytes).is_ok_and(|it| missing.contains(&it.id()));
            let wanted: Vec<&[u8]> = opened.iter().filter(of_missing).map(Vec::as_slice).collect();
            engine.restore(0, &wanted).map_err(|error| error.to_string())
        })
        .await?;
        engine.end_restore().map_err(|error| ReplicaError::Restore(error.to_string()))?;
        self.count(opened);
        Ok(missing.len() as u64)
    }

    pub(crate) async fn fence(&mut self, words: &str) -> Result<(), ReplicaError> {
        if let Some(known) = self.fence.as_deref().filter(|known| *known != words) {
            return Err(ReplicaError::Refused(format!(
                "this is done already, by another: {known}; repeat the command there"
            )));
        }
        let (None, Some((last, head))) = (&self.fence, self.last) else { return Ok(()) };
        // Behind the last message found: if the node lives and writes another one meanwhile, the line is refused.
        let id = format!("fence-{last}");
        let number = self.stream.append(fence(head, words), last, &id).await?;
        (self.last, self.fence) = (Some((number, head)), Some(words.into()));
        Ok(())
    }

    pub(crate) async fn copy_into<D: Disk>(&self, opened: &mut Opened<D>) -> Result<u64, ReplicaError> {
        let Some((last, Head { next_id, .. })) = self.last else { return Ok(0) };
        let (engine, mut restored) = (&mut opened.engine, 0);
        self.read_to(last, |_, _, entries| {
            let opened = entries.iter().map(|entry| self.opened_entry(entry)).collect::<Result<Vec<_>, _>>()?;
            restored += opened.len() as u64;
            let opened: Vec<&[u8]> = opened.iter().map(Vec::as_slice).collect();
            engine.restore(next_id, &opened).map_err(|error| error.to_string())
        })
        .await?;
        let failed = |error: RestoreError| ReplicaError::Restore(error.to_string());
        engine.restore(next_id, &[]).map_err(failed)?;
        engine.end_restore().map_err(failed)?;
        self.count(opened);
        Ok(restored)
    }

    fn count<D: Disk>(&self, opened: &mut Opened<D>) {
        let depth = opened.store.spool.depth();
        (opened.report.waiting, opened.report.parked) = (depth.waiting, depth.parked);
    }

    /// Shows every letter up to a message: its number, its bytes, its entries.
    async fn read_to(
        &self,
        last: u64,
        mut visit: impl FnMut(u64, u64, &[&[u8]]) -> Result<(), String>,
    ) -> Result<(), ReplicaError> {
        let (mut from, mut assembler) = (0, Assembler::default());
        while from <= last {
            let page = self.stream.page(from).await?;
            let Some((end, _)) = page.last() else { break };
            from = end + 1;
            for (number, bytes) in page.into_iter().take_while(|(number, _)| *number <= last) {
                let misread = |reason: String| ReplicaError::Message { number, reason };
                let whole = assembler.add(number, &bytes).map_err(|error| misread(error.to_string()))?;
                // A line that was drawn is the last message, or one above which nothing is left.
                let Some(Whole::Letter { number, first_bytes, body, .. }) = whole else { continue };
                let entries = entries(&body).map_err(|error| misread(error.to_string()))?;
                visit(number, first_bytes, &entries).map_err(misread)?;
            }
        }
        Ok(())
    }

    pub(crate) async fn clear(self) -> Result<(), ReplicaError> {
        match (self.last, &self.fence) {
            (Some((last, _)), Some(_)) => Ok(self.stream.purge(last).await?),
            _ => Ok(()),
        }
    }

    /// An entry, its record neither packed nor sealed.
    fn opened_entry(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        match SpoolEntry::decode(bytes).map_err(|error| error.to_string())? {
            SpoolEntry::Moved { id, attempts, error, parked, record } => {
                let mut record = self.wrap.unwrap(record).map_err(|error| error.to_string())?.into_owned();
                if let Some(Restamp(restamp)) = &self.restamp {
                    let mut whole = NewRecord::decode(&record).map_err(|error| error.to_string())?;
                    restamp(&mut whole);
                    record.clear();
                    whole.encode(&mut record);
                }
                Ok(SpoolEntry::Moved { id, attempts, error, parked, record: &record }.to_bytes())
            }
            _ => Ok(bytes.to_vec()),
        }
    }
}

fn message_error(number: u64, reason: &str) -> ReplicaError {
    ReplicaError::Message { number, reason: reason.into() }
}
