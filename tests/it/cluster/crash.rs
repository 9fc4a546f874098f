//! The operator is killed at a named write, in every part of an upgrade, and the next one finishes the work.

use anyhow::{Context, Result};
use serde_json::Value;
use sluice::model::names;
use sluice_harness::{
    kit,
    proxy::{Side, Write},
    wait::PATIENCE,
};

use super::World;

/// A place to be killed at.
struct Cut {
    name: &'static str,
    side: Side,
    at: fn(&Write) -> bool,
}

pub(super) fn path(write: &Write, kind: &str) -> bool {
    write.path.contains(&format!("/{kind}/")) || write.path.ends_with(&format!("/{kind}"))
}

fn promotion_status(write: &Write) -> Option<Value> {
    (path(write, "promotions") && write.path.ends_with("/status")).then(|| write.json()["status"].clone())
}

pub(super) fn switches(write: &Write) -> bool {
    path(write, "services") && write.json()["metadata"]["annotations"][names::PROMOTION].is_string()
}

fn dataplane_reason(write: &Write) -> Option<String> {
    let status = path(write, "dataplanes") && write.path.ends_with("/status");
    let body = write.json();
    status.then(|| body["status"]["rollout"]["conditions"][0]["reason"].as_str().unwrap_or_default().to_owned())
}

pub(super) fn judging(write: &Write) -> bool {
    promotion_status(write).is_some_and(|status| status["gates"][0]["outcome"] == "Running")
}

pub(super) fn commit(write: &Write) -> bool {
    promotion_status(write).is_some_and(|status| status["commit"].is_object() && status["phase"] == "Switching")
}

fn draining(write: &Write) -> bool {
    dataplane_reason(write).as_deref() == Some("PromotionDone")
}

const CUTS: [Cut; 14] = [
    Cut {
        name: "staging, before the record of the upgrade",
        side: Side::Before,
        at: |write| path(write, "promotions"),
    },
    Cut { name: "staging, after the record of the upgrade", side: Side::After, at: |write| path(write, "promotions") },
    Cut { name: "staging, after the preview Deployment", side: Side::After, at: |write| path(write, "deployments") },
    Cut { name: "judging, before the attempt is on record", side: Side::Before, at: judging },
    Cut { name: "judging, after the attempt is on record", side: Side::After, at: judging },
    Cut { name: "before the commit", side: Side::Before, at: commit },
    Cut { name: "after the commit, before the spec is frozen", side: Side::After, at: commit },
    Cut {
        name: "after the spec is frozen, before the first Service",
        side: Side::After,
        at: |write| dataplane_reason(write).as_deref() == Some("PromotionInProgress"),
    },
    Cut { name: "before the first Service", side: Side::Before, at: switches },
    Cut { name: "between the two Services", side: Side::After, at: switches },
    Cut {
        name: "draining, after the annotation is gone",
        side: Side::After,
        at: |write| path(write, "dataplanes") && write.json()["metadata"]["annotations"].is_object(),
    },
    Cut { name: "draining, before PromotionDone", side: Side::Before, at: draining },
    Cut { name: "draining, after PromotionDone", side: Side::After, at: draining },
    Cut {
        name: "draining, at the old Deployment",
        side: Side::After,
        at: |write| write.method == "DELETE" && path(write, "deployments"),
    },
];

#[test]
fn an_operator_killed_anywhere_in_an_upgrade_is_replaced_by_one_that_finishes_it() -> Result<()> {
    kit::run(async |kit| {
        let mut world = World::gated(kit).await?;

        for (number, cut) in CUTS.iter().enumerate() {
            let image = if number % 2 == 0 { "kong:3.10" } else { "kong:3.9" };
            let at = cut.at;
            let caught = world.proxy.trap(cut.side, move |_, write| at(write), world.operator.killer());
            world.image(image).await?;
            world.approve().await?;
            let sprung = tokio::time::timeout(PATIENCE, caught).await;
            sprung.with_context(|| format!("{}: no such write", cut.name))??;
            world.operator.ended(PATIENCE).await.context(cut.name)?;
            world.restart().await?;
            world.at_rest(image).await.context(cut.name)?;
        }
        Ok(())
    })
}
