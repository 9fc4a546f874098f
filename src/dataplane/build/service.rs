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

/// The name of a Service: the one it has, or the one it will have.
pub(super) fn name(intent: &Intent, observed: &Observed, role: Role, state: State) -> String {
    let owner = &intent.owner;
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
    if let (Role::Ingress, false) = (role, intent.service_annotations.is_empty()) {
        metadata["annotations"] = json!(intent.service_annotations);
    }
    let found = observed.services.get(&(state, role));
    let mut only_if = None;
    if let Some(promotion) = &traffic.promotion {
        metadata["annotations"][names::PROMOTION] = promotion.as_str().into();
        only_if = found.and_then(|service| service.resource_version());
    } else if let Some(mark) = found.and_then(|service| service.annotations().get(names::PROMOTION)) {
        // Who moved it last stays on record.
        metadata["annotations"][names::PROMOTION] = mark.as_str().into();
    }
    let spec = match role {
        Role::Ingress => json!({
            "type": intent.service_type,
            "selector": selector(intent, traffic),
            "ports": ports(&traffic.ports),
        }),
        Role::Admin => json!({
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": selector(intent, traffic),
            "ports": [{ "name": "admin", "protocol": "TCP", "port": 8444, "targetPort": 8444 }],
        }),
    };
    Object { name, body: json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec }), only_if }
}

fn selector(intent: &Intent, traffic: &Traffic) -> Value {
    json!({ names::APP: intent.owner.name, names::SELECTOR: traffic.selector.as_str() })
}

/// Kong's ports where the user names none; 8000 where a port has no target; the first of several equal ones.
fn ports(wished: &Value) -> Value {
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
        ports.push(rendered);
    }
    ports.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_default_to_kongs_and_equal_ones_are_dropped() {
        assert_eq!(ports(&Value::Null)[1]["targetPort"], 8443);
        let wished =
            json!([{"name": "a", "port": 9000}, {"port": 9000, "targetPort": 1}, {"port": 80, "targetPort": "proxy"}]);
        assert_eq!(
            ports(&wished),
            json!([
                {"name": "a", "protocol": "TCP", "port": 9000, "targetPort": 8000},
                {"protocol": "TCP", "port": 80, "targetPort": "proxy"},
            ])
        );
    }
}
