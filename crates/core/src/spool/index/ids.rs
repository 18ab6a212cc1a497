//! A set of record numbers in order: numbers given out one after the other take half a byte each.

use std::collections::BTreeMap;

use crate::id::RecordId;

/// 64 numbers a word, words by their place.
#[derive(Debug)]
pub(super) struct IdSet(BTreeMap<u64, u64>);

impl IdSet {
    pub(super) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(super) fn insert(&mut self, id: RecordId) {
        *self.0.entry(id.0 / 64).or_default() |= 1 << (id.0 % 64);
    }

    pub(super) fn remove(&mut self, id: RecordId) {
        let Some(word) = self.0.get_mut(&(id.0 / 64)) else { return };
        *word &= !(1 << (id.0 % 64));
        if *word == 0 {
            self.0.remove(&(id.0 / 64));
        }
    }

    pub(super) fn first(&self) -> Option<RecordId> {
        let (place, word) = self.0.first_key_value()?;
        Some(RecordId(place * 64 + u64::from(word.trailing_zeros())))
    }

    /// Those above a number, in order.
    pub(super) fn above(&self, id: RecordId) -> impl Iterator<Item = RecordId> {
        let words = self.0.range(id.0 / 64..).flat_map(|(place, word)| {
            let numbers = (0..64_u64).filter(move |bit| word & (1 << bit) != 0);
            numbers.map(move |bit| RecordId(place * 64 + bit))
        });
        words.skip_while(move |other| *other <= id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::Bound;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(ops in vec((any::<bool>(), 0..400_u64, any::<bool>()), 0..300)) {
            let (mut set, mut model) = (IdSet::new(), BTreeSet::new());
            for (is_insert, number, is_high) in ops {
                let id = RecordId(if is_high { u64::MAX - number } else { number });
                if is_insert {
                    set.insert(id);
                    model.insert(id);
                } else {
                    set.remove(id);
                    model.remove(&id);
                }
                prop_assert_eq!(set.first(), model.first().copied());
            }
            for above in [0, 63, 200, u64::MAX - 100].map(RecordId) {
                let expected = model.range((Bound::Excluded(above), Bound::Unbounded)).copied();
                prop_assert!(set.above(above).eq(expected));
            }
        }
    }
}
