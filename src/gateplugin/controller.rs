//! Watches GatePlugins, and ConfigMaps without their data.

use std::{sync::Arc, time::Duration};

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
    Ceiling, Installed, Key, Library,
    reconcile::{Context, Error, KIND, Memory, reconcile},
    turns::Turns,
};
use crate::{
    api::GatePlugin,
    cluster::{
        Scope,
        backoff::{Backoff, jitter},
    },
    telemetry::{Expectation, Metrics},
};

/// What the controller of one scope is made of.
pub struct Setup {
    /// Speaks to the cluster.
    pub client: Client,
    /// Where plugins are looked for.
    pub scope: Scope,
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

/// Installs plugins until shutdown.
pub async fn run(setup: Setup) {
    let Setup { client, scope, library, installed, ceiling, metrics, ready, shutdown } = setup;

    let (plugins, writer) = reflector::store::<GatePlugin>();
    let (deleted, scope_of_deleted, installed_without) = (plugins.clone(), scope.clone(), installed.clone());
    let plugin_events = watcher(scope.api(&client), watcher::Config::default())
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
        library: library.clone(),
        installed: installed.clone(),
        ceiling,
        turns: Turns::default(),
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
    let returns = returns.inspect(move |()| reloading.reload(|key| elsewhere(&scope_of_reloaded, key)));

    let users = plugins.clone();
    let controller = Controller::for_stream(plugin_events, plugins.clone())
        .watches_stream(config_map_events, move |config_map| users_of(&users, &config_map))
        .reconcile_all_on(returns)
        // Without a bound: passes wait for their turn, and nobody should wait for those who wait.
        .with_config(Config::default().concurrency(0))
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(
            |plugin, context: Arc<Context>| async move {
                let metrics = context.metrics.clone();
                metrics.pass(KIND, reconcile(plugin, context)).await
            },
            error_policy,
            context.clone(),
        )
        .for_each(|_| std::future::ready(()));

    let housekeeping = async {
        // Neither store can lose its writer before the controller ends, and that ends this too.
        let _ = tokio::join!(plugins.wait_until_ready(), config_maps.wait_until_ready());
        installed.listed(plugins.state().iter().map(|plugin| Key::of(&**plugin)));
        ready.met();
        loop {
            tokio::time::sleep(HOUSEKEEPING).await;
            forget_deleted(&installed, &scope, &plugins);
            context.memory.retain(|key| exists(&plugins, key));
            library.collect(|digest| installed.uses(digest)).await;
        }
    };
    tokio::join!(controller, shutdown.run_until_cancelled(housekeeping));
}

/// Also the least time for which a component that nobody uses stays loaded.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

fn users_of(plugins: &Store<GatePlugin>, config_map: &PartialObjectMeta<ConfigMap>) -> Vec<ObjectRef<GatePlugin>> {
    let uses = |plugin: &GatePlugin| {
        plugin.metadata.namespace == config_map.metadata.namespace
            && config_map.metadata.name.as_ref() == Some(&plugin.spec.source.config_map.name)
    };
    plugins.state_filter(uses).iter().map(|plugin| plugin.to_object_ref(())).collect()
}

fn exists(plugins: &Store<GatePlugin>, key: &Key) -> bool {
    plugins.get(&ObjectRef::new(&key.name).within(&key.namespace)).is_some()
}

fn elsewhere(scope: &Scope, key: &Key) -> bool {
    scope.namespace().is_some_and(|namespace| namespace != key.namespace)
}

fn forget_deleted(installed: &Installed, scope: &Scope, plugins: &Store<GatePlugin>) {
    installed.retain(|key| elsewhere(scope, key), |key| exists(plugins, key));
}

fn error_policy(plugin: Arc<GatePlugin>, error: &Error, context: Arc<Context>) -> Action {
    let wait = context.backoff.failed(Key::of(&*plugin), jitter());
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(plugin = %Key::of(&*plugin), %error, cause, ?wait, "a plugin is tried again");
    Action::requeue(wait)
}
