//! The bytes a trial may send and receive, shared by all of its requests under way.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::probe::{Failure, Kind, failure};

/// What is left of the budget.
#[derive(Clone, Debug)]
pub(in crate::gate) struct Traffic {
    limit: u64,
    left: Arc<AtomicU64>,
}

impl Traffic {
    pub(in crate::gate) fn new(limit: u64) -> Self {
        Self { limit, left: Arc::new(AtomicU64::new(limit)) }
    }

    /// Takes `bytes` out of the budget.
    ///
    /// # Errors
    /// The failure of the request that would go over it.
    pub(super) fn take(&self, bytes: usize) -> Result<(), Failure> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        // The number is all there is to share, so relaxed atomics do.
        let taken = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes));
        let over = || failure(Kind::Budget, format!("all {} bytes of requests and answers are used up", self.limit));
        taken.map(drop).map_err(|_| over())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clone_takes_from_one_budget() {
        let traffic = Traffic::new(10);
        let clone = traffic.clone();
        assert!(traffic.take(4).is_ok() && clone.take(6).is_ok());
        assert_eq!(traffic.take(1).unwrap_err().kind, Kind::Budget);
        assert!(clone.take(0).is_ok());
    }

    #[test]
    fn what_goes_over_takes_nothing() {
        let traffic = Traffic::new(10);
        assert!(traffic.take(11).is_err() && traffic.take(usize::MAX).is_err());
        assert!(traffic.take(10).is_ok());
    }
}
