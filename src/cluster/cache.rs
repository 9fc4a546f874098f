//! One watch and one store per kind, shared by everything that reads it. Decisions never read from the API.

use std::fmt::Debug;

use futures::StreamExt;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;

/// Watches `api` for as long as the process lives and keeps what it sees in the returned store.
///
/// `changed` is called for every object that was added, changed or deleted, after the store knows of it.
/// Broken watches are taken up again with back-off; a store that is behind is behind, never wrong.
pub fn keep<K>(api: Api<K>, config: watcher::Config, changed: impl Fn(&K) + Send + Sync + 'static) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    keep_trimmed(api, config, |_| {}, changed)
}

/// The same for objects of which only a part is ever read: `trim` takes the rest away before it is kept.
pub fn keep_trimmed<K>(
    api: Api<K>,
    config: watcher::Config,
    trim: impl Fn(&mut K) + Send + Sync + 'static,
    changed: impl Fn(&K) + Send + Sync + 'static,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let trim = move |object: &mut K| {
        // As large as the rest of the object, and nobody decides on it.
        object.meta_mut().managed_fields = None;
        trim(object);
    };
    let stream = watcher(api, config).default_backoff().modify(trim).reflect(writer).touched_objects();
    tokio::spawn(stream.for_each(move |touched| {
        match touched {
            Ok(object) => changed(&object),
            Err(error) => {
                tracing::warn!(kind = std::any::type_name::<K>(), %error, "a watch broke and is taken up again")
            }
        }
        std::future::ready(())
    }));
    store
}
