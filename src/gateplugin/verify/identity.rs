//! Signatures of an identity instead of a key: a certificate of some minutes that says who asked for it, and a log that
//! promised to have seen the signature while it was valid. Verified offline, against a `trusted_root.json`.
//!
//! The promise of the log (Rekor 1) is what dates a signature. Timestamp authorities (Rekor 2), proofs of inclusion and the
//! log of certificates are not asked.

use jiff::Timestamp;
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, UnixTime, pem::PemObject as _},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::{
    certificate::X509Certificate,
    der_parser::asn1_rs::{FromDer as _, Utf8String},
    extensions::GeneralName,
    oid_registry::{Oid, asn1_rs::oid},
};

use super::{
    Key,
    claim::{Claim, Entry},
    decoded,
};
use crate::{api::gateplugin::Identity, model::trial::Digest};

/// 1.3.6.1.5.5.7.3.3, code signing.
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];
/// The issuer of the token that proved the identity, as text and, before 2022, as bare bytes.
const ISSUER: Oid<'static> = oid!(1.3.6.1.4.1.57264.1.8);
const ISSUER_BYTES: Oid<'static> = oid!(1.3.6.1.4.1.57264.1.1);

/// Who is believed about identities and about time.
#[derive(Clone, Debug)]
pub struct TrustRoot {
    authorities: Vec<Authority>,
    logs: Vec<Log>,
    /// Of the file: another one is another question.
    pub(crate) digest: Digest,
}

#[derive(Clone, Debug)]
struct Authority {
    root: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    valid: Validity,
}

#[derive(Clone, Debug)]
struct Log {
    id: Vec<u8>,
    key: Key,
    valid: Validity,
}

/// From and to, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Validity(i64, i64);

impl Validity {
    fn holds(self, time: i64) -> bool {
        (self.0..=self.1).contains(&time)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Root {
    certificate_authorities: Vec<RootAuthority>,
    tlogs: Vec<RootLog>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RootAuthority {
    cert_chain: RootChain,
    valid_for: RootValidity,
}

#[derive(Deserialize)]
struct RootChain {
    certificates: Vec<RootRaw>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RootRaw {
    raw_bytes: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RootLog {
    public_key: RootKey,
    log_id: RootLogId,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RootKey {
    raw_bytes: String,
    valid_for: RootValidity,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RootLogId {
    key_id: String,
}

#[derive(Deserialize)]
struct RootValidity {
    start: Timestamp,
    end: Option<Timestamp>,
}

impl From<RootValidity> for Validity {
    fn from(RootValidity { start, end }: RootValidity) -> Self {
        Self(start.as_second(), end.map_or(i64::MAX, Timestamp::as_second))
    }
}

impl TrustRoot {
    /// Reads a `trusted_root.json` of Sigstore.
    ///
    /// # Errors
    /// The field that cannot be used.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Root { certificate_authorities, tlogs } = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let authorities = certificate_authorities.into_iter().enumerate().map(|(index, authority)| {
            let RootAuthority { cert_chain, valid_for } = authority;
            let wrong = |problem: &str| format!("certificateAuthorities[{index}].certChain {problem}");
            let certificates = cert_chain.certificates.iter().map(|raw| {
                let der = CertificateDer::from(decoded(&raw.raw_bytes).map_err(|problem| wrong(&problem))?);
                anchor_from_trusted_cert(&der).map_err(|error| wrong(&format!("has no certificate: {error}")))?;
                Ok::<_, String>(der)
            });
            let mut intermediates = certificates.collect::<Result<Vec<_>, _>>()?;
            // Leaf first, root last.
            let root = intermediates.pop().ok_or_else(|| wrong("is empty"))?;
            Ok::<_, String>(Authority { root, intermediates, valid: valid_for.into() })
        });
        let logs = tlogs.into_iter().enumerate().map(|(index, log)| {
            let RootLog { public_key, log_id } = log;
            let wrong = |problem: String| format!("tlogs[{index}] {problem}");
            let key = decoded(&public_key.raw_bytes).and_then(|der| Key::of_der(&der)).map_err(wrong)?;
            let id = decoded(&log_id.key_id).map_err(wrong)?;
            Ok::<_, String>(Log { id, key, valid: public_key.valid_for.into() })
        });
        let (authorities, logs) = (authorities.collect::<Result<_, _>>()?, logs.collect::<Result<_, _>>()?);
        Ok(Self { authorities, logs, digest: Digest::of(text.as_bytes()) })
    }

    /// Whether `identity` made `claim`.
    pub(super) fn made_by(&self, identity: &Identity, claim: &Claim) -> Result<(), String> {
        let der = claim.certificate.as_deref().ok_or("was made with a key, not by an identity")?;
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| format!("has no certificate: {error}"))?;
        let key = Key::of_der(certificate.public_key().raw)?;
        let signature = claim.signatures.iter().find(|signature| key.signed(&claim.signed, signature));
        let signature = signature.ok_or("was not made with the key of its certificate")?;
        let seen = claim.entries.iter().map(|entry| {
            self.promised(entry)?;
            tells_of(entry, der, signature, &claim.logged)?;
            Ok::<_, String>(entry.time)
        });
        // Which of several promises counts is open; one is enough.
        let mut problem = "has no entry of a transparency log".to_owned();
        for time in seen {
            match time.and_then(|time| self.certified(der, time)) {
                Ok(()) => return is(&certificate, identity),
                Err(other) => problem = other,
            }
        }
        Err(problem)
    }

    /// Whether a log that is trusted promised this entry.
    fn promised(&self, entry: &Entry) -> Result<(), String> {
        // In the order of the names, without blanks: this is what was signed.
        #[derive(Serialize)]
        struct Promised<'entry> {
            body: &'entry str,
            #[serde(rename = "integratedTime")]
            time: i64,
            #[serde(rename = "logID")]
            log: String,
            #[serde(rename = "logIndex")]
            index: i64,
        }
        let Entry { log, index, time, body, promise } = entry;
        if promise.is_empty() {
            return Err("has a log entry without a signed time; those of Rekor 2 are not supported".into());
        }
        let id: String = log.iter().map(|byte| format!("{byte:02x}")).collect();
        let promised = serde_json::to_vec(&Promised { body, time: *time, log: id.clone(), index: *index })
            .map_err(|error| error.to_string())?;
        let known = self.logs.iter().filter(|known| known.id == *log && known.valid.holds(*time));
        let mut known = known.peekable();
        if known.peek().is_none() {
            return Err(format!("is in the log {id}, which is not in --sigstore-trust-root for its time"));
        }
        if known.any(|known| known.key.signed(&promised, promise)) {
            Ok(())
        } else {
            Err("has a log entry that the log did not sign".into())
        }
    }

    /// Whether a certificate was given out by an authority that is trusted, and was valid at a time.
    fn certified(&self, der: &[u8], time: i64) -> Result<(), String> {
        let at = Duration::from_secs(u64::try_from(time).map_err(|_| "was logged before 1970")?);
        let leaf = CertificateDer::from(der);
        let leaf = EndEntityCert::try_from(&leaf).map_err(|error| format!("has no certificate: {error}"))?;
        let algorithms = ring::default_provider().signature_verification_algorithms;
        let mut problem = "was certified by nobody in --sigstore-trust-root for its time".to_owned();
        for authority in self.authorities.iter().filter(|authority| authority.valid.holds(time)) {
            let Ok(root) = anchor_from_trusted_cert(&authority.root) else { continue };
            let roots = [root];
            let chained = leaf.verify_for_usage(
                algorithms.all,
                &roots,
                &authority.intermediates,
                UnixTime::since_unix_epoch(at),
                KeyUsage::required(CODE_SIGNING),
                None,
                None,
            );
            match chained {
                Ok(_) => return Ok(()),
                Err(error) => problem = format!("has a certificate that is not valid: {error}"),
            }
        }
        Err(problem)
    }
}

/// Whether an entry is about this signature by this certificate of these bytes, and no other.
fn tells_of(entry: &Entry, certificate: &[u8], signature: &[u8], logged: &[u8]) -> Result<(), String> {
    let body: Value = serde_json::from_slice(&decoded(&entry.body)?)
        .map_err(|error| format!("has a log entry that cannot be read: {error}"))?;
    let spec = &body["spec"];
    let (hash, signed) = match body["kind"].as_str() {
        Some("hashedrekord") => {
            (&spec["data"]["hash"], (&spec["signature"]["content"], &spec["signature"]["publicKey"]["content"]))
        }
        Some("dsse") => {
            let first = &spec["signatures"][0];
            (&spec["payloadHash"], (&first["signature"], &first["verifier"]))
        }
        other => return Err(format!("has a log entry of kind {other:?}, expected hashedrekord or dsse")),
    };
    let decoded = |value: &Value| value.as_str().and_then(|text| decoded(text).ok());
    let by = decoded(signed.1).and_then(|pem| CertificateDer::from_pem_slice(&pem).ok());
    let digest = Digest::of(logged);
    let same = hash["algorithm"] == "sha256"
        && hash["value"].as_str() == digest.as_str().strip_prefix("sha256:")
        && decoded(signed.0).as_deref() == Some(signature)
        && by.as_deref() == Some(certificate);
    if same { Ok(()) } else { Err("has a log entry of another signature".into()) }
}

/// Whether a certificate was given to `identity`.
fn is(certificate: &X509Certificate<'_>, identity: &Identity) -> Result<(), String> {
    let Identity { issuer, subject } = identity;
    let extension = |oid: &Oid<'_>| certificate.extensions().iter().find(|extension| extension.oid == *oid);
    let by_text = extension(&ISSUER).and_then(|extension| {
        let (_, text) = Utf8String::from_der(extension.value).ok()?;
        Some(text.string())
    });
    let by_bytes = || extension(&ISSUER_BYTES).and_then(|extension| String::from_utf8(extension.value.to_vec()).ok());
    let found = by_text.or_else(by_bytes).unwrap_or_default();
    if found != *issuer {
        return Err(format!("was made by an identity of {found:?}"));
    }
    let names = certificate.subject_alternative_name().ok().flatten().map(|names| &names.value.general_names);
    let names: Vec<&str> = names
        .into_iter()
        .flatten()
        .filter_map(|name| match name {
            GeneralName::URI(name) | GeneralName::RFC822Name(name) => Some(*name),
            _ => None,
        })
        .collect();
    if names.contains(&subject.as_str()) { Ok(()) } else { Err(format!("was made by {}", names.join(", "))) }
}
