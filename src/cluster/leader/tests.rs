//! Elections on a clock of the test's own: questions and answers that are late or lost, processes that are stopped, killed
//! and started again, clocks that do not run alike.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;
use sluice_harness::proptest::{collection::vec, prelude::*};

use super::{
    Lock,
    campaign::PATIENCE,
    candidate::{Answer, Candidate, HOLD, Moment, Question, Standing},
};

/// Milliseconds of the world.
type Time = u64;

/// What becomes of one question, and of who asks it.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// How long it takes to the API; it may still come there when nobody waits for an answer.
    there: Time,
    back: Time,
    fate: Fate,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Well,
    /// The question does not come to the API.
    Lost,
    /// The answer does not come back.
    Unheard,
    /// The process is stopped while it waits, for so long.
    Stopped(Time),
    /// The process is killed while it waits, and another one is started after so long.
    Killed(Time),
    /// The process ends in good order instead, likewise.
    Ended(Time),
}

const CALM: Turn = Turn { there: 5, back: 5, fate: Fate::Well };

fn turn() -> impl Strategy<Value = Turn> {
    let fate = prop_oneof![
        8 => Just(Fate::Well),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Unheard),
        1 => (0_u64..40_000).prop_map(Fate::Stopped),
        1 => (0_u64..20_000).prop_map(Fate::Killed),
        1 => (0_u64..20_000).prop_map(Fate::Ended),
    ];
    let way = || prop_oneof![4 => 1_u64..100, 1 => 0_u64..25_000];
    (way(), way(), fate).prop_map(|(there, back, fate)| Turn { there, back, fate })
}

/// One clock of many: from another start, and a little fast or slow.
#[derive(Clone, Copy, Debug)]
struct Clock {
    from: Time,
    /// In thousandths of the world's.
    rate: Time,
}

impl Clock {
    fn reads(self, time: Time) -> Moment {
        Duration::from_millis(self.from + time * self.rate / 1_000)
    }

    /// When it reads that, at the latest.
    fn when(self, moment: Moment) -> Time {
        let shown = u64::try_from(moment.as_millis()).expect("a short test").saturating_sub(self.from);
        (shown * 1_000).div_ceil(self.rate)
    }
}

struct Process {
    candidate: Candidate,
    clock: Clock,
    turns: std::vec::IntoIter<Turn>,
    /// Until when it may write, once it has won.
    holds: Option<Moment>,
    doing: Doing,
}

#[expect(clippy::large_enum_variant, reason = "there are two of them")]
enum Doing {
    /// Waits to ask, or to be started.
    Rests(Time),
    Waits {
        question: Question,
        sent: Moment,
        /// What the API has answered by then, if that is heard at all.
        answer: Option<Answer>,
        heard: bool,
        until: Time,
    },
}

/// A question on its way.
struct Underway {
    who: usize,
    arrives: Time,
    question: Question,
    sent: Moment,
}

struct World {
    lease: Option<Lease>,
    version: u64,
    processes: Vec<Process>,
    underway: Vec<Underway>,
}

impl World {
    fn of(scripts: Vec<(Vec<Turn>, Clock)>) -> Self {
        let processes = scripts.into_iter().enumerate().map(|(number, (turns, clock))| Process {
            candidate: candidate(number),
            clock,
            turns: turns.into_iter(),
            holds: None,
            doing: Doing::Rests(0),
        });
        Self { lease: None, version: 1, processes: processes.collect(), underway: Vec::new() }
    }

    /// Until every script has ended, and then until somebody must have won.
    fn run(mut self) {
        let mut calm_since = None;
        loop {
            let (time, event) = self.next();
            match event {
                Event::Arrives(index) => self.arrives(time, index),
                Event::Acts(who) => self.acts(time, who),
            }
            if self.processes.iter().any(|process| process.turns.len() > 0) {
                continue;
            }
            // The longest stop may still be under way; then the Lease runs out, and is taken.
            let calm_since = *calm_since.get_or_insert(time);
            if time > calm_since + 130_000 {
                let leads = |process: &&Process| process.holds.is_some_and(|until| process.clock.reads(time) < until);
                assert_eq!(self.processes.iter().filter(leads).count(), 1, "nobody leads");
                return;
            }
        }
    }

    fn next(&self) -> (Time, Event) {
        let arrivals = self.underway.iter().enumerate().map(|(index, one)| (one.arrives, Event::Arrives(index)));
        let acts = self.processes.iter().enumerate().map(|(who, process)| match process.doing {
            Doing::Rests(until) | Doing::Waits { until, .. } => (until, Event::Acts(who)),
        });
        arrivals.chain(acts).min_by_key(|(time, _)| *time).expect("somebody does something")
    }

    /// A question comes to the API.
    fn arrives(&mut self, time: Time, index: usize) {
        let Underway { who, question, sent, .. } = self.underway.swap_remove(index);
        let now = self.lease.as_ref().and_then(ResourceExt::resource_version);
        let answer = match &question {
            Question::Read => self.lease.clone().map_or(Answer::Absent, Answer::Is),
            Question::Create(lease) if now.is_none() => self.write(time, who, lease),
            Question::Replace(lease) if now.is_some() && lease.resource_version() == now => {
                self.write(time, who, lease)
            }
            Question::Replace(_) if now.is_none() => Answer::Absent,
            Question::Create(_) | Question::Replace(_) => Answer::Conflict,
        };
        if let Doing::Waits { answer: heard, sent: of, .. } = &mut self.processes[who].doing
            && *of == sent
        {
            *heard = Some(answer);
        }
    }

    fn write(&mut self, time: Time, who: usize, lease: &Lease) -> Answer {
        if lease.spec.as_ref().is_some_and(|spec| spec.holder_identity.is_some()) {
            self.nobody_else_may_write(time, who);
        }
        self.version += 1;
        let mut lease = lease.clone();
        lease.metadata.resource_version = Some(self.version.to_string());
        self.lease = Some(lease.clone());
        Answer::Is(lease)
    }

    /// The Lease becomes somebody's: by then nobody else writes, nor will by an answer that is still on its way.
    fn nobody_else_may_write(&self, time: Time, who: usize) {
        for (number, process) in self.processes.iter().enumerate().filter(|(number, _)| *number != who) {
            let promised = match &process.doing {
                Doing::Waits {
                    question: Question::Create(_) | Question::Replace(_),
                    sent,
                    answer: Some(Answer::Is(_)),
                    heard: true,
                    ..
                } => Some(*sent + HOLD),
                _ => None,
            };
            for until in [process.holds, promised].into_iter().flatten() {
                let reads = process.clock.reads(time);
                assert!(reads >= until, "{number} holds it until {until:?} by its clock, which reads {reads:?}");
            }
        }
    }

    /// A process has waited for long enough, or is started.
    fn acts(&mut self, time: Time, who: usize) {
        let process = &mut self.processes[who];
        let now = process.clock.reads(time);
        let is_over = |process: &Process| process.holds.is_some_and(|until| now >= until);
        match std::mem::replace(&mut process.doing, Doing::Rests(time)) {
            Doing::Rests(_) if is_over(process) => process.start_again(who, time + 100),
            Doing::Rests(_) => {
                let turn = process.turns.next().unwrap_or(CALM);
                if let Fate::Ended(pause) = turn.fate {
                    let last = process.candidate.parts().filter(|_| process.holds.is_some());
                    process.start_again(who, time + pause);
                    let left = last.map(|lease| Underway {
                        who,
                        arrives: time + turn.there,
                        question: Question::Replace(lease),
                        sent: Moment::MAX,
                    });
                    self.underway.extend(left);
                    return;
                }
                let question = process.candidate.asks(now, Timestamp::UNIX_EPOCH);
                let patience = process.clock.when(now + PATIENCE);
                let back = time + turn.there + turn.back;
                let heard = back <= patience && !matches!(turn.fate, Fate::Lost | Fate::Unheard);
                let mut until = if heard { back } else { patience };
                if let Fate::Stopped(pause) = turn.fate {
                    until += pause;
                }
                if !matches!(turn.fate, Fate::Lost) {
                    let arrives = time + turn.there;
                    self.underway.push(Underway { who, arrives, question: question.clone(), sent: now });
                }
                match turn.fate {
                    Fate::Killed(pause) => process.start_again(who, time + pause),
                    _ => process.doing = Doing::Waits { question, sent: now, answer: None, heard, until },
                }
            }
            Doing::Waits { question, sent, answer, heard, .. } => {
                let answer = answer.filter(|_| heard).unwrap_or(Answer::Unknown);
                let (standing, pause) = process.candidate.hears(&question, sent, answer, now);
                let leads = process.holds.is_some();
                match standing {
                    _ if is_over(process) => return process.start_again(who, time + 100),
                    Standing::Theirs(_) if leads => return process.start_again(who, time + 100),
                    Standing::Ours(until) => process.holds = Some(until),
                    Standing::Theirs(_) | Standing::Open => {}
                }
                let next = [Some(now + pause), process.holds].into_iter().flatten().min().expect("a pause");
                process.doing = Doing::Rests(process.clock.when(next).max(time));
            }
        }
    }
}

enum Event {
    Arrives(usize),
    Acts(usize),
}

impl Process {
    /// Another process in its place, which knows nothing and has its name.
    fn start_again(&mut self, who: usize, at: Time) {
        (self.candidate, self.holds, self.doing) = (candidate(who), None, Doing::Rests(at));
    }
}

fn candidate(number: usize) -> Candidate {
    Candidate::new(Lock { namespace: "ns".into(), name: "lock".into(), identity: format!("process {number}") })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_two_hold_it_and_when_all_is_calm_one_does(
        scripts in vec((vec(turn(), 1..40), (0_u64..1_000_000, 970_u64..=1_030)), 2..=3)
    ) {
        let scripts = scripts.into_iter().map(|(turns, (from, rate))| (turns, Clock { from, rate }));
        World::of(scripts.collect()).run();
    }
}
