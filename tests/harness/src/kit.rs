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
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota, Secret, Service, ServiceAccount};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::cluster::Cluster;
use crate::command::last_lines;
use crate::diagnosis;
use crate::kubectl::Kubectl;
use crate::operator::{self, LocalOperator};
use crate::proxy::Proxy;
use crate::wait::{History, PATIENCE, wait, wait_all};
use crate::workspace;

/// What lets the operator hold the Lease and keep its CA.
const OWN: [&str; 2] = ["kind: Role", "kind: RoleBinding"];

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
    run_on(&Cluster::default(), test)
}

/// Runs a test, or a measurement, on a cluster that is up.
pub fn run_on<T: Send>(cluster: &Cluster, test: impl AsyncFnOnce(&Kit) -> Result<T> + Send) -> Result<T> {
    cluster.inside(|| async {
        let kit = Kit::create(cluster.clone()).await?;
        let outcome = AssertUnwindSafe(test(&kit)).catch_unwind().await;
        if !matches!(outcome, Ok(Ok(_))) {
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

    /// Waits until all objects with these labels, sorted by name, are as wanted; `what` completes "LABELS did not ...".
    pub async fn wait_all<K>(&self, labels: &str, what: &str, wanted: impl Fn(&[Arc<K>]) -> bool) -> Result<Vec<Arc<K>>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize
            + Send
            + Sync
            + 'static,
    {
        wait_all(self.api(), labels, what, PATIENCE, wanted).await
    }

    /// Applies manifests to the test's namespace, as `kubectl apply` does.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let path = self.dir().join("manifests.yaml");
        fs::write(&path, manifests)?;
        self.kubectl(&["apply", "--filename", &path.display().to_string()])
    }

    /// Runs kubectl in the test's namespace and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        Kubectl::local(&self.cluster).namespaced(&self.namespace).run(arguments)
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

    /// Somebody with a name of their own, and with the rights of a ClusterRole in the test's namespace. Says who they are
    /// to the apiserver, too.
    pub async fn person(&self, name: &str, role: &str) -> Result<(Client, String)> {
        let account = format!("--serviceaccount={}:{name}", self.namespace);
        self.kubectl(&["create", "serviceaccount", name])?;
        self.kubectl(&["create", "rolebinding", name, &format!("--clusterrole={role}"), &account])?;
        let token = self.kubectl(&["create", "token", name])?;
        Ok((self.client_of(token.trim()).await?, format!("system:serviceaccount:{}:{name}", self.namespace)))
    }

    /// A client with the rights of the operator, and no more.
    pub async fn operators_client(&self) -> Result<Client> {
        self.client_of(&operator::token(self.client.clone()).await?).await
    }

    async fn client_of(&self, token: &str) -> Result<Client> {
        let kubeconfig = Kubeconfig::from_yaml(&self.cluster.kubeconfig(token))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// Starts an operator for the test's namespace alone, as a process of this machine, behind a proxy.
    pub async fn operator(&self, proxy: &Proxy) -> Result<LocalOperator> {
        let token = operator::token(self.client.clone()).await?;
        LocalOperator::start(self.dir(), &proxy.kubeconfig(&token), &self.namespace, &[])
    }

    /// Starts one of several operators for the test's namespace, of which the Lease in there chooses one, as if it were in
    /// a Pod of this name. What is the operator's own is there too: see [`Kit::own_lease`].
    pub async fn elected_operator(&self, pod: &str, proxy: &Proxy) -> Result<LocalOperator> {
        let token = operator::token(self.client.clone()).await?;
        let more = ["--leader-elect", "true", "--namespace", &self.namespace];
        LocalOperator::start_as(Some(pod), self.dir(), &proxy.kubeconfig(&token), &self.namespace, &more)
    }

    /// Gives the operator in the test's namespace what the manifests give it in its own.
    pub fn own_lease(&self) -> Result<()> {
        let manifests = fs::read_to_string(workspace::root().join("deploy/operator.yaml"))?;
        let own = manifests.split("\n---\n").filter(|one| one.lines().any(|line| OWN.contains(&line)));
        // The account that both speak of stays where it is.
        let moved =
            own.map(|one| one.replacen("  namespace: sluice-system", &format!("  namespace: {}", self.namespace), 1));
        self.apply(&moved.collect::<Vec<_>>().join("\n---\n")).map(drop)
    }

    /// Has the apiserver admit no Pod to the test's namespace from now on.
    pub async fn forbid_pods(&self) -> Result<()> {
        self.kubectl(&["create", "quota", "no-pods", "--hard=pods=0"])?;
        let counted = |quota: Option<&ResourceQuota>| quota.is_some_and(|quota| quota.status.is_some());
        self.wait::<ResourceQuota>("no-pods", "be in force", counted).await.map(drop)
    }

    /// Deletes every object of a kind in the test's namespace, whatever holds it.
    pub async fn clear<K>(&self) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        release(self.api::<K>()).await?;
        self.api::<K>().delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
        Ok(())
    }

    /// Starts an operator for the test's namespace alone, as a process of this machine that nothing stands before. It holds
    /// its Lease, as where it is installed: for what is measured.
    pub async fn unwatched_operator(&self) -> Result<LocalOperator> {
        self.own_lease()?;
        self.operator_with(&["--leader-elect", "true", "--namespace", &self.namespace]).await
    }

    /// The same, with these arguments and without a Lease.
    pub async fn operator_with(&self, arguments: &[&str]) -> Result<LocalOperator> {
        let token = operator::token(self.client.clone()).await?;
        LocalOperator::start(self.dir(), &self.cluster.kubeconfig(&token), &self.namespace, arguments)
    }

    /// Prints what there is to know of the namespace and of the test's operator.
    pub fn dump(&self) {
        diagnosis::print(&Kubectl::local(&self.cluster), &self.namespace);
        if let Ok(log) = fs::read(self.dir().join(operator::LOG)) {
            eprintln!("operator:\n{}", last_lines(&log, 80));
        }
    }

    async fn delete(&self) -> Result<()> {
        // Not waited for: what is in it ends while the next test runs.
        self.cluster_api::<Namespace>().delete(&self.namespace, &DeleteParams::background()).await?;
        // The test's operator is gone, and with it who would let these go.
        release(self.api::<Deployment>()).await?;
        release(self.api::<Service>()).await?;
        release(self.api::<Secret>()).await
    }
}

/// Takes the finalizers from all objects of a kind.
async fn release<K>(objects: Api<K>) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let none = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    let held = objects.list(&ListParams::default()).await?.items.into_iter().filter(|one| !one.finalizers().is_empty());
    let (objects, none) = (&objects, &none);
    let release =
        |object: K| async move { objects.patch(&object.name_any(), &PatchParams::default(), none).await.map(drop) };
    Ok(stream::iter(held).map(Ok).try_for_each_concurrent(16, release).await?)
}
