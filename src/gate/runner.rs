//! The gate host in this process: a runtime of its own, a turn for every trial, and the room they are run in.

use std::{
    future::Future,
    num::{NonZeroU32, NonZeroUsize},
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    GateHost, Presence,
    bindings::{self, Prepared},
    compile::Compiler,
    engine::{Sandbox, StartError},
    host::credentials,
    plugin,
    reach::Reach,
    room::{Known, Plugin, Room},
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

/// Trials at once beyond which what they leave behind is worth a fresh pool: as many as keep a warm slot.
const BURST: u32 = 16;

/// How long nothing has run when a burst is over: one that comes in waves is served from the pool that is there.
const QUIET: Duration = Duration::from_secs(5);

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
    /// Where trials that start now are run.
    room: RwLock<Arc<Room>>,
    /// Held while plugins come and go, and alone while the room is exchanged: what came meanwhile would be lost.
    changes: tokio::sync::RwLock<()>,
    reach: Arc<Reach>,
    /// A turn for each slot of the pool: an exhausted pool is an error, turns are a queue.
    slots: Turns,
    compiler: Compiler,
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
        let room = Room::new(Sandbox::new(trials, compiler.of_engine())?, reach.wasi_http)?;
        let shared = Arc::new(Shared {
            room: RwLock::new(Arc::new(room)),
            changes: tokio::sync::RwLock::default(),
            reach: Arc::new(reach),
            slots: Turns::new(capacity.trials),
            compiler,
        });
        runtime.spawn(Arc::clone(&shared).tidy());
        let presence = watch::Sender::new(Presence::Here(0));
        Ok(Self { shared, runtime: Some(runtime), presence })
    }

    /// Moves to a fresh room now. For tests: it happens by itself after a burst.
    #[doc(hidden)]
    pub async fn renew(&self) -> bool {
        let shared = Arc::clone(&self.shared);
        self.apart(async move { shared.renew().await }).await.unwrap_or_default()
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
            let (room, plugin) = shared.plugin(&trial.digest).map_err(|_| "the plugin is not loaded".to_owned())?;
            let settings = trial.settings.to_string();
            let bare = store::bare(&room.sandbox, &shared.reach, plugin.prepared.as_ref(), trial, &settings);
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

/// Gives what is free in the heap back to the kernel: by itself the allocator does that only above the last thing in use.
/// Whether there was anything.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the C library has no other way")]
fn give_back() -> bool {
    // SAFETY: it takes no pointer and may be called by any thread at any time.
    unsafe { libc::malloc_trim(0) == 1 }
}

/// Other allocators do so by themselves.
#[cfg(not(target_env = "gnu"))]
fn give_back() -> bool {
    false
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
        let _change = self.shared.changes.read().await;
        self.shared.room().remove(digest);
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
    fn room(&self) -> Arc<Room> {
        Arc::clone(&self.room.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A plugin and the room it is run in, which stands for as long as somebody is in it.
    fn plugin(&self, digest: &Digest) -> Result<(Arc<Room>, Arc<Plugin>), Outcome> {
        let room = self.room();
        match room.plugin(digest) {
            Some(plugin) => Ok((room, plugin)),
            None => Err(error(Blame::PluginNotReady, format!("plugin {digest} is not loaded"))),
        }
    }

    /// Moves to a fresh room after every burst, once it has been quiet for a while.
    async fn tidy(self: Arc<Self>) {
        loop {
            self.slots.empty_after(BURST).await;
            tokio::time::sleep(QUIET).await;
            if self.slots.forget(BURST) {
                self.renew().await;
            }
        }
    }

    /// Exchanges the room for a fresh one with the same plugins. What trials leave behind in a pool, most of it page tables,
    /// goes with the pool only. Whoever is in the old one stays there to the end. False where nothing was exchanged: a
    /// plugin's compiled code is no longer kept, or there is no room for two pools.
    async fn renew(&self) -> bool {
        let _alone = self.changes.write().await;
        let old = self.room();
        let fresh = match old.again(&self.compiler, self.slots.places(), self.reach.wasi_http).await {
            Ok(fresh) => fresh,
            Err(error) => {
                tracing::debug!(%error, "the pool stays as it is");
                return false;
            }
        };
        *self.room.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        drop(old);
        // It walks over all of the heap.
        let given_back = spawn_blocking(give_back).await.unwrap_or_default();
        tracing::debug!(given_back, "a fresh pool has taken the place of the one before");
        true
    }

    /// Waits for a free slot, no longer than the trial itself may take.
    async fn slot(&self, namespace: &str, patience: Duration) -> Result<Turn, Outcome> {
        let turn = timeout(patience, self.slots.take(namespace)).await;
        turn.map_err(|_| error(Blame::Host, "the gate host is busy with other trials"))
    }

    async fn load(self: Arc<Self>, bytes: Bytes) -> Result<Loaded, LoadError> {
        let digest = Digest::of(&bytes);
        let _change = self.changes.read().await;
        let room = self.room();
        if let Some(known) = room.plugin(&digest) {
            return Ok(known.known.loaded.clone());
        }
        plugin::check(&bytes)?;
        let size = bytes.len();
        let component = self.compiler.component(room.sandbox.engine(), &digest, bytes).await?;
        let fitted = room.fit(component).await?;

        let described = self.describe(&room, fitted.prepared.as_ref(), &digest).await;
        let described = described.map_err(|outcome| LoadError::BadDescription(describe_failed(&outcome)))?;
        let compiled = spawn_blocking(move || bindings::description(described)).await;
        let compiled = compiled.unwrap_or_else(|error| Err(format!("the settings schema broke the host: {error}")));
        let (description, schema) = compiled.map_err(LoadError::BadDescription)?;
        let loaded =
            Loaded { digest: digest.clone(), size, contract: fitted.contract, imports: fitted.imports, description };
        let known = Known { schema, fitting: Mutex::default(), loaded: loaded.clone() };
        room.insert(digest, Plugin { prepared: fitted.prepared, known: Arc::new(known) });
        Ok(loaded)
    }

    /// Asks a plugin about itself, with nothing granted.
    async fn describe(
        &self,
        room: &Room,
        plugin: &dyn Prepared,
        digest: &Digest,
    ) -> Result<bindings::Description, Outcome> {
        let _slot = self.slot("", QUIET_WALL).await?;
        let trial = quiet("describe", digest.clone(), Value::Null);
        let ran = store::run(&room.sandbox, &self.reach, plugin, trial, |store, gate| gate.describe(store));
        ran.await.explained()
    }

    async fn validate(self: Arc<Self>, digest: Digest, settings: Value) -> Result<Vec<Problem>, Outcome> {
        let (room, plugin) = self.plugin(&digest)?;
        let problems = schema_problems(&plugin.known, &settings).await?;
        if !problems.is_empty() {
            return Ok(problems);
        }
        let _slot = self.slot("", QUIET_WALL).await?;
        let text = settings.to_string();
        let trial = quiet("validate", digest, settings);
        let limits = trial.limits;
        let ran = store::run(&room.sandbox, &self.reach, plugin.prepared.as_ref(), trial, |store, gate| {
            Box::pin(async move { gate.validate(store, &text).await })
        });
        Ok(bindings::problems(ran.await.explained()?, &limits))
    }

    /// Everything that comes of a trial is a report: nobody above has to remember to fail closed.
    async fn judge(self: Arc<Self>, trial: Trial) -> Report {
        let (room, plugin) = match self.plugin(&trial.digest) {
            Ok(found) => found,
            Err(outcome) => return Report::of(outcome),
        };
        match schema_problems(&plugin.known, &trial.settings).await {
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
        let ran = store::run(&room.sandbox, &self.reach, plugin.prepared.as_ref(), trial, |store, gate| {
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
async fn schema_problems(plugin: &Arc<Known>, settings: &Value) -> Result<Vec<Problem>, Outcome> {
    if plugin.fitting().contains(settings) {
        return Ok(Vec::new());
    }
    let (plugin, settings) = (Arc::clone(plugin), settings.clone());
    let checked = spawn_blocking(move || {
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
