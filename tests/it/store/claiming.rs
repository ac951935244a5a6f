//! What a claim of watches takes.

use super::*;

/// The ids that a claim brings from each lane.
fn taken(claimed: &[Claimed<Watch>]) -> Vec<Vec<&str>> {
    claimed.iter().map(|claimed| asset_ids(&claimed.rows)).collect()
}

/// Sets when a watch is due, so long after [`NOW`].
fn due(base: &Base, asset_id: &str, seconds: i64) {
    let at = NOW.as_millis() + seconds * 1_000;
    base.execute(&format!("UPDATE watches SET due_at = {at} WHERE asset_id = '{asset_id}'"));
}

#[tokio::test]
async fn what_has_been_due_longest_is_taken_first_and_no_more_than_there_is_room_for() {
    let base = Base::new().await;
    base.add(&["b", "a", "d", "c", "future"]).await;
    for (asset, seconds) in [("a", -40), ("b", -30), ("c", -20), ("d", 0), ("future", 1)] {
        due(&base, asset, seconds);
    }
    assert_eq!(taken(&base.claim(terms(&[("default", 3)])).await), [["a", "b", "c"]]);
    assert_eq!(taken(&base.claim(terms(&[("default", 3)])).await), [["d"]], "what is due this very millisecond");
    assert_eq!(taken(&base.claim(terms(&[("default", 3)])).await), [[""; 0]]);
}

#[tokio::test]
async fn a_claim_sets_a_lease_and_counts_the_generation() {
    let base = Base::new().await;
    base.add(&["a"]).await;
    let mut claimed = base.claim(terms(&[("default", 9)])).await;
    let watch = claimed.remove(0).rows.remove(0);
    assert_eq!((watch.lease_owner.as_deref(), watch.lease_until), (Some("us"), Some(NOW + 20 * SECOND)));
    assert_eq!((watch.generation, watch.state, watch.polls), (1, State::Waiting, 0));
    assert_eq!(watch, base.watch(watch.id).await);
    let again = base.claim(later(20 * SECOND, &[("default", 9)])).await.remove(0).rows.remove(0);
    assert_eq!(
        (again.generation, again.lease_until),
        (2, Some(NOW + 40 * SECOND)),
        "an expired lease is claimed again"
    );
}

#[tokio::test]
async fn lanes_are_independent_and_answered_in_their_order() {
    let base = Base::new().await;
    base.add(&["a", "b"]).await;
    base.execute("INSERT INTO watches (asset_id, account) VALUES ('x', 'studio'), ('y', 'studio'), ('z', 'closed')");
    let claimed = base.claim(terms(&[("studio", 1), ("nobody", 5), ("default", 5)])).await;
    assert_eq!(taken(&claimed), [vec!["x"], vec![], vec!["a", "b"]]);
    assert_eq!(
        claimed.iter().map(|claimed| claimed.lane.as_str()).collect::<Vec<_>>(),
        ["studio", "nobody", "default"]
    );
    assert_eq!(
        base.ask::<i64>("SELECT generation FROM watches WHERE asset_id = 'z'"),
        0,
        "a lane that is not named rests"
    );
}

#[tokio::test]
async fn an_expired_lease_comes_before_what_is_merely_due() {
    let base = Base::new().await;
    base.leased("left").await;
    base.add(&["due"]).await;
    assert_eq!(taken(&base.claim(later(19 * SECOND, &[("default", 1)])).await), [["due"]], "the lease holds");
    assert_eq!(taken(&base.claim(later(20 * SECOND, &[("default", 1)])).await), [["left"]]);
}

#[tokio::test]
async fn one_asset_can_be_avoided_unless_it_is_the_only_one() {
    let base = Base::new().await;
    let watches = base.add(&["a", "b"]).await;
    let avoid = |id| {
        let lane = Lane { avoid: Some(id), ..lane("default", 1) };
        Terms { lanes: vec![lane], ..terms(&[]) }
    };
    assert_eq!(taken(&base.claim(avoid(watches[0].id)).await), [["b"]]);
    assert_eq!(taken(&base.claim(avoid(watches[0].id)).await), [["a"]], "there is no other one");
}

#[tokio::test]
async fn what_a_clock_wrote_that_was_set_back_since_is_due() {
    let base = Base::new().await;
    base.add(&["legal", "far", "farthest"]).await;
    for (asset, seconds) in [("legal", 7_200), ("far", 7_201), ("farthest", i64::from(i32::MAX))] {
        due(&base, asset, seconds);
    }
    assert_eq!(taken(&base.claim(terms(&[("default", 9)])).await), [["far", "farthest"]]);
    let held = |hours: i64| {
        let until = NOW.as_millis() + hours * 3_600_000;
        base.execute(&format!("UPDATE watches SET lease_owner = 'x', lease_until = {until} WHERE asset_id = 'legal'"));
    };
    held(2);
    assert_eq!(taken(&base.claim(terms(&[("default", 9)])).await), [[""; 0]], "a lease of two hours may be one");
    held(3);
    assert_eq!(taken(&base.claim(terms(&[("default", 9)])).await), [["legal"]]);
}

#[tokio::test]
async fn a_claim_can_be_limited_to_some_watches() {
    let base = Base::new().await;
    let watches = base.add(&["a", "b", "c"]).await;
    due(&base, "a", 5);
    due(&base, "c", 60);
    let only = |ids: &[usize], by| {
        let only = Some(ids.iter().map(|at| watches[*at].id).collect());
        Terms { only, ..later(by, &[("default", 9)]) }
    };
    assert_eq!(base.claim(only(&[2], Duration::ZERO)).await[0].next_due, Some(NOW + MINUTE), "the others do not count");
    assert_eq!(taken(&base.claim(only(&[], MINUTE)).await), [[""; 0]]);
    assert_eq!(taken(&base.claim(only(&[0, 2], MINUTE)).await), [["a", "c"]]);
    assert_eq!(taken(&base.claim(only(&[2, 1], MINUTE)).await), [["b"]]);
}

#[tokio::test]
async fn a_claim_says_when_the_lane_has_something_next() {
    let base = Base::new().await;
    let next = async |by| base.claim(later(by, &[("default", 9)])).await[0].next_due;
    assert_eq!(next(Duration::ZERO).await, None, "nothing waits");
    base.add(&["a", "b"]).await;
    due(&base, "a", 50);
    due(&base, "b", 10);
    assert_eq!(next(Duration::ZERO).await, Some(NOW + 10 * SECOND));
    assert_eq!(next(10 * SECOND).await, Some(NOW + 30 * SECOND), "the end of b's lease, since a is due later");
    assert_eq!(next(10 * SECOND).await, Some(NOW + 30 * SECOND), "without claiming anything");
    assert_eq!(base.claim(terms(&[("another", 9)])).await[0].next_due, None, "of this lane");
}

#[tokio::test]
async fn a_claim_says_whether_a_watch_is_alone() {
    let base = Base::new().await;
    let alone = async || base.claim(terms(&[("default", 1)])).await[0].alone;
    assert!(alone().await, "nothing waits");
    base.add(&["a"]).await;
    assert!(alone().await);
    base.execute("INSERT INTO watches (asset_id, account) VALUES ('x', 'studio')");
    assert!(alone().await, "of its account");
    base.settled("ended", &[]).await;
    assert!(alone().await, "what has ended does not wait");
    base.add(&["b"]).await;
    assert!(!alone().await);
}

#[tokio::test]
async fn only_what_waits_is_claimed() {
    let base = Base::new().await;
    base.settled("settled", &[]).await;
    let watch = base.add(&["cancelled"]).await.remove(0);
    let end = |watch: &Watch| Watch { state: State::Cancelled, due_at: None, settled_at: Some(NOW), ..watch.clone() };
    base.store.end(vec![watch.id], move |watch| (end(watch), Vec::new()), nobody()).await.unwrap();
    let claimed = base.claim(later(DAY, &[("default", 9)])).await;
    assert_eq!((taken(&claimed), claimed[0].next_due), (vec![vec![]], None));
}

#[tokio::test]
async fn two_claimers_never_hold_the_same_watch() {
    let base = Base::new().await;
    let names: Vec<_> = (0..200).map(|n| format!("ast_{n}")).collect();
    base.add(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let another = Store::open(base.store.path()).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let store = if n % 2 == 0 { base.store.clone() } else { another.clone() };
        let terms = Terms { owner: format!("worker {n}"), ..terms(&[("default", 15)]) };
        tasks.spawn(async move { store.claim_watches(terms).await.unwrap().remove(0).rows });
    }
    let mut ids: Vec<_> = tasks.join_all().await.concat().iter().map(|watch| watch.id).collect();
    ids.sort_unstable();
    let all = ids.len();
    ids.dedup();
    assert_eq!((all, ids.len()), (200, 200));
}

/// A lease may run out while its worker waits for the database, or when the wall clock is set forward.
#[tokio::test]
async fn what_the_claimer_is_still_at_is_not_claimed_again() {
    let base = Base::new().await;
    let slow = base.leased("slow").await;
    let after = later(HOUR, &[("default", 9)]);
    let mine = Terms { live: vec![slow.id], ..after.clone() };
    let claimed = base.claim(mine).await.remove(0);
    assert!(claimed.rows.is_empty(), "{claimed:?}");
    assert_eq!(claimed.next_due, None, "nor is it a reason to look again");
    assert_eq!(taken(&base.claim(after).await), [["slow"]], "another process claims it");
}
