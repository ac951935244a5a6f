//! The version that the program says, with the commit that it was built from where that is known: from the variable
//! `ASSETWATCH_COMMIT`, from what `cargo package` notes, or from git. None of them has to be there.

use std::path::Path;
use std::process::Command;

/// So many digits tell any commit of this repository from any other.
const DIGITS: usize = 12;

fn main() {
    println!("cargo:rerun-if-env-changed=ASSETWATCH_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let commit = given().or_else(packaged).or_else(checked_out);
    let shown = commit.as_ref().map_or_else(|| version.clone(), |commit| format!("{version} ({commit})"));
    println!("cargo:rustc-env=ASSETWATCH_VERSION={shown}");
    if let Some(commit) = commit {
        println!("cargo:rustc-env=ASSETWATCH_COMMIT={commit}");
    }
}

fn given() -> Option<String> {
    digits(&std::env::var("ASSETWATCH_COMMIT").ok()?)
}

/// In a tarball that `cargo package` has made.
fn packaged() -> Option<String> {
    const NOTE: &str = ".cargo_vcs_info.json";
    if !Path::new(NOTE).exists() {
        return None;
    }
    println!("cargo:rerun-if-changed={NOTE}");
    let note = std::fs::read_to_string(NOTE).ok()?;
    digits(note.split("\"sha1\"").nth(1)?.split('"').nth(1)?)
}

/// In a clone; releases only. While somebody works on the sources the commit is not what is built, and each commit would
/// have everything built again.
fn checked_out() -> Option<String> {
    if std::env::var("PROFILE").as_deref() != Ok("release") || !Path::new(".git").exists() {
        return None;
    }
    let own = git(&["rev-parse", "--git-dir"])?;
    let common = git(&["rev-parse", "--git-common-dir"])?;
    let watched = [format!("{own}/HEAD"), format!("{common}/refs/heads"), format!("{common}/packed-refs")];
    // One that is missing would have everything built anew each time.
    for path in watched.iter().filter(|path| Path::new(path).exists()) {
        println!("cargo:rerun-if-changed={path}");
    }
    digits(&git(&["rev-parse", "HEAD"])?)
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn digits(commit: &str) -> Option<String> {
    let commit: String = commit.trim().chars().take(DIGITS).collect();
    (commit.len() >= 7 && commit.chars().all(|digit| digit.is_ascii_hexdigit())).then_some(commit)
}
