//! Walks the tree of a configuration and gathers every mistake on the way. What cannot be read is told and replaced by
//! its default, so that reading goes on; a configuration with errors is thrown away at the end.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use seawall_core::policy::Guards;
use seawall_core::units::{self, Ratio, UnitError};
use seawall_core::whatif::audit::Expects;

use super::finding::{Finding, Severity, Source, Spot};
use super::suggest::closest;
use super::tree::{Data, Node};

/// Gathers findings.
pub(super) struct Reader<'s> {
    source: &'s Source,
    findings: RefCell<Vec<Finding>>,
    drills: RefCell<Vec<Drill>>,
}

/// What can be played against a policy, and where it is told what comes of it.
#[derive(Clone, Debug)]
pub(super) struct Drill {
    policy: String,
    pub(super) guards: Guards,
    pub(super) expects: Expects,
    /// Who follows it: may requests of any of them be sent twice, and what is one of them called. `None` for nobody.
    pub(super) followed: Option<(bool, String)>,
    /// The keys that may be blamed, with their places. Only what was written is: defaults suit most.
    pub(super) places: Vec<(&'static str, Finding)>,
}

impl<'s> Reader<'s> {
    pub(super) fn new(source: &'s Source, findings: Vec<Finding>) -> Self {
        Self { source, findings: RefCell::new(findings), drills: RefCell::default() }
    }

    pub(super) fn into_parts(self) -> (Vec<Finding>, Vec<Drill>) {
        (self.findings.into_inner(), self.drills.into_inner())
    }

    /// Notes that a policy can be played. Nothing is told yet: it takes a moment, and a node that starts has none.
    pub(super) fn drill(&self, policy: &str, guards: &Guards, expects: &Expects, places: &[(&'static str, Spot)]) {
        let at = |(key, spot): &(&'static str, Spot)| {
            (*key, self.source.finding(Severity::Audit, *spot, String::new(), None))
        };
        self.drills.borrow_mut().push(Drill {
            policy: policy.into(),
            guards: guards.clone(),
            expects: *expects,
            followed: None,
            places: places.iter().map(at).collect(),
        });
    }

    /// Notes that a route follows a policy.
    pub(super) fn follows(&self, policy: &str, may_repeat: bool, route: &str) {
        for drill in self.drills.borrow_mut().iter_mut().filter(|drill| drill.policy == policy) {
            let (repeats, name) = drill.followed.take().unwrap_or((false, route.into()));
            drill.followed = Some((repeats || may_repeat, name));
        }
    }

    /// How many findings there are: did reading something add any?
    pub(super) fn count(&self) -> usize {
        self.findings.borrow().len()
    }

    pub(super) fn error(&self, spot: Spot, message: impl Into<String>) {
        self.tell(Severity::Error, spot, message.into(), None);
    }

    pub(super) fn error_with(&self, spot: Spot, message: impl Into<String>, hint: impl Into<String>) {
        self.tell(Severity::Error, spot, message.into(), Some(hint.into()));
    }

    pub(super) fn warning(&self, spot: Spot, message: impl Into<String>, hint: impl Into<String>) {
        self.tell(Severity::Warning, spot, message.into(), Some(hint.into()));
    }

    pub(super) fn audit(&self, spot: Spot, message: impl Into<String>, hint: impl Into<String>) {
        self.tell(Severity::Audit, spot, message.into(), Some(hint.into()));
    }

    /// A place to come back to, once more is known than the text says.
    pub(super) fn place(&self, spot: Spot) -> Finding {
        self.source.finding(Severity::Warning, spot, String::new(), None)
    }

    fn tell(&self, severity: Severity, spot: Spot, message: String, hint: Option<String>) {
        self.findings.borrow_mut().push(self.source.finding(severity, spot, message, hint));
    }
}

/// Did-you-mean over known names, or all of them when none is close.
pub(crate) fn hint_of<'k>(written: &str, known: impl IntoIterator<Item = &'k str> + Clone) -> String {
    if let Some(word) = closest(written, known.clone()) {
        return format!("did you mean `{word}`?");
    }
    let names: Vec<String> = known.into_iter().map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none is defined".into() } else { format!("known here: {}", names.join(", ")) }
}

/// Keys a section may have.
#[derive(Clone, Copy)]
pub(super) struct Keys {
    /// What to call the section.
    pub(super) of: &'static str,
    /// Those that mean something.
    pub(super) known: &'static [&'static str],
    /// Those that a later version gives a meaning.
    pub(super) later: &'static [&'static str],
}

/// A value, its key and where both stand.
#[derive(Clone, Copy)]
pub(super) struct Field<'n> {
    pub(super) reader: &'n Reader<'n>,
    pub(super) key: &'n str,
    pub(super) key_spot: Spot,
    pub(super) node: &'n Node,
}

/// A mapping whose keys are checked.
pub(super) struct Section<'n> {
    reader: &'n Reader<'n>,
    of: &'static str,
    spot: Spot,
    fields: Vec<Field<'n>>,
    /// False if there was no mapping: then nothing is missing from it either.
    pub(super) readable: bool,
}

impl<'n> Section<'n> {
    pub(super) fn spot(&self) -> Spot {
        self.spot
    }

    pub(super) fn field(&self, key: &str) -> Option<Field<'n>> {
        self.fields.iter().find(|field| field.key == key).copied()
    }

    pub(super) fn required(&self, key: &str, example: &str) -> Option<Field<'n>> {
        let field = self.field(key);
        if field.is_none() && self.readable {
            self.reader.error_with(
                self.spot,
                format!("missing key `{key}` in {}", self.of),
                format!("add `{key}: {example}`"),
            );
        }
        field
    }

    pub(super) fn duration(&self, key: &str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        self.field(key).and_then(|field| field.duration(range)).unwrap_or(default)
    }

    pub(super) fn size(&self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.field(key).and_then(|field| field.size(range)).unwrap_or(default)
    }

    pub(super) fn count(&self, key: &str, default: u32, range: RangeInclusive<u32>) -> u32 {
        self.field(key).and_then(|field| field.count(range)).unwrap_or(default)
    }
}

impl<'n> Field<'n> {
    pub(super) fn spot(&self) -> Spot {
        match &self.node.data {
            // The first line of a whole block would be marked: its key says more.
            Data::Map(_) | Data::List(_) | Data::Empty => self.key_spot,
            _ => self.node.spot,
        }
    }

    pub(super) fn error(&self, message: impl Display) {
        self.reader.error(self.spot(), format!("`{}`: {message}", self.key));
    }

    pub(super) fn error_with(&self, message: impl Display, hint: impl Into<String>) {
        self.reader.error_with(self.spot(), format!("`{}`: {message}", self.key), hint);
    }

    /// Told already, whatever else might be said.
    fn is_unresolved(&self) -> bool {
        matches!(self.node.data, Data::Unresolved)
    }

    fn wrong_kind(&self, wanted: &str) {
        if self.is_unresolved() {
            return;
        }
        match self.node.data {
            Data::Empty => {
                self.error_with(format!("{wanted} is wanted, nothing is written"), "fill it in, or remove it")
            }
            _ => self.error(format!("{wanted} is wanted, not {}", self.node.data.kind())),
        }
    }

    /// The text if it is a single value, telling nothing if it is not.
    pub(super) fn peek(&self) -> Option<&'n str> {
        match &self.node.data {
            Data::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&'n str> {
        let text = self.peek();
        if text.is_none() {
            self.wrong_kind("a single value");
        }
        text
    }

    /// A text that means something, or why it does not.
    pub(super) fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(self.text()?).map_err(|problem| self.error(problem)).ok()
    }

    /// Off as a word, in place of a section.
    pub(super) fn is_off(&self) -> bool {
        matches!(self.peek(), Some("off" | "false"))
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.quantity(units::parse_duration, range, |value| units::format_duration(*value))
    }

    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        self.quantity(units::parse_size, range, |value| units::format_size(*value))
    }

    pub(super) fn ratio(&self, range: RangeInclusive<Ratio>) -> Option<Ratio> {
        self.quantity(units::parse_ratio, range, Ratio::to_string)
    }

    pub(super) fn rate(&self, range: RangeInclusive<f64>) -> Option<f64> {
        self.quantity(units::parse_rate, range, |value| format!("{value}/s"))
    }

    pub(super) fn count(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let parse = |text: &str| text.replace('_', "").parse::<i64>().map_err(|_| NotACount(text.into()));
        let range = i64::from(*range.start())..=i64::from(*range.end());
        self.quantity(parse, range, i64::to_string).and_then(|value| u32::try_from(value).ok())
    }

    fn quantity<T: PartialOrd, E: Display>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, E>,
        range: RangeInclusive<T>,
        print: impl Fn(&T) -> String,
    ) -> Option<T> {
        let written = self.text()?;
        let value = parse(written).map_err(|error| self.error(error)).ok()?;
        if range.contains(&value) {
            return Some(value);
        }
        let (least, most) = (print(range.start()), print(range.end()));
        self.error(format!("`{written}` is out of range: {least} to {most}"));
        None
    }

    /// The items of a list.
    pub(super) fn list(&self) -> Vec<Field<'n>> {
        let Data::List(items) = &self.node.data else {
            self.wrong_kind("a list");
            return Vec::new();
        };
        items.iter().map(|node| Field { node, key_spot: node.spot, ..*self }).collect()
    }

    /// The items of a list, or the one value in place of it.
    pub(super) fn list_or_one(&self) -> Vec<Field<'n>> {
        if matches!(self.node.data, Data::List(_)) { self.list() } else { vec![*self] }
    }

    /// The entries of a mapping whose keys are names of the user's choice, each once.
    pub(super) fn entries(&self) -> Vec<Field<'n>> {
        let Data::Map(entries) = &self.node.data else {
            self.wrong_kind("a mapping");
            return Vec::new();
        };
        let mut fields: Vec<Field<'n>> = Vec::new();
        for (key, node) in entries {
            let Data::Text(name) = &key.data else {
                self.reader.error(key.spot, format!("a key is a single word, not {}", key.data.kind()));
                continue;
            };
            if let Some(first) = fields.iter().find(|field| field.key == name) {
                let hint = format!("remove one; the first is in line {}", first.key_spot.line);
                self.reader.error_with(key.spot, format!("`{name}` is given twice"), hint);
                continue;
            }
            fields.push(Field { reader: self.reader, key: name, key_spot: key.spot, node });
        }
        fields
    }

    /// The entries of a mapping that has been read already: nothing is told again. None if it is not one.
    pub(super) fn known_entries(self) -> impl Iterator<Item = Field<'n>> {
        let entries = if let Data::Map(entries) = &self.node.data { entries.as_slice() } else { &[] };
        entries.iter().filter_map(move |(key, node)| match &key.data {
            Data::Text(name) => Some(Field { reader: self.reader, key: name, key_spot: key.spot, node }),
            _ => None,
        })
    }

    /// A mapping with these keys and no others.
    pub(super) fn section(&self, keys: Keys) -> Section<'n> {
        let readable = matches!(self.node.data, Data::Map(_));
        let mut fields = self.entries();
        fields.retain(|field| self.is_known(field, keys));
        Section { reader: self.reader, of: keys.of, spot: self.key_spot, fields, readable }
    }

    fn is_known(&self, field: &Field<'_>, keys: Keys) -> bool {
        if keys.known.contains(&field.key) {
            return true;
        }
        if keys.later.contains(&field.key) {
            let message = format!("`{}` is not supported by this version yet", field.key);
            self.reader.error_with(field.key_spot, message, "remove it: it would have no effect");
        } else {
            let hint = hint_of(field.key, keys.known.iter().copied());
            self.reader.error_with(field.key_spot, format!("unknown key `{}`", field.key), hint);
        }
        false
    }
}

struct NotACount(String);

impl Display for NotACount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` is not a whole number, such as `3`", self.0)
    }
}

/// Reads `60% over 500ms`.
pub(super) fn parse_slow(text: &str) -> Result<(Ratio, Duration), String> {
    let (rate, over) =
        text.split_once(" over ").ok_or_else(|| format!("`{text}` is not a rule, such as `60% over 500ms`"))?;
    let (rate, over) = (units::parse_ratio(rate), units::parse_duration(over));
    let words = |error: UnitError| error.to_string();
    Ok((rate.map_err(words)?, over.map_err(words)?))
}
