//! `sluice gate-host` as a process of its own, and the memory that the kernel charges it with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::future::try_join_all;
use sluice::{
    gate::{GateHost as _, Presence, RemoteGateHost},
    model::trial::Digest,
};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where compiled plugins are, from one process to the next.
pub(super) struct Shelf(TempDir);

impl Shelf {
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("key"), [7; 32])?;
        Ok(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Reads all of it, so that the pages are in memory and charged to nobody who is measured.
    pub(super) fn warm(&self) -> Result<()> {
        for artifact in fs::read_dir(self.path("artifacts"))? {
            fs::read(artifact?.path())?;
        }
        Ok(())
    }
}

/// A running gate host. It is killed when this is dropped.
pub(super) struct Process {
    pub(super) host: RemoteGateHost,
    child: Child,
    group: Group,
}

impl Process {
    /// Starts one that may run so many trials at once, and waits until it answers.
    pub(super) async fn start(shelf: &Shelf, trials: usize) -> Result<Self> {
        let group = Group::new()?;
        let socket = shelf.path("socket");
        // It joins its group before it is anything, so that all of its memory counts.
        let script = format!("echo $$ > {}; exec \"$@\"", group.0.join("cgroup.procs").display());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_sluice"), "gate-host"]);
        // As in deploy/operator.yaml.
        command.envs([
            ("MALLOC_ARENA_MAX", "1"),
            ("MALLOC_MMAP_THRESHOLD_", "131072"),
            ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ]);
        command.args(["--health-probe-bind-address", "127.0.0.1:0", "--cache-size", "2Gi", "--log", "warn"]);
        command.arg("--max-concurrent-trials").arg(trials.to_string());
        command
            .arg("--socket")
            .arg(&socket)
            .arg("--cache")
            .arg(shelf.0.path())
            .arg("--cache-key")
            .arg(shelf.path("key"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn()?;
        let host = RemoteGateHost::at(&socket);
        let mut presence = host.presence();
        let there = timeout(PATIENCE, presence.wait_for(|now| matches!(now, Presence::Here(_))));
        there.await.context("the gate host does not start")??;
        Ok(Self { host, child, group })
    }

    pub(super) async fn load(&self, component: Bytes) -> Result<Digest> {
        Ok(self.host.load(component).await?.digest)
    }

    /// Loads all of them at once, as an operator does that was started.
    pub(super) async fn load_all(&self, components: Vec<Bytes>) -> Result<Vec<Digest>> {
        try_join_all(components.into_iter().map(|component| self.load(component))).await
    }

    /// MiB that the kernel charges it with.
    pub(super) fn memory_now(&self) -> Result<f64> {
        self.group.memory()
    }

    /// The same, once that does not change any more.
    pub(super) async fn memory(&self) -> Result<f64> {
        self.memory_calm(Duration::from_millis(200)).await
    }

    /// The same, once that has not changed for so long.
    pub(super) async fn memory_calm(&self, calm: Duration) -> Result<f64> {
        let began = Instant::now();
        let (mut before, mut since) = (self.group.memory()?, Instant::now());
        while since.elapsed() < calm {
            sleep(Duration::from_millis(200)).await;
            let now = self.group.memory()?;
            if (now - before).abs() >= 0.05 {
                (before, since) = (now, Instant::now());
            }
            if began.elapsed() > PATIENCE {
                bail!("the memory of the gate host does not come to rest: now it is {now} MiB");
            }
        }
        Ok(before)
    }
}

/// A control group for memory, of either version. It goes with its process.
struct Group(PathBuf);

impl Group {
    fn new() -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let first = root.join("memory");
        let parent = if first.is_dir() { first } else { root.to_owned() };
        let name = tempfile::Builder::new().prefix("sluice-bench-").tempdir_in(&parent);
        let group = name.with_context(|| format!("no control group can be made in {}", parent.display()))?.keep();
        Ok(Self(group))
    }

    /// MiB.
    fn memory(&self) -> Result<f64> {
        let version_one = self.0.join("memory.usage_in_bytes");
        let file = if version_one.exists() { version_one } else { self.0.join("memory.current") };
        let bytes = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(bytes.trim().parse::<f64>()? / f64::from(1 << 20))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A group can go only after its last process: wait for that, a while.
        let _ = self.child.start_kill();
        for _ in 0..200 {
            let _ = self.child.try_wait();
            if fs::remove_dir(&self.group.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
