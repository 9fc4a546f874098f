//! `sluice operator`: puts the parts together, starts them, and ends them in good order.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::{ArgAction, Args};
use futures::future::BoxFuture;
use ipnet::IpNet;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    Failure, preflight,
    process::{self, BindAddress, Log, bind, end_on_signals, run_to_the_end, serve},
};
use crate::{
    api::{ClusterGatePlugin, ClusterPromotionPolicy, GatePlugin, PromotionPolicy},
    cluster::{
        Scope,
        foreign::Foreign,
        leader::{self, Campaign, Hold, Lock},
    },
    dataplane::{self, Authority},
    gate::{GateHost, RemoteGateHost},
    gateplugin::{self, Allowed, Cache, Ceiling, Fetcher, Installed, Library, Sources, TrustRoot},
    model::{
        duration,
        grants::{Ceilings, HostPattern},
        quantity,
    },
    promotionpolicy,
    telemetry::{self, Expectation, Metrics, Readiness},
};

/// Run the operator
///
/// Without --kubeconfig and --context it takes the cluster of $KUBECONFIG or ~/.kube/config, and inside a Pod the
/// Pod's own. It needs the custom resource definitions and roles of deploy/ and says what is missing.
// The last of a flag counts, as with kubectl and Kong's operator.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub(super) struct Flags {
    /// Kubeconfig file; default: $KUBECONFIG, ~/.kube/config, then the Pod's service account
    #[arg(long, env = "SLUICE_KUBECONFIG", value_name = "FILE", help_heading = "Cluster")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig; default: its current one
    #[arg(long, env = "SLUICE_CONTEXT", help_heading = "Cluster")]
    context: Option<String>,

    /// The operator's own namespace, where the cluster CA and the Lease are kept
    #[arg(long, env = "POD_NAMESPACE", default_value = "sluice-system", help_heading = "Cluster")]
    namespace: String,

    /// Work in these namespaces only, separated by commas, and without plugins and policies of the cluster; default: in
    /// all
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

    /// Work only while holding a Lease, so that of several operators one works and the others stand by
    #[arg(long, env = "SLUICE_LEADER_ELECT", default_value_t = true, action = ArgAction::Set, value_name = "BOOL", help_heading = "Cluster")]
    leader_elect: bool,

    /// The Lease; operators that share a namespace and watch different ones each need their own
    #[arg(
        long,
        env = "SLUICE_LEADER_ELECT_RESOURCE_NAME",
        default_value = "sluice-operator",
        value_name = "NAME",
        help_heading = "Cluster"
    )]
    leader_elect_resource_name: String,

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

    /// Socket of the gate host, which runs the gates: `sluice gate-host`
    #[arg(long, env = "SLUICE_GATE_HOST", default_value = process::SOCKET, value_name = "FILE", help_heading = "Gateways")]
    gate_host: PathBuf,

    #[command(flatten)]
    ceiling: CeilingFlags,

    /// Hosts that policies may let gates speak to, separated by commas: jira.example.com, *.example.com; default: none
    #[arg(
        long = "egress-host",
        env = "SLUICE_EGRESS_HOSTS",
        value_delimiter = ',',
        value_name = "HOSTS",
        help_heading = "Gates"
    )]
    egress_hosts: Vec<HostPattern>,

    /// Addresses of such hosts that may be dialled though they are not public, separated by commas: 10.1.0.0/16
    #[arg(
        long = "egress-range",
        env = "SLUICE_EGRESS_RANGES",
        value_delimiter = ',',
        value_name = "CIDRS",
        help_heading = "Gates"
    )]
    egress_ranges: Vec<IpNet>,

    /// YAML file with the registries and web servers that plugins may come from; default: none
    ///
    /// registries: a list of {prefix, mirror, tokenHosts, blobHosts, caBundle, proxy}; http: {hosts, caBundle, proxy}.
    #[arg(long, env = "SLUICE_PLUGIN_SOURCES", value_name = "FILE", help_heading = "Plugins")]
    plugin_sources: Option<PathBuf>,

    /// Folder with components that ClusterGatePlugins may name as files; default: none
    #[arg(long, env = "SLUICE_PLUGIN_FOLDER", value_name = "DIR", help_heading = "Plugins")]
    plugin_folder: Option<PathBuf>,

    /// Folder for up to 512 MiB of components from registries and web servers; default: they are fetched again after
    /// a restart
    #[arg(long, env = "SLUICE_PLUGIN_CACHE", value_name = "DIR", help_heading = "Plugins")]
    plugin_cache: Option<PathBuf>,

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

    /// Sigstore's trusted_root.json, against which spec.verify.identities of plugins are verified; default: they are
    /// refused
    #[arg(long, env = "SLUICE_SIGSTORE_TRUST_ROOT", value_name = "FILE", help_heading = "Plugins")]
    sigstore_trust_root: Option<PathBuf>,

    #[command(flatten)]
    log: Log,
}

/// The most that a GatePlugin may ask for in its spec.limits.
#[derive(Debug, Args)]
struct CeilingFlags {
    /// The most CPU time that a GatePlugin may be given for a trial
    #[arg(long, env = "SLUICE_MAX_GATE_CPU", value_parser = duration::parse, default_value = "10s", value_name = "TIME", help_heading = "Gates")]
    max_gate_cpu: Duration,

    /// The most memory that a GatePlugin may be given for a trial; the gate host's own memory has to be there for as
    /// many trials as run at once
    #[arg(long, env = "SLUICE_MAX_GATE_MEMORY", value_parser = quantity::bytes, default_value = "256Mi", value_name = "BYTES", help_heading = "Gates")]
    max_gate_memory: u64,

    /// The most requests that a GatePlugin may be given for a trial
    #[arg(long, env = "SLUICE_MAX_GATE_REQUESTS", default_value = "100000", value_name = "N", help_heading = "Gates")]
    max_gate_requests: u32,

    /// The most bytes of requests and answers that a GatePlugin may be given for a trial
    #[arg(long, env = "SLUICE_MAX_GATE_TRAFFIC", value_parser = quantity::bytes, default_value = "1Gi", value_name = "BYTES", help_heading = "Gates")]
    max_gate_traffic: u64,
}

impl From<&CeilingFlags> for Ceiling {
    fn from(flags: &CeilingFlags) -> Self {
        Self {
            cpu: flags.max_gate_cpu,
            memory: flags.max_gate_memory,
            requests: flags.max_gate_requests,
            traffic: flags.max_gate_traffic,
        }
    }
}

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(flags: Flags) -> Result<(), Failure> {
    flags.log.start()?;
    process::block_on(operate(flags))
}

async fn operate(flags: Flags) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    end_on_signals(&shutdown).map_err(|error| Failure::new("signals cannot be caught", error))?;

    let (metrics, readiness) = (Metrics::default(), Readiness::default());
    let metrics_listener = bind("--metrics-bind-address", &flags.metrics_bind_address).await?;
    let probe_listener = bind("--health-probe-bind-address", &flags.health_probe_bind_address).await?;
    let api = connect(&flags).await?;
    let mut campaign = flags.leader_elect.then(|| Campaign::new(api.clone(), lock(&flags)));
    let hold = Hold::default();
    // Whoever writes, but for what comes first here, writes while the Lease is held.
    let client = if flags.leader_elect { leader::guard(api.clone(), hold.clone()) } else { api.clone() };
    let fetcher = Arc::new(fetcher(&flags, client.clone())?);
    // A cluster that hangs must not hold up a process that was told to stop.
    let checked = async {
        preflight::check(&api, &scopes(&flags.watch_namespaces)).await?;
        match &campaign {
            Some(campaign) => preflight::check_lease(&api, campaign.lock()).await,
            None => Ok(()),
        }
    };
    match shutdown.run_until_cancelled(checked).await {
        Some(checked) => checked?,
        None => return Ok(()),
    }

    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    tasks.spawn(serve(metrics_listener, telemetry::metrics_routes(metrics.clone()), shutdown.clone()));
    tasks.spawn(serve(probe_listener, telemetry::probe_routes(readiness.clone()), shutdown.clone()));

    if let Some(campaign) = &mut campaign
        && shutdown.run_until_cancelled(stand_by(campaign, &hold, &readiness)).await.is_none()
    {
        return run_to_the_end(tasks, &shutdown).await;
    }
    metrics.leads();
    let work = work(&flags, client, fetcher, metrics, readiness, tasks, shutdown);
    let Some(mut campaign) = campaign else { return work.await };
    tokio::select! {
        // What is dropped with this stops in the middle: not even what is under way may be finished.
        biased;
        lost = campaign.keep(&hold) => Err(Failure::new(format!("{} is lost", campaign.lock()), lost)
            .next("start this process again: it stands by until the Lease is free")),
        ended = work => {
            campaign.release(&hold).await;
            ended
        }
    }
}

/// Which Lease, and who this is. A container that is started again is the one before, which has ended: it takes up what it
/// held, at once. Every other process is another one.
fn lock(flags: &Flags) -> Lock {
    let pod = |field: &str| std::env::var(field).ok().filter(|value| !value.is_empty());
    let identity = match (pod("POD_NAME"), pod("POD_UID")) {
        (Some(name), Some(uid)) => format!("{name}_{uid}"),
        _ => identity(),
    };
    Lock { namespace: flags.namespace.clone(), name: flags.leader_elect_resource_name.clone(), identity }
}

/// Waits until this process may work.
async fn stand_by(campaign: &mut Campaign, hold: &Hold, readiness: &Readiness) {
    let lock = campaign.lock().clone();
    let mut seen = Some(readiness.expect(lock.to_string()));
    let mut known = String::new();
    campaign
        .win(hold, |holder| {
            if known != holder {
                tracing::info!(holder, "stands by: {lock} is held");
                readiness.is(format!("stands by, {holder} works"));
                holder.clone_into(&mut known);
            }
            seen.take().into_iter().for_each(Expectation::met);
        })
        .await;
    tracing::info!(identity = lock.identity, "works: {lock} is held by this process");
    readiness.is("works");
    seen.into_iter().for_each(Expectation::met);
}

/// Does the work of an operator until shutdown.
async fn work(
    flags: &Flags,
    client: Client,
    fetcher: Arc<Fetcher>,
    metrics: Metrics,
    readiness: Readiness,
    mut tasks: JoinSet<anyhow::Result<()>>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let scopes = scopes(&flags.watch_namespaces);
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
    // Of several operators, each with its namespaces, none could say what the others have ready.
    let own = (scopes == [Scope::Cluster]).then(|| Scope::Namespace(flags.namespace.clone()));
    let parts = Parts {
        fetcher,
        installed: Installed::awaiting(scopes.len() + usize::from(own.is_some())),
        own,
        host: Arc::new(RemoteGateHost::at(&flags.gate_host)),
        authority: Arc::new(authority),
        foreign,
        identity: identity(),
        validate_images: flags.validate_images,
        ceiling: Ceiling::from(&flags.ceiling),
        ceilings: Ceilings { hosts: flags.egress_hosts.clone(), ranges: flags.egress_ranges.clone() },
        metrics,
        readiness,
        shutdown: shutdown.clone(),
        client,
        scopes,
    };
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
    /// The operator's own namespace, if it installs the plugins of the cluster.
    own: Option<Scope>,
    fetcher: Arc<Fetcher>,
    host: Arc<dyn GateHost>,
    authority: Arc<Authority>,
    foreign: Foreign,
    identity: String,
    validate_images: bool,
    ceiling: Ceiling,
    ceilings: Ceilings,
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
        own,
        fetcher,
        host,
        authority,
        foreign,
        identity,
        validate_images,
        ceiling,
        ceilings,
        installed,
        metrics,
        readiness,
        shutdown,
    } = parts;
    let library = Arc::new(Library::new(host.clone()));
    let mut controllers: Vec<BoxFuture<'static, anyhow::Result<()>>> = Vec::new();
    let plugins = |scope: &Scope, what: &str| gateplugin::Setup {
        client: client.clone(),
        scope: scope.clone(),
        fetcher: fetcher.clone(),
        library: library.clone(),
        installed: installed.clone(),
        ceiling: *ceiling,
        metrics: metrics.clone(),
        ready: readiness.expect(format!("{what} and ConfigMaps of {scope}")),
        shutdown: shutdown.clone(),
    };
    let policies = |scope: &Scope, what: &str| promotionpolicy::Setup {
        client: client.clone(),
        scope: scope.clone(),
        host: host.clone(),
        installed: installed.clone(),
        ceilings: ceilings.clone(),
        metrics: metrics.clone(),
        ready: readiness.expect(format!("{what} of {scope}")),
        shutdown: shutdown.clone(),
    };
    if let Some(own) = own {
        let plugins = gateplugin::run::<ClusterGatePlugin>(plugins(own, "ClusterGatePlugins"));
        let policies =
            promotionpolicy::run::<ClusterPromotionPolicy>(policies(&Scope::Cluster, "ClusterPromotionPolicies"));
        controllers.push(Box::pin(async move {
            tokio::join!(plugins, policies);
            Ok(())
        }));
    }
    for scope in scopes {
        let plugins = gateplugin::run::<GatePlugin>(plugins(scope, "GatePlugins"));
        controllers.push(Box::pin(async move {
            plugins.await;
            Ok(())
        }));
        let policies = promotionpolicy::run::<PromotionPolicy>(policies(scope, "PromotionPolicies"));
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
            ceilings: ceilings.clone(),
            metrics: metrics.clone(),
            ready: readiness.expect(format!("DataPlanes and what they own of {scope}")),
            shutdown: shutdown.clone(),
        });
        controllers
            .push(Box::pin(async move { dataplanes.await.context("the caches of DataPlanes cannot be filled") }));
    }
    controllers
}

/// What plugins may come from. A file or folder that cannot be used is better said now than with the first plugin.
fn fetcher(flags: &Flags, client: Client) -> Result<Fetcher, Failure> {
    let sources = configured("--plugin-sources", flags.plugin_sources.as_deref(), |text| Ok(Sources::parse(text)?))?;
    let trust_root = configured("--sigstore-trust-root", flags.sigstore_trust_root.as_deref(), |text| {
        TrustRoot::parse(text).map_err(anyhow::Error::msg)
    })?;
    let cache = flags.plugin_cache.as_deref().map(|folder| {
        Cache::at(folder).map_err(|error| {
            Failure::new(format!("--plugin-cache {} cannot be used", folder.display()), error)
                .next("name a folder that can be made and written to")
        })
    });
    if let Some(folder) = flags.plugin_folder.as_deref().filter(|folder| !folder.is_dir()) {
        let cause = anyhow::anyhow!("it is no folder");
        return Err(Failure::new(format!("--plugin-folder {} cannot be used", folder.display()), cause)
            .next("mount a volume there, or leave the flag out"));
    }
    let allowed = Allowed {
        sources: sources.unwrap_or_default(),
        folder: flags.plugin_folder.clone(),
        cache: cache.transpose()?,
        trust_root,
    };
    Ok(Fetcher::new(Arc::new(client), allowed))
}

/// The file of a flag, if it is given.
fn configured<T>(
    flag: &str,
    file: Option<&Path>,
    parse: impl FnOnce(&str) -> anyhow::Result<T>,
) -> Result<Option<T>, Failure> {
    let Some(file) = file else { return Ok(None) };
    let read = std::fs::read_to_string(file).map_err(anyhow::Error::from).and_then(|text| parse(&text));
    let configured = read.map_err(|error| {
        Failure::new(format!("{flag} {} cannot be used", file.display()), error)
            .next("see \"Where gates come from\" in README.md for what it looks like")
    });
    configured.map(Some)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_namespaces_are_all_namespaces_and_each_counts_once() {
        let scope = |name: &str| Scope::Namespace(name.into());
        assert_eq!(scopes(&[]), [Scope::Cluster]);
        assert_eq!(scopes(&[String::new()]), [Scope::Cluster]);
        assert_eq!(scopes(&["b".into(), " a".into(), "b".into()]), [scope("a"), scope("b")]);
    }
}
