//! Turns planned trials and connections into jobs: started, looked at in later passes, cancelled when not wanted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use kube::runtime::reflector::ObjectRef;
use tokio::net::TcpStream;

use super::reconcile::Context;
use crate::{
    api::DataPlane,
    gate::jobs::Voice,
    model::{
        Intent, Plan, PluginKey,
        observed::{Connection, ConnectionKey, Plugin},
        trial::{Limits, Moment, Trial},
    },
};

/// Between two questions to a Pod that does not answer.
const PAUSE: Duration = Duration::from_millis(50);
/// For one question: what is lost on its way to a new Pod is said again by the kernel only after a second.
const PATIENCE: Duration = Duration::from_millis(250);
/// Between two questions once people have been told.
const REST: Duration = Duration::from_secs(1);
/// Questions without an answer before people are told.
const QUIET: u32 = 20;
/// Pods that are asked at the same time.
const AT_ONCE: usize = 16;

/// Whose jobs: `namespace/name`.
#[must_use]
pub fn owner(dataplane: &ObjectRef<DataPlane>) -> String {
    format!("{}/{}", dataplane.namespace.as_deref().unwrap_or_default(), dataplane.name)
}

/// Makes the jobs of a DataPlane those of its plan.
pub fn advance(ctx: &Context, dataplane: &DataPlane, plan: &Plan) {
    let owner = owner(&ObjectRef::from_obj(dataplane));
    let limits = Limits::default();
    ctx.trials.advance(
        &owner,
        plan.trials.iter().map(|planned| {
            let gates = Arc::clone(&ctx.host);
            let trial = Trial {
                id: planned.id.clone(),
                digest: planned.digest.clone(),
                settings: planned.gate.settings.clone(),
                moment: Moment::BeforePromotion,
                timeout: planned.gate.timeout,
                limits,
                targets: planned.targets.clone(),
                candidate: planned.candidate.clone(),
                stable: planned.stable.clone(),
            };
            (planned.key.clone(), move |voice: Voice<_>| async move { voice.say(gates.run(trial).await) })
        }),
    );
    let connect = plan.connect.iter().map(|key| (key.clone(), |voice| ask(key.clone(), voice)));
    ctx.connections.advance(&owner, connect);
}

/// Cancels everything of a DataPlane that goes or has gone.
pub fn cancel(ctx: &Context, dataplane: &ObjectRef<DataPlane>) {
    let owner = owner(dataplane);
    ctx.trials.cancel(&owner);
    ctx.connections.cancel(&owner);
    ctx.backoff.succeeded(dataplane);
}

/// What the candidates of a DataPlane answered.
#[must_use]
pub fn connections(ctx: &Context, dataplane: &DataPlane) -> HashMap<ConnectionKey, Connection> {
    ctx.connections
        .said(&owner(&ObjectRef::from_obj(dataplane)))
        .into_iter()
        .map(|(key, said)| (key, (*said).clone()))
        .collect()
}

/// The plugins that the gates of an intent name, as this process has them.
#[must_use]
pub fn plugins(ctx: &Context, intent: &Intent) -> BTreeMap<PluginKey, Plugin> {
    let keys = intent.rules.gates.iter().map(|gate| &gate.plugin);
    keys.filter_map(|key| Some((key.clone(), ctx.installed.get(key)?))).collect()
}

/// Asks every Pod for a connection until it answers.
async fn ask(key: ConnectionKey, voice: Voice<Connection>) {
    let mut silent: BTreeSet<SocketAddr> = key.0.into_values().collect();
    let mut rounds = 0_u32;
    loop {
        let asked = stream::iter(silent).map(|address| async move { (address, connect(address).await) });
        let refusals = asked
            .buffer_unordered(AT_ONCE)
            .filter_map(|(address, answer)| async move { Some((address, answer.err()?)) });
        let refusals: BTreeMap<_, _> = refusals.collect().await;
        let Some(why) = refusals.values().next() else { return voice.say(Connection::Answers) };
        rounds += 1;
        if rounds == QUIET {
            voice.say(Connection::Silent(why.clone()));
        }
        silent = refusals.into_keys().collect();
        tokio::time::sleep(if rounds < QUIET { PAUSE } else { REST }).await;
    }
}

async fn connect(address: SocketAddr) -> Result<(), String> {
    match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address}: no answer within {} ms", PATIENCE.as_millis())),
    }
}
