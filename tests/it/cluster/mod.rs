//! The operator on a real cluster: one namespace, one proxy and one operator process for each test.

mod adoption;
mod after;
mod crash;
mod crd;
mod gates;
mod input;
mod kong;
mod leader;
mod managers;
mod model;
mod people;
mod plugins;
mod policy;
mod promotion;
mod property;
mod specs;
mod walk;

use std::{fmt::Debug, io::Write as _, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, write::GzEncoder};
use futures::StreamExt;
use k8s_openapi::{
    ByteString, NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Service},
        discovery::v1::EndpointSlice,
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sluice::{
    api::{
        DataPlane, GatePlugin, Promotion, PromotionPolicy,
        dataplane::PROMOTE_WHEN_READY,
        promotion::{GateOutcome, Verdict},
    },
    model::names::{self, Role, State},
};
use sluice_harness::{
    kit::Kit,
    operator::LocalOperator,
    proxy::Proxy,
    wait::{PATIENCE, wait_for_many},
};

/// The DataPlane of every test.
const NAME: &str = "bluegreen";

/// A test's operator, and the objects it works on.
struct World<'a> {
    kit: &'a Kit,
    proxy: Proxy,
    operator: LocalOperator,
}

impl<'a> World<'a> {
    async fn start(kit: &'a Kit) -> Result<Self> {
        let proxy = Proxy::start(&kit.cluster).await?;
        let operator = kit.operator(&proxy).await?;
        Ok(Self { kit, proxy, operator })
    }

    /// A test's operator with the gate of the walk, and a DataPlane at rest on `kong:3.9`.
    async fn gated(kit: &'a Kit) -> Result<Self> {
        let world = Self::start(kit).await?;
        world.http_smoke().await?;
        world.policy(smoke(json!({}))).await?;
        world.create("kong:3.9")?;
        world.at_rest("kong:3.9").await?;
        Ok(world)
    }

    /// A test's operator with a policy that asks nothing: the replaced side goes a second after the switch.
    async fn free(kit: &'a Kit) -> Result<Self> {
        let world = Self::start(kit).await?;
        world.policy(json!([])).await?;
        Ok(world)
    }

    /// Starts the operator again after it was killed.
    async fn restart(&mut self) -> Result<()> {
        self.operator = self.kit.operator(&self.proxy).await?;
        Ok(())
    }

    /// The DataPlane of the walk, with this image.
    fn create(&self, image: &str) -> Result<String> {
        self.kit.apply(&manifest(image))
    }

    /// The DataPlane of the walk, changed before it is created.
    fn create_changed(&self, change: impl FnOnce(&mut Value)) -> Result<String> {
        let mut dataplane: Value = serde_norway::from_str(&manifest("kong:3.9"))?;
        change(&mut dataplane);
        self.kit.apply(&dataplane.to_string())
    }

    /// The same without blue/green.
    fn create_plain(&self, change: impl FnOnce(&mut Value)) -> Result<String> {
        self.create_changed(|dataplane| {
            dataplane["spec"]["deployment"].as_object_mut().and_then(|deployment| deployment.remove("rollout"));
            change(dataplane);
        })
    }

    async fn patch(&self, body: Value) -> Result<DataPlane> {
        Ok(self.kit.api::<DataPlane>().patch(NAME, &PatchParams::default(), &Patch::Merge(body)).await?)
    }

    /// `kubectl patch` of the walk: another image.
    async fn image(&self, image: &str) -> Result<()> {
        self.proxy_field("image", json!(image)).await
    }

    /// Sets a field of the gateway's container.
    async fn proxy_field(&self, field: &str, value: Value) -> Result<()> {
        let path = format!("/spec/deployment/podTemplateSpec/spec/containers/0/{field}");
        let body = json!([{ "op": "add", "path": path, "value": value }]);
        let patch = Patch::Json::<()>(serde_json::from_value(body)?);
        self.kit.api::<DataPlane>().patch(NAME, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// `kubectl annotate` of the walk.
    async fn approve(&self) -> Result<()> {
        self.patch(json!({ "metadata": { "annotations": { PROMOTE_WHEN_READY: "true" } } })).await?;
        Ok(())
    }

    /// Waits until `RolledOut` has this reason for the newest generation; returns its message.
    async fn reason(&self, reason: &str) -> Result<String> {
        let found =
            self.kit.wait::<DataPlane>(NAME, &format!("become {reason}"), |dataplane| is(dataplane, reason)).await?;
        Ok(found.as_ref().and_then(rolled_out).map(|condition| condition.message.clone()).unwrap_or_default())
    }

    /// The same, for an upgrade that goes on while the newest generation is refused.
    async fn still(&self, reason: &str) -> Result<()> {
        let says = |dataplane: Option<&DataPlane>| dataplane.and_then(reason_of).as_deref() == Some(reason);
        self.kit.wait::<DataPlane>(NAME, &format!("become {reason}"), says).await?;
        Ok(())
    }

    /// Waits until a condition of a DataPlane holds with this reason; returns its message.
    async fn condition(&self, type_: &str, reason: &str) -> Result<String> {
        let find = |dataplane: &DataPlane| {
            let conditions = &dataplane.status.as_ref()?.conditions;
            conditions.iter().find(|condition| condition.type_ == type_ && condition.reason == reason).cloned()
        };
        let found = self
            .kit
            .wait::<DataPlane>(NAME, &format!("be {type_}/{reason}"), |dataplane| dataplane.and_then(find).is_some())
            .await?;
        Ok(found.as_ref().and_then(find).map(|condition| condition.message).unwrap_or_default())
    }

    /// Waits until `Ready` has this reason for the newest generation.
    async fn ready(&self, reason: &str) -> Result<DataPlane> {
        let says = |dataplane: &DataPlane| {
            let conditions = dataplane.status.as_ref().map(|status| &status.conditions);
            conditions.into_iter().flatten().any(|condition| {
                condition.type_ == "Ready"
                    && condition.reason == reason
                    && condition.observed_generation == dataplane.metadata.generation
            })
        };
        let what = format!("be Ready/{reason} for its newest generation");
        self.kit.wait::<DataPlane>(NAME, &what, |found| found.is_some_and(says)).await?.context("it is gone")
    }

    /// Waits until one object, and no other, has these labels, and until it is as wanted.
    async fn only<K>(&self, labels: &[(&str, &str)], what: &str, wanted: impl Fn(&K) -> bool) -> Result<Arc<K>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize
            + Send
            + Sync
            + 'static,
    {
        let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
        let found =
            self.kit.wait_all::<K>(&labels.join(","), what, |found| matches!(found, [only] if wanted(only))).await?;
        found.into_iter().next().context("nothing was found")
    }

    /// Waits until a state has one Deployment, and until it is as wanted.
    async fn deployment(
        &self,
        state: State,
        what: &str,
        wanted: impl Fn(&Deployment) -> bool,
    ) -> Result<Arc<Deployment>> {
        self.only(&[(names::DEPLOYMENT_STATE, state.as_str())], what, wanted).await
    }

    /// Waits until a state has one Service of a role, and until it is as wanted.
    async fn service(
        &self,
        state: State,
        role: Role,
        what: &str,
        wanted: impl Fn(&Service) -> bool,
    ) -> Result<Arc<Service>> {
        self.only(&[(names::SERVICE_STATE, state.as_str()), (names::SERVICE_TYPE, role.as_str())], what, wanted).await
    }

    /// Waits until a Service has one EndpointSlice with so many endpoints.
    async fn endpoints(&self, state: State, role: Role, count: usize) -> Result<()> {
        let service = self.service(state, role, "become one", |_| true).await?.name_any();
        let has = |slice: &EndpointSlice| slice.endpoints.iter().flatten().count() == count;
        self.only(&[("kubernetes.io/service-name", &service)], &format!("have {count} endpoints"), has).await?;
        Ok(())
    }

    /// Where users reach the gateway: the address of the load balancer, by status.
    async fn url(&self) -> Result<String> {
        let status = self.ready("Ready").await?.status.unwrap_or_default();
        let address = status.addresses.into_iter().find(|address| address.source_type.ends_with("LoadBalancer"));
        Ok(format!("http://{}/", address.context("no address of a load balancer")?.value))
    }

    /// Waits for rest, and checks all that rest means: the live Services reach a Deployment with this image, the
    /// annotation is gone, one live and one empty preview Deployment are left, and the record says how it ended.
    async fn at_rest(&self, image: &str) -> Result<()> {
        self.reason("WaitingForChange").await?;
        let dataplane = self.dataplane().await?;
        ensure!(!dataplane.annotations().contains_key(PROMOTE_WHEN_READY), "the annotation is still there");
        let (ready, rolled_out) =
            (generation(&dataplane, "Ready"), rolled_out(&dataplane).and_then(|c| c.observed_generation));
        ensure!(
            ready == dataplane.metadata.generation && rolled_out == ready,
            "generations differ: {ready:?} {rolled_out:?}"
        );
        ensure!(self.live_image().await? == image, "live runs {}, not {image}", self.live_image().await?);
        let deployments = self.deployments().await?;
        let states: Vec<_> =
            deployments.iter().map(|d| (state(d), d.spec.as_ref().and_then(|spec| spec.replicas))).collect();
        ensure!(
            states.len() == 2
                && states.contains(&("live".into(), Some(1)))
                && states.contains(&("preview".into(), Some(0))),
            "Deployments at rest: {states:?}"
        );
        let promotions = self.promotions().await?;
        ensure!(promotions.iter().all(|promotion| verdict(promotion).is_some()), "a Promotion is still open at rest");
        Ok(())
    }

    async fn dataplane(&self) -> Result<DataPlane> {
        Ok(self.kit.api::<DataPlane>().get(NAME).await?)
    }

    async fn deployments(&self) -> Result<Vec<Deployment>> {
        Ok(self.kit.api::<Deployment>().list(&ListParams::default()).await?.items)
    }

    /// Promotions, oldest first.
    async fn promotions(&self) -> Result<Vec<Promotion>> {
        let mut promotions = self.kit.api::<Promotion>().list(&ListParams::default()).await?.items;
        promotions.sort_by_key(|promotion| promotion.spec.generation);
        Ok(promotions)
    }

    /// Waits until this attempt of the first gate of an upgrade is on record and runs.
    async fn running(&self, attempt: i32) -> Result<()> {
        let what = (1, "run its gate");
        let runs = |promotion: &Promotion| {
            let gate = promotion.status.as_ref().and_then(|status| status.gates.first());
            gate.is_some_and(|gate| (gate.outcome, gate.attempt) == (GateOutcome::Running, attempt))
        };
        wait_for_many(self.kit.api(), watcher::Config::default(), what, PATIENCE, runs, |_| {}).await
    }

    async fn newest(&self) -> Result<Promotion> {
        self.promotions().await?.pop().context("there is no Promotion")
    }

    /// The image behind the live ingress Service; both live Services have to agree.
    async fn live_image(&self) -> Result<String> {
        let services = self
            .kit
            .api::<Service>()
            .list(&ListParams::default().labels(&format!("{}=live", names::SERVICE_STATE)))
            .await?;
        let selectors: Vec<_> = services
            .iter()
            .filter_map(|service| service.spec.as_ref()?.selector.as_ref()?.get(names::SELECTOR))
            .collect();
        ensure!(selectors.len() == 2 && selectors[0] == selectors[1], "live Services select {selectors:?}");
        let deployments = self.deployments().await?;
        let live = deployments.iter().find(|deployment| deployment.labels().get(names::SELECTOR) == Some(selectors[0]));
        let template = live
            .and_then(|live| live.spec.as_ref()?.template.spec.as_ref())
            .context("no Deployment behind the live Services")?;
        template.containers[0].image.clone().context("no image")
    }

    /// Installs a plugin from bytes, gzipped, and waits until it is ready.
    async fn plugin(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.plugin_bytes(name, &gzip(bytes)?).await?;
        let ready = |plugin: Option<&GatePlugin>| {
            plugin.is_some_and(|plugin| plugin_condition(plugin).is_some_and(|c| c.status == "True"))
        };
        self.kit.wait::<GatePlugin>(name, "become ready", ready).await?;
        Ok(())
    }

    /// Puts whatever bytes into a ConfigMap and points a plugin at them.
    async fn plugin_bytes(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let apply = PatchParams::apply("test").force();
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            binary_data: Some([("gate.wasm".to_owned(), ByteString(bytes.to_vec()))].into()),
            ..ConfigMap::default()
        };
        self.kit.api::<ConfigMap>().patch(name, &apply, &Patch::Apply(map)).await?;
        self.point(name, name, "gate.wasm").await
    }

    /// Points a plugin at a key of a ConfigMap.
    async fn point(&self, plugin: &str, map: &str, key: &str) -> Result<()> {
        let body = json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "GatePlugin", "metadata": { "name": plugin },
            "spec": { "source": { "configMap": { "name": map, "key": key } } },
        });
        self.kit.api::<GatePlugin>().patch(plugin, &PatchParams::apply("test").force(), &Patch::Apply(body)).await?;
        Ok(())
    }

    /// The gate of the walk.
    async fn http_smoke(&self) -> Result<()> {
        self.plugin("http-smoke", &http_smoke()?).await
    }

    /// The only policy of a test: short lives, and these gates.
    async fn policy(&self, gates: Value) -> Result<()> {
        let body = json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "PromotionPolicy", "metadata": { "name": "policy" },
            "spec": { "selector": {}, "scaleDownDelaySeconds": 1, "gates": gates },
        });
        self.kit
            .api::<PromotionPolicy>()
            .patch("policy", &PatchParams::apply("test").force(), &Patch::Apply(body))
            .await?;
        Ok(())
    }

    async fn delete_policy(&self) -> Result<()> {
        self.kit.api::<PromotionPolicy>().delete("policy", &Default::default()).await?;
        Ok(())
    }

    /// Waits until the policy's condition has this reason; returns its message.
    async fn policy_says(&self, reason: &str) -> Result<String> {
        let find = |policy: &PromotionPolicy| {
            policy.status.as_ref()?.conditions.first().filter(|c| c.reason == reason).cloned()
        };
        let found = self
            .kit
            .wait::<PromotionPolicy>("policy", &format!("say {reason}"), |policy| policy.and_then(find).is_some())
            .await?;
        Ok(found.as_ref().and_then(find).map(|condition| condition.message).unwrap_or_default())
    }

    /// Waits until a plugin's condition `Ready` has this reason; returns its message.
    async fn plugin_says(&self, plugin: &str, reason: &str) -> Result<String> {
        let find =
            |plugin: &GatePlugin| plugin_condition(plugin).filter(|condition| condition.reason == reason).cloned();
        let found = self
            .kit
            .wait::<GatePlugin>(plugin, &format!("say {reason}"), |plugin| plugin.and_then(find).is_some())
            .await?;
        Ok(found.as_ref().and_then(find).map(|condition| condition.message).unwrap_or_default())
    }

    /// Waits for an Event of the DataPlane with this reason; returns its note.
    async fn event(&self, reason: &str) -> Result<String> {
        event(self.kit, reason).await
    }
}

/// Waits for an Event of the test's namespace with this reason; returns its note.
async fn event(kit: &Kit, reason: &str) -> Result<String> {
    let events = watcher(kit.api::<Event>(), watcher::Config::default()).touched_objects();
    let about = |event: Result<Event, watcher::Error>| {
        let event = event.ok().filter(|event| event.reason.as_deref() == Some(reason));
        std::future::ready(event.and_then(|event| event.note))
    };
    let mut notes = std::pin::pin!(events.filter_map(about));
    let note = tokio::time::timeout(PATIENCE, notes.next()).await;
    note.with_context(|| format!("no Event {reason}"))?.context("the watch ended")
}

/// The DataPlane of the walk with this image.
fn manifest(image: &str) -> String {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/bluegreen.yaml"));
    text.unwrap_or_default().replace("kong:3.9", image)
}

/// A DataPlane with this spec.
fn manifest_of(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "gateway-operator.konghq.com/v1beta1", "kind": "DataPlane", "metadata": { "name": name },
        "spec": spec,
    })
}

/// DataPlanes as they are on the wire: our own type would drop what it does not know, and fill in what is missing.
fn wire(kit: &Kit) -> Api<DynamicObject> {
    Api::namespaced_with(kit.client.clone(), &kit.namespace, &ApiResource::erase::<DataPlane>(&()))
}

/// The container of a gateway, as short as it can be.
fn proxy(image: &str) -> Value {
    json!({ "name": "proxy", "image": image })
}

/// The gate of the walk, as bytes.
fn http_smoke() -> Result<Vec<u8>> {
    let built = sluice_plugins::build(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    let gate = built.into_iter().find(|gate| gate.name == "http-smoke").context("http-smoke was not built")?;
    Ok(std::fs::read(gate.path)?)
}

/// One gate of http-smoke with these settings.
fn smoke(settings: Value) -> Value {
    json!([{ "name": "smoke", "pluginRef": { "name": "http-smoke" }, "settings": settings }])
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn rolled_out(dataplane: &DataPlane) -> Option<&Condition> {
    dataplane.status.as_ref()?.rollout.as_ref()?.conditions.iter().find(|condition| condition.type_ == "RolledOut")
}

fn is(dataplane: Option<&DataPlane>, reason: &str) -> bool {
    dataplane.is_some_and(|dataplane| {
        rolled_out(dataplane)
            .is_some_and(|c| c.reason == reason && c.observed_generation == dataplane.metadata.generation)
    })
}

fn reason_of(dataplane: &DataPlane) -> Option<String> {
    rolled_out(dataplane).map(|condition| condition.reason.clone())
}

fn generation(dataplane: &DataPlane, type_: &str) -> Option<i64> {
    dataplane.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == type_)?.observed_generation
}

fn plugin_condition(plugin: &GatePlugin) -> Option<&Condition> {
    plugin.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == "Ready")
}

fn verdict(promotion: &Promotion) -> Option<Verdict> {
    promotion.status.as_ref()?.verdict
}

fn state(deployment: &Deployment) -> String {
    deployment.labels().get(names::DEPLOYMENT_STATE).cloned().unwrap_or_default()
}
