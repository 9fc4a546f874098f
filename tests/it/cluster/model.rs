//! The real apiserver answers as the one of the model test does: what was asked there on 200 ways is asked here.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use axum::http::{Method, Request};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    core::v1::{Secret, Service},
};
use kube::{Client, client::Body};
use serde::Deserialize;
use serde_json::{Value, json};
use sluice::{
    api::{DataPlane, Promotion, PromotionPolicy},
    model::{differ, names},
};
use sluice_harness::{
    cluster::ADMIN,
    command::run,
    install::Build,
    kit::{self, Kit},
    verify, workspace,
};

/// Ways that are gone at the same time.
const LANES: usize = 4;

/// A request, and what the apiserver in memory made of it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    /// The operator asks, and not somebody else.
    #[serde(default)]
    operator: bool,
    /// Before and after the namespace.
    collection: [String; 2],
    kind: String,
    api_version: String,
    name: String,
    verb: String,
    body: Value,
    /// Which version it names: any, absent, current or other.
    version: String,
    code: u16,
    /// The object as it is then.
    object: Option<Value>,
}

#[test]
fn the_real_apiserver_answers_as_that_of_the_model() -> Result<()> {
    // Written by the model test, which is the only one who knows how.
    let name = "what_the_real_apiserver_is_asked_is_everything_that_the_model_asks";
    run(verify::unit_command(Build::Optimised).args(["--", name]))?;
    let text = fs::read_to_string(workspace::reports().join("model-traces.json"))?;
    let traces: Vec<Vec<Asked>> = serde_json::from_str(&text)?;
    ensure!(traces.len() >= 200, "only {} ways", traces.len());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(|| lane(&traces, &next))).collect();
        let ended = lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.collect()
    })
}

/// One way after the other, each from nothing on.
fn lane(traces: &[Vec<Asked>], next: &AtomicUsize) -> Result<()> {
    kit::run(async |kit| {
        // Deployments are wanted here, not their Pods.
        kit.forbid_pods().await?;
        let operator = &kit.operators_client().await?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(trace) = traces.get(number) else { return Ok(()) };
            let mut replay =
                Replay { kit, operator, owner: String::new(), before: BTreeMap::new(), versions: BTreeMap::new() };
            for (place, asked) in trace.iter().enumerate() {
                let what = || format!("way {number}, request {place}: {} {} {}", asked.verb, asked.kind, asked.name);
                replay.ask(asked).await.with_context(what)?;
            }
            kit.clear::<DataPlane>().await?;
            kit.clear::<PromotionPolicy>().await?;
            kit.clear::<Promotion>().await?;
            kit.clear::<Deployment>().await?;
            kit.clear::<Service>().await?;
            kit.clear::<ControllerRevision>().await?;
            kit.clear::<Secret>().await?;
        }
    })
}

/// Kind and name of an object.
type Key = (String, String);

struct Replay<'kit> {
    kit: &'kit Kit,
    /// Who asks for the operator.
    operator: &'kit Client,
    /// UID of the DataPlane.
    owner: String,
    /// The objects of the model.
    before: BTreeMap<Key, Value>,
    /// The versions of the objects here, as far as they are known.
    versions: BTreeMap<Key, String>,
}

impl Replay<'_> {
    async fn ask(&mut self, asked: &Asked) -> Result<()> {
        let key = (asked.kind.clone(), asked.name.clone());
        let path = format!("{}/{}/{}", asked.collection[0], self.kit.namespace, asked.collection[1]);
        let object = format!("{path}/{}", asked.name);
        let (code, found) = loop {
            let version = match asked.version.as_str() {
                "absent" => Some(differ::ABSENT.to_owned()),
                "current" => self.versions.get(&key).cloned(),
                // One that the object has had no longer, or never.
                "other" => Some("2".to_owned()),
                _ => None,
            };
            let (code, found) = self.request(asked, &path, &object, version.clone()).await?;
            if code != 409 || asked.code == 409 || asked.version != "current" {
                break (code, found);
            }
            // Controllers write too: what was current is not any more.
            let (_, now) = self.get(&object).await?;
            let now = now["metadata"]["resourceVersion"].as_str().map(str::to_owned);
            if now == version {
                break (code, found);
            }
            self.versions.extend(now.map(|now| (key.clone(), now)));
        };
        ensure!(code == asked.code, "{code}, not {}: {found:#}", asked.code);
        let found = match asked.verb.as_str() {
            // What it answers is about what was there.
            "delete" => self.get(&object).await?.1,
            _ if code >= 300 => return Ok(()),
            _ => found,
        };
        let found = found["metadata"]["uid"].is_string().then_some(found);
        if let Some(found) = found.as_ref().filter(|_| asked.kind == "DataPlane") {
            self.owner = found["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        }
        ensure!(found.is_some() == asked.object.is_some(), "is there: {}", found.is_some());
        if let (Some(found), Some(object)) = (&found, &asked.object) {
            self.compare(asked, found, object)?;
            self.before.insert(key.clone(), object.clone());
            self.versions.extend(found["metadata"]["resourceVersion"].as_str().map(|now| (key, now.to_owned())));
        } else {
            self.before.remove(&key);
        }
        Ok(())
    }

    async fn request(&self, asked: &Asked, path: &str, object: &str, version: Option<String>) -> Result<(u16, Value)> {
        let client = if asked.operator { self.operator } else { &self.kit.client };
        let mut body = self.here(&asked.body);
        if asked.verb == "delete" {
            let body = json!({
                "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background",
                "preconditions": { "resourceVersion": version },
            });
            return send(client, Method::DELETE, object, "application/json", body).await;
        }
        if let Some(version) = version {
            body["metadata"]["resourceVersion"] = version.into();
        }
        let manager = names::FIELD_MANAGER;
        let (method, at, content) = match asked.verb.as_str() {
            "create" => {
                body["kind"] = asked.kind.as_str().into();
                body["apiVersion"] = asked.api_version.as_str().into();
                (Method::POST, format!("{path}?fieldManager={manager}"), "application/json")
            }
            "apply" => {
                (Method::PATCH, format!("{object}?fieldManager={manager}&force=true"), "application/apply-patch+yaml")
            }
            "merge-status" => (Method::PATCH, format!("{object}/status"), "application/merge-patch+json"),
            _ => (Method::PATCH, object.to_owned(), "application/merge-patch+json"),
        };
        send(client, method, &at, content, body).await
    }

    async fn get(&self, object: &str) -> Result<(u16, Value)> {
        send(&self.kit.client, Method::GET, object, "", Value::Null).await
    }

    /// With the names of this namespace, this owner and who decides here.
    fn here(&self, body: &Value) -> Value {
        let names = [("namespace", "ns", &*self.kit.namespace), ("uid", "uid", &*self.owner), ("by", "person", ADMIN)];
        let text = names.iter().fold(body.to_string(), |text, (field, there, here)| {
            text.replace(&format!("\"{field}\":\"{there}\""), &format!("\"{field}\":\"{here}\""))
        });
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// What the model depends on is as it is there, and what was taken away there is gone here.
    fn compare(&self, asked: &Asked, found: &Value, object: &Value) -> Result<()> {
        let mut wanted = self.here(object);
        let metadata = wanted["metadata"].as_object_mut().context("metadata")?;
        for other in ["uid", "creationTimestamp", "deletionTimestamp", "namespace"] {
            metadata.remove(other);
        }
        if ["Deployment", "Service"].contains(&asked.kind.as_str()) {
            // Controllers and the node have a say in these.
            for theirs in ["/status", "/spec/clusterIP", "/spec/ports"] {
                wanted.pointer_mut(theirs).map(Value::take);
            }
            strip(&mut wanted);
        }
        ensure!(
            found["metadata"]["deletionTimestamp"].is_null() == object["metadata"]["deletionTimestamp"].is_null(),
            "is on its way out: {}",
            found["metadata"]["deletionTimestamp"]
        );
        ensure!(differ::holds(found, &wanted), "{found:#}\nis not\n{wanted:#}");
        if let Some(before) = self.before.get(&(asked.kind.clone(), asked.name.clone())) {
            for gone in gone("", before, object) {
                let there = found.pointer(&gone).is_some_and(|value| !value.is_null());
                ensure!(!there, "{gone} is still there");
            }
        }
        Ok(())
    }
}

async fn send(client: &Client, method: Method, path: &str, content: &str, body: Value) -> Result<(u16, Value)> {
    let mut request = Request::builder().method(method).uri(path);
    if !content.is_empty() {
        request = request.header("content-type", content);
    }
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let answer = client.send(request.body(Body::from(bytes))?).await?;
    let code = answer.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(answer.into_body()).await?.to_bytes();
    Ok((code, serde_json::from_slice(&bytes).unwrap_or_default()))
}

/// Takes out what is null.
fn strip(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(strip);
    }
}

/// Paths of fields that `before` has and `after` has not.
fn gone(path: &str, before: &Value, after: &Value) -> Vec<String> {
    let fields = before.as_object().into_iter().flatten();
    fields
        .flat_map(|(field, value)| {
            let path = format!("{path}/{}", field.replace('~', "~0").replace('/', "~1"));
            match after.get(field) {
                None => vec![path],
                Some(after) => gone(&path, value, after),
            }
        })
        .collect()
}
