//! A record: a write that an upstream could not take, whole, with everything needed to send it later.

use std::fmt;

use super::wire::{DecodeError, Reader, Writer};
use crate::time::Wall;

/// Version of the bytes of a [`NewRecord`]. Version 1, which has no [`Terms`], is read too.
pub const RECORD_VERSION: u8 = 2;

const LEDGER_HEADER: &str = "seawall-record";

/// Which records of an upstream go first. Within an order key, order counts and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Before all others, except that one in eight goes to these.
    High,
    /// As a rule.
    #[default]
    Normal,
    /// When nothing else is ready, and now and then.
    Low,
}

impl Priority {
    /// All there are, the first to go first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// Its name in a configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// On what terms a record is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Which go first.
    pub priority: Priority,
    /// From when on it is of no use to anybody: what still waits then is given up. A dead letter is a person's to
    /// decide and does not expire.
    pub expires: Option<Wall>,
}

/// A write to be kept until it is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// The upstream it is for, by name: names outlive a change of configuration, places in a list do not.
    pub upstream: String,
    /// The route it came by.
    pub route: String,
    /// Records of one upstream with the same key are delivered in the order accepted; `None` waits for nobody.
    pub order_key: Option<Vec<u8>>,
    /// One key, one record. Opaque: who wants keys apart per route puts the route into the key.
    pub idempotency_key: String,
    /// SHA-256 of method, target and body: tells a repeated request from another one under the same key.
    pub fingerprint: [u8; 32],
    /// The `Seawall-Record` header it is delivered with, tag included; opaque here.
    pub ledger: Option<String>,
    /// The request's method.
    pub method: String,
    /// The request's target as it was sent.
    pub target: String,
    /// The request's headers, hop-by-hop ones already removed, in order.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The request's body, whole.
    pub body: Vec<u8>,
    /// When it was accepted.
    pub accepted: Wall,
    /// Why it was not delivered at once.
    pub first_failure: String,
    /// Tries before it was accepted here.
    pub attempts: u32,
    /// On what terms it is kept.
    pub terms: Terms,
}

impl NewRecord {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        w.u8(RECORD_VERSION).u64(self.accepted.as_millis()).u32(self.attempts).raw(&self.fingerprint);
        w.u8(self.terms.priority as u8).option(self.terms.expires, |w, expires| {
            w.u64(expires.as_millis());
        });
        w.str(&self.upstream).str(&self.route).str(&self.idempotency_key);
        w.option(self.order_key.as_deref(), |w, key| {
            w.bytes(key);
        });
        w.option(self.ledger.as_deref(), |w, header| {
            w.str(header);
        });
        w.str(&self.first_failure).str(&self.method).str(&self.target);
        w.u32(u32::try_from(self.headers.len()).expect("more than four billion headers"));
        for (name, value) in &self.headers {
            w.str(name).bytes(value);
        }
        w.bytes(&self.body);
    }

    /// Bytes that [`Self::encode`] would append.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let optional = |bytes: Option<usize>| 1 + bytes.map_or(0, |length| 4 + length);
        let headers: usize = self.headers.iter().map(|(name, value)| 8 + name.len() + value.len()).sum();
        let texts =
            [&self.upstream, &self.route, &self.idempotency_key, &self.first_failure, &self.method, &self.target];
        47 + self.terms.expires.map_or(0, |_| 8)
            + texts.iter().map(|text| 4 + text.len()).sum::<usize>()
            + optional(self.order_key.as_ref().map(Vec::len))
            + optional(self.ledger.as_ref().map(String::len))
            + 4
            + headers
            + 4
            + self.body.len()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else; never a panic.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut headers = Vec::new();
        let outline = Outline::parse(bytes, |name, value| headers.push((name.into(), value.to_vec())))?;
        Ok(Self {
            upstream: outline.upstream.into(),
            route: outline.route.into(),
            order_key: outline.order_key.map(<[u8]>::to_vec),
            idempotency_key: outline.idempotency_key.into(),
            fingerprint: outline.fingerprint,
            ledger: outline.ledger.map(String::from),
            method: outline.method.into(),
            target: outline.target.into(),
            headers,
            body: outline.body.to_vec(),
            accepted: outline.accepted,
            first_failure: outline.first_failure.into(),
            attempts: outline.attempts,
            terms: outline.terms,
        })
    }

    /// Goes on under another `Seawall-Record` header, which also is among the request's own.
    pub fn restamp(&mut self, stamp: String) {
        let stamped = self.headers.iter_mut().filter(|(name, _)| name.eq_ignore_ascii_case(LEDGER_HEADER));
        stamped.for_each(|(_, value)| *value = stamp.clone().into_bytes());
        self.ledger = Some(stamp);
    }

    /// The lane it is delivered in, if order matters to it.
    #[must_use]
    pub fn lane(&self) -> Option<LaneKey> {
        self.order_key.as_deref().map(|key| LaneKey::new(&self.upstream, key))
    }

    /// Its idempotency key as the index knows it.
    #[must_use]
    pub fn key(&self) -> KeyHash {
        KeyHash::new(&self.idempotency_key)
    }
}

/// A record where its bytes lie: all of it checked, nothing copied. The headers are checked and left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `NewRecord`")]
pub struct Outline<'a> {
    pub upstream: &'a str,
    pub route: &'a str,
    pub order_key: Option<&'a [u8]>,
    pub idempotency_key: &'a str,
    pub fingerprint: [u8; 32],
    pub ledger: Option<&'a str>,
    pub method: &'a str,
    pub target: &'a str,
    pub body: &'a [u8],
    pub accepted: Wall,
    pub first_failure: &'a str,
    pub attempts: u32,
    pub terms: Terms,
}

impl<'a> Outline<'a> {
    /// Of what [`NewRecord::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else; never a panic.
    pub fn of(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Self::parse(bytes, |_, _| {})
    }

    fn parse(bytes: &'a [u8], mut header: impl FnMut(&'a str, &'a [u8])) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let version = r.u8()?;
        if !matches!(version, 1 | RECORD_VERSION) {
            return Err(DecodeError::Version { found: version, known: RECORD_VERSION });
        }
        let (accepted, attempts, fingerprint) = (Wall::from_millis(r.u64()?), r.u32()?, r.raw()?);
        let terms = if version == 1 { Terms::default() } else { decode_terms(&mut r)? };
        let (upstream, route, idempotency_key) = (r.str()?, r.str()?, r.str()?);
        let (order_key, ledger) = (r.option(Reader::bytes)?, r.option(Reader::str)?);
        let (first_failure, method, target) = (r.str()?, r.str()?, r.str()?);
        for _ in 0..header_count(&mut r)? {
            header(r.str()?, r.bytes()?);
        }
        let body = r.bytes()?;
        r.finish()?;
        Ok(Self {
            upstream,
            route,
            order_key,
            idempotency_key,
            fingerprint,
            ledger,
            method,
            target,
            body,
            accepted,
            first_failure,
            attempts,
            terms,
        })
    }

    /// The lane it is delivered in, if order matters to it.
    #[must_use]
    pub fn lane(&self) -> Option<LaneKey> {
        self.order_key.map(|key| LaneKey::new(self.upstream, key))
    }

    /// Its idempotency key as the index knows it.
    #[must_use]
    pub fn key(&self) -> KeyHash {
        KeyHash::new(self.idempotency_key)
    }
}

fn decode_terms(r: &mut Reader<'_>) -> Result<Terms, DecodeError> {
    let priority = Priority::ALL.get(usize::from(r.u8()?)).copied();
    let priority = priority.ok_or(DecodeError::Invalid("a priority that is not known"))?;
    Ok(Terms { priority, expires: r.option(|r| r.u64().map(Wall::from_millis))? })
}

/// A header takes 8 bytes at least: a count beyond that is a lie, and no reason to allocate.
fn header_count(r: &mut Reader<'_>) -> Result<usize, DecodeError> {
    let count = r.u32()? as usize;
    if count > r.rest().len() / 8 { Err(DecodeError::Truncated) } else { Ok(count) }
}

/// 128 bits of BLAKE3 of an idempotency key: what the index keeps instead of the text. Two of ten million keys
/// collide with a probability of about 10^-25.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub [u8; 16]);

impl KeyHash {
    /// Of the key's text.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self(half(&blake3::hash(key.as_bytes())))
    }
}

/// The first 128 bits of a fingerprint: what the index keeps of it. Two requests that differ look the same with a
/// probability of 10^-38.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FingerprintHalf(pub [u8; 16]);

impl FingerprintHalf {
    /// Of a whole fingerprint.
    #[must_use]
    pub fn of(fingerprint: &[u8; 32]) -> Self {
        Self(std::array::from_fn(|i| fingerprint[i]))
    }
}

/// 128 bits of BLAKE3 of an upstream's name and an order key: one queue in which order is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneKey(pub [u8; 16]);

impl LaneKey {
    /// Of an upstream and one of its order keys.
    #[must_use]
    pub fn new(upstream: &str, order_key: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(upstream.len() as u64).to_le_bytes()).update(upstream.as_bytes()).update(order_key);
        Self(half(&hasher.finalize()))
    }
}

impl fmt::Display for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn half(hash: &blake3::Hash) -> [u8; 16] {
    std::array::from_fn(|i| hash.as_bytes()[i])
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn record()(
            texts in proptest::array::uniform6("[a-zé/]{0,12}"),
            order_key in proptest::option::of(vec(any::<u8>(), 0..9)),
            ledger in proptest::option::of("[a-z;=]{0,12}"),
            fingerprint: [u8; 32],
            headers in vec(("[a-z-]{1,8}", vec(any::<u8>(), 0..9)), 0..4),
            body in vec(any::<u8>(), 0..64),
            accepted: u64,
            attempts: u32,
            priority in prop::sample::select(Priority::ALL.as_slice()),
            expires in proptest::option::of(any::<u64>()),
        ) -> NewRecord {
            let [upstream, route, idempotency_key, method, target, first_failure] = texts;
            NewRecord {
                upstream, route, order_key, idempotency_key, fingerprint, ledger, method, target, headers, body,
                accepted: Wall::from_millis(accepted), first_failure, attempts,
                terms: Terms { priority, expires: expires.map(Wall::from_millis) },
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(record in record()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), record.encoded_len());
            let outline = Outline::of(&bytes).unwrap();
            prop_assert_eq!((outline.lane(), outline.key()), (record.lane(), record.key()));
            prop_assert_eq!(NewRecord::decode(&bytes), Ok(record));
        }

        #[test]
        fn no_bytes_panic_and_all_have_one_spelling(
            record in record(), flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut: prop::sample::Index,
        ) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Ok(read) = NewRecord::decode(&bytes) {
                let mut again = Vec::new();
                read.encode(&mut again);
                if bytes[0] == 1 {
                    prop_assert_eq!(NewRecord::decode(&again), Ok(read));
                } else {
                    prop_assert_eq!(again, bytes);
                }
            }
        }

        #[test]
        fn garbage_is_an_error(bytes in vec(any::<u8>(), 0..200)) {
            prop_assert!(NewRecord::decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_header_count_that_lies_allocates_nothing() {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes).u32(u32::MAX);
        assert_eq!(header_count(&mut Reader::new(&bytes)), Err(DecodeError::Truncated));
    }

    #[test]
    fn a_record_of_version_1_is_read() {
        let mut bytes = Vec::new();
        let mut w = Writer::new(&mut bytes);
        w.u8(1).u64(7).u32(3).raw(&[9; 32]).str("queue").str("events").str("key");
        w.option(Some(b"a"), |w, key| _ = w.bytes(key)).option(None::<&str>, |_, _| {});
        w.str("503").str("POST").str("/x").u32(1).str("accept").bytes(b"*/*").bytes(b"body");
        let record = NewRecord::decode(&bytes).unwrap();
        assert_eq!((record.terms, record.attempts, record.body.as_slice()), (Terms::default(), 3, &b"body"[..]));
        assert_eq!(
            (record.accepted, record.fingerprint, record.order_key.unwrap()),
            (Wall::from_millis(7), [9; 32], b"a".to_vec())
        );
        bytes[0] = 3;
        assert_eq!(NewRecord::decode(&bytes), Err(DecodeError::Version { found: 3, known: 2 }));
        bytes[0] = 2;
        bytes[45] = 9;
        assert!(matches!(NewRecord::decode(&bytes), Err(DecodeError::Invalid(_))));
    }

    #[test]
    fn lanes_are_per_upstream() {
        assert_ne!(LaneKey::new("a", b"bc"), LaneKey::new("ab", b"c"));
        assert_eq!(LaneKey::new("a", b"b"), LaneKey::new("a", b"b"));
        assert_eq!(LaneKey([0xab; 16]).to_string(), "ab".repeat(16));
        assert_ne!(KeyHash::new("x"), KeyHash::new("y"));
    }
}
