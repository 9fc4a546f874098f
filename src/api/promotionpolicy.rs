//! `PromotionPolicy` and `ClusterPromotionPolicy`: which gates judge the upgrades of which DataPlanes, and by which rules.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::grants::Grants;
use crate::model::{PluginKey, trial::Moment};

/// The condition that says whether all gates of a policy can be run.
pub const ACCEPTED: &str = "Accepted";

/// Which gates judge the upgrades of which DataPlanes of a namespace.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "PromotionPolicy",
    plural = "promotionpolicies",
    category = "sluice",
    namespaced,
    status = "PromotionPolicyStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "PromotionPolicy says which gates judge the upgrades of which DataPlanes of its namespace. Every matching policy counts: gates add up and the strictest rule wins.",
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type=='Accepted')].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct PromotionPolicySpec {
    /// DataPlanes of this namespace, by label; an empty selector means all of them.
    pub selector: LabelSelector,
    /// What is demanded of them.
    #[serde(flatten)]
    pub rules: PolicyRules,
}

/// Which gates judge the upgrades of which DataPlanes of the cluster.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "ClusterPromotionPolicy",
    plural = "clusterpromotionpolicies",
    category = "sluice",
    status = "PromotionPolicyStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "ClusterPromotionPolicy says which gates judge the upgrades of which DataPlanes of which namespaces. It counts beside the policies of a namespace: gates add up and the strictest rule wins. Secrets that it names are those of the DataPlane's namespace.",
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type=='Accepted')].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.gates) || self.gates.all(gate, gate.pluginRef.kind == 'ClusterGatePlugin')").message(
    "pluginRef.kind has to be ClusterGatePlugin: a plugin of a namespace is whatever that namespace makes it"
))]
pub struct ClusterPromotionPolicySpec {
    /// Namespaces, by label; an empty selector means all of them.
    pub namespace_selector: LabelSelector,
    /// DataPlanes of these namespaces, by label; an empty selector means all of them.
    pub selector: LabelSelector,
    /// What is demanded of them.
    #[serde(flatten)]
    pub rules: PolicyRules,
}

/// What a policy demands of the upgrades of its DataPlanes. Of several policies, gates add up and the strictest rule wins.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRules {
    /// Who approves an upgrade.
    #[serde(default)]
    pub approval: ApprovalRule,
    /// Nothing is promoted while this is true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// The gates. A revision is promoted only after every one of them passed for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "gates")]
    pub gates: Vec<Gate>,
    /// Seconds for which the replaced side lives on after traffic has moved.
    #[serde(default = "defaults::scale_down_delay")]
    #[schemars(range(min = 0, max = 86_400))]
    pub scale_down_delay_seconds: i32,
    /// Seconds for every phase that waits for machines.
    #[serde(default = "defaults::progress_deadline")]
    #[schemars(range(min = 1, max = 86_400))]
    pub progress_deadline_seconds: i32,
}

/// Who approves an upgrade.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum ApprovalRule {
    /// A person, by the annotation of the DataPlane or in the Promotion.
    #[default]
    Manual,
    /// Nobody has to: promoted once every gate has its outcome, those that are only recorded included, and none refuses.
    Automatic,
}

/// One gate of a policy.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// Its name in evidence, Events and conditions.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The plugin that judges.
    pub plugin_ref: PluginRef,
    /// What the plugin is told; checked against its schema, then by itself.
    #[serde(default = "defaults::settings")]
    #[schemars(schema_with = "super::any_object")]
    pub settings: serde_json::Value,
    /// What it may speak to beside the candidate's proxy, and with whose secrets.
    // Absent where nothing is said: the entry's hash, which evidence holds for, is then that of the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<Grants>,
    /// Wall time of one trial.
    #[serde(default = "defaults::timeout")]
    #[schemars(schema_with = "duration")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('1h')").message("must be more than 0s and at most 1h"))]
    pub timeout: String,
    /// Trials in all, for errors that may go away by themselves; a `fail` is final.
    #[serde(default = "defaults::max_attempts")]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: i32,
    /// Time between two attempts.
    #[serde(default = "defaults::retry_backoff")]
    #[schemars(schema_with = "duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('1h')").message("must be at least 0s and at most 1h"))]
    pub retry_backoff: String,
    /// `BeforePromotion`, or `AfterPromotion`: judged behind the live Services while the replaced side stands. What does not
    /// pass then moves traffic back.
    // Absent where nothing is said, as grants are.
    #[serde(default, skip_serializing_if = "Moment::is_default")]
    pub when: Moment,
    /// `Enforce`, or `DryRun`: recorded and never obeyed.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// What becomes of an upgrade about which this gate has no knowledge: it could not run, or broke too often.
    #[serde(default)]
    pub on_error: Lack,
    /// Likewise where the gate looked and could not tell.
    #[serde(default)]
    pub on_inconclusive: Lack,
    /// A gate that passed judges again after this time for as long as a person is awaited; off if absent. Its evidence
    /// stands until the new outcome is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('168h')").message("must be at least 1s and at most 168h"))]
    pub recheck_interval: Option<String>,
    /// Time for all trials of one judgement together, waits included.
    #[serde(default = "defaults::deadline")]
    #[schemars(schema_with = "duration")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('168h')").message("must be more than 0s and at most 168h"))]
    pub deadline: String,
}

/// Whether a gate is obeyed.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Enforcement {
    /// Nothing is promoted that it did not pass.
    #[default]
    Enforce,
    /// Its outcome is recorded, and nothing waits for it.
    DryRun,
}

/// What follows from a lack of knowledge.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Lack {
    /// The upgrade is held until somebody looks.
    #[default]
    Hold,
    /// As if the gate had said no.
    Fail,
    /// The gate is waived for this revision, which evidence and an Event say.
    Waive,
}

/// The plugin of a gate.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PluginRef {
    /// Whether it belongs to the policy's namespace or to the cluster.
    #[serde(default)]
    pub kind: PluginKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The kind of a plugin object.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum PluginKind {
    /// A `GatePlugin` of the policy's namespace.
    #[default]
    GatePlugin,
    /// A `ClusterGatePlugin`.
    ClusterGatePlugin,
}

impl PluginRef {
    /// The object it names, in a policy of `namespace`.
    #[must_use]
    pub fn key(&self, namespace: &str) -> PluginKey {
        match self.kind {
            PluginKind::GatePlugin => PluginKey::of_namespace(namespace, &self.name),
            PluginKind::ClusterGatePlugin => PluginKey::of_cluster(&self.name),
        }
    }
}

/// What is observed of a policy.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromotionPolicyStatus {
    /// `Accepted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    pub conditions: Vec<Condition>,
}

fn gates(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<Gate>();
    json_schema!({
        "type": "array",
        "items": item,
        // More than anyone has asked for, few enough that evidence stays a small object.
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    })
}

/// A duration as Go and Kubernetes write it: `300ms`, `1m30s`.
pub(super) fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 32, "pattern": "^([0-9]+(\\.[0-9]+)?(ms|s|m|h))+$" })
}

/// The defaults of `spec`, shown in the schema and used where a rule is asked for without a policy.
pub mod defaults {
    /// Long enough for every node to have learnt of the switch.
    #[must_use]
    pub fn scale_down_delay() -> i32 {
        30
    }
    /// As a Deployment's own.
    #[must_use]
    pub fn progress_deadline() -> i32 {
        600
    }
    pub(super) fn settings() -> serde_json::Value {
        serde_json::json!({})
    }
    pub(super) fn timeout() -> String {
        "30s".into()
    }
    pub(super) fn max_attempts() -> i32 {
        3
    }
    pub(super) fn retry_backoff() -> String {
        "5s".into()
    }
    pub(super) fn deadline() -> String {
        "10m".into()
    }
}
