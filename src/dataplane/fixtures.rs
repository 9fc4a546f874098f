//! Minimal objects for the tests of the corridor.

use serde_json::json;

use super::check;
use crate::{
    api::{DataPlane, PromotionPolicy},
    model::{Intent, grants::Ceilings},
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
    check::read(&dataplane(image), &[], true, &Ceilings::default())
}

/// A policy with one gate.
pub(crate) fn policy() -> PromotionPolicy {
    let spec = json!({"selector": {}, "gates": [{"name": "smoke", "pluginRef": {"name": "http-smoke"}}]});
    PromotionPolicy::new("policy", serde_json::from_value(spec).expect("a policy"))
}

/// What the DataPlane asks for under it.
pub(crate) fn governed(image: &str) -> Intent {
    check::read(&dataplane(image), &[&policy()], true, &Ceilings::default())
}
