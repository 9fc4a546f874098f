//! The contract in `wit/` as Rust, and the only place that knows both its types and our nouns.

use std::time::Duration;

use generated::exports::sluice::gate::evaluator;

use super::text;
use crate::model::trial::{Blame, Limits, Outcome, Problem, Reason};

/// What the engine's macro makes of `wit/gate.wit`.
mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "gate",
        imports: { default: async | trappable },
        exports: { default: async },
    });
}

pub(super) use evaluator::{Description, Trouble, Verdict};
pub(super) use generated::{
    Gate, GatePre,
    sluice::gate::{probe, trial},
};

/// The contracts this host speaks, as shown to people.
pub(super) const SUPPORTED: &str = "sluice:gate@0.1";

/// Complaints kept of one answer; nobody reads more at once.
const PROBLEMS: usize = 16;

/// The outcome a verdict stands for. A verdict that is not well formed is no verdict.
pub(super) fn outcome(answer: Result<Verdict, Trouble>, limits: &Limits) -> Outcome {
    match answer {
        Ok(Verdict::Pass(given)) => reason(given, limits).map_or_else(|error| error, Outcome::Pass),
        Ok(Verdict::Fail(given)) => reason(given, limits).map_or_else(|error| error, Outcome::Fail),
        Ok(Verdict::Inconclusive(given)) => reason(given, limits).map_or_else(|error| error, Outcome::Inconclusive),
        Ok(Verdict::Wait(later)) => {
            let size = later.state.as_ref().map_or(0, Vec::len);
            if size > limits.state {
                let message = format!("the state of a wait has {size} bytes, at most {} are kept", limits.state);
                return Outcome::Error { blame: Blame::MessageTooLarge, message, retry: false };
            }
            let after = Duration::from_millis(later.after.into());
            reason(later.reason, limits)
                .map_or_else(|error| error, |reason| Outcome::Wait { reason, after, state: later.state })
        }
        Err(trouble) => Outcome::Error {
            blame: Blame::GateTrouble,
            message: text::cut(&trouble.message, limits.message),
            retry: trouble.retry,
        },
    }
}

/// A reason that fits into conditions and Events, or the outcome that stands instead.
fn reason(given: evaluator::Reason, limits: &Limits) -> Result<Reason, Outcome> {
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
pub(super) fn problems(given: Vec<evaluator::Problem>, limits: &Limits) -> Vec<Problem> {
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
        Ok(Verdict::Pass(evaluator::Reason { code: code.into(), message: message.into() }))
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
