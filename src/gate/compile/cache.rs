//! Compiled components on disk: each one authenticated, all of them within a number of bytes.
//!
//! A file is an artifact and, behind it, a MAC over its name and the artifact. The name says of which component, engine
//! and machine it is, so a file that is put under another name is refused as one that was changed. Whoever can write
//! what is mapped can run code here; so the folder is ours alone, and what is mapped is the very file that was read.

use std::{
    collections::hash_map::DefaultHasher,
    fs::{self, DirBuilder, File, OpenOptions},
    hash::{Hash as _, Hasher as _},
    io::{self, Read, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use ring::{
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use rustix::fs::OFlags;
use tempfile::{NamedTempFile, TempDir};
use wasmtime::{Engine, component::Component};

use crate::model::trial::Digest;

/// Bytes of a MAC, and the fewest of a key.
const MAC: usize = 32;

/// How a file of ours ends.
const EXTENSION: &str = "cwasm";

/// How a file begins that somebody still writes.
const UNFINISHED: &str = "unfinished-";

/// Only the owner may look into the folder.
const PRIVATE: u32 = 0o700;

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The folder cannot be had.
    #[error("{} cannot be used: {cause}", folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Somebody else could change what is in it.
    #[error("{} belongs to somebody else or is no folder", .0.display())]
    NotOurs(PathBuf),
    /// The key cannot be read.
    #[error("the key {} cannot be read: {cause}", file.display())]
    KeyFile {
        /// Which.
        file: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A key that can be guessed.
    #[error("the key {} has {bytes} bytes, at least {MAC} are needed", file.display())]
    ShortKey {
        /// Which.
        file: PathBuf,
        /// Its bytes.
        bytes: usize,
    },
    /// The machine has no random numbers.
    #[error("no key can be made: this machine gives no random numbers")]
    NoRandomness,
}

/// What artifacts are authenticated with.
#[derive(Debug)]
pub struct Key(hmac::Key);

impl Key {
    /// A key of this process: the next one knows none of its artifacts.
    ///
    /// # Errors
    /// Where there are no random numbers.
    pub fn random() -> Result<Self, CacheError> {
        let mut bytes = [0; MAC];
        SystemRandom::new().fill(&mut bytes).map_err(|_| CacheError::NoRandomness)?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// The key in `file`, all of its bytes.
    ///
    /// # Errors
    /// Where it cannot be read or is shorter than 32 bytes.
    pub fn read(file: &Path) -> Result<Self, CacheError> {
        let bytes = fs::read(file).map_err(|cause| CacheError::KeyFile { file: file.to_owned(), cause })?;
        if bytes.len() < MAC {
            return Err(CacheError::ShortKey { file: file.to_owned(), bytes: bytes.len() });
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }
}

/// Artifacts by digest.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    key: Key,
    /// Bytes of all files together.
    bound: u64,
    /// Removes the folder with the cache.
    _temporary: Option<TempDir>,
}

impl Cache {
    /// The artifacts in a folder inside of `parent`, made if it is not there, up to `bound` bytes. (Inside of it,
    /// because a volume is rarely ours alone.)
    ///
    /// # Errors
    /// Where the folder cannot be made ours alone.
    pub fn open(parent: &Path, key: Key, bound: u64) -> Result<Self, CacheError> {
        let folder = parent.join("artifacts");
        let failed = |cause| CacheError::Folder { folder: folder.clone(), cause };
        match DirBuilder::new().mode(PRIVATE).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let found = fs::symlink_metadata(&folder).map_err(failed)?;
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
            return Err(CacheError::NotOurs(folder));
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(PRIVATE)).map_err(failed)?;
        let cache = Self { key, bound, folder: folder.clone(), _temporary: None };
        // Left behind by a process that was killed while it compiled.
        let unfinished = |path: &PathBuf| path.extension().is_none_or(|extension| extension != EXTENSION);
        for path in cache.files().map_err(failed)?.into_iter().map(|(_, _, path)| path).filter(unfinished) {
            fs::remove_file(path).map_err(failed)?;
        }
        Ok(cache)
    }

    /// A cache that goes with this process, in the folder for temporary files.
    ///
    /// # Errors
    /// Where there is no such folder.
    pub fn temporary(bound: u64) -> Result<Self, CacheError> {
        let failed = |cause| CacheError::Folder { folder: std::env::temp_dir(), cause };
        let temporary = tempfile::Builder::new().prefix("sluice-").tempdir().map_err(failed)?;
        let cache = Self::open(temporary.path(), Key::random()?, bound)?;
        Ok(Self { _temporary: Some(temporary), ..cache })
    }

    /// The artifact of `digest`, if there is one that nobody changed. One that was is deleted.
    pub(super) fn get(&self, digest: &Digest, engine: &Engine) -> io::Result<Option<Artifact>> {
        let path = self.path(digest, engine);
        let opened = OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                tracing::warn!(%digest, %error, "a compiled plugin cannot be read: it is compiled again");
                self.remove(digest, engine)?;
                return Ok(None);
            }
        };
        if self.authentic(&path, &file)? {
            // Who is used goes last.
            file.set_modified(SystemTime::now())?;
            return Ok(Some(Artifact(file)));
        }
        tracing::warn!(%digest, "a compiled plugin was changed or is another key's: it is compiled again");
        self.remove(digest, engine)?;
        Ok(None)
    }

    /// A file to write an artifact to. It goes by itself unless it is kept.
    pub(super) fn unfinished(&self) -> io::Result<NamedTempFile> {
        let mode = fs::Permissions::from_mode(0o400);
        tempfile::Builder::new().prefix(UNFINISHED).permissions(mode).tempfile_in(&self.folder)
    }

    /// Keeps what was written to `unfinished` as the artifact of `digest`, and drops what was not used for longest
    /// while there is too much: this very one too, which is used all the same.
    pub(super) fn keep(&self, digest: &Digest, engine: &Engine, unfinished: NamedTempFile) -> io::Result<Artifact> {
        let path = self.path(digest, engine);
        let mac = self.mac(&path, &mut File::open(unfinished.path())?)?;
        let mut written = unfinished.as_file();
        io::Seek::seek(&mut written, io::SeekFrom::End(0))?;
        written.write_all(mac.as_ref())?;
        let artifact = File::open(unfinished.path())?;
        unfinished.persist(&path).map_err(|error| error.error)?;
        self.evict()?;
        Ok(Artifact(artifact))
    }

    pub(super) fn remove(&self, digest: &Digest, engine: &Engine) -> io::Result<()> {
        fs::remove_file(self.path(digest, engine))
    }

    /// Of which component, for which engine and machine. The engine's own check knows only its major version, and a
    /// patch may mend what an artifact has wrong.
    fn path(&self, digest: &Digest, engine: &Engine) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let digest = digest.as_str().replace(':', "-");
        self.folder.join(format!("{digest}-{}-{:016x}.{EXTENSION}", std::env::consts::ARCH, hasher.finish()))
    }

    fn authentic(&self, path: &Path, file: &File) -> io::Result<bool> {
        let Some(size) = file.metadata()?.len().checked_sub(MAC as u64) else { return Ok(false) };
        let mut reader = file;
        let mac = self.mac(path, &mut (&mut reader).take(size))?;
        let mut claimed = Vec::new();
        reader.read_to_end(&mut claimed)?;
        // Neither the key nor a right MAC is in the hands of who could measure this.
        Ok(mac.as_ref() == claimed)
    }

    fn mac(&self, path: &Path, content: &mut impl Read) -> io::Result<hmac::Tag> {
        let mut context = hmac::Context::with_key(&self.key.0);
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        // Names have no zero: where one ends, the content begins.
        context.update(name);
        context.update(&[0]);
        io::copy(content, &mut Updates(&mut context))?;
        Ok(context.sign())
    }

    fn evict(&self) -> io::Result<()> {
        let mut files = self.files()?;
        files.sort_unstable();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            if total <= self.bound {
                break;
            }
            fs::remove_file(path)?;
            total -= size;
        }
        Ok(())
    }

    /// When each file was last used, its bytes and its path.
    fn files(&self) -> io::Result<Vec<(SystemTime, u64, PathBuf)>> {
        let entries = fs::read_dir(&self.folder)?;
        let file = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            let metadata = entry.metadata()?;
            Ok((metadata.modified()?, metadata.len(), entry.path()))
        };
        entries.map(file).collect()
    }
}

/// Bytes on their way into a MAC.
struct Updates<'a>(&'a mut hmac::Context);

impl io::Write for Updates<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that holds what our own compiler made.
pub(super) struct Artifact(File);

impl Artifact {
    /// Maps it: pages that are not needed are never read.
    ///
    /// # Errors
    /// Where the engine does not take it: it is of another machine, or larger than the pool's slots.
    pub(super) fn component(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // By its descriptor: whatever is put in its place meanwhile is not what was authenticated.
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        #[expect(
            unsafe_code,
            reason = "the file was made by our own compiler or carries our MAC, and it is read-only in a folder of ours"
        )]
        unsafe {
            Component::deserialize_file(engine, path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::engine;

    struct Shelf {
        folder: TempDir,
        engine: Engine,
    }

    impl Shelf {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap(), engine: engine::compiler().unwrap() }
        }

        fn cache(&self, bound: u64) -> Cache {
            let key = Key(hmac::Key::new(hmac::HMAC_SHA256, &[7; MAC]));
            Cache::open(self.folder.path(), key, bound).unwrap()
        }

        fn keep(&self, cache: &Cache, component: &str, bytes: &[u8]) -> Artifact {
            let mut unfinished = cache.unfinished().unwrap();
            unfinished.write_all(bytes).unwrap();
            cache.keep(&Digest::of(component.as_bytes()), &self.engine, unfinished).unwrap()
        }

        fn has(&self, cache: &Cache, component: &str) -> bool {
            cache.get(&Digest::of(component.as_bytes()), &self.engine).unwrap().is_some()
        }

        /// As if nobody had used it for long.
        fn age(&self, cache: &Cache, component: &str) {
            let path = cache.path(&Digest::of(component.as_bytes()), &self.engine);
            File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
    }

    #[test]
    fn no_byte_can_be_changed_unnoticed() {
        let shelf = Shelf::new();
        let cache = shelf.cache(1 << 20);
        shelf.keep(&cache, "a", b"machine code");
        let path = cache.path(&Digest::of(b"a"), &shelf.engine);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 12 + MAC);
        for (position, bit) in (0..bytes.len()).flat_map(|position| (0..8).map(move |bit| (position, bit))) {
            let mut changed = bytes.clone();
            changed[position] ^= 1 << bit;
            let _ = fs::remove_file(&path);
            fs::write(&path, changed).unwrap();
            assert!(!shelf.has(&cache, "a") && !path.exists(), "byte {position}, bit {bit}");
        }
        fs::write(&path, bytes).unwrap();
        assert!(shelf.has(&cache, "a"));
    }

    #[test]
    fn what_is_mapped_is_what_was_read_whatever_takes_its_place() {
        let shelf = Shelf::new();
        let cache = shelf.cache(1 << 20);
        let code = shelf.engine.precompile_component(&wat::parse_str("(component)").unwrap()).unwrap();
        shelf.keep(&cache, "a", &code);
        let artifact = cache.get(&Digest::of(b"a"), &shelf.engine).unwrap().unwrap();
        fs::remove_file(cache.path(&Digest::of(b"a"), &shelf.engine)).unwrap();
        shelf.keep(&cache, "a", b"no code at all");
        assert!(artifact.component(&shelf.engine).is_ok());
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let shelf = Shelf::new();
        let cache = shelf.cache(3 * 100);
        let bytes = [0; 100 - MAC];
        for component in ["a", "b", "c"] {
            shelf.keep(&cache, component, &bytes);
            shelf.age(&cache, component);
        }
        assert!(shelf.has(&cache, "a") && shelf.has(&cache, "c"), "and so they were used just now");
        shelf.keep(&cache, "d", &bytes);
        assert_eq!(["a", "b", "c", "d"].map(|component| shelf.has(&cache, component)), [true, false, true, true]);
    }

    #[test]
    fn what_is_larger_than_the_bound_is_used_and_not_kept() {
        let shelf = Shelf::new();
        let cache = shelf.cache(100);
        let code = shelf.engine.precompile_component(&wat::parse_str("(component)").unwrap()).unwrap();
        assert!(shelf.keep(&cache, "a", &code).component(&shelf.engine).is_ok());
        assert!(!shelf.has(&cache, "a"));
    }

    #[test]
    fn what_a_killed_process_left_half_done_is_swept_away() {
        let shelf = Shelf::new();
        let cache = shelf.cache(1 << 20);
        shelf.keep(&cache, "a", b"machine code");
        let (_, left) = cache.unfinished().unwrap().keep().unwrap();
        drop(cache);
        let cache = shelf.cache(1 << 20);
        assert!(!left.exists() && shelf.has(&cache, "a"));
    }

    #[test]
    fn a_folder_that_others_may_open_is_closed_and_one_that_is_no_folder_refused() {
        let shelf = Shelf::new();
        let artifacts = shelf.folder.path().join("artifacts");
        fs::create_dir(&artifacts).unwrap();
        fs::set_permissions(&artifacts, fs::Permissions::from_mode(0o777)).unwrap();
        shelf.cache(0);
        assert_eq!(fs::metadata(&artifacts).unwrap().permissions().mode() & 0o777, PRIVATE);
        fs::remove_dir(&artifacts).unwrap();
        std::os::unix::fs::symlink("/tmp", &artifacts).unwrap();
        let error = Cache::open(shelf.folder.path(), Key::random().unwrap(), 0).unwrap_err();
        assert!(matches!(error, CacheError::NotOurs(_)), "{error}");
    }

    #[test]
    fn a_key_that_is_too_short_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        fs::write(&file, [7; MAC - 1]).unwrap();
        assert!(matches!(Key::read(&file), Err(CacheError::ShortKey { bytes: 31, .. })));
        fs::write(&file, [7; MAC]).unwrap();
        assert!(Key::read(&file).is_ok());
        assert!(matches!(Key::read(&folder.path().join("none")), Err(CacheError::KeyFile { .. })));
    }
}
