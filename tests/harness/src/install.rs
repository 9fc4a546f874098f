//! Installs the operator as an administrator would: definitions, manifests, and locally its image.

use std::process::Command;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::command::run;
use crate::kubectl::Kubectl;
use crate::operator::{NAME, NAMESPACE};
use crate::progress::step;
use crate::{images, workspace};

/// The definitions need it: that of a DataPlane holds a Pod's whole schema, too long for kubectl's own annotation.
const SERVER_SIDE: [&str; 3] = ["apply", "--server-side", "--force-conflicts"];

/// Builds the operator and has it run on the local cluster.
pub fn operator(cluster: &Cluster) -> Result<()> {
    step("operator built", || build(Build::Quick))?;
    step("operator image", || cluster.import(&images::operator(&workspace::operator_binary())?))?;
    let kubectl = Kubectl::local(cluster);
    step("operator installed", || {
        let runs_already = kubectl.namespaced(NAMESPACE).run(&["get", "deployment", NAME]).is_ok();
        apply(&kubectl)?;
        if runs_already {
            // The tag stays while the image behind it changes: only new Pods see the new one.
            kubectl.namespaced(NAMESPACE).run(&["rollout", "restart", "deployment", NAME])?;
        }
        await_ready(&kubectl)
    })
}

/// Builds the operator and gives the local cluster its definitions and rights, but no running operator: a test
/// starts one of its own, for its own namespace.
pub fn without_operator(cluster: &Cluster, how: Build) -> Result<()> {
    step("operator built", || build(how))?;
    let kubectl = Kubectl::local(cluster);
    step("definitions and rights installed", || {
        apply(&kubectl)?;
        kubectl.namespaced(NAMESPACE).run(&["scale", "deployment", NAME, "--replicas=0"])?;
        let gone = ["wait", "--for=delete", "pod", "--selector=app.kubernetes.io/name=sluice", "--timeout=60s"];
        kubectl.namespaced(NAMESPACE).run(&gone)?;
        Ok(())
    })
}

/// Installs the operator with an image that the cluster can pull.
pub fn on(kubectl: &Kubectl, image: &str) -> Result<()> {
    apply(kubectl)?;
    kubectl.namespaced(NAMESPACE).run(&["set", "image", &format!("deployment/{NAME}"), &format!("*={image}")])?;
    await_ready(kubectl)
}

/// Cargo, in the workspace, as if typed there.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What `cargo run` tells this program about itself must not reach the next cargo: build scripts ask for it, and
    // half of the dependencies would be built anew each time the one or the other is used.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    cargo.current_dir(workspace::root());
    cargo
}

/// Cargo's setting for what is measured: nobody ships a binary that is not optimised.
pub const OPTIMISED: &str = "profile.dev.package.sluice-operator.opt-level=2";

/// How the operator is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// Quick to build again: for tests.
    Quick,
    /// Optimised, which takes minutes: for what is measured.
    Optimised,
}

fn build(build: Build) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["build", "--bin", "sluice"]);
    if build == Build::Optimised {
        cargo.args(["--config", OPTIMISED]);
    }
    run(&mut cargo).map(drop)
}

fn apply(kubectl: &Kubectl) -> Result<()> {
    let deploy = workspace::root().join("deploy");
    let definitions = format!("--filename={}", deploy.join("crds").display());
    kubectl.run(&[&SERVER_SIDE[..], &[&definitions]].concat())?;
    // Not `condition=Established`: that is an error where a definition is so new that it has no conditions.
    let established = "--for=jsonpath={.status.conditions[?(@.type=='Established')].status}=True";
    kubectl.run(&["wait", established, "--timeout=60s", &definitions])?;
    for file in ["operator.yaml", "admission.yaml"] {
        kubectl.run(&["apply", &format!("--filename={}", deploy.join(file).display())])?;
    }
    Ok(())
}

fn await_ready(kubectl: &Kubectl) -> Result<()> {
    kubectl.namespaced(NAMESPACE).run(&["rollout", "status", "deployment", NAME, "--timeout=120s"])?;
    Ok(())
}
