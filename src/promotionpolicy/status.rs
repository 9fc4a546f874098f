//! PURE. What is wrong with a policy -> its status.

use jiff::Timestamp;

use super::{PolicyObject, check::Finding};
use crate::api::{
    condition::{Fact, Truth},
    promotionpolicy::{ACCEPTED, PromotionPolicyStatus},
};

/// The status of `policy`, whose observed one gives the transition time. The first finding gives the reason.
pub(super) fn report(policy: &impl PolicyObject, findings: &[Finding], now: Timestamp) -> PromotionPolicyStatus {
    let observed = policy.status().map_or(&[][..], |status| &status.conditions);
    let fact = Fact {
        type_: ACCEPTED,
        status: Truth::from(findings.is_empty()),
        reason: findings.first().map_or("Accepted", |finding| finding.wrong.code()).to_owned(),
        message: message(findings),
    };
    PromotionPolicyStatus { conditions: vec![fact.observed(observed, policy.meta().generation, now)] }
}

/// One line for each finding, until it is more than anybody reads at once.
fn message(findings: &[Finding]) -> String {
    const BYTES: usize = 2048;
    let mut message = String::new();
    for (index, Finding { at, message: what, .. }) in findings.iter().enumerate() {
        let line = format!("{at}: {what}");
        if index > 0 && message.len() + line.len() > BYTES {
            return message + &format!("\nand {} more", findings.len() - index);
        }
        if index > 0 {
            message.push('\n');
        }
        message.extend(line.chars().take(BYTES));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::{super::check::Wrong, *};
    use crate::api::{PromotionPolicy, promotionpolicy::PromotionPolicySpec};

    fn finding(wrong: Wrong, message: &str) -> Finding {
        Finding { wrong, at: "spec.gates[smoke].settings/checks/0/path".into(), message: message.into() }
    }

    fn accepted(findings: &[Finding]) -> (String, String, String) {
        let policy = PromotionPolicy::new("policy", PromotionPolicySpec::default());
        let condition = report(&policy, findings, Timestamp::UNIX_EPOCH).conditions.remove(0);
        (condition.status, condition.reason, condition.message)
    }

    #[test]
    fn a_policy_without_findings_is_accepted() {
        assert_eq!(accepted(&[]), ("True".into(), "Accepted".into(), String::new()));
    }

    #[test]
    fn the_message_says_line_by_line_where_and_what() {
        let findings = [finding(Wrong::InvalidSettings, "must start with /"), finding(Wrong::PluginNotFound, "x")];
        let (status, reason, message) = accepted(&findings);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "InvalidSettings"));
        assert!(message.starts_with("spec.gates[smoke].settings/checks/0/path: must start with /\n"), "{message}");
    }

    #[test]
    fn a_flood_of_findings_is_counted_and_not_told() {
        let findings = vec![finding(Wrong::InvalidSettings, &"x".repeat(1500)); 9];
        let (.., message) = accepted(&findings);
        assert!(message.len() < 4096 && message.ends_with("\nand 8 more"), "{message}");
    }
}
