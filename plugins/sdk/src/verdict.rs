//! Short ways to say what a gate found.

use std::time::Duration;

use crate::{Later, Reason, Trouble, Verdict};

impl Verdict {
    /// The candidate is good. `code` is a stable CamelCase word.
    #[must_use]
    pub fn pass(code: &str, message: impl Into<String>) -> Self {
        Self::Pass(reason(code, message))
    }

    /// The candidate is bad.
    #[must_use]
    pub fn fail(code: &str, message: impl Into<String>) -> Self {
        Self::Fail(reason(code, message))
    }

    /// The gate looked and could not tell.
    #[must_use]
    pub fn inconclusive(code: &str, message: impl Into<String>) -> Self {
        Self::Inconclusive(reason(code, message))
    }

    /// Ask again in a while.
    #[must_use]
    pub fn wait(code: &str, message: impl Into<String>, after: Duration) -> Self {
        let after = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        Self::Wait(Later { reason: reason(code, message), after, state: None })
    }
}

fn reason(code: &str, message: impl Into<String>) -> Reason {
    Reason { code: code.to_owned(), message: message.into() }
}

impl Trouble {
    /// May go away by itself: worth another attempt.
    #[must_use]
    pub fn passing(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: true }
    }

    /// Stays until somebody changes something.
    #[must_use]
    pub fn lasting(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: false }
    }
}
