//! The cluster CA and the certificates it signs: mutual TLS of the admin API.

use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt, api::PostParams};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;

use crate::{
    dataplane::build::{CertificateOrder, Demand, Object},
    model::{
        certificate,
        names::{EXPIRES, HOSTS},
        trial::Identity,
    },
};

/// Ten years, as Kong's, unless the CA ends before.
const LIFE: SignedDuration = SignedDuration::from_hours(24 * 3_650);

/// Longer than a trial may take, for clocks that differ.
const TRIAL: SignedDuration = SignedDuration::from_hours(2);

/// Signs certificates with the cluster CA.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    expires: Timestamp,
}

/// Why there is no cluster CA.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused or could not be reached.
    #[error("could not read or create Secret {0}, which holds the cluster CA")]
    Secret(String, #[source] kube::Error),
    /// The Secret is not a CA.
    #[error("Secret {0} holds no usable CA: {1}. Delete it to have a new one made, or put tls.crt and tls.key there")]
    Unusable(String, String),
}

impl Authority {
    /// Loads the CA from Secret `name`, and makes it where it is missing.
    ///
    /// # Errors
    /// Where the Secret cannot be read or made, or is no CA.
    pub async fn load(client: Client, namespace: &str, name: &str) -> Result<Self, Error> {
        let api: Api<Secret> = Api::namespaced(client, namespace);
        let path = format!("{namespace}/{name}");
        let refused = |error| Error::Secret(path.clone(), error);
        let secret = match api.get_opt(name).await.map_err(refused)? {
            Some(secret) => secret,
            None => {
                let unusable = |error: rcgen::Error| Error::Unusable(path.clone(), error.to_string());
                let made = make(name).map_err(unusable)?;
                match api.create(&PostParams::default(), &made).await {
                    // Another replica was faster: its CA is the one.
                    Err(kube::Error::Api(status)) if status.code == 409 => api.get(name).await.map_err(refused)?,
                    created => created.map_err(refused)?,
                }
            }
        };
        Self::from_secret(&secret).map_err(|why| Error::Unusable(path.clone(), why))
    }

    fn from_secret(secret: &Secret) -> Result<Self, String> {
        let field = |key: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key)).ok_or(format!("it has no {key}"))?;
            String::from_utf8(bytes.0.clone()).map_err(|_| format!("{key} is not PEM"))
        };
        let (certificate, key) = (field("tls.crt")?, field("tls.key")?);
        let key = KeyPair::from_pem(&key).map_err(|error| format!("tls.key: {error}"))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(|error| format!("tls.crt: {error}"))?;
        let expires = certificate::of_pem(certificate.as_bytes()).ok_or("tls.crt: it is no certificate")?;
        Ok(Self { certificate, issuer, expires })
    }

    /// When the CA ends, and with it all it signed.
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    /// Issues a certificate for the gate host to show to admin APIs: for one trial, so it ends within hours.
    ///
    /// # Errors
    /// Where the CA cannot sign.
    pub fn identify(&self) -> Result<Identity, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "sluice gate host");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        valid_from_now(&mut params, self.expires.min(Timestamp::now().saturating_add(TRIAL).unwrap_or(self.expires)));
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem().into_bytes().into() })
    }

    /// Issues a certificate and renders its Secret.
    ///
    /// # Errors
    /// Where the names are no DNS names or the CA cannot sign.
    pub fn issue(&self, order: &CertificateOrder) -> Result<Object, rcgen::Error> {
        let mut params = CertificateParams::new(order.hosts.clone())?;
        params.distinguished_name.push(DnType::CommonName, order.hosts.first().map_or("", String::as_str));
        params.distinguished_name.push(DnType::OrganizationName, "Kong, Inc.");
        params.distinguished_name.push(DnType::CountryName, "US");
        params.key_usages = vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DigitalSignature];
        // Kong serves the admin API and is a client of its control plane with the same certificate.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let expires = valid_from_now(&mut params, self.expires);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let mut metadata = order.metadata.clone();
        metadata["annotations"] = json!({ HOSTS: hosts(order), EXPIRES: expires });
        let body = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": metadata,
            // `stringData` would be write-only: what is applied has to be what is stored.
            "data": {
                "ca.crt": k8s_openapi::ByteString(self.certificate.clone().into_bytes()),
                "tls.crt": k8s_openapi::ByteString(certificate.pem().into_bytes()),
                "tls.key": k8s_openapi::ByteString(key.serialize_pem().into_bytes()),
            },
        });
        Ok(Object::new(order.name.clone(), body))
    }
}

/// Whether a Secret has all its parts and is what an order demands.
#[must_use]
pub fn covers(secret: &Secret, order: &CertificateOrder) -> bool {
    let parts = |data: &std::collections::BTreeMap<_, _>| {
        ["ca.crt", "tls.crt", "tls.key"].iter().all(|key| data.contains_key(*key))
    };
    let whole = secret.data.as_ref().is_some_and(parts);
    match order.demand {
        Demand::Whole => whole,
        Demand::Exact => whole && secret.annotations().get(HOSTS) == Some(&hosts(order)),
        Demand::Fresh => false,
    }
}

fn hosts(order: &CertificateOrder) -> String {
    order.hosts.join(",")
}

fn make(name: &str) -> Result<Secret, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Kong Operator CA");
    params.distinguished_name.push(DnType::OrganizationName, "Kong, Inc.");
    params.distinguished_name.push(DnType::CountryName, "US");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    valid_from_now(&mut params, Timestamp::MAX);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let bytes = |text: String| k8s_openapi::ByteString(text.into_bytes());
    Ok(Secret {
        metadata: kube::api::ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
        type_: Some("kubernetes.io/tls".into()),
        data: Some(
            [("tls.crt".into(), bytes(certificate.pem())), ("tls.key".into(), bytes(key.serialize_pem()))].into(),
        ),
        ..Default::default()
    })
}

/// Makes a certificate valid from now on for its whole life, but not beyond `limit`; returns when it ends.
fn valid_from_now(params: &mut CertificateParams, limit: Timestamp) -> Timestamp {
    let now = Timestamp::now();
    let expires = now.saturating_add(LIFE).unwrap_or(limit).min(limit);
    // A minute back, for clocks of Pods that are behind.
    params.not_before = SystemTime::from(now - SignedDuration::from_mins(1)).into();
    params.not_after = SystemTime::from(expires).into();
    expires
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issued_certificate_covers_its_order_and_no_other() {
        let authority = Authority::from_secret(&make("ca").expect("a CA")).expect("a usable CA");
        let order = |demand, hosts: &[&str]| CertificateOrder {
            name: "secret".into(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            metadata: json!({ "name": "secret" }),
            demand,
        };
        let issued = authority.issue(&order(Demand::Exact, &["a.ns.svc", "b.ns.svc"])).expect("a certificate");
        let mut secret: Secret = serde_json::from_value(issued.body).expect("a Secret");
        assert!(covers(&secret, &order(Demand::Exact, &["a.ns.svc", "b.ns.svc"])));
        assert!(!covers(&secret, &order(Demand::Exact, &["a.ns.svc"])));
        assert!(covers(&secret, &order(Demand::Whole, &["a.ns.svc"])));
        assert!(!covers(&secret, &order(Demand::Fresh, &["a.ns.svc", "b.ns.svc"])), "it ends soon");
        secret.data.as_mut().expect("data").remove("tls.key");
        assert!(!covers(&secret, &order(Demand::Whole, &["a.ns.svc"])), "a part is missing");
    }

    #[test]
    fn a_certificate_does_not_outlive_its_authority() {
        let authority = Authority::from_secret(&make("ca").expect("a CA")).expect("a usable CA");
        let order = CertificateOrder {
            name: "secret".into(),
            hosts: vec!["a.ns.svc".into()],
            metadata: json!({ "name": "secret" }),
            demand: Demand::Exact,
        };
        let secret: Secret =
            serde_json::from_value(authority.issue(&order).expect("a certificate").body).expect("a Secret");
        let pem = String::from_utf8(secret.data.as_ref().expect("data")["tls.crt"].0.clone()).expect("PEM");
        assert!(certificate::of_pem(pem.as_bytes()).expect("an end") <= authority.expires());
        let said: Timestamp = secret.annotations()[EXPIRES].parse().expect("a time");
        assert_eq!(said.as_second(), certificate::of_pem(pem.as_bytes()).expect("an end").as_second());
    }

    #[test]
    fn a_secret_that_is_no_ca_says_what_is_missing() {
        let Err(why) = Authority::from_secret(&Secret::default()) else { panic!("an empty Secret is no CA") };
        assert_eq!(why, "it has no tls.crt");
    }
}
