//! A disk in memory, one for each thread: files with what is on them and what a power failure would leave of it, locks
//! that belong to processes, and faults. SQLite reaches it through `disk/vfs.rs`.
//!
//! A process may die at any step of its work on the disk or, see [`step`], elsewhere: from then on nothing of it reaches
//! the disk, and its locks are gone.

pub mod vfs;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

/// SQLite's shared memory comes in regions of this many words.
const REGION: usize = 4_096;
/// What a disk writes at once, whatever happens.
const SECTOR: usize = 512;

pub type Region = Rc<std::cell::UnsafeCell<[u64; REGION]>>;
/// Whoever opens files: a daemon between two crashes, the operator, another program, the auditor.
pub type Process = u32;

/// A lock of SQLite's on a byte of the shared memory.
#[derive(Default)]
pub struct ShmLock {
    shared: BTreeSet<u64>,
    exclusive: Option<u64>,
}

enum Pending {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

#[derive(Default)]
pub struct File {
    data: Vec<u8>,
    /// What a power failure leaves, whatever happens to the writes that wait.
    durable: Vec<u8>,
    pending: Vec<Pending>,
    /// SQLite's five levels, by handle.
    locks: BTreeMap<u64, i32>,
    shm: Vec<Region>,
    shm_users: BTreeSet<u64>,
    shm_locks: [ShmLock; 8],
}

/// What goes wrong on the disk at present.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trouble {
    /// Writes find no space.
    pub full: bool,
    /// One of so many syncs fails; none if zero.
    pub sync_fails: u64,
}

#[derive(Default)]
struct Disk {
    files: BTreeMap<String, Rc<RefCell<File>>>,
    /// Each handle's process, and the file that it is of.
    handles: BTreeMap<u64, (Process, Rc<RefCell<File>>)>,
    next_handle: u64,
    dead: BTreeSet<Process>,
    /// Which process dies after how many more steps, and whether the power goes with it.
    doom: Option<(Process, u64, bool)>,
    power_failed: bool,
    present: Process,
    trouble: Trouble,
    syncs: u64,
    random: u64,
    wall: i64,
    /// Told when a process died by its doom.
    died: Option<Arc<Notify>>,
}

thread_local! {
    static DISK: RefCell<Disk> = RefCell::default();
}

fn with<T>(work: impl FnOnce(&mut Disk) -> T) -> T {
    DISK.with_borrow_mut(work)
}

/// An empty disk; `died` is told when a process has met its doom.
pub fn format(seed: u64, died: Arc<Notify>) {
    with(|disk| *disk = Disk { random: seed, died: Some(died), ..Disk::default() });
}

/// How many bytes are on the disk.
pub fn bytes() -> usize {
    with(|disk| disk.files.values().map(|file| file.borrow().data.len()).sum())
}

/// The wall clock, for other programs' SQLite.
pub fn set_wall(millis: i64) {
    with(|disk| disk.wall = millis);
}

pub fn set_trouble(trouble: Trouble) {
    with(|disk| disk.trouble = trouble);
}

/// Runs `work` as this process: files that it opens belong to it.
pub fn by<T>(process: Process, work: impl FnOnce() -> T) -> T {
    let before = with(|disk| std::mem::replace(&mut disk.present, process));
    let result = work();
    with(|disk| disk.present = before);
    result
}

/// Has `process` die after `steps` more steps, and with `power` everybody else.
pub fn doom(process: Process, steps: u64, power: bool) {
    with(|disk| disk.doom = Some((process, steps, power)));
}

/// A step of a process, at which its doom may come. Whether it is alive after it.
pub fn step(process: Process) -> bool {
    let told = with(|disk| {
        let Some((doomed, steps, power)) = &mut disk.doom else { return None };
        if *doomed != process {
            return None;
        }
        *steps = steps.saturating_sub(1);
        if *steps > 0 {
            return None;
        }
        let power = *power;
        disk.doom = None;
        disk.bury(process, power);
        disk.died.clone()
    });
    if let Some(told) = told {
        told.notify_one();
    }
    is_alive(process)
}

pub fn is_alive(process: Process) -> bool {
    with(|disk| !disk.power_failed && !disk.dead.contains(&process))
}

/// Ends a process here and now.
pub fn kill(process: Process) {
    with(|disk| disk.bury(process, false));
}

/// If the power has failed: what is left on the disk, as it is found when the power comes back.
pub fn restore_power() -> bool {
    with(|disk| {
        if !std::mem::take(&mut disk.power_failed) {
            return false;
        }
        let (handles, files) = (std::mem::take(&mut disk.handles), disk.files.clone());
        disk.dead.extend(handles.values().map(|(process, _)| *process));
        // Handles of the dead are still closed by somebody, and find files of their own.
        disk.handles = handles;
        for (name, file) in files {
            let left = file.borrow_mut().after_power_failure(&mut disk.random);
            let file = File { durable: left.clone(), data: left, ..File::default() };
            disk.files.insert(name, Rc::new(RefCell::new(file)));
        }
        true
    })
}

fn roll(random: &mut u64) -> u64 {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *random;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Disk {
    fn bury(&mut self, process: Process, power: bool) {
        self.power_failed |= power;
        self.dead.insert(process);
        for (handle, (_, file)) in self.handles.iter().filter(|(_, (owner, _))| power || *owner == process) {
            file.borrow_mut().let_go(*handle);
        }
    }

    fn is_dead(&self, process: Process) -> bool {
        self.power_failed || self.dead.contains(&process)
    }
}

impl File {
    fn let_go(&mut self, handle: u64) {
        self.locks.remove(&handle);
        for lock in &mut self.shm_locks {
            lock.shared.remove(&handle);
            lock.exclusive.take_if(|owner| *owner == handle);
        }
        self.shm_users.remove(&handle);
        if self.shm_users.is_empty() {
            self.shm.clear();
        }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        put(&mut self.data, at, bytes);
        self.pending.push(Pending::Write(at, bytes.to_vec()));
    }

    fn truncate(&mut self, size: usize) {
        self.data.truncate(size);
        self.pending.push(Pending::Truncate(size));
    }

    fn sync(&mut self) {
        for pending in self.pending.drain(..) {
            match pending {
                Pending::Write(at, bytes) => put(&mut self.durable, at, &bytes),
                Pending::Truncate(size) => self.durable.truncate(size),
            }
        }
    }

    /// Of what was not synced any part may have been written, in any order, and the last of it in part.
    fn after_power_failure(&mut self, random: &mut u64) -> Vec<u8> {
        let mut left = std::mem::take(&mut self.durable);
        let kept = roll(random) % 3;
        for pending in self.pending.drain(..) {
            let fate = match kept {
                0 => 3,
                1 => 0,
                _ => roll(random) % 4,
            };
            match (pending, fate) {
                (Pending::Write(at, bytes), 0 | 1) => put(&mut left, at, &bytes),
                (Pending::Write(at, bytes), 2) => {
                    let sectors = (roll(random) as usize % (bytes.len() / SECTOR + 1)) * SECTOR;
                    put(&mut left, at, &bytes[..sectors]);
                }
                (Pending::Truncate(size), 0 | 1) => left.truncate(size),
                _ => {}
            }
        }
        left
    }
}

fn put(data: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if data.len() < at + bytes.len() {
        data.resize(at + bytes.len(), 0);
    }
    data[at..at + bytes.len()].copy_from_slice(bytes);
}
