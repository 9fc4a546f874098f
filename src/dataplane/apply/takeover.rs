//! WRITES. Fields change hands: from Kong's operator to us when we first touch an object, and the count of a Deployment
//! from us to whoever holds it for an autoscaler.
//!
//! Kong's operator wrote by plain update, and such a writer keeps its fields for ever: what is no longer in the spec
//! would stay on the object. So its entries in `managedFields` become ours before our first apply.

use k8s_openapi::{
    NamespaceResourceScope,
    api::apps::v1::Deployment,
    apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry},
};
use kube::{
    Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Error, Writer, failed, version};
use crate::{
    cluster::writer::merging,
    model::names::{APPLIED, COUNT_MANAGER, FIELD_MANAGER, KONG_MANAGER},
};

impl Writer<'_> {
    /// Takes over what Kong's operator holds of an object that we have never applied. Returns the version that the object
    /// has then.
    pub(super) async fn take_over<K>(&self, found: &K) -> Result<String, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned + Clone + std::fmt::Debug,
    {
        let seen = version(found);
        if found.annotations().contains_key(APPLIED) {
            return Ok(seen);
        }
        let (api, name) = (self.api::<K>(), &found.name_any());
        // The caches leave these fields out: nothing else asks for them.
        let fresh = api.get(name).await.map_err(|source| failed::<K>("read", name, source))?;
        let Some(fields) = migrated(fresh.managed_fields()) else { return Ok(seen) };
        let patch = json!([
            { "op": "replace", "path": "/metadata/managedFields", "value": fields },
            { "op": "replace", "path": "/metadata/resourceVersion", "value": seen },
        ]);
        let refused = |source| failed::<K>("take over the fields of", name, source);
        let patch = serde_json::from_value(patch).map_err(|error| refused(kube::Error::SerdeError(error)))?;
        let written = api.patch(name, &merging(), &Patch::Json::<()>(patch)).await;
        let written = written.map_err(refused)?;
        self.remember(&written);
        Ok(version(&written))
    }

    /// Has the count of a Deployment held by somebody else before our next apply leaves it out. Returns what the
    /// Deployment is then.
    pub(super) async fn hand_over_count(&self, found: &Deployment) -> Result<Deployment, Error> {
        let name = found.name_any();
        let body = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": name, "resourceVersion": version(found) },
            "spec": { "replicas": found.spec.as_ref().and_then(|spec| spec.replicas) },
        });
        // Without force: where the autoscaler has chosen another count meanwhile, this is refused and asked again.
        let written =
            self.api::<Deployment>().patch(&name, &PatchParams::apply(COUNT_MANAGER), &Patch::Apply(&body)).await;
        let written = written.map_err(|source| failed::<Deployment>("hand over the count of", &name, source))?;
        self.remember(&written);
        Ok(written)
    }
}

/// The entries with Kong's turned into ours; none if there is nothing to turn.
fn migrated(entries: &[ManagedFieldsEntry]) -> Option<Vec<ManagedFieldsEntry>> {
    let is = |entry: &ManagedFieldsEntry, manager: &str, operation: &str| {
        entry.manager.as_deref() == Some(manager)
            && entry.operation.as_deref() == Some(operation)
            && entry.subresource.as_deref().is_none_or(str::is_empty)
    };
    if !entries.iter().any(|entry| is(entry, KONG_MANAGER, "Update")) {
        return None;
    }
    let mut kept: Vec<ManagedFieldsEntry> = Vec::new();
    let mut ours: Option<ManagedFieldsEntry> = None;
    for entry in entries {
        if !is(entry, KONG_MANAGER, "Update") && !is(entry, FIELD_MANAGER, "Apply") {
            kept.push(entry.clone());
            continue;
        }
        let own = ours.get_or_insert_with(|| ManagedFieldsEntry {
            manager: Some(FIELD_MANAGER.into()),
            operation: Some("Apply".into()),
            fields_v1: Some(FieldsV1(json!({}))),
            ..entry.clone()
        });
        if let (Some(into), Some(from)) = (&mut own.fields_v1, &entry.fields_v1) {
            union(&mut into.0, &from.0);
        }
    }
    kept.extend(ours);
    Some(kept)
}

/// Sets of fields are trees of names: their union is that of the trees.
fn union(into: &mut Value, from: &Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        for (name, below) in from {
            union(into.entry(name.clone()).or_insert_with(|| json!({})), below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: &str, operation: &str, subresource: &str, fields: Value) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            manager: Some(manager.into()),
            operation: Some(operation.into()),
            subresource: (!subresource.is_empty()).then(|| subresource.into()),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        }
    }

    #[test]
    fn what_kongs_operator_held_is_ours_and_the_rest_stays() {
        let entries = [
            entry("manager", "Update", "", json!({"f:spec": {"f:replicas": {}}})),
            entry("kubectl", "Update", "", json!({"f:metadata": {}})),
            entry("manager", "Update", "status", json!({"f:status": {}})),
            entry("manager", "Update", "", json!({"f:spec": {"f:template": {}}})),
        ];
        let migrated = migrated(&entries).expect("something to take over");
        assert_eq!(migrated[..2], entries[1..3]);
        let ours = entry("sluice", "Apply", "", json!({"f:spec": {"f:replicas": {}, "f:template": {}}}));
        assert_eq!(migrated[2..], [ours]);
    }

    #[test]
    fn where_kongs_operator_holds_nothing_there_is_nothing_to_write() {
        assert_eq!(migrated(&[entry("kubectl", "Update", "", json!({}))]), None);
    }
}
