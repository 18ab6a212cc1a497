//! The addresses of a name: when to ask for them again, which to try first, and what stays when nobody answers.
//!
//! A name that does not resolve for a while is no reason to stop speaking to an address that works, so the last good
//! answer is kept until there is a better one. A zone may say that an answer is good for no time at all, or for a day:
//! the first would have every connection ask, the second would make a mistake last, so both are bounded.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::time::Mono;

/// A name in use is asked for again after this long where nobody told how long the answer is good for, or nobody
/// answered.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// A name that never had an address is asked for again after this long, however many wait for it.
pub const ASK_UNKNOWN_AFTER: Duration = Duration::from_millis(100);
/// An answer is good for this long at least, ...
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// ... and for this long at most, whatever it says: to ask sooner than one must is always allowed.
pub const TTL_MAX: Duration = Duration::from_secs(60);
/// An address that has refused, or was overtaken by a later one, is tried last for this long.
pub const LAST_FOR: Duration = Duration::from_secs(30);

/// What was answered for a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its addresses.
    pub addresses: Vec<SocketAddr>,
    /// How long they are good for, where that was told.
    pub ttl: Option<Duration>,
    /// Those of this family could not be told: what was known of them stays.
    pub without: Option<Family>,
}

impl From<Vec<SocketAddr>> for Found {
    fn from(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses, ttl: None, without: None }
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn has(self, address: &SocketAddr) -> bool {
        (self == Self::V6) == address.is_ipv6()
    }
}

/// What is known of a name.
///
/// ```
/// use seawall_core::addresses::{Addresses, Answer, Found};
/// use seawall_core::time::Mono;
///
/// let mut addresses = Addresses::default();
/// let now = Mono::from_millis(1_000);
/// assert!(addresses.ask(now));
/// let found = Found::from(vec!["10.0.0.1:80".parse().unwrap()]);
/// assert_eq!(addresses.answered(now, Ok(found)), Answer::Changed);
/// // Nobody knows the name now. We do.
/// let later = Mono::from_millis(60_000);
/// assert!(addresses.ask(later));
/// assert_eq!(addresses.answered(later, Ok(Found::default())), Answer::Kept("no addresses".to_owned()));
/// assert_eq!(addresses.in_turn(later), ["10.0.0.1:80".parse().unwrap()]);
/// ```
#[derive(Debug, Default)]
pub struct Addresses {
    known: Vec<SocketAddr>,
    /// When it was last answered, well or badly, and until when nobody needs to ask.
    answered: Mono,
    fresh_until: Mono,
    is_asking: bool,
    /// Those to be tried last, and until when.
    last: Vec<(SocketAddr, Mono)>,
    turn: usize,
}

/// What an answer has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    Same,
    /// The name has these addresses now.
    Changed,
    /// There was none, for this reason: what was known before is kept.
    Kept(String),
    /// There was none, for this reason, and nothing was known before.
    Unknown(String),
}

impl Addresses {
    /// True if somebody must ask: whoever is told so does, and says what was answered.
    pub fn ask(&mut self, now: Mono) -> bool {
        if self.is_asking || now < self.fresh_until {
            return false;
        }
        self.is_asking = true;
        true
    }

    /// True if there is no answer yet to go by.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// True if somebody has asked and waits.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.is_asking
    }

    /// All addresses, in no order.
    #[must_use]
    pub fn known(&self) -> &[SocketAddr] {
        &self.known
    }

    /// Whoever asked was answered.
    pub fn answered(&mut self, now: Mono, answer: io::Result<Found>) -> Answer {
        self.is_asking = false;
        (self.answered, self.fresh_until) = (now, now + ASK_AGAIN_AFTER);
        let failure = match answer {
            Ok(found) if found.addresses.is_empty() => "no addresses".to_owned(),
            Ok(Found { mut addresses, ttl, without }) => {
                let ttl = ttl.map_or(ASK_AGAIN_AFTER, |ttl| ttl.clamp(TTL_MIN, TTL_MAX));
                // What could not be told is asked for again as if nobody had answered.
                self.fresh_until = now + without.map_or(ttl, |_| ttl.min(ASK_AGAIN_AFTER));
                let stays = |address: &&SocketAddr| without.is_some_and(|family| family.has(address));
                addresses.extend(self.known.iter().filter(stays));
                return self.learn(addresses);
            }
            Err(error) => error.to_string(),
        };
        if !self.known.is_empty() {
            return Answer::Kept(failure);
        }
        self.fresh_until = now + ASK_UNKNOWN_AFTER;
        Answer::Unknown(failure)
    }

    /// What another process knew last, until somebody has asked.
    pub fn restore(&mut self, addresses: Vec<SocketAddr>) {
        if self.known.is_empty() {
            self.learn(addresses);
        }
    }

    /// A resolver may tell the same addresses in another order each time: that is no change.
    fn learn(&mut self, found: Vec<SocketAddr>) -> Answer {
        let is_same = found.iter().all(|address| self.known.contains(address))
            && self.known.iter().all(|address| found.contains(address));
        if is_same {
            return Answer::Same;
        }
        self.known.clear();
        for address in found {
            if !self.known.contains(&address) {
                self.known.push(address);
            }
        }
        self.last.retain(|(address, _)| self.known.contains(address));
        Answer::Changed
    }

    /// All addresses, in the order in which to try them: those that work take turns, those that did not come last, and
    /// of them the one first for which that was longest ago.
    pub fn in_turn(&mut self, now: Mono) -> Vec<SocketAddr> {
        self.last.retain(|(_, until)| now < *until);
        let mut order: Vec<_> =
            self.known.iter().copied().filter(|address| !self.last.iter().any(|(last, _)| last == address)).collect();
        if !order.is_empty() {
            let first = self.turn % order.len();
            order.rotate_left(first);
            self.turn = self.turn.wrapping_add(1);
        }
        order.extend(self.last.iter().map(|(address, _)| *address));
        order
    }

    /// This one has refused, or was overtaken. Perhaps the name has moved: it is asked for again before its time is
    /// over.
    pub fn try_last(&mut self, now: Mono, address: SocketAddr) {
        self.fresh_until = self.fresh_until.min(self.answered + ASK_AGAIN_AFTER);
        self.last.retain(|(last, _)| *last != address);
        if self.known.contains(&address) {
            self.last.push((address, now + LAST_FOR));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], 80))
    }

    fn at(seconds: u64) -> Mono {
        Mono::from_millis(seconds * 1_000)
    }

    fn knowing(hosts: &[u8]) -> Addresses {
        let mut addresses = Addresses::default();
        assert!(addresses.ask(at(0)));
        let found: Vec<_> = hosts.iter().map(|host| address(*host)).collect();
        assert_eq!(addresses.answered(at(0), Ok(found.into())), Answer::Changed);
        addresses
    }

    #[test]
    fn one_asks_at_a_time_and_not_before_it_is_due() {
        let mut addresses = Addresses::default();
        assert!(addresses.is_empty());
        assert!(addresses.ask(at(0)));
        assert!(addresses.is_asking());
        assert!(!addresses.ask(at(60)), "somebody asks already");
        addresses.answered(at(60), Ok(vec![address(1)].into()));
        assert!(!addresses.is_asking() && !addresses.is_empty());
        assert!(!addresses.ask(at(64)));
        assert!(addresses.ask(at(65)));
    }

    #[test]
    fn an_answer_is_good_for_as_long_as_it_says_within_bounds() {
        for (ttl_s, asked_after_s) in [(0, 1), (1, 1), (30, 30), (60, 60), (86_400, 60)] {
            let mut addresses = Addresses::default();
            assert!(addresses.ask(at(0)));
            let ttl = Some(Duration::from_secs(ttl_s));
            addresses.answered(at(0), Ok(Found { ttl, ..vec![address(1)].into() }));
            assert!(!addresses.ask(Mono::from_millis(asked_after_s * 1_000 - 1)), "{ttl_s}");
            assert!(addresses.ask(at(asked_after_s)), "{ttl_s}");
        }
    }

    #[test]
    fn an_address_that_refuses_has_the_name_asked_for_again_before_its_time_is_over() {
        let mut addresses = Addresses::default();
        assert!(addresses.ask(at(0)));
        addresses.answered(at(0), Ok(Found { ttl: Some(TTL_MAX), ..vec![address(1)].into() }));
        addresses.try_last(at(2), address(1));
        assert!(!addresses.ask(at(4)), "a server that is down is no reason to ask at every call");
        assert!(addresses.ask(at(5)));
        addresses.answered(at(5), Ok(Found { ttl: Some(TTL_MIN), ..vec![address(1)].into() }));
        addresses.try_last(at(5), address(1));
        assert!(addresses.ask(at(6)), "it is never later for that");
    }

    #[test]
    fn of_a_family_nobody_could_tell_of_the_last_good_addresses_stay() {
        let (six, other_six) = ("[fd00::1]:80".parse().unwrap(), "[fd00::2]:80".parse().unwrap());
        let mut addresses = Addresses::default();
        let mut answer = |seconds, found: Vec<SocketAddr>, without| {
            assert!(addresses.ask(at(seconds)));
            let ttl = Some(Duration::from_secs(60));
            addresses.answered(at(seconds), Ok(Found { addresses: found, ttl, without }));
            addresses.known().to_vec()
        };
        assert_eq!(answer(0, vec![address(1), six], None), [address(1), six]);
        assert_eq!(answer(60, vec![address(2)], Some(Family::V6)), [address(2), six]);
        assert_eq!(answer(65, vec![other_six], Some(Family::V4)), [other_six, address(2)], "asked again soon");
        assert_eq!(answer(70, vec![address(2)], None), [address(2)], "it has none of the other family");
    }

    #[test]
    fn without_an_answer_the_last_good_one_stays_and_it_is_asked_again_when_due() {
        let mut addresses = knowing(&[1]);
        assert!(addresses.ask(at(5)));
        let refused = io::Error::other("try again");
        assert_eq!(addresses.answered(at(10), Err(refused)), Answer::Kept("try again".into()));
        assert_eq!(addresses.in_turn(at(10)), [address(1)]);
        assert!(!addresses.ask(at(14)), "a resolver in trouble is not asked at every call");
        assert!(addresses.ask(at(15)));
    }

    #[test]
    fn a_name_nobody_knows_is_asked_for_ten_times_a_second_at_most() {
        let mut addresses = Addresses::default();
        assert!(addresses.ask(at(1)));
        assert_eq!(addresses.answered(at(1), Ok(Found::default())), Answer::Unknown("no addresses".into()));
        assert!(!addresses.ask(Mono::from_millis(1_099)));
        assert!(addresses.ask(Mono::from_millis(1_100)));
        assert_eq!(addresses.answered(at(2), Err(io::Error::other("no"))), Answer::Unknown("no".into()));
        assert!(addresses.in_turn(at(2)).is_empty());
    }

    #[test]
    fn what_another_process_knew_holds_until_somebody_has_asked() {
        let mut addresses = Addresses::default();
        addresses.restore(vec![address(1)]);
        assert_eq!(addresses.known(), [address(1)]);
        assert!(addresses.ask(at(0)), "at once, beside the calls");
        assert_eq!(addresses.answered(at(0), Err(io::Error::other("no"))), Answer::Kept("no".into()));
        addresses.restore(vec![address(2)]);
        assert_eq!(addresses.known(), [address(1)], "who knows something is told nothing");
    }

    #[test]
    fn those_that_work_take_turns() {
        let mut addresses = knowing(&[1, 2, 3]);
        let firsts: Vec<_> = (0..6).map(|_| addresses.in_turn(at(1))[0]).collect();
        assert_eq!(firsts, [1, 2, 3, 1, 2, 3].map(address));
        assert_eq!(addresses.in_turn(at(1)), [1, 2, 3].map(address));
    }

    #[test]
    fn another_order_is_no_change_and_the_same_twice_is_one() {
        let mut addresses = knowing(&[1, 2, 2]);
        assert_eq!(addresses.in_turn(at(1)).len(), 2);
        addresses.ask(at(5));
        assert_eq!(addresses.answered(at(5), Ok(vec![address(2), address(1)].into())), Answer::Same);
        addresses.ask(at(10));
        assert_eq!(addresses.answered(at(10), Ok(vec![address(2)].into())), Answer::Changed);
        assert_eq!(addresses.in_turn(at(10)), [address(2)]);
    }

    #[test]
    fn one_that_refuses_comes_last_for_a_while() {
        let mut addresses = knowing(&[1, 2, 3]);
        addresses.try_last(at(1), address(1));
        addresses.try_last(at(2), address(2));
        assert_eq!(addresses.in_turn(at(3)), [3, 1, 2].map(address));
        addresses.try_last(at(4), address(1));
        assert_eq!(addresses.in_turn(at(4)), [3, 2, 1].map(address), "the one that failed longest ago goes first");
        assert_eq!(addresses.in_turn(at(32))[2], address(1));
        assert_eq!(addresses.in_turn(at(34)).len(), 3);
        assert_eq!(addresses.last, []);
    }

    #[test]
    fn when_none_works_all_are_tried_and_what_is_gone_is_forgotten() {
        let mut addresses = knowing(&[1, 2]);
        addresses.try_last(at(1), address(2));
        addresses.try_last(at(1), address(1));
        addresses.try_last(at(1), address(9));
        assert_eq!(addresses.in_turn(at(2)), [2, 1].map(address));
        addresses.ask(at(5));
        assert_eq!(addresses.answered(at(5), Ok(vec![address(2), address(4)].into())), Answer::Changed);
        assert_eq!(addresses.in_turn(at(6)), [4, 2].map(address));
    }
}
