//! PURE. The evidence of an upgrade, one gate at a time: what is recorded, what has to run, what it all says.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};

use super::facts::{Judgement, after};
use crate::{
    api::{
        promotion::{GateCost, GateEvidence, GateOutcome},
        promotionpolicy::{Enforcement, Lack},
    },
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
    /// Gates that passed and judge again.
    pub rechecks: Vec<GateEvidence>,
    /// What it says together.
    pub judgement: Judgement,
    /// Attempts that are on record and have to run, and those that have ended in this pass.
    pub running: Vec<Running>,
    /// When to look again.
    pub again: Option<Timestamp>,
    /// Every gate has its outcome, those that are not obeyed included, and none refuses.
    pub complete: bool,
    /// When the last of the gates that are asked has to have answered.
    pub ends: Option<Timestamp>,
    /// A gate that cannot be asked yet: its plugin is still being loaded.
    pub loading: Option<String>,
    /// What a person should read first.
    pub message: String,
}

/// An attempt that has to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// The gate.
    pub gate: Gate,
    /// What the attempt is known by.
    pub key: TrialKey,
    /// The bytes that judge.
    pub digest: Digest,
    /// What the gate's last wait left behind.
    pub state: Option<Vec<u8>>,
    /// It may begin now. One that was begun goes on in any case.
    pub may_begin: bool,
}

/// What gates are judged with.
#[derive(Clone, Copy)]
pub struct Bench<'a> {
    /// UID of the upgrade's record, once there is one.
    pub promotion: Option<&'a str>,
    /// Everything as observed.
    pub observed: &'a Observed,
    /// The candidate can be asked: an attempt may begin.
    pub may_run: bool,
    /// The time.
    pub now: Timestamp,
}

/// Judges every gate. `recorded` and `rechecks` are the evidence as observed.
#[must_use]
pub fn judge(gates: &[Gate], recorded: &[GateEvidence], rechecks: &[GateEvidence], bench: Bench<'_>) -> Judged {
    let mut judged = Judged {
        evidence: Vec::new(),
        rechecks: Vec::new(),
        judgement: Judgement::Passed,
        running: Vec::new(),
        again: None,
        complete: false,
        ends: None,
        loading: None,
        message: String::new(),
    };
    for gate in gates {
        let find = |entries: &'_ [GateEvidence]| {
            entries.iter().find(|entry| entry.name == gate.name && entry.entry_hash == gate.hash).cloned()
        };
        let prior = find(recorded);
        let mut entry = match &prior {
            None if bench.may_run => begin(gate, 1, Begun::default(), bench),
            // On record from the start: a gate that is taken away later voids an approval given before.
            None => pending(gate, bench),
            Some(prior) => advance(gate, prior, bench),
        };
        judged.run(gate, &entry, prior.as_ref(), bench);
        let before = find(rechecks);
        if let Some(recheck) = recheck(gate, &entry, before.as_ref(), bench) {
            if is_final(recheck.outcome) {
                entry = recheck;
            } else {
                judged.run(gate, &recheck, before.as_ref(), bench);
                judged.rechecks.push(recheck);
            }
        }
        entry.waived = waives(gate, entry.outcome);
        judged.note(gate, entry, bench);
    }
    judged.complete =
        judged.judgement == Judgement::Passed && judged.evidence.iter().all(|entry| is_final(entry.outcome));
    if judged.message.is_empty() && judged.judgement == Judgement::Undecided {
        let decided = judged.evidence.iter().filter(|entry| entry.outcome == GateOutcome::Pass).count();
        judged.message = format!("{decided} of {} gates passed", gates.len());
    }
    judged
}

impl Judged {
    /// Once traffic has moved: what was said before stands beside it. Gates that are only recorded are waited for, too,
    /// for they have no other time. `settled` where the replaced side is let go, and nobody is asked any more.
    pub fn stand_in(&mut self, recorded: &[GateEvidence], settled: bool) {
        let said = std::mem::take(&mut self.evidence);
        let now = |entry: &GateEvidence| said.iter().find(|said| said.name == entry.name).unwrap_or(entry).clone();
        self.evidence = recorded.iter().map(now).collect();
        if settled {
            self.judgement = Judgement::Passed;
        } else if self.judgement == Judgement::Passed && !self.complete {
            self.judgement = Judgement::Undecided;
        }
    }

    /// Has an attempt run, if it is on record already, and looks again when there is something to see.
    fn run(&mut self, gate: &Gate, entry: &GateEvidence, prior: Option<&GateEvidence>, bench: Bench<'_>) {
        if !is_final(entry.outcome) {
            self.look_at(entry.not_before.as_ref().map(|at| at.0));
            self.look_at(lost_at(gate, entry).filter(|_| entry.outcome == GateOutcome::Running));
        }
        let Some((promotion, prior)) = bench.promotion.zip(prior) else { return };
        let key = key(promotion, prior);
        let stands = prior == entry;
        // Once begun it runs to its end, whatever becomes of the candidate: begun again it would be another attempt. What it
        // said is kept until the caches show that it is on record: who still reads that it runs would ask again.
        if prior.outcome == GateOutcome::Running && (stands || bench.observed.trials.contains_key(&key)) {
            self.running.push(Running {
                gate: gate.clone(),
                key,
                digest: Digest::from(prior.digest.clone()),
                state: prior.state.clone().map(|state| state.0),
                may_begin: bench.may_run && stands,
            });
        }
    }

    /// What an entry adds to the whole.
    fn note(&mut self, gate: &Gate, entry: GateEvidence, bench: Bench<'_>) {
        let said = says(gate, entry.outcome);
        self.judgement = worse(self.judgement, said);
        if matches!(said, Judgement::Failed | Judgement::Held) && (self.message.is_empty() || said == self.judgement) {
            self.message = sentence(&entry);
        }
        if said == Judgement::Undecided {
            self.ends = self.ends.max(ends(gate, &entry));
            if entry.outcome == GateOutcome::Pending && bench.may_run {
                let (kind, name) = (gate.plugin.kind(), &gate.plugin.name);
                self.loading = Some(format!("gate {} cannot be asked yet: {kind} {name} is being loaded", gate.name));
            }
        }
        if entry.outcome == GateOutcome::Pass {
            self.look_at(entry.valid_until.as_ref().map(|at| at.0));
            self.look_at(due(gate, &entry).filter(|_| bench.may_run));
        }
        self.evidence.push(entry);
    }

    fn look_at(&mut self, at: Option<Timestamp>) {
        self.again = [self.again, at].into_iter().flatten().min();
    }
}

/// What an outcome says about the upgrade, by the rules of its gate.
fn says(gate: &Gate, outcome: GateOutcome) -> Judgement {
    let lack = |rule| match rule {
        Lack::Hold => Judgement::Held,
        Lack::Fail => Judgement::Failed,
        Lack::Waive => Judgement::Passed,
    };
    match (gate.enforcement, outcome) {
        (Enforcement::DryRun, _) | (Enforcement::Enforce, GateOutcome::Pass) => Judgement::Passed,
        (Enforcement::Enforce, GateOutcome::Fail) => Judgement::Failed,
        (Enforcement::Enforce, GateOutcome::Inconclusive) => lack(gate.on_inconclusive),
        (Enforcement::Enforce, GateOutcome::Error) => lack(gate.on_error),
        (
            Enforcement::Enforce,
            GateOutcome::Pending | GateOutcome::Running | GateOutcome::Waiting | GateOutcome::Retrying,
        ) => Judgement::Undecided,
    }
}

/// A lack of knowledge that the policy's author does without. Said where it happens.
fn waives(gate: &Gate, outcome: GateOutcome) -> bool {
    let rule = match outcome {
        GateOutcome::Inconclusive => gate.on_inconclusive,
        GateOutcome::Error => gate.on_error,
        GateOutcome::Pending
        | GateOutcome::Running
        | GateOutcome::Waiting
        | GateOutcome::Retrying
        | GateOutcome::Pass
        | GateOutcome::Fail => return false,
    };
    rule == Lack::Waive && gate.enforcement == Enforcement::Enforce
}

fn is_final(outcome: GateOutcome) -> bool {
    match outcome {
        GateOutcome::Pass | GateOutcome::Fail | GateOutcome::Inconclusive | GateOutcome::Error => true,
        GateOutcome::Pending | GateOutcome::Running | GateOutcome::Waiting | GateOutcome::Retrying => false,
    }
}

/// When the time for all trials of a gate is over.
fn ends(gate: &Gate, entry: &GateEvidence) -> Option<Timestamp> {
    entry.since.as_ref().map(|since| after(since.0, gate.deadline))
}

/// When an attempt of which nothing is heard is given up. The host has ended it by then, if there is one.
fn lost_at(gate: &Gate, entry: &GateEvidence) -> Option<Timestamp> {
    ends(gate, entry).map(|ends| after(ends, gate.timeout))
}

/// When a gate that passed judges again.
fn due(gate: &Gate, entry: &GateEvidence) -> Option<Timestamp> {
    Some(after(entry.finished_at.as_ref()?.0, gate.recheck_interval?))
}

/// The next judgement of a gate that passed, by the same bytes; none while it is not due or cannot be begun.
fn recheck(gate: &Gate, entry: &GateEvidence, prior: Option<&GateEvidence>, bench: Bench<'_>) -> Option<GateEvidence> {
    let at = due(gate, entry).filter(|_| entry.outcome == GateOutcome::Pass && bench.may_run)?;
    let recheck = match prior {
        Some(prior) => advance(gate, prior, bench),
        None if at <= bench.now => begin(gate, 1, Begun { digest: entry.digest.clone(), ..Begun::default() }, bench),
        None => return None,
    };
    (recheck.outcome != GateOutcome::Pending).then_some(recheck)
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
pub(super) fn pending(gate: &Gate, bench: Bench<'_>) -> GateEvidence {
    GateEvidence {
        name: gate.name.clone(),
        when: gate.when,
        plugin: gate.plugin.short(),
        entry_hash: gate.hash.clone(),
        attempt: 0,
        host: bench.observed.host.clone(),
        dry_run: gate.enforcement == Enforcement::DryRun,
        ..GateEvidence::default()
    }
}

/// What an attempt takes over from those before it.
#[derive(Clone, Debug, Default)]
struct Begun {
    /// When the first of them began.
    since: Option<Time>,
    /// The bytes that judged: pinned until they have said something. Empty where nothing has judged yet.
    digest: String,
    /// What the last wait left behind.
    state: Option<ByteString>,
}

impl Begun {
    fn by(prior: &GateEvidence) -> Self {
        Self { since: prior.since.clone(), digest: prior.digest.clone(), state: prior.state.clone() }
    }
}

/// A new attempt, unless the plugin is still being loaded. A gate that cannot run is an error on record, so that the
/// upgrade is held with a reason and not lost.
fn begin(gate: &Gate, attempt: i32, begun: Begun, bench: Bench<'_>) -> GateEvidence {
    let since = begun.since.clone().or(Some(Time(bench.now)));
    let entry = GateEvidence { attempt, since, ..pending(gate, bench) };
    let blocked = |reason: &str, message: String| GateEvidence {
        outcome: GateOutcome::Error,
        reason: Some(reason.into()),
        message: Some(message),
        ..entry.clone()
    };
    let run = |digest: String| GateEvidence {
        digest,
        outcome: GateOutcome::Running,
        started_at: Some(MicroTime(bench.now)),
        state: begun.state.clone(),
        ..entry.clone()
    };
    if let Some(problem) = &gate.problem {
        return blocked("InvalidPolicy", problem.clone());
    }
    match bench.observed.plugins.get(&gate.plugin) {
        None => {
            let (kind, name) = (gate.plugin.kind(), &gate.plugin.name);
            blocked("PluginNotFound", format!("pluginRef.name: there is no {kind} {name:?}"))
        }
        Some(Plugin::Loading) => GateEvidence { since: begun.since, digest: begun.digest, ..pending(gate, bench) },
        // Whatever is installed since: an upgrade is judged by the bytes it was begun with.
        Some(Plugin::Ready(_) | Plugin::Failed { .. }) if !begun.digest.is_empty() => run(begun.digest),
        Some(Plugin::Failed { reason, message }) => {
            let (kind, name) = (gate.plugin.kind(), &gate.plugin.name);
            blocked("PluginNotReady", format!("{kind} {name}: {reason}: {message}"))
        }
        Some(Plugin::Revoked) => {
            blocked("PluginRevoked", format!("spec.revoked of {} {}", gate.plugin.kind(), gate.plugin.name))
        }
        Some(Plugin::Ready(digest)) => run(digest.to_string()),
    }
}

/// What becomes of an entry that is on record.
fn advance(gate: &Gate, prior: &GateEvidence, bench: Bench<'_>) -> GateEvidence {
    let Bench { promotion, observed, may_run, now } = bench;
    let again = |attempt, begun| if may_run { begin(gate, attempt, begun, bench) } else { prior.clone() };
    if observed.plugins.get(&gate.plugin) == Some(&Plugin::Revoked) {
        // Nothing it said or will say counts; when it is back in use, it is asked afresh.
        let next = GateEvidence { digest: String::new(), ..begin(gate, prior.attempt, Begun::default(), bench) };
        return if next.reason == prior.reason && prior.digest.is_empty() { prior.clone() } else { next };
    }
    match prior.outcome {
        GateOutcome::Pending => again(1, Begun::by(prior)),
        GateOutcome::Pass if prior.valid_until.as_ref().is_some_and(|until| until.0 <= now) => {
            let begun = Begun { digest: prior.digest.clone(), ..Begun::default() };
            if may_run { begin(gate, 1, begun, bench) } else { pending(gate, bench) }
        }
        // A pass stands for the bytes that gave it, whatever is installed since.
        GateOutcome::Pass => prior.clone(),
        // Other bytes may know better; so may a plugin that could not run before.
        GateOutcome::Fail | GateOutcome::Inconclusive | GateOutcome::Error => {
            match observed.plugins.get(&gate.plugin) {
                Some(Plugin::Ready(digest)) if digest.as_str() != prior.digest => again(1, Begun::default()),
                _ if prior.digest.is_empty() => {
                    let next = again(1, Begun::default());
                    let same = next.reason == prior.reason && next.message == prior.message;
                    if same { prior.clone() } else { next }
                }
                _ => prior.clone(),
            }
        }
        GateOutcome::Running if prior.host != observed.host => conclude(gate, prior, &interrupted(), now),
        GateOutcome::Running => {
            let report = promotion.and_then(|promotion| observed.trials.get(&key(promotion, prior)));
            let lost = lost_at(gate, prior).is_some_and(|at| at <= now);
            match report {
                Some(report) => conclude(gate, prior, report, now),
                None if lost => conclude(gate, prior, &silent(), now),
                None => prior.clone(),
            }
        }
        GateOutcome::Waiting | GateOutcome::Retrying => {
            if prior.not_before.as_ref().is_some_and(|at| at.0 > now) {
                return prior.clone();
            }
            let attempt = prior.attempt + i32::from(prior.outcome == GateOutcome::Retrying);
            match again(attempt, Begun::by(prior)) {
                // Its host is loading it again: it waits where it is.
                next if next.outcome == GateOutcome::Pending => prior.clone(),
                next => next,
            }
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

/// An attempt that nobody ever heard of again.
fn silent() -> Report {
    Report::of(Outcome::Error {
        blame: Blame::Host,
        message: "nothing was heard of the trial when the gate's deadline was over".into(),
        retry: false,
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
        links: report.links.clone(),
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
    let ends = ends(gate, prior).unwrap_or(Timestamp::MAX);
    let (mut later, mut left, mut valid_until) = (None, None, None);
    match &report.outcome {
        Outcome::Pass(reason) => {
            valid_until = report.valid_for.map(|span| MicroTime(after(now, span)));
            say(GateOutcome::Pass, &reason.code, &reason.message);
        }
        Outcome::Fail(reason) => say(GateOutcome::Fail, &reason.code, &reason.message),
        Outcome::Inconclusive(reason) => say(GateOutcome::Inconclusive, &reason.code, &reason.message),
        Outcome::Wait { reason, after: pause, state } if after(now, *pause) <= ends => {
            later = Some(after(now, *pause));
            left = state.clone().map(ByteString);
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
                left = prior.state.clone();
                say(GateOutcome::Retrying, blame.code(), message);
            } else {
                say(GateOutcome::Error, blame.code(), message);
            }
        }
    }
    GateEvidence { not_before: later.map(MicroTime), state: left, valid_until, ..entry }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PluginKey, trial::Reason};
    use std::sync::Arc;

    fn gate(max_attempts: i32) -> Gate {
        Gate {
            name: "policy/smoke".into(),
            policy: "policy".into(),
            when: Default::default(),
            entry: Default::default(),
            plugin: PluginKey::of_namespace("ns", "http-smoke"),
            settings: serde_json::json!({}),
            grants: Default::default(),
            timeout: Duration::from_secs(30),
            max_attempts,
            retry_backoff: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
            enforcement: Enforcement::Enforce,
            on_error: Lack::Hold,
            on_inconclusive: Lack::Hold,
            recheck_interval: None,
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

    fn bench(observed: &Observed, second: i64) -> Bench<'_> {
        Bench { promotion: Some("uid"), observed, may_run: true, now: now(second) }
    }

    /// Judges with the evidence of the pass before, and the report of the attempt that runs.
    fn next(gate: Gate, before: &Judged, report: Option<Report>, second: i64) -> Judged {
        let mut observed = ready();
        if let (Some(report), Some(entry)) = (report, before.rechecks.first().or(before.evidence.first())) {
            observed.trials.insert(key("uid", entry), Arc::new(report));
        }
        judge(&[gate], &before.evidence, &before.rechecks, bench(&observed, second))
    }

    fn nothing() -> Judged {
        judge(&[], &[], &[], bench(&ready(), 0))
    }

    /// The same with the outcome alone.
    fn step(evidence: &[GateEvidence], outcome: Option<Outcome>, max_attempts: i32, second: i64) -> Judged {
        let before = Judged { evidence: evidence.to_vec(), ..nothing() };
        next(gate(max_attempts), &before, outcome.map(Report::of), second)
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
        let kept: Vec<_> = third.running.iter().map(|kept| (&kept.key, kept.may_begin)).collect();
        assert_eq!((third.judgement, kept), (Judgement::Passed, vec![(&second.running[0].key, false)]));
        assert!(step(&third.evidence, None, 3, 3).running.is_empty(), "the caches show it");
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
        let wait = |seconds| {
            let after = Duration::from_secs(seconds);
            Some(Outcome::Wait { reason: reason("Soaking"), after, state: None })
        };
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
    fn a_gate_that_kills_its_host_every_time_is_held_and_left_alone() {
        let ready = || Plugin::Ready(Digest::from("sha256:a".to_owned()));
        let mut evidence = step(&[], None, 3, 0).evidence;
        for attempt in 1..=3_i32 {
            assert_eq!((evidence[0].attempt, evidence[0].outcome), (attempt, GateOutcome::Running));
            // The host comes back, and loads what it had.
            let lost = Outcome::Error { blame: Blame::Interrupted, message: "it went away".into(), retry: true };
            evidence = step(&evidence, Some(lost), 3, i64::from(attempt) * 10).evidence;
            for plugin in [Plugin::Loading, ready()] {
                let observed = observed(Some(plugin));
                evidence = judge(&[gate(3)], &evidence, &[], bench(&observed, i64::from(attempt) * 10 + 5)).evidence;
            }
        }
        assert_eq!((evidence[0].attempt, evidence[0].reason.as_deref()), (3, Some("Interrupted")));
        for (second, plugin) in [(60, ready()), (3_600, Plugin::Loading), (86_400, ready())] {
            // Nor does another process of the operator try its luck.
            let observed = Observed { host: second.to_string(), ..observed(Some(plugin)) };
            let later = judge(&[gate(3)], &evidence, &[], bench(&observed, second));
            assert_eq!((later.judgement, later.running.len(), later.again), (Judgement::Held, 0, None));
            assert_eq!(later.evidence, evidence);
        }
    }

    #[test]
    fn a_plugin_that_cannot_run_holds_with_a_reason_until_it_can() {
        let judge = |plugin, evidence: &[GateEvidence]| judge(&[gate(3)], evidence, &[], bench(&observed(plugin), 0));
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
        assert_eq!(judge(&[changed], &passed, &[], bench(&ready(), 2)).judgement, Judgement::Undecided);
    }

    #[test]
    fn a_pass_outlives_a_replaced_plugin_and_a_no_does_not() {
        let begun = step(&[], None, 3, 0).evidence;
        let replaced = observed(Some(Plugin::Ready(Digest::from("sha256:b".to_owned()))));
        let after = |outcome| {
            let evidence = step(&begun, Some(outcome), 3, 1).evidence;
            judge(&[gate(3)], &evidence, &[], bench(&replaced, 2)).judgement
        };
        assert_eq!(after(Outcome::Pass(reason("Good"))), Judgement::Passed);
        assert_eq!(after(Outcome::Fail(reason("Bad"))), Judgement::Undecided);
    }

    fn pass() -> Option<Report> {
        Some(Report::of(Outcome::Pass(reason("Good"))))
    }

    #[test]
    fn what_a_wait_leaves_is_there_in_the_next_trial_and_after_an_error_too() {
        let state = Some(vec![1, 2]);
        let wait = Outcome::Wait { reason: reason("Soaking"), after: Duration::from_secs(1), state: state.clone() };
        let waiting = step(&step(&[], None, 3, 0).evidence, Some(wait), 3, 1);
        let again = step(&waiting.evidence, None, 3, 2).evidence;
        assert_eq!(step(&again, None, 3, 3).running[0].state, state);
        let broken = Outcome::Error { blame: Blame::Trap, message: String::new(), retry: true };
        let retrying = step(&again, Some(broken), 3, 3).evidence;
        let again = step(&retrying, None, 3, 10).evidence;
        assert_eq!(step(&again, None, 3, 11).running[0].state, state);
        assert_eq!(step(&again, Some(Outcome::Pass(reason("Good"))), 3, 12).evidence[0].state, None);
    }

    #[test]
    fn a_pass_that_expires_is_asked_for_again_by_the_same_bytes() {
        let report = pass().map(|report| Report { valid_for: Some(Duration::from_secs(10)), ..report });
        let begun = next(gate(3), &nothing(), None, 0);
        let passed = next(gate(3), &begun, report, 1);
        assert_eq!((passed.judgement, passed.again), (Judgement::Passed, Some(now(11))));
        assert_eq!(next(gate(3), &passed, None, 10).judgement, Judgement::Passed);
        let expired = next(gate(3), &passed, None, 11);
        assert_eq!((expired.judgement, expired.evidence[0].outcome), (Judgement::Undecided, GateOutcome::Running));
        let observed = ready();
        let unasked = Bench { may_run: false, ..bench(&observed, 11) };
        assert_eq!(judge(&[gate(3)], &passed.evidence, &[], unasked).judgement, Judgement::Undecided);
    }

    #[test]
    fn a_recheck_leaves_the_old_pass_standing_until_it_has_ended() {
        let gate = || Gate { recheck_interval: Some(Duration::from_secs(60)), ..gate(2) };
        let begun = next(gate(), &nothing(), None, 0);
        let passed = next(gate(), &begun, pass(), 1);
        assert_eq!((passed.again, passed.rechecks.len()), (Some(now(61)), 0));
        let due = next(gate(), &passed, None, 61);
        assert_eq!(
            (due.judgement, due.rechecks[0].outcome, due.running.len()),
            (Judgement::Passed, GateOutcome::Running, 0)
        );
        let running = next(gate(), &due, None, 62);
        assert_eq!((running.judgement, running.running.len()), (Judgement::Passed, 1));
        let good = next(gate(), &running, pass(), 63);
        assert_eq!((good.judgement, good.rechecks.len(), good.again), (Judgement::Passed, 0, Some(now(123))));
        let bad = next(gate(), &running, Some(Report::of(Outcome::Fail(reason("Bad")))), 63);
        assert_eq!((bad.judgement, bad.rechecks.len()), (Judgement::Failed, 0));
        let error = || Some(Report::of(Outcome::Error { blame: Blame::Trap, message: String::new(), retry: true }));
        let retrying = next(gate(), &running, error(), 63);
        assert_eq!((retrying.judgement, retrying.rechecks[0].outcome), (Judgement::Passed, GateOutcome::Retrying));
        let second = next(gate(), &next(gate(), &retrying, None, 70), error(), 71);
        assert_eq!((second.judgement, second.evidence[0].outcome), (Judgement::Held, GateOutcome::Error));
    }

    #[test]
    fn the_author_of_a_policy_says_what_follows_from_a_lack_of_knowledge() {
        let rows = [
            (Lack::Hold, Judgement::Held, false),
            (Lack::Fail, Judgement::Failed, false),
            (Lack::Waive, Judgement::Passed, true),
        ];
        let error = Outcome::Error { blame: Blame::InvalidSettings, message: String::new(), retry: false };
        for (rule, judgement, waived) in rows {
            let on_error = Gate { on_error: rule, ..gate(1) };
            let on_inconclusive = Gate { on_inconclusive: rule, ..gate(1) };
            for (gate, outcome) in [(on_error, error.clone()), (on_inconclusive, Outcome::Inconclusive(reason("Odd")))]
            {
                let begun = next(gate.clone(), &nothing(), None, 0);
                let judged = next(gate, &begun, Some(Report::of(outcome)), 1);
                assert_eq!((judged.judgement, judged.evidence[0].waived), (judgement, waived), "{rule:?}");
            }
        }
    }

    #[test]
    fn a_dry_run_is_recorded_and_neither_obeyed_nor_waited_for() {
        let dry = || Gate { enforcement: Enforcement::DryRun, ..gate(1) };
        let begun = next(dry(), &nothing(), None, 0);
        assert_eq!((begun.judgement, begun.evidence[0].outcome), (Judgement::Passed, GateOutcome::Running));
        assert_eq!(next(dry(), &begun, None, 1).running.len(), 1);
        let failed = next(dry(), &begun, Some(Report::of(Outcome::Fail(reason("Bad")))), 1);
        assert_eq!((failed.judgement, failed.evidence[0].outcome), (Judgement::Passed, GateOutcome::Fail));
        assert!(failed.evidence[0].dry_run && failed.message.is_empty());
    }

    #[test]
    fn attempts_go_on_with_the_bytes_they_were_begun_with() {
        let error = Outcome::Error { blame: Blame::Timeout, message: "slow".into(), retry: true };
        let retrying = step(&step(&[], None, 3, 0).evidence, Some(error), 3, 1).evidence;
        let after = |plugin| judge(&[gate(3)], &retrying, &[], bench(&observed(Some(plugin)), 6)).evidence;
        let replaced = after(Plugin::Ready(Digest::from("sha256:b".to_owned())));
        assert_eq!((replaced[0].outcome, replaced[0].digest.as_str()), (GateOutcome::Running, "sha256:a"));
        assert_eq!(after(Plugin::Loading), retrying, "a host that came back loads it first");
    }

    #[test]
    fn threat_23_a_verdict_is_about_the_bytes_that_ran_and_counts_no_longer_where_those_are_revoked() {
        let begun = step(&[], None, 3, 0).evidence;
        let said = |plugin| {
            let mut observed = observed(Some(plugin));
            observed.trials.insert(key("uid", &begun[0]), Arc::new(pass().expect("a report")));
            judge(&[gate(3)], &begun, &[], bench(&observed, 1))
        };
        let replaced = said(Plugin::Ready(Digest::from("sha256:b".to_owned())));
        assert_eq!((replaced.judgement, replaced.evidence[0].digest.as_str()), (Judgement::Passed, "sha256:a"));
        let revoked = said(Plugin::Revoked);
        assert_eq!((revoked.judgement, revoked.evidence[0].outcome), (Judgement::Held, GateOutcome::Error));
        assert_eq!(revoked.evidence[0].digest, "");
    }

    #[test]
    fn a_revoked_plugin_voids_its_pass_and_is_asked_afresh_when_it_is_back() {
        let begun = step(&[], None, 3, 0).evidence;
        let passed = step(&begun, Some(Outcome::Pass(reason("Good"))), 3, 1).evidence;
        let revoked = observed(Some(Plugin::Revoked));
        let held = judge(&[gate(3)], &passed, &[], bench(&revoked, 2));
        assert_eq!((held.judgement, held.evidence[0].reason.as_deref()), (Judgement::Held, Some("PluginRevoked")));
        let still = judge(&[gate(3)], &held.evidence, &[], bench(&revoked, 3));
        assert_eq!(still.evidence, held.evidence, "said once");
        assert!(judge(&[gate(3)], &begun, &[], bench(&revoked, 2)).running.is_empty());
        assert_eq!(step(&held.evidence, None, 3, 4).evidence[0].outcome, GateOutcome::Running);
    }

    #[test]
    fn a_no_outranks_missing_knowledge_which_outranks_an_open_question() {
        assert_eq!(worse(Judgement::Undecided, Judgement::Held), Judgement::Held);
        assert_eq!(worse(Judgement::Failed, Judgement::Held), Judgement::Failed);
        assert_eq!(worse(Judgement::Passed, Judgement::Undecided), Judgement::Undecided);
    }
}
