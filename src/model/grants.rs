//! What a policy grants a gate, and what an operator lets policies grant.

use std::{fmt, str::FromStr};

use ipnet::IpNet;

use super::trial::{Egress, Method, Query};

/// What one gate may do beside judging. Its secrets are read when a trial starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Granted {
    /// Ports of the upgrade; the candidate's proxy ports, for every method, if absent.
    pub targets: Option<Vec<Port>>,
    /// Hosts outside.
    pub egress: Vec<Egress>,
    /// Secrets that the host adds to requests.
    pub credentials: Vec<Credential>,
    /// Questions to Prometheus.
    pub queries: Vec<Query>,
}

/// A side of an upgrade, as policies and targets name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The new Pods.
    Candidate,
    /// The ones they replace.
    Stable,
}

impl Side {
    /// The first half of a target's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::Stable => "stable",
        }
    }
}

/// A container port of a side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Whose.
    pub side: Side,
    /// Its name, or its number where it has none.
    pub name: String,
    /// What a request may be.
    pub methods: Vec<Method>,
}

/// A credential whose bytes are still in their Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// What a request names.
    pub name: String,
    /// The Secret, in the policy's namespace.
    pub secret: String,
    /// Its key.
    pub key: String,
    /// The only target it is sent to.
    pub target: String,
    /// The header it is sent in.
    pub header: String,
    /// The header's value, with `%s` in place of the secret.
    pub format: String,
    /// The path it is sent to, and everything below.
    pub path_prefix: String,
}

/// What an operator lets policies grant. Nothing, unless it says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ceilings {
    /// Hosts outside.
    pub hosts: Vec<HostPattern>,
    /// Addresses that may be dialled though they are not public.
    pub ranges: Vec<IpNet>,
}

/// `jira.example.com`, or `*.example.com` for everything below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern(String);

impl HostPattern {
    /// Whether it means `host`.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        // What is no name could be read as another one (`a.test:1.example.com`).
        is_name(host)
            && match self.0.strip_prefix('*') {
                Some(suffix) => host.to_ascii_lowercase().ends_with(suffix),
                None => host.eq_ignore_ascii_case(&self.0),
            }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if is_name(text.strip_prefix("*.").unwrap_or(text)) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err("write jira.example.com, or *.example.com for every host below it".into())
        }
    }
}

/// Labels of letters, digits and hyphens, with dots between them.
fn is_name(host: &str) -> bool {
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    host.split('.').all(label)
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_a_host_or_everything_below_one() {
        let matches = |pattern: &str, host: &str| pattern.parse::<HostPattern>().unwrap().matches(host);
        assert!(matches("jira.example.com", "Jira.example.com") && matches("*.example.com", "a.b.example.com"));
        for (pattern, host) in [
            ("jira.example.com", "a.jira.example.com"),
            ("*.example.com", "example.com"),
            ("*.example.com", "badexample.com"),
            ("*.example.com", ".example.com"),
            ("*.example.com", "a.test:1.example.com"),
            ("*.example.com", "a@b.example.com"),
        ] {
            assert!(!matches(pattern, host), "{pattern} {host}");
        }
        for wrong in ["", "*", "*.", "a..b", "a/b", "https://a", "*.*.a", "a:443"] {
            assert!(wrong.parse::<HostPattern>().is_err(), "{wrong}");
        }
    }
}
