//! Takes the census as records are accepted: whose outcome is open, which period is open, what is to be told.

use std::collections::BTreeMap;

use super::Event;
use super::census::{Census, Member, Salt};
use super::periods::{PERIOD_S, period_of};

/// A stream that accepts nothing is told to have done so this often, in seconds.
const QUIET_S: u64 = 60;

/// The census of a node's streams, period by period. Times are seconds since 1970 and arguments. Memory: 60 bytes for a
/// record whose outcome is open, and one census a stream.
#[derive(Debug)]
pub struct CensusTaker {
    salt: Salt,
    life: u64,
    since: u64,
    streams: BTreeMap<String, Taking>,
}

#[derive(Debug)]
struct Taking {
    /// Keys of records whose outcome is open, by epoch and number.
    open: BTreeMap<(u64, u64), Member>,
    /// The period that runs.
    start: u64,
    census: Option<Census>,
    /// Until when everything has been told.
    told: u64,
    /// Periods that are over.
    due: Vec<(u64, Census)>,
}

impl CensusTaker {
    /// Of a life that begins now. `life` is greater than every one before: its first epoch.
    #[must_use]
    pub fn new(salt: Salt, life: u64, now: u64) -> Self {
        // The period it begins in is the life's before, if that ended well.
        let since = now.checked_next_multiple_of(PERIOD_S).unwrap_or(now);
        Self { salt, life, since, streams: BTreeMap::new() }
    }

    /// What keys are hashed with.
    #[must_use]
    pub const fn salt(&self) -> &Salt {
        &self.salt
    }

    /// A record got a number.
    pub fn numbered(&mut self, stream: &str, epoch: u64, seq: u64, key: &str) {
        let member = Member::of(&self.salt, key);
        if !self.streams.contains_key(stream) {
            self.streams.insert(stream.to_owned(), Taking::new(self.since));
        }
        if let Some(taking) = self.streams.get_mut(stream) {
            taking.open.insert((epoch, seq), member);
        }
    }

    /// Its outcome is known. Later words about the same record change nothing.
    pub fn settled(&mut self, stream: &str, epoch: u64, seq: u64, is_accepted: bool, now: u64) {
        let Some(taking) = self.streams.get_mut(stream) else { return };
        let Some(member) = taking.open.remove(&(epoch, seq)) else { return };
        if is_accepted {
            taking.turn(now);
            taking.census.get_or_insert_default().count(&member);
        }
    }

    /// What is to be written down now: every period that is over.
    pub fn due(&mut self, now: u64) -> Vec<Event> {
        let (life, since, mut events) = (self.life, self.since, Vec::new());
        for (stream, taking) in &mut self.streams {
            taking.turn(now);
            let is_quiet = taking.due.is_empty() && taking.told + QUIET_S <= taking.start;
            if is_quiet {
                taking.due.push((taking.start - PERIOD_S, Census::default()));
            }
            for (start, census) in taking.due.drain(..) {
                taking.told = start + PERIOD_S;
                events.push(Event::Census { stream: stream.clone(), life, since, start, census });
            }
        }
        events
    }

    /// The last of it: also the period that runs.
    pub fn end(&mut self, now: u64) -> Vec<Event> {
        self.due(now.saturating_add(PERIOD_S))
    }
}

impl Taking {
    /// Of a life that tells everything from a moment on: it runs in the period before that.
    const fn new(since: u64) -> Self {
        let start = since.saturating_sub(PERIOD_S);
        Self { open: BTreeMap::new(), start, census: None, told: since, due: Vec::new() }
    }

    fn turn(&mut self, now: u64) {
        // A clock that goes back leaves the period as it is: no second is counted twice.
        if now < self.start + PERIOD_S {
            return;
        }
        if let Some(census) = self.census.take() {
            self.due.push((self.start, census));
        }
        self.start = period_of(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Applied, Ledger};

    const SALT: Salt = Salt([1; 32]);

    fn taker(now: u64) -> CensusTaker {
        CensusTaker::new(SALT, 3, now)
    }

    fn accept(taker: &mut CensusTaker, seq: u64, now: u64) {
        taker.numbered("events", 3, seq, &format!("key {seq}"));
        taker.settled("events", 3, seq, true, now);
    }

    fn census(seqs: impl IntoIterator<Item = u64>) -> Census {
        let mut census = Census::default();
        seqs.into_iter().for_each(|seq| census.count(&Member::of(&SALT, &format!("\"key {seq}\""))));
        census
    }

    #[test]
    fn what_was_accepted_is_told_when_its_period_is_over() {
        let (mut taker, mut ledger) = (taker(995), Ledger::new("node").unwrap());
        (1..=5).for_each(|seq| accept(&mut taker, seq, 1001));
        taker.numbered("events", 3, 6, "refused");
        taker.settled("events", 3, 6, false, 1002);
        taker.settled("events", 3, 5, true, 1003);
        taker.settled("nobody's", 3, 5, true, 1003);
        taker.numbered("events", 3, 7, "key 7");
        assert_eq!(taker.due(1009), []);
        accept(&mut taker, 8, 1012);
        taker.settled("events", 3, 7, true, 1013);
        for event in taker.due(1013).iter().chain(&taker.end(1013)) {
            ledger.apply(event).unwrap();
        }
        let counted = ledger.census("events", 1000, 1010).unwrap();
        assert_eq!((counted.is_complete, counted.census), (true, census(1..=5)));
        let counted = ledger.census("events", 1000, 1020).unwrap();
        assert_eq!((counted.is_complete, counted.census), (true, census([1, 2, 3, 4, 5, 7, 8])));
        assert_eq!(ledger.census("nobody's", 0, 2000), None);
    }

    #[test]
    fn silence_is_told_too_and_a_clock_that_goes_back_counts_nothing_twice() {
        let (mut taker, mut ledger) = (taker(1000), Ledger::new("node").unwrap());
        accept(&mut taker, 1, 1000);
        accept(&mut taker, 2, 500);
        let events = taker.due(1015);
        assert_eq!(events.len(), 1);
        events.iter().for_each(|event| assert_eq!(ledger.apply(event), Ok(Applied::Changed)));
        assert_eq!(taker.due(1060), []);
        let events = taker.due(1075);
        assert_eq!(events.len(), 1);
        events.iter().for_each(|event| assert_eq!(ledger.apply(event), Ok(Applied::Changed)));
        let counted = ledger.census("events", 1000, 1070).unwrap();
        assert_eq!((counted.is_complete, counted.census.bag.count), (true, 2));
    }
}
