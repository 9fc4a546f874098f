//! PURE. Who signed a manifest.
//!
//! Keys, without a transparency log: what `cosign sign --key` makes. Identities, by a certificate and the promise of a
//! log: what `cosign sign` makes without a key. Both in the form of cosign 2 (a payload with its signature) and of cosign 3
//! (a Sigstore bundle). A signature counts only if it is of this very manifest.
//!
//! The `sigstore` crate is not used: as of 0.15 it brings another provider of cryptography for TLS, and of a bundle it does
//! not verify the promise of the log, without which nobody knows when something was signed.
//!
//! ```text
//! claim      what somebody says to have signed, before any of it is believed
//! simple     cosign 2: the payload names the manifest
//! bundle     cosign 3: a statement that names the manifest, or a signature of the manifest itself
//! key        a public key, and whether a signature was made with it
//! identity   the authorities and logs that are trusted, and whether a signature was made by an identity
//! ```

mod bundle;
mod claim;
mod identity;
mod key;
mod simple;
#[cfg(test)]
mod tests;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;

use bundle::Bundle;
use claim::Claim;
use key::Key;

pub(super) use bundle::MEDIA_TYPE as BUNDLE;
pub use identity::TrustRoot;
pub(super) use simple::Simple;

use crate::{
    api::gateplugin::{Identity, Require, Verify},
    gate::text,
    model::trial::Digest,
};

/// Bytes of what is wrong with a signature, which may quote it.
const PROBLEM: usize = 512;

/// A signature as it was found beside an image.
#[derive(Clone, Debug)]
pub(super) enum Signature {
    /// Of cosign 2.
    Simple(Simple),
    /// Of cosign 3: the JSON of a bundle.
    Bundle(Bytes),
}

/// Somebody who is trusted.
#[derive(Debug)]
pub(super) enum Signer<'root> {
    Key(Key),
    Identity(Identity, &'root TrustRoot),
}

impl Signer<'_> {
    fn made(&self, claim: &Claim) -> Result<(), String> {
        match self {
            Self::Key(key) if claim.signatures.iter().any(|signature| key.signed(&claim.signed, signature)) => Ok(()),
            Self::Key(_) => Err("was not made with this key".into()),
            Self::Identity(identity, root) => root.made_by(identity, claim),
        }
    }
}

/// Why nobody who is trusted has signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Nobody is named.
    #[error("names neither a key nor an identity")]
    NobodyTrusted,
    /// A key that cannot be used.
    #[error("keys[{index}] {problem}")]
    InvalidKey {
        /// Which.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// An identity can only be verified against authorities.
    #[error("identities need authorities; an operator names them with --sigstore-trust-root, a trusted_root.json")]
    NoTrustRoot,
    /// There are none.
    #[error("there is no signature beside the image: cosign sign IMAGE@DIGEST")]
    NotSigned,
    /// There are, and none counts.
    #[error("no signature of {signer} among {found}: it {problem}")]
    WrongSignature {
        /// Who did not sign: `keys[0]`, `identities[0]`.
        signer: String,
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
            Self::NobodyTrusted => "NobodyTrusted",
            Self::InvalidKey { .. } => "InvalidKey",
            Self::NoTrustRoot => "NoTrustRoot",
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
            Self::NobodyTrusted | Self::InvalidKey { .. } | Self::NoTrustRoot => false,
        }
    }
}

/// Those who are trusted, with the fields that name them.
pub(super) fn signers<'root>(
    wanted: &Verify,
    root: Option<&'root TrustRoot>,
) -> Result<Vec<(String, Signer<'root>)>, SignatureError> {
    let Verify { keys, identities, require: _ } = wanted;
    let keys = keys.iter().enumerate().map(|(index, pem)| {
        let key = Key::of_pem(pem).map_err(|problem| SignatureError::InvalidKey { index, problem })?;
        Ok((format!("keys[{index}]"), Signer::Key(key)))
    });
    let identities = identities.iter().enumerate().map(|(index, identity)| {
        let root = root.ok_or(SignatureError::NoTrustRoot)?;
        Ok((format!("identities[{index}]"), Signer::Identity(identity.clone(), root)))
    });
    let signers = keys.chain(identities).collect::<Result<Vec<_>, _>>()?;
    // Nobody is not everybody.
    if signers.is_empty() { Err(SignatureError::NobodyTrusted) } else { Ok(signers) }
}

/// Whether as many `signers` as required have signed `manifest`, whose digest is `digest`.
pub(super) fn check(
    signers: &[(String, Signer<'_>)],
    require: Require,
    manifest: &[u8],
    digest: &Digest,
    found: &[Signature],
) -> Result<(), SignatureError> {
    if found.is_empty() {
        return Err(SignatureError::NotSigned);
    }
    let mut signed = signers.iter().map(|(name, signer)| {
        let mut problems = Vec::new();
        for signature in found {
            match by(signer, signature, manifest, digest) {
                Ok(()) => return Ok(()),
                Err(problem) => problems.push(problem),
            }
        }
        let problem = problems.into_iter().next().unwrap_or_default();
        let problem = text::cut(&problem, PROBLEM);
        Err(SignatureError::WrongSignature { signer: name.clone(), found: found.len(), problem })
    });
    match require {
        Require::All => signed.collect(),
        Require::Any => {
            let first = signed.next().unwrap_or(Err(SignatureError::NobodyTrusted));
            first.or_else(|error| if signed.any(|other| other.is_ok()) { Ok(()) } else { Err(error) })
        }
    }
}

fn by(signer: &Signer<'_>, signature: &Signature, manifest: &[u8], digest: &Digest) -> Result<(), String> {
    // Who signed comes first: nothing of what a stranger wrote is believed.
    match signature {
        Signature::Simple(simple) => {
            signer.made(&simple.claim()?)?;
            simple.names(digest)
        }
        Signature::Bundle(json) => {
            let bundle = Bundle::read(json)?;
            signer.made(&bundle.claim(manifest)?)?;
            bundle.names(digest)
        }
    }
}

fn decoded(base64: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(base64).map_err(|error| format!("is no base64: {error}"))
}
