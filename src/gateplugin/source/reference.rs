//! PURE. The text of `spec.source.oci.image` -> registry, repository, tag and digest.

use std::str::FromStr;

use crate::model::trial::Digest;

/// An image, named in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    registry: String,
    repository: String,
    /// What it is asked for by, unless there is a digest.
    pub(super) tag: Option<String>,
    /// The only manifest that is accepted.
    pub(super) digest: Option<Digest>,
}

impl Reference {
    /// Without tag and digest.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(image: &str) -> Result<Self, String> {
        let bad = |problem: &str| Err(format!("{image:?} {problem}"));
        let (named, digest) = match image.split_once('@') {
            Some((named, digest)) => match Digest::parse(digest) {
                Some(digest) => (named, Some(digest)),
                None => return bad("has a digest that is not sha256: and 64 hexadecimal digits"),
            },
            None => (image, None),
        };
        let registry = named.split_once('/').filter(|(registry, _)| is_registry(registry));
        let Some((registry, path)) = registry else {
            return bad("does not begin with a registry: write it as registry.example/repository:tag");
        };
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if !repository.split('/').all(is_component) {
            return bad("has a repository with other characters than a-z, 0-9, '.', '_', '-' and '/'");
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return bad("has a tag with other characters than letters, digits, '.', '_' and '-'");
        }
        if tag.is_none() && digest.is_none() {
            return bad("names neither a tag nor a digest");
        }
        Ok(Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// A host with a dot or a port, as everybody tells registries from repositories.
fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let plain = |character: char| character.is_ascii_alphanumeric() || ['.', '-'].contains(&character);
    (host.contains('.') || port.is_some() || host == "localhost")
        && !host.is_empty()
        && host.chars().all(plain)
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_component(text: &str) -> bool {
    let plain = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
    text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|character| plain(character) || ['.', '_', '-'].contains(&character))
}

fn is_tag(text: &str) -> bool {
    let plain = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.len() <= 128
        && text.starts_with(plain)
        && text.chars().all(|character| plain(character) || ['.', '-'].contains(&character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_taken_apart() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let both: Reference = format!("r.example:5000/team/gate:1.0@{digest}").parse().expect("a reference");
        assert_eq!(both.name(), "r.example:5000/team/gate");
        assert_eq!(both.tag.as_deref(), Some("1.0"));
        assert_eq!(both.digest.map(|digest| digest.to_string()), Some(digest));
    }

    #[test]
    fn what_could_mean_something_else_is_refused_with_a_reason() {
        for (bad, why) in [
            ("gate:1", "registry"),
            ("team/gate:1", "registry"),
            ("r.example/gate", "neither a tag nor a digest"),
            ("r.example/gate@sha512:0a", "digest"),
            ("r.example/gate@sha256:0A", "digest"),
            ("r.example/../gate:1", "repository"),
            ("r.example//gate:1", "repository"),
            ("r.example/Gate:1", "repository"),
            ("r.example/gate:../x", "tag"),
            ("user@r.example/gate:1", "digest"),
            ("r.example?x/gate:1", "registry"),
            ("https://r.example/gate:1", "registry"),
        ] {
            let error = bad.parse::<Reference>().expect_err(bad);
            assert!(error.contains(why), "{error}");
        }
    }
}
