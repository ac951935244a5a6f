//! How things are printed: data to stdout, tables on a terminal, JSON for machines.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ColumnConstraint, ContentArrangement, Row, Table, presets};
use serde::Serialize;

use super::{Color, Global};
use crate::clock::Timestamp;
use crate::config::Settings;
use crate::watch::{State, Watch};

/// Exit codes, as the help lists them.
pub mod exit {
    /// Ok.
    pub const OK: u8 = 0;
    /// Something went wrong.
    pub const FAILURE: u8 = 1;
    /// Wrong usage, as clap has it.
    pub const USAGE: u8 = 2;
    /// Settled, but not all `active`.
    pub const NOT_ACTIVE: u8 = 3;
    /// Abandoned or cancelled.
    pub const NOT_SETTLED: u8 = 4;
    /// Not authorized.
    pub const UNAUTHORIZED: u8 = 5;
    /// The database is damaged, another program's or a newer version's, or was taken away (sysexits' EX_DATAERR; the unit file
    /// does not restart on it).
    pub const UNFIT: u8 = 65;
    /// Bad configuration (sysexits' EX_CONFIG; the unit file does not restart on it).
    pub const CONFIGURATION: u8 = 78;
    /// `--timeout` ran out, as with coreutils' `timeout`.
    pub const TIMED_OUT: u8 = 124;
    /// Interrupted, as with a shell.
    pub const INTERRUPTED: u8 = 130;
}

/// Where and how to print.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// One JSON object a line.
    pub json: bool,
    /// Nothing but data and errors.
    pub quiet: bool,
    /// Colour on stdout.
    pub color: bool,
    /// Whether a person looks at stdout.
    pub terminal: bool,
}

impl Output {
    /// What the options and the terminal say.
    pub fn new(global: &Global) -> Self {
        let terminal = io::stdout().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let color = match global.color {
            Color::Auto => terminal && wanted,
            Color::Always => true,
            Color::Never => false,
        };
        Self { json: global.json, quiet: global.quiet, color, terminal }
    }

    /// Prints a line of data.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn line(&self, text: &str) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{text}")
            .map_err(|error| io::Error::new(error.kind(), format!("stdout cannot be written: {error}")))
    }

    /// Prints an object as one line of JSON.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn object(&self, value: &impl Serialize) -> io::Result<()> {
        self.line(&escaped(&serde_json::to_string(value)?))
    }

    /// Prints rows: a table on a terminal, else without a head and with tabs, for `cut` and `awk`. Where the terminal is
    /// too narrow, the last column is cut, so that a row stays one line.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn rows(&self, head: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        self.table(head, rows, Some(1))
    }

    /// The same, but what does not fit is wrapped: where every row is to be read as a whole.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn whole_rows(&self, head: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        self.table(head, rows, None)
    }

    fn table(&self, head: &[&str], rows: Vec<Vec<String>>, height: Option<usize>) -> io::Result<()> {
        if !self.terminal {
            return rows.iter().try_for_each(|row| self.line(&row.join("\t")));
        }
        self.line(&table(head, rows, height).trim_fmt())
    }

    /// Tells a person something that is not data.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            note(text);
        }
    }
}

/// A table as wide as the terminal, whose rows have at most `height` lines.
fn table(head: &[&str], rows: Vec<Vec<String>>, height: Option<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    let mut head: Row = head.iter().map(|name| name.to_uppercase()).collect::<Vec<_>>().into();
    let mut rows: Vec<Row> = rows.into_iter().map(Row::from).collect();
    if let Some(height) = height {
        head.max_height(height);
        for row in &mut rows {
            row.max_height(height);
        }
    }
    table.set_header(head).add_rows(rows);
    let columns = table.column_count();
    if height.is_some() {
        // The last one has what is left.
        for column in table.column_iter_mut().take(columns.saturating_sub(1)) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
}

/// Whoever read our output has left: not what was done, and so not what the exit code says. For commands that do more
/// than to print.
///
/// # Errors
/// Any other one.
pub fn unheard(printed: io::Result<()>) -> io::Result<()> {
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

/// Prints each setting and where its value comes from.
///
/// # Errors
/// When stdout is closed.
pub fn show_config(settings: &Settings, output: Output) -> anyhow::Result<u8> {
    let entries = &settings.entries;
    if output.json {
        for entry in entries {
            output.object(&serde_json::json!({
                "key": entry.key, "value": entry.value, "origin": entry.origin.to_string(),
            }))?;
        }
        return Ok(exit::OK);
    }
    let rows = entries.iter().map(|entry| vec![entry.key.clone(), plain(&entry.value), entry.origin.to_string()]);
    output.whole_rows(&["key", "value", "from"], rows.collect())?;
    Ok(exit::OK)
}

/// Names a problem.
pub fn complain(text: &str) {
    note(&format!("assetwatch: {text}"));
}

/// A line to stderr; whoever has closed it does not want to know.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// What a receiver or a command said, under its name and so many columns in: shown line by line, and never obeyed.
///
/// # Errors
/// When stdout is closed.
pub fn print_kept((indent, name): (usize, &str), kept: Option<&str>, output: Output) -> io::Result<()> {
    let Some(kept) = kept else { return Ok(()) };
    output.line(&format!("{:indent$}{name}:", ""))?;
    kept.lines().try_for_each(|line| output.line(&format!("{:indent$}  {}", "", plain(&line.replace('\t', "    ")))))
}

/// Foreign text for a terminal: control characters would be obeyed, and those that break a line or turn the direction of
/// writing make a text look like another one.
pub fn plain(text: &str) -> String {
    let turns = |c| matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { '\u{fffd}' } else { c }).collect()
}

/// JSON whose strings hold no control character as it is: JSON itself asks that only of those below U+0020.
fn escaped(json: &str) -> String {
    let escape = |c: char| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    if json.contains(char::is_control) { json.chars().map(escape).collect() } else { json.to_owned() }
}

/// The latest word on a watch: the API's for one that waits or has settled, else ours.
pub fn word(watch: &Watch) -> String {
    let status = watch.asset.status.as_deref();
    match watch.state {
        State::Settled => plain(status.unwrap_or("settled")),
        State::Waiting => plain(status.unwrap_or("waiting")),
        State::Abandoned => format!("abandoned ({})", watch.reason.map_or("", crate::watch::Reason::as_str)),
        State::Cancelled => "cancelled".into(),
    }
}

/// One line about a watch: `ast_1 active https://…`.
pub fn summary(watch: &Watch) -> String {
    let url = watch.asset.url.as_deref().filter(|_| watch.state == State::Settled).map(plain);
    [Some(plain(&watch.asset_id)), Some(word(watch)), url].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// The time from `earlier` to `later` in whole seconds, for people.
pub fn span(earlier: Timestamp, later: Timestamp) -> String {
    humantime::format_duration(std::time::Duration::from_secs(later.since(earlier).as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line_however_narrow_the_terminal() {
        let row = |id: &str, url: &str| [id, "waiting", url].map(String::from).to_vec();
        let rows =
            vec![row("ast_1", &format!("https://cdn.example/{}", "x".repeat(300))), row("ast_long", "a b c d e f g h")];
        for width in [30, 40, 80] {
            let table = table(&["asset", "state", "url or error"], rows.clone(), Some(1)).set_width(width).trim_fmt();
            assert_eq!(table.lines().count(), 3, "{table}");
            assert!(table.lines().all(|line| line.chars().count() <= width.into()), "{table}");
            assert!(table.contains("ast_long  waiting"), "{table}");
        }
        let wide = table(&["asset", "state", "url"], rows, Some(1)).set_width(400).trim_fmt();
        assert!(wide.contains(&"x".repeat(300)), "whole where it fits");
    }

    #[test]
    fn nothing_foreign_is_obeyed_by_a_terminal() {
        assert_eq!(plain("a\x1b[2Jb\u{9b}31m\u{202e}c\u{2066}\n"), "a\u{fffd}[2Jb\u{fffd}31m\u{fffd}c\u{fffd}\u{fffd}");
        let json = serde_json::to_string("\u{7f}\u{9b}\x1b é").unwrap();
        assert_eq!(escaped(&json), r#""\u007f\u009b\u001b é""#);
    }
}
