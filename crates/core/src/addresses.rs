//! The addresses of a name: when to ask for them again, which to try first, and what stays when nobody answers.
//!
//! A name that does not resolve for a while is no reason to stop speaking to an address that works, so the last good
//! answer is kept until there is a better one.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::time::Mono;

/// A name in use is asked for again after this long. The system's resolver does not tell how long an answer is good
/// for; it keeps to that itself.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// An address that has refused, or was overtaken by a later one, is tried last for this long.
pub const LAST_FOR: Duration = Duration::from_secs(30);

/// What is known of a name.
///
/// ```
/// use seawall_core::addresses::{Addresses, Answer};
/// use seawall_core::time::Mono;
///
/// let mut addresses = Addresses::default();
/// let now = Mono::from_millis(1_000);
/// assert!(addresses.ask(now));
/// assert_eq!(addresses.answered(now, Ok(vec!["10.0.0.1:80".parse().unwrap()])), Answer::Changed);
/// // Nobody knows the name now. We do.
/// let later = Mono::from_millis(60_000);
/// assert!(addresses.ask(later));
/// assert_eq!(addresses.answered(later, Ok(vec![])), Answer::Kept("no addresses".to_owned()));
/// assert_eq!(addresses.in_turn(later), ["10.0.0.1:80".parse().unwrap()]);
/// ```
#[derive(Debug, Default)]
pub struct Addresses {
    known: Vec<SocketAddr>,
    /// When it was last answered, well or badly.
    answered: Option<Mono>,
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
        let is_fresh =
            !self.known.is_empty() && self.answered.is_some_and(|answered| now.since(answered) < ASK_AGAIN_AFTER);
        if self.is_asking || is_fresh {
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

    /// Whoever asked was answered.
    pub fn answered(&mut self, now: Mono, answer: io::Result<Vec<SocketAddr>>) -> Answer {
        self.is_asking = false;
        self.answered = Some(now);
        let failure = match answer {
            Ok(found) if found.is_empty() => "no addresses".to_owned(),
            Ok(found) => return self.learn(found),
            Err(error) => error.to_string(),
        };
        if self.known.is_empty() { Answer::Unknown(failure) } else { Answer::Kept(failure) }
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

    /// This one has refused, or was overtaken.
    pub fn try_last(&mut self, now: Mono, address: SocketAddr) {
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
        let found = hosts.iter().map(|host| address(*host)).collect();
        assert_eq!(addresses.answered(at(0), Ok(found)), Answer::Changed);
        addresses
    }

    #[test]
    fn one_asks_at_a_time_and_not_before_it_is_due() {
        let mut addresses = Addresses::default();
        assert!(addresses.is_empty());
        assert!(addresses.ask(at(0)));
        assert!(addresses.is_asking());
        assert!(!addresses.ask(at(60)), "somebody asks already");
        addresses.answered(at(60), Ok(vec![address(1)]));
        assert!(!addresses.is_asking() && !addresses.is_empty());
        assert!(!addresses.ask(at(64)));
        assert!(addresses.ask(at(65)));
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
    fn a_name_nobody_knows_is_asked_for_at_every_call() {
        let mut addresses = Addresses::default();
        assert!(addresses.ask(at(0)));
        assert_eq!(addresses.answered(at(0), Ok(vec![])), Answer::Unknown("no addresses".into()));
        assert!(addresses.ask(at(0)));
        assert_eq!(addresses.answered(at(0), Err(io::Error::other("no"))), Answer::Unknown("no".into()));
        assert!(addresses.in_turn(at(0)).is_empty());
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
        assert_eq!(addresses.answered(at(5), Ok(vec![address(2), address(1)])), Answer::Same);
        addresses.ask(at(10));
        assert_eq!(addresses.answered(at(10), Ok(vec![address(2)])), Answer::Changed);
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
        assert_eq!(addresses.answered(at(5), Ok(vec![address(2), address(4)])), Answer::Changed);
        assert_eq!(addresses.in_turn(at(6)), [4, 2].map(address));
    }
}
