//! What a test on the cluster gets: a namespace of its own, a client, and waits that end.
//!
//! ```no_run
//! # fn body() -> anyhow::Result<()> {
//! sluice_harness::kit::run(async |kit| {
//!     kit.kubectl(&["create", "configmap", "settings"])?;
//!     Ok(())
//! })
//! # }
//! ```
//! A test that fails prints what there is to know of its namespace: events, conditions, logs.

use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::runtime::wait::await_condition;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::command;

/// How long a test waits for anything, unless it says otherwise: far more than it takes, for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The conditions of every object, both places a DataPlane has them in.
const CONDITIONS: &str = r#"{{define "c"}}{{range .conditions}}    {{.type}}={{.status}} {{.reason}}: {{.message}}{{"\n"}}{{end}}{{end -}}
{{range .items}}  {{.kind}}/{{.metadata.name}}{{"\n"}}{{with .status}}{{template "c" .}}{{with .rollout}}{{template "c" .}}{{end}}{{end}}{{end}}"#;

/// What a test works with.
pub struct Kit {
    /// A client with an administrator's rights.
    pub client: Client,
    /// The namespace that is this test's alone.
    pub namespace: String,
    /// The cluster it runs on.
    pub cluster: Cluster,
    dir: tempfile::TempDir,
}

/// Runs a test on the cluster, which must be up (`cargo cluster up`).
pub fn run(test: impl AsyncFnOnce(&Kit) -> Result<()> + Send) -> Result<()> {
    Cluster::default().inside(|| async {
        let kit = Kit::create(Cluster::default()).await?;
        let outcome = AssertUnwindSafe(test(&kit)).catch_unwind().await;
        if !matches!(outcome, Ok(Ok(()))) {
            kit.dump();
        }
        kit.delete().await?;
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Kit {
    async fn create(cluster: Cluster) -> Result<Self> {
        let client = cluster.client().await?;
        let namespace = Namespace {
            metadata: kube::core::ObjectMeta { generate_name: Some("test-".into()), ..Default::default() },
            ..Default::default()
        };
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let created = namespaces.create(&PostParams::default(), &namespace).await;
        let created = created.context("the cluster does not answer; start it with `cargo cluster up`")?;
        let namespace = created.metadata.name.context("the apiserver named no namespace")?;
        let kit = Self { client, namespace, cluster, dir: tempfile::tempdir()? };
        // Without it the apiserver admits no Pod.
        kit.wait::<ServiceAccount>("default", "exist", |account| account.is_some()).await?;
        Ok(kit)
    }

    /// The objects of a kind, in the test's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The objects of a kind that belongs to no namespace.
    pub fn cluster_api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    /// A folder that goes with the test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until an object of the test's namespace is as wanted; `what` completes "NAME did not ...".
    pub async fn wait<K>(&self, name: &str, what: &str, wanted: impl Fn(Option<&K>) -> bool) -> Result<Option<K>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize
            + Send
            + 'static,
    {
        wait(self.api(), name, what, PATIENCE, wanted).await
    }

    /// Applies manifests to the test's namespace, as `kubectl apply` does.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let path = self.dir().join("manifests.yaml");
        std::fs::write(&path, manifests)?;
        self.kubectl(&["apply", "--filename", &path.display().to_string()])
    }

    /// Runs kubectl in the test's namespace and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut kubectl = Command::new("kubectl");
        kubectl.arg("--namespace").arg(&self.namespace).args(arguments).envs(self.cluster.environment());
        command::run(&mut kubectl)
    }

    /// Writes down, from now on, how a part of an object changes.
    pub fn record<K>(&self, name: &str, part: impl Fn(&K) -> Option<String> + Send + 'static) -> History
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        History::of(self.api(), name, part)
    }

    /// Prints what there is to know of the namespace.
    pub fn dump(&self) {
        eprintln!("---- namespace {} ----", self.namespace);
        self.print("events", &["get", "events", "--sort-by=.lastTimestamp"]);
        let kinds =
            self.kubectl(&["api-resources", "--namespaced", "--verbs=list", "--output=name"]).unwrap_or_default();
        // Events were printed; Secrets are nobody's business.
        let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events") && *kind != "secrets").collect();
        self.print("conditions", &["get", &kinds.join(","), "--output", &format!("go-template={CONDITIONS}")]);
        self.print(
            "Pod logs",
            &["logs", "--selector=!none", "--all-containers", "--prefix", "--tail=50", "--max-log-requests=50"],
        );
    }

    fn print(&self, title: &str, arguments: &[&str]) {
        match self.kubectl(arguments) {
            Ok(text) => eprintln!("{title}:\n{text}"),
            Err(error) => eprintln!("{title}: {error:#}"),
        }
    }

    async fn delete(&self) -> Result<()> {
        // Not waited for: what is in it ends while the next test runs.
        self.cluster_api::<Namespace>().delete(&self.namespace, &DeleteParams::background()).await?;
        Ok(())
    }
}

/// Waits until an object is as wanted; `what` completes "NAME did not ...".
pub async fn wait<K>(
    api: Api<K>,
    name: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(Option<&K>) -> bool,
) -> Result<Option<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + 'static,
{
    match tokio::time::timeout(limit, await_condition(api.clone(), name, |object: Option<&K>| wanted(object))).await {
        Ok(object) => Ok(object?),
        Err(_) => {
            let last = api.get_opt(name).await?;
            bail!("{} {name} did not {what} within {} s; it is now {:#}", K::kind(&()), limit.as_secs(), json!(last))
        }
    }
}

/// How a part of an object has changed, value by value.
pub struct History {
    name: String,
    seen: Arc<Mutex<Vec<String>>>,
    length: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl History {
    /// Writes down, from now on, how a part of an object changes.
    pub fn of<K>(api: Api<K>, name: &str, part: impl Fn(&K) -> Option<String> + Send + 'static) -> Self
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (sender, length) = watch::channel(0);
        let (list, object) = (Arc::clone(&seen), name.to_owned());
        let task = tokio::spawn(async move {
            let mut states = std::pin::pin!(watch_object(api, &object));
            while let Some(state) = states.next().await {
                // A watch that breaks is taken up again by itself.
                let Some(value) = state.ok().flatten().as_ref().and_then(&part) else { continue };
                let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
                if list.last() != Some(&value) {
                    list.push(value);
                    sender.send_replace(list.len());
                }
            }
        });
        Self { name: name.to_owned(), seen, length, task }
    }

    /// The values so far, in order, without repetition.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a value has been seen, now or earlier.
    pub async fn wait_for(&mut self, value: &str, limit: Duration) -> Result<()> {
        let seen = Arc::clone(&self.seen);
        let has = |_: &usize| seen.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|one| one == value);
        let came = tokio::time::timeout(limit, self.length.wait_for(has)).await.is_ok_and(|found| found.is_ok());
        if !came {
            bail!("{} was never {value} within {} s; it was {}", self.name, limit.as_secs(), self.seen().join(", "));
        }
        Ok(())
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}
