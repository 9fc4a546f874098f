//! What the gate host costs: beside the engine, hyper and a timer alone, and as a process. Prints a line of JSON for each
//! row; `cargo figures gate` runs it and knows the targets.
//!
//! | file | measures |
//! |---|---|
//! | `alone` | what the host adds, in this process on one CPU |
//! | `languages` | loading, one evaluation and the memory of an idle plugin, for each toolchain |
//! | `start` | from the start of the process to a verdict |
//! | `waiting` | a thousand gates that wait, and the operator beside them |
//! | `process` | the process and its memory, for the last three |
//!
//! The first argument is a folder with the plugins of `cargo plugins --guests`.

#[path = "../../it/gate/fixtures.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "tests use the rest, and may stop where they stand")]
mod fixtures;

mod alone;
mod languages;
mod process;
mod start;
mod waiting;

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::json;
use sluice::model::trial::{Endpoint, Method, Scheme, Target};

use self::{fixtures::trial, languages::Language};

fn main() -> Result<()> {
    // Cargo's own flags come first.
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder = PathBuf::from(folder.context("name the folder of the plugins")?);
    let plugins = languages::Plugins::read(&folder)?;
    // One CPU for all: what is compared shares its caches, and no other thread helps either side.
    pin(Some(0))?;
    block_on(alone::measure(plugins.component(Language::Rust)))?;
    pin(None)?;
    let shelf = process::Shelf::new()?;
    block_on(async {
        languages::measure(&plugins, &shelf).await?;
        start::measure(&plugins, &shelf).await
    })?;
    sluice_harness::kit::run(async |kit| waiting::measure(kit, &plugins, &shelf).await)
}

/// On one thread, so that this thread's CPU is that of all.
fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Keeps this thread, and what it starts from now on, on one CPU; or lets it go where it likes.
fn pin(cpu: Option<usize>) -> Result<()> {
    let mut cpus = CpuSet::new();
    match cpu {
        Some(cpu) => cpus.set(cpu),
        // More than the machine has does no harm, and while this is pinned it cannot be asked how many that are.
        None => (0..CpuSet::MAX_CPU).for_each(|cpu| cpus.set(cpu)),
    }
    Ok(sched_setaffinity(None, &cpus)?)
}

fn row(name: &str, value: f64) {
    #[expect(clippy::print_stdout, reason = "this is what it is run for")]
    {
        println!("{}", json!({ "name": name, "value": value }));
    }
}

fn proxy(address: SocketAddr) -> Target {
    Target {
        name: "candidate/proxy".into(),
        scheme: Scheme::Http,
        service: address,
        host: "bench".into(),
        endpoints: vec![Endpoint { name: "pod".into(), address }],
        methods: vec![Method::Get],
    }
}

/// The same component under another digest: a section that means nothing tells them apart.
fn variant(component: &Bytes, number: u8) -> Bytes {
    const NAME: &[u8] = b"bench";
    let mut bytes = component.to_vec();
    // Custom section: its id, its length, its name with a length, and what it holds.
    bytes.extend([0, 2 + NAME.len() as u8, NAME.len() as u8]);
    bytes.extend(NAME);
    bytes.push(number);
    bytes.into()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
