//! Any bytes as what a registry sends and a tenant names.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice::fuzzing::image(bytes));
