//! The limits hold whatever happens, in whatever order.

use proptest::prelude::*;

use super::*;

/// What may happen to an account.
#[derive(Clone, Debug)]
enum Happening {
    Passes(Duration),
    Takes { share: f64 },
    Ends { which: usize, sign: Sign },
    Drops { which: usize },
    Probes,
    Hears { left: u64, reset: u64 },
}

fn happening() -> impl Strategy<Value = Happening> {
    let sign = prop_oneof![
        10 => Just(Sign::Healthy),
        2 => Just(Sign::Neutral),
        3 => Just(Sign::Strained),
        1 => Just(Sign::Forbidden),
        1 => Just(Sign::Unauthorized),
        1 => Just(Sign::Unpaid),
        2 => proptest::option::of(0_u64..5).prop_map(|wait| Sign::Throttled(wait.map(Duration::from_secs))),
    ];
    prop_oneof![
        4 => (0_u64..400).prop_map(|millis| Happening::Passes(Duration::from_millis(millis))),
        1 => (0_u64..100).prop_map(|seconds| Happening::Passes(Duration::from_secs(seconds))),
        6 => (0.0..=1.0).prop_map(|share| Happening::Takes { share }),
        6 => (any::<usize>(), sign).prop_map(|(which, sign)| Happening::Ends { which, sign }),
        1 => any::<usize>().prop_map(|which| Happening::Drops { which }),
        1 => Just(Happening::Probes),
        2 => (0_u64..50, 0_u64..20).prop_map(|(left, reset)| Happening::Hears { left, reset }),
    ]
}

/// Takes a share of what there is room for, and says how many requests that makes.
fn take(pace: &mut Pace, share: f64, now: Tick, in_flight: &mut Vec<i64>, next: &mut i64) -> usize {
    let count = match pace.room(now) {
        Room::Closed(_) => 0,
        Room::Open(room) => (f64::from(room) * share).ceil() as usize,
        Room::Probe { .. } => 1,
    };
    let watches: Vec<i64> = (0..count).map(|_| std::mem::replace(next, (*next + 1) % 7)).collect();
    pace.took(&watches, now);
    in_flight.extend(watches);
    count
}

proptest! {
    #[test]
    fn whatever_happens_the_limits_hold(
        rate in prop_oneof![0.05..3.0, 3.0..60.0],
        max_in_flight in 1_u32..40,
        happenings in proptest::collection::vec(happening(), 1..300),
    ) {
        let mut pace = pace(rate, max_in_flight);
        let (mut now, mut next, mut in_flight, mut ticks) = (Tick::ZERO, 0, Vec::new(), Vec::new());
        for happening in happenings {
            match happening {
                Happening::Passes(time) => now += time,
                Happening::Takes { share } => {
                    let count = take(&mut pace, share, now, &mut in_flight, &mut next);
                    ticks.extend(std::iter::repeat_n(now, count));
                }
                Happening::Ends { .. } | Happening::Drops { .. } if in_flight.is_empty() => {}
                Happening::Ends { which, sign } => {
                    let watch = in_flight.swap_remove(which % in_flight.len());
                    pace.ended(watch, sign, in_flight.is_empty(), now);
                }
                Happening::Drops { which } => pace.dropped(in_flight.swap_remove(which % in_flight.len())),
                Happening::Probes => pace.probe_now(),
                Happening::Hears { left, reset } => {
                    pace.heard(&Quota { left: Some((left, Duration::from_secs(reset))), rate: None }, now);
                }
            }
            prop_assert!(in_flight.len() <= max_in_flight as usize);
            match pace.room(now) {
                Room::Open(room) => prop_assert!(room as usize + in_flight.len() <= max_in_flight as usize),
                Room::Probe { .. } => prop_assert!(in_flight.len() < max_in_flight as usize),
                Room::Closed(until) => prop_assert!(until > now),
            }
            prop_assert!(pace.rate(now) > 0.0 && pace.rate(now) <= rate);
        }
        let most = rate + rate.ceil() + 1.0;
        for (first, tick) in ticks.iter().enumerate() {
            let window = ticks[first..].iter().take_while(|later| **later < *tick + SECOND).count();
            prop_assert!(window as f64 <= most, "{window} requests in the second from {tick:?}; the most is {most}");
        }
    }
}
