//! A background process that outlives the command which started it, found again by its pid file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One background process: its pid file and its log.
pub struct Process {
    pid_file: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Process {
    /// The process called `name`, whose files are kept in the given folders.
    pub fn new(name: &str, pids: &Path, logs: &Path) -> Self {
        Self { pid_file: pids.join(format!("{name}.pid")), log: logs.join(format!("{name}.log")) }
    }

    /// Starts the process in a session of its own, so that neither Ctrl-C nor a closed terminal ends it.
    pub fn start(&self, command: &Command) -> Result<()> {
        let log = fs::File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut detached = Command::new("setsid");
        detached.arg(command.get_program()).args(command.get_args());
        detached.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let child = detached
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        // setsid and nsenter both replace themselves, so this pid stays the program's.
        let born = start_time(child.id()).context("the process ended at once")?;
        fs::write(&self.pid_file, format!("{} {born}", child.id()))?;
        Ok(())
    }

    /// The pid, if the process started here still runs.
    pub fn pid(&self) -> Option<u32> {
        let recorded = fs::read_to_string(&self.pid_file).ok()?;
        let (pid, born) = recorded.split_once(' ')?;
        let pid = pid.parse().ok()?;
        // A pid is given again once its process is gone: only pid and start time together name one process.
        (start_time(pid)? == born).then_some(pid)
    }

    /// Kills the process and returns when it is gone. Nothing of a test cluster is worth a farewell.
    pub fn kill(&self) -> Result<()> {
        if let Some(pid) = self.pid() {
            kill(pid, || self.pid().is_some())?;
        }
        super::remains::remove(&self.pid_file)
    }
}

/// Kills a process that is still the one it is taken for, and returns when it is gone.
pub fn kill(pid: u32, still: impl Fn() -> bool) -> Result<()> {
    let Some(born) = start_time(pid) else { return Ok(()) };
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a pid")?;
    // Asked again behind the handle, which cannot come to mean another process as a number can.
    if let Ok(handle) = pidfd_open(id, PidfdFlags::empty())
        && still()
    {
        // An error means that it is gone, which the wait sees as well.
        let _ = pidfd_send_signal(handle, Signal::KILL);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while start_time(pid).as_ref() == Some(&born) {
        if Instant::now() > deadline {
            bail!("process {pid} does not end though it was killed; `ps` shows it in state D");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// When a process began, in clock ticks since boot; nothing for one that is gone or waits to be reaped.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold blanks: the fields are counted from behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18).map(str::to_owned))?
}
