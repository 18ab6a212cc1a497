//! The counting: the warehouse's rows against the manifests of those who handed the events over. Pure functions; who
//! wants to check the demo's verdict reads this file.
//!
//! For each business id handed over, with *m* rows in the warehouse:
//! - **lost**: it was accepted (the gateway got a 2xx) and there is no row.
//! - **corrupted**: a row whose digest of the event's line is not the one handed over. Such a record is not also lost.
//!   A row whose id was never handed over is a damaged one too (`corrupted_unattributed`): some record became it, so
//!   each takes one off the lost.
//! - **duplicated**: rows beyond the first, of any id. Two rows, one of them damaged: one duplicated, one corrupted.
//! - **delivered**: accepted, and at least one row is whole.
//! - **given up**: never accepted; the gateway dropped it after its tries. Not counted as lost, because nobody promised
//!   anything; it lowers the availability. Some of these arrive all the same (`surprises`).
//!
//! So accepted = delivered + lost + damaged only, and that is asserted.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// A line of a manifest: what a gateway handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// Business id.
    pub id: String,
    /// SHA-256 of the event's line, hex.
    pub digest: String,
    /// A 2xx came back.
    pub accepted: bool,
    /// When it was handed over, in milliseconds since the epoch.
    pub at_ms: u64,
}

impl Handed {
    /// Its line.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{},{},{},{}\n", self.id, self.digest, self.accepted, self.at_ms)
    }
}

impl FromStr for Handed {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let fields: Vec<&str> = line.split(',').collect();
        let [id, digest, accepted, at_ms] = fields[..] else { anyhow::bail!("not a line of a manifest: `{line}`") };
        let (id, digest) = (id.into(), digest.into());
        Ok(Self { id, digest, accepted: accepted.parse().context("accepted")?, at_ms: at_ms.parse().context("time")? })
    }
}

/// A row of the warehouse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// When it was written, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Business id, as it arrived.
    pub id: String,
    /// SHA-256 of the event's line as it arrived, hex.
    pub digest: String,
    /// The predicted hours.
    pub eta_hours: f64,
    /// The carrier's price, if there was one.
    pub price_cents: Option<u64>,
}

/// The counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Events the scanners had.
    pub generated: u64,
    /// Events a 2xx was given for.
    pub accepted: u64,
    /// Accepted and in the warehouse, whole.
    pub delivered: u64,
    /// Accepted and nowhere.
    pub lost: u64,
    /// Rows beyond the first.
    pub duplicated: u64,
    /// Rows that are not what was handed over.
    pub corrupted: u64,
    /// Of those, rows whose id was never handed over.
    pub corrupted_unattributed: u64,
    /// Never accepted.
    pub given_up: u64,
    /// Never accepted, and in the warehouse all the same.
    pub surprises: u64,
}

/// The counts and who is behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The counts.
    pub tally: Tally,
    /// When each lost record was handed over.
    pub lost_at_ms: Vec<u64>,
    /// When each record with a row too many was handed over.
    pub duplicated_at_ms: Vec<u64>,
    /// When each damaged record was handed over.
    pub corrupted_at_ms: Vec<u64>,
}

#[derive(Default)]
struct Rows {
    whole: u64,
    damaged: u64,
}

/// Compares rows with manifests.
///
/// # Panics
/// When the counts do not add up: then the counting itself is wrong and no figure must be shown.
#[must_use]
pub fn tally(handed: &[Handed], rows: &[Row]) -> Verdict {
    let known: BTreeMap<&str, &Handed> = handed.iter().map(|handed| (handed.id.as_str(), handed)).collect();
    assert_eq!(known.len(), handed.len(), "a business id was handed over twice by different events");
    let mut found: BTreeMap<&str, Rows> = BTreeMap::new();
    let mut verdict = Verdict::default();
    for row in rows {
        let rows = found.entry(&row.id).or_default();
        match known.get(row.id.as_str()) {
            Some(handed) if handed.digest == row.digest => rows.whole += 1,
            Some(_) => rows.damaged += 1,
            None => verdict.tally.corrupted_unattributed += 1,
        }
    }
    let mut damaged_only = 0;
    for handed in handed {
        let rows = found.remove(handed.id.as_str()).unwrap_or_default();
        verdict.count(handed, &rows);
        damaged_only += u64::from(handed.accepted && rows.whole == 0 && rows.damaged > 0);
    }
    let counts = &mut verdict.tally;
    let explained = counts.corrupted_unattributed.min(counts.lost);
    counts.corrupted += counts.corrupted_unattributed;
    counts.lost -= explained;
    assert_eq!(counts.accepted, counts.delivered + counts.lost + damaged_only + explained, "the counts do not add up");
    verdict
}

impl Verdict {
    fn count(&mut self, handed: &Handed, rows: &Rows) {
        let counts = &mut self.tally;
        let arrived = rows.whole + rows.damaged;
        counts.generated += 1;
        counts.duplicated += arrived.saturating_sub(1);
        counts.corrupted += rows.damaged;
        self.duplicated_at_ms.extend((arrived > 1).then_some(handed.at_ms));
        self.corrupted_at_ms.extend((rows.damaged > 0).then_some(handed.at_ms));
        if handed.accepted {
            counts.accepted += 1;
            counts.delivered += u64::from(rows.whole > 0);
            counts.lost += u64::from(arrived == 0);
            self.lost_at_ms.extend((arrived == 0).then_some(handed.at_ms));
        } else {
            counts.given_up += 1;
            counts.surprises += u64::from(arrived > 0);
        }
    }
}

/// The value below which `share` of the values lie (nearest rank); 0 for none.
#[must_use]
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use seawall_core::prng::Prng;

    fn handed(number: u64, accepted: bool) -> Handed {
        Handed { id: format!("S-{number}"), digest: format!("d{number}"), accepted, at_ms: number }
    }

    fn row(number: u64) -> Row {
        Row { at_ms: 0, id: format!("S-{number}"), digest: format!("d{number}"), eta_hours: 1.0, price_cents: None }
    }

    fn damaged(number: u64) -> Row {
        Row { digest: "other".into(), ..row(number) }
    }

    #[test]
    fn every_class_is_counted_once() {
        let manifest = [1, 2, 3, 4, 5].map(|number| handed(number, number != 5));
        let rows = [row(1), row(2), row(2), damaged(3), row(5)];
        let verdict = tally(&manifest, &rows);
        let counts = Tally {
            generated: 5,
            accepted: 4,
            delivered: 2,
            lost: 1,
            duplicated: 1,
            corrupted: 1,
            given_up: 1,
            surprises: 1,
            ..Tally::default()
        };
        assert_eq!(verdict.tally, counts);
        assert_eq!(
            (verdict.lost_at_ms, verdict.duplicated_at_ms, verdict.corrupted_at_ms),
            (vec![4], vec![2], vec![3])
        );
    }

    #[test]
    fn a_damaged_row_of_a_delivered_record_is_one_too_many_and_corrupted() {
        let counts = tally(&[handed(1, true)], &[damaged(1), row(1)]).tally;
        assert_eq!((counts.delivered, counts.lost, counts.duplicated, counts.corrupted), (1, 0, 1, 1));
    }

    #[test]
    fn a_row_nobody_handed_over_takes_one_off_the_lost() {
        let counts = tally(&[handed(1, true), handed(2, true)], &[row(1), row(99)]).tally;
        assert_eq!((counts.lost, counts.corrupted, counts.corrupted_unattributed), (0, 1, 1));
        let counts = tally(&[handed(1, true)], &[row(1), row(99)]).tally;
        assert_eq!((counts.lost, counts.corrupted, counts.delivered), (0, 1, 1));
    }

    #[test]
    #[should_panic(expected = "handed over twice")]
    fn an_id_handed_over_twice_spoils_the_count() {
        let _ = tally(&[handed(1, true), handed(1, true)], &[]);
    }

    #[test]
    fn planted_faults_are_found_exactly() {
        for seed in 0..1_000 {
            let mut prng = Prng::new(seed);
            let (mut manifest, mut rows, mut planted) = (Vec::new(), Vec::new(), Tally::default());
            for number in 0..prng.below(60) {
                let accepted = prng.chance(0.9);
                manifest.push(handed(number, accepted));
                planted.generated += 1;
                planted.accepted += u64::from(accepted);
                planted.given_up += u64::from(!accepted);
                let (whole, broken) = (prng.below(3), u64::from(prng.chance(0.2)));
                rows.extend((0..whole).map(|_| row(number)));
                rows.extend((0..broken).map(|_| damaged(number)));
                planted.duplicated += (whole + broken).saturating_sub(1);
                planted.corrupted += broken;
                planted.delivered += u64::from(accepted && whole > 0);
                planted.lost += u64::from(accepted && whole + broken == 0);
                planted.surprises += u64::from(!accepted && whole + broken > 0);
            }
            assert_eq!(tally(&manifest, &rows).tally, planted, "seed {seed}");
        }
    }

    #[test]
    fn manifest_lines_come_back() {
        let line = handed(3, true).line();
        assert_eq!(line.trim_end().parse::<Handed>().unwrap(), handed(3, true));
        for bad in ["", "a,b,c,d", "a,b,true,x"] {
            assert!(bad.parse::<Handed>().is_err());
        }
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        assert_eq!(quantile(&mut [], 0.5), 0.0);
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            (quantile(&mut values, 0.5), quantile(&mut values, 0.99), quantile(&mut values, 1.0)),
            (50.0, 99.0, 100.0)
        );
        assert_eq!(quantile(&mut values, 0.0), 1.0);
    }
}
