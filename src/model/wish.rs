//! The wish: what an upgrade is about. And its name, the revision.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::names;

/// The user's pod template and ingress ports as the API stored them, before any name, selector, Secret, replica
/// count or default of ours: a new operator version changes no wish.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wish {
    /// `spec.deployment.podTemplateSpec`.
    pub pod_template: Value,
    /// `spec.network.services.ingress.ports`; null where the user names none.
    #[serde(default)]
    pub ports: Value,
}

impl Wish {
    /// The name of this wish.
    #[must_use]
    pub fn revision(&self) -> Revision {
        // serde_json keeps maps sorted by key, so equal values give equal text.
        let text = serde_json::json!([self.pod_template, self.ports]).to_string();
        Revision(format!("v1-{}", names::hash(&[&text], 10)))
    }

    /// The image of the container `proxy`.
    #[must_use]
    pub fn proxy_image(&self) -> Option<&str> {
        self.pod_template
            .pointer("/spec/containers")?
            .as_array()?
            .iter()
            .find(|container| container["name"] == names::PROXY)?
            .get("image")?
            .as_str()
    }
}

/// The name of a wish: `v1-` and a short hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(String);

impl Revision {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<&str> for Revision {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wish(image: &str) -> Wish {
        Wish { pod_template: json!({"spec": {"containers": [{"name": "proxy", "image": image}]}}), ports: Value::Null }
    }

    #[test]
    fn a_revision_is_a_comparison_of_values() {
        let other_order: Value =
            serde_json::from_str(r#"{"spec":{"containers":[{"image":"kong:3.9","name":"proxy"}]}}"#).expect("JSON");
        assert_eq!(wish("kong:3.9").revision(), Wish { pod_template: other_order, ports: Value::Null }.revision());
        assert_ne!(wish("kong:3.9").revision(), wish("kong:3.10").revision());
        assert_eq!(wish("kong:3.9").proxy_image(), Some("kong:3.9"));
    }
}
