//! PURE. What lives already and is on no record of ours: made by Kong's operator, or by us before somebody deleted the
//! records. It is taken over as it runs, never founded again.

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::model::{
    Intent, Observed, Selector, Wish, differ,
    names::{self, Role, State},
    observed::{Record, side_of},
};

/// Adds the record that the live side would have, where there is none. It is written in the same pass.
#[must_use]
pub fn complete(intent: &Intent, mut observed: Observed) -> Observed {
    if observed.promoted().is_none()
        && let Some(record) = live(&observed).and_then(|live| record(intent, &observed, live))
    {
        observed.records.push(record);
    }
    observed
}

/// The Deployment that is live: the one with the label; of several, the one that the live Services select.
fn live(observed: &Observed) -> Option<&Deployment> {
    let labelled = observed.labelled(State::Live);
    let side = match labelled.as_slice() {
        [one] => one.clone(),
        [] => return None,
        _ => observed.selects(State::Live, Role::Ingress).filter(|selected| labelled.contains(selected))?,
    };
    observed.deployment(&side)
}

fn record(intent: &Intent, observed: &Observed, live: &Deployment) -> Option<Record> {
    let rendered_from = live.annotations().get(names::REVISION);
    if rendered_from.is_some_and(|revision| observed.record(revision).is_some()) {
        // Being founded: it becomes live for good once it is ready.
        return None;
    }
    let template = cleaned(observed, &intent.owner.name, live)?;
    let wanted = intent.wanted.as_ref().ok().filter(|wish| match rendered_from {
        Some(revision) => wish.revision().as_str() == revision,
        None => said_to_be_live(intent, observed, live) && differ::holds(&template, &wish.pod_template),
    });
    // What is live by Kong's word is what the spec says. Otherwise only what runs is known, and that is kept.
    let wish =
        wanted.cloned().unwrap_or_else(|| Wish { pod_template: template.clone(), ports: ports(intent, observed) });
    Some(Record { name: None, version: None, revision: wish.revision(), wish, template: Some(template), ordinal: 1 })
}

/// Kong's operator says that what runs is what the spec of this generation asks for.
fn said_to_be_live(intent: &Intent, observed: &Observed, live: &Deployment) -> bool {
    let Some(status) = &observed.status else { return false };
    let now = Some(intent.owner.generation);
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let rollout = status.rollout.as_ref().and_then(|rollout| rollout.conditions.first());
    let side = side_of(live);
    let switched = || {
        let selects = |role| observed.selects(State::Live, role);
        side.is_some() && selects(Role::Ingress) == side && selects(Role::Admin) == side
    };
    match rollout {
        None => ready.is_some_and(|ready| ready.observed_generation == now),
        Some(rollout) if rollout.observed_generation != now => false,
        Some(rollout) => match rollout.reason.as_str() {
            "WaitingForChange" => ready.is_some_and(|ready| ready.observed_generation == now),
            "PromotionInProgress" | "PromotionDone" => switched() && observed.labelled(State::Live).len() > 1,
            _ => false,
        },
    }
}

/// The Pod template as it runs, without what tells one side from the other.
fn cleaned(observed: &Observed, dataplane: &str, live: &Deployment) -> Option<Value> {
    let mut template = serde_json::to_value(&live.spec.as_ref()?.template).ok()?;
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("creationTimestamp");
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove(names::SELECTOR);
            if labels.get(names::APP).is_some_and(|app| app == dataplane) {
                labels.remove(names::APP);
            }
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            // `kubectl rollout restart` is its author's, and stays where it is.
            annotations.remove("kubectl.kubernetes.io/restartedAt");
        }
        metadata.retain(|_, field| field.as_object().is_none_or(|field| !field.is_empty()));
    }
    let secret = side_of(live).and_then(|side| Some(observed.secret_of(&side)?.name_any()));
    let volumes = template.pointer_mut("/spec/volumes").and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten().filter(|volume| volume["name"] == names::CERTIFICATE_VOLUME) {
        if let Some(source) = volume.get_mut("secret").and_then(Value::as_object_mut)
            && secret.as_ref().is_some_and(|secret| source.get("secretName").is_some_and(|name| name == secret))
        {
            source.remove("secretName");
        }
    }
    Some(template)
}

/// The ports of the live ingress Service, as a user would write them.
fn ports(intent: &Intent, observed: &Observed) -> Value {
    let service = observed.services.get(&(State::Live, Role::Ingress)).and_then(|service| service.spec.as_ref());
    let Some(found) = service.and_then(|spec| spec.ports.as_ref()) else { return Value::Null };
    let asked = intent.wanted.as_ref().ok().and_then(|wish| wish.ports.as_array());
    let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
        let mut written = json!({ "port": port.port, "targetPort": port.target_port });
        if let Some(name) = &port.name {
            written["name"] = name.as_str().into();
        }
        // A port of the node that the cluster chose is nobody's wish.
        let chosen = asked.into_iter().flatten().find(|asked| asked["port"] == port.port);
        if let Some(node_port) = chosen.and_then(|asked| asked.get("nodePort")) {
            written["nodePort"] = node_port.clone();
        }
        written
    };
    found.iter().map(port).collect()
}

/// The side that is being prepared: the one whose Deployment is labelled so, whoever made it; else the next one.
pub(super) fn candidate(observed: &Observed, stable: &Selector, owner_uid: &str) -> Selector {
    match observed.labelled(State::Preview).as_slice() {
        [one] if one != stable => one.clone(),
        _ => stable.next(owner_uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::dataplane::DataPlaneStatus,
        dataplane::{fixtures, plan},
        model::Phase,
    };
    use jiff::Timestamp;
    use std::sync::Arc;

    const OLD: &str = "11111111-0000-4000-8000-000000000000";
    const NEW: &str = "22222222-0000-4000-8000-000000000000";

    fn deployment(side: &str, state: &str, image: &str) -> Arc<Deployment> {
        let deployment = json!({
            "metadata": {"name": side, "labels": {names::APP: "dp", names::SELECTOR: side, names::DEPLOYMENT_STATE: state}},
            "spec": {
                "selector": {"matchLabels": {}},
                "template": {
                    "metadata": {"labels": {names::APP: "dp", names::SELECTOR: side, "team": "edge"}},
                    "spec": {"containers": [{"name": "proxy", "image": image, "env": [{"name": "KONG_DATABASE", "value": "off"}]}]},
                },
            },
        });
        Arc::new(serde_json::from_value(deployment).expect("a Deployment"))
    }

    /// As Kong's operator left it: what is labelled how, what the live Services select, and what the status says.
    fn left(deployments: &[(&str, &str, &str)], selects: [&str; 2], reason: &str, rollout: i64) -> Observed {
        let service = |role: Role, side: &str| {
            let service = json!({"metadata": {"name": role.as_str()}, "spec": {"selector": {names::SELECTOR: side}}});
            ((State::Live, role), Arc::new(serde_json::from_value(service).expect("a Service")))
        };
        let condition = |type_: &str, reason: &str, generation: i64| {
            json!({"type": type_, "status": "False", "reason": reason, "message": "", "observedGeneration": generation,
                "lastTransitionTime": "2026-11-23T09:43:05Z"})
        };
        let status = json!({
            "conditions": [condition("Ready", "Ready", 1)],
            "rollout": {"conditions": [condition("RolledOut", reason, rollout)]},
        });
        Observed {
            status: Some(serde_json::from_value::<DataPlaneStatus>(status).expect("a status")),
            services: [service(Role::Ingress, selects[0]), service(Role::Admin, selects[1])].into(),
            deployments: deployments.iter().map(|(side, state, image)| deployment(side, state, image)).collect(),
            ..Observed::default()
        }
    }

    fn intent(image: &str, generation: i64) -> Intent {
        let mut intent = fixtures::intent(image);
        intent.owner.generation = generation;
        intent
    }

    /// Phase, live image by record, and which side traffic is planned to be at.
    fn taken_over(intent: &Intent, observed: Observed) -> (Phase, String, String) {
        let observed = complete(intent, observed);
        let plan = plan::decide(intent, &observed, Timestamp::UNIX_EPOCH);
        let promoted = observed.promoted().expect("a record");
        assert!(plan.records.iter().any(|record| record.ordinal == 1), "what is taken over is put on record");
        assert!(plan::retired(&observed, &plan).iter().all(|name| *name != plan.live.selector.as_str()));
        (plan.phase, promoted.wish.proxy_image().expect("an image").to_owned(), plan.live.selector.as_str().to_owned())
    }

    #[test]
    fn every_state_of_kongs_is_gone_on_with() {
        let pair = [(OLD, "live", "kong:3.9"), (NEW, "preview", "kong:3.10")];
        let both = [(OLD, "live", "kong:3.9"), (NEW, "live", "kong:3.10")];
        #[rustfmt::skip]
        let rows = [
            ("at rest", intent("kong:3.9", 1), left(&[(OLD, "live", "kong:3.9"), (NEW, "preview", "kong:3.9")], [OLD, OLD], "WaitingForChange", 1), (Phase::Settled, "kong:3.9", OLD)),
            ("the preview starts", intent("kong:3.10", 2), left(&pair, [OLD, OLD], "Progressing", 2), (Phase::Staging, "kong:3.9", OLD)),
            ("a person is awaited", intent("kong:3.10", 2), left(&pair, [OLD, OLD], "AwaitingPromotion", 2), (Phase::Staging, "kong:3.9", OLD)),
            ("edited while nobody was at work", intent("kong:3.10", 2), left(&pair, [OLD, OLD], "WaitingForChange", 1), (Phase::Staging, "kong:3.9", OLD)),
            ("one Service is switched", intent("kong:3.10", 2), left(&pair, [OLD, NEW], "PromotionInProgress", 2), (Phase::Staging, "kong:3.9", OLD)),
            ("both are switched", intent("kong:3.10", 2), left(&pair, [NEW, NEW], "PromotionInProgress", 2), (Phase::Staging, "kong:3.9", OLD)),
            ("G1: both are switched and both Deployments labelled live", intent("kong:3.10", 2), left(&both, [NEW, NEW], "PromotionInProgress", 2), (Phase::Settled, "kong:3.10", NEW)),
            ("done, the old Deployment not deleted yet", intent("kong:3.10", 2), left(&both, [NEW, NEW], "PromotionDone", 2), (Phase::Settled, "kong:3.10", NEW)),
        ];
        for (row, intent, observed, (phase, image, side)) in rows {
            assert_eq!(taken_over(&intent, observed), (phase, image.to_owned(), side.to_owned()), "{row}");
        }
    }

    #[test]
    fn the_side_that_kong_prepared_is_the_candidate() {
        let observed =
            left(&[(OLD, "live", "kong:3.9"), (NEW, "preview", "kong:3.10")], [OLD, OLD], "AwaitingPromotion", 2);
        assert_eq!(candidate(&observed, &Selector::from(OLD), "uid"), Selector::from(NEW));
        let alone = left(&[(OLD, "live", "kong:3.9")], [OLD, OLD], "AwaitingPromotion", 2);
        assert_eq!(candidate(&alone, &Selector::from(OLD), "uid"), Selector::from(OLD).next("uid"));
    }

    #[test]
    fn records_that_somebody_deleted_let_no_spec_past_the_gates() {
        let mut observed = left(&[(OLD, "live", "kong:3.9")], [OLD, OLD], "WaitingForChange", 1);
        let live = Arc::make_mut(&mut observed.deployments[0]);
        let was = fixtures::intent("kong:3.9").wanted.expect("a wish").revision();
        live.annotations_mut().insert(names::REVISION.into(), was.to_string());
        let governed = fixtures::governed("kong:3.10");
        let (phase, image, side) = taken_over(&governed, observed.clone());
        assert_eq!((phase, image.as_str(), side.as_str()), (Phase::Staging, "kong:3.9", OLD));
        let (phase, ..) = taken_over(&fixtures::governed("kong:3.9"), observed);
        assert_eq!(phase, Phase::Settled, "the same revision is what lives");
    }

    #[test]
    fn a_template_is_kept_as_it_runs_without_what_tells_sides_apart() {
        let observed = left(&[(OLD, "live", "kong:3.9")], [OLD, OLD], "WaitingForChange", 1);
        let template = cleaned(&observed, "dp", &observed.deployments[0]).expect("a template");
        assert_eq!(template["metadata"], json!({"labels": {"team": "edge"}}));
        assert_eq!(template["spec"]["containers"][0]["env"][0]["name"], "KONG_DATABASE");
    }
}
