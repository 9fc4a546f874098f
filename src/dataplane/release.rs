//! Lets go of what is held for an owner that is gone.
//!
//! Services, Deployments and Secrets carry a finalizer, so that a deleted one serves until its DataPlane goes. When it
//! has gone there is no object left to reconcile, so this listens to the same changes and looks for what is left over.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt, runtime::reflector::ObjectRef};

use super::{apply, jobs, reconcile::Context};
use crate::{
    api::DataPlane,
    cluster::{cache::Owned, packed::Kept},
    model::{names, observed::is_terminating},
};

/// Between two looks at everything: a watch that was taken up again does not tell what vanished meanwhile, and an
/// object that could not be released is tried again then.
const ROUND: Duration = Duration::from_secs(30);

/// Runs until `changes` ends.
pub async fn run(ctx: Arc<Context>, mut changes: UnboundedReceiver<ObjectRef<DataPlane>>) {
    let mut rounds = tokio::time::interval(ROUND);
    loop {
        // Whoever is at work releases too.
        let owners = tokio::select! {
            change = changes.next() => match change {
                Some(owner) => vec![owner],
                None => return,
            },
            _ = rounds.tick() => owners(&ctx),
        };
        for owner in owners.into_iter().filter(|_| ctx.foreign.at_work(jiff::Timestamp::now()).is_none()) {
            if ctx.caches.dataplanes.get(&owner).is_none() {
                jobs::cancel(&ctx, &owner);
            }
            if let Err(error) = sweep(&ctx, &owner).await {
                tracing::warn!(%owner, %error, "an object could not be released and is tried again");
            }
        }
    }
}

/// The owners of everything that is terminating.
fn owners(ctx: &Context) -> Vec<ObjectRef<DataPlane>> {
    let mut owners = BTreeSet::new();
    let mut note = |namespace: Option<String>, name: Option<String>| owners.extend(namespace.zip(name));
    terminating(&ctx.caches.services).for_each(|(namespace, name)| note(namespace, name));
    terminating(&ctx.caches.deployments).for_each(|(namespace, name)| note(namespace, name));
    terminating(&ctx.caches.secrets).for_each(|(namespace, name)| note(namespace, name));
    owners.into_iter().map(|(namespace, name)| ObjectRef::new(&name).within(&namespace)).collect()
}

fn terminating<K: Kept>(kept: &Owned<K>) -> impl Iterator<Item = (Option<String>, Option<String>)> {
    let marked = kept.store().state_filter(is_terminating);
    marked.into_iter().map(|object| (object.namespace(), object.owner().map(str::to_owned)))
}

async fn sweep(ctx: &Context, owner: &ObjectRef<DataPlane>) -> Result<(), kube::Error> {
    let standing = ctx.caches.dataplanes.get(owner).filter(|owner| owner.metadata.deletion_timestamp.is_none());
    let standing = standing.and_then(|owner| owner.uid());
    release(ctx, owner, standing.as_deref(), &ctx.caches.services).await?;
    release(ctx, owner, standing.as_deref(), &ctx.caches.deployments).await?;
    release(ctx, owner, standing.as_deref(), &ctx.caches.secrets).await
}

async fn release<K>(
    ctx: &Context,
    owner: &ObjectRef<DataPlane>,
    standing: Option<&str>,
    kept: &Owned<K>,
) -> Result<(), kube::Error>
where
    K: Kept + Resource<Scope = NamespaceResourceScope>,
{
    let namespace = owner.namespace.as_deref().unwrap_or_default();
    // Every change of anything asks this, and hardly anything is terminating: the rest stays packed.
    let held = kept.of_which(namespace, &owner.name, is_terminating);
    for object in held.into_iter().filter(|object| is_orphan(object.as_ref(), owner, standing)) {
        let api = Api::<K>::namespaced(ctx.client.clone(), namespace);
        match apply::release(&api, object.as_ref()).await {
            // The cache is behind; the change that is on its way brings us here again.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            released => drop(released?),
        }
    }
    Ok(())
}

/// Terminating, held by our finalizer, and its owner is gone. By UID: an owner of the same name that was made anew is
/// another owner.
pub(super) fn is_orphan<K: Resource>(object: &K, owner: &ObjectRef<DataPlane>, standing: Option<&str>) -> bool {
    is_terminating(object)
        && object.namespace() == owner.namespace
        && object.finalizers().iter().any(|finalizer| finalizer == names::WAIT_FOR_OWNER)
        && object.owner_references().iter().any(|reference| {
            reference.kind == "DataPlane" && reference.name == owner.name && Some(reference.uid.as_str()) != standing
        })
}
