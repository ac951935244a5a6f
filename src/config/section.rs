//! One table of the configuration while it is read: each key is asked for once, and answered by the flag, the variable,
//! the file or the default, in this order. What was not asked for is unknown.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::document::{Branch, Value};
use super::kind::{self, Judged};
use super::literal::{Literal, excerpt, looks_secret, quoted, repeated};
use super::reader::{Reader, closest, variable};
use super::{Entry, KeySource, Origin};

/// The keys that say where a secret is, each with the kind of place.
pub(super) type SecretKeys = [(&'static str, Place)];
/// Of an API key.
pub(super) const KEY: [(&str, Place); 3] =
    [("key_file", Place::File), ("key_credential", Place::Credential), ("key_env", Place::Env)];
/// Of what webhooks are signed with.
pub(super) const SECRET: [(&str, Place); 3] =
    [("secret_file", Place::File), ("secret_credential", Place::Credential), ("secret_env", Place::Env)];
/// Of what callers of the HTTP server have to show.
pub(super) const TOKEN: [(&str, Place); 2] = [("token_file", Place::File), ("token_credential", Place::Credential)];

/// Where a secret may be.
pub(super) enum Place {
    /// In a file.
    File,
    /// With systemd.
    Credential,
    /// In a variable.
    Env,
}

/// One table while it is read.
pub(super) struct Section<'r, 'a> {
    pub reader: &'r mut Reader<'a>,
    path: String,
    branch: Branch,
    known: Vec<&'static str>,
    inherits: Option<&'static str>,
}

/// A value that somebody has given.
struct Found {
    value: Value,
    written: String,
    origin: Origin,
}

impl<'r, 'a> Section<'r, 'a> {
    /// The table `path`, empty for the top level.
    pub fn new(reader: &'r mut Reader<'a>, path: String, branch: Branch) -> Self {
        Self { reader, path, branch, known: Vec::new(), inherits: None }
    }

    /// Says of which table this one has its defaults.
    pub fn inheriting(mut self, path: &'static str) -> Self {
        self.inherits = Some(path);
        self
    }

    /// The directory to which paths in the file are relative.
    pub fn base(&self) -> PathBuf {
        self.reader.file.and_then(|file| file.path.parent()).unwrap_or(Path::new("")).into()
    }

    /// The configuration file, when others than its owner and group may write to it.
    pub fn writable_by_others(&self) -> Option<&'a Path> {
        self.reader.file.filter(|file| file.writable_by_others).map(|file| file.path.as_path())
    }

    /// A value that has no default.
    pub fn setting<T: Literal>(&mut self, key: &'static str, kind: impl Fn(&Value) -> Judged<T>) -> Option<T> {
        let found = self.take(key)?;
        self.judge(key, found, kind)
    }

    /// A value that has a default.
    pub fn setting_or<T: Literal>(&mut self, key: &'static str, default: T, kind: impl Fn(&Value) -> Judged<T>) -> T {
        let found = self.take(key);
        self.judge_or(key, found, default, kind)
    }

    /// A value that no variable overrides (a list, a table, a name) and that has a default.
    pub fn written_or<T: Literal>(&mut self, key: &'static str, default: T, kind: impl Fn(&Value) -> Judged<T>) -> T {
        let found = self.take_written(key);
        self.judge_or(key, found, default, kind)
    }

    /// A value that no variable overrides and that has no default.
    pub fn written<T: Literal>(&mut self, key: &'static str, kind: impl Fn(&Value) -> Judged<T>) -> Option<T> {
        let found = self.take_written(key)?;
        self.judge(key, found, kind)
    }

    /// A path, see [`kind::path`].
    pub fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let base = self.base();
        self.setting(key, kind::path(&base))
    }

    /// A secret, by whichever of these keys says where it is.
    pub fn secret(&mut self, keys: &SecretKeys) -> Option<KeySource> {
        // Whoever overrides the one means to replace the others, too.
        if keys.iter().any(|(key, _)| self.overrides(key)) {
            keys.iter().for_each(|(key, _)| self.forget(key));
        }
        let mut found: Option<(&str, KeySource)> = None;
        for (key, place) in keys {
            let source = match place {
                Place::File => self.path(key).map(KeySource::File),
                Place::Credential => self.setting(key, kind::credential_name).map(KeySource::Credential),
                Place::Env => self.setting(key, kind::secret_variable).map(KeySource::Env),
            };
            if let (Some((first, _)), Some(_)) = (&found, &source) {
                let text = format!("must not be beside `{first}`: a secret has one place");
                self.reader.blame(&self.full(key), &text);
            }
            let missing = match &source {
                Some(KeySource::File(path)) if !path.exists() => path.file_name().and_then(OsStr::to_str),
                Some(KeySource::Env(name)) if self.reader.environment.get(name).is_none() => Some(name.as_str()),
                _ => None,
            };
            self.refuse_secret(key, missing);
            found = found.or(source.map(|source| (*key, source)));
        }
        found.map(|(_, source)| source)
    }

    /// Complains of the name of what is not there if it may be the secret itself: it would be shown as a name is.
    fn refuse_secret(&mut self, key: &str, missing: Option<&str>) {
        if missing.is_some_and(looks_secret) {
            let key = self.full(key);
            self.reader.blame(
                &key,
                "must name what holds the secret, and there is nothing of this name; is it the secret itself?",
            );
        }
    }

    /// Whether a variable or a flag gives this value.
    pub fn overrides(&mut self, key: &'static str) -> bool {
        self.overridden(key).is_some()
    }

    /// Whether the file gives this value.
    pub fn has_written(&mut self, key: &'static str) -> bool {
        self.know(key);
        self.branch.nodes.contains_key(key)
    }

    /// Whether anybody gives this value.
    pub fn has(&mut self, key: &'static str) -> bool {
        self.has_written(key) || self.overrides(key)
    }

    /// Complains of a name that another table has, or one that looks the same in variables, which have no `-`.
    pub fn claim_name(&mut self) {
        let Some(variable) = variable(&self.path) else { return };
        if let Some(other) = self.reader.named.insert(variable, self.path.clone()) {
            self.complain(&if other == self.path {
                "must have a name of its own; there is another of this name".into()
            } else {
                format!("must differ from {other} by more than - and _: the variables of both would be the same")
            });
        }
    }

    /// Leaves out what the file says for this key.
    pub fn forget(&mut self, key: &'static str) {
        self.branch.nodes.remove(key);
        self.know(key);
    }

    /// Complains of those of these keys that are given.
    pub fn refuse(&mut self, keys: &[&'static str], text: &str) {
        for key in keys {
            if let Some(found) = self.take(key) {
                let full = self.full(key);
                self.reader.complain(&found.origin, &full, None, text);
            }
        }
    }

    /// Complains of the table as a whole.
    pub fn complain(&mut self, text: &str) {
        let origin = self.reader.origin(self.branch.line);
        self.reader.complain(&origin, &self.path, None, text);
    }

    /// Complains of a value that nobody gives.
    pub fn lacks(&mut self, key: &str, text: &str) {
        let key = self.full(key);
        self.reader.complain(&Origin::Default, &key, None, text);
    }

    /// Notes a value in effect that was found elsewhere.
    pub fn note(&mut self, key: &str, value: &impl Literal, origin: Origin) {
        self.reader.entries.push(Entry { key: self.full(key), value: value.literal(), origin });
    }

    /// A table in this one; empty when it is absent.
    pub fn table(&mut self, key: &'static str) -> Branch {
        match self.take_written(key) {
            None => Branch::default(),
            Some(Found { value: Value::Table(branch), .. }) => branch,
            Some(found) => {
                let right = format!("must be a table: [{key}] on its own line, its keys below it");
                self.reader.complain(&found.origin, key, None, &right);
                Branch::default()
            }
        }
    }

    /// The tables in a table, by name.
    pub fn tables_by_name(&mut self, key: &'static str) -> Vec<(String, Branch)> {
        let mut tables = Vec::new();
        for (name, node) in self.table(key).nodes {
            match node.value {
                Value::Table(branch) => tables.push((name, branch)),
                _ => {
                    let origin = self.reader.origin(node.line);
                    let right = format!("must be a table: [{key}.NAME] on its own line, its keys below it");
                    self.reader.complain(&origin, &format!("{key}.{}", excerpt(&name)), None, &right);
                }
            }
        }
        tables
    }

    /// The tables of an array of tables, in the order of the file.
    pub fn array_of_tables(&mut self, key: &'static str) -> Vec<Branch> {
        let Some(found) = self.take_written(key) else { return Vec::new() };
        let right = format!("must be tables: [[{key}]] on its own line before each one's keys");
        let Value::List(nodes) = found.value else {
            self.reader.complain(&found.origin, key, None, &right);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for node in nodes {
            match node.value {
                Value::Table(branch) => tables.push(branch),
                _ => {
                    let origin = self.reader.origin(node.line);
                    self.reader.complain(&origin, key, None, &right);
                }
            }
        }
        tables
    }

    /// Complains of keys that nobody asked for. Their values are not repeated: one may be a secret.
    pub fn finish(self) {
        for (key, node) in &self.branch.nodes {
            let text = format!("unknown key; {}", self.hint(key));
            let (origin, full) = (self.reader.origin(node.line), self.full(&excerpt(key)));
            self.reader.complain(&origin, &full, None, &text);
        }
    }

    fn hint(&self, key: &str) -> String {
        let file = self.known.iter().find(|known| known.strip_suffix("_file").is_some_and(|stem| key.ends_with(stem)));
        if let Some(file) = file {
            return format!("a secret does not stand in this file: `{file}` names the file that holds it");
        }
        if let Some(close) = closest(key, self.known.iter().copied()) {
            return format!("did you mean `{close}`?");
        }
        let table = if self.path.is_empty() { "the top level" } else { &self.path };
        format!("{table} takes {}", self.known.join(", "))
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    fn know(&mut self, key: &'static str) {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
    }

    /// What the file says is taken out even when it is overridden: its key is known all the same.
    fn take(&mut self, key: &'static str) -> Option<Found> {
        let written = self.take_written(key);
        self.overridden(key).or(written)
    }

    fn take_written(&mut self, key: &'static str) -> Option<Found> {
        self.know(key);
        let node = self.branch.nodes.remove(key)?;
        Some(Found { value: node.value, written: node.written, origin: self.reader.origin(node.line) })
    }

    fn overridden(&mut self, key: &'static str) -> Option<Found> {
        let full = self.full(key);
        let flag = self.reader.overrides.value(&full).map(|(flag, value)| (Origin::Flag(flag), value));
        let variable = variable(&full).and_then(|name| {
            self.reader.variables.insert(name.clone());
            let value = self.reader.environment.get(&name)?;
            Some((Origin::Env(name), value))
        });
        let (origin, value) = flag.or(variable)?;
        let written = repeated(&quoted(&value.to_string_lossy()));
        Some(Found { value: Value::Untyped(value), written, origin })
    }

    fn judge<T: Literal>(&mut self, key: &str, found: Found, kind: impl Fn(&Value) -> Judged<T>) -> Option<T> {
        match kind(&found.value) {
            Ok(value) => {
                self.note(key, &value, found.origin);
                Some(value)
            }
            Err(wrong) => {
                let written = (!wrong.hidden).then_some(found.written.as_str());
                let full = self.full(key);
                self.reader.complain(&found.origin, &full, written, &wrong.right);
                None
            }
        }
    }

    fn judge_or<T: Literal>(
        &mut self,
        key: &str,
        found: Option<Found>,
        default: T,
        kind: impl Fn(&Value) -> Judged<T>,
    ) -> T {
        if let Some(found) = found {
            return self.judge(key, found, kind).unwrap_or(default);
        }
        let inherited = self.inherits.and_then(|path| self.reader.origin_of(&format!("{path}.{key}")).cloned());
        self.note(key, &default, inherited.unwrap_or(Origin::Default));
        default
    }
}
