//! The operator's image: its binary, the libraries it is linked to, and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Config, Image};
use crate::command::run;

/// The image's name in a Pod's spec.
const REFERENCE: &str = "docker.io/library/sluice-operator:dev";

/// Writes the image of the given binary and returns its archive.
pub fn operator(binary: &Path) -> Result<PathBuf> {
    let mut image = Image::new(REFERENCE);
    image.copy(binary, "usr/local/bin/sluice")?;
    for library in linked_libraries(binary)? {
        image.copy(Path::new(&library), library.trim_start_matches('/'))?;
    }
    image.folder("tmp")?;
    image.write(&Config { entrypoint: &["/usr/local/bin/sluice"], user: "65532", ..Config::default() })
}

/// What a binary is linked to, by ldd's answer: `libc.so.6 => /lib/.../libc.so.6 (0x...)`, and the loader without an arrow.
pub fn linked_libraries(binary: &Path) -> Result<Vec<String>> {
    let answer = run(Command::new("ldd").arg(binary))?;
    let paths = answer.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(str::to_owned).collect())
}
