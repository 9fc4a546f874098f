//! One run of a guest: a fresh store, its limits, and how it came to its end.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use rustls::ClientConfig;
use tokio::time::{Instant, timeout};
use wasmtime::{PoolConcurrencyLimitError, Result, Store, Trap, UpdateDeadline, WasmBacktrace};

use super::{
    bindings::{Gate, Prepared},
    engine::Sandbox,
    host::{credentials, egress::Remote, exchange, http::Http, traffic::Traffic, trial::Record, wasi::Wasi},
    limits::{Exceeded, Memory},
    meter::{Meter, Metered},
    reach::Reach,
    text,
};
use crate::model::trial::{Blame, Cost, Outcome, Trial};

/// Bytes of the sentence about a trap.
const MESSAGE: usize = 512;

/// What a store holds besides the guest.
pub(super) struct State {
    pub(super) trial: Trial,
    pub(super) deadline: Instant,
    pub(super) record: Record,
    pub(super) traffic: Traffic,
    pub(super) reach: Arc<Reach>,
    /// The trial's hosts outside, with what they were resolved to.
    pub(super) remotes: Vec<Arc<Remote>>,
    /// For targets that ask who we are.
    pub(super) identified: Option<Arc<ClientConfig>>,
    pub(super) wasi: Wasi,
    pub(super) http: Http,
    meter: Arc<Meter>,
    memory: Memory,
}

impl State {
    /// What a trial begins with.
    ///
    /// # Errors
    /// Why the certificate that it is granted cannot be shown.
    fn new(reach: &Arc<Reach>, trial: Trial) -> Result<Self, String> {
        let record = Record::default();
        let remote = |egress| Arc::new(Remote::new(Clone::clone(egress), Arc::clone(&reach.resolver)));
        Ok(Self {
            deadline: Instant::now() + trial.timeout,
            wasi: Wasi::new(&record.log, trial.limits.log),
            http: Http::default(),
            record,
            traffic: Traffic::new(trial.limits.traffic),
            remotes: trial.grants.egress.iter().map(remote).collect(),
            reach: Arc::clone(reach),
            identified: trial.grants.identity.as_ref().map(exchange::identified).transpose()?,
            meter: Meter::new(trial.limits.cpu),
            memory: Memory::new(trial.limits.memory),
            trial,
        })
    }

    /// What every host function does first: a guest over its budget gets no further, and one that has
    /// computed for long lets others go first.
    pub(super) async fn enter(&mut self) -> Result<()> {
        self.meter.check()?;
        if self.meter.slice_is_over() {
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

/// What came of a run.
pub(super) struct Ran<T> {
    /// The answer, or the outcome that stands instead of one.
    pub(super) answer: Result<T, Outcome>,
    pub(super) record: Record,
    pub(super) cost: Cost,
    /// The end of what it wrote to stderr, printable.
    pub(super) stderr: String,
}

impl<T> Ran<T> {
    /// The answer, where an error says what the guest wrote to stderr: an exception of a language is a bare trap, and
    /// its text is only there.
    pub(super) fn explained(self) -> Result<T, Outcome> {
        self.answer.map_err(|outcome| explained(outcome, &self.stderr))
    }
}

/// An outcome without a verdict, with the end of stderr behind its message.
pub(super) fn explained(outcome: Outcome, stderr: &str) -> Outcome {
    match outcome {
        Outcome::Error { blame, message, retry } if !stderr.is_empty() => {
            Outcome::Error { blame, message: format!("{message}; stderr: {stderr}"), retry }
        }
        other => other,
    }
}

/// Runs `work` on a fresh instance of `plugin` within the limits of `trial`. Nothing of the instance is left.
pub(super) async fn run<T>(
    sandbox: &Sandbox,
    reach: &Arc<Reach>,
    plugin: &dyn Prepared,
    trial: Trial,
    work: impl for<'a> FnOnce(&'a mut Store<State>, &'a dyn Gate) -> BoxFuture<'a, Result<T>> + Send,
) -> Ran<T> {
    let _ticking = sandbox.ticking();
    let began = Instant::now();
    let (limit, limits) = (trial.timeout, trial.limits);
    let state = match State::new(reach, trial) {
        Ok(state) => state,
        Err(message) => {
            let answer = Err(error(Blame::Credential, message));
            return Ran { answer, record: Record::default(), cost: Cost::default(), stderr: String::new() };
        }
    };
    let meter = Arc::clone(&state.meter);
    let mut store = Store::new(sandbox.engine(), state);
    store.limiter_async(|state| &mut state.memory);
    store.set_hostcall_fuel(limits.handed_over);
    store.set_max_component_handles(limits.handles);
    // Armed once and then by its own callback only. Armed again after host calls, it would never fire for a
    // guest that makes short ones for ever.
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|store| {
        store.data().meter.check()?;
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });

    let guest = async {
        let gate = plugin.instantiate(&mut store).await?;
        work(&mut store, gate.as_ref()).await
    };
    // The only clock that covers a guest which waits inside a host function.
    let ended = timeout(limit, Metered::new(Arc::clone(&meter), guest)).await;
    let answer = match ended {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(stopped(&error, limits.handed_over)),
        Err(_) => Err(error(Blame::Timeout, format!("did not end within {} ms", limit.as_millis()))),
    };
    let State { trial, mut record, memory, wasi, http, .. } = store.into_data();
    http.end(&mut record);
    let mut stderr = wasi.end();
    credentials::redact_text(&trial.grants.credentials, &mut stderr);
    let cost = Cost {
        queued: Duration::ZERO,
        cpu: meter.spent(),
        wall: began.elapsed(),
        memory: memory.peak(),
        requests: record.requests,
    };
    Ran { answer, record, cost, stderr }
}

/// Validates and evaluates on a fresh instance, with nothing around it.
pub(super) async fn bare(
    sandbox: &Sandbox,
    reach: &Arc<Reach>,
    plugin: &dyn Prepared,
    trial: Trial,
    settings: &str,
) -> Result<()> {
    let state = State::new(reach, trial).map_err(wasmtime::Error::msg)?;
    let mut store = Store::new(sandbox.engine(), state);
    // The engine's code asks for it: without one it would stop at once.
    store.set_epoch_deadline(u64::MAX / 2);
    let gate = plugin.instantiate(&mut store).await?;
    gate.validate(&mut store, settings).await?;
    gate.evaluate(&mut store, settings).await.map(drop)
}

/// An outcome without knowledge. Whether to try again follows from who is to blame.
pub(super) fn error(blame: Blame, message: impl Into<String>) -> Outcome {
    let retry = match blame {
        // What a guest does may depend on what the candidate answered, and that may change.
        Blame::Trap
        | Blame::CpuBudget
        | Blame::MemoryLimit
        | Blame::StackOverflow
        | Blame::Timeout
        | Blame::GateTrouble
        | Blame::PluginNotReady
        | Blame::Credential
        | Blame::Interrupted
        | Blame::Host => true,
        // These do not.
        Blame::MessageTooLarge | Blame::InvalidSettings => false,
    };
    Outcome::Error { blame, message: message.into(), retry }
}

/// What the engine's error means.
fn stopped(cause: &wasmtime::Error, handed_over: usize) -> Outcome {
    let root = cause.root_cause().to_string();
    let blame = if let Some(exceeded) = cause.downcast_ref::<Exceeded>() {
        match exceeded {
            Exceeded::Cpu(_) => Blame::CpuBudget,
            Exceeded::Memory(_) => Blame::MemoryLimit,
        }
    } else if let Some(trap) = cause.downcast_ref::<Trap>() {
        match trap {
            Trap::StackOverflow => Blame::StackOverflow,
            _ => Blame::Trap,
        }
    } else if cause.is::<PoolConcurrencyLimitError>() {
        Blame::Host
    } else if root.contains("fuel allocated for hostcalls") {
        // The engine's error has no type of its own; the tests hold this text.
        return error(Blame::MessageTooLarge, format!("handed over more than {handed_over} bytes at once"));
    } else {
        // Values that break the canonical ABI: text that is not UTF-8, pointers that point nowhere.
        Blame::Trap
    };
    let function = cause
        .downcast_ref::<WasmBacktrace>()
        .and_then(|trace| trace.frames().iter().find_map(wasmtime::FrameInfo::func_name))
        .map(|name| format!(" in {name}"));
    error(blame, text::cut(&format!("{root}{}", function.unwrap_or_default()), MESSAGE))
}
