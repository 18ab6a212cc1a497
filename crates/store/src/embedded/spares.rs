//! Segments made ahead of their time, so that beginning one costs a rename.
//!
//! Picture empty notebooks in a drawer. One always lies ready: new records are taken only while it does, so that what
//! must be written about old ones has paper. When the one in use begins to fill, a second is made beside the writer,
//! and the spool's is written with zeros once, because a sync into blocks that were only reserved costs half as much
//! again or twice (measured on ext4: 106 us against 173 to 225).
//!
//! Invariants: spares have the numbers after the active segment's, without gaps, and each a temporary name of its own;
//! a spare that is only wished for is of the usual size or not made at all.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use super::log::{Active, LogOptions, segment_bytes_for};
use super::segment::{HEADER_BYTES, Header, LogKind};
use crate::disk::{Background, Disk, DiskFile, is_no_space};

/// Spares wished for: the one that is needed, and the next.
const SPARES: usize = 2;

#[derive(Debug)]
pub(super) struct Spares<D: Disk> {
    ready: VecDeque<Active<D::File>>,
    making: Option<Background<Active<D::File>>>,
    /// There was no room for one that was only wished for: not asked again until something has changed.
    is_tight: bool,
}

impl<D: Disk> Spares<D> {
    pub(super) const fn new() -> Self {
        Self { ready: VecDeque::new(), making: None, is_tight: false }
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Bytes of those that are ready.
    pub(super) fn bytes(&self) -> u64 {
        self.ready.iter().map(|spare| spare.size).sum()
    }

    /// Has the segment with this number ready, with room for a record of so many bytes: of the usual size, or of what
    /// room there is.
    pub(super) fn ensure(&mut self, disk: &D, options: &LogOptions, number: u32, record_bytes: u64) -> io::Result<()> {
        let bytes_min = segment_bytes_for(record_bytes).max(options.segment_bytes_min);
        self.collect(self.ready.is_empty());
        if self.ready.front().is_none_or(|spare| spare.size < bytes_min) {
            self.clear(disk, &options.dir);
            self.ready.push_back(make(disk, options, number, bytes_min)?);
        }
        Ok(())
    }

    /// Begins to make the one after those that are ready, if it is missing. `number` is the first spare's.
    pub(super) fn look_ahead(&mut self, disk: &D, options: &LogOptions, number: u32) {
        self.collect(false);
        if self.ready.len() < SPARES && self.making.is_none() && !self.is_tight {
            let (beside, options, number) = (disk.clone(), options.clone(), number + self.ready.len() as u32);
            self.making = Some(disk.begin(move || make_ahead(&beside, &options, number)));
            self.collect(false);
        }
    }

    /// The next segment. [`Self::ensure`] has it ready.
    pub(super) fn take(&mut self) -> Active<D::File> {
        self.is_tight = false;
        self.ready.pop_front().expect("made just now")
    }

    /// There is more room on the disk than before.
    pub(super) const fn take_heart(&mut self) {
        self.is_tight = false;
    }

    /// Throws those away that there are: what they take may be the room that the next one needs.
    fn clear(&mut self, disk: &D, dir: &Path) {
        self.collect(true);
        for spare in self.ready.drain(..) {
            let _ = disk.remove(&path(dir, spare.number));
        }
    }

    fn collect(&mut self, waits: bool) {
        let Some(making) = self.making.take_if(|making| waits || making.is_done()) else { return };
        match making.wait() {
            Ok(spare) => self.ready.push_back(spare),
            // Nothing depends on it. If the disk is sick the next sync of ours will say so.
            Err(_) => self.is_tight = true,
        }
    }
}

/// Makes a segment under a temporary name, header synced. Tries smaller ones where there is no room for the usual.
pub(super) fn make<D: Disk>(
    disk: &D,
    options: &LogOptions,
    number: u32,
    bytes_min: u64,
) -> io::Result<Active<D::File>> {
    let mut size = options.segment_bytes.max(bytes_min);
    loop {
        match make_sized(disk, options, number, size, false) {
            Err(error) if is_no_space(&error) && size > bytes_min => size = (size / 2).max(bytes_min),
            made => return made,
        }
    }
}

/// Makes a segment of the usual size; the spool's with every block written, since people wait for its syncs.
fn make_ahead<D: Disk>(disk: &D, options: &LogOptions, number: u32) -> io::Result<Active<D::File>> {
    let size = options.segment_bytes.max(options.segment_bytes_min);
    make_sized(disk, options, number, size, options.kind == LogKind::Spool)
}

fn make_sized<D: Disk>(
    disk: &D,
    options: &LogOptions,
    number: u32,
    size: u64,
    is_written: bool,
) -> io::Result<Active<D::File>> {
    let path = path(&options.dir, number);
    let salt = salt_of(options, number);
    let file = match disk.create(&path, size) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(&path)?;
            disk.create(&path, size)?
        }
        created => created?,
    };
    let zeros = if is_written { file.write_zeros(HEADER_BYTES as u64) } else { Ok(()) };
    zeros
        .and_then(|()| file.write_at(&Header { number, salt }.encode(options.kind), 0))
        .and_then(|()| file.sync_data())
        .inspect_err(|_| _ = disk.remove(&path))?;
    Ok(Active { number, salt, file, end: HEADER_BYTES as u64, size })
}

/// The temporary name of a segment that is not begun.
pub(super) fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("next-{number:010}.tmp"))
}

/// True for the name of a spare, of this version or an earlier one.
pub(super) fn is_name(name: &str) -> bool {
    name.starts_with("next") && name.ends_with(".tmp")
}

/// The salt of a segment.
pub(super) fn salt_of(options: &LogOptions, number: u32) -> u64 {
    let mut hasher = blake3::Hasher::new_keyed(&options.salt_key);
    hasher.update(options.kind.description().as_bytes()).update(&number.to_le_bytes());
    let hash = hasher.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]))
}
