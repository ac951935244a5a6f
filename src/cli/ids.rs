//! The ids that a command line names, or that come on its stdin, for as long as they come.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

/// Read ahead at most: about as many as are added in one transaction.
const AHEAD: usize = 100_000;
/// In bytes. An id has at most 512; what is read ahead has to have an end.
const LONGEST_LINE: usize = 2_048;

/// The ids of the arguments, as they are; for a `-` among them the lines of stdin. A line that is not UTF-8 is an id that
/// `add` refuses.
pub struct Ids {
    read: mpsc::Receiver<io::Result<String>>,
    failed: Option<io::Error>,
}

impl Ids {
    /// Begins to read them.
    pub fn of(arguments: Vec<String>) -> Self {
        let (sender, read) = mpsc::channel(AHEAD);
        // No task of the runtime: that would wait for the end of stdin before it ends itself.
        std::thread::spawn(move || {
            // Nobody is left to hear of it when it cannot be sent.
            let _ = each(arguments).try_for_each(|id| sender.blocking_send(id));
        });
        Self { read, failed: None }
    }

    /// The next of them, `most` at most: as many as are there, so that those of a slow producer are worked one by one and
    /// those of a file by the hundred thousand. Empty when there are no more.
    ///
    /// # Errors
    /// When stdin cannot be read; what came before has been returned.
    pub async fn portion(&mut self, most: usize) -> io::Result<Vec<String>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut read = Vec::new();
        self.read.recv_many(&mut read, most).await;
        let mut ids = Vec::with_capacity(read.len());
        for id in read {
            match id {
                Ok(id) => ids.push(id),
                Err(error) if ids.is_empty() => return Err(error),
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        Ok(ids)
    }
}

/// All ids of the arguments and of stdin; none when they have not come to their end in this time, for whoever writes them
/// may hang.
///
/// # Errors
/// When stdin cannot be read.
pub async fn all_ids(arguments: Vec<String>, within: Option<Duration>) -> io::Result<Option<Vec<String>>> {
    let mut ids = Ids::of(arguments);
    let all = async {
        let mut all = Vec::new();
        loop {
            let portion = ids.portion(AHEAD).await?;
            if portion.is_empty() {
                return Ok(all);
            }
            all.extend(portion);
        }
    };
    match within {
        Some(within) => timeout(within, all).await.ok().transpose(),
        None => all.await.map(Some),
    }
}

fn each(arguments: Vec<String>) -> impl Iterator<Item = io::Result<String>> {
    arguments.into_iter().flat_map(|argument| -> Box<dyn Iterator<Item = io::Result<String>>> {
        if argument != "-" {
            return Box::new(std::iter::once(Ok(argument)));
        }
        let mut stdin = io::BufReader::new(io::stdin());
        let lines = std::iter::from_fn(move || next_line(&mut stdin).transpose());
        let ids = lines.map(|line| {
            let line = line.map_err(|error| io::Error::new(error.kind(), format!("stdin cannot be read: {error}")))?;
            Ok(String::from_utf8_lossy(without_surroundings(&line)).into_owned())
        });
        Box::new(ids.filter(|id| !matches!(id, Ok(id) if id.is_empty())))
    })
}

/// The next line, with the end of it. Of one that is too long for an id, as much as shows that.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    input.by_ref().take(LONGEST_LINE as u64).read_until(b'\n', &mut line)?;
    if line.len() == LONGEST_LINE && !line.ends_with(b"\n") {
        input.skip_until(b'\n')?;
        if line.trim_ascii().len() < LONGEST_LINE / 2 {
            // Without its blanks it would be taken for an id, or for an empty line.
            line.fill(b'?');
        }
    }
    Ok(Some(line).filter(|line| !line.is_empty()))
}

/// What other systems put around an id is no part of it: blanks, a carriage return, and the byte order mark with which
/// a file from Windows begins, also in the middle of several. Such an id would be watched and never found.
fn without_surroundings(line: &[u8]) -> &[u8] {
    line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line).trim_ascii()
}
