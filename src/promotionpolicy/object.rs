//! What the two kinds of policies have in common, and where they differ.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{Api, Client, Resource, ResourceExt, core::object::HasStatus};
use serde::de::DeserializeOwned;

use crate::{
    api::{
        ClusterPromotionPolicy, PromotionPolicy,
        promotionpolicy::{PolicyRules, PromotionPolicyStatus},
    },
    cluster::Scope,
};

/// A policy object.
pub trait PolicyObject:
    Resource<DynamicType = ()>
    + HasStatus<Status = PromotionPolicyStatus>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// In logs and metrics.
    const KIND: &'static str;

    /// Those of a scope.
    fn of_scope(client: &Client, scope: &Scope) -> Api<Self>;

    /// Where this one is written.
    fn api(&self, client: &Client) -> Api<Self>;

    /// What it demands.
    fn rules(&self) -> &PolicyRules;

    /// What it chooses by: field and selector.
    fn selectors(&self) -> Vec<(&'static str, &LabelSelector)>;
}

impl PolicyObject for PromotionPolicy {
    const KIND: &'static str = "PromotionPolicy";

    fn of_scope(client: &Client, scope: &Scope) -> Api<Self> {
        scope.api(client)
    }

    fn api(&self, client: &Client) -> Api<Self> {
        Api::namespaced(client.clone(), &self.namespace().unwrap_or_default())
    }

    fn rules(&self) -> &PolicyRules {
        &self.spec.rules
    }

    fn selectors(&self) -> Vec<(&'static str, &LabelSelector)> {
        vec![("spec.selector", &self.spec.selector)]
    }
}

impl PolicyObject for ClusterPromotionPolicy {
    const KIND: &'static str = "ClusterPromotionPolicy";

    fn of_scope(client: &Client, _: &Scope) -> Api<Self> {
        Api::all(client.clone())
    }

    fn api(&self, client: &Client) -> Api<Self> {
        Api::all(client.clone())
    }

    fn rules(&self) -> &PolicyRules {
        &self.spec.rules
    }

    fn selectors(&self) -> Vec<(&'static str, &LabelSelector)> {
        vec![("spec.namespaceSelector", &self.spec.namespace_selector), ("spec.selector", &self.spec.selector)]
    }
}
