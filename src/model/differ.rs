//! Whether an object already is what it should be. Server-side apply without a reason is a write without a reason.

use serde_json::Value;

use super::{
    lists::{keys_of, same},
    names,
};

/// A resource version that no object has: an apply with it creates, and conflicts where something of the name exists.
pub const ABSENT: &str = "1";

/// Hash of a rendered object. A field that is no longer rendered shows here, for the object still has it.
#[must_use]
pub fn mark(body: &Value) -> String {
    names::hash(&[&body.to_string()], 16)
}

/// True where `found` carries the mark of `planned` and every field of it: nothing to prune and nothing drifted.
/// Fields that only `found` has belong to others.
#[must_use]
pub fn holds(found: &Value, planned: &Value) -> bool {
    contains("", found, planned)
}

fn contains(field: &str, found: &Value, planned: &Value) -> bool {
    match (found, planned) {
        // What a Service or a budget selects is one thing: a key more selects other Pods.
        (Value::Object(found), Value::Object(planned)) if field == "selector" => found == planned,
        (Value::Object(found), Value::Object(planned)) => {
            planned.iter().all(|(field, planned)| match found.get(field) {
                Some(found) => contains(field, found, planned),
                // The API drops what is empty.
                None => empty(planned),
            })
        }
        (Value::Array(found), Value::Array(planned)) => match keys_of(field) {
            Some(keys) => planned
                .iter()
                .all(|planned| found.iter().any(|found| same(keys, found, planned) && contains("", found, planned))),
            None if field == "ownerReferences" || field == "finalizers" => {
                planned.iter().all(|planned| found.iter().any(|found| contains("", found, planned)))
            }
            None => {
                found.len() == planned.len()
                    && found.iter().zip(planned).all(|(found, planned)| contains("", found, planned))
            }
        },
        (found, planned) => found == planned || (is_quantity(field) && quantity(found) == quantity(planned)),
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
fn is_quantity(field: &str) -> bool {
    ["cpu", "memory", "ephemeral-storage", "sizeLimit"].contains(&field) || field.starts_with("hugepages-")
}

/// A Kubernetes quantity in thousandths: `1000m` and `1` are the same, and the API keeps only one spelling.
fn quantity(value: &Value) -> Option<i128> {
    const SUFFIXES: [(&str, i128); 13] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("Ei", 1 << 60),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000),
        ("", 1),
    ];
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let (number, thousandths) = match text.strip_suffix('m') {
        Some(number) => (number, 1),
        None => {
            let (suffix, factor) = SUFFIXES.iter().find(|(suffix, _)| text.ends_with(suffix))?;
            (text.strip_suffix(suffix)?, factor * 1_000)
        }
    };
    match number.split_once('.') {
        None => number.parse::<i128>().ok()?.checked_mul(thousandths),
        Some((whole, fraction)) if fraction.len() <= 9 => {
            let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
            let digits = whole.parse::<i128>().ok()?.checked_mul(scale)? + fraction.parse::<i128>().ok()?;
            digits.checked_mul(thousandths)?.checked_div(scale)
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
        for (one, other) in [("1000m", "1"), ("1Ki", "1024"), ("1.5", "1500m"), ("1000Mi", "1000Mi"), ("1k", "1000")] {
            assert_eq!(quantity(&json!(one)), quantity(&json!(other)), "{one} {other}");
        }
        assert_ne!(quantity(&json!("1M")), quantity(&json!("1Mi")));
        assert_eq!(quantity(&json!("kong:3.9")), None);
    }

    #[test]
    fn a_field_that_is_no_longer_rendered_changes_the_mark() {
        assert_ne!(mark(&json!({"a": 1, "b": 2})), mark(&json!({"a": 1})));
    }
}
