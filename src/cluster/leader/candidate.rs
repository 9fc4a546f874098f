//! PURE. What an answer of the API means to one who wants the Lease, and what to ask next.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{ResourceExt, api::ObjectMeta};

/// Who has seen our Lease unchanged for so long may take it.
pub const LIFE: Duration = Duration::from_secs(15);
/// We hold it for so long from the moment in which a renewal was sent. The rest of its life is for what is still under
/// way then, and for clocks that do not run alike.
pub const HOLD: Duration = Duration::from_secs(10);
/// Between two renewals.
pub const RENEWAL: Duration = Duration::from_secs(2);
/// Between two looks at somebody else's, and before what went wrong is tried again.
pub const LOOK: Duration = Duration::from_secs(1);

/// A moment by the clock of this machine, counted from its start.
pub type Moment = Duration;

/// Which Lease, and who wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who wants it. No two processes that live at the same time have the same.
    pub identity: String,
}

impl fmt::Display for Lock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Lease {}/{}", self.namespace, self.name)
    }
}

/// What to ask of the API.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// What it is.
    Read,
    /// To make it: nobody else may have.
    Create(Lease),
    /// To make this of it, if it is still at the version in there.
    Replace(Lease),
}

/// What it answered.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is looked into at once")]
pub enum Answer {
    /// This is the Lease now.
    Is(Lease),
    /// There is none.
    Absent,
    /// Somebody else wrote it first.
    Conflict,
    /// Nothing that says what became of the question.
    Unknown,
}

/// What that means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is ours until then.
    Ours(Moment),
    /// It is somebody's.
    Theirs(String),
    /// It may become ours with the next question, or nobody knows.
    Open,
}

/// One who wants the Lease.
#[derive(Clone, Debug)]
pub struct Candidate {
    lock: Lock,
    seen: Option<Seen>,
    /// Whether the last answer told what the Lease is, so that the next question may build on it.
    sure: bool,
}

/// The Lease as it was last seen.
#[derive(Clone, Debug)]
struct Seen {
    lease: Lease,
    /// Since when it has been seen at this version.
    since: Moment,
}

impl Candidate {
    /// One that has seen nothing yet.
    #[must_use]
    pub fn new(lock: Lock) -> Self {
        Self { lock, seen: None, sure: false }
    }

    /// Which Lease it is about.
    #[must_use]
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// What to ask now. `time` is what people read in the Lease.
    #[must_use]
    pub fn asks(&self, now: Moment, time: Timestamp) -> Question {
        match &self.seen {
            _ if !self.sure => Question::Read,
            None => Question::Create(Lease {
                metadata: ObjectMeta {
                    namespace: Some(self.lock.namespace.clone()),
                    name: Some(self.lock.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.claim(&LeaseSpec::default(), time)),
            }),
            Some(seen) if self.is_free(seen, now) => {
                let before = seen.lease.spec.clone().unwrap_or_default();
                Question::Replace(Lease { spec: Some(self.claim(&before, time)), ..seen.lease.clone() })
            }
            Some(_) => Question::Read,
        }
    }

    /// Takes in what was answered at `now` to what was asked at `sent`. Returns what it means, and how long to wait before
    /// the next question.
    pub fn hears(&mut self, question: &Question, sent: Moment, answer: Answer, now: Moment) -> (Standing, Duration) {
        self.sure = matches!(answer, Answer::Is(_) | Answer::Absent);
        match (question, answer) {
            (Question::Read, Answer::Is(lease)) => {
                let seen = self.sees(lease, now);
                match holder(&seen.lease).map(str::to_owned) {
                    Some(holder) if !self.may_take(now) => (Standing::Theirs(holder), LOOK),
                    _ => (Standing::Open, Duration::ZERO),
                }
            }
            (Question::Create(_) | Question::Replace(_), Answer::Is(lease)) => {
                self.sees(lease, now);
                (Standing::Ours(sent + HOLD), RENEWAL)
            }
            (Question::Read, Answer::Absent) => {
                self.seen = None;
                (Standing::Open, Duration::ZERO)
            }
            (Question::Create(_) | Question::Replace(_), Answer::Absent) => {
                self.seen = None;
                (Standing::Open, LOOK)
            }
            (_, Answer::Conflict | Answer::Unknown) => (Standing::Open, LOOK),
        }
    }

    /// What gives the Lease up, if it was ours when it was last seen: the next one need not wait for its end.
    #[must_use]
    pub fn parts(&self) -> Option<Lease> {
        let Seen { lease, .. } = self.seen.as_ref().filter(|seen| self.sure && self.is_ours(seen))?;
        let spec = LeaseSpec { holder_identity: None, ..lease.spec.clone().unwrap_or_default() };
        Some(Lease { spec: Some(spec), ..lease.clone() })
    }

    /// What did not change goes on being unchanged since it was seen first.
    fn sees(&mut self, mut lease: Lease, now: Moment) -> &Seen {
        // What is sent back without it keeps it.
        lease.metadata.managed_fields = None;
        let same = self.seen.take().filter(|seen| seen.lease.resource_version() == lease.resource_version());
        self.seen.insert(Seen { lease, since: same.map_or(now, |seen| seen.since) })
    }

    fn may_take(&self, now: Moment) -> bool {
        self.seen.as_ref().is_none_or(|seen| self.is_free(seen, now))
    }

    /// Nobody's, or ours, or left alone for as long as it says.
    fn is_free(&self, seen: &Seen, now: Moment) -> bool {
        holder(&seen.lease).is_none() || self.is_ours(seen) || now >= seen.since + life(&seen.lease)
    }

    fn is_ours(&self, seen: &Seen) -> bool {
        holder(&seen.lease) == Some(&self.lock.identity)
    }

    /// The Lease as ours. What only others know of in it stays.
    fn claim(&self, before: &LeaseSpec, time: Timestamp) -> LeaseSpec {
        let mut claim = before.clone();
        if claim.holder_identity.as_ref() != Some(&self.lock.identity) {
            claim.lease_transitions = Some(claim.lease_transitions.map_or(0, |count| count.saturating_add(1)));
            claim.acquire_time = Some(MicroTime(time));
            claim.holder_identity = Some(self.lock.identity.clone());
        }
        claim.renew_time = Some(MicroTime(time));
        claim.lease_duration_seconds = i32::try_from(LIFE.as_secs()).ok();
        claim
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// How long others say that theirs lives.
fn life(lease: &Lease) -> Duration {
    let said = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
    said.and_then(|seconds| u64::try_from(seconds).ok()).map_or(LIFE, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn candidate(identity: &str) -> Candidate {
        Candidate::new(Lock { namespace: "ns".into(), name: "lock".into(), identity: identity.into() })
    }

    fn lease(version: u64, holder: &str, seconds: i32) -> Lease {
        serde_json::from_value(json!({
            "metadata": { "namespace": "ns", "name": "lock", "resourceVersion": version.to_string() },
            "spec": { "holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": 3 },
        }))
        .expect("a Lease")
    }

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    fn time() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    /// Asks at `now` and hears `answer` at once.
    fn turn(candidate: &mut Candidate, now: Moment, answer: Answer) -> (Question, Standing, Duration) {
        let question = candidate.asks(now, time());
        let (standing, pause) = candidate.hears(&question, now, answer, now);
        (question, standing, pause)
    }

    fn spec(question: Question) -> LeaseSpec {
        match question {
            Question::Create(lease) | Question::Replace(lease) => lease.spec.expect("a spec"),
            Question::Read => panic!("it only reads"),
        }
    }

    #[test]
    fn what_an_answer_means_and_what_is_asked_next() {
        let ours = || Answer::Is(lease(7, "me", 15));
        let theirs = || Answer::Is(lease(7, "other", 15));
        let held = Standing::Theirs("other".to_owned());
        for (rule, answer, standing, pause, reads) in [
            ("another one's is looked at again", theirs(), held, LOOK, true),
            ("what was ours before a restart is taken up at once", ours(), Standing::Open, Duration::ZERO, false),
            ("given up: it is taken at once", Answer::Is(lease(7, "", 15)), Standing::Open, Duration::ZERO, false),
            ("there is none: it is made at once", Answer::Absent, Standing::Open, Duration::ZERO, false),
            ("no answer: asked again", Answer::Unknown, Standing::Open, LOOK, true),
        ] {
            let mut me = candidate("me");
            let (first, said, wait) = turn(&mut me, at(100), answer);
            assert_eq!((first, said, wait), (Question::Read, standing, pause), "{rule}");
            assert_eq!(me.asks(at(101), time()) == Question::Read, reads, "{rule}");
        }
    }

    #[test]
    fn what_a_write_came_to() {
        for (rule, answer, standing, pause, reads) in [
            (
                "ours, counted from when it was sent",
                Answer::Is(lease(8, "me", 15)),
                Standing::Ours(at(110)),
                RENEWAL,
                false,
            ),
            ("somebody was faster: it is read first", Answer::Conflict, Standing::Open, LOOK, true),
            ("nobody knows what came of it: likewise", Answer::Unknown, Standing::Open, LOOK, true),
            ("somebody deleted it: it is made anew", Answer::Absent, Standing::Open, LOOK, false),
        ] {
            let mut me = candidate("me");
            turn(&mut me, at(99), Answer::Is(lease(7, "me", 15)));
            let question = me.asks(at(100), time());
            assert!(matches!(question, Question::Replace(_)), "{rule}");
            assert_eq!(me.hears(&question, at(100), answer, at(103)), (standing, pause), "{rule}");
            assert_eq!(me.asks(at(104), time()) == Question::Read, reads, "{rule}");
        }
    }

    #[test]
    fn anothers_is_free_when_it_was_seen_unchanged_for_as_long_as_it_says() {
        let mut me = candidate("me");
        let mut look = |now, version, seconds| {
            let answer = Answer::Is(lease(version, "other", seconds));
            me.hears(&Question::Read, at(now), answer, at(now)).0
        };
        let theirs = Standing::Theirs("other".to_owned());
        assert_eq!(look(100, 7, 15), theirs, "however old its times are");
        assert_eq!(look(114, 7, 15), theirs);
        assert_eq!(look(115, 8, 15), theirs, "renewed: counted anew");
        assert_eq!(look(129, 8, 15), theirs);
        assert_eq!(look(130, 8, 15), Standing::Open);
        assert_eq!(look(131, 9, 60), theirs, "as long as it says");
        assert_eq!(look(190, 9, 60), theirs);
        let taken = me.asks(at(191), time());
        let claim = spec(taken);
        assert_eq!((claim.holder_identity.as_deref(), claim.lease_transitions), (Some("me"), Some(4)));
    }

    #[test]
    fn a_claim_says_who_since_when_and_for_how_long() {
        let mut me = candidate("me");
        turn(&mut me, at(100), Answer::Absent);
        let first = spec(me.asks(at(100), time()));
        assert_eq!((first.holder_identity.as_deref(), first.lease_duration_seconds), (Some("me"), Some(15)));
        assert_eq!((first.lease_transitions, &first.acquire_time), (Some(0), &Some(MicroTime(time()))));

        let made = Lease { spec: Some(first.clone()), ..lease(7, "me", 15) };
        turn(&mut me, at(100), Answer::Is(made));
        let later = time() + Duration::from_secs(2);
        let renewed = spec(me.asks(at(102), later));
        assert_eq!(renewed, LeaseSpec { renew_time: Some(MicroTime(later)), ..first }, "still the same hold");
    }

    #[test]
    fn only_what_is_ours_is_given_up() {
        let mut me = candidate("me");
        assert_eq!(me.parts(), None);
        turn(&mut me, at(100), Answer::Is(lease(7, "other", 15)));
        assert_eq!(me.parts(), None);
        turn(&mut me, at(101), Answer::Is(lease(8, "me", 15)));
        let given_up = me.parts().expect("it is ours");
        assert_eq!((holder(&given_up), given_up.resource_version().as_deref()), (None, Some("8")));
    }
}
