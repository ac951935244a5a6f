//! Faults that come from outside: answers that are held back, a foreign write lock, a small disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use assetwatch::clock::{Clock, Timestamp};
use tokio::sync::watch;

use super::Place;

/// Closed at first and opened once; what waits for it goes on then.
#[derive(Clone, Debug)]
pub struct Latch(watch::Sender<bool>);

impl Latch {
    pub fn closed() -> Self {
        Self(watch::channel(false).0)
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    pub async fn opened(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

/// The write lock of a place's database, in the hands of another program. Released when it is dropped.
pub struct WriteLock(#[expect(dead_code, reason = "held, not used")] rusqlite::Connection);

impl WriteLock {
    pub fn take(place: &Place) -> Self {
        let connection = place.database();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        Self(connection)
    }
}

/// Wall time, as the daemon has it.
pub fn now() -> Timestamp {
    Clock::system().now()
}

/// Writes an executable shell script.
pub fn executable(path: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    // Another name first: a file that is open for writing cannot be executed, and a fork elsewhere may hold it open.
    let draft = path.with_extension("draft");
    std::fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&draft, path).unwrap();
}

/// A small disk of its own at a path; unmounted when it is dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts one of so many KiB; none where we may not, which is then said.
    pub fn mount(path: PathBuf, size_kib: u32) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size_kib}k"), "assetwatch-test"])
            .arg(&path)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(path)),
            Ok(output) => {
                println!("skipped, no tmpfs can be mounted: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                println!("skipped, there is no mount(8): {error}");
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Mounts it anew, `ro` or `rw`.
    pub fn remount(&self, option: &str) {
        let mounted = Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.0).output().unwrap();
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily, since what a failed test left running may still have files open there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
