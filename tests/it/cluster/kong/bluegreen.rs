//! BG-1 to BG-3: Kong's tests of blue/green.

use std::{fmt::Debug, sync::Arc};

use anyhow::{Result, ensure};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{Secret, Service},
    },
};
use kube::{Resource, ResourceExt, api::DeleteParams};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use sluice::{
    api::{DataPlane, dataplane::PROMOTE_WHEN_READY},
    model::names::{self, Role, State},
};
use sluice_harness::kit::{self, Kit};

use super::{
    super::{NAME, World, rolled_out},
    runs, scaling,
};

#[test]
fn bg_1_rollout() -> Result<()> {
    kit::run(async |kit| {
        // Given a new DataPlane with blue/green,
        let world = World::free(kit).await?;
        world.create("kong:3.9")?;
        // then it is Ready, and beside it stand one preview Deployment and two preview Services without endpoints.
        world.ready("Ready").await?;
        world.at_rest("kong:3.9").await?;
        world.deployment(State::Preview, "become one", |_| true).await?;
        world.endpoints(State::Preview, Role::Admin, 0).await?;
        world.endpoints(State::Preview, Role::Ingress, 0).await?;

        // When the image is patched,
        world.image("kong:3.4").await?;
        // then the preview starts behind its Services, and the live side stays as it is;
        world.reason("AwaitingPromotion").await?;
        world.deployment(State::Preview, "run", |preview| runs(preview, 1) && image(preview) == "kong:3.4").await?;
        world.endpoints(State::Preview, Role::Admin, 1).await?;
        world.endpoints(State::Preview, Role::Ingress, 1).await?;
        world.endpoints(State::Live, Role::Ingress, 1).await?;
        world.deployment(State::Live, "run", |live| runs(live, 1) && image(live) == "kong:3.9").await?;
        // and the condition says that somebody is awaited.
        let dataplane = world.dataplane().await?;
        let said = rolled_out(&dataplane).map(|condition| (condition.status.as_str(), condition.reason.as_str()));
        ensure!(said == Some(("False", "AwaitingPromotion")), "{said:?}");

        // When it is annotated,
        world.approve().await?;
        // then one live Deployment is left, with the new image, behind the live Service; and the annotation is gone.
        world.at_rest("kong:3.4").await?;
        world.deployment(State::Live, "run the new image", |live| runs(live, 1) && image(live) == "kong:3.4").await?;
        world.endpoints(State::Live, Role::Ingress, 1).await?;
        ensure!(!world.dataplane().await?.annotations().contains_key(PROMOTE_WHEN_READY), "still annotated");

        // When the strategy is removed,
        world.patch(json!({ "spec": { "deployment": { "rollout": null } } })).await?;
        // then nothing of the preview is left, in the cluster and in the status.
        let preview = |label: &str| format!("{label}=preview");
        kit.wait_all::<Deployment>(&preview(names::DEPLOYMENT_STATE), "go", <[_]>::is_empty).await?;
        kit.wait_all::<Service>(&preview(names::SERVICE_STATE), "go", <[_]>::is_empty).await?;
        let forgotten = |found: Option<&DataPlane>| {
            found.and_then(|found| found.status.as_ref()).is_some_and(|status| status.rollout.is_none())
        };
        kit.wait(NAME, "forget the rollout", forgotten).await?;
        world.deployment(State::Live, "still run", |live| runs(live, 1) && image(live) == "kong:3.4").await?;
        Ok(())
    })
}

/// Kong starts a rollout of what is live already, and awaits its promotion. Here nothing has changed, so the preview is
/// prepared empty and the DataPlane is at rest.
#[test]
fn bg_1_strategy_added_later_settles_at_once() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane without a strategy,
        let world = World::free(kit).await?;
        world.create_plain(|_| {})?;
        world.ready("Ready").await?;
        let live = world.deployment(State::Live, "run", |live| runs(live, 1)).await?;
        // when blue/green is added,
        let blue_green = json!({ "blueGreen": { "promotion": { "strategy": "BreakBeforePromotion" } } });
        world.patch(json!({ "spec": { "deployment": { "rollout": { "strategy": blue_green } } } })).await?;
        // then it is at rest beside an empty preview, and the live Pods are the ones from before.
        world.at_rest("kong:3.9").await?;
        let now = world.deployment(State::Live, "still run", |live| runs(live, 1)).await?;
        ensure!(now.uid() == live.uid() && now.spec == live.spec, "live was touched");
        ensure!(world.promotions().await?.is_empty(), "nothing was there to be promoted");
        Ok(())
    })
}

#[test]
fn bg_2_horizontal_scaling() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane that an autoscaler scales,
        let world = World::free(kit).await?;
        world.create_changed(|dataplane| dataplane["spec"]["deployment"]["scaling"] = scaling(Some(2), 5, 20))?;
        world.ready("Ready").await?;
        world.reason("WaitingForChange").await?;
        let live = world.deployment(State::Live, "run", |live| runs(live, 2)).await?.name_any();

        // when the image is patched,
        world.image("kong:3.10").await?;
        // then the preview is available, and the one autoscaler is the live Deployment's.
        world.reason("AwaitingPromotion").await?;
        let preview = world.deployment(State::Preview, "run", |preview| runs(preview, 2)).await?.name_any();
        let autoscaler = autoscaler(&world, &live).await?;
        let spec = json!(autoscaler.spec);
        let metrics = &spec["metrics"];
        ensure!((&spec["minReplicas"], &spec["maxReplicas"]) == (&json!(2), &json!(5)), "{spec:#}");
        ensure!(metrics.as_array().is_some_and(|metrics| metrics.len() == 1), "{spec:#}");
        ensure!(metrics[0]["resource"]["name"] == "cpu", "{spec:#}");
        ensure!(metrics[0]["resource"]["target"]["averageUtilization"] == 20, "{spec:#}");

        // When it is annotated,
        world.approve().await?;
        // then the autoscaler is the promoted Deployment's.
        let now = self::autoscaler(&world, &preview).await?;
        ensure!(now.uid() == autoscaler.uid(), "it is another autoscaler");
        world.reason("WaitingForChange").await?;
        self::autoscaler(&world, &preview).await?;
        Ok(())
    })
}

/// As with Kong, whoever is deleted goes on serving. Beyond Kong: a terminating Deployment gets a successor when
/// something of it has to change, for Kubernetes gives a terminating one no new Pods; here nothing has to.
#[test]
fn bg_3_resources_not_deleted_until_owner_is_removed() -> Result<()> {
    kit::run(async |kit| {
        // Given all that is live, and after a change of the image all that is preview,
        let world = World::free(kit).await?;
        world.create("kong:3.9")?;
        world.at_rest("kong:3.9").await?;
        world.image("kong:3.10").await?;
        world.reason("AwaitingPromotion").await?;
        let (mut services, mut deployments, mut secrets) = (Vec::new(), Vec::new(), Vec::new());
        for state in [State::Live, State::Preview] {
            services.push(world.service(state, Role::Ingress, "become one", |_| true).await?);
            let admin = world.service(state, Role::Admin, "become one", |_| true).await?;
            deployments.push(world.deployment(state, "become one", |_| true).await?);
            secrets.push(
                world.only::<Secret>(&[(names::SERVICE_SECRET, &admin.name_any())], "become one", |_| true).await?,
            );
            services.push(admin);
        }
        ensure!(services.len() + deployments.len() + secrets.len() == 8, "eight objects");

        // when each of them is deleted,
        delete(kit, &services).await?;
        delete(kit, &deployments).await?;
        delete(kit, &secrets).await?;
        // then each is there still and marked as deleted: also after the operator has made a pass over all of them,
        // which shows in the Services that it goes on to patch.
        let annotations = json!({ "foo": "bar" });
        world
            .patch(json!({ "spec": { "network": { "services": { "ingress": { "annotations": annotations } } } } }))
            .await?;
        for state in [State::Live, State::Preview] {
            let patched = |service: &Service| service.annotations().get("foo").is_some_and(|value| value == "bar");
            world.service(state, Role::Ingress, "become patched", patched).await?;
        }
        world.reason("AwaitingPromotion").await?;
        marked(kit, &services).await?;
        marked(kit, &deployments).await?;
        marked(kit, &secrets).await?;
        ensure!(world.live_image().await? == "kong:3.9", "the live side is the same");

        // When the DataPlane is deleted,
        kit.api::<DataPlane>().delete(NAME, &DeleteParams::background()).await?;
        // then all of them disappear.
        gone(kit, &services).await?;
        gone(kit, &deployments).await?;
        gone(kit, &secrets).await
    })
}

fn image(deployment: &Deployment) -> &str {
    let template = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    template.and_then(|template| template.containers.first()?.image.as_deref()).unwrap_or_default()
}

/// Waits until the one autoscaler there is scales this Deployment.
async fn autoscaler(world: &World<'_>, deployment: &str) -> Result<Arc<HorizontalPodAutoscaler>> {
    let scales = |found: &HorizontalPodAutoscaler| json!(found.spec)["scaleTargetRef"]["name"] == deployment;
    world.only(&[(names::APP, NAME)], &format!("scale {deployment}"), scales).await
}

async fn delete<K>(kit: &Kit, objects: &[Arc<K>]) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    for object in objects {
        kit.api::<K>().delete(&object.name_any(), &DeleteParams::background()).await?;
    }
    Ok(())
}

/// Each of them, and not another one of its name, is there and marked as deleted.
async fn marked<K>(kit: &Kit, objects: &[Arc<K>]) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    for object in objects {
        let now = kit.api::<K>().get(&object.name_any()).await?;
        ensure!(now.uid() == object.uid(), "{} is another one", object.name_any());
        ensure!(now.meta().deletion_timestamp.is_some(), "{} is not marked", object.name_any());
    }
    Ok(())
}

async fn gone<K>(kit: &Kit, objects: &[Arc<K>]) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + 'static,
{
    for object in objects {
        kit.wait::<K>(&object.name_any(), "go", |found| found.is_none()).await?;
    }
    Ok(())
}
