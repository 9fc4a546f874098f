//! Why a command failed, in the form in which people get to read it.

use std::fmt;

/// What failed, where, and what to do next.
#[derive(Debug)]
pub struct Failure {
    what: String,
    cause: anyhow::Error,
    next: Option<String>,
}

impl Failure {
    /// `what` failed because of `cause`, whose own causes are shown too.
    pub fn new(what: impl Into<String>, cause: impl Into<anyhow::Error>) -> Self {
        Self { what: what.into(), cause: cause.into(), next: None }
    }

    /// The same, with what can be done about it.
    #[must_use]
    pub fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "error: {}", self.what)?;
        let mut said = String::new();
        for cause in self.cause.chain().map(ToString::to_string) {
            // Many errors repeat their cause in their own words.
            if !said.contains(&cause) {
                write!(formatter, "\n  cause: {}", cause.replace('\n', "\n         "))?;
                said.push_str(&cause);
            }
        }
        match &self.next {
            Some(next) => write!(formatter, "\n  next:  {next}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_failure_says_what_why_and_what_next() {
        let cause = anyhow!("connection refused").context("cannot connect: connection refused");
        let failure = Failure::new("the cluster does not answer", cause).next("start it");
        assert_eq!(
            failure.to_string(),
            "error: the cluster does not answer\n  cause: cannot connect: connection refused\n  next:  start it"
        );
    }
}
