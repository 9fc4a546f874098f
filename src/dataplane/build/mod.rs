//! PURE. Plan -> every object we own, rendered. Cannot fail.

mod certificate;
mod deployment;
pub mod merge;
mod scaling;
mod service;
mod template;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::model::{
    Intent, Observed, Plan,
    names::{self, State},
    observed::RecordData,
    plan::{ApprovalPlan, Closed, PlannedPromotion, PlannedRecord},
};

/// Every object of one DataPlane as it should be, in the order in which it is written.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What is written to the live Services before anything else, so that no switch decided before can happen.
    pub fences: Vec<Object>,
    /// What becomes of the promote annotation.
    pub approval: ApprovalPlan,
    /// Upgrades that end because another one has their place.
    pub closes: Vec<Closed>,
    /// Wishes on record.
    pub records: Vec<Object>,
    /// The upgrade on record.
    pub promotion: Option<PlannedPromotion>,
    /// Certificates of the sides.
    pub certificates: Vec<CertificateOrder>,
    /// Services.
    pub services: Vec<Object>,
    /// Deployments.
    pub deployments: Vec<Object>,
    /// The autoscaler of the live Deployment.
    pub autoscaler: Option<Object>,
    /// The disruption budget of the live Pods.
    pub budget: Option<Object>,
    /// What no side needs any more.
    pub surplus: Surplus,
}

/// A rendered object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its name.
    pub name: String,
    /// All fields that are ours, as server-side apply takes them.
    pub body: Value,
    /// How many Pods a Deployment has when it is made, where an autoscaler chooses afterwards.
    pub count: Option<i32>,
}

impl Object {
    /// An object that is written whenever it differs.
    #[must_use]
    pub fn new(name: String, body: Value) -> Self {
        Self { name, body, count: None }
    }
}

/// A Secret that should hold a certificate for these names. Issued by `apply`: a key is no pure thing.
#[derive(Clone, Debug, PartialEq)]
pub struct CertificateOrder {
    /// Name of the Secret.
    pub name: String,
    /// DNS names, the common name first.
    pub hosts: Vec<String>,
    /// Metadata of the Secret.
    pub metadata: Value,
    /// What is there: to be kept as long as it is whole, or to be issued anew.
    pub demand: Demand,
}

/// What is asked of a Secret that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Pods that serve have read it, whoever issued it: it only has to be whole.
    Whole,
    /// It has to hold exactly the ordered names.
    Exact,
    /// It ends soon, and nothing runs with it yet.
    Fresh,
}

/// Names of what no side needs any more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Surplus {
    /// Deployments.
    pub deployments: Vec<String>,
    /// Secrets whose Deployment is gone or goes.
    pub secrets: Vec<String>,
    /// Services.
    pub services: Vec<String>,
    /// Autoscalers.
    pub autoscalers: Vec<String>,
    /// Disruption budgets.
    pub budgets: Vec<String>,
    /// Records of wishes.
    pub records: Vec<String>,
    /// Upgrades that are history.
    pub promotions: Vec<String>,
}

/// Wishes that were live before and are kept, beside the live one and those under way.
const RECORDS_KEPT: usize = 3;
/// Upgrades that are kept as history.
const PROMOTIONS_KEPT: usize = 5;

/// Renders everything a DataPlane owns.
#[must_use]
pub fn render(intent: &Intent, observed: &Observed, plan: &Plan) -> Planned {
    let sides = plan.sides.iter();
    let mut services = service::pair(intent, observed, State::Live, &plan.live);
    services.extend(plan.preview.iter().flat_map(|preview| service::pair(intent, observed, State::Preview, preview)));
    let certificates = certificate::orders(intent, observed, &plan.sides);
    let deployments: Vec<_> = sides
        .zip(&certificates)
        .map(|(side, certificate)| deployment::render(intent, observed, side, &certificate.name))
        .collect();
    let takes_traffic = plan.sides.iter().position(|side| side.selector == plan.live.selector);
    let live = takes_traffic.and_then(|place| deployments.get(place)).map(|live| live.name.as_str());
    let autoscaler = scaling::autoscaler(intent, live);
    let budget = scaling::budget(intent, &plan.live);
    Planned {
        fences: if plan.withdraws { service::fences(observed) } else { Vec::new() },
        approval: plan.approval.clone(),
        closes: plan.closes.clone(),
        records: plan.records.iter().map(|planned| record(intent, observed, planned)).collect(),
        promotion: plan.promotion.clone(),
        surplus: Surplus {
            autoscalers: others(&observed.autoscalers, autoscaler.as_ref()),
            budgets: others(&observed.budgets, budget.as_ref()),
            ..surplus(observed, plan, &services, &certificates)
        },
        certificates,
        services,
        deployments,
        autoscaler,
        budget,
    }
}

/// Names of what was found and is not what is wanted.
fn others<K: kube::Resource>(found: &[std::sync::Arc<K>], wanted: Option<&Object>) -> Vec<String> {
    let names = found.iter().map(|object| object.name_any());
    names.filter(|name| wanted.is_none_or(|wanted| wanted.name != *name)).collect()
}

/// Metadata that every owned object shares.
fn metadata(intent: &Intent, name: &str, generate_name: Option<&str>, labels: &BTreeMap<&str, &str>) -> Value {
    let owner = &intent.owner;
    let mut metadata = json!({
        "name": name,
        "namespace": owner.namespace,
        "labels": labels,
        "ownerReferences": [{
            "apiVersion": "gateway-operator.konghq.com/v1beta1",
            "kind": "DataPlane",
            "name": owner.name,
            "uid": owner.uid,
            "controller": true,
        }],
    });
    if let Some(generate_name) = generate_name {
        metadata["generateName"] = names::generate_name(generate_name).into();
        metadata["finalizers"] = json!([names::WAIT_FOR_OWNER]);
    }
    metadata
}

fn record(intent: &Intent, observed: &Observed, planned: &PlannedRecord) -> Object {
    let name = names::record(&intent.owner.name, &intent.owner.uid, planned.revision.as_str());
    let labels = BTreeMap::from([(names::APP, intent.owner.name.as_str()), (names::MANAGED_BY, names::DATAPLANE)]);
    let mut metadata = metadata(intent, &name, None, &labels);
    metadata["annotations"] = json!({ names::REVISION: planned.revision.as_str() });
    let data = RecordData { wish: planned.wish.clone(), template: Some(template::of(observed, &planned.wish)) };
    let body = json!({
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": metadata,
        "data": data,
        // Kubernetes wants a number here; ours counts promotions, 0 for a wish that was never live.
        "revision": planned.ordinal,
    });
    Object::new(name, body)
}

/// The body of a new `Promotion`.
#[must_use]
pub fn promotion(intent: &Intent, planned: &PlannedPromotion) -> Value {
    let labels = BTreeMap::from([(names::APP, intent.owner.name.as_str()), (names::MANAGED_BY, names::DATAPLANE)]);
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "Promotion",
        "metadata": metadata(intent, &planned.name, None, &labels),
        "spec": {
            "dataPlane": intent.owner.name,
            "revision": planned.revision.as_str(),
            "generation": planned.generation,
        },
    })
}

/// The Secrets that the Pods of a Deployment mount.
fn mounted(deployment: &Deployment) -> impl Iterator<Item = &str> {
    let template = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let volumes = template.into_iter().flat_map(|template| template.volumes.iter().flatten());
    volumes.filter_map(|volume| volume.secret.as_ref()?.secret_name.as_deref())
}

fn surplus(observed: &Observed, plan: &Plan, services: &[Object], certificates: &[CertificateOrder]) -> Surplus {
    let planned = |name: &String| services.iter().any(|service| service.name == *name);
    // The live and the staged wish stay whatever their age, and what a Deployment was rendered from.
    let rendered: Vec<_> =
        observed.deployments.iter().filter_map(|deployment| deployment.annotations().get(names::REVISION)).collect();
    let mut history: Vec<_> = observed.records.iter().collect();
    history.sort_by_key(|record| std::cmp::Reverse(record.ordinal));
    let needed = |revision: &str| {
        plan.records.iter().any(|record| record.revision.as_str() == revision)
            || rendered.iter().any(|rendered| *rendered == revision)
            || observed.open().is_some_and(|open| open.spec.revision == revision)
    };
    let closed: Vec<_> = observed
        .promotions
        .iter()
        .filter(|promotion| crate::model::observed::verdict(promotion).is_some())
        .map(|promotion| promotion.name_any())
        .collect();
    let retired = super::plan::retired(observed, plan);
    let stays = |deployment: &&std::sync::Arc<Deployment>| !retired.contains(&deployment.name_any());
    let mounts: Vec<_> = observed.deployments.iter().filter(stays).flat_map(|known| mounted(known)).collect();
    let mounted = |name: &String| mounts.contains(&name.as_str());
    let ordered = |name: &String| certificates.iter().any(|order| order.name == *name);
    let secrets = observed.secrets.iter().map(|secret| secret.name_any());
    Surplus {
        secrets: secrets.filter(|name| !ordered(name) && !mounted(name)).collect(),
        deployments: retired,
        services: observed.all_services().map(|service| service.name_any()).filter(|name| !planned(name)).collect(),
        records: history
            .into_iter()
            .skip(RECORDS_KEPT)
            .filter(|record| !needed(record.revision.as_str()))
            .filter_map(|record| record.name.clone())
            .collect(),
        promotions: closed.iter().take(closed.len().saturating_sub(PROMOTIONS_KEPT)).cloned().collect(),
        ..Surplus::default()
    }
}
