//! A plugin that is replaced a thousand times while upgrades are judged by it: nothing is lost, mixed up or left behind.
//!
//! The controller of plugins is the real one, and so is the gate host; of the cluster there is what that controller asks.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, patch},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{StreamExt as _, future::join_all, stream};
use serde_json::{Value, json};
use sluice::{
    api::GatePlugin,
    cluster::Scope,
    gate::{GateHost as _, RemoteGateHost},
    gateplugin::{self, Allowed, Ceiling, Fetcher, Installed, Library},
    model::{PluginKey, observed::Plugin, trial::Digest},
    telemetry::{Metrics, Readiness},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{fixture, heard, process::process, trial};

const REPLACEMENTS: usize = 1000;

/// By then everything has happened that happens once.
const SETTLED: usize = 100;

/// Upgrades that are judged at the same time.
const UPGRADES: usize = 3;

/// Far beyond what it takes.
const PATIENCE: Duration = Duration::from_secs(600);

/// Gates that differ in four digits, and pass with them.
struct Gates {
    one: Bytes,
    digits: usize,
}

impl Gates {
    fn new() -> Self {
        let one = fixture("good", &[]);
        let found: Vec<usize> = (0..one.len()).filter(|at| one[*at..].starts_with(b"fine")).collect();
        let [digits] = found[..] else { panic!("{found:?}") };
        Self { one, digits }
    }

    fn gate(&self, number: usize) -> Bytes {
        let mut bytes = self.one.to_vec();
        bytes[self.digits..][..4].copy_from_slice(format!("{number:04}").as_bytes());
        bytes.into()
    }

    /// Which of them says this.
    fn who_says(&self, words: &str) -> Digest {
        Digest::of(&self.gate(words.parse().unwrap()))
    }
}

/// An object of the API, and everybody who watches it.
type Object = watch::Sender<Value>;

/// One ConfigMap and the plugin in it.
#[derive(Clone)]
struct Cluster {
    config_map: Object,
    plugin: Object,
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn change(object: &Object, change: impl FnOnce(&mut Value)) {
    object.send_modify(|object| {
        change(object);
        object["metadata"]["resourceVersion"] = json!((version(object) + 1).to_string());
    });
}

/// The list of one object, or what becomes of it.
async fn list(State(object): State<Object>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let parameter = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    if parameter("watch") != Some("true") {
        let item = object.borrow().clone();
        let kind = format!("{}List", item["kind"].as_str().unwrap());
        let metadata = json!({ "resourceVersion": item["metadata"]["resourceVersion"] });
        return Json(json!({ "apiVersion": item["apiVersion"], "kind": kind, "metadata": metadata, "items": [item] }))
            .into_response();
    }
    let since: u64 = parameter("resourceVersion").unwrap().parse().unwrap();
    let events = stream::unfold((object.subscribe(), since), async |(mut object, since)| {
        let now = object.wait_for(|object| version(object) > since).await.ok()?.clone();
        let event = json!({ "type": "MODIFIED", "object": now });
        Some((Ok::<_, Infallible>(format!("{event}\n")), (object, version(&now))))
    });
    Body::from_stream(events).into_response()
}

async fn read(State(object): State<Object>) -> Json<Value> {
    Json(object.borrow().clone())
}

/// Takes a status for the version that it was made for.
async fn write_status(State(object): State<Object>, applied: Bytes) -> Response {
    let applied: Value = serde_json::from_slice(&applied).unwrap();
    let current = applied["metadata"]["resourceVersion"] == object.borrow()["metadata"]["resourceVersion"];
    if !current {
        let status = json!({ "kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409 });
        return (StatusCode::CONFLICT, Json(status)).into_response();
    }
    change(&object, |object| object["status"] = applied["status"].clone());
    read(State(object)).await.into_response()
}

impl Cluster {
    fn new() -> Self {
        let metadata = |name: &str| json!({ "name": name, "namespace": "ns", "uid": name, "generation": 1, "resourceVersion": "1" });
        let source = json!({ "configMap": { "name": "gates", "key": "smoke.wasm" } });
        Self {
            config_map: Object::new(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("gates") })),
            plugin: Object::new(json!({
                "apiVersion": "sluice.dev/v1alpha1",
                "kind": "GatePlugin",
                "metadata": metadata("smoke"),
                "spec": { "source": source },
            })),
        }
    }

    fn client(&self) -> kube::Client {
        let (config_maps, plugins) =
            ("/api/v1/namespaces/ns/configmaps", "/apis/sluice.dev/v1alpha1/namespaces/ns/gateplugins");
        let of_config_map = Router::new()
            .route(config_maps, get(list))
            .route(&format!("{config_maps}/gates"), get(read))
            .with_state(self.config_map.clone());
        let of_plugin = Router::new()
            .route(plugins, get(list))
            .route(&format!("{plugins}/smoke/status"), patch(write_status))
            .with_state(self.plugin.clone());
        kube::Client::new(of_config_map.merge(of_plugin), "ns")
    }

    /// As `kubectl replace` does it.
    fn replace(&self, component: &Bytes) {
        change(&self.config_map, |object| object["binaryData"]["smoke.wasm"] = json!(STANDARD.encode(component)));
    }
}

/// The controller of plugins on `cluster`, for as long as what is returned.
fn controller(cluster: &Cluster, host: Arc<RemoteGateHost>, installed: Installed) -> AbortOnDropHandle<()> {
    let client = cluster.client();
    AbortOnDropHandle::new(tokio::spawn(gateplugin::run::<GatePlugin>(gateplugin::Setup {
        scope: Scope::Namespace("ns".into()),
        fetcher: Arc::new(Fetcher::new(Arc::new(client.clone()), Allowed::default())),
        client,
        library: Arc::new(Library::new(host)),
        installed,
        ceiling: Ceiling { cpu: Duration::from_secs(10), memory: 1 << 30, requests: 1 << 20, traffic: 1 << 30 },
        metrics: Metrics::default(),
        ready: Readiness::default().expect("plugins"),
        shutdown: CancellationToken::new(),
    })))
}

/// What one upgrade after the other does, until `stop`: it is begun with what is installed then, goes on with that until it
/// has been replaced, and once more. Returns how many trials it was.
async fn upgrades(
    name: String,
    gates: Arc<Gates>,
    host: Arc<RemoteGateHost>,
    installed: Installed,
    stop: CancellationToken,
) -> usize {
    let plugin = PluginKey::of_namespace("ns", "smoke");
    let mut trials = 0;
    while !stop.is_cancelled() {
        let (lent, held) = installed.lend([plugin.clone()]);
        let Some(Plugin::Ready(digest)) = lent.get(&plugin) else { panic!("{lent:?}") };
        installed.pin(&name, [digest.clone()].into());
        drop(held);
        let mut replaced = false;
        while !replaced {
            replaced = stop.is_cancelled() || installed.get(&plugin) != Some(Plugin::Ready(digest.clone()));
            assert_eq!(gates.who_says(heard(&host.run(trial(digest)).await)), *digest);
            trials += 1;
        }
        installed.pin(&name, [].into());
    }
    trials
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_replacements_lose_no_trial_mix_up_no_verdict_and_leave_nothing_behind() {
    let (gates, plugin) = (Arc::new(Gates::new()), PluginKey::of_namespace("ns", "smoke"));
    // Room for the artifacts of a hundred: they go while their plugins are still run.
    let first = "export SLUICE_LOG=warn SLUICE_CACHE_SIZE=8Mi";
    let ((settled, after, mapped, trials), said) = process(first, PATIENCE, async |host, proc| {
        let (cluster, installed, stop) = (Cluster::new(), Installed::awaiting(1), CancellationToken::new());
        let _controller = controller(&cluster, Arc::clone(host), installed.clone());
        let mut changes = pin!(installed.changes());
        let (mut judging, mut settled) = (Vec::new(), 0);
        for number in 0..REPLACEMENTS {
            let component = gates.gate(number);
            cluster.replace(&component);
            let digest = Digest::of(&component);
            while installed.get(&plugin) != Some(Plugin::Ready(digest.clone())) {
                changes.next().await;
            }
            assert_eq!(gates.who_says(heard(&host.run(trial(&digest)).await)), digest);
            if number == 0 {
                let upgrades = |name: usize| {
                    upgrades(name.to_string(), gates.clone(), host.clone(), installed.clone(), stop.clone())
                };
                judging = (0..UPGRADES).map(upgrades).map(tokio::spawn).map(AbortOnDropHandle::new).collect();
            }
            if number == SETTLED {
                settled = proc.resident();
            }
        }
        let after = proc.resident();
        stop.cancel();
        let trials: usize = join_all(judging).await.into_iter().map(Result::unwrap).sum();
        let maps = proc.read("maps");
        let mut mapped: Vec<_> =
            maps.lines().filter_map(|line| line.split_once("/artifacts/")).map(|(_, name)| name.to_owned()).collect();
        mapped.dedup();
        (settled, after, mapped, trials)
    })
    .await;
    assert_eq!(said, "");
    assert!(trials > REPLACEMENTS, "{trials}");
    // Those that are used, and those whose memory waits in the pool for a next trial.
    assert!(mapped.len() < 32, "{mapped:#?}");
    assert!(after * 10 <= settled * 11, "{settled} bytes after {SETTLED} replacements, {after} after {REPLACEMENTS}");
}
