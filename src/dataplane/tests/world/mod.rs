//! A cluster in memory. What the corridor renders is stored as the API stores it (server-side apply, defaults,
//! finalizers), machines answer (Deployments roll, Pods turn ready, Services get addresses and endpoints), and the next
//! pass reads it through the same caches as in a real one.

pub(in crate::dataplane::tests) mod api;
pub(in crate::dataplane::tests) mod machines;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use kube::{
    Resource, ResourceExt,
    core::{PartialObjectMeta, Status},
    runtime::{
        reflector::{self, Store},
        watcher::Event,
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::api::{default, entries, merge_patch, overlay, prune};
use crate::{
    api::{
        ClusterPromotionPolicy, DataPlane, PromotionPolicy,
        dataplane::{DataPlaneStatus, PROMOTE_WHEN_READY},
        promotion::PromotionStatus,
    },
    cluster::{
        cache::Owned,
        packed::{Kept, Packed},
    },
    dataplane::{
        apply::{self, certificate},
        build::{self, CertificateOrder, Object, Planned, Surplus},
        check, fixtures,
        observe::{
            self,
            caches::{Caches, OfCluster},
        },
        plan,
        status::{self, Note},
    },
    model::{
        Intent, Observed, Phase, Plan, differ,
        grants::Ceilings,
        names::{self, Role, State},
        observed::{Connection, ConnectionKey, Plugin, TrialKey},
        plan::{ApprovalPlan, Cleared},
        trial::{Digest, Moment, Outcome, Reason, Report},
    },
};

/// Kind and name.
pub(super) type Key = (String, String);

/// One DataPlane and everything around it.
pub(super) struct World {
    /// As the API has it.
    pub(super) dataplane: DataPlane,
    /// Those of its namespace.
    pub(super) policies: Vec<PromotionPolicy>,
    /// Those of the cluster.
    pub(super) cluster_policies: Vec<ClusterPromotionPolicy>,
    /// Its namespace.
    pub(super) namespace: ObjectMeta,
    /// What gates say, once they are asked.
    pub(super) verdict: Option<Outcome>,
    /// What gates say that judge behind the live Services.
    pub(super) verified: Option<Outcome>,
    /// What time it is.
    pub(super) now: Timestamp,
    /// Images whose Pods are not ready.
    pub(super) broken: BTreeSet<&'static str>,
    /// A kind, or the name of one object, that the API refuses to write.
    pub(super) refused: Option<String>,
    /// Whether anybody gives addresses to Services of type LoadBalancer.
    pub(super) balancer: bool,
    /// Whether the preview answers nobody.
    pub(super) silent: bool,
    /// Whether plugins are still being loaded.
    pub(super) loading: bool,
    /// Whether Deployments roll and Pods turn ready.
    pub(super) awake: bool,
    /// What people were told.
    pub(super) notes: Vec<Note>,
    objects: BTreeMap<Key, Value>,
    applied: BTreeMap<Key, Value>,
    connections: HashMap<ConnectionKey, Connection>,
    trials: HashMap<TrialKey, Arc<Report>>,
    process: u32,
    version: u64,
    addresses: u8,
    said: Vec<String>,
}

impl World {
    /// Of this DataPlane; nothing has run yet.
    pub(super) fn of(dataplane: DataPlane) -> Self {
        Self {
            dataplane,
            policies: Vec::new(),
            cluster_policies: Vec::new(),
            namespace: ObjectMeta { name: Some("ns".into()), ..ObjectMeta::default() },
            verdict: None,
            verified: None,
            now: Timestamp::from_second(1_800_000_000).expect("a time"),
            broken: BTreeSet::new(),
            refused: None,
            balancer: true,
            silent: false,
            loading: false,
            awake: true,
            notes: Vec::new(),
            objects: BTreeMap::new(),
            applied: BTreeMap::new(),
            connections: HashMap::new(),
            trials: HashMap::new(),
            process: 1,
            version: 1,
            addresses: 0,
            said: Vec::new(),
        }
    }

    /// Of a new blue/green DataPlane with this image and, below `spec`, these fields.
    pub(super) fn with(image: &str, spec: Value) -> Self {
        let mut world = Self::of(fixtures::dataplane(image));
        world.edit(spec);
        world.dataplane.metadata.generation = Some(1);
        world
    }

    /// The same without a strategy.
    pub(super) fn in_place(image: &str, spec: Value) -> Self {
        let mut world = Self::with(image, json!({ "deployment": { "rollout": null } }));
        world.edit(spec);
        world.dataplane.metadata.generation = Some(1);
        world
    }

    /// A blue/green DataPlane at rest.
    pub(super) fn at_rest(image: &str) -> Self {
        let mut world = Self::with(image, json!({}));
        world.run();
        assert!(world.rests(), "{:?}", world.said);
        world
    }

    /// Likewise, and this image waits for a person.
    pub(super) fn awaiting(image: &str) -> Self {
        let mut world = Self::at_rest("kong:3.9");
        world.image(image);
        world.run();
        assert_eq!(world.reason(), "AwaitingPromotion", "{:?}", world.said);
        world
    }

    /// Adds a policy whose one gate passes.
    pub(super) fn govern(&mut self) {
        self.policies = vec![fixtures::policy()];
        self.verdict = Some(Outcome::Pass(Reason { code: "Good".into(), message: String::new() }));
    }

    // What users do.

    /// Changes the spec by a JSON merge patch.
    pub(super) fn edit(&mut self, spec: Value) {
        assert_ne!(self.reason(), "PromotionInProgress", "the API refuses changes of the spec now");
        let mut edited = serde_json::to_value(&self.dataplane).expect("JSON");
        let before = edited["spec"].clone();
        merge_patch(&mut edited["spec"], &spec);
        let changed = edited["spec"] != before;
        self.dataplane = serde_json::from_value(edited).expect("a DataPlane");
        self.touched(changed);
    }

    /// Changes the image, and nothing else of the template.
    pub(super) fn image(&mut self, image: &str) {
        self.proxy("image", json!(image));
    }

    /// Changes one field of the proxy container.
    pub(super) fn proxy(&mut self, field: &str, value: Value) {
        let template = self.dataplane.spec.deployment.pod_template_spec.clone().unwrap_or_default();
        let mut containers = template.0["spec"]["containers"].clone();
        containers[0][field] = value;
        self.edit(json!({ "deployment": { "podTemplateSpec": { "spec": { "containers": containers } } } }));
    }

    /// Sets an annotation of the DataPlane, or takes it away.
    pub(super) fn annotate(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.dataplane.annotations_mut().insert(name.into(), value.into()),
            None => self.dataplane.annotations_mut().remove(name),
        };
        self.touched(false);
    }

    /// Annotates it to be promoted.
    pub(super) fn approve(&mut self) {
        self.annotate(PROMOTE_WHEN_READY, Some("true"));
    }

    /// Decides about the newest upgrade.
    pub(super) fn decide(&mut self, decision: Value) {
        let newest = name(self.newest());
        self.bend("Promotion", &newest, |promotion| merge_patch(&mut promotion["spec"]["decision"], &decision));
    }

    /// The newest upgrade.
    pub(super) fn newest(&self) -> &Value {
        let created = |one: &&Value| one["metadata"]["creationTimestamp"].to_string();
        self.all("Promotion").into_iter().max_by_key(created).expect("an upgrade")
    }

    fn touched(&mut self, spec: bool) {
        self.version += 1;
        let metadata = &mut self.dataplane.metadata;
        metadata.resource_version = Some(self.version.to_string());
        metadata.generation = metadata.generation.map(|generation| generation + i64::from(spec));
    }

    /// Puts an object there that the operator did not make.
    pub(super) fn put(&mut self, kind: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        self.store((kind.into(), name), object);
    }

    /// Changes an object behind the operator's back.
    pub(super) fn bend(&mut self, kind: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let key = (kind.to_owned(), name.to_owned());
        let mut object = self.objects.get(&key).unwrap_or_else(|| panic!("no {kind} {name}")).clone();
        change(&mut object);
        self.store(key, object);
    }

    /// Deletes an object: it goes at once only if no finalizer holds it.
    pub(super) fn delete(&mut self, kind: &str, name: &str) {
        let now = self.now.to_string();
        self.bend(kind, name, |object| object["metadata"]["deletionTimestamp"] = now.into());
    }

    /// Deletes all objects of a kind for good, whatever holds them.
    pub(super) fn lose(&mut self, kind: &str) {
        self.objects.retain(|(of, _), _| of != kind);
        self.applied.retain(|(of, _), _| of != kind);
    }

    /// Another process takes over: what only the one before knew is gone.
    pub(super) fn restart(&mut self) {
        self.connections.clear();
        self.trials.clear();
        self.process += 1;
    }

    /// A gate that was asked has something to say, however late.
    pub(super) fn say(&mut self, attempt: &TrialKey, outcome: Outcome) {
        self.trials.insert(attempt.clone(), Arc::new(Report::of(outcome)));
    }

    /// What an autoscaler does.
    pub(super) fn autoscale(&mut self, replicas: i32) {
        let target = self.autoscaler()["spec"]["scaleTargetRef"]["name"].as_str().expect("a target").to_owned();
        self.bend("Deployment", &target, |deployment| deployment["spec"]["replicas"] = replicas.into());
    }

    // What the operator does.

    /// Passes until nothing changes any more; a drain's time passes meanwhile. Returns what `RolledOut` said.
    pub(super) fn run(&mut self) -> Vec<String> {
        let from = self.said.len();
        for _ in 0..100 {
            let (plan, wrote) = self.pass();
            if self.machines() || wrote {
                continue;
            }
            match plan.again.filter(|_| plan.phase == Phase::Draining) {
                Some(at) => self.now = at,
                None => return self.said[from..].to_vec(),
            }
        }
        panic!("no rest after a hundred passes: {:?}", self.said);
    }

    /// Passes until `RolledOut` gives this reason.
    pub(super) fn until(&mut self, reason: &str) -> Plan {
        for _ in 0..100 {
            let (plan, _) = self.pass();
            if self.reason() == reason {
                return plan;
            }
            self.machines();
        }
        panic!("never {reason}: {:?}", self.said);
    }

    /// Time passes, and nothing else.
    pub(super) fn later(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// What the next pass reads, and what it makes of it.
    pub(super) fn foresee(&self) -> (Intent, Observed, Plan, Planned) {
        let caches = self.caches();
        let policies = observe::policies(&caches, "ns");
        let intent = check::read(&self.dataplane, &policies, true, &Ceilings::default());
        let observed = plan::adopt::complete(&intent, self.look(&intent, &caches));
        let plan = plan::decide(&intent, &observed, self.now);
        let planned = build::render(&intent, &observed, &plan);
        (intent, observed, plan, planned)
    }

    /// One pass. Says what was planned, and whether anything was written or learnt.
    pub(super) fn pass(&mut self) -> (Plan, bool) {
        let (intent, observed, plan, planned) = self.foresee();
        let before = (self.version, self.connections.clone(), self.trials.len());
        let trouble = self.converge(&intent, &planned).err().map(|error| error.sentence());
        let status = status::report(&intent, &observed, &plan, trouble.as_deref(), self.now);
        if !plan.founds || trouble.is_some() {
            self.publish(&plan, &status, trouble.is_some());
        }
        if trouble.is_none() {
            self.work(&plan);
            self.notes.extend(status::notes(&intent, &observed, &plan, &status));
        }
        (plan, before.0 != self.version || before.1 != self.connections || before.2 != self.trials.len())
    }

    fn caches(&self) -> Caches {
        Caches {
            dataplanes: stored([self.dataplane.clone()]),
            policies: stored(self.policies.clone()),
            cluster: Some(OfCluster {
                policies: stored(self.cluster_policies.clone()),
                namespaces: stored([PartialObjectMeta { metadata: self.namespace.clone(), ..Default::default() }]),
            }),
            promotions: Owned::of_store(self.packed()),
            records: Owned::of_store(self.packed()),
            deployments: Owned::of_store(self.packed()),
            services: Owned::of_store(self.packed()),
            secrets: Owned::of_store(self.packed()),
            autoscalers: Owned::of_store(self.packed()),
            budgets: Owned::of_store(self.packed()),
            pods: Owned::of_store(self.packed()),
            slices: Owned::of_store(self.packed()),
        }
    }

    fn look(&self, intent: &Intent, caches: &Caches) -> Observed {
        let ready = if self.loading { Plugin::Loading } else { Plugin::Ready(Digest::of(b"plugin")) };
        let observed = observe::look(caches, &self.dataplane);
        let wanted = intent.rules.gates.iter().map(|gate| gate.plugin.clone());
        let pinned = observed.verifies().map(|pinned| pinned.gate.plugin_ref.key("ns"));
        Observed {
            plugins: wanted.chain(pinned).map(|plugin| (plugin, ready.clone())).collect(),
            trials: self.trials.clone(),
            connections: self.connections.clone(),
            host: format!("process {}", self.process),
            ..observed
        }
    }

    fn converge(&mut self, intent: &Intent, planned: &Planned) -> Result<(), apply::Error> {
        let Planned {
            fences,
            approval,
            closes,
            records,
            promotion,
            certificates,
            services,
            deployments,
            autoscaler,
            budget,
            surplus,
        } = planned;
        for fence in fences {
            self.bend("Service", &fence.name, |service| api::merge_patch(service, &fence.body));
        }
        if *approval != ApprovalPlan::Keep {
            self.annotate(PROMOTE_WHEN_READY, None);
        }
        for closed in closes {
            self.promotion_status(&closed.name, &closed.status);
        }
        for record in records {
            self.apply("ControllerRevision", record)?;
        }
        if let Some(promotion) = promotion.as_ref().filter(|promotion| promotion.opens) {
            self.apply("Promotion", &Object::new(promotion.name.clone(), build::promotion(intent, promotion)))?;
        }
        for order in certificates {
            let found = self.find::<Secret>(&order.name);
            if found.is_none_or(|secret| !certificate::covers(&secret, order)) {
                self.apply("Secret", &issued(order))?;
            }
        }
        for service in services {
            self.apply("Service", service)?;
        }
        for deployment in deployments {
            let found = self.find::<Deployment>(&deployment.name);
            let successor = found.and_then(|found| apply::successor(&intent.owner.name, deployment, &found));
            self.apply("Deployment", successor.as_ref().unwrap_or(deployment))?;
        }
        if let Some(autoscaler) = autoscaler {
            self.apply("HorizontalPodAutoscaler", autoscaler)?;
        }
        if let Some(budget) = budget {
            self.apply("PodDisruptionBudget", budget)?;
        }
        let Surplus { deployments, secrets, services, autoscalers, budgets, records, promotions } = surplus;
        for (kind, names) in [
            ("HorizontalPodAutoscaler", autoscalers),
            ("PodDisruptionBudget", budgets),
            ("Deployment", deployments),
            ("Secret", secrets),
            ("Service", services),
            ("ControllerRevision", records),
            ("Promotion", promotions),
        ] {
            for name in names {
                self.version += 1;
                self.objects.remove(&(kind.to_owned(), name.clone()));
                self.applied.remove(&(kind.to_owned(), name.clone()));
            }
        }
        Ok(())
    }

    fn publish(&mut self, plan: &Plan, status: &DataPlaneStatus, trouble: bool) {
        if let Some(Cleared { promotion, retry_only, .. }) = &plan.cleared {
            let decision = if *retry_only { json!({ "retry": null }) } else { Value::Null };
            self.bend("Promotion", promotion, |one| merge_patch(&mut one["spec"]["decision"], &decision));
        }
        let moving = matches!(plan.phase, Phase::Switching | Phase::Verifying) && !plan.arms;
        if let Some(promotion) = plan.promotion.as_ref().filter(|_| moving || !trouble) {
            self.promotion_status(&promotion.name, &promotion.status);
        }
        if self.dataplane.status.as_ref() == Some(status) {
            return;
        }
        let before = self.dataplane.status.replace(status.clone());
        self.touched(false);
        let said = spoken(status);
        if before.as_ref().map(spoken).as_ref() != Some(&said) {
            self.said.push(said);
        }
    }

    fn promotion_status(&mut self, name: &str, status: &PromotionStatus) {
        let status = json!(status);
        let key = ("Promotion".to_owned(), name.to_owned());
        if self.objects.get(&key).is_some_and(|found| found["status"] != status) {
            self.bend("Promotion", name, |promotion| promotion["status"] = status);
        }
    }

    /// The preview answers, if it does, and gates say what they have to say.
    fn work(&mut self, plan: &Plan) {
        let answer = if self.silent { Connection::Silent("nobody is there".into()) } else { Connection::Answers };
        self.connections.extend(plan.connect.iter().map(|key| (key.clone(), answer.clone())));
        let said = plan.trials.iter().filter(|trial| trial.may_begin).filter_map(|trial| {
            let verdict = match trial.moment {
                Moment::BeforePromotion => &self.verdict,
                Moment::AfterPromotion => &self.verified,
            };
            Some((trial.key.clone(), Arc::new(Report::of(verdict.clone()?))))
        });
        self.trials.extend(said);
    }

    // What the API does.

    fn apply(&mut self, kind: &'static str, object: &Object) -> Result<(), apply::Error> {
        let marked = apply::marked(object).body;
        let key = (kind.to_owned(), object.name.clone());
        let found = self.objects.get(&key).cloned();
        if found.as_ref().is_some_and(|found| differ::holds(found, &marked)) {
            return Ok(());
        }
        if found.as_ref().is_some_and(|found| !self.ours(found)) {
            return Err(apply::Error::Taken { kind, name: object.name.clone() });
        }
        if self.refused.as_ref().is_some_and(|refused| *refused == kind || *refused == object.name) {
            let status = Status::failure("the API refuses it", "Forbidden").with_code(403);
            let source = kube::Error::Api(status.boxed());
            return Err(apply::Error::Write { verb: "apply", kind, name: object.name.clone(), source });
        }
        let count = match &found {
            Some(found) => found["spec"]["replicas"].clone(),
            None => object.count.into(),
        };
        let mut stored = found.unwrap_or_else(|| json!({}));
        if let Some(applied) = self.applied.insert(key.clone(), marked.clone()) {
            prune("", &mut stored, &applied, &marked);
        }
        overlay("", &mut stored, &marked);
        if object.count.is_some() {
            stored["spec"]["replicas"] = count;
        }
        self.store(key, stored);
        Ok(())
    }

    fn ours(&self, found: &Value) -> bool {
        let uid = json!(self.dataplane.uid());
        entries(&found["metadata"]["ownerReferences"]).any(|owner| owner["uid"] == uid)
    }

    fn store(&mut self, key: Key, mut object: Value) {
        self.version += 1;
        let found = self.objects.get(&key);
        default(&key.0, &mut object);
        let changed = found.is_none_or(|found| found["spec"] != object["spec"]);
        let generation = found.and_then(|found| found["metadata"]["generation"].as_i64()).unwrap_or_default();
        let metadata = &mut object["metadata"];
        metadata["namespace"] = "ns".into();
        metadata["generation"] = (generation + i64::from(changed)).into();
        metadata["resourceVersion"] = self.version.to_string().into();
        for (field, value) in
            [("uid", format!("uid-{}", self.version)), ("creationTimestamp", (self.now + self.age()).to_string())]
        {
            if metadata[field].is_null() {
                metadata[field] = value.into();
            }
        }
        let held = entries(&metadata["finalizers"]).next().is_some();
        if !held && metadata.get("deletionTimestamp").is_some() {
            self.objects.remove(&key);
            self.applied.remove(&key);
        } else {
            self.objects.insert(key, object);
        }
    }

    /// No two objects are of the same age, though no clock runs.
    fn age(&self) -> SignedDuration {
        SignedDuration::from_micros(i64::try_from(self.version).expect("a small number"))
    }

    // What can be seen.

    /// An object as stored.
    pub(super) fn raw(&self, kind: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(kind.to_owned(), name.to_owned()))
    }

    /// Everything there is, by kind and name.
    pub(super) fn everything(&self) -> &BTreeMap<Key, Value> {
        &self.objects
    }

    /// Names of all objects of a kind.
    pub(super) fn names(&self, kind: &str) -> Vec<String> {
        self.objects.keys().filter(|(of, _)| of == kind).map(|(_, name)| name.clone()).collect()
    }

    /// All objects of a kind, as stored.
    pub(super) fn all(&self, kind: &str) -> Vec<&Value> {
        self.objects.iter().filter(|((of, _), _)| of == kind).map(|(_, object)| object).collect()
    }

    fn find<K: Resource<DynamicType = ()> + DeserializeOwned>(&self, name: &str) -> Option<K> {
        let found = self.raw(&K::kind(&()), name)?;
        Some(serde_json::from_value(found.clone()).expect("an object"))
    }

    /// What the caches of the operator hold of a kind.
    fn cached<K: Resource<DynamicType = ()> + DeserializeOwned>(&self) -> Vec<K> {
        let kind = K::kind(&());
        let found = self.all(&kind).into_iter().filter(|object| is_cached(&kind, object));
        found.map(|object| serde_json::from_value(object.clone()).expect("an object")).collect()
    }

    fn packed<K: Kept>(&self) -> Store<Packed<K>> {
        stored(self.cached().into_iter().map(|object| Packed::of(object).expect("JSON")))
    }

    /// The Deployment with this label.
    pub(super) fn deployment(&self, state: State) -> &Value {
        let mut found = self.all("Deployment").into_iter();
        found.find(|one| one["metadata"]["labels"][names::DEPLOYMENT_STATE] == state.as_str()).expect("a Deployment")
    }

    /// Pods of the Deployment with this label that are ready.
    pub(super) fn ready(&self, state: State) -> i64 {
        self.deployment(state)["status"]["readyReplicas"].as_i64().unwrap_or_default()
    }

    /// The Service in this place.
    pub(super) fn service(&self, state: State, role: Role) -> &Value {
        let labels = |one: &Value, label: &str| one["metadata"]["labels"][label].clone();
        let mut found = self.all("Service").into_iter();
        found
            .find(|one| {
                labels(one, names::SERVICE_STATE) == state.as_str() && labels(one, names::SERVICE_TYPE) == role.as_str()
            })
            .expect("a Service")
    }

    /// What a Service selects.
    pub(super) fn selects(&self, state: State, role: Role) -> String {
        self.service(state, role)["spec"]["selector"][names::SELECTOR].as_str().unwrap_or_default().to_owned()
    }

    /// The image of the ready Pods behind the live ingress Service.
    pub(super) fn serves(&self) -> BTreeSet<String> {
        let pods = self.takers(State::Live, Role::Ingress);
        let pods = pods.iter().filter_map(|pod| self.raw("Pod", pod));
        pods.filter_map(|pod| Some(pod["spec"]["containers"][0]["image"].as_str()?.to_owned())).collect()
    }

    /// The ready Pods behind a Service, by its EndpointSlices.
    pub(super) fn takers(&self, state: State, role: Role) -> Vec<String> {
        let endpoints = self.slices(state, role).into_iter().flat_map(|slice| entries(&slice["endpoints"]));
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
        ready.filter_map(|endpoint| Some(endpoint["targetRef"]["name"].as_str()?.to_owned())).collect()
    }

    /// The EndpointSlices of a Service.
    pub(super) fn slices(&self, state: State, role: Role) -> Vec<&Value> {
        let service = name(self.service(state, role));
        self.all("EndpointSlice").into_iter().filter(|slice| machines::served(slice) == service).collect()
    }

    /// Status of the newest upgrade.
    pub(super) fn promotion(&self) -> PromotionStatus {
        serde_json::from_value(self.newest()["status"].clone()).expect("a status")
    }

    /// Whether people were told of this, since they were last asked.
    pub(super) fn told(&mut self, reason: &str, words: &str) -> bool {
        let notes = std::mem::take(&mut self.notes);
        notes.iter().any(|note| note.reason == reason && note.message.contains(words))
    }

    /// The autoscaler.
    pub(super) fn autoscaler(&self) -> &Value {
        self.raw("HorizontalPodAutoscaler", "dp").expect("an autoscaler")
    }

    /// The status.
    pub(super) fn status(&self) -> DataPlaneStatus {
        self.dataplane.status.clone().unwrap_or_default()
    }

    /// `Ready`, or another condition of the live side.
    pub(super) fn condition(&self, type_: &str) -> Option<Condition> {
        self.status().conditions.into_iter().find(|condition| condition.type_ == type_)
    }

    /// `status/reason: message` of `Ready`.
    pub(super) fn readiness(&self) -> String {
        let ready = self.condition("Ready").expect("Ready");
        [ready.status, "/".into(), ready.reason, ": ".into(), ready.message].concat().trim_end_matches(": ").to_owned()
    }

    /// The reason of `RolledOut`; empty where there is none.
    pub(super) fn reason(&self) -> String {
        self.rolled_out().map(|condition| condition.reason).unwrap_or_default()
    }

    /// `RolledOut`.
    pub(super) fn rolled_out(&self) -> Option<Condition> {
        self.dataplane.status.as_ref()?.rollout.as_ref()?.conditions.first().cloned()
    }

    /// R, P and G: the generation that is live, the one that is prepared, and that of the spec.
    pub(super) fn generations(&self) -> [Option<i64>; 3] {
        let ready = self.condition("Ready").and_then(|ready| ready.observed_generation);
        let rolled_out = self.rolled_out().and_then(|rolled_out| rolled_out.observed_generation);
        [ready, rolled_out, self.dataplane.metadata.generation]
    }

    /// At rest: said so, for the current spec, with one Deployment that serves and one at zero.
    pub(super) fn rests(&self) -> bool {
        let [ready, rolled_out, now] = self.generations();
        let at_zero = || self.deployment(State::Preview)["spec"]["replicas"] == 0;
        self.reason() == "WaitingForChange"
            && ready == now
            && rolled_out == now
            && self.names("Deployment").len() == 2
            && at_zero()
    }
}

/// The name of an object.
pub(super) fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().expect("a name").to_owned()
}

fn stored<K>(objects: impl IntoIterator<Item = K>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let (store, mut writer) = reflector::store();
    objects.into_iter().for_each(|object| writer.apply_watcher_event(&Event::Apply(object)));
    store
}

/// The watches of the operator have selectors.
fn is_cached(kind: &str, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    match kind {
        "Promotion" => true,
        "Pod" => !labels[names::SELECTOR].is_null(),
        _ => labels[names::MANAGED_BY] == names::DATAPLANE,
    }
}

fn issued(order: &CertificateOrder) -> Object {
    let mut body = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": order.metadata,
        "data": { "ca.crt": "Y2E=", "tls.crt": "Y3J0", "tls.key": "a2V5" },
    });
    body["metadata"]["annotations"] = json!({ names::HOSTS: order.hosts.join(",") });
    Object::new(order.name.clone(), body)
}

/// `reason/generation: message` of `RolledOut`; `-` where there is no rollout.
fn spoken(status: &DataPlaneStatus) -> String {
    let Some(said) = status.rollout.as_ref().and_then(|rollout| rollout.conditions.first()) else { return "-".into() };
    let generation = said.observed_generation.unwrap_or_default();
    format!("{}/{generation}: {}", said.reason, said.message).trim_end_matches(": ").to_owned()
}
