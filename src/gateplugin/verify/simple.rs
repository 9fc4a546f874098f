//! Simple signing, as cosign 2 does it: a small JSON that names a manifest, and its signature.

use bytes::Bytes;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{
    claim::{Claim, Entry},
    decoded,
};
use crate::model::trial::Digest;

const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const LOG: &str = "dev.sigstore.cosign/bundle";
const TYPE: &str = "cosign container image signature";

/// A payload and what was said of it.
#[derive(Clone, Debug)]
pub(crate) struct Simple {
    payload: Bytes,
    signature: String,
    certificate: Option<String>,
    log: Option<String>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    type_: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Log {
    signed_entry_timestamp: String,
    payload: LogPayload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogPayload {
    body: String,
    integrated_time: i64,
    log_index: i64,
    #[serde(rename = "logID")]
    log_id: String,
}

impl Simple {
    /// A blob with the annotations of its layer; none where they say that it is no payload.
    pub(crate) fn of(payload: Bytes, annotations: &BTreeMap<String, String>) -> Option<Self> {
        let signature = annotations.get(SIGNATURE)?.clone();
        let (certificate, log) = (annotations.get(CERTIFICATE).cloned(), annotations.get(LOG).cloned());
        Some(Self { payload, signature, certificate, log })
    }

    pub(super) fn claim(&self) -> Result<Claim, String> {
        let certificate = self.certificate.as_ref().map(|pem| {
            let der = CertificateDer::from_pem_slice(pem.as_bytes());
            der.map(|der| der.to_vec()).map_err(|error| format!("has a certificate that is no PEM: {error}"))
        });
        let entries = self.log.as_ref().map(|json| {
            let Log { signed_entry_timestamp, payload } =
                serde_json::from_str(json).map_err(|error| format!("has a log entry that cannot be read: {error}"))?;
            let LogPayload { body, integrated_time, log_index, log_id } = payload;
            let promise = decoded(&signed_entry_timestamp)?;
            Ok::<_, String>(Entry {
                log: hexadecimal(&log_id)?,
                index: log_index,
                time: integrated_time,
                body,
                promise,
            })
        });
        Ok(Claim {
            signed: self.payload.to_vec(),
            signatures: vec![decoded(&self.signature)?],
            logged: self.payload.to_vec(),
            certificate: certificate.transpose()?,
            entries: entries.transpose()?.into_iter().collect(),
        })
    }

    /// Whether it is about `digest`. To be asked once it is known who signed.
    pub(super) fn names(&self, digest: &Digest) -> Result<(), String> {
        let Payload { critical } = serde_json::from_slice(&self.payload)
            .map_err(|error| format!("signs what is no payload of cosign: {error}"))?;
        if critical.type_ != TYPE {
            return Err(format!("signs a {:?}, not a {TYPE:?}", critical.type_));
        }
        if critical.image.digest != digest.as_str() {
            return Err(format!("signs {}, not {digest}", critical.image.digest));
        }
        Ok(())
    }
}

fn hexadecimal(text: &str) -> Result<Vec<u8>, String> {
    let pair = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(pair).collect();
    bytes.ok_or_else(|| format!("has a logID that is not hexadecimal: {text:?}"))
}

#[cfg(test)]
impl Simple {
    /// Of a test: the payload for `digest`, signed by `sign`.
    pub(super) fn signed(digest: &Digest, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Self {
        use base64::{Engine as _, prelude::BASE64_STANDARD};
        let payload = serde_json::json!({
            "critical": {
                "identity": {"docker-reference": "r.example/gate"},
                "image": {"docker-manifest-digest": digest.as_str()},
                "type": TYPE,
            },
            "optional": null,
        });
        let payload = Bytes::from(payload.to_string());
        let signature = BASE64_STANDARD.encode(sign(&payload));
        Self { payload, signature, certificate: None, log: None }
    }

    /// Of a test: with a certificate and a log entry of it.
    pub(super) fn logged(self, certificate: String, log: String) -> Self {
        Self { certificate: Some(certificate), log: Some(log), ..self }
    }

    /// Of a test: with another signature.
    pub(super) fn forged(self, signature: &str) -> Self {
        Self { signature: signature.to_owned(), ..self }
    }
}
