//! One state of the whole: the cluster, the process, its pass, and what is true of them.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    super::world::api::entries,
    apiserver::{Apiserver, If, Objects, Stored, Verb, text},
    cluster,
    objects::{Key, Kind, Shared, hash_of, mix},
    operator::{Flight, Memory, Next, Reading, Sent, Unseen},
    promises::{Broken, Truth},
};
use crate::{
    api::dataplane::PROMOTE_WHEN_READY,
    dataplane::fixtures,
    model::{
        Wish,
        names::{self, Role, State as Place},
        observed::{Connection, Plugin, TrialKey},
        trial::{Blame, Digest, Outcome, Reason, Report},
    },
};

/// What happens. Everything up to [`Event::Arrive`] happens by itself, in this order, if nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Event {
    /// The next request of the pass reaches the apiserver, and is answered.
    Step,
    /// All watches that are not held tell what they have to tell.
    Watch,
    /// A pass begins.
    Pass,
    /// A machine does what it has to do next.
    Machine(Key),
    /// The preview answers.
    Answer(bool),
    /// The gate that was asked first has something to say.
    Verdict(Says),
    /// The watches that were held go on.
    Release,
    /// The next of what people do in this story.
    Story,
    /// Half a minute passes.
    Later,
    /// A write that was on its way when its process ended reaches the apiserver.
    Arrive,

    /// The process ends before the next write, and another one begins.
    Crash,
    /// Likewise, and the next write is on its way.
    CrashUnderWay,
    /// Ten seconds pass in which the caches do not show what was written.
    Impatience,
    /// The watch of a kind falls behind.
    Hold(Kind),
    /// A pass begins before the machines and the watches are done.
    Early,
    /// The image in the spec becomes another.
    Edit(u8),
    /// The annotation is set, or set again.
    Approve,
    /// It is taken away.
    Withdraw,
    /// Somebody decides in the record of the newest upgrade.
    Decide(Decision),
    /// A policy changes.
    Policy(Rule),
    /// The plugin of the gate changes.
    Plugin(Bytes),
    /// A Pod is evicted; another one takes its place.
    Evict(Key),
    /// A container of a Pod restarts.
    Restart(Key),
    /// A Pod breaks for good.
    Break(Key),
    /// Another number of Pods is asked for.
    Scale(u8),
    /// Another manager writes to a Service.
    Touch(Key),
    /// The clock jumps by an hour, forwards or backwards.
    Jump(bool),
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Says {
    Pass,
    Fail,
    Error,
    Wait,
    Inconclusive,
}

/// What people decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Decision {
    Approve,
    Abort,
    Rollback,
    Retry,
}

/// What becomes of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Rule {
    AddGate,
    DropGate,
    Pause,
    Resume,
    Remove,
}

/// What becomes of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Bytes {
    Replaced,
    Revoked,
    Restored,
}

/// What people do in a story, when everything has come to rest.
pub(super) type Story = &'static [Event];

pub(super) const IMAGES: [&str; 3] = ["kong:3.9", "kong:3.10", "kong:3.11"];

/// Where an upgrade may stand.
pub(super) const PHASES: [&str; 9] =
    ["Settled", "Staging", "Judging", "Refused", "Waiting", "Switching", "Verifying", "Draining", "Rejected"];

/// Who decides.
const PERSON: &str = "person";

/// When everything begins.
const DAWN: i64 = 1_800_000_000;

/// A write that is on its way though its process has ended, and when that had decided it.
#[derive(Clone, Debug)]
pub(super) struct Late {
    pub(super) sent: Arc<Sent>,
    pub(super) only: If,
    decided: Timestamp,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) api: Apiserver,
    /// What the caches of the operator hold.
    pub(super) view: Arc<Objects>,
    /// Kinds whose watches are behind, a bit each.
    held: u16,
    pub(super) memory: Shared<Memory>,
    process: u8,
    pub(super) flight: Option<Flight>,
    pub(super) late: Option<Late>,
    /// Something has changed since the last pass began.
    asked: bool,
    plugins: Shared<BTreeMap<String, Plugin>>,
    seconds: i64,
    ticks: u16,
    story: Story,
    idle: u8,
    pub(super) truth: Shared<Truth>,
    /// Where the upgrade stands, as the record says.
    phase: &'static str,
}

pub(super) fn dataplane() -> Key {
    Key::of(Kind::DataPlane, "dp")
}

pub(super) fn policy() -> Key {
    Key::of(Kind::PromotionPolicy, "policy")
}

/// A live Service.
pub(super) fn live(role: Role) -> Key {
    Key::of(Kind::Service, &names::service("dp", "uid", role, Place::Live))
}

/// The revision of what a DataPlane asks for.
pub(super) fn wanted(dataplane: &Value) -> String {
    let pod_template = dataplane["spec"]["deployment"]["podTemplateSpec"].clone();
    Wish { pod_template, ports: Value::Null }.revision().to_string()
}

pub(super) fn is_approved(dataplane: &Value) -> bool {
    dataplane["metadata"]["annotations"][PROMOTE_WHEN_READY] == "true"
}

/// The newest upgrade.
pub(super) fn newest(objects: &Objects) -> Option<(Key, &Stored)> {
    let promotions = objects.iter().filter(|(key, _)| key.kind == Kind::Promotion);
    let age = |stored: &Stored| stored.value()["spec"]["generation"].as_i64();
    promotions.max_by_key(|(_, stored)| age(stored)).map(|(key, stored)| (*key, stored))
}

impl State {
    /// A new DataPlane, with these gates if any, and everything it takes to come to rest.
    pub(super) fn dawn(gates: Option<Value>, story: Story) -> Self {
        let mut api = Apiserver::default();
        let mut dp = json!(fixtures::dataplane(IMAGES[0]));
        dp["metadata"] = json!({});
        let mut state = Self {
            api: Apiserver::default(),
            view: Arc::default(),
            held: 0,
            memory: Shared::of(Memory::default(), Memory::hash),
            process: 1,
            flight: None,
            late: None,
            asked: true,
            plugins: Shared::of([("smoke".to_owned(), Plugin::Ready(Digest::of(b"one")))].into(), told),
            seconds: 0,
            ticks: 1, // every moment has a fraction
            story,
            idle: 0,
            truth: Shared::of(Truth::default(), Truth::hash),
            phase: "Founding",
        };
        let now = state.now().to_string();
        api.make(dataplane(), dp, &now);
        if let Some(gates) = gates {
            let policy_of = fixtures::policy_of("policy", gates);
            api.make(policy(), json!(policy_of), &now);
        }
        state.api = api;
        state
    }

    /// The same with another story ahead.
    pub(super) fn telling(&self, story: Story) -> Self {
        Self { story, idle: 0, ..self.clone() }
    }

    /// What people will do.
    pub(super) fn story(&self) -> Story {
        self.story
    }

    pub(super) fn now(&self) -> Timestamp {
        let base = Timestamp::from_second(DAWN + self.seconds).expect("a time");
        base + SignedDuration::from_micros(self.ticks.into())
    }

    fn value(&self, key: Key) -> &Value {
        static NONE: Value = Value::Null;
        self.api.get(key).map_or(&NONE, Stored::value)
    }

    /// The reason of `RolledOut`.
    pub(super) fn reason(&self) -> &str {
        text(self.value(dataplane()), "/status/rollout/conditions/0/reason")
    }

    /// Where the upgrade stands, as the record says.
    pub(super) fn phase(&self) -> &'static str {
        self.phase
    }

    fn stands(&self) -> &'static str {
        let open = newest(&self.api.objects).filter(|(_, one)| one.value()["status"]["verdict"].is_null());
        match open {
            Some((_, open)) => {
                let phase = open.value()["status"]["phase"].as_str().unwrap_or("Staging");
                PHASES.into_iter().find(|known| *known == phase).expect("a phase")
            }
            None => match self.reason() {
                "Aborted" | "RolledBack" | "PromotionFailed" => "Rejected",
                "Progressing" => "Founding",
                _ => "Settled",
            },
        }
    }

    /// The image of what the live ingress Service leads to.
    pub(super) fn live_image(&self) -> String {
        let side = self.value(live(Role::Ingress))["spec"]["selector"][names::SELECTOR].clone();
        let all = self.api.all(Kind::Deployment).map(|(_, one)| one.value());
        let found = all.into_iter().find(|one| cluster::side(one) == side.as_str().unwrap_or_default());
        found.map_or("", |found| text(found, "/spec/template/spec/containers/0/image")).to_owned()
    }

    /// A Pod of the side that is not live.
    pub(super) fn candidate_pod(&self) -> Option<Key> {
        let live = &self.value(live(Role::Ingress))["spec"]["selector"][names::SELECTOR];
        self.api
            .all(Kind::Pod)
            .find(|(_, pod)| pod.value()["metadata"]["labels"][names::SELECTOR] != *live)
            .map(|(key, _)| key)
    }

    /// A gate is being asked.
    pub(super) fn is_asking(&self) -> bool {
        self.memory.trials.values().any(|(_, said)| said.is_none())
    }

    /// An attempt is on record.
    pub(super) fn is_recorded(&self) -> bool {
        newest(&self.api.objects).is_some_and(|(_, one)| text(one.value(), "/status/gates/0/outcome") == "Running")
    }

    fn is_frozen(&self) -> bool {
        self.reason() == "PromotionInProgress"
    }

    fn is_held(&self, kind: Kind) -> bool {
        self.held & (1 << kind as u16) != 0
    }

    /// What happens if nothing else does; nothing at rest.
    pub(super) fn ahead(&self) -> Option<Event> {
        if self.flight.is_some() {
            return Some(Event::Step);
        }
        if self.api.told.iter().any(|(key, _)| !self.is_held(key.kind)) {
            return Some(Event::Watch);
        }
        if self.asked && self.memory.caught_up(&self.view) {
            return Some(Event::Pass);
        }
        if let Some(key) = self.machine() {
            return Some(Event::Machine(key));
        }
        if self.memory.connections.values().any(Option::is_none) {
            return Some(Event::Answer(true));
        }
        if self.is_asking() {
            let told = matches!(self.story.first(), Some(Event::Verdict(_)));
            return Some(if told { Event::Story } else { Event::Verdict(Says::Pass) });
        }
        if self.held != 0 {
            return Some(Event::Release);
        }
        if let Some(next) = self.story.first() {
            return Some(if self.can(*next) || self.idle >= 2 { Event::Story } else { Event::Later });
        }
        let waits = !matches!(self.reason(), "WaitingForChange" | "AwaitingPromotion");
        if waits && self.idle < 2 {
            return Some(Event::Later);
        }
        self.late.is_some().then_some(Event::Arrive)
    }

    /// Whether everything that happens by itself has happened.
    pub(super) fn rests(&self) -> bool {
        self.ahead().is_none()
    }

    /// The first machine that has something to do.
    fn machine(&self) -> Option<Key> {
        let api = &self.api;
        let orphan = cluster::orphans(api).into_iter().next();
        let controllers =
            || api.all(Kind::Deployment).map(|(key, _)| key).find(|key| !cluster::controller(api, *key).is_empty());
        let kubelets = || api.all(Kind::Pod).find(|(_, pod)| cluster::kubelet(pod.value())).map(|(key, _)| key);
        let slices =
            || api.all(Kind::Service).map(|(key, _)| key).find(|key| !cluster::endpoints(api, *key).is_empty());
        orphan.or_else(controllers).or_else(kubelets).or_else(slices)
    }

    /// What else may happen now.
    pub(super) fn deviations(&self, rare: bool) -> Vec<Event> {
        let mut events = Vec::with_capacity(48);
        let mut add = |event| {
            if self.can(event) {
                events.push(event);
            }
        };
        [Event::Crash, Event::CrashUnderWay, Event::Arrive, Event::Impatience, Event::Early]
            .into_iter()
            .for_each(&mut add);
        for kind in [
            Kind::DataPlane,
            Kind::PromotionPolicy,
            Kind::Promotion,
            Kind::Deployment,
            Kind::Service,
            Kind::Pod,
            Kind::EndpointSlice,
        ] {
            add(Event::Hold(kind));
        }
        (0..3).map(Event::Edit).for_each(&mut add);
        [Event::Approve, Event::Withdraw].into_iter().for_each(&mut add);
        [Decision::Approve, Decision::Abort, Decision::Rollback, Decision::Retry]
            .map(Event::Decide)
            .into_iter()
            .for_each(&mut add);
        [Rule::AddGate, Rule::DropGate, Rule::Pause, Rule::Resume, Rule::Remove]
            .map(Event::Policy)
            .into_iter()
            .for_each(&mut add);
        [Bytes::Replaced, Bytes::Revoked, Bytes::Restored].map(Event::Plugin).into_iter().for_each(&mut add);
        [Says::Fail, Says::Error].map(Event::Verdict).into_iter().for_each(&mut add);
        if rare {
            [Says::Pass, Says::Wait, Says::Inconclusive].map(Event::Verdict).into_iter().for_each(&mut add);
            [Event::Answer(false), Event::Answer(true), Event::Release, Event::Later].into_iter().for_each(&mut add);
            [Kind::Secret, Kind::ControllerRevision].map(Event::Hold).into_iter().for_each(&mut add);
        }
        for (key, _) in self.api.all(Kind::Pod) {
            [Event::Evict(key), Event::Restart(key), Event::Break(key)].into_iter().for_each(&mut add);
        }
        [Event::Scale(1), Event::Scale(2)].into_iter().for_each(&mut add);
        [Event::Touch(live(Role::Ingress)), Event::Touch(live(Role::Admin))].into_iter().for_each(&mut add);
        [Event::Jump(true), Event::Jump(false)].into_iter().for_each(&mut add);
        events
    }

    /// Whether this may happen now.
    pub(super) fn can(&self, event: Event) -> bool {
        let policy = || self.value(policy());
        let smoke = || self.plugins.get("smoke");
        let replicas = || self.value(dataplane())["spec"]["deployment"]["replicas"].as_u64().unwrap_or(1);
        match event {
            Event::Step => self.flight.is_some(),
            Event::Watch => self.flight.is_none() && self.api.told.iter().any(|(key, _)| !self.is_held(key.kind)),
            Event::Pass => self.flight.is_none() && self.asked && self.memory.caught_up(&self.view),
            // Only where it is not what happens anyway.
            Event::Early => {
                self.flight.is_none()
                    && self.memory.caught_up(&self.view)
                    && self.ahead() != Some(Event::Pass)
                    && self.asked
            }
            Event::Machine(key) => {
                cluster::orphans(&self.api).contains(&key)
                    || match key.kind {
                        Kind::Deployment => !cluster::controller(&self.api, key).is_empty(),
                        Kind::Service => !cluster::endpoints(&self.api, key).is_empty(),
                        Kind::Pod => self.api.get(key).is_some_and(|pod| cluster::kubelet(pod.value())),
                        _ => false,
                    }
            }
            Event::Answer(_) => self.memory.connections.values().any(Option::is_none),
            Event::Verdict(_) => self.is_asking(),
            Event::Release => self.held != 0,
            Event::Arrive => self.late.is_some(),
            Event::Story => !self.story.is_empty(),
            Event::Later => true,
            Event::Crash => {
                self.process < 4
                    && (self.flight.is_some() || !self.memory.trials.is_empty() || !self.memory.connections.is_empty())
            }
            Event::CrashUnderWay => {
                self.process < 4
                    && self.late.is_none()
                    && self
                        .flight
                        .as_ref()
                        .is_some_and(|flight| matches!(&*flight.next, Next::Send(sent) if sent.request.is_write()))
            }
            Event::Impatience => self.flight.is_none() && !self.memory.caught_up(&self.view),
            Event::Hold(kind) => !self.is_held(kind),
            Event::Edit(image) => {
                let found =
                    &self.value(dataplane())["spec"]["deployment"]["podTemplateSpec"]["spec"]["containers"][0]["image"];
                !self.is_frozen() && *found != IMAGES[usize::from(image)]
            }
            Event::Approve => !is_approved(self.value(dataplane())),
            Event::Withdraw => is_approved(self.value(dataplane())),
            Event::Decide(decision) => newest(&self.api.objects).is_some_and(|(_, newest)| {
                let found = &newest.value()["spec"]["decision"];
                let open = newest.value()["status"]["verdict"].is_null();
                match decision {
                    Decision::Approve => open && found["approve"] != true,
                    Decision::Abort => open && found["abort"] != true,
                    Decision::Rollback => open && found["rollback"] != true,
                    Decision::Retry => found["retry"].is_null() && !newest.value()["status"]["gates"].is_null(),
                }
            }),
            Event::Policy(rule) => {
                let gates = policy()["spec"]["gates"].as_array().map_or(0, Vec::len);
                let late = || entries(&policy()["spec"]["gates"]).any(|gate| gate["name"] == "late");
                match rule {
                    Rule::AddGate => !policy().is_null() && !late(),
                    Rule::DropGate => gates > 0,
                    Rule::Pause => !policy().is_null() && policy()["spec"]["paused"] != true,
                    Rule::Resume => policy()["spec"]["paused"] == true,
                    Rule::Remove => !policy().is_null(),
                }
            }
            Event::Plugin(bytes) => {
                !policy().is_null()
                    && match bytes {
                        Bytes::Replaced => smoke() == Some(&Plugin::Ready(Digest::of(b"one"))),
                        Bytes::Revoked => matches!(smoke(), Some(Plugin::Ready(_))),
                        Bytes::Restored => smoke() == Some(&Plugin::Revoked),
                    }
            }
            Event::Evict(pod) => {
                self.api.get(pod).is_some_and(|found| cluster::is_ready(found.value()))
                    && self.api.made.get(&pod).is_some_and(|count| *count < 3)
            }
            Event::Restart(pod) => self
                .api
                .get(pod)
                .is_some_and(|found| cluster::is_ready(found.value()) && cluster::restarts(found.value()) < 2),
            Event::Break(pod) => self
                .api
                .get(pod)
                .is_some_and(|found| found.value()["metadata"]["annotations"][cluster::BROKEN].is_null()),
            Event::Scale(count) => !self.is_frozen() && replicas() != u64::from(count),
            Event::Touch(service) => {
                self.api.get(service).is_some_and(|found| found.value()["metadata"]["labels"]["touched"].is_null())
            }
            Event::Jump(forwards) => {
                if forwards {
                    self.seconds < 7_200
                } else {
                    self.seconds > -3_600
                }
            }
        }
    }

    /// The state after an event; the same where it cannot happen.
    pub(super) fn after(&self, event: Event) -> Result<Self, Broken> {
        let mut next = self.clone();
        if !self.can(event) {
            return Ok(next);
        }
        next.idle = if event == Event::Later {
            self.idle + 1
        } else if matches!(event, Event::Watch | Event::Pass | Event::Step) {
            self.idle
        } else {
            0
        };
        next.happen(event)?;
        if !Arc::ptr_eq(&next.api.objects, &self.api.objects) {
            next.phase = next.stands();
        }
        Ok(next)
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        let now = self.now().to_string();
        match event {
            Event::Step => self.step()?,
            Event::Watch => self.watch(),
            Event::Pass | Event::Early => {
                self.asked = false;
                let reading = Reading {
                    view: Arc::clone(&self.view),
                    memory: self.memory.clone(),
                    plugins: self.plugins.clone(),
                    process: self.process,
                    now: self.now(),
                };
                self.flight = Some(Flight::begin(reading, &self.api));
                self.land()?;
            }
            Event::Machine(key) => self.work(key, &now),
            Event::Answer(answers) => {
                let answer = if answers { Connection::Answers } else { Connection::Silent("nobody is there".into()) };
                self.remember(|memory| {
                    memory
                        .connections
                        .values_mut()
                        .filter(|said| said.is_none())
                        .take(1)
                        .for_each(|said| *said = Some(answer.clone()));
                });
                self.asked = true;
            }
            Event::Verdict(says) => self.verdict(says),
            Event::Release => self.held = 0,
            Event::Arrive => {
                if let Some(Late { sent, only, decided }) = self.late.take() {
                    let before = self.api.clone();
                    let answer = self.api.answer(&sent.request, only, &now);
                    self.tick(&sent);
                    if answer.is_success() {
                        let after = self.api.clone();
                        self.learn(|truth| truth.written(&before, &after, &sent.request, None, decided))?;
                    }
                }
            }
            Event::Story => {
                let (first, rest) = self.story.split_first().expect("a story");
                self.story = rest;
                if self.can(*first) {
                    self.happen(*first)?;
                }
            }
            Event::Later => {
                self.seconds += 31;
                self.asked = true;
            }
            Event::Crash => self.crash(),
            Event::CrashUnderWay => {
                if let Some(flight) = &self.flight
                    && let Next::Send(sent) = &*flight.next
                {
                    let (sent, decided) = (Arc::clone(sent), flight.reading.now);
                    self.late = Some(Late { only: flight.only(&sent), sent, decided });
                }
                self.crash();
            }
            Event::Impatience => {
                self.remember(|memory| memory.unseen.clear());
                self.asked = true;
            }
            Event::Hold(kind) => self.held |= 1 << kind as u16,
            Event::Edit(image) => {
                let image = IMAGES[usize::from(image)];
                self.api.bend(dataplane(), |dataplane| {
                    dataplane["spec"]["deployment"]["podTemplateSpec"]["spec"]["containers"][0]["image"] = image.into();
                });
                let wanted = wanted(self.value(dataplane()));
                self.learn(|truth| truth.edited(&wanted));
            }
            Event::Approve => {
                self.api.bend(dataplane(), |dataplane| {
                    dataplane["metadata"]["annotations"][PROMOTE_WHEN_READY] = "true".into()
                });
                let version = self.api.get(dataplane()).map_or(0, |annotated| annotated.version);
                self.learn(|truth| truth.annotated(version));
            }
            Event::Withdraw => self.api.bend(dataplane(), |dataplane| {
                dataplane["metadata"]["annotations"].as_object_mut().map(|all| all.remove(PROMOTE_WHEN_READY));
            }),
            Event::Decide(decision) => {
                let Some((key, newest)) = newest(&self.api.objects) else { return Ok(()) };
                let revision = text(newest.value(), "/spec/revision").to_owned();
                let (field, value) = match decision {
                    Decision::Approve => ("approve", json!(true)),
                    Decision::Abort => ("abort", json!(true)),
                    Decision::Rollback => ("rollback", json!(true)),
                    Decision::Retry => ("retry", json!(["*"])),
                };
                self.api.bend(key, |promotion| {
                    let decision = &mut promotion["spec"]["decision"];
                    (decision[field], decision["by"]) = (value, PERSON.into());
                });
                if decision == Decision::Retry {
                    self.learn(|truth| truth.retried(&revision));
                }
            }
            Event::Policy(rule) => match rule {
                Rule::Remove => self.api.delete(policy(), &now),
                _ => self.api.bend(policy(), |policy| {
                    let spec = &mut policy["spec"];
                    match rule {
                        Rule::AddGate => {
                            let late = json!(fixtures::policy_of("policy", json!({ "gates": [gate("late")] })));
                            let late = late["spec"]["gates"][0].clone();
                            match spec["gates"].as_array_mut() {
                                Some(gates) => gates.push(late),
                                None => spec["gates"] = json!([late]),
                            }
                        }
                        Rule::DropGate => {
                            spec["gates"].as_array_mut().and_then(Vec::pop);
                        }
                        Rule::Pause => spec["paused"] = true.into(),
                        Rule::Resume | Rule::Remove => spec["paused"] = false.into(),
                    }
                }),
            },
            Event::Plugin(bytes) => {
                let state = match bytes {
                    Bytes::Replaced => Plugin::Ready(Digest::of(b"two")),
                    Bytes::Revoked => Plugin::Revoked,
                    Bytes::Restored => Plugin::Ready(Digest::of(b"two")),
                };
                self.plugins = Shared::of([("smoke".to_owned(), state)].into(), told);
                if bytes != Bytes::Replaced {
                    self.learn(Truth::revoked);
                }
                self.asked = true;
            }
            Event::Evict(pod) => self.api.delete(pod, &now),
            Event::Restart(pod) => {
                let restarts = self.api.get(pod).map_or(0, |pod| cluster::restarts(pod.value()));
                cluster::turn(&mut self.api, pod, false, restarts + 1);
            }
            Event::Break(pod) => {
                self.api.bend(pod, |pod| pod["metadata"]["annotations"][cluster::BROKEN] = "true".into());
                let restarts = self.api.get(pod).map_or(0, |pod| cluster::restarts(pod.value()));
                cluster::turn(&mut self.api, pod, false, restarts);
            }
            Event::Scale(count) => {
                self.api.bend(dataplane(), |dataplane| dataplane["spec"]["deployment"]["replicas"] = count.into());
            }
            Event::Touch(service) => {
                self.api.bend(service, |service| service["metadata"]["labels"]["touched"] = "yes".into())
            }
            Event::Jump(forwards) => {
                self.seconds += if forwards { 3_600 } else { -3_600 };
                self.learn(Truth::jumped);
                self.asked = true;
            }
        }
        Ok(())
    }

    /// What people, gates and the operator do, as far as promises are concerned.
    fn learn<T>(&mut self, what: impl FnOnce(&mut Truth) -> T) -> T {
        let mut truth = Truth::clone(&self.truth);
        let learnt = what(&mut truth);
        if truth != *self.truth {
            self.truth = Shared::of(truth, Truth::hash);
        }
        learnt
    }

    fn remember(&mut self, what: impl FnOnce(&mut Memory)) {
        let mut memory = Memory::clone(&self.memory);
        what(&mut memory);
        self.memory = Shared::of(memory, Memory::hash);
    }

    /// The next request of the pass is answered.
    fn step(&mut self) -> Result<(), Broken> {
        let Some(mut flight) = self.flight.take() else { return Ok(()) };
        if let Next::Send(sent) = &*Arc::clone(&flight.next) {
            let before = self.api.clone();
            // What it writes are moments of when it began.
            let answer = self.api.answer(&sent.request, flight.only(sent), &flight.reading.now.to_string());
            self.tick(sent);
            let done = answer.is_success();
            if sent.request.verb == Verb::List {
                self.learn(|truth| truth.confirmed(&answer));
            }
            flight.answered(answer, &self.api);
            if done && sent.request.is_write() {
                let (after, reading) = (self.api.clone(), &flight.reading);
                self.learn(|truth| truth.written(&before, &after, &sent.request, Some(reading), reading.now))?;
            }
        }
        self.flight = Some(flight);
        self.land()
    }

    /// No two attempts are of the same moment.
    fn tick(&mut self, sent: &Sent) {
        let records = sent.request.key.kind == Kind::Promotion && sent.request.verb == Verb::MergeStatus;
        if records && sent.request.body["status"].to_string().contains("\"startedAt\"") {
            self.ticks += 1;
        }
    }

    /// A pass that has no more to ask has ended.
    fn land(&mut self) -> Result<(), Broken> {
        let Some(flight) = self.flight.take() else { return Ok(()) };
        let next = Arc::clone(&flight.next);
        let Next::End(end) = &*next else {
            self.flight = Some(flight);
            return Ok(());
        };
        let api = self.api.clone();
        self.learn(|truth| truth.ended(&flight, end, &api))?;
        self.memory = Shared::of(flight.memory(end, &self.memory), Memory::hash);
        self.asked |= end.failed.is_some();
        Ok(())
    }

    /// All watches that are not held tell what they have to tell.
    fn watch(&mut self) {
        let told = std::mem::take(Arc::make_mut(&mut self.api.told));
        let (tell, keep): (Vec<_>, Vec<_>) = told.into_iter().partition(|(key, _)| !self.is_held(key.kind));
        self.api.told = Arc::new(keep);
        let view = Arc::make_mut(&mut self.view);
        for (key, stored) in tell {
            match stored {
                Some(stored) => drop(view.insert(key, stored)),
                None => drop(view.remove(&key)),
            }
        }
        self.asked = true;
    }

    fn crash(&mut self) {
        self.flight = None;
        self.memory = Shared::of(Memory::default(), Memory::hash);
        self.process += 1;
        self.view = Arc::clone(&self.api.objects);
        self.api.told = Arc::default();
        self.held = 0;
        self.asked = true;
    }

    fn work(&mut self, key: Key, now: &str) {
        if cluster::orphans(&self.api).contains(&key) {
            return self.api.delete(key, now);
        }
        let acts = match key.kind {
            Kind::Deployment => cluster::controller(&self.api, key),
            Kind::Service => cluster::endpoints(&self.api, key),
            _ => {
                let restarts = self.api.get(key).map_or(0, |pod| cluster::restarts(pod.value()));
                return cluster::turn(&mut self.api, key, true, restarts);
            }
        };
        acts.iter().for_each(|act| act.carry_out(&mut self.api, now));
    }

    fn verdict(&mut self, says: Says) {
        let reason = || Reason { code: "Said".into(), message: String::new() };
        let outcome = match says {
            Says::Pass => Outcome::Pass(reason()),
            Says::Fail => Outcome::Fail(reason()),
            Says::Inconclusive => Outcome::Inconclusive(reason()),
            Says::Error => Outcome::Error { blame: Blame::Trap, message: String::new(), retry: true },
            Says::Wait => Outcome::Wait { reason: reason(), after: std::time::Duration::from_secs(1), state: None },
        };
        let mut asked = None;
        self.remember(|memory| {
            if let Some((key, (_, said))) = memory.trials.iter_mut().find(|(_, (_, said))| said.is_none()) {
                *said = Some(Arc::new(Report::of(outcome)));
                asked = Some(key.clone());
            }
        });
        self.learn(|truth| asked.iter().for_each(|key| truth.said(key, says)));
        self.asked = true;
    }

    /// By which states are told apart, without what only the checks know.
    pub(super) fn hash(&self) -> u64 {
        let mut hash = 0_u64;
        for found in self.api.objects.values() {
            hash = hash.wrapping_add(found.content.shape);
        }
        if !Arc::ptr_eq(&self.api.objects, &self.view) {
            hash = mix(hash, self.behind(&self.view));
        }
        for (place, (key, told)) in self.api.told.iter().enumerate() {
            let place = self.api.told[..place].iter().filter(|(other, _)| other.kind == key.kind).count();
            let told = told.as_ref().map_or_else(|| key.hash(), |told| told.content.shape);
            hash = hash.wrapping_add(mix(told, 16 + u64::try_from(place).unwrap_or_default()));
        }
        for (key, left) in &self.memory.unseen {
            let current = match left {
                Unseen::Version(version) => self.api.get(*key).is_some_and(|found| found.version == *version),
                Unseen::Gone(_) => self.api.get(*key).is_none(),
            };
            hash = hash.wrapping_add(mix(key.hash(), u64::from(current)));
        }
        if let Some(flight) = &self.flight {
            let step = u64::try_from(flight.answers.len()).unwrap_or_default();
            let next = match &*flight.next {
                Next::Send(sent) => mix(sent.request.key.hash(), sent.request.verb as u64),
                Next::End(_) => 0,
            };
            let reading = &flight.reading;
            hash = mix(mix(mix(hash, next), step), self.behind(&reading.view));
            hash = mix(hash, mix(reading.memory.hash(), reading.plugins.hash()));
            hash = mix(hash, reading.now.as_second().unsigned_abs());
        }
        if let Some(Late { sent, only, .. }) = &self.late {
            let found = self.api.get(sent.request.key).map(|found| found.version);
            let lands = match only {
                If::Any => true,
                If::Absent => found.is_none(),
                If::At(version) => found == Some(*version),
            };
            hash = mix(hash, mix(mix(sent.request.key.hash(), sent.request.verb as u64), u64::from(lands)));
        }
        for key in self.memory.trials.keys() {
            hash = mix(hash, u64::from(recorded(&self.api.objects, key).is_some()));
        }
        let rest = [
            self.memory.hash(),
            self.plugins.hash(),
            u64::from(self.held),
            u64::from(self.process),
            self.seconds.unsigned_abs() ^ u64::from(self.seconds < 0),
            u64::from(self.asked),
            u64::try_from(self.story.len()).unwrap_or_default(),
            u64::from(self.idle),
        ];
        rest.into_iter().fold(hash, mix)
    }

    /// What somebody has read, and what of it has changed since.
    fn behind(&self, view: &Objects) -> u64 {
        let mut hash = 0_u64;
        for (key, seen) in view {
            let current = self.api.get(*key).is_some_and(|found| found.version == seen.version);
            hash = hash.wrapping_add(seen.content.shape.rotate_left(u32::from(current)));
        }
        hash
    }
}

/// What is on record of a trial.
pub(super) fn recorded<'a>(objects: &'a Objects, key: &TrialKey) -> Option<&'a Value> {
    // The one is written with as few digits as it takes, the other with six.
    let moment = |text: &'a str| text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
    let started = key.started.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
    let promotions =
        objects.iter().filter(|(of, _)| of.kind == Kind::Promotion).map(|(_, found)| &found.value()["status"]);
    let gates = promotions.flat_map(|status| entries(&status["gates"]).chain(entries(&status["rechecks"])));
    let mut gates = gates.filter(|entry| entry["name"] == *key.gate);
    gates.find(|entry| entry["startedAt"].as_str().is_some_and(|text| moment(text) == started))
}

/// The plugins as a number.
fn told(plugins: &BTreeMap<String, Plugin>) -> u64 {
    hash_of(format!("{plugins:?}").as_bytes())
}

/// A gate of a policy.
pub(super) fn gate(name: &str) -> Value {
    json!({ "name": name, "pluginRef": { "name": "smoke" }, "maxAttempts": 2 })
}
