//! What happens in the world of one seed: the assets and how they come along, what goes wrong with the API, the receivers
//! and the disk, and what people and crashes do. All of it is drawn before the first second.

use std::time::Duration;

use crate::clock::{DAY, Draw, HOUR, MINUTE, SECOND};

/// Of so many seeds one is a month over thousands of assets, and the others a day over 20 to 200.
const MONTHS: u64 = 250;

#[derive(Clone, Debug)]
pub struct Script {
    pub seed: u64,
    /// When the troubles are over.
    pub length: Duration,
    pub daemons: usize,
    pub accounts: Vec<AccountPlan>,
    pub hooks: Vec<HookPlan>,
    pub assets: Vec<AssetPlan>,
    pub actions: Vec<(Duration, Action)>,
    /// The share of all requests that meet an error of their own.
    pub noise: f64,
}

#[derive(Clone, Debug)]
pub struct AccountPlan {
    pub name: String,
    pub rate: f64,
    pub max_in_flight: u32,
    pub timeout: Duration,
    pub patience: Duration,
    pub missing_grace: Duration,
    pub windows: Vec<(Duration, Duration, Weather)>,
}

/// How the API is for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weather {
    Fair,
    /// Nobody there.
    Outage,
    /// 5xx for this share of the requests.
    Broken(f64),
    /// No answer before the timeout, for this share.
    Hangs(f64),
    /// Not JSON, or another asset's id, for this share.
    Garbage(f64),
    /// 429 for this share, perhaps with a Retry-After.
    Throttled(f64, Option<Duration>),
    Unauthorized,
    Unpaid,
    Forbidden,
    Untrusted,
}

#[derive(Clone, Debug)]
pub struct HookPlan {
    pub name: String,
    pub on: Vec<String>,
    pub schedule: Vec<Duration>,
    pub concurrency: u32,
    pub rate: Option<f64>,
    pub windows: Vec<(Duration, Duration, Mood)>,
}

/// How a receiver is for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mood {
    Fine,
    /// It answers with errors, to this share of the attempts.
    Failing(f64),
    /// It takes until the timeout.
    Hanging,
    /// It asks to be left alone.
    Busy(Duration),
    /// It wants this one event no more.
    Refusing,
    /// It wants no events any more.
    Gone,
}

#[derive(Clone, Debug)]
pub struct AssetPlan {
    pub id: String,
    pub account: usize,
    /// 404 before.
    pub visible_at: Duration,
    /// The statuses and since when the asset has them.
    pub steps: Vec<(Duration, &'static str)>,
    /// What every request about it meets, if it is such a one.
    pub poison: Option<Poison>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Poison {
    /// 400.
    Rejected,
    /// 403, whatever the key.
    Forbidden,
    /// 500.
    Broken,
}

#[derive(Clone, Debug)]
pub enum Action {
    /// These assets are added by the command line.
    Add {
        assets: Vec<usize>,
        again: bool,
        batch: Option<String>,
        patience: Option<Duration>,
    },
    /// Another program inserts a row.
    Insert(usize),
    Cancel(usize),
    CloseBatch(String),
    /// A daemon reads its configuration again: the rates are these times what they were.
    Reload(usize, f64),
    /// A daemon is stopped and started again after a while.
    Restart(usize, Duration),
    /// A daemon dies after so many steps, perhaps with all others; after a while it is started again.
    Crash {
        daemon: usize,
        steps: u64,
        power: bool,
        down: Duration,
    },
    /// The wall clock is set by so many milliseconds.
    SetClock(i64),
    /// Another program holds the write lock.
    Lock(Duration),
    DiskFull(Duration),
    /// One of so many syncs fails.
    SyncFails(Duration, u64),
    /// Each piece of work waits for the disk.
    SlowDisk(Duration, Duration),
    /// The operator has a hook told again.
    Enable(usize),
    RetryDead(usize),
}

impl Script {
    pub fn is_month(seed: u64) -> bool {
        seed % MONTHS == MONTHS - 1
    }

    pub fn of(seed: u64) -> Self {
        let mut draw = Draw::new(seed ^ 0x5eed);
        let month = Self::is_month(seed);
        let length = if month { 30 * DAY } else { Duration::from_secs_f64(draw.scale(1.0, 20.0) * 3_600.0) };
        let count = if month { draw.scale(1_000.0, 3_000.0) } else { draw.scale(20.0, 201.0) } as usize;
        let daemons = if draw.chance(0.35) { 2 } else { 1 };
        let accounts = accounts(&mut draw, length);
        let hooks = hooks(&mut draw, length);
        let assets: Vec<AssetPlan> = (0..count).map(|n| asset(&mut draw, n, accounts.len(), length)).collect();
        let noise = draw.of(&[0.0, 0.0, 0.001, 0.01, 0.05]);
        let mut script = Self { seed, length, daemons, accounts, hooks, assets, actions: Vec::new(), noise };
        script.adding(&mut draw);
        script.people(&mut draw);
        script.crashes(&mut draw);
        script.disk(&mut draw);
        script.actions.sort_by_key(|(at, _)| *at);
        script
    }

    fn at(&mut self, at: Duration, action: Action) {
        self.actions.push((at.min(self.length), action));
    }

    /// Each asset is added when it is made or a little later, alone or with its neighbours; some twice.
    fn adding(&mut self, draw: &mut Draw) {
        let mut next = 0;
        let batches = draw.chance(0.5);
        while next < self.assets.len() {
            let several = draw.of(&[1, 1, 2, 5, 20]);
            let assets: Vec<usize> = (next..(next + several).min(self.assets.len())).collect();
            next += several;
            let at = self.assets[assets[0]].steps[0].0 + draw.between(Duration::ZERO, 20 * SECOND);
            if assets.len() == 1 && draw.chance(0.5) {
                self.at(at, Action::Insert(assets[0]));
                continue;
            }
            let batch = (batches && assets.len() > 1).then(|| format!("batch {next}"));
            let patience = draw.chance(0.1).then(|| draw.between(MINUTE, HOUR));
            if draw.chance(0.3) {
                let twice = at + draw.between(Duration::ZERO, HOUR);
                let again = draw.chance(0.5) && batch.is_none();
                let batch = batch.clone().filter(|_| false);
                self.at(twice, Action::Add { assets: assets.clone(), again, batch, patience: None });
            }
            if let Some(batch) = &batch {
                self.at(at + draw.between(SECOND, HOUR), Action::CloseBatch(batch.clone()));
            }
            self.at(at, Action::Add { assets, again: false, batch, patience });
        }
    }

    fn people(&mut self, draw: &mut Draw) {
        for asset in 0..self.assets.len() {
            if draw.chance(0.04) {
                let at = self.assets[asset].steps[0].0 + draw.between(SECOND, HOUR);
                self.at(at, Action::Cancel(asset));
            }
        }
        for _ in 0..draw.of(&[0, 0, 1, 3]) {
            let at = draw.between(Duration::ZERO, self.length);
            let daemon = draw.0.usize(..self.daemons);
            let action = match draw.0.u8(..4) {
                0 | 1 => Action::Reload(daemon, draw.of(&[0.5, 1.0, 2.0])),
                2 => Action::Enable(draw.0.usize(..self.hooks.len())),
                _ => Action::RetryDead(draw.0.usize(..self.hooks.len())),
            };
            self.at(at, action);
        }
    }

    fn crashes(&mut self, draw: &mut Draw) {
        let count = if draw.chance(0.4) { 0 } else { draw.0.u8(1..8) };
        for _ in 0..count {
            // Where there is something to do.
            let asset = draw.0.usize(..self.assets.len());
            let at = self.assets[asset].steps[0].0 + draw.between(Duration::ZERO, 2 * MINUTE);
            let daemon = draw.0.usize(..self.daemons);
            let down = draw.of(&[SECOND, SECOND, 5 * SECOND, MINUTE, 20 * MINUTE]);
            if draw.chance(0.2) {
                self.at(at, Action::Restart(daemon, down));
            } else {
                let steps = draw.scale(1.0, 400.0) as u64;
                self.at(at, Action::Crash { daemon, steps, power: draw.chance(0.3), down });
            }
        }
        // A clock that is set forward ends leases early, which only another daemon minds.
        let jumps = if self.daemons > 1 { draw.of(&[0, 2, 6]) } else { draw.of(&[0, 0, 1, 3]) };
        for _ in 0..jumps {
            let asset = draw.0.usize(..self.assets.len());
            let at = self.assets[asset].steps[0].0 + draw.between(Duration::ZERO, 2 * MINUTE);
            let by = draw.scale(500.0, 7_200_000.0) as i64;
            self.at(at, Action::SetClock(if draw.chance(0.6) { by } else { -by }));
        }
    }

    fn disk(&mut self, draw: &mut Draw) {
        let count = if draw.chance(0.4) { 0 } else { draw.0.u8(1..6) };
        for _ in 0..count {
            let asset = draw.0.usize(..self.assets.len());
            let at = self.assets[asset].steps[0].0 + draw.between(Duration::ZERO, 2 * MINUTE);
            let lasts = draw.between(SECOND, 2 * MINUTE);
            let action = match draw.0.u8(..4) {
                0 => Action::Lock(lasts),
                1 => Action::DiskFull(lasts),
                2 => Action::SyncFails(lasts, draw.of(&[1, 2, 5])),
                _ => Action::SlowDisk(lasts, draw.between(Duration::from_millis(5), 15 * SECOND)),
            };
            self.at(at, action);
        }
    }
}

/// Some windows of `length`, each with what `kind` draws.
fn windows<T>(
    draw: &mut Draw,
    (count, longest): (usize, Duration),
    length: Duration,
    kind: impl Fn(&mut Draw) -> T,
) -> Vec<(Duration, Duration, T)> {
    let window = |draw: &mut Draw| {
        let from = draw.between(Duration::ZERO, length);
        let lasts = Duration::from_secs_f64(draw.scale(2.0, longest.as_secs_f64()));
        (from, (from + lasts).min(length), kind(draw))
    };
    (0..count).map(|_| window(draw)).collect()
}

fn accounts(draw: &mut Draw, length: Duration) -> Vec<AccountPlan> {
    let count = draw.of(&[1, 1, 2]);
    let weather = |draw: &mut Draw| {
        let share = draw.of(&[0.1, 0.5, 1.0]);
        match draw.0.u8(..12) {
            0 | 1 => Weather::Outage,
            2 | 3 => Weather::Broken(share),
            4 => Weather::Hangs(share),
            5 => Weather::Garbage(share),
            6 | 7 => Weather::Throttled(share, Some(Duration::from_secs_f64(draw.scale(1.0, 600.0)))),
            8 => Weather::Throttled(share, None),
            9 => draw.of(&[Weather::Unpaid, Weather::Untrusted]),
            10 => Weather::Forbidden,
            _ => Weather::Unauthorized,
        }
    };
    let account = |draw: &mut Draw, n: usize| {
        let bad = draw.of(&[0, 0, 1, 3, 6]);
        AccountPlan {
            name: if n == 0 { "default".into() } else { "studio".into() },
            rate: draw.of(&[2.0, 10.0, 10.0, 50.0]),
            max_in_flight: draw.of(&[2, 8, 32]),
            timeout: 10 * SECOND,
            patience: draw.of(&[HOUR, 3 * HOUR, 6 * HOUR]),
            missing_grace: draw.of(&[MINUTE, 5 * MINUTE]),
            windows: windows(draw, (bad, HOUR), length, weather),
        }
    };
    (0..count).map(|n| account(draw, n)).collect()
}

fn hooks(draw: &mut Draw, length: Duration) -> Vec<HookPlan> {
    let mood = |draw: &mut Draw| match draw.0.u8(..8) {
        0..=2 => Mood::Failing(draw.of(&[0.3, 1.0])),
        3 => Mood::Hanging,
        4 => Mood::Busy(Duration::from_secs_f64(draw.scale(1.0, 3_600.0))),
        5 => Mood::Refusing,
        6 => Mood::Gone,
        _ => Mood::Failing(1.0),
    };
    let names: [(&str, &[&str]); 3] = [
        ("cms", &["settled", "abandoned"]),
        ("bot", &["active", "processing", "cancelled"]),
        ("operator", &["account.paused", "account.resumed", "hook.disabled", "batch.settled"]),
    ];
    let hook = |draw: &mut Draw, (name, on): (&str, &[&str])| {
        let bad = draw.of(&[0, 0, 1, 3]);
        let short = vec![SECOND, 5 * SECOND, 30 * SECOND];
        HookPlan {
            name: name.into(),
            on: on.iter().map(|word| (*word).to_owned()).collect(),
            schedule: if draw.chance(0.5) { short } else { assetwatch::decide::SCHEDULE.into() },
            concurrency: draw.of(&[1, 4, 4]),
            rate: draw.chance(0.1).then_some(2.0),
            windows: windows(draw, (bad, 2 * HOUR), length, mood),
        }
    };
    names.into_iter().map(|named| hook(draw, named)).collect()
}

fn asset(draw: &mut Draw, n: usize, accounts: usize, length: Duration) -> AssetPlan {
    const ENDS: [&str; 8] = ["active", "active", "active", "active", "active", "censored", "archive", "moderated"];
    let made = draw.between(Duration::ZERO, length.mul_f64(0.9));
    let visible_at = if draw.chance(0.15) { made + draw.between(SECOND, 6 * MINUTE) } else { made };
    let mut steps = vec![(made, "pending")];
    let mut at = made;
    while draw.chance(0.7) && steps.len() < 6 {
        at += Duration::from_secs_f64(draw.scale(1.0, 900.0));
        // It happens that one goes back.
        steps.push((at, if steps.len() % 2 == 1 { "processing" } else { "pending" }));
    }
    // Some never end; for those there is patience.
    if !draw.chance(0.05) {
        at += Duration::from_secs_f64(draw.scale(1.0, 2_000.0));
        let end = draw.of(&ENDS);
        steps.push((at, end));
        if draw.chance(0.1) {
            steps.push((at + draw.between(SECOND, MINUTE), "processing"));
            steps.push((at + draw.between(2 * MINUTE, 10 * MINUTE), end));
        }
    }
    let poison = draw.chance(0.04).then(|| draw.of(&[Poison::Rejected, Poison::Forbidden, Poison::Broken]));
    AssetPlan { id: format!("ast_{n}"), account: draw.0.usize(..accounts), visible_at, steps, poison }
}
