//! kubectl, on the local cluster or on any other.

use std::process::Command;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::command::run;

/// How kubectl is called.
#[derive(Clone)]
pub struct Kubectl {
    program: Vec<String>,
    environment: Vec<(&'static str, String)>,
    namespace: Option<String>,
}

impl Kubectl {
    /// On the local cluster.
    pub fn local(cluster: &Cluster) -> Self {
        let command = cluster.command("kubectl");
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        Self {
            program: words.map(|word| word.to_string_lossy().into_owned()).collect(),
            environment: cluster.environment(),
            namespace: None,
        }
    }

    /// On the cluster of a context of the user's own kubeconfig.
    pub fn context(name: &str) -> Self {
        let program = vec!["kubectl".to_owned(), format!("--context={name}")];
        Self { program, environment: Vec::new(), namespace: None }
    }

    /// The same, in a namespace.
    #[must_use]
    pub fn namespaced(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// Runs it to its end and returns what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).envs(self.environment.iter().cloned());
        if let Some(namespace) = &self.namespace {
            command.args(["--namespace", namespace]);
        }
        run(command.args(arguments))
    }
}
