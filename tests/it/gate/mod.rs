//! The gate host against guests that behave and guests that do not. Needs no cluster.

mod compile;
mod confined;
mod fixtures;
mod guests;
mod hostile;
mod http;
mod limits;
mod load;
mod outside;
mod process;
mod replace;
mod smoke;
mod smuggling;
mod targets;
mod wasi;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use sluice::{
    gate::{Capacity, Compiler, GateHost as _, LocalGateHost},
    model::trial::{Blame, Endpoint, Loaded, Method, Outcome, Report, Scheme, Target, Trial},
};
use tokio::net::TcpListener;

pub(crate) use self::fixtures::{component, contract, fixture, module, root, trial};

/// Far beyond what anything here takes: reached only by a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host with room for four trials on two threads.
pub(crate) fn host() -> LocalGateHost {
    let capacity = Capacity { trials: 4.try_into().unwrap(), threads: 2.try_into().unwrap() };
    LocalGateHost::start(capacity, Compiler::InProcess).expect("a gate host")
}

/// A component that owns a resource, as only its own make handles: the contract has none.
fn with_a_resource(module: &str) -> Bytes {
    let thing = r#"(module
        (import "[export]sluice:gate/things@0.1.0" "[resource-new]thing" (func $new (param i32) (result i32)))
        (import "[export]sluice:gate/things@0.1.0" "[resource-drop]thing" (func $drop (param i32)))"#;
    let things = "interface things { resource thing; }\nworld gate {\n  export things;";
    component(&module.replacen("(module", thing, 1), &contract().replace("world gate {", things))
}

/// One request, as the fixture `request` sends it.
#[derive(Clone, Copy)]
struct Asks<'words> {
    method: &'words str,
    path: &'words str,
    /// Name and value; none where the name is empty.
    header: (&'words str, &'words str),
    /// Likewise.
    option: (&'words str, &'words str),
}

impl Default for Asks<'_> {
    fn default() -> Self {
        Self { method: "GET", path: "/", header: ("", ""), option: ("", "") }
    }
}

impl Asks<'_> {
    /// The gate that asks so.
    fn gate(self) -> Bytes {
        let texts = [
            ("method", self.method),
            ("path", self.path),
            ("name", self.header.0),
            ("value", self.header.1),
            ("option", self.option.0),
            ("setting", self.option.1),
        ];
        let words = texts
            .map(|(name, text)| [(name.to_owned(), data(text)), (format!("{name}_bytes"), text.len().to_string())]);
        let words: Vec<(&str, &str)> =
            words.iter().flatten().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        fixture("request", &words)
    }
}

/// Any text as the text of a module has it.
pub(crate) fn data(text: &str) -> String {
    text.bytes().map(|byte| format!("\\{byte:02x}")).collect()
}

/// What a fixture heard: it passes with it.
#[track_caller]
fn heard(report: &Report) -> &str {
    match &report.outcome {
        Outcome::Pass(reason) => &reason.message,
        other => panic!("{other:?}"),
    }
}

/// Nobody is in the queue: whoever connected would be there already.
fn assert_nobody_came(listener: &TcpListener) {
    let nobody = futures::future::FutureExt::now_or_never(listener.accept());
    assert!(nobody.is_none(), "{nobody:?}");
}

/// Loads `bytes` and runs one trial of them, changed by `change`.
async fn run(host: &LocalGateHost, bytes: Bytes, change: impl FnOnce(&mut Trial)) -> Report {
    let Loaded { digest, .. } = host.load(bytes).await.expect("a plugin that loads");
    let mut trial = trial(&digest);
    change(&mut trial);
    host.run(trial).await
}

/// The candidate as a target named `candidate/proxy`: a Service at the first address, a Pod at each.
fn candidate(scheme: Scheme, addresses: &[SocketAddr]) -> Target {
    let endpoint =
        |(number, address): (usize, &SocketAddr)| Endpoint { name: format!("pod-{number}"), address: *address };
    Target {
        name: "candidate/proxy".into(),
        scheme,
        service: addresses[0],
        host: "proxy.example.com".into(),
        endpoints: addresses.iter().enumerate().map(endpoint).collect(),
        methods: Method::ALL.to_vec(),
    }
}

#[track_caller]
fn assert_passes(report: &Report) {
    assert!(matches!(report.outcome, Outcome::Pass(_)), "{report:#?}");
}

#[track_caller]
fn assert_blames(report: &Report, wanted: Blame) {
    match &report.outcome {
        Outcome::Error { blame, message, .. } => {
            assert_eq!(*blame, wanted, "{report:#?}");
            assert!(!message.is_empty() && message.len() < 3 << 10 && !message.contains('\n'), "{message:?}");
        }
        other => panic!("{other:?}, expected {wanted:?}"),
    }
}

/// Settings that are one text.
pub(crate) fn text(text: &str) -> Value {
    Value::String(text.into())
}
