//! Defects of Kong's operator that were found by reading it (6.2), by number: none of them is here, or it is kept on
//! purpose, with the reason.
//!
//! `G5` has no test: a second pair of Services and candidates without configuration confuse Kong's own ControlPlane and
//! Gateway controllers, and there are none here.

use k8s_openapi::api::core::v1::Service;
use kube::runtime::reflector::ObjectRef;
use serde_json::{Value, json};

use super::world::{World, name};
use crate::{
    api::dataplane::{PROMOTE_WHEN_READY, SERVICE_SELECTOR_OVERRIDE},
    dataplane::release,
    model::{
        Phase,
        names::{self, Role, State},
        trial::{Outcome, Reason},
    },
};

/// What Kong's operator leaves behind when it is killed between its last label and its first deletion: traffic at the
/// new Pods, and two Deployments that are labelled live.
fn killed_after_relabelling() -> World {
    let mut world = World::awaiting("kong:3.10");
    let (promoted, selector) = (name(world.deployment(State::Preview)), world.selects(State::Preview, Role::Ingress));
    for role in [Role::Ingress, Role::Admin] {
        let service = name(world.service(State::Live, role));
        world.bend("Service", &service, |one| one["spec"]["selector"][names::SELECTOR] = selector.as_str().into());
    }
    world.bend("Deployment", &promoted, |one| one["metadata"]["labels"][names::DEPLOYMENT_STATE] = "live".into());
    world.lose("ControllerRevision");
    world.lose("Promotion");
    let rollout = world.dataplane.status.as_mut().and_then(|status| status.rollout.as_mut());
    rollout.expect("a rollout").conditions[0].reason = "PromotionInProgress".into();
    world.machines();
    world
}

#[test]
fn g_1_two_live_deployments_are_reduced_to_the_one_that_serves() {
    let mut world = killed_after_relabelling();
    world.run();
    assert!(world.rests());
    assert_eq!(world.serves(), ["kong:3.10".to_owned()].into());
}

#[test]
fn g_2_a_first_spec_that_cannot_run_is_cured_by_the_next_one() {
    for (image, broken) in [("kong:1.0", false), ("kong:3.9", true)] {
        let mut world = World::with(image, json!({}));
        if broken {
            world.broken.insert("kong:3.9");
        }
        world.run();
        assert_eq!(world.condition("Ready").map(|ready| ready.status), Some("False".into()));
        world.image("kong:3.10");
        world.run();
        assert!(world.rests(), "{image}");
        assert_eq!(world.serves(), ["kong:3.10".to_owned()].into());
    }
}

#[test]
fn g_3_promoted_pods_are_not_touched_again() {
    let mut world = World::awaiting("kong:3.10");
    let promoted = name(world.deployment(State::Preview));
    let spec = world.deployment(State::Preview)["spec"].clone();
    world.approve();
    world.run();
    assert!(world.rests());
    assert_eq!(world.raw("Deployment", &promoted).map(|one| &one["spec"]), Some(&spec));
}

#[test]
fn g_4_a_named_ingress_service_and_its_preview_do_not_collide() {
    let mut world = World::with("kong:3.9", json!({ "network": { "services": { "ingress": { "name": "edge" } } } }));
    world.run();
    assert!(world.rests());
    assert_eq!(name(world.service(State::Live, Role::Ingress)), "edge");
    assert_ne!(name(world.service(State::Preview, Role::Ingress)), "edge");
    world.image("kong:3.10");
    world.approve();
    world.run();
    assert!(world.rests());
    assert_eq!((world.status().service.as_deref(), world.serves()), (Some("edge"), ["kong:3.10".to_owned()].into()));
}

#[test]
fn g_6_the_preview_has_the_ports_of_the_spec() {
    let mut world = World::at_rest("kong:3.9");
    world.edit(json!({ "network": { "services": { "ingress": { "ports": [{ "port": 9000 }] } } } }));
    world.run();
    let ports = world.service(State::Preview, Role::Ingress)["spec"]["ports"].as_array().expect("ports");
    assert_eq!(ports.iter().map(|port| &port["port"]).collect::<Vec<_>>(), [&json!(9000)]);
}

/// The preview would run without the plugins, so nothing is staged: the field is refused.
#[test]
fn g_7_plugins_from_images_are_refused_and_nothing_is_staged() {
    let mut world = World::at_rest("kong:3.9");
    world.edit(json!({ "pluginsToInstall": [{ "name": "mine" }] }));
    world.image("kong:3.10");
    world.run();
    assert_eq!(world.reason(), "Failed");
    let stalled = world.condition("Stalled").expect("Stalled");
    assert!(stalled.message.starts_with("spec.pluginsToInstall: "), "{}", stalled.message);
    assert_eq!((world.ready(State::Live), world.ready(State::Preview)), (1, 0));
    assert_eq!(world.readiness(), "True/Ready");
}

#[test]
fn g_8_an_autoscaler_without_a_minimum_does_not_keep_the_preview_at_zero() {
    let mut world =
        World::with("kong:3.9", json!({ "deployment": { "scaling": { "horizontal": { "maxReplicas": 5 } } } }));
    world.run();
    world.image("kong:3.10");
    world.run();
    assert_eq!((world.reason(), world.ready(State::Preview)), ("AwaitingPromotion".into(), 1));
    world.approve();
    world.run();
    assert!(world.rests());
}

/// A DataPlane of no Pods serves nobody, so `Ready` is Kong's: false. Its upgrades work: one Pod is judged.
#[test]
fn g_9_no_replicas_are_not_ready_but_can_be_upgraded() {
    let mut world = World::with("kong:3.9", json!({ "deployment": { "replicas": 0 } }));
    world.run();
    assert!(world.rests());
    assert!(world.readiness().starts_with("False/WaitingToBecomeReady"), "{}", world.readiness());
    world.image("kong:3.10");
    world.run();
    assert_eq!((world.reason(), world.ready(State::Preview)), ("AwaitingPromotion".into(), 1));
    world.approve();
    world.run();
    assert!(world.rests());
    let live = &world.deployment(State::Live)["spec"];
    assert_eq!(
        (&live["replicas"], &live["template"]["spec"]["containers"][0]["image"]),
        (&json!(0), &json!("kong:3.10"))
    );
}

/// In every pass as many Pods serve as the autoscaler asked for, and it never points at a Deployment that is gone.
#[test]
fn g_10_a_promotion_costs_no_capacity() {
    let scaling = json!({ "deployment": { "scaling": { "horizontal": { "minReplicas": 1, "maxReplicas": 10 } } } });
    let mut world = World::with("kong:3.9", scaling);
    world.run();
    world.autoscale(4);
    world.run();
    world.image("kong:3.10");
    world.approve();
    for _ in 0..20 {
        world.pass();
        world.machines();
        assert_eq!(world.takers(State::Live, Role::Ingress).len(), 4, "{}", world.reason());
        let target = world.autoscaler()["spec"]["scaleTargetRef"]["name"].as_str().expect("a target");
        assert!(world.raw("Deployment", target).is_some(), "{}", world.reason());
    }
    assert_eq!(world.reason(), "PromotionDone");
}

/// Both Services move in one pass, and what they left serves open connections for as long as the policy says.
#[test]
fn g_11_the_replaced_side_is_drained() {
    let mut world = World::awaiting("kong:3.10");
    let (stable, candidate) = (world.selects(State::Live, Role::Ingress), world.selects(State::Preview, Role::Ingress));
    let replaced = name(world.deployment(State::Live));
    world.approve();
    while world.reason() != "PromotionDone" {
        world.pass();
        let both = [Role::Ingress, Role::Admin].map(|role| world.selects(State::Live, role));
        assert!(both == [stable.clone(), stable.clone()] || both == [candidate.clone(), candidate.clone()]);
        world.machines();
    }
    world.pass();
    world.later(29);
    world.pass();
    world.machines();
    assert_eq!(world.raw("Deployment", &replaced).map(|one| &one["status"]["readyReplicas"]), Some(&json!(1)));
    world.later(1);
    world.pass();
    assert_eq!(world.raw("Deployment", &replaced), None);
}

#[test]
fn g_12_a_status_about_the_spec_before_promotes_nothing() {
    let mut world = World::awaiting("kong:3.10");
    world.awake = false;
    world.image("kong:3.11");
    world.approve();
    world.run();
    let preview = world.deployment(State::Preview);
    assert!(preview["status"]["observedGeneration"].as_i64() < preview["metadata"]["generation"].as_i64());
    assert_eq!((world.reason(), world.serves()), ("Progressing".into(), ["kong:3.9".to_owned()].into()));
}

/// Without a policy this is Kong's, for scripts that annotate first: the next change is promoted. Words that are not
/// `true` are ignored in silence, as with Kong (`u_2`).
#[test]
fn g_13_without_a_policy_an_early_approval_promotes_the_next_change() {
    let mut world = World::at_rest("kong:3.9");
    world.approve();
    assert!(world.run().is_empty());
    world.image("kong:3.10");
    assert!(!world.run().contains(&"AwaitingPromotion/2".to_owned()));
    assert_eq!(world.serves(), ["kong:3.10".to_owned()].into());
}

/// With a policy an approval is for the revision it was first seen with.
#[test]
fn g_13_with_a_policy_an_approval_does_not_outlive_its_revision() {
    let mut world = World::at_rest("kong:3.9");
    world.govern();
    world.verdict = Some(Outcome::Fail(Reason { code: "Bad".into(), message: String::new() }));
    world.image("kong:3.10");
    world.approve();
    world.run();
    assert_eq!(world.reason(), "GatesFailed");
    world.govern();
    world.image("kong:3.11");
    world.run();
    assert_eq!((world.reason(), world.serves()), ("AwaitingPromotion".into(), ["kong:3.9".to_owned()].into()));
    assert!(world.notes.iter().any(|note| note.reason == "ApprovalVoided"));
    assert_eq!(world.dataplane.metadata.annotations.unwrap_or_default().get(PROMOTE_WHEN_READY), None);
}

#[test]
fn g_14_a_selector_override_with_blue_green_is_refused_and_changes_nothing() {
    for mut world in [World::at_rest("kong:3.9"), World::awaiting("kong:3.10")] {
        let before = world.all("Service").into_iter().map(|one| one["spec"].clone()).collect::<Vec<_>>();
        world.annotate(SERVICE_SELECTOR_OVERRIDE, Some("app=other"));
        world.run();
        assert_eq!(world.all("Service").into_iter().map(|one| one["spec"].clone()).collect::<Vec<_>>(), before);
        let stalled = world.condition("Stalled").expect("Stalled");
        assert!(stalled.message.contains(SERVICE_SELECTOR_OVERRIDE), "{}", stalled.message);
        world.annotate(SERVICE_SELECTOR_OVERRIDE, None);
        world.approve();
        world.run();
        assert!(world.rests(), "the way out is open");
    }
}

#[test]
fn g_15_the_status_never_names_a_selector_that_live_does_not_have() {
    let mut world = World::at_rest("kong:3.9");
    world.image("kong:3.10");
    world.approve();
    for pass in 0..20 {
        // Taken back and given again, as early and as late as can be.
        world.annotate(PROMOTE_WHEN_READY, (pass % 3 != 0).then_some("true"));
        let (said, before) = (world.status().selector, world.selects(State::Live, Role::Ingress));
        let (plan, _) = world.pass();
        let found = if plan.phase == Phase::Switching { said } else { Some(before) };
        assert_eq!(world.status().selector, found, "as this pass found it; until traffic has moved, where it was");
        world.machines();
    }
}

#[test]
fn g_16_a_lost_status_is_found_again_in_the_objects() {
    for mut world in [World::at_rest("kong:3.9"), World::awaiting("kong:3.10")] {
        let before = (world.status().selector, world.reason(), objects(&world));
        world.dataplane.status = None;
        world.run();
        assert_eq!((world.status().selector, world.reason(), objects(&world)), before);
    }
}

fn objects(world: &World) -> Vec<Value> {
    ["Deployment", "Service", "Secret"].iter().flat_map(|kind| world.all(kind)).cloned().collect()
}

#[test]
fn g_17_services_without_an_ingress_are_the_default_one() {
    for network in [json!({}), json!({ "services": {} }), json!({ "services": { "ingress": {} } })] {
        let mut world = World::with("kong:3.9", json!({}));
        world.edit(json!({ "network": network }));
        world.run();
        assert!(world.rests(), "{network}");
        assert_eq!(world.service(State::Live, Role::Ingress)["spec"]["type"], "LoadBalancer");
    }
}

#[test]
fn g_18_removing_the_strategy_between_label_and_deletion_keeps_the_one_that_serves() {
    let mut world = killed_after_relabelling();
    let rollout = world.dataplane.status.as_mut().and_then(|status| status.rollout.as_mut());
    rollout.expect("a rollout").conditions[0].reason = "PromotionDone".into();
    world.edit(json!({ "deployment": { "rollout": null } }));
    let serving = world.selects(State::Live, Role::Ingress);
    world.run();
    assert_eq!(world.names("Deployment").len(), 1);
    assert_eq!((world.selects(State::Live, Role::Ingress), world.serves()), (serving, ["kong:3.10".to_owned()].into()));
}

/// What the spec no longer names goes (`u_annotations_...`), what others add stays.
#[test]
fn g_19_labels_and_annotations_of_others_stay() {
    let mut world = World::at_rest("kong:3.9");
    let objects = [world.deployment(State::Live).clone(), world.service(State::Live, Role::Ingress).clone()];
    for object in &objects {
        world.bend(object["kind"].as_str().expect("a kind"), &name(object), |one| {
            one["metadata"]["labels"]["cost-centre"] = "42".into();
            one["metadata"]["annotations"]["note"] = "mine".into();
        });
    }
    world.edit(json!({ "deployment": { "replicas": 2 } }));
    world.edit(json!({ "network": { "services": { "ingress": { "annotations": { "team": "edge" } } } } }));
    world.run();
    for object in [world.deployment(State::Live), world.service(State::Live, Role::Ingress)] {
        let metadata = &object["metadata"];
        assert_eq!(
            (&metadata["labels"]["cost-centre"], &metadata["annotations"]["note"]),
            (&json!("42"), &json!("mine"))
        );
    }
}

#[test]
fn g_20_the_preview_claims_no_name_and_no_address_of_the_live_service() {
    let claim = "external-dns.alpha.kubernetes.io/hostname";
    let annotations = json!({ claim: "api.example", "team": "edge" });
    let mut world =
        World::with("kong:3.9", json!({ "network": { "services": { "ingress": { "annotations": annotations } } } }));
    world.run();
    let seen = [State::Live, State::Preview].map(|state| {
        let found = &world.service(state, Role::Ingress)["metadata"]["annotations"];
        json!([found[claim], found["team"]])
    });
    assert_eq!(seen, [json!(["api.example", "edge"]), json!([null, "edge"])]);
}

/// By UID: a DataPlane that was made anew under the same name keeps nothing of the one before.
#[test]
fn g_21_what_an_owner_of_the_same_name_left_behind_is_let_go() {
    let mut world = World::at_rest("kong:3.9");
    let name = name(world.service(State::Live, Role::Ingress));
    let orphan = |world: &World, standing| {
        let service: Service =
            serde_json::from_value(world.raw("Service", &name).cloned().expect("it")).expect("a Service");
        release::is_orphan(&service, &ObjectRef::from_obj(&world.dataplane), standing)
    };
    assert!(!orphan(&world, None), "nobody deleted it");
    world.delete("Service", &name);
    assert!(!orphan(&world, Some("uid")), "its owner stands: it serves on");
    assert!(orphan(&world, Some("uid of another one")) && orphan(&world, None));
}

#[test]
fn g_22_an_upgrade_is_told_in_events() {
    let mut world = World::at_rest("kong:3.9");
    world.govern();
    world.image("kong:3.10");
    world.run();
    world.approve();
    world.run();
    let told: Vec<_> = world.notes.iter().map(|note| (note.warning, note.reason.as_str())).collect();
    let expected = [
        "Progressing",
        "WaitingForChange",
        "Progressing",
        "RunningGates",
        "AwaitingPromotion",
        "PromotionInProgress",
        "PromotionDone",
        "WaitingForChange",
    ];
    assert_eq!(told, expected.map(|reason| (false, reason)));
}

/// A selector follows from what is observed in the same pass, never from a status that may be behind. The other half,
/// that no pass decides on a cache older than its own last write, is [`Writes`](crate::cluster::writer::Writes)'s.
#[test]
fn g_23_the_preview_services_select_the_preview_and_nothing_else() {
    let mut world = World::at_rest("kong:3.9");
    world.image("kong:3.10");
    world.approve();
    for pass in 0..20 {
        if pass % 3 == 0 {
            world.dataplane.status = None;
        }
        world.pass();
        world.machines();
        // While the replaced side drains there is no preview, and nothing that its Services could select.
        let preview = |one: &&Value| one["metadata"]["labels"][names::DEPLOYMENT_STATE] == "preview";
        let preview = world.all("Deployment").into_iter().find(preview);
        for role in [Role::Ingress, Role::Admin] {
            let selector = &world.service(State::Preview, role)["spec"]["selector"];
            for one in world.all("Deployment") {
                let selects = one["spec"]["selector"]["matchLabels"] == *selector;
                assert_eq!(selects, Some(one) == preview, "pass {pass}");
            }
        }
    }
    assert_eq!((world.reason(), world.serves()), ("PromotionDone".into(), ["kong:3.10".to_owned()].into()));
}

#[test]
fn g_24_a_broken_certificate_is_issued_again_in_its_place() {
    let mut world = World::at_rest("kong:3.9");
    let secrets = world.names("Secret");
    let deployments =
        world.names("Deployment").iter().map(|name| world.raw("Deployment", name).cloned()).collect::<Vec<_>>();
    for secret in &secrets {
        world.bend("Secret", secret, |secret| {
            drop(secret["data"].as_object_mut().and_then(|data| data.remove("tls.key")))
        });
    }
    world.run();
    assert_eq!(world.names("Secret"), secrets);
    assert!(world.all("Secret").into_iter().all(|secret| secret["data"]["tls.key"].is_string()));
    let after = world.names("Deployment").iter().map(|name| world.raw("Deployment", name).cloned()).collect::<Vec<_>>();
    assert_eq!(after, deployments, "no Pod is restarted for it");
}
