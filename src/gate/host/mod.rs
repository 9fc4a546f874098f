//! What a gate may ask of its host: one file per interface of the contract, and `exchange` that does the I/O
//! for `probe`.

mod exchange;
pub(super) mod probe;
pub(super) mod trial;
