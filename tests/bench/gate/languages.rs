//! The same gate from four toolchains: what it takes to load it, to ask it, and to have it.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use sluice::{
    gate::GateHost as _,
    model::trial::{Outcome, Trial},
};

use super::{
    median,
    process::{Process, Shelf},
    proxy, row, trial, variant,
    waiting::Server,
};

/// What a gate is written in, by toolchain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    Rust,
    QuickJs,
    StarlingMonkey,
    Python,
}

impl Language {
    pub(super) const ALL: [Self; 4] = [Self::Rust, Self::QuickJs, Self::StarlingMonkey, Self::Python];

    /// In the names of rows.
    fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::QuickJs => "quickjs",
            Self::StarlingMonkey => "js",
            Self::Python => "python",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Rust => "http-smoke.wasm",
            Self::QuickJs => "js-quickjs.wasm",
            Self::StarlingMonkey => "js-starling.wasm",
            Self::Python => "python.wasm",
        }
    }

    /// Plugins that the memory of one is an average over: more where one is small beside what the kernel counts in.
    fn many(self) -> u8 {
        match self {
            Self::Rust => 20,
            Self::QuickJs => 6,
            Self::StarlingMonkey | Self::Python => 2,
        }
    }
}

/// A component of each language.
pub(super) struct Plugins(Vec<(Language, Bytes)>);

impl Plugins {
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let read = |language: Language| {
            let path = folder.join(language.file());
            let bytes = fs::read(&path);
            let bytes = bytes.with_context(|| format!("{}; `cargo plugins --guests` makes it", path.display()))?;
            Ok((language, unpacked(bytes)?))
        };
        Ok(Self(Language::ALL.into_iter().map(read).collect::<Result<_>>()?))
    }

    pub(super) fn component(&self, language: Language) -> Bytes {
        let found = self.0.iter().find(|(of, _)| *of == language);
        found.map(|(_, bytes)| bytes.clone()).unwrap_or_default()
    }

    /// So many that differ in their digest only.
    pub(super) fn variants(&self, language: Language, numbers: impl IntoIterator<Item = u8>) -> Vec<Bytes> {
        let component = self.component(language);
        numbers.into_iter().map(|number| variant(&component, number)).collect()
    }
}

/// `cargo plugins` packs what it builds for ConfigMaps.
fn unpacked(bytes: Vec<u8>) -> Result<Bytes> {
    if bytes.starts_with(b"\0asm") {
        return Ok(bytes.into());
    }
    let mut component = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(bytes.as_slice()), &mut component)?;
    Ok(component.into())
}

pub(super) async fn measure(plugins: &Plugins, shelf: &Shelf) -> Result<()> {
    let server = Server::answering().await?;
    let first = Process::start(shelf, 8).await?;
    for language in Language::ALL {
        let components = plugins.variants(language, 0..=language.many());
        let began = Instant::now();
        let digest = first.load(components[0].clone()).await?;
        row(&format!("load_cold_{}_ms", language.name()), began.elapsed().as_secs_f64() * 1e3);
        for component in &components[1..] {
            first.load(component.clone()).await?;
        }
        let asking = Trial { targets: vec![proxy(server.address)], ..trial(&digest) };
        let mut times = Vec::new();
        for _ in 0..50 {
            let began = Instant::now();
            let report = first.host.run(asking.clone()).await;
            times.push(began.elapsed().as_secs_f64() * 1e6);
            ensure!(matches!(report.outcome, Outcome::Pass(_)), "{:?}", report.outcome);
        }
        row(&format!("verdict_{}_us_p50", language.name()), median(times));
    }
    drop(first);
    shelf.warm()?;
    let second = Process::start(shelf, 8).await?;
    // What the first of a kind brings with it belongs to the host.
    for language in Language::ALL {
        let began = Instant::now();
        second.load_all(plugins.variants(language, [0])).await?;
        row(&format!("load_cached_{}_ms", language.name()), began.elapsed().as_secs_f64() * 1e3);
    }
    for language in Language::ALL {
        let before = second.memory().await?;
        for component in plugins.variants(language, 1..=language.many()) {
            second.load(component).await?;
        }
        let more = second.memory().await? - before;
        row(&format!("idle_{}_mb", language.name()), more / f64::from(language.many()));
    }
    Ok(())
}
