//! PURE. What a plugin asks for -> what each of its trials may use up, under the operator's ceiling.

use std::{fmt, time::Duration};

use crate::{
    api::gateplugin::PluginLimits,
    model::{duration, quantity, trial::Limits},
};

/// The most that a plugin may be given, whoever installs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceiling {
    /// CPU time of a trial.
    pub cpu: Duration,
    /// Bytes of memory of a trial.
    pub memory: u64,
    /// Requests of a trial.
    pub requests: u32,
    /// Bytes of requests and answers of a trial.
    pub traffic: u64,
}

/// Why a plugin is not given what it asks for. Names the field, and the flag that would allow it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// It is not understood.
    #[error("spec.limits.{field}: {why}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// It is more than anybody is given here.
    #[error("spec.limits.{field} is above {most}, the most that the operator's {flag} allows")]
    AboveCeiling {
        /// Which.
        field: &'static str,
        /// The ceiling.
        most: String,
        /// Who sets it.
        flag: &'static str,
    },
}

impl LimitsError {
    /// The reason of the plugin's condition.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "InvalidLimits",
            Self::AboveCeiling { .. } => "LimitsAboveCeiling",
        }
    }
}

/// The limits of a plugin that asks for `asked`: where it asks for nothing, the default, or the ceiling if that is lower.
///
/// # Errors
/// The first thing it cannot have.
pub(super) fn limits(asked: &PluginLimits, ceiling: &Ceiling) -> Result<Limits, LimitsError> {
    let default = Limits::default();
    let PluginLimits { cpu, memory, requests, traffic } = asked;
    let read = |field, why| LimitsError::Invalid { field, why };
    let cpu = cpu.as_deref().map(duration::parse).transpose().map_err(|why| read("cpu", why))?;
    let memory = memory.as_deref().map(quantity::bytes).transpose().map_err(|why| read("memory", why))?;
    let requests = requests.map(u32::try_from).transpose();
    let requests = requests.map_err(|_| read("requests", "it is negative".into()))?;
    let traffic = traffic.as_deref().map(quantity::bytes).transpose().map_err(|why| read("traffic", why))?;

    Ok(Limits {
        cpu: under("cpu", "--max-gate-cpu", cpu, default.cpu, ceiling.cpu)?,
        memory: under("memory", "--max-gate-memory", memory.map(most), default.memory, most(ceiling.memory))?,
        requests: under("requests", "--max-gate-requests", requests, default.requests, ceiling.requests)?,
        traffic: under("traffic", "--max-gate-traffic", traffic, default.traffic, ceiling.traffic)?,
        ..default
    })
}

/// Bytes as this machine counts them.
fn most(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn under<T: Ord + fmt::Debug>(
    field: &'static str,
    flag: &'static str,
    asked: Option<T>,
    default: T,
    most: T,
) -> Result<T, LimitsError> {
    match asked {
        None => Ok(default.min(most)),
        Some(asked) if asked > most => Err(LimitsError::AboveCeiling { field, most: format!("{most:?}"), flag }),
        Some(asked) => Ok(asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILING: Ceiling =
        Ceiling { cpu: Duration::from_secs(5), memory: 128 << 20, requests: 100, traffic: 1 << 30 };

    #[test]
    fn what_is_not_asked_for_is_the_default_or_the_ceiling_where_that_is_lower() {
        let given = limits(&PluginLimits::default(), &CEILING).unwrap();
        assert_eq!(given, Limits { requests: 100, ..Limits::default() });
    }

    #[test]
    fn what_is_asked_for_is_given_up_to_the_ceiling() {
        let asked = PluginLimits {
            cpu: Some("5s".into()),
            memory: Some("128Mi".into()),
            requests: Some(0),
            traffic: Some("1Mi".into()),
        };
        let wanted = Limits {
            cpu: Duration::from_secs(5),
            memory: 128 << 20,
            requests: 0,
            traffic: 1 << 20,
            ..Limits::default()
        };
        assert_eq!(limits(&asked, &CEILING), Ok(wanted));
    }

    #[test]
    fn more_than_the_ceiling_is_refused_with_the_flag_that_sets_it() {
        for (asked, message) in [
            (
                PluginLimits { cpu: Some("5001ms".into()), ..PluginLimits::default() },
                "spec.limits.cpu is above 5s, the most that the operator's --max-gate-cpu allows",
            ),
            (
                PluginLimits { memory: Some("129Mi".into()), ..PluginLimits::default() },
                "spec.limits.memory is above 134217728, the most that the operator's --max-gate-memory allows",
            ),
            (
                PluginLimits { requests: Some(101), ..PluginLimits::default() },
                "spec.limits.requests is above 100, the most that the operator's --max-gate-requests allows",
            ),
            (
                PluginLimits { traffic: Some("2Gi".into()), ..PluginLimits::default() },
                "spec.limits.traffic is above 1073741824, the most that the operator's --max-gate-traffic allows",
            ),
        ] {
            let error = limits(&asked, &CEILING).unwrap_err();
            assert_eq!((error.code(), error.to_string().as_str()), ("LimitsAboveCeiling", message));
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (asked, field) in [
            (PluginLimits { cpu: Some("5".into()), ..PluginLimits::default() }, "spec.limits.cpu"),
            (PluginLimits { memory: Some("64MB".into()), ..PluginLimits::default() }, "spec.limits.memory"),
            (PluginLimits { requests: Some(-1), ..PluginLimits::default() }, "spec.limits.requests"),
            (PluginLimits { traffic: Some("-1".into()), ..PluginLimits::default() }, "spec.limits.traffic"),
        ] {
            let error = limits(&asked, &CEILING).unwrap_err();
            assert_eq!(error.code(), "InvalidLimits");
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }
}
