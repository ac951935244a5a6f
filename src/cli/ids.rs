//! The ids that a command line names, or that come on its stdin, for as long as they come.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read as _};
use std::time::Duration;

use tokio::sync::mpsc::{self, error::SendError};
use tokio::time::timeout;

/// Read at once, in bytes.
const BUFFER: usize = 64 << 10;
/// What is read ahead, in buffers: about as much as is added in one transaction.
const AHEAD: usize = 64;
/// In bytes. An id has at most 512; what is kept of a line has to have an end.
const LONGEST_LINE: usize = 2_048;

/// What one look brought.
type Read = io::Result<Vec<String>>;

/// The ids of the arguments, as they are; for a `-` among them the lines of stdin. A line that is not UTF-8 is an id that
/// `add` refuses.
pub struct Ids {
    read: mpsc::Receiver<Read>,
    /// Read, and not yet returned.
    ahead: VecDeque<String>,
    failed: Option<io::Error>,
}

impl Ids {
    /// Begins to read them.
    pub fn of(arguments: Vec<String>) -> Self {
        let (sender, read) = mpsc::channel(AHEAD);
        // No task of the runtime: that would wait for the end of stdin before it ends itself.
        std::thread::spawn(move || send(arguments, &sender));
        Self { read, ahead: VecDeque::new(), failed: None }
    }

    /// The next of them, `most` at most: as many as are there, so that those of a slow producer are worked one by one and
    /// those of a file by the hundred thousand. Empty when there are no more.
    ///
    /// # Errors
    /// When stdin cannot be read; what came before has been returned.
    pub async fn portion(&mut self, most: usize) -> io::Result<Vec<String>> {
        while self.ahead.is_empty() {
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            let Some(read) = self.read.recv().await else { break };
            self.take(read);
        }
        while self.ahead.len() < most && self.failed.is_none() {
            let Ok(read) = self.read.try_recv() else { break };
            self.take(read);
        }
        Ok(self.ahead.drain(..most.min(self.ahead.len())).collect())
    }

    fn take(&mut self, read: Read) {
        match read {
            Ok(ids) => self.ahead.extend(ids),
            Err(error) => self.failed = Some(error),
        }
    }
}

/// All ids of the arguments and of stdin; none when they have not come to their end in this time, for whoever writes them
/// may hang.
///
/// # Errors
/// When stdin cannot be read.
pub async fn all_ids(arguments: Vec<String>, within: Option<Duration>) -> io::Result<Option<Vec<String>>> {
    if !arguments.iter().any(|argument| argument == "-") {
        return Ok(Some(arguments));
    }
    let mut ids = Ids::of(arguments);
    let all = async {
        let mut all = Vec::new();
        loop {
            let portion = ids.portion(usize::MAX).await?;
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

/// What is there at the same time is sent as one, so that it is worked as one. Ends when nobody is left to hear of it.
fn send(arguments: Vec<String>, sender: &mpsc::Sender<Read>) -> Result<(), SendError<Read>> {
    for arguments in arguments.split_inclusive(|argument| argument == "-") {
        let given = arguments.strip_suffix(&["-".to_owned()]).unwrap_or(arguments);
        if !given.is_empty() {
            sender.blocking_send(Ok(given.to_vec()))?;
        }
        if given.len() < arguments.len() {
            send_stdin(sender)?;
        }
    }
    Ok(())
}

fn send_stdin(sender: &mpsc::Sender<Read>) -> Result<(), SendError<Read>> {
    let mut stdin = io::BufReader::with_capacity(BUFFER, io::stdin());
    loop {
        match lines(&mut stdin) {
            Ok(Some(ids)) => sender.blocking_send(Ok(ids))?,
            Ok(None) => return Ok(()),
            Err(error) => {
                let why = format!("stdin cannot be read: {error}");
                return sender.blocking_send(Err(io::Error::new(error.kind(), why)));
            }
        }
    }
}

/// The ids of the next line and of those that were read with it; none at the end.
fn lines(input: &mut io::BufReader<impl io::Read>) -> io::Result<Option<Vec<String>>> {
    let mut ids = Vec::new();
    loop {
        let Some(line) = next_line(input)? else { return Ok(Some(ids).filter(|ids| !ids.is_empty())) };
        let id = without_surroundings(&line);
        if !id.is_empty() {
            ids.push(String::from_utf8_lossy(id).into_owned());
        }
        if !ids.is_empty() && !input.buffer().contains(&b'\n') {
            return Ok(Some(ids));
        }
    }
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
