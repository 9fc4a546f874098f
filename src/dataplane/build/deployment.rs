//! PURE. The Deployment of a side: the template of its wish, and what tells the sides apart.

use std::collections::BTreeMap;

use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Object, metadata, template};
use crate::model::{
    Intent, Observed, names,
    plan::{Replicas, Side},
};

/// Renders a side's Deployment. The same side is rendered the same before and after its promotion, but for one label:
/// what was judged is what runs.
pub(super) fn render(intent: &Intent, observed: &Observed, side: &Side, secret: &str) -> Object {
    let owner = &intent.owner;
    let found = observed.deployment(&side.selector);
    let name =
        found.map_or_else(|| names::side(&owner.name, &owner.uid, &side.selector), |deployment| deployment.name_any());
    let mut labels = BTreeMap::from([
        (names::APP, owner.name.as_str()),
        (names::MANAGED_BY, names::DATAPLANE),
        (names::SELECTOR, side.selector.as_str()),
    ]);
    if let Some(state) = side.state {
        labels.insert(names::DEPLOYMENT_STATE, state.as_str());
    }
    let mut metadata = metadata(intent, &name, Some(&format!("dataplane-{}-", owner.name)), &labels);
    if side.state.is_none() {
        // It is let go with this write: its deletion then is one.
        metadata["finalizers"] = json!([]);
    }
    metadata["annotations"] = json!({ names::REVISION: side.wish.revision().as_str() });
    let selector = json!({ names::APP: owner.name, names::SELECTOR: side.selector.as_str() });
    let mut body = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "selector": { "matchLabels": selector },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
            "template": placed(template::of(observed, &side.wish), &selector, secret),
        },
    });
    let count = match side.replicas {
        Replicas::Exactly(replicas) => {
            body["spec"]["replicas"] = replicas.into();
            None
        }
        Replicas::From(replicas) => Some(replicas),
    };
    Object { count, ..Object::new(name, body) }
}

/// A template with what belongs to one side only: the labels of its Pods, and the Secret they mount. What the user
/// wrote there himself stays.
fn placed(mut template: Value, labels: &Value, secret: &str) -> Value {
    for (label, value) in labels.as_object().into_iter().flatten() {
        let own = &mut template["metadata"]["labels"][label];
        if own.is_null() {
            *own = value.clone();
        }
    }
    let volumes = template.pointer_mut("/spec/volumes").and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten().filter(|volume| volume["name"] == names::CERTIFICATE_VOLUME) {
        if let Some(source) = volume.get_mut("secret").filter(|source| source.get("secretName").is_none()) {
            source["secretName"] = secret.into();
        }
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Selector, Wish, names::State};

    fn rendered(state: Option<State>) -> Object {
        let template = json!({"spec": {"containers": [{"name": "proxy", "image": "kong:3.9"}]}});
        let side = Side {
            selector: Selector::founding("uid"),
            wish: Wish { pod_template: template, ports: Value::Null },
            state,
            replicas: Replicas::Exactly(2),
            renews: false,
        };
        render(&crate::dataplane::fixtures::intent("kong:3.9"), &Observed::default(), &side, "secret")
    }

    #[test]
    fn promotion_changes_one_label_and_nothing_else() {
        let (preview, live) = (rendered(Some(State::Preview)), rendered(Some(State::Live)));
        let state = |object: &Object| object.body["metadata"]["labels"][names::DEPLOYMENT_STATE].clone();
        assert_eq!((state(&preview), state(&live)), (json!("preview"), json!("live")));
        assert_eq!(preview.body["spec"], live.body["spec"]);
        assert_eq!(preview.name, live.name);
    }

    #[test]
    fn a_side_has_its_own_labels_and_its_own_secret() {
        let spec = rendered(Some(State::Live)).body["spec"].clone();
        assert_eq!(spec["template"]["metadata"]["labels"], spec["selector"]["matchLabels"]);
        assert_eq!(spec["template"]["spec"]["volumes"][0]["secret"]["secretName"], "secret");
        let own = json!({"spec": {"volumes": [{"name": "cluster-certificate", "secret": {"secretName": "own"}}]}});
        assert_eq!(placed(own, &json!({}), "secret")["spec"]["volumes"][0]["secret"]["secretName"], "own");
    }
}
