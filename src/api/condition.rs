//! Conditions, as every client of Kubernetes reads them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody has looked yet.
    Unknown,
}

impl Truth {
    /// As in `status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What a condition says, without when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its type.
    pub type_: &'static str,
    /// Whether it holds.
    pub status: Truth,
    /// A CamelCase word.
    pub reason: String,
    /// For people; may be empty.
    pub message: String,
}

impl Fact {
    /// `self` as a condition observed at `generation`. `lastTransitionTime` moves to `now` only where the status
    /// differs from the one of this type in `previous`.
    #[must_use]
    pub fn observed(self, previous: &[Condition], generation: Option<i64>, now: Timestamp) -> Condition {
        let since = previous
            .iter()
            .find(|condition| condition.type_ == self.type_ && condition.status == self.status.as_str())
            .map_or(Time(now), |condition| condition.last_transition_time.clone());
        Condition {
            type_: self.type_.to_owned(),
            status: self.status.as_str().to_owned(),
            reason: self.reason,
            message: self.message,
            observed_generation: generation,
            last_transition_time: since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(status: Truth, reason: &str) -> Fact {
        Fact { type_: "Ready", status, reason: reason.into(), message: String::new() }
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_changes() {
        let (then, now) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).expect("in range"));
        let before = vec![fact(Truth::False, "A").observed(&[], Some(1), then)];

        let same = fact(Truth::False, "B").observed(&before, Some(2), now);
        assert_eq!((same.last_transition_time.0, same.reason.as_str()), (then, "B"));
        assert_eq!(same.observed_generation, Some(2));

        assert_eq!(fact(Truth::True, "C").observed(&before, Some(2), now).last_transition_time.0, now);
    }
}
