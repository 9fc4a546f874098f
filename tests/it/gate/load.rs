//! What is a plugin and what is not.

use bytes::Bytes;
use serde_json::json;
use sluice::{
    gate::{GateHost as _, LocalGateHost},
    model::trial::{Blame, Digest, LoadError},
};

use tokio::net::TcpListener;

use super::{
    PATIENCE, assert_blames, assert_nobody_came, assert_passes, component, contract, data, fixture, host, module, run,
    trial,
};

/// Refused with this reason, and the host goes on.
async fn refused(host: &LocalGateHost, bytes: Bytes) -> LoadError {
    let digest = Digest::of(&bytes);
    let error = host.load(bytes).await.expect_err("bytes that are no plugin");
    assert_blames(&host.run(trial(&digest)).await, Blame::PluginNotReady);
    assert_passes(&run(host, fixture("good", &[]), |_| {}).await);
    error
}

#[tokio::test]
async fn a_plugin_is_described_by_its_bytes() {
    let bytes = fixture("log_loop", &[("rounds", "1")]);
    let host = host();
    let loaded = host.load(bytes.clone()).await.unwrap();
    assert_eq!(loaded.digest, Digest::of(&bytes));
    assert_eq!(loaded.size, bytes.len());
    assert_eq!(loaded.contract, "sluice:gate@0.1.0");
    assert_eq!(loaded.imports, ["sluice:gate/trial@0.1.0", "sluice:gate/probe@0.1.0"]);
    assert_eq!((loaded.description.name.as_str(), loaded.description.version.as_str()), ("fixture", "1"));
    assert_eq!(host.load(bytes).await.unwrap(), loaded);
}

#[tokio::test]
async fn an_unloaded_plugin_is_not_run() {
    let host = host();
    let digest = host.load(fixture("good", &[])).await.unwrap().digest;
    assert_passes(&host.run(trial(&digest)).await);
    host.unload(&digest).await;
    assert_blames(&host.run(trial(&digest)).await, Blame::PluginNotReady);
    assert!(host.validate(&digest, &json!({})).await.is_err());
}

#[tokio::test]
async fn bytes_that_are_no_component_are_refused() {
    let host = host();
    let module = wat::parse_str("(module)").unwrap();
    for bytes in [Bytes::new(), Bytes::from_static(b"#!/bin/sh"), b"(component)".as_slice().into(), module.into()] {
        let error = refused(&host, bytes).await;
        assert!(matches!(error, LoadError::NotAComponent(_)), "{error:?}");
    }
}

#[tokio::test]
async fn threat_16_what_needs_a_proposal_that_is_switched_off_is_no_plugin() {
    let host = host();
    let component = |fields: &str| Bytes::from(wat::parse_str(format!("(component {fields})")).unwrap());
    let module = |fields: &str| component(&format!("(core module {fields})"));
    // What is switched on gets further: all it lacks is the contract.
    for fields in ["(memory 1)", "(func $f (return_call $f))", "(func (result v128) (v128.const i64x2 0 0))"] {
        let error = refused(&host, module(fields)).await;
        assert!(matches!(error, LoadError::UnsupportedContract { .. }), "{fields}: {error:?}");
    }
    for (bytes, proposal) in [
        (
            module("(func (param v128 v128) (result v128) (i8x16.relaxed_swizzle (local.get 0) (local.get 1)))"),
            "relaxed",
        ),
        (module("(memory i64 1)"), "memory64"),
        (module("(memory 1 (pagesize 1))"), "custom page sizes"),
        (module("(memory 1 1 shared)"), "threads"),
        (module("(memory 1) (func (drop (i32.atomic.load (i32.const 0))))"), "threads"),
        (module("(type $f (func)) (type (cont $f))"), "stack switching"),
        (module("(type (struct (field i32)))"), "gc"),
        (module("(tag)"), "exceptions"),
        (module("(func (param i64 i64) (result i64 i64) (i64.mul_wide_s (local.get 0) (local.get 1)))"), "wide"),
        (component("(type (future u8))"), "async"),
    ] {
        let error = refused(&host, bytes).await;
        let LoadError::NotAComponent(message) = &error else { panic!("{proposal}: {error:?}") };
        assert!(message.contains(proposal), "{proposal}: {message}");
    }
}

#[tokio::test]
async fn threat_18_a_precompiled_artifact_is_refused_whatever_it_holds() {
    let engine = wasmtime::Engine::default();
    let artifact = engine.precompile_component(&wat::parse_str("(component)").unwrap()).unwrap();
    let error = refused(&host(), artifact.into()).await;
    assert_eq!(error, LoadError::NotAComponent("it is precompiled".into()));
}

#[tokio::test]
async fn more_bytes_than_a_plugin_may_have_are_refused_unread() {
    let error = refused(&host(), vec![0; (32 << 20) + 1].into()).await;
    assert!(matches!(error, LoadError::TooLarge(_)), "{error:?}");
}

#[tokio::test]
async fn a_component_that_needs_more_than_the_pool_has_is_refused_with_numbers() {
    let modules: String =
        (0..65).map(|number| format!("(core module $m{number}) (core instance (instantiate $m{number}))")).collect();
    let error = refused(&host(), wat::parse_str(format!("(component {modules})")).unwrap().into()).await;
    let LoadError::TooLarge(message) = error else { panic!("{error:?}") };
    assert!(message.contains("65") && message.contains("64"), "{message}");
}

#[tokio::test]
async fn a_component_without_an_evaluator_is_refused() {
    let error = refused(&host(), wat::parse_str("(component)").unwrap().into()).await;
    let wanted = LoadError::UnsupportedContract { supported: "sluice:gate@0.1".into(), found: "nothing".into() };
    assert_eq!(error, wanted);
}

#[tokio::test]
async fn another_version_of_the_contract_is_refused_with_both_versions() {
    let other = |text: String| text.replace("0.1.0", "0.2.0");
    let error = refused(&host(), component(&other(module("good", &[])), &other(contract()))).await;
    let LoadError::UnsupportedContract { supported, found } = error else { panic!("{error:?}") };
    assert_eq!((supported.as_str(), found.as_str()), ("sluice:gate@0.1", "sluice:gate/evaluator@0.2.0"));
}

#[tokio::test]
async fn an_evaluator_of_another_shape_is_refused() {
    let contract = contract().replace("describe: func() -> description", "describe: func() -> list<description>");
    let error = refused(&host(), component(&module("good", &[]), &contract)).await;
    let LoadError::BadDescription(message) = error else { panic!("{error:?}") };
    assert!(message.contains("expected `record` found `list`"), "{message}");
}

#[tokio::test]
async fn a_plugin_that_imports_what_is_not_offered_is_told_what() {
    let contract = format!(
        "{}\npackage wasi:keyvalue@0.2.0 {{ interface store {{ get: func() -> u32; }} }}",
        contract().replace("world gate {", "world gate { import wasi:keyvalue/store@0.2.0;")
    );
    let import = r#"(module (import "wasi:keyvalue/store@0.2.0" "get" (func $get (result i32)))"#;
    let module = module("instruction", &[("instruction", "(drop (call $get))")]).replacen("(module", import, 1);
    let error = refused(&host(), component(&module, &contract)).await;
    assert_eq!(error, LoadError::UnsupportedImport("wasi:keyvalue/store@0.2.0".into()));
}

#[tokio::test]
async fn a_function_newer_than_this_host_is_refused_by_name() {
    let contract = contract().replace("remaining: func() -> f64;", "remaining: func() -> f64; mood: func() -> f64;");
    let module = module("instruction", &[("instruction", "(drop (call $mood))")]).replacen(
        "(module",
        r#"(module (import "sluice:gate/trial@0.1.0" "mood" (func $mood (result f64)))"#,
        1,
    );
    let error = refused(&host(), component(&module, &contract)).await;
    let LoadError::UnsupportedImport(message) = error else { panic!("{error:?}") };
    assert!(message.contains("mood"), "{message}");
}

#[tokio::test]
async fn a_plugin_whose_schema_is_none_is_refused() {
    let module = module("good", &[]).replace("fixture1{}", "fixture1[]");
    let error = refused(&host(), component(&module, &contract())).await;
    assert!(matches!(error, LoadError::BadDescription(_)), "{error:?}");
}

#[tokio::test]
async fn threat_24_a_plugin_that_takes_another_name_is_still_known_by_its_bytes() {
    let host = host();
    let honest = host.load(fixture("good", &[])).await.unwrap();
    let liar = component(&module("good", &[]).replace("fixture1{}", "kubelet1{}"), &contract());
    let liar = host.load(liar).await.unwrap();
    assert_eq!((honest.description.name.as_str(), liar.description.name.as_str()), ("fixture", "kubelet"));
    assert_ne!(honest.digest, liar.digest);
    host.unload(&liar.digest).await;
    assert_passes(&host.run(trial(&honest.digest)).await);
    assert_blames(&host.run(trial(&liar.digest)).await, Blame::PluginNotReady);
}

/// The fixture `good` with this schema of its settings.
fn with_schema(schema: &str) -> Bytes {
    let length: String =
        u32::try_from(schema.len()).unwrap().to_le_bytes().map(|byte| format!("\\{byte:02x}")).concat();
    let data = format!("(data (i32.const 8192) \"{}\")\n(func (export \"cabi_realloc\")", data(schema));
    let module = module("good", &[]).replace(r"\48\04\00\00\02\00\00\00", &format!(r"\00\20\00\00{length}")).replacen(
        "(func (export \"cabi_realloc\")",
        &data,
        1,
    );
    component(&module, &contract())
}

#[tokio::test]
async fn threat_26_a_schema_fetches_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = host();
    for reference in [
        format!("http://127.0.0.1:{port}/schema.json"),
        format!("//127.0.0.1:{port}/"),
        "file:///etc/passwd".into(),
        "https://json-schema.org/draft/2020-12/other".into(),
    ] {
        let error = host.load(with_schema(&format!(r#"{{"$ref": "{reference}"}}"#))).await.expect_err(&reference);
        assert!(matches!(error, LoadError::BadDescription(_)), "{reference}: {error:?}");
    }
    assert_nobody_came(&listener);
}

#[tokio::test]
async fn threat_26_the_patterns_of_a_schema_take_linear_time() {
    let host = host();
    let loaded = host.load(with_schema(r#"{"pattern": "^(a+)+$"}"#)).await.unwrap();
    let settings = json!("a".repeat(50_000) + "!");
    let validated = tokio::time::timeout(PATIENCE, host.validate(&loaded.digest, &settings)).await.expect("in time");
    assert_eq!(validated.unwrap()[0].pointer, "");
}
