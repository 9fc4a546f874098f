//! PURE. A ConfigMap -> the bytes of a component.

use std::io::Read;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use k8s_openapi::api::core::v1::ConfigMap;

use crate::api::gateplugin::ConfigMapSource;

/// Bytes of a component, unpacked. A ConfigMap holds 1 MiB, and gzip can make a thousand times that of it.
pub(super) const LARGEST: usize = 32 << 20;

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Why there are no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No such ConfigMap.
    #[error("spec.source.configMap.name: there is no ConfigMap {0:?} in this namespace")]
    ConfigMapNotFound(String),
    /// The ConfigMap has no such key.
    #[error("spec.source.configMap.key: ConfigMap {name:?} has no key {key:?}; its keys: {}", listed(.keys))]
    KeyNotFound {
        /// The ConfigMap.
        name: String,
        /// The key that was asked for.
        key: String,
        /// Those it has.
        keys: Vec<String>,
    },
    /// Nothing in it.
    #[error("spec.source.configMap.key: {0:?} is empty")]
    Empty(String),
    /// It begins like gzip and is broken.
    #[error("spec.source.configMap.key: {key:?} begins like gzip but cannot be unpacked: {error}")]
    BadGzip {
        /// The key.
        key: String,
        /// What the decoder says.
        error: String,
    },
    /// More than a component may have.
    #[error("spec.source.configMap.key: {key:?} is larger than {} MiB when unpacked", limit >> 20)]
    TooLarge {
        /// The key.
        key: String,
        /// The limit in bytes.
        limit: usize,
    },
}

impl SourceError {
    /// The reason of the plugin's conditions.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::ConfigMapNotFound(_) => "ConfigMapNotFound",
            Self::KeyNotFound { .. } => "KeyNotFound",
            Self::Empty(_) => "Empty",
            Self::BadGzip { .. } => "BadGzip",
            Self::TooLarge { .. } => "TooLarge",
        }
    }
}

/// The component under the key of `source`, unpacked if it is gzip. At most `limit` bytes are ever held.
///
/// # Errors
/// Every [`SourceError`] but `ConfigMapNotFound`.
pub(super) fn read(config_map: &ConfigMap, source: &ConfigMapSource, limit: usize) -> Result<Bytes, SourceError> {
    let ConfigMapSource { name, key } = source;
    let binary = config_map.binary_data.iter().flatten();
    let text = config_map.data.iter().flatten();
    let entries = || {
        let binary = binary.clone().map(|(key, bytes)| (key, bytes.0.as_slice()));
        binary.chain(text.clone().map(|(key, text)| (key, text.as_bytes())))
    };
    let Some((_, stored)) = entries().find(|(stored, _)| *stored == key) else {
        let keys = entries().map(|(key, _)| key.clone()).collect();
        return Err(SourceError::KeyNotFound { name: name.clone(), key: key.clone(), keys });
    };
    let bytes = if stored.starts_with(&GZIP) { unpack(stored, key, limit)? } else { Bytes::copy_from_slice(stored) };
    match bytes.len() {
        0 => Err(SourceError::Empty(key.clone())),
        size if size > limit => Err(SourceError::TooLarge { key: key.clone(), limit }),
        _ => Ok(bytes),
    }
}

fn unpack(packed: &[u8], key: &str, limit: usize) -> Result<Bytes, SourceError> {
    let mut unpacked = Vec::new();
    // One byte more than allowed is read, to tell the largest from the too large.
    MultiGzDecoder::new(packed)
        .take(limit as u64 + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| SourceError::BadGzip { key: key.to_owned(), error: error.to_string() })?;
    Ok(unpacked.into())
}

fn listed(keys: &[String]) -> String {
    if keys.is_empty() { "none".into() } else { keys.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use k8s_openapi::ByteString;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn get(key: &str, stored: &[u8]) -> Result<Bytes, SourceError> {
        let config_map = ConfigMap {
            binary_data: Some([("smoke.wasm".to_owned(), ByteString(stored.to_vec()))].into()),
            data: Some([("note".to_owned(), "\0asm".to_owned())].into()),
            ..ConfigMap::default()
        };
        read(&config_map, &ConfigMapSource { name: "gates".into(), key: key.into() }, 1 << 20)
    }

    fn code(key: &str, stored: &[u8]) -> &'static str {
        get(key, stored).expect_err("refused").code()
    }

    #[test]
    fn plain_and_packed_bytes_are_the_same_component() {
        assert_eq!(get("smoke.wasm", b"\0asm"), Ok(Bytes::from_static(b"\0asm")));
        assert_eq!(get("smoke.wasm", &gzip(b"\0asm")), Ok(Bytes::from_static(b"\0asm")));
        assert_eq!(get("note", b""), Ok(Bytes::from_static(b"\0asm")), "text data counts too");
    }

    #[test]
    fn a_missing_key_names_the_field_and_the_keys_there_are() {
        let error = get("smok.wasm", b"x").expect_err("refused");
        assert_eq!(error.code(), "KeyNotFound");
        assert_eq!(
            error.to_string(),
            "spec.source.configMap.key: ConfigMap \"gates\" has no key \"smok.wasm\"; its keys: smoke.wasm, note"
        );
    }

    #[test]
    fn nothing_is_no_component() {
        assert_eq!(code("smoke.wasm", b""), "Empty");
        assert_eq!(code("smoke.wasm", &gzip(b"")), "Empty");
    }

    #[test]
    fn broken_gzip_is_named() {
        assert_eq!(code("smoke.wasm", &GZIP), "BadGzip");
        assert_eq!(code("smoke.wasm", &gzip(b"\0asm")[..15]), "BadGzip");
    }

    #[test]
    fn a_packed_bomb_is_refused_and_the_largest_component_is_not() {
        assert_eq!(get("smoke.wasm", &gzip(&vec![0; 1 << 20])).map(|bytes| bytes.len()), Ok(1 << 20));
        assert_eq!(code("smoke.wasm", &gzip(&vec![0; (1 << 20) + 1])), "TooLarge");
        assert_eq!(code("smoke.wasm", &vec![0; (1 << 20) + 1]), "TooLarge");
    }
}
