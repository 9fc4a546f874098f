//! What the gate host adds to the engine, to a request, and to the end of a gate that does not end: all in this process.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, anyhow, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use sluice::{
    gate::{Capacity, Compiler, GateHost as _, LocalGateHost},
    model::trial::{Digest, Limits, Outcome, Trial},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::{fixtures, median, proxy, row, trial};

/// Blocks of a comparison, and evaluations of each kind in a block.
const BLOCKS: usize = 7;
const EACH: usize = 200;

/// Measures with the plugin `smoke`.
pub(super) async fn measure(smoke: Bytes) -> Result<()> {
    let capacity = Capacity { trials: 8.try_into()?, threads: 1.try_into()? };
    let host = LocalGateHost::start(capacity, Compiler::InProcess)?;
    let smoke = load(&host, smoke).await?;
    evaluation(&host, &smoke).await?;
    request(&host, &smoke).await?;
    hang(&host, &smoke).await?;
    busy(&host).await
}

async fn load(host: &LocalGateHost, bytes: Bytes) -> Result<Digest> {
    Ok(host.load(bytes).await?.digest)
}

/// A gate that is granted nothing: settings, a refused request, a measurement, a verdict, and no network.
async fn evaluation(host: &LocalGateHost, digest: &Digest) -> Result<()> {
    let (mut ratios, mut more, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..BLOCKS {
        let (mut ours, mut raw) = (Vec::new(), Vec::new());
        for _ in 0..EACH {
            let began = Instant::now();
            host.run(trial(digest)).await;
            ours.push(began.elapsed());
            let began = Instant::now();
            host.bare(trial(digest)).await.map_err(anyhow::Error::msg)?;
            raw.push(began.elapsed());
        }
        let (ours, raw) = (sorted(ours), sorted(raw));
        ratios.push(ours[EACH / 2] / raw[EACH / 2]);
        more.push((ours[EACH / 2] - raw[EACH / 2]) * 1e6);
        slowest.push(ours[EACH * 99 / 100] * 1e6);
    }
    row("evaluate_over_raw_ratio", median(ratios));
    row("evaluate_over_raw_us", median(more));
    row("evaluate_us_p99", median(slowest));
    Ok(())
}

/// One request to a server on this CPU, through `probe.send` and by hyper alone: both over a connection of their own. What
/// the evaluation around the first costs is taken off.
async fn request(host: &LocalGateHost, digest: &Digest) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map(|runtime| runtime.block_on(serve(listener)))
    });
    let asking = Trial { targets: vec![proxy(address)], ..trial(digest) };
    let passed = host.run(asking.clone()).await;
    ensure!(matches!(passed.outcome, Outcome::Pass(_)), "{:?}", passed.outcome);
    let mut more = Vec::new();
    for _ in 0..BLOCKS {
        let (mut through, mut without, mut direct) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..EACH {
            let began = Instant::now();
            host.run(asking.clone()).await;
            through.push(began.elapsed());
            let began = Instant::now();
            host.run(trial(digest)).await;
            without.push(began.elapsed());
            let began = Instant::now();
            ask(address).await?;
            direct.push(began.elapsed());
        }
        let middle = |times| sorted(times)[EACH / 2] * 1e6;
        more.push(middle(through) - middle(without) - middle(direct));
    }
    row("probe_over_hyper_us", median(more));
    Ok(())
}

async fn serve(listener: TcpListener) -> std::io::Result<()> {
    let mut read = [0; 1024];
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let _ = stream.read(&mut read).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
    }
}

async fn ask(address: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request =
        Request::get("/").header("host", "bench").header("connection", "close").body(Full::new(Bytes::new()))?;
    sender.send_request(request).await?.into_body().collect().await?;
    connection.abort();
    Ok(())
}

/// A server that accepts and says nothing: how late the time limit ends it, beside a timer alone.
async fn hang(host: &LocalGateHost, digest: &Digest) -> Result<()> {
    const LIMIT: Duration = Duration::from_millis(50);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (mut ours, mut timer) = (Vec::new(), Vec::new());
    for _ in 0..50 {
        let hanging = Trial { targets: vec![proxy(address)], timeout: LIMIT, ..trial(digest) };
        let report = host.run(hanging).await;
        ensure!(matches!(report.outcome, Outcome::Error { .. }), "{:?}", report.outcome);
        ours.push(report.cost.wall.saturating_sub(LIMIT));
        let began = Instant::now();
        tokio::time::sleep(LIMIT).await;
        timer.push(began.elapsed().saturating_sub(LIMIT));
    }
    let (ours, timer) = (sorted(ours), sorted(timer));
    row("hang_late_ms", (ours[ours.len() - 1] - timer[timer.len() * 99 / 100]) * 1e3);
    Ok(())
}

/// A loop without an end: CPU time past its budget when it is stopped.
async fn busy(host: &LocalGateHost) -> Result<()> {
    const BUDGET: Duration = Duration::from_millis(20);
    let digest = load(host, fixtures::fixture("busy_loop", &[("rounds", "0")])).await?;
    let mut late = Vec::new();
    for _ in 0..200 {
        let report = host.run(Trial { limits: Limits { cpu: BUDGET, ..Limits::default() }, ..trial(&digest) }).await;
        late.push(report.cost.cpu.checked_sub(BUDGET).ok_or_else(|| anyhow!("it was stopped early"))?);
    }
    row("loop_kill_cpu_late_ms_max", sorted(late)[199] * 1e3);
    Ok(())
}

/// Seconds, in order.
fn sorted(times: Vec<Duration>) -> Vec<f64> {
    let mut seconds: Vec<_> = times.into_iter().map(|time| time.as_secs_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    seconds
}
