//! One pass over one DataPlane, from top to bottom.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    Client, ResourceExt,
    runtime::{controller::Action, reflector::ObjectRef},
};

use super::{
    apply::{self, certificate::Authority, publish},
    build, check, jobs, observe, plan, status,
};
use crate::{
    api::DataPlane,
    cluster::{backoff::Backoff, writer::Writes},
    gate::{GateHost, jobs::Jobs},
    model::{
        Observed,
        observed::{Connection, ConnectionKey, Plugin, TrialKey},
        trial::Report,
    },
};

/// What a pass works with.
pub struct Context {
    /// Client of the operator's service account.
    pub client: Client,
    /// All that is read.
    pub caches: observe::caches::Caches,
    /// Memory of what was written.
    pub writes: Writes,
    /// Issues certificates.
    pub authority: Authority,
    /// Runs gates.
    pub gates: Arc<dyn GateHost>,
    /// The plugins of a namespace, as this process has them.
    pub plugins: Arc<dyn Fn(&str) -> BTreeMap<String, Plugin> + Send + Sync>,
    /// Trials under way.
    pub trials: Jobs<TrialKey, Report>,
    /// Preview Services being asked for a connection.
    pub connections: Jobs<ConnectionKey, Connection>,
    /// This process, in evidence.
    pub host: String,
    /// Whether images need a version that is known to work.
    pub validate_images: bool,
    /// How long to wait after errors.
    pub backoff: Backoff<ObjectRef<DataPlane>>,
}

/// Why a pass ended early, one variant for each stage that can fail.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Could not make the cluster what was planned.
    #[error("could not converge")]
    Converge(#[source] apply::Error),
    /// Could not publish what was decided.
    #[error("could not publish")]
    Publish(#[source] apply::Error),
}

/// One pass.
///
/// # Errors
/// The stage that failed; everything written before it stands and the next pass goes on from there.
pub async fn reconcile(dataplane: Arc<DataPlane>, ctx: Arc<Context>) -> Result<Action, Error> {
    let uid = dataplane.uid().unwrap_or_default();
    let namespace = dataplane.namespace().unwrap_or_default();
    if dataplane.metadata.deletion_timestamp.is_some() {
        jobs::cancel(&ctx, &dataplane);
        return Ok(Action::await_change());
    }
    if !ctx.writes.seen(&uid, |object| ctx.caches.version(&namespace, object)) {
        // The watch wakes us; this is for the watch that broke.
        return Ok(Action::requeue(Duration::from_secs(2)));
    }
    let now = Timestamp::now();
    let policies = ctx.caches.policies.state_filter(|policy| policy.namespace().as_deref() == Some(&namespace));
    let policies: Vec<_> = policies.iter().map(AsRef::as_ref).collect();

    let intent = check::read(&dataplane, &policies, ctx.validate_images); // pure
    let observed = Observed {
        // caches and this process only
        plugins: (ctx.plugins)(&namespace),
        trials: ctx.trials.said(&jobs::owner(&dataplane)),
        connections: jobs::connections(&ctx, &dataplane),
        host: ctx.host.clone(),
        ..observe::look(&ctx.caches, &dataplane)
    };
    let plan = plan::decide(&intent, &observed, now); // pure, cannot fail
    let planned = build::render(&intent, &observed, &plan); // pure
    let status = status::report(&intent, &observed, &plan, now); // pure
    tracing::debug!(dataplane = %dataplane.name_any(), phase = ?plan.phase, reason = plan.reason.as_str(), "pass");

    let writer =
        apply::Writer { client: ctx.client.clone(), writes: &ctx.writes, authority: &ctx.authority, intent: &intent };
    apply::converge(&writer, &observed, &planned).await.map_err(Error::Converge)?; // writes
    jobs::advance(&ctx, &dataplane, &plan); // starts and cancels, never waits
    publish::publish(&writer, &observed, &plan, &status).await.map_err(Error::Publish)?; // writes
    publish::tell(&ctx.client, &ctx.host, &dataplane, &status::notes(&intent, &observed, &plan, &status)).await; // writes

    ctx.backoff.succeeded(&ObjectRef::from_obj(dataplane.as_ref()));
    Ok(plan.again.map_or_else(Action::await_change, |at| {
        let wait = at.duration_since(now);
        Action::requeue(Duration::try_from(wait).unwrap_or_default())
    }))
}
