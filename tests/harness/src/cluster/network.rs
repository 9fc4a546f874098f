//! The cluster's network namespace: nothing leaves it, and nothing else is in reach. And one beside it, a hop away from the
//! node, from where the cluster looks as it does to those who are not in it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{NODE_ADDRESS, remains};
use crate::command::run;

/// The two ends of the link between the node and what is outside: a network for documentation, which no machine is in.
const NODE_END: &str = "192.0.2.1";
const OUTSIDE_END: &str = "192.0.2.2";

/// A network namespace that is kept by a file.
#[derive(Clone)]
pub struct Network {
    file: PathBuf,
}

impl Network {
    /// The namespace kept by the given file.
    pub fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// What is outside of it.
    pub fn outside(&self) -> Self {
        Self { file: self.file.with_extension("outside") }
    }

    /// Makes both namespaces, with the node's address in the one.
    pub fn create(&self) -> Result<()> {
        self.make()?;
        // The node is its loopback device: Pods hang on point-to-point links that bear the same address,
        // so that everything between two Pods is routed and kube-proxy's rules see it. (On a bridge they
        // see it only where the kernel has br_netfilter.)
        self.ip(&["link", "set", "lo", "up"])?;
        self.ip(&["address", "add", &format!("{NODE_ADDRESS}/32"), "dev", "lo"])?;
        // The rules that turn a Service's address into a Pod's are asked after a route has been found.
        self.ip(&["route", "add", "default", "dev", "lo", "src", NODE_ADDRESS])?;
        run(self.command("sysctl").args(["-q", "-w", "net.ipv4.ip_forward=1"]))?;
        self.link(&self.outside())
    }

    /// Makes what is outside, a hop away.
    fn link(&self, outside: &Self) -> Result<()> {
        outside.make()?;
        let other = outside.file.display().to_string();
        self.ip(&["link", "add", "outside", "type", "veth", "peer", "name", "node", "netns", &other])?;
        self.ip(&["address", "add", &format!("{NODE_END}/30"), "dev", "outside"])?;
        self.ip(&["link", "set", "outside", "up"])?;
        outside.ip(&["address", "add", &format!("{OUTSIDE_END}/30"), "dev", "node"])?;
        outside.ip(&["link", "set", "node", "up"])?;
        outside.ip(&["route", "add", "default", "via", NODE_END])
    }

    fn make(&self) -> Result<()> {
        File::create(&self.file)?;
        run(Command::new("unshare").arg(format!("--net={}", self.file.display())).arg("true")).map(drop)
    }

    /// Lets both namespaces go; their devices and rules go with them.
    pub fn remove(&self) -> Result<()> {
        for network in [&self.outside(), self] {
            if network.exists() {
                run(Command::new("umount").arg(&network.file))?;
            }
            remains::remove(&network.file)?;
        }
        Ok(())
    }

    /// Whether the namespace is there.
    pub fn exists(&self) -> bool {
        mounts().is_ok_and(|mounts| mounts.contains(&self.file))
    }

    /// A command that runs inside. Not `ip netns exec`: that hides the cgroups from the kubelet.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.file.display())).arg("--").arg(program);
        command
    }

    /// Moves the calling thread inside, and with it whatever it starts from now on.
    pub fn enter(&self) -> Result<()> {
        let file = File::open(&self.file).context("the cluster is not up; start it with `cargo cluster up`")?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).context(
            "cannot enter the cluster's network; is this root, and is the cluster up? `cargo cluster status` says",
        )
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        run(self.command("ip").args(arguments))?;
        Ok(())
    }
}

/// Where something is mounted, in the order of mounting.
pub fn mounts() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.map(|point| PathBuf::from(point.replace("\\040", " "))).collect())
}
