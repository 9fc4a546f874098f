//! How long to wait after an error, per object.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    sync::Mutex,
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);

/// Counts errors in a row per key. Doubles from half a second to a minute, with jitter so that many objects that
/// failed together do not come back together.
#[derive(Debug)]
pub struct Backoff<K>(Mutex<HashMap<K, u32>>);

impl<K> Default for Backoff<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq> Backoff<K> {
    /// How long to wait after one more error of `key`. `jitter` is anything between 0 and 1.
    pub fn failed(&self, key: K, jitter: f64) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = failures.entry(key).and_modify(|count| *count = count.saturating_add(1)).or_insert(1);
        let delay = FIRST.saturating_mul(1 << (*count - 1).min(7)).min(LONGEST);
        delay.mul_f64(1.0 - 0.5 * jitter.clamp(0.0, 1.0))
    }

    /// `key` is well again.
    pub fn succeeded(&self, key: &K) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(key);
    }
}

/// Some number between 0 and 1, for [`Backoff::failed`]. From the seed of a hasher: spreading retries needs no better
/// source of randomness than the one the standard library has.
#[must_use]
pub fn jitter() -> f64 {
    f64::from(RandomState::new().hash_one(0_u8) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_a_row_wait_longer_up_to_a_minute_until_one_succeeds() {
        let backoff = Backoff::default();
        assert_eq!(backoff.failed("a", 0.0), FIRST);
        assert_eq!(backoff.failed("a", 0.0), FIRST * 2);
        assert_eq!(backoff.failed("b", 1.0), FIRST / 2);
        for _ in 0..40 {
            backoff.failed("a", 0.0);
        }
        assert_eq!(backoff.failed("a", 0.0), LONGEST);
        backoff.succeeded(&"a");
        assert_eq!(backoff.failed("a", 0.0), FIRST);
    }
}
