//! The cluster's own certificate authority, the certificates of its parts, and their kubeconfigs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::{API_SERVER, NODE_ADDRESS, NODE_NAME};

/// Who may do everything, to the API.
pub const ADMIN: &str = "sluice-admin";

/// Who talks to the API: the file's name, the user and its group.
const CLIENTS: [(&str, &str, &str); 5] = [
    ("admin", ADMIN, "system:masters"),
    ("kube-controller-manager", "system:kube-controller-manager", ""),
    ("kube-scheduler", "system:kube-scheduler", ""),
    ("kubelet", "system:node:sluice", "system:nodes"),
    ("kube-proxy", "system:kube-proxy", ""),
];

/// Where the certificates lie.
#[derive(Clone)]
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// Those in the given folder.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// A file such as `ca.crt` or `apiserver.key`.
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Makes all of them anew: an authority lives as long as one cluster.
    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.dir)?;
        let authority = CertifiedIssuer::self_signed(authority_params()?, KeyPair::generate()?)?;
        self.write("ca.crt", &authority.pem())?;

        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
            "127.0.0.1",
            "10.96.0.1",
            NODE_ADDRESS,
        ];
        self.issue("apiserver", server_params(&names)?, &authority)?;
        self.issue("kubelet-server", server_params(&[NODE_NAME, NODE_ADDRESS])?, &authority)?;

        let tokens = KeyPair::generate()?;
        self.write("service-accounts.key", &tokens.serialize_pem())?;
        self.write("service-accounts.pub", &tokens.public_key_pem())?;

        for (name, user, group) in CLIENTS {
            self.issue(name, client_params(user, group), &authority)?;
            self.write_kubeconfig(name)?;
        }
        Ok(())
    }

    fn issue(&self, name: &str, params: CertificateParams, authority: &CertifiedIssuer<'_, KeyPair>) -> Result<()> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, authority)?;
        self.write(&format!("{name}.crt"), &certificate.pem())?;
        self.write(&format!("{name}.key"), &key.serialize_pem())
    }

    fn write_kubeconfig(&self, name: &str) -> Result<()> {
        let user = json!({
            "client-certificate": self.file(&format!("{name}.crt")),
            "client-key": self.file(&format!("{name}.key")),
        });
        let config = kubeconfig(API_SERVER, json!({ "certificate-authority": self.file("ca.crt") }), &user);
        self.write(&format!("{name}.kubeconfig"), &config)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        write_private(&self.dir.join(name), text)
    }
}

/// A kubeconfig with one server and one user. JSON, which every reader of YAML reads.
pub fn kubeconfig(server: &str, mut cluster: serde_json::Value, user: &serde_json::Value) -> String {
    cluster["server"] = json!(server);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "sluice", "cluster": cluster }],
        "users": [{ "name": "sluice", "user": user }],
        "contexts": [{ "name": "sluice", "context": { "cluster": "sluice", "user": "sluice" } }],
        "current-context": "sluice",
    });
    format!("{config:#}\n")
}

/// Writes a file that only its owner may read.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

fn authority_params() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "sluice test cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn server_params(names: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, names[0]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn client_params(user: &str, group: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, user);
    if !group.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}
