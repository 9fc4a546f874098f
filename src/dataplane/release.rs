//! Lets go of what is held for an owner that is gone.
//!
//! Services, Deployments and Secrets carry a finalizer, so that a deleted one serves until its DataPlane goes. When it
//! has gone there is no object left to reconcile, so this listens to the same changes and looks for what is left over.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use serde::de::DeserializeOwned;

use super::{apply, reconcile::Context};
use crate::{api::DataPlane, model::names};

/// Before an object that could not be released is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Runs until `changes` ends.
pub async fn run(ctx: Arc<Context>, mut changes: UnboundedReceiver<ObjectRef<DataPlane>>) {
    while let Some(owner) = changes.next().await {
        while let Err(error) = sweep(&ctx, &owner).await {
            tracing::warn!(owner = %owner, %error, "an object could not be released and is tried again");
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn sweep(ctx: &Context, owner: &ObjectRef<DataPlane>) -> Result<(), kube::Error> {
    let standing = ctx.caches.dataplanes.get(owner).filter(|owner| owner.metadata.deletion_timestamp.is_none());
    let standing = standing.and_then(|owner| owner.uid());
    release(ctx, owner, standing.as_deref(), &ctx.caches.services).await?;
    release(ctx, owner, standing.as_deref(), &ctx.caches.deployments).await?;
    release(ctx, owner, standing.as_deref(), &ctx.caches.secrets).await
}

/// By UID: an owner of the same name that was made anew is another owner.
async fn release<K>(
    ctx: &Context,
    owner: &ObjectRef<DataPlane>,
    standing: Option<&str>,
    store: &Store<K>,
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug
        + 'static,
{
    let orphaned = store.state_filter(|object: &K| {
        object.meta().deletion_timestamp.is_some()
            && object.namespace() == owner.namespace
            && object.finalizers().iter().any(|finalizer| finalizer == names::WAIT_FOR_OWNER)
            && object.owner_references().iter().any(|reference| {
                reference.kind == "DataPlane"
                    && reference.name == owner.name
                    && Some(reference.uid.as_str()) != standing
            })
    });
    for object in orphaned {
        let api = Api::namespaced(ctx.client.clone(), owner.namespace.as_deref().unwrap_or_default());
        match apply::release(&api, object.as_ref()).await {
            // The cache is behind; the change that is on its way brings us here again.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            released => released?,
        }
    }
    Ok(())
}
