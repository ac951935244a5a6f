//! What is measured of it: exact, since time is.

use assetwatch::telemetry::registry;
use metrics::with_local_recorder;

use super::*;

/// The value of a series; none where there is no such series.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(start_paused = true)]
async fn polls_are_counted_by_what_they_brought_and_the_delay_is_what_it_can_be_at_most() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match (asked.asset.as_str(), asked.nth) {
        ("odd", _) => said("\"} 1\nforged 1"),
        ("lost", _) => Observation::Missing { error: "404".into() },
        (_, 1) => said("pending"),
        (_, 2) => broke(),
        _ => said("active"),
    });
    let api = Api { latency: 300 * MILLISECOND, ..api };
    let registry = registry().unwrap();
    let poller = with_local_recorder(&registry, || world.poller(&[&api]));
    world.add(&["a", "odd", "lost"]).await;
    let poller = Running::poller(&poller);
    world.until(10 * MINUTE).await;
    poller.stop().await;
    let text = registry.handle().render();
    for (series, expected) in [
        (r#"assetwatch_polls_total{account="default",outcome="waiting"}"#, 1.0),
        (r#"assetwatch_polls_total{account="default",outcome="failed"}"#, 1.0),
        (r#"assetwatch_polls_total{account="default",outcome="settled"}"#, 2.0),
        (r#"assetwatch_polls_total{account="default",outcome="rejected"}"#, 0.0),
        (r#"assetwatch_watches_settled_total{account="default",status="active"}"#, 1.0),
        (r#"assetwatch_watches_settled_total{account="default",status="other"}"#, 1.0),
        (r#"assetwatch_watches_abandoned_total{account="default",reason="missing"}"#, 1.0),
        (r#"assetwatch_detection_delay_seconds_count{account="default"}"#, 2.0),
        (r#"assetwatch_leases_lost_total{pump="poller"}"#, 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series} in\n{text}");
    }
    assert!(!text.contains("forged"), "what an API says is no label: {text}");
    let polls = api.asked().len() as f64;
    assert_eq!(value(&text, r#"assetwatch_poll_duration_seconds_count{account="default"}"#), Some(polls));
    let seconds = value(&text, r#"assetwatch_poll_duration_seconds_sum{account="default"}"#).unwrap();
    assert!((seconds - 0.3 * polls).abs() < 1e-6, "{seconds}");
    // From the answer that had `a` waiting to the one that had it settled; `odd` was settled at its first poll.
    let delay = value(&text, r#"assetwatch_detection_delay_seconds_sum{account="default"}"#).unwrap();
    let instants = api.instants("a");
    let expected = (instants[2] - instants[0]) as f64 / 1e3 + 0.3;
    assert!((delay - expected).abs() < 2e-3, "{delay} and not {expected}");
}

#[tokio::test(start_paused = true)]
async fn attempts_are_counted_by_their_verdict() {
    let world = World::new().await;
    let cms = Receiver::new(&world, "cms", |told| match told.number {
        1 => Outcome::Failed { error: "503".into(), not_before: None },
        _ => Outcome::Delivered,
    });
    let cms = Receiver { latency: 2 * SECOND, ..cms };
    let registry = registry().unwrap();
    let relay = with_local_recorder(&registry, || world.relay(&[&cms]));
    world.settle("a", &["cms"]).await;
    let relay = Running::relay(&relay);
    world.until(MINUTE).await;
    relay.stop().await;
    let text = registry.handle().render();
    for (series, expected) in [
        (r#"assetwatch_delivery_attempts_total{hook="cms",verdict="again"}"#, 1.0),
        (r#"assetwatch_delivery_attempts_total{hook="cms",verdict="delivered"}"#, 1.0),
        (r#"assetwatch_delivery_attempts_total{hook="cms",verdict="dead"}"#, 0.0),
        (r#"assetwatch_delivery_attempt_duration_seconds_sum{hook="cms"}"#, 4.0),
        // Two attempts, and the 5 s between them.
        (r#"assetwatch_delivery_delay_seconds_sum{hook="cms"}"#, 9.0),
        (r#"assetwatch_leases_lost_total{pump="relay"}"#, 0.0),
    ] {
        let found = value(&text, series).unwrap_or_else(|| panic!("no {series} in\n{text}"));
        assert!((found - expected).abs() < 2e-3, "{series} is {found} and not {expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_that_comes_too_late_is_counted_and_not_taken_for_a_settled_watch() {
    let world = World::new().await;
    let api = Api { latency: 5 * SECOND, ..Api::new(&world, |_| said("active")) };
    let registry = registry().unwrap();
    let poller = with_local_recorder(&registry, || world.poller(&[&api]));
    world.add(&["a"]).await;
    let poller = Running::poller(&poller);
    world.until(SECOND).await;
    world.foreign("UPDATE watches SET generation = generation + 1");
    world.until(8 * SECOND).await;
    poller.stop().await;
    let text = registry.handle().render();
    assert_eq!(value(&text, r#"assetwatch_leases_lost_total{pump="poller"}"#), Some(1.0), "{text}");
    assert_eq!(value(&text, r#"assetwatch_watches_settled_total{account="default",status="active"}"#), Some(0.0));
    assert_eq!(value(&text, r#"assetwatch_polls_total{account="default",outcome="settled"}"#), Some(1.0));
}
