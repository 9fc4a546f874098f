//! Any bytes as what a guest says.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice::fuzzing::answer(bytes));
