//! The bytes of a segment file: a header block, then batches, then zeros. `docs/formats/log.md` is the same in words.
//!
//! A batch is what one sync made safe. Its header carries a dense sequence number and the highest number known to be
//! safe when it was written: that is how a torn tail (nobody was promised anything) is told from damage in the middle
//! (somebody was). Every record has a checksum of its own, so that damage costs records and not batches. Checksums of
//! batch headers begin with the segment's salt: a record's payload cannot pretend to be a batch.

use std::ops::Range;

use super::log::Place;

/// Bytes of the header block: batches never share a sector with it.
pub(crate) const HEADER_BYTES: usize = 4096;
/// Bytes of a batch's header.
pub(crate) const BATCH_HEADER_BYTES: usize = 40;
/// Bytes before every record.
pub(crate) const FRAME_BYTES: usize = 8;
/// Batches begin at multiples of this.
pub(crate) const ALIGN_BYTES: usize = 8;
/// The version of this format.
pub(crate) const FORMAT_VERSION: u16 = 1;

const MAGIC: &[u8; 7] = b"SEAWALL";
const BATCH_MAGIC: u32 = 0x4257_4153; // "SAWB" in the file
const FLAG_FILLER: u32 = 1;

/// What a log is for; a letter in its header, so that a file in the wrong folder is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogKind {
    Spool,
    Journal,
    Ledger,
}

impl LogKind {
    const fn letter(self) -> u8 {
        match self {
            Self::Spool => b'S',
            Self::Journal => b'J',
            Self::Ledger => b'L',
        }
    }

    pub(crate) const fn description(self) -> &'static str {
        match self {
            Self::Spool => "a segment of Seawall's spool",
            Self::Journal => "a segment of Seawall's journal",
            Self::Ledger => "a segment of Seawall's ledger",
        }
    }
}

/// What the header block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u32,
    pub(crate) salt: u64,
}

/// Why a header block was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// Not a file of ours.
    Foreign,
    /// Of another version.
    Version(u16),
    /// Ours, but not as written; the salt may still be right.
    Damaged { salt: u64 },
}

impl Header {
    pub(crate) fn encode(self, kind: LogKind) -> Vec<u8> {
        let mut block = vec![0; HEADER_BYTES];
        block[..7].copy_from_slice(MAGIC);
        block[7] = kind.letter();
        block[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[10..12].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
        block[12..16].copy_from_slice(&self.number.to_le_bytes());
        block[16..24].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32fast::hash(&block[..60]);
        block[60..64].copy_from_slice(&crc.to_le_bytes());
        block
    }

    pub(crate) fn decode(image: &[u8], kind: LogKind) -> Result<Self, HeaderError> {
        let damaged = |salt| Err(HeaderError::Damaged { salt });
        if image.len() < HEADER_BYTES || image[..64].iter().all(|&byte| byte == 0) {
            return if image.iter().take(7).zip(MAGIC).all(|(a, b)| a == b || *a == 0) {
                damaged(0)
            } else {
                Err(HeaderError::Foreign)
            };
        }
        let salt = u64_at(image, 16);
        if &image[..7] != MAGIC || image[7] != kind.letter() {
            return if is_ours_but_for_a_byte(image, kind) { damaged(salt) } else { Err(HeaderError::Foreign) };
        }
        if u32_at(image, 60) != crc32fast::hash(&image[..60]) {
            return damaged(salt);
        }
        let version = u16::from_le_bytes([image[8], image[9]]);
        if version != FORMAT_VERSION {
            return Err(HeaderError::Version(version));
        }
        Ok(Self { number: u32_at(image, 12), salt })
    }
}

/// True if one byte of the name is wrong, and with the right one the checksum matches.
fn is_ours_but_for_a_byte(image: &[u8], kind: LogKind) -> bool {
    let mut mended = [0; 60];
    mended.copy_from_slice(&image[..60]);
    mended[..7].copy_from_slice(MAGIC);
    mended[7] = kind.letter();
    let wrong = mended.iter().zip(image).filter(|(a, b)| a != b).count();
    wrong == 1 && u32_at(image, 60) == crc32fast::hash(&mended)
}

/// A batch being made. Records are framed as they come; the header is written last.
#[derive(Debug, Default)]
pub(crate) struct BatchBuilder {
    bytes: Vec<u8>,
    heads: crc32fast::Hasher,
    count: u32,
}

impl BatchBuilder {
    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes it will take in the file.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len().next_multiple_of(ALIGN_BYTES)
    }

    /// Adds a record if the batch then takes at most `limit` bytes. Returns where it begins, and its length.
    pub(crate) fn push(&mut self, limit: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Option<(usize, usize)> {
        if self.bytes.is_empty() {
            self.bytes.resize(BATCH_HEADER_BYTES, 0);
        }
        let head = self.bytes.len();
        self.bytes.extend_from_slice(&[0; FRAME_BYTES]);
        fill(&mut self.bytes);
        if self.len() > limit {
            self.bytes.truncate(head);
            return None;
        }
        let start = head + FRAME_BYTES;
        let length = self.bytes.len() - start;
        let crc = crc32fast::hash(&self.bytes[start..]);
        self.bytes[head..head + 4].copy_from_slice(&(length as u32).to_le_bytes());
        self.bytes[head + 4..start].copy_from_slice(&crc.to_le_bytes());
        self.heads.update(&self.bytes[head..start]);
        self.count += 1;
        Some((head, length))
    }

    /// The finished bytes; [`Self::clear`] makes it ready for the next.
    pub(crate) fn finish(&mut self, seq: u64, synced: u64, salt: u64) -> &[u8] {
        self.seal(seq, synced, salt, 0)
    }

    /// A batch without records that stands for all numbers up to `seq` that are lost.
    pub(crate) fn filler(seq: u64, synced: u64, salt: u64) -> Vec<u8> {
        let mut builder = Self { bytes: vec![0; BATCH_HEADER_BYTES], ..Self::default() };
        builder.seal(seq, synced, salt, FLAG_FILLER).to_vec()
    }

    fn seal(&mut self, seq: u64, synced: u64, salt: u64, flags: u32) -> &[u8] {
        let payload = self.bytes.len() - BATCH_HEADER_BYTES;
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN_BYTES), 0);
        let heads = self.heads.clone().finalize();
        let header = &mut self.bytes[..BATCH_HEADER_BYTES];
        header[0..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
        header[4..8].copy_from_slice(&flags.to_le_bytes());
        header[8..16].copy_from_slice(&seq.to_le_bytes());
        header[16..24].copy_from_slice(&synced.to_le_bytes());
        header[24..28].copy_from_slice(&self.count.to_le_bytes());
        header[28..32].copy_from_slice(&(payload as u32).to_le_bytes());
        header[32..36].copy_from_slice(&heads.to_le_bytes());
        let crc = header_crc(header, salt);
        header[36..40].copy_from_slice(&crc.to_le_bytes());
        &self.bytes
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.heads = crc32fast::Hasher::new();
        self.count = 0;
    }
}

fn header_crc(header: &[u8], salt: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&header[..36]);
    hasher.finalize()
}

/// A batch found in a segment: its header is as written, its records are checked.
#[derive(Clone, Debug)]
pub(crate) struct FoundBatch {
    pub(crate) at: usize,
    pub(crate) end: usize,
    pub(crate) seq: u64,
    pub(crate) synced: u64,
    pub(crate) is_filler: bool,
    /// Where the intact records are.
    pub(crate) records: Vec<Range<usize>>,
    /// Records that are not as written.
    pub(crate) bad: u32,
}

/// What a segment holds.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) batches: Vec<FoundBatch>,
    /// One past the last byte that is not zero.
    pub(crate) dirty_end: usize,
}

impl Scan {
    /// Finds every batch, also behind bytes that are none.
    pub(crate) fn of(image: &[u8], salt: u64) -> Self {
        let dirty_end = image.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let (mut batches, mut at) = (Vec::new(), HEADER_BYTES);
        while at < dirty_end {
            match find_batch(image, at, salt) {
                Some(batch) => {
                    at = batch.end;
                    batches.push(batch);
                }
                None => at += ALIGN_BYTES,
            }
        }
        Self { batches, dirty_end }
    }
}

fn find_batch(image: &[u8], at: usize, salt: u64) -> Option<FoundBatch> {
    let header = image.get(at..at + BATCH_HEADER_BYTES)?;
    if u32_at(header, 0) != BATCH_MAGIC || u32_at(header, 36) != header_crc(header, salt) {
        return None;
    }
    let count = u32_at(header, 24);
    let start = at + BATCH_HEADER_BYTES;
    let end = start + u32_at(header, 28) as usize;
    image.get(start..end.next_multiple_of(ALIGN_BYTES))?;
    let payload = &image[start..end];
    let records = intact_records(payload, start, count, u32_at(header, 32));
    Some(FoundBatch {
        at,
        end: end.next_multiple_of(ALIGN_BYTES),
        seq: u64_at(header, 8),
        synced: u64_at(header, 16),
        is_filler: u32_at(header, 4) & FLAG_FILLER != 0,
        bad: count - records.len() as u32,
        records,
    })
}

/// The records whose bytes are as written. Where the lengths themselves are in doubt, none is.
fn intact_records(payload: &[u8], start: usize, count: u32, heads_crc: u32) -> Vec<Range<usize>> {
    let (mut heads, mut at, mut records) = (crc32fast::Hasher::new(), 0, Vec::new());
    for _ in 0..count {
        let Some(head) = payload.get(at..at + FRAME_BYTES) else { return Vec::new() };
        heads.update(head);
        let begin = at + FRAME_BYTES;
        let end = begin + u32_at(head, 0) as usize;
        let Some(bytes) = payload.get(begin..end) else { return Vec::new() };
        if crc32fast::hash(bytes) == u32_at(head, 4) {
            records.push(start + begin..start + end);
        }
        at = end;
    }
    if at == payload.len() && heads.finalize() == heads_crc { records } else { Vec::new() }
}

/// Checks a frame read by its place: its length and its checksum.
pub(crate) fn check_frame(frame: &[u8]) -> bool {
    let (head, bytes) = frame.split_at(FRAME_BYTES);
    u32_at(head, 0) as usize == bytes.len() && u32_at(head, 4) == crc32fast::hash(bytes)
}

/// The place of a record found at a range of a segment.
pub(crate) fn place_of(number: u32, range: &Range<usize>) -> Place {
    Place { segment: number, offset: (range.start - FRAME_BYTES) as u32, bytes: range.len() as u32 }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SALT: u64 = 0x5a17;

    fn image(batches: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let mut image = Header { number: 3, salt: SALT }.encode(LogKind::Spool);
        for (n, records) in batches.iter().enumerate() {
            let mut builder = BatchBuilder::default();
            for record in records {
                builder.push(usize::MAX, |out| out.extend_from_slice(record)).unwrap();
            }
            image.extend_from_slice(builder.finish(n as u64 + 1, n as u64, SALT));
        }
        image.resize(image.len() + 100, 0);
        image
    }

    #[test]
    fn headers_tell_what_they_are() {
        let header = Header { number: 3, salt: SALT };
        let block = header.encode(LogKind::Spool);
        assert_eq!(Header::decode(&block, LogKind::Spool), Ok(header));
        assert_eq!(Header::decode(&block, LogKind::Journal), Err(HeaderError::Foreign));
        assert_eq!(Header::decode(&[b'x'; 5000], LogKind::Spool), Err(HeaderError::Foreign));
        assert_eq!(Header::decode(b"hello", LogKind::Spool), Err(HeaderError::Foreign));
        assert_eq!(Header::decode(b"SEA", LogKind::Spool), Err(HeaderError::Damaged { salt: 0 }));
        assert_eq!(Header::decode(&[0; 5000], LogKind::Spool), Err(HeaderError::Damaged { salt: 0 }));
        let mut flipped = block.clone();
        flipped[13] ^= 1;
        assert_eq!(Header::decode(&flipped, LogKind::Spool), Err(HeaderError::Damaged { salt: SALT }));
        for at in 0..8 {
            let mut flipped = block.clone();
            flipped[at] ^= 0x20;
            assert_eq!(Header::decode(&flipped, LogKind::Spool), Err(HeaderError::Damaged { salt: SALT }));
        }
        let mut newer = block;
        newer[8] = 2;
        let crc = crc32fast::hash(&newer[..60]);
        newer[60..64].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&newer, LogKind::Spool), Err(HeaderError::Version(2)));
    }

    #[test]
    fn a_flipped_byte_costs_one_record() {
        let mut image = image(&[vec![vec![1; 50], vec![2; 50]], vec![vec![3; 50]]]);
        let first = Scan::of(&image, SALT).batches[0].records[0].clone();
        image[first.start + 7] ^= 0x10;
        let scan = Scan::of(&image, SALT);
        assert_eq!(scan.batches.iter().map(|batch| batch.bad).collect::<Vec<_>>(), [1, 0]);
        assert_eq!(image[scan.batches[0].records[0].clone()], [2; 50]);
        image[first.start - 3] ^= 0x10;
        assert_eq!(Scan::of(&image, SALT).batches[0].bad, 2, "the lengths are in doubt");
        image[first.start - FRAME_BYTES + 2] ^= 0x10;
        assert_eq!(Scan::of(&image, SALT).batches[0].bad, 2, "a length beyond the batch");
    }

    #[test]
    fn a_batch_behind_garbage_is_found_and_a_forged_one_is_not() {
        let mut image = image(&[vec![vec![1; 50]], vec![vec![2; 50]]]);
        image[HEADER_BYTES + 9] ^= 1;
        let scan = Scan::of(&image, SALT);
        assert_eq!(scan.batches.iter().map(|batch| batch.seq).collect::<Vec<_>>(), [2]);
        assert_eq!(Scan::of(&image, SALT + 1).batches.len(), 0, "without the salt nothing is a batch");
    }

    #[test]
    fn a_batch_has_a_limit() {
        let mut builder = BatchBuilder::default();
        assert!(builder.is_empty());
        assert!(builder.push(100, |out| out.extend_from_slice(&[1; 40])).is_some());
        assert!(builder.push(100, |out| out.extend_from_slice(&[1; 40])).is_none());
        assert_eq!(builder.len(), 88);
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(builder.finish(1, 0, SALT));
        assert_eq!(Scan::of(&bytes, SALT).batches[0].records.len(), 1);
    }

    proptest! {
        #[test]
        fn what_is_written_is_found(batches in vec(vec(vec(any::<u8>(), 0..40), 1..4), 0..6)) {
            let image = image(&batches);
            let scan = Scan::of(&image, SALT);
            let found: Vec<Vec<Vec<u8>>> = scan.batches.iter()
                .map(|batch| batch.records.iter().map(|record| image[record.clone()].to_vec()).collect()).collect();
            prop_assert_eq!(found, batches);
        }

        #[test]
        fn no_bytes_panic(
            batches in vec(vec(vec(any::<u8>(), 0..40), 1..4), 0..6),
            flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..20), cut: prop::sample::Index,
        ) {
            let mut image = image(&batches);
            for (at, byte) in flips {
                let at = HEADER_BYTES + at.index(image.len() - HEADER_BYTES);
                image[at] = byte;
            }
            image.truncate(cut.index(image.len() + 1));
            let _ = Header::decode(&image, LogKind::Spool);
            for batch in Scan::of(&image, SALT).batches {
                for record in batch.records {
                    prop_assert!(image.get(record).is_some());
                }
            }
        }
    }
}
