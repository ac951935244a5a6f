//! The configuration file.
#![no_main]

use std::sync::LazyLock;

use tempfile::TempDir;

#[path = "../../tests/it/hostile/config.rs"]
mod config;

static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

libfuzzer_sys::fuzz_target!(|text: &[u8]| config::check(DIRECTORY.path(), text));
