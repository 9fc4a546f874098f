//! Whether Kong's own operator is at work: while it renews its Lease, nothing is ours to write.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Client, ResourceExt,
    runtime::{reflector::Store, watcher},
};

use super::{Scope, cache};

/// The name of the Lease by which the replicas of Kong's operator choose one, in whatever namespace it runs.
pub const KONG_LEASE: &str = "a7feedc84.konghq.com";

/// Kong's Lease, wherever it is looked for.
#[derive(Clone)]
pub struct Foreign(Option<Store<Lease>>);

impl Foreign {
    /// Watches it from now on.
    #[must_use]
    pub fn watch(client: &Client, scope: &Scope) -> Self {
        let named = watcher::Config::default().fields(&format!("metadata.name={KONG_LEASE}"));
        Self(Some(cache::keep(scope.api::<Lease>(client), named, |_| {})))
    }

    /// Where Leases may not be seen: nobody is ever at work.
    #[must_use]
    pub fn unseen() -> Self {
        Self(None)
    }

    /// Waits until it is known whether there is one.
    ///
    /// # Errors
    /// Where the watch ended for good.
    pub async fn ready(&self) -> Result<(), kube::runtime::reflector::store::WriterDropped> {
        match &self.0 {
            Some(leases) => leases.wait_until_ready().await,
            None => Ok(()),
        }
    }

    /// Who holds a Lease that has not run out, and when it does unless it is renewed.
    #[must_use]
    pub fn at_work(&self, now: Timestamp) -> Option<(String, Timestamp)> {
        self.0.as_ref()?.state().iter().find_map(|lease| held(lease, now))
    }
}

/// The holder of a Lease, and when it runs out, unless it has.
fn held(lease: &Lease, now: Timestamp) -> Option<(String, Timestamp)> {
    let spec = lease.spec.as_ref()?;
    let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty())?;
    let life = SignedDuration::from_secs(spec.lease_duration_seconds.unwrap_or(15).into());
    let ends = spec.renew_time.as_ref()?.0.checked_add(life).ok()?;
    (ends > now).then(|| (format!("{}/{holder}", lease.namespace().unwrap_or_default()), ends))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_lease_counts_while_somebody_renews_it() {
        let renewed = Timestamp::from_second(1_800_000_000).expect("a time");
        let lease = |holder: &str| -> Lease {
            serde_json::from_value(json!({
                "metadata": {"name": KONG_LEASE, "namespace": "kong-system"},
                "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": "2027-01-15T08:00:00.000000Z"},
            }))
            .expect("a Lease")
        };
        let after = |seconds| renewed + SignedDuration::from_secs(seconds);
        let held_by_one = held(&lease("one"), after(14)).expect("held");
        assert_eq!(held_by_one, ("kong-system/one".to_owned(), after(15)));
        assert_eq!(held(&lease("one"), after(15)), None, "run out");
        assert_eq!(held(&lease(""), after(1)), None, "given up");
    }
}
