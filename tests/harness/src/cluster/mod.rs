//! A real single-node Kubernetes on this machine, in a network namespace of its own; and one whose node is played, for
//! more Pods than a machine runs.
//!
//! Everything a cluster has lies in one folder, `target/cluster` or `target/simulated`, and every process is known by a
//! pid file there. Nothing in it is worth keeping: a cluster that is not wholly well is taken down and started anew,
//! which takes seconds. `parts` says what runs, `network` where, `remains` what it leaves outside its folder.

mod binary;
mod certificates;
mod loadbalancer;
mod network;
mod parts;
mod prerequisites;
mod process;
mod remains;

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1;
use kube::api::{ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Config};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;

use certificates::Certificates;
pub use certificates::{ADMIN, kubeconfig, write_private};
pub use loadbalancer::run as run_load_balancer;
use network::Network;
use process::Process;

use crate::command::{last_lines, run};
use crate::progress::step;
use crate::{images, workspace};

/// The node's address, and the gateway of every Pod.
pub const NODE_ADDRESS: &str = "10.244.0.1";
const NODE_NAME: &str = "sluice";
const SERVICE_NETWORK: &str = "10.96.0.0/16";
const API_PORT: u16 = 6443;
/// Where the apiserver answers, inside.
pub const API_SERVER: &str = "https://10.244.0.1:6443";

/// How long a part may take to answer before it counts as broken; a busy machine takes a while.
const START_LIMIT: Duration = Duration::from_secs(90);
/// What a healthy cluster needs to say so.
const HEALTH_LIMIT: Duration = Duration::from_secs(5);

/// A cluster of this workspace.
#[derive(Clone)]
pub struct Cluster {
    /// Unlike that of any other clone's cluster on this machine.
    id: String,
    node: Node,
    dir: PathBuf,
    network: Network,
    certificates: Certificates,
}

/// Who runs the Pods of a cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    /// A kubelet: Pods are containers of this machine.
    Real,
    /// kwok: Pods turn ready, and go, by a write to the API.
    Played,
}

/// A part of the cluster and the process that it is, if it runs.
pub struct PartStatus {
    /// The part's name.
    pub name: &'static str,
    /// Its process, if it runs.
    pub pid: Option<u32>,
    /// Where its output is.
    pub log: PathBuf,
}

impl Default for Cluster {
    /// The one with a node.
    fn default() -> Self {
        Self::new("cluster", Node::Real)
    }
}

impl Cluster {
    /// The one whose node is played by kwok: thousands of Pods, none of which runs or answers anything, and no
    /// addresses for Services of type LoadBalancer.
    pub fn simulated() -> Self {
        Self::new("simulated", Node::Played)
    }

    fn new(folder: &str, node: Node) -> Self {
        let dir = workspace::target().join(folder);
        let hash = binary::hex(&Sha256::digest(dir.as_os_str().as_encoded_bytes()));
        Self {
            id: format!("sluice-{}", &hash[..6]),
            node,
            network: Network::new(dir.join("network")),
            certificates: Certificates::new(dir.join("certificates")),
            dir,
        }
    }

    /// Does a piece of work that needs the cluster; one that was down before is down afterwards.
    pub fn with_it_up<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let was_up = self.health().is_ok();
        self.up()?;
        let done = work();
        if !was_up {
            self.down()?;
        }
        done
    }

    /// Starts the cluster, unless it is up and well.
    pub fn up(&self) -> Result<()> {
        prerequisites::ensure()?;
        self.check_folder()?;
        binary::ensure(&binary::KUBERNETES, &bin())?;
        if self.node == Node::Played {
            binary::ensure(&binary::KWOK, &bin())?;
        }
        if self.health().is_ok() {
            return Ok(());
        }
        if self.dir.join("pids").exists() || self.network.exists() {
            step("remains of an earlier cluster, taken away", || self.clear())?;
        }
        step("certificates and network", || self.prepare())?;
        step("etcd", || self.start_and_wait("etcd", 2379))?;
        step("kube-apiserver", || self.start_apiserver())?;
        if self.node == Node::Played {
            return step("node ready", || self.start_played_node());
        }
        let pause = step("pause image", images::pause)?;
        step("containerd", || self.start_containerd(&pause))?;
        step("node ready", || self.start_node())?;
        step("stand-in gateway images", || self.import_gateways())
    }

    /// Stops the cluster and takes away all it made; the built binary and the fetched packages stay.
    pub fn down(&self) -> Result<()> {
        step("cluster down", || self.clear())
    }

    /// Says of every part whether it runs.
    pub fn status(&self) -> Vec<PartStatus> {
        let status = |name| {
            let process = self.process(name);
            PartStatus { name, pid: process.pid(), log: process.log }
        };
        parts::names(self.node).iter().copied().map(status).collect()
    }

    /// An error unless every part runs, the apiserver is ready, and so is the node.
    pub fn health(&self) -> Result<()> {
        for part in self.status() {
            if part.pid.is_none() {
                bail!("{} does not run; its log, if it ever did: {}", part.name, part.log.display());
            }
        }
        self.inside(|| async {
            let client = self.client().await?;
            tokio::time::timeout(HEALTH_LIMIT, node_ready(client)).await.context("the node is not ready")?
        })
    }

    /// Runs a program inside, with kubectl on its path and a kubeconfig of an administrator.
    pub fn exec(&self, program: &str, arguments: &[String]) -> Result<ExitStatus> {
        self.network.enter()?;
        let mut command = Command::new(program);
        command.args(arguments).envs(self.environment());
        command.status().with_context(|| format!("cannot start {program}"))
    }

    /// A command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        self.network.command(program)
    }

    /// What a program inside needs to find the cluster.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let path = std::env::var("PATH").unwrap_or_default();
        vec![
            ("KUBECONFIG", self.certificates.file("admin.kubeconfig")),
            ("PATH", format!("{}:{path}", bin().display())),
        ]
    }

    /// Runs asynchronous work on a thread that is inside the cluster's network, and with it all its connections.
    pub fn inside<T, F>(&self, work: impl FnOnce() -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
    {
        Self::within(&self.network, work)
    }

    /// The same from outside of the cluster, a hop away from its node: what it gives to others is in reach, at the node's
    /// address, and addresses of Pods and Services are for those who know the way.
    pub fn outside<T, F>(&self, work: impl FnOnce() -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
    {
        Self::within(&self.network.outside(), work)
    }

    fn within<T, F>(network: &Network, work: impl FnOnce() -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
    {
        let on_thread = || {
            network.enter()?;
            // One thread: a pool's other threads would have been made outside.
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work())
        };
        std::thread::scope(|scope| scope.spawn(on_thread).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A client with an administrator's rights; it works inside.
    pub async fn client(&self) -> Result<Client> {
        let file = self.certificates.file("admin.kubeconfig");
        let kubeconfig =
            Kubeconfig::read_from(&file).with_context(|| format!("cannot read {file}; is the cluster up?"))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// A kubeconfig for whoever has the given token; it works inside.
    pub fn kubeconfig(&self, token: &str) -> String {
        kubeconfig(API_SERVER, json!({ "certificate-authority": self.authority() }), &json!({ "token": token }))
    }

    /// The certificate of the cluster's authority.
    pub fn authority(&self) -> PathBuf {
        PathBuf::from(self.certificates.file("ca.crt"))
    }

    /// The apiserver's audit log: a JSON object per finished request.
    pub fn audit_log(&self) -> PathBuf {
        self.dir.join("logs/audit.log")
    }

    /// Makes an image known to the node.
    pub fn import(&self, archive: &Path) -> Result<()> {
        run(self
            .network
            .command("ctr")
            .args(["--address", &self.containerd_socket(), "--namespace", "k8s.io"])
            .args(["images", "import"])
            .arg(archive))?;
        Ok(())
    }

    fn prepare(&self) -> Result<()> {
        for folder in ["pids", "logs"] {
            fs::create_dir_all(self.dir.join(folder))?;
        }
        self.certificates.create()?;
        self.network.create()
    }

    fn start_apiserver(&self) -> Result<()> {
        self.start_and_wait("kube-apiserver", API_PORT)?;
        self.wait("kube-apiserver", || async {
            let ready = hyper::http::Request::get("/readyz").body(Vec::new())?;
            self.client().await?.request_text(ready).await?;
            Ok(())
        })
    }

    fn start_containerd(&self, pause: &Path) -> Result<()> {
        self.start("containerd")?;
        self.wait("containerd", || async { self.import(pause) })
    }

    fn start_node(&self) -> Result<()> {
        for part in ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "load-balancer"] {
            self.start(part)?;
        }
        self.wait("kubelet", || async { node_ready(self.client().await?).await })
    }

    fn start_played_node(&self) -> Result<()> {
        for part in ["kube-controller-manager", "kube-scheduler", "kwok"] {
            self.start(part)?;
        }
        self.inside(|| async {
            // Its room and its readiness are kwok's to say.
            let node = v1::Node {
                metadata: ObjectMeta { name: Some(NODE_NAME.into()), ..Default::default() },
                ..Default::default()
            };
            Api::all(self.client().await?).create(&PostParams::default(), &node).await?;
            Ok(())
        })?;
        self.wait("kwok", || async { node_ready(self.client().await?).await })
    }

    fn import_gateways(&self) -> Result<()> {
        images::GATEWAY_TAGS.into_iter().try_for_each(|tag| self.import(&images::gateway(tag)?))
    }

    fn start(&self, part: &str) -> Result<()> {
        self.process(part).start(&self.part(part)?)
    }

    fn start_and_wait(&self, part: &str, port: u16) -> Result<()> {
        self.start(part)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        self.wait(part, || async move {
            TcpStream::connect(address).await?;
            Ok(())
        })
    }

    /// Asks until the answer is good; an error when the part ends or takes too long.
    fn wait<F: Future<Output = Result<()>>>(&self, part: &str, ask: impl Fn() -> F + Send + Sync) -> Result<()> {
        let process = self.process(part);
        let answer = self.inside(|| async {
            let deadline = tokio::time::Instant::now() + START_LIMIT;
            loop {
                // What is asked may not be there yet, or hang: there is nothing to watch before the API answers.
                let answer = tokio::time::timeout_at(deadline, ask()).await;
                match answer.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", START_LIMIT.as_secs()))) {
                    Ok(()) => return Ok(()),
                    Err(error) if process.pid().is_none() => return Err(error.context("it has ended")),
                    Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        answer.with_context(|| {
            let log = fs::read(&process.log).unwrap_or_default();
            format!("{part} did not start; the end of {}:\n{}", process.log.display(), last_lines(&log, 10))
        })
    }

    fn clear(&self) -> Result<()> {
        let bundles = self.dir.join("containerd/state/io.containerd.runtime.v2.task/k8s.io");
        for part in parts::names(self.node).iter().rev() {
            self.process(part).kill()?;
        }
        remains::kill_shims(&self.containerd_socket())?;
        let containers = remains::containers(&bundles)?;
        remains::remove_cgroups(&containers)?;
        remains::remove_shim_sockets(&bundles)?;
        remains::remove_log_links(&self.dir.join("pod-logs"))?;
        remains::remove_network_cache(&containers)?;
        remains::remove_fixed_names()?;
        self.network.remove()?;
        remains::unmount_below(&self.dir)?;
        for entry in fs::read_dir(&self.dir).into_iter().flatten() {
            let path = entry?.path();
            if !KEPT.iter().any(|kept| path.ends_with(kept)) {
                remains::remove(&path)?;
            }
        }
        Ok(())
    }

    /// A socket's path has at most 107 bytes.
    fn check_folder(&self) -> Result<()> {
        let socket = format!("{}.ttrpc", self.containerd_socket());
        if socket.len() > 107 {
            bail!("{socket} is too long for a socket; clone the repository to a shorter path");
        }
        Ok(())
    }

    fn process(&self, part: &str) -> Process {
        Process::new(part, &self.dir.join("pids"), &self.dir.join("logs"))
    }

    fn containerd_socket(&self) -> String {
        self.file("containerd.sock")
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// Where the programs are that clusters of every kind are made of.
fn bin() -> PathBuf {
    workspace::target().join("cluster/bin")
}

/// What `down` leaves, because it takes minutes or a network to make again.
const KEPT: [&str; 3] = ["bin", "packages", "images"];

async fn node_ready(client: Client) -> Result<()> {
    let ready = |node: Option<&v1::Node>| {
        let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
    };
    await_condition(Api::all(client), NODE_NAME, ready).await?;
    Ok(())
}
