//! `sluice:gate/probe`: HTTP on behalf of a gate. Here requests are judged; `exchange` sends them.
//!
//! What a guest writes is compared with names, never parsed as an address and never resolved. Every address
//! that is dialled comes from the trial's table.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use hyper::{
    Uri,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    http::uri::Authority,
};
use rustls::ClientConfig;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::Result;

use super::{
    credentials,
    egress::Remote,
    exchange::{self, Exchange, Peer, Tls},
    traffic::Traffic,
};
use crate::{
    gate::{store::State, text},
    model::trial::{Absent, Credential, Method, Scheme, Target},
};

/// A request as the guest writes it.
#[derive(Debug)]
pub(in crate::gate) struct Request {
    pub(in crate::gate) target: String,
    pub(in crate::gate) method: String,
    pub(in crate::gate) path: String,
    pub(in crate::gate) headers: Vec<(String, String)>,
    pub(in crate::gate) body: Vec<u8>,
    pub(in crate::gate) options: Vec<(String, String)>,
}

/// An answer as the guest reads it.
#[derive(Debug)]
pub(in crate::gate) struct Response {
    pub(in crate::gate) endpoint: String,
    pub(in crate::gate) status: u16,
    pub(in crate::gate) http_version: &'static str,
    pub(in crate::gate) headers: Vec<(String, Vec<u8>)>,
    pub(in crate::gate) body: Vec<u8>,
    pub(in crate::gate) body_size: u32,
    /// Milliseconds from the start until connected, secured, first byte, complete.
    pub(in crate::gate) timings: (f64, f64, f64, f64),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gate) struct Failure {
    pub(in crate::gate) kind: Kind,
    pub(in crate::gate) message: String,
}

/// What kind of failure. The contract says that more may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum Kind {
    /// Not granted.
    Denied,
    /// Nothing that this host sends.
    Invalid,
    Connect,
    Tls,
    Timeout,
    Protocol,
    /// The trial's requests are used up.
    Budget,
    /// The answer is larger than a gate is given.
    TooLarge,
    /// Who was asked refuses to answer.
    Refused,
}

impl Kind {
    /// As the guest reads it.
    pub(in crate::gate) fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Budget => "budget",
            Self::TooLarge => "too-large",
            Self::Refused => "refused",
        }
    }
}

/// Requests of one call of `send`. More than a gate needs at once, and a bound on the answers held for it.
const BATCH: usize = 1_000;

/// Bytes of bodies handed over by one call of `send`, shared equally by its requests: what is held for a
/// guest counts in nobody's memory limit until the guest has it.
pub(super) const BODIES: usize = 16 << 20;

/// Time of one request that says nothing else. A request that nobody answers should leave time for a verdict.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Headers of one request and bytes of them: what common servers take.
const HEADERS: usize = 64;
const HEADER_BYTES: usize = 16 << 10;

/// Bytes of what a failure repeats of the guest's own words.
const QUOTE: usize = 128;

/// Headers of the connection, not of the request: whoever may set them may smuggle a second request.
pub(super) const CONNECTION_HEADERS: [&str; 11] = [
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

/// Headers for the host itself, in contracts of ours and of others: never sent.
pub(super) const OURS: &str = "x-gate-";

/// Why a request is not sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It asks for something that was not granted; the name is remembered.
    Denied(String),
    /// It asks for something that was granted and is not there; likewise.
    Absent(Absent),
    /// It is no request this host sends.
    Invalid(String),
}

/// Everything a trial may speak to, by name.
pub(super) struct Table<'trial> {
    pub(super) targets: &'trial [Target],
    pub(super) absent: &'trial [Absent],
    pub(super) remotes: &'trial [Arc<Remote>],
    pub(super) credentials: &'trial [Credential],
    /// For hosts outside.
    pub(super) tls: &'trial Arc<ClientConfig>,
    /// For targets that ask who we are.
    pub(super) identified: Option<&'trial Arc<ClientConfig>>,
    /// Counts what is sent and received.
    pub(super) traffic: &'trial Traffic,
}

/// What a name stands for.
struct Granted<'trial> {
    peer: Peer,
    tls: Tls,
    host: Authority,
    methods: &'trial [Method],
}

impl Table<'_> {
    /// Checks a request and writes out what will be sent.
    ///
    /// # Errors
    /// The first reason not to send it.
    pub(super) fn check(&self, request: Request, max_body: usize) -> Result<Exchange, Refusal> {
        let options = Options::read(&request.options, max_body)?;
        let granted = self.find(&request.target, &options)?;
        let method = Method::ALL.into_iter().find(|method| method.as_str() == request.method);
        let method = method.ok_or_else(|| invalid("method", &request.method))?;
        if !granted.methods.contains(&method) {
            return Err(Refusal::Denied(format!("{} {}", method.as_str(), request.target)));
        }
        let path = path(&request.path)?;
        let mut headers = headers(&request.headers)?;
        for header in headers.keys() {
            credentials::reserved(self.credentials, &request.target, header)?;
        }
        if let Some(name) = options.credential {
            let (field, value) = credentials::header(self.credentials, name, &request.target, &request.path)?;
            headers.insert(field, value);
        }
        Ok(Exchange {
            peer: granted.peer,
            tls: granted.tls,
            authority: granted.host,
            method: hyper::Method::try_from(method.as_str()).map_err(|_| invalid("method", method.as_str()))?,
            path,
            headers,
            body: Bytes::from(request.body),
            timeout: options.timeout,
            max_body: options.max_body,
            traffic: self.traffic.clone(),
        })
    }

    fn find(&self, name: &str, options: &Options<'_>) -> Result<Granted<'_>, Refusal> {
        if let Some(target) = self.targets.iter().find(|target| target.name == name) {
            let peer = match options.endpoint {
                None => Peer::Service(target.service),
                Some(name) => match target.endpoints.iter().find(|endpoint| endpoint.name == name) {
                    Some(endpoint) => Peer::Pod { name: endpoint.name.clone(), address: endpoint.address },
                    None => return Err(Refusal::Denied(format!("{} endpoint {name}", target.name))),
                },
            };
            let tls = match target.scheme {
                Scheme::Http => Tls::Off,
                Scheme::HttpsUnverified => Tls::Unverified,
                Scheme::HttpsIdentified => {
                    let config = self.identified.ok_or_else(|| {
                        Refusal::Invalid(format!("{name} asks for a certificate, and this trial has none to show"))
                    })?;
                    Tls::Identified(Arc::clone(config))
                }
            };
            let host = authority(options.host.unwrap_or(&target.host))?;
            return Ok(Granted { peer, tls, host, methods: &target.methods });
        }
        if let Some(absent) = self.absent.iter().find(|absent| absent.name == name) {
            return Err(Refusal::Absent(absent.clone()));
        }
        let Some(remote) = self.remotes.iter().find(|remote| remote.egress().target() == name) else {
            return Err(Refusal::Denied(name.to_owned()));
        };
        // Many hosts share the addresses of a provider: another name there is another host.
        if let Some(host) = options.host {
            return Err(Refusal::Denied(format!("{name} host {host}")));
        }
        if let Some(endpoint) = options.endpoint {
            return Err(Refusal::Denied(format!("{name} endpoint {endpoint}")));
        }
        let host = match (remote.egress().host.as_str(), remote.egress().port) {
            (host, 443) => authority(host)?,
            (host, port) => authority(&format!("{host}:{port}"))?,
        };
        let tls = Tls::Verified(Arc::clone(self.tls));
        Ok(Granted { peer: Peer::Outside(Arc::clone(remote)), tls, host, methods: &Method::ALL })
    }
}

/// `request.options`, read.
struct Options<'a> {
    host: Option<&'a str>,
    endpoint: Option<&'a str>,
    credential: Option<&'a str>,
    timeout: Duration,
    max_body: usize,
}

impl<'a> Options<'a> {
    fn read(given: &'a [(String, String)], max_body: usize) -> Result<Self, Refusal> {
        let mut options = Self { host: None, endpoint: None, credential: None, timeout: TIMEOUT, max_body };
        for (key, value) in given {
            match key.as_str() {
                "host" => options.host = Some(value),
                "endpoint" => options.endpoint = Some(value),
                "credential" => options.credential = Some(value),
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

pub(super) fn invalid(what: &str, given: &str) -> Refusal {
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
        if CONNECTION_HEADERS.contains(&field.as_str()) || field.as_str().starts_with(OURS) {
            return Err(invalid("header", name));
        }
        let value = HeaderValue::try_from(value.as_str()).map_err(|_| invalid("value of header", name))?;
        headers.append(field, value);
    }
    Ok(headers)
}

impl State {
    /// Judges one request and takes it out of the budget.
    pub(super) fn admit(&mut self, position: usize, request: Request, share: usize) -> Result<Exchange, Failure> {
        if position >= BATCH {
            return Err(failure(Kind::Invalid, format!("more than {BATCH} requests in one call")));
        }
        let max_body = self.trial.limits.body.min(share);
        let table = Table {
            targets: &self.trial.targets,
            absent: &self.trial.grants.absent,
            remotes: &self.remotes,
            credentials: &self.trial.grants.credentials,
            tls: &self.reach.tls,
            identified: self.identified.as_ref(),
            traffic: &self.traffic,
        };
        let exchange = match table.check(request, max_body) {
            Ok(exchange) => exchange,
            Err(Refusal::Invalid(message)) => return Err(failure(Kind::Invalid, message)),
            Err(Refusal::Denied(name)) => {
                self.record.deny(&name);
                return Err(failure(Kind::Denied, format!("{:?} was not granted", text::cut(&name, QUOTE))));
            }
            Err(Refusal::Absent(Absent { name, why })) => {
                self.record.deny(&format!("{name}: {why}"));
                return Err(failure(Kind::Denied, format!("{name:?} was granted, but {why}")));
            }
        };
        self.spend(exchange.size())?;
        self.record.unverified_tls |= matches!(exchange.tls, Tls::Unverified | Tls::Identified(_));
        Ok(exchange)
    }

    /// Takes one request of so many bytes out of the budget.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), Failure> {
        if self.record.requests >= self.trial.limits.requests {
            let message = format!("all {} requests of this trial are used up", self.trial.limits.requests);
            return Err(failure(Kind::Budget, message));
        }
        self.traffic.take(bytes)?;
        self.record.requests += 1;
        Ok(())
    }

    pub(in crate::gate) async fn send(
        &mut self,
        requests: Vec<Request>,
        concurrency: u16,
    ) -> Result<Vec<Result<Response, Failure>>> {
        self.enter().await?;
        let share = BODIES / requests.len().max(1);
        let admitted = requests.into_iter().enumerate();
        let admitted: Vec<_> = admitted.map(|(position, request)| self.admit(position, request, share)).collect();
        let concurrency = usize::from(concurrency.clamp(1, self.trial.limits.concurrency.max(1)));
        let credentials = &self.trial.grants.credentials;
        let mut answers: Vec<_> = stream::iter(admitted.into_iter().enumerate())
            .map(|(position, admitted)| async move {
                match admitted {
                    Ok(exchange) => {
                        let outside = match &exchange.peer {
                            Peer::Outside(remote) => Some(Arc::clone(remote)),
                            Peer::Service(_) | Peer::Pod { .. } | Peer::Prometheus { .. } => None,
                        };
                        (position, outside, exchanged(exchange, credentials).await)
                    }
                    Err(failure) => (position, None, Err(failure)),
                }
            })
            .buffer_unordered(concurrency)
            .collect()
            .await;
        answers.sort_unstable_by_key(|(position, ..)| *position);
        for (_, outside, answer) in &answers {
            match (outside, answer) {
                (_, Ok(answer)) => self.record.answered(&answer.endpoint),
                // A name that was granted, and leads where no gate may go.
                (Some(remote), Err(Failure { kind: Kind::Denied, .. })) => self.record.deny(&remote.egress().target()),
                (_, Err(_)) => {}
            }
        }
        Ok(answers.into_iter().map(|(.., answer)| answer).collect())
    }
}

/// Sends a request, and takes the trial's secrets out of the answer.
pub(super) async fn exchanged(exchange: Exchange, credentials: &[Credential]) -> Result<Response, Failure> {
    let max_body = exchange.max_body;
    // A secret that is cut in two is no less one.
    let exchange = Exchange { max_body: max_body + credentials::longest(credentials), ..exchange };
    let mut answer = sent(exchange).await?;
    if !credentials.is_empty() {
        answer.body = credentials::redact(credentials, answer.body);
        for (_, value) in &mut answer.headers {
            *value = credentials::redact(credentials, std::mem::take(value));
        }
    }
    answer.body.truncate(max_body);
    Ok(answer)
}

/// Sends a request in a task of its own: its CPU time is bounded by the number of requests and is not the guest's
/// computing. It ends with the handle, so with the trial.
pub(super) async fn sent(exchange: Exchange) -> Result<Response, Failure> {
    let answer = AbortOnDropHandle::new(tokio::spawn(exchange::send(exchange))).await;
    answer.unwrap_or_else(|_| Err(failure(Kind::Protocol, "the host could not handle the answer".into())))
}

/// A failure as the guest sees it.
pub(super) fn failure(kind: Kind, message: String) -> Failure {
    Failure { kind, message }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{super::egress::System, *};
    use crate::model::trial::{Egress, Endpoint};

    fn targets() -> Vec<Target> {
        vec![Target {
            name: "candidate/proxy".into(),
            scheme: Scheme::Http,
            service: ([10, 0, 0, 1], 80).into(),
            host: "proxy.example.com".into(),
            endpoints: vec![Endpoint { name: "pod-a".into(), address: ([10, 1, 0, 1], 8000).into() }],
            methods: Method::ALL.to_vec(),
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
        checked_with(&targets(), request)
    }

    fn checked_with(targets: &[Target], request: Request) -> Result<Exchange, Refusal> {
        let egress = Egress { name: "jira".into(), host: "jira.example.com".into(), port: 443, allowed: vec![] };
        let remotes = [Arc::new(Remote::new(egress, Arc::new(System)))];
        let tls = exchange::verified(rustls::RootCertStore::empty());
        let traffic = Traffic::new(0);
        let absent = [Absent { name: "stable/admin".into(), why: "no Pod of this side is ready".into() }];
        let table = Table {
            targets,
            absent: &absent,
            remotes: &remotes,
            credentials: &[],
            tls: &tls,
            identified: None,
            traffic: &traffic,
        };
        table.check(request, 1 << 20)
    }

    /// Endpoint and address.
    fn dialled(exchange: &Exchange) -> (&str, SocketAddr) {
        match &exchange.peer {
            Peer::Service(address) => ("", *address),
            Peer::Pod { name, address } => (name, *address),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_granted_target_is_dialled_at_the_address_of_the_table() {
        let exchange = checked(request()).unwrap();
        assert_eq!(dialled(&exchange), ("", ([10, 0, 0, 1], 80).into()));
        let options = vec![("endpoint".into(), "pod-a".into())];
        let exchange = checked(Request { options, ..request() }).unwrap();
        assert_eq!(dialled(&exchange), ("pod-a", ([10, 1, 0, 1], 8000).into()));
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
        assert_eq!(refusal, Refusal::Denied("credential token for candidate/proxy".into()));
    }

    #[test]
    fn what_was_granted_and_is_not_there_is_refused_with_the_reason() {
        let refusal = checked(Request { target: "stable/admin".into(), ..request() }).unwrap_err();
        let why = "no Pod of this side is ready".into();
        assert_eq!(refusal, Refusal::Absent(Absent { name: "stable/admin".into(), why }));
    }

    #[test]
    fn a_host_outside_is_spoken_to_under_its_own_name_only() {
        let egress =
            |options: Vec<(String, String)>| checked(Request { target: "egress/jira".into(), options, ..request() });
        let exchange = egress(vec![]).unwrap();
        assert!(matches!((&exchange.peer, &exchange.tls), (Peer::Outside(_), Tls::Verified(_))));
        assert_eq!(exchange.authority, "jira.example.com");
        for (option, value) in [("host", "other.example.com"), ("endpoint", "10.0.0.1")] {
            let refusal = egress(vec![(option.into(), value.into())]).unwrap_err();
            assert_eq!(refusal, Refusal::Denied(format!("egress/jira {option} {value}")));
        }
    }

    #[test]
    fn a_method_that_was_not_granted_is_denied() {
        let mut reading = targets();
        reading[0].methods = Method::READING.to_vec();
        for method in Method::ALL {
            let answer = checked_with(&reading, Request { method: method.as_str().into(), ..request() });
            match answer {
                Ok(_) => assert!(Method::READING.contains(&method), "{method:?}"),
                Err(refusal) => assert_eq!(refusal, Refusal::Denied(format!("{} candidate/proxy", method.as_str()))),
            }
        }
    }

    #[test]
    fn only_methods_that_are_requests_to_the_target_are_taken() {
        for method in Method::ALL {
            assert!(checked(Request { method: method.as_str().into(), ..request() }).is_ok(), "{method:?}");
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
        for name in CONNECTION_HEADERS.into_iter().chain([
            "Host",
            "X-Gate-Host",
            "Transfer-Encoding",
            "a b",
            "",
            "a:b",
            "x\r\ny",
        ]) {
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
