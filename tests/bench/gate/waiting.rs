//! A thousand gates that wait for an answer and a few that compute, on one CPU, and the operator on the same one.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use sluice::{
    api::DataPlane,
    gate::GateHost as _,
    model::trial::{Limits, Outcome, Trial},
};
use sluice_harness::kit::Kit;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    fixtures,
    languages::{Language, Plugins},
    pin,
    process::{Process, Shelf},
    proxy, row, trial,
};

const WAITING: usize = 1000;
const COMPUTING: usize = 8;

/// Passes of the operator over an object that is as it should be.
const PASSES: u32 = 200;
const BETWEEN: Duration = Duration::from_millis(10);

/// Longer than a gate host waits after a burst before it tidies up.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(240);

const NAME: &str = "bluegreen";

/// Answers requests, all at once when it is told to.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    asked: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
    _accepts: AbortOnDropHandle<()>,
}

impl Server {
    /// One that answers at once.
    pub(super) async fn answering() -> Result<Self> {
        let server = Self::holding().await?;
        server.release();
        Ok(server)
    }

    /// One that answers nobody until it is told to.
    async fn holding() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (open, opened) = watch::channel(false);
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let accepts = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, opened.clone(), Arc::clone(&counted)));
            }
        }));
        Ok(Self { address, asked, open, _accepts: accepts })
    }

    fn release(&self) {
        self.open.send_replace(true);
    }

    /// Waits until so many have asked.
    async fn asked(&self, many: usize) -> Result<()> {
        let all = async {
            while self.asked.load(Ordering::Relaxed) < many {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = timeout(PATIENCE, all).await;
        waited.with_context(|| format!("{} of {many} gates asked", self.asked.load(Ordering::Relaxed)))
    }
}

async fn answer(mut stream: TcpStream, mut open: watch::Receiver<bool>, asked: Arc<AtomicUsize>) {
    // The whole of a gate's request is one packet.
    let Ok(1..) = stream.read(&mut [0; 1024]).await else { return };
    asked.fetch_add(1, Ordering::Relaxed);
    if open.wait_for(|open| *open).await.is_ok() {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
    }
}

pub(super) async fn measure(kit: &Kit, plugins: &Plugins, shelf: &Shelf) -> Result<()> {
    let metrics = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    // The gates and the operator share a CPU. Who asks, who answers and the cluster are on another.
    pin(Some(0))?;
    let _operator = kit.operator_with(&["--metrics-bind-address", &metrics.to_string()]).await?;
    let gates = Process::start(shelf, WAITING + COMPUTING).await?;
    pin(Some(1))?;
    let example = std::fs::read_to_string(fixtures::root().join("deploy/examples/bluegreen.yaml"))?;
    kit.apply(&example)?;
    kit.kubectl(&["wait", "--for=condition=Ready", &format!("dataplane/{NAME}"), "--timeout=120s"])?;

    let waits = gates.load(plugins.component(Language::QuickJs)).await?;
    let computes = gates.load(fixtures::fixture("busy_loop", &[("rounds", "0")])).await?;
    let quick = Server::answering().await?;
    let once = gates.host.run(Trial { targets: vec![proxy(quick.address)], ..trial(&waits) }).await;
    ensure!(matches!(once.outcome, Outcome::Pass(_)), "{:?}", once.outcome);
    let before = gates.memory().await?;

    let server = Server::holding().await?;
    let asking = Trial { targets: vec![proxy(server.address)], timeout: PATIENCE, ..trial(&waits) };
    let endless =
        Trial { timeout: PATIENCE, limits: Limits { cpu: PATIENCE, ..Limits::default() }, ..trial(&computes) };
    let waiting = join_all((0..WAITING).map(|_| gates.host.run(asking.clone())));
    let during = async {
        server.asked(WAITING).await?;
        let computing = join_all((0..COMPUTING).map(|_| gates.host.run(endless.clone())));
        let operator = async {
            let calm = passes(metrics).await?;
            touch(kit).await?;
            anyhow::Ok((gates.memory_now()?, passes(metrics).await?.since(&calm)))
        };
        // Whoever computes does so without an end.
        let measured = tokio::select! {
            measured = operator => measured,
            ended = computing => anyhow::bail!("{:?}", ended[0].outcome),
        };
        server.release();
        measured
    };
    let (reports, during) = tokio::join!(waiting, during);
    let (memory, passes) = during?;
    let failed = reports.iter().find(|report| !matches!(report.outcome, Outcome::Pass(_)));
    ensure!(failed.is_none(), "{failed:?}");
    row("waiting_1000_memory_mib", memory);
    row("waiting_1000_reconcile_p99_ms", passes.percentile(0.99)? * 1e3);
    row("before_burst_memory_mib", before);
    row("after_burst_ratio", gates.memory_calm(AFTERWARDS).await? / before);
    Ok(())
}

/// Has the operator look at an object again and again that needs nothing.
async fn touch(kit: &Kit) -> Result<()> {
    let dataplanes: Api<DataPlane> = kit.api();
    for number in 0..PASSES {
        let annotated = json!({ "metadata": { "annotations": { "bench": number.to_string() } } });
        dataplanes.patch(NAME, &PatchParams::default(), &Patch::Merge(annotated)).await?;
        sleep(BETWEEN).await;
    }
    Ok(())
}

/// The histogram of passes over DataPlanes: how many took at most so many seconds.
struct Passes(Vec<(f64, f64)>);

async fn passes(metrics: SocketAddr) -> Result<Passes> {
    let mut stream = TcpStream::connect(metrics).await.context("the operator's metrics")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: operator\r\nconnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let buckets = text.lines().filter_map(|line| {
        let (labels, count) = line.strip_prefix("sluice_reconcile_duration_seconds_bucket{")?.split_once("} ")?;
        let limit = labels.split(',').find_map(|label| label.strip_prefix("le=\"")?.strip_suffix('"'))?;
        let limit = if limit == "+Inf" { f64::INFINITY } else { limit.parse().ok()? };
        labels.contains("kind=\"DataPlane\"").then_some((limit, count.trim().parse().ok()?))
    });
    Ok(Passes(buckets.collect()))
}

impl Passes {
    fn since(mut self, before: &Self) -> Self {
        self.0.iter_mut().zip(&before.0).for_each(|((_, count), (_, earlier))| *count -= earlier);
        self
    }

    /// As Prometheus estimates it: evenly spread in its bucket.
    fn percentile(&self, share: f64) -> Result<f64> {
        let (_, all) = self.0.last().context("the operator counts no passes")?;
        ensure!(*all >= 100.0, "{all} passes are too few");
        let rank = all * share;
        let (mut below, mut lower) = (0.0, 0.0);
        for (limit, count) in &self.0 {
            if *count >= rank {
                ensure!(limit.is_finite(), "longer than what is counted");
                return Ok(lower + (limit - lower) * (rank - below) / (count - below));
            }
            (below, lower) = (*count, *limit);
        }
        anyhow::bail!("the counts of the operator do not add up")
    }
}
