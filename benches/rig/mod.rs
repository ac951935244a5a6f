//! The processes of a benchmark: itself once more in another part, and the program.

#![allow(dead_code, reason = "each benchmark is a program of its own, and uses its part")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// An empty database, made by the program itself.
pub fn database(place: &Path, name: &str) -> PathBuf {
    let path = place.join(format!("{name}.db"));
    assert!(assetwatch().arg("--database").arg(&path).arg("list").status().unwrap().success());
    path
}

/// A daemon on it with this configuration.
pub fn daemon(place: &Path, database: &Path, config: &str) -> Child {
    let path = place.join("config.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = assetwatch();
    command.arg("--config").arg(path).arg("--database").arg(database).args(["run", "-q"]);
    command.env("KEY", "key").spawn().unwrap()
}

pub fn assetwatch() -> Command {
    Command::new(env!("CARGO_BIN_EXE_assetwatch"))
}

pub fn child(args: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap()).args(args).stdout(Stdio::piped()).spawn().unwrap()
}

/// One byte at a time: what comes after it is for whoever reads next.
pub fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

pub fn stop(daemon: &mut Child) {
    let pid = rustix::process::Pid::from_child(daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
}

/// User and system time of a process, from `/proc` (in ticks of 10 ms).
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark waits for other processes")]
pub fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

#[expect(clippy::disallowed_methods, reason = "a benchmark has no other clock")]
pub fn now_millis() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_millis().try_into().unwrap()
}
