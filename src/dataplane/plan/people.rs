//! PURE. What people decide about an upgrade: approvals, retries, and the ways out.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{Scene, facts};
use crate::{
    api::promotion::{Act, Approval, Back, Decided, Decision, GateEvidence, Promotion, PromotionStatus, Verdict},
    model::{
        Gate,
        observed::{is_terminating, verdict},
        plan::Cleared,
    },
};

/// Entries that are kept of what went before.
const KEPT: usize = 8;

/// What somebody has judge once more.
pub(super) struct Retry<'a> {
    decision: &'a Decision,
    /// An upgrade that was given up or moved back is taken up again.
    reopens: bool,
    /// Names of gates.
    pub(super) gates: Vec<String>,
}

/// The retry that this pass carries out; none where it names no gate of an upgrade that is under way.
pub(super) fn retry<'a>(upgrade: Option<&'a Promotion>, gates: &[Gate]) -> Option<Retry<'a>> {
    let upgrade = upgrade?;
    let decision = facts::retry(upgrade)?;
    let named = |gate: &&Gate| decision.retry.iter().any(|name| name == "*" || *name == gate.name);
    let gates: Vec<_> = gates.iter().filter(named).map(|gate| gate.name.clone()).collect();
    let reopens = verdict(upgrade).is_some();
    (reopens || !gates.is_empty()).then_some(Retry { decision, reopens, gates })
}

/// What is on record of an upgrade. Of one that is taken up again nothing stands that could promote it.
pub(super) fn standing(upgrade: &Promotion) -> PromotionStatus {
    let recorded = upgrade.status.clone().unwrap_or_default();
    if recorded.verdict.is_none() {
        return recorded;
    }
    PromotionStatus {
        verdict: None,
        lifted_at: None,
        approval: None,
        commit: None,
        switched_at: None,
        progressing_since: None,
        ..recorded
    }
}

impl<'a> Scene<'a> {
    fn decision(&self) -> Option<&'a Decision> {
        self.upgrade?.spec.decision.as_ref()
    }

    /// A retry that takes up an upgrade again is no approval, whatever stands beside it.
    fn reopens(&self) -> bool {
        let taken = || self.upgrade.and_then(facts::taken).is_some_and(|taken| taken.what == Act::Reopen);
        self.retry.as_ref().is_some_and(|retry| retry.reopens) || taken()
    }

    /// A person's approval in the record of the upgrade.
    pub(super) fn approves(&self) -> Option<&'a Decision> {
        self.decision().filter(|decision| decision.approve && !decision.stops() && !self.reopens())
    }

    /// Who says that the staged revision may be promoted, if anybody does.
    pub(super) fn assent(&self) -> Option<Approval> {
        let at = Some(Time(self.now));
        if let Some(decision) = self.approves() {
            return Some(Approval { by: decision.who().to_owned(), reason: decision.reason.clone(), at });
        }
        let by = if self.intent.approved {
            "annotation"
        } else if self.intent.rules.automatic && self.judged.complete {
            "policy"
        } else {
            return None;
        };
        Some(Approval { by: by.into(), reason: None, at })
    }

    /// Why traffic cannot go back to the side that it left. Where neither side serves there is nothing to lose.
    pub(super) fn no_way_back(&self) -> Option<&'static str> {
        if self.observed.deployment(&self.stable).is_none_or(is_terminating) {
            Some("the side that traffic left is gone")
        } else if !facts::serves(self.observed, &self.stable) && facts::serves(self.observed, &self.candidate) {
            Some("the side that traffic left has no ready Pod")
        } else {
            None
        }
    }

    /// Somebody wants traffic back that has begun to move.
    pub(super) fn stopped(&self) -> bool {
        self.moving() && self.upgrade.is_some_and(facts::stops) && self.no_way_back().is_none()
    }

    /// Why traffic goes back, where somebody says so.
    pub(super) fn called_back(&self) -> Option<Back> {
        let decision = self.decision().filter(|_| self.stopped())?;
        Some(Back { verdict: Verdict::RolledBack, message: decision.says("rolled back"), returned_at: None })
    }

    /// How an upgrade ends that this pass gives up, and why.
    pub(super) fn given_up(&self, stale: &Promotion) -> Option<(Verdict, String)> {
        let decision = stale.spec.decision.as_ref().filter(|decision| decision.stops())?;
        Some((Verdict::Aborted, decision.says("aborted")))
    }

    /// What people decided, with what this pass carries out.
    pub(super) fn decided(&self, upgrade: &Promotion, before: &[Decided]) -> Vec<Decided> {
        let act = |decision: &Decision, what, gates| Decided {
            what,
            gates,
            by: decision.who().to_owned(),
            reason: decision.reason.clone(),
            generation: upgrade.metadata.generation.unwrap_or_default(),
            at: Time(self.now),
        };
        let stops = upgrade.spec.decision.as_ref().filter(|decision| decision.stops());
        let new = match (&self.retry, stops) {
            (Some(retry), _) => {
                let what = if retry.reopens { Act::Reopen } else { Act::Retry };
                Some(act(retry.decision, what, retry.gates.clone()))
            }
            (None, Some(decision)) if self.stopped() => Some(act(decision, Act::Rollback, Vec::new())),
            (None, Some(decision)) if !self.moving() => Some(act(decision, Act::Abort, Vec::new())),
            (None, _) => None,
        };
        let new = new.filter(|new| before.last().is_none_or(|last| last.generation != new.generation));
        newest(before.iter().cloned().chain(new))
    }

    /// What gates said before they judge once more.
    pub(super) fn history(&self, before: &PromotionStatus) -> Vec<GateEvidence> {
        let retried = |entry: &&GateEvidence| {
            self.retry.as_ref().is_some_and(|retry| retry.reopens || retry.gates.contains(&entry.name))
        };
        let retried = before.gates.iter().filter(retried).filter(|entry| entry.finished_at.is_some());
        // What a wait left behind is for the next trial, and there is none of this entry.
        let retried = retried.map(|entry| GateEvidence { state: None, ..entry.clone() });
        newest(before.history.iter().cloned().chain(retried))
    }

    /// The decision that is taken off its upgrade.
    pub(super) fn cleared(&self) -> Option<Cleared> {
        let (promotion, retry_only, why) = match self.upgrade {
            Some(upgrade) => self.cleared_under_way(upgrade),
            None => self.cleared_after(),
        }?;
        Some(Cleared {
            promotion: promotion.name_any(),
            resource_version: promotion.resource_version()?,
            retry_only,
            by: promotion.spec.decision.as_ref()?.who().to_owned(),
            why,
        })
    }

    fn cleared_under_way(&self, upgrade: &'a Promotion) -> Option<(&'a Promotion, bool, Option<String>)> {
        let decision = upgrade.spec.decision.as_ref()?;
        let refuse = |retry_only, why: &str| Some((upgrade, retry_only, Some(why.to_owned())));
        // What is on its way back already needs no more asking.
        let moves_on = self.moving() && !self.goes_back();
        if let Some(why) = self.no_way_back().filter(|_| moves_on && decision.stops()) {
            return refuse(false, why);
        }
        if !decision.retry.is_empty() && !decision.stops() {
            return match facts::taken(upgrade) {
                Some(taken) => Some((upgrade, decision.approve && taken.what != Act::Reopen, None)),
                None if self.moving() => refuse(true, "traffic has begun to move"),
                None if self.retry.is_none() => {
                    let names: Vec<_> = self.intent.rules.gates.iter().map(|gate| gate.name.as_str()).collect();
                    let why = format!("no gate has that name: {}", names.join(", "));
                    Some((upgrade, true, Some(why)))
                }
                None => None,
            };
        }
        let void = self.void_reason().filter(|_| decision.approve)?;
        Some((upgrade, false, Some(void)))
    }

    /// Nothing is under way: what stands in the newest record comes too late, or was carried out.
    fn cleared_after(&self) -> Option<(&'a Promotion, bool, Option<String>)> {
        let newest = self.observed.promotions.last()?;
        let asks = |decision: &&Decision| decision.approve || decision.stops() || !decision.retry.is_empty();
        let decision = newest.spec.decision.as_ref().filter(asks)?;
        let why = match verdict(newest)? {
            Verdict::Promoted if decision.stops() => "it is promoted, and the side that traffic left is gone",
            // An approval that did its work is history.
            Verdict::Promoted | Verdict::Superseded | Verdict::Reverted => return None,
            Verdict::Failed | Verdict::Aborted | Verdict::RolledBack if decision.stops() => {
                return Some((newest, false, None));
            }
            Verdict::Failed | Verdict::Aborted | Verdict::RolledBack if !decision.retry.is_empty() => {
                "its revision is not what is wanted"
            }
            Verdict::Failed | Verdict::Aborted | Verdict::RolledBack => {
                "it was given up or moved back: spec.decision.retry takes it up again"
            }
        };
        Some((newest, false, Some(why.to_owned())))
    }
}

fn newest<T>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut all: Vec<_> = all.collect();
    all.drain(..all.len().saturating_sub(KEPT));
    all
}
