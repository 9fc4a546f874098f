//! One trial: what a gate is run with, and everything that comes back.
//!
//! These nouns are the whole conversation between the corridor of a DataPlane and the gate host. They know
//! neither Kubernetes nor WebAssembly, so that either side can move to another process.

use std::{fmt, net::SocketAddr, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The sha256 of a plugin's bytes, written `sha256:<64 hex digits>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    /// Characters of its text.
    pub const LENGTH: usize = "sha256:".len() + 64;

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut text = String::from("sha256:");
        for byte in Sha256::digest(bytes) {
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text)
    }

    /// `text`, if it is written as a digest is.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?;
        let hexadecimal = digits.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit));
        (digits.len() == 64 && hexadecimal).then(|| Self(text.to_owned()))
    }

    /// The text, prefix included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<String> for Digest {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// Which judgement of an upgrade a trial belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Moment {
    /// The candidate stands behind the preview Services.
    #[default]
    BeforePromotion,
    /// It stands behind the live Services, and the stable side still stands.
    AfterPromotion,
}

impl Moment {
    /// The word the guest reads.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BeforePromotion => "before-promotion",
            Self::AfterPromotion => "after-promotion",
        }
    }

    /// What stands where nothing is said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How a target is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scheme {
    /// HTTP/1.1 in the clear.
    Http,
    /// TLS whose certificate is not verified: the proxy's default certificate is self-signed, and the
    /// evidence says that nobody checked it.
    HttpsUnverified,
    /// Likewise, and the host shows the trial's own certificate: the admin API wants one of the cluster CA.
    HttpsIdentified,
}

/// What a request may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// Reads.
    Get,
    /// Reads, without a body in the answer.
    Head,
    /// May change anything.
    Post,
    /// Replaces.
    Put,
    /// Changes.
    Patch,
    /// Deletes.
    Delete,
    /// Asks what can be asked.
    Options,
}

impl Method {
    /// All of them. `CONNECT` and `TRACE` are no requests to a target.
    pub const ALL: [Self; 7] = [Self::Get, Self::Head, Self::Post, Self::Put, Self::Patch, Self::Delete, Self::Options];

    /// Those that change nothing.
    pub const READING: [Self; 2] = [Self::Get, Self::Head];

    /// As it is written in a request.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
        }
    }
}

/// One address behind a target: a Pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// What `request.options.endpoint` takes and `response.endpoint` says: the Pod's name.
    pub name: String,
    /// The Pod's own address. Dialled as it is.
    pub address: SocketAddr,
}

/// Something a gate may send requests to. Names only: nothing the guest writes is ever resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// `candidate/proxy`, `candidate/8001`.
    pub name: String,
    /// HTTP or HTTPS.
    pub scheme: Scheme,
    /// The address of the Service. Dialled when a request names no endpoint.
    pub service: SocketAddr,
    /// Default `Host` header and TLS server name.
    pub host: String,
    /// The Pods behind it.
    pub endpoints: Vec<Endpoint>,
    /// What a request may be.
    pub methods: Vec<Method>,
}

/// What a policy grants a gate beside the targets of the upgrade.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// Hosts outside.
    pub egress: Vec<Egress>,
    /// Secrets that the host adds to requests.
    pub credentials: Vec<Credential>,
    /// Questions to Prometheus.
    pub queries: Vec<Query>,
    /// Who the host says that it is to targets that ask.
    pub identity: Option<Identity>,
    /// Ports of the upgrade that are granted and not there.
    pub absent: Vec<Absent>,
}

/// A target that a policy grants and nobody can speak to: the gate is denied it, and told why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// As the gate would call it.
    pub name: String,
    /// `no container has a port of this name`
    pub why: String,
}

/// A certificate for the host to show, and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: Secret,
}

/// A host outside, spoken to over TLS with a certificate that is verified. Resolved once for each trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// `jira`: the target is `egress/jira`.
    pub name: String,
    /// `jira.example.com`: resolved, and the name its certificate has to bear.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Addresses that may be dialled though they are not public.
    pub allowed: Vec<IpNet>,
}

impl Egress {
    /// What a request calls it.
    #[must_use]
    pub fn target(&self) -> String {
        format!("egress/{}", self.name)
    }
}

/// A secret that a request may name and no gate ever sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// What `request.options.credential` takes.
    pub name: String,
    /// Its bytes.
    pub value: Secret,
    /// The only target it is sent to.
    pub target: String,
    /// The header it is sent in.
    pub header: String,
    /// The header's value, with `%s` once in place of the secret: `Bearer %s`.
    pub format: String,
    /// The path it is sent to, and everything below.
    pub path_prefix: String,
}

/// Bytes that are never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The bytes, for the request that carries them and for what has to be redacted.
    #[must_use]
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// A question to Prometheus that the policy's author wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// What `metrics.query` takes.
    pub name: String,
    /// PromQL; `${parameter}` stands in quoted label values only.
    pub promql: String,
    /// The namespace whose series it reads, whatever it says itself.
    pub namespace: String,
    /// The time it looks back over; an instant if absent.
    pub range: Option<Range>,
}

/// The times a range query is evaluated at: every `step` of the last `window`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// How far back.
    pub window: Duration,
    /// Between two points.
    pub step: Duration,
}

/// What a gate may use up. CPU and wall time are two budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time of the thread that polls the guest.
    pub cpu: Duration,
    /// Bytes of all linear memories and tables of one trial together.
    pub memory: usize,
    /// Bytes of the verdict's message and code; over it the trial is an error.
    pub message: usize,
    /// Bytes of log kept; the rest is cut and counted.
    pub log: usize,
    /// Measurements kept.
    pub measurements: usize,
    /// Links kept.
    pub links: usize,
    /// Bytes of the state a wait leaves behind; over it the trial is an error.
    pub state: usize,
    /// Requests a trial may send.
    pub requests: u32,
    /// Requests in flight at once.
    pub concurrency: u16,
    /// Bytes of one response body handed to the guest.
    pub body: usize,
    /// Bytes of all requests and answers together, handed to the guest or not.
    pub traffic: u64,
    /// Bytes the guest may hand over in one call. The largest honest call is a batch of requests.
    pub handed_over: usize,
    /// Handles to resources, whoever owns them.
    pub handles: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu: Duration::from_secs(2),
            memory: 64 << 20,
            message: 512,
            log: 64 << 10,
            measurements: 8,
            links: 4,
            state: 4 << 10,
            requests: 10_000,
            concurrency: 64,
            body: 1 << 20,
            traffic: 256 << 20,
            handed_over: 8 << 20,
            handles: 1_000,
        }
    }
}

/// Everything one run of one gate depends on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trial {
    /// As in the operator's logs and Events.
    pub id: String,
    /// Whose turn it is; all trials of a namespace wait in one line.
    pub namespace: String,
    /// Which plugin.
    pub digest: Digest,
    /// The gate's settings, a JSON object.
    pub settings: serde_json::Value,
    /// Before or after the switch.
    pub moment: Moment,
    /// Wall time from the first instruction on, host calls included.
    pub timeout: Duration,
    /// What the gate may use up.
    pub limits: Limits,
    /// What the gate may speak to.
    pub targets: Vec<Target>,
    /// What the gate's last wait left behind.
    pub state: Option<Vec<u8>>,
    /// What else its policy grants it.
    pub grants: Grants,
    /// The candidate as JSON (metadata, spec, revision, images), if the gate may know it.
    pub candidate: Option<String>,
    /// The stable side likewise.
    pub stable: Option<String>,
}

/// Why a verdict is what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A stable CamelCase word: `LatencyAboveThreshold`.
    pub code: String,
    /// One sentence for people.
    pub message: String,
}

/// Why there is no verdict: no knowledge about the candidate, so never a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Blame {
    /// The guest trapped (`unreachable`, division by zero, out-of-bounds).
    Trap,
    /// Over the CPU budget.
    CpuBudget,
    /// Over the memory limit.
    MemoryLimit,
    /// Endless recursion.
    StackOverflow,
    /// Over the wall-clock limit, inside or between host calls.
    Timeout,
    /// A verdict over its size limit, or more handed to the host in one call than it takes.
    MessageTooLarge,
    /// The gate itself reported trouble.
    GateTrouble,
    /// The settings do not fit the plugin's schema or the plugin refused them.
    InvalidSettings,
    /// The plugin is not loaded, or not any more.
    PluginNotReady,
    /// A credential that the gate was granted cannot be had.
    Credential,
    /// The trial was under way when its host went away.
    Interrupted,
    /// The host failed; not the guest's fault.
    Host,
}

impl Blame {
    /// The reason code in evidence, Events and conditions.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Trap => "Trap",
            Self::CpuBudget => "CpuBudgetExceeded",
            Self::MemoryLimit => "MemoryLimitExceeded",
            Self::StackOverflow => "StackOverflow",
            Self::Timeout => "Timeout",
            Self::MessageTooLarge => "MessageTooLarge",
            Self::GateTrouble => "GateTrouble",
            Self::InvalidSettings => "InvalidSettings",
            Self::PluginNotReady => "PluginNotReady",
            Self::Credential => "CredentialUnavailable",
            Self::Interrupted => "Interrupted",
            Self::Host => "HostError",
        }
    }
}

/// How a trial ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The candidate is good.
    Pass(Reason),
    /// The candidate is bad. Never retried.
    Fail(Reason),
    /// The gate looked and could not tell.
    Inconclusive(Reason),
    /// Ask again later; no attempt is used up.
    Wait {
        /// What it waits for.
        reason: Reason,
        /// How long at least.
        after: Duration,
        /// What the next trial is to find, at most 4 KiB.
        state: Option<Vec<u8>>,
    },
    /// No knowledge.
    Error {
        /// Who or what is to blame.
        blame: Blame,
        /// One sentence for people.
        message: String,
        /// Whether another attempt may help.
        retry: bool,
    },
}

/// A number that justifies a verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Measurement {
    /// `p99`, `endpoints`.
    pub name: String,
    /// The value.
    pub value: f64,
    /// `ms`, `requests`.
    pub unit: String,
    /// What it was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
}

/// A page that shows more than a verdict can say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Link {
    /// What it shows.
    pub title: String,
    /// `http` or `https`.
    pub url: String,
}

/// A target a gate asked for and was not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Denial {
    /// What the guest wrote, cut and with control characters escaped.
    pub target: String,
    /// How often.
    // An API server warns of the format `uint32` wherever it meets one.
    #[schemars(extend("format" = "int64"))]
    pub count: u32,
}

/// What a trial used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Time until its turn came.
    pub queued: Duration,
    /// CPU time.
    pub cpu: Duration,
    /// Wall time, without that.
    pub wall: Duration,
    /// Peak bytes of memory.
    pub memory: usize,
    /// Requests sent.
    pub requests: u32,
}

/// Everything that came back from one trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// At most `Limits::measurements`; the last value of a name wins.
    pub measurements: Vec<Measurement>,
    /// Pages, at most `Limits::links`.
    pub links: Vec<Link>,
    /// How long a pass holds, if not for ever.
    pub valid_for: Option<Duration>,
    /// Refused targets, at most 8 names.
    pub denials: Vec<Denial>,
    /// Endpoints that answered a request.
    pub answered: Vec<String>,
    /// Log lines, at most `Limits::log` bytes, each on one line with control characters escaped. The last
    /// line says how much was cut.
    pub log: Vec<String>,
    /// What it used up.
    pub cost: Cost,
    /// True when a target was spoken to over TLS that nobody verified.
    pub unverified_tls: bool,
}

impl Report {
    /// A trial that ended like this before it did anything.
    #[must_use]
    pub fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            measurements: Vec::new(),
            links: Vec::new(),
            valid_for: None,
            denials: Vec::new(),
            answered: Vec::new(),
            log: Vec::new(),
            cost: Cost::default(),
            unverified_tls: false,
        }
    }
}

/// What a plugin says of itself. Advisory: names shown to users come from the object that installed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The plugin's own name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One sentence.
    pub summary: String,
    /// JSON Schema of its settings.
    pub settings_schema: serde_json::Value,
}

/// A plugin that is compiled and ready to be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// sha256 of the component.
    pub digest: Digest,
    /// Bytes of the component.
    pub size: usize,
    /// The contract it was built for: `sluice:gate@0.1.0`.
    pub contract: String,
    /// What it imports: the permission list.
    pub imports: Vec<String>,
    /// What it says of itself.
    pub description: Description,
}

/// A setting that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// JSON pointer into the settings; empty for the whole.
    pub pointer: String,
    /// What is wrong with it.
    pub message: String,
}

/// Why bytes are not a plugin that can be run here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum LoadError {
    /// Not a WebAssembly component (or a precompiled artifact, which is never accepted).
    #[error("not a WebAssembly component: {0}")]
    NotAComponent(String),
    /// The evaluator of no supported version of the contract is exported.
    #[error("exports no sluice:gate/evaluator of a supported contract ({supported}); it exports: {found}")]
    UnsupportedContract {
        /// The contracts this host supports.
        supported: String,
        /// What was found instead.
        found: String,
    },
    /// An import that this host does not offer.
    #[error("imports {0}, which this host does not offer")]
    UnsupportedImport(String),
    /// `wasi:http`, which this host was not told to offer.
    #[error("imports {0}, which `sluice gate-host` offers only with --allow-wasi-http")]
    HttpNotAllowed(String),
    /// Larger than a plugin may be, or it needs more than the pool has.
    #[error("{0}")]
    TooLarge(String),
    /// The compiler ran into a limit of time, memory or size, or broke.
    #[error("cannot be compiled: {0}")]
    CompileFailed(String),
    /// It did not describe itself within its budget, or its schema is no JSON Schema.
    #[error("{0}")]
    BadDescription(String),
    /// Nobody looked: the gate host is away.
    #[error("{0}")]
    Unavailable(String),
}

impl LoadError {
    /// The reason of the plugin's condition.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAComponent(_) => "NotAComponent",
            Self::UnsupportedContract { .. } => "UnsupportedContract",
            Self::UnsupportedImport(_) | Self::HttpNotAllowed(_) => "UnsupportedImport",
            Self::TooLarge(_) => "TooLarge",
            Self::CompileFailed(_) => "CompileFailed",
            Self::BadDescription(_) => "BadDescription",
            Self::Unavailable(_) => "GateHostUnavailable",
        }
    }
}
