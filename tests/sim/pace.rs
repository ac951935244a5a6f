//! How fast an account may be asked, as each process promised it: never above its rate, never more at once than allowed,
//! never while it was asked to wait, and never, but for probes, while its key is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::{HOUR, MINUTE, SECOND};
use crate::disk::Process;
use crate::world::{Said, World};

/// Between the probes of an account whose key is refused.
const PROBES: [Duration; 4] = [MINUTE, Duration::from_secs(120), Duration::from_secs(300), Duration::from_secs(900)];
/// Failures in a row after which an account is not asked any more; with fewer it is no slower.
const BREAK_AFTER: u32 = 5;
/// For what is rounded to milliseconds.
const ROUNDING: Duration = Duration::from_millis(2);

#[derive(Default)]
pub struct Paces(BTreeMap<(Process, usize), Pace>);

struct Pace {
    /// The fastest that it was told, and the latest.
    rate: f64,
    present: f64,
    tokens: f64,
    at: Duration,
    in_flight: u32,
    /// It was asked to be left alone until then, and when.
    hold: (Duration, Duration),
    refused: Option<Refused>,
    /// After an outage it begins slowly, and each answer makes it faster: so many at most until it is as fast as before.
    recovering: u32,
    /// The failures in a row.
    failures: u32,
}

/// The key is refused, or the account unpaid: since when, and how many probes have confirmed it.
#[derive(Clone, Copy)]
struct Refused {
    unpaid: bool,
    at: Duration,
    probes: usize,
}

impl Paces {
    /// A process has begun, or was told of another rate: then the faster one counts.
    pub fn begin(&mut self, process: Process, account: usize, rate: f64, now: Duration) {
        // An account that was closed is so for the next process as well, which begins as slowly.
        let of_account = self.0.iter().filter(|((_, other), _)| *other == account);
        let recovering = of_account.map(|(_, pace)| pace.recovering).max().unwrap_or_default();
        let pace = self.0.entry((process, account)).or_insert(Pace {
            rate,
            present: rate,
            tokens: rate.ceil().max(1.0),
            at: now,
            in_flight: 0,
            hold: Default::default(),
            refused: None,
            recovering,
            failures: 0,
        });
        pace.present = rate;
        if rate > pace.rate {
            pace.tokens += rate.ceil() - pace.rate.ceil();
            pace.rate = rate;
        }
        // A reload is a person's word that it is worth a try.
        pace.refused = None;
    }
}

impl World {
    /// A process makes a request.
    pub fn paced(&mut self, process: Process, account: usize) {
        let now = self.time.now();
        let (name, most) = (self.script.accounts[account].name.clone(), self.script.accounts[account].max_in_flight);
        let troubled = self.calm.all > now.saturating_sub(20 * SECOND);
        let Some(pace) = self.paces.0.get_mut(&(process, account)) else { return };
        let passed = now.saturating_sub(pace.at).as_secs_f64();
        pace.tokens = (pace.tokens + passed * pace.rate).min(pace.rate.ceil().max(1.0)) - 1.0;
        pace.at = now;
        pace.in_flight += 1;
        let (tokens, rate, in_flight, hold, refused) =
            (pace.tokens, pace.rate, pace.in_flight, pace.hold, pace.refused);
        if tokens < 1.0 || in_flight >= most || pace.present < rate || pace.recovering > 0 {
            // What is due has to wait for its turn.
            let turn = Duration::from_secs_f64(1.0 / pace.present);
            self.calm.disturb_account(account, now + turn.max(SECOND));
        }
        if tokens < -0.05 && !troubled {
            self.fail("pace", format_args!("account {name} is asked faster than {rate} times a second"));
        }
        if in_flight > most && !troubled {
            self.fail("pace", format_args!("account {name} has {in_flight} requests in flight, {most} are allowed"));
        }
        let (told, until) = hold;
        if now + ROUNDING < until && now > told && !troubled {
            self.fail(
                "retry-after",
                format_args!("account {name} asked at {told:?} to be left alone until {until:?}, and is asked again"),
            );
        }
        if let Some(Refused { at, probes, .. }) = refused {
            let gap = PROBES[probes.min(PROBES.len() - 1)];
            if now > at && now + ROUNDING < at + gap && !troubled {
                self.fail(
                    "pause",
                    format_args!("the key of account {name} was refused at {at:?}; the next probe is {gap:?} later"),
                );
            }
        }
    }

    /// One of its requests has ended, perhaps without an answer.
    pub fn unpaced(&mut self, process: Process, account: usize) {
        let most = self.script.accounts[account].max_in_flight;
        let Some(pace) = self.paces.0.get_mut(&(process, account)) else { return };
        let was_full = pace.in_flight >= most;
        pace.in_flight = pace.in_flight.saturating_sub(1);
        if was_full {
            // Until now whatever was due had to wait, however long the answers took.
            self.calm.disturb_account(account, self.time.now());
        }
    }

    /// What an answer says of its account.
    pub fn heard(&mut self, process: Process, account: usize, asked_at: Duration, said: &Said) {
        let now = self.time.now();
        let disturbed = match said {
            Said::Status { .. } | Said::Missing | Said::Rejected => None,
            // The probe of a paused account, too.
            Said::Unavailable(_) if self.calm.accounts[account] > now => Some(17 * MINUTE),
            Said::Unavailable(_) => Some(2 * MINUTE),
            // From now on it may be polled more slowly.
            Said::Throttled(_) => Some(1_000 * HOUR),
            Said::Forbidden | Said::Unauthorized | Said::Unpaid | Said::Untrusted => Some(17 * MINUTE),
        };
        if let Some(disturbed) = disturbed {
            self.calm.disturb_account(account, now + disturbed);
        }
        let Some(pace) = self.paces.0.get_mut(&(process, account)) else { return };
        match said {
            Said::Unavailable(_) => {
                pace.failures += 1;
                if pace.failures >= BREAK_AFTER {
                    pace.recovering = pace.rate.ceil() as u32;
                }
            }
            Said::Status { .. } | Said::Missing | Said::Rejected => {
                (pace.failures, pace.recovering) = (0, pace.recovering.saturating_sub(1));
            }
            _ => pace.failures = 0,
        }
        let unpaid = *said == Said::Unpaid;
        match said {
            Said::Throttled(wait) => {
                let until = now + wait.unwrap_or(SECOND).min(HOUR);
                if until > pace.hold.1 {
                    pace.hold = (now, until);
                }
            }
            Said::Unauthorized | Said::Unpaid => match pace.refused {
                None => pace.refused = Some(Refused { unpaid, at: now, probes: 0 }),
                // What was in flight says nothing new.
                Some(Refused { at, .. }) if asked_at <= at => {}
                // Another reason begins anew.
                Some(refused) => {
                    let probes = if refused.unpaid == unpaid { refused.probes + 1 } else { 0 };
                    pace.refused = Some(Refused { unpaid, at: now, probes });
                }
            },
            Said::Status { .. } | Said::Missing | Said::Rejected => {
                pace.refused.take_if(|refused| asked_at > refused.at);
            }
            // Of these it depends on more than one answer what they mean.
            Said::Forbidden | Said::Untrusted | Said::Unavailable(_) => pace.refused = None,
        }
    }
}
