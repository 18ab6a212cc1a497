//! Where a chunk is cut: in two near the middle, again and again, until a piece is short enough.

use crate::prng::Prng;

/// The pieces of one chunk, found one by one: the cuts that are still to come are a few numbers, however many pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct Cuts {
    start: usize,
    /// Ends of the parts that are still whole, the nearest last.
    ends: Vec<usize>,
}

impl Cuts {
    /// Begins with a chunk of so many bytes, at least one.
    pub(super) fn of(len: usize) -> Self {
        Self { start: 0, ends: vec![len] }
    }

    /// The length of the next piece; `None` when the chunk has been used up.
    pub(super) fn next(&mut self, average: usize, variation: usize, prng: &mut Prng) -> Option<usize> {
        let longest = average.max(1).saturating_add(variation);
        let mut end = *self.ends.last()?;
        while end - self.start > longest {
            end = middle(self.start, end, variation, prng);
            self.ends.push(end);
        }
        self.ends.pop();
        let len = end - self.start;
        self.start = end;
        Some(len)
    }
}

/// Near the middle, give or take `variation`, and never at either end: a piece without bytes is none.
fn middle(start: usize, end: usize, variation: usize, prng: &mut Prng) -> usize {
    let reach = variation.min((end - start) / 2);
    let shift = prng.below(2 * reach as u64 + 1) as usize;
    (start + (end - start) / 2 + shift).saturating_sub(reach).clamp(start + 1, end - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(len: usize, average: usize, variation: usize) -> Vec<usize> {
        let (mut cuts, mut prng) = (Cuts::of(len), Prng::new(1));
        std::iter::from_fn(|| cuts.next(average, variation, &mut prng)).collect()
    }

    #[test]
    fn without_variation_halves_are_halved() {
        assert_eq!(pieces(100, 30, 0), [25, 25, 25, 25]);
        assert_eq!(pieces(7, 2, 0), [1, 2, 2, 2]);
        assert_eq!(pieces(10, 10, 0), [10]);
        assert_eq!(pieces(3, 0, 0), [1, 1, 1]);
    }

    proptest! {
        #[test]
        fn pieces_are_the_chunk(len in 1..5_000_usize, average in 0..5_000_usize, variation in 0..9_000_usize) {
            let pieces = pieces(len, average, variation);
            prop_assert_eq!(pieces.iter().sum::<usize>(), len);
            prop_assert!(pieces.iter().all(|&piece| piece >= 1 && piece <= average.max(1) + variation));
        }
    }
}
