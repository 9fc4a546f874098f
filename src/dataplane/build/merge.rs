//! PURE. Merges a user's Pod template into the defaults, by name where the API merges by name.

use serde_json::{Map, Value};

use crate::model::lists::{keys_of, same};

/// Fields of which an object may have only one: the user's replaces the default's.
const ONE_OF: [&[&str]; 2] = [&["httpGet", "tcpSocket", "exec", "grpc", "sleep"], &["rollingUpdate", "recreate"]];

/// Lays `over` upon `base`.
pub fn merge(base: &mut Value, over: &Value) {
    merge_field("", base, over);
}

fn merge_field(field: &str, base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => merge_object(base, over),
        (Value::Array(base), Value::Array(over)) if keys_of(field).is_some() => {
            let keys = keys_of(field).unwrap_or_default();
            for entry in over {
                match base.iter_mut().find(|known| same(keys, known, entry)) {
                    // Two sources in one volume are no volume: naming a source replaces the default's.
                    Some(known) if field == "volumes" && entry.as_object().is_some_and(|entry| entry.len() > 1) => {
                        *known = entry.clone();
                    }
                    Some(known) => merge_field("", known, entry),
                    None => base.push(entry.clone()),
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

fn merge_object(base: &mut Map<String, Value>, over: &Map<String, Value>) {
    for alternatives in ONE_OF {
        if alternatives.iter().any(|field| over.contains_key(*field)) {
            base.retain(|field, _| !alternatives.contains(&field.as_str()) || over.contains_key(field));
        }
    }
    for (field, value) in over {
        match base.get_mut(field) {
            Some(known) => merge_field(field, known, value),
            None => {
                base.insert(field.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_merge_by_name_and_other_lists_are_replaced() {
        let mut base = json!({"containers": [{"name": "proxy", "image": "a", "env": [{"name": "A", "value": "1"}], "command": ["x", "y"]}]});
        merge(
            &mut base,
            &json!({"containers": [{"name": "sidecar"}, {"name": "proxy", "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}], "command": ["z"]}]}),
        );
        assert_eq!(
            base,
            json!({"containers": [
                {"name": "proxy", "image": "a", "env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}], "command": ["z"]},
                {"name": "sidecar"},
            ]})
        );
    }

    #[test]
    fn a_volume_named_without_a_source_keeps_the_default_and_one_with_a_source_replaces_it() {
        let base = json!({"volumes": [{"name": "certificate", "secret": {"secretName": "x"}}]});
        let merged = |over: Value| {
            let mut base = base.clone();
            merge(&mut base, &over);
            base
        };
        assert_eq!(merged(json!({"volumes": [{"name": "certificate"}]})), base);
        let own = json!({"volumes": [{"name": "certificate", "emptyDir": {}}]});
        assert_eq!(merged(own.clone()), own);
    }

    #[test]
    fn another_kind_of_probe_replaces_the_default_one() {
        let mut base = json!({"readinessProbe": {"httpGet": {"path": "/status"}, "periodSeconds": 10}});
        merge(&mut base, &json!({"readinessProbe": {"exec": {"command": ["true"]}}}));
        assert_eq!(base, json!({"readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 10}}));
        let mut base = json!({"lifecycle": {"preStop": {"exec": {"command": ["kong", "quit"]}}}});
        merge(&mut base, &json!({"lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}));
        assert_eq!(base, json!({"lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}));
    }
}
