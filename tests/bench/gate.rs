//! What the gate host costs, beside the engine, hyper and a timer alone, in the same process on one CPU. Prints a line of
//! JSON for each row; `cargo figures gate` runs it and knows the targets.
//!
//! The first argument is a folder with the plugins of `cargo plugins`.

#[path = "../it/gate/fixtures.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "tests use the rest, and may stop where they stand")]
mod fixtures;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::json;
use sluice::{
    gate::{Capacity, Compiler, GateHost as _, LocalGateHost},
    model::trial::{Digest, Endpoint, Grants, Limits, Method, Moment, Outcome, Scheme, Target, Trial},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};

/// Blocks of a comparison, and evaluations of each kind in a block.
const BLOCKS: usize = 7;
const EACH: usize = 200;

fn main() -> Result<()> {
    // Cargo's own flags come first.
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder = PathBuf::from(folder.context("name the folder of the plugins")?);
    // One CPU for all: what is compared shares its caches, and no other thread helps either side.
    let mut cpu = CpuSet::new();
    cpu.set(0);
    sched_setaffinity(None, &cpu)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(folder))
}

async fn measure(folder: PathBuf) -> Result<()> {
    let capacity = Capacity { trials: 8.try_into()?, threads: 1.try_into()? };
    let host = LocalGateHost::start(capacity, Compiler::InProcess)?;
    let smoke = std::fs::read(folder.join("http-smoke.wasm")).context("http-smoke.wasm; `cargo plugins` makes it")?;
    let smoke = load(&host, &unpacked(smoke)?).await?;
    evaluation(&host, &smoke).await?;
    request(&host, &smoke).await?;
    hang(&host, &smoke).await?;
    busy(&host).await
}

/// `cargo plugins` packs what it builds for ConfigMaps.
fn unpacked(bytes: Vec<u8>) -> Result<Bytes> {
    if bytes.starts_with(b"\0asm") {
        return Ok(bytes.into());
    }
    let mut component = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(bytes.as_slice()), &mut component)?;
    Ok(component.into())
}

async fn load(host: &LocalGateHost, bytes: &Bytes) -> Result<Digest> {
    Ok(host.load(bytes.clone()).await?.digest)
}

fn row(name: &str, value: f64) {
    #[expect(clippy::print_stdout, reason = "this is what it is run for")]
    {
        println!("{}", json!({ "name": name, "value": value }));
    }
}

fn trial(digest: &Digest) -> Trial {
    Trial {
        id: "bench".into(),
        namespace: "bench".into(),
        digest: digest.clone(),
        settings: json!({}),
        moment: Moment::BeforePromotion,
        timeout: Duration::from_secs(30),
        limits: Limits::default(),
        targets: Vec::new(),
        state: None,
        grants: Grants::default(),
        candidate: None,
        stable: None,
    }
}

fn proxy(address: SocketAddr) -> Target {
    Target {
        name: "candidate/proxy".into(),
        scheme: Scheme::Http,
        service: address,
        host: "bench".into(),
        endpoints: vec![Endpoint { name: "pod".into(), address }],
        methods: vec![Method::Get],
    }
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
    let digest = load(host, &fixtures::fixture("busy_loop", &[("rounds", "0")])).await?;
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
