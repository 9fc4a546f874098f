//! A real container registry as a process of this machine: Debian's `docker-registry`, with TLS and a password.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::http::{Request, Response, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::images::packages;

/// Who may push and pull.
pub const USER: &str = "puller";
/// Their password.
pub const PASSWORD: &str = "pull-me";
/// The same as they are sent.
pub const AUTHORIZATION: &str = "Basic cHVsbGVyOnB1bGwtbWU=";
/// The same as they are kept: bcrypt of the password, as `htpasswd -B` writes it.
const HTPASSWD: &str = "puller:$2y$05$abcdefghijklmnopqrstuuBp.n58v886n7kD7.z9i0nzqxtQ8I2P.\n";
/// Far more than a start takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A registry; it ends when this is dropped.
pub struct Registry {
    child: Option<Child>,
    dir: tempfile::TempDir,
    address: SocketAddr,
    /// The certificate of its authority, in PEM.
    pub authority: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Registry {
    /// Starts one on a port of its own.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &issuer)?;
        fs::write(dir.path().join("tls.crt"), certificate.pem())?;
        fs::write(dir.path().join("tls.key"), key.serialize_pem())?;
        fs::write(dir.path().join("htpasswd"), HTPASSWD)?;

        let mut registry = Self {
            child: None,
            dir,
            address: ([127, 0, 0, 1], 0).into(),
            authority: issuer.pem(),
            client: client(issuer.der().clone())?,
        };
        registry.resume().await?;
        Ok(registry)
    }

    /// Where images are: `localhost:PORT`.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// Ends the process; what was pushed stays.
    pub async fn stop(&mut self) -> Result<()> {
        match self.child.take() {
            Some(mut child) => Ok(child.kill().await?),
            None => Ok(()),
        }
    }

    /// Starts the process, at the address that it had before.
    pub async fn resume(&mut self) -> Result<()> {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let config = json!({
            "version": "0.1",
            "log": { "level": "info", "formatter": "text", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": file("storage") } },
            "http": {
                "addr": self.address.to_string(),
                // What the cookies of uploads are signed with.
                "secret": "of a test",
                "tls": { "certificate": file("tls.crt"), "key": file("tls.key") },
            },
            "auth": { "htpasswd": { "realm": "test", "path": file("htpasswd") } },
        });
        // JSON, which every reader of YAML reads.
        fs::write(self.dir.path().join("config.yml"), config.to_string())?;
        let mut child = Command::new(binary()?)
            .args(["serve", &file("config.yml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stderr.take().context("the registry has no standard error")?;
        self.child = Some(child);
        let listening = tokio::time::timeout(PATIENCE, listening(output)).await;
        self.address = listening.context("the registry does not say that it listens")??;
        Ok(())
    }

    /// Pushes a blob and returns its digest.
    pub async fn push_blob(&self, repository: &str, blob: impl Into<Bytes>) -> Result<String> {
        let blob = blob.into();
        let digest = digest(&blob);
        let begun = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), None, Bytes::new()).await?;
        let location = begun.headers().get(header::LOCATION).context("no place for an upload")?.to_str()?;
        let location: hyper::http::Uri = location.parse()?;
        let place = location.path_and_query().context("an upload without path")?.as_str();
        let joint = if place.contains('?') { '&' } else { '?' };
        self.send("PUT", &format!("{place}{joint}digest={digest}"), Some("application/octet-stream"), blob).await?;
        Ok(digest)
    }

    /// Pushes a manifest under a tag or its digest, and returns its digest.
    pub async fn push_manifest(&self, repository: &str, by: &str, manifest: &serde_json::Value) -> Result<String> {
        let media_type = manifest["mediaType"].as_str().context("a manifest without mediaType")?;
        let bytes = Bytes::from(manifest.to_string());
        let digest = digest(&bytes);
        self.send("PUT", &format!("/v2/{repository}/manifests/{by}"), Some(media_type), bytes).await?;
        Ok(digest)
    }

    /// The file in which a blob or a manifest is kept.
    pub fn file(&self, digest: &str) -> PathBuf {
        let digits = digest.trim_start_matches("sha256:");
        let blobs = self.dir.path().join("storage/docker/registry/v2/blobs/sha256");
        blobs.join(&digits[..2]).join(digits).join("data")
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        media_type: Option<&str>,
        body: Bytes,
    ) -> Result<Response<hyper::body::Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.host()))
            .header(header::AUTHORIZATION, AUTHORIZATION);
        let request = match media_type {
            Some(media_type) => request.header(header::CONTENT_TYPE, media_type),
            None => request,
        };
        let response = self.client.request(request.body(Full::new(body))?).await?;
        if !response.status().is_success() {
            let status = response.status();
            let said = response.into_body().collect().await?.to_bytes();
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&said));
        }
        Ok(response)
    }
}

/// `sha256:` and the digits of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// The program, fetched once, by one test at a time. To be called where the internet can be reached, which is not so
/// inside the cluster's network.
pub fn binary() -> Result<PathBuf> {
    static FETCH: Mutex<()> = Mutex::new(());
    let _one = FETCH.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(packages::fetch("docker-registry")?.join(Path::new("usr/bin/docker-registry")))
}

/// The address in the line that says so; then everything else is read too, so that the registry can go on talking.
async fn listening(output: tokio::process::ChildStderr) -> Result<SocketAddr> {
    let mut lines = BufReader::new(output).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, rest)) = line.split_once("listening on ") {
            let address = rest.split([',', '"']).next().unwrap_or_default().parse()?;
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(address);
        }
        said.push(line);
    }
    bail!("the registry ended: {}", said.join("\n"))
}

fn client(authority: CertificateDer<'static>) -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>> {
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}
