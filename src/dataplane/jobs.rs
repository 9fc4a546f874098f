//! Turns planned trials and connections into jobs: started, looked at in later passes, cancelled when not wanted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt, runtime::reflector::ObjectRef};
use tokio::net::TcpStream;

use super::{apply::certificate::Authority, reconcile::Context};
use crate::{
    api::DataPlane,
    gate::jobs::Voice,
    gateplugin::Held,
    model::{
        Intent, Observed, Plan, PluginKey, grants,
        names::GATE_CREDENTIAL,
        observed::{Connection, ConnectionKey, Plugin},
        plan::PlannedTrial,
        trial::{Blame, Credential, Digest, Grants, Identity, Outcome, Report, Scheme, Target, Trial},
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

/// Keeps the bytes that judge by a plan, whatever is installed meanwhile. Before it goes on record: of a pass that fails at
/// that, a part may be on record all the same.
pub fn pin(ctx: &Context, dataplane: &DataPlane, plan: &Plan) {
    ctx.installed.pin(&owner(&ObjectRef::from_obj(dataplane)), pins(plan));
}

/// Makes the jobs of a DataPlane those of its plan.
pub fn advance(ctx: &Context, dataplane: &DataPlane, plan: &Plan) {
    let owner = owner(&ObjectRef::from_obj(dataplane));
    let runs = |planned: &&PlannedTrial| planned.may_begin || ctx.trials.has(&owner, &planned.key);
    let wanted: Vec<_> = plan.trials.iter().filter(runs).collect();
    ctx.trials.advance(
        &owner,
        wanted.into_iter().map(|planned| {
            let (gates, client, metrics) = (Arc::clone(&ctx.host), ctx.client.clone(), ctx.metrics.clone());
            let (namespace, wanted) =
                (dataplane.namespace().unwrap_or_default(), planned.gate.grants.credentials.clone());
            let trial = Trial {
                id: planned.id.clone(),
                namespace: namespace.clone(),
                digest: planned.digest.clone(),
                settings: planned.gate.settings.clone(),
                moment: planned.moment,
                timeout: planned.gate.timeout,
                limits: ctx.installed.limits(&planned.gate.plugin),
                targets: planned.targets.clone(),
                state: planned.state.clone(),
                grants: Grants {
                    egress: planned.gate.grants.egress.clone(),
                    queries: planned.gate.grants.queries.clone(),
                    // These come when the trial starts, and are forgotten with it.
                    credentials: Vec::new(),
                    identity: None,
                    absent: planned.absent.clone(),
                },
                candidate: planned.candidate.clone(),
                stable: planned.stable.clone(),
            };
            let authority = Arc::clone(&ctx.authority);
            let run = async move {
                let identity = identity(&authority, &trial.targets);
                let secrets = async { Ok((credentials(&client, &namespace, wanted).await?, identity?)) };
                match secrets.await {
                    Ok((credentials, identity)) => {
                        let grants = Grants { credentials, identity, ..trial.grants };
                        gates.run(Trial { grants, ..trial }).await
                    }
                    Err(message) => Report::of(Outcome::Error { blame: Blame::Credential, message, retry: true }),
                }
            };
            (planned.key.clone(), move |voice: Voice<_>| async move {
                let report = run.await;
                metrics.tried(&report);
                voice.say(report);
            })
        }),
    );
    let connect = plan.connect.iter().map(|key| (key.clone(), |voice| ask(key.clone(), voice)));
    ctx.connections.advance(&owner, connect);
}

/// The bytes that an upgrade under way was begun with: until it ends, nobody may let them go.
fn pins(plan: &Plan) -> BTreeSet<Digest> {
    let open = plan.promotion.iter().filter(|promotion| promotion.status.verdict.is_none());
    let judged = open.flat_map(|promotion| promotion.status.gates.iter().chain(&promotion.status.rechecks));
    judged.filter(|entry| !entry.digest.is_empty()).map(|entry| Digest::from(entry.digest.clone())).collect()
}

/// A certificate to show, where a target asks for one.
fn identity(authority: &Authority, targets: &[Target]) -> Result<Option<Identity>, String> {
    let asked = targets.iter().any(|target| target.scheme == Scheme::HttpsIdentified);
    let issued = asked.then(|| authority.identify()).transpose();
    issued.map_err(|error| format!("the cluster CA cannot issue a certificate for the gate host: {error}"))
}

/// Reads the Secrets of credentials. Each has to say itself that gates may use it: who may write a policy need not be
/// one who may read Secrets.
async fn credentials(
    client: &Client,
    namespace: &str,
    wanted: Vec<grants::Credential>,
) -> Result<Vec<Credential>, String> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut read = Vec::with_capacity(wanted.len());
    for grants::Credential { name, secret, key, target, header, format, path_prefix } in wanted {
        let cannot = |why: String| format!("credential {name:?} cannot be had: {why}");
        let found = secrets.get_opt(&secret).await;
        let found = found.map_err(|error| cannot(format!("Secret {secret:?} cannot be read: {error}")))?;
        let found = found.ok_or_else(|| cannot(format!("there is no Secret {secret:?} in this namespace")))?;
        if found.labels().get(GATE_CREDENTIAL).map(String::as_str) != Some("true") {
            return Err(cannot(format!("Secret {secret:?} has no label {GATE_CREDENTIAL}: \"true\"; set it")));
        }
        let value = found.data.unwrap_or_default().remove(&key).filter(|value| !value.0.is_empty());
        let value = value.ok_or_else(|| cannot(format!("Secret {secret:?} has nothing under the key {key:?}")))?;
        read.push(Credential { name, value: value.0.into(), target, header, format, path_prefix });
    }
    Ok(read)
}

/// Cancels everything of a DataPlane that goes or has gone.
pub fn cancel(ctx: &Context, dataplane: &ObjectRef<DataPlane>) {
    let owner = owner(dataplane);
    ctx.installed.pin(&owner, BTreeSet::new());
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

/// The plugins that the gates of an intent name, and those of the commit, as this process has them. What is ready stays
/// so while it is held.
pub fn plugins(ctx: &Context, intent: &Intent, observed: &Observed) -> (BTreeMap<PluginKey, Plugin>, Held) {
    let wanted = intent.rules.gates.iter().map(|gate| gate.plugin.clone());
    let pinned = observed.verifies().map(|pinned| pinned.gate.plugin_ref.key(&intent.owner.namespace));
    ctx.installed.lend(wanted.chain(pinned))
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
