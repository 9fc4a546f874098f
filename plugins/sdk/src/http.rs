//! Requests with the face people know from other languages' `requests` and `fetch`.

use std::{borrow::Cow, time::Duration};

use serde::de::DeserializeOwned;

use crate::{
    Failure, Response,
    bindings::sluice::gate::probe::{self, Request as Wire},
};

/// A request to a target, sent by the host over a connection of its own. Redirects are not followed.
#[derive(Clone, Debug)]
pub struct Request(Wire);

impl Request {
    /// `method` is one of `GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE`, `OPTIONS`; `path` starts with `/`.
    #[must_use]
    pub fn new(method: &str, target: &str, path: &str) -> Self {
        Self(Wire {
            target: target.to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            options: Vec::new(),
        })
    }

    /// A `GET`.
    #[must_use]
    pub fn get(target: &str, path: &str) -> Self {
        Self::new("GET", target, path)
    }

    /// A `POST`.
    #[must_use]
    pub fn post(target: &str, path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target, path).body(body)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.0.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.0.body = body.into();
        self
    }

    /// Sets the `Host` header and the TLS server name; by default they are the target's own.
    #[must_use]
    pub fn host(self, host: &str) -> Self {
        self.option("host", host)
    }

    /// Asks one endpoint of the target instead of the Service in front of them.
    #[must_use]
    pub fn endpoint(self, name: &str) -> Self {
        self.option("endpoint", name)
    }

    /// Bounds the whole exchange; 10 s by default.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.option("timeout-ms", &timeout.as_millis().to_string())
    }

    /// Bounds the bytes of the body that are handed over.
    #[must_use]
    pub fn max_body(self, bytes: u32) -> Self {
        self.option("max-body", &bytes.to_string())
    }

    fn option(mut self, key: &str, value: &str) -> Self {
        self.0.options.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sends it and waits for the answer.
    ///
    /// # Errors
    /// Says in one word and a sentence why there is no answer.
    pub fn send(self) -> Result<Response, Failure> {
        // One answer per request is the host's promise.
        probe::send(&[self.0], 1).pop().unwrap_or_else(|| {
            Err(Failure { kind: "protocol".to_owned(), message: "the host gave no answer".to_owned() })
        })
    }
}

/// What the host takes in one call.
const BATCH: usize = 1_000;

/// Sends all `requests`, at most `concurrency` at a time. The answers come in the order of the requests.
#[must_use]
pub fn send_all(requests: impl IntoIterator<Item = Request>, concurrency: u16) -> Vec<Result<Response, Failure>> {
    let requests: Vec<Wire> = requests.into_iter().map(|request| request.0).collect();
    requests.chunks(BATCH).flat_map(|batch| probe::send(batch, concurrency)).collect()
}

impl Response {
    /// The first value of a header, if it is text. Names are compared without case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.header_values(name).next()
    }

    /// Every value of a header that is text.
    pub fn header_values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers
            .iter()
            .filter(move |(header, _)| header.eq_ignore_ascii_case(name))
            .filter_map(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// The body as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    /// The body read from JSON.
    ///
    /// # Errors
    /// Where it is not JSON of that shape, or was cut.
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.body)
    }

    /// Milliseconds from the start of the connection to the end of the answer.
    #[must_use]
    pub fn latency(&self) -> f64 {
        self.timings.3
    }
}
