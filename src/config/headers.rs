//! What a webhook sends besides the event, or in place of its body.

use std::path::Path;

use super::document::{Branch, Node, Value};
use super::kind::{Judged, credential_name, hidden_with, secret_variable, shown_with, sound};
use super::literal::{Literal, MASK, excerpt, quoted};
use super::{Header, HeaderText, KeySource, Secret};
use crate::event::Template;

/// The longest value of a header, in bytes.
const LONGEST: usize = 4 * 1_024;
/// What belongs to the connection, or says what the request is.
const RESERVED: [&str; 11] = [
    "host",
    "content-length",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

impl Literal for Vec<Header> {
    fn literal(&self) -> String {
        let header = |Header { name, value }: &Header| match value {
            HeaderText::Plain(_) => format!("{name} = \"{MASK}\""),
            HeaderText::From(KeySource::Env(variable)) => format!("{name} = {{ env = {} }}", quoted(variable)),
            HeaderText::From(KeySource::Credential(held)) => format!("{name} = {{ credential = {} }}", quoted(held)),
            HeaderText::From(source) => format!("{name} = {{ file = {} }}", quoted(&source.to_string())),
        };
        let headers: Vec<String> = self.iter().map(header).collect();
        format!("{{ {} }}", headers.join(", "))
    }
}

impl Literal for Template {
    fn literal(&self) -> String {
        // Chat and pager services have people put keys into it.
        quoted(MASK)
    }
}

/// The headers of a webhook, by name; files are relative to `base`. A hook with a body of its own may say what it is.
pub(super) fn headers(base: &Path, has_body: bool) -> impl Fn(&Value) -> Judged<Vec<Header>> {
    move |value| {
        let Value::Table(branch) = value else {
            return hidden_with("must be a table, such as { Authorization = { file = \"token\" } }");
        };
        let mut headers = Vec::new();
        for (name, node) in &branch.nodes {
            let header = Header { name: header_name(name, has_body)?, value: header_text(name, node, base)? };
            if headers.iter().any(|known: &Header| known.name == header.name) {
                return hidden_with(format!("must name each header once; {name} is there again"));
            }
            headers.push(header);
        }
        // By what is sent, whichever letters the file has.
        headers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(headers)
    }
}

fn header_name(name: &str, has_body: bool) -> Judged<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let lower = name.to_ascii_lowercase();
    let shown = excerpt(&quoted(name));
    if !(1..=256).contains(&name.len()) || !name.bytes().all(fits) {
        return hidden_with(format!("must have names of headers; {shown} is none"));
    }
    if lower.starts_with("webhook-") || RESERVED.contains(&lower.as_str()) {
        return hidden_with(format!("must not have {shown}: it is set for each request"));
    }
    if lower == "content-type" && !has_body {
        return hidden_with(format!("must not have {shown} without `body`: an event is application/json"));
    }
    Ok(lower)
}

fn header_text(name: &str, node: &Node, base: &Path) -> Judged<HeaderText> {
    let right = || {
        hidden_with(format!(
            "must have a string of at most 4 KiB of printable ASCII, {{ file = \"…\" }}, {{ credential = \"…\" }} \
             or {{ env = \"…\" }} for {name}"
        ))
    };
    match &node.value {
        Value::Quoted(text) if text.len() <= LONGEST && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) => {
            Ok(HeaderText::Plain(Secret::new(text.trim())))
        }
        Value::Table(branch) => source(branch, base).map_or_else(right, |source| Ok(HeaderText::From(source))),
        _ => right(),
    }
}

fn source(branch: &Branch, base: &Path) -> Option<KeySource> {
    let mut nodes = branch.nodes.iter();
    let (key, node) = nodes.next()?;
    let value = if nodes.next().is_none() { &node.value } else { return None };
    match (key.as_str(), value) {
        ("file", Value::Quoted(path)) if sound(path) => Some(KeySource::File(base.join(path))),
        ("credential", _) => credential_name(value).ok().map(KeySource::Credential),
        ("env", _) => secret_variable(value).ok().map(KeySource::Env),
        _ => None,
    }
}

/// A body of a hook's own.
pub(super) fn template(value: &Value) -> Judged<Template> {
    let Some(text) = value.text() else { return shown_with("must be a string: a Jinja template") };
    match Template::compile(text) {
        Ok(template) => Ok(template),
        Err(problem) => hidden_with(format!("must be a Jinja template that can be rendered, but: {problem}")),
    }
}
