//! `gate`: what the gate host adds to the engine, to a request, and to the end of a gate that does not end.
//!
//! The rows are measured by `tests/bench/gate.rs`, which is a part of the operator's package: the harness does not know its
//! types.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::row::Row;
use crate::command::run;
use crate::install::{OPTIMISED, cargo};
use crate::progress::step;
use crate::workspace;

/// A line of the benchmark.
#[derive(Deserialize)]
struct Line {
    name: String,
    value: f64,
}

/// Measures all rows.
pub fn measure() -> Result<Vec<Row>> {
    step("gates built", || run(cargo().arg("plugins")).map(drop))?;
    let bench = ["test", "--package", "sluice-operator", "--bench", "gate", "--config", OPTIMISED];
    step("benchmark built", || run(cargo().args(bench).arg("--no-run")).map(drop))?;
    let plugins = workspace::root().join("target/plugins");
    let printed = step("gates run", || run(cargo().args(bench).arg("--").arg(plugins)))?;
    let lines: Vec<Line> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let value = |name: &str| {
        let line = lines.iter().find(|line| line.name == name);
        line.map(|line| line.value).with_context(|| format!("the benchmark did not measure {name}"))
    };
    Ok(vec![
        Row::at_most("evaluate_over_raw_ratio", value("evaluate_over_raw_ratio")?, "raw", 1.25),
        Row::at_most("evaluate_over_raw_us", value("evaluate_over_raw_us")?, "us", 15.0),
        Row::reported("evaluate_us_p99", value("evaluate_us_p99")?, "us"),
        Row::at_most("probe_over_hyper_us", value("probe_over_hyper_us")?, "us", 60.0),
        Row::at_most("loop_kill_cpu_late_ms_max", value("loop_kill_cpu_late_ms_max")?, "ms", 20.0),
        Row::at_most("hang_late_ms", value("hang_late_ms")?, "ms", 10.0),
    ])
}
