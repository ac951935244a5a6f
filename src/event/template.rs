//! Bodies of a hook's own: templates that a chat service's format is written in. Rendering is pure and bounded.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The longest body that a template may give, in bytes.
const LONGEST: usize = 64 * 1_024;
/// So many steps are taken at most: some milliseconds.
const FUEL: u64 = 100_000;
/// So deep may expressions and loops nest.
const DEPTH: usize = 64;
/// What the engine calls the text in its errors; it is taken out of them.
const NAME: &str = "body";

/// An event of each kind in one, with a value in every field.
const FULL: &str = r#"{"type":"asset.active","timestamp":"2026-09-21T10:13:20.123Z","data":{"asset_id":"ast_1",
    "status":"active","previous_status":"processing","reason":"missing","type":"video","url":"https://cdn.example/1",
    "size":{"width":512,"height":512},"duration":30,"frames":200,"account":"default","batch":"b","metadata":{"post":7},
    "watched_at":"2026-09-21T10:00:00.000Z","settled_at":"2026-09-21T10:13:20.123Z","polls":17,
    "hook":"cms","error":"e","paused_for_seconds":60,"created_at":"2026-09-21T10:00:00.000Z",
    "closed_at":"2026-09-21T10:00:00.000Z","watches":2,"waiting":0,"abandoned":1,"cancelled":0,"statuses":{"active":1}}}"#;
/// The same with nothing in any field that may be empty.
const BARE: &str = r#"{"type":"watch.abandoned","timestamp":"2026-09-21T10:13:20.123Z","data":{"asset_id":"ast_1",
    "status":null,"previous_status":null,"reason":"missing","type":null,"url":null,"size":null,"duration":null,
    "frames":null,"account":"default","batch":null,"metadata":null,"watched_at":"2026-09-21T10:00:00.000Z",
    "settled_at":"2026-09-21T10:13:20.123Z","polls":17,"hook":"cms","error":"e","paused_for_seconds":60,
    "created_at":"2026-09-21T10:00:00.000Z","closed_at":null,"watches":2,"waiting":0,"abandoned":1,"cancelled":0,
    "statuses":{}}}"#;

/// A body of a hook's own, compiled. Two are equal when their texts are.
#[derive(Clone)]
pub struct Template(Arc<Compiled>);

struct Compiled {
    source: String,
    engine: Environment<'static>,
}

#[derive(Serialize)]
struct Told<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    event_type: serde_json::Value,
    timestamp: serde_json::Value,
    data: BTreeMap<String, serde_json::Value>,
}

impl Template {
    /// Compiles a Jinja template and tries it: with an event in which every field has a value, and with one in which
    /// none has that may be empty.
    ///
    /// # Errors
    /// In one line, what is wrong and on which line of `source`.
    pub fn compile(source: &str) -> Result<Self, String> {
        let mut engine = Environment::new();
        engine.set_auto_escape_callback(|_| AutoEscape::None);
        // What an event does not have is empty text rather than an error: the metadata is the caller's own.
        engine.set_undefined_behavior(UndefinedBehavior::Chainable);
        engine.set_fuel(Some(FUEL));
        engine.set_recursion_limit(DEPTH);
        engine.add_template_owned(NAME, source.to_owned()).map_err(|error| described(&error))?;
        let template = Self(Arc::new(Compiled { source: source.into(), engine }));
        for (sample, what) in [(FULL, ""), (BARE, " (with an event whose `url`, `duration` and the like are null)")] {
            template.render("evt_sample", sample.as_bytes()).map_err(|problem| format!("{problem}{what}"))?;
        }
        Ok(template)
    }

    /// The text that it was compiled from.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The body for the event `id`, whose own body is `body`: at most 64 KiB. The template sees `id`, and of that body
    /// `type`, `timestamp` and `data`.
    ///
    /// # Errors
    /// In one line, why this event cannot be rendered.
    pub fn render(&self, id: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let context = Value::from(Serde(told(id, body)));
        let template = self.0.engine.get_template(NAME).map_err(|error| described(&error))?;
        let mut rendered = Bounded(Vec::new());
        match template.render_captured_to(context, &mut rendered) {
            Ok(_) => Ok(rendered.0),
            Err(_) if rendered.0.len() == LONGEST => Err("it gives more than 64 KiB".into()),
            Err(error) => Err(described(&error)),
        }
    }
}

impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        self.0.source == other.0.source
    }
}

impl Eq for Template {}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Template").field(&self.0.source).finish()
    }
}

/// Each field is read by itself: metadata may be JSON that no type can hold, such as 1e400, and is then null.
fn told<'a>(id: &'a str, body: &[u8]) -> Told<'a> {
    #[derive(Deserialize, Default)]
    struct Raw<'a> {
        #[serde(rename = "type", default)]
        event_type: serde_json::Value,
        #[serde(default)]
        timestamp: serde_json::Value,
        #[serde(borrow, default)]
        data: BTreeMap<String, &'a RawValue>,
    }
    let raw: Raw<'_> = serde_json::from_slice(body).unwrap_or_default();
    let value = |value: &RawValue| serde_json::from_str(value.get()).unwrap_or_default();
    let data = raw.data.into_iter().map(|(name, raw)| (name, value(raw))).collect();
    Told { id, event_type: raw.event_type, timestamp: raw.timestamp, data }
}

fn described(error: &minijinja::Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what}, on line {line} of it"),
        None => what,
    }
}

/// Takes so much and no more.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = LONGEST - self.0.len();
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str, body: &str) -> Result<String, String> {
        Template::compile(source)?.render("evt_1", body.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn a_chat_services_format_is_written() {
        let body =
            r#"{"type":"asset.active","timestamp":"t","data":{"asset_id":"a\"<b>","metadata":{"n":1e400},"x":null}}"#;
        for (source, expected) in [
            (r#"{"text": {{ (data.asset_id ~ " is ready") | tojson }}}"#, r#"{"text": "a\"\u003cb\u003e is ready"}"#),
            ("{{ id }} {{ type }} {{ timestamp }} {{ data.asset_id }}", "evt_1 asset.active t a\"<b>"),
            ("{% if data.url %}there{% else %}none{% endif %}{{ data.metadata.post.title }}", "none"),
        ] {
            assert_eq!(rendered(source, body).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_cannot_be_rendered_is_found_before_the_first_event() {
        for (source, says) in [
            ("a\n{{ data.asset_id", "on line 2"),
            ("{{ data.asset_id | nosuch }}", "nosuch"),
            ("{{ nosuch() }}", "nosuch"),
            ("{{ data.duration + 1 }}", "are null"),
            ("{% for x in range(100000) %}{% for y in range(100000) %}{% endfor %}{% endfor %}", "fuel"),
            ("{% for x in range(9000) %}0123456789{% endfor %}", "more than 64 KiB"),
        ] {
            let problem = Template::compile(source).unwrap_err();
            assert!(problem.contains(says) && !problem.contains('\n'), "{source}: {problem}");
        }
    }
}
