//! Signatures beside an image of a real registry, as cosign 2 and cosign 3 push them.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{KeyPair, SigningKey as _};
use serde_json::json;
use sluice::{
    api::gateplugin::{Require, Trust, Verify},
    gateplugin::Fetcher,
    model::trial::Digest,
};
use sluice_harness::registry::Registry;

use super::{INDEX, MANIFEST, admit, assert_refused, descriptor, fetcher, image, push};

const REPOSITORY: &str = "gates/smoke";

struct Signer(KeyPair);

impl Signer {
    fn new() -> Self {
        Self(KeyPair::generate().unwrap())
    }

    fn sign(&self, bytes: &[u8]) -> String {
        BASE64_STANDARD.encode(self.0.sign(bytes).unwrap())
    }

    /// As cosign 2: an image under a tag, a layer for each signature.
    async fn sign_simply(&self, registry: &Registry, signed: &Digest) {
        let payload = json!({
            "critical": {
                "identity": {"docker-reference": REPOSITORY},
                "image": {"docker-manifest-digest": signed.as_str()},
                "type": "cosign container image signature",
            },
            "optional": {},
        })
        .to_string();
        registry.push_blob(REPOSITORY, &b"{}"[..]).await.unwrap();
        registry.push_blob(REPOSITORY, payload.clone()).await.unwrap();
        let mut layer = descriptor("application/vnd.dev.cosign.simplesigning.v1+json", payload.as_bytes());
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": self.sign(payload.as_bytes())});
        let config = descriptor("application/vnd.oci.image.config.v1+json", b"{}");
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        let tag = format!("{}.sig", signed.as_str().replace(':', "-"));
        registry.push_manifest(REPOSITORY, &tag, &manifest).await.unwrap();
    }

    /// As cosign 3: a bundle in an image that refers to the signed one, listed under the tag that stands for the list
    /// where the registry has none.
    async fn sign_with_bundle(&self, registry: &Registry, signed: &Digest) {
        let kind = "application/vnd.in-toto+json";
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": signed.as_str().trim_start_matches("sha256:")}}],
            "predicateType": "https://sigstore.dev/cosign/sign/v1",
        })
        .to_string();
        let encoded = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
        let bundle_type = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let bundle = json!({
            "mediaType": bundle_type,
            "verificationMaterial": {"publicKey": {"hint": "test"}},
            "dsseEnvelope": {
                "payload": BASE64_STANDARD.encode(&statement), "payloadType": kind,
                "signatures": [{"sig": self.sign(encoded.as_bytes())}],
            },
        })
        .to_string();
        registry.push_blob(REPOSITORY, &b"{}"[..]).await.unwrap();
        registry.push_blob(REPOSITORY, bundle.clone()).await.unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": bundle_type,
            "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"),
            "layers": [descriptor(bundle_type, bundle.as_bytes())],
        });
        let digest = registry.push_manifest(REPOSITORY, "bundle", &manifest).await.unwrap();
        let size = manifest.to_string().len();
        let entry = json!({"mediaType": MANIFEST, "digest": digest, "size": size, "artifactType": bundle_type});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        registry.push_manifest(REPOSITORY, &signed.as_str().replace(':', "-"), &index).await.unwrap();
    }
}

fn trust(signers: &[&Signer], require: Require) -> Trust {
    let keys = signers.iter().map(|signer| signer.0.public_key_pem()).collect();
    Trust { verify: Some(Verify { keys, require, ..Verify::default() }), ..Trust::default() }
}

async fn ask(registry: &Registry, fetcher: &Fetcher, trust: &Trust) -> Result<(), String> {
    let source = image(format!("{}/{REPOSITORY}:1.0", registry.host()));
    admit(fetcher, &source, trust).await.map(drop).map_err(|refusal| refusal.code().to_owned())
}

#[tokio::test]
async fn what_cosign_2_and_cosign_3_sign_is_accepted_and_nothing_else() {
    let registry = Registry::start().await.unwrap();
    let signed = push(&registry, "1.0", b"component", |_| {}).await;
    let (fetcher, a, b) = (fetcher(&registry, None), Signer::new(), Signer::new());
    let (of_a, of_both) = (trust(&[&a], Require::Any), trust(&[&a, &b], Require::All));

    let source = image(format!("{}/{REPOSITORY}:1.0", registry.host()));
    assert_refused(admit(&fetcher, &source, &of_a).await, "NotSigned", &["cosign sign"]);
    a.sign_simply(&registry, &Digest::of(b"other")).await;
    assert_eq!(ask(&registry, &fetcher, &of_a).await, Err("NotSigned".to_owned()), "signed is another image");
    b.sign_simply(&registry, &signed).await;
    assert_eq!(ask(&registry, &fetcher, &of_a).await, Err("WrongSignature".to_owned()));
    a.sign_with_bundle(&registry, &signed).await;
    assert_eq!(ask(&registry, &fetcher, &of_a).await, Ok(()));
    assert_eq!(ask(&registry, &fetcher, &of_both).await, Ok(()), "one each way");
    assert_eq!(ask(&registry, &fetcher, &trust(&[&b], Require::Any)).await, Ok(()));
    assert_eq!(
        ask(&registry, &fetcher, &trust(&[&Signer::new()], Require::Any)).await,
        Err("WrongSignature".to_owned())
    );

    // The tag moves to what nobody signed.
    push(&registry, "1.0", b"other component", |_| {}).await;
    assert_eq!(ask(&registry, &fetcher, &of_a).await, Err("NotSigned".to_owned()));
}

#[tokio::test]
async fn what_is_cached_for_one_key_is_not_accepted_for_another() {
    let registry = Registry::start().await.unwrap();
    let signed = push(&registry, "1.0", b"component", |_| {}).await;
    let (folder, a) = (tempfile::tempdir().unwrap(), Signer::new());
    let fetcher = fetcher(&registry, Some(folder.path()));
    a.sign_simply(&registry, &signed).await;
    assert_eq!(ask(&registry, &fetcher, &trust(&[&a], Require::Any)).await, Ok(()));
    let other = trust(&[&Signer::new()], Require::Any);
    assert_eq!(ask(&registry, &fetcher, &other).await, Err("WrongSignature".to_owned()));
}
