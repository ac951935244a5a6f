//! The table of answers, row by row; `tests/it/answers.rs` sends the same rows over a socket.

use super::*;
use crate::pace::{SetAhead, SetBack};

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

fn watch() -> Watch {
    Watch {
        id: 1,
        asset_id: "ast_1".into(),
        account: "default".into(),
        state: State::Waiting,
        due_at: Some(NOW),
        generation: 1,
        lease_owner: Some("us".into()),
        lease_until: Some(NOW + SECOND),
        patience: None,
        polls: 0,
        streaks: Streaks::default(),
        missing: None,
        asset: Asset::default(),
        reason: None,
        last_error: None,
        batch: None,
        metadata: None,
        callback_url: None,
        created_at: NOW,
        first_polled_at: None,
        last_polled_at: None,
        processing_at: None,
        waiting_at: None,
        settled_at: None,
        lost_base: None,
    }
}

/// A watch that was first polled so long ago.
fn followed_for(age: Duration) -> Watch {
    let first = Timestamp::from_millis(NOW.as_millis() - age.as_millis() as i64);
    Watch { first_polled_at: Some(first), lost_base: Some(0), polls: 5, ..watch() }
}

fn moment() -> Moment {
    Moment { now: NOW, roll: 0.5, lost_ms: 0, jumps: Jumps::default(), others_answered: false, closed: false }
}

fn answered(status: &str) -> Observation {
    Observation::Answered { asset: Asset { status: Some(status.into()), ..Asset::default() }, note: None }
}

fn error() -> String {
    "so it was".into()
}

fn decide(watch: &Watch, observation: Observation) -> Decision {
    after_poll(watch, observation, &Rules::default(), &moment())
}

/// What is written: state, streaks, and how long until the next poll.
fn written(before: &Watch, observation: Observation, moment: &Moment) -> (Watch, Option<Duration>) {
    let decision = after_poll(before, observation, &Rules::default(), moment);
    let (after, _) = apply(before, decision, moment.lost_ms, moment.now);
    let wait = after.due_at.map(|due| due.since(moment.now));
    (after, wait)
}

#[test]
fn waiting_statuses_back_off() {
    let mut watch = watch();
    let mut waits = Vec::new();
    for status in ["pending", "pending", "pending", "processing", "processing"] {
        let (after, wait) = written(&watch, answered(status), &moment());
        waits.push(wait.unwrap().as_millis());
        watch = after;
    }
    assert_eq!(waits, [2_000, 3_000, 4_500, 2_000, 3_000], "a change of status restarts the backoff");
    assert_eq!((watch.polls, watch.streaks.waiting), (5, 2));
    assert_eq!((watch.processing_at, watch.waiting_at), (Some(NOW), Some(NOW)));
}

#[test]
fn any_other_status_settles_with_that_word() {
    for status in ["active", "archive", "censored", "a new word", "Pending"] {
        let (after, _) = written(&watch(), answered(status), &moment());
        assert_eq!((after.state, after.asset.status.as_deref()), (State::Settled, Some(status)));
        assert_eq!((after.due_at, after.settled_at), (None, Some(NOW)));
    }
}

#[test]
fn configured_statuses_are_waited_for() {
    let rules = Rules { waiting_statuses: vec!["queued".into()], ..Rules::default() };
    let decision = |status| after_poll(&watch(), answered(status), &rules, &moment());
    assert!(matches!(decision("queued"), Decision::Wait(_)));
    assert!(matches!(decision("processing"), Decision::Settle { .. }));
}

#[test]
fn a_settled_asset_keeps_what_was_known_of_it() {
    let known = Asset { kind: Some("video".into()), width: Some(9), ..Asset::default() };
    let before = Watch { asset: known, ..watch() };
    let (after, _) = written(&before, answered("active"), &moment());
    assert_eq!((after.asset.kind.as_deref(), after.asset.width), (Some("video"), Some(9)));
}

#[test]
fn failures_have_their_own_counter_and_backoff() {
    let before = Watch { streaks: Streaks { waiting: 4, failures: 2, rejections: 1 }, ..watch() };
    for observation in [Observation::Unusable { error: error() }, Observation::Unavailable { error: error() }] {
        let (after, wait) = written(&before, observation, &moment());
        assert_eq!(after.streaks, Streaks { waiting: 4, failures: 3, rejections: 1 });
        // The third interval is 4.5 s, and the jitter is full: the roll of 0.5 halves it.
        assert_eq!((wait, after.last_error.as_deref()), (Some(Duration::from_millis(2_250)), Some("so it was")));
    }
    let (after, _) = written(&before, answered("pending"), &moment());
    assert_eq!(after.streaks, Streaks { waiting: 1, failures: 0, rejections: 0 });
    assert_eq!(after.last_error, None);
}

#[test]
fn three_rejections_in_a_row_abandon() {
    let mut watch = watch();
    for rejections in 1..=2 {
        (watch, _) = written(&watch, Observation::Rejected { error: error() }, &moment());
        assert_eq!((watch.state, watch.streaks.rejections), (State::Waiting, rejections));
    }
    let (answered_between, _) = written(&watch, answered("pending"), &moment());
    assert_eq!(answered_between.streaks.rejections, 0);
    let (after, _) = written(&watch, Observation::Rejected { error: error() }, &moment());
    assert_eq!((after.state, after.reason), (State::Abandoned, Some(Reason::Rejected)));
}

#[test]
fn the_account_is_to_blame_and_the_watch_untouched() {
    let before = Watch { streaks: Streaks { waiting: 3, failures: 2, rejections: 2 }, ..watch() };
    let before = Watch { due_at: Some(Timestamp::from_millis(0)), ..before };
    for observation in [
        Observation::Untrusted { error: error() },
        Observation::Unauthorized { error: error() },
        Observation::Unpaid { error: error() },
        Observation::Forbidden { error: error() },
    ] {
        let (after, _) = written(&before, observation, &Moment { closed: true, ..moment() });
        // Behind those that have waited longer, so that the next probe is of another one.
        assert_eq!((after.state, after.due_at, after.streaks), (State::Waiting, Some(NOW), before.streaks));
    }
}

#[test]
fn a_403_counts_against_the_asset_while_others_are_answered() {
    let moment = Moment { others_answered: true, ..moment() };
    let (after, _) = written(&watch(), Observation::Forbidden { error: error() }, &moment);
    assert_eq!((after.state, after.streaks.rejections), (State::Waiting, 1));
}

#[test]
fn a_throttle_is_the_accounts_to_wait_for_and_costs_the_watch_nothing() {
    let before = Watch { streaks: Streaks { waiting: 2, failures: 1, rejections: 1 }, ..watch() };
    for wait in [None, Some(SECOND), Some(9_999 * HOUR)] {
        let (after, due) = written(&before, Observation::Throttled { wait, error: error() }, &moment());
        assert_eq!((due, after.streaks), (Some(3 * SECOND), before.streaks));
    }
}

#[test]
fn while_the_breaker_is_open_a_failure_is_the_accounts() {
    let before = Watch { streaks: Streaks { waiting: 2, failures: 1, rejections: 1 }, ..followed_for(99 * HOUR) };
    let broken = Moment { closed: true, lost_ms: 99 * 3_600_000, ..moment() };
    let (after, due) = written(&before, Observation::Unavailable { error: error() }, &broken);
    assert_eq!((after.state, after.streaks, due), (State::Waiting, before.streaks, Some(Duration::ZERO)));
    assert_eq!(after.last_error.as_deref(), Some("so it was"));
}

#[test]
fn a_404_has_a_grace_from_the_first_one() {
    let missing = || Observation::Missing { error: error() };
    let (after, _) = written(&watch(), missing(), &moment());
    assert_eq!((after.state, after.missing), (State::Waiting, Some(Since { at: NOW, base: 0 })));
    let since = |age: i64| Some(Since { at: Timestamp::from_millis(NOW.as_millis() - 1_000 * age), base: 0 });
    let late = Watch { missing: since(299), streaks: Streaks { waiting: 20, ..Streaks::default() }, ..watch() };
    assert_eq!(written(&late, missing(), &moment()).1, Some(SECOND), "one last poll at the end of the grace");
    let over = Watch { missing: since(300), ..watch() };
    assert_eq!(written(&over, missing(), &moment()).0.reason, Some(Reason::Missing));
    assert_eq!(written(&over, answered("pending"), &moment()).0.missing, None);
    // The clock was set forward by a day, or back, and it is still only a second ago.
    for jump in [86_400_000, -86_400_000] {
        let now = Timestamp::from_millis(NOW.as_millis() + jump);
        let back = (jump < 0).then_some(SetBack { ms: jump, ago_ms: 500, sum_ms: jump });
        let moment = Moment { now, lost_ms: jump, jumps: Jumps { back, ahead: Vec::new() }, ..moment() };
        let (after, _) = written(&Watch { missing: since(1), ..watch() }, missing(), &moment);
        assert_eq!((after.state, after.missing), (State::Waiting, since(1)), "{jump}");
    }
    // Another daemon has noted it, whose account was closed for an hour longer; and ours has seen the clock set back.
    let noted = Watch { missing: since(1).map(|first| Since { base: 3_600_000, ..first }), ..watch() };
    let back = Some(SetBack { ms: -7_200_000, ago_ms: 4_000_000, sum_ms: 0 });
    let jumps = Jumps { back, ahead: Vec::new() };
    let (after, _) = written(&noted, missing(), &Moment { jumps, ..moment() });
    assert_eq!((after.state, after.missing), (State::Waiting, noted.missing), "the other one's time is not ours");
    // Or ours has seen the clock set forward by a day a moment ago, an hour less of which the sums seem to say.
    let now = Timestamp::from_millis(NOW.as_millis() + 86_400_000);
    let ahead = vec![SetAhead { from: NOW, ms: 86_400_000 }];
    let moment_ahead = Moment { now, lost_ms: 86_400_000, jumps: Jumps { back: None, ahead }, ..moment() };
    let (after, _) = written(&noted, missing(), &moment_ahead);
    assert_eq!((after.state, after.missing), (State::Waiting, noted.missing), "a day that nobody has waited");
    let ahead = Watch { missing: since(-500), ..watch() };
    assert_eq!(written(&ahead, missing(), &moment()).0.missing, since(0), "set back while nobody looked");
}

#[test]
fn an_id_that_nobody_can_ask_for_is_abandoned() {
    let (after, _) = written(&watch(), Observation::Unaskable { error: error() }, &moment());
    assert_eq!((after.state, after.reason), (State::Abandoned, Some(Reason::Rejected)));
}

#[test]
fn patience_has_one_last_poll_exactly_at_its_end() {
    let almost = followed_for(24 * HOUR - SECOND);
    for observation in [answered("pending"), Observation::Unavailable { error: error() }] {
        assert_eq!(written(&almost, observation.clone(), &moment()).1, Some(SECOND));
        let (after, _) = written(&followed_for(24 * HOUR), observation, &moment());
        assert_eq!((after.state, after.reason), (State::Abandoned, Some(Reason::Patience)));
    }
    let (after, _) = written(&followed_for(48 * HOUR), answered("active"), &moment());
    assert_eq!(after.state, State::Settled, "the last poll may find it settled");
}

#[test]
fn a_watch_may_have_its_own_patience() {
    let before = Watch { patience: Some(HOUR), ..followed_for(HOUR) };
    assert_eq!(written(&before, answered("pending"), &moment()).0.reason, Some(Reason::Patience));
    let before = Watch { patience: Some(48 * HOUR), ..followed_for(24 * HOUR) };
    assert_eq!(written(&before, answered("pending"), &moment()).0.state, State::Waiting);
}

#[test]
fn time_that_was_not_the_assets_does_not_count() {
    let before = Watch { lost_base: Some(1_000), ..followed_for(24 * HOUR) };
    let lost = |lost_ms| Moment { lost_ms, ..moment() };
    assert_eq!(written(&before, answered("pending"), &lost(-9_000)).0.state, State::Abandoned);
    let fresh = Watch { lost_base: Some(1_800_000), ..followed_for(SECOND) };
    let (after, _) = written(&fresh, answered("pending"), &moment());
    assert_eq!(after.state, State::Waiting, "another process has lost time that this one has not");
    let (after, wait) = written(&before, answered("pending"), &lost(11_000));
    assert_eq!((after.state, wait), (State::Waiting, Some(2 * SECOND)));
    assert_eq!(written(&before, answered("pending"), &lost(1_000)).0.reason, Some(Reason::Patience));
}

#[test]
fn processing_is_told_once_a_watch() {
    let first = decide(&watch(), answered("processing"));
    let (after, facts) = apply(&watch(), first, 0, NOW);
    assert_eq!(facts, [Fact::Processing]);
    let second = decide(&after, answered("processing"));
    assert_eq!(apply(&after, second, 0, NOW).1, []);
}

#[test]
fn every_observation_has_its_sign_for_the_account() {
    let wait = Some(SECOND);
    for (observation, expected) in [
        (answered("pending"), Sign::Healthy),
        (Observation::Unusable { error: error() }, Sign::Neutral),
        (Observation::Unavailable { error: error() }, Sign::Strained),
        (Observation::Untrusted { error: error() }, Sign::Untrusted),
        (Observation::Throttled { wait, error: error() }, Sign::Throttled(wait)),
        (Observation::Unauthorized { error: error() }, Sign::Unauthorized),
        (Observation::Forbidden { error: error() }, Sign::Doubtful),
        (Observation::Unpaid { error: error() }, Sign::Unpaid),
        (Observation::Missing { error: error() }, Sign::Neutral),
        (Observation::Rejected { error: error() }, Sign::Neutral),
        (Observation::Unaskable { error: error() }, Sign::Unasked),
    ] {
        assert_eq!(sign(&observation, false), expected, "{observation:?}");
    }
    assert_eq!(sign(&Observation::Forbidden { error: error() }, true), Sign::Forbidden);
}

fn delivery(failures: i64) -> Delivery {
    Delivery {
        id: 1,
        event_id: "evt_1".into(),
        hook: "cms".into(),
        state: crate::delivery::DeliveryState::Waiting,
        due_at: Some(NOW),
        generation: 1,
        attempts: failures + 1,
        failures,
        last_error: None,
        created_at: NOW,
        finished_at: None,
    }
}

fn verdict(failures: i64, outcome: Outcome, roll: f64) -> Verdict {
    after_attempt(&delivery(failures), &Attempt::bare(outcome), &SCHEDULE, NOW, roll)
}

#[test]
fn attempts_follow_the_schedule_and_are_never_early() {
    let failed = || Outcome::Failed { error: error(), not_before: None };
    for (failures, gap) in SCHEDULE.into_iter().enumerate() {
        for (roll, due_at) in [(0.0, NOW + gap), (0.5, NOW + gap.mul_f64(1.1))] {
            let failures = failures as i64;
            let again = Verdict::Again { due_at, failures: failures + 1, error: error() };
            assert_eq!(verdict(failures, failed(), roll), again);
        }
    }
    assert_eq!(verdict(11, failed(), 0.0), Verdict::Dead { error: error() }, "after the last attempt");
}

#[test]
fn a_receiver_may_ask_to_be_left_alone() {
    for (asked, due) in [(0, 5), (60, 60), (999_999, 24 * 3_600)] {
        let not_before = Some(Duration::from_secs(asked));
        let again = Verdict::Again { due_at: NOW + Duration::from_secs(due), failures: 1, error: error() };
        assert_eq!(verdict(0, Outcome::Failed { error: error(), not_before }, 0.0), again);
    }
}

#[test]
fn other_outcomes() {
    assert_eq!(verdict(0, Outcome::Delivered, 0.0), Verdict::Delivered);
    assert_eq!(verdict(0, Outcome::Refused { error: error() }, 0.0), Verdict::Dead { error: error() });
    assert_eq!(verdict(0, Outcome::Gone { error: error() }, 0.0), Verdict::Dead { error: error() });
    assert_eq!(verdict(0, Outcome::Blocked { error: error() }, 0.0), Verdict::Held { error: error() });
    assert_eq!(verdict(11, Outcome::Interrupted, 0.0), Verdict::Interrupted);
}

#[test]
fn at_a_disabled_hook_what_would_be_attempted_again_is_held() {
    let enabled = crate::standing::Standing::new("cms");
    let (disabled, _) = enabled.after(&Outcome::Gone { error: error() }, NOW);
    let failed = || verdict(0, Outcome::Failed { error: error(), not_before: None }, 0.0);
    assert_eq!(failed().at(&enabled), failed());
    assert_eq!(failed().at(&disabled), Verdict::Held { error: error() });
    for outcome in [Outcome::Delivered, Outcome::Gone { error: error() }, Outcome::Interrupted] {
        assert_eq!(verdict(0, outcome.clone(), 0.0).at(&disabled), verdict(0, outcome, 0.0));
    }
}
