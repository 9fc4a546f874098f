//! One watch and one store per kind, shared by everything that reads it. Decisions never read from the API.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    sync::{Arc, PoisonError, RwLock},
};

use futures::StreamExt;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;

use super::packed::{Kept, Packed};

/// Watches `api` for as long as the process lives and keeps what it sees in the returned store.
///
/// `changed` is called for every object that was added, changed or deleted, after the store knows of it.
/// Broken watches are taken up again with back-off; a store that is behind is behind, never wrong.
pub fn keep<K>(api: Api<K>, config: watcher::Config, changed: impl Fn(&K) + Send + Sync + 'static) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    // As large as the rest of the object, and nobody decides on it.
    let trim = |object: &mut K| object.meta_mut().managed_fields = None;
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

/// Packed objects, and what belongs to whom: a pass over one owner opens its objects and looks at no others.
pub struct Owned<K: Kept> {
    store: Store<Packed<K>>,
    index: Index,
}

/// Names by owner, both in one namespace: (namespace, owner) -> names.
type Index = Arc<RwLock<HashMap<(String, String), BTreeSet<String>>>>;

/// Keeps objects by owner; what has none is not found by [`Owned::of`].
pub fn keep_owned<K: Kept>(
    api: Api<Packed<K>>,
    config: watcher::Config,
    changed: impl Fn(&str, &str) + Send + Sync + 'static,
) -> Owned<K> {
    let index = Index::default();
    let entries = Arc::clone(&index);
    let store = keep(api, config, move |object: &Packed<K>| {
        // One that was deleted stays listed until its owner goes: what the store has not is not found.
        if let Some((namespace, owner)) = enlist(&entries, object) {
            changed(&namespace, &owner);
        }
    });
    Owned { store, index }
}

/// Writes an object down as its owner's; whose it is.
fn enlist<K: Kept>(index: &Index, object: &Packed<K>) -> Option<(String, String)> {
    let key = (object.meta().namespace.clone()?, object.owner()?.to_owned());
    let name = object.meta().name.clone().unwrap_or_default();
    index.write().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default().insert(name);
    Some(key)
}

impl<K: Kept> Owned<K> {
    /// What is in a store already, by owner.
    #[cfg(test)]
    pub(crate) fn of_store(store: Store<Packed<K>>) -> Self {
        let index = Index::default();
        for object in store.state() {
            enlist(&index, &object);
        }
        Self { store, index }
    }

    /// The objects of an owner, by name.
    #[must_use]
    pub fn of(&self, namespace: &str, owner: &str) -> Vec<Arc<K>> {
        self.of_which(namespace, owner, |_| true)
    }

    /// Those of an owner's objects that are wanted. Only they are opened.
    #[must_use]
    pub fn of_which(&self, namespace: &str, owner: &str, wanted: impl Fn(&Packed<K>) -> bool) -> Vec<Arc<K>> {
        let mut gone = Vec::new();
        let key = (namespace.to_owned(), owner.to_owned());
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let names = index.get(&key).into_iter().flatten();
        let found = names
            .filter_map(|name| {
                let found = self.store.get(&ObjectRef::new(name).within(namespace));
                if found.is_none() {
                    gone.push(name.clone());
                }
                found
            })
            .filter(|packed| wanted(packed))
            .filter_map(|packed| match packed.open() {
                Ok(object) => Some(Arc::new(object)),
                Err(error) => {
                    tracing::error!(kind = %K::kind(&()), name = ?packed.meta().name, %error, "a type does not read what it wrote");
                    None
                }
            })
            .collect();
        drop(index);
        if !gone.is_empty() {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            let left = index.get_mut(&key).is_some_and(|names| {
                // Asked again under the lock: it may have come back.
                names.retain(|name| {
                    !gone.contains(name) || self.store.get(&ObjectRef::new(name).within(namespace)).is_some()
                });
                !names.is_empty()
            });
            if !left {
                index.remove(&key);
            }
        }
        found
    }

    /// One of them, once [`Owned::of`] finds it: for a moment the store knows of a new object and the list of its owner does
    /// not, and a pass in that moment would make it again.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Packed<K>>> {
        let object = self.store.get(&ObjectRef::new(name).within(namespace))?;
        let key = (namespace.to_owned(), object.owner()?.to_owned());
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.get(&key)?.contains(name).then_some(object)
    }

    /// All of them, whoever's.
    #[must_use]
    pub fn store(&self) -> &Store<Packed<K>> {
        &self.store
    }
}
