//! The walk of the document: staged, judged, approved, promoted.

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::ListParams};
use sluice::{api::DataPlane, model::names};
use sluice_harness::{kit, wait::PATIENCE};

use super::{World, generation, reason_of};

#[test]
fn an_upgrade_is_staged_judged_approved_and_promoted() -> Result<()> {
    kit::run(async |kit| {
        let world = World::gated(kit).await?;
        let mut reasons = kit.record("bluegreen", reason_of as fn(&DataPlane) -> Option<String>);

        world.image("kong:3.10").await?;
        reasons.wait_for("RunningGates", PATIENCE).await?;
        world.reason("AwaitingPromotion").await?;
        let staged = world.dataplane().await?;
        assert_eq!((generation(&staged, "Ready"), staged.metadata.generation), (Some(1), Some(2)), "R is frozen");
        assert_eq!(world.live_image().await?, "kong:3.9", "nobody approved");

        world.approve().await?;
        reasons.wait_for("PromotionDone", PATIENCE).await?;
        world.at_rest("kong:3.10").await?;
        let record = world.newest().await?.status.unwrap_or_default();
        assert_eq!(record.summary.as_deref(), Some("1/1"));
        assert_eq!(record.gates[0].reason.as_deref(), Some("AllChecksPassed"));
        assert!(record.commit.is_some() && record.approval.is_some() && record.pods.len() == 1);
        // G3: what was judged is what runs, and nothing touches it again.
        let live = world.dataplane().await?.status.and_then(|status| status.selector).unwrap_or_default();
        let pods = ListParams::default().labels(&format!("{}={live}", names::SELECTOR));
        let pods = kit.api::<Pod>().list(&pods).await?.items;
        let running: Vec<_> = pods.iter().filter_map(ResourceExt::uid).collect();
        assert_eq!(running, [record.pods[0].uid.clone()]);
        let expected = [
            "Progressing",
            "RunningGates",
            "AwaitingPromotion",
            "PromotionInProgress",
            "PromotionDone",
            "WaitingForChange",
        ];
        let mut seen = reasons.seen().into_iter();
        assert!(expected.iter().all(|reason| seen.any(|seen| seen == *reason)), "{:?}", reasons.seen());
        Ok(())
    })
}

#[test]
fn a_bad_release_is_refused_and_its_approval_does_not_reach_the_next_one() -> Result<()> {
    kit::run(async |kit| {
        let world = World::gated(kit).await?;

        world.image("kong:3.11").await?;
        world.approve().await?;
        let message = world.reason("GatesFailed").await?;
        assert!(message.contains("UnexpectedStatus") && message.contains("500"), "{message}");
        assert_eq!(world.live_image().await?, "kong:3.9");
        assert!(world.event("GatesFailed").await?.contains("UnexpectedStatus"));

        world.image("kong:3.10").await?;
        assert!(world.event("ApprovalVoided").await?.contains("no longer wanted"));
        world.reason("AwaitingPromotion").await?;
        assert_eq!(world.live_image().await?, "kong:3.9", "the approval was for another revision");
        world.approve().await?;
        world.at_rest("kong:3.10").await
    })
}

#[test]
fn going_back_to_the_live_revision_returns_to_rest_and_consumes_the_approval() -> Result<()> {
    kit::run(async |kit| {
        let world = World::gated(kit).await?;
        world.image("kong:3.11").await?;
        world.approve().await?;
        world.reason("GatesFailed").await?;
        world.image("kong:3.9").await?;
        world.at_rest("kong:3.9").await
    })
}

#[test]
fn without_a_policy_the_annotation_alone_promotes_as_with_kong() -> Result<()> {
    kit::run(async |kit| {
        let world = World::start(kit).await?;
        world.create("kong:3.9")?;
        world.at_rest("kong:3.9").await?;
        world.image("kong:3.10").await?;
        world.reason("AwaitingPromotion").await?;
        world.approve().await?;
        world.reason("PromotionDone").await?;
        assert_eq!(world.live_image().await?, "kong:3.10");
        Ok(())
    })
}
