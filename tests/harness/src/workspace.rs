//! Where things are: every path of the repository that the harness reads or writes.

use std::path::{Path, PathBuf};

/// The workspace's root folder.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest)
}

/// Everything that can be made again.
pub fn target() -> PathBuf {
    root().join("target")
}

/// Where the reports of a run go, for people and for machines.
pub fn reports() -> PathBuf {
    target().join("reports")
}

/// The operator as `cargo build` leaves it.
pub fn operator_binary() -> PathBuf {
    target().join("debug/sluice")
}
