//! Write a gate for Sluice: a check that judges a DataPlane upgrade before it is promoted.
//!
//! A gate is a type that implements [`Gate`], compiled for `wasm32-unknown-unknown` and wrapped as a
//! WebAssembly component. It can reach what this crate offers and nothing else: no files, no sockets, no
//! environment. The contract is `wit/gate.wit` of this repository.
//!
//! ```
//! use serde::Deserialize;
//! use sluice_gate::{Description, Gate, Request, Trouble, Verdict};
//!
//! /// Passes when the candidate answers with the wanted status.
//! struct Answers;
//!
//! #[derive(Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Settings {
//!     status: u16,
//! }
//!
//! impl Gate for Answers {
//!     type Settings = Settings;
//!
//!     fn describe() -> Description {
//!         Description {
//!             name: "answers".into(),
//!             version: env!("CARGO_PKG_VERSION").into(),
//!             summary: "Asks the candidate once".into(),
//!             settings_schema: r#"{
//!                 "type": "object",
//!                 "additionalProperties": false,
//!                 "required": ["status"],
//!                 "properties": {"status": {"type": "integer"}}
//!             }"#.into(),
//!         }
//!     }
//!
//!     fn evaluate(settings: Settings) -> Result<Verdict, Trouble> {
//!         let response = Request::get("candidate/proxy", "/").send().map_err(|failure| Trouble::passing(failure.message))?;
//!         sluice_gate::measure("latency", response.latency(), "ms", None);
//!         if response.status == settings.status {
//!             Ok(Verdict::pass("Answered", format!("status {}", response.status)))
//!         } else {
//!             Ok(Verdict::fail("UnexpectedStatus", format!("status {}, expected {}", response.status, settings.status)))
//!         }
//!     }
//! }
//!
//! sluice_gate::export!(Answers);
//! ```
//!
//! With `crate-type = ["cdylib"]` in the manifest, `cargo build --target wasm32-unknown-unknown` makes a
//! module of it, and `wasm-tools component new` the component. Unused imports do not end up in it, so that
//! what a component imports is what it needs.
//!
//! A panic ends the trial as an error; its text is in the trial's log.

mod http;
mod verdict;

use std::time::Duration;

use serde::de::DeserializeOwned;

pub use self::{
    bindings::{
        exports::sluice::gate::evaluator::{Description, Later, Problem, Reason, Trouble, Verdict},
        sluice::gate::{
            probe::{Failure, Response},
            trial::{Role, Target},
        },
    },
    http::{Request, send_all},
};
use bindings::{exports::sluice::gate::evaluator::Guest, sluice::gate::trial};

/// The contract, as the generator of bindings writes it.
#[doc(hidden)]
#[allow(
    missing_docs,
    unsafe_code,
    clippy::all,
    reason = "generated: values are lifted and lowered by hand-laid pointers"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "gate",
        export_macro_name: "export_component",
        pub_export_macro: true,
        default_bindings_module: "sluice_gate::bindings",
    });
}

/// A check of an upgrade.
pub trait Gate {
    /// The settings of one use of this gate, read from JSON. Refuse unknown fields.
    type Settings: DeserializeOwned;

    /// Says what this gate is. Asked once, when the plugin is loaded.
    fn describe() -> Description;

    /// What a schema cannot say of settings that fit it. Empty if nothing is wrong.
    fn validate(settings: &Self::Settings) -> Vec<Problem> {
        let _ = settings;
        Vec::new()
    }

    /// Judges the candidate.
    ///
    /// # Errors
    /// [`Trouble`] where the gate learnt nothing about the candidate. A bad candidate is `Ok(Verdict::fail(..))`.
    fn evaluate(settings: Self::Settings) -> Result<Verdict, Trouble>;
}

/// Makes `$gate` the gate of this component. Once per crate.
#[macro_export]
macro_rules! export {
    ($gate:ty) => {
        // Other targets have no components; there the crate is a library with tests.
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::Exported<$gate>;
    $crate::bindings::export_component!(Exported with_types_in $crate::bindings);
        };
    };
}

/// What stands between the contract and a [`Gate`].
#[doc(hidden)]
pub struct Exported<G>(std::marker::PhantomData<G>);

impl<G: Gate> Guest for Exported<G> {
    fn describe() -> Description {
        log_panics();
        G::describe()
    }

    fn validate(settings: String) -> Vec<Problem> {
        log_panics();
        match serde_json::from_str(&settings) {
            Ok(settings) => G::validate(&settings),
            Err(error) => vec![Problem { pointer: String::new(), message: error.to_string() }],
        }
    }

    fn evaluate(settings: String) -> Result<Verdict, Trouble> {
        log_panics();
        G::evaluate(serde_json::from_str(&settings).map_err(|error| Trouble::lasting(error.to_string()))?)
    }
}

/// Sends the text of a panic to the trial's log: there is no standard error, and a trap alone says nothing.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| trial::log("error", &panic.to_string(), &[])));
}

/// How much a line of log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the gate's author.
    Debug,
    /// What happened.
    Info,
    /// What may be wrong.
    Warn,
    /// What is wrong.
    Error,
}

/// Writes a line into the trial's log. A trial keeps 64 KiB of it.
pub fn log(level: Level, message: &str, fields: &[(&str, &str)]) {
    let level = match level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    let fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    trial::log(level, message, &fields);
}

/// Records a number that justifies the verdict, and what it was compared with. Eight names are kept.
pub fn measure(name: &str, value: f64, unit: &str, threshold: Option<f64>) {
    trial::measure(name, value, unit, threshold);
}

/// Waits without using up CPU time. The trial's time limit goes on.
pub fn sleep(duration: Duration) {
    trial::sleep(u32::try_from(duration.as_millis()).unwrap_or(u32::MAX));
}

/// Time until the host ends this trial.
#[must_use]
pub fn remaining() -> Duration {
    Duration::try_from_secs_f64(trial::remaining() / 1e3).unwrap_or_default()
}

/// What this gate may send requests to.
#[must_use]
pub fn targets() -> Vec<Target> {
    trial::targets()
}

/// The DataPlane as that side was rendered from, as JSON, if the gate may know it.
#[must_use]
pub fn manifest(role: Role) -> Option<String> {
    trial::manifest(role)
}
