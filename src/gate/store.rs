//! One run of a guest: a fresh store, its limits, and how it came to its end.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::time::{Instant, timeout};
use wasmtime::{PoolConcurrencyLimitError, Result, Store, Trap, UpdateDeadline, WasmBacktrace};

use super::{
    bindings::{Gate, GatePre},
    engine::Sandbox,
    host::{traffic::Traffic, trial::Record},
    limits::{Exceeded, Memory},
    meter::{Meter, Metered},
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
    meter: Arc<Meter>,
    memory: Memory,
}

impl State {
    /// What every host function does first: a guest over its budget gets no further, and one that has
    /// computed for long lets others go first.
    pub(super) async fn enter(&self) -> Result<()> {
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
}

/// Runs `work` on a fresh instance of `plugin` within the limits of `trial`. Nothing of the instance is left.
pub(super) async fn run<T>(
    sandbox: &Sandbox,
    plugin: &GatePre<State>,
    trial: Trial,
    work: impl for<'a> FnOnce(&'a mut Store<State>, &'a Gate) -> BoxFuture<'a, Result<T>> + Send,
) -> Ran<T> {
    let _ticking = sandbox.ticking();
    let began = Instant::now();
    let (limit, limits) = (trial.timeout, trial.limits);
    let meter = Meter::new(limits.cpu);
    let state = State {
        deadline: began + limit,
        record: Record::default(),
        traffic: Traffic::new(limits.traffic),
        meter: Arc::clone(&meter),
        memory: Memory::new(limits.memory),
        trial,
    };
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
        let gate = plugin.instantiate_async(&mut store).await?;
        work(&mut store, &gate).await
    };
    // The only clock that covers a guest which waits inside a host function.
    let ended = timeout(limit, Metered::new(Arc::clone(&meter), guest)).await;
    let answer = match ended {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(stopped(&error, limits.handed_over)),
        Err(_) => Err(error(Blame::Timeout, format!("did not end within {} ms", limit.as_millis()))),
    };
    let State { record, memory, .. } = store.into_data();
    let cost = Cost {
        queued: Duration::ZERO,
        cpu: meter.spent(),
        wall: began.elapsed(),
        memory: memory.peak(),
        requests: record.requests,
    };
    Ran { answer, record, cost }
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
