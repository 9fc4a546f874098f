//! The WebAssembly engine: what code may use, how much the pool holds, and the clock that interrupts it.

use std::{
    io,
    num::NonZeroUsize,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use wasmtime::{Config, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig, ResourcesRequired};

/// How long a guest computes before it is asked to let others on its thread go first, and so how far it can
/// overrun its budget: the length of one slice of the kernel's own scheduler, roughly.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// Core instances, memories and tables of one component. The largest toolchain seen needs 38 core instances
/// (CPython), 3 memories and 3 tables (QuickJS); a plugin beyond that is refused when it is loaded. Instances are
/// counted only; memories and tables reserve address space.
const CORE_INSTANCES: u32 = 64;
const MEMORIES: u32 = 4;
const TABLES: u32 = 4;

/// Elements of one table. StarlingMonkey needs 7,786.
const TABLE_ELEMENTS: usize = 20_000;

/// One linear memory. No trial may be given more memory than this, whatever its limits say.
const MEMORY: usize = 256 << 20;

/// A page of WebAssembly.
const PAGE: usize = 64 << 10;

/// Slots beyond the trials at once. A trial's slots are free before its permit is, so none is needed; one
/// keeps a mistake there from turning a busy host into errors.
const SPARE: u32 = 1;

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The engine, usually because the pool's address space cannot be reserved.
    #[error("cannot set up the WebAssembly engine: {0}")]
    Engine(String),
    /// Threads.
    #[error("cannot start the gate host's threads: {0}")]
    Threads(#[from] io::Error),
}

/// The engine and its clock.
pub(super) struct Sandbox {
    engine: Engine,
    clock: Arc<Clock>,
}

/// Whether an engine has a compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compiles {
    Yes,
    /// It runs what was compiled elsewhere, and cannot be talked into more.
    No,
}

impl Sandbox {
    /// An engine whose pool has room for `trials` at once. Where the pool's address space (about 16 GiB, virtual, for
    /// each trial) cannot be had, memory is asked for when a trial starts: slower, and no less bounded.
    ///
    /// # Errors
    /// Where there is no engine, or no thread for its clock.
    pub(super) fn new(trials: u32, compiles: Compiles) -> Result<Self, StartError> {
        Self::pooled(trials, compiles).or_else(|error| {
            tracing::warn!(
                %error,
                "no pool for {trials} trials at once: each asks for its memory by itself, which is slower; \
                 lower --max-concurrent-trials or raise the limit of address space (ulimit -v)"
            );
            Self::of(InstanceAllocationStrategy::OnDemand, compiles)
        })
    }

    /// The same with a pool or not at all.
    ///
    /// # Errors
    /// Likewise, and where the pool cannot be had.
    pub(super) fn pooled(trials: u32, compiles: Compiles) -> Result<Self, StartError> {
        Self::of(InstanceAllocationStrategy::Pooling(pool(trials)), compiles)
    }

    fn of(memory: InstanceAllocationStrategy, compiles: Compiles) -> Result<Self, StartError> {
        let mut config = config();
        config.enable_compiler(compiles == Compiles::Yes).allocation_strategy(memory);
        let engine = Engine::new(&config).map_err(|error| StartError::Engine(format!("{error:#}")))?;
        let clock = Arc::new(Clock::default());
        let (weak, shared) = (engine.weak(), Arc::clone(&clock));
        // An OS thread: a task of the runtime would starve exactly when every worker is busy with a guest.
        thread::Builder::new().name("gate-clock".into()).spawn(move || shared.run(&weak))?;
        Ok(Self { engine, clock })
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Keeps the clock ticking while the guard lives. Every store needs one while it runs.
    pub(super) fn ticking(&self) -> Ticking {
        self.clock.lock().running += 1;
        self.clock.changed.notify_one();
        Ticking(Arc::clone(&self.clock))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.clock.lock().stopped = true;
        self.clock.changed.notify_one();
    }
}

/// A running trial's hold on the clock.
pub(super) struct Ticking(Arc<Clock>);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

/// Ticks while something runs; parked, and so free, when nothing does.
#[derive(Default)]
struct Clock {
    state: Mutex<ClockState>,
    changed: Condvar,
}

#[derive(Default)]
struct ClockState {
    running: usize,
    stopped: bool,
}

impl Clock {
    fn lock(&self) -> MutexGuard<'_, ClockState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, engine: &EngineWeak) {
        loop {
            let parked = self.changed.wait_while(self.lock(), |state| state.running == 0 && !state.stopped);
            if parked.unwrap_or_else(PoisonError::into_inner).stopped {
                return;
            }
            thread::sleep(TICK);
            match engine.upgrade() {
                Some(engine) => engine.increment_epoch(),
                None => return,
            }
        }
    }
}

/// An engine that compiles and runs nothing, for a process with little address space. What it makes is what the engine
/// of a [`Sandbox`] takes: both are of one configuration.
///
/// # Errors
/// Where this machine is none the compiler knows.
pub(super) fn compiler() -> Result<Engine, StartError> {
    Engine::new(&config()).map_err(|error| StartError::Engine(format!("{error:#}")))
}

/// Fails where a component needs more than a trial can have, naming the limit. The pool asks the same for itself; this
/// holds without a pool too, so that what is a plugin does not depend on the machine.
pub(super) fn fits(needs: &ResourcesRequired) -> Result<(), String> {
    let limits = [
        ("memories", needs.num_memories.into(), MEMORIES.into()),
        ("pages of one memory", needs.max_initial_memory_size.unwrap_or(0), (MEMORY / PAGE) as u64),
        ("tables", needs.num_tables.into(), TABLES.into()),
        ("elements of one table", needs.max_initial_table_size.unwrap_or(0), TABLE_ELEMENTS as u64),
    ];
    match limits.into_iter().find(|(_, need, most)| need > most) {
        Some((what, need, most)) => Err(format!("the plugin needs {need} {what}, at most {most} are given")),
        None => Ok(()),
    }
}

/// Everything that differs from the defaults, and why.
fn config() -> Config {
    let mut config = Config::new();
    config
        // Costs about a tenth; counting fuel costs two or three times that.
        .epoch_interruption(true)
        // Deep enough for interpreters compiled to WebAssembly, small beside the fiber's own stack below.
        .max_wasm_stack(512 << 10)
        .async_stack_size(2 << 20)
        // A stack is handed to the next trial, which may be another tenant's.
        .async_stack_zeroing(true)
        // Names of the guest's functions in the message of a trap, not a page of them.
        .wasm_backtrace_max_frames(NonZeroUsize::new(20))
        // The same verdict on every node.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        // Proposals no toolchain of ours needs: less to be wrong. Tail calls stay: QuickJS gates use them.
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_custom_page_sizes(false)
        .wasm_stack_switching(false)
        .shared_memory(false)
        // A 4 GiB reservation and a guard behind it let 32-bit guests run without bounds checks.
        .memory_reservation(4 << 30)
        .memory_guard_size(32 << 20)
        .memory_init_cow(true);
    config
}

/// The pool, all of it derived from the number of trials at once.
fn pool(trials: u32) -> PoolingAllocationConfig {
    let slots = trials.saturating_add(SPARE);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_stacks(slots)
        .total_core_instances(slots.saturating_mul(CORE_INSTANCES))
        .total_memories(slots.saturating_mul(MEMORIES))
        .total_tables(slots.saturating_mul(TABLES))
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        // Modules with several memories exist only in attacks; components made of several modules are usual.
        .max_memories_per_module(MEMORIES)
        .max_tables_per_module(TABLES)
        .max_memory_size(MEMORY)
        .table_elements(TABLE_ELEMENTS)
        // Bookkeeping of one instance: vastly more than the largest seen, a bound all the same.
        .max_component_instance_size(4 << 20)
        .max_core_instance_size(2 << 20)
        // No pages are kept for the next trial: with 64 KiB of each memory a thousand ended gates left 200 MB behind, and what
        // a fresh page costs is little beside an evaluation.
        .linear_memory_keep_resident(0)
        .table_keep_resident(0)
        // Slots that remember the plugin they ran last; beyond a few, the memory is worth more.
        .max_unused_warm_slots(16);
    pool
}
