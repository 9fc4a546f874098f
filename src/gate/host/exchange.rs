//! One request over one connection of its own, timed and counted.
//!
//! A fresh connection is what a smoke test wants, and one that is never shared needs no rule about who may
//! find which state in it. Redirects are answers like any other: the guest's own follow is a new request.

use std::{
    error::Error as _,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Method, Request, Uri, Version,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderValue},
    http::uri::Authority,
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier,
    client::{
        WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    egress::Remote,
    probe::{Failure, Kind, Response, failure},
    traffic::Traffic,
};
use crate::model::trial::Identity;

/// Bytes and number of the headers of an answer. More is a protocol failure.
const HEAD_BYTES: usize = 16 << 10;
const HEADERS: usize = 100;

/// Bytes of a body that are counted. Then the connection is cut: an endless body has told all it can.
const COUNTED: usize = 64 << 20;

/// How long a Service may refuse before it is believed. The Pods of a trial are ready, but kube-proxy writes its rules
/// once a second, and until then a Service refuses or loses what is sent to it.
const LEARNING: Duration = Duration::from_secs(3);
/// For one connection meanwhile: the kernel says what was lost again only after a second.
const PATIENCE: Duration = Duration::from_millis(250);
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(50);

/// A request that was checked and will be sent.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) peer: Peer,
    pub(super) tls: Tls,
    pub(super) authority: Authority,
    pub(super) method: Method,
    pub(super) path: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) timeout: Duration,
    pub(super) max_body: usize,
    /// Pays for the answer; the request is paid for.
    pub(super) traffic: Traffic,
}

impl Exchange {
    /// About the bytes of the request.
    pub(super) fn size(&self) -> usize {
        let path = self.path.path_and_query().map_or(0, |path| path.as_str().len());
        path + size(&self.headers) + self.body.len()
    }
}

/// About the bytes of `headers`.
fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// Who is asked.
#[derive(Clone, Debug)]
pub(super) enum Peer {
    /// A Service, which may be younger than what kube-proxy knows.
    Service(SocketAddr),
    /// A Pod, by its name.
    Pod { name: String, address: SocketAddr },
    /// A host outside, resolved and checked before it is dialled.
    Outside(Arc<Remote>),
    /// Prometheus, wherever the operator's configuration says that it is.
    Prometheus { host: String, port: u16 },
}

/// How a connection is secured. The servers of an upgrade are verified by nothing but the key exchange, and the evidence
/// says that nobody checked whose certificates they have.
#[derive(Clone, Debug)]
pub(super) enum Tls {
    Off,
    Unverified,
    /// With a certificate of our own.
    Identified(Arc<ClientConfig>),
    Verified(Arc<ClientConfig>),
}

/// Sends it and reads the answer, all within its time-out.
pub(super) async fn send(exchange: Exchange) -> Result<Response, Failure> {
    let limit = exchange.timeout;
    match timeout(limit, connect(exchange)).await {
        Ok(answer) => answer,
        Err(_) => Err(failure(Kind::Timeout, format!("no complete answer within {} ms", limit.as_millis()))),
    }
}

async fn connect(exchange: Exchange) -> Result<Response, Failure> {
    let (began, stream) = dial(&exchange.peer).await?;
    // A small request should not wait for the acknowledgement of nothing. An error here shows at the next write.
    let _ = stream.set_nodelay(true);
    let connected = began.elapsed();
    let config = match &exchange.tls {
        Tls::Off => {
            return converse(exchange, stream, Timings { began, connected, secured: Duration::ZERO }).await;
        }
        Tls::Unverified => &*UNVERIFIED,
        Tls::Identified(config) | Tls::Verified(config) => config,
    };
    let name = exchange.authority.host().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(name)
        .map_err(|_| failure(Kind::Invalid, format!("host {:?} is no TLS server name", exchange.authority.host())))?;
    let stream = TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await
        .map_err(|error| failure(Kind::Tls, error.to_string()))?;
    let secured = began.elapsed();
    converse(exchange, stream, Timings { began, connected, secured }).await
}

/// A connection, and when it was begun: neither the time to resolve a name nor the time that kube-proxy took to learn of
/// a Service is the peer's.
async fn dial(peer: &Peer) -> Result<(Instant, TcpStream), Failure> {
    let refused = |error: io::Error| failure(Kind::Connect, error.to_string());
    match peer {
        Peer::Service(address) => dial_young(*address).await.map_err(refused),
        Peer::Pod { address, .. } => {
            let began = Instant::now();
            Ok((began, TcpStream::connect(address).await.map_err(refused)?))
        }
        Peer::Outside(remote) => {
            let addresses = remote.addresses().await?;
            let began = Instant::now();
            // One after the other until one answers, and none that was not checked.
            Ok((began, TcpStream::connect(addresses.as_slice()).await.map_err(refused)?))
        }
        Peer::Prometheus { host, port } => {
            let began = Instant::now();
            Ok((began, TcpStream::connect((host.as_str(), *port)).await.map_err(refused)?))
        }
    }
}

/// A Service refuses what comes before kube-proxy has learnt of it.
async fn dial_young(address: SocketAddr) -> io::Result<(Instant, TcpStream)> {
    let start = Instant::now();
    loop {
        let began = Instant::now();
        let learning = start.elapsed() < LEARNING;
        let dialled = TcpStream::connect(address);
        let answer = if learning { timeout(PATIENCE, dialled).await } else { Ok(dialled.await) };
        match answer {
            Ok(Ok(stream)) => return Ok((began, stream)),
            Ok(Err(error)) if !learning => return Err(error),
            Ok(Err(_)) | Err(_) => sleep(PAUSE).await,
        }
    }
}

/// What is known of the time before the request is written.
struct Timings {
    began: Instant,
    connected: Duration,
    secured: Duration,
}

async fn converse<S>(exchange: Exchange, stream: S, timings: Timings) -> Result<Response, Failure>
where
    TokioIo<S>: Read + Write + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| protocol(&error))?;
    // In this task: what a task of its own would be woken for is this one's to wait for.
    let mut connection = pin!(connection.fuse());

    let mut request = Request::new(Full::new(exchange.body));
    *request.method_mut() = exchange.method;
    *request.uri_mut() = exchange.path;
    *request.headers_mut() = exchange.headers;
    let host = HeaderValue::try_from(exchange.authority.as_str());
    request.headers_mut().insert(header::HOST, host.map_err(|error| failure(Kind::Invalid, error.to_string()))?);
    // One request per connection: the server may free it at once.
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));

    let answer = alongside(connection.as_mut(), sender.send_request(request)).await;
    let answer = answer.map_err(|error| protocol(&error))?;
    let first_byte = timings.began.elapsed();
    let (head, body) = answer.into_parts();
    exchange.traffic.take(size(&head.headers))?;
    let (body, body_size) = alongside(connection, read(body, exchange.max_body, &exchange.traffic)).await?;
    Ok(Response {
        endpoint: match exchange.peer {
            Peer::Pod { name, .. } => name,
            Peer::Service(_) | Peer::Outside(_) | Peer::Prometheus { .. } => String::new(),
        },
        status: head.status.as_u16(),
        http_version: match head.version {
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        },
        headers: head.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect(),
        body,
        body_size,
        timings: (
            milliseconds(timings.connected),
            milliseconds(timings.secured),
            milliseconds(first_byte),
            milliseconds(timings.began.elapsed()),
        ),
    })
}

/// Does `work` while the connection that it needs is served. What breaks the connection, `work` hears of.
async fn alongside<T>(mut connection: Pin<&mut impl Future>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        let _ = connection.as_mut().poll(context);
        work.as_mut().poll(context)
    })
    .await
}

/// The first `keep` bytes of a body, and how many there were.
async fn read(mut body: Incoming, keep: usize, traffic: &Traffic) -> Result<(Vec<u8>, u32), Failure> {
    let (mut kept, mut counted) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|error| protocol(&error))?.into_data() {
            traffic.take(data.len())?;
            counted += data.len();
            kept.extend_from_slice(&data[..data.len().min(keep - kept.len())]);
            if counted > COUNTED {
                break;
            }
        }
    }
    Ok((kept, u32::try_from(counted).unwrap_or(u32::MAX)))
}

fn protocol(error: &hyper::Error) -> Failure {
    let cause = error.source().map(|cause| format!(": {cause}"));
    failure(Kind::Protocol, format!("{error}{}", cause.unwrap_or_default()))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// TLS that takes any certificate. The operator's evidence says that nobody verified it.
static UNVERIFIED: LazyLock<Arc<ClientConfig>> =
    LazyLock::new(|| Arc::new(finished(unverified().with_no_client_auth())));

/// The same, for servers that ask who we are.
///
/// # Errors
/// Where the certificate or its key cannot be read.
pub(in crate::gate) fn identified(identity: &Identity) -> Result<Arc<ClientConfig>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).collect();
    let chain = chain.map_err(|error| format!("the host's certificate cannot be read: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.reveal());
    let key = key.map_err(|_| "the key of the host's certificate cannot be read".to_owned())?;
    let config = unverified().with_client_auth_cert(chain, key);
    Ok(Arc::new(finished(config.map_err(|error| format!("the host's certificate cannot be used: {error}"))?)))
}

/// TLS that takes certificates which `roots` vouch for.
pub(in crate::gate) fn verified(roots: RootCertStore) -> Arc<ClientConfig> {
    Arc::new(finished(builder().with_root_certificates(roots).with_no_client_auth()))
}

fn unverified() -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let verifier = Arc::new(Unverified(Arc::new(ring::default_provider())));
    builder().dangerous().with_custom_certificate_verifier(verifier)
}

fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider's own suites fit the default protocol versions")
}

fn finished(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A smoke test wants the whole handshake, and connections share no state.
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// Says yes to every certificate, but not to a peer that does not hold its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    fn exchange(address: SocketAddr) -> Exchange {
        Exchange {
            peer: Peer::Pod { name: "pod-a".into(), address },
            tls: Tls::Off,
            authority: Authority::from_static("api.example.com"),
            method: Method::POST,
            path: Uri::from_static("/a?b=c"),
            headers: HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("*/*"))]),
            body: Bytes::from_static(b"body"),
            timeout: Duration::from_secs(60),
            max_body: 10,
            traffic: Traffic::new(1 << 20),
        }
    }

    /// Answers one connection with `bytes` and closes it; says what it read until the other side was done.
    async fn answering(bytes: Vec<u8>) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = vec![0; 4096];
            let mut text = String::new();
            while !text.ends_with("body") {
                let bytes = stream.read(&mut read).await.unwrap();
                text.push_str(std::str::from_utf8(&read[..bytes]).unwrap());
            }
            stream.write_all(&bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            // Whatever else it wanted to say.
            let _ = stream.read_to_string(&mut text).await;
            text
        });
        (address, served)
    }

    #[tokio::test]
    async fn a_request_is_exactly_these_bytes_and_nothing_follows() {
        let (address, served) = answering(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()).await;
        let response = send(exchange(address)).await.unwrap();
        assert_eq!((response.status, response.endpoint.as_str()), (204, "pod-a"));
        let mut lines: Vec<String> = served.await.unwrap().split("\r\n").map(str::to_ascii_lowercase).collect();
        lines[1..5].sort_unstable();
        let wanted = [
            "post /a?b=c http/1.1",
            "accept: */*",
            "connection: close",
            "content-length: 4",
            "host: api.example.com",
            "",
            "body",
        ];
        assert_eq!(lines, wanted);
    }

    #[tokio::test]
    async fn a_service_that_kube_proxy_has_not_learnt_of_is_asked_again_and_its_clock_starts_then() {
        let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let late = refusing.local_addr().unwrap();
        drop(refusing);
        let began = Instant::now();
        let asked = tokio::spawn(send(Exchange { peer: Peer::Service(late), ..exchange(late) }));
        // Nobody can see a refusal from outside: time for a few is all there is to wait for.
        sleep(PAUSE * 3).await;
        let listener = TcpListener::bind(late).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        let response = asked.await.unwrap().unwrap();
        assert_eq!(response.status, 204);
        assert!(response.timings.3 < milliseconds(began.elapsed() - PAUSE), "{:?}", response.timings);
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer() {
        let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let location = elsewhere.local_addr().unwrap();
        let answer = format!("HTTP/1.1 302 Found\r\nlocation: http://{location}/\r\ncontent-length: 0\r\n\r\n");
        let (address, served) = answering(answer.into_bytes()).await;
        let response = send(exchange(address)).await.unwrap();
        assert_eq!(response.status, 302);
        served.await.unwrap();
        assert!(futures::FutureExt::now_or_never(elsewhere.accept()).is_none());
    }

    #[tokio::test]
    async fn a_body_is_kept_up_to_its_limit_and_counted_beyond() {
        for (size, kept) in [(10, 10), (11, 10), (100_000, 10)] {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n{}", "x".repeat(size));
            let (address, _served) = answering(answer.into_bytes()).await;
            let response = send(exchange(address)).await.unwrap();
            assert_eq!((response.body.len(), response.body_size as usize), (kept, size));
        }
    }

    #[tokio::test]
    async fn a_body_that_drips_for_ever_ends_at_the_requests_own_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dripping = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            while stream.write_all(b"1\r\nx\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let failure = send(Exchange { timeout: Duration::from_millis(200), ..exchange(address) }).await.unwrap_err();
        assert_eq!(failure.kind, Kind::Timeout);
        // It hung up: the drip has nobody left to write to.
        dripping.await.unwrap();
    }
}
