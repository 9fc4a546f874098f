//! The tests of Kong's own blue/green controller (5.3), and the tables of its neighbours (5.4). Where a comment does not
//! say otherwise, what is asserted is what Kong asserts.

use serde_json::{Value, json};

use super::world::{World, name};
use crate::{
    api::{
        DataPlane,
        dataplane::{PROMOTE_WHEN_READY, SERVICE_SELECTOR_OVERRIDE},
    },
    dataplane::{check, fixtures},
    model::{
        Policies,
        grants::Ceilings,
        names::{self, Role, State},
    },
};

const WAITING: &str = "False/WaitingToBecomeReady: Waiting for the resource to become ready";

#[test]
fn u_1_a_live_side_that_breaks_during_a_rollout_is_not_ready_and_the_rollout_awaits_promotion() {
    let mut world = World::at_rest("kong:3.9");
    let status = world.status();
    assert_eq!(status.service, Some(name(world.service(State::Live, Role::Ingress))));
    let address = |value: &str, source: &str| json!({ "type": "IPAddress", "value": value, "sourceType": source });
    let addresses = [address("6.7.8.9", "PublicLoadBalancer"), address("10.0.0.1", "PrivateIP")];
    assert_eq!(json!(status.addresses), json!(addresses));

    world.image("kong:3.10");
    world.run();
    world.broken.insert("kong:3.9");
    world.machines();
    world.run();
    assert_eq!(world.names("Deployment").len(), 2, "one live, one preview");
    assert_eq!(
        world.readiness(),
        format!("{WAITING}: Deployment {} is not ready yet", name(world.deployment(State::Live)))
    );
    let conditions = world.status().rollout.expect("a rollout").conditions;
    let conditions: Vec<_> = conditions.iter().map(|one| [&*one.type_, &*one.status, &*one.reason]).collect();
    assert_eq!(conditions, [["RolledOut", "False", "AwaitingPromotion"]]);
}

#[test]
fn u_2_only_the_word_true_promotes() {
    for (word, promoted) in [(None, false), (Some("false"), false), (Some("True"), false), (Some("true"), true)] {
        let mut world = World::awaiting("kong:3.10");
        world.annotate(PROMOTE_WHEN_READY, word);
        world.run();
        assert_eq!(world.rests(), promoted, "{word:?}");
        let kept = world.dataplane.metadata.annotations.unwrap_or_default().get(PROMOTE_WHEN_READY).cloned();
        assert_eq!(kept.as_deref(), word.filter(|_| !promoted), "what does not promote is left in place");
    }
}

/// As through Kong's CRD, whose code knows `AutomaticPromotion` and whose schema refuses it.
#[test]
fn u_2_no_other_strategy_exists() {
    for (field, value) in [
        ("/promotion/strategy", "AutomaticPromotion"),
        ("/promotion/strategy", "Other"),
        ("/resources/plan/deployment", "DeleteOnPromotionRecreateOnRollout"),
    ] {
        let mut dataplane = json!(fixtures::dataplane("kong:3.9"));
        let strategy = &mut dataplane["spec"]["deployment"]["rollout"]["strategy"]["blueGreen"];
        *strategy.pointer_mut(field).expect("a default") = value.into();
        assert!(serde_json::from_value::<DataPlane>(dataplane).is_err(), "{value}");
    }
}

/// Different: the selector has a UUID from the first moment on, and a second Service goes without an error.
#[test]
fn u_3_the_preview_ingress_service_is_made_kept_bent_back_and_the_only_one() {
    let mut world = World::at_rest("kong:3.9");
    let made = world.service(State::Preview, Role::Ingress).clone();
    let metadata = &made["metadata"];
    let labels = json!({
        names::APP: "dp", names::MANAGED_BY: "dataplane",
        names::SERVICE_TYPE: "ingress", names::SERVICE_STATE: "preview",
    });
    assert_eq!((&metadata["generateName"], &metadata["labels"]), (&json!("dataplane-ingress-dp-"), &labels));
    let preview = world.status().rollout.and_then(|rollout| rollout.deployment?.selector);
    assert_eq!(made["spec"]["selector"], json!({ names::APP: "dp", names::SELECTOR: preview }));

    assert!(world.run().is_empty(), "equal: nothing is written");
    assert_eq!(world.service(State::Preview, Role::Ingress), &made);

    world.bend("Service", &name(&made), |service| service["spec"]["selector"] = json!({ "app": "other" }));
    world.run();
    assert_eq!(world.service(State::Preview, Role::Ingress)["spec"], made["spec"]);

    world.put("Service", renamed(&made, "second"));
    world.run();
    assert_eq!(world.raw("Service", "second"), None);
    assert_eq!(world.service(State::Preview, Role::Ingress)["spec"], made["spec"]);
}

/// A copy of an object, made later.
fn renamed(object: &Value, name: &str) -> Value {
    let mut copy = object.clone();
    for field in ["uid", "creationTimestamp"] {
        copy["metadata"][field] = Value::Null;
    }
    copy["metadata"]["name"] = name.into();
    copy
}

/// Different: Kong ends the pass with the error `number of DataPlane ingress services reduced`.
#[test]
fn u_of_two_services_the_one_with_an_address_stays() {
    let mut world = World::at_rest("kong:3.9");
    let live = world.service(State::Live, Role::Ingress).clone();
    let mut older = renamed(&live, "older");
    older["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z".into();
    older["status"] = json!({});
    world.balancer = false;
    world.put("Service", older);
    world.run();
    assert_eq!(world.raw("Service", "older"), None);
    assert_eq!(world.status().service, Some(name(&live)));

    let mut richer = renamed(&live, "richer");
    richer["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "1.1.1.1" }, { "ip": "1.1.1.2" }] } });
    world.put("Service", richer);
    world.run();
    assert_eq!((world.status().service.as_deref(), world.raw("Service", &name(&live))), (Some("richer"), None));
}

/// The sentence is Kong's. Different: a condition says it, Kong's pass fails with it.
#[test]
fn u_an_image_that_is_too_old_is_refused_with_kongs_words() {
    let mut world = World::with("kong:1.0", json!({}));
    world.run();
    let ready = world.condition("Ready").expect("Ready");
    assert_eq!((&*ready.status, &*ready.reason), ("False", "ValidationFailed"));
    assert!(ready.message.contains("unsupported DataPlane image kong:1.0"), "{}", ready.message);
    world.image("kong:3.0");
    world.run();
    assert!(world.rests());
}

#[test]
fn u_addresses_are_ip_then_hostname_then_cluster_ip() {
    let mut world = World::at_rest("kong:3.9");
    let service = name(world.service(State::Live, Role::Ingress));
    let given = json!({ "loadBalancer": { "ingress": [{ "ip": "6.7.8.9", "hostname": "lb.example" }] } });
    world.bend("Service", &service, |service| service["status"] = given);
    world.run();
    let values: Vec<_> = world.status().addresses.into_iter().map(|address| address.value).collect();
    assert_eq!(values, ["6.7.8.9", "lb.example", "10.0.0.1"]);
}

#[test]
fn u_ready_follows_the_counts_of_the_deployment() {
    let mut world = World::at_rest("kong:3.9");
    let live = name(world.deployment(State::Live));
    world.awake = false;
    let not_ready = format!("{WAITING}: Deployment {live} is not ready yet");
    for (replicas, ready, available, expected) in
        [(0, 0, 0, &*not_ready), (1, 1, 1, "True/Ready"), (2, 1, 1, &*not_ready), (2, 2, 2, "True/Ready")]
    {
        world.bend("Deployment", &live, |live| {
            live["status"]["replicas"] = replicas.into();
            live["status"]["readyReplicas"] = ready.into();
            live["status"]["availableReplicas"] = available.into();
        });
        world.run();
        let status = world.status();
        let seen = (world.readiness(), status.replicas, status.ready_replicas);
        assert_eq!(seen, (expected.to_owned(), replicas, ready), "{replicas}/{ready}/{available}");
    }
}

#[test]
fn u_ready_needs_an_address_only_of_a_load_balancer() {
    let with = |ingress: Value| json!({ "loadBalancer": { "ingress": ingress } });
    for (type_, status, ready) in [
        ("ClusterIP", json!({}), true),
        ("NodePort", json!({}), true),
        ("LoadBalancer", with(json!([{ "ip": "6.7.8.9" }])), true),
        ("LoadBalancer", with(json!([{ "hostname": "lb.example" }])), true),
        ("LoadBalancer", with(json!([{ "ip": "6.7.8.9", "hostname": "lb.example" }])), true),
        ("LoadBalancer", with(json!([{}, { "ip": "6.7.8.9" }])), true),
        ("LoadBalancer", with(json!([])), false),
        ("LoadBalancer", with(json!([{}])), false),
    ] {
        let mut world = World::with("kong:3.9", json!({ "network": { "services": { "ingress": { "type": type_ } } } }));
        world.run();
        let service = name(world.service(State::Live, Role::Ingress));
        world.bend("Service", &service, |service| service["status"] = status.clone());
        world.run();
        let waiting = format!("{WAITING}: ingress Service {service} is not ready yet");
        assert_eq!(world.readiness(), if ready { "True/Ready".to_owned() } else { waiting }, "{type_} {status}");
    }
}

/// `run` ends only where a pass writes nothing: what the API adds to a probe is no difference.
#[test]
fn u_probes_with_any_defaults_converge() {
    let get = |port: Value| json!({ "httpGet": { "path": "/status", "port": port } });
    for (field, probe) in [
        ("livenessProbe", json!({ "initialDelaySeconds": 3, "periodSeconds": 7, "httpGet": { "port": 8100 } })),
        ("startupProbe", get(json!(8100))),
        ("readinessProbe", get(json!("metrics"))),
        ("readinessProbe", json!({ "tcpSocket": { "port": 8100 } })),
    ] {
        let mut world = World::in_place("kong:3.9", json!({}));
        world.run();
        world.proxy(field, probe);
        world.run();
        assert_eq!(world.generations(), [Some(2), None, Some(2)]);
        assert_eq!(world.readiness(), "True/Ready");
    }
}

/// Different: a user's delay of zero is the user's. Kong loses it on the way and keeps its own of five seconds.
#[test]
fn u_a_probe_without_delay_has_none() {
    let mut world = World::in_place("kong:3.9", json!({}));
    world.proxy("readinessProbe", json!({ "initialDelaySeconds": 0 }));
    world.run();
    let probe = &world.deployment(State::Live)["spec"]["template"]["spec"]["containers"][0]["readinessProbe"];
    assert_eq!((&probe["initialDelaySeconds"], &probe["httpGet"]["path"]), (&json!(0), &json!("/status")));
}

#[test]
fn u_a_changed_strategy_of_a_deployment_is_reverted() {
    let mut world = World::at_rest("kong:3.9");
    let live = name(world.deployment(State::Live));
    let strategy = world.deployment(State::Live)["spec"]["strategy"].clone();
    assert_eq!(strategy["rollingUpdate"], json!({ "maxUnavailable": 0, "maxSurge": 1 }));
    world.bend("Deployment", &live, |live| live["spec"]["strategy"] = json!({ "type": "Recreate" }));
    world.run();
    assert_eq!(world.deployment(State::Live)["spec"]["strategy"]["type"], "RollingUpdate");
}

#[test]
fn u_resources_and_affinity_follow_the_spec() {
    let mut world = World::in_place("kong:3.9", json!({}));
    world.run();
    world.proxy("resources", json!({ "limits": { "cpu": "2" } }));
    let affinity = json!({ "podAntiAffinity": {} });
    world.edit(json!({ "deployment": { "podTemplateSpec": { "spec": { "affinity": affinity } } } }));
    world.run();
    let pod = &world.deployment(State::Live)["spec"]["template"]["spec"];
    let limits = &pod["containers"][0]["resources"]["limits"];
    assert_eq!(*limits, json!({ "cpu": "2", "memory": "1000Mi" }), "key by key, over the defaults");
    assert_eq!(pod["affinity"], affinity);
    world.edit(json!({ "deployment": { "podTemplateSpec": { "spec": { "affinity": null } } } }));
    world.run();
    assert!(world.deployment(State::Live)["spec"]["template"]["spec"].get("affinity").is_none());
}

/// In both forms: with the operator's own volume named first, as Kong demands it, and without.
#[test]
fn u_an_extra_secret_volume_makes_two() {
    let (volume, mount) = (
        json!({ "name": "extra", "secret": { "secretName": "extra" } }),
        json!({ "name": "extra", "mountPath": "/var/extra" }),
    );
    let certificate = json!({ "name": "cluster-certificate", "mountPath": "/var/cluster-certificate" });
    for (volumes, mounts) in [
        (json!([{ "name": "cluster-certificate" }, volume]), json!([certificate, mount])),
        (json!([volume]), json!([mount])),
    ] {
        let mut world = World::in_place("kong:3.9", json!({}));
        world.proxy("volumeMounts", mounts);
        world.edit(json!({ "deployment": { "podTemplateSpec": { "spec": { "volumes": volumes } } } }));
        world.run();
        let pod = &world.deployment(State::Live)["spec"]["template"]["spec"];
        let (volumes, mounts) = (pod["volumes"].as_array(), pod["containers"][0]["volumeMounts"].as_array());
        assert_eq!((volumes.map(Vec::len), mounts.map(Vec::len)), (Some(2), Some(2)));
        let secrets: Vec<_> = volumes.into_iter().flatten().map(|one| one["secret"]["secretName"].clone()).collect();
        assert_eq!(secrets, [json!(world.names("Secret")[0]), json!("extra")]);
    }
}

/// Different: a key that is no longer asked for goes. Kong forgets what it had applied before it could prune.
#[test]
fn u_annotations_are_applied_with_a_memory_and_pruned() {
    let ingress =
        |annotations: Value| json!({ "network": { "services": { "ingress": { "annotations": annotations } } } });
    let mut world = World::with("kong:3.9", ingress(json!({ "one": "1", "two": "2" })));
    world.run();
    let seen = |world: &World| {
        let found = world.service(State::Live, Role::Ingress)["metadata"]["annotations"].clone();
        json!([found["one"], found["two"], found[names::LAST_APPLIED_ANNOTATIONS]])
    };
    assert_eq!(seen(&world), json!(["1", "2", r#"{"one":"1","two":"2"}"#]));
    world.edit(ingress(json!({ "one": null })));
    world.run();
    assert_eq!(seen(&world), json!([null, "2", r#"{"two":"2"}"#]));
    world.edit(ingress(Value::Null));
    world.run();
    assert_eq!(seen(&world), json!([null, null, null]));
}

/// Different: an object of ours that lost its labels gets them back. Kong leaves it behind and makes another one.
#[test]
fn u_labels_that_were_taken_away_come_back() {
    let mut world = World::at_rest("kong:3.9");
    let kinds = ["Deployment", "Service"];
    let labels = |world: &World| -> Vec<_> {
        let all = kinds.iter().flat_map(|kind| world.all(kind));
        all.map(|one| [one["metadata"]["uid"].clone(), one["metadata"]["labels"].clone()]).collect()
    };
    let before = labels(&world);
    for label in [
        names::APP,
        names::MANAGED_BY,
        names::SERVICE_TYPE,
        names::SERVICE_STATE,
        names::DEPLOYMENT_STATE,
        names::SELECTOR,
    ] {
        for kind in kinds {
            for object in world.names(kind) {
                world.bend(kind, &object, |one| {
                    drop(one["metadata"]["labels"].as_object_mut().and_then(|l| l.remove(label)))
                });
            }
        }
        world.run();
        assert_eq!(labels(&world), before, "{label}");
    }
    assert!(world.rests());
}

#[test]
fn u_ports_follow_the_spec_and_a_node_port_only_where_it_names_one() {
    let ports = |ports: Value| json!({ "network": { "services": { "ingress": { "ports": ports } } } });
    let mut world = World::in_place("kong:3.9", json!({}));
    world.run();
    let seen = |world: &World| world.service(State::Live, Role::Ingress)["spec"]["ports"].clone();
    let chosen = |port: &str| 30_000 + port.parse::<i64>().expect("a port");
    assert_eq!(
        seen(&world),
        json!([
            { "name": "http", "protocol": "TCP", "port": 80, "targetPort": 8000, "nodePort": chosen("80") },
            { "name": "https", "protocol": "TCP", "port": 443, "targetPort": 8443, "nodePort": chosen("443") },
        ]),
        "what the cluster chose stays"
    );
    world.edit(ports(json!([{ "name": "http", "port": 9000 }])));
    world.run();
    let rendered = |node_port: i64| json!([{ "name": "http", "protocol": "TCP", "port": 9000, "targetPort": 8000, "nodePort": node_port }]);
    assert_eq!(seen(&world), rendered(chosen("9000")));
    world.edit(ports(json!([{ "name": "http", "port": 9000, "nodePort": 32_000 }])));
    world.run();
    assert_eq!(seen(&world), rendered(32_000));
}

#[test]
fn u_external_traffic_policy_follows_the_spec_in_all_six_cases() {
    for (before, after, expected) in [
        (None, None, "Cluster"),
        (None, Some("Cluster"), "Cluster"),
        (None, Some("Local"), "Local"),
        (Some("Local"), Some("Local"), "Local"),
        (Some("Local"), Some("Cluster"), "Cluster"),
        (Some("Local"), None, "Cluster"),
    ] {
        let asks = |policy: Option<&str>| json!({ "network": { "services": { "ingress": { "externalTrafficPolicy": policy } } } });
        let mut world = World::with("kong:3.9", asks(before));
        world.run();
        world.edit(asks(after));
        world.run();
        for state in [State::Live, State::Preview] {
            let seen = &world.service(state, Role::Ingress)["spec"]["externalTrafficPolicy"];
            assert_eq!(seen, expected, "{before:?} {after:?} {state:?}");
        }
    }
}

#[test]
fn u_a_named_service_has_its_name_and_is_renamed() {
    let named = |name: &str| json!({ "network": { "services": { "ingress": { "name": name } } } });
    let mut world = World::in_place("kong:3.9", named("edge"));
    world.run();
    assert_eq!(world.status().service.as_deref(), Some("edge"));
    world.edit(named("front"));
    world.run();
    assert_eq!((world.status().service.as_deref(), world.raw("Service", "edge")), (Some("front"), None));
}

#[test]
fn u_a_name_that_somebody_else_has_is_said() {
    let mut world = World::with("kong:3.9", json!({ "network": { "services": { "ingress": { "name": "edge" } } } }));
    world.put("Service", json!({ "metadata": { "name": "edge" }, "spec": { "selector": { "app": "other" } } }));
    world.run();
    let said = "there is a Service edge that does not belong to this DataPlane; delete or rename it";
    assert_eq!(world.readiness(), format!("False/UnableToProvision: {said}"));
    assert_eq!(world.raw("Service", "edge").map(|edge| &edge["spec"]["selector"]), Some(&json!({ "app": "other" })));
}

/// The table of Kong's parser, without blue/green (with it, see `g_14`).
#[test]
fn u_a_selector_override_is_parsed_as_kong_does() {
    const MALFORMED: &str = "selector override malformed - expected format: key1=value,key2=value2";
    for (text, expected) in [
        ("", Err("selector override empty - expected format: key1=value,key2=value2")),
        ("malformedSelector", Err(MALFORMED)),
        ("app=test,app2", Err(MALFORMED)),
        ("app=test,app2=", Err(MALFORMED)),
        ("app=test,", Err(MALFORMED)),
        ("app=test", Ok(json!({ "app": "test" }))),
        ("app=test,app2=test2", Ok(json!({ "app": "test", "app2": "test2" }))),
    ] {
        let mut world = World::in_place("kong:3.9", json!({}));
        world.run();
        world.annotate(SERVICE_SELECTOR_OVERRIDE, Some(text));
        let refused = check::read(&world.dataplane, &Policies::default(), true, &Ceilings::default())
            .wanted
            .err()
            .map(|refusal| refusal.message);
        assert_eq!(refused.as_deref(), expected.clone().err(), "{text}");
        world.run();
        for role in [Role::Ingress, Role::Admin] {
            let selector = &world.service(State::Live, role)["spec"]["selector"];
            match &expected {
                Ok(own) => assert_eq!(selector, own, "{text}"),
                Err(_) => assert_eq!(selector[names::APP], "dp", "{text}"),
            }
        }
    }
}
