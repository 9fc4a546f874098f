//! The controller's side of the door.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{net::UnixStream, sync::watch, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{ANSWER, Answer, VERSION};
use crate::{
    gate::{GateHost, Presence, store::error},
    model::trial::{Blame, Digest, LoadError, Loaded, Outcome, Problem, Report, Trial},
};

/// Between two looks for a host that is away. A look at a socket that is not there costs next to nothing, and every trial
/// waits for it.
const PAUSE: Duration = Duration::from_millis(10);

/// A gate host behind a Unix socket.
pub struct RemoteGateHost {
    socket: PathBuf,
    presence: watch::Receiver<Presence>,
    _watch: AbortOnDropHandle<()>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the gate host cannot be reached at {}: {source}", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("the gate host went away: {0}")]
    WentAway(hyper::Error),
    #[error("the gate host does not know {0}: both containers have to be of one version")]
    OtherVersion(String),
    #[error("the gate host answers {0}")]
    Refused(StatusCode),
    #[error("the gate host's answer is not understood: {0}")]
    Unreadable(String),
}

impl RemoteGateHost {
    /// The host behind `socket`, there or not yet: its [`Presence`] tells. Needs a runtime.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        let (sender, presence) = watch::channel(Presence::Away);
        let watch = AbortOnDropHandle::new(tokio::spawn(attend(socket.to_owned(), sender)));
        Self { socket: socket.to_owned(), presence, _watch: watch }
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, question: Bytes) -> Result<T, Broken> {
        let Conversation { answer, connection: _connection } = begin(&self.socket, method, path, question).await?;
        let body = Limited::new(answer.into_body(), ANSWER).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => Broken::WentAway(*error),
            Err(error) => Broken::Unreadable(error.to_string()),
        })?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| Broken::Unreadable(error.to_string()))
    }
}

/// An answer, and the connection it comes over: dropped, it is closed.
struct Conversation {
    answer: Response<Incoming>,
    connection: AbortOnDropHandle<()>,
}

async fn begin(socket: &Path, method: Method, path: &str, question: Bytes) -> Result<Conversation, Broken> {
    let unreachable = |source| Broken::Unreachable { socket: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Broken::WentAway)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // What breaks here breaks the request, and that is where it is told.
        let _ = connection.await;
    }));
    let path = format!("{VERSION}{path}");
    let request = Request::builder()
        .method(method)
        .uri(&path)
        .header(HOST, "gate-host")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(question))
        .map_err(|error| Broken::Unreadable(error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(Broken::WentAway)?;
    match answer.status() {
        StatusCode::OK => Ok(Conversation { answer, connection }),
        StatusCode::NOT_FOUND => Err(Broken::OtherVersion(path)),
        status => Err(Broken::Refused(status)),
    }
}

/// Says when a host comes and when it goes, for as long as anybody listens.
async fn attend(socket: PathBuf, presence: watch::Sender<Presence>) {
    let mut incarnation = 0_u64;
    loop {
        match begin(&socket, Method::GET, "/presence", Bytes::new()).await {
            Ok(Conversation { answer, connection: _connection }) => {
                incarnation += 1;
                tracing::info!(incarnation, "the gate host is there");
                presence.send_replace(Presence::Here(incarnation));
                let mut body = answer.into_body();
                while let Some(Ok(_)) = body.frame().await {}
                tracing::warn!("the gate host went away; what it ran is tried again when it is back");
                presence.send_replace(Presence::Away);
            }
            Err(error @ Broken::Unreachable { .. }) => tracing::debug!(%error, "waiting for the gate host"),
            Err(error) => tracing::warn!(%error, "waiting for the gate host"),
        }
        sleep(PAUSE).await;
    }
}

fn written(question: &impl Serialize) -> Result<Bytes, Broken> {
    serde_json::to_vec(question).map(Bytes::from).map_err(|error| Broken::Unreadable(error.to_string()))
}

/// A trial that was under way when its host went is an attempt; nobody will know how it would have ended.
fn broken(cause: &Broken) -> Outcome {
    let blame = match cause {
        Broken::WentAway(_) => Blame::Interrupted,
        Broken::Unreachable { .. } | Broken::OtherVersion(_) | Broken::Refused(_) | Broken::Unreadable(_) => {
            Blame::Host
        }
    };
    error(blame, cause.to_string())
}

#[async_trait]
impl GateHost for RemoteGateHost {
    async fn load(&self, bytes: Bytes) -> Result<Loaded, LoadError> {
        let answer: Result<Answer<_, _>, _> = self.ask(Method::PUT, "/plugins", bytes).await;
        answer.map_or_else(|cause| Err(LoadError::Unavailable(cause.to_string())), Into::into)
    }

    async fn unload(&self, digest: &Digest) {
        // A host that is away has forgotten it.
        let _ = begin(&self.socket, Method::DELETE, &format!("/plugins/{digest}"), Bytes::new()).await;
    }

    async fn validate(&self, digest: &Digest, settings: &Value) -> Result<Vec<Problem>, Outcome> {
        let path = format!("/plugins/{digest}/settings");
        let answer: Result<Answer<_, _>, _> = match written(settings) {
            Ok(question) => self.ask(Method::POST, &path, question).await,
            Err(cause) => Err(cause),
        };
        answer.map_or_else(|cause| Err(broken(&cause)), Into::into)
    }

    async fn run(&self, trial: Trial) -> Report {
        let report = match written(&trial) {
            Ok(question) => self.ask(Method::POST, "/trials", question).await,
            Err(cause) => Err(cause),
        };
        report.unwrap_or_else(|cause| Report::of(broken(&cause)))
    }

    fn presence(&self) -> watch::Receiver<Presence> {
        self.presence.clone()
    }
}
