//! Seconds that are alike, as one line: what a person wants to see of an hour is where it changes.

use std::collections::BTreeMap;
use std::time::Duration;

use seawall_core::whatif::{Row, Trouble};

/// Lines at most; where more would be needed, less is called a change.
const SPANS_MAX: usize = 32;

/// Some seconds in a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    /// The first of them.
    pub(super) first: u64,
    /// How many.
    pub(super) seconds: u64,
    /// Requests a second.
    pub(super) offered: f64,
    /// Good answers a second.
    pub(super) good: f64,
    /// Answers of what stands in, a second.
    pub(super) reduced: f64,
    /// Calls that reached the dependency, a second.
    pub(super) sent: f64,
    /// Retries a second.
    pub(super) retried: f64,
    /// Refusals a second, by rule.
    pub(super) refused: BTreeMap<&'static str, f64>,
    /// The mean of the seconds' medians, in milliseconds, those without an answer left out.
    pub(super) p50_ms: f64,
    /// The worst of the seconds' 99th percentiles.
    pub(super) p99_ms: f64,
    /// Breakers not closed, at most.
    pub(super) not_closed: u32,
    /// Calls waiting at the dependency, at most.
    pub(super) queued: u32,
    /// Calls kept for later, at most.
    pub(super) kept: u32,
    /// Which of the troubles, by their place in the scenario.
    pub(super) troubles: Vec<usize>,
    answered_seconds: u64,
}

/// The rows as spans.
pub(super) fn fold(rows: &[Row], troubles: &[Trouble]) -> Vec<Span> {
    let mut tolerance = 0.1;
    loop {
        let spans = fold_with(rows, troubles, tolerance);
        if spans.len() <= SPANS_MAX || tolerance > 100.0 {
            return spans;
        }
        tolerance *= 1.5;
    }
}

fn fold_with(rows: &[Row], troubles: &[Trouble], tolerance: f64) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for row in rows {
        let now = active(troubles, row.second);
        match spans.last_mut() {
            Some(span) if span.is_like(row, &now, tolerance) => span.add(row),
            _ => spans.push(Span::of(row, now)),
        }
    }
    spans
}

/// Which troubles ail the dependency in any part of this second.
fn active(troubles: &[Trouble], second: u64) -> Vec<usize> {
    let (from, until) = (Duration::from_secs(second), Duration::from_secs(second + 1));
    let in_it = |(_, trouble): &(usize, &Trouble)| trouble.from < until && from < trouble.until;
    troubles.iter().enumerate().filter(in_it).map(|(place, _)| place).collect()
}

impl Span {
    fn of(row: &Row, troubles: Vec<usize>) -> Self {
        Self {
            first: row.second,
            seconds: 1,
            offered: row.offered.into(),
            good: row.good.into(),
            reduced: row.reduced.into(),
            sent: row.sent.into(),
            retried: row.retried.into(),
            refused: row.refused.iter().map(|(rule, count)| (*rule, f64::from(*count))).collect(),
            p50_ms: row.latency_p50_ms,
            p99_ms: row.latency_p99_ms,
            not_closed: row.not_closed,
            queued: row.queued,
            kept: row.kept,
            troubles,
            answered_seconds: u64::from(row.good > 0),
        }
    }

    fn add(&mut self, row: &Row) {
        let before = self.seconds as f64;
        let mean = |old: f64, new: u32| (old * before + f64::from(new)) / (before + 1.0);
        self.offered = mean(self.offered, row.offered);
        self.good = mean(self.good, row.good);
        self.reduced = mean(self.reduced, row.reduced);
        self.sent = mean(self.sent, row.sent);
        self.retried = mean(self.retried, row.retried);
        for rule in row.refused.keys() {
            self.refused.entry(rule).or_default();
        }
        for (rule, count) in &mut self.refused {
            *count = mean(*count, row.refused.get(rule).copied().unwrap_or(0));
        }
        if row.good > 0 {
            let answered = self.answered_seconds as f64;
            self.p50_ms = (self.p50_ms * answered + row.latency_p50_ms) / (answered + 1.0);
            self.answered_seconds += 1;
        }
        self.p99_ms = self.p99_ms.max(row.latency_p99_ms);
        self.not_closed = self.not_closed.max(row.not_closed);
        self.queued = self.queued.max(row.queued);
        self.kept = self.kept.max(row.kept);
        self.seconds += 1;
    }

    /// True if nothing a reader would care about has changed. What is compared are shares of the requests, with room
    /// for what chance does to small numbers.
    fn is_like(&self, row: &Row, troubles: &[usize], tolerance: f64) -> bool {
        let offered = self.offered.max(f64::from(row.offered)).max(1.0);
        let chance = 1.5 / offered.sqrt();
        let share = |count: f64, of: f64| count / of.max(1.0);
        let row_share = |count: u32| share(count.into(), row.offered.into());
        // Of one or two requests a second shares say nothing.
        let few = self.offered.min(row.offered.into()) < 3.0;
        let near = |mine: f64, theirs: u32| match few {
            true => (mine - f64::from(theirs)).abs() <= 4.0,
            false => (share(mine, self.offered) - row_share(theirs)).abs() <= tolerance + chance,
        };
        let rules = self.refused.keys().chain(row.refused.keys());
        let mut refused = rules.map(|rule| (self.refused.get(rule).copied(), row.refused.get(rule).copied()));
        // A breaker that flaps for an hour is one line in the end, not thousands.
        let same_breakers = tolerance > 1.0 || self.not_closed == row.not_closed;
        let traffic = (self.offered - f64::from(row.offered)).abs();
        let queue = self.queued.abs_diff(row.queued);
        same_breakers
            && self.troubles == troubles
            && traffic <= (offered * 2.0 * tolerance).max(4.0 * offered.sqrt())
            && near(self.good, row.good)
            && near(self.reduced, row.reduced)
            && (self.kept > 0) == (row.kept > 0)
            && near(self.sent, row.sent)
            && refused.all(|(mine, theirs)| near(mine.unwrap_or(0.0), theirs.unwrap_or(0)))
            && f64::from(queue) <= (f64::from(self.queued.max(row.queued)) * 5.0 * tolerance).max(10.0)
            && self.is_as_fast_as(row, tolerance)
    }

    /// Medians within a factor; of few answers they say nothing.
    fn is_as_fast_as(&self, row: &Row, tolerance: f64) -> bool {
        if self.good < 10.0 || row.good < 10 || self.p50_ms <= 0.0 || row.latency_p50_ms <= 0.0 {
            return true;
        }
        let factor = self.p50_ms / row.latency_p50_ms;
        factor.max(1.0 / factor) <= 1.0 + 5.0 * tolerance + 4.0 / self.good.min(row.good.into()).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use seawall_core::whatif::Ailment;

    use super::*;

    fn row(second: u64, offered: u32, good: u32) -> Row {
        Row { second, offered, good, sent: offered, latency_p50_ms: 20.0, latency_p99_ms: 80.0, ..Row::default() }
    }

    #[test]
    fn seconds_alike_are_one_and_their_means_are_told() {
        let rows: Vec<Row> = (0..100).map(|second| row(second, 95 + (second % 10) as u32, 95)).collect();
        let spans = fold(&rows, &[]);
        assert_eq!((spans.len(), spans[0].seconds, spans[0].good), (1, 100, 95.0));
        assert!((spans[0].offered - 99.5).abs() < 1e-9 && (spans[0].p50_ms - 20.0).abs() < 1e-9);
        assert!(fold(&[], &[]).is_empty());
    }

    #[test]
    fn a_change_of_answers_refusals_breakers_or_health_begins_a_new_one() {
        let mut rows: Vec<Row> = (0..60).map(|second| row(second, 100, 100)).collect();
        for row in &mut rows[10..20] {
            (row.good, row.sent) = (0, 10);
            row.refused.insert("breaker", 90);
            row.not_closed = 1;
        }
        rows[15].refused.insert("budget", 1);
        rows[30].latency_p50_ms = 200.0;
        let secs = Duration::from_secs;
        let trouble = |from, until| Trouble { from: secs(from), until: secs(until), ailment: Ailment::Down };
        let spans = fold(&rows, &[trouble(9, 20), trouble(40, 41)]);
        let seen: Vec<(u64, u64)> = spans.iter().map(|span| (span.first, span.seconds)).collect();
        assert_eq!(seen, [(0, 9), (9, 1), (10, 10), (20, 10), (30, 1), (31, 9), (40, 1), (41, 19)]);
        assert_eq!((spans[2].refused["breaker"], spans[2].refused["budget"]), (90.0, 0.1));
        assert_eq!((spans[2].troubles.as_slice(), spans[6].troubles.as_slice()), (&[0][..], &[1][..]));
        assert_eq!(spans.iter().map(|span| span.seconds).sum::<u64>(), 60, "no second is left out");
    }

    #[test]
    fn a_quiet_route_is_not_told_second_by_second() {
        let count = |second: u64| [3, 0, 4, 1, 2, 6][(second % 6) as usize];
        let rows: Vec<Row> = (0..60).map(|second| row(second, count(second), count(second))).collect();
        assert_eq!(fold(&rows, &[]).len(), 1);
    }

    #[test]
    fn an_hour_of_flapping_stays_readable() {
        let flap = |second: u64| {
            let good = if second.is_multiple_of(2) { 100 } else { 0 };
            Row { not_closed: u32::from(good == 0), ..row(second, 100, good) }
        };
        let rows: Vec<Row> = (0..3_600).map(flap).collect();
        let spans = fold(&rows, &[]);
        assert!(spans.len() <= SPANS_MAX, "{}", spans.len());
        assert_eq!(spans.iter().map(|span| span.seconds).sum::<u64>(), 3_600);
    }
}
