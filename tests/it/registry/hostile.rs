//! Servers that mean harm: they lie, send the operator elsewhere, or never end.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use sluice::{
    api::gateplugin::{ClusterSource, HttpSource, Trust},
    gateplugin::{Fetcher, Sources},
    model::trial::Digest,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::{admit, assert_refused, fetcher_for, fetcher_of, manifest, pull};

/// Bytes that no answer may have, 10 GiB.
const TOO_MANY: u64 = 10 << 30;
/// What a peer may send before the other end is seen to be gone: what was accepted, and what the kernel holds.
const IN_FLIGHT: usize = 48 << 20;

/// One answer.
#[derive(Clone)]
enum Answer {
    /// Head lines and a body.
    Whole(String, Vec<u8>),
    /// The same without an end.
    Endless(String),
}

fn ok(headers: &str, body: impl Into<Vec<u8>>) -> Answer {
    let body = body.into();
    Answer::Whole(format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n", body.len()), body)
}

fn head(status: &str, headers: &str) -> Answer {
    Answer::Whole(format!("HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\n"), Vec::new())
}

/// A server of one connection for each request.
struct Server {
    address: SocketAddr,
    authority: String,
    /// What it was asked, heads and all.
    asked: Arc<Mutex<Vec<String>>>,
    /// Bytes of endless answers that somebody took.
    sent: Arc<AtomicUsize>,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let secret = PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], secret)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, sent) = (Arc::default(), Arc::default());
        let (log, count, answer) = (Arc::clone(&asked), Arc::clone(&sent), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
                let (log, count) = (Arc::<Mutex<Vec<String>>>::clone(&log), Arc::<AtomicUsize>::clone(&count));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let mut stream = BufReader::new(stream);
                    let mut request = String::new();
                    while !request.ends_with("\r\n\r\n") {
                        if stream.read_line(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                    log.lock().unwrap().push(request);
                    // Whoever goes away in the middle has heard enough.
                    let _ = speak(&mut stream, answer(&path), &count).await;
                });
            }
        });
        Self { address, authority: key.cert.pem(), asked, sent }
    }

    fn host(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    fn fetcher(&self, more: &Value) -> Fetcher {
        fetcher_of(&self.host(), &self.authority, more, None)
    }

    fn image(&self) -> String {
        format!("{}/gates/smoke:1.0", self.host())
    }
}

async fn speak(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    answer: Answer,
    sent: &AtomicUsize,
) -> std::io::Result<()> {
    match answer {
        Answer::Whole(head, body) => {
            stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await?;
            stream.write_all(&body).await?;
        }
        Answer::Endless(head) => {
            stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await?;
            let chunk = vec![b' '; 1 << 16];
            loop {
                stream.write_all(b"10000\r\n").await?;
                stream.write_all(&chunk).await?;
                stream.write_all(b"\r\n").await?;
                sent.fetch_add(chunk.len(), SeqCst);
            }
        }
    }
    stream.shutdown().await
}

/// A listener that nobody may find.
struct Forbidden {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Forbidden {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, SeqCst);
            }
        });
        Self { address, connections }
    }

    fn assert_unseen(&self) {
        assert_eq!(self.connections.load(SeqCst), 0);
    }
}

#[tokio::test]
async fn threat_20_a_redirect_to_what_is_not_listed_is_not_followed() {
    let forbidden = Forbidden::start().await;
    let targets = [
        format!("https://{}/latest/meta-data", forbidden.address),
        format!("https://localhost:{}/", forbidden.address.port()),
        "https://169.254.169.254/latest/meta-data".to_owned(),
        "https://[::ffff:169.254.169.254]/".to_owned(),
    ];
    for target in targets {
        for status in
            ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
        {
            let location = format!("Location: {target}\r\n");
            let server = Server::start(move |_| head(status, &location)).await;
            assert_refused(pull(&server.fetcher(&json!({})), server.image()).await, "NotListed", &["--plugin-sources"]);
        }
    }
    for target in [format!("http://{}/", forbidden.address), format!("//{}/", forbidden.address)] {
        let location = format!("Location: {target}\r\n");
        let server = Server::start(move |_| head("302 Found", &location)).await;
        assert_refused(pull(&server.fetcher(&json!({})), server.image()).await, "Unavailable", &["redirects"]);
    }
    forbidden.assert_unseen();
}

#[tokio::test]
async fn a_redirect_that_leads_round_and_round_ends() {
    let server = Server::start(|_| head("302 Found", "Location: /v2/again\r\n")).await;
    assert_refused(pull(&server.fetcher(&json!({})), server.image()).await, "Unavailable", &["redirects"]);
    assert!(server.asked.lock().unwrap().len() < 8);
}

#[tokio::test]
async fn a_listed_blob_host_is_followed_and_is_not_told_who_asks() {
    let blobs = Server::start(|_| ok("", *b"component")).await;
    let target = format!("Location: https://{}/blob\r\n", blobs.host());
    let server = Server::start(move |path| match path {
        path if path.contains("/manifests/") => ok("", manifest(b"component").to_string()),
        _ => head("307 Temporary Redirect", &target),
    })
    .await;
    let authority = format!("{}{}", server.authority, blobs.authority);
    let listed = fetcher_of(&server.host(), &authority, &json!({"blobHosts": [blobs.host()]}), None);
    assert_eq!(pull(&listed, server.image()).await.unwrap().component.as_ref(), b"component");
    let unlisted = fetcher_of(&server.host(), &authority, &json!({}), None);
    assert_refused(pull(&unlisted, server.image()).await, "NotListed", &[&blobs.host()]);
    let asked = blobs.asked.lock().unwrap();
    assert!(asked.len() == 1 && !asked[0].to_lowercase().contains("authorization"), "{asked:?}");
}

#[tokio::test]
async fn threat_20_credentials_go_only_to_listed_hosts() {
    let forbidden = Forbidden::start().await;
    for realm in [format!("https://{}/token", forbidden.address), "https://169.254.169.254/".to_owned()] {
        let demand = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"x\"\r\n");
        let server = Server::start(move |_| head("401 Unauthorized", &demand)).await;
        assert_refused(pull(&server.fetcher(&json!({})), server.image()).await, "NotListed", &["tokenHosts"]);
        let asked = server.asked.lock().unwrap();
        assert!(asked.iter().all(|request| !request.to_lowercase().contains("authorization")), "{asked:?}");
    }
    forbidden.assert_unseen();
}

#[tokio::test]
async fn a_token_of_a_listed_host_opens_the_repository() {
    let tokens = Server::start(|_| ok("", r#"{"token":"t0k3n"}"#)).await;
    let demand = format!("WWW-Authenticate: Bearer realm=\"https://{}/token\",service=\"x\"\r\n", tokens.host());
    let asked = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |path| match asked.fetch_add(1, SeqCst) {
        0 => head("401 Unauthorized", &demand),
        _ if path.contains("/manifests/") => ok("", manifest(b"component").to_string()),
        _ => ok("", *b"component"),
    })
    .await;
    let authority = format!("{}{}", server.authority, tokens.authority);
    let fetcher = fetcher_of(&server.host(), &authority, &json!({"tokenHosts": [tokens.host()]}), None);
    assert_eq!(pull(&fetcher, server.image()).await.unwrap().component.as_ref(), b"component");
    let said = tokens.asked.lock().unwrap();
    assert!(said[0].starts_with("GET /token?service=x&scope=repository%3Agates%2Fsmoke%3Apull "), "{said:?}");
    assert!(said[0].to_lowercase().contains("authorization: basic"), "{said:?}");
    let said = server.asked.lock().unwrap();
    assert!(said[1..].iter().all(|request| request.contains("Bearer t0k3n")), "{said:?}");
}

#[tokio::test]
async fn threat_19_a_digest_that_is_a_lie_is_not_believed() {
    let lie = format!("Docker-Content-Digest: {}\r\n", Digest::of(b"something else"));
    let server = Server::start(move |_| ok(&lie, manifest(b"component").to_string())).await;
    assert_refused(pull(&server.fetcher(&json!({})), server.image()).await, "DigestMismatch", &["calls the manifest"]);
    let asked = Digest::of(b"asked for");
    let lie = format!("Docker-Content-Digest: {asked}\r\n");
    let server = Server::start(move |_| ok(&lie, manifest(b"component").to_string())).await;
    let image = format!("{}/gates/smoke@{asked}", server.host());
    assert_refused(pull(&server.fetcher(&json!({})), image).await, "DigestMismatch", &[]);
    let server = Server::start(|_| ok("", manifest(b"component").to_string())).await;
    let image = format!("{}/gates/smoke@{asked}", server.host());
    assert_refused(pull(&server.fetcher(&json!({})), image).await, "DigestMismatch", &[asked.as_str()]);
}

#[tokio::test]
async fn threat_20_a_manifest_of_ten_gibibytes_is_not_read() {
    let told = format!("HTTP/1.1 200 OK\r\nContent-Length: {TOO_MANY}\r\n");
    let server = Server::start(move |_| Answer::Whole(told.clone(), Vec::new())).await;
    assert_refused(pull(&server.fetcher(&json!({})), server.image()).await, "TooLarge", &[]);

    let endless = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n";
    let server = Server::start(|_| Answer::Endless(endless.to_owned())).await;
    assert_refused(pull(&server.fetcher(&json!({})), server.image()).await, "TooLarge", &["4194304"]);
    assert!(server.sent.load(SeqCst) < IN_FLIGHT);
}

#[tokio::test]
async fn threat_14_a_component_is_not_read_beyond_what_its_manifest_says() {
    let server = Server::start(|path| match path {
        path if path.contains("/manifests/") => ok("", manifest(b"component").to_string()),
        _ => Answer::Endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n".to_owned()),
    })
    .await;
    assert_refused(pull(&server.fetcher(&json!({})), server.image()).await, "TooLarge", &["9 bytes"]);
    assert!(server.sent.load(SeqCst) < IN_FLIGHT);

    let server = Server::start(|_| {
        let mut manifest = manifest(b"component");
        manifest["layers"][0]["size"] = json!(TOO_MANY);
        ok("", manifest.to_string())
    })
    .await;
    assert_refused(pull(&server.fetcher(&json!({})), server.image()).await, "TooLarge", &["32 MiB"]);
    assert_eq!(server.asked.lock().unwrap().len(), 1, "the component is not asked for");
}

/// A proxy that connects to whatever it is asked for, and the lines in which it was.
async fn proxy(answer: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut request = String::new();
                while !request.ends_with("\r\n\r\n") {
                    stream.read_line(&mut request).await.unwrap();
                }
                let line = request.lines().next().unwrap_or_default().to_owned();
                let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
                log.lock().unwrap().push(line);
                stream.write_all(answer.as_bytes()).await.unwrap();
                if let Ok(mut target) = TcpStream::connect(target).await {
                    // Ends when either side does.
                    let _ = copy_bidirectional(&mut stream, &mut target).await;
                }
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_proxy_is_asked_for_a_tunnel() {
    let server = Server::start(|path| match path {
        path if path.contains("/manifests/") => ok("", manifest(b"component").to_string()),
        _ => ok("", *b"component"),
    })
    .await;
    let (address, asked) = proxy("HTTP/1.1 200 OK\r\n\r\n").await;
    let fetcher = server.fetcher(&json!({"proxy": format!("http://{address}")}));
    assert_eq!(pull(&fetcher, server.image()).await.unwrap().component.as_ref(), b"component");
    let line = format!("CONNECT {} HTTP/1.1", server.host());
    assert_eq!(*asked.lock().unwrap(), [line.clone(), line]);

    let (address, _) = proxy("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    let fetcher = server.fetcher(&json!({"proxy": format!("http://{address}")}));
    assert_refused(pull(&fetcher, server.image()).await, "Unavailable", &["proxy", "403"]);
}

#[tokio::test]
async fn a_url_is_fetched_from_a_listed_host_and_is_what_its_sha256_says() {
    let server = Server::start(|_| ok("", *b"component")).await;
    let sources = json!({"http": {"hosts": [server.host()], "caBundle": server.authority}});
    let sources = Sources::parse(&sources.to_string()).unwrap();
    let fetcher = fetcher_for("", sources);
    let source = |host: &str, bytes: &[u8]| {
        let sha256 = Digest::of(bytes).as_str().trim_start_matches("sha256:").to_owned();
        ClusterSource::Http(HttpSource { url: format!("https://{host}/gate.wasm"), sha256 })
    };
    let trust = Trust::default();
    let admitted = admit(&fetcher, &source(&server.host(), b"component"), &trust).await.unwrap();
    assert_eq!(admitted.component.as_ref(), b"component");
    let answer = admit(&fetcher, &source(&server.host(), b"other"), &trust).await;
    assert_refused(answer, "DigestMismatch", &["spec.source.http.sha256"]);
    let forbidden = Forbidden::start().await;
    let answer = admit(&fetcher, &source(&forbidden.address.to_string(), b"x"), &trust).await;
    assert_refused(answer, "NotListed", &["http.hosts"]);
    forbidden.assert_unseen();

    let location = format!("Location: https://{}/\r\n", forbidden.address);
    let server = Server::start(move |_| head("302 Found", &location)).await;
    let sources = json!({"http": {"hosts": [server.host()], "caBundle": server.authority}});
    let fetcher = fetcher_for("", Sources::parse(&sources.to_string()).unwrap());
    assert_refused(admit(&fetcher, &source(&server.host(), b"x"), &trust).await, "NotListed", &[]);
    forbidden.assert_unseen();
}
