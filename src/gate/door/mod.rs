//! The door to a gate host in a process of its own: HTTP/1.1 over a Unix socket, a connection for each question.
//!
//! | question | body | answer |
//! |---|---|---|
//! | `GET /v1/presence` | | a line at once, then nothing until the host ends: so its end is noticed |
//! | `PUT /v1/plugins` | a component | [`Loaded`](crate::model::trial::Loaded) or `LoadError` |
//! | `DELETE /v1/plugins/{digest}` | | |
//! | `POST /v1/plugins/{digest}/settings` | settings | problems or an outcome |
//! | `POST /v1/trials` | [`Trial`](crate::model::trial::Trial) | [`Report`](crate::model::trial::Report) |
//!
//! A connection that is closed cancels what it asked for. The version is in the path: a host that does not know it
//! answers 404, and the client says that both containers have to be of one image. Bodies are bounded on both sides;
//! who breaks the bounds is cut off.

mod client;
mod server;

use serde::{Deserialize, Serialize};

pub use self::{client::RemoteGateHost, server::serve};

/// The first segment of every path.
const VERSION: &str = "/v1";

/// Bytes of a question that is not a component: settings, or a trial with two manifests.
const QUESTION: usize = 8 << 20;

/// Bytes of an answer: a report is cut to its limits long before.
const ANSWER: usize = 8 << 20;

/// `Result` on the wire, where an error is an answer like any other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer<T, E> {
    Ok(T),
    Err(E),
}

impl<T, E> From<Result<T, E>> for Answer<T, E> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(answer) => Self::Ok(answer),
            Err(error) => Self::Err(error),
        }
    }
}

impl<T, E> From<Answer<T, E>> for Result<T, E> {
    fn from(answer: Answer<T, E>) -> Self {
        match answer {
            Answer::Ok(answer) => Ok(answer),
            Answer::Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
