//! `cargo verify`: every suite in order, the time each took, and one count at the end.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::cluster::Cluster;
use crate::command::{last_lines, run};
use crate::install::{self, Build, OPTIMISED, cargo};
use crate::progress::Step;
use crate::workspace;

/// What is verified, in this order: quick ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// The source is formatted.
    Format,
    /// No warning of the compiler or of clippy.
    Lints,
    /// Advisories, licences, sources and bans of the dependencies; needs cargo-deny, and RustSec's list from the network:
    /// where nobody could look, nobody can say that there is none.
    Dependencies,
    /// The gates are built as WebAssembly components.
    Plugins,
    /// Tests beside the code, optimised: one of them is the model test, which goes through more states here.
    Unit,
    /// Tests that need more than one module, but no cluster.
    Integration,
    /// Examples in the documentation.
    Examples,
    /// Tests on a real Kubernetes of this machine.
    Cluster,
}

/// States that the model test has to go through; in `cargo test` it is content with fewer.
const STATES: usize = 1_000_000;

/// What tells it.
const MODEL_STATES: &str = "MODEL_STATES";

/// What to verify.
pub struct Choice {
    /// Only these; everything if empty.
    pub only: Vec<Suite>,
    /// Leave out what needs a cluster.
    pub no_cluster: bool,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
}

/// How many passed and failed; a suite without tests of its own counts as one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
}

/// Runs the chosen suites and prints the count.
pub fn verify(choice: &Choice) -> Result<Count> {
    let mut total = Count::default();
    for suite in Suite::value_variants().iter().copied().filter(|suite| choice.includes(*suite)) {
        let count = match suite {
            Suite::Cluster => on_cluster(choice)?,
            _ => run_suite(suite, choice)?,
        };
        total.passed += count.passed;
        total.failed += count.failed;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(total)
}

impl Choice {
    fn includes(&self, suite: Suite) -> bool {
        let wanted = self.only.contains(&suite) || self.only.is_empty();
        wanted && !(self.no_cluster && suite == Suite::Cluster)
    }
}

/// Starts what the tests need; a cluster that was down before is down afterwards.
fn on_cluster(choice: &Choice) -> Result<Count> {
    let cluster = Cluster::default();
    cluster.with_it_up(|| {
        install::without_operator(&cluster, Build::Quick)?;
        run_suite(Suite::Cluster, choice)
    })
}

fn run_suite(suite: Suite, choice: &Choice) -> Result<Count> {
    if suite == Suite::Dependencies && !cargo_deny_is_installed() {
        println!("  dependencies: skipped, cargo-deny is not installed (cargo install --locked cargo-deny)");
        return Ok(Count::default());
    }
    let name = suite.to_possible_value().context("every suite has a name")?.get_name().to_owned();
    let log = log(&name)?;
    let step = Step::begin(&name);
    let file = File::create(&log)?;
    let status =
        command(suite, choice).stdout(file.try_clone()?).stderr(file).status().context("cannot start cargo")?;
    step.end(status.success());

    let text = fs::read(&log)?;
    let count = count(&String::from_utf8_lossy(&text), status.success());
    if count.failed > 0 {
        println!("{}\nThe whole of it: {}", last_lines(&text, 60), log.display());
    }
    Ok(count)
}

fn command(suite: Suite, choice: &Choice) -> Command {
    let mut cargo = cargo();
    match suite {
        Suite::Format => cargo.args(["fmt", "--all", "--check", "--", "--color=never"]),
        Suite::Lints => cargo.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        Suite::Dependencies => cargo.args(["deny", "check", "advisories", "licenses", "bans", "sources"]),
        Suite::Plugins => cargo.args(["plugins"]),
        // --no-fail-fast: one count of everything, not of everything up to the first failure.
        Suite::Unit => {
            cargo = unit_command(Build::Optimised);
            cargo.env(MODEL_STATES, STATES.to_string()).args(["--no-fail-fast", "--"])
        }
        Suite::Integration => {
            cargo.args(["test", "--workspace", "--no-fail-fast", "--test", "it", "--", "--skip", "cluster::"])
        }
        Suite::Examples => cargo.args(["test", "--workspace", "--no-fail-fast", "--doc", "--"]),
        Suite::Cluster => cargo.args(["test", "--workspace", "--no-fail-fast", "--test", "it", "--"]),
    };
    match (&choice.filter, suite) {
        // Tests take several filters as alternatives, so that the user's stands alone.
        (Some(filter), Suite::Unit | Suite::Integration | Suite::Examples | Suite::Cluster) => cargo.arg(filter),
        (None, Suite::Cluster) => cargo.arg("cluster::"),
        _ => &mut cargo,
    };
    cargo
}

/// The tests beside the code. Arguments may follow, and after `--` those of the tests.
pub fn unit_command(build: Build) -> Command {
    let mut cargo = cargo();
    // Of the whole workspace: for one package of it, half of the dependencies would be built with other features.
    cargo.args(["test", "--workspace", "--lib"]);
    if build == Build::Optimised {
        cargo.args(["--config", OPTIMISED]);
    }
    cargo
}

/// The model test, until it has seen so many states.
pub fn model_command(states: usize, build: Build) -> Command {
    let mut cargo = unit_command(build);
    cargo.env(MODEL_STATES, states.to_string()).args(["--", "dataplane::tests::model::no_way_breaks_a_promise"]);
    cargo
}

/// Runs the model test; how many states it has seen.
pub fn model() -> Result<usize> {
    run(&mut model_command(STATES, Build::Optimised))?;
    let report = fs::read_to_string(workspace::reports().join("model.txt"))?;
    let states = report.split(' ').next().and_then(|number| number.parse().ok());
    states.context("the model test reported no states")
}

fn cargo_deny_is_installed() -> bool {
    cargo().args(["deny", "--version"]).output().is_ok_and(|output| output.status.success())
}

fn log(name: &str) -> Result<PathBuf> {
    let dir = workspace::reports().join("verify");
    fs::create_dir_all(&dir)?;
    Ok(dir.join(format!("{name}.log")))
}

/// Adds up the lines that begin with `test result:`.
fn count(text: &str, success: bool) -> Count {
    let mut count = Count::default();
    let mut found = false;
    for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        found = true;
        count.passed += number_before(line, " passed");
        count.failed += number_before(line, " failed");
    }
    match (found, success) {
        (false, true) => count.passed = 1,
        // Also when all tests passed and cargo says otherwise, as when a later binary does not build.
        (_, false) if count.failed == 0 => count.failed = 1,
        _ => {}
    }
    count
}

fn number_before(line: &str, word: &str) -> usize {
    let before = line.split(word).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{Count, count};

    #[test]
    fn counts_every_result_line() {
        let text = "running 3 tests\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";
        assert_eq!(count(text, false), Count { passed: 3, failed: 3 });
    }

    #[test]
    fn a_suite_without_tests_is_one() {
        assert_eq!(count("", true), Count { passed: 1, failed: 0 });
        assert_eq!(count("error: could not compile", false), Count { passed: 0, failed: 1 });
    }

    #[test]
    fn a_binary_that_does_not_build_is_not_overlooked() {
        let text =
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\nerror: could not compile";
        assert_eq!(count(text, false), Count { passed: 2, failed: 1 });
    }
}
