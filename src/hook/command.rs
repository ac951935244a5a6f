//! Events as processes: the event on stdin, what it says in the environment, the exit code as the answer.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::pin::{Pin, pin};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::{join, join3, maybe_done};
use rustix::io::Errno;
use tempfile::TempDir;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::group::Group;
use super::kept::Kept;
use super::program;
use crate::clock::Timestamp;
use crate::config;
use crate::delivery::{Attempt, Outcome, Parcel};
use crate::event::Gist;

/// Where every command finds its programs, unless its `env` says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The longest value in the environment: one of 128 KiB would make the start fail.
const LONGEST_VALUE: usize = 32 * 1_024;
/// So long is waited for the end of the output after the command's own end: a process that escaped from the group and
/// was not found may hold the pipes open.
const LINGER: Duration = Duration::from_secs(1);
/// Exit codes with a meaning (EX_TEMPFAIL of sysexits.h, and our own).
const AGAIN: i32 = 75;
const REFUSED: i32 = 100;

/// A program that is run for each event.
pub struct Command {
    hook: String,
    argv: Vec<String>,
    timeout: Duration,
    kill_after: Duration,
    /// What `env_pass` and `env` add to the environment.
    env: BTreeMap<String, OsString>,
}

/// Why the wait for a command ended.
enum Ending {
    Exited,
    TimedOut,
    Hurried,
}

impl Command {
    /// The command of `hook`; `env` reads our own environment for what is passed on by name.
    pub fn new(hook: &config::Hook, command: &config::Command, env: impl Fn(&str) -> Option<OsString>) -> Self {
        let passed = command.env_pass.iter().filter_map(|name| Some((name.clone(), env(name)?)));
        let added = command.env.iter().map(|(name, value)| (name.clone(), value.into()));
        Self {
            hook: hook.subscription.hook.clone(),
            argv: command.argv.clone(),
            timeout: hook.timeout,
            kill_after: command.kill_after,
            env: passed.chain(added).collect(),
        }
    }

    /// One run; see [`super::Hooks::perform`].
    pub async fn perform(&self, parcel: &Parcel, now: Timestamp, hurry: impl Future<Output = ()>) -> Attempt {
        // Declared before the group, so that it is dropped after it: a killed process writes no more into it.
        let directory = match working_directory() {
            Ok(directory) => directory,
            Err(outcome) => return Attempt::bare(outcome),
        };
        let group = match self.start(parcel, now, &directory) {
            Ok(group) => group,
            Err(outcome) => return Attempt::bare(outcome),
        };
        let attempt = self.attend(group, &parcel.body, hurry).await;
        remove(directory).await;
        attempt
    }

    fn start(&self, parcel: &Parcel, now: Timestamp, directory: &TempDir) -> Result<Group, Outcome> {
        let environment = self.environment(parcel, now, directory);
        let path = environment.get("PATH").map_or(OsStr::new(PATH), OsString::as_os_str);
        let blocked = |error| Outcome::Blocked { error };
        let (name, arguments) = self.argv.split_first().ok_or_else(|| blocked("the command is empty".into()))?;
        let program = program::find(name, path).map_err(blocked)?;
        let mut command = tokio::process::Command::new(&program);
        command.arg0(name).args(arguments).env_clear().envs(environment).current_dir(directory.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Group::spawn(&mut command, self.run_id(parcel)).map_err(|error| {
            let sentence = format!("the command {} cannot be started: {error}", program.display());
            not_started(&error, sentence)
        })
    }

    /// Sees a started command through to its end.
    async fn attend(&self, mut group: Group, body: &[u8], hurry: impl Future<Output = ()>) -> Attempt {
        let (mut output, mut errors) = (Kept::default(), Kept::default());
        let leader = group.leader();
        let (stdin, stdout, stderr) = (leader.stdin.take(), leader.stdout.take(), leader.stderr.take());
        let (ending, status) = {
            let piping = join3(feed(stdin, body), drain(stdout, &mut output), drain(stderr, &mut errors));
            let mut piping = pin!(maybe_done(piping));
            let ending = beside(piping.as_mut(), self.until_end(&group, hurry)).await;
            let patience = if matches!(ending, Ending::Exited) {
                self.kill_after
            } else {
                // A shell that leads the group goes at once; what it ran may still be tidying up, and holds the pipes.
                let _ = timeout(self.kill_after, join(group.terminate(self.kill_after), piping.as_mut())).await;
                Duration::ZERO
            };
            let status = beside(piping.as_mut(), group.end()).await;
            beside(piping.as_mut(), group.sweep(patience)).await;
            let _ = timeout(LINGER, piping).await;
            (ending, status)
        };
        Attempt {
            outcome: self.outcome(&ending, status),
            code: status.and_then(|status| status.code()).map(i64::from),
            headers: Vec::new(),
            output: output.into_bytes(),
            errors: errors.into_bytes(),
        }
    }

    /// Names one attempt, and so its processes. Short: it is not changed by [`shortened`].
    fn run_id(&self, parcel: &Parcel) -> String {
        format!("{}.{}.{}", parcel.delivery.event_id, self.hook, parcel.number)
    }

    async fn until_end(&self, group: &Group, hurry: impl Future<Output = ()>) -> Ending {
        tokio::select! {
            biased;
            () = group.exited() => Ending::Exited,
            () = sleep(self.timeout) => Ending::TimedOut,
            () = hurry => Ending::Hurried,
        }
    }

    /// A command that had to be stopped did not deliver, whatever it exits with then.
    fn outcome(&self, ending: &Ending, status: Option<ExitStatus>) -> Outcome {
        match ending {
            Ending::Exited => answered(status),
            Ending::Hurried => Outcome::Interrupted,
            Ending::TimedOut => {
                let timeout = humantime::format_duration(self.timeout);
                failed(format!("the command ran longer than {timeout} and was stopped"))
            }
        }
    }

    /// All that the command gets to see of an environment. What the operator adds wins over what we choose, and what
    /// speaks of the event over both.
    fn environment(&self, parcel: &Parcel, now: Timestamp, directory: &TempDir) -> BTreeMap<String, OsString> {
        let gist = Gist::of(&parcel.body);
        let known = |text: &Option<String>| text.clone().unwrap_or_default();
        let delivery = &parcel.delivery;
        // HOME is the private directory, too: a program that leaves its files there leaves nothing behind, and who wants
        // the user's own says so in `env_pass`.
        let directory = directory.path().as_os_str();
        let chosen =
            [("PATH", PATH.as_ref()), ("LANG", "C.UTF-8".as_ref()), ("HOME", directory), ("TMPDIR", directory)];
        let facts = [
            ("HOOK_NAME", self.hook.as_str()),
            ("HOOK_RUN_ID", &self.run_id(parcel)),
            ("HOOK_EVENT_ID", &delivery.event_id),
            ("HOOK_EVENT_TYPE", &parcel.event_type),
            ("HOOK_ASSET_ID", &known(&gist.asset_id)),
            ("HOOK_STATUS", &known(&gist.status)),
            ("HOOK_PREVIOUS_STATUS", &known(&gist.previous_status)),
            ("HOOK_URL", &known(&gist.url)),
            ("HOOK_ATTEMPT", &parcel.number.to_string()),
            ("HOOK_DEADLINE", &(now + self.timeout).to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), OsString::from(shortened(value))));
        let chosen = chosen.map(|(name, value): (&str, &OsStr)| (name.to_owned(), value.to_owned()));
        chosen.into_iter().chain(self.env.clone()).chain(facts).collect()
    }
}

/// A value that the environment can hold.
fn shortened(value: &str) -> String {
    let mut value = value.replace('\0', "");
    value.truncate(value.floor_char_boundary(LONGEST_VALUE));
    value
}

fn failed(error: String) -> Outcome {
    Outcome::Failed { error, not_before: None }
}

/// What an exit means: `spec/hooks.md`, section 5.
fn answered(status: Option<ExitStatus>) -> Outcome {
    let Some(status) = status else {
        return failed("the command ended, but how is not known".into());
    };
    match (status.code(), status.signal()) {
        (Some(0), _) => Outcome::Delivered,
        (Some(AGAIN), _) => failed(format!("the command exited with {AGAIN}: it asks for another attempt")),
        (Some(REFUSED), _) => {
            Outcome::Refused { error: format!("the command exited with {REFUSED}: it wants no more of this event") }
        }
        (Some(code), _) => failed(format!("the command exited with {code}")),
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("unknown");
            failed(format!("the command was killed by signal {signal} ({})", name.trim_start_matches("SIG")))
        }
    }
}

/// Another attempt may be luckier when only something was short; the rest needs a person.
fn not_started(error: &io::Error, sentence: String) -> Outcome {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::INTR) => failed(sentence),
        Some(Errno::TXTBSY) => failed(format!("{sentence} (it is being written)")),
        Some(Errno::NOENT) => {
            Outcome::Blocked { error: format!("{sentence} (does the program of its `#!` line exist, without a \\r?)") }
        }
        _ => Outcome::Blocked { error: sentence },
    }
}

fn working_directory() -> Result<TempDir, Outcome> {
    let mode = Permissions::from_mode(0o700);
    tempfile::Builder::new()
        .prefix("assetwatch-")
        .permissions(mode)
        .tempdir()
        .map_err(|error| failed(format!("no working directory can be made for the command: {error}")))
}

/// Removes what a command left: any number of files, so not on a thread that others wait for.
async fn remove(directory: TempDir) {
    let path = directory.path().display().to_string();
    let removed = tokio::task::spawn_blocking(|| directory.close()).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(hook.directory = path, %error, "the working directory of a command could not be removed");
    }
}

/// A command that does not read its stdin is in order, so no error here means anything. The pipe is closed at the end.
async fn feed(stdin: Option<impl AsyncWrite + Unpin>, body: &[u8]) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(body).await;
    }
}

async fn drain(pipe: Option<impl tokio::io::AsyncRead + Unpin>, kept: &mut Kept) {
    if let Some(pipe) = pipe {
        kept.drain(pipe).await;
    }
}

/// The value of `task`, while `piping` goes on beside it for as long as it has something to do.
async fn beside<T>(piping: Pin<&mut impl Future<Output = ()>>, task: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        value = task => value,
        value = async { piping.await; std::future::pending().await } => value,
    }
}

#[cfg(test)]
mod tests;
