//! Every row of Kong's special situations (3.8). Where a comment does not say otherwise, this is Kong's behaviour.

use serde_json::{Value, json};

use super::world::{World, name};
use crate::{
    api::dataplane::PROMOTE_WHEN_READY,
    model::{
        names::{self, Role, State},
        trial::{Outcome, Reason},
    },
};

/// Different: what is live is wanted again, so nothing is left to promote, and an approval that was given for the
/// change goes with it. Kong stages the revert as a new change.
#[test]
fn s_a_revert_while_awaiting_returns_to_rest() {
    let mut world = World::awaiting("kong:3.10");
    world.image("kong:3.9");
    assert_eq!(world.run(), ["WaitingForChange/3"]);
    assert!(world.rests());

    let mut world = World::at_rest("kong:3.9");
    world.govern();
    world.verdict = Some(Outcome::Fail(Reason { code: "Bad".into(), message: String::new() }));
    world.image("kong:3.10");
    world.approve();
    world.run();
    assert_eq!(world.reason(), "GatesFailed");
    world.image("kong:3.9");
    world.run();
    assert!(world.rests());
    assert_eq!(world.dataplane.metadata.annotations.unwrap_or_default().get(PROMOTE_WHEN_READY), None);
}

/// The same preview is rolled. Different: Pods of the edit before are never promoted for it.
#[test]
fn s_a_second_edit_while_awaiting_rolls_the_preview_and_promotes_only_what_has_rolled() {
    let mut world = World::awaiting("kong:3.10");
    let preview = name(world.deployment(State::Preview));
    world.awake = false;
    world.image("kong:3.11");
    world.approve();
    world.run();
    assert_eq!(world.reason(), "Progressing", "the status of the Deployment is about the spec before");
    world.awake = true;
    world.run();
    assert!(world.rests());
    assert_eq!(world.serves(), ["kong:3.11".to_owned()].into());
    assert_eq!(name(world.deployment(State::Live)), preview);
}

/// Different: what changes no Pod template and no port reaches the live side at once. Kong makes each a rollout.
#[test]
fn s_scale_budget_and_service_edits_are_no_rollout() {
    for edit in [
        json!({ "deployment": { "replicas": 3 } }),
        json!({ "deployment": { "scaling": { "horizontal": { "minReplicas": 3, "maxReplicas": 5 } } } }),
        json!({ "resources": { "podDisruptionBudget": { "spec": { "minAvailable": 1 } } } }),
        json!({ "network": { "services": { "ingress": { "type": "NodePort", "annotations": { "team": "edge" } } } } }),
    ] {
        let mut world = World::at_rest("kong:3.9");
        world.edit(edit.clone());
        assert_eq!(world.run(), ["WaitingForChange/2"], "{edit}");
        assert!(world.rests() && world.names("Promotion").is_empty(), "{edit}");
        let seen = json!({
            "replicas": world.deployment(State::Live)["spec"]["replicas"],
            "scaler": world.raw("HorizontalPodAutoscaler", "dp").map(|scaler| &scaler["spec"]["minReplicas"]),
            "budget": world.raw("PodDisruptionBudget", "dp").map(|budget| &budget["spec"]["minAvailable"]),
            "type": world.service(State::Live, Role::Ingress)["spec"]["type"],
        });
        let rest = json!({ "replicas": 1, "scaler": null, "budget": null, "type": "LoadBalancer" });
        assert_ne!(seen, rest, "{edit} did not reach the live side");
    }
}

#[test]
fn s_scaled_while_awaiting_both_sides_follow() {
    let mut world = World::awaiting("kong:3.10");
    world.edit(json!({ "deployment": { "replicas": 3 } }));
    world.run();
    assert_eq!(world.reason(), "AwaitingPromotion");
    assert_eq!((world.ready(State::Live), world.ready(State::Preview)), (3, 3));
}

#[test]
fn s_live_pods_unready_while_awaiting_do_not_block_the_promotion() {
    let mut world = World::awaiting("kong:3.10");
    world.broken.insert("kong:3.9");
    world.machines();
    world.run();
    let live = name(world.deployment(State::Live));
    let waiting = "False/WaitingToBecomeReady: Waiting for the resource to become ready";
    assert_eq!(world.readiness(), format!("{waiting}: Deployment {live} is not ready yet"));
    assert_eq!((world.generations(), world.reason()), ([Some(1), Some(2), Some(2)], "AwaitingPromotion".into()));
    world.approve();
    world.run();
    assert!(world.rests());
    assert_eq!((world.serves(), world.readiness()), (["kong:3.10".to_owned()].into(), "True/Ready".into()));
}

/// Different: drift is repaired in every phase, on both sides. Kong repairs the live side only at rest and the preview
/// only during a rollout.
#[test]
fn s_drift_is_repaired_in_every_phase() {
    let bend = |object: &mut Value| match object["kind"].as_str() {
        Some("Deployment") => object["spec"]["strategy"] = json!({ "type": "Recreate" }),
        _ => object["spec"]["selector"] = json!({ "app": "somebody" }),
    };
    for mut world in [World::at_rest("kong:3.9"), World::awaiting("kong:3.10")] {
        let whole: Vec<_> = ["Service", "Deployment"].map(|kind| specs(&world, kind)).into();
        for kind in ["Service", "Deployment"] {
            for name in world.names(kind) {
                world.bend(kind, &name, bend);
            }
        }
        world.run();
        assert_eq!(whole, ["Service", "Deployment"].map(|kind| specs(&world, kind)), "{}", world.reason());
    }
}

fn specs(world: &World, kind: &str) -> Vec<Value> {
    world.all(kind).into_iter().map(|object| object["spec"].clone()).collect()
}

/// Different: addresses are a mirror of the Services in every phase.
#[test]
fn s_addresses_that_change_mid_rollout_are_in_the_status() {
    let mut world = World::awaiting("kong:3.10");
    for state in [State::Live, State::Preview] {
        let moved = json!({ "loadBalancer": { "ingress": [{ "ip": "9.9.9.9" }] } });
        let service = name(world.service(state, Role::Ingress));
        world.bend("Service", &service, |one| one["status"] = moved);
    }
    world.run();
    let status = world.status();
    let preview = status.rollout.and_then(|rollout| rollout.services?.ingress).expect("a preview");
    assert_eq!((&*status.addresses[0].value, &*preview.addresses[0].value), ("9.9.9.9", "9.9.9.9"));
}

/// Different: type and annotations reach both Services at once; ports are part of what is promoted, as with Kong.
#[test]
fn s_a_change_of_the_ingress_service_reaches_live_at_once_but_for_its_ports() {
    let mut world = World::at_rest("kong:3.9");
    world.edit(json!({ "network": { "services": { "ingress": {
        "type": "ClusterIP", "annotations": { "team": "edge" }, "ports": [{ "port": 9000 }],
    }}}}));
    world.run();
    let seen = |world: &World, state| {
        let service = world.service(state, Role::Ingress);
        json!([
            service["spec"]["type"],
            service["metadata"]["annotations"]["team"],
            service["spec"]["ports"][0]["port"]
        ])
    };
    assert_eq!(world.reason(), "AwaitingPromotion");
    assert_eq!(seen(&world, State::Preview), json!(["ClusterIP", "edge", 9000]));
    assert_eq!(seen(&world, State::Live), json!(["ClusterIP", "edge", 80]));
    world.approve();
    world.until("PromotionDone");
    assert_eq!(seen(&world, State::Live), json!(["ClusterIP", "edge", 9000]));
}

/// Different: the preview is as large as the autoscaler made the live side, and the autoscaler moves with the Services.
/// Kong promotes `minReplicas` Pods, and its autoscaler points at a deleted Deployment until rest.
#[test]
fn s_an_autoscaled_live_side_is_replaced_by_one_as_large() {
    let scaling = json!({ "deployment": { "scaling": { "horizontal": { "minReplicas": 2, "maxReplicas": 10 } } } });
    let mut world = World::with("kong:3.9", scaling);
    world.run();
    world.autoscale(5);
    world.run();
    assert_eq!(world.ready(State::Live), 5, "the count is the autoscaler's");
    world.image("kong:3.10");
    world.run();
    assert_eq!((world.reason(), world.ready(State::Preview)), ("AwaitingPromotion".into(), 5));
    let target = |world: &World| world.autoscaler()["spec"]["scaleTargetRef"]["name"].clone();
    assert_eq!(target(&world), name(world.deployment(State::Live)));
    let promoted = name(world.deployment(State::Preview));
    world.approve();
    world.until("PromotionDone");
    assert_eq!(target(&world), promoted);
    world.run();
    assert_eq!((world.rests(), world.ready(State::Live)), (true, 5));
}

#[test]
fn s_a_restart_in_any_phase_is_resumed() {
    for reason in ["Progressing", "RunningGates", "AwaitingPromotion", "PromotionInProgress", "PromotionDone"] {
        let mut world = World::at_rest("kong:3.9");
        world.govern();
        world.image("kong:3.10");
        if reason.starts_with("Promotion") {
            world.approve();
        }
        world.until(reason);
        world.restart();
        world.run();
        // An attempt whose process is gone is tried again after a pause.
        world.later(5);
        world.approve();
        world.run();
        assert!(world.rests(), "{reason}");
        assert_eq!(world.serves(), ["kong:3.10".to_owned()].into(), "{reason}");
    }
}

/// The garbage collector does it: every object has its owner, and what has a finalizer is released by `release`
/// (see `g_21`). That no pass touches a terminating DataPlane is for a cluster to show.
#[test]
fn s_a_dataplane_deleted_mid_rollout_takes_everything_with_it() {
    let world = World::awaiting("kong:3.10");
    let owner = json!([{
        "apiVersion": "gateway-operator.konghq.com/v1beta1", "kind": "DataPlane", "name": "dp", "uid": "uid",
        "controller": true,
    }]);
    for kind in ["Deployment", "Service", "Secret", "ControllerRevision", "Promotion"] {
        let held = if matches!(kind, "Deployment" | "Service" | "Secret") {
            json!([names::WAIT_FOR_OWNER])
        } else {
            Value::Null
        };
        for object in world.all(kind) {
            assert_eq!((&object["metadata"]["ownerReferences"], &object["metadata"]["finalizers"]), (&owner, &held));
        }
    }
    assert_eq!(world.dataplane.metadata.finalizers, None);
}

#[test]
fn s_what_a_user_deletes_is_marked_and_serves_on() {
    let mut world = World::awaiting("kong:3.10");
    let all = |world: &World| ["Deployment", "Service", "Secret"].map(|kind| world.names(kind));
    let before = all(&world);
    for (kind, names) in ["Deployment", "Service", "Secret"].iter().zip(&before) {
        names.iter().for_each(|name| world.delete(kind, name));
    }
    world.run();
    assert_eq!(all(&world), before);
    assert_eq!((world.reason(), world.serves()), ("AwaitingPromotion".into(), ["kong:3.9".to_owned()].into()));
}
