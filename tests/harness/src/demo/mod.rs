//! `cargo demo`: the walk of the README, played on a real cluster, a line per step.
//!
//! `play` is the story; `stage` is what its steps are told with; here is what surrounds it: the setting-up, the
//! report and the clearing-up, which also happens on Ctrl-C.

mod play;
mod stage;

use std::fs;

use anyhow::{Context, Result, bail};
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use serde_json::json;

use crate::cluster::Cluster;
use crate::install::{self, cargo};
use crate::kubectl::Kubectl;
use crate::progress::step;
use crate::{command, diagnosis, workspace};
use stage::{Reach, Stage};

/// Where it is played.
const NAMESPACE: &str = "sluice-demo";

/// What to play, and where.
pub struct Options {
    /// Leave everything as it is at the end.
    pub keep: bool,
    /// Another cluster than that of this machine.
    pub remote: Option<Remote>,
    /// The release that passes.
    pub good: String,
    /// The release that fails.
    pub bad: String,
}

/// Another cluster.
pub struct Remote {
    /// A context of the user's kubeconfig.
    pub context: String,
    /// The operator's image there.
    pub operator_image: String,
}

/// Sets everything up, plays, and writes the report; an error if a step failed.
pub fn run(options: &Options) -> Result<()> {
    match &options.remote {
        None => run_local(options),
        Some(remote) => run_remote(options, remote),
    }
}

fn run_local(options: &Options) -> Result<()> {
    let cluster = Cluster::default();
    let was_up = cluster.health().is_ok();
    cluster.up()?;
    build_plugins()?;
    install::operator(&cluster)?;
    let kubectl = Kubectl::local(&cluster);
    let outcome = cluster.inside(|| async {
        let stage = Stage::new(cluster.client().await?, kubectl.clone(), NAMESPACE, Reach::Address);
        perform(&stage, options).await
    });
    if !options.keep && !was_up {
        cluster.down()?;
    }
    outcome
}

fn run_remote(options: &Options, remote: &Remote) -> Result<()> {
    build_plugins()?;
    let kubectl = Kubectl::context(&remote.context);
    step("operator installed", || install::on(&kubectl, &remote.operator_image))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let context = KubeConfigOptions { context: Some(remote.context.clone()), ..Default::default() };
        let client = Client::try_from(Config::from_kubeconfig(&context).await?)?;
        // The addresses of somebody's cluster may be out of reach from here; its apiserver is not.
        perform(&Stage::new(client, kubectl, NAMESPACE, Reach::ApiServer), options).await
    })
}

fn build_plugins() -> Result<()> {
    step("gates built", || command::run(cargo().arg("plugins")).map(drop))
}

/// Plays until the end, a failure or Ctrl-C, and clears up after each of them.
async fn perform(stage: &Stage, options: &Options) -> Result<()> {
    stage.clear()?;
    let played = tokio::select! {
        played = play::all(stage, options) => played,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            println!();
            Err(anyhow::anyhow!("interrupted"))
        }
    };
    write_report(stage)?;
    if let Err(error) = &played
        && error.to_string() != "interrupted"
    {
        diagnosis::print(stage.kubectl(), NAMESPACE);
    }
    if options.keep {
        println!(
            "Kept: namespace {NAMESPACE}. To look around: cargo cluster exec -- kubectl -n {NAMESPACE} get dataplanes,promotions"
        );
    } else {
        stage.clear()?;
    }
    match played {
        Ok(()) => Ok(()),
        Err(error) => bail!(error.context("the walk did not come to its end")),
    }
}

fn write_report(stage: &Stage) -> Result<()> {
    let steps = stage.steps();
    let ok = steps.iter().all(|step| step.ok);
    let path = workspace::reports().join("demo.json");
    fs::create_dir_all(workspace::reports())?;
    fs::write(&path, format!("{:#}\n", json!({ "ok": ok, "steps": steps })))
        .with_context(|| format!("cannot write {}", path.display()))
}
