//! The life of a plugin from a real registry: installed, replaced while the registry is down, revoked.

use anyhow::Result;
use serde_json::{Value, json};
use sluice::{api::GatePlugin, model::trial::Digest};
use sluice_harness::{
    kit::{self, Kit},
    registry::{self, PASSWORD, Registry, USER},
};

use crate::{gate::fixture, registry::push};

/// Makes the plugin what `spec` says.
fn apply(kit: &Kit, spec: &Value) -> Result<()> {
    let plugin = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "GatePlugin", "metadata": { "name": "smoke" }, "spec": spec,
    });
    kit.apply(&plugin.to_string())?;
    Ok(())
}

/// Waits until `Ready` is so for the newest generation; returns the digest in the status.
async fn says(kit: &Kit, status: &str, reason: &str) -> Result<Option<String>> {
    let is = |plugin: &GatePlugin| {
        plugin.status.iter().flat_map(|status| &status.conditions).any(|condition| {
            (condition.type_.as_str(), condition.status.as_str(), condition.reason.as_str())
                == ("Ready", status, reason)
                && condition.observed_generation == plugin.metadata.generation
        })
    };
    let what = format!("be Ready={status}/{reason}");
    let found = kit.wait::<GatePlugin>("smoke", &what, |plugin| plugin.is_some_and(is)).await?;
    Ok(found.and_then(|plugin| plugin.status?.digest))
}

#[test]
fn a_plugin_lives_on_while_its_registry_is_down_and_not_when_it_is_revoked() -> Result<()> {
    registry::binary()?;
    kit::run(async |kit| {
        let mut registry = Registry::start().await?;
        let host = registry.host();
        let sources = kit.dir().join("sources.yaml");
        let listed = json!({ "registries": [{ "prefix": host, "caBundle": registry.authority }] });
        std::fs::write(&sources, listed.to_string())?;
        let _operator = kit.operator_with(&["--plugin-sources", &sources.display().to_string()]).await?;

        let (first, second) = (fixture("good", &[]), fixture("wait", &[]));
        let digest = |component: &[u8]| Some(Digest::of(component).to_string());
        push(&registry, "1", &first, |_| {}).await;
        let spec = |tag: u8| {
            let image = format!("{host}/gates/smoke:{tag}");
            json!({ "source": { "oci": { "image": image, "pullSecretRef": { "name": "pull" } } } })
        };
        apply(kit, &spec(1))?;
        says(kit, "False", "SecretNotFound").await?;
        let credentials = [format!("--docker-username={USER}"), format!("--docker-password={PASSWORD}")];
        let server = format!("--docker-server={host}");
        kit.kubectl(&["create", "secret", "docker-registry", "pull", &server, &credentials[0], &credentials[1]])?;
        assert_eq!(says(kit, "True", "Ready").await?, digest(&first));

        registry.stop().await?;
        apply(kit, &spec(2))?;
        assert_eq!(says(kit, "True", "Replacing").await?, digest(&first));
        registry.resume().await?;
        push(&registry, "2", &second, |_| {}).await;
        assert_eq!(says(kit, "True", "Ready").await?, digest(&second));

        let mut revoked = spec(2);
        revoked["revoked"] = json!(true);
        apply(kit, &revoked)?;
        assert_eq!(says(kit, "False", "Revoked").await?, digest(&second), "which bytes it was");
        apply(kit, &spec(2))?;
        assert_eq!(says(kit, "True", "Ready").await?, digest(&second));
        Ok(())
    })
}
