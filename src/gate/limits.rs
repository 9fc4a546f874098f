//! The memory limit of a trial: one sum over all its linear memories and tables.

use std::time::Duration;

use async_trait::async_trait;
use wasmtime::{ResourceLimiterAsync, Result};

/// Instances, memories and tables of one store. The pool bounds what one component may have; this bounds what
/// a store could be talked into.
const INSTANCES: usize = 64;
const MEMORIES: usize = 16;
const TABLES: usize = 16;

/// What a table costs for one element: a pointer.
const ELEMENT: usize = size_of::<usize>();

/// A budget that a guest went over. It travels as the error of a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Exceeded {
    #[error("used more than its {} ms of CPU time", .0.as_millis())]
    Cpu(Duration),
    #[error("asked for more than its {0} bytes of memory")]
    Memory(usize),
}

/// Counts what a trial has, and remembers the peak. (The limiters that come with the engine bound each memory
/// by itself, so that four memories may hold four times the limit.)
#[derive(Debug)]
pub(super) struct Memory {
    limit: usize,
    used: usize,
    peak: usize,
}

impl Memory {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, used: 0, peak: 0 }
    }

    /// The most bytes it had at once.
    pub(super) fn peak(&self) -> usize {
        self.peak
    }

    /// Accounts for growth by `grown` bytes. Growth over the limit ends the trial: a guest that is told "no"
    /// traps a moment later anyway, and then nobody knows why.
    fn grow(&mut self, grown: usize) -> Result<bool, Exceeded> {
        match self.used.checked_add(grown).filter(|used| *used <= self.limit) {
            Some(used) => {
                self.used = used;
                self.peak = self.peak.max(used);
                Ok(true)
            }
            None => Err(Exceeded::Memory(self.limit)),
        }
    }
}

#[async_trait]
impl ResourceLimiterAsync for Memory {
    async fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            // The guest's own declaration forbids it: an ordinary "no", and nothing is used.
            return Ok(false);
        }
        Ok(self.grow(desired.saturating_sub(current))?)
    }

    async fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.grow(desired.saturating_sub(current).saturating_mul(ELEMENT))?)
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }

    fn tables(&self) -> usize {
        TABLES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_are_summed_up_to_the_limit_and_not_beyond() {
        let mut memory = Memory::new(100);
        assert_eq!(memory.grow(60), Ok(true));
        assert_eq!(memory.grow(40), Ok(true));
        assert_eq!(memory.grow(1), Err(Exceeded::Memory(100)));
        assert_eq!(memory.peak(), 100);
    }

    #[test]
    fn a_growth_that_overflows_is_over_the_limit() {
        let mut memory = Memory::new(usize::MAX);
        assert_eq!(memory.grow(1), Ok(true));
        assert_eq!(memory.grow(usize::MAX), Err(Exceeded::Memory(usize::MAX)));
    }
}
