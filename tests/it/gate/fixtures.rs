//! Gates written as text and the trial that they are run in, for tests and benchmarks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use serde_json::json;
use sluice::model::trial::{Digest, Grants, Limits, Moment, Trial};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The contract as it is.
pub(crate) fn contract() -> String {
    fs::read_to_string(root().join("wit/gate.wit")).unwrap()
}

/// The text of a fixture between the preamble and the end, with its `{{words}}` filled in.
pub(crate) fn module(name: &str, words: &[(&str, &str)]) -> String {
    let folder = root().join("tests/fixtures/gates");
    let read = |file: PathBuf| fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let preamble = read(folder.join("preamble.wat"));
    let body = read(folder.join(name).with_extension("wat"));
    let mut text = format!("(module {preamble}\n{body})");
    for (word, value) in words {
        text = text.replace(&format!("{{{{{word}}}}}"), value);
    }
    text.replace("{{describe}}", "")
}

/// A component of the text of a module, for the world `gate` of `contract`.
pub(crate) fn component(module: &str, contract: &str) -> Bytes {
    let mut bytes = wat::parse_str(module).unwrap_or_else(|error| panic!("{error}"));
    let mut resolve = Resolve::default();
    let package = resolve.push_str("gate.wit", contract).unwrap();
    let world = resolve.select_world(&[package], Some("gate")).unwrap();
    embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8, false).unwrap();
    let component = ComponentEncoder::default().validate(true).module(&bytes).and_then(|encoder| encoder.encode());
    component.unwrap_or_else(|error| panic!("{error:#}")).into()
}

/// The component of a fixture.
pub(crate) fn fixture(name: &str, words: &[(&str, &str)]) -> Bytes {
    component(&module(name, words), &contract())
}

/// A trial of a loaded plugin with nothing granted.
pub(crate) fn trial(digest: &Digest) -> Trial {
    Trial {
        id: "test".into(),
        namespace: "ns".into(),
        digest: digest.clone(),
        settings: json!({}),
        moment: Moment::BeforePromotion,
        timeout: Duration::from_secs(60),
        limits: Limits::default(),
        targets: Vec::new(),
        state: None,
        grants: Grants::default(),
        candidate: None,
        stable: None,
    }
}
