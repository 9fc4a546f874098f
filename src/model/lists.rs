//! Lists that the API merges by key: one table for the schema, for merging and for comparing, so that they agree.

use serde_json::Value;

/// What identifies an entry of a list in a Pod template; lists that are not named here are replaced whole.
pub const KEYS: [(&str, &[&str]); 14] = [
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("ephemeralContainers", &["name"]),
    ("volumes", &["name"]),
    ("env", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("volumeDevices", &["devicePath"]),
    ("ports", &["containerPort", "protocol"]),
    ("imagePullSecrets", &["name"]),
    ("claims", &["name"]),
    ("resourceClaims", &["name"]),
    ("schedulingGates", &["name"]),
    ("hostAliases", &["ip"]),
    ("topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
];

/// The keys by which the API merges the list `field`.
#[must_use]
pub fn keys_of(field: &str) -> Option<&'static [&'static str]> {
    KEYS.iter().find(|(name, _)| *name == field).map(|(_, keys)| *keys)
}

/// Whether two entries of a list are about the same thing. A port's protocol is TCP where it is not given.
#[must_use]
pub fn same(keys: &[&str], one: &Value, other: &Value) -> bool {
    let part = |entry: &Value, key: &str| match entry.get(key) {
        None if key == "protocol" => Value::from("TCP"),
        found => found.cloned().unwrap_or_default(),
    };
    keys.iter().all(|key| part(one, key) == part(other, key))
}
