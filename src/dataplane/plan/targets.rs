//! PURE. What a gate may speak to and what it may know: names for addresses we own, and a manifest without secrets.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::facts::{self, Taker};
use crate::model::{
    Intent, Observed, Selector, Wish,
    grants::{Port, Side},
    names::{Role, State},
    trial::{Absent, Endpoint, Method, Scheme, Target},
};

/// What a gate may speak to, the container ports that its policy grants or else the candidate's proxy ports; and what it
/// was granted and cannot have.
///
/// Every address is that of our own Service, or of a ready Pod that our Deployment made, as the status of that Pod has it.
/// None is read from an EndpointSlice.
pub(super) fn of(
    intent: &Intent,
    observed: &Observed,
    candidate: &Selector,
    stable: &Selector,
    granted: Option<&[Port]>,
) -> (Vec<Target>, Vec<Absent>) {
    let sides = |side| match side {
        Side::Candidate => Behind { intent, observed, side, selector: candidate },
        Side::Stable => Behind { intent, observed, side, selector: stable },
    };
    let Some(ports) = granted else { return (sides(Side::Candidate).proxy(), Vec::new()) };
    let (mut targets, mut absent) = (Vec::new(), Vec::new());
    for port in ports {
        match sides(port.side).port(port) {
            Ok(target) => targets.push(target),
            Err(why) => absent.push(Absent { name: name(port.side, &port.name), why }),
        }
    }
    (targets, absent)
}

fn name(side: Side, port: &str) -> String {
    format!("{}/{port}", side.as_str())
}

/// A side, and the ingress Service in front of it.
struct Behind<'pass> {
    intent: &'pass Intent,
    observed: &'pass Observed,
    side: Side,
    selector: &'pass Selector,
}

impl Behind<'_> {
    /// The Pods that may be asked.
    fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.observed.pods_of(self.selector).filter(|pod| facts::is_ready(pod) && address(pod).is_some())
    }

    /// The ports of the Service, and behind each the Pods.
    fn proxy(&self) -> Vec<Target> {
        let Some(pod) = self.pods().next() else { return Vec::new() };
        let ports = self.service_ports().filter_map(|port| container_port(pod, &wanted(port)));
        ports.filter_map(|(port, number)| self.target(&port, &port, number, &Method::ALL).ok()).collect()
    }

    /// A port of the Pods, which may have no Service.
    ///
    /// # Errors
    /// Why there is nothing to ask.
    fn port(&self, port: &Port) -> Result<Target, String> {
        let pod = self.pods().next().ok_or("no Pod of this side is ready and has an address of its own")?;
        let wanted = port.name.parse().map_or_else(|_| IntOrString::String(port.name.clone()), IntOrString::Int);
        let (port_name, number) = container_port(pod, &wanted).ok_or("no container has a port of this name")?;
        self.target(&port.name, &port_name, number, &port.methods)
    }

    fn target(&self, called: &str, port: &str, number: u16, methods: &[Method]) -> Result<Target, String> {
        let endpoints: Vec<_> = self.pods().filter_map(|pod| endpoint(pod, number)).collect();
        let service = self.service().or(self.live()).ok_or("there is no Service of this side")?;
        // Where no Service leads there, the first Pod stands for all.
        let first = endpoints.first().map(|endpoint| endpoint.address);
        Ok(Target {
            name: name(self.side, called),
            scheme: scheme(port),
            service: self.front(number).or(first).ok_or("no Pod of this side can be asked")?,
            host: format!("{}.{}.svc", service.name_any(), self.intent.owner.namespace),
            endpoints,
            methods: methods.to_vec(),
        })
    }

    /// The address of the Service, where it leads to this container port of the Pods and to nobody else: kube-proxy obeys
    /// every EndpointSlice, whoever wrote it.
    fn front(&self, number: u16) -> Option<SocketAddr> {
        let address: IpAddr = self.service()?.spec.as_ref()?.cluster_ip.as_deref()?.parse().ok()?;
        let pod = self.pods().next()?;
        let leads_there =
            |port: &&ServicePort| container_port(pod, &wanted(port)).is_some_and(|(_, behind)| behind == number);
        let port = self.service_ports().find(leads_there)?;
        let own: BTreeSet<_> = self.pods().filter_map(|pod| pod.uid().map(Taker::Pod)).collect();
        let taking = facts::taking_traffic(self.observed, self.leading()?, Role::Ingress)?;
        taking.is_subset(&own).then_some(SocketAddr::new(address, u16::try_from(port.port).ok()?))
    }

    /// The state whose Services lead here: once traffic has moved, the live ones lead to the candidate, and none to the side
    /// it left.
    fn leading(&self) -> Option<State> {
        let leads_here = |state| self.observed.selects(state, Role::Ingress).as_ref() == Some(self.selector);
        [State::Live, State::Preview].into_iter().find(|state| leads_here(*state))
    }

    fn service(&self) -> Option<&Service> {
        self.observed.services.get(&(self.leading()?, Role::Ingress)).map(AsRef::as_ref)
    }

    fn live(&self) -> Option<&Service> {
        self.observed.services.get(&(State::Live, Role::Ingress)).map(AsRef::as_ref)
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

/// The Pod, at its own address.
pub(super) fn endpoint(pod: &Pod, port: u16) -> Option<Endpoint> {
    Some(Endpoint { name: pod.name_any(), address: SocketAddr::new(address(pod)?, port) })
}

/// A Pod on the host's network has none of its own: it is the node's.
fn address(pod: &Pod) -> Option<IpAddr> {
    let own = pod.spec.as_ref()?.host_network != Some(true);
    addresses(pod).next().filter(|_| own)?.parse().ok()
}

/// The Pod's addresses as its status has them, that of the cluster's first family first.
pub(super) fn addresses(pod: &Pod) -> impl Iterator<Item = &str> {
    pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten()).map(|address| address.ip.as_str())
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
    use crate::{
        dataplane::fixtures,
        model::names::{SELECTOR, TEMPLATE_HASH},
    };

    fn read<K: serde::de::DeserializeOwned>(object: Value) -> Arc<K> {
        Arc::new(serde_json::from_value(object).expect("an object"))
    }

    /// A ready Pod that the Deployment of this name made.
    fn pod(side: &str, name: &str, ip: &str) -> Value {
        let ports = json!([
            {"name": "proxy", "containerPort": 8000},
            {"name": "proxy-ssl", "containerPort": 8443},
            {"name": "admin-ssl", "containerPort": 8444},
        ]);
        let owner = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true, "name": format!("{side}-1a2b"), "uid": side,
        });
        json!({
            "metadata": {
                "name": name, "uid": name,
                "labels": {SELECTOR: side, TEMPLATE_HASH: "1a2b"}, "ownerReferences": [owner],
            },
            "spec": {"containers": [{"name": "proxy", "ports": ports}]},
            "status": {
                "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}],
            },
        })
    }

    /// The EndpointSlice of a Service, as its controller writes it.
    fn slice(service: &str, pods: &[Value]) -> Value {
        let endpoint = |pod: &Value| {
            json!({
                "addresses": [pod["status"]["podIP"]],
                "targetRef": {"kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
            })
        };
        json!({
            "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
        })
    }

    /// Two sides behind their Services, two Pods the new one and one the old one.
    fn observed() -> Observed {
        let service = |side: &str, ip: &str| {
            let ports = json!([{"port": 80, "targetPort": 8000}]);
            let spec = json!({"clusterIP": ip, "selector": {SELECTOR: side}, "ports": ports});
            read(json!({"metadata": {"name": side}, "spec": spec}))
        };
        let deployment = |side: &str| {
            let spec = json!({"selector": {"matchLabels": {SELECTOR: side}}, "template": {}});
            read(json!({"metadata": {"name": side}, "spec": spec}))
        };
        let (new, old) =
            ([pod("new", "new-a", "10.1.0.1"), pod("new", "new-b", "10.1.0.2")], [pod("old", "old-a", "10.1.0.3")]);
        Observed {
            services: [
                ((State::Preview, Role::Ingress), service("new", "10.0.0.1")),
                ((State::Live, Role::Ingress), service("old", "10.0.0.2")),
            ]
            .into(),
            deployments: vec![deployment("new"), deployment("old")],
            slices: vec![read(slice("new", &new)), read(slice("old", &old))],
            pods: new.into_iter().chain(old).map(read).collect(),
            ..Observed::default()
        }
    }

    /// The same, and one Pod of the new side is another one.
    fn with(change: impl FnOnce(&mut Value)) -> Observed {
        let (mut observed, mut other) = (observed(), pod("new", "new-b", "10.1.0.2"));
        change(&mut other);
        observed.slices[0] = read(slice("new", &[pod("new", "new-a", "10.1.0.1"), other.clone()]));
        observed.pods[1] = read(other);
        observed
    }

    fn targets(observed: &Observed, ports: Option<&[Port]>) -> (Vec<Target>, Vec<Absent>) {
        let (candidate, stable) = (Selector::from("new"), Selector::from("old"));
        of(&fixtures::intent("kong:3.9"), observed, &candidate, &stable, ports)
    }

    fn granted(ports: Option<&[Port]>) -> Vec<Target> {
        targets(&observed(), ports).0
    }

    /// Every address that the one target without a grant can be dialled at.
    fn dialled(observed: &Observed) -> Vec<String> {
        let (targets, _) = targets(observed, None);
        let [proxy] = targets.as_slice() else { panic!("{targets:?}") };
        let endpoints = proxy.endpoints.iter().map(|endpoint| endpoint.address.to_string());
        std::iter::once(proxy.service.to_string()).chain(endpoints).collect()
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
        let endpoint = |name: &str, last| Endpoint { name: name.into(), address: ([10, 1, 0, last], 8000).into() };
        assert_eq!(proxy.endpoints, [endpoint("new-a", 1), endpoint("new-b", 2)]);
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
    }

    #[test]
    fn what_is_granted_and_not_there_is_named_with_the_reason() {
        let absent = |observed: &Observed, port: Port| {
            let (targets, absent) = targets(observed, Some(&[port]));
            assert_eq!(targets, []);
            absent.into_iter().map(|Absent { name, why }| format!("{name}: {why}")).collect::<Vec<_>>()
        };
        const NOBODY: &str = "stable/proxy: no Pod of this side is ready and has an address of its own";
        let postgres = absent(&observed(), port(Side::Candidate, "postgres"));
        assert_eq!(postgres, ["candidate/postgres: no container has a port of this name"]);
        let mut alone = observed();
        alone.pods.truncate(2);
        assert_eq!(absent(&alone, port(Side::Stable, "proxy")), [NOBODY]);
    }

    #[test]
    fn threat_01_only_ready_pods_that_the_deployment_made_are_targets() {
        assert_eq!(dialled(&observed()), ["10.0.0.1:80", "10.1.0.1:8000", "10.1.0.2:8000"]);
        type Change = fn(&mut Value);
        let changes: [(&str, Change); 10] = [
            ("no owner", |pod| pod["metadata"]["ownerReferences"] = json!([])),
            ("another Deployment's", |pod| pod["metadata"]["ownerReferences"][0]["name"] = "other-1a2b".into()),
            ("another template's", |pod| pod["metadata"]["labels"][TEMPLATE_HASH] = "3c4d".into()),
            ("a template that is not said", |pod| pod["metadata"]["labels"] = json!({SELECTOR: "new"})),
            ("a StatefulSet's", |pod| pod["metadata"]["ownerReferences"][0]["kind"] = "StatefulSet".into()),
            ("another API's", |pod| pod["metadata"]["ownerReferences"][0]["apiVersion"] = "evil.example/v1".into()),
            ("owned, not controlled", |pod| pod["metadata"]["ownerReferences"][0]["controller"] = false.into()),
            ("on the network of its host", |pod| pod["spec"]["hostNetwork"] = true.into()),
            ("without an address", |pod| pod["status"]["podIPs"] = json!([])),
            ("not ready", |pod| pod["status"]["conditions"][0]["status"] = "False".into()),
        ];
        for (name, change) in changes {
            // Its Service sends it traffic, so that is not asked either.
            assert_eq!(dialled(&with(change)), ["10.1.0.1:8000", "10.1.0.1:8000"], "{name}");
        }
    }

    #[test]
    fn threat_01_pods_on_the_network_of_their_hosts_are_no_targets_and_nor_is_the_service_before_them() {
        let mut observed = with(|pod| pod["spec"]["hostNetwork"] = true.into());
        observed.pods.remove(0);
        observed.slices[0] = read(slice("new", &[pod("new", "new-b", "10.1.0.2")]));
        assert_eq!(targets(&observed, None).0, []);
    }

    #[test]
    fn threat_01_a_pod_is_dialled_where_its_own_status_says_that_it_is() {
        let moved = with(|pod| pod["status"]["podIPs"] = json!([{"ip": "fd00::2"}, {"ip": "10.1.0.2"}]));
        assert_eq!(dialled(&moved), ["10.0.0.1:80", "10.1.0.1:8000", "[fd00::2]:8000"]);
    }

    #[test]
    fn threat_01_no_address_of_a_forged_endpoint_slice_is_ever_dialled() {
        let endpoint = |address: &str, pod: Value| json!({"addresses": [address], "targetRef": pod});
        let forged = [
            ("nobody's", endpoint("10.96.0.1", Value::Null)),
            ("a Pod that is not there", endpoint("10.96.0.1", json!({"kind": "Pod", "name": "x", "uid": "x"}))),
            ("in the name of a Pod", endpoint("10.96.0.1", json!({"kind": "Pod", "name": "new-a", "uid": "new-a"}))),
            ("that of the other side", endpoint("10.1.0.3", json!({"kind": "Pod", "name": "old-a", "uid": "old-a"}))),
            ("a name", endpoint("kubernetes.default.svc", Value::Null)),
        ];
        for (name, endpoint) in forged {
            let mut observed = observed();
            let mut slice = slice("new", &[]);
            slice["endpoints"] = json!([endpoint]);
            observed.slices.push(read(slice));
            // kube-proxy would lead there: the Service is not asked, and its Pods are.
            assert_eq!(dialled(&observed), ["10.1.0.1:8000", "10.1.0.1:8000", "10.1.0.2:8000"], "{name}");
        }
    }

    #[test]
    fn a_manifest_has_no_literal_environment() {
        let mut template =
            json!({"spec": {"containers": [{"name": "proxy", "env": [{"name": "TOKEN", "value": "s3cret"}]}]}});
        redact(&mut template);
        assert_eq!(template, json!({"spec": {"containers": [{"name": "proxy", "env": [{"name": "TOKEN"}]}]}}));
    }
}
