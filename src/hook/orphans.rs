//! What commands leave behind: processes that left their group, found by the run that they name, and orphans.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::{self, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::group::{GONE, exited, readable};

/// So often is looked for processes that were begun while the others were being killed.
const ROUNDS: usize = 10;

/// The leaders of the commands that run; nothing until [`adopt`], while others may have children in this process.
///
/// Which children a process has, and that it adopts orphans, belongs to the whole process, however many [`super::Hooks`]
/// there are: after a reload two of them run commands for a while. So this stands here and not in one of them.
static LEADERS: Mutex<Option<HashSet<Pid>>> = Mutex::new(None);

fn leaders() -> MutexGuard<'static, Option<HashSet<Pid>>> {
    LEADERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes this process the parent of every orphan that a command leaves, so that it is found and ended, and reaped then.
///
/// All children of this process have to be commands of [`super::Hooks`] from then on: any other child that has ended would
/// be taken for an orphan, and whoever waits for it would wait in vain.
///
/// # Errors
/// When the kernel refuses.
pub fn adopt() -> io::Result<()> {
    process::set_child_subreaper(Some(process::getpid()))?;
    leaders().get_or_insert_default();
    Ok(())
}

/// Starts the leader of a new group. An end that comes at once finds it noted already.
pub fn lead(command: &mut Command) -> io::Result<(Child, Pid)> {
    let mut leaders = leaders();
    let leader = command.spawn()?;
    let number = leader.id().and_then(|id| i32::try_from(id).ok());
    let pid = number.and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    if let Some(leaders) = leaders.as_mut() {
        leaders.insert(pid);
    }
    Ok((leader, pid))
}

/// A leader was waited for: its number may mean an orphan next.
pub fn forget(leader: Pid) {
    if let Some(leaders) = leaders().as_mut() {
        leaders.remove(&leader);
    }
}

/// One attempt's processes: those that name `run` in their environment, and are not in the group of its leader.
#[derive(Clone)]
pub struct Run {
    /// `HOOK_RUN_ID`.
    pub id: String,
    /// Whose group is seen to by a signal to the group.
    pub leader: Pid,
}

impl Run {
    /// Sends `signal` to those that escaped and waits until they have ended, at most for `patience`. Returns how many
    /// there were.
    pub async fn signal(&self, signal: Signal, patience: Duration) -> usize {
        let run = self.clone();
        let found = tokio::task::spawn_blocking(move || run.escaped()).await.unwrap_or_default();
        let count = found.len();
        let ends = found.into_iter().filter_map(|pidfd| {
            // The one possible error is that it has ended.
            let _ = process::pidfd_send_signal(&pidfd, signal);
            readable(pidfd).ok()
        });
        let ends: Vec<_> = ends.collect();
        let _ = timeout(patience, join_all(ends.iter().map(exited))).await;
        count
    }

    /// Kills what is left, and those that it begins meanwhile; then orphans that have ended are reaped.
    pub async fn kill(&self) {
        for _ in 0..ROUNDS {
            if self.signal(Signal::KILL, GONE).await == 0 {
                break;
            }
        }
        let _ = tokio::task::spawn_blocking(reap).await;
    }

    /// The same where nobody can wait.
    pub fn kill_now(&self) {
        for pidfd in self.escaped() {
            let _ = process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }

    fn escaped(&self) -> Vec<OwnedFd> {
        let entry = format!("HOOK_RUN_ID={}", self.id);
        let (all, us) = (processes(), process::getpid());
        let escaped = all.iter().filter(|(_, process)| {
            !process.has_ended && process.group != self.leader.as_raw_pid() && is_below(process, us, &all)
        });
        escaped.filter_map(|(pid, _)| open(*pid, entry.as_bytes())).collect()
    }
}

/// A process that means what its number meant when its environment was read: the number alone may be somebody else's by
/// the time of the signal.
fn open(pid: Pid, entry: &[u8]) -> Option<OwnedFd> {
    if !has_entry(pid, entry) {
        return None;
    }
    let pidfd = process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
    has_entry(pid, entry).then_some(pidfd)
}

fn has_entry(pid: Pid, entry: &[u8]) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ"));
    environment.is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|variable| variable == entry))
}

struct Process {
    parent: Option<Pid>,
    group: i32,
    has_ended: bool,
}

/// All processes that can be seen.
fn processes() -> HashMap<Pid, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    let pids = entries.flatten().filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter_map(|pid| Some((pid, look(pid)?))).collect()
}

/// `pid (name) state parent group …`, where the name may hold anything.
fn look(pid: Pid) -> Option<Process> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?.split_ascii_whitespace();
    let has_ended = matches!(fields.next()?, "Z" | "X");
    let parent = Pid::from_raw(fields.next()?.parse().ok()?);
    Some(Process { parent, group: fields.next()?.parse().ok()?, has_ended })
}

/// Whether `us` is among its ancestors. One whose parent has gone since it was looked at is just being adopted.
fn is_below(process: &Process, us: Pid, all: &HashMap<Pid, Process>) -> bool {
    let mut parent = process.parent;
    // No line of ancestors is longer than there are processes; one that is read while it changes might have a ring.
    for _ in all {
        match parent {
            None => return false,
            Some(pid) if pid == us => return true,
            Some(pid) => match all.get(&pid) {
                Some(process) => parent = process.parent,
                None => return true,
            },
        }
    }
    false
}

/// Waits for the orphans that have ended; whoever leads a group is waited for by whoever began it.
fn reap() {
    let mut leaders = leaders();
    let Some(leaders) = leaders.as_mut() else { return };
    let us = Some(process::getpid());
    let mut children = processes();
    children.retain(|_, process| process.parent == us);
    // A command whose attempt was dropped is waited for by the runtime, which does not say so.
    leaders.retain(|leader| children.contains_key(leader));
    for (pid, _) in children.iter().filter(|(pid, child)| child.has_ended && !leaders.contains(pid)) {
        // It has ended, so there is nothing to wait for, and nobody else waits for it.
        let _ = process::waitid(WaitId::Pid(*pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}
