//! READS. From the caches, never from the API but for the one question of [`confirm`]: everything that concerns one
//! DataPlane.

pub mod caches;
pub mod confirm;

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use serde::Deserialize as _;

use self::caches::Caches;
use crate::{
    api::DataPlane,
    cluster::{cache::Owned, packed::Kept},
    model::{
        Observed, Policies,
        names::{self, Role, State},
        observed::{Record, RecordData, is_terminating},
        policies::OfCluster,
    },
};

/// The policies that may concern the DataPlanes of a namespace.
#[must_use]
pub fn policies(caches: &Caches, namespace: &str) -> Policies {
    let cluster = caches.cluster.as_ref().map(|cluster| OfCluster {
        policies: cluster.policies.state(),
        labels: cluster
            .namespaces
            .get(&ObjectRef::new(namespace))
            .map(|namespace| namespace.metadata.labels.clone().unwrap_or_default()),
    });
    Policies { own: caches.policies.state_filter(|policy| policy.namespace().as_deref() == Some(namespace)), cluster }
}

/// What was found for `dataplane`. Trials, connections and plugins are facts of the process: the caller adds them.
#[must_use]
pub fn look(caches: &Caches, dataplane: &DataPlane) -> Observed {
    let uid = dataplane.uid().unwrap_or_default();
    let namespace = dataplane.namespace().unwrap_or_default();
    let name = dataplane.name_any();
    let slices = caches.slices.of(&namespace, &name);
    let asked = dataplane.spec.network.as_ref().and_then(|network| network.services.as_ref()?.ingress.as_ref());
    let asked = asked.and_then(|ingress| ingress.name.as_deref());
    let home = |service: &Service| home(service, &name, &uid, asked);
    let (services, twins) = places(own(&caches.services, &namespace, &name, &uid), asked, home, &slices);
    let mut promotions = own(&caches.promotions, &namespace, &name, &uid);
    // By what cannot go back: a clock can.
    promotions.sort_by_key(|promotion| (promotion.spec.generation, promotion.metadata.creation_timestamp.clone()));
    Observed {
        status: dataplane.status.clone(),
        services,
        twins,
        autoscalers: own(&caches.autoscalers, &namespace, &name, &uid),
        budgets: own(&caches.budgets, &namespace, &name, &uid),
        deployments: own(&caches.deployments, &namespace, &name, &uid),
        secrets: own(&caches.secrets, &namespace, &name, &uid),
        pods: caches.pods.of(&namespace, &name).into_iter().filter(|pod| !is_terminating(pod.as_ref())).collect(),
        slices,
        records: own(&caches.records, &namespace, &name, &uid).iter().filter_map(record).collect(),
        promotions,
        ..Observed::default()
    }
}

/// Ours by owner: one of the same name may have been another.
fn own<K: Kept>(kept: &Owned<K>, namespace: &str, name: &str, uid: &str) -> Vec<Arc<K>> {
    let mut found = kept.of(namespace, name);
    found.retain(|object| object.owner_references().iter().any(|owner| owner.uid == uid));
    found
}

/// The place of a Service: by its name, which nobody can change, or by its labels where Kong's operator has named it.
fn home(service: &Service, dataplane: &str, uid: &str, asked: Option<&str>) -> Option<(State, Role)> {
    const ALL: [(State, Role); 4] = [
        (State::Live, Role::Ingress),
        (State::Live, Role::Admin),
        (State::Preview, Role::Ingress),
        (State::Preview, Role::Admin),
    ];
    let name = service.name_any();
    if asked == Some(&*name) {
        return Some((State::Live, Role::Ingress));
    }
    let made = ALL.into_iter().find(|(state, role)| names::service(dataplane, uid, *role, *state) == name);
    made.or_else(|| labelled(service.labels()))
}

fn labelled(labels: &BTreeMap<String, String>) -> Option<(State, Role)> {
    let state = match labels.get(names::SERVICE_STATE)?.as_str() {
        "live" => State::Live,
        "preview" => State::Preview,
        _ => return None,
    };
    let role = match labels.get(names::SERVICE_TYPE)?.as_str() {
        "ingress" => Role::Ingress,
        "admin" => Role::Admin,
        _ => return None,
    };
    Some((state, role))
}

/// The Service in each place.
type Places = BTreeMap<(State, Role), Arc<Service>>;

/// One Service for each place, and the others. Of several: the one that has the name the user asks for, one that nobody
/// has deleted, the one with most addresses of a load balancer, with most slices and ready endpoints, the oldest.
fn places(
    mut found: Vec<Arc<Service>>,
    asked: Option<&str>,
    home: impl Fn(&Service) -> Option<(State, Role)>,
    slices: &[Arc<EndpointSlice>],
) -> (Places, Vec<Arc<Service>>) {
    let of = |service: &Service| {
        let name = service.name_any();
        slices.iter().filter(move |slice| slice.labels().get("kubernetes.io/service-name") == Some(&name))
    };
    let ready = |slice: &Arc<EndpointSlice>| {
        let endpoints = slice.endpoints.iter().flatten();
        endpoints.filter(|one| one.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)).count()
    };
    found.sort_by_cached_key(|service| {
        let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        (
            asked.is_some_and(|asked| service.name_any() != asked),
            is_terminating(service.as_ref()),
            Reverse((balancer.map_or(0, Vec::len), of(service).count(), of(service).map(ready).sum::<usize>())),
            service.creation_timestamp(),
            service.name_any(),
        )
    });
    let (mut services, mut twins) = (BTreeMap::new(), Vec::new());
    for service in found {
        match home(&service) {
            Some(place) if !services.contains_key(&place) => {
                services.insert(place, service);
            }
            // One without a place is not ours to judge: somebody took its labels away.
            Some(_) => twins.push(service),
            None => {}
        }
    }
    (services, twins)
}

fn record(revision: &Arc<k8s_openapi::api::apps::v1::ControllerRevision>) -> Option<Record> {
    let RecordData { wish, template } = RecordData::deserialize(&revision.data.as_ref()?.0).ok()?;
    Some(Record {
        name: Some(revision.name_any()),
        version: revision.resource_version(),
        revision: revision.annotations().get(names::REVISION)?.as_str().into(),
        wish,
        template,
        ordinal: revision.revision,
    })
}
