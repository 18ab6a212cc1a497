//! A hash table of numbers: four bytes a number, and whoever asks compares what the number stands for.
//!
//! It is cut into shards, so that no single insert waits for more than one of them to be rebuilt: with ten million
//! numbers that is forty thousand of them, a millisecond or so, where one table would stand still for a second.

use hashbrown::HashTable;

const SHARDS: usize = 256;
/// A shard is made smaller when it is less than one eighth full, and never below this.
const CAPACITY_MIN: usize = 64;

#[derive(Debug)]
pub(super) struct Table(Vec<HashTable<u32>>);

impl Table {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| HashTable::new()).collect())
    }

    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.0[shard(hash)].find(hash, |&number| is_it(number)).copied()
    }

    /// Adds a number that is not there. `hash_of` gives the hash of any number that is.
    pub(super) fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        self.0[shard(hash)].insert_unique(hash, number, |&number| hash_of(number));
    }

    /// Puts a number in the place of another with the same hash; false if the other is not there.
    pub(super) fn replace(&mut self, hash: u64, from: u32, to: u32) -> bool {
        let found = self.0[shard(hash)].find_mut(hash, |&number| number == from);
        found.map(|number| *number = to).is_some()
    }

    /// Takes a number out; false if it is not there. `hash_of` gives the hash of any number that stays.
    pub(super) fn remove(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) -> bool {
        let shard = &mut self.0[shard(hash)];
        let Ok(found) = shard.find_entry(hash, |&other| other == number) else { return false };
        found.remove();
        if shard.capacity() > CAPACITY_MIN && shard.len() < shard.capacity() / 8 {
            shard.shrink_to(shard.len() * 2, |&number| hash_of(number));
        }
        true
    }

    /// All numbers, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flat_map(|shard| shard.iter().copied())
    }
}

/// Bits that neither choose the bucket (the lowest) nor its tag (the highest).
const fn shard(hash: u64) -> usize {
    (hash >> 40) as usize % SHARDS
}

/// Spreads 128 bits over 64 by a folded multiplication. Who does not know the seed cannot choose keys that meet.
pub(super) const fn fold(low: u64, high: u64, seed: u64) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 / golden ratio
    let product = (low ^ seed) as u128 * (high ^ ODD) as u128;
    (product as u64 ^ (product >> 64) as u64).wrapping_mul(ODD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u32) -> u64 {
        fold(number.into(), 0, 7)
    }

    #[test]
    fn numbers_are_found_replaced_and_removed_and_memory_follows() {
        let mut table = Table::new();
        for number in 0..200_000 {
            table.insert(hash(number), number, hash);
        }
        assert_eq!(table.iter().count(), 200_000);
        let full: usize = table.0.iter().map(HashTable::capacity).sum();
        assert!(full < 400_000, "hashes that cluster: {full}");
        assert_eq!(table.find(hash(77), |number| number == 77), Some(77));
        assert!(table.replace(hash(77), 77, 300_000) && !table.replace(hash(77), 77, 1));
        assert_eq!(table.find(hash(77), |number| number == 300_000), Some(300_000));
        assert!(table.remove(hash(77), 300_000, hash) && !table.remove(hash(77), 300_000, hash));
        for number in (0..200_000).filter(|&number| number != 77) {
            assert!(table.remove(hash(number), number, hash), "{number}");
        }
        let empty: usize = table.0.iter().map(HashTable::capacity).sum();
        assert!(empty < full / 8 && table.iter().next().is_none(), "{empty}");
    }
}
