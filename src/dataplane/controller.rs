//! Watches -> passes. Knows nothing of blue or green.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use futures::{StreamExt, channel::mpsc, future::BoxFuture};
use kube::{
    Client,
    runtime::{
        controller::{Action, Config, Controller},
        reflector::ObjectRef,
    },
};

use super::{
    apply::certificate::{self, Authority},
    observe::caches::{Caches, Concerns},
    reconcile::{Context, Error, reconcile},
    release,
};
use crate::{
    api::DataPlane,
    cluster::{backoff::Backoff, writer::Writes},
    gate::{GateHost, jobs::Jobs},
    model::observed::Plugin,
};

/// Passes at the same time. Each waits for the API nearly all of its time.
const CONCURRENCY: u16 = 16;

/// What the controller is given.
pub struct Setup {
    /// Client of the operator's service account.
    pub client: Client,
    /// Namespace of the operator.
    pub namespace: String,
    /// Name of the Secret with the cluster CA.
    pub ca_secret: String,
    /// Runs gates.
    pub gates: Arc<dyn GateHost>,
    /// The plugins of a namespace, as this process has them.
    pub plugins: Arc<dyn Fn(&str) -> BTreeMap<String, Plugin> + Send + Sync>,
    /// This process, in Events and evidence.
    pub host: String,
    /// Whether images need a version that is known to work.
    pub validate_images: bool,
}

/// A running controller.
pub struct Running {
    /// Asks for a pass over all DataPlanes of a namespace: plugins have changed.
    pub touch: Arc<dyn Fn(String) + Send + Sync>,
    /// Ends after a graceful shutdown.
    pub done: BoxFuture<'static, ()>,
}

/// Why the controller could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No cluster CA.
    #[error(transparent)]
    Authority(#[from] certificate::Error),
    /// A watch ended before it had seen everything.
    #[error("a watch ended before it had seen everything")]
    Caches(#[from] kube::runtime::reflector::store::WriterDropped),
}

/// Starts watching, waits until every cache is complete, and returns the loop that reconciles until `shutdown`.
///
/// # Errors
/// Where there is no cluster CA or the caches cannot be filled.
pub async fn start(
    setup: Setup,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) -> Result<Running, StartError> {
    let Setup { client, namespace, ca_secret, gates, plugins, host, validate_images } = setup;
    let authority = Authority::load(client.clone(), &namespace, &ca_secret).await?;
    let (passes, triggers) = mpsc::unbounded();
    let (deletions, releases) = mpsc::unbounded();
    let caches = Caches::start(&client, {
        let passes = passes.clone();
        move |concerns| {
            // Both ends live as long as the process; a closed channel means that it is going down.
            if let Concerns::One(dataplane) = &concerns {
                let _ = deletions.unbounded_send(dataplane.clone());
            }
            let _ = passes.unbounded_send(concerns);
        }
    });
    caches.ready().await?;

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
        gates,
        plugins,
        host,
        validate_images,
    });

    tokio::spawn(release::run(Arc::clone(&context), releases));
    let dataplanes = context.caches.dataplanes.clone();
    let all = dataplanes.clone();
    let triggers = triggers.flat_map(move |concerns| {
        futures::stream::iter(match concerns {
            Concerns::One(dataplane) => vec![dataplane],
            Concerns::Namespace(namespace) => all
                .state()
                .iter()
                .map(|dataplane| ObjectRef::from_obj(dataplane.as_ref()))
                .filter(|dataplane| dataplane.namespace.as_deref() == Some(&namespace))
                .collect(),
        })
    });
    // Everything that asks for a pass comes through `triggers`; the caches are ours, shared and complete.
    let done = Controller::for_stream(futures::stream::pending(), dataplanes)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(triggers)
        .graceful_shutdown_on(shutdown)
        .run(reconcile, retry, context)
        .for_each(|_| std::future::ready(()));
    let touch = Arc::new(move |namespace| {
        let _ = passes.unbounded_send(Concerns::Namespace(namespace));
    });
    Ok(Running { touch, done: Box::pin(done) })
}

/// A conflict means that somebody wrote in between: decide afresh at once. Everything else waits, longer each time.
fn retry(dataplane: Arc<DataPlane>, error: &Error, ctx: Arc<Context>) -> Action {
    let object = ObjectRef::from_obj(dataplane.as_ref());
    let (Error::Converge(cause) | Error::Publish(cause)) = error;
    // The sub-second part of the clock is jitter enough.
    let jitter = f64::from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs()) / 1e9;
    let wait = ctx.backoff.failed(object.clone(), jitter);
    if cause.is_conflict() {
        tracing::debug!(dataplane = %object, "somebody wrote in between");
        return Action::requeue(std::time::Duration::from_millis(50).min(wait));
    }
    let chain = anyhow::Error::msg(cause.to_string()).context(error.to_string());
    let source = std::error::Error::source(cause).map(ToString::to_string).unwrap_or_default();
    tracing::error!(dataplane = %object, error = format!("{chain:#}: {source}"), retry_in = ?wait, "a pass failed");
    Action::requeue(wait)
}
