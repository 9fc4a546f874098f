//! From bytes to a plugin that can be run: checked, then, once it is compiled, linked. What it says of itself comes later.

use wasmtime::{
    Engine,
    component::{Component, HasSelf, Linker, types::ComponentItem},
};

use super::{
    bindings::{self, GatePre},
    engine,
    store::State,
    text,
};
use crate::model::trial::LoadError;

/// Bytes of a component. CPython gates have 18 to 20 MB; nothing honest is larger.
pub(super) const SIZE: usize = 32 << 20;

/// Bytes of an engine's complaint.
const MESSAGE: usize = 512;

/// The contract's package, without a version.
const PACKAGE: &str = "sluice:gate";

/// Interfaces of the contract that a plugin may import.
const OFFERED: [&str; 2] = ["trial", "probe"];

/// A component that fits this host.
pub(super) struct Fitted {
    pub(super) pre: GatePre<State>,
    /// `sluice:gate@0.1.0`: the version its evaluator was built for.
    pub(super) contract: String,
    pub(super) imports: Vec<String>,
}

/// The checks that need no compiler.
///
/// # Errors
/// Why the bytes are no plugin for this host.
pub(super) fn check(bytes: &[u8]) -> Result<(), LoadError> {
    if bytes.len() > SIZE {
        return Err(LoadError::TooLarge(format!("the plugin has {} bytes, at most {SIZE} are taken", bytes.len())));
    }
    if Engine::detect_precompiled(bytes).is_some() {
        // Native code with a header: loading it would be running it.
        return Err(LoadError::NotAComponent("it is precompiled".into()));
    }
    Ok(())
}

/// Links a compiled component to what this host offers.
///
/// # Errors
/// Why it is no plugin for this host.
pub(super) fn fit(engine: &Engine, component: &Component) -> Result<Fitted, LoadError> {
    if let Some(needs) = component.resources_required() {
        engine::fits(&needs).map_err(LoadError::TooLarge)?;
    }
    let shape = component.component_type();
    let names = |item: (&str, wasmtime::component::types::ComponentExtern<'_>)| match item.1.ty {
        ComponentItem::ComponentInstance(_) => Some(item.0.to_owned()),
        _ => None,
    };
    let exports: Vec<String> = shape.exports(engine).filter_map(names).collect();
    let imports: Vec<String> = shape.imports(engine).map(|(name, _)| name.to_owned()).collect();
    let contract = contract(&exports)?;
    if let Some(import) = imports.iter().find(|import| !is_offered(import)) {
        return Err(LoadError::UnsupportedImport(text::cut(import, MESSAGE)));
    }
    let fitted = linker(engine).and_then(|linker| linker.instantiate_pre(component));
    // By name it fits; a function of it may still be newer than this host.
    let fitted = fitted.map_err(|error| LoadError::UnsupportedImport(text::cut(&format!("{error:#}"), MESSAGE)))?;
    let pre = GatePre::new(fitted).map_err(|error| LoadError::UnsupportedContract {
        supported: bindings::SUPPORTED.into(),
        found: text::cut(&format!("{contract} of another shape: {error:#}"), MESSAGE),
    })?;
    Ok(Fitted { pre, contract, imports })
}

/// Everything a guest can reach. What is not here does not exist for it.
fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    bindings::trial::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
    bindings::probe::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
    Ok(linker)
}

/// The engine refuses a component either as WebAssembly or as too large for the pool.
pub(super) fn not_compiled(error: &wasmtime::Error) -> LoadError {
    let message = text::cut(&format!("{error:#}"), MESSAGE);
    // The pool's complaints have no type of their own; each of them says that something exceeds a limit.
    if message.contains("exceeds the") { LoadError::TooLarge(message) } else { LoadError::NotAComponent(message) }
}

/// The contract among `exports` that this host speaks.
fn contract(exports: &[String]) -> Result<String, LoadError> {
    let spoken = exports.iter().find_map(|export| match interface(export) {
        Some(("evaluator", version)) => Some(format!("{PACKAGE}@{version}")),
        _ => None,
    });
    spoken.ok_or_else(|| LoadError::UnsupportedContract {
        supported: bindings::SUPPORTED.into(),
        found: match exports {
            [] => "nothing".to_owned(),
            exports => text::cut(&exports.join(", "), MESSAGE),
        },
    })
}

fn is_offered(import: &str) -> bool {
    interface(import).is_some_and(|(name, _)| OFFERED.contains(&name))
}

/// Name and version of an interface of our package in a version of the track this host speaks.
fn interface(name: &str) -> Option<(&str, &str)> {
    let (interface, version) = name.strip_prefix(PACKAGE)?.strip_prefix('/')?.split_once('@')?;
    let track = bindings::SUPPORTED.strip_prefix(PACKAGE)?.strip_prefix('@')?;
    version.strip_prefix(track)?.strip_prefix('.').map(|_| (interface, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn any_patch_of_the_supported_contract_is_spoken_and_other_exports_are_ignored() {
        let exports = names(&["exports", "sluice:gate/evaluator@0.1.7"]);
        assert_eq!(contract(&exports), Ok("sluice:gate@0.1.7".into()));
    }

    #[test]
    fn other_versions_are_refused_with_the_range_and_what_was_found() {
        for export in ["sluice:gate/evaluator@0.2.0", "sluice:gate/evaluator@0.10.0", "sluice:gate/evaluator"] {
            let error = contract(&names(&[export])).unwrap_err().to_string();
            assert!(error.contains("sluice:gate@0.1") && error.contains(export), "{error}");
        }
        assert!(contract(&[]).unwrap_err().to_string().contains("nothing"));
    }

    #[test]
    fn only_what_is_linked_is_offered() {
        assert!(is_offered("sluice:gate/trial@0.1.0") && is_offered("sluice:gate/probe@0.1.3"));
        for import in ["sluice:gate/metrics@0.1.0", "sluice:gate/trial@0.2.0", "wasi:cli/environment@0.2.0", "trial"] {
            assert!(!is_offered(import), "{import}");
        }
    }
}
