//! Configuration: what settles and is shown settles to the same again, and what is refused is refused in lines that can
//! be shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use assetwatch::config::{ConfigError, Entry, Environment, Overrides, Settings, load};

/// Settles `text` as the configuration of a machine of its own, whose files are all below `directory`.
pub fn settle(directory: &Path, text: &[u8]) -> Result<Settings, ConfigError> {
    let file = directory.join("assetwatch.toml");
    std::fs::write(&file, text).unwrap();
    let overrides = Overrides { config: Some(file), ..Overrides::default() };
    load(&overrides, &[("HOME", directory)].into_iter().collect::<Environment>())
}

/// What holds for any text.
pub fn check(directory: &Path, text: &[u8]) {
    let settings = match settle(directory, text) {
        Ok(settings) => settings,
        Err(error) => {
            assert!(!error.problems().is_empty());
            for problem in error.problems() {
                assert!(!problem.chars().any(char::is_control), "{problem:?}");
                assert!(problem.chars().count() < 4_000, "{} characters", problem.chars().count());
            }
            return;
        }
    };
    let written = written(&settings.entries);
    let again =
        settle(directory, written.as_bytes()).unwrap_or_else(|error| panic!("{error}\nin what was shown:\n{written}"));
    assert_eq!(shown(&settings.entries), shown(&again.entries), "what is shown is what was shown");
    if !written.contains("***") {
        let of = |settings: &Settings| (settings.accounts.clone(), settings.hooks.clone(), settings.http.clone());
        assert_eq!(of(&settings), of(&again), "what is shown is what is in effect:\n{written}");
    }
    assert_eq!((&settings.database, settings.grace), (&again.database, again.grace));
}

fn shown(entries: &[Entry]) -> BTreeMap<&str, &str> {
    entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect()
}

/// What `config show` shows, as a file. A hook's table is named by it, and an array's in the file.
fn written(entries: &[Entry]) -> String {
    let mut tables = BTreeMap::<String, String>::new();
    let mut hooks = Vec::<(String, String)>::new();
    for Entry { key, value, .. } in entries {
        let (table, key) = key.rsplit_once('.').unwrap_or(("", key));
        let lines = match table.strip_prefix("hooks.") {
            None => tables.entry(table.to_owned()).or_default(),
            Some(name) => {
                let at = hooks.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                    hooks.push((name.to_owned(), String::new()));
                    hooks.len() - 1
                });
                &mut hooks[at].1
            }
        };
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{key} = {value}");
    }
    let mut text = tables.remove("").unwrap_or_default();
    for (table, lines) in tables {
        let _ = write!(text, "[{table}]\n{lines}");
    }
    for (_, lines) in hooks {
        let _ = write!(text, "[[hooks]]\n{lines}");
    }
    text
}
