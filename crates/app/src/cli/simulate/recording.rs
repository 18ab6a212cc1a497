//! Recorded traffic: a CSV file with a header line and three columns, `at` (or `at_ms`), `latency_ms` and `outcome`, in
//! any order.
//!
//! `at` is a number of seconds from any beginning, or a date as RFC 3339 writes it; a column called `at_ms` has
//! milliseconds. One kind for the whole file: a guess between seconds and milliseconds would be wrong by a thousand.
//! Every line counts or is told with its place; nothing is left out. Lines need not be in order of time: servers write
//! them when a request ends.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use seawall_core::outcome::{Outcome, judge_status};
use seawall_core::whatif::Recorded;

use crate::config::{Finding, Severity, Source, Spot};

/// Mistakes shown at most; the others are counted.
const SHOWN_MAX: usize = 20;
/// A file longer than this is not read.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 30;
/// More seconds than that lie beyond the year 5000: milliseconds were meant.
const SECONDS_MAX: f64 = 1e11;

const HEADER: &str = "write a first line such as `at,latency_ms,outcome`";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    At,
    AtMs,
    Latency,
    Outcome,
}

/// How moments are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Number,
    Date,
}

/// Reads a file called `name`.
///
/// # Errors
/// Everything that is wrong with it, as text.
pub(super) fn read(name: &str, bytes: &[u8]) -> Result<Vec<Recorded>, String> {
    let mut reader = Reader::new(name, bytes)?;
    let lines: Vec<&str> = reader.text.lines().collect();
    let lines = &lines[..lines.iter().rposition(|line| !line.trim().is_empty()).map_or(0, |last| last + 1)];
    let columns = reader.columns(lines.first().copied().unwrap_or_default());
    let mut rows = Vec::with_capacity(lines.len());
    if reader.mistakes == 0 {
        for (index, line) in lines.iter().enumerate().skip(1) {
            rows.extend(reader.row(index + 1, line, &columns));
        }
    }
    if reader.mistakes == 0 && rows.is_empty() {
        reader.tell((lines.len() + 1, 1, 1), "there is no request in it".into(), "write one a line");
    }
    if reader.mistakes > 0 {
        return Err(reader.report());
    }
    // Stable: requests of the same moment stay as they were written.
    rows.sort_by_key(|(at, ..)| *at);
    let begin = rows[0].0;
    Ok(rows.into_iter().map(|(at, latency, well)| Recorded { at: nanos(at - begin), latency, well }).collect())
}

fn nanos(nanos: i128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

struct Reader<'t> {
    text: &'t str,
    source: Source,
    kind: Option<Kind>,
    shown: Vec<Finding>,
    mistakes: usize,
}

/// A cell, and where it stands: line, column, length.
type Place = (usize, usize, usize);

impl<'t> Reader<'t> {
    fn new(name: &str, bytes: &'t [u8]) -> Result<Self, String> {
        let source = |text: &str| Source { name: name.into(), text: text.into(), is_argument: false };
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                let text = text.strip_prefix('\u{feff}').unwrap_or(text);
                Ok(Self { text, source: source(text), kind: None, shown: Vec::new(), mistakes: 0 })
            }
            Err(error) => {
                let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
                let (line, column) =
                    (before.lines().count().max(1), before.lines().last().map_or(0, |l| l.chars().count()));
                let spot = Spot { line, column: column + 1, length: 1 };
                let message = format!("byte {:#04x} is not text: save the file as UTF-8", bytes[error.valid_up_to()]);
                Err(source(&before).finding(Severity::Error, spot, message, None).to_string())
            }
        }
    }

    fn tell(&mut self, (line, column, length): Place, message: String, hint: &str) {
        self.mistakes += 1;
        if self.shown.len() < SHOWN_MAX {
            let hint = (!hint.is_empty()).then(|| hint.to_owned());
            let spot = Spot { line, column, length };
            self.shown.push(self.source.finding(Severity::Error, spot, message, hint));
        }
    }

    fn report(&self) -> String {
        let mut text: String = self.shown.iter().map(ToString::to_string).collect();
        if self.mistakes > self.shown.len() {
            let more = self.mistakes - self.shown.len();
            writeln!(text, "and {more} more of this kind").expect("a String takes everything");
        }
        text
    }

    /// Which column is where.
    fn columns(&mut self, header: &str) -> BTreeMap<Column, usize> {
        let mut columns = BTreeMap::new();
        let cells = cells(header);
        let width = cells.len();
        for (index, (cell, at)) in cells.into_iter().enumerate() {
            let column = match cell {
                "at" => Column::At,
                "at_ms" => Column::AtMs,
                "latency_ms" => Column::Latency,
                "outcome" => Column::Outcome,
                _ => {
                    self.tell(
                        (1, at, cell.chars().count()),
                        format!("`{cell}` is no column of recorded traffic"),
                        HEADER,
                    );
                    return columns;
                }
            };
            if columns.insert(column, index).is_some() {
                self.tell((1, at, cell.len()), format!("the column `{cell}` is there twice"), "remove one");
            }
        }
        let moments = usize::from(columns.contains_key(&Column::At)) + usize::from(columns.contains_key(&Column::AtMs));
        if moments != 1 || !columns.contains_key(&Column::Latency) || !columns.contains_key(&Column::Outcome) {
            let message = format!("{width} columns, and not the three: `at` or `at_ms`, `latency_ms`, `outcome`");
            self.tell((1, 1, header.chars().count()), message, HEADER);
        }
        columns
    }

    fn row(&mut self, line: usize, text: &str, columns: &BTreeMap<Column, usize>) -> Option<(i128, Duration, bool)> {
        let cells = cells(text);
        if cells.len() != columns.len() {
            let message = format!("{} cells where the header has {}", cells.len(), columns.len());
            self.tell((line, 1, text.chars().count()), message, "");
            return None;
        }
        let cell = |column| columns.get(&column).map(|index| cells[*index]);
        let at = match (cell(Column::At), cell(Column::AtMs)) {
            (Some((text, column)), _) => (self.moment(text), text, column),
            (None, at_ms) => {
                let (text, column) = at_ms?;
                (number(text).map(|ms| (ms * 1e6) as i128), text, column)
            }
        };
        let latency = cell(Column::Latency).map(|(text, column)| (latency(text), text, column))?;
        let outcome = cell(Column::Outcome).map(|(text, column)| (outcome(text), text, column))?;
        let at = self.taken(line, at);
        let (latency, outcome) = (self.taken(line, latency), self.taken(line, outcome));
        Some((at?, latency?, outcome?))
    }

    fn taken<T>(&mut self, line: usize, (value, text, column): (Result<T, String>, &str, usize)) -> Option<T> {
        value.map_err(|problem| self.tell((line, column, text.chars().count()), problem, "")).ok()
    }

    /// Nanoseconds from some beginning.
    fn moment(&mut self, text: &str) -> Result<i128, String> {
        let (kind, nanos) = match (text.parse::<f64>(), text.parse::<Timestamp>()) {
            (Ok(_), _) => match number(text)? {
                seconds if seconds < SECONDS_MAX => (Kind::Number, (seconds * 1e9) as i128),
                _ => {
                    return Err(format!(
                        "`{text}` seconds are more than 3000 years; call the column `at_ms` if they are milliseconds"
                    ));
                }
            },
            (_, Ok(date)) => (Kind::Date, date.as_nanosecond()),
            _ => {
                return Err(format!(
                    "`{text}` is neither a number of seconds nor a date with its zone, such as `2026-11-23T14:03:47Z`"
                ));
            }
        };
        match self.kind.get_or_insert(kind) {
            first if *first == kind => Ok(nanos),
            Kind::Number => Err(format!("`{text}` is a date, and the lines before have seconds")),
            Kind::Date => Err(format!("`{text}` is a number, and the lines before have dates")),
        }
    }
}

/// Cells with their columns, from 1, in characters; quotes around a whole cell are not part of it.
fn cells(line: &str) -> Vec<(&str, usize)> {
    let mut column = 1;
    let mut cells = Vec::new();
    for raw in line.split(',') {
        let blanks = raw.chars().take_while(|c| c.is_whitespace()).count();
        let trimmed = raw.trim();
        let bare = trimmed.strip_prefix('"').and_then(|cell| cell.strip_suffix('"'));
        cells.push((bare.unwrap_or(trimmed), column + blanks + usize::from(bare.is_some())));
        column += raw.chars().count() + 1;
    }
    cells
}

fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..1e18).contains(&number) => Ok(number),
        Ok(_) => Err(format!("`{text}` is out of range: zero or more")),
        Err(_) => Err(format!("`{text}` is not a number")),
    }
}

fn latency(text: &str) -> Result<Duration, String> {
    match number(text)? {
        ms if ms <= 3_600_000.0 => Ok(Duration::from_nanos((ms * 1e6) as u64)),
        _ => Err(format!("`{text}` ms are more than an hour")),
    }
}

fn outcome(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "ok" | "success" => Ok(true),
        "error" | "failure" => Ok(false),
        other => match other.parse::<u16>() {
            Ok(status @ 200..=599) => Ok(judge_status(status) == Outcome::Success),
            _ => Err(format!("`{text}` is no outcome; known are ok, success, error, failure and statuses 200 to 599")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn request(at_ms: u32, latency_ms: u32, well: bool) -> Recorded {
        Recorded { at: at_ms * MS, latency: latency_ms * MS, well }
    }

    #[test]
    fn seconds_milliseconds_and_dates_are_read_and_put_in_order() {
        let wanted = [request(0, 20, true), request(500, 30, false), request(1_500, 10, true)];
        for text in [
            "at,latency_ms,outcome\n0,20,ok\n0.5,30,error\n1.5,10,success\n",
            "\u{feff}outcome, at_ms ,latency_ms\r\nsuccess,1001500,10\r\n200,1000000,20\r\n\"503\",1000500,30\r\n\r\n",
            "at,latency_ms,outcome\n2026-11-23T14:00:00Z,20,404\n2026-11-23T15:00:00.5+01:00,30,429\n2026-11-23T14:00:01.500Z,10,OK",
        ] {
            assert_eq!(read("f", text.as_bytes()).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn every_broken_line_is_told_with_its_place() {
        let text = "at,latency_ms,outcome\n0,20,ok\n1,x,ok\n\n2,5,maybe\n3,1\n2026-11-23T14:00:00Z,-1,600\n1700000000000,1,ok\n";
        let report = read("t.csv", text.as_bytes()).unwrap_err();
        for words in [
            "t.csv:3:3: `x` is not a number\n   |  1,x,ok\n   |    ^\n",
            "t.csv:4:1: 1 cells where the header has 3\n",
            "t.csv:5:5: `maybe` is no outcome; known are ok",
            "t.csv:6:1: 2 cells where the header has 3\n",
            "t.csv:7:1: `2026-11-23T14:00:00Z` is a date, and the lines before have seconds\n",
            "t.csv:7:22: `-1` is out of range: zero or more\n",
            "t.csv:7:25: `600` is no outcome",
            "t.csv:8:1: `1700000000000` seconds are more than 3000 years; call the column `at_ms`",
        ] {
            assert!(report.contains(words), "{words}\n{report}");
        }
    }

    #[test]
    fn a_file_without_its_columns_or_requests_is_refused() {
        for (text, words) in [
            ("", "f:1:1: `` is no column of recorded traffic"),
            ("time,latency_ms,outcome\n1,2,ok\n", "f:1:1: `time` is no column of recorded traffic"),
            ("at,at_ms,latency_ms,outcome\n", "4 columns, and not the three"),
            ("at,at,outcome\n", "the column `at` is there twice"),
            ("at,latency_ms,outcome\n\n", "f:2:1: there is no request in it"),
            ("at,latency_ms,outcome\nnan,1,ok", "`nan` is out of range"),
            ("at,latency_ms,outcome\n1,3600001,ok", "`3600001` ms are more than an hour"),
            ("at,latency_ms,outcome\nyesterday,1,ok", "`yesterday` is neither a number of seconds nor a date"),
        ] {
            let report = read("f", text.as_bytes()).unwrap_err();
            assert!(report.contains(words), "{text}: {report}");
        }
        let report = read("f", b"at,latency_ms,outcome\n1,2,\xff").unwrap_err();
        assert!(report.starts_with("f:2:5: byte 0xff is not text"), "{report}");
        let many = "at,latency_ms,outcome\n".to_owned() + &"x,1,ok\n".repeat(25);
        assert!(read("f", many.as_bytes()).unwrap_err().ends_with("and 5 more of this kind\n"));
    }
}
