//! One pass over a `GatePlugin`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        controller::Action,
        reflector::{ObjectRef, Store},
    },
};
use tokio::task::{JoinError, spawn_blocking};

use super::{
    Ceiling, Installed, Key, Library, SourceError, limits, source,
    status::{self, Outcome},
    turns::Turns,
};
use crate::{
    api::GatePlugin,
    cluster::{self, backoff::Backoff},
    gate::Presence,
    model::{
        observed::Plugin,
        trial::{Digest, LoadError},
    },
    telemetry::Metrics,
};

/// The kind, in logs and metrics.
pub(super) const KIND: &str = "GatePlugin";

/// What every pass needs.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) library: Arc<Library>,
    pub(super) installed: Installed,
    pub(super) ceiling: Ceiling,
    pub(super) turns: Turns,
    /// Names and versions only: a hundred components would fill the memory that trials are to have.
    pub(super) config_maps: Store<PartialObjectMeta<ConfigMap>>,
    pub(super) memory: Memory,
    pub(super) backoff: Backoff<Key>,
    pub(super) metrics: Metrics,
}

/// Why a pass has to be made again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("failed to get ConfigMap {name}")]
    Fetch { name: String, source: kube::Error },
    #[error("failed to unpack the component")]
    Unpack(#[source] JoinError),
    #[error("failed to load the component")]
    Load(#[source] LoadError),
    #[error("failed to write the status")]
    Publish(#[source] kube::Error),
}

/// fetch -> unpack -> load -> status.
pub(super) async fn reconcile(plugin: Arc<GatePlugin>, ctx: Arc<Context>) -> Result<Action, Error> {
    let key = Key::of(&*plugin);
    let host = *ctx.library.presence().borrow();
    if host == Presence::Away {
        return Ok(Action::await_change()); // its return is told
    }
    let asked = Asked::of(&plugin, &ctx.config_maps, host);
    let outcome = match limits::limits(&plugin.spec.limits.clone().unwrap_or_default(), &ctx.ceiling) {
        Err(error) => Outcome::NotAllowed(error),
        Ok(limits) => {
            ctx.installed.limit(key.clone(), limits);
            match ctx.memory.recall(&key, &asked) {
                Some(outcome) => outcome,
                None => install(&key, &plugin, host, &ctx).await?,
            }
        }
    };
    // Others may run the plugin from here on, whether or not its status can be written.
    ctx.installed.set(key.clone(), outcome.state());

    let status = status::report(&plugin, &outcome, Timestamp::now());
    if cluster::status::publish(&ctx.client, &*plugin, plugin.status.as_ref(), &status).await.map_err(Error::Publish)? {
        ctx.metrics.wrote(KIND);
    }
    ctx.backoff.succeeded(&key);
    Ok(Action::await_change())
}

async fn install(key: &Key, plugin: &GatePlugin, host: Presence, ctx: &Context) -> Result<Outcome, Error> {
    let _turn = ctx.turns.take(&key.namespace).await;
    let source = plugin.spec.source.config_map.clone();
    let api: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), &key.namespace);
    let fetched = api.get_opt(&source.name).await.map_err(|error| {
        // Those who wait for the plugin learn what it waits for; one that is loaded stays so.
        if !matches!(ctx.installed.get(key), Some(Plugin::Ready(_))) {
            let message = format!("ConfigMap {:?} cannot be read: {error}", source.name);
            ctx.installed.set(key.clone(), Plugin::Failed { reason: "ConfigMapUnavailable".into(), message });
        }
        Error::Fetch { name: source.name.clone(), source: error }
    })?;
    let config_map = fetched.as_ref().and_then(ResourceExt::resource_version);
    let asked = Asked { plugin: version_of(plugin), config_map, host };

    let outcome = match fetched {
        None => Outcome::NotFetched(SourceError::ConfigMapNotFound(source.name)),
        Some(config_map) => {
            // Megabytes of gzip and SHA-256 are no work for a thread that serves others.
            let unpacked = spawn_blocking(move || {
                source::read(&config_map, &source, source::LARGEST).map(|component| (Digest::of(&component), component))
            });
            match unpacked.await.map_err(Error::Unpack)? {
                Err(error) => Outcome::NotFetched(error),
                Ok((digest, component)) => {
                    if ctx.installed.get(key) != Some(Plugin::Ready(digest.clone())) {
                        ctx.installed.set(key.clone(), Plugin::Loading);
                    }
                    let size = component.len();
                    match ctx.library.load(&digest, component).await {
                        Ok(loaded) => Outcome::Loaded(loaded),
                        Err(error @ LoadError::Unavailable(_)) => return Err(Error::Load(error)),
                        Err(error) => Outcome::NotLoaded { digest, size, error },
                    }
                }
            }
        }
    };
    ctx.memory.keep(key.clone(), asked, outcome.clone());
    Ok(outcome)
}

/// What came of the last pass over each plugin, so that only news is fetched.
#[derive(Default)]
pub(super) struct Memory(Mutex<HashMap<Key, (Asked, Outcome)>>);

impl Memory {
    fn recall(&self, key: &Key, asked: &Asked) -> Option<Outcome> {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.get(key).filter(|(answered, _)| answered == asked).map(|(_, outcome)| outcome.clone())
    }

    fn keep(&self, key: Key, asked: Asked, outcome: Outcome) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (asked, outcome));
    }

    /// Forgets what `exists` does not know.
    pub(super) fn retain(&self, exists: impl Fn(&Key) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| exists(key));
    }
}

/// What an outcome depends on: the plugin's UID and generation, the ConfigMap's version, and who loads it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    plugin: (Option<String>, Option<i64>),
    config_map: Option<String>,
    host: Presence,
}

impl Asked {
    fn of(plugin: &GatePlugin, config_maps: &Store<PartialObjectMeta<ConfigMap>>, host: Presence) -> Self {
        let name = ObjectRef::new(&plugin.spec.source.config_map.name).within(&plugin.namespace().unwrap_or_default());
        let config_map = config_maps.get(&name).and_then(|config_map| config_map.resource_version());
        Self { plugin: version_of(plugin), config_map, host }
    }
}

fn version_of(plugin: &GatePlugin) -> (Option<String>, Option<i64>) {
    (plugin.uid(), plugin.metadata.generation)
}
