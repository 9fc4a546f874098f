//! PURE. What came of a pass -> the status of the plugin.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{LimitsError, SourceError};
use crate::{
    api::{
        GatePlugin,
        condition::{Fact, Truth},
        gateplugin::{GatePluginStatus, PluginDescription, READY},
    },
    model::{
        observed::Plugin,
        trial::{Digest, LoadError, Loaded},
    },
};

const FETCHED: &str = "Fetched";
const COMPILED: &str = "Compiled";

/// What came of installing a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It asks for more than it is given.
    NotAllowed(LimitsError),
    /// There are no bytes.
    NotFetched(SourceError),
    /// The bytes cannot be run here.
    NotLoaded {
        /// Which bytes.
        digest: Digest,
        /// How many.
        size: usize,
        /// Why not.
        error: LoadError,
    },
    /// The gate host holds them.
    Loaded(Loaded),
}

impl Outcome {
    /// The same, for those who want to run the plugin.
    pub(super) fn state(&self) -> Plugin {
        match self {
            Self::NotAllowed(error) => Plugin::Failed { reason: error.code().into(), message: error.to_string() },
            Self::NotFetched(error) => Plugin::Failed { reason: error.code().into(), message: error.to_string() },
            Self::NotLoaded { error, .. } => Plugin::Failed { reason: error.code().into(), message: error.to_string() },
            Self::Loaded(loaded) => Plugin::Ready(loaded.digest.clone()),
        }
    }
}

/// The status of `plugin`, whose observed one gives the transition times.
pub(super) fn report(plugin: &GatePlugin, outcome: &Outcome, now: Timestamp) -> GatePluginStatus {
    let observed = plugin.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let conditions = conditions(outcome)
        .into_iter()
        .map(|fact| fact.observed(observed, plugin.metadata.generation, now))
        .collect::<Vec<Condition>>();
    match outcome {
        Outcome::NotAllowed(_) | Outcome::NotFetched(_) => {
            GatePluginStatus { conditions, ..GatePluginStatus::default() }
        }
        Outcome::NotLoaded { digest, size, .. } => GatePluginStatus {
            conditions,
            digest: Some(digest.to_string()),
            size: i64::try_from(*size).ok(),
            ..GatePluginStatus::default()
        },
        Outcome::Loaded(loaded) => {
            let description = loaded.description.clone();
            GatePluginStatus {
                conditions,
                digest: Some(loaded.digest.to_string()),
                size: i64::try_from(loaded.size).ok(),
                contract: Some(loaded.contract.clone()),
                imports: loaded.imports.clone(),
                description: Some(PluginDescription {
                    name: description.name,
                    version: description.version,
                    summary: description.summary,
                }),
                settings_schema: Some(description.settings_schema.to_string()),
            }
        }
    }
}

fn conditions(outcome: &Outcome) -> [Fact; 3] {
    let fact = |type_, status, reason: &str, message: &str| Fact {
        type_,
        status,
        reason: reason.into(),
        message: cut(message),
    };
    match outcome {
        Outcome::NotAllowed(error) => [
            fact(FETCHED, Truth::Unknown, "NotAllowed", ""),
            fact(COMPILED, Truth::Unknown, "NotAllowed", ""),
            fact(READY, Truth::False, error.code(), &error.to_string()),
        ],
        Outcome::NotFetched(error) => {
            let message = error.to_string();
            [
                fact(FETCHED, Truth::False, error.code(), &message),
                fact(COMPILED, Truth::Unknown, "NotFetched", ""),
                fact(READY, Truth::False, error.code(), &message),
            ]
        }
        Outcome::NotLoaded { error, .. } => {
            let message = error.to_string();
            [
                fact(FETCHED, Truth::True, "Fetched", ""),
                fact(COMPILED, Truth::False, error.code(), &message),
                fact(READY, Truth::False, error.code(), &message),
            ]
        }
        Outcome::Loaded(_) => [
            fact(FETCHED, Truth::True, "Fetched", ""),
            fact(COMPILED, Truth::True, "Compiled", ""),
            fact(READY, Truth::True, "Ready", ""),
        ],
    }
}

/// Messages may quote a plugin, and a plugin may have anything to say: enough for a sentence, too little to fill etcd.
fn cut(message: &str) -> String {
    const CHARACTERS: usize = 1024;
    match message.char_indices().nth(CHARACTERS) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::gateplugin::GatePluginSpec, model::trial::Description};

    fn plugin() -> GatePlugin {
        let mut plugin = GatePlugin::new("smoke", GatePluginSpec::default());
        plugin.metadata.generation = Some(3);
        plugin
    }

    fn loaded() -> Outcome {
        Outcome::Loaded(Loaded {
            digest: Digest::of(b"x"),
            size: 1,
            contract: "sluice:gate@0.1.0".into(),
            imports: vec!["sluice:gate/probe@0.1.0".into()],
            description: Description {
                name: "http-smoke".into(),
                version: "0.1.0".into(),
                summary: "Asks paths.".into(),
                settings_schema: serde_json::json!({"type": "object"}),
            },
        })
    }

    fn short(status: &GatePluginStatus) -> Vec<String> {
        let short = |condition: &Condition| format!("{}={}/{}", condition.type_, condition.status, condition.reason);
        status.conditions.iter().map(short).collect()
    }

    #[test]
    fn a_loaded_plugin_shows_what_it_is_and_what_it_can_do() {
        let status = report(&plugin(), &loaded(), Timestamp::UNIX_EPOCH);
        assert_eq!(short(&status), ["Fetched=True/Fetched", "Compiled=True/Compiled", "Ready=True/Ready"]);
        assert_eq!(status.digest.as_deref(), Some(Digest::of(b"x").as_str()));
        assert_eq!(status.settings_schema.as_deref(), Some(r#"{"type":"object"}"#));
        assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(3)));
    }

    #[test]
    fn bytes_that_cannot_be_run_keep_their_digest_and_say_why() {
        let error = LoadError::UnsupportedImport("sluice:gate/metrics@0.1.0".into());
        let outcome = Outcome::NotLoaded { digest: Digest::of(b"x"), size: 1, error };
        let status = report(&plugin(), &outcome, Timestamp::UNIX_EPOCH);
        assert_eq!(
            short(&status),
            ["Fetched=True/Fetched", "Compiled=False/UnsupportedImport", "Ready=False/UnsupportedImport"]
        );
        assert_eq!((status.size, status.contract), (Some(1), None));
    }

    #[test]
    fn a_plugin_that_asks_for_too_much_is_not_ready_and_says_whom_to_ask() {
        let refused = LimitsError::AboveCeiling { field: "cpu", most: "10s".into(), flag: "--max-gate-cpu" };
        let status = report(&plugin(), &Outcome::NotAllowed(refused), Timestamp::UNIX_EPOCH);
        assert_eq!(
            short(&status),
            ["Fetched=Unknown/NotAllowed", "Compiled=Unknown/NotAllowed", "Ready=False/LimitsAboveCeiling"]
        );
        assert!(status.conditions[2].message.contains("--max-gate-cpu"));
    }

    #[test]
    fn a_plugin_without_bytes_forgets_what_it_was() {
        let mut plugin = plugin();
        plugin.status = Some(report(&plugin, &loaded(), Timestamp::UNIX_EPOCH));
        let outcome = Outcome::NotFetched(SourceError::ConfigMapNotFound("gates".into()));
        let status = report(&plugin, &outcome, Timestamp::UNIX_EPOCH);
        assert_eq!(
            short(&status),
            ["Fetched=False/ConfigMapNotFound", "Compiled=Unknown/NotFetched", "Ready=False/ConfigMapNotFound"]
        );
        assert_eq!((status.digest, status.description), (None, None));
    }

    #[test]
    fn the_same_outcome_seen_again_is_the_same_status() {
        let mut plugin = plugin();
        plugin.status = Some(report(&plugin, &loaded(), Timestamp::UNIX_EPOCH));
        let later = Timestamp::from_second(60).expect("in range");
        assert_eq!(Some(report(&plugin, &loaded(), later)), plugin.status);
    }

    #[test]
    fn a_long_message_is_cut() {
        let outcome =
            Outcome::NotLoaded {
                digest: Digest::of(b"x"), size: 1, error: LoadError::NotAComponent("ä".repeat(5000))
            };
        let status = report(&plugin(), &outcome, Timestamp::UNIX_EPOCH);
        assert_eq!(status.conditions[1].message.chars().count(), 1025);
    }
}
