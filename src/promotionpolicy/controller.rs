//! Watches policies of one kind, and what is installed.

use std::sync::Arc;

use futures::StreamExt;
use kube::{
    Client,
    runtime::{Config, Controller, WatchStreamExt, controller::Action, reflector, watcher},
};
use tokio_util::sync::CancellationToken;

use super::{
    PolicyObject,
    reconcile::{Context, Error, name_of, reconcile},
};
use crate::{
    cluster::{
        Scope,
        backoff::{Backoff, jitter},
    },
    gate::GateHost,
    gateplugin::Installed,
    model::grants::Ceilings,
    telemetry::{Expectation, Metrics},
};

/// What the controller of one scope is made of.
pub struct Setup {
    /// Speaks to the cluster.
    pub client: Client,
    /// Where policies are looked for.
    pub scope: Scope,
    /// Judges settings.
    pub host: Arc<dyn GateHost>,
    /// Which plugins can be asked.
    pub installed: Installed,
    /// What policies may grant.
    pub ceilings: Ceilings,
    /// Counts passes and writes.
    pub metrics: Metrics,
    /// Met when the cache is full.
    pub ready: Expectation,
    /// Ends the controller.
    pub shutdown: CancellationToken,
}

/// Says of every policy of a kind whether it is accepted, until shutdown.
pub async fn run<K: PolicyObject>(setup: Setup) {
    let Setup { client, scope, host, installed, ceilings, metrics, ready, shutdown } = setup;

    let (policies, writer) = reflector::store::<K>();
    let policy_events = watcher(K::of_scope(&client, &scope), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects();

    let controller = Controller::for_stream(policy_events, policies.clone())
        .reconcile_all_on(installed.changes().map(|_| ()))
        // Every pass may run guests; a thousand policies that wake at once must not crowd out trials.
        .with_config(Config::default().concurrency(2))
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(
            |policy, context: Arc<Context>| async move {
                let metrics = context.metrics.clone();
                metrics.pass(K::KIND, reconcile(policy, context)).await
            },
            error_policy,
            Arc::new(Context { client, host, installed, ceilings, backoff: Backoff::default(), metrics }),
        )
        .for_each(|_| std::future::ready(()));

    let readiness = async {
        // The store cannot lose its writer before the controller ends, and that ends this too.
        let _ = policies.wait_until_ready().await;
        ready.met();
    };
    tokio::join!(controller, shutdown.run_until_cancelled(readiness));
}

fn error_policy<K: PolicyObject>(policy: Arc<K>, error: &Error, context: Arc<Context>) -> Action {
    let (namespace, name) = name_of(&*policy);
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(kind = K::KIND, policy = format!("{namespace}/{name}"), %error, cause, "a policy is tried again");
    Action::requeue(context.backoff.failed((namespace, name), jitter()))
}
