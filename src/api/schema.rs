//! Dresses the generated schema of a `DataPlane` as Kong's controller tools write theirs, so that both accept and refuse
//! the same manifests.

use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::model::lists;

/// A value exactly as the API stored it, with the schema of `T`. Kept raw: a typed copy would drop what this operator
/// was not built to know, and a revision is a comparison of what the user wrote.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct Raw<T>(pub Value, #[serde(skip)] PhantomData<fn() -> T>);

impl<T> Clone for Raw<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<T> Default for Raw<T> {
    fn default() -> Self {
        Self(Value::Null, PhantomData)
    }
}

impl<T> PartialEq for Raw<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> std::fmt::Debug for Raw<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl<T: JsonSchema> JsonSchema for Raw<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = T::json_schema(generator).to_value();
        // They are nine tenths of the text, and `kubectl explain pod` has them.
        strip_descriptions(&mut schema);
        Schema::try_from(schema).unwrap_or_default()
    }
}

fn strip_descriptions(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("description").is_some_and(Value::is_string) {
                object.remove("description");
            }
            object.values_mut().for_each(strip_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_descriptions),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// How a quantity is written, for the fields that hold one.
const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// Fields that hold a quantity, or a map of quantities; everything else that is an integer or a string is a port or a
/// percentage.
const QUANTITIES: [&str; 8] =
    ["divisor", "sizeLimit", "averageValue", "value", "tolerance", "limits", "requests", "overhead"];

/// Fields of Pods that came after the release of Kubernetes which Kong's definition was made with.
const LATER: [&str; 5] = ["fileKeyRef", "restartPolicyRules", "hostnameOverride", "schedulingGroup", "podCertificate"];

/// What of an embedded object's metadata a user may set.
const EMBEDDED_METADATA: [&str; 5] = ["annotations", "finalizers", "labels", "name", "namespace"];

/// References to one object by name: applied as a whole, and the name may be missing.
const NAMED: [&str; 8] = [
    "configMapKeyRef",
    "secretKeyRef",
    "configMapRef",
    "secretRef",
    "configMap",
    "secret",
    "nodePublishSecretRef",
    "imagePullSecrets",
];

/// Other objects that are applied as a whole.
const ATOMIC: [&str; 8] = [
    "fieldRef",
    "resourceFieldRef",
    "labelSelector",
    "namespaceSelector",
    "selector",
    "nodeSelector",
    "preference",
    "dataSource",
];

/// Defaults that the API fills in where a user leaves a field out: parent, field, value.
const DEFAULTS: [(&str, &str, &str); 10] = [
    ("grpc", "service", ""),
    ("azureDisk", "fsType", "ext4"),
    ("azureDisk", "readOnly", "false"),
    ("iscsi", "iscsiInterface", "default"),
    ("rbd", "keyring", "/etc/ceph/keyring"),
    ("rbd", "pool", "rbd"),
    ("rbd", "user", "admin"),
    ("scaleIO", "fsType", "xfs"),
    ("scaleIO", "storageMode", "ThinProvisioned"),
    ("addresses", "type", "IPAddress"),
];

/// Dresses a schema, all the way down.
pub fn dress(schema: &mut Value) {
    dress_field("", schema);
}

/// `field` holds what this is the schema of.
fn dress_field(field: &str, schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    // Nothing is null in Kong's: what is not there is left out.
    object.remove("nullable");
    if object.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        object.insert("anyOf".into(), json!([{ "type": "integer" }, { "type": "string" }]));
        if QUANTITIES.contains(&field) {
            object.insert("pattern".into(), QUANTITY.into());
        }
    }
    dress_list(field, object);
    // A list's field stands for its entries, and a map's for its values.
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(inner).filter(|inner| inner.is_object()) {
            dress_field(field, inner);
        }
    }
    dress_object(field, object);
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        properties.retain(|name, _| !LATER.contains(&name.as_str()));
        for (name, property) in properties.iter_mut() {
            if let Some((.., value)) = DEFAULTS.iter().find(|(of, default, _)| *of == field && *default == name) {
                property["default"] = value.parse::<bool>().map_or_else(|_| Value::from(*value), Value::from);
            }
            dress_field(name, property);
        }
    }
}

/// The keys by which the entries of a list are told apart: in every entry, by schema or by default.
fn dress_list(field: &str, list: &mut Map<String, Value>) {
    let Some(keys) = lists::keys_of(field).filter(|_| list.get("type") == Some(&"array".into())) else { return };
    let required = |key: &str| {
        list["items"]["required"].as_array().is_some_and(|required| required.iter().any(|name| name == key))
    };
    // References may lack their name until it is filled in; the protocol of a port likewise.
    if !keys.iter().all(|key| *key == "protocol" || required(key) || NAMED.contains(&field)) {
        return;
    }
    list.insert("x-kubernetes-list-type".into(), "map".into());
    list.insert("x-kubernetes-list-map-keys".into(), keys.to_vec().into());
    if keys.contains(&"protocol")
        && let Some(items) = list.get_mut("items")
    {
        items["properties"]["protocol"]["default"] = "TCP".into();
    }
}

fn dress_object(field: &str, object: &mut Map<String, Value>) {
    if object.get("type") != Some(&"object".into()) {
        return;
    }
    let has_name = object.get("properties").and_then(|properties| properties.get("name")).is_some();
    if NAMED.contains(&field) && has_name {
        if let Some(required) = object.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|name| name != "name");
        }
        if object.get("required").is_some_and(|required| required == &json!([])) {
            object.remove("required");
        }
        if let Some(name) = object.get_mut("properties").and_then(|properties| properties.get_mut("name")) {
            name["default"] = "".into();
        }
    }
    let selects = object.get("properties").is_some() || field == "nodeSelector";
    if (NAMED.contains(&field) && has_name) || (ATOMIC.contains(&field) && selects && object.get("items").is_none()) {
        object.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    let embedded = object.get("properties").and_then(|properties| properties.get("managedFields")).is_some()
        && field == "metadata";
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut).filter(|_| embedded) {
        properties.retain(|name, _| EMBEDDED_METADATA.contains(&name.as_str()));
    }
}
