//! `sluice gate-host`: runs gates for the operator beside it, without a token and without a cluster.

use std::{
    fs,
    io::ErrorKind,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::{net::UnixListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Failure,
    process::{self, BindAddress, Log, bind, end_on_signals, run_to_the_end},
};
use crate::{
    gate::{self, Cache, Capacity, Compiler, Key, LocalGateHost, Prometheus, Reach, Workshop},
    model::quantity,
    telemetry::{self, Readiness},
};

/// Run the gate host
///
/// It runs the gates of the operator that shares its socket: WebAssembly components, each trial in a sandbox of its own.
/// It needs no cluster and should have no token.
// The last of a flag counts, as with kubectl and Kong's operator.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub(super) struct Flags {
    /// Socket to listen on; who may open it may run gates
    #[arg(long, env = "SLUICE_GATE_HOST", default_value = process::SOCKET, value_name = "FILE")]
    socket: PathBuf,

    /// Trials at once; more wait for their turn. Each may use up to 64 MiB
    #[arg(long, env = "SLUICE_MAX_CONCURRENT_TRIALS", default_value = "64", value_name = "N")]
    max_concurrent_trials: NonZeroU32,

    /// Folder for compiled plugins, of which it makes one of its own; default: a temporary folder that goes with the process
    #[arg(long, env = "SLUICE_CACHE", value_name = "DIR", help_heading = "Compiled plugins")]
    cache: Option<PathBuf>,

    /// File with at least 32 secret bytes: what was compiled before a restart is used again if the key is the same;
    /// default: a new key in every process
    #[arg(long, env = "SLUICE_CACHE_KEY", value_name = "FILE", requires = "cache", help_heading = "Compiled plugins")]
    cache_key: Option<PathBuf>,

    /// Bytes of compiled plugins kept; those that were not used for longest go first
    #[arg(
        long,
        env = "SLUICE_CACHE_SIZE",
        value_parser = quantity::bytes,
        default_value = "512Mi",
        value_name = "BYTES",
        help_heading = "Compiled plugins"
    )]
    cache_size: u64,
    /// Where gates' queries are asked: http://HOST[:PORT][/PATH] or https://...; default: nowhere
    #[arg(long, env = "SLUICE_PROMETHEUS", value_name = "URL", help_heading = "Outside")]
    prometheus: Option<Prometheus>,

    /// Let gates that bring an HTTP client import wasi:http 0.2; its requests go to the targets of their trial, and nowhere
    /// else
    #[arg(long, env = "SLUICE_ALLOW_WASI_HTTP", help_heading = "Outside")]
    allow_wasi_http: bool,

    /// PEM file of the authorities that hosts outside are trusted for; default: this machine's
    #[arg(long, env = "SLUICE_CA_FILE", value_name = "FILE", help_heading = "Outside")]
    ca_file: Option<PathBuf>,

    /// Where /healthz and /readyz are served
    #[arg(
        long,
        env = "SLUICE_GATE_HOST_HEALTH_PROBE_BIND_ADDRESS",
        default_value = ":8082",
        value_name = "ADDRESS",
        help_heading = "Telemetry"
    )]
    health_probe_bind_address: BindAddress,

    #[command(flatten)]
    log: Log,
}

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(flags: Flags) -> Result<(), Failure> {
    flags.log.start()?;
    process::block_on(host(flags))
}

async fn host(flags: Flags) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    end_on_signals(&shutdown).map_err(|error| Failure::new("signals cannot be caught", error))?;
    let probes = bind("--health-probe-bind-address", &flags.health_probe_bind_address).await?;
    let capacity = Capacity { trials: flags.max_concurrent_trials, ..Capacity::default() };
    let mut reach = Reach::trusting(roots(flags.ca_file.as_deref())?);
    reach.prometheus = flags.prometheus.clone();
    reach.wasi_http = flags.allow_wasi_http;
    let compiler = compiler(&flags)?;
    open_many_files();
    let host = LocalGateHost::reaching(reach, capacity, compiler).map_err(|error| {
        Failure::new("gates cannot be run on this machine", error)
            .next("lower --max-concurrent-trials, or raise the limits of address space and threads (ulimit -v, -u)")
    })?;
    let socket = listen(&flags.socket)?;

    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let routes = telemetry::probe_routes(Readiness::default());
    tasks.spawn(process::serve(probes, routes, shutdown.clone()));
    let ends = shutdown.clone();
    tasks.spawn(async move { gate::serve(Arc::new(host), socket, ends).await.context("the socket broke") });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %flags.socket.display(), "gates can be run");
    run_to_the_end(tasks, &shutdown).await
}

/// Compiles in children that are this very program, even when its file was replaced meanwhile.
fn compiler(flags: &Flags) -> Result<Compiler, Failure> {
    let cache = match &flags.cache {
        Some(folder) => {
            let key = flags.cache_key.as_deref().map_or_else(Key::random, Key::read);
            key.and_then(|key| Cache::open(folder, key, flags.cache_size))
        }
        None => Cache::temporary(flags.cache_size),
    };
    let cache = cache.map_err(|error| {
        Failure::new("compiled plugins cannot be kept", error)
            .next("name a folder that this user may write to with --cache, and a key of 32 bytes with --cache-key")
    })?;
    Ok(Compiler::Child(Box::new(Workshop::new("/proc/self/exe".into(), cache))))
}

/// Every request of a gate is an open file, and the soft limit is of the days of `select`.
fn open_many_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is: many requests at once may fail");
    }
}

/// Whom hosts outside are trusted for.
fn roots(file: Option<&Path>) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        // A machine without any has hosts outside whose certificates nobody vouches for: refused when they are met.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let failed = |error: String| {
        Failure::new(format!("--ca-file {} cannot be used", file.display()), anyhow!(error))
            .next("name a file with certificates of authorities in PEM")
    };
    let certificates = CertificateDer::pem_file_iter(file).map_err(|error| failed(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if roots.is_empty() { Err(failed("there is no certificate in it".into())) } else { Ok(roots) }
}

/// Takes the place of a socket that a host before left behind: that one cannot clean up when it is killed.
fn listen(path: &PathBuf) -> Result<UnixListener, Failure> {
    let failed = |error| {
        Failure::new(format!("--socket {} cannot be listened on", path.display()), error)
            .next("name a file in a folder that exists and can be written to with --socket")
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    UnixListener::bind(path).map_err(failed)
}
