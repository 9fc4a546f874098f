//! What every controller needs of the cluster: caches to read from, one writer, back-off.

pub mod backoff;
pub mod cache;
pub mod writer;
