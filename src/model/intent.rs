//! The intent: what the user's objects ask for, read once and checked once.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

use super::{Gate, Revision, Wish, grants::Ceilings};

/// The DataPlane an intent belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
    /// The generation this intent was read from.
    pub generation: i64,
    /// The resource version this intent was read from: what a pass decided on.
    pub resource_version: String,
}

/// How a changed wish becomes live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// In place: a rolling update of the live Deployment.
    #[default]
    InPlace,
    /// Beside the live side, then a switch.
    BlueGreen,
}

/// Why a wish cannot be granted. A fact like any other: what runs goes on, what moves goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The field, as a path.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// Everything a DataPlane and the policies that match it ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// Whose.
    pub owner: Owner,
    /// How a changed wish becomes live.
    pub strategy: Strategy,
    /// What should run, or why it cannot.
    pub wanted: Result<Wish, Refusal>,
    /// How many Pods. Reaches the live side directly: no revision depends on it.
    pub scale: Scale,
    /// Spec of the PodDisruptionBudget without its selector, likewise.
    pub disruption_budget: Option<Value>,
    /// What is asked of the ingress Services, likewise.
    pub ingress: Ingress,
    /// Whether the annotation says that the staged revision may be promoted.
    pub approved: bool,
    /// What the matching policies demand.
    pub rules: Rules,
    /// What policies may grant.
    pub ceilings: Ceilings,
}

impl Intent {
    /// The name of the wish, if it can be granted.
    #[must_use]
    pub fn wanted_revision(&self) -> Option<Revision> {
        self.wanted.as_ref().ok().map(Wish::revision)
    }
}

/// How many Pods, and who says so.
#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    /// The user.
    Fixed(i32),
    /// An autoscaler, from `min` Pods on; `spec` is its spec without the target.
    Horizontal {
        /// Never fewer.
        min: i32,
        /// Spec of the HorizontalPodAutoscaler without its target.
        spec: Value,
    },
}

impl Scale {
    /// The fewest Pods that are enough.
    #[must_use]
    pub fn least(&self) -> i32 {
        match self {
            Self::Fixed(replicas) => *replicas,
            Self::Horizontal { min, .. } => *min,
        }
    }
}

/// What is asked of the ingress Services beside their ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress {
    /// Their type.
    pub type_: &'static str,
    /// Their annotations.
    pub annotations: BTreeMap<String, String>,
    /// Name of the live one; made up if absent.
    pub name: Option<String>,
    /// `Cluster` or `Local`; the API's default if absent.
    pub external_traffic_policy: Option<&'static str>,
    /// What all Services select instead of the DataPlane's own Pods.
    pub selector_override: Option<BTreeMap<String, String>>,
}

/// What all matching policies demand together: gates add up, the strictest rule wins.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The policies that match, by the names they have in evidence.
    pub policies: Vec<String>,
    /// Every gate of every matching policy, by name.
    pub gates: Vec<Gate>,
    /// All of them promote without asking anybody.
    pub automatic: bool,
    /// The first policy that lets nothing be promoted, if one does.
    pub paused: Option<String>,
    /// How long the replaced side lives on.
    pub scale_down_delay: Duration,
    /// How long a phase may wait for machines.
    pub progress_deadline: Duration,
}

impl Rules {
    /// True where a policy matches, even one without gates: an approval is then bound to a revision.
    #[must_use]
    pub fn govern(&self) -> bool {
        !self.policies.is_empty()
    }
}
