//! Several managers of the same objects: what others add stays, what is ours comes back, and a count that somebody
//! else was asked to choose is theirs.

use std::fmt::Debug;

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, ReplicaSet},
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{Secret, Service},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sluice::{
    api::DataPlane,
    model::names::{self, Role, State},
};
use sluice_harness::kit::{self, Kit};

use super::{NAME, World, manifest_of, proxy};

/// A service mesh, say: it adds to what it finds.
const MESH: &str = "mesh";
const SIDECAR: &str = "mesh-agent";

/// A DataPlane whose Pods turn ready soon.
fn spec(deployment: Value) -> Value {
    let mut proxy = proxy("kong:3.9");
    proxy["env"] = json!([{ "name": "KONG_LOG_LEVEL", "value": "debug" }]);
    proxy["readinessProbe"] = json!({ "initialDelaySeconds": 1, "periodSeconds": 1 });
    let mut spec = json!({ "deployment": deployment });
    spec["deployment"]["podTemplateSpec"] = json!({ "spec": { "containers": [proxy] } });
    spec["network"] = json!({ "services": { "ingress": { "annotations": { "team": "edge" } } } });
    spec
}

/// A part of an object; entries of lists go by their name, or their port.
fn part<K: Serialize>(object: &K, place: &[&str]) -> Value {
    let mut part = serde_json::to_value(object).unwrap_or_default();
    for step in place {
        part = match part {
            Value::Array(entries) => {
                let is =
                    |entry: &Value| entry["name"] == *step || step.parse().is_ok_and(|port: i64| entry["port"] == port);
                entries.into_iter().find(is).unwrap_or_default()
            }
            mut other => other[*step].take(),
        };
    }
    part
}

/// Somebody changes a part of an object, and it comes back.
async fn comes_back<K>(kit: &Kit, name: &str, place: &[&str], change: Value) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Serialize
        + DeserializeOwned
        + Clone
        + Debug
        + Send
        + 'static,
{
    let api = kit.api::<K>();
    let before = part(&api.get(name).await?, place);
    ensure!(!before.is_null(), "there is no {place:?} in {} {name}", K::kind(&()));
    let changed = api.patch(name, &PatchParams::default(), &Patch::Strategic(&change)).await?;
    ensure!(part(&changed, place) != before, "{change} does not change {place:?}");
    let back = |found: Option<&K>| found.is_some_and(|found| part(found, place) == before);
    kit.wait::<K>(name, &format!("get back {place:?} after {change}"), back).await?;
    Ok(())
}

/// The operator has come by, and has applied this Deployment: a label that was bent is straight again.
async fn passes(kit: &Kit, deployment: &str) -> Result<()> {
    let bent = json!({ "metadata": { "labels": { names::APP: "bent" } } });
    comes_back::<Deployment>(kit, deployment, &["metadata", "labels", names::APP], bent).await
}

impl World<'_> {
    /// A DataPlane with this spec, live and ready.
    async fn run(&self, spec: &Value) -> Result<()> {
        self.kit.apply(&manifest_of(NAME, spec).to_string())?;
        self.ready("Ready").await?;
        Ok(())
    }

    async fn live_deployment(&self) -> Result<Deployment> {
        let live = |deployment: &Deployment| super::state(deployment) == State::Live.as_str();
        self.deployments().await?.into_iter().find(live).context("nothing is live")
    }

    /// The name of a live Service.
    async fn live_service(&self, role: Role) -> Result<String> {
        let labels = format!("{}=live,{}={}", names::SERVICE_STATE, names::SERVICE_TYPE, role.as_str());
        let services = self.kit.api::<Service>().list(&ListParams::default().labels(&labels)).await?;
        Ok(services.items.first().context("no live Service")?.name_any())
    }

    async fn replica_sets(&self, deployment: &Deployment) -> Result<Vec<String>> {
        let owned =
            |set: &ReplicaSet| set.owner_references().iter().any(|owner| Some(&owner.uid) == deployment.uid().as_ref());
        let sets = self.kit.api::<ReplicaSet>().list(&ListParams::default()).await?;
        Ok(sets.items.into_iter().filter(owned).map(|set| set.name_any()).collect())
    }
}

#[test]
fn what_another_manager_adds_survives_passes_a_restart_and_an_edit() -> Result<()> {
    kit::run(async |kit| {
        let mut world = World::start(kit).await?;
        let blue_green = json!({ "rollout": { "strategy": { "blueGreen": { "promotion": {} } } } });
        world.run(&spec(blue_green)).await?;
        let (deployment, service) =
            (world.live_deployment().await?.name_any(), world.live_service(Role::Ingress).await?);

        let marks = json!({
            "labels": { "mesh.example/tier": "1" }, "annotations": { "mesh.example/injected": "yes" },
        });
        let metadata = |name: &str| {
            let mut metadata = marks.clone();
            metadata["name"] = name.into();
            metadata
        };
        let agent = json!({ "name": SIDECAR, "image": "kong:3.9", "command": ["sleep", "infinity"] });
        let proxy = json!({ "name": "proxy", "env": [{ "name": "MESH", "value": "on" }] });
        let body = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(&deployment),
            "spec": { "template": { "metadata": marks, "spec": { "containers": [agent, proxy] } } },
        });
        let mesh = PatchParams::apply(MESH);
        kit.api::<Deployment>().patch(&deployment, &mesh, &Patch::Apply(body)).await?;
        let body = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(&service),
            "spec": { "ports": [{ "name": "mesh", "port": 15000, "targetPort": 15000, "protocol": "TCP" }] },
        });
        kit.api::<Service>().patch(&service, &mesh, &Patch::Apply(body)).await?;

        let there = async |when: &str| -> Result<()> {
            let found = kit.api::<Deployment>().get(&deployment).await?;
            const POD: [&str; 2] = ["spec", "template"];
            for (place, value) in [
                (&["metadata", "labels", "mesh.example/tier"][..], "1"),
                (&["metadata", "annotations", "mesh.example/injected"], "yes"),
                (&[POD[0], POD[1], "metadata", "labels", "mesh.example/tier"], "1"),
                (&[POD[0], POD[1], "metadata", "annotations", "mesh.example/injected"], "yes"),
                (&[POD[0], POD[1], "spec", "containers", SIDECAR, "image"], "kong:3.9"),
                (&[POD[0], POD[1], "spec", "containers", "proxy", "env", "MESH", "value"], "on"),
                (&[POD[0], POD[1], "spec", "containers", "proxy", "env", "KONG_LOG_LEVEL", "value"], "debug"),
            ] {
                ensure!(part(&found, place) == value, "{when}: {place:?} of the Deployment is {}", part(&found, place));
            }
            let found = kit.api::<Service>().get(&service).await?;
            ensure!(part(&found, &["metadata", "labels", "mesh.example/tier"]) == "1", "{when}: {found:?}");
            ensure!(part(&found, &["metadata", "annotations", "mesh.example/injected"]) == "yes", "{when}: {found:?}");
            ensure!(part(&found, &["spec", "ports", "mesh", "targetPort"]) == 15000, "{when}: {found:?}");
            Ok(())
        };
        let bent = json!({ "spec": { "selector": { names::APP: "bent" } } });
        let straight = async || -> Result<()> {
            passes(kit, &deployment).await?;
            comes_back::<Service>(kit, &service, &["spec", "selector", names::APP], bent.clone()).await
        };

        straight().await?;
        there("after a pass").await?;
        world.ready("Ready").await?;

        world.restart().await?;
        straight().await?;
        there("after a restart").await?;

        // What no revision depends on reaches the live side at once, blue/green or not.
        let annotations = json!({ "team": "core" });
        let edit = json!({ "spec": {
            "deployment": { "replicas": 2 }, "network": { "services": { "ingress": { "annotations": annotations } } },
        }});
        world.patch(edit).await?;
        let scaled = |found: Option<&Deployment>| found.is_some_and(|found| part(found, &["spec", "replicas"]) == 2);
        kit.wait::<Deployment>(&deployment, "have 2 replicas", scaled).await?;
        let edited = |found: Option<&Service>| {
            found.is_some_and(|found| part(found, &["metadata", "annotations", "team"]) == "core")
        };
        kit.wait::<Service>(&service, "have the other annotation", edited).await?;
        there("after an edit").await
    })
}

#[test]
fn what_is_ours_comes_back_when_it_is_changed_or_taken_away() -> Result<()> {
    kit::run(async |kit| {
        let world = World::start(kit).await?;
        let mut spec = spec(json!({ "replicas": 1, "rollout": { "strategy": { "blueGreen": { "promotion": {} } } } }));
        spec["resources"] = json!({ "podDisruptionBudget": { "spec": { "minAvailable": 0 } } });
        world.run(&spec).await?;
        let deployment = world.live_deployment().await?.name_any();

        let label = |label: &str, value: Value| json!({ "metadata": { "labels": { label: value } } });
        let container = |change: Value| {
            let mut container = change;
            container["name"] = "proxy".into();
            json!({ "spec": { "template": { "spec": { "containers": [container] } } } })
        };
        const PROXY: [&str; 5] = ["spec", "template", "spec", "containers", "proxy"];
        let of_proxy = |place: &[&'static str]| [&PROXY[..], place].concat();
        let variable = |change: Value| container(json!({ "env": [change] }));
        let recreate = json!({ "spec": { "strategy": { "type": "Recreate", "rollingUpdate": null } } });
        let surge = json!({ "spec": { "strategy": { "rollingUpdate": { "maxSurge": "50%" } } } });
        for (place, change) in [
            (vec!["metadata", "labels", names::APP], label(names::APP, json!("bent"))),
            (vec!["metadata", "labels", names::APP], label(names::APP, Value::Null)),
            (vec!["metadata", "labels", names::DEPLOYMENT_STATE], label(names::DEPLOYMENT_STATE, json!("preview"))),
            (vec!["metadata", "labels", names::DEPLOYMENT_STATE], label(names::DEPLOYMENT_STATE, Value::Null)),
            (vec!["metadata", "labels", names::SELECTOR], label(names::SELECTOR, json!("bent"))),
            (vec!["metadata", "labels", names::SELECTOR], label(names::SELECTOR, Value::Null)),
            (vec!["metadata", "labels", names::MANAGED_BY], label(names::MANAGED_BY, json!("bent"))),
            (vec!["metadata", "labels", names::MANAGED_BY], label(names::MANAGED_BY, Value::Null)),
            (
                vec!["metadata", "annotations", names::REVISION],
                json!({ "metadata": { "annotations": { names::REVISION: null } } }),
            ),
            (vec!["metadata", "finalizers"], json!({ "metadata": { "finalizers": null } })),
            (
                of_proxy(&["env", "KONG_LOG_LEVEL", "value"]),
                variable(json!({ "name": "KONG_LOG_LEVEL", "value": "info" })),
            ),
            (
                of_proxy(&["env", "KONG_LOG_LEVEL", "value"]),
                variable(json!({ "name": "KONG_LOG_LEVEL", "$patch": "delete" })),
            ),
            (
                of_proxy(&["env", "KONG_DATABASE", "value"]),
                variable(json!({ "name": "KONG_DATABASE", "$patch": "delete" })),
            ),
            (of_proxy(&["image"]), container(json!({ "image": "kong:3.4" }))),
            (
                of_proxy(&["readinessProbe", "periodSeconds"]),
                container(json!({ "readinessProbe": { "periodSeconds": 7 } })),
            ),
            (of_proxy(&["lifecycle"]), container(json!({ "lifecycle": null }))),
            (vec!["spec", "replicas"], json!({ "spec": { "replicas": 2 } })),
            (vec!["spec", "strategy"], recreate),
            (vec!["spec", "strategy"], surge),
        ] {
            comes_back::<Deployment>(kit, &deployment, &place, change).await?;
        }

        let port = |port: Value| json!({ "spec": { "ports": [port] } });
        for role in [Role::Ingress, Role::Admin] {
            let service = world.live_service(role).await?;
            let selector = |change: Value| json!({ "spec": { "selector": change } });
            for (place, change) in [
                (vec!["metadata", "labels", names::MANAGED_BY], label(names::MANAGED_BY, Value::Null)),
                (vec!["metadata", "labels", names::SERVICE_STATE], label(names::SERVICE_STATE, Value::Null)),
                (vec!["metadata", "labels", names::SERVICE_STATE], label(names::SERVICE_STATE, json!("preview"))),
                (vec!["metadata", "labels", names::SERVICE_TYPE], label(names::SERVICE_TYPE, Value::Null)),
                (vec!["metadata", "labels", names::SERVICE_TYPE], label(names::SERVICE_TYPE, json!("other"))),
                (vec!["spec", "selector"], selector(json!({ names::SELECTOR: "bent" }))),
                (vec!["spec", "selector"], selector(json!({ names::APP: null }))),
                (vec!["spec", "selector"], selector(json!({ "more": "narrow" }))),
            ] {
                comes_back::<Service>(kit, &service, &place, change).await?;
            }
        }
        let service = world.live_service(Role::Ingress).await?;
        for (place, change) in [
            (vec!["spec", "ports", "80"], port(json!({ "port": 80, "targetPort": 9999 }))),
            (vec!["spec", "ports", "443", "targetPort"], port(json!({ "port": 443, "$patch": "delete" }))),
            (vec!["spec", "type"], json!({ "spec": { "type": "NodePort" } })),
            (vec!["metadata", "annotations", "team"], json!({ "metadata": { "annotations": { "team": null } } })),
            (vec!["metadata", "annotations", "team"], json!({ "metadata": { "annotations": { "team": "other" } } })),
        ] {
            comes_back::<Service>(kit, &service, &place, change).await?;
        }

        for (place, change) in [
            (vec!["spec", "minAvailable"], json!({ "spec": { "minAvailable": 1 } })),
            (vec!["spec", "selector"], json!({ "spec": { "selector": { "matchLabels": { "more": "narrow" } } } })),
            (vec!["metadata", "labels", names::MANAGED_BY], label(names::MANAGED_BY, Value::Null)),
        ] {
            comes_back::<PodDisruptionBudget>(kit, NAME, &place, change).await?;
        }
        let pods = kit.api::<Deployment>().get(&deployment).await?;
        let volumes =
            part(&pods, &["spec", "template", "spec", "volumes", names::CERTIFICATE_VOLUME, "secret", "secretName"]);
        let secret = volumes.as_str().context("no Secret is mounted")?;
        let unmanaged = label(names::MANAGED_BY, Value::Null);
        comes_back::<Secret>(kit, secret, &["metadata", "labels", names::MANAGED_BY], unmanaged).await?;
        world.ready("Ready").await?;
        world.at_rest("kong:3.9").await
    })
}

#[test]
fn a_rollout_restart_is_not_fought() -> Result<()> {
    kit::run(async |kit| {
        let mut world = World::start(kit).await?;
        world.run(&spec(json!({}))).await?;
        let live = world.live_deployment().await?;
        let name = live.name_any();
        assert_eq!(world.replica_sets(&live).await?.len(), 1);
        kit.kubectl(&["rollout", "restart", "deployment", &name])?;
        kit.kubectl(&["rollout", "status", "deployment", &name, "--timeout=90s"])?;
        passes(kit, &name).await?;
        world.restart().await?;
        passes(kit, &name).await?;
        world.ready("Ready").await?;

        let live = world.live_deployment().await?;
        const RESTARTED: [&str; 5] =
            ["spec", "template", "metadata", "annotations", "kubectl.kubernetes.io/restartedAt"];
        assert!(part(&live, &RESTARTED).is_string(), "the restart was taken back");
        assert_eq!(world.replica_sets(&live).await?.len(), 2, "one for before and one for after");
        assert_eq!(part(&live, &["metadata", "annotations", "deployment.kubernetes.io/revision"]), "2");
        Ok(())
    })
}

#[test]
fn a_count_that_an_autoscaler_chose_is_its_own() -> Result<()> {
    kit::run(async |kit| {
        let mut world = World::start(kit).await?;
        let horizontal = json!({ "minReplicas": 1, "maxReplicas": 4 });
        world.run(&spec(json!({ "scaling": { "horizontal": horizontal } }))).await?;
        let name = world.live_deployment().await?.name_any();
        let count =
            async || -> Result<Value> { Ok(part(&kit.api::<Deployment>().get(&name).await?, &["spec", "replicas"])) };
        assert_eq!(count().await?, 1);

        // As the autoscaler itself writes it.
        let scale = json!({ "spec": { "replicas": 3 } });
        let autoscaler =
            PatchParams { field_manager: Some("horizontal-pod-autoscaler".into()), ..PatchParams::default() };
        kit.api::<Deployment>().patch_scale(&name, &autoscaler, &Patch::Merge(scale)).await?;
        passes(kit, &name).await?;
        assert_eq!(count().await?, 3, "after a pass");
        world.ready("Ready").await?;

        world.restart().await?;
        passes(kit, &name).await?;
        assert_eq!(count().await?, 3, "after a restart");

        let image = world.dataplane().await?;
        let env = json!([{ "op": "replace", "value": "info",
            "path": "/spec/deployment/podTemplateSpec/spec/containers/0/env/0/value" }]);
        let patch = Patch::Json::<()>(serde_json::from_value(env)?);
        kit.api::<DataPlane>().patch(&image.name_any(), &PatchParams::default(), &patch).await?;
        const LEVEL: [&str; 8] = ["spec", "template", "spec", "containers", "proxy", "env", "KONG_LOG_LEVEL", "value"];
        let edited = |found: Option<&Deployment>| found.is_some_and(|found| part(found, &LEVEL) == "info");
        kit.wait::<Deployment>(&name, "have the edited variable", edited).await?;
        assert_eq!(count().await?, 3, "after an edit");
        world.ready("Ready").await?;

        let of_the_autoscaler =
            |field: &'static str, value: Value| (vec!["spec", field], json!({ "spec": { field: value } }));
        for (place, change) in [
            of_the_autoscaler("maxReplicas", json!(9)),
            of_the_autoscaler("minReplicas", json!(2)),
            of_the_autoscaler("scaleTargetRef", json!({ "kind": "Deployment", "name": "other" })),
            (
                vec!["metadata", "labels", names::MANAGED_BY],
                json!({ "metadata": { "labels": { names::MANAGED_BY: null } } }),
            ),
        ] {
            comes_back::<HorizontalPodAutoscaler>(kit, NAME, &place, change).await?;
        }
        assert_eq!(count().await?, 3, "at the end");
        Ok(())
    })
}
