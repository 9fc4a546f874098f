//! Waiting for objects of the cluster: always for something seen, never for a time, and never without an end.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use futures::StreamExt;
use kube::runtime::wait::await_condition;
use kube::runtime::watcher::{self, Event, watch_object};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long to wait for anything, unless said otherwise: far more than it takes, for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until an object is as wanted; `what` completes "NAME did not ...".
pub async fn wait<K>(
    api: Api<K>,
    name: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(Option<&K>) -> bool,
) -> Result<Option<K>>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize + Send + 'static,
{
    match tokio::time::timeout(limit, await_condition(api.clone(), name, |object: Option<&K>| wanted(object))).await {
        Ok(object) => Ok(object?),
        Err(_) => {
            let last = api.get_opt(name).await?;
            bail!("{name} did not {what} within {} s; it is now {:#}", limit.as_secs(), json!(last))
        }
    }
}

/// Waits until so many objects are as wanted, and tells each time how many are; `what` completes "N of M did ...".
pub async fn wait_for_many<K>(
    api: Api<K>,
    which: watcher::Config,
    (count, what): (usize, &str),
    limit: Duration,
    wanted: impl Fn(&K) -> bool,
    mut tell: impl FnMut(usize),
) -> Result<()>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut there = HashSet::new();
    let all = async {
        let mut events = std::pin::pin!(watcher::watcher(api, which).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(object) | Event::InitApply(object)) if wanted(&object) => {
                    there.insert(object.name_any());
                }
                Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => {
                    there.remove(&object.name_any());
                }
                // A watch that breaks is taken up again by itself.
                Ok(Event::Init | Event::InitDone) | Err(_) => {}
            }
            tell(there.len());
            if there.len() >= count {
                return;
            }
        }
    };
    match tokio::time::timeout(limit, all).await {
        Ok(()) => Ok(()),
        Err(_) => bail!("{} of {count} did {what} within {} s", there.len(), limit.as_secs()),
    }
}

/// Waits until all objects with these labels, sorted by name, are as wanted; `what` completes "LABELS did not ...".
pub async fn wait_all<K>(
    api: Api<K>,
    labels: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(&[Arc<K>]) -> bool,
) -> Result<Vec<Arc<K>>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static,
{
    let (store, writer) = reflector::store::<K>();
    let objects = || {
        let mut objects: Vec<Arc<K>> = store.state();
        objects.sort_by_key(|object| object.name_any());
        objects
    };
    let changes = watcher::watcher(api, watcher::Config::default().labels(labels)).default_backoff().reflect(writer);
    let mut found = std::pin::pin!(changes.filter_map(|change| {
        // Between `Init` and `InitDone` not all of them are known. A watch that breaks is taken up again by itself.
        let whole = matches!(change, Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)));
        std::future::ready(Some(objects()).filter(|objects| whole && wanted(objects)))
    }));
    match tokio::time::timeout(limit, found.next()).await {
        Ok(Some(objects)) => Ok(objects),
        Ok(None) => bail!("the watch of {labels} ended"),
        Err(_) => {
            let last: Vec<_> = store.state().iter().map(|object| json!(object.as_ref())).collect();
            bail!("{labels} did not {what} within {} s; it is now {:#}", limit.as_secs(), json!(last))
        }
    }
}

/// How a part of an object has changed, value by value.
pub struct History {
    name: String,
    seen: Arc<Mutex<Vec<String>>>,
    length: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl History {
    /// Writes down, from now on, how a part of an object changes.
    pub fn of<K>(api: Api<K>, name: &str, part: impl Fn(&K) -> Option<String> + Send + 'static) -> Self
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (sender, length) = watch::channel(0);
        let (list, object) = (Arc::clone(&seen), name.to_owned());
        let task = tokio::spawn(async move {
            let mut states = std::pin::pin!(watch_object(api, &object));
            while let Some(state) = states.next().await {
                // A watch that breaks is taken up again by itself.
                let Some(value) = state.ok().flatten().as_ref().and_then(&part) else { continue };
                let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
                if list.last() != Some(&value) {
                    list.push(value);
                    sender.send_replace(list.len());
                }
            }
        });
        Self { name: name.to_owned(), seen, length, task }
    }

    /// The values so far, in order, without repetition.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a value has been seen, now or earlier.
    pub async fn wait_for(&mut self, value: &str, limit: Duration) -> Result<()> {
        let seen = Arc::clone(&self.seen);
        let has = |_: &usize| seen.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|one| one == value);
        let came = tokio::time::timeout(limit, self.length.wait_for(has)).await.is_ok_and(|found| found.is_ok());
        if !came {
            bail!("{} was never {value} within {} s; it was {}", self.name, limit.as_secs(), self.seen().join(", "));
        }
        Ok(())
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}
