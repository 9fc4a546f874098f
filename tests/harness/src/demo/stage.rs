//! What the steps of the walk are told with: kubectl for what a user does, a client for what is seen.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper::http::{HeaderMap, Request, StatusCode, header};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::client::Body;
use kube::{Api, Client};
use serde::Serialize;
use serde_json::Value;

use crate::http;
use crate::kubectl::Kubectl;
use crate::progress::Step;
use crate::wait::{History, wait};

/// How long any step may wait.
const LIMIT: Duration = Duration::from_secs(120);

/// How the gateways are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// At the addresses in the status.
    Address,
    /// Through the apiserver's proxy to their Services.
    ApiServer,
}

/// A side of the gateway, as its users reach it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Live,
    Preview,
}

/// A step that was played.
#[derive(Clone, Serialize)]
pub(super) struct Played {
    pub(super) name: String,
    pub(super) ok: bool,
    pub(super) seconds: f64,
}

/// Where the walk is played.
pub(super) struct Stage {
    client: Client,
    kubectl: Kubectl,
    namespace: String,
    reach: Reach,
    steps: RefCell<Vec<Played>>,
}

impl Stage {
    pub(super) fn new(client: Client, kubectl: Kubectl, namespace: &str, reach: Reach) -> Self {
        Self { client, kubectl, namespace: namespace.to_owned(), reach, steps: RefCell::default() }
    }

    /// Plays a step, prints its line and below it what was seen.
    pub(super) async fn step(&self, name: &str, work: impl Future<Output = Result<String>>) -> Result<()> {
        let step = Step::begin(name);
        let result = work.await;
        let seconds = step.end(result.is_ok()).as_secs_f64();
        self.steps.borrow_mut().push(Played { name: name.to_owned(), ok: result.is_ok(), seconds });
        for line in result.with_context(|| name.to_owned())?.lines() {
            println!("      {line}");
        }
        Ok(())
    }

    pub(super) fn steps(&self) -> Vec<Played> {
        self.steps.borrow().clone()
    }

    pub(super) fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Runs kubectl in the walk's namespace.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl.namespaced(&self.namespace).run(arguments)
    }

    /// Makes the namespace.
    pub(super) fn create_namespace(&self) -> Result<()> {
        self.kubectl.run(&["create", "namespace", &self.namespace]).map(drop)
    }

    /// The objects of a kind of ours.
    pub(super) fn api(&self, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }

    fn dataplanes(&self) -> Api<DynamicObject> {
        self.api("gateway-operator.konghq.com", "v1beta1", "DataPlane")
    }

    /// The reasons of a DataPlane's rollout, from now on.
    pub(super) fn reasons(&self, dataplane: &str) -> History {
        History::of(self.dataplanes(), dataplane, |object| Some(rolled_out(object)?["reason"].as_str()?.to_owned()))
    }

    /// Waits until a DataPlane is as wanted.
    pub(super) async fn wait_dataplane(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&DynamicObject) -> bool,
    ) -> Result<DynamicObject> {
        let wanted = |object: Option<&DynamicObject>| object.is_some_and(&wanted);
        wait(self.dataplanes(), name, what, LIMIT, wanted).await?.context("a wait that ended has its object")
    }

    /// Waits until a condition of an object is true.
    pub(super) async fn wait_condition(&self, api: Api<DynamicObject>, name: &str, condition: &str) -> Result<()> {
        let wanted = |object: Option<&DynamicObject>| object.is_some_and(|object| holds(object, condition));
        wait(api, name, &format!("become {condition}"), LIMIT, wanted).await.map(drop)
    }

    /// Waits until kubectl prints what is wanted: for lists, which `kubectl wait` cannot see empty.
    pub(super) async fn until_printed(&self, arguments: &[&str], wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let printed = self.run(arguments)?;
            if wanted(&printed) {
                return Ok(printed);
            }
            if tokio::time::Instant::now() > deadline {
                bail!("`kubectl {}` still prints: {printed}", arguments.join(" "));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Asks the gateway until it answers with a release: the rules of the network follow the API with a delay.
    pub(super) async fn until_answers(&self, dataplane: &str, side: Side, release: &str) -> Result<String> {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let answer = self.ask(dataplane, side).await;
            if answer.as_ref().is_ok_and(|answer| answer.contains(&format!("Server: {release}"))) {
                return answer;
            }
            if tokio::time::Instant::now() > deadline {
                bail!("the answer is not from {release}: {answer:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asks the gateway once; an answer is told as `curl -i` begins it.
    pub(super) async fn ask(&self, dataplane: &str, side: Side) -> Result<String> {
        let object = self.dataplanes().get(dataplane).await?;
        let at = match side {
            Side::Live => &object.data["status"],
            Side::Preview => &object.data["status"]["rollout"]["services"]["ingress"],
        };
        let (asked, status, headers) = match self.reach {
            Reach::Address => self.ask_address(at).await?,
            Reach::ApiServer => self.ask_service(at).await?,
        };
        let server = headers.get(header::SERVER).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        Ok(format!("{asked} -> {status}, Server: {}", server.unwrap_or_default()))
    }

    async fn ask_address(&self, at: &Value) -> Result<(String, StatusCode, HeaderMap)> {
        let addresses = at["addresses"].as_array().context("the status has no addresses yet")?;
        let address = addresses.iter().find(|one| one["sourceType"] != "PrivateIP").unwrap_or(&addresses[0]);
        let url = format!("http://{}/", address["value"].as_str().context("an address without a value")?);
        let answer = http::get(&url).await?;
        Ok((format!("curl {url}"), answer.status(), answer.headers().clone()))
    }

    async fn ask_service(&self, at: &Value) -> Result<(String, StatusCode, HeaderMap)> {
        let service = at["service"].as_str().or(at["name"].as_str()).context("the status names no Service yet")?;
        let path = format!("/api/v1/namespaces/{}/services/{service}:http/proxy/", self.namespace);
        let answer = self.client.send(Request::get(&path).body(Body::empty())?).await?;
        Ok((path, answer.status(), answer.headers().clone()))
    }
}

/// Removes the walk's namespace with all that is in it, if it is there.
pub(super) fn clear(kubectl: &Kubectl, namespace: &str) -> Result<()> {
    if kubectl.run(&["get", "namespace", namespace]).is_ok() {
        // What a DataPlane consists of waits for the operator to let it go: the DataPlane goes first.
        kubectl.namespaced(namespace).run(&["delete", "dataplanes", "--all", "--timeout=60s"])?;
        kubectl.run(&["delete", "namespace", namespace, "--timeout=120s"])?;
    }
    Ok(())
}

/// The condition that tells of a rollout.
pub(super) fn rolled_out(object: &DynamicObject) -> Option<&Value> {
    condition(&object.data["status"]["rollout"], "RolledOut")
}

/// Whether a condition of an object is true for its newest generation.
pub(super) fn holds(object: &DynamicObject, name: &str) -> bool {
    condition(&object.data["status"], name).is_some_and(|condition| condition["status"] == "True")
}

fn condition<'a>(at: &'a Value, name: &str) -> Option<&'a Value> {
    at["conditions"].as_array()?.iter().find(|condition| condition["type"] == name)
}
