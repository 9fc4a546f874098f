//! Watches plugins of one kind, and ConfigMaps without their data.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Client,
    core::PartialObjectMeta,
    runtime::{
        Config, Controller, WatchStreamExt,
        controller::Action,
        reflector::{self, Lookup, ObjectRef, Store},
        watcher,
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    Ceiling, Fetcher, Installed, Library, PluginObject,
    reconcile::{Context, Error, Memory, reconcile},
};
use crate::{
    api::gateplugin::ClusterSource,
    cluster::{
        Scope,
        backoff::{Backoff, jitter},
    },
    gate::turns::Turns,
    model::PluginKey,
    telemetry::{Expectation, Metrics},
};

/// What the controller of one scope is made of.
pub struct Setup {
    /// Speaks to the cluster.
    pub client: Client,
    /// Where plugins are looked for, or for those of the cluster the objects that they name.
    pub scope: Scope,
    /// Gets components, shared by all scopes.
    pub fetcher: Arc<Fetcher>,
    /// What the gate host holds, shared by all scopes.
    pub library: Arc<Library>,
    /// What others are told, shared by all scopes.
    pub installed: Installed,
    /// The most that a plugin may be given.
    pub ceiling: Ceiling,
    /// Counts passes and writes.
    pub metrics: Metrics,
    /// Met when the caches are full.
    pub ready: Expectation,
    /// Ends the controller.
    pub shutdown: CancellationToken,
}

/// Installs the plugins of a kind until shutdown.
pub async fn run<K: PluginObject>(setup: Setup) {
    let Setup { client, scope, fetcher, library, installed, ceiling, metrics, ready, shutdown } = setup;

    let (plugins, writer) = reflector::store::<K>();
    let (deleted, scope_of_deleted, installed_without) = (plugins.clone(), scope.clone(), installed.clone());
    let plugin_events = watcher(K::of_scope(&client, &scope), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .touched_objects()
        // A deleted plugin is nobody's pass: it is only taken off the list.
        .inspect_ok(move |plugin| {
            if deleted.get(&plugin.to_object_ref(())).is_none() {
                forget_deleted(&installed_without, &scope_of_deleted, &deleted);
            }
        });

    let (config_maps, writer) = reflector::store::<PartialObjectMeta<ConfigMap>>();
    let config_map_events = watcher(scope.api::<PartialObjectMeta<ConfigMap>>(&client), watcher::Config::default())
        .default_backoff()
        // kubectl keeps a copy of the data in an annotation, and every writer leaves its list of fields.
        .modify(|config_map| {
            config_map.metadata.annotations = None;
            config_map.metadata.managed_fields = None;
        })
        .reflect(writer)
        .touched_objects();

    let context = Arc::new(Context {
        client,
        scope: scope.clone(),
        fetcher,
        library: library.clone(),
        installed: installed.clone(),
        ceiling,
        turns: Turns::new(PLACES),
        config_maps: config_maps.clone(),
        memory: Memory::default(),
        backoff: Backoff::default(),
        metrics,
    });

    // A host that comes back has nothing; until everything is loaded again, everything is loading.
    let (reloading, scope_of_reloaded) = (installed.clone(), scope.clone());
    let returns = stream::unfold(library.presence(), async |mut presence| {
        presence.changed().await.ok()?;
        Some(((), presence))
    });
    let returns = returns.inspect(move |()| reloading.reload(|key| !K::is_of(&scope_of_reloaded, key)));

    let (users, home) = (plugins.clone(), scope.clone());
    let controller = Controller::for_stream(plugin_events, plugins.clone())
        .watches_stream(config_map_events, move |config_map| users_of(&users, &home, &config_map))
        .reconcile_all_on(returns)
        // Most of them wait for a registry; how much they may hold in memory meanwhile is the fetcher's to say.
        .with_config(Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(
            |plugin, context: Arc<Context>| async move {
                let metrics = context.metrics.clone();
                metrics.pass(K::KIND, reconcile(plugin, context)).await
            },
            error_policy,
            context.clone(),
        )
        .for_each(|_| std::future::ready(()));

    let housekeeping = async {
        // Neither store can lose its writer before the controller ends, and that ends this too.
        let _ = tokio::join!(plugins.wait_until_ready(), config_maps.wait_until_ready());
        installed.listed(plugins.state().iter().map(|plugin| plugin.key()));
        ready.met();
        loop {
            tokio::time::sleep(HOUSEKEEPING).await;
            forget_deleted(&installed, &scope, &plugins);
            context.memory.retain(|key| exists(&plugins, key));
            library.release(|digest| installed.uses(digest)).await;
        }
    };
    tokio::join!(controller, shutdown.run_until_cancelled(housekeeping));
}

/// Also the longest time for which a component stays loaded that nobody uses because an upgrade or a plugin went.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// Plugins that are loaded at once. They compile one at a time anyhow.
const PLACES: NonZeroU32 = NonZeroU32::new(2).expect("not zero");

/// Passes at the same time: more than there will be registries that hang.
const CONCURRENCY: u16 = 16;

fn users_of<K: PluginObject>(
    plugins: &Store<K>,
    scope: &Scope,
    config_map: &PartialObjectMeta<ConfigMap>,
) -> Vec<ObjectRef<K>> {
    let uses = |plugin: &K| match plugin.source() {
        ClusterSource::ConfigMap(source) => {
            config_map.metadata.namespace == Some(plugin.home(scope)) && config_map.metadata.name == Some(source.name)
        }
        ClusterSource::Oci(_) | ClusterSource::Http(_) | ClusterSource::File(_) => false,
    };
    plugins.state_filter(uses).iter().map(|plugin| plugin.to_object_ref(())).collect()
}

fn exists<K: PluginObject>(plugins: &Store<K>, key: &PluginKey) -> bool {
    plugins.get(&K::reference(key)).is_some()
}

fn forget_deleted<K: PluginObject>(installed: &Installed, scope: &Scope, plugins: &Store<K>) {
    installed.retain(|key| !K::is_of(scope, key), |key| exists(plugins, key));
}

fn error_policy<K: PluginObject>(plugin: Arc<K>, error: &Error, context: Arc<Context>) -> Action {
    let key = plugin.key();
    let wait = context.backoff.failed(key.clone(), jitter());
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(kind = K::KIND, plugin = %key, %error, cause, ?wait, "a plugin is tried again");
    Action::requeue(wait)
}
