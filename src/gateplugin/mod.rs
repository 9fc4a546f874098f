//! The corridor of a plugin, a `GatePlugin` or a `ClusterGatePlugin`: admit -> load -> status.
//!
//! ```text
//! controller   watches plugins, and ConfigMaps without their data; backoff; housekeeping
//! object       what the two kinds have in common
//! reconcile    the pass, on one screen
//! source       what a spec refers to -> the bytes of a component that are what they should be, or why there are none
//! verify       PURE   signatures -> whether those who are trusted made them
//! limits       PURE   what a plugin asks for -> what its trials may use up
//! library      what the gate host holds, by digest; each component is loaded once and let go when nobody needs it
//! installed    what this process can run: the only answer other controllers may trust
//! status       PURE   what came of a pass -> GatePluginStatus
//! ```
//!
//! A plugin that is replaced is run until what replaces it can be. Only what may pass by itself, such as a registry that
//! is down, delays that; what is wrong takes the plugin out of use, as does another `spec.digest` or `spec.verify`: bytes
//! that are no longer trusted do not run on. What was replaced is let go at once, or, where an upgrade was begun with it,
//! when that has ended: so replacing plugins costs the gate host no memory.

mod controller;
mod installed;
mod library;
mod limits;
mod object;
mod reconcile;
mod source;
mod status;
mod verify;

pub use controller::{Setup, run};
pub use installed::{Held, Installed};
pub use library::Library;
pub use limits::{Ceiling, LimitsError};
pub use object::PluginObject;
#[cfg(any(test, fuzzing))]
pub(crate) use source::fuzzing;
pub use source::{
    Admitted, Allowed, Cache, Fetcher, Objects, Reason, Refusal, Request, SourceError, Sources, SourcesError,
};
pub use verify::{SignatureError, TrustRoot};
