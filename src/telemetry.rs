//! Where the log goes: one line for each change of state to stderr, or one entry to the journal. And what is measured.

mod measure;

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write, stderr};
use std::panic;

use rustix::fs::fstat;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use measure::{Metrics, measure, registry};

use crate::cli::{LogFormat, Screen};

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Changes that an operator should see.
    Normal,
    /// Every change of state.
    Verbose,
    /// Every poll and attempt.
    Debug,
}

/// What a log is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines on stderr, for people. The journal adds times of its own, so they have none where it reads them.
    Text {
        /// Whether the journal is what stderr goes to.
        into_journal: bool,
    },
    /// Entries with fields, sent to journald; [`Format::Text`] where that cannot be reached.
    Journald,
    /// One JSON object a line on stderr.
    Json,
}

impl Format {
    /// What `wanted` means for this process.
    pub fn of(wanted: LogFormat) -> Self {
        let into_journal = is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref());
        match wanted {
            LogFormat::Auto if into_journal => Self::Journald,
            LogFormat::Auto | LogFormat::Text => Self::Text { into_journal },
            LogFormat::Journald => Self::Journald,
            LogFormat::Json => Self::Json,
        }
    }

    /// Whether it is for machines: then what is said at the very end is one of its entries as well.
    pub fn is_structured(self) -> bool {
        !matches!(self, Self::Text { .. })
    }
}

/// Whether stderr is the stream that systemd has connected with the journal. The variable alone does not tell: whoever
/// starts us may have redirected stderr since.
fn is_journal(stream: Option<&str>) -> bool {
    let parsed = stream.and_then(|stream| stream.split_once(':'));
    let Some((Ok(device), Ok(inode))) = parsed.map(|(device, inode)| (device.parse::<u64>(), inode.parse::<u64>()))
    else {
        return false;
    };
    fstat(stderr()).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

/// Starts the log of this process. `ASSETWATCH_LOG` (`tracing`'s filter syntax) takes precedence over `verbosity`.
///
/// Lines stand above what `screen` shows at the moment, and without colour where stderr is no terminal or `color` is off.
pub fn start(verbosity: Verbosity, format: Format, color: bool, screen: Screen) {
    let level = match verbosity {
        Verbosity::Quiet => "error",
        Verbosity::Normal => "warn",
        Verbosity::Verbose => "info",
        Verbosity::Debug => "assetwatch=debug,info",
    };
    let filter = EnvFilter::try_from_env("ASSETWATCH_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let color = color && stderr().is_terminal();
    match format {
        Format::Text { into_journal } => to_stderr(filter, into_journal, color, screen),
        Format::Json => to_stderr_as_json(filter, screen),
        Format::Journald => match tracing_journald::layer() {
            Ok(layer) => to_journald(filter, layer),
            Err(error) => {
                to_stderr(filter, false, color, screen);
                tracing::warn!("journald cannot be reached, so the log goes to stderr: {error}");
            }
        },
    }
    if format.is_structured() {
        // It would be several lines, none of them an entry.
        panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    }
}

// The second start in one process, as in a test, keeps the first one's settings: so it is no error below.

fn to_stderr(filter: EnvFilter, into_journal: bool, color: bool, screen: Screen) {
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(color);
    // What cannot be written is lost: to say so on the same stderr would end us.
    let log = log.with_writer(move || Lines { screen: screen.clone(), color }).log_internal_errors(false);
    let _ = if into_journal { log.without_time().try_init() } else { log.with_timer(SystemTime).try_init() };
}

fn to_stderr_as_json(filter: EnvFilter, screen: Screen) {
    let log = tracing_subscriber::fmt().json().flatten_event(true).with_current_span(false).with_span_list(false);
    let log = log.with_env_filter(filter).with_timer(SystemTime).log_internal_errors(false);
    let _ = log.with_writer(move || Lines { screen: screen.clone(), color: false }).try_init();
}

/// A field `asset.id` becomes ASSET_ID there, and text is sent with its length, so that nothing in it can be a field.
fn to_journald(filter: EnvFilter, layer: tracing_journald::Layer) {
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    let layer = layer.with_field_prefix(None).with_priority_mappings(priorities);
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
}

/// Writes entries as lines: each comes in one piece and leaves as one line, whatever an API or a receiver has said in it.
struct Lines {
    screen: Screen,
    /// Whether an escape is ours: those of a text were made harmless when it was formatted.
    color: bool,
}

impl Write for Lines {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(entry);
        let line = harmless(text.strip_suffix('\n').unwrap_or(&text), self.color);
        self.screen.write_all(format!("{line}\n").as_bytes())?;
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.screen.flush()
    }
}

/// The text with every character escaped that would break the line, be obeyed by a terminal or turn the direction of
/// writing; also what JSON allows in its strings. The escapes are JSON's.
fn harmless(text: &str, color: bool) -> Cow<'_, str> {
    let is_harmful = |c: char| {
        (c.is_control() && !(color && c == '\u{1b}')) || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_harmful) {
        return text.into();
    }
    let escape = |c| match c {
        '\n' => "\\n".to_owned(),
        c if is_harmful(c) => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_and_commands_no_terminal() {
        for (text, color, expected) in [
            ("as it is: ü „“ 日本", false, "as it is: ü „“ 日本"),
            ("503\n2026-09-21T10:13:20Z  INFO settled", false, "503\\n2026-09-21T10:13:20Z  INFO settled"),
            ("a\r\u{1b}[2Kb\u{9b}31m\u{7f}", false, "a\\u000d\\u001b[2Kb\\u009b31m\\u007f"),
            ("\u{1b}[32m INFO\u{1b}[0m a\u{202e}b\u{2028}", true, "\u{1b}[32m INFO\u{1b}[0m a\\u202eb\\u2028"),
        ] {
            assert_eq!(harmless(text, color), expected);
        }
    }

    #[test]
    fn escaped_json_says_the_same() {
        let text = "a\u{9b}b\u{202e}c\u{7f}\n";
        let json = serde_json::to_string(text).unwrap();
        let line = harmless(&json, false);
        assert_ne!(line, json);
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }

    #[test]
    fn the_journal_is_told_by_device_and_inode() {
        let stat = fstat(stderr()).unwrap();
        let (device, inode) = (stat.st_dev, stat.st_ino);
        assert!(is_journal(Some(&format!("{device}:{inode}"))));
        for stream in
            ["", ":", "8", "x:y", "-1:2"].map(str::to_owned).into_iter().chain([format!("{device}:{}", inode + 1)])
        {
            assert!(!is_journal(Some(&stream)), "{stream}");
        }
        assert!(!is_journal(None));
    }
}
