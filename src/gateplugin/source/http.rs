//! A component behind a URL whose sha256 is known before.

use hyper::{StatusCode, Uri};

use super::{
    Admitted, Fetcher, LARGEST, Reason, Refusal, Request, SourceError,
    client::{self, Get},
};
use crate::{api::gateplugin::HttpSource, model::trial::Digest};

const URL: &str = "spec.source.http.url";

impl Fetcher {
    pub(super) async fn http(&self, request: Request<'_>, source: &HttpSource) -> Result<Admitted, Refusal> {
        let invalid = |message: String| SourceError::new(Reason::InvalidReference, URL, message);
        let url: Uri = source.url.parse().map_err(|error| invalid(format!("{:?}: {error}", source.url)))?;
        let host = client::authority(&url)
            .map_err(|_| invalid(format!("{:?} is no https URL of a host without user", source.url)))?;
        let Some(web) = self.sources.web(&host) else {
            let message =
                format!("{host} is not listed; an operator allows it under http.hosts in the file of --plugin-sources");
            return Err(SourceError::new(Reason::NotListed, URL, message).into());
        };
        let key = self.key(&request, None);
        if let Some(admitted) = self.cached(&key).await {
            return Ok(admitted);
        }
        let place = self.place_for(LARGEST).await;
        let ask = Get { url, accept: "application/wasm", authorization: None, redirects: &[], limit: LARGEST };
        let answer = client::get(&web.route, ask).await.map_err(|error| SourceError::of_get(URL, &error))?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                let message = format!("{host} has no {:?}", source.url);
                return Err(SourceError::new(Reason::NotFound, URL, message).into());
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message = format!("{host} answers {}: it must be open to everybody", answer.status);
                return Err(SourceError::new(Reason::Unauthorized, URL, message).into());
            }
            other => {
                return Err(SourceError::new(Reason::Unavailable, URL, format!("{host} answers {other}")).into());
            }
        }
        let digest = Digest::of(&answer.body);
        if digest.as_str().strip_prefix("sha256:") != Some(&source.sha256) {
            let message = format!("is {}, but {host} sent {digest}", source.sha256);
            return Err(SourceError::new(Reason::DigestMismatch, "spec.source.http.sha256", message).into());
        }
        if let Some(cache) = &self.cache {
            cache.put(&key, &digest, answer.body.clone()).await;
        }
        Ok(Admitted { component: answer.body, digest, resolved: None, _place: place })
    }
}
