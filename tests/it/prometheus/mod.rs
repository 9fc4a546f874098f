//! Queries of gates against a real Prometheus. Needs no cluster.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use sluice::{
    gate::{Capacity, Compiler, GateHost as _, LocalGateHost, Reach},
    model::trial::{Outcome, Query, Range, Report},
};
use sluice_harness::prometheus::{Prometheus, samples};
use tokio::{net::TcpListener, sync::Mutex};

use crate::gate::{component, contract, data, module, text, trial};

/// Requests of two tenants over the last ten minutes, and many series of one of them. One for all tests, and gone with
/// the last that holds it: what a static holds would be left running.
async fn prometheus() -> Arc<Prometheus> {
    static SHARED: Mutex<Weak<Prometheus>> = Mutex::const_new(Weak::new());
    let mut shared = SHARED.lock().await;
    if let Some(running) = shared.upgrade() {
        return running;
    }
    let step = Duration::from_secs(15);
    let rising: Vec<f64> = (0..41).map(|number| f64::from(number) * 30.0).collect();
    let mut series = String::from("# TYPE requests counter\n");
    for (namespace, pod) in [("shop", "a"), ("shop", "b"), ("other", "a")] {
        let labels = format!("requests_total{{namespace=\"{namespace}\",pod=\"{pod}\"}}");
        series.push_str(&samples(&labels, &rising, step));
    }
    series.push_str("# TYPE secret gauge\n");
    series.push_str(&samples("secret{namespace=\"other\"}", &[42.0; 41], step));
    series.push_str("# TYPE many gauge\n");
    for number in 0..1_001 {
        series.push_str(&samples(&format!("many{{namespace=\"shop\",number=\"{number}\"}}"), &[1.0], step));
    }
    series.push_str("# EOF\n");
    let started = Arc::new(Prometheus::start(&series).await.expect("a Prometheus"));
    *shared = Arc::downgrade(&started);
    started
}

fn gate(parameters: usize, key: &str, value: &str) -> Bytes {
    let (count, key_bytes, value_bytes) = (parameters.to_string(), key.len().to_string(), value.len().to_string());
    let words = [
        ("count", count.as_str()),
        ("key", &data(key)),
        ("value", &data(value)),
        ("key_bytes", &key_bytes),
        ("value_bytes", &value_bytes),
    ];
    let imports = r#"(module
        (import "sluice:gate/metrics@0.1.0" "query" (func $query (param i32 i32 i32 i32 i32)))"#;
    component(&module("metrics", &words).replacen("(module", imports, 1), &contract())
}

fn query(promql: &str) -> Query {
    Query { name: "query".into(), promql: promql.into(), namespace: "shop".into(), range: None }
}

/// Asks with or without a parameter, of a Prometheus at `url`.
async fn ask_at(url: Option<&str>, query: Query, parameter: Option<(&str, &str)>, body: Option<usize>) -> Report {
    let mut reach = Reach::default();
    reach.prometheus = url.map(|url| url.parse().unwrap());
    let capacity = Capacity { trials: 1.try_into().unwrap(), threads: 1.try_into().unwrap() };
    let host = LocalGateHost::reaching(reach, capacity, Compiler::InProcess).unwrap();
    let (key, value) = parameter.unwrap_or_default();
    let loaded = host.load(gate(usize::from(parameter.is_some()), key, value)).await.unwrap();
    let mut trial = trial(&loaded.digest);
    trial.settings = text("query");
    trial.grants.queries = vec![query];
    trial.limits.body = body.unwrap_or(trial.limits.body);
    host.run(trial).await
}

async fn ask(prometheus: &Prometheus, query: Query, parameter: Option<(&str, &str)>) -> Report {
    let url = format!("http://{}", prometheus.address);
    ask_at(Some(&url), query, parameter, None).await
}

/// `fine`, or the kind of the failure.
#[track_caller]
fn heard(report: &Report) -> &str {
    match &report.outcome {
        Outcome::Pass(reason) => &reason.message,
        other => panic!("{other:?} {:?}", report.log),
    }
}

fn measured(report: &Report, name: &str) -> Option<f64> {
    report.measurements.iter().find(|measurement| measurement.name == name).map(|measurement| measurement.value)
}

#[tokio::test]
async fn an_instant_query_answers_with_the_series_of_its_namespace_only() {
    let prometheus = prometheus().await;
    let report = ask(&prometheus, query("requests_total"), None).await;
    assert_eq!(heard(&report), "fine");
    assert_eq!((measured(&report, "series"), measured(&report, "points")), (Some(2.0), Some(1.0)));
    assert_eq!(measured(&report, "value"), Some(1200.0));
    assert_eq!(report.cost.requests, 1);
}

#[tokio::test]
async fn a_range_query_answers_with_a_point_for_each_step() {
    let prometheus = prometheus().await;
    let range = Some(Range { window: Duration::from_secs(300), step: Duration::from_secs(30) });
    let report = ask(&prometheus, Query { range, ..query("sum(rate(requests_total[1m]))") }, None).await;
    assert_eq!(heard(&report), "fine");
    assert_eq!((measured(&report, "series"), measured(&report, "points")), (Some(1.0), Some(11.0)));
    // Two pods with two requests a second each, in whatever order they are added.
    assert!(measured(&report, "value").is_some_and(|rate| (rate - 4.0).abs() < 1e-9), "{report:?}");
}

#[tokio::test]
async fn a_number_is_a_series_without_labels() {
    let prometheus = prometheus().await;
    let report = ask(&prometheus, query("scalar(count(requests_total))"), None).await;
    assert_eq!((heard(&report), measured(&report, "value")), ("fine", Some(2.0)));
}

#[tokio::test]
async fn a_parameter_chooses_by_label() {
    let prometheus = prometheus().await;
    let report = ask(&prometheus, query("requests_total{pod=\"${pod}\"}"), Some(("pod", "b"))).await;
    assert_eq!((heard(&report), measured(&report, "series")), ("fine", Some(1.0)));
}

#[tokio::test]
async fn nobody_reads_another_namespace_however_he_asks() {
    let prometheus = prometheus().await;
    for promql in [
        "secret",
        "secret{namespace=\"other\"}",
        "{__name__=~\".+\",namespace=~\"other\"}",
        "count(requests_total{namespace!=\"shop\"})",
        "max_over_time(secret[10m])",
        "topk(scalar(secret), requests_total)",
    ] {
        let report = ask(&prometheus, query(promql), None).await;
        // The last one asks for no top of no size.
        assert!(matches!(heard(&report), "fine" | "refused"), "{promql}: {}", heard(&report));
        assert_eq!(measured(&report, "series").unwrap_or_default(), 0.0, "{promql}");
    }
    for value in ["a\"} or secret{namespace=\"other", "\"} or up{", "a\\", "a\"}#", ".*", "\n", "${pod}"] {
        for operator in ["=", "=~"] {
            let report =
                ask(&prometheus, query(&format!("requests_total{{pod{operator}\"${{pod}}\"}}")), Some(("pod", value)))
                    .await;
            assert_eq!((heard(&report), measured(&report, "series")), ("fine", Some(0.0)), "{operator} {value:?}");
        }
    }
}

#[tokio::test]
async fn what_was_not_granted_or_does_not_fit_is_told_by_kind_and_asks_nobody() {
    let prometheus = prometheus().await;
    let other = Query { name: "other".into(), ..query("up") };
    for (query, parameter, kind) in [
        (other, None, "denied"),
        (query("up"), Some(("pod", "a")), "invalid"),
        (query("up{pod=\"${pod}\"}"), None, "invalid"),
        (query("up{"), None, "invalid"),
        (query("up[25h]"), None, "invalid"),
    ] {
        let promql = query.promql.clone();
        let report = ask(&prometheus, query, parameter).await;
        assert_eq!((heard(&report), report.cost.requests), (kind, 0), "{promql}");
    }
    assert_eq!(heard(&ask_at(None, query("up"), None, None).await), "denied");
}

#[tokio::test]
async fn an_answer_of_too_many_series_or_bytes_is_told_as_such() {
    let prometheus = prometheus().await;
    let report = ask(&prometheus, query("many"), None).await;
    assert_eq!(heard(&report), "too-large");
    assert_eq!(heard(&ask(&prometheus, query("many{number!=\"7\"}"), None).await), "fine");
    let url = format!("http://{}", prometheus.address);
    assert_eq!(heard(&ask_at(Some(&url), query("many{number!=\"7\"}"), None, Some(1_000)).await), "too-large");
}

#[tokio::test]
async fn a_query_that_prometheus_does_not_take_is_refused() {
    let prometheus = prometheus().await;
    // Two series for one label set.
    let report = ask(&prometheus, query("requests_total * on (namespace) requests_total"), None).await;
    assert_eq!(heard(&report), "refused");
}

#[tokio::test]
async fn a_prometheus_that_is_down_is_a_failure_to_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    assert_eq!(heard(&ask_at(Some(&url), query("up"), None, None).await), "connect");
}
