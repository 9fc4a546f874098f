//! What the operator allows: the file of --plugin-sources, read once at start.
//!
//! ```yaml
//! registries:
//!   - prefix: ghcr.io/acme            # images that begin so
//!     mirror: registry.example/acme   # asked in its place
//!     tokenHosts: [auth.example]      # may be asked for a token, beside the registry itself
//!     blobHosts: [blobs.example]      # may be redirected to, beside the registry itself
//!     caBundle: |                     # PEM; default: the machine's
//!       -----BEGIN CERTIFICATE-----
//!     proxy: http://proxy.example:3128
//! http:
//!   hosts: [plugins.example]          # caBundle and proxy as above
//! ```

use std::sync::Arc;

use hyper::{Uri, http::uri::Authority};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde::Deserialize;

use super::{client::Route, reference::Reference};

/// What tenants may refer to. Nothing, unless an operator lists it.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    registries: Vec<Registry>,
    web: Option<Web>,
}

/// A listed registry, or a part of one.
#[derive(Clone, Debug)]
pub(super) struct Registry {
    /// What images begin with: `host`, `host/path`.
    prefix: String,
    /// What is asked in place of `prefix`.
    mirror: Option<String>,
    pub(super) token_hosts: Vec<Authority>,
    pub(super) blob_hosts: Vec<Authority>,
    pub(super) route: Route,
}

/// The listed web servers.
#[derive(Clone, Debug)]
pub(super) struct Web {
    pub(super) hosts: Vec<Authority>,
    pub(super) route: Route,
}

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// It is not what it should look like.
    #[error("{0}")]
    Yaml(#[from] serde_norway::Error),
    /// A field cannot be used.
    #[error("{field}: {problem}")]
    Field {
        /// Its path.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    #[serde(default)]
    registries: Vec<RegistryEntry>,
    http: Option<WebEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RegistryEntry {
    prefix: String,
    mirror: Option<String>,
    #[serde(default)]
    token_hosts: Vec<String>,
    #[serde(default)]
    blob_hosts: Vec<String>,
    ca_bundle: Option<String>,
    proxy: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WebEntry {
    hosts: Vec<String>,
    ca_bundle: Option<String>,
    proxy: Option<String>,
}

impl Sources {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// The field that cannot be used.
    pub fn parse(text: &str) -> Result<Self, SourcesError> {
        let File { registries, http } = serde_norway::from_str(text)?;
        let registries = registries.into_iter().enumerate().map(|(index, entry)| {
            let at = format!("registries[{index}]");
            let RegistryEntry { prefix, mirror, token_hosts, blob_hosts, ca_bundle, proxy } = entry;
            for (field, text) in [("prefix", Some(&prefix)), ("mirror", mirror.as_ref())] {
                if let Some(text) = text
                    && !is_prefix(text)
                {
                    return Err(wrong(
                        &at,
                        field,
                        format!("{text:?} is no host with an optional path, as in ghcr.io/acme"),
                    ));
                }
            }
            Ok(Registry {
                prefix,
                mirror,
                token_hosts: hosts(&at, "tokenHosts", &token_hosts)?,
                blob_hosts: hosts(&at, "blobHosts", &blob_hosts)?,
                route: route(&at, ca_bundle.as_deref(), proxy.as_deref())?,
            })
        });
        let web = http.map(|WebEntry { hosts: listed, ca_bundle, proxy }| {
            let route = route("http", ca_bundle.as_deref(), proxy.as_deref())?;
            Ok::<_, SourcesError>(Web { hosts: hosts("http", "hosts", &listed)?, route })
        });
        Ok(Self { registries: registries.collect::<Result<_, _>>()?, web: web.transpose()? })
    }

    /// The entry for an image, the longest prefix first, and where the image is asked for: host and repository.
    pub(super) fn registry(&self, image: &Reference) -> Option<(&Registry, Authority, String)> {
        let name = image.name();
        let rest = |entry: &Registry| {
            let rest = name.strip_prefix(&entry.prefix)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| rest.to_owned())
        };
        let listed = self.registries.iter().filter_map(|entry| Some((entry, rest(entry)?)));
        let (entry, rest) = listed.max_by_key(|(entry, _)| entry.prefix.len())?;
        let asked = format!("{}{rest}", entry.mirror.as_ref().unwrap_or(&entry.prefix));
        let (host, repository) = asked.split_once('/')?;
        Some((entry, host.parse().ok()?, repository.to_owned()))
    }

    /// The web servers, if `host` is one.
    pub(super) fn web(&self, host: &Authority) -> Option<&Web> {
        self.web.as_ref().filter(|web| web.hosts.contains(host))
    }
}

fn wrong(at: &str, field: &str, problem: impl ToString) -> SourcesError {
    SourcesError::Field { field: format!("{at}.{field}"), problem: problem.to_string() }
}

fn is_prefix(text: &str) -> bool {
    let host = text.split('/').next().unwrap_or_default();
    is_host(host) && text.split('/').all(|part| !part.is_empty())
}

fn is_host(text: &str) -> bool {
    !text.contains('@') && text.parse::<Authority>().is_ok_and(|host| !host.host().is_empty())
}

fn hosts(at: &str, field: &str, listed: &[String]) -> Result<Vec<Authority>, SourcesError> {
    let host = |text: &String| {
        let host = text.parse().ok().filter(|_| is_host(text));
        host.ok_or_else(|| wrong(at, field, format!("{text:?} is no host with an optional port")))
    };
    listed.iter().map(host).collect()
}

fn route(at: &str, ca_bundle: Option<&str>, proxy: Option<&str>) -> Result<Route, SourcesError> {
    let proxy = proxy.map(|text| {
        let url = text.parse::<Uri>().ok().filter(|url| url.scheme_str() == Some("http"));
        let proxy = url.and_then(|url| url.authority().cloned()).filter(|host| is_host(host.as_str()));
        proxy.ok_or_else(|| wrong(at, "proxy", format!("{text:?} is not http://HOST:PORT")))
    });
    let mut roots = RootCertStore::empty();
    match ca_bundle {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|error| wrong(at, "caBundle", error))?;
                roots.add(certificate).map_err(|error| wrong(at, "caBundle", error))?;
            }
        }
        None => {
            // What the machine has and cannot be read is not trusted.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(wrong(at, "caBundle", "names no certificate, and neither does the machine: give it in PEM"));
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(at, "caBundle", error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Route { tls: Arc::new(tls), proxy: proxy.transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> String {
        let key = rcgen::generate_simple_self_signed(["r.example".to_owned()]).expect("a certificate");
        key.cert.pem()
    }

    fn parse(yaml: &str) -> Result<Sources, SourcesError> {
        let pem = authority().replace('\n', "\n      ");
        Sources::parse(&yaml.replace("CA", &format!("caBundle: |\n      {pem}")))
    }

    fn asked(sources: &Sources, image: &str) -> Option<String> {
        let (_, host, repository) = sources.registry(&image.parse().expect("a reference"))?;
        Some(format!("{host} {repository}"))
    }

    #[test]
    fn what_is_not_listed_is_not_asked() {
        let yaml = "registries:\n  - prefix: r.example/team\n    CA\n";
        let sources = parse(yaml).expect("sources");
        assert_eq!(asked(&sources, "r.example/team/gate:1").as_deref(), Some("r.example team/gate"));
        assert_eq!(asked(&sources, "r.example/team:1").as_deref(), Some("r.example team"));
        for other in
            ["r.example/teams/gate:1", "r.example/gate:1", "s.example/team/gate:1", "r.example:5000/team/gate:1"]
        {
            assert_eq!(asked(&sources, other), None, "{other}");
        }
        assert_eq!(asked(&Sources::default(), "r.example/team/gate:1"), None, "nothing is the default");
    }

    #[test]
    fn the_longest_prefix_counts_and_its_mirror_is_asked() {
        let yaml = "registries:\n  - prefix: r.example\n    CA\n  - prefix: r.example/team\n    mirror: m.example:5000/proxy\n    CA\n";
        let sources = parse(yaml).expect("sources");
        assert_eq!(asked(&sources, "r.example/team/gate:1").as_deref(), Some("m.example:5000 proxy/gate"));
        assert_eq!(asked(&sources, "r.example/other/gate:1").as_deref(), Some("r.example other/gate"));
    }

    #[test]
    fn web_servers_are_listed_by_host_and_port() {
        let sources = parse("http:\n    hosts: [\"w.example:8443\"]\n    CA\n").expect("sources");
        assert!(sources.web(&Authority::from_static("w.example:8443")).is_some());
        assert!(sources.web(&Authority::from_static("w.example")).is_none());
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        let says = |yaml: &str| parse(yaml).expect_err("refused").to_string();
        for (yaml, field) in [
            ("registries:\n  - prefix: https://r.example\n    CA\n", "registries[0].prefix"),
            ("registries:\n  - prefix: r.example/\n    CA\n", "registries[0].prefix"),
            ("registries:\n  - prefix: r.example\n    blobHosts: [\"a@b\"]\n    CA\n", "registries[0].blobHosts"),
            ("registries:\n  - prefix: r.example\n    proxy: socks5://p.example\n    CA\n", "registries[0].proxy"),
            ("registries:\n  - prefix: r.example\n    caBundle: nothing\n", "registries[0].caBundle"),
            ("registries:\n  - prefix: r.example\n    insecure: true\n    CA\n", "insecure"),
        ] {
            let said = says(yaml);
            assert!(said.contains(field), "{said}");
        }
    }
}
