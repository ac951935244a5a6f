//! The names of all instruments: what `/metrics` promises. Seconds and bytes, counters end in `_total`.

pub(super) const POLLS: &str = "assetwatch_polls_total";
pub(super) const POLL_DURATION: &str = "assetwatch_poll_duration_seconds";
pub(super) const SETTLED: &str = "assetwatch_watches_settled_total";
pub(super) const ABANDONED: &str = "assetwatch_watches_abandoned_total";
pub(super) const DETECTION_DELAY: &str = "assetwatch_detection_delay_seconds";
pub(super) const LEASES_LOST: &str = "assetwatch_leases_lost_total";
pub(super) const ATTEMPTS: &str = "assetwatch_delivery_attempts_total";
pub(super) const ATTEMPT_DURATION: &str = "assetwatch_delivery_attempt_duration_seconds";
pub(super) const DELIVERY_DELAY: &str = "assetwatch_delivery_delay_seconds";
pub(super) const COMMIT_DURATION: &str = "assetwatch_store_commit_duration_seconds";
pub(super) const COMMIT_WRITES: &str = "assetwatch_store_commit_writes";
pub(super) const COMMIT_FAILURES: &str = "assetwatch_store_commit_failures_total";
pub(super) const WAITING: &str = "assetwatch_watches_waiting";
pub(super) const LAG: &str = "assetwatch_lag_seconds";
pub(super) const RATE: &str = "assetwatch_account_allowed_polls_per_second";
pub(super) const IN_FLIGHT: &str = "assetwatch_account_polls_in_flight";
pub(super) const CLOSED: &str = "assetwatch_account_closed";
pub(super) const HELD: &str = "assetwatch_account_held";
pub(super) const BACKLOG: &str = "assetwatch_deliveries";
pub(super) const OLDEST: &str = "assetwatch_delivery_oldest_waiting_seconds";
pub(super) const HOOK_STATE: &str = "assetwatch_hook_state";
pub(super) const LOOK_DURATION: &str = "assetwatch_look_duration_seconds";
pub(super) const LOOKED_AT: &str = "assetwatch_look_timestamp_seconds";
pub(super) const BUILD: &str = "assetwatch_build_info";
pub(super) const STARTED_AT: &str = "process_start_time_seconds";
pub(super) const CPU: &str = "process_cpu_seconds_total";
pub(super) const MEMORY: &str = "process_resident_memory_bytes";
pub(super) const DESCRIPTORS: &str = "process_open_fds";
pub(super) const MOST_DESCRIPTORS: &str = "process_max_fds";

/// What an instrument measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// How often something has happened since the start.
    Counter,
    /// How something stands.
    Gauge,
    /// How often something was at most so much; the upper bounds of the buckets.
    Histogram(&'static [f64]),
}

/// One instrument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Instrument {
    /// What it is called.
    pub name: &'static str,
    /// What it measures.
    pub kind: Kind,
    /// What it says, for people.
    pub help: &'static str,
}

const fn instrument(name: &'static str, kind: Kind, help: &'static str) -> Instrument {
    Instrument { name, kind, help }
}

/// Of requests, in seconds: from a receiver next door to the longest timeout.
const REQUEST: Kind = Kind::Histogram(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]);
/// In seconds: around the backoff's first (2 s) and longest (60 s) gap.
const DETECTION: Kind =
    Kind::Histogram(&[0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 45.0, 60.0, 70.0, 120.0, 600.0, 3600.0]);
/// In seconds: at once, or after some of the gaps between attempts.
const DELIVERY: Kind =
    Kind::Histogram(&[0.01, 0.05, 0.25, 1.0, 5.0, 10.0, 60.0, 180.0, 900.0, 3600.0, 10800.0, 86400.0]);
/// In seconds: from a disk that caches to one that hangs.
const COMMIT: Kind = Kind::Histogram(&[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0]);
const WRITES: Kind = Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]);

/// All of them, in the order of the documentation.
pub const INSTRUMENTS: [Instrument; 29] = [
    instrument(POLLS, Kind::Counter, "Polls, by what they brought."),
    instrument(POLL_DURATION, REQUEST, "How long a poll took, from the request to the end of its answer."),
    instrument(SETTLED, Kind::Counter, "Watches that have settled, by the API's word; unknown words are \"other\"."),
    instrument(ABANDONED, Kind::Counter, "Watches that were abandoned, by the reason."),
    instrument(
        DETECTION_DELAY,
        DETECTION,
        "The longest for which a settled asset can have gone unnoticed: from the last answer that had it waiting (or the \
         add) to the answer that had it settled.",
    ),
    instrument(
        LEASES_LOST,
        Kind::Counter,
        "Results that were not written because somebody else had worked on the row meanwhile, or had ended it.",
    ),
    instrument(WAITING, Kind::Gauge, "Watches that wait for their asset to settle."),
    instrument(LAG, Kind::Gauge, "How long the longest overdue watch has been due; 0 when none is."),
    instrument(RATE, Kind::Gauge, "Polls a second that the account allows at present."),
    instrument(IN_FLIGHT, Kind::Gauge, "Polls that are under way."),
    instrument(CLOSED, Kind::Gauge, "Whether the account is paused or its breaker is open, by the reason: 1 or 0."),
    instrument(HELD, Kind::Gauge, "Whether the API has asked for the account to be left alone for a while: 1 or 0."),
    instrument(ATTEMPTS, Kind::Counter, "Attempts at deliveries, by the verdict."),
    instrument(ATTEMPT_DURATION, REQUEST, "How long an attempt at a delivery took."),
    instrument(DELIVERY_DELAY, DELIVERY, "The time from an event to the end of the attempt that delivered it."),
    instrument(BACKLOG, Kind::Gauge, "Deliveries that are not made, by their state."),
    instrument(OLDEST, Kind::Gauge, "The age of the oldest delivery that waits; 0 when none does."),
    instrument(HOOK_STATE, Kind::Gauge, "How the hook stands: 1 for the state that it is in, 0 for the others."),
    instrument(COMMIT_DURATION, COMMIT, "How long a transaction of the store took, the wait for the disk included."),
    instrument(COMMIT_WRITES, WRITES, "Writes that shared one transaction of the store."),
    instrument(
        COMMIT_FAILURES,
        Kind::Counter,
        "Transactions of the store that failed; what they were to write is tried again.",
    ),
    instrument(
        LOOK_DURATION,
        Kind::Gauge,
        "How long the last look at the database took that these gauges are set from.",
    ),
    instrument(LOOKED_AT, Kind::Gauge, "When that look was, in Unix time."),
    instrument(BUILD, Kind::Gauge, "Always 1; the labels say which build runs."),
    instrument(STARTED_AT, Kind::Gauge, "When the process was started, in Unix time."),
    instrument(CPU, Kind::Counter, "User and system time that the process has used, in whole seconds."),
    instrument(MEMORY, Kind::Gauge, "Resident memory of the process."),
    instrument(DESCRIPTORS, Kind::Gauge, "File descriptors that are open."),
    instrument(MOST_DESCRIPTORS, Kind::Gauge, "The most that may be."),
];
