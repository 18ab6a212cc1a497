//! The bytes of an [`Entry`]: versioned, length-prefixed, one spelling each; reading never panics.

use std::collections::BTreeMap;

pub use crate::spool::wire::DecodeError;

use super::{Entry, Seq};
use crate::spool::wire::{Reader, Writer};
use crate::time::Wall;

/// Version of the bytes of an [`Entry`].
const ENTRY_VERSION: u8 = 1;

impl Entry {
    /// Appends its bytes. The kind is written by name, so that its number in a list never matters.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        w.u8(ENTRY_VERSION).u64(self.seq.0).u64(self.at.as_millis()).str(self.kind.name()).str(&self.subject);
        w.option(self.cause, |w, cause| {
            w.u64(cause.0);
        });
        w.u32(u32::try_from(self.fields.len()).expect("more than four billion fields"));
        for (name, value) in &self.fields {
            w.str(name).str(value);
        }
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else, a kind this program does not know included; never a panic.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        r.version(ENTRY_VERSION)?;
        let (seq, at) = (Seq(r.u64()?), Wall::from_millis(r.u64()?));
        let kind = r.str()?.parse().map_err(|_| DecodeError::Invalid("a kind of entry that is not known"))?;
        let subject = r.str()?.into();
        let cause = r.option(|r| r.u64().map(Seq))?;
        let fields = decode_fields(&mut r)?;
        r.finish()?;
        Ok(Self { seq, at, kind, subject, cause, fields })
    }
}

fn decode_fields(r: &mut Reader<'_>) -> Result<BTreeMap<String, String>, DecodeError> {
    let count = r.u32()?;
    let mut fields = BTreeMap::new();
    for _ in 0..count {
        let (name, value) = (r.str()?, r.str()?);
        if fields.last_key_value().is_some_and(|(last, _): (&String, _)| last.as_str() >= name) {
            return Err(DecodeError::Invalid("fields out of order"));
        }
        fields.insert(name.into(), value.into());
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;
    use crate::journal::Kind;

    prop_compose! {
        fn entry()(
            seq: u64, at: u64, kind in prop::sample::select(Kind::ALL), subject in "[a-z:é]{0,20}",
            cause: Option<u64>, fields in btree_map("[a-z_]{1,8}", ".{0,12}", 0..5),
        ) -> Entry {
            Entry { seq: Seq(seq), at: Wall::from_millis(at), kind, subject, cause: cause.map(Seq), fields }
        }
    }

    fn bytes_of(entry: &Entry) -> Vec<u8> {
        let mut out = Vec::new();
        entry.encode(&mut out);
        out
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(entry in entry()) {
            prop_assert_eq!(Entry::decode(&bytes_of(&entry)), Ok(entry));
        }

        #[test]
        fn no_bytes_panic_and_all_have_one_spelling(
            entry in entry(), flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut: prop::sample::Index,
        ) {
            let mut bytes = bytes_of(&entry);
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Ok(read) = Entry::decode(&bytes) {
                prop_assert_eq!(bytes_of(&read), bytes);
            }
        }
    }

    #[test]
    fn what_cannot_be_is_told() {
        let entry = crate::journal::Draft::new(Kind::NodeStarted, "node").with("a", 1).with("b", 2);
        let entry = entry.numbered(Seq(1), Wall::from_millis(2));
        let bytes = bytes_of(&entry);
        let swapped: Vec<u8> = bytes.iter().map(|&byte| if byte == b'a' { b'c' } else { byte }).collect();
        assert!(matches!(Entry::decode(&swapped), Err(DecodeError::Invalid(_))), "c before b, and a kind unknown");
        let mut newer = bytes.clone();
        newer[0] = 9;
        assert_eq!(Entry::decode(&newer), Err(DecodeError::Version { found: 9, known: 1 }));
        let mut fields = Vec::new();
        Writer::new(&mut fields).u32(2).str("b").str("").str("a").str("");
        assert_eq!(decode_fields(&mut Reader::new(&fields)), Err(DecodeError::Invalid("fields out of order")));
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(Entry::decode(&longer), Err(DecodeError::Trailing(1)));
    }
}
