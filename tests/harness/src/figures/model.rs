//! `model`: how many states the model test goes through, and how many of the faults it finds that somebody could put into
//! the operator.
//!
//! A mutant is one change of the source, made in a copy of it. The copy is built beside the workspace, with the same
//! dependencies, and its model test has to fail with a promise that was broken. A change that does not fit any more is an
//! error, and so is a copy that does not build.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::row::{Row, count};
use crate::command::{last_lines, run};
use crate::install::Build;
use crate::progress::{Step, step};
use crate::verify;
use crate::workspace;

/// A way in which somebody could break a promise.
struct Mutant {
    name: &'static str,
    file: &'static str,
    /// Occurs once in the file.
    found: &'static str,
    /// Takes its place.
    instead: &'static str,
}

const MUTANTS: [Mutant; 10] = [
    Mutant {
        name: "skip the check of Pods",
        file: "src/dataplane/plan/mod.rs",
        found: "!there || facts::as_judged(&status.pods, &judged_pods)",
        instead: "!there || facts::as_judged(&status.pods, &status.pods)",
    },
    Mutant {
        name: "skip the pinned digest",
        file: "src/dataplane/plan/judge.rs",
        found: "if !begun.digest.is_empty() => run(begun.digest),",
        instead: "if begun.digest.len() == 1 => run(begun.digest),",
    },
    Mutant {
        name: "honour consent early",
        file: "src/dataplane/plan/phase.rs",
        found: "(Candidate::Silent, true, _) | (_, true, Judgement::Undecided) => Phase::Judging,",
        instead: "(Candidate::Silent, true, _) | (_, true, Judgement::Undecided) if !facts.approved => Phase::Judging,\n        \
                  (Candidate::Silent, true, _) | (_, true, Judgement::Undecided) => Phase::Switching,",
    },
    Mutant {
        name: "skip the conditional write",
        file: "src/dataplane/apply/mod.rs",
        found: "if let Some(version) = version {",
        instead: "if let Some(version) = version.filter(|version| *version == differ::ABSENT) {",
    },
    Mutant {
        name: "accept zero endpoints",
        file: "src/dataplane/plan/facts.rs",
        found: "taking.len() >= usize::try_from(wanted).unwrap_or_default() && taking.is_subset(&own)",
        instead: "wanted >= 0 && taking.is_subset(&own)",
    },
    Mutant {
        name: "forget a rejection",
        file: "src/dataplane/plan/facts.rs",
        found: "if retry(newest).is_some() { Upgrade::Open } else { Upgrade::Rejected }",
        instead: "Upgrade::Open",
    },
    Mutant {
        name: "act on a stale spec",
        file: "src/dataplane/apply/publish.rs",
        found: "plan.arms.then_some(writer.intent.owner.resource_version.as_str())",
        instead: "plan.arms.then_some(writer.intent.owner.resource_version.as_str()).filter(|_| false)",
    },
    Mutant {
        name: "switch one Service only",
        file: "src/dataplane/build/service.rs",
        found: "\"publishNotReadyAddresses\": true,\n            \"selector\": selector(intent, traffic),",
        instead: "\"publishNotReadyAddresses\": true,\n            \"selector\": found.filter(|_| traffic.promotion.is_some())\
                  .and_then(|found| found.spec.as_ref()?.selector.as_ref()).map_or_else(|| selector(intent, traffic), |own| json!(own)),",
    },
    Mutant {
        name: "delete the stable side early",
        file: "src/dataplane/plan/mod.rs",
        found: "facts::overdue(status.switched_at.as_ref().map(|at| at.0), self.delay(), self.now)",
        instead: "status.switched_at.is_some()",
    },
    Mutant {
        name: "lose a started attempt",
        file: "src/dataplane/plan/judge.rs",
        found: "GateOutcome::Running if prior.host != observed.host => conclude(gate, prior, &interrupted(), now),",
        instead: "GateOutcome::Running if prior.host != observed.host => begin(gate, prior.attempt, Begun::by(prior), bench),",
    },
];

/// States after which a mutant counts as not found.
const HUNT: usize = 300_000;

/// Measures both.
pub fn measure() -> Result<Vec<Row>> {
    let states = step("model test", verify::model)?;
    let found = mutants()?;
    Ok(vec![
        Row::at_least("model_states", count(states), "states", 1_000_000.0),
        Row::at_least("mutants_found", count(found), "of 10", count(MUTANTS.len())),
    ])
}

/// How many mutants the model test finds.
fn mutants() -> Result<usize> {
    let copy = workspace::target().join("mutants");
    step("source copied", || copy_source(&copy))?;
    step("dependencies shared", || share(Path::new("debug"), &copy.join("target")))?;
    let mut found = 0;
    for mutant in &MUTANTS {
        let step = Step::begin(&format!("mutant: {}", mutant.name));
        let outcome = hunt(&copy, mutant);
        step.end(*outcome.as_ref().unwrap_or(&false));
        found += usize::from(outcome?);
    }
    Ok(found)
}

/// Whether the model test of the copy finds a mutant.
fn hunt(copy: &Path, mutant: &Mutant) -> Result<bool> {
    let Mutant { name, file, found, instead } = mutant;
    let path = copy.join(file);
    let source = fs::read_to_string(&path)?;
    ensure!(source.matches(found).count() == 1, "mutant `{name}`: {file} does not contain once: {found}");
    fs::write(&path, source.replacen(found, instead, 1))?;
    let output = verify::model_command(HUNT, Build::Quick).current_dir(copy).output();
    fs::write(&path, source)?;
    let output = output.context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(false);
    }
    let told = text.split_once("in the story `").map(|(_, way)| way);
    let Some(way) = told else {
        bail!(
            "mutant `{name}` was not judged:\n{}\n{}",
            last_lines(&output.stdout, 20),
            last_lines(&output.stderr, 40)
        );
    };
    let ways = workspace::reports().join("mutants");
    fs::create_dir_all(&ways)?;
    let way = way.split("\nnote: ").next().unwrap_or_default();
    fs::write(ways.join(name.replace(' ', "-")).with_extension("txt"), format!("in the story `{way}\n"))?;
    Ok(true)
}

/// A copy of everything that is built, as it is now.
fn copy_source(copy: &Path) -> Result<()> {
    let root = workspace::root();
    let listed = run(std::process::Command::new("git").current_dir(root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    for file in listed.lines() {
        let (from, to): (PathBuf, PathBuf) = (root.join(file), copy.join(file));
        let Ok(content) = fs::read(&from) else { continue };
        // What is the same keeps its time, and what is built of it.
        if fs::read(&to).is_ok_and(|known| known == content) {
            continue;
        }
        fs::create_dir_all(to.parent().context("a folder")?)?;
        fs::write(&to, content)?;
    }
    Ok(())
}

/// Links what is built of the dependencies into another folder for such things: to build them takes longer than all the
/// rest. What is built of the workspace stays apart, for both copies would call it the same.
fn share(folder: &Path, into: &Path) -> Result<()> {
    let ours = |name: &str| {
        let name = name.trim_start_matches("lib").replace('-', "_");
        ["sluice", "http_smoke", "it_", "gate_"].iter().any(|ours| name.starts_with(ours))
    };
    for entry in fs::read_dir(workspace::target().join(folder))? {
        let entry = entry?;
        let (name, kind) = (entry.file_name().to_string_lossy().into_owned(), entry.file_type()?);
        let top = folder.components().count() == 1;
        if top && !["deps", "build", ".fingerprint"].contains(&name.as_str()) || !top && ours(&name) {
            continue;
        }
        let path = folder.join(&name);
        if kind.is_dir() {
            share(&path, into)?;
        } else {
            let to = into.join(&path);
            fs::create_dir_all(to.parent().context("a folder")?)?;
            if !to.exists() {
                fs::hard_link(entry.path(), &to)?;
            }
        }
    }
    Ok(())
}
