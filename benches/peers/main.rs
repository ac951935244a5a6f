//! `cargo bench --bench peers`: assetwatch against what people use instead, each alone and in turn, against the same
//! simulated API with the same assets and times. `README.md` beside this file says what is measured and what is fair.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends at a surprise, and prints what it measured"
)]

mod api;
mod contender;
mod processes;
#[path = "../rig/mod.rs"]
mod rig;

use std::collections::HashMap;
use std::path::Path;
use std::process::Child;

use api::{ASSETS, Asset, Log, plan};
use contender::{ALL, Contender};
use processes::Cost;
use rig::{child, first_line, now_millis, pause};
use rustix::process::{Pid, Signal, kill_process_group};

/// Between two looks at a contender's results, in ms: how exact a delay is.
const LOOK: u64 = 10;
/// Of so many looks, one is also at the cost.
const LOOKS_A_SAMPLE: usize = 10;
/// The longest run, in ms; and after the last result, the longest wait for the receiver to be told of all.
const LONGEST: i64 = 120_000;
const LAST_TOLD: i64 = 20_000;
/// How long a contender that was killed stays down, in ms.
const DOWN: u64 = 2_000;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("serve") => api::serve(args[2].parse().unwrap(), Path::new(&args[3])),
        _ => compare(),
    }
}

fn compare() {
    let mut pairs: Vec<(Contender, Run, Run)> = Vec::new();
    for contender in ALL {
        if let Err(why) = contender.prepare() {
            println!("{} is skipped: {why}", contender.name());
            continue;
        }
        println!("{} …", contender.name());
        pairs.push((contender, run(contender, false), run(contender, true)));
    }
    println!("\n{ASSETS} assets; × is against assetwatch\n");
    println!("| | requests | delay, mean | delay, p99 | CPU | peak memory |\n|---|--:|--:|--:|--:|--:|");
    let first = &pairs[0].1;
    for (contender, whole, _) in &pairs {
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            contender.name(),
            against(whole.log.requests as f64, first.log.requests as f64, 0, ""),
            against(whole.mean(), first.mean(), 2, " s"),
            against(whole.p99(), first.p99(), 1, " s"),
            against(whole.cost.cpu, first.cost.cpu, 2, " s"),
            against(whole.cost.peak, first.cost.peak, 0, " MiB"),
        );
    }
    println!("\nKilled (SIGKILL) when half of the results were there, and started again {DOWN} ms later:\n");
    println!("| | never recorded | never told | told twice | asked again after its final answer | delay, p99 |");
    println!("|---|--:|--:|--:|--:|--:|");
    for (contender, _, killed) in &pairs {
        let (unrecorded, untold, twice) = (killed.unrecorded(), killed.untold(), killed.told_twice());
        let (needless, p99) = (killed.log.needless, killed.p99());
        println!("| {} | {unrecorded} | {untold} | {twice} | {needless} | {p99:.1} s |", contender.name());
    }
    for (contender, whole, killed) in &pairs {
        let (name, log) = (contender.name(), &whole.log);
        let odd = [whole.unrecorded(), whole.untold(), whole.told_twice(), log.needless];
        println!("{name}: 429 ×{} and ×{}; not killed, the same four are {odd:?}", log.throttled, killed.log.throttled);
    }
}

/// A number, and how many times the first one it is.
fn against(value: f64, first: f64, digits: usize, unit: &str) -> String {
    format!("{value:.digits$}{unit} ({:.1}×)", value / first)
}

struct Run {
    /// For each asset, the seconds from when it is ready until another process sees its final status.
    delays: Vec<f64>,
    cost: Cost,
    log: Log,
}

impl Run {
    fn mean(&self) -> f64 {
        self.delays.iter().sum::<f64>() / self.delays.len() as f64
    }

    fn p99(&self) -> f64 {
        self.delays[(self.delays.len() * 99).div_ceil(100) - 1]
    }

    fn unrecorded(&self) -> usize {
        ASSETS - self.delays.len()
    }

    fn untold(&self) -> usize {
        ASSETS - self.log.told.len()
    }

    fn told_twice(&self) -> usize {
        self.log.told.values().filter(|times| **times > 1).count()
    }
}

fn run(contender: Contender, kill: bool) -> Run {
    let place = tempfile::tempdir().unwrap();
    let (place, log) = (place.path(), place.path().join("log"));
    contender.lay_out(place);
    let started_at = now_millis();
    let mut server = child(&["serve", &started_at.to_string(), log.to_str().unwrap()]);
    let url = first_line(&mut server);
    let mut child = contender.start(place, &url);
    let mut watched = Watched::new(contender, started_at);
    watched.until(if kill { ASSETS / 2 } else { ASSETS }, place, child.id());
    if kill {
        end(&mut child, Signal::KILL);
        pause(DOWN);
        child = contender.start(place, &url);
        watched.until(ASSETS, place, child.id());
    }
    let last = now_millis() + LAST_TOLD;
    while Log::read(&log).told.len() < ASSETS && now_millis() < last {
        pause(100);
        watched.cost.sample(child.id());
    }
    // Whoever tells a second time does so by now.
    pause(1_000);
    end(&mut child, Signal::TERM);
    server.kill().unwrap();
    server.wait().unwrap();
    let mut delays: Vec<f64> = watched.seen.into_values().collect();
    delays.sort_by(f64::total_cmp);
    Run { delays, cost: watched.cost, log: Log::read(&log) }
}

fn end(child: &mut Child, signal: Signal) {
    kill_process_group(Pid::from_child(child), signal).unwrap();
    child.wait().unwrap();
}

/// A contender as it is seen from outside.
struct Watched {
    contender: Contender,
    started_at: i64,
    coming: std::vec::IntoIter<Asset>,
    ready: HashMap<String, i64>,
    seen: HashMap<String, f64>,
    cost: Cost,
}

impl Watched {
    fn new(contender: Contender, started_at: i64) -> Watched {
        let ready = plan().into_iter().map(|asset| (asset.id, asset.ready)).collect();
        let (coming, seen, cost) = (plan().into_iter(), HashMap::new(), Cost::default());
        Watched { contender, started_at, coming, ready, seen, cost }
    }

    /// Hands assets over as they arrive, until so many have been recorded.
    fn until(&mut self, enough: usize, place: &Path, group: u32) {
        let results = self.contender.results(place);
        let mut looks = 0;
        while self.seen.len() < enough {
            let now = now_millis() - self.started_at;
            if now > LONGEST {
                return;
            }
            while let Some(asset) = self.coming.as_slice().first().filter(|asset| asset.arrives <= now) {
                self.contender.add(place, &asset.id);
                self.coming.next();
            }
            for id in self.contender.recorded(&results) {
                let late = (now_millis() - self.started_at - self.ready[&id]) as f64 / 1_000.0;
                self.seen.entry(id).or_insert(late);
            }
            looks += 1;
            if looks % LOOKS_A_SAMPLE == 0 {
                self.cost.sample(group);
            }
            pause(LOOK);
        }
    }
}
