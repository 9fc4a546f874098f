//! One cache for each kind that a DataPlane depends on, filled from watches.

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Container, Namespace, Pod, PodSpec, Secret, Service},
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        reflector::{ObjectRef, Store, store::WriterDropped},
        watcher,
    },
};

use crate::{
    api::{ClusterPromotionPolicy, DataPlane, Promotion, PromotionPolicy},
    cluster::{
        Scope,
        cache::{self, Owned},
        packed::{Kept, Packed},
        writer::Object,
    },
    model::names,
};

/// What every pass reads.
pub struct Caches {
    /// DataPlanes.
    pub dataplanes: Store<DataPlane>,
    /// Policies.
    pub policies: Store<PromotionPolicy>,
    /// What belongs to no namespace; none for an operator that works in chosen ones.
    pub cluster: Option<OfCluster>,
    /// Upgrades.
    pub promotions: Owned<Promotion>,
    /// Wishes.
    pub records: Owned<ControllerRevision>,
    /// Deployments of DataPlanes.
    pub deployments: Owned<Deployment>,
    /// Services of DataPlanes.
    pub services: Owned<Service>,
    /// Secrets of DataPlanes.
    pub secrets: Owned<Secret>,
    /// HorizontalPodAutoscalers of DataPlanes.
    pub autoscalers: Owned<HorizontalPodAutoscaler>,
    /// PodDisruptionBudgets of DataPlanes.
    pub budgets: Owned<PodDisruptionBudget>,
    /// Pods of DataPlanes.
    pub pods: Owned<Pod>,
    /// EndpointSlices of Services of DataPlanes.
    pub slices: Owned<EndpointSlice>,
}

/// What of the cluster concerns DataPlanes.
pub struct OfCluster {
    /// Policies.
    pub policies: Store<ClusterPromotionPolicy>,
    /// Namespaces, by whose labels those policies choose.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
}

/// Whose reconcile a change asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concerns {
    /// One DataPlane.
    One(ObjectRef<DataPlane>),
    /// All of a namespace.
    Namespace(String),
    /// All there are.
    Everyone,
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
            cluster: (*scope == Scope::Cluster).then(|| OfCluster {
                policies: cache::keep(
                    Api::all(client.clone()),
                    everything(),
                    each(changed.clone(), |_: &ClusterPromotionPolicy| Some(Concerns::Everyone)),
                ),
                namespaces: cache::keep(
                    Api::all(client.clone()),
                    everything(),
                    each(changed.clone(), |object: &PartialObjectMeta<Namespace>| {
                        object.metadata.name.clone().map(Concerns::Namespace)
                    }),
                ),
            }),
            promotions: of(scope.api(client), everything(), &changed),
            records: of(scope.api(client), managed.clone(), &changed),
            deployments: of(scope.api(client), managed.clone(), &changed),
            services: of(scope.api(client), managed.clone(), &changed),
            secrets: of(scope.api(client), managed.clone(), &changed),
            autoscalers: of(scope.api(client), managed.clone(), &changed),
            budgets: of(scope.api(client), managed.clone(), &changed),
            pods: of(scope.api(client), ours, &changed),
            slices: of(scope.api(client), managed, &changed),
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
            cluster,
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
        if let Some(OfCluster { policies, namespaces }) = cluster {
            policies.wait_until_ready().await?;
            namespaces.wait_until_ready().await?;
        }
        promotions.store().wait_until_ready().await?;
        records.store().wait_until_ready().await?;
        deployments.store().wait_until_ready().await?;
        services.store().wait_until_ready().await?;
        secrets.store().wait_until_ready().await?;
        autoscalers.store().wait_until_ready().await?;
        budgets.store().wait_until_ready().await?;
        pods.store().wait_until_ready().await?;
        slices.store().wait_until_ready().await
    }

    /// Version, UID and whether it is terminating of an object as it is cached; what the writer's memory asks for.
    #[must_use]
    pub fn version(&self, namespace: &str, object: &Object) -> Option<(u64, String, bool)> {
        let (kind, name) = object;
        match *kind {
            "DataPlane" => version(self.dataplanes.get(&ObjectRef::new(name).within(namespace))?.as_ref()),
            "Promotion" => version(self.promotions.get(namespace, name)?.as_ref()),
            "ControllerRevision" => version(self.records.get(namespace, name)?.as_ref()),
            "Deployment" => version(self.deployments.get(namespace, name)?.as_ref()),
            "Service" => version(self.services.get(namespace, name)?.as_ref()),
            "Secret" => version(self.secrets.get(namespace, name)?.as_ref()),
            "HorizontalPodAutoscaler" => version(self.autoscalers.get(namespace, name)?.as_ref()),
            "PodDisruptionBudget" => version(self.budgets.get(namespace, name)?.as_ref()),
            _ => None,
        }
    }
}

/// Kinds of which everything is kept.
macro_rules! kept {
    ($($kind:ty: $owner:ident;)*) => {
        $(impl Kept for $kind {
            fn owner(&self) -> Option<String> {
                $owner(self)
            }
        })*
    };
}

kept! {
    Promotion: owner;
    ControllerRevision: owner;
    Deployment: owner;
    Service: owner;
    HorizontalPodAutoscaler: owner;
    PodDisruptionBudget: owner;
    EndpointSlice: app;
}

impl Kept for Secret {
    fn owner(&self) -> Option<String> {
        owner(self)
    }

    /// Of a Secret that says when it ends only that its parts are there: nobody here reads a key.
    fn trim(&mut self) {
        if self.annotations().contains_key(names::EXPIRES) {
            self.data.iter_mut().flat_map(|data| data.values_mut()).for_each(|part| part.0 = Vec::new());
        }
    }
}

impl Kept for Pod {
    fn owner(&self) -> Option<String> {
        app(self)
    }

    /// Of a Pod only what tells how it is: its template is in its Deployment.
    fn trim(&mut self) {
        self.metadata.annotations = None;
        if let Some(spec) = &mut self.spec {
            let containers = std::mem::take(&mut spec.containers);
            let containers = containers.into_iter().map(|container| Container {
                name: container.name,
                ports: container.ports,
                ..Container::default()
            });
            *spec = PodSpec { containers: containers.collect(), host_network: spec.host_network, ..PodSpec::default() };
        }
    }
}

fn version<K: Resource<DynamicType = ()>>(object: &K) -> Option<(u64, String, bool)> {
    let version = object.resource_version()?.parse().ok()?;
    Some((version, object.uid().unwrap_or_default(), object.meta().deletion_timestamp.is_some()))
}

fn each<K>(
    changed: impl Fn(Concerns) + Send + Sync + 'static,
    concerns: impl Fn(&K) -> Option<Concerns> + Send + Sync + 'static,
) -> impl Fn(&K) + Send + Sync + 'static {
    move |object| concerns(object).into_iter().for_each(&changed)
}

/// Keeps a kind by DataPlane; a change of it asks for a pass over that DataPlane.
fn of<K: Kept>(
    api: Api<Packed<K>>,
    config: watcher::Config,
    changed: &(impl Fn(Concerns) + Clone + Send + Sync + 'static),
) -> Owned<K> {
    let changed = changed.clone();
    cache::keep_owned(api, config, move |namespace, name| {
        changed(Concerns::One(ObjectRef::new(name).within(namespace)));
    })
}

/// The DataPlane that controls an object.
fn owner<K: Resource<DynamicType = ()>>(object: &K) -> Option<String> {
    object.owner_references().iter().find(|owner| owner.kind == "DataPlane").map(|owner| owner.name.clone())
}

/// The DataPlane named in the label of a Pod or an EndpointSlice, whose owners are in between.
fn app<K: Resource<DynamicType = ()>>(object: &K) -> Option<String> {
    object.labels().get(names::APP).cloned()
}
