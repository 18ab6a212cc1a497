//! A segmented append-only log with one writer: stage records, write them as one batch, sync.
//!
//! Picture numbered notebooks of fixed size. Only the last is written in; when it is full the next, already lying
//! ready, is taken. Notebooks are thrown away from the front only, so that a later word about an earlier record is
//! never lost before the record is.
//!
//! Invariants: a segment appears under its name only when its header is safe, and the folder is synced after every
//! change of names. A segment is synced before the next one is begun. After any failed sync, and after a failed write
//! that was not for want of space, the log is stopped for good: nobody knows what the disk holds.
//! Not here: what records mean, threads.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::LogReport;
use super::segment::{
    ALIGN_BYTES, BATCH_HEADER_BYTES, BatchBuilder, FORMAT_VERSION, FRAME_BYTES, FoundBatch, HEADER_BYTES, Header,
    HeaderError, LogKind, Scan, check_frame, place_of,
};
use super::spares::{self, Spares};
use crate::disk::{Disk, DiskFile, is_no_space, is_out_of_files};
use crate::error::OpenError;
use crate::options::OnDamage;

/// A segment filled beyond this share (one in so many) is in use: the one after the next will be needed.
const BUSY_SHARE: u64 = 8;
/// Read handles kept open.
const READERS_MAX: usize = 64;
/// Number of a log's first batch.
const FIRST_BATCH: u64 = 1;
const REPAIR_NAME: &str = "repair.tmp";

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    /// Of the record, without its frame.
    pub(crate) bytes: u32,
}

impl Place {
    /// Bytes it takes in its segment.
    pub(crate) const fn footprint(self) -> u64 {
        self.bytes as u64 + FRAME_BYTES as u64
    }
}

/// How a log is kept.
#[derive(Clone, Debug)]
pub(crate) struct LogOptions {
    pub(crate) kind: LogKind,
    pub(crate) dir: PathBuf,
    /// Bytes of a segment where the disk has room.
    pub(crate) segment_bytes: u64,
    /// Bytes of a segment where it has little: the longest record must fit.
    pub(crate) segment_bytes_min: u64,
    pub(crate) on_damage: OnDamage,
    /// Makes the salts of segments.
    pub(crate) salt_key: [u8; 32],
}

/// Why nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LogError {
    /// There is no room; what was staged is gone and nothing else has changed.
    #[error("the disk is full")]
    NoSpace,
    /// The log is stopped for good.
    #[error("{0}")]
    Stopped(String),
}

#[derive(Debug)]
pub(super) struct Active<F> {
    pub(super) number: u32,
    pub(super) salt: u64,
    pub(super) file: F,
    /// Where the next batch begins.
    pub(super) end: u64,
    pub(super) size: u64,
}

/// The log. See the module's text.
#[derive(Debug)]
pub(crate) struct Log<D: Disk> {
    disk: D,
    options: LogOptions,
    active: Active<D::File>,
    spares: Spares<D>,
    /// Sizes of all segments, the active one included.
    segments: BTreeMap<u32, u64>,
    /// The sum of these.
    segment_bytes: u64,
    readers: BTreeMap<u32, D::File>,
    /// True if the last read failed because no more files could be opened.
    out_of_files: bool,
    staged: BatchBuilder,
    next_batch: u64,
    /// The highest batch number known to be safe.
    synced: u64,
    /// A batch for which there was no room may have left something behind the active segment's end.
    is_end_dirty: bool,
    stopped: Option<String>,
}

/// What opening found besides the records.
type Found<D> = (Log<D>, LogReport);

impl<D: Disk> Log<D> {
    /// Opens the log, or begins one. Every record is shown to `visit` in the order written.
    pub(crate) fn open(
        disk: D,
        options: LogOptions,
        visit: &mut dyn FnMut(Place, &[u8]),
    ) -> Result<Found<D>, OpenError> {
        Recovery { disk, options, report: LogReport::default(), segments: BTreeMap::new(), expect: None, end: None }
            .run(visit)
    }

    /// Adds a record to the next batch. `None` if the active segment has no room for it: write, roll, try again.
    pub(crate) fn stage(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Option<Place> {
        let room = (self.active.size - self.active.end) as usize;
        let (at, bytes) = self.staged.push(room, fill)?;
        let offset = u32::try_from(self.active.end as usize + at).expect("a segment is below 4 GiB");
        Some(Place { segment: self.active.number, offset, bytes: bytes as u32 })
    }

    /// True if a record of so many bytes can be staged without a new segment.
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        let staged = self.staged.len().max(BATCH_HEADER_BYTES);
        ((staged + FRAME_BYTES + bytes).next_multiple_of(ALIGN_BYTES) as u64) <= self.room()
    }

    /// Writes what was staged as one batch; not yet safe.
    pub(crate) fn write(&mut self) -> Result<(), LogError> {
        self.check().inspect_err(|_| self.staged.clear())?;
        if self.staged.is_empty() {
            return Ok(());
        }
        let bytes = self.staged.finish(self.next_batch, self.synced, self.active.salt);
        let (written, length) = (self.active.file.write_at(bytes, self.active.end), bytes.len() as u64);
        self.staged.clear();
        match written {
            Ok(()) => {
                self.active.end += length;
                self.next_batch += 1;
                Ok(())
            }
            // What may be there is no valid batch, and the next one overwrites it.
            Err(error) if is_no_space(&error) => {
                self.is_end_dirty = true;
                Err(LogError::NoSpace)
            }
            Err(error) => Err(self.stop("write", self.path(self.active.number), &error)),
        }
    }

    /// Makes everything written safe. A failure stops the log.
    pub(crate) fn sync(&mut self) -> Result<(), LogError> {
        self.check()?;
        if self.synced + 1 == self.next_batch {
            return Ok(());
        }
        if let Err(error) = self.active.file.sync_data() {
            return Err(self.stop("sync", self.path(self.active.number), &error));
        }
        self.synced = self.next_batch - 1;
        Ok(())
    }

    /// Forgets what was staged.
    pub(crate) fn unstage(&mut self) {
        self.staged.clear();
    }

    /// Syncs the active segment and begins the next one, with room for a record of so many bytes. Without room
    /// nothing has changed.
    pub(crate) fn roll(&mut self, record_bytes: u64) -> Result<(), LogError> {
        self.check()?;
        assert!(self.staged.is_empty(), "staged records belong to the segment they were staged for");
        self.sync()?;
        self.ensure_spare(record_bytes)?;
        self.clean_end()?;
        let next = self.spares.take();
        let path = self.path(next.number);
        let named = self.disk.rename(&spares::path(&self.options.dir, next.number), &path);
        if let Err(error) = named.and_then(|()| self.disk.sync_dir(&self.options.dir)) {
            return Err(self.stop("name", path, &error));
        }
        self.segments.insert(next.number, next.size);
        self.segment_bytes += next.size;
        let before = std::mem::replace(&mut self.active, next);
        self.keep_reader(before.number, before.file);
        Ok(())
    }

    /// Cuts off what a batch without room left there: in a segment that is followed by others it would be damage.
    fn clean_end(&mut self) -> Result<(), LogError> {
        if !std::mem::take(&mut self.is_end_dirty) {
            return Ok(());
        }
        let Active { number, end, ref file, .. } = self.active;
        if let Err(error) = file.set_len(end).and_then(|()| file.sync_data()) {
            return Err(self.stop("cut", self.path(number), &error));
        }
        self.segment_bytes -= self.active.size - end;
        self.segments.insert(number, end);
        self.active.size = end;
        Ok(())
    }

    /// Has the next segment ready: of the usual size, or of what room there is, and never too small for a record of
    /// so many bytes.
    pub(crate) fn ensure_spare(&mut self, record_bytes: u64) -> Result<(), LogError> {
        self.check()?;
        let next = self.active.number + 1;
        match self.spares.ensure(&self.disk, &self.options, next, record_bytes) {
            Ok(()) => {
                // A log that is not written to needs no more.
                if self.active.end > self.active.size / BUSY_SHARE {
                    self.spares.look_ahead(&self.disk, &self.options, next);
                }
                Ok(())
            }
            Err(error) if is_no_space(&error) => Err(LogError::NoSpace),
            Err(error) => Err(self.stop("make", spares::path(&self.options.dir, next), &error)),
        }
    }

    /// Stages a record, in a new segment if need be; then what was staged before is written and synced.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<Place, LogError> {
        self.check()?;
        if let Some(place) = self.stage(|out| out.extend_from_slice(bytes)) {
            return Ok(place);
        }
        self.write()?;
        self.roll(bytes.len() as u64)?;
        Ok(self.stage(|out| out.extend_from_slice(bytes)).expect("a new segment has room for it"))
    }

    /// Reads a record back and checks it.
    pub(crate) fn read(&mut self, place: Place) -> io::Result<Vec<u8>> {
        let mut frame = vec![0; place.footprint() as usize];
        let reader = self.reader(place.segment);
        let out_of_files = reader.as_ref().is_err_and(is_out_of_files);
        let read = reader.and_then(|reader| reader.read_at(&mut frame, u64::from(place.offset)));
        self.out_of_files = out_of_files;
        read?;
        if !check_frame(&frame) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum does not match"));
        }
        frame.drain(..FRAME_BYTES);
        Ok(frame)
    }

    /// True if the last read failed because no more files could be opened: it may be tried again.
    pub(crate) fn is_out_of_files(&self) -> bool {
        self.out_of_files
    }

    /// Shows every record of a segment.
    pub(crate) fn visit(&self, number: u32, visit: &mut dyn FnMut(Place, &[u8])) -> io::Result<()> {
        let image = self.disk.read(&self.path(number))?;
        let header = Header::decode(&image, self.options.kind)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the header does not match"))?;
        for batch in Scan::of(&image, header.salt).batches {
            show(number, &image, &batch, visit);
        }
        Ok(())
    }

    /// Throws the oldest segment away; never the active one.
    pub(crate) fn free_front(&mut self) -> Result<(), LogError> {
        self.check()?;
        let front = self.front();
        assert!(front != self.active.number, "the active segment is in use");
        self.readers.remove(&front);
        let path = self.path(front);
        // Synced one by one: what a crash brings back must be next to what is left.
        let removed = self.disk.remove(&path).and_then(|()| self.disk.sync_dir(&self.options.dir));
        if let Err(error) = removed {
            return Err(self.stop("remove", path, &error));
        }
        self.segment_bytes -= self.segments.remove(&front).unwrap_or(0);
        self.spares.take_heart();
        Ok(())
    }

    /// Keeps a copy of a segment that holds what nobody understands, before it may be thrown away.
    pub(crate) fn keep_damaged(&self, number: u32) -> Result<PathBuf, OpenError> {
        let path = self.path(number);
        let kept = path.with_extension("log.damaged");
        let bytes = self.disk.read(&path).map_err(io_error("read", &path))?;
        write_whole(&self.disk, &kept, &bytes)?;
        self.disk.sync_dir(&self.options.dir).map_err(io_error("sync folder", &self.options.dir))?;
        Ok(kept)
    }

    /// Where a segment is.
    pub(crate) fn path(&self, number: u32) -> PathBuf {
        segment_path(&self.options.dir, number)
    }

    /// Number of the oldest segment.
    pub(crate) fn front(&self) -> u32 {
        *self.segments.keys().next().expect("there is always an active segment")
    }

    /// Number of the segment written in.
    pub(crate) const fn active(&self) -> u32 {
        self.active.number
    }

    /// Bytes the active segment still has, for records and batch headers.
    pub(crate) const fn room(&self) -> u64 {
        self.active.size - self.active.end
    }

    pub(crate) fn has_spare(&self) -> bool {
        self.spares.is_ready()
    }

    /// Numbers of all segments, the oldest first.
    pub(crate) fn segments(&self) -> impl Iterator<Item = u32> {
        self.segments.keys().copied()
    }

    /// Bytes of one segment; 0 if there is none.
    pub(crate) fn segment_bytes(&self, number: u32) -> u64 {
        self.segments.get(&number).copied().unwrap_or(0)
    }

    /// Bytes of all segments but the active one.
    pub(crate) fn closed_bytes(&self) -> u64 {
        self.segment_bytes - self.active.size
    }

    /// Bytes of all files.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.segment_bytes + self.spares.bytes()
    }

    /// Why it stopped, once it has.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    fn check(&self) -> Result<(), LogError> {
        match &self.stopped {
            Some(reason) => Err(LogError::Stopped(reason.clone())),
            None => Ok(()),
        }
    }

    fn stop(&mut self, what: &str, path: PathBuf, error: &io::Error) -> LogError {
        let reason = format!("cannot {what} `{}`: {error}", path.display());
        self.stopped = Some(reason.clone());
        LogError::Stopped(reason)
    }

    fn reader(&mut self, number: u32) -> io::Result<&D::File> {
        if number == self.active.number {
            return Ok(&self.active.file);
        }
        if !self.readers.contains_key(&number) {
            let file = self.disk.open(&self.path(number))?;
            self.keep_reader(number, file);
        }
        Ok(&self.readers[&number])
    }

    fn keep_reader(&mut self, number: u32, file: D::File) {
        if self.readers.len() >= READERS_MAX {
            self.readers.pop_last();
        }
        self.readers.insert(number, file);
    }
}

/// Bytes a segment must have for a record to fit with everything around it.
pub(crate) const fn segment_bytes_for(record_bytes: u64) -> u64 {
    (HEADER_BYTES + BATCH_HEADER_BYTES * 2 + FRAME_BYTES * 2) as u64 + record_bytes
}

fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:010}.log"))
}

fn show(number: u32, image: &[u8], batch: &FoundBatch, visit: &mut dyn FnMut(Place, &[u8])) {
    for record in &batch.records {
        visit(place_of(number, record), &image[record.clone()]);
    }
}

/// Reads a log from the first segment to the last, and makes it whole.
struct Recovery<D: Disk> {
    disk: D,
    options: LogOptions,
    report: LogReport,
    segments: BTreeMap<u32, u64>,
    /// Number of the batch that comes next; `None` before the first where its elders are gone: it may have any.
    expect: Option<u64>,
    /// Where the last good batch ended.
    end: Option<(u32, u64, u64)>,
}

/// A segment that was read and checked.
struct Image {
    bytes: Vec<u8>,
    salt: u64,
    scan: Scan,
    is_header_damaged: bool,
}

/// The first batch of a scan that is not the one expected, and what that means.
enum Verdict {
    Whole,
    /// Everything from this batch on had not been promised to anybody.
    Torn {
        from: usize,
    },
    /// From this batch on something is missing that had been promised.
    Damaged {
        from: usize,
        what: String,
    },
}

impl<D: Disk> Recovery<D> {
    fn run(mut self, visit: &mut dyn FnMut(Place, &[u8])) -> Result<Found<D>, OpenError> {
        let dir = self.options.dir.clone();
        self.disk.create_dir_all(&dir).map_err(io_error("make folder", &dir))?;
        let numbers = self.list()?;
        // The first batch of all is known; that of a segment whose elders were thrown away is not.
        self.expect = numbers.first().filter(|&&first| first == 1).map(|_| FIRST_BATCH);
        for (at, &number) in numbers.iter().enumerate() {
            self.recover(number, &numbers[at + 1..], visit)?;
        }
        if self.segments.is_empty() {
            self.begin()?;
        }
        self.finish()
    }

    /// Numbers of the segments; leftovers of an earlier attempt are removed.
    fn list(&mut self) -> Result<Vec<u32>, OpenError> {
        let dir = self.options.dir.clone();
        let names = self.disk.list(&dir).map_err(io_error("list", &dir))?;
        let mut numbers = Vec::new();
        for name in names {
            let path = dir.join(&name);
            if spares::is_name(&name) || name == REPAIR_NAME {
                self.disk.remove(&path).map_err(io_error("remove", &path))?;
            } else if let Some(stem) = name.strip_suffix(".log") {
                let expected = self.options.kind.description();
                let number = stem.parse().map_err(|_| OpenError::Foreign { path, expected })?;
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn recover(&mut self, number: u32, later: &[u32], visit: &mut dyn FnMut(Place, &[u8])) -> Result<(), OpenError> {
        let mut image = self.read(number)?;
        let mut verdict = self.judge(&image, later)?;
        if let Verdict::Damaged { from, what } = verdict {
            if self.options.on_damage == OnDamage::Refuse {
                return Err(self.damage_error(number, &image, from, what));
            }
            self.repair(number, &image)?;
            image = self.read(number)?;
            verdict = self.judge(&image, later)?;
        }
        let good = match verdict {
            Verdict::Torn { from } => from,
            Verdict::Whole | Verdict::Damaged { .. } => image.scan.batches.len(),
        };
        let mut end = HEADER_BYTES as u64;
        for batch in &image.scan.batches[..good] {
            show(number, &image.bytes, batch, visit);
            self.report.records += batch.records.len() as u64;
            self.expect = Some(batch.seq + 1);
            end = batch.end as u64;
        }
        self.cut(number, &image, end, later.is_empty())?;
        if later.is_empty() {
            self.rewrite(number, &image, &image.scan.batches[..good])?;
        }
        self.report.segments += 1;
        Ok(())
    }

    fn read(&self, number: u32) -> Result<Image, OpenError> {
        let path = segment_path(&self.options.dir, number);
        let bytes = self.disk.read(&path).map_err(io_error("read", &path))?;
        let known = u32::from(FORMAT_VERSION);
        let expected = self.options.kind.description();
        let (salt, is_header_damaged) = match Header::decode(&bytes, self.options.kind) {
            Ok(header) if header.number == number => (header.salt, false),
            Ok(_) | Err(HeaderError::Foreign) => return Err(OpenError::Foreign { path, expected }),
            Err(HeaderError::Damaged { salt }) => (salt, true),
            Err(HeaderError::Version(found)) if found > FORMAT_VERSION => {
                return Err(OpenError::Newer { path, found: found.into(), known });
            }
            Err(HeaderError::Version(found)) => return Err(OpenError::Older { path, found: found.into(), known }),
        };
        let mut image = Image { scan: Scan::of(&bytes, salt), bytes, salt, is_header_damaged };
        if is_header_damaged && image.scan.batches.is_empty() {
            // The salt may be what is wrong.
            image.salt = spares::salt_of(&self.options, number);
            image.scan = Scan::of(&image.bytes, image.salt);
        }
        Ok(image)
    }

    fn judge(&self, image: &Image, later: &[u32]) -> Result<Verdict, OpenError> {
        if image.is_header_damaged {
            return Ok(Verdict::Damaged { from: 0, what: "its header does not match".into() });
        }
        let batches = &image.scan.batches;
        let mut expect = self.expect;
        // All zeros is one that was begun and not used: what it should have held did not fit into it.
        let is_unused = image.scan.dirty_end <= HEADER_BYTES;
        if expect.is_none() && batches.is_empty() && !is_unused && self.is_followed(0, later)? {
            return Ok(Verdict::Damaged { from: 0, what: "there is no batch in it".into() });
        }
        for (at, batch) in batches.iter().enumerate() {
            let follows = match expect {
                Some(expect) => batch.seq == expect || (batch.is_filler && batch.seq > expect),
                // Nothing is written in front of the first.
                None => batch.at == HEADER_BYTES,
            };
            if follows && batch.bad == 0 {
                expect = Some(batch.seq + 1);
                continue;
            }
            let missing = expect.unwrap_or_else(|| if follows { batch.seq } else { batch.seq.saturating_sub(1) });
            let promised = batches[at..].iter().any(|batch| batch.synced >= missing);
            if promised || self.is_followed(missing, later)? {
                return Ok(Verdict::Damaged { from: at, what: describe(batch, missing) });
            }
            return Ok(Verdict::Torn { from: at });
        }
        Ok(Verdict::Whole)
    }

    /// True if a later segment goes on after the missing batch: segments are synced before the next one is begun. One
    /// that goes on *with* it says that the batch here was a failed write.
    fn is_followed(&self, missing: u64, later: &[u32]) -> Result<bool, OpenError> {
        for &number in later {
            if let Some(first) = self.read(number)?.scan.batches.first() {
                return Ok(first.seq > missing);
            }
        }
        Ok(false)
    }

    fn damage_error(&self, number: u32, image: &Image, from: usize, what: String) -> OpenError {
        let here = image.scan.batches.get(from);
        // What is missing before the first batch of a segment is missing at the end of the one before.
        let (number, offset) = match (from, self.end, here) {
            (0, Some((before, end, _)), Some(batch)) if batch.bad == 0 && batch.at == HEADER_BYTES => (before, end),
            (0, _, _) => (number, if image.is_header_damaged { 0 } else { HEADER_BYTES as u64 }),
            _ => (number, image.scan.batches[from - 1].end as u64),
        };
        OpenError::Damaged { path: segment_path(&self.options.dir, number), offset, what }
    }

    /// Keeps the damaged file under another name and puts what can be saved in its place, with fillers for the rest.
    fn repair(&mut self, number: u32, image: &Image) -> Result<(), OpenError> {
        let path = segment_path(&self.options.dir, number);
        let kept = path.with_extension("log.damaged");
        write_whole(&self.disk, &kept, &image.bytes)?;
        let mut bytes = Header { number, salt: image.salt }.encode(self.options.kind);
        let mut expect = self.expect;
        if expect.is_none() && image.scan.batches.first().is_some_and(|first| first.at != HEADER_BYTES) {
            self.report.lost += 1;
        }
        for batch in &image.scan.batches {
            let missing = expect.map_or(0, |expect| batch.seq.saturating_sub(expect));
            if missing > 0 && !batch.is_filler {
                self.report.lost += missing;
                bytes.extend(BatchBuilder::filler(batch.seq - 1, batch.synced.min(batch.seq - 1), image.salt));
            }
            self.report.lost += u64::from(batch.bad);
            bytes.extend(rebuilt(image, batch));
            expect = Some(batch.seq + 1);
        }
        if image.scan.batches.is_empty() {
            self.report.lost += 1;
        }
        bytes.resize(bytes.len().max(image.bytes.len()), 0);
        let temporary = self.options.dir.join(REPAIR_NAME);
        write_whole(&self.disk, &temporary, &bytes)?;
        self.disk.rename(&temporary, &path).map_err(io_error("replace", &path))?;
        let dir = &self.options.dir;
        self.disk.sync_dir(dir).map_err(io_error("sync folder", dir))?;
        self.report.damaged.push(kept);
        Ok(())
    }

    /// Wipes what follows the last good batch, so that it can never be taken for something.
    fn cut(&mut self, number: u32, image: &Image, end: u64, is_last: bool) -> Result<(), OpenError> {
        let path = segment_path(&self.options.dir, number);
        let mut size = image.bytes.len() as u64;
        let torn = (image.scan.dirty_end as u64).saturating_sub(end);
        if torn > 0 {
            let file = self.disk.open(&path).map_err(io_error("open", &path))?;
            file.set_len(end).map_err(io_error("cut", &path))?;
            match file.set_len(size) {
                Err(error) if is_no_space(&error) => size = end,
                other => other.map_err(io_error("extend", &path))?,
            }
            file.sync_data().map_err(io_error("sync", &path))?;
            if is_last {
                self.report.torn_bytes += torn;
            }
        }
        self.segments.insert(number, size);
        self.end = Some((number, end, image.salt));
        Ok(())
    }

    /// Writes again what nothing proves to be on the disk. After a sync that failed the system keeps the bytes in its
    /// cache and takes them for written: they read well, the next sync does nothing, and the next power cut loses them.
    /// Only the last segment can have such bytes: a log stops at a sync that fails, before it begins another segment.
    fn rewrite(&self, number: u32, image: &Image, batches: &[FoundBatch]) -> Result<(), OpenError> {
        let proven = batches.iter().map(|batch| batch.synced).max().unwrap_or(0);
        let Some(first) = batches.iter().find(|batch| batch.seq > proven) else { return Ok(()) };
        let end = batches[batches.len() - 1].end;
        let path = segment_path(&self.options.dir, number);
        let file = self.disk.open(&path).map_err(io_error("open", &path))?;
        // `finish` syncs it.
        file.write_at(&image.bytes[first.at..end], first.at as u64).map_err(io_error("write", &path))
    }

    /// The first segment of a new log.
    fn begin(&mut self) -> Result<(), OpenError> {
        let path = segment_path(&self.options.dir, 1);
        let bytes_min = self.options.segment_bytes_min;
        let made = spares::make(&self.disk, &self.options, 1, bytes_min).map_err(io_error("make", &path))?;
        let named = self.disk.rename(&spares::path(&self.options.dir, 1), &path);
        named.map_err(io_error("name", &path))?;
        self.segments.insert(1, made.size);
        self.end = Some((1, made.end, made.salt));
        Ok(())
    }

    fn finish(self) -> Result<Found<D>, OpenError> {
        let (number, end, salt) = self.end.expect("there is at least one segment");
        let path = segment_path(&self.options.dir, number);
        let file = self.disk.open(&path).map_err(io_error("open", &path))?;
        // What was read may sit in the page cache only: it is about to be relied upon.
        file.sync_data().map_err(io_error("sync", &path))?;
        self.disk.sync_dir(&self.options.dir).map_err(io_error("sync folder", &self.options.dir))?;
        let next_batch = self.expect.unwrap_or(FIRST_BATCH);
        let size = self.segments[&number];
        let log = Log {
            disk: self.disk,
            options: self.options,
            active: Active { number, salt, file, end, size },
            spares: Spares::new(),
            segment_bytes: self.segments.values().sum(),
            segments: self.segments,
            readers: BTreeMap::new(),
            out_of_files: false,
            staged: BatchBuilder::default(),
            next_batch,
            synced: next_batch - 1,
            is_end_dirty: false,
            stopped: None,
        };
        Ok((log, self.report))
    }
}

/// Writes and syncs a file, in place of what had its name. The folder is the caller's to sync.
pub(crate) fn write_whole<D: Disk>(disk: &D, path: &Path, bytes: &[u8]) -> Result<(), OpenError> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", path)(error)),
        _ => {}
    }
    let file = disk.create(path, bytes.len() as u64).map_err(io_error("make", path))?;
    file.write_at(bytes, 0).and_then(|()| file.sync_data()).map_err(io_error("write", path))
}

fn describe(batch: &FoundBatch, missing: u64) -> String {
    if batch.bad > 0 {
        format!("{} records of batch {} do not match their checksums", batch.bad, batch.seq)
    } else {
        format!("batch {missing} is missing before batch {}", batch.seq)
    }
}

/// A batch as it was, or without the records that are lost.
fn rebuilt(image: &Image, batch: &FoundBatch) -> Vec<u8> {
    if batch.bad == 0 {
        return image.bytes[batch.at..batch.end].to_vec();
    }
    let mut builder = BatchBuilder::default();
    for record in &batch.records {
        builder.push(usize::MAX, |out| out.extend_from_slice(&image.bytes[record.clone()]));
    }
    if builder.is_empty() {
        return BatchBuilder::filler(batch.seq, batch.synced, image.salt);
    }
    builder.finish(batch.seq, batch.synced, image.salt).to_vec()
}

pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Io { what, path, source }
}
