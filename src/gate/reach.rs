//! How far this host reaches for its gates: the operator's configuration, never a guest's.

use std::{fmt, str::FromStr, sync::Arc};

use hyper::http::uri::{Authority, Scheme, Uri};
use rustls::{ClientConfig, RootCertStore};

use super::host::{
    egress::{Resolve, System},
    exchange,
};

/// What lies outside an upgrade.
#[derive(Clone)]
pub struct Reach {
    /// Where metrics are asked for; nowhere if absent.
    pub prometheus: Option<Prometheus>,
    /// Whether guests may send what they are granted through `wasi:http` too.
    pub wasi_http: bool,
    /// Finds the addresses of hosts outside.
    pub resolver: Arc<dyn Resolve>,
    /// Trusts whom the operator trusts.
    pub(in crate::gate) tls: Arc<ClientConfig>,
}

impl Reach {
    /// No Prometheus, no `wasi:http`, this machine's resolver, and hosts whose certificates `roots` vouch for.
    #[must_use]
    pub fn trusting(roots: RootCertStore) -> Self {
        Self { prometheus: None, wasi_http: false, resolver: Arc::new(System), tls: exchange::verified(roots) }
    }
}

impl Default for Reach {
    /// Trusts nobody outside.
    fn default() -> Self {
        Self::trusting(RootCertStore::empty())
    }
}

impl fmt::Debug for Reach {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Reach").field("prometheus", &self.prometheus).finish_non_exhaustive()
    }
}

/// A Prometheus by its URL: `http://prometheus.monitoring:9090`, `https://metrics.example.com/prometheus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prometheus {
    pub(in crate::gate) tls: bool,
    pub(in crate::gate) authority: Authority,
    pub(in crate::gate) port: u16,
    /// What stands before `/api/v1`, without a slash at its end.
    pub(in crate::gate) path: String,
}

impl FromStr for Prometheus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]".to_owned();
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(_) | None => return Err(wrong()),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        if uri.query().is_some() {
            return Err(wrong());
        }
        Ok(Self {
            tls,
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.clone(),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prometheus_is_named_by_its_url() {
        let parsed =
            |text: &str| text.parse::<Prometheus>().map(|it| (it.tls, it.authority.to_string(), it.port, it.path));
        assert_eq!(parsed("http://prometheus:9090"), Ok((false, "prometheus:9090".into(), 9090, String::new())));
        assert_eq!(parsed("https://a.example/prom/"), Ok((true, "a.example".into(), 443, "/prom".into())));
        for wrong in ["", "prometheus:9090", "ftp://a", "http://", "http://user:word@a", "http://a/?b=c"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
