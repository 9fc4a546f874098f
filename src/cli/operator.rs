//! `sluice operator`: puts the parts together, starts them, and ends them in good order.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, sync::Arc};

use anyhow::{Context as _, anyhow};
use clap::{ArgAction, Args};
use futures::future::BoxFuture;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Failure, preflight};
use crate::{
    cluster::{Scope, foreign::Foreign},
    dataplane::{self, Authority},
    gate::{Capacity, GateHost, LocalGateHost},
    gateplugin::{self, Installed, Library},
    promotionpolicy,
    telemetry::{self, LogFormat, Metrics, Readiness},
};

/// Run the operator
///
/// Without --kubeconfig and --context it takes the cluster of $KUBECONFIG or ~/.kube/config, and inside a Pod the
/// Pod's own. It needs the custom resource definitions and roles of deploy/ and says what is missing.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Kubeconfig file; default: $KUBECONFIG, ~/.kube/config, then the Pod's service account
    #[arg(long, env = "SLUICE_KUBECONFIG", value_name = "FILE", help_heading = "Cluster")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig; default: its current one
    #[arg(long, env = "SLUICE_CONTEXT", help_heading = "Cluster")]
    context: Option<String>,

    /// The operator's own namespace, where the cluster CA is kept
    #[arg(long, env = "POD_NAMESPACE", default_value = "sluice-system", help_heading = "Cluster")]
    namespace: String,

    /// Work in these namespaces only, separated by commas; default: in all
    #[arg(
        long,
        env = "SLUICE_WATCH_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMES",
        help_heading = "Cluster"
    )]
    watch_namespaces: Vec<String>,

    /// Namespace of Kong's own operator, to which everything is left while it runs; default: it is looked for in all
    #[arg(long, env = "SLUICE_KONG_NAMESPACE", value_name = "NAME", help_heading = "Cluster")]
    kong_namespace: Option<String>,

    /// Secret with the CA that signs the certificates of admin APIs; made if it does not exist
    #[arg(
        long,
        env = "SLUICE_CLUSTER_CA_SECRET",
        default_value = "kong-operator-ca",
        value_name = "NAME",
        help_heading = "Gateways"
    )]
    cluster_ca_secret: String,

    /// Refuse gateway images whose version is not known to work
    #[arg(long, env = "SLUICE_VALIDATE_IMAGES", default_value_t = true, action = ArgAction::Set, value_name = "BOOL", help_heading = "Gateways")]
    validate_images: bool,

    /// Trials at once; more wait for their turn. Each may use up to 64 MiB
    #[arg(
        long,
        env = "SLUICE_MAX_CONCURRENT_TRIALS",
        default_value = "64",
        value_name = "N",
        help_heading = "Gateways"
    )]
    max_concurrent_trials: NonZeroU32,

    /// Where /metrics is served
    #[arg(
        long,
        env = "SLUICE_METRICS_BIND_ADDRESS",
        default_value = ":8080",
        value_name = "ADDRESS",
        help_heading = "Telemetry"
    )]
    metrics_bind_address: BindAddress,

    /// Where /healthz and /readyz are served
    #[arg(
        long,
        env = "SLUICE_HEALTH_PROBE_BIND_ADDRESS",
        default_value = ":8081",
        value_name = "ADDRESS",
        help_heading = "Telemetry"
    )]
    health_probe_bind_address: BindAddress,

    /// How log lines are written
    #[arg(long, env = "SLUICE_LOG_FORMAT", value_enum, default_value_t, help_heading = "Telemetry")]
    log_format: LogFormat,

    /// What is logged: a level, or directives such as info,sluice=debug
    #[arg(long, env = "SLUICE_LOG", default_value = "info", value_name = "FILTER", help_heading = "Telemetry")]
    log: String,
}

/// Where to listen: `:8080` is every address of this machine, as in Kong's flags.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BindAddress(Vec<SocketAddr>);

impl std::str::FromStr for BindAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let texts = match text.strip_prefix(':') {
            // The first takes IPv4 too; the second is for machines without IPv6.
            Some(port) => vec![format!("[::]:{port}"), format!("0.0.0.0:{port}")],
            None => vec![text.to_owned()],
        };
        let addresses: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
        addresses.map(Self).map_err(|_| "write :8080, 127.0.0.1:8080 or [::1]:8080".to_owned())
    }
}

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(flags: Flags) -> Result<(), Failure> {
    telemetry::log(flags.log_format, &flags.log).map_err(|error| {
        Failure::new(format!("--log {:?} is not understood", flags.log), error).next("write --log info,sluice=debug")
    })?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("the operator's threads cannot be started", error))?
        .block_on(operate(flags))
}

async fn operate(flags: Flags) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    end_on_signals(&shutdown).map_err(|error| Failure::new("signals cannot be caught", error))?;

    let (metrics, readiness) = (Metrics::default(), Readiness::default());
    let metrics_listener = bind("--metrics-bind-address", &flags.metrics_bind_address).await?;
    let probe_listener = bind("--health-probe-bind-address", &flags.health_probe_bind_address).await?;
    let client = connect(&flags).await?;
    let scopes = scopes(&flags.watch_namespaces);
    // A cluster that hangs must not hold up a process that was told to stop.
    match shutdown.run_until_cancelled(preflight::check(&client, &scopes)).await {
        Some(checked) => checked?,
        None => return Ok(()),
    }

    let authority = Authority::load(client.clone(), &flags.namespace, &flags.cluster_ca_secret);
    let authority = match shutdown.run_until_cancelled(authority).await {
        Some(loaded) => loaded.map_err(|error| {
            Failure::new("certificates cannot be issued", error)
                .next("see --namespace and --cluster-ca-secret, and the Role in deploy/operator.yaml")
        })?,
        None => return Ok(()),
    };

    let kongs = flags.kong_namespace.clone().map_or(Scope::Cluster, Scope::Namespace);
    let foreign = if preflight::sees_leases(&client, &kongs).await {
        Foreign::watch(&client, &kongs)
    } else {
        tracing::warn!("Leases of {kongs} may not be seen: a Kong operator at work there will not be noticed");
        Foreign::unseen()
    };
    let parts = Parts {
        host: gate_host(&flags)?,
        authority: Arc::new(authority),
        foreign,
        identity: identity(),
        validate_images: flags.validate_images,
        installed: Installed::awaiting(scopes.len()),
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        shutdown: shutdown.clone(),
        client,
        scopes,
    };
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let routes = telemetry::metrics_routes(metrics);
    tasks.spawn(serve(metrics_listener, routes, shutdown.clone()));
    tasks.spawn(serve(probe_listener, telemetry::probe_routes(readiness), shutdown.clone()));
    for controller in controllers(&parts) {
        tasks.spawn(controller);
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");
    run_to_the_end(tasks, &shutdown).await
}

/// What the controllers share.
struct Parts {
    client: Client,
    scopes: Vec<Scope>,
    host: Arc<dyn GateHost>,
    authority: Arc<Authority>,
    foreign: Foreign,
    identity: String,
    validate_images: bool,
    installed: Installed,
    metrics: Metrics,
    readiness: Readiness,
    shutdown: CancellationToken,
}

/// The name of this very process in evidence and Events: a restarted one must not take the trials of the one before
/// for its own.
fn identity() -> String {
    let host = std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME")).unwrap_or_else(|_| "sluice".to_owned());
    let started = jiff::Timestamp::now().as_millisecond();
    format!("{host}_{}-{started:x}", std::process::id())
}

/// Every controller of the operator. Each runs until shutdown.
fn controllers(parts: &Parts) -> Vec<BoxFuture<'static, anyhow::Result<()>>> {
    let Parts {
        client,
        scopes,
        host,
        authority,
        foreign,
        identity,
        validate_images,
        installed,
        metrics,
        readiness,
        shutdown,
    } = parts;
    let library = Arc::new(Library::new(host.clone()));
    let mut controllers: Vec<BoxFuture<'static, anyhow::Result<()>>> = Vec::new();
    for scope in scopes {
        let plugins = gateplugin::run(gateplugin::Setup {
            client: client.clone(),
            scope: scope.clone(),
            library: library.clone(),
            installed: installed.clone(),
            // Whether an upgrade still needs what a plugin was is for its promotion to say. To keep is always safe.
            pinned: Arc::new(|_| true),
            metrics: metrics.clone(),
            ready: readiness.expect(format!("GatePlugins and ConfigMaps of {scope}")),
            shutdown: shutdown.clone(),
        });
        controllers.push(Box::pin(async move {
            plugins.await;
            Ok(())
        }));
        let policies = promotionpolicy::run(promotionpolicy::Setup {
            client: client.clone(),
            scope: scope.clone(),
            host: host.clone(),
            installed: installed.clone(),
            metrics: metrics.clone(),
            ready: readiness.expect(format!("PromotionPolicies of {scope}")),
            shutdown: shutdown.clone(),
        });
        controllers.push(Box::pin(async move {
            policies.await;
            Ok(())
        }));
        let dataplanes = dataplane::run(dataplane::Setup {
            client: client.clone(),
            scope: scope.clone(),
            authority: authority.clone(),
            foreign: foreign.clone(),
            host: host.clone(),
            installed: installed.clone(),
            identity: identity.clone(),
            validate_images: *validate_images,
            metrics: metrics.clone(),
            ready: readiness.expect(format!("DataPlanes and what they own of {scope}")),
            shutdown: shutdown.clone(),
        });
        controllers
            .push(Box::pin(async move { dataplanes.await.context("the caches of DataPlanes cannot be filled") }));
    }
    controllers
}

fn gate_host(flags: &Flags) -> Result<Arc<dyn GateHost>, Failure> {
    let capacity = Capacity { trials: flags.max_concurrent_trials, ..Capacity::default() };
    let host = LocalGateHost::start(capacity).map_err(|error| {
        Failure::new("gates cannot be run on this machine", error)
            .next("lower --max-concurrent-trials, or raise the limit of address space (ulimit -v)")
    })?;
    Ok(Arc::new(host))
}

async fn connect(flags: &Flags) -> Result<Client, Failure> {
    let failed = |error: anyhow::Error| {
        Failure::new("no cluster can be found", error)
            .next("name one with --kubeconfig and --context, or run in a Pod with a service account")
    };
    let config = match (&flags.kubeconfig, &flags.context) {
        (None, None) => Config::infer().await.map_err(|error| failed(error.into()))?,
        (file, context) => {
            let kubeconfig = match file {
                Some(file) => Kubeconfig::read_from(file).with_context(|| format!("--kubeconfig {}", file.display())),
                None => Kubeconfig::read().context("the default kubeconfig"),
            };
            let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(kubeconfig.map_err(failed)?, &options)
                .await
                .map_err(|error| failed(error.into()))?
        }
    };
    Client::try_from(config).map_err(|error| failed(error.into()))
}

fn scopes(namespaces: &[String]) -> Vec<Scope> {
    let mut named: Vec<_> = namespaces.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    named.sort_unstable();
    named.dedup();
    match named.as_slice() {
        [] => vec![Scope::Cluster],
        named => named.iter().map(|name| Scope::Namespace((*name).to_owned())).collect(),
    }
}

async fn bind(flag: &str, address: &BindAddress) -> Result<TcpListener, Failure> {
    telemetry::bind(&address.0).await.map_err(|error| {
        Failure::new(format!("{flag} {} cannot be listened on", address.0[0]), error)
            .next(format!("name a free port with {flag}"))
    })
}

async fn serve(listener: TcpListener, routes: axum::Router, shutdown: CancellationToken) -> anyhow::Result<()> {
    telemetry::serve(listener, routes, shutdown).await.context("a listener broke")
}

fn end_on_signals(shutdown: &CancellationToken) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "passes under way are finished, then the operator ends");
        shutdown.cancel();
    });
    Ok(())
}

/// Nothing of the operator ends by itself: whatever does so before shutdown takes the rest with it, and the process
/// is started afresh.
async fn run_to_the_end(mut tasks: JoinSet<anyhow::Result<()>>, shutdown: &CancellationToken) -> Result<(), Failure> {
    let mut failure = None;
    while let Some(ended) = tasks.join_next().await {
        let cause = match ended {
            Ok(Ok(())) if shutdown.is_cancelled() => continue,
            Ok(Ok(())) => anyhow!("a controller ended by itself"),
            Ok(Err(error)) => error,
            Err(panicked) => panicked.into(),
        };
        shutdown.cancel();
        failure.get_or_insert(cause);
    }
    failure.map_or(Ok(()), |cause| Err(Failure::new("the operator cannot go on", cause)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_every_address() {
        let BindAddress(addresses) = ":8080".parse().expect("an address");
        assert!(addresses.iter().all(|address| address.ip().is_unspecified() && address.port() == 8080));
        assert_eq!("127.0.0.1:1".parse(), Ok(BindAddress(vec![([127, 0, 0, 1], 1).into()])));
        assert!("8080".parse::<BindAddress>().is_err());
    }

    #[test]
    fn no_namespaces_are_all_namespaces_and_each_counts_once() {
        let scope = |name: &str| Scope::Namespace(name.into());
        assert_eq!(scopes(&[]), [Scope::Cluster]);
        assert_eq!(scopes(&[String::new()]), [Scope::Cluster]);
        assert_eq!(scopes(&["b".into(), " a".into(), "b".into()]), [scope("a"), scope("b")]);
    }

    #[tokio::test]
    async fn one_end_is_the_end_of_all() {
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(async { Err(anyhow!("broken")) });
        let other = shutdown.clone();
        tasks.spawn(async move {
            other.cancelled().await;
            Ok(())
        });
        let failure = run_to_the_end(tasks, &shutdown).await.expect_err("a failure");
        assert!(failure.to_string().contains("broken"), "{failure}");
    }
}
