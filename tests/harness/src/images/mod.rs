//! Container images made from local files: no registry is needed, and none is asked.
//!
//! `archive` writes an image, `packages` fetches what goes into it from Debian, `gateway` is the stand-in
//! gateway and `operator` the operator's own image.

mod archive;
mod gateway;
mod operator;
pub(crate) mod packages;

use std::path::PathBuf;

use anyhow::Result;

pub use archive::{Config, Image};
pub use gateway::{BAD, TAGS as GATEWAY_TAGS, gateway};
pub use operator::{linked_libraries, operator};

use crate::workspace;

/// What holds a Pod's namespaces while its containers come and go.
pub const PAUSE: &str = "docker.io/library/pause:local";

/// Writes the pause image and returns its archive.
pub fn pause() -> Result<PathBuf> {
    let busybox = packages::fetch("busybox-static")?.join("bin/busybox");
    let mut image = Image::new(PAUSE);
    image.copy(&busybox, "bin/busybox")?;
    image.write(&Config { entrypoint: &["/bin/busybox", "sleep", "infinity"], ..Config::default() })
}

fn folder() -> PathBuf {
    workspace::target().join("cluster/images")
}
