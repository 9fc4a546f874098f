//! Nothing is lost at the switch: as many Pods serve as are wanted, in every pass, and what traffic leaves stands until
//! all of it has arrived and its time is over, counted anew where traffic leaves again.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::world::{World, name};
use crate::model::names::{Role, SELECTOR, State};

/// As long as a replaced side lives on by default.
const DELAY: SignedDuration = SignedDuration::from_secs(30);

fn autoscaled() -> World {
    let scaling = json!({ "deployment": { "scaling": { "horizontal": { "minReplicas": 2, "maxReplicas": 9 } } } });
    let mut world = World::with("kong:3.9", scaling);
    world.run();
    assert_eq!(world.ready(State::Live), 2);
    world
}

/// Pods that take the traffic of the live Service, of one side.
fn serving(world: &World, side: &str) -> usize {
    let takers = world.takers(State::Live, Role::Ingress);
    takers
        .iter()
        .filter(|pod| world.raw("Pod", pod).is_some_and(|pod| pod["metadata"]["labels"][SELECTOR] == side))
        .count()
}

#[test]
fn an_autoscaler_may_scale_both_ways_in_every_pass() {
    let counts = [2, 7, 3, 9, 2, 5];
    // Each of them meets each step of the upgrade.
    for first in 0..counts.len() {
        let mut world = autoscaled();
        world.govern();
        let (stable, replaced) = (world.selects(State::Live, Role::Ingress), name(world.deployment(State::Live)));
        world.image("kong:3.10");
        world.approve();
        let (mut arrived, mut asked) = (None, 2);
        for count in counts.iter().cycle().skip(first).take(30) {
            let before = world.selects(State::Live, Role::Ingress);
            let ready = (before == stable).then(|| world.ready(State::Preview));
            world.pass();
            let side = world.selects(State::Live, Role::Ingress);
            if let Some(ready) = ready.filter(|_| side != stable) {
                assert!(ready >= asked, "{ready} Pods take over from {asked}");
            }
            if side != stable && serving(&world, &stable) > 0 || arrived.is_none() {
                assert!(world.raw("Deployment", &replaced).is_some(), "traffic had not arrived");
            }
            world.autoscale(*count);
            asked = i64::from(*count);
            world.machines();
            assert!(world.takers(State::Live, Role::Ingress).len() >= 2, "{}", world.reason());
            if world.reason() == "PromotionDone" {
                arrived.get_or_insert(world.now);
            }
        }
        let arrived = arrived.expect("it arrived");
        assert!(world.raw("Deployment", &replaced).is_some(), "its time is not over");
        world.run();
        assert!(world.rests() && world.now.duration_since(arrived) >= DELAY, "{first}");
    }
}

/// As many new Pods as the autoscaler had given the side before, not as many as it has at least.
#[test]
fn the_replaced_side_of_an_autoscaled_one_stands_until_all_that_is_wanted_has_arrived() {
    let mut world = autoscaled();
    world.autoscale(8);
    world.run();
    let replaced = name(world.deployment(State::Live));
    world.image("kong:3.10");
    world.run();
    world.approve();
    world.until("PromotionInProgress");
    let promoted = world.deployment(State::Preview)["metadata"]["labels"][SELECTOR].clone();
    // Six of the eight break while traffic is on its way.
    world.awake = false;
    let pods: Vec<_> =
        world.all("Pod").into_iter().filter(|pod| pod["metadata"]["labels"][SELECTOR] == promoted).map(name).collect();
    let broken = |world: &mut World, status: &str| {
        for pod in &pods[2..] {
            world.bend("Pod", pod, |pod| pod["status"]["conditions"][0]["status"] = status.into());
        }
    };
    world.pass();
    assert_eq!(world.selects(State::Live, Role::Ingress), promoted);
    broken(&mut world, "False");
    world.machines();
    for _ in 0..3 {
        world.run();
        world.later(100);
    }
    assert_eq!((world.reason(), world.takers(State::Live, Role::Ingress).len()), ("PromotionInProgress".into(), 2));
    assert!(world.raw("Deployment", &replaced).is_some());
    broken(&mut world, "True");
    world.run();
    assert_eq!(world.raw("Deployment", &replaced), None);
}

/// Fewer are enough where the autoscaler wants fewer by now.
#[test]
fn an_autoscaler_that_scales_the_new_side_down_keeps_nothing_waiting() {
    let mut world = autoscaled();
    world.autoscale(8);
    world.run();
    world.image("kong:3.10");
    world.run();
    world.approve();
    world.until("PromotionDone");
    world.autoscale(3);
    world.machines();
    let arrived = world.now;
    world.run();
    assert!(world.rests());
    assert_eq!((world.ready(State::Live), world.now.duration_since(arrived)), (3, DELAY));
}

/// 120 endpoints are two EndpointSlices, which are written one after the other.
#[test]
fn the_replaced_side_stands_until_every_slice_has_followed() {
    let mut world = World::with("kong:3.9", json!({ "deployment": { "replicas": 120 } }));
    world.run();
    let replaced = name(world.deployment(State::Live));
    let slices =
        |world: &World| -> Vec<Value> { world.slices(State::Live, Role::Ingress).into_iter().cloned().collect() };
    let before = slices(&world);
    assert_eq!(before.len(), 2);
    world.image("kong:3.10");
    world.run();
    world.approve();
    world.until("PromotionInProgress");
    while world.serves() == BTreeSet::from(["kong:3.9".to_owned()]) {
        world.pass();
        world.machines();
    }
    let after = slices(&world);
    let put = |world: &mut World, slice: &Value| {
        world.bend("EndpointSlice", &name(slice), |found| found["endpoints"] = slice["endpoints"].clone());
    };
    for late in 0..2 {
        put(&mut world, &before[late]);
        put(&mut world, &after[1 - late]);
        assert_eq!(world.serves().len(), 2);
        for _ in 0..3 {
            world.pass();
            world.later(100);
        }
        assert_eq!(world.reason(), "PromotionInProgress", "{late}");
        assert!(world.raw("Deployment", &replaced).is_some(), "{late}");
    }
    put(&mut world, &after[1]);
    let arrived = world.now;
    world.until("PromotionDone");
    // One of them goes back, as seen by an operator whose watch was behind: its time is counted anew.
    world.later(29);
    put(&mut world, &before[1]);
    world.pass();
    world.later(1);
    world.pass();
    assert!(world.raw("Deployment", &replaced).is_some());
    put(&mut world, &after[1]);
    let again = world.now;
    world.run();
    assert!(world.rests());
    assert_eq!((again.duration_since(arrived).as_secs(), world.now.duration_since(again)), (30, DELAY));
}

/// The record says when to a fraction of a second: in whole ones it would go up to a second early.
#[test]
fn what_traffic_left_lives_as_long_as_it_may_however_late_in_a_second_that_was() {
    for back in [false, true] {
        let mut world = World::awaiting("kong:3.10");
        let replaced = name(world.deployment(State::Live));
        world.now += SignedDuration::from_millis(900);
        world.approve();
        world.until("PromotionDone");
        let left = if back {
            let left = name(world.deployment(State::Live));
            world.decide(json!({ "rollback": true, "by": "jane" }));
            world.until("RolledBack");
            left
        } else {
            replaced
        };
        let stands = |world: &World| world.raw("Deployment", &left).is_some_and(|one| one["spec"]["replicas"] == 1);
        world.now += DELAY - SignedDuration::from_millis(1);
        world.pass();
        assert!(stands(&world), "back: {back}");
        world.now += SignedDuration::from_millis(1);
        world.pass();
        assert!(!stands(&world), "back: {back}");
    }
}
