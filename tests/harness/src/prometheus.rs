//! A real Prometheus of this machine: Debian's, on a port of loopback, with series that a test made up.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::command;
use crate::http;
use crate::images::packages;
use crate::wait::PATIENCE;

/// The package, which has `promtool` too.
const PACKAGE: &str = "prometheus";

/// A Prometheus that ends with its value.
pub struct Prometheus {
    child: Child,
    /// Where it answers.
    pub address: SocketAddr,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts one that knows `series`, text in the OpenMetrics format, and returns when it answers.
    pub async fn start(series: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (text, config, data) =
            (folder.path().join("series"), folder.path().join("prometheus.yml"), folder.path().join("data"));
        fs::write(&text, series)?;
        fs::write(&config, "global: {}\n")?;
        let import = ["tsdb", "create-blocks-from", "openmetrics"];
        command::run(Command::new(program("promtool")?).args(import).arg(&text).arg(&data))?;
        // Asked of the kernel and given back: Prometheus does not tell which port it took.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = folder.path().join("log");
        let file = fs::File::create(&log)?;
        let child = Command::new(program("prometheus")?)
            .arg(argument("--config.file", &config))
            .arg(argument("--storage.tsdb.path", &data))
            .arg("--storage.tsdb.retention.time=10d")
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot start prometheus")?;
        let prometheus = Self { child, address, _folder: folder };
        let ready = http::until(&format!("http://{address}/-/ready"), PATIENCE, |answer| answer.status() == 200).await;
        if let Err(error) = ready {
            bail!("{error:#}; its log ends:\n{}", command::last_lines(&fs::read(log)?, 20));
        }
        Ok(prometheus)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may be gone already; nothing of it is worth a farewell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(name: &str) -> Result<PathBuf> {
    Ok(packages::fetch(PACKAGE)?.join("usr/bin").join(name))
}

fn argument(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

/// Samples of one series, one every `step`, the last one now: lines of the OpenMetrics format.
pub fn samples(series: &str, values: &[f64], step: Duration) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let ago = |number: usize| step * u32::try_from(values.len() - 1 - number).unwrap_or(u32::MAX);
    let lines = values
        .iter()
        .enumerate()
        .map(|(number, value)| format!("{series} {value} {:.3}\n", now.saturating_sub(ago(number)).as_secs_f64()));
    lines.collect()
}
