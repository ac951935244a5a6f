//! What the API answers.
#![no_main]

#[path = "../../tests/it/hostile/answer.rs"]
mod answer;

libfuzzer_sys::fuzz_target!(|body: &[u8]| answer::check(body));
