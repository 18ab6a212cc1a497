//! What came of it, second by second and in sum.

use std::collections::BTreeMap;

use serde::Serialize;

/// Everything seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The seed it was played with.
    pub seed: u64,
    /// In sum.
    pub summary: Summary,
    /// Second by second.
    pub rows: Vec<Row>,
}

/// In sum.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Requests of the outermost callers.
    pub offered: u64,
    /// Of those, answered well in time.
    pub good: u64,
    /// Of those, answered by what stands in: reduced, but answered.
    pub reduced: u64,
    /// Of those, failed, refused or late.
    pub failed: u64,
    /// `good / offered`.
    pub goodput_ratio: f64,
    /// Refusals by any layer, by rule.
    pub refused: BTreeMap<&'static str, u64>,
    /// Retries by any layer.
    pub retried: u64,
    /// Second copies of slow calls.
    pub hedged: u64,
    /// Calls that reached the dependency, those of kept calls among them.
    pub sent: u64,
    /// `sent / offered`.
    pub amplification: f64,
    /// Half of the good answers came sooner, in milliseconds.
    pub latency_p50_ms: f64,
    /// 99 of 100 did.
    pub latency_p99_ms: f64,
    /// How often a breaker opened, over all instances.
    pub opened: u64,
    /// When one first did, in seconds since the start.
    pub first_opened_s: Option<f64>,
    /// From the beginning of the first trouble to that, in seconds.
    pub to_open_s: Option<f64>,
    /// From the end of the last trouble until five seconds in a row had 95 % good answers; `None` if that never came.
    pub to_recover_s: Option<f64>,
    /// The most calls kept for later at the end of any second.
    pub kept_max: u32,
    /// Calls still kept at the end.
    pub kept_at_end: u32,
    /// From the end of the last trouble until nothing was kept any more; `None` if nothing was, or something still is.
    pub to_empty_s: Option<f64>,
}

/// One second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// Which one, from zero.
    pub second: u64,
    /// Requests that came in it.
    pub offered: u32,
    /// Requests answered well in it.
    pub good: u32,
    /// Requests answered by what stands in.
    pub reduced: u32,
    /// Requests that ended otherwise in it.
    pub failed: u32,
    /// Refusals by any layer in it, by rule.
    pub refused: BTreeMap<&'static str, u32>,
    /// Retries begun in it.
    pub retried: u32,
    /// Second copies of slow calls sent in it.
    pub hedged: u32,
    /// Calls that reached the dependency in it.
    pub sent: u32,
    /// Half of the good answers took less, in milliseconds; zero without any.
    pub latency_p50_ms: f64,
    /// 99 of 100 did.
    pub latency_p99_ms: f64,
    /// Breakers that are not closed, at its end.
    pub not_closed: u32,
    /// Calls waiting at the dependency, at its end.
    pub queued: u32,
    /// Calls kept for later, at its end.
    pub kept: u32,
}

/// The `share` quantile of some microseconds, in milliseconds.
pub(super) fn quantile_ms(sorted_us: &[u32], share: f64) -> f64 {
    let last = sorted_us.len().saturating_sub(1);
    let place = ((sorted_us.len() as f64 * share) as usize).min(last);
    sorted_us.get(place).map_or(0.0, |us| f64::from(*us) / 1_000.0)
}

/// From when on the requests of `rows` came right: the first second of five with 95 % good answers, at or after `from`.
pub(super) fn recovered_at(rows: &[Row], from: u64) -> Option<u64> {
    let is_right = |row: &Row| f64::from(row.good) >= 0.95 * f64::from(row.offered);
    let rows = rows.get(usize::try_from(from).ok()?..)?;
    rows.windows(5).find(|five| five.iter().all(is_right)).map(|five| five[0].second)
}

/// When nothing was kept any more, in seconds after `ends`; `None` if nothing ever was, or something is at the end.
pub(super) fn emptied_after(rows: &[Row], ends_s: f64) -> Option<f64> {
    let last = rows.iter().rfind(|row| row.kept > 0)?;
    let is_empty_after = rows.last().is_some_and(|row| row.kept == 0);
    is_empty_after.then(|| ((last.second + 1) as f64 - ends_s).max(0.0))
}
