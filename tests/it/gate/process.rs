//! `sluice gate-host` in a process of its own, and what the kernel says of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use sluice::gate::{GateHost as _, Presence, RemoteGateHost};
use tokio::{process::Command, time::timeout};

pub(super) const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

/// Where the kernel tells of a process.
pub(super) struct Proc(PathBuf);

impl Proc {
    pub(super) fn of(process: u32) -> Self {
        Self(Path::new("/proc").join(process.to_string()))
    }

    pub(super) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }

    /// What its file system looks like from outside.
    pub(super) fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    /// A line of its status, without its name.
    pub(super) fn status(&self, name: &str) -> String {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
    }

    /// Bytes in memory.
    pub(super) fn resident(&self) -> usize {
        self.status("VmRSS").strip_suffix(" kB").unwrap().trim().parse::<usize>().unwrap() << 10
    }

    /// Clock ticks of CPU that it has had itself, and those of its children that have ended.
    pub(super) fn cpu(&self) -> (u64, u64) {
        let stat = self.read("stat");
        // The name, in parentheses, may hold blanks: the fields are counted from behind it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = |field: usize| fields[field].parse::<u64>().unwrap();
        (ticks(11) + ticks(12), ticks(13) + ticks(14))
    }
}

/// Does `work` with a gate host behind a shell that does `first` before, and returns what it said until it was ended too.
pub(super) async fn process<T>(
    first: &str,
    patience: Duration,
    work: impl AsyncFnOnce(&Arc<RemoteGateHost>, &Proc) -> T,
) -> (T, String) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let script = format!("{first}; exec {SLUICE} gate-host --health-probe-bind-address 127.0.0.1:0 \"$@\"");
    let mut host = Command::new("/bin/sh")
        .args(["-c", &script, "sh", "--cache"])
        .arg(folder.path())
        .arg("--socket")
        .arg(&socket)
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        // Also when `work` panics.
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let remote = Arc::new(RemoteGateHost::at(&socket));
    let worked = timeout(patience, async {
        remote.presence().wait_for(|now| matches!(now, Presence::Here(_))).await.unwrap();
        work(&remote, &Proc::of(host.id().unwrap())).await
    });
    let worked = worked.await;
    host.start_kill().unwrap();
    let said = host.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    (worked.unwrap_or_else(|_| panic!("{said}")), said)
}
