//! READS. From the caches, never from the API but for the one question of [`confirm`]: everything that concerns one
//! DataPlane.

pub mod caches;
pub mod confirm;

use std::{collections::BTreeMap, sync::Arc};

use kube::{Resource, ResourceExt};

use self::caches::Caches;
use crate::{
    api::DataPlane,
    model::{
        Observed,
        names::{self, Role, State},
        observed::Record,
    },
};

/// What was found for `dataplane`. Trials, connections and plugins are facts of the process: the caller adds them.
#[must_use]
pub fn look(caches: &Caches, dataplane: &DataPlane) -> Observed {
    let uid = dataplane.uid().unwrap_or_default();
    let namespace = dataplane.namespace().unwrap_or_default();
    let name = dataplane.name_any();
    let mut services = BTreeMap::new();
    for service in caches.services.state_filter(|service| owned(service, &uid)) {
        if let Some(place) = place(service.labels()) {
            services.insert(place, service);
        }
    }
    let mut promotions = caches.promotions.state_filter(|promotion| owned(promotion, &uid));
    promotions.sort_by_key(|promotion| (promotion.metadata.creation_timestamp.clone(), promotion.spec.generation));
    Observed {
        status: dataplane.status.clone(),
        services,
        deployments: caches.deployments.state_filter(|deployment| owned(deployment, &uid)),
        secrets: caches.secrets.state_filter(|secret| owned(secret, &uid)),
        pods: caches.pods.state_filter(|pod| {
            pod.namespace().as_deref() == Some(&namespace)
                && pod.labels().get(names::APP) == Some(&name)
                && pod.metadata.deletion_timestamp.is_none()
        }),
        slices: caches.slices.state_filter(|slice| {
            slice.namespace().as_deref() == Some(&namespace) && slice.labels().get(names::APP) == Some(&name)
        }),
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

fn record(revision: &Arc<k8s_openapi::api::apps::v1::ControllerRevision>) -> Option<Record> {
    Some(Record {
        name: revision.name_any(),
        revision: revision.annotations().get(names::REVISION)?.as_str().into(),
        wish: serde_json::from_value(revision.data.as_ref()?.0.clone()).ok()?,
        ordinal: revision.revision,
    })
}
