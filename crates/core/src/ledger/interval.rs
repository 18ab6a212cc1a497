//! Sets of numbers that come mostly in a row: what was accepted, what arrived, what still waits.
//!
//! Picture a ruler with coloured stretches. A million records that arrived without a gap are one stretch; memory grows
//! with the gaps, not with the records. One run lies in the set itself; with more, each costs 16 bytes of numbers and
//! about 24 to 40 in the tree that holds it. Invariants: runs are sorted, do not overlap and never touch (`1-3, 4-6` is
//! written `1-6`).
//! [`sweep`] walks several rulers side by side and says, stretch by stretch, which colours lie above each other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A set of `u64`, kept as runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct IntervalSet {
    runs: Runs,
}

/// First number of a run to its last. Most sets have one run, and a tree takes two hundred bytes for its first.
#[derive(Clone, Debug)]
enum Runs {
    One(Option<(u64, u64)>),
    Many(BTreeMap<u64, u64>),
}

impl Default for Runs {
    fn default() -> Self {
        Self::One(None)
    }
}

impl PartialEq for Runs {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Runs {}

impl Runs {
    fn iter(&self) -> impl Iterator<Item = (u64, u64)> + Clone + '_ {
        let (one, many) = match self {
            Self::One(one) => (*one, None),
            Self::Many(many) => (None, Some(many)),
        };
        one.into_iter().chain(many.into_iter().flatten().map(|(&first, &last)| (first, last)))
    }

    fn len(&self) -> usize {
        match self {
            Self::One(one) => usize::from(one.is_some()),
            Self::Many(many) => many.len(),
        }
    }

    fn last(&self) -> Option<(u64, u64)> {
        match self {
            Self::One(one) => *one,
            Self::Many(many) => many.last_key_value().map(|(&first, &last)| (first, last)),
        }
    }

    /// The run that begins at a number or before it.
    fn at_or_before(&self, number: u64) -> Option<(u64, u64)> {
        match self {
            Self::One(one) => one.filter(|(first, _)| *first <= number),
            Self::Many(many) => many.range(..=number).next_back().map(|(&first, &last)| (first, last)),
        }
    }

    /// Puts a run in, in place of one that begins at the same number.
    fn insert(&mut self, first: u64, last: u64) {
        match self {
            Self::One(one) if one.is_none_or(|(there, _)| there == first) => *one = Some((first, last)),
            Self::One(one) => *self = Self::Many(one.iter().copied().chain([(first, last)]).collect()),
            Self::Many(many) => _ = many.insert(first, last),
        }
    }

    /// Takes out the run that begins at a number; where it ends.
    fn remove(&mut self, first: u64) -> Option<u64> {
        match self {
            Self::One(one) => one.take_if(|(there, _)| *there == first).map(|(_, last)| last),
            Self::Many(many) => {
                let last = many.remove(&first);
                if many.len() <= 1 {
                    *self = Self::One(many.pop_first());
                }
                last
            }
        }
    }
}

/// Runs that are not sorted, overlap, touch or end before they begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("run {first}-{last} is out of order, overlaps or touches the one before it")]
pub struct DisorderedRuns {
    /// The first number of the offending run.
    pub first: u64,
    /// Its last number.
    pub last: u64,
}

impl IntervalSet {
    /// A set without numbers.
    #[must_use]
    pub const fn new() -> Self {
        Self { runs: Runs::One(None) }
    }

    /// The numbers `1..=last`; none for 0.
    #[must_use]
    pub fn up_to(last: u64) -> Self {
        let mut set = Self::new();
        set.insert_range(1, last);
        set
    }

    /// Adds a number. True when it was not there before. O(log runs).
    pub fn insert(&mut self, number: u64) -> bool {
        let before = self.run_at_or_before(number);
        if before.is_some_and(|(_, last)| last >= number) {
            return false;
        }
        let after = number.checked_add(1).and_then(|next| self.runs.remove(next));
        let last = after.unwrap_or(number);
        let first = before.filter(|&(_, last)| last + 1 == number).map_or(number, |(first, _)| first);
        self.runs.insert(first, last);
        true
    }

    /// Adds every number of `first..=last`; none if `last` is before `first`. How many were not there before.
    /// O(log runs) for each run it swallows.
    pub fn insert_range(&mut self, first: u64, last: u64) -> u64 {
        if last < first {
            return 0;
        }
        let (mut low, mut high) = (first, last);
        let mut swallowed = 0_u128;
        while let Some((run_first, run_last)) = self.run_at_or_before(last.saturating_add(1)) {
            if run_last.saturating_add(1) < first {
                break;
            }
            self.runs.remove(run_first);
            swallowed += width(run_first, run_last);
            (low, high) = (low.min(run_first), high.max(run_last));
        }
        self.runs.insert(low, high);
        saturated(width(low, high) - swallowed)
    }

    /// Takes a number out. True when it was there. O(log runs).
    pub fn remove(&mut self, number: u64) -> bool {
        let Some((first, last)) = self.run_at_or_before(number).filter(|&(_, last)| last >= number) else {
            return false;
        };
        self.runs.remove(first);
        if first < number {
            self.runs.insert(first, number - 1);
        }
        if number < last {
            self.runs.insert(number + 1, last);
        }
        true
    }

    /// Whether the number is in the set. O(log runs).
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.run_at_or_before(number).is_some_and(|(_, last)| last >= number)
    }

    /// How many numbers it holds; the one set that holds every `u64` says `u64::MAX`. O(runs).
    #[must_use]
    pub fn len(&self) -> u64 {
        saturated(self.runs().map(|(first, last)| width(first, last)).sum())
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.len() == 0
    }

    /// How many runs it holds: the measure of its memory.
    #[must_use]
    pub fn runs_count(&self) -> usize {
        self.runs.len()
    }

    /// The greatest number.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.runs.last().map(|(_, last)| last)
    }

    /// The runs in order, both ends included.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter()
    }

    /// The stretches of `first..=last` that are missing, in order, both ends included.
    #[must_use]
    pub fn holes(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut within = Self::new();
        within.insert_range(first, last);
        let mut holes = Vec::new();
        sweep([&within, self], |mask, low, high| {
            if mask == 0b01 {
                holes.push((low, high));
            }
        });
        holes
    }

    /// How many numbers are in either set.
    #[must_use]
    pub fn union_count(&self, other: &Self) -> u64 {
        self.count_where(other, |mask| mask != 0)
    }

    /// How many numbers are in both sets.
    #[must_use]
    pub fn intersection_count(&self, other: &Self) -> u64 {
        self.count_where(other, |mask| mask == 0b11)
    }

    /// How many numbers are in this set and not in the other.
    #[must_use]
    pub fn difference_count(&self, other: &Self) -> u64 {
        self.count_where(other, |mask| mask == 0b01)
    }

    fn count_where(&self, other: &Self, wanted: impl Fn(u32) -> bool) -> u64 {
        let mut count = 0_u128;
        sweep([self, other], |mask, first, last| {
            if wanted(mask) {
                count += width(first, last);
            }
        });
        saturated(count)
    }

    fn run_at_or_before(&self, number: u64) -> Option<(u64, u64)> {
        self.runs.at_or_before(number)
    }
}

impl From<IntervalSet> for Vec<(u64, u64)> {
    fn from(set: IntervalSet) -> Self {
        set.runs().collect()
    }
}

impl TryFrom<Vec<(u64, u64)>> for IntervalSet {
    type Error = DisorderedRuns;

    fn try_from(runs: Vec<(u64, u64)>) -> Result<Self, DisorderedRuns> {
        let mut set = Self::new();
        for (first, last) in runs {
            let apart = set.last().is_none_or(|before| before.checked_add(1).is_some_and(|next| next < first));
            if last < first || !apart {
                return Err(DisorderedRuns { first, last });
            }
            set.runs.insert(first, last);
        }
        Ok(set)
    }
}

impl FromIterator<u64> for IntervalSet {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut set = Self::new();
        for number in numbers {
            set.insert(number);
        }
        set
    }
}

/// Walks the sets side by side, in order. `visit(mask, first, last)` is called for each stretch over which the same
/// sets hold the numbers; bit `i` of the mask stands for `sets[i]`. Stretches in no set are left out.
/// O(all runs * K), no allocation.
pub fn sweep<const K: usize>(sets: [&IntervalSet; K], mut visit: impl FnMut(u32, u64, u64)) {
    const { assert!(K <= 32, "a mask has 32 bits") };
    let mut runs = sets.map(IntervalSet::runs);
    let mut heads = runs.each_mut().map(Iterator::next);
    let mut at = 0;
    while let Some((mask, until)) = stretch(&heads, at) {
        if mask != 0 {
            visit(mask, at, until);
        }
        let Some(next) = until.checked_add(1) else { return };
        at = next;
        for (head, rest) in heads.iter_mut().zip(&mut runs) {
            if head.is_some_and(|(_, last)| last < at) {
                *head = rest.next();
            }
        }
    }
}

/// Which runs cover `at`, and the last number for which that stays so. `None` when no run is left.
fn stretch(heads: &[Option<(u64, u64)>], at: u64) -> Option<(u32, u64)> {
    let mut mask = 0;
    let mut until = None;
    for (bit, &(first, last)) in heads.iter().enumerate().filter_map(|(bit, head)| head.as_ref().map(|run| (bit, run)))
    {
        let end = if first <= at { last } else { first - 1 };
        until = Some(until.map_or(end, |until: u64| until.min(end)));
        mask |= u32::from(first <= at) << bit;
    }
    until.map(|until| (mask, until))
}

fn width(first: u64, last: u64) -> u128 {
    u128::from(last - first) + 1
}

fn saturated(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn set(numbers: &[u64]) -> IntervalSet {
        numbers.iter().copied().collect()
    }

    fn runs(set: &IntervalSet) -> Vec<(u64, u64)> {
        set.runs().collect()
    }

    #[test]
    fn neighbours_become_one_run() {
        let mut set = set(&[1, 3, 9]);
        assert_eq!(runs(&set), [(1, 1), (3, 3), (9, 9)]);
        assert!(set.insert(2));
        assert!(!set.insert(2));
        assert_eq!(runs(&set), [(1, 3), (9, 9)]);
        assert!(set.remove(2));
        assert!(!set.remove(2));
        assert_eq!(runs(&set), [(1, 1), (3, 3), (9, 9)]);
        assert_eq!((set.len(), set.runs_count(), set.last()), (3, 3, Some(9)));
        assert_eq!(set.holes(1, 12), [(2, 2), (4, 8), (10, 12)]);
        assert_eq!(set.holes(5, 4), []);
    }

    #[test]
    fn the_ends_of_the_ruler_are_numbers_too() {
        let mut set = set(&[0, u64::MAX]);
        assert_eq!(set.holes(0, u64::MAX), [(1, u64::MAX - 1)]);
        assert!(set.contains(u64::MAX));
        assert_eq!(set.insert_range(0, u64::MAX), u64::MAX - 1);
        assert_eq!(runs(&set), [(0, u64::MAX)]);
        assert_eq!(set.len(), u64::MAX);
        assert!(set.remove(u64::MAX));
        assert!(set.remove(0));
        assert_eq!(runs(&set), [(1, u64::MAX - 1)]);
        assert!(set.insert(u64::MAX));
        assert_eq!(set.insert_range(5, u64::MAX), 0);
        assert_eq!(runs(&set), [(1, u64::MAX)]);
    }

    #[test]
    fn up_to_counts_from_one() {
        assert!(IntervalSet::up_to(0).is_empty());
        assert_eq!(runs(&IntervalSet::up_to(7)), [(1, 7)]);
    }

    #[test]
    fn a_stored_set_is_checked_when_read() {
        let set = set(&[1, 2, 5]);
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(text, "[[1,2],[5,5]]");
        assert_eq!(serde_json::from_str::<IntervalSet>(&text).unwrap(), set);
        for bad in ["[[2,1]]", "[[1,2],[3,4]]", "[[1,4],[3,5]]", "[[5,6],[1,2]]", "[[0,18446744073709551615],[1,2]]"] {
            let error = serde_json::from_str::<IntervalSet>(bad).unwrap_err().to_string();
            assert!(error.contains("out of order, overlaps or touches"), "{bad}: {error}");
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64),
        Range(u64, u64),
        Remove(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        // A narrow ruler, so that runs meet; its upper end is the end of the numbers.
        let number = prop_oneof![0..80_u64, (u64::MAX - 40)..=u64::MAX];
        prop_oneof![
            4 => number.clone().prop_map(Op::Insert),
            1 => (0..80_u64, 0..12_u64).prop_map(|(first, more)| Op::Range(first, first + more)),
            1 => (0..40_u64, 0..12_u64).prop_map(|(a, b)| Op::Range(u64::MAX - a.max(b), u64::MAX - a.min(b))),
            2 => number.prop_map(Op::Remove),
        ]
    }

    fn play(ops: &[Op]) -> (IntervalSet, BTreeSet<u64>) {
        let (mut set, mut model) = (IntervalSet::new(), BTreeSet::new());
        for op in ops {
            match *op {
                Op::Insert(n) => assert_eq!(set.insert(n), model.insert(n)),
                Op::Remove(n) => assert_eq!(set.remove(n), model.remove(&n)),
                Op::Range(first, last) => {
                    let added = (first..=last).filter(|&n| model.insert(n)).count();
                    assert_eq!(set.insert_range(first, last), added as u64);
                }
            }
        }
        (set, model)
    }

    fn is_tidy(set: &IntervalSet) -> bool {
        let runs = runs(set);
        runs.iter().all(|(first, last)| first <= last) && runs.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0)
    }

    proptest! {
        #[test]
        fn behaves_like_a_btree_set(ops in vec(op(), 0..120), others in vec(op(), 0..60)) {
            let (set, model) = play(&ops);
            let (other, other_model) = play(&others);
            prop_assert!(is_tidy(&set));
            prop_assert_eq!(set.len(), model.len() as u64);
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert_eq!(set.last(), model.last().copied());
            let numbers: Vec<u64> = set.runs().flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(&numbers, &model.iter().copied().collect::<Vec<_>>());
            prop_assert!((0..90).all(|n| set.contains(n) == model.contains(&n)));
            prop_assert_eq!(set.union_count(&other), model.union(&other_model).count() as u64);
            prop_assert_eq!(set.intersection_count(&other), model.intersection(&other_model).count() as u64);
            prop_assert_eq!(set.difference_count(&other), model.difference(&other_model).count() as u64);
            let missing: Vec<u64> = set.holes(3, 70).into_iter().flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(missing, (3..=70).filter(|n| !model.contains(n)).collect::<Vec<_>>());
            let again: IntervalSet = serde_json::from_str(&serde_json::to_string(&set).unwrap()).unwrap();
            prop_assert_eq!(again, set);
        }

        #[test]
        fn a_sweep_names_every_number_once(a in vec(op(), 0..40), b in vec(op(), 0..40), c in vec(op(), 0..40)) {
            let sets = [play(&a), play(&b), play(&c)];
            let mut seen = Vec::new();
            sweep([&sets[0].0, &sets[1].0, &sets[2].0], |mask, first, last| {
                seen.extend((first..=last).map(|n| (n, mask)));
            });
            let all: BTreeSet<u64> = sets.iter().flat_map(|(_, model)| model.iter().copied()).collect();
            let expected: Vec<(u64, u32)> = all.into_iter().map(|n| {
                (n, (0..3).map(|bit| u32::from(sets[bit].1.contains(&n)) << bit).sum())
            }).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
