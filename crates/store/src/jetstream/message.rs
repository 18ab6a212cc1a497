//! The bytes of a replica's messages. `docs/formats/replica.md` lists them.
//!
//! Picture letters in envelopes. A letter says what has become of some records; one that is too long for an envelope
//! goes in several, marked first to last. Every envelope says which directory wrote it, in which of its lives, and how
//! many numbers had been given out. A fence is a letter of another kind: whoever finds it last must write no more.

use seawall_core::id::RecordId;
use seawall_core::spool::replica::{Form, Line, Look, Stage};
use seawall_core::spool::wire::{DecodeError, Reader, Writer};

use crate::embedded::entry::SpoolEntry;

const MAGIC: &[u8; 4] = b"SWRP";
const VERSION: u8 = 1;
/// Bytes before the body.
pub(crate) const HEAD_BYTES: usize = 52;
const FIRST: u8 = 1;
const LAST: u8 = 2;

/// Sixteen bytes that tell a data directory from any other.
pub(crate) type Incarnation = [u8; 16];

/// Who wrote a message, and when in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: u64,
    /// Letters of this life, counted from 1.
    pub(crate) letter: u64,
    /// Numbers below this were given out.
    pub(crate) next_id: u64,
}

/// What a message is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Letter,
    Fence,
}

/// A letter put together again, or a fence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Whole {
    Letter {
        head: Head,
        /// Number of its first message.
        number: u64,
        /// Of that.
        first_bytes: u64,
        body: Vec<u8>,
    },
    Fence {
        head: Head,
        /// Who put it there, and why.
        words: String,
    },
}

/// The messages of a letter: its entries, in bodies of at most so many bytes.
pub(crate) fn letter(head: Head, entries: &[Vec<u8>], body_bytes_max: usize) -> Vec<Vec<u8>> {
    let mut body = Vec::new();
    for entry in entries {
        Writer::new(&mut body).bytes(entry);
    }
    let parts = body.len().div_ceil(body_bytes_max).max(1);
    (0..parts)
        .map(|part| {
            let from = part * body_bytes_max;
            let to = body.len().min(from + body_bytes_max);
            let flags = if part == 0 { FIRST } else { 0 } | if part + 1 == parts { LAST } else { 0 };
            message(Kind::Letter, flags, head, &body[from..to])
        })
        .collect()
}

/// The message of a fence.
pub(crate) fn fence(head: Head, words: &str) -> Vec<u8> {
    message(Kind::Fence, FIRST | LAST, head, words.as_bytes())
}

fn message(kind: Kind, flags: u8, head: Head, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + body.len());
    let kind = match kind {
        Kind::Letter => 1,
        Kind::Fence => 2,
    };
    let Head { incarnation, epoch, letter, next_id } = head;
    Writer::new(&mut out).raw(MAGIC).u8(VERSION).u8(kind).u8(flags).u8(0);
    Writer::new(&mut out).raw(&incarnation).u64(epoch).u64(letter).u64(next_id);
    let check = crc(&out, body);
    Writer::new(&mut out).u32(check).raw(body);
    out
}

fn crc(head: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(body);
    crc.finalize()
}

fn decode(bytes: &[u8]) -> Result<(Kind, u8, Head, &[u8]), DecodeError> {
    let mut r = Reader::new(bytes);
    if r.raw::<4>()? != *MAGIC {
        return Err(DecodeError::Invalid("it is no message of a replica"));
    }
    let version = r.u8()?;
    if version != VERSION {
        return Err(DecodeError::Version { found: version, known: VERSION });
    }
    let kind = match r.u8()? {
        1 => Kind::Letter,
        2 => Kind::Fence,
        _ => return Err(DecodeError::Invalid("a kind of message that is not known")),
    };
    let (flags, reserved) = (r.u8()?, r.u8()?);
    if flags > FIRST | LAST || reserved != 0 {
        return Err(DecodeError::Invalid("flags that are not known"));
    }
    let head = Head { incarnation: r.raw()?, epoch: r.u64()?, letter: r.u64()?, next_id: r.u64()? };
    let check = r.u32()?;
    let body = r.rest();
    if crc(&bytes[..HEAD_BYTES - 4], body) != check {
        return Err(DecodeError::Invalid("its checksum does not match"));
    }
    Ok((kind, flags, head, body))
}

/// Who wrote a message.
pub(crate) fn head(bytes: &[u8]) -> Result<Head, DecodeError> {
    decode(bytes).map(|(_, _, head, _)| head)
}

/// Puts letters together from their messages, in the order they lie in the stream. A letter whose last message never
/// came was promised to nobody and is passed over.
#[derive(Debug, Default)]
pub(crate) struct Assembler(Option<Begun>);

#[derive(Debug)]
struct Begun {
    head: Head,
    number: u64,
    first_bytes: u64,
    body: Vec<u8>,
}

impl Assembler {
    /// The next message. Returns what it completes.
    pub(crate) fn add(&mut self, number: u64, bytes: &[u8]) -> Result<Option<Whole>, DecodeError> {
        let (kind, flags, head, body) = decode(bytes)?;
        if kind == Kind::Fence {
            self.0 = None;
            let words = String::from_utf8_lossy(body).into_owned();
            return Ok(Some(Whole::Fence { head, words }));
        }
        let begun = match self.0.take() {
            // The rest of a letter whose beginning was purged, or that another life had begun.
            _ if flags & FIRST != 0 => Begun { head, number, first_bytes: bytes.len() as u64, body: Vec::new() },
            Some(begun) if begun.head == head => begun,
            Some(_) | None => return Ok(None),
        };
        let mut begun = begun;
        begun.body.extend_from_slice(body);
        if flags & LAST == 0 {
            self.0 = Some(begun);
            return Ok(None);
        }
        let Begun { head, number, first_bytes, body } = begun;
        Ok(Some(Whole::Letter { head, number, first_bytes, body }))
    }
}

/// The entries of a letter's body.
pub(crate) fn entries(body: &[u8]) -> Result<Vec<&[u8]>, DecodeError> {
    let (mut r, mut entries) = (Reader::new(body), Vec::new());
    while !r.rest().is_empty() {
        entries.push(r.bytes()?);
    }
    Ok(entries)
}

/// What entries say, for whoever keeps track of what the stream holds.
pub(crate) fn lines(entries: &[&[u8]]) -> Result<Vec<Line>, DecodeError> {
    let mut lines = Vec::new();
    for bytes in entries {
        let whole = Form::Whole { bytes: u32::try_from(bytes.len()).expect("an entry is below 4 GiB") };
        let line = |id: RecordId, form, stage, attempts| Line { id, form, look: Look { stage, attempts } };
        lines.push(match SpoolEntry::decode(bytes)? {
            SpoolEntry::Moved { id, attempts, parked, .. } => {
                line(id, whole, if parked.is_some() { Stage::Parked } else { Stage::Waiting }, attempts)
            }
            SpoolEntry::Remembered { id, .. } => line(id, whole, Stage::Settled, 0),
            SpoolEntry::Failed { id, attempts, .. } => line(id, Form::Change, Stage::Waiting, attempts),
            SpoolEntry::Parked { id, attempts, .. } => line(id, Form::Change, Stage::Parked, attempts),
            // What follows it says how it is now.
            SpoolEntry::Retried { .. } => continue,
            // Forgotten at home, key and all.
            SpoolEntry::Settled { id, .. } => line(id, Form::Gone, Stage::Settled, 0),
            SpoolEntry::Begin { .. } | SpoolEntry::Enqueue { .. } => {
                return Err(DecodeError::Invalid("an entry that no replica is told"));
            }
        });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const HEAD: Head = Head { incarnation: [7; 16], epoch: 3, letter: 9, next_id: 44 };

    proptest! {
        #[test]
        fn letters_come_back_whole(entries_in in vec(vec(any::<u8>(), 0..50), 0..9), max in 1..60_usize) {
            let messages = letter(HEAD, &entries_in, max);
            let mut assembler = Assembler::default();
            let bytes = messages[0].len();
            for (number, message) in (5..).zip(&messages) {
                prop_assert_eq!(head(message), Ok(HEAD));
                match assembler.add(number, message).unwrap() {
                    None => prop_assert!(number + 1 < 5 + messages.len() as u64),
                    Some(Whole::Letter { head, number: first, first_bytes: all, body }) => {
                        prop_assert_eq!((head, first, all), (HEAD, 5, bytes as u64));
                        prop_assert_eq!(entries(&body).unwrap(), entries_in.clone());
                    }
                    Some(fence) => prop_assert!(false, "{:?}", fence),
                }
            }
        }

        #[test]
        fn a_flipped_bit_is_seen(body in vec(any::<u8>(), 0..40), at: prop::sample::Index, bit in 0..8_u8) {
            let mut message = letter(HEAD, &[body], 999).remove(0);
            let at = at.index(message.len());
            message[at] ^= 1 << bit;
            prop_assert!(Assembler::default().add(1, &message).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in vec(any::<u8>(), 0..90)) {
            let _ = Assembler::default().add(1, &bytes);
            if let Ok(found) = entries(&bytes) {
                let _ = lines(&found);
            }
        }
    }

    #[test]
    fn what_was_cut_short_is_passed_over() {
        let mut assembler = Assembler::default();
        let torn = letter(HEAD, &[vec![1; 30]], 20);
        assert_eq!(torn.len(), 2);
        assert_eq!(assembler.add(1, &torn[0]), Ok(None));
        let other = Head { epoch: 4, letter: 1, ..HEAD };
        assert!(matches!(assembler.add(2, &letter(other, &[], 20)[0]), Ok(Some(Whole::Letter { number: 2, .. }))));
        assert_eq!(assembler.add(3, &torn[1]), Ok(None), "the rest of something else");
        assert_eq!(assembler.add(4, &torn[0]), Ok(None));
        let other = letter(other, &[vec![1; 30]], 20);
        assert_eq!(assembler.add(5, &other[1]), Ok(None), "it is not its end");
        let words = "adopted by us-west-1".to_owned();
        assert_eq!(assembler.add(6, &fence(HEAD, &words)), Ok(Some(Whole::Fence { head: HEAD, words })));
    }

    #[test]
    fn what_is_not_ours_is_told() {
        let told = |bytes: &[u8]| Assembler::default().add(1, bytes).unwrap_err().to_string();
        let good = fence(HEAD, "");
        assert_eq!(told(b"hello, world"), "it is no message of a replica");
        assert_eq!(told(&good[..20]), "the bytes end in the middle of a value");
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            told(&bytes)
        };
        assert_eq!(with(4, 9), "written in version 9, this program knows version 1");
        assert_eq!(with(5, 9), "a kind of message that is not known");
        assert_eq!(with(6, 9), "flags that are not known");
        let begin = SpoolEntry::Begin { next_id: 1 }.to_bytes();
        assert_eq!(lines(&[&begin]).unwrap_err().to_string(), "an entry that no replica is told");
    }
}
