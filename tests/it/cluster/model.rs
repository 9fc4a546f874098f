//! The real apiserver answers as the one of the model test does: what was asked there on 200 ways is asked here.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use axum::http::{Method, Request};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    core::v1::{ResourceQuota, Secret, Service},
};
use kube::client::Body;
use serde::Deserialize;
use serde_json::{Value, json};
use sluice::{
    api::{DataPlane, Promotion, PromotionPolicy},
    model::{differ, names},
};
use sluice_harness::{
    command::run,
    install::cargo,
    kit::{self, Kit},
    workspace,
};

/// A request, and what the apiserver in memory made of it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
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
    // Of the whole workspace, as it was built before: for one package dependencies would be built with other features.
    run(cargo().args(["test", "--workspace", "--lib", "--", name]))?;
    let text = fs::read_to_string(workspace::reports().join("model-traces.json"))?;
    let traces: Vec<Vec<Asked>> = serde_json::from_str(&text)?;
    ensure!(traces.len() >= 200, "only {} ways", traces.len());
    kit::run(async |kit| {
        // Deployments are wanted here, not their Pods.
        kit.kubectl(&["create", "quota", "no-pods", "--hard=pods=0"])?;
        let counted = |quota: Option<&ResourceQuota>| quota.is_some_and(|quota| quota.status.is_some());
        kit.wait::<ResourceQuota>("no-pods", "be in force", counted).await?;
        for (number, trace) in traces.iter().enumerate() {
            let mut replay = Replay { kit, owner: String::new(), before: BTreeMap::new() };
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
        Ok(())
    })
}

struct Replay<'kit> {
    kit: &'kit Kit,
    /// UID of the DataPlane.
    owner: String,
    /// The objects of the model, by kind and name.
    before: BTreeMap<(String, String), Value>,
}

impl Replay<'_> {
    async fn ask(&mut self, asked: &Asked) -> Result<()> {
        let path = format!("{}/{}/{}", asked.collection[0], self.kit.namespace, asked.collection[1]);
        let object = format!("{path}/{}", asked.name);
        let (code, found) = loop {
            let (_, now) = self.send(Method::GET, &object, "", Value::Null).await?;
            let version = match asked.version.as_str() {
                "absent" => Some(differ::ABSENT.to_owned()),
                "current" => now["metadata"]["resourceVersion"].as_str().map(str::to_owned),
                // One that the object has had no longer, or never.
                "other" => Some("2".to_owned()),
                _ => None,
            };
            let (code, found) = self.request(asked, &path, &object, version).await?;
            let (_, after) = self.send(Method::GET, &object, "", Value::Null).await?;
            let moved = code == 409
                && asked.code != 409
                && now["metadata"]["resourceVersion"] != after["metadata"]["resourceVersion"];
            // Controllers write too: what was current is not any more.
            if !moved {
                break (code, if after["metadata"]["uid"].is_string() { Some(after) } else { found.filter(|_| false) });
            }
        };
        ensure!(code == asked.code, "{code}, not {}: {}", asked.code, found.unwrap_or_default());
        if asked.kind == "DataPlane"
            && let Some(found) = &found
        {
            self.owner = found["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        }
        ensure!(found.is_some() == asked.object.is_some(), "is there: {}", found.is_some());
        let key = (asked.kind.clone(), asked.name.clone());
        if let (Some(found), Some(object)) = (&found, &asked.object) {
            self.compare(asked, found, object)?;
            self.before.insert(key, object.clone());
        } else {
            self.before.remove(&key);
        }
        Ok(())
    }

    async fn request(
        &self,
        asked: &Asked,
        path: &str,
        object: &str,
        version: Option<String>,
    ) -> Result<(u16, Option<Value>)> {
        let mut body = self.here(&asked.body);
        if asked.verb == "delete" {
            let body = json!({
                "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background",
                "preconditions": { "resourceVersion": version },
            });
            let (code, found) = self.send(Method::DELETE, object, "application/json", body).await?;
            return Ok((code, Some(found)));
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
        let (code, found) = self.send(method, &at, content, body).await?;
        Ok((code, Some(found)))
    }

    /// With the names of this namespace and this owner.
    fn here(&self, body: &Value) -> Value {
        let text =
            body.to_string().replace("\"namespace\":\"ns\"", &format!("\"namespace\":\"{}\"", self.kit.namespace));
        serde_json::from_str(&text.replace("\"uid\":\"uid\"", &format!("\"uid\":\"{}\"", self.owner)))
            .unwrap_or_default()
    }

    async fn send(&self, method: Method, path: &str, content: &str, body: Value) -> Result<(u16, Value)> {
        let mut request = Request::builder().method(method).uri(path);
        if !content.is_empty() {
            request = request.header("content-type", content);
        }
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let answer = self.kit.client.send(request.body(Body::from(bytes))?).await?;
        let code = answer.status().as_u16();
        let bytes = http_body_util::BodyExt::collect(answer.into_body()).await?.to_bytes();
        Ok((code, serde_json::from_slice(&bytes).unwrap_or_default()))
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
            wanted["status"] = Value::Null;
            wanted["spec"]["clusterIP"] = Value::Null;
            wanted["spec"]["ports"] = Value::Null;
            wanted["metadata"]["generation"] = Value::Null;
            strip(&mut wanted);
        }
        ensure!(
            found["metadata"]["deletionTimestamp"].is_null() == object["metadata"]["deletionTimestamp"].is_null(),
            "is on its way out: {}",
            found["metadata"]["deletionTimestamp"]
        );
        ensure!(differ::holds(found, &wanted), "{found:#}\nis not\n{wanted:#}");
        let key = (asked.kind.clone(), asked.name.clone());
        if let Some(before) = self.before.get(&key) {
            for gone in gone("", before, object) {
                let there = found.pointer(&gone).is_some_and(|value| !value.is_null());
                ensure!(!there, "{gone} is still there");
            }
        }
        Ok(())
    }
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
