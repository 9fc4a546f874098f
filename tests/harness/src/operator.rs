//! An operator as a process of this machine, for the tests that kill it; it has the rights of its ServiceAccount.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Client;
use kube::api::{Api, PostParams};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::cluster::write_private;
use crate::workspace;

/// Where the operator is installed.
pub const NAMESPACE: &str = "sluice-system";
/// The name of its Deployment and of its ServiceAccount there.
pub const NAME: &str = "sluice-operator";
/// The name of a local operator's log.
pub const LOG: &str = "operator.log";
/// How many were started by this process.
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// Who the apiserver takes it for.
pub fn account() -> String {
    format!("system:serviceaccount:{NAMESPACE}:{NAME}")
}

/// A running operator with its gate host; both are killed when this is dropped.
pub struct LocalOperator {
    child: Child,
    gate_host: Child,
    socket: PathBuf,
    /// Its standard output and standard error.
    pub log: PathBuf,
}

impl LocalOperator {
    /// Starts `sluice operator` for one namespace, on a kubeconfig such as the proxy's or the cluster's; files go to
    /// `dir`. `more` is added to its arguments.
    pub fn start(dir: &Path, kubeconfig: &str, namespace: &str, more: &[&str]) -> Result<Self> {
        Self::start_as(None, dir, kubeconfig, namespace, more)
    }

    /// The same, as if it were in this Pod.
    pub fn start_as(pod: Option<&str>, dir: &Path, kubeconfig: &str, namespace: &str, more: &[&str]) -> Result<Self> {
        // Names of its own: the one before may still be going.
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let config = dir.join(format!("kubeconfig-{number}"));
        write_private(&config, kubeconfig)?;
        let log = dir.join(LOG);
        // Appended, so that the log of an operator that was killed stays above its successor's.
        let output = File::options().create(true).append(true).open(&log)?;
        let socket = dir.join(format!("gate-host-{number}.sock"));
        let gate_host = start("gate-host", &output, |host| host.arg("--socket").arg(&socket))?;
        let child = start("operator", &output, |operator| {
            operator
                // As in deploy/operator.yaml.
                .env("MALLOC_ARENA_MAX", "1")
                .envs(["POD_NAME", "POD_UID"].iter().copied().zip(pod.into_iter().cycle()))
                .arg("--kubeconfig")
                .arg(&config)
                .arg("--gate-host")
                .arg(&socket)
                // A test may put a Kong operator's Lease into its own namespace.
                .args(["--namespace", NAMESPACE, "--watch-namespaces", namespace, "--kong-namespace", namespace])
                // Ports of the system's choice: several run at once.
                .args(["--metrics-bind-address", "127.0.0.1:0"])
                // Each has a namespace to itself.
                .args(["--leader-elect", "false"])
                .args(more)
        })?;
        Ok(Self { child, gate_host, socket, log })
    }

    /// Its resident memory in MiB, as the kernel counts it.
    pub fn memory(&self) -> Result<f64> {
        let pid = self.child.id().context("the operator has ended")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        resident(&status).context("the kernel does not say how much memory the operator has")
    }

    /// Kills the gate host alone, and starts another one in its place.
    pub async fn kill_gate_host(&mut self) -> Result<()> {
        self.gate_host.kill().await?;
        let output = File::options().append(true).open(&self.log)?;
        self.gate_host = start("gate-host", &output, |host| host.arg("--socket").arg(&self.socket))?;
        Ok(())
    }

    /// What kills it at once, for a trap of the proxy.
    pub fn killer(&self) -> impl FnOnce() + Send + use<> {
        self.sender(Signal::KILL)
    }

    /// What stops it at once where it is, likewise.
    pub fn stopper(&self) -> impl FnOnce() + Send + use<> {
        self.sender(Signal::STOP)
    }

    /// Has it go on where it was stopped.
    pub fn resume(&self) {
        self.sender(Signal::CONT)();
    }

    /// Tells it to end in good order.
    pub fn terminate(&self) {
        self.sender(Signal::TERM)();
    }

    fn sender(&self, signal: Signal) -> impl FnOnce() + Send + use<> {
        // The process is reaped only through `child`, so the pid stays its own until then.
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        move || {
            if let Some(pid) = pid {
                // An error means that it is gone already.
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Waits until it has ended, however that came.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(limit, self.child.wait()).await;
        Ok(ended.with_context(|| {
            format!("the operator still runs after {} s; its log: {}", limit.as_secs(), self.log.display())
        })??)
    }
}

/// Starts a command of the operator's binary that runs until it is killed.
fn start(command: &str, output: &File, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<Child> {
    let binary = workspace::operator_binary();
    let mut process = Command::new(&binary);
    arguments(process.arg(command).args(["--health-probe-bind-address", "127.0.0.1:0"]));
    process.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?).kill_on_drop(true);
    process.spawn().with_context(|| format!("cannot start {}; `cargo build` makes it", binary.display()))
}

/// `VmRSS` of a process's status, which is in KiB, in MiB.
fn resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
}

/// A token of the operator's ServiceAccount, valid for an hour.
pub async fn token(client: Client) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client, NAMESPACE);
    let spec = TokenRequestSpec { expiration_seconds: Some(3600), ..Default::default() };
    let request = TokenRequest { spec: Some(spec), ..Default::default() };
    let answer = accounts.create_token_request(NAME, &PostParams::default(), &request).await;
    let answer = answer.with_context(|| format!("no token for {NAME} in {NAMESPACE}; is the operator installed?"))?;
    answer.status.and_then(|status| status.token).context("the apiserver gave no token")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_mebibytes() {
        assert_eq!(resident("VmPeak:\t  9000 kB\nVmRSS:\t    2560 kB\nThreads:\t4\n"), Some(2.5));
        assert_eq!(resident("Threads:\t4\n"), None, "a process that is being reaped has none");
    }
}
