//! Takes the census as records are accepted: whose outcome is open, which period is open, what is to be told.

use std::collections::BTreeMap;

use super::Event;
use super::census::{Census, Member};
use super::periods::{PERIOD_S, Told, period_of};

/// A stream that accepts nothing is told to have done so this often, in seconds.
const QUIET_S: u64 = 60;

/// The census of a node's streams, period by period. Times are seconds since 1970 and arguments. Memory: 60 bytes for a
/// record whose outcome is open, and one census a stream.
#[derive(Debug)]
pub struct CensusTaker {
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
    census: Census,
    /// Something was accepted in it that could not be counted.
    in_doubt: bool,
    /// Until when everything has been told.
    told: u64,
    /// Periods that are over.
    due: Vec<(u64, Told, Census)>,
}

impl CensusTaker {
    /// Of a life that begins now. `life` is greater than every one before: its first epoch.
    #[must_use]
    pub const fn new(life: u64, now: u64) -> Self {
        Self { life, since: period_of(now), streams: BTreeMap::new() }
    }

    /// Begins with a stream. The event says that this life began: to be durable before anything is accepted.
    pub fn begin(&mut self, stream: &str) -> Event {
        let Self { life, since, .. } = *self;
        self.taking(stream);
        let (stream, start) = (stream.to_owned(), since.saturating_sub(PERIOD_S));
        Event::Census { stream, life, since, start, said: Told::default(), census: Census::default() }
    }

    /// A record got a number.
    pub fn numbered(&mut self, stream: &str, epoch: u64, seq: u64, member: Member) {
        self.taking(stream).open.insert((epoch, seq), member);
    }

    /// A record goes on without a number: whether it is accepted will not be known.
    pub fn unnumbered(&mut self, stream: &str, now: u64) {
        let taking = self.taking(stream);
        taking.turn(now);
        taking.in_doubt = true;
    }

    /// Its outcome is known. Later words about the same record change nothing.
    pub fn settled(&mut self, stream: &str, epoch: u64, seq: u64, is_accepted: bool, now: u64) {
        let Some(taking) = self.streams.get_mut(stream) else { return };
        let Some(member) = taking.open.remove(&(epoch, seq)) else { return };
        if is_accepted {
            taking.turn(now);
            taking.census.count(&member);
        }
    }

    /// What is to be written down now: every period that is over, and now and then that nothing happened.
    pub fn due(&mut self, now: u64) -> Vec<Event> {
        self.tell(now, QUIET_S, false)
    }

    /// All that can be said now: also that nothing happened.
    pub fn asked(&mut self, now: u64) -> Vec<Event> {
        self.tell(now, 0, false)
    }

    /// The last of it: also the period that runs. Nothing is accepted after this.
    pub fn end(&mut self, now: u64) -> Vec<Event> {
        self.tell(now, 0, true)
    }

    fn tell(&mut self, now: u64, quiet_s: u64, ends: bool) -> Vec<Event> {
        let (life, since, mut events) = (self.life, self.since, Vec::new());
        for (stream, taking) in &mut self.streams {
            taking.turn(now);
            if ends {
                taking.close(Told { ends, ..Told::default() });
            } else if taking.due.is_empty() && taking.told + quiet_s < taking.start {
                taking.due.push((taking.start - PERIOD_S, Told::default(), Census::default()));
            }
            for (start, said, census) in taking.due.drain(..) {
                taking.told = start + PERIOD_S;
                events.push(Event::Census { stream: stream.clone(), life, since, start, said, census });
            }
        }
        events
    }

    fn taking(&mut self, stream: &str) -> &mut Taking {
        if !self.streams.contains_key(stream) {
            self.streams.insert(stream.to_owned(), Taking::new(self.since));
        }
        self.streams.get_mut(stream).expect("put there just now")
    }
}

impl Taking {
    /// Of a life that began in the period that starts there.
    fn new(since: u64) -> Self {
        let (open, census) = (BTreeMap::new(), Census::default());
        Self { open, start: since, census, in_doubt: false, told: since, due: Vec::new() }
    }

    fn turn(&mut self, now: u64) {
        let period = period_of(now);
        if period > self.start {
            if self.census.bag.count > 0 || self.in_doubt {
                self.close(Told::default());
            }
            self.start = period;
        } else if period < self.start {
            // What was told of later periods is taken back, and counting goes on from here.
            self.close(Told::default());
            self.due.push((
                period.saturating_sub(PERIOD_S),
                Told { steps_back: true, ..Told::default() },
                Census::default(),
            ));
            self.start = period;
        }
    }

    /// What the period that runs has counted is due.
    fn close(&mut self, said: Told) {
        let in_doubt = std::mem::take(&mut self.in_doubt);
        self.due.push((self.start, Told { in_doubt, ..said }, std::mem::take(&mut self.census)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::census::Salt;
    use super::*;
    use crate::ledger::{Applied, Ledger};

    const SALT: Salt = Salt([1; 32]);

    fn taker(life: u64, now: u64, ledger: &mut Ledger) -> CensusTaker {
        let mut taker = CensusTaker::new(life, now);
        tell(ledger, [taker.begin("events")]);
        taker
    }

    fn tell(ledger: &mut Ledger, events: impl IntoIterator<Item = Event>) {
        events.into_iter().for_each(|event| assert_eq!(ledger.apply(&event), Ok(Applied::Changed), "{event:?}"));
    }

    fn member(key: &str) -> Member {
        Member::of(&SALT, key)
    }

    fn accept(taker: &mut CensusTaker, seq: u64, now: u64) {
        taker.numbered("events", 3, seq, member(&format!("key {seq}")));
        taker.settled("events", 3, seq, true, now);
    }

    fn census(seqs: impl IntoIterator<Item = u64>) -> Census {
        let mut census = Census::default();
        seqs.into_iter().for_each(|seq| census.count(&member(&format!("\"key {seq}\""))));
        census
    }

    #[test]
    fn what_was_accepted_is_told_when_its_period_is_over() {
        let mut ledger = Ledger::new("node").unwrap();
        let mut taker = taker(3, 1000, &mut ledger);
        (1..=5).for_each(|seq| accept(&mut taker, seq, 1001));
        taker.numbered("events", 3, 6, member("refused"));
        taker.settled("events", 3, 6, false, 1002);
        taker.settled("events", 3, 5, true, 1003);
        taker.settled("nobody's", 3, 5, true, 1003);
        taker.numbered("events", 3, 7, member("key 7"));
        assert_eq!(taker.due(1009), []);
        accept(&mut taker, 8, 1012);
        taker.settled("events", 3, 7, true, 1013);
        tell(&mut ledger, taker.due(1013));
        let counted = ledger.census("events", 1000, 1010).unwrap();
        assert_eq!((counted.is_complete, counted.census), (true, census(1..=5)));
        tell(&mut ledger, taker.end(1013));
        let counted = ledger.census("events", 1000, 1020).unwrap();
        assert_eq!((counted.is_complete, counted.census), (true, census([1, 2, 3, 4, 5, 7, 8])));
        assert_eq!(ledger.census("nobody's", 0, 2000), None);
    }

    #[test]
    fn silence_is_told_now_and_then_and_when_asked() {
        let mut ledger = Ledger::new("node").unwrap();
        let mut taker = taker(3, 1003, &mut ledger);
        assert_eq!(taker.due(1060), []);
        tell(&mut ledger, taker.due(1075));
        assert!(ledger.census("events", 1000, 1070).unwrap().is_complete);
        assert!(!ledger.census("events", 1000, 1090).unwrap().is_complete);
        tell(&mut ledger, taker.asked(1099));
        assert!(ledger.census("events", 1000, 1090).unwrap().is_complete);
        assert_eq!(taker.asked(1099), []);
    }

    #[test]
    fn a_restart_in_the_same_period_is_complete_and_a_crash_is_not() {
        let mut ledger = Ledger::new("node").unwrap();
        let mut first = taker(3, 1000, &mut ledger);
        accept(&mut first, 1, 1004);
        tell(&mut ledger, first.end(1005));
        let mut second = taker(4, 1006, &mut ledger);
        accept(&mut second, 2, 1007);
        assert!(!ledger.census("events", 1000, 1010).unwrap().is_complete, "killed here, its key would be unknown");
        tell(&mut ledger, second.due(1010));
        let counted = ledger.census("events", 1000, 1010).unwrap();
        assert_eq!((counted.is_complete, counted.census), (true, census([1, 2])));
    }

    #[test]
    fn a_clock_that_goes_ahead_and_back_leaves_nothing_out() {
        let mut ledger = Ledger::new("node").unwrap();
        let mut taker = taker(3, 1000, &mut ledger);
        accept(&mut taker, 1, 1000);
        accept(&mut taker, 2, 1900);
        tell(&mut ledger, taker.due(1911));
        accept(&mut taker, 3, 1020);
        tell(&mut ledger, taker.due(1031));
        assert!(!ledger.census("events", 1000, 1900).unwrap().is_complete);
        let counted = ledger.census("events", 1000, 1030).unwrap();
        assert_eq!((counted.is_complete, counted.census), (true, census([1, 3])));
    }

    #[test]
    fn what_has_no_number_leaves_a_doubt() {
        let mut ledger = Ledger::new("node").unwrap();
        let mut taker = taker(3, 1000, &mut ledger);
        taker.unnumbered("events", 1001);
        accept(&mut taker, 1, 1011);
        tell(&mut ledger, taker.due(1021));
        assert!(!ledger.census("events", 1000, 1020).unwrap().is_complete);
        assert!(ledger.census("events", 1010, 1020).unwrap().is_complete);
    }
}
