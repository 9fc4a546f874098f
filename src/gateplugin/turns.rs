//! Whose turn it is to be installed: one plugin of each namespace at a time, and namespaces in the order they asked in.
//!
//! So whoever has a hundred plugins that take a minute each is passed by everybody else after one of them, and who
//! waits holds no bytes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Plugins being installed at once: each may hold a component in memory, and they compile one at a time anyhow.
const PLACES: usize = 2;

/// The queue.
pub(super) struct Turns {
    places: Arc<Semaphore>,
    namespaces: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Held while a plugin is installed.
pub(super) struct Turn {
    // Given back in this order: the next of the namespace queues behind the others.
    _place: Result<OwnedSemaphorePermit, AcquireError>,
    _namespace: Result<OwnedSemaphorePermit, AcquireError>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(PLACES)), namespaces: Mutex::default() }
    }
}

impl Turns {
    /// Waits for the turn of a plugin of `namespace`.
    pub(super) async fn take(&self, namespace: &str) -> Turn {
        let own = self.own(namespace);
        let waited = own.acquire_owned().await;
        // First come, first served; and of each namespace only one is in this queue.
        Turn { _place: Arc::clone(&self.places).acquire_owned().await, _namespace: waited }
    }

    fn own(&self, namespace: &str) -> Arc<Semaphore> {
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        namespaces.retain(|_, waiting| waiting.strong_count() > 0);
        if let Some(known) = namespaces.get(namespace).and_then(Weak::upgrade) {
            return known;
        }
        let own = Arc::new(Semaphore::new(1));
        namespaces.insert(namespace.to_owned(), Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt as _, future::BoxFuture};

    fn asked<'a>(turns: &'a Turns, namespace: &'a str) -> BoxFuture<'a, Turn> {
        let mut asking = turns.take(namespace).boxed();
        assert!(asking.as_mut().now_or_never().is_none(), "{namespace} has to wait");
        asking
    }

    #[tokio::test]
    async fn a_namespace_with_many_plugins_is_passed_by_one_with_few() {
        let turns = Turns::default();
        let first = turns.take("many").await;
        let elsewhere = turns.take("other").await;
        let (mut second, mut few) = (asked(&turns, "many"), asked(&turns, "few"));
        drop(first);
        assert!(second.as_mut().now_or_never().is_none(), "it asked before, but not for a place");
        let few = few.as_mut().now_or_never().expect("a turn");
        drop(elsewhere);
        let second = second.as_mut().now_or_never().expect("a turn");
        assert!(turns.take("third").now_or_never().is_none());
        drop((few, second));
        assert!(turns.take("third").now_or_never().is_some());
    }

    #[tokio::test]
    async fn namespaces_without_plugins_are_forgotten() {
        let turns = Turns::default();
        drop(turns.take("a").await);
        drop(turns.take("b").await);
        assert_eq!(turns.namespaces.lock().unwrap().len(), 1);
    }
}
