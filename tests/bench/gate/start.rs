//! From the start of a gate host to a verdict, with twenty plugins in its cache: what a restart costs.

use std::time::Instant;

use anyhow::{Result, ensure};
use sluice::{
    gate::GateHost as _,
    model::trial::{Outcome, Trial},
};

use super::{
    languages::{Language, Plugins},
    median,
    process::{Process, Shelf},
    proxy, row, trial,
    waiting::Server,
};

/// Restarts.
const TIMES: usize = 9;

pub(super) async fn measure(plugins: &Plugins, shelf: &Shelf) -> Result<()> {
    let server = Server::answering().await?;
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let of = |(language, many)| plugins.variants(language, 0..many);
        let kinds =
            [(Language::Rust, 10), (Language::QuickJs, 6), (Language::StarlingMonkey, 2), (Language::Python, 2)];
        let components: Vec<_> = kinds.into_iter().flat_map(of).collect();
        let asked = components[0].clone();
        let began = Instant::now();
        let process = Process::start(shelf, 64).await?;
        let verdict = async {
            let digest = process.load(asked).await?;
            let report = process.host.run(Trial { targets: vec![proxy(server.address)], ..trial(&digest) }).await;
            ensure!(matches!(report.outcome, Outcome::Pass(_)), "{:?}", report.outcome);
            Ok(began.elapsed())
        };
        let (verdict, loaded) = futures::try_join!(verdict, async {
            process.load_all(components[1..].to_vec()).await?;
            Ok(began.elapsed())
        })?;
        first.push(verdict.as_secs_f64() * 1e3);
        last.push(verdict.max(loaded).as_secs_f64() * 1e3);
    }
    row("start_to_verdict_20_plugins_ms", median(first));
    row("start_to_all_loaded_20_plugins_ms", median(last));
    Ok(())
}
