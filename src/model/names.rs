//! Names: labels, annotations and finalizers of Kong's operator, and the deterministic names of what we own.

use sha2::{Digest as _, Sha256};

/// Who writes: our manager in server-side apply.
pub const FIELD_MANAGER: &str = "sluice";
/// Holds the replica count of a Deployment while an autoscaler chooses it: a count that nobody holds would fall back to
/// the API's default with our next apply.
pub const COUNT_MANAGER: &str = "sluice-count";
/// Who wrote before: the field manager of Kong's operator.
pub const KONG_MANAGER: &str = "manager";

/// Name of the DataPlane, on everything of it but the Secret.
pub const APP: &str = "app";
/// `dataplane` on everything that belongs to a DataPlane.
pub const MANAGED_BY: &str = "gateway-operator.konghq.com/managed-by";
/// The value of [`MANAGED_BY`].
pub const DATAPLANE: &str = "dataplane";
/// `live` or `preview`, on Deployments.
pub const DEPLOYMENT_STATE: &str = "gateway-operator.konghq.com/dataplane-deployment-state";
/// `live` or `preview`, on Services.
pub const SERVICE_STATE: &str = "gateway-operator.konghq.com/dataplane-service-state";
/// `ingress` or `admin`, on Services.
pub const SERVICE_TYPE: &str = "gateway-operator.konghq.com/dataplane-service-type";
/// The UUID that tells one side's Pods from the other's.
pub const SELECTOR: &str = "gateway-operator.konghq.com/selector";
/// The hash of the Pod template: what the Deployment controller names a ReplicaSet by, and labels its Pods with.
pub const TEMPLATE_HASH: &str = "pod-template-hash";
/// The admin Service a Secret was issued for.
pub const SERVICE_SECRET: &str = "gateway-operator.konghq.com/service-secret";
/// `true` on every Secret Kong's own caches may hold.
pub const KONG_SECRET: &str = "konghq.com/secret";
/// Holds an object until its owner is gone.
pub const WAIT_FOR_OWNER: &str = "gateway-operator.konghq.com/wait-for-owner";
/// The revision an object was rendered from.
pub const REVISION: &str = "sluice.dev/revision";
/// Hash of the object as it was last applied: what is no longer in it has to be pruned.
pub const APPLIED: &str = "sluice.dev/applied";
/// The DNS names a Secret's certificate was issued for: read here instead of being parsed out of it.
pub const HOSTS: &str = "sluice.dev/hosts";
/// When a Secret's certificate ends, likewise.
pub const EXPIRES: &str = "sluice.dev/expires";
/// The annotations of the spec as they were last put on a Service: Kong's own memory, kept for the way back.
pub const LAST_APPLIED_ANNOTATIONS: &str = "gateway-operator.konghq.com/last-applied-annotations";
/// The promotion that last moved a live Service.
pub const PROMOTION: &str = "sluice.dev/promotion";
/// On a live Service: how many switches of it were decided and taken back.
pub const WITHDRAWN: &str = "sluice.dev/withdrawn";
/// `true` on Secrets that gates may use: whoever may write a policy need not be one who may read Secrets.
pub const GATE_CREDENTIAL: &str = "sluice.dev/gate-credential";
/// The volume with the side's certificate.
pub const CERTIFICATE_VOLUME: &str = "cluster-certificate";
/// The gateway's container.
pub const PROXY: &str = "proxy";

/// `live` or `preview`: which Services an object stands with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Takes traffic.
    Live,
    /// Waits beside it.
    Preview,
}

impl State {
    /// As in the labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Preview => "preview",
        }
    }
}

/// What a Service is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Proxy traffic.
    Ingress,
    /// The admin API.
    Admin,
}

impl Role {
    /// As in the labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Admin => "admin",
        }
    }
}

/// The UUID in a side's selector.
///
/// Each one follows from the one before it, so that no crash and no lost status can invent a side.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector(String);

impl Selector {
    /// The first live side of an owner.
    #[must_use]
    pub fn founding(owner_uid: &str) -> Self {
        Self(uuid(&[owner_uid, "founding"]))
    }

    /// The side that is prepared while `self` is live.
    #[must_use]
    pub fn next(&self, owner_uid: &str) -> Self {
        Self(uuid(&[owner_uid, &self.0]))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Selector {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// `dataplane-<name>-<hash of owner and selector>`: the Deployment of a side, and its Secret.
#[must_use]
pub fn side(dataplane: &str, owner_uid: &str, selector: &Selector) -> String {
    named(&format!("dataplane-{dataplane}-"), &[owner_uid, selector.as_str()])
}

/// The Deployment that takes the place of a terminating one of the same side.
#[must_use]
pub fn successor(dataplane: &str, selector: &Selector, terminating_uid: &str) -> String {
    named(&format!("dataplane-{dataplane}-"), &[terminating_uid, selector.as_str()])
}

/// `dataplane-ingress-<name>-<hash of owner, role and state>`.
#[must_use]
pub fn service(dataplane: &str, owner_uid: &str, role: Role, state: State) -> String {
    named(&service_prefix(dataplane, role), &[owner_uid, role.as_str(), state.as_str()])
}

/// Kong's `generateName` of a Service.
#[must_use]
pub fn service_prefix(dataplane: &str, role: Role) -> String {
    format!("dataplane-{}-{dataplane}-", role.as_str())
}

/// `<dataplane>-<revision>`, as the record of a wish is called.
#[must_use]
pub fn record(dataplane: &str, owner_uid: &str, revision: &str) -> String {
    fit(&format!("{dataplane}-{revision}"), 63, &[owner_uid, revision])
}

/// `<dataplane>-<generation>-<revision>`, as the record of an upgrade is called.
#[must_use]
pub fn promotion(dataplane: &str, generation: i64, revision: &str) -> String {
    fit(&format!("{dataplane}-{generation}-{revision}"), 63, &[dataplane, &generation.to_string(), revision])
}

/// A `generateName` as Kong makes it: cut to 62 characters where longer than 63, always ending in `-`.
#[must_use]
pub fn generate_name(prefix: &str) -> String {
    if prefix.len() <= 63 { prefix.to_owned() } else { format!("{}-", &prefix[..61].trim_end_matches('-')) }
}

/// Short hash, lower-case hexadecimal, of parts that cannot run into each other.
#[must_use]
pub fn hash(parts: &[&str], digits: usize) -> String {
    hex(parts).chars().take(digits).collect()
}

fn named(prefix: &str, parts: &[&str]) -> String {
    // 63 is the limit of a Service's name and of a label value; the suffix keeps cut names apart.
    let room = 63 - 9;
    let head = if prefix.len() > room { &prefix[..room] } else { prefix };
    format!("{}-{}", head.trim_end_matches('-'), hash(parts, 8))
}

fn fit(name: &str, limit: usize, parts: &[&str]) -> String {
    if name.len() <= limit {
        return name.to_owned();
    }
    format!("{}-{}", name[..limit - 9].trim_end_matches(['-', '.']), hash(parts, 8))
}

fn uuid(parts: &[&str]) -> String {
    let hex = hex(parts);
    // Version 8 (custom) and the RFC 9562 variant: a UUID that says it is not random.
    format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

fn hex(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ_however_long_the_dataplane_is_called() {
        let long = "x".repeat(80);
        let live = service(&long, "uid", Role::Ingress, State::Live);
        let preview = service(&long, "uid", Role::Ingress, State::Preview);
        assert_ne!(live, preview);
        assert!(live.len() <= 63 && preview.len() <= 63, "{live} {preview}");
        assert!(promotion(&long, 12, "v1-abc").len() <= 63);
        assert_ne!(promotion(&long, 12, "v1-abc"), promotion(&long, 13, "v1-abc"));
    }

    #[test]
    fn each_selector_follows_from_the_one_before() {
        let first = Selector::founding("uid");
        let second = first.next("uid");
        assert_ne!(first, second);
        assert_eq!(second, Selector::founding("uid").next("uid"));
        assert_eq!(second.as_str().len(), 36);
        assert_ne!(Selector::founding("other"), first);
    }
}
