//! `scale`: 300 DataPlanes at once, on a cluster whose Pods are played by kwok.
//!
//! | row | what |
//! |---|---|
//! | `floor_s` | what 300 DataPlanes at rest consist of, made directly by a client with the operator's concurrency |
//! | `created_over_floor` | 300 created -> all at rest and ready, over the floor |
//! | `upgraded_over_floor` | 300 patched and approved -> all promoted, the new image live, over the floor |
//! | `rss_300_mb` | resident memory of the operator, `VmRSS`: the larger of after creation and after the upgrades |
//! | `writes_per_object`, `writes_per_upgrade` | the operator's writes for each DataPlane, from the audit log, Events apart |
//! | `unexpected_conflicts` | 409 to writes that did not ask for it |
//!
//! The floor is taken from what the operator made of one DataPlane: its Deployments, Services, Secrets and status, 300
//! times, each DataPlane's in the operator's order. It ends when all live Deployments are available; the DataPlanes
//! themselves are there before. Gateways have a Service of type ClusterIP: with addresses to give, the cluster's stand-in
//! for a cloud, which gives them one by one, would be part of what is measured. The drain of the replaced side, a delay
//! that users choose, is not part of an upgrade's time, but its writes are counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::gateways::{self, LIVE_DEPLOYMENTS, PATIENCE_FOR_MANY, another, dataplanes, is_promoted, rests};
use super::row::{Row, count};
use super::tally::Tally;
use crate::audit::Audit;
use crate::cluster::Cluster;
use crate::install::{self, Build};
use crate::kit::{self, Kit};
use crate::progress::Step;
use crate::wait::{wait, wait_for_many};

/// How many DataPlanes.
const MANY: usize = 300;
/// How many of them rest.
const FEW: usize = 50;
/// How long rest is looked at: the one time that is waited for.
const REST: Duration = Duration::from_secs(20);
/// Passes of the operator at the same time, and so requests of the client that stands for it.
const AT_ONCE: usize = 16;
/// The DataPlane whose objects are the floor's templates. A word that is in no object but as its name.
const ORIGINAL: &str = "original";
/// What everything is upgraded to.
const IMAGE: &str = "kong:3.10";

/// Measures all rows.
pub fn measure() -> Result<Vec<Row>> {
    let cluster = Cluster::simulated();
    cluster.with_it_up(|| {
        install::without_operator(&cluster, Build::Optimised)?;
        let templates = kit::run_on(&cluster, Templates::take)?;
        let (floor, namespace) = kit::run_on(&cluster, async |kit| templates.floor(kit).await)?;
        // Its Pods are not to end while the operator is measured.
        cluster.inside(|| async {
            let namespaces: Api<Namespace> = Api::all(cluster.client().await?);
            wait(namespaces, &namespace, "go", PATIENCE_FOR_MANY, |found| found.is_none()).await.map(drop)
        })?;
        kit::run_on(&cluster, async |kit| operate(kit, floor).await)
    })
}

/// The requests of an operator at rest.
pub fn rest(cluster: &Cluster) -> Result<Row> {
    install::without_operator(cluster, Build::Optimised)?;
    kit::run_on(cluster, async |kit| {
        let _operator = kit.unwatched_operator().await?;
        let original = found(kit).await?;
        create(kit, &original, FEW).await?;
        gateways::told(kit, 1 + FEW).await?;
        let step = Step::begin(&format!("{FEW} DataPlanes at rest"));
        let audit = Audit::now(cluster)?;
        tokio::time::sleep(REST).await;
        step.end(true);
        let tally = Tally::since(&audit)?;
        tally.print(1);
        Ok(Row::at_most("requests_at_rest_20s", count(tally.requests()), "requests", 0.0))
    })
}

async fn operate(kit: &Kit, floor: Duration) -> Result<Vec<Row>> {
    let operator = kit.unwatched_operator().await?;
    let original = found(kit).await?;
    dataplanes(kit).delete(ORIGINAL, &DeleteParams::default()).await?;
    wait(dataplanes(kit), ORIGINAL, "go", PATIENCE_FOR_MANY, |found| found.is_none()).await?;

    let audit = Audit::now(&kit.cluster)?;
    let created = create(kit, &original, MANY).await?;
    gateways::told(kit, 1 + MANY).await?;
    let creation = Tally::since(&audit)?;
    creation.print(MANY);
    let memory = operator.memory()?;

    let second = Audit::now(&kit.cluster)?;
    let upgraded = upgrade(kit, &original).await?;
    let step = Step::begin("replaced sides drained");
    let drained = many(kit, &step, MANY, "come to rest", rests).await;
    step.end(drained.is_ok());
    drained?;
    gateways::told(kit, 1 + 2 * MANY).await?;
    let upgrades = Tally::since(&second)?;
    upgrades.print(MANY);

    let over = |time: Duration| time.as_secs_f64() / floor.as_secs_f64();
    let each = |tally: &Tally| count(tally.writes()) / count(MANY);
    let conflicts = creation.unexpected_conflicts() + upgrades.unexpected_conflicts();
    Ok(vec![
        Row::reported("floor_s", floor.as_secs_f64(), "s"),
        Row::at_most("created_over_floor", over(created), "floors", 1.5),
        Row::at_most("upgraded_over_floor", over(upgraded), "floors", 2.0),
        Row::at_most("rss_300_mb", memory.max(operator.memory()?), "MiB", 60.0),
        Row::reported("writes_per_object", each(&creation), "writes"),
        Row::reported("writes_per_upgrade", each(&upgrades), "writes"),
        Row::at_most("unexpected_conflicts", count(conflicts), "writes", 0.0),
    ])
}

/// One DataPlane at rest, whose Services need no address.
async fn found(kit: &Kit) -> Result<DynamicObject> {
    gateways::create(kit, ORIGINAL)?;
    let services = json!({ "ingress": { "type": "ClusterIP" } });
    let patch = Patch::Merge(json!({ "spec": { "network": { "services": services } } }));
    dataplanes(kit).patch(ORIGINAL, &PatchParams::default(), &patch).await?;
    gateways::rest(kit, ORIGINAL).await
}

/// Creates DataPlanes and waits until all that there are rest; how long that took.
async fn create(kit: &Kit, original: &DynamicObject, number: usize) -> Result<Duration> {
    let step = Step::begin(&format!("{number} DataPlanes created, until all rest"));
    let there = dataplanes(kit).list(&ListParams::default()).await?.items.len();
    let api = dataplanes(kit);
    let began = Instant::now();
    let creation = each(number, async |name| {
        api.create(&PostParams::default(), &another(original, &name)).await?;
        Ok(())
    });
    let done = tokio::try_join!(creation, many(kit, &step, there + number, "come to rest", rests));
    let took = began.elapsed();
    step.end(done.is_ok());
    done.map(|_| took)
}

/// Patches all, approved, and waits until the new image is live everywhere; how long that took.
async fn upgrade(kit: &Kit, original: &DynamicObject) -> Result<Duration> {
    let step = Step::begin(&format!("{MANY} DataPlanes upgraded, until all are promoted"));
    let began = Instant::now();
    let patches = each(MANY, async |name| gateways::upgrade(kit, &another(original, &name), IMAGE).await.map(drop));
    let live = |deployment: &Deployment| image(deployment) == Some(IMAGE);
    let which = watcher::Config::default().labels(LIVE_DEPLOYMENTS);
    let deployments = wait_for_many(kit.api(), which, (MANY, "go live"), PATIENCE_FOR_MANY, live, |_| {});
    let done = tokio::try_join!(patches, many(kit, &step, MANY, "be promoted", is_promoted), deployments);
    let took = began.elapsed();
    step.end(done.is_ok());
    done.map(|_| took)
}

/// Waits until so many DataPlanes are as wanted.
async fn many(
    kit: &Kit,
    step: &Step,
    number: usize,
    what: &str,
    wanted: impl Fn(&DynamicObject) -> bool,
) -> Result<()> {
    let tell = |there| step.note(&format!("{there} of {number}"));
    wait_for_many(dataplanes(kit), watcher::Config::default(), (number, what), PATIENCE_FOR_MANY, wanted, tell).await
}

/// Does something for so many DataPlanes, a few at once.
async fn each(number: usize, work: impl AsyncFn(String) -> Result<()>) -> Result<()> {
    let names = (0..number).map(|number| Ok(format!("gateway-{number}")));
    stream::iter(names).try_for_each_concurrent(AT_ONCE, |name| work(name)).await
}

fn image(deployment: &Deployment) -> Option<&str> {
    deployment.spec.as_ref()?.template.spec.as_ref()?.containers.first()?.image.as_deref()
}

/// What the operator made of one DataPlane.
struct Templates {
    original: DynamicObject,
    secrets: Vec<Value>,
    services: Vec<Value>,
    deployments: Vec<Value>,
}

impl Templates {
    async fn take(kit: &Kit) -> Result<Self> {
        let _operator = kit.unwatched_operator().await?;
        let original = found(kit).await?;
        let uid = original.uid().context("it has no UID")?;
        Ok(Self {
            secrets: owned(kit.api::<Secret>(), &uid).await?,
            services: owned(kit.api::<Service>(), &uid).await?,
            deployments: owned(kit.api::<Deployment>(), &uid).await?,
            original,
        })
    }

    /// How long it takes to make the same for many DataPlanes, and the namespace it was made in.
    async fn floor(&self, kit: &Kit) -> Result<(Duration, String)> {
        let objects = [("Deployments", &self.deployments), ("Services", &self.services), ("Secrets", &self.secrets)];
        let parts: Vec<_> = objects.iter().map(|(kind, all)| format!("{} {kind}", all.len() * MANY)).collect();
        let uids = tokio::sync::Mutex::new(BTreeMap::new());
        each(MANY, async |name| {
            let made = dataplanes(kit).create(&PostParams::default(), &another(&self.original, &name)).await?;
            uids.lock().await.insert(name, made.uid().unwrap_or_default());
            Ok(())
        })
        .await?;
        let uids = uids.into_inner();

        let step = Step::begin(&format!("floor: {}", parts.join(", ")));
        let began = Instant::now();
        let writes = each(MANY, async |name| self.make(kit, &name, &uids[&name]).await);
        let which = watcher::Config::default().labels(LIVE_DEPLOYMENTS);
        let tell = |there| step.note(&format!("{there} of {MANY} available"));
        let available =
            wait_for_many(kit.api(), which, (MANY, "turn available"), PATIENCE_FOR_MANY, is_available, tell);
        let done = tokio::try_join!(writes, available);
        let took = began.elapsed();
        step.end(done.is_ok());
        done.map(|_| (took, kit.namespace.clone()))
    }

    /// Makes what belongs to one DataPlane, in the operator's order.
    async fn make(&self, kit: &Kit, name: &str, uid: &str) -> Result<()> {
        let copy = |template: &Value| self.copy(template, name, uid);
        for secret in &self.secrets {
            post::<Secret>(kit, copy(secret)?).await?;
        }
        for service in &self.services {
            post::<Service>(kit, copy(service)?).await?;
        }
        for deployment in &self.deployments {
            post::<Deployment>(kit, copy(deployment)?).await?;
        }
        let status = Patch::Merge(json!({ "status": copy(&self.original.data["status"])? }));
        dataplanes(kit).patch_status(name, &PatchParams::default(), &status).await?;
        Ok(())
    }

    /// The same for another DataPlane.
    fn copy(&self, template: &Value, name: &str, uid: &str) -> Result<Value> {
        let text = template.to_string().replace(ORIGINAL, name);
        Ok(serde_json::from_str(&text.replace(&self.original.uid().unwrap_or_default(), uid))?)
    }
}

/// The objects of a kind that belong to an owner, as they would be sent.
async fn owned<K>(api: Api<K>, owner: &str) -> Result<Vec<Value>>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    let all = api.list(&ListParams::default()).await?.items.into_iter();
    let owned = all.filter(|object| object.owner_references().iter().any(|reference| reference.uid == owner));
    let owned: Vec<_> = owned.map(|object| Ok(sent(serde_json::to_value(object)?))).collect::<Result<_>>()?;
    ensure!(!owned.is_empty(), "the DataPlane has no {}", K::plural(&()));
    Ok(owned)
}

/// An object without what the cluster added to it, and without what would keep it from being deleted.
fn sent(mut object: Value) -> Value {
    // A Service says itself that it wants none.
    let addresses: &[&str] = if object["spec"]["clusterIP"] == "None" { &[] } else { &["clusterIP", "clusterIPs"] };
    for (parent, added) in [
        ("", &["status"][..]),
        ("/metadata", &["uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "finalizers"]),
        ("/metadata", &["namespace"]),
        ("/metadata/annotations", &["deployment.kubernetes.io/revision"]),
        ("/spec", addresses),
    ] {
        let fields = object.pointer_mut(parent).and_then(Value::as_object_mut);
        fields.into_iter().for_each(|fields| fields.retain(|name, _| !added.contains(&name.as_str())));
    }
    object
}

async fn post<K>(kit: &Kit, object: Value) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Serialize
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    kit.api::<K>().create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    Ok(())
}

fn is_available(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let available = deployment.status.as_ref().and_then(|status| status.available_replicas);
    available.is_some_and(|available| Some(available) == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Value {
        json!({
            "kind": "Service",
            "metadata": {
                "name": "dataplane-admin-original-1", "namespace": "a", "uid": "u", "resourceVersion": "7",
                "finalizers": ["f"], "ownerReferences": [{ "name": ORIGINAL, "uid": "0-1-2" }],
            },
            "spec": { "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "selector": { "app": ORIGINAL } },
            "status": { "loadBalancer": {} },
        })
    }

    #[test]
    fn a_template_is_what_was_sent_and_a_copy_belongs_to_another() {
        let mut original: DynamicObject =
            serde_json::from_value(json!({ "metadata": { "name": ORIGINAL } })).expect("an object");
        original.metadata.uid = Some("0-1-2".into());
        let templates =
            Templates { original, secrets: Vec::new(), services: vec![sent(service())], deployments: Vec::new() };
        let copy = templates.copy(&templates.services[0], "gateway-0", "another").expect("a copy");
        assert_eq!(
            copy,
            json!({
                "kind": "Service",
                "metadata": {
                    "name": "dataplane-admin-gateway-0-1",
                    "ownerReferences": [{ "name": "gateway-0", "uid": "another" }],
                },
                "spec": { "selector": { "app": "gateway-0" } },
            })
        );
    }

    #[test]
    fn a_service_without_an_address_stays_one() {
        let headless = json!({ "spec": { "clusterIP": "None", "clusterIPs": ["None"] } });
        assert_eq!(sent(headless.clone()), headless);
    }

    #[test]
    fn a_deployment_is_available_when_all_its_pods_are() {
        let deployment = |replicas: i32, status: Value| {
            let object = json!({ "metadata": {}, "spec": { "replicas": replicas, "selector": {}, "template": {} }, "status": status });
            serde_json::from_value::<Deployment>(object).expect("a Deployment")
        };
        assert!(is_available(&deployment(1, json!({ "availableReplicas": 1 }))));
        assert!(!is_available(&deployment(2, json!({ "availableReplicas": 1 }))));
        assert!(!is_available(&deployment(1, json!({}))), "nobody has looked at it yet");
    }
}
