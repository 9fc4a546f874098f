//! PURE. What a pull Secret says of a registry, and what a registry demands.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::{HeaderMap, Uri, header, header::HeaderValue};
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

/// What a registry answers who did not say who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Name and password with every request.
    Basic,
    /// A token that somebody else gives out.
    Bearer {
        /// Who.
        realm: Uri,
        /// What for.
        service: Option<String>,
    },
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// The `Authorization` that `secret` has for `image`, which is `host/repository`. Like the kubelet, the entry with the
/// longest name that `image` begins with.
///
/// # Errors
/// Why `secret` is no pull secret, or has nothing for it.
pub(super) fn authorization(secret: &Secret, image: &str) -> Result<HeaderValue, String> {
    const TYPE: &str = "kubernetes.io/dockerconfigjson";
    const KEY: &str = ".dockerconfigjson";
    if secret.type_.as_deref() != Some(TYPE) {
        return Err(format!("is not of type {TYPE}; kubectl create secret docker-registry makes one"));
    }
    let config = secret.data.as_ref().and_then(|data| data.get(KEY)).ok_or_else(|| format!("has no {KEY}"))?;
    // The cause may quote what is there, and that is secret.
    let DockerConfig { auths } =
        serde_json::from_slice(&config.0).map_err(|_| format!("has a {KEY} that is no docker configuration"))?;
    let rest = |name: &str| {
        let name = name.strip_prefix("https://").unwrap_or(name).trim_end_matches('/').to_owned();
        let rest = image.strip_prefix(&name)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(name.len())
    };
    let entry = auths.iter().filter_map(|(name, entry)| Some((rest(name)?, entry))).max_by_key(|(length, _)| *length);
    let Some((_, entry)) = entry else {
        let names: Vec<_> = auths.keys().map(String::as_str).collect();
        return Err(format!("has no entry for {image}; its entries: {}", names.join(", ")));
    };
    let pair = match entry {
        Entry { auth: Some(auth), .. } if !auth.is_empty() => auth.clone(),
        Entry { username: Some(name), password: Some(password), .. } => {
            BASE64_STANDARD.encode(format!("{name}:{password}"))
        }
        _ => return Err(format!("has an entry for {image} without auth, and without username and password")),
    };
    let mut value = HeaderValue::try_from(format!("Basic {pair}"))
        .map_err(|_| format!("has an entry for {image} whose auth is no base64"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What an answer with status 401 demands.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let challenges = texts.filter_map(|text| {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest);
        let parameter = |name: &str| {
            let found = parameters.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        Some(Challenge::Bearer { realm: parameter("realm")?.parse().ok()?, service: parameter("service") })
    });
    // A token is narrower than a password.
    challenges.max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }))
}

/// `name="value", name=value`
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_at(rest.find(',').unwrap_or(rest.len())),
        };
        found.push((name.trim_matches([',', ' ']).to_owned(), value.trim().to_owned()));
        text = rest;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(config: &str) -> Secret {
        Secret {
            type_: Some("kubernetes.io/dockerconfigjson".into()),
            data: Some([(".dockerconfigjson".to_owned(), ByteString(config.as_bytes().to_vec()))].into()),
            ..Secret::default()
        }
    }

    #[test]
    fn the_longest_entry_counts_in_either_form() {
        let config = r#"{"auths": {
            "https://r.example/": {"auth": "YTpi"},
            "r.example/team": {"username": "c", "password": "d"},
            "r.example/tea": {"auth": "bm8="}
        }}"#;
        let header = |image: &str| {
            authorization(&secret(config), image).map(|value| value.to_str().map(str::to_owned).unwrap_or_default())
        };
        assert_eq!(header("r.example/other/gate").as_deref(), Ok("Basic YTpi"));
        assert_eq!(header("r.example/team/gate").as_deref(), Ok("Basic Yzpk"));
        let error = header("r.example:5000/team/gate").expect_err("another registry");
        assert!(error.contains("its entries: https://r.example/"), "{error}");
    }

    #[test]
    fn what_is_no_pull_secret_is_named_and_never_quoted() {
        let error = authorization(&Secret { type_: Some("Opaque".into()), ..secret("{}") }, "r.example/gate");
        assert!(error.expect_err("refused").contains("kubernetes.io/dockerconfigjson"));
        let error = authorization(&secret(r#"{"auths": "hunter2"}"#), "r.example/gate").expect_err("refused");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_challenge_is_read_however_it_is_written() {
        let challenge = |texts: &[&'static str]| {
            let headers = texts.iter().map(|text| (header::WWW_AUTHENTICATE, HeaderValue::from_static(text)));
            challenge(&headers.collect::<HeaderMap>())
        };
        let bearer = |service: Option<&str>| {
            let realm = Uri::from_static("https://auth.example/token?a=b");
            Some(Challenge::Bearer { realm, service: service.map(str::to_owned) })
        };
        let text =
            r#"Bearer realm="https://auth.example/token?a=b",service="r.example",scope="repository:x:pull,push""#;
        assert_eq!(challenge(&[text]), bearer(Some("r.example")));
        assert_eq!(challenge(&["bearer  service=x, realm=\"https://auth.example/token?a=b\""]), bearer(Some("x")));
        assert_eq!(challenge(&["Basic realm=\"x\"", text]), bearer(Some("r.example")));
        assert_eq!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        for nothing in ["Bearer", "Bearer service=\"x\"", "Negotiate", "", "Bearer realm=\"\\\""] {
            assert_eq!(challenge(&[nothing]), None, "{nothing}");
        }
    }
}
