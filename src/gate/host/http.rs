//! `wasi:http` 0.2, for guests that bring an HTTP client of their own: another spelling of `probe`, where the operator
//! allows it.
//!
//! The authority of a request names a target backwards, `proxy.candidate.gate.internal`, and its headers that begin with
//! `x-gate-` are options. What is left is judged, counted and sent as every request of `probe` is. The scheme says
//! nothing: a target has its own. Codes of errors are few, so the log of the trial says what a failure was.

use std::{
    collections::BTreeSet,
    future::Future,
    iter, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Request as HttpRequest, Response as HttpResponse, StatusCode,
    body::Frame,
    header::{self, HeaderName, HeaderValue},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use wasmtime::{
    Result, StoreContextMut,
    component::{Linker, Resource},
};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};
use wasmtime_wasi_http::{
    Error, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttp, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks,
    WasiHttpView,
    p2::{
        bindings::{LinkOptions, http::types},
        types::{HostFutureIncomingResponse, HostOutgoingRequest},
    },
};

use super::{
    exchange::{Exchange, Peer},
    probe::{self, BODIES, CONNECTION_HEADERS, Failure, Kind, OURS, failure},
    trial::{Record, SharedLog},
};
use crate::{gate::store::State, model::trial::Credential};

/// The interfaces of 0.2 that may be imported.
pub(in crate::gate) const INTERFACES: [&str; 2] = ["wasi:http/types", "wasi:http/outgoing-handler"];

/// Behind the name of a target that is written as a host.
const SUFFIX: &str = ".gate.internal";

/// Bytes of the headers of one message, as they are kept in memory: twice what `probe` sends.
const FIELDS: usize = 32 << 10;

/// Bytes of a request's body that are taken from a guest at once, before anybody asks for more.
const CHUNK: usize = 16 << 10;

/// What `wasi:http` needs of a store.
pub(in crate::gate) struct Http {
    context: WasiHttpCtx,
    rules: Rules,
    /// Made by the first request: most guests send none this way.
    shared: Option<Arc<Shared>>,
}

impl Default for Http {
    fn default() -> Self {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(FIELDS);
        Self { context, rules: Rules, shared: None }
    }
}

impl Http {
    /// Puts on record what became of the requests.
    pub(in crate::gate) fn end(self, record: &mut Record) {
        let Some(shared) = self.shared else { return };
        let Heard { answered, denied } = mem::take(&mut *shared.heard());
        answered.iter().for_each(|endpoint| record.answered(endpoint));
        denied.iter().for_each(|name| record.deny(name));
    }
}

/// What the requests under way have in common.
struct Shared {
    /// For as many at once as the trial may have.
    turns: Semaphore,
    /// Bytes of bodies held for the guest: they count in nobody's memory limit until the guest has them.
    room: Arc<Semaphore>,
    heard: Mutex<Heard>,
}

impl Shared {
    fn new(concurrency: u16) -> Self {
        Self {
            turns: Semaphore::new(usize::from(concurrency.max(1))),
            room: Arc::new(Semaphore::new(BODIES)),
            heard: Mutex::default(),
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for so many bytes, once there is.
    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let bytes = u32::try_from(bytes).map_err(|_| Error::HttpRequestBodySize(None))?;
        // Nobody closes it.
        Arc::clone(&self.room).acquire_many_owned(bytes).await.map_err(|_| Error::HttpResponseIncomplete)
    }
}

/// What became of requests, for the record.
#[derive(Default)]
struct Heard {
    answered: BTreeSet<String>,
    denied: BTreeSet<String>,
}

/// What the library may do: keep messages, and send nothing.
struct Rules;

type Sending = dyn Future<Output = Result<(HttpResponse<WasiBody>, Box<Finishing>), Error>> + Send;
type Finishing = dyn Future<Output = Result<(), Error>> + Send;

impl WasiHttpHooks for Rules {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        is_forbidden(name)
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        Arc::new(is_forbidden)
    }

    /// The library's own way out, which is not linked.
    fn send_request(&mut self, _: HttpRequest<WasiBody>, _: Option<RequestOptions>, _: Box<Finishing>) -> Box<Sending> {
        Box::new(async { Err(Error::HttpRequestDenied) })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }
}

/// Headers of the connection. The length of a body may be said, for it is compared with the body.
fn is_forbidden(name: &HeaderName) -> bool {
    *name == header::HOST || *name != header::CONTENT_LENGTH && CONNECTION_HEADERS.contains(&name.as_str())
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.http.rules, table: &mut self.wasi.table, ctx: &mut self.http.context }
    }
}

/// Links the messages of the library, and our own way to send them.
pub(in crate::gate) fn link(linker: &mut Linker<State>) -> Result<()> {
    types::add_to_linker::<_, WasiHttp>(linker, &LinkOptions::default().into(), State::http)?;
    let mut handler = linker.instance("wasi:http/outgoing-handler@0.2.12")?;
    handler.func_wrap_async("handle", |mut store: StoreContextMut<'_, State>, (request, options): Handed| {
        Box::new(async move { Ok((store.data_mut().handle(request, options).await?,)) })
    })
}

type Handed = (Resource<HostOutgoingRequest>, Option<Resource<RequestOptions>>);

/// Never the error: what is refused at once is an answer that is there at once.
type Promised = Result<Resource<HostFutureIncomingResponse>, types::ErrorCode>;

impl State {
    /// Takes a request, and promises an answer.
    async fn handle(
        &mut self,
        request: Resource<HostOutgoingRequest>,
        options: Option<Resource<RequestOptions>>,
    ) -> Result<Promised> {
        self.enter().await?;
        let request = self.wasi.table.delete(request)?;
        let clocks = options.map(|options| self.wasi.table.delete(options)).transpose()?.unwrap_or_default();
        let admitted = asked(request, clocks).and_then(|(asked, body)| Ok((self.admit(0, asked, BODIES)?, body)));
        let limits = self.trial.limits;
        let log = (self.record.log.clone(), limits.log);
        let promise = match admitted {
            Err(failure) => HostFutureIncomingResponse::Ready(Err(told(&failure, &log))),
            Ok((exchange, body)) => {
                let shared = self.http.shared.get_or_insert_with(|| Arc::new(Shared::new(limits.concurrency)));
                let asking = Asking {
                    exchange,
                    body,
                    largest: limits.handed_over,
                    credentials: self.trial.grants.credentials.clone(),
                    shared: Arc::clone(shared),
                    log,
                };
                HostFutureIncomingResponse::Pending(spawn(asking.answer()))
            }
        };
        Ok(Ok(self.wasi.table.push(promise)?))
    }
}

/// A request as `probe` knows it, without its body.
fn asked(request: HostOutgoingRequest, clocks: RequestOptions) -> Result<(probe::Request, Option<WasiBody>), Failure> {
    let HostOutgoingRequest { method, authority, path_with_query, headers, body, .. } = request;
    let authority = authority.unwrap_or_default();
    let (mut plain, mut options) = (Vec::new(), Vec::new());
    for (name, value) in headers.iter() {
        let value = std::str::from_utf8(value.as_bytes());
        let value = value.map_err(|_| failure(Kind::Invalid, format!("the value of header {name} is not UTF-8")))?;
        match name.as_str().strip_prefix(OURS) {
            Some(option) => options.push((option.to_owned(), value.to_owned())),
            // The host writes it.
            None if *name == header::CONTENT_LENGTH => {}
            None => plain.push((name.to_string(), value.to_owned())),
        }
    }
    // One clock is for the whole exchange: the longest of those that the guest sets, where it does not name it itself.
    let clocks = [clocks.connect_timeout, clocks.first_byte_timeout, clocks.between_bytes_timeout];
    if let Some(longest) = clocks.into_iter().flatten().max()
        && options.iter().all(|(option, _)| option != "timeout-ms")
    {
        options.push(("timeout-ms".into(), milliseconds(longest).to_string()));
    }
    let asked = probe::Request {
        target: target(&authority).unwrap_or(authority),
        method: word(method),
        path: match path_with_query {
            None => "/".into(),
            Some(path) if path.is_empty() || path.starts_with('?') => format!("/{path}"),
            Some(path) => path,
        },
        headers: plain,
        body: Vec::new(),
        options,
    };
    Ok((asked, body))
}

/// `candidate/proxy` for `proxy.candidate.gate.internal`, and nothing for what is not written exactly so. No authority
/// has a slash: none is the name of a target as it stands.
fn target(authority: &str) -> Option<String> {
    let (name, side) = authority.strip_suffix(SUFFIX)?.rsplit_once('.')?;
    Some(format!("{side}/{name}"))
}

fn word(method: types::Method) -> String {
    match method {
        types::Method::Get => "GET".into(),
        types::Method::Head => "HEAD".into(),
        types::Method::Post => "POST".into(),
        types::Method::Put => "PUT".into(),
        types::Method::Delete => "DELETE".into(),
        types::Method::Connect => "CONNECT".into(),
        types::Method::Options => "OPTIONS".into(),
        types::Method::Trace => "TRACE".into(),
        types::Method::Patch => "PATCH".into(),
        types::Method::Other(word) => word,
    }
}

fn milliseconds(clock: Duration) -> u32 {
    u32::try_from(clock.as_millis()).unwrap_or(u32::MAX).max(1)
}

/// A log, and how much of it is kept.
type Log = (SharedLog, usize);

/// The code of a failure. What it was is in the log.
fn told(failure: &Failure, (log, limit): &Log) -> Error {
    log.lock().push(*limit, "warn", &format!("{}: {}", failure.kind.as_str(), failure.message), &[]);
    match failure.kind {
        Kind::Denied => Error::HttpRequestDenied,
        Kind::Connect => Error::ConnectionRefused,
        Kind::Tls => Error::TlsProtocolError,
        Kind::Timeout => Error::HttpResponseTimeout,
        Kind::Protocol => Error::HttpProtocolError,
        Kind::Invalid | Kind::Budget | Kind::TooLarge | Kind::Refused => {
            Error::InternalError(Some(failure.message.clone()))
        }
    }
}

/// A request on its way, apart from the store.
struct Asking {
    exchange: Exchange,
    body: Option<WasiBody>,
    /// Bytes that the body may have.
    largest: usize,
    credentials: Vec<Credential>,
    shared: Arc<Shared>,
    log: Log,
}

impl Asking {
    /// Sends it, and says what came of it.
    async fn answer(self) -> Result<(HttpResponse<WasiBody>, AbortOnDropJoinHandle<()>), Error> {
        let Self { mut exchange, body, largest, credentials, shared, log } = self;
        // Nobody closes it.
        let _turn = shared.turns.acquire().await.map_err(|_| Error::HttpResponseIncomplete)?;
        let (body, _held) = collect(body, largest, &shared).await?;
        exchange.traffic.take(body.len()).map_err(|failure| told(&failure, &log))?;
        exchange.body = body;
        let outside = match &exchange.peer {
            Peer::Outside(remote) => Some(remote.egress().target()),
            Peer::Service(_) | Peer::Pod { .. } | Peer::Prometheus { .. } => None,
        };
        let full = || failure(Kind::Budget, format!("{BODIES} bytes of answers that were not read are held already"));
        let room = timeout(exchange.timeout, shared.room(exchange.max_body)).await;
        let room = room.map_err(|_| told(&full(), &log))??;
        let answer = probe::exchanged(exchange, &credentials).await.map_err(|failure| {
            // A name that was granted, and leads where no gate may go.
            shared.heard().denied.extend(outside.filter(|_| failure.kind == Kind::Denied));
            told(&failure, &log)
        })?;
        shared.heard().answered.insert(answer.endpoint.clone());
        // The library waits for a task that reads the connection on; all of it has been read.
        Ok((response(answer, room), spawn(async {})))
    }
}

/// A body as the guest writes it, of at most `largest` bytes. Trailers are not sent.
async fn collect(
    body: Option<WasiBody>,
    largest: usize,
    shared: &Shared,
) -> Result<(Bytes, OwnedSemaphorePermit), Error> {
    let (mut bytes, mut held) = (Vec::new(), shared.room(0).await?);
    let Some(mut body) = body else { return Ok((Bytes::new(), held)) };
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if bytes.len() + data.len() > largest {
            return Err(Error::HttpRequestBodySize(Some(largest as u64)));
        }
        held.merge(shared.room(data.len()).await?);
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.into(), held))
}

/// An answer as the library hands it over. A body that was cut ends with an error, for its reader must not take the
/// beginning for the whole.
fn response(answer: probe::Response, mut room: OwnedSemaphorePermit) -> HttpResponse<WasiBody> {
    let kept = answer.body.len();
    let whole = usize::try_from(answer.body_size).is_ok_and(|size| size == kept);
    let cut = (!whole).then(|| Err(Error::HttpResponseBodySize(Some(answer.body_size.into()))));
    // What was kept free for more is free again.
    let data = Bytes::from_owner(Held { bytes: answer.body, _room: room.split(kept) });
    let frames = iter::once(Ok(Frame::data(data))).chain(cut);
    let mut response = HttpResponse::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
    // All of it came from such a message.
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// Bytes that a guest has not read yet, and their room.
struct Held {
    bytes: Vec<u8>,
    _room: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_written_backwards_and_no_other_way() {
        for (authority, wanted) in [
            ("proxy.candidate.gate.internal", "candidate/proxy"),
            ("8443.candidate.gate.internal", "candidate/8443"),
            ("admin-ssl.stable.gate.internal", "stable/admin-ssl"),
            ("jira.egress.gate.internal", "egress/jira"),
        ] {
            assert_eq!(target(authority).as_deref(), Some(wanted));
        }
        for authority in [
            "",
            ".gate.internal",
            "candidate.gate.internal",
            "proxy.candidate.gate.internal:6443",
            "proxy.candidate.gate.internal.",
            "proxy.candidate.GATE.internal",
            "proxy.candidate.gate.internal@169.254.169.254",
            "169.254.169.254",
        ] {
            assert_eq!(target(authority), None, "{authority}");
        }
    }

    #[test]
    fn headers_of_the_connection_are_the_hosts() {
        for name in CONNECTION_HEADERS.into_iter().chain(["host"]).filter(|name| *name != "content-length") {
            assert!(is_forbidden(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["content-length", "accept", "x-gate-host"] {
            assert!(!is_forbidden(&HeaderName::from_static(name)), "{name}");
        }
    }
}
