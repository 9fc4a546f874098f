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
    /// What was sent, where the policy of the cluster keeps it.
    pub request_object: Option<Sent>,
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

/// As much of what was sent as matters.
#[derive(Debug, Clone, Deserialize)]
pub struct Sent {
    /// Which object it is about.
    #[serde(default)]
    pub metadata: Metadata,
}

/// Which object it is about.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The version that the object must still have.
    pub resource_version: Option<String>,
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
        parse(&text)
    }
}

fn parse(text: &str) -> Result<Vec<Request>> {
    // The last line may be in the middle of being written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

impl Request {
    /// Whether it changes something.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// Whether it reads, watches aside.
    pub fn is_read(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list")
    }

    /// Whether somebody else's write came first.
    pub fn is_conflict(&self) -> bool {
        self.response_status.as_ref().is_some_and(|status| status.code == 409)
    }

    /// The plural of what it is about; nothing for requests such as `/readyz`.
    pub fn resource(&self) -> &str {
        self.object_ref.as_ref().map_or("", |object| &object.resource)
    }

    /// The version that the object must have for this to be done, where the policy of the cluster keeps it.
    pub fn only_if(&self) -> Option<&str> {
        self.request_object.as_ref()?.metadata.resource_version.as_deref()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One line of the log as the apiserver writes it, shortened; the object is there only at level Request.
    const CONFLICT: &str = r#"{"kind":"Event","level":"Request","stage":"ResponseComplete","verb":"patch","user":{"username":"system:serviceaccount:sluice-system:sluice-operator","groups":[]},"userAgent":"sluice","objectRef":{"resource":"promotions","namespace":"a","name":"b","apiGroup":"sluice.dev","subresource":"status"},"responseStatus":{"metadata":{},"status":"Failure","code":409},"requestObject":{"kind":"Promotion","metadata":{"name":"b","resourceVersion":"7"},"status":{}}}"#;
    const PROBE: &str =
        r#"{"level":"Metadata","verb":"get","user":{"username":"system:anonymous"},"requestURI":"/readyz"}"#;

    #[test]
    fn a_line_says_who_did_what_and_how_it_ended() {
        let requests = parse(&format!("{CONFLICT}\n{PROBE}\n{{\"verb\":\"ge")).expect("whole lines");
        let [conflict, probe] = &requests[..] else { panic!("{requests:?}") };
        assert!(
            conflict.is_from("sluice-system", "sluice-operator") && !probe.is_from("sluice-system", "sluice-operator")
        );
        assert_eq!((conflict.kind().as_str(), conflict.only_if()), ("patch promotions/status", Some("7")));
        assert!(conflict.is_write() && conflict.is_conflict() && !conflict.is_read());
        assert_eq!((probe.resource(), probe.only_if()), ("", None));
        assert!(probe.is_read() && !probe.is_conflict());
    }

    #[test]
    fn a_log_without_a_whole_line_holds_nothing() {
        assert!(parse("").expect("nothing").is_empty());
        assert!(parse("{\"verb\":").expect("nothing whole").is_empty());
    }
}
