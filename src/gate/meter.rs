//! The CPU budget of a trial: the time its thread really computed, read from the thread's own clock.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

use super::{engine::TICK, limits::Exceeded};

/// Sums the CPU time of every poll of one trial. Waiting costs nothing, and neither does a busy neighbour.
///
/// Only the thread that polls the trial reads or writes it, so relaxed atomics do: they are here because a
/// task may move between threads from one poll to the next.
#[derive(Debug)]
pub(super) struct Meter {
    budget: Duration,
    /// Nanoseconds of all polls that have ended.
    spent: AtomicU64,
    /// The thread's clock when this poll began.
    began: AtomicU64,
}

impl Meter {
    pub(super) fn new(budget: Duration) -> Arc<Self> {
        Arc::new(Self { budget, spent: AtomicU64::new(0), began: AtomicU64::new(thread_clock()) })
    }

    /// CPU time of all polls that have ended.
    pub(super) fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Relaxed))
    }

    /// Fails where the budget is spent. Asked by the guest's own clock ticks and on entry of every host
    /// function: a loop of short host calls need never be running when the clock ticks.
    pub(super) fn check(&self) -> Result<(), Exceeded> {
        if self.spent() + self.slice() > self.budget { Err(Exceeded::Cpu(self.budget)) } else { Ok(()) }
    }

    /// Whether this poll has lasted for a tick, and others should go first.
    pub(super) fn slice_is_over(&self) -> bool {
        self.slice() >= TICK
    }

    fn slice(&self) -> Duration {
        Duration::from_nanos(thread_clock().saturating_sub(self.began.load(Relaxed)))
    }
}

/// Nanoseconds of CPU this thread has used.
fn thread_clock() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Neither is ever negative, and 584 years fit.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// A future whose polls are metered.
pub(super) struct Metered<F> {
    meter: Arc<Meter>,
    future: Pin<Box<F>>,
}

impl<F: Future> Metered<F> {
    pub(super) fn new(meter: Arc<Meter>, future: F) -> Self {
        Self { meter, future: Box::pin(future) }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.meter.began.store(thread_clock(), Relaxed);
        let poll = self.future.as_mut().poll(context);
        let slice = self.meter.slice();
        self.meter.spent.fetch_add(u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        poll
    }
}
