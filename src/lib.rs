pub mod backoff;
pub mod client;
pub mod clock;
pub mod config;
pub mod decide;
pub mod delivery;
pub mod pace;
pub mod watch;
