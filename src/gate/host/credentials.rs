//! Secrets that a request may name and no gate ever sees: added here, and taken out again of what comes back.
//!
//! This guards against leaks, not against a gate and a target that work together: a target that answers with the secret
//! bent out of shape (reversed, encoded) tells it.

use hyper::header::{HeaderName, HeaderValue};

use super::probe::{Refusal, invalid};
use crate::model::trial::{Credential, Secret};

/// What stands for each byte of a secret in an answer: nothing behind it moves, so a cut stays where it is.
const REDACTED: u8 = b'*';

/// Stands for the secret in a header's format.
const PLACE: &str = "%s";

/// The header that a request to `target` with `path` gets for naming `name`.
///
/// # Errors
/// Where this credential is not granted for that target and path, or cannot be written into a header.
pub(super) fn header(
    credentials: &[Credential],
    name: &str,
    target: &str,
    path: &str,
) -> Result<(HeaderName, HeaderValue), Refusal> {
    let granted = credentials.iter().find(|credential| credential.name == name && credential.target == target);
    let Some(credential) = granted else {
        return Err(Refusal::Denied(format!("credential {name} for {target}")));
    };
    if !is_below(path, &credential.path_prefix) {
        return Err(Refusal::Denied(format!("credential {name} for {target} outside {}", credential.path_prefix)));
    }
    let broken = || Refusal::Invalid(format!("credential {name:?} cannot be written into a header; see the Secret"));
    let field = HeaderName::try_from(credential.header.as_str()).map_err(|_| broken())?;
    let (before, after) = credential.format.split_once(PLACE).ok_or_else(broken)?;
    let value = [before.as_bytes(), credential.value.reveal(), after.as_bytes()].concat();
    let mut value = HeaderValue::try_from(value).map_err(|_| broken())?;
    value.set_sensitive(true);
    Ok((field, value))
}

/// Refuses a header of the guest's own where the host brings one of that name, whether it was asked to or not: a gate
/// must not pass for the one who holds the secret.
pub(super) fn reserved(credentials: &[Credential], target: &str, header: &HeaderName) -> Result<(), Refusal> {
    let brought = credentials
        .iter()
        .any(|credential| credential.target == target && credential.header.eq_ignore_ascii_case(header.as_str()));
    if brought { Err(invalid("header (a credential brings it)", header.as_str())) } else { Ok(()) }
}

/// Whether `path` (and query) is `prefix` or below it, on the other side of every way to write `..`.
fn is_below(path: &str, prefix: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let lower = path.to_ascii_lowercase();
    if ["%2f", "%5c", "\\", "%25"].iter().any(|way| lower.contains(way)) {
        return false;
    }
    let climbs = lower.replace("%2e", ".");
    // What stands behind a semicolon is a parameter of its segment to some servers.
    let climbs = climbs.split('/').any(|segment| matches!(segment.split(';').next(), Some("." | "..")));
    let prefix = prefix.trim_end_matches('/');
    let below = path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below && !climbs
}

/// Bytes of the longest secret: how far one that is cut may reach over the end.
pub(super) fn longest(credentials: &[Credential]) -> usize {
    credentials.iter().map(|credential| credential.value.reveal().len()).max().unwrap_or_default()
}

/// Takes every secret out of `bytes`. All of the trial's: who was told one with an earlier request may answer with it
/// to any.
pub(super) fn redact(credentials: &[Credential], bytes: Vec<u8>) -> Vec<u8> {
    credentials.iter().fold(bytes, |bytes, credential| without(&credential.value, bytes))
}

/// The same for text.
pub(in crate::gate) fn redact_text(credentials: &[Credential], text: &mut String) {
    if !credentials.is_empty() {
        let bytes = redact(credentials, std::mem::take(text).into_bytes());
        *text = String::from_utf8_lossy(&bytes).into_owned();
    }
}

fn without(secret: &Secret, mut bytes: Vec<u8>) -> Vec<u8> {
    let secret = secret.reveal();
    if secret.is_empty() {
        return bytes;
    }
    let mut from = 0;
    while let Some(at) = bytes[from..].windows(secret.len()).position(|window| window == secret) {
        let end = from + at + secret.len();
        bytes[from + at..end].fill(REDACTED);
        from = end;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(format: &str, prefix: &str, value: &[u8]) -> Vec<Credential> {
        vec![Credential {
            name: "token".into(),
            value: value.to_vec().into(),
            target: "egress/api".into(),
            header: "Authorization".into(),
            format: format.into(),
            path_prefix: prefix.into(),
        }]
    }

    #[test]
    fn the_host_writes_the_header_for_its_own_target_and_path_and_no_other() {
        let granted = credential("Bearer %s", "/api", b"s3cret");
        let (field, value) = header(&granted, "token", "egress/api", "/api/a?b=c").unwrap();
        assert_eq!((field.as_str(), value.as_bytes()), ("authorization", b"Bearer s3cret".as_slice()));
        assert!(value.is_sensitive());
        for (name, target, path) in [
            ("other", "egress/api", "/api"),
            ("token", "candidate/proxy", "/api"),
            ("token", "egress/api", "/"),
            ("token", "egress/api", "/apis"),
        ] {
            let refusal = header(&granted, name, target, path).unwrap_err();
            assert!(matches!(refusal, Refusal::Denied(_)), "{name} {target} {path}: {refusal:?}");
        }
    }

    #[test]
    fn no_way_of_writing_a_path_climbs_out_of_the_prefix() {
        for path in ["/api", "/api/", "/api/b?c=../d", "/api?x", "/api/a.b/..c"] {
            assert!(is_below(path, "/api") && is_below(path, "/api/"), "{path}");
        }
        for path in [
            "/api/../x",
            "/api/%2e%2E/x",
            "/api/.%2e/",
            "/api/./x",
            "/api%2f..",
            "/api/..;a/x",
            "/api/a\\..\\b",
            "/api/%252e%252e/",
        ] {
            assert!(!is_below(path, "/api"), "{path}");
        }
        assert!(is_below("/anything", "/") && is_below("/anything", ""));
    }

    #[test]
    fn a_secret_that_is_no_header_is_refused_without_being_told() {
        for (format, value) in [("Bearer %s", b"a\r\nX: y".as_slice()), ("Bearer", b"s3cret"), ("%s", b"\0")] {
            let Err(Refusal::Invalid(message)) = header(&credential(format, "/", value), "token", "egress/api", "/")
            else {
                panic!("taken")
            };
            assert!(!message.contains("s3cret") && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_header_that_the_host_brings_is_not_the_guests_to_write() {
        let granted = credential("Bearer %s", "/", b"s3cret");
        let header = HeaderName::from_static("authorization");
        assert!(reserved(&granted, "egress/api", &header).is_err());
        assert!(reserved(&granted, "candidate/proxy", &header).is_ok());
        assert!(reserved(&granted, "egress/api", &HeaderName::from_static("accept")).is_ok());
    }

    #[test]
    fn secrets_are_taken_out_wherever_they_stand() {
        let granted = credential("%s", "/", b"s3cret");
        for (given, wanted) in [
            ("", ""),
            ("nothing", "nothing"),
            ("s3cret", "******"),
            ("a s3crets3cret b s3cre", "a ************ b s3cre"),
        ] {
            assert_eq!(redact(&granted, given.into()), wanted.as_bytes());
        }
        // One that is empty stands nowhere.
        assert_eq!(redact(&credential("%s", "/", b""), b"abc".to_vec()), b"abc");
    }
}
