//! What the API does with an object: server-side apply, merge patches, defaults.

use serde_json::{Map, Value, json};

use crate::model::lists::{keys_of, same};

/// The entries of a list.
pub(in crate::dataplane::tests) fn entries(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// RFC 7396.
pub(in crate::dataplane::tests) fn merge_patch(base: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return *base = patch.clone() };
    if !base.is_object() {
        *base = json!({});
    }
    for (field, value) in patch {
        match value {
            Value::Null => drop(base.as_object_mut().and_then(|base| base.remove(field))),
            value => merge_patch(&mut base[field], value),
        }
    }
}

/// The keys by which an entry is known in a list of Kubernetes; none where the list is one thing.
fn identity(field: &str, entry: &Value) -> Option<&'static [&'static str]> {
    match field {
        "ports" if entry.get("port").is_some() => Some(&["port", "protocol"]),
        "ownerReferences" => Some(&["uid"]),
        "finalizers" => Some(&[]),
        field => keys_of(field),
    }
}

fn is_same(keys: &[&str], one: &Value, other: &Value) -> bool {
    if keys.is_empty() { one == other } else { same(keys, one, other) }
}

/// What server-side apply adds.
pub(in crate::dataplane::tests) fn overlay(field: &str, found: &mut Value, applied: &Value) {
    match (found, applied) {
        (Value::Object(found), Value::Object(applied)) if field != "selector" => {
            for (field, applied) in applied {
                overlay(field, found.entry(field.clone()).or_insert(Value::Null), applied);
            }
        }
        (Value::Array(found), Value::Array(applied)) if applied.iter().all(|one| identity(field, one).is_some()) => {
            for entry in applied {
                let keys = identity(field, entry).unwrap_or_default();
                match found.iter_mut().find(|known| is_same(keys, known, entry)) {
                    Some(known) => overlay("", known, entry),
                    None => found.push(entry.clone()),
                }
            }
        }
        (found, applied) => *found = applied.clone(),
    }
}

/// What server-side apply takes away: what was applied before and is not any more.
pub(in crate::dataplane::tests) fn prune(field: &str, found: &mut Value, before: &Value, after: &Value) {
    match (found, before) {
        (Value::Object(found), Value::Object(before)) if field != "selector" => {
            for (field, before) in before {
                let Some(known) = found.get_mut(field) else { continue };
                match after.get(field) {
                    Some(after) => prune(field, known, before, after),
                    None if before.is_object() => prune(field, known, before, &Value::Null),
                    None => *known = Value::Null,
                }
                if known.is_null() || known.as_object().is_some_and(Map::is_empty) {
                    found.remove(field);
                }
            }
        }
        (Value::Array(found), Value::Array(before)) if before.iter().all(|one| identity(field, one).is_some()) => {
            for entry in before {
                let keys = identity(field, entry).unwrap_or_default();
                match entries(after).find(|after| is_same(keys, after, entry)) {
                    Some(after) => {
                        found.iter_mut().filter(|known| is_same(keys, known, entry)).for_each(|known| {
                            prune("", known, entry, after);
                        });
                    }
                    None => found.retain(|known| !is_same(keys, known, entry)),
                }
            }
        }
        _ => {}
    }
}

/// What the API adds to what it is given.
pub(in crate::dataplane::tests) fn default(kind: &str, object: &mut Value) {
    match kind {
        "Deployment" => {
            fill(
                object,
                &json!({ "spec": { "replicas": 1, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10 } }),
            );
            let pod = &mut object["spec"]["template"]["spec"];
            fill(pod, &json!({ "schedulerName": "default-scheduler" }));
            for volume in pod["volumes"].as_array_mut().into_iter().flatten() {
                if let Some(secret) = volume.get_mut("secret") {
                    fill(secret, &json!({ "defaultMode": 420 }));
                }
            }
            for container in pod["containers"].as_array_mut().into_iter().flatten() {
                fill(
                    container,
                    &json!({ "terminationMessagePath": "/dev/termination-log", "imagePullPolicy": "IfNotPresent" }),
                );
                for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                    if let Some(probe) = container.get_mut(probe) {
                        fill(
                            probe,
                            &json!({ "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 }),
                        );
                    }
                }
            }
        }
        "Service" => {
            let outside = ["LoadBalancer", "NodePort"].iter().any(|type_| object["spec"]["type"] == *type_);
            if outside {
                fill(&mut object["spec"], &json!({ "externalTrafficPolicy": "Cluster" }));
            }
            for port in object["spec"]["ports"].as_array_mut().into_iter().flatten().filter(|_| outside) {
                let chosen = 30_000 + port["port"].as_i64().unwrap_or_default();
                fill(port, &json!({ "nodePort": chosen }));
            }
        }
        _ => {}
    }
}

fn fill(object: &mut Value, defaults: &Value) {
    for (field, default) in defaults.as_object().into_iter().flatten() {
        match object.get_mut(field) {
            Some(known) if known.is_object() => fill(known, default),
            Some(known) if !known.is_null() => {}
            _ => object[field] = default.clone(),
        }
    }
}
