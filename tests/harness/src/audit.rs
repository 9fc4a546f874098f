//! The apiserver's audit log, read as the list of requests since some moment.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

use crate::cluster::Cluster;

/// A moment in the audit log.
pub struct Audit {
    log: PathBuf,
    /// Where the lines of what came later begin, at the latest.
    offset: u64,
    /// What came earlier may be written later: a line is written when its request has ended.
    moment: Timestamp,
}

/// A finished request.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// When it came.
    pub request_received_timestamp: MicroTime,
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
    /// Of a deletion: what must still hold.
    #[serde(default)]
    pub preconditions: Metadata,
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
        Ok(Self { log, offset, moment: Timestamp::now() })
    }

    /// Every request that came since and has ended.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let mut file = fs::File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        parse(&text, self.moment)
    }
}

fn parse(text: &str, since: Timestamp) -> Result<Vec<Request>> {
    // The last line may be in the middle of being written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut requests: Vec<Request> = whole.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    requests.retain(|request| request.request_received_timestamp.0 >= since);
    Ok(requests)
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
        let Sent { metadata, preconditions } = self.request_object.as_ref()?;
        metadata.resource_version.as_deref().or(preconditions.resource_version.as_deref())
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
    const CONFLICT: &str = r#"{"kind":"Event","level":"Request","stage":"ResponseComplete","requestReceivedTimestamp":"2026-11-27T01:15:51.174000Z","verb":"patch","user":{"username":"system:serviceaccount:sluice-system:sluice-operator","groups":[]},"userAgent":"sluice","objectRef":{"resource":"promotions","namespace":"a","name":"b","apiGroup":"sluice.dev","subresource":"status"},"responseStatus":{"metadata":{},"status":"Failure","code":409},"requestObject":{"kind":"Promotion","metadata":{"name":"b","resourceVersion":"7"},"status":{}}}"#;
    const DELETION: &str = r#"{"level":"Request","requestReceivedTimestamp":"2026-11-27T01:15:51.174000Z","verb":"delete","user":{"username":"system:serviceaccount:sluice-system:sluice-operator"},"objectRef":{"resource":"deployments","namespace":"a","name":"b","apiGroup":"apps"},"responseStatus":{"code":409},"requestObject":{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"c","resourceVersion":"7"},"propagationPolicy":"Background"}}"#;
    const PROBE: &str = r#"{"level":"Metadata","requestReceivedTimestamp":"2026-11-27T01:15:50.000001Z","verb":"get","user":{"username":"system:anonymous"},"requestURI":"/readyz"}"#;

    #[test]
    fn a_line_says_who_did_what_and_how_it_ended() {
        let log = format!("{CONFLICT}\n{PROBE}\n{{\"verb\":\"ge");
        let requests = parse(&log, Timestamp::UNIX_EPOCH).expect("whole lines");
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
    fn a_deletion_names_its_version_among_its_preconditions() {
        let requests = parse(&format!("{DELETION}\n"), Timestamp::UNIX_EPOCH).expect("a whole line");
        assert_eq!((requests[0].kind().as_str(), requests[0].only_if()), ("delete deployments", Some("7")));
    }

    #[test]
    fn a_log_without_a_whole_line_holds_nothing() {
        assert!(parse("", Timestamp::UNIX_EPOCH).expect("nothing").is_empty());
        assert!(parse("{\"verb\":", Timestamp::UNIX_EPOCH).expect("nothing whole").is_empty());
    }

    #[test]
    fn what_came_earlier_is_left_out_even_if_it_was_written_later() {
        let since = "2026-11-27T01:15:51Z".parse().expect("a time");
        let requests = parse(&format!("{CONFLICT}\n{PROBE}\n"), since).expect("whole lines");
        assert_eq!(requests.iter().map(Request::kind).collect::<Vec<_>>(), ["patch promotions/status"]);
    }
}
