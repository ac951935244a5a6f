//! What systemd is told, and what the unit says. Its watchdog is fed by whatever works and by nothing else.

use std::process::Stdio;

use rustix::process::Signal;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

use crate::rig::{Daemon, Place, SOON, Server, WriteLock, eventually, webhook};

/// systemd's end of the socket.
struct Systemd {
    socket: UnixDatagram,
    address: String,
}

impl Systemd {
    fn at(place: &Place) -> Self {
        let path = place.path("notify");
        Self { socket: UnixDatagram::bind(&path).unwrap(), address: path.display().to_string() }
    }

    /// Starts a daemon that this is told of, with these variables besides.
    fn start(&self, place: &Place, variables: &[(&str, &str)]) -> Daemon {
        let mut all = vec![("NOTIFY_SOCKET", self.address.as_str())];
        all.extend(variables);
        Daemon::spawn_with(place, &all)
    }

    /// The next message.
    async fn told(&self) -> String {
        let mut bytes = vec![0; 4_096];
        let length = tokio::time::timeout(SOON, self.socket.recv(&mut bytes)).await.expect("a message").unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    /// The next message that begins like this.
    async fn until(&self, start: &str) -> String {
        loop {
            let told = self.told().await;
            if told.starts_with(start) {
                return told;
            }
        }
    }

    /// What has come and was not looked at yet.
    fn left(&self) -> Vec<String> {
        let mut bytes = vec![0; 4_096];
        let next = |bytes: &mut Vec<u8>| self.socket.try_recv(bytes).ok();
        std::iter::from_fn(|| next(&mut bytes).map(|length| String::from_utf8_lossy(&bytes[..length]).into())).collect()
    }
}

const PET: &str = "WATCHDOG=1";

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_of_the_start_a_reload_and_the_stop() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, "");
    let systemd = Systemd::at(&place);
    let daemon = systemd.start(&place, &[]);
    // A large database is copied before it is brought up to date, which may take longer than a start has.
    assert_eq!(systemd.told().await, "EXTEND_TIMEOUT_USEC=60000000\n");
    assert_eq!(systemd.until("READY=1\n").await, "READY=1\nSTATUS=watching 0 assets\n");
    place.configure(&api.url(), &webhook(&receiver));
    let before = monotonic_micros();
    daemon.signal(Signal::HUP);
    let reloading = systemd.until("RELOADING=1\n").await;
    let at = reloading.trim_end().strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
    assert!((before..=monotonic_micros()).contains(&at), "{reloading:?}");
    assert_eq!(systemd.told().await, "READY=1\nSTATUS=watching 0 assets\n");
    assert!(daemon.stop().await.success());
    // 2 s of grace, 10 s for what is told to end, 5 s to spare.
    let stopping = "STOPPING=1\nSTATUS=stopping: what is in flight may end\nEXTEND_TIMEOUT_USEC=17000000\n";
    assert_eq!(systemd.left(), [stopping], "without a watchdog nothing is petted");
}

fn monotonic_micros() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_is_petted_while_idle_and_while_the_database_is_locked() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let systemd = Systemd::at(&place);
    let daemon = systemd.start(&place, &[("WATCHDOG_USEC", "400000")]);
    for _ in 0..3 {
        systemd.until(PET).await;
    }
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('active_1')", []).unwrap();
    let lock = WriteLock::take(&place);
    daemon.until_logged("another program holds its write lock").await;
    systemd.left();
    for _ in 0..2 {
        systemd.until(PET).await;
    }
    drop(lock);
    place.until_state("active_1", "settled").await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watchdog_that_is_another_processes_is_not_petted() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let systemd = Systemd::at(&place);
    let daemon = systemd.start(&place, &[("WATCHDOG_USEC", "4000"), ("WATCHDOG_PID", "1")]);
    systemd.until("READY=1").await;
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('active_1')", []).unwrap();
    place.until_state("active_1", "settled").await;
    assert!(daemon.stop().await.success());
    assert!(!systemd.left().iter().any(|told| told.starts_with(PET)));
}

/// Syscalls of a process that do not come back, by strace; none where that is missing or may not, which is then said.
struct Hang(Child);

impl Hang {
    async fn syncs_of(daemon: &Daemon, place: &Place) -> Option<Self> {
        let log = place.path("strace.log");
        let pid = daemon.pid().as_raw_nonzero().to_string();
        let strace = Command::new("strace")
            .args(["-f", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=600s", "-p", &pid])
            .stderr(std::fs::File::create(&log).unwrap())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let Ok(mut strace) = strace else {
            println!("skipped, there is no strace");
            return None;
        };
        let attached = eventually(SOON, "strace is attached", || {
            let attached = std::fs::read_to_string(&log).unwrap().contains("attached").then_some(true);
            std::future::ready(attached.or_else(|| strace.try_wait().unwrap().map(|_| false)))
        });
        if !attached.await {
            println!("skipped, strace may not: {}", std::fs::read_to_string(&log).unwrap().trim());
            return None;
        }
        Some(Self(strace))
    }

    /// They come back now.
    async fn end(mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        self.0.wait().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pump_that_hangs_is_not_vouched_for() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let systemd = Systemd::at(&place);
    let daemon = systemd.start(&place, &[("WATCHDOG_USEC", "6000000")]);
    systemd.until(PET).await;
    let Some(hang) = Hang::syncs_of(&daemon, &place).await else { return };
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('active_1')", []).unwrap();
    daemon.until_logged("no sign of life; unless one comes soon, the watchdog has us started again").await;
    daemon.until_logged("missed=4").await;
    systemd.left();
    daemon.until_logged("missed=5").await;
    assert!(!systemd.left().iter().any(|told| told.starts_with(PET)));
    // It was a hang that passed: then all is well again.
    hang.end().await;
    systemd.until(PET).await;
    place.until_state("active_1", "settled").await;
    assert!(daemon.stop().await.success());
}

/// What the unit keeps commands from is what the guard keeps callbacks from.
#[test]
fn the_unit_denies_the_addresses_that_hand_out_credentials() {
    let unit = include_str!("../../systemd/assetwatch.service");
    let denied = unit.lines().find_map(|line| line.strip_prefix("IPAddressDeny=")).unwrap();
    let mut denied: Vec<&str> = denied.split(' ').collect();
    denied.sort_unstable();
    let mut known = [
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::254",
        "fd20:ce::254",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
    ];
    known.sort_unstable();
    assert_eq!(denied, known);
}
