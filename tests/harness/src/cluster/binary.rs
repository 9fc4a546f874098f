//! Builds the programs that a cluster is made of from Go modules of this repository, when they are absent or changed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::prerequisites;
use crate::progress::Step;
use crate::{command, workspace};

/// The sources, relative to the Go module.
const SOURCES: [&str; 3] = ["main.go", "go.mod", "go.sum"];

/// A program, and the Go module that it is built from.
pub struct Program {
    /// The file's name.
    name: &'static str,
    /// Its module, relative to the workspace.
    module: &'static str,
    /// What a person waits for.
    step: &'static str,
    /// The dependency whose version is the program's own, and the variable that has to be told.
    version: (&'static str, &'static str),
    /// Other names the program goes by.
    aliases: &'static [&'static str],
}

/// Every part of Kubernetes; called by its other name it is kubectl.
pub const KUBERNETES: Program = Program {
    name: "cluster",
    module: "tests/cluster",
    step: "Kubernetes, built from source (5 to 10 minutes, once)",
    version: ("k8s.io/kubernetes", "k8s.io/component-base/version.gitVersion"),
    aliases: &["kubectl"],
};

/// What plays the kubelet of a node that is not there.
pub const KWOK: Program = Program {
    name: "kwok",
    module: "tests/cluster/kwok",
    step: "kwok, built from source (1 to 2 minutes, once)",
    version: ("sigs.k8s.io/kwok", "sigs.k8s.io/kwok/pkg/consts.Version"),
    aliases: &[],
};

/// Builds a program into `bin` if need be.
pub fn ensure(program: &Program, bin: &Path) -> Result<()> {
    let module = workspace::root().join(program.module);
    let binary = bin.join(program.name);
    let stamp = binary.with_extension("sources");
    let sources = digest(&module)?;
    if binary.exists() && fs::read_to_string(&stamp).is_ok_and(|built| built == sources) {
        return Ok(());
    }
    prerequisites::ensure_go()?;
    fs::create_dir_all(bin)?;

    let step = Step::begin(program.step);
    let built = build(program, &module, &binary, &step);
    step.end(built.is_ok());
    built?;

    for alias in program.aliases {
        let alias = bin.join(alias);
        let _ = fs::remove_file(&alias);
        std::os::unix::fs::symlink(program.name, alias)?;
    }
    Ok(fs::write(stamp, sources)?)
}

fn build(program: &Program, module: &Path, binary: &Path, step: &Step) -> Result<()> {
    let (dependency, variable) = program.version;
    let version = version(module, dependency)?;
    let mut go = Command::new("go");
    go.current_dir(module);
    go.args(["build", "-v", "-trimpath", "-ldflags"]);
    // Without the version, every part calls itself v0.0.0-master.
    go.arg(format!("-s -w -X {variable}={version}"));
    go.arg("-o").arg(binary).arg(".");

    let mut child = go.stderr(Stdio::piped()).spawn().context("cannot start go")?;
    let mut printed = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // -v prints a line per package: the only progress there is.
        for line in BufReader::new(stderr).lines() {
            printed.push(line?);
            step.note(&format!("{} packages", printed.len()));
        }
    }
    if !child.wait()?.success() {
        let end = command::last_lines(printed.join("\n").as_bytes(), 20);
        bail!("`{}` in {} failed:\n{end}", command::line(&go), module.display());
    }
    Ok(())
}

fn version(module: &Path, dependency: &str) -> Result<String> {
    let path = module.join("go.mod");
    let go_mod = fs::read_to_string(&path)?;
    let mut required = go_mod.lines().filter_map(|line| line.trim().strip_prefix(dependency)?.strip_prefix(' '));
    required.next().map(str::to_owned).with_context(|| format!("{} does not require {dependency}", path.display()))
}

fn digest(module: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for source in SOURCES {
        let path = module.join(source);
        hash.update(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    Ok(hex(&hash.finalize()))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
