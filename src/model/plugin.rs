//! The name of a plugin object, whichever of the two kinds it is.

use std::fmt;

/// The name of a plugin object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PluginKey {
    /// Its namespace; a `ClusterGatePlugin` has none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl PluginKey {
    /// The `GatePlugin` of a namespace.
    #[must_use]
    pub fn of_namespace(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: Some(namespace.into()), name: name.into() }
    }

    /// The `ClusterGatePlugin`.
    #[must_use]
    pub fn of_cluster(name: impl Into<String>) -> Self {
        Self { namespace: None, name: name.into() }
    }

    /// The kind of the object.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.namespace.is_some() { "GatePlugin" } else { "ClusterGatePlugin" }
    }

    /// As people name it who know the namespace: `http-smoke`, `ClusterGatePlugin/http-smoke`.
    #[must_use]
    pub fn short(&self) -> String {
        match self.namespace {
            Some(_) => self.name.clone(),
            None => format!("{}/{}", self.kind(), self.name),
        }
    }
}

impl fmt::Display for PluginKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(formatter, "{namespace}/{}", self.name),
            None => formatter.write_str(&self.name),
        }
    }
}
