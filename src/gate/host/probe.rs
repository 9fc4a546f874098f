//! `sluice:gate/probe`: HTTP on behalf of a gate. Here requests are judged; `exchange` sends them.
//!
//! What a guest writes is compared with names, never parsed as an address and never resolved. Every address
//! that is dialled comes from the trial's table.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use hyper::{
    Method, Uri,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    http::uri::Authority,
};
use tokio_util::task::AbortOnDropHandle;
use wasmtime::Result;

use super::{
    exchange::{self, Exchange},
    traffic::Traffic,
};
use crate::{
    gate::{
        bindings::probe::{Failure, Host, Request, Response},
        store::State,
        text,
    },
    model::trial::{Scheme, Target},
};

/// Requests of one call of `send`. More than a gate needs at once, and a bound on the answers held for it.
const BATCH: usize = 1_000;

/// Bytes of bodies handed over by one call of `send`, shared equally by its requests: what is held for a
/// guest counts in nobody's memory limit until the guest has it.
const BODIES: usize = 16 << 20;

/// Time of one request that says nothing else. A request that nobody answers should leave time for a verdict.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Headers of one request and bytes of them: what common servers take.
const HEADERS: usize = 64;
const HEADER_BYTES: usize = 16 << 10;

/// Bytes of what a failure repeats of the guest's own words.
const QUOTE: usize = 128;

/// Methods a gate may use. `CONNECT` and `TRACE` are not requests to the target.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// Headers of the connection, not of the request: whoever may set them may smuggle a second request.
const CONNECTION_HEADERS: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Why a request is not sent.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// It asks for something that was not granted; the name is remembered.
    Denied(String),
    /// It is no request this host sends.
    Invalid(String),
}

/// Checks a request against the granted `targets` and writes out what will be sent.
///
/// # Errors
/// The first reason not to send it.
fn check(request: Request, targets: &[Target], max_body: usize, traffic: &Traffic) -> Result<Exchange, Refusal> {
    let Some(target) = targets.iter().find(|target| target.name == request.target) else {
        return Err(Refusal::Denied(request.target));
    };
    let options = Options::read(&request.options, max_body)?;
    let (endpoint, address) = match options.endpoint {
        None => (String::new(), target.service),
        Some(name) => match target.endpoints.iter().find(|endpoint| endpoint.name == name) {
            Some(endpoint) => (endpoint.name.clone(), endpoint.address),
            None => return Err(Refusal::Denied(format!("{} endpoint {name}", target.name))),
        },
    };
    let method = METHODS
        .into_iter()
        .find(|method| method.as_str() == request.method)
        .ok_or_else(|| invalid("method", &request.method))?;
    let host = options.host.unwrap_or(&target.host);
    Ok(Exchange {
        address,
        endpoint,
        tls: match target.scheme {
            Scheme::Http => false,
            Scheme::HttpsUnverified => true,
        },
        authority: authority(host)?,
        method,
        path: path(&request.path)?,
        headers: headers(&request.headers)?,
        body: Bytes::from(request.body),
        timeout: options.timeout,
        max_body: options.max_body,
        traffic: traffic.clone(),
    })
}

/// `request.options`, read.
struct Options<'a> {
    host: Option<&'a str>,
    endpoint: Option<&'a str>,
    timeout: Duration,
    max_body: usize,
}

impl<'a> Options<'a> {
    fn read(given: &'a [(String, String)], max_body: usize) -> Result<Self, Refusal> {
        let mut options = Self { host: None, endpoint: None, timeout: TIMEOUT, max_body };
        for (key, value) in given {
            match key.as_str() {
                "host" => options.host = Some(value),
                "endpoint" => options.endpoint = Some(value),
                // No gate is granted one yet.
                "credential" => return Err(Refusal::Denied(format!("credential {value}"))),
                "timeout-ms" => {
                    let milliseconds = value.parse::<u32>().ok().filter(|milliseconds| *milliseconds > 0);
                    let milliseconds = milliseconds.ok_or_else(|| invalid("timeout-ms", value))?;
                    options.timeout = Duration::from_millis(milliseconds.into());
                }
                "max-body" => {
                    let bytes = value.parse::<u32>().map_err(|_| invalid("max-body", value))?;
                    options.max_body = usize::try_from(bytes).unwrap_or(usize::MAX).min(max_body);
                }
                unknown => return Err(invalid("option", unknown)),
            }
        }
        Ok(options)
    }
}

fn invalid(what: &str, given: &str) -> Refusal {
    Refusal::Invalid(format!("{what} {:?} is not taken", text::cut(given, QUOTE)))
}

/// An origin-form request target: a path and perhaps a query, visible ASCII only.
fn path(given: &str) -> Result<Uri, Refusal> {
    let plain = given.starts_with('/') && given.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let uri = plain.then(|| Uri::try_from(given).ok()).flatten();
    uri.filter(|uri| uri.authority().is_none()).ok_or_else(|| invalid("path", given))
}

/// A host, perhaps with a port. It is written into `Host` and the TLS handshake; nobody dials it.
fn authority(given: &str) -> Result<Authority, Refusal> {
    let authority = Authority::try_from(given).ok().filter(|_| !given.contains('@'));
    authority.ok_or_else(|| invalid("host", given))
}

fn headers(given: &[(String, String)]) -> Result<HeaderMap, Refusal> {
    let bytes: usize = given.iter().map(|(name, value)| name.len() + value.len()).sum();
    if given.len() > HEADERS || bytes > HEADER_BYTES {
        let message = format!("more than {HEADERS} headers or {HEADER_BYTES} bytes of them");
        return Err(Refusal::Invalid(message));
    }
    let mut headers = HeaderMap::with_capacity(given.len());
    for (name, value) in given {
        let field = HeaderName::try_from(name.as_str()).map_err(|_| invalid("header", name))?;
        if field == header::HOST {
            return Err(Refusal::Invalid("the host is set by the option `host`, not by a header".into()));
        }
        if CONNECTION_HEADERS.contains(&field.as_str()) {
            return Err(invalid("header", name));
        }
        let value = HeaderValue::try_from(value.as_str()).map_err(|_| invalid("value of header", name))?;
        headers.append(field, value);
    }
    Ok(headers)
}

impl State {
    /// Judges one request and takes it out of the budget.
    fn admit(&mut self, position: usize, request: Request, share: usize) -> Result<Exchange, Failure> {
        if position >= BATCH {
            return Err(failure("invalid", format!("more than {BATCH} requests in one call")));
        }
        let max_body = self.trial.limits.body.min(share);
        let exchange = match check(request, &self.trial.targets, max_body, &self.traffic) {
            Ok(exchange) => exchange,
            Err(Refusal::Invalid(message)) => return Err(failure("invalid", message)),
            Err(Refusal::Denied(name)) => {
                self.record.deny(&name);
                return Err(failure("denied", format!("{:?} was not granted", text::cut(&name, QUOTE))));
            }
        };
        if self.record.requests >= self.trial.limits.requests {
            let message = format!("all {} requests of this trial are used up", self.trial.limits.requests);
            return Err(failure("budget", message));
        }
        self.traffic.take(exchange.size())?;
        self.record.requests += 1;
        self.record.unverified_tls |= exchange.tls;
        Ok(exchange)
    }
}

impl Host for State {
    async fn send(&mut self, requests: Vec<Request>, concurrency: u16) -> Result<Vec<Result<Response, Failure>>> {
        self.enter().await?;
        let share = BODIES / requests.len().max(1);
        let admitted = requests.into_iter().enumerate();
        let admitted: Vec<_> = admitted.map(|(position, request)| self.admit(position, request, share)).collect();
        let concurrency = usize::from(concurrency.clamp(1, self.trial.limits.concurrency.max(1)));
        let mut answers: Vec<_> = stream::iter(admitted.into_iter().enumerate())
            .map(|(position, admitted)| async move {
                let answer = match admitted {
                    // A task of its own: its CPU time is bounded by the number of requests and is not the
                    // guest's computing. It ends with the handle, so with the trial.
                    Ok(exchange) => match AbortOnDropHandle::new(tokio::spawn(exchange::send(exchange))).await {
                        Ok(answer) => answer,
                        Err(_) => Err(failure("protocol", "the host could not handle the answer".into())),
                    },
                    Err(failure) => Err(failure),
                };
                (position, answer)
            })
            .buffer_unordered(concurrency)
            .collect()
            .await;
        answers.sort_unstable_by_key(|(position, _)| *position);
        let answers: Vec<_> = answers.into_iter().map(|(_, answer)| answer).collect();
        for answer in answers.iter().flatten() {
            self.record.answered(&answer.endpoint);
        }
        Ok(answers)
    }
}

/// A failure as the guest sees it.
pub(super) fn failure(kind: &str, message: String) -> Failure {
    Failure { kind: kind.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::trial::Endpoint;

    fn targets() -> Vec<Target> {
        vec![Target {
            name: "candidate/proxy".into(),
            scheme: Scheme::Http,
            service: ([10, 0, 0, 1], 80).into(),
            host: "proxy.example.com".into(),
            endpoints: vec![Endpoint { name: "pod-a".into(), address: ([10, 1, 0, 1], 8000).into() }],
        }]
    }

    fn request() -> Request {
        Request {
            target: "candidate/proxy".into(),
            method: "GET".into(),
            path: "/".into(),
            headers: vec![],
            body: vec![],
            options: vec![],
        }
    }

    fn checked(request: Request) -> Result<Exchange, Refusal> {
        check(request, &targets(), 1 << 20, &Traffic::new(0))
    }

    #[test]
    fn a_granted_target_is_dialled_at_the_address_of_the_table() {
        let exchange = checked(request()).unwrap();
        assert_eq!((exchange.address, exchange.endpoint.as_str()), (([10, 0, 0, 1], 80).into(), ""));
        let options = vec![("endpoint".into(), "pod-a".into())];
        let exchange = checked(Request { options, ..request() }).unwrap();
        assert_eq!((exchange.address, exchange.endpoint.as_str()), (([10, 1, 0, 1], 8000).into(), "pod-a"));
    }

    #[test]
    fn every_other_name_is_denied_however_it_is_spelled() {
        for target in [
            "",
            "Candidate/proxy",
            "candidate/proxy.",
            "candidate/proxy ",
            "candidate/proxy\0",
            "stable/proxy",
            "localhost",
            "10.0.0.1:80",
            "http://candidate/proxy@169.254.169.254/",
        ] {
            let refusal = checked(Request { target: target.into(), ..request() }).unwrap_err();
            assert_eq!(refusal, Refusal::Denied(target.into()));
        }
        let options = vec![("endpoint".into(), "10.1.0.1".into())];
        let refusal = checked(Request { options, ..request() }).unwrap_err();
        assert_eq!(refusal, Refusal::Denied("candidate/proxy endpoint 10.1.0.1".into()));
        let options = vec![("credential".into(), "token".into())];
        let refusal = checked(Request { options, ..request() }).unwrap_err();
        assert_eq!(refusal, Refusal::Denied("credential token".into()));
    }

    #[test]
    fn only_methods_that_are_requests_to_the_target_are_taken() {
        for method in METHODS {
            assert!(checked(Request { method: method.to_string(), ..request() }).is_ok(), "{method}");
        }
        for method in ["", "get", "CONNECT", "TRACE", "PRI", "GET / HTTP/1.1\r\n\r\nGET"] {
            let refusal = checked(Request { method: method.into(), ..request() }).unwrap_err();
            assert!(matches!(refusal, Refusal::Invalid(_)), "{method:?}");
        }
    }

    #[test]
    fn only_paths_in_origin_form_are_taken() {
        for path in ["/", "/a/b?c=d&e=%20", "//double", "/a:b@c"] {
            let exchange = checked(Request { path: path.into(), ..request() }).unwrap();
            assert_eq!(exchange.path.to_string(), path);
        }
        for path in ["", "a", "*", "http://169.254.169.254/", "/a b", "/a\r\nHost: x", "/\0", "/ü", "/a#b", "?a"] {
            let refusal = checked(Request { path: path.into(), ..request() }).unwrap_err();
            assert!(matches!(refusal, Refusal::Invalid(_)), "{path:?}");
        }
    }

    #[test]
    fn headers_of_the_connection_and_broken_ones_are_refused() {
        let with =
            |name: &str, value: &str| checked(Request { headers: vec![(name.into(), value.into())], ..request() });
        assert_eq!(with("X-Trace", "a b").unwrap().headers["x-trace"], "a b");
        for name in CONNECTION_HEADERS.into_iter().chain(["Host", "Transfer-Encoding", "a b", "", "a:b", "x\r\ny"]) {
            assert!(matches!(with(name, "1"), Err(Refusal::Invalid(_))), "{name:?}");
        }
        for value in ["a\r\nb", "a\nb", "\0"] {
            assert!(matches!(with("x-a", value), Err(Refusal::Invalid(_))), "{value:?}");
        }
        let many = |count| checked(Request { headers: vec![("a".into(), "b".into()); count], ..request() });
        assert!(many(HEADERS).is_ok());
        assert!(many(HEADERS + 1).is_err());
    }

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let with = |key: &str, value: &str| checked(Request { options: vec![(key.into(), value.into())], ..request() });
        assert_eq!(with("host", "api.example.com:8443").unwrap().authority.as_str(), "api.example.com:8443");
        assert_eq!(with("timeout-ms", "250").unwrap().timeout, Duration::from_millis(250));
        assert_eq!(with("max-body", "7").unwrap().max_body, 7);
        assert_eq!(with("max-body", "4000000000").unwrap().max_body, 1 << 20);
        for (key, value) in [
            ("host", "a@b"),
            ("host", "a/b"),
            ("host", "a\r\nb"),
            ("host", ""),
            ("timeout-ms", "0"),
            ("timeout-ms", "-1"),
            ("timeout-ms", "inf"),
            ("max-body", "1k"),
            ("proxy", "x"),
            ("", ""),
        ] {
            assert!(matches!(with(key, value), Err(Refusal::Invalid(_))), "{key:?} {value:?}");
        }
    }
}
