//! PURE. Intent and what was observed -> facts -> phase -> plan. Cannot fail, knows no clock but `now`.

pub mod adopt;
pub mod facts;
pub mod judge;
mod people;
pub mod phase;
mod targets;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::Deployment,
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::ResourceExt;

use self::{
    facts::{Candidate, Facts, Judgement, Traffic as Moved, Upgrade, Wanted},
    judge::{Bench, Judged, Running},
};
use crate::{
    api::promotion::{Back, Commit, GateEvidence, Promotion, PromotionStatus, Verdict, Verifies},
    model::{
        Gate, Intent, Observed, Phase, Plan, Scale, Selector, Strategy, Wish,
        names::{self, Role, State},
        observed::{Connection, Record, is_terminating, side_of, verdict},
        plan::{
            ApprovalPlan, Closed, Confirms, PlannedPromotion, PlannedRecord, PlannedTrial, Reason, Replicas, Side,
            Traffic,
        },
        trial::Moment,
    },
};

/// Decides what every object should be.
#[must_use]
pub fn decide(intent: &Intent, observed: &Observed, now: Timestamp) -> Plan {
    let scene = Scene::read(intent, observed, now);
    let phase = phase::of(&scene.facts);
    let (reason, message) = scene.reason(phase);
    let promotion = scene.promotion(phase);
    Plan {
        phase,
        reason,
        message,
        sides: scene.sides(phase),
        live: scene.live_traffic(phase),
        preview: scene.preview_traffic(phase),
        records: scene.records(phase),
        closes: scene.closes(promotion.as_ref()),
        approval: scene.approval(phase),
        cleared: scene.cleared(),
        trials: scene.trials(),
        connect: scene.connect(phase),
        arms: phase == Phase::Switching && matches!(scene.facts.traffic, Moved::Stable | Moved::Armed),
        withdraws: scene.withdraws(phase),
        confirms: scene.confirms(phase),
        again: scene.again(promotion.as_ref()),
        founds: phase == Phase::Founding && scene.records(phase).iter().any(|record| record.ordinal > 0),
        promotion,
    }
}

/// Everything a plan is made of: the arguments of `decide`, the facts in them, and the names of the sides.
struct Scene<'a> {
    intent: &'a Intent,
    observed: &'a Observed,
    now: Timestamp,
    facts: Facts,
    judged: Judged,
    /// The upgrade under way, if it is about what is wanted.
    upgrade: Option<&'a Promotion>,
    /// What is on record of it.
    recorded: Option<PromotionStatus>,
    /// What somebody has judge once more.
    retry: Option<people::Retry<'a>>,
    /// The upgrade under way, if it ends: something else is wanted since, or it is given up.
    stale: Option<&'a Promotion>,
    /// The selector that takes traffic unless it is being moved.
    stable: Selector,
    /// The selector of the new Pods.
    candidate: Selector,
    /// What the candidate runs, and its name.
    staged: Option<(Wish, String)>,
    /// Pods that evidence is about, as they are now.
    judged_pods: Vec<crate::api::promotion::JudgedPod>,
}

impl<'a> Scene<'a> {
    fn read(intent: &'a Intent, observed: &'a Observed, now: Timestamp) -> Self {
        let traffic = facts::traffic(intent, observed);
        let moving = !matches!(traffic, Moved::Stable | Moved::Armed);
        let wanted = facts::wanted(intent, observed);
        let revision = intent.wanted_revision();
        let open = observed.open();
        let state = facts::upgrade(revision.as_ref(), observed);
        // While traffic moves, the upgrade is the one that moves it, whatever is wanted since.
        let current =
            moving || (state == Upgrade::Open && wanted != Wanted::Live && intent.strategy == Strategy::BlueGreen);
        let taken_up = || observed.promotions.last().map(AsRef::as_ref).filter(|_| state == Upgrade::Open);
        let (upgrade, stale) = if current { (open.or_else(taken_up), None) } else { (None, open) };
        let recorded = upgrade.map(people::standing);
        let retry = people::retry(upgrade, &intent.rules.gates).filter(|_| !moving);

        let stable = facts::live_selector(intent, observed);
        let candidate = match recorded.as_ref().and_then(|recorded| recorded.commit.as_ref()) {
            Some(commit) => Selector::from(commit.to.as_str()),
            None => adopt::candidate(observed, &stable, &intent.owner.uid),
        };
        let staged = match upgrade {
            Some(open) => {
                let recorded = observed.record(&open.spec.revision).map(|record| record.wish.clone());
                // A record that somebody deleted is written again from the spec, if that is still the same wish.
                let still_wanted =
                    || intent.wanted.clone().ok().filter(|wish| wish.revision().as_str() == open.spec.revision);
                recorded.or_else(still_wanted).map(|wish| (wish, open.spec.revision.clone()))
            }
            None => intent.wanted.as_ref().ok().map(|wish| (wish.clone(), wish.revision().to_string())),
        };

        let connection = facts::connection(observed, &candidate);
        let least = wanted_candidates(intent, observed, &stable, &candidate);
        let ready = staged.as_ref().map_or(Candidate::NotReady, |(_, revision)| {
            facts::candidate(observed, &candidate, revision, least, connection.as_ref())
        });
        let judged_pods = facts::pods(observed, &candidate);
        // Evidence is about Pods: one of them replaced or restarted, and nobody has judged what runs now. It is judged when
        // all of it is there.
        let there = if moving { verifies(traffic, observed) } else { ready != Candidate::NotReady };
        let stands = |status: &&PromotionStatus| !there || facts::as_judged(&status.pods, &judged_pods);
        let standing = recorded.as_ref().filter(stands);
        let once_more = |entry: &&GateEvidence| retry.as_ref().is_some_and(|retry| retry.gates.contains(&entry.name));
        let of = |entries: fn(&PromotionStatus) -> &Vec<GateEvidence>| -> Vec<GateEvidence> {
            standing.into_iter().flat_map(entries).filter(|entry| !once_more(entry)).cloned().collect()
        };
        let (evidence, rechecks) = (of(|status| &status.gates), of(|status| &status.rechecks));
        let may_run = if moving { there } else { ready == Candidate::Answers && upgrade.is_some() };
        let uid = upgrade.and_then(ResourceExt::uid);
        let bench = Bench { promotion: uid.as_deref(), observed, may_run, now };
        let pinned =
            |Verifies { policy, gate }: &Verifies| Gate::of(policy, gate, &intent.owner.namespace, &intent.ceilings);
        let commit = recorded.as_ref().and_then(|recorded| recorded.commit.as_ref());
        let asks = |moment| intent.rules.gates.iter().filter(move |gate| gate.when == moment).cloned();
        // From the first switched Service on it is those that the commit knew.
        let gates: Vec<_> = if moving {
            commit.iter().flat_map(|commit| &commit.verifies).map(pinned).collect()
        } else {
            asks(Moment::BeforePromotion).collect()
        };
        let mut judged = judge::judge(&gates, &evidence, &rechecks, bench);
        if moving {
            judged.stand_in(recorded.as_ref().map_or(&[][..], |recorded| &recorded.gates[..]), facts::marked(observed));
        } else {
            // On record from the start, as the others are.
            judged.evidence.extend(asks(Moment::AfterPromotion).map(|gate| judge::pending(&gate, bench)));
        }

        let facts = Facts {
            strategy: intent.strategy,
            founded: observed.promoted().is_some(),
            wanted,
            governed: intent.rules.govern(),
            gated: !intent.rules.gates.is_empty(),
            paused: intent.rules.paused.is_some(),
            upgrade: state,
            candidate: ready,
            gates: judged.judgement,
            approved: false,
            stopped: false,
            traffic,
        };
        let mut scene = Self {
            intent,
            observed,
            now,
            facts,
            judged,
            upgrade,
            recorded,
            retry,
            stale,
            stable,
            candidate,
            staged,
            judged_pods,
        };
        scene.facts.approved = scene.approved();
        scene.facts.stopped = scene.stopped();
        scene
    }

    /// Whether the staged revision may be promoted. Without a policy the annotation approves whatever is staged, as
    /// with Kong; everything else counts once it is on record, for the revision it was first seen with.
    fn approved(&self) -> bool {
        let (Some(recorded), Some(_)) = (&self.recorded, self.assent()) else { return false };
        let as_with_kong = !self.intent.rules.govern() && self.approves().is_none();
        (as_with_kong || recorded.approval.is_some()) && !self.voided()
    }

    /// An approval that was given for something else: another revision, or the same one with gates that are gone.
    fn voided(&self) -> bool {
        self.void_reason().is_some()
    }

    fn void_reason(&self) -> Option<String> {
        if self.moving() || (!self.intent.approved && self.approves().is_none()) {
            return None;
        }
        if let Some(stale) = self.stale {
            let given = stale.status.as_ref().is_some_and(|status| status.approval.is_some());
            let about = format!("it was given for revision {}", stale.spec.revision);
            return match self.given_up(stale) {
                Some((_, why)) => Some(format!("{about}, which was {why}")),
                // Without a policy it approves whatever is staged next, as with Kong; going back ends that too.
                None if given && (self.intent.rules.govern() || self.facts.wanted == Wanted::Live) => {
                    Some(format!("{about}, which is no longer wanted"))
                }
                None => None,
            };
        }
        if self.facts.upgrade == Upgrade::Rejected && self.facts.wanted == Wanted::New && self.intent.rules.govern() {
            return Some(
                "the revision was given up or moved back: spec.decision.retry of its Promotion takes it up again"
                    .into(),
            );
        }
        let recorded = self.recorded.as_ref()?;
        let rules = &self.intent.rules;
        let judges = |entry: &&GateEvidence| rules.gates.iter().any(|gate| gate.name == entry.name);
        let gates: Vec<_> =
            recorded.gates.iter().filter(|entry| !judges(entry)).map(|entry| entry.name.as_str()).collect();
        if !gates.is_empty() {
            return Some(format!("it was given while {} still judged", gates.join(", ")));
        }
        let policies: Vec<_> =
            recorded.policies.iter().filter(|name| !rules.policies.contains(name)).map(String::as_str).collect();
        (!policies.is_empty()).then(|| format!("it was given while {} still ruled", policies.join(", ")))
    }

    fn confirms(&self, phase: Phase) -> Option<Confirms> {
        match (phase, self.facts.traffic) {
            (Phase::Switching, Moved::Armed) => Some(Confirms::Policies),
            (Phase::InPlace, _) if self.facts.wanted == Wanted::New => Some(Confirms::Everything),
            _ => None,
        }
    }

    /// Traffic has begun to move: from here on, changed policies wait for the next upgrade.
    fn moving(&self) -> bool {
        !matches!(self.facts.traffic, Moved::Stable | Moved::Armed)
    }

    /// Traffic is on its way back, or has arrived there.
    fn goes_back(&self) -> bool {
        matches!(self.facts.traffic, Moved::Returning | Moved::Returned)
    }

    /// How long a phase may wait for machines.
    fn patience(&self) -> Duration {
        let committed = self.commit().filter(|_| self.moving());
        committed.map_or(self.intent.rules.progress_deadline, |commit| seconds(commit.progress_deadline_seconds))
    }

    /// How long the replaced side lives on.
    fn delay(&self) -> Duration {
        let committed = self.commit().filter(|_| self.moving());
        committed.map_or(self.intent.rules.scale_down_delay, |commit| seconds(commit.scale_down_delay_seconds))
    }

    fn approval(&self, phase: Phase) -> ApprovalPlan {
        if !self.intent.approved {
            return ApprovalPlan::Keep;
        }
        if let Some(reason) = self.void_reason() {
            return ApprovalPlan::Void(reason);
        }
        // Only until the promotion is on record: an annotation that comes later is about the next one.
        let done = phase == Phase::Draining && !facts::marked(self.observed);
        if done || self.goes_back() { ApprovalPlan::Consume } else { ApprovalPlan::Keep }
    }

    /// What is live by record; before founding, what is wanted.
    fn live_wish(&self) -> Option<Wish> {
        self.observed.promoted().map(|record| record.wish.clone()).or_else(|| self.intent.wanted.clone().ok())
    }

    /// What the stable side runs: what is live by record, unless the candidate has that place already.
    fn stable_wish(&self) -> Option<Wish> {
        if facts::marked(self.observed) {
            self.standing_record().map(|record| record.wish.clone())
        } else {
            self.live_wish()
        }
    }

    fn commit(&self) -> Option<&Commit> {
        self.recorded.as_ref()?.commit.as_ref()
    }

    fn sides(&self, phase: Phase) -> Vec<Side> {
        let (intent, mut sides) = (self.intent, Vec::new());
        let mut side = |selector: &Selector, wish: Option<Wish>, state, replicas| {
            let renews = state == Some(State::Preview) && facts::renews(self.observed, selector, self.now);
            sides.extend(wish.map(|wish| Side { selector: selector.clone(), wish, state, replicas, renews }));
        };
        let count = match intent.scale {
            Scale::Fixed(replicas) => Replicas::Exactly(replicas),
            Scale::Horizontal { min, .. } => Replicas::From(min),
        };
        let (none, candidates) = (
            Replicas::Exactly(0),
            Replicas::Exactly(wanted_candidates(intent, self.observed, &self.stable, &self.candidate)),
        );
        let staged = || self.staged.as_ref().map(|(wish, _)| wish.clone());
        match phase {
            Phase::Founding => {
                let standing = || self.standing_record().map(|record| record.wish.clone());
                let wish = intent.wanted.clone().ok().or_else(standing);
                side(&self.stable, wish.clone(), Some(State::Live), count);
                if intent.strategy == Strategy::BlueGreen {
                    // Empty, and there from the start: nothing of it has to be waited for later.
                    side(&self.candidate, wish, Some(State::Preview), none);
                }
            }
            Phase::InPlace => {
                let wish = intent.wanted.clone().ok().or_else(|| self.live_wish());
                side(&self.stable, wish, Some(State::Live), count);
            }
            Phase::Ungated => side(&self.stable, self.live_wish(), Some(State::Live), count),
            Phase::Settled | Phase::Rejected => {
                side(&self.stable, self.live_wish(), Some(State::Live), count);
                let (wish, replicas) = match self.lingering() {
                    Some((wish, _)) => (Some(wish.clone()), facts::asked(self.observed, &self.candidate)),
                    None => (self.live_wish(), None),
                };
                side(&self.candidate, wish, Some(State::Preview), replicas.map_or(none, Replicas::Exactly));
            }
            Phase::Staging | Phase::Judging | Phase::Refused | Phase::Waiting | Phase::Switching | Phase::Verifying => {
                side(&self.stable, self.stable_wish(), Some(State::Live), count);
                side(&self.candidate, staged(), Some(State::Preview), candidates);
            }
            Phase::Draining => {
                side(&self.candidate, staged(), Some(State::Live), count);
                if self.drained() {
                    let next = self.candidate.next(&intent.owner.uid);
                    side(&next, staged(), Some(State::Preview), none);
                } else {
                    // Rendered from the wish that was live before, as it was: only its label goes.
                    let before = self.standing_record();
                    side(&self.stable, before.map(|record| record.wish.clone()), None, count);
                }
            }
        }
        sides
    }

    /// What the Deployment of the stable side was rendered from.
    fn standing_record(&self) -> Option<&Record> {
        let deployment = self.observed.deployment(&self.stable)?;
        self.observed.record(deployment.annotations().get(names::REVISION)?)
    }

    fn live_traffic(&self, phase: Phase) -> Traffic {
        let ports = |wish: Option<Wish>| wish.map(|wish| wish.ports).unwrap_or_default();
        let staged = || self.staged.as_ref().map(|(wish, _)| wish.clone());
        let at = |selector: &Selector, wish, promotion| Traffic {
            selector: selector.clone(),
            ports: ports(wish),
            promotion,
        };
        let mark = || self.upgrade.map(ResourceExt::name_any);
        match (phase, self.facts.traffic) {
            // Only the admin Service has moved, and nobody is left to take the rest: everything is asked once more.
            (Phase::Switching, Moved::Moving) if self.leads_nowhere() => at(&self.stable, self.stable_wish(), mark()),
            (Phase::Verifying | Phase::Draining, _)
            | (Phase::Switching, Moved::Armed | Moved::Moving | Moved::Moved) => at(&self.candidate, staged(), mark()),
            // It stays where it is served until it is served over there.
            (Phase::Switching, Moved::Returning) if self.no_way_back().is_some() => {
                at(&self.candidate, staged(), mark())
            }
            (Phase::Switching, Moved::Returning | Moved::Returned) => at(&self.stable, self.stable_wish(), mark()),
            (Phase::Founding | Phase::InPlace, _) => {
                at(&self.stable, self.intent.wanted.clone().ok().or_else(|| self.live_wish()), None)
            }
            _ => at(&self.stable, self.live_wish(), None),
        }
    }

    /// Users are still served by the stable side, and would not be by the candidate.
    fn leads_nowhere(&self) -> bool {
        self.observed.selects(State::Live, Role::Ingress).as_ref() == Some(&self.stable)
            && facts::serves(self.observed, &self.stable)
            && !facts::serves(self.observed, &self.candidate)
    }

    fn preview_traffic(&self, phase: Phase) -> Option<Traffic> {
        let (selector, wish) = match phase {
            Phase::InPlace | Phase::Ungated => return None,
            Phase::Founding if self.intent.strategy == Strategy::InPlace => return None,
            Phase::Founding | Phase::Settled | Phase::Rejected => (self.candidate.clone(), self.live_wish()),
            Phase::Draining => {
                (self.candidate.next(&self.intent.owner.uid), self.staged.as_ref().map(|(wish, _)| wish.clone()))
            }
            Phase::Staging | Phase::Judging | Phase::Refused | Phase::Waiting | Phase::Switching | Phase::Verifying => {
                (self.candidate.clone(), self.staged.as_ref().map(|(wish, _)| wish.clone()))
            }
        };
        Some(Traffic { selector, ports: wish.map(|wish| wish.ports).unwrap_or_default(), promotion: None })
    }

    /// A wish is on record before anything runs it, and the live one is the one with the highest ordinal.
    fn records(&self, phase: Phase) -> Vec<PlannedRecord> {
        let record = |wish: &Wish, ordinal| PlannedRecord { revision: wish.revision(), wish: wish.clone(), ordinal };
        // What is taken over comes first: it is what lives.
        let taken_over = self.observed.records.iter().filter(|record| record.name.is_none());
        let mut records: Vec<_> = taken_over.map(|known| record(&known.wish, known.ordinal)).collect();
        let next = self.observed.promoted().map_or(0, |record| record.ordinal) + 1;
        let known = |wish: &Wish| self.observed.record(wish.revision().as_str()).map_or(0, |record| record.ordinal);
        records.extend(self.staged.as_ref().and_then(|(wish, _)| match phase {
            Phase::Founding => {
                // Live for good only once it was ready: until then a better spec replaces it in place.
                let deployment = self.observed.deployment(&self.stable);
                let ready = facts::ready(deployment, wish.revision().as_str(), self.intent.scale.least());
                Some(record(wish, if ready { 1 } else { 0 }))
            }
            Phase::InPlace if self.facts.wanted == Wanted::New => Some(record(wish, next)),
            Phase::Draining if !facts::marked(self.observed) => Some(record(wish, next)),
            Phase::Staging | Phase::Judging | Phase::Refused | Phase::Waiting | Phase::Switching | Phase::Verifying => {
                Some(record(wish, known(wish)))
            }
            Phase::InPlace | Phase::Draining | Phase::Ungated | Phase::Settled | Phase::Rejected => None,
        }));
        // What traffic goes back to is live again by record before it does.
        let returns = self.facts.traffic == Moved::Returning && facts::marked(self.observed);
        records.extend(self.stable_wish().filter(|_| returns).map(|wish| record(&wish, next)));
        records
    }

    fn trials(&self) -> Vec<PlannedTrial> {
        // On its way back traffic has left what they judge.
        if self.goes_back() {
            return Vec::new();
        }
        let running = self.judged.running.iter();
        running
            .map(|Running { gate, key, digest, state, may_begin }| {
                let granted = gate.grants.targets.as_deref();
                let (targets, absent) = targets::of(self.intent, self.observed, &self.candidate, &self.stable, granted);
                PlannedTrial {
                    id: format!("{}/{}/{}", self.intent.owner.namespace, self.intent.owner.name, key.gate),
                    key: key.clone(),
                    may_begin: *may_begin,
                    digest: digest.clone(),
                    gate: gate.clone(),
                    moment: gate.when,
                    targets,
                    absent,
                    state: state.clone(),
                    candidate: self.staged.as_ref().map(|(wish, revision)| {
                        targets::manifest(self.intent, self.observed, &self.candidate, wish, revision)
                    }),
                    stable: self.observed.promoted().map(|record| {
                        let (wish, revision) = (&record.wish, record.revision.as_str());
                        targets::manifest(self.intent, self.observed, &self.stable, wish, revision)
                    }),
                }
            })
            .collect()
    }

    fn connect(&self, phase: Phase) -> Option<crate::model::observed::ConnectionKey> {
        let asks =
            self.facts.governed && matches!(phase, Phase::Judging | Phase::Refused | Phase::Waiting | Phase::Switching);
        asks.then(|| facts::connection(self.observed, &self.candidate)).flatten()
    }

    fn reason(&self, phase: Phase) -> (Reason, String) {
        let plain = |reason| (reason, String::new());
        match phase {
            Phase::Founding => (Reason::Progressing, "Rollout initialized".into()),
            Phase::InPlace | Phase::Ungated => plain(Reason::WaitingForChange),
            Phase::Settled => match &self.intent.wanted {
                Ok(_) => plain(Reason::WaitingForChange),
                Err(refusal) => (Reason::Failed, format!("{}: {}", refusal.field, refusal.message)),
            },
            Phase::Staging => {
                let complaint = facts::complaint(self.observed, &self.candidate);
                let message = match (&complaint, self.upgrade) {
                    (Some(complaint), _) => format!("Preview Deployment not yet ready: {complaint}"),
                    (None, Some(_)) => "Preview Deployment not yet ready".into(),
                    (None, None) => "Rollout initialized".into(),
                };
                if self.overdue() { (Reason::DeadlineExceeded, message) } else { (Reason::Progressing, message) }
            }
            Phase::Judging => match (self.facts.candidate, &self.judged.loading) {
                (Candidate::Silent, _) => {
                    let reason = if self.overdue() { Reason::DeadlineExceeded } else { Reason::PreviewUnreachable };
                    (reason, self.silence())
                }
                (_, Some(loading)) if self.overdue() => (Reason::DeadlineExceeded, loading.clone()),
                _ => (Reason::RunningGates, self.judged.message.clone()),
            },
            Phase::Refused => {
                let reason = match self.facts.gates {
                    Judgement::Failed => Reason::GatesFailed,
                    _ => Reason::GatesHeld,
                };
                let name = self.upgrade.map(ResourceExt::name_any).unwrap_or_default();
                let what = format!("change spec, policy or plugin, or set spec.decision.retry of Promotion {name}");
                (reason, format!("{}; {what}", self.judged.message))
            }
            Phase::Waiting => match &self.intent.rules.paused {
                Some(policy) => (Reason::AwaitingPromotion, format!("policy {policy} is paused: nothing is promoted")),
                None => plain(Reason::AwaitingPromotion),
            },
            Phase::Switching => (Reason::PromotionInProgress, self.way_back()),
            Phase::Verifying => (Reason::VerifyingPromotion, self.judged.message.clone()),
            Phase::Draining => plain(Reason::PromotionDone),
            Phase::Rejected => self.rejection(),
        }
    }

    /// What is said of traffic that goes back, or should.
    fn way_back(&self) -> String {
        let committed = self.commit().and_then(|commit| commit.back.clone());
        let Some(back) = committed.or_else(|| self.back()) else { return String::new() };
        match self.no_way_back().filter(|_| self.facts.traffic != Moved::Returned) {
            Some(why) => format!("{}; {why}: traffic goes back once it serves again", back.message),
            None => back.message,
        }
    }

    /// Why the revision is not tried again by itself, and what would.
    fn rejection(&self) -> (Reason, String) {
        let newest = self.observed.promotions.last();
        let (verdict, why, name) = match (self.stale.and_then(|stale| self.given_up(stale)), newest) {
            (Some((verdict, why)), _) => (verdict, why, self.stale.map(ResourceExt::name_any)),
            (None, Some(newest)) => {
                let said = newest.status.as_ref().and_then(|status| status.message.clone());
                (verdict(newest).unwrap_or(Verdict::Failed), said.unwrap_or_default(), Some(newest.name_any()))
            }
            (None, None) => (Verdict::Failed, String::new(), None),
        };
        let reason = match verdict {
            Verdict::Aborted => Reason::Aborted,
            Verdict::RolledBack => Reason::RolledBack,
            Verdict::Failed | Verdict::Promoted | Verdict::Superseded | Verdict::Reverted => Reason::PromotionFailed,
        };
        let name = name.unwrap_or_default();
        (reason, format!("{why}; change the spec, or set spec.decision.retry of Promotion {name}"))
    }

    fn silence(&self) -> String {
        let key = facts::connection(self.observed, &self.candidate);
        match key.and_then(|key| self.observed.connections.get(&key)) {
            Some(Connection::Silent(why)) => format!("the preview does not answer: {why}"),
            _ => String::new(),
        }
    }

    /// A phase that waits for machines has waited long enough.
    fn overdue(&self) -> bool {
        let since = self.recorded.as_ref().and_then(waiting_since);
        facts::overdue(since.map(|since| since.0), self.patience(), self.now)
    }

    /// The replaced side has lived on long enough, counted from when all traffic had moved. It is not waited for while
    /// the new Pods are broken, unless something else is wanted by now: then waiting would keep the cure away.
    fn drained(&self) -> bool {
        let Some(status) = &self.recorded else { return false };
        if self.converged() {
            facts::overdue(status.switched_at.as_ref().map(|at| at.0), self.delay(), self.now)
        } else {
            let moved_at = status.commit.as_ref().and_then(|commit| commit.at.as_ref());
            let late = facts::overdue(moved_at.map(|at| at.0), self.patience(), self.now);
            self.facts.wanted == Wanted::New && facts::marked(self.observed) && late
        }
    }

    /// Enough ready Pods of the candidate, and nobody else, take traffic.
    fn converged(&self) -> bool {
        facts::converged(self.intent, self.observed, &self.stable, &self.candidate)
    }

    /// The last status of an upgrade that ends because something else is wanted, or it is given up.
    fn ended(&self, stale: &Promotion) -> PromotionStatus {
        let other = if self.facts.wanted == Wanted::Live { Verdict::Reverted } else { Verdict::Superseded };
        let (verdict, why) = self.given_up(stale).unwrap_or((other, String::new()));
        let status = with_verdict(stale, verdict, why);
        PromotionStatus { decided: self.decided(stale, &status.decided), ..status }
    }

    /// What ends beside the planned one.
    fn closes(&self, planned: Option<&PlannedPromotion>) -> Vec<Closed> {
        let replaced = self.stale.filter(|stale| planned.is_none_or(|planned| planned.name != stale.name_any()));
        let replaced = replaced.map(|stale| (stale, self.ended(stale)));
        let left = self.observed.left_open().map(|left| (left, with_verdict(left, Verdict::Superseded, String::new())));
        let closed = |(ends, status): (&Promotion, _)| Closed {
            name: ends.name_any(),
            resource_version: ends.resource_version().unwrap_or_default(),
            status,
        };
        left.chain(replaced).map(closed).collect()
    }

    fn promotion(&self, phase: Phase) -> Option<PlannedPromotion> {
        let owner = &self.intent.owner;
        let under_way = matches!(
            phase,
            Phase::Staging
                | Phase::Judging
                | Phase::Refused
                | Phase::Waiting
                | Phase::Switching
                | Phase::Verifying
                | Phase::Draining
        );
        let staged = self.staged.as_ref().filter(|_| under_way);
        let Some((_, revision)) = staged else {
            let known = |promotion: &Promotion, status| PlannedPromotion {
                name: promotion.name_any(),
                opens: false,
                revision: promotion.spec.revision.as_str().into(),
                generation: promotion.spec.generation,
                resource_version: promotion.resource_version(),
                status,
            };
            return match self.stale {
                Some(stale) => Some(known(stale, self.ended(stale))),
                None => self.lifted(phase).map(|(rejected, status)| known(rejected, status)),
            };
        };
        Some(PlannedPromotion {
            name: self
                .upgrade
                .map_or_else(|| names::promotion(&owner.name, owner.generation, revision), ResourceExt::name_any),
            opens: self.upgrade.is_none(),
            revision: revision.as_str().into(),
            generation: self.upgrade.map_or(owner.generation, |open| open.spec.generation),
            resource_version: self.upgrade.and_then(ResourceExt::resource_version),
            status: self.promotion_status(phase),
        })
    }

    /// A rejection ends where something else is wanted: wanted again, the revision is tried again.
    fn lifted(&self, phase: Phase) -> Option<(&'a Promotion, PromotionStatus)> {
        let newest = self.observed.promotions.last().filter(|newest| facts::rejected(newest))?;
        let ends = phase == Phase::Settled && self.facts.wanted == Wanted::Live;
        let status = PromotionStatus { lifted_at: Some(Time(self.now)), ..newest.status.clone()? };
        ends.then_some((newest.as_ref(), status))
    }

    fn promotion_status(&self, phase: Phase) -> PromotionStatus {
        let before = self.recorded.clone().unwrap_or_default();
        // Each wait has its own clock: it stops where no machine is waited for. Traffic that had arrived and left again is
        // waited for anew.
        let arrived = before.switched_at.is_some();
        let waits = match phase {
            Phase::Staging | Phase::Judging => true,
            Phase::Switching => arrived && self.facts.traffic == Moved::Moving,
            _ => false,
        };
        let moving = self.moving();
        let approval = match (self.assent().filter(|_| !self.voided()), &before.approval) {
            _ if moving => before.approval.clone(),
            // When it was first seen.
            (Some(now), Some(known)) if now.by == known.by && now.reason == known.reason => Some(known.clone()),
            (now, _) => now,
        };
        // What everybody's preview goes through is in its phase; a write that says no more would be one too many.
        let message = match phase {
            Phase::Staging => facts::complaint(self.observed, &self.candidate).unwrap_or_default(),
            _ => self.reason(phase).1,
        };
        let status = PromotionStatus {
            progressing_since: if waits { before.progressing_since.clone().or(Some(Time(self.now))) } else { None },
            policies: if moving { before.policies.clone() } else { self.intent.rules.policies.clone() },
            gates: self.judged.evidence.clone(),
            rechecks: if moving { Vec::new() } else { self.judged.rechecks.clone() },
            pods: match (phase, self.facts.candidate) {
                (Phase::Verifying, _) => self.pods(&before),
                (_, Candidate::NotReady) => before.pods.clone(),
                _ if moving => before.pods.clone(),
                _ => self.pods(&before),
            },
            history: self.history(&before),
            decided: self.upgrade.map(|open| self.decided(open, &before.decided)).unwrap_or_default(),
            approval,
            commit: self.next_commit(phase),
            switched_at: match phase {
                // Where traffic left the new Pods again the replaced side lives on, counted anew.
                Phase::Draining if !self.converged() => None,
                Phase::Draining | Phase::Verifying => before.switched_at.clone().or(Some(MicroTime(self.now))),
                Phase::Switching => before.switched_at.clone(),
                _ => None,
            },
            verdict: self.verdict(phase),
            ..before
        };
        let name = status.verdict.map_or_else(|| format!("{phase:?}"), |verdict| format!("{verdict:?}"));
        let mut status = with_phase(status, &name, message);
        status.summary = summary(&status, self.intent.rules.gates.len());
        status.deadline = self.deadline(phase, &status).filter(|_| status.verdict.is_none()).map(shown);
        status
    }

    /// When what the phase waits for has to be there, or what it keeps goes.
    fn deadline(&self, phase: Phase, status: &PromotionStatus) -> Option<Timestamp> {
        let after = |since: Option<Timestamp>, limit| since.map(|since| facts::after(since, limit));
        let progressing = || after(status.progressing_since.as_ref().map(|at| at.0), self.patience());
        match phase {
            Phase::Staging => progressing(),
            // A gate may take longer than machines may.
            Phase::Judging => self.judged.ends.or_else(progressing),
            Phase::Switching => {
                let forward = status.commit.as_ref().is_some_and(|commit| commit.back.is_none());
                after(waiting_since(status).filter(|_| forward).map(|at| at.0), self.patience())
            }
            Phase::Verifying => self.judged.ends,
            Phase::Draining => after(status.switched_at.as_ref().map(|at| at.0), self.delay()),
            Phase::Founding
            | Phase::InPlace
            | Phase::Ungated
            | Phase::Settled
            | Phase::Refused
            | Phase::Waiting
            | Phase::Rejected => None,
        }
    }

    /// The Pods evidence is about: those that were there when judging began, and before traffic moves those too that came
    /// while gates were still asked, for some were asked about them.
    fn pods(&self, before: &PromotionStatus) -> Vec<crate::api::promotion::JudgedPod> {
        let stand = !before.pods.is_empty() && facts::as_judged(&before.pods, &self.judged_pods);
        let more = !self.moving() && !self.judged.complete && self.judged_pods.len() > before.pods.len();
        if stand && !more { before.pods.clone() } else { self.judged_pods.clone() }
    }

    fn next_commit(&self, phase: Phase) -> Option<Commit> {
        match (phase, self.commit()) {
            (Phase::Switching, None) => Some(Commit {
                at: Some(Time(self.now)),
                from: self.stable.as_str().to_owned(),
                to: self.candidate.as_str().to_owned(),
                approved_by: self.assent().map(|approval| approval.by).unwrap_or_default(),
                back: None,
                live_generation: self.observed.live_generation(),
                verifies: self.verifies(),
                scale_down_delay_seconds: whole_seconds(self.intent.rules.scale_down_delay),
                progress_deadline_seconds: whole_seconds(self.intent.rules.progress_deadline),
            }),
            // Late before anything was switched: nobody looked, and nobody was late.
            (Phase::Switching, Some(commit)) if !self.moving() && self.overdue() => {
                Some(Commit { at: Some(Time(self.now)), ..commit.clone() })
            }
            (Phase::Switching, Some(commit)) => {
                let back = commit.back.clone().or_else(|| self.back().filter(|_| self.no_way_back().is_none()));
                let back = back.map(|back| Back {
                    returned_at: (self.facts.traffic == Moved::Returned).then_some(MicroTime(self.now)),
                    ..back
                });
                Some(Commit { back, ..commit.clone() })
            }
            (Phase::Verifying | Phase::Draining, commit) => commit.cloned(),
            // Whatever broke before the first Service was switched voids it; the approval stands.
            _ => None,
        }
    }

    /// A commit that is on record goes before a Service was switched.
    fn withdraws(&self, phase: Phase) -> bool {
        let committed = |ends: &Promotion| ends.status.as_ref().is_some_and(|status| status.commit.is_some());
        let void = || self.commit().is_some() && self.next_commit(phase).is_none();
        !self.moving() && (self.observed.left_open().chain(self.stale).any(committed) || void())
    }

    /// The gates that are to judge once traffic has moved.
    fn verifies(&self) -> Vec<Verifies> {
        let after = self.intent.rules.gates.iter().filter(|gate| gate.when == Moment::AfterPromotion);
        after.map(|gate| Verifies { policy: gate.policy.clone(), gate: gate.entry.clone() }).collect()
    }

    /// Why traffic should go back, if it should.
    fn back(&self) -> Option<Back> {
        self.called_back().or_else(|| self.unverified()).or_else(|| self.late())
    }

    /// Behind the live Services, whatever is not a pass moves traffic back.
    fn unverified(&self) -> Option<Back> {
        let refused =
            self.facts.traffic == Moved::Moved && matches!(self.facts.gates, Judgement::Failed | Judgement::Held);
        refused.then(|| Back { verdict: Verdict::RolledBack, message: self.judged.message.clone(), returned_at: None })
    }

    fn late(&self) -> Option<Back> {
        let late = self.facts.traffic == Moved::Moving && self.overdue();
        late.then(|| Back {
            verdict: Verdict::Failed,
            message: "traffic did not reach the new Pods in time and was moved back".into(),
            returned_at: None,
        })
    }

    /// What traffic was moved back from lives on like a replaced side, for whoever still speaks to it: its wish, and until
    /// when.
    fn lingering(&self) -> Option<(&'a Wish, Timestamp)> {
        let newest = self.observed.promotions.last()?;
        let commit = newest.status.as_ref()?.commit.as_ref()?;
        let returned = commit.back.as_ref()?.returned_at.as_ref()?;
        let until = facts::after(returned.0, seconds(commit.scale_down_delay_seconds));
        let wish = &self.observed.record(&newest.spec.revision)?.wish;
        (until > self.now && commit.to == self.candidate.as_str()).then_some((wish, until))
    }

    fn verdict(&self, phase: Phase) -> Option<Verdict> {
        match (phase, self.facts.traffic) {
            (Phase::Draining, _) if self.drained() && self.observed.deployment(&self.stable).is_none() => {
                Some(Verdict::Promoted)
            }
            (Phase::Switching, Moved::Returned) => {
                let back = self.commit().and_then(|commit| commit.back.as_ref());
                Some(back.map_or(Verdict::Failed, |back| back.verdict))
            }
            _ => None,
        }
    }

    fn again(&self, promotion: Option<&PlannedPromotion>) -> Option<Timestamp> {
        let status = promotion.map(|promotion| &promotion.status);
        let due =
            |since: Option<Timestamp>, limit| since.map(|since| facts::after(since, limit)).filter(|at| *at > self.now);
        let waiting = due(status.and_then(waiting_since).map(|at| at.0), self.patience());
        let draining = due(status.and_then(|status| status.switched_at.as_ref()).map(|at| at.0), self.delay());
        // An evidence's time that is over waits for the candidate, and the candidate wakes us.
        let judging = self.judged.again.filter(|at| *at > self.now);
        let lingering = self.lingering().map(|(_, until)| until);
        [waiting, draining, judging, lingering].into_iter().flatten().min()
    }
}

/// A deadline as it is on record, in whole seconds, as is most of what it is counted from: with a part of one it would differ
/// from what the API has kept, and be written in every pass.
fn shown(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// Traffic has arrived, and what judges behind the live Services can be asked.
fn verifies(traffic: Moved, observed: &Observed) -> bool {
    traffic == Moved::Moved && !facts::marked(observed)
}

/// Since when machines are waited for. Traffic that had arrived and left again is waited for anew.
fn waiting_since(status: &PromotionStatus) -> Option<&Time> {
    match &status.commit {
        Some(commit) if status.switched_at.is_none() => commit.at.as_ref(),
        _ => status.progressing_since.as_ref(),
    }
}

fn seconds(count: i32) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or_default())
}

fn whole_seconds(span: Duration) -> i32 {
    i32::try_from(span.as_secs()).unwrap_or(i32::MAX)
}

fn with_phase(status: PromotionStatus, phase: &str, message: String) -> PromotionStatus {
    PromotionStatus { phase: Some(phase.to_owned()), message: (!message.is_empty()).then_some(message), ..status }
}

/// The last status of an upgrade that ends before any traffic moved.
fn with_verdict(promotion: &Promotion, verdict: Verdict, why: String) -> PromotionStatus {
    let before = promotion.status.clone().unwrap_or_default();
    let status = PromotionStatus { verdict: Some(verdict), commit: None, deadline: None, ..before };
    with_phase(status, &format!("{verdict:?}"), why)
}

fn summary(status: &PromotionStatus, gates: usize) -> Option<String> {
    use crate::api::promotion::GateOutcome;
    let passed = status.gates.iter().filter(|entry| entry.outcome == GateOutcome::Pass).count();
    let total = gates.max(status.gates.len());
    (total > 0).then(|| format!("{passed}/{total}"))
}

/// How many Pods the candidate has: as many as the live side, so that the switch costs no capacity. Under an autoscaler
/// as many as it gave the live side, and never fewer than were judged. At least one: nobody can judge nothing.
fn wanted_candidates(intent: &Intent, observed: &Observed, stable: &Selector, candidate: &Selector) -> i32 {
    let wanted = match intent.scale {
        Scale::Fixed(replicas) => Some(replicas),
        Scale::Horizontal { min, .. } => {
            [Some(min), facts::asked(observed, stable), facts::asked(observed, candidate)].into_iter().flatten().max()
        }
    };
    wanted.unwrap_or_default().max(1)
}

/// Deployments that no side needs any more, by name. One that takes live traffic is needed, whatever was planned.
#[must_use]
pub fn retired(observed: &Observed, plan: &Plan) -> Vec<String> {
    let serves = |side: &Selector| {
        [names::Role::Ingress, names::Role::Admin]
            .iter()
            .any(|role| observed.selects(State::Live, *role).as_ref() == Some(side))
    };
    let stays = |side: &Selector| plan.sides.iter().any(|planned| planned.selector == *side) || serves(side);
    // Deleted by somebody, and another one has taken its place in full.
    let replaced = |deployment: &Deployment, side: &Selector| {
        let other = observed.deployment(side).filter(|other| !is_terminating(*other));
        is_terminating(deployment)
            && other.is_some_and(|other| {
                let asked = other.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
                let available = other.status.as_ref().and_then(|status| status.available_replicas).unwrap_or_default();
                available >= asked
            })
    };
    let surplus = observed
        .deployments
        .iter()
        .filter(|deployment| side_of(deployment).is_none_or(|side| !stays(&side) || replaced(deployment, &side)));
    surplus.map(|deployment| deployment.name_any()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::promotion::GateOutcome, dataplane::fixtures};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    /// `kong:3.9` live by record, its Deployment and its Services in place.
    fn settled() -> Observed {
        let wish = fixtures::intent("kong:3.9").wanted.expect("a wish");
        let selector = Selector::founding("uid");
        let labels = json!({names::SELECTOR: selector.as_str(), names::DEPLOYMENT_STATE: "live"});
        let deployment = json!({"metadata": {"name": "live", "labels": labels}});
        let service = |role: Role| {
            let service = json!({"metadata": {"name": role.as_str()}, "spec": {"selector": {names::SELECTOR: selector.as_str()}}});
            ((State::Live, role), Arc::new(serde_json::from_value(service).expect("a Service")))
        };
        Observed {
            records: vec![Record {
                name: Some("record".into()),
                version: Some("1".into()),
                revision: wish.revision(),
                wish,
                template: None,
                ordinal: 1,
            }],
            deployments: vec![Arc::new(serde_json::from_value(deployment).expect("a Deployment"))],
            services: [service(Role::Ingress), service(Role::Admin)].into(),
            ..Observed::default()
        }
    }

    #[test]
    fn a_bent_service_neither_moves_the_live_side_nor_removes_it() {
        let mut observed = settled();
        let bent = json!({"metadata": {"name": "ingress"}, "spec": {"selector": {names::SELECTOR: "somebody else"}}});
        observed
            .services
            .insert((State::Live, Role::Ingress), Arc::new(serde_json::from_value(bent).expect("a Service")));
        let plan = decide(&fixtures::intent("kong:3.9"), &observed, now());
        assert_eq!((plan.phase, &plan.live.selector), (Phase::Settled, &Selector::founding("uid")));
        assert!(retired(&observed, &plan).is_empty());
    }

    #[test]
    fn a_deployment_whose_label_somebody_bent_is_the_side_it_selects() {
        for label in [json!("bent"), Value::Null] {
            let (intent, mut observed) = (fixtures::intent("kong:3.9"), settled());
            let mut live = json!(observed.deployments[0].as_ref());
            let side = live["metadata"]["labels"][names::SELECTOR].take();
            live["spec"] = json!({"selector": {"matchLabels": {names::SELECTOR: side}}, "template": {}});
            live["metadata"]["labels"][names::SELECTOR] = label;
            live["metadata"]["labels"].as_object_mut().expect("labels").retain(|_, label| !label.is_null());
            observed.deployments = vec![Arc::new(serde_json::from_value(live).expect("a Deployment"))];
            // Nobody's traffic depends on it just now, either.
            observed.services.clear();
            let plan = decide(&intent, &observed, now());
            assert!(retired(&observed, &plan).is_empty());
        }
    }

    #[test]
    fn a_deployment_that_takes_live_traffic_is_never_retired() {
        let observed = settled();
        let mut plan = decide(&fixtures::intent("kong:3.9"), &observed, now());
        plan.sides.clear();
        assert!(retired(&observed, &plan).is_empty());
    }

    #[test]
    fn evidence_whose_time_is_over_does_not_ask_for_a_pass_at_once() {
        let mut observed = settled();
        let intent = fixtures::governed("kong:3.10");
        let opened = decide(&intent, &observed, now()).promotion.expect("an upgrade");
        let gate = &intent.rules.gates[0];
        let waiting = GateEvidence {
            name: gate.name.clone(),
            entry_hash: gate.hash.clone(),
            outcome: GateOutcome::Retrying,
            not_before: Some(MicroTime(now() - std::time::Duration::from_secs(5))),
            ..GateEvidence::default()
        };
        let mut promotion = Promotion::new(
            &opened.name,
            crate::api::promotion::PromotionSpec {
                data_plane: "dp".into(),
                revision: opened.revision.to_string(),
                generation: 1,
                decision: None,
            },
        );
        promotion.status = Some(PromotionStatus { gates: vec![waiting], ..opened.status });
        observed.promotions.push(Arc::new(promotion));
        observed.records.push(Record {
            name: Some("staged".into()),
            version: Some("1".into()),
            revision: opened.revision,
            wish: intent.wanted.clone().expect("a wish"),
            template: None,
            ordinal: 0,
        });
        let plan = decide(&intent, &observed, now());
        assert_eq!(plan.phase, Phase::Staging);
        assert!(plan.again.is_some_and(|at| at > now()), "{:?}", plan.again);
    }

    #[test]
    fn a_deleted_record_is_written_again_from_the_spec() {
        let mut observed = settled();
        let intent = fixtures::intent("kong:3.10");
        let opened = decide(&intent, &observed, now()).promotion.expect("an upgrade");
        let spec = crate::api::promotion::PromotionSpec {
            data_plane: "dp".into(),
            revision: opened.revision.to_string(),
            generation: 1,
            decision: None,
        };
        observed.promotions.push(Arc::new(Promotion::new(&opened.name, spec)));
        let plan = decide(&intent, &observed, now());
        assert_eq!(plan.records.iter().map(|record| record.revision.clone()).collect::<Vec<_>>(), [opened.revision]);
        assert_eq!(plan.sides.len(), 2, "the candidate keeps its Deployment");
    }
}
