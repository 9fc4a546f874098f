//! Hosts outside an upgrade, and the secrets that go there: threats 2 and 21.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use rustls::{RootCertStore, pki_types::PrivateKeyDer, server::WebPkiClientVerifier};
use sluice::{
    gate::{Capacity, Compiler, LocalGateHost, Reach, Resolve},
    model::trial::{Blame, Credential, Egress, Identity, Method, Report, Scheme, Trial},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::{Asks, assert_blames, assert_nobody_came, candidate, heard, run, text};

/// What the credential of these tests is.
const SECRET: &str = "s3cr3t-0123456789";

/// A name server that answers what it was told, in turn.
#[derive(Default)]
struct Told(Mutex<VecDeque<Vec<IpAddr>>>);

#[async_trait]
impl Resolve for Told {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.0.lock().unwrap().pop_front().ok_or_else(|| io::Error::other(format!("nobody knows {host}")))
    }
}

fn told(answers: &[&[&str]]) -> Arc<Told> {
    let answer = |addresses: &&[&str]| addresses.iter().map(|address| address.parse().unwrap()).collect();
    Arc::new(Told(Mutex::new(answers.iter().map(answer).collect())))
}

/// A host whose gates find what `resolver` says, and trust `roots`.
fn host(resolver: Arc<dyn Resolve>, roots: RootCertStore) -> LocalGateHost {
    let mut reach = Reach::trusting(roots);
    reach.resolver = resolver;
    let capacity = Capacity { trials: 2.try_into().unwrap(), threads: 1.try_into().unwrap() };
    LocalGateHost::reaching(reach, capacity, Compiler::InProcess).unwrap()
}

/// Sends back what it was sent, in a header and in the body.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let (mut bytes, mut text) = (vec![0; 16 << 10], String::new());
    while !text.contains("\r\n\r\n") {
        match stream.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(read) => text.push_str(&String::from_utf8_lossy(&bytes[..read])),
        }
    }
    let lines: Vec<_> =
        text.split("\r\n").filter(|line| line.starts_with("authorization") || line.contains("HTTP")).collect();
    let body = lines.join("|");
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nx-echo: {body}\r\ncontent-length: {length}\r\n\r\n");
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
}

/// An echo over TLS for `names` on loopback, and who vouches for it.
async fn tls(name: &str) -> (SocketAddr, RootCertStore) {
    let key = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let secret = PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], secret)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(key.cert.der().clone()).unwrap();
    (serving(config).await, roots)
}

/// An echo over this TLS.
async fn serving(config: rustls::ServerConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    echo(stream).await;
                }
            });
        }
    });
    address
}

fn egress(port: u16, allowed: &[&str]) -> Vec<Egress> {
    let allowed = allowed.iter().map(|range| range.parse().unwrap()).collect();
    vec![Egress { name: "jira".into(), host: "jira.example.com".into(), port, allowed }]
}

/// Sends one request to `egress/jira`.
async fn ask(host: &LocalGateHost, asks: Asks<'_>, change: impl FnOnce(&mut Trial)) -> Report {
    run(host, asks.gate(), |trial| {
        trial.settings = text("egress/jira");
        change(trial);
    })
    .await
}

#[tokio::test]
async fn a_host_outside_is_spoken_to_over_tls_that_is_verified() {
    let (address, roots) = tls("jira.example.com").await;
    let granted = |trial: &mut Trial| trial.grants.egress = egress(address.port(), &["127.0.0.0/8"]);
    let trusting = host(told(&[&["127.0.0.1"]]), roots.clone());
    let report = ask(&trusting, Asks { path: "/a?b", ..Asks::default() }, granted).await;
    assert_eq!(heard(&report), "GET /a?b HTTP/1.1");
    assert!(!report.unverified_tls);
    // Nobody vouches for it here.
    let wary = host(told(&[&["127.0.0.1"]]), RootCertStore::empty());
    assert_eq!(heard(&ask(&wary, Asks::default(), granted).await), "tls");
    // Somebody else's certificate.
    let (address, roots) = tls("other.example.com").await;
    let fooled = host(told(&[&["127.0.0.1"]]), roots);
    let granted = |trial: &mut Trial| trial.grants.egress = egress(address.port(), &["127.0.0.0/8"]);
    assert_eq!(heard(&ask(&fooled, Asks::default(), granted).await), "tls");
}

#[tokio::test]
async fn threat_02_a_name_that_leads_inside_is_refused_and_nobody_is_dialled() {
    let trap = TcpListener::bind("[::]:0").await.unwrap();
    let port = trap.local_addr().unwrap().port();
    for addresses in [
        &["127.0.0.1"] as &[&str],
        &["::1"],
        &["::ffff:127.0.0.1"],
        &["64:ff9b::7f00:1"],
        &["2002:7f00:1::"],
        &["169.254.169.254"],
        &["100.64.0.1"],
        &["224.0.0.1"],
        &["fd00:ec2::254"],
        // One bad address among good ones is somebody's attempt.
        &["1.1.1.1", "127.0.0.1"],
    ] {
        let host = host(told(&[addresses]), RootCertStore::empty());
        let report = ask(&host, Asks::default(), |trial| trial.grants.egress = egress(port, &[])).await;
        assert_eq!(heard(&report), "denied", "{addresses:?}");
        assert_eq!(report.denials[0].target, "egress/jira", "{addresses:?}");
    }
    let nobody = host(told(&[&[]]), RootCertStore::empty());
    let report = ask(&nobody, Asks::default(), |trial| trial.grants.egress = egress(port, &[])).await;
    assert_eq!(heard(&report), "connect");
    assert_nobody_came(&trap);
}

#[tokio::test]
async fn threat_02_what_a_name_led_to_first_is_what_is_dialled_for_the_whole_trial() {
    // Listens on another address of this machine than the one that is answered first, and on the same port.
    let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = first.local_addr().unwrap().port();
    let second = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let resolver = told(&[&["127.0.0.1"], &["127.0.0.2"]]);
    let asked = host(resolver.clone(), RootCertStore::empty());
    let accepted = tokio::spawn(async move {
        for _ in 0..2 {
            drop(first.accept().await.unwrap());
        }
    });
    let twice = super::fixture("ask_twice", &[]);
    let report = run(&asked, twice, |trial| {
        trial.settings = text("egress/jira");
        trial.grants.egress = egress(port, &["127.0.0.0/8"]);
    })
    .await;
    assert_eq!((heard(&report), report.cost.requests), ("tls", 2));
    accepted.await.unwrap();
    assert_nobody_came(&second);
    assert_eq!(resolver.0.lock().unwrap().len(), 1, "the name was resolved once");
}

#[tokio::test]
async fn threat_02_another_host_behind_the_same_address_is_denied() {
    let (address, roots) = tls("jira.example.com").await;
    let host = host(told(&[]), roots);
    for option in [("host", "other.example.com"), ("endpoint", "127.0.0.1")] {
        let asks = Asks { option, ..Asks::default() };
        let report = ask(&host, asks, |trial| trial.grants.egress = egress(address.port(), &["127.0.0.0/8"])).await;
        assert_eq!((heard(&report), report.cost.requests), ("denied", 0), "{option:?}");
    }
}

fn credential(target: &str) -> Credential {
    Credential {
        name: "token".into(),
        value: SECRET.as_bytes().to_vec().into(),
        target: target.into(),
        header: "Authorization".into(),
        format: "Bearer %s".into(),
        path_prefix: "/api".into(),
    }
}

#[tokio::test]
async fn threat_21_a_credential_reaches_its_target_and_no_gate() {
    let (address, roots) = tls("jira.example.com").await;
    let host = host(told(&[&["127.0.0.1"]]), roots);
    let asks = Asks { path: "/api/a", option: ("credential", "token"), ..Asks::default() };
    let report = ask(&host, asks, |trial| {
        trial.grants.egress = egress(address.port(), &["127.0.0.0/8"]);
        trial.grants.credentials = vec![credential("egress/jira")];
    })
    .await;
    let redacted = format!("GET /api/a HTTP/1.1|authorization: Bearer {}", "*".repeat(SECRET.len()));
    assert_eq!(heard(&report), redacted);
    assert_eq!(report.log, [format!("info {redacted}")]);
    assert!(!format!("{report:?}").contains(SECRET));
}

#[tokio::test]
async fn threat_21_a_credential_goes_nowhere_else_whatever_the_gate_writes() {
    let (address, roots) = tls("jira.example.com").await;
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = trap.local_addr().unwrap();
    let credentialed = Asks { path: "/api", option: ("credential", "token"), ..Asks::default() };
    for (asks, target, kind) in [
        // Another target, another path, every way out of it, another name.
        (credentialed, "candidate/proxy", "denied"),
        (Asks { path: "/", ..credentialed }, "egress/jira", "denied"),
        (Asks { path: "/apis", ..credentialed }, "egress/jira", "denied"),
        (Asks { path: "/api/../x", ..credentialed }, "egress/jira", "denied"),
        (Asks { path: "/api/%2e%2e/x", ..credentialed }, "egress/jira", "denied"),
        (Asks { option: ("credential", "other"), ..credentialed }, "egress/jira", "denied"),
        // A header of the gate's own, with the credential and without.
        (Asks { header: ("authorization", "Bearer mine"), ..credentialed }, "egress/jira", "invalid"),
        (Asks { header: ("AUTHORIZATION", "Bearer mine"), path: "/api", ..Asks::default() }, "egress/jira", "invalid"),
    ] {
        let host = host(told(&[&["127.0.0.1"]]), roots.clone());
        let report = run(&host, asks.gate(), |trial| {
            trial.settings = text(target);
            trial.targets = vec![candidate(Scheme::Http, &[elsewhere])];
            trial.grants.egress = egress(address.port(), &["127.0.0.0/8"]);
            trial.grants.credentials = vec![credential("egress/jira")];
        })
        .await;
        assert_eq!((heard(&report), report.cost.requests), (kind, 0), "{target} {}", asks.path);
    }
    assert_nobody_came(&trap);
}

#[tokio::test]
async fn threat_21_what_stands_for_a_secret_is_text_like_any_other() {
    let (address, roots) = tls("jira.example.com").await;
    let host = host(told(&[&["127.0.0.1"]]), roots);
    let asks = Asks { path: "/api/{{secret:token}}%s", ..Asks::default() };
    let report = ask(&host, asks, |trial| {
        trial.grants.egress = egress(address.port(), &["127.0.0.0/8"]);
        trial.grants.credentials = vec![credential("egress/jira")];
    })
    .await;
    assert_eq!(heard(&report), "GET /api/{{secret:token}}%s HTTP/1.1");
}

#[tokio::test]
async fn threat_21_a_secret_that_the_end_of_a_body_cuts_in_two_is_not_told() {
    let (address, roots) = tls("jira.example.com").await;
    let host = host(told(&[&["127.0.0.1"]]), roots);
    let whole = format!("GET /api HTTP/1.1|authorization: Bearer {SECRET}");
    let asks = Asks { path: "/api", option: ("credential", "token"), ..Asks::default() };
    let report = ask(&host, asks, |trial| {
        trial.limits.body = whole.len() - 3;
        trial.grants.egress = egress(address.port(), &["127.0.0.0/8"]);
        trial.grants.credentials = vec![credential("egress/jira")];
    })
    .await;
    assert!(!heard(&report).contains(&SECRET[..4]), "{}", heard(&report));
}

#[tokio::test]
async fn a_target_that_asks_who_is_there_is_shown_the_trials_certificate() {
    let authority = rcgen::generate_simple_self_signed(["gate-host".to_owned()]).unwrap();
    let mut clients = RootCertStore::empty();
    clients.add(authority.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider.clone()).build().unwrap();
    let key = rcgen::generate_simple_self_signed(["admin".to_owned()]).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![key.cert.der().clone()], PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into()))
        .unwrap();
    let address = serving(config).await;
    let identity =
        Identity { certificate: authority.cert.pem(), key: authority.signing_key.serialize_pem().into_bytes().into() };
    let host = host(told(&[]), RootCertStore::empty());
    let asked = async |scheme, identity| {
        run(&host, Asks::default().gate(), |trial| {
            trial.settings = text("candidate/proxy");
            trial.targets = vec![candidate(scheme, &[address])];
            trial.grants.identity = identity;
        })
        .await
    };
    let known = asked(Scheme::HttpsIdentified, Some(identity)).await;
    assert_eq!(heard(&known), "GET / HTTP/1.1");
    assert!(known.unverified_tls);
    assert_eq!(heard(&asked(Scheme::HttpsIdentified, None).await), "invalid");
    assert!(matches!(heard(&asked(Scheme::HttpsUnverified, None).await), "tls" | "protocol"));
    let broken = Identity { certificate: "none".into(), key: Vec::new().into() };
    assert_blames(&asked(Scheme::HttpsIdentified, Some(broken)).await, Blame::Credential);
}

#[tokio::test]
async fn a_method_that_was_not_granted_is_denied_and_nobody_is_dialled() {
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = trap.local_addr().unwrap();
    let host = host(told(&[]), RootCertStore::empty());
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let report = run(&host, Asks { method, ..Asks::default() }.gate(), |trial| {
            trial.settings = text("candidate/proxy");
            trial.targets = vec![candidate(Scheme::Http, &[address])];
            trial.targets[0].methods = Method::READING.to_vec();
        })
        .await;
        assert_eq!((heard(&report), report.cost.requests), ("denied", 0), "{method}");
    }
    assert_nobody_came(&trap);
}
