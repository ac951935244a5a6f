//! What a contender costs: CPU time and memory of its whole process group, from `/proc`.

use std::fs;

/// So many ticks a second: what Linux shows to programs on every architecture.
const TICKS: f64 = 100.0;

#[derive(Default)]
pub struct Cost {
    /// Seconds of user and system time, those of children that have ended included.
    pub cpu: f64,
    /// Resident at the worst moment seen, in MiB: what each process has for itself, and of the files that they map
    /// (programs and libraries, mostly shared) those of the one that maps most. For a single process that is all of it.
    pub peak: f64,
}

impl Cost {
    /// Looks at the group once more. Before its processes end.
    pub fn sample(&mut self, group: u32) {
        let (mut ticks, mut own, mut files) = (0, 0, 0);
        for stat in fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| stat(&entry.path())) {
            if stat.group == group {
                ticks += stat.ticks;
                own += stat.own;
                files = files.max(stat.files);
            }
        }
        // A moment in which a process has ended and its parent has not noticed yet must not take anything back.
        self.cpu = self.cpu.max(ticks as f64 / TICKS);
        self.peak = self.peak.max((own + files) as f64 / 1_024.0);
    }
}

struct Stat {
    group: u32,
    ticks: u64,
    /// Resident memory in KiB, apart from and in mapped files.
    own: u64,
    files: u64,
}

/// None for what is no process, or has just ended.
fn stat(path: &std::path::Path) -> Option<Stat> {
    let text = fs::read_to_string(path.join("stat")).ok()?;
    // After the name, which may have spaces: the state is the third field of proc(5), and the first here.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)? + number(15)? + number(16)? + number(17)?;
    let status = fs::read_to_string(path.join("status")).ok()?;
    // A process that has ended and was not waited for has no such lines.
    let size = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_end_matches("kB").trim().parse().unwrap_or(0)
    };
    let (own, files) = (size("RssAnon:") + size("RssShmem:"), size("RssFile:"));
    Some(Stat { group: number(5)?.try_into().ok()?, ticks, own, files })
}
