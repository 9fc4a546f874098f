//! The plan: what every object should be after this pass, which trials should run, and when to look again.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Gate, Revision, Selector, Wish,
    names::State,
    observed::{ConnectionKey, TrialKey},
    trial::{Absent, Digest, Moment, Target},
};
use crate::api::promotion::PromotionStatus;

/// Where an upgrade stands. Computed from facts in every pass, never from the phase before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing was ever promoted: the live side follows the spec.
    Founding,
    /// No blue/green strategy: the live side follows the spec.
    InPlace,
    /// No blue/green strategy, but gates demand one: the live side stays on its record.
    Ungated,
    /// The live side is what is wanted.
    Settled,
    /// The candidate is not ready.
    Staging,
    /// Gates have not all answered.
    Judging,
    /// A gate did not pass.
    Refused,
    /// A person is awaited.
    Waiting,
    /// Traffic is being moved.
    Switching,
    /// Traffic has moved; gates judge behind the live Services, and the replaced side stands.
    Verifying,
    /// Traffic has moved for good; the replaced side lives on for a while.
    Draining,
    /// The revision was given up or moved back, and is not tried again by itself.
    Rejected,
}

/// The reason of the condition `RolledOut`. The first seven are Kong's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The preview is not ready.
    Progressing,
    /// At rest.
    WaitingForChange,
    /// A person is awaited.
    AwaitingPromotion,
    /// Traffic is being moved; the API refuses changes of the spec.
    PromotionInProgress,
    /// Traffic has moved.
    PromotionDone,
    /// Something had to be given up.
    Failed,
    /// Traffic had to be moved back.
    PromotionFailed,
    /// Gates are at work.
    RunningGates,
    /// A gate said no.
    GatesFailed,
    /// A gate could not say.
    GatesHeld,
    /// A Pod of the preview does not answer.
    PreviewUnreachable,
    /// A phase that waits for machines took too long.
    DeadlineExceeded,
    /// Gates are at work behind the live Services.
    VerifyingPromotion,
    /// Somebody gave the upgrade up.
    Aborted,
    /// Traffic had moved and was moved back.
    RolledBack,
}

impl Reason {
    /// As in the condition.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Progressing => "Progressing",
            Self::WaitingForChange => "WaitingForChange",
            Self::AwaitingPromotion => "AwaitingPromotion",
            Self::PromotionInProgress => "PromotionInProgress",
            Self::PromotionDone => "PromotionDone",
            Self::Failed => "Failed",
            Self::PromotionFailed => "PromotionFailed",
            Self::RunningGates => "RunningGates",
            Self::GatesFailed => "GatesFailed",
            Self::GatesHeld => "GatesHeld",
            Self::PreviewUnreachable => "PreviewUnreachable",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::VerifyingPromotion => "VerifyingPromotion",
            Self::Aborted => "Aborted",
            Self::RolledBack => "RolledBack",
        }
    }
}

/// What every object should be after this pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Where the upgrade stands.
    pub phase: Phase,
    /// `RolledOut`.
    pub reason: Reason,
    /// Its message.
    pub message: String,
    /// The Deployments that should exist, each with its Secret. The first is the live one. Others are pruned.
    pub sides: Vec<Side>,
    /// What the live Services select.
    pub live: Traffic,
    /// What the preview Services select; none without blue/green.
    pub preview: Option<Traffic>,
    /// Wishes that should be on record.
    pub records: Vec<PlannedRecord>,
    /// The upgrade, if one is under way or ends in this pass.
    pub promotion: Option<PlannedPromotion>,
    /// Upgrades that end in this pass because another one has their place.
    pub closes: Vec<Closed>,
    /// What becomes of the promote annotation.
    pub approval: ApprovalPlan,
    /// A decision that is taken off its upgrade.
    pub cleared: Option<Cleared>,
    /// Trials that should be running. Others are cancelled.
    pub trials: Vec<PlannedTrial>,
    /// Asks the preview Service for a connection.
    pub connect: Option<ConnectionKey>,
    /// The status of the DataPlane arms the freeze of the spec: it may only be written to the object this pass
    /// decided on.
    pub arms: bool,
    /// A commit is taken back before anything was switched. The live Services are written to before that is on record: a
    /// switch that a process had decided, and that arrives when it is gone, finds another version.
    pub withdraws: bool,
    /// This pass gives live traffic to a new wish: what it decided on is confirmed once more.
    pub confirms: Option<Confirms>,
    /// With this pass the live side is founded: the next one, a moment later, says so.
    pub founds: bool,
    /// When to look again if nothing happens.
    pub again: Option<Timestamp>,
}

/// What is asked of the API before traffic goes to a new wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirms {
    /// Whether the policies are those that were decided on. The commit vouches for the DataPlane: it was written to the
    /// version that was decided on, and froze its spec.
    Policies,
    /// And the DataPlane too.
    Everything,
}

/// A Deployment and its Secret.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// Its selector.
    pub selector: Selector,
    /// What it runs.
    pub wish: Wish,
    /// Its label; none while it drains.
    pub state: Option<State>,
    /// How many Pods.
    pub replicas: Replicas,
    /// Its certificate ends soon and nothing runs with it yet: a fresh one is issued.
    pub renews: bool,
}

/// How many Pods a Deployment should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// So many.
    Exactly(i32),
    /// So many when it is made; afterwards an autoscaler chooses.
    From(i32),
}

/// What a pair of Services selects.
#[derive(Clone, Debug, PartialEq)]
pub struct Traffic {
    /// The side.
    pub selector: Selector,
    /// Its ports, as in the wish.
    pub ports: Value,
    /// The promotion that moves it here: such a write is marked.
    pub promotion: Option<String>,
}

/// A wish that should be on record.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedRecord {
    /// Its name.
    pub revision: Revision,
    /// The wish.
    pub wish: Wish,
    /// Its place in the order of promotions; 0 if it was never live.
    pub ordinal: i64,
}

/// An upgrade as it should be on record.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedPromotion {
    /// Name of the object.
    pub name: String,
    /// True when the object has to be made.
    pub opens: bool,
    /// What it is about.
    pub revision: Revision,
    /// The generation at which it was opened.
    pub generation: i64,
    /// Resource version this pass decided on, for an object that exists.
    pub resource_version: Option<String>,
    /// Its status.
    pub status: PromotionStatus,
}

/// An upgrade that ends because another one has its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    /// Name of the object.
    pub name: String,
    /// Resource version this pass decided on.
    pub resource_version: String,
    /// Its last status.
    pub status: PromotionStatus,
}

/// What becomes of the promote annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApprovalPlan {
    /// It stays as it is.
    Keep,
    /// It did its work.
    Consume,
    /// It was given for something else: removed, and said so.
    Void(String),
}

/// A decision that is taken off its upgrade: it was carried out, or it cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleared {
    /// Name of the upgrade.
    pub promotion: String,
    /// Its resource version: another decision is another one.
    pub resource_version: String,
    /// Only the retry goes, and the rest stands.
    pub retry_only: bool,
    /// Who decided.
    pub by: String,
    /// Why it cannot be carried out; none where it was.
    pub why: Option<String>,
}

/// A trial that should be running.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTrial {
    /// What it is known by.
    pub key: TrialKey,
    /// It may begin now. One that was begun goes on in any case.
    pub may_begin: bool,
    /// As in logs and Events.
    pub id: String,
    /// The plugin.
    pub digest: Digest,
    /// The gate's entry.
    pub gate: Gate,
    /// Before or after the switch.
    pub moment: Moment,
    /// What it may speak to.
    pub targets: Vec<Target>,
    /// What it was granted of the upgrade, and cannot have.
    pub absent: Vec<Absent>,
    /// What its last wait left behind.
    pub state: Option<Vec<u8>>,
    /// The candidate as JSON.
    pub candidate: Option<String>,
    /// The stable side as JSON.
    pub stable: Option<String>,
}
