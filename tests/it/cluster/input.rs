//! Bad input: a condition that names the field, nothing that runs is touched, and an upgrade that is held, not lost.

use anyhow::Result;
use serde_json::json;
use sluice_harness::kit;

use super::{World, smoke};

#[test]
fn a_dataplane_without_a_proxy_image_is_refused_with_kongs_message() -> Result<()> {
    kit::run(async |kit| {
        let template = json!({ "spec": { "containers": [{ "name": "sidecar", "image": "kong:3.9" }] } });
        let body = json!({
            "apiVersion": "gateway-operator.konghq.com/v1beta1", "kind": "DataPlane", "metadata": { "name": "bad" },
            "spec": { "deployment": { "podTemplateSpec": template } },
        });
        let error = kit.apply(&body.to_string()).expect_err("refused");
        assert!(format!("{error:#}").contains("DataPlane requires an image to be set on proxy container"), "{error:#}");
        Ok(())
    })
}

#[test]
fn an_unsupported_image_is_said_before_anything_runs_and_a_better_one_founds_the_dataplane() -> Result<()> {
    kit::run(async |kit| {
        let world = World::start(kit).await?;
        world.create("kong:1.0")?;
        let message = world.condition("Ready", "ValidationFailed").await?;
        assert!(message.contains("containers[proxy].image") && message.contains("kong:1.0"), "{message}");
        assert!(world.deployments().await?.is_empty());
        world.image("kong:3.9").await?;
        world.at_rest("kong:3.9").await
    })
}

#[test]
fn a_bad_edit_does_not_stop_the_upgrade_that_is_under_way() -> Result<()> {
    kit::run(async |kit| {
        let world = World::gated(kit).await?;
        world.image("kong:3.10").await?;
        world.reason("Progressing").await?;
        world.image("kong:1.0").await?;
        let message = world.condition("Stalled", "InvalidSpec").await?;
        assert!(message.contains("containers[proxy].image"), "{message}");
        world.reason("AwaitingPromotion").await?;
        world.approve().await?;
        world.reason("PromotionDone").await?;
        assert_eq!(world.live_image().await?, "kong:3.10");
        let message = world.reason("Failed").await?;
        assert!(message.contains("kong:1.0"), "{message}");
        world.image("kong:3.10").await?;
        world.at_rest("kong:3.10").await
    })
}

/// One upgrade, held for one reason after the other, until nothing is wrong any more.
#[test]
fn a_gate_that_cannot_run_holds_the_upgrade_and_says_why() -> Result<()> {
    kit::run(async |kit| {
        let world = World::start(kit).await?;
        world.policy(smoke(json!({}))).await?;
        let message = world.policy_says("PluginNotFound").await?;
        assert!(message.contains("spec.gates[smoke]") && message.contains("http-smoke"), "{message}");
        world.create("kong:3.9")?;
        world.at_rest("kong:3.9").await?;
        world.image("kong:3.10").await?;
        world.approve().await?;
        let message = world.reason("GatesHeld").await?;
        assert!(message.contains("PluginNotFound") && message.contains("pluginRef"), "{message}");

        world.plugin_bytes("http-smoke", b"these bytes are no component").await?;
        world.plugin_says("http-smoke", "NotAComponent").await?;
        let held = |reason: &'static str| {
            let world = &world;
            async move {
                let says = |dataplane: Option<&sluice::api::DataPlane>| {
                    super::is(dataplane, "GatesHeld")
                        && dataplane
                            .and_then(super::rolled_out)
                            .is_some_and(|condition| condition.message.contains(reason))
                };
                kit.wait::<sluice::api::DataPlane>(super::NAME, &format!("be held for {reason}"), says).await?;
                assert_eq!(world.live_image().await?, "kong:3.9");
                anyhow::Ok(())
            }
        };
        held("NotAComponent").await?;

        world.point("http-smoke", "http-smoke", "no-such-key").await?;
        let message = world.plugin_says("http-smoke", "KeyNotFound").await?;
        assert!(message.contains("spec.source.configMap.key") && message.contains("gate.wasm"), "{message}");
        held("KeyNotFound").await?;

        world.policy(smoke(json!({ "checks": "all of them" }))).await?;
        world.http_smoke().await?;
        let message = world.policy_says("InvalidSettings").await?;
        assert!(message.contains("spec.gates[smoke].settings/checks"), "{message}");
        held("InvalidSettings").await?;

        world.policy(smoke(json!({}))).await?;
        world.policy_says("Accepted").await?;
        world.at_rest("kong:3.10").await
    })
}
