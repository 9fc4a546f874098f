//! What every controller needs of the cluster: caches to read from, one writer, back-off.

pub mod backoff;
pub mod cache;
pub mod foreign;
pub mod packed;
pub mod scope;
pub mod status;
pub mod writer;

pub use scope::Scope;
