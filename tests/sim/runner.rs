//! Seeds, many at a time: a fixed set and some fresh ones with `cargo test`, as many fresh ones as wanted with `SIM_SEEDS`,
//! one with its trace with `SIM_SEED`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use crate::run::{Outcome, play};
use crate::script::Script;

/// With `cargo test`: those that are always played, and those that nobody has played before.
const FIXED: u64 = 12;
const FRESH: u64 = 6;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number")))
}

/// Plays a seed on a thread of its own file; a panic is a failure like any other.
fn play_one(seed: u64, keep_trace: bool) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("assetwatch.db");
    let played = std::panic::catch_unwind(|| play(seed, &database, keep_trace));
    played.unwrap_or_else(|_| Outcome {
        seed,
        hash: 0,
        lines: 0,
        text: String::new(),
        failure: Some("[panic] the simulation itself ended with a panic".into()),
        virtual_time: Duration::ZERO,
        requests: 0,
        attempts: 0,
        deaths: 0,
    })
}

/// Plays these seeds on all cores, until one fails; with `SIM_GO_ON`, all of them.
fn play_all(seeds: &[u64]) {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let go_on = std::env::var_os("SIM_GO_ON").is_some();
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let outcome = play_one(*seed, false);
                    print!("{}", outcome.report());
                    failed.fetch_or(outcome.failure.is_some() && !go_on, Ordering::Relaxed);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failures: String = outcomes.iter().map(Outcome::report).collect();
    assert!(failures.is_empty(), "{failures}");
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    println!(
        "{} seeds, {} virtual hours, {} requests, {} attempts, {} deaths, {} lines of trace",
        outcomes.len(),
        sum(|outcome| outcome.virtual_time.as_secs()) / 3_600,
        sum(|outcome| outcome.requests),
        sum(|outcome| outcome.attempts),
        sum(|outcome| outcome.deaths),
        sum(|outcome| outcome.lines as u64),
    );
}

/// `SIM_SEEDS=1000`: so many fresh ones, or from `SIM_FROM` on; the months first, since they take longest.
#[test]
fn seeds() {
    let fresh = number("SIM_FROM").unwrap_or_else(|| u64::from(fastrand::u32(..)) * 1_000);
    let mut seeds: Vec<u64> = match number("SIM_SEEDS") {
        Some(count) => (fresh..fresh + count).collect(),
        None => (0..FIXED).chain(fresh..fresh + FRESH).collect(),
    };
    seeds.sort_by_key(|seed| (!Script::is_month(*seed), *seed));
    println!("seeds from {fresh}");
    play_all(&seeds);
}

#[test]
fn the_same_seed_has_the_same_trace() {
    for seed in [3, 5] {
        let (one, other) = (play_one(seed, true), play_one(seed, true));
        if let Some((at, (left, right))) =
            one.text.lines().zip(other.text.lines()).enumerate().find(|(_, (a, b))| a != b)
        {
            panic!("seed {seed}, line {at}:\n{left}\n{right}");
        }
        assert_eq!((one.hash, one.lines), (other.hash, other.lines), "seed {seed}");
        assert!(one.lines > 100, "seed {seed} has {} lines only", one.lines);
    }
}

/// `SIM_SEED=7`: that seed with its trace, which goes to the file `SIM_TRACE` or, if it fails, the end of it to stdout.
#[test]
fn replay() {
    let Some(seed) = number("SIM_SEED") else { return };
    let outcome = play_one(seed, true);
    match std::env::var_os("SIM_TRACE") {
        Some(file) => std::fs::write(file, &outcome.text).unwrap(),
        None => {
            let lines: Vec<&str> = outcome.text.lines().collect();
            println!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
    println!("seed {seed}: trace {:016x}, {} lines", outcome.hash, outcome.lines);
    assert!(outcome.failure.is_none(), "{}", outcome.report());
}
