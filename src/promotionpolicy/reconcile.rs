//! One pass over a policy.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Client, ResourceExt, runtime::controller::Action};

use super::{
    PolicyObject,
    check::{self, Checked},
    status,
};
use crate::{
    api::promotionpolicy::PluginRef,
    cluster::{self, backoff::Backoff},
    gate::GateHost,
    gateplugin::Installed,
    model::grants::Ceilings,
    telemetry::Metrics,
};

/// A plugin that could not judge settings is asked again, in case it was short of time or memory.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What every pass needs.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) host: Arc<dyn GateHost>,
    pub(super) installed: Installed,
    pub(super) ceilings: Ceilings,
    pub(super) backoff: Backoff<(String, String)>,
    pub(super) metrics: Metrics,
}

/// Why a pass has to be made again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("failed to write the status")]
    Publish(#[source] kube::Error),
}

/// check -> ask the plugins -> status.
pub(super) async fn reconcile<K: PolicyObject>(policy: Arc<K>, ctx: Arc<Context>) -> Result<Action, Error> {
    let (namespace, name) = name_of(&*policy);
    let plugins = policy.rules().gates.iter().map(|gate| gate.plugin_ref.key(&namespace));
    // Held until they have answered, whatever replaces them meanwhile.
    let (plugins, _held) = ctx.installed.lend(plugins);
    let installed = |plugin: &PluginRef| plugins.get(&plugin.key(&namespace)).cloned();
    let Checked::Looked { mut findings, questions } = check::look(&*policy, &ctx.ceilings, installed) else {
        return Ok(Action::await_change());
    };
    let mut unanswered = false;
    for question in questions {
        let answer = ctx.host.validate(&question.digest, &question.gate.settings).await;
        unanswered |= answer.is_err();
        findings.extend(check::answered(question.gate, answer));
    }

    let status = status::report(&*policy, &findings, Timestamp::now());
    let api = policy.api(&ctx.client);
    if cluster::status::publish(&api, &*policy, policy.status(), &status).await.map_err(Error::Publish)? {
        ctx.metrics.wrote(K::KIND);
    }
    ctx.backoff.succeeded(&(namespace, name));
    Ok(if unanswered { Action::requeue(ASK_AGAIN) } else { Action::await_change() })
}

pub(super) fn name_of<K: PolicyObject>(policy: &K) -> (String, String) {
    (policy.namespace().unwrap_or_default(), policy.name_any())
}
