//! A public key in PEM, and what was signed with it.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use x509_parser::{
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519, Oid,
    },
    prelude::FromDer as _,
    x509::SubjectPublicKeyInfo,
};

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    kind: Kind,
    bits: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

impl Key {
    /// The key of a `PUBLIC KEY` block, as `cosign.pub` is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of_pem(pem: &str) -> Result<Self, String> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| format!("is no PUBLIC KEY in PEM: {error}"))?;
        Self::of_der(&der)
    }

    /// The same as it is in a certificate.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of_der(der: &[u8]) -> Result<Self, String> {
        let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|error| format!("is no public key: {error}"))?;
        let algorithm = &info.algorithm.algorithm;
        let curve = || info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let is = |oid: &Oid<'_>| algorithm == oid;
        let kind = if is(&OID_KEY_TYPE_EC_PUBLIC_KEY) {
            match curve() {
                Some(curve) if curve == OID_EC_P256 => Some(Kind::P256),
                Some(curve) if curve == OID_NIST_EC_P384 => Some(Kind::P384),
                _ => None,
            }
        } else if is(&OID_SIG_ED25519) {
            Some(Kind::Ed25519)
        } else {
            is(&OID_PKCS1_RSAENCRYPTION).then_some(Kind::Rsa)
        };
        let kind = kind.ok_or("is of a kind that is not known: ECDSA P-256 and P-384, Ed25519 and RSA are")?;
        Ok(Self { kind, bits: info.subject_public_key.data.to_vec() })
    }

    /// True if `signature` was made of `message` with the private key. cosign hashes with SHA-256 whatever the curve,
    /// other tools with what fits it.
    pub(crate) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let with = |algorithm: &'static dyn VerificationAlgorithm| {
            UnparsedPublicKey::new(algorithm, &self.bits).verify(message, signature).is_ok()
        };
        match self.kind {
            Kind::P256 => with(&ECDSA_P256_SHA256_ASN1),
            Kind::P384 => with(&ECDSA_P384_SHA256_ASN1) || with(&ECDSA_P384_SHA384_ASN1),
            Kind::Ed25519 => with(&ED25519),
            Kind::Rsa => with(&RSA_PKCS1_2048_8192_SHA256),
        }
    }
}
