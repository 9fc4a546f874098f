//! The corridor of a policy, a `PromotionPolicy` or a `ClusterPromotionPolicy`: check -> ask the plugins -> status.
//!
//! ```text
//! controller   watches policies, and what is installed; backoff
//! object       what the two kinds have in common
//! reconcile    the pass, on one screen
//! check        PURE   policy + what is installed -> what is wrong, and what to ask which plugin
//! status       PURE   findings -> PromotionPolicyStatus
//! ```
//!
//! The condition it writes is for people, before any upgrade. An upgrade judges by its own look at the same facts.

mod check;
mod controller;
mod object;
mod reconcile;
mod status;

pub use controller::{Setup, run};
pub use object::PolicyObject;
