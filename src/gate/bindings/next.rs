//! A second track, for tests only: `tests/fixtures/contract/next.wit` beside the contract, in one linker.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::json;
use wasmtime::{
    Result, Store,
    component::{Component, HasSelf, InstancePre, Linker},
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::{Description, Gate, Prepared, Track, Trouble, Verdict, outcome, v0_1};
use crate::{
    gate::{
        engine::{Compiles, Sandbox},
        offer::Offer,
        plugin,
        reach::Reach,
        store::{self, State},
    },
    model::trial::{Digest, Grants, Limits, Moment, Outcome, Problem, Reason, Trial},
};

mod generated {
    wasmtime::component::bindgen!({
        path: "tests/fixtures/contract/next.wit",
        world: "gate",
        imports: { default: async | trappable },
        exports: { default: async },
    });
}

const NEXT: Track = Track { version: "0.2", imports: &["trial"], link, prepare };

const BOTH: &[Track] = &[v0_1::TRACK, NEXT];

fn link(linker: &mut Linker<State>) -> Result<()> {
    generated::Gate::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

fn prepare(linked: InstancePre<State>) -> Result<Box<dyn Prepared>> {
    Ok(Box::new(generated::GatePre::new(linked)?))
}

#[async_trait]
impl Prepared for generated::GatePre<State> {
    async fn instantiate(&self, store: &mut Store<State>) -> Result<Box<dyn Gate>> {
        Ok(Box::new(self.instantiate_async(store).await?))
    }
}

#[async_trait]
impl Gate for generated::Gate {
    async fn describe(&self, store: &mut Store<State>) -> Result<Description> {
        let name = self.sluice_gate_evaluator().call_name(store).await?;
        Ok(Description { name, version: String::new(), summary: String::new(), settings_schema: "{}".into() })
    }

    async fn validate(&self, _: &mut Store<State>, _: &str) -> Result<Vec<Problem>> {
        Ok(Vec::new())
    }

    async fn evaluate(&self, store: &mut Store<State>, settings: &str) -> Result<Result<Verdict, Trouble>> {
        let judged = self.sluice_gate_evaluator().call_judge(store, settings).await?;
        Ok(judged
            .map(|message| Verdict::Pass(Reason { code: "Good".into(), message }))
            .map_err(|message| Trouble { message, retry: false }))
    }
}

impl generated::sluice::gate::trial::Host for State {
    async fn log(&mut self, line: String) -> Result<()> {
        State::log(self, "info", &line, &[]).await
    }
}

/// A component of the world `gate` of a contract.
fn component(module: &str, contract: &str) -> Vec<u8> {
    let mut bytes = wat::parse_str(module).unwrap();
    let mut resolve = Resolve::default();
    let package = resolve.push_str("gate.wit", contract).unwrap();
    let world = resolve.select_world(&[package], Some("gate")).unwrap();
    embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8, false).unwrap();
    ComponentEncoder::default().validate(true).module(&bytes).and_then(|encoder| encoder.encode()).unwrap()
}

fn trial() -> Trial {
    Trial {
        id: "test".into(),
        namespace: "ns".into(),
        digest: Digest::of(b""),
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

#[tokio::test]
async fn guests_of_two_contracts_run_on_one_linker() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    let old = {
        let fixtures = |name: &str| read(&format!("tests/fixtures/gates/{name}.wat"));
        let module = format!("(module {}\n{})", fixtures("preamble"), fixtures("log_loop"));
        let module = module.replace("{{describe}}", "").replace("{{rounds}}", "1");
        component(&module, &read("wit/gate.wit"))
    };
    let new = component(
        r#"(module
            (import "sluice:gate/trial@0.2.0" "log" (func $log (param i32 i32)))
            (memory (export "memory") 1)
            (data (i32.const 16) "fine")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
            (func (export "sluice:gate/evaluator@0.2.0#name") (result i32) (unreachable))
            (func (export "sluice:gate/evaluator@0.2.0#judge") (param i32 i32) (result i32)
                (call $log (i32.const 16) (i32.const 4))
                (i32.store (i32.const 36) (i32.const 16))
                (i32.store (i32.const 40) (i32.const 4))
                (i32.const 32)))"#,
        &read("tests/fixtures/contract/next.wit"),
    );
    let sandbox = Sandbox::new(2, Compiles::Yes).unwrap();
    let offer = Offer::new(sandbox.engine(), BOTH, false).unwrap();
    assert_eq!(offer.supported(), "sluice:gate@0.1, sluice:gate@0.2");
    for (bytes, contract) in [(old, "sluice:gate@0.1.0"), (new, "sluice:gate@0.2.0")] {
        let component = Component::from_binary(sandbox.engine(), &bytes).unwrap();
        let fitted = plugin::fit(sandbox.engine(), &offer, &component).unwrap();
        assert_eq!(fitted.contract, contract);
        let reach = Arc::new(Reach::default());
        let run =
            store::run(&sandbox, &reach, fitted.prepared.as_ref(), trial(), |store, gate| gate.evaluate(store, "{}"));
        let ran = run.await;
        let judged = ran.answer.map(|answer| outcome(answer, &Limits::default()));
        let wanted = Reason { code: "Good".into(), message: "fine".into() };
        assert_eq!(judged, Ok(Outcome::Pass(wanted)), "{contract}");
        assert_eq!(ran.record.log.take_lines(), ["info fine"], "{contract}");
    }
}
