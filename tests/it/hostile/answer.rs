//! The API's answer: whatever is taken from it is in it, and whatever is said of it can be shown.

use assetwatch::api::understand;
use assetwatch::decide::Observation;
use serde::de::IgnoredAny;
use serde_json::Value;

/// The longest that is said of one answer, in characters.
const LONGEST_TEXT: usize = 4_000;

/// What holds for any body.
pub fn check(body: &[u8]) {
    let id = "ast_1";
    let mut seen = understand(id, body);
    if let Some(text) = seen.text_mut() {
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.chars().count() <= LONGEST_TEXT, "{} characters", text.chars().count());
    }
    match seen {
        Observation::Answered { asset, .. } => {
            assert!(serde_json::from_slice::<IgnoredAny>(body).is_ok(), "no JSON, and still {asset:?}");
            // A general reader takes less than ours: no number beyond a double, no deep nesting.
            let Ok(read) = serde_json::from_slice::<Value>(body) else { return };
            let data = &read["data"];
            assert_eq!(asset.status.as_deref(), data["status"].as_str(), "the status is the answer's own word");
            assert!(asset.status.is_some_and(|word| !word.is_empty()));
            assert!(data["id"].as_str().is_none_or(|told| told == id), "it is about another asset");
            for (taken, told) in [(&asset.kind, &data["type"]), (&asset.url, &data["url"])] {
                assert!(taken.as_deref().is_none_or(|taken| told.as_str() == Some(taken)), "{taken:?} of {told}");
            }
            let size = &data["size"];
            for (taken, told) in [
                (asset.width, &size["width"]),
                (asset.height, &size["height"]),
                (asset.duration, &data["duration"]),
                (asset.frames, &data["frames"]),
            ] {
                let same = |taken: i64| told.as_i64() == Some(taken) || told.as_f64() == Some(taken as f64);
                assert!(taken.is_none_or(|taken| taken >= 0 && same(taken)), "{taken:?} of {told}");
            }
        }
        Observation::Unusable { .. } | Observation::Unavailable { .. } => {}
        other => panic!("a 200 means {other:?}"),
    }
}
