//! The operator is killed after each single write of an upgrade, and the one that is started again finishes it: the end is
//! that of an upgrade in which nobody was killed.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice::{
    api::promotion::Verdict,
    model::names::{self, DEPLOYMENT_STATE, SELECTOR, SERVICE_STATE, SERVICE_TYPE},
};
use sluice_harness::{
    kit::{self, Kit},
    proxy::{Side, Write},
    wait::PATIENCE,
};

use super::{World, verdict};
use crate::gate::fixture;

pub(super) fn path(write: &Write, kind: &str) -> bool {
    write.path.contains(&format!("/{kind}/")) || write.path.ends_with(&format!("/{kind}"))
}

fn promotion_status(write: &Write) -> Option<Value> {
    (path(write, "promotions") && write.path.ends_with("/status")).then(|| write.json()["status"].clone())
}

pub(super) fn switches(write: &Write) -> bool {
    path(write, "services") && write.json()["metadata"]["annotations"][names::PROMOTION].is_string()
}

pub(super) fn judging(write: &Write) -> bool {
    promotion_status(write).is_some_and(|status| status["gates"][0]["outcome"] == "Running")
}

pub(super) fn commit(write: &Write) -> bool {
    promotion_status(write).is_some_and(|status| status["commit"].is_object() && status["phase"] == "Switching")
}

/// Whether it changes the state of anything but the Lease. An Event is the last thing of its pass, and nothing depends on it.
fn counts(write: &Write) -> bool {
    !write.is_lease() && !write.is_review() && !write.is_event()
}

/// Upgrades at the same time, each of a gateway with a namespace and an operator of its own.
const LANES: usize = 5;
/// Writes that an upgrade with a gate has at least; more of them only make the matrix longer.
const FEW: usize = 15;
/// What it is upgraded to, in turn.
const IMAGES: [&str; 2] = ["kong:3.10", "kong:3.9"];

#[test]
fn an_operator_killed_after_any_write_of_an_upgrade_is_replaced_by_one_that_finishes_it() -> Result<()> {
    let reached = thread::scope(|scope| {
        let lanes: Vec<_> = (1..=LANES).map(|first| scope.spawn(move || lane(first))).collect();
        let ended = lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.collect::<Result<Vec<_>>>()
    })?;
    ensure!(reached.iter().all(|number| *number > FEW), "no upgrade had more writes than {reached:?}");
    Ok(())
}

/// Every so many writes, until an upgrade has no such write; which one that is.
fn lane(first: usize) -> Result<usize> {
    let mut reached = 0;
    kit::run(async |kit| {
        let mut world = gated(kit).await?;
        // Undisturbed, there and back.
        let mut ends = Vec::new();
        for image in IMAGES {
            upgrade(&world, image).await?;
            world.at_rest(image).await?;
            ends.push(end(&world).await?);
        }
        for (turn, number) in (first..).step_by(LANES).enumerate() {
            let (image, wanted) = (IMAGES[turn % 2], &ends[turn % 2]);
            reached = number;
            if !cut(&mut world, image, number).await.with_context(|| format!("write {number}"))? {
                return Ok(());
            }
            let found = end(&world).await?;
            let other = |one: &[String], than: &[String]| -> Vec<_> {
                one.iter().filter(|object| !than.contains(object)).cloned().collect()
            };
            let (more, less) = (other(&found, wanted), other(wanted, &found));
            ensure!(found == *wanted, "write {number}: the end has {more:#?} instead of {less:#?}");
        }
        Ok(())
    })?;
    Ok(reached)
}

/// A gateway at rest under a gate that asks nobody, and an operator that finds its own Lease when it is started again.
async fn gated(kit: &Kit) -> Result<World<'_>> {
    kit.own_lease()?;
    let world = World::elected(kit, "pod").await?;
    world.plugin("good", &fixture("good", &[])).await?;
    world.policy(json!([{ "name": "good", "pluginRef": { "name": "good" }, "retryBackoff": "1s" }])).await?;
    world.create("kong:3.9")?;
    world.at_rest("kong:3.9").await?;
    Ok(world)
}

async fn upgrade(world: &World<'_>, image: &str) -> Result<()> {
    world.image(image).await?;
    world.approve().await
}

/// One upgrade whose operator is killed after a write of this number, and started again. False where there is none.
async fn cut(world: &mut World<'_>, image: &str, number: usize) -> Result<bool> {
    let written = AtomicUsize::new(0);
    let at = move |_, write: &Write| counts(write) && written.fetch_add(1, Ordering::Relaxed) + 1 == number;
    let mut caught = world.proxy.trap(Side::After, at, world.operator.killer());
    upgrade(world, image).await?;
    let killed = tokio::select! {
        caught = &mut caught => caught.is_ok(),
        rests = world.at_rest(image) => {
            rests?;
            caught.try_recv().is_ok()
        }
    };
    if killed {
        world.operator.ended(PATIENCE).await?;
        world.operator = world.kit.elected_operator("pod", &world.proxy).await?;
        world.at_rest(image).await?;
    }
    Ok(killed)
}

/// All that is there of a gateway, by what it is for instead of what it happens to be called; nothing else is there.
async fn end(world: &World<'_>) -> Result<Vec<String>> {
    let newest = world.newest().await?;
    ensure!(verdict(&newest) == Some(Verdict::Promoted), "{newest:?}");
    let kinds = "deployments,services,secrets,controllerrevisions.apps,horizontalpodautoscalers,poddisruptionbudgets";
    let list: Value = serde_json::from_str(&world.kit.kubectl(&["get", kinds, "--output=json"])?)?;
    let items = list["items"].as_array().context("no list")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut known = Vec::new();
    for item in items {
        let labels = &item["metadata"]["labels"];
        let state = [DEPLOYMENT_STATE, SERVICE_STATE, SERVICE_TYPE].map(|label| text(&labels[label])).concat();
        match item["kind"].as_str() {
            Some("Deployment") => {
                known.push((text(&labels[SELECTOR]), format!("<selector {state}>")));
                let volumes = item["spec"]["template"]["spec"]["volumes"].as_array();
                let secrets = volumes.into_iter().flatten().map(|volume| text(&volume["secret"]["secretName"]));
                known.extend(secrets.map(|secret| (secret, format!("<{state}>"))));
                known.push((text(&item["metadata"]["name"]), format!("<{state}>")));
            }
            Some("Service") => known.push((text(&item["metadata"]["name"]), format!("<Service {state}>"))),
            _ => {}
        }
    }
    known.retain(|(name, _)| !name.is_empty());
    let mut found: Vec<_> = items
        .iter()
        .map(|item| {
            let metadata = &item["metadata"];
            // That a switch was taken back in between is on record, and where an operator was killed there may have been one.
            let kept = metadata["annotations"].as_object().into_iter().flat_map(|all| all.keys());
            let annotations: Vec<_> = kept.filter(|name| *name != names::WITHDRAWN).collect();
            let spec = &item["spec"];
            let what = json!({
                "kind": item["kind"], "name": metadata["name"], "labels": metadata["labels"], "annotations": annotations,
                "finalizers": metadata["finalizers"], "going": metadata["deletionTimestamp"].is_string(),
                "selector": spec["selector"], "replicas": spec["replicas"], "template": spec["template"],
            });
            known.iter().fold(what.to_string(), |what, (name, means)| what.replace(name, means))
        })
        .collect();
    found.sort();
    Ok(found)
}
