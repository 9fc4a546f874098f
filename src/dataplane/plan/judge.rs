//! PURE. The evidence of an upgrade, one gate at a time: what is recorded, what has to run, what it all says.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

use super::facts::{Judgement, after};
use crate::{
    api::promotion::{GateCost, GateEvidence, GateOutcome},
    model::{
        Gate,
        observed::{Observed, Plugin, TrialKey},
        trial::{Blame, Digest, Outcome, Report},
    },
};

/// Evidence after this pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// One entry for each gate that was ever begun, in the order of the policies.
    pub evidence: Vec<GateEvidence>,
    /// What it says together.
    pub judgement: Judgement,
    /// Attempts that are on record and have to run: gate and key.
    pub running: Vec<(Gate, TrialKey, Digest)>,
    /// When to look again.
    pub again: Option<Timestamp>,
    /// What a person should read first.
    pub message: String,
}

/// Judges every gate. `recorded` is the evidence as observed; `may_run` says that the candidate can be asked.
#[must_use]
pub fn judge(
    gates: &[Gate],
    recorded: &[GateEvidence],
    promotion: Option<&str>,
    observed: &Observed,
    may_run: bool,
    now: Timestamp,
) -> Judged {
    let mut judged = Judged {
        evidence: Vec::new(),
        judgement: Judgement::Passed,
        running: Vec::new(),
        again: None,
        message: String::new(),
    };
    for gate in gates {
        let prior = recorded.iter().find(|entry| entry.name == gate.name && entry.entry_hash == gate.hash);
        let entry = match prior {
            None if may_run => begin(gate, None, 1, observed, now),
            // On record from the start: a gate that is taken away later voids an approval given before.
            None => pending(gate, observed),
            Some(prior) => advance(gate, prior, promotion, observed, may_run, now),
        };
        note(&mut judged, gate, &entry, prior, promotion, may_run);
        judged.evidence.push(entry);
    }
    if judged.message.is_empty() && judged.judgement == Judgement::Undecided {
        let decided = judged.evidence.iter().filter(|entry| entry.outcome == GateOutcome::Pass).count();
        judged.message = format!("{decided} of {} gates passed", gates.len());
    }
    judged
}

/// What an entry adds to the whole. Only an attempt that is on record already may run.
fn note(
    judged: &mut Judged,
    gate: &Gate,
    entry: &GateEvidence,
    prior: Option<&GateEvidence>,
    promotion: Option<&str>,
    may_run: bool,
) {
    let said = match entry.outcome {
        GateOutcome::Pass => Judgement::Passed,
        GateOutcome::Fail => Judgement::Failed,
        GateOutcome::Inconclusive | GateOutcome::Error => Judgement::Held,
        GateOutcome::Pending | GateOutcome::Running | GateOutcome::Waiting | GateOutcome::Retrying => {
            Judgement::Undecided
        }
    };
    judged.judgement = worse(judged.judgement, said);
    if matches!(said, Judgement::Failed | Judgement::Held) && (judged.message.is_empty() || said == judged.judgement) {
        judged.message = sentence(entry);
    }
    if let Some(at) = entry.not_before.as_ref().filter(|_| said == Judgement::Undecided) {
        judged.again = Some(judged.again.map_or(at.0, |again| again.min(at.0)));
    }
    if let (GateOutcome::Running, true, Some(promotion), Some(prior)) = (entry.outcome, may_run, promotion, prior)
        && prior == entry
    {
        judged.running.push((gate.clone(), key(promotion, entry), Digest::from(entry.digest.clone())));
    }
}

/// A `no` outranks missing knowledge, which outranks an open question.
fn worse(one: Judgement, other: Judgement) -> Judgement {
    let rank = |judgement| match judgement {
        Judgement::Passed => 0,
        Judgement::Undecided => 1,
        Judgement::Held => 2,
        Judgement::Failed => 3,
    };
    if rank(one) >= rank(other) { one } else { other }
}

/// One line about a gate that did not pass.
fn sentence(entry: &GateEvidence) -> String {
    let reason = entry.reason.as_deref().unwrap_or("Unknown");
    let message = entry.message.as_deref().unwrap_or_default();
    format!("gate {}: {reason}: {message}", entry.name)
}

fn key(promotion: &str, entry: &GateEvidence) -> TrialKey {
    TrialKey {
        promotion: promotion.to_owned(),
        gate: entry.name.clone(),
        entry: entry.entry_hash.clone(),
        started: entry.started_at.as_ref().map(|at| at.0.to_string()).unwrap_or_default(),
    }
}

/// A gate that has not been asked.
fn pending(gate: &Gate, observed: &Observed) -> GateEvidence {
    GateEvidence {
        name: gate.name.clone(),
        plugin: gate.plugin.short(),
        entry_hash: gate.hash.clone(),
        attempt: 0,
        host: observed.host.clone(),
        ..GateEvidence::default()
    }
}

/// A new attempt, unless the plugin is still being loaded. A gate that cannot run is an error on record, so that the
/// upgrade is held with a reason and not lost.
fn begin(gate: &Gate, prior: Option<&GateEvidence>, attempt: i32, observed: &Observed, now: Timestamp) -> GateEvidence {
    let since = prior.and_then(|prior| prior.since.clone()).or(Some(Time(now)));
    let entry = GateEvidence { attempt, since, ..pending(gate, observed) };
    let blocked = |reason: &str, message: String| GateEvidence {
        outcome: GateOutcome::Error,
        reason: Some(reason.into()),
        message: Some(message),
        ..entry.clone()
    };
    if let Some(problem) = &gate.problem {
        return blocked("InvalidPolicy", problem.clone());
    }
    match observed.plugins.get(&gate.plugin) {
        None => {
            let (kind, name) = (gate.plugin.kind(), &gate.plugin.name);
            blocked("PluginNotFound", format!("pluginRef.name: there is no {kind} {name:?}"))
        }
        Some(Plugin::Loading) => prior.cloned().unwrap_or_else(|| pending(gate, observed)),
        Some(Plugin::Failed { reason, message }) => {
            let (kind, name) = (gate.plugin.kind(), &gate.plugin.name);
            blocked("PluginNotReady", format!("{kind} {name}: {reason}: {message}"))
        }
        Some(Plugin::Revoked) => {
            blocked("PluginRevoked", format!("spec.revoked of {} {}", gate.plugin.kind(), gate.plugin.name))
        }
        Some(Plugin::Ready(digest)) => GateEvidence {
            digest: digest.to_string(),
            outcome: GateOutcome::Running,
            started_at: Some(MicroTime(now)),
            ..entry
        },
    }
}

/// What becomes of an entry that is on record.
fn advance(
    gate: &Gate,
    prior: &GateEvidence,
    promotion: Option<&str>,
    observed: &Observed,
    may_run: bool,
    now: Timestamp,
) -> GateEvidence {
    let again = |attempt, since: Option<&GateEvidence>| {
        if may_run { begin(gate, since, attempt, observed, now) } else { prior.clone() }
    };
    if observed.plugins.get(&gate.plugin) == Some(&Plugin::Revoked) {
        // Nothing it said or will say counts; when it is back in use, it is asked afresh.
        let next = GateEvidence { digest: String::new(), ..begin(gate, None, prior.attempt, observed, now) };
        return if next.reason == prior.reason && prior.digest.is_empty() { prior.clone() } else { next };
    }
    match prior.outcome {
        GateOutcome::Pending => again(1, None),
        // A pass stands for the bytes that gave it, whatever is installed since.
        GateOutcome::Pass => prior.clone(),
        // Other bytes may know better; so may a plugin that could not run before.
        GateOutcome::Fail | GateOutcome::Inconclusive | GateOutcome::Error => {
            match observed.plugins.get(&gate.plugin) {
                Some(Plugin::Ready(digest)) if digest.as_str() != prior.digest => again(1, None),
                _ if prior.digest.is_empty() => {
                    let next = again(1, None);
                    let same = next.reason == prior.reason && next.message == prior.message;
                    if same { prior.clone() } else { next }
                }
                _ => prior.clone(),
            }
        }
        GateOutcome::Running if prior.host != observed.host => conclude(gate, prior, &interrupted(), now),
        GateOutcome::Running => {
            let report = promotion.and_then(|promotion| observed.trials.get(&key(promotion, prior)));
            report.map_or_else(|| prior.clone(), |report| conclude(gate, prior, report, now))
        }
        GateOutcome::Waiting | GateOutcome::Retrying => {
            if prior.not_before.as_ref().is_some_and(|at| at.0 > now) {
                return prior.clone();
            }
            let attempt = prior.attempt + i32::from(prior.outcome == GateOutcome::Retrying);
            again(attempt, Some(prior))
        }
    }
}

/// An attempt whose process is gone: nobody will ever know how it ended, so it counts.
fn interrupted() -> Report {
    Report::of(Outcome::Error {
        blame: Blame::Interrupted,
        message: "the operator was restarted while the gate ran".into(),
        retry: true,
    })
}

/// Puts a report on record.
fn conclude(gate: &Gate, prior: &GateEvidence, report: &Report, now: Timestamp) -> GateEvidence {
    let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    let cost = GateCost {
        cpu_millis: millis(report.cost.cpu),
        wall_millis: millis(report.cost.wall),
        memory_bytes: i64::try_from(report.cost.memory).unwrap_or(i64::MAX),
        requests: report.cost.requests.into(),
    };
    let mut entry = GateEvidence {
        finished_at: Some(MicroTime(now)),
        not_before: None,
        measurements: report.measurements.clone(),
        denied: report.denials.clone(),
        answered: report.answered.clone(),
        unverified_tls: report.unverified_tls,
        cost: Some(cost),
        ..prior.clone()
    };
    let mut say = |outcome, reason: &str, message: &str| {
        entry.outcome = outcome;
        entry.reason = Some(reason.to_owned());
        entry.message = Some(message.to_owned());
    };
    let ends = prior.since.as_ref().map_or(Timestamp::MAX, |since| after(since.0, gate.deadline));
    let mut later = None;
    match &report.outcome {
        Outcome::Pass(reason) => say(GateOutcome::Pass, &reason.code, &reason.message),
        Outcome::Fail(reason) => say(GateOutcome::Fail, &reason.code, &reason.message),
        Outcome::Inconclusive(reason) => say(GateOutcome::Inconclusive, &reason.code, &reason.message),
        Outcome::Wait { reason, after: pause } if after(now, *pause) <= ends => {
            later = Some(after(now, *pause));
            say(GateOutcome::Waiting, &reason.code, &reason.message);
        }
        Outcome::Wait { reason, .. } => {
            let message = format!("still waiting when its deadline was over: {}: {}", reason.code, reason.message);
            say(GateOutcome::Inconclusive, "DeadlineExceeded", &message);
        }
        Outcome::Error { blame, message, retry } => {
            let next = after(now, gate.retry_backoff);
            if *retry && prior.attempt < gate.max_attempts && next <= ends {
                later = Some(next);
                say(GateOutcome::Retrying, blame.code(), message);
            } else {
                say(GateOutcome::Error, blame.code(), message);
            }
        }
    }
    entry.not_before = later.map(MicroTime);
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PluginKey, trial::Reason};
    use std::sync::Arc;

    fn gate(max_attempts: i32) -> Gate {
        Gate {
            name: "policy/smoke".into(),
            plugin: PluginKey::of_namespace("ns", "http-smoke"),
            settings: serde_json::json!({}),
            timeout: Duration::from_secs(30),
            max_attempts,
            retry_backoff: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
            hash: "hash".into(),
            problem: None,
        }
    }

    fn now(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    fn observed(plugin: Option<Plugin>) -> Observed {
        Observed {
            host: "me".into(),
            plugins: plugin.map(|plugin| (PluginKey::of_namespace("ns", "http-smoke"), plugin)).into_iter().collect(),
            ..Observed::default()
        }
    }

    fn ready() -> Observed {
        observed(Some(Plugin::Ready(Digest::from("sha256:a".to_owned()))))
    }

    fn reason(code: &str) -> Reason {
        Reason { code: code.into(), message: "because".into() }
    }

    /// Judges with the evidence of the pass before, and the outcome of the attempt that runs.
    fn step(evidence: &[GateEvidence], outcome: Option<Outcome>, max_attempts: i32, second: i64) -> Judged {
        let mut observed = ready();
        if let (Some(outcome), Some(entry)) = (outcome, evidence.first()) {
            observed.trials.insert(key("uid", entry), Arc::new(Report::of(outcome)));
        }
        judge(&[gate(max_attempts)], evidence, Some("uid"), &observed, true, now(second))
    }

    #[test]
    fn an_attempt_is_recorded_in_one_pass_and_runs_in_a_later_one() {
        let first = step(&[], None, 3, 0);
        assert_eq!(
            (first.judgement, first.evidence[0].outcome, first.running.len()),
            (Judgement::Undecided, GateOutcome::Running, 0)
        );
        let second = step(&first.evidence, None, 3, 1);
        assert_eq!((second.running.len(), &second.evidence), (1, &first.evidence));
        let third = step(&first.evidence, Some(Outcome::Pass(reason("Good"))), 3, 2);
        assert_eq!((third.judgement, third.running.len()), (Judgement::Passed, 0));
    }

    #[test]
    fn a_fail_is_final_and_says_why() {
        let begun = step(&[], None, 3, 0).evidence;
        let failed = step(&begun, Some(Outcome::Fail(reason("UnexpectedStatus"))), 3, 1);
        assert_eq!(failed.judgement, Judgement::Failed);
        assert_eq!(failed.message, "gate policy/smoke: UnexpectedStatus: because");
        assert_eq!(step(&failed.evidence, None, 3, 100).evidence, failed.evidence);
    }

    #[test]
    fn an_error_that_may_go_away_is_tried_again_until_attempts_are_used_up() {
        let error = || Some(Outcome::Error { blame: Blame::Timeout, message: "slow".into(), retry: true });
        let begun = step(&[], None, 2, 0).evidence;
        let retrying = step(&begun, error(), 2, 1);
        assert_eq!((retrying.judgement, retrying.evidence[0].outcome), (Judgement::Undecided, GateOutcome::Retrying));
        assert_eq!(retrying.again, Some(now(6)));
        assert_eq!(step(&retrying.evidence, None, 2, 5).evidence, retrying.evidence, "not before its time");
        let second = step(&retrying.evidence, None, 2, 6);
        assert_eq!((second.evidence[0].attempt, second.evidence[0].outcome), (2, GateOutcome::Running));
        assert_eq!(step(&second.evidence, error(), 2, 7).judgement, Judgement::Held);
    }

    #[test]
    fn an_error_that_stays_holds_at_once() {
        let begun = step(&[], None, 3, 0).evidence;
        let outcome = Outcome::Error { blame: Blame::InvalidSettings, message: "/paths".into(), retry: false };
        assert_eq!(step(&begun, Some(outcome), 3, 1).judgement, Judgement::Held);
    }

    #[test]
    fn waiting_uses_no_attempt_and_ends_at_the_deadline() {
        let wait = |seconds| Some(Outcome::Wait { reason: reason("Soaking"), after: Duration::from_secs(seconds) });
        let begun = step(&[], None, 1, 0).evidence;
        let waiting = step(&begun, wait(30), 1, 1);
        assert_eq!((waiting.evidence[0].outcome, waiting.again), (GateOutcome::Waiting, Some(now(31))));
        let again = step(&waiting.evidence, None, 1, 31);
        assert_eq!((again.evidence[0].attempt, again.evidence[0].outcome), (1, GateOutcome::Running));
        let ended = step(&again.evidence, wait(30), 1, 32);
        assert_eq!((ended.judgement, ended.evidence[0].reason.as_deref()), (Judgement::Held, Some("DeadlineExceeded")));
    }

    #[test]
    fn an_attempt_of_another_process_counts_as_interrupted() {
        let mut begun = step(&[], None, 3, 0).evidence;
        begun[0].host = "somebody else".into();
        let after = step(&begun, None, 3, 1);
        assert_eq!(
            (after.evidence[0].outcome, after.evidence[0].reason.as_deref()),
            (GateOutcome::Retrying, Some("Interrupted"))
        );
        assert_eq!(step(&begun, None, 1, 1).judgement, Judgement::Held, "no free retry");
    }

    #[test]
    fn a_plugin_that_cannot_run_holds_with_a_reason_until_it_can() {
        let judge = |plugin, evidence: &[GateEvidence]| {
            judge(&[gate(3)], evidence, Some("uid"), &observed(plugin), true, now(0))
        };
        let missing = judge(None, &[]);
        assert_eq!(
            (missing.judgement, missing.evidence[0].reason.as_deref()),
            (Judgement::Held, Some("PluginNotFound"))
        );
        let failed =
            judge(Some(Plugin::Failed { reason: "KeyNotFound".into(), message: "no key".into() }), &missing.evidence);
        assert_eq!(failed.evidence[0].reason.as_deref(), Some("PluginNotReady"));
        assert!(failed.message.contains("KeyNotFound: no key"), "{}", failed.message);
        assert_eq!(judge(Some(Plugin::Loading), &[]).judgement, Judgement::Undecided);
        let installed = judge(Some(Plugin::Ready(Digest::from("sha256:a".to_owned()))), &failed.evidence);
        assert_eq!(installed.evidence[0].outcome, GateOutcome::Running);
    }

    #[test]
    fn evidence_of_a_changed_entry_is_no_evidence() {
        let begun = step(&[], None, 3, 0).evidence;
        let passed = step(&begun, Some(Outcome::Pass(reason("Good"))), 3, 1).evidence;
        let changed = Gate { hash: "other".into(), ..gate(3) };
        assert_eq!(judge(&[changed], &passed, Some("uid"), &ready(), true, now(2)).judgement, Judgement::Undecided);
    }

    #[test]
    fn a_pass_outlives_a_replaced_plugin_and_a_no_does_not() {
        let begun = step(&[], None, 3, 0).evidence;
        let replaced = observed(Some(Plugin::Ready(Digest::from("sha256:b".to_owned()))));
        let after = |outcome| {
            let evidence = step(&begun, Some(outcome), 3, 1).evidence;
            judge(&[gate(3)], &evidence, Some("uid"), &replaced, true, now(2)).judgement
        };
        assert_eq!(after(Outcome::Pass(reason("Good"))), Judgement::Passed);
        assert_eq!(after(Outcome::Fail(reason("Bad"))), Judgement::Undecided);
    }

    #[test]
    fn a_revoked_plugin_voids_its_pass_and_is_asked_afresh_when_it_is_back() {
        let begun = step(&[], None, 3, 0).evidence;
        let passed = step(&begun, Some(Outcome::Pass(reason("Good"))), 3, 1).evidence;
        let revoked = observed(Some(Plugin::Revoked));
        let held = judge(&[gate(3)], &passed, Some("uid"), &revoked, true, now(2));
        assert_eq!((held.judgement, held.evidence[0].reason.as_deref()), (Judgement::Held, Some("PluginRevoked")));
        let still = judge(&[gate(3)], &held.evidence, Some("uid"), &revoked, true, now(3));
        assert_eq!(still.evidence, held.evidence, "said once");
        assert!(judge(&[gate(3)], &begun, Some("uid"), &revoked, true, now(2)).running.is_empty());
        assert_eq!(step(&held.evidence, None, 3, 4).evidence[0].outcome, GateOutcome::Running);
    }

    #[test]
    fn a_no_outranks_missing_knowledge_which_outranks_an_open_question() {
        assert_eq!(worse(Judgement::Undecided, Judgement::Held), Judgement::Held);
        assert_eq!(worse(Judgement::Failed, Judgement::Held), Judgement::Failed);
        assert_eq!(worse(Judgement::Passed, Judgement::Undecided), Judgement::Undecided);
    }
}
