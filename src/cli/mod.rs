//! The command line. Each command has its own file; what goes wrong is told as what, where and what to do next.

mod compile_plugin;
mod crds;
mod failure;
mod gate_host;
mod operator;
mod preflight;
mod process;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub use failure::Failure;

/// Kong DataPlanes whose blue/green upgrades are judged by WebAssembly gates.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    about = "Kong DataPlanes whose blue/green upgrades are judged by WebAssembly gates",
    propagate_version = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator
    Operator(Box<operator::Flags>),
    /// Run the gates of an operator
    GateHost(Box<gate_host::Flags>),
    /// Compile a plugin from stdin to stdout, confined, for the gate host that starts it
    #[command(name = crate::gate::COMMAND, hide = true)]
    CompilePlugin(compile_plugin::Flags),
    /// Print the custom resource definitions as YAML
    Crds,
    /// Print a completion script
    #[command(after_help = "Example: source <(sluice completion bash)")]
    Completion {
        /// The shell to print it for
        shell: Shell,
    },
}

/// Runs one command to its end.
///
/// # Errors
/// What went wrong, for a person to read.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Operator(flags) => operator::run(*flags),
        Command::GateHost(flags) => gate_host::run(*flags),
        Command::CompilePlugin(flags) => compile_plugin::run(flags),
        Command::Crds => print(&crds::yaml()?),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sluice", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// To stdout. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new("cannot write to stdout", error).next("check that the disk or the pipe takes more"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_operator_and_its_gate_host_run_without_any_flag() {
        assert!(Cli::try_parse_from(["sluice", "operator"]).is_ok());
        assert!(Cli::try_parse_from(["sluice", "gate-host"]).is_ok());
    }
}
