//! Pulling from a registry that works, or does not.

use serde_json::json;
use sluice::{
    api::gateplugin::{ClusterSource, OciSource, SecretRef, Trust},
    gate::GateHost as _,
    gateplugin::{Fetcher, Request},
    model::trial::{Digest, LoadError},
};
use sluice_harness::registry::Registry;

use super::{HOME, INDEX, admit, assert_refused, fetcher, fetcher_for, fetcher_of, image, manifest, pull, push};

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest_with_the_secret_of_its_namespace() {
    let registry = Registry::start().await.unwrap();
    let resolved = push(&registry, "1.0", b"component", |_| {}).await;
    let (fetcher, host) = (fetcher(&registry, None), registry.host());

    for name in [format!("{host}/gates/smoke:1.0"), format!("{host}/gates/smoke@{resolved}")] {
        let admitted = pull(&fetcher, name).await.unwrap();
        assert_eq!(admitted.component.as_ref(), b"component");
        assert_eq!(admitted.digest, Digest::of(b"component"));
        assert_eq!(admitted.resolved.as_ref(), Some(&resolved));
    }
    assert_refused(pull(&fetcher, format!("{host}/gates/smoke:2.0")).await, "NotFound", &["gates/smoke:2.0"]);
    let unknown = format!("{host}/gates/smoke@{}", Digest::of(b"unknown"));
    assert_refused(pull(&fetcher, unknown).await, "NotFound", &[]);

    let (name, trust) = (format!("{host}/gates/smoke:1.0"), Trust::default());
    let open = ClusterSource::Oci(OciSource { image: name.clone(), pull_secret_ref: None });
    assert_refused(admit(&fetcher, &open, &trust).await, "Unauthorized", &["pullSecretRef"]);
    let other = Some(SecretRef { name: "none".into() });
    let other = ClusterSource::Oci(OciSource { image: name.clone(), pull_secret_ref: other });
    assert_refused(admit(&fetcher, &other, &trust).await, "SecretNotFound", &["\"none\""]);
    let elsewhere = Request { home: "team-b", source: &image(name), trust: &trust, resolved: None };
    assert_refused(fetcher.admit(elsewhere).await, "SecretNotFound", &["team-b"]);
}

#[tokio::test]
async fn threat_19_a_tag_that_moves_moves_nothing_that_was_resolved() {
    let registry = Registry::start().await.unwrap();
    let resolved = push(&registry, "1.0", b"first", |_| {}).await;
    push(&registry, "1.0", b"second", |_| {}).await;
    let (fetcher, trust) = (fetcher(&registry, None), Trust::default());
    let source = image(format!("{}/gates/smoke:1.0", registry.host()));
    let again = Request { home: HOME, source: &source, trust: &trust, resolved: Some(&resolved) };
    assert_eq!(fetcher.admit(again).await.unwrap().component.as_ref(), b"first");
    assert_eq!(admit(&fetcher, &source, &trust).await.unwrap().component.as_ref(), b"second");
}

#[tokio::test]
async fn other_bytes_than_the_pinned_ones_are_refused() {
    let registry = Registry::start().await.unwrap();
    push(&registry, "1.0", b"component", |_| {}).await;
    let (fetcher, source) = (fetcher(&registry, None), image(format!("{}/gates/smoke:1.0", registry.host())));
    let pinned = |bytes: &[u8]| Trust { digest: Some(Digest::of(bytes).to_string()), ..Trust::default() };
    assert!(admit(&fetcher, &source, &pinned(b"component")).await.is_ok());
    assert_refused(admit(&fetcher, &source, &pinned(b"other")).await, "DigestMismatch", &["spec.digest"]);
}

#[tokio::test]
async fn threat_19_what_is_stored_broken_is_refused() {
    let registry = Registry::start().await.unwrap();
    push(&registry, "1.0", b"component", |_| {}).await;
    let (fetcher, name) = (fetcher(&registry, None), format!("{}/gates/smoke:1.0", registry.host()));
    let file = registry.file(Digest::of(b"component").as_str());
    std::fs::write(&file, b"compo").unwrap();
    assert_refused(pull(&fetcher, name.clone()).await, "DigestMismatch", &["5 bytes"]);
    std::fs::write(&file, b"Component").unwrap();
    assert_refused(pull(&fetcher, name.clone()).await, "DigestMismatch", &["9 bytes"]);
    std::fs::write(&file, b"component and more").unwrap();
    assert_refused(pull(&fetcher, name).await, "TooLarge", &["9 bytes"]);
}

#[tokio::test]
async fn threat_14_other_images_than_plugins_are_refused_by_what_they_are() {
    let registry = Registry::start().await.unwrap();
    let (fetcher, host) = (fetcher(&registry, None), registry.host());
    let spin = "application/vnd.wasm.content.layer.v1+wasm";
    push(&registry, "spin", b"a", |manifest| manifest["layers"][0]["mediaType"] = json!(spin)).await;
    let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
    let digest = push(&registry, "tar", b"b", |manifest| manifest["layers"][0]["mediaType"] = json!(tar)).await;
    let entry =
        json!({"mediaType": super::MANIFEST, "digest": digest.as_str(), "size": manifest(b"b").to_string().len()});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    registry.push_manifest("gates/smoke", "index", &index).await.unwrap();
    for (tag, word) in [("spin", "wkg oci push"), ("tar", tar), ("index", "index")] {
        assert_refused(pull(&fetcher, format!("{host}/gates/smoke:{tag}")).await, "NotAPluginImage", &[word]);
    }
}

#[tokio::test]
async fn threat_18_a_precompiled_component_is_pulled_and_never_run() {
    let engine = wasmtime::Engine::default();
    let component = engine.precompile_component(&wat::parse_str("(component)").unwrap()).unwrap();
    let registry = Registry::start().await.unwrap();
    push(&registry, "1.0", &component, |_| {}).await;
    let admitted = pull(&fetcher(&registry, None), format!("{}/gates/smoke:1.0", registry.host())).await.unwrap();
    let refused = crate::gate::host().load(admitted.component).await;
    assert!(matches!(&refused, Err(LoadError::NotAComponent(why)) if why.contains("precompiled")), "{refused:?}");
}

#[tokio::test]
async fn a_registry_that_is_down_delays_nobody_who_was_served_before() {
    let mut registry = Registry::start().await.unwrap();
    let resolved = push(&registry, "1.0", b"component", |_| {}).await;
    let (folder, host, trust) = (tempfile::tempdir().unwrap(), registry.host(), Trust::default());
    let source = image(format!("{host}/gates/smoke:1.0"));
    admit(&fetcher(&registry, Some(folder.path())), &source, &trust).await.unwrap();
    registry.stop().await.unwrap();

    // An operator that starts now.
    let started = fetcher(&registry, Some(folder.path()));
    let known = |fetcher: Fetcher| {
        let (source, trust, resolved) = (source.clone(), trust.clone(), resolved.clone());
        async move { fetcher.admit(Request { home: HOME, source: &source, trust: &trust, resolved: Some(&resolved) }).await }
    };
    assert_eq!(known(started).await.unwrap().component.as_ref(), b"component");
    let refusal = known(fetcher(&registry, None)).await.expect_err("nobody answers");
    assert!(refusal.code() == "Unavailable" && refusal.may_pass(), "{refusal}");
    let elsewhere = fetcher_of("other.example", &registry.authority, &json!({}), Some(folder.path()));
    assert_refused(known(elsewhere).await, "NotListed", &["--plugin-sources"]);

    registry.resume().await.unwrap();
    assert_eq!(known(fetcher(&registry, None)).await.unwrap().component.as_ref(), b"component");
}

#[tokio::test]
async fn a_mirror_is_asked_in_place_of_what_the_image_names() {
    let registry = Registry::start().await.unwrap();
    push(&registry, "1.0", b"component", |_| {}).await;
    let sources = json!({"registries": [{
        "prefix": "upstream.example/acme", "mirror": format!("{}/gates", registry.host()), "caBundle": registry.authority,
    }]});
    let sources = sluice::gateplugin::Sources::parse(&sources.to_string()).unwrap();
    let fetcher = fetcher_for(&registry.host(), sources);
    let admitted = pull(&fetcher, "upstream.example/acme/smoke:1.0".to_owned()).await.unwrap();
    assert_eq!(admitted.component.as_ref(), b"component");
}

#[tokio::test]
async fn a_registry_with_a_certificate_of_somebody_else_is_not_asked() {
    let (registry, other) = (Registry::start().await.unwrap(), Registry::start().await.unwrap());
    push(&registry, "1.0", b"component", |_| {}).await;
    let fetcher = fetcher_of(&registry.host(), &other.authority, &json!({}), None);
    assert_refused(pull(&fetcher, format!("{}/gates/smoke:1.0", registry.host())).await, "Unavailable", &["TLS"]);
}
