//! Chance that can be had again: a link's draws follow from the seed, the place, the number of the connection and the
//! direction, whatever else happens at the same time.

use super::{Direction, FaultId};
use crate::prng::Prng;

/// The source of chance of one link: the `connection`-th (from 0) of the place with this name.
#[must_use]
pub fn link_prng(seed: u64, place: &str, connection: u64, direction: Direction) -> Prng {
    let direction = match direction {
        Direction::Upstream => 1,
        Direction::Downstream => 2,
    };
    // One step of the generator between the parts: sums of small numbers would meet each other again.
    let place = Prng::new(seed ^ hash(place)).next_u64();
    let connection = Prng::new(place.wrapping_add(connection)).next_u64();
    Prng::new(connection ^ direction)
}

/// A fault's own chance on a link, the same whichever faults are placed before or after it.
pub(super) fn fault_prng(link: &Prng, id: &FaultId) -> Prng {
    Prng::new(link.clone().next_u64() ^ hash(&id.0))
}

/// FNV-1a with 64 bits: short, and the same for ever.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_name_counts() {
        let first = |seed, place: &str, connection, direction| link_prng(seed, place, connection, direction).next_u64();
        let base = first(1, "queue", 0, Direction::Upstream);
        assert_eq!(base, first(1, "queue", 0, Direction::Upstream));
        assert_ne!(base, first(2, "queue", 0, Direction::Upstream));
        assert_ne!(base, first(1, "cache", 0, Direction::Upstream));
        assert_ne!(base, first(1, "queue", 1, Direction::Upstream));
        assert_ne!(base, first(1, "queue", 0, Direction::Downstream));
        let link = link_prng(1, "queue", 0, Direction::Upstream);
        let of = |id: &str| fault_prng(&link, &id.into()).next_u64();
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        // FNV-1a of the empty text and of "a", as published.
        assert_eq!((hash(""), hash("a")), (0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c));
    }

    #[test]
    fn draws_of_neighbouring_connections_spread() {
        let hits = (0..10_000).filter(|&n| {
            let link = link_prng(7, "queue", n, Direction::Downstream);
            fault_prng(&link, &"latency_downstream".into()).chance(0.3)
        });
        let hits = hits.count();
        assert!((2_800..3_200).contains(&hits), "{hits}");
    }
}
