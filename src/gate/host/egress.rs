//! Hosts outside the upgrade: resolved once for a trial, every address checked, and nothing dialled that was not.
//!
//! A name that leads to one good address and one bad one is somebody's attempt: all of it is refused. What was resolved
//! stays for the trial, so that a second answer of the name server cannot lead elsewhere.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::sync::OnceCell;

use super::probe::{Failure, Kind, failure};
use crate::model::trial::Egress;

/// Addresses of one name. More is no service that anybody needs.
const ADDRESSES: usize = 64;

/// Finds the addresses of a name.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    /// All of them.
    ///
    /// # Errors
    /// Where the name server does not answer, or knows no such name.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// As this machine does it.
#[derive(Debug)]
pub(in crate::gate) struct System;

#[async_trait]
impl Resolve for System {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// A host outside, as one trial knows it.
pub(in crate::gate) struct Remote {
    egress: Egress,
    resolver: Arc<dyn Resolve>,
    /// Filled by the first request; the others find what it found.
    addresses: OnceCell<Result<Vec<SocketAddr>, Failure>>,
}

impl Remote {
    pub(in crate::gate) fn new(egress: Egress, resolver: Arc<dyn Resolve>) -> Self {
        Self { egress, resolver, addresses: OnceCell::new() }
    }

    pub(super) fn egress(&self) -> &Egress {
        &self.egress
    }

    /// What may be dialled.
    ///
    /// # Errors
    /// Where the name has no address, or one that no gate may speak to.
    pub(super) async fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        let Egress { host, port, allowed, .. } = &self.egress;
        let resolve = async {
            let resolved = self.resolver.resolve(host).await;
            let found =
                resolved.map_err(|error| failure(Kind::Connect, format!("{host} cannot be resolved: {error}")))?;
            if found.is_empty() || found.len() > ADDRESSES {
                return Err(failure(Kind::Connect, format!("{host} has {} addresses", found.len())));
            }
            if let Some(address) = found.iter().find(|address| !may_dial(**address, allowed)) {
                let message = format!(
                    "{host} has the address {address}, which is not public; the operator's --egress-range lists what may be spoken to all the same"
                );
                return Err(failure(Kind::Denied, message));
            }
            Ok(found.into_iter().map(|address| SocketAddr::new(address, *port)).collect())
        };
        self.addresses.get_or_init(|| resolve).await.clone()
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Remote({}:{})", self.egress.host, self.egress.port)
    }
}

/// Ranges that lead back to this machine, its network or its provider, or to nobody in particular (IANA's registries of
/// special-purpose addresses). Of IPv6, only what lies in `2000::/3` is global unicast at all.
static SPECIAL: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    let ranges = [
        "0.0.0.0/8",       // this network
        "10.0.0.0/8",      // private
        "100.64.0.0/10",   // carrier-grade NAT
        "127.0.0.0/8",     // loopback
        "169.254.0.0/16",  // link-local, and with it the metadata of clouds
        "172.16.0.0/12",   // private
        "192.0.0.0/24",    // protocols
        "192.0.2.0/24",    // documentation
        "192.88.99.0/24",  // 6to4 relays
        "192.168.0.0/16",  // private
        "198.18.0.0/15",   // benchmarks
        "198.51.100.0/24", // documentation
        "203.0.113.0/24",  // documentation
        "224.0.0.0/4",     // multicast
        "240.0.0.0/4",     // reserved, and broadcast
        "2001::/23",       // Teredo and other protocols
        "2001:db8::/32",   // documentation
        "2002::/16",       // 6to4
        "3fff::/20",       // documentation
    ];
    ranges.iter().filter_map(|range| range.parse().ok()).collect()
});

/// Whether a gate may speak to `address`. IPv4 in the clothes of IPv6 (mapped, translated) is no global unicast, so it
/// is refused like the rest.
pub(super) fn may_dial(address: IpAddr, allowed: &[IpNet]) -> bool {
    let global = match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => address.segments()[0] & 0xe000 == 0x2000,
    };
    let public = global && !SPECIAL.iter().any(|range| range.contains(&address));
    public || allowed.iter().any(|range| range.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_range_of_the_table_can_be_read() {
        assert_eq!(SPECIAL.len(), 19);
    }

    #[test]
    fn public_addresses_may_be_dialled() {
        for public in ["1.1.1.1", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "2a00::1"] {
            assert!(may_dial(address(public), &[]), "{public}");
        }
    }

    #[test]
    fn addresses_that_lead_back_or_nowhere_may_not() {
        for special in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.255.255",
            "192.168.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "64:ff9b:1::1",
            "2002:0101:0101::1",
            "2001::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!may_dial(address(special), &[]), "{special}");
        }
    }

    #[test]
    fn the_operator_may_list_a_range_and_only_that_is_open_then() {
        let allowed = ["10.1.0.0/16".parse().unwrap()];
        assert!(may_dial(address("10.1.2.3"), &allowed));
        assert!(!may_dial(address("10.2.2.3"), &allowed));
        assert!(!may_dial(address("::ffff:10.1.2.3"), &allowed));
    }
}
