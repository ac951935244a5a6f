//! `assetwatch` follows media assets of the Affogato (RenderNet) API until they leave `pending` and `processing`, records
//! the final status and URL, and tells whoever wants to know, by webhook or by command.
//!
//! It is a line, not a web:
//!
//! ```text
//! add → claim → poll → decide → record, with its deliveries, in one transaction → claim → perform → verdict → finish
//! ```
//!
//! [`store`] is the truth: a SQLite file whose index on `due_at` is the only schedule. [`pump`] is the only loop; it claims
//! what is due, works it and sleeps. [`poller`] and [`relay`] are its two uses; [`janitor`] removes what has long ended.
//! What an answer means is decided by pure functions in [`decide`]; [`api`] and [`hook`] turn the world into values and
//! have no opinions.
//!
//! The modules, lowest first. A module uses only those that stand before it; `tests/it/layers.rs` sees to that, and that
//! the edges do not know each other, [`config`] and [`client`] aside.

// Layer 0, rules: pure. `now` and a random `roll` come in, a value goes out.
pub mod clock;
pub mod backoff;
pub mod pace;
pub mod watch;
pub mod event;
pub mod delivery;
pub mod standing;
pub mod decide;

// Layer 1, edges: each turns one part of the world into the values above. `meter` is what all layers from here on count with.
pub mod meter;
pub mod config;
pub mod client;
pub mod api;
pub mod hook;
pub mod store;

// Layer 2, motion: the only loop, and its uses.
pub mod pump;
pub mod poller;
pub mod relay;
pub mod janitor;

// Layer 3, faces: the verbs, and the server and the command line that speak them.
pub mod control;
pub mod http;
pub mod cli;

// Layer 4, wiring: start in order, stop in order.
pub mod telemetry;
pub mod signal;
pub mod systemd;
pub mod daemon;
pub mod demo;
