//! `DataPlane`: Kong's API, field for field.

use k8s_openapi::{
    api::{
        autoscaling::v2::{HorizontalPodAutoscalerBehavior, MetricSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::{apis::meta::v1::Condition, util::intstr::IntOrString},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::schema::Raw;

/// Set to `true` by people and scripts: promote the staged revision as soon as it may be promoted.
pub const PROMOTE_WHEN_READY: &str = "gateway-operator.konghq.com/promote-when-ready";
/// `key=value[,key=value...]`: what the Services of a DataPlane without blue/green select instead of its own Pods.
pub const SERVICE_SELECTOR_OVERRIDE: &str = "gateway-operator.konghq.com/service-selector-override";

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
#[x_kube(validation = Rule::new(
    "!has(self.extensions) || self.extensions.all(e, e.kind == 'KonnectExtension' && e.group in ['konnect.konghq.com', 'gateway-operator.konghq.com'])"
).message("Extension not allowed for DataPlane"))]
pub struct DataPlaneSpec {
    /// What runs.
    #[serde(default)]
    pub deployment: Deployment,
    /// How it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// What else belongs to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Kong's Konnect extension: accepted, and refused with a condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 0, max = 1))]
    pub extensions: Option<Vec<ExtensionRef>>,
    /// Plugins from images: accepted, and refused with a condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugins_to_install: Option<Vec<NamespacedName>>,
}

/// A reference to an extension.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExtensionRef {
    /// API group of the extension.
    #[serde(default = "gateway_operator")]
    pub group: String,
    /// Kind of the extension.
    pub kind: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

fn gateway_operator() -> String {
    "gateway-operator.konghq.com".into()
}

/// An object's name, and its namespace if it is in another one.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespacedName {
    /// The name.
    pub name: String,
    /// The namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// What else belongs to a DataPlane.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// A PodDisruptionBudget for the live Pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_disruption_budget: Option<PodDisruptionBudget>,
}

/// A PodDisruptionBudget for the live Pods.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodDisruptionBudget {
    /// Its spec, without the selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<PodDisruptionBudgetSpec>,
}

/// What a PodDisruptionBudget asks for.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.minAvailable) != has(self.maxUnavailable)").message(
    "You can specify only one of maxUnavailable and minAvailable in a single PodDisruptionBudgetSpec."
))]
pub struct PodDisruptionBudgetSpec {
    /// An eviction is refused where fewer Pods, or less than this percentage, would stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_available: Option<IntOrString>,
    /// An eviction is refused where more Pods, or more than this percentage, would be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrString>,
    /// What becomes of Pods that are not ready: `IfHealthyBudget` or `AlwaysAllow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy_pod_eviction_policy: Option<String>,
}

/// What runs, and how a change of it is rolled out.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.scaling) || !has(self.replicas)").message(
    "Using both replicas and scaling fields is not allowed."
))]
pub struct Deployment {
    /// Number of Pods; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Lets an autoscaler choose the number of Pods; not together with `replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// The Pods, merged by name into the operator's defaults. The container `proxy` is the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template_spec: Option<PodTemplate>,
    /// How a change is rolled out; absent: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// A Pod template exactly as the API stored it.
pub type PodTemplate = Raw<PodTemplateSpec>;

/// How the number of Pods is chosen by something else than the user.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scaling {
    /// A HorizontalPodAutoscaler for the live Deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub horizontal: Option<HorizontalScaling>,
}

/// What the HorizontalPodAutoscaler of the live Deployment is made of.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HorizontalScaling {
    /// Never fewer Pods; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<i32>,
    /// Never more Pods.
    pub max_replicas: i32,
    /// What is measured; 80 % of the requested CPU if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Raw<Vec<MetricSpec>>>,
    /// How fast it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<Raw<HorizontalPodAutoscalerBehavior>>,
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
    /// A certificate for Konnect: accepted, and refused with a condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub konnect_certificate: Option<KonnectCertificate>,
}

/// A certificate for Konnect.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KonnectCertificate {
    /// Who issues it.
    pub issuer: NamespacedName,
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
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "!has(self.ports) || !self.ports.exists(p, has(p.nodePort)) || (has(self.type) && self.type in ['LoadBalancer', 'NodePort'])"
).message("Cannot set NodePort when service type is not NodePort or LoadBalancer"))]
#[x_kube(validation = Rule::new(
    "!has(self.type) || self.type != 'ClusterIP' || !has(self.externalTrafficPolicy)"
).message("Cannot set ExternalTrafficPolicy for ClusterIP service."))]
pub struct Ingress {
    /// Type of the Service.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,
    /// Name of the live Service; made up if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether traffic from outside may go to Pods of other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<ExternalTrafficPolicy>,
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

/// Whether traffic from outside may go to Pods of other nodes.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum ExternalTrafficPolicy {
    /// It may.
    Cluster,
    /// It stays on the node it came to, and keeps its source address.
    Local,
}

impl ExternalTrafficPolicy {
    /// As in `Service.spec.externalTrafficPolicy`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
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
    /// Port on every node; chosen by the cluster if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<i32>,
}

/// What is observed of a DataPlane.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataPlaneStatus {
    /// `Ready` and, where waiting will not help, `Stalled`.
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
    #[schemars(regex(pattern = "^IPAddress|Hostname$"))]
    pub type_: Option<String>,
    /// The address.
    #[schemars(length(min = 1, max = 253))]
    pub value: String,
    /// `PublicLoadBalancer`, `PrivateLoadBalancer`, `PublicIP` or `PrivateIP`.
    #[schemars(regex(pattern = "^PublicLoadBalancer|PrivateLoadBalancer|PublicIP|PrivateIP$"))]
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
