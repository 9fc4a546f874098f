//! The wire nouns: what users write and read through the Kubernetes API. The only room that knows serde
//! attributes of custom resources, schemas and CEL.

pub mod condition;
pub mod dataplane;
pub mod gateplugin;
pub mod promotion;
pub mod promotionpolicy;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};

pub use dataplane::DataPlane;
pub use gateplugin::GatePlugin;
pub use promotion::Promotion;
pub use promotionpolicy::PromotionPolicy;

/// Every custom resource of the project, in the order an admin reads about them.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![DataPlane::crd(), GatePlugin::crd(), PromotionPolicy::crd(), Promotion::crd()]
}

/// Conditions as a list map by `type`, so that two writers do not erase each other's.
fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>();
    json_schema!({
        "type": "array",
        "items": item,
        "maxItems": 8,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

/// Any JSON object, kept as it is.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}
