//! What a cluster leaves behind outside its own processes, found and taken away, however it ended.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::network::mounts;
use super::process::kill;
use crate::command::run;

/// Where the kernel's control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// A socket the kubelet leaves, and folders, inner ones first.
const KUBELET_SOCKET: &str = "/var/lib/kubelet/device-plugins/kubelet.sock";
const FIXED_FOLDERS: [&str; 7] = [
    "/run/containerd/s",
    "/run/containerd",
    "/var/lib/cni/results",
    "/var/lib/cni",
    "/var/lib/kubelet/device-plugins",
    "/var/lib/kubelet",
    "/var/log/containers",
];

/// Kills the shims, which belong to nobody once containerd is gone: they carry its socket in their arguments.
pub fn kill_shims(containerd_socket: &str) -> Result<()> {
    for pid in pids()? {
        let ours = || is_shim(pid, containerd_socket);
        if ours() {
            kill(pid, ours)?;
        }
    }
    Ok(())
}

fn is_shim(pid: u32, containerd_socket: &str) -> bool {
    // A process that ended meanwhile has no arguments.
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|byte| *byte == 0);
    let shim = arguments.next().is_some_and(|program| program.ends_with(b"/containerd-shim-runc-v2"));
    shim && arguments.any(|argument| argument == containerd_socket.as_bytes())
}

/// Kills the processes of containers and takes their control groups away.
pub fn remove_cgroups(containers: &[String]) -> Result<()> {
    // Version 1 has a tree per controller, version 2 a single one.
    let mut trees = vec![PathBuf::from(CGROUPS)];
    trees.extend(folders(Path::new(CGROUPS))?);
    for tree in trees {
        // Where containerd puts what the kubelet gives no place.
        let parent = tree.join("k8s.io");
        for group in containers.iter().map(|container| parent.join(container)).filter(|group| group.is_dir()) {
            remove_cgroup(&group)?;
        }
        remove_if_empty(&parent);
    }
    Ok(())
}

fn remove_cgroup(group: &Path) -> Result<()> {
    for group in deepest_first(group)? {
        for pid in members(&group) {
            kill(pid, || members(&group).contains(&pid))?;
        }
        remove_emptied(&group).with_context(|| format!("cannot remove the control group {}", group.display()))?;
    }
    Ok(())
}

/// A process that was killed keeps its group busy until its parent, which is not us, has taken notice.
fn remove_emptied(group: &Path) -> std::io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            removed => return removed,
        }
    }
}

fn members(group: &Path) -> Vec<u32> {
    let list = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    list.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// Takes away every mount below a folder, the last first.
pub fn unmount_below(dir: &Path) -> Result<()> {
    for point in mounts()?.into_iter().rev().filter(|point| point.starts_with(dir)) {
        // Lazily: a process that is just going may still hold it.
        run(Command::new("umount").arg("--lazy").arg(point))?;
    }
    Ok(())
}

/// The containers whose bundles are in a folder.
pub fn containers(bundles: &Path) -> Result<Vec<String>> {
    let names = folders(bundles)?;
    Ok(names.iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
}

/// Removes the sockets of the shims, which lie outside the cluster's folder; each bundle says where its own is.
pub fn remove_shim_sockets(bundles: &Path) -> Result<()> {
    for bundle in folders(bundles)? {
        if let Ok(address) = fs::read_to_string(bundle.join("address")) {
            remove(Path::new(address.trim_start_matches("unix://")))?;
        }
    }
    Ok(())
}

/// Removes the links in the kubelet's fixed log folder that point into ours.
pub fn remove_log_links(logs: &Path) -> Result<()> {
    for link in entries(Path::new("/var/log/containers"))? {
        if fs::read_link(&link).is_ok_and(|log| log.starts_with(logs)) {
            remove(&link)?;
        }
    }
    Ok(())
}

/// Removes what the network plugins cached, in their fixed folder, about containers.
pub fn remove_network_cache(containers: &[String]) -> Result<()> {
    for result in entries(Path::new("/var/lib/cni/results"))? {
        let name = result.file_name().unwrap_or_default().to_string_lossy();
        if containers.iter().any(|container| name.contains(container)) {
            remove(&result)?;
        }
    }
    Ok(())
}

/// Removes what containerd, the kubelet and the network plugins make under fixed names; folders only if nobody uses them.
pub fn remove_fixed_names() -> Result<()> {
    // Another clone's cluster may be up and listen there.
    if UnixStream::connect(KUBELET_SOCKET).is_err() {
        remove(Path::new(KUBELET_SOCKET))?;
    }
    for folder in FIXED_FOLDERS {
        remove_if_empty(Path::new(folder));
    }
    Ok(())
}

/// An error means that it is not there, or in use: both are fine.
fn remove_if_empty(folder: &Path) {
    let _ = fs::remove_dir(folder);
}

/// Removes a file or a folder with all it holds; one that is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn pids() -> Result<Vec<u32>> {
    let names = entries(Path::new("/proc"))?;
    Ok(names.iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect())
}

fn deepest_first(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for below in folders(folder)? {
        found.extend(deepest_first(&below)?);
    }
    found.push(folder.to_owned());
    Ok(found)
}

fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(dir)?.into_iter().filter(|path| path.is_dir() && !path.is_symlink()).collect())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", dir.display())),
    }
}
