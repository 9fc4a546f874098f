//! A component under a key of a ConfigMap, plain or gzip.

use std::io::Read;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use k8s_openapi::api::core::v1::ConfigMap;
use tokio::task::spawn_blocking;

use super::{Admitted, Fetcher, LARGEST, Reason, SourceError, place};
use crate::{api::gateplugin::ConfigMapSource, model::trial::Digest};

const GZIP: [u8; 2] = [0x1f, 0x8b];

const NAME: &str = "spec.source.configMap.name";
const KEY: &str = "spec.source.configMap.key";

impl Fetcher {
    pub(super) async fn config_map(&self, home: &str, source: &ConfigMapSource) -> Result<Admitted, SourceError> {
        let place = place(&self.local, 1).await;
        let name = &source.name;
        let found = self.objects.config_map(home, name).await;
        let Some(config_map) =
            found.map_err(|error| SourceError::of_api(NAME, &format!("ConfigMap {name:?}"), &error))?
        else {
            let message = format!("there is no ConfigMap {name:?} in namespace {home}");
            return Err(SourceError::new(Reason::ConfigMapNotFound, NAME, message));
        };
        let source = source.clone();
        // Megabytes of gzip and SHA-256 are no work for a thread that serves others.
        let unpacked = spawn_blocking(move || {
            let component = read(&config_map, &source, LARGEST)?;
            Ok((Digest::of(&component), component))
        });
        let (digest, component) = unpacked
            .await
            .unwrap_or_else(|error| Err(SourceError::new(Reason::Unavailable, KEY, error.to_string())))?;
        Ok(Admitted { component, digest, resolved: None, _place: place })
    }
}

/// The component under the key of `source`, unpacked if it is gzip. At most `limit` bytes are ever held.
///
/// # Errors
/// Why there is none.
fn read(config_map: &ConfigMap, source: &ConfigMapSource, limit: usize) -> Result<Bytes, SourceError> {
    let ConfigMapSource { name, key } = source;
    let binary = config_map.binary_data.iter().flatten();
    let text = config_map.data.iter().flatten();
    let entries = || {
        let binary = binary.clone().map(|(key, bytes)| (key, bytes.0.as_slice()));
        binary.chain(text.clone().map(|(key, text)| (key, text.as_bytes())))
    };
    let Some((_, stored)) = entries().find(|(stored, _)| *stored == key) else {
        let keys = entries().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        let message = format!("ConfigMap {name:?} has no key {key:?}; its keys: {}", listed(&keys));
        return Err(SourceError::new(Reason::KeyNotFound, KEY, message));
    };
    let bytes = if stored.starts_with(&GZIP) { unpack(stored, key, limit)? } else { Bytes::copy_from_slice(stored) };
    match bytes.len() {
        0 => Err(SourceError::new(Reason::Empty, KEY, format!("{key:?} is empty"))),
        size if size > limit => {
            let message = format!("{key:?} is larger than {} MiB when unpacked", limit >> 20);
            Err(SourceError::new(Reason::TooLarge, KEY, message))
        }
        _ => Ok(bytes),
    }
}

fn unpack(packed: &[u8], key: &str, limit: usize) -> Result<Bytes, SourceError> {
    let mut unpacked = Vec::new();
    // One byte more than allowed is read, to tell the largest from the too large.
    MultiGzDecoder::new(packed).take(limit as u64 + 1).read_to_end(&mut unpacked).map_err(|error| {
        let message = format!("{key:?} begins like gzip but cannot be unpacked: {error}");
        SourceError::new(Reason::BadGzip, KEY, message)
    })?;
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
        get(key, stored).expect_err("refused").reason.code()
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
        assert_eq!(error.reason, Reason::KeyNotFound);
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
