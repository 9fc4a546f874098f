//! What others were reported for, by project and number: the same ways here, and where they lead.

use serde_json::json;

use super::{
    at_rest,
    explore::PATIENCE,
    objects::{Key, Kind},
    operator::Next,
    state::{Bytes, Decision, Event, Rule, Says, State, gate, live},
};
use crate::model::names::Role;

/// A way that is told step by step.
struct Way(State);

impl Way {
    fn governed() -> Self {
        Self(at_rest(Some(json!({ "gates": [gate("smoke")] }))))
    }

    fn then(mut self, event: Event) -> Self {
        assert!(self.0.can(event), "{event:?} cannot happen in {}", self.0.phase());
        self.0 = self.0.after(event).unwrap_or_else(|broken| panic!("{broken}"));
        self
    }

    /// Until something is true, and not a step further.
    fn until(mut self, what: impl Fn(&State) -> bool) -> Self {
        for _ in 0..PATIENCE {
            if what(&self.0) {
                return self;
            }
            let event = self.0.ahead().unwrap_or_else(|| panic!("at rest in {}", self.0.phase()));
            self = self.then(event);
        }
        panic!("it never happens in {}: {}", self.0.phase(), self.0.reason());
    }

    /// Until the next write of the pass is to this object.
    fn until_it_writes_to(self, key: Key) -> Self {
        self.until(|state| {
            let next = state.flight.as_ref().map(|flight| &*flight.next);
            matches!(next, Some(Next::Send(sent)) if sent.request.key == key && sent.request.is_write())
        })
    }

    /// Until a pass has begun and ended.
    fn passed(self) -> Self {
        self.until(|state| state.flight.is_some()).until(|state| state.flight.is_none())
    }

    /// Until a gate is asked, which says nothing yet.
    fn asked(self) -> Self {
        self.until(|state| matches!(state.ahead(), Some(Event::Verdict(_))))
    }

    /// Until nothing happens any more.
    fn rest(self) -> Self {
        self.until(State::rests)
    }

    fn ends(self, phase: &str, live: &str) {
        assert_eq!((self.0.phase(), &*self.0.live_image()), (phase, live), "{}", self.0.reason());
    }

    fn candidate(&self) -> Key {
        self.0.candidate_pod().expect("a Pod of the candidate")
    }
}

/// Pre-promotion analysis was skipped for the revision after one that was replaced while it was judged.
#[test]
fn argo_4728_a_revision_that_comes_while_another_is_judged_is_judged_itself() {
    let way = Way::governed().then(Event::Edit(1)).asked().then(Event::Approve).then(Event::Edit(2)).asked();
    way.then(Event::Verdict(Says::Fail)).rest().ends("Refused", "kong:3.9");
}

/// Promotion by itself and both analyses were not asked about where the workload came from somewhere else.
#[test]
fn argo_4503_nothing_is_promoted_that_nobody_approved_and_no_gate_passed() {
    Way::governed().then(Event::Edit(1)).rest().ends("Waiting", "kong:3.9");
    Way::governed()
        .then(Event::Edit(1))
        .asked()
        .then(Event::Verdict(Says::Fail))
        .then(Event::Approve)
        .rest()
        .ends("Refused", "kong:3.9");
}

/// The selector of the active Service became empty when Pods crashed, and traffic went nowhere.
#[test]
fn argo_4750_pods_that_crash_move_no_traffic() {
    let way = Way::governed().then(Event::Edit(1)).rest().then(Event::Approve);
    let pod = way.candidate();
    way.then(Event::Break(pod)).rest().ends("Staging", "kong:3.9");
}

/// A Pod that crashed ended the job that judged it, which counted as a success.
#[test]
fn argo_3724_a_pod_that_restarts_while_it_is_judged_is_judged_again() {
    let way = Way::governed().then(Event::Edit(1)).then(Event::Approve).asked();
    let pod = way.candidate();
    let way = way.then(Event::Restart(pod)).then(Event::Verdict(Says::Pass)).asked();
    way.then(Event::Verdict(Says::Fail)).rest().ends("Refused", "kong:3.9");
}

/// An analysis was a success though its job had failed.
#[test]
fn argo_4393_a_gate_that_only_breaks_never_passes() {
    let way = Way::governed().then(Event::Edit(1)).then(Event::Approve).asked();
    let way = way.then(Event::Verdict(Says::Error)).until(|state| state.is_asking());
    way.then(Event::Verdict(Says::Error)).rest().ends("Refused", "kong:3.9");
}

/// Promoted in spite of a confirmation that was missing.
#[test]
fn flagger_1151_what_is_paused_or_taken_back_is_not_promoted() {
    let judged = || Way::governed().then(Event::Edit(1)).rest();
    judged().then(Event::Approve).then(Event::Withdraw).rest().ends("Waiting", "kong:3.9");
    judged().then(Event::Policy(Rule::Pause)).then(Event::Approve).rest().ends("Waiting", "kong:3.9");
}

/// A task before the deployment failed, again and again, and it was deployed all the same.
#[test]
fn keptn_3920_attempts_that_are_used_up_hold_the_upgrade_for_good() {
    let mut way = Way::governed().then(Event::Edit(1)).then(Event::Approve).asked();
    way = way.then(Event::Crash).until(|state| state.is_asking());
    way = way.then(Event::Verdict(Says::Error)).rest();
    way = way.then(Event::Jump(true)).rest().then(Event::Plugin(Bytes::Revoked)).rest();
    way.then(Event::Jump(true)).rest().ends("Refused", "kong:3.9");
}

/// Not reported by anybody: records were ordered by when they were made, and a clock that is set back makes the newest of
/// them an old one.
#[test]
fn a_clock_that_is_set_back_forgets_no_rejection() {
    let way = Way::governed().then(Event::Edit(1)).rest().then(Event::Jump(false)).then(Event::Edit(2)).rest();
    let way = way.then(Event::Decide(Decision::Abort)).rest().then(Event::Approve).rest();
    way.then(Event::Jump(true)).rest().ends("Rejected", "kong:3.9");
}

/// A switch was decided and taken back, and the write of the process that had decided it comes when it is gone.
#[test]
fn a_switch_that_arrives_after_it_was_taken_back_is_refused() {
    let ends: [(Event, &str); 4] = [
        (Event::Decide(Decision::Abort), "Rejected"),
        (Event::Withdraw, "Waiting"),
        (Event::Policy(Rule::Pause), "Waiting"),
        (Event::Plugin(Bytes::Revoked), "Refused"),
    ];
    for (taken_back, phase) in ends {
        let way = Way::governed().then(Event::Edit(1)).then(Event::Approve);
        let way = way.until(|state| state.reason() == "PromotionInProgress").until_it_writes_to(live(Role::Admin));
        way.then(Event::CrashUnderWay).then(taken_back).rest().ends(phase, "kong:3.9");
    }
}

/// More Pods are asked for while a gate judges: it is asked once, and heard.
#[test]
fn a_trial_goes_on_while_more_pods_come() {
    let way = Way::governed().then(Event::Edit(1)).then(Event::Approve).asked();
    let asked = way.0.memory.trials.clone();
    let way = way.then(Event::Scale(2)).asked();
    assert_eq!(way.0.memory.trials, asked);
    way.then(Event::Verdict(Says::Pass)).rest().ends("Settled", "kong:3.10");
}

/// An attempt is on record, and its Pod goes before it begins: it begins when there is somebody to judge.
#[test]
fn an_attempt_without_a_pod_begins_later() {
    let way = Way::governed().then(Event::Edit(1)).then(Event::Approve);
    let way = way.until(|state| state.is_recorded());
    let pod = way.candidate();
    let way =
        way.then(Event::Evict(pod)).until(|state| state.phase() == "Staging").until(|state| state.flight.is_none());
    assert!(!way.0.is_asking());
    way.asked().then(Event::Verdict(Says::Fail)).rest().ends("Refused", "kong:3.9");
}

/// Another manager wins against the second half of a switch, and then the candidate breaks: users stay where they are served.
#[test]
fn half_a_switch_is_undone_where_nobody_is_there_to_take_the_rest() {
    let way = Way::governed().then(Event::Edit(1)).then(Event::Approve);
    let way = way.until(|state| state.reason() == "PromotionInProgress").until_it_writes_to(live(Role::Ingress));
    let pod = way.candidate();
    let way = way.then(Event::Touch(live(Role::Ingress))).then(Event::Break(pod)).rest();
    assert!(way.0.rests());
    way.ends("Staging", "kong:3.9");
}

/// The watch of upgrades is behind for long while the spec is edited there and back: of two that are open the older one is
/// history, also when the newer one is given up.
#[test]
fn an_upgrade_that_was_left_open_is_not_taken_up_again() {
    let unseen = |state: &State| state.can(Event::Impatience);
    let way = Way::governed().then(Event::Hold(Kind::Promotion)).then(Event::Edit(1)).until(unseen);
    let way = way.then(Event::Impatience).then(Event::Edit(0)).passed().then(Event::Edit(1)).rest();
    assert_eq!(way.0.api.all(Kind::Promotion).count(), 2);
    let way = way.then(Event::Approve).until(|state| state.phase() == "Draining");
    let way = way.then(Event::Decide(Decision::Rollback)).rest();
    way.then(Event::Approve).rest().ends("Rejected", "kong:3.9");
}

/// More Pods come before a gate is asked, it passes, and one of those is replaced: what runs now, nobody has judged.
#[test]
fn a_judged_pod_that_is_replaced_is_judged_again_though_it_came_later() {
    let way = Way::governed().then(Event::Edit(1)).then(Event::Approve).until(|state| state.phase() == "Judging");
    let way = way.then(Event::Scale(2)).asked();
    let second = Key::of(Kind::Pod, &way.candidate().name().replace("-0", "-1"));
    let way = way.then(Event::Verdict(Says::Pass)).then(Event::Evict(second)).asked();
    way.then(Event::Verdict(Says::Fail)).rest().ends("Refused", "kong:3.9");
}

/// A verdict is on record, and for long the caches do not show it: the gate is not asked once more.
#[test]
fn a_trial_whose_verdict_the_caches_do_not_show_is_not_run_again() {
    let way = Way::governed().then(Event::Edit(1)).asked().then(Event::Verdict(Says::Pass));
    let way = way.until(|state| state.phase() == "Waiting").until(|state| state.can(Event::Impatience));
    way.then(Event::Impatience).then(Event::Pass).rest().ends("Waiting", "kong:3.9");
}
