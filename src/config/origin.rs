//! Where each value of the configuration came from, and how a person is told.

use std::fmt;
use std::path::PathBuf;

use super::literal::{printable, repeated};

/// Where a value came from. Each of these overrides the ones before it.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of the configuration file, counted from 1.
    File { path: PathBuf, line: usize },
    /// A variable of the environment.
    Env(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", printable(&path.to_string_lossy())),
            Self::Env(name) => write!(f, "${name}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One value in effect: a line of `config show`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its table and key, with dots; a hook's table is `hooks` and its name.
    pub key: String,
    /// The value as TOML. What may be a secret is masked in it: the paths of hooks' URLs and the values of their `env`.
    pub value: String,
    /// Who said so.
    pub origin: Origin,
}

impl Entry {
    /// What to say of this value, in one line that names where it comes from.
    pub(super) fn line(&self, text: &str) -> String {
        complaint(&self.origin, &self.key, Some(&repeated(&self.value)), text)
    }
}

/// `FILE:LINE: KEY = VALUE: TEXT`, or with the variable or the flag in place of file and key. A value that may be a
/// secret is left out.
pub(super) fn complaint(origin: &Origin, key: &str, value: Option<&str>, text: &str) -> String {
    let key = printable(key);
    let place = match origin {
        Origin::Default => key,
        Origin::File { .. } => format!("{origin}: {key}"),
        Origin::Env(_) | Origin::Flag(_) => origin.to_string(),
    };
    match value {
        Some(value) => format!("{place} = {value}: {text}"),
        None => format!("{place}: {text}"),
    }
}
