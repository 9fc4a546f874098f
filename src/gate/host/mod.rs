//! What a gate may ask of its host: one file per interface of the contract, and `wasi` and `http` for what toolchains ask
//! for. `exchange` does the I/O for `probe` and `metrics`, and `traffic` counts it; `egress` and `credentials` say what may leave
//! the cluster.

pub(super) mod credentials;
pub(super) mod egress;
pub(super) mod exchange;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
pub(super) mod http;
pub(super) mod metrics;
pub(super) mod probe;
pub(super) mod traffic;
pub(super) mod trial;
pub(super) mod wasi;
