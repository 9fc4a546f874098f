//! The corridor of one DataPlane: check -> observe -> plan -> build -> apply -> jobs -> status.
//!
//! Stages know nouns and never each other; only [`reconcile`] knows stages.

pub mod apply;
pub mod build;
pub mod check;
pub mod controller;
#[cfg(test)]
mod fixtures;
pub mod jobs;
pub mod observe;
pub mod plan;
pub mod reconcile;
mod release;
pub mod status;
#[cfg(test)]
mod tests;

pub use apply::certificate::Authority;
pub use controller::{Setup, run};
