//! The census of one stream over time: fine periods for what is recent, wide ones for what is older, nothing for ever.
//!
//! What was accepted in a period of ten seconds is one census, written to the log when the period is over. Every life
//! of the node says in which period it began, how far it has told everything, and whether it ended well. After a crash
//! the period that was open is not known, and an answer over such a time says so.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::census::Census;

/// Seconds of a fine period.
pub const PERIOD_S: u64 = 10;
/// Seconds of a wide one: fine periods are added up into it once they are so old.
const WIDE_S: u64 = 600;
/// Seconds after which a period is forgotten.
const KEEP_S: u64 = 86_400;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Periods {
    /// In seconds since 1970.
    lives: BTreeMap<u64, Life>,
    /// By the second they begin.
    periods: BTreeMap<u64, Period>,
    /// Periods in which something was accepted that could not be counted.
    doubts: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    /// When the period begins that it began in.
    since: u64,
    /// Until when it has told everything.
    told: u64,
    /// It accepts nothing any more.
    has_ended: bool,
}

/// What else a census says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The life accepts nothing after this.
    pub ends: bool,
    /// The clock went back: what was told of later periods is not all of them.
    pub steps_back: bool,
    /// Something was accepted in the period that could not be counted.
    pub in_doubt: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Period {
    seconds: u64,
    census: Census,
}

impl Period {
    /// True if a moment lies in it.
    const fn holds(&self, start: u64, at: u64) -> bool {
        at - start < self.seconds
    }
}

/// What a stream accepted in a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Since when, in seconds since 1970: as asked, or where the next period begins.
    pub since: u64,
    /// Until when: as asked, or where the last period before it ends.
    pub until: u64,
    /// False if the node cannot say everything it accepted in this time: it crashed, or did not run yet, or it is too
    /// long ago.
    pub is_complete: bool,
    /// The keys.
    pub census: Census,
}

/// When the period begins that a second is in.
#[must_use]
pub const fn period_of(second: u64) -> u64 {
    second - second % PERIOD_S
}

impl Periods {
    /// Takes a period of a life in. False if it is known. One that ends where the life begins says that it began.
    pub(super) fn take(&mut self, life: u64, since: u64, start: u64, census: &Census, said: Told) -> bool {
        let until = start.saturating_add(PERIOD_S);
        let (lives, doubts) = (self.lives.clone(), self.doubts.clone());
        let mut now = lives.get(&life).copied().unwrap_or(Life { since, told: since, has_ended: false });
        let mut added_at = None;
        if said.steps_back {
            now.told = now.told.min(until);
        } else if until > now.told {
            now.told = until;
            added_at = self.add(start, census);
            if said.in_doubt {
                self.doubts.insert(start);
            }
        }
        now.has_ended |= said.ends;
        self.lives.insert(life, now);
        self.grow_old(until);
        // One that is told of long after it was forgotten leaves nothing behind.
        let is_kept =
            added_at.is_some_and(|at| self.periods.range(..=at).next_back().is_some_and(|it| it.1.holds(*it.0, at)));
        lives != self.lives || doubts != self.doubts || is_kept
    }

    /// Where it was added, if there was anything to add.
    fn add(&mut self, start: u64, census: &Census) -> Option<u64> {
        if census.bag.count == 0 {
            return None;
        }
        let wide = start - start % WIDE_S;
        // What it belongs to may have been added up already: another life, long ago.
        let at = if self.periods.get(&wide).is_some_and(|period| period.seconds == WIDE_S) { wide } else { start };
        let period = Period { seconds: PERIOD_S, census: Census::default() };
        self.periods.entry(at).or_insert(period).census.add(census);
        Some(at)
    }

    pub(super) fn between(&self, since: u64, until: u64) -> Counted {
        let mut since = since.checked_next_multiple_of(PERIOD_S).unwrap_or(u64::MAX);
        let mut until = period_of(until);
        for (&start, period) in &self.periods {
            let end = start.saturating_add(period.seconds);
            if start < since && since < end {
                since = end;
            }
            if start < until && until < end {
                until = start;
            }
        }
        let mut counted = Counted { since, until, is_complete: self.covers(since, until), census: Census::default() };
        let inside =
            |(start, period): &(&u64, &Period)| **start >= since && start.saturating_add(period.seconds) <= until;
        self.periods.iter().filter(inside).for_each(|(_, period)| counted.census.add(&period.census));
        counted
    }

    /// True if everything accepted in a time was told: each life is answerable from the period it began in until it
    /// ended well or, after a crash, through the period in which the next one began.
    fn covers(&self, since: u64, until: u64) -> bool {
        let Some(first) = self.lives.values().map(|life| life.since).min() else { return false };
        let starts: Vec<u64> = self.lives.values().map(|life| life.since).collect();
        let is_told = |(at, life): (usize, &Life)| {
            let next = starts.get(at + 1).map_or(u64::MAX, |next| next.saturating_add(PERIOD_S));
            let end = if life.has_ended { life.told } else { next };
            until.min(end) <= life.told.max(since)
        };
        let is_doubted = self.doubts.range(since..until).next().is_some();
        since < until && first <= since && self.lives.values().enumerate().all(is_told) && !is_doubted
    }

    /// Adds up what is old, and forgets what is older.
    pub(super) fn grow_old(&mut self, now: u64) {
        let fine_from = now.saturating_sub(2 * WIDE_S) / WIDE_S * WIDE_S;
        let old: Vec<u64> = self
            .periods
            .range(..fine_from)
            .filter(|(_, period)| period.seconds == PERIOD_S)
            .map(|(&start, _)| start)
            .collect();
        for start in old {
            let Some(fine) = self.periods.remove(&start) else { continue };
            let wide = self.periods.entry(start - start % WIDE_S);
            let wide = wide.or_insert(Period { seconds: WIDE_S, census: Census::default() });
            // The first fine one of a wide one has its place.
            wide.seconds = WIDE_S;
            wide.census.add(&fine.census);
        }
        let forgotten = now.saturating_sub(KEEP_S) / WIDE_S * WIDE_S;
        self.periods.retain(|&start, _| start >= forgotten);
        self.doubts.retain(|&start| start >= forgotten);
        let newest = self.lives.keys().next_back().copied();
        self.lives.retain(|&number, life| {
            life.since = life.since.max(forgotten);
            Some(number) == newest || life.told > forgotten
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::census::{Member, Salt};

    fn census(keys: std::ops::Range<u64>) -> Census {
        let mut census = Census::default();
        keys.for_each(|key| census.count(&Member::of(&Salt([1; 32]), &key.to_string())));
        census
    }

    const SAID: Told = Told { ends: false, steps_back: false, in_doubt: false };
    const ENDS: Told = Told { ends: true, ..SAID };

    fn begin(periods: &mut Periods, life: u64, since: u64) {
        assert!(periods.take(life, since, since - 10, &Census::default(), SAID));
    }

    /// A life from 1000 on that accepts one key a second, told every ten.
    fn told(seconds: u64) -> Periods {
        let mut periods = Periods::default();
        begin(&mut periods, 1, 1000);
        for start in (1000..1000 + seconds).step_by(10) {
            assert!(periods.take(1, 1000, start, &census(start..start + 10), SAID));
        }
        periods
    }

    #[test]
    fn any_time_is_the_sum_of_its_periods() {
        let periods = told(100);
        let counted = periods.between(1020, 1060);
        assert_eq!((counted.since, counted.until, counted.is_complete), (1020, 1060, true));
        assert_eq!(counted.census, census(1020..1060));
        let counted = periods.between(1011, 1069);
        assert_eq!((counted.since, counted.until), (1020, 1060), "what is cut by an end is left out");
        assert!(!periods.between(990, 1020).is_complete, "before it lived");
        assert!(!periods.between(1050, 1110).is_complete, "not told yet");
        assert!(!periods.between(1050, 1050).is_complete && !periods.between(1060, 1050).is_complete);
        assert!(!Periods::default().between(1000, 1010).is_complete);
        assert_eq!(period_of(1019), 1010);
    }

    #[test]
    fn what_is_told_again_is_known() {
        let mut periods = told(100);
        let before = periods.clone();
        assert!(!periods.take(1, 1000, 1050, &census(1050..1060), SAID));
        assert!(!periods.take(1, 1000, 990, &Census::default(), SAID));
        assert_eq!(periods, before);
    }

    #[test]
    fn after_a_clean_end_nothing_is_missing() {
        let mut periods = told(100);
        // It ends in the period of 1100, and the next begins in the same one.
        assert!(periods.take(1, 1000, 1100, &census(1100..1103), ENDS));
        begin(&mut periods, 2, 1100);
        assert!(!periods.between(1090, 1110).is_complete, "the second has told nothing of it yet");
        assert!(periods.take(2, 1100, 1100, &census(1103..1110), SAID));
        let counted = periods.between(1090, 1110);
        assert_eq!((counted.is_complete, counted.census), (true, census(1090..1110)));
        assert!(periods.take(2, 1100, 1110, &Census::default(), ENDS));
        begin(&mut periods, 5, 1500);
        assert!(periods.take(5, 1500, 1500, &census(1500..1510), SAID));
        assert!(periods.between(1090, 1510).is_complete, "while none ran, none accepted anything");
    }

    #[test]
    fn a_crash_leaves_a_hole_up_to_the_period_the_next_life_began_in() {
        let mut periods = told(100);
        begin(&mut periods, 2, 1100);
        assert!(periods.take(2, 1100, 1100, &census(1105..1110), SAID));
        assert!(periods.take(2, 1100, 1110, &census(1110..1120), SAID));
        assert!(!periods.between(1090, 1110).is_complete, "what the first accepted from 1100 on is not known");
        assert!(periods.between(1110, 1120).is_complete && periods.between(1090, 1100).is_complete);
        // Killed before it told anything: that it lived is known all the same.
        begin(&mut periods, 3, 1120);
        begin(&mut periods, 4, 1130);
        assert!(periods.take(4, 1130, 1130, &Census::default(), SAID));
        assert!(periods.take(4, 1130, 1140, &Census::default(), SAID));
        assert!(!periods.between(1110, 1150).is_complete && periods.between(1140, 1150).is_complete);
    }

    #[test]
    fn a_clock_that_goes_back_takes_back_what_was_said_of_later_times() {
        let mut periods = told(100);
        assert!(periods.take(1, 1000, 1900, &census(1900..1901), SAID));
        assert!(periods.between(1200, 1900).is_complete);
        let back = Told { steps_back: true, ..SAID };
        assert!(periods.take(1, 1000, 1090, &Census::default(), back));
        assert!(!periods.take(1, 1000, 1090, &Census::default(), back), "known");
        assert!(!periods.between(1200, 1900).is_complete);
        assert!(periods.take(1, 1000, 1100, &census(1100..1110), SAID));
        assert_eq!(periods.between(1000, 1110).census, census(1000..1110));
    }

    #[test]
    fn what_could_not_be_counted_leaves_a_doubt() {
        let mut periods = told(100);
        let doubt = Told { in_doubt: true, ..SAID };
        assert!(periods.take(1, 1000, 1100, &Census::default(), doubt));
        assert!(!periods.take(1, 1000, 1100, &Census::default(), doubt));
        assert!(!periods.between(1090, 1110).is_complete && periods.between(1000, 1100).is_complete);
    }

    #[test]
    fn what_is_old_is_kept_in_wide_periods_and_then_forgotten() {
        let mut periods = told(6000);
        assert!(periods.periods.len() < 190, "{}", periods.periods.len());
        assert_eq!(periods.between(1200, 6600).census, census(1200..6600));
        let counted = periods.between(1250, 7000);
        assert_eq!((counted.since, counted.until, counted.is_complete), (1800, 7000, true));
        assert_eq!(counted.census, census(1800..7000));
        assert!(periods.take(1, 1000, 7000, &Census::default(), ENDS));
        assert!(periods.take(2, 1200, 1210, &census(9000..9001), SAID), "a late word of another life");
        assert_eq!(periods.between(1200, 1800).census.bag.count, 601);
        assert!(periods.take(2, 1200, 90_000, &Census::default(), SAID));
        assert_eq!(periods.periods.first_key_value().unwrap().0, &3600);
        assert!(periods.between(3600, 90_010).is_complete && !periods.between(3500, 90_010).is_complete);
        assert!(periods.take(9, 400_000, 400_000, &Census::default(), SAID));
        assert!(periods.periods.is_empty());
        assert_eq!(periods.lives.len(), 1);
    }

    #[test]
    fn absurd_times_bring_nobody_down() {
        let mut periods = told(100);
        for start in [u64::MAX, u64::MAX - 5, 0] {
            periods.take(3, u64::MAX, start, &census(0..1), SAID);
            let _ = periods.between(0, u64::MAX);
            let _ = periods.between(u64::MAX, u64::MAX);
        }
    }
}
