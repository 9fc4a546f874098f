//! `cargo figures`: what the operator costs and how long it takes, measured against targets.
//!
//! Each figure prints a table and writes `target/reports/NAME.json`. A [`Row`] is `{name, value, unit, target, ok}`;
//! requests are counted in the apiserver's audit log ([`tally`]), moments are those at which a watch of this process
//! saw something ([`seen`]), and seconds are compared only with a floor measured in the same run.

mod gate;
mod gateways;
mod model;
pub mod promotion;
mod row;
mod scale;
mod seen;
mod tally;
mod upgrade;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::json;

use crate::workspace;
pub use row::Row;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Figure {
    /// What one upgrade costs and how fast it is, on real Pods; and what rest costs (about 15 minutes).
    Upgrade,
    /// 300 DataPlanes created, then all upgraded at once, on Pods that are played by kwok (about 5 minutes).
    Scale,
    /// What the gate host adds to the engine alone, and what plugins of every language cost (about 10 minutes).
    Gate,
    /// What users lose while gateways are upgraded and moved back under them, on real Pods (about 20 minutes).
    Promotion,
    /// How many states the model test goes through, and how many faults it finds that are put there (about 15 minutes).
    Model,
}

impl Figure {
    const fn name(self) -> &'static str {
        match self {
            Self::Upgrade => "upgrade",
            Self::Scale => "scale",
            Self::Gate => "gate",
            Self::Promotion => "promotion",
            Self::Model => "model",
        }
    }

    fn measure(self) -> Result<Vec<Row>> {
        match self {
            Self::Upgrade => upgrade::measure(),
            Self::Scale => scale::measure(),
            Self::Gate => gate::measure(),
            Self::Promotion => promotion::measure(),
            Self::Model => model::measure(),
        }
    }
}

/// Measures the chosen figures, all if none is chosen; an error if one misses its target.
pub fn run(chosen: &[Figure]) -> Result<()> {
    let mut missed = Vec::new();
    // Those of the model test are among those of promotion: of all figures, once.
    let wanted = |figure: &&Figure| match chosen {
        [] => **figure != Figure::Model,
        chosen => chosen.contains(figure),
    };
    for figure in Figure::value_variants().iter().filter(wanted) {
        let rows = figure.measure()?;
        print(figure.name(), &rows);
        missed.extend(rows.iter().filter(|row| !row.ok).map(|row| row.name));
        fs::create_dir_all(workspace::reports())?;
        let path = workspace::reports().join(figure.name()).with_extension("json");
        fs::write(&path, format!("{:#}\n", json!({ "rows": rows })))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if missed.is_empty() { Ok(()) } else { bail!("targets missed: {}", missed.join(", ")) }
}

/// What the users of a Service of the local cluster get, whoever does whatever to it meanwhile: for another operator, beside
/// ours. `service` is its namespace and its name.
pub fn users(service: &str, time: Duration) -> Result<()> {
    let rows = promotion::users(service, time)?;
    print(service, &rows);
    Ok(())
}

fn print(title: &str, rows: &[Row]) {
    println!("{}", row::heading(title));
    for row in rows {
        println!("{}", row.line());
    }
}
