//! `gate`: what the gate host adds to the engine, to a request, and to the end of a gate that does not end; what plugins of
//! every toolchain cost; and a thousand gates at once.
//!
//! The rows are measured by `tests/bench/gate`, which is a part of the operator's package: the harness does not know its
//! types.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::row::Row;
use crate::cluster::Cluster;
use crate::command::run;
use crate::install::{self, Build, OPTIMISED, cargo};
use crate::progress::step;
use crate::workspace;

/// A line of the benchmark.
#[derive(Deserialize)]
struct Line {
    name: String,
    value: f64,
}

/// What is measured, in what, and how much it may be.
const ROWS: [(&str, &str, Option<f64>); 28] = [
    ("evaluate_over_raw_ratio", "raw", Some(1.25)),
    ("evaluate_over_raw_us", "us", Some(15.0)),
    ("evaluate_us_p99", "us", None),
    ("probe_over_hyper_us", "us", Some(60.0)),
    ("loop_kill_cpu_late_ms_max", "ms", Some(20.0)),
    ("hang_late_ms", "ms", Some(10.0)),
    ("waiting_1000_memory_mib", "MiB", Some(600.0)),
    ("before_burst_memory_mib", "MiB", None),
    ("after_burst_ratio", "before", Some(1.2)),
    ("waiting_1000_reconcile_p99_ms", "ms", Some(20.0)),
    ("start_to_verdict_20_plugins_ms", "ms", Some(150.0)),
    ("start_to_all_loaded_20_plugins_ms", "ms", None),
    ("idle_rust_mb", "MiB", Some(0.2)),
    ("idle_quickjs_mb", "MiB", Some(0.5)),
    ("idle_js_mb", "MiB", Some(1.5)),
    ("idle_python_mb", "MiB", Some(4.0)),
    ("load_cold_rust_ms", "ms", None),
    ("load_cold_quickjs_ms", "ms", None),
    ("load_cold_js_ms", "ms", None),
    ("load_cold_python_ms", "ms", None),
    ("load_cached_rust_ms", "ms", None),
    ("load_cached_quickjs_ms", "ms", None),
    ("load_cached_js_ms", "ms", None),
    ("load_cached_python_ms", "ms", None),
    ("verdict_rust_us_p50", "us", None),
    ("verdict_quickjs_us_p50", "us", None),
    ("verdict_js_us_p50", "us", None),
    ("verdict_python_us_p50", "us", None),
];

/// Measures all rows.
pub fn measure() -> Result<Vec<Row>> {
    step("gates built", || run(cargo().arg("plugins")).map(drop))?;
    step("gates built in other languages", || run(cargo().args(["plugins", "--guests"])).map(drop))?;
    let bench = || {
        let mut cargo = cargo();
        // Of the whole workspace: for one package of it, half of the dependencies would be built with other features.
        cargo.args(["test", "--workspace", "--bench", "gate", "--config", OPTIMISED]);
        // A backtrace would leave nothing of the error.
        cargo.env("RUST_BACKTRACE", "0");
        cargo
    };
    step("benchmark built", || run(bench().arg("--no-run")).map(drop))?;
    let plugins = workspace::root().join("target/plugins");
    let cluster = Cluster::default();
    let printed = cluster.with_it_up(|| {
        install::without_operator(&cluster, Build::Optimised)?;
        step("gates run", || run(bench().arg("--").arg(plugins)))
    })?;
    let lines: Vec<Line> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let row = |(name, unit, target)| {
        let line = lines.iter().find(|line| line.name == name);
        let value = line.with_context(|| format!("the benchmark did not measure {name}"))?.value;
        Ok(match target {
            Some(target) => Row::at_most(name, value, unit, target),
            None => Row::reported(name, value, unit),
        })
    };
    ROWS.into_iter().map(row).collect()
}
