//! What a stream holds of a node that lost its directory, and how it gets into another one.

use std::path::Path;

use super::ReplicaError;
use super::incarnation;
use super::message::{Assembler, Head, Whole, entries, fence, head, letter};
use super::port::Stream;
use super::shipper::message_id;
use crate::disk::{Disk, DiskFile};
use crate::embedded::Opened;
use crate::embedded::entry::SpoolEntry;
use crate::embedded::log::io_error;
use crate::embedded::meta::RESTORING;
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
}

/// Marks a directory as one that takes over. Cut short, it is done again.
pub(crate) fn begin<D: Disk>(disk: &D, dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(RESTORING);
    disk.create_dir_all(dir).map_err(io_error("make folder", dir))?;
    if disk.read(&path).is_err() {
        disk.create(&path, 0).and_then(|file| file.sync_data()).map_err(io_error("make", &path))?;
    }
    disk.sync_dir(dir).map_err(io_error("sync folder", dir))
}

/// It has taken over.
pub(crate) fn end<D: Disk>(disk: &D, dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(RESTORING);
    disk.remove(&path).map_err(io_error("remove", &path))?;
    disk.sync_dir(dir).map_err(io_error("sync folder", dir))
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
        Ok(Self { stream, wrap, last, fence })
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.last.map_or(0, |(_, head)| head.epoch)
    }

    pub(crate) async fn take_over<D: Disk>(self, opened: &mut Opened<D>) -> Result<u64, ReplicaError> {
        let ours = incarnation(&opened.store.secret.0);
        let Some((last, _)) = self.last.filter(|(_, head)| head.incarnation != ours) else { return Ok(0) };
        if let Some(words) = &self.fence
            && self.stream.next(0).await?.is_some_and(|(first, _)| first < last)
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
        self.stream.append(message, last, &message_id(head, 0)).await?;
        Ok(restored)
    }

    pub(crate) async fn fence(&mut self, words: &str) -> Result<(), ReplicaError> {
        let (None, Some((last, head))) = (&self.fence, self.last) else { return Ok(()) };
        // Behind the last message found: if the node lives and writes another one meanwhile, the line is refused.
        let id = format!("fence-{last}");
        let number = self.stream.append(fence(head, words), last, &id).await?;
        (self.last, self.fence) = (Some((number, head)), Some(words.into()));
        Ok(())
    }

    pub(crate) async fn copy_into<D: Disk>(&self, opened: &mut Opened<D>) -> Result<u64, ReplicaError> {
        let Some((last, Head { next_id, .. })) = self.last else { return Ok(0) };
        let engine = &mut opened.engine;
        let failed = |error: &dyn std::fmt::Display| ReplicaError::Restore(error.to_string());
        let (mut restored, mut from, mut assembler) = (0, 0, Assembler::default());
        while let Some((number, bytes)) = self.stream.next(from).await?
            && number <= last
        {
            from = number + 1;
            let whole = assembler.add(number, &bytes).map_err(|error| message_error(number, &error.to_string()))?;
            // A line that was drawn: the last message, or one above which nothing is left.
            let Some(Whole::Letter { body, .. }) = whole else { continue };
            let entries = self.opened(&body).map_err(|error| message_error(number, &error))?;
            restored += entries.len() as u64;
            let entries: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
            engine.restore(next_id, &entries).map_err(|error| failed(&error))?;
        }
        engine.restore(next_id, &[]).and_then(|()| engine.end_restore()).map_err(|error| failed(&error))?;
        let depth = opened.store.spool.depth();
        (opened.report.waiting, opened.report.parked) = (depth.waiting, depth.parked);
        Ok(restored)
    }

    pub(crate) async fn clear(self) -> Result<(), ReplicaError> {
        match (self.last, &self.fence) {
            (Some((last, _)), Some(_)) => Ok(self.stream.purge(last).await?),
            _ => Ok(()),
        }
    }

    /// The entries of a letter, records neither packed nor sealed.
    fn opened(&self, body: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let open = |bytes: &[u8]| match SpoolEntry::decode(bytes).map_err(|error| error.to_string())? {
            SpoolEntry::Moved { id, attempts, error, parked, record } => {
                let record = self.wrap.unwrap(record).map_err(|error| error.to_string())?;
                Ok(SpoolEntry::Moved { id, attempts, error, parked, record: &record }.to_bytes())
            }
            _ => Ok(bytes.to_vec()),
        };
        entries(body).map_err(|error| error.to_string())?.into_iter().map(open).collect()
    }
}

fn message_error(number: u64, reason: &str) -> ReplicaError {
    ReplicaError::Message { number, reason: reason.into() }
}
