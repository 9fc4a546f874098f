//! `gates[].grants`: what a gate may speak to beside the candidate, and with whose secrets.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::promotionpolicy::duration;
use crate::model::{
    duration as durations,
    grants::{self, Ceilings, Granted, Side},
    promql::{self, Template},
    trial::{Egress, Method, Query, Range},
};

/// What stands for the secret in a header.
const PLACE: &str = "%s";

/// What a gate may do beside judging.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Grants {
    /// Container ports of the upgrade; the candidate's proxy ports, for every method, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub targets: Option<Vec<TargetGrant>>,
    /// Hosts outside, over TLS; the operator's --egress-host lists which may be granted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "named::<EgressGrant>")]
    pub egress: Vec<EgressGrant>,
    /// Secrets that are added to requests and never shown to the gate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "named::<CredentialGrant>")]
    pub credentials: Vec<CredentialGrant>,
    /// Questions to the operator's Prometheus.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "named::<QueryGrant>")]
    pub queries: Vec<QueryGrant>,
}

/// A container port of a side.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.role == 'candidate' || !has(self.methods) || self.methods.all(m, m in ['GET', 'HEAD'])").message("nothing that changes state is sent to the stable side: methods may be GET and HEAD"))]
pub struct TargetGrant {
    /// `candidate` or `stable`.
    #[serde(default)]
    pub role: Role,
    /// Name of the container port, or its number.
    #[schemars(length(min = 1, max = 15), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub port: String,
    /// What a request may be.
    #[serde(default = "reading")]
    #[schemars(length(min = 1, max = 7))]
    pub methods: Vec<Method>,
}

/// A side of an upgrade.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The new Pods.
    #[default]
    Candidate,
    /// The ones they replace.
    Stable,
}

/// A host outside.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressGrant {
    /// `jira`: the gate's target is `egress/jira`.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Its name, which its certificate has to bear.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub host: String,
    /// TCP port.
    #[serde(default = "https")]
    #[schemars(range(min = 1, max = 65_535), extend("format" = "int32"))]
    pub port: u16,
}

/// A secret that a request may name.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialGrant {
    /// What a request names.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Where its bytes are. The Secret has to bear the label `sluice.dev/gate-credential: "true"`.
    pub secret_ref: SecretKey,
    /// The only target it is sent to: `egress/jira`, `candidate/proxy`.
    #[schemars(
        length(min = 1, max = 80),
        regex(pattern = "^(candidate|stable|egress)/[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub target: String,
    /// The header it is sent in.
    #[serde(default = "authorization")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9-]+$"))]
    pub header: String,
    /// The header's value, with `%s` once in place of the secret.
    #[serde(default = "bearer")]
    #[schemars(length(min = 2, max = 256), regex(pattern = "^[ -~]*%s[ -~]*$"))]
    pub format: String,
    /// The path it is sent to, and everything below.
    #[serde(default = "root")]
    #[schemars(length(min = 1, max = 1_024), regex(pattern = "^/[!-~]*$"))]
    pub path_prefix: String,
}

/// A key of a Secret in the policy's namespace.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in its `data`.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A question to Prometheus. It reads the series of the policy's namespace, whatever it says itself.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueryGrant {
    /// What the gate asks for.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// PromQL; the gate fills in `${parameter}` in quoted label values.
    #[schemars(length(min = 1, max = 2_048))]
    pub promql: String,
    /// Time that a range query looks back over, at most 24h; an instant query if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration")]
    pub range: Option<String>,
    /// Time between two points of a range query, at least 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration")]
    pub step: Option<String>,
}

/// Why something cannot be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Below `grants`: `egress[jira].host`.
    pub field: String,
    /// What is wrong with it, and what to do.
    pub message: String,
}

impl Grants {
    /// What is granted to a gate of a policy in `namespace`.
    ///
    /// # Errors
    /// The first thing that is more than `ceilings` allow, or that cannot be read.
    pub fn read(&self, namespace: &str, ceilings: &Ceilings) -> Result<Granted, Excess> {
        let Self { targets, egress, credentials, queries } = self;
        let targets = targets.as_ref().map(|targets| targets.iter().map(port).collect::<Result<_, _>>());
        Ok(Granted {
            targets: targets.transpose()?,
            egress: egress.iter().map(|grant| outside(grant, ceilings)).collect::<Result<_, _>>()?,
            credentials: credentials.iter().map(|grant| credential(grant, egress)).collect::<Result<_, _>>()?,
            queries: queries.iter().map(|grant| query(grant, namespace)).collect::<Result<_, _>>()?,
        })
    }
}

fn port(grant: &TargetGrant) -> Result<grants::Port, Excess> {
    let side = match grant.role {
        Role::Candidate => Side::Candidate,
        Role::Stable => Side::Stable,
    };
    let writing = grant.methods.iter().find(|method| !Method::READING.contains(method));
    // A port of the admin API changes a gateway, on whichever side.
    let reason = match (side, writing) {
        (Side::Stable, Some(_)) => "nothing that changes state is sent to the stable side",
        (Side::Candidate, Some(_)) if grant.port.starts_with("admin") => "admin ports are for reading",
        _ => return Ok(grants::Port { side, name: grant.port.clone(), methods: grant.methods.clone() }),
    };
    Err(Excess {
        field: format!("targets[{}/{}].methods", side.as_str(), grant.port),
        message: format!("{reason}: only GET and HEAD can be granted"),
    })
}

fn outside(grant: &EgressGrant, ceilings: &Ceilings) -> Result<Egress, Excess> {
    if !ceilings.hosts.iter().any(|pattern| pattern.matches(&grant.host)) {
        return Err(Excess {
            field: format!("egress[{}].host", grant.name),
            message: format!("{} is not among the hosts that the operator's --egress-host lists", grant.host),
        });
    }
    Ok(Egress {
        name: grant.name.clone(),
        host: grant.host.clone(),
        port: grant.port,
        allowed: ceilings.ranges.clone(),
    })
}

fn credential(grant: &CredentialGrant, egress: &[EgressGrant]) -> Result<grants::Credential, Excess> {
    let excess =
        |field: &str, message: String| Err(Excess { field: format!("credentials[{}].{field}", grant.name), message });
    if let Some(name) = grant.target.strip_prefix("egress/")
        && !egress.iter().any(|egress| egress.name == name)
    {
        return excess("target", format!("{} is not among the granted targets", grant.target));
    }
    if grant.format.matches(PLACE).count() != 1 {
        return excess("format", format!("write {PLACE} once, in place of the secret"));
    }
    Ok(grants::Credential {
        name: grant.name.clone(),
        secret: grant.secret_ref.name.clone(),
        key: grant.secret_ref.key.clone(),
        target: grant.target.clone(),
        header: grant.header.clone(),
        format: grant.format.clone(),
        path_prefix: grant.path_prefix.clone(),
    })
}

fn query(grant: &QueryGrant, namespace: &str) -> Result<Query, Excess> {
    let excess = |field: &str, message: String| Excess { field: format!("queries[{}].{field}", grant.name), message };
    Template::parse(&grant.promql).map_err(|error| excess("promql", error))?;
    let range = match (&grant.range, &grant.step) {
        (None, None) => None,
        (Some(range), Some(step)) => {
            let window = durations::parse(range).map_err(|error| excess("range", error))?;
            let step = durations::parse(step).map_err(|error| excess("step", error))?;
            if window > promql::REACH {
                return Err(excess("range", format!("is more than {} h", promql::REACH.as_secs() / 3600)));
            }
            if step < promql::STEP || window.as_millis() / step.as_millis() >= promql::POINTS {
                let message =
                    format!("is less than {} s, or makes more than {} points", promql::STEP.as_secs(), promql::POINTS);
                return Err(excess("step", message));
            }
            Some(Range { window, step })
        }
        (Some(_), None) => return Err(excess("step", "is missing: a range query needs range and step".into())),
        (None, Some(_)) => return Err(excess("range", "is missing: a range query needs range and step".into())),
    };
    Ok(Query { name: grant.name.clone(), promql: grant.promql.clone(), namespace: namespace.to_owned(), range })
}

/// A list of things with names.
fn named<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<T>();
    json_schema!({
        "type": "array",
        "items": item,
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    })
}

fn reading() -> Vec<Method> {
    Method::READING.to_vec()
}

fn https() -> u16 {
    443
}

fn authorization() -> String {
    "Authorization".into()
}

fn bearer() -> String {
    format!("Bearer {PLACE}")
}

fn root() -> String {
    "/".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(grants: Value) -> Result<Granted, String> {
        let ceilings = Ceilings {
            hosts: vec!["*.example.com".parse().expect("a pattern")],
            ranges: vec!["10.1.0.0/16".parse().expect("a range")],
        };
        let grants: Grants = serde_json::from_value(grants).expect("grants");
        grants.read("shop", &ceilings).map_err(|excess| excess.field)
    }

    #[test]
    fn nothing_said_is_the_candidates_proxy_and_nothing_else() {
        assert_eq!(read(json!({})), Ok(Granted::default()));
    }

    #[test]
    fn what_the_operator_lists_can_be_granted() {
        let granted = read(json!({
            "targets": [{"port": "admin-ssl"}, {"role": "stable", "port": "proxy"}],
            "egress": [{"name": "jira", "host": "jira.example.com"}],
            "credentials": [{"name": "token", "secretRef": {"name": "jira", "key": "token"}, "target": "egress/jira"}],
            "queries": [{"name": "errors", "promql": "errors", "range": "10m", "step": "30s"}],
        }))
        .expect("granted");
        let ports = granted.targets.expect("ports");
        assert!(ports.iter().all(|port| port.methods == Method::READING));
        assert_eq!(granted.egress[0].target(), "egress/jira");
        assert_eq!(granted.egress[0].allowed.len(), 1);
        assert_eq!(granted.credentials[0].format, "Bearer %s");
        assert_eq!(granted.queries[0].namespace, "shop");
    }

    #[test]
    fn what_is_more_than_may_be_granted_is_named_by_its_field() {
        let secret = json!({"name": "a", "key": "b"});
        let query = |promql: &str, range: &str, step: &str| json!({"queries": [{"name": "q", "promql": promql, "range": range, "step": step}]});
        for (grants, field) in [
            (
                json!({"targets": [{"role": "stable", "port": "proxy", "methods": ["POST"]}]}),
                "targets[stable/proxy].methods",
            ),
            (
                json!({"targets": [{"port": "admin-ssl", "methods": ["DELETE"]}]}),
                "targets[candidate/admin-ssl].methods",
            ),
            (json!({"egress": [{"name": "evil", "host": "example.org"}]}), "egress[evil].host"),
            (
                json!({"credentials": [{"name": "t", "secretRef": secret, "target": "egress/jira"}]}),
                "credentials[t].target",
            ),
            (
                json!({"credentials": [{"name": "t", "secretRef": secret, "target": "candidate/proxy", "format": "%s%s"}]}),
                "credentials[t].format",
            ),
            (json!({"queries": [{"name": "q", "promql": "up{"}]}), "queries[q].promql"),
            (json!({"queries": [{"name": "q", "promql": "up", "range": "1h"}]}), "queries[q].step"),
            (query("up", "25h", "1m"), "queries[q].range"),
            (query("up", "1h", "100ms"), "queries[q].step"),
            (query("up", "1h", "1s"), "queries[q].step"),
            (query("up", "1h", "soon"), "queries[q].step"),
        ] {
            assert_eq!(read(grants.clone()), Err(field.into()), "{grants}");
        }
    }
}
