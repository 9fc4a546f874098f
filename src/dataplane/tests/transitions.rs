//! Every row of Kong's table of transitions (3.3). Where a comment does not say otherwise, this is Kong's behaviour.

use serde_json::json;

use super::world::{World, name};
use crate::{
    api::dataplane::PROMOTE_WHEN_READY,
    model::names::{Role, State},
};

/// What `RolledOut` says of a second generation until a person is awaited.
const STAGED: [&str; 3] =
    ["Progressing/2: Rollout initialized", "Progressing/2: Preview Deployment not yet ready", "AwaitingPromotion/2"];

/// And from the approval on.
const PROMOTED: [&str; 3] = ["PromotionInProgress/2", "PromotionDone/2", "WaitingForChange/2"];

#[test]
fn t_created_with_the_strategy_it_rests_beside_a_preview_of_zero() {
    let mut world = World::with("kong:3.9", json!({}));
    assert_eq!(world.run(), ["Progressing/1: Rollout initialized", "WaitingForChange/1"]);
    assert!(world.rests());
    assert_eq!((world.names("Service").len(), world.names("Secret").len()), (4, 2));
    assert_eq!(world.readiness(), "True/Ready");
}

/// Different: what runs is what is wanted, so there is nothing to promote. Kong starts a full preview of the same spec.
#[test]
fn t_strategy_added_later_it_rests_at_once() {
    let mut world = World::in_place("kong:3.9", json!({}));
    assert_eq!(world.run(), ["-"]);
    world.edit(json!({ "deployment": { "rollout": { "strategy": { "blueGreen": { "promotion": {} } } } } }));
    assert_eq!(world.run(), ["WaitingForChange/2"]);
    assert!(world.rests());
}

#[test]
fn t_strategy_added_together_with_a_change_it_awaits_promotion() {
    let mut world = World::in_place("kong:3.9", json!({}));
    world.run();
    let containers = json!([{ "name": "proxy", "image": "kong:3.10" }]);
    world.edit(json!({ "deployment": {
        "rollout": { "strategy": { "blueGreen": { "promotion": {} } } },
        "podTemplateSpec": { "spec": { "containers": containers } },
    }}));
    assert_eq!(world.run(), STAGED);
    assert_eq!(world.serves(), ["kong:3.9".to_owned()].into());
}

#[test]
fn t_waiting_for_change_a_change_is_staged_at_its_generation() {
    let mut world = World::at_rest("kong:3.9");
    let preview = name(world.deployment(State::Preview));
    world.image("kong:3.10");
    world.pass();
    assert_eq!(world.rolled_out().map(|said| said.message), Some("Rollout initialized".into()));
    assert_eq!(world.generations(), [Some(1), Some(2), Some(2)]);
    let staged = world.deployment(State::Preview);
    assert_eq!((name(staged), &staged["spec"]["replicas"]), (preview, &json!(1)));
    assert_eq!(staged["spec"]["template"]["spec"]["containers"][0]["image"], "kong:3.10");
}

#[test]
fn t_progressing_lasts_until_the_preview_is_ready() {
    let mut world = World::at_rest("kong:3.9");
    world.broken.insert("kong:3.10");
    world.image("kong:3.10");
    assert_eq!(world.run(), STAGED[..2]);
    world.broken.clear();
    assert_eq!(world.run(), STAGED[2..]);
}

#[test]
fn t_progressing_and_ready_without_approval_a_person_is_awaited() {
    let mut world = World::at_rest("kong:3.9");
    world.image("kong:3.10");
    assert_eq!(world.run(), STAGED);
    assert_eq!((world.ready(State::Live), world.ready(State::Preview)), (1, 1));
    assert_eq!(world.serves(), ["kong:3.9".to_owned()].into());
}

#[test]
fn t_progressing_and_ready_with_approval_nobody_is_awaited() {
    let mut world = World::at_rest("kong:3.9");
    world.image("kong:3.10");
    world.approve();
    assert_eq!(world.run(), [&STAGED[..2], &PROMOTED].concat());
}

#[test]
fn t_awaiting_promotion_the_approval_promotes() {
    let mut world = World::awaiting("kong:3.10");
    world.approve();
    assert_eq!(world.run(), PROMOTED);
    assert_eq!(world.serves(), ["kong:3.10".to_owned()].into());
    assert!(!world.dataplane.metadata.annotations.is_some_and(|known| known.contains_key(PROMOTE_WHEN_READY)));
}

#[test]
fn t_awaiting_promotion_a_change_rolls_the_same_preview_again() {
    let mut world = World::awaiting("kong:3.10");
    let before = (name(world.deployment(State::Preview)), world.selects(State::Preview, Role::Ingress));
    world.image("kong:3.11");
    assert_eq!(
        world.run(),
        [
            "Progressing/3: Rollout initialized",
            "Progressing/3: Preview Deployment not yet ready",
            "AwaitingPromotion/3"
        ]
    );
    let after = (name(world.deployment(State::Preview)), world.selects(State::Preview, Role::Ingress));
    assert_eq!(before, after);
}

#[test]
fn t_awaiting_promotion_broken_pods_are_progress_again() {
    let mut world = World::awaiting("kong:3.10");
    world.broken.insert("kong:3.10");
    assert_eq!(world.run(), STAGED[1..2]);
    world.broken.clear();
    assert_eq!(world.run(), STAGED[2..]);
}

#[test]
fn t_promotion_in_progress_ends_when_both_services_are_switched_and_the_deployment_is_relabelled() {
    let mut world = World::awaiting("kong:3.10");
    let promoted = name(world.deployment(State::Preview));
    world.approve();
    world.until("PromotionDone");
    assert_eq!(name(world.deployment(State::Live)), promoted);
    assert_eq!(world.selects(State::Live, Role::Admin), world.selects(State::Live, Role::Ingress));
    assert_eq!(world.rolled_out().map(|said| said.status), Some("True".into()));
}

/// Different: Kong says `PromotionFailed`, which leaves the spec open for changes half-way. Here the reason stays, the
/// message says what stands in the way, and the promotion goes on by itself, whichever Service it was.
#[test]
fn t_promotion_in_progress_a_refused_write_is_said_and_tried_again() {
    for role in [Role::Admin, Role::Ingress] {
        let mut world = World::awaiting("kong:3.10");
        let service = name(world.service(State::Live, role));
        world.refused = Some(service.clone());
        world.approve();
        let trouble = format!("PromotionInProgress/2: could not apply Service {service}: the API refuses it");
        assert_eq!(world.run(), [PROMOTED[0], &trouble]);
        world.refused = None;
        assert_eq!(world.run(), PROMOTED);
    }
}

#[test]
fn t_promotion_in_progress_a_refused_first_write_can_be_given_up() {
    let mut world = World::awaiting("kong:3.10");
    world.refused = Some("Service".into());
    world.approve();
    world.run();
    world.annotate(PROMOTE_WHEN_READY, None);
    assert_eq!(world.run(), STAGED[2..]);
}

/// Different: `status.selector` stays what the live Services select. Kong's may be the preview's already.
#[test]
fn t_promotion_in_progress_before_the_switch_falls_back_when_its_reasons_go() {
    for (go, said) in [("approval", "AwaitingPromotion/2"), ("pods", "Progressing/2: Preview Deployment not yet ready")]
    {
        let mut world = World::awaiting("kong:3.10");
        let live = world.selects(State::Live, Role::Ingress);
        world.approve();
        world.until("PromotionInProgress");
        match go {
            "approval" => world.annotate(PROMOTE_WHEN_READY, None),
            _ => drop(world.broken.insert("kong:3.10")),
        }
        world.machines();
        assert_eq!(world.run(), [said], "{go}");
        assert_eq!(world.selects(State::Live, Role::Ingress), live, "{go}");
        assert_eq!(world.status().selector, Some(live), "{go}");
    }
}

#[test]
fn t_promotion_done_comes_to_rest_with_a_fresh_preview() {
    let mut world = World::awaiting("kong:3.10");
    let preview = |world: &World| world.status().rollout.and_then(|rollout| rollout.deployment?.selector);
    let promoted = preview(&world);
    world.approve();
    world.until("PromotionDone");
    assert_eq!(preview(&world), None);
    world.run();
    assert!(world.rests());
    assert_eq!(world.status().selector, promoted);
    assert!(preview(&world).is_some_and(|fresh| Some(&fresh) != promoted.as_ref()));
    let image = &world.deployment(State::Preview)["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, "kong:3.10");
}

/// Different: the condition says what is true in this pass. Kong's stays `Failed` until some later step overwrites it.
#[test]
fn t_failed_ends_with_the_write_that_failed() {
    let mut world = World::at_rest("kong:3.9");
    let preview = name(world.deployment(State::Preview));
    world.refused = Some("Deployment".into());
    world.image("kong:3.10");
    assert_eq!(world.run(), [format!("Failed/2: could not apply Deployment {preview}: the API refuses it")]);
    assert_eq!(world.serves(), ["kong:3.9".to_owned()].into());
    world.refused = None;
    assert_eq!(world.run(), STAGED[1..]);
}

#[test]
fn t_strategy_removed_the_preview_goes_and_the_spec_is_applied_in_place() {
    let mut world = World::awaiting("kong:3.10");
    let live = name(world.deployment(State::Live));
    world.edit(json!({ "deployment": { "rollout": null } }));
    assert_eq!(world.run(), ["-"]);
    assert_eq!(world.status().rollout, None);
    assert_eq!(world.names("Deployment"), [live]);
    assert_eq!((world.names("Service").len(), world.names("Secret").len()), (2, 1));
    assert_eq!(world.serves(), ["kong:3.10".to_owned()].into());
    assert_eq!(world.generations(), [Some(3), None, Some(3)]);
}

/// Different where gates are demanded: removing the strategy is no way around them.
#[test]
fn t_strategy_removed_under_gates_the_live_side_stays_and_says_so() {
    let mut world = World::at_rest("kong:3.9");
    world.govern();
    world.image("kong:3.10");
    world.run();
    world.edit(json!({ "deployment": { "rollout": null } }));
    world.run();
    assert_eq!(world.serves(), ["kong:3.9".to_owned()].into());
    assert_eq!(world.condition("Stalled").map(|stalled| stalled.reason), Some("GatesNeedBlueGreen".into()));
}

#[test]
fn t_generations_tell_what_is_live_what_is_prepared_and_what_is_wanted() {
    let mut world = World::at_rest("kong:3.9");
    let mut seen = vec![world.generations()];
    world.image("kong:3.10");
    world.run();
    seen.push(world.generations());
    world.approve();
    world.until("PromotionInProgress");
    seen.push(world.generations());
    world.run();
    seen.push(world.generations());
    assert_eq!(seen, [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]].map(|row| row.map(Some)));
}
