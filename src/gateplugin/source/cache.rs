//! Components that were accepted once, on disk: a registry that is down delays nobody who has been served before.
//!
//! A file is named by everything that was asked for: by whom, from where, which manifest, signed by whom. So it answers
//! only a question that was answered before, and a key that is trusted no longer finds nothing.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{LARGEST, Request};
use crate::model::trial::Digest;

/// Bytes of all files together: sixteen of the largest.
const CAPACITY: u64 = 512 << 20;

/// A folder that is the operator's own.
#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

/// The name of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(String);

impl Key {
    /// The question of a request whose image means `manifest`, or whose URL says itself what it means, where identities
    /// are verified against `root`.
    pub(super) fn of(request: &Request<'_>, manifest: Option<&Digest>, root: Option<&Digest>) -> Self {
        let Request { home, source, trust, resolved: _ } = request;
        let question = json!([home, source, trust.verify, manifest, root]);
        Self(Digest::of(question.to_string().as_bytes()).as_str().replace(':', "-"))
    }
}

impl Cache {
    /// The folder at `path`, made if it is not there.
    ///
    /// # Errors
    /// Where it cannot be made or written to.
    pub fn at(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let probe = path.join(".probe");
        fs::write(&probe, [])?;
        fs::remove_file(probe)?;
        Ok(Self(path.to_owned()))
    }

    /// What was kept, if it is still whole.
    pub(super) async fn get(&self, key: &Key) -> Option<(Bytes, Digest)> {
        let path = self.0.join(&key.0);
        let read = spawn_blocking(move || {
            let stored = fs::read(&path).ok()?;
            let (digest, component) = stored.split_at_checked(Digest::LENGTH)?;
            let actual = Digest::of(component);
            if actual.as_str().as_bytes() != digest {
                tracing::warn!(file = %path.display(), "a broken file of the plugin cache is removed");
                // It will be written anew.
                let _ = fs::remove_file(&path);
                return None;
            }
            Some((Bytes::from(stored).slice(Digest::LENGTH..), actual))
        });
        read.await.ok().flatten()
    }

    /// Keeps a component. Failing costs the next fetch, so it is only told.
    pub(super) async fn put(&self, key: &Key, digest: &Digest, component: Bytes) {
        let (folder, name, digest) = (self.0.clone(), key.0.clone(), digest.clone());
        let kept = spawn_blocking(move || {
            evict(&folder, CAPACITY - LARGEST as u64)?;
            let part = folder.join(format!("{name}.part"));
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
            io::Write::write_all(&mut file, digest.as_str().as_bytes())?;
            io::Write::write_all(&mut file, &component)?;
            // Renamed last: a file of the final name is a whole one.
            fs::rename(part, folder.join(name))
        });
        match kept.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a component cannot be kept in the plugin cache"),
            Err(error) => tracing::warn!(%error, "a component was not kept in the plugin cache"),
        }
    }
}

/// Removes the oldest files until `capacity` is enough for the rest.
fn evict(folder: &Path, capacity: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        files.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), entry.path()));
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
    for (_, length, path) in files {
        if total <= capacity {
            break;
        }
        fs::remove_file(path)?;
        total -= length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::gateplugin::{ClusterSource, HttpSource, Trust, Verify};

    fn source() -> ClusterSource {
        ClusterSource::Http(HttpSource { url: "https://w.example/gate.wasm".into(), sha256: "0".repeat(64) })
    }

    fn key(home: &str, keys: &[&str]) -> Key {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        let trust = Trust { verify: Some(Verify { keys, ..Verify::default() }), ..Trust::default() };
        Key::of(&Request { home, source: &source(), trust: &trust, resolved: None }, None, None)
    }

    #[test]
    fn another_namespace_and_another_trust_ask_another_question() {
        assert_eq!(key("a", &["k"]), key("a", &["k"]));
        assert_ne!(key("a", &["k"]), key("b", &["k"]), "what one may pull is not for everybody");
        assert_ne!(key("a", &["k"]), key("a", &["l"]));
    }

    #[tokio::test]
    async fn what_is_kept_is_found_until_it_is_broken() {
        let folder = tempfile::tempdir().expect("a folder");
        let (cache, key) = (Cache::at(folder.path()).expect("a cache"), key("a", &[]));
        assert_eq!(cache.get(&key).await, None);
        let digest = Digest::of(b"component");
        cache.put(&key, &digest, Bytes::from_static(b"component")).await;
        assert_eq!(cache.get(&key).await, Some((Bytes::from_static(b"component"), digest)));

        let file = folder.path().join(&key.0);
        let mut stored = fs::read(&file).expect("a file");
        *stored.last_mut().expect("bytes") ^= 1;
        fs::write(&file, stored).expect("written");
        assert_eq!(cache.get(&key).await, None);
        assert!(!file.exists());
    }

    #[test]
    fn the_oldest_goes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        for (age, name) in [(3, "old"), (2, "middle"), (1, "new")] {
            let file = fs::File::create(folder.path().join(name)).expect("a file");
            file.set_len(10).expect("a length");
            let modified = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100 - age);
            file.set_modified(modified).expect("a time");
        }
        evict(folder.path(), 20).expect("room");
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("a file").file_name()).collect();
        left.sort();
        assert_eq!(left, ["middle", "new"]);
    }
}
