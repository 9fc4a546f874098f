//! Installs the operator as an administrator would: its image, its CRDs, its manifests.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::command::run;
use crate::operator::NAMESPACE;
use crate::progress::step;
use crate::{images, workspace};

/// Builds the operator, installs it on the local cluster and waits until it is ready.
pub fn operator(cluster: &Cluster) -> Result<()> {
    step("operator built", build)?;
    step("operator image", || cluster.import(&images::operator(&workspace::operator_binary())?))?;
    step("operator installed", || {
        apply(&|| kubectl(cluster))?;
        // The tag stays while the image behind it changes: only new Pods see the new one.
        run(kubectl(cluster).args(["--namespace", NAMESPACE, "rollout", "restart", "deployment"]))?;
        await_ready(&|| kubectl(cluster))
    })
}

/// Builds the operator's binary.
pub fn build() -> Result<()> {
    run(cargo().args(["build", "--bin", "sluice"]))?;
    Ok(())
}

/// Applies the CRDs, then what needs them.
pub fn apply(kubectl: &dyn Fn() -> Command) -> Result<()> {
    let crds = workspace::target().join("crds.yaml");
    std::fs::write(&crds, run(Command::new(workspace::operator_binary()).arg("crds"))?)?;
    // Server-side: the CRD of a DataPlane holds a Pod's whole schema, too long for kubectl's own annotation.
    run(kubectl().args(["apply", "--server-side", "--force-conflicts", "--filename"]).arg(&crds))?;
    run(kubectl().args(["wait", "--for=condition=Established", "--timeout=60s", "--filename"]).arg(&crds))?;
    run(kubectl().args(["apply", "--filename"]).arg(manifests()))?;
    Ok(())
}

/// Waits until the operator's Deployment runs what was applied last.
pub fn await_ready(kubectl: &dyn Fn() -> Command) -> Result<()> {
    run(kubectl().args(["--namespace", NAMESPACE, "rollout", "status", "deployment", "--timeout=120s"]))?;
    Ok(())
}

/// Cargo, in the workspace.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root());
    cargo
}

fn kubectl(cluster: &Cluster) -> Command {
    let mut kubectl = cluster.command("kubectl");
    kubectl.envs(cluster.environment());
    kubectl
}

fn manifests() -> std::path::PathBuf {
    Path::new(workspace::root()).join("deploy/operator.yaml")
}
