//! When certificates end, and when that is soon.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use super::names;

/// When the certificate in a Secret ends: by its annotation, and where somebody else issued it, by itself.
#[must_use]
pub fn ends(secret: &Secret) -> Option<Timestamp> {
    if let Some(said) = secret.annotations().get(names::EXPIRES) {
        return said.parse().ok();
    }
    of_pem(&secret.data.as_ref()?.get("tls.crt")?.0)
}

/// When a certificate ends.
#[must_use]
pub fn of_pem(pem: &[u8]) -> Option<Timestamp> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let certificate = pem.parse_x509().ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

/// Within the last month of a certificate people are told, and an upgrade renews it.
#[must_use]
pub fn ends_soon(ends: Timestamp, now: Timestamp) -> bool {
    const MONTH: SignedDuration = SignedDuration::from_hours(24 * 30);
    ends.duration_since(now) <= MONTH
}
