//! WRITES. Only what differs, in an order that is safe to stop after any write.
//!
//! What is there is written over, or deleted, only at the version that was decided on. Whoever wrote in between, a user
//! or the operator that took over meanwhile, is not undone by what was decided before: the write is refused. Only labels of
//! a Deployment are written at any version.

pub mod certificate;
pub mod publish;
mod takeover;

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::Service,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use self::certificate::Authority;
use super::build::{Object, Planned, Surplus};
use crate::{
    api::{DataPlane, Promotion, dataplane::PROMOTE_WHEN_READY},
    cluster::writer::{Left, Writes, applying, merging},
    model::{
        Intent, Observed, differ, names,
        observed::{Record, is_terminating},
        plan::{ApprovalPlan, Closed},
    },
};

/// Why a pass could not write.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused or could not be reached.
    #[error("could not {verb} {kind} {name}")]
    Write {
        /// What was tried.
        verb: &'static str,
        /// On what kind.
        kind: &'static str,
        /// On which object.
        name: String,
        /// Why not.
        source: kube::Error,
    },
    /// Somebody else has an object of this name.
    #[error("there is a {kind} {name} that does not belong to this DataPlane; delete or rename it")]
    Taken {
        /// The kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// No certificate could be issued.
    #[error("could not issue the certificate in Secret {name}")]
    Certificate {
        /// The Secret.
        name: String,
        /// Why not.
        source: rcgen::Error,
    },
}

impl Error {
    /// What people read in a condition: what could not be done, and what the API said.
    #[must_use]
    pub fn sentence(&self) -> String {
        let cause = match self {
            Self::Write { source: kube::Error::Api(status), .. } => status.message.clone(),
            Self::Write { source, .. } => source.to_string(),
            Self::Certificate { source, .. } => source.to_string(),
            Self::Taken { .. } => return self.to_string(),
        };
        format!("{self}: {cause}")
    }

    /// Somebody else wrote in between: not a failure, the next pass decides afresh.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Write { source: kube::Error::Api(status), .. } if status.code == 409)
    }
}

/// The hands of one pass.
pub struct Writer<'a> {
    /// Client of the operator's service account.
    pub client: Client,
    /// Memory of what was written.
    pub writes: &'a Writes,
    /// Issues certificates.
    pub authority: &'a Authority,
    /// Whose objects.
    pub intent: &'a Intent,
}

/// Makes the cluster what was planned, up to the first write that fails. The order is the meaning:
/// a switch that was taken back cannot happen any more before anybody is told so; an approval that is void goes before
/// anything that could honour it; a wish is on record before anything runs it, and an upgrade before its Pods; a certificate
/// is there before the Pods that mount it; Services move before the Deployment they left changes its label, so that a label
/// never promises traffic; what nobody needs goes last.
///
/// # Errors
/// The first write that failed. Everything before it stands, and the next pass goes on from there.
pub async fn converge(writer: &Writer<'_>, observed: &Observed, planned: &Planned) -> Result<(), Error> {
    let Planned {
        fences,
        approval,
        closes,
        records,
        promotion,
        certificates,
        services,
        deployments,
        autoscaler,
        budget,
        surplus,
    } = planned;
    let mut fenced = Vec::with_capacity(fences.len());
    for fence in fences {
        fenced.push(writer.fence(fence).await?);
    }
    match approval {
        ApprovalPlan::Keep => {}
        ApprovalPlan::Void(_) | ApprovalPlan::Consume => writer.remove_approval().await?,
    }
    for Closed { name, resource_version, status } in closes {
        writer.promotion_status(publish::recorded(observed, name), name, Some(resource_version), status).await?;
    }
    for object in records {
        let found = observed.records.iter().find(|record| record.name.as_ref() == Some(&object.name));
        match found {
            None => writer.put_on_record::<ControllerRevision>(object).await?,
            Some(record) if object.body["revision"] != record.ordinal => writer.mark(object, record).await?,
            Some(_) => {}
        }
    }
    if let Some(promotion) = promotion.as_ref().filter(|promotion| promotion.opens) {
        let body = super::build::promotion(writer.intent, promotion);
        writer.put_on_record::<Promotion>(&Object::new(promotion.name.clone(), body)).await?;
    }
    for order in certificates {
        let found = named(&observed.secrets, &order.name);
        if found.is_none_or(|secret| !certificate::covers(secret, order)) {
            let issued = writer
                .authority
                .issue(order)
                .map_err(|source| Error::Certificate { name: order.name.clone(), source })?;
            writer.make(&issued, found).await?;
        }
    }
    for object in services {
        let found = named(fenced.iter().chain(observed.all_services()), &object.name);
        writer.settle::<Service>(object, found).await?;
    }
    for object in deployments {
        writer.settle_deployment(object, named(&observed.deployments, &object.name)).await?;
    }
    if let Some(object) = autoscaler {
        writer.settle::<HorizontalPodAutoscaler>(object, named(&observed.autoscalers, &object.name)).await?;
    }
    if let Some(object) = budget {
        writer.settle::<PodDisruptionBudget>(object, named(&observed.budgets, &object.name)).await?;
    }
    prune(writer, observed, surplus).await
}

/// The one of this name.
fn named<'a, K: Resource + 'a>(found: impl IntoIterator<Item = &'a Arc<K>>, name: &str) -> Option<&'a K> {
    found.into_iter().map(AsRef::as_ref).find(|found: &&K| found.meta().name.as_deref() == Some(name))
}

async fn prune(writer: &Writer<'_>, observed: &Observed, surplus: &Surplus) -> Result<(), Error> {
    let Surplus { deployments, secrets, services, autoscalers, budgets, records, promotions } = surplus;
    for autoscaler in autoscalers.iter().filter_map(|name| named(&observed.autoscalers, name)) {
        writer.remove(autoscaler).await?;
    }
    for budget in budgets.iter().filter_map(|name| named(&observed.budgets, name)) {
        writer.remove(budget).await?;
    }
    for deployment in deployments.iter().filter_map(|name| named(&observed.deployments, name)) {
        writer.remove(deployment).await?;
    }
    for secret in secrets.iter().filter_map(|name| named(&observed.secrets, name)) {
        writer.remove(secret).await?;
    }
    for service in services.iter().filter_map(|name| named(observed.all_services(), name)) {
        writer.remove(service).await?;
    }
    for record in
        observed.records.iter().filter(|record| record.name.as_ref().is_some_and(|name| records.contains(name)))
    {
        let name = record.name.as_deref().unwrap_or_default();
        writer.delete::<ControllerRevision>(name, None, record.version.clone()).await?;
    }
    for promotion in promotions.iter().filter_map(|name| named(&observed.promotions, name)) {
        writer.remove(promotion).await?;
    }
    Ok(())
}

impl Writer<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.intent.owner.namespace)
    }

    /// Of what is written, only the version is asked for in answer.
    fn remember<K: Resource<DynamicType = ()>>(&self, written: &K) {
        let Some(version) = written.resource_version().and_then(|version| version.parse().ok()) else { return };
        self.writes.remember(&self.intent.owner.uid, (kind::<K>(), written.name_any()), Left::Version(version));
    }

    /// Applies an object unless it already is what it should be.
    async fn settle<K>(&self, object: &Object, found: Option<&K>) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Serialize
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let marked = marked(object);
        match found {
            Some(found) if holds(found, &marked) => Ok(()),
            Some(found) => {
                let version = self.take_over(found).await?;
                self.apply::<K>(&marked, (!relabels(found, object)).then_some(version.as_str())).await
            }
            None => match self.create::<K>(&marked).await? {
                None => Ok(()),
                Some(found) => Box::pin(self.settle(object, Some(&found))).await,
            },
        }
    }

    /// Likewise. A terminating Deployment goes on serving as it is, but does nothing more: where it would have to,
    /// another one takes its place. And where an autoscaler chooses the count, the count is not ours to apply.
    async fn settle_deployment(&self, object: &Object, found: Option<&Deployment>) -> Result<(), Error> {
        let Some(found) = found else {
            let mut made = marked(object);
            if let Some(count) = object.count {
                made.body["spec"]["replicas"] = count.into();
            }
            return match self.create::<Deployment>(&made).await? {
                None => Ok(()),
                // It has a count already, perhaps an autoscaler's.
                Some(found) => Box::pin(self.settle_deployment(object, Some(&found))).await,
            };
        };
        if let Some(successor) = successor(&self.intent.owner.name, object, found) {
            return Box::pin(self.settle_deployment(&successor, None)).await;
        }
        if object.count.is_some() && !holds(found, &marked(object)) {
            let found = self.hand_over_count(found).await?;
            return self.settle(object, Some(&found)).await;
        }
        self.settle(object, Some(found)).await
    }

    /// Applies an object that is there, or makes it.
    async fn make<K>(&self, object: &Object, found: Option<&K>) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        match found {
            Some(found) => self.apply::<K>(object, Some(&version(found))).await,
            None => match self.create::<K>(object).await? {
                None => Ok(()),
                Some(found) => self.apply::<K>(object, Some(&version(&found))).await,
            },
        }
    }

    /// Makes an object that is not in the cache. Whatever else has its name is not ours, unless somebody has taken away
    /// the label by which the caches know what is: then nothing is made, and that is returned.
    async fn create<K>(&self, object: &Object) -> Result<Option<K>, Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        match self.apply::<K>(object, Some(differ::ABSENT)).await {
            Err(error) if error.is_conflict() => self.ours::<K>(object, error).await.map(Some),
            made => made.map(|()| None),
        }
    }

    /// Makes a record. Nothing of it is ever applied again, so nobody has to know which of its fields are ours, and the
    /// API makes it with less work.
    async fn put_on_record<K>(&self, object: &Object) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Serialize
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let record = serde_json::from_value::<K>(object.body.clone());
        let record = record.map_err(|source| failed::<K>("make", &object.name, kube::Error::SerdeError(source)))?;
        let params = PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() };
        let made = self.api::<K>().create(&params, &record).await;
        match made.map_err(|source| failed::<K>("make", &object.name, source)) {
            Ok(made) => {
                self.remember(&made);
                Ok(())
            }
            Err(error) if error.is_conflict() => {
                let found = self.ours::<K>(object, error).await?;
                self.apply::<K>(object, Some(&version(&found))).await
            }
            Err(error) => Err(error),
        }
    }

    /// What is in the way of an object that was to be made, if it is ours.
    async fn ours<K>(&self, object: &Object, conflict: Error) -> Result<K, Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let found = self.api::<K>().get_opt(&object.name).await;
        match found.map_err(|source| failed::<K>("read", &object.name, source))? {
            Some(found) if found.owner_references().iter().any(|owner| owner.uid == self.intent.owner.uid) => Ok(found),
            Some(_) => Err(Error::Taken { kind: kind::<K>(), name: object.name.clone() }),
            None => Err(conflict),
        }
    }

    /// Applies an object: to this version of it and no other, where one is named.
    async fn apply<K>(&self, object: &Object, version: Option<&str>) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let mut body = object.body.clone();
        if let Some(version) = version {
            body["metadata"]["resourceVersion"] = version.into();
        }
        let written = self.api::<K>().patch_metadata(&object.name, &applying(), &Patch::Apply(&body)).await;
        let written = written.map_err(|source| failed::<K>("apply", &object.name, source))?;
        tracing::debug!(kind = kind::<K>(), name = object.name, "applied");
        self.remember(&written);
        Ok(())
    }

    /// Gives a record its place in the order of promotions. Nothing else of a record ever changes, and all of it is a lot to
    /// send for a number.
    async fn mark(&self, record: &Object, found: &Record) -> Result<(), Error> {
        let metadata = json!({ "resourceVersion": found.version });
        let body = json!({ "metadata": metadata, "revision": record.body["revision"] });
        let written =
            self.api::<ControllerRevision>().patch_metadata(&record.name, &merging(), &Patch::Merge(&body)).await;
        self.remember(&written.map_err(|source| failed::<ControllerRevision>("mark", &record.name, source))?);
        Ok(())
    }

    /// Has a Service become another version.
    async fn fence(&self, fence: &Object) -> Result<Arc<Service>, Error> {
        let fenced = self.api::<Service>().patch(&fence.name, &merging(), &Patch::Merge(&fence.body)).await;
        let fenced = fenced.map_err(|source| failed::<Service>("withdraw a switch of", &fence.name, source))?;
        self.remember(&fenced);
        Ok(Arc::new(fenced))
    }

    /// Takes the promote annotation away: the one this pass decided on, for one given since would stand in the same
    /// place. Nothing else of the object is ours.
    async fn remove_approval(&self) -> Result<(), Error> {
        let name = &self.intent.owner.name;
        let version = &self.intent.owner.resource_version;
        let body = json!({
            "metadata": { "resourceVersion": version, "annotations": { PROMOTE_WHEN_READY: Value::Null } },
        });
        let written = self.api::<DataPlane>().patch_metadata(name, &merging(), &Patch::Merge(&body)).await;
        self.remember(
            &written.map_err(|source| failed::<DataPlane>("remove the promote annotation of", name, source))?,
        );
        Ok(())
    }

    /// Deletes an object, which we may hold by a finalizer.
    async fn remove<K>(&self, found: &K) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let name = found.name_any();
        let mut version = found.resource_version();
        if found.finalizers().iter().any(|finalizer| finalizer == names::WAIT_FOR_OWNER) {
            let released = release(&self.api::<K>(), found).await;
            match released.map_err(|source| failed::<K>("release", &name, source))? {
                Some(released) => version = released.resource_version(),
                None => return Ok(()),
            }
        }
        self.delete::<K>(&name, found.uid(), version).await
    }

    async fn delete<K>(&self, name: &str, uid: Option<String>, version: Option<String>) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: uid.clone(), resource_version: version }),
            ..DeleteParams::background()
        };
        match self.api::<K>().delete(name, &params).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(source) => return Err(failed::<K>("delete", name, source)),
        }
        tracing::debug!(kind = kind::<K>(), name, "deleted");
        if let Some(uid) = uid {
            self.writes.remember(&self.intent.owner.uid, (kind::<K>(), name.to_owned()), Left::Gone(uid));
        }
        Ok(())
    }
}

/// Whether only labels and annotations of a Deployment would change. Late, that moves no traffic and starts no Pod, and the
/// next pass mends it; at its version it would lose to every count that its controller writes down.
fn relabels<K: Resource<DynamicType = ()> + Serialize>(found: &K, object: &Object) -> bool {
    kind::<K>() == "Deployment"
        && serde_json::to_value(found).is_ok_and(|found| differ::holds(&found["spec"], &object.body["spec"]))
}

/// The version of an object as it was found.
fn version<K: Resource>(found: &K) -> String {
    found.resource_version().unwrap_or_default()
}

/// What takes the place of a terminating Deployment that would have to change.
pub(super) fn successor(dataplane: &str, object: &Object, found: &Deployment) -> Option<Object> {
    if !is_terminating(found) || holds(found, &marked(object)) {
        return None;
    }
    let side = &crate::model::observed::side_of(found).unwrap_or_else(|| "".into());
    let name = names::successor(dataplane, side, found.uid().unwrap_or_default().as_str());
    let mut successor = Object { name: name.clone(), ..object.clone() };
    successor.body["metadata"]["name"] = name.into();
    Some(successor)
}

/// An object with the mark by which a later pass knows it again.
#[must_use]
pub fn marked(object: &Object) -> Object {
    let mut marked = object.clone();
    marked.body["metadata"]["annotations"][names::APPLIED] = differ::mark(&object.body).into();
    marked
}

fn holds<K: Serialize>(found: &K, marked: &Object) -> bool {
    serde_json::to_value(found).is_ok_and(|found| differ::holds(&found, &marked.body))
}

/// Takes our finalizer off an object, and only ours. Returns what is left of it, unless it has vanished.
///
/// # Errors
/// What the API says; a vanished object is no error.
pub async fn release<K>(api: &Api<K>, object: &K) -> Result<Option<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
{
    let others: Vec<_> = object.finalizers().iter().filter(|finalizer| *finalizer != names::WAIT_FOR_OWNER).collect();
    let body = json!({ "metadata": { "resourceVersion": object.resource_version(), "finalizers": others } });
    match api.patch(&object.name_any(), &merging(), &Patch::Merge(&body)).await {
        Ok(released) => Ok(Some(released)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

fn kind<K: Resource<DynamicType = ()>>() -> &'static str {
    match K::kind(&()) {
        std::borrow::Cow::Borrowed(kind) => kind,
        // Every kind we write is a type of this crate or of k8s-openapi, whose names are static.
        std::borrow::Cow::Owned(_) => "object",
    }
}

fn failed<K: Resource<DynamicType = ()>>(verb: &'static str, name: &str, source: kube::Error) -> Error {
    Error::Write { verb, kind: kind::<K>(), name: name.to_owned(), source }
}
