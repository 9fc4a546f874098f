//! PURE. What the phase depends on, as small types.

use std::{collections::BTreeSet, net::SocketAddr};

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod, discovery::v1::Endpoint};
use kube::ResourceExt;

use super::targets;
use crate::{
    api::promotion::{Decided, Decision, JudgedPod, Promotion, Verdict},
    model::{
        Intent, Observed, Revision, Scale, Selector, Strategy, certificate,
        names::{self, Role, State},
        observed::{Connection, ConnectionKey, verdict},
    },
};

/// What the phase depends on, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How a changed wish becomes live.
    pub strategy: Strategy,
    /// Something was promoted once: there is a live side by record.
    pub founded: bool,
    /// What is wanted, beside what is live.
    pub wanted: Wanted,
    /// A policy matches.
    pub governed: bool,
    /// At least one gate has to pass.
    pub gated: bool,
    /// A policy lets nothing be promoted.
    pub paused: bool,
    /// The record of the upgrade to what is wanted.
    pub upgrade: Upgrade,
    /// The new Pods.
    pub candidate: Candidate,
    /// What the gates of this moment said: once traffic moves, those that judge behind the live Services.
    pub gates: Judgement,
    /// The staged revision may be promoted.
    pub approved: bool,
    /// Somebody wants traffic back, and the side it left still stands.
    pub stopped: bool,
    /// How far traffic has moved.
    pub traffic: Traffic,
}

/// What is wanted, beside what is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The live revision.
    Live,
    /// Another one.
    New,
    /// Something that cannot be granted.
    Refused,
}

/// The record of the upgrade to what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// None.
    Absent,
    /// Under way.
    Open,
    /// The newest record says that it was given up or moved back, or it is being given up.
    Rejected,
}

/// The new Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// Not all of them are ready at the wanted revision.
    NotReady,
    /// Ready; whether they answer is not known yet.
    Unknown,
    /// Ready, but one of them does not answer.
    Silent,
    /// Ready, and each of them answers.
    Answers,
}

/// What the gates said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Not all have answered.
    Undecided,
    /// One of them said no.
    Failed,
    /// One of them cannot say, and none said no.
    Held,
    /// All of them passed, or there is none.
    Passed,
}

/// How far traffic has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// No switch has been decided, or it was decided and cannot begin yet.
    Stable,
    /// Decided and the spec is frozen; no Service has been switched.
    Armed,
    /// At least one live Service has been switched.
    Moving,
    /// On its way back to the stable side.
    Returning,
    /// Both live Services are back at the stable side.
    Returned,
    /// Both live Services select the candidate, and only its ready Pods take traffic.
    Moved,
}

/// The live side: the Deployment that carries the label. A lost status changes nothing.
pub(super) fn live_selector(intent: &Intent, observed: &Observed) -> Selector {
    if let Some(commit) = observed.open().and_then(|open| open.status.as_ref()?.commit.as_ref()) {
        // While traffic moves, the Services disagree; the commit says which side is which.
        return Selector::from(commit.from.as_str());
    }
    // The label, not the Service: a selector that somebody bent has to be bent back, not believed.
    observed
        .labelled(State::Live)
        .pop()
        .filter(|_| observed.labelled(State::Live).len() == 1)
        .or_else(|| observed.selects(State::Live, Role::Ingress))
        .or_else(|| observed.selects(State::Live, Role::Admin))
        .or_else(|| observed.status.as_ref()?.selector.as_deref().map(Selector::from))
        .unwrap_or_else(|| Selector::founding(&intent.owner.uid))
}

/// What is wanted, beside what is live.
pub(super) fn wanted(intent: &Intent, observed: &Observed) -> Wanted {
    match (&intent.wanted, observed.promoted()) {
        (Err(_), _) => Wanted::Refused,
        (Ok(wish), Some(promoted)) if *wish == promoted.wish => Wanted::Live,
        (Ok(_), _) => Wanted::New,
    }
}

/// The record of the upgrade to what is wanted. A refused wish leaves the one that is under way alone.
pub(super) fn upgrade(wanted: Option<&Revision>, observed: &Observed) -> Upgrade {
    let about_wanted = |promotion: &Promotion| wanted.is_none_or(|wanted| promotion.spec.revision == wanted.as_str());
    match (observed.open(), observed.promotions.last().map(AsRef::as_ref)) {
        (Some(open), _) if about_wanted(open) => {
            if stops(open) {
                Upgrade::Rejected
            } else {
                Upgrade::Open
            }
        }
        (None, Some(newest)) if wanted.is_some() && about_wanted(newest) && rejected(newest) => {
            if retry(newest).is_some() { Upgrade::Open } else { Upgrade::Rejected }
        }
        _ => Upgrade::Absent,
    }
}

/// Somebody has decided that an upgrade is to be given up or moved back.
pub(super) fn stops(promotion: &Promotion) -> bool {
    promotion.spec.decision.as_ref().is_some_and(Decision::stops)
}

/// An upgrade was given up or moved back, and nothing else was wanted since.
pub(super) fn rejected(promotion: &Promotion) -> bool {
    let lifted = promotion.status.as_ref().is_some_and(|status| status.lifted_at.is_some());
    verdict(promotion).is_some_and(Verdict::rejects) && !lifted
}

/// What somebody decided about an upgrade is on record as carried out.
pub(super) fn taken(promotion: &Promotion) -> Option<&Decided> {
    let last = promotion.status.as_ref()?.decided.last()?;
    (promotion.metadata.generation == Some(last.generation)).then_some(last)
}

/// A decision to judge once more that is still to be carried out.
pub(super) fn retry(promotion: &Promotion) -> Option<&Decision> {
    let decision = promotion.spec.decision.as_ref()?;
    (!decision.retry.is_empty() && !decision.stops() && taken(promotion).is_none()).then_some(decision)
}

/// A Deployment all of whose Pods, at least `least`, are ready at `revision`. Its status has to be about its spec, and
/// about all of it.
pub(super) fn ready(deployment: Option<&Deployment>, revision: &str, least: i32) -> bool {
    let Some(deployment) = deployment else { return false };
    let (Some(spec), Some(status)) = (&deployment.spec, &deployment.status) else { return false };
    let counts = [status.updated_replicas, status.replicas, status.available_replicas];
    deployment.annotations().get(names::REVISION).map(String::as_str) == Some(revision)
        && status.observed_generation == deployment.metadata.generation
        && spec
            .replicas
            .is_some_and(|replicas| replicas >= least && counts.map(|count| count.unwrap_or_default()) == [replicas; 3])
}

/// How many Pods the Deployment of a side is asked for.
pub(super) fn asked(observed: &Observed, selector: &Selector) -> Option<i32> {
    observed.deployment(selector)?.spec.as_ref()?.replicas
}

/// The certificate of a side ends soon, and no Pod runs with it: it can be issued anew without anybody noticing.
pub(super) fn renews(observed: &Observed, selector: &Selector, now: Timestamp) -> bool {
    let ends = observed.secret_of(selector).and_then(|secret| certificate::ends(secret));
    ends.is_some_and(|at| certificate::ends_soon(at, now)) && asked(observed, selector) == Some(0)
}

/// What people want to know about a Deployment that is not ready: what its Pods or its conditions complain about.
pub(super) fn complaint(observed: &Observed, selector: &Selector) -> Option<String> {
    let waiting = observed.pods_of(selector).find_map(|pod| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        statuses.iter().find_map(|status| {
            let waiting = status.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting
                .reason
                .as_deref()
                .filter(|reason| !["ContainerCreating", "PodInitializing"].contains(reason))?;
            let message = waiting.message.as_deref().unwrap_or_default();
            Some(format!("Pod {}: {reason}: {message}", pod.name_any()))
        })
    });
    let unscheduled = || {
        observed.pods_of(selector).find_map(|pod| {
            let conditions = pod.status.as_ref()?.conditions.as_ref()?;
            let condition =
                conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
            Some(format!("Pod {}: {}", pod.name_any(), condition.message.as_deref().unwrap_or("not scheduled")))
        })
    };
    let refused = || {
        let conditions = observed.deployment(selector)?.status.as_ref()?.conditions.as_ref()?;
        let condition =
            conditions.iter().find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
        condition.message.clone()
    };
    waiting.or_else(unscheduled).or_else(refused).or_else(|| intrusion(observed, selector))
}

/// Who takes traffic of a side without being of it. Nothing is judged or promoted while somebody does.
fn intrusion(observed: &Observed, selector: &Selector) -> Option<String> {
    if let Some(pod) = observed.strangers_of(selector).next() {
        return Some(format!("Pod {} has the labels of this side, and its Deployment did not make it", pod.name_any()));
    }
    let place = (State::Preview, Role::Ingress);
    observed.selects(place.0, place.1).filter(|side| side == selector)?;
    taking_traffic(observed, place.0, place.1)?.into_iter().find_map(|taker| match taker {
        Taker::Stranger(address) => {
            let service = observed.services.get(&place)?.name_any();
            Some(format!("an EndpointSlice of Service {service} leads to {address}, which is no Pod of it"))
        }
        Taker::Pod(_) => None,
    })
}

/// The Pods a gate judges, as evidence remembers them.
pub(super) fn pods(observed: &Observed, selector: &Selector) -> Vec<JudgedPod> {
    let mut pods: Vec<_> = observed.pods_of(selector).filter(|pod| is_ready(pod)).map(judged).collect();
    pods.sort();
    pods
}

/// A side has a ready Pod.
pub(super) fn serves(observed: &Observed, selector: &Selector) -> bool {
    observed.pods_of(selector).any(is_ready)
}

fn judged(pod: &Pod) -> JudgedPod {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let proxy = statuses.and_then(|statuses| statuses.iter().find(|status| status.name == names::PROXY));
    JudgedPod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        image_id: proxy.map(|status| status.image_id.clone()),
        restarts: statuses.into_iter().flatten().map(|status| status.restart_count).sum(),
    }
}

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|conditions| {
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    })
}

/// Who takes traffic of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Taker {
    /// A Pod, by its UID.
    Pod(String),
    /// An address that is no Pod's, or not that of the Pod it is given for: EndpointSlices can be forged, and kube-proxy
    /// obeys them.
    Stranger(String),
}

/// Who takes traffic of a Service: ready, or serving for want of a ready one. No address is ever taken from here.
pub(super) fn taking_traffic(observed: &Observed, state: State, role: Role) -> Option<BTreeSet<Taker>> {
    let service = observed.services.get(&(state, role))?.name_any();
    let slices =
        observed.slices.iter().filter(|slice| slice.labels().get("kubernetes.io/service-name") == Some(&service));
    let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints
        .filter(|endpoint| endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready.unwrap_or(true)));
    Some(ready.map(|endpoint| taker(observed, endpoint)).collect())
}

fn taker(observed: &Observed, endpoint: &Endpoint) -> Taker {
    let stranger = || Taker::Stranger(endpoint.addresses.join(", "));
    let Some(uid) = endpoint.target_ref.as_ref().and_then(|pod| pod.uid.clone()) else { return stranger() };
    let known = observed.pods.iter().find(|pod| pod.metadata.uid.as_ref() == Some(&uid));
    let own: Vec<_> = known.into_iter().flat_map(|pod| targets::addresses(pod)).collect();
    // Of a Pod that has just come or is on its way out no address is known: not forged, and not one of a side either.
    let forged = !own.is_empty() && endpoint.addresses.iter().any(|address| !own.contains(&address.as_str()));
    if forged { stranger() } else { Taker::Pod(uid) }
}

/// The candidate: its Deployment, then the endpoints of the preview Service, then a connection to each Pod.
pub(super) fn candidate(
    observed: &Observed,
    selector: &Selector,
    revision: &str,
    least: i32,
    connection: Option<&ConnectionKey>,
) -> Candidate {
    let replicas = asked(observed, selector).unwrap_or_default();
    let pods: BTreeSet<_> = pods(observed, selector).into_iter().map(|pod| Taker::Pod(pod.uid)).collect();
    let behind_preview = observed.selects(State::Preview, Role::Ingress).as_ref() == Some(selector)
        && taking_traffic(observed, State::Preview, Role::Ingress).as_ref() == Some(&pods)
        && pods.len() == usize::try_from(replicas).unwrap_or_default();
    if !ready(observed.deployment(selector), revision, least.max(1)) || !behind_preview {
        return Candidate::NotReady;
    }
    match connection.and_then(|key| observed.connections.get(key)) {
        None => Candidate::Unknown,
        Some(Connection::Silent(_)) => Candidate::Silent,
        Some(Connection::Answers) => Candidate::Answers,
    }
}

/// The question whether the candidate answers. Each Pod is asked itself, on the first port of the preview Service: the
/// Service answers only when kube-proxy has learnt of its Pods, up to a second later, and one answer of its would be
/// about one Pod. Where a Pod has no address of its own the Service is asked all the same.
pub(super) fn connection(observed: &Observed, selector: &Selector) -> Option<ConnectionKey> {
    let service = observed.services.get(&(State::Preview, Role::Ingress))?.spec.as_ref()?;
    let port = service.ports.as_ref()?.first()?;
    let address = SocketAddr::new(service.cluster_ip.as_deref()?.parse().ok()?, u16::try_from(port.port).ok()?);
    let asked = observed.pods_of(selector).filter(|pod| is_ready(pod)).map(|pod| {
        let own =
            targets::container_port(pod, &targets::wanted(port)).and_then(|(_, port)| targets::endpoint(pod, port));
        (pod.uid().unwrap_or_default(), own.map_or(address, |own| own.address))
    });
    Some(ConnectionKey(asked.collect()))
}

/// How far traffic has moved for an upgrade.
pub(super) fn traffic(intent: &Intent, observed: &Observed) -> Traffic {
    let Some(commit) = observed.open().and_then(|open| open.status.as_ref()?.commit.as_ref()) else {
        return Traffic::Stable;
    };
    let (from, to) = (Selector::from(commit.from.as_str()), Selector::from(commit.to.as_str()));
    let at = [Role::Ingress, Role::Admin].map(|role| observed.selects(State::Live, role));
    let all = |side: &Selector| at.iter().all(|selector| selector.as_ref() == Some(side));
    if commit.back.is_some() {
        return if all(&from) { Traffic::Returned } else { Traffic::Returning };
    }
    if all(&to) {
        // Once it is the live one by record there is no way back: a Pod that breaks then is an outage like any other.
        return if marked(observed) || converged(intent, observed, &from, &to) {
            Traffic::Moved
        } else {
            Traffic::Moving
        };
    }
    if at.iter().any(|selector| selector.as_ref() == Some(&to)) {
        return Traffic::Moving;
    }
    if frozen(observed) { Traffic::Armed } else { Traffic::Stable }
}

/// The revision of the upgrade under way is the live one by record.
pub(super) fn marked(observed: &Observed) -> bool {
    observed.promoted().zip(observed.open()).is_some_and(|(live, open)| live.revision.as_str() == open.spec.revision)
}

/// Only ready Pods of one side take the traffic of the live Service, and enough of them. Under an autoscaler that is what
/// it wants by now, as far as it had wanted that of the side that traffic leaves: fewer would be a loss, and for more there
/// may be no room while both stand.
pub(super) fn converged(intent: &Intent, observed: &Observed, from: &Selector, to: &Selector) -> bool {
    let scaled =
        asked(observed, from).min(asked(observed, to)).filter(|_| matches!(intent.scale, Scale::Horizontal { .. }));
    let wanted = intent.scale.least().max(scaled.unwrap_or_default());
    let own: BTreeSet<_> = pods(observed, to).into_iter().map(|pod| Taker::Pod(pod.uid)).collect();
    let taking = taking_traffic(observed, State::Live, Role::Ingress).unwrap_or_default();
    taking.len() >= usize::try_from(wanted).unwrap_or_default() && taking.is_subset(&own)
}

/// What was judged is what is there: none of the Pods was restarted, or replaced by another one. Pods that came beside them
/// run the same, and those that an autoscaler took away are missed by nobody.
pub(super) fn as_judged(judged: &[JudgedPod], now: &[JudgedPod]) -> bool {
    let (gone, new): (Vec<_>, Vec<_>) = (missing(judged, now), missing(now, judged));
    gone.is_empty() || new.is_empty()
}

fn missing<'a>(pods: &'a [JudgedPod], from: &[JudgedPod]) -> Vec<&'a JudgedPod> {
    pods.iter().filter(|pod| !from.contains(pod)).collect()
}

/// The API refuses changes of the spec: its rule looks at this very condition.
pub(super) fn frozen(observed: &Observed) -> bool {
    rolled_out(observed).is_some_and(|reason| reason == "PromotionInProgress")
}

fn rolled_out(observed: &Observed) -> Option<&str> {
    let conditions = &observed.status.as_ref()?.rollout.as_ref()?.conditions;
    conditions.iter().find(|condition| condition.type_ == "RolledOut").map(|condition| condition.reason.as_str())
}

/// When `since` plus `limit` is over.
pub(super) fn overdue(since: Option<Timestamp>, limit: std::time::Duration, now: Timestamp) -> bool {
    since.is_some_and(|since| after(since, limit) <= now)
}

/// `limit` after `since`, saturating.
pub(super) fn after(since: Timestamp, limit: std::time::Duration) -> Timestamp {
    jiff::SignedDuration::try_from(limit).ok().and_then(|limit| since.checked_add(limit).ok()).unwrap_or(Timestamp::MAX)
}
