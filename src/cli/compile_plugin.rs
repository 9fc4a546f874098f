//! `sluice compile-plugin`: what the gate host starts to have a component compiled. Nobody else has a use for it.

use std::io;

use clap::Args;

use super::Failure;
use crate::{gate, model::trial::Digest};

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Digest of the component on stdin
    #[arg(value_name = "SHA256")]
    digest: String,
}

/// Compiles one component.
pub(super) fn run(flags: Flags) -> Result<(), Failure> {
    let compiled = gate::compile(&Digest::from(flags.digest), io::stdin().lock(), io::stdout());
    compiled.map_err(|error| Failure::new("the plugin was not compiled", error))
}
