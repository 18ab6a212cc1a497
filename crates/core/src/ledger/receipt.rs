//! The sink's side: what it says arrived, and what we believe of it.
//!
//! A sink reports number, tag and the digest of the body it really got. Here the tag is computed again from number and
//! digest: it fits only if this node numbered this very body. What goes on into the books is the verdict, not the
//! proof, so the log stays small and can be replayed without the key.
//! Invariants: batches of a sink are numbered 1, 2, 3, ...; one that was applied is not applied again, one that is
//! missing is asked for by number. Every receipt becomes one arrival: none is dropped because it looks odd.

use serde::{Deserialize, Serialize};

use super::id::{Digest, HexError, LedgerKey, RecordRef, RefError, Tag, check_name, shortened};

/// Most receipts in one batch. A sink with more sends more batches.
pub const RECEIPTS_MAX: usize = 65_536;

/// One arrival, in the sink's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The record's number as it arrived: `<stream>.<producer>.<epoch>.<seq>`.
    pub record: String,
    /// The tag as it arrived, in hexadecimal digits.
    pub tag: String,
    /// SHA-256 of the body that arrived, in hexadecimal digits.
    pub digest: String,
}

/// A batch of receipts as the sink sends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipts {
    /// The sink's name.
    pub sink: String,
    /// The node that the sink counts these batches for, where it counts for each node: records of a node that is gone
    /// are reported to the one that took them in, and go on from the last batch that was signed for there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The number of the batch: 1, 2, 3, ... for each sink and node.
    pub batch: u64,
    /// What arrived, every arrival once, repeats included.
    pub receipts: Vec<Receipt>,
}

/// A batch that cannot be judged: the caller made a mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// The sink has no usable name.
    #[error("cannot take receipts from this sink")]
    Sink(#[from] RefError),
    /// Too many at once.
    #[error("{receipts} receipts in one batch: at most {RECEIPTS_MAX}, send the rest as the next batch")]
    TooMany {
        /// How many there were.
        receipts: usize,
    },
    /// A digest is the sink's own work, so one that cannot be read is no damage on the way.
    #[error("cannot read the digest of receipt {index}")]
    Digest {
        /// Which receipt, from 0.
        index: usize,
        /// What is wrong with it.
        source: HexError,
    },
}

impl Receipts {
    /// Judges every receipt with the node's key.
    ///
    /// A tag that does not fit makes a damaged arrival of that record, whether body, tag or number was changed: the
    /// three are one seal. A number that cannot be read is kept as the text it is.
    ///
    /// # Errors
    /// [`ReceiptError`] when the batch as a whole cannot be taken; then nothing of it was.
    pub fn verify(&self, key: &LedgerKey) -> Result<ReceiptBatch, ReceiptError> {
        check_name("sink", &self.sink)?;
        if let Some(node) = &self.node {
            check_name("node", node)?;
        }
        if self.receipts.len() > RECEIPTS_MAX {
            return Err(ReceiptError::TooMany { receipts: self.receipts.len() });
        }
        let arrivals = self
            .receipts
            .iter()
            .enumerate()
            .map(|(index, receipt)| receipt.verify(key).map_err(|source| ReceiptError::Digest { index, source }));
        Ok(ReceiptBatch { sink: self.counted_by(), batch: self.batch, arrivals: arrivals.collect::<Result<_, _>>()? })
    }
}

impl Receipts {
    /// The name under which its batches are counted here.
    fn counted_by(&self) -> String {
        self.node.as_ref().map_or_else(|| self.sink.clone(), |node| format!("{}.{node}", self.sink))
    }
}

impl Receipt {
    fn verify(&self, key: &LedgerKey) -> Result<Arrival, HexError> {
        let digest: Digest = self.digest.parse()?;
        let Ok(record) = self.record.parse::<RecordRef>() else {
            return Ok(Arrival::Unreadable { text: shortened(&self.record) });
        };
        let is_whole = self.tag.parse() == Ok(Tag::new(key, &record, &digest));
        Ok(Arrival::Record { record, is_whole })
    }
}

/// A batch of judged receipts: what the ledger's log keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptBatch {
    /// The sink's name, and after a dot the node it counts its batches for, if that is not this one.
    pub sink: String,
    /// The number of the batch.
    pub batch: u64,
    /// What arrived.
    pub arrivals: Vec<Arrival>,
}

/// One arrival, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrival {
    /// An arrival with a number that can be read.
    Record {
        /// The number.
        record: RecordRef,
        /// Whether number, tag and body belong together.
        is_whole: bool,
    },
    /// An arrival whose number cannot be read.
    Unreadable {
        /// What stood there, cut to a length that may be kept.
        text: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::id::{NAME_BYTES_MAX, Stamp};

    const KEY: LedgerKey = LedgerKey::new([3; 32]);

    fn receipt(body: &[u8], arrived: &[u8]) -> Receipt {
        let stamp = Stamp::new(&KEY, "events.node.1.5".parse().unwrap(), &Digest::of(body));
        Receipt {
            record: stamp.record.to_string(),
            tag: stamp.tag.to_string(),
            digest: Digest::of(arrived).to_string(),
        }
    }

    fn judged(receipts: Vec<Receipt>) -> Result<Vec<Arrival>, ReceiptError> {
        Receipts { sink: "warehouse".into(), node: None, batch: 1, receipts }.verify(&KEY).map(|batch| batch.arrivals)
    }

    #[test]
    fn number_tag_and_body_belong_together_or_not() {
        let record: RecordRef = "events.node.1.5".parse().unwrap();
        let arrival = |is_whole| Arrival::Record { record: record.clone(), is_whole };
        let bad_tag = Receipt { tag: "torn".into(), ..receipt(b"body", b"body") };
        assert_eq!(
            judged(vec![receipt(b"body", b"body"), receipt(b"body", b"bodY"), bad_tag]),
            Ok(vec![arrival(true), arrival(false), arrival(false)])
        );
    }

    #[test]
    fn a_number_that_cannot_be_read_is_kept_as_text() {
        let torn = Receipt { record: "é".repeat(500), ..receipt(b"", b"") };
        let arrivals = judged(vec![torn]).unwrap();
        assert_eq!(arrivals, [Arrival::Unreadable { text: "é".repeat(NAME_BYTES_MAX) }]);
    }

    #[test]
    fn the_callers_mistakes_are_named() {
        let mistaken = Receipt { digest: "abc".into(), ..receipt(b"", b"") };
        let error = judged(vec![receipt(b"", b""), mistaken]).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the digest of receipt 1");
        let error = judged(vec![receipt(b"", b""); RECEIPTS_MAX + 1]).unwrap_err();
        assert_eq!(error.to_string(), "65537 receipts in one batch: at most 65536, send the rest as the next batch");
        let named = |sink: &str, node: Option<&str>| {
            let node = node.map(Into::into);
            Receipts { sink: sink.into(), node, batch: 1, receipts: Vec::new() }.verify(&KEY)
        };
        for (sink, node) in [("", None), ("a.b", None), ("a", Some("")), ("a", Some("b.c"))] {
            assert!(matches!(named(sink, node), Err(ReceiptError::Sink(_))));
        }
        assert_eq!(named("a", Some("b")).unwrap().sink, "a.b");
    }

    #[test]
    fn the_callers_json_is_read_as_the_contract_writes_it() {
        let text = r#"{"sink":"warehouse","batch":17,"receipts":[{"record":"a.b.1.2","tag":"00","digest":"ff"}]}"#;
        let receipts: Receipts = serde_json::from_str(text).unwrap();
        assert_eq!((receipts.batch, receipts.receipts[0].record.as_str()), (17, "a.b.1.2"));
        assert_eq!(serde_json::to_string(&receipts).unwrap(), text);
    }
}
