//! `Promotion`: the record of one upgrade to one revision. Written by the operator, but for `spec.decision`, where people
//! decide; it outlives crashes, and after the upgrade it is the history.

use k8s_openapi::{
    ByteString,
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::promotionpolicy::{Gate, defaults};
use crate::model::trial::{Denial, Link, Measurement, Moment};

/// What the upgrade is about, which never changes, and what people decide about it.
#[allow(clippy::duplicated_attributes, reason = "columns of one type are not one column")]
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "Promotion",
    plural = "promotions",
    category = "sluice",
    namespaced,
    status = "PromotionStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Promotion is the record of one upgrade of a DataPlane to one revision: its evidence, approval, commit and verdict. The operator creates one for every upgrade.",
    printcolumn(name = "DataPlane", type_ = "string", json_path = ".spec.dataPlane"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".spec.revision"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Gates", type_ = "string", json_path = ".status.summary"),
    printcolumn(name = "Approved", type_ = "string", json_path = ".status.approval.by"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.dataPlane == oldSelf.dataPlane && self.revision == oldSelf.revision && self.generation == oldSelf.generation").message(
    "what an upgrade is about never changes: only spec.decision may"
))]
pub struct PromotionSpec {
    /// Name of the DataPlane.
    pub data_plane: String,
    /// The revision that is to become live.
    pub revision: String,
    /// The generation of the DataPlane at which the upgrade began.
    pub generation: i64,
    /// What somebody decides about it. Taken away by the operator once it is carried out, or where it cannot be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
}

/// What somebody decides about an upgrade. What stops it outranks the rest.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// The revision may be promoted, once every gate has passed for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approve: bool,
    /// The upgrade is given up; where traffic has begun to move, it is moved back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub abort: bool,
    /// Traffic is moved back, as long as the replaced side stands; where none has moved, the upgrade is given up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback: bool,
    /// Gates that judge once more, by their names in `status.gates`, or `*` for all of them. An upgrade that was given up
    /// or moved back is taken up again by it, and has to be approved again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 400)))]
    pub retry: Vec<String>,
    /// Who decides. With the admission policies of deploy/admission.yaml nobody can write another name than their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 400))]
    pub by: Option<String>,
    /// Why, for those who read it later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1_024))]
    pub reason: Option<String>,
}

impl Decision {
    /// Whether the upgrade is to be given up or moved back.
    #[must_use]
    pub fn stops(&self) -> bool {
        self.abort || self.rollback
    }

    /// Who decides, as far as it is known.
    #[must_use]
    pub fn who(&self) -> &str {
        self.by.as_deref().unwrap_or("somebody")
    }

    /// `rolled back by jane: too slow`.
    #[must_use]
    pub fn says(&self, what: &str) -> String {
        match &self.reason {
            Some(reason) => format!("{what} by {}: {reason}", self.who()),
            None => format!("{what} by {}", self.who()),
        }
    }
}

/// What became of the upgrade.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromotionStatus {
    /// For people; the operator decides on facts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `1/2 passed`, for the column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// When what the phase waits for has to be there, or what it keeps goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// When the phase that waits for machines began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progressing_since: Option<Time>,
    /// The policies that match, until traffic begins to move.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// The evidence, one entry for each gate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateEvidence>,
    /// Gates that judge again while a person is awaited; what they said before stands in `gates` until they have ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rechecks: Vec<GateEvidence>,
    /// What gates said before somebody had them judge once more, at most eight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<GateEvidence>,
    /// What people decided beside approvals, at most eight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decided: Vec<Decided>,
    /// The Pods that were judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<JudgedPod>,
    /// Who approved this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// The decision to switch, written before anything is switched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<Commit>,
    /// When all traffic had moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switched_at: Option<MicroTime>,
    /// How the upgrade ended; absent while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// When something else was wanted than a revision that was given up or moved back: wanted again, it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifted_at: Option<Time>,
}

/// How an upgrade ended.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Verdict {
    /// The revision became live.
    Promoted,
    /// Another revision was wanted before this one was promoted.
    Superseded,
    /// The live revision was wanted again.
    Reverted,
    /// Traffic did not arrive in time and was moved back to the stable side.
    Failed,
    /// Somebody gave it up before traffic moved.
    Aborted,
    /// Traffic had moved, and was moved back for what was seen then, or because somebody said so.
    RolledBack,
}

impl Verdict {
    /// The revision is not tried again by itself.
    #[must_use]
    pub fn rejects(self) -> bool {
        match self {
            Self::Failed | Self::Aborted | Self::RolledBack => true,
            Self::Promoted | Self::Superseded | Self::Reverted => false,
        }
    }
}

/// A decision that was carried out.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Decided {
    /// What.
    pub what: Act,
    /// The gates that judge once more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<String>,
    /// Who.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The generation of the Promotion that said so: no decision is carried out twice.
    pub generation: i64,
    /// When it was seen.
    pub at: Time,
}

/// What somebody had done.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Act {
    /// Gates judge once more.
    Retry,
    /// An upgrade that was given up or moved back is taken up again.
    Reopen,
    /// The upgrade was given up.
    Abort,
    /// Traffic was moved back.
    Rollback,
}

/// What one gate said, and everything that depended on.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateEvidence {
    /// `<policy>/<gate>`.
    pub name: String,
    /// When it judges.
    #[serde(default, skip_serializing_if = "Moment::is_default")]
    pub when: Moment,
    /// The plugin's object.
    pub plugin: String,
    /// Digest of the plugin, pinned when judging began.
    pub digest: String,
    /// Hash of the gate's entry in its policy, settings and rules: evidence holds for exactly that.
    pub entry_hash: String,
    /// Counts from 1; a wait is no attempt.
    pub attempt: i32,
    /// The operator process that runs it: another one cannot know how it ended.
    pub host: String,
    /// When this gate's first trial for these Pods began; its deadline counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// When this attempt was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// Not before this time is it run again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<MicroTime>,
    /// What its last wait left for the next trial, at most 4 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bytes")]
    pub state: Option<ByteString>,
    /// The pass holds until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<MicroTime>,
    /// True where the policy waives a gate without knowledge, and this one had none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waived: bool,
    /// True where the gate is recorded and not obeyed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// What it said.
    pub outcome: GateOutcome,
    /// CamelCase word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// One sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Numbers that justify it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measurements: Vec<Measurement>,
    /// Pages that show more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// Targets it asked for and was not granted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied: Vec<Denial>,
    /// Pods that answered it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answered: Vec<String>,
    /// True where it spoke TLS with a certificate that nobody verified.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unverified_tls: bool,
    /// What it used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<GateCost>,
}

fn bytes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "byte" })
}

/// What a gate said.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum GateOutcome {
    /// Not asked yet.
    #[default]
    Pending,
    /// No answer yet.
    Running,
    /// It asked for more time.
    Waiting,
    /// An error that may go away; it is tried again.
    Retrying,
    /// Good.
    Pass,
    /// Bad.
    Fail,
    /// It could not tell.
    Inconclusive,
    /// No knowledge.
    Error,
}

/// What a gate used up.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateCost {
    /// CPU time, milliseconds.
    pub cpu_millis: i64,
    /// Wall time, milliseconds.
    pub wall_millis: i64,
    /// Peak memory, bytes.
    pub memory_bytes: i64,
    /// Requests sent.
    pub requests: i64,
}

/// A Pod that was judged.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JudgedPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The image its proxy container runs, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "imageID")]
    pub image_id: Option<String>,
    /// Restarts of its containers when it was judged.
    pub restarts: i32,
}

/// Who approved, and when it was seen.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// `annotation`, `policy`, or who decided.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// A gate that judges once traffic has moved.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verifies {
    /// Its policy, as evidence names it.
    pub policy: String,
    /// Its entry there.
    #[schemars(schema_with = "super::any_object")]
    pub gate: Gate,
}

/// Why traffic has to go back.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Back {
    /// What becomes of the upgrade.
    pub verdict: Verdict,
    /// Why, in one sentence.
    pub message: String,
    /// When all of it was back: the side it left lives on from here like a replaced one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned_at: Option<MicroTime>,
}

/// The decision to move traffic.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Commit {
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// Selector of the stable side.
    pub from: String,
    /// Selector of the candidate.
    pub to: String,
    /// Who or what approved it.
    pub approved_by: String,
    /// Set when traffic has to go back to `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<Back>,
    /// The generation of the DataPlane that `from` was live for, which `Ready` goes back to with traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_generation: Option<i64>,
    /// The gates that judge once traffic has moved, by the policies of that moment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verifies: Vec<Verifies>,
    /// Seconds for which the replaced side lives on, likewise.
    #[serde(default = "defaults::scale_down_delay")]
    pub scale_down_delay_seconds: i32,
    /// Seconds for every phase that waits for machines, likewise.
    #[serde(default = "defaults::progress_deadline")]
    pub progress_deadline_seconds: i32,
}
