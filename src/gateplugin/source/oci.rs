//! An image of a listed registry: tag -> manifest -> signatures -> component.
//!
//! The layout is CNCF's for WebAssembly: one manifest, a configuration for wasm, exactly one layer, which is the
//! component as it is. Everything is named by a sha256 that is computed here; what a registry says of digests is compared
//! with it, never believed.

use bytes::Bytes;
use hyper::{StatusCode, Uri, header::HeaderValue, http::uri::Authority};
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{
    Admitted, Fetcher, LARGEST, Reason, Refusal, Request, SourceError,
    client::{self, Answer, Get},
    config::Registry,
    credentials::{self, Challenge},
    reference::Reference,
};
use crate::{
    api::gateplugin::{OciSource, Verify},
    gateplugin::verify::{self, Signature, Simple, TrustRoot},
    model::trial::Digest,
};

const IMAGE: &str = "spec.source.oci.image";
const SECRET: &str = "spec.source.oci.pullSecretRef";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";
/// Of Spin applications.
const SPIN_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// Indexes too: a registry that is asked for less than it has says only that there is nothing.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json";

/// What registries accept themselves.
const LARGEST_MANIFEST: usize = 4 << 20;
/// A payload of cosign has some hundred bytes, a bundle with a certificate and its log some thousand.
const LARGEST_SIGNATURE: usize = 256 << 10;
/// Signatures of one image that are looked at, of each kind.
const SIGNATURES: usize = 16;

/// A manifest, or an index of manifests.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    media_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    manifests: Option<Vec<Descriptor>>,
}

/// What a manifest says of something else.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    artifact_type: Option<String>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Fetcher {
    pub(super) async fn oci(&self, request: Request<'_>, source: &OciSource) -> Result<Admitted, Refusal> {
        let image: Reference =
            source.image.parse().map_err(|problem| SourceError::new(Reason::InvalidReference, IMAGE, problem))?;
        let Some((registry, host, path)) = self.sources.registry(&image) else {
            let message = format!(
                "{} is not listed; an operator allows it under registries in the file of --plugin-sources",
                image.name()
            );
            return Err(SourceError::new(Reason::NotListed, IMAGE, message).into());
        };
        let known = image.digest.as_ref().or(request.resolved);
        if let Some(manifest) = known
            && let Some(admitted) = self.accepted(&request, manifest).await
        {
            return Ok(admitted);
        }
        let credentials = match &source.pull_secret_ref {
            None => None,
            Some(secret) => Some(self.credentials(request.home, &secret.name, &format!("{host}/{path}")).await?),
        };
        let mut repository = Repository { registry, host, path, credentials, authorization: None };

        let by = known.map(Digest::as_str).or(image.tag.as_deref()).unwrap_or_default();
        let Some((manifest, resolved)) = repository.manifest(by).await? else {
            let message = format!("{} has no {}:{by}", repository.host, repository.path);
            return Err(SourceError::new(Reason::NotFound, IMAGE, message).into());
        };
        if let Some(wanted) = known
            && *wanted != resolved
        {
            let message = format!("{} sent the manifest {resolved} for {wanted}", repository.host);
            return Err(SourceError::new(Reason::DigestMismatch, IMAGE, message).into());
        }
        if known.is_none()
            && let Some(admitted) = self.accepted(&request, &resolved).await
        {
            return Ok(admitted);
        }
        let layer = component(&manifest)?;
        // Before the component: bytes that nobody vouches for are not even fetched.
        if let Some(wanted) = &request.trust.verify {
            signed(&mut repository, wanted, self.trust_root.as_ref(), &manifest, &resolved).await?;
        }
        let place = self.place_for(usize::try_from(layer.size).unwrap_or(LARGEST)).await;
        let component = repository.blob(&layer, LARGEST).await?;
        let digest = Digest::of(&component);
        if let Some(cache) = &self.cache {
            cache.put(&self.key(&request, Some(&resolved)), &digest, component.clone()).await;
        }
        Ok(Admitted { component, digest, resolved: Some(resolved), _place: place })
    }

    /// What was accepted before for the same manifest.
    async fn accepted(&self, request: &Request<'_>, manifest: &Digest) -> Option<Admitted> {
        let admitted = self.cached(&self.key(request, Some(manifest))).await?;
        Some(Admitted { resolved: Some(manifest.clone()), ..admitted })
    }

    async fn credentials(&self, home: &str, name: &str, image: &str) -> Result<HeaderValue, SourceError> {
        let found = self.objects.secret(home, name).await;
        let found = found.map_err(|error| SourceError::of_api(SECRET, &format!("Secret {name:?}"), &error))?;
        let secret = found.ok_or_else(|| {
            SourceError::new(Reason::SecretNotFound, SECRET, format!("there is no Secret {name:?} in namespace {home}"))
        })?;
        credentials::authorization(&secret, image)
            .map_err(|problem| SourceError::new(Reason::InvalidSecret, SECRET, format!("Secret {name:?} {problem}")))
    }
}

/// Whether those who are trusted have signed a manifest, in either of the two ways in which cosign does.
async fn signed(
    repository: &mut Repository<'_>,
    wanted: &Verify,
    root: Option<&TrustRoot>,
    manifest: &Bytes,
    digest: &Digest,
) -> Result<(), Refusal> {
    let refused = |error| Refusal::Signature { resolved: digest.clone(), error };
    // A key that cannot be read needs no question to anybody.
    let signers = verify::signers(wanted, root).map_err(refused)?;
    let mut found = repository.simple_signatures(digest).await?;
    found.extend(repository.bundles(digest).await?);
    verify::check(&signers, wanted.require, manifest, digest, &found).map_err(refused)
}

/// The only layer of a manifest that holds a component as it should.
pub(super) fn component(manifest: &Bytes) -> Result<Descriptor, SourceError> {
    let refused = |message: String| SourceError::new(Reason::NotAPluginImage, IMAGE, message);
    let Manifest { media_type, config, layers, manifests } =
        serde_json::from_slice(manifest).map_err(|error| refused(format!("the manifest cannot be read: {error}")))?;
    if manifests.is_some() {
        return Err(refused(
            "is an index of several images: name the manifest of one of them by its digest, a component has no platforms"
                .into(),
        ));
    }
    if let Some(other) = media_type.filter(|media_type| media_type != MANIFEST) {
        return Err(refused(format!("is of type {other}, expected {MANIFEST}: push it with `wkg oci push`")));
    }
    let [layer] = layers.as_slice() else {
        return Err(refused(format!("has {} layers, and a component is exactly one", layers.len())));
    };
    match layer.media_type.as_str() {
        LAYER => {}
        SPIN_LAYER => {
            return Err(refused(format!(
                "its layer is of type {SPIN_LAYER}, a Spin application: push the component itself with `wkg oci push`"
            )));
        }
        other => {
            return Err(refused(format!(
                "its layer is of type {other}, expected {LAYER}, not packed: push it with `wkg oci push`"
            )));
        }
    }
    match config.map(|config| config.media_type) {
        Some(config) if config == CONFIG => {}
        other => {
            let other = other.as_deref().unwrap_or("none");
            return Err(refused(format!("its configuration is of type {other}, expected {CONFIG}")));
        }
    }
    if layer.size > LARGEST as u64 {
        let message = format!("its component has {} bytes, more than {} MiB", layer.size, LARGEST >> 20);
        return Err(SourceError::new(Reason::TooLarge, IMAGE, message));
    }
    if Digest::parse(&layer.digest).is_none() {
        return Err(refused(format!("its layer has the digest {:?}; only sha256 is accepted", layer.digest)));
    }
    Ok(layer.clone())
}

/// A repository of a listed registry, for one fetch.
struct Repository<'listed> {
    registry: &'listed Registry,
    host: Authority,
    path: String,
    /// Sent only where a challenge asks for it.
    credentials: Option<HeaderValue>,
    authorization: Option<HeaderValue>,
}

impl Repository<'_> {
    /// A manifest by tag or digest, and its own digest.
    async fn manifest(&mut self, by: &str) -> Result<Option<(Bytes, Digest)>, SourceError> {
        let Some(answer) = self.get(&format!("manifests/{by}"), MANIFESTS, LARGEST_MANIFEST).await? else {
            return Ok(None);
        };
        let digest = Digest::of(&answer.body);
        match answer.headers.get("docker-content-digest") {
            Some(said) if said != digest.as_str() => {
                let message = format!("{} calls the manifest {said:?}, but its sha256 is {digest}", self.host);
                Err(SourceError::new(Reason::DigestMismatch, IMAGE, message))
            }
            _ => Ok(Some((answer.body, digest))),
        }
    }

    /// What a descriptor describes, exactly.
    async fn blob(&mut self, descriptor: &Descriptor, largest: usize) -> Result<Bytes, SourceError> {
        let Descriptor { digest, size, .. } = descriptor;
        let size = usize::try_from(*size).ok().filter(|size| *size <= largest).ok_or_else(|| {
            SourceError::new(Reason::TooLarge, IMAGE, format!("{digest} has {size} bytes, more than {largest}"))
        })?;
        let Some(answer) = self.get(&format!("blobs/{digest}"), "*/*", size).await? else {
            let message = format!("{} has a manifest without its {digest}", self.host);
            return Err(SourceError::new(Reason::NotFound, IMAGE, message));
        };
        let actual = Digest::of(&answer.body);
        if actual.as_str() != digest || answer.body.len() != size {
            let message =
                format!("{} sent {} bytes, {actual}, for {digest} of {size} bytes", self.host, answer.body.len());
            return Err(SourceError::new(Reason::DigestMismatch, IMAGE, message));
        }
        Ok(answer.body)
    }

    /// Signatures of cosign 2: layers of the image `sha256-DIGEST.sig`.
    async fn simple_signatures(&mut self, digest: &Digest) -> Result<Vec<Signature>, SourceError> {
        let tag = digest.as_str().replace(':', "-");
        let Some((manifest, _)) = self.manifest(&format!("{tag}.sig")).await? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for layer in layers(&manifest).into_iter().take(SIGNATURES) {
            let payload = self.blob(&layer, LARGEST_SIGNATURE).await?;
            found.extend(Simple::of(payload, &layer.annotations).map(Signature::Simple));
        }
        Ok(found)
    }

    /// Signatures of cosign 3: images that refer to this one, each a Sigstore bundle.
    async fn bundles(&mut self, digest: &Digest) -> Result<Vec<Signature>, SourceError> {
        let index = match self.get(&format!("referrers/{digest}"), INDEX, LARGEST_MANIFEST).await? {
            Some(answer) => answer.body,
            // Registries of before OCI 1.1 have the same list under a tag.
            None => match self.manifest(&digest.as_str().replace(':', "-")).await? {
                Some((index, _)) => index,
                None => return Ok(Vec::new()),
            },
        };
        let mut found = Vec::new();
        for digest in referrers(&index) {
            // One that was taken away is no signature.
            let Some((manifest, actual)) = self.manifest(digest.as_str()).await? else { continue };
            if actual != digest {
                continue;
            }
            for layer in layers(&manifest).into_iter().filter(|layer| is_bundle(&layer.media_type)).take(1) {
                found.push(Signature::Bundle(self.blob(&layer, LARGEST_SIGNATURE).await?));
            }
        }
        Ok(found)
    }

    /// Asks, and proves who asks if that is demanded; nothing where there is nothing.
    async fn get(&mut self, path: &str, accept: &'static str, limit: usize) -> Result<Option<Answer>, SourceError> {
        let url = url(&self.host, &self.path, path)?;
        let mut answer = self.ask(url.clone(), accept, limit).await?;
        if answer.status == StatusCode::UNAUTHORIZED && self.authorization.is_none() {
            self.authorization = Some(self.authorize(&answer).await?);
            answer = self.ask(url, accept, limit).await?;
        }
        match answer.status {
            StatusCode::OK => Ok(Some(answer)),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.unauthorized("these credentials")),
            other => {
                let message = format!("{} answers {other} to /v2/{}/{path}", self.host, self.path);
                Err(SourceError::new(Reason::Unavailable, IMAGE, message))
            }
        }
    }

    async fn ask(&self, url: Uri, accept: &'static str, limit: usize) -> Result<Answer, SourceError> {
        let authorization = self.authorization.clone();
        let ask = Get { url, accept, authorization, redirects: &self.registry.blob_hosts, limit };
        client::get(&self.registry.route, ask).await.map_err(|error| SourceError::of_get(IMAGE, &error))
    }

    async fn authorize(&self, answer: &Answer) -> Result<HeaderValue, SourceError> {
        let (realm, service) = match credentials::challenge(&answer.headers) {
            Some(Challenge::Bearer { realm, service }) => (realm, service),
            Some(Challenge::Basic) => {
                return self.credentials.clone().ok_or_else(|| self.unauthorized("anybody: name a pullSecretRef"));
            }
            None => return Err(self.unauthorized("anybody, and does not say what it demands")),
        };
        let host = client::authority(&realm).map_err(|error| SourceError::of_get(IMAGE, &error))?;
        if host != self.host && !self.registry.token_hosts.contains(&host) {
            let message = format!(
                "{} sends the operator to {host} for a token; an operator allows it under tokenHosts in the file of \
                 --plugin-sources",
                self.host
            );
            return Err(SourceError::new(Reason::NotListed, IMAGE, message));
        }
        let ask = Get {
            url: token_url(&realm, service.as_deref(), &self.path),
            accept: "application/json",
            authorization: self.credentials.clone(),
            redirects: &[],
            limit: LARGEST_SIGNATURE,
        };
        let answer = client::get(&self.registry.route, ask).await;
        let answer = answer.map_err(|error| SourceError::of_get(IMAGE, &error))?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.unauthorized("these credentials")),
            other => {
                let message = format!("{host} answers {other} to a request for a token");
                return Err(SourceError::new(Reason::Unavailable, IMAGE, message));
            }
        }
        bearer(&answer.body).ok_or_else(|| {
            SourceError::new(Reason::Unavailable, IMAGE, format!("{host} gave no token that can be used"))
        })
    }

    fn unauthorized(&self, whom: &str) -> SourceError {
        let message = format!("{} does not show {} to {whom}", self.host, self.path);
        SourceError::new(Reason::Unauthorized, IMAGE, message)
    }
}

/// Where something of a repository is.
pub(super) fn url(host: &Authority, repository: &str, path: &str) -> Result<Uri, SourceError> {
    let url = format!("https://{host}/v2/{repository}/{path}");
    url.parse()
        .map_err(|error| SourceError::new(Reason::InvalidReference, IMAGE, format!("{url:?} is no URL: {error}")))
}

/// Where a token that is good for reading one repository is asked for, whatever the challenge offers.
pub(super) fn token_url(realm: &Uri, service: Option<&str>, path: &str) -> Uri {
    let mut query = form_urlencoded::Serializer::new(realm.query().unwrap_or_default().to_owned());
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    query.append_pair("scope", &format!("repository:{path}:pull"));
    let mut parts = realm.clone().into_parts();
    parts.path_and_query = format!("{}?{}", realm.path(), query.finish()).parse().ok();
    Uri::from_parts(parts).unwrap_or_else(|_| realm.clone())
}

pub(super) fn bearer(answer: &[u8]) -> Option<HeaderValue> {
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
    }
    let Token { token, access_token } = serde_json::from_slice(answer).ok()?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.or(access_token)?)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

pub(super) fn layers(manifest: &[u8]) -> Vec<Descriptor> {
    // What cannot be read holds no signature.
    serde_json::from_slice(manifest).map(|Manifest { layers, .. }| layers).unwrap_or_default()
}

/// The images that an index lists as signatures of another. Not all lists say of what type their entries are; other types
/// are no signatures.
pub(super) fn referrers(index: &[u8]) -> Vec<Digest> {
    let Ok(Manifest { manifests: Some(referrers), .. }) = serde_json::from_slice(index) else { return Vec::new() };
    let bundles = referrers.into_iter().filter(|referrer| referrer.artifact_type.as_deref().is_none_or(is_bundle));
    bundles.take(SIGNATURES).filter_map(|referrer| Digest::parse(&referrer.digest)).collect()
}

fn is_bundle(kind: &str) -> bool {
    kind.starts_with(verify::BUNDLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn image() -> Value {
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": Digest::of(b"{}").as_str(), "size": 2},
            "layers": [{"mediaType": LAYER, "digest": Digest::of(b"x").as_str(), "size": 1}],
        })
    }

    fn refused(change: impl FnOnce(&mut Value)) -> (Reason, String) {
        let mut manifest = image();
        change(&mut manifest);
        let error = component(&manifest.to_string().into()).expect_err("refused");
        (error.reason, error.to_string())
    }

    #[test]
    fn one_layer_that_is_a_component_is_a_plugin() {
        let layer = component(&image().to_string().into()).expect("a plugin");
        assert_eq!((layer.digest.as_str(), layer.size), (Digest::of(b"x").as_str(), 1));
        let mut untyped = image();
        untyped.as_object_mut().expect("an object").remove("mediaType");
        assert!(component(&untyped.to_string().into()).is_ok(), "OCI 1.0 leaves it out");
    }

    #[test]
    fn threat_19_everything_else_is_refused_and_says_what_to_do() {
        let index = refused(|manifest| *manifest = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}));
        assert!(index.1.contains("index") && index.1.contains("digest"), "{}", index.1);
        let spin = refused(|manifest| manifest["layers"][0]["mediaType"] = json!(SPIN_LAYER));
        assert!(spin.1.contains("Spin") && spin.1.contains("wkg oci push"), "{}", spin.1);
        for media_type in
            ["application/vnd.oci.image.layer.v1.tar+gzip", "application/wasm+gzip", "application/octet-stream"]
        {
            let packed = refused(|manifest| manifest["layers"][0]["mediaType"] = json!(media_type));
            assert!(packed.1.contains(media_type), "{}", packed.1);
        }
        let docker =
            refused(|manifest| manifest["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json"));
        assert!(docker.1.contains("docker"), "{}", docker.1);
        let config =
            refused(|manifest| manifest["config"]["mediaType"] = json!("application/vnd.oci.image.config.v1+json"));
        assert!(config.1.contains("configuration"), "{}", config.1);
        let two = refused(|manifest| {
            let layer = manifest["layers"][0].clone();
            manifest["layers"] = json!([layer, layer]);
        });
        assert!(two.1.contains("2 layers"), "{}", two.1);
        assert!(refused(|manifest| manifest["layers"] = json!([])).1.contains("0 layers"));
        let sha512 = refused(|manifest| manifest["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128))));
        assert!(sha512.1.contains("only sha256"), "{}", sha512.1);
        assert_eq!(refused(|manifest| manifest["layers"][0]["size"] = json!((32 << 20) + 1)).0, Reason::TooLarge);
        assert_eq!(refused(|manifest| manifest["layers"][0]["size"] = json!(-1)).0, Reason::NotAPluginImage);
    }

    #[test]
    fn a_token_is_asked_for_one_repository_and_for_reading() {
        let url = token_url(&Uri::from_static("https://auth.example/token?a=b"), Some("r.example"), "team/gate");
        assert_eq!(
            url.to_string(),
            "https://auth.example/token?a=b&service=r.example&scope=repository%3Ateam%2Fgate%3Apull"
        );
        assert_eq!(bearer(br#"{"access_token":"t"}"#), Some(HeaderValue::from_static("Bearer t")));
        assert_eq!(bearer(br#"{"token":"a\nb"}"#), None);
        assert_eq!(bearer(b"{}"), None);
    }
}
