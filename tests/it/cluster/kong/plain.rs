//! DP-1 to DP-8 and DP-10: Kong's tests of a `DataPlane` without blue/green. DP-9 is about Konnect, which is refused.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::Service,
    events::v1::Event,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use sluice::{
    api::DataPlane,
    model::names::{self, Role, State},
};
use sluice_harness::{http, kit, wait::PATIENCE};

use super::{
    super::{NAME, World},
    no_route, runs, scaling,
};

#[test]
fn dp_1_essentials() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane with a label, a variable and an annotation of its own,
        let world = World::start(kit).await?;
        world.create_plain(|dataplane| {
            let template = &mut dataplane["spec"]["deployment"]["podTemplateSpec"];
            template["metadata"]["labels"]["test-label"] = "test-value".into();
            template["spec"]["containers"][0]["env"] = json!([{ "name": "TEST_ENV", "value": "test" }]);
            dataplane["spec"]["network"]["services"]["ingress"]["annotations"]["foo"] = "bar".into();
        })?;
        world.ready("Ready").await?;

        // then its one Deployment has the label, the variable, and Kong's own variables beside it;
        let deployment = world.only::<Deployment>(&[(names::APP, NAME)], "run", |found| runs(found, 1)).await?;
        let template = json!(deployment.as_ref())["spec"]["template"].clone();
        ensure!(template["metadata"]["labels"]["test-label"] == "test-value", "{template:#}");
        let env = template["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
        ensure!(env.contains(&json!({ "name": "TEST_ENV", "value": "test" })), "{env:?}");
        ensure!(env.contains(&json!({ "name": "KONG_DATABASE", "value": "off" })), "{env:?}");
        // its ingress Service has the annotation, and both Services are there;
        let annotated = |value: &'static str| {
            move |found: &Service| found.annotations().get("foo").is_some_and(|found| found == value)
        };
        let ingress = world.service(State::Live, Role::Ingress, "become annotated", annotated("bar")).await?;
        world.service(State::Live, Role::Admin, "become one", |_| true).await?;
        // its status has the Service's name and addresses;
        let status = world.dataplane().await?.status.unwrap_or_default();
        ensure!(status.service == Some(ingress.name_any()), "{:?}", status.service);
        let spec = ingress.spec.clone().unwrap_or_default();
        let at = |value: &str| status.addresses.iter().any(|address| address.value == value);
        ensure!(spec.cluster_ip.as_deref().is_some_and(at), "{:?}", status.addresses);
        // and it answers at the address of the load balancer.
        let url = world.url().await?;
        http::until(&url, PATIENCE, no_route).await?;

        // When its Deployment and its Service are deleted, then it answers all the while: also after the operator has
        // made a pass over what is left, which shows in the Service that it goes on to patch.
        http::throughout(&url, no_route, async {
            kit.api::<Deployment>().delete(&deployment.name_any(), &DeleteParams::background()).await?;
            kit.api::<Service>().delete(&ingress.name_any(), &DeleteParams::background()).await?;
            world.patch(ingress_spec(json!({ "annotations": { "foo": "baz" } }))).await?;
            let patched = world.service(State::Live, Role::Ingress, "become annotated again", annotated("baz")).await?;
            ensure!(patched.metadata.deletion_timestamp.is_some(), "the Service is another one");
            world.ready("Ready").await?;
            Ok(())
        })
        .await
    })
}

#[test]
fn dp_2_service_types() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane behind a load balancer,
        let world = World::start(kit).await?;
        world.create_plain(|_| {})?;
        world.ready("Ready").await?;
        let first = world.service(State::Live, Role::Ingress, "become a LoadBalancer", typed("LoadBalancer")).await?;
        for type_ in ["ClusterIP", "NodePort", "LoadBalancer"] {
            // when its type changes,
            world.patch(ingress_spec(json!({ "type": type_ }))).await?;
            // then the same Service has it, and the status follows.
            let now = world.service(State::Live, Role::Ingress, &format!("become a {type_}"), typed(type_)).await?;
            ensure!(now.uid() == first.uid(), "it is another Service");
            let kinds = |found: &DataPlane| {
                let addresses = found.status.iter().flat_map(|status| &status.addresses);
                addresses.map(|address| address.source_type.clone()).collect::<Vec<_>>()
            };
            let expected: &[_] =
                if type_ == "LoadBalancer" { &["PrivateLoadBalancer", "PrivateIP"] } else { &["PrivateIP"] };
            let follows = |found: Option<&DataPlane>| found.is_some_and(|found| kinds(found) == expected);
            kit.wait(NAME, &format!("have the addresses of a {type_}"), follows).await?;
            world.ready("Ready").await?;
        }
        Ok(())
    })
}

#[test]
fn dp_3_update() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane,
        let world = World::start(kit).await?;
        world.create_plain(|_| {})?;
        world.ready("Ready").await?;

        // when a variable changes, then the Deployment has it.
        world.proxy_field("env", json!([{ "name": "TEST_ENV", "value": "after_update" }])).await?;
        let updated = |found: &Deployment| {
            let env = json!(found)["spec"]["template"]["spec"]["containers"][0]["env"].clone();
            let env = env.as_array().cloned().unwrap_or_default();
            env.contains(&json!({ "name": "TEST_ENV", "value": "after_update" })) && runs(found, 1)
        };
        world.deployment(State::Live, "run with the variable", updated).await?;
        world.ready("Ready").await?;

        // When the readiness probe asks for what is not there,
        let probe = |path: &str, port: Value| json!({ "httpGet": { "path": path, "port": port }, "initialDelaySeconds": 1, "periodSeconds": 1 });
        world.proxy_field("readinessProbe", probe("/not-there", 8100.into())).await?;
        // then it waits to become ready, and says so of this generation, also when the probe has been asked;
        let asked = |event: &Arc<Event>| event.note.as_deref().is_some_and(|note| note.contains("statuscode: 404"));
        kit.wait_all::<Event>("", "tell of the probe", |events| events.iter().any(asked)).await?;
        let message = world.ready("WaitingToBecomeReady").await.map(|found| json!(found.status).to_string())?;
        ensure!(message.contains("is not ready yet"), "{message}");
        // and when the probe is put right, it is Ready, and says so of that generation.
        world.proxy_field("readinessProbe", probe("/status", 8100.into())).await?;
        world.deployment(State::Live, "run", |found| runs(found, 1)).await?;
        world.ready("Ready").await?;

        // When a startup probe is added, and then a port is called by its name, each time it comes to rest: with the
        // defaults that the API adds, one write to the Deployment is enough.
        for (field, port) in [("startupProbe", json!(8100)), ("readinessProbe", json!("metrics"))] {
            world.proxy.forget();
            world.proxy_field(field, probe("/status", port.clone())).await?;
            let probes = |found: &Deployment| {
                let now = json!(found)["spec"]["template"]["spec"]["containers"][0][field]["httpGet"]["port"].clone();
                now == port && runs(found, 1)
            };
            let now = world.deployment(State::Live, "run with the probe", probes).await?;
            world.ready("Ready").await?;
            let path = format!("/deployments/{}", now.name_any());
            let writes = world.proxy.writes().into_iter().filter(|write| write.path.ends_with(&path));
            let mut bodies: Vec<_> =
                writes.map(|write| serde_json::from_slice(&write.body)).collect::<Result<_, _>>()?;
            // One that somebody else's write has overtaken is sent once more, for another version.
            bodies.iter_mut().for_each(|body: &mut Value| body["metadata"]["resourceVersion"] = Value::Null);
            bodies.dedup();
            ensure!(bodies.len() == 1, "{field}: {bodies:#?}");
        }
        Ok(())
    })
}

#[test]
fn dp_4_horizontal_scaling() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane with two replicas,
        let world = World::start(kit).await?;
        world.create_plain(|dataplane| dataplane["spec"]["deployment"]["replicas"] = 2.into())?;
        world.ready("Ready").await?;
        let live = world.deployment(State::Live, "run twice", |found| runs(found, 2)).await?.name_any();
        // when there should be one, then there is one.
        world.patch(json!({ "spec": { "deployment": { "replicas": 1 } } })).await?;
        world.deployment(State::Live, "run once", |found| runs(found, 1)).await?;
        kit.wait_all::<HorizontalPodAutoscaler>(&mine(), "become absent", <[_]>::is_empty).await?;

        for (max, cpu) in [(3, 20), (5, 50)] {
            // When scaling is asked for, and when it changes,
            let deployment = json!({ "replicas": null, "scaling": scaling(None, max, cpu) });
            world.patch(json!({ "spec": { "deployment": deployment } })).await?;
            // then an autoscaler of the live Deployment follows.
            let follows = |found: &HorizontalPodAutoscaler| {
                let spec = json!(found.spec);
                let metric = &spec["metrics"][0]["resource"];
                spec["maxReplicas"] == max
                    && (&metric["name"], &metric["target"]["averageUtilization"]) == (&json!("cpu"), &json!(cpu))
                    && spec["scaleTargetRef"] == json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": live })
            };
            let found = world.only(&[(names::APP, NAME)], &format!("scale up to {max}"), follows).await?;
            ensure!(found.name_any() == NAME, "it is called {}", found.name_any());
        }

        // When scaling is no longer asked for, then there is no autoscaler.
        world.patch(json!({ "spec": { "deployment": { "scaling": null } } })).await?;
        kit.wait_all::<HorizontalPodAutoscaler>(&mine(), "go", <[_]>::is_empty).await?;
        world.ready("Ready").await?;
        Ok(())
    })
}

/// In Kong's form, which names the certificate's volume and mount again, and in the plain one.
#[test]
fn dp_5_volume_mounts() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane with a volume of its own beside the certificate's,
        let world = World::start(kit).await?;
        kit.kubectl(&["create", "secret", "generic", "test-secret", "--from-literal=key=value"])?;
        let own = json!({ "name": "test-volume", "secret": { "secretName": "test-secret" } });
        let own_mount = json!({ "name": "test-volume", "mountPath": "/var/test", "readOnly": true });
        let certificate = names::CERTIFICATE_VOLUME;
        let mount = json!({ "name": certificate, "mountPath": "/var/cluster-certificate", "readOnly": true });
        world.create_plain(|dataplane| {
            let spec = &mut dataplane["spec"]["deployment"]["podTemplateSpec"]["spec"];
            spec["volumes"] = json!([{ "name": certificate }, own]);
            spec["containers"][0]["volumeMounts"] = json!([mount, own_mount]);
        })?;
        world.ready("Ready").await?;
        // then both are there and mounted, and nothing else;
        let mounted = |found: &Deployment| {
            let spec = json!(found)["spec"]["template"]["spec"].clone();
            let list = |list: &Value| list.as_array().cloned().unwrap_or_default();
            let (volumes, mounts) = (list(&spec["volumes"]), list(&spec["containers"][0]["volumeMounts"]));
            let secret = |name: &str| {
                let volume = volumes.iter().find(|volume| volume["name"] == name);
                volume.map(|volume| volume["secret"]["secretName"].clone()).unwrap_or_default()
            };
            (volumes.len(), mounts.len()) == (2, 2)
                && secret("test-volume") == "test-secret"
                && secret(certificate).as_str().is_some_and(|name| name.starts_with(&format!("dataplane-{NAME}-")))
                && mounts.contains(&mount)
                && mounts.contains(&own_mount)
        };
        let both = |found: &Deployment| runs(found, 1) && mounted(found);
        let live = world.deployment(State::Live, "mount both volumes", both).await?;

        // and when somebody takes the volume out of the Deployment,
        let containers = json!([{ "name": "proxy", "volumeMounts": [
            { "$patch": "delete", "mountPath": "/var/test" },
        ]}]);
        let volumes = json!([{ "$patch": "delete", "name": "test-volume" }]);
        let without = json!({ "spec": { "template": { "spec": { "containers": containers, "volumes": volumes } } } });
        let params = PatchParams::default();
        let taken = kit.api::<Deployment>().patch(&live.name_any(), &params, &Patch::Strategic(without)).await?;
        ensure!(taken.metadata.generation > live.metadata.generation && !mounted(&taken), "nothing was taken out");
        // then it is there again.
        let back = |found: &Deployment| found.metadata.generation > taken.metadata.generation && both(found);
        let live = world.deployment(State::Live, "mount both volumes again", back).await?;

        // When the certificate is not named again, then it is mounted all the same, and nothing restarts.
        world.proxy_field("volumeMounts", json!([own_mount])).await?;
        world
            .patch(json!({ "spec": { "deployment": { "podTemplateSpec": { "spec": { "volumes": [own] } } } } }))
            .await?;
        world.ready("Ready").await?;
        let now = world.deployment(State::Live, "still mount both volumes", both).await?;
        ensure!(now.spec == live.spec, "changed from {:#} to {:#}", json!(live.spec), json!(now.spec));
        Ok(())
    })
}

#[test]
fn dp_6_pod_disruption_budget() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane with two replicas of which one has to be available,
        let world = World::start(kit).await?;
        let budget = |least: i32| json!({ "podDisruptionBudget": { "spec": { "minAvailable": least } } });
        world.create_plain(|dataplane| {
            dataplane["spec"]["deployment"]["replicas"] = 2.into();
            dataplane["spec"]["resources"] = budget(1);
        })?;
        world.ready("Ready").await?;
        // then the budget counts both Pods and lets one go.
        let says = |desired: i32, allowed: i32| {
            move |found: &PodDisruptionBudget| {
                let status = found.status.clone().unwrap_or_default();
                let counts = [status.expected_pods, status.desired_healthy, status.disruptions_allowed];
                counts == [2, desired, allowed].map(Some)
            }
        };
        let found = world.only(&[(names::APP, NAME)], "let one go", says(1, 1)).await?;
        ensure!(found.name_any() == NAME, "it is called {}", found.name_any());

        // When both have to be available, then it lets none go.
        world.patch(json!({ "spec": { "resources": budget(2) } })).await?;
        world.only(&[(names::APP, NAME)], "let none go", says(2, 0)).await?;

        // When no budget is asked for, then there is none.
        world.patch(json!({ "spec": { "resources": null } })).await?;
        kit.wait_all::<PodDisruptionBudget>(&mine(), "go", <[_]>::is_empty).await?;
        Ok(())
    })
}

#[test]
fn dp_7_external_traffic_policy() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane whose traffic stays on its node,
        let world = World::start(kit).await?;
        world.create_plain(|dataplane| {
            dataplane["spec"]["network"] =
                ingress_spec(json!({ "externalTrafficPolicy": "Local" }))["spec"]["network"].clone();
        })?;
        world.ready("Ready").await?;
        let has = |policy: &'static str| {
            move |found: &Service| {
                found.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref()) == Some(policy)
            }
        };
        let first = world.service(State::Live, Role::Ingress, "become Local", has("Local")).await?;
        for policy in ["Cluster", "Local"] {
            // when it may leave the node, and when it may not again, then the same Service follows.
            world.patch(ingress_spec(json!({ "externalTrafficPolicy": policy }))).await?;
            let now = world.service(State::Live, Role::Ingress, &format!("become {policy}"), has(policy)).await?;
            ensure!(now.uid() == first.uid(), "it is another Service");
        }
        // And when nothing is said of it, then it is the API's default again.
        world.patch(ingress_spec(json!({ "externalTrafficPolicy": null }))).await?;
        world.service(State::Live, Role::Ingress, "become Cluster by default", has("Cluster")).await?;
        world.ready("Ready").await?;
        Ok(())
    })
}

#[test]
fn dp_8_specifying_service_name() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane with a name for its ingress Service,
        let world = World::start(kit).await?;
        world.create_plain(|dataplane| {
            dataplane["spec"]["network"] = ingress_spec(json!({ "name": "ingress-first" }))["spec"]["network"].clone();
        })?;
        world.ready("Ready").await?;
        // then the Service is called so, and it answers at its address.
        let first = world.service(State::Live, Role::Ingress, "become one", |_| true).await?;
        ensure!(first.name_any() == "ingress-first", "it is called {}", first.name_any());
        http::until(&world.url().await?, PATIENCE, no_route).await?;

        // When another name is given,
        world.patch(ingress_spec(json!({ "name": "ingress-second" }))).await?;
        // then a Service of that name is there and in the status, the first one goes, and the new one answers.
        let second = |found: &Service| found.name_any() == "ingress-second";
        let second = world.service(State::Live, Role::Ingress, "become the second", second).await?;
        kit.wait::<Service>("ingress-first", "go", |found| found.is_none()).await?;
        let moved = |found: Option<&DataPlane>| {
            let status = found.and_then(|found| found.status.as_ref());
            status.is_some_and(|status| status.service.as_deref() == Some("ingress-second"))
        };
        kit.wait(NAME, "name the second Service", moved).await?;
        let given = |found: Option<&Service>| found.is_some_and(|found| load_balancer(found).is_some());
        let second = kit.wait(&second.name_any(), "have an address", given).await?.context("it is gone")?;
        let address = load_balancer(&second).context("no address")?;
        http::until(&format!("http://{address}/"), PATIENCE, no_route).await?;
        Ok(())
    })
}

#[test]
fn dp_10_scale_subresource() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane with two replicas,
        let world = World::start(kit).await?;
        world.create_plain(|dataplane| dataplane["spec"]["deployment"]["replicas"] = 2.into())?;
        world.deployment(State::Live, "run twice", |found| runs(found, 2)).await?;
        // when it is scaled, then there are three, also by status.
        scale(&world, 3).await?;
        let live = world.deployment(State::Live, "run three times", |found| runs(found, 3)).await?;

        // When its Deployment is restarted as kubectl does it,
        let at = "2026-01-01T00:00:00Z";
        let annotations = json!({ "kubectl.kubernetes.io/restartedAt": at });
        let restart = json!({ "spec": { "template": { "metadata": { "annotations": annotations } } } });
        kit.api::<Deployment>().patch(&live.name_any(), &PatchParams::default(), &Patch::Merge(restart)).await?;
        // then all Pods are of a new ReplicaSet;
        let restarted = |sets: &[Arc<ReplicaSet>]| {
            let of_restart = |set: &&Arc<ReplicaSet>| {
                json!(set.as_ref())["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"]
                    == at
            };
            let ready = |set: &Arc<ReplicaSet>| set.status.as_ref().and_then(|status| status.ready_replicas);
            sets.iter().find(of_restart).is_some_and(|set| ready(set) == Some(3))
                && sets.iter().filter_map(ready).sum::<i32>() == 3
        };
        let sets = kit.wait_all(&mine(), "restart", restarted).await?;
        // and when it is scaled once more, then nothing restarts.
        scale(&world, 4).await?;
        world.deployment(State::Live, "run four times", |found| runs(found, 4)).await?;
        let now = kit.wait_all::<ReplicaSet>(&mine(), "become there", |sets| !sets.is_empty()).await?;
        let names = |sets: &[Arc<ReplicaSet>]| sets.iter().map(|set| set.name_any()).collect::<Vec<_>>();
        ensure!(names(&now) == names(&sets), "another ReplicaSet: {:?} {:?}", names(&sets), names(&now));
        Ok(())
    })
}

/// Kong stages a scale as a rollout like any change of the spec. Here it changes no revision and reaches the live side
/// at once.
#[test]
fn dp_10_scale_subresource_with_blue_green() -> Result<()> {
    kit::run(async |kit| {
        // Given a DataPlane with blue/green at rest,
        let world = World::start(kit).await?;
        world.create_changed(|dataplane| dataplane["spec"]["deployment"]["replicas"] = 1.into())?;
        world.at_rest("kong:3.9").await?;
        // when it is scaled,
        scale(&world, 2).await?;
        // then the live side has so many, nothing is staged, and it is at rest.
        world.deployment(State::Live, "run twice", |found| runs(found, 2)).await?;
        world.reason("WaitingForChange").await?;
        world.ready("Ready").await?;
        world.deployment(State::Preview, "stay empty", |found| json!(found)["spec"]["replicas"] == 0).await?;
        ensure!(world.promotions().await?.is_empty(), "a scale was staged");
        Ok(())
    })
}

/// A patch of the ingress Service's part of the spec.
fn ingress_spec(ingress: Value) -> Value {
    json!({ "spec": { "network": { "services": { "ingress": ingress } } } })
}

/// The label of all that belongs to the DataPlane.
fn mine() -> String {
    format!("{}={NAME}", names::APP)
}

fn typed(type_: &str) -> impl Fn(&Service) -> bool + '_ {
    move |found| found.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some(type_)
}

fn load_balancer(service: &Service) -> Option<String> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?;
    ingress.first()?.ip.clone()
}

/// `kubectl scale`, until the status says that so many are ready.
async fn scale(world: &World<'_>, replicas: i32) -> Result<()> {
    world.kit.kubectl(&["scale", &format!("dataplane/{NAME}"), &format!("--replicas={replicas}")])?;
    let scaled = |found: Option<&DataPlane>| {
        let status = found.and_then(|found| found.status.as_ref());
        status.is_some_and(|status| (status.replicas, status.ready_replicas) == (replicas, replicas))
    };
    world.kit.wait(NAME, &format!("have {replicas} replicas ready"), scaled).await?;
    Ok(())
}
