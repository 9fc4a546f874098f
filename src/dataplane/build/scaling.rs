//! PURE. What keeps the live Pods many enough: the autoscaler and the disruption budget. Both follow the live Services.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Object, metadata};
use crate::model::{Intent, Scale, names, plan::Traffic};

/// The HorizontalPodAutoscaler of the live Deployment, where one is asked for.
pub(super) fn autoscaler(intent: &Intent, live: Option<&str>) -> Option<Object> {
    let (Scale::Horizontal { spec, .. }, Some(live)) = (&intent.scale, live) else { return None };
    let mut spec = spec.clone();
    spec["scaleTargetRef"] = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": live });
    Some(owned(intent, "autoscaling/v2", "HorizontalPodAutoscaler", &[], spec))
}

/// The PodDisruptionBudget of the live Pods, where one is asked for.
pub(super) fn budget(intent: &Intent, live: &Traffic) -> Option<Object> {
    let mut spec = intent.disruption_budget.clone()?;
    let selector = live.selector.as_str();
    spec["selector"] = json!({ "matchLabels": { names::APP: intent.owner.name, names::SELECTOR: selector } });
    Some(owned(intent, "policy/v1", "PodDisruptionBudget", &[(names::SELECTOR, selector)], spec))
}

/// An object that has the DataPlane's own name, as with Kong.
fn owned(intent: &Intent, version: &str, kind: &str, labels: &[(&str, &str)], spec: Value) -> Object {
    let name = &intent.owner.name;
    let mut all = BTreeMap::from([(names::APP, name.as_str()), (names::MANAGED_BY, names::DATAPLANE)]);
    all.extend(labels.iter().copied());
    let metadata = metadata(intent, name, None, &all);
    Object::new(name.clone(), json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec }))
}
