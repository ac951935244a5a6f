//! The page at `/`: one document with everything in it, and a policy under which a browser runs nothing else.

use axum::Router;
use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const DOCUMENT: &str = include_str!("dashboard/index.html");
const STYLE: &str = include_str!("dashboard/style.css");
/// The parts of one script, each of which uses what stands before it.
const SCRIPT: &str = concat!(
    include_str!("dashboard/dom.js"),
    include_str!("dashboard/time.js"),
    include_str!("dashboard/connection.js"),
    include_str!("dashboard/overview.js"),
    include_str!("dashboard/lists.js"),
    include_str!("dashboard/watch.js"),
    include_str!("dashboard/app.js"),
);

/// The page, for whoever comes: it holds nothing that is anybody's, and asks the API for the rest.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let page = Page::new();
    Router::new().route("/", get(move || std::future::ready(page.clone())))
}

#[derive(Clone)]
struct Page {
    document: Bytes,
    policy: String,
}

impl Page {
    fn new() -> Self {
        let script = format!("<script type=\"module\">{SCRIPT}</script>");
        let document = DOCUMENT.replacen("<style></style>", &format!("<style>{STYLE}</style>"), 1);
        let document = document.replacen("<script type=\"module\"></script>", &script, 1);
        // A browser that knows trusted types refuses even our own script to make markup of a string.
        let policy = format!(
            "default-src 'none'; connect-src 'self'; style-src {}; script-src {}; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
            source(STYLE),
            source(SCRIPT),
        );
        Self { document: document.into(), policy }
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let kind = (header::CONTENT_TYPE, "text/html; charset=utf-8".into());
        ([kind, (header::CONTENT_SECURITY_POLICY, self.policy)], self.document).into_response()
    }
}

/// What stands between the tags, as a policy names it.
fn source(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_what_stands_in_the_document() {
        let page = Page::new();
        let document = str::from_utf8(&page.document).unwrap();
        for (directive, tag) in [("style-src", "style"), ("script-src", "script")] {
            let inside = inside(document, tag);
            assert!(inside.len() > 1_000, "the {tag} is not in the document");
            assert!(page.policy.contains(&format!("{directive} {};", source(inside))), "{}", page.policy);
        }
    }

    /// What stands in the one element of that name.
    fn inside<'a>(document: &'a str, tag: &str) -> &'a str {
        let (_, rest) = document.split_once(&format!("<{tag}")).unwrap();
        let (inside, rest) = rest.split_once('>').unwrap().1.split_once(&format!("</{tag}>")).unwrap();
        assert!(!rest.contains(&format!("<{tag}")), "more than one {tag}");
        inside
    }

    #[test]
    fn nothing_is_loaded_and_no_string_becomes_markup() {
        let markup = ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval("];
        for word in markup {
            assert!(!SCRIPT.contains(word), "{word} in the script");
        }
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"), "the style loads something");
        for word in ["src=", "style=\"", "onclick", "<link rel=\"stylesheet", "href=\"http"] {
            assert!(!DOCUMENT.contains(word), "{word} in the document");
        }
    }
}
