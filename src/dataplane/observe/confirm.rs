//! READS. From the API, once in an upgrade: before the first Service is switched.
//!
//! A cache may be a moment behind, and a gate that was added in that moment has not passed.

use kube::{Api, Client, ResourceExt, api::ListParams};

use crate::api::{DataPlane, PromotionPolicy};

/// Whether the DataPlane and the policies of its namespace are what this pass decided on.
///
/// # Errors
/// What the API says; nothing is switched then.
pub async fn unchanged(
    client: &Client,
    dataplane: &DataPlane,
    policies: &[&PromotionPolicy],
) -> Result<bool, kube::Error> {
    let namespace = dataplane.namespace().unwrap_or_default();
    let api: Api<PromotionPolicy> = Api::namespaced(client.clone(), &namespace);
    let fresh = api.list(&ListParams::default()).await?;
    // By generation: the status of a policy says nothing that an upgrade depends on.
    let identity = |policy: &PromotionPolicy| (policy.name_any(), policy.uid(), policy.metadata.generation);
    let mut known: Vec<_> = policies.iter().map(|policy| identity(policy)).collect();
    let mut found: Vec<_> = fresh.items.iter().map(identity).collect();
    known.sort();
    found.sort();
    let now = Api::<DataPlane>::namespaced(client.clone(), &namespace).get(&dataplane.name_any()).await?;
    Ok(known == found && now.resource_version() == dataplane.resource_version())
}
