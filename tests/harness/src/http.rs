//! Asking a gateway as its users do: over a new connection each time, for an old one goes on to where it was opened.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::http::Response;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two questions of one that is repeated.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks once.
pub async fn get(url: &str) -> Result<Response<Bytes>> {
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http::<Empty<Bytes>>();
    let asked = async {
        let (parts, body) = client.get(url.parse()?).await?.into_parts();
        Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
    };
    tokio::time::timeout(LIMIT, asked).await.with_context(|| format!("no answer from {url}"))?
}

/// Asks until the answer is as wanted: the rules of the network follow the API with a delay.
pub async fn until(url: &str, limit: Duration, wanted: impl Fn(&Response<Bytes>) -> bool) -> Result<Response<Bytes>> {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let answer = get(url).await;
        match answer {
            Ok(answer) if wanted(&answer) => return Ok(answer),
            answer if tokio::time::Instant::now() > deadline => {
                bail!("{url} does not answer as wanted within {} s; the last answer: {answer:?}", limit.as_secs())
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Asks again and again while something is done, and once more when it is done: every answer has to be as wanted.
pub async fn throughout<T>(
    url: &str,
    wanted: impl Fn(&Response<Bytes>) -> bool,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let ask = async || {
        let answer = get(url).await?;
        if wanted(&answer) { Ok(()) } else { bail!("{url} answered meanwhile: {answer:?}") }
    };
    let fails = async {
        loop {
            if let Err(failure) = ask().await {
                return failure;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let done = tokio::select! {
        done = work => done?,
        failure = fails => return Err(failure),
    };
    ask().await?;
    Ok(done)
}
