//! Gates that judge behind the live Services while the replaced side stands, and the way back.

use serde_json::{Value, json};

use super::world::{World, name};
use crate::{
    api::promotion::{GateOutcome, Verdict},
    dataplane::fixtures,
    model::{
        names::{Role, State},
        trial::{Blame, Moment, Outcome, Reason},
    },
};

fn pass() -> Option<Outcome> {
    Some(Outcome::Pass(Reason { code: "Good".into(), message: String::new() }))
}

fn fail() -> Option<Outcome> {
    Some(Outcome::Fail(Reason { code: "Errors".into(), message: "5 of 100".into() }))
}

/// A gate that judges behind the live Services, changed.
fn after(change: Value) -> Value {
    let mut gate =
        json!({ "name": "after", "pluginRef": { "name": "errors" }, "when": "AfterPromotion", "deadline": "5m" });
    for (field, value) in change.as_object().expect("an object") {
        gate[field] = value.clone();
    }
    gate
}

fn policy(gates: &[Value]) -> Vec<crate::api::PromotionPolicy> {
    vec![fixtures::policy_of("policy", json!({ "gates": gates }))]
}

/// An upgrade to `kong:3.10` whose traffic has moved, and which this gate judges.
fn verifying(gate: Value) -> World {
    let mut world = World::at_rest("kong:3.9");
    world.govern();
    world.policies = policy(&[json!({ "name": "before", "pluginRef": { "name": "smoke" } }), gate]);
    world.image("kong:3.10");
    world.run();
    assert_eq!(world.reason(), "AwaitingPromotion", "what judges later is not waited for");
    world.approve();
    world.run();
    assert_eq!((world.reason(), serves(&world)), ("VerifyingPromotion".into(), "kong:3.10".into()));
    world
}

fn serves(world: &World) -> String {
    world.serves().into_iter().collect::<Vec<_>>().join(" and ")
}

fn outcomes(world: &World) -> Vec<(Moment, GateOutcome)> {
    world.promotion().gates.into_iter().map(|gate| (gate.when, gate.outcome)).collect()
}

#[test]
fn a_pass_lets_the_replaced_side_go() {
    let mut world = verifying(after(json!({})));
    let [ready, rolled_out, now] = world.generations();
    assert_eq!((ready, rolled_out), (Some(1), now), "it is not the live one yet");
    let (plan, _) = world.pass();
    let trial = plan.trials.first().expect("a trial");
    assert_eq!(trial.moment, Moment::AfterPromotion);
    let live = world.service(State::Live, Role::Ingress);
    let address = format!("{}:80", live["spec"]["clusterIP"].as_str().expect("an address"));
    assert_eq!(
        trial.targets.first().map(|target| (&*target.name, target.service.to_string())),
        Some(("candidate/proxy", address))
    );
    world.verified = pass();
    world.run();
    assert!(world.rests());
    assert_eq!(
        outcomes(&world),
        [(Moment::BeforePromotion, GateOutcome::Pass), (Moment::AfterPromotion, GateOutcome::Pass)]
    );
    assert_eq!(world.promotion().verdict, Some(Verdict::Promoted));
}

#[test]
fn whatever_is_not_a_pass_moves_traffic_back_and_stays_rejected() {
    let error = Outcome::Error { blame: Blame::InvalidSettings, message: "no".into(), retry: false };
    let odd = Outcome::Inconclusive(Reason { code: "Odd".into(), message: "who knows".into() });
    for verdict in [fail(), Some(error), Some(odd)] {
        let mut world = verifying(after(json!({})));
        let (moved, at) = (world.selects(State::Live, Role::Ingress), world.now);
        world.verified = verdict.clone();
        world.run();
        assert_eq!((world.reason(), serves(&world)), ("RolledBack".into(), "kong:3.9".into()), "{verdict:?}");
        assert_eq!(world.now, at, "nothing is waited for");
        // Whoever still speaks to what traffic has left is let finish.
        assert_eq!(world.ready(State::Preview), 1);
        world.later(30);
        world.run();
        assert_eq!(world.ready(State::Preview), 0);
        for role in [Role::Ingress, Role::Admin] {
            assert_ne!(world.selects(State::Live, role), moved);
        }
        let promotion = world.promotion();
        let said = promotion.gates.iter().find(|gate| gate.when == Moment::AfterPromotion).expect("evidence");
        let reason = said.reason.clone().expect("a reason");
        assert_eq!((promotion.verdict, promotion.approval.is_some()), (Some(Verdict::RolledBack), true));
        assert!(world.rolled_out().is_some_and(|rolled_out| rolled_out.message.contains(&reason)));
        assert!(world.told("RolledBack", &reason));
        // Neither time, nor a restart, nor an approval brings it back.
        world.approve();
        world.later(1_000_000);
        world.restart();
        world.verified = pass();
        world.run();
        assert_eq!((world.reason(), serves(&world)), ("RolledBack".into(), "kong:3.9".into()));
        assert!(world.told("ApprovalVoided", "given up or moved back"));
        // A retry and a new approval do.
        world.decide(json!({ "retry": ["*"], "by": "jane" }));
        world.run();
        assert_eq!((world.reason(), serves(&world)), ("AwaitingPromotion".into(), "kong:3.9".into()));
        assert!(world.promotion().history.iter().any(|entry| entry.reason.as_ref() == Some(&reason)));
        world.approve();
        world.run();
        assert!(world.rests());
        assert_eq!(serves(&world), "kong:3.10");
    }
}

#[test]
fn the_autoscaler_and_the_budget_go_there_and_back() {
    let mut world = World::with(
        "kong:3.9",
        json!({
            "deployment": { "scaling": { "horizontal": { "minReplicas": 2, "maxReplicas": 9 } } },
            "resources": { "podDisruptionBudget": { "spec": { "minAvailable": 1 } } },
        }),
    );
    world.run();
    world.policies = policy(&[after(json!({}))]);
    let replaced = name(world.deployment(State::Live));
    let follows = |world: &World| {
        let live = world.selects(State::Live, Role::Ingress);
        let budget = world.raw("PodDisruptionBudget", "dp").expect("a budget")["spec"]["selector"].to_string();
        (world.autoscaler()["spec"]["scaleTargetRef"]["name"].clone(), budget.contains(&live))
    };
    world.image("kong:3.10");
    world.approve();
    world.run();
    assert_eq!(world.reason(), "VerifyingPromotion");
    let (target, budget) = follows(&world);
    assert!(target != replaced.as_str() && budget);
    world.verified = fail();
    world.run();
    assert_eq!((world.reason(), follows(&world)), ("RolledBack".into(), (json!(replaced), true)));
}

#[test]
fn a_gate_that_is_only_recorded_is_waited_for_and_not_obeyed() {
    let mut world = verifying(after(json!({ "enforcement": "DryRun" })));
    world.verified = fail();
    world.run();
    assert!(world.rests());
    assert_eq!((serves(&world), outcomes(&world)[1].1), ("kong:3.10".into(), GateOutcome::Fail));
}

#[test]
fn a_policy_that_changes_meanwhile_waits_for_the_next_upgrade() {
    for (policies, verdict, serving) in [
        (vec![], fail(), "kong:3.9"),
        (policy(&[after(json!({ "settings": { "lax": true } }))]), fail(), "kong:3.9"),
        (policy(&[after(json!({ "enforcement": "DryRun" }))]), fail(), "kong:3.9"),
        (policy(&[after(json!({ "name": "other" }))]), pass(), "kong:3.10"),
        (vec![], pass(), "kong:3.10"),
    ] {
        let mut world = verifying(after(json!({})));
        world.policies = policies;
        world.run();
        assert_eq!(world.reason(), "VerifyingPromotion");
        world.verified = verdict;
        world.run();
        assert_eq!(serves(&world), serving);
    }
}

#[test]
fn a_later_edit_waits_for_the_verdict() {
    for (verdict, serving) in [(pass(), "kong:3.10"), (fail(), "kong:3.9")] {
        let mut world = verifying(after(json!({})));
        world.image("kong:3.11");
        world.run();
        assert_eq!((world.reason(), world.names("Promotion").len()), ("VerifyingPromotion".into(), 1));
        world.verified = verdict;
        world.run();
        assert_eq!((world.reason(), serves(&world)), ("AwaitingPromotion".into(), serving.into()));
    }
}

#[test]
fn somebody_may_move_it_back_before_the_verdict() {
    let mut world = verifying(after(json!({})));
    world.decide(json!({ "abort": true, "by": "jane" }));
    world.run();
    assert_eq!((world.reason(), serves(&world)), ("RolledBack".into(), "kong:3.9".into()));
}

#[test]
fn a_restart_in_between_costs_an_attempt_and_nothing_else() {
    let mut world = verifying(after(json!({})));
    world.restart();
    world.run();
    assert_eq!(world.reason(), "VerifyingPromotion");
    world.verified = pass();
    world.later(5);
    world.run();
    assert!(world.rests());
    assert_eq!(serves(&world), "kong:3.10");
}

#[test]
fn traffic_that_had_arrived_is_waited_for_anew_where_it_leaves_again() {
    let mut world = verifying(after(json!({ "deadline": "168h" })));
    world.later(100_000);
    world.broken.insert("kong:3.10");
    world.machines();
    world.run();
    assert_eq!(world.reason(), "PromotionInProgress", "not late at once");
    world.later(599);
    world.run();
    assert_eq!(world.reason(), "PromotionInProgress");
    world.later(1);
    world.run();
    assert_eq!((world.reason(), serves(&world)), ("PromotionFailed".into(), "kong:3.9".into()));
}

/// As before the switch: whoever judged has judged something else.
#[test]
fn pods_that_are_replaced_meanwhile_are_judged_again() {
    let mut world = verifying(after(json!({})));
    let (plan, _) = world.pass();
    let first = plan.trials.first().expect("a trial").key.clone();
    let judged = world.promotion().pods;
    world.later(1);
    world.lose("Pod");
    world.run();
    assert_eq!((world.reason(), serves(&world)), ("VerifyingPromotion".into(), "kong:3.10".into()));
    assert_ne!(world.promotion().pods, judged);
    let evidence = |world: &World| world.promotion().gates.into_iter().map(|gate| gate.finished_at).collect::<Vec<_>>();
    let before = evidence(&world);
    world.say(&first, fail().expect("an outcome"));
    world.run();
    assert_eq!(
        (world.reason(), evidence(&world)),
        ("VerifyingPromotion".into(), before),
        "it is about Pods that are gone"
    );
    world.verified = pass();
    world.run();
    assert!(world.rests());
    assert_eq!(serves(&world), "kong:3.10");
}

/// What comes beside them runs the same, and what an autoscaler takes away is missed by nobody.
#[test]
fn an_autoscaler_has_nobody_judged_again() {
    let scaling = json!({ "deployment": { "scaling": { "horizontal": { "minReplicas": 1, "maxReplicas": 9 } } } });
    let mut world = World::with("kong:3.9", scaling);
    world.run();
    world.autoscale(3);
    world.run();
    world.policies = policy(&[after(json!({}))]);
    world.image("kong:3.10");
    world.approve();
    world.run();
    let (plan, _) = world.pass();
    let first = plan.trials.first().expect("a trial").key.clone();
    for count in [5, 2] {
        world.later(1);
        world.autoscale(count);
        world.run();
    }
    let (plan, _) = world.pass();
    assert_eq!(plan.trials.first().map(|trial| &trial.key), Some(&first), "{}", world.reason());
}
