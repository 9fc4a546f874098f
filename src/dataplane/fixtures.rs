//! Minimal objects for the tests of the corridor.

use serde_json::{Value, json};

use super::check;
use crate::{
    api::{DataPlane, PromotionPolicy},
    model::{Intent, Policies, grants::Ceilings},
};

/// A blue/green DataPlane `ns/dp` of UID `uid` with this image.
pub(crate) fn dataplane(image: &str) -> DataPlane {
    serde_json::from_value(json!({
        "apiVersion": "gateway-operator.konghq.com/v1beta1", "kind": "DataPlane",
        "metadata": {"name": "dp", "namespace": "ns", "uid": "uid", "generation": 1, "resourceVersion": "1"},
        "spec": {"deployment": {
            "rollout": {"strategy": {"blueGreen": {"promotion": {"strategy": "BreakBeforePromotion"}}}},
            "podTemplateSpec": {"spec": {"containers": [{"name": "proxy", "image": image}]}},
        }},
    }))
    .expect("a DataPlane")
}

/// What it asks for, without any policy.
pub(crate) fn intent(image: &str) -> Intent {
    check::read(&dataplane(image), &Policies::default(), true, &Ceilings::default())
}

/// A policy with one gate.
pub(crate) fn policy() -> PromotionPolicy {
    policy_of("policy", json!({"gates": [{"name": "smoke", "pluginRef": {"name": "http-smoke"}}]}))
}

/// A policy for all DataPlanes of the namespace, with these rules.
pub(crate) fn policy_of(name: &str, mut spec: Value) -> PromotionPolicy {
    spec["selector"] = json!({});
    let mut policy = PromotionPolicy::new(name, serde_json::from_value(spec).expect("a policy"));
    policy.metadata.namespace = Some("ns".into());
    policy
}

/// What the DataPlane asks for under it.
pub(crate) fn governed(image: &str) -> Intent {
    check::read(&dataplane(image), &vec![policy()].into(), true, &Ceilings::default())
}
