//! The operator: the real pass, one write at a time. What a pass does depends on what it has read and on what it is
//! answered, and on nothing else: so the same questions are answered from memory.

use std::{
    any::Any,
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use async_trait::async_trait;
use axum::http::{Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use kube::{
    Client, Resource,
    client::Body,
    runtime::{
        controller::Action,
        reflector::{self, ObjectRef, Store},
        watcher::Event,
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::watch};

use super::{
    apiserver::{Answer, Apiserver, If, Objects, Request, Stored},
    objects::{Key, Kind, Sharded, Shared, hash_of, wide},
};
use crate::{
    cluster::{
        backoff::Backoff,
        cache::Owned,
        foreign::Foreign,
        packed::{Kept, Packed},
        writer::{Left, Object, Writes},
    },
    dataplane::{
        apply::{certificate::Authority, publish},
        observe::caches::Caches,
        reconcile::{self, Context},
    },
    gate::{GateHost, Presence, jobs::Jobs},
    gateplugin::Installed,
    model::{
        PluginKey,
        grants::Ceilings,
        observed::{Connection, ConnectionKey, Plugin, TrialKey},
        trial::{Digest, LoadError, Loaded, Outcome, Problem, Report, Trial},
    },
    telemetry::Metrics,
};

/// Name of the DataPlane, as its jobs know it.
const OWNER: &str = "ns/dp";

/// What a trial was begun with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) digest: String,
    /// The Pods that it was pointed at, by name.
    pub(super) pods: Vec<String>,
    /// The revision that it was told of.
    pub(super) revision: String,
}

/// What a process remembers from pass to pass. Gone with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    pub(super) trials: BTreeMap<TrialKey, (Arc<Begun>, Option<Arc<Report>>)>,
    pub(super) connections: BTreeMap<ConnectionKey, Option<Connection>>,
    /// Its own writes that the caches have not shown.
    pub(super) unseen: BTreeMap<Key, Unseen>,
}

/// What a write left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unseen {
    Version(u32),
    Gone(String),
}

impl Memory {
    /// By which processes are told apart. Which moment a trial was begun at is only a name.
    pub(super) fn hash(&self) -> u64 {
        let trials = self.trials.iter().map(|(key, (begun, said))| {
            (&key.promotion, &key.gate, &key.entry, begun, said.as_ref().map(|said| &said.outcome))
        });
        let known = (trials.collect::<Vec<_>>(), &self.connections, self.unseen.keys().collect::<Vec<_>>());
        hash_of(format!("{known:?}").as_bytes())
    }

    /// Whether the caches show everything that this process wrote, by the operator's own reckoning.
    pub(super) fn caught_up(&self, view: &Objects) -> bool {
        self.unseen.is_empty() || writes(&self.unseen).seen("uid", |object| cached(view, object))
    }
}

fn cached(view: &Objects, (kind, name): &Object) -> Option<(u64, String, bool)> {
    let found = view.get(&Key::of(Kind::of(kind)?, name))?;
    let metadata = &found.value()["metadata"];
    let uid = metadata["uid"].as_str().unwrap_or_default().to_owned();
    Some((found.version.into(), uid, metadata.get("deletionTimestamp").is_some()))
}

fn writes(unseen: &BTreeMap<Key, Unseen>) -> Writes {
    let writes = Writes::default();
    for (key, left) in unseen {
        let left = match left {
            Unseen::Version(version) => Left::Version((*version).into()),
            Unseen::Gone(uid) => Left::Gone(uid.clone()),
        };
        writes.remember("uid", (key.kind.as_str(), key.name().to_string()), left);
    }
    writes
}

/// All that a pass depends on before it is answered anything.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) view: Arc<Objects>,
    pub(super) memory: Shared<Memory>,
    pub(super) plugins: Shared<BTreeMap<String, Plugin>>,
    pub(super) process: u8,
    pub(super) now: Timestamp,
}

impl Reading {
    fn hash(&self) -> u128 {
        let mut text = Vec::with_capacity(1_024);
        for (key, stored) in self.view.iter() {
            text.extend(key.hash().to_le_bytes());
            text.extend(stored.content.exact.to_le_bytes());
        }
        let memory = (&self.memory.trials, &self.memory.connections, &*self.plugins, self.process, self.now);
        wide(&[&text, format!("{memory:?}").as_bytes()])
    }
}

/// How far a pass has come.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) reading: Arc<Reading>,
    pub(super) answers: Arc<Vec<(Arc<Sent>, Answer)>>,
    path: u128,
    pub(super) next: Arc<Next>,
}

/// What a pass does next.
#[derive(Debug)]
pub(super) enum Next {
    Send(Arc<Sent>),
    End(End),
}

/// A request, and where the version that it names comes from.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) request: Request,
    only: Named,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Any,
    Absent,
    /// From the caches.
    Read,
    /// From the so-manieth answer.
    Answered(usize),
    /// From nowhere that is known.
    Odd(u32),
}

/// What a pass leaves behind.
#[derive(Debug)]
pub(super) struct End {
    trials: Vec<(TrialKey, Option<Arc<Begun>>)>,
    connections: Vec<ConnectionKey>,
    unseen: Vec<(Key, Mark)>,
    pub(super) failed: Option<String>,
}

#[derive(Clone, Debug)]
enum Mark {
    Read(u32),
    Answered(usize),
    Gone(String),
}

impl End {
    /// Whether a trial goes on, or has said something that is still of use.
    pub(super) fn wants(&self, trial: &TrialKey) -> bool {
        self.trials.iter().any(|(key, _)| key == trial)
    }
}

impl Flight {
    /// A pass begins.
    pub(super) fn begin(reading: Reading, api: &Apiserver) -> Self {
        let (reading, answers) = (Arc::new(reading), Arc::new(Vec::new()));
        let path = reading.hash();
        let next = next(path, &reading, &answers, api);
        Self { reading, answers, path, next }
    }

    /// It is answered, and goes on.
    pub(super) fn answered(&mut self, answer: Answer, api: &Apiserver) {
        let Next::Send(sent) = &*Arc::clone(&self.next) else { return };
        self.path = further(self.path, &answer, &sent.request);
        Arc::make_mut(&mut self.answers).push((Arc::clone(sent), answer));
        self.next = next(self.path, &self.reading, &self.answers, api);
    }

    /// The version that a request names.
    pub(super) fn only(&self, sent: &Sent) -> If {
        match sent.only {
            Named::Any => If::Any,
            Named::Absent => If::Absent,
            Named::Odd(version) => If::At(version),
            Named::Read => self.reading.view.get(&sent.request.key).map_or(If::Any, |found| If::At(found.version)),
            Named::Answered(place) => self.answers[place].1.version().map_or(If::Any, If::At),
        }
    }

    /// What the process remembers when the pass has ended. What was said meanwhile is heard by the next.
    pub(super) fn memory(&self, end: &End, before: &Memory) -> Memory {
        let trials = end.trials.iter().filter_map(|(key, begun)| {
            let said = before.trials.get(key).and_then(|(_, said)| said.clone());
            let begun = begun.clone().or_else(|| Some(Arc::clone(&before.trials.get(key)?.0)))?;
            Some((key.clone(), (begun, said)))
        });
        let connections = end.connections.iter().map(|key| {
            let said = before.connections.get(key).cloned().flatten();
            (key.clone(), said)
        });
        let unseen = end.unseen.iter().filter_map(|(key, left)| {
            let left = match left {
                Mark::Gone(uid) => Unseen::Gone(uid.clone()),
                Mark::Read(version) => Unseen::Version(*version),
                Mark::Answered(place) => Unseen::Version(self.answers[*place].1.version()?),
            };
            Some((*key, left))
        });
        Memory { trials: trials.collect(), connections: connections.collect(), unseen: unseen.collect() }
    }

    /// The trials that the pass began.
    pub(super) fn began<'a>(&self, end: &'a End) -> impl Iterator<Item = (&'a TrialKey, &'a Arc<Begun>)> {
        end.trials.iter().filter_map(|(key, begun)| Some((key, begun.as_ref()?)))
    }
}

/// A path, one answer further.
fn further(path: u128, answer: &Answer, request: &Request) -> u128 {
    wide(&[&path.to_le_bytes(), &answer.hash(request).to_le_bytes()])
}

/// From memory, or by running the pass: then all of its way is remembered, as it goes while nobody interferes.
fn next(path: u128, reading: &Arc<Reading>, answers: &[(Arc<Sent>, Answer)], api: &Apiserver) -> Arc<Next> {
    static KNOWN: OnceLock<Sharded<HashMap<u128, Arc<Next>>>> = OnceLock::new();
    let known = KNOWN.get_or_init(Sharded::default);
    if let Some(next) = known.get(path) {
        return next;
    }
    let (log, end) = HANDS.with_borrow_mut(|hands| hands.get_or_insert_with(Hands::new).run(reading, answers, api));
    assert!(log.len() >= answers.len(), "a pass that is answered the same goes another way");
    let (mut at, mut first) = (path, None);
    for (sent, answer) in log.iter().skip(answers.len()) {
        let next = known.known(at, || Arc::new(Next::Send(Arc::clone(sent))));
        first.get_or_insert(next);
        at = further(at, answer, &sent.request);
    }
    let end = known.known(at, || Arc::new(Next::End(end)));
    first.unwrap_or(end)
}

thread_local! {
    static HANDS: RefCell<Option<Hands>> = const { RefCell::new(None) };
}

/// What passes of one thread have in common.
struct Hands {
    runtime: Runtime,
    client: Client,
    desk: Arc<Mutex<Desk>>,
    authority: Arc<Authority>,
    metrics: Metrics,
    packed: HashMap<(u128, u32), Box<dyn Any>>,
}

/// Answers a pass: first what it was answered before, then what the apiserver says.
#[derive(Default)]
struct Desk {
    known: Vec<Answer>,
    api: Apiserver,
    now: String,
    log: Vec<(Request, If, Answer)>,
}

impl Desk {
    fn answer(&mut self, request: Request, only: If) -> (Value, u16) {
        let place = self.log.len();
        let answer = match self.known.get(place) {
            Some(answer) => answer.clone(),
            None => self.api.answer(&request, only, &self.now),
        };
        let body = answer.body(&request);
        let status = answer.status;
        self.log.push((request, only, answer));
        (body, status)
    }
}

fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hands {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let desk = Arc::<Mutex<Desk>>::default();
        let client = runtime.block_on(async { client(&desk) });
        static AUTHORITY: OnceLock<Arc<Authority>> = OnceLock::new();
        let authority = AUTHORITY.get_or_init(|| {
            let made = runtime.block_on(Authority::load(client.clone(), "ns", "ca"));
            Arc::new(made.expect("a CA"))
        });
        Self {
            client,
            desk,
            authority: Arc::clone(authority),
            metrics: Metrics::default(),
            packed: HashMap::new(),
            runtime,
        }
    }

    fn run(
        &mut self,
        reading: &Reading,
        answers: &[(Arc<Sent>, Answer)],
        api: &Apiserver,
    ) -> (Vec<(Arc<Sent>, Answer)>, End) {
        *lock(&self.desk) = Desk {
            known: answers.iter().map(|(_, answer)| answer.clone()).collect(),
            api: api.clone(),
            now: reading.now.to_string(),
            log: Vec::new(),
        };
        let caches = self.caches(&reading.view);
        let dataplane = caches.dataplanes.get(&ObjectRef::new("dp").within("ns")).expect("a DataPlane");
        let installed = Installed::awaiting(0);
        for (name, state) in reading.plugins.iter() {
            installed.set(PluginKey::of_namespace("ns", name), state.clone());
        }
        let host = Arc::new(Host::default());
        let now = reading.now;
        let context = Arc::new(Context {
            client: self.client.clone(),
            caches,
            writes: writes(&BTreeMap::new()),
            authority: Arc::clone(&self.authority),
            foreign: Foreign::unseen(),
            host: Arc::clone(&host) as Arc<dyn GateHost>,
            installed,
            trials: Jobs::new(|_| {}),
            connections: Jobs::new(|_| {}),
            identity: format!("process {}", reading.process),
            validate_images: true,
            ceilings: Ceilings::default(),
            yielded: publish::Yielded::default(),
            backoff: Backoff::default(),
            metrics: self.metrics.clone(),
            clock: Box::new(move || now),
        });
        let memory = &reading.memory;
        let result = self.runtime.block_on(async {
            context.trials.resume(OWNER, memory.trials.iter().map(|(key, (_, said))| (key.clone(), said.clone())));
            let connections = memory.connections.iter();
            context.connections.resume(OWNER, connections.map(|(key, said)| (key.clone(), said.clone().map(Arc::new))));
            let result = reconcile::reconcile(dataplane, Arc::clone(&context)).await;
            // What was begun is asked for all it needs.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            result
        });
        self.read_out(reading, &context, &host, &result)
    }

    /// What the pass did, with versions by where they came from.
    fn read_out(
        &self,
        reading: &Reading,
        context: &Context,
        host: &Host,
        result: &Result<Action, reconcile::Error>,
    ) -> (Vec<(Arc<Sent>, Answer)>, End) {
        let log = std::mem::take(&mut lock(&self.desk).log);
        let mut sent: Vec<(Arc<Sent>, Answer)> = Vec::with_capacity(log.len());
        for (request, only, answer) in log {
            let key = request.key;
            let only = match only {
                If::Any => Named::Any,
                If::Absent => Named::Absent,
                If::At(version) => {
                    let answered = sent.iter().rposition(|(one, answer): &(Arc<Sent>, Answer)| {
                        one.request.key == key && answer.version() == Some(version)
                    });
                    match answered {
                        Some(place) => Named::Answered(place),
                        None if reading.view.get(&key).is_some_and(|read| read.version == version) => Named::Read,
                        None => Named::Odd(version),
                    }
                }
            };
            sent.push((Arc::new(Sent { request, only }), answer));
        }
        let begun = std::mem::take(&mut *host.0.lock().unwrap_or_else(PoisonError::into_inner));
        let trials = context.trials.known(OWNER).into_iter().map(|key| {
            let new = !reading.memory.trials.contains_key(&key);
            let begun = begun.iter().find(|trial| new && trial.id.ends_with(&format!("/{}", key.gate)));
            let begun = begun.map(|trial| {
                let told: Value =
                    serde_json::from_str(trial.candidate.as_deref().unwrap_or("null")).unwrap_or_default();
                let pods = trial.targets.iter().flat_map(|target| &target.endpoints).map(|pod| pod.name.clone());
                let mut pods: Vec<_> = pods.collect();
                pods.sort();
                pods.dedup();
                Arc::new(Begun {
                    digest: trial.digest.to_string(),
                    pods,
                    revision: told["revision"].as_str().unwrap_or_default().to_owned(),
                })
            });
            assert!(begun.is_some() || !new, "nobody ran {key:?}");
            (key, begun)
        });
        let mut trials: Vec<_> = trials.collect();
        trials.sort_by(|one, other| one.0.cmp(&other.0));
        let mut connections = context.connections.known(OWNER);
        connections.sort();
        let unseen = context.writes.unseen("uid").into_iter().map(|((kind, name), left)| {
            let key = Key::of(Kind::of(kind).expect("a known kind"), &name);
            let left = match left {
                Left::Gone(uid) => Mark::Gone(uid),
                Left::Version(version) => {
                    let version = u32::try_from(version).expect("a small version");
                    let place = sent
                        .iter()
                        .rposition(|(one, answer)| one.request.key == key && answer.version() == Some(version));
                    place.map_or(Mark::Read(version), Mark::Answered)
                }
            };
            (key, left)
        });
        let failed = result.as_ref().err().map(|error| {
            assert!(error.is_conflict(), "{}", error.sentence());
            error.sentence()
        });
        let end = End { trials, connections, unseen: unseen.collect(), failed };
        (sent, end)
    }

    fn caches(&mut self, view: &Objects) -> Caches {
        Caches {
            dataplanes: plain(view, Kind::DataPlane),
            policies: plain(view, Kind::PromotionPolicy),
            cluster: None,
            promotions: self.owned(view, Some(Kind::Promotion)),
            records: self.owned(view, Some(Kind::ControllerRevision)),
            deployments: self.owned(view, Some(Kind::Deployment)),
            services: self.owned(view, Some(Kind::Service)),
            secrets: self.owned(view, Some(Kind::Secret)),
            autoscalers: self.owned(view, None),
            budgets: self.owned(view, None),
            pods: self.owned(view, Some(Kind::Pod)),
            slices: self.owned(view, Some(Kind::EndpointSlice)),
        }
    }

    fn owned<K: Kept>(&mut self, view: &Objects, kind: Option<Kind>) -> Owned<K> {
        let (store, mut writer) = reflector::store();
        for (key, stored) in view.iter().filter(|(key, _)| Some(key.kind) == kind) {
            let known = self.packed.entry((stored.content.exact, stored.version)).or_insert_with(|| {
                let packed: Packed<K> = serde_json::from_value(stored.sent()).unwrap_or_else(|error| {
                    panic!("{key:?}: {error}: {}", stored.value());
                });
                Box::new(packed)
            });
            let packed = known.downcast_ref::<Packed<K>>().expect("of this kind");
            writer.apply_watcher_event(&Event::Apply(packed.clone()));
        }
        Owned::of_store(store)
    }
}

fn plain<K>(view: &Objects, kind: Kind) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
{
    let (store, mut writer) = reflector::store();
    for stored in view.iter().filter(|(key, _)| key.kind == kind).map(|(_, stored): (&Key, &Stored)| stored) {
        writer.apply_watcher_event(&Event::Apply(serde_json::from_value(stored.sent()).expect("an object")));
    }
    store
}

fn client(desk: &Arc<Mutex<Desk>>) -> Client {
    let desk = Arc::clone(desk);
    let service = tower::service_fn(move |request: axum::http::Request<Body>| {
        let desk = Arc::clone(&desk);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let asked = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let path = head.uri.path();
            let (answer, status) = if path.contains("/events") || path.ends_with("/secrets") || path.ends_with("/ca") {
                // What is told to people is told, and the CA is not part of this.
                if head.method == "GET" {
                    (Answer { status: 404, found: Vec::new() }.body(&nothing()), 404)
                } else {
                    (body, 201)
                }
            } else {
                let read =
                    Request::read(head.method.as_str(), path, asked(header::CONTENT_TYPE), asked(header::ACCEPT), body);
                let (request, only) = read.unwrap_or_else(|| panic!("{} {path} is new", head.method));
                lock(&desk).answer(request, only)
            };
            let answer = Response::builder()
                .status(StatusCode::from_u16(status)?)
                .body(Body::from(answer.to_string().into_bytes()))?;
            Ok::<_, tower::BoxError>(answer)
        }
    });
    Client::new(service, "ns")
}

fn nothing() -> Request {
    Request::read("GET", "/namespaces/ns/secrets/ca", "", "", json!(null)).expect("a request").0
}

/// Begins trials and says nothing: that is for the model to say.
#[derive(Default)]
struct Host(Mutex<Vec<Trial>>);

#[async_trait]
impl GateHost for Host {
    async fn load(&self, _: Bytes) -> Result<Loaded, LoadError> {
        unreachable!("plugins are there")
    }

    async fn unload(&self, _: &Digest) {}

    async fn validate(&self, _: &Digest, _: &Value) -> Result<Vec<Problem>, Outcome> {
        Ok(Vec::new())
    }

    async fn run(&self, trial: Trial) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(trial);
        std::future::pending().await
    }

    fn presence(&self) -> watch::Receiver<Presence> {
        watch::Sender::new(Presence::Here(1)).subscribe()
    }
}
