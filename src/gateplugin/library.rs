//! What the gate host holds: every component once, as long as somebody needs it.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::{RwLock, watch};

use crate::{
    gate::{GateHost, Presence},
    model::trial::{Digest, LoadError, Loaded},
};

/// The loaded components by digest. One for the process, as there is one gate host.
pub struct Library {
    host: Arc<dyn GateHost>,
    shelf: Mutex<(Presence, Shelf)>,
    /// Shared by those who load: what is let go meanwhile would be taken from under their hands.
    loading: RwLock<()>,
}

type Shelf = HashMap<Digest, Shelved>;

struct Shelved {
    loaded: Loaded,
    /// Nobody needed it when it was last asked about.
    idle: bool,
}

impl Library {
    /// Empty, as `host` is when it starts.
    #[must_use]
    pub fn new(host: Arc<dyn GateHost>) -> Self {
        Self { host, shelf: Mutex::new((Presence::Away, Shelf::new())), loading: RwLock::default() }
    }

    /// Whether the host is there, now and from now on.
    pub(super) fn presence(&self) -> watch::Receiver<Presence> {
        self.host.presence()
    }

    /// Loads `component`, whose digest is `digest`, unless it is loaded.
    ///
    /// # Errors
    /// Why it cannot be run here.
    pub(super) async fn load(&self, digest: &Digest, component: Bytes) -> Result<Loaded, LoadError> {
        let _loading = self.loading.read().await;
        let now = *self.host.presence().borrow();
        if let Some(shelved) = self.shelf(now).1.get_mut(digest) {
            shelved.idle = false;
            return Ok(shelved.loaded.clone());
        }
        // What is asked for twice meanwhile is compiled once: that is the host's to see to.
        let loaded = self.host.load(component).await?;
        // A host that came meanwhile has an empty shelf, and this pass is made again.
        let (of, shelf) = &mut *self.shelf(*self.host.presence().borrow());
        if *of == now {
            shelf.insert(digest.clone(), Shelved { loaded: loaded.clone(), idle: false });
        }
        Ok(loaded)
    }

    /// What the host that is there `now` holds: what another held went with it.
    fn shelf(&self, now: Presence) -> MutexGuard<'_, (Presence, Shelf)> {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        if shelf.0 != now {
            *shelf = (now, Shelf::new());
        }
        shelf
    }

    /// Unloads what was not `needed` at two calls in a row: one call may fall between a load and the moment its
    /// plugin is called ready.
    pub(super) async fn collect(&self, needed: impl Fn(&Digest) -> bool) {
        // Those who load come first; what is not needed is there the next time too.
        let Ok(_quiet) = self.loading.try_write() else { return };
        let unneeded = sweep(&mut self.shelf(*self.host.presence().borrow()).1, needed);
        for digest in unneeded {
            tracing::info!(%digest, "nobody uses this plugin any more: unloaded");
            self.host.unload(&digest).await;
        }
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Library")
    }
}

fn sweep(shelf: &mut Shelf, needed: impl Fn(&Digest) -> bool) -> Vec<Digest> {
    let mut unneeded = Vec::new();
    shelf.retain(|digest, shelved| {
        let was_idle = shelved.idle;
        shelved.idle = !needed(digest);
        let keep = !(was_idle && shelved.idle);
        if !keep {
            unneeded.push(digest.clone());
        }
        keep
    });
    unneeded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::trial::Description;

    fn shelf(texts: &[&str]) -> Shelf {
        let loaded = |digest: &Digest| Loaded {
            digest: digest.clone(),
            size: 1,
            contract: "sluice:gate@0.1.0".into(),
            imports: vec![],
            description: Description {
                name: "x".into(),
                version: "1".into(),
                summary: String::new(),
                settings_schema: serde_json::json!({}),
            },
        };
        texts
            .iter()
            .map(|text| Digest::from((*text).to_owned()))
            .map(|digest| (digest.clone(), Shelved { loaded: loaded(&digest), idle: false }))
            .collect()
    }

    #[test]
    fn a_component_goes_when_nobody_needed_it_twice_in_a_row() {
        let mut shelf = shelf(&["sha256:used", "sha256:replaced"]);
        let used = |digest: &Digest| digest.as_str() == "sha256:used";
        assert!(sweep(&mut shelf, used).is_empty());
        assert!(sweep(&mut shelf, |_| true).is_empty(), "needed again in between: the count starts anew");
        assert!(sweep(&mut shelf, used).is_empty());
        assert_eq!(sweep(&mut shelf, used), [Digest::from("sha256:replaced".to_owned())]);
        assert_eq!(shelf.len(), 1);
    }
}
