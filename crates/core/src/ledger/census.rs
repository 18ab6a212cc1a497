//! A census of keys: what a sink that cannot report holds is compared with what was accepted, without a list of either.
//!
//! Picture two towns that compare their registers by telephone. First they compare one number that all names go into
//! ([`Bag`]); if it differs, a small table of sums ([`Sketch`]) of one town less that of the other leaves just the
//! names that one of them lacks. Both can be added up over any period, in any order, and cost the same for ten names or
//! ten million.
//!
//! - [`Bag`]: count and sum of 256-bit hashes, modulo 2^256 (MSet-Add-Hash, Clarke et al. 2003). Equal bags are equal
//!   multisets, but for one chance in 2^256; a record lost and another doubled do not cancel.
//! - [`Sketch`]: an invertible Bloom lookup table (Goodrich and Mitzenmacher 2011) with sums instead of exclusive or,
//!   which would hide every second copy. 128 cells in four tables name up to 64 differences in 99.5 of 100 cases, and
//!   32 practically always; beyond that the period has to be made shorter.
//!
//! Keys are hashed with a salt that is no secret of the ledger's but unknown to those who choose keys: nobody can make
//! keys that fall into the same cells.
//! Not here: which record of ours is which (`account`), and what arrived elsewhere (`receipt`).

use serde::{Deserialize, Serialize};

/// Tables of a sketch; every key is in one cell of each.
const TABLES: usize = 4;
const CELLS_OF_TABLE: usize = 32;
/// Cells of a [`Sketch`].
pub const CELLS: usize = TABLES * CELLS_OF_TABLE;
/// Identities have so many bits: sums of two billion of them stay within an `i128`.
const ID_BITS: u32 = 96;

/// What keys are hashed with: derived from the directory's secret, told to whoever may ask the admin API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt(pub [u8; 32]);

impl Salt {
    /// Of a directory's secret, which it does not give away.
    #[must_use]
    pub fn of_secret(secret: &[u8; 32]) -> Self {
        Self(blake3::derive_key("seawall 2026 ledger census", secret))
    }
}

/// A key, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member([u8; 32]);

impl Member {
    /// Of an idempotency key, without the quotes it may have on the wire.
    #[must_use]
    pub fn of(salt: &Salt, key: &str) -> Self {
        Self(*blake3::keyed_hash(&salt.0, bare(key).as_bytes()).as_bytes())
    }

    /// Its identity in a sketch.
    #[must_use]
    pub fn id(&self) -> MemberId {
        let mut bytes = [0; 16];
        bytes[..12].copy_from_slice(&self.0[..12]);
        MemberId(u128::from_le_bytes(bytes))
    }
}

fn bare(key: &str) -> &str {
    let key = key.trim();
    key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key)
}

/// 96 bits of a member's hash: two of ten million keys meet with a probability of 10^-15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(u128);

impl MemberId {
    /// Another 64 bits that follow from it: what a sum of several identities does not have.
    const fn check(self) -> i128 {
        let (low, high) = (self.0 as u64, (self.0 >> 64) as u64);
        let mixed = (low ^ 0xa076_1d64_78bd_642f) as u128 * (high ^ 0xe703_7ed1_a0b4_28db) as u128;
        let folded = mixed as u64 ^ (mixed >> 64) as u64;
        (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (low >> 7)) as i128
    }

    fn cells(self) -> [usize; TABLES] {
        std::array::from_fn(|table| table * CELLS_OF_TABLE + (self.0 >> (5 * table)) as usize % CELLS_OF_TABLE)
    }
}

impl std::fmt::Display for MemberId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:024x}", self.0)
    }
}

/// A multiset of keys as one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bag {
    /// How many.
    pub count: u64,
    /// Of their hashes, modulo 2^256, the lowest word first.
    pub sum: [u64; 4],
}

impl Bag {
    fn add(&mut self, other: &Self) {
        self.count = self.count.wrapping_add(other.count);
        let mut carry = 0;
        for (word, more) in self.sum.iter_mut().zip(other.sum) {
            let total = u128::from(*word) + u128::from(more) + carry;
            (*word, carry) = (total as u64, total >> 64);
        }
    }
}

/// One cell: how many members, and sums of their identities and checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Members less members taken away.
    pub count: i64,
    /// Of their identities. A text in JSON, whose numbers end long before.
    #[serde(with = "decimal")]
    pub ids: i128,
    /// Of what follows from their identities.
    #[serde(with = "decimal")]
    pub checks: i128,
}

mod decimal {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(number: &i128, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<i128, D::Error> {
        String::deserialize(from)?.parse().map_err(|_| D::Error::custom("expected a whole number as a text"))
    }
}

impl Cell {
    fn add(&mut self, times: i64, other: &Self) {
        self.count = self.count.wrapping_add(other.count.wrapping_mul(times));
        self.ids = self.ids.wrapping_add(other.ids.wrapping_mul(times.into()));
        self.checks = self.checks.wrapping_add(other.checks.wrapping_mul(times.into()));
    }

    fn of(id: MemberId) -> Self {
        Self { count: 1, ids: id.0 as i128, checks: id.check() }
    }

    /// The one member that is in it, any number of times over; `None` if there are several, or none.
    fn only(&self) -> Option<MemberId> {
        let count = i128::from(self.count);
        if count == 0 || self.ids.checked_rem(count)? != 0 {
            return None;
        }
        let id = u128::try_from(self.ids / count).ok().filter(|id| id >> ID_BITS == 0).map(MemberId)?;
        (id.check().checked_mul(count) == Some(self.checks)).then_some(id)
    }
}

/// A multiset of keys in 128 cells, that can be compared with another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(usize, Cell)>", into = "Vec<(usize, Cell)>")]
pub struct Sketch(Box<[Cell; CELLS]>);

impl Default for Sketch {
    fn default() -> Self {
        Self(Box::new([Cell::default(); CELLS]))
    }
}

impl From<Sketch> for Vec<(usize, Cell)> {
    fn from(sketch: Sketch) -> Self {
        sketch.used().collect()
    }
}

/// Cells that are no sketch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sketch has {CELLS} cells, each named once, in order, and none that is empty")]
pub struct NoSketch;

impl TryFrom<Vec<(usize, Cell)>> for Sketch {
    type Error = NoSketch;

    fn try_from(cells: Vec<(usize, Cell)>) -> Result<Self, NoSketch> {
        let mut sketch = Self::default();
        let mut next = 0;
        for (at, cell) in cells {
            if at < next || at >= CELLS || cell == Cell::default() {
                return Err(NoSketch);
            }
            sketch.0[at] = cell;
            next = at + 1;
        }
        Ok(sketch)
    }
}

impl Sketch {
    /// The cells that are not empty, by their places.
    pub fn used(&self) -> impl Iterator<Item = (usize, Cell)> {
        self.0.iter().copied().enumerate().filter(|(_, cell)| *cell != Cell::default())
    }

    fn put(&mut self, times: i64, id: MemberId) {
        let one = Cell::of(id);
        id.cells().into_iter().for_each(|at| self.0[at].add(times, &one));
    }
}

/// What differs between two multisets of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Each key that differs, and by how many: more in the first if positive, in the second if negative.
    pub named: Vec<(MemberId, i64)>,
    /// False if there are too many to name: what is named is right, but it is not all.
    pub is_complete: bool,
}

/// Keys counted both ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// To tell whether anything differs.
    pub bag: Bag,
    /// To tell what.
    pub sketch: Sketch,
}

impl Census {
    /// Counts a key.
    pub fn count(&mut self, member: &Member) {
        let sum = std::array::from_fn(|word| u64::from_le_bytes(std::array::from_fn(|byte| member.0[word * 8 + byte])));
        self.bag.add(&Bag { count: 1, sum });
        self.sketch.put(1, member.id());
    }

    /// Adds those of another place or time.
    pub fn add(&mut self, other: &Self) {
        self.bag.add(&other.bag);
        self.sketch.0.iter_mut().zip(other.sketch.0.iter()).for_each(|(cell, more)| cell.add(1, more));
    }

    /// What this has more, or less, than another. Nothing at all only if the bags are equal.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Differences {
        let mut left = self.sketch.clone();
        left.0.iter_mut().zip(other.sketch.0.iter()).for_each(|(cell, less)| cell.add(-1, less));
        let mut named = Vec::new();
        // Every name taken out empties a cell; a sketch that was made up may never end otherwise.
        for _ in 0..CELLS {
            let found = left.0.iter().find_map(|cell| cell.only().map(|id| (id, cell.count)));
            let Some((id, times)) = found else { break };
            left.put(-times, id);
            named.push((id, times));
        }
        named.sort_unstable();
        let is_complete = left.used().next().is_none() && (!named.is_empty() || self.bag == other.bag);
        Differences { named, is_complete }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::prng::Prng;

    const SALT: Salt = Salt([7; 32]);

    fn member(key: u64) -> Member {
        Member::of(&SALT, &format!("key {key}"))
    }

    fn census(keys: impl IntoIterator<Item = u64>) -> Census {
        let mut census = Census::default();
        keys.into_iter().for_each(|key| census.count(&member(key)));
        census
    }

    #[test]
    fn quotes_are_not_part_of_a_key() {
        assert_eq!(Member::of(&SALT, "\"a\""), Member::of(&SALT, " a "));
        assert_ne!(Member::of(&SALT, "\"a"), Member::of(&SALT, "a"));
        assert_ne!(Member::of(&Salt::of_secret(&[1; 32]), "a"), Member::of(&Salt::of_secret(&[2; 32]), "a"));
        assert_eq!(member(1).id().to_string().len(), 24);
    }

    #[test]
    fn one_lost_and_one_doubled_do_not_cancel() {
        let (all, wrong) = (census(0..1000), census((1..1000).chain([500])));
        assert_eq!(all.bag.count, wrong.bag.count);
        assert_ne!(all.bag, wrong.bag);
        let mut wanted = vec![(member(0).id(), 1), (member(500).id(), -1)];
        wanted.sort_unstable();
        assert_eq!(all.differences(&wrong), Differences { named: wanted, is_complete: true });
        assert_eq!(all.differences(&census((0..1000).rev())), Differences { named: vec![], is_complete: true });
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let mut sum = census(0..400);
        sum.add(&census(400..1000));
        assert_eq!(sum, census((0..1000).rev()));
        let text = serde_json::to_string(&sum).unwrap();
        assert_eq!(serde_json::from_str::<Census>(&text).unwrap(), sum);
        let few = serde_json::to_string(&census([1])).unwrap();
        assert!(few.len() < 600, "empty cells are not written: {few}");
    }

    /// Drops, duplicates and strangers, planted with a seed: named exactly, or said to be too many.
    #[test]
    fn what_is_named_is_what_was_planted() {
        let (accepted, mut incomplete) = (census(0..300), 0);
        for seed in 0..1500 {
            let mut prng = Prng::new(seed);
            let mut sink: BTreeMap<u64, i64> = (0..300).map(|key| (key, 1)).collect();
            for _ in 0..prng.below(33) {
                // From 300 on they are strangers.
                *sink.entry(prng.below(350)).or_default() = prng.below(4) as i64;
            }
            let keys = sink.iter().flat_map(|(&key, &times)| (0..times).map(move |_| key));
            let found = accepted.differences(&census(keys));
            let expected = |key: u64| i64::from(key < 300);
            let planted = sink.iter().map(|(&key, times)| (member(key).id(), expected(key) - times));
            let mut planted: Vec<(MemberId, i64)> = planted.filter(|(_, times)| *times != 0).collect();
            planted.sort_unstable();
            if found.is_complete {
                assert_eq!(found.named, planted, "seed {seed}");
            } else {
                incomplete += 1;
                assert!(found.named.iter().all(|one| planted.contains(one)), "seed {seed}");
            }
        }
        assert!(incomplete <= 3, "{incomplete} of 1500 with at most 32 differences were not named");
    }

    #[test]
    fn too_many_differences_are_said_to_be_too_many() {
        let found = census(0..3000).differences(&census(1000..3000));
        assert!(!found.is_complete);
    }

    proptest! {
        #[test]
        fn made_up_cells_end_and_never_panic(
            cells in vec((0..CELLS, any::<i64>(), any::<i128>(), any::<i128>()), 0..40),
        ) {
            let mut cells: Vec<(usize, Cell)> =
                cells.into_iter().map(|(at, count, ids, checks)| (at, Cell { count, ids, checks })).collect();
            cells.sort_by_key(|(at, _)| *at);
            cells.dedup_by_key(|(at, _)| *at);
            if let Ok(sketch) = Sketch::try_from(cells) {
                let census = Census { bag: Bag::default(), sketch };
                let _ = census.differences(&Census::default());
                let _ = Census::default().differences(&census);
            }
        }
    }
}
