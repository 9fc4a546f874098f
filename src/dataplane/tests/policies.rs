//! Policies that come, go and change, in every phase of an upgrade.

use serde_json::{Value, json};

use super::world::World;
use crate::{
    api::{ClusterPromotionPolicy, dataplane::PROMOTE_WHEN_READY},
    dataplane::fixtures,
    model::{
        names::State,
        trial::{Outcome, Reason},
    },
};

/// A gate of this name.
fn gate(name: &str) -> Value {
    json!({ "name": name, "pluginRef": { "kind": "ClusterGatePlugin", "name": "smoke" } })
}

/// A policy of the cluster, for namespaces with the label `team=edge`.
fn of_cluster(name: &str) -> ClusterPromotionPolicy {
    let spec = json!({
        "namespaceSelector": { "matchLabels": { "team": "edge" } }, "selector": {}, "gates": [gate("smoke")],
    });
    ClusterPromotionPolicy::new(name, serde_json::from_value(spec).expect("a policy"))
}

/// Gives the namespace a label.
fn label(world: &mut World, team: &str) {
    world.namespace.labels = Some([("team".to_owned(), team.to_owned())].into());
}

/// A world whose one gate has passed, and which waits for a person.
fn passed() -> World {
    let mut world = World::at_rest("kong:3.9");
    world.govern();
    world.image("kong:3.10");
    world.run();
    assert_eq!(world.reason(), "AwaitingPromotion");
    world
}

/// Gates that have answered, by name.
fn judged(world: &World) -> Vec<String> {
    world.promotion().gates.iter().map(|gate| format!("{}: {:?}", gate.name, gate.outcome)).collect()
}

fn approved(world: &World) -> bool {
    world.dataplane.metadata.annotations.as_ref().is_some_and(|known| known.contains_key(PROMOTE_WHEN_READY))
}

#[test]
fn gates_of_equal_names_in_policies_of_equal_names_are_each_asked() {
    let mut world = World::at_rest("kong:3.9");
    world.govern();
    world.policies.push(fixtures::policy_of("other", json!({ "gates": [gate("smoke")] })));
    world.cluster_policies = vec![of_cluster("policy")];
    label(&mut world, "edge");
    world.image("kong:3.10");
    world.run();
    assert_eq!(judged(&world), ["cluster/policy/smoke: Pass", "other/smoke: Pass", "policy/smoke: Pass"]);
}

#[test]
fn a_policy_of_the_cluster_counts_where_it_chooses_the_namespace() {
    let mut world = passed();
    world.cluster_policies = vec![of_cluster("baseline")];
    label(&mut world, "other");
    world.run();
    assert_eq!(judged(&world), ["policy/smoke: Pass"]);
    world.verdict = None;
    label(&mut world, "edge");
    world.run();
    assert_eq!((world.reason(), judged(&world).len()), ("RunningGates".into(), 2));
}

#[test]
fn a_gate_added_returns_to_judging_and_keeps_the_approval() {
    for approve in [false, true] {
        let mut world = passed();
        if approve {
            world.approve();
            world.until("PromotionInProgress");
        }
        world.verdict = None;
        world.policies.push(fixtures::policy_of("late", json!({ "gates": [gate("smoke")] })));
        world.run();
        assert_eq!((world.reason(), approved(&world)), ("RunningGates".into(), approve));
        world.verdict = Some(Outcome::Pass(Reason { code: "Good".into(), message: String::new() }));
        world.run();
        assert_eq!(world.reason(), if approve { "WaitingForChange" } else { "AwaitingPromotion" });
    }
}

#[test]
fn a_gate_that_no_longer_judges_voids_the_approval_and_the_upgrade_goes_on_without_it() {
    // Added for nothing but to be taken away; the other one holds the upgrade.
    let gates = json!({ "gates": [gate("slow"), gate("smoke")] });
    let mut world = World::at_rest("kong:3.9");
    world.policies = vec![fixtures::policy_of("policy", gates)];
    world.image("kong:3.10");
    world.approve();
    world.run();
    assert_eq!(world.reason(), "RunningGates");
    world.policies = vec![fixtures::policy_of("policy", json!({ "gates": [gate("smoke")] }))];
    world.run();
    assert!(!approved(&world) && world.told("ApprovalVoided", "policy/slow"));
    world.verdict = Some(Outcome::Pass(Reason { code: "Good".into(), message: String::new() }));
    world.run();
    assert_eq!((world.reason(), judged(&world)), ("AwaitingPromotion".into(), vec!["policy/smoke: Pass".into()]));
}

#[test]
fn a_policy_without_gates_that_goes_voids_the_approval_too() {
    let mut world = World::at_rest("kong:3.9");
    world.policies = vec![fixtures::policy_of("free", json!({ "paused": true }))];
    world.image("kong:3.10");
    world.approve();
    world.run();
    world.policies.clear();
    world.run();
    assert!(!approved(&world) && world.told("ApprovalVoided", "free"));
    assert_eq!(world.reason(), "AwaitingPromotion");
}

#[test]
fn nothing_is_promoted_while_a_policy_is_paused() {
    let mut world = passed();
    let paused = |paused: bool| vec![fixtures::policy(), fixtures::policy_of("freeze", json!({ "paused": paused }))];
    world.policies = paused(true);
    world.approve();
    world.run();
    let said = world.rolled_out().expect("RolledOut");
    assert_eq!((&*said.reason, &*said.message), ("AwaitingPromotion", "policy freeze is paused: nothing is promoted"));
    assert_eq!(world.serves(), ["kong:3.9".to_owned()].into());
    world.policies = paused(false);
    world.run();
    assert!(world.rests());
    assert_eq!(world.serves(), ["kong:3.10".to_owned()].into());
}

#[test]
fn a_pause_between_the_commit_and_the_first_switch_counts_and_one_after_it_waits() {
    let mut world = passed();
    world.approve();
    world.until("PromotionInProgress");
    world.policies = vec![fixtures::policy_of("policy", json!({ "paused": true, "gates": [gate("smoke")] }))];
    world.verdict = None;
    world.run();
    assert_eq!(world.serves(), ["kong:3.9".to_owned()].into());

    let mut world = passed();
    world.approve();
    world.until("PromotionDone");
    world.policies = vec![fixtures::policy_of("policy", json!({ "paused": true }))];
    world.run();
    assert!(world.rests());
}

#[test]
fn from_the_switch_on_the_rules_are_those_of_the_commit() {
    let mut world = passed();
    world.approve();
    world.until("PromotionDone");
    for scale_down_delay in [3_600, 0] {
        let rules = json!({ "scaleDownDelaySeconds": scale_down_delay, "gates": [gate("added")] });
        world.policies = vec![fixtures::policy_of("policy", rules)];
        let (plan, _) = world.pass();
        let since = world.promotion().switched_at.expect("switched").0;
        assert_eq!(plan.again, Some(since + std::time::Duration::from_secs(30)), "{scale_down_delay}");
        assert_eq!(judged(&world), ["policy/smoke: Pass"]);
    }
    world.policies.clear();
    world.run();
    assert!(world.rests());
}

#[test]
fn without_a_preview_a_paused_policy_keeps_the_live_side_as_it_is() {
    let mut world = World::in_place("kong:3.9", json!({}));
    world.run();
    world.policies = vec![fixtures::policy_of("freeze", json!({ "paused": true }))];
    world.image("kong:3.10");
    world.run();
    assert_eq!(world.serves(), ["kong:3.9".to_owned()].into());
    assert_eq!(world.condition("Stalled").map(|stalled| stalled.reason), Some("Paused".into()));
    world.policies.clear();
    world.run();
    assert_eq!((world.serves(), world.ready(State::Live)), (["kong:3.10".to_owned()].into(), 1));
}
