//! `http-smoke` as it is shipped, against real servers: the component built from `plugins/`, the SDK under it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use sluice::{
    gate::GateHost as _,
    model::trial::{Blame, Outcome, Report, Scheme},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{Barrier, OnceCell},
};
use tokio_rustls::TlsAcceptor;

use super::{assert_blames, candidate, host, root, run};

/// The component, built once for all tests.
async fn http_smoke() -> Bytes {
    static BUILT: OnceCell<Bytes> = OnceCell::const_new();
    let built = BUILT.get_or_init(|| async {
        let built = tokio::task::spawn_blocking(|| sluice_plugins::build(root())).await.unwrap().unwrap();
        let path = built.into_iter().find(|built| built.name == "http-smoke").expect("http-smoke").path;
        std::fs::read(path).unwrap().into()
    });
    built.await.clone()
}

/// A gateway without routes that answers with `status`.
async fn answer(status: u16, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let host = request.headers().get("host").cloned().unwrap();
    let response = Response::builder().status(status).header("server", "kong/3.10").header("x-asked-host", host);
    Ok(response.body(Full::from(r#"{"message":"no Route matched with those values"}"#)).unwrap())
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + 'static>(stream: S, status: u16) {
    let service = service_fn(move |request| answer(status, request));
    // Ends with the connection, however it ends.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// A server on a loopback address of its own, like a Pod.
async fn pod(address: &str, status: u16) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let bound = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, status));
        }
    });
    bound
}

async fn tls_pod(status: u16) -> SocketAddr {
    let key = rcgen::generate_simple_self_signed(["somebody.else".to_owned()]).unwrap();
    let secret = PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], secret)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bound = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serve(stream, status));
            }
        }
    });
    bound
}

async fn smoke(scheme: Scheme, pods: &[SocketAddr], settings: serde_json::Value) -> Report {
    run(&host(), http_smoke().await, |trial| {
        trial.settings = settings;
        trial.targets = vec![candidate(scheme, pods)];
    })
    .await
}

fn code(report: &Report) -> (&str, &str) {
    match &report.outcome {
        Outcome::Pass(reason) => (&reason.code, &reason.message),
        Outcome::Fail(reason) => (&reason.code, &reason.message),
        other => panic!("{other:?} {:?}", report.log),
    }
}

#[tokio::test]
async fn a_fresh_gateway_passes_without_settings_and_every_pod_was_asked() {
    let pods = [pod("127.0.0.2", 404).await, pod("127.0.0.3", 404).await, pod("127.0.0.4", 404).await];
    let report = smoke(Scheme::Http, &pods, json!({})).await;
    assert_eq!(code(&report), ("AllChecksPassed", "3 good answers from 3 endpoints"));
    assert_eq!(report.answered, ["pod-0", "pod-1", "pod-2"]);
    assert_eq!(report.cost.requests, 3);
    assert!(!report.unverified_tls);
    let names: Vec<_> = report.measurements.iter().map(|kept| (kept.name.as_str(), kept.unit.as_str())).collect();
    assert_eq!(
        names,
        [("requests", "requests"), ("failures", "requests"), ("p50", "ms"), ("p95", "ms"), ("max", "ms")]
    );
    assert_eq!((report.measurements[0].value, report.measurements[1].value), (3.0, 0.0));
    assert!(report.measurements[4].value > 0.0);
}

#[tokio::test]
async fn one_bad_pod_among_good_ones_fails_and_is_named() {
    let pods = [pod("127.0.0.2", 404).await, pod("127.0.0.3", 500).await];
    let report = smoke(Scheme::Http, &pods, json!({})).await;
    assert_eq!(code(&report), ("UnexpectedStatus", "GET / on pod-1: status 500, expected below 500"));
    assert_eq!(report.measurements[1].value, 1.0);
}

#[tokio::test]
async fn a_pod_that_is_not_there_fails_where_others_answer() {
    let gone = TcpListener::bind("127.0.0.3:0").await.unwrap().local_addr().unwrap();
    let report = smoke(Scheme::Http, &[pod("127.0.0.2", 404).await, gone], json!({})).await;
    let (code, message) = code(&report);
    assert_eq!(code, "EndpointUnreachable");
    assert!(message.starts_with("GET / on pod-1: "), "{message}");
    assert_eq!(report.answered, ["pod-0"]);
}

#[tokio::test]
async fn nobody_there_is_no_verdict() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let report = smoke(Scheme::Http, &[gone], json!({})).await;
    assert_blames(&report, Blame::GateTrouble);
    assert!(matches!(report.outcome, Outcome::Error { retry: true, .. }));
    // Once, and twice again.
    assert_eq!(report.cost.requests, 3);
}

#[tokio::test]
async fn conditions_on_headers_and_body_see_the_real_answer() {
    let pods = [pod("127.0.0.1", 404).await];
    let settings = |server: &str, message: &str| {
        json!({"checks": [{
            "path": "/any?a=b",
            "host": "api.example.com",
            "headers": {"accept": "application/json"},
            "expect": {
                "status": 404,
                "headers": {"server": {"equals": server}, "x-asked-host": {"equals": "api.example.com"}},
                "body": {"/message": {"equals": message}},
            },
        }]})
    };
    let message = "no Route matched with those values";
    assert_eq!(code(&smoke(Scheme::Http, &pods, settings("kong/3.10", message)).await).0, "AllChecksPassed");
    let report = smoke(Scheme::Http, &pods, settings("kong/3.9", message)).await;
    let wanted = "GET /any?a=b on pod-0: header server is \"kong/3.10\", expected \"kong/3.9\"";
    assert_eq!(code(&report), ("HeaderMismatch", wanted));
    assert_eq!(code(&smoke(Scheme::Http, &pods, settings("kong/3.10", "else")).await).0, "BodyMismatch");
}

#[tokio::test]
async fn a_latency_over_its_ceiling_fails() {
    let pods = [pod("127.0.0.1", 404).await];
    let settings = |max: f64| json!({"repeat": 5, "latency": {"maxMs": max, "p95Ms": 60_000}});
    let report = smoke(Scheme::Http, &pods, settings(60_000.0)).await;
    assert_eq!(code(&report), ("AllChecksPassed", "5 good answers from 1 endpoints"));
    assert_eq!(report.measurements[3].threshold, Some(60_000.0));
    // No exchange over a socket takes a millionth of a millisecond.
    assert_eq!(code(&smoke(Scheme::Http, &pods, settings(1e-6)).await).0, "LatencyAboveThreshold");
}

#[tokio::test]
async fn tls_is_spoken_without_verifying_and_the_report_says_so() {
    let pods = [tls_pod(404).await];
    let report = smoke(Scheme::HttpsUnverified, &pods, json!({})).await;
    assert_eq!(code(&report).0, "AllChecksPassed");
    assert!(report.unverified_tls);
    // A server that speaks no TLS answers no TLS.
    let report = smoke(Scheme::HttpsUnverified, &[pod("127.0.0.1", 404).await], json!({})).await;
    assert_eq!(code(&report).0, "BrokenAnswer");
}

#[tokio::test]
async fn threat_12_requests_are_made_at_once_up_to_what_the_trial_allows() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (together, running, most) =
        (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (together, running, most) = (Arc::clone(&together), Arc::clone(&running), Arc::clone(&most));
            let service = service_fn(move |request| {
                let (together, running, most) = (Arc::clone(&together), Arc::clone(&running), Arc::clone(&most));
                async move {
                    most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                    // Nobody gets an answer alone: requests one after the other would wait for ever.
                    together.wait().await;
                    running.fetch_sub(1, SeqCst);
                    answer(404, request).await
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let report = run(&host(), http_smoke().await, |trial| {
        trial.settings = json!({"repeat": 20, "concurrency": 8});
        trial.targets = vec![candidate(Scheme::Http, &[address])];
        trial.limits.concurrency = 2;
    })
    .await;
    assert_eq!(code(&report), ("AllChecksPassed", "20 good answers from 1 endpoints"));
    assert_eq!(seen.load(SeqCst), 2);
}

#[tokio::test]
async fn a_target_that_was_not_granted_is_trouble_and_recorded() {
    let report = smoke(Scheme::Http, &[pod("127.0.0.1", 404).await], json!({"target": "stable/proxy"})).await;
    assert_blames(&report, Blame::GateTrouble);
    assert!(matches!(report.outcome, Outcome::Error { retry: false, .. }));
    assert_eq!(report.denials[0].target, "stable/proxy");
}

#[tokio::test]
async fn settings_are_judged_by_the_schema_and_then_by_the_gate() {
    let host = host();
    let loaded = host.load(http_smoke().await).await.unwrap();
    assert_eq!(loaded.imports, ["sluice:gate/trial@0.1.0", "sluice:gate/probe@0.1.0"]);
    assert_eq!(loaded.description.name, "http-smoke");
    let broken = json!({"checks": [{"path": "/", "expect": {"headers": {"server": {"matches": "("}}}}]});
    for (settings, pointers) in [
        (json!({}), vec![]),
        (json!({"checks": [{"path": "/a"}, {"path": "b"}]}), vec!["/checks/1/path"]),
        (json!({"repeat": "often"}), vec!["/repeat"]),
        (broken.clone(), vec!["/checks/0/expect/headers/server/matches"]),
    ] {
        let problems = host.validate(&loaded.digest, &settings).await.unwrap();
        let found: Vec<_> = problems.iter().map(|problem| problem.pointer.as_str()).collect();
        assert_eq!(found, pointers, "{settings}");
    }
    for settings in [broken, json!({"pahts": []})] {
        let report = smoke(Scheme::Http, &[pod("127.0.0.1", 404).await], settings).await;
        assert_blames(&report, Blame::InvalidSettings);
        assert_eq!(report.cost.requests, 0);
    }
}
