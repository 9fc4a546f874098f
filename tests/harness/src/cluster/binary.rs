//! Builds the one binary that holds every part of Kubernetes, when it is absent or its sources changed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::prerequisites;
use crate::progress::Step;
use crate::{command, workspace};

/// The sources, relative to the Go module.
const SOURCES: [&str; 3] = ["main.go", "go.mod", "go.sum"];

/// Builds the binary into `bin` if need be, and returns its path.
pub fn ensure(bin: &Path) -> Result<PathBuf> {
    let module = workspace::root().join("tests/cluster");
    let binary = bin.join("cluster");
    let stamp = bin.join("cluster.sources");
    let sources = digest(&module)?;
    if binary.exists() && fs::read_to_string(&stamp).is_ok_and(|built| built == sources) {
        return Ok(binary);
    }
    prerequisites::ensure_go()?;
    fs::create_dir_all(bin)?;

    let step = Step::begin("Kubernetes, built from source (5 to 10 minutes, once)");
    let built = build(&module, &binary, &step);
    step.end(built.is_ok());
    built?;

    // Called by this name, the binary is kubectl.
    let kubectl = bin.join("kubectl");
    let _ = fs::remove_file(&kubectl);
    std::os::unix::fs::symlink("cluster", kubectl)?;
    fs::write(stamp, sources)?;
    Ok(binary)
}

fn build(module: &Path, binary: &Path, step: &Step) -> Result<()> {
    let version = kubernetes_version(module)?;
    let mut go = Command::new("go");
    go.current_dir(module);
    go.args(["build", "-v", "-trimpath", "-ldflags"]);
    // Without the version, every part calls itself v0.0.0-master.
    go.arg(format!("-s -w -X k8s.io/component-base/version.gitVersion={version}"));
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

fn kubernetes_version(module: &Path) -> Result<String> {
    let go_mod = fs::read_to_string(module.join("go.mod"))?;
    let required = go_mod.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    required.map(str::to_owned).context("tests/cluster/go.mod does not require k8s.io/kubernetes")
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
