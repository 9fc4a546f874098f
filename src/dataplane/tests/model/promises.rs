//! What has to hold after every write, against what is true: what gates really said, about which Pods, by which bytes; what
//! people really asked for; what really serves. None of it is read from the operator's own records of it.

use std::{collections::BTreeSet, fmt};

use jiff::Timestamp;
use serde_json::Value;

use super::{
    super::world::api::entries,
    apiserver::{Answer, Apiserver, Objects, Request, Stored, Verb, text},
    cluster,
    objects::{Key, Kind, hash_of},
    operator::{End, Flight, Reading},
    state::{Says, dataplane, is_approved, live, newest, recorded, wanted},
};
use crate::model::{
    Gate,
    grants::Ceilings,
    names::{self, Role},
    observed::{Plugin, TrialKey},
    trial::Moment,
};

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    /// Which one.
    pub(super) promise: Promise,
    /// By what.
    pub(super) what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.promise.words(), self.what)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Promise {
    Gates,
    Consent,
    Rejection,
    Spec,
    Serving,
    Stable,
    Attempts,
    Bytes,
    Together,
}

impl Promise {
    fn words(self) -> &'static str {
        match self {
            Self::Gates => {
                "a live selector changes to a revision only if, at the commit, every enforced gate of every matching \
                 policy had passed for it, or it was live earlier in the same upgrade"
            }
            Self::Consent => "a revision becomes live only where somebody asked for just that",
            Self::Rejection => "no path leads from a roll-back or an abort to a switch without new input",
            Self::Spec => "what becomes live is what the spec asks for",
            Self::Serving => "at every state some side serves",
            Self::Stable => "the stable side stands until traffic has left it for good, and then for its time",
            Self::Attempts => "an attempt that was begun counts",
            Self::Bytes => "an attempt goes on with the bytes that it was begun with",
            Self::Together => "both Services end at the same side",
        }
    }
}

fn broken(promise: Promise, what: impl Into<String>) -> Result<(), Broken> {
    Err(Broken { promise, what: what.into() })
}

/// A Pod as it was judged.
type Judged = BTreeSet<(String, i64)>;

/// One trial that really ran.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    key: TrialKey,
    digest: String,
    revision: String,
    pods: Judged,
    attempt: i64,
    said: Option<Says>,
    /// Somebody asked for another one, its bytes were taken out of use, or it counted though it never ended.
    over: bool,
}

/// What the annotation was set for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Consent {
    /// It is not there.
    #[default]
    None,
    /// Nobody has seen it yet.
    New,
    /// It was first seen when nothing was staged: for whatever comes next.
    Next,
    /// For this revision.
    For(String),
}

/// Where traffic goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Move {
    to: String,
    revision: String,
    /// When both Services led there.
    at: Option<i64>,
}

/// What is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Truth {
    runs: Vec<Run>,
    consent: Consent,
    /// The version of the DataPlane with the annotation that is there: before that one nobody can have seen it.
    annotated: u32,
    /// The revision that was given up or moved back, until something else is asked for.
    rejected: Option<String>,
    /// The side that traffic comes from.
    live: String,
    moving: Option<Move>,
    /// The policies as they were when the pass under way asked for them.
    rules: Option<Vec<Value>>,
}

impl Truth {
    pub(super) fn hash(&self) -> u64 {
        let runs: Vec<_> = self
            .runs
            .iter()
            .map(|run| {
                let TrialKey { promotion, gate, entry, started: _ } = &run.key;
                (promotion, gate, entry, &run.digest, &run.pods, run.attempt, run.said, run.over)
            })
            .collect();
        let rest = (
            &self.consent,
            &self.rejected,
            &self.live,
            &self.moving,
            self.rules.as_ref().map(|rules| format!("{rules:?}")),
        );
        hash_of(format!("{runs:?}{rest:?}").as_bytes())
    }

    // What people and gates do.

    pub(super) fn edited(&mut self, wanted: &str) {
        if self.rejected.as_deref().is_some_and(|rejected| rejected != wanted) {
            self.rejected = None;
        }
    }

    /// A revision was given up or moved back. What people asked for since, the operator may not have seen; it is asked for all
    /// the same.
    fn reject(&mut self, revision: Option<String>, api: &Apiserver) {
        self.rejected = revision;
        self.edited(&wanted_at(api));
    }

    pub(super) fn annotated(&mut self, version: u32) {
        (self.consent, self.annotated) = (Consent::New, version);
    }

    pub(super) fn retried(&mut self, revision: &str) {
        if self.rejected.as_deref() == Some(revision) {
            self.rejected = None;
        }
        self.revoked();
    }

    /// Whatever ran is asked afresh.
    pub(super) fn revoked(&mut self) {
        self.runs.iter_mut().for_each(|run| run.over = true);
    }

    pub(super) fn said(&mut self, key: &TrialKey, says: Says) {
        self.runs.iter_mut().filter(|run| run.key == *key).for_each(|run| run.said = Some(says));
    }

    /// The clock has jumped: it says no more how long ago anything was.
    pub(super) fn jumped(&mut self) {
        if let Some(at) = self.moving.as_mut().and_then(|moving| moving.at.as_mut()) {
            *at = i64::MIN / 2;
        }
    }

    // What the operator does.

    /// The pass under way has asked for the policies.
    pub(super) fn confirmed(&mut self, answer: &Answer) {
        self.rules = Some(answer.found.iter().map(|found| found.value()["spec"].clone()).collect());
    }

    /// A pass has ended.
    pub(super) fn ended(&mut self, flight: &Flight, end: &End, api: &Apiserver) -> Result<(), Broken> {
        self.rules = None;
        let reading = &flight.reading;
        if end.failed.is_none() {
            self.see(&reading.view);
        }
        // Cancelled by the process that began it, and off the record.
        let cancelled = |run: &&mut Run| {
            run.said.is_none()
                && reading.memory.trials.contains_key(&run.key)
                && !end.wants(&run.key)
                && recorded(&api.objects, &run.key).is_none()
        };
        self.runs.iter_mut().filter(cancelled).for_each(|run| run.over = true);
        for (key, begun) in flight.began(end) {
            let named = |name: &String| reading.view.get(&Key::of(Kind::Pod, name)).map(|pod| judged(pod.value()));
            let pods: Judged = begun.pods.iter().filter_map(named).collect();
            let attempt = recorded(&reading.view, key).map_or(0, |entry| entry["attempt"].as_i64().unwrap_or_default());
            self.attempt(Run {
                key: key.clone(),
                digest: begun.digest.clone(),
                revision: begun.revision.clone(),
                pods,
                attempt,
                said: None,
                over: false,
            })?;
        }
        Ok(())
    }

    /// What an annotation is about is settled when it is first seen.
    fn see(&mut self, view: &Objects) {
        let known = view.get(&dataplane()).filter(|known| known.version >= self.annotated).map(Stored::value);
        let Some(dataplane) = known.filter(|known| is_approved(known) && self.consent != Consent::None) else { return };
        let governed = view.keys().any(|key| key.kind == Kind::PromotionPolicy);
        let wanted = wanted(dataplane);
        // At rest, or while the replaced side lives on: then the next one is staged later, whatever the spec says by now.
        let under_way = newest(view).filter(|(_, newest)| newest.value()["status"]["verdict"].is_null());
        let drains = |live: &str| under_way.is_some_and(|(_, open)| text(open.value(), "/spec/revision") == live);
        let nothing_staged = promoted(view).is_some_and(|live| live == wanted || drains(&live));
        self.consent = match std::mem::take(&mut self.consent) {
            Consent::For(revision) if governed => Consent::For(revision),
            _ if nothing_staged => Consent::Next,
            _ => Consent::For(wanted),
        };
    }

    /// A trial has begun.
    fn attempt(&mut self, run: Run) -> Result<(), Broken> {
        // Asked afresh, it is another run of the same attempt at most.
        self.runs.retain(|before| before.key != run.key || !before.over);
        let same = |before: &&Run| {
            (&before.key.promotion, &before.key.gate, &before.key.entry)
                == (&run.key.promotion, &run.key.gate, &run.key.entry)
                && !before.over
                && before.pods.is_subset(&run.pods)
        };
        for before in self.runs.iter().filter(same) {
            if before.key == run.key {
                return broken(Promise::Attempts, format!("attempt {} of {} ran twice", run.attempt, run.key.gate));
            }
            if before.said.is_none() && run.attempt <= before.attempt {
                let what =
                    format!("{} was asked a {}th time, and a trial before it never ended", run.key.gate, run.attempt);
                return broken(Promise::Attempts, what);
            }
        }
        if let Some(before) = self.runs.iter().rfind(same) {
            let goes_on = run.attempt > before.attempt || before.said == Some(Says::Wait);
            if goes_on && before.digest != run.digest {
                let what = format!("{} was begun by {} and goes on by {}", run.key.gate, before.digest, run.digest);
                return broken(Promise::Bytes, what);
            }
        }
        // One that never ended was counted: what begins afresh once this one has said something counts anew.
        let counted = |before: &&mut Run| before.said.is_none() && run.attempt > before.attempt && same(&&**before);
        self.runs.iter_mut().filter(counted).for_each(|before| before.over = true);
        self.runs.push(run);
        self.runs.sort();
        Ok(())
    }

    /// A write took effect. `reading` is what its pass had read, where it is still under way, and `decided` when it began:
    /// clocks may have jumped since, and nobody looks at one between two writes.
    pub(super) fn written(
        &mut self,
        before: &Apiserver,
        after: &Apiserver,
        request: &Request,
        reading: Option<&Reading>,
        decided: Timestamp,
    ) -> Result<(), Broken> {
        let key = request.key;
        let (old, new) = (before.get(key), after.get(key));
        match key.kind {
            Kind::Service if [live(Role::Ingress), live(Role::Admin)].contains(&key) => {
                let side = |stored: Option<&Stored>| stored.map(|stored| cluster::side(stored.value()).to_owned());
                if let (Some(from), Some(to)) = (side(old), side(new))
                    && from != to
                {
                    self.switched(after, &from, &to, reading, decided)?;
                } else if old.is_none() && self.live.is_empty() {
                    self.live = side(new).unwrap_or_default();
                }
            }
            Kind::Deployment if request.verb == Verb::Delete => {
                let going =
                    old.is_some() && new.is_none_or(|new| !new.value()["metadata"]["deletionTimestamp"].is_null());
                if let Some(old) = old.filter(|_| going) {
                    self.deleted(cluster::side(old.value()), reading, decided)?;
                }
            }
            Kind::Promotion => {
                // The last that counted, and it never ended: what begins afresh after it counts anew.
                let given_up = |run: &&mut Run| {
                    let entry = recorded(&after.objects, &run.key);
                    run.said.is_none() && entry.is_some_and(|entry| entry["outcome"] == "Error")
                };
                self.runs.iter_mut().filter(given_up).for_each(|run| run.over = true);
                let verdict = new.map_or("", |new| text(new.value(), "/status/verdict"));
                let said = old.map_or("", |old| text(old.value(), "/status/verdict"));
                if verdict != said && ["Failed", "RolledBack", "Aborted"].contains(&verdict) {
                    let revision = new.map(|new| text(new.value(), "/spec/revision").to_owned());
                    self.reject(revision, after);
                    if new.is_some_and(|new| !new.value()["spec"]["decision"]["retry"].is_null()) {
                        self.rejected = None;
                    }
                }
            }
            Kind::DataPlane => {
                let approved = |stored: Option<&Stored>| stored.is_some_and(|stored| is_approved(stored.value()));
                if approved(old) && !approved(new) {
                    self.consent = Consent::None;
                }
                self.frozen(old, new, reading)?;
            }
            _ => {}
        }
        for role in [Role::Ingress, Role::Admin] {
            let serving = |api: &Apiserver| {
                let service = api.get(live(role))?;
                serves(&api.objects, cluster::side(service.value())).then_some(())
            };
            // A Pod that somebody has just taken away, or that has just come, could not be seen by a pass that was under way.
            let side = |api: &Apiserver| api.get(live(role)).map(|service| cluster::side(service.value()).to_owned());
            let believed = || {
                let view = &reading?.view;
                (serves(view, &side(after)?) || !serves(view, &side(before)?)).then_some(())
            };
            if serving(before).is_some() && serving(after).is_none() && believed().is_none() {
                return broken(Promise::Serving, format!("after {:?} of {key:?} nobody serves", request.verb));
            }
        }
        Ok(())
    }

    fn switched(
        &mut self,
        after: &Apiserver,
        from: &str,
        to: &str,
        reading: Option<&Reading>,
        decided: Timestamp,
    ) -> Result<(), Broken> {
        let all = |side: &str| {
            [Role::Ingress, Role::Admin]
                .iter()
                .all(|role| after.get(live(*role)).is_some_and(|service| cluster::side(service.value()) == side))
        };
        if to == self.live {
            if all(to)
                && let Some(moved) = self.moving.take()
                // Where users never came to it, the record says whether it was given up.
                && moved.at.is_some()
            {
                self.reject(Some(moved.revision), after);
            }
            return Ok(());
        }
        let known = self.moving.as_ref().is_some_and(|moving| moving.to == to);
        if !known {
            if self.moving.is_some() {
                return broken(Promise::Gates, format!("traffic on its way from {from} went on to {to}"));
            }
            let revision = revision(&after.objects, to).unwrap_or_default();
            self.committed(after, to, &revision, reading)?;
            self.moving = Some(Move { to: to.to_owned(), revision, at: None });
        }
        if let Some(moving) = self.moving.as_mut().filter(|_| all(to)) {
            moving.at.get_or_insert(decided.as_second());
        }
        Ok(())
    }

    /// The first live Service has switched to a side that has not been live.
    fn committed(&self, after: &Apiserver, to: &str, revision: &str, reading: Option<&Reading>) -> Result<(), Broken> {
        if self.rejected.as_deref() == Some(revision) {
            return broken(Promise::Rejection, format!("{revision} was rejected, and traffic moved to it"));
        }
        let asks = wanted_at(after);
        if asks != revision {
            return broken(Promise::Spec, format!("the spec asks for {asks}, and traffic moved to {revision}"));
        }
        // What was on its way when its process ended was decided by it, and checked then.
        let Some(reading) = reading else { return Ok(()) };
        let Some(rules) = &self.rules else {
            return broken(Promise::Gates, "nobody asked whether the policies are still what was decided on");
        };
        let pods: Judged = ready(&reading.view, to).map(judged).collect();
        if pods.is_empty() {
            return broken(Promise::Serving, format!("traffic moved to {revision}, which has no ready Pod"));
        }
        for rule in rules {
            if rule["paused"] == true {
                return broken(Promise::Consent, "a policy is paused");
            }
            for gate in entries(&rule["gates"]) {
                self.passed(gate, revision, &pods, reading)?;
            }
        }
        let dataplane = reading.view.get(&dataplane()).map(Stored::value);
        let annotated = dataplane.is_some_and(is_approved);
        let by_annotation = annotated && (rules.is_empty() || self.consent == Consent::For(revision.to_owned()));
        let by_decision = newest(&reading.view).is_some_and(|(_, newest)| {
            let (spec, decision) = (&newest.value()["spec"], &newest.value()["spec"]["decision"]);
            spec["revision"] == *revision
                && decision["approve"] == true
                && decision["abort"] != true
                && decision["rollback"] != true
        });
        let by_policy = !rules.is_empty() && rules.iter().all(|rule| rule["approval"] == "Automatic");
        if !(by_annotation || by_decision || by_policy) {
            return broken(
                Promise::Consent,
                format!("nobody approved {revision}; the annotation is {:?}", self.consent),
            );
        }
        Ok(())
    }

    /// An enforced gate really passed, for the Pods that are there.
    fn passed(&self, gate: &Value, revision: &str, pods: &Judged, reading: &Reading) -> Result<(), Broken> {
        let entry = serde_json::from_value(gate.clone()).expect("a gate");
        let gate = Gate::of("policy", &entry, "ns", &Ceilings::default());
        if gate.when == Moment::AfterPromotion {
            return Ok(());
        }
        let revoked = reading.plugins.get(&gate.plugin.name) == Some(&Plugin::Revoked);
        let passed = self.runs.iter().any(|run| {
            run.said == Some(Says::Pass)
                && (&run.key.gate, &run.key.entry, &*run.revision) == (&gate.name, &gate.hash, revision)
                && !run.pods.is_empty()
                // Some may have come beside them, or gone: never one in the place of another.
                && (run.pods.is_subset(pods) || pods.is_subset(&run.pods))
        });
        if revoked || !passed {
            let runs: Vec<_> = self.runs.iter().filter(|run| run.key.gate == gate.name).collect();
            return broken(
                Promise::Gates,
                format!("{} has not passed for {revision} on {pods:?}: {runs:?}", gate.name),
            );
        }
        Ok(())
    }

    /// The spec is frozen for what is about to move.
    fn frozen(&self, old: Option<&Stored>, new: Option<&Stored>, reading: Option<&Reading>) -> Result<(), Broken> {
        let frozen = |stored: Option<&Stored>| {
            let status = stored.map(|stored| text(stored.value(), "/status/rollout/conditions/0/reason"));
            status == Some("PromotionInProgress")
        };
        let begins = self.moving.is_none() && !frozen(old) && frozen(new);
        // On its way back it is frozen, too, and what is asked for meanwhile waits.
        let forward = |(_, open): &(Key, &Stored)| open.value()["status"]["commit"]["back"].is_null();
        let open = reading.and_then(|read| newest(&read.view)).filter(forward);
        let (Some(new), Some((_, open))) = (new.filter(|_| begins), open) else { return Ok(()) };
        let (asks, judged) = (wanted(new.value()), text(open.value(), "/spec/revision"));
        if asks != judged {
            return broken(Promise::Spec, format!("{judged} was judged, and {asks} is frozen to become live"));
        }
        Ok(())
    }

    /// A Deployment goes.
    fn deleted(&mut self, side: &str, reading: Option<&Reading>, decided: Timestamp) -> Result<(), Broken> {
        let Some(moving) = self.moving.clone() else {
            let stable = side == self.live;
            return if stable { broken(Promise::Stable, "the live Deployment was deleted") } else { Ok(()) };
        };
        if side == moving.to {
            return broken(Promise::Stable, "the Deployment that traffic moves to was deleted");
        }
        if side != self.live {
            return Ok(());
        }
        // The delay of the policies here, and the operator's own.
        const DELAY: i64 = 30;
        let Some(at) = moving.at else {
            return broken(Promise::Stable, "the stable side was deleted before both Services had left it");
        };
        if (0..DELAY).contains(&(decided.as_second() - at)) {
            return broken(
                Promise::Stable,
                format!("the stable side was deleted after {} s", decided.as_second() - at),
            );
        }
        if let Some(reading) = reading {
            let view = &reading.view;
            let own: BTreeSet<_> = ready(view, &moving.to).map(|pod| text(pod, "/metadata/uid")).collect();
            let takers = cluster::takers(view, &live(Role::Ingress).name());
            let converged = !takers.is_empty() && takers.iter().all(|taker| own.contains(taker));
            // Where its successor is broken and something else is wanted by now, nobody waits for it.
            let given_up = view.get(&dataplane()).is_some_and(|dataplane| wanted(dataplane.value()) != moving.revision);
            if !converged && !given_up {
                return broken(
                    Promise::Stable,
                    format!("the stable side was deleted while traffic went to {takers:?}"),
                );
            }
        }
        self.live = moving.to;
        self.moving = None;
        Ok(())
    }

    /// Everything has come to rest.
    pub(super) fn rests(&self, api: &Apiserver) -> Result<(), Broken> {
        let [ingress, admin] = [Role::Ingress, Role::Admin]
            .map(|role| api.get(live(role)).map(|service| cluster::side(service.value()).to_owned()));
        if ingress != admin {
            return broken(Promise::Together, format!("at rest the live Services lead to {ingress:?} and {admin:?}"));
        }
        Ok(())
    }
}

/// The revision that the spec asks for.
fn wanted_at(api: &Apiserver) -> String {
    api.get(dataplane()).map(|dataplane| wanted(dataplane.value())).unwrap_or_default()
}

fn judged(pod: &Value) -> (String, i64) {
    (text(pod, "/metadata/uid").to_owned(), cluster::restarts(pod))
}

/// The ready Pods of a side.
fn ready<'a>(objects: &'a Objects, side: &'a str) -> impl Iterator<Item = &'a Value> {
    let pods = objects.iter().filter(|(key, _)| key.kind == Kind::Pod).map(|(_, pod)| pod.value());
    pods.filter(move |pod| cluster::is_ready(pod) && pod["metadata"]["labels"][names::SELECTOR] == *side)
}

/// The Deployment of a side that is not on its way out.
fn deployment<'a>(objects: &'a Objects, side: &str) -> Option<&'a Value> {
    let deployments = objects.iter().filter(|(key, _)| key.kind == Kind::Deployment).map(|(_, found)| found.value());
    deployments
        .filter(|found| found["metadata"]["deletionTimestamp"].is_null())
        .find(|found| cluster::side(found) == side)
}

/// Whether a side should have Pods.
fn asked(objects: &Objects, side: &str) -> bool {
    deployment(objects, side).is_some_and(|found| found["spec"]["replicas"].as_i64().unwrap_or(1) > 0)
}

fn serves(objects: &Objects, side: &str) -> bool {
    asked(objects, side) && ready(objects, side).next().is_some()
}

fn revision(objects: &Objects, side: &str) -> Option<String> {
    Some(deployment(objects, side)?["metadata"]["annotations"][names::REVISION].as_str()?.to_owned())
}

/// The revision that is live by record.
fn promoted(objects: &Objects) -> Option<String> {
    let records =
        objects.iter().filter(|(key, _)| key.kind == Kind::ControllerRevision).map(|(_, found)| found.value());
    let newest = records.max_by_key(|record| record["revision"].as_i64())?;
    Some(newest["metadata"]["annotations"][names::REVISION].as_str()?.to_owned())
}
