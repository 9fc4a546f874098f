//! What this process can run.
//!
//! `status.conditions[Ready]` is a memory of some process; the gate host of this one starts empty. So everybody who
//! needs a plugin asks here.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use futures::{Stream, stream};
use tokio::sync::watch;

use crate::model::{
    PluginKey,
    observed::Plugin,
    trial::{Digest, Limits},
};

/// The plugins of all scopes and their states. Clones share them.
#[derive(Clone, Debug)]
pub struct Installed(Arc<watch::Sender<Table>>);

#[derive(Debug)]
struct Table {
    unlisted_scopes: usize,
    plugins: BTreeMap<PluginKey, Plugin>,
    /// What upgrades under way were begun with, by DataPlane.
    pins: BTreeMap<String, BTreeSet<Digest>>,
    /// How often each of these is held by a pass that is under way.
    held: BTreeMap<Digest, usize>,
    limits: BTreeMap<PluginKey, Limits>,
}

/// A pass's hold on bytes that it was told of and may name: nobody lets them go before this is dropped.
#[derive(Debug)]
pub struct Held {
    by: Installed,
    digests: BTreeSet<Digest>,
}

impl Installed {
    /// Knows nothing until each of `scopes` scopes was listed once.
    #[must_use]
    pub fn awaiting(scopes: usize) -> Self {
        Self(Arc::new(watch::Sender::new(Table {
            unlisted_scopes: scopes,
            plugins: BTreeMap::new(),
            pins: BTreeMap::new(),
            held: BTreeMap::new(),
            limits: BTreeMap::new(),
        })))
    }

    /// Whether `plugin` can be run now; `None` where there is no such object. Until the plugins were listed, every
    /// one is still loading.
    #[must_use]
    pub fn get(&self, plugin: &PluginKey) -> Option<Plugin> {
        self.0.borrow().get(plugin)
    }

    /// The same for each of `plugins` that exists, for those who will have them run: what is ready stays so while it is
    /// held, whatever replaces it meanwhile.
    pub fn lend(&self, plugins: impl IntoIterator<Item = PluginKey>) -> (BTreeMap<PluginKey, Plugin>, Held) {
        let mut held = Held { by: self.clone(), digests: BTreeSet::new() };
        let mut lent = BTreeMap::new();
        // Nobody waits for a hold.
        self.0.send_if_modified(|table| {
            lent.extend(plugins.into_iter().filter_map(|plugin| table.get(&plugin).map(|state| (plugin, state))));
            let ready = lent.values().filter_map(|state| match state {
                Plugin::Ready(digest) => Some(digest.clone()),
                Plugin::Loading | Plugin::Failed { .. } | Plugin::Revoked => None,
            });
            held.digests.extend(ready);
            table.hold(&held.digests);
            false
        });
        (lent, held)
    }

    /// For who loads `digest` and has yet to say which plugin it is.
    pub(super) fn hold(&self, digest: &Digest) -> Held {
        let held = Held { by: self.clone(), digests: [digest.clone()].into() };
        self.0.send_if_modified(|table| {
            table.hold(&held.digests);
            false
        });
        held
    }

    /// What a trial of `plugin` may use up.
    #[must_use]
    pub fn limits(&self, plugin: &PluginKey) -> Limits {
        self.0.borrow().limits.get(plugin).copied().unwrap_or_default()
    }

    /// Waits until every scope was listed.
    pub async fn listed_all(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|table| table.unlisted_scopes == 0).await;
    }

    /// Yields the plugins that changed since it yielded last.
    pub fn changes(&self) -> impl Stream<Item = BTreeSet<PluginKey>> + Send + 'static {
        let table = self.0.subscribe();
        let seen = table.borrow().plugins.clone();
        stream::unfold((table, seen), async |(mut table, seen)| {
            table.changed().await.ok()?;
            let plugins = table.borrow_and_update().plugins.clone();
            let differs = |key: &&PluginKey| plugins.get(key) != seen.get(key);
            let changed = plugins.keys().chain(seen.keys()).filter(differs).cloned().collect();
            Some((changed, (table, plugins)))
        })
    }

    /// True if some plugin stands for `digest`, an upgrade under way was begun with it, or a pass may yet name it.
    #[must_use]
    pub fn uses(&self, digest: &Digest) -> bool {
        let table = self.0.borrow();
        table.plugins.values().any(|state| matches!(state, Plugin::Ready(used) if used == digest))
            || table.pins.values().any(|pins| pins.contains(digest))
            || table.held.contains_key(digest)
    }

    /// The bytes that judge an upgrade of `dataplane`, whatever is installed meanwhile; none when it has ended.
    pub fn pin(&self, dataplane: &str, digests: BTreeSet<Digest>) {
        // Nobody waits for a pin.
        self.0.send_if_modified(|table| {
            if digests.is_empty() {
                table.pins.remove(dataplane);
            } else {
                table.pins.insert(dataplane.to_owned(), digests);
            }
            false
        });
    }

    /// One scope was listed and holds `plugins`.
    pub(super) fn listed(&self, plugins: impl IntoIterator<Item = PluginKey>) {
        self.0.send_modify(|table| {
            table.unlisted_scopes = table.unlisted_scopes.saturating_sub(1);
            for plugin in plugins {
                table.plugins.entry(plugin).or_insert(Plugin::Loading);
            }
        });
    }

    pub(crate) fn set(&self, plugin: PluginKey, state: Plugin) {
        self.0.send_if_modified(|table| {
            let changed = table.plugins.get(&plugin) != Some(&state);
            if changed {
                table.plugins.insert(plugin, state);
            }
            changed
        });
    }

    /// Trials of `plugin` get these from now on. Wakes nobody: those who wait, wait for it to be ready.
    pub(super) fn limit(&self, plugin: PluginKey, limits: Limits) {
        self.0.send_if_modified(|table| {
            table.limits.insert(plugin, limits);
            false
        });
    }

    /// The gate host went, and everything with it: what one scope had ready is loading again.
    pub(super) fn reload(&self, elsewhere: impl Fn(&PluginKey) -> bool) {
        self.0.send_if_modified(|table| {
            let mine = table.plugins.iter_mut().filter(|(plugin, _)| !elsewhere(plugin)).map(|(_, state)| state);
            let ready = mine.filter(|state| matches!(state, Plugin::Ready(_)));
            ready.map(|state| *state = Plugin::Loading).count() > 0
        });
    }

    /// Keeps those of one scope's plugins that `exists` knows; plugins `elsewhere` are not asked about.
    pub(super) fn retain(&self, elsewhere: impl Fn(&PluginKey) -> bool, exists: impl Fn(&PluginKey) -> bool) {
        self.0.send_if_modified(|table| {
            let before = table.plugins.len();
            table.plugins.retain(|plugin, _| elsewhere(plugin) || exists(plugin));
            table.limits.retain(|plugin, _| elsewhere(plugin) || exists(plugin));
            table.plugins.len() != before
        });
    }
}

impl Table {
    fn get(&self, plugin: &PluginKey) -> Option<Plugin> {
        self.plugins.get(plugin).cloned().or((self.unlisted_scopes > 0).then_some(Plugin::Loading))
    }

    fn hold(&mut self, digests: &BTreeSet<Digest>) {
        for digest in digests {
            *self.held.entry(digest.clone()).or_default() += 1;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.by.0.send_if_modified(|table| {
            for digest in &self.digests {
                if let Entry::Occupied(mut holds) = table.held.entry(digest.clone()) {
                    *holds.get_mut() -= 1;
                    if *holds.get() == 0 {
                        holds.remove();
                    }
                }
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, StreamExt};

    fn ready(digest: &str) -> Plugin {
        Plugin::Ready(Digest::from(digest.to_owned()))
    }

    #[test]
    fn nothing_is_called_absent_before_every_scope_was_listed() {
        let (installed, plugin) = (Installed::awaiting(2), PluginKey::of_namespace("a", "smoke"));
        installed.listed([]);
        assert_eq!(installed.get(&plugin), Some(Plugin::Loading));
        installed.listed([PluginKey::of_namespace("b", "smoke")]);
        assert_eq!(installed.get(&plugin), None);
        assert_eq!(installed.get(&PluginKey::of_namespace("b", "smoke")), Some(Plugin::Loading));
    }

    #[test]
    fn subscribers_learn_which_plugins_changed_and_wake_for_nothing_else() {
        let (installed, plugin) = (Installed::awaiting(0), PluginKey::of_namespace("a", "smoke"));
        let mut changes = Box::pin(installed.changes());
        let mut next = || changes.next().now_or_never().flatten();
        assert_eq!(next(), None);
        installed.set(plugin.clone(), ready("sha256:1"));
        installed.set(plugin.clone(), ready("sha256:2"));
        assert_eq!(next(), Some([plugin.clone()].into()));
        assert_eq!(next(), None, "two changes that nobody took are one");
        installed.set(plugin.clone(), ready("sha256:2"));
        assert_eq!(next(), None, "nothing changed");
        installed.retain(|_| false, |_| false);
        assert_eq!(next(), Some([plugin.clone()].into()));
        assert_eq!(installed.get(&plugin), None);
    }

    #[test]
    fn what_a_lost_host_had_ready_is_loading_again_and_what_failed_has_failed() {
        let installed = Installed::awaiting(0);
        let failed = Plugin::Failed { reason: "Empty".into(), message: String::new() };
        let states = [("a", ready("sha256:1")), ("b", failed.clone()), ("elsewhere", ready("sha256:2"))];
        for (namespace, state) in states {
            installed.set(PluginKey::of_namespace(namespace, "smoke"), state);
        }
        installed.reload(|plugin| plugin.namespace.as_deref() == Some("elsewhere"));
        let now = ["a", "b", "elsewhere"].map(|namespace| installed.get(&PluginKey::of_namespace(namespace, "smoke")));
        assert_eq!(now, [Some(Plugin::Loading), Some(failed), Some(ready("sha256:2"))]);
    }

    #[test]
    fn what_an_upgrade_was_begun_with_is_used_until_it_has_ended() {
        let (installed, digest) = (Installed::awaiting(0), Digest::from("sha256:1".to_owned()));
        assert!(!installed.uses(&digest));
        installed.pin("a/dp", [digest.clone()].into());
        assert!(installed.uses(&digest));
        installed.pin("a/dp", BTreeSet::new());
        assert!(!installed.uses(&digest));
    }

    #[test]
    fn what_a_pass_was_told_of_is_used_until_the_last_of_them_has_ended() {
        let (installed, plugin) = (Installed::awaiting(0), PluginKey::of_namespace("a", "smoke"));
        let [first, second] = ["sha256:1", "sha256:2"].map(|digest| Digest::from(digest.to_owned()));
        installed.set(plugin.clone(), ready("sha256:1"));
        let absent = PluginKey::of_namespace("a", "absent");
        let (lent, one) = installed.lend([plugin.clone(), absent.clone()]);
        assert_eq!(lent, [(plugin.clone(), ready("sha256:1"))].into());
        let (_, other) = installed.lend([plugin.clone()]);
        installed.set(plugin, ready("sha256:2"));
        drop(one);
        assert!(installed.uses(&first) && installed.uses(&second));
        drop(other);
        assert!(!installed.uses(&first) && installed.uses(&second));
        assert!(Installed::awaiting(1).lend([absent]).0.values().all(|state| *state == Plugin::Loading));
    }

    #[test]
    fn what_is_loaded_is_used_before_a_plugin_stands_for_it() {
        let (installed, digest) = (Installed::awaiting(0), Digest::from("sha256:1".to_owned()));
        let held = installed.hold(&digest);
        assert!(installed.uses(&digest));
        drop(held);
        assert!(!installed.uses(&digest));
    }

    #[test]
    fn limits_are_those_of_the_plugin_until_it_is_forgotten() {
        let (installed, plugin) = (Installed::awaiting(0), PluginKey::of_namespace("a", "smoke"));
        let limits = Limits { requests: 1, ..Limits::default() };
        installed.set(plugin.clone(), ready("sha256:1"));
        installed.limit(plugin.clone(), limits);
        assert_eq!(
            (installed.limits(&plugin), installed.limits(&PluginKey::of_namespace("b", "smoke"))),
            (limits, Limits::default())
        );
        installed.retain(|_| false, |_| false);
        assert_eq!(installed.limits(&plugin), Limits::default());
    }

    #[test]
    fn a_scope_forgets_only_its_own_plugins() {
        let installed = Installed::awaiting(0);
        installed.set(PluginKey::of_namespace("a", "smoke"), ready("sha256:1"));
        installed.set(PluginKey::of_namespace("b", "smoke"), ready("sha256:2"));
        installed.retain(|plugin| plugin.namespace.as_deref() != Some("a"), |_| false);
        assert!(!installed.uses(&Digest::from("sha256:1".to_owned())));
        assert!(installed.uses(&Digest::from("sha256:2".to_owned())));
    }
}
