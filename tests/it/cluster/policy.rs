//! Policies that come, go and change while an upgrade is under way.

use anyhow::Result;
use serde_json::json;
use sluice::api::DataPlane;
use sluice_harness::{kit, wait::PATIENCE};

use super::{World, reason_of, smoke};
use crate::gate::fixture;

/// A gate that asks for more time for as long as it is asked.
async fn patient(world: &World<'_>) -> Result<serde_json::Value> {
    world.plugin("patient", &fixture("wait", &[])).await?;
    Ok(json!([{ "name": "soak", "pluginRef": { "name": "patient" } }]))
}

#[test]
fn a_policy_added_at_rest_judges_the_next_upgrade() -> Result<()> {
    kit::run(async |kit| {
        let world = World::start(kit).await?;
        world.http_smoke().await?;
        world.create("kong:3.9")?;
        world.at_rest("kong:3.9").await?;
        world.policy(smoke(json!({}))).await?;
        world.policy_says("Accepted").await?;
        world.at_rest("kong:3.9").await?;
        let mut reasons = kit.record("bluegreen", reason_of as fn(&DataPlane) -> Option<String>);
        world.image("kong:3.10").await?;
        reasons.wait_for("RunningGates", PATIENCE).await?;
        world.reason("AwaitingPromotion").await?;
        Ok(())
    })
}

#[test]
fn a_policy_deleted_while_judging_voids_the_approval_and_the_upgrade_moves_on_without_it() -> Result<()> {
    kit::run(async |kit| {
        let world = World::start(kit).await?;
        let gates = patient(&world).await?;
        world.policy(gates).await?;
        world.create("kong:3.9")?;
        world.at_rest("kong:3.9").await?;
        world.image("kong:3.10").await?;
        world.approve().await?;
        world.reason("RunningGates").await?;
        world.delete_policy().await?;
        assert!(world.event("ApprovalVoided").await?.contains("policy/soak"));
        world.reason("AwaitingPromotion").await?;
        assert_eq!(world.live_image().await?, "kong:3.9", "the approval counted on a gate");
        world.approve().await?;
        world.reason("PromotionDone").await?;
        assert_eq!(world.live_image().await?, "kong:3.10");
        Ok(())
    })
}

#[test]
fn gates_emptied_and_added_while_a_revision_is_pending_are_read_at_once() -> Result<()> {
    kit::run(async |kit| {
        let world = World::gated(kit).await?;

        world.image("kong:3.11").await?;
        world.approve().await?;
        world.reason("GatesFailed").await?;
        world.policy(json!([])).await?;
        world.reason("AwaitingPromotion").await?;
        assert_eq!(world.live_image().await?, "kong:3.9", "the approval was given while the gate still judged");

        world.policy(smoke(json!({}))).await?;
        world.reason("GatesFailed").await?;
        Ok(())
    })
}
