//! What the process tells about itself: logs, metrics, `/healthz` and `/readyz`.

use std::{
    collections::BTreeSet,
    future::Future,
    io::{self, IsTerminal},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse, routing::get};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::model::trial::{Outcome, Report};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object on each line.
    Json,
}

/// Sends logs to stderr from here on. `filter` is a list of directives such as `info,sluice=debug`.
///
/// # Errors
/// A directive that is not understood.
pub fn log(format: LogFormat, filter: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    // Colour is for eyes: not for files and pipes, and not for those who said no (https://no-color.org).
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(io::stderr)
        .with_ansi(colour);
    // A second call loses to the first: a test that sets up logs twice is no reason to stop.
    let _ = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    /// `pass`, `fail`, `inconclusive`, `wait`, or what was to blame for an error.
    outcome: &'static str,
}

/// Counters and timers of the process. Clones share their numbers.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    leader: Gauge,
    reconciles: Family<Kind, Counter>,
    errors: Family<Kind, Counter>,
    seconds: Family<Kind, Histogram>,
    writes: Family<Kind, Counter>,
    trials: Family<Ended, Counter>,
    trial_seconds: Histogram,
    trial_cpu_seconds: Histogram,
    trial_queue_seconds: Histogram,
    trial_memory_bytes: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("sluice");
        let leader = Gauge::default();
        registry.register("leader", "1 where this process works, 0 where it stands by", leader.clone());
        let reconciles = Family::default();
        registry.register("reconciles", "Passes over an object, failed ones included", reconciles.clone());
        let errors = Family::default();
        registry.register("reconcile_errors", "Passes over an object that ended in an error", errors.clone());
        // A pass at rest reads caches and takes well under a millisecond; one that compiles a plugin takes seconds.
        let seconds: Family<Kind, Histogram> =
            Family::new_with_constructor(|| Histogram::new([0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0]));
        registry.register("reconcile_duration_seconds", "Time of one pass over an object", seconds.clone());
        let writes = Family::default();
        registry.register("writes", "Requests that changed something in the cluster", writes.clone());
        let trials = Family::default();
        registry.register("trials", "Trials of gates that ended, by what came of them", trials.clone());
        let trial_seconds = Histogram::new([0.001, 0.01, 0.1, 1.0, 5.0, 30.0, 120.0]);
        registry.register("trial_duration_seconds", "Wall time of one trial of a gate", trial_seconds.clone());
        let trial_cpu_seconds = Histogram::new([0.0001, 0.001, 0.01, 0.1, 0.5, 2.0]);
        registry.register("trial_cpu_seconds", "CPU time of one trial of a gate", trial_cpu_seconds.clone());
        let trial_queue_seconds = Histogram::new([0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]);
        registry.register("trial_queue_seconds", "Time a trial waited for its turn", trial_queue_seconds.clone());
        let trial_memory_bytes = Histogram::new([1e5, 1e6, 4e6, 16e6, 64e6, 256e6]);
        registry.register("trial_memory_bytes", "Peak memory of one trial of a gate", trial_memory_bytes.clone());
        Self {
            registry: Arc::new(registry),
            leader,
            reconciles,
            errors,
            seconds,
            writes,
            trials,
            trial_seconds,
            trial_cpu_seconds,
            trial_queue_seconds,
            trial_memory_bytes,
        }
    }
}

impl Metrics {
    /// Runs one pass over an object of `kind`, counts it and takes its time.
    ///
    /// # Errors
    /// Those of the pass.
    pub async fn pass<T, E>(&self, kind: &'static str, pass: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let (label, began) = (Kind { kind }, Instant::now());
        let result = pass.await;
        self.reconciles.get_or_create(&label).inc();
        self.seconds.get_or_create(&label).observe(began.elapsed().as_secs_f64());
        if result.is_err() {
            self.errors.get_or_create(&label).inc();
        }
        result
    }

    /// From here on this process works.
    pub fn leads(&self) {
        self.leader.set(1);
    }

    /// An object of `kind` was written.
    pub fn wrote(&self, kind: &'static str) {
        self.writes.get_or_create(&Kind { kind }).inc();
    }

    /// A trial of a gate ended.
    pub fn tried(&self, report: &Report) {
        let outcome = match &report.outcome {
            Outcome::Pass(_) => "pass",
            Outcome::Fail(_) => "fail",
            Outcome::Inconclusive(_) => "inconclusive",
            Outcome::Wait { .. } => "wait",
            Outcome::Error { blame, .. } => blame.code(),
        };
        self.trials.get_or_create(&Ended { outcome }).inc();
        self.trial_seconds.observe(report.cost.wall.as_secs_f64());
        self.trial_cpu_seconds.observe(report.cost.cpu.as_secs_f64());
        self.trial_queue_seconds.observe(report.cost.queued.as_secs_f64());
        // Bytes of a trial are far below what a float holds exactly.
        self.trial_memory_bytes.observe(report.cost.memory as f64);
    }

    /// Everything in the OpenMetrics text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut rendered = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut rendered, &self.registry);
        rendered
    }
}

/// What the process still waits for before it is ready, and what it is ready for. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Ready>>);

#[derive(Debug, Default)]
struct Ready {
    pending: BTreeSet<String>,
    role: Option<String>,
}

impl Readiness {
    /// Nothing is ready until the returned expectation is met.
    pub fn expect(&self, what: impl Into<String>) -> Expectation {
        let what = what.into();
        self.lock().pending.insert(what.clone());
        Expectation { of: self.clone(), what }
    }

    /// What a process is that does not do all there is to do, or has others that might.
    pub fn is(&self, role: impl Into<String>) {
        self.lock().role = Some(role.into());
    }

    /// What is said when nothing is waited for any more; else what is.
    ///
    /// # Errors
    /// What is still waited for.
    pub fn answer(&self) -> Result<String, String> {
        let Ready { pending, role } = &*self.lock();
        if !pending.is_empty() {
            return Err(format!("waiting for {}", pending.iter().cloned().collect::<Vec<_>>().join(", ")));
        }
        Ok(role.as_ref().map_or_else(|| "ok".into(), |role| format!("ok: {role}")))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ready> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that has to happen before the process is ready.
#[derive(Debug)]
#[must_use = "the process is not ready until it is met"]
pub struct Expectation {
    of: Readiness,
    what: String,
}

impl Expectation {
    /// It happened.
    pub fn met(self) {
        self.of.lock().pending.remove(&self.what);
    }
}

/// Binds the first of `addresses` that this machine has.
///
/// # Errors
/// The last one's, where none can be bound.
pub async fn bind(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    TcpListener::bind(addresses).await
}

/// `/metrics`.
pub fn metrics_routes(metrics: Metrics) -> Router {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Router::new().route("/metrics", get(async move || ([(CONTENT_TYPE, OPEN_METRICS)], metrics.render())))
}

/// `/healthz`: the process answers. `/readyz`: it has seen the cluster, or stands by; until then 503 and what it waits for.
pub fn probe_routes(readiness: Readiness) -> Router {
    Router::new().route("/healthz", get(async || "ok")).route(
        "/readyz",
        get(async move || match readiness.answer() {
            Ok(ready) => ready.into_response(),
            Err(waiting) => (StatusCode::SERVICE_UNAVAILABLE, waiting).into_response(),
        }),
    )
}

/// Serves until `shutdown`; requests under way are then given a few seconds.
///
/// # Errors
/// Those of the listener.
pub async fn serve(listener: TcpListener, routes: Router, shutdown: CancellationToken) -> io::Result<()> {
    // A scraper that keeps its connection open must not keep a process that was told to stop.
    const LAST_REQUESTS: Duration = Duration::from_secs(3);
    let server = axum::serve(listener, routes).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        served = server => served,
        () = async { shutdown.cancelled().await; tokio::time::sleep(LAST_REQUESTS).await } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passes_are_counted_with_their_errors() {
        let metrics = Metrics::default();
        let _ = metrics.pass("GatePlugin", async { Ok::<_, ()>(()) }).await;
        let _ = metrics.pass("GatePlugin", async { Err::<(), _>(()) }).await;
        metrics.wrote("GatePlugin");
        let rendered = metrics.render();
        for line in [
            "sluice_reconciles_total{kind=\"GatePlugin\"} 2",
            "sluice_reconcile_errors_total{kind=\"GatePlugin\"} 1",
            "sluice_reconcile_duration_seconds_count{kind=\"GatePlugin\"} 2",
            "sluice_writes_total{kind=\"GatePlugin\"} 1",
        ] {
            assert!(rendered.contains(line), "{line} is missing in\n{rendered}");
        }
    }

    #[test]
    fn nothing_is_ready_until_every_expectation_is_met() {
        let readiness = Readiness::default();
        let (policies, plugins) = (readiness.expect("policies"), readiness.expect("plugins"));
        assert_eq!(readiness.answer(), Err("waiting for plugins, policies".into()));
        policies.met();
        assert_eq!(readiness.answer(), Err("waiting for plugins".into()));
        plugins.met();
        assert_eq!(readiness.answer(), Ok("ok".into()));
        readiness.is("stands by");
        assert_eq!(readiness.answer(), Ok("ok: stands by".into()));
    }

    #[test]
    fn who_works_says_so() {
        let metrics = Metrics::default();
        assert!(metrics.render().contains("sluice_leader 0"));
        metrics.leads();
        assert!(metrics.render().contains("sluice_leader 1"));
    }
}
