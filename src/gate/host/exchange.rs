//! One request over one connection of its own, timed and counted.
//!
//! A fresh connection is what a smoke test wants, and one that is never shared needs no rule about who may
//! find which state in it. Redirects are answers like any other: the guest's own follow is a new request.

use std::{
    error::Error as _,
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
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
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::{probe::failure, traffic::Traffic};
use crate::gate::bindings::probe::{Failure, Response};

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
    pub(super) address: SocketAddr,
    /// Name of the Pod behind `address`; empty for a Service.
    pub(super) endpoint: String,
    pub(super) tls: bool,
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

/// Sends it and reads the answer, all within its time-out.
pub(super) async fn send(exchange: Exchange) -> Result<Response, Failure> {
    let limit = exchange.timeout;
    match timeout(limit, connect(exchange)).await {
        Ok(answer) => answer,
        Err(_) => Err(failure("timeout", format!("no complete answer within {} ms", limit.as_millis()))),
    }
}

async fn connect(exchange: Exchange) -> Result<Response, Failure> {
    let (began, stream) = dial(&exchange).await.map_err(|error| failure("connect", error.to_string()))?;
    // A small request should not wait for the acknowledgement of nothing. An error here shows at the next write.
    let _ = stream.set_nodelay(true);
    let connected = began.elapsed();
    if exchange.tls {
        let name = exchange.authority.host().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(name)
            .map_err(|_| failure("invalid", format!("host {:?} is no TLS server name", exchange.authority.host())))?;
        let stream = TlsConnector::from(Arc::clone(&UNVERIFIED))
            .connect(name, stream)
            .await
            .map_err(|error| failure("tls", error.to_string()))?;
        let secured = began.elapsed();
        converse(exchange, stream, Timings { began, connected, secured }).await
    } else {
        converse(exchange, stream, Timings { began, connected, secured: Duration::ZERO }).await
    }
}

/// A connection, and when it was begun: the time that kube-proxy took to learn of a Service is not the Service's.
async fn dial(exchange: &Exchange) -> io::Result<(Instant, TcpStream)> {
    let start = Instant::now();
    loop {
        let began = Instant::now();
        let learning = exchange.endpoint.is_empty() && start.elapsed() < LEARNING;
        let dialled = TcpStream::connect(exchange.address);
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
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));

    let mut request = Request::new(Full::new(exchange.body));
    *request.method_mut() = exchange.method;
    *request.uri_mut() = exchange.path;
    *request.headers_mut() = exchange.headers;
    let host = HeaderValue::try_from(exchange.authority.as_str());
    request.headers_mut().insert(header::HOST, host.map_err(|error| failure("invalid", error.to_string()))?);
    // One request per connection: the server may free it at once.
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));

    let answer = sender.send_request(request).await.map_err(|error| protocol(&error))?;
    let first_byte = timings.began.elapsed();
    let (head, body) = answer.into_parts();
    exchange.traffic.take(size(&head.headers))?;
    let (body, body_size) = read(body, exchange.max_body, &exchange.traffic).await?;
    Ok(Response {
        endpoint: exchange.endpoint,
        status: head.status.as_u16(),
        http_version: match head.version {
            Version::HTTP_10 => "1.0".to_owned(),
            _ => "1.1".to_owned(),
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
    failure("protocol", format!("{error}{}", cause.unwrap_or_default()))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// TLS that takes any certificate. The operator's evidence says that nobody verified it.
static UNVERIFIED: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider's own suites fit the default protocol versions");
    let verifier = Arc::new(Unverified(provider));
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A smoke test wants the whole handshake, and connections share no state.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
});

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
            address,
            endpoint: "pod-a".into(),
            tls: false,
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
        let asked = tokio::spawn(send(Exchange { endpoint: String::new(), ..exchange(late) }));
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
        assert_eq!(failure.kind, "timeout");
        // It hung up: the drip has nobody left to write to.
        dripping.await.unwrap();
    }
}
