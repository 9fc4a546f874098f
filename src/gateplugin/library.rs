//! What the gate host holds: every component once, as long as somebody needs it.

use std::{collections::HashMap, fmt, sync::Arc};

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::{
    gate::{GateHost, Presence},
    model::trial::{Digest, LoadError, Loaded},
};

/// The loaded components by digest. One for the process, as there is one gate host.
pub struct Library {
    host: Arc<dyn GateHost>,
    /// Locked for as long as something is on its way out: who asks for the same meanwhile finds it gone, and loads it anew.
    shelf: Mutex<(Presence, Shelf)>,
}

type Shelf = HashMap<Digest, Loaded>;

impl Library {
    /// Empty, as `host` is when it starts.
    #[must_use]
    pub fn new(host: Arc<dyn GateHost>) -> Self {
        Self { host, shelf: Mutex::new((Presence::Away, Shelf::new())) }
    }

    /// Whether the host is there, now and from now on.
    pub(super) fn presence(&self) -> watch::Receiver<Presence> {
        self.host.presence()
    }

    /// Loads `component`, whose digest is `digest`, unless it is loaded. It is let go as soon as nobody needs it, so it has
    /// to be needed already.
    ///
    /// # Errors
    /// Why it cannot be run here.
    pub(super) async fn load(&self, digest: &Digest, component: Bytes) -> Result<Loaded, LoadError> {
        let now = self.now();
        if let Some(loaded) = self.shelf(now).await.1.get(digest) {
            return Ok(loaded.clone());
        }
        // What is asked for twice meanwhile is compiled once: that is the host's to see to.
        let loaded = self.host.load(component).await?;
        // A host that came meanwhile has an empty shelf, and this pass is made again.
        let (of, shelf) = &mut *self.shelf(self.now()).await;
        if *of == now {
            shelf.insert(digest.clone(), loaded.clone());
        }
        Ok(loaded)
    }

    /// Unloads what is not `needed`.
    pub(super) async fn release(&self, needed: impl Fn(&Digest) -> bool) {
        let mut shelf = self.shelf(self.now()).await;
        let unneeded: Vec<Digest> = shelf.1.extract_if(|digest, _| !needed(digest)).map(|(digest, _)| digest).collect();
        for digest in unneeded {
            tracing::info!(%digest, "nobody uses this plugin any more: unloaded");
            self.host.unload(&digest).await;
        }
    }

    fn now(&self) -> Presence {
        *self.host.presence().borrow()
    }

    /// What the host that is there `now` holds: what another held went with it.
    async fn shelf(&self, now: Presence) -> MutexGuard<'_, (Presence, Shelf)> {
        let mut shelf = self.shelf.lock().await;
        if shelf.0 != now {
            *shelf = (now, Shelf::new());
        }
        shelf
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Library")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use async_trait::async_trait;
    use futures::FutureExt as _;
    use serde_json::{Value, json};
    use tokio::{join, sync::Semaphore};

    use super::*;
    use crate::model::trial::{Description, Outcome, Problem, Report, Trial};

    /// Loads everything at once, and unloads when it is allowed to.
    struct Host {
        held: std::sync::Mutex<BTreeSet<Digest>>,
        unloads: Semaphore,
        presence: watch::Sender<Presence>,
    }

    #[async_trait]
    impl GateHost for Host {
        async fn load(&self, bytes: Bytes) -> Result<Loaded, LoadError> {
            let digest = Digest::of(&bytes);
            self.held.lock().unwrap().insert(digest.clone());
            let (version, summary) = (String::new(), String::new());
            let description = Description { name: "x".into(), version, summary, settings_schema: json!({}) };
            Ok(Loaded { digest, size: bytes.len(), contract: String::new(), imports: vec![], description })
        }

        async fn unload(&self, digest: &Digest) {
            self.unloads.acquire().await.unwrap().forget();
            self.held.lock().unwrap().remove(digest);
        }

        async fn validate(&self, _: &Digest, _: &Value) -> Result<Vec<Problem>, Outcome> {
            unreachable!("nobody asks")
        }

        async fn run(&self, _: Trial) -> Report {
            unreachable!("nobody asks")
        }

        fn presence(&self) -> watch::Receiver<Presence> {
            self.presence.subscribe()
        }
    }

    fn library(unloads: usize) -> (Library, Arc<Host>) {
        let presence = watch::Sender::new(Presence::Here(1));
        let host = Arc::new(Host { held: Default::default(), unloads: Semaphore::new(unloads), presence });
        (Library::new(host.clone()), host)
    }

    async fn load(library: &Library, component: &'static str) -> Digest {
        let digest = Digest::of(component.as_bytes());
        assert_eq!(library.load(&digest, component.into()).await.unwrap().digest, digest);
        digest
    }

    impl Host {
        fn holds(&self) -> BTreeSet<Digest> {
            self.held.lock().unwrap().clone()
        }
    }

    #[tokio::test]
    async fn what_nobody_needs_goes_and_what_somebody_needs_stays() {
        let (library, host) = library(1);
        let (used, replaced) = (load(&library, "used").await, load(&library, "replaced").await);
        assert_eq!(host.holds(), [used.clone(), replaced.clone()].into());
        library.release(|digest| *digest == used).await;
        assert_eq!(host.holds(), [used.clone()].into());
        library.release(|digest| *digest == used).await;
        assert_eq!(load(&library, "replaced").await, replaced);
        assert_eq!(host.holds(), [used, replaced].into());
    }

    #[tokio::test]
    async fn what_is_asked_for_while_it_goes_is_loaded_anew() {
        let (library, host) = library(0);
        let digest = load(&library, "a").await;
        let mut release = library.release(|_| false).boxed();
        assert!((&mut release).now_or_never().is_none(), "the host takes its time");
        let mut again = load(&library, "a").boxed();
        assert!((&mut again).now_or_never().is_none(), "what goes is not what is asked for");
        host.unloads.add_permits(1);
        join!(release, again);
        assert_eq!(host.holds(), [digest].into());
    }

    #[tokio::test]
    async fn what_another_host_held_is_loaded_again() {
        let (library, host) = library(0);
        let digest = load(&library, "a").await;
        host.held.lock().unwrap().clear();
        host.presence.send_replace(Presence::Here(2));
        load(&library, "a").await;
        assert_eq!(host.holds(), [digest].into());
    }
}
