//! The gate host's side of the door.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, State},
    routing::{delete, get, post, put},
};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::{Answer, QUESTION, VERSION};
use crate::{
    gate::{GateHost, plugin},
    model::trial::{Digest, LoadError, Loaded, Outcome, Problem, Report, Trial},
};

type Host = State<Arc<dyn GateHost>>;

/// Answers everybody who can open the socket, until shutdown.
///
/// # Errors
/// Where the socket breaks.
pub async fn serve(host: Arc<dyn GateHost>, socket: UnixListener, shutdown: CancellationToken) -> std::io::Result<()> {
    // Presence never ends by itself: who waits for it is told by the end of the connection.
    let served = axum::serve(socket, routes(host)).into_future();
    shutdown.run_until_cancelled(served).await.unwrap_or(Ok(()))
}

fn routes(host: Arc<dyn GateHost>) -> Router {
    let questions = Router::new()
        .route("/presence", get(presence))
        // A byte more than may be loaded, so that it is the host that says what is too large.
        .route("/plugins", put(load).layer(DefaultBodyLimit::max(plugin::SIZE + 1)))
        .route("/plugins/{digest}", delete(unload))
        .route("/plugins/{digest}/settings", post(validate))
        .route("/trials", post(run))
        .layer(DefaultBodyLimit::max(QUESTION))
        .with_state(host);
    Router::new().nest(VERSION, questions)
}

async fn presence() -> Body {
    let hello = concat!(env!("CARGO_PKG_VERSION"), "\n");
    Body::from_stream(stream::iter([Ok::<_, Infallible>(hello)]).chain(stream::pending()))
}

async fn load(State(host): Host, component: Bytes) -> Json<Answer<Loaded, LoadError>> {
    Json(host.load(component).await.into())
}

async fn unload(State(host): Host, Path(digest): Path<String>) {
    host.unload(&Digest::from(digest)).await;
}

async fn validate(
    State(host): Host,
    Path(digest): Path<String>,
    Json(settings): Json<Value>,
) -> Json<Answer<Vec<Problem>, Outcome>> {
    Json(host.validate(&Digest::from(digest), &settings).await.into())
}

async fn run(State(host): Host, Json(trial): Json<Trial>) -> Json<Report> {
    Json(host.run(trial).await)
}
