//! Users of a gateway, who ask all the time, and what they lose while something is done to it.
//!
//! There are as many of each [`Kind`]: over a new connection each time, over one that is kept, over HTTP/2. Each asks again
//! a moment after it was answered. What an honest client would call an error is **lost**: a connection that is refused or
//! reset, no answer in [`LIMIT`], one that ends early, a status of 500 or more.
//!
//! Not lost but **retried**: a connection that had been answered on before ends, and the head of the next answer has not come.
//! A server may close what is kept at any time, and a request may be on its way then (RFC 9112, 9.5; the GOAWAY of HTTP/2 in
//! RFC 9113, 6.8); every client sends one that may be repeated once more (RFC 9110, 9.2.2). So does this one, at once and over
//! a new connection, and what becomes of that is what counts. A connection that was closed before anything was sent is
//! neither: the next request opens another one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper::header::HOST;
use hyper::http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;

use crate::cluster::{Cluster, NODE_ADDRESS};

/// How long an answer may take.
pub const LIMIT: Duration = Duration::from_secs(5);
/// Between an answer and the next request of the same user: some 100 requests in a second.
const PAUSE: Duration = Duration::from_millis(8);
/// Where new connections come from, one port after the other: the kernel would take others' too.
///
/// Where a server resets a kept connection, connection tracking remembers for 10 seconds which Pod it led to, and the port is
/// free at once. A new connection from there meanwhile is sent to that Pod, which may be gone, whoever manages it and whatever
/// the Service selects. Users have addresses of their own; these here have one, and use all of its ports in a minute.
const PORTS: Range<u16> = 12_000..30_000;
/// Users of each kind.
const USERS: usize = 2;
/// Of what was lost, so many are described.
const DESCRIBED: usize = 10;

/// How a user speaks to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// HTTP/1.1, over a new connection each time.
    New,
    /// HTTP/1.1, over a connection that is kept for as long as the server keeps it.
    Kept,
    /// HTTP/2 over TLS, likewise.
    Http2,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::New, Self::Kept, Self::Http2];
}

/// Where a gateway answers.
#[derive(Debug, Clone, Copy)]
pub struct Gateway {
    /// Without TLS.
    pub plain: SocketAddr,
    /// With TLS and HTTP/2.
    pub tls: SocketAddr,
    /// Whether those who ask are outside of the cluster.
    outside: bool,
}

impl Gateway {
    /// The one behind a Service, at the Service's own address, for those who are in the cluster.
    pub fn in_cluster(service: &Service) -> Result<Self> {
        let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
        Self::at(service, address, |port| Some(port.port), false)
    }

    /// The one behind a Service, at the node's address, for those who are not.
    pub fn on_node(service: &Service) -> Result<Self> {
        Self::at(service, NODE_ADDRESS, |port| port.node_port, true)
    }

    fn at(
        service: &Service,
        address: &str,
        number: impl Fn(&ServicePort) -> Option<i32>,
        outside: bool,
    ) -> Result<Self> {
        let address: IpAddr = address.parse().context("the Service has no address")?;
        let of = |wanted: i32| {
            let mut ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
            let number = ports.find(|port| port.port == wanted).and_then(&number);
            let number = number.with_context(|| format!("the Service has no port {wanted} there"))?;
            anyhow::Ok(SocketAddr::new(address, u16::try_from(number)?))
        };
        Ok(Self { plain: of(80)?, tls: of(443)?, outside })
    }

    /// Where it answers without TLS.
    pub fn url(&self) -> String {
        format!("http://{}/", self.plain)
    }
}

/// What users of a kind got.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Tally {
    /// Requests that were answered or lost; one that was retried is one.
    pub requests: usize,
    /// Those that were retried.
    pub retried: usize,
    /// Those that were lost.
    pub lost: usize,
    /// The longest time that one user was without an answer.
    pub longest_gap: Duration,
    /// Why the first of them were lost.
    pub why: Vec<String>,
}

impl Tally {
    /// Of users of any kind.
    pub fn of_all<'a>(tallies: impl IntoIterator<Item = &'a Self>) -> Self {
        tallies.into_iter().fold(Self::default(), |mut sum, tally| {
            sum.add(tally);
            sum
        })
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.retried += other.retried;
        self.lost += other.lost;
        self.longest_gap = self.longest_gap.max(other.longest_gap);
        self.why.extend(other.why.iter().take(DESCRIBED.saturating_sub(self.why.len())).cloned());
    }
}

/// What users of every kind got.
pub type Tallies = BTreeMap<Kind, Tally>;

/// Users who ask until they are stopped.
pub struct Load {
    stop: oneshot::Sender<()>,
    tallies: oneshot::Receiver<Result<Tallies>>,
}

impl Load {
    /// Has them ask from now on. On a thread of its own: what is done meanwhile is not
    /// to keep them waiting.
    pub fn start(cluster: &Cluster, gateway: Gateway) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (told, tallies) = oneshot::channel();
        let cluster = cluster.clone();
        std::thread::spawn(move || {
            let ask = || async {
                let kinds = Kind::ALL.map(|kind| [kind; USERS]);
                let ports = PORTS.step_by(PORTS.len() / USERS).cycle();
                let users = kinds.as_flattened().iter().zip(ports);
                let users: Vec<_> = users.map(|(kind, port)| User::new(*kind, gateway, port)).collect::<Result<_>>()?;
                Ok(ask_until(users, stopped).await)
            };
            let asked = if gateway.outside { cluster.outside(ask) } else { cluster.inside(ask) };
            // Nobody may want to know any more.
            let _ = told.send(asked);
        });
        Self { stop, tallies }
    }

    /// Stops them. A request that is under way is not counted.
    pub async fn stop(self) -> Result<Tallies> {
        // An error means that they have ended by themselves, and why is told next.
        let _ = self.stop.send(());
        self.tallies.await.context("those who ask have panicked")?
    }
}

async fn ask_until(users: Vec<User>, stopped: oneshot::Receiver<()>) -> Tallies {
    let tallies = RefCell::new(Tallies::new());
    let began = Instant::now();
    let asking = users.into_iter().map(async |mut user| {
        let mut answered = Instant::now();
        loop {
            let asked = user.ask().await;
            let mut tally = Tally { requests: 1, ..Tally::default() };
            match asked {
                Ok(Answered { retried }) => {
                    tally.retried = usize::from(retried);
                    tally.longest_gap = answered.elapsed();
                    answered = Instant::now();
                }
                Err(why) => {
                    tally.lost = 1;
                    tally.longest_gap = answered.elapsed();
                    tally.why = vec![format!("{:?} after {:.1} s: {why:#}", user.kind, began.elapsed().as_secs_f64())];
                }
            }
            tallies.borrow_mut().entry(user.kind).or_default().add(&tally);
            tokio::time::sleep(PAUSE).await;
        }
    });
    tokio::select! {
        // Told, or nobody is left to tell.
        _ = stopped => {}
        _ = join_all(asking) => {}
    }
    tallies.into_inner()
}

/// Somebody who asks.
struct User {
    kind: Kind,
    gateway: Gateway,
    tls: TlsConnector,
    /// The connection that is kept.
    kept: Option<Connection>,
    /// Where the next new connection comes from.
    port: u16,
}

/// A request was answered, maybe at the second attempt.
struct Answered {
    retried: bool,
}

/// Why there is no answer.
enum Failure {
    /// The connection ended before the head of the answer.
    Ended(anyhow::Error),
    /// Anything else.
    Other(anyhow::Error),
}

impl User {
    fn new(kind: Kind, gateway: Gateway, port: u16) -> Result<Self> {
        Ok(Self { kind, gateway, tls: http2_unverified()?, kept: None, port })
    }

    /// A connection from the next port that is free.
    async fn fresh(&mut self) -> std::io::Result<TcpStream> {
        loop {
            let (socket, any) = match self.gateway.plain {
                SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
                SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
            };
            let bound = socket.bind(SocketAddr::new(any, self.port));
            self.port = if self.port + 1 == PORTS.end { PORTS.start } else { self.port + 1 };
            match bound {
                Ok(()) => return socket.connect(self.gateway.plain).await,
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks once; an error is a lost request.
    async fn ask(&mut self) -> Result<Answered> {
        let mut retried = false;
        if let Some(mut kept) = self.kept.take()
            && kept.is_open().await
        {
            match kept.get(self.gateway).await {
                Ok(()) => {
                    self.kept = Some(kept);
                    return Ok(Answered { retried });
                }
                Err(Failure::Ended(_)) => retried = true,
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        let connected = tokio::time::timeout(LIMIT, self.connect()).await;
        let mut connection = connected.context("no connection in time")?.context("no connection")?;
        match connection.get(self.gateway).await {
            Ok(()) => {
                self.kept = Some(connection).filter(|_| self.kind != Kind::New);
                Ok(Answered { retried })
            }
            Err(Failure::Ended(error) | Failure::Other(error)) => Err(error),
        }
    }

    async fn connect(&mut self) -> Result<Connection> {
        if self.kind == Kind::Http2 {
            let stream = TcpStream::connect(self.gateway.tls).await?;
            let stream = self.tls.connect(ServerName::from(self.gateway.tls.ip()), stream).await?;
            ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2"), "HTTP/2 is not offered");
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            // It ends with its sender; of an error the sender tells.
            tokio::spawn(connection);
            Ok(Connection::Two(sender))
        } else {
            let stream = match self.kind {
                Kind::New => self.fresh().await?,
                Kind::Kept | Kind::Http2 => TcpStream::connect(self.gateway.plain).await?,
            };
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            Ok(Connection::One(sender))
        }
    }
}

enum Connection {
    One(http1::SendRequest<Empty<Bytes>>),
    Two(http2::SendRequest<Empty<Bytes>>),
}

impl Connection {
    /// Whether the server has closed it, as far as is known here.
    async fn is_open(&mut self) -> bool {
        match self {
            Self::One(sender) => sender.ready().await.is_ok(),
            Self::Two(sender) => sender.ready().await.is_ok(),
        }
    }

    async fn get(&mut self, gateway: Gateway) -> Result<(), Failure> {
        let asked = async {
            let answer = self.send(gateway).await?;
            judge(answer).await.map_err(Failure::Other)
        };
        let limited = tokio::time::timeout(LIMIT, asked).await;
        limited.unwrap_or_else(|late| Err(Failure::Other(anyhow::Error::new(late).context("no answer in time"))))
    }

    async fn send(&mut self, gateway: Gateway) -> Result<Response<hyper::body::Incoming>, Failure> {
        let request = |uri: String| {
            let request = Request::get(uri).header(HOST, gateway.plain.ip().to_string());
            request.body(Empty::new()).map_err(|error| Failure::Other(error.into()))
        };
        let sent = match self {
            Self::One(sender) => sender.send_request(request("/".to_owned())?).await,
            Self::Two(sender) => sender.send_request(request(format!("https://{}/", gateway.tls))?).await,
        };
        sent.map_err(|error| {
            let failure = if error.is_parse() { Failure::Other } else { Failure::Ended };
            failure(anyhow::Error::new(error).context("the connection ended"))
        })
    }
}

/// An answer has to be whole, and the gateway's own.
async fn judge(answer: Response<hyper::body::Incoming>) -> Result<()> {
    let status = answer.status();
    answer.into_body().collect().await.context("the answer ended early")?;
    if status.is_server_error() { bail!("the answer was {status}") } else { Ok(()) }
}

/// The certificate of a gateway is nobody's business here: that it is there, and answers, is.
#[derive(Debug)]
struct Unverified(CryptoProvider);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
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

fn http2_unverified() -> Result<TlsConnector> {
    let (provider, verifier) = (Arc::new(ring::default_provider()), Arc::new(Unverified(ring::default_provider())));
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::service::service_fn;
    use hyper_util::server::conn::auto;
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::Notify;
    use tokio_rustls::TlsAcceptor;

    const ANSWER: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno";

    /// A gateway that sends these texts over each connection, one for each request, and then closes it.
    async fn says(connections: &'static [&'static [&'static str]]) -> Gateway {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let plain = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            for answers in connections {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                for answer in *answers {
                    let mut request = [0; 1024];
                    assert_ne!(stream.read(&mut request).await.expect("a request"), 0);
                    stream.write_all(answer.as_bytes()).await.expect("sent");
                }
            }
        });
        Gateway { plain, tls: plain, outside: false }
    }

    fn user(kind: Kind, gateway: Gateway) -> User {
        User::new(kind, gateway, PORTS.start).expect("a user")
    }

    /// What a user gets: `!` for what is lost, `r` for what was retried.
    async fn gets(user: &mut User, requests: usize) -> String {
        let mut got = String::new();
        for _ in 0..requests {
            got.push(match user.ask().await {
                Ok(Answered { retried: false }) => '.',
                Ok(Answered { retried: true }) => 'r',
                Err(_) => '!',
            });
        }
        got
    }

    #[tokio::test]
    async fn a_kept_connection_that_ends_under_a_request_is_not_lost() {
        // The empty answer: the request is read, and the connection is closed.
        let gateway = says(&[&[ANSWER, ANSWER, ""], &[ANSWER]]).await;
        assert_eq!(gets(&mut user(Kind::Kept, gateway), 3).await, "..r");
    }

    #[tokio::test]
    async fn a_connection_that_ends_under_its_first_request_is_lost() {
        for kind in [Kind::Kept, Kind::New] {
            assert_eq!(gets(&mut user(kind, says(&[&[""]]).await), 1).await, "!", "{kind:?}");
        }
        // Once more is enough.
        assert_eq!(gets(&mut user(Kind::Kept, says(&[&[ANSWER, ""], &[""]]).await), 2).await, ".!");
    }

    #[tokio::test]
    async fn who_keeps_nothing_opens_a_connection_each_time() {
        assert_eq!(gets(&mut user(Kind::New, says(&[&[ANSWER], &[ANSWER]]).await), 2).await, "..");
    }

    #[tokio::test]
    async fn answers_that_end_early_or_are_no_ones_own_are_lost() {
        const SHORT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nno";
        const BAD: &str = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n";
        let gateway = says(&[&[ANSWER, SHORT], &[BAD]]).await;
        assert_eq!(gets(&mut user(Kind::Kept, gateway), 3).await, ".!!");
        let gateway = says(&[&["nonsense\r\n\r\n"]]).await;
        assert_eq!(gets(&mut user(Kind::Kept, gateway), 1).await, "!");
    }

    #[tokio::test]
    async fn nobody_there_is_a_lost_request() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let plain = listener.local_addr().expect("an address");
        drop(listener);
        for kind in Kind::ALL {
            assert_eq!(gets(&mut user(kind, Gateway { plain, tls: plain, outside: false }), 1).await, "!", "{kind:?}");
        }
    }

    /// A gateway that speaks HTTP/2 and says GOAWAY as soon as it is asked; what was asked is answered.
    async fn goes_away() -> Gateway {
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let tls = tls.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let mut tls = tls.with_single_cert(vec![own.cert.der().clone()], key).expect("a pair");
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let stream = TokioIo::new(tls.accept(stream).await.expect("TLS"));
                let asked = Notify::new();
                let service = service_fn(|_| {
                    asked.notify_one();
                    async { Ok::<_, std::io::Error>(Response::new(Empty::<Bytes>::new())) }
                });
                let server = auto::Builder::new(TokioExecutor::new());
                let mut connection = std::pin::pin!(server.serve_connection(stream, service));
                tokio::select! {
                    _ = connection.as_mut() => {}
                    () = asked.notified() => {
                        connection.as_mut().graceful_shutdown();
                        // The client may take its leave first, without a word.
                        let _ = connection.await;
                    }
                }
            }
        });
        Gateway { plain: address, tls: address, outside: false }
    }

    #[tokio::test]
    async fn a_connection_that_says_goaway_costs_no_request() {
        let mut user = user(Kind::Http2, goes_away().await);
        let got = gets(&mut user, 5).await;
        assert!(!got.contains('!'), "{got}");
    }

    #[test]
    fn tallies_add_up() {
        let one =
            Tally { requests: 3, lost: 1, longest_gap: Duration::from_secs(2), why: vec!["a".into()], retried: 1 };
        let many = Tally { why: vec!["b".into(); 20], ..one.clone() };
        let sum = Tally::of_all([&one, &many]);
        assert_eq!((sum.requests, sum.lost, sum.retried, sum.longest_gap), (6, 2, 2, Duration::from_secs(2)));
        assert_eq!((sum.why.len(), sum.why[0].as_str()), (DESCRIBED, "a"));
    }
}
