//! Traffic as a node's journal tells of it: the `traffic_changed` entries of a route, as rates piece by piece and as
//! what the dependency did meanwhile.
//!
//! What is read is what `seawall journal --json` prints: a page with `entries`, or with `--follow` one entry a line;
//! several after another will do. Other kinds, other routes and unknown fields are passed over. An entry is written at
//! the end of the span it tells of: its piece begins `seconds` before it, and lasts until the next one's begins. Where
//! no call was seen to come to anything, the dependency goes on as before.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;
use seawall_core::journal::Kind;
use seawall_core::units::{Ratio, UnitError, format_duration, parse_duration, parse_ratio};
use seawall_core::whatif::{Dependency, Latency, Piece, Stretch, Traffic};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::recording::FILE_BYTES_MAX;
use crate::cli::UsageError;
use crate::config::{Finding, Severity, Source, Spot};

/// Mistakes shown at most; the others are counted.
const SHOWN_MAX: usize = 20;
/// Of a journal entry's span.
const SECONDS_MAX: f64 = 7.0 * 86_400.0;
const HINT: &str = "print it with `seawall journal --json --kind traffic_changed --limit 1000`";

/// Reads the course of a route from a file, or from standard input where it is called `-`.
///
/// # Errors
/// [`UsageError`] if it must be said which route; otherwise what is wrong with the file, with its lines.
pub(super) fn read(file: &Path, route: Option<&str>) -> anyhow::Result<(Traffic, Vec<Stretch>)> {
    let (name, bytes) = match file.to_str() {
        Some("-") => {
            ("standard input".into(), read_some(std::io::stdin().lock()).context("cannot read standard input")?)
        }
        _ => {
            let cannot = || format!("cannot read `{}`", file.display());
            let opened = std::fs::File::open(file).with_context(cannot)?;
            (file.display().to_string(), read_some(opened).with_context(cannot)?)
        }
    };
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("`{name}` has more than {FILE_BYTES_MAX} bytes: take a part of it");
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| anyhow!("cannot play `{name}`: byte {} is not text", error.utf8_error().valid_up_to()))?;
    course_of(&name, text.strip_prefix('\u{feff}').unwrap_or(&text), route)
}

fn read_some(input: impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn course_of(name: &str, text: &str, route: Option<&str>) -> anyhow::Result<(Traffic, Vec<Stretch>)> {
    let mut reader = Reader::new(name, text);
    let told = reader.entries();
    if reader.mistakes > 0 {
        return Err(reader.error());
    }
    let routes: BTreeSet<&str> = told.iter().map(|entry| entry.route.as_str()).collect();
    let quoted = routes.iter().map(|route| format!("`{route}`")).collect::<Vec<_>>().join(", ");
    let route = match (route, Vec::from_iter(&routes).as_slice()) {
        (_, []) => bail!("`{name}` has no `{}` entry; {HINT}", Kind::TrafficChanged),
        (Some(route), _) if !routes.contains(route) => {
            bail!("`{name}` tells nothing of the traffic of route `{route}`; it does of {quoted}")
        }
        (Some(route), _) => route,
        (None, [only]) => **only,
        (None, _) => {
            let message = format!("`{name}` tells of several routes; say which with `--route`: {quoted}");
            return Err(UsageError(message).into());
        }
    };
    let flows: Vec<Flow> = told.iter().filter(|entry| entry.route == route).filter_map(|it| reader.flow(it)).collect();
    if reader.mistakes > 0 {
        return Err(reader.error());
    }
    Ok(pieces(&flows))
}

/// The page of the command, or an entry of it.
#[derive(Deserialize)]
struct Printed<'t> {
    #[serde(borrow)]
    entries: Option<Vec<&'t RawValue>>,
    kind: Option<String>,
    subject: Option<String>,
}

/// An entry of ours, not looked into yet.
struct Told<'t> {
    raw: &'t str,
    route: String,
}

/// An entry as printed; what else it has is passed over.
#[derive(Deserialize)]
struct Printout {
    at: String,
    fields: BTreeMap<String, Value>,
}

/// What an entry tells.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// When its span began and ended, in nanoseconds since the epoch.
    begun: i128,
    ended: i128,
    per_second: f64,
    failed: Option<Ratio>,
    latency: Option<(Duration, Duration)>,
}

struct Reader<'t> {
    text: &'t str,
    source: Source,
    last: Option<i128>,
    shown: Vec<Finding>,
    mistakes: usize,
}

impl<'t> Reader<'t> {
    fn new(name: &str, text: &'t str) -> Self {
        let source = Source { name: name.into(), text: text.into(), is_argument: false };
        Self { text, source, last: None, shown: Vec::new(), mistakes: 0 }
    }

    /// All entries about traffic.
    fn entries(&mut self) -> Vec<Told<'t>> {
        let mut told = Vec::new();
        let mut values = serde_json::Deserializer::from_str(self.text).into_iter::<&RawValue>();
        loop {
            match values.next() {
                None => return told,
                Some(Ok(value)) => self.entries_of(value.get(), true, &mut told),
                Some(Err(error)) => {
                    let words = error.to_string();
                    let words = words.split(" at line ").next().unwrap_or_default().to_owned();
                    self.tell(
                        Spot { line: error.line(), column: error.column(), length: 1 },
                        format!("not JSON: {words}"),
                    );
                    return told;
                }
            }
        }
    }

    fn entries_of(&mut self, raw: &'t str, may_be_page: bool, told: &mut Vec<Told<'t>>) {
        match serde_json::from_str::<Printed<'t>>(raw) {
            Ok(Printed { entries: Some(entries), .. }) if may_be_page => {
                entries.iter().for_each(|entry| self.entries_of(entry.get(), false, told));
            }
            Ok(Printed { kind: Some(kind), subject: Some(subject), .. }) => {
                if let (true, Some(route)) = (kind == Kind::TrafficChanged.name(), subject.strip_prefix("route:")) {
                    told.push(Told { raw, route: route.into() });
                }
            }
            _ => {
                let spot = self.spot(raw, "");
                self.tell(spot, format!("this is no entry of a journal; {HINT}"));
            }
        }
    }

    fn flow(&mut self, told: &Told<'t>) -> Option<Flow> {
        let Ok(printed) = serde_json::from_str::<Printout>(told.raw) else {
            let spot = self.spot(told.raw, "");
            self.tell(spot, "an entry has a moment (`at`) and `fields`".into());
            return None;
        };
        let Ok(at) = printed.at.parse::<Timestamp>() else {
            let spot = self.spot(told.raw, "at");
            self.tell(spot, format!("`{}` is no moment, such as `2026-11-23T14:03:47.120Z`", printed.at));
            return None;
        };
        let mistakes = self.mistakes;
        let mut field = |name, what: &str, read: &dyn Fn(&str) -> Result<f64, String>| {
            let text = match printed.fields.get(name)? {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let value = read(&text);
            value.map_err(|problem| self.tell(self.spot(told.raw, name), format!("{what}: {problem}"))).ok()
        };
        let per_second = field("per_second", "requests a second", &|text| number(text, 1_000_000.0));
        let seconds = field("seconds", "the seconds it tells of", &|text| number(text, SECONDS_MAX));
        let failed = field("failed", "the share of failed calls", &|text| {
            parse_ratio(text).map(Ratio::get).map_err(|error| error.to_string())
        });
        let p50 = field("p50", "the median latency", &latency);
        let p99 = field("p99", "the 99th percentile", &latency);
        if self.mistakes > mistakes {
            return None;
        }
        let (Some(per_second), Some(seconds)) = (per_second, seconds) else {
            let spot = self.spot(told.raw, "");
            self.tell(spot, "an entry about traffic has `per_second` and `seconds`".into());
            return None;
        };
        if p50.is_some() != p99.is_some() || p50 > p99 {
            let spot = self.spot(told.raw, "p50");
            self.tell(spot, "`p50` and `p99` are there together, and `p99` is not the lesser".into());
            return None;
        }
        let ended = at.as_nanosecond();
        let begun = ended - (seconds * 1e9) as i128;
        if self.last.is_some_and(|last| begun <= last) {
            let spot = self.spot(told.raw, "at");
            self.tell(spot, "its span begins before that of the entry above: they are out of order".into());
            return None;
        }
        self.last = Some(begun);
        let latency = p50.zip(p99).map(|(p50, p99)| (Duration::from_secs_f64(p50), Duration::from_secs_f64(p99)));
        Some(Flow { begun, ended, per_second, failed: failed.and_then(Ratio::new), latency })
    }

    /// Where a field of an entry stands, or where the entry begins.
    fn spot(&self, raw: &str, field: &str) -> Spot {
        let found = (!field.is_empty()).then(|| raw.find(&format!("\"{field}\""))).flatten();
        // An entry is a part of the text.
        let begins = (raw.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize) + found.unwrap_or(0);
        let before = self.text.get(..begins).unwrap_or_default();
        let rest = self.text.get(begins..).unwrap_or_default().lines().next().unwrap_or_default();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let length = found.map_or(rest, |_| rest.split([',', '}']).next().unwrap_or_default()).chars().count();
        Spot { line: before.matches('\n').count() + 1, column, length }
    }

    fn tell(&mut self, spot: Spot, message: String) {
        self.mistakes += 1;
        if self.shown.len() < SHOWN_MAX {
            self.shown.push(self.source.finding(Severity::Error, spot, message, None));
        }
    }

    fn error(&self) -> anyhow::Error {
        let mut text = format!("cannot play `{}`\n", self.source.name);
        for finding in &self.shown {
            write!(text, "{finding}").expect("a String takes everything");
        }
        if self.mistakes > self.shown.len() {
            let more = self.mistakes - self.shown.len();
            write!(text, "and {more} more of this kind").expect("a String takes everything");
        }
        anyhow!("{}", text.trim_end())
    }
}

fn number(text: &str, most: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=most).contains(&number) => Ok(number),
        Ok(_) => Err(format!("`{text}` is out of range: 0 to {most}")),
        Err(_) => Err(format!("`{text}` is not a number")),
    }
}

/// In seconds.
fn latency(text: &str) -> Result<f64, String> {
    match parse_duration(text).map_err(|error: UnitError| error.to_string())? {
        Duration::ZERO => Err(format!("`{text}` is nothing")),
        latency if latency > Duration::from_secs(3_600) => Err(format!("`{text}` is more than an hour")),
        latency => Ok(latency.as_secs_f64()),
    }
}

/// Spans one after another, each from its beginning to the next one's.
fn pieces(flows: &[Flow]) -> (Traffic, Vec<Stretch>) {
    let begin = flows.first().map_or(0, |flow| flow.begun);
    let since = |at: i128| Duration::from_nanos(u64::try_from(at - begin).unwrap_or(0));
    let (default, mut failure_rate) = (Dependency::default(), Ratio::ZERO);
    // What nobody saw yet is thought to have been as it was when it was first seen.
    let first = flows.iter().find_map(|flow| flow.latency);
    let mut latency = first.map_or(default.latency, |(median, p99)| Latency::LogNormal { median, p99 });
    let (mut pieces, mut course) = (Vec::new(), Vec::new());
    for flow in flows {
        latency = flow.latency.map_or(latency, |(median, p99)| Latency::LogNormal { median, p99 });
        failure_rate = flow.failed.unwrap_or(failure_rate);
        let from = since(flow.begun);
        pieces.push(Piece { from, per_second: flow.per_second });
        course.push(Stretch { from, latency, failure_rate });
    }
    (Traffic::Pieces { pieces, until: since(flows.last().map_or(0, |flow| flow.ended)) }, course)
}

/// The dependency does what was recorded; what was asked for besides comes on top.
pub(super) fn follow(dependency: &mut Dependency, course: Vec<Stretch>) {
    if let Some(first) = course.first() {
        (dependency.latency, dependency.failure_rate) = (first.latency, first.failure_rate);
    }
    dependency.course = course;
}

/// `12 recorded rates, 0 to 140 requests/s at random`.
pub(super) fn rate_words(pieces: &[Piece]) -> String {
    let rates = || pieces.iter().map(|piece| piece.per_second);
    let (low, high) = (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max));
    match pieces {
        [only] => format!("one recorded rate, {} requests/s at random", only.per_second),
        _ => format!("{} recorded rates, {low} to {high} requests/s at random", pieces.len()),
    }
}

/// What the dependency did by the record: a line, or nothing where there is none.
pub(super) fn course_words(course: &[Stretch]) -> String {
    let medians = course.iter().filter_map(|stretch| match stretch.latency {
        Latency::LogNormal { median, .. } => Some(median),
        _ => None,
    });
    let (Some(low), Some(high)) = (medians.clone().min(), medians.max()) else { return String::new() };
    let shares = || course.iter().map(|stretch| stretch.failure_rate);
    let least = shares().fold(Ratio::ONE, |least, share| if share < least { share } else { least });
    let most = shares().fold(Ratio::ZERO, |most, share| if share > most { share } else { most });
    let range = |low: String, high: String| if low == high { low } else { format!("{low} to {high}") };
    format!(
        "\nthe dependency as recorded: a median of {}, {} of its calls fail",
        range(format_duration(low), format_duration(high)),
        range(least.to_string(), most.to_string())
    )
}

pub(super) fn rates_json(pieces: &[Piece], until: Duration) -> Value {
    let piece = |piece: &Piece| json!({ "from_s": piece.from.as_secs_f64(), "per_second": piece.per_second });
    let pieces: Vec<Value> = pieces.iter().map(piece).collect();
    json!({ "pattern": "journal", "pieces": pieces, "until_s": until.as_secs_f64() })
}

pub(super) fn stretches_json(course: &[Stretch]) -> Value {
    let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
    let stretch = |stretch: &Stretch| {
        let (median, p99) = match stretch.latency {
            Latency::LogNormal { median, p99 } => (Some(ms(median)), Some(ms(p99))),
            _ => (None, None),
        };
        json!({
            "from_s": stretch.from.as_secs_f64(),
            "latency_p50_ms": median,
            "latency_p99_ms": p99,
            "failure_rate": stretch.failure_rate,
        })
    };
    course.iter().map(stretch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn entry(seq: u32, at: &str, route: &str, fields: &Value) -> Value {
        json!({
            "seq": seq, "at": format!("2026-11-25T{at}Z"), "kind": "traffic_changed", "subject": format!("route:{route}"),
            "cause": 1, "fields": fields,
        })
    }

    fn flow(per_second: &str, seconds: &str) -> Value {
        json!({ "per_second": per_second, "seconds": seconds, "calls": "60", "failed": "2.5%", "p50": "20ms", "p99": "1.5s" })
    }

    /// As `seawall journal --json` prints them.
    fn page(entries: &[Value]) -> String {
        format!("{:#}\n", json!({ "entries": entries }))
    }

    fn course(text: &str, route: Option<&str>) -> Result<(Traffic, Vec<Stretch>), String> {
        course_of("f", text, route).map_err(|error| error.to_string())
    }

    fn stretch(from_ms: u32, median_ms: u32, p99_ms: u32, failure_rate: f64) -> Stretch {
        let latency = Latency::LogNormal { median: median_ms * MS, p99: p99_ms * MS };
        Stretch { from: from_ms * MS, latency, failure_rate: Ratio::new(failure_rate).unwrap() }
    }

    #[test]
    fn a_page_and_lines_are_the_same_course() {
        let entries = [
            json!({ "seq": 1, "at": "2026-11-25T09:00:00Z", "kind": "node_started", "subject": "node", "cause": null, "fields": {} }),
            entry(2, "10:01:00.000", "r", &flow("12.5", "60")),
            entry(3, "10:01:00.000", "other", &flow("1", "60")),
            entry(
                4,
                "10:05:00.500",
                "r",
                &json!({ "per_second": "0", "seconds": "120.5", "calls": "0", "mood": "new" }),
            ),
            entry(
                5,
                "10:06:00.500",
                "r",
                &json!({ "per_second": "3", "seconds": "30", "failed": "100%", "calls": "9" }),
            ),
        ];
        let pieces = [(0, 12.5), (180_000, 0.0), (330_500, 3.0)]
            .map(|(from_ms, per_second)| Piece { from: from_ms * MS, per_second });
        let pieces = pieces.to_vec();
        let traffic = Traffic::Pieces { pieces, until: 360_500 * MS };
        let stretches =
            vec![stretch(0, 20, 1_500, 0.025), stretch(180_000, 20, 1_500, 0.025), stretch(330_500, 20, 1_500, 1.0)];
        let lines = entries.iter().map(|entry| format!("{entry}\n")).collect::<String>();
        let pages = entries.iter().map(|entry| page(std::slice::from_ref(entry))).collect::<String>();
        for text in [page(&entries), lines, pages] {
            assert_eq!(course(&text, Some("r")).unwrap(), (traffic.clone(), stretches.clone()), "{text}");
        }
        assert_eq!(
            course(&page(&entries[..2]), None).unwrap().0,
            Traffic::Pieces { pieces: vec![Piece { from: Duration::ZERO, per_second: 12.5 }], until: 60_000 * MS }
        );
    }

    #[test]
    fn what_was_not_seen_at_first_is_taken_from_later() {
        let silent = json!({ "per_second": "5", "seconds": "60", "calls": "0" });
        let entries = [entry(1, "10:01:00", "r", &silent), entry(2, "10:02:00", "r", &flow("5", "60"))];
        assert_eq!(
            course(&page(&entries), None).unwrap().1,
            [stretch(0, 20, 1_500, 0.0), stretch(60_000, 20, 1_500, 0.025)]
        );
        assert_eq!(course(&page(&entries[..1]), None).unwrap().1, [stretch(0, 20, 80, 0.0)], "the default");
    }

    #[test]
    fn what_cannot_be_played_is_told_with_its_line() {
        let good = || entry(1, "10:01:00", "r", &flow("5", "60"));
        let with = |name: &str, value: &str| {
            let mut fields = flow("5", "60");
            fields[name] = value.into();
            format!("{}\n{}\n", good(), entry(2, "10:03:00", "r", &fields))
        };
        let without = |name: &str| {
            let mut fields = flow("5", "60");
            fields.as_object_mut().unwrap().remove(name);
            page(&[entry(1, "10:01:00", "r", &fields)])
        };
        let twice = |at: &str| page(&[good(), entry(2, at, "r", &flow("5", "60"))]);
        for (text, words) in [
            (
                "{\"entries\": [\n  {\"seq\": 1,,}]}".to_owned(),
                "cannot play `f`\nf:2:13: not JSON: key must be a string\n",
            ),
            ("{\"entries\": [\n".to_owned(), "f:2:1: not JSON: EOF while parsing a list"),
            ("at,latency_ms,outcome\n1,2,ok\n".to_owned(), "f:1:1: not JSON: expected value"),
            ("[]".to_owned(), "f:1:1: this is no entry of a journal; print it with `seawall journal --json"),
            ("{\"entries\": [\n  7\n]}".to_owned(), "f:2:3: this is no entry of a journal"),
            (page(&[json!({ "entries": [] })]), "f:3:5: this is no entry of a journal"),
            (String::new(), "`f` has no `traffic_changed` entry; print it with"),
            (page(&[]), "`f` has no `traffic_changed` entry"),
            (with("per_second", "many"), "f:2:"),
            (with("per_second", "many"), "requests a second: `many` is not a number\n"),
            (with("seconds", "-1"), "the seconds it tells of: `-1` is out of range: 0 to 604800\n"),
            (with("failed", "0.5"), "the share of failed calls: `0.5` needs a unit, such as `50%`"),
            (with("p50", "20"), "the median latency: `20` needs a unit"),
            (with("p99", "2h"), "the 99th percentile: `2h` is more than an hour"),
            (with("p99", "0s"), "`0s` is nothing"),
            (with("p50", "2s"), "`p99` is not the lesser"),
            (without("seconds"), "f:3:5: an entry about traffic has `per_second` and `seconds`"),
            (without("p99"), "`p50` and `p99` are there together"),
            (twice("10:01:00"), "its span begins before that of the entry above: they are out of order"),
            (twice("09:01:00"), "f:19:7: its span begins before"),
            (page(&[entry(1, "25:01:00", "r", &flow("5", "60"))]), "`2026-11-25T25:01:00Z` is no moment"),
            (page(&[json!({ "kind": "traffic_changed", "subject": "route:r" })]), "f:3:5: an entry has a moment"),
        ] {
            let error = course(&text, None).unwrap_err();
            assert!(error.contains(words), "{words}\n{text}\n{error}");
        }
        let many = (0..25).map(|_| format!("{}\n", entry(1, "x", "r", &flow("5", "60")))).collect::<String>();
        assert!(course(&many, None).unwrap_err().ends_with("and 5 more of this kind"));
    }

    #[test]
    fn a_route_that_is_not_there_is_told_with_those_that_are() {
        let entries = [entry(1, "10:01:00", "b", &flow("5", "60")), entry(2, "10:01:00", "a", &flow("5", "60"))];
        let error = course_of("f", &page(&entries), None).unwrap_err();
        assert_eq!(error.to_string(), "`f` tells of several routes; say which with `--route`: `a`, `b`");
        assert!(error.is::<UsageError>());
        let error = course_of("f", &page(&entries), Some("c")).unwrap_err();
        assert_eq!(error.to_string(), "`f` tells nothing of the traffic of route `c`; it does of `a`, `b`");
        assert!(!error.is::<UsageError>());
    }

    #[test]
    fn a_course_in_words() {
        let pieces = [Piece { from: Duration::ZERO, per_second: 0.5 }, Piece { from: 9 * MS, per_second: 140.0 }];
        assert_eq!(rate_words(&pieces), "2 recorded rates, 0.5 to 140 requests/s at random");
        assert_eq!(rate_words(&pieces[..1]), "one recorded rate, 0.5 requests/s at random");
        let course = [stretch(0, 20, 80, 0.0), stretch(9, 35, 80, 0.125)];
        assert_eq!(
            course_words(&course),
            "\nthe dependency as recorded: a median of 20ms to 35ms, 0% to 12.5% of its calls fail"
        );
        assert_eq!(course_words(&course[..1]), "\nthe dependency as recorded: a median of 20ms, 0% of its calls fail");
        assert_eq!(course_words(&[]), "");
    }
}
