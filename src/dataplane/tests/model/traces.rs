//! What was asked of the apiserver in memory and what it answered, for the real one to be asked the same
//! (`tests/it/cluster/model.rs`). What machines write is left out: there are others of them there.

use std::{collections::BTreeSet, fs};

use serde_json::{Map, Value, json};
use sluice_harness::workspace;

use super::{
    apiserver::{Apiserver, If, Verb},
    explore::Choice,
    objects::{Key, Kind},
    operator::Next,
    seeds,
    state::{Event, State, gate},
};

/// How many ways are asked.
const WAYS: usize = 200;

/// What people and other managers write to.
const THEIRS: [Kind; 4] = [Kind::DataPlane, Kind::PromotionPolicy, Kind::Promotion, Kind::Service];

/// What every way begins with: from nothing until an upgrade can begin.
fn dawn() -> (State, Vec<Value>) {
    let mut state = State::dawn(Some(json!({ "gates": [gate("smoke")] })), &[]);
    let mut asked = theirs(&Apiserver::default(), &state.api);
    while let Some(event) = state.ahead() {
        state = follow(&state, event, &mut asked);
    }
    (state.telling(seeds()[0].state.story()), asked)
}

/// One way.
fn trace((mut state, mut asked): (State, Vec<Value>), number: usize) -> Vec<Value> {
    let mut choice = Choice::numbered(number);
    while let Some(event) = choice.next(&state) {
        state = follow(&state, event, &mut asked);
    }
    asked
}

fn follow(state: &State, event: Event, asked: &mut Vec<Value>) -> State {
    let next = state.after(event).unwrap_or_else(|broken| panic!("{broken}"));
    let sent = match (event, &state.flight) {
        (Event::Step, Some(flight)) => match &*flight.next {
            Next::Send(sent) => Some((sent, flight.only(sent))),
            Next::End(_) => None,
        },
        (Event::Arrive, _) => state.late.as_ref().map(|late| (&late.sent, late.only)),
        _ => None,
    };
    match sent {
        Some((sent, only)) if sent.request.is_write() => {
            let request = &sent.request;
            let found = state.api.get(request.key);
            let answer = state.api.clone().answer(request, only, &state.now().to_string());
            let named = match (only, found) {
                (If::Any, _) => "any",
                (If::Absent, _) => "absent",
                (If::At(version), Some(found)) if found.version == version => "current",
                (If::At(_), _) => "other",
            };
            let verb = match request.verb {
                Verb::Apply => "apply",
                Verb::Merge => "merge",
                Verb::MergeStatus => "merge-status",
                Verb::Create => "create",
                _ => "delete",
            };
            let mut asks = op(request.key, verb, &request.body, named, answer.status, &next.api);
            asks["operator"] = true.into();
            asked.push(asks);
        }
        Some(_) => {}
        None => asked.extend(theirs(&state.api, &next.api)),
    }
    next
}

fn op(key: Key, verb: &str, body: &Value, named: &str, code: u16, after: &Apiserver) -> Value {
    let kind = key.kind;
    let group = if kind.version().contains('/') { "apis" } else { "api" };
    json!({
        "collection": [format!("/{group}/{}/namespaces", kind.version()), kind.plural()],
        "kind": kind.as_str(), "apiVersion": kind.version(), "name": *key.name(),
        "verb": verb, "body": body, "version": named, "code": code,
        "object": after.get(key).map(|stored| stored.value()),
    })
}

/// What people and other managers have written.
fn theirs(before: &Apiserver, after: &Apiserver) -> Vec<Value> {
    let of_theirs = |(key, _): &(&Key, _)| THEIRS.contains(&key.kind);
    let gone = before.objects.iter().filter(of_theirs).filter(|(key, _)| after.get(**key).is_none());
    let mut asked: Vec<_> = gone.map(|(key, _)| op(*key, "delete", &Value::Null, "any", 200, after)).collect();
    for (key, stored) in after.objects.iter().filter(of_theirs) {
        match before.get(*key) {
            None => {
                let mut made = stored.value().clone();
                made["kind"] = key.kind.as_str().into();
                made["apiVersion"] = key.kind.version().into();
                made["metadata"] = json!({ "name": *key.name() });
                asked.push(op(*key, "create", &made, "any", 201, after));
            }
            Some(old) if old.content.exact != stored.content.exact => {
                let mut patch = difference(old.value(), stored.value());
                patch["metadata"].as_object_mut().map(|metadata| metadata.remove("generation"));
                asked.push(op(*key, "merge", &patch, "any", 200, after));
            }
            Some(_) => {}
        }
    }
    asked
}

/// RFC 7396, the other way round.
fn difference(before: &Value, after: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (before, after) else { return after.clone() };
    let mut patch = Map::new();
    for (field, value) in new {
        match old.get(field) {
            Some(known) if known == value => {}
            Some(known) => drop(patch.insert(field.clone(), difference(known, value))),
            None => drop(patch.insert(field.clone(), value.clone())),
        }
    }
    patch.extend(old.keys().filter(|field| !new.contains_key(*field)).map(|field| (field.clone(), Value::Null)));
    patch.into()
}

#[test]
fn what_the_real_apiserver_is_asked_is_everything_that_the_model_asks() {
    let dawn = dawn();
    let traces: Vec<_> = (0..WAYS).map(|number| trace(dawn.clone(), number)).collect();
    let kinds: BTreeSet<_> = traces
        .iter()
        .flatten()
        .map(|op| format!("{} {} {}", op["verb"], op["version"], op["code"]).replace('"', ""))
        .collect();
    for kind in [
        "apply absent 201",
        "apply current 200",
        "apply other 409",
        "create any 201",
        "delete current 200",
        "merge current 200",
        "merge-status any 200",
        "merge-status current 200",
        "merge-status other 409",
    ] {
        assert!(kinds.contains(kind), "{kind} is not among {kinds:?}");
    }
    let path = workspace::reports().join("model-traces.json");
    let written = fs::create_dir_all(workspace::reports()).and_then(|()| fs::write(path, json!(traces).to_string()));
    written.expect("a report");
}
