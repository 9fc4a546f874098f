//! PURE. Everything -> DataPlaneStatus and the Events that go with a change of it. A mirror of what is observed.

mod addresses;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Service,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::ResourceExt;

use crate::{
    api::{
        dataplane::{DataPlaneStatus, RolloutDeployment, RolloutService, RolloutServices, RolloutStatus},
        promotion::Act,
    },
    model::{
        Intent, Observed, Phase, Plan, Strategy, certificate,
        names::{Role, State},
        plan::{ApprovalPlan, Cleared, Reason},
    },
};

/// Something to tell people, as an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Somebody should look.
    pub warning: bool,
    /// CamelCase word.
    pub reason: String,
    /// One sentence.
    pub message: String,
}

/// The status of a DataPlane after this pass.
#[must_use]
pub fn report(
    intent: &Intent,
    observed: &Observed,
    plan: &Plan,
    trouble: Option<&str>,
    now: Timestamp,
) -> DataPlaneStatus {
    let live = observed.services.get(&(State::Live, Role::Ingress));
    let before = observed.status.clone().unwrap_or_default();
    let deployment = observed.deployment(&plan.live.selector).and_then(|deployment| deployment.status.as_ref());
    let mut conditions = vec![ready(intent, observed, plan, trouble)];
    conditions.extend(reconciling(intent, plan));
    conditions.extend(stalled(intent, plan));
    conditions.extend(certificates(intent, observed, plan, now));
    DataPlaneStatus {
        conditions: settle(&before.conditions, conditions, now),
        service: live.map(|service| service.name_any()),
        addresses: live.map(|service| addresses::of(service)).unwrap_or_default(),
        selector: selector(intent, observed, plan),
        ready_replicas: deployment.and_then(|status| status.ready_replicas).unwrap_or_default(),
        replicas: deployment.and_then(|status| status.replicas).unwrap_or_default(),
        rollout: (intent.strategy == Strategy::BlueGreen || under_way(plan))
            .then(|| rollout(intent, observed, plan, trouble, now)),
    }
}

/// What the live Services select: the side, also where the user has them select something else. While traffic moves, the
/// side it leaves: it has not arrived anywhere else yet, and saying so twice would be a write for each half.
fn selector(intent: &Intent, observed: &Observed, plan: &Plan) -> Option<String> {
    let leaves = observed.status.as_ref().and_then(|status| status.selector.clone());
    if plan.phase == Phase::Switching && leaves.is_some() {
        return leaves;
    }
    let overridden = intent.ingress.selector_override.is_some().then(|| plan.live.selector.clone());
    observed.selects(State::Live, Role::Ingress).or(overridden).map(|selector| selector.as_str().to_owned())
}

fn under_way(plan: &Plan) -> bool {
    matches!(plan.phase, Phase::Switching | Phase::Verifying | Phase::Draining)
}

fn rollout(intent: &Intent, observed: &Observed, plan: &Plan, trouble: Option<&str>, now: Timestamp) -> RolloutStatus {
    let before = observed.status.as_ref().and_then(|status| status.rollout.clone()).unwrap_or_default();
    let later_edit = plan.promotion.is_some() && plan.phase != Phase::Settled && !about_wanted(intent, plan);
    let (reason, message) = match trouble {
        // Traffic that is being moved keeps the spec frozen, whatever stands in its way; so does a commit whose first
        // Service is refused. Else it would be armed and given up again for as long as that lasts.
        Some(trouble) if plan.phase == Phase::Switching && (!plan.arms || frozen(&before)) => {
            (plan.reason, trouble.to_owned())
        }
        Some(trouble) => (Reason::Failed, trouble.to_owned()),
        None => (plan.reason, plan.message.clone()),
    };
    let condition = Condition {
        type_: "RolledOut".into(),
        status: if reason == Reason::PromotionDone { "True" } else { "False" }.into(),
        reason: reason.as_str().into(),
        message,
        // An edit that waits, or was refused, is not what this condition is about.
        observed_generation: if later_edit {
            generation(&before.conditions, "RolledOut")
        } else {
            Some(intent.owner.generation)
        },
        last_transition_time: Time(now),
    };
    // After the switch there is no preview until the replaced side is gone, as with Kong.
    let preview = plan.preview.as_ref().filter(|_| plan.phase != Phase::Draining);
    let service = |role| observed.services.get(&(State::Preview, role)).map(|service| rollout_service(service));
    let (ingress, admin_api) = (service(Role::Ingress), service(Role::Admin));
    RolloutStatus {
        conditions: settle(&before.conditions, vec![condition], now),
        deployment: plan
            .preview
            .is_some()
            .then(|| RolloutDeployment { selector: preview.map(|traffic| traffic.selector.as_str().to_owned()) }),
        services: (ingress.is_some() || admin_api.is_some()).then_some(RolloutServices { ingress, admin_api }),
    }
}

/// The API refuses changes of the spec: its rule looks at this very condition.
fn frozen(before: &RolloutStatus) -> bool {
    before.conditions.iter().any(|known| known.reason == Reason::PromotionInProgress.as_str())
}

fn rollout_service(service: &Service) -> RolloutService {
    RolloutService { name: service.name_any(), addresses: addresses::of(service) }
}

/// The upgrade under way is about what is wanted now.
fn about_wanted(intent: &Intent, plan: &Plan) -> bool {
    plan.promotion.as_ref().map(|promotion| &promotion.revision) == intent.wanted_revision().as_ref()
}

/// `Ready`: the live side, whatever is being prepared beside it. Its generation is the one that is live.
fn ready(intent: &Intent, observed: &Observed, plan: &Plan, trouble: Option<&str>) -> Condition {
    let live_is_wanted = match plan.phase {
        Phase::Founding | Phase::InPlace => true,
        Phase::Settled => intent.wanted.is_ok(),
        Phase::Draining => about_wanted(intent, plan),
        Phase::Ungated
        | Phase::Staging
        | Phase::Judging
        | Phase::Refused
        | Phase::Waiting
        | Phase::Switching
        | Phase::Verifying
        | Phase::Rejected => false,
    };
    let founding_trouble = trouble.filter(|_| matches!(plan.phase, Phase::Founding | Phase::InPlace));
    let founding_trouble = founding_trouble.map(|trouble| ("UnableToProvision", trouble.to_owned()));
    let (status, reason, message) = match founding_trouble.or_else(|| unready(intent, observed, plan)) {
        Some((reason, message)) => ("False", reason, message),
        None => ("True", "Ready", String::new()),
    };
    Condition {
        type_: "Ready".into(),
        status: status.into(),
        reason: reason.into(),
        message,
        observed_generation: if live_is_wanted {
            Some(intent.owner.generation)
        } else {
            returns(plan).or(observed.live_generation()).or(Some(intent.owner.generation))
        },
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

/// The generation that traffic goes back to.
fn returns(plan: &Plan) -> Option<i64> {
    let commit = plan.promotion.as_ref()?.status.commit.as_ref()?;
    commit.back.as_ref().and(commit.live_generation)
}

fn unready(intent: &Intent, observed: &Observed, plan: &Plan) -> Option<(&'static str, String)> {
    const WAITING: &str = "WaitingToBecomeReady";
    if observed.status.as_ref().is_none_or(|status| status.conditions.is_empty()) && plan.phase == Phase::Founding {
        return Some(("DependenciesNotReady", "There are other conditions that are not yet ready".into()));
    }
    let general = || (WAITING, "Waiting for the resource to become ready".to_owned());
    if let (Phase::Founding, Err(refusal)) = (plan.phase, &intent.wanted) {
        return Some(("ValidationFailed", format!("{}: {}", refusal.field, refusal.message)));
    }
    let Some(deployment) = observed.deployment(&plan.live.selector) else { return Some(general()) };
    let status = deployment.status.clone().unwrap_or_default();
    let (replicas, available) = (status.replicas.unwrap_or_default(), status.available_replicas.unwrap_or_default());
    if replicas == 0 || available != replicas {
        let message =
            format!("Waiting for the resource to become ready: Deployment {} is not ready yet", deployment.name_any());
        return Some((WAITING, message));
    }
    let Some(service) = observed.services.get(&(State::Live, Role::Ingress)) else { return Some(general()) };
    let spec = service.spec.as_ref();
    if spec.and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer") && !addresses::has_load_balancer(service) {
        let message = format!(
            "Waiting for the resource to become ready: ingress Service {} is not ready yet",
            service.name_any()
        );
        return Some((WAITING, message));
    }
    None
}

/// `Reconciling`: machines are at work, or waited for. Absent where a person is awaited, and at rest.
fn reconciling(intent: &Intent, plan: &Plan) -> Option<Condition> {
    let message = match plan.phase {
        Phase::Founding if intent.wanted.is_err() => return None,
        Phase::Founding => "the live side is being started",
        Phase::Staging => "the preview is being started",
        Phase::Judging => "gates judge the preview",
        Phase::Switching => "traffic is being moved",
        Phase::Verifying => "gates judge behind the live Services",
        Phase::Draining => "the replaced side lives on for a while",
        Phase::InPlace | Phase::Ungated | Phase::Settled | Phase::Refused | Phase::Waiting | Phase::Rejected => {
            return None;
        }
    };
    Some(abnormal(intent, "Reconciling", plan.reason.as_str(), message.into()))
}

/// `CertificateExpiring`: the certificate of the live admin API, or the CA that signed it, ends soon.
fn certificates(intent: &Intent, observed: &Observed, plan: &Plan, now: Timestamp) -> Option<Condition> {
    let secret = observed.secret_of(&plan.live.selector);
    let live = secret.and_then(|secret| Some((secret.name_any(), certificate::ends(secret)?)));
    let live = live.filter(|(_, at)| certificate::ends_soon(*at, now));
    let authority = observed.authority_expires.filter(|at| certificate::ends_soon(*at, now));
    let (reason, message) = match (authority, live) {
        (Some(at), _) => (
            "Authority",
            format!("the cluster CA ends at {at}: put a new one in its Secret, restart the operator, and upgrade"),
        ),
        (None, Some((secret, at))) => (
            "Certificate",
            format!("the certificate in Secret {secret} ends at {at}: the next upgrade brings a new one"),
        ),
        (None, None) => return None,
    };
    Some(abnormal(intent, "CertificateExpiring", reason, message))
}

/// A condition that is there only while something is out of the ordinary, as kstatus reads them.
fn abnormal(intent: &Intent, type_: &str, reason: &str, message: String) -> Condition {
    Condition {
        type_: type_.into(),
        status: "True".into(),
        reason: reason.into(),
        message,
        observed_generation: Some(intent.owner.generation),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

/// `Stalled`: what is wanted cannot be had, and waiting will not help. Absent otherwise.
fn stalled(intent: &Intent, plan: &Plan) -> Option<Condition> {
    let (reason, message) = match (&intent.wanted, plan.phase) {
        (Err(refusal), _) => ("InvalidSpec", format!("{}: {}", refusal.field, refusal.message)),
        (Ok(_), Phase::Ungated) if intent.rules.gates.is_empty() => (
            "Paused",
            "a policy is paused, and without spec.deployment.rollout.strategy.blueGreen there is no preview: the live side stays as it is".into(),
        ),
        (Ok(_), Phase::Ungated) => (
            "GatesNeedBlueGreen",
            "a policy demands gates, and without spec.deployment.rollout.strategy.blueGreen there is nothing they could judge: the live side stays as it is".into(),
        ),
        (Ok(_), _) => return None,
    };
    Some(abnormal(intent, "Stalled", reason, message))
}

fn generation(conditions: &[Condition], type_: &str) -> Option<i64> {
    conditions.iter().find(|condition| condition.type_ == type_)?.observed_generation
}

/// Gives each condition its time: the old one unless something changed, as with Kong.
fn settle(before: &[Condition], mut after: Vec<Condition>, now: Timestamp) -> Vec<Condition> {
    for condition in &mut after {
        let known = before.iter().find(|known| known.type_ == condition.type_);
        condition.last_transition_time = known
            .filter(|known| {
                Condition { last_transition_time: condition.last_transition_time.clone(), ..(*known).clone() }
                    == *condition
            })
            .map_or_else(|| Time(now), |known| known.last_transition_time.clone());
    }
    after
}

/// What to tell people about this pass: one Event for each change of a reason, and one where an approval goes.
#[must_use]
pub fn notes(intent: &Intent, observed: &Observed, plan: &Plan, after: &DataPlaneStatus) -> Vec<Note> {
    let rolled_out = |status: &DataPlaneStatus| Some(status.rollout.as_ref()?.conditions.first()?.clone());
    let find = |status: &DataPlaneStatus, type_: &str| {
        status.conditions.iter().find(|condition| condition.type_ == type_).cloned()
    };
    let before = observed.status.clone().unwrap_or_default();
    let mut notes = Vec::new();
    if let ApprovalPlan::Void(why) = &plan.approval {
        let message = format!("the annotation promote-when-ready was removed: {why}");
        notes.push(Note { warning: true, reason: "ApprovalVoided".into(), message });
    }
    if let Some(Cleared { promotion, by, why: Some(why), .. }) = &plan.cleared {
        let message = format!("the decision of {by} was removed from Promotion {promotion}: {why}");
        notes.push(Note { warning: true, reason: "DecisionRefused".into(), message });
    }
    notes.extend(decided(observed, plan));
    if let Some(condition) = rolled_out(after)
        && rolled_out(&before).map(|before| (before.reason, before.message))
            != Some((condition.reason, condition.message))
        && rolled_out(&before).is_none_or(|before| before.reason != plan.reason.as_str() || is_warning(plan.reason))
    {
        let mut message = say(intent, plan);
        if plan.phase == Phase::Refused && intent.approved {
            message.push_str("; the approval is not honoured");
        }
        notes.push(Note { warning: is_warning(plan.reason), reason: plan.reason.as_str().into(), message });
    } else if plan.phase == Phase::Refused && newly_approved(observed, plan) {
        let message = format!("the approval is not honoured: {}", plan.message);
        notes.push(Note { warning: true, reason: plan.reason.as_str().into(), message });
    }
    notes.extend(waived(observed, plan));
    for type_ in ["Stalled", "CertificateExpiring"] {
        if let Some(condition) = find(after, type_)
            && find(&before, type_).map(|before| before.message).as_ref() != Some(&condition.message)
        {
            let reason = if type_ == "Stalled" { condition.reason } else { condition.type_ };
            notes.push(Note { warning: true, reason, message: condition.message });
        }
    }
    notes
}

/// What somebody decided, and this pass carries out.
fn decided(observed: &Observed, plan: &Plan) -> Option<Note> {
    let planned = plan.promotion.as_ref()?;
    let recorded = observed.promotions.iter().find(|known| known.name_any() == planned.name);
    let recorded = recorded.and_then(|known| known.status.as_ref()?.decided.last());
    let decided = planned.status.decided.last().filter(|decided| Some(*decided) != recorded)?;
    let what = match decided.what {
        Act::Retry => format!("{} of revision {} to judge once more", decided.gates.join(", "), planned.revision),
        Act::Reopen => format!("revision {} to be taken up again", planned.revision),
        Act::Abort => format!("revision {} to be given up", planned.revision),
        Act::Rollback => format!("traffic to be moved back from revision {}", planned.revision),
    };
    let reason = decided.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let message = format!("{} has asked for {what}{reason}", decided.by);
    Some(Note { warning: false, reason: "Decided".into(), message })
}

/// Gates that the policy does without since this pass.
fn waived<'a>(observed: &'a Observed, plan: &'a Plan) -> impl Iterator<Item = Note> + 'a {
    let recorded = observed.open().and_then(|open| open.status.as_ref()).map_or(&[][..], |status| &status.gates);
    let known = |name: &str| recorded.iter().any(|entry| entry.waived && entry.name == name);
    let gates = plan.promotion.iter().flat_map(|promotion| &promotion.status.gates);
    gates.filter(move |entry| entry.waived && !known(&entry.name)).map(|entry| {
        let reason = entry.reason.as_deref().unwrap_or("Unknown");
        let message = format!("gate {} is waived by its policy: {reason}", entry.name);
        Note { warning: true, reason: "GateWaived".into(), message }
    })
}

fn newly_approved(observed: &Observed, plan: &Plan) -> bool {
    let approval = |status: Option<&crate::api::promotion::PromotionStatus>| {
        status.is_some_and(|status| status.approval.is_some())
    };
    let recorded = observed.open().and_then(|open| open.status.as_ref());
    approval(plan.promotion.as_ref().map(|promotion| &promotion.status)) && !approval(recorded)
}

fn is_warning(reason: Reason) -> bool {
    match reason {
        Reason::Failed
        | Reason::PromotionFailed
        | Reason::GatesFailed
        | Reason::GatesHeld
        | Reason::PreviewUnreachable
        | Reason::DeadlineExceeded
        | Reason::Aborted
        | Reason::RolledBack => true,
        Reason::Progressing
        | Reason::WaitingForChange
        | Reason::AwaitingPromotion
        | Reason::PromotionInProgress
        | Reason::PromotionDone
        | Reason::RunningGates
        | Reason::VerifyingPromotion => false,
    }
}

fn say(intent: &Intent, plan: &Plan) -> String {
    let revision = plan.promotion.as_ref().map_or_else(
        || intent.wanted_revision().map(|revision| revision.to_string()).unwrap_or_default(),
        |promotion| promotion.revision.to_string(),
    );
    match plan.reason {
        Reason::Progressing if plan.phase == Phase::Founding => format!("starting revision {revision}"),
        Reason::Progressing => format!("starting the preview of revision {revision}"),
        Reason::WaitingForChange => "at rest".into(),
        Reason::AwaitingPromotion if intent.rules.paused.is_some() => format!("revision {revision}: {}", plan.message),
        Reason::AwaitingPromotion => format!("revision {revision} may be promoted and waits for approval"),
        Reason::PromotionInProgress => {
            let commit = plan.promotion.as_ref().and_then(|promotion| promotion.status.commit.as_ref());
            match commit.map(|commit| (&commit.back, &commit.approved_by)) {
                Some((Some(back), _)) => format!("moving traffic back from revision {revision}: {}", back.message),
                Some((None, by)) => format!("moving traffic to revision {revision}, approved by {by}"),
                None => format!("moving traffic to revision {revision}"),
            }
        }
        Reason::PromotionDone => format!("revision {revision} is live"),
        Reason::RunningGates => format!("gates judge revision {revision}"),
        Reason::VerifyingPromotion => format!("gates judge revision {revision} behind the live Services"),
        Reason::Failed
        | Reason::PromotionFailed
        | Reason::GatesFailed
        | Reason::GatesHeld
        | Reason::PreviewUnreachable
        | Reason::DeadlineExceeded
        | Reason::Aborted
        | Reason::RolledBack => format!("revision {revision}: {}", plan.message),
    }
}
