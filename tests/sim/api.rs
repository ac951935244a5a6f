//! The API, through the poller's seam.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use assetwatch::decide::{Contact, Observation, Polled};
use assetwatch::pace::Quota;
use assetwatch::poller::Poll;
use assetwatch::watch::Asset;

use crate::audit::WatchRow;
use crate::clock::SECOND;
use crate::disk::{self, Process};
use crate::script::{Poison, Weather};
use crate::world::{Answer, Latest, Said, Shared, World};

/// Asks the world as one account of one process.
pub fn poll(world: &Shared, process: Process, account: usize, owner: &str) -> Poll {
    let (world, owner) = (world.clone(), owner.to_owned());
    Arc::new(move |asset| {
        let (world, owner) = (world.clone(), owner.clone());
        let polling = async move {
            // A process that has died asks nobody.
            if !disk::step(process) {
                std::future::pending::<()>().await;
            }
            let mut request = world.lock().asked((process, account, &owner), &asset);
            let in_flight = InFlight { world: world.clone(), process, account, watch: request.watch };
            tokio::time::sleep(request.latency).await;
            if !disk::step(process) {
                std::future::pending::<()>().await;
            }
            let polled = world.lock().answer((process, account), &asset, &mut request);
            drop(in_flight);
            polled
        };
        Box::pin(polling) as Pin<Box<dyn Future<Output = Polled> + Send>>
    })
}

/// A request that is under way, until it is answered or given up.
struct InFlight {
    world: Shared,
    process: Process,
    account: usize,
    watch: Option<i64>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        world.unpaced(self.process, self.account);
        let latest = self.watch.and_then(|watch| world.latest.get_mut(&watch));
        if let Some(latest) = latest.filter(|latest| latest.process == self.process) {
            latest.in_flight = false;
        }
    }
}

struct Request {
    at: Duration,
    latency: Duration,
    said: Said,
    watch: Option<i64>,
}

impl World {
    fn asked(&mut self, (process, account, owner): (Process, usize, &str), asset: &str) -> Request {
        let at = self.time.now();
        self.requests += 1;
        self.note(format_args!("asked {process} {account} {asset}"));
        self.paced(process, account);
        let watch = self.check_request((process, account, owner), asset);
        let (latency, said) = self.said(account, asset);
        Request { at, latency, said, watch }
    }

    fn answer(&mut self, (process, account): (Process, usize), asset: &str, request: &mut Request) -> Polled {
        let said = request.said.clone();
        self.note(format_args!("said {process} {account} {asset} {said:?}"));
        self.heard(process, account, request.at, &said);
        let answer = Answer { asked_at: request.at, at: self.time.now(), wall: self.time.wall(), said: said.clone() };
        let waits = matches!(said, Said::Status { word: "pending" | "processing", .. });
        let at = answer.at;
        self.answers.entry((account, asset.to_owned())).or_default().push(answer);
        if let Some(latest) = request.watch.and_then(|watch| self.latest.get_mut(&watch)) {
            latest.waits_since = waits.then_some(at);
        }
        polled(said)
    }

    fn weather(&self, account: usize) -> Weather {
        let now = self.time.now();
        let windows = self.script.accounts[account].windows.iter();
        let mut now = windows.filter(|(from, until, _)| *from <= now && now < *until);
        now.next().map_or(Weather::Fair, |(_, _, weather)| *weather)
    }

    /// What the API says, and how long it takes to.
    fn said(&mut self, account: usize, asset: &str) -> (Duration, Said) {
        let timeout = self.script.accounts[account].timeout;
        let soon = if self.draw.chance(0.03) {
            self.draw.between(SECOND, timeout - SECOND)
        } else {
            self.draw.between(Duration::from_millis(5), Duration::from_millis(300))
        };
        let weather = self.weather(account);
        let mut share = |share: f64| self.draw.chance(share);
        let failed = match weather {
            Weather::Fair => None,
            Weather::Outage => return (Duration::from_millis(1), Said::Unavailable("connection refused")),
            Weather::Broken(part) => share(part).then_some((soon, Said::Unavailable("503"))),
            Weather::Hangs(part) => share(part).then_some((timeout, Said::Unavailable("no answer in time"))),
            Weather::Garbage(part) => share(part).then_some((soon, Said::Unavailable("another asset's id"))),
            Weather::Throttled(part, wait) => share(part).then_some((soon, Said::Throttled(wait))),
            Weather::Unauthorized => Some((soon, Said::Unauthorized)),
            Weather::Unpaid => Some((soon, Said::Unpaid)),
            Weather::Forbidden => Some((soon, Said::Forbidden)),
            Weather::Untrusted => Some((soon, Said::Untrusted)),
        };
        let noise = self.script.noise;
        if let Some(failed) = failed {
            return failed;
        }
        if self.draw.chance(noise) {
            let said = ["502", "reset", "not JSON", "another asset's id"];
            return (soon, Said::Unavailable(self.draw.of(&said)));
        }
        (soon, self.of_asset(account, asset))
    }

    fn of_asset(&self, account: usize, asset: &str) -> Said {
        let now = self.time.now();
        let number = asset.strip_prefix("ast_").and_then(|number| number.parse::<usize>().ok());
        let plan = number.and_then(|number| self.script.assets.get(number)).filter(|plan| plan.account == account);
        let Some(plan) = plan.filter(|plan| plan.visible_at <= now) else { return Said::Missing };
        // In the end somebody sees to it: an account whose only asset breaks it is followed as long as that lasts.
        match plan.poison.filter(|_| now < self.script.length) {
            Some(Poison::Rejected) => return Said::Rejected,
            Some(Poison::Forbidden) => return Said::Forbidden,
            Some(Poison::Broken) => return Said::Unavailable("500"),
            None => {}
        }
        let step = plan.steps.iter().rev().find(|(since, _)| *since <= now);
        let word = step.map_or("pending", |(_, word)| *word);
        let ended = !matches!(word, "pending" | "processing");
        Said::Status { word, url: ended.then(|| format!("https://media.example/{asset}.mp4")) }
    }

    /// Whether this request may be made at all; the watch that it is about.
    fn check_request(&mut self, (process, account, owner): (Process, usize, &str), asset: &str) -> Option<i64> {
        let (now, wall) = (self.time.now(), self.time.wall());
        let name = self.script.accounts[account].name.clone();
        let row = self.audit.newest(asset, &name)?;
        if row.lease_owner.as_deref() != Some(owner) {
            // It may have been cancelled since it was claimed, in this same instant.
            if !row.changed_within(wall, 1) {
                let what = format!("watch {} ({asset}) is polled by {owner} without a lease: {row:?}", row.id);
                self.fail("lease", format_args!("{what}"));
            }
            return None;
        }
        let lease = (self.script.accounts[account].timeout + 10 * SECOND).as_millis() as i64;
        let until = row.lease_until.unwrap_or_default();
        if until > wall + lease && self.set_at + Duration::from_millis(1) < now && !self.slow() {
            self.fail("lease", format_args!("watch {} is leased until {until}, longer than {lease} ms", row.id));
        }
        let due = row.due_at.unwrap_or_default();
        let horizon = wall + 66_000 + 60_000;
        // What was claimed and not recorded is due again when its lease has run out.
        let is_over = |before: &Latest| before.lease_until <= wall || !disk::is_alive(before.process);
        let before = self.latest.get(&row.id).filter(|before| before.polls == row.polls);
        let taken_over = before.is_some_and(is_over);
        // It was claimed by the clock as it was then: that may have been set since, if the disk is slow.
        let claimed = until - lease;
        if due > wall.max(claimed) && due <= horizon && self.set_at + SECOND < now && !taken_over {
            self.fail("due", format_args!("watch {} is polled {} ms before it is due", row.id, due - wall));
        }
        self.check_lateness(account, row.id, due);
        self.check_turn(process, account, &row);
        Some(row.id)
    }

    /// Whether the disk is slow or failing, or was a moment ago.
    pub fn slow(&self) -> bool {
        self.calm.all > self.time.now().saturating_sub(30 * SECOND)
    }

    fn check_lateness(&mut self, account: usize, watch: i64, due: i64) {
        let since = self.instant(due).max(self.calm.of_account(account));
        let late = self.time.now().saturating_sub(since);
        if late > Duration::from_millis(1_100) {
            self.fail(
                "lateness",
                format_args!("watch {watch} is polled {late:?} after it was due, with nothing in the way"),
            );
        }
    }

    /// The end of patience cuts the last wait short, by the wall clock or, where that was set, by the other one.
    fn is_last_poll(&self, account: usize, row: &WatchRow) -> bool {
        let patience = row.patience.unwrap_or(self.script.accounts[account].patience.as_millis() as i64) - 2_000;
        let Some(first) = row.first_polled_at else { return false };
        let mut answers = self.answers.get(&(account, row.asset.clone())).into_iter().flatten();
        let began = answers.find(|answer| answer.wall == first);
        let followed = began.map_or(0, |began| (self.time.now() - began.at).as_millis() as i64);
        followed.max(self.time.wall() - first) >= patience
    }

    /// Each poll has a lease of its own, comes after a pause, and is the only one while its lease holds.
    fn check_turn(&mut self, process: Process, account: usize, row: &WatchRow) {
        let (watch, generation, lease_until) = (row.id, row.generation, row.lease_until.unwrap_or_default());
        let (now, wall) = (self.time.now(), self.time.wall());
        if let Some(before) = self.latest.get(&watch).copied() {
            if generation <= before.generation {
                self.fail("generation", format_args!(
                    "watch {watch} is polled under generation {generation}, after {} at {:?}: a lease is used twice",
                    before.generation, before.at
                ));
            }
            let was_set = self.set_at >= before.at;
            if before.in_flight && disk::is_alive(before.process) && wall < before.lease_until && !was_set {
                self.fail(
                    "lease",
                    format_args!(
                        "watch {watch} is polled while process {} does that under a lease until {}",
                        before.process, before.lease_until
                    ),
                );
            }
            let early = before.waits_since.is_some_and(|since| now < since + Duration::from_millis(1_799));
            if early
                && !self.is_last_poll(account, row)
                && !was_set
                && !self.slow()
                && self.calm.of_account(account) < before.at
            {
                self.fail(
                    "due",
                    format_args!("watch {watch} is polled again at once, though its asset still waits: {row:?}"),
                );
            }
        }
        let polls = row.polls;
        let latest = Latest { generation, at: now, process, polls, lease_until, in_flight: true, waits_since: None };
        self.latest.insert(watch, latest);
    }
}

fn polled(said: Said) -> Polled {
    let observation = match said {
        Said::Status { word, url } => {
            Observation::Answered { asset: Asset { status: Some(word.into()), url, ..Asset::default() }, note: None }
        }
        Said::Missing => Observation::Missing { error: "404".into() },
        Said::Rejected => Observation::Rejected { error: "400".into() },
        Said::Forbidden => Observation::Forbidden { error: "403".into() },
        Said::Throttled(wait) => Observation::Throttled { wait, error: "429".into() },
        Said::Unauthorized => Observation::Unauthorized { error: "401".into() },
        Said::Unpaid => Observation::Unpaid { error: "402".into() },
        Said::Untrusted => Observation::Untrusted { error: "no valid certificate".into() },
        Said::Unavailable(error) => Observation::Unavailable { error: error.into() },
    };
    Polled { observation, quota: Quota::default(), contact: Contact::Api }
}
