//! Bad input: a condition that names the field, nothing that runs is touched, and an upgrade that is held, not lost.

use anyhow::Result;
use k8s_openapi::api::core::v1::Service;
use serde_json::json;
use sluice::model::names;
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
        world.still("AwaitingPromotion").await?;
        world.approve().await?;
        world.still("PromotionDone").await?;
        assert_eq!(world.live_image().await?, "kong:3.10");
        let message = world.reason("Failed").await?;
        assert!(message.contains("kong:1.0"), "{message}");
        world.image("kong:3.10").await?;
        world.at_rest("kong:3.10").await
    })
}

#[test]
fn what_the_api_refuses_is_said_and_a_better_spec_goes_on() -> Result<()> {
    kit::run(async |kit| {
        let world = World::gated(kit).await?;
        let mount = json!([{ "op": "add", "path": "/spec/deployment/podTemplateSpec/spec/containers/0/volumeMounts",
            "value": [{ "name": "no-such-volume", "mountPath": "/data" }] }]);
        kit.kubectl(&["patch", "dataplane", super::NAME, "--type=json", &format!("--patch={mount}")])?;
        let message = world.reason("Failed").await?;
        assert!(message.contains("no-such-volume"), "{message}");
        assert_eq!(world.live_image().await?, "kong:3.9");
        let unmount =
            json!([{ "op": "remove", "path": "/spec/deployment/podTemplateSpec/spec/containers/0/volumeMounts" }]);
        kit.kubectl(&["patch", "dataplane", super::NAME, "--type=json", &format!("--patch={unmount}")])?;
        world.at_rest("kong:3.9").await?;
        world.image("kong:3.10").await?;
        world.reason("AwaitingPromotion").await?;
        Ok(())
    })
}

#[test]
fn a_bent_live_service_is_bent_back_and_the_live_pods_stay() -> Result<()> {
    kit::run(async |kit| {
        let world = World::gated(kit).await?;
        world.image("kong:3.11").await?;
        world.reason("GatesFailed").await?;
        let dataplane = world.dataplane().await?;
        let status = dataplane.status.unwrap_or_default();
        let service = status.service.unwrap_or_default();
        let refused = status.rollout.and_then(|rollout| rollout.deployment?.selector).unwrap_or_default();
        let live = status.selector.unwrap_or_default();
        let patch = json!({ "spec": { "selector": { names::SELECTOR: refused } } });
        kit.kubectl(&["patch", "service", &service, &format!("--patch={patch}")])?;
        let back = |found: Option<&Service>| {
            let selector = found.and_then(|service| service.spec.as_ref()?.selector.as_ref()?.get(names::SELECTOR));
            selector == Some(&live)
        };
        kit.wait::<Service>(&service, "select the live side again", back).await?;
        assert_eq!(world.live_image().await?, "kong:3.9");
        Ok(())
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
