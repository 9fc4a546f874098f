//! The command line of the harness: `cargo cluster`, and what else the aliases in `.cargo/config.toml` name.

// A command line prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use sluice_harness::cluster::{self, Cluster};
use sluice_harness::demo::{self, Remote};
use sluice_harness::figures::{self, Figure};
use sluice_harness::verify::{self, Choice, Suite};

/// The local cluster, the demo and the test runner of Sluice.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A real single-node Kubernetes on this machine (needs Linux and root).
    Cluster {
        /// The cluster whose Pods are played, which `cargo figures scale` measures on.
        #[arg(long, global = true)]
        simulated: bool,
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Play the walk: a gateway is upgraded, a gate lets a good release pass and stops a bad one.
    ///
    /// On the cluster of this machine, which is started for it; with --context on any other.
    Demo {
        /// Leave everything as it is at the end, to look at.
        #[arg(long)]
        keep: bool,
        /// Play on the cluster of this context of your kubeconfig.
        #[arg(long, value_name = "NAME", requires = "operator_image")]
        context: Option<String>,
        /// The operator's image, from where that cluster can pull it.
        #[arg(long, value_name = "IMAGE", requires = "context")]
        operator_image: Option<String>,
        /// The release that passes the gate.
        #[arg(long, value_name = "IMAGE", default_value = "kong:3.10")]
        good: String,
        /// The release that turns ready and fails the gate.
        #[arg(long, value_name = "IMAGE", default_value = "kong:3.11")]
        bad: String,
    },
    /// Run every suite in order, and print the time each took and one count at the end.
    Verify {
        /// Only this suite; may be given several times.
        #[arg(long, value_name = "SUITE")]
        only: Vec<Suite>,
        /// Leave out what needs the cluster.
        #[arg(long)]
        no_cluster: bool,
        /// Only tests whose name contains this.
        #[arg(last = true)]
        filter: Option<String>,
    },
    /// Measure, print a table, and write target/reports/NAME.json; an error where a target is missed.
    Figures {
        /// Only these.
        #[arg(value_name = "NAME")]
        figures: Vec<Figure>,
        /// Instead: what users of this Service of the local cluster get, whatever is done to it meanwhile.
        #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "figures")]
        service: Option<String>,
        /// For how long, in seconds.
        #[arg(long, default_value = "60", requires = "service")]
        seconds: u64,
    },
    /// Print the completion script of a shell.
    Completions {
        /// The shell to print it for.
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Start it, unless it is up and well. The first time, Kubernetes is built from source.
    Up,
    /// Stop it and take away all it made.
    Down,
    /// Say part by part what runs; an error unless all is well.
    Status,
    /// Run a program inside: kubectl is on its path and has an administrator's rights.
    Exec {
        /// The program and its arguments, for example `-- kubectl get pods -A`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Give LoadBalancer Services their addresses (a part of the cluster, started by `up`).
    #[command(hide = true)]
    LoadBalancer,
}

fn main() -> ExitCode {
    run(Arguments::parse().command).unwrap_or_else(|error| {
        // For people: the causes in one line, and no backtrace.
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Cluster { simulated, command } => {
            run_cluster(&if simulated { Cluster::simulated() } else { Cluster::default() }, command)
        }
        Command::Demo { keep, context, operator_image, good, bad } => {
            let remote =
                context.zip(operator_image).map(|(context, operator_image)| Remote { context, operator_image });
            demo::run(&demo::Options { keep, remote, good, bad })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify { only, no_cluster, filter } => {
            let count = verify::verify(&Choice { only, no_cluster, filter })?;
            Ok(if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Figures { figures, service, seconds } => {
            match service {
                Some(service) => figures::users(&service, Duration::from_secs(seconds))?,
                None => figures::run(&figures)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "sluice-harness", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_cluster(cluster: &Cluster, command: ClusterCommand) -> Result<ExitCode> {
    match command {
        ClusterCommand::Up => {
            cluster.up()?;
            println!("The cluster is up: cargo cluster exec -- kubectl get pods --all-namespaces");
        }
        ClusterCommand::Down => cluster.down()?,
        ClusterCommand::Status => return Ok(print_status(cluster)),
        ClusterCommand::Exec { command } => {
            let status = cluster.exec(&command[0], &command[1..])?;
            return Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
        }
        ClusterCommand::LoadBalancer => {
            cluster.inside(|| async { cluster::run_load_balancer(cluster.client().await?).await })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_status(cluster: &Cluster) -> ExitCode {
    for part in cluster.status() {
        let state = part.pid.map_or("not running".to_owned(), |pid| format!("running, pid {pid}"));
        println!("{:<24} {state:<20} {}", part.name, part.log.display());
    }
    match cluster.health() {
        Ok(()) => {
            println!("The cluster is up.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("The cluster is not up: {error:#}");
            ExitCode::FAILURE
        }
    }
}
