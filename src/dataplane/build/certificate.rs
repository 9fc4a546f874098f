//! PURE. Which Secret each side mounts, and what has to be in it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use super::{CertificateOrder, Demand, metadata, service};
use crate::model::{
    Intent, Observed,
    names::{self, Role, State},
    plan::Side,
};

/// One Secret for each Deployment with the names of both admin Services, so that promotion changes no certificate.
pub(super) fn orders(intent: &Intent, observed: &Observed, sides: &[Side]) -> Vec<CertificateOrder> {
    let admin = [State::Live, State::Preview].map(|state| service::name(intent, observed, Role::Admin, state));
    let hosts: Vec<_> = admin.iter().map(|service| format!("{service}.{}.svc", intent.owner.namespace)).collect();
    let mut orders: Vec<CertificateOrder> = Vec::new();
    for side in sides {
        let live = orders.first().map(|order| order.name.as_str());
        let (name, demand) = place(intent, observed, side, &hosts, live);
        let issued_for = if side.state == Some(State::Preview) { &admin[1] } else { &admin[0] };
        let labels = BTreeMap::from([
            (names::MANAGED_BY, names::DATAPLANE),
            (names::SERVICE_SECRET, issued_for.as_str()),
            (names::KONG_SECRET, "true"),
        ]);
        let metadata = metadata(intent, &name, Some(&format!("dataplane-{}-", intent.owner.name)), &labels);
        orders.push(CertificateOrder { name, hosts: hosts.clone(), metadata, demand });
    }
    orders
}

/// The Secret of a side, and what is asked of it. `live` is the one that the live side mounts.
fn place(intent: &Intent, observed: &Observed, side: &Side, hosts: &[String], live: Option<&str>) -> (String, Demand) {
    let covers = |secret: &Secret| secret.annotations().get(names::HOSTS) == Some(&hosts.join(","));
    let demand = if side.renews { Demand::Fresh } else { Demand::Exact };
    let mounted = observed.secret_of(&side.selector);
    let own = || names::side(&intent.owner.name, &intent.owner.uid, &side.selector);
    match (mounted, side.state) {
        (Some(secret), _) if side.renews || covers(secret) => (secret.name_any(), demand),
        // Made by Kong's operator, for one of the two names. Another one would restart Pods that serve.
        (Some(secret), Some(State::Live) | None) => (secret.name_any(), Demand::Whole),
        (Some(_), Some(State::Preview)) | (None, Some(State::Live) | None) => (own(), demand),
        // What the replaced side leaves behind is the next preview's.
        (None, Some(State::Preview)) => {
            let free = |secret: &&std::sync::Arc<Secret>| covers(secret) && live != Some(secret.name_any().as_str());
            (observed.secrets.iter().find(free).map_or_else(own, |free| free.name_any()), demand)
        }
    }
}
