//! PURE. What came of a pass -> the status of the plugin.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{LimitsError, PluginObject, Refusal};
use crate::{
    api::{
        condition::{Fact, Truth},
        gateplugin::{GatePluginStatus, PluginDescription, READY, Resolved},
    },
    model::{
        observed::Plugin,
        trial::{Digest, LoadError, Loaded},
    },
};

const FETCHED: &str = "Fetched";
const VERIFIED: &str = "Verified";
const COMPILED: &str = "Compiled";

/// What came of installing a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It asks for more than it is given.
    NotAllowed(LimitsError),
    /// Taken out of use.
    Revoked,
    /// There are no bytes that are accepted.
    Refused(Refusal),
    /// The same for now, and what was loaded before is run until there are.
    Replacing {
        /// Why there are none yet.
        refusal: Refusal,
        /// What is run.
        standing: Loaded,
    },
    /// The bytes cannot be run here.
    NotLoaded {
        /// Which bytes.
        digest: Digest,
        /// How many.
        size: usize,
        /// The manifest that named them.
        resolved: Option<Digest>,
        /// Whether their signature was asked for.
        verified: bool,
        /// Why not.
        error: LoadError,
    },
    /// The gate host holds them.
    Loaded {
        /// What they are.
        loaded: Loaded,
        /// The manifest that named them.
        resolved: Option<Digest>,
        /// Whether their signature was asked for.
        verified: bool,
    },
}

impl Outcome {
    /// No bytes: what is `standing` is run as long as there may be some.
    pub(super) fn refused(refusal: Refusal, standing: Option<Loaded>) -> Self {
        match standing {
            Some(standing) if refusal.may_pass() => Self::Replacing { refusal, standing },
            _ => Self::Refused(refusal),
        }
    }

    /// Why there are no bytes.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) | Self::Replacing { refusal, .. } => Some(refusal),
            Self::Revoked | Self::NotAllowed(_) | Self::NotLoaded { .. } | Self::Loaded { .. } => None,
        }
    }

    /// What can be run.
    pub(super) fn loaded(&self) -> Option<&Loaded> {
        match self {
            Self::Loaded { loaded, .. } | Self::Replacing { standing: loaded, .. } => Some(loaded),
            Self::Revoked | Self::NotAllowed(_) | Self::Refused(_) | Self::NotLoaded { .. } => None,
        }
    }

    /// The same, for those who want to run the plugin.
    pub(super) fn state(&self) -> Plugin {
        let failed = |reason: &str, message: String| Plugin::Failed { reason: reason.into(), message };
        match self {
            Self::Revoked => Plugin::Revoked,
            Self::NotAllowed(error) => failed(error.code(), error.to_string()),
            Self::Refused(refusal) => failed(refusal.code(), refusal.to_string()),
            Self::NotLoaded { error, .. } => failed(error.code(), error.to_string()),
            Self::Loaded { loaded, .. } | Self::Replacing { standing: loaded, .. } => {
                Plugin::Ready(loaded.digest.clone())
            }
        }
    }
}

/// The status of `plugin`, whose observed one gives the transition times.
pub(super) fn report<K: PluginObject>(plugin: &K, outcome: &Outcome, now: Timestamp) -> GatePluginStatus {
    let observed = plugin.status();
    let generation = plugin.meta().generation;
    let before = observed.map_or(&[][..], |status| &status.conditions);
    let conditions = conditions(outcome).into_iter().map(|fact| fact.observed(before, generation, now));
    let conditions = conditions.collect::<Vec<Condition>>();
    let resolved = |manifest: Option<&Digest>| {
        let generation = generation.unwrap_or_default();
        manifest.map(|digest| Resolved { generation, manifest_digest: digest.to_string() })
    };
    let resolved_before = || observed.and_then(|status| status.resolved.clone());
    let size = |size: usize| i64::try_from(size).ok();
    match outcome {
        // Which bytes were taken out of use is what people will want to know.
        Outcome::Revoked => GatePluginStatus {
            conditions,
            resolved: resolved_before(),
            digest: observed.and_then(|status| status.digest.clone()),
            size: observed.and_then(|status| status.size),
            ..GatePluginStatus::default()
        },
        Outcome::NotAllowed(_) => {
            GatePluginStatus { conditions, resolved: resolved_before(), ..GatePluginStatus::default() }
        }
        Outcome::Refused(refusal) => {
            let manifest = match refusal {
                Refusal::Signature { resolved, .. } => Some(resolved),
                Refusal::Source(_) => None,
            };
            GatePluginStatus { conditions, resolved: resolved(manifest), ..GatePluginStatus::default() }
        }
        Outcome::Replacing { standing, .. } => described(standing, conditions, resolved_before()),
        Outcome::NotLoaded { digest, size: bytes, resolved: manifest, .. } => GatePluginStatus {
            conditions,
            resolved: resolved(manifest.as_ref()),
            digest: Some(digest.to_string()),
            size: size(*bytes),
            ..GatePluginStatus::default()
        },
        Outcome::Loaded { loaded, resolved: manifest, .. } => {
            described(loaded, conditions, resolved(manifest.as_ref()))
        }
    }
}

fn described(loaded: &Loaded, conditions: Vec<Condition>, resolved: Option<Resolved>) -> GatePluginStatus {
    let description = loaded.description.clone();
    GatePluginStatus {
        conditions,
        resolved,
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

fn conditions(outcome: &Outcome) -> [Fact; 4] {
    let fact = |type_, status, reason: &str, message: &str| Fact {
        type_,
        status,
        reason: reason.into(),
        message: cut(message),
    };
    let verified = |asked: bool| match asked {
        true => fact(VERIFIED, Truth::True, "Verified", ""),
        false => fact(VERIFIED, Truth::Unknown, "NotAsked", "spec.verify names nobody whose signature is asked for"),
    };
    // Why there are no bytes: because they cannot be had, or because nobody vouches for them.
    let unfetched = |refusal: &Refusal| {
        let (code, message) = (refusal.code(), refusal.to_string());
        match refusal {
            Refusal::Source(_) => {
                [fact(FETCHED, Truth::False, code, &message), fact(VERIFIED, Truth::Unknown, "NotFetched", "")]
            }
            Refusal::Signature { .. } => {
                [fact(FETCHED, Truth::Unknown, "NotVerified", ""), fact(VERIFIED, Truth::False, code, &message)]
            }
        }
    };
    match outcome {
        Outcome::NotAllowed(error) => [
            fact(FETCHED, Truth::Unknown, "NotAllowed", ""),
            fact(VERIFIED, Truth::Unknown, "NotAllowed", ""),
            fact(COMPILED, Truth::Unknown, "NotAllowed", ""),
            fact(READY, Truth::False, error.code(), &error.to_string()),
        ],
        Outcome::Revoked => [
            fact(FETCHED, Truth::Unknown, "Revoked", ""),
            fact(VERIFIED, Truth::Unknown, "Revoked", ""),
            fact(COMPILED, Truth::Unknown, "Revoked", ""),
            fact(READY, Truth::False, "Revoked", "spec.revoked takes it out of use; what it passed is void"),
        ],
        Outcome::Refused(refusal) => {
            let [fetched, signed] = unfetched(refusal);
            let ready = fact(READY, Truth::False, refusal.code(), &refusal.to_string());
            [fetched, signed, fact(COMPILED, Truth::Unknown, "NotFetched", ""), ready]
        }
        Outcome::Replacing { refusal, standing } => {
            let [fetched, signed] = unfetched(refusal);
            let message = format!("{} is run until there is another: {refusal}", standing.digest);
            [
                fetched,
                signed,
                fact(COMPILED, Truth::Unknown, "NotFetched", ""),
                fact(READY, Truth::True, "Replacing", &message),
            ]
        }
        Outcome::NotLoaded { error, verified: asked, .. } => {
            let message = error.to_string();
            [
                fact(FETCHED, Truth::True, "Fetched", ""),
                verified(*asked),
                fact(COMPILED, Truth::False, error.code(), &message),
                fact(READY, Truth::False, error.code(), &message),
            ]
        }
        Outcome::Loaded { verified: asked, .. } => [
            fact(FETCHED, Truth::True, "Fetched", ""),
            verified(*asked),
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
    use crate::{
        api::GatePlugin,
        gateplugin::{Reason, SourceError, verify::SignatureError},
        model::trial::Description,
    };

    fn plugin() -> GatePlugin {
        let spec = serde_json::json!({"source": {"configMap": {"name": "gates", "key": "smoke.wasm"}}});
        let mut plugin = GatePlugin::new("smoke", serde_json::from_value(spec).expect("a spec"));
        plugin.metadata.generation = Some(3);
        plugin
    }

    fn what_is_loaded() -> Loaded {
        Loaded {
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
        }
    }

    fn loaded() -> Outcome {
        Outcome::Loaded { loaded: what_is_loaded(), resolved: Some(Digest::of(b"manifest")), verified: true }
    }

    fn no_config_map() -> Refusal {
        SourceError::new(Reason::ConfigMapNotFound, "spec.source.configMap.name", "gone").into()
    }

    fn not_loaded(error: LoadError) -> Outcome {
        Outcome::NotLoaded { digest: Digest::of(b"x"), size: 1, resolved: None, verified: false, error }
    }

    fn short(status: &GatePluginStatus) -> Vec<String> {
        let short = |condition: &Condition| format!("{}={}/{}", condition.type_, condition.status, condition.reason);
        status.conditions.iter().map(short).collect()
    }

    #[test]
    fn a_loaded_plugin_shows_what_it_is_and_what_it_can_do() {
        let status = report(&plugin(), &loaded(), Timestamp::UNIX_EPOCH);
        assert_eq!(
            short(&status),
            ["Fetched=True/Fetched", "Verified=True/Verified", "Compiled=True/Compiled", "Ready=True/Ready"]
        );
        assert_eq!(status.digest.as_deref(), Some(Digest::of(b"x").as_str()));
        let resolved = Resolved { generation: 3, manifest_digest: Digest::of(b"manifest").to_string() };
        assert_eq!(status.resolved, Some(resolved));
        assert_eq!(status.settings_schema.as_deref(), Some(r#"{"type":"object"}"#));
        assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(3)));
    }

    #[test]
    fn bytes_that_cannot_be_run_keep_their_digest_and_say_why() {
        let outcome = not_loaded(LoadError::UnsupportedImport("sluice:gate/metrics@0.1.0".into()));
        let status = report(&plugin(), &outcome, Timestamp::UNIX_EPOCH);
        assert_eq!(
            short(&status),
            [
                "Fetched=True/Fetched",
                "Verified=Unknown/NotAsked",
                "Compiled=False/UnsupportedImport",
                "Ready=False/UnsupportedImport"
            ]
        );
        assert_eq!((status.size, status.contract), (Some(1), None));
    }

    #[test]
    fn a_plugin_that_asks_for_too_much_is_not_ready_and_says_whom_to_ask() {
        let refused = LimitsError::AboveCeiling { field: "cpu", most: "10s".into(), flag: "--max-gate-cpu" };
        let status = report(&plugin(), &Outcome::NotAllowed(refused), Timestamp::UNIX_EPOCH);
        assert_eq!(
            short(&status),
            [
                "Fetched=Unknown/NotAllowed",
                "Verified=Unknown/NotAllowed",
                "Compiled=Unknown/NotAllowed",
                "Ready=False/LimitsAboveCeiling"
            ]
        );
        assert!(status.conditions[3].message.contains("--max-gate-cpu"));
    }

    #[test]
    fn a_plugin_without_bytes_forgets_what_it_was() {
        let mut plugin = plugin();
        plugin.status = Some(report(&plugin, &loaded(), Timestamp::UNIX_EPOCH));
        let status = report(&plugin, &Outcome::refused(no_config_map(), None), Timestamp::UNIX_EPOCH);
        assert_eq!(
            short(&status),
            [
                "Fetched=False/ConfigMapNotFound",
                "Verified=Unknown/NotFetched",
                "Compiled=Unknown/NotFetched",
                "Ready=False/ConfigMapNotFound"
            ]
        );
        assert_eq!((status.digest, status.description, status.resolved), (None, None, None));
    }

    #[test]
    fn an_image_that_nobody_signed_is_pinned_and_not_ready() {
        let refusal = Refusal::Signature { resolved: Digest::of(b"manifest"), error: SignatureError::NotSigned };
        let status = report(&plugin(), &Outcome::refused(refusal, None), Timestamp::UNIX_EPOCH);
        assert_eq!(
            short(&status),
            [
                "Fetched=Unknown/NotVerified",
                "Verified=False/NotSigned",
                "Compiled=Unknown/NotFetched",
                "Ready=False/NotSigned"
            ]
        );
        assert!(status.resolved.is_some());
    }

    #[test]
    fn what_may_pass_leaves_the_old_one_ready_and_what_may_not_does_not() {
        let down: Refusal = SourceError::new(Reason::Unavailable, "spec.source.oci.image", "down").into();
        let replacing = Outcome::refused(down, Some(what_is_loaded()));
        let status = report(&plugin(), &replacing, Timestamp::UNIX_EPOCH);
        assert_eq!(short(&status)[0], "Fetched=False/Unavailable");
        assert_eq!(short(&status)[3], "Ready=True/Replacing");
        assert_eq!(status.digest.as_deref(), Some(Digest::of(b"x").as_str()));
        assert_eq!(replacing.state(), Plugin::Ready(Digest::of(b"x")));
        let wrong = Outcome::refused(no_config_map(), Some(what_is_loaded()));
        assert!(matches!(wrong.state(), Plugin::Failed { .. }));
    }

    #[test]
    fn a_revoked_plugin_says_which_bytes_it_was() {
        let mut plugin = plugin();
        plugin.status = Some(report(&plugin, &loaded(), Timestamp::UNIX_EPOCH));
        let status = report(&plugin, &Outcome::Revoked, Timestamp::UNIX_EPOCH);
        assert_eq!(short(&status)[3], "Ready=False/Revoked");
        assert_eq!(status.digest.as_deref(), Some(Digest::of(b"x").as_str()));
        assert_eq!(Outcome::Revoked.state(), Plugin::Revoked);
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
        let outcome = not_loaded(LoadError::NotAComponent("ä".repeat(5000)));
        let status = report(&plugin(), &outcome, Timestamp::UNIX_EPOCH);
        assert_eq!(status.conditions[2].message.chars().count(), 1025);
    }
}
