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
    // An older answer, which has overtaken a newer one, does not give anything back.
    pace.heard(&left(50, 60), at(0.2));
    assert_eq!(pace.room(at(0.2)), Room::Open(2));
    pace.heard(&left(50, 60), at(30.0));
    assert_eq!(pace.room(at(30.0)), Room::Open(10), "another window, and all of the burst");
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
    assert_eq!(pace.rate(at(0.0)), 2.0);
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
