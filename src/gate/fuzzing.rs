//! What a guest is and what it says, as fuzzing has it.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use wasmtime::component::Component;

pub use super::host::fuzzing::authority;
use super::{
    bindings::{self, Description, TRACKS, Trouble, Verdict},
    engine::{Compiles, Sandbox},
    host,
    offer::Offer,
    plugin::{self, Fitted},
    reach::Reach,
    runner::quiet,
    store, text,
};
use crate::{
    fuzzing::{assert_shown, lines},
    model::trial::{Blame, Digest, Limits, LoadError, Outcome, Problem, Reason, Trial},
};

/// Bytes of a complaint: what is quoted, and the sentence around it.
const COMPLAINT: usize = 1 << 10;

/// The parts of a gate host that load a plugin, on one thread: what a fuzzer sees should depend on the bytes alone.
struct House {
    sandbox: Sandbox,
    offer: Offer,
    reach: Arc<Reach>,
    runtime: Runtime,
}

static HOUSE: LazyLock<House> = LazyLock::new(|| {
    let sandbox = Sandbox::new(1, Compiles::Yes).expect("an engine");
    let offer = Offer::new(sandbox.engine(), TRACKS, true).expect("a linker");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    House { sandbox, offer, reach: Arc::default(), runtime }
});

/// `bytes` as a plugin, through everything that loading one does. The compiler works in this process: what confines its
/// own is no matter of the bytes.
///
/// # Panics
/// Where a plugin is shown as what it is not, or a refusal is more than a sentence.
pub fn component(bytes: &[u8]) {
    let House { sandbox, offer, .. } = &*HOUSE;
    let fitted = plugin::check(bytes)
        .and_then(|()| Component::from_binary(sandbox.engine(), bytes).map_err(|error| plugin::not_compiled(&error)))
        .and_then(|component| plugin::fit(sandbox.engine(), offer, &component));
    match fitted {
        Ok(fitted) => {
            let Fitted { contract, imports, .. } = &fitted;
            assert!(contract.starts_with("sluice:gate@0.1."), "{contract:?}");
            assert!(imports.iter().all(|import| offer.has(import)), "{imports:?}");
            // A status has to hold them.
            assert!(imports.len() <= 128, "{} imports", imports.len());
            imports.iter().chain([contract]).for_each(|name| assert_shown(name, 64));
            describe(&fitted, Digest::of(bytes));
        }
        Err(refused) => {
            assert!(!matches!(refused, LoadError::Unavailable(_)), "{refused:?}");
            assert_shown(&refused.to_string(), COMPLAINT);
        }
    }
}

/// Asks a plugin what it is, as loading does, but less patiently.
fn describe(fitted: &Fitted, digest: Digest) {
    let trial = Trial { timeout: Duration::from_millis(200), ..quiet("describe", digest, Value::Null) };
    let House { sandbox, reach, runtime, .. } = &*HOUSE;
    let ran = store::run(sandbox, reach, fitted.prepared.as_ref(), trial, |store, gate| gate.describe(store));
    match runtime.block_on(ran).explained() {
        Ok(description) => described(description, &json!({})),
        // The end of what it wrote to stderr explains it.
        Err(Outcome::Error { message, .. }) => assert_shown(&message, COMPLAINT + (2 << 10)),
        Err(verdict) => panic!("{verdict:?}"),
    }
}

/// `bytes` in every place of what a guest says.
///
/// # Panics
/// Where it comes out as another verdict, as more than is taken, or as more than one line.
pub fn answer(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (first, rest) = lines(&text);
    let limits = Limits::default();
    for (code, message) in [(first, rest), ("Good", &*text)] {
        judged(code, message, bytes, &limits);
    }
    let trouble = Trouble { message: text.to_string(), retry: true };
    match bindings::outcome(Err(trouble), &limits) {
        Outcome::Error { blame: Blame::GateTrouble, message, retry: true } => assert_shown(&message, limits.message),
        other => panic!("{other:?}"),
    }
    let problem = || Problem { pointer: first.to_owned(), message: text.to_string() };
    let problems = bindings::problems(std::iter::repeat_with(problem).take(32).collect(), &limits);
    complained(&problems, limits.message);
    let description = Description {
        name: text.to_string(),
        version: text.to_string(),
        summary: text.to_string(),
        settings_schema: first.to_owned(),
    };
    described(description, &serde_json::from_str(rest).unwrap_or_else(|_| Value::String(text.to_string())));
    assert_shown(&text::end(&text, limits.message), limits.message);
    host::fuzzing::recorded(first, &text);
}

/// One reason with every verdict.
fn judged(code: &str, message: &str, state: &[u8], limits: &Limits) {
    let given = || Reason { code: code.to_owned(), message: message.to_owned() };
    let kinds: [fn(Reason) -> Verdict; 3] = [Verdict::Pass, Verdict::Fail, Verdict::Inconclusive];
    let wait = Verdict::Wait { reason: given(), after: Duration::ZERO, state: Some(state.to_vec()) };
    let verdicts = kinds.into_iter().map(|kind| kind(given())).chain([wait]);
    for (number, verdict) in verdicts.enumerate() {
        match (number, bindings::outcome(Ok(verdict), limits)) {
            (0, Outcome::Pass(reason))
            | (1, Outcome::Fail(reason))
            | (2, Outcome::Inconclusive(reason))
            | (3, Outcome::Wait { reason, .. }) => {
                assert_eq!(reason.code, code);
                assert!(code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{code:?}");
                assert_shown(&reason.message, limits.message);
                assert!(number < 3 || state.len() <= limits.state, "{} bytes of state", state.len());
            }
            // What is no verdict does not turn into one, and is as little one the next time.
            (_, Outcome::Error { blame: Blame::GateTrouble | Blame::MessageTooLarge, message, retry: false }) => {
                assert_shown(&message, limits.message);
            }
            (number, other) => panic!("verdict {number} became {other:?}"),
        }
    }
}

/// A description, and settings by its schema.
fn described(description: Description, settings: &Value) {
    match bindings::description(description) {
        Ok((shown, schema)) => {
            assert_shown(&shown.name, 64);
            assert_shown(&shown.version, 64);
            assert_shown(&shown.summary, 256);
            complained(&schema.problems(settings), 512);
        }
        Err(problem) => assert_shown(&problem, 512),
    }
}

fn complained(problems: &[Problem], limit: usize) {
    assert!(problems.len() <= 16, "{} problems", problems.len());
    for Problem { pointer, message } in problems {
        assert_shown(pointer, limit);
        assert_shown(message, limit);
    }
}
