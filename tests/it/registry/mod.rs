//! Where plugins come from: a real registry, and servers that mean harm. Needs no cluster.

mod hostile;
mod pull;
mod signed;

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use serde_json::{Value, json};
use sluice::{
    api::gateplugin::{ClusterSource, OciSource, SecretRef, Trust},
    gateplugin::{Admitted, Allowed, Cache, Fetcher, Objects, Refusal, Request, Sources},
    model::trial::Digest,
};
use sluice_harness::registry::{PASSWORD, Registry, USER, digest};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";

/// The namespace of the plugins.
const HOME: &str = "team-a";

/// One pull Secret, in one namespace.
struct Cluster(String);

#[async_trait]
impl Objects for Cluster {
    async fn config_map(&self, _: &str, _: &str) -> Result<Option<ConfigMap>, kube::Error> {
        Ok(None)
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, kube::Error> {
        let config = json!({"auths": {self.0.as_str(): {"username": USER, "password": PASSWORD}}});
        let data = [(".dockerconfigjson".to_owned(), ByteString(config.to_string().into_bytes()))];
        let secret = Secret {
            type_: Some("kubernetes.io/dockerconfigjson".into()),
            data: Some(data.into()),
            ..Secret::default()
        };
        Ok((namespace == HOME && name == "pull").then_some(secret))
    }
}

/// What an operator lists: one registry with its authority, and more of its entry.
fn listed(host: &str, authority: &str, more: &Value) -> Sources {
    let mut entry = json!({"prefix": host, "caBundle": authority});
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    // JSON, which every reader of YAML reads.
    Sources::parse(&json!({"registries": [entry]}).to_string()).unwrap()
}

fn fetcher_of(host: &str, authority: &str, more: &Value, cache: Option<&Path>) -> Fetcher {
    let cache = cache.map(|folder| Cache::at(folder).unwrap());
    let allowed = Allowed { sources: listed(host, authority, more), cache, ..Allowed::default() };
    Fetcher::new(Arc::new(Cluster(host.to_owned())), allowed)
}

/// With the pull Secret of `host`.
fn fetcher_for(host: &str, sources: Sources) -> Fetcher {
    Fetcher::new(Arc::new(Cluster(host.to_owned())), Allowed { sources, ..Allowed::default() })
}

fn fetcher(registry: &Registry, cache: Option<&Path>) -> Fetcher {
    fetcher_of(&registry.host(), &registry.authority, &json!({}), cache)
}

fn image(image: impl Into<String>) -> ClusterSource {
    let pull_secret_ref = Some(SecretRef { name: "pull".into() });
    ClusterSource::Oci(OciSource { image: image.into(), pull_secret_ref })
}

async fn admit(fetcher: &Fetcher, source: &ClusterSource, trust: &Trust) -> Result<Admitted, Refusal> {
    fetcher.admit(Request { home: HOME, source, trust, resolved: None }).await
}

/// The same for an image that is trusted as it is.
async fn pull(fetcher: &Fetcher, name: String) -> Result<Admitted, Refusal> {
    admit(fetcher, &image(name), &Trust::default()).await
}

#[track_caller]
fn assert_refused(answer: Result<Admitted, Refusal>, code: &str, says: &[&str]) {
    let refusal = answer.expect_err("refused");
    assert_eq!(refusal.code(), code, "{refusal}");
    let message = refusal.to_string();
    for word in says {
        assert!(message.contains(word), "{message}");
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// The manifest of a component.
fn manifest(component: &[u8]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, b"{}"),
        "layers": [descriptor(LAYER, component)],
    })
}

/// Pushes a component as `gates/smoke:TAG`, its manifest changed by `change`; returns the digest of that.
pub(crate) async fn push(registry: &Registry, tag: &str, component: &[u8], change: impl FnOnce(&mut Value)) -> Digest {
    registry.push_blob("gates/smoke", &b"{}"[..]).await.unwrap();
    registry.push_blob("gates/smoke", component.to_vec()).await.unwrap();
    let mut manifest = manifest(component);
    change(&mut manifest);
    Digest::parse(&registry.push_manifest("gates/smoke", tag, &manifest).await.unwrap()).unwrap()
}
