//! What a gate may ask of its host: one file per interface of the contract, and for `probe` also `exchange`, which does
//! the I/O, and `traffic`, which counts it.

mod exchange;
pub(super) mod probe;
pub(super) mod traffic;
pub(super) mod trial;
