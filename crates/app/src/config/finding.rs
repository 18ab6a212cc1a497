//! What is wrong with a configuration, and where: gathered while reading, printed all at once.
//!
//! ```text
//! seawall.yaml:31:26: unknown key `failure_rat`
//!    |  breaker: { failure_rat: 50%, slow: 60% over 500ms }
//!    |             ^^^^^^^^^^^ did you mean `failure_rate`?
//! ```

use std::fmt;

use serde::Serialize;

/// Characters of a line shown at most: what is wrong stays in view, the rest is cut.
const EXCERPT_CHARS_MAX: usize = 110;

/// Whether the node would start all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It would not.
    Error,
    /// It would, but hardly as meant.
    Warning,
    /// It would, and what arithmetic says of it is worth a look: told by `check` alone.
    Audit,
}

/// A stretch of one line. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    /// Line.
    pub line: usize,
    /// Column of the first character.
    pub column: usize,
    /// Characters; at least one is marked.
    pub length: usize,
}

/// One thing to put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file, or the option of the command line.
    pub source: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What would be right, where that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(skip)]
    length: usize,
    #[serde(skip)]
    excerpt: String,
    #[serde(skip)]
    is_argument: bool,
}

/// A text and what to call it in messages.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
    /// True for an option of the command line: it has no lines to count.
    pub(crate) is_argument: bool,
}

impl Source {
    /// A line by its number, as YAML counts them: ended by LF, CR LF or CR.
    pub(super) fn line(&self, number: usize) -> &str {
        let mut rest = self.text.as_str();
        for _ in 1..number {
            let Some(end) = rest.find(['\r', '\n']) else { return "" };
            let ending = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
            rest = &rest[end + ending..];
        }
        rest.split(['\r', '\n']).next().unwrap_or_default()
    }

    pub(crate) fn finding(&self, severity: Severity, spot: Spot, message: String, hint: Option<String>) -> Finding {
        Finding {
            source: self.name.clone(),
            line: spot.line.max(1),
            column: spot.column.max(1),
            severity,
            message,
            hint,
            length: spot.length,
            excerpt: self.line(spot.line).into(),
            is_argument: self.is_argument,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let warning = match self.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
            Severity::Audit => "audit: ",
        };
        match self.is_argument {
            true => writeln!(f, "{}: {warning}{}", self.source, self.message)?,
            false => writeln!(f, "{}:{}:{}: {warning}{}", self.source, self.line, self.column, self.message)?,
        }
        let (excerpt, indent, marks) = self.window();
        if excerpt.is_empty() {
            return self.hint.as_ref().map_or(Ok(()), |hint| writeln!(f, "   |  {hint}"));
        }
        writeln!(f, "   |  {excerpt}")?;
        write!(f, "   |  {}{}", " ".repeat(indent), "^".repeat(marks))?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " {hint}"))?;
        writeln!(f)
    }
}

impl Finding {
    /// The part of the line to show, and where in it the marks begin and how many they are.
    fn window(&self) -> (String, usize, usize) {
        let printable = |c: char| if c == '\t' || c.is_control() { ' ' } else { c };
        let line: Vec<char> = self.excerpt.chars().map(printable).collect();
        let at = (self.column - 1).min(line.len());
        let blank = line.iter().take_while(|c| c.is_whitespace()).count().min(at);
        // A long line begins a little before what is wrong.
        let from = if at - blank + self.length.max(1) > EXCERPT_CHARS_MAX { at.saturating_sub(20) } else { blank };
        let shown: String = line[from..].iter().take(EXCERPT_CHARS_MAX).collect();
        let shown = shown.trim_end().to_string();
        let room = shown.chars().count().saturating_sub(at - from).max(1);
        (shown, at - from, self.length.clamp(1, room))
    }
}

/// Everything found, in the order of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Errors, warnings, and lines of the audit.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(crate) fn of(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| (finding.line, finding.column));
        Self { findings }
    }

    /// How many errors.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// How many warnings.
    #[must_use]
    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    /// How many lines of the audit.
    #[must_use]
    pub fn audits(&self) -> usize {
        self.count(Severity::Audit)
    }

    /// Without the audit: for whoever starts a node and not a review.
    #[must_use]
    pub fn without_audit(mut self) -> Self {
        self.findings.retain(|finding| finding.severity != Severity::Audit);
        self
    }

    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| finding.fmt(f))
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(text: &str, line: usize, column: usize, length: usize, hint: Option<&str>) -> String {
        let source = Source { name: "f".into(), text: text.into(), is_argument: false };
        let spot = Spot { line, column, length };
        source.finding(Severity::Error, spot, "wrong".into(), hint.map(Into::into)).to_string()
    }

    #[test]
    fn the_spot_is_marked_under_the_trimmed_line() {
        assert_eq!(
            print("a: 1\n    b: { cat: 50% }\r\n", 2, 10, 3, Some("a dog was meant")),
            "f:2:10: wrong\n   |  b: { cat: 50% }\n   |       ^^^ a dog was meant\n"
        );
    }

    #[test]
    fn a_spot_outside_the_text_is_still_told() {
        assert_eq!(print("", 1, 1, 1, Some("write something")), "f:1:1: wrong\n   |  write something\n");
        assert_eq!(print("a", 7, 9, 1, None), "f:7:9: wrong\n");
        assert_eq!(print("ab", 1, 9, 5, None), "f:1:9: wrong\n   |  ab\n   |    ^\n");
        assert_eq!(print("ab", 0, 0, 0, None), "f:1:1: wrong\n   |  ab\n   |  ^\n");
    }

    #[test]
    fn a_long_line_is_cut_around_the_spot_and_control_characters_are_not_printed() {
        let text = format!("{}x\u{1b}[31m{}", "a".repeat(300), "b".repeat(300));
        let printed = print(&text, 1, 301, 4, None);
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines[1].chars().count(), 6 + EXCERPT_CHARS_MAX);
        assert_eq!(lines[2], format!("   |  {}^^^^", " ".repeat(20)));
        assert!(!printed.contains('\u{1b}'));
    }

    #[test]
    fn an_option_has_no_lines_and_a_report_is_in_order() {
        let source = Source { name: "--upstream".into(), text: "x".into(), is_argument: true };
        let spot = |line| Spot { line, column: 1, length: 1 };
        let late = source.finding(Severity::Warning, spot(2), "late".into(), None);
        let early = source.finding(Severity::Error, spot(1), "early".into(), None);
        let report = Report::of(vec![late, early]);
        assert_eq!((report.errors(), report.warnings()), (1, 1));
        assert_eq!(report.to_string(), "--upstream: early\n   |  x\n   |  ^\n--upstream: warning: late\n");
        let json = serde_json::to_value(&report.findings[0]).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"source": "--upstream", "line": 1, "column": 1, "severity": "error", "message": "early"})
        );
    }
}
