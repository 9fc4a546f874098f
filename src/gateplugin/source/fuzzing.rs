//! What registries and tenants write, as fuzzing has it.

use std::sync::LazyLock;

use bytes::Bytes;
use hyper::{
    HeaderMap, Uri,
    header::{self, HeaderName, HeaderValue},
    http::uri::Authority,
};
use k8s_openapi::{ByteString, api::core::v1::Secret};

use super::{
    LARGEST, Reason, SourceError, Sources,
    client::{self, GetError},
    credentials::{self, Challenge},
    oci,
    reference::Reference,
};
use crate::{
    api::gateplugin::{Require, Verify},
    fuzzing::assert_shown,
    gateplugin::verify::{self, Signature, Signer, Simple},
    model::trial::Digest,
};

/// Bytes of a complaint.
const COMPLAINT: usize = 2 << 10;

/// Who has signed nothing of all this.
const KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEhBevJCfdc3Rk8hAntWZUZc9I7+y0\n\
    e7UTeIOCU55IRpzEUTsUga9F9IOiKNmq3gh8oPN4a9IGrTIL5JspKI9q9A==\n\
    -----END PUBLIC KEY-----\n";

/// A registry, a part of it, and a mirror.
static SOURCES: LazyLock<Sources> = LazyLock::new(|| {
    let key = rcgen::generate_simple_self_signed(["r.example".to_owned()]).expect("a certificate");
    let pem = key.cert.pem().replace('\n', "\n      ");
    let entry = |prefix: &str| format!("  - prefix: {prefix}\n    caBundle: |\n      {pem}\n");
    let mirror = entry("m.example").replace("    caBundle", "    mirror: mirror.example:5000/proxy\n    caBundle");
    let yaml = format!("registries:\n{}{}{mirror}", entry("r.example"), entry("r.example:5000/team"));
    Sources::parse(&yaml).expect("sources")
});

/// `bytes` as everything that a registry sends and a tenant names.
///
/// # Panics
/// Where they lead to a host that nobody listed, count as somebody's signature, or are quoted at length.
pub fn image(bytes: &[u8]) {
    let owned = Bytes::copy_from_slice(bytes);
    match oci::component(&owned) {
        Ok(layer) => {
            assert!(Digest::parse(&layer.digest).is_some(), "{layer:?}");
            assert!(layer.size <= LARGEST as u64, "{layer:?}");
        }
        Err(error) => assert_shown(&error.to_string(), COMPLAINT),
    }
    assert!(oci::referrers(bytes).len() <= 16);
    signatures(&owned);
    if let Some(token) = oci::bearer(bytes) {
        assert!(token.is_sensitive() && token.as_bytes().starts_with(b"Bearer "), "{:?}", token.as_bytes());
    }
    secret(bytes);
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        challenged(&value);
        redirected(value);
    }
    named(&String::from_utf8_lossy(bytes));
}

/// Nobody signed `bytes`, and nobody's signature is in them.
fn signatures(bytes: &Bytes) {
    static SIGNERS: LazyLock<Vec<(String, Signer<'static>)>> = LazyLock::new(|| {
        let wanted = Verify { keys: vec![KEY.to_owned()], ..Verify::default() };
        verify::signers(&wanted, None).expect("a key")
    });
    let layers = oci::layers(bytes);
    let simple = layers.iter().take(16).filter_map(|layer| Simple::of(bytes.clone(), &layer.annotations));
    let found: Vec<_> = simple.map(Signature::Simple).chain([Signature::Bundle(bytes.clone())]).collect();
    let error = verify::check(&SIGNERS, Require::Any, bytes, &Digest::of(bytes), &found).expect_err("not signed");
    assert_shown(&error.to_string(), COMPLAINT);
}

/// `bytes` as a pull Secret: used, or named and never quoted.
fn secret(bytes: &[u8]) {
    let secret = Secret {
        type_: Some("kubernetes.io/dockerconfigjson".into()),
        data: Some([(".dockerconfigjson".to_owned(), ByteString(bytes.to_vec()))].into()),
        ..Secret::default()
    };
    match credentials::authorization(&secret, "r.example/team/gate") {
        Ok(value) => assert!(value.is_sensitive() && value.as_bytes().starts_with(b"Basic ")),
        Err(problem) => {
            let shown = SourceError::new(Reason::InvalidSecret, "spec.source.oci.pullSecretRef", problem).to_string();
            assert_shown(&shown, COMPLAINT);
        }
    }
}

fn headers(name: HeaderName, value: HeaderValue) -> HeaderMap {
    [(name, value)].into_iter().collect()
}

/// Whoever is asked for a token is the one whose name was compared with the list.
fn challenged(value: &HeaderValue) {
    let challenge = credentials::challenge(&headers(header::WWW_AUTHENTICATE, value.clone()));
    let Some(Challenge::Bearer { realm, service }) = challenge else { return };
    match client::authority(&realm) {
        Ok(host) => {
            let url = oci::token_url(&realm, service.as_deref(), "team/gate");
            assert_eq!(client::authority(&url), Ok(host.clone()), "{realm}");
            assert_eq!(url.path(), realm.path());
            plain(&host);
        }
        Err(error) => refused(&error),
    }
}

/// Whoever is asked next is the one whose name was compared with the list.
fn redirected(value: HeaderValue) {
    let from = Uri::from_static("https://r.example:5000/v2/team/gate/blobs/x");
    let Some(target) = client::redirected(&from, &headers(header::LOCATION, value)) else { return };
    match client::authority(&target) {
        Ok(host) => plain(&host),
        Err(error) => refused(&error),
    }
}

/// A host that is dialled is written as it is compared.
fn plain(host: &Authority) {
    assert!(!host.as_str().contains(['@', '/', '?', '#']), "{host}");
    assert!(!host.host().is_empty(), "{host}");
}

fn refused(error: &GetError) {
    assert!(matches!(error, GetError::NotListed(_)), "{error}");
    assert_shown(&SourceError::of_get("spec.source.oci.image", error).to_string(), COMPLAINT);
}

/// An image is asked for at the host that is listed for it, by one path.
fn named(text: &str) {
    let reference = match text.parse::<Reference>() {
        Ok(reference) => reference,
        Err(problem) => {
            let shown = SourceError::new(Reason::InvalidReference, "spec.source.oci.image", problem).to_string();
            return assert_shown(&shown, COMPLAINT);
        }
    };
    let (tag, digest) = (reference.tag.as_deref(), reference.digest.as_ref());
    let tagged = tag.map_or_else(String::new, |tag| format!(":{tag}"));
    let pinned = digest.map_or_else(String::new, |digest| format!("@{digest}"));
    assert_eq!(format!("{}{tagged}{pinned}", reference.name()), text);
    let Some((_, host, path)) = SOURCES.registry(&reference) else { return };
    assert!(["r.example", "r.example:5000", "mirror.example:5000"].contains(&host.as_str()), "{host}");
    let by = digest.map(Digest::as_str).or(tag).expect("a tag or a digest");
    let url = oci::url(&host, &path, &format!("manifests/{by}")).expect("a URL");
    assert_eq!(client::authority(&url), Ok(host));
    assert_eq!(url.path(), format!("/v2/{path}/manifests/{by}"));
    assert!(url.query().is_none() && !url.path().split('/').any(|part| [".", ".."].contains(&part)), "{url}");
}
