//! The contract in `wit/`, one file for each version that is spoken, and what a guest's answers mean.
//!
//! Versions live side by side in one linker, for the names of their interfaces differ. What differs between them is
//! known to their own files only: everybody else speaks the words of this one, and of `host`.

#[cfg(test)]
mod next;
mod v0_1;

use std::time::Duration;

use async_trait::async_trait;
use wasmtime::{
    Result, Store,
    component::{InstancePre, Linker},
};

use super::{schema::Schema, store::State, text};
use crate::model::trial::{self, Blame, Limits, Outcome, Problem, Reason};

/// One minor version of the contract, which its patches only add to.
pub(super) struct Track {
    /// What its versions begin with: `0.1`.
    pub(super) version: &'static str,
    /// The interfaces a guest may import.
    pub(super) imports: &'static [&'static str],
    /// Puts them into a linker.
    pub(super) link: fn(&mut Linker<State>) -> Result<()>,
    /// Finds the evaluator of a component that is linked.
    pub(super) prepare: fn(InstancePre<State>) -> Result<Box<dyn Prepared>>,
}

/// Every track that is spoken. At most two, the newest and the one before it.
pub(super) const TRACKS: &[Track] = &[v0_1::TRACK];

/// A plugin that is linked: instances are made of it.
#[async_trait]
pub(super) trait Prepared: Send + Sync {
    /// A fresh instance.
    async fn instantiate(&self, store: &mut Store<State>) -> Result<Box<dyn Gate>>;
}

/// An instance, asked what a gate can be asked.
#[async_trait]
pub(super) trait Gate: Send + Sync {
    /// What it says of itself.
    async fn describe(&self, store: &mut Store<State>) -> Result<Description>;
    /// What it says is wrong with settings.
    async fn validate(&self, store: &mut Store<State>, settings: &str) -> Result<Vec<Problem>>;
    /// Its judgement.
    async fn evaluate(&self, store: &mut Store<State>, settings: &str) -> Result<Result<Verdict, Trouble>>;
}

/// What a guest says of itself, as it says it.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) summary: String,
    pub(super) settings_schema: String,
}

/// What a guest judges, as it says it.
#[derive(Debug)]
pub(super) enum Verdict {
    Pass(Reason),
    Fail(Reason),
    Inconclusive(Reason),
    Wait { reason: Reason, after: Duration, state: Option<Vec<u8>> },
}

/// Why a guest does not judge, as it says it.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) message: String,
    pub(super) retry: bool,
}

/// Bytes of what a plugin says of itself.
const NAME: usize = 64;
const SUMMARY: usize = 256;

/// Bytes of what is said of a schema, which may quote it.
const COMPLAINT: usize = 512;

/// Complaints kept of one answer; nobody reads more at once.
const PROBLEMS: usize = 16;

/// What a guest says of itself, fit to be shown, and its schema, compiled: no work for a thread that runs guests.
///
/// # Errors
/// Why the schema is none.
pub(super) fn description(given: Description) -> Result<(trial::Description, Schema), String> {
    let compiled = Schema::compile(&given.settings_schema);
    let (settings_schema, schema) = compiled.map_err(|problem| text::cut(&problem, COMPLAINT))?;
    let description = trial::Description {
        name: text::cut(&given.name, NAME),
        version: text::cut(&given.version, NAME),
        summary: text::cut(&given.summary, SUMMARY),
        settings_schema,
    };
    Ok((description, schema))
}

/// The outcome a verdict stands for. A verdict that is not well formed is no verdict.
pub(super) fn outcome(answer: Result<Verdict, Trouble>, limits: &Limits) -> Outcome {
    match answer {
        Ok(Verdict::Pass(given)) => reason(given, limits).map_or_else(|error| error, Outcome::Pass),
        Ok(Verdict::Fail(given)) => reason(given, limits).map_or_else(|error| error, Outcome::Fail),
        Ok(Verdict::Inconclusive(given)) => reason(given, limits).map_or_else(|error| error, Outcome::Inconclusive),
        Ok(Verdict::Wait { reason: given, after, state }) => {
            let size = state.as_ref().map_or(0, Vec::len);
            if size > limits.state {
                let message = format!("the state of a wait has {size} bytes, at most {} are kept", limits.state);
                return Outcome::Error { blame: Blame::MessageTooLarge, message, retry: false };
            }
            reason(given, limits).map_or_else(|error| error, |reason| Outcome::Wait { reason, after, state })
        }
        Err(trouble) => Outcome::Error {
            blame: Blame::GateTrouble,
            message: text::cut(&trouble.message, limits.message),
            retry: trouble.retry,
        },
    }
}

/// A reason that fits into conditions and Events, or the outcome that stands instead.
fn reason(given: Reason, limits: &Limits) -> Result<Reason, Outcome> {
    let size = given.code.len() + given.message.len();
    if size > limits.message {
        let message = format!("the verdict's reason has {size} bytes, at most {} are taken", limits.message);
        return Err(Outcome::Error { blame: Blame::MessageTooLarge, message, retry: false });
    }
    if !text::is_code(&given.code) {
        let message = format!("the verdict's code {:?} is not a CamelCase word", text::cut(&given.code, 64));
        return Err(Outcome::Error { blame: Blame::GateTrouble, message, retry: false });
    }
    Ok(Reason { code: given.code, message: text::cut(&given.message, limits.message) })
}

/// The plugin's own complaints, at most 16.
pub(super) fn problems(given: Vec<Problem>, limits: &Limits) -> Vec<Problem> {
    given
        .into_iter()
        .take(PROBLEMS)
        .map(|problem| Problem {
            pointer: text::cut(&problem.pointer, limits.message),
            message: text::cut(&problem.message, limits.message),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(code: &str, message: &str) -> Result<Verdict, Trouble> {
        Ok(Verdict::Pass(Reason { code: code.into(), message: message.into() }))
    }

    #[test]
    fn a_reason_of_exactly_the_limit_is_taken_and_one_byte_more_is_an_error() {
        let limits = Limits { message: 10, ..Limits::default() };
        assert!(matches!(outcome(pass("Good", "123456"), &limits), Outcome::Pass(_)));
        let over = outcome(pass("Good", "1234567"), &limits);
        assert!(matches!(over, Outcome::Error { blame: Blame::MessageTooLarge, retry: false, .. }), "{over:?}");
    }

    #[test]
    fn a_pass_whose_code_is_no_code_is_not_a_pass() {
        let outcome = outcome(pass("not a code", ""), &Limits::default());
        assert!(matches!(outcome, Outcome::Error { blame: Blame::GateTrouble, .. }), "{outcome:?}");
    }

    #[test]
    fn control_characters_of_a_message_are_shown_not_obeyed() {
        let Outcome::Pass(reason) = outcome(pass("Good", "a\u{1b}[31m\nb"), &Limits::default()) else {
            panic!("no pass")
        };
        assert_eq!(reason.message, "a\\u{1b}[31m\\nb");
    }

    #[test]
    fn the_gates_own_trouble_keeps_what_it_says_about_retrying() {
        let trouble = Err(Trouble { message: "no answer".into(), retry: true });
        let wanted = Outcome::Error { blame: Blame::GateTrouble, message: "no answer".into(), retry: true };
        assert_eq!(outcome(trouble, &Limits::default()), wanted);
    }
}
