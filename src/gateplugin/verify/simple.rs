//! Simple signing, as cosign 2 does it: a small JSON that names a manifest, and its signature.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

use super::Key;
use crate::model::trial::Digest;

/// The annotation of the layer whose blob is the payload.
pub(crate) const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const TYPE: &str = "cosign container image signature";

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

/// Whether `key` signed `payload`, and that names `digest`.
pub(super) fn check(key: &Key, payload: &[u8], signature: &str, digest: &Digest) -> Result<(), String> {
    let signature = BASE64_STANDARD.decode(signature).map_err(|error| format!("is no base64: {error}"))?;
    // First of all: nothing of what a stranger wrote is read.
    if !key.signed(payload, &signature) {
        return Err("was not made with this key".into());
    }
    let Payload { critical } =
        serde_json::from_slice(payload).map_err(|error| format!("signs what is no payload of cosign: {error}"))?;
    if critical.type_ != TYPE {
        return Err(format!("signs a {:?}, not a {TYPE:?}", critical.type_));
    }
    if critical.image.digest != digest.as_str() {
        return Err(format!("signs {}, not {digest}", critical.image.digest));
    }
    Ok(())
}
