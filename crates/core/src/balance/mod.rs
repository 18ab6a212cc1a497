//! Which endpoint gets the next try: the less loaded of two drawn by chance.
//!
//! Two choices instead of a search: almost as even as looking at everybody, and no herd runs to whoever was idle a
//! moment ago (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).

use crate::prng::Prng;

/// One endpoint as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// False while its health check fails.
    pub healthy: bool,
    /// True if this request has failed there already.
    pub tried: bool,
    /// Calls on their way to it.
    pub in_flight: u32,
}

/// The place of the chosen endpoint; `None` if none is healthy. Endpoints not yet tried go before those that were, and
/// ties go to the first drawn.
#[must_use]
pub fn choose(candidates: impl Iterator<Item = Candidate> + Clone, prng: &mut Prng) -> Option<usize> {
    let fresh = |candidate: &Candidate| candidate.healthy && !candidate.tried;
    let fresh_count = candidates.clone().filter(fresh).count() as u64;
    if fresh_count > 0 {
        return two_choices(candidates, fresh, fresh_count, prng);
    }
    let healthy = |candidate: &Candidate| candidate.healthy;
    let healthy_count = candidates.clone().filter(healthy).count() as u64;
    two_choices(candidates, healthy, healthy_count, prng)
}

fn two_choices(
    candidates: impl Iterator<Item = Candidate> + Clone,
    eligible: impl Fn(&Candidate) -> bool,
    count: u64,
    prng: &mut Prng,
) -> Option<usize> {
    let nth = |n: u64| candidates.clone().enumerate().filter(|(_, it)| eligible(it)).nth(n as usize);
    if count < 2 {
        return nth(0).map(|(place, _)| place);
    }
    let first = prng.below(count);
    // Never the same twice: skip over the first.
    let second = (first + 1 + prng.below(count - 1)) % count;
    let ((a, first), (b, second)) = (nth(first)?, nth(second)?);
    Some(if second.in_flight < first.in_flight { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(in_flight: u32) -> Candidate {
        Candidate { healthy: true, tried: false, in_flight }
    }

    fn shares(candidates: &[Candidate]) -> Vec<u32> {
        let mut prng = Prng::new(9);
        let mut counts = vec![0; candidates.len()];
        for _ in 0..6_000 {
            if let Some(place) = choose(candidates.iter().copied(), &mut prng) {
                counts[place] += 1;
            }
        }
        counts
    }

    #[test]
    fn equals_share_and_the_busiest_is_left_alone() {
        assert!(shares(&[endpoint(1); 3]).iter().all(|&count| (1_850..2_150).contains(&count)));
        assert_eq!(shares(&[endpoint(5), endpoint(9)]), [6_000, 0]);
        let three = shares(&[endpoint(0), endpoint(1), endpoint(2)]);
        assert_eq!(three[2], 0, "the most loaded of three never wins a pair");
        assert!(three[0] > three[1]);
    }

    #[test]
    fn the_sick_get_nothing_and_the_tried_come_last() {
        let sick = Candidate { healthy: false, ..endpoint(0) };
        let tried = Candidate { tried: true, ..endpoint(0) };
        assert_eq!(shares(&[sick, endpoint(7)]), [0, 6_000]);
        assert_eq!(shares(&[tried, endpoint(7)]), [0, 6_000]);
        assert_eq!(shares(&[sick, tried]), [0, 6_000]);
        assert_eq!(shares(&[sick, sick]), [0, 0]);
        assert_eq!(shares(&[]), Vec::<u32>::new());
    }
}
