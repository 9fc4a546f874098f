//! Runs trials. Knows WebAssembly, does not know Kubernetes.

pub mod jobs;

use async_trait::async_trait;
use bytes::Bytes;

use crate::model::trial::{Digest, LoadError, Loaded, Outcome, Problem, Report, Trial};

/// The door to the gate host. In this process or, behind a socket, in a process of its own: callers cannot tell.
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
    /// trial's time limit, with an error outcome where the guest did not end by itself. Dropping the future
    /// cancels the trial.
    async fn run(&self, trial: Trial) -> Report;
}
