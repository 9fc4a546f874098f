//! `cargo demo`: the walk of the README, played on a real cluster, a line per step.
//!
//! `play` is the story; `stage` is what its steps are told with; here is what surrounds it: the setting-up, the
//! report and the clearing-up, which also happens on Ctrl-C.

mod play;
mod stage;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
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

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

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
    let outcome = match &options.remote {
        None => run_local(options),
        Some(remote) => run_remote(options, remote),
    };
    if INTERRUPTED.load(Ordering::SeqCst) {
        // What failed did so for the interruption, whose clearing-up ends the process.
        loop {
            std::thread::park();
        }
    }
    outcome
}

/// On Ctrl-C clears up and ends the process, whatever it is doing.
fn on_interrupt(clear: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            INTERRUPTED.store(true, Ordering::SeqCst);
            println!("\nInterrupted; clearing up.");
            if let Err(error) = clear() {
                eprintln!("not everything could be cleared up: {error:#}");
            }
            // As shells report what ended by SIGINT.
            std::process::exit(130);
        }
    });
    Ok(())
}

fn run_local(options: &Options) -> Result<()> {
    let cluster = Cluster::default();
    let was_up = cluster.health().is_ok();
    let keep = options.keep;
    on_interrupt(move || match (keep, was_up) {
        (true, _) => Ok(()),
        (false, true) => stage::clear(&Kubectl::local(&Cluster::default()), NAMESPACE),
        (false, false) => Cluster::default().down(),
    })?;
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
    let kubectl = Kubectl::context(&remote.context);
    let (keep, there) = (options.keep, kubectl.clone());
    on_interrupt(move || if keep { Ok(()) } else { stage::clear(&there, NAMESPACE) })?;
    build_plugins()?;
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

/// Plays until the end or a failure, and clears up after both.
async fn perform(stage: &Stage, options: &Options) -> Result<()> {
    stage::clear(stage.kubectl(), NAMESPACE)?;
    let played = play::all(stage, options).await;
    write_report(stage)?;
    if played.is_err() {
        diagnosis::print(stage.kubectl(), NAMESPACE);
    }
    if options.keep {
        println!("Kept: namespace {NAMESPACE}; `kubectl --namespace {NAMESPACE} get dataplanes,promotions` shows it.");
        println!("On this machine's cluster kubectl runs behind `cargo cluster exec --`.");
    } else {
        stage::clear(stage.kubectl(), NAMESPACE)?;
    }
    played.context("the walk did not come to its end")
}

fn write_report(stage: &Stage) -> Result<()> {
    let steps = stage.steps();
    let ok = steps.iter().all(|step| step.ok);
    let path = workspace::reports().join("demo.json");
    fs::create_dir_all(workspace::reports())?;
    fs::write(&path, format!("{:#}\n", json!({ "ok": ok, "steps": steps })))
        .with_context(|| format!("cannot write {}", path.display()))
}
