//! Every deadline of every phase, on a clock that runs only where a test says so: it is shown before, the operator wakes
//! for it, and what becomes of the upgrade is said.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::world::{World, name};
use crate::{
    api::promotion::Verdict,
    dataplane::fixtures,
    model::{
        names::State,
        trial::{Outcome, Reason},
    },
};

fn reason(code: &str) -> Reason {
    Reason { code: code.into(), message: "because".into() }
}

/// An upgrade to `kong:3.10` under a policy with one gate, which has not been asked for yet.
fn started() -> World {
    let mut world = World::at_rest("kong:3.9");
    let gate = json!({ "name": "smoke", "pluginRef": { "name": "smoke" }, "timeout": "30s", "deadline": "20m" });
    world.policies = vec![fixtures::policy_of("policy", json!({ "progressDeadlineSeconds": 60, "gates": [gate] }))];
    world.image("kong:3.10");
    world
}

/// The deadline that is shown; the operator looks again at that time, whatever happens.
fn shown(world: &mut World) -> Timestamp {
    let (plan, _) = world.pass();
    let deadline = world.promotion().deadline.expect("a deadline").0;
    assert_eq!(plan.again, Some(deadline), "{}", world.reason());
    deadline
}

/// Lets the deadline pass, and nothing before it. Says what `RolledOut` says then.
fn over(world: &mut World) -> String {
    let (deadline, before) = (shown(world), world.reason());
    world.now = deadline - Duration::from_secs(1);
    world.run();
    assert_eq!(world.reason(), before, "not before its time");
    world.now = deadline;
    world.run();
    let said = world.rolled_out().expect("RolledOut");
    format!("{}: {}", said.reason, said.message)
}

#[test]
fn staging_a_preview_that_does_not_start() {
    let mut world = started();
    world.broken.insert("kong:3.10");
    world.run();
    assert_eq!(shown(&mut world), world.now + Duration::from_secs(60));
    assert_eq!(over(&mut world), "DeadlineExceeded: Preview Deployment not yet ready");
    // Late is better than never.
    world.broken.clear();
    world.run();
    assert_eq!(world.reason(), "RunningGates");
}

#[test]
fn judging_a_preview_that_does_not_answer() {
    let mut world = started();
    world.silent = true;
    world.run();
    assert_eq!(world.reason(), "PreviewUnreachable");
    assert_eq!(over(&mut world), "DeadlineExceeded: the preview does not answer: nobody is there");
    world.silent = false;
    world.run();
    assert_eq!(world.reason(), "RunningGates");
}

#[test]
fn judging_a_plugin_that_is_never_loaded() {
    let mut world = started();
    world.loading = true;
    world.run();
    assert_eq!(world.reason(), "RunningGates");
    let said = over(&mut world);
    assert_eq!(said, "DeadlineExceeded: gate policy/smoke cannot be asked yet: GatePlugin smoke is being loaded");
    world.loading = false;
    world.verdict = Some(Outcome::Pass(reason("Good")));
    world.run();
    assert_eq!(world.reason(), "AwaitingPromotion");
}

#[test]
fn judging_a_gate_that_waits_for_ever() {
    let mut world = started();
    let after = Duration::from_secs(60);
    world.verdict = Some(Outcome::Wait { reason: reason("Soaking"), after, state: None });
    world.run();
    let deadline = world.promotion().deadline.expect("a deadline").0;
    assert_eq!(deadline, world.now + Duration::from_secs(20 * 60), "longer than machines may take");
    while world.reason() == "RunningGates" {
        assert!(world.now <= deadline);
        world.now = world.pass().0.again.expect("another look");
        world.run();
    }
    let said = world.rolled_out().expect("RolledOut");
    assert_eq!(said.reason, "GatesHeld");
    assert!(said.message.contains("still waiting when its deadline was over: Soaking"), "{}", said.message);
}

#[test]
fn judging_a_trial_that_is_never_heard_of() {
    let mut world = started();
    world.run();
    // No machine is waited for any more.
    world.later(60);
    let (plan, _) = world.pass();
    let ends = world.promotion().deadline.expect("a deadline").0 + Duration::from_secs(30);
    assert_eq!(plan.again, Some(ends));
    world.now = ends;
    world.run();
    let said = world.rolled_out().expect("RolledOut");
    assert_eq!(said.reason, "GatesHeld");
    assert!(said.message.contains("nothing was heard of the trial"), "{}", said.message);
}

#[test]
fn refused_and_waiting_have_no_deadline() {
    for verdict in [Outcome::Pass(reason("Good")), Outcome::Fail(reason("Bad"))] {
        let mut world = started();
        world.verdict = Some(verdict);
        world.run();
        let before = world.reason();
        assert_eq!((world.promotion().deadline, world.pass().0.again), (None, None), "{before}");
        world.later(1_000_000);
        world.run();
        assert_eq!(world.reason(), before);
    }
}

#[test]
fn switching_traffic_that_does_not_arrive_goes_back() {
    let mut world = started();
    world.verdict = Some(Outcome::Pass(reason("Good")));
    world.run();
    world.approve();
    world.until("PromotionInProgress");
    let committed = world.now;
    world.machines();
    world.pass();
    world.broken.insert("kong:3.10");
    world.machines();
    assert_eq!(shown(&mut world), committed + Duration::from_secs(60));
    let said = over(&mut world);
    assert!(
        said.starts_with("PromotionFailed: traffic did not reach the new Pods in time and was moved back; "),
        "{said}"
    );
    assert_eq!((world.promotion().verdict, world.serves()), (Some(Verdict::Failed), ["kong:3.9".to_owned()].into()));
    // Not by itself.
    world.broken.clear();
    world.later(1_000_000);
    world.run();
    assert_eq!((world.reason(), world.serves()), ("PromotionFailed".into(), ["kong:3.9".to_owned()].into()));
}

#[test]
fn verifying_a_gate_that_does_not_say_goes_back() {
    let mut world = World::at_rest("kong:3.9");
    let gate = json!({ "name": "after", "pluginRef": { "name": "p" }, "when": "AfterPromotion", "deadline": "5m" });
    world.policies = vec![fixtures::policy_of("policy", json!({ "gates": [gate] }))];
    world.verified = Some(Outcome::Wait { reason: reason("Soaking"), after: Duration::from_secs(50), state: None });
    world.image("kong:3.10");
    world.approve();
    world.run();
    let deadline = world.promotion().deadline.expect("a deadline").0;
    assert_eq!((world.reason(), deadline), ("VerifyingPromotion".into(), world.now + Duration::from_secs(300)));
    while world.reason() == "VerifyingPromotion" {
        assert!(world.now <= deadline);
        world.now = world.pass().0.again.expect("another look");
        world.run();
    }
    let said = world.rolled_out().expect("RolledOut");
    assert_eq!((&*said.reason, world.serves()), ("RolledBack", ["kong:3.9".to_owned()].into()));
    assert!(said.message.contains("still waiting when its deadline was over"), "{}", said.message);
}

#[test]
fn draining_the_replaced_side_goes() {
    let mut world = started();
    world.verdict = Some(Outcome::Pass(reason("Good")));
    world.run();
    world.approve();
    world.until("PromotionDone");
    let promoted = name(world.deployment(State::Live));
    world.machines();
    let deadline = shown(&mut world);
    let there = world.names("Deployment");
    assert_eq!((deadline, there.len()), (world.now + Duration::from_secs(30), 2));
    world.now = deadline - Duration::from_secs(1);
    world.pass();
    assert_eq!(world.names("Deployment"), there);
    world.now = deadline;
    world.run();
    // An empty preview has come when the replaced one went.
    assert!(world.rests() && world.names("Deployment") != there);
    assert_eq!(name(world.deployment(State::Live)), promoted);
}

/// Moments on record have whole seconds, the clock has not.
#[test]
fn a_moment_between_two_seconds_is_written_once() {
    let mut world = started();
    world.verdict = Some(Outcome::Pass(reason("Good")));
    world.now += Duration::from_millis(300);
    world.run();
    world.approve();
    world.until("PromotionDone");
    world.machines();
    world.pass();
    assert_eq!(world.reason(), "PromotionDone");
    assert!(!world.pass().1, "it rests until its time is over");
}
