//! `cargo plugins`: builds every gate and prints what came of it; with `--guests`, those in other languages instead.

use std::{io::Write as _, path::Path};

use anyhow::bail;
use sluice_plugins::guests::Guest;

fn main() -> anyhow::Result<()> {
    // This crate stands two levels below the root.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let gates = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => sluice_plugins::build(&root)?,
        ["--guests"] => Guest::ALL.into_iter().map(|guest| guest.build(&root)).collect::<Result<_, _>>()?,
        other => bail!("{other:?} is not understood; write `cargo plugins` or `cargo plugins --guests`"),
    };
    let mut out = std::io::stdout().lock();
    for built in gates {
        let path = built.path.strip_prefix(&root).unwrap_or(&built.path).display();
        writeln!(out, "{path}  {} bytes, {} bytes zipped", built.size, built.zipped)?;
    }
    Ok(())
}
