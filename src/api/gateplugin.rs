//! `GatePlugin` and `ClusterGatePlugin`: a WebAssembly component that can judge an upgrade, and what came of
//! installing it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The condition that says whether a plugin can be used.
pub const READY: &str = "Ready";

/// What a gate plugin of a namespace is made of.
#[allow(clippy::duplicated_attributes, reason = "columns of one type are not one column")]
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "GatePlugin",
    plural = "gateplugins",
    category = "sluice",
    namespaced,
    status = "GatePluginStatus",
    derive = "PartialEq",
    doc = "GatePlugin installs a WebAssembly component that can judge the upgrades of DataPlanes in its namespace.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest"),
    printcolumn(name = "Contract", type_ = "string", json_path = ".status.contract"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.verify) || has(self.source.oci)").message(
    "verify needs source.oci: signatures are found beside an image"
))]
pub struct GatePluginSpec {
    /// Where the bytes are.
    pub source: Source,
    /// Which bytes are accepted.
    #[serde(flatten)]
    pub trust: Trust,
    /// What each of its trials may use up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<PluginLimits>,
}

/// What a gate plugin of the cluster is made of.
#[allow(clippy::duplicated_attributes, reason = "columns of one type are not one column")]
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "ClusterGatePlugin",
    plural = "clustergateplugins",
    category = "sluice",
    status = "GatePluginStatus",
    derive = "PartialEq",
    doc = "ClusterGatePlugin installs a WebAssembly component that can judge the upgrades of DataPlanes in every namespace. ConfigMaps and Secrets that it names are those of the operator's namespace.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest"),
    printcolumn(name = "Contract", type_ = "string", json_path = ".status.contract"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.verify) || has(self.source.oci)").message(
    "verify needs source.oci: signatures are found beside an image"
))]
pub struct ClusterGatePluginSpec {
    /// Where the bytes are.
    pub source: ClusterSource,
    /// Which bytes are accepted.
    #[serde(flatten)]
    pub trust: Trust,
    /// What each of its trials may use up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<PluginLimits>,
}

/// What a trial of a plugin may use up. The operator's flags say how much that can be at most; over it the plugin is not
/// ready.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PluginLimits {
    /// CPU time, as in `500ms` or `2s`. Default `2s`. Waiting costs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Bytes of all its memories and tables, as in `64Mi`. Default `64Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Requests. Default 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<i64>,
    /// Bytes of all requests and answers, as in `256Mi`. Default `256Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<String>,
}

/// Where the bytes of a plugin are.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = exactly_one)]
pub enum Source {
    /// An image of a registry that the operator's --plugin-sources lists.
    Oci(OciSource),
    /// A file of a web server that the operator's --plugin-sources lists.
    Http(HttpSource),
    /// A ConfigMap of the same namespace.
    ConfigMap(ConfigMapSource),
}

/// Where the bytes of a plugin of the cluster are.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = exactly_one)]
pub enum ClusterSource {
    /// An image of a registry that the operator's --plugin-sources lists.
    Oci(OciSource),
    /// A file of a web server that the operator's --plugin-sources lists.
    Http(HttpSource),
    /// A ConfigMap of the operator's namespace.
    ConfigMap(ConfigMapSource),
    /// A file in the operator's --plugin-folder.
    File(FileSource),
}

impl From<Source> for ClusterSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Oci(source) => Self::Oci(source),
            Source::Http(source) => Self::Http(source),
            Source::ConfigMap(source) => Self::ConfigMap(source),
        }
    }
}

/// A WebAssembly component as an OCI artifact: one layer `application/wasm`, as `wkg oci push` writes it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OciSource {
    /// `REGISTRY/REPOSITORY:TAG` or `REGISTRY/REPOSITORY@sha256:DIGEST`. A tag is resolved once for each generation
    /// of this object, and stays what it was however it moves.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,
    /// A Secret of type `kubernetes.io/dockerconfigjson`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret_ref: Option<SecretRef>,
}

/// The name of a Secret.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A component behind a URL.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Where it is; https only.
    #[schemars(length(max = 2048), regex(pattern = "^https://"))]
    pub url: String,
    /// The sha256 of what is there, as 64 hexadecimal digits.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub sha256: String,
}

/// A key of a ConfigMap that holds a component, plain or gzip.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapSource {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in its `binaryData`.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A file that holds a component.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileSource {
    /// Relative to the operator's --plugin-folder.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
}

/// Which bytes are accepted.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trust {
    /// The only component that is accepted: `sha256:` and 64 hexadecimal digits, as in `status.digest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^sha256:[0-9a-f]{64}$"))]
    pub digest: Option<String>,
    /// Who must have signed the image; without it, signatures are not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// Takes the plugin out of use: it is not fetched and not run again, and passes that it gave to upgrades not yet
    /// promoted are void.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
}

/// Whose signatures count, as cosign makes them.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.keys) || has(self.identities)").message("name a key or an identity"))]
pub struct Verify {
    /// Public keys in PEM: ECDSA P-256 and P-384, Ed25519, RSA. `cosign sign --key` signs so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 8192)))]
    pub keys: Vec<String>,
    /// Identities, verified against the operator's --sigstore-trust-root. `cosign sign` signs so without a key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub identities: Vec<Identity>,
    /// How many of them must have signed.
    #[serde(default)]
    pub require: Require,
}

/// Somebody whom an issuer of tokens knows.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The issuer, in full: `https://token.actions.githubusercontent.com`.
    #[schemars(length(min = 1, max = 1024))]
    pub issuer: String,
    /// The subject, in full: an e-mail address or a URI.
    #[schemars(length(min = 1, max = 1024))]
    pub subject: String,
}

/// How many of several must have signed.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Require {
    /// One is enough.
    #[default]
    Any,
    /// Each of them.
    All,
}

/// What came of installing a plugin.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatePluginStatus {
    /// `Fetched`, `Verified`, `Compiled`, `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    pub conditions: Vec<Condition>,
    /// The image that the spec was found to mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolved>,
    /// sha256 of the component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Bytes of the component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// The contract it was built for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract: Option<String>,
    /// What it imports: all that it can do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<String>,
    /// What it says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<PluginDescription>,
    /// JSON Schema of its settings, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings_schema: Option<String>,
}

/// What an image was found to mean.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// The generation of the object for which it holds.
    pub generation: i64,
    /// `sha256:` and 64 hexadecimal digits of its manifest.
    pub manifest_digest: String,
}

/// What a plugin says of itself.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PluginDescription {
    /// Its own name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One sentence.
    pub summary: String,
}

/// An enum of objects as the API shows it: every variant is a field, and a rule says in plain words that there is
/// one. What `oneOf` says of a wrong object helps nobody.
fn exactly_one(schema: &mut Schema) {
    let Some(Value::Array(variants)) = schema.remove("oneOf") else { return };
    let mut properties = Map::new();
    for variant in variants {
        let Some(fields) = variant["properties"].as_object() else { continue };
        for (name, field) in fields {
            let mut field = field.clone();
            field["description"] = variant["description"].clone();
            properties.insert(name.clone(), field);
        }
    }
    let names: Vec<_> = properties.keys().cloned().collect();
    let there: Vec<_> = names.iter().map(|name| format!("has(self.{name})")).collect();
    let rule = format!("[{}].exists_one(there, there)", there.join(", "));
    schema.insert("type".into(), json!("object"));
    schema.insert("properties".into(), Value::Object(properties));
    let message = format!("name exactly one of {}", names.join(", "));
    schema.insert("x-kubernetes-validations".into(), json!([{ "rule": rule, "message": message }]));
}
