//! What the two kinds of plugin objects have in common, and where they differ.

use std::fmt::Debug;

use kube::{Api, Client, Resource, ResourceExt, core::object::HasStatus, runtime::reflector::ObjectRef};
use serde::de::DeserializeOwned;

use crate::{
    api::{
        ClusterGatePlugin, GatePlugin,
        gateplugin::{ClusterSource, GatePluginStatus, PluginLimits, Trust},
    },
    cluster::Scope,
    model::PluginKey,
};

/// A plugin object.
pub trait PluginObject:
    Resource<DynamicType = ()>
    + HasStatus<Status = GatePluginStatus>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// In logs and metrics.
    const KIND: &'static str;

    /// Those of a scope. For objects of the cluster, that is where the objects are that they name.
    fn of_scope(client: &Client, scope: &Scope) -> Api<Self>;

    /// Where this one is written.
    fn api(&self, client: &Client) -> Api<Self>;

    /// Whether a plugin is one of those [`PluginObject::of_scope`] finds.
    fn is_of(scope: &Scope, key: &PluginKey) -> bool;

    /// The namespace of the objects that it names.
    fn home(&self, scope: &Scope) -> String;

    /// Where its bytes are.
    fn source(&self) -> ClusterSource;

    /// Which are accepted.
    fn trust(&self) -> &Trust;

    /// What its trials may use up.
    fn limits(&self) -> PluginLimits;

    /// Its name among all plugins.
    fn key(&self) -> PluginKey {
        PluginKey { namespace: self.namespace(), name: self.name_any() }
    }

    /// Where a store has it.
    fn reference(key: &PluginKey) -> ObjectRef<Self> {
        let reference = ObjectRef::new(&key.name);
        match &key.namespace {
            Some(namespace) => reference.within(namespace),
            None => reference,
        }
    }
}

impl PluginObject for GatePlugin {
    const KIND: &'static str = "GatePlugin";

    fn of_scope(client: &Client, scope: &Scope) -> Api<Self> {
        scope.api(client)
    }

    fn api(&self, client: &Client) -> Api<Self> {
        Api::namespaced(client.clone(), &self.namespace().unwrap_or_default())
    }

    fn is_of(scope: &Scope, key: &PluginKey) -> bool {
        let elsewhere = scope.namespace().is_some_and(|namespace| key.namespace.as_deref() != Some(namespace));
        key.namespace.is_some() && !elsewhere
    }

    fn home(&self, _: &Scope) -> String {
        self.namespace().unwrap_or_default()
    }

    fn source(&self) -> ClusterSource {
        self.spec.source.clone().into()
    }

    fn trust(&self) -> &Trust {
        &self.spec.trust
    }

    fn limits(&self) -> PluginLimits {
        self.spec.limits.clone().unwrap_or_default()
    }
}

impl PluginObject for ClusterGatePlugin {
    const KIND: &'static str = "ClusterGatePlugin";

    fn of_scope(client: &Client, _: &Scope) -> Api<Self> {
        Api::all(client.clone())
    }

    fn api(&self, client: &Client) -> Api<Self> {
        Api::all(client.clone())
    }

    fn is_of(_: &Scope, key: &PluginKey) -> bool {
        key.namespace.is_none()
    }

    fn home(&self, scope: &Scope) -> String {
        scope.namespace().unwrap_or_default().to_owned()
    }

    fn source(&self) -> ClusterSource {
        self.spec.source.clone()
    }

    fn trust(&self) -> &Trust {
        &self.spec.trust
    }

    fn limits(&self) -> PluginLimits {
        self.spec.limits.clone().unwrap_or_default()
    }
}
