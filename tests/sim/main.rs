//! The real engine (poller, relay, pump, decide and the store on real SQLite) against a world that follows from one number:
//! the API, the receivers, the clocks, the disk, what people do and when it crashes. The same seed has the same trace.
//!
//! What the world saw is compared with what was promised, after each piece of work; see `world.rs`. A failing seed prints
//! the command that plays it again.

#[cfg(test)]
mod api;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod clock;
#[cfg(test)]
mod daemon;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod pace;
#[cfg(test)]
mod receivers;
#[cfg(test)]
mod run;
#[cfg(test)]
mod runner;
#[cfg(test)]
mod script;
#[cfg(test)]
mod trace;
#[cfg(test)]
mod world;
