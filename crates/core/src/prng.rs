//! Chance as an argument: a small seeded generator of our own, so that a seed outlives library updates.
//!
//! xoshiro256++ (Blackman and Vigna, 2019), seeded by SplitMix64. Not for secrets.

/// A deterministic source of chance.
#[derive(Clone, Debug)]
pub struct Prng([u64; 4]);

impl Prng {
    /// The same seed gives the same numbers, on every platform and in every version.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| split_mix(&mut state)))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`, each equally likely (Lemire's method without the rejection step: the bias is below
    /// `bound / 2^64`). Zero for a bound of zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `0.0..1.0` with 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// A generator of its own for a part of the work, so that parts do not disturb each other's numbers.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_promise() {
        let mut a = Prng::new(42);
        let mut b = Prng::new(42);
        let first: Vec<u64> = (0..4).map(|_| a.next_u64()).collect();
        assert_eq!(first, (0..4).map(|_| b.next_u64()).collect::<Vec<_>>());
        // SplitMix64(0) begins with this number in every published implementation.
        assert_eq!(split_mix(&mut 0), 0xe220_a839_7b1d_cdaf);
        assert_ne!(Prng::new(1).next_u64(), Prng::new(2).next_u64());
        assert_ne!(a.fork().next_u64(), a.next_u64());
    }

    #[test]
    fn numbers_stay_in_range_and_spread() {
        let mut prng = Prng::new(7);
        let mut seen = [0_u32; 10];
        for _ in 0..10_000 {
            seen[prng.below(10) as usize] += 1;
            let unit = prng.unit();
            assert!((0.0..1.0).contains(&unit));
        }
        assert!(seen.iter().all(|&count| (850..1150).contains(&count)), "{seen:?}");
        assert_eq!(prng.below(0), 0);
        assert!(!prng.chance(0.0));
        assert!(prng.chance(1.0));
    }
}
