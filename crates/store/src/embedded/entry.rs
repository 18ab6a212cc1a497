//! What the spool's log says, one entry a record of the log. `docs/formats/log.md` lists the bytes.

use seawall_core::id::RecordId;
use seawall_core::spool::KeyHash;
use seawall_core::spool::index::{Outcome, Parked, Settled};
use seawall_core::spool::wire::{DecodeError, Reader, Writer};
use seawall_core::time::Wall;

/// One fact about a record. Payloads are borrowed: they are looked at only when a record is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SpoolEntry<'a> {
    /// The first entry of a segment: numbers below this were given out.
    Begin { next_id: u64 },
    /// A record was accepted.
    Enqueue { id: RecordId, record: &'a [u8] },
    /// A try failed. Written without a sync: losing it costs a count.
    Failed { id: RecordId, attempts: u32, error: &'a str },
    /// It became a dead letter.
    Parked { id: RecordId, attempts: u32, parked: Parked },
    /// A dead letter waits again.
    Retried { id: RecordId },
    /// It has left: delivered, given up or handed over.
    Settled { id: RecordId, settled: Settled },
    /// It was moved forward from a segment that was thrown away, as it was then.
    Moved { id: RecordId, attempts: u32, error: &'a str, parked: Option<Parked>, record: &'a [u8] },
    /// It was settled, and only its key was moved forward.
    Remembered { id: RecordId, key: KeyHash, fingerprint: [u8; 32], settled: Settled },
}

impl SpoolEntry<'_> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        match self {
            Self::Begin { next_id } => w.u8(0).u64(*next_id),
            Self::Enqueue { id, record } => w.u8(1).u64(id.0).raw(record),
            Self::Failed { id, attempts, error } => w.u8(2).u64(id.0).u32(*attempts).str(error),
            Self::Parked { id, attempts, parked } => put_parked(w.u8(3).u64(id.0).u32(*attempts), parked),
            Self::Retried { id } => w.u8(4).u64(id.0),
            Self::Settled { id, settled } => put_settled(w.u8(5).u64(id.0), settled),
            Self::Moved { id, attempts, error, parked, record } => {
                w.u8(6).u64(id.0).u32(*attempts).str(error);
                w.option(parked.as_ref(), |w, parked| _ = put_parked(w, parked)).raw(record)
            }
            Self::Remembered { id, key, fingerprint, settled } => {
                put_settled(w.u8(7).u64(id.0).raw(&key.0).raw(fingerprint), settled)
            }
        };
    }

    /// Whom it is about; [`Self::Begin`] is about nobody.
    pub(crate) const fn id(&self) -> RecordId {
        match self {
            Self::Begin { .. } => RecordId(0),
            Self::Enqueue { id, .. }
            | Self::Failed { id, .. }
            | Self::Parked { id, .. }
            | Self::Retried { id }
            | Self::Settled { id, .. }
            | Self::Moved { id, .. }
            | Self::Remembered { id, .. } => *id,
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

impl<'a> SpoolEntry<'a> {
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let kind = r.u8()?;
        if kind == 0 {
            let next_id = r.u64()?;
            return r.finish().map(|()| Self::Begin { next_id });
        }
        let id = RecordId(r.u64()?);
        let entry = match kind {
            1 => return Ok(Self::Enqueue { id, record: r.rest() }),
            2 => Self::Failed { id, attempts: r.u32()?, error: r.str()? },
            3 => Self::Parked { id, attempts: r.u32()?, parked: get_parked(&mut r)? },
            4 => Self::Retried { id },
            5 => Self::Settled { id, settled: get_settled(&mut r)? },
            6 => {
                let (attempts, error, parked) = (r.u32()?, r.str()?, r.option(get_parked)?);
                return Ok(Self::Moved { id, attempts, error, parked, record: r.rest() });
            }
            7 => {
                let (key, fingerprint) = (KeyHash(r.raw()?), r.raw()?);
                Self::Remembered { id, key, fingerprint, settled: get_settled(&mut r)? }
            }
            _ => return Err(DecodeError::Invalid("a kind of entry that is not known")),
        };
        r.finish().map(|()| entry)
    }
}

fn put_parked<'w, 'b>(w: &'w mut Writer<'b>, parked: &Parked) -> &'w mut Writer<'b> {
    w.u64(parked.at.as_millis()).str(&parked.reason).str(&parked.last_words)
}

fn get_parked(r: &mut Reader<'_>) -> Result<Parked, DecodeError> {
    let at = Wall::from_millis(r.u64()?);
    Ok(Parked { at, reason: r.str()?.into(), last_words: r.str()?.into() })
}

fn put_settled<'w, 'b>(w: &'w mut Writer<'b>, settled: &Settled) -> &'w mut Writer<'b> {
    w.u64(settled.at.as_millis());
    match &settled.outcome {
        Outcome::Delivered { status } => w.u8(0).u16(*status),
        Outcome::Discarded { reason } => w.u8(1).str(reason),
        Outcome::Expired => w.u8(2),
        Outcome::HandedOver { to } => w.u8(3).str(to),
    }
}

fn get_settled(r: &mut Reader<'_>) -> Result<Settled, DecodeError> {
    let at = Wall::from_millis(r.u64()?);
    let outcome = match r.u8()? {
        0 => Outcome::Delivered { status: r.u16()? },
        1 => Outcome::Discarded { reason: r.str()?.into() },
        2 => Outcome::Expired,
        3 => Outcome::HandedOver { to: r.str()?.into() },
        _ => return Err(DecodeError::Invalid("an end that is not known")),
    };
    Ok(Settled { outcome, at })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn parked() -> impl Strategy<Value = Parked> {
        ("[a-zé]{0,9}", "[a-zé]{0,9}", any::<u64>()).prop_map(|(reason, last_words, at)| Parked {
            reason,
            last_words,
            at: Wall::from_millis(at),
        })
    }

    fn settled() -> impl Strategy<Value = Settled> {
        let outcome = prop_oneof![
            any::<u16>().prop_map(|status| Outcome::Delivered { status }),
            "[a-zé]{0,9}".prop_map(|reason| Outcome::Discarded { reason }),
            Just(Outcome::Expired),
            "[a-zé]{0,9}".prop_map(|to| Outcome::HandedOver { to }),
        ];
        (outcome, any::<u64>()).prop_map(|(outcome, at)| Settled { outcome, at: Wall::from_millis(at) })
    }

    proptest! {
        #[test]
        fn entries_come_back(
            id: u64, attempts: u32, error in "[a-zé]{0,9}", parked in parked(), settled in settled(),
            key: [u8; 16], fingerprint: [u8; 32], record in vec(any::<u8>(), 0..30), cut: prop::sample::Index,
        ) {
            let (id, key) = (RecordId(id), KeyHash(key));
            let entries = [
                SpoolEntry::Begin { next_id: id.0 },
                SpoolEntry::Enqueue { id, record: &record },
                SpoolEntry::Failed { id, attempts, error: &error },
                SpoolEntry::Parked { id, attempts, parked: parked.clone() },
                SpoolEntry::Retried { id },
                SpoolEntry::Settled { id, settled: settled.clone() },
                SpoolEntry::Moved { id, attempts, error: &error, parked: Some(parked), record: &record },
                SpoolEntry::Moved { id, attempts, error: &error, parked: None, record: &record },
                SpoolEntry::Remembered { id, key, fingerprint, settled },
            ];
            for entry in entries {
                let bytes = entry.to_bytes();
                prop_assert_eq!(SpoolEntry::decode(&bytes), Ok(entry));
                let _ = SpoolEntry::decode(&bytes[..cut.index(bytes.len())]);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in vec(any::<u8>(), 0..80)) {
            if let Ok(entry) = SpoolEntry::decode(&bytes) {
                prop_assert_eq!(entry.to_bytes(), bytes);
            }
        }
    }
}
