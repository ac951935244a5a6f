//! The headers Retry-After, RateLimit and X-RateLimit.
#![no_main]

#[path = "../../tests/it/hostile/quota.rs"]
mod quota;

libfuzzer_sys::fuzz_target!(|headers: &[u8]| quota::check(headers));
