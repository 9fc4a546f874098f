//! The corridor of a `PromotionPolicy`: check -> ask the plugins -> status.
//!
//! ```text
//! controller   watches PromotionPolicies, and what is installed; backoff
//! reconcile    the pass, on one screen
//! check        PURE   policy + what is installed -> what is wrong, and what to ask which plugin
//! status       PURE   findings -> PromotionPolicyStatus
//! ```
//!
//! The condition it writes is for people, before any upgrade. An upgrade judges by its own look at the same facts.

mod check;
mod controller;
mod reconcile;
mod status;

pub use controller::{Setup, run};
