//! Sigstore bundles, as cosign 3 writes them: a signed statement that names a manifest, or a signature of the manifest.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

use super::Key;
use crate::model::trial::Digest;

/// What the media types of all versions begin with.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle";
const STATEMENT: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPES: [&str; 2] = ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];
/// A signature. Attestations, of contents or of tests, are statements by the same key about the same manifest, and
/// nobody's word that it may be run.
const SIGNATURE: &str = "https://sigstore.dev/cosign/sign/v1";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Option<Envelope>,
    message_signature: Option<Message>,
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

/// Whether `key` signed the manifest by way of the bundle `json`.
pub(super) fn check(key: &Key, json: &[u8], manifest: &[u8], digest: &Digest) -> Result<(), String> {
    let bundle: Bundle = serde_json::from_slice(json).map_err(|error| format!("is no bundle: {error}"))?;
    match bundle {
        Bundle { dsse_envelope: Some(envelope), message_signature: None } => statement(key, &envelope, digest),
        Bundle { dsse_envelope: None, message_signature: Some(message) } => {
            let signature = decoded(&message.signature)?;
            if key.signed(manifest, &signature) {
                Ok(())
            } else {
                Err("was not made of this manifest with this key".into())
            }
        }
        _ => Err("is a bundle with neither a statement nor a signature".into()),
    }
}

fn statement(key: &Key, envelope: &Envelope, digest: &Digest) -> Result<(), String> {
    let Envelope { payload, payload_type, signatures } = envelope;
    let payload = decoded(payload)?;
    // What is signed is the type and the payload, each with its length.
    let mut signed = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    signed.extend_from_slice(&payload);
    let by_key = signatures.iter().filter_map(|signature| decoded(&signature.sig).ok());
    // First of all: nothing of what a stranger wrote is read.
    if !by_key.into_iter().any(|signature| key.signed(&signed, &signature)) {
        return Err("was not made with this key".into());
    }
    if payload_type != STATEMENT {
        return Err(format!("signs a {payload_type:?}, not a {STATEMENT:?}"));
    }
    let Statement { type_, predicate_type, subject } =
        serde_json::from_slice(&payload).map_err(|error| format!("signs what is no statement: {error}"))?;
    if !STATEMENT_TYPES.contains(&type_.as_str()) || predicate_type != SIGNATURE {
        return Err(format!("is a statement of type {predicate_type:?}, not a signature ({SIGNATURE})"));
    }
    let named = |subject: &Subject| {
        let sha256 = subject.digest.sha256.as_deref();
        sha256.is_some_and(|sha256| digest.as_str().strip_prefix("sha256:") == Some(sha256))
    };
    if subject.iter().any(named) { Ok(()) } else { Err(format!("signs another manifest than {digest}")) }
}

fn decoded(base64: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(base64).map_err(|error| format!("is no base64: {error}"))
}
