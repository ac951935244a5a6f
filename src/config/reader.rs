//! Stage two, merged: what was found while the tables were read, where it came from, and what was wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use super::document::Branch;
use super::find::File;
use super::literal::printable;
use super::origin::complaint;
use super::section::Section;
use super::{Entry, Environment, Origin, Overrides};

/// What every variable of ours begins with.
const PREFIX: &str = "ASSETWATCH_";
/// Variables of ours that are no settings.
const OTHER_VARIABLES: [&str; 3] = [super::CONFIG_VARIABLE, super::LOG_VARIABLES[0], super::LOG_VARIABLES[1]];

/// Reads the whole configuration and remembers what was found, and what was wrong with it.
pub(super) struct Reader<'a> {
    pub file: Option<&'a File>,
    pub overrides: &'a Overrides,
    pub environment: &'a Environment,
    /// The variables that settings were looked for in.
    pub variables: BTreeSet<String>,
    /// The paths of the tables that have names of their own, by the variables that override them.
    pub named: BTreeMap<String, String>,
    /// The line of each problem, by which they are sorted in the end.
    problems: Vec<(usize, String)>,
    pub warnings: Vec<String>,
    pub entries: Vec<Entry>,
}

impl<'a> Reader<'a> {
    pub fn new(file: Option<&'a File>, overrides: &'a Overrides, environment: &'a Environment) -> Self {
        Self {
            file,
            overrides,
            environment,
            variables: BTreeSet::new(),
            named: BTreeMap::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// A table of the configuration; `path` is its name, empty for the top level.
    pub fn section(&mut self, path: impl Into<String>, branch: Branch) -> Section<'_, 'a> {
        Section::new(self, path.into(), branch)
    }

    /// Whether all is well so far.
    pub fn is_content(&self) -> bool {
        self.problems.is_empty()
    }

    /// All problems, in the order of the file; those of variables and flags come last.
    pub fn into_problems(mut self) -> Vec<String> {
        self.problems.sort_by_key(|(line, _)| *line);
        self.problems.into_iter().map(|(_, text)| text).collect()
    }

    /// Where the value in effect comes from.
    pub fn origin_of(&self, key: &str) -> Option<&Origin> {
        self.entry(key).map(|entry| &entry.origin)
    }

    /// Complains of a value that was fine by itself.
    pub fn blame(&mut self, key: &str, text: &str) {
        if let Some(entry) = self.entry(key) {
            self.problems.push((line_of(&entry.origin), entry.line(text)));
        }
    }

    /// Warns of a value.
    pub fn warn(&mut self, key: &str, text: &str) {
        if let Some(entry) = self.entry(key) {
            self.warnings.push(entry.line(text));
        }
    }

    /// Warns of variables that look like settings and are none. It is no error, since a variable may be somebody
    /// else's; `named` are variables that the configuration itself names.
    pub fn warn_of_unknown_variables(&mut self, named: &[&str]) {
        for name in self.environment.names().filter(|name| name.starts_with(PREFIX)) {
            let known = self.variables.contains(name) || OTHER_VARIABLES.contains(&name) || named.contains(&name);
            if known {
                continue;
            }
            let hint = match closest(name, self.variables.iter().map(String::as_str)) {
                Some(close) => format!("; did you mean ${close}?"),
                None if name == "ASSETWATCH_API_KEY" => "; the key itself is read from $AFFOGATO_API_KEY".into(),
                None => String::new(),
            };
            self.warnings.push(format!("${}: unknown variable, ignored{hint}", printable(name)));
        }
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// A line of the file.
    pub fn origin(&self, line: usize) -> Origin {
        let path = self.file.map(|file| file.path.clone()).unwrap_or_default();
        Origin::File { path, line }
    }

    /// Complains of what came from `origin`.
    pub fn complain(&mut self, origin: &Origin, key: &str, value: Option<&str>, text: &str) {
        self.problems.push((line_of(origin), complaint(origin, key, value, text)));
    }
}

fn line_of(origin: &Origin) -> usize {
    match origin {
        Origin::File { line, .. } => *line,
        Origin::Default | Origin::Env(_) | Origin::Flag(_) => usize::MAX,
    }
}

/// The variable that overrides a key; none for a table without a proper name.
pub(super) fn variable(key: &str) -> Option<String> {
    let letters = key.chars().map(|letter| match letter {
        '.' | '-' | '_' => Some('_'),
        _ => letter.is_ascii_alphanumeric().then(|| letter.to_ascii_uppercase()),
    });
    let name: String = letters.collect::<Option<_>>()?;
    Some(format!("{PREFIX}{name}"))
}

/// The candidate that `text` is most probably a misspelling of: at most one letter in three is wrong.
pub fn closest<'c>(text: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(text, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 2 && distance * 3 <= candidate.len())
        .map(|(_, candidate)| candidate)
}
