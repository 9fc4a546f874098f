//! PURE. A policy and what is installed -> what is wrong with it, and what only its plugins can tell.

use kube::core::Selector;

use super::PolicyObject;
use crate::{
    api::promotionpolicy::{Gate, PluginKind, PluginRef},
    model::{
        duration,
        grants::Ceilings,
        observed::Plugin,
        trial::{Digest, Outcome, Problem},
    },
};

/// What kind of wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    InvalidSelector,
    InvalidDuration,
    NotGranted,
    PluginNotFound,
    PluginNotReady,
    InvalidSettings,
}

impl Wrong {
    /// The reason of the condition.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::InvalidSelector => "InvalidSelector",
            Self::InvalidDuration => "InvalidDuration",
            Self::NotGranted => "NotGranted",
            Self::PluginNotFound => "PluginNotFound",
            Self::PluginNotReady => "PluginNotReady",
            Self::InvalidSettings => "InvalidSettings",
        }
    }
}

/// One thing that is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) wrong: Wrong,
    /// Where: `spec.gates[smoke].settings/checks/0/path`.
    pub(super) at: String,
    pub(super) message: String,
}

/// Settings of a gate that its plugin has to judge.
#[derive(Debug, PartialEq)]
pub(super) struct Question<'policy> {
    pub(super) gate: &'policy Gate,
    pub(super) digest: Digest,
}

/// What a policy looks like before its plugins were asked.
#[derive(Debug, PartialEq)]
pub(super) enum Checked<'policy> {
    /// A plugin is being loaded: nothing is said before that is over.
    TooEarly,
    /// Wrong without asking anybody, and what to ask.
    Looked { findings: Vec<Finding>, questions: Vec<Question<'policy>> },
}

/// Looks at everything that needs no plugin. `installed` answers for a plugin by reference.
pub(super) fn look<'policy>(
    policy: &'policy impl PolicyObject,
    ceilings: &Ceilings,
    installed: impl Fn(&PluginRef) -> Option<Plugin>,
) -> Checked<'policy> {
    let mut findings = Vec::new();
    let mut questions = Vec::new();
    for (field, selector) in policy.selectors() {
        if let Err(error) = Selector::try_from(selector.clone()) {
            findings.push(Finding { wrong: Wrong::InvalidSelector, at: field.into(), message: error.to_string() });
        }
    }
    for gate in &policy.rules().gates {
        let spans = [("timeout", &gate.timeout), ("retryBackoff", &gate.retry_backoff), ("deadline", &gate.deadline)];
        for (field, text) in spans.into_iter().chain(gate.recheck_interval.iter().map(|text| ("recheckInterval", text)))
        {
            if let Err(message) = duration::parse(text) {
                findings.push(Finding { wrong: Wrong::InvalidDuration, at: at(gate, field), message });
            }
        }
        // For its namespace's sake only: what is granted is read again for each DataPlane.
        if let Some(Err(excess)) = gate.grants.as_ref().map(|grants| grants.read("", ceilings)) {
            findings.push(Finding {
                wrong: Wrong::NotGranted,
                at: at(gate, &format!("grants.{}", excess.field)),
                message: excess.message,
            });
        }
        let PluginRef { kind, name } = &gate.plugin_ref;
        match installed(&gate.plugin_ref) {
            Some(Plugin::Loading) => return Checked::TooEarly,
            None => findings.push(Finding {
                wrong: Wrong::PluginNotFound,
                at: at(gate, "pluginRef/name"),
                message: match kind {
                    PluginKind::GatePlugin => format!("there is no GatePlugin {name:?} in this namespace"),
                    PluginKind::ClusterGatePlugin => format!("there is no ClusterGatePlugin {name:?}"),
                },
            }),
            Some(Plugin::Failed { reason, message }) => findings.push(Finding {
                wrong: Wrong::PluginNotReady,
                at: at(gate, "pluginRef/name"),
                message: format!("{kind:?} {name:?} is not ready, {reason}: {message}"),
            }),
            Some(Plugin::Revoked) => findings.push(Finding {
                wrong: Wrong::PluginNotReady,
                at: at(gate, "pluginRef/name"),
                message: format!("{kind:?} {name:?} is revoked"),
            }),
            Some(Plugin::Ready(digest)) => questions.push(Question { gate, digest }),
        }
    }
    Checked::Looked { findings, questions }
}

/// What the plugin of `gate` said about its settings.
pub(super) fn answered(gate: &Gate, answer: Result<Vec<Problem>, Outcome>) -> Vec<Finding> {
    match answer {
        Ok(problems) => problems
            .into_iter()
            .map(|problem| Finding {
                wrong: Wrong::InvalidSettings,
                at: at(gate, "settings") + &problem.pointer,
                message: problem.message,
            })
            .collect(),
        Err(outcome) => {
            let message = match outcome {
                Outcome::Error { blame, message, .. } => format!("{}: {message}", blame.code()),
                // A door that confuses settings with a candidate has not judged the settings.
                Outcome::Pass(reason)
                | Outcome::Fail(reason)
                | Outcome::Inconclusive(reason)
                | Outcome::Wait { reason, .. } => format!("it gave a verdict instead: {}", reason.message),
            };
            let PluginRef { kind, name } = &gate.plugin_ref;
            let message = format!("{kind:?} {name:?} could not judge the settings, {message}");
            vec![Finding { wrong: Wrong::PluginNotReady, at: at(gate, "settings"), message }]
        }
    }
}

fn at(gate: &Gate, field: &str) -> String {
    format!("spec.gates[{}].{field}", gate.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{ClusterPromotionPolicy, PromotionPolicy},
        model::trial::Blame,
    };
    use serde_json::json;

    fn policy(change: serde_json::Value) -> PromotionPolicy {
        let mut gate = json!({"name": "smoke", "pluginRef": {"name": "http-smoke"}});
        for (field, value) in change.as_object().expect("an object") {
            gate[field] = value.clone();
        }
        let spec = json!({"selector": {}, "gates": [gate]});
        PromotionPolicy::new("policy", serde_json::from_value(spec).expect("a policy"))
    }

    fn ready(_: &PluginRef) -> Option<Plugin> {
        Some(Plugin::Ready(Digest::of(b"x")))
    }

    fn findings(policy: &impl PolicyObject, installed: impl Fn(&PluginRef) -> Option<Plugin>) -> Vec<(Wrong, String)> {
        match look(policy, &Ceilings::default(), installed) {
            Checked::Looked { findings, .. } => {
                findings.into_iter().map(|finding| (finding.wrong, finding.at)).collect()
            }
            Checked::TooEarly => panic!("too early"),
        }
    }

    #[test]
    fn a_good_policy_leaves_one_question_for_each_gate() {
        let policy = policy(json!({}));
        let Checked::Looked { findings, questions } = look(&policy, &Ceilings::default(), ready) else {
            panic!("too early")
        };
        assert_eq!((findings.len(), questions.len()), (0, 1));
        assert_eq!((questions[0].gate.name.as_str(), &questions[0].digest), ("smoke", &Digest::of(b"x")));
    }

    #[test]
    fn each_duration_is_named_by_its_field() {
        for field in ["timeout", "retryBackoff", "deadline"] {
            let policy = policy(json!({ field: "30s1m" }));
            assert_eq!(findings(&policy, ready), [(Wrong::InvalidDuration, format!("spec.gates[smoke].{field}"))]);
        }
    }

    #[test]
    fn an_operator_no_selector_has_is_refused() {
        let mut policy = policy(json!({}));
        policy.spec.selector = serde_json::from_value(json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}))
            .expect("a selector");
        assert_eq!(findings(&policy, ready), [(Wrong::InvalidSelector, "spec.selector".into())]);

        let spec =
            json!({"selector": {}, "namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}});
        let cluster = ClusterPromotionPolicy::new("policy", serde_json::from_value(spec).expect("a policy"));
        assert_eq!(findings(&cluster, ready), [(Wrong::InvalidSelector, "spec.namespaceSelector".into())]);
    }

    #[test]
    fn a_plugin_is_absent_or_broken_or_not_there_yet() {
        let policy = policy(json!({}));
        let at = "spec.gates[smoke].pluginRef/name".to_owned();
        assert_eq!(findings(&policy, |_| None), [(Wrong::PluginNotFound, at.clone())]);
        let failed = |_: &PluginRef| Some(Plugin::Failed { reason: "BadGzip".into(), message: String::new() });
        assert_eq!(findings(&policy, failed), [(Wrong::PluginNotReady, at)]);
        assert_eq!(look(&policy, &Ceilings::default(), |_| Some(Plugin::Loading)), Checked::TooEarly);
    }

    #[test]
    fn problems_of_settings_point_into_the_policy() {
        let policy = policy(json!({}));
        let problem = Problem { pointer: "/checks/0/path".into(), message: "must start with /".into() };
        let found = answered(&policy.spec.rules.gates[0], Ok(vec![problem]));
        assert_eq!(found[0].wrong, Wrong::InvalidSettings);
        assert_eq!(found[0].at, "spec.gates[smoke].settings/checks/0/path");
        assert_eq!(answered(&policy.spec.rules.gates[0], Ok(vec![])), []);
    }

    #[test]
    fn settings_that_nobody_could_judge_are_not_accepted() {
        let policy = policy(json!({}));
        let trap = Outcome::Error { blame: Blame::Trap, message: "unreachable".into(), retry: true };
        let found = answered(&policy.spec.rules.gates[0], Err(trap));
        assert_eq!(found[0].wrong, Wrong::PluginNotReady);
        assert!(found[0].message.contains("Trap: unreachable"), "{}", found[0].message);
    }
}
