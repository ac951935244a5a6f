//! What the headers of an answer say of a quota.
//!
//! Three families are read, the first that is there: `RateLimit` and `RateLimit-Policy` of
//! draft-ietf-httpapi-ratelimit-headers (as structured fields, RFC 9651), its older separate fields
//! (`RateLimit-Remaining`, `RateLimit-Reset`), and `X-RateLimit-*`, of which there is no specification. What is malformed is
//! as if it were not there.

use std::time::{Duration, UNIX_EPOCH};

use reqwest::header::HeaderMap;
use sfv::{BareItem, Dictionary, List, ListEntry, Parameters, Parser};

use super::date;
use crate::clock::Timestamp;
use crate::pace::{LONGEST_RETRY_AFTER, Quota};

/// A reset that is larger is an instant (Unix time), not a number of seconds: this many seconds are 31 years.
const INSTANT: f64 = 1e9;
/// And one that is larger than this is in milliseconds.
const INSTANT_MS: f64 = 1e12;

/// What these headers say; `now` is for a reset at an instant, where the answer has no `Date` of its own.
pub fn quota(headers: &HeaderMap, now: Timestamp) -> Quota {
    let policies = policies(headers);
    // The strictest of several policies is the one that matters.
    let rate = policies.iter().filter_map(Policy::rate).reduce(f64::min);
    let left = service_limits(headers, &policies)
        .or_else(|| as_dictionary(headers))
        .or_else(|| separate(headers, ["ratelimit-remaining", "ratelimit-reset"], now))
        .or_else(|| separate(headers, ["x-ratelimit-remaining", "x-ratelimit-reset"], now));
    Quota { left, rate }
}

/// One of the server's policies.
struct Policy {
    name: String,
    quota: Option<u64>,
    window: Option<Duration>,
}

impl Policy {
    /// Over a longer window than an hour it says little of a second, and would forbid what is allowed.
    fn rate(&self) -> Option<f64> {
        let window = self.window.filter(|window| *window <= LONGEST_RETRY_AFTER)?;
        Some(self.quota? as f64 / window.as_secs_f64())
    }
}

/// `RateLimit-Policy: "burst";q=100;w=60, "day";q=5000;w=86400`.
fn policies(headers: &HeaderMap) -> Vec<Policy> {
    let named = items(headers, "ratelimit-policy");
    let policy = |(name, parameters): &(String, Parameters)| Policy {
        name: name.clone(),
        quota: whole(parameters, "q"),
        window: whole(parameters, "w").filter(|seconds| *seconds > 0).map(Duration::from_secs),
    };
    named.iter().map(policy).collect()
}

/// `RateLimit: "burst";r=50;t=30`; without `t` it is the window of the policy with this name.
fn service_limits(headers: &HeaderMap, policies: &[Policy]) -> Option<(u64, Duration)> {
    let limits = items(headers, "ratelimit");
    let limits = limits.iter().filter_map(|(name, parameters)| {
        let window = || policies.iter().find(|policy| policy.name == *name)?.window;
        Some((whole(parameters, "r")?, whole(parameters, "t").map(Duration::from_secs).or_else(window)?))
    });
    limits.min_by(|a, b| pace_of(*a).total_cmp(&pace_of(*b)))
}

fn pace_of((left, reset): (u64, Duration)) -> f64 {
    left as f64 / reset.as_secs_f64().max(1.0)
}

/// `RateLimit: limit=100, remaining=50, reset=30`, as draft 7 had it.
fn as_dictionary(headers: &HeaderMap) -> Option<(u64, Duration)> {
    let dictionary: Dictionary = Parser::new(&joined(headers, "ratelimit")?).parse().ok()?;
    let number = |key: &str| match dictionary.get(key)? {
        ListEntry::Item(item) => u64::try_from(i64::from(item.bare_item.as_integer()?)).ok(),
        ListEntry::InnerList(_) => None,
    };
    Some((number("remaining")?, Duration::from_secs(number("reset")?)))
}

/// Two fields with a number each.
fn separate(headers: &HeaderMap, [remaining, reset]: [&str; 2], now: Timestamp) -> Option<(u64, Duration)> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    // Some servers put the policy behind a comma or a semicolon.
    let first = |text: &str| text.split([',', ';']).next().map(str::trim).map(str::to_owned);
    let left = first(text(remaining)?)?.parse().ok()?;
    let reset: f64 = first(text(reset)?)?.parse().ok().filter(|reset: &f64| reset.is_finite() && *reset >= 0.0)?;
    if reset < INSTANT {
        return Some((left, Duration::try_from_secs_f64(reset).ok()?));
    }
    let seconds = if reset < INSTANT_MS { reset } else { reset / 1_000.0 };
    let until = UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
    let from = date(headers).unwrap_or_else(|| now.as_system_time());
    Some((left, until.duration_since(from).unwrap_or_default()))
}

/// The items of a list whose members are names with parameters.
fn items(headers: &HeaderMap, name: &str) -> Vec<(String, Parameters)> {
    let list = joined(headers, name).and_then(|text| Parser::new(&text).parse::<List>().ok());
    let item = |entry| match entry {
        ListEntry::Item(item) => {
            let name = match &item.bare_item {
                BareItem::String(name) => name.as_str().to_owned(),
                BareItem::Token(name) => name.as_str().to_owned(),
                _ => return None,
            };
            Some((name, item.params))
        }
        ListEntry::InnerList(_) => None,
    };
    list.unwrap_or_default().into_iter().filter_map(item).collect()
}

/// All fields of a name as one, as RFC 9110 (section 5.3) has it.
fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Result<Vec<_>, _> = headers.get_all(name).iter().map(|value| value.to_str()).collect();
    values.ok().filter(|values| !values.is_empty()).map(|values| values.join(", "))
}

fn whole(parameters: &Parameters, key: &str) -> Option<u64> {
    u64::try_from(i64::from(parameters.get(key)?.as_integer()?)).ok()
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn heard(lines: &[(&'static str, &str)]) -> Quota {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        quota(&headers, Timestamp::from_millis(1_790_000_000_000))
    }

    #[test]
    fn what_is_left_is_read_in_every_dialect() {
        let left = |left, seconds| Some((left, Duration::from_secs(seconds)));
        for (lines, expected) in [
            (&[("ratelimit", r#""default";r=50;t=30"#)][..], left(50, 30)),
            (&[("ratelimit", "default;r=0;t=7")], left(0, 7)),
            (&[("ratelimit", r#""burst";r=50;t=10, "day";r=20;t=3600"#)], left(20, 3_600)),
            (&[("ratelimit", r#""burst";r=50;t=10"#), ("ratelimit", r#""day";r=20;t=3600"#)], left(20, 3_600)),
            (&[("ratelimit", r#""p";r=5"#), ("ratelimit-policy", r#""p";q=100;w=60"#)], left(5, 60)),
            (&[("ratelimit", "limit=100, remaining=50, reset=30")], left(50, 30)),
            (&[("ratelimit-remaining", "9"), ("ratelimit-reset", "8")], left(9, 8)),
            (
                &[("ratelimit-limit", "10, 10;w=1"), ("ratelimit-remaining", "9, 9;w=1"), ("ratelimit-reset", "1")],
                left(9, 1),
            ),
            (&[("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "2")], left(3, 2)),
            (&[("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "1790000060")], left(3, 60)),
            (&[("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "1790000060000")], left(3, 60)),
            (&[("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "1789999999")], left(3, 0)),
            // The server's clock is a minute behind ours: it still means 60 s.
            (
                &[
                    ("x-ratelimit-remaining", "3"),
                    ("x-ratelimit-reset", "1790000000"),
                    ("date", "Mon, 21 Sep 2026 14:12:20 GMT"),
                ],
                left(3, 60),
            ),
            (
                &[("ratelimit", r#""default";r=50;t=30"#), ("x-ratelimit-remaining", "1"), ("x-ratelimit-reset", "1")],
                left(50, 30),
            ),
        ] {
            assert_eq!(heard(lines).left, expected, "{lines:?}");
        }
    }

    #[test]
    fn what_is_malformed_is_ignored() {
        for lines in [
            &[][..],
            &[("ratelimit", "50")],
            &[("ratelimit", r#""default";r=50"#)],
            &[("ratelimit", r#""default";r=-1;t=30"#)],
            &[("ratelimit", r#""default";r=5.5;t=30"#)],
            &[("ratelimit", r#""default";r=99999999999999999999;t=30"#)],
            &[("ratelimit", "\"default;r=1")],
            &[("ratelimit", "remaining=50")],
            &[("ratelimit", "\u{fc}")],
            &[("ratelimit-remaining", "9")],
            &[("x-ratelimit-remaining", "many"), ("x-ratelimit-reset", "2")],
            &[("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "soon")],
            &[("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "-1")],
            &[("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "NaN")],
            &[("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "1e300")],
            &[("ratelimit-policy", r#""p";q=100;w=0"#)],
            &[("ratelimit-policy", r#""p";q=100"#)],
        ] {
            assert_eq!(heard(lines), Quota::default(), "{lines:?}");
        }
    }

    #[test]
    fn a_policy_is_a_rate_in_the_long_run() {
        let rate = |policy| heard(&[("ratelimit-policy", policy)]).rate;
        assert_eq!(rate(r#""p";q=100;w=50"#), Some(2.0));
        assert_eq!(rate(r#""burst";q=100;w=10, "hour";q=3600;w=3600"#), Some(1.0), "the strictest");
        assert_eq!(rate(r#""day";q=5000;w=86400"#), None, "that is no pace");
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_odd(name in 0_usize..4, value in "\\PC{0,60}|[0-9a-z\";=, .-]{0,60}") {
            let name = ["ratelimit", "ratelimit-policy", "x-ratelimit-reset", "ratelimit-reset"][name];
            heard(&[(name, &value), ("x-ratelimit-remaining", "3"), ("ratelimit-remaining", "3")]);
        }
    }
}
