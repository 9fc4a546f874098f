//! What was found in the cluster and in this process, in one moment. Decisions read nothing else.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::ResourceExt;

use super::{
    Revision, Selector, Wish,
    names::{self, Role, State},
    trial::{Digest, Report},
};
use crate::api::{
    dataplane::DataPlaneStatus,
    promotion::{Promotion, Verdict},
};

/// What was found for one DataPlane.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Status of the DataPlane as last written.
    pub status: Option<DataPlaneStatus>,
    /// Its Services. A terminating one serves until its owner is gone, as with Kong, so it counts here.
    pub services: BTreeMap<(State, Role), Arc<Service>>,
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
    /// The plugins of its namespace, as this process has them.
    pub plugins: BTreeMap<String, Plugin>,
    /// The trials of this process, by [`TrialKey`].
    pub trials: HashMap<TrialKey, Arc<Report>>,
    /// Whether the preview Service answered a connection, for [`ConnectionKey`].
    pub connections: HashMap<ConnectionKey, Connection>,
    /// The operator process: evidence of another one that still runs will never end.
    pub host: String,
}

/// A wish that was staged once, with its place in the order of promotions.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Name of the `ControllerRevision`.
    pub name: String,
    /// The name of the wish.
    pub revision: Revision,
    /// The wish.
    pub wish: Wish,
    /// 0 until it is promoted; the highest number is the live one.
    pub ordinal: i64,
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

/// One question to the preview Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey {
    /// Address of the Service.
    pub address: std::net::SocketAddr,
    /// UIDs of the Pods behind it.
    pub pods: Vec<String>,
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It accepted a connection.
    Answers,
    /// It did not, for this reason.
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

    /// The upgrade that is under way.
    #[must_use]
    pub fn open(&self) -> Option<&Promotion> {
        self.promotions.iter().rev().find(|promotion| verdict(promotion).is_none()).map(Arc::as_ref)
    }

    /// The selector of a Service.
    #[must_use]
    pub fn selects(&self, state: State, role: Role) -> Option<Selector> {
        let service = self.services.get(&(state, role))?;
        service.spec.as_ref()?.selector.as_ref()?.get(names::SELECTOR).map(|text| Selector::from(text.as_str()))
    }

    /// The Deployment of a side.
    #[must_use]
    pub fn deployment(&self, selector: &Selector) -> Option<&Deployment> {
        self.deployments.iter().map(Arc::as_ref).find(|deployment| side_of(*deployment).as_ref() == Some(selector))
    }

    /// The selector of the one Deployment that is labelled live; none where there are several.
    #[must_use]
    pub fn labelled_live(&self) -> Option<Selector> {
        let live = |deployment: &&Arc<Deployment>| {
            deployment.labels().get(names::DEPLOYMENT_STATE).is_some_and(|state| state == State::Live.as_str())
        };
        let mut labelled = self.deployments.iter().filter(live);
        labelled.next().filter(|_| labelled.next().is_none()).and_then(|deployment| side_of(deployment.as_ref()))
    }

    /// The Pods of a side.
    pub fn pods_of<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = &'a Pod> {
        self.pods
            .iter()
            .map(Arc::as_ref)
            .filter(move |pod| pod.labels().get(names::SELECTOR).map(String::as_str) == Some(selector.as_str()))
    }
}

/// The selector in the labels of an owned object.
pub fn side_of<K: kube::Resource>(object: &K) -> Option<Selector> {
    object.labels().get(names::SELECTOR).map(|text| Selector::from(text.as_str()))
}

/// How a promotion ended, if it did.
#[must_use]
pub fn verdict(promotion: &Promotion) -> Option<Verdict> {
    promotion.status.as_ref().and_then(|status| status.verdict)
}
