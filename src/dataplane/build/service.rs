//! PURE. The ingress and the admin Service of a state.

use std::collections::BTreeMap;

use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Object, metadata};
use crate::model::{
    Intent, Observed,
    names::{self, Role, State},
    plan::Traffic,
};

/// Both Services of a state. A Service keeps its state for ever; only what it selects changes.
pub(super) fn pair(intent: &Intent, observed: &Observed, state: State, traffic: &Traffic) -> Vec<Object> {
    // The admin Service first, as with Kong: nothing a client sees changes with it.
    vec![render(intent, observed, Role::Admin, state, traffic), render(intent, observed, Role::Ingress, state, traffic)]
}

/// What the live Services are told of a switch that was decided and taken back: each is another version afterwards.
pub(super) fn fences(observed: &Observed) -> Vec<Object> {
    let live = observed.services.iter().filter(|((state, _), _)| *state == State::Live);
    live.map(|(_, service)| {
        let known = service.annotations().get(names::WITHDRAWN).and_then(|count| count.parse().ok());
        let count = known.unwrap_or(0_u32).wrapping_add(1).to_string();
        let metadata =
            json!({ "resourceVersion": service.resource_version(), "annotations": { names::WITHDRAWN: count } });
        Object::new(service.name_any(), json!({ "metadata": metadata }))
    })
    .collect()
}

/// The name of a Service: the one the user gave it, the one it has, or the one it will have. The preview never takes
/// the user's, for the live one has it.
pub(super) fn name(intent: &Intent, observed: &Observed, role: Role, state: State) -> String {
    let owner = &intent.owner;
    if let (Role::Ingress, State::Live, Some(name)) = (role, state, &intent.ingress.name) {
        return name.clone();
    }
    let found = observed.services.get(&(state, role)).map(|service| service.name_any());
    found.unwrap_or_else(|| names::service(&owner.name, &owner.uid, role, state))
}

fn render(intent: &Intent, observed: &Observed, role: Role, state: State, traffic: &Traffic) -> Object {
    let owner = &intent.owner;
    let name = name(intent, observed, role, state);
    let labels = BTreeMap::from([
        (names::APP, owner.name.as_str()),
        (names::MANAGED_BY, names::DATAPLANE),
        (names::SERVICE_TYPE, role.as_str()),
        (names::SERVICE_STATE, state.as_str()),
    ]);
    let mut metadata = metadata(intent, &name, Some(&names::service_prefix(&owner.name, role)), &labels);
    if role == Role::Ingress {
        metadata["annotations"] = annotations(&intent.ingress.annotations, state);
    }
    let found = observed.services.get(&(state, role)).filter(|found| found.name_any() == name);
    if let Some(promotion) = &traffic.promotion {
        metadata["annotations"][names::PROMOTION] = promotion.as_str().into();
    } else if let Some(mark) = found.and_then(|service| service.annotations().get(names::PROMOTION)) {
        // Who moved it last stays on record.
        metadata["annotations"][names::PROMOTION] = mark.as_str().into();
    }
    let spec = match role {
        Role::Ingress => ingress(intent, state, traffic),
        Role::Admin => json!({
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": selector(intent, traffic),
            "ports": [{ "name": "admin", "protocol": "TCP", "port": 8444, "targetPort": 8444 }],
        }),
    };
    Object::new(name, json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec }))
}

fn ingress(intent: &Intent, state: State, traffic: &Traffic) -> Value {
    let mut spec = json!({
        "type": intent.ingress.type_,
        "selector": selector(intent, traffic),
        "ports": ports(&traffic.ports, state),
    });
    if let Some(policy) = intent.ingress.external_traffic_policy {
        spec["externalTrafficPolicy"] = policy.into();
    }
    spec
}

fn selector(intent: &Intent, traffic: &Traffic) -> Value {
    match &intent.ingress.selector_override {
        Some(own) => json!(own),
        None => json!({ names::APP: intent.owner.name, names::SELECTOR: traffic.selector.as_str() }),
    }
}

/// The user's annotations, and Kong's memory of them. On the preview without those by which a Service claims a name or
/// an address that is the live one's.
fn annotations(own: &BTreeMap<String, String>, state: State) -> Value {
    const CLAIMS: [&str; 8] = [
        "external-dns.alpha.kubernetes.io/hostname",
        "external-dns.alpha.kubernetes.io/internal-hostname",
        "metallb.io/loadBalancerIPs",
        "metallb.universe.tf/loadBalancerIPs",
        "lbipam.cilium.io/ips",
        "io.cilium/lb-ipam-ips",
        "kube-vip.io/loadbalancerIPs",
        "service.beta.kubernetes.io/azure-load-balancer-ipv4",
    ];
    let kept = |name: &&String| state == State::Live || !CLAIMS.contains(&name.as_str());
    let mut annotations: BTreeMap<_, _> =
        own.iter().filter(|(name, _)| kept(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    if annotations.is_empty() {
        return json!({});
    }
    annotations.insert(names::LAST_APPLIED_ANNOTATIONS.into(), json!(annotations).to_string());
    json!(annotations)
}

/// Kong's ports where the user names none; 8000 where a port has no target; the first of several equal ones. A port of
/// the node can be only one Service's: the live one's.
fn ports(wished: &Value, state: State) -> Value {
    let Some(wished) = wished.as_array() else {
        return json!([
            { "name": "http", "protocol": "TCP", "port": 80, "targetPort": 8000 },
            { "name": "https", "protocol": "TCP", "port": 443, "targetPort": 8443 },
        ]);
    };
    let mut ports: Vec<Value> = Vec::new();
    for port in wished {
        if ports.iter().any(|known| known["port"] == port["port"]) {
            continue;
        }
        let target = port.get("targetPort").cloned().unwrap_or_else(|| 8000.into());
        let mut rendered = json!({ "protocol": "TCP", "port": port["port"], "targetPort": target });
        if let Some(name) = port.get("name") {
            rendered["name"] = name.clone();
        }
        if let (Some(node_port), State::Live) = (port.get("nodePort"), state) {
            rendered["nodePort"] = node_port.clone();
        }
        ports.push(rendered);
    }
    ports.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_default_to_kongs_and_equal_ones_are_dropped() {
        assert_eq!(ports(&Value::Null, State::Live)[1]["targetPort"], 8443);
        let wished =
            json!([{"name": "a", "port": 9000}, {"port": 9000, "targetPort": 1}, {"port": 80, "targetPort": "proxy"}]);
        assert_eq!(
            ports(&wished, State::Live),
            json!([
                {"name": "a", "protocol": "TCP", "port": 9000, "targetPort": 8000},
                {"protocol": "TCP", "port": 80, "targetPort": "proxy"},
            ])
        );
    }

    #[test]
    fn what_only_one_service_can_have_is_the_live_ones() {
        let wished = json!([{"port": 80, "nodePort": 30080}]);
        assert_eq!(ports(&wished, State::Live)[0]["nodePort"], 30080);
        assert_eq!(ports(&wished, State::Preview)[0].get("nodePort"), None);

        let own = BTreeMap::from([
            ("team".to_owned(), "edge".to_owned()),
            ("external-dns.alpha.kubernetes.io/hostname".to_owned(), "api.example".to_owned()),
        ]);
        assert_eq!(annotations(&own, State::Live)["external-dns.alpha.kubernetes.io/hostname"], "api.example");
        let preview = annotations(&own, State::Preview);
        assert_eq!(preview, json!({"team": "edge", names::LAST_APPLIED_ANNOTATIONS: "{\"team\":\"edge\"}"}));
    }
}
