//! The containers of `deploy/operator.yaml` as it confines them: nobody's user, no capability, a root file system without a
//! place to write, and no `/dev`, so no shared memory either.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs::{self, File, Permissions},
    io::ErrorKind,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{RawQuery, State},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::stream;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Container};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize as _;
use serde_json::{Value, json};
use sluice::{
    api,
    gate::{GateHost as _, Presence, RemoteGateHost},
    model::trial::{Scheme, Trial},
};
use sluice_harness::images::linked_libraries;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    sync::watch,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    PATIENCE, candidate, fixture, heard,
    process::{Proc, SLUICE},
    root,
    targets::answering,
    text, trial,
};

/// Drops every right, from within.
const SETPRIV: &str = "/usr/bin/setpriv";

/// Arguments: a folder, a user, folders of volumes each with the path where it is mounted, `--`, the program's own.
const CONFINE: &str = r#"set -e
root="$1" user="$2"
shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do
    mount --bind "$1" "$root$2"
    shift 2
done
shift
mount -o remount,bind,ro "$root"
exec chroot "$root" /usr/bin/setpriv --reuid="$user" --regid="$user" --clear-groups \
    --inh-caps=-all --bounding-set=-all --no-new-privs /usr/local/bin/sluice "$@"
"#;

/// A container and what it has in the place of its Pod's volumes.
struct Confined {
    folder: TempDir,
    container: Container,
    user: String,
    /// Where each is mounted.
    volumes: Vec<String>,
}

impl Confined {
    /// The container `name` of the Deployment, with more volumes.
    fn new(name: &str, more: &[&str]) -> Self {
        let manifests = fs::read_to_string(root().join("deploy/operator.yaml")).unwrap();
        let deployment = serde_norway::Deserializer::from_str(&manifests)
            .find_map(|document| Deployment::deserialize(document).ok())
            .unwrap();
        let pod = deployment.spec.unwrap().template.spec.unwrap();
        let container = pod.containers.into_iter().find(|container| container.name == name).unwrap();
        let rights = container.security_context.as_ref().unwrap();
        assert_eq!((rights.read_only_root_filesystem, rights.allow_privilege_escalation), (Some(true), Some(false)));
        let capabilities = rights.capabilities.as_ref().unwrap();
        assert_eq!((&capabilities.add, capabilities.drop.as_deref()), (&None, Some(&["ALL".to_owned()][..])));
        let user = pod.security_context.unwrap().run_as_user.unwrap().to_string();

        let mounted = container.volume_mounts.iter().flatten().map(|mount| mount.mount_path.clone());
        let volumes = mounted.chain(more.iter().map(|path| (*path).to_owned())).collect();
        let confined = Self { folder: tempfile::tempdir().unwrap(), container, user, volumes };
        confined.furnish();
        confined
    }

    /// What the image has, and what takes the rights.
    fn furnish(&self) {
        for program in [SLUICE, SETPRIV] {
            let libraries = linked_libraries(Path::new(program)).unwrap();
            let place = if program == SLUICE { "/usr/local/bin/sluice" } else { program };
            let files = libraries.iter().map(|library| (library.as_str(), library.as_str()));
            for (from, to) in files.chain([(program, place)]) {
                let to = self.inside(to);
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(from, to).unwrap();
            }
        }
        for folder in self.volumes.iter().map(String::as_str).chain(["/proc", "/tmp"]) {
            fs::create_dir_all(self.inside(folder)).unwrap();
        }
        for volume in &self.volumes {
            fs::create_dir_all(self.volume(volume)).unwrap();
            // As an emptyDir is.
            fs::set_permissions(self.volume(volume), Permissions::from_mode(0o777)).unwrap();
        }
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.folder.path().join("root").join(path.trim_start_matches('/'))
    }

    /// What is mounted there.
    fn volume(&self, path: &str) -> PathBuf {
        self.folder.path().join("volumes").join(path.trim_start_matches('/').replace('/', "-"))
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", CONFINE, "sh"]).arg(self.inside("/")).arg(&self.user);
        for volume in &self.volumes {
            command.arg(self.volume(volume)).arg(volume);
        }
        command.arg("--").args(self.container.args.iter().flatten()).args(more).env_clear();
        let variables = self.container.env.iter().flatten();
        command.envs(variables.filter_map(|variable| Some((&variable.name, variable.value.as_ref()?))));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }
}

/// What it said, where it should not have ended.
fn ended(output: Output) -> ! {
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    panic!("this test confines a process, for which it has to be root and `unshare --mount` has to work: {said}")
}

/// The process has what the Deployment gives it, and not a thing more.
fn assert_confined(proc: &Proc, user: &str) {
    for ids in ["Uid", "Gid"] {
        assert_eq!(proc.status(ids), [user; 4].join("\t"), "{ids}");
    }
    assert_eq!(proc.status("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(proc.status(set), "0".repeat(16), "{set}");
    }
    assert_eq!(proc.status("NoNewPrivs"), "1");
    // Not even for root.
    for folder in ["", "tmp", "usr/local/bin"] {
        let error = File::create(proc.root().join(folder).join("file")).expect_err("a place to write");
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem, "{folder}");
    }
    assert!(!proc.root().join("dev").exists());
}

/// Ends it as a kubelet does.
async fn end(process: Child) {
    let id = Pid::from_raw(process.id().unwrap().cast_signed()).unwrap();
    kill_process(id, Signal::TERM).unwrap();
    let ended = timeout(PATIENCE, process.wait_with_output()).await.unwrap().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
}

/// Starts the gate host, has it judge `address` by `gate`, and ends it. Returns which file holds the compiled gate.
async fn judged(confined: &Confined, gate: Bytes, address: std::net::SocketAddr) -> u64 {
    let mut host = confined
        .command(&["--cache-key=/etc/sluice/key", "--health-probe-bind-address=127.0.0.1:0"])
        .spawn()
        .expect("unshare, of util-linux");
    let process = Proc::of(host.id().unwrap());
    let remote = RemoteGateHost::at(&confined.volume("/run/sluice").join("gate-host.sock"));
    let mut presence = remote.presence();
    tokio::select! {
        here = timeout(PATIENCE, presence.wait_for(|now| matches!(now, Presence::Here(_)))) => drop(here.unwrap().unwrap()),
        _ = host.wait() => ended(host.wait_with_output().await.unwrap()),
    }
    assert_confined(&process, &confined.user);

    let digest = remote.load(gate).await.unwrap().digest;
    let targets = vec![candidate(Scheme::Http, &[address])];
    let report = remote.run(Trial { settings: text("candidate/proxy"), targets, ..trial(&digest) }).await;
    // By the Service, so no Pod by name; a failure would say its kind.
    assert_eq!((heard(&report), report.cost.requests), ("", 1));

    end(host).await;
    let artifacts: Vec<_> = fs::read_dir(confined.volume("/var/cache/sluice").join("artifacts")).unwrap().collect();
    let [Ok(artifact)] = &artifacts[..] else { panic!("{artifacts:?}") };
    artifact.metadata().unwrap().ino()
}

#[tokio::test]
async fn a_gate_host_without_any_right_compiles_and_judges_and_after_a_restart_compiles_nothing() {
    let confined = Confined::new("gate-host", &["/etc/sluice"]);
    fs::write(confined.volume("/etc/sluice").join("key"), [7; 32]).unwrap();
    let address = answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    let gate = fixture("ask", &[]);
    let compiled = judged(&confined, gate.clone(), address).await;
    assert_eq!(judged(&confined, gate, address).await, compiled, "the same file: nobody wrote it again");
}

/// What is watched, by resource.
type Watched = watch::Sender<BTreeSet<String>>;

/// A cluster that knows our kinds, allows everything and has nothing.
async fn answer(
    State(watched): State<Watched>,
    method: Method,
    uri: Uri,
    RawQuery(query): RawQuery,
    asked: Bytes,
) -> Response {
    let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let asked = || serde_json::from_slice::<Value>(&asked).unwrap();
    match (method, &path[..]) {
        (Method::GET, ["apis", _, _]) => {
            let kinds = api::crds().into_iter().map(|crd| json!({ "name": crd.spec.names.plural }));
            Json(json!({ "groupVersion": "", "resources": kinds.collect::<Vec<_>>() })).into_response()
        }
        (Method::POST, [.., "selfsubjectaccessreviews"]) => {
            let mut review = asked();
            review["status"] = json!({ "allowed": true });
            Json(review).into_response()
        }
        (Method::POST, _) => (StatusCode::CREATED, Json(asked())).into_response(),
        (Method::PUT, [.., "leases", _]) => Json(asked()).into_response(),
        (Method::GET, [.., "secrets" | "leases", _]) => {
            let status = json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 });
            (StatusCode::NOT_FOUND, Json(status)).into_response()
        }
        (Method::GET, [.., resource]) if query.is_some_and(|query| query.contains("watch=true")) => {
            watched.send_if_modified(|watched| watched.insert((*resource).to_owned()));
            Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()).into_response()
        }
        (Method::GET, _) => {
            let metadata = json!({ "resourceVersion": "1" });
            Json(json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": [] })).into_response()
        }
        (method, path) => panic!("{method} {path:?}"),
    }
}

#[tokio::test]
async fn an_operator_without_any_right_looks_at_everything_it_works_on() {
    let watched = Watched::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let cluster = axum::serve(listener, Router::new().fallback(answer).with_state(watched.clone()));
    let _cluster = AbortOnDropHandle::new(tokio::spawn(cluster.into_future()));

    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    let confined = Confined::new("operator", &[]);
    // As every Pod has one; where there is none, the machine's own are wanted.
    let authority = rcgen::generate_simple_self_signed(vec!["fake".to_owned()]).unwrap();
    let authority = STANDARD.encode(authority.cert.pem());
    let kubeconfig = json!({
        "current-context": "fake",
        "contexts": [{ "name": "fake", "context": { "cluster": "fake", "user": "fake" } }],
        "clusters": [{ "name": "fake", "cluster": { "server": server, "certificate-authority-data": authority } }],
        "users": [{ "name": "fake", "user": {} }],
    });
    fs::write(confined.volume(token).join("kubeconfig"), kubeconfig.to_string()).unwrap();
    let kubeconfig = format!("--kubeconfig={token}/kubeconfig");
    let nowhere = ["--metrics-bind-address=127.0.0.1:0", "--health-probe-bind-address=127.0.0.1:0"];
    let mut operator =
        confined.command(&[&kubeconfig, nowhere[0], nowhere[1]]).spawn().expect("unshare, of util-linux");
    let process = Proc::of(operator.id().unwrap());
    let kinds: BTreeSet<String> = api::crds().into_iter().map(|crd| crd.spec.names.plural).collect();
    let mut watched = watched.subscribe();
    tokio::select! {
        all = timeout(PATIENCE, watched.wait_for(|watched| kinds.is_subset(watched))) => drop(all.unwrap().unwrap()),
        _ = operator.wait() => ended(operator.wait_with_output().await.unwrap()),
    }
    assert_confined(&process, &confined.user);
    end(operator).await;
}
