//! Who is served by which version, and who stays with which endpoint: the same answer on every node, at every restart.
//!
//! Picture a coin that belongs to the asker, not to us. What a request carries (a header, a cookie) is hashed with the
//! name of its route, and the hash is the coin: nobody has to remember how it fell. Shares lie on a line in the order
//! written, so that a larger last share keeps whom it had and takes some from the one before it.
//! A request that carries nothing to go by is thrown a coin of its own.
//! Not here: what becomes of a version that has no endpoint left (the gateway), which endpoint a value stays with
//! (`Plan::choose_for`).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::prng::Prng;

/// What calls belong together by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Nothing: each is by itself.
    #[default]
    Request,
    /// A header's value; the name is lower case.
    Header(String),
    /// A cookie's value.
    Cookie(String),
}

/// The share of each version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Versions and their weights, in the order written.
    pub weights: Vec<(String, u32)>,
    /// Who gets the same version again.
    pub by: Unit,
}

impl Split {
    /// The place of the version for whom a coin has fallen so; `None` if no version has any weight.
    ///
    /// ```
    /// use seawall_core::balance::assign::{Split, Unit, mark};
    ///
    /// let split = Split { weights: vec![("stable".into(), 95), ("canary".into(), 5)], by: Unit::Cookie("id".into()) };
    /// assert_eq!(split.version_of(mark("api", b"ada")), split.version_of(mark("api", b"ada")));
    /// ```
    #[must_use]
    pub fn version_of(&self, coin: u64) -> Option<usize> {
        let total: u64 = self.weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
        // Lemire's way to a number below the total, on the coin itself.
        let fallen = ((u128::from(coin) * u128::from(total)) >> 64) as u64;
        let mut sum = 0;
        self.weights.iter().position(|(_, weight)| {
            sum += u64::from(*weight);
            fallen < sum
        })
    }
}

/// The coin of a value on a route. Part of what is promised: the same in every version of Seawall.
///
/// FNV-1a of the route's name, a zero byte and the value, put through one step of the generator, as FNV leaves the high
/// bits of short values nearly alike.
#[must_use]
pub fn mark(route: &str, value: &[u8]) -> u64 {
    let bytes = route.bytes().chain([0]).chain(value.iter().copied());
    Prng::new(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
        .next_u64()
}

/// The value of a cookie in the text of a `Cookie` header.
#[must_use]
pub fn cookie<'h>(header: &'h str, name: &str) -> Option<&'h str> {
    let pairs = header.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// What became of the calls of one version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VersionCounts {
    /// Requests answered, by class of status: 1xx..5xx at index 0..4.
    pub answers: [u64; 5],
    /// Tries that went to another version because none of this one's endpoints was well.
    pub elsewhere: u64,
}

/// Counts by version.
pub type ByVersion = BTreeMap<String, VersionCounts>;

impl VersionCounts {
    /// Adds what somebody else has counted.
    pub fn add(&mut self, other: &Self) {
        self.answers.iter_mut().zip(other.answers).for_each(|(sum, more)| *sum += more);
        self.elsewhere += other.elsewhere;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(weights: &[(&str, u32)]) -> Split {
        let weights = weights.iter().map(|(name, weight)| ((*name).into(), *weight)).collect();
        Split { weights, by: Unit::Request }
    }

    fn users() -> impl Iterator<Item = u64> {
        (0..20_000).map(|user: u32| mark("api", format!("user-{user}").as_bytes()))
    }

    #[test]
    fn shares_are_as_written_and_grow_without_moving_others() {
        let (five, ten) = (split(&[("stable", 95), ("canary", 5)]), split(&[("stable", 90), ("canary", 10)]));
        let canary = |split: &Split, coin| split.version_of(coin) == Some(1);
        let count = users().filter(|coin| canary(&five, *coin)).count();
        // 1000, six deviations 185.
        assert!((815..1_185).contains(&count), "{count}");
        assert!(
            users().filter(|coin| canary(&five, *coin)).all(|coin| canary(&ten, coin)),
            "who was in it stays in it"
        );
        let third = users().filter(|coin| split(&[("a", 1), ("b", 0), ("c", 2)]).version_of(*coin) == Some(0)).count();
        assert!((6_267..7_067).contains(&third), "{third}");
        assert_eq!(split(&[("a", 0)]).version_of(7), None);
        assert_eq!(split(&[]).version_of(7), None);
    }

    #[test]
    fn routes_are_not_split_alike() {
        let one: Vec<bool> = (0..1_000).map(|user: u32| mark("one", &user.to_le_bytes()) >> 63 == 0).collect();
        let other: Vec<bool> = (0..1_000).map(|user: u32| mark("other", &user.to_le_bytes()) >> 63 == 0).collect();
        let alike = one.iter().zip(&other).filter(|(one, other)| one == other).count();
        assert!((400..600).contains(&alike), "{alike}");
        // A promise, reckoned by another program: whoever changes this moves every user of every canary.
        assert_eq!(mark("api", b"ada"), 0x95f5_db57_ef3d_2619);
    }

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let header = "sid=a; xsid=b;id=c=d ; empty=; lone";
        let found = ["sid", "xsid", "id", "empty", "lone", "none"].map(|name| cookie(header, name));
        assert_eq!(found, [Some("a"), Some("b"), Some("c=d"), Some(""), None, None]);
    }
}
