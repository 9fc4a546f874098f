//! The binary `sluice`: parses the command line, runs one command, turns its end into an exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match sluice::cli::run(sluice::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            #[expect(clippy::print_stderr, reason = "the last words of a command, which may not have set up logs")]
            {
                eprintln!("{failure}");
            }
            ExitCode::FAILURE
        }
    }
}
