//! PURE. What a gate may speak to and what it may know: names for addresses we own, and a manifest without secrets.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::{
    api::core::v1::{Pod, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::model::{
    Intent, Observed, Selector, Wish,
    names::{Role, State},
    trial::{Endpoint, Scheme, Target},
};

/// The candidate's proxy ports: the ports of the preview ingress Service, and behind each the candidate's own Pods.
pub(super) fn of(intent: &Intent, observed: &Observed, candidate: &Selector) -> Vec<Target> {
    let Some(service) = observed.services.get(&(State::Preview, Role::Ingress)) else { return Vec::new() };
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(cluster_ip) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()) else {
        return Vec::new();
    };
    let pods: Vec<_> = observed.pods_of(candidate).collect();
    let mut targets = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some((name, container_port)) = pods.first().and_then(|pod| container_port(pod, &wanted(port))) else {
            continue;
        };
        let Ok(service_port) = u16::try_from(port.port) else { continue };
        targets.push(Target {
            // The proxy's TLS ports are told by their names, as Kong's are.
            scheme: if name.ends_with("ssl") { Scheme::HttpsUnverified } else { Scheme::Http },
            name: format!("candidate/{name}"),
            service: SocketAddr::new(cluster_ip, service_port),
            host: format!("{}.{}.svc", service.name_any(), intent.owner.namespace),
            endpoints: pods.iter().filter_map(|pod| endpoint(pod, container_port)).collect(),
        });
    }
    targets
}

/// What a Service's port sends to.
pub(super) fn wanted(port: &ServicePort) -> IntOrString {
    port.target_port.clone().unwrap_or(IntOrString::Int(port.port))
}

/// Name and number of the container port that a Service's target port means; the number where it has no name.
pub(super) fn container_port(pod: &Pod, wanted: &IntOrString) -> Option<(String, u16)> {
    let spec = pod.spec.as_ref()?;
    let ports = || spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    match wanted {
        IntOrString::Int(number) => {
            let named = ports().find(|port| port.container_port == *number).and_then(|port| port.name.clone());
            Some((named.unwrap_or_else(|| number.to_string()), u16::try_from(*number).ok()?))
        }
        IntOrString::String(name) => {
            let port = ports().find(|port| port.name.as_deref() == Some(name))?;
            Some((name.clone(), u16::try_from(port.container_port).ok()?))
        }
    }
}

/// The Pod's own address. A Pod on the host's network is no endpoint: its address is the node's.
pub(super) fn endpoint(pod: &Pod, port: u16) -> Option<Endpoint> {
    if pod.spec.as_ref()?.host_network == Some(true) {
        return None;
    }
    let address: IpAddr = pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()?;
    Some(Endpoint { name: pod.name_any(), address: SocketAddr::new(address, port) })
}

/// A side as JSON: metadata, what it runs, revision and images. Literal values of environment variables are left out,
/// for people keep secrets there.
pub(super) fn manifest(intent: &Intent, observed: &Observed, side: &Selector, wish: &Wish, revision: &str) -> String {
    let mut template = wish.pod_template.clone();
    redact(&mut template);
    let statuses = observed
        .pods_of(side)
        .filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref())
        .flatten()
        .map(|status| json!({ "container": status.name, "image": status.image, "imageID": status.image_id }));
    let mut images: Vec<Value> = statuses.collect();
    images.sort_by_key(ToString::to_string);
    images.dedup();
    json!({
        "metadata": { "name": intent.owner.name, "namespace": intent.owner.namespace, "generation": intent.owner.generation },
        "spec": { "podTemplateSpec": template, "ports": wish.ports },
        "revision": revision,
        "images": images,
    })
    .to_string()
}

fn redact(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, field) in object {
                if key == "env" {
                    for variable in field.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                        variable.remove("value");
                    }
                }
                redact(field);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_has_no_literal_environment() {
        let mut template =
            json!({"spec": {"containers": [{"name": "proxy", "env": [{"name": "TOKEN", "value": "s3cret"}]}]}});
        redact(&mut template);
        assert_eq!(template, json!({"spec": {"containers": [{"name": "proxy", "env": [{"name": "TOKEN"}]}]}}));
    }
}
