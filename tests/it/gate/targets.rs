//! What a gate can reach: the targets of its trial, by name, and nothing else.

use std::{net::SocketAddr, time::Duration};

use sluice::{
    gate::GateHost as _,
    model::trial::{Blame, Scheme, Target},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{
    Asks, assert_blames, assert_nobody_came, assert_passes, candidate, fixture, heard, host, run, text, trial,
};

/// Answers every connection with these bytes.
pub(super) async fn answering(bytes: impl Into<Vec<u8>>) -> SocketAddr {
    let bytes = bytes.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            if stream.read(&mut request).await.is_ok_and(|bytes| bytes > 0) {
                let _ = stream.write_all(&bytes).await;
            }
        }
    });
    address
}

#[tokio::test]
async fn threat_01_what_was_not_granted_is_denied_and_never_dialled() {
    let granted = answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    // Listens where names that resolve to this machine would lead: on all of its addresses, of both kinds.
    let trap = TcpListener::bind("[::]:0").await.unwrap();
    let port = trap.local_addr().unwrap().port();
    let host = host();
    let targets: Vec<Target> = vec![candidate(Scheme::Http, &[granted])];
    let names = [
        "stable/proxy".to_owned(),
        "candidate/admin".into(),
        "Candidate/proxy".into(),
        "candidate/proxy.".into(),
        " candidate/proxy".into(),
        String::new(),
        format!("localhost:{port}"),
        format!("localhost.:{port}"),
        format!("127.0.0.1:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("2130706433:{port}"),
        format!("0x7f.1:{port}"),
        format!("http://127.0.0.1:{port}/"),
        format!("http://candidate/proxy@127.0.0.1:{port}/"),
        format!("candidate/proxy@127.0.0.1:{port}"),
        "169.254.169.254".into(),
        "[::ffff:169.254.169.254]".into(),
        "fd00:ec2::254".into(),
        "169.254.169.254:80".into(),
        "2852039166".into(),
        "kubernetes.default.svc:443".into(),
        "kubernetes.default".into(),
        "CANDIDATE/PROXY".into(),
        "candidate/proxy:6443".into(),
        "candidate/proxy/../../stable/proxy".into(),
        "proxy.candidate.gate.internal".into(),
        "proxy.candidate.gate.internal:6443".into(),
        "http://proxy.candidate.gate.internal@169.254.169.254/".into(),
        "xn--localhost-.".into(),
        "l\u{f6}calhost".into(),
        "egress/jira".into(),
    ];
    let bytes = fixture("ask", &[]);
    for name in names {
        let report = run(&host, bytes.clone(), |trial| {
            trial.settings = text(&name);
            trial.targets.clone_from(&targets);
        })
        .await;
        assert_eq!(heard(&report), "denied", "{name:?}");
        assert_eq!(report.denials.len(), 1, "{name:?}");
        assert_eq!((report.denials[0].target.as_str(), report.denials[0].count), (name.as_str(), 1));
        assert_eq!(report.cost.requests, 0, "{name:?}");
    }
    // The one that was granted works, so the others were not just broken.
    let report = run(&host, bytes, |trial| {
        trial.settings = text("candidate/proxy");
        trial.targets.clone_from(&targets);
    })
    .await;
    assert_eq!((heard(&report), report.cost.requests), ("", 1));
    assert_eq!(report.denials, []);
    assert_nobody_came(&trap);
}

#[tokio::test]
async fn threat_06_a_probe_that_hangs_past_the_trials_limit_ends_with_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let answering = answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    let host = host();
    let bytes = fixture("ask", &[]);
    let asking = |address| {
        move |trial: &mut sluice::model::trial::Trial| {
            trial.settings = text("candidate/proxy");
            trial.targets = vec![candidate(Scheme::Http, &[address])];
        }
    };
    assert_passes(&run(&host, bytes.clone(), asking(answering)).await);
    let accepted = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Accepts, and never answers. Ends when the other side is gone.
        stream.read_to_end(&mut Vec::new()).await
    });
    let report = run(&host, bytes, |trial| {
        asking(silent)(trial);
        trial.timeout = Duration::from_millis(300);
    })
    .await;
    assert_blames(&report, Blame::Timeout);
    assert_eq!(report.cost.requests, 1);
    accepted.await.unwrap().expect("the connection is closed, not left behind");
    assert_passes(&run(&host, fixture("good", &[]), |_| {}).await);
}

#[tokio::test]
async fn a_trial_that_is_dropped_hangs_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let host = host();
    let digest = host.load(fixture("ask", &[])).await.unwrap().digest;
    let mut trial = trial(&digest);
    trial.settings = text("candidate/proxy");
    trial.targets = vec![candidate(Scheme::Http, &[silent])];
    let accept = async { listener.accept().await.unwrap().0 };
    let mut stream = tokio::select! {
        stream = accept => stream,
        report = host.run(trial) => panic!("ended by itself: {report:?}"),
    };
    stream.read_to_end(&mut Vec::new()).await.expect("the connection is closed");
}

#[tokio::test]
async fn threat_12_the_requests_of_a_trial_are_counted_and_bounded() {
    let address = answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    let host = host();
    for (budget, wanted) in [(1, ""), (0, "budget")] {
        let report = run(&host, fixture("ask", &[]), |trial| {
            trial.settings = text("candidate/proxy");
            trial.targets = vec![candidate(Scheme::Http, &[address])];
            trial.limits.requests = budget;
        })
        .await;
        assert_eq!((heard(&report), report.cost.requests), (wanted, budget));
    }
}

#[tokio::test]
async fn threat_11_an_answer_that_is_no_http_or_has_too_many_headers_is_a_failure_of_the_protocol() {
    let host = host();
    static MANY: std::sync::LazyLock<Vec<u8>> =
        std::sync::LazyLock::new(|| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(100_000)).into_bytes());
    static BROKEN: &[u8] = b"220 mail.example.com ESMTP\r\n";
    static HEADERS: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let header = format!("x-a: {}\r\n", "b".repeat(1000));
        format!("HTTP/1.1 200 OK\r\n{}\r\n", header.repeat(50)).into_bytes()
    });
    for bytes in [BROKEN, HEADERS.as_slice(), MANY.as_slice()] {
        let address = answering(bytes).await;
        let report = run(&host, fixture("ask", &[]), |trial| {
            trial.settings = text("candidate/proxy");
            trial.targets = vec![candidate(Scheme::Http, &[address])];
        })
        .await;
        assert_eq!(heard(&report), "protocol");
    }
}

#[tokio::test]
async fn threat_11_a_body_that_drips_or_never_ends_is_cut_and_the_gate_goes_on() {
    let host = host();
    let (flood, drip) =
        (b"2710\r\n".iter().copied().chain([b'x'; 10_000]).chain(*b"\r\n").collect(), b"1\r\nx\r\n".to_vec());
    for (chunk, timeout, wanted) in [(flood, "60000", "x"), (drip, "200", "timeout")] {
        let chunk: Vec<u8> = chunk;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drips = chunk.len() < 100;
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // An answer before the request is none.
            assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            while stream.write_all(&chunk).await.is_ok() {
                if drips {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        let gate = Asks { option: ("timeout-ms", timeout), ..Asks::default() }.gate();
        let report = run(&host, gate, |trial| {
            trial.settings = text("candidate/proxy");
            trial.targets = vec![candidate(Scheme::Http, &[address])];
            trial.limits.body = 1;
        })
        .await;
        assert_eq!(heard(&report), wanted);
        // It hung up: nobody is left to write to.
        serving.await.unwrap();
    }
}

#[tokio::test]
async fn threat_11_a_compressed_answer_is_handed_over_as_it_is() {
    static BOMB: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nbomb";
    let address = answering(BOMB).await;
    let report = run(&host(), Asks::default().gate(), |trial| {
        trial.settings = text("candidate/proxy");
        trial.targets = vec![candidate(Scheme::Http, &[address])];
    })
    .await;
    assert_eq!(heard(&report), "bomb");
}

#[tokio::test]
async fn threat_03_a_redirect_is_an_answer_and_nobody_follows_it() {
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = trap.local_addr().unwrap();
    let host = host();
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let answer = format!("HTTP/1.1 {status}\r\nlocation: http://{elsewhere}/\r\ncontent-length: 5\r\n\r\nmoved");
        let address = answering(answer).await;
        let asking = |target: &str| {
            let settings = text(target);
            move |trial: &mut sluice::model::trial::Trial| {
                trial.settings = settings;
                trial.targets = vec![candidate(Scheme::Http, &[address])];
            }
        };
        let report = run(&host, Asks::default().gate(), asking("candidate/proxy")).await;
        assert_eq!((heard(&report), report.cost.requests), ("moved", 1), "{status}");
        // A gate that follows by itself asks for a name that it was not granted.
        let report = run(&host, Asks::default().gate(), asking(&format!("http://{elsewhere}/"))).await;
        assert_eq!(heard(&report), "denied", "{status}");
    }
    assert_nobody_came(&trap);
}

#[tokio::test]
async fn a_gate_knows_of_a_side_what_the_trial_lets_it_know() {
    let host = host();
    let known = run(&host, fixture("manifest", &[]), |trial| trial.candidate = Some("{}".into())).await;
    assert_eq!(heard(&known), "{}");
    let unknown = run(&host, fixture("manifest", &[]), |trial| trial.stable = Some("{}".into())).await;
    assert_eq!(heard(&unknown), "fine");
}

#[tokio::test]
async fn nobody_listening_is_a_failure_to_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let report = run(&host(), fixture("ask", &[]), |trial| {
        trial.settings = text("candidate/proxy");
        trial.targets = vec![candidate(Scheme::Http, &[address])];
    })
    .await;
    assert_eq!(heard(&report), "connect");
}
