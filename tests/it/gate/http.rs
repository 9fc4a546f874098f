//! `wasi:http` where the operator allows it: the same targets, rules and record as through `probe`.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use sluice::{
    gate::{Capacity, Compiler, GateHost as _, LocalGateHost, Reach},
    model::trial::{Blame, Credential, Denial, LoadError, Method, Report, Scheme, Trial},
};
use tokio::{io::AsyncReadExt as _, net::TcpListener};

use super::{assert_blames, assert_nobody_came, candidate, data, heard, run, targets::answering, wasi::importing};

/// Of the codes of the standard, by their order.
const DENIED: &str = "error 15";
const INTERNAL: &str = "error 38";

/// A host that offers `wasi:http`.
fn host() -> LocalGateHost {
    let mut reach = Reach::default();
    reach.wasi_http = true;
    let capacity = Capacity { trials: 2.try_into().unwrap(), threads: 1.try_into().unwrap() };
    LocalGateHost::reaching(reach, capacity, Compiler::InProcess).unwrap()
}

/// One request, as the fixture `http` sends it.
#[derive(Clone, Copy)]
struct Asks<'words> {
    authority: &'words str,
    /// By the order of the standard: GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH.
    method: u8,
    /// 0 for `http`, 1 for `https`.
    scheme: u8,
    path: &'words str,
    header: (&'words str, &'words str),
    body: &'words str,
}

impl Default for Asks<'_> {
    fn default() -> Self {
        let authority = "proxy.candidate.gate.internal";
        Self { authority, method: 0, scheme: 0, path: "/", header: ("", ""), body: "" }
    }
}

impl Asks<'_> {
    fn gate(self) -> Bytes {
        let texts = [
            ("authority", self.authority),
            ("path", self.path),
            ("name", self.header.0),
            ("value", self.header.1),
            ("body", self.body),
        ];
        let mut words: Vec<_> = texts
            .iter()
            .flat_map(|(name, text)| {
                [((*name).to_owned(), data(text)), (format!("{name}_bytes"), text.len().to_string())]
            })
            .collect();
        words.push(("method".into(), self.method.to_string()));
        words.push(("scheme".into(), self.scheme.to_string()));
        let words: Vec<_> = words.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        importing("http", &words)
    }

    /// What came of it, where the candidate is at this address.
    async fn of(self, address: SocketAddr, change: impl FnOnce(&mut Trial)) -> Report {
        run(&host(), self.gate(), |trial| {
            trial.targets = vec![candidate(Scheme::Http, &[address])];
            change(trial);
        })
        .await
    }
}

#[tokio::test]
async fn without_the_operators_word_it_is_no_import_and_the_message_names_the_flag() {
    let error = super::host().load(Asks::default().gate()).await.expect_err("not offered");
    assert!(matches!(&error, LoadError::HttpNotAllowed(import) if import.starts_with("wasi:http/")), "{error:?}");
    assert!(error.to_string().contains("--allow-wasi-http"), "{error}");
    assert_eq!(error.code(), "UnsupportedImport");
}

#[tokio::test]
async fn a_granted_target_answers_whatever_the_scheme_and_is_on_record() {
    let address = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
    for scheme in [0, 1] {
        let endpoint = ("x-gate-endpoint", "pod-0");
        let report = Asks { scheme, header: endpoint, ..Asks::default() }.of(address, |_| {}).await;
        assert_eq!(heard(&report), "200:fine");
        assert_eq!((report.cost.requests, report.answered), (1, vec!["pod-0".to_owned()]));
        assert_eq!((report.denials, report.unverified_tls), (vec![], false));
    }
    let report = Asks { path: "?a=b", ..Asks::default() }.of(address, |_| {}).await;
    assert_eq!(heard(&report), "200:fine");
}

#[tokio::test]
async fn threat_01_an_authority_that_is_no_targets_is_denied_and_nobody_is_dialled() {
    let granted = answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    let trap = TcpListener::bind("[::]:0").await.unwrap();
    let port = trap.local_addr().unwrap().port();
    for authority in [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        format!("localhost.:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("2130706433:{port}"),
        format!("0x7f.1:{port}"),
        format!("proxy.candidate.gate.internal:{port}"),
        format!("proxy.candidate.gate.internal@127.0.0.1:{port}"),
        "169.254.169.254".into(),
        "2852039166".into(),
        "[::ffff:169.254.169.254]".into(),
        "[fd00:ec2::254]".into(),
        "kubernetes.default.svc".into(),
        "kubernetes.default".into(),
        "PROXY.candidate.gate.internal".into(),
        "proxy.candidate.gate.internal.".into(),
        "proxy.candidate.gate.internal.example.com".into(),
        "xn--proxy-.candidate.gate.internal".into(),
        "proxy.stable.gate.internal".into(),
        "jira.egress.gate.internal".into(),
        "candidate.gate.internal".into(),
        "gate.internal".into(),
        "candidate".into(),
    ] {
        let report = Asks { authority: &authority, ..Asks::default() }.of(granted, |_| {}).await;
        assert_eq!((heard(&report), report.cost.requests), (DENIED, 0), "{authority}");
        assert_eq!(report.denials.len(), 1, "{authority}");
    }
    // What is no authority at all never becomes a request.
    for authority in ["l\u{f6}calhost", "candidate/proxy", "a b"] {
        let report = Asks { authority, ..Asks::default() }.of(granted, |_| {}).await;
        assert_eq!((heard(&report), report.cost.requests), ("unset", 0), "{authority}");
    }
    let report = Asks::default().of(granted, |_| {}).await;
    assert_eq!((heard(&report), report.cost.requests), ("204:", 1));
    assert_nobody_came(&trap);
}

#[tokio::test]
async fn threat_03_a_redirect_is_an_answer_and_nobody_follows_it() {
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = trap.local_addr().unwrap();
    let answer = format!("HTTP/1.1 302 Found\r\nlocation: http://{elsewhere}/\r\ncontent-length: 5\r\n\r\nmoved");
    let report = Asks::default().of(answering(answer).await, |_| {}).await;
    assert_eq!((heard(&report), report.cost.requests), ("302:moved", 1));
    let follows = Asks { authority: &elsewhere.to_string(), ..Asks::default() }.of(elsewhere, |_| {}).await;
    assert_eq!(heard(&follows), DENIED);
    assert_nobody_came(&trap);
}

#[tokio::test]
async fn methods_that_are_not_granted_are_denied_and_others_are_none() {
    let address = answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    let reading = |trial: &mut Trial| trial.targets[0].methods = Method::READING.to_vec();
    for (method, wanted) in [(0, "204:"), (1, "204:"), (2, DENIED), (3, DENIED), (5, INTERNAL), (7, INTERNAL)] {
        let report = Asks { method, ..Asks::default() }.of(address, reading).await;
        assert_eq!(heard(&report), wanted, "{method}");
    }
    let report = Asks { method: 2, ..Asks::default() }.of(address, reading).await;
    assert_eq!(report.denials, [Denial { target: "POST candidate/proxy".into(), count: 1 }]);
}

#[tokio::test]
async fn threat_04_headers_of_the_connection_are_the_hosts_and_options_are_not_sent() {
    for name in ["host", "connection", "transfer-encoding", "upgrade", "te", "expect", "proxy-authorization"] {
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let report = Asks { header: (name, "x"), ..Asks::default() }.of(nobody.local_addr().unwrap(), |_| {}).await;
        assert_eq!((heard(&report), report.cost.requests), ("unset", 0), "{name}");
        assert_nobody_came(&nobody);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        while !text.ends_with("body") {
            let mut bytes = vec![0; 4096];
            let read = stream.read(&mut bytes).await.unwrap();
            assert!(read > 0, "{text}");
            text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        text
    });
    // Nobody answers: the connection is closed, which is no HTTP.
    let asks =
        Asks { method: 2, path: "/a?b", header: ("x-gate-host", "api.example.com"), body: "body", ..Asks::default() };
    assert_eq!(heard(&asks.of(address, |_| {}).await), "error 35");
    let mut lines: Vec<_> = seen.await.unwrap().split("\r\n").map(str::to_ascii_lowercase).collect();
    lines[1..4].sort_unstable();
    let wanted = ["post /a?b http/1.1", "connection: close", "content-length: 4", "host: api.example.com", "", "body"];
    assert_eq!(lines, wanted);
}

#[tokio::test]
async fn threat_06_an_answer_that_never_comes_ends_with_the_trial_and_hangs_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let accepted = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_to_end(&mut Vec::new()).await
    });
    let report = Asks::default().of(silent, |trial| trial.timeout = Duration::from_millis(300)).await;
    assert_blames(&report, Blame::Timeout);
    accepted.await.unwrap().expect("the connection is closed");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let header = ("x-gate-timeout-ms", "50");
    let report = Asks { header, ..Asks::default() }.of(listener.local_addr().unwrap(), |_| {}).await;
    assert_eq!(heard(&report), "error 33");
}

#[tokio::test]
async fn threat_11_a_body_is_cut_where_a_gate_is_given_no_more_and_its_reader_knows() {
    let address = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n123456789").await;
    for (limit, wanted) in [(9, "200:123456789"), (4, "200:1234!"), (0, "200:!")] {
        let report = Asks::default().of(address, |trial| trial.limits.body = limit).await;
        assert_eq!(heard(&report), wanted, "{limit}");
    }
    let smaller = Asks { header: ("x-gate-max-body", "2"), ..Asks::default() }.of(address, |_| {}).await;
    assert_eq!(heard(&smaller), "200:12!");
}

#[tokio::test]
async fn threat_12_requests_and_bytes_are_counted_and_bounded() {
    let address = answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    let report = Asks::default().of(address, |trial| trial.limits.requests = 0).await;
    assert_eq!((heard(&report), report.cost.requests), (INTERNAL, 0));
    assert!(report.log.iter().any(|line| line.contains("all 0 requests")), "{:?}", report.log);
    let post = Asks { method: 2, body: "0123456789", ..Asks::default() };
    let small = post.of(address, |trial| trial.limits.traffic = 10).await;
    assert_eq!(heard(&small), INTERNAL);
    let large = post.of(address, |trial| trial.limits.traffic = 100).await;
    assert_eq!(heard(&large), "204:");
}

#[tokio::test]
async fn threat_21_a_credential_is_named_and_never_told() {
    const SECRET: &str = "s3cr3t-0123456789";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; 4096];
        let read = stream.read(&mut bytes).await.unwrap();
        let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
        let line = text.lines().find(|line| line.starts_with("authorization")).unwrap_or_default().to_owned();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{line}", line.len());
        tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
        line
    });
    let grant = |trial: &mut Trial| {
        trial.grants.credentials = vec![Credential {
            name: "token".into(),
            value: SECRET.as_bytes().to_vec().into(),
            target: "candidate/proxy".into(),
            header: "Authorization".into(),
            format: "Bearer %s".into(),
            path_prefix: "/".into(),
        }];
    };
    let report = Asks { header: ("x-gate-credential", "token"), ..Asks::default() }.of(address, grant).await;
    assert_eq!(echo.await.unwrap(), format!("authorization: Bearer {SECRET}"));
    assert_eq!(heard(&report), format!("200:authorization: Bearer {}", "*".repeat(SECRET.len())));
    // Nor may a gate pass for who holds it.
    let forged = Asks { header: ("authorization", "Bearer mine"), ..Asks::default() }.of(address, grant).await;
    assert_eq!((heard(&forged), forged.cost.requests), (INTERNAL, 0));
}

#[tokio::test]
async fn the_world_that_is_published_is_the_contract_and_these_interfaces() {
    let read = |file: &str| std::fs::read_to_string(super::root().join(file)).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let contract = format!("{}\n{}", super::contract(), read("tests/fixtures/gates/http.wit"));
    resolve.push_str("gate.wit", &contract).unwrap();
    let package = resolve.push_str("gate-http.wit", &read("wit/http/gate-http.wit")).unwrap();
    let world = &resolve.worlds[resolve.select_world(&[package], Some("gate")).unwrap()];
    let names = |keys: Vec<&wit_parser::WorldKey>| -> Vec<String> {
        keys.into_iter().map(|key| resolve.name_world_key(key)).filter(|name| !name.starts_with("wasi:io/")).collect()
    };
    let imports = names(world.imports.keys().collect());
    for wanted in ["sluice:gate/trial@0.1.0", "sluice:gate/probe@0.1.0", "sluice:gate/metrics@0.1.0"] {
        assert!(imports.iter().any(|import| import == wanted), "{wanted}: {imports:?}");
    }
    let http: Vec<_> = imports.iter().filter(|import| import.starts_with("wasi:http/")).collect();
    assert_eq!(http, ["wasi:http/types@0.2.12", "wasi:http/outgoing-handler@0.2.12"]);
    assert_eq!(names(world.exports.keys().collect()), ["sluice:gate/evaluator@0.1.0"]);
}
