//! Whether an object already is what it should be. Server-side apply without a reason is a write without a reason.

use serde_json::Value;

use super::{
    lists::{keys_of, same},
    names,
};

/// A resource version that no object has: an apply with it creates, and conflicts where something of the name exists.
pub const ABSENT: &str = "1";

/// Hash of a rendered object. A field that is no longer rendered shows here, for the object still has it.
///
/// The place of a Deployment, and whether it is held, are no part of it. They change when traffic has moved; but a mark that
/// changed with them would be another generation of the Deployment, for which its controller writes it and its ReplicaSet.
#[must_use]
pub fn mark(body: &Value) -> String {
    let hash = |body: &Value| names::hash(&[&body.to_string()], 16);
    if body["kind"] != "Deployment" {
        return hash(body);
    }
    let mut body = body.clone();
    if let Some(metadata) = body["metadata"].as_object_mut() {
        metadata.remove("finalizers");
        metadata.get_mut("labels").and_then(Value::as_object_mut).map(|labels| labels.remove(names::DEPLOYMENT_STATE));
    }
    hash(&body)
}

/// True where `found` carries the mark of `planned` and every field of it: nothing to prune and nothing drifted.
/// Fields that only `found` has belong to others.
#[must_use]
pub fn holds(found: &Value, planned: &Value) -> bool {
    contains("", "", found, planned) && !lingers(&found["metadata"], &planned["metadata"])
}

/// Whether a Deployment still has the place or the finalizer that it should lose, which no mark tells.
fn lingers(found: &Value, planned: &Value) -> bool {
    let place = |metadata: &Value| metadata["labels"][names::DEPLOYMENT_STATE].is_string();
    let holds = |list: &Vec<Value>| list.iter().any(|finalizer| finalizer == names::WAIT_FOR_OWNER);
    let held = found["finalizers"].as_array().is_some_and(holds);
    let let_go = planned["finalizers"].as_array().is_some_and(|list| !holds(list));
    place(found) && planned["labels"].is_object() && !place(planned) || held && let_go
}

/// `parent` is the field that holds the object, or the list of objects, in which `field` is.
fn contains(parent: &str, field: &str, found: &Value, planned: &Value) -> bool {
    match (found, planned) {
        // What a Service or a budget selects is one thing: a key more selects other Pods.
        (Value::Object(found), Value::Object(planned)) if field == "selector" => found == planned,
        (Value::Object(found), Value::Object(planned)) => {
            planned.iter().all(|(inner, planned)| match found.get(inner) {
                Some(found) => contains(field, inner, found, planned),
                // The API drops what is empty.
                None => empty(planned),
            })
        }
        (Value::Array(found), Value::Array(planned)) => match keys_of(field) {
            Some(keys) => planned.iter().all(|planned| {
                found.iter().any(|found| same(keys, found, planned) && contains("", field, found, planned))
            }),
            None if field == "ownerReferences" || field == "finalizers" => {
                planned.iter().all(|planned| found.iter().any(|found| contains("", field, found, planned)))
            }
            None => {
                found.len() == planned.len()
                    && found.iter().zip(planned).all(|(found, planned)| contains("", field, found, planned))
            }
        },
        (found, planned) => {
            let same = || quantity(planned).is_some_and(|amount| quantity(found) == Some(amount));
            found == planned || (is_quantity(parent, field) && same())
        }
    }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(object) => object.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
    }
}

/// Fields that hold quantities. Elsewhere `1` and `1.0` are different texts.
fn is_quantity(parent: &str, field: &str) -> bool {
    match parent {
        "limits" | "requests" | "overhead" => true,
        "emptyDir" => field == "sizeLimit",
        "resourceFieldRef" => field == "divisor",
        "target" => field == "value" || field == "averageValue",
        "scaleUp" | "scaleDown" => field == "tolerance",
        _ => false,
    }
}

/// A Kubernetes quantity in billionths: `1000m` and `1` are the same, and the API keeps only one spelling.
fn quantity(value: &Value) -> Option<i128> {
    const WHOLE: i128 = 1_000_000_000;
    const SUFFIXES: [(&str, i128); 16] = [
        ("Ki", WHOLE << 10),
        ("Mi", WHOLE << 20),
        ("Gi", WHOLE << 30),
        ("Ti", WHOLE << 40),
        ("Pi", WHOLE << 50),
        ("Ei", WHOLE << 60),
        ("n", 1),
        ("u", 1_000),
        ("m", 1_000_000),
        ("k", WHOLE * 1_000),
        ("M", WHOLE * 1_000_000),
        ("G", WHOLE * 1_000_000_000),
        ("T", WHOLE * 1_000_000_000_000),
        ("P", WHOLE * 1_000_000_000_000_000),
        ("E", WHOLE * 1_000_000_000_000_000_000),
        ("", WHOLE),
    ];
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let (number, unit) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) if !exponent.is_empty() => {
            (number, WHOLE.checked_mul(10_i128.checked_pow(exponent.parse().ok()?)?)?)
        }
        _ => {
            let (suffix, unit) = SUFFIXES.iter().find(|(suffix, _)| text.ends_with(suffix))?;
            (text.strip_suffix(suffix)?, *unit)
        }
    };
    match number.split_once('.') {
        None => number.parse::<i128>().ok()?.checked_mul(unit),
        Some((whole, fraction)) if fraction.len() <= 9 => {
            let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
            let digits = format!("{whole}{fraction}").parse::<i128>().ok()?;
            digits.checked_mul(unit)?.checked_div(scale)
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_of_the_api_and_fields_of_others_are_no_difference() {
        let planned = json!({"spec": {"containers": [{"name": "proxy", "image": "a"}], "securityContext": {}}, "metadata": {"labels": {"a": "b"}}});
        let found = json!({"spec": {"containers": [{"name": "mesh"}, {"name": "proxy", "image": "a", "stdin": false}]}, "metadata": {"labels": {"a": "b", "c": "d"}}, "status": {}});
        assert!(holds(&found, &planned));
    }

    #[test]
    fn the_place_of_a_deployment_makes_no_other_mark_and_is_seen_all_the_same() {
        let deployment = |place: Value, finalizers: Value| {
            json!({
                "kind": "Deployment",
                "metadata": { "labels": { "app": "a", (names::DEPLOYMENT_STATE): place }, "finalizers": finalizers },
            })
        };
        let live = deployment("live".into(), json!([names::WAIT_FOR_OWNER]));
        let mut let_go = deployment(Value::Null, json!([]));
        let_go["metadata"]["labels"].as_object_mut().expect("labels").remove(names::DEPLOYMENT_STATE);
        let preview = deployment("preview".into(), json!([names::WAIT_FOR_OWNER]));
        assert_eq!((mark(&live), mark(&preview)), (mark(&let_go), mark(&let_go)));
        assert!(holds(&live, &live) && holds(&let_go, &let_go));
        assert!(!holds(&live, &preview) && !holds(&let_go, &live), "it has another place");
        let mut unlabelled = live.clone();
        unlabelled["metadata"]["labels"] = let_go["metadata"]["labels"].clone();
        assert!(!holds(&live, &unlabelled), "it has a place that it should lose");
        let mut held = let_go.clone();
        held["metadata"]["finalizers"] = json!([names::WAIT_FOR_OWNER]);
        assert!(!holds(&held, &let_go), "it is held");
    }

    #[test]
    fn drift_is_a_difference() {
        let planned = json!({"spec": {"replicas": 2, "command": ["a"], "ports": [{"containerPort": 80}]}});
        assert!(holds(
            &json!({"spec": {"replicas": 2, "command": ["a"], "ports": [{"containerPort": 80, "protocol": "TCP"}]}}),
            &planned
        ));
        assert!(!holds(
            &json!({"spec": {"replicas": 1, "command": ["a"], "ports": [{"containerPort": 80}]}}),
            &planned
        ));
        assert!(!holds(
            &json!({"spec": {"replicas": 2, "command": ["a", "b"], "ports": [{"containerPort": 80}]}}),
            &planned
        ));
        assert!(!holds(&json!({"spec": {"replicas": 2, "command": ["a"]}}), &planned));
    }

    #[test]
    fn quantities_are_compared_as_numbers() {
        for (one, other) in [
            ("1000m", "1"),
            ("1Ki", "1024"),
            ("1.5", "1500m"),
            ("1000Mi", "1000Mi"),
            ("1k", "1000"),
            ("1e3", "1k"),
            (".5", "500m"),
        ] {
            assert_eq!(quantity(&json!(one)), quantity(&json!(other)), "{one} {other}");
        }
        assert_ne!(quantity(&json!("1M")), quantity(&json!("1Mi")));
        assert_eq!(quantity(&json!(1024)), quantity(&json!("1Ki")));
        assert_eq!(quantity(&json!("kong:3.9")), None);
    }

    #[test]
    fn a_quantity_is_one_by_its_place_and_a_text_elsewhere() {
        for (one, other, same) in [
            (json!({"limits": {"example.com/gpu": "1.0"}}), json!({"limits": {"example.com/gpu": "1"}}), true),
            (json!({"resourceFieldRef": {"divisor": "1000m"}}), json!({"resourceFieldRef": {"divisor": "1"}}), true),
            (json!({"emptyDir": {"sizeLimit": "0.5Gi"}}), json!({"emptyDir": {"sizeLimit": "512Mi"}}), true),
            (json!({"target": {"averageValue": "0.5"}}), json!({"target": {"averageValue": "500m"}}), true),
            (json!({"env": [{"name": "A", "value": "1.0"}]}), json!({"env": [{"name": "A", "value": "1"}]}), false),
            (json!({"labels": {"cpu": "1.0"}}), json!({"labels": {"cpu": "1"}}), false),
            (json!({"limits": {"cpu": "many"}}), json!({"limits": {"cpu": "few"}}), false),
        ] {
            assert_eq!(holds(&other, &one), same, "{one} {other}");
        }
    }

    #[test]
    fn a_field_that_is_no_longer_rendered_changes_the_mark() {
        assert_ne!(mark(&json!({"a": 1, "b": 2})), mark(&json!({"a": 1})));
    }
}
