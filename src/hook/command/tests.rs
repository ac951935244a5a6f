use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Pid, Signal};
use sha2::{Digest, Sha256};
use tokio::net::unix::pipe;

use super::*;
use crate::config::Target;
use crate::hook::tests::{self, BODY, hook};

/// For what has to happen at some time.
const SOON: Duration = Duration::from_secs(20);
/// 2026-09-21T14:13:20.123Z
const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_123);

/// What the configuration says of a command that is only `argv`.
fn config(argv: &[&str]) -> config::Command {
    config::Command {
        argv: argv.iter().map(|&word| word.into()).collect(),
        kill_after: Duration::from_secs(5),
        env: BTreeMap::new(),
        env_pass: Vec::new(),
    }
}

fn command(config: &config::Command, timeout: Duration) -> Command {
    Command::new(&hook(Target::Command(config.clone()), timeout), config, |_| None)
}

/// A command that is this text for the shell.
fn shell(text: &str) -> Command {
    command(&config(&["/bin/sh", "-c", text]), SOON)
}

/// An attempt of its own: commands are found by the run that they name, and these here are all children of one process.
fn parcel(body: impl Into<Vec<u8>>) -> Parcel {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let mut parcel = tests::parcel(body);
    parcel.delivery.event_id = format!("evt_{}", NUMBER.fetch_add(1, std::sync::atomic::Ordering::SeqCst));
    parcel
}

async fn run(command: &Command, body: impl Into<Vec<u8>>) -> Attempt {
    timeout(SOON, command.perform(&parcel(body), NOW, std::future::pending())).await.expect("in time")
}

/// Stdout of a command that delivers and is silent on stderr.
async fn output(command: &Command, body: impl Into<Vec<u8>>) -> Vec<u8> {
    let attempt = run(command, body).await;
    assert_eq!((&attempt.outcome, attempt.code, attempt.errors.as_slice()), (&Outcome::Delivered, Some(0), &b""[..]));
    attempt.output
}

async fn lines(command: &Command) -> Vec<String> {
    String::from_utf8(output(command, BODY).await).unwrap().lines().map(str::to_owned).collect()
}

/// A FIFO that a command and its children hold open: it tells when they are up, and when the last of them has gone.
struct Wire {
    pipe: pipe::Receiver,
    path: PathBuf,
    _directory: TempDir,
}

impl Wire {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wire");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        Self { pipe: pipe::OpenOptions::new().open_receiver(&path).unwrap(), path, _directory: directory }
    }

    /// A command for the shell that has the wire as `$WIRE`.
    fn shell(&self, text: &str, timeout: Duration, kill_after: Duration) -> Command {
        let env = BTreeMap::from([("WIRE".into(), self.path.to_str().unwrap().into())]);
        command(&config::Command { env, kill_after, ..config(&["/bin/sh", "-c", text]) }, timeout)
    }

    /// The next bytes; none when nobody holds the other end any more.
    async fn read(&mut self) -> Vec<u8> {
        let mut bytes = [0; 1_000];
        loop {
            timeout(SOON, self.pipe.readable()).await.expect("in time").unwrap();
            match self.pipe.try_read(&mut bytes) {
                Ok(length) => return bytes[..length].to_vec(),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    /// All that is still said, once everybody has gone.
    async fn rest(&mut self) -> String {
        let mut text = Vec::new();
        loop {
            match self.read().await {
                bytes if bytes.is_empty() => return String::from_utf8(text).unwrap(),
                bytes => text.extend(bytes),
            }
        }
    }
}

/// Says where it works, and stays, with a child, however often it is asked to go.
const STUBBORN: &str = r#"exec 3>"$WIRE"; trap '' TERM; sleep 300 & pwd >&3; while :; do sleep 300; done"#;

#[tokio::test]
async fn the_environment_is_exactly_as_specified() {
    let config = config::Command {
        env: [("ADDED", "1"), ("LANG", "de_DE.UTF-8"), ("HOOK_STATUS", "forged"), ("BOTH", "env")]
            .map(|(name, value)| (name.into(), value.into()))
            .into(),
        env_pass: ["PASSED", "UNSET", "BOTH"].map(String::from).into(),
        ..config(&["/usr/bin/env", "-0"])
    };
    let ours = |name: &str| (name != "UNSET").then(|| OsString::from(format!("our {name}\n")));
    let command = Command::new(&hook(Target::Command(config.clone()), Duration::from_secs(60)), &config, ours);
    let attempt = command.perform(&tests::parcel(BODY), NOW, std::future::pending()).await;
    let text = String::from_utf8(attempt.output).unwrap();
    let variables = text.split_terminator('\0').map(|variable| variable.split_once('=').unwrap());
    let mut variables: BTreeMap<_, _> = variables.collect();
    let home = variables.remove("HOME").unwrap();
    assert!(Path::new(home).file_name().unwrap().to_str().unwrap().starts_with("assetwatch-"), "{home}");
    let expected = [
        ("ADDED", "1"),
        ("BOTH", "env"),
        ("HOOK_ASSET_ID", "ast_1"),
        ("HOOK_ATTEMPT", "2"),
        ("HOOK_DEADLINE", "2026-09-21T14:14:20.123Z"),
        ("HOOK_EVENT_ID", "evt_abc"),
        ("HOOK_EVENT_TYPE", "asset.active"),
        ("HOOK_NAME", "test"),
        ("HOOK_PREVIOUS_STATUS", "processing"),
        ("HOOK_RUN_ID", "evt_abc.test.2"),
        ("HOOK_STATUS", "active"),
        ("HOOK_URL", "https://cdn.example/ü.mp4"),
        ("LANG", "de_DE.UTF-8"),
        ("PASSED", "our PASSED\n"),
        ("PATH", PATH),
        ("TMPDIR", home),
    ];
    assert_eq!(variables, BTreeMap::from(expected));
}

#[tokio::test]
async fn hostile_values_are_made_to_fit_the_environment() {
    let text =
        r#"printf '%s|%s|%s|' "$HOOK_ASSET_ID" "$HOOK_PREVIOUS_STATUS" "${HOOK_STATUS-unset}"; printf %s "$HOOK_URL""#;
    let url = "ü".repeat(100_000);
    let body =
        format!(r#"{{"data":{{"asset_id":"a\u0000b\n$(id)","status":7,"previous_status":null,"url":"x{url}"}}}}"#);
    let kept = format!("a\u{0}b\n$(id)|||x{}", &url[..LONGEST_VALUE - 2]).replace('\0', "");
    assert!(output(&shell(text), body).await == kept.as_bytes());
    assert_eq!(output(&shell(text), "no JSON").await, b"|||");
}

#[tokio::test]
async fn arguments_are_taken_as_they_are() {
    let argv = ["printf", "%s|", "$HOME", "`id`; *", "", "--"];
    assert_eq!(output(&command(&config(&argv), SOON), BODY).await, b"$HOME|`id`; *||--|");
}

#[tokio::test]
async fn stdin_is_the_event_and_then_ends() {
    let body: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    let digest: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(utf8(&output(&shell("sha256sum"), body.clone()).await), format!("{digest}  -\n"));
    // Longer than a pipe holds, and nobody reads it.
    assert_eq!(output(&command(&config(&["true"]), SOON), body).await, b"");
}

fn utf8(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn an_exit_means_what_the_contract_says() {
    let again = |error: &str| failed(format!("the command {error}"));
    let refused = "the command exited with 100: it wants no more of this event".into();
    for (text, code, outcome) in [
        ("exit 0", Some(0), Outcome::Delivered),
        ("exit 3", Some(3), again("exited with 3")),
        ("exit 75", Some(75), again("exited with 75: it asks for another attempt")),
        ("exit 100", Some(100), Outcome::Refused { error: refused }),
        ("exit 127", Some(127), again("exited with 127")),
        ("kill -9 $$", None, again("was killed by signal 9 (KILL)")),
        ("kill -TERM $$", None, again("was killed by signal 15 (TERM)")),
    ] {
        let attempt = run(&shell(text), BODY).await;
        assert_eq!(attempt, Attempt { code, ..Attempt::bare(outcome) }, "{text}");
    }
}

#[tokio::test]
async fn a_command_is_confined() {
    let text = "umask; ulimit -c; ulimit -Hc; grep NoNewPrivs /proc/self/status; echo $$; cut -d' ' -f5 /proc/$$/stat
        ls -A | wc -l; stat -c %a .; pwd; echo $HOME; mkdir -p left/over; touch left/over/file";
    let said = lines(&shell(text)).await;
    let [umask, core, hard_core, privileges, pid, group, files, mode, directory, home] = &said[..] else {
        panic!("{said:?}")
    };
    assert_eq!([umask, core, hard_core, privileges], ["0077", "0", "0", "NoNewPrivs:\t1"]);
    assert_eq!(pid, group);
    assert_eq!((files.as_str(), mode.as_str()), ("0", "700"));
    assert_eq!(directory, home);
    assert!(!Path::new(directory).exists(), "{directory} is still there");
}

#[tokio::test]
async fn both_outputs_are_kept_as_they_are() {
    let attempt = run(&shell(r"printf 'out\377\000'; printf 'err\376' >&2; exit 1"), BODY).await;
    assert_eq!((attempt.output.as_slice(), attempt.errors.as_slice()), (&b"out\xff\0"[..], &b"err\xfe"[..]));
}

#[tokio::test]
async fn a_flood_is_read_to_its_end_and_kept_in_part() {
    let text = "echo first; head -c 300000000 /dev/zero; echo last; echo first >&2; head -c 100000 /dev/zero >&2";
    let attempt = run(&shell(text), BODY).await;
    assert_eq!(attempt.outcome, Outcome::Delivered);
    for (kept, marker, end) in [
        (attempt.output, "\n[299934475 bytes left out]\n", "last\n"),
        (attempt.errors, "\n[34470 bytes left out]\n", "\0"),
    ] {
        assert_eq!(kept.len(), 64 * 1_024 + marker.len());
        assert!(kept.starts_with(b"first\n\0") && kept.ends_with(end.as_bytes()));
        assert!(kept[16 * 1_024..].starts_with(marker.as_bytes()));
    }
}

#[tokio::test]
async fn a_command_that_ignores_its_deadline_is_killed_with_its_children() {
    let mut wire = Wire::new();
    let command = wire.shell(STUBBORN, Duration::from_secs(1), Duration::from_millis(100));
    let attempt = run(&command, BODY).await;
    assert_eq!(attempt, Attempt::bare(failed("the command ran longer than 1s and was stopped".into())));
    wire.rest().await;
}

#[tokio::test]
async fn what_a_shell_ran_may_tidy_up_after_the_deadline() {
    // The shell that leads the group dies of TERM at once; its child takes a little longer.
    let text = r#"sh -c 'trap "sleep 0.2; echo tidied; exit" TERM; echo up; while :; do sleep 0.02; done' & wait"#;
    let wire = Wire::new();
    let attempt = run(&wire.shell(text, Duration::from_secs(1), SOON), BODY).await;
    assert_eq!(attempt.outcome, failed("the command ran longer than 1s and was stopped".into()));
    assert_eq!(utf8(&attempt.output), "up\ntidied\n");
}

#[tokio::test]
async fn what_is_left_of_the_group_is_killed_when_the_command_ends() {
    let mut wire = Wire::new();
    let text = r#"exec 3>"$WIRE"; (trap '' TERM HUP; sleep 300) & echo up >&3"#;
    assert_eq!(run(&wire.shell(text, SOON, SOON), BODY).await.outcome, Outcome::Delivered);
    assert_eq!(wire.rest().await, "up\n");
}

/// Orphans are adopted by the whole process, and without the daemon's reaping: neighbouring tests have other children.
fn adopt() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

/// Starts a process that leaves the group, holds the pipes and the wire, and is up when the shell goes on.
const ESCAPE: &str = r#"setsid sh -c 'trap "" TERM; exec 3>"$WIRE"; : >escaped; echo up >&3; exec sleep 300' &
    while [ ! -e escaped ]; do sleep 0.02; done"#;

#[tokio::test]
async fn what_escaped_from_the_group_is_found_and_killed() {
    adopt();
    let stopped = || failed("the command ran longer than 1s and was stopped".into());
    for (end, timeout, outcome) in [
        ("exit 0", SOON, Outcome::Delivered),
        ("exit 4", SOON, failed("the command exited with 4".into())),
        ("sleep 300", Duration::from_secs(1), stopped()),
    ] {
        let mut wire = Wire::new();
        let text = format!("echo out; {ESCAPE}; {end}");
        let attempt = run(&wire.shell(&text, timeout, Duration::from_millis(100)), BODY).await;
        assert_eq!((attempt.outcome, attempt.output.as_slice()), (outcome, &b"out\n"[..]), "{end}");
        assert_eq!(wire.rest().await, "up\n", "{end}");
    }
}

#[tokio::test]
async fn what_escaped_may_tidy_up() {
    adopt();
    let text = r#"setsid sh -c 'trap "echo tidied >&3; exit" TERM; exec 3>"$WIRE"; : >escaped
            while :; do sleep 0.02; done' & while [ ! -e escaped ]; do sleep 0.02; done"#;
    for (end, timeout) in [("exit 0", SOON), ("sleep 300", Duration::from_secs(1))] {
        let mut wire = Wire::new();
        run(&wire.shell(&format!("{text}; {end}"), timeout, SOON), BODY).await;
        assert_eq!(wire.rest().await, "tidied\n", "{end}");
    }
}

#[tokio::test]
async fn a_dropped_attempt_leaves_no_escaped_process_either() {
    adopt();
    let mut wire = Wire::new();
    let command = wire.shell(&format!("{ESCAPE}; sleep 300"), SOON, SOON);
    let parcel = parcel(BODY);
    tokio::select! {
        attempt = command.perform(&parcel, NOW, std::future::pending()) => panic!("{attempt:?}"),
        said = wire.read() => assert_eq!(said, b"up\n"),
    }
    wire.rest().await;
}

/// One that has put off its environment is not found; nor does it hold the attempt open.
#[tokio::test]
async fn a_process_that_escaped_unseen_with_the_pipes_does_not_hold_the_attempt() {
    let mut wire = Wire::new();
    let text = r#"echo out; env -i setsid sh -c 'echo $$ >"$0"; : >escaped; exec sleep 300' "$WIRE" &
        while [ ! -e escaped ]; do sleep 0.02; done; exit 4"#;
    let attempt = run(&wire.shell(text, SOON, SOON), BODY).await;
    let escaped = String::from_utf8(wire.read().await).unwrap();
    // It lives: the signal that ends it finds it.
    let escaped = Pid::from_raw(escaped.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(escaped, Signal::KILL).unwrap();
    assert_eq!(
        (attempt.outcome, attempt.output.as_slice()),
        (failed("the command exited with 4".into()), &b"out\n"[..])
    );
}

#[tokio::test]
async fn a_hurry_stops_a_command_and_that_is_no_failure() {
    for (text, kill_after) in [(STUBBORN, Duration::from_millis(100)), ("echo >\"$WIRE\"; exec sleep 300", SOON)] {
        let mut wire = Wire::new();
        let command = wire.shell(text, SOON, kill_after);
        let parcel = parcel(BODY);
        let performing = command.perform(&parcel, NOW, async { drop(wire.read().await) });
        let attempt = timeout(SOON, performing).await.unwrap();
        assert_eq!(attempt.outcome, Outcome::Interrupted);
        wire.rest().await;
    }
}

#[tokio::test]
async fn a_dropped_attempt_leaves_nothing_behind() {
    let mut wire = Wire::new();
    let command = wire.shell(STUBBORN, SOON, SOON);
    let parcel = parcel(BODY);
    let directory = tokio::select! {
        attempt = command.perform(&parcel, NOW, std::future::pending()) => panic!("{attempt:?}"),
        directory = wire.read() => String::from_utf8(directory).unwrap(),
    };
    wire.rest().await;
    assert!(directory.starts_with('/') && !Path::new(directory.trim()).exists(), "{directory}");
}

#[tokio::test]
async fn what_cannot_be_started_is_blocked() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hook");
    let shown = file.display().to_string();
    for (text, mode, says) in [
        ("echo hello\n", 0o755, "is neither a program nor a script with `#!` in its first line, such as `#!/bin/sh`"),
        ("#!/bin/sh\n", 0o644, "is not executable: run `chmod +x "),
        ("#!/bin/sh\n", 0o722, "can be changed by other users: run `chmod go-w "),
        ("#!/bin/sh\r\n", 0o755, "cannot be started: No such file or directory (os error 2) (does the program of its"),
    ] {
        // Written by another process: one that a neighbouring test starts just now would inherit our open file, and a
        // file that is open for writing cannot be started.
        let script = r#"printf %s "$2" >"$1" && chmod "$3" "$1""#;
        let mode = format!("{mode:o}");
        let written = std::process::Command::new("/bin/sh").args(["-c", script, "sh", &shown, text, &mode]).status();
        assert!(written.unwrap().success());
        let Outcome::Blocked { error } = run(&command(&config(&[&shown]), SOON), BODY).await.outcome else {
            panic!("{text:?} was started")
        };
        assert!(error.starts_with(&format!("the command {shown} {says}")), "{error}");
    }
    for (argv, says) in
        [(&["no-such-hook"][..], "the command `no-such-hook` is not in PATH"), (&[], "the command is empty")]
    {
        let Outcome::Blocked { error } = run(&command(&config(argv), SOON), BODY).await.outcome else {
            panic!("{argv:?} was started")
        };
        assert!(error.starts_with(says), "{error}");
    }
}

#[test]
fn a_start_that_lacked_something_is_tried_again() {
    let outcome = |errno: Errno| not_started(&errno.into(), "it cannot be started".into());
    for errno in [Errno::AGAIN, Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::TXTBSY] {
        assert!(matches!(outcome(errno), Outcome::Failed { .. }), "{errno}");
    }
    for errno in [Errno::NOENT, Errno::ACCESS, Errno::NOEXEC, Errno::TOOBIG, Errno::PERM] {
        assert!(matches!(outcome(errno), Outcome::Blocked { .. }), "{errno}");
    }
    assert_eq!(outcome(Errno::TXTBSY), failed("it cannot be started (it is being written)".into()));
}
