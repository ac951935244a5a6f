//! A process that leads a group of its own, and all that it starts.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join;
use rustix::fs::Mode;
use rustix::process::{PidfdFlags, Resource, Rlimit, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::orphans::{self, Run};

/// A killed process is gone at once, unless the kernel holds it in a call that cannot be interrupted.
pub const GONE: Duration = Duration::from_secs(1);

/// A running group. Dropped, it is killed, with those that escaped from it.
pub struct Group {
    leader: Child,
    run: Run,
    has_been_swept: bool,
    /// Readable when the leader has exited, and it is not reaped by that: its number goes on meaning this group until
    /// [`Group::end`], so that a signal cannot reach a stranger. Linux 5.3 and later.
    exit: AsyncFd<OwnedFd>,
}

impl Group {
    /// Starts `command` as the leader of a new group, without the means to gain rights, to leave a core or to make files
    /// for others. `run` is the `HOOK_RUN_ID` in its environment, by which those are found that leave the group.
    pub fn spawn(command: &mut Command, run: String) -> io::Result<Self> {
        restrict(command);
        // Killing on drop reaches only the leader; it is for an error in the lines below.
        let (leader, pid) = orphans::lead(command.process_group(0).kill_on_drop(true))?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let run = Run { id: run, leader: pid };
        Ok(Self { leader, run, has_been_swept: false, exit: readable(pidfd)? })
    }

    /// The leader, for its pipes.
    pub fn leader(&mut self) -> &mut Child {
        &mut self.leader
    }

    /// Resolves when the leader has exited. May be asked for again.
    pub async fn exited(&self) {
        exited(&self.exit).await;
    }

    /// Asks the whole group to stop, and those that escaped from it; resolves when these and the leader have ended, or
    /// `patience` is over.
    pub async fn terminate(&self, patience: Duration) {
        self.signal(Signal::TERM);
        join(self.run.signal(Signal::TERM, patience), timeout(patience, self.exited()).map(drop)).await;
    }

    /// Kills what is left of the group, and tells how the leader ended; nothing if it cannot be killed.
    pub async fn end(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::KILL);
        let status = timeout(GONE, self.leader.wait()).await.ok()?.ok();
        orphans::forget(self.run.leader);
        status
    }

    /// Ends those that escaped from the group: TERM, and KILL after `patience`.
    pub async fn sweep(&mut self, patience: Duration) {
        let count = self.run.signal(Signal::TERM, patience).await;
        self.run.kill().await;
        self.has_been_swept = true;
        if count > 0 {
            tracing::warn!(hook.run = self.run.id, count, "processes that had left the command's group were ended");
        }
    }

    fn signal(&self, signal: Signal) {
        // The one possible error is that nobody is left.
        let _ = rustix::process::kill_process_group(self.run.leader, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Once it has been waited for, the number may mean another group.
        if self.leader.id().is_some() {
            self.signal(Signal::KILL);
        }
        if !self.has_been_swept {
            self.run.kill_now();
        }
    }
}

/// Resolves when the process of a registered pidfd has ended.
pub async fn exited(pidfd: &AsyncFd<OwnedFd>) {
    // It fails only when the runtime is shutting down; then this future is about to be dropped.
    let _ = pidfd.readable().await;
}

/// Registers a pidfd.
///
/// # Errors
/// When the runtime refuses.
#[expect(unsafe_code, reason = "a descriptor is registered")]
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, always gives the same descriptor, and is closed only by the AsyncFd that owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

#[expect(unsafe_code, reason = "there is no safe way to run something between fork and exec")]
fn restrict(command: &mut Command) {
    let none = || Rlimit { current: Some(0), maximum: Some(0) };
    // SAFETY: between fork and exec only what is async-signal-safe may be called. These are three bare system calls;
    // the closure neither allocates nor locks, and refers to nothing of the parent's.
    unsafe {
        command.pre_exec(move || {
            rustix::process::umask(Mode::RWXG | Mode::RWXO);
            rustix::process::setrlimit(Resource::Core, none())?;
            rustix::thread::set_no_new_privs(true)?;
            Ok(())
        });
    }
}
