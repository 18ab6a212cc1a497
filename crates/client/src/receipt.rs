//! One arrival, in the sink's words.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Characters of a header that are kept; a longer one was never ours.
const PART_BYTES_MAX: usize = 512;

/// One arrival: what the `Seawall-Record` header said, and what came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    record: String,
    tag: String,
    digest: String,
}

/// A header that names no node to report to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no `Seawall-Record`: expected `<stream>.<node>.<epoch>.<sequence>;tag=<32 hex digits>`")]
pub struct NotAStamp(
    /// What stood there, cut to a bearable length.
    pub String,
);

impl Receipt {
    /// Of a header's value and the body as it arrived. Number and tag are taken as they are, however torn they look:
    /// the node knows what it wrote.
    ///
    /// # Errors
    /// [`NotAStamp`] if not even the node can be told.
    pub fn of(header: &str, body: &[u8]) -> Result<Self, NotAStamp> {
        let not_a_stamp = || NotAStamp(header.chars().take(80).collect());
        let (record, tag) = header.split_once(";tag=").unwrap_or((header, ""));
        let (record, tag) = (record.trim(), tag.trim());
        let is_plain =
            |text: &str| text.len() <= PART_BYTES_MAX && !text.contains(|c: char| c == ';' || c.is_control());
        let receipt = Self { record: record.into(), tag: tag.into(), digest: hex(&Sha256::digest(body)) };
        if !is_plain(record) || !is_plain(tag) || receipt.node().is_none() {
            return Err(not_a_stamp());
        }
        Ok(receipt)
    }

    /// The node that keeps the account: the second part of the number.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        let node = self.record.split('.').nth(1)?;
        let is_name = (1..=64).contains(&node.len())
            && node.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        is_name.then_some(node)
    }

    /// The number as it arrived.
    #[must_use]
    pub fn record(&self) -> &str {
        &self.record
    }

    /// The tag as it arrived.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// SHA-256 of the body as it arrived, 64 hex digits.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// A line of the outbox.
    pub(crate) fn line(&self) -> String {
        format!("{};{};{}\n", self.record, self.tag, self.digest)
    }

    /// A line of the outbox, without its end; `None` if it was not written whole.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut parts = line.split(';').map(str::to_owned);
        let receipt = Self { record: parts.next()?, tag: parts.next()?, digest: parts.next()? };
        (parts.next().is_none() && receipt.digest.len() == 64).then_some(receipt)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_receipt_says_what_arrived() {
        let receipt = Receipt::of("events.us-east-1.7.1042;tag=5f1c", b"hello").unwrap();
        assert_eq!(
            (receipt.node(), receipt.record(), receipt.tag()),
            (Some("us-east-1"), "events.us-east-1.7.1042", "5f1c")
        );
        assert_eq!(receipt.digest(), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        let torn = Receipt::of("events.a.7", b"").unwrap();
        assert_eq!((torn.node(), torn.tag()), (Some("a"), ""), "the node will say what it thinks of it");
        for bad in ["", "events", "events..7.1;tag=1", "events.a b.7.1;tag=1", "e.a.1.1;tag=1;x", "e.a\n.1.1;tag=1"] {
            let told = Receipt::of(bad, b"").unwrap_err().to_string();
            assert!(told.contains("is no `Seawall-Record`"), "{bad}: {told}");
        }
        assert!(Receipt::of(&format!("e.a.1.{};tag=1", "9".repeat(600)), b"").is_err());
    }

    proptest! {
        #[test]
        fn lines_come_back(header in "\\PC{0,40}", node in "[a-z]{1,5}", body: Vec<u8>) {
            let header = format!("s.{node}.{header}");
            if let Ok(receipt) = Receipt::of(&header, &body) {
                let line = receipt.line();
                prop_assert_eq!(line.matches('\n').count(), 1);
                prop_assert_eq!(Receipt::parse(line.trim_end_matches('\n')), Some(receipt));
                prop_assert_eq!(Receipt::parse(&line[..line.len() - 2]), None, "cut short");
            }
        }
    }
}
