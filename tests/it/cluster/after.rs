//! Gates behind the live Services of a real cluster, and the way back.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};
use sluice::{
    api::promotion::{GateOutcome, Verdict},
    model::{
        names::{Role, State},
        trial::Moment,
    },
};
use sluice_harness::{
    http, kit,
    load::{Gateway, Load, Tally},
    wait::PATIENCE,
};

use super::{World, smoke};

type Answer = hyper::Response<Bytes>;

/// Any gateway without routes.
fn no_route(answer: &Answer) -> bool {
    answer.status() == 404
}

fn asked(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.replicas
}

/// The gate of the walk, which wants this status behind the live Services.
fn after(status: u16) -> Value {
    let mut gates = smoke(json!({ "checks": [{ "path": "/", "expect": { "status": status } }] }));
    gates[0]["when"] = "AfterPromotion".into();
    gates
}

#[test]
fn a_gate_that_says_no_behind_the_live_services_moves_traffic_back() -> Result<()> {
    kit::run(async |kit| {
        let world = World::start(kit).await?;
        world.http_smoke().await?;
        world.policy(after(418)).await?;
        world.create("kong:3.9")?;
        world.at_rest("kong:3.9").await?;
        let url = world.url().await?;
        http::until(&url, PATIENCE, no_route).await?;
        world.image("kong:3.10").await?;
        let service = world.service(State::Live, Role::Ingress, "be there", |_| true).await?;
        let load = Load::start(&kit.cluster, Gateway::in_cluster(&service)?);
        world.approve().await?;
        let message = world.reason("RolledBack").await?;
        world.deployment(State::Preview, "be empty", |preview| asked(preview) == Some(0)).await?;
        // On the way there and back.
        let users = Tally::of_all(load.stop().await?.values());
        ensure!(users.lost == 0, "{users:?}");
        ensure!(message.contains("UnexpectedStatus") && message.contains("expected 418"), "{message}");
        assert_eq!(world.live_image().await?, "kong:3.9");
        let server = |answer: &Answer| answer.headers().get("server").is_some_and(|server| server == "kong/3.9");
        http::until(&url, PATIENCE, server).await?;

        let status = world.newest().await?.status.unwrap_or_default();
        let evidence = status.gates.first().context("no evidence")?;
        assert_eq!((evidence.when, evidence.outcome), (Moment::AfterPromotion, GateOutcome::Fail));
        ensure!(!evidence.answered.is_empty(), "it asked nobody");
        assert_eq!(status.verdict, Some(Verdict::RolledBack));
        ensure!(world.event("RolledBack").await?.contains("UnexpectedStatus"), "the Event does not say why");

        // Another policy does not bring it back; wanting something else, and then it again, does.
        world.policy(after(404)).await?;
        world.policy_says("Accepted").await?;
        world.image("kong:3.9").await?;
        world.at_rest("kong:3.9").await?;
        world.image("kong:3.10").await?;
        world.approve().await?;
        world.at_rest("kong:3.10").await?;
        assert_eq!(world.newest().await?.status.and_then(|status| status.verdict), Some(Verdict::Promoted));
        Ok(())
    })
}
