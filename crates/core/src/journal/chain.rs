//! The journal's chain: every entry carries a keyed tag over the one before it and over its own bytes.
//!
//! Picture a ledger whose every line ends with a seal pressed over the line and the seal above it. A line that is
//! changed, taken out, put in or moved breaks a seal; whoever does not have the stamp (the data directory's secret)
//! cannot press new ones.
//!
//! What a chain alone cannot show is that its ends are missing: the oldest entries go by retention, and the newest may
//! have been cut off. Whoever must know keeps a seal elsewhere, as `NUMBER:TAG`, and has it compared: an [`Anchor`].
//! Not here: files (`store`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::{DecodeError, Entry, Kind};

/// The first byte of an entry that carries its link; one without begins with its own version, 1.
const LINKED: u8 = 2;
/// Bytes a link puts before an entry.
pub const LINK_BYTES: usize = 1 + 2 * Tag::BYTES;
/// Most breaks that are named; all are counted.
pub const BREAKS_MAX: usize = 100;

/// What makes tags.
#[derive(Clone)]
pub struct ChainKey([u8; 32]);

impl fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChainKey(..)")
    }
}

impl ChainKey {
    /// Of a data directory's secret.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(blake3::derive_key("seawall 2026 journal chain", secret))
    }

    fn tag(&self, before: Tag, entry: &[u8]) -> Tag {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&before.0).update(entry);
        Tag(hasher.finalize().into())
    }

    /// Appends an entry's bytes behind its link. Returns its tag, which the next one continues.
    pub fn link(&self, before: Tag, entry: &[u8], out: &mut Vec<u8>) -> Tag {
        let tag = self.tag(before, entry);
        out.push(LINKED);
        out.extend_from_slice(&before.0);
        out.extend_from_slice(&tag.0);
        out.extend_from_slice(entry);
        tag
    }
}

/// The seal of an entry: BLAKE3, keyed, of the tag before it and of its bytes. The first entry's predecessor is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag([u8; Tag::BYTES]);

impl Tag {
    const BYTES: usize = 32;
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Tag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A number and the tag it had once: what a journal is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Anchor {
    /// The entry's number.
    pub seq: u64,
    /// Its tag.
    pub tag: Tag,
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.tag)
    }
}

/// A text that is no anchor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an entry's number, `:` and 64 hexadecimal digits, as `seawall journal verify` prints them")]
pub struct AnchorError;

impl FromStr for Anchor {
    type Err = AnchorError;

    fn from_str(text: &str) -> Result<Self, AnchorError> {
        let (seq, digits) = text.split_once(':').ok_or(AnchorError)?;
        let mut tag = Tag::default();
        if digits.len() != 2 * Tag::BYTES || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(AnchorError);
        }
        for (at, byte) in tag.0.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| AnchorError)?;
        }
        Ok(Self { seq: seq.parse().map_err(|_| AnchorError)?, tag })
    }
}

/// An entry as it stands in the log, its link taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linked<'a> {
    /// The tag before it, and its own; `None` for entries written before there was a chain.
    pub link: Option<(Tag, Tag)>,
    /// The entry's own bytes.
    pub entry: &'a [u8],
}

impl<'a> Linked<'a> {
    /// Splits what [`ChainKey::link`] put together.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.first() != Some(&LINKED) {
            return Ok(Self { link: None, entry: bytes });
        }
        let cut = |from: usize| bytes.get(from..)?.first_chunk().copied().map(Tag);
        match (cut(1), cut(1 + Tag::BYTES), bytes.get(LINK_BYTES..)) {
            (Some(before), Some(tag), Some(entry)) => Ok(Self { link: Some((before, tag)), entry }),
            _ => Err(DecodeError::Truncated),
        }
    }
}

/// Why the chain does not hold at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flaw {
    /// Its bytes, or its tag, are not as they were written.
    Changed,
    /// It does not continue what stands before it: entries were taken out, put in or moved.
    Disconnected,
    /// It has no link: it is from before there was a chain, or from another hand.
    Unlinked,
    /// It is no entry.
    Unreadable,
    /// It is not the entry that the anchor was taken of.
    NotTheAnchor,
    /// The anchor's entry is not there.
    AnchorMissing,
    /// Later entries were written and are not there.
    EndMissing,
    /// It is the first one left, and not the one that follows those whose going the journal tells of.
    FrontMissing,
}

impl Flaw {
    /// What a person reads.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Changed => "is not as it was written",
            Self::Disconnected => "does not continue the entry before it: something was taken out, put in or moved",
            Self::Unlinked => "has no link: nothing vouches for it",
            Self::Unreadable => "cannot be read",
            Self::NotTheAnchor => "has another tag than the one it is held against",
            Self::AnchorMissing => "is not there, and a tag was given for it",
            Self::EndMissing => "is the last one there, and the node has written more",
            Self::FrontMissing => "is the first one left, and more are gone than the journal says went",
        }
    }
}

/// One place where the chain does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    /// The entry; for one that cannot be read, the last before it.
    pub seq: u64,
    /// What is wrong there.
    pub flaw: Flaw,
}

/// What a walk along the chain found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Entries whose links were checked.
    pub linked: u64,
    /// Entries without a link: nothing vouches for them. Each is a break.
    pub unlinked: u64,
    /// The oldest entry that is there.
    pub first: Option<u64>,
    /// True if the oldest is not the first ever written: older ones went by retention, or were taken away.
    pub starts_late: bool,
    /// True if the journal itself tells of the going of exactly those that are gone.
    #[serde(default)]
    pub front_is_told: bool,
    /// Numbers that no entry has: the disk could not take them (the journal says so itself), or the node ended first.
    pub numbers_missing: u64,
    /// The newest entry and its tag: keep it elsewhere, and a later walk can be held against it.
    pub head: Option<Anchor>,
    /// True if the anchor's entry is older than all that are left: it could not be compared.
    pub anchor_too_old: bool,
    /// Places where the chain does not hold, the first [`BREAKS_MAX`].
    pub breaks: Vec<Break>,
    /// All such places.
    pub breaks_total: u64,
}

impl Verified {
    /// True if nothing speaks against it.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.breaks_total == 0
    }
}

/// What whoever keeps the log knows of its ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    /// The tag of the last entry written; zero if none was.
    pub last: Tag,
    /// True if nothing was ever thrown away at the front.
    pub is_front_there: bool,
}

/// Walks along the chain, one entry after the other, the oldest first.
#[derive(Debug)]
pub struct Verifier {
    key: ChainKey,
    anchor: Option<Anchor>,
    is_anchor_found: bool,
    last: u64,
    /// The tag before the first entry left.
    front: Tag,
    tells_of_trims: bool,
    found: Verified,
}

impl Verifier {
    /// At the beginning. An anchor is held against the entry with its number.
    #[must_use]
    pub fn new(key: ChainKey, anchor: Option<Anchor>) -> Self {
        let found = Verified::default();
        Self { key, anchor, is_anchor_found: false, last: 0, front: Tag::default(), tells_of_trims: false, found }
    }

    /// Takes in the next entry, as it stands in the log.
    pub fn take(&mut self, bytes: &[u8]) {
        let read = Linked::read(bytes).and_then(|linked| Entry::decode(linked.entry).map(|entry| (linked, entry)));
        let Ok((linked, entry)) = read else { return self.flaw(self.last, Flaw::Unreadable) };
        let seq = entry.seq.0;
        match self.found.first {
            None => self.found.first = Some(seq),
            Some(_) => {
                let missing = seq.saturating_sub(self.last.saturating_add(1));
                self.found.numbers_missing = self.found.numbers_missing.saturating_add(missing);
            }
        }
        self.last = seq;
        match linked.link {
            None => self.unlinked(seq),
            Some((before, tag)) => self.linked(Anchor { seq, tag }, before, linked.entry),
        }
        if entry.kind == Kind::JournalTrimmed {
            self.tells_of_trims = true;
            let is_of_front = entry.fields.get("tag").is_some_and(|tag| *tag == self.front.to_string());
            self.found.front_is_told |= self.found.starts_late && is_of_front;
        }
    }

    /// At the end.
    #[must_use]
    pub fn finish(mut self, ends: Ends) -> Verified {
        let first = self.found.first.unwrap_or(0);
        if ends.is_front_there && self.found.starts_late {
            self.flaw(first, Flaw::Disconnected);
        }
        // Journals from before retention was told have no such entry: nothing vouches for their front.
        if self.found.starts_late && self.tells_of_trims && !self.found.front_is_told {
            self.flaw(first, Flaw::FrontMissing);
        }
        if ends.last != Tag::default() && self.found.head.is_none_or(|head| head.tag != ends.last) {
            self.flaw(self.last, Flaw::EndMissing);
        }
        if let Some(anchor) = self.anchor.filter(|_| !self.is_anchor_found) {
            self.found.anchor_too_old = self.found.starts_late && anchor.seq < first;
            if !self.found.anchor_too_old {
                self.flaw(anchor.seq, Flaw::AnchorMissing);
            }
        }
        self.found
    }

    fn unlinked(&mut self, seq: u64) {
        self.found.unlinked += 1;
        self.found.starts_late |= self.found.first == Some(seq) && seq > 1;
        self.flaw(seq, Flaw::Unlinked);
    }

    fn linked(&mut self, here: Anchor, before: Tag, entry: &[u8]) {
        if self.key.tag(before, entry) != here.tag {
            self.flaw(here.seq, Flaw::Changed);
        }
        match self.found.head {
            Some(head) if head.tag != before => self.flaw(here.seq, Flaw::Disconnected),
            // The first link there is: of the first entry ever, of one whose elders went, or of one that follows
            // entries from before there was a chain.
            None if before != Tag::default() && self.found.unlinked > 0 => self.flaw(here.seq, Flaw::Disconnected),
            None => {
                self.found.starts_late |= before != Tag::default();
                self.front = before;
            }
            Some(_) => {}
        }
        if let Some(anchor) = self.anchor.filter(|anchor| anchor.seq == here.seq) {
            self.is_anchor_found = true;
            if anchor.tag != here.tag {
                self.flaw(here.seq, Flaw::NotTheAnchor);
            }
        }
        self.found.linked += 1;
        self.found.head = Some(here);
    }

    fn flaw(&mut self, seq: u64, flaw: Flaw) {
        self.found.breaks_total += 1;
        if self.found.breaks.len() < BREAKS_MAX {
            self.found.breaks.push(Break { seq, flaw });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::journal::{Draft, Seq};
    use crate::time::Wall;

    fn key() -> ChainKey {
        ChainKey::new(&[7; 32])
    }

    fn entry(seq: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let draft = Draft::new(Kind::RecordParked, "spool").with("record", seq);
        draft.numbered(Seq(seq), Wall::from_millis(seq)).encode(&mut bytes);
        bytes
    }

    fn chain(seqs: impl IntoIterator<Item = u64>) -> Vec<Vec<u8>> {
        let mut last = Tag::default();
        let link = |seq| {
            let mut out = Vec::new();
            last = key().link(last, &entry(seq), &mut out);
            out
        };
        seqs.into_iter().map(link).collect()
    }

    fn verify(log: &[Vec<u8>], anchor: Option<Anchor>) -> Verified {
        let mut verifier = Verifier::new(key(), anchor);
        log.iter().for_each(|bytes| verifier.take(bytes));
        verifier.finish(Ends::default())
    }

    fn flaws(log: &[Vec<u8>]) -> Vec<(u64, Flaw)> {
        verify(log, None).breaks.iter().map(|it| (it.seq, it.flaw)).collect()
    }

    #[test]
    fn a_chain_holds_from_its_first_entry_or_from_the_first_that_is_left() {
        let log = chain(1..=5);
        let all = verify(&log, None);
        assert!(all.holds() && !all.starts_late);
        assert_eq!((all.linked, all.first, all.head.map(|head| head.seq)), (5, Some(1), Some(5)));
        let rest = verify(&log[2..], None);
        assert!(rest.holds() && rest.starts_late);
        assert_eq!((rest.linked, rest.first), (3, Some(3)));
        assert_eq!(verify(&chain([1, 2, 6]), None).numbers_missing, 3, "what was dropped is no break, and is told");
        assert_eq!(verify(&[], None), Verified::default());
        let wild = [1, u64::MAX, 1, u64::MAX].map(entry);
        assert_eq!(verify(&wild, None).numbers_missing, u64::MAX, "found by fuzzing: numbers beyond all counting");
    }

    #[test]
    fn what_went_by_retention_is_vouched_for_by_what_the_journal_says_of_it() {
        let mut log = chain(1..=5);
        let link = |log: &mut Vec<Vec<u8>>, seq, gone: &Anchor| {
            let last = verify(log, None).head.unwrap().tag;
            let draft = Draft::new(Kind::JournalTrimmed, "journal").with("through", gone.seq).with("tag", gone.tag);
            let (mut plain, mut bytes) = (Vec::new(), Vec::new());
            draft.numbered(Seq(seq), Wall::default()).encode(&mut plain);
            key().link(last, &plain, &mut bytes);
            log.push(bytes);
        };
        let second = verify(&log[..2], None).head.unwrap();
        link(&mut log, 6, &second);
        let kept = verify(&log[2..], None);
        assert!(kept.holds() && kept.starts_late && kept.front_is_told);
        assert!(!verify(&log, None).front_is_told && verify(&log, None).holds(), "told, and not done yet");
        assert_eq!(flaws(&log[3..]), [(4, Flaw::FrontMissing)], "one more is gone than was said");
        assert!(verify(&chain(1..=5)[2..], None).holds(), "from before it was told: nothing vouches, nothing accuses");
    }

    #[test]
    fn what_is_taken_out_put_in_moved_or_changed_is_found() {
        let log = chain(1..=5);
        assert_eq!(flaws(&[&log[..2], &log[3..]].concat()), [(4, Flaw::Disconnected)]);
        assert_eq!(
            flaws(&[&log[..2], &[entry(3)][..], &log[3..]].concat()),
            [(3, Flaw::Unlinked), (4, Flaw::Disconnected)]
        );
        let mut swapped = log.clone();
        swapped.swap(1, 2);
        assert_eq!(flaws(&swapped).len(), 3);
        let mut last = log.clone();
        *last[4].last_mut().unwrap() ^= 1;
        assert_eq!(flaws(&last), [(5, Flaw::Changed)], "the last one too: its tag cannot be made without the key");
        assert_eq!(flaws(&[log[0].clone(), vec![LINKED; 9], log[1].clone()]), [(1, Flaw::Unreadable)]);
        let strangers = Verifier::new(ChainKey::new(&[8; 32]), None);
        let found = log.iter().fold(strangers, |mut verifier, bytes| {
            verifier.take(bytes);
            verifier
        });
        assert_eq!(found.finish(Ends::default()).breaks_total, 5, "another key");
    }

    #[test]
    fn entries_from_before_the_chain_are_told_apart() {
        let old = [entry(1), entry(2)];
        let mixed = [&old[..], &chain(3..=4)].concat();
        let found = verify(&mixed, None);
        assert_eq!((found.unlinked, found.linked), (2, 2));
        let unlinked = [(1, Flaw::Unlinked), (2, Flaw::Unlinked)];
        assert_eq!(flaws(&mixed), unlinked, "anybody could have written them");
        let cut = flaws(&[&old[..], &chain(3..=6)[1..]].concat());
        assert_eq!(cut, [&unlinked[..], &[(4, Flaw::Disconnected)]].concat());
        assert!(verify(&old[1..], None).starts_late);
    }

    #[test]
    fn an_anchor_shows_what_is_missing_at_the_end() {
        let log = chain(1..=5);
        let head = verify(&log, None).head.unwrap();
        assert!(verify(&log, Some(head)).holds());
        let flaw = |log: &[Vec<u8>], anchor| verify(log, Some(anchor)).breaks.first().map(|it| it.flaw);
        assert_eq!(flaw(&log[..4], head), Some(Flaw::AnchorMissing));
        assert_eq!(flaw(&log, Anchor { seq: 4, ..head }), Some(Flaw::NotTheAnchor));
        assert_eq!(head.to_string().parse(), Ok(head));
        assert!(serde_json::to_string(&head).unwrap().contains(&head.tag.to_string()));
        let (early, rest) = (Anchor { seq: 1, ..head }, verify(&log[2..], Some(Anchor { seq: 1, ..head })));
        assert!(rest.holds() && rest.anchor_too_old, "retention is no break");
        assert!(!verify(&log, Some(early)).anchor_too_old);
        let digits = "é".repeat(32);
        for wrong in
            ["", "5", "5:", "x:00", &format!("5:{digits}"), &format!("-1:{}", head.tag), &head.to_string()[..20]]
        {
            assert_eq!(wrong.parse::<Anchor>(), Err(AnchorError), "{wrong}");
        }
        assert!(AnchorError.to_string().contains("64 hexadecimal"));
        assert_eq!(format!("{:?}", key()), "ChainKey(..)");
    }

    #[test]
    fn who_keeps_the_log_knows_its_ends() {
        let log = chain(1..=5);
        let last = verify(&log, None).head.unwrap().tag;
        let flaws = |log: &[Vec<u8>], ends| {
            let mut verifier = Verifier::new(key(), None);
            log.iter().for_each(|bytes| verifier.take(bytes));
            verifier.finish(ends).breaks.iter().map(|it| (it.seq, it.flaw)).collect::<Vec<_>>()
        };
        let all = Ends { last, is_front_there: true };
        assert_eq!(flaws(&log, all), []);
        assert_eq!(flaws(&log[..3], all), [(3, Flaw::EndMissing)]);
        assert_eq!(flaws(&log[1..], all), [(2, Flaw::Disconnected)]);
        assert_eq!(flaws(&[], all), [(0, Flaw::EndMissing)]);
        assert_eq!(flaws(&log[1..], Ends { is_front_there: false, ..all }), []);
    }

    #[test]
    fn every_flaw_says_what_it_is_and_many_are_counted() {
        use Flaw::{AnchorMissing, Changed, Disconnected, EndMissing, NotTheAnchor, Unlinked, Unreadable};
        let all = [Changed, Disconnected, Unlinked, Unreadable, NotTheAnchor, AnchorMissing, EndMissing];
        let texts: std::collections::BTreeSet<_> = all.into_iter().map(Flaw::description).collect();
        assert_eq!(texts.len(), all.len());
        let found = verify(&vec![vec![0]; BREAKS_MAX + 5], None);
        assert_eq!((found.breaks.len(), found.breaks_total), (BREAKS_MAX, BREAKS_MAX as u64 + 5));
    }

    proptest! {
        #[test]
        fn no_flipped_bit_goes_unseen(at: prop::sample::Index, bit in 0..8_u32, which in 0..6_usize) {
            let mut log = chain(1..=6);
            let at = at.index(log[which].len());
            log[which][at] ^= 1 << bit;
            prop_assert!(!verify(&log, None).holds(), "byte {} of entry {}", at, which + 1);
        }

        #[test]
        fn no_bytes_panic(log in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..5)) {
            let _ = verify(&log, None);
        }
    }
}
