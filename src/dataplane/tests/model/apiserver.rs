//! The apiserver: what it stores, what it refuses, and what its watches tell, one request at a time.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::{Map, Value, json};

use super::{
    super::world::api::{default, entries, merge_patch, overlay, prune},
    objects::{Content, Key, Kind, wide},
};
use crate::model::differ;

/// An object at a version.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) content: Arc<Content>,
    pub(super) version: u32,
}

impl Stored {
    pub(super) fn value(&self) -> &Value {
        &self.content.value
    }

    /// As it is sent.
    pub(super) fn sent(&self) -> Value {
        let mut value = self.content.value.clone();
        value["metadata"]["resourceVersion"] = self.version.to_string().into();
        value
    }
}

pub(super) type Objects = BTreeMap<Key, Stored>;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verb {
    Apply,
    Merge,
    MergeStatus,
    Create,
    Delete,
    Get,
    List,
}

/// The version that a write names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum If {
    Any,
    Absent,
    At(u32),
}

/// A request, without the version that it names: that is the only thing in it which depends on the path to a state.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) verb: Verb,
    pub(super) key: Key,
    pub(super) body: Value,
    /// Only the metadata of the object is wanted in answer.
    pub(super) brief: bool,
    pub(super) uid: Option<String>,
    pub(super) hash: u128,
}

impl Request {
    /// A request as it is sent, and the version it names.
    pub(super) fn read(method: &str, path: &str, content: &str, accept: &str, mut body: Value) -> Option<(Self, If)> {
        let (_, path) = path.split_once("/namespaces/ns/")?;
        let parts: Vec<_> = path.split('/').collect();
        let kind = Kind::of_plural(parts[0])?;
        let status = parts.get(2) == Some(&"status");
        let named = parts.get(1).copied().or(body["metadata"]["name"].as_str()).unwrap_or_default().to_owned();
        let (verb, version, uid) = match method {
            "GET" if parts.len() == 1 => (Verb::List, None, None),
            "GET" => (Verb::Get, None, None),
            "POST" => (Verb::Create, None, None),
            "DELETE" => {
                let asked = body["preconditions"].take();
                let text = |field: &str| asked[field].as_str().map(str::to_owned);
                (Verb::Delete, text("resourceVersion"), text("uid"))
            }
            "PATCH" => {
                let metadata = body["metadata"].as_object_mut();
                let (version, uid) = metadata.map_or((None, None), |metadata| {
                    let text = |value: Option<Value>| value.and_then(|value| value.as_str().map(str::to_owned));
                    let uid = if status { text(metadata.remove("uid")) } else { None };
                    (text(metadata.remove("resourceVersion")), uid)
                });
                let verb = match (content.contains("apply-patch"), status) {
                    (true, _) => Verb::Apply,
                    (false, true) => Verb::MergeStatus,
                    (false, false) => Verb::Merge,
                };
                (verb, version, uid)
            }
            _ => return None,
        };
        if verb == Verb::Delete {
            body = Value::Null;
        }
        let only = match version.as_deref() {
            None => If::Any,
            Some(differ::ABSENT) => If::Absent,
            Some(version) => If::At(version.parse().ok()?),
        };
        let key = Key::of(kind, &named);
        let brief = accept.contains("PartialObjectMetadata");
        Some((Self::of(verb, key, body, brief, uid), only))
    }

    fn of(verb: Verb, key: Key, body: Value, brief: bool, uid: Option<String>) -> Self {
        let text = body.to_string();
        let head = [verb as u8, u8::from(brief)];
        let hash = wide(&[&head, &key.hash().to_le_bytes(), text.as_bytes(), uid.as_deref().unwrap_or("-").as_bytes()]);
        Self { verb, key, body, brief, uid, hash }
    }

    pub(super) fn is_write(&self) -> bool {
        !matches!(self.verb, Verb::Get | Verb::List)
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The object as it is then.
    pub(super) found: Vec<Stored>,
}

impl Answer {
    fn refused(status: u16) -> Self {
        Self { status, found: Vec::new() }
    }

    pub(super) fn is_success(&self) -> bool {
        self.status < 300
    }

    /// The version that was written, if one was.
    pub(super) fn version(&self) -> Option<u32> {
        self.found.first().map(|found| found.version)
    }

    /// What of it decides how a pass goes on.
    pub(super) fn hash(&self, request: &Request) -> u128 {
        let mut parts = vec![u128::from(self.status).to_le_bytes()];
        if !request.brief {
            parts.extend(self.found.iter().map(|found| found.content.exact.to_le_bytes()));
        }
        wide(&parts.iter().map(<[u8; 16]>::as_slice).collect::<Vec<_>>())
    }

    /// As it is sent.
    pub(super) fn body(&self, request: &Request) -> Value {
        if !self.is_success() {
            let reason = match self.status {
                404 => "NotFound",
                422 => "Invalid",
                _ => "Conflict",
            };
            return json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": self.status,
            });
        }
        match request.verb {
            Verb::List => {
                let kind = request.key.kind;
                let items: Vec<_> = self.found.iter().map(Stored::sent).collect();
                json!({
                    "apiVersion": kind.version(), "kind": format!("{}List", kind.as_str()), "metadata": {}, "items": items,
                })
            }
            Verb::Delete => json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }),
            _ if request.brief => {
                let mut metadata = self.found[0].value()["metadata"].clone();
                metadata["resourceVersion"] = self.found[0].version.to_string().into();
                json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata })
            }
            _ => self.found[0].sent(),
        }
    }
}

/// What a watch tells.
pub(super) type Change = (Key, Option<Stored>);

/// Everything that is stored.
#[derive(Clone, Debug, Default)]
pub(super) struct Apiserver {
    pub(super) objects: Arc<Objects>,
    /// What the watches have still to tell, in order.
    pub(super) told: Arc<Vec<Change>>,
    /// How often there was an object of a name.
    pub(super) made: Arc<BTreeMap<Key, u8>>,
    version: u32,
}

impl Apiserver {
    pub(super) fn get(&self, key: Key) -> Option<&Stored> {
        self.objects.get(&key)
    }

    pub(super) fn all(&self, kind: Kind) -> impl Iterator<Item = (Key, &Stored)> {
        self.objects.iter().filter(move |(key, _)| key.kind == kind).map(|(key, stored)| (*key, stored))
    }

    /// Answers a request at a moment.
    pub(super) fn answer(&mut self, request: &Request, only: If, now: &str) -> Answer {
        let key = request.key;
        if request.verb == Verb::List {
            return Answer { status: 200, found: self.all(key.kind).map(|(_, found)| found.clone()).collect() };
        }
        let Some(found) = self.objects.get(&key).cloned() else {
            return match request.verb {
                Verb::Create | Verb::Apply => {
                    let mut object = request.body.clone();
                    let applied = if request.verb == Verb::Apply { object.clone() } else { Value::Null };
                    self.born(key, &mut object, now);
                    self.put(key, finished(key, None, object, applied));
                    Answer { status: 201, found: vec![self.objects[&key].clone()] }
                }
                _ => Answer::refused(404),
            };
        };
        let named = match only {
            If::Any => true,
            If::Absent => false,
            If::At(version) => version == found.version,
        };
        let uid = request.uid.as_ref().is_none_or(|uid| found.value()["metadata"]["uid"] == **uid);
        match request.verb {
            Verb::Get => return Answer { status: 200, found: vec![found] },
            Verb::Create => return Answer::refused(409),
            _ if !named || !uid => return Answer::refused(409),
            Verb::Delete => {
                let gone = found.clone();
                self.delete(key, now);
                return Answer { status: 200, found: vec![gone] };
            }
            Verb::Apply | Verb::Merge | Verb::MergeStatus | Verb::List => {}
        }
        self.alter(key, &found, Some(request.hash), |object, applied| match request.verb {
            Verb::Apply => {
                prune("", object, applied, &request.body);
                overlay("", object, &request.body);
                *applied = request.body.clone();
            }
            Verb::MergeStatus => merge_patch(&mut object["status"], &request.body["status"]),
            _ => merge_patch(object, &request.body),
        });
        let stored = self.objects.get(&key).cloned();
        Answer { status: 200, found: vec![stored.unwrap_or(found)] }
    }

    /// Puts an object there that is none of the operator's.
    pub(super) fn make(&mut self, key: Key, mut object: Value, now: &str) {
        self.born(key, &mut object, now);
        self.put(key, finished(key, None, object, Value::Null));
    }

    /// Changes an object as somebody who has just read it.
    pub(super) fn bend(&mut self, key: Key, change: impl FnOnce(&mut Value)) {
        let Some(found) = self.objects.get(&key).cloned() else { return };
        self.alter(key, &found, None, |object, _| change(object));
    }

    /// Likewise, where the same change of the same object has a name.
    pub(super) fn bend_alike(&mut self, key: Key, name: u128, change: impl FnOnce(&mut Value)) {
        let Some(found) = self.objects.get(&key).cloned() else { return };
        self.alter(key, &found, Some(name), |object, _| change(object));
    }

    fn alter(&mut self, key: Key, found: &Stored, name: Option<u128>, change: impl FnOnce(&mut Value, &mut Value)) {
        let known = name.map(|name| (found.content.exact, name));
        let content = known.and_then(|known| ALTERED.with_borrow(|altered| altered.get(&known).cloned()));
        let content = content.unwrap_or_else(|| {
            let (mut object, mut applied) = (found.content.value.clone(), found.content.applied.clone());
            change(&mut object, &mut applied);
            let content = finished(key, Some(found.value()), object, applied);
            if let Some(known) = known {
                ALTERED.with_borrow_mut(|altered| altered.insert(known, Arc::clone(&content)));
            }
            content
        });
        self.put(key, content);
    }

    /// Deletes an object: it goes at once only if no finalizer holds it.
    pub(super) fn delete(&mut self, key: Key, now: &str) {
        let Some(found) = self.objects.get(&key) else { return };
        if entries(&found.value()["metadata"]["finalizers"]).next().is_some() {
            let at = Value::from(now);
            self.bend(key, |object| object["metadata"]["deletionTimestamp"] = at);
        } else {
            self.lose(key);
        }
    }

    fn lose(&mut self, key: Key) {
        Arc::make_mut(&mut self.objects).remove(&key);
        Arc::make_mut(&mut self.told).push((key, None));
    }

    fn born(&mut self, key: Key, object: &mut Value, now: &str) {
        let count = Arc::make_mut(&mut self.made).entry(key).or_default();
        *count += 1;
        let uid = match key.kind {
            Kind::DataPlane => "uid".to_owned(),
            _ => format!("uid-{}-{count}", key.name()),
        };
        let metadata = &mut object["metadata"];
        metadata["name"] = (*key.name()).into();
        metadata["namespace"] = "ns".into();
        metadata["uid"] = uid.into();
        metadata["creationTimestamp"] = format!("{}Z", &now[..19]).into();
        if key.kind == Kind::Service {
            // Nobody is asked at it: every Pod has an address of its own.
            if object["spec"]["clusterIP"].is_null() {
                object["spec"]["clusterIP"] = "127.0.2.1".into();
            }
            object["status"] = match object["spec"]["type"].as_str() {
                Some("LoadBalancer") => json!({ "loadBalancer": { "ingress": [{ "ip": "127.0.3.1" }] } }),
                _ => json!({}),
            };
        }
    }

    /// Stores an object, if it is another one.
    fn put(&mut self, key: Key, content: Arc<Content>) {
        let metadata = &content.value["metadata"];
        if metadata.get("deletionTimestamp").is_some() && metadata.get("finalizers").is_none() {
            return self.lose(key);
        }
        let objects = Arc::make_mut(&mut self.objects);
        if let Some(found) = objects.get_mut(&key)
            && (found.content.exact == content.exact || found.content.value == content.value)
        {
            // What changes nothing is not written; who applied what may differ all the same.
            found.content = content;
            return;
        }
        self.version += 1;
        let stored = Stored { content, version: self.version + 1 };
        objects.insert(key, stored.clone());
        Arc::make_mut(&mut self.told).push((key, Some(stored)));
    }
}

thread_local! {
    /// The same change of the same object comes to the same.
    static ALTERED: RefCell<HashMap<(u128, u128), Arc<Content>>> = RefCell::default();
}

/// An object as it is stored: with defaults, and with a generation that counts what is asked of it.
fn finished(key: Key, before: Option<&Value>, mut object: Value, applied: Value) -> Arc<Content> {
    default(key.kind.as_str(), &mut object);
    if key.kind.has_generations() && before.is_none_or(|before| before["spec"] != object["spec"]) {
        let generation = object["metadata"]["generation"].as_i64().unwrap_or_default();
        object["metadata"]["generation"] = (generation + 1).into();
    }
    if let Some(metadata) = object["metadata"].as_object_mut()
        && metadata.get("finalizers").is_some_and(|held| entries(held).next().is_none())
    {
        metadata.remove("finalizers");
    }
    Content::of(object, applied)
}

/// A path into an object, for those who only read.
pub(super) fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// Its labels.
pub(super) fn labels(value: &Value) -> &Map<String, Value> {
    static NONE: std::sync::OnceLock<Map<String, Value>> = std::sync::OnceLock::new();
    value["metadata"]["labels"].as_object().unwrap_or_else(|| NONE.get_or_init(Map::new))
}
