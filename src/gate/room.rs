//! What trials are run in: an engine with its pool, what guests are linked with, and the plugins that are linked.
//!
//! A plugin is linked in one room and cannot leave it. But what is known of it is no part of the engine: a fresh room takes
//! that over, with code from the cache.

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use serde_json::Value;
use tokio::task::spawn_blocking;
use wasmtime::component::Component;

use super::{
    bindings::{Prepared, TRACKS},
    compile::Compiler,
    engine::{Sandbox, StartError},
    offer::Offer,
    plugin::{self, Fitted},
    schema::Schema,
};
use crate::model::trial::{Digest, LoadError, Loaded};

/// A room.
pub(super) struct Room {
    pub(super) sandbox: Sandbox,
    offer: Offer,
    plugins: RwLock<HashMap<Digest, Arc<Plugin>>>,
}

/// A plugin that can be run.
pub(super) struct Plugin {
    pub(super) prepared: Box<dyn Prepared>,
    pub(super) known: Arc<Known>,
}

/// What is known of a plugin.
pub(super) struct Known {
    pub(super) schema: Schema,
    /// Settings that fit the schema: those of its last trials, most likely those of its next.
    pub(super) fitting: Mutex<VecDeque<Value>>,
    pub(super) loaded: Loaded,
}

impl Known {
    pub(super) fn fitting(&self) -> MutexGuard<'_, VecDeque<Value>> {
        self.fitting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a room cannot be had again.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgainError {
    /// The machine.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A plugin.
    #[error("{0}: {1}")]
    Plugin(Digest, LoadError),
    /// Nobody has kept what was compiled.
    #[error("the compiled code of {0} is not kept")]
    NotKept(Digest),
}

impl Room {
    /// An empty one.
    ///
    /// # Errors
    /// Where the contract cannot be linked.
    pub(super) fn new(sandbox: Sandbox, http: bool) -> Result<Self, StartError> {
        let offer = Offer::new(sandbox.engine(), TRACKS, http);
        let offer = offer.map_err(|error| StartError::Engine(format!("{error:#}")))?;
        Ok(Self { sandbox, offer, plugins: RwLock::default() })
    }

    /// A fresh one with the same plugins, of code that is kept: nothing is compiled for it.
    ///
    /// # Errors
    /// What is missing.
    pub(super) async fn again(
        &self,
        compiler: &Compiler,
        trials: NonZeroU32,
        http: bool,
    ) -> Result<Arc<Self>, AgainError> {
        let fresh = Arc::new(Self::new(Sandbox::pooled(trials.get(), compiler.of_engine())?, http)?);
        let plugins = self.plugins.read().unwrap_or_else(PoisonError::into_inner).clone();
        for (digest, plugin) in plugins {
            let failed = |error| AgainError::Plugin(digest.clone(), error);
            let component = compiler.kept(fresh.sandbox.engine(), &digest).await.map_err(failed)?;
            let component = component.ok_or_else(|| AgainError::NotKept(digest.clone()))?;
            let Fitted { prepared, .. } = fresh.fit(component).await.map_err(failed)?;
            fresh.insert(digest, Plugin { prepared, known: Arc::clone(&plugin.known) });
        }
        Ok(fresh)
    }

    /// Links a component, away from the threads that run guests.
    ///
    /// # Errors
    /// Why it is no plugin for this host.
    pub(super) async fn fit(self: &Arc<Self>, component: Component) -> Result<Fitted, LoadError> {
        let room = Arc::clone(self);
        let linked = spawn_blocking(move || plugin::fit(room.sandbox.engine(), &room.offer, &component)).await;
        linked.unwrap_or_else(|error| Err(LoadError::NotAComponent(format!("the linker failed: {error}"))))
    }

    pub(super) fn plugin(&self, digest: &Digest) -> Option<Arc<Plugin>> {
        self.plugins.read().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    pub(super) fn insert(&self, digest: Digest, plugin: Plugin) {
        self.plugins.write().unwrap_or_else(PoisonError::into_inner).insert(digest, Arc::new(plugin));
    }

    pub(super) fn remove(&self, digest: &Digest) {
        self.plugins.write().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }
}
