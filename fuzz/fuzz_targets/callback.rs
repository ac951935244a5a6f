//! Callback URLs, and what their hosts mean.
#![no_main]

#[path = "../../tests/it/hostile/callback.rs"]
mod callback;

libfuzzer_sys::fuzz_target!(|data: &[u8]| callback::check_bytes(data));
