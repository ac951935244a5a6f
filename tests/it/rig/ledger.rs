//! What must hold in the database when everything has settled and was told, whatever happened on the way.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Place, SOON, Server, eventually, now};

/// What a lease lasts beyond a poll or an attempt.
pub const MARGIN: Duration = Duration::from_secs(10);

/// Rules, each with a query for what breaks it.
const RULES: [(&str, &str); 8] = [
    (
        "every asset is settled, once",
        "SELECT asset_id FROM watches GROUP BY asset_id HAVING count(*) <> 1 OR min(state) <> 'settled'",
    ),
    (
        "every settled watch has exactly one event of its end",
        "SELECT asset_id FROM watches WHERE 1 <> (SELECT count(*) FROM events
             WHERE watch_id = watches.id AND type <> 'asset.processing')",
    ),
    (
        "the event of its end tells the status that was recorded",
        "SELECT asset_id FROM watches JOIN events ON watch_id = watches.id
         WHERE events.type NOT IN ('asset.processing', 'asset.' || status)",
    ),
    ("every delivery is delivered", "SELECT id FROM deliveries WHERE state <> 'delivered'"),
    (
        "every attempt is in the ledger, numbered without a gap",
        "SELECT deliveries.id FROM deliveries LEFT JOIN attempts ON delivery_id = deliveries.id GROUP BY deliveries.id
         HAVING count(attempts.id) <> deliveries.attempts OR max(number) <> deliveries.attempts",
    ),
    (
        "the last attempt delivered, and none before it",
        "SELECT deliveries.id FROM deliveries JOIN attempts ON delivery_id = deliveries.id
         WHERE (outcome IS 'delivered') <> (number = deliveries.attempts)",
    ),
    ("every attempt has ended", "SELECT id FROM attempts WHERE outcome IS NULL"),
    (
        "nothing is leased any more",
        "SELECT id FROM watches WHERE lease_owner IS NOT NULL
         UNION ALL SELECT id FROM deliveries WHERE lease_owner IS NOT NULL",
    ),
];

/// The rules that are broken, each with the rows that break it.
pub fn breaches(place: &Place) -> Vec<String> {
    let connection = place.database();
    let broken = |(rule, breach): (&str, &str)| {
        let mut statement = connection.prepare(breach).unwrap();
        let rows = statement.query_map([], |row| row.get::<_, rusqlite::types::Value>(0)).unwrap();
        let rows: Vec<_> = rows.map(Result::unwrap).collect();
        (!rows.is_empty()).then(|| format!("{rule}; not so: {rows:?}"))
    };
    RULES.into_iter().filter_map(broken).collect()
}

/// Fails unless all that must hold at the end does.
pub fn assert_sound(place: &Place) {
    assert_eq!(breaches(place), Vec::<String>::new());
}

/// Fails when a lease lasts longer from now than its length.
pub fn assert_leases_at_most(place: &Place, watches: Duration, deliveries: Duration) {
    for (table, length) in [("watches", watches), ("deliveries", deliveries)] {
        let longest: Option<i64> = place.ask(&format!("SELECT max(lease_until) FROM {table}")).unwrap();
        // Asked for after the row was read: the daemon's clock is the same, and was read before.
        let latest = (now() + length).as_millis();
        assert!(longest.is_none_or(|until| until <= latest), "a lease in {table} ends at {longest:?}, after {latest}");
    }
}

/// Waits until every watch has ended and every delivery is told, as long as there are fewer and fewer left: the next may
/// have to wait for the rest of a lease, and all of them for a busy machine. `meanwhile` is asked again and again.
pub async fn all_told(place: &Place, lease: Duration, meanwhile: impl Fn()) {
    // The end of a watch is progress, though it makes deliveries.
    let open = "SELECT (SELECT count(*) FROM watches WHERE state = 'waiting') * 100
                     + (SELECT count(*) FROM deliveries WHERE state = 'waiting')";
    let mut left: i64 = place.ask(open).unwrap();
    while left > 0 {
        let what = format!("something is settled or told; {left} is left, with 100 for a watch and 1 for a delivery");
        left = eventually(SOON + lease, &what, async || {
            meanwhile();
            place.ask(open).filter(|now| *now < left)
        })
        .await;
    }
}

/// The id of each webhook, as it came.
pub fn ids(receiver: &Server) -> Vec<String> {
    let requests = receiver.requests();
    requests.iter().map(|request| request.header("webhook-id").unwrap().to_owned()).collect()
}

/// What became of the events that one hook was to be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Expected and never received.
    pub lost: usize,
    /// Received and not expected.
    pub unexpected: usize,
    /// Received again: allowed, since delivery is at least once.
    pub duplicated: usize,
    /// Delivered after an attempt whose sender was gone.
    pub recovered: usize,
}

/// Compares the ids that `hook` received with the events that the database has for it.
pub fn tally(place: &Place, hook: &str, received: &[String]) -> Tally {
    let connection = place.database();
    let sql = "SELECT (SELECT id FROM events WHERE seq = event_seq), EXISTS (SELECT 1 FROM attempts WHERE delivery_id = deliveries.id AND outcome = 'unknown')
               FROM deliveries WHERE hook = ?1";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([hook], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    compare(&rows.map(Result::unwrap).collect(), received)
}

/// `expected` says of each event whether one of its attempts was cut off.
fn compare(expected: &BTreeMap<String, bool>, received: &[String]) -> Tally {
    let mut times = BTreeMap::<&str, usize>::new();
    for id in received {
        *times.entry(id).or_default() += 1;
    }
    Tally {
        lost: expected.keys().filter(|id| !times.contains_key(id.as_str())).count(),
        unexpected: times.keys().filter(|id| !expected.contains_key(**id)).count(),
        duplicated: times.values().map(|count| count - 1).sum(),
        recovered: expected.iter().filter(|(id, cut_off)| **cut_off && times.contains_key(id.as_str())).count(),
    }
}

#[test]
fn the_tally_sees_what_was_lost_made_up_and_repeated() {
    let expected = BTreeMap::from([("a", false), ("b", true), ("c", true)].map(|(id, cut)| (id.to_owned(), cut)));
    let received = ["a", "b", "b", "b", "x"].map(str::to_owned);
    let tally = compare(&expected, &received);
    assert_eq!(tally, Tally { lost: 1, unexpected: 1, duplicated: 2, recovered: 1 });
}
