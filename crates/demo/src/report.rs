//! `report.html`: one self-contained page, drawn here, that opens offline, on a phone, in light and in dark.
//!
//! Both runs are drawn on the same time axis: the faults as bands, and over them what the clients got each second, how
//! long the scanners' writes took, what waited in the queue and in the spools, the breakers of every node, and marks
//! where the records that went wrong were handed over. Below: what each fault did, the ledgers, the model.
//! Nothing is fetched and no script runs. Not here: any counting (`tally.rs`, `figures.rs`).

use std::fmt::Write as _;

use serde_json::Value;

use crate::caller::{Called, Kind};
use crate::figures::{Figures, Outcome, ROWS, Record, Run, figures, percent};
use crate::schedule::Fault;
use crate::tally::{Verdict, quantile};

/// The drawing's width and the room for labels at its left, in its own units.
const WIDTH: f64 = 760.0;
const LEFT: f64 = 74.0;
const BUCKET_MS: u64 = 1_000;

/// The page for these runs (one or two).
#[must_use]
pub fn page(outcome: &Outcome, records: &[&Record]) -> String {
    let axis = Axis::over(records);
    let counted: Vec<Counted<'_>> = records.iter().map(|record| Counted::of(record)).collect();
    let mut body = String::new();
    headline(&mut body, outcome);
    figures_table(&mut body, outcome);
    body += LEGEND;
    for run in &counted {
        timeline(&mut body, run, &axis);
    }
    faults_table(&mut body, &counted);
    ledger_table(&mut body, records);
    model_section(&mut body, outcome);
    body += HOW_COUNTED;
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Seawall demo, seed {}</title><style>{STYLE}</style></head>\n<body><main>\n{body}</main></body></html>\n",
        outcome.seed
    )
}

/// A run and what the counting said about it.
struct Counted<'a> {
    record: &'a Record,
    verdict: Verdict,
}

impl<'a> Counted<'a> {
    fn of(record: &'a Record) -> Self {
        Self { record, verdict: figures(record).1 }
    }
}

/// Time to the right, the same for all runs.
struct Axis {
    end_ms: u64,
}

impl Axis {
    fn over(records: &[&Record]) -> Self {
        let end = |record: &&Record| {
            let sampled = record.samples.last().map_or(0, |sample| sample.at_ms.saturating_sub(record.start_ms));
            record.faults.iter().map(Fault::end_ms).max().unwrap_or(0).max(sampled)
        };
        Self { end_ms: records.iter().map(end).max().unwrap_or(0).max(1_000) }
    }

    fn x(&self, at_ms: u64) -> f64 {
        LEFT + (WIDTH - LEFT - 6.0) * at_ms.min(self.end_ms) as f64 / self.end_ms as f64
    }
}

/// `write!` into a String, which takes everything.
macro_rules! put {
    ($into:expr, $($argument:tt)*) => { write!($into, $($argument)*).expect("a String takes everything") };
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn headline(page: &mut String, outcome: &Outcome) {
    let (class, words) = match &outcome.after {
        Some(after) if after.promise_held() => ("good", "What Seawall promises held."),
        Some(_) => ("bad", "What Seawall promises did not hold in this run."),
        None => ("", "Only the run before Seawall was played."),
    };
    put!(
        page,
        "<h1>The same hour of trouble, twice</h1>\n<p class=\"verdict {class}\">{words}</p>\n\
         <p>A logistics company of real processes on one machine, seed {}. Every figure was measured in this run: \
         arrivals by the warehouse's own rows against the scanners' own manifests, availability and latency by the \
         clients.</p>\n",
        outcome.seed
    );
}

fn figures_table(page: &mut String, outcome: &Outcome) {
    let runs: Vec<(Run, &Figures)> = [(Run::Before, &outcome.before), (Run::After, &outcome.after)]
        .into_iter()
        .filter_map(|(run, figures)| Some((run, figures.as_ref()?)))
        .collect();
    page.push_str("<div class=\"wide\"><table><thead><tr><th></th>");
    for (run, _) in &runs {
        put!(page, "<th>{}</th>", run.name());
    }
    page.push_str("</tr></thead><tbody>\n");
    for (label, cell) in ROWS {
        put!(page, "<tr><th>{label}</th>");
        for (_, figures) in &runs {
            put!(page, "<td>{}</td>", escape(&cell(figures)));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

const LEGEND: &str = "<p class=\"legend\"><i class=\"kept\"></i>answered as promised <i class=\"reduced\"></i>reduced, \
    marked as such <i class=\"failed\"></i>failed, late or cut <i class=\"p99\"></i>p99 <i class=\"p50\"></i>median \
    <i class=\"queue\"></i>in the queue <i class=\"spool\"></i>in the spools <i class=\"open\"></i>breaker open \
    <i class=\"half\"></i>half-open <i class=\"gone\"></i>node gone</p>\n";

/// The drawing of one run: lanes from top to bottom, faults as bands behind all of them.
fn timeline(page: &mut String, run: &Counted<'_>, axis: &Axis) {
    let record = run.record;
    let mut drawing = String::new();
    let mut top = 22.0;
    for lane in [answers_lane, latency_lane, waiting_lane, records_lane] {
        top = lane(&mut drawing, run, axis, top) + 16.0;
    }
    top = breakers_lane(&mut drawing, record, axis, top);
    let mut bands = String::new();
    fault_bands(&mut bands, record, axis, top);
    time_marks(&mut drawing, axis, top);
    put!(
        page,
        "<h2>{}</h2>\n<div class=\"wide\"><svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"time line of \
         the run {}\">\n{bands}{drawing}</svg></div>\n",
        record.run.name(),
        top + 18.0,
        record.run.name()
    );
}

fn fault_bands(page: &mut String, record: &Record, axis: &Axis, bottom: f64) {
    for (index, fault) in record.faults.iter().enumerate() {
        let (left, right) = (axis.x(fault.at_ms), axis.x(fault.end_ms()));
        let felt = if record.run.feels(&fault.trouble) { "" } else { " unfelt" };
        // Bands may overlap; every other number stands a line higher.
        let number_y = if index % 2 == 0 { 10.0 } else { 19.0 };
        put!(
            page,
            "<g><title>{}. {}</title><rect class=\"band{felt}\" x=\"{left:.1}\" y=\"20\" width=\"{:.1}\" \
             height=\"{:.1}\"/><text x=\"{left:.1}\" y=\"{number_y}\" class=\"number\">{}</text></g>\n",
            index + 1,
            escape(&fault.trouble.to_string()),
            (right - left).max(1.0),
            bottom - 20.0,
            index + 1
        );
    }
}

fn time_marks(page: &mut String, axis: &Axis, bottom: f64) {
    for second in (0..=axis.end_ms / 1_000).step_by(5) {
        let x = axis.x(second * 1_000);
        put!(page, "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"20\" y2=\"{bottom:.1}\"/>");
        put!(page, "<text x=\"{x:.1}\" y=\"{:.1}\" class=\"tick\">{second} s</text>\n", bottom + 13.0);
    }
}

fn label(page: &mut String, y: f64, words: &str) {
    put!(page, "<text x=\"0\" y=\"{y:.1}\" class=\"label\">{}</text>\n", escape(words));
}

/// The index of a call's second.
fn bucket(record: &Record, at_ms: u64) -> usize {
    (at_ms.saturating_sub(record.start_ms) / BUCKET_MS) as usize
}

fn per_second<T: Clone + Default>(record: &Record, axis: &Axis, mut add: impl FnMut(&mut T, &Called)) -> Vec<T> {
    let mut seconds = vec![T::default(); (axis.end_ms / BUCKET_MS + 1) as usize];
    for called in record.calls.iter().filter(|called| called.kind.is_call()) {
        if let Some(second) = seconds.get_mut(bucket(record, called.at_ms)) {
            add(second, called);
        }
    }
    seconds
}

fn answers_lane(page: &mut String, run: &Counted<'_>, axis: &Axis, top: f64) -> f64 {
    const HEIGHT: f64 = 90.0;
    // Kept, reduced, failed.
    let seconds = per_second(run.record, axis, |counts: &mut [u32; 3], called| {
        let class = if !called.kept { 2 } else { usize::from(called.degraded) };
        counts[class] += 1;
    });
    let most = seconds.iter().map(|counts| counts.iter().sum::<u32>()).max().unwrap_or(0).max(1);
    label(page, top + 12.0, "answers");
    label(page, top + 24.0, &format!("up to {most}/s"));
    for (index, counts) in seconds.iter().enumerate() {
        let (left, right) = (axis.x(index as u64 * BUCKET_MS), axis.x((index as u64 + 1) * BUCKET_MS));
        let mut y = top + HEIGHT;
        for (count, class) in counts.iter().zip(["kept", "reduced", "failed"]).filter(|(count, _)| **count > 0) {
            let height = HEIGHT * f64::from(*count) / f64::from(most);
            y -= height;
            let width = (right - left - 1.0).max(0.5);
            put!(
                page,
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
            );
        }
    }
    page.push('\n');
    top + HEIGHT
}

/// The scanners' writes, on a logarithmic scale from a tenth of a millisecond to ten seconds.
fn latency_lane(page: &mut String, run: &Counted<'_>, axis: &Axis, top: f64) -> f64 {
    const HEIGHT: f64 = 80.0;
    let y = |ms: f64| top + HEIGHT * (1.0 - ((ms.clamp(0.1, 10_000.0)).log10() + 1.0) / 5.0);
    label(page, top + 24.0, "a write takes");
    for (ms, words) in [(1.0, "1 ms"), (100.0, "100 ms"), (10_000.0, "10 s")] {
        let y = y(ms);
        put!(page, "<line class=\"mark\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        put!(page, "<text x=\"{:.0}\" y=\"{:.1}\" class=\"scale\">{words}</text>\n", LEFT - 3.0, y + 3.5);
    }
    let mut seconds = per_second(run.record, axis, |took: &mut Vec<f64>, called| {
        took.extend((called.kind == Kind::Write).then_some(called.took_ms));
    });
    for (share, class) in [(0.5, "p50"), (0.99, "p99")] {
        let points = seconds
            .iter_mut()
            .enumerate()
            .filter(|(_, took)| !took.is_empty())
            .map(|(index, took)| (axis.x(index as u64 * BUCKET_MS + BUCKET_MS / 2), y(quantile(took, share))));
        line(page, class, points);
    }
    top + HEIGHT
}

fn waiting_lane(page: &mut String, run: &Counted<'_>, axis: &Axis, top: f64) -> f64 {
    const HEIGHT: f64 = 60.0;
    let samples = &run.record.samples;
    let spooled = |index: usize| -> u64 {
        samples[index].nodes.iter().filter_map(|(_, node)| Some(node.as_ref()?.spooled)).sum()
    };
    let most = (0..samples.len()).map(|index| samples[index].queued.max(spooled(index))).max().unwrap_or(0).max(1);
    label(page, top + 12.0, "waiting");
    label(page, top + 24.0, &format!("up to {most}"));
    let x = |index: usize| axis.x(samples[index].at_ms.saturating_sub(run.record.start_ms));
    let y = |count: u64| top + HEIGHT * (1.0 - count as f64 / most as f64);
    line(page, "queue", (0..samples.len()).map(|index| (x(index), y(samples[index].queued))));
    if run.record.run == Run::After {
        line(page, "spool", (0..samples.len()).map(|index| (x(index), y(spooled(index)))));
    }
    top + HEIGHT
}

fn line(page: &mut String, class: &str, points: impl Iterator<Item = (f64, f64)>) {
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    put!(page, "<polyline class=\"{class}\" points=\"{}\"/>\n", points.join(" "));
}

/// One stroke for each record that went wrong, where it was handed over.
fn records_lane(page: &mut String, run: &Counted<'_>, axis: &Axis, top: f64) -> f64 {
    const ROW: f64 = 13.0;
    let Verdict { lost_at_ms, duplicated_at_ms, corrupted_at_ms, .. } = &run.verdict;
    let classes = [("lost", lost_at_ms), ("duplicated", duplicated_at_ms), ("corrupted", corrupted_at_ms)];
    for (index, (name, moments)) in classes.into_iter().enumerate() {
        let y = top + ROW * index as f64;
        label(page, y + 9.0, &format!("{name} {}", moments.len()));
        put!(page, "<line class=\"mark\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{:.1}\" y2=\"{:.1}\"/>", y + 6.0, y + 6.0);
        let mut path = String::new();
        for at_ms in moments {
            put!(path, "M{:.1} {y:.1}v10", axis.x(at_ms.saturating_sub(run.record.start_ms)));
        }
        put!(page, "<path class=\"wrong\" d=\"{path}\"/>\n");
    }
    top + ROW * 3.0
}

/// A row for each route of each node; nothing before Seawall.
fn breakers_lane(page: &mut String, record: &Record, axis: &Axis, top: f64) -> f64 {
    const ROW: f64 = 8.0;
    let Some(nodes) = record.samples.first().map(|sample| &sample.nodes) else { return top };
    let mut y = top;
    for (place, (zone, _)) in nodes.iter().enumerate() {
        let of = |index: usize| record.samples[index].nodes.get(place).and_then(|(_, node)| node.as_ref());
        let routes: Vec<String> = (0..record.samples.len())
            .find_map(of)
            .map(|node| node.breakers.iter().map(|(route, _)| route.clone()).collect())
            .unwrap_or_default();
        label(page, y + 8.0, zone);
        for route in &routes {
            let state = |index: usize| match of(index) {
                None => "gone",
                Some(node) => node.breakers.iter().find(|(name, _)| name == route).map_or("off", |(_, state)| state),
            };
            breaker_row(page, record, axis, (y, route), state);
            y += ROW;
        }
        y += 6.0;
    }
    y
}

fn breaker_row<'a>(
    page: &mut String,
    record: &Record,
    axis: &Axis,
    (y, route): (f64, &str),
    state: impl Fn(usize) -> &'a str,
) {
    let x = |index: usize| axis.x(record.samples[index].at_ms.saturating_sub(record.start_ms));
    let count = record.samples.len();
    let mut from = 0;
    for index in 1..=count {
        if index < count && state(index) == state(from) {
            continue;
        }
        let (left, right) = (x(from), if index < count { x(index) } else { x(count - 1) });
        let words = state(from);
        put!(
            page,
            "<rect class=\"breaker {words}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"6\">\
             <title>{}: {}</title></rect>",
            (right - left).max(0.5),
            escape(route),
            escape(words)
        );
        from = index;
    }
    page.push('\n');
}

/// What happened in a fault's time, and a second after it.
fn faults_table(page: &mut String, runs: &[Counted<'_>]) {
    let Some(first) = runs.first() else { return };
    page.push_str(
        "<h2>What each fault did</h2>\n<p>Calls made while it lasted or within a second after; records that were \
         handed over in that time. Faults overlap, so a call may count for two.</p>\n\
         <div class=\"wide\"><table><thead><tr><th>fault</th><th>at</th><th>for</th>",
    );
    for run in runs {
        put!(
            page,
            "<th>{}: failed</th><th>reduced</th><th>p99 of writes</th><th>lost / dup. / corr.</th>",
            run.record.run.name()
        );
    }
    page.push_str("</tr></thead><tbody>\n");
    for (index, fault) in first.record.faults.iter().enumerate() {
        put!(
            page,
            "<tr><th>{}. {}</th><td>{:.1} s</td><td>{:.1} s</td>",
            index + 1,
            escape(&fault.trouble.to_string()),
            fault.at_ms as f64 / 1_000.0,
            fault.for_ms as f64 / 1_000.0
        );
        for run in runs {
            put!(page, "{}", fault_cells(run, &run.record.faults[index]));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

fn fault_cells(run: &Counted<'_>, fault: &Fault) -> String {
    let from = run.record.start_ms + fault.at_ms;
    let during = from..from + fault.for_ms + 1_000;
    let calls: Vec<&Called> =
        run.record.calls.iter().filter(|called| called.kind.is_call() && during.contains(&called.at_ms)).collect();
    let failed = calls.iter().filter(|called| !called.kept).count();
    let reduced = calls.iter().filter(|called| called.kept && called.degraded).count();
    let mut writes: Vec<f64> =
        calls.iter().filter(|called| called.kind == Kind::Write).map(|called| called.took_ms).collect();
    let wrong = |moments: &[u64]| moments.iter().filter(|at_ms| during.contains(at_ms)).count();
    let Verdict { lost_at_ms, duplicated_at_ms, corrupted_at_ms, .. } = &run.verdict;
    format!(
        "<td>{failed} of {}</td><td>{reduced}</td><td>{:.1} ms</td><td>{} / {} / {}</td>",
        calls.len(),
        quantile(&mut writes, 0.99),
        wrong(lost_at_ms),
        wrong(duplicated_at_ms),
        wrong(corrupted_at_ms)
    )
}

/// Columns of the ledger worth a look, in the order of the equation they satisfy.
const ACCOUNT: [&str; 14] = [
    "stream",
    "epoch",
    "state",
    "accepted",
    "delivered",
    "waiting",
    "parked",
    "lost",
    "duplicated",
    "corrupted",
    "refused",
    "indeterminate",
    "recovered",
    "phantom",
];

fn ledger_table(page: &mut String, records: &[&Record]) {
    let accounts: Vec<_> = records.iter().flat_map(|record| &record.accounts).collect();
    if accounts.is_empty() {
        return;
    }
    page.push_str(
        "<h2>The ledger</h2>\n<p>Seawall's own accounts, sealed at the end: what it accepted against the receipts the \
         warehouse sent it. Two accounts a node: <code>events</code> from the edge to the warehouse, \
         <code>predictions</code> over the last hop. A new epoch begins when a node was killed and came back.</p>\n\
         <div class=\"wide\"><table><thead><tr><th>node</th>",
    );
    for column in ACCOUNT {
        put!(page, "<th>{column}</th>");
    }
    page.push_str("</tr></thead><tbody>\n");
    for account in accounts {
        put!(page, "<tr><th>{}</th><td colspan=\"14\">{}</td></tr>\n", escape(&account.node), escape(&account.verdict));
        for stream in account.streams.iter().filter(|stream| !is_unused(stream)) {
            page.push_str("<tr><td></td>");
            for column in ACCOUNT {
                put!(page, "<td>{}</td>", escape(&plain(&stream[column])));
            }
            page.push_str("</tr>\n");
        }
    }
    page.push_str("</tbody></table></div>\n");
}

/// An account opened after the seal, in which nothing was booked.
fn is_unused(stream: &Value) -> bool {
    stream["state"] == "open" && ACCOUNT[3..].iter().all(|column| stream[*column].as_u64().unwrap_or(0) == 0)
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn model_section(page: &mut String, outcome: &Outcome) {
    let model = &outcome.model;
    let bar = |hours: f64| 100.0 * hours / model.mae_hours.max(model.mae_baseline_hours).max(f64::MIN_POSITIVE);
    put!(
        page,
        "<h2>The predictions</h2>\n<p>Gradient-boosted trees, trained on {} past trips when the predictors start; mean \
         absolute error on {} trips of shipments they had not seen.</p>\n<div class=\"wide\"><table class=\"bars\"><tbody>\
         <tr><th>the model</th><td>{:.2} h</td><td class=\"bar\"><i class=\"kept\" style=\"width:{:.1}%\"></i></td></tr>\
         <tr><th>distance / average speed</th><td>{:.2} h</td><td class=\"bar\"><i class=\"gone\" style=\"width:{:.1}%\"></i></td></tr>\
         </tbody></table></div>\n",
        model.trips_trained,
        model.trips_tested,
        model.mae_hours,
        bar(model.mae_hours),
        model.mae_baseline_hours,
        bar(model.mae_baseline_hours)
    );
    for (run, figures) in [(Run::Before, &outcome.before), (Run::After, &outcome.after)] {
        if let Some(figures) = figures {
            put!(
                page,
                "<p>{}: {} of {} calls as promised ({}){}; {}.</p>\n",
                run.name(),
                figures.calls - figures.calls_failed,
                figures.calls,
                percent(figures.availability_ratio),
                reduced_words(figures),
                match figures.drained_after_s {
                    Some(seconds) => format!("at rest {seconds:.1} s after the last event"),
                    None => "did not come to rest in time".into(),
                }
            );
        }
    }
}

/// Which answers were reduced, so that nobody has to guess what stands behind the availability.
fn reduced_words(figures: &Figures) -> String {
    if figures.calls_degraded == 0 {
        return String::new();
    }
    let words = [
        ("write", "writes taken into the spool"),
        ("predict", "predictions taken into the spool"),
        ("lease", "leases answered empty"),
        ("quote", "prices old or missing"),
        ("ack", "acknowledgements not passed on"),
    ];
    let of = |(kind, words): (&str, &str)| Some(format!("{} {words}", figures.degraded_by_kind.get(kind)?));
    let parts: Vec<String> = words.into_iter().filter_map(of).collect();
    format!(", {} of them reduced: {}", figures.calls_degraded, parts.join(", "))
}

const HOW_COUNTED: &str = "<h2>How it was counted</h2>\n<p>Accepted: a scanner got a 2xx. Lost: accepted, and no row \
    in the warehouse. Corrupted: a row whose SHA-256 of the event's line is not the one the scanner wrote down; such a \
    record is not also lost, and a row whose id nobody handed over takes one off the lost. Duplicated: rows beyond the \
    first. Given up: no 2xx after three tries; nobody promised anything, so it is not lost, but it lowers the \
    availability. Answered as promised: a 2xx, whole, within two seconds, all tries of the client included; every call \
    of scanners and predictors counts. First alert: before, the health monitor's; behind Seawall, the first breaker \
    that opened, route that degraded, or answer marked as reduced.</p>\n";

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2430;--paper:#fff;--soft:#5d6b7c;--line:#dde3ea;--kept:#2f9e62;--reduced:#e0a100;\
--failed:#d33f3f;--p99:#7a3fd3;--p50:#3f7ad3;--queue:#3f7ad3;--spool:#c76b00;--band:#d33f3f;--gone:#9aa5b1}\
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf1;--paper:#12171e;--soft:#93a1b2;--line:#2a333e;--kept:#3fbf7a;\
--reduced:#f0bb30;--failed:#f06464;--p99:#b58cf5;--p50:#79a9f5;--queue:#79a9f5;--spool:#f0a050;--band:#f06464;--gone:#5f6b78}}\
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}\
main{max-width:60rem;margin:auto;padding:1rem}h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}\
.verdict{font-size:1.2rem;font-weight:600}.good{color:var(--kept)}.bad{color:var(--failed)}\
.wide{overflow-x:auto}svg{display:block;width:100%;min-width:36rem;height:auto}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.25rem .7rem .25rem 0;text-align:left;\
border-bottom:1px solid var(--line);white-space:nowrap}th{font-weight:600}\
.legend{color:var(--soft);font-size:.85rem}.legend i{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .9em}\
text{fill:var(--soft);font:10px system-ui,sans-serif}.number{fill:var(--band);font-weight:700}\
.scale{text-anchor:end}.tick{text-anchor:middle}.mark{stroke:var(--line);stroke-width:1}\
.band{fill:var(--band);opacity:.12}.unfelt{opacity:.04}.wrong{stroke:var(--failed);stroke-width:.7;fill:none}\
.kept{fill:var(--kept);background:var(--kept)}.reduced{fill:var(--reduced);background:var(--reduced)}\
.failed{fill:var(--failed);background:var(--failed)}\
polyline{fill:none;stroke-width:1.6}polyline.p99{stroke:var(--p99)}polyline.p50{stroke:var(--p50)}\
polyline.queue{stroke:var(--queue)}polyline.spool{stroke:var(--spool)}\
i.p99{background:var(--p99)}i.p50{background:var(--p50)}i.queue{background:var(--queue)}i.spool{background:var(--spool)}\
i.open{background:var(--failed)}i.half{background:var(--reduced)}i.gone{background:var(--gone)}\
.breaker{fill:var(--kept);opacity:.35}.breaker.open{fill:var(--failed);opacity:1}\
.breaker.half_open{fill:var(--reduced);opacity:1}.breaker.gone,.breaker.off{fill:var(--gone);opacity:.6}\
.bars .bar{width:20rem}.bars .bar i{display:block;height:.8rem}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::record;
    use crate::model::ModelError;

    fn both() -> (Outcome, Record, Record) {
        let (before, after) = (record(Run::Before), record(Run::After));
        let outcome = Outcome {
            seed: 7,
            before: Some(figures(&before).0),
            after: Some(figures(&after).0),
            model: ModelError { trips_trained: 10, trips_tested: 5, mae_hours: 1.0, mae_baseline_hours: 4.0 },
        };
        (outcome, before, after)
    }

    #[test]
    fn the_page_is_whole_and_fetches_nothing() {
        let (outcome, before, after) = both();
        let page = page(&outcome, &[&before, &after]);
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
        for part in [
            "behind seawall",
            "brown-out",
            "breaker open",
            "events: open",
            "the model",
            "at rest 1.5 s",
            "1 of them reduced: 1 predictions taken",
            "1 of them reduced: 1 predictions taken",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for foreign in ["http://", "https://", "<script", "url(", "NaN", "inf"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        for tag in ["svg", "table", "tr", "g", "p", "div"] {
            let (opened, closed) = (
                page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count(),
                page.matches(&format!("</{tag}>")).count(),
            );
            assert_eq!(opened, closed, "{tag}");
        }
    }

    #[test]
    fn one_run_alone_and_a_run_without_anything_are_drawn_too() {
        let (mut outcome, before, _) = both();
        outcome.after = None;
        assert!(page(&outcome, &[&before]).contains("Only the run before Seawall"));
        let mut empty = before;
        (empty.calls, empty.samples, empty.faults) = (Vec::new(), Vec::new(), Vec::new());
        empty.drained_after_s = None;
        outcome.before = Some(figures(&empty).0);
        assert!(page(&outcome, &[&empty]).contains("did not come to rest in time"));
        assert!(page(&outcome, &[]).contains("How it was counted"));
    }

    #[test]
    fn a_kept_promise_is_said_and_a_broken_one_too() {
        let (mut outcome, ..) = both();
        assert!(page(&outcome, &[]).contains("did not hold"));
        let after = outcome.after.as_mut().unwrap();
        (after.lost, after.duplicated, after.corrupted, after.availability_ratio) = (0, 0, 0, 1.0);
        assert!(page(&outcome, &[]).contains("What Seawall promises held."));
    }

    #[test]
    fn text_from_elsewhere_cannot_become_markup() {
        let (outcome, before, mut after) = both();
        after.accounts[0].node = "<b>\"x\"&".into();
        after.accounts[0].streams.push(serde_json::json!({"stream": "unused", "state": "open", "accepted": 0}));
        let page = page(&outcome, &[&before, &after]);
        assert!(page.contains("&lt;b&gt;&quot;x&quot;&amp;") && !page.contains("<b>"));
        assert!(
            page.contains("<td>events</td>") && !page.contains("unused"),
            "accounts without a booking are left out"
        );
    }
}
