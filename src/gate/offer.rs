//! What a guest can be linked with. What is not here does not exist for it.

use wasmtime::{Engine, Result, component::Linker};

use super::{bindings::Track, host::http, store::State};

/// The contract's package, without a version.
const PACKAGE: &str = "sluice:gate";

/// The packages of WASI 0.2 that are linked, with nothing behind them.
const WASI: [&str; 6] = ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"];

/// Digits of a patch.
const PATCH: usize = 5;

/// Everything that guests are linked with: made once for an engine, as it is the same for all of them.
pub(super) struct Offer {
    pub(super) linker: Linker<State>,
    tracks: &'static [Track],
    /// Whether the operator allows `wasi:http`.
    http: bool,
}

impl Offer {
    /// Every interface of `tracks`, and WASI, `wasi:http` where it is allowed.
    pub(super) fn new(engine: &Engine, tracks: &'static [Track], http: bool) -> Result<Self> {
        let mut linker = Linker::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        for track in tracks {
            (track.link)(&mut linker)?;
        }
        if http {
            http::link(&mut linker)?;
        }
        Ok(Self { linker, tracks, http })
    }

    /// The contract that a component which exports this speaks, `sluice:gate@0.1.0`, and its track.
    pub(super) fn contract(&self, exports: &[String]) -> Option<(String, &'static Track)> {
        exports.iter().find_map(|export| match self.interface(export)? {
            ("evaluator", version, track) => Some((format!("{PACKAGE}@{version}"), track)),
            _ => None,
        })
    }

    /// The contracts that are spoken, as shown to people.
    pub(super) fn supported(&self) -> String {
        let names = self.tracks.iter().map(|track| format!("{PACKAGE}@{}", track.version));
        names.collect::<Vec<_>>().join(", ")
    }

    /// Whether a component may import this.
    pub(super) fn has(&self, import: &str) -> bool {
        let ours = self.interface(import).is_some_and(|(name, _, track)| track.imports.contains(&name));
        let wasi = WASI.iter().any(|package| import.starts_with(package));
        ours || wasi && import.split_once('@').is_some_and(|(_, version)| is_of(version, "0.2"))
            || self.http && is_http(import)
    }

    /// Name, version and track of an interface of our package.
    fn interface<'name>(&self, name: &'name str) -> Option<(&'name str, &'name str, &'static Track)> {
        let (interface, version) = name.strip_prefix(PACKAGE)?.strip_prefix('/')?.split_once('@')?;
        let track = self.tracks.iter().find(|track| is_of(version, track.version))?;
        Some((interface, version, track))
    }
}

/// Whether this is what `wasi:http` would offer.
pub(super) fn is_http(import: &str) -> bool {
    import.split_once('@').is_some_and(|(name, version)| http::INTERFACES.contains(&name) && is_of(version, "0.2"))
}

/// Whether `0.1.7` is of `0.1`. A patch is a number and nothing behind it: versions are shown to people, and what a linker
/// takes for the same may go on for pages (`0.1.0+...`).
fn is_of(version: &str, track: &str) -> bool {
    let patch = version.strip_prefix(track).and_then(|patch| patch.strip_prefix('.'));
    patch.is_some_and(|patch| (1..=PATCH).contains(&patch.len()) && patch.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::bindings::TRACKS;

    fn offer() -> Offer {
        Offer::new(&Engine::default(), TRACKS, false).unwrap()
    }

    fn contract(exports: &[&str]) -> Option<String> {
        let exports: Vec<_> = exports.iter().map(ToString::to_string).collect();
        offer().contract(&exports).map(|(contract, _)| contract)
    }

    #[test]
    fn any_patch_of_the_supported_contract_is_spoken_and_other_exports_are_ignored() {
        assert_eq!(contract(&["exports", "sluice:gate/evaluator@0.1.7"]), Some("sluice:gate@0.1.7".into()));
    }

    #[test]
    fn other_versions_are_not() {
        for export in [
            "sluice:gate/evaluator@0.2.0",
            "sluice:gate/evaluator@0.10.0",
            "sluice:gate/evaluator@0.1.0+a",
            "sluice:gate/evaluator@0.1.100000",
            "sluice:gate/evaluator@0.1.",
            "sluice:gate/evaluator",
        ] {
            assert_eq!(contract(&[export]), None, "{export}");
        }
        assert_eq!(contract(&[]), None);
        assert_eq!(offer().supported(), "sluice:gate@0.1");
    }

    #[test]
    fn only_what_is_linked_is_offered() {
        let offer = offer();
        for import in
            ["sluice:gate/trial@0.1.0", "sluice:gate/probe@0.1.3", "sluice:gate/metrics@0.1.0", "wasi:cli/stderr@0.2.9"]
        {
            assert!(offer.has(import), "{import}");
        }
        for import in [
            "sluice:gate/evaluator@0.1.0",
            "sluice:gate/trial@0.2.0",
            "sluice:gate/trial@0.1.0+a",
            "wasi:cli/stderr@0.2.0-rc",
            "wasi:cli/stderr@0.3.0",
            "wasi:cli/stderr@0.20.0",
            "wasi:http/outgoing-handler@0.2.0",
            "wasi:keyvalue/store@0.2.0",
            "trial",
        ] {
            assert!(!offer.has(import), "{import}");
        }
    }

    #[test]
    fn http_is_offered_where_it_is_allowed_and_only_to_send() {
        let offer = Offer::new(&Engine::default(), TRACKS, true).unwrap();
        assert!(offer.has("wasi:http/types@0.2.12") && offer.has("wasi:http/outgoing-handler@0.2.0"));
        for import in ["wasi:http/incoming-handler@0.2.12", "wasi:http/types@0.3.0", "wasi:http/client@0.3.0"] {
            assert!(!offer.has(import), "{import}");
        }
    }
}
