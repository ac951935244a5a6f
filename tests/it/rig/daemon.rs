//! Processes of the binary under test.

use std::fs::File;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::{Place, SOON, binary, eventually};

/// A running daemon. If it is dropped while it should run and has ended, the test fails.
pub struct Daemon {
    child: Child,
    log: std::path::PathBuf,
    stopping: bool,
}

impl Daemon {
    /// Starts a daemon and waits until it has said that it did.
    pub async fn start(place: &Place) -> Self {
        let daemon = Self::spawn(place);
        eventually(SOON, "the daemon has started", async || daemon.log().contains("started").then_some(())).await;
        daemon
    }

    /// Starts a daemon and waits for nothing.
    pub fn spawn(place: &Place) -> Self {
        Self::spawn_with(place, &[])
    }

    /// Starts one with variables.
    pub fn spawn_with(place: &Place, variables: &[(&str, &str)]) -> Self {
        Self::spawned(place, command(place).envs(variables.iter().copied()))
    }

    /// Starts one through another program, which becomes it.
    pub fn spawn_through(place: &Place, program: &[String]) -> Self {
        Self::spawned(place, &mut command_through(place, program))
    }

    fn spawned(place: &Place, command: &mut Command) -> Self {
        let log = place.path(&format!("daemon-{}.log", fastrand::u64(..)));
        let command = command.args(["run", "-vv"]).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        Self { child: command.spawn().unwrap(), log, stopping: false }
    }

    /// Whether it has ended, which it may from now on.
    pub fn has_ended(&mut self) -> bool {
        self.stopping = true;
        self.child.try_wait().unwrap().is_some()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has logged `text`.
    pub async fn until_logged(&self, text: &str) {
        let logged = eventually(SOON, text, async || self.log().contains(text).then_some(()));
        let logged = tokio::time::timeout(SOON - Duration::from_secs(1), logged).await;
        assert!(logged.is_ok(), "the daemon does not log {text:?}, but {}", self.log());
    }

    /// Its resident memory, in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().unwrap() as i32).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// SIGKILL, and nothing is left of it.
    pub async fn kill(mut self) {
        self.stopping = true;
        self.child.kill().await.unwrap();
    }

    /// TERM, and its exit status.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        self.stopping = true;
        tokio::time::timeout(SOON, self.child.wait()).await.expect("the daemon ends").unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let ended = self.child.try_wait().unwrap();
        if !self.stopping && ended.is_some() && !std::thread::panicking() {
            panic!("the daemon ended early, with {ended:?}: {}", self.log());
        }
    }
}

/// The binary with this place's configuration and nothing of our environment.
fn command(place: &Place) -> Command {
    command_through(place, &[])
}

/// The same, started by a program and its arguments.
fn command_through(place: &Place, program: &[String]) -> Command {
    let mut words = program.iter().map(AsRef::as_ref).chain([binary().as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg("--config").arg(place.config()).env_clear().env("HOME", place.path("home"));
    command.kill_on_drop(true);
    if let Some(path) = std::env::var_os("PATH").filter(|_| !program.is_empty()) {
        command.env("PATH", path);
    }
    command
}

/// What a command left.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    /// The lines of stdout as JSON.
    pub fn json(&self) -> Vec<serde_json::Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Runs the binary to its end.
pub async fn run(place: &Place, args: &[&str]) -> Run {
    run_with(place, args, "", &[]).await
}

/// Runs it through another program, which becomes it.
pub async fn run_through(place: &Place, program: &[String], args: &[&str]) -> Run {
    to_its_end(command_through(place, program).args(args), "").await
}

/// Runs it with `stdin` and variables.
pub async fn run_with(place: &Place, args: &[&str], stdin: &str, variables: &[(&str, &str)]) -> Run {
    to_its_end(command(place).args(args).envs(variables.iter().copied()), stdin).await
}

async fn to_its_end(command: &mut Command, stdin: &str) -> Run {
    use tokio::io::AsyncWriteExt;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let stdin = stdin.to_owned();
    // A command that does not read its stdin closes it.
    tokio::spawn(async move { drop(input.write_all(stdin.as_bytes()).await) });
    let ended = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
    let Output { status, stdout, stderr } = ended.expect("the command ends").unwrap();
    Run {
        code: status.code().unwrap_or(-1),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}
