//! Values as a person would write them in TOML, for errors and for `config show`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::Listen;

/// The longest part of a value that an error repeats, in characters.
const LONGEST: usize = 80;
/// A word of so many characters or more that has digits in it is probably none of a person's.
const MADE_UP: usize = 20;
/// What stands for a secret.
pub(super) const MASK: &str = "***";

/// A value that can be shown as TOML.
pub(super) trait Literal {
    /// Its TOML, on one line.
    fn literal(&self) -> String;
}

impl Literal for Duration {
    fn literal(&self) -> String {
        quoted(&duration(*self))
    }
}

impl Literal for f64 {
    fn literal(&self) -> String {
        self.to_string()
    }
}

impl Literal for u32 {
    fn literal(&self) -> String {
        self.to_string()
    }
}

impl Literal for bool {
    fn literal(&self) -> String {
        self.to_string()
    }
}

impl Literal for String {
    fn literal(&self) -> String {
        quoted(self)
    }
}

impl Literal for PathBuf {
    fn literal(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Literal for Url {
    fn literal(&self) -> String {
        quoted(self.as_str())
    }
}

impl Literal for IpNet {
    fn literal(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Literal for Listen {
    fn literal(&self) -> String {
        quoted(&self.to_string())
    }
}

impl<T: Literal> Literal for Vec<T> {
    fn literal(&self) -> String {
        let elements: Vec<String> = self.iter().map(Literal::literal).collect();
        format!("[{}]", elements.join(", "))
    }
}

/// The environment of a command: its values may be secrets.
impl Literal for BTreeMap<String, String> {
    fn literal(&self) -> String {
        if self.is_empty() {
            return "{}".into();
        }
        let pairs: Vec<String> = self.keys().map(|name| format!("{name} = \"{MASK}\"")).collect();
        format!("{{ {} }}", pairs.join(", "))
    }
}

/// `text` as a TOML basic string.
pub(super) fn quoted(text: &str) -> String {
    let mut literal = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => literal.extend(['\\', character]),
            '\n' => literal.push_str("\\n"),
            '\t' => literal.push_str("\\t"),
            // Writing to a string cannot fail.
            _ if misleads(character) => _ = write!(literal, "\\u{:04X}", u32::from(character)),
            _ => literal.push(character),
        }
    }
    literal + "\""
}

/// `1d 12h`: humantime's words, without its months and years, whose lengths nobody knows by heart.
pub(super) fn duration(duration: Duration) -> String {
    let mut left = duration.as_nanos();
    let mut text = String::new();
    for (unit, nanos) in [
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ] {
        if left >= nanos {
            let gap = if text.is_empty() { "" } else { " " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{gap}{}{unit}", left / nanos);
            left %= nanos;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

/// `text` with everything escaped that would mislead whoever looks at a terminal.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if misleads(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Whether it moves the cursor, turns the direction of writing, or is not seen at all. All of these are below U+10000.
fn misleads(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// `text` as far as an error repeats it.
pub(super) fn excerpt(text: &str) -> String {
    let shown = printable(text);
    match shown.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

/// A value of the file's or a variable's as far as an error repeats it: not at all when it may be a secret that was put
/// into the wrong place.
pub(super) fn repeated(text: &str) -> String {
    if looks_secret(text) { MASK.into() } else { excerpt(text) }
}

/// Whether there is a piece in it that a machine has made up: so long, and of letters and digits.
pub(super) fn looks_secret(text: &str) -> bool {
    let mut pieces = text.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-' | '+' | '='));
    pieces.any(|piece| {
        let count = |fits: fn(&u8) -> bool| piece.as_bytes().iter().filter(|byte| fits(byte)).count();
        // More letters than a unit behind a number has.
        let made_up = piece.len() >= MADE_UP && count(u8::is_ascii_lowercase) > 3 && count(u8::is_ascii_digit) > 0;
        made_up || piece.starts_with("whsec_")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_as_they_are_written() {
        for text in ["0s", "100ms", "1m 30s", "30d", "365d", "1d 12h 30m 1s 5ms 7us 9ns"] {
            let parsed = humantime::parse_duration(text).unwrap();
            assert_eq!(duration(parsed), text);
        }
        assert_eq!(duration(Duration::from_secs(60)), "1m");
    }

    #[test]
    fn strings_are_toml_on_one_line() {
        for text in ["plain", "\"quotes\"", "two\nlines\r\n", "back\\slash", "tab\t", "esc\u{1b}[31m", "", "\u{202e}ü"]
        {
            let literal = quoted(text);
            assert!(!literal.chars().any(misleads), "{literal}");
            let table: toml::Table = format!("x = {literal}").parse().unwrap();
            assert_eq!(table["x"].as_str(), Some(text));
        }
    }

    #[test]
    fn what_may_be_a_secret_is_not_repeated() {
        for text in [
            "rn_0123456789abcdef01",
            "\"https://h/f81d4fae-7dec-11d0-a765-00a0c91e6bf6\"",
            "whsec_MfKQ",
            "[1, \"x\", \"c29tZSBzZWNyZXQga2V5MQ==\"]",
        ] {
            assert_eq!(repeated(text), MASK, "{text}");
        }
        for text in [
            "\"1m 30s\"",
            "/etc/assetwatch/api-key",
            "STUDIO_ACCOUNT_KEY_2024",
            "18446744073709551615s 1000ms",
            "[\"pending\"]",
        ] {
            assert_eq!(repeated(text), text);
        }
    }

    #[test]
    fn a_terminal_is_not_moved() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}c\n"), "a\\u{1b}[2Jb\\u{202e}c\\n");
        assert_eq!(excerpt(&"x".repeat(500)), "x".repeat(80) + "…");
    }
}
