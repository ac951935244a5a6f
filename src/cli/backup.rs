//! `backup`: a copy of the database, and how far it is.

use std::future::Future;
use std::path::Path;

use serde_json::json;

use super::Backup;
use super::output::{Output, exit, plain, unheard};
use super::progress::{Meter, Screen};
use crate::clock::Clock;
use crate::store::{self, BackupError, Copying};

/// Makes a backup, or until `stopped` a part of one, which is removed then.
///
/// # Errors
/// When there is none.
pub async fn backup(
    args: &Backup,
    database: &Path,
    (output, screen): (Output, &Screen),
    stopped: impl Future<Output = ()>,
) -> anyhow::Result<u8> {
    const COPYING: &str = "copying the database";
    let clock = Clock::system();
    let meter = Meter::new(COPYING, output, screen);
    let report = move |copying| match copying {
        Copying::Pages { done, of } => meter.show(COPYING, Some((done, of))),
        Copying::Checking => meter.show("reading the copy", None),
    };
    let done = tokio::select! {
        biased;
        () = stopped => {
            // Whoever writes it ends with us.
            let _ = std::fs::remove_file(store::backup_in_progress(&args.file));
            return Ok(exit::INTERRUPTED);
        }
        done = store::backup(database, &args.file, args.force, report) => done,
    };
    let made = match done {
        Err(error @ BackupError::Target(_)) => {
            super::complain(&plain(&error.to_string()));
            return Ok(exit::USAGE);
        }
        done => done?,
    };
    if output.json {
        let mut object = json!(made);
        object["elapsed_ms"] = json!(u64::try_from(clock.tick().as_millis()).unwrap_or(u64::MAX));
        unheard(output.object(&object))?;
    } else {
        let (database, file) = (made.database.display().to_string(), made.file.display().to_string());
        let (size, watches) = (store::size_in_words(made.bytes), made.watches);
        let (database, file) = (plain(&database), plain(&file));
        let said = format!("{database} is backed up in {file}: {size}, {watches} watches, read again and sound");
        unheard(output.line(&said))?;
    }
    Ok(exit::OK)
}
