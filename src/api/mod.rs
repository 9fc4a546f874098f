//! The wire nouns: what users write and read through the Kubernetes API. The only room that knows serde
//! attributes of custom resources, schemas and CEL.

pub mod condition;
pub mod dataplane;
pub mod gateplugin;
pub mod grants;
pub mod promotion;
pub mod promotionpolicy;
pub mod schema;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::json;

pub use dataplane::DataPlane;
pub use gateplugin::{ClusterGatePlugin, GatePlugin};
pub use promotion::Promotion;
pub use promotionpolicy::{ClusterPromotionPolicy, PromotionPolicy};

/// Every custom resource of the project, in the order an admin reads about them.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        kongs(DataPlane::crd()),
        GatePlugin::crd(),
        ClusterGatePlugin::crd(),
        PromotionPolicy::crd(),
        ClusterPromotionPolicy::crd(),
        Promotion::crd(),
    ]
}

/// A definition whose schema says what Kong's says.
fn kongs(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    crd.spec.names.list_kind = Some(format!("{}List", crd.spec.names.kind));
    for version in &mut crd.spec.versions {
        let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) else {
            continue;
        };
        let mut dressed = serde_json::json!(schema);
        schema::dress(&mut dressed);
        if let Ok(dressed) = serde_json::from_value(dressed) {
            *schema = dressed;
        }
    }
    crd
}

/// Conditions as a list map by `type`, so that two writers do not erase each other's.
fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let condition = generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>();
    let mut item = condition.to_value();
    // What the API says of conditions and the generated type does not.
    for (field, name, value) in [
        ("message", "maxLength", json!(32_768)),
        ("observedGeneration", "minimum", json!(0)),
        ("reason", "minLength", json!(1)),
        ("reason", "maxLength", json!(1_024)),
        ("reason", "pattern", json!("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")),
        ("status", "enum", json!(["True", "False", "Unknown"])),
        ("type", "maxLength", json!(316)),
        (
            "type",
            "pattern",
            json!(
                r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
            ),
        ),
    ] {
        item["properties"][field][name] = value;
    }
    json_schema!({
        "type": "array",
        "items": item,
        "minItems": 1,
        "maxItems": 8,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

/// Any JSON object, kept as it is.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}
