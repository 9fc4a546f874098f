//! The apiserver's audit log, read as the list of requests since some moment.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cluster::Cluster;

/// A moment in the audit log.
pub struct Audit {
    log: PathBuf,
    offset: u64,
}

/// A finished request.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// get, list, watch, create, update, patch, delete or deletecollection.
    pub verb: String,
    /// Who sent it.
    pub user: User,
    /// What the sender calls itself.
    #[serde(default)]
    pub user_agent: String,
    /// What it is about; nothing for requests such as `/readyz`.
    pub object_ref: Option<Object>,
    /// How it ended.
    pub response_status: Option<Status>,
}

/// Who sent a request.
#[derive(Debug, Clone, Deserialize)]
pub struct User {
    /// Such as `system:serviceaccount:sluice-system:sluice`.
    pub username: String,
}

/// What a request is about.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Object {
    /// The plural.
    pub resource: String,
    /// Such as `status`.
    pub subresource: String,
    /// Empty for cluster-wide objects.
    pub namespace: String,
    /// Empty for lists.
    pub name: String,
}

/// How a request ended.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// The HTTP status.
    #[serde(default)]
    pub code: u16,
}

impl Audit {
    /// From now on.
    pub fn now(cluster: &Cluster) -> Result<Self> {
        let log = cluster.audit_log();
        let offset =
            fs::metadata(&log).with_context(|| format!("cannot read {}; is the cluster up?", log.display()))?.len();
        Ok(Self { log, offset })
    }

    /// Every request that ended since.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let mut file = fs::File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // The last line may be in the middle of being written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

impl Request {
    /// Whether it changes something.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// Whether a ServiceAccount sent it.
    pub fn is_from(&self, namespace: &str, service_account: &str) -> bool {
        self.user.username == format!("system:serviceaccount:{namespace}:{service_account}")
    }

    /// In one word what was done: `patch dataplanes/status`.
    pub fn kind(&self) -> String {
        let object = self.object_ref.clone().unwrap_or_default();
        let slash = if object.subresource.is_empty() { "" } else { "/" };
        format!("{} {}{slash}{}", self.verb, object.resource, object.subresource)
    }
}
