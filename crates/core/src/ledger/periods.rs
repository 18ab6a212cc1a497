//! The census of one stream over time: fine periods for what is recent, wide ones for what is older, nothing for ever.
//!
//! What was accepted in a period of ten seconds is one census, written to the log when the period is over. After a crash
//! the period that was open is not known: each life of the node says from when to when it has told everything, and an
//! answer over a time that no life covers says so.

use std::collections::BTreeMap;

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
    /// From when to when each life has told everything, in seconds since 1970.
    lives: BTreeMap<u64, Cover>,
    /// By the second they begin.
    periods: BTreeMap<u64, Period>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cover {
    since: u64,
    until: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Period {
    seconds: u64,
    census: Census,
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
    /// Takes a period of a life in. False if it is known.
    pub(super) fn take(&mut self, life: u64, since: u64, start: u64, census: &Census) -> bool {
        let until = start.saturating_add(PERIOD_S);
        let cover = self.lives.entry(life).or_insert(Cover { since, until: 0 });
        if until <= cover.until {
            return false;
        }
        cover.until = until;
        if census.bag.count > 0 {
            let wide = start - start % WIDE_S;
            // What it belongs to may have been added up already: another life, long ago.
            let at = if self.periods.get(&wide).is_some_and(|period| period.seconds == WIDE_S) { wide } else { start };
            let period = Period { seconds: PERIOD_S, census: Census::default() };
            self.periods.entry(at).or_insert(period).census.add(census);
        }
        self.grow_old(until);
        true
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

    fn covers(&self, since: u64, until: u64) -> bool {
        let mut covers: Vec<Cover> = self.lives.values().copied().collect();
        covers.sort_unstable_by_key(|cover| cover.since);
        let mut told = since;
        for cover in covers.iter().filter(|cover| cover.until > since) {
            if cover.since > told {
                break;
            }
            told = told.max(cover.until);
        }
        since < until && told >= until
    }

    fn grow_old(&mut self, now: u64) {
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
        self.lives.retain(|_, cover| {
            cover.since = cover.since.max(forgotten);
            cover.until > forgotten
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

    /// A life from 1000 on that accepts one key a second, told every ten.
    fn told(seconds: u64) -> Periods {
        let mut periods = Periods::default();
        for start in (1000..1000 + seconds).step_by(10) {
            assert!(periods.take(1, 1000, start, &census(start..start + 10)));
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
        assert_eq!(period_of(1019), 1010);
    }

    #[test]
    fn what_is_told_again_is_known() {
        let mut periods = told(100);
        let before = periods.clone();
        assert!(!periods.take(1, 1000, 1050, &census(1050..1060)));
        assert_eq!(periods, before);
    }

    #[test]
    fn lives_that_follow_one_another_cover_and_a_crash_leaves_a_hole() {
        let mut periods = told(100);
        assert!(periods.take(2, 1100, 1090, &census(5000..5001)), "the next life, in the same period");
        assert!(periods.take(2, 1100, 1100, &census(1100..1110)));
        let counted = periods.between(1080, 1110);
        assert!(counted.is_complete);
        assert_eq!(counted.census.bag.count, 31);
        assert!(periods.take(4, 1150, 1150, &census(1150..1160)));
        assert!(!periods.between(1080, 1160).is_complete);
        assert!(periods.between(1150, 1160).is_complete);
    }

    #[test]
    fn what_is_old_is_kept_in_wide_periods_and_then_forgotten() {
        let mut periods = told(6000);
        assert!(periods.periods.len() < 190, "{}", periods.periods.len());
        assert_eq!(periods.between(1200, 6600).census, census(1200..6600));
        let counted = periods.between(1250, 7000);
        assert_eq!((counted.since, counted.until, counted.is_complete), (1800, 7000, true));
        assert_eq!(counted.census, census(1800..7000));
        assert!(periods.take(2, 7000, 1210, &census(9000..9001)), "a late word of another life");
        assert_eq!(periods.between(1200, 1800).census.bag.count, 601);
        assert!(periods.take(1, 1000, 90_000, &Census::default()));
        assert_eq!(periods.periods.first_key_value().unwrap().0, &3600);
        assert!(periods.between(3600, 90_010).is_complete && !periods.between(3500, 90_010).is_complete);
        assert!(periods.take(9, 400_000, 400_000, &Census::default()));
        assert!(periods.periods.is_empty());
        assert_eq!(periods.lives.len(), 1);
    }

    #[test]
    fn absurd_times_bring_nobody_down() {
        let mut periods = told(100);
        for start in [u64::MAX, u64::MAX - 5, 0] {
            periods.take(3, u64::MAX, start, &census(0..1));
            let _ = periods.between(0, u64::MAX);
            let _ = periods.between(u64::MAX, u64::MAX);
        }
    }
}
