//! Watches -> passes. Knows nothing of blue or green.

use std::sync::Arc;

use futures::{StreamExt, channel::mpsc};
use jiff::Timestamp;
use kube::{
    Client,
    runtime::{
        controller::{Action, Config, Controller},
        reflector::{ObjectRef, store::WriterDropped},
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    apply::{certificate::Authority, publish},
    observe::caches::{Caches, Concerns},
    reconcile::{Context, Error, reconcile},
    release,
};
use crate::{
    api::DataPlane,
    cluster::{
        Scope,
        backoff::{Backoff, jitter},
        foreign::Foreign,
        writer::Writes,
    },
    gate::{GateHost, jobs::Jobs},
    gateplugin::Installed,
    model::grants::Ceilings,
    telemetry::{Expectation, Metrics},
};

/// Passes at the same time. Each waits for the API nearly all of its time.
const CONCURRENCY: u16 = 16;

/// What the controller of one scope is made of.
pub struct Setup {
    /// Speaks to the cluster.
    pub client: Client,
    /// Where DataPlanes are looked for.
    pub scope: Scope,
    /// Signs certificates, shared by all scopes.
    pub authority: Arc<Authority>,
    /// Whether Kong's own operator is at work, shared by all scopes.
    pub foreign: Foreign,
    /// Runs gates, shared by all scopes.
    pub host: Arc<dyn GateHost>,
    /// What the gate host can run, shared by all scopes.
    pub installed: Installed,
    /// This process, in Events and evidence.
    pub identity: String,
    /// Whether images need a version that is known to work.
    pub validate_images: bool,
    /// What policies may grant.
    pub ceilings: Ceilings,
    /// Counts passes.
    pub metrics: Metrics,
    /// Met when the caches are full.
    pub ready: Expectation,
    /// Ends the controller.
    pub shutdown: CancellationToken,
}

/// Runs DataPlanes until shutdown.
///
/// # Errors
/// Where a watch ends before it has seen everything.
pub async fn run(setup: Setup) -> Result<(), WriterDropped> {
    let Setup {
        client,
        scope,
        authority,
        foreign,
        host,
        installed,
        identity,
        validate_images,
        ceilings,
        metrics,
        ready,
        shutdown,
    } = setup;
    let (passes, triggers) = mpsc::unbounded();
    let (deletions, releases) = mpsc::unbounded();
    let caches = Caches::start(&client, &scope, {
        let passes = passes.clone();
        move |concerns| {
            // Both ends live as long as the controller; a closed channel means that it is going down.
            if let Concerns::One(dataplane) = &concerns {
                let _ = deletions.unbounded_send(dataplane.clone());
            }
            let _ = passes.unbounded_send(concerns);
        }
    });
    // Before that, what is missing is not known to be missing.
    match shutdown.run_until_cancelled(async { tokio::try_join!(caches.ready(), foreign.ready()) }).await {
        Some(filled) => filled.map(drop)?,
        None => return Ok(()),
    }
    ready.met();

    let wake = {
        let passes = passes.clone();
        move |owner: &str| {
            if let Some((namespace, name)) = owner.split_once('/') {
                let _ = passes.unbounded_send(Concerns::One(ObjectRef::new(name).within(namespace)));
            }
        }
    };
    let context = Arc::new(Context {
        writes: Writes::default(),
        trials: Jobs::new(wake.clone()),
        connections: Jobs::new(wake),
        backoff: Backoff::default(),
        client,
        caches,
        authority,
        foreign,
        yielded: publish::Yielded::default(),
        host,
        installed: installed.clone(),
        identity,
        validate_images,
        ceilings,
        metrics,
        clock: Box::new(Timestamp::now),
    });

    let dataplanes = context.caches.dataplanes.clone();
    let (all, each) = (dataplanes.clone(), dataplanes.clone());
    let triggers = triggers.flat_map(move |concerns| {
        futures::stream::iter(match concerns {
            Concerns::One(dataplane) => vec![dataplane],
            Concerns::Namespace(namespace) => all
                .state()
                .iter()
                .map(|dataplane| ObjectRef::from_obj(dataplane.as_ref()))
                .filter(|dataplane| dataplane.namespace.as_deref() == Some(&namespace))
                .collect(),
            Concerns::Everyone => all.state().iter().map(|dataplane| ObjectRef::from_obj(dataplane.as_ref())).collect(),
        })
    });
    // What plugins there are concerns every upgrade that waits for one.
    let plugins = installed.changes().flat_map(move |changed| {
        // One of the cluster concerns every namespace.
        let concerned = each.state_filter(|dataplane| {
            changed.iter().any(|key| key.namespace.is_none() || key.namespace == dataplane.metadata.namespace)
        });
        futures::stream::iter(concerned).map(|dataplane| ObjectRef::from_obj(dataplane.as_ref()))
    });
    // Everything that asks for a pass comes through these two; the caches are ours, shared and full.
    let controller = Controller::for_stream(futures::stream::pending(), dataplanes)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(triggers)
        .reconcile_on(plugins)
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(
            |dataplane, context: Arc<Context>| async move {
                let metrics = context.metrics.clone();
                metrics.pass("DataPlane", reconcile(dataplane, context)).await
            },
            retry,
            Arc::clone(&context),
        )
        .for_each(|_| std::future::ready(()));
    tokio::join!(controller, shutdown.run_until_cancelled(release::run(context, releases)));
    Ok(())
}

/// A conflict means that somebody wrote in between: decide afresh, soon. Everything else waits. Both longer each time, for
/// an object that is not ours may hold the name of one that should be.
fn retry(dataplane: Arc<DataPlane>, error: &Error, ctx: Arc<Context>) -> Action {
    let object = ObjectRef::from_obj(dataplane.as_ref());
    let wait = ctx.backoff.failed(object.clone(), jitter());
    if error.is_conflict() {
        tracing::debug!(dataplane = %object, "somebody wrote in between");
        return Action::requeue(wait / 10);
    }
    tracing::error!(dataplane = %object, %error, because = error.sentence(), retry_in = ?wait, "a pass failed");
    Action::requeue(wait)
}
