//! Sigstore bundles, as cosign 3 writes them: a signed statement that names a manifest, or a signature of the manifest.

use serde::{Deserialize, Deserializer};

use super::{
    claim::{Claim, Entry},
    decoded,
};
use crate::model::trial::Digest;

/// What the media types of all versions begin with.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle";
const STATEMENT: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPES: [&str; 2] = ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];
/// A signature. Attestations, of contents or of tests, are statements by the same key about the same manifest, and
/// nobody's word that it may be run.
const SIGNATURE: &str = "https://sigstore.dev/cosign/sign/v1";

/// A bundle.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bundle {
    verification_material: Option<Material>,
    dsse_envelope: Option<Envelope>,
    message_signature: Option<Message>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    certificate: Option<Raw>,
    x509_certificate_chain: Option<Chain>,
    #[serde(default)]
    tlog_entries: Vec<LogEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    raw_bytes: String,
}

#[derive(Deserialize)]
struct Chain {
    certificates: Vec<Raw>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogEntry {
    #[serde(deserialize_with = "number")]
    log_index: i64,
    log_id: LogId,
    #[serde(default, deserialize_with = "number")]
    integrated_time: i64,
    inclusion_promise: Option<Promise>,
    canonicalized_body: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogId {
    key_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Promise {
    signed_entry_timestamp: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
struct Message {
    signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    type_: String,
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: SubjectDigest,
}

#[derive(Deserialize)]
struct SubjectDigest {
    sha256: Option<String>,
}

impl Bundle {
    pub(super) fn read(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| format!("is no bundle: {error}"))
    }

    /// What it claims of `manifest`.
    pub(super) fn claim(&self, manifest: &[u8]) -> Result<Claim, String> {
        let (certificate, entries) = match &self.verification_material {
            Some(material) => (material.certificate()?, material.entries()?),
            None => (None, Vec::new()),
        };
        match (&self.dsse_envelope, &self.message_signature) {
            (Some(Envelope { payload, payload_type, signatures }), None) => {
                let payload = decoded(payload)?;
                // What is signed is the type and the payload, each with its length.
                let mut signed =
                    format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
                signed.extend_from_slice(&payload);
                let signatures =
                    signatures.iter().map(|signature| decoded(&signature.sig)).collect::<Result<_, _>>()?;
                Ok(Claim { signed, signatures, logged: payload, certificate, entries })
            }
            (None, Some(Message { signature })) => Ok(Claim {
                signed: manifest.to_vec(),
                signatures: vec![decoded(signature)?],
                logged: manifest.to_vec(),
                certificate,
                entries,
            }),
            _ => Err("is a bundle with neither a statement nor a signature".into()),
        }
    }

    /// Whether it is about `digest`. To be asked once it is known who signed.
    pub(super) fn names(&self, digest: &Digest) -> Result<(), String> {
        // A signature of the manifest itself has no need to name it.
        let Some(Envelope { payload, payload_type, .. }) = &self.dsse_envelope else { return Ok(()) };
        if payload_type != STATEMENT {
            return Err(format!("signs a {payload_type:?}, not a {STATEMENT:?}"));
        }
        let Statement { type_, predicate_type, subject } = serde_json::from_slice(&decoded(payload)?)
            .map_err(|error| format!("signs what is no statement: {error}"))?;
        if !STATEMENT_TYPES.contains(&type_.as_str()) || predicate_type != SIGNATURE {
            return Err(format!("is a statement of type {predicate_type:?}, not a signature ({SIGNATURE})"));
        }
        let named = |subject: &Subject| {
            let sha256 = subject.digest.sha256.as_deref();
            sha256.is_some_and(|sha256| digest.as_str().strip_prefix("sha256:") == Some(sha256))
        };
        if subject.iter().any(named) { Ok(()) } else { Err(format!("signs another manifest than {digest}")) }
    }
}

impl Material {
    fn certificate(&self) -> Result<Option<Vec<u8>>, String> {
        let chain = || self.x509_certificate_chain.as_ref().and_then(|chain| chain.certificates.first());
        self.certificate.as_ref().or_else(chain).map(|raw| decoded(&raw.raw_bytes)).transpose()
    }

    fn entries(&self) -> Result<Vec<Entry>, String> {
        let entries = self.tlog_entries.iter().map(|entry| {
            let LogEntry { log_index, log_id, integrated_time, inclusion_promise, canonicalized_body } = entry;
            let promise = inclusion_promise.as_ref().map(|promise| decoded(&promise.signed_entry_timestamp));
            Ok(Entry {
                log: decoded(&log_id.key_id)?,
                index: *log_index,
                time: *integrated_time,
                body: canonicalized_body.clone(),
                promise: promise.transpose()?.unwrap_or_default(),
            })
        });
        entries.collect()
    }
}

/// Protocol buffers write 64 bits as text.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Number(i64),
        Text(String),
    }
    match Number::deserialize(deserializer)? {
        Number::Number(number) => Ok(number),
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}
