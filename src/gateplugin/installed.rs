//! What this process can run.
//!
//! `status.conditions[Ready]` is a memory of some process; the gate host of this one starts empty. So everybody who
//! needs a plugin asks here.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::{Stream, stream};
use kube::{Resource, ResourceExt};
use tokio::sync::watch;

use crate::model::trial::Digest;

/// The name of a plugin object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Its name in there.
    pub name: String,
}

impl Key {
    /// The plugin `name` of `namespace`.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub(super) fn of<K: Resource>(object: &K) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// Whether a plugin can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstalledState {
    /// Not known yet: wait for the next change. Also the answer for everything until the plugins were listed.
    Loading,
    /// No such object.
    Absent,
    /// It cannot be run.
    Failed {
        /// The reason of its condition `Ready`.
        reason: String,
        /// One sentence for people.
        message: String,
    },
    /// The gate host holds it.
    Ready {
        /// The bytes it stands for now.
        digest: Digest,
    },
}

/// The plugins of all scopes and their states. Clones share them.
#[derive(Clone, Debug)]
pub struct Installed(Arc<watch::Sender<Table>>);

#[derive(Debug)]
struct Table {
    unlisted_scopes: usize,
    plugins: BTreeMap<Key, InstalledState>,
}

impl Installed {
    /// Knows nothing until each of `scopes` scopes was listed once.
    #[must_use]
    pub fn awaiting(scopes: usize) -> Self {
        Self(Arc::new(watch::Sender::new(Table { unlisted_scopes: scopes, plugins: BTreeMap::new() })))
    }

    /// Whether `plugin` can be run now.
    #[must_use]
    pub fn get(&self, plugin: &Key) -> InstalledState {
        let table = self.0.borrow();
        match table.plugins.get(plugin) {
            Some(state) => state.clone(),
            None if table.unlisted_scopes > 0 => InstalledState::Loading,
            None => InstalledState::Absent,
        }
    }

    /// Yields after every change; changes that nobody took yet become one.
    pub fn changes(&self) -> impl Stream<Item = ()> + Send + 'static {
        stream::unfold(self.0.subscribe(), async |mut table| {
            table.changed().await.ok()?;
            Some(((), table))
        })
    }

    /// True if some plugin stands for `digest`.
    #[must_use]
    pub fn uses(&self, digest: &Digest) -> bool {
        self.0
            .borrow()
            .plugins
            .values()
            .any(|state| matches!(state, InstalledState::Ready { digest: used } if used == digest))
    }

    /// One scope was listed and holds `plugins`.
    pub(super) fn listed(&self, plugins: impl IntoIterator<Item = Key>) {
        self.0.send_modify(|table| {
            table.unlisted_scopes = table.unlisted_scopes.saturating_sub(1);
            for plugin in plugins {
                table.plugins.entry(plugin).or_insert(InstalledState::Loading);
            }
        });
    }

    pub(super) fn set(&self, plugin: Key, state: InstalledState) {
        self.0.send_if_modified(|table| {
            let changed = table.plugins.get(&plugin) != Some(&state);
            if changed {
                table.plugins.insert(plugin, state);
            }
            changed
        });
    }

    /// Keeps those of one scope's plugins that `exists` knows; plugins `elsewhere` are not asked about.
    pub(super) fn retain(&self, elsewhere: impl Fn(&Key) -> bool, exists: impl Fn(&Key) -> bool) {
        self.0.send_if_modified(|table| {
            let before = table.plugins.len();
            table.plugins.retain(|plugin, _| elsewhere(plugin) || exists(plugin));
            table.plugins.len() != before
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, StreamExt};

    fn ready(digest: &str) -> InstalledState {
        InstalledState::Ready { digest: Digest::from(digest.to_owned()) }
    }

    #[test]
    fn nothing_is_called_absent_before_every_scope_was_listed() {
        let (installed, plugin) = (Installed::awaiting(2), Key::new("a", "smoke"));
        installed.listed([]);
        assert_eq!(installed.get(&plugin), InstalledState::Loading);
        installed.listed([Key::new("b", "smoke")]);
        assert_eq!(installed.get(&plugin), InstalledState::Absent);
        assert_eq!(installed.get(&Key::new("b", "smoke")), InstalledState::Loading);
    }

    #[test]
    fn subscribers_wake_for_changes_and_for_nothing_else() {
        let (installed, plugin) = (Installed::awaiting(0), Key::new("a", "smoke"));
        let mut changes = Box::pin(installed.changes());
        assert!(changes.next().now_or_never().is_none());
        installed.set(plugin.clone(), ready("sha256:1"));
        installed.set(plugin.clone(), ready("sha256:2"));
        assert!(changes.next().now_or_never().is_some());
        assert!(changes.next().now_or_never().is_none(), "two changes that nobody took are one");
        installed.set(plugin.clone(), ready("sha256:2"));
        assert!(changes.next().now_or_never().is_none(), "nothing changed");
        installed.retain(|_| false, |_| false);
        assert!(changes.next().now_or_never().is_some());
        assert_eq!(installed.get(&plugin), InstalledState::Absent);
    }

    #[test]
    fn a_scope_forgets_only_its_own_plugins() {
        let installed = Installed::awaiting(0);
        installed.set(Key::new("a", "smoke"), ready("sha256:1"));
        installed.set(Key::new("b", "smoke"), ready("sha256:2"));
        installed.retain(|plugin| plugin.namespace != "a", |_| false);
        assert!(!installed.uses(&Digest::from("sha256:1".to_owned())));
        assert!(installed.uses(&Digest::from("sha256:2".to_owned())));
    }
}
