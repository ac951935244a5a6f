//! Commands that misbehave, run by the real daemon: what they leave in the ledger, and that they leave nothing else.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, test_kill_process};

use crate::rig::{Daemon, KEY, Place, Reply, SOON, Server, binary, eventually, executable, run, run_with};

/// Leaves a process in a session of its own that ignores TERM, has its pid in `$1`, and holds no pipe of ours.
const ESCAPE: &str = r#"setsid sh -c 'trap "" TERM; echo $$ >"$0.draft"; mv "$0.draft" "$0"; exec sleep 300' "$1" \
    >/dev/null 2>&1 </dev/null &
while [ ! -e "$1" ]; do sleep 0.02; done"#;

/// A place with a command hook for each (name, script, further lines of its configuration), and an API where every asset
/// is active with this URL.
async fn place(url: String, hooks: &[(&str, &str, &str)]) -> (Server, Place) {
    let api = Server::start(move |request| {
        Reply::json(serde_json::json!({"data": {"id": request.asset(), "status": "active", "url": url}}))
    })
    .await;
    let place = Place::new(&api, "");
    let mut text = String::new();
    for (name, script, more) in hooks {
        executable(&place.path(name), script);
        let argv = [place.path(name), place.path(&format!("{name}.out"))].map(|path| path.display().to_string());
        text += &format!("[[hooks]]\nname = {name:?}\ncommand = {argv:?}\n{more}\n");
    }
    place.configure(&api.url(), &text);
    (api, place)
}

/// What a script has written to its first argument.
async fn left(place: &Place, name: &str) -> String {
    let file = place.path(&format!("{name}.out"));
    eventually(SOON, &format!("{name} has begun"), async || std::fs::read_to_string(&file).ok()).await
}

fn attempt(place: &Place, hook: &str, column: &str) -> String {
    let sql =
        format!("SELECT {column} FROM attempts JOIN deliveries ON deliveries.id = delivery_id WHERE hook = '{hook}'");
    place.ask(&sql).unwrap()
}

/// What was kept of its stdout or stderr, as it is.
fn kept(place: &Place, hook: &str, column: &str) -> Vec<u8> {
    let hexadecimal = attempt(place, hook, &format!("hex({column})"));
    let bytes = hexadecimal.as_bytes().chunks(2);
    bytes.map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 16).unwrap()).collect()
}

async fn until_told(place: &Place, hooks: i64) {
    place.until("SELECT count(*) FROM attempts WHERE outcome IS NOT NULL", hooks).await;
}

/// Waits until the process whose number is in `text` has gone.
async fn until_gone(text: &str) {
    let pid = Pid::from_raw(text.trim().parse().unwrap()).unwrap();
    eventually(SOON, "the process has gone", async || test_kill_process(pid).is_err().then_some(())).await;
}

/// The children of a process, as `pid (name) state …`.
fn children(parent: Pid) -> Vec<String> {
    let stats = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = stats.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let parent = parent.as_raw_pid().to_string();
    stats.filter(|stat| stat.rsplit(')').next().unwrap().split_whitespace().nth(1) == Some(&parent)).collect()
}

/// A field of `/proc/PID/status` in KiB.
fn memory(pid: Pid, field: &str) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_misbehaviour_has_its_line_in_the_ledger() {
    let told = r#"on = ["active"]"#;
    let hooks = [
        ("deaf", "exit 0", told),
        ("mute", "exec 1>&- 2>&-; cat >/dev/null", told),
        ("binary", r"printf 'a\377b\033[31m'; exit 3", told),
        ("long", r#"printf %s "$HOOK_URL" | wc -c; cat >"$1""#, told),
        ("orphan", r#"(sleep 300 & sleep 300 &) ; echo $$ >"$1""#, told),
        ("brief", "setsid true & setsid sh -c 'true & exit' & sh -mc 'true & sleep 0.1' & sleep 0.2", told),
    ];
    let (_api, place) = place(format!("https://x/{}", "ü".repeat(4_000)), &hooks).await;
    let bare = place.path("bare");
    executable(&bare, "");
    std::fs::write(&bare, "echo hello\n").unwrap();
    let text = std::fs::read_to_string(place.config()).unwrap();
    let bare = format!("{text}[[hooks]]\nname = \"bare\"\ncommand = [{:?}]\n", bare.display().to_string());
    std::fs::write(place.config(), bare).unwrap();
    let daemon = Daemon::start(&place).await;
    let metadata = format!("\"{}\"", "m".repeat(16_000));
    run(&place, &["add", "ast_1", "--metadata", &metadata]).await;
    until_told(&place, 7).await;
    for hook in ["deaf", "mute", "long", "orphan", "brief"] {
        assert_eq!(attempt(&place, hook, "outcome"), "delivered", "{hook}: {}", daemon.log());
    }
    assert_eq!(kept(&place, "binary", "output"), b"a\xffb\x1b[31m");
    assert_eq!(attempt(&place, "bare", "state"), "held");
    assert!(attempt(&place, "bare", "error").contains("with `#!` in its first line"));
    assert_eq!(kept(&place, "long", "output"), b"8010\n", "the longest URL that is taken from the API arrives whole");
    let event: serde_json::Value = serde_json::from_str(&left(&place, "long").await).unwrap();
    assert_eq!(event["data"]["url"].as_str().unwrap().len(), 8_010);
    let shown = run(&place, &["show", "ast_1"]).await.out;
    assert!(shown.contains("a\u{fffd}b\u{fffd}[31m"), "{shown}");
    eventually(SOON, "nothing is left, not even a zombie", async || children(daemon.pid()).is_empty().then_some(()))
        .await;
    assert!(daemon.stop().await.success());
}

/// To reap an orphan is not to reap a command whose end another attempt waits for.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_side_by_side_do_not_take_each_others_ends() {
    const ASSETS: i64 = 200;
    let hooks = [("brief", "setsid true & true & exit 0", "concurrency = 16\nschedule = [\"1h\"]")];
    let (_api, place) = place("https://x/".into(), &hooks).await;
    let daemon = Daemon::start(&place).await;
    let ids: String = (0..ASSETS).map(|number| format!("ast_{number}\n")).collect();
    run_with(&place, &["add", "-"], &ids, &[]).await;
    until_told(&place, ASSETS).await;
    assert_eq!(place.ask::<String>("SELECT group_concat(DISTINCT outcome) FROM attempts").unwrap(), "delivered");
    let children = children(daemon.pid());
    assert!(children.len() < 16, "at most those that ended after the last attempt: {children:?}");
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_escapes_or_ignores_its_deadline_is_ended() {
    let stubborn = format!("trap '' TERM\n{ESCAPE}\nwhile :; do sleep 300; done");
    let short = "timeout = \"1s\"\nkill_after = \"200ms\"\nschedule = [\"1h\"]";
    let hooks = [("quits", ESCAPE, "kill_after = \"200ms\""), ("stays", &stubborn, short)];
    let (_api, place) = place("https://x/".into(), &hooks).await;
    let daemon = Daemon::start(&place).await;
    run(&place, &["add", "ast_1"]).await;
    until_told(&place, 2).await;
    assert_eq!(attempt(&place, "quits", "outcome"), "delivered");
    assert_eq!(attempt(&place, "stays", "error"), "the command ran longer than 1s and was stopped");
    for hook in ["quits", "stays"] {
        until_gone(&left(&place, hook).await).await;
        daemon.until_logged(&format!(".{hook}.1\"")).await;
    }
    assert!(daemon.log().contains("processes that had left the command's group were ended"), "{}", daemon.log());
    eventually(SOON, "no zombie is left", async || children(daemon.pid()).is_empty().then_some(())).await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_a_command_that_hangs_and_what_escaped_from_it() {
    for again in [false, true] {
        let hanging = format!("{ESCAPE}\nwhile :; do sleep 300; done");
        let (_api, place) = place("https://x/".into(), &[("hangs", &hanging, "kill_after = \"200ms\"")]).await;
        let mut daemon = Daemon::start(&place).await;
        run(&place, &["add", "ast_1"]).await;
        let escaped = left(&place, "hangs").await;
        daemon.signal(Signal::TERM);
        if again {
            daemon.until_logged("stopping").await;
            daemon.signal(Signal::TERM);
        }
        assert!(daemon.ended().await.success());
        until_gone(&escaped).await;
        assert_eq!(place.ask::<i64>("SELECT failures FROM deliveries WHERE state = 'waiting'"), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_of_output_takes_no_memory() {
    let hooks = [
        ("first", "head -c 1000000 /dev/zero", ""),
        ("flood", "head -c 1073741824 /dev/zero; echo end", "accounts = [\"flood\"]"),
    ];
    let (_api, place) = place("https://x/".into(), &hooks).await;
    let text = std::fs::read_to_string(place.config()).unwrap();
    let account = format!("[accounts.flood]\nkey_file = \"key\"\n[backoff]{}", text.split_once("[backoff]").unwrap().1);
    let text = format!("{}{account}", text.split_once("[backoff]").unwrap().0);
    std::fs::write(place.config(), text).unwrap();
    let daemon = Daemon::start(&place).await;
    run(&place, &["add", "ast_1"]).await;
    until_told(&place, 1).await;
    let before = memory(daemon.pid(), "VmHWM:");
    run(&place, &["add", "ast_2", "--account", "flood"]).await;
    until_told(&place, 3).await;
    let grown = memory(daemon.pid(), "VmHWM:") - before;
    println!("1 GiB of output took {grown} KiB more memory at the most than 1 MB");
    assert!(grown < 16 * 1_024, "{grown} KiB");
    let output = kept(&place, "flood", "output");
    let marker = b"\n[1073676292 bytes left out]\n";
    assert!(output.ends_with(b"\0end\n") && output.windows(marker.len()).any(|bytes| bytes == marker));
    assert!(daemon.stop().await.success());
}

/// As another user than root, who may look into every process.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_cannot_read_the_environment_of_the_daemon() {
    let look = format!(
        "cat /proc/$PPID/environ >\"$1.seen\" 2>&1; echo $? >>\"$1.seen\"; grep -c HOOK_NAME /proc/$$/environ >&2\n{ESCAPE}"
    );
    let (api, place) = place("https://x/".into(), &[("looks", &look, "kill_after = \"100ms\"")]).await;
    let program = place.path("assetwatch");
    std::fs::copy(binary(), &program).unwrap();
    let mut command = tokio::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&program);
    if rustix::process::geteuid().is_root() {
        let own = std::process::Command::new("chown").args(["-R", "65534:65534"]).arg(place.path("")).status();
        assert!(own.unwrap().success());
    } else {
        command = tokio::process::Command::new(&program);
    }
    let log = std::fs::File::create(place.path("log")).unwrap();
    let spawned = command
        .arg("--config")
        .arg(place.config())
        .arg("run")
        .env_clear()
        .envs([("PATH", "/usr/bin:/bin"), ("AFFOGATO_API_KEY", KEY)])
        .stderr(log)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut daemon = match spawned {
        Ok(daemon) => daemon,
        Err(error) => return println!("skipped, there is no setpriv(1): {error}"),
    };
    let log = || std::fs::read_to_string(place.path("log")).unwrap();
    eventually(SOON, "it has started", async || log().contains("started").then_some(())).await;
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('ast_1')", []).unwrap();
    until_told(&place, 1).await;
    let seen = std::fs::read_to_string(place.path("looks.out.seen")).unwrap();
    assert!(seen.contains("Permission denied") && seen.ends_with("1\n") && !seen.contains(KEY), "{seen}");
    assert_eq!(attempt(&place, "looks", "outcome"), "delivered");
    assert_eq!(kept(&place, "looks", "errors"), b"1\n", "and its own it can read");
    until_gone(&left(&place, "looks").await).await;
    let pid = Pid::from_raw(daemon.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(20), daemon.wait()).await.unwrap().unwrap().success());
    assert_eq!(api.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_tried_out_is_confined_as_by_the_daemon() {
    let (_api, place) = place("https://x/".into(), &[("escapes", ESCAPE, "kill_after = \"100ms\"")]).await;
    let tested = run(&place, &["hooks", "test", "escapes"]).await;
    assert_eq!(tested.code, 0, "{tested:?}");
    until_gone(&left(&place, "escapes").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_does_not_end_a_command_that_has_time_left() {
    let script =
        "trap 'echo ended >\"$1.ended\"' TERM; echo begun >\"$1\"; while [ ! -e \"$1.go\" ]; do sleep 0.05; done";
    let (_api, place) = place("https://x/".into(), &[("slow", script, "timeout = \"60s\"")]).await;
    let text = std::fs::read_to_string(place.config()).unwrap();
    std::fs::write(place.config(), text.replace("grace = \"2s\"", "grace = \"0s\"")).unwrap();
    let daemon = Daemon::start(&place).await;
    run(&place, &["add", "ast_1"]).await;
    left(&place, "slow").await;
    daemon.signal(Signal::HUP);
    daemon.until_logged("INFO reloaded: ").await;
    // A sign of life later the old pump would have been ended, with a grace of nothing.
    let beat = "SELECT max(heartbeat_at) FROM daemons";
    let first: i64 = place.ask(beat).unwrap();
    eventually(SOON, "another sign of life", async || place.ask::<i64>(beat).filter(|at| *at > first)).await;
    std::fs::write(place.path("slow.out.go"), "").unwrap();
    until_told(&place, 1).await;
    assert!(!place.path("slow.out.ended").exists(), "it was told to end");
    assert_eq!(attempt(&place, "slow", "outcome"), "delivered");
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_a_command_that_would_be_held() {
    use std::os::unix::fs::PermissionsExt;
    let (_api, place) = place("https://x/".into(), &[("open", "true", ""), ("good", "true", "")]).await;
    std::fs::set_permissions(place.path("open"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let checked = run(&place, &["check"]).await;
    assert!(checked.out.lines().any(|line| line.starts_with("BAD  hook open") && line.contains("chmod go-w")));
    assert!(checked.out.lines().any(|line| line.starts_with("ok   hook good")), "{}", checked.out);
}
