//! Every limit of a trial, obeyed and violated. After each violation the same host runs a good gate.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use sluice::model::trial::{Blame, Limits, Link, Outcome, Report, Scheme, Trial};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::timeout,
};

use super::{assert_blames, assert_passes, candidate, fixture, heard, host, module, run, text, with_a_resource};

/// A pair of tests for each limit. The limits are taken apart without a rest, so one without a pair does not compile.
macro_rules! pairs {
    ($($limit:ident: $obeyed:expr, $violated:expr;)*) => {
        const _: fn(Limits) = |Limits { $($limit: _),* }| {};
        $(mod $limit {
            use super::*;

            #[tokio::test]
            async fn obeyed() {
                $obeyed.await;
            }

            #[tokio::test]
            async fn violated() {
                $violated.await;
            }
        })*
    };
}

pairs! {
    cpu: passes(busy_loop(1000), short_of_cpu), blames(Blame::CpuBudget, busy_loop(0), short_of_cpu);
    // Three times 20 MiB and three times 30 MiB, where 64 MiB are allowed.
    memory: passes(memories(320), |_| {}), blames(Blame::MemoryLimit, memories(480), |_| {});
    // "Good" is four bytes of the reason.
    message: passes(message(96), a_short_message), blames(Blame::MessageTooLarge, message(97), a_short_message);
    log: keeps_lines(3), cuts_lines();
    measurements: keeps_measurements(2), drops_measurements();
    links: keeps_links(1, 0), keeps_links(2, 1);
    state: waits(4, 4), blames(Blame::MessageTooLarge, ("state", "bytes", 5), |trial| trial.limits.state = 4);
    requests: hears("", |trial| trial.limits.requests = 1), hears("budget", |trial| trial.limits.requests = 0);
    concurrency: asks_at_once(2), asks_at_once(1);
    body: hears_a_body("0123456789", 10), hears_a_body("012345678", 9);
    traffic: hears("", |trial| trial.limits.traffic = 100), hears("budget", |trial| trial.limits.traffic = 20);
    handed_over: passes(message(96), short_calls), blames(Blame::MessageTooLarge, message(400), short_calls);
    handles: passes(handles(10), few_handles), blames(Blame::Trap, handles(11), few_handles);
}

type Words = (&'static str, &'static str, u32);

fn busy_loop(rounds: u32) -> Words {
    ("busy_loop", "rounds", rounds)
}

fn memories(pages: u32) -> Words {
    ("memories", "pages", pages)
}

fn message(bytes: u32) -> Words {
    ("message", "bytes", bytes)
}

fn handles(count: u32) -> Words {
    ("handles", "count", count)
}

fn short_of_cpu(trial: &mut Trial) {
    trial.limits.cpu = Duration::from_millis(50);
}

fn a_short_message(trial: &mut Trial) {
    trial.limits.message = 100;
}

fn short_calls(trial: &mut Trial) {
    trial.limits.handed_over = 300;
}

fn few_handles(trial: &mut Trial) {
    trial.limits.handles = 10;
}

/// What the fixture does under a limit, and that the host goes on.
async fn report(words: Words, change: impl Fn(&mut Trial)) -> Report {
    let (name, word, number) = words;
    let number = number.to_string();
    let words = [(word, number.as_str())];
    let bytes = match name {
        "handles" => with_a_resource(&module(name, &words)),
        _ => fixture(name, &words),
    };
    let host = host();
    let report = run(&host, bytes, change).await;
    assert_passes(&run(&host, fixture("good", &[]), |_| {}).await);
    report
}

async fn passes(words: Words, change: impl Fn(&mut Trial)) {
    assert_passes(&report(words, change).await);
}

async fn blames(blame: Blame, words: Words, change: impl Fn(&mut Trial)) {
    assert_blames(&report(words, change).await, blame);
}

/// Logs nine bytes so many times where 27 are kept.
async fn logs(lines: u32) -> Report {
    let report = report(("log_loop", "rounds", lines), |trial| trial.limits.log = 27).await;
    assert_passes(&report);
    report
}

async fn keeps_lines(lines: u32) {
    assert_eq!(logs(lines).await.log, vec!["info fine"; lines as usize]);
}

async fn cuts_lines() {
    let log = logs(5).await.log;
    assert_eq!(log[..3], ["info fine"; 3]);
    assert_eq!(log[3..], ["warn 2 more lines were cut, 13 bytes"]);
}

/// Measures so many things where two are kept.
async fn measures(count: u32) -> Report {
    let report = report(("measure_loop", "count", count), |trial| trial.limits.measurements = 2).await;
    assert_passes(&report);
    report
}

async fn keeps_measurements(count: u32) {
    let report = measures(count).await;
    let names: Vec<_> = report.measurements.iter().map(|kept| kept.name.as_str()).collect();
    assert_eq!((names.as_slice(), report.log.as_slice()), (["aaaaa", "baaaa"].as_slice(), [].as_slice()));
}

async fn drops_measurements() {
    let report = measures(3).await;
    assert_eq!(report.measurements.len(), 2);
    assert!(report.log[0].contains("a measurement was dropped name=caaaa"), "{:?}", report.log);
}

/// Links to so many pages where one is kept.
async fn keeps_links(count: u32, dropped: usize) {
    let report = report(("link_loop", "count", count), |trial| trial.limits.links = 1).await;
    assert_passes(&report);
    assert_eq!(report.links, [Link { title: "fine".into(), url: "https://a".into() }]);
    assert_eq!(report.log.len(), dropped, "{:?}", report.log);
    assert!(report.log.iter().all(|line| line.contains("a link was dropped")), "{:?}", report.log);
}

/// Waits and leaves so many bytes behind.
async fn waits(bytes: u32, limit: usize) {
    let report = report(("state", "bytes", bytes), |trial| trial.limits.state = limit).await;
    let Outcome::Wait { state, .. } = report.outcome else { panic!("{report:?}") };
    assert_eq!(state, Some(b"Good"[..bytes as usize].to_vec()));
}

/// A server that answers each connection through `answer`.
async fn server<F: Future<Output = ()> + Send + 'static>(
    answer: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, bytes: &[u8]) {
    if stream.read(&mut vec![0; 4096]).await.is_ok_and(|bytes| bytes > 0) {
        let _ = stream.write_all(bytes).await;
    }
}

/// What a gate hears that asks a server for 60 bytes and a few headers.
async fn hears(wanted: &str, change: impl Fn(&mut Trial)) {
    static ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-length: 60\r\n\r\n012345678901234567890123456789012345678901234567890123456789";
    let address = server(|stream| answer(stream, ANSWER)).await;
    let report = run(&host(), fixture("ask", &[]), |trial| {
        trial.settings = text("candidate/proxy");
        trial.targets = vec![candidate(Scheme::Http, &[address])];
        change(trial);
    })
    .await;
    assert_eq!(heard(&report), wanted);
}

async fn hears_a_body(wanted: &str, limit: usize) {
    static ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789";
    let address = server(|stream| answer(stream, ANSWER)).await;
    let report = run(&host(), fixture("body", &[]), |trial| {
        trial.settings = text("candidate/proxy");
        trial.targets = vec![candidate(Scheme::Http, &[address])];
        trial.limits.body = limit;
    })
    .await;
    assert_eq!(heard(&report), wanted);
}

/// A gate sends four requests, all of them at once, where `limit` are allowed: so many are open at the same time.
async fn asks_at_once(limit: u16) {
    let (open, most, changed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, reached) = (Arc::clone(&open), Arc::clone(&most));
    let address = server(move |stream| {
        let (open, most, changed) = (Arc::clone(&counted), Arc::clone(&reached), Arc::clone(&changed));
        async move {
            let now = open.fetch_add(1, SeqCst) + 1;
            most.fetch_max(now, SeqCst);
            changed.notify_waiters();
            let arrived = changed.notified();
            if open.load(SeqCst) == 1 {
                // Somebody else has time to come, and does unless that is not allowed.
                let _ = timeout(Duration::from_millis(200), arrived).await;
            }
            open.fetch_sub(1, SeqCst);
            answer(stream, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    })
    .await;
    let report = run(&host(), fixture("batch", &[("concurrency", "4")]), |trial| {
        trial.targets = vec![candidate(Scheme::Http, &[address])];
        trial.limits.concurrency = limit;
    })
    .await;
    assert_passes(&report);
    assert_eq!((report.cost.requests, most.load(SeqCst)), (4, usize::from(limit)));
}
