//! What people decide: approvals of every kind, retries, and the ways out.

use serde_json::{Value, json};

use super::world::{World, name};
use crate::{
    api::{
        dataplane::PROMOTE_WHEN_READY,
        promotion::{Act, GateOutcome, Verdict},
    },
    dataplane::fixtures,
    model::{
        names::{Role, State},
        trial::{Outcome, Reason},
    },
};

fn pass() -> Option<Outcome> {
    Some(Outcome::Pass(Reason { code: "Good".into(), message: String::new() }))
}

fn fail() -> Option<Outcome> {
    Some(Outcome::Fail(Reason { code: "Bad".into(), message: "it is".into() }))
}

/// A gate of this name.
fn gate(name: &str) -> Value {
    json!({ "name": name, "pluginRef": { "name": "smoke" } })
}

/// An upgrade to `kong:3.10` under a policy with this verdict of its gate, as far as it goes without a person.
fn governed(verdict: Option<Outcome>) -> World {
    let mut world = World::at_rest("kong:3.9");
    world.govern();
    world.verdict = verdict;
    world.image("kong:3.10");
    world.run();
    world
}

fn annotated(world: &World) -> bool {
    world.dataplane.metadata.annotations.as_ref().is_some_and(|known| known.contains_key(PROMOTE_WHEN_READY))
}

/// What is decided about the newest upgrade.
fn decision(world: &World) -> Value {
    world.newest()["spec"]["decision"].clone()
}

fn serves(world: &World) -> String {
    world.serves().into_iter().collect::<Vec<_>>().join(" and ")
}

/// The gates that were asked a second time, and what they had said.
fn history(world: &World) -> Vec<(String, GateOutcome)> {
    world.promotion().history.into_iter().map(|entry| (entry.name, entry.outcome)).collect()
}

#[test]
fn a_decision_approves_and_the_record_says_who() {
    for governs in [true, false] {
        let mut world = if governs { governed(pass()) } else { World::awaiting("kong:3.10") };
        world.decide(json!({ "approve": true, "by": "jane", "reason": "looks good" }));
        world.run();
        assert!(world.rests());
        assert_eq!(serves(&world), "kong:3.10");
        let promotion = world.promotion();
        let approval = promotion.approval.expect("an approval");
        assert_eq!((&*approval.by, approval.reason.as_deref()), ("jane", Some("looks good")));
        assert_eq!(promotion.commit.map(|commit| commit.approved_by), Some("jane".into()));
        assert!(world.told("PromotionInProgress", "approved by jane"));
    }
}

#[test]
fn a_decision_does_not_outrank_a_gate() {
    let mut world = governed(fail());
    world.decide(json!({ "approve": true, "by": "jane" }));
    world.run();
    assert_eq!((world.reason(), serves(&world)), ("GatesFailed".into(), "kong:3.9".into()));
}

#[test]
fn a_decision_that_is_taken_back_before_the_switch_counts_no_longer() {
    let mut world = governed(pass());
    world.decide(json!({ "approve": true, "by": "jane" }));
    world.until("PromotionInProgress");
    world.decide(Value::Null);
    world.run();
    assert_eq!((world.reason(), serves(&world)), ("AwaitingPromotion".into(), "kong:3.9".into()));
}

#[test]
fn a_gate_that_goes_voids_a_decision_too() {
    let mut world = World::at_rest("kong:3.9");
    world.policies = vec![fixtures::policy_of("policy", json!({ "gates": [gate("slow"), gate("smoke")] }))];
    world.image("kong:3.10");
    world.run();
    world.decide(json!({ "approve": true, "by": "jane" }));
    world.run();
    world.policies = vec![fixtures::policy_of("policy", json!({ "gates": [gate("smoke")] }))];
    world.verdict = pass();
    world.run();
    assert!(world.told("DecisionRefused", "jane") && decision(&world).is_null());
    assert_eq!((world.reason(), serves(&world)), ("AwaitingPromotion".into(), "kong:3.9".into()));
}

#[test]
fn a_policy_may_do_without_a_person_and_waits_for_gates_that_are_only_recorded() {
    let dry = json!({ "name": "dry", "pluginRef": { "name": "smoke" }, "enforcement": "DryRun" });
    for (verdict, serving) in [(pass(), "kong:3.10"), (fail(), "kong:3.9")] {
        let mut world = World::at_rest("kong:3.9");
        let rules = json!({ "approval": "Automatic", "gates": [gate("smoke"), dry] });
        world.policies = vec![fixtures::policy_of("policy", rules)];
        world.image("kong:3.10");
        world.run();
        assert_eq!(serves(&world), "kong:3.9");
        world.verdict = verdict;
        world.run();
        assert_eq!(serves(&world), serving);
    }
    // Only the one that nobody has to obey has not answered.
    let mut world = World::at_rest("kong:3.9");
    world.policies = vec![fixtures::policy_of("policy", json!({ "approval": "Automatic", "gates": [dry] }))];
    world.image("kong:3.10");
    world.run();
    assert_eq!((world.reason(), serves(&world)), ("AwaitingPromotion".into(), "kong:3.9".into()));
    world.verdict = fail();
    world.run();
    assert_eq!(serves(&world), "kong:3.10");
    assert_eq!(world.promotion().approval.map(|approval| approval.by), Some("policy".into()));
}

#[test]
fn an_upgrade_is_given_up_in_every_phase_before_the_switch() {
    let aborted = |mut world: World, phase: &str| {
        world.decide(json!({ "abort": true, "by": "jane", "reason": "not today" }));
        world.run();
        assert_eq!((world.reason(), serves(&world)), ("Aborted".into(), "kong:3.9".into()), "{phase}");
        let promotion = world.promotion();
        let decided = promotion.decided.last().expect("a decision");
        assert_eq!((promotion.verdict, decided.what, &*decided.by), (Some(Verdict::Aborted), Act::Abort, "jane"));
        assert!(world.rolled_out().is_some_and(|said| said.message.starts_with("aborted by jane: not today; ")));
        assert_eq!(
            (world.deployment(State::Preview)["spec"]["replicas"].clone(), decision(&world)),
            (json!(0), Value::Null)
        );
        // Nothing brings it back by itself.
        world.later(100_000);
        world.restart();
        world.run();
        assert_eq!(world.reason(), "Aborted", "{phase}");
        world
    };
    let mut staging = World::at_rest("kong:3.9");
    staging.broken.insert("kong:3.10");
    staging.image("kong:3.10");
    staging.run();
    aborted(staging, "Staging");
    aborted(governed(None), "Judging");
    aborted(governed(fail()), "Refused");
    aborted(governed(pass()), "Waiting");
    let mut armed = governed(pass());
    armed.approve();
    armed.until("PromotionInProgress");
    let mut world = aborted(armed, "Armed");
    assert!(!annotated(&world), "the approval went with it");
    // And an approval that comes later is not honoured, which is said.
    world.told("", "");
    world.approve();
    world.run();
    assert_eq!((world.reason(), annotated(&world)), ("Aborted".into(), false));
    assert!(world.told("ApprovalVoided", "spec.decision.retry"));
    world.decide(json!({ "approve": true, "by": "jane" }));
    world.run();
    assert_eq!((world.reason(), decision(&world)), ("Aborted".into(), Value::Null));
    assert!(world.told("DecisionRefused", "spec.decision.retry"));
}

#[test]
fn what_was_given_up_is_taken_up_again_by_a_retry_and_has_to_be_approved_again() {
    let mut world = governed(pass());
    world.approve();
    world.until("PromotionInProgress");
    world.decide(json!({ "abort": true, "by": "jane" }));
    world.run();
    // What stands beside a retry approves nothing.
    world.decide(json!({ "retry": ["*"], "approve": true, "by": "joe" }));
    world.run();
    assert_eq!((world.reason(), serves(&world)), ("AwaitingPromotion".into(), "kong:3.9".into()));
    assert_eq!((world.names("Promotion").len(), decision(&world)), (1, Value::Null));
    assert!(world.told("Decided", "joe has asked for revision"));
    world.decide(json!({ "approve": true, "by": "joe" }));
    world.run();
    assert!(world.rests());
    let promotion = world.promotion();
    let acts: Vec<_> = promotion.decided.iter().map(|decided| decided.what).collect();
    assert_eq!((acts, serves(&world)), (vec![Act::Abort, Act::Reopen], "kong:3.10".into()));
}

#[test]
fn a_rejection_ends_when_something_else_is_wanted() {
    for other in ["kong:3.9", "kong:3.11"] {
        let mut world = governed(pass());
        world.decide(json!({ "abort": true, "by": "jane" }));
        world.run();
        world.image(other);
        world.run();
        world.image("kong:3.10");
        world.run();
        assert_eq!(world.reason(), "AwaitingPromotion", "{other}");
    }
}

#[test]
fn a_gate_judges_once_more_and_what_it_said_before_is_kept() {
    let mut world = World::at_rest("kong:3.9");
    world.policies = vec![fixtures::policy_of("policy", json!({ "gates": [gate("one"), gate("two")] }))];
    world.verdict = fail();
    world.image("kong:3.10");
    world.approve();
    world.run();
    assert_eq!(world.reason(), "GatesFailed");
    let finished =
        |world: &World| world.promotion().gates.iter().map(|gate| gate.finished_at.clone()).collect::<Vec<_>>();
    let before = finished(&world);
    world.later(1);
    world.decide(json!({ "retry": ["policy/one"], "by": "jane", "reason": "the network was down" }));
    world.verdict = pass();
    world.run();
    assert_eq!(history(&world), [("policy/one".to_owned(), GateOutcome::Fail)]);
    assert_eq!(world.reason(), "GatesFailed", "the other one said no");
    let after = finished(&world);
    assert!(after[0] != before[0] && after[1] == before[1]);
    assert!(decision(&world)["retry"].is_null() && world.told("Decided", "jane has asked for policy/one"));
    // Each retry is one.
    world.decide(json!({ "retry": ["policy/two"], "by": "jane" }));
    world.run();
    assert!(world.rests(), "the approval that was never honoured counts");
    assert_eq!(serves(&world), "kong:3.10");
    assert_eq!(history(&world).len(), 2);
}

#[test]
fn a_retry_of_a_gate_that_is_not_there_is_said_and_changes_nothing() {
    let mut world = governed(fail());
    world.decide(json!({ "retry": ["smoke"], "by": "jane" }));
    world.run();
    assert!(world.told("DecisionRefused", "no gate has that name: policy/smoke"));
    assert_eq!((world.reason(), history(&world)), ("GatesFailed".into(), vec![]));
}

#[test]
fn traffic_is_moved_back_while_the_replaced_side_stands() {
    for (reason, passes) in [("PromotionInProgress", 1), ("PromotionDone", 0), ("PromotionDone", 3)] {
        let scaling = json!({ "deployment": { "scaling": { "horizontal": { "minReplicas": 2, "maxReplicas": 10 } } },
            "resources": { "podDisruptionBudget": { "spec": { "minAvailable": 1 } } } });
        let mut world = World::with("kong:3.9", scaling);
        world.run();
        world.govern();
        world.image("kong:3.10");
        world.run();
        let (stable, replaced) = (world.selects(State::Live, Role::Ingress), name(world.deployment(State::Live)));
        let [live, staged, _] = world.generations();
        world.approve();
        world.until(reason);
        for _ in 0..passes {
            world.machines();
            world.pass();
        }
        assert_ne!(world.selects(State::Live, Role::Ingress), stable);
        world.decide(json!({ "rollback": true, "by": "jane", "reason": "errors" }));
        world.run();
        assert_eq!((world.reason(), serves(&world)), ("RolledBack".into(), "kong:3.9".into()), "{reason} {passes}");
        assert!(world.rolled_out().is_some_and(|said| said.message.starts_with("rolled back by jane: errors; ")));
        for role in [Role::Ingress, Role::Admin] {
            assert_eq!(world.selects(State::Live, role), stable);
        }
        assert_eq!(world.generations(), [live, staged, staged], "Ready is about what is live");
        assert_eq!(name(world.deployment(State::Live)), replaced);
        assert_eq!(world.autoscaler()["spec"]["scaleTargetRef"]["name"], replaced.as_str());
        let budget = world.raw("PodDisruptionBudget", "dp").expect("a budget").to_string();
        assert!(budget.contains(&stable), "{budget}");
        assert_eq!(world.promotion().verdict, Some(Verdict::RolledBack));
        assert!(!annotated(&world) && decision(&world).is_null());
        assert_eq!(world.names("Deployment").len(), 2, "the live one and what traffic has left");
        // It stays rejected, and the live side is repaired from its own record.
        world.restart();
        world.later(100_000);
        world.run();
        assert_eq!((world.reason(), serves(&world)), ("RolledBack".into(), "kong:3.9".into()));
        // Another revision is another upgrade.
        world.image("kong:3.11");
        world.run();
        world.approve();
        world.run();
        assert!(world.rests());
        assert_eq!(serves(&world), "kong:3.11");
    }
}

#[test]
fn a_rollback_that_comes_too_late_is_said() {
    let mut world = governed(pass());
    world.approve();
    world.run();
    assert!(world.rests());
    world.decide(json!({ "rollback": true, "by": "jane" }));
    world.run();
    assert!(world.told("DecisionRefused", "the side that traffic left is gone") && decision(&world).is_null());
    assert_eq!(serves(&world), "kong:3.10");
}

/// Neither a person nor a gate moves traffic to where nobody serves it.
#[test]
fn traffic_does_not_go_back_to_a_side_without_a_ready_pod() {
    let mut world = governed(pass());
    world.approve();
    world.until("PromotionDone");
    world.broken.insert("kong:3.9");
    world.machines();
    world.decide(json!({ "rollback": true, "by": "jane" }));
    world.pass();
    assert!(world.told("DecisionRefused", "the side that traffic left has no ready Pod") && decision(&world).is_null());
    world.run();
    assert_eq!(serves(&world), "kong:3.10");
}
