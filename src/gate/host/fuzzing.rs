//! What a guest asks its host for, as fuzzing has it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

use hyper::header::HeaderValue;
use rustls::{ClientConfig, RootCertStore};

use super::{
    egress::{Remote, System, may_dial},
    exchange::{self, Exchange, Peer},
    probe::{Refusal, Request, Table},
    traffic::Traffic,
    trial::Record,
};
use crate::{
    fuzzing::assert_shown,
    gate::reach::Prometheus,
    model::{
        grants::HostPattern,
        trial::{Credential, Egress, Endpoint, Link, Measurement, Method, Scheme, Target},
    },
};

/// Bytes of an answer's body.
const BODY: usize = 1 << 20;

static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| exchange::verified(RootCertStore::empty()));

/// A proxy, an admin API that shows itself to readers, and the side that is replaced.
static TARGETS: LazyLock<Vec<Target>> = LazyLock::new(|| {
    let target = |name: &str, last: u8, methods: &[Method]| Target {
        name: name.into(),
        scheme: if name.ends_with("ssl") { Scheme::HttpsUnverified } else { Scheme::Http },
        service: ([10, 0, 0, last], 80).into(),
        host: format!("{last}.example.com"),
        endpoints: vec![Endpoint { name: format!("pod-{last}"), address: ([10, 1, 0, last], 8000).into() }],
        methods: methods.to_vec(),
    };
    vec![
        target("candidate/proxy", 1, &Method::ALL),
        target("candidate/admin-ssl", 2, &Method::READING),
        target("stable/proxy", 3, &Method::READING),
    ]
});

fn egress(name: &str, host: &str, port: u16) -> Egress {
    Egress { name: name.into(), host: host.into(), port, allowed: Vec::new() }
}

static REMOTES: LazyLock<Vec<Arc<Remote>>> = LazyLock::new(|| {
    let outside = [egress("jira", "jira.example.com", 443), egress("wiki", "wiki.example.com", 8443)];
    outside.into_iter().map(|egress| Arc::new(Remote::new(egress, Arc::new(System)))).collect()
});

static CREDENTIALS: LazyLock<Vec<Credential>> = LazyLock::new(|| {
    vec![Credential {
        name: "token".into(),
        value: b"s3cret".to_vec().into(),
        target: "egress/jira".into(),
        header: "Authorization".into(),
        format: "Bearer %s".into(),
        path_prefix: "/api".into(),
    }]
});

/// `bytes` in every place of a request, and as hosts, addresses and patterns of them.
///
/// # Panics
/// Where somebody is dialled who is not in the table, or something is sent that is no part of one request.
pub fn authority(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for target in ["candidate/proxy", "candidate/admin-ssl", "egress/jira", "egress/wiki", &*text] {
        for place in Place::ALL {
            let mut request = Request {
                target: target.to_owned(),
                method: "GET".into(),
                path: "/api/a".into(),
                headers: Vec::new(),
                body: Vec::new(),
                options: Vec::new(),
            };
            place.write(&mut request, &text);
            asked(request, &REMOTES);
        }
    }
    outside(&text);
    if let Ok(address) = text.parse() {
        dialled(address);
    }
    if let Ok(prometheus) = text.parse::<Prometheus>() {
        assert!(!prometheus.authority.as_str().contains(['@', '/']), "{prometheus:?}");
        assert!(!prometheus.path.contains(['?', '#']), "{prometheus:?}");
    }
}

/// Where a guest can write something.
#[derive(Clone, Copy)]
enum Place {
    Target,
    Method,
    Path,
    /// Below the path of a credential that is asked for.
    CredentialPath,
    HeaderName,
    HeaderValue,
    OptionName,
    Option(&'static str),
}

impl Place {
    const ALL: [Self; 12] = [
        Self::Target,
        Self::Method,
        Self::Path,
        Self::CredentialPath,
        Self::HeaderName,
        Self::HeaderValue,
        Self::OptionName,
        Self::Option("host"),
        Self::Option("endpoint"),
        Self::Option("credential"),
        Self::Option("timeout-ms"),
        Self::Option("max-body"),
    ];

    fn write(self, request: &mut Request, text: &str) {
        let text = text.to_owned();
        match self {
            Self::Target => request.target = text,
            Self::Method => request.method = text,
            Self::Path => request.path = text,
            Self::CredentialPath => {
                request.path = format!("/api/{text}");
                request.options.push(("credential".into(), "token".into()));
            }
            Self::HeaderName => request.headers.push((text, "1".into())),
            Self::HeaderValue => request.headers.push(("x-a".into(), text)),
            Self::OptionName => request.options.push((text, "1".into())),
            Self::Option(name) => request.options.push((name.into(), text)),
        }
    }
}

/// What a guest wrote, beside what comes of it.
fn asked(request: Request, remotes: &[Arc<Remote>]) {
    let (target, method, path) = (request.target.clone(), request.method.clone(), request.path.clone());
    let option = |wanted: &str| {
        let found = request.options.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.clone())
    };
    let (endpoint, credential) = (option("endpoint"), option("credential"));
    let traffic = Traffic::new(0);
    let table = Table {
        targets: &TARGETS,
        absent: &[],
        remotes,
        credentials: &CREDENTIALS,
        tls: &TLS,
        identified: None,
        traffic: &traffic,
    };
    match table.check(request, BODY) {
        Ok(exchange) => {
            let methods = granted(&exchange, &target, endpoint.as_deref(), remotes);
            assert!(methods.iter().any(|method| *method == exchange.method.as_str()), "{exchange:?}");
            assert_eq!(exchange.method.as_str(), method);
            assert_eq!(exchange.path.to_string(), path);
            assert!(path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()), "{path:?}");
            assert!(exchange.max_body <= BODY && !exchange.timeout.is_zero(), "{exchange:?}");
            one_request(&exchange);
            // The host's own header is; a guest may write the same bytes, once it knows them.
            let secret = exchange.headers.values().any(HeaderValue::is_sensitive);
            let may = credential.as_deref() == Some("token") && target == "egress/jira" && path.starts_with("/api");
            assert_eq!(secret, may, "{target:?} {path:?} {credential:?}");
        }
        Err(Refusal::Invalid(message)) => assert_shown(&message, 512),
        // Remembered and told as a record does it.
        Err(Refusal::Denied(_)) => {}
        Err(Refusal::Absent(absent)) => panic!("the table lacks nothing: {absent:?}"),
    }
}

/// Whoever is dialled is in the table under exactly the name that was written. Says what may be asked there.
fn granted(exchange: &Exchange, name: &str, endpoint: Option<&str>, remotes: &[Arc<Remote>]) -> Vec<&'static str> {
    let find = || TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    let methods = |target: &Target| target.methods.iter().map(|method| method.as_str()).collect();
    match &exchange.peer {
        Peer::Service(address) => {
            assert_eq!((find().service, None), (*address, endpoint));
            methods(find())
        }
        Peer::Pod { name, address } => {
            assert_eq!(endpoint, Some(name.as_str()));
            let known = |known: &Endpoint| (&known.name, known.address) == (name, *address);
            assert!(find().endpoints.iter().any(known), "{exchange:?}");
            methods(find())
        }
        Peer::Outside(remote) => {
            assert!(remotes.iter().any(|known| Arc::ptr_eq(known, remote)));
            let Egress { host, port, .. } = remote.egress();
            assert_eq!(remote.egress().target(), name);
            assert_eq!(exchange.authority.host(), host);
            assert_eq!(exchange.authority.port_u16().unwrap_or(443), *port);
            assert!(matches!(exchange.tls, exchange::Tls::Verified(_)), "{exchange:?}");
            Method::ALL.iter().map(|method| method.as_str()).collect()
        }
        Peer::Prometheus { .. } => panic!("{exchange:?}"),
    }
}

/// The head of a request is one, whoever reads it.
fn one_request(exchange: &Exchange) {
    let authority = exchange.authority.as_str();
    assert!(authority.bytes().all(|byte| byte.is_ascii_graphic()) && !authority.contains(['@', '/']), "{authority:?}");
    assert!(HeaderValue::try_from(authority).is_ok(), "{authority:?}");
    for (name, value) in &exchange.headers {
        let name = name.as_str();
        let ours = ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"];
        assert!(!ours.contains(&name) && !name.starts_with("x-gate-"), "{name}");
        assert!(!value.as_bytes().iter().any(|byte| [0, b'\r', b'\n'].contains(byte)), "{name}: {value:?}");
    }
}

/// A pattern of the operator's and a host of a tenant's: whatever it matches is spoken to under that name.
fn outside(text: &str) {
    let (pattern, host) = text.split_once(' ').unwrap_or(("*.example.com", text));
    let Ok(pattern) = pattern.parse::<HostPattern>() else { return };
    if pattern.matches(host) {
        let shown = pattern.to_string();
        let below = shown.strip_prefix('*').unwrap_or(&shown);
        assert!(host.to_ascii_lowercase().ends_with(below), "{shown} {host:?}");
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        assert!(host.bytes().all(name) && !host.split('.').any(str::is_empty), "{shown} {host:?}");
        let remotes = [Arc::new(Remote::new(egress("x", host, 8443), Arc::new(System)))];
        let request = Request {
            target: "egress/x".into(),
            method: "GET".into(),
            path: "/".into(),
            headers: Vec::new(),
            body: Vec::new(),
            options: Vec::new(),
        };
        asked(request, &remotes);
    }
}

/// No address that leads back to this machine or its network is dialled for a host outside.
fn dialled(address: IpAddr) {
    let socket = SocketAddr::new(address, 443);
    let inside = match address {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.is_private()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address.is_unspecified()
                || address.is_documentation()
        }
        IpAddr::V6(address) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || address.to_ipv4().is_some()
        }
    };
    assert!(!(inside && may_dial(address, &[])), "{socket}");
}

/// Everything else that a guest leaves behind.
pub(in crate::gate) fn recorded(name: &str, text: &str) {
    const LOG: usize = 1 << 10;
    let mut record = Record::default();
    let fields = [(name.to_owned(), text.to_owned()), (text.to_owned(), name.to_owned())];
    for level in ["info", name] {
        record.log.lock().push(LOG, level, text, &fields);
    }
    let lines = record.log.take_lines();
    let kept: usize = lines.iter().map(String::len).sum();
    assert!(kept <= LOG + 64, "{kept} bytes of log");
    lines.iter().for_each(|line| assert_shown(line, LOG));

    for count in 0..16 {
        record.deny(&format!("{count}{text}"));
        let value = f64::from(count) / name.parse::<f64>().unwrap_or(1.0);
        // Refused or kept: either way it is bounded.
        let _ = record.measure(Measurement { name: name.into(), value, unit: "ms".into(), threshold: None }, 8);
        let _ = record.link(Link { title: "report".into(), url: text.to_owned() }, 4);
    }
    assert!(record.denials.len() <= 8 && record.measurements.len() <= 8 && record.links.len() <= 4, "{record:?}");
    record.denials.iter().for_each(|denial| assert_shown(&denial.target, 128));
    for Measurement { name, value, .. } in &record.measurements {
        assert!(value.is_finite(), "{name} {value}");
        assert_shown(name, 32);
    }
    for Link { url, .. } in &record.links {
        assert!(url.starts_with("http://") || url.starts_with("https://"), "{url:?}");
        assert_shown(url, 512);
    }
}
