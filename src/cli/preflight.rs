//! Before anything is watched: does the cluster know our kinds, and may we touch what we will have to touch?
//!
//! Without this, a forgotten manifest shows as a watch that fails for ever in the logs.

use anyhow::anyhow;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::{
    api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client, api::PostParams};

use super::Failure;
use crate::{
    api,
    cluster::{Scope, leader::Lock},
};

const INSTALL: &str = "kubectl apply --server-side -f deploy/crds/ && kubectl apply -f deploy/operator.yaml";

/// Something the operator must be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Permission {
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
}

/// What no upgrade can do without: group, resource (and subresource), verbs.
const NEEDED: &[(&str, &str, &[&str])] = &[
    ("gateway-operator.konghq.com", "dataplanes", &["get", "list", "watch", "patch"]),
    ("gateway-operator.konghq.com", "dataplanes/status", &["patch"]),
    ("gateway-operator.konghq.com", "dataplanes/finalizers", &["update"]),
    ("sluice.dev", "gateplugins", &["list", "watch"]),
    ("sluice.dev", "gateplugins/status", &["patch"]),
    ("sluice.dev", "clustergateplugins", &["list", "watch"]),
    ("sluice.dev", "clustergateplugins/status", &["patch"]),
    ("sluice.dev", "promotionpolicies", &["list", "watch"]),
    ("sluice.dev", "promotionpolicies/status", &["patch"]),
    ("sluice.dev", "clusterpromotionpolicies", &["list", "watch"]),
    ("sluice.dev", "clusterpromotionpolicies/status", &["patch"]),
    ("sluice.dev", "promotions", &["get", "list", "watch", "create", "patch", "delete"]),
    ("sluice.dev", "promotions/status", &["patch"]),
    ("apps", "deployments", &["get", "list", "watch", "create", "patch", "delete"]),
    ("apps", "controllerrevisions", &["get", "list", "watch", "create", "patch", "delete"]),
    ("", "services", &["get", "list", "watch", "create", "patch", "delete"]),
    ("", "secrets", &["get", "list", "watch", "create", "patch", "delete"]),
    ("", "namespaces", &["get", "list", "watch"]),
    ("", "configmaps", &["get", "list", "watch"]),
    ("", "pods", &["get", "list", "watch"]),
    ("", "events", &["create", "patch"]),
    ("events.k8s.io", "events", &["create", "patch"]),
    ("discovery.k8s.io", "endpointslices", &["get", "list", "watch"]),
    ("autoscaling", "horizontalpodautoscalers", &["get", "list", "watch", "create", "patch", "delete"]),
    ("policy", "poddisruptionbudgets", &["get", "list", "watch", "create", "patch", "delete"]),
];

/// What the Lease needs. It is created by name, but creation cannot be allowed by name.
const LEASE: &[(&str, bool)] = &[("get", true), ("create", false), ("update", true)];

/// Looks once; `scopes` are where the operator is to work.
pub(super) async fn check(client: &Client, scopes: &[Scope]) -> Result<(), Failure> {
    for crd in api::crds() {
        installed(client, &crd).await?;
    }
    for scope in scopes {
        let missing = missing(client, scope)
            .await
            .map_err(|error| Failure::new("the cluster does not say what this account may do", error))?;
        if !missing.is_empty() {
            let cause = anyhow!(listed(&missing));
            return Err(Failure::new(format!("this account may not do all it has to do in {scope}"), cause)
                .next(format!("apply the operator's roles and bindings: {INSTALL}")));
        }
    }
    Ok(())
}

/// Whether this account may hold the Lease by which one of several operators is chosen.
pub(super) async fn check_lease(client: &Client, lock: &Lock) -> Result<(), Failure> {
    let scope = Scope::Namespace(lock.namespace.clone());
    for &(verb, named) in LEASE {
        let permission = Permission { group: "coordination.k8s.io", resource: "leases", verb };
        let may = allowed(client, &scope, permission, named.then_some(&lock.name)).await;
        if !may.map_err(|error| Failure::new("the cluster does not say what this account may do", error))? {
            let cause = anyhow!("it may not {verb} {lock}");
            return Err(Failure::new("this account may not hold the Lease of the one that works", cause)
                .next("see the Role in deploy/operator.yaml, --namespace and --leader-elect-resource-name; or start a single operator with --leader-elect=false"));
        }
    }
    Ok(())
}

/// Whether it can be seen that Kong's own operator is at work. Not needed: where it may not, the admin has to know.
pub(super) async fn sees_leases(client: &Client, scope: &Scope) -> bool {
    let asked = ["list", "watch"].map(|verb| Permission { group: "coordination.k8s.io", resource: "leases", verb });
    stream::iter(asked).all(async |permission| allowed(client, scope, permission, None).await.unwrap_or(false)).await
}

async fn installed(client: &Client, crd: &CustomResourceDefinition) -> Result<(), Failure> {
    let (group, plural) = (&crd.spec.group, &crd.spec.names.plural);
    let not_installed = |version: &str| {
        let cause = anyhow!("the cluster does not know {plural} of {group}/{version}");
        Failure::new("a custom resource definition is not installed", cause).next(INSTALL)
    };
    for version in crd.spec.versions.iter().map(|version| version.name.as_str()) {
        // Discovery: everybody may ask, while CustomResourceDefinitions are for admins.
        let known = match client.list_api_group_resources(&format!("{group}/{version}")).await {
            Ok(list) => list.resources.iter().any(|resource| resource.name == *plural),
            // By code: a group that nobody serves is answered in plain text, without a reason.
            Err(kube::Error::Api(status)) if status.code == 404 => false,
            Err(error) => {
                return Err(Failure::new("the cluster does not answer", error)
                    .next("check --kubeconfig and --context, and that the API server is up: kubectl version"));
            }
        };
        if !known {
            return Err(not_installed(version));
        }
    }
    Ok(())
}

async fn missing(client: &Client, scope: &Scope) -> Result<Vec<Permission>, kube::Error> {
    // At once, but not so many that a start looks like an attack to the API server's fairness.
    const AT_ONCE: usize = 8;
    let asked = permissions().map(async |permission| {
        let allowed = allowed(client, scope, permission, None).await?;
        Ok::<_, kube::Error>((!allowed).then_some(permission))
    });
    let missing: Vec<Option<Permission>> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
    Ok(missing.into_iter().flatten().collect())
}

/// One line for each resource, with the verbs that are missing.
fn listed(missing: &[Permission]) -> String {
    let of_one_resource =
        |one: &Permission, next: &Permission| (one.group, one.resource) == (next.group, next.resource);
    let lines = missing.chunk_by(of_one_resource).map(|missing| {
        let Permission { group, resource, .. } = missing[0];
        let verbs = missing.iter().map(|permission| permission.verb).collect::<Vec<_>>().join(", ");
        let dot = if group.is_empty() { "" } else { "." };
        format!("{resource}{dot}{group}: {verbs}")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Of any object, unless one is named.
async fn allowed(
    client: &Client,
    scope: &Scope,
    permission: Permission,
    name: Option<&String>,
) -> Result<bool, kube::Error> {
    let Permission { group, resource, verb } = permission;
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (resource, None),
    };
    let attributes = ResourceAttributes {
        namespace: scope.namespace().map(str::to_owned),
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource,
        verb: Some(verb.to_owned()),
        name: name.cloned(),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
        ..SelfSubjectAccessReview::default()
    };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

fn permissions() -> impl Iterator<Item = Permission> {
    NEEDED
        .iter()
        .flat_map(|&(group, resource, verbs)| verbs.iter().map(move |&verb| Permission { group, resource, verb }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::rbac::v1::{ClusterRole, Role};
    use serde::Deserialize;

    #[test]
    fn what_is_missing_is_listed_by_resource() {
        let permission = |group, resource, verb| Permission { group, resource, verb };
        let missing = [permission("apps", "deployments", "get"), permission("apps", "deployments", "list")];
        assert_eq!(listed(&missing), "deployments.apps: get, list");
        assert_eq!(listed(&[permission("", "pods", "watch")]), "pods: watch");
    }

    #[test]
    fn the_shipped_role_grants_all_that_is_needed() {
        let role: ClusterRole = serde_json::from_value(shipped("ClusterRole")).expect("a ClusterRole");
        let has = |list: &Option<Vec<String>>, word: &str| list.iter().flatten().any(|listed| listed == word);
        let granted = |permission: &Permission| {
            role.rules.iter().flatten().any(|rule| {
                has(&rule.api_groups, permission.group)
                    && has(&rule.resources, permission.resource)
                    && rule.verbs.iter().any(|verb| verb == permission.verb)
            })
        };
        let missing: Vec<_> = permissions().filter(|permission| !granted(permission)).collect();
        assert_eq!(listed(&missing), "");
    }

    #[test]
    fn the_shipped_role_grants_the_lease() {
        let role: Role = serde_json::from_value(shipped("Role")).expect("a Role");
        for (verb, named) in LEASE {
            let granted = role.rules.iter().flatten().any(|rule| {
                let named = rule.resource_names == named.then(|| vec!["sluice-operator".to_owned()]);
                named
                    && rule.resources == Some(vec!["leases".into()])
                    && rule.verbs.iter().any(|granted| granted == verb)
            });
            assert!(granted, "{verb} is missing");
        }
    }

    fn shipped(kind: &str) -> serde_json::Value {
        serde_norway::Deserializer::from_str(include_str!("../../deploy/operator.yaml"))
            .map(|document| serde_json::Value::deserialize(document).expect("YAML"))
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == "sluice-operator")
            .expect("one of the operator's own")
    }
}
