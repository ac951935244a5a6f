//! A damaged file, and one that may not be written to: refused and said, and nothing is written over.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::rig::{Daemon, Place, Run, SOON, Server, Tmpfs, binary, eventually, run, run_with};

const ASSETS: usize = 2_000;
const PAGE: usize = 4_096;
/// What a person does with a database, the daemon first.
const VERBS: [&[&str]; 4] = [&["run"], &["add", "asset_new"], &["list"], &["check"]];

/// A database of some hundred pages, closed.
async fn filled(api: &Server) -> Place {
    let place = Place::new(api, "");
    let ids: String = (0..ASSETS).map(|number| format!("active_{number}\n")).collect();
    assert_eq!(run_with(&place, &["add", "-"], &ids, &[]).await.code, 0);
    // A command leaves its log to whoever comes next when it ends before its connections do.
    let left: i64 = place.ask("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    assert_eq!(left, 0, "all of it is in the one file");
    place
}

/// The first page of a table or an index, as a range of the file.
fn page_of(place: &Place, name: &str) -> std::ops::Range<usize> {
    let page: i64 = place.ask(&format!("SELECT rootpage FROM sqlite_schema WHERE name = '{name}'")).unwrap();
    let end = page as usize * PAGE;
    end - PAGE..end
}

fn files(place: &Place) -> [Option<Vec<u8>>; 2] {
    ["assetwatch.db", "assetwatch.db-wal"].map(|name| std::fs::read(place.path(name)).ok())
}

fn set(place: &Place, [database, log]: &[Option<Vec<u8>>; 2]) {
    for (name, bytes) in [("assetwatch.db", database), ("assetwatch.db-wal", log), ("assetwatch.db-shm", &None)] {
        let path = place.path(name);
        match bytes {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => drop(std::fs::remove_file(path)),
        }
    }
}

/// It ended with 65, with which a unit stays down, or as a check that found something; and named the file and a way out.
fn assert_refused(place: &Place, kind: &str, verb: &[&str], ended: &Run) {
    let said = format!("{}{}", ended.out, ended.err);
    let named = said.contains(place.path("assetwatch.db").to_str().unwrap());
    let a_way_out = said.contains("estore ");
    let code = if verb == ["check"] { 1 } else { 65 };
    assert!(ended.code == code && named && a_way_out, "{kind}, {verb:?}: {ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_refused_by_every_verb_and_left_as_it_is() {
    let api = Server::api().await;
    let place = filled(&api).await;
    let sound = std::fs::read(place.path("assetwatch.db")).unwrap();
    let hurt = |range: std::ops::Range<usize>| {
        let mut bytes = sound.clone();
        bytes[range].fill(0xa5);
        bytes
    };
    let garbage = |length: usize| (0..length).map(|at| (at * 7 % 251 + 1) as u8).collect::<Vec<_>>();
    for (kind, database, log) in [
        ("no header", hurt(0..16), None),
        ("not SQLite", b"somebody's notes\n".repeat(5_000), None),
        ("cut off in the middle", sound[..sound.len() / 2].to_vec(), None),
        ("no meta", hurt(page_of(&place, "meta")), None),
        ("no watches", hurt(page_of(&place, "watches")), None),
        ("a foreign log", sound.clone(), Some(garbage(20_000))),
        ("a short foreign log", sound.clone(), Some(garbage(8))),
    ] {
        let planted = [Some(database), log];
        for verb in VERBS {
            set(&place, &planted);
            assert_refused(&place, kind, verb, &run(&place, verb).await);
            assert!(files(&place) == planted, "{kind}, {verb:?}: the file was changed");
        }
        let file = place.path("backup.db");
        let backup = run(&place, &["backup", file.to_str().unwrap()]).await;
        let is_refused = backup.code == 65 || backup.code == 1 && backup.err.contains("not sound");
        assert!(is_refused && !file.exists(), "{kind}: {backup:?}");
        assert!(files(&place) == planted, "{kind}, backup: the file was changed");
    }
    // The same file, whole: it was not the verbs that refused.
    set(&place, &[Some(sound), None]);
    assert_eq!(run(&place, &["list"]).await.code, 0);
}

/// What damage it meets, it says at once and ends; and the check finds what nothing has met yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_meets_a_damaged_page_ends_and_the_page_stays_as_it_is() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = filled(&api).await;
    place.configure(&api.url(), &crate::rig::webhook(&receiver));
    let sound = std::fs::read(place.path("assetwatch.db")).unwrap();
    for index in ["watches_waiting", "watches_due", "watches_leased", "deliveries_first", "attempts_unfinished"] {
        let page = page_of(&place, index);
        let mut bytes = sound.clone();
        bytes[page.clone()].fill(0xa5);
        set(&place, &[Some(bytes), None]);
        assert_refused(&place, index, &["check"], &run(&place, &["check"]).await);
        let mut daemon = Daemon::spawn(&place);
        daemon.until_logged(&format!("{}: it is damaged", place.path("assetwatch.db").display())).await;
        assert_eq!(daemon.ended().await.code(), Some(65), "{index}: {}", daemon.log());
        let after = std::fs::read(place.path("assetwatch.db")).unwrap();
        assert!(after[page].iter().all(|byte| *byte == 0xa5), "{index}: the page was written over");
        set(&place, &[Some(sound.clone()), None]);
    }
    let mut bytes = sound.clone();
    bytes[page_of(&place, "deliveries_undelivered")].fill(0xa5);
    set(&place, &[Some(bytes), None]);
    for verb in [&["hooks", "list"][..], &["hooks", "enable", "cms"]] {
        assert_refused(&place, "deliveries_undelivered", verb, &run(&place, verb).await);
    }
}

/// A power failure may leave a log of which only the length is there; and a kill one that is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_as_a_crash_leaves_it_is_no_damage() {
    let api = Server::api().await;
    let place = filled(&api).await;
    let sound = std::fs::read(place.path("assetwatch.db")).unwrap();
    for log in [vec![], vec![0; 32], vec![0; 8_000]] {
        set(&place, &[Some(sound.clone()), Some(log)]);
        assert_eq!(run(&place, &["add", "active_new"]).await.code, 0);
    }
    let daemon = Daemon::start(&place).await;
    place.until_state("active_new", "settled").await;
    daemon.kill().await;
    assert!(place.path("assetwatch.db-wal").metadata().unwrap().len() > 0, "a log was left");
    assert_eq!(run(&place, &["list", "--state", "settled", "--limit", "1"]).await.code, 0);
}

/// The binary as somebody who is nobody here.
fn as_nobody(program: &Path, directory: &Path, args: &[&str]) -> Output {
    use std::os::unix::process::CommandExt;
    let database = directory.join("assetwatch.db");
    let mut command = Command::new(program);
    command.args(args).arg("--database").arg(database).args(["--api-url", "http://127.0.0.1:1"]);
    command.env_clear().env("HOME", directory).env("AFFOGATO_API_KEY", "k").uid(65_534).gid(65_534).output().unwrap()
}

/// The daemon refuses to start, `add` and `check` say it, and what can be read is listed.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_may_only_be_read_is_said_and_can_be_listed() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped, only root can become somebody who may not write");
        return;
    }
    let api = Server::api().await;
    let place = filled(&api).await;
    // Where nobody may go.
    let open = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let program = open.path().join("assetwatch");
    std::fs::copy(binary(), &program).unwrap();
    let directory = open.path().join("state");
    std::fs::create_dir(&directory).unwrap();
    std::os::unix::fs::chown(&directory, Some(65_534), Some(65_534)).unwrap();
    let database = directory.join("assetwatch.db");
    std::fs::copy(place.path("assetwatch.db"), &database).unwrap();
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o444)).unwrap();
    let before = std::fs::read(&database).unwrap();
    for verb in VERBS {
        let Output { status, stdout, stderr } = as_nobody(&program, &directory, verb);
        let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        let code = if verb == ["list"] { 0 } else { 1 };
        assert!(status.code() == Some(code), "{verb:?}: {status:?} {said}");
        assert!(code == 0 || said.contains("look at") && said.contains("owner and mode"), "{verb:?}: {said}");
    }
    assert!(std::fs::read(&database).unwrap() == before, "the file was changed");
    // Another user's command has left a log that this one may not write to.
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(directory.join("assetwatch.db-wal"), "").unwrap();
    let Output { status, stderr, .. } = as_nobody(&program, &directory, &["run"]);
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert!(status.code() == Some(1) && said.contains("`-wal`"), "{status:?} {said}");
}

/// A mount that only reads: everything is refused, nothing changes; writable again, all goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_mounted_to_be_read_is_said() {
    let api = Server::api().await;
    let place = filled(&api).await;
    let Some(disk) = Tmpfs::mount(place.path("disk"), 65_536) else { return };
    std::fs::copy(place.path("assetwatch.db"), disk.path().join("assetwatch.db")).unwrap();
    disk.remount("ro");
    let text = std::fs::read_to_string(place.config()).unwrap();
    std::fs::write(place.config(), text.replace("\"assetwatch.db\"", "\"disk/assetwatch.db\"")).unwrap();
    for verb in VERBS {
        let ended = run(&place, verb).await;
        let said = format!("{}{}", ended.out, ended.err);
        assert!(ended.code == 1 && said.contains("disk/assetwatch.db"), "{verb:?}: {ended:?}");
        assert!(said.contains("look at the owner and mode"), "{verb:?}: {ended:?}");
    }
    disk.remount("rw");
    let daemon = Daemon::start(&place).await;
    eventually(SOON, "an asset is settled", async || {
        let listed = run(&place, &["list", "--state", "settled", "--limit", "1", "--json"]).await;
        (listed.json().len() == 1).then_some(())
    })
    .await;
    assert!(daemon.stop().await.success());
}
