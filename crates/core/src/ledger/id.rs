//! What a record carries on its way: its number, and a tag that proves number and body belong together.
//!
//! Picture a registered letter: the number is written on the envelope, the seal is pressed over envelope and content.
//! Whoever receives it reports number, seal and what was inside; only the node that has the stamp can say whether the
//! three still belong together.
//! On the wire: `<stream>.<producer>.<epoch>.<seq>;tag=<32 hex>` ([`Stamp`]).

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Longest name of a stream, a producer or a sink, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// The number of one record: dense from 1 within its stream, producer and epoch, and never given twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RecordRef {
    /// What it belongs to: the route's name. `[A-Za-z0-9_-]+`.
    pub stream: String,
    /// Who gave the number: the node's name. `[A-Za-z0-9_-]+`.
    pub producer: String,
    /// Which life of the producer: greater with every start, so that a counter that begins again fills no old hole.
    pub epoch: u64,
    /// Which record of that life. Numbers begin at 1.
    pub seq: u64,
}

/// A text that is no record number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    /// Not four parts.
    #[error("`{text}` is no record: expected `<stream>.<producer>.<epoch>.<seq>`")]
    Parts {
        /// What was read.
        text: String,
    },
    /// A name that is empty, too long or holds something else than letters, digits, `_` and `-`.
    #[error("`{text}` is no name for a {part}: expected 1 to {NAME_BYTES_MAX} of `A-Z a-z 0-9 _ -`")]
    Name {
        /// Which part.
        part: &'static str,
        /// What was read.
        text: String,
    },
    /// A number that is none, has a sign or a leading zero, or is beyond 64 bits.
    #[error("`{text}` is no {part}: expected a whole number below 2^64 without leading zeros")]
    Number {
        /// Which part.
        part: &'static str,
        /// What was read.
        text: String,
    },
}

impl RecordRef {
    /// A number whose names are checked.
    ///
    /// # Errors
    /// [`RefError::Name`] for a stream or producer that could not be read back.
    pub fn new(stream: impl Into<String>, producer: impl Into<String>, epoch: u64, seq: u64) -> Result<Self, RefError> {
        let (stream, producer) = (stream.into(), producer.into());
        check_name("stream", &stream)?;
        check_name("producer", &producer)?;
        Ok(Self { stream, producer, epoch, seq })
    }
}

impl fmt::Display for RecordRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.stream, self.producer, self.epoch, self.seq)
    }
}

impl FromStr for RecordRef {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        let mut parts = text.split('.');
        let (Some(stream), Some(producer), Some(epoch), Some(seq), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(RefError::Parts { text: shortened(text) });
        };
        Self::new(stream, producer, number("epoch", epoch)?, number("seq", seq)?)
    }
}

impl TryFrom<String> for RecordRef {
    type Error = RefError;

    fn try_from(text: String) -> Result<Self, RefError> {
        text.parse()
    }
}

impl From<RecordRef> for String {
    fn from(record: RecordRef) -> Self {
        record.to_string()
    }
}

/// Whether this may be the name of a stream, a producer or a sink; `part` names it in the error.
///
/// # Errors
/// [`RefError::Name`].
pub fn check_name(part: &'static str, name: &str) -> Result<(), RefError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_plain) {
        return Err(RefError::Name { part, text: shortened(name) });
    }
    Ok(())
}

/// Only the one way of writing a number, so that a record has one text and a text one record.
fn number(part: &'static str, text: &str) -> Result<u64, RefError> {
    let wrong = || RefError::Number { part, text: shortened(text) };
    let is_canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_canonical { text.parse().map_err(|_| wrong()) } else { Err(wrong()) }
}

/// What a stranger sent, cut to a length that may be kept and shown.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX).collect()
}

/// SHA-256 of a body.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of a whole body. A streamed body is hashed by its reader, with `sha2`, into the same 32 bytes.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }
}

/// The node's secret. Whoever has it can press the seal; a data directory has one key and keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct LedgerKey([u8; 32]);

impl LedgerKey {
    /// From 32 bytes that nobody else can guess.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for LedgerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LedgerKey(secret)")
    }
}

/// The seal over a record's number and body: the first 16 bytes of keyed BLAKE3 over stream, producer, epoch, seq and
/// the body's SHA-256, each preceded by its length (u64, little endian) so that no two records give the same input.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(pub [u8; 16]);

impl Tag {
    /// The tag that this record with this body must carry.
    #[must_use]
    pub fn new(key: &LedgerKey, record: &RecordRef, body: &Digest) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        let (epoch, seq) = (record.epoch.to_le_bytes(), record.seq.to_le_bytes());
        for field in [record.stream.as_bytes(), record.producer.as_bytes(), &epoch, &seq, &body.0] {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        let mut tag = [0; 16];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(tag)
    }
}

impl PartialEq for Tag {
    /// Takes the same time wherever the two differ, so that nobody finds a tag byte by byte.
    fn eq(&self, other: &Self) -> bool {
        let differing = self.0.iter().zip(&other.0).fold(0, |seen, (a, b)| black_box(seen | (a ^ b)));
        black_box(differing) == 0
    }
}

impl Eq for Tag {}

/// A text that is not the right number of hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what}: expected {digits} hexadecimal digits")]
pub struct HexError {
    /// What was to be read.
    pub what: &'static str,
    /// How many digits it has.
    pub digits: usize,
    /// What was read.
    pub text: String,
}

macro_rules! hex_text {
    ($name:ident, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                let mut bytes = Self([0; _]);
                let digits = 2 * bytes.0.len();
                read_hex(text, &mut bytes.0).then_some(bytes).ok_or_else(|| HexError {
                    what: $what,
                    digits,
                    text: shortened(text),
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = HexError;

            fn try_from(text: String) -> Result<Self, HexError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}

hex_text!(Digest, "SHA-256 digest");
hex_text!(Tag, "tag");

/// Fills `bytes` from exactly as many pairs of digits; false for anything else.
fn read_hex(text: &str, bytes: &mut [u8]) -> bool {
    let nibble = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks_exact(2);
    if text.len() != 2 * bytes.len() {
        return false;
    }
    bytes.iter_mut().zip(pairs).all(|(byte, pair)| match (nibble(pair[0]), nibble(pair[1])) {
        (Some(high), Some(low)) => {
            *byte = (high * 16 + low) as u8;
            true
        }
        _ => false,
    })
}

/// What the `Seawall-Record` header says: `<stream>.<producer>.<epoch>.<seq>;tag=<32 hex>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The record's number.
    pub record: RecordRef,
    /// The seal over number and body.
    pub tag: Tag,
}

/// A text that is no stamp.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StampError {
    /// No `;tag=`.
    #[error("`{text}` is no stamp: expected `<stream>.<producer>.<epoch>.<seq>;tag=<32 hex>`")]
    Form {
        /// What was read.
        text: String,
    },
    /// The part before the tag is no record.
    #[error("cannot read the record of a stamp")]
    Record(#[from] RefError),
    /// The tag is no tag.
    #[error("cannot read the tag of a stamp")]
    Tag(#[from] HexError),
}

impl Stamp {
    /// Stamps a record.
    #[must_use]
    pub fn new(key: &LedgerKey, record: RecordRef, body: &Digest) -> Self {
        let tag = Tag::new(key, &record, body);
        Self { record, tag }
    }

    /// Whether number, tag and this body belong together.
    #[must_use]
    pub fn is_whole(&self, key: &LedgerKey, body: &Digest) -> bool {
        Tag::new(key, &self.record, body) == self.tag
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};tag={}", self.record, self.tag)
    }
}

impl FromStr for Stamp {
    type Err = StampError;

    fn from_str(text: &str) -> Result<Self, StampError> {
        let (record, tag) = text.split_once(";tag=").ok_or_else(|| StampError::Form { text: shortened(text) })?;
        Ok(Self { record: record.parse()?, tag: tag.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: LedgerKey = LedgerKey::new([7; 32]);

    fn record() -> RecordRef {
        RecordRef::new("events", "us-east-1", 3, 42).unwrap()
    }

    #[test]
    fn a_record_has_one_text() {
        assert_eq!(record().to_string(), "events.us-east-1.3.42");
        assert_eq!("events.us-east-1.3.42".parse(), Ok(record()));
        assert_eq!(serde_json::to_string(&record()).unwrap(), "\"events.us-east-1.3.42\"");
        assert_eq!(serde_json::from_str::<RecordRef>("\"events.us-east-1.3.42\"").unwrap(), record());
    }

    #[test]
    fn what_is_wrong_with_a_record_is_said() {
        let message = |text: &str| text.parse::<RecordRef>().unwrap_err().to_string();
        let parts = "expected `<stream>.<producer>.<epoch>.<seq>`";
        assert_eq!(message("a.b.1"), format!("`a.b.1` is no record: {parts}"));
        assert_eq!(message("a.b.1.2.3"), format!("`a.b.1.2.3` is no record: {parts}"));
        let name = "expected 1 to 128 of `A-Z a-z 0-9 _ -`";
        assert_eq!(message(".b.1.2"), format!("`` is no name for a stream: {name}"));
        assert_eq!(message("a.b c.1.2"), format!("`b c` is no name for a producer: {name}"));
        assert!(message(&format!("{}.b.1.2", "x".repeat(129))).ends_with(name));
        let number = "expected a whole number below 2^64 without leading zeros";
        assert_eq!(message("a.b.01.2"), format!("`01` is no epoch: {number}"));
        for seq in ["", "+1", "-1", "00", "18446744073709551616", "x"] {
            assert_eq!(message(&format!("a.b.1.{seq}")), format!("`{seq}` is no seq: {number}"));
        }
        assert_eq!("a.b.0.18446744073709551615".parse::<RecordRef>().unwrap().seq, u64::MAX);
        assert!(serde_json::from_str::<RecordRef>("\"x\"").is_err());
    }

    #[test]
    fn a_long_text_is_cut_before_it_is_shown() {
        let RefError::Parts { text } = "x".repeat(10_000).parse::<RecordRef>().unwrap_err() else { panic!("parts") };
        assert_eq!(text.len(), NAME_BYTES_MAX);
    }

    #[test]
    fn a_digest_is_the_sha_256_everybody_knows() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), abc);
        assert_eq!(abc.to_uppercase().parse(), Ok(Digest::of(b"abc")));
        assert_eq!(format!("{:?}", Digest::of(b"abc")), format!("Digest({abc})"));
        let digest: Digest = serde_json::from_str(&format!("\"{abc}\"")).unwrap();
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{abc}\""));
        assert_eq!(
            "abc".parse::<Digest>().unwrap_err().to_string(),
            "`abc` is no SHA-256 digest: expected 64 hexadecimal digits"
        );
    }

    #[test]
    fn a_tag_covers_every_field_and_where_it_ends() {
        let body = Digest::of(b"body");
        let tag = Tag::new(&KEY, &record(), &body);
        assert_eq!(tag, Tag::new(&KEY, &record(), &body));
        let mut others =
            vec![Tag::new(&LedgerKey::new([8; 32]), &record(), &body), Tag::new(&KEY, &record(), &Digest::of(b"bodY"))];
        for text in ["event.us-east-1.3.42", "events.us-east-2.3.42", "events.us-east-1.4.42", "events.us-east-1.3.43"]
        {
            others.push(Tag::new(&KEY, &text.parse().unwrap(), &body));
        }
        // The same letters, divided elsewhere.
        others.push(Tag::new(&KEY, &"event.sus-east-1.3.42".parse().unwrap(), &body));
        assert!(others.iter().all(|other| *other != tag));
    }

    #[test]
    fn the_tag_of_this_version_is_the_tag_of_the_next() {
        // A tag is stored by sinks for as long as they like: it must never change. Computed apart, from BLAKE3's paper.
        let tag = Tag::new(&LedgerKey::new([0; 32]), &"a.b.1.1".parse().unwrap(), &Digest::of(b""));
        assert_eq!(tag.to_string(), "d5969c31a070547b1d6f06a5d3926569");
    }

    #[test]
    fn a_stamp_reads_back_and_knows_its_body() {
        let body = Digest::of(b"body");
        let stamp = Stamp::new(&KEY, record(), &body);
        let text = stamp.to_string();
        assert_eq!(text.parse(), Ok(stamp.clone()));
        assert!(text.starts_with("events.us-east-1.3.42;tag="));
        assert!(stamp.is_whole(&KEY, &body));
        assert!(!stamp.is_whole(&KEY, &Digest::of(b"other")));
        assert!(format!("{stamp:?}").contains("Tag("));
    }

    #[test]
    fn what_is_wrong_with_a_stamp_is_said() {
        let error = |text: &str| text.parse::<Stamp>().unwrap_err();
        assert!(error("a.b.1.1").to_string().ends_with("expected `<stream>.<producer>.<epoch>.<seq>;tag=<32 hex>`"));
        assert!(matches!(error("a.b;tag=00"), StampError::Record(RefError::Parts { .. })));
        assert!(matches!(error("a.b.1.1;tag=00"), StampError::Tag(HexError { digits: 32, .. })));
        assert!(matches!(error(&format!("a.b.1.1;tag={}", "g".repeat(32))), StampError::Tag(_)));
        assert_eq!(error("a.b.1.1;tag=").to_string(), "cannot read the tag of a stamp");
    }

    #[test]
    fn the_key_is_not_shown() {
        assert_eq!(format!("{KEY:?}"), "LedgerKey(secret)");
    }

    proptest! {
        #[test]
        fn any_stamp_reads_back(stream in "[A-Za-z0-9_-]{1,20}", producer in "[A-Za-z0-9_-]{1,20}",
                                epoch: u64, seq: u64, tag: [u8; 16]) {
            let stamp = Stamp { record: RecordRef::new(stream, producer, epoch, seq).unwrap(), tag: Tag(tag) };
            prop_assert_eq!(stamp.to_string().parse(), Ok(stamp.clone()));
            let tag = serde_json::to_string(&stamp.tag).unwrap();
            prop_assert_eq!(serde_json::from_str::<Tag>(&tag).unwrap(), stamp.tag);
        }

        #[test]
        fn whatever_parses_prints_the_same(text in "[a-c.0-9-]{0,12}") {
            if let Ok(record) = text.parse::<RecordRef>() {
                prop_assert_eq!(record.to_string(), text);
            }
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,80}") {
            let _ = text.parse::<RecordRef>();
            let _ = text.parse::<Stamp>();
            let _ = text.parse::<Tag>();
            let _ = text.parse::<Digest>();
        }
    }
}
