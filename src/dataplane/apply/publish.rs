//! WRITES. What people and later passes read: status of the upgrade, status of the DataPlane, Events. In this order:
//! a commit is on record before the spec is frozen for it, and nobody is told of what is not yet true.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use kube::{
    Client, Resource, ResourceExt,
    api::Patch,
    core::PartialObjectMeta,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Value, json};

use super::{Error, Writer, failed};
use crate::{
    api::{DataPlane, Promotion, dataplane::DataPlaneStatus, promotion::PromotionStatus},
    cluster::writer::merging,
    dataplane::status::Note,
    model::{Observed, Phase, Plan, plan::Cleared},
};

/// Publishes what this pass decided. One status write for each object at most. A decision that is void goes before
/// anything that could honour it; one that was carried out was on record before this pass.
///
/// # Errors
/// The first write that failed. A conflict on a conditional write voids what it was about, nothing else.
pub async fn publish(
    writer: &Writer<'_>,
    observed: &Observed,
    plan: &Plan,
    status: &DataPlaneStatus,
) -> Result<(), Error> {
    let cleared = match &plan.cleared {
        Some(cleared) => Some((&cleared.promotion, writer.clear(cleared).await?)),
        None => None,
    };
    if let Some(promotion) = &plan.promotion {
        let recorded = recorded(observed, &promotion.name);
        if recorded != Some(&promotion.status) {
            // One that this pass has made or cleared is written to as that left it.
            let cleared = cleared.filter(|(name, _)| **name == promotion.name).map(|(_, version)| version);
            let made = || writer.writes.version(&writer.intent.owner.uid, &("Promotion", promotion.name.clone()));
            let only_if = cleared.or_else(|| promotion.resource_version.clone()).or_else(made);
            writer.promotion_status(recorded, &promotion.name, only_if.as_deref(), &promotion.status).await?;
        }
    }
    if observed.status.as_ref() != Some(status) {
        let only_if = plan.arms.then_some(writer.intent.owner.resource_version.as_str());
        writer.dataplane_status(observed.status.as_ref(), status, only_if).await?;
    }
    Ok(())
}

/// The status of an upgrade as observed.
pub(super) fn recorded<'a>(observed: &'a Observed, name: &str) -> Option<&'a PromotionStatus> {
    observed.promotions.iter().find(|found| found.name_any() == name)?.status.as_ref()
}

/// Publishes why the cluster could not be made what was planned. Of the upgrade only what moves traffic back is
/// recorded: nothing else of the plan has come true.
///
/// # Errors
/// The write that failed.
pub async fn trouble(
    writer: &Writer<'_>,
    observed: &Observed,
    plan: &Plan,
    status: &DataPlaneStatus,
) -> Result<(), Error> {
    let moving = matches!(plan.phase, Phase::Switching | Phase::Verifying) && !plan.arms;
    let plan = Plan { promotion: plan.promotion.clone().filter(|_| moving), arms: false, ..plan.clone() };
    publish(writer, observed, &plan, status).await
}

/// Tells people what changed. An Event that is lost loses nothing: everything in it is also in a status.
pub async fn tell(client: &Client, host: &str, dataplane: &DataPlane, notes: &[Note]) {
    // A recorder of its own for each pass: one that lives on counts Events of the same reason as one, under the first
    // message, and ours are said once and differ in their message.
    let reporter = Reporter { controller: "sluice.dev/operator".into(), instance: Some(host.to_owned()) };
    let recorder = Recorder::new(client.clone(), reporter);
    for Note { warning, reason, message } in notes {
        let event = Event {
            type_: if *warning { EventType::Warning } else { EventType::Normal },
            reason: reason.clone(),
            note: Some(cut(message)),
            action: "Reconcile".into(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &dataplane.object_ref(&())).await {
            tracing::warn!(%error, reason, "an Event could not be published");
        }
    }
}

/// UIDs of DataPlanes that were told that Kong's operator is at work.
pub type Yielded = Mutex<HashSet<String>>;

/// Tells, once, that Kong's operator is at work and nothing is written. An Event: a condition would be a write that it
/// may answer.
pub async fn yields(client: &Client, host: &str, dataplane: &DataPlane, holder: &str, told: &Yielded) {
    if !told.lock().unwrap_or_else(PoisonError::into_inner).insert(dataplane.uid().unwrap_or_default()) {
        return;
    }
    let message = format!(
        "Kong's operator ({holder}) renews its Lease: nothing is written until it is stopped and its Lease has run out"
    );
    tracing::warn!(dataplane = %dataplane.name_any(), holder, "ForeignController: Kong's operator is at work");
    tell(client, host, dataplane, &[Note { warning: true, reason: "ForeignController".into(), message }]).await;
}

/// The API takes at most 1024 bytes.
fn cut(message: &str) -> String {
    let mut end = message.len().min(1_000);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

/// `after` as a merge patch that also takes away what only `before` has.
fn replacing(before: &Value, mut after: Value) -> Value {
    if let (Value::Object(before), Value::Object(after)) = (before, &mut after) {
        for (field, before) in before {
            let patched = after.remove(field).map_or(Value::Null, |after| replacing(before, after));
            after.insert(field.clone(), patched);
        }
    }
    after
}

impl Writer<'_> {
    /// Takes a decision off its upgrade, if it is still the one; returns the version that is left.
    async fn clear(&self, cleared: &Cleared) -> Result<String, Error> {
        let Cleared { promotion, resource_version, retry_only, .. } = cleared;
        let decision = if *retry_only { json!({ "retry": null }) } else { Value::Null };
        let body = json!({ "metadata": { "resourceVersion": resource_version }, "spec": { "decision": decision } });
        let written = self.api::<Promotion>().patch(promotion, &merging(), &Patch::Merge(&body)).await;
        let written = written.map_err(|source| failed::<Promotion>("take a decision off", promotion, source))?;
        self.remember(&written);
        Ok(written.resource_version().unwrap_or_default())
    }

    /// By merge: nobody else writes it, and an apply costs the API several times as much.
    pub(super) async fn promotion_status(
        &self,
        before: Option<&PromotionStatus>,
        name: &str,
        resource_version: Option<&str>,
        status: &PromotionStatus,
    ) -> Result<(), Error> {
        let mut body = json!({ "status": replacing(&json!(before), json!(status)) });
        if let Some(version) = resource_version {
            body["metadata"] = json!({ "resourceVersion": version });
        }
        let written =
            self.api::<PartialObjectMeta<Promotion>>().patch_status(name, &merging(), &Patch::Merge(&body)).await;
        self.remember(&written.map_err(|source| failed::<Promotion>("write the status of", name, source))?);
        Ok(())
    }

    /// By merge, as Kong's operator writes it: where an apply leaves out the last field of an object it leaves `null`
    /// there, which Kong's schema refuses.
    async fn dataplane_status(
        &self,
        before: Option<&DataPlaneStatus>,
        status: &DataPlaneStatus,
        only_if: Option<&str>,
    ) -> Result<(), Error> {
        let name = &self.intent.owner.name;
        let mut body =
            json!({ "metadata": { "uid": self.intent.owner.uid }, "status": replacing(&json!(before), json!(status)) });
        if let Some(version) = only_if {
            body["metadata"]["resourceVersion"] = version.into();
        }
        let written =
            self.api::<PartialObjectMeta<DataPlane>>().patch_status(name, &merging(), &Patch::Merge(&body)).await;
        self.remember(&written.map_err(|source| failed::<DataPlane>("write the status of", name, source))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_longer_said_is_taken_away() {
        let before = json!({"service": "a", "rollout": {"deployment": {"selector": "x"}, "conditions": [1]}});
        let after = json!({"service": "b", "rollout": {"deployment": {}, "conditions": [2]}, "replicas": 1});
        assert_eq!(
            replacing(&before, after),
            json!({"service": "b", "rollout": {"deployment": {"selector": null}, "conditions": [2]}, "replicas": 1})
        );
        assert_eq!(replacing(&before, json!({"service": "a"})), json!({"service": "a", "rollout": null}));
        assert_eq!(replacing(&Value::Null, json!({"replicas": 0})), json!({"replicas": 0}));
    }
}
