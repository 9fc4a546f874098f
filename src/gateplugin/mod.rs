//! The corridor of a `GatePlugin`: fetch -> unpack -> load -> status.
//!
//! ```text
//! controller   watches GatePlugins, and ConfigMaps without their data; backoff; housekeeping
//! reconcile    the pass, on one screen
//! source       PURE   ConfigMap -> the bytes of a component, or why there are none
//! limits       PURE   what a plugin asks for -> what its trials may use up
//! turns        whose plugin is installed next: namespaces in turn
//! library      what the gate host holds, by digest; each component is loaded once and let go when nobody needs it
//! installed    what this process can run: the only answer other controllers may trust
//! status       PURE   what came of a pass -> GatePluginStatus
//! ```

mod controller;
mod installed;
mod library;
mod limits;
mod reconcile;
mod source;
mod status;
mod turns;

pub use controller::{Setup, run};
pub use installed::{Installed, Key};
pub use library::Library;
pub use limits::{Ceiling, LimitsError};
pub use source::SourceError;
