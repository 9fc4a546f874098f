//! One cache for each kind that a DataPlane depends on, filled from watches.

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Container, Pod, PodSpec, Secret, Service},
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Client, Resource, ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store, store::WriterDropped},
        watcher,
    },
};

use crate::{
    api::{DataPlane, Promotion, PromotionPolicy},
    cluster::{Scope, cache, writer::Object},
    model::names,
};

/// What every pass reads.
pub struct Caches {
    /// DataPlanes.
    pub dataplanes: Store<DataPlane>,
    /// Policies.
    pub policies: Store<PromotionPolicy>,
    /// Upgrades.
    pub promotions: Store<Promotion>,
    /// Wishes.
    pub records: Store<ControllerRevision>,
    /// Deployments of DataPlanes.
    pub deployments: Store<Deployment>,
    /// Services of DataPlanes.
    pub services: Store<Service>,
    /// Secrets of DataPlanes.
    pub secrets: Store<Secret>,
    /// HorizontalPodAutoscalers of DataPlanes.
    pub autoscalers: Store<HorizontalPodAutoscaler>,
    /// PodDisruptionBudgets of DataPlanes.
    pub budgets: Store<PodDisruptionBudget>,
    /// Pods of DataPlanes.
    pub pods: Store<Pod>,
    /// EndpointSlices of Services of DataPlanes.
    pub slices: Store<EndpointSlice>,
}

/// Whose reconcile a change asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concerns {
    /// One DataPlane.
    One(ObjectRef<DataPlane>),
    /// All of a namespace.
    Namespace(String),
}

impl Caches {
    /// Starts all watches. `changed` hears of every change, after the cache knows of it.
    pub fn start(client: &Client, scope: &Scope, changed: impl Fn(Concerns) + Clone + Send + Sync + 'static) -> Self {
        let managed = watcher::Config::default().labels(&format!("{}={}", names::MANAGED_BY, names::DATAPLANE));
        let ours = watcher::Config::default().labels(names::SELECTOR);
        let everything = watcher::Config::default;
        Self {
            dataplanes: cache::keep(
                scope.api(client),
                everything(),
                each(changed.clone(), |object: &DataPlane| Some(Concerns::One(ObjectRef::from_obj(object)))),
            ),
            policies: cache::keep(
                scope.api(client),
                everything(),
                each(changed.clone(), |object: &PromotionPolicy| object.namespace().map(Concerns::Namespace)),
            ),
            promotions: cache::keep(scope.api(client), everything(), each(changed.clone(), owner)),
            records: cache::keep(scope.api(client), managed.clone(), each(changed.clone(), owner)),
            deployments: cache::keep(scope.api(client), managed.clone(), each(changed.clone(), owner)),
            services: cache::keep(scope.api(client), managed.clone(), each(changed.clone(), owner)),
            secrets: cache::keep(scope.api(client), managed.clone(), each(changed.clone(), owner)),
            autoscalers: cache::keep(scope.api(client), managed.clone(), each(changed.clone(), owner)),
            budgets: cache::keep(scope.api(client), managed.clone(), each(changed.clone(), owner)),
            pods: cache::keep_trimmed(scope.api(client), ours, trim, each(changed.clone(), app)),
            slices: cache::keep(scope.api(client), managed, each(changed, app)),
        }
    }

    /// Waits until every cache has seen everything once: before that, what is missing is not known to be missing.
    ///
    /// # Errors
    /// Where a watch ended for good.
    pub async fn ready(&self) -> Result<(), WriterDropped> {
        let Self {
            dataplanes,
            policies,
            promotions,
            records,
            deployments,
            services,
            secrets,
            autoscalers,
            budgets,
            pods,
            slices,
        } = self;
        dataplanes.wait_until_ready().await?;
        policies.wait_until_ready().await?;
        promotions.wait_until_ready().await?;
        records.wait_until_ready().await?;
        deployments.wait_until_ready().await?;
        services.wait_until_ready().await?;
        secrets.wait_until_ready().await?;
        autoscalers.wait_until_ready().await?;
        budgets.wait_until_ready().await?;
        pods.wait_until_ready().await?;
        slices.wait_until_ready().await
    }

    /// Version, UID and whether it is terminating of an object as it is cached; what the writer's memory asks for.
    #[must_use]
    pub fn version(&self, namespace: &str, object: &Object) -> Option<(u64, String, bool)> {
        let (kind, name) = object;
        match *kind {
            "DataPlane" => version(&self.dataplanes, namespace, name),
            "Promotion" => version(&self.promotions, namespace, name),
            "ControllerRevision" => version(&self.records, namespace, name),
            "Deployment" => version(&self.deployments, namespace, name),
            "Service" => version(&self.services, namespace, name),
            "Secret" => version(&self.secrets, namespace, name),
            "HorizontalPodAutoscaler" => version(&self.autoscalers, namespace, name),
            "PodDisruptionBudget" => version(&self.budgets, namespace, name),
            _ => None,
        }
    }
}

/// Of a Pod only what tells how it is: its template is in its Deployment.
fn trim(pod: &mut Pod) {
    pod.metadata.annotations = None;
    if let Some(spec) = &mut pod.spec {
        let containers = std::mem::take(&mut spec.containers);
        let containers = containers.into_iter().map(|container| Container {
            name: container.name,
            ports: container.ports,
            ..Container::default()
        });
        *spec = PodSpec { containers: containers.collect(), host_network: spec.host_network, ..PodSpec::default() };
    }
}

fn version<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<(u64, String, bool)>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let object = store.get(&ObjectRef::new(name).within(namespace))?;
    let version = object.resource_version()?.parse().ok()?;
    Some((version, object.uid().unwrap_or_default(), object.meta().deletion_timestamp.is_some()))
}

fn each<K>(
    changed: impl Fn(Concerns) + Send + Sync + 'static,
    concerns: impl Fn(&K) -> Option<Concerns> + Send + Sync + 'static,
) -> impl Fn(&K) + Send + Sync + 'static {
    move |object| concerns(object).into_iter().for_each(&changed)
}

/// The DataPlane that controls an object.
fn owner<K: Resource<DynamicType = ()>>(object: &K) -> Option<Concerns> {
    let owner = object.owner_references().iter().find(|owner| owner.kind == "DataPlane")?;
    Some(Concerns::One(ObjectRef::new(&owner.name).within(object.namespace().as_deref()?)))
}

/// The DataPlane named in the label of a Pod or an EndpointSlice, whose owners are in between.
fn app<K: Resource<DynamicType = ()>>(object: &K) -> Option<Concerns> {
    Some(Concerns::One(ObjectRef::new(object.labels().get(names::APP)?).within(object.namespace().as_deref()?)))
}
