//! Any bytes as who is asked for.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice::fuzzing::authority(bytes));
