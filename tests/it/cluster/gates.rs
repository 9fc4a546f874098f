//! Hostile gates under a real operator: an error with its own reason, on record, and nothing is promoted.

use anyhow::Result;
use serde_json::json;
use sluice::api::promotion::GateOutcome;
use sluice_harness::kit;

use super::World;
use crate::gate::fixture;

#[test]
fn an_endless_loop_is_an_error_on_record_and_nothing_is_promoted() -> Result<()> {
    kit::run(async |kit| {
        let world = World::start(kit).await?;
        world.plugin("hostile", &fixture("busy_loop", &[("rounds", "0")])).await?;
        world.policy(json!([{ "name": "loop", "pluginRef": { "name": "hostile" }, "maxAttempts": 1 }])).await?;
        world.create("kong:3.9")?;
        world.at_rest("kong:3.9").await?;
        world.image("kong:3.10").await?;
        world.approve().await?;
        let message = world.reason("GatesHeld").await?;
        assert!(message.contains("CpuBudgetExceeded"), "{message}");
        assert_eq!(world.live_image().await?, "kong:3.9");

        // The host goes on: a good gate in its place, and the approval that was never honoured counts.
        world.plugin("hostile", &fixture("good", &[])).await?;
        world.at_rest("kong:3.10").await
    })
}

#[test]
fn a_gate_host_that_is_killed_costs_attempts_and_loses_no_promotion() -> Result<()> {
    kit::run(async |kit| {
        let mut world = World::start(kit).await?;
        world.plugin("deadly", &fixture("busy_loop", &[("rounds", "0")])).await?;
        let gate = json!({ "name": "loop", "pluginRef": { "name": "deadly" }, "maxAttempts": 2, "retryBackoff": "1s" });
        world.policy(json!([gate])).await?;
        world.create("kong:3.9")?;
        world.at_rest("kong:3.9").await?;
        world.image("kong:3.10").await?;
        world.approve().await?;
        for attempt in 1..=2 {
            world.running(attempt).await?;
            world.operator.kill_gate_host().await?;
        }
        let message = world.reason("GatesHeld").await?;
        // Interrupted where the trial had begun, and nowhere to begin where it had not.
        let lost = ["Interrupted", "PluginNotReady", "HostError"];
        assert!(lost.iter().any(|reason| message.contains(reason)), "{message}");
        assert_eq!(world.newest().await?.status.unwrap_or_default().gates[0].attempt, 2);
        assert_eq!(world.live_image().await?, "kong:3.9");

        // The new host has been given what the one before had, and the approval that was never honoured counts.
        world.plugin("deadly", &fixture("good", &[])).await?;
        world.at_rest("kong:3.10").await
    })
}

#[test]
fn what_was_not_granted_is_denied_and_the_denial_is_on_record() -> Result<()> {
    kit::run(async |kit| {
        let world = World::start(kit).await?;
        world.plugin("curious", &fixture("ask", &[])).await?;
        let settings = json!({ "kubernetes.default": 1 });
        world.policy(json!([{ "name": "ask", "pluginRef": { "name": "curious" }, "settings": settings }])).await?;
        world.create("kong:3.9")?;
        world.at_rest("kong:3.9").await?;
        world.image("kong:3.10").await?;
        world.reason("AwaitingPromotion").await?;
        let status = world.newest().await?.status.unwrap_or_default();
        let evidence = &status.gates[0];
        assert_eq!((evidence.outcome, evidence.message.as_deref()), (GateOutcome::Pass, Some("denied")));
        assert!(evidence.denied[0].target.contains("kubernetes.default"), "{:?}", evidence.denied);
        assert_eq!(evidence.cost.as_ref().map(|cost| cost.requests), Some(0));
        Ok(())
    })
}
