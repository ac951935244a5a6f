//! What the API says of its quota is obeyed.

use super::*;

/// So many requests are left for so many seconds.
fn left(left: u64, seconds: u64) -> Quota {
    Quota { left: Some((left, Duration::from_secs(seconds))), rate: None }
}

#[test]
fn nothing_left_closes_the_account_until_the_reset() {
    let mut pace = pace(10.0, 100);
    pace.heard(&left(0, 30), at(1.0));
    assert_eq!(pace.room(at(2.0)), Room::Closed(at(31.0)));
    assert_eq!(pace.room(at(31.0)), Room::Open(10));
    assert_eq!(pace.standing(at(2.0)).closed, None, "to have used a quota up is no closure");
    pace.heard(&left(0, 86_400), at(40.0));
    assert_eq!(pace.room(at(41.0)), Room::Closed(at(40.0) + HOUR), "no longer than a Retry-After");
}

#[test]
fn no_more_is_asked_than_is_left() {
    let mut pace = pace(10.0, 100);
    pace.heard(&left(3, 60), at(0.0));
    assert_eq!(pace.room(at(0.0)), Room::Open(3), "the burst is ten");
    pace.took(&[1, 2, 3], at(0.0));
    assert_eq!(pace.room(at(0.0)), Room::Closed(at(60.0)));
}

#[test]
fn requests_under_way_may_not_have_been_counted_yet() {
    let mut pace = pace(10.0, 100);
    pace.took(&[1, 2, 3, 4], at(0.0));
    pace.heard(&left(5, 60), at(0.1));
    assert_eq!(pace.room(at(0.1)), Room::Open(2), "three more are under way");
    pace.heard(&left(50, 60), at(30.0));
    assert_eq!(pace.room(at(30.0)), Room::Open(10), "what the API says now counts, and all of the burst");
}

/// Seven were left when the first of five was counted, and so three when the last one was, which is answered first.
#[test]
fn a_quota_that_looks_used_up_is_left_alone_whatever_older_answers_say() {
    let mut pace = pace(10.0, 100);
    pace.took(&[1, 2, 3, 4, 5], at(0.0));
    for (watch, remaining) in [(5, 3), (4, 4), (3, 5), (2, 6), (1, 7)] {
        pace.heard(&left(remaining, 60), at(0.5));
        pace.ended(watch, Sign::Healthy, false, at(0.5));
        assert_eq!(pace.room(at(1.0)), Room::Closed(at(60.5)), "{remaining} were left, and it may be that none is");
    }
    assert_eq!(pace.room(at(60.5)), Room::Open(10));
}

#[test]
fn the_less_is_left_the_slower_it_goes_so_that_it_lasts() {
    let mut pace = pace(10.0, 100);
    pace.heard(&left(3_000, 60), at(0.0));
    assert_eq!(pace.rate(at(0.0)), 10.0, "more than can be used");
    pace.heard(&left(120, 60), at(0.0));
    assert_eq!(pace.rate(at(0.0)), 4.0, "twice as fast as it would last");
    let ticks = requests(&mut pace, Sign::Healthy, at(0.0), at(60.0));
    assert!((90..=120).contains(&ticks.len()), "{}", ticks.len());
    assert!(ticks.last().is_some_and(|last| *last > at(45.0)), "it has not run out early: {:?}", ticks.last());
    assert_eq!(pace.rate(at(61.0)), 10.0, "and then there is another window");
}

#[test]
fn a_policy_bounds_the_rate() {
    let mut pace = pace(10.0, 100);
    pace.heard(&Quota { left: None, rate: Some(2.0) }, at(0.0));
    assert_eq!((pace.rate(at(0.0)), pace.rate(at(59.0))), (2.0, 2.0));
    assert_eq!(pace.rate(at(60.0)), 10.0, "which is not told of any more");
    pace.heard(&Quota { left: None, rate: Some(1e-9) }, at(0.0));
    assert_eq!(pace.rate(at(0.0)), SLOWEST, "a policy of a lifetime does not stop it");
}

#[test]
fn a_probe_waits_for_the_reset_as_well() {
    let mut pace = closed(Sign::Unauthorized, at(0.0));
    pace.heard(&left(0, 300), at(1.0));
    assert_eq!(pace.room(MINUTE), Room::Closed(at(301.0)));
    assert!(matches!(pace.room(at(301.0)), Room::Probe { .. }));
}

/// A server that counts in windows of so many seconds and says so with each answer.
fn used(limit: u64, window: u64) -> f64 {
    let mut pace = pace(50.0, 100);
    let (mut now, mut count, mut counted) = (at(0.0), 0, (0, 0));
    while now < at(60.0) {
        match pace.room(now) {
            Room::Closed(until) => now = until,
            Room::Open(_) => {
                let (index, seconds) = (now.as_secs() / window, window - now.as_secs() % window);
                counted = if counted.0 == index { (index, counted.1 + 1) } else { (index, 1) };
                assert!(counted.1 <= limit, "{limit} in {window} s: exceeded at {now:?}");
                pace.took(&[1], now);
                pace.heard(&left(limit - counted.1, seconds), now);
                pace.ended(1, Sign::Healthy, false, now);
                count += 1;
            }
            Room::Probe { .. } => panic!("it is open"),
        }
    }
    f64::from(count) / 60.0
}

#[test]
fn a_quota_is_used_whatever_its_window() {
    for (limit, window) in [(10, 1), (5, 1), (20, 2), (100, 10)] {
        let (used, allowed) = (used(limit, window), limit as f64 / window as f64);
        assert!(used > allowed * 0.6, "{limit} in {window} s: {used} of {allowed} a second");
    }
}

#[test]
fn a_hold_that_the_quota_asks_for_is_written_down_and_no_assets_time() {
    let mut pace = pace(10.0, 100);
    pace.heard(&left(0, 300), at(1.0));
    assert_eq!(pace.standing(at(2.0)).held_until, Some(at(301.0)));
    assert_eq!((pace.lost_ms(at(11.0)), pace.lost_ms(at(9_999.0))), (10_000, 300_000));
}
