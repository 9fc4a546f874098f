//! Runs trials. Knows WebAssembly, does not know Kubernetes.
//!
//! | file | job |
//! |---|---|
//! | `mod` | what a gate host is: [`GateHost`] |
//! | `door` | a gate host in a process of its own, from both sides: [`RemoteGateHost`], [`serve`] |
//! | `runner` | [`LocalGateHost`]: plugins by digest, threads of their own, a permit for every trial |
//! | `plugin` | bytes -> checked, and, once compiled, linked |
//! | `compile` | bytes -> code: a child that compiles, and a cache of what it made |
//! | `offer` | what a guest is linked with: the contract, WASI with nothing behind it, and `wasi:http` where it is allowed |
//! | `reach` | what lies outside an upgrade, as the operator configured it |
//! | `schema` | settings against a plugin's JSON Schema |
//! | `store` | one run: a fresh store, its limits, and what its end means |
//! | `engine` | the engine, its pool and its clock |
//! | `meter`, `limits` | the CPU budget; the memory limit |
//! | `host` | what a guest may call: one file per interface |
//! | `bindings` | the contract as Rust, one file per version, and what answers mean |
//! | `text` | a stranger's words on their way to people |
//! | `turns` | who may run next, fair between namespaces |
//!
//! A run goes `runner` -> `store` -> guest -> `host` and back, and whatever happens on the way is an
//! [`Outcome`]: what is not a verdict is an error, so nothing can pass by breaking.

mod bindings;
mod compile;
mod door;
mod engine;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod host;
mod limits;
mod meter;
mod offer;
mod plugin;
mod reach;
mod room;
mod runner;
mod schema;
mod store;

pub mod jobs;
pub(crate) mod text;
pub mod turns;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

pub use self::{
    compile::{COMMAND, Cache, CacheError, CompileError, Compiler, Key, Workshop, compile},
    door::{RemoteGateHost, serve},
    engine::StartError,
    host::egress::Resolve,
    reach::{Prometheus, Reach},
    runner::{Capacity, LocalGateHost},
};
use crate::model::trial::{Digest, LoadError, Loaded, Outcome, Problem, Report, Trial};

/// Whether a gate host is there, and which one: the next has no plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nobody answers.
    Away,
    /// The so-manieth that this process has seen.
    Here(u64),
}

/// A gate host. In this process or, behind a socket, in a process of its own: callers cannot tell.
#[async_trait]
pub trait GateHost: Send + Sync + 'static {
    /// Checks, compiles and describes `bytes`, and keeps them ready under their digest. Idempotent.
    ///
    /// # Errors
    /// Says why the bytes are not a plugin that can be run here; nothing is kept then.
    async fn load(&self, bytes: Bytes) -> Result<Loaded, LoadError>;

    /// Forgets a plugin. Trials under way finish on their bytes.
    async fn unload(&self, digest: &Digest);

    /// Judges settings: first by the plugin's JSON Schema, then, if that has nothing to say, by the plugin.
    ///
    /// # Errors
    /// An `Outcome::Error` where the plugin is not loaded or did not answer within its limits.
    async fn validate(&self, digest: &Digest, settings: &serde_json::Value) -> Result<Vec<Problem>, Outcome>;

    /// Runs one trial in a fresh store: settings are validated, then the guest evaluates. Always ends by the
    /// trial's time limit, with an error outcome where the guest did not end by itself; waiting for its turn
    /// on a busy host is bounded by the same limit again. Dropping the future cancels the trial.
    async fn run(&self, trial: Trial) -> Report;

    /// Whether the host is there, now and from now on.
    fn presence(&self) -> watch::Receiver<Presence>;
}
