//! Retry-After and the headers of quotas: nobody is kept waiting longer than the caps, whatever they say.

use std::time::Duration;

use assetwatch::client::{quota, retry_after};
use assetwatch::clock::{Tick, Timestamp};
use assetwatch::decide::{Verdict, after_attempt};
use assetwatch::delivery::{Attempt, Delivery, DeliveryState, Outcome};
use assetwatch::pace::{LONGEST_RETRY_AFTER, Limits, Pace, Room, Sign};
use http::{HeaderMap, HeaderName, HeaderValue};

/// A hook is left alone for a day at most, and its schedule here has one gap of a second.
const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3_600);
/// The slowest pace that a quota may lead to, in requests a second.
const SLOWEST: f64 = 0.05;

/// What holds for any headers: each line of `text` is a value, or a name of those below, a colon and a value.
pub fn check(text: &[u8]) {
    let headers = headers(text);
    let now = Timestamp::from_millis(1_790_000_000_000);
    let wait = retry_after(&headers, now);
    polls_again(wait, &headers, now);
    delivers_again(wait, now);
    // The same headers mean the same, and bytes that are no header of these mean nothing.
    assert_eq!(retry_after(&headers, now), wait);
    assert!(!headers.is_empty() || wait.is_none());
}

fn polls_again(wait: Option<Duration>, headers: &HeaderMap, now: Timestamp) {
    let heard = quota(headers, now);
    assert!(heard.rate.is_none_or(|rate| rate.is_finite() && rate >= 0.0), "{heard:?}");
    let start = Tick::default();
    let mut pace = Pace::new(Limits { rate: 10.0, max_in_flight: 4 });
    pace.took(&[1], start);
    pace.heard(&heard, start);
    pace.ended(1, Sign::Throttled(wait), true, start);
    let rate = pace.rate(start);
    assert!((SLOWEST..=10.0).contains(&rate), "{rate} requests a second");
    // After the longest wait that is believed, and one token of the slowest pace.
    let later = start + LONGEST_RETRY_AFTER + Duration::from_secs_f64(2.0 / SLOWEST);
    let room = pace.room(later);
    assert!(matches!(room, Room::Open(1..)), "{room:?} an hour later: {wait:?}, {heard:?}");
}

fn delivers_again(wait: Option<Duration>, now: Timestamp) {
    let delivery = Delivery {
        id: 1,
        event_id: "evt_1".into(),
        hook: "cms".into(),
        state: DeliveryState::Waiting,
        due_at: None,
        generation: 1,
        attempts: 1,
        failures: 0,
        last_error: None,
        created_at: now,
        finished_at: None,
    };
    let attempt = Attempt::bare(Outcome::Failed { error: String::new(), not_before: wait });
    let verdict = after_attempt(&delivery, &attempt, &[Duration::from_secs(1)], now, 0.5);
    let Verdict::Again { due_at, .. } = verdict else { panic!("{verdict:?}") };
    assert!((now..=now + LONGEST_HOLD).contains(&due_at), "{wait:?} leads to {due_at}");
}

/// What is read of an answer's head.
const NAMES: [&str; 8] = [
    "retry-after",
    "date",
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-remaining",
    "ratelimit-reset",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
];

fn headers(text: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n').take(16) {
        let named =
            NAMES.iter().find_map(|name| Some((*name, line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?)));
        let (name, value) = named.unwrap_or(("retry-after", line));
        if let Ok(value) = HeaderValue::from_bytes(value.trim_ascii()) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    headers
}
