//! The only hands that write: server-side apply under one field manager, and a memory of what was written.
//!
//! A pass must not decide on a cache that is older than its own last write. So every write leaves behind which
//! object it touched and what came of it, and [`Writes::seen`] says when the caches have caught up.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kube::api::PatchParams;

use crate::model::names;

/// How long a pass waits for its own writes to show. Only what somebody else removed at once takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How an object is applied: its fields are ours, whoever has changed them.
///
/// A body is read once: unless it is told not to, the API reads it a second time, for warnings that nobody would see.
#[must_use]
pub fn applying() -> PatchParams {
    PatchParams::apply(names::FIELD_MANAGER).force().validation_ignore()
}

/// How a part of an object is written over. Likewise.
#[must_use]
pub fn merging() -> PatchParams {
    PatchParams::apply(names::FIELD_MANAGER).validation_ignore()
}

/// What a write left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// The object at this resource version.
    Version(u64),
    /// No object of this UID, or one that is terminating.
    Gone(String),
}

/// An object of one owner: kind and name.
pub type Object = (&'static str, String);

/// What was written for each owner and has not been seen in the caches yet.
#[derive(Debug, Default)]
pub struct Writes(Mutex<Unseen>);

/// By owner.
type Unseen = HashMap<String, HashMap<Object, (Left, Instant)>>;

impl Writes {
    /// Remembers a write made for `owner`.
    pub fn remember(&self, owner: &str, object: Object, left: Left) {
        self.lock().entry(owner.to_owned()).or_default().insert(object, (left, Instant::now()));
    }

    /// True once `cached` (resource version, UID and whether it is terminating, if it is cached at all) shows
    /// everything that was written for `owner`.
    pub fn seen(&self, owner: &str, cached: impl Fn(&Object) -> Option<(u64, String, bool)>) -> bool {
        self.seen_at(Instant::now(), owner, cached)
    }

    fn seen_at(&self, now: Instant, owner: &str, cached: impl Fn(&Object) -> Option<(u64, String, bool)>) -> bool {
        let mut writes = self.lock();
        let Some(pending) = writes.get_mut(owner) else {
            return true;
        };
        pending.retain(|_, (_, at)| now.saturating_duration_since(*at) < PATIENCE);
        pending.retain(|object, (left, _)| match (&*left, cached(object)) {
            (Left::Version(written), Some((version, ..))) => version < *written,
            (Left::Version(_), None) => true,
            (Left::Gone(uid), Some((_, cached_uid, terminating))) => *uid == cached_uid && !terminating,
            (Left::Gone(_), None) => false,
        });
        let caught_up = pending.is_empty();
        if caught_up {
            writes.remove(owner);
        }
        caught_up
    }

    /// The version at which an object of `owner` was written, as long as the caches may not show it.
    pub fn version(&self, owner: &str, object: &Object) -> Option<String> {
        match self.lock().get(owner)?.get(object)? {
            (Left::Version(version), _) => Some(version.to_string()),
            (Left::Gone(_), _) => None,
        }
    }

    /// What was written for an owner and has not been seen, as far as anybody asked.
    #[cfg(test)]
    pub(crate) fn unseen(&self, owner: &str) -> Vec<(Object, Left)> {
        let writes = self.lock();
        let pending = writes.get(owner).into_iter().flatten();
        pending.map(|(object, (left, _))| (object.clone(), left.clone())).collect()
    }

    /// Nothing more is waited for: the owner is gone.
    pub fn forget(&self, owner: &str) {
        self.lock().remove(owner);
    }

    fn lock(&self) -> MutexGuard<'_, Unseen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_waits_until_the_caches_show_its_own_writes() {
        let writes = Writes::default();
        let service: Object = ("Service", "live".into());
        assert!(writes.seen("owner", |_| None), "nothing was written");

        writes.remember("owner", service.clone(), Left::Version(7));
        assert_eq!(writes.version("owner", &service).as_deref(), Some("7"));
        assert!(!writes.seen("owner", |_| None));
        assert!(!writes.seen("owner", |_| Some((6, "a".into(), false))));
        assert!(writes.seen("owner", |_| Some((7, "a".into(), false))));
        assert_eq!(writes.version("owner", &service), None, "the caches show it");

        writes.remember("owner", service, Left::Gone("a".into()));
        assert!(!writes.seen("owner", |_| Some((9, "a".into(), false))));
        assert!(writes.seen("owner", |_| Some((9, "b".into(), false))), "another object of that name is not the one");
    }

    #[test]
    fn what_the_caches_never_show_is_waited_for_only_so_long() {
        let (writes, before) = (Writes::default(), Instant::now());
        writes.remember("owner", ("Service", "removed by somebody at once".into()), Left::Version(7));
        assert!(!writes.seen_at(before + PATIENCE - Duration::from_millis(1), "owner", |_| None));
        assert!(writes.seen_at(Instant::now() + PATIENCE, "owner", |_| None));
    }
}
