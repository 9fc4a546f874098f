//! What the API takes, refuses and fills in, by definition and admission policy alone: no operator runs here.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice::api::dataplane::PROMOTE_WHEN_READY;
use sluice_harness::{
    kit::{self, Kit},
    wait::PATIENCE,
};

use super::{manifest_of, proxy, wire};

/// What the API says of a manifest.
enum Says {
    /// It takes it; at these places of what it stores is this.
    Stores(Vec<(&'static str, Value)>),
    /// It refuses it: the field, and the message or what it says of the message.
    Refuses(&'static str, &'static str),
}

/// A manifest, as a change of a good one, and what the API says of it.
struct Row {
    name: &'static str,
    change: Value,
    says: Says,
}

fn taken(name: &'static str, change: Value) -> Row {
    Row { name, change, says: Says::Stores(Vec::new()) }
}

fn stored<const N: usize>(name: &'static str, change: Value, places: [(&'static str, Value); N]) -> Row {
    Row { name, change, says: Says::Stores(places.into()) }
}

fn refused(name: &'static str, change: Value, field: &'static str, message: &'static str) -> Row {
    Row { name, change, says: Says::Refuses(field, message) }
}

/// Lays a change over a document; null takes a field away.
fn change(document: &mut Value, over: &Value) {
    match (document, over) {
        (Value::Object(document), Value::Object(over)) => {
            for (field, over) in over {
                match (document.get_mut(field), over) {
                    (_, Value::Null) => drop(document.remove(field)),
                    (Some(known), _) => change(known, over),
                    (None, _) => drop(document.insert(field.clone(), over.clone())),
                }
            }
        }
        (document, over) => *document = over.clone(),
    }
}

/// A DataPlane that only has to have a proxy.
fn good(name: &str) -> Value {
    manifest_of(name, &json!({ "deployment": containers(json!([proxy("kong:3.9")])) }))
}

fn containers(containers: Value) -> Value {
    json!({ "podTemplateSpec": { "spec": { "containers": containers } } })
}

/// The proxy with these variables.
fn variables(variables: Value) -> Value {
    let mut proxy = proxy("kong:3.9");
    proxy["env"] = variables;
    json!({ "deployment": containers(json!([proxy])) })
}

fn ingress(ingress: Value) -> Value {
    json!({ "network": { "services": { "ingress": ingress } } })
}

fn budget(spec: Value) -> Value {
    json!({ "resources": { "podDisruptionBudget": { "spec": spec } } })
}

fn extension(extension: Value) -> Value {
    json!({ "extensions": [extension] })
}

fn strategy(blue_green: Value) -> Value {
    json!({ "deployment": { "rollout": { "strategy": { "blueGreen": blue_green } } } })
}

const DRY: PostParams = PostParams { dry_run: true, field_manager: None };

/// Asks about every row, and names all that are not as expected.
async fn ask(rows: Vec<Row>, answer: impl AsyncFn(&Value) -> kube::Result<DynamicObject>) -> Result<()> {
    let mut wrong = Vec::new();
    for row in rows {
        if let Err(why) = judge(&row.says, answer(&row.change).await) {
            wrong.push(format!("{}: {why:#}", row.name));
        }
    }
    ensure!(wrong.is_empty(), "{} rows are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

fn judge(says: &Says, answer: kube::Result<DynamicObject>) -> Result<()> {
    match (says, answer) {
        (Says::Stores(places), Ok(object)) => {
            let found = serde_json::to_value(object)?;
            for (place, expected) in places {
                let found = found.pointer(place).unwrap_or(&Value::Null);
                ensure!(found == expected, "{place} is {found}, not {expected}");
            }
            Ok(())
        }
        (Says::Refuses(field, message), Err(kube::Error::Api(status))) => {
            let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
            let says = |found: &str| found == *message || found.ends_with(&format!(" {message}"));
            let named = causes.iter().any(|cause| cause.field == *field && says(&cause.message));
            ensure!(named, "refused, but not with {message:?} at {field:?}: {causes:#?}");
            Ok(())
        }
        (Says::Stores(_), Err(error)) => bail!("refused: {error}"),
        (Says::Refuses(..), Ok(_)) => bail!("taken"),
        (Says::Refuses(..), Err(error)) => Err(error).context("no answer"),
    }
}

/// Every row is one request that stores nothing.
async fn ask_to_create(kit: &Kit, rows: Vec<Row>) -> Result<()> {
    let api = wire(kit);
    ask(rows, async |spec| {
        let mut manifest = good("row");
        change(&mut manifest["spec"], spec);
        let manifest = serde_json::from_value(manifest).map_err(kube::Error::SerdeError)?;
        api.create(&DRY, &manifest).await
    })
    .await
}

const R1: (&str, &str) = ("spec.deployment", "Using both replicas and scaling fields is not allowed.");
const INGRESS: &str = "spec.network.services.ingress";
const R2: (&str, &str) = (INGRESS, "Cannot set NodePort when service type is not NodePort or LoadBalancer");
const R3: (&str, &str) = (INGRESS, "Cannot set ExternalTrafficPolicy for ClusterIP service.");
const R4: (&str, &str) = (
    "spec.resources.podDisruptionBudget.spec",
    "You can specify only one of maxUnavailable and minAvailable in a single PodDisruptionBudgetSpec.",
);
const R5: (&str, &str) = ("spec", "Extension not allowed for DataPlane");
const R6: (&str, &str) = ("<nil>", "DataPlane requires an image to be set on proxy container");
const R7: (&str, &str) = ("<nil>", "DataPlane supports only db mode 'off'");
const R8: (&str, &str) = ("<nil>", "DataPlane spec cannot be updated when promotion is in progress");

#[test]
fn rules_of_the_definition_refuse_with_kongs_messages() -> Result<()> {
    kit::run(async |kit| {
        let database = |value: &str| variables(variable("KONG_DATABASE", value));
        let sidecar = json!({ "name": "sidecar", "image": "kong:3.9" });
        let second = |name: &str| {
            let env = variable("KONG_DATABASE", "postgres");
            json!({ "name": name, "image": "kong:3.9", "env": env })
        };
        let rows = vec![
            taken("R1 replicas alone", json!({ "deployment": { "replicas": 3 } })),
            taken("R1 scaling alone", json!({ "deployment": { "scaling": { "horizontal": { "maxReplicas": 3 } } } })),
            taken("R1 neither", json!({})),
            refused(
                "R1 both",
                json!({ "deployment": { "replicas": 3, "scaling": { "horizontal": { "maxReplicas": 3 } } } }),
                R1.0,
                R1.1,
            ),
            refused("R1 an empty scaling", json!({ "deployment": { "replicas": 3, "scaling": {} } }), R1.0, R1.1),
            taken("R2 a load balancer", ingress(json!({ "ports": [{ "port": 80, "nodePort": 30080 }] }))),
            taken(
                "R2 a node port",
                ingress(json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] })),
            ),
            taken("R2 none asked for", ingress(json!({ "type": "ClusterIP", "ports": [{ "port": 80 }] }))),
            refused(
                "R2 inside the cluster",
                ingress(json!({ "type": "ClusterIP", "ports": [{ "port": 443 }, { "port": 80, "nodePort": 30080 }] })),
                R2.0,
                R2.1,
            ),
            taken("R3 a load balancer", ingress(json!({ "externalTrafficPolicy": "Local" }))),
            taken("R3 a node port", ingress(json!({ "type": "NodePort", "externalTrafficPolicy": "Cluster" }))),
            taken("R3 none asked for", ingress(json!({ "type": "ClusterIP" }))),
            refused(
                "R3 inside the cluster",
                ingress(json!({ "type": "ClusterIP", "externalTrafficPolicy": "Cluster" })),
                R3.0,
                R3.1,
            ),
            taken("R4 at least", budget(json!({ "minAvailable": 1 }))),
            taken(
                "R4 at most",
                budget(json!({ "maxUnavailable": "25%", "unhealthyPodEvictionPolicy": "AlwaysAllow" })),
            ),
            refused("R4 both", budget(json!({ "minAvailable": 1, "maxUnavailable": 1 })), R4.0, R4.1),
            refused("R4 neither", budget(json!({})), R4.0, R4.1),
            taken("R4 no spec", json!({ "resources": { "podDisruptionBudget": {} } })),
            taken("R5 none", json!({ "extensions": [] })),
            taken(
                "R5 of Konnect",
                extension(json!({ "group": "konnect.konghq.com", "kind": "KonnectExtension", "name": "x" })),
            ),
            taken("R5 of the default group", extension(json!({ "kind": "KonnectExtension", "name": "x" }))),
            refused("R5 of another kind", extension(json!({ "kind": "Other", "name": "x" })), R5.0, R5.1),
            refused(
                "R5 of another group",
                extension(json!({ "group": "example.com", "kind": "KonnectExtension", "name": "x" })),
                R5.0,
                R5.1,
            ),
            taken("R6 an image", json!({})),
            taken(
                "R6 a proxy that is not the first",
                json!({ "deployment": containers(json!([sidecar, proxy("kong:3.9")])) }),
            ),
            refused("R6 no image", json!({ "deployment": containers(json!([{ "name": "proxy" }])) }), R6.0, R6.1),
            refused("R6 no proxy", json!({ "deployment": containers(json!([sidecar])) }), R6.0, R6.1),
            refused("R6 no container", json!({ "deployment": containers(json!([])) }), R6.0, R6.1),
            refused("R6 no Pod", json!({ "deployment": { "podTemplateSpec": { "spec": null } } }), R6.0, R6.1),
            refused("R6 no template", json!({ "deployment": { "podTemplateSpec": null } }), R6.0, R6.1),
            refused("R6 no deployment", json!({ "deployment": null }), R6.0, R6.1),
            taken("R7 off", database("off")),
            taken("R7 empty", database("")),
            taken("R7 not said", variables(json!([{ "name": "KONG_LOG_LEVEL", "value": "debug" }]))),
            refused("R7 a database", database("postgres"), R7.0, R7.1),
            refused(
                "R7 a database among others",
                variables(json!([{ "name": "A", "value": "1" }, { "name": "KONG_DATABASE", "value": "postgres" }])),
                R7.0,
                R7.1,
            ),
            taken(
                "R7 of a container that is not the first",
                json!({ "deployment": containers(json!([sidecar, second("proxy")])) }),
            ),
            taken(
                "R7 of a container that is not the proxy",
                json!({ "deployment": containers(json!([second("sidecar"), proxy("kong:3.9")])) }),
            ),
            refused(
                "R7 a value from elsewhere, which the rule cannot read",
                variables(json!([{
                    "name": "KONG_DATABASE", "valueFrom": { "configMapKeyRef": { "name": "x", "key": "x" } },
                }])),
                R7.0,
                "no such key: value evaluating rule: DataPlane supports only db mode 'off'",
            ),
        ];
        ask_to_create(kit, rows).await
    })
}

#[test]
fn a_promotion_in_progress_freezes_the_spec_and_nothing_else() -> Result<()> {
    kit::run(async |kit| {
        let api = wire(kit);
        api.create(&PostParams::default(), &serde_json::from_value(good("frozen"))?).await?;
        let dry = PatchParams { dry_run: true, ..PatchParams::default() };
        let image = json!({ "spec": { "deployment": containers(json!([proxy("kong:3.10")])) } });
        let annotation = json!({ "metadata": { "annotations": { PROMOTE_WHEN_READY: "true" } } });
        let edit = async |body: &Value| api.patch("frozen", &dry, &Patch::Merge(body)).await;
        let says = async |type_: &str, reason: &str| {
            let mut condition = condition(type_, "False");
            condition["reason"] = reason.into();
            let body = json!({ "status": { "rollout": { "conditions": [condition] } } });
            api.patch_status("frozen", &PatchParams::default(), &Patch::Merge(body)).await
        };

        ask(vec![taken("R8 no status", image.clone())], edit).await?;
        for reason in ["WaitingForChange", "Progressing", "AwaitingPromotion", "PromotionDone", "PromotionFailed"] {
            says("RolledOut", reason).await?;
            ask(vec![taken("R8 another reason", image.clone())], edit).await.context(reason)?;
        }
        says("Other", "PromotionInProgress").await?;
        ask(vec![taken("R8 of another condition", image.clone())], edit).await?;

        says("RolledOut", "PromotionInProgress").await?;
        let replicas = json!({ "spec": { "deployment": { "replicas": 2 } } });
        let same = json!({ "spec": { "deployment": containers(json!([proxy("kong:3.9")])) } });
        let rows = vec![
            refused("R8 another image", image, R8.0, R8.1),
            refused("R8 other replicas", replicas, R8.0, R8.1),
            taken("R8 the same spec", same),
            taken("R8 an annotation", annotation),
            taken("R8 a label", json!({ "metadata": { "labels": { "team": "edge" } } })),
        ];
        ask(rows, edit).await
    })
}

#[test]
fn values_outside_of_an_enumeration_a_limit_or_the_schema_are_refused() -> Result<()> {
    kit::run(async |kit| {
        const PROMOTION: &str = "spec.deployment.rollout.strategy.blueGreen.promotion";
        const PLAN: &str = "spec.deployment.rollout.strategy.blueGreen.resources.plan.deployment";
        const CONTAINERS: &str = "spec.deployment.podTemplateSpec.spec.containers";
        let ports = |count: usize| json!((0..count).map(|port| json!({ "port": port + 80 })).collect::<Vec<_>>());
        let konnect = json!({ "kind": "KonnectExtension", "name": "x" });
        let long = "x".repeat(254);
        let twice = json!([{ "name": "A", "value": "1" }, { "name": "A", "value": "2" }]);
        let rows = vec![
            refused(
                "enum AutomaticPromotion",
                strategy(json!({ "promotion": { "strategy": "AutomaticPromotion" } })),
                "spec.deployment.rollout.strategy.blueGreen.promotion.strategy",
                "Unsupported value: \"AutomaticPromotion\": supported values: \"BreakBeforePromotion\"",
            ),
            refused(
                "enum DeleteOnPromotionRecreateOnRollout",
                strategy(json!({
                    "promotion": {}, "resources": { "plan": { "deployment": "DeleteOnPromotionRecreateOnRollout" } },
                })),
                PLAN,
                "Unsupported value: \"DeleteOnPromotionRecreateOnRollout\": supported values: \
                 \"ScaleDownOnPromotionScaleUpOnRollout\"",
            ),
            taken(
                "enum the plan",
                strategy(json!({
                    "promotion": {}, "resources": { "plan": { "deployment": "ScaleDownOnPromotionScaleUpOnRollout" } },
                })),
            ),
            refused(
                "enum type",
                ingress(json!({ "type": "ExternalName" })),
                "spec.network.services.ingress.type",
                "Unsupported value: \"ExternalName\": supported values: \"LoadBalancer\", \"NodePort\", \"ClusterIP\"",
            ),
            refused(
                "enum externalTrafficPolicy",
                ingress(json!({ "externalTrafficPolicy": "Nearest" })),
                "spec.network.services.ingress.externalTrafficPolicy",
                "Unsupported value: \"Nearest\": supported values: \"Cluster\", \"Local\"",
            ),
            refused("required promotion", strategy(json!({})), PROMOTION, "Required value"),
            refused(
                "required strategy",
                json!({ "deployment": { "rollout": {} } }),
                "spec.deployment.rollout.strategy",
                "Required value",
            ),
            taken("required nothing of a strategy", json!({ "deployment": { "rollout": { "strategy": {} } } })),
            refused(
                "required maxReplicas",
                json!({ "deployment": { "scaling": { "horizontal": { "minReplicas": 1 } } } }),
                "spec.deployment.scaling.horizontal.maxReplicas",
                "Required value",
            ),
            refused(
                "required port",
                ingress(json!({ "ports": [{ "name": "http" }] })),
                "spec.network.services.ingress.ports[0].port",
                "Required value",
            ),
            refused(
                "required issuer",
                json!({ "network": { "konnectCertificate": {} } }),
                "spec.network.konnectCertificate.issuer",
                "Required value",
            ),
            refused(
                "required name of a plugin",
                json!({ "pluginsToInstall": [{ "namespace": "x" }] }),
                "spec.pluginsToInstall[0].name",
                "Required value",
            ),
            refused(
                "required containers",
                json!({ "deployment": { "podTemplateSpec": { "spec": { "containers": null } } } }),
                CONTAINERS,
                "Required value",
            ),
            taken("limit four ports", ingress(json!({ "ports": ports(4) }))),
            refused(
                "limit five ports",
                ingress(json!({ "ports": ports(5) })),
                "spec.network.services.ingress.ports",
                "Too many: 5: must have at most 4 items",
            ),
            refused(
                "limit two extensions",
                json!({ "extensions": [konnect, konnect] }),
                "spec.extensions",
                "Too many: 2: must have at most 1 item",
            ),
            refused(
                "limit an empty name of an extension",
                extension(json!({ "kind": "KonnectExtension", "name": "" })),
                "spec.extensions[0].name",
                "in body should be at least 1 chars long",
            ),
            refused(
                "limit a long name of an extension",
                extension(json!({ "kind": "KonnectExtension", "name": long })),
                "spec.extensions[0].name",
                "Too long: may not be more than 253 bytes",
            ),
            refused(
                "type of replicas",
                json!({ "deployment": { "replicas": "two" } }),
                "spec.deployment.replicas",
                "in body must be of type integer: \"string\"",
            ),
            refused(
                "map a variable twice",
                variables(twice),
                "spec.deployment.podTemplateSpec.spec.containers[0].env[1]",
                "Duplicate value: {\"name\":\"A\"}",
            ),
            refused(
                "map a container twice",
                json!({ "deployment": containers(json!([proxy("kong:3.9"), proxy("kong:3.9")])) }),
                "spec.deployment.podTemplateSpec.spec.containers[1]",
                "Duplicate value: {\"name\":\"proxy\"}",
            ),
        ];
        ask_to_create(kit, rows).await
    })
}

#[test]
fn what_a_manifest_leaves_out_is_filled_in_and_what_nobody_knows_is_dropped() -> Result<()> {
    kit::run(async |kit| {
        const BLUE_GREEN: &str = "/spec/deployment/rollout/strategy/blueGreen";
        let plan = json!({ "deployment": "ScaleDownOnPromotionScaleUpOnRollout" });
        let whole = json!({
            "promotion": { "strategy": "BreakBeforePromotion" }, "resources": { "plan": plan },
        });
        let mut ported = proxy("kong:3.9");
        ported["ports"] = json!([{ "containerPort": 9000 }]);
        ported["readinessProbe"] = json!({ "grpc": { "port": 9000 } });
        let mut template = containers(json!([proxy("kong:3.9")]));
        let metadata = json!({
            "name": "x", "labels": { "a": "b" }, "annotations": { "a": "b" }, "finalizers": ["example.com/x"],
        });
        template["podTemplateSpec"]["metadata"] = metadata.clone();
        template["podTemplateSpec"]["metadata"]["generateName"] = "x-".into();
        let reference = json!([{ "name": "A", "valueFrom": { "secretKeyRef": { "key": "a" } } }]);
        let rows = vec![
            stored(
                "default nothing",
                json!({}),
                [("/spec", good("row")["spec"].clone()), ("/spec/network", Value::Null)],
            ),
            stored("default of a promotion", strategy(json!({ "promotion": {} })), [(BLUE_GREEN, whole.clone())]),
            stored(
                "default of resources",
                strategy(json!({ "promotion": {}, "resources": {} })),
                [(BLUE_GREEN, whole.clone())],
            ),
            stored(
                "default of a plan",
                strategy(json!({ "promotion": {}, "resources": { "plan": {} } })),
                [(BLUE_GREEN, whole)],
            ),
            stored(
                "default of an ingress",
                ingress(json!({})),
                [("/spec/network/services/ingress", json!({ "type": "LoadBalancer" }))],
            ),
            stored(
                "default of services",
                json!({ "network": { "services": {} } }),
                [("/spec/network", json!({ "services": {} }))],
            ),
            stored(
                "default of a port",
                ingress(json!({ "ports": [{ "port": 80 }] })),
                [("/spec/network/services/ingress/ports", json!([{ "port": 80 }]))],
            ),
            stored(
                "default of an extension",
                extension(json!({ "kind": "KonnectExtension", "name": "x" })),
                [("/spec/extensions/0/group", json!("gateway-operator.konghq.com"))],
            ),
            stored(
                "default of a Pod",
                json!({ "deployment": containers(json!([ported])) }),
                [
                    (
                        "/spec/deployment/podTemplateSpec/spec/containers/0/ports/0",
                        json!({ "containerPort": 9000, "protocol": "TCP" }),
                    ),
                    (
                        "/spec/deployment/podTemplateSpec/spec/containers/0/readinessProbe",
                        json!({ "grpc": { "port": 9000, "service": "" } }),
                    ),
                ],
            ),
            stored(
                "default of a reference",
                variables(reference),
                [(
                    "/spec/deployment/podTemplateSpec/spec/containers/0/env/0/valueFrom/secretKeyRef",
                    json!({ "key": "a", "name": "" }),
                )],
            ),
            stored(
                "dropped metadata of a Pod",
                json!({ "deployment": template }),
                [("/spec/deployment/podTemplateSpec/metadata", metadata)],
            ),
            stored(
                "dropped an unknown field",
                json!({ "deployment": { "gateway": "kong" } }),
                [("/spec/deployment/gateway", Value::Null)],
            ),
            stored(
                "dropped a null",
                json!({ "deployment": { "replicas": null } }),
                [("/spec/deployment/replicas", Value::Null)],
            ),
        ];
        ask_to_create(kit, rows).await
    })
}

fn condition(type_: &str, status: &str) -> Value {
    json!({
        "type": type_, "status": status, "reason": "Reason", "message": "", "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

#[test]
fn a_status_is_checked_and_its_counts_are_always_there() -> Result<()> {
    kit::run(async |kit| {
        let api = wire(kit);
        api.create(&PostParams::default(), &serde_json::from_value(good("status"))?).await?;
        let dry = PatchParams { dry_run: true, ..PatchParams::default() };
        let with = |field: &str, value: Value| {
            let mut condition = condition("Ready", "True");
            condition[field] = value;
            json!({ "conditions": [condition] })
        };
        let many = |count: usize| {
            let conditions: Vec<_> = (0..count).map(|n| condition(&format!("Type{n}"), "True")).collect();
            json!({ "conditions": conditions })
        };
        let address = |address: Value| json!({ "addresses": [address] });
        let previews = |count: usize| {
            let addresses = vec![json!({ "value": "10.0.0.1", "sourceType": "PrivateIP" }); count];
            json!({ "rollout": { "services": { "ingress": { "name": "x", "addresses": addresses } } } })
        };
        let rows = vec![
            stored(
                "status the counts",
                json!({ "service": "x" }),
                [("/status", json!({ "service": "x", "readyReplicas": 0, "replicas": 0 }))],
            ),
            stored(
                "status no counts",
                json!({ "readyReplicas": null, "replicas": null }),
                [("/status", json!({ "readyReplicas": 0, "replicas": 0 }))],
            ),
            refused(
                "status a count that is none",
                json!({ "replicas": "1" }),
                "status.replicas",
                "in body must be of type integer: \"string\"",
            ),
            taken("status a selector", json!({ "selector": "12345678" })),
            refused(
                "status a short selector",
                json!({ "selector": "1234567" }),
                "status.selector",
                "in body should be at least 8 chars long",
            ),
            refused(
                "status an empty selector",
                json!({ "selector": "" }),
                "status.selector",
                "in body should be at least 8 chars long",
            ),
            refused(
                "status a long selector",
                json!({ "selector": "x".repeat(513) }),
                "status.selector",
                "Too long: may not be more than 512 bytes",
            ),
            refused(
                "status a short selector of the preview",
                json!({ "rollout": { "deployment": { "selector": "1234567" } } }),
                "status.rollout.deployment.selector",
                "in body should be at least 8 chars long",
            ),
            taken("status an empty preview", json!({ "rollout": { "deployment": {} } })),
            taken("status eight conditions", many(8)),
            refused("status nine conditions", many(9), "status.conditions", "Too many: 9: must have at most 8 items"),
            refused(
                "status no condition",
                json!({ "conditions": [] }),
                "status.conditions",
                "in body should have at least 1 items",
            ),
            refused(
                "status an empty reason",
                with("reason", json!("")),
                "status.conditions[0].reason",
                "in body should be at least 1 chars long",
            ),
            refused(
                "status a reason of words",
                with("reason", json!("not yet")),
                "status.conditions[0].reason",
                "in body should match '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'",
            ),
            refused(
                "status of another truth",
                with("status", json!("Maybe")),
                "status.conditions[0].status",
                "Unsupported value: \"Maybe\": supported values: \"True\", \"False\", \"Unknown\"",
            ),
            refused(
                "status of a negative generation",
                with("observedGeneration", json!(-1)),
                "status.conditions[0].observedGeneration",
                "in body should be greater than or equal to 0",
            ),
            refused(
                "status a condition twice",
                json!({ "conditions": [condition("Ready", "True"), condition("Ready", "False")] }),
                "status.conditions[1]",
                "Duplicate value: {\"type\":\"Ready\"}",
            ),
            stored(
                "status the type of an address",
                address(json!({ "value": "10.0.0.1", "sourceType": "PrivateIP" })),
                [("/status/addresses/0/type", json!("IPAddress"))],
            ),
            refused(
                "status an address from nowhere",
                address(json!({ "value": "10.0.0.1" })),
                "status.addresses[0].sourceType",
                "Required value",
            ),
            refused(
                "status an address of another source",
                address(json!({ "value": "10.0.0.1", "sourceType": "Moon" })),
                "status.addresses[0].sourceType",
                "in body should match \
                 '^PublicLoadBalancer|PrivateLoadBalancer|PublicIP|PrivateIP$'",
            ),
            refused(
                "status an empty address",
                address(json!({ "value": "", "sourceType": "PrivateIP" })),
                "status.addresses[0].value",
                "in body should be at least 1 chars long",
            ),
            taken("status sixteen addresses of the preview", previews(16)),
            refused(
                "status seventeen addresses of the preview",
                previews(17),
                "status.rollout.services.ingress.addresses",
                "Too many: 17: must have at most 16 items",
            ),
        ];
        ask(rows, async |status| api.patch_status("status", &dry, &Patch::Merge(json!({ "status": status }))).await)
            .await
    })
}

#[test]
fn lists_of_two_managers_are_merged_by_their_keys() -> Result<()> {
    kit::run(async |kit| {
        let api = wire(kit);
        let apply = async |manager: &str, body: Value| {
            let mut manifest = json!({
                "apiVersion": "gateway-operator.konghq.com/v1beta1", "kind": "DataPlane",
                "metadata": { "name": "shared" },
            });
            change(&mut manifest, &body);
            api.patch("shared", &PatchParams::apply(manager), &Patch::Apply(manifest)).await
        };
        let container = |name: &str, variable: &str| {
            let port = if name == "proxy" { 9000 } else { 9001 };
            json!({
                "name": name, "image": "kong:3.9", "env": [{ "name": variable, "value": "x" }],
                "ports": [{ "containerPort": port }],
                "volumeMounts": [{ "name": variable, "mountPath": format!("/{variable}") }],
            })
        };
        let ours = || json!([container("proxy", "ours")]);
        apply("one", json!({ "spec": { "deployment": containers(ours()) } })).await?;
        let theirs = json!([container("proxy", "theirs"), container("mesh", "theirs")]);
        let merged = apply("two", json!({ "spec": { "deployment": containers(theirs) } })).await?;
        let found = &merged.data["spec"]["deployment"]["podTemplateSpec"]["spec"]["containers"];
        let names = |list: &Value, key: &str| {
            let entries = list.as_array().into_iter().flatten();
            entries.map(|entry| entry[key].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(found, "name"), ["proxy", "mesh"], "{found}");
        assert_eq!(names(&found[0]["env"], "name"), ["ours", "theirs"], "{found}");
        assert_eq!(names(&found[0]["volumeMounts"], "mountPath"), ["/ours", "/theirs"], "{found}");

        // What one of them no longer names goes, and only that.
        let fewer = apply(
            "two",
            json!({ "spec": { "deployment": containers(json!([{ "name": "mesh", "image": "kong:3.9" }])) } }),
        );
        let fewer = fewer.await?;
        let found = &fewer.data["spec"]["deployment"]["podTemplateSpec"]["spec"]["containers"];
        assert_eq!(names(found, "name"), ["proxy", "mesh"], "{found}");
        assert_eq!(names(&found[0]["env"], "name"), ["ours"], "{found}");
        let conflict =
            apply("three", json!({ "spec": { "deployment": containers(json!([proxy("kong:3.10")])) } })).await;
        assert!(matches!(&conflict, Err(kube::Error::Api(status)) if status.code == 409), "{conflict:?}");

        let report = async |manager: &str, conditions: Value| {
            let body = json!({
                "apiVersion": "gateway-operator.konghq.com/v1beta1", "kind": "DataPlane",
                "metadata": { "name": "shared" },
                "status": { "conditions": conditions, "rollout": { "conditions": conditions } },
            });
            api.patch_status("shared", &PatchParams::apply(manager), &Patch::Apply(body)).await
        };
        report("one", json!([condition("Ready", "True")])).await?;
        let both = report("two", json!([condition("Programmed", "True"), condition("Seen", "True")])).await?;
        let fewer = report("two", json!([condition("Seen", "False")])).await?;
        for place in ["/status/conditions", "/status/rollout/conditions"] {
            let types = |object: &DynamicObject| names(object.data.pointer(place).unwrap_or(&Value::Null), "type");
            assert_eq!(types(&both), ["Ready", "Programmed", "Seen"], "{place}");
            assert_eq!(types(&fewer), ["Ready", "Seen"], "{place}");
        }
        Ok(())
    })
}

#[test]
fn kubectl_finds_prints_and_scales_it_by_kongs_names() -> Result<()> {
    kit::run(async |kit| {
        let api = wire(kit);
        api.create(&PostParams::default(), &serde_json::from_value(good("printed"))?).await?;
        let selector = "9f6d6a4e-0000-4000-8000-000000000000";
        let status = json!({ "status": {
            "conditions": [condition("Ready", "True")], "selector": selector, "replicas": 2, "readyReplicas": 1,
        }});
        api.patch_status("printed", &PatchParams::default(), &Patch::Merge(status)).await?;

        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for name in ["kodp", "dataplane", "dataplanes", "dataplanes.v1beta1.gateway-operator.konghq.com"] {
            let printed = kit.kubectl(&["get", name])?;
            let lines: Vec<_> = printed.lines().map(words).collect();
            assert_eq!(lines[0], ["NAME", "AGE", "READY"], "{printed}");
            assert_eq!((lines[1][0].as_str(), lines[1][2].as_str()), ("printed", "True"), "{printed}");
        }
        let category = kit.kubectl(&["get", "kong", "--output=name"])?;
        assert_eq!(category.trim(), "dataplane.gateway-operator.konghq.com/printed");

        kit.kubectl(&["scale", "dataplane/printed", "--replicas=3"])?;
        let scaled = api.get("printed").await?;
        assert_eq!(scaled.data["spec"]["deployment"]["replicas"], 3);
        assert_eq!(scaled.metadata.generation, Some(2));
        let scale = api.get_scale("printed").await?;
        let status = scale.status.unwrap_or_default();
        assert_eq!((status.replicas, status.selector.as_deref()), (2, Some(selector)));
        assert_eq!(scale.spec.and_then(|spec| spec.replicas), Some(3));
        Ok(())
    })
}

const POLICY: &str = "ports.dataplane.gateway-operator.konghq.com";
const BINDING: &str = "binding-ports.dataplane.gateway-operator.konghq.com";

/// Ingress ports that lead to these targets, and a proxy with these variables.
fn ported(targets: &[Value], variables: Value) -> Value {
    let mut proxy = proxy("kong:3.9");
    proxy["env"] = variables;
    let ports: Vec<_> =
        targets.iter().zip(80..).map(|(target, port)| json!({ "port": port, "targetPort": target })).collect();
    json!({
        "deployment": containers(json!([{ "name": "first", "image": "kong:3.9" }, proxy])),
        "network": { "services": { "ingress": { "ports": ports } } },
    })
}

fn variable(name: &str, value: &str) -> Value {
    json!([{ "name": name, "value": value }])
}

/// Waits until the policy is or is not enforced: the apiserver takes a moment to read it.
async fn await_enforced(kit: &Kit, enforced: bool) -> Result<()> {
    let mut manifest = good("probe");
    change(&mut manifest["spec"], &ported(&[json!(9000)], variable("KONG_PORT_MAPS", "80:8000")));
    let manifest = serde_json::from_value(manifest)?;
    let api = wire(kit);
    let asked = async { while api.create(&DRY, &manifest).await.is_err() != enforced {} };
    tokio::time::timeout(PATIENCE, asked).await.with_context(|| format!("the policy was never enforced={enforced}"))
}

#[test]
fn the_admission_policy_refuses_ports_that_lead_nowhere_with_kongs_messages() -> Result<()> {
    kit::run(async |kit| {
        const MAPS: &str =
            "Each port from spec.network.services.ingress.ports has to have an accompanying port in KONG_PORT_MAPS env";
        const LISTEN: &str = "Each port from spec.network.services.ingress.ports has to have an accompanying port in \
                              KONG_PROXY_LISTEN env";
        let maps = |targets: &[Value], value: &str| ported(targets, variable("KONG_PORT_MAPS", value));
        let listen = |targets: &[Value], value: &str| ported(targets, variable("KONG_PROXY_LISTEN", value));
        let deny = |name, change, message| refused(name, change, "", message);
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/admission.yaml");

        // A DataPlane from before the policy. Manifests of other tests are all right with it and without it.
        let bindings: Api<ValidatingAdmissionPolicyBinding> = kit.cluster_api();
        bindings.delete(BINDING, &DeleteParams::default()).await.ok();
        await_enforced(kit, false).await?;
        let mut manifest = good("older");
        change(&mut manifest["spec"], &maps(&[json!(9000)], "80:8000"));
        let older = wire(kit).create(&PostParams::default(), &serde_json::from_value(manifest)?).await?;
        kit.kubectl(&["apply", "--filename", file])?;
        await_enforced(kit, true).await?;
        let bound = bindings.get(BINDING).await?.spec;
        assert_eq!(bound.policy_name, POLICY);
        assert_eq!(bound.validation_actions, ["Deny"]);

        let numbers = |numbers: &[i32]| numbers.iter().map(|number| json!(number)).collect::<Vec<_>>();
        let (eight, both) = (numbers(&[8000]), numbers(&[8000, 8443]));
        let rows = vec![
            taken("ports and no variable", ported(&numbers(&[9000]), json!([]))),
            taken("maps, one port", maps(&eight, "80:8000")),
            taken("maps, both ports", maps(&both, "80:8000, 443:8443")),
            taken("maps, in another order and without a space", maps(&both, "443:8443,80:8000")),
            taken("maps, as text", maps(&[json!("8000")], "80:8000")),
            taken(
                "maps, no target is 8000",
                json!({
                    "deployment": { "podTemplateSpec": { "spec": { "containers": [
                        { "name": "proxy", "image": "kong:3.9", "env": variable("KONG_PORT_MAPS", "80:8000") },
                    ]}}},
                    "network": { "services": { "ingress": { "ports": [{ "port": 80 }] } } },
                }),
            ),
            taken("maps, and no ports", variables(variable("KONG_PORT_MAPS", "80:9000"))),
            taken(
                "maps from elsewhere are not read",
                ported(
                    &numbers(&[9000]),
                    json!([{
                        "name": "KONG_PORT_MAPS", "valueFrom": { "configMapKeyRef": { "name": "x", "key": "x" } },
                    }]),
                ),
            ),
            deny("maps, another port", maps(&numbers(&[9000]), "80:8000"), MAPS),
            deny("maps, one of two ports", maps(&both, "80:8000"), MAPS),
            deny("maps, the outer port", maps(&numbers(&[80]), "80:8000"), MAPS),
            deny("maps, a longer number", maps(&eight, "80:18000"), MAPS),
            deny("maps, a name", maps(&[json!("proxy")], "80:8000"), MAPS),
            taken("listen, one port", listen(&eight, "0.0.0.0:8000")),
            taken(
                "listen, Kong's default",
                listen(&both, "0.0.0.0:8000 reuseport backlog=16384, 0.0.0.0:8443 http2 ssl"),
            ),
            taken("listen, IPv6", listen(&both, "[::]:8000, [::]:8443 ssl")),
            deny("listen, another port", listen(&numbers(&[9000]), "0.0.0.0:8000, 0.0.0.0:8443 ssl"), LISTEN),
            deny("listen, off", listen(&eight, "off"), LISTEN),
            deny(
                "listen, a number in a word behind",
                listen(&numbers(&[9000]), "0.0.0.0:8000 so_keepalive=30m:9000"),
                LISTEN,
            ),
            deny(
                "both variables, the second is wrong",
                ported(
                    &eight,
                    json!([
                        { "name": "KONG_PORT_MAPS", "value": "80:8000" },
                        { "name": "KONG_PROXY_LISTEN", "value": "0.0.0.0:9000" },
                    ]),
                ),
                LISTEN,
            ),
            taken(
                "variables of another container are not read",
                json!({
                    "deployment": containers(json!([
                        proxy("kong:3.9"),
                        { "name": "other", "image": "kong:3.9", "env": variable("KONG_PORT_MAPS", "80:8000") },
                    ])),
                    "network": { "services": { "ingress": { "ports": [{ "port": 80, "targetPort": 9000 }] } } },
                }),
            ),
        ];
        ask_to_create(kit, rows).await?;

        let edit = async |body: &Value| {
            let dry = PatchParams { dry_run: true, ..PatchParams::default() };
            wire(kit).patch(&older.name_any(), &dry, &Patch::Merge(body)).await
        };
        let rows = vec![
            taken("older, an annotation", json!({ "metadata": { "annotations": { PROMOTE_WHEN_READY: "true" } } })),
            deny("older, an edit", json!({ "spec": { "deployment": { "replicas": 2 } } }), MAPS),
            taken(
                "older, an edit that repairs it",
                json!({ "spec": ingress(json!({ "ports": [{ "port": 80, "targetPort": 8000 }] })) }),
            ),
        ];
        ask(rows, edit).await
    })
}

#[test]
fn a_plugin_has_one_source_and_a_signature_needs_an_image() -> Result<()> {
    kit::run(async |kit| {
        let map = json!({ "configMap": { "name": "gates", "key": "gate.wasm" } });
        let oci = json!({ "oci": { "image": "registry.example/gate:1" } });
        let http = |url: &str| json!({ "http": { "url": url, "sha256": "0".repeat(64) } });
        let file = json!({ "file": { "path": "gate.wasm" } });
        let verify = json!({ "keys": ["-----BEGIN PUBLIC KEY-----"] });
        const ONE: &str = "name exactly one of configMap, http, oci";
        const CLUSTER_ONE: &str = "name exactly one of configMap, file, http, oci";
        const SIGNED: &str = "verify needs source.oci: signatures are found beside an image";
        let both = |one: &Value, other: &Value| {
            let mut both = one.clone();
            change(&mut both, other);
            json!({ "source": both })
        };
        let rows = || {
            vec![
                taken("a ConfigMap", json!({ "source": map })),
                taken("an image, signed", json!({ "source": oci, "verify": verify })),
                taken("a URL", json!({ "source": http("https://plugins.example/gate.wasm") })),
                refused(
                    "a URL without TLS",
                    json!({ "source": http("http://p.example") }),
                    "spec.source.http.url",
                    "'^https://'",
                ),
                refused(
                    "a URL, signed",
                    json!({ "source": http("https://p.example"), "verify": verify }),
                    "spec",
                    SIGNED,
                ),
                refused(
                    "nobody who signs",
                    json!({ "source": oci, "verify": { "keys": [] } }),
                    "spec.verify.keys",
                    "should have at least 1 items",
                ),
                refused("nobody", json!({ "source": oci, "verify": {} }), "spec.verify", "name a key or an identity"),
                refused(
                    "a digest of nothing",
                    json!({ "source": map, "digest": "sha256:0" }),
                    "spec.digest",
                    "'^sha256:[0-9a-f]{64}$'",
                ),
            ]
        };
        let mut plugins = rows();
        plugins.push(refused("no source", json!({ "source": {} }), "spec.source", ONE));
        plugins.push(refused("two sources", both(&map, &oci), "spec.source", ONE));
        plugins.push(refused("a file", json!({ "source": file }), "spec.source", ONE));
        let mut of_cluster = rows();
        of_cluster.push(taken("a file", json!({ "source": file })));
        of_cluster.push(refused("two sources", both(&file, &oci), "spec.source", CLUSTER_ONE));

        for (kind, plural, rows) in
            [("GatePlugin", "gateplugins", plugins), ("ClusterGatePlugin", "clustergateplugins", of_cluster)]
        {
            let resource =
                ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("sluice.dev", "v1alpha1", kind), plural);
            let api: Api<DynamicObject> = match kind {
                "GatePlugin" => Api::namespaced_with(kit.client.clone(), &kit.namespace, &resource),
                _ => Api::all_with(kit.client.clone(), &resource),
            };
            ask(rows, async |spec| {
                let manifest = json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": kind, "metadata": { "name": "row" }, "spec": spec });
                api.create(&DRY, &serde_json::from_value(manifest).map_err(kube::Error::SerdeError)?).await
            })
            .await?;
        }
        Ok(())
    })
}

#[test]
fn a_policy_of_the_cluster_names_plugins_of_the_cluster() -> Result<()> {
    kit::run(async |kit| {
        const KIND: &str =
            "pluginRef.kind has to be ClusterGatePlugin: a plugin of a namespace is whatever that namespace makes it";
        let spec = |kind: &str| {
            let gate = json!({ "name": "smoke", "pluginRef": { "kind": kind, "name": "smoke" } });
            json!({ "namespaceSelector": {}, "selector": {}, "gates": [gate] })
        };
        let rows = vec![
            stored(
                "no gates",
                json!({ "namespaceSelector": {}, "selector": {} }),
                [("/spec/scaleDownDelaySeconds", json!(30)), ("/spec/progressDeadlineSeconds", json!(600))],
            ),
            stored("a gate", spec("ClusterGatePlugin"), [("/spec/gates/0/timeout", json!("30s"))]),
            refused("a gate of a namespace", spec("GatePlugin"), "spec", KIND),
            refused("namespaces nobody chose", json!({ "selector": {} }), "spec.namespaceSelector", "Required value"),
        ];
        let gvk = GroupVersionKind::gvk("sluice.dev", "v1alpha1", "ClusterPromotionPolicy");
        let resource = ApiResource::from_gvk_with_plural(&gvk, "clusterpromotionpolicies");
        let api: Api<DynamicObject> = Api::all_with(kit.client.clone(), &resource);
        ask(rows, async |spec| {
            let manifest = json!({
                "apiVersion": "sluice.dev/v1alpha1", "kind": "ClusterPromotionPolicy",
                "metadata": { "name": "row" }, "spec": spec,
            });
            api.create(&DRY, &serde_json::from_value(manifest).map_err(kube::Error::SerdeError)?).await
        })
        .await
    })
}

#[test]
fn every_example_is_taken_as_it_is() -> Result<()> {
    kit::run(async |kit| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/examples");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path().display().to_string();
            // Strict, as kubectl is by default: a field that nobody knows is a mistake.
            let taken = kit.kubectl(&["apply", "--server-side", "--dry-run=server", "--filename", &path])?;
            names.extend(taken.lines().map(str::to_owned));
        }
        assert!(names.len() > 6, "{names:?}");
        Ok(())
    })
}
