//! `DataPlane`: Kong's API, field for field.

use k8s_openapi::{
    api::core::v1::PodTemplateSpec,
    apimachinery::pkg::{apis::meta::v1::Condition, util::intstr::IntOrString},
};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::model::lists;

/// Set to `true` by people and scripts: promote the staged revision as soon as it may be promoted.
pub const PROMOTE_WHEN_READY: &str = "gateway-operator.konghq.com/promote-when-ready";

/// A Kong Gateway data plane and how it is upgraded.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "gateway-operator.konghq.com",
    version = "v1beta1",
    kind = "DataPlane",
    plural = "dataplanes",
    shortname = "kodp",
    category = "kong",
    namespaced,
    status = "DataPlaneStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "DataPlane is a Kong Gateway data plane and how it is upgraded.",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status",
        description = "The Resource is ready"
    ),
    scale(
        spec_replicas_path = ".spec.deployment.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    validation = Rule::new(
        "has(self.spec.deployment) && has(self.spec.deployment.podTemplateSpec) && has(self.spec.deployment.podTemplateSpec.spec) && self.spec.deployment.podTemplateSpec.spec.containers.exists(c, c.name == 'proxy' && has(c.image))"
    )
    .message("DataPlane requires an image to be set on proxy container"),
    validation = Rule::new(
        "!has(self.spec.deployment) || !has(self.spec.deployment.podTemplateSpec) || !has(self.spec.deployment.podTemplateSpec.spec) || size(self.spec.deployment.podTemplateSpec.spec.containers) == 0 || self.spec.deployment.podTemplateSpec.spec.containers[0].name != 'proxy' || !has(self.spec.deployment.podTemplateSpec.spec.containers[0].env) || self.spec.deployment.podTemplateSpec.spec.containers[0].env.all(e, e.name != 'KONG_DATABASE' || e.value == 'off' || e.value == '')"
    )
    .message("DataPlane supports only db mode 'off'"),
    validation = Rule::new(
        "self.spec == oldSelf.spec || !has(oldSelf.status) || !has(oldSelf.status.rollout) || !has(oldSelf.status.rollout.conditions) || !oldSelf.status.rollout.conditions.exists(c, c.type == 'RolledOut' && c.reason == 'PromotionInProgress')"
    )
    .message("DataPlane spec cannot be updated when promotion is in progress")
)]
#[serde(rename_all = "camelCase")]
pub struct DataPlaneSpec {
    /// What runs.
    #[serde(default)]
    pub deployment: Deployment,
    /// How it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
}

/// What runs, and how a change of it is rolled out.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deployment {
    /// Number of Pods; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// The Pods, merged by name into the operator's defaults. The container `proxy` is the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template_spec: Option<PodTemplate>,
    /// How a change is rolled out; absent: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// A Pod template exactly as the API stored it. Kept raw: a typed copy would drop what this operator was not
/// built to know, and a revision is a comparison of what the user wrote.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(transparent)]
pub struct PodTemplate(pub serde_json::Value);

impl JsonSchema for PodTemplate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        PodTemplateSpec::schema_name()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = PodTemplateSpec::json_schema(generator).to_value();
        as_the_api_server_sees_it(&mut schema);
        Schema::try_from(schema).unwrap_or_default()
    }
}

/// What the generated schema of a Pod lacks: the keys by which lists merge, and the default of one of them.
/// Descriptions go: they are nine tenths of the text, and `kubectl explain pod` has them.
fn as_the_api_server_sees_it(schema: &mut serde_json::Value) {
    if let Some(object) = schema.as_object_mut() {
        if object.get("description").is_some_and(serde_json::Value::is_string) {
            object.remove("description");
        }
        if let Some(properties) = object.get_mut("properties").and_then(serde_json::Value::as_object_mut) {
            for (field, keys) in lists::KEYS {
                // A key has to be in every entry: by schema or, as for the protocol of a port, by default.
                let keyed = |list: &&mut serde_json::Value| {
                    list["type"] == "array" && keys.iter().all(|key| *key == "protocol" || required(list, key))
                };
                let Some(list) = properties.get_mut(field).filter(keyed) else { continue };
                list["x-kubernetes-list-type"] = "map".into();
                list["x-kubernetes-list-map-keys"] = keys.to_vec().into();
                if keys.contains(&"protocol") {
                    list["items"]["properties"]["protocol"]["default"] = "TCP".into();
                }
            }
        }
        object.values_mut().for_each(as_the_api_server_sees_it);
    } else if let Some(items) = schema.as_array_mut() {
        items.iter_mut().for_each(as_the_api_server_sees_it);
    }
}

/// Whether every entry of a list has a field.
fn required(list: &serde_json::Value, field: &str) -> bool {
    list["items"]["required"].as_array().is_some_and(|required| required.iter().any(|name| name == field))
}

/// How a change is rolled out.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// The strategy; an empty one means in place.
    pub strategy: Strategy,
}

/// The strategy of a rollout.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Strategy {
    /// A changed spec starts a preview beside the live side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blue_green: Option<BlueGreen>,
}

/// Blue/green.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlueGreen {
    /// When the preview becomes live.
    pub promotion: PromotionStrategySpec,
    /// What becomes of the preview's resources.
    #[serde(default)]
    pub resources: RolloutResources,
}

/// When the preview becomes live.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromotionStrategySpec {
    /// Only `BreakBeforePromotion`: wait for the annotation `gateway-operator.konghq.com/promote-when-ready`.
    #[serde(default)]
    pub strategy: PromotionStrategy,
}

/// When the preview becomes live.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum PromotionStrategy {
    /// Wait for approval.
    #[default]
    BreakBeforePromotion,
}

/// What becomes of the preview's resources.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutResources {
    /// The plan for each kind of resource.
    #[serde(default)]
    pub plan: RolloutPlan,
}

/// The plan for each kind of resource.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutPlan {
    /// The preview Deployment.
    #[serde(default)]
    pub deployment: DeploymentPlan,
}

/// What becomes of the preview Deployment.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum DeploymentPlan {
    /// At rest it stands at 0 replicas.
    #[default]
    ScaleDownOnPromotionScaleUpOnRollout,
}

/// How a DataPlane is reached.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Its Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Services>,
}

/// The Services of a DataPlane that can be configured.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// The Service that takes proxy traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Ingress>,
}

/// The Service that takes proxy traffic.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ingress {
    /// Type of the Service.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,
    /// Annotations of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Ports; 80 and 443 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4))]
    pub ports: Option<Vec<IngressPort>>,
}

/// Type of the ingress Service.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum ServiceType {
    /// An address from outside the cluster.
    #[default]
    LoadBalancer,
    /// A port on every node.
    NodePort,
    /// Inside the cluster only.
    ClusterIP,
}

impl ServiceType {
    /// As in `Service.spec.type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
            Self::ClusterIP => "ClusterIP",
        }
    }
}

/// A port of the ingress Service.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressPort {
    /// Name of the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Port of the Service.
    pub port: i32,
    /// Port of the container, number or name; 8000 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<IntOrString>,
}

/// What is observed of a DataPlane.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataPlaneStatus {
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    pub conditions: Vec<Condition>,
    /// Name of the live ingress Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Addresses of the live ingress Service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    /// Selector of the live Pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 512))]
    pub selector: Option<String>,
    /// Ready Pods of the live Deployment.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Pods of the live Deployment.
    #[serde(default)]
    pub replicas: i32,
    /// The rollout; absent without a blue/green strategy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
}

/// An address of a Service.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// `IPAddress` or `Hostname`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// The address.
    #[schemars(length(min = 1, max = 253))]
    pub value: String,
    /// `PublicLoadBalancer`, `PrivateLoadBalancer`, `PublicIP` or `PrivateIP`.
    pub source_type: String,
}

/// What is observed of a rollout.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// `RolledOut`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    pub conditions: Vec<Condition>,
    /// The preview Deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<RolloutDeployment>,
    /// The preview Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<RolloutServices>,
}

/// The preview Deployment.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutDeployment {
    /// Selector of the preview Pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 512))]
    pub selector: Option<String>,
}

/// The preview Services.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutServices {
    /// The preview ingress Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<RolloutService>,
    /// The preview admin Service.
    #[serde(default, rename = "adminAPI", skip_serializing_if = "Option::is_none")]
    pub admin_api: Option<RolloutService>,
}

/// A preview Service.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutService {
    /// Its addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addresses: Vec<Address>,
    /// Its name.
    pub name: String,
}
