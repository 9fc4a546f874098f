//! Gates in other languages, as their toolchains build the templates, against a real server.

use bytes::Bytes;
use serde_json::json;
use sluice::model::trial::{Blame, Outcome, Report, Scheme};
use sluice_plugins::guests::Guest;

use super::{assert_blames, candidate, host, root, run, targets::answering};

/// The component of a template; none where this machine cannot have the toolchain.
#[expect(clippy::print_stderr, reason = "whoever reads the log should know what did not run")]
async fn component(guest: Guest) -> Option<Bytes> {
    if !guest.is_possible() {
        eprintln!("skipped: {} needs {}, which is not on this machine", guest.name(), guest.installer());
        return None;
    }
    let built = tokio::task::spawn_blocking(move || guest.build(root())).await.unwrap();
    Some(std::fs::read(built.unwrap_or_else(|error| panic!("{error:#}")).path).unwrap().into())
}

/// Passes on 200, fails on 500, and says what went wrong where nobody listens.
async fn judges(guest: Guest) {
    let Some(bytes) = component(guest).await else { return };
    let host = host();
    let asked = async |status: &str| -> Report {
        let address = answering(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")).await;
        run(&host, bytes.clone(), |trial| trial.targets = vec![candidate(Scheme::Http, &[address])]).await
    };
    let good = asked("200 OK").await;
    let Outcome::Pass(reason) = &good.outcome else { panic!("{good:#?}") };
    assert_eq!((reason.code.as_str(), reason.message.as_str()), ("AnswersOk", "candidate/proxy/ answers 200"));
    assert_eq!(good.cost.requests, 1);
    let bad = asked("500 Internal Server Error").await;
    let Outcome::Fail(reason) = &bad.outcome else { panic!("{bad:#?}") };
    assert_eq!(reason.code, "UnexpectedStatus");
    let denied = run(&host, bytes.clone(), |_| {}).await;
    let blame = match guest {
        // An exception is a trap, and what it says is on stderr only.
        Guest::QuickJs | Guest::Python => Blame::Trap,
        // Here it becomes the contract's own trouble.
        Guest::StarlingMonkey => Blame::GateTrouble,
    };
    assert_blames(&denied, blame);
    let Outcome::Error { message, .. } = &denied.outcome else { unreachable!() };
    assert!(message.contains("denied: "), "{message}");
    let wrong = run(&host, bytes, |trial| trial.settings = json!({"path": "no slash"})).await;
    assert_blames(&wrong, Blame::InvalidSettings);
}

#[tokio::test]
async fn a_gate_in_javascript_run_by_quickjs_judges() {
    judges(Guest::QuickJs).await;
}

#[tokio::test]
async fn a_gate_in_javascript_run_by_starlingmonkey_judges() {
    judges(Guest::StarlingMonkey).await;
}

#[tokio::test]
async fn a_gate_in_python_judges() {
    judges(Guest::Python).await;
}
