//! The gate host's side of compiling: the cache first, then a child, one at a time.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read as _},
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::Signal;
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    sync::Semaphore,
    time::timeout,
};
use wasmtime::{Engine, component::Component};

use super::{ARTIFACT, COMMAND, CPU, Cache, MEMORY, WALL, apart, cache::Artifact};
use crate::{
    gate::{plugin, text},
    model::trial::{Digest, LoadError},
};

/// Components that are known not to compile. More are tried again, which costs a child's limits.
const FAILURES: usize = 256;

/// Bytes of a child's last words, and how many of them are shown.
const WORDS: u64 = 64 << 10;
const SHOWN: usize = 512;

/// Compiles in children and keeps what they make.
#[derive(Debug)]
pub struct Workshop {
    program: PathBuf,
    cache: Arc<Cache>,
    /// One at a time: a compiler takes all the CPU and hundreds of megabytes it is given.
    turn: Semaphore,
    /// Time for one of them.
    wall: Duration,
    failures: Mutex<VecDeque<(Digest, LoadError)>>,
}

impl Workshop {
    /// `program` is a `sluice` of this very build: what it makes is run.
    #[must_use]
    pub fn new(program: PathBuf, cache: Cache) -> Self {
        Self { program, cache: Arc::new(cache), turn: Semaphore::new(1), wall: WALL, failures: Mutex::default() }
    }

    /// The component from the cache, or compiled.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn component(
        &self,
        engine: &Engine,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<Component, LoadError> {
        if let Some(component) = self.kept(engine, digest).await? {
            return Ok(component);
        }
        let _turn = self.turn.acquire().await;
        // Whoever had the turn before may have compiled the same.
        if let Some(component) = self.kept(engine, digest).await? {
            return Ok(component);
        }
        if let Some(failure) = self.failure(digest) {
            return Err(failure);
        }
        let compiled = self.compile(engine, digest, bytes).await;
        if let Err(error @ (LoadError::NotAComponent(_) | LoadError::CompileFailed(_))) = &compiled {
            self.remember(digest, error);
        }
        compiled
    }

    /// The component from the cache.
    ///
    /// # Errors
    /// Why the cache cannot be read, or what it has not be used.
    pub(super) async fn kept(&self, engine: &Engine, digest: &Digest) -> Result<Option<Component>, LoadError> {
        let (cache, engine, digest) = (Arc::clone(&self.cache), engine.clone(), digest.clone());
        apart(move || {
            let Some(artifact) = cache.get(&digest, &engine).map_err(|error| unkept(&error))? else { return Ok(None) };
            match component(&artifact, &engine) {
                Ok(component) => Ok(Some(component)),
                Err(error @ LoadError::TooLarge(_)) => Err(error),
                Err(error) => {
                    tracing::warn!(%digest, %error, "a compiled plugin is of another machine: it is compiled again");
                    cache.remove(&digest, &engine).map_err(|error| unkept(&error))?;
                    Ok(None)
                }
            }
        })
        .await
    }

    async fn compile(&self, engine: &Engine, digest: &Digest, bytes: &[u8]) -> Result<Component, LoadError> {
        let code = self.cache.unfinished().map_err(|error| unkept(&error))?;
        self.child(digest, bytes, &code).await?;
        let (cache, engine, digest) = (Arc::clone(&self.cache), engine.clone(), digest.clone());
        apart(move || {
            let artifact = cache.keep(&digest, &engine, code).map_err(|error| unkept(&error))?;
            component(&artifact, &engine)
        })
        .await
    }

    /// Runs a child to its end. Its code goes from its own hands into the file, through no memory of ours.
    async fn child(&self, digest: &Digest, bytes: &[u8], code: &NamedTempFile) -> Result<(), LoadError> {
        let unstarted = |error: io::Error| LoadError::Unavailable(format!("the compiler cannot be started: {error}"));
        let mut child = Command::new(&self.program)
            .arg(COMMAND)
            .arg(digest.as_str())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(code.as_file().try_clone().map_err(unstarted)?)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(unstarted)?;
        let (input, words) = (child.stdin.take(), child.stderr.take());
        let feed = async {
            if let Some(mut input) = input {
                // A child that does not listen is dead or says why.
                let _ = input.write_all(bytes).await;
            }
        };
        let listen = async {
            let mut said = Vec::new();
            if let Some(words) = words {
                let _ = words.take(WORDS).read_to_end(&mut said).await;
            }
            String::from_utf8_lossy(&said).into_owned()
        };
        let ended = timeout(self.wall, async { tokio::join!(feed, listen, child.wait()) }).await;
        let Ok(((), said, status)) = ended else {
            let _ = child.kill().await;
            return Err(LoadError::CompileFailed(format!("it took more than {} s", self.wall.as_secs())));
        };
        judge(status.map_err(unstarted)?, &said, code)
    }

    fn failure(&self, digest: &Digest) -> Option<LoadError> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.iter().find(|(failed, _)| failed == digest).map(|(_, error)| error.clone())
    }

    fn remember(&self, digest: &Digest, error: &LoadError) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() == FAILURES {
            failures.pop_front();
        }
        failures.push_back((digest.clone(), error.clone()));
    }
}

fn component(artifact: &Artifact, engine: &Engine) -> Result<Component, LoadError> {
    artifact.component(engine).map_err(|error| plugin::not_compiled(&error))
}

fn unkept(error: &io::Error) -> LoadError {
    LoadError::Unavailable(format!("compiled plugins cannot be kept, see --cache of the gate host: {error}"))
}

/// What a child's end means.
fn judge(status: ExitStatus, said: &str, code: &NamedTempFile) -> Result<(), LoadError> {
    if status.success() {
        return Ok(());
    }
    let refused = || {
        let mut told = Vec::new();
        File::open(code.path()).ok()?.take(WORDS).read_to_end(&mut told).ok()?;
        serde_json::from_slice::<LoadError>(&told).ok()
    };
    let megabytes = |bytes: u64| bytes >> 20;
    // The last lines say why; the very last may say how to see more, to somebody who is not there.
    let lines: Vec<_> = said.lines().filter(|line| !line.starts_with("note: ")).collect();
    let last = text::cut(&lines[lines.len().saturating_sub(4)..].join(" "), SHOWN);
    let why = match status.signal().and_then(Signal::from_named_raw) {
        Some(Signal::XCPU) => format!("it took more than {} s of CPU time", CPU.as_secs()),
        Some(Signal::XFSZ) => format!("it makes more than {} MiB of code", megabytes(ARTIFACT)),
        Some(Signal::KILL) => "the compiler was killed, most likely because memory was short".to_owned(),
        // How a process ends that gets no memory, and one that finds itself broken.
        Some(Signal::ABORT | Signal::SEGV) => {
            format!("the compiler gave up, with at most {} MiB of memory: {last}", megabytes(MEMORY))
        }
        Some(signal) => format!("the compiler was killed by signal {}: {last}", signal.as_raw()),
        None => match status.code() {
            // Its own words, or those of somebody who could not begin.
            Some(1) => {
                let unstarted = || LoadError::Unavailable(format!("the compiler cannot work here: {last}"));
                return Err(refused().unwrap_or_else(unstarted));
            }
            _ => format!("the compiler broke ({status}): {last}"),
        },
    };
    Err(LoadError::CompileFailed(why))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tempfile::TempDir;

    use super::*;
    use crate::gate::compile::Key;

    /// A workshop whose compiler never ends. It writes its process id to the file `pid` of the folder.
    fn endless(wall: Duration) -> (TempDir, Workshop) {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("compiler");
        let pid = folder.path().join("pid");
        let text = format!("#!/bin/sh\necho $$ > {0}.part; mv {0}.part {0}; exec sleep 600\n", pid.display());
        // Written by somebody else: a file that this process has open for writing, or a fork of it, cannot be run.
        let write = ["-c", "printf %s \"$1\" > \"$0\" && chmod 700 \"$0\""];
        assert!(std::process::Command::new("/bin/sh").args(write).arg(&program).arg(text).status().unwrap().success());
        let cache = Cache::open(folder.path(), Key::random().unwrap(), 0).unwrap();
        (folder, Workshop { wall, ..Workshop::new(program, cache) })
    }

    /// Waits until the compiler runs, and says where it can be looked at.
    async fn running(folder: &Path) -> PathBuf {
        loop {
            match fs::read_to_string(folder.join("pid")) {
                Ok(pid) => return Path::new("/proc").join(pid.trim()),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    async fn gone(process: &Path) {
        // One that was killed stays a zombie until its parent has heard of it.
        while fs::read_to_string(process.join("status")).is_ok_and(|status| !status.contains("State:\tZ")) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_compiler_that_takes_too_long_is_killed_and_that_is_remembered() {
        let (folder, workshop) = endless(Duration::from_secs(1));
        let (engine, digest) = (Engine::default(), Digest::of(b"x"));
        let error = workshop.component(&engine, &digest, b"x").await.map(drop).unwrap_err();
        assert_eq!(error, LoadError::CompileFailed("it took more than 1 s".into()));
        gone(&running(folder.path()).await).await;
        fs::remove_file(folder.path().join("pid")).unwrap();
        assert_eq!(workshop.component(&engine, &digest, b"x").await.map(drop), Err(error));
        assert!(!folder.path().join("pid").exists(), "nobody was started again");
    }

    #[tokio::test]
    async fn a_compiler_for_whom_nobody_waits_is_killed() {
        let (folder, workshop) = endless(Duration::from_secs(600));
        let (engine, digest) = (Engine::default(), Digest::of(b"x"));
        let process = tokio::select! {
            process = running(folder.path()) => process,
            ended = workshop.component(&engine, &digest, b"x") => panic!("{:?}", ended.map(drop)),
        };
        gone(&process).await;
    }

    #[test]
    fn failures_are_remembered_up_to_a_number_of_them() {
        let (_folder, workshop) = endless(Duration::ZERO);
        let digest = |number: usize| Digest::from(number.to_string());
        let error = LoadError::CompileFailed(String::new());
        (0..=FAILURES).for_each(|number| workshop.remember(&digest(number), &error));
        assert_eq!((workshop.failure(&digest(0)), workshop.failure(&digest(FAILURES))), (None, Some(error)));
        assert_eq!(workshop.failures.lock().unwrap().len(), FAILURES);
    }
}
