//! What every controller needs of the cluster: the Lease of the one that works, caches to read from, one writer, back-off.

pub mod backoff;
pub mod cache;
pub mod foreign;
pub mod leader;
pub mod packed;
pub mod scope;
pub mod status;
pub mod writer;

pub use scope::Scope;
