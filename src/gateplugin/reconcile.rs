//! One pass over a plugin of either kind.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Client, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        controller::Action,
        reflector::{ObjectRef, Store},
    },
};

use super::{
    Ceiling, Fetcher, Installed, Library, PluginObject, limits,
    source::{Admitted, Request},
    status::{self, Outcome},
};
use crate::{
    api::gateplugin::{ClusterSource, Trust},
    cluster::{
        self, Scope,
        backoff::{Backoff, jitter},
    },
    gate::{Presence, turns::Turns},
    model::{
        PluginKey,
        observed::Plugin,
        trial::{Digest, LoadError, Loaded},
    },
    telemetry::Metrics,
};

/// What every pass needs.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) scope: Scope,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) library: Arc<Library>,
    pub(super) installed: Installed,
    pub(super) ceiling: Ceiling,
    pub(super) turns: Turns,
    /// Names and versions only: a hundred components would fill the memory that trials are to have.
    pub(super) config_maps: Store<PartialObjectMeta<ConfigMap>>,
    pub(super) memory: Memory,
    pub(super) backoff: Backoff<PluginKey>,
    pub(super) metrics: Metrics,
}

/// Why a pass has to be made again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("failed to load the component")]
    Load(#[source] LoadError),
    #[error("failed to write the status")]
    Publish(#[source] kube::Error),
}

/// admit -> load -> status.
pub(super) async fn reconcile<K: PluginObject>(plugin: Arc<K>, ctx: Arc<Context>) -> Result<Action, Error> {
    let key = plugin.key();
    let host = *ctx.library.presence().borrow();
    let (outcome, again) = if plugin.trust().revoked {
        ctx.memory.forget(&key);
        (Outcome::Revoked, None)
    } else if host == Presence::Away {
        return Ok(Action::await_change()); // its return is told
    } else {
        match limits::limits(&plugin.limits(), &ctx.ceiling) {
            Err(error) => {
                // What ran before is let go: it must not be taken for what stands.
                ctx.memory.forget(&key);
                (Outcome::NotAllowed(error), None)
            }
            Ok(limits) => {
                ctx.installed.limit(key.clone(), limits);
                let asked = Asked::of(&*plugin, &ctx, host);
                match ctx.memory.recall(&key, &asked, Instant::now()) {
                    Some(known) => known,
                    None => install(&key, &*plugin, asked, &ctx).await?,
                }
            }
        }
    };
    // Others may run the plugin from here on, whether or not its status can be written.
    ctx.installed.set(key.clone(), outcome.state());

    let status = status::report(&*plugin, &outcome, Timestamp::now());
    let api = plugin.api(&ctx.client);
    if cluster::status::publish(&api, &*plugin, plugin.status(), &status).await.map_err(Error::Publish)? {
        ctx.metrics.wrote(K::KIND);
    }
    Ok(match again {
        Some(again) => Action::requeue(again.saturating_duration_since(Instant::now())),
        None => {
            ctx.backoff.succeeded(&key);
            Action::await_change()
        }
    })
}

/// Also says when to try again, if that may help.
async fn install<K: PluginObject>(
    key: &PluginKey,
    plugin: &K,
    asked: Asked,
    ctx: &Context,
) -> Result<(Outcome, Option<Instant>), Error> {
    let (home, source) = (plugin.home(&ctx.scope), plugin.source());
    let standing = ctx.memory.standing(key, plugin.trust(), &asked);
    match ctx.installed.get(key) {
        // What is no longer trusted, or not here, is not run from now on; what is new is on its way.
        None | Some(Plugin::Ready(_) | Plugin::Revoked) if standing.is_none() => {
            ctx.installed.set(key.clone(), Plugin::Loading);
        }
        // One that failed has failed until more is known: nobody is woken for a question.
        _ => {}
    }
    let resolved = resolved(plugin);
    let request = Request { home: &home, source: &source, trust: plugin.trust(), resolved: resolved.as_ref() };
    let mut held = None;
    let outcome = match ctx.fetcher.admit(request).await {
        Err(refusal) => Outcome::refused(refusal, standing),
        Ok(Admitted { component, digest, resolved, .. }) => {
            if standing.is_none() {
                ctx.installed.set(key.clone(), Plugin::Loading);
            }
            let (size, verified) = (component.len(), plugin.trust().verify.is_some());
            // What a registry took its time for is loaded in turn: a namespace that has much waits behind its own.
            let _turn = ctx.turns.take(&home).await;
            held = Some(ctx.installed.hold(&digest));
            match ctx.library.load(&digest, component).await {
                Ok(loaded) => Outcome::Loaded { loaded, resolved, verified },
                Err(error @ LoadError::Unavailable(_)) => return Err(Error::Load(error)),
                Err(error) => Outcome::NotLoaded { digest, size, resolved, verified, error },
            }
        }
    };
    let again = outcome.refusal().filter(|refusal| refusal.may_pass()).map(|refusal| {
        let wait = ctx.backoff.failed(key.clone(), jitter());
        tracing::warn!(kind = K::KIND, plugin = %key, %refusal, ?wait, "a plugin is fetched again");
        Instant::now() + wait
    });
    ctx.memory.keep(key.clone(), Remembered { asked, trust: plugin.trust().clone(), outcome: outcome.clone(), again });
    // From here on the plugin stands for what was loaded, and not for what it replaced.
    ctx.installed.set(key.clone(), outcome.state());
    drop(held);
    ctx.library.release(|digest| ctx.installed.uses(digest)).await;
    Ok((outcome, again))
}

/// The manifest that an image was found to mean, for the object as it is: a tag that moves moves nothing until somebody
/// changes the object.
fn resolved<K: PluginObject>(plugin: &K) -> Option<Digest> {
    let resolved = plugin.status()?.resolved.as_ref()?;
    (Some(resolved.generation) == plugin.meta().generation).then(|| Digest::parse(&resolved.manifest_digest))?
}

/// What came of the last pass over each plugin, so that only news is fetched.
#[derive(Default)]
pub(super) struct Memory(Mutex<HashMap<PluginKey, Remembered>>);

struct Remembered {
    asked: Asked,
    trust: Trust,
    outcome: Outcome,
    /// When to try again. Not before: every status that is written wakes the next pass.
    again: Option<Instant>,
}

impl Memory {
    fn recall(&self, key: &PluginKey, asked: &Asked, now: Instant) -> Option<(Outcome, Option<Instant>)> {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = memory.get(key).filter(|last| last.asked == *asked)?;
        let holds = last.again.is_none_or(|again| now < again);
        holds.then(|| (last.outcome.clone(), last.again))
    }

    /// What runs while something new is on its way: what was loaded last, if it is still what is trusted.
    fn standing(&self, key: &PluginKey, trust: &Trust, asked: &Asked) -> Option<Loaded> {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = memory.get(key)?;
        let same = last.trust == *trust && last.asked.host == asked.host && last.asked.uid == asked.uid;
        last.outcome.loaded().filter(|_| same).cloned()
    }

    fn keep(&self, key: PluginKey, remembered: Remembered) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, remembered);
    }

    fn forget(&self, key: &PluginKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Forgets what `exists` does not know.
    pub(super) fn retain(&self, exists: impl Fn(&PluginKey) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| exists(key));
    }
}

/// What an outcome depends on: the plugin's UID and generation, the ConfigMap's version, and who loads it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    uid: Option<String>,
    generation: Option<i64>,
    config_map: Option<String>,
    host: Presence,
}

impl Asked {
    /// Before anything is fetched: what changes meanwhile asks anew.
    fn of<K: PluginObject>(plugin: &K, ctx: &Context, host: Presence) -> Self {
        let config_map = match plugin.source() {
            ClusterSource::ConfigMap(source) => {
                let name = ObjectRef::new(&source.name).within(&plugin.home(&ctx.scope));
                ctx.config_maps.get(&name).and_then(|config_map| config_map.resource_version())
            }
            ClusterSource::Oci(_) | ClusterSource::Http(_) | ClusterSource::File(_) => None,
        };
        Self { uid: plugin.uid(), generation: plugin.meta().generation, config_map, host }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gateplugin::{Refusal, SignatureError},
        model::trial::Description,
    };
    use std::time::Duration;

    fn asked(generation: i64) -> Asked {
        Asked { uid: Some("uid".into()), generation: Some(generation), config_map: None, host: Presence::Here(1) }
    }

    fn loaded() -> Outcome {
        let description = Description {
            name: "x".into(),
            version: "1".into(),
            summary: String::new(),
            settings_schema: serde_json::json!({}),
        };
        let (digest, contract) = (Digest::of(b"x"), "sluice:gate@0.1.0".into());
        let loaded = Loaded { digest, size: 1, contract, imports: vec![], description };
        Outcome::Loaded { loaded, resolved: None, verified: false }
    }
    fn remembered(outcome: Outcome, again: Option<Instant>) -> Memory {
        let memory = Memory::default();
        let remembered = Remembered { asked: asked(1), trust: Trust::default(), outcome, again };
        memory.keep(PluginKey::of_cluster("smoke"), remembered);
        memory
    }

    #[test]
    fn what_was_asked_before_is_answered_from_memory_until_it_is_time_to_try_again() {
        let (key, now) = (PluginKey::of_cluster("smoke"), Instant::now());
        let memory = remembered(loaded(), None);
        assert_eq!(memory.recall(&key, &asked(1), now), Some((loaded(), None)));
        assert_eq!(memory.recall(&key, &asked(2), now), None);
        let refusal = Refusal::Signature { resolved: Digest::of(b"m"), error: SignatureError::NotSigned };
        let (refused, again) = (Outcome::Refused(refusal), now + Duration::from_secs(1));
        let memory = remembered(refused.clone(), Some(again));
        assert_eq!(memory.recall(&key, &asked(1), now), Some((refused, Some(again))));
        assert_eq!(memory.recall(&key, &asked(1), again), None);
    }

    #[test]
    fn what_stands_is_run_on_unless_other_bytes_are_trusted_or_the_host_went() {
        let (key, memory) = (PluginKey::of_cluster("smoke"), remembered(loaded(), None));
        let trust = Trust::default();
        assert!(memory.standing(&key, &trust, &asked(2)).is_some());
        let pinned = Trust { digest: Some(Digest::of(b"other").to_string()), ..Trust::default() };
        assert!(memory.standing(&key, &pinned, &asked(2)).is_none());
        assert!(memory.standing(&key, &trust, &Asked { host: Presence::Here(2), ..asked(2) }).is_none());
        assert!(memory.standing(&key, &trust, &Asked { uid: Some("namesake".into()), ..asked(1) }).is_none());
    }
}
