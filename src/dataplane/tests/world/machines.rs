//! What machines do: Deployments roll, Pods turn ready, Services get addresses and endpoints.

use serde_json::{Value, json};

use super::World;
use crate::model::names;

/// Endpoints of one slice, at most.
const SLICE: usize = 100;
pub(in crate::dataplane::tests) const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl World {
    /// True if anything changed.
    pub(in crate::dataplane::tests) fn machines(&mut self) -> bool {
        let before = self.objects.clone();
        let deployments = if self.awake { self.names("Deployment") } else { Vec::new() };
        deployments.iter().for_each(|name| self.roll(name));
        for name in self.names("Service") {
            self.address(&name);
            self.endpoints(&name);
        }
        for name in self.names("EndpointSlice") {
            if self.raw("Service", &served(self.raw("EndpointSlice", &name).expect("a slice"))).is_none() {
                self.objects.remove(&("EndpointSlice".to_owned(), name));
            }
        }
        self.objects != before
    }

    /// A Deployment: missing Pods start, started ones turn ready, and when all are, replaced ones go.
    fn roll(&mut self, name: &str) {
        let deployment = self.raw("Deployment", name).expect("a Deployment").clone();
        let spec = &deployment["spec"];
        let template = &spec["template"];
        let hash = names::hash(&[&template.to_string()], 6);
        let image = template["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned();
        let count = spec["replicas"].as_i64().unwrap_or_default();
        let wanted: Vec<_> = (0..count).map(|place| format!("{name}-{hash}-{place}")).collect();
        for pod in &wanted {
            let ready = self.raw("Pod", pod).map(|_| !self.broken.contains(image.as_str()));
            self.start((name, &hash), pod, template, ready.unwrap_or_default());
        }
        let ready = |world: &Self, pod: &String| world.raw("Pod", pod).is_some_and(is_ready);
        let done = wanted.iter().all(|pod| ready(self, pod));
        let of = |world: &Self| -> Vec<String> {
            let pods = world.names("Pod").into_iter();
            pods.filter(|pod| world.raw("Pod", pod).is_some_and(|pod| pod["metadata"]["generateName"] == name))
                .collect()
        };
        for pod in of(self).into_iter().filter(|pod| done && !wanted.contains(pod)) {
            self.objects.remove(&("Pod".to_owned(), pod));
        }
        let pods = of(self);
        let available = pods.iter().filter(|pod| ready(self, pod)).count();
        let status = json!({
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": pods.len(), "updatedReplicas": wanted.len(),
            "readyReplicas": available, "availableReplicas": available,
        });
        self.objects.get_mut(&("Deployment".to_owned(), name.to_owned())).expect("a Deployment")["status"] = status;
    }

    fn start(&mut self, (deployment, hash): (&str, &str), name: &str, template: &Value, ready: bool) {
        let status = json!({
            "podIP": "10.1.0.1", "podIPs": [{ "ip": "10.1.0.1" }],
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
        });
        let key = ("Pod".to_owned(), name.to_owned());
        match self.objects.get_mut(&key) {
            Some(pod) => pod["status"] = status,
            None => {
                let mut pod = template.clone();
                pod["metadata"]["name"] = name.into();
                pod["metadata"]["generateName"] = deployment.into();
                pod["metadata"]["labels"][names::TEMPLATE_HASH] = hash.into();
                pod["metadata"]["ownerReferences"] = owners(deployment, hash);
                pod["status"] = status;
                self.store(key, pod);
            }
        }
    }

    /// An address of the cluster, and one from outside where the type is LoadBalancer.
    fn address(&mut self, name: &str) {
        let key = ("Service".to_owned(), name.to_owned());
        let service = self.objects.get_mut(&key).expect("a Service");
        if service["spec"]["clusterIP"].is_null() {
            self.addresses += 1;
            service["spec"]["clusterIP"] = format!("10.0.0.{}", self.addresses).into();
        }
        let ip = service["spec"]["clusterIP"].clone();
        service["spec"]["clusterIPs"] = json!([ip]);
        let outside =
            format!("6.7.8.{}", 8 + ip.as_str().and_then(|ip| ip.rsplit('.').next()?.parse().ok()).unwrap_or(0));
        if service["spec"]["type"] != "LoadBalancer" {
            service["status"] = json!({});
        } else if service["status"]["loadBalancer"].is_null() && self.balancer {
            service["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": outside }] } });
        }
    }

    fn endpoints(&mut self, name: &str) {
        let service = self.raw("Service", name).expect("a Service").clone();
        let selects = |pod: &Value| {
            let labels = &pod["metadata"]["labels"];
            service["spec"]["selector"].as_object().is_some_and(|wanted| wanted.iter().all(|(k, v)| labels[k] == *v))
        };
        let pods = self.objects.iter().filter(|((kind, _), pod)| kind == "Pod" && selects(pod));
        let endpoints: Vec<_> = pods.map(|(_, pod)| endpoint(&service, pod)).collect();
        let mut labels = service["metadata"]["labels"].clone();
        labels[SERVICE_NAME] = name.into();
        let key = |number: usize| ("EndpointSlice".to_owned(), format!("{name}-{number}"));
        let mut number = 0;
        // There is one without endpoints, too.
        for endpoints in endpoints.chunks(SLICE).chain(endpoints.is_empty().then_some(&[][..])) {
            let slice = json!({
                "metadata": { "name": key(number).1, "namespace": "ns", "labels": labels },
                "addressType": "IPv4", "endpoints": endpoints,
            });
            self.objects.insert(key(number), slice);
            number += 1;
        }
        while self.objects.remove(&key(number)).is_some() {
            number += 1;
        }
    }
}

/// The Service that a slice belongs to.
pub(super) fn served(slice: &Value) -> String {
    slice["metadata"]["labels"][SERVICE_NAME].as_str().unwrap_or_default().to_owned()
}

/// The owner of a Deployment's Pods: the ReplicaSet of this template.
pub(in crate::dataplane::tests) fn owners(deployment: &str, hash: &str) -> Value {
    json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
        "name": format!("{deployment}-{hash}"), "uid": format!("uid-of-{deployment}-{hash}"),
    }])
}

/// A Pod in a slice of a Service that selects it.
pub(in crate::dataplane::tests) fn endpoint(service: &Value, pod: &Value) -> Value {
    json!({
        "addresses": [pod["status"]["podIP"]],
        "conditions": { "ready": is_ready(pod) || service["spec"]["publishNotReadyAddresses"] == true },
        "targetRef": { "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"] },
    })
}

pub(in crate::dataplane::tests) fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"][0]["status"] == "True"
}
