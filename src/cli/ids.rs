//! The ids that a command line names, or that come on its stdin, for as long as they come.

use std::io::{self, BufRead};

use tokio::sync::mpsc;

/// Read ahead at most: about as many as are added in one transaction.
const AHEAD: usize = 100_000;

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

    /// All of them.
    ///
    /// # Errors
    /// When stdin cannot be read.
    pub async fn all(mut self) -> io::Result<Vec<String>> {
        let mut ids = Vec::new();
        loop {
            let portion = self.portion(AHEAD).await?;
            if portion.is_empty() {
                return Ok(ids);
            }
            ids.extend(portion);
        }
    }
}

fn each(arguments: Vec<String>) -> impl Iterator<Item = io::Result<String>> {
    arguments.into_iter().flat_map(|argument| -> Box<dyn Iterator<Item = io::Result<String>>> {
        if argument != "-" {
            return Box::new(std::iter::once(Ok(argument)));
        }
        let lines = io::BufReader::new(io::stdin()).split(b'\n').enumerate();
        let ids = lines.map(|(number, line)| {
            let line = line.map_err(|error| io::Error::new(error.kind(), format!("stdin cannot be read: {error}")))?;
            Ok(String::from_utf8_lossy(without_surroundings(&line, number == 0)).into_owned())
        });
        Box::new(ids.filter(|id| !matches!(id, Ok(id) if id.is_empty())))
    })
}

/// What other systems put around an id is no part of it: blanks, a carriage return, and the byte order mark with which
/// a file from Windows begins. Such an id would be watched and never found.
fn without_surroundings(line: &[u8], first: bool) -> &[u8] {
    let mark = if first { "\u{feff}".as_bytes() } else { b"" };
    line.strip_prefix(mark).unwrap_or(line).trim_ascii()
}
