//! PURE. Who signed a manifest.
//!
//! Keys, without a transparency log: what `cosign sign --key` makes, in the form of cosign 2 (a payload with its
//! signature) and of cosign 3 (a Sigstore bundle). A signature counts only if it is of this very manifest.
//!
//! ```text
//! key      a public key in PEM
//! simple   cosign 2: the payload names the manifest
//! bundle   cosign 3: a statement that names the manifest, or a signature of the manifest itself
//! ```

mod bundle;
mod key;
mod simple;

use bytes::Bytes;

pub(super) use bundle::MEDIA_TYPE as BUNDLE;
pub(super) use key::Key;
pub(super) use simple::ANNOTATION as SIGNATURE_ANNOTATION;

use crate::{
    api::gateplugin::{Require, Verify},
    model::trial::Digest,
};

/// A signature as it was found beside an image.
#[derive(Clone, Debug)]
pub(super) enum Signature {
    /// Of cosign 2.
    Simple {
        /// What is signed.
        payload: Bytes,
        /// base64.
        signature: String,
    },
    /// Of cosign 3: the JSON of a bundle.
    Bundle(Bytes),
}

/// Why nobody who is trusted has signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A key that cannot be used.
    #[error("keys[{index}] {problem}")]
    InvalidKey {
        /// Which.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// There are none.
    #[error("there is no signature beside the image: cosign sign --key KEY IMAGE@DIGEST")]
    NotSigned,
    /// There are, and none counts.
    #[error("no signature of keys[{index}] among {found}: {problem}")]
    WrongSignature {
        /// The key that did not sign.
        index: usize,
        /// Signatures that were found.
        found: usize,
        /// What is wrong with the first.
        problem: String,
    },
}

impl SignatureError {
    /// The reason of the plugin's conditions.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidKey { .. } => "InvalidKey",
            Self::NotSigned => "NotSigned",
            Self::WrongSignature { .. } => "WrongSignature",
        }
    }

    /// May go away though nothing changes that is watched.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            // Images are pushed first and signed afterwards.
            Self::NotSigned | Self::WrongSignature { .. } => true,
            Self::InvalidKey { .. } => false,
        }
    }
}

/// The keys that are trusted.
pub(super) fn keys(wanted: &Verify) -> Result<Vec<Key>, SignatureError> {
    if wanted.keys.is_empty() {
        return Err(SignatureError::InvalidKey { index: 0, problem: "is missing: nobody is trusted".into() });
    }
    let key = |(index, pem): (usize, &String)| {
        Key::of_pem(pem).map_err(|problem| SignatureError::InvalidKey { index, problem })
    };
    wanted.keys.iter().enumerate().map(key).collect()
}

/// Whether as many `keys` as required have signed `manifest`, whose digest is `digest`.
pub(super) fn check(
    keys: &[Key],
    require: Require,
    manifest: &[u8],
    digest: &Digest,
    found: &[Signature],
) -> Result<(), SignatureError> {
    if found.is_empty() {
        return Err(SignatureError::NotSigned);
    }
    let mut signed = keys.iter().enumerate().map(|(index, key)| {
        let mut problems = Vec::new();
        for signature in found {
            match by(key, signature, manifest, digest) {
                Ok(()) => return Ok(()),
                Err(problem) => problems.push(problem),
            }
        }
        let problem = problems.into_iter().next().unwrap_or_default();
        Err(SignatureError::WrongSignature { index, found: found.len(), problem })
    });
    match require {
        Require::All => signed.collect(),
        Require::Any => {
            let first = signed.next().unwrap_or(Err(SignatureError::NotSigned));
            first.or_else(|error| if signed.any(|other| other.is_ok()) { Ok(()) } else { Err(error) })
        }
    }
}

fn by(key: &Key, signature: &Signature, manifest: &[u8], digest: &Digest) -> Result<(), String> {
    match signature {
        Signature::Simple { payload, signature } => simple::check(key, payload, signature, digest),
        Signature::Bundle(json) => bundle::check(key, json, manifest, digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use rcgen::{KeyPair, SigningKey as _};
    use serde_json::{Value, json};
    use std::slice::from_ref;

    const MANIFEST: &[u8] = b"{}";

    struct Signer(KeyPair);

    impl Signer {
        fn of(algorithm: &'static rcgen::SignatureAlgorithm) -> Self {
            Self(KeyPair::generate_for(algorithm).expect("a key"))
        }

        fn new() -> Self {
            Self::of(&rcgen::PKCS_ECDSA_P256_SHA256)
        }

        fn key(&self) -> Key {
            Key::of_pem(&self.0.public_key_pem()).expect("a key")
        }

        fn sign(&self, bytes: &[u8]) -> String {
            BASE64_STANDARD.encode(self.0.sign(bytes).expect("a signature"))
        }

        fn simple(&self, digest: &Digest) -> Signature {
            let payload = json!({
                "critical": {
                    "identity": {"docker-reference": "r.example/gate"},
                    "image": {"docker-manifest-digest": digest.as_str()},
                    "type": "cosign container image signature",
                },
                "optional": null,
            });
            let payload = Bytes::from(payload.to_string());
            Signature::Simple { signature: self.sign(&payload), payload }
        }

        fn statement(&self, digest: &Digest, change: impl FnOnce(&mut Value)) -> Signature {
            let mut statement = json!({
                "_type": "https://in-toto.io/Statement/v1",
                "subject": [{"digest": {"sha256": &digest.as_str()["sha256:".len()..]}}],
                "predicateType": "https://sigstore.dev/cosign/sign/v1",
                "predicate": {},
            });
            change(&mut statement);
            let (kind, payload) = ("application/vnd.in-toto+json", statement.to_string());
            let encoded = format!("DSSEv1 {} {kind} {} {payload}", kind.len(), payload.len());
            let envelope = json!({
                "payload": BASE64_STANDARD.encode(&payload), "payloadType": kind,
                "signatures": [{"sig": self.sign(encoded.as_bytes())}],
            });
            bundle(json!({"dsseEnvelope": envelope}))
        }

        fn message(&self, manifest: &[u8]) -> Signature {
            bundle(json!({"messageSignature": {"signature": self.sign(manifest)}}))
        }
    }

    fn bundle(mut content: Value) -> Signature {
        content["mediaType"] = json!("application/vnd.dev.sigstore.bundle.v0.3+json");
        content["verificationMaterial"] = json!({"publicKey": {"hint": "x"}});
        Signature::Bundle(content.to_string().into())
    }

    fn judge(keys: &[&Signer], require: Require, found: &[Signature]) -> Result<(), &'static str> {
        let keys: Vec<_> = keys.iter().map(|signer| signer.key()).collect();
        check(&keys, require, MANIFEST, &Digest::of(MANIFEST), found).map_err(|error| error.code())
    }

    #[test]
    fn every_form_and_every_kind_of_key_counts() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let signer = Signer::of(algorithm);
            let digest = Digest::of(MANIFEST);
            for signature in [signer.simple(&digest), signer.statement(&digest, |_| {}), signer.message(MANIFEST)] {
                assert_eq!(judge(&[&signer], Require::Any, from_ref(&signature)), Ok(()), "{signature:?}");
            }
        }
    }

    #[test]
    fn a_signature_of_something_else_does_not_count() {
        let signer = Signer::new();
        let (this, other) = (Digest::of(MANIFEST), Digest::of(b"other"));
        for signature in [
            signer.simple(&other),
            signer.statement(&other, |_| {}),
            signer.message(b"other"),
            // By the same key, and about this manifest, but nobody's word that it may be run.
            signer.statement(&this, |statement| statement["predicateType"] = json!("https://spdx.dev/Document")),
            signer.statement(&this, |statement| statement["_type"] = json!("text")),
            signer.statement(&this, |statement| statement["subject"] = json!([])),
            Signature::Bundle(Bytes::from_static(b"{}")),
            Signature::Bundle(Bytes::from_static(b"no JSON")),
        ] {
            assert_eq!(judge(&[&signer], Require::Any, from_ref(&signature)), Err("WrongSignature"), "{signature:?}");
        }
        let Signature::Simple { payload, .. } = signer.simple(&this) else { panic!("simple") };
        for signature in ["", "AAAA", "no base64!"] {
            let forged = Signature::Simple { payload: payload.clone(), signature: signature.into() };
            assert_eq!(judge(&[&signer], Require::Any, &[forged]), Err("WrongSignature"), "{signature}");
        }
    }

    #[test]
    fn one_key_is_enough_unless_all_are_required() {
        let (a, b, digest) = (Signer::new(), Signer::new(), Digest::of(MANIFEST));
        let of_b = [b.simple(&digest)];
        assert_eq!(judge(&[&a, &b], Require::Any, &of_b), Ok(()));
        assert_eq!(judge(&[&a, &b], Require::All, &of_b), Err("WrongSignature"));
        assert_eq!(judge(&[&a], Require::Any, &of_b), Err("WrongSignature"));
        assert_eq!(judge(&[&a, &b], Require::All, &[b.simple(&digest), a.message(MANIFEST)]), Ok(()));
        assert_eq!(judge(&[&a], Require::Any, &[]), Err("NotSigned"));
    }

    #[test]
    fn a_key_that_cannot_be_used_is_named() {
        let pem = Signer::new().0.public_key_pem();
        let certificate = rcgen::generate_simple_self_signed(["x".to_owned()]).expect("a certificate").cert.pem();
        for bad in ["", "key", &certificate, &pem[..40]] {
            let wanted = Verify { keys: vec![pem.clone(), bad.to_owned()], require: Require::Any };
            match keys(&wanted) {
                Err(SignatureError::InvalidKey { index: 1, .. }) => {}
                other => panic!("{bad}: {other:?}"),
            }
        }
        assert!(keys(&Verify::default()).is_err(), "nobody is not everybody");
    }
}
