//! The DataPlanes that are measured on. Dynamic objects: the harness does not know the operator's types.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::events::v1::Event;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::kit::Kit;
use crate::wait::{PATIENCE, wait, wait_for_many};
use crate::workspace;

/// Whose Pod, which side a Service sends traffic to.
pub const SELECTOR: &str = "gateway-operator.konghq.com/selector";
/// Which Deployments take traffic.
pub const LIVE_DEPLOYMENTS: &str = "gateway-operator.konghq.com/dataplane-deployment-state=live";
/// The annotation that approves.
const APPROVAL: &str = "gateway-operator.konghq.com/promote-when-ready";
/// The reason of `RolledOut` when nothing is left to do.
const AT_REST: &str = "WaitingForChange";
/// How long many of them may take.
pub const PATIENCE_FOR_MANY: Duration = Duration::from_secs(900);

/// The DataPlanes of a kit's namespace.
pub fn dataplanes(kit: &Kit) -> Api<DynamicObject> {
    objects(kit, "gateway-operator.konghq.com", "v1beta1", "DataPlane")
}

/// The records of upgrades in a kit's namespace.
pub fn promotions(kit: &Kit) -> Api<DynamicObject> {
    objects(kit, "sluice.dev", "v1alpha1", "Promotion")
}

/// Waits until the gates and rules of a policy are accepted.
pub async fn accepted(kit: &Kit, policy: &str) -> Result<()> {
    let accepted = |found: Option<&DynamicObject>| {
        found.is_some_and(|found| found.data["status"]["conditions"][0]["status"] == "True")
    };
    let policies = objects(kit, "sluice.dev", "v1alpha1", "PromotionPolicy");
    wait(policies, policy, "be accepted", PATIENCE, accepted).await.map(drop)
}

/// The objects of a kind in a kit's namespace.
fn objects(kit: &Kit, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(kit.client.clone(), &kit.namespace, &resource)
}

/// Creates the DataPlane of the documentation's example, on `kong:3.9`, under another name.
pub fn create(kit: &Kit, name: &str) -> Result<()> {
    let example = fs::read_to_string(workspace::root().join("deploy/examples/bluegreen.yaml"))?;
    kit.apply(&example.replace("name: bluegreen", &format!("name: {name}"))).map(drop)
}

/// Waits until a DataPlane rests.
pub async fn rest(kit: &Kit, name: &str) -> Result<DynamicObject> {
    let found = wait(dataplanes(kit), name, "come to rest", PATIENCE, |found| found.is_some_and(rests)).await?;
    found.context("it is gone")
}

/// Waits until people have been told so often of a DataPlane of the namespace that it rests. Telling is the last thing
/// that is done in a transition.
pub async fn told(kit: &Kit, times: usize) -> Result<()> {
    let rest = |event: &Event| event.reason.as_deref() == Some(AT_REST);
    let what = (times, "say that a DataPlane rests");
    wait_for_many(kit.api(), watcher::Config::default(), what, PATIENCE_FOR_MANY, rest, |_| {}).await
}

/// Another DataPlane with the same spec.
pub fn another(of: &DynamicObject, name: &str) -> DynamicObject {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway-operator.konghq.com", "v1beta1", "DataPlane"));
    DynamicObject::new(name, &resource).data(json!({ "spec": of.data["spec"] }))
}

/// Asks for an image and approves it, in one patch; the DataPlane as it is then.
pub async fn upgrade(kit: &Kit, dataplane: &DynamicObject, image: &str) -> Result<DynamicObject> {
    let mut containers = dataplane.data["spec"]["deployment"]["podTemplateSpec"]["spec"]["containers"].clone();
    containers[0]["image"] = image.into();
    let patch = json!({
        "metadata": { "annotations": { APPROVAL: "true" } },
        "spec": { "deployment": { "podTemplateSpec": { "spec": { "containers": containers } } } },
    });
    let name = dataplane.name_any();
    Ok(dataplanes(kit).patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?)
}

/// Whether its spec of now is live, and nothing is left to do: the preview Services of the next upgrade are named too.
pub fn rests(dataplane: &DynamicObject) -> bool {
    let status = &dataplane.data["status"];
    let ready = condition(&status["conditions"], "Ready").is_some_and(|ready| ready["status"] == "True");
    let preview = &status["rollout"]["services"];
    ready && reason(dataplane) == Some(AT_REST) && preview["ingress"].is_object() && preview["adminAPI"].is_object()
}

/// Whether its spec of now is live, even if the replaced side still drains.
pub fn is_promoted(dataplane: &DynamicObject) -> bool {
    matches!(reason(dataplane), Some("PromotionDone" | AT_REST))
}

/// The reason of `RolledOut`, if that is about the spec of now.
pub fn reason(dataplane: &DynamicObject) -> Option<&str> {
    let rolled_out = condition(&dataplane.data["status"]["rollout"]["conditions"], "RolledOut")?;
    let current = rolled_out["observedGeneration"].as_i64() == dataplane.metadata.generation;
    rolled_out["reason"].as_str().filter(|_| current)
}

fn condition<'a>(conditions: &'a Value, kind: &str) -> Option<&'a Value> {
    conditions.as_array()?.iter().find(|condition| condition["type"] == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataplane(generation: i64, observed: i64, reason: &str, ready: &str) -> DynamicObject {
        serde_json::from_value(json!({
            "metadata": { "name": "a", "generation": generation },
            "status": {
                "conditions": [{ "type": "Ready", "status": ready }],
                "rollout": {
                    "conditions": [{ "type": "RolledOut", "reason": reason, "observedGeneration": observed }],
                    "services": { "ingress": { "name": "b" }, "adminAPI": { "name": "c" } },
                },
            },
        }))
        .expect("an object")
    }

    #[test]
    fn only_what_is_said_of_the_spec_of_now_counts() {
        let rows = [
            (dataplane(2, 2, "WaitingForChange", "True"), true, true),
            (dataplane(2, 2, "WaitingForChange", "False"), false, true),
            (dataplane(2, 2, "PromotionDone", "True"), false, true),
            (dataplane(2, 2, "Progressing", "True"), false, false),
            (dataplane(3, 2, "WaitingForChange", "True"), false, false),
        ];
        for (dataplane, at_rest, promoted) in rows {
            assert_eq!((rests(&dataplane), is_promoted(&dataplane)), (at_rest, promoted), "{dataplane:?}");
        }
        let mut unnamed = dataplane(2, 2, "WaitingForChange", "True");
        unnamed.data["status"]["rollout"]["services"] = Value::Null;
        assert!(!rests(&unnamed) && is_promoted(&unnamed), "its preview Services are being made");
        let new: DynamicObject = serde_json::from_value(json!({ "metadata": { "name": "a" } })).expect("an object");
        assert!(!rests(&new) && !is_promoted(&new), "nothing was said yet");
    }

    #[test]
    fn another_has_the_spec_and_nothing_else() {
        let mut of = dataplane(1, 1, "WaitingForChange", "True");
        of.data["spec"] = json!({ "deployment": {} });
        let another = another(&of, "b");
        assert_eq!((another.name_any().as_str(), &another.data), ("b", &json!({ "spec": { "deployment": {} } })));
    }
}
