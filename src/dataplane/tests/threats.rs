//! Threats that decisions answer, by their numbers: what is forged in the cluster moves no traffic, and a verdict counts
//! for what was judged and nothing else.

use serde_json::{Value, json};

use super::world::{World, name};
use crate::model::{
    names::{self, Role, State},
    observed::TrialKey,
    trial::{Outcome, Reason},
};

/// A Pod of the preview.
fn preview_pod(world: &World) -> Value {
    let selector = world.selects(State::Preview, Role::Ingress);
    let labelled = |pod: &&Value| pod["metadata"]["labels"][names::SELECTOR] == selector.as_str();
    world.all("Pod").into_iter().find(labelled).expect("a Pod").clone()
}

/// Nothing is promoted, approved or not, while the preview says this; and it is once the object is gone.
fn stops(mut world: World, kind: &str, object: Value, why: &str) {
    let forged = name(&object);
    world.put(kind, object);
    world.approve();
    world.run();
    let said = world.rolled_out().expect("RolledOut");
    assert!(said.reason == "Progressing" && said.message.contains(why), "{said:?}");
    assert_eq!(world.serves(), ["kong:3.9".to_owned()].into());
    world.delete(kind, &forged);
    world.run();
    assert!(world.rests());
    assert_eq!(world.serves(), ["kong:3.10".to_owned()].into());
}

#[test]
fn threat_01_a_pod_that_only_has_the_labels_of_the_preview_stops_it() {
    let world = World::awaiting("kong:3.10");
    let mut pod = preview_pod(&world);
    let metadata = pod["metadata"].as_object_mut().expect("metadata");
    metadata.retain(|field, _| field == "labels");
    metadata.insert("name".into(), "stranger".into());
    stops(world, "Pod", pod, "Pod stranger has the labels of this side, and its Deployment did not make it");
}

#[test]
fn threat_01_a_forged_endpoint_slice_of_the_preview_stops_it() {
    for pod in [false, true] {
        let world = World::awaiting("kong:3.10");
        let mut slice = world.slices(State::Preview, Role::Ingress)[0].clone();
        slice["metadata"]["name"] = "forged".into();
        slice["endpoints"][0]["addresses"] = json!(["10.96.0.1"]);
        if !pod {
            slice["endpoints"][0]["targetRef"] = Value::Null;
        }
        stops(world, "EndpointSlice", slice, "leads to 10.96.0.1, which is no Pod of it");
    }
}

/// A DataPlane whose gate is being asked about `kong:3.10`, which is approved already; and the attempt.
fn asking() -> (World, TrialKey) {
    let mut world = World::at_rest("kong:3.9");
    world.govern();
    world.verdict = None;
    world.image("kong:3.10");
    world.approve();
    world.run();
    let (plan, _) = world.pass();
    let [trial] = plan.trials.as_slice() else { panic!("{:?}", plan.trials) };
    // No two attempts begin at the same time.
    world.later(1);
    (world, trial.key.clone())
}

fn pass() -> Outcome {
    Outcome::Pass(Reason { code: "Good".into(), message: String::new() })
}

#[test]
fn threat_23_a_verdict_is_dropped_where_what_it_was_about_has_changed_meanwhile() {
    type Change = fn(&mut World);
    let changes: [(&str, Change); 3] = [
        ("the spec", |world| {
            world.image("kong:3.11");
            world.approve();
        }),
        ("the settings of the gate", |world| {
            world.policies[0].spec.rules.gates[0].settings = json!({ "strict": true })
        }),
        ("a Pod", |world| {
            let pod = name(&preview_pod(world));
            world.bend("Pod", &pod, |pod| pod["metadata"]["uid"] = "another".into());
            world.machines();
        }),
    ];
    for (name, change) in changes {
        let (mut world, attempt) = asking();
        change(&mut world);
        world.say(&attempt, pass());
        world.run();
        assert_eq!((world.reason(), world.serves()), ("RunningGates".into(), ["kong:3.9".to_owned()].into()), "{name}");
    }
    // Nothing has changed: it counts.
    let (mut world, attempt) = asking();
    world.say(&attempt, pass());
    world.run();
    assert!(world.rests());
    assert_eq!(world.serves(), ["kong:3.10".to_owned()].into());
}

#[test]
fn threat_23_a_verdict_of_another_attempt_is_no_verdict() {
    let (mut world, attempt) = asking();
    for forged in [
        TrialKey { promotion: "another".into(), ..attempt.clone() },
        TrialKey { gate: "policy/other".into(), ..attempt.clone() },
        TrialKey { entry: "another".into(), ..attempt.clone() },
        TrialKey { started: "2027-01-15T08:00:01Z".into(), ..attempt },
    ] {
        world.say(&forged, pass());
        world.run();
        assert_eq!(world.reason(), "RunningGates", "{forged:?}");
    }
}
