//! `cargo plugins`: builds every gate and prints what came of it.

use std::{io::Write as _, path::Path};

fn main() -> anyhow::Result<()> {
    // This crate stands two levels below the root.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let mut out = std::io::stdout().lock();
    for built in sluice_plugins::build(&root)? {
        let path = built.path.strip_prefix(&root).unwrap_or(&built.path).display();
        writeln!(out, "{path}  {} bytes, {} bytes zipped", built.size, built.zipped)?;
    }
    Ok(())
}
