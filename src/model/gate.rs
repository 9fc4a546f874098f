//! One gate of a policy, read once for the DataPlane that it judges.

use std::time::Duration;

use serde_json::Value;

use super::{
    PluginKey, duration,
    grants::{Ceilings, Granted},
    names,
    trial::Moment,
};
use crate::api::promotionpolicy::{self, Enforcement, Lack, PluginKind};

/// What the names of the cluster's policies begin with in evidence. No policy of a namespace has a `/` in its name, so the
/// two kinds cannot meet.
pub const OF_CLUSTER: &str = "cluster/";

/// One gate, ready to be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// `<policy>/<gate>`.
    pub name: String,
    /// Its policy, as in the name.
    pub policy: String,
    /// The plugin that judges.
    pub plugin: PluginKey,
    /// What the plugin is told.
    pub settings: Value,
    /// What it may do beside judging.
    pub grants: Granted,
    /// When it judges.
    pub when: Moment,
    /// Wall time of one trial.
    pub timeout: Duration,
    /// Trials in all, for errors that may go away.
    pub max_attempts: i32,
    /// Time between two attempts.
    pub retry_backoff: Duration,
    /// Time for all trials together.
    pub deadline: Duration,
    /// Whether it is obeyed.
    pub enforcement: Enforcement,
    /// What follows where it has no knowledge.
    pub on_error: Lack,
    /// What follows where it could not tell.
    pub on_inconclusive: Lack,
    /// How long a pass stands before it is asked for again.
    pub recheck_interval: Option<Duration>,
    /// The entry itself.
    pub entry: promotionpolicy::Gate,
    /// Its hash: evidence holds for exactly this entry.
    pub hash: String,
    /// What is wrong with the entry itself, if anything: it then cannot run.
    pub problem: Option<String>,
}

impl Gate {
    /// An entry of a policy, for a DataPlane of `namespace`: there are the objects that it names, whoever wrote it.
    #[must_use]
    pub fn of(policy: &str, entry: &promotionpolicy::Gate, namespace: &str, ceilings: &Ceilings) -> Self {
        let mut problem = None;
        if policy.starts_with(OF_CLUSTER) && entry.plugin_ref.kind == PluginKind::GatePlugin {
            // The namespace could put whatever it likes in its place.
            problem = Some(format!("spec.gates[{}].pluginRef.kind has to be ClusterGatePlugin", entry.name));
        }
        let granted = entry.grants.as_ref().map(|grants| grants.read(namespace, ceilings));
        let grants = granted.unwrap_or_else(|| Ok(Granted::default())).unwrap_or_else(|excess| {
            problem.get_or_insert(format!("spec.gates[{}].grants.{}: {}", entry.name, excess.field, excess.message));
            Granted::default()
        });
        let mut span = |field: &str, text: &str| {
            duration::parse(text).unwrap_or_else(|error| {
                problem.get_or_insert(format!("spec.gates[{}].{field}: {error}", entry.name));
                Duration::ZERO
            })
        };
        let (timeout, retry_backoff, deadline) = (
            span("timeout", &entry.timeout),
            span("retryBackoff", &entry.retry_backoff),
            span("deadline", &entry.deadline),
        );
        let recheck_interval = entry.recheck_interval.as_ref().map(|text| span("recheckInterval", text));
        Self {
            name: format!("{policy}/{}", entry.name),
            policy: policy.to_owned(),
            plugin: entry.plugin_ref.key(namespace),
            settings: entry.settings.clone(),
            grants,
            when: entry.when,
            timeout,
            max_attempts: entry.max_attempts,
            retry_backoff,
            deadline,
            enforcement: entry.enforcement,
            on_error: entry.on_error,
            on_inconclusive: entry.on_inconclusive,
            // Nobody is awaited any more.
            recheck_interval: recheck_interval.filter(|_| entry.when == Moment::BeforePromotion),
            entry: entry.clone(),
            hash: names::hash(&[&serde_json::json!(entry).to_string()], 16),
            problem,
        }
    }
}
