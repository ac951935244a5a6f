//! Whether the file is sound inside.

use std::sync::Arc;

use rusqlite::Connection;

use super::{Store, StoreError, open};

/// So many problems are named.
const MOST_NAMED: i64 = 5;

/// How the file is inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Integrity {
    /// What is wrong with it, the first of it; nothing when it is sound.
    pub problems: Vec<String>,
    /// Whether space that is free goes back to the disk; a file that other tools have made anew only uses it again.
    pub shrinks: bool,
}

impl Store {
    /// Reads the whole file, with every index and every reference between rows. Nobody waits for it: it has a connection
    /// and a snapshot of its own.
    pub async fn integrity(&self) -> Result<Integrity, StoreError> {
        let shared = Arc::clone(&self.shared);
        let answer = self.shared.blocking.answer(move || {
            let connection = open::connect(&shared.path)?;
            match problems(&connection) {
                Ok(problems) => {
                    let vacuum: i64 = connection.pragma_query_value(None, "auto_vacuum", |row| row.get(0))?;
                    Ok(Integrity { problems, shrinks: vacuum == super::prune::INCREMENTAL })
                }
                Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt) => {
                    Ok(Integrity { problems: vec![error.to_string()], shrinks: true })
                }
                Err(error) => Err(error.into()),
            }
        });
        answer.await
    }
}

fn problems(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let snapshot = connection.unchecked_transaction()?;
    let mut check = snapshot.prepare(&format!("PRAGMA integrity_check({MOST_NAMED})"))?;
    let found = check.query_map([], |row| row.get::<_, String>(0))?;
    let mut problems = found.collect::<Result<Vec<_>, _>>()?;
    problems.retain(|problem| problem != "ok");
    let mut check = snapshot.prepare(r#"SELECT "table", rowid, parent FROM pragma_foreign_key_check LIMIT ?1"#)?;
    let orphans = check.query_map([MOST_NAMED], |row| {
        let (table, row_id, parent) =
            (row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?, row.get::<_, String>(2)?);
        Ok(format!("row {} of {table} belongs to none of {parent}", row_id.unwrap_or(0)))
    })?;
    for orphan in orphans {
        problems.push(orphan?);
    }
    Ok(problems)
}
