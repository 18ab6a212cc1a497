//! What came of it, in words and a table, for somebody who is tired.

use std::collections::BTreeMap;
use std::time::Duration;

use seawall_core::units::format_duration;
use seawall_core::whatif::{Ailment, Scenario, StandIn, Summary, Traffic};

use super::Side;
use super::course::course_words;
use super::fold::{Span, fold};
use super::plan::{Sight, ailment_words, mean_rate, traffic_words, trouble_words};
use crate::cli::table::{facts, table};

/// One experiment.
pub(super) fn one(side: &Side) -> String {
    format!("{}\n{}\n{}", heading(&side.subject.label, &side.scenario), facts(&sentences(side)), spans(side))
}

/// Two, side by side.
pub(super) fn both(a: &Side, b: &Side) -> String {
    let mut text = heading(&format!("A is {}; B is {}", a.subject.label, b.subject.label), &a.scenario);
    for (name, side) in [("A", a), ("B", b)] {
        text += &format!("\n{name}\n{}", facts(&sentences(side)));
    }
    format!("{text}\n{}\nA\n{}\nB\n{}", table(&["", "A", "B", "B - A"], &differences(a, b)), spans(a), spans(b))
}

fn heading(label: &str, scenario: &Scenario) -> String {
    let lasts = format_duration(scenario.lasts);
    let mut text = format!("{label}\n{} for {lasts}, seed {}", traffic_words(scenario), scenario.seed);
    for layer in &scenario.layers[..scenario.layers.len() - 1] {
        let (try_timeout, tries) = (format_duration(layer.guards.try_timeout), layer.guards.retry.attempts_max);
        text += &format!("; {} {} try {tries} times, {try_timeout} each, at once", layer.instances, layer.name);
    }
    let nodes = scenario.layers.last().map_or(1, |layer| layer.instances);
    if nodes > 1 {
        text += &format!("; {nodes} nodes");
    }
    text += &course_words(&scenario.dependency.course);
    let troubles: Vec<String> = scenario.dependency.troubles.iter().map(trouble_words).collect();
    match (troubles.is_empty(), &scenario.traffic) {
        (false, _) => text += &format!("\nthe dependency: {}", troubles.join("; ")),
        (true, Traffic::Recorded(_) | Traffic::Pieces { .. }) => {}
        (true, _) => text += "\nthe dependency is well all the time; `--fault \"60s..90s down\"` would break it",
    }
    text + "\n"
}

/// What happened, most wanted first: a name and words each.
pub(super) fn sentences(side: &Side) -> Vec<(&'static str, String)> {
    let summary = &side.report.summary;
    let unfinished = summary.offered.saturating_sub(summary.good + summary.reduced + summary.failed);
    let still =
        if unfinished > 0 { format!(", {} still on their way at the end", grouped(unfinished)) } else { String::new() };
    let how = match side.subject.stand_in {
        (StandIn::Nothing, _) => String::new(),
        (_, word) => format!(": {} in full, {} reduced ({word})", grouped(summary.good), grouped(summary.reduced)),
    };
    let mut said = vec![(
        "answered",
        format!(
            "{} of {} requests{how}; {} failed or were refused{still}",
            answered_percent(summary),
            grouped(summary.offered),
            grouped(summary.failed)
        ),
    )];
    said.extend(kept_words(side).map(|words| ("kept", words)));
    said.push(("breaker", breaker_words(side)));
    said.extend(recovery_words(side).map(|words| ("recovery", words)));
    said.push((
        "load",
        format!(
            "{:.2} calls reach the dependency for each request; {} retries",
            summary.amplification,
            grouped(summary.retried)
        ),
    ));
    if summary.hedged > 0 {
        let share = summary.hedged as f64 / summary.offered as f64 * 100.0;
        said.push(("copies", format!("{} second copies (hedge), {share:.1} % of requests", grouped(summary.hedged))));
    }
    if !summary.refused.is_empty() {
        said.push(("refusals", refusal_words(summary)));
    }
    said.push((
        "latency",
        format!(
            "{} for half of the good answers, {} for 99 of 100",
            ms(summary.latency_p50_ms),
            ms(summary.latency_p99_ms)
        ),
    ));
    said.extend(sight_words(side).map(|words| ("sight", words)));
    if !side.subject.idempotent {
        said.push((
            "retries",
            "only of what cannot have arrived: the route takes methods that are not idempotent".into(),
        ));
    }
    said
}

/// A failure in a million is not rounded away.
fn answered_percent(summary: &Summary) -> String {
    match summary.failed {
        0 if summary.good + summary.reduced > 0 => "100 %".into(),
        _ => {
            let answered = (summary.good + summary.reduced) as f64 / summary.offered.max(1) as f64;
            format!("{:.2} %", (answered * 100.0).min(99.99))
        }
    }
}

/// What waits for later, if anything ever does.
fn kept_words(side: &Side) -> Option<String> {
    let summary = &side.report.summary;
    if summary.kept_max == 0 {
        return None;
    }
    let most = grouped(summary.kept_max.into());
    Some(match (summary.kept_at_end, summary.to_empty_s) {
        (0, Some(after)) => format!("{most} at most; the last is delivered {} after the last fault", seconds(after)),
        (0, None) => format!("{most} at most; all are delivered"),
        (left, _) => format!("{most} at most; {} still wait at the end", grouped(left.into())),
    })
}

fn breaker_words(side: &Side) -> String {
    let summary = &side.report.summary;
    if side.subject.guards.breaker.is_none() {
        return "off".into();
    }
    let Some(opened) = summary.first_opened_s else { return "never opens".into() };
    let troubles = &side.scenario.dependency.troubles;
    // The one that began last before it opened is thought to be what opened it.
    let begun =
        troubles.iter().filter(|trouble| trouble.from.as_secs_f64() <= opened).max_by_key(|trouble| trouble.from);
    let when = match begun {
        Some(trouble) => {
            let after = opened - trouble.from.as_secs_f64();
            let which = if troubles.len() > 1 { format!(" ({})", trouble_words(trouble)) } else { String::new() };
            format!("opens {} after the {} begins{which}", seconds(after), trouble_noun(trouble.ailment))
        }
        None if troubles.is_empty() => format!("opens at {}, without any fault", seconds(opened)),
        None => format!("opens at {}, before the first fault", seconds(opened)),
    };
    let times = if summary.opened == 1 { "once".into() } else { format!("{} times in all", grouped(summary.opened)) };
    let refused = grouped(summary.refused.get("breaker").copied().unwrap_or(0));
    // Where callers try again, more is refused than was asked for.
    match side.scenario.layers.len() {
        1 => format!("{when}, {times}; refuses {refused} of {} requests", grouped(summary.offered)),
        _ => format!("{when}, {times}; refuses {refused} calls"),
    }
}

fn trouble_noun(ailment: Ailment) -> &'static str {
    match ailment {
        Ailment::Down | Ailment::Hangs => "outage",
        Ailment::Slow(_) => "slowness",
        Ailment::Fails(_) => "failing",
    }
}

/// `None` where there was nothing to recover from.
fn recovery_words(side: &Side) -> Option<String> {
    let ends = side.scenario.dependency.troubles.iter().map(|trouble| trouble.until).max()?;
    let left = side.scenario.lasts.saturating_sub(ends);
    Some(match side.report.summary.to_recover_s {
        Some(after) if after < 1.0 => "at once when it is over".into(),
        Some(after) => format!("{} after it is over (95 % good answers, five seconds long)", seconds(after)),
        None if left < Duration::from_secs(6) => {
            format!("cannot be told: the run ends {} after it is over", format_duration(left))
        }
        None => format!("none in the {} after it is over", format_duration(left)),
    })
}

fn refusal_words(summary: &Summary) -> String {
    let mut refused: Vec<(&str, u64)> = summary.refused.iter().map(|(rule, count)| (*rule, *count)).collect();
    refused.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let word = |(rule, count): &(&str, u64)| match *rule {
        // It refuses the second call, not the first.
        "budget" => format!("budget {} (retries)", grouped(*count)),
        rule => format!("{rule} {}", grouped(*count)),
    };
    refused.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn sight_words(side: &Side) -> Option<String> {
    let nodes = side.scenario.layers.last().map_or(1, |layer| layer.instances);
    let rate = mean_rate(&side.scenario);
    let sight = Sight::of(&side.subject.guards, nodes, rate)?;
    let callers = &side.scenario.layers[..side.scenario.layers.len() - 1];
    let at_most = callers.iter().fold(rate, |rate, layer| rate * f64::from(layer.guards.retry.attempts_max));
    if sight.blind_below_per_s > 0.0 {
        let here = if at_most < sight.blind_below_per_s { ", as here: it opens by chance, if ever" } else { "" };
        return Some(format!("blind below about {} requests/s{here}", figure(sight.blind_below_per_s)));
    }
    let each = if nodes > 1 { format!(" on each of {nodes} nodes") } else { String::new() };
    let takes = seconds(sight.failures / (rate / f64::from(nodes)));
    Some(format!("needs {} failed calls{each}: {takes} of requests at this rate, less with retries", sight.failures))
}

/// Where something changes.
fn spans(side: &Side) -> String {
    table(&span_headings(side), &span_rows(side))
}

/// Columns; those that would be empty are left out.
pub(super) fn span_headings(side: &Side) -> Vec<&'static str> {
    let mut headings = vec!["AT", "FOR", "OFFERED/S", "GOOD/S"];
    headings.extend(is_reduced(side).then_some("REDUCED/S"));
    headings.extend(["SENT/S", "RETRIED/S", "P50", "P99", "QUEUED"]);
    headings.extend(keeps(side).then_some("KEPT"));
    headings.extend(["NOT CLOSED", "REFUSED/S, FAULT"]);
    headings
}

fn is_reduced(side: &Side) -> bool {
    side.report.rows.iter().any(|row| row.reduced > 0)
}

fn keeps(side: &Side) -> bool {
    side.report.rows.iter().any(|row| row.kept > 0)
}

pub(super) fn span_rows(side: &Side) -> Vec<Vec<String>> {
    let spans = fold(&side.report.rows, &side.scenario.dependency.troubles);
    spans.iter().map(|span| span_row(span, side)).collect()
}

fn span_row(span: &Span, side: &Side) -> Vec<String> {
    let time = |seconds: u64| format!("{seconds}s");
    let answered = span.good > 0.0;
    let latency = |value: f64| if answered { ms(value).replace(' ', "") } else { "-".into() };
    let mut refused: Vec<(&str, f64)> = span.refused.iter().map(|(rule, count)| (*rule, *count)).collect();
    refused.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    let mut notes: Vec<String> = refused.iter().map(|(rule, count)| format!("{rule} {}", figure(*count))).collect();
    let troubles = span.troubles.iter().map(|place| ailment_words(side.scenario.dependency.troubles[*place].ailment));
    notes.extend(troubles.map(|words| format!("[{words}]")));
    let mut row = vec![time(span.first), time(span.seconds), figure(span.offered), figure(span.good)];
    row.extend(is_reduced(side).then(|| figure(span.reduced)));
    row.extend([figure(span.sent), figure(span.retried), latency(span.p50_ms), latency(span.p99_ms)]);
    row.push(span.queued.to_string());
    row.extend(keeps(side).then(|| span.kept.to_string()));
    row.extend([span.not_closed.to_string(), notes.join(", ")]);
    row
}

/// The two in figures: a name, A, B, and the difference.
pub(super) fn differences(a: &Side, b: &Side) -> Vec<Vec<String>> {
    type Figure = fn(&Summary) -> Option<f64>;
    let figures: [(&str, usize, Figure); 16] = [
        ("requests", 0, |it| Some(it.offered as f64)),
        ("good", 0, |it| Some(it.good as f64)),
        ("reduced", 0, |it| Some(it.reduced as f64)),
        ("failed", 0, |it| Some(it.failed as f64)),
        ("good, %", 2, |it| Some(it.goodput_ratio * 100.0)),
        ("retries", 0, |it| Some(it.retried as f64)),
        ("second copies", 0, |it| Some(it.hedged as f64)),
        ("calls to the dependency", 0, |it| Some(it.sent as f64)),
        ("calls for each request", 2, |it| Some(it.amplification)),
        ("latency, half, ms", 1, |it| Some(it.latency_p50_ms)),
        ("latency, 99 of 100, ms", 1, |it| Some(it.latency_p99_ms)),
        ("breakers opened", 0, |it| Some(it.opened as f64)),
        ("opens after the first fault begins, s", 1, |it| it.to_open_s),
        ("recovers after the last ends, s", 1, |it| it.to_recover_s),
        ("kept for later at most", 0, |it| Some(it.kept_max.into())),
        ("the last kept is delivered after it ends, s", 1, |it| it.to_empty_s),
    ];
    let (of_a, of_b) = (&a.report.summary, &b.report.summary);
    let mut rows: Vec<Vec<String>> =
        figures.iter().map(|(name, decimals, of)| difference(name, *decimals, of(of_a), of(of_b))).collect();
    let refused = |refused: &BTreeMap<&'static str, u64>, rule| Some(refused.get(rule).copied().unwrap_or(0) as f64);
    let rules: std::collections::BTreeSet<&str> = of_a.refused.keys().chain(of_b.refused.keys()).copied().collect();
    for rule in rules {
        let name = format!("refused by {rule}");
        rows.push(difference(&name, 0, refused(&of_a.refused, rule), refused(&of_b.refused, rule)));
    }
    rows
}

fn difference(name: &str, decimals: usize, a: Option<f64>, b: Option<f64>) -> Vec<String> {
    let cell = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"));
    let between = match (a, b) {
        (Some(a), Some(b)) if cell(Some(a)) == cell(Some(b)) => "0".into(),
        (Some(a), Some(b)) => format!("{:+.decimals$}", b - a),
        _ => "-".into(),
    };
    vec![name.into(), cell(a), cell(b), between]
}

/// `12,345`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Whole where that says enough.
pub(super) fn figure(value: f64) -> String {
    match value {
        _ if value >= 9.95 || value == value.trunc() => format!("{value:.0}"),
        0.1.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn seconds(seconds: f64) -> String {
    match seconds {
        ..9.95 => format!("{seconds:.1} s"),
        _ => format!("{seconds:.0} s"),
    }
}

/// `20 ms`, `1.20 s`.
pub(super) fn ms(ms: f64) -> String {
    match ms {
        ..9.95 => format!("{ms:.1} ms"),
        ..999.5 => format!("{ms:.0} ms"),
        _ => format!("{:.2} s", ms / 1_000.0),
    }
}

#[cfg(test)]
mod tests {
    use seawall_core::whatif::{Report, Row, Trouble};

    use super::super::tests::side;
    use super::*;

    fn said(side: &Side, name: &str) -> String {
        sentences(side).into_iter().find(|(known, _)| *known == name).map(|(_, words)| words).unwrap_or_default()
    }

    #[test]
    fn an_outage_is_told_in_words() {
        let mut side = side(Ailment::Down);
        side.report.summary = Summary {
            offered: 24_000,
            good: 11_655,
            failed: 12_345,
            goodput_ratio: 0.485_625,
            refused: BTreeMap::from([("breaker", 12_000), ("budget", 40)]),
            retried: 300,
            sent: 24_960,
            amplification: 1.04,
            latency_p50_ms: 20.04,
            latency_p99_ms: 1_234.0,
            opened: 3,
            first_opened_s: Some(23.1),
            to_open_s: Some(3.1),
            to_recover_s: Some(9.2),
            ..Summary::default()
        };
        assert_eq!(said(&side, "answered"), "48.56 % of 24,000 requests; 12,345 failed or were refused");
        assert_eq!(
            said(&side, "breaker"),
            "opens 3.1 s after the outage begins, 3 times in all; refuses 12,000 of 24,000 requests"
        );
        assert_eq!(said(&side, "recovery"), "9.2 s after it is over (95 % good answers, five seconds long)");
        assert_eq!(said(&side, "load"), "1.04 calls reach the dependency for each request; 300 retries");
        assert_eq!(said(&side, "refusals"), "breaker 12,000, budget 40 (retries)");
        assert_eq!(said(&side, "latency"), "20 ms for half of the good answers, 1.23 s for 99 of 100");
        side.report.summary.to_recover_s = None;
        assert_eq!(said(&side, "recovery"), "none in the 30s after it is over");
        side.scenario.dependency.troubles[0].until = Duration::from_secs(58);
        assert_eq!(said(&side, "recovery"), "cannot be told: the run ends 2s after it is over");
        side.report.summary.to_recover_s = Some(0.5);
        assert_eq!(said(&side, "recovery"), "at once when it is over");
    }

    #[test]
    fn what_did_not_happen_is_told_too() {
        let mut side = side(Ailment::Slow(3.0));
        side.report.summary = Summary { offered: 10, good: 7, ..Summary::default() };
        assert_eq!(said(&side, "breaker"), "never opens");
        assert!(said(&side, "answered").starts_with("100 % of 10 requests; 0 failed"));
        let hardly = Summary { offered: 1_000_000, good: 999_999, failed: 1, ..Summary::default() };
        assert_eq!(answered_percent(&hardly), "99.99 %");
        assert!(said(&side, "answered").ends_with("0 failed or were refused, 3 still on their way at the end"));
        side.report.summary.first_opened_s = Some(23.0);
        side.scenario.layers.insert(0, side.scenario.layers[0].clone());
        assert_eq!(said(&side, "breaker"), "opens 3.0 s after the slowness begins, 0 times in all; refuses 0 calls");
        let early = Trouble { from: Duration::from_secs(5), until: Duration::from_secs(6), ailment: Ailment::Down };
        side.scenario.dependency.troubles.insert(0, early);
        assert!(said(&side, "breaker").starts_with("opens 3.0 s after the slowness begins (20s..30s slow x3), "));
        side.report.summary.first_opened_s = Some(4.0);
        assert!(said(&side, "breaker").starts_with("opens at 4.0 s, before the first fault"));
        side.scenario.dependency.troubles.clear();
        assert!(said(&side, "breaker").starts_with("opens at 4.0 s, without any fault"));
        assert_eq!(said(&side, "recovery"), "");
        side.subject.guards.breaker = None;
        assert_eq!((said(&side, "breaker").as_str(), said(&side, "sight").as_str()), ("off", ""));
        side.subject.idempotent = false;
        assert!(said(&side, "retries").contains("cannot have arrived"));
    }

    #[test]
    fn what_stands_in_and_what_is_kept_is_told() {
        let mut side = side(Ailment::Down);
        side.subject.stand_in = (StandIn::Promise { parallel: 16 }, "spool");
        side.report.summary = Summary {
            offered: 1_000,
            good: 900,
            reduced: 99,
            failed: 1,
            kept_max: 80,
            hedged: 50,
            ..Summary::default()
        };
        assert_eq!(
            said(&side, "answered"),
            "99.90 % of 1,000 requests: 900 in full, 99 reduced (spool); 1 failed or were refused"
        );
        assert_eq!(said(&side, "kept"), "80 at most; all are delivered");
        side.report.summary.to_empty_s = Some(4.0);
        assert_eq!(said(&side, "kept"), "80 at most; the last is delivered 4.0 s after the last fault");
        side.report.summary.kept_at_end = 7;
        assert_eq!(said(&side, "kept"), "80 at most; 7 still wait at the end");
        assert_eq!(said(&side, "copies"), "50 second copies (hedge), 5.0 % of requests");
        let row = |second| Row { second, offered: 9, reduced: 9, kept: second as u32, ..Row::default() };
        side.report.rows = (0..3).map(row).collect();
        let table = spans(&side);
        assert!(table.contains("GOOD/S  REDUCED/S  SENT/S") && table.contains("QUEUED  KEPT  NOT CLOSED"), "{table}");
        assert_eq!(span_headings(&side).len(), span_rows(&side)[0].len());
    }

    #[test]
    fn a_breaker_says_what_it_cannot_see() {
        let mut side = side(Ailment::Down);
        assert_eq!(said(&side, "sight"), "needs 50 failed calls: 0.5 s of requests at this rate, less with retries");
        let breaker = side.subject.guards.breaker.as_mut().unwrap();
        breaker.window = seawall_core::guard::breaker::WindowConfig::time(Duration::from_secs(10));
        assert_eq!(said(&side, "sight"), "blind below about 0.8 requests/s");
        side.scenario.traffic = Traffic::Constant { per_second: 0.5 };
        assert_eq!(said(&side, "sight"), "blind below about 0.8 requests/s, as here: it opens by chance, if ever");
        let callers = seawall_core::whatif::Layer::naive("callers", 1, Duration::from_secs(1), 4);
        side.scenario.layers.insert(0, callers);
        assert_eq!(said(&side, "sight"), "blind below about 0.8 requests/s", "four tries each are 2/s");
    }

    #[test]
    fn the_table_has_a_line_where_something_changes() {
        let mut side = side(Ailment::Fails(seawall_core::units::Ratio::ONE));
        let row = |second| Row { second, offered: 100, good: 100, sent: 100, latency_p50_ms: 20.0, ..Row::default() };
        let mut rows: Vec<Row> = (0..60).map(row).collect();
        for row in &mut rows[20..30] {
            (row.good, row.sent) = (0, 5);
            row.refused = BTreeMap::from([("breaker", 95), ("budget", 2)]);
        }
        side.report = Report { rows, ..side.report };
        let table = spans(&side);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4, "{table}");
        assert!(lines[2].starts_with("20s  10s        100       0       5"), "{table}");
        assert!(lines[2].ends_with("breaker 95, budget 2, [fails 100%]"), "{table}");
    }

    #[test]
    fn two_are_compared_figure_by_figure() {
        let (mut a, mut b) = (side(Ailment::Down), side(Ailment::Down));
        a.report.summary = Summary { good: 10, to_open_s: Some(3.0), ..Summary::default() };
        b.report.summary = Summary { good: 12, refused: BTreeMap::from([("breaker", 4)]), ..Summary::default() };
        let rows = differences(&a, &b);
        assert!(rows.contains(&vec!["good".into(), "10".into(), "12".into(), "+2".into()]), "{rows:?}");
        assert!(
            rows.contains(&vec!["opens after the first fault begins, s".into(), "3.0".into(), "-".into(), "-".into()]),
            "{rows:?}"
        );
        assert!(rows.contains(&vec!["refused by breaker".into(), "0".into(), "4".into(), "+4".into()]), "{rows:?}");
        let text = both(&a, &b);
        assert!(text.contains("A is f, route r; B is f, route r") && text.contains("B - A"), "{text}");
    }

    #[test]
    fn the_heading_names_everybody_on_the_way() {
        let mut side = side(Ailment::Down);
        let callers = seawall_core::whatif::Layer::naive("callers", 20, Duration::from_secs(1), 4);
        side.scenario.layers.insert(0, callers);
        side.scenario.layers[1].instances = 3;
        side.scenario.dependency.troubles =
            vec![Trouble { from: Duration::from_secs(20), until: Duration::from_secs(30), ailment: Ailment::Hangs }];
        let text = heading("x", &side.scenario);
        assert_eq!(
            text,
            "x\n100 requests/s at random for 1m, seed 7; 20 callers try 4 times, 1s each, at once; 3 nodes\n\
             the dependency: 20s..30s hangs\n"
        );
        side.scenario.dependency.troubles.clear();
        assert!(heading("x", &side.scenario).contains("is well all the time"));
    }

    #[test]
    fn numbers_read_easily() {
        assert_eq!(
            ["0", "999", "1,000", "12,345,678"],
            [0, 999, 1_000, 12_345_678].map(grouped).each_ref().map(String::as_str)
        );
        assert_eq!(
            ["0", "0.02", "0.5", "10", "1234"],
            [0.0, 0.02, 0.5, 9.97, 1_234.4].map(figure).each_ref().map(String::as_str)
        );
        assert_eq!([ms(1.25), ms(20.4), ms(1_500.0)], ["1.2 ms", "20 ms", "1.50 s"]);
    }
}
