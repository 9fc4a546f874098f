//! No bypass, proved as far as it goes: the real pass against an apiserver in memory, on every way that a few
//! interferences lead, and on many random ones beyond.
//!
//! | file | job |
//! |---|---|
//! | [`objects`] | objects as values that states share |
//! | [`apiserver`] | what is stored, refused and told |
//! | [`cluster`] | the machines: controllers and kubelet |
//! | [`operator`] | the real pass, a request at a time, from memory where it has been run before |
//! | [`promises`] | what has to hold after every write, against what is true |
//! | [`state`] | a state of all of it, and everything that may happen there |
//! | [`explore`] | which ways are gone, and what is left of one that breaks a promise |
//! | [`peers`] | what others were reported for |
//! | [`traces`] | what the real apiserver is asked after the one in memory |
//!
//! A state is left by one event, and a write is an event: between two writes of a pass anything else may happen. What
//! happens by itself does so in a fixed order (the pass goes on, watches tell, machines work, gates answer, people do
//! what the story says); everything else interferes: a crash with or without a write under way, a watch that falls
//! behind, a spec, a policy, a plugin or a decision that changes, a Pod that goes, a clock that jumps. All ways with at
//! most so many interferences are gone, at every place of every story.
//!
//! States are told apart without what only depends on the way there: versions count by whether they are current, moments
//! by the second, keys of certificates not at all.

mod apiserver;
mod cluster;
mod explore;
mod objects;
mod operator;
mod peers;
mod promises;
mod state;
mod traces;

use std::{env, fs, sync::OnceLock, time::Instant};

use serde_json::{Value, json};
use sluice_harness::workspace;

use self::{
    explore::{Exploration, PATIENCE, Seed, table},
    state::{Decision, Event, PHASES, Says, State, Story, gate},
};

/// How many states are enough, unless `MODEL_STATES` says otherwise: few while somebody works, a million in
/// `cargo verify`.
const STATES: usize = 20_000;
/// So many interferences at most are gone through at every place of every story; what is missing to enough states, random
/// ways bring, on which many things interfere.
const INTERFERENCES: usize = 1;
/// Random ways at most.
const WAYS: usize = 1_000_000;

/// A blue/green DataPlane at rest, under a policy with these rules, if any.
fn at_rest(rules: Option<Value>) -> State {
    let state = to_rest(State::dawn(rules, &[]), |_| {});
    assert_eq!(state.phase(), "Settled");
    state
}

/// What happens by itself, to its end; `each` sees every state on the way.
fn to_rest(mut state: State, mut each: impl FnMut(&State)) -> State {
    for _ in 0..PATIENCE {
        let Some(event) = state.ahead() else { return state };
        state = state.after(event).unwrap_or_else(|broken| panic!("{broken}"));
        each(&state);
    }
    panic!("it does not come to rest in {}: {}", state.phase(), state.reason());
}

/// What people do where nothing interferes, by name.
fn seeds() -> Vec<Seed> {
    static SEEDS: OnceLock<Vec<Seed>> = OnceLock::new();
    let made = || {
        let judged = at_rest(Some(json!({ "gates": [gate("smoke")] })));
        let free = at_rest(None);
        let mut after = gate("after");
        after["when"] = "AfterPromotion".into();
        let verified = at_rest(Some(json!({ "gates": [gate("smoke"), after] })));
        let automatic = at_rest(Some(json!({ "gates": [gate("smoke")], "approval": "Automatic" })));
        const UPGRADE: Story = &[Event::Edit(1), Event::Approve];
        const BREAKS: Story = &[Event::Edit(1), Event::Verdict(Says::Error), Event::Approve];
        const MOVED_BACK: Story = &[Event::Edit(1), Event::Approve, Event::Verdict(Says::Fail), Event::Approve];
        const REFUSED: Story =
            &[Event::Edit(1), Event::Verdict(Says::Fail), Event::Approve, Event::Decide(Decision::Retry)];
        const IN_GIT: Story = &[Event::Approve, Event::Edit(1), Event::Approve];
        const ROLLED_BACK: Story = &[
            Event::Edit(1),
            Event::Approve,
            Event::Decide(Decision::Rollback),
            Event::Approve,
            Event::Edit(2),
            Event::Approve,
        ];
        const ABORTED: Story = &[
            Event::Edit(1),
            Event::Decide(Decision::Abort),
            Event::Approve,
            Event::Decide(Decision::Retry),
            Event::Approve,
        ];
        let seed = |name, state: &State, story| Seed { name, state: state.telling(story) };
        vec![
            seed("an upgrade under a gate", &judged, UPGRADE),
            seed("an upgrade that a gate judges behind the live Services", &verified, UPGRADE),
            seed("rolled back, then another revision", &judged, ROLLED_BACK),
            seed("a gate that breaks at first", &judged, BREAKS),
            seed("refused by a gate, then judged once more", &judged, REFUSED),
            seed("moved back by a gate, and approved again", &verified, MOVED_BACK),
            seed("given up, then taken up again", &judged, ABORTED),
            seed("the annotation is kept in Git", &judged, IN_GIT),
            seed("promoted without a person", &automatic, &[Event::Edit(1)]),
            seed("an upgrade without a policy", &free, UPGRADE),
        ]
    };
    SEEDS.get_or_init(made).clone()
}

#[test]
fn a_story_in_which_nothing_interferes_ends_as_it_should() {
    for Seed { name, state } in seeds() {
        let live = state.live_image();
        let mut phases = vec![state.phase()];
        let now = to_rest(state, |now| {
            if phases.last() != Some(&now.phase()) {
                phases.push(now.phase());
            }
        });
        let ends = match name {
            "rolled back, then another revision" => ("Settled", "kong:3.11"),
            "moved back by a gate, and approved again" => ("Rejected", "kong:3.9"),
            _ => ("Settled", "kong:3.10"),
        };
        assert_eq!((&*live, (now.phase(), &*now.live_image())), ("kong:3.9", ends), "{name}: {phases:?}");
    }
}

#[test]
fn no_way_breaks_a_promise() {
    let enough = env::var("MODEL_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(STATES);
    let began = Instant::now();
    let exploration = Exploration::of(seeds(), enough);
    let interferences = exploration.exhaust(INTERFERENCES);
    let exhausted = exploration.states();
    exploration.wander(WAYS);
    if let Some(fault) = exploration.fault() {
        panic!("{}", fault.shrunk().tell());
    }
    let (states, coverage) = (exploration.states(), exploration.coverage());
    let report = format!(
        "{states} states by {} events in {:.0} s; all ways with {interferences} interferences: {exhausted} states\n{}\n",
        exploration.events(),
        began.elapsed().as_secs_f64(),
        table(&coverage),
    );
    let path = workspace::reports().join("model.txt");
    fs::create_dir_all(workspace::reports()).and_then(|()| fs::write(&path, &report)).expect("a report");
    assert!(states >= enough, "{report}");
    // Fewer are a look around.
    let missing: Vec<_> = holes(&coverage).filter(|_| interferences > 0).collect();
    assert!(missing.is_empty(), "{missing:?}\n{report}");
}

/// Where something should have happened and did not.
fn holes(coverage: &explore::Coverage) -> impl Iterator<Item = String> {
    // Only there are gates asked.
    const ASKS: [&str; 2] = ["Judging", "Verifying"];
    const EVENTS: [&str; 15] = [
        "spec change",
        "policy change",
        "plugin change",
        "annotation set",
        "annotation cleared",
        "decision",
        "verdict",
        "restart",
        "eviction",
        "Pod breaks",
        "scale",
        "crash",
        "crash, write under way",
        "watch behind",
        "clock jump",
    ];
    let cells = PHASES.iter().flat_map(|phase| EVENTS.iter().map(move |event| (*phase, *event)));
    let cells: Vec<_> = cells
        .filter(|(phase, event)| *event != "verdict" || ASKS.contains(phase))
        .filter(|cell| !coverage.contains_key(cell))
        .collect();
    cells.into_iter().map(|(phase, event)| format!("{event} in {phase}"))
}
