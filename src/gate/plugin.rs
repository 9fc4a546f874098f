//! From bytes to a plugin that can be run: checked, then, once it is compiled, linked. What it says of itself comes later.

use wasmtime::{
    Engine,
    component::{Component, types::ComponentItem},
};

use super::{
    bindings::Prepared,
    engine,
    offer::{Offer, is_http},
    text,
};
use crate::model::trial::LoadError;

/// Bytes of a component. CPython gates have 18 to 20 MB; nothing honest is larger.
pub(super) const SIZE: usize = 32 << 20;

/// Interfaces of one component. All that is offered are some thirty; the same in a hundred versions would fill the plugin's
/// status.
const IMPORTS: usize = 128;

/// Bytes of an engine's complaint.
const MESSAGE: usize = 512;

/// A component that fits this host.
pub(super) struct Fitted {
    pub(super) prepared: Box<dyn Prepared>,
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
pub(super) fn fit(engine: &Engine, offer: &Offer, component: &Component) -> Result<Fitted, LoadError> {
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
    let unsupported = |found: String| LoadError::UnsupportedContract {
        supported: offer.supported(),
        found: text::cut(&found, MESSAGE),
    };
    let Some((contract, track)) = offer.contract(&exports) else {
        return Err(unsupported(if exports.is_empty() { "nothing".into() } else { exports.join(", ") }));
    };
    if let Some(import) = imports.iter().find(|import| !offer.has(import)) {
        let import = text::cut(import, MESSAGE);
        let refused = if is_http(&import) { LoadError::HttpNotAllowed } else { LoadError::UnsupportedImport };
        return Err(refused(import));
    }
    if imports.len() > IMPORTS {
        let message = format!("the plugin imports {} interfaces, at most {IMPORTS} are given", imports.len());
        return Err(LoadError::TooLarge(message));
    }
    let linked = offer.linker.instantiate_pre(component);
    // By name it fits; a function of it may still be newer than this host.
    let linked = linked.map_err(|error| LoadError::UnsupportedImport(text::cut(&format!("{error:#}"), MESSAGE)))?;
    let prepared =
        (track.prepare)(linked).map_err(|error| unsupported(format!("{contract} of another shape: {error:#}")))?;
    Ok(Fitted { prepared, contract, imports })
}

/// The engine refuses a component either as WebAssembly or as too large for the pool.
pub(super) fn not_compiled(error: &wasmtime::Error) -> LoadError {
    let message = text::cut(&format!("{error:#}"), MESSAGE);
    // The pool's complaints have no type of their own; each of them says that something exceeds a limit.
    if message.contains("exceeds the") { LoadError::TooLarge(message) } else { LoadError::NotAComponent(message) }
}
