//! A reverse proxy between an operator and the apiserver: it sees every write, and can stop the operator at one.
//!
//! What the operator presents (its token) is passed on, so that it has its own rights. A trap springs before a
//! write reaches the apiserver or after it took effect; in both cases the operator never sees the answer. And a write can
//! be held on its way, until long after its sender is forgotten.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::http::uri::{Authority, Scheme};
use hyper::http::{Method, Request, Response, Uri};
use hyper::service::service_fn;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::cluster::{Cluster, NODE_ADDRESS, kubeconfig};

type Body = UnsyncBoxBody<Bytes, hyper::Error>;
/// Whether a trap springs at a write, given its number.
type Condition = Box<dyn Fn(usize, &Write) -> bool + Send>;

/// A request that changes something.
#[derive(Debug, Clone)]
pub struct Write {
    /// POST, PUT, PATCH or DELETE.
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// What was sent.
    pub body: Bytes,
}

impl Write {
    /// Whether it renews the leader's lease, which happens at any time.
    pub fn is_lease(&self) -> bool {
        self.path.contains("/leases")
    }

    /// Whether it only asks what the sender may do.
    pub fn is_review(&self) -> bool {
        self.path.contains("/selfsubjectaccessreviews")
    }

    /// Whether it is an Event.
    pub fn is_event(&self) -> bool {
        self.path.contains("/events")
    }

    /// What was sent, as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// On which side of a write a trap springs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The apiserver never sees the write.
    Before,
    /// The write took effect.
    After,
}

/// A write on its way, which comes to the apiserver when it is delivered.
pub struct Held {
    /// What is sent.
    pub write: Write,
    go: oneshot::Sender<()>,
    status: oneshot::Receiver<u16>,
}

impl Held {
    /// Lets it come to the apiserver now; the HTTP status of the answer.
    pub async fn deliver(self) -> Result<u16> {
        let gone = "its sender has closed the connection";
        self.go.send(()).ok().context(gone)?;
        self.status.await.context(gone)
    }
}

/// A running proxy; it ends with the runtime it was started on.
pub struct Proxy {
    address: SocketAddr,
    certificate: String,
    state: Arc<State>,
}

struct State {
    upstream: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    writes: Mutex<Vec<Write>>,
    trap: Mutex<Option<Trap>>,
}

struct Trap {
    matches: Condition,
    spring: Box<dyn FnOnce() + Send>,
    does: Does,
}

/// What a trap does to its write, and who is told.
enum Does {
    Break(Side, oneshot::Sender<Write>),
    Hold(oneshot::Sender<Held>),
}

impl Proxy {
    /// Starts a proxy on a port of its own, inside the cluster's network.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let mut tls =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            upstream: upstream(&cluster.authority())?,
            writes: Mutex::default(),
            trap: Mutex::default(),
        });
        tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(tls)), Arc::clone(&state)));
        Ok(Self { address, certificate: own.cert.pem(), state })
    }

    /// A kubeconfig that comes through here with the given token.
    pub fn kubeconfig(&self, token: &str) -> String {
        // The field wants base64, which JSON makes of bytes when Kubernetes' own type writes them.
        let certificate = json!(k8s_openapi::ByteString(self.certificate.clone().into_bytes()));
        kubeconfig(
            &format!("https://{}", self.address),
            json!({ "certificate-authority-data": certificate }),
            &json!({ "token": token }),
        )
    }

    /// The writes so far, in order.
    pub fn writes(&self) -> Vec<Write> {
        lock(&self.state.writes).clone()
    }

    /// Forgets the writes so far, so that the next one is number 1.
    pub fn forget(&self) {
        lock(&self.state.writes).clear();
    }

    /// Calls `spring` once, at the first write for which `matches(number, write)` holds; numbers begin at 1.
    /// The receiver gets that write. An earlier trap that has not sprung is taken away.
    pub fn trap(
        &self,
        side: Side,
        matches: impl Fn(usize, &Write) -> bool + Send + 'static,
        spring: impl FnOnce() + Send + 'static,
    ) -> oneshot::Receiver<Write> {
        let (sprung, receiver) = oneshot::channel();
        self.set(Trap { matches: Box::new(matches), spring: Box::new(spring), does: Does::Break(side, sprung) });
        receiver
    }

    /// The same, but the write is held on its way.
    pub fn hold(
        &self,
        matches: impl Fn(usize, &Write) -> bool + Send + 'static,
        spring: impl FnOnce() + Send + 'static,
    ) -> oneshot::Receiver<Held> {
        let (sprung, receiver) = oneshot::channel();
        self.set(Trap { matches: Box::new(matches), spring: Box::new(spring), does: Does::Hold(sprung) });
        receiver
    }

    fn set(&self, trap: Trap) {
        *lock(&self.state.trap) = Some(trap);
    }
}

impl State {
    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let trap = match parts.method {
            Method::POST | Method::PUT | Method::PATCH | Method::DELETE => self.record(Write {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                body: body.clone(),
            }),
            _ => None,
        };
        let Some((Trap { spring, does, .. }, write)) = trap else {
            return Ok(self.send(parts, body).await?.map(BodyExt::boxed_unsync));
        };
        // In either case, nobody may wait for the trap any more.
        match does {
            Does::Break(side, sprung) => {
                if side == Side::After {
                    self.send(parts, body).await?.into_body().collect().await?;
                }
                spring();
                let _ = sprung.send(write);
                bail!("a trap has sprung: this request gets no answer");
            }
            Does::Hold(sprung) => {
                let ((go, gone), (answered, status)) = (oneshot::channel(), oneshot::channel());
                spring();
                let _ = sprung.send(Held { write, go, status });
                gone.await.context("a write that was held is not wanted any more")?;
                let answer = self.send(parts, body).await?;
                let _ = answered.send(answer.status().as_u16());
                Ok(answer.map(BodyExt::boxed_unsync))
            }
        }
    }

    /// Counts a write, and takes the trap that it springs.
    fn record(&self, write: Write) -> Option<(Trap, Write)> {
        let number = {
            let mut writes = lock(&self.writes);
            writes.push(write.clone());
            writes.len()
        };
        let trap = lock(&self.trap).take_if(|trap| (trap.matches)(number, &write))?;
        Some((trap, write))
    }

    async fn send(&self, mut parts: hyper::http::request::Parts, body: Bytes) -> Result<Response<Incoming>> {
        let mut uri = parts.uri.into_parts();
        uri.scheme = Some(Scheme::HTTPS);
        uri.authority = Some(Authority::try_from(format!("{NODE_ADDRESS}:6443"))?);
        parts.uri = Uri::from_parts(uri)?;
        // The client's connection may speak HTTP/2, the one to the apiserver does not; it sets its own host.
        parts.version = hyper::Version::HTTP_11;
        parts.headers.remove(hyper::header::HOST);
        Ok(self.upstream.request(Request::from_parts(parts, Full::new(body))).await?)
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            // A connection ends with an error when its client is killed: that is what the proxy is for.
            let _ = serve(stream, tls, state).await;
        });
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, state: Arc<State>) -> Result<()> {
    let stream = TokioIo::new(tls.accept(stream).await?);
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { state.forward(request).await }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    server.serve_connection(stream, service).await.map_err(anyhow::Error::from_boxed)
}

fn upstream(authority: &Path) -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>> {
    let pem =
        fs::read(authority).with_context(|| format!("cannot read {}; is the cluster up?", authority.display()))?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem)?)?;
    let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// A thread that panicked while it held a list has left a list.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
