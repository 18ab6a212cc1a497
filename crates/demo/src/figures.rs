//! From what a run left behind to the figures people compare. Pure: the same record gives the same figures.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::caller::{Called, Kind};
use crate::model::ModelError;
use crate::nodes::{Account, Entry, NodeSample, verdict};
use crate::schedule::{Fault, Trouble};
use crate::tally::{Handed, Row, Verdict, quantile, tally};

/// Which of the two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Run {
    /// The company as it was.
    Before,
    /// The same company, its calls through Seawall.
    After,
}

impl Run {
    /// Its heading.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "behind seawall",
        }
    }

    /// True if a fault means something in this run.
    #[must_use]
    pub fn feels(self, trouble: &Trouble) -> bool {
        self == Self::After || !matches!(trouble, Trouble::NodeKilled(_))
    }
}

/// A look at everything, taken a few times a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Milliseconds since the epoch.
    pub at_ms: u64,
    /// Events in the queue, ready or leased.
    pub queued: u64,
    /// Each node by zone; `None` while it is gone.
    pub nodes: Vec<(String, Option<NodeSample>)>,
}

/// Everything a run left behind.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which run.
    pub run: Run,
    /// When the schedule began, in milliseconds since the epoch.
    pub start_ms: u64,
    /// What the gateways handed over.
    pub handed: Vec<Handed>,
    /// What the warehouse holds.
    pub rows: Vec<Row>,
    /// Every call measured at its client.
    pub calls: Vec<Called>,
    /// Looks, by time.
    pub samples: Vec<Sample>,
    /// The faults as they were played, relative to the start.
    pub faults: Vec<Fault>,
    /// The nodes' ledgers; none before.
    pub accounts: Vec<Account>,
    /// The nodes' journals; none before.
    pub journal: Vec<Entry>,
    /// Seconds from the last event handed over until nothing was on its way any more; `None` if that was not reached.
    pub drained_after_s: Option<f64>,
}

/// The figures of one run, as `--json` shows them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Share of the clients' calls answered as promised: 2xx, whole, within two seconds. 0..1.
    pub availability_ratio: f64,
    /// Calls measured.
    pub calls: u64,
    /// Of those, not answered as promised.
    pub calls_failed: u64,
    /// Of those answered as promised, reduced answers (`Seawall-Degraded`).
    pub calls_degraded: u64,
    /// The same by what the call was for: a write spooled, an empty lease, an old or missing price, an
    /// acknowledgement not passed on.
    pub degraded_by_kind: BTreeMap<&'static str, u64>,
    /// Events the scanners had.
    pub generated: u64,
    /// Events a 2xx was given for.
    pub accepted: u64,
    /// Accepted, and whole in the warehouse.
    pub delivered: u64,
    /// Accepted, and nowhere.
    pub lost: u64,
    /// Rows beyond the first.
    pub duplicated: u64,
    /// Rows that are not what was handed over.
    pub corrupted: u64,
    /// Events no 2xx was given for.
    pub given_up: u64,
    /// Median of what the scanners' writes took, in milliseconds.
    pub latency_p50_ms: f64,
    /// 99th percentile of what the scanners' writes took, in milliseconds.
    pub latency_p99_ms: f64,
    /// Seconds from the first fault to the first signal; null if there was none.
    pub degraded_seen_after_s: Option<f64>,
    /// `balanced`, `imbalanced` or `unknown`.
    pub ledger: &'static str,
    /// Seconds from the last event until nothing was on its way any more; null if that was not reached.
    pub drained_after_s: Option<f64>,
}

/// What `--json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The seed of events, schedule and moods.
    pub seed: u64,
    /// The run without Seawall.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Figures>,
    /// The run behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Figures>,
    /// How good the predictions are.
    pub model: ModelError,
}

/// Of a hundred thousand calls, ten may go wrong.
pub const AVAILABILITY_PROMISED: f64 = 0.9999;

impl Figures {
    /// True if what Seawall promises held.
    #[must_use]
    pub fn promise_held(&self) -> bool {
        self.lost == 0
            && self.duplicated == 0
            && self.corrupted == 0
            && self.ledger == "balanced"
            && self.availability_ratio >= AVAILABILITY_PROMISED
    }
}

/// The figures, and when the records that went wrong were handed over.
#[must_use]
pub fn figures(record: &Record) -> (Figures, Verdict) {
    let verdict_of_rows = tally(&record.handed, &record.rows);
    let calls: Vec<&Called> = record.calls.iter().filter(|called| called.kind.is_call()).collect();
    let kept = calls.iter().filter(|called| called.kept).count();
    let writes = |called: &&&Called| called.kind == Kind::Write;
    let mut latencies: Vec<f64> = calls.iter().filter(writes).map(|called| called.took_ms).collect();
    let counts = &verdict_of_rows.tally;
    let figures = Figures {
        // Nothing asked is nothing promised and nothing kept: never shown as good.
        availability_ratio: kept as f64 / calls.len().max(1) as f64,
        calls: calls.len() as u64,
        calls_failed: (calls.len() - kept) as u64,
        calls_degraded: calls.iter().filter(|called| called.kept && called.degraded).count() as u64,
        degraded_by_kind: degraded_by_kind(&calls),
        generated: counts.generated,
        accepted: counts.accepted,
        delivered: counts.delivered,
        lost: counts.lost,
        duplicated: counts.duplicated,
        corrupted: counts.corrupted,
        given_up: counts.given_up,
        latency_p50_ms: round(quantile(&mut latencies, 0.5)),
        latency_p99_ms: round(quantile(&mut latencies, 0.99)),
        degraded_seen_after_s: seen_after_s(record),
        ledger: match record.run {
            Run::Before => "unknown",
            Run::After => verdict(&record.accounts),
        },
        drained_after_s: record.drained_after_s,
    };
    (figures, verdict_of_rows)
}

fn degraded_by_kind(calls: &[&Called]) -> BTreeMap<&'static str, u64> {
    let mut by_kind = BTreeMap::new();
    for called in calls.iter().filter(|called| called.kept && called.degraded) {
        *by_kind.entry(called.kind.name()).or_default() += 1;
    }
    by_kind
}

fn round(ms: f64) -> f64 {
    (ms * 100.0).round() / 100.0
}

/// The first signal after the first fault: the monitor's alert; a breaker that opened or a route that degraded, by a
/// node's journal; a reduced answer a client got.
fn seen_after_s(record: &Record) -> Option<f64> {
    let first_ms = record.start_ms + record.faults.iter().map(|fault| fault.at_ms).min()?;
    let told =
        |entry: &&Entry| matches!(entry.kind.as_str(), "breaker_opened" | "degraded_started" | "endpoint_unhealthy");
    let journal = record.journal.iter().filter(told).map(|entry| entry.at_ms);
    let alerts = record.calls.iter().filter(|called| called.kind == Kind::Alert).map(|called| called.at_ms);
    let answered = |called: &Called| called.at_ms + called.took_ms as u64;
    let answers = record.calls.iter().filter(|called| called.degraded).map(answered);
    let seen_ms = journal.chain(alerts).chain(answers).filter(|at_ms| *at_ms >= first_ms).min()?;
    Some((seen_ms - first_ms) as f64 / 1_000.0)
}

/// The table at the end.
#[must_use]
pub fn table(outcome: &Outcome) -> String {
    let runs: Vec<(&str, &Figures)> = [(Run::Before, &outcome.before), (Run::After, &outcome.after)]
        .into_iter()
        .filter_map(|(run, figures)| Some((run.name(), figures.as_ref()?)))
        .collect();
    let mut text = format!("{:<25}", "");
    for (name, _) in &runs {
        text += &format!("{name:<16}");
    }
    let mut text = format!("{}\n", text.trim_end());
    for (label, cell) in ROWS {
        let cells: String = runs.iter().map(|(_, figures)| format!("{:<16}", cell(figures))).collect();
        text += &format!("{}\n", format!("{label:<25}{cells}").trim_end());
    }
    text
}

type Cell = fn(&Figures) -> String;

/// The rows of the table, here and in the report.
pub const ROWS: [(&str, Cell); 11] = [
    ("available", |f| percent(f.availability_ratio)),
    ("records lost", |f| f.lost.to_string()),
    ("records duplicated", |f| f.duplicated.to_string()),
    ("records corrupted", |f| f.corrupted.to_string()),
    ("p99 latency", |f| milliseconds(f.latency_p99_ms)),
    ("first alert after", |f| f.degraded_seen_after_s.map_or("never".into(), |s| format!("{s:.1} s"))),
    ("p50 latency", |f| milliseconds(f.latency_p50_ms)),
    ("events accepted", |f| format!("{} of {}", f.accepted, f.generated)),
    ("given up by scanners", |f| f.given_up.to_string()),
    ("reduced answers", |f| f.calls_degraded.to_string()),
    ("ledger", |f| f.ledger.into()),
];

/// Rounded down, so that 100 % means all.
#[must_use]
pub fn percent(ratio: f64) -> String {
    format!("{:.2} %", (ratio * 10_000.0).floor() / 100.0)
}

fn milliseconds(ms: f64) -> String {
    if ms >= 1_000.0 { format!("{:.2} s", ms / 1_000.0) } else { format!("{ms:.1} ms") }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::schedule::Mood;
    use crate::tracking::digest;

    fn called(at_ms: u64, kind: Kind, took_ms: f64, kept: bool) -> Called {
        Called { at_ms, kind, took_ms, kept, tries: 1, status: if kept { 200 } else { 0 }, degraded: false }
    }

    /// A run of ten events in which one was lost, one doubled, one damaged and one given up.
    pub(crate) fn record(run: Run) -> Record {
        let handed: Vec<Handed> = (0..10)
            .map(|n| Handed {
                id: format!("S-{n}"),
                digest: digest(&[n]),
                accepted: n != 9,
                at_ms: 1_000_000 + u64::from(n),
            })
            .collect();
        let row = |n: usize| {
            let Handed { id, digest, at_ms, .. } = handed[n].clone();
            Row { at_ms, id, digest, eta_hours: 2.0, price_cents: None }
        };
        let mut rows: Vec<Row> = [0, 1, 2, 3, 4, 5, 6, 6, 7].map(row).into();
        rows[0].digest = "damaged".into();
        let mut calls: Vec<Called> =
            (0..10).map(|n| called(1_000_000 + n * 400, Kind::Write, n as f64 + 1.0, n != 9)).collect();
        calls.push(Called { degraded: true, status: 202, ..called(1_003_000, Kind::Predict, 5.0, true) });
        calls.push(called(1_002_000, Kind::Drop, 0.0, false));
        let node = NodeSample { spooled: 4, parked: 0, breakers: vec![("events".into(), "open".into())] };
        let sample = |at_ms| Sample {
            at_ms,
            queued: 3,
            nodes: vec![("us-east".into(), Some(node.clone())), ("us-west".into(), None)],
        };
        let fault = |at_ms, trouble| Fault { at_ms, for_ms: 1_000, trouble };
        Record {
            run,
            start_ms: 1_000_000,
            handed,
            rows,
            calls,
            samples: (0..16).map(|n| sample(1_000_000 + n * 250)).collect(),
            faults: vec![
                fault(2_000, Trouble::Queue(Mood::BrownOut)),
                fault(3_000, Trouble::NodeKilled("us-east".into())),
            ],
            accounts: vec![Account {
                node: "us-east".into(),
                verdict: "balanced".into(),
                streams: vec![serde_json::json!({"stream": "events", "epoch": 1, "accepted": 9, "lost": 0})],
            }],
            journal: vec![Entry {
                node: "us-east".into(),
                at_ms: 1_002_500,
                kind: "breaker_opened".into(),
                subject: "events".into(),
            }],
            drained_after_s: Some(1.5),
        }
    }

    #[test]
    fn figures_come_from_what_was_left_behind() {
        let (figures, _) = figures(&record(Run::After));
        assert_eq!((figures.lost, figures.duplicated, figures.corrupted, figures.given_up), (1, 1, 1, 1));
        assert_eq!((figures.calls, figures.calls_failed, figures.calls_degraded), (11, 1, 1));
        assert_eq!(figures.degraded_by_kind, BTreeMap::from([("predict", 1)]));
        assert_eq!((figures.latency_p50_ms, figures.latency_p99_ms), (5.0, 10.0));
        assert_eq!((figures.degraded_seen_after_s, figures.ledger), (Some(0.5), "balanced"));
        assert!(!figures.promise_held());
    }

    #[test]
    fn a_promise_is_kept_only_whole() {
        let (mut good, _) = figures(&record(Run::After));
        (good.lost, good.duplicated, good.corrupted, good.availability_ratio) = (0, 0, 0, 1.0);
        assert!(good.promise_held());
        let spoils: [fn(&mut Figures); 5] = [
            |f| f.lost = 1,
            |f| f.duplicated = 1,
            |f| f.corrupted = 1,
            |f| f.ledger = "unknown",
            |f| f.availability_ratio = 0.9998,
        ];
        for spoil in spoils {
            let mut spoiled = good.clone();
            spoil(&mut spoiled);
            assert!(!spoiled.promise_held(), "{spoiled:?}");
        }
    }

    #[test]
    fn before_there_is_no_ledger_and_perhaps_no_alert() {
        let mut before = record(Run::Before);
        before.journal.clear();
        before.calls.retain(|called| !called.degraded);
        let told = figures(&before).0;
        assert_eq!((told.degraded_seen_after_s, told.ledger), (None, "unknown"));
        before.calls.push(called(1_009_000, Kind::Alert, 0.0, false));
        assert_eq!(figures(&before).0.degraded_seen_after_s, Some(7.0));
        assert!(!Run::Before.feels(&Trouble::NodeKilled("x".into())) && Run::Before.feels(&Trouble::Surge));
    }

    #[test]
    fn the_table_has_both_runs_side_by_side() {
        let of = |run| Some(figures(&record(run)).0);
        let outcome = Outcome { seed: 7, before: of(Run::Before), after: of(Run::After), model: ModelError::default() };
        let text = table(&outcome);
        assert!(text.starts_with("                         before          behind seawall\navailable "), "{text}");
        assert!(text.contains("records lost             1               1\n"), "{text}");
        assert!(text.contains("ledger                   unknown         balanced\n"), "{text}");
        let json = serde_json::to_value(&outcome).unwrap();
        assert_eq!((json["after"]["ledger"].as_str(), json["before"]["lost"].as_u64()), (Some("balanced"), Some(1)));
    }

    #[test]
    fn percents_are_rounded_down_and_latencies_have_units() {
        assert_eq!((percent(1.0), percent(0.99999)), ("100.00 %".into(), "99.99 %".into()));
        assert_eq!((milliseconds(1_234.0), milliseconds(3.21)), ("1.23 s".into(), "3.2 ms".into()));
    }
}
