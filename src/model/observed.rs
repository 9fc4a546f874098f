//! What was found in the cluster and in this process, in one moment. Decisions read nothing else.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Pod, Secret, Service},
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    PluginKey, Revision, Selector, Wish,
    names::{self, Role, State},
    trial::{Digest, Report},
};
use crate::api::{
    dataplane::DataPlaneStatus,
    promotion::{Promotion, Verdict, Verifies},
};

/// What was found for one DataPlane.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Status of the DataPlane as last written.
    pub status: Option<DataPlaneStatus>,
    /// Its Services, one for each place. A terminating one serves until its owner is gone, as with Kong, so it counts
    /// here unless another one has its place.
    pub services: BTreeMap<(State, Role), Arc<Service>>,
    /// Services whose place another one has.
    pub twins: Vec<Arc<Service>>,
    /// Its HorizontalPodAutoscalers: one, unless somebody made more.
    pub autoscalers: Vec<Arc<HorizontalPodAutoscaler>>,
    /// Its PodDisruptionBudgets, likewise.
    pub budgets: Vec<Arc<PodDisruptionBudget>>,
    /// When the cluster CA ends.
    pub authority_expires: Option<Timestamp>,
    /// Its Deployments, likewise.
    pub deployments: Vec<Arc<Deployment>>,
    /// Its Secrets, likewise.
    pub secrets: Vec<Arc<Secret>>,
    /// Its Pods that are not terminating.
    pub pods: Vec<Arc<Pod>>,
    /// The EndpointSlices of its Services.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// The wishes that were ever staged.
    pub records: Vec<Record>,
    /// Its upgrades, oldest first.
    pub promotions: Vec<Arc<Promotion>>,
    /// The plugins that its gates name, as this process has them.
    pub plugins: BTreeMap<PluginKey, Plugin>,
    /// The trials of this process, by [`TrialKey`].
    pub trials: HashMap<TrialKey, Arc<Report>>,
    /// Whether the candidate answered a connection, for [`ConnectionKey`].
    pub connections: HashMap<ConnectionKey, Connection>,
    /// The operator process: evidence of another one that still runs will never end.
    pub host: String,
}

/// A wish that was staged once, with its place in the order of promotions.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Name of the `ControllerRevision`; none where it is still to be written.
    pub name: Option<String>,
    /// Its resource version, likewise.
    pub version: Option<String>,
    /// The name of the wish.
    pub revision: Revision,
    /// The wish.
    pub wish: Wish,
    /// The Pod template that was rendered from it, once, by the operator that first staged it: another one restarts
    /// no Pod. None in a record of the first release.
    pub template: Option<Value>,
    /// 0 until it is promoted; the highest number is the live one.
    pub ordinal: i64,
}

/// A record as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordData {
    /// The wish.
    #[serde(flatten)]
    pub wish: Wish,
    /// The Pod template rendered from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Value>,
}

/// A plugin as this process has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// Compiled; can be run.
    Ready(Digest),
    /// Being fetched or compiled.
    Loading,
    /// Cannot be run.
    Failed {
        /// CamelCase word.
        reason: String,
        /// One sentence.
        message: String,
    },
    /// Taken out of use: what it said counts no longer.
    Revoked,
}

/// One attempt of one gate: what a running task and its result are known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrialKey {
    /// UID of the promotion.
    pub promotion: String,
    /// `<policy>/<gate>`.
    pub gate: String,
    /// Hash of the gate's entry.
    pub entry: String,
    /// When the attempt was recorded; no two attempts share it.
    pub started: String,
}

/// One question to the candidate: its Pods by UID, and where each is asked for a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey(pub BTreeMap<String, SocketAddr>);

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Every Pod accepted a connection.
    Answers,
    /// One of them did not, for this reason.
    Silent(String),
}

impl Observed {
    /// The wish that is live by record.
    #[must_use]
    pub fn promoted(&self) -> Option<&Record> {
        self.records.iter().filter(|record| record.ordinal > 0).max_by_key(|record| record.ordinal)
    }

    /// The record of a revision.
    #[must_use]
    pub fn record(&self, revision: &str) -> Option<&Record> {
        self.records.iter().find(|record| record.revision.as_str() == revision)
    }

    /// The upgrade that is under way: the newest, if it has not ended.
    #[must_use]
    pub fn open(&self) -> Option<&Promotion> {
        self.promotions.last().filter(|newest| verdict(newest).is_none()).map(Arc::as_ref)
    }

    /// Upgrades that did not end before a newer one began: the caches were behind, and the pass that made the newer one
    /// did not see them. Whatever became of that, nothing of them counts any more.
    pub fn left_open(&self) -> impl Iterator<Item = &Promotion> {
        let older = self.promotions.iter().rev().skip(1);
        older.filter(|promotion| verdict(promotion).is_none()).map(Arc::as_ref)
    }

    /// The generation of the spec that is live, as `Ready` has it.
    #[must_use]
    pub fn live_generation(&self) -> Option<i64> {
        let conditions = &self.status.as_ref()?.conditions;
        conditions.iter().find(|condition| condition.type_ == "Ready")?.observed_generation
    }

    /// The gates that judge the upgrade under way once traffic has moved, as its commit knew them.
    pub fn verifies(&self) -> impl Iterator<Item = &Verifies> {
        let commit = self.open().and_then(|open| open.status.as_ref()?.commit.as_ref());
        commit.into_iter().flat_map(|commit| &commit.verifies)
    }

    /// The selector of a Service.
    #[must_use]
    pub fn selects(&self, state: State, role: Role) -> Option<Selector> {
        let service = self.services.get(&(state, role))?;
        service.spec.as_ref()?.selector.as_ref()?.get(names::SELECTOR).map(|text| Selector::from(text.as_str()))
    }

    /// The Deployment of a side; of several, the one that is not terminating.
    #[must_use]
    pub fn deployment(&self, selector: &Selector) -> Option<&Deployment> {
        self.deployments_of(selector).min_by_key(|deployment| is_terminating(*deployment))
    }

    /// The Secret that the Deployment of a side mounts, if it is one of ours.
    #[must_use]
    pub fn secret_of(&self, selector: &Selector) -> Option<&Arc<Secret>> {
        let volumes = self.deployment(selector)?.spec.as_ref()?.template.spec.as_ref()?.volumes.as_ref()?;
        let volume = volumes.iter().find(|volume| volume.name == names::CERTIFICATE_VOLUME)?;
        let name = volume.secret.as_ref()?.secret_name.as_ref()?;
        self.secrets.iter().find(|secret| secret.name_any() == *name)
    }

    /// Every Service, in its place or not.
    pub fn all_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().chain(&self.twins)
    }

    /// The selectors of the Deployments that are labelled so, each once.
    #[must_use]
    pub fn labelled(&self, state: State) -> Vec<Selector> {
        let labelled = self.deployments.iter().filter(|deployment| {
            deployment.labels().get(names::DEPLOYMENT_STATE).is_some_and(|label| label == state.as_str())
        });
        let mut sides: Vec<_> = labelled.filter_map(|deployment| side_of(deployment)).collect();
        sides.sort();
        sides.dedup();
        sides
    }

    /// The Pods of a side: those that its Deployment made.
    pub fn pods_of<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = &'a Pod> {
        self.labelled_pods(selector).filter(move |pod| self.is_made(pod, selector))
    }

    /// Pods that bear the label of a side, so that its Services send them traffic, and are none of it.
    pub fn strangers_of<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = &'a Pod> {
        self.labelled_pods(selector).filter(move |pod| !self.is_made(pod, selector))
    }

    fn labelled_pods<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = &'a Pod> {
        self.pods
            .iter()
            .map(Arc::as_ref)
            .filter(move |pod| pod.labels().get(names::SELECTOR).map(String::as_str) == Some(selector.as_str()))
    }

    fn is_made(&self, pod: &Pod, selector: &Selector) -> bool {
        self.deployments_of(selector).any(|deployment| made_by(pod, deployment))
    }

    fn deployments_of(&self, selector: &Selector) -> impl Iterator<Item = &Deployment> {
        self.deployments.iter().map(Arc::as_ref).filter(move |one| side_of(one).as_ref() == Some(selector))
    }
}

/// Whether a ReplicaSet of this Deployment controls the Pod. Anybody's Pod can bear a label; what only the Deployment's
/// own have is a controller that is named after it and the hash of the template in their label.
///
/// Who may create Pods can write that too, and gains nothing: with a UID that is none the garbage collector deletes the
/// Pod, and with the true one its ReplicaSet counts it and deletes one too many, so that until then there are more Pods
/// than were asked for, and those are not judged. ReplicaSets could be forged in the same way: to watch them would prove
/// no more.
fn made_by(pod: &Pod, deployment: &Deployment) -> bool {
    let (Some(hash), Some(name)) = (pod.labels().get(names::TEMPLATE_HASH), deployment.metadata.name.as_deref()) else {
        return false;
    };
    let replica_set = format!("{name}-{hash}");
    pod.owner_references().iter().any(|owner| {
        owner.controller == Some(true)
            && (owner.api_version.as_str(), owner.kind.as_str()) == ("apps/v1", "ReplicaSet")
            && owner.name == replica_set
    })
}

/// The side that a Deployment is. What it selects can never change; its own label can, by anybody's hand.
#[must_use]
pub fn side_of(deployment: &Deployment) -> Option<Selector> {
    let selects = deployment.spec.as_ref().and_then(|spec| spec.selector.match_labels.as_ref()?.get(names::SELECTOR));
    selects.or_else(|| deployment.labels().get(names::SELECTOR)).map(|text| Selector::from(text.as_str()))
}

/// Somebody has deleted it, and a finalizer holds it.
pub fn is_terminating<K: kube::Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// How a promotion ended, if it did.
#[must_use]
pub fn verdict(promotion: &Promotion) -> Option<Verdict> {
    promotion.status.as_ref().and_then(|status| status.verdict)
}
