//! The file that a command runs: which one it is, and whether it may be run.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file that `name` means: a whole path, or a name that is looked up in `path` as a shell would.
///
/// The error is a sentence that says what is wrong with it and what to do. A file that somebody else could change is
/// refused: neither group nor others may write it, and it has to be root's or our own, as sshd asks of its files; and no
/// directory above it may be everybody's, where anybody could put another file in its place. A directory that a group may
/// write is accepted: `/usr/local/bin` is `staff`'s on many a Debian.
pub fn find(name: &str, path: &OsStr) -> Result<PathBuf, String> {
    let file = if name.contains('/') { PathBuf::from(name) } else { look_up(name, path)? };
    if !file.is_absolute() {
        return Err(format!(
            "the command `{name}` is a relative path: write it from the root, as in `/usr/local/bin/…`"
        ));
    }
    let shown = file.display();
    let metadata = file.metadata().map_err(|error| format!("the command {shown} cannot be run: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("the command {shown} is not a file"));
    }
    if metadata.mode() & 0o111 == 0 {
        return Err(format!("the command {shown} is not executable: run `chmod +x {shown}`"));
    }
    guarded(&file, &metadata)?;
    if begins(&file).is_some_and(|start| !start.starts_with(b"#!") && start != *b"\x7fELF") {
        return Err(format!(
            "the command {shown} is neither a program nor a script with `#!` in its first line, such as `#!/bin/sh`"
        ));
    }
    Ok(file)
}

fn look_up(name: &str, path: &OsStr) -> Result<PathBuf, String> {
    let candidates = std::env::split_paths(path).filter(|directory| directory.is_absolute());
    let mut files = candidates.map(|directory| directory.join(name)).filter(|file| file.is_file());
    let first = files.next();
    let executable = |file: &PathBuf| file.metadata().is_ok_and(|metadata| metadata.mode() & 0o111 != 0);
    first
        .clone()
        .into_iter()
        .chain(files)
        .find(executable)
        .or(first)
        .ok_or_else(|| format!("the command `{name}` is not in PATH ({}): write its whole path", path.display()))
}

fn guarded(file: &Path, metadata: &Metadata) -> Result<(), String> {
    let shown = file.display();
    if metadata.mode() & 0o022 != 0 {
        return Err(format!("the command {shown} can be changed by other users: run `chmod go-w {shown}`"));
    }
    let (owner, us) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != 0 && owner != us {
        return Err(format!(
            "the command {shown} belongs to user {owner}, who can change it: run `chown root {shown}`"
        ));
    }
    for directory in file.ancestors().skip(1).chain(file.canonicalize().unwrap_or_default().ancestors().skip(1)) {
        // In a directory with the sticky bit, as `/tmp`, nobody can replace what is another's.
        if directory.metadata().is_ok_and(|metadata| metadata.mode() & 0o1002 == 0o002) {
            let directory = directory.display();
            return Err(format!(
                "the command {shown} can be replaced by other users: run `chmod o-w {directory}`, or move it"
            ));
        }
    }
    Ok(())
}

/// The first bytes of a file, where we may read it. They have to be looked at here: the C library would hand a file
/// that the kernel does not know to `/bin/sh`.
fn begins(file: &Path) -> Option<[u8; 4]> {
    let mut start = [0; 4];
    let mut bytes = Vec::with_capacity(start.len());
    File::open(file).ok()?.take(start.len() as u64).read_to_end(&mut bytes).ok()?;
    start[..bytes.len()].copy_from_slice(&bytes);
    Some(start)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn put(file: &Path, text: &str, mode: u32) -> PathBuf {
        std::fs::write(file, text).unwrap();
        std::fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
        file.to_owned()
    }

    #[test]
    fn a_file_that_cannot_or_must_not_be_run_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("hook");
        for (text, mode, problem) in [
            ("#!/bin/sh\n", 0o755, None),
            ("#!/bin/sh\n", 0o500, None),
            ("\x7fELF", 0o755, None),
            ("#!/bin/sh\n", 0o644, Some("is not executable: run `chmod +x ")),
            ("#!/bin/sh\n", 0o775, Some("can be changed by other users: run `chmod go-w ")),
            ("#!/bin/sh\n", 0o757, Some("can be changed by other users: run `chmod go-w ")),
            ("echo hello\n", 0o755, Some("is neither a program nor a script with `#!`")),
            ("", 0o755, Some("is neither a program nor a script with `#!`")),
            ("#", 0o755, Some("is neither a program nor a script with `#!`")),
        ] {
            put(&file, text, mode);
            match (find(file.to_str().unwrap(), OsStr::new("")), problem) {
                (Ok(found), None) => assert_eq!(found, file),
                (Err(error), Some(problem)) => assert!(error.contains(problem), "{error}"),
                (found, problem) => panic!("{text:?} {mode:o}: {found:?} instead of {problem:?}"),
            }
        }
    }

    #[test]
    fn what_is_not_there_is_said() {
        for (name, says) in [
            (
                "/nonexistent/hook",
                "the command /nonexistent/hook cannot be run: No such file or directory (os error 2)",
            ),
            ("./hook", "the command `./hook` is a relative path: write it from the root, as in `/usr/local/bin/…`"),
            ("no-such-hook", "the command `no-such-hook` is not in PATH (/usr/bin:/bin): write its whole path"),
            ("/usr/bin", "the command /usr/bin is not a file"),
        ] {
            assert_eq!(find(name, OsStr::new("/usr/bin:/bin")).unwrap_err(), says);
        }
    }

    #[test]
    fn a_bare_name_is_looked_up_as_a_shell_would() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        std::fs::create_dir(&first).unwrap();
        std::fs::create_dir(&second).unwrap();
        let path = std::env::join_paths([Path::new("."), &first, &second]).unwrap();
        let plain = put(&first.join("hook"), "#!/bin/sh\n", 0o644);
        let error = find("hook", &path).unwrap_err();
        assert!(error.contains(&format!("{} is not executable", plain.display())), "{error}");
        let executable = put(&second.join("hook"), "#!/bin/sh\n", 0o755);
        assert_eq!(find("hook", &path).unwrap(), executable);
    }

    #[test]
    fn a_file_that_anybody_could_replace_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let [open, shut] = ["open", "shut"].map(|name| directory.path().join(name));
        std::fs::create_dir_all(open.join("inner")).unwrap();
        std::fs::create_dir(&shut).unwrap();
        let file = put(&open.join("inner/hook"), "#!/bin/sh\n", 0o755);
        let link = shut.join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let says = format!("can be replaced by other users: run `chmod o-w {}`, or move it", open.display());
        for (mode, refused) in [(0o755, false), (0o777, true), (0o1777, false), (0o775, false)] {
            std::fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
            for name in [&file, &link] {
                let found = find(name.to_str().unwrap(), OsStr::new(""));
                assert_eq!(found.is_err_and(|error| error.contains(&says)), refused, "{} {mode:o}", name.display());
            }
        }
    }

    /// Only root can give a file away.
    #[test]
    fn a_file_of_another_user_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = put(&directory.path().join("hook"), "#!/bin/sh\n", 0o755);
        if std::os::unix::fs::chown(&file, Some(65_534), None).is_ok() {
            let error = find(file.to_str().unwrap(), OsStr::new("")).unwrap_err();
            assert!(error.contains("belongs to user 65534, who can change it: run `chown root "), "{error}");
        }
    }
}
