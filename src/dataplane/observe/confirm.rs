//! READS. From the API, once in an upgrade: before the first Service is switched.
//!
//! A cache may be a moment behind, and a gate that was added in that moment has not passed.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{Api, Client, Resource, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;

use crate::{
    api::DataPlane,
    model::{Policies, plan::Confirms, policies::OfCluster},
};

/// Whether the DataPlane and the policies that may concern it are what this pass decided on.
///
/// # Errors
/// What the API says; nothing is switched then.
pub async fn unchanged(
    client: &Client,
    dataplane: &DataPlane,
    policies: &Policies,
    confirms: Confirms,
) -> Result<bool, kube::Error> {
    let namespace = dataplane.namespace().unwrap_or_default();
    let mut unchanged = same(&Api::namespaced(client.clone(), &namespace), &policies.own).await?;
    if let Some(OfCluster { policies, labels: known }) = policies.cluster.as_ref().filter(|_| unchanged) {
        unchanged = same(&Api::all(client.clone()), policies).await?;
        if policies.iter().any(|policy| policy.spec.namespace_selector != LabelSelector::default()) {
            unchanged &= labels(client, &namespace).await? == *known;
        }
    }
    Ok(unchanged
        && match confirms {
            Confirms::Policies => true,
            Confirms::Everything => {
                let now = Api::<DataPlane>::namespaced(client.clone(), &namespace).get(&dataplane.name_any()).await?;
                now.resource_version() == dataplane.resource_version()
            }
        })
}

/// By generation: the status of a policy says nothing that an upgrade depends on.
async fn same<K>(api: &Api<K>, known: &[Arc<K>]) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let identity = |policy: &K| (policy.name_any(), policy.uid(), policy.meta().generation);
    let mut known: Vec<_> = known.iter().map(|policy| identity(policy)).collect();
    let mut found: Vec<_> = api.list(&ListParams::default()).await?.items.iter().map(identity).collect();
    known.sort();
    found.sort();
    Ok(known == found)
}

async fn labels(client: &Client, namespace: &str) -> Result<Option<BTreeMap<String, String>>, kube::Error> {
    let found = Api::<Namespace>::all(client.clone()).get_metadata(namespace).await?;
    Ok(Some(found.metadata.labels.unwrap_or_default()))
}
