//! The rules of pace, on a clock that the tests set.

use super::learned::SLOWEST;
use super::*;

mod limits;
mod quotas;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

fn at(seconds: f64) -> Tick {
    Duration::from_secs_f64(seconds)
}

fn pace(rate: f64, max_in_flight: u32) -> Pace {
    Pace::new(Limits { rate, max_in_flight })
}

/// An account that is polled as fast as any test wants.
fn swift() -> Pace {
    pace(1_000.0, 1_000)
}

/// The rate that was found out; no test of it has a quota.
fn in_force(pace: &Pace) -> f64 {
    pace.rate(Tick::ZERO)
}

fn next_probe(pace: &Pace) -> Option<Tick> {
    pace.standing(Tick::ZERO).closed.map(|(_, _, probe)| probe)
}

/// One poll of `watch` that begins and ends at `now`.
fn poll(pace: &mut Pace, watch: i64, sign: Sign, now: Tick) -> Option<Turn> {
    pace.took(&[watch], now);
    pace.ended(watch, sign, false, now)
}

/// An account that was closed at `now` by the API's answer to watch 1.
fn closed(sign: Sign, now: Tick) -> Pace {
    let mut pace = swift();
    assert!(matches!(poll(&mut pace, 1, sign, now), Some(Turn::Closed(_))));
    pace
}

/// Opens the account's breaker at `now`.
fn strain(pace: &mut Pace, now: Tick) {
    let turns = [1, 2, 1, 2, 1].map(|watch| poll(pace, watch, Sign::Strained, now));
    assert_eq!(turns, [None, None, None, None, Some(Turn::Closed(Closure::Broken))]);
}

/// An account whose breaker was opened at `now`.
fn broken(now: Tick) -> Pace {
    let mut pace = swift();
    strain(&mut pace, now);
    pace
}

/// Takes all there is room for and answers at once, until `end`; the ticks of the requests.
fn requests(pace: &mut Pace, sign: Sign, from: Tick, end: Tick) -> Vec<Tick> {
    let (mut now, mut taken) = (from, Vec::new());
    while now < end {
        match pace.room(now) {
            Room::Open(0) => panic!("nothing is in flight"),
            Room::Closed(until) => {
                assert!(until > now, "a closed lane has to open later than now");
                now = until;
                continue;
            }
            Room::Open(room) => (0..room).for_each(|_| taken.push(now)),
            Room::Probe { .. } => taken.push(now),
        }
        let count = taken.iter().filter(|tick| **tick == now).count() as i64;
        let watches: Vec<i64> = (0..count).collect();
        pace.took(&watches, now);
        for watch in watches {
            pace.ended(watch, sign, false, now);
        }
    }
    taken
}

/// The ticks of the next `count` probes, each of which ends at once with `sign`.
fn probes(pace: &mut Pace, sign: Sign, from: Tick, count: usize) -> Vec<(u64, Option<i64>)> {
    let (mut now, mut probed) = (from, Vec::new());
    while probed.len() < count {
        match pace.room(now) {
            Room::Closed(until) => now = until,
            Room::Probe { avoid, .. } => {
                probed.push(((now - from).as_secs(), avoid));
                poll(pace, probed.len() as i64 + 100, sign, now);
            }
            Room::Open(room) => panic!("a closed account has room for {room}"),
        }
    }
    probed
}

#[test]
fn a_burst_then_one_request_for_each_gap() {
    let mut pace = pace(10.0, 100);
    assert_eq!(pace.room(at(0.0)), Room::Open(10));
    let ticks = requests(&mut pace, Sign::Healthy, at(0.0), at(1.0));
    let burst = ticks.iter().filter(|tick| tick.is_zero()).count();
    assert_eq!((burst, ticks.len()), (10, 19), "10 at once, then one in each tenth of a second");
    assert_eq!(ticks[10], at(0.1));
}

#[test]
fn what_is_not_used_is_saved_up_to_one_burst() {
    let mut pace = pace(10.0, 100);
    pace.took(&[1; 10], at(0.0));
    assert_eq!(pace.room(at(0.05)), Room::Closed(at(0.1)));
    assert_eq!(pace.room(at(0.35)), Room::Open(3));
    assert_eq!(pace.room(at(3_600.0)), Room::Open(10));
}

#[test]
fn a_fraction_of_a_request_a_second() {
    let mut slow = pace(0.1, 10);
    assert_eq!(requests(&mut slow, Sign::Healthy, at(0.0), at(35.0)), [0.0, 10.0, 20.0, 30.0].map(at));
    let mut odd = pace(1.5, 10);
    assert_eq!(odd.room(at(0.0)), Room::Open(2), "the burst is the rate, rounded up");
    odd.took(&[1, 2], at(0.0));
    assert!(matches!(odd.room(at(0.0)), Room::Closed(_)));
}

#[test]
fn no_more_in_flight_than_allowed() {
    let mut pace = pace(100.0, 3);
    assert_eq!(pace.room(at(0.0)), Room::Open(3));
    pace.took(&[1, 2], at(0.0));
    assert_eq!(pace.room(at(0.0)), Room::Open(1));
    pace.took(&[3], at(0.0));
    assert_eq!(pace.room(at(9.0)), Room::Open(0));
    pace.ended(1, Sign::Healthy, false, at(9.0));
    assert_eq!(pace.room(at(9.0)), Room::Open(1));
    pace.dropped(2);
    pace.dropped(3);
    assert_eq!(pace.room(at(9.0)), Room::Open(3), "an interrupted request gives its slot back");
}

#[test]
fn a_throttle_closes_the_account_for_as_long_as_it_says() {
    for (wait, closed) in [
        (None, SECOND),
        (Some(Duration::ZERO), Duration::ZERO),
        (Some(30 * SECOND), 30 * SECOND),
        (Some(HOUR), HOUR),
        (Some(100 * HOUR), HOUR),
        (Some(Duration::MAX), HOUR),
    ] {
        let mut pace = swift();
        assert_eq!(poll(&mut pace, 1, Sign::Throttled(wait), at(1.0)), Some(Turn::Slowed), "a throttle is no closure");
        // At least until the next token, at a rate of 700 a second.
        let expected = at(1.0) + closed.max(Duration::from_micros(1_429));
        let Room::Closed(until) = pace.room(at(1.0)) else { panic!("{wait:?}: it is open") };
        assert!(until.abs_diff(expected) < Duration::from_micros(1), "{wait:?}: {until:?}");
        assert_eq!(pace.room(expected), Room::Open(1), "{wait:?}");
        let held = closed.as_millis() as i64;
        assert_eq!((pace.closure(), pace.lost_ms(at(9_999.0))), (None, held), "to be held is not an asset's time");
    }
}

#[test]
fn a_later_and_shorter_throttle_does_not_open_the_account_sooner() {
    let mut pace = swift();
    pace.took(&[1, 2], at(0.0));
    pace.ended(1, Sign::Throttled(Some(MINUTE)), false, at(0.0));
    pace.ended(2, Sign::Throttled(Some(SECOND)), false, at(0.0));
    assert_eq!(pace.room(at(2.0)), Room::Closed(MINUTE));
}

#[test]
fn the_rate_is_cut_once_for_each_burst() {
    let mut pace = pace(10.0, 100);
    pace.took(&[1, 2, 3, 4], at(0.0));
    for (watch, now) in [(1, 0.1), (2, 0.1), (3, 1.0)] {
        pace.ended(watch, Sign::Throttled(None), false, at(now));
        assert!((in_force(&pace) - 7.0).abs() < 1e-9, "at {now}: {}", in_force(&pace));
    }
    pace.ended(4, Sign::Throttled(None), false, at(1.1));
    assert!((in_force(&pace) - 4.9).abs() < 1e-9);
}

#[test]
fn the_rate_is_cut_no_lower_than_the_slowest() {
    let cut = |rate| {
        let mut pace = pace(rate, 100);
        for n in 0..100 {
            poll(&mut pace, 1, Sign::Throttled(None), n * 30 * SECOND);
        }
        in_force(&pace)
    };
    assert_eq!(cut(10.0), SLOWEST);
    assert_eq!(cut(0.01), 0.01, "a configured rate below that is not raised");
}

#[test]
fn the_rate_grows_back_slowly_with_use_and_never_above_the_configured_one() {
    let mut pace = pace(10.0, 100);
    poll(&mut pace, 1, Sign::Throttled(None), at(0.0));
    // Hours without a request teach nothing, nor does a request a second where seven are allowed.
    poll(&mut pace, 1, Sign::Healthy, at(7_200.0));
    for second in 1..=1_000 {
        poll(&mut pace, 1, Sign::Healthy, at(7_200.0 + f64::from(second)));
    }
    assert!((in_force(&pace) - 7.0).abs() < 1e-9, "{}", in_force(&pace));
    requests(&mut pace, Sign::Healthy, at(9_000.0), at(9_088.0));
    assert!((9.8..10.0).contains(&in_force(&pace)), "from 7 to 10 takes 90 s of use: {}", in_force(&pace));
    requests(&mut pace, Sign::Healthy, at(9_088.0), at(9_100.0));
    assert_eq!(in_force(&pace), 10.0);
}

#[test]
fn growth_depends_on_time_and_not_on_the_number_of_answers() {
    let grown = |answers: u32| {
        let mut pace = pace(10.0, 1_000);
        poll(&mut pace, 1, Sign::Throttled(None), at(0.0));
        for n in 1..=answers {
            poll(&mut pace, 1, Sign::Healthy, SECOND * n / answers);
        }
        in_force(&pace)
    };
    assert!((grown(100) - grown(10)).abs() < 1e-6);
    assert!(grown(10) > 7.0);
}

#[test]
fn a_learned_rate_has_no_bursts() {
    let mut pace = pace(10.0, 100);
    poll(&mut pace, 1, Sign::Throttled(None), at(0.0));
    let ticks = requests(&mut pace, Sign::Neutral, at(100.0), at(101.0));
    assert!(ticks.len() <= 8, "what was saved in 100 s would have been a burst: {ticks:?}");
}

#[test]
fn what_was_learned_is_gone_on_with() {
    let limits = Limits { rate: 10.0, max_in_flight: 9 };
    for (before, expected) in
        [(None, 10.0), (Some(3.5), 3.5), (Some(99.0), 10.0), (Some(f64::NAN), 10.0), (Some(-1.0), SLOWEST)]
    {
        let known = Known { rate: before, held_until: at(60.0), ..Known::default() };
        let pace = Pace::resumed(limits, &known, at(0.0));
        assert_eq!(in_force(&pace), expected, "{before:?}");
        assert_eq!(pace.room(at(1.0)), Room::Closed(at(60.0)), "the API asked to be left alone");
    }
    let mut pace = pace(100.0, 9);
    poll(&mut pace, 1, Sign::Throttled(None), at(0.0));
    assert_eq!(pace.standing(at(0.0)).rate, Some(70.0));
    assert_eq!(pace.standing(at(0.5)).held_until, Some(at(1.0)));
    strain(&mut pace, at(10.0));
    poll(&mut pace, 3, Sign::Healthy, at(12.0));
    assert_eq!(
        (in_force(&pace), pace.standing(at(12.0)).rate),
        (7.0, Some(70.0)),
        "a slow start is nothing that was learned"
    );
}

#[test]
fn a_throttle_is_a_turn_when_it_ends_the_configured_rate() {
    let mut pace = pace(10.0, 100);
    assert_eq!(poll(&mut pace, 1, Sign::Throttled(None), at(0.0)), Some(Turn::Slowed));
    assert_eq!(poll(&mut pace, 1, Sign::Throttled(None), at(9.0)), None);
}

#[test]
fn a_certificate_that_is_not_valid_pauses_at_once() {
    let mut pace = closed(Sign::Untrusted, at(0.0));
    assert_eq!((pace.closure(), next_probe(&pace)), (Some(Closure::Untrusted), Some(MINUTE)));
    assert_eq!(poll(&mut pace, 2, Sign::Strained, MINUTE), None);
    assert_eq!(next_probe(&pace), Some(3 * MINUTE));
    let opened = Some(Turn::Opened { after: Closure::Untrusted, lost: 3 * MINUTE });
    assert_eq!(poll(&mut pace, 3, Sign::Healthy, 3 * MINUTE), opened);
}

#[test]
fn five_failures_in_a_row_over_two_assets_open_the_breaker() {
    use Sign::{Healthy, Neutral, Strained, Throttled};
    let strained = |watches: &[i64]| watches.iter().map(|watch| (*watch, Strained)).collect::<Vec<_>>();
    for (polls, alone, opens) in [
        (strained(&[1, 2, 1, 2]), false, false),
        (strained(&[1, 2, 1, 2, 1]), false, true),
        (strained(&[1, 1, 1, 1, 2]), false, true),
        (strained(&[1; 50]), false, false),
        (strained(&[1, 1, 1, 1]), true, false),
        (strained(&[1, 1, 1, 1, 1]), true, true),
        ([strained(&[1, 2, 1, 2]), vec![(3, Healthy)], strained(&[1, 2, 1, 2])].concat(), false, false),
        ([strained(&[1, 2, 1, 2]), vec![(3, Neutral)], strained(&[1])].concat(), false, false),
        ([strained(&[1, 2, 1, 2]), vec![(3, Throttled(None))], strained(&[1])].concat(), false, false),
        ([strained(&[2, 1]), vec![(3, Healthy)], strained(&[1; 9])].concat(), false, false),
    ] {
        let mut pace = swift();
        for (watch, sign) in &polls {
            pace.took(&[*watch], at(0.0));
            pace.ended(*watch, *sign, alone, at(0.0));
        }
        assert_eq!(pace.closure() == Some(Closure::Broken), opens, "{polls:?}, alone: {alone}");
    }
}

#[test]
fn a_closed_account_is_probed_at_growing_gaps_each_time_with_another_asset() {
    let paused = [60, 180, 480, 1_380, 2_280, 3_180];
    let breaker = [2, 6, 14, 29, 59, 119, 179];
    let expected = |seconds: &[u64], closed_by| -> Vec<_> {
        let avoided = std::iter::once(Some(closed_by)).chain((101..).map(Some));
        seconds.iter().copied().zip(avoided).collect()
    };
    for sign in [Sign::Unauthorized, Sign::Unpaid] {
        assert_eq!(probes(&mut closed(sign, MINUTE), sign, MINUTE, 6), expected(&paused, 1), "{sign:?}");
    }
    assert_eq!(probes(&mut broken(MINUTE), Sign::Strained, MINUTE, 7), expected(&breaker, 1));
}

#[test]
fn what_a_probe_of_a_paused_account_says() {
    use Closure::{Broken, Unauthorized, Unpaid};
    for (before, sign, turn, gap) in [
        (Sign::Unauthorized, Sign::Unauthorized, None, Some(120)),
        (Sign::Unauthorized, Sign::Strained, None, Some(120)),
        (Sign::Unauthorized, Sign::Throttled(None), None, Some(120)),
        (Sign::Unauthorized, Sign::Throttled(Some(HOUR)), None, Some(3_600)),
        (Sign::Unauthorized, Sign::Unpaid, Some(Turn::Closed(Unpaid)), Some(60)),
        (Sign::Unauthorized, Sign::Healthy, Some(Turn::Opened { after: Unauthorized, lost: MINUTE }), None),
        (Sign::Unauthorized, Sign::Neutral, Some(Turn::Opened { after: Unauthorized, lost: MINUTE }), None),
        (Sign::Unauthorized, Sign::Forbidden, Some(Turn::Opened { after: Unauthorized, lost: MINUTE }), None),
        (Sign::Unpaid, Sign::Unauthorized, Some(Turn::Closed(Unauthorized)), Some(60)),
        (Sign::Unpaid, Sign::Unpaid, None, Some(120)),
        (Sign::Unpaid, Sign::Healthy, Some(Turn::Opened { after: Unpaid, lost: MINUTE }), None),
    ] {
        let mut pace = closed(before, at(0.0));
        assert_eq!(poll(&mut pace, 2, sign, MINUTE), turn, "{before:?}, then {sign:?}");
        let probe = pace.closure().map(|_| match pace.room(MINUTE) {
            Room::Closed(until) => (until - MINUTE).as_secs(),
            Room::Open(_) | Room::Probe { .. } => 0,
        });
        assert_eq!(probe, gap, "{before:?}, then {sign:?}");
        assert_ne!(pace.closure(), Some(Broken), "failures do not open the breaker of a paused account");
    }
}

#[test]
fn what_a_probe_of_an_open_breaker_says() {
    let opened = Some(Turn::Opened { after: Closure::Broken, lost: 2 * SECOND });
    for (sign, turn) in [
        (Sign::Strained, None),
        (Sign::Healthy, opened),
        (Sign::Neutral, opened),
        (Sign::Forbidden, opened),
        (Sign::Throttled(None), opened),
        (Sign::Unauthorized, Some(Turn::Closed(Closure::Unauthorized))),
        (Sign::Unpaid, Some(Turn::Closed(Closure::Unpaid))),
    ] {
        let mut pace = broken(at(0.0));
        assert_eq!(poll(&mut pace, 3, sign, at(2.0)), turn, "{sign:?}");
    }
}

#[test]
fn one_probe_at_a_time() {
    let mut pace = closed(Sign::Unauthorized, at(0.0));
    assert_eq!(pace.room(MINUTE), Room::Probe { avoid: Some(1), prefer: None });
    pace.took(&[2], MINUTE);
    assert_eq!(pace.room(HOUR), Room::Open(0), "the probe is under way");
    pace.dropped(2);
    assert_eq!(pace.room(HOUR), Room::Probe { avoid: Some(2), prefer: None }, "an interrupted probe is made up for");
}

/// Requests of a breaker's account may last longer than its first gaps between probes.
#[test]
fn what_was_in_flight_when_the_account_closed_moves_no_probe() {
    for old in [Sign::Strained, Sign::Throttled(None), Sign::Unauthorized] {
        let mut pace = swift();
        pace.took(&[7, 8, 9], at(0.0));
        assert_eq!(poll(&mut pace, 1, Sign::Unauthorized, at(0.0)), Some(Turn::Closed(Closure::Unauthorized)));
        pace.ended(7, old, false, at(1.0));
        assert_eq!(next_probe(&pace), Some(MINUTE), "{old:?} before the probe");
        pace.took(&[2], MINUTE);
        pace.ended(8, old, false, MINUTE);
        assert_eq!(pace.room(HOUR), Room::Open(0), "{old:?}: the probe is still under way");
        pace.dropped(9);
        assert_eq!(pace.room(HOUR), Room::Open(0), "an old request that is dropped is not the probe either");
        pace.ended(2, Sign::Unauthorized, false, MINUTE + SECOND);
        assert_eq!(next_probe(&pace), Some(3 * MINUTE + SECOND), "{old:?}: the probe's own end counts");
    }
}

#[test]
fn a_changed_key_is_tried_at_once_and_then_at_the_first_gaps_again() {
    let mut pace = closed(Sign::Unauthorized, at(0.0));
    probes(&mut pace, Sign::Unauthorized, at(0.0), 4);
    let now = at(1_400.0);
    assert!(matches!(pace.room(now), Room::Closed(_)));
    pace.probe_now();
    assert!(matches!(pace.room(now), Room::Probe { .. }));
    poll(&mut pace, 2, Sign::Unauthorized, now);
    assert_eq!(pace.room(now), Room::Closed(now + MINUTE));
}

#[test]
fn after_a_broken_spell_the_account_starts_slowly() {
    let mut pace = pace(100.0, 1_000);
    strain(&mut pace, at(0.0));
    poll(&mut pace, 3, Sign::Healthy, at(2.0));
    assert_eq!(
        (in_force(&pace), pace.room(at(2.0))),
        (10.0, Room::Closed(at(2.1))),
        "a tenth of the rate and no burst"
    );
    let ticks = requests(&mut pace, Sign::Healthy, at(2.0), at(12.0));
    let in_second = |n: u64| ticks.iter().filter(|tick| (**tick - at(2.0)).as_secs() == n).count();
    assert!((10..30).contains(&in_second(0)), "in the first second: {}", in_second(0));
    assert!(in_second(1) <= 60, "in the second: {}", in_second(1));
    assert_eq!((in_force(&pace), in_second(8)), (100.0, 100), "and is soon where it was");
}

#[test]
fn a_paused_account_starts_where_it_was() {
    let mut pace = closed(Sign::Unauthorized, at(0.0));
    poll(&mut pace, 2, Sign::Healthy, MINUTE);
    assert_eq!(in_force(&pace), 1_000.0);
}

#[test]
fn a_slow_start_ends_at_the_rate_that_was_learned() {
    let mut pace = pace(100.0, 1_000);
    poll(&mut pace, 1, Sign::Throttled(None), at(0.0));
    strain(&mut pace, at(10.0));
    poll(&mut pace, 3, Sign::Healthy, at(12.0));
    for _ in 0..500 {
        poll(&mut pace, 3, Sign::Healthy, at(12.0));
    }
    assert!((70.0..71.0).contains(&in_force(&pace)), "{}", in_force(&pace));
}

#[test]
fn a_403_is_the_assets_while_another_is_answered_and_the_keys_otherwise() {
    let mut pace = swift();
    assert!(!pace.answered_another(1), "nobody was answered yet");
    poll(&mut pace, 1, Sign::Healthy, at(0.0));
    assert!(!pace.answered_another(1), "an answer for itself says nothing");
    assert!(pace.answered_another(2));
    assert_eq!(poll(&mut pace, 2, Sign::Forbidden, at(1.0)), None);
    assert!(!pace.answered_another(2), "the next one needs an answer in between");
    poll(&mut pace, 1, Sign::Healthy, at(2.0));
    assert!(pace.answered_another(2));
    poll(&mut pace, 1, Sign::Unauthorized, at(3.0));
    assert!(!pace.answered_another(2), "what was before the account closed does not count");
}

#[test]
fn the_time_for_which_an_account_was_closed_adds_up() {
    let hour = HOUR.as_millis() as i64;
    let known = Known { lost_ms: hour, ..Known::default() };
    let mut pace = Pace::resumed(Limits { rate: 1_000.0, max_in_flight: 9 }, &known, at(0.0));
    assert_eq!(pace.lost_ms(at(500.0)), hour, "what was lost before counts, and an open account loses nothing");
    poll(&mut pace, 1, Sign::Unauthorized, at(1_000.0));
    assert_eq!(pace.lost_ms(at(1_030.0)), hour + 30_000, "while it lasts");
    assert_eq!(pace.standing(at(1_030.0)).lost_ms, hour, "which is told apart");
    poll(&mut pace, 2, Sign::Unpaid, at(1_060.0));
    let turn = poll(&mut pace, 3, Sign::Healthy, at(1_120.0));
    assert_eq!(turn, Some(Turn::Opened { after: Closure::Unpaid, lost: 2 * MINUTE }), "one closed time, two reasons");
    assert_eq!(pace.lost_ms(at(9_999.0)), hour + 120_000);
    strain(&mut pace, at(10_000.0));
    poll(&mut pace, 3, Sign::Healthy, at(10_002.0));
    assert_eq!(pace.lost_ms(at(20_000.0)), hour + 122_000);
}

#[test]
fn a_jump_of_the_wall_clock_is_lost_time_in_both_directions() {
    let mut pace = swift();
    let wall = Timestamp::from_millis;
    assert!(!pace.keep_time(wall(5_000), at(0.0)));
    assert!(pace.keep_time(wall(5_000 + 86_400_000), at(10.0)));
    assert_eq!(pace.lost_ms(at(10.0)), 86_390_000);
    assert!(pace.keep_time(wall(25_000), at(20.0)));
    assert_eq!(pace.lost_ms(at(20.0)), 0, "it was set back to what it would have been");
}

#[test]
fn changed_limits_keep_what_was_learned_as_far_as_it_fits() {
    let limits = |rate| Limits { rate, max_in_flight: 5 };
    let cut = |rate| {
        let mut pace = pace(rate, 9);
        poll(&mut pace, 1, Sign::Throttled(None), at(0.0));
        pace
    };
    for (mut before, rate, expected) in [
        (pace(10.0, 9), 20.0, 20.0),
        (pace(10.0, 9), 5.0, 5.0),
        (cut(10.0), 20.0, 7.0),
        (cut(10.0), 10.0, 7.0),
        (cut(10.0), 3.0, 3.0),
    ] {
        before.set_limits(limits(rate));
        assert!((in_force(&before) - expected).abs() < 1e-9, "{} instead of {expected}", in_force(&before));
        before.took(&[1; 5], HOUR);
        assert_eq!(before.room(2 * HOUR), Room::Open(0), "the new number in flight holds");
    }
    let mut fewer = pace(10.0, 9);
    fewer.took(&[1; 8], at(0.0));
    fewer.set_limits(limits(10.0));
    assert_eq!(fewer.room(HOUR), Room::Open(0), "more in flight than allowed now");
}

#[test]
fn a_closure_goes_on_after_a_restart_with_one_probe_at_once() {
    let known = Known { lost_ms: 5_000, closed: Some((Closure::Unauthorized, HOUR)), ..Known::default() };
    let mut pace = Pace::resumed(Limits { rate: 10.0, max_in_flight: 9 }, &known, at(100.0));
    assert_eq!(pace.room(at(100.0)), Room::Probe { avoid: None, prefer: None });
    assert_eq!(pace.standing(at(110.0)).closed, Some((Closure::Unauthorized, HOUR + 10 * SECOND, Tick::ZERO)));
    let turn = poll(&mut pace, 1, Sign::Healthy, at(110.0));
    assert_eq!(turn, Some(Turn::Opened { after: Closure::Unauthorized, lost: HOUR + 10 * SECOND }));
    assert_eq!(pace.lost_ms(at(200.0)), 15_000);
}

#[test]
fn only_its_probe_ends_a_pause() {
    for old in [Sign::Healthy, Sign::Neutral, Sign::Forbidden] {
        let mut pace = swift();
        pace.took(&[7, 8], at(0.0));
        assert!(poll(&mut pace, 1, Sign::Unauthorized, at(0.0)).is_some());
        assert_eq!(pace.ended(7, old, false, at(1.0)), None, "{old:?} was asked before the pause");
        assert_eq!(pace.closure(), Some(Closure::Unauthorized));
        assert!(poll(&mut pace, 2, old, MINUTE).is_some(), "{old:?} of the probe");
    }
}

#[test]
fn a_new_key_does_not_wait_for_the_probe_with_the_old_one() {
    let mut pace = closed(Sign::Unauthorized, at(0.0));
    pace.took(&[2], MINUTE);
    pace.probe_now();
    pace.ended(2, Sign::Unauthorized, false, MINUTE + SECOND);
    assert_eq!(pace.room(MINUTE + SECOND), Room::Probe { avoid: None, prefer: None });
}

#[test]
fn a_few_forbidden_assets_do_not_pause_the_account() {
    let mut pace = swift();
    for second in 0..60 {
        let now = at(f64::from(second));
        poll(&mut pace, 1, Sign::Healthy, now);
        for bad in [11, 12, 13] {
            let sign = if pace.answered_another(bad) { Sign::Forbidden } else { Sign::Doubtful };
            assert_eq!(poll(&mut pace, bad, sign, now), None);
        }
    }
    // With a key that was revoked nobody is answered any more.
    let turns = [11, 12, 13].map(|bad| poll(&mut pace, bad, Sign::Doubtful, HOUR));
    assert_eq!(turns, [None, None, Some(Turn::Closed(Closure::Unauthorized))], "after two that were in doubt before");
    let probe = HOUR + MINUTE;
    assert_eq!(
        pace.room(probe),
        Room::Probe { avoid: Some(13), prefer: Some(1) },
        "who was answered before tells most"
    );
}

#[test]
fn the_only_asset_of_an_account_pauses_it_with_its_first_403() {
    let mut pace = swift();
    pace.took(&[1], at(0.0));
    assert_eq!(pace.ended(1, Sign::Doubtful, true, at(0.0)), Some(Turn::Closed(Closure::Unauthorized)));
}

#[test]
fn a_hold_and_a_closure_are_counted_once() {
    let mut pace = swift();
    pace.took(&[1, 2, 3], at(0.0));
    pace.ended(1, Sign::Throttled(Some(30 * SECOND)), false, at(10.0));
    pace.ended(2, Sign::Unauthorized, false, at(20.0));
    assert_eq!(pace.lost_ms(at(50.0)), 40_000);
    poll(&mut pace, 4, Sign::Healthy, at(80.0));
    assert_eq!(pace.lost_ms(at(500.0)), 70_000);
    pace.took(&[5], at(600.0));
    pace.ended(5, Sign::Throttled(Some(10 * SECOND)), false, at(600.0));
    assert_eq!((pace.lost_ms(at(605.0)), pace.lost_ms(at(700.0))), (75_000, 80_000));
    pace.took(&[5], at(800.0));
    pace.ended(5, Sign::Throttled(Some(10 * SECOND)), false, at(800.0));
    assert_eq!(pace.lost_ms(at(900.0)), 90_000, "the time between two holds is the assets'");
}
