//! PURE. What a gate may speak to and what it may know: names for addresses we own, and a manifest without secrets.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::model::{
    Intent, Observed, Selector, Wish,
    grants::{Port, Side},
    names::{Role, State},
    trial::{Endpoint, Method, Scheme, Target},
};

/// What a gate may speak to: the container ports that its policy grants, or else the candidate's proxy ports.
pub(super) fn of(
    intent: &Intent,
    observed: &Observed,
    candidate: &Selector,
    stable: &Selector,
    granted: Option<&[Port]>,
) -> Vec<Target> {
    let sides = |side| match side {
        Side::Candidate => Behind { intent, observed, side, state: State::Preview, selector: candidate },
        Side::Stable => Behind { intent, observed, side, state: State::Live, selector: stable },
    };
    match granted {
        None => sides(Side::Candidate).proxy(),
        Some(ports) => ports.iter().filter_map(|port| sides(port.side).port(port)).collect(),
    }
}

/// A side, and the ingress Service in front of it.
struct Behind<'pass> {
    intent: &'pass Intent,
    observed: &'pass Observed,
    side: Side,
    state: State,
    selector: &'pass Selector,
}

impl Behind<'_> {
    /// The ports of the Service, and behind each the Pods.
    fn proxy(&self) -> Vec<Target> {
        let Some(pod) = self.observed.pods_of(self.selector).next() else { return Vec::new() };
        let named = self.service_ports().filter_map(|port| container_port(pod, &wanted(port)));
        named.filter_map(|(name, number)| self.target(&name, &name, number, &Method::ALL)).collect()
    }

    /// A port of the Pods, which may have no Service.
    fn port(&self, port: &Port) -> Option<Target> {
        let pod = self.observed.pods_of(self.selector).next()?;
        let wanted = port.name.parse().map_or_else(|_| IntOrString::String(port.name.clone()), IntOrString::Int);
        let (name, number) = container_port(pod, &wanted)?;
        self.target(&port.name, &name, number, &port.methods)
    }

    fn target(&self, called: &str, name: &str, number: u16, methods: &[Method]) -> Option<Target> {
        let pods: Vec<_> = self.observed.pods_of(self.selector).collect();
        let endpoints: Vec<_> = pods.iter().filter_map(|pod| endpoint(pod, number)).collect();
        let service = self.service().and_then(|service| {
            let address: IpAddr = service.spec.as_ref()?.cluster_ip.as_deref()?.parse().ok()?;
            let behind = |port: &&ServicePort| {
                container_port(pods.first()?, &wanted(port)).filter(|(_, behind)| *behind == number)
            };
            let port = self.service_ports().find(|port| behind(port).is_some())?;
            Some(SocketAddr::new(address, u16::try_from(port.port).ok()?))
        });
        Some(Target {
            name: format!("{}/{called}", self.side.as_str()),
            scheme: scheme(name),
            // Where no Service leads there, the first Pod stands for all.
            service: service.or_else(|| endpoints.first().map(|endpoint| endpoint.address))?,
            host: format!("{}.{}.svc", self.service()?.name_any(), self.intent.owner.namespace),
            endpoints,
            methods: methods.to_vec(),
        })
    }

    /// While traffic moves, a Service may select the other side.
    fn service(&self) -> Option<&Service> {
        let leads_here = self.observed.selects(self.state, Role::Ingress).as_ref() == Some(self.selector);
        self.observed.services.get(&(self.state, Role::Ingress)).filter(|_| leads_here).map(AsRef::as_ref)
    }

    fn service_ports(&self) -> impl Iterator<Item = &ServicePort> {
        self.service().and_then(|service| service.spec.as_ref()?.ports.as_ref()).into_iter().flatten()
    }
}

/// TLS ports are told by their names, as Kong's are. The admin API wants a certificate of the cluster CA.
fn scheme(port: &str) -> Scheme {
    match (port.starts_with("admin"), port.ends_with("ssl")) {
        (true, true) => Scheme::HttpsIdentified,
        (false, true) => Scheme::HttpsUnverified,
        (_, false) => Scheme::Http,
    }
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
    use std::sync::Arc;

    use super::*;
    use crate::{dataplane::fixtures, model::names::SELECTOR};

    /// Two sides behind their Services, two Pods each, of which the second is on the host's network.
    fn observed() -> Observed {
        let service = |side: &str, ip: &str| -> Arc<Service> {
            let spec =
                json!({"clusterIP": ip, "selector": {SELECTOR: side}, "ports": [{"port": 80, "targetPort": 8000}]});
            Arc::new(serde_json::from_value(json!({"metadata": {"name": side}, "spec": spec})).expect("a Service"))
        };
        let pod = |side: &str, name: &str, ip: &str, host: bool| -> Arc<Pod> {
            let ports = json!([
                {"name": "proxy", "containerPort": 8000},
                {"name": "proxy-ssl", "containerPort": 8443},
                {"name": "admin-ssl", "containerPort": 8444},
            ]);
            let body = json!({
                "metadata": {"name": name, "labels": {SELECTOR: side}},
                "spec": {"hostNetwork": host, "containers": [{"name": "proxy", "ports": ports}]},
                "status": {"podIP": ip},
            });
            Arc::new(serde_json::from_value(body).expect("a Pod"))
        };
        Observed {
            services: [
                ((State::Preview, Role::Ingress), service("new", "10.0.0.1")),
                ((State::Live, Role::Ingress), service("old", "10.0.0.2")),
            ]
            .into(),
            pods: vec![
                pod("new", "new-a", "10.1.0.1", false),
                pod("new", "new-b", "10.1.0.2", true),
                pod("old", "old-a", "10.1.0.3", false),
            ],
            ..Observed::default()
        }
    }

    fn granted(ports: Option<&[Port]>) -> Vec<Target> {
        let (candidate, stable) = (Selector::from("new"), Selector::from("old"));
        of(&fixtures::intent("kong:3.9"), &observed(), &candidate, &stable, ports)
    }

    fn port(side: Side, name: &str) -> Port {
        Port { side, name: name.into(), methods: Method::READING.to_vec() }
    }

    #[test]
    fn without_a_grant_the_candidates_proxy_ports_are_the_targets() {
        let targets = granted(None);
        let [proxy] = targets.as_slice() else { panic!("{targets:?}") };
        assert_eq!((proxy.name.as_str(), proxy.service), ("candidate/proxy", ([10, 0, 0, 1], 80).into()));
        assert_eq!(proxy.methods, Method::ALL);
        // Its address is the node's.
        assert_eq!(proxy.endpoints, [Endpoint { name: "new-a".into(), address: ([10, 1, 0, 1], 8000).into() }]);
    }

    #[test]
    fn granted_ports_are_found_by_name_or_number_on_their_own_side() {
        let ports = [port(Side::Stable, "proxy"), port(Side::Candidate, "admin-ssl"), port(Side::Candidate, "8443")];
        let targets = granted(Some(&ports));
        let seen: Vec<_> =
            targets.iter().map(|target| (target.name.as_str(), target.scheme, target.service.to_string())).collect();
        let wanted = [
            ("stable/proxy", Scheme::Http, "10.0.0.2:80".to_owned()),
            // Without a Service in front: the first Pod.
            ("candidate/admin-ssl", Scheme::HttpsIdentified, "10.1.0.1:8444".to_owned()),
            ("candidate/8443", Scheme::HttpsUnverified, "10.1.0.1:8443".to_owned()),
        ];
        assert_eq!(seen, wanted);
        assert!(targets.iter().all(|target| target.methods == Method::READING));
        assert_eq!(granted(Some(&[])), []);
        assert_eq!(granted(Some(&[port(Side::Candidate, "postgres")])), []);
    }

    #[test]
    fn a_manifest_has_no_literal_environment() {
        let mut template =
            json!({"spec": {"containers": [{"name": "proxy", "env": [{"name": "TOKEN", "value": "s3cret"}]}]}});
        redact(&mut template);
        assert_eq!(template, json!({"spec": {"containers": [{"name": "proxy", "env": [{"name": "TOKEN"}]}]}}));
    }
}
