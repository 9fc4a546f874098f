//! PURE. Addresses of a Service, as Kong lists them: load balancer first, cluster addresses after.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;

use crate::api::dataplane::Address;

const SCHEME: &str = "service.beta.kubernetes.io/aws-load-balancer-scheme";

/// All addresses of a Service. A headless one has the address `None`, as with Kong.
pub(super) fn of(service: &Service) -> Vec<Address> {
    let mut addresses = Vec::new();
    let mut add = |type_: &str, value: &str, source: &str| {
        addresses.push(Address { type_: Some(type_.into()), value: value.into(), source_type: source.into() });
    };
    for ingress in ingresses(service) {
        if let Some(ip) = &ingress.ip {
            add("IPAddress", ip, if is_private(ip) { "PrivateLoadBalancer" } else { "PublicLoadBalancer" });
        }
        if let Some(hostname) = &ingress.hostname {
            let internal = service.annotations().get(SCHEME).is_some_and(|scheme| scheme == "internal");
            add("Hostname", hostname, if internal { "PrivateLoadBalancer" } else { "PublicLoadBalancer" });
        }
    }
    for ip in service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten()) {
        add("IPAddress", ip, "PrivateIP");
    }
    addresses
}

/// A load balancer has given the Service an address.
pub(super) fn has_load_balancer(service: &Service) -> bool {
    ingresses(service).any(|ingress| ingress.ip.is_some() || ingress.hostname.is_some())
}

fn ingresses(service: &Service) -> impl Iterator<Item = &k8s_openapi::api::core::v1::LoadBalancerIngress> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten())
}

/// RFC 1918 or an IPv6 unique local address.
fn is_private(text: &str) -> bool {
    match text.parse() {
        Ok(IpAddr::V4(ip)) => ip.is_private(),
        Ok(IpAddr::V6(ip)) => ip.is_unique_local(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_are_listed_in_kongs_order_and_kinds() {
        let service: Service = serde_json::from_value(json!({
            "spec": {"clusterIPs": ["10.0.0.1"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "6.7.8.9", "hostname": "lb.example"}, {"ip": "10.97.0.1"}]}},
        }))
        .expect("a Service");
        let listed: Vec<_> = of(&service).into_iter().map(|address| (address.value, address.source_type)).collect();
        let expected = [
            ("6.7.8.9", "PublicLoadBalancer"),
            ("lb.example", "PublicLoadBalancer"),
            ("10.97.0.1", "PrivateLoadBalancer"),
            ("10.0.0.1", "PrivateIP"),
        ];
        assert_eq!(listed, expected.map(|(value, source)| (value.to_owned(), source.to_owned())));
        assert!(has_load_balancer(&service));
    }

    #[test]
    fn a_headless_service_has_the_address_none() {
        let service: Service = serde_json::from_value(json!({"spec": {"clusterIPs": ["None"]}})).expect("a Service");
        assert_eq!(of(&service)[0].value, "None");
        assert!(!has_load_balancer(&service));
    }
}
