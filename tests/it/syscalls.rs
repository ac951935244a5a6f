//! System calls that fail, or at which the process is killed, one after the other through a whole run of the unmodified
//! binary: strace answers them in the kernel's place.

use std::path::PathBuf;
use std::process::Command;

use tokio::task::JoinSet;

use crate::rig::{
    Daemon, Place, Reply, Run, SOON, Server, all_told, assert_sound, eventually, ids, run, run_through, tally, webhook,
};

/// What happens to the calls of a name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The n-th of each thread fails, and no other.
    Once(&'static str),
    /// And so do all after it.
    Always(&'static str),
    /// The process is killed before the n-th.
    Kill,
}

/// At these calls; the last is beyond what a run makes, or nearly so.
const AT: [usize; 10] = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89];
const SYNC: &str = "fsync,fdatasync";
/// So many cases at the same time: they mostly wait.
const AT_ONCE: usize = 6;
const ASSETS: [&str; 3] = ["active_1", "active_2", "active_3"];

/// Each call with what may happen to it.
fn faults() -> Vec<(&'static str, Fault, usize)> {
    use Fault::{Always, Kill, Once};
    let faults = [
        ("pwrite64", vec![Once("ENOSPC"), Always("ENOSPC"), Once("EIO"), Kill], 89),
        (SYNC, vec![Once("EIO"), Always("EIO"), Kill], 34),
        ("openat", vec![Once("EMFILE"), Once("EACCES"), Kill], 8),
        ("ftruncate", vec![Once("ENOSPC"), Once("EIO"), Kill], 2),
    ];
    let each = |(call, faults, last): (&'static str, Vec<Fault>, usize)| {
        let at = AT.into_iter().filter(move |at| *at <= last);
        faults.into_iter().flat_map(move |fault| at.clone().map(move |at| (call, fault, at)))
    };
    faults.into_iter().flat_map(each).collect()
}

/// strace with a fault at the database's files. `-D`: the process is ours, and the tracer somebody else's child.
fn strace(place: &Place, call: &str, fault: Fault, at: usize) -> Vec<String> {
    let what = match fault {
        Fault::Once(error) => format!("error={error}:when={at}"),
        Fault::Always(error) => format!("error={error}:when={at}+"),
        Fault::Kill => format!("signal=KILL:when={at}"),
    };
    let mut words = ["strace", "-D", "-f", "-q", "-y", "-o"].map(str::to_owned).to_vec();
    words.push(trace(place).display().to_string());
    for end in ["", "-wal", "-shm", "-journal"] {
        words.extend(["-P".into(), place.path(&format!("assetwatch.db{end}")).display().to_string()]);
    }
    words.extend([format!("--trace={call}"), format!("--inject={call}:{what}")]);
    words
}

fn trace(place: &Place) -> PathBuf {
    place.path("trace")
}

/// The calls that were answered in the kernel's place; a kill leaves none, but its own line.
fn injected(place: &Place) -> Vec<String> {
    let trace = std::fs::read_to_string(trace(place)).unwrap_or_default();
    let hit = |line: &&str| line.contains("(INJECTED)") || line.contains("killed by SIGKILL");
    trace.lines().filter(hit).map(str::to_owned).collect()
}

/// Whether strace may trace, and can do what is asked of it here.
fn strace_works() -> bool {
    let probe =
        ["-D", "-f", "-q", "-y", "-P", "/", "--trace=openat", "--inject=openat:error=EIO:when=1", "-o", "/dev/null"];
    // It reads the paths in the memory of a process that other processes of its user may not look into.
    let why = match Command::new("strace").args(probe).arg("true").output() {
        Ok(probe) if probe.status.success() && rustix::process::geteuid().is_root() => return true,
        Ok(probe) if probe.status.success() => "not root".into(),
        Ok(probe) => String::from_utf8_lossy(&probe.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    println!("skipped, strace cannot trace here: {why}");
    false
}

/// Runs each case, some at a time, and says how many faults were met.
async fn each_case<F>(name: &str, case: impl Fn(&'static str, Fault, usize) -> F)
where
    F: Future<Output = bool> + Send + 'static,
{
    let (mut cases, mut running, mut met, mut all) = (faults().into_iter(), JoinSet::new(), 0, 0);
    loop {
        while running.len() < AT_ONCE
            && let Some((call, fault, at)) = cases.next()
        {
            running.spawn(case(call, fault, at));
        }
        let Some(ended) = running.join_next().await else { break };
        met += usize::from(ended.unwrap());
        all += 1;
    }
    println!("{name}: {met} of {all} faults were met, 0 lost, 0 unexpected");
    assert!(met > all / 2, "{met} of {all} faults were met: this was no experiment");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_calls_fail_loses_nothing() {
    if strace_works() {
        each_case("run", a_daemon_that_suffers).await;
    }
}

/// Whether it met the fault.
async fn a_daemon_that_suffers(call: &'static str, fault: Fault, at: usize) -> bool {
    let case = format!("{call}, {fault:?}, at {at}");
    let api = Server::start(|request| Reply::asset(request.asset(), "active")).await;
    let receiver = Server::receiver().await;
    let place = Place::new(&api, &webhook(&receiver));
    assert_eq!(run(&place, &[&["add"], &ASSETS[..]].concat()).await.code, 0);
    let mut daemon = Daemon::spawn_through(&place, &strace(&place, call, fault, at));
    // Until it has ended, has told everything, or says that it cannot go on.
    eventually(SOON, &format!("it ends, tells or says ({case})"), || {
        let waits = matches!(fault, Fault::Always(_)) && daemon.log().contains("cannot be used right now");
        let over = waits || daemon.has_ended() || is_told(&place);
        async move { over.then_some(()) }
    })
    .await;
    let met = injected(&place);
    if daemon.has_ended() {
        let (status, log) = (daemon.ended().await, daemon.log());
        let said = log.contains("assetwatch: the database ") && status.code() == Some(1);
        assert!(if fault == Fault::Kill { status.code().is_none() } else { said }, "{case}: {status:?} {log}");
    } else {
        let unsaid = !daemon.log().contains("cannot be used right now");
        let heard = met.iter().find(|call| call.contains("-wal>"));
        assert!(heard.is_none() || !unsaid, "{case}: nothing was said of {heard:?}: {}", daemon.log());
        daemon.kill().await;
    }
    end_leases(&place);
    let daemon = Daemon::start(&place).await;
    all_told(&place, SOON, || ()).await;
    assert_sound(&place);
    assert_eq!(place.ask::<String>("PRAGMA integrity_check").as_deref(), Some("ok"), "{case}");
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM deliveries"), Some(ASSETS.len() as i64), "{case}");
    let tally = tally(&place, "cms", &ids(&receiver));
    assert_eq!((tally.lost, tally.unexpected), (0, 0), "{case}: {tally:?}");
    assert!(daemon.stop().await.success(), "{case}");
    !met.is_empty()
}

/// Asked in a way that leaves a file alone which the daemon has not opened yet.
fn is_told(place: &Place) -> bool {
    place.ask::<i64>("SELECT count(*) FROM deliveries WHERE state = 'delivered'") == Some(ASSETS.len() as i64)
}

/// As if the time had passed that a killed process's leases last.
fn end_leases(place: &Place) {
    let over = "UPDATE watches SET lease_until = 0 WHERE lease_owner IS NOT NULL;
                UPDATE deliveries SET lease_until = 0 WHERE lease_owner IS NOT NULL;";
    place.database().execute_batch(over).unwrap();
}

/// The database is created by a command whose calls fail; the next one finds nothing, or all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_created_whole_or_not_at_all() {
    if strace_works() {
        each_case("add", an_add_that_suffers).await;
    }
}

async fn an_add_that_suffers(call: &'static str, fault: Fault, at: usize) -> bool {
    let case = format!("{call}, {fault:?}, at {at}");
    let place = Place::at("http://127.0.0.1:1", "");
    let args = [&["add"], &ASSETS[..]].concat();
    let Run { code, out, err } = run_through(&place, &strace(&place, call, fault, at), &args).await;
    let met = !injected(&place).is_empty();
    let said = code == 1 && err.contains("assetwatch: the database ");
    assert!(code == 0 || said || (fault == Fault::Kill && met), "{case}: {code} {out} {err}");
    if code == 0 {
        assert_eq!(place.ask::<i64>("SELECT count(*) FROM watches"), Some(3), "{case}: said to be added");
    }
    let again = run(&place, &args).await;
    assert_eq!(again.code, 0, "{case}: {again:?}");
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM watches"), Some(3), "{case}");
    assert_eq!(place.ask::<String>("PRAGMA integrity_check").as_deref(), Some("ok"), "{case}");
    met
}
