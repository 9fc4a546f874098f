//! Writes the status of an object, where it differs from what is observed.

use kube::{Api, Resource, ResourceExt, api::Patch};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

use super::writer::applying;

/// Applies `wanted` as the status of `object` if `observed` differs. True if it was written.
///
/// An object that is gone or has changed since it was observed is no error: nobody is left to read this status, or the
/// change asks for a pass of its own.
///
/// # Errors
/// Whatever else the API server answers.
pub async fn publish<K, S>(api: &Api<K>, object: &K, observed: Option<&S>, wanted: &S) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    S: Serialize + PartialEq,
{
    if observed == Some(wanted) {
        return Ok(false);
    }
    let name = object.name_any();
    let body = serde_json::json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        // A UID does not guard the status of a custom resource, the version does: neither a namesake that was created
        // meanwhile nor a newer status of our own is overwritten.
        "metadata": { "name": name, "resourceVersion": object.resource_version() },
        "status": wanted,
    });
    match api.patch_status(&name, &applying(), &Patch::Apply(body)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}
