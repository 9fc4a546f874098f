//! One GET at a time to hosts that the operator lists.
//!
//! References come from tenants, answers from registries: nothing here follows either further than the list goes, and
//! nothing reads more than it was told to expect.

use std::{
    error::Error as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::{Body as _, Incoming},
    client::conn::http1,
    header::{self, HeaderValue},
    http::uri::{Authority, Scheme},
    upgrade::{self, Upgraded},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;

/// For a connection, from the name to the end of the TLS handshake.
const TO_CONNECT: Duration = Duration::from_secs(10);
/// For everything about one GET: the largest component over 5 Mbit/s.
const TO_ANSWER: Duration = Duration::from_secs(60);
/// Redirects in a row. Registries use one.
const REDIRECTS: usize = 3;
const HTTPS: u16 = 443;

/// How a listed host is reached.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// Whom it must prove to be.
    pub(super) tls: Arc<ClientConfig>,
    /// The proxy between.
    pub(super) proxy: Option<Authority>,
}

/// One question.
#[derive(Debug)]
pub(super) struct Get<'ask> {
    /// `https://host[:port]/path`; the host is listed.
    pub(super) url: Uri,
    /// Media types that are understood.
    pub(super) accept: &'static str,
    /// Sent to the host of `url` only.
    pub(super) authorization: Option<HeaderValue>,
    /// Where else a redirect may lead.
    pub(super) redirects: &'ask [Authority],
    /// Bytes of the body.
    pub(super) limit: usize,
}

/// Its answer. The body of one that is no success is empty.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GetError {
    /// It sends us where the operator did not.
    #[error("it sends the operator to {0}, which its entry in the file of --plugin-sources does not list")]
    NotListed(String),
    /// More than was told or may be.
    #[error("the answer of {host} is larger than {limit} bytes")]
    TooLarge {
        /// Who answered.
        host: String,
        /// What was expected at most.
        limit: usize,
    },
    /// Nobody answers, or in no way that HTTP knows. May go away.
    #[error("{host}: {cause}")]
    Unavailable {
        /// Who was asked.
        host: String,
        /// What happened.
        cause: String,
    },
}

impl GetError {
    pub(super) fn unavailable(host: &Authority, cause: impl ToString) -> Self {
        Self::Unavailable { host: host.to_string(), cause: cause.to_string() }
    }
}

/// Asks, follows redirects as far as they are listed, and reads the whole answer.
pub(super) async fn get(route: &Route, ask: Get<'_>) -> Result<Answer, GetError> {
    let first = authority(&ask.url)?;
    match timeout(TO_ANSWER, follow(route, ask)).await {
        Ok(answer) => answer,
        Err(_) => Err(GetError::unavailable(&first, format!("no whole answer within {} s", TO_ANSWER.as_secs()))),
    }
}

async fn follow(route: &Route, ask: Get<'_>) -> Result<Answer, GetError> {
    let Get { mut url, accept, authorization, redirects, limit } = ask;
    let first = authority(&url)?;
    for _ in 0..=REDIRECTS {
        let host = authority(&url)?;
        let authorization = authorization.as_ref().filter(|_| host == first);
        // The connection ends with this turn; none is ever shared.
        let (response, _connection) = send(route, &host, &url, accept, authorization).await?;
        let target = match response.status() {
            StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT => redirected(&url, response.headers()),
            status => {
                let (head, body) = response.into_parts();
                let body = if status.is_success() { read(&host, body, limit).await? } else { Bytes::new() };
                return Ok(Answer { status, headers: head.headers, body });
            }
        };
        let target = target.ok_or_else(|| GetError::unavailable(&host, "redirects to what is no https URL"))?;
        let next = authority(&target)?;
        if next != first && !redirects.contains(&next) {
            return Err(GetError::NotListed(next.to_string()));
        }
        url = target;
    }
    Err(GetError::unavailable(&first, format!("more than {REDIRECTS} redirects in a row")))
}

/// The host of an absolute https URL. Whoever writes a user name into it wants to be taken for another host.
pub(super) fn authority(url: &Uri) -> Result<Authority, GetError> {
    match (url.scheme() == Some(&Scheme::HTTPS), url.authority()) {
        (true, Some(authority)) if !authority.as_str().contains('@') && !authority.host().is_empty() => {
            Ok(authority.clone())
        }
        _ => Err(GetError::NotListed(url.to_string())),
    }
}

/// Where an answer sends us: somewhere else, or to another path of the same host.
pub(super) fn redirected(from: &Uri, headers: &HeaderMap) -> Option<Uri> {
    let location = headers.get(header::LOCATION)?.to_str().ok()?;
    if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = from.clone().into_parts();
        parts.path_and_query = Some(location.parse().ok()?);
        return Uri::from_parts(parts).ok();
    }
    location.parse::<Uri>().ok().filter(|target| target.scheme() == Some(&Scheme::HTTPS))
}

async fn send(
    route: &Route,
    host: &Authority,
    url: &Uri,
    accept: &'static str,
    authorization: Option<&HeaderValue>,
) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), GetError> {
    let failed = |error: hyper::Error| {
        // Its own text is a category; the cause is underneath.
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        GetError::unavailable(host, format!("{error}{cause}"))
    };
    let stream = match timeout(TO_CONNECT, connect(route, host)).await {
        Ok(stream) => stream?,
        Err(_) => {
            return Err(GetError::unavailable(host, format!("no connection within {} s", TO_CONNECT.as_secs())));
        }
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // How it ends shows in the answer.
        let _ = connection.await;
    }));
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(header::HOST, host.as_str())
        .header(header::USER_AGENT, concat!("sluice/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, accept);
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| GetError::unavailable(host, error))?;
    Ok((sender.send_request(request).await.map_err(failed)?, connection))
}

/// A secured connection to `host`, through the proxy if there is one.
async fn connect(route: &Route, host: &Authority) -> Result<TlsStream<Box<dyn Stream>>, GetError> {
    let name = ServerName::try_from(bare(host).to_owned())
        .map_err(|_| GetError::unavailable(host, "is no name that a certificate can have"))?;
    let connector = TlsConnector::from(Arc::clone(&route.tls));
    let stream: Box<dyn Stream> = match &route.proxy {
        Some(proxy) => Box::new(tunnel(proxy, host).await?),
        None => Box::new(dial(host, HTTPS).await?),
    };
    connector.connect(name, stream).await.map_err(|error| GetError::unavailable(host, format!("TLS: {error}")))
}

/// A connection to one of the host's addresses.
async fn dial(host: &Authority, port: u16) -> Result<TcpStream, GetError> {
    let port = host.port_u16().unwrap_or(port);
    let found = lookup_host((bare(host), port)).await;
    let addresses: Vec<SocketAddr> = found.map_err(|error| GetError::unavailable(host, error))?.collect();
    let mut cause = "has no address".to_owned();
    for address in addresses {
        if is_nobodys(address.ip()) {
            cause = format!("{} is no address of a server", address.ip());
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => cause = format!("{address}: {error}"),
        }
    }
    Err(GetError::unavailable(host, cause))
}

/// Has the proxy connect to `host`.
async fn tunnel(proxy: &Authority, host: &Authority) -> Result<TokioIo<Upgraded>, GetError> {
    let failed = |cause: String| GetError::unavailable(host, format!("proxy {proxy}: {cause}"));
    let stream = dial(proxy, 80).await?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
    // Ends when the tunnel is closed.
    tokio::spawn(connection.with_upgrades());
    let target = format!("{}:{}", host.host(), host.port_u16().unwrap_or(HTTPS));
    let request = Request::builder().method(Method::CONNECT).uri(&target).header(header::HOST, &target);
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
    if !response.status().is_success() {
        return Err(failed(format!("answered {}", response.status())));
    }
    let tunnel = upgrade::on(response).await.map_err(|error| failed(error.to_string()))?;
    Ok(TokioIo::new(tunnel))
}

fn bare(host: &Authority) -> &str {
    host.host().trim_matches(['[', ']'])
}

/// Addresses behind which no registry stands, but the metadata of a cloud does, or nobody: whatever a listed name
/// resolves to, these are not dialled. Private addresses are: the operator listed the name.
fn is_nobodys(address: IpAddr) -> bool {
    let v4 = |address: Ipv4Addr| {
        address.is_link_local() || address.is_multicast() || address.is_unspecified() || address.is_broadcast()
    };
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => v4(mapped),
            None => {
                address.is_unicast_link_local()
                    || address.is_multicast()
                    || address.is_unspecified()
                    || address == METADATA
            }
        },
    }
}

/// The metadata of EC2 has an address that looks like anybody's.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

async fn read(host: &Authority, mut body: Incoming, limit: usize) -> Result<Bytes, GetError> {
    let too_large = || GetError::TooLarge { host: host.to_string(), limit };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| GetError::unavailable(host, format!("the answer broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// What TLS is spoken over.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(location: &str) -> Option<String> {
        let headers = [(header::LOCATION, location.parse().expect("a header"))].into_iter().collect();
        redirected(&Uri::from_static("https://r.example:5000/v2/a"), &headers).map(|target| target.to_string())
    }

    #[test]
    fn a_redirect_leads_to_https_or_to_another_path_of_the_same_host() {
        assert_eq!(target("/blobs/x?y=1").as_deref(), Some("https://r.example:5000/blobs/x?y=1"));
        assert_eq!(target("https://b.example/x").as_deref(), Some("https://b.example/x"));
        for bad in ["http://b.example/x", "//b.example/x", "x", "ftp://b.example/x", ""] {
            assert_eq!(target(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_authority_with_a_user_is_nobodys() {
        let host = |url: &'static str| authority(&Uri::from_static(url)).map(|host| host.to_string());
        assert_eq!(host("https://r.example:5000/x").as_deref(), Ok("r.example:5000"));
        assert!(host("https://r.example@169.254.169.254/x").is_err());
        assert!(host("https://:80/x").is_err());
        assert!(host("http://r.example/x").is_err());
        assert!(host("/x").is_err());
    }

    #[test]
    fn metadata_is_not_dialled_under_any_name() {
        for address in
            ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254", "0.0.0.0", "224.0.0.1", "::"]
        {
            assert!(is_nobodys(address.parse().expect("an address")), "{address}");
        }
        for address in ["10.0.0.1", "192.0.2.1", "127.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(!is_nobodys(address.parse().expect("an address")), "{address}");
        }
    }
}
