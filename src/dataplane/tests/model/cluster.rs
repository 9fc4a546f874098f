//! The machines of a cluster, each a step at a time: the Deployment controller, the kubelet, the controller of
//! EndpointSlices and the garbage collector.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use serde_json::{Value, json};

use super::{
    super::world::{
        api::entries,
        machines::{SERVICE_NAME, endpoint, owners},
    },
    apiserver::{Apiserver, Stored, labels, text},
    objects::{Key, Kind, wide},
};
use crate::model::names;

pub(super) use super::super::world::machines::is_ready;

/// Whose Pods do not become ready whatever anybody does.
pub(super) const BROKEN: &str = "broken";

/// One write of a machine.
#[derive(Debug)]
pub(super) enum Act {
    Make(Key, Value),
    Delete(Key),
    Status(Key, Value),
    Replace(Key, Value),
}

impl Act {
    pub(super) fn carry_out(&self, api: &mut Apiserver, now: &str) {
        match self {
            Self::Make(key, object) => api.make(*key, object.clone(), now),
            Self::Delete(key) => api.delete(*key, now),
            Self::Status(key, status) => {
                let name = wide(&[b"status", status.to_string().as_bytes()]);
                api.bend_alike(*key, name, |object| object["status"] = status.clone());
            }
            Self::Replace(key, slice) => {
                let name = wide(&[b"endpoints", slice["endpoints"].to_string().as_bytes()]);
                api.bend_alike(*key, name, |object| object["endpoints"] = slice["endpoints"].clone());
            }
        }
    }
}

pub(super) fn restarts(pod: &Value) -> i64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default()
}

/// What a Deployment or a Service selects.
pub(super) fn side(object: &Value) -> &str {
    let selector = object.pointer("/spec/selector/matchLabels").unwrap_or(&object["spec"]["selector"]);
    selector[names::SELECTOR].as_str().unwrap_or_default()
}

/// The Pods of a Deployment.
pub(super) fn pods_of(api: &Apiserver, deployment: Key) -> Vec<(Key, &Stored)> {
    let name = deployment.name();
    api.all(Kind::Pod).filter(|(_, pod)| text(pod.value(), "/metadata/generateName") == &*name).collect()
}

type Acts = Arc<Vec<Act>>;

thread_local! {
    static KNOWN: RefCell<HashMap<u128, Acts>> = RefCell::default();
}

/// From memory: the same objects ask for the same.
fn known(about: &[&Stored], salt: u8, work: impl FnOnce() -> Vec<Act>) -> Acts {
    let mut parts = vec![u128::from(salt).to_le_bytes()];
    parts.extend(about.iter().map(|stored| stored.content.exact.to_le_bytes()));
    let key = wide(&parts.iter().map(<[u8; 16]>::as_slice).collect::<Vec<_>>());
    if let Some(acts) = KNOWN.with_borrow(|known| known.get(&key).cloned()) {
        return acts;
    }
    let acts = Arc::new(work());
    KNOWN.with_borrow_mut(|known| known.insert(key, Arc::clone(&acts)));
    acts
}

/// What the Deployment controller does next.
pub(super) fn controller(api: &Apiserver, deployment: Key) -> Acts {
    let Some(stored) = api.get(deployment) else { return Acts::default() };
    let pods = pods_of(api, deployment);
    let about: Vec<_> = std::iter::once(stored).chain(pods.iter().map(|(_, pod)| *pod)).collect();
    known(&about, 0, || roll(deployment, stored.value(), &pods))
}

fn roll(key: Key, deployment: &Value, pods: &[(Key, &Stored)]) -> Vec<Act> {
    let template = &deployment["spec"]["template"];
    let hash = names::hash(&[&template.to_string()], 6);
    let count = usize::try_from(deployment["spec"]["replicas"].as_i64().unwrap_or_default()).unwrap_or_default();
    let is_fresh = |pod: &Value| labels(pod).get(names::TEMPLATE_HASH).is_some_and(|label| *label == *hash);
    let (fresh, old): (Vec<(Key, &Stored)>, Vec<_>) = pods.iter().copied().partition(|(_, pod)| is_fresh(pod.value()));
    let ready = |pods: &[(Key, &Stored)]| pods.iter().filter(|(_, pod)| is_ready(pod.value())).count();
    let mut acts = Vec::new();
    if fresh.len() < count {
        let free = (0..).map(|slot| Key::of(Kind::Pod, &format!("{}-{hash}-{slot}", key.name())));
        let free = free.filter(|name| pods.iter().all(|(known, _)| known != name));
        acts.extend(free.take(count - fresh.len()).map(|pod| Act::Make(pod, start(key, &hash, template))));
    }
    let mut surplus: Vec<_> = fresh.iter().map(|(key, pod)| (is_ready(pod.value()), *key)).collect();
    surplus.sort();
    acts.extend(surplus.iter().take(fresh.len().saturating_sub(count)).map(|(_, key)| Act::Delete(*key)));
    if fresh.len() == count && ready(&fresh) == count {
        acts.extend(old.iter().map(|(key, _)| Act::Delete(*key)));
    }
    if acts.is_empty() {
        let available = ready(&fresh) + ready(&old);
        let status = json!({
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": pods.len(), "updatedReplicas": fresh.len(),
            "readyReplicas": available, "availableReplicas": available,
        });
        if deployment["status"] != status {
            acts.push(Act::Status(key, status));
        }
    }
    acts
}

fn start(deployment: Key, hash: &str, template: &Value) -> Value {
    let deployment = deployment.name();
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": *deployment,
            "labels": template["metadata"]["labels"],
            "ownerReferences": owners(&deployment, hash),
        },
        "spec": { "containers": [{
            "name": names::PROXY,
            "image": template["spec"]["containers"][0]["image"],
            "ports": template["spec"]["containers"][0]["ports"],
        }] },
    });
    pod["metadata"]["labels"][names::TEMPLATE_HASH] = hash.into();
    pod["status"] = status(&pod, false, 0);
    pod
}

/// A Pod turns ready, or is not any more.
pub(super) fn turn(api: &mut Apiserver, pod: Key, ready: bool, restarts: i64) {
    let name = wide(&[b"turn", &[u8::from(ready)], &restarts.to_le_bytes()]);
    api.bend_alike(pod, name, |pod| pod["status"] = status(pod, ready, restarts));
}

/// The status of a Pod.
fn status(pod: &Value, ready: bool, restarts: i64) -> Value {
    let image = &pod["spec"]["containers"][0]["image"];
    json!({
        // Whoever asks it for a connection asks nobody outside of this machine.
        "podIP": "127.0.1.1", "podIPs": [{ "ip": "127.0.1.1" }],
        "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
        "containerStatuses": [{
            "name": names::PROXY, "image": image, "imageID": image, "ready": ready, "restartCount": restarts,
        }],
    })
}

/// Whether the kubelet has a Pod turn ready.
pub(super) fn kubelet(pod: &Value) -> bool {
    !is_ready(pod) && pod["metadata"]["annotations"][BROKEN].is_null()
}

/// What the controller of EndpointSlices does next.
pub(super) fn endpoints(api: &Apiserver, service: Key) -> Acts {
    let Some(stored) = api.get(service) else { return Acts::default() };
    let key = Key::of(Kind::EndpointSlice, &service.name());
    let slice = api.get(key);
    let wanted = stored.value()["spec"]["selector"].as_object();
    let selects = |pod: &Value| wanted.is_some_and(|wanted| wanted.iter().all(|(k, v)| labels(pod).get(k) == Some(v)));
    let pods: Vec<_> = api.all(Kind::Pod).map(|(_, pod)| pod).filter(|pod| selects(pod.value())).collect();
    let about: Vec<_> = std::iter::once(stored).chain(slice).chain(pods.iter().copied()).collect();
    known(&about, 1 + u8::from(slice.is_some()), || {
        let endpoints: Vec<_> = pods.iter().map(|pod| endpoint(stored.value(), pod.value())).collect();
        let mut labels = stored.value()["metadata"]["labels"].clone();
        labels[SERVICE_NAME] = (*service.name()).into();
        let made = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "labels": labels }, "addressType": "IPv4", "endpoints": endpoints,
        });
        match slice {
            None => vec![Act::Make(key, made)],
            Some(slice) if slice.value()["endpoints"] != made["endpoints"] => vec![Act::Replace(key, made)],
            Some(_) => Vec::new(),
        }
    })
}

/// What nobody owns any more.
pub(super) fn orphans(api: &Apiserver) -> Vec<Key> {
    let pods = api
        .all(Kind::Pod)
        .filter(|(_, pod)| api.get(Key::of(Kind::Deployment, text(pod.value(), "/metadata/generateName"))).is_none());
    let slices = api.all(Kind::EndpointSlice).filter(|(key, _)| api.get(Key::of(Kind::Service, &key.name())).is_none());
    pods.chain(slices).map(|(key, _)| key).collect()
}

/// The UIDs of the Pods that a Service leads to and that are ready, as its slice has them.
pub(super) fn takers<'a>(objects: &'a super::apiserver::Objects, service: &str) -> Vec<&'a str> {
    let slice = objects.get(&Key::of(Kind::EndpointSlice, service));
    let endpoints = slice.into_iter().flat_map(|slice| entries(&slice.value()["endpoints"]));
    endpoints.filter(|one| one["conditions"]["ready"] == true).map(|one| text(one, "/targetRef/uid")).collect()
}
