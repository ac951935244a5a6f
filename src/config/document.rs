//! Stage one, raw: what the file says, each value with its line, nothing judged yet.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::literal::{excerpt, printable, repeated};

/// A table, and the line on which it begins; 0 for one that is not in the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Branch {
    pub line: usize,
    pub nodes: BTreeMap<String, Node>,
}

/// One value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Counted from 1.
    pub line: usize,
    /// As it stands in the file, as far as an error repeats it.
    pub written: String,
    pub value: Value,
}

/// A value whose meaning depends on the key.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A string of the file's.
    Quoted(String),
    /// A number, a boolean or a date of the file's.
    Bare(String),
    /// From a variable or a flag, which have no types.
    Untyped(OsString),
    List(Vec<Node>),
    Table(Branch),
}

impl Value {
    /// The text, where a string is wanted.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Quoted(text) => Some(text),
            Self::Untyped(text) => text.to_str(),
            Self::Bare(_) | Self::List(_) | Self::Table(_) => None,
        }
    }

    /// The text, where a number or a boolean is wanted.
    pub fn bare(&self) -> Option<&str> {
        match self {
            Self::Bare(text) => Some(text),
            Self::Untyped(text) => text.to_str(),
            Self::Quoted(_) | Self::List(_) | Self::Table(_) => None,
        }
    }
}

/// Reads TOML. The errors are lines and what is wrong there; none repeats a value.
pub(super) fn parse(text: &str) -> Result<Branch, Vec<(usize, String)>> {
    let source = Source::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(source.branch(table.into_inner(), 1));
    }
    let mut problems: Vec<_> = errors.iter().map(|error| source.problem(error)).collect();
    // The parser goes on after an error, and what it finds then on the same line is mostly a consequence of the first.
    problems.dedup_by_key(|(line, _)| *line);
    Err(problems)
}

struct Source<'a> {
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, lines }
    }

    fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at)
    }

    fn slice(&self, span: Range<usize>) -> &'a str {
        self.text.get(span).unwrap_or_default()
    }

    fn problem(&self, error: &toml::de::Error) -> (usize, String) {
        let span = error.span().unwrap_or(self.text.len()..self.text.len());
        let line = self.line(span.start);
        let message = error.message();
        if message == "duplicate key" {
            return (line, format!("{}: {message}", excerpt(self.slice(span))));
        }
        (line, format!("not TOML: {}", printable(message)))
    }

    fn branch(&self, table: DeTable<'_>, line: usize) -> Branch {
        let nodes = table.into_iter().map(|(key, value)| {
            let line = self.line(key.span().start);
            (key.into_inner().into_owned(), self.node(value, line))
        });
        Branch { line, nodes: nodes.collect() }
    }

    fn node(&self, value: Spanned<DeValue<'_>>, line: usize) -> Node {
        let written = repeated(self.slice(value.span()));
        let value = match value.into_inner() {
            DeValue::String(text) => Value::Quoted(text.into_owned()),
            DeValue::Integer(number) => {
                let decimal = i64::from_str_radix(number.as_str(), number.radix());
                Value::Bare(decimal.map_or_else(|_| number.to_string(), |decimal| decimal.to_string()))
            }
            DeValue::Float(number) => Value::Bare(number.as_str().into()),
            DeValue::Boolean(truth) => Value::Bare(truth.to_string()),
            DeValue::Datetime(date) => Value::Bare(date.to_string()),
            DeValue::Array(elements) => {
                let nodes = elements.into_iter().map(|element| {
                    let line = self.line(element.span().start);
                    self.node(element, line)
                });
                Value::List(nodes.collect())
            }
            DeValue::Table(table) => Value::Table(self.branch(table, line)),
        };
        Node { line, written, value }
    }
}
