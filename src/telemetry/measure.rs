//! Where what is measured goes: a registry, from which `/metrics` is written when somebody asks.

use std::sync::Arc;
use std::time::Duration;

use metrics::{SharedString, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::clock::Timestamp;
use crate::meter::{INSTRUMENTS, Kind, Process};

/// How often what was measured is put into its buckets: until then each value takes 16 bytes.
const UPKEEP: Duration = Duration::from_secs(2);

/// What this process has measured. A clone is the same.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    process: Arc<Process>,
}

/// Begins to measure. What was set up before is not measured: so this comes first.
///
/// # Errors
/// When this process measures already.
pub fn measure(started_at: Timestamp) -> Result<Metrics, BuildError> {
    let recorder = registry()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    Ok(Metrics::new(handle, started_at))
}

/// Where instruments write to while it is the recorder, with the buckets of ours.
///
/// # Errors
/// When one of them has no buckets, which is an error of ours.
pub fn registry() -> Result<PrometheusRecorder, BuildError> {
    let buckets = INSTRUMENTS.iter().filter_map(|instrument| match instrument.kind {
        Kind::Histogram(bounds) => Some((instrument.name, bounds)),
        Kind::Counter | Kind::Gauge => None,
    });
    let builder = buckets.into_iter().try_fold(PrometheusBuilder::new(), |builder, (name, bounds)| {
        builder.set_buckets_for_metric(Matcher::Full(name.into()), bounds)
    });
    Ok(builder?.build_recorder())
}

impl Metrics {
    fn new(handle: PrometheusHandle, started_at: Timestamp) -> Self {
        for instrument in INSTRUMENTS {
            let (name, help) = (instrument.name, SharedString::const_str(instrument.help));
            match instrument.kind {
                Kind::Counter => describe_counter!(name, help),
                Kind::Gauge => describe_gauge!(name, help),
                Kind::Histogram(_) => describe_histogram!(name, help),
            }
        }
        let commit = option_env!("ASSETWATCH_COMMIT").unwrap_or("unknown");
        let most = getrlimit(Resource::Nofile).current;
        let process = Process::of(env!("CARGO_PKG_VERSION"), commit, seconds(started_at), most).into();
        Self { handle, process }
    }

    /// All that was measured, in Prometheus's text format, version 0.0.4.
    pub fn text(&self) -> String {
        let cpu = clock_gettime(ClockId::ProcessCPUTime).tv_sec;
        self.process.set(resident_memory(), open_descriptors(), u64::try_from(cpu).unwrap_or_default());
        self.handle.render()
    }

    /// A look at the database that gauges are set from was made at `at`, and took so long.
    pub fn looked(&self, took: Duration, at: Timestamp) {
        self.process.looked(took.as_secs_f64(), seconds(at));
    }

    /// Keeps what was measured small, for as long as this is polled: whether or not somebody asks for it.
    pub async fn keep_small(self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.handle.run_upkeep();
        }
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millis() as f64 / 1_000.0
}

/// In bytes.
fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1_024)
}

fn open_descriptors() -> Option<usize> {
    // One of them is this directory.
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use metrics::with_local_recorder;

    use super::*;
    use crate::control::HookState;
    use crate::meter::{Attempts, Backlogs, CALLBACKS, Commits, HookStates, Pacing, Polls, Waiting};

    /// The text of a process in which everything is set up.
    fn text() -> String {
        let recorder = registry().unwrap();
        let metrics = with_local_recorder(&recorder, || {
            let metrics = Metrics::new(recorder.handle(), Timestamp::from_millis(1_790_000_000_123));
            Polls::of("default").polled(
                &crate::decide::Observation::Unavailable { error: "503".into() },
                &crate::decide::Rules::default(),
                Duration::from_millis(20),
            );
            Attempts::of(CALLBACKS).performed(Duration::from_secs(3));
            Commits::default().committed(7, Duration::from_micros(600), false);
            Waiting::of("default").set(2, 1.5);
            Pacing::of("default").set_closed(Some(crate::pace::Closure::Broken), false);
            Backlogs::of("cms").set([1, 2, 3], 60.0);
            HookStates::of("cms", HookState::ALL.map(HookState::as_str)).set(Some("held"));
            metrics.looked(Duration::from_millis(5), Timestamp::from_millis(1_790_000_060_000));
            metrics
        });
        metrics.text()
    }

    #[test]
    fn what_is_written_is_what_is_listed_and_nothing_else() {
        let text = text();
        let listed: BTreeSet<&str> = INSTRUMENTS.iter().map(|instrument| instrument.name).collect();
        let word = |line: &'static str| move |text: &str| text.strip_prefix(line)?.split(' ').next().map(str::to_owned);
        let helped: BTreeSet<String> = text.lines().filter_map(word("# HELP ")).collect();
        let typed: BTreeSet<String> = text.lines().filter_map(word("# TYPE ")).collect();
        // A histogram has no series before its first value.
        let silent: BTreeSet<&str> = ["assetwatch_detection_delay_seconds", "assetwatch_delivery_delay_seconds"].into();
        for name in &listed {
            assert!(helped.contains(*name) || silent.contains(name), "{name} has no help:\n{text}");
        }
        assert_eq!(helped, typed);
        assert!(typed.iter().all(|name| listed.contains(name.as_str())), "{typed:?}");
    }

    #[test]
    fn values_go_to_their_series() {
        let text = text();
        for line in [
            r#"assetwatch_polls_total{account="default",outcome="failed"} 1"#,
            r#"assetwatch_polls_total{account="default",outcome="waiting"} 0"#,
            r#"assetwatch_poll_duration_seconds_bucket{account="default",le="0.01"} 0"#,
            r#"assetwatch_poll_duration_seconds_bucket{account="default",le="0.025"} 1"#,
            r#"assetwatch_delivery_attempt_duration_seconds_sum{hook="callback:*"} 3"#,
            r#"assetwatch_store_commit_failures_total 1"#,
            r#"assetwatch_store_commit_writes_bucket{le="4"} 0"#,
            r#"assetwatch_store_commit_writes_bucket{le="8"} 1"#,
            r#"assetwatch_lag_seconds{account="default"} 1.5"#,
            r#"assetwatch_account_closed{account="default",reason="broken"} 1"#,
            r#"assetwatch_account_closed{account="default",reason="unpaid"} 0"#,
            r#"assetwatch_deliveries{hook="cms",state="held"} 2"#,
            r#"assetwatch_hook_state{hook="cms",state="held"} 1"#,
            r#"assetwatch_hook_state{hook="cms",state="ok"} 0"#,
            r#"process_start_time_seconds 1790000000.123"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        let memory = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes ")).unwrap();
        assert!(memory.parse::<f64>().unwrap() > 1e6, "{memory}");
    }
}
