//! What waits, counted: for gauges.

use std::collections::BTreeMap;

use super::rows::Columns;
use super::{Store, StoreError};

/// Each is one pass over an index and nothing else, since that says all of it: 0.2 s for a million watches.
const COUNTS: [&str; 2] = [
    "SELECT account, count(*) FROM watches WHERE state = 'waiting' AND lease_until IS NULL GROUP BY account",
    "SELECT account, count(*) FROM watches WHERE lease_until IS NOT NULL GROUP BY account",
];

impl Store {
    /// How many watches wait for each of these accounts, and under the name `others` for all others together: another program may
    /// have written any number of those.
    pub async fn waiting_by_account(
        &self,
        accounts: Vec<String>,
        others: &'static str,
    ) -> Result<BTreeMap<String, i64>, StoreError> {
        self.look(move |connection| {
            let named = accounts.into_iter().chain([others.to_owned()]);
            let mut found: BTreeMap<String, i64> = named.map(|name| (name, 0)).collect();
            for sql in COUNTS {
                let mut statement = connection.prepare_cached(sql)?;
                let mut rows = statement.query([])?;
                while let Some(row) = rows.next()? {
                    let mut column = Columns { row, at: 0 };
                    let account = column.text()?;
                    let name = if found.contains_key(&account) { account.as_str() } else { others };
                    let count: i64 = column.next()?;
                    *found.entry(name.to_owned()).or_default() += count;
                }
            }
            Ok(found)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::lease::tests::{full, plan};
    use super::super::lock;
    use super::*;

    #[test]
    fn counting_is_one_pass_over_a_small_index() {
        let directory = tempfile::tempdir().unwrap();
        let store = full(&directory);
        let connection = lock(&store.shared.writer);
        for analyze in ["", "ANALYZE"] {
            connection.execute_batch(analyze).unwrap();
            // That the first one covers the query is not said of an index with a condition, but it does.
            for (sql, index) in COUNTS.into_iter().zip(["INDEX watches_due", "COVERING INDEX watches_leased"]) {
                assert_eq!(plan(&connection, sql), [format!("SCAN watches USING {index}")], "{sql}");
            }
        }
    }

    #[tokio::test]
    async fn what_waits_is_counted_by_account_and_the_rest_together() {
        let directory = tempfile::tempdir().unwrap();
        let store = full(&directory);
        let found = store.waiting_by_account(vec!["lane 1".into(), "idle".into()], "others").await.unwrap();
        // A third of the 600 is leased, and waits as well.
        let expected = [("idle", 0), ("lane 1", 300), ("others", 300)];
        assert_eq!(found, expected.map(|(name, count)| (name.to_owned(), count)).into());
    }
}
