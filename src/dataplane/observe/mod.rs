//! READS. From the caches, never from the API but for the one question of [`confirm`]: everything that concerns one
//! DataPlane.

pub mod caches;
pub mod confirm;

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Resource, ResourceExt};

use self::caches::Caches;
use crate::{
    api::DataPlane,
    model::{
        Observed,
        names::{self, Role, State},
        observed::{Record, RecordData, is_terminating},
    },
};

/// What was found for `dataplane`. Trials, connections and plugins are facts of the process: the caller adds them.
#[must_use]
pub fn look(caches: &Caches, dataplane: &DataPlane) -> Observed {
    let uid = dataplane.uid().unwrap_or_default();
    let namespace = dataplane.namespace().unwrap_or_default();
    let name = dataplane.name_any();
    let slices = caches.slices.state_filter(|slice| {
        slice.namespace().as_deref() == Some(&namespace) && slice.labels().get(names::APP) == Some(&name)
    });
    let asked = dataplane.spec.network.as_ref().and_then(|network| network.services.as_ref()?.ingress.as_ref());
    let asked = asked.and_then(|ingress| ingress.name.as_deref());
    let (services, twins) = places(caches.services.state_filter(|service| owned(service, &uid)), asked, &slices);
    let mut promotions = caches.promotions.state_filter(|promotion| owned(promotion, &uid));
    promotions.sort_by_key(|promotion| (promotion.metadata.creation_timestamp.clone(), promotion.spec.generation));
    Observed {
        status: dataplane.status.clone(),
        services,
        twins,
        autoscalers: caches.autoscalers.state_filter(|autoscaler| owned(autoscaler, &uid)),
        budgets: caches.budgets.state_filter(|budget| owned(budget, &uid)),
        deployments: caches.deployments.state_filter(|deployment| owned(deployment, &uid)),
        secrets: caches.secrets.state_filter(|secret| owned(secret, &uid)),
        pods: caches.pods.state_filter(|pod| {
            pod.namespace().as_deref() == Some(&namespace)
                && pod.labels().get(names::APP) == Some(&name)
                && pod.metadata.deletion_timestamp.is_none()
        }),
        slices,
        records: caches.records.state_filter(|record| owned(record, &uid)).iter().filter_map(record).collect(),
        promotions,
        ..Observed::default()
    }
}

/// Ours by owner, never by name.
fn owned<K: Resource>(object: &K, uid: &str) -> bool {
    object.owner_references().iter().any(|owner| owner.uid == uid)
}

fn place(labels: &BTreeMap<String, String>) -> Option<(State, Role)> {
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
        match place(service.labels()) {
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
    let RecordData { wish, template } = serde_json::from_value(revision.data.as_ref()?.0.clone()).ok()?;
    Some(Record {
        name: Some(revision.name_any()),
        revision: revision.annotations().get(names::REVISION)?.as_str().into(),
        wish,
        template,
        ordinal: revision.revision,
    })
}
