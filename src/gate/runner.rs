//! The gate host in this process: plugins by digest, a runtime of their own, and a permit for every trial.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    num::{NonZeroU32, NonZeroUsize},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    GateHost, Presence,
    bindings::{self, Prepared, TRACKS},
    compile::Compiler,
    engine::{Sandbox, StartError},
    host::credentials,
    offer::Offer,
    plugin,
    reach::Reach,
    schema::Schema,
    store::{self, Ran, error, explained},
    text,
    turns::{Turn, Turns},
};
use crate::model::trial::{
    Blame, Cost, Digest, Grants, Limits, LoadError, Loaded, Moment, Outcome, Problem, Report, Trial,
};

/// What a guest that is asked about itself or its settings may use: no targets, and little time. The wall
/// clock is generous, because the machine may be busy; the CPU clock is not.
const QUIET_CPU: Duration = Duration::from_millis(100);
const QUIET_MEMORY: usize = 32 << 20;
const QUIET_WALL: Duration = Duration::from_secs(10);

/// Settings of a plugin that are known to fit its schema: gates of so many policies that use it.
const FITTING: usize = 8;

/// How much kinder than the controller: reconciles and the Lease come first on a busy node.
const NICE: i32 = 10;

/// How much a gate host does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Trials at once; more wait for their turn. The pool and everything in it follows from this number.
    pub trials: NonZeroU32,
    /// Threads that run guests.
    pub threads: NonZeroUsize,
}

impl Default for Capacity {
    /// 64 trials, which may use 4 GiB if each of them uses its default limit, on as many threads as there
    /// are CPUs.
    fn default() -> Self {
        Self {
            trials: NonZeroU32::new(64).unwrap_or(NonZeroU32::MIN),
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// Runs gates in this process, on threads of its own.
pub struct LocalGateHost {
    shared: Arc<Shared>,
    /// Taken in `drop` only.
    runtime: Option<Runtime>,
    presence: watch::Sender<Presence>,
}

struct Shared {
    sandbox: Sandbox,
    offer: Offer,
    reach: Arc<Reach>,
    plugins: RwLock<HashMap<Digest, Arc<Plugin>>>,
    /// A turn for each slot of the pool: an exhausted pool is an error, turns are a queue.
    slots: Turns,
    compiler: Compiler,
}

/// A loaded plugin.
struct Plugin {
    prepared: Box<dyn Prepared>,
    schema: Schema,
    /// Settings that fit the schema: those of its last trials, most likely those of its next.
    fitting: Mutex<VecDeque<Value>>,
    loaded: Loaded,
}

impl Plugin {
    fn fitting(&self) -> MutexGuard<'_, VecDeque<Value>> {
        self.fitting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalGateHost {
    /// Starts the engine and the threads, with nothing outside an upgrade in reach.
    ///
    /// # Errors
    /// Where they cannot be had.
    pub fn start(capacity: Capacity, compiler: Compiler) -> Result<Self, StartError> {
        Self::reaching(Reach::default(), capacity, compiler)
    }

    /// Starts the engine and the threads of a host whose gates may be granted what `reach` has.
    ///
    /// # Errors
    /// Where they cannot be had.
    pub fn reaching(reach: Reach, capacity: Capacity, compiler: Compiler) -> Result<Self, StartError> {
        let trials = capacity.trials.get();
        let runtime = Builder::new_multi_thread()
            .worker_threads(capacity.threads.get())
            .thread_name("gate")
            .on_thread_start(|| {
                // Of this thread only. Refused in some sandboxes, where gates then compete as equals.
                if let Err(error) = rustix::process::nice(NICE) {
                    tracing::debug!(%error, "gate threads keep their priority");
                }
            })
            .enable_all()
            .build()?;
        let sandbox = Sandbox::new(trials, compiler.of_engine())?;
        let offer = Offer::new(sandbox.engine(), TRACKS, reach.wasi_http);
        let shared = Shared {
            offer: offer.map_err(|error| StartError::Engine(format!("{error:#}")))?,
            sandbox,
            reach: Arc::new(reach),
            plugins: RwLock::default(),
            slots: Turns::new(usize::try_from(trials).unwrap_or(usize::MAX)),
            compiler,
        };
        let presence = watch::Sender::new(Presence::Here(0));
        Ok(Self { shared: Arc::new(shared), runtime: Some(runtime), presence })
    }

    /// The same evaluation by the engine alone, without limits, clocks and records: what the host adds is the difference.
    /// For benchmarks; nothing about a candidate follows from it.
    ///
    /// # Errors
    /// Where the plugin is not loaded, or traps.
    #[doc(hidden)]
    pub async fn bare(&self, trial: Trial) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        let bare = self.apart(async move {
            let plugin = shared.plugin(&trial.digest).map_err(|_| "the plugin is not loaded".to_owned())?;
            let settings = trial.settings.to_string();
            let bare = store::bare(&shared.sandbox, &shared.reach, plugin.prepared.as_ref(), trial, &settings);
            bare.await.map_err(|error| format!("{error:#}"))
        });
        bare.await.unwrap_or_else(|| Err("it panicked".into()))
    }

    /// Runs `work` on the gates' threads; it is cancelled with the returned future. `None` where it panicked.
    async fn apart<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let runtime = self.runtime.as_ref()?;
        AbortOnDropHandle::new(runtime.spawn(work)).await.ok()
    }
}

impl Drop for LocalGateHost {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The host may be dropped on a thread that must not block. Trials under way are cancelled.
            runtime.shutdown_background();
        }
    }
}

#[async_trait]
impl GateHost for LocalGateHost {
    async fn load(&self, bytes: Bytes) -> Result<Loaded, LoadError> {
        let shared = Arc::clone(&self.shared);
        let loaded = self.apart(async move { shared.load(bytes).await }).await;
        loaded.unwrap_or_else(|| Err(LoadError::BadDescription("the host failed while it loaded the plugin".into())))
    }

    async fn unload(&self, digest: &Digest) {
        self.shared.plugins.write().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }

    async fn validate(&self, digest: &Digest, settings: &Value) -> Result<Vec<Problem>, Outcome> {
        let (shared, digest, settings) = (Arc::clone(&self.shared), digest.clone(), settings.clone());
        let problems = self.apart(async move { shared.validate(digest, settings).await }).await;
        problems.unwrap_or_else(|| Err(host_failed()))
    }

    async fn run(&self, trial: Trial) -> Report {
        let shared = Arc::clone(&self.shared);
        let report = self.apart(async move { shared.judge(trial).await }).await;
        report.unwrap_or_else(|| Report::of(host_failed()))
    }

    fn presence(&self) -> watch::Receiver<Presence> {
        self.presence.subscribe()
    }
}

impl Shared {
    fn plugin(&self, digest: &Digest) -> Result<Arc<Plugin>, Outcome> {
        let plugins = self.plugins.read().unwrap_or_else(PoisonError::into_inner);
        let plugin = plugins.get(digest).cloned();
        plugin.ok_or_else(|| error(Blame::PluginNotReady, format!("plugin {digest} is not loaded")))
    }

    /// Waits for a free slot, no longer than the trial itself may take.
    async fn slot(&self, namespace: &str, patience: Duration) -> Result<Turn, Outcome> {
        let turn = timeout(patience, self.slots.take(namespace)).await;
        turn.map_err(|_| error(Blame::Host, "the gate host is busy with other trials"))
    }

    async fn load(self: Arc<Self>, bytes: Bytes) -> Result<Loaded, LoadError> {
        let digest = Digest::of(&bytes);
        if let Ok(known) = self.plugin(&digest) {
            return Ok(known.loaded.clone());
        }
        plugin::check(&bytes)?;
        let engine = self.sandbox.engine();
        let size = bytes.len();
        let component = self.compiler.component(engine, &digest, bytes).await?;
        let this = Arc::clone(&self);
        let linked = move || plugin::fit(this.sandbox.engine(), &this.offer, &component);
        let fitted = tokio::task::spawn_blocking(linked).await;
        let fitted =
            fitted.unwrap_or_else(|error| Err(LoadError::NotAComponent(format!("the linker failed: {error}"))))?;

        let described = self.describe(fitted.prepared.as_ref(), &digest).await;
        let described = described.map_err(|outcome| LoadError::BadDescription(describe_failed(&outcome)))?;
        let compiled = tokio::task::spawn_blocking(move || bindings::description(described)).await;
        let compiled = compiled.unwrap_or_else(|error| Err(format!("the settings schema broke the host: {error}")));
        let (description, schema) = compiled.map_err(LoadError::BadDescription)?;
        let loaded =
            Loaded { digest: digest.clone(), size, contract: fitted.contract, imports: fitted.imports, description };
        let plugin =
            Arc::new(Plugin { prepared: fitted.prepared, schema, fitting: Mutex::default(), loaded: loaded.clone() });
        self.plugins.write().unwrap_or_else(PoisonError::into_inner).insert(digest, plugin);
        Ok(loaded)
    }

    /// Asks a plugin about itself, with nothing granted.
    async fn describe(&self, plugin: &dyn Prepared, digest: &Digest) -> Result<bindings::Description, Outcome> {
        let _slot = self.slot("", QUIET_WALL).await?;
        let trial = quiet("describe", digest.clone(), Value::Null);
        let ran = store::run(&self.sandbox, &self.reach, plugin, trial, |store, gate| gate.describe(store));
        ran.await.explained()
    }

    async fn validate(self: Arc<Self>, digest: Digest, settings: Value) -> Result<Vec<Problem>, Outcome> {
        let plugin = self.plugin(&digest)?;
        let problems = schema_problems(&plugin, &settings).await?;
        if !problems.is_empty() {
            return Ok(problems);
        }
        let _slot = self.slot("", QUIET_WALL).await?;
        let text = settings.to_string();
        let trial = quiet("validate", digest, settings);
        let limits = trial.limits;
        let ran = store::run(&self.sandbox, &self.reach, plugin.prepared.as_ref(), trial, |store, gate| {
            Box::pin(async move { gate.validate(store, &text).await })
        });
        Ok(bindings::problems(ran.await.explained()?, &limits))
    }

    /// Everything that comes of a trial is a report: nobody above has to remember to fail closed.
    async fn judge(self: Arc<Self>, trial: Trial) -> Report {
        let plugin = match self.plugin(&trial.digest) {
            Ok(plugin) => plugin,
            Err(outcome) => return Report::of(outcome),
        };
        match schema_problems(&plugin, &trial.settings).await {
            Ok(problems) if problems.is_empty() => {}
            Ok(problems) => return Report::of(invalid_settings(&problems)),
            Err(outcome) => return Report::of(outcome),
        }
        let asked = Instant::now();
        let _slot = match self.slot(&trial.namespace, trial.timeout).await {
            Ok(slot) => slot,
            Err(outcome) => return Report::of(outcome),
        };
        let queued = asked.elapsed();
        let (limits, credentials) = (trial.limits, trial.grants.credentials.clone());
        let settings = trial.settings.to_string();
        let ran = store::run(&self.sandbox, &self.reach, plugin.prepared.as_ref(), trial, |store, gate| {
            Box::pin(async move {
                let problems = gate.validate(store, &settings).await?;
                if problems.is_empty() { gate.evaluate(store, &settings).await.map(Ok) } else { Ok(Err(problems)) }
            })
        });
        let Ran { answer, record, cost, stderr } = ran.await;
        let outcome = match answer {
            Ok(Ok(verdict)) => bindings::outcome(verdict, &limits),
            Ok(Err(problems)) => invalid_settings(&bindings::problems(problems, &limits)),
            Err(outcome) => outcome,
        };
        let mut log = record.log.take_lines();
        log.iter_mut().for_each(|line| credentials::redact_text(&credentials, line));
        Report {
            outcome: explained(outcome, &stderr),
            measurements: record.measurements,
            links: record.links,
            valid_for: record.valid_for,
            denials: record.denials,
            answered: record.answered,
            log,
            cost: Cost { queued, ..cost },
            unverified_tls: record.unverified_tls,
        }
    }
}

/// Checks settings against a plugin's schema, away from the threads that run guests.
async fn schema_problems(plugin: &Arc<Plugin>, settings: &Value) -> Result<Vec<Problem>, Outcome> {
    if plugin.fitting().contains(settings) {
        return Ok(Vec::new());
    }
    let (plugin, settings) = (Arc::clone(plugin), settings.clone());
    let checked = tokio::task::spawn_blocking(move || {
        let problems = plugin.schema.problems(&settings);
        if problems.is_empty() {
            let mut fitting = plugin.fitting();
            fitting.truncate(FITTING - 1);
            fitting.push_front(settings);
        }
        problems
    });
    checked.await.map_err(|_| host_failed())
}

fn invalid_settings(problems: &[Problem]) -> Outcome {
    let sentences = problems.iter().map(|problem| match problem.pointer.as_str() {
        "" => problem.message.clone(),
        pointer => format!("{pointer}: {}", problem.message),
    });
    let message = sentences.collect::<Vec<_>>().join("; ");
    error(Blame::InvalidSettings, text::cut(&message, Limits::default().message))
}

/// A trial that asks a plugin about itself.
pub(super) fn quiet(id: &str, digest: Digest, settings: Value) -> Trial {
    Trial {
        id: id.to_owned(),
        digest,
        settings,
        moment: Moment::BeforePromotion,
        timeout: QUIET_WALL,
        limits: Limits { cpu: QUIET_CPU, memory: QUIET_MEMORY, requests: 0, ..Limits::default() },
        namespace: String::new(),
        targets: Vec::new(),
        state: None,
        grants: Grants::default(),
        candidate: None,
        stable: None,
    }
}

fn describe_failed(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Error { blame, message, .. } => format!("it did not describe itself: {}: {message}", blame.code()),
        Outcome::Pass(_) | Outcome::Fail(_) | Outcome::Inconclusive(_) | Outcome::Wait { .. } => {
            "it did not describe itself".to_owned()
        }
    }
}

fn host_failed() -> Outcome {
    error(Blame::Host, "the gate host failed; its own log says why")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_the_host_ends_one_piece_of_work_and_no_other() {
        let capacity = Capacity { trials: NonZeroU32::MIN, threads: NonZeroUsize::MIN };
        let host = LocalGateHost::start(capacity, Compiler::InProcess).unwrap();
        assert_eq!(host.apart(async { panic!("as a mistake of ours would") }).await, None::<()>);
        assert_eq!(host.apart(async { 1 }).await, Some(1));
    }
}
