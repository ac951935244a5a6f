//! The disk as SQLite's own file system (`sqlite3_vfs`), registered as the default one of this test binary. SQLite's
//! sleeps take no time, its random numbers come from the seed and its clock is the simulation's.
#![expect(unsafe_code, reason = "SQLite calls this through C functions, with pointers to what it keeps for us")]

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::rc::Rc;
use std::sync::Once;

use rusqlite::ffi::{self, sqlite3_file, sqlite3_vfs};

use super::{File, Process, Region, roll, step, with};

/// What SQLite keeps for us of an open file. It allocates this and calls with pointers to it until `close`.
#[repr(C)]
struct Open {
    base: sqlite3_file,
    handle: *mut Handle,
}

struct Handle {
    id: u64,
    process: Process,
    file: Rc<RefCell<File>>,
    /// The regions live as long as SQLite may have pointers into them.
    regions: Vec<Region>,
}

/// Julian days begin so many milliseconds before 1970.
const JULIAN: i64 = 210_866_760_000_000;

/// Makes this the file system of every connection that is opened from now on.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let vfs = sqlite3_vfs {
            iVersion: 2,
            szOsFile: size_of::<Open>() as c_int,
            mxPathname: 512,
            pNext: std::ptr::null_mut(),
            zName: c"simulation".as_ptr(),
            pAppData: std::ptr::null_mut(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: None,
            xCurrentTimeInt64: Some(current_time_int64),
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        };
        // SAFETY: it lives for ever, and every function in it has the signature that SQLite expects.
        let registered = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 1) };
        assert_eq!(registered, ffi::SQLITE_OK);
    });
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// SAFETY of the callers: SQLite passes what `open` has filled in, from one thread at a time, until `close`.
unsafe fn handle<'a>(file: *mut sqlite3_file) -> &'a mut Handle {
    unsafe { &mut *(*file.cast::<Open>()).handle }
}

/// One step of the handle's process; what follows happens only if it is alive after it.
fn lives(handle: &Handle) -> bool {
    step(handle.process)
}

unsafe fn name(name: *const c_char) -> String {
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    path: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let path = (!path.is_null()).then(|| unsafe { name(path) });
    unsafe { (*file).pMethods = std::ptr::null() };
    let opened = with(|disk| {
        let process = disk.present;
        if disk.is_dead(process) {
            return None;
        }
        let found = match path {
            None => Rc::default(),
            Some(path) if flags & ffi::SQLITE_OPEN_CREATE != 0 => Rc::clone(disk.files.entry(path).or_default()),
            Some(path) => Rc::clone(disk.files.get(&path)?),
        };
        disk.next_handle += 1;
        let id = disk.next_handle;
        disk.handles.insert(id, (process, Rc::clone(&found)));
        Some(Handle { id, process, file: found, regions: Vec::new() })
    });
    let Some(opened) = opened else { return ffi::SQLITE_CANTOPEN };
    unsafe {
        (*file.cast::<Open>()).handle = Box::into_raw(Box::new(opened));
        (*file).pMethods = &raw const METHODS;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    let handle = unsafe { Box::from_raw((*file.cast::<Open>()).handle) };
    handle.file.borrow_mut().let_go(handle.id);
    with(|disk| disk.handles.remove(&handle.id));
    ffi::SQLITE_OK
}

unsafe extern "C" fn delete(_: *mut sqlite3_vfs, path: *const c_char, _: c_int) -> c_int {
    let path = unsafe { name(path) };
    with(|disk| {
        if disk.is_dead(disk.present) {
            return ffi::SQLITE_IOERR;
        }
        disk.files.remove(&path).map_or(ffi::SQLITE_IOERR_DELETE_NOENT, |_| ffi::SQLITE_OK)
    })
}

unsafe extern "C" fn access(_: *mut sqlite3_vfs, path: *const c_char, _: c_int, found: *mut c_int) -> c_int {
    let path = unsafe { name(path) };
    // An empty log is no log, as it is for SQLite's own.
    let exists = with(|disk| disk.files.get(&path).is_some_and(|file| !file.borrow().data.is_empty()));
    unsafe { *found = c_int::from(exists) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(_: *mut sqlite3_vfs, path: *const c_char, room: c_int, out: *mut c_char) -> c_int {
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes_with_nul();
    if bytes.len() > room as usize {
        return ffi::SQLITE_CANTOPEN;
    }
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), out, bytes.len()) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn randomness(_: *mut sqlite3_vfs, count: c_int, out: *mut c_char) -> c_int {
    let out = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), count as usize) };
    with(|disk| out.fill_with(|| roll(&mut disk.random) as u8));
    count
}

unsafe extern "C" fn sleep(_: *mut sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds
}

unsafe extern "C" fn current_time(_: *mut sqlite3_vfs, out: *mut f64) -> c_int {
    unsafe { *out = with(|disk| (disk.wall + JULIAN) as f64) / 86_400_000.0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_int64(_: *mut sqlite3_vfs, out: *mut i64) -> c_int {
    unsafe { *out = with(|disk| disk.wall + JULIAN) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(file: *mut sqlite3_file, out: *mut c_void, count: c_int, at: i64) -> c_int {
    let handle = unsafe { handle(file) };
    let out = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), count as usize) };
    let file = handle.file.borrow();
    let left = file.data.get(at as usize..).unwrap_or_default();
    let there = left.len().min(out.len());
    out[..there].copy_from_slice(&left[..there]);
    out[there..].fill(0);
    if there < out.len() { ffi::SQLITE_IOERR_SHORT_READ } else { ffi::SQLITE_OK }
}

unsafe extern "C" fn write(file: *mut sqlite3_file, bytes: *const c_void, count: c_int, at: i64) -> c_int {
    let handle = unsafe { handle(file) };
    if !lives(handle) {
        return ffi::SQLITE_IOERR_WRITE;
    }
    if with(|disk| disk.trouble.full) {
        return ffi::SQLITE_FULL;
    }
    let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), count as usize) };
    handle.file.borrow_mut().write(at as usize, bytes);
    ffi::SQLITE_OK
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: i64) -> c_int {
    let handle = unsafe { handle(file) };
    if !lives(handle) {
        return ffi::SQLITE_IOERR_TRUNCATE;
    }
    handle.file.borrow_mut().truncate(size as usize);
    ffi::SQLITE_OK
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, _: c_int) -> c_int {
    let handle = unsafe { handle(file) };
    let fails = with(|disk| {
        disk.syncs += 1;
        disk.trouble.sync_fails > 0 && roll(&mut disk.random).is_multiple_of(disk.trouble.sync_fails)
    });
    if fails || !lives(handle) {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    handle.file.borrow_mut().sync();
    // Between what is on the disk and what its writer knows of it.
    if step(handle.process) { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_FSYNC }
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, out: *mut i64) -> c_int {
    unsafe { *out = handle(file).file.borrow().data.len() as i64 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    let handle = unsafe { handle(file) };
    if !with(|disk| !disk.is_dead(handle.process)) {
        return ffi::SQLITE_IOERR_LOCK;
    }
    let mut file = handle.file.borrow_mut();
    let others = file.locks.iter().filter(|(other, _)| **other != handle.id).map(|(_, level)| *level);
    let others = others.max().unwrap_or(ffi::SQLITE_LOCK_NONE);
    let mine = file.locks.get(&handle.id).copied().unwrap_or(ffi::SQLITE_LOCK_NONE);
    let (granted, result) = match level {
        _ if mine >= level => (mine, ffi::SQLITE_OK),
        ffi::SQLITE_LOCK_SHARED if others >= ffi::SQLITE_LOCK_PENDING => (mine, ffi::SQLITE_BUSY),
        ffi::SQLITE_LOCK_SHARED => (level, ffi::SQLITE_OK),
        _ if others >= ffi::SQLITE_LOCK_RESERVED => (mine, ffi::SQLITE_BUSY),
        ffi::SQLITE_LOCK_EXCLUSIVE if others >= ffi::SQLITE_LOCK_SHARED => (ffi::SQLITE_LOCK_PENDING, ffi::SQLITE_BUSY),
        _ => (level, ffi::SQLITE_OK),
    };
    file.locks.insert(handle.id, granted);
    result
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    let handle = unsafe { handle(file) };
    if with(|disk| !disk.is_dead(handle.process)) {
        handle.file.borrow_mut().locks.insert(handle.id, level);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite3_file, out: *mut c_int) -> c_int {
    let handle = unsafe { handle(file) };
    let reserved = handle.file.borrow().locks.values().any(|level| *level >= ffi::SQLITE_LOCK_RESERVED);
    unsafe { *out = c_int::from(reserved) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(_: *mut sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut sqlite3_file) -> c_int {
    super::SECTOR as c_int
}

unsafe extern "C" fn device_characteristics(_: *mut sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    let handle = unsafe { handle(file) };
    unsafe { *out = std::ptr::null_mut() };
    assert_eq!(size as usize, super::REGION * 8);
    if with(|disk| disk.is_dead(handle.process)) {
        return ffi::SQLITE_IOERR_SHMMAP;
    }
    let mut shared = handle.file.borrow_mut();
    shared.shm_users.insert(handle.id);
    while extend != 0 && shared.shm.len() <= region as usize {
        shared.shm.push(Rc::new([0; super::REGION].into()));
    }
    if let Some(found) = shared.shm.get(region as usize) {
        handle.regions.push(Rc::clone(found));
        unsafe { *out = found.get().cast() };
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_lock(file: *mut sqlite3_file, offset: c_int, count: c_int, flags: c_int) -> c_int {
    let handle = unsafe { handle(file) };
    if with(|disk| disk.is_dead(handle.process)) {
        return ffi::SQLITE_IOERR_SHMLOCK;
    }
    let (id, mut file) = (handle.id, handle.file.borrow_mut());
    let locks = &mut file.shm_locks[offset as usize..(offset + count) as usize];
    let exclusive = flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
    if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
        for lock in locks {
            lock.shared.remove(&id);
            lock.exclusive.take_if(|owner| *owner == id);
        }
        return ffi::SQLITE_OK;
    }
    let taken = locks.iter().any(|lock| {
        lock.exclusive.is_some_and(|owner| owner != id) || exclusive && lock.shared.iter().any(|owner| *owner != id)
    });
    if taken {
        return ffi::SQLITE_BUSY;
    }
    for lock in locks {
        if exclusive {
            lock.exclusive = Some(id);
        } else {
            lock.shared.insert(id);
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_barrier(_: *mut sqlite3_file) {}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, _: c_int) -> c_int {
    let handle = unsafe { handle(file) };
    let mut file = handle.file.borrow_mut();
    file.shm_users.remove(&handle.id);
    if file.shm_users.is_empty() {
        file.shm.clear();
    }
    drop(file);
    handle.regions.clear();
    ffi::SQLITE_OK
}
