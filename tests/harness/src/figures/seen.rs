//! When something was first seen, by a watch that runs all along.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

/// For every key that objects of a kind ever had: when the first of them had it. The API's own times are in seconds.
pub struct FirstSeen {
    moments: Arc<Mutex<HashMap<String, Instant>>>,
    task: JoinHandle<()>,
}

impl FirstSeen {
    /// Watches from now on; `key` is that of an object as it is now, if it has one.
    pub fn of<K>(api: Api<K>, key: impl Fn(&K) -> Option<String> + Send + 'static) -> Self
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let moments = Arc::new(Mutex::new(HashMap::new()));
        let map = Arc::clone(&moments);
        let task = tokio::spawn(async move {
            let objects = watcher::watcher(api, watcher::Config::default()).default_backoff().applied_objects();
            let mut objects = std::pin::pin!(objects);
            while let Some(object) = objects.next().await {
                // A watch that breaks is taken up again by itself.
                if let Some(found) = object.ok().as_ref().and_then(&key) {
                    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
                    map.entry(found).or_insert_with(Instant::now);
                }
            }
        });
        Self { moments, task }
    }

    /// When the first object with this key was seen.
    pub fn at(&self, key: &str) -> Option<Instant> {
        self.moments.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }
}

impl Drop for FirstSeen {
    fn drop(&mut self) {
        self.task.abort();
    }
}
