//! Keys and identities against signatures in both forms of cosign, good and forged.

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PublicKeyData as _, SanType, SigningKey as _, date_time_ymd,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
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

    fn sign(&self, bytes: &[u8]) -> String {
        BASE64_STANDARD.encode(self.0.sign(bytes).expect("a signature"))
    }

    fn simple(&self, digest: &Digest) -> Signature {
        Signature::Simple(Simple::signed(digest, |payload| self.0.sign(payload).expect("a signature")))
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
    let keys = keys.iter().map(|signer| signer.0.public_key_pem()).collect();
    let wanted = Verify { keys, require, ..Verify::default() };
    let signers = signers(&wanted, None).expect("keys");
    check(&signers, require, MANIFEST, &Digest::of(MANIFEST), found).map_err(|error| error.code())
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

/// `openssl genrsa 2048`, and what `openssl dgst -sha256 -sign` made of [`MANIFEST`] with it.
const RSA: (&str, &str) = (
    "-----BEGIN PUBLIC KEY-----\n\
     MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAo9aLUQ/eH7ydrLlr2FDC\n\
     wVZSdb2HcAreWKUISjuwBxAaEbcRJJy40cOGkaZk2XWCCuyZtXTxlIXWqxJhULs6\n\
     rLLkvQLgh//E56xy4uIIBA0HbgnmZ2YmkhvWwxbVNYl43g3hU41+Y3zL/pgWDWT4\n\
     tVYDiuqFn2h7+XdzQYSy0QxqS2VMHpzLcOykHslzr2Xf4Q67yPwgYOP9NxfLxI55\n\
     qjgEF7wMeWkXO7XhqUpWA3hb3pw0n5BWADL1I9XqHhf10XfDOOOsxJsK6sJ5w5aq\n\
     HCDMjiwANwC1CH/pg9EgdGGIdxtNhpW34TSRkIzPI2uz/7vdUDWU/N2ScC6FbYVh\n\
     5QIDAQAB\n\
     -----END PUBLIC KEY-----\n",
    "GfUL7QwmWA6bmT8VSa3NSU3ujQbSlCIpAkjmOSWH69oy7gTRKiltROaMX42qO2MXL9i+b8SNb0Ytsq73aqduGNsIF7jfDZsSI/Yw\
     ejbyhUpZzwLWxVdZJjGVrNOsEQTingc/bIogu5VudEQttcN0b2NN6qw1pExcHf0VMy6VGezySmNIi9w314H9wMa/8CZsSvVwDbvp\
     cMF4ecFaL7djGHhhx5tdaHIWbz2mB0yaOpOYoi+7uVJy3kmhEb3hUFxyqOvPKb5zGRZfinX7qvbkV9lclpQo7DpemymjlhcTckJZ\
     +ZGHTX99igvzzs0VHVkBbKaUdneMq7pKsfCYaSR+fw==",
);

#[test]
fn a_key_of_rsa_counts() {
    let (key, signature) = RSA;
    let judge = |message: &[u8]| {
        let wanted = Verify { keys: vec![key.to_owned()], ..Verify::default() };
        let found = bundle(json!({"messageSignature": {"signature": signature}}));
        check(&signers(&wanted, None).expect("a key"), Require::Any, message, &Digest::of(message), from_ref(&found))
    };
    assert_eq!(judge(MANIFEST), Ok(()));
    assert!(judge(b"{ }").is_err());
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
    for signature in ["", "AAAA", "no base64!"] {
        let Signature::Simple(simple) = signer.simple(&this) else { panic!("simple") };
        let forged = Signature::Simple(simple.forged(signature));
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
        let wanted = Verify { keys: vec![pem.clone(), bad.to_owned()], ..Verify::default() };
        match signers(&wanted, None) {
            Err(SignatureError::InvalidKey { index: 1, .. }) => {}
            other => panic!("{bad}: {other:?}"),
        }
    }
    assert!(matches!(signers(&Verify::default(), None), Err(SignatureError::NobodyTrusted)));
}

/// An authority, a log, and what is signed with a certificate of the one and a promise of the other.
struct Sigstore {
    authority: CertifiedIssuer<'static, KeyPair>,
    log: KeyPair,
    log_id: Vec<u8>,
}

const ISSUER: &str = "https://issuer.example";
const SUBJECT: &str = "https://git.example/team/gate/release.yml@refs/tags/v1";
/// When everything happens: on 2027-01-15.
const NOW: i64 = 1_800_000_000;

impl Sigstore {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2036, 1, 1));
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let log = KeyPair::generate().expect("a key");
        let log_id = Sha256::digest(log.subject_public_key_info()).to_vec();
        Self { authority, log, log_id }
    }

    fn root(&self) -> TrustRoot {
        let valid = json!({"start": "2026-01-01T00:00:00Z"});
        let text = json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "certificateAuthorities": [{
                "uri": "https://fulcio.example",
                "certChain": {"certificates": [{"rawBytes": BASE64_STANDARD.encode(self.authority.der())}]},
                "validFor": valid,
            }],
            "tlogs": [{
                "baseUrl": "https://rekor.example", "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": BASE64_STANDARD.encode(self.log.subject_public_key_info()),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": valid,
                },
                "logId": {"keyId": BASE64_STANDARD.encode(&self.log_id)},
            }],
        });
        TrustRoot::parse(&text.to_string()).expect("a trust root")
    }

    /// A certificate that is valid on the one day that `NOW` is in.
    fn certificate(&self, signer: &Signer, usage: ExtendedKeyUsagePurpose) -> rcgen::Certificate {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(SUBJECT.try_into().expect("ASCII"))];
        params.extended_key_usages = vec![usage];
        (params.not_before, params.not_after) = (date_time_ymd(2027, 1, 15), date_time_ymd(2027, 1, 16));
        let mut issuer = vec![0x0c, u8::try_from(ISSUER.len()).expect("short")];
        issuer.extend_from_slice(ISSUER.as_bytes());
        let issuer = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57264, 1, 8], issuer);
        params.custom_extensions = vec![issuer];
        params.signed_by(&signer.0, &self.authority).expect("a certificate")
    }

    fn id(&self) -> String {
        self.log_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The body of a log entry, and the log's promise.
    fn entry(&self, body: &Value, time: i64) -> (String, String) {
        let (body, id) = (BASE64_STANDARD.encode(body.to_string()), self.id());
        let promised = format!(r#"{{"body":"{body}","integratedTime":{time},"logID":"{id}","logIndex":7}}"#);
        (body, BASE64_STANDARD.encode(self.log.sign(promised.as_bytes()).expect("a signature")))
    }

    /// As cosign 3 without a key.
    fn bundle(
        &self,
        certificate: &rcgen::Certificate,
        signer: &Signer,
        time: i64,
        change: impl FnOnce(&mut Value),
    ) -> Signature {
        let Signature::Bundle(json) = signer.statement(&Digest::of(MANIFEST), |_| {}) else { panic!("a bundle") };
        let mut bundle: Value = serde_json::from_slice(&json).expect("JSON");
        let envelope = &bundle["dsseEnvelope"];
        let payload = decoded(envelope["payload"].as_str().expect("text")).expect("base64");
        let verifier = BASE64_STANDARD.encode(certificate.pem());
        let body = json!({"apiVersion": "0.0.1", "kind": "dsse", "spec": {
            "payloadHash": {"algorithm": "sha256", "value": &Digest::of(&payload).as_str()["sha256:".len()..]},
            "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": verifier}],
        }});
        let (body, promise) = self.entry(&body, time);
        bundle["verificationMaterial"] = json!({
            "certificate": {"rawBytes": BASE64_STANDARD.encode(certificate.der())},
            "tlogEntries": [{
                "logIndex": "7", "logId": {"keyId": BASE64_STANDARD.encode(&self.log_id)},
                "integratedTime": time.to_string(), "canonicalizedBody": body,
                "inclusionPromise": {"signedEntryTimestamp": promise},
            }],
        });
        change(&mut bundle);
        Signature::Bundle(bundle.to_string().into())
    }

    /// As cosign 2 without a key.
    fn simple(&self, certificate: &rcgen::Certificate, signer: &Signer) -> Signature {
        let Signature::Simple(simple) = signer.simple(&Digest::of(MANIFEST)) else { panic!("simple") };
        let claim = simple.claim().expect("a claim");
        let hash = Digest::of(&claim.logged);
        let body = json!({"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": &hash.as_str()["sha256:".len()..]}},
            "signature": {
                "content": BASE64_STANDARD.encode(&claim.signatures[0]),
                "publicKey": {"content": BASE64_STANDARD.encode(certificate.pem())},
            },
        }});
        let (body, promise) = self.entry(&body, NOW);
        let log = json!({"SignedEntryTimestamp": promise, "Payload": {
            "body": body, "integratedTime": NOW, "logIndex": 7, "logID": self.id(),
        }});
        Signature::Simple(simple.logged(certificate.pem(), log.to_string()))
    }
}

fn identity(issuer: &str, subject: &str) -> Verify {
    let identity = Identity { issuer: issuer.into(), subject: subject.into() };
    Verify { identities: vec![identity], ..Verify::default() }
}

fn recognise(wanted: &Verify, root: &TrustRoot, signature: &Signature) -> Result<(), String> {
    let signers = signers(wanted, Some(root)).expect("identities");
    let found = from_ref(signature);
    check(&signers, Require::Any, MANIFEST, &Digest::of(MANIFEST), found).map_err(|error| error.to_string())
}

#[test]
fn an_identity_counts_in_either_form() {
    let (sigstore, signer) = (Sigstore::new(), Signer::new());
    let certificate = sigstore.certificate(&signer, ExtendedKeyUsagePurpose::CodeSigning);
    let (wanted, root) = (identity(ISSUER, SUBJECT), sigstore.root());
    assert_eq!(recognise(&wanted, &root, &sigstore.simple(&certificate, &signer)), Ok(()));
    assert_eq!(recognise(&wanted, &root, &sigstore.bundle(&certificate, &signer, NOW, |_| {})), Ok(()));
    assert!(matches!(signers(&wanted, None), Err(SignatureError::NoTrustRoot)));
}

#[test]
fn an_identity_that_is_not_proven_does_not_count() {
    let (sigstore, other, signer) = (Sigstore::new(), Sigstore::new(), Signer::new());
    let certificate = sigstore.certificate(&signer, ExtendedKeyUsagePurpose::CodeSigning);
    let (wanted, root) = (identity(ISSUER, SUBJECT), sigstore.root());
    let good = sigstore.bundle(&certificate, &signer, NOW, |_| {});
    let says = |wanted: &Verify, root: &TrustRoot, signature: &Signature, why: &str| {
        let problem = recognise(wanted, root, signature).expect_err(why);
        assert!(problem.contains(why), "{problem}");
    };
    says(&identity("https://other.example", SUBJECT), &root, &good, "an identity of \"https://issuer.example\"");
    says(&identity(ISSUER, "https://git.example/team/gate"), &root, &good, SUBJECT);
    says(&wanted, &other.root(), &good, "not in --sigstore-trust-root");
    says(&wanted, &root, &signer.message(MANIFEST), "with a key");

    let forged = other.certificate(&signer, ExtendedKeyUsagePurpose::CodeSigning);
    says(&wanted, &root, &sigstore.bundle(&forged, &signer, NOW, |_| {}), "not valid");
    let server = sigstore.certificate(&signer, ExtendedKeyUsagePurpose::ServerAuth);
    says(&wanted, &root, &sigstore.bundle(&server, &signer, NOW, |_| {}), "not valid");
    // The key was lost after its certificate had ended.
    says(&wanted, &root, &sigstore.bundle(&certificate, &signer, NOW + 2 * 86_400, |_| {}), "not valid");
    says(&wanted, &root, &sigstore.bundle(&certificate, &Signer::new(), NOW, |_| {}), "key of its certificate");

    let changed = |change: &dyn Fn(&mut Value)| {
        sigstore.bundle(&certificate, &signer, NOW, |bundle| {
            change(&mut bundle["verificationMaterial"]["tlogEntries"][0]);
        })
    };
    says(&wanted, &root, &changed(&|entry| entry["integratedTime"] = json!((NOW + 1).to_string())), "did not sign");
    says(&wanted, &root, &changed(&|entry| entry["logIndex"] = json!("8")), "did not sign");
    says(&wanted, &root, &changed(&|entry| entry["inclusionPromise"] = Value::Null), "Rekor 2");
    // The log saw another signature of the same.
    let Signature::Bundle(elsewhere) = sigstore.bundle(&certificate, &signer, NOW, |_| {}) else { panic!("a bundle") };
    let elsewhere: Value = serde_json::from_slice(&elsewhere).expect("JSON");
    let seen = &elsewhere["verificationMaterial"]["tlogEntries"][0];
    says(&wanted, &root, &changed(&|entry| *entry = seen.clone()), "another signature");
    let none = sigstore.bundle(&certificate, &signer, NOW, |bundle| {
        bundle["verificationMaterial"]["tlogEntries"] = json!([]);
    });
    says(&wanted, &root, &none, "no entry");
}

#[test]
fn a_trust_root_that_cannot_be_read_is_named_by_its_field() {
    let says = |text: &Value| TrustRoot::parse(&text.to_string()).expect_err("refused");
    assert!(says(&json!({"tlogs": []})).contains("certificateAuthorities"));
    let valid = json!({"start": "2026-01-01T00:00:00Z"});
    let authority = json!({"certChain": {"certificates": []}, "validFor": valid});
    let said = says(&json!({"tlogs": [], "certificateAuthorities": [authority]}));
    assert!(said.contains("certificateAuthorities[0].certChain is empty"), "{said}");
    let log = json!({"publicKey": {"rawBytes": "AAAA", "validFor": valid}, "logId": {"keyId": ""}});
    let said = says(&json!({"tlogs": [log], "certificateAuthorities": []}));
    assert!(said.contains("tlogs[0]"), "{said}");
}
