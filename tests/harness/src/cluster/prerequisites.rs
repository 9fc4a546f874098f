//! What the machine must offer: looked at first, installed where that is possible, named where it is not.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command;
use crate::progress::step;

/// Debian packages and a file of each that shows it is there.
const PACKAGES: [(&str, &str); 8] = [
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/ptp"),
    ("nftables", "/usr/sbin/nft"),
    ("iproute2", "/usr/sbin/ip"),
    ("conntrack", "/usr/sbin/conntrack"),
    ("ethtool", "/usr/sbin/ethtool"),
    ("mount", "/usr/bin/mount"),
];

/// Checks the machine and installs the packages that are missing.
pub fn ensure() -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("the cluster needs Linux: its Pods are containers of this machine");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the cluster needs root, for containers and network namespaces: run the same command with sudo -E");
    }
    ensure_packages()
}

fn ensure_packages() -> Result<()> {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing on this machine: {names} (names of Debian packages); this is not Debian, install them by hand");
    }
    step(&format!("Debian packages: {names}"), || install(&missing)).map_err(|error| {
        error.context(format!("cannot install {names}; by hand: apt-get update && apt-get install {names}"))
    })
}

fn install(packages: &[&str]) -> Result<()> {
    apt_get(&["update", "--quiet"])?;
    let mut arguments = vec!["install", "--yes", "--quiet", "--no-install-recommends"];
    arguments.extend(packages);
    apt_get(&arguments)
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    command::run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))?;
    Ok(())
}

/// Checks for the Go that builds Kubernetes.
pub fn ensure_go() -> Result<()> {
    match Command::new("go").arg("version").output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => bail!(
            "missing on this machine: go 1.26 or newer, which builds the cluster's Kubernetes; install it and put it on PATH"
        ),
    }
}
