//! What a pass sends. Nothing is written over or deleted but at the version that was decided on: so what a deposed leader
//! has left under way is refused wherever somebody has gone on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use axum::http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use k8s_openapi::jiff::SignedDuration;
use kube::{Client, ResourceExt as _, client::Body};
use serde_json::{Value, json};

use super::world::{Key, World, name};
use crate::{
    api::dataplane::PROMOTE_WHEN_READY,
    cluster::writer::Writes,
    dataplane::{
        apply::{self, Writer, certificate::Authority, publish},
        build::Planned,
        status,
    },
    model::{
        Intent, Observed, Phase, Plan, differ,
        names::{Role, State},
    },
};

/// An API that holds what the world holds, and keeps to the versions that are named to it.
#[derive(Default)]
struct Api {
    objects: BTreeMap<Key, Value>,
    version: u64,
    /// Writes to something that is there, done and refused.
    done: Vec<String>,
    refused: Vec<String>,
    /// Writes to something that is there, at whatever version.
    blind: Vec<String>,
}

impl Api {
    fn of(world: &World) -> Arc<Mutex<Self>> {
        let mut objects = world.everything().clone();
        objects.insert(("DataPlane".into(), "dp".into()), json!(world.dataplane));
        Arc::new(Mutex::new(Self { objects, version: 1_000_000, ..Self::default() }))
    }

    fn answer(&mut self, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        let (_, path) = path.split_once("/namespaces/ns/").expect("something of the namespace");
        let mut parts = path.split('/');
        let plural = parts.next().expect("a plural");
        let named = parts.next().or(body["metadata"]["name"].as_str()).expect("a name").to_owned();
        let kind = KINDS.iter().find(|kind| plural == format!("{}s", kind.to_lowercase())).expect("a known kind");
        let key = ((*kind).to_owned(), named);
        let found = self.objects.get(&key).cloned();
        if *method == Method::GET {
            return found.map_or((StatusCode::NOT_FOUND, Value::Null), |found| (StatusCode::OK, found));
        }
        let asked = match *method {
            Method::DELETE => &body["preconditions"]["resourceVersion"],
            _ => &body["metadata"]["resourceVersion"],
        };
        let asked = asked.as_str().map(str::to_owned);
        let write = format!("{method} {path}");
        let Some(mut found) = found else {
            let makes = *method == Method::POST || asked.as_deref() == Some(differ::ABSENT);
            return if makes {
                (StatusCode::CREATED, self.store(key, body))
            } else {
                (StatusCode::NOT_FOUND, Value::Null)
            };
        };
        // A status mirrors what is there: what an old one says the next pass says anew.
        let mirrors = path.starts_with("dataplanes/") && path.ends_with("/status");
        // Labels of a Deployment move nothing.
        let relabels = key.0 == "Deployment" && differ::holds(&found["spec"], &body["spec"]);
        if asked.is_none() && *method != Method::POST && !mirrors && !relabels {
            self.blind.push(write.clone());
        }
        if *method == Method::POST || asked.is_some_and(|asked| found["metadata"]["resourceVersion"] != *asked) {
            self.refused.push(write);
            return (StatusCode::CONFLICT, Value::Null);
        }
        self.done.push(write);
        if *method == Method::DELETE {
            self.objects.remove(&key);
            return (StatusCode::OK, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }));
        }
        if let Some(selector) = body["spec"].get("selector") {
            found["spec"]["selector"] = selector.clone();
        }
        (StatusCode::OK, self.store(key, found))
    }

    fn store(&mut self, key: Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(key, object.clone());
        object
    }
}

const KINDS: [&str; 8] = [
    "ControllerRevision",
    "DataPlane",
    "Deployment",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "Promotion",
    "Secret",
    "Service",
];

fn client(api: &Arc<Mutex<Api>>) -> Client {
    let api = Arc::clone(api);
    let service = tower::service_fn(move |request: Request<Body>| {
        let api = Arc::clone(&api);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let (status, mut answer) = api.lock().expect("no panic").answer(&head.method, head.uri.path(), body);
            if !status.is_success() {
                let reason = if status == StatusCode::NOT_FOUND { "NotFound" } else { "Conflict" };
                answer = json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status.as_u16(),
                });
            }
            let answer = Response::builder().status(status).body(Body::from(answer.to_string().into_bytes()));
            Ok::<_, tower::BoxError>(answer?)
        }
    });
    Client::new(service, "ns")
}

/// What a pass decided, and now does.
async fn act(
    api: &Arc<Mutex<Api>>,
    world: &World,
    decided: &(Intent, Observed, Plan, Planned),
) -> Result<(), apply::Error> {
    let (intent, observed, plan, planned) = decided;
    let authority = Authority::load(client(api), "ns", "ca").await.expect("a CA");
    let writer = Writer { client: client(api), writes: &Writes::default(), authority: &authority, intent };
    apply::converge(&writer, observed, planned).await?;
    let status = status::report(intent, observed, plan, None, world.now);
    publish::publish(&writer, observed, plan, &status).await
}

/// Until rest, every pass is sent to an API that holds what the pass has read. What was written over or deleted is noted in
/// `done`, as `DELETE services`.
async fn rest(world: &mut World, done: &mut BTreeSet<String>) {
    for _ in 0..100 {
        let (api, decided) = (Api::of(world), world.foresee());
        let acted = act(&api, world, &decided).await;
        let api = api.lock().expect("no panic");
        assert_eq!((api.blind.as_slice(), api.refused.as_slice()), (&[][..], &[][..]), "{:?}", decided.2.phase);
        acted.expect("nobody wrote in between");
        done.extend(api.done.iter().filter_map(|write| Some(write.split_once('/')?.0.to_owned())));
        let (plan, wrote) = world.pass();
        if world.machines() || wrote {
            continue;
        }
        match plan.again.filter(|_| plan.phase == Phase::Draining) {
            Some(at) => world.now = at,
            None => return,
        }
    }
    panic!("no rest after a hundred passes: {}", world.reason());
}

#[tokio::test]
async fn nothing_is_written_over_or_deleted_but_as_it_was_seen() {
    let (mut world, mut done) = (World::with("kong:3.9", json!({})), BTreeSet::new());
    rest(&mut world, &mut done).await;
    // More upgrades than are kept, approved with a policy and without.
    for number in 0..6 {
        world.proxy("env", json!([{ "name": "NUMBER", "value": number.to_string() }]));
        world.approve();
        rest(&mut world, &mut done).await;
        world.govern();
    }
    assert!(!world.dataplane.annotations().contains_key(PROMOTE_WHEN_READY));
    for edit in [
        json!({ "resources": { "podDisruptionBudget": { "spec": { "minAvailable": 1 } } } }),
        json!({ "deployment": { "scaling": { "horizontal": { "minReplicas": 2, "maxReplicas": 5 } } } }),
        json!({ "network": { "services": { "ingress": { "annotations": { "team": "edge" } } } } }),
        json!({ "network": { "services": { "ingress": { "name": "edge" } } } }),
        json!({ "resources": null, "deployment": { "scaling": null, "replicas": 3 } }),
    ] {
        world.edit(edit);
        rest(&mut world, &mut done).await;
    }
    // Staged, and given up for what is live; then without a strategy at all.
    world.image("kong:3.10");
    rest(&mut world, &mut done).await;
    world.image("kong:3.11");
    rest(&mut world, &mut done).await;
    world.policies.clear();
    world.edit(json!({ "deployment": { "rollout": null } }));
    rest(&mut world, &mut done).await;
    assert_eq!(world.names("Deployment").len(), 1);
    let everything = [
        "DELETE controllerrevisions",
        "DELETE deployments",
        "DELETE horizontalpodautoscalers",
        "DELETE poddisruptionbudgets",
        "DELETE promotions",
        "DELETE secrets",
        "DELETE services",
        "PATCH controllerrevisions",
        "PATCH dataplanes",
        "PATCH deployments",
        "PATCH promotions",
        "PATCH secrets",
        "PATCH services",
    ];
    assert_eq!(done, everything.map(str::to_owned).into());
}

#[tokio::test]
async fn a_switch_that_was_decided_before_somebody_else_finished_it_is_refused() {
    let mut world = World::awaiting("kong:3.10");
    world.approve();
    while world.foresee().2.live.promotion.is_none() || world.reason() != "PromotionInProgress" {
        world.pass();
    }
    let decided = world.foresee();
    assert_eq!(decided.2.phase, Phase::Switching);
    world.run();
    assert!(world.rests());
    // And it is live no longer: the old switch would give traffic to what is gone.
    world.image("kong:3.11");
    world.approve();
    world.run();
    let live = world.selects(State::Live, Role::Ingress);

    let api = Api::of(&world);
    let refused = act(&api, &world, &decided).await.expect_err("a conflict");
    assert!(refused.is_conflict(), "{refused}");
    let api = api.lock().expect("no panic");
    assert_eq!(api.done, Vec::<String>::new());
    let service = ("Service".to_owned(), name(world.service(State::Live, Role::Ingress)));
    assert_eq!(api.objects[&service]["spec"]["selector"][crate::model::names::SELECTOR], live);
}

#[tokio::test]
async fn a_side_that_somebody_else_has_taken_up_since_is_neither_deleted_nor_bent_back() {
    let mut world = World::awaiting("kong:3.10");
    let preview = name(world.deployment(State::Preview));
    // Decided: the preview goes. And then nobody did it, and the preview was promoted.
    let strategy = json!({ "deployment": { "rollout": world.dataplane.spec.deployment.rollout } });
    world.edit(json!({ "deployment": { "rollout": null } }));
    let decided = world.foresee();
    assert_eq!(decided.3.surplus.deployments, std::slice::from_ref(&preview));
    world.edit(strategy);
    world.approve();
    world.run();
    world.now += SignedDuration::from_mins(5);
    world.run();
    assert_eq!(name(world.deployment(State::Live)), preview);

    let api = Api::of(&world);
    let refused = act(&api, &world, &decided).await.expect_err("a conflict");
    assert!(refused.is_conflict(), "{refused}");
    let api = api.lock().expect("no panic");
    assert!(api.objects.contains_key(&("Deployment".to_owned(), preview)));
    assert_eq!(api.done, Vec::<String>::new());
}
