//! How a record's bytes lie on the disk: as they are, packed, sealed, or first packed and then sealed.
//!
//! ```text
//! packed   0x80, length when unpacked (4), one LZ4 block
//! sealed   0x81, key id (4), nonce (24), XChaCha20-Poly1305 of what it seals (16 bytes more)
//! ```
//! A record's own bytes begin with its version, which is below 0x80. The nonce is a keyed hash of what is sealed: no
//! chance is needed, and a nonce comes again only with the very same bytes, whose seal is then the same. Every
//! directory derives keys of its own from the key in the file and from its secret.
//!
//! Sealed are records: payloads, headers, targets, keys. Not sealed are their numbers, states and times, the texts of
//! errors, and what the journal and the ledger say.

use std::borrow::Cow;

use chacha20poly1305::aead::{Aead, KeyInit};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

const PACKED: u8 = 0x80;
const SEALED: u8 = 0x81;
const KEY_ID_BYTES: usize = 4;
const NONCE_BYTES: usize = 24;
/// Nothing is unpacked to more than this: a length that lies must not reserve memory.
const UNPACKED_BYTES_MAX: usize = 1 << 30;

/// Keys that records are sealed with at rest: the first seals, all of them open.
#[derive(Clone, PartialEq, Eq)]
pub struct SealKeys(Vec<[u8; 32]>);

impl std::fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKeys(secret)")
    }
}

/// A text that holds no keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKeys {
    /// A line that is no key.
    #[error("line {line} is no key: expected 64 hex digits, such as `head -c 32 /dev/urandom | xxd -p -c 32` prints")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// No line at all.
    #[error("it holds no key: expected a line of 64 hex digits")]
    Empty,
}

impl SealKeys {
    /// One key a line, 64 hex digits each; empty lines and those that begin with `#` are passed over. A new key is put
    /// before the old one, and the old one goes when nothing sealed with it is left.
    ///
    /// # Errors
    /// [`NoKeys`].
    pub fn parse(text: &str) -> Result<Self, NoKeys> {
        let mut keys = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if !text.is_empty() && !text.starts_with('#') {
                keys.push(parse_key(text).ok_or(NoKeys::Line { line })?);
            }
        }
        if keys.is_empty() { Err(NoKeys::Empty) } else { Ok(Self(keys)) }
    }
}

fn parse_key(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in key.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(key)
}

/// Why bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnwrapError {
    #[error("its records are sealed, and no key was given")]
    NoKey,
    #[error("its records are sealed with another key")]
    OtherKey,
    #[error("a seal does not fit what it seals")]
    BrokenSeal,
    #[error("what was packed cannot be unpacked")]
    BrokenPack,
}

/// Wraps and unwraps the records of one directory.
pub(crate) struct Wrap {
    seals: Vec<Seal>,
    packs: bool,
}

struct Seal {
    id: [u8; KEY_ID_BYTES],
    cipher: XChaCha20Poly1305,
    nonces: [u8; 32],
}

impl std::fmt::Debug for Wrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wrap").field("seals", &self.seals.len()).field("packs", &self.packs).finish()
    }
}

impl Seal {
    fn new(key: &[u8; 32], secret: &[u8; 32]) -> Self {
        let both = [key.as_slice(), secret].concat();
        let derived = |context| blake3::derive_key(context, &both);
        let id = derived("seawall 2026 spool seal id");
        Self {
            id: std::array::from_fn(|at| id[at]),
            cipher: XChaCha20Poly1305::new(&derived("seawall 2026 spool seal key").into()),
            nonces: derived("seawall 2026 spool seal nonce"),
        }
    }

    fn seal(&self, plain: &[u8]) -> Vec<u8> {
        let hash = blake3::keyed_hash(&self.nonces, plain);
        let nonce = &hash.as_bytes()[..NONCE_BYTES];
        let sealed = self.cipher.encrypt(XNonce::from_slice(nonce), plain).expect("a record is far below 256 GiB");
        [&[SEALED], self.id.as_slice(), nonce, &sealed].concat()
    }
}

impl Wrap {
    pub(crate) fn new(keys: Option<&SealKeys>, secret: &[u8; 32], packs: bool) -> Self {
        let keys = keys.map_or(&[][..], |keys| &keys.0);
        Self { seals: keys.iter().map(|key| Seal::new(key, secret)).collect(), packs }
    }

    /// Neither packs nor seals.
    pub(crate) const fn none() -> Self {
        Self { seals: Vec::new(), packs: false }
    }

    /// True if a record stays as it is.
    pub(crate) const fn is_plain(&self) -> bool {
        self.seals.is_empty() && !self.packs
    }

    pub(crate) fn wrap(&self, record: Vec<u8>) -> Vec<u8> {
        let record = if self.packs { packed(record) } else { record };
        match self.seals.first() {
            Some(seal) => seal.seal(&record),
            None => record,
        }
    }

    pub(crate) fn unwrap<'a>(&self, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, UnwrapError> {
        match bytes.first() {
            Some(&SEALED) => Ok(unpacked(self.opened(&bytes[1..])?.into())?.into_owned().into()),
            _ => unpacked(bytes.into()),
        }
    }

    fn opened(&self, bytes: &[u8]) -> Result<Vec<u8>, UnwrapError> {
        let (id, rest) = bytes.split_at_checked(KEY_ID_BYTES).ok_or(UnwrapError::BrokenSeal)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_BYTES).ok_or(UnwrapError::BrokenSeal)?;
        let missing = if self.seals.is_empty() { UnwrapError::NoKey } else { UnwrapError::OtherKey };
        let seal = self.seals.iter().find(|seal| seal.id == id).ok_or(missing)?;
        seal.cipher.decrypt(XNonce::from_slice(nonce), sealed).map_err(|_| UnwrapError::BrokenSeal)
    }
}

/// Packed, if that makes it shorter.
fn packed(record: Vec<u8>) -> Vec<u8> {
    let Ok(length) = u32::try_from(record.len()) else { return record };
    let mut packed = vec![PACKED];
    packed.extend_from_slice(&length.to_le_bytes());
    packed.extend(lz4_flex::block::compress(&record));
    if packed.len() < record.len() { packed } else { record }
}

fn unpacked(bytes: Cow<'_, [u8]>) -> Result<Cow<'_, [u8]>, UnwrapError> {
    if bytes.first() != Some(&PACKED) {
        return Ok(bytes);
    }
    let (length, block) = bytes[1..].split_first_chunk::<4>().ok_or(UnwrapError::BrokenPack)?;
    let length = u32::from_le_bytes(*length) as usize;
    // LZ4 makes nothing more than 255 times shorter.
    if length > UNPACKED_BYTES_MAX.min(block.len().saturating_mul(255)) {
        return Err(UnwrapError::BrokenPack);
    }
    let record = lz4_flex::block::decompress(block, length).map_err(|_| UnwrapError::BrokenPack)?;
    if record.len() == length { Ok(record.into()) } else { Err(UnwrapError::BrokenPack) }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SECRET: [u8; 32] = [9; 32];

    fn keys(text: &str) -> SealKeys {
        SealKeys::parse(text).unwrap()
    }

    fn wrap(keys: Option<&SealKeys>, packs: bool) -> Wrap {
        Wrap::new(keys, &SECRET, packs)
    }

    #[test]
    fn keys_are_lines_of_hex() {
        let (a, b) = ("a".repeat(64), "0B".repeat(32));
        assert_eq!(keys(&format!("# old below\n{a}\n\n {b} \n")), SealKeys(vec![[0xaa; 32], [0x0b; 32]]));
        assert_eq!(SealKeys::parse("# none\n"), Err(NoKeys::Empty));
        for bad in ["ab", &"g".repeat(64), &"é".repeat(32), &format!("{a}0")] {
            let error = SealKeys::parse(&format!("{a}\n{bad}\n")).unwrap_err();
            assert!(error == NoKeys::Line { line: 2 } && error.to_string().contains("64 hex digits"), "{bad}");
        }
        assert_eq!(format!("{:?} {:?}", keys(&a), wrap(None, true)), "SealKeys(secret) Wrap { seals: 0, packs: true }");
    }

    #[test]
    fn a_new_key_seals_and_the_old_one_still_opens() {
        let (old, new) = ("a".repeat(64), "b".repeat(64));
        let before = wrap(Some(&keys(&old)), false).wrap(b"\x02record".to_vec());
        let both = wrap(Some(&keys(&format!("{new}\n{old}"))), false);
        assert_eq!(both.unwrap(&before).unwrap(), b"\x02record".as_slice());
        let after = both.wrap(b"\x02record".to_vec());
        assert_ne!(after, before);
        assert_eq!(wrap(Some(&keys(&old)), false).unwrap(&after), Err(UnwrapError::OtherKey));
        assert_eq!(Wrap::none().unwrap(&after), Err(UnwrapError::NoKey));
        let elsewhere = Wrap::new(Some(&keys(&new)), &[1; 32], false);
        assert_eq!(elsewhere.unwrap(&after), Err(UnwrapError::OtherKey), "every directory has keys of its own");
    }

    #[test]
    fn a_length_that_lies_unpacks_nothing() {
        let none = Wrap::none();
        for bytes in [&[PACKED][..], &[PACKED, 255, 255, 255, 255, 0], &[PACKED, 9, 0, 0, 0, 0x10, b'a'], &[SEALED, 1]]
        {
            assert!(none.unwrap(bytes).is_err(), "{bytes:?}");
        }
        let text = vec![2; 5000];
        let packed = wrap(None, true).wrap(text.clone());
        assert!(packed.len() < 100);
        assert_eq!(none.unwrap(&packed).unwrap(), text);
    }

    proptest! {
        #[test]
        fn what_is_wrapped_comes_back_and_a_flipped_bit_does_not(
            record in vec(any::<u8>(), 0..300), repeat in 1..9_usize, seals: bool, packs: bool,
            at: prop::sample::Index, flip in 1..=255_u8,
        ) {
            let record = [&[2], record.repeat(repeat).as_slice()].concat();
            let keys = keys(&"c".repeat(64));
            let wrap = wrap(seals.then_some(&keys), packs);
            let wrapped = wrap.wrap(record.clone());
            prop_assert_eq!(wrap.unwrap(&wrapped).unwrap(), record.as_slice());
            if seals {
                let mut wrong = wrapped;
                let at = at.index(wrong.len());
                wrong[at] ^= flip;
                prop_assert!(at == 0 || wrap.unwrap(&wrong).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in vec(any::<u8>(), 0..80), kind in prop::sample::select(vec![PACKED, SEALED, 2])) {
            let bytes = [&[kind], bytes.as_slice()].concat();
            let _ = wrap(Some(&keys(&"c".repeat(64))), true).unwrap(&bytes);
        }
    }
}
