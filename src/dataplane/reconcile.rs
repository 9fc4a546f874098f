//! One pass over one DataPlane, from top to bottom.

use std::{sync::Arc, time::Duration};

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
    cluster::{backoff::Backoff, foreign::Foreign, writer::Writes},
    gate::{GateHost, jobs::Jobs},
    gateplugin::Installed,
    model::{
        Observed,
        grants::Ceilings,
        observed::{Connection, ConnectionKey, TrialKey},
        trial::Report,
    },
    telemetry::Metrics,
};

/// Before a pass that found its caches behind the API looks again.
const SOON: Duration = Duration::from_millis(100);

/// Between two passes if nothing happens. A pass that finds nothing to do asks nothing of the API.
const RESYNC: Duration = Duration::from_secs(300);

/// What a pass works with.
pub struct Context {
    /// Client of the operator's service account.
    pub client: Client,
    /// All that is read.
    pub caches: observe::caches::Caches,
    /// Memory of what was written.
    pub writes: Writes,
    /// Issues certificates.
    pub authority: Arc<Authority>,
    /// Whether Kong's own operator is at work.
    pub foreign: Foreign,
    /// Runs gates.
    pub host: Arc<dyn GateHost>,
    /// What the gate host can run.
    pub installed: Installed,
    /// Trials under way.
    pub trials: Jobs<TrialKey, Report>,
    /// Candidates being asked for a connection.
    pub connections: Jobs<ConnectionKey, Connection>,
    /// This process, in Events and evidence.
    pub identity: String,
    /// Whether images need a version that is known to work.
    pub validate_images: bool,
    /// What policies may grant.
    pub ceilings: Ceilings,
    /// DataPlanes that were told whom they are left to.
    pub yielded: publish::Yielded,
    /// How long to wait after errors.
    pub backoff: Backoff<ObjectRef<DataPlane>>,
    /// Counts passes.
    pub metrics: Metrics,
    /// What time it is.
    pub clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
}

/// Why a pass ended early, one variant for each stage that can fail.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Could not confirm that nothing changed since this pass looked.
    #[error("could not confirm what a switch is decided on")]
    Confirm(#[source] kube::Error),
    /// Could not make the cluster what was planned.
    #[error("could not converge")]
    Converge(#[source] apply::Error),
    /// Could not publish what was decided.
    #[error("could not publish")]
    Publish(#[source] apply::Error),
}

impl Error {
    /// Somebody else wrote in between: not a failure, the next pass decides afresh.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Confirm(_) => false,
            Self::Converge(cause) | Self::Publish(cause) => cause.is_conflict(),
        }
    }

    /// The cause, in one sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::Confirm(cause) => cause.to_string(),
            Self::Converge(cause) | Self::Publish(cause) => cause.sentence(),
        }
    }
}

/// One pass.
///
/// # Errors
/// The stage that failed; everything written before it stands and the next pass goes on from there.
pub async fn reconcile(dataplane: Arc<DataPlane>, ctx: Arc<Context>) -> Result<Action, Error> {
    let uid = dataplane.uid().unwrap_or_default();
    let namespace = dataplane.namespace().unwrap_or_default();
    if dataplane.metadata.deletion_timestamp.is_some() {
        jobs::cancel(&ctx, &ObjectRef::from_obj(dataplane.as_ref()));
        ctx.writes.forget(&uid);
        return Ok(Action::await_change());
    }
    if !ctx.writes.seen(&uid, |object| ctx.caches.version(&namespace, object)) {
        // The watch wakes us; this is for the watch that broke.
        return Ok(Action::requeue(Duration::from_secs(2)));
    }
    let now = (ctx.clock)();
    if let Some((holder, until)) = ctx.foreign.at_work(now) {
        publish::yields(&ctx.client, &ctx.identity, &dataplane, &holder, &ctx.yielded).await;
        return Ok(Action::requeue(Duration::try_from(until.duration_since(now)).unwrap_or_default() + SOON));
    }
    let policies = observe::policies(&ctx.caches, &namespace);

    let intent = check::read(&dataplane, &policies, ctx.validate_images, &ctx.ceilings); // pure
    let observed = observe::look(&ctx.caches, &dataplane); // caches only
    let (plugins, _held) = jobs::plugins(&ctx, &intent, &observed); // what can be run now can be run when this pass says so
    let observed = Observed {
        // and this process
        plugins,
        trials: ctx.trials.said(&jobs::owner(&ObjectRef::from_obj(dataplane.as_ref()))),
        connections: jobs::connections(&ctx, &dataplane),
        host: ctx.identity.clone(),
        authority_expires: Some(ctx.authority.expires()),
        ..observed
    };
    let observed = plan::adopt::complete(&intent, observed); // pure
    let plan = plan::decide(&intent, &observed, now); // pure, cannot fail
    let planned = build::render(&intent, &observed, &plan); // pure
    jobs::pin(&ctx, &dataplane, &plan); // and afterwards
    tracing::debug!(dataplane = %dataplane.name_any(), phase = ?plan.phase, reason = plan.reason.as_str(), "pass");

    if let Some(confirms) = plan.confirms
        && !observe::confirm::unchanged(&ctx.client, &dataplane, &policies, confirms).await.map_err(Error::Confirm)?
    {
        return Ok(Action::requeue(SOON)); // the caches are behind: what they show next wakes us too
    }
    let writer = apply::Writer {
        client: ctx.client.clone(),
        writes: &ctx.writes,
        authority: ctx.authority.as_ref(),
        intent: &intent,
    };
    let converged = apply::converge(&writer, &observed, &planned).await; // writes
    let trouble = converged.as_ref().err().filter(|error| !error.is_conflict()).map(apply::Error::sentence);
    if trouble.is_none() {
        converged.map_err(Error::Converge)?;
        if !plan.founds {
            let status = status::report(&intent, &observed, &plan, None, now); // pure
            publish::publish(&writer, &observed, &plan, &status).await.map_err(Error::Publish)?; // writes
            jobs::advance(&ctx, &dataplane, &plan); // starts and cancels, never waits; what was said is on record by now
            let notes = status::notes(&intent, &observed, &plan, &status); // pure
            publish::tell(&ctx.client, &ctx.identity, &dataplane, &notes).await;
        }
    } else {
        let status = status::report(&intent, &observed, &plan, trouble.as_deref(), now); // pure
        publish::trouble(&writer, &observed, &plan, &status).await.map_err(Error::Publish)?; // writes
        converged.map_err(Error::Converge)?;
    }

    ctx.backoff.succeeded(&ObjectRef::from_obj(dataplane.as_ref()));
    // A watch that was taken up again does not tell what vanished meanwhile: every now and then we look by ourselves.
    let wait = plan.again.map_or(RESYNC, |at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
    Ok(Action::requeue(wait.min(RESYNC)))
}
