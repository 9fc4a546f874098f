//! Both sides of the door, on a socket of a temporary folder.

use std::{
    future::pending,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Notify, watch},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::*;
use crate::{
    gate::{GateHost, Presence},
    model::trial::{
        Blame, Digest, Endpoint, Grants, Limits, LoadError, Loaded, Measurement, Method, Moment, Outcome, Problem,
        Reason, Report, Scheme, Target, Trial,
    },
};

/// Says what it is told to, or nothing for as long as it is asked.
struct Scripted {
    answers: bool,
    running: Arc<AtomicUsize>,
    changed: Arc<Notify>,
}

/// Counts a trial for as long as its future lives.
struct Running(Arc<AtomicUsize>, Arc<Notify>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        self.1.notify_waiters();
    }
}

#[async_trait]
impl GateHost for Scripted {
    async fn load(&self, bytes: Bytes) -> Result<Loaded, LoadError> {
        Err(LoadError::TooLarge(format!("{} bytes", bytes.len())))
    }

    async fn unload(&self, _digest: &Digest) {}

    async fn validate(&self, digest: &Digest, settings: &Value) -> Result<Vec<Problem>, Outcome> {
        Ok(vec![Problem { pointer: digest.to_string(), message: settings.to_string() }])
    }

    async fn run(&self, trial: Trial) -> Report {
        self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(self.running.clone(), self.changed.clone());
        self.changed.notify_waiters();
        if !self.answers {
            pending::<()>().await;
        }
        report(&trial.id)
    }

    fn presence(&self) -> watch::Receiver<Presence> {
        watch::channel(Presence::Here(0)).1
    }
}

fn report(id: &str) -> Report {
    Report {
        measurements: vec![Measurement { name: "p99".into(), value: 0.1, unit: "ms".into(), threshold: None }],
        answered: vec!["pod-a".into()],
        unverified_tls: true,
        ..Report::of(Outcome::Wait {
            reason: Reason { code: "Later".into(), message: id.to_owned() },
            after: Duration::from_millis(1500),
            state: Some(vec![1, 2]),
        })
    }
}

fn trial() -> Trial {
    Trial {
        id: "ns/dp/gate".into(),
        namespace: "ns".into(),
        digest: Digest::of(b"gate"),
        settings: json!({ "a": [1, "b"] }),
        moment: Moment::BeforePromotion,
        timeout: Duration::from_secs(30),
        limits: Limits::default(),
        targets: vec![Target {
            name: "candidate/proxy".into(),
            scheme: Scheme::HttpsUnverified,
            service: ([10, 0, 0, 1], 443).into(),
            host: "a.b.svc".into(),
            endpoints: vec![Endpoint { name: "pod-a".into(), address: ([10, 1, 0, 1], 8443).into() }],
            methods: Method::ALL.to_vec(),
        }],
        state: Some(vec![0, 255]),
        grants: Grants::default(),
        candidate: Some("{}".into()),
        stable: None,
    }
}

struct Host {
    running: Arc<AtomicUsize>,
    changed: Arc<Notify>,
    _served: AbortOnDropHandle<std::io::Result<()>>,
    shutdown: CancellationToken,
}

fn host(socket: &Path, answers: bool) -> Host {
    let (running, changed, shutdown) =
        (Arc::<AtomicUsize>::default(), Arc::<Notify>::default(), CancellationToken::new());
    let scripted = Scripted { answers, running: running.clone(), changed: changed.clone() };
    let listener = UnixListener::bind(socket).unwrap();
    let served = AbortOnDropHandle::new(tokio::spawn(serve(Arc::new(scripted), listener, shutdown.clone())));
    Host { running, changed, _served: served, shutdown }
}

impl Host {
    async fn runs(&self, trials: usize) {
        loop {
            let changed = self.changed.notified();
            if self.running.load(Ordering::SeqCst) == trials {
                return;
            }
            changed.await;
        }
    }
}

#[tokio::test]
async fn what_goes_in_comes_out() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("door");
    let _host = host(&socket, true);
    let remote = RemoteGateHost::at(&socket);
    assert_eq!(remote.run(trial()).await, report("ns/dp/gate"));
    let problem = Problem { pointer: Digest::of(b"gate").to_string(), message: "{\"a\":[1,\"b\"]}".into() };
    assert_eq!(remote.validate(&trial().digest, &trial().settings).await, Ok(vec![problem]));
    assert_eq!(remote.load(Bytes::from_static(b"abc")).await, Err(LoadError::TooLarge("3 bytes".into())));
}

#[tokio::test]
async fn a_trial_that_nobody_waits_for_is_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("door");
    let host = host(&socket, false);
    let remote = Arc::new(RemoteGateHost::at(&socket));
    let asked = {
        let remote = remote.clone();
        tokio::spawn(async move { remote.run(trial()).await })
    };
    host.runs(1).await;
    asked.abort();
    host.runs(0).await;
}

#[tokio::test]
async fn a_host_that_goes_interrupts_its_trials_and_its_return_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("door");
    let first = host(&socket, false);
    let remote = Arc::new(RemoteGateHost::at(&socket));
    let mut presence = remote.presence();
    presence.wait_for(|now| *now == Presence::Here(1)).await.unwrap();
    let asked = {
        let remote = remote.clone();
        tokio::spawn(async move { remote.run(trial()).await })
    };
    first.runs(1).await;
    first.shutdown.cancel();
    drop(first);
    std::fs::remove_file(&socket).unwrap();
    // In a test the connections of a host outlive it, for they are tasks of this very process.
    asked.abort();
    drop(asked);
    let absent = remote.run(trial()).await;
    assert!(matches!(absent.outcome, Outcome::Error { blame: Blame::Host, retry: true, .. }), "{absent:?}");
    let unavailable = remote.load(Bytes::new()).await;
    assert!(matches!(unavailable, Err(LoadError::Unavailable(_))), "{unavailable:?}");
}

#[tokio::test]
async fn bodies_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("door");
    let _host = host(&socket, true);
    let remote = RemoteGateHost::at(&socket);
    let report = remote.run(Trial { candidate: Some("x".repeat(QUESTION)), ..trial() }).await;
    assert!(matches!(report.outcome, Outcome::Error { blame: Blame::Host | Blame::Interrupted, .. }), "{report:?}");
}

#[tokio::test]
async fn threat_08_json_that_is_nested_too_deep_is_refused_and_the_host_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("door");
    let _host = host(&socket, true);
    let nested = "[".repeat(100_000);
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    let head = format!(
        "POST {VERSION}/plugins/x/settings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        nested.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(nested.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("recursion limit"), "{answer}");
    assert_eq!(RemoteGateHost::at(&socket).run(trial()).await, report("ns/dp/gate"));
}
