//! YAML as a tree that remembers where everything stands, with `${ENV}` filled in.
//!
//! Unlike a map type this keeps duplicate keys, so that they can be told, and every scalar stays text: what a number
//! means is for the key to say. What an environment variable holds never becomes structure, only text.
//! Bounds: nesting of [`DEPTH_MAX`], [`NODES_MAX`] nodes with every alias counted as what it stands for.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};

use super::finding::{Finding, Severity, Source, Spot};

const DEPTH_MAX: usize = 32;
const NODES_MAX: usize = 100_000;
/// Marks the rest of the line under a value that goes on in the next.
const LINE_REST: usize = 1_000;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) spot: Spot,
    pub(super) data: Data,
}

#[derive(Clone, Debug)]
pub(super) enum Data {
    /// Nothing was written.
    Empty,
    /// Its environment variable is missing, which has been told: whoever reads it says nothing more.
    Unresolved,
    Text(String),
    List(Vec<Node>),
    /// In the order written, duplicates included.
    Map(Vec<(Node, Node)>),
}

impl Data {
    /// What a person would call it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Empty | Self::Unresolved => "nothing",
            Self::Text(_) => "a single value",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Environment variables, as an argument.
pub type Environment<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// Reads a text. What is wrong goes to `findings`; without a tree nothing more can be said.
pub(super) fn parse(source: &Source, environment: &Environment<'_>, findings: &mut Vec<Finding>) -> Option<Node> {
    let mut builder = Builder { source, environment, findings, open: Vec::new(), anchors: BTreeMap::new(), nodes: 0 };
    builder.run()
}

struct Builder<'s> {
    source: &'s Source,
    environment: &'s Environment<'s>,
    findings: &'s mut Vec<Finding>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

/// A list or mapping whose end has not come.
struct Open {
    anchor: usize,
    node: Node,
    key: Option<Node>,
}

impl Builder<'_> {
    fn run(&mut self) -> Option<Node> {
        let mut parser = Parser::new_from_str(&self.source.text);
        let mut root = None;
        while let Some(event) = parser.next_event() {
            match event {
                Ok((Event::DocumentStart(_), span)) if root.is_some() => {
                    return self.fail(spot_of(span), "a second document begins here: one file is one document", None);
                }
                Ok((event, span)) => match self.take(event, span) {
                    Ok(Some(node)) => root = Some(node),
                    Ok(None) => {}
                    Err(Stop) => return None,
                },
                Err(error) => return self.fail_syntax(*error.marker(), error.info()),
            }
        }
        Some(root.unwrap_or(Node { spot: Spot { line: 1, column: 1, length: 1 }, data: Data::Empty }))
    }

    /// The whole tree when it is complete.
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<Option<Node>, Stop> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), span)?;
                let data = self.scalar(&text, style, span);
                self.close(Node { spot: spot_of(span), data }, anchor)
            }
            Event::SequenceStart(anchor, tag) => self.begin(Data::List(Vec::new()), anchor, tag.as_deref(), span),
            Event::MappingStart(anchor, tag) => self.begin(Data::Map(Vec::new()), anchor, tag.as_deref(), span),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { anchor, node, .. }) => self.close(node, anchor),
                None => Ok(None),
            },
            Event::Alias(anchor) => self.alias(anchor, span),
            _ => Ok(None),
        }
    }

    fn begin(&mut self, data: Data, anchor: usize, tag: Option<&Tag>, span: Span) -> Result<Option<Node>, Stop> {
        self.refuse_tag(tag, span)?;
        if self.open.len() >= DEPTH_MAX {
            return self.stop(spot_of(span), &format!("nested deeper than {DEPTH_MAX} levels"));
        }
        self.open.push(Open { anchor, node: Node { spot: spot_of(span), data }, key: None });
        Ok(None)
    }

    fn close(&mut self, node: Node, anchor: usize) -> Result<Option<Node>, Stop> {
        self.count(1, node.spot)?;
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(parent) = self.open.last_mut() else { return Ok(Some(node)) };
        match &mut parent.node.data {
            Data::List(items) => items.push(node),
            Data::Map(entries) => match parent.key.take() {
                None => parent.key = Some(node),
                Some(key) => entries.push((key, node)),
            },
            _ => {}
        }
        Ok(None)
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<Option<Node>, Stop> {
        let spot = spot_of(span);
        let Some(target) = self.anchors.get(&anchor) else {
            return self.stop(spot, "an alias cannot stand inside what it names");
        };
        let (size, data) = (size_of(target), target.data.clone());
        self.count(size, spot)?;
        self.close(Node { spot, data }, 0)
    }

    fn count(&mut self, nodes: usize, spot: Spot) -> Result<(), Stop> {
        self.nodes += nodes;
        if self.nodes <= NODES_MAX { Ok(()) } else { self.stop(spot, &format!("more than {NODES_MAX} values")) }
    }

    fn refuse_tag(&mut self, tag: Option<&Tag>, span: Span) -> Result<(), Stop> {
        match tag {
            Some(tag) if !tag.is_yaml_core_schema() => {
                self.stop(spot_of(span), &format!("the tag `{}{}` means nothing here", tag.handle, tag.suffix))
            }
            _ => Ok(()),
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, span: Span) -> Data {
        if style == ScalarStyle::Plain && matches!(text, "" | "~" | "null") {
            return Data::Empty;
        }
        match substitute(text, self.environment) {
            Ok(text) => Data::Text(text),
            Err(problem) => {
                let spot = self.locate(&problem.written, spot_of(span));
                let finding = self.source.finding(Severity::Error, spot, problem.message, problem.hint);
                self.findings.push(finding);
                Data::Unresolved
            }
        }
    }

    /// Where in its scalar the placeholder stands.
    fn locate(&self, written: &str, scalar: Spot) -> Spot {
        let line: Vec<char> = self.source.line(scalar.line).chars().collect();
        let rest: String = line.iter().skip(scalar.column - 1).collect();
        match rest.find(written) {
            None => scalar,
            Some(bytes) => {
                let column = scalar.column + rest[..bytes].chars().count();
                Spot { line: scalar.line, column, length: written.chars().count() }
            }
        }
    }

    fn stop<T>(&mut self, spot: Spot, message: &str) -> Result<T, Stop> {
        let _ = self.fail(spot, message, None);
        Err(Stop)
    }

    fn fail(&mut self, spot: Spot, message: &str, hint: Option<String>) -> Option<Node> {
        self.findings.push(self.source.finding(Severity::Error, spot, message.into(), hint));
        None
    }

    fn fail_syntax(&mut self, marker: Marker, info: &str) -> Option<Node> {
        let spot = Spot { line: marker.line(), column: marker.col() + 1, length: 1 };
        let line = self.source.line(spot.line);
        let hint = if line.contains("${") {
            Some("inside `{ }` and `[ ]` write quotes around `${...}`".into())
        } else if line.contains('\t') {
            Some("indent with spaces, not with tabs".into())
        } else {
            None
        };
        self.fail(spot, &format!("not YAML: {info}"), hint)
    }
}

/// Nothing more can be read.
struct Stop;

fn size_of(node: &Node) -> usize {
    1 + match &node.data {
        Data::List(items) => items.iter().map(size_of).sum(),
        Data::Map(entries) => entries.iter().map(|(key, value)| size_of(key) + size_of(value)).sum(),
        _ => 0,
    }
}

fn spot_of(span: Span) -> Spot {
    let (start, end) = (span.start, span.end);
    let length = if start.line() == end.line() { end.col().saturating_sub(start.col()) } else { LINE_REST };
    Spot { line: start.line().max(1), column: start.col() + 1, length: length.max(1) }
}

struct Unresolved {
    written: String,
    message: String,
    hint: Option<String>,
}

/// Fills in `${NAME}` and `${NAME:-default}`; `$${` stands for `${`.
fn substitute(text: &str, environment: &Environment<'_>) -> Result<String, Unresolved> {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(escaped) = before.strip_suffix('$') {
            out.push_str(escaped);
            out.push_str("${");
            rest = &from[2..];
            continue;
        }
        out.push_str(before);
        let Some(end) = from.find('}') else {
            let hint = Some("close it with `}`, or write `$${` for the two characters themselves".into());
            return Err(Unresolved { written: from.into(), message: "`${` without its `}`".into(), hint });
        };
        out.push_str(&value_of(&from[..=end], environment)?);
        rest = &from[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// `${NAME:-default}`, brackets included, to its value. As in a shell an empty variable takes the default too.
fn value_of(written: &str, environment: &Environment<'_>) -> Result<String, Unresolved> {
    let inner = &written[2..written.len() - 1];
    let (name, default) = inner.split_once(":-").map_or((inner, None), |(name, default)| (name, Some(default)));
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let unresolved = |message: String, hint: String| Unresolved { written: written.into(), message, hint: Some(hint) };
    if name.is_empty() || !name.chars().all(valid) || name.starts_with(|c: char| c.is_ascii_digit()) {
        let hint = "write `${NAME}` or `${NAME:-default}`, NAME of letters, digits and `_`".into();
        return Err(unresolved(format!("`{written}` does not name an environment variable"), hint));
    }
    match (environment(name).filter(|value| !value.is_empty()), default) {
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.into()),
        (None, None) => {
            let message = format!("the environment variable `{name}` is not set");
            Err(unresolved(message, format!("set it, or give a default: `${{{name}:-...}}`")))
        }
    }
}
