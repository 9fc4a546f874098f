//! From answers to a verdict. Knows no host: everything here is decided from values.

use regex_lite::Regex;
use serde_json::Value;
use sluice_gate::{Failure, Response, Trouble, Verdict};

use crate::settings::{Check, Condition, Latency};

/// Bytes of a header or body that a message repeats. The whole reason has room for 512.
const QUOTE: usize = 80;

/// One request that was made, and what came of it.
#[derive(Debug)]
pub struct Made<'a> {
    /// What was asked.
    pub check: &'a Check,
    /// Who was asked: a Pod's name, or `the Service`.
    pub endpoint: &'a str,
    /// What came back.
    pub result: Result<Response, Failure>,
}

/// Something an answer lacks.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    code: &'static str,
    message: String,
}

/// Latencies of the answers, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latencies {
    /// Half of them were no slower.
    pub p50: f64,
    /// 95 of 100 were no slower.
    pub p95: f64,
    /// The slowest.
    pub max: f64,
}

/// The latencies of all answers; `None` without answers.
#[must_use]
pub fn latencies(made: &[Made<'_>]) -> Option<Latencies> {
    let mut all: Vec<f64> = made.iter().filter_map(|made| made.result.as_ref().ok()).map(Response::latency).collect();
    all.sort_unstable_by(f64::total_cmp);
    // Nearest rank: a value that was really measured.
    let rank = |percent: usize| all.get((all.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    Some(Latencies { p50: rank(50)?, p95: rank(95)?, max: rank(100)? })
}

/// How many of them are not what they must be.
#[must_use]
pub fn failures(made: &[Made<'_>]) -> usize {
    made.iter().filter(|made| finding(made).is_some()).count()
}

/// Judges everything that was made.
///
/// # Errors
/// Where nothing was learnt about the candidate: the target was not granted, or nobody answered at all, which
/// a broken network between us and a good candidate looks like too. An endpoint that does not answer while
/// others do is a bad endpoint.
pub fn judge(made: &[Made<'_>], limits: Latency) -> Result<Verdict, Trouble> {
    for made in made {
        if let Err(failure) = &made.result
            && matches!(failure.kind.as_str(), "denied" | "invalid" | "budget")
        {
            return Err(Trouble::lasting(format!("{}: {}", asked(made), failure.message)));
        }
    }
    let heard = made.iter().any(|made| !made.result.as_ref().is_err_and(is_unreachable));
    if let (false, Some(Made { result: Err(failure), .. })) = (heard, made.first()) {
        return Err(Trouble::passing(format!("{}: no endpoint answered: {}", asked(&made[0]), failure.message)));
    }
    let mut findings = made.iter().filter_map(finding).chain(too_slow(made, limits));
    let Some(first) = findings.next() else {
        let endpoints = made.iter().map(|made| made.endpoint).collect::<std::collections::BTreeSet<_>>().len();
        let message = format!("{} good answers from {endpoints} endpoints", made.len());
        return Ok(Verdict::pass("AllChecksPassed", message));
    };
    let more = match findings.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Ok(Verdict::fail(first.code, format!("{}{more}", first.message)))
}

/// Whether a failure says that nobody was there, or nobody in time.
#[must_use]
pub fn is_unreachable(failure: &Failure) -> bool {
    matches!(failure.kind.as_str(), "connect" | "timeout")
}

/// What an answer lacks, the first thing.
fn finding(made: &Made<'_>) -> Option<Finding> {
    let found = |code, what: String| Some(Finding { code, message: format!("{}: {what}", asked(made)) });
    let response = match &made.result {
        Ok(response) => response,
        Err(failure) if is_unreachable(failure) => return found("EndpointUnreachable", failure.message.clone()),
        Err(failure) => return found("BrokenAnswer", format!("{}: {}", failure.kind, failure.message)),
    };
    let expect = &made.check.expect;
    if !expect.status.allows(response.status) {
        return found("UnexpectedStatus", format!("status {}, expected {}", response.status, expect.status));
    }
    for (name, condition) in &expect.headers {
        let values: Vec<Value> = response.header_values(name).map(Value::from).collect();
        if let Some(what) = lacks(condition, &values) {
            return found("HeaderMismatch", format!("header {name} {what}"));
        }
    }
    let mut json = None;
    for (pointer, condition) in &expect.body {
        let value = if pointer.is_empty() {
            Some(Value::from(response.text()))
        } else {
            // Read once, and only if asked for.
            let json = json.get_or_insert_with(|| response.json::<Value>());
            match json {
                Ok(json) => json.pointer(pointer).cloned(),
                Err(error) => return found("BodyMismatch", format!("the body is not JSON: {error}")),
            }
        };
        if let Some(what) = lacks(condition, value.as_slice()) {
            let part = if pointer.is_empty() { "the body" } else { pointer };
            return found("BodyMismatch", format!("{part} {what}"));
        }
    }
    None
}

/// What none of `values` has that `condition` asks for.
fn lacks(condition: &Condition, values: &[Value]) -> Option<String> {
    let Condition { exists, equals, contains, matches } = condition;
    let got = || match values.first() {
        None => "is absent".to_owned(),
        Some(value) => format!("is {}", quote(&text(value))),
    };
    let any = |test: &dyn Fn(&Value) -> bool| values.iter().any(test);
    match exists {
        Some(true) if values.is_empty() => return Some("is absent, expected to exist".to_owned()),
        Some(false) if !values.is_empty() => return Some(format!("{}, expected to be absent", got())),
        _ => {}
    }
    if let Some(wanted) = equals
        && !any(&|value| value == wanted)
    {
        return Some(format!("{}, expected {}", got(), quote(&text(wanted))));
    }
    if let Some(wanted) = contains
        && !any(&|value| text(value).contains(wanted.as_str()))
    {
        return Some(format!("{}, expected to contain {}", got(), quote(wanted)));
    }
    // Settings were validated: an expression that does not compile matches nothing.
    if let Some(wanted) = matches
        && !Regex::new(wanted).is_ok_and(|wanted| any(&|value| wanted.is_match(&text(value))))
    {
        return Some(format!("{}, expected to match {}", got(), quote(wanted)));
    }
    None
}

/// Answers over a ceiling: each over the maximum, then the percentile.
fn too_slow<'a>(made: &'a [Made<'a>], limits: Latency) -> impl Iterator<Item = Finding> + 'a {
    let code = "LatencyAboveThreshold";
    let each = made.iter().filter_map(move |made| {
        let latency = made.result.as_ref().ok()?.latency();
        let limit = limits.max_ms.filter(|limit| latency > *limit)?;
        let message = format!("{}: {latency:.1} ms, expected at most {limit} ms", asked(made));
        Some(Finding { code, message })
    });
    let overall = latencies(made).and_then(|latencies| {
        let limit = limits.p95_ms.filter(|limit| latencies.p95 > *limit)?;
        let message = format!("95 % of the answers took up to {:.1} ms, expected at most {limit} ms", latencies.p95);
        Some(Finding { code, message })
    });
    each.chain(overall)
}

fn asked(made: &Made<'_>) -> String {
    format!("{} {} on {}", made.check.method, quote_plain(&made.check.path), made.endpoint)
}

/// A value as a condition on text sees it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn quote(text: &str) -> String {
    format!("{:?}", quote_plain(text))
}

fn quote_plain(text: &str) -> String {
    match text.char_indices().nth(QUOTE) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn response(status: u16, body: &str, latency: f64) -> Response {
        Response {
            endpoint: "pod-a".into(),
            status,
            http_version: "1.1".into(),
            headers: vec![("server".into(), b"kong/3.10".to_vec()), ("server".into(), b"other".to_vec())],
            body: body.into(),
            body_size: 0,
            timings: (1.0, 0.0, latency, latency),
        }
    }

    fn failure(kind: &str) -> Failure {
        Failure { kind: kind.into(), message: "why".into() }
    }

    fn check(expect: Value) -> Check {
        serde_json::from_value(json!({"path": "/", "expect": expect})).unwrap()
    }

    fn code(verdict: Result<Verdict, Trouble>) -> String {
        match verdict.unwrap() {
            Verdict::Pass(reason) | Verdict::Fail(reason) | Verdict::Inconclusive(reason) => reason.code,
            Verdict::Wait(later) => later.reason.code,
        }
    }

    fn judged(check: &Check, result: Result<Response, Failure>) -> Result<Verdict, Trouble> {
        judge(&[Made { check, endpoint: "pod-a", result }], Latency::default())
    }

    #[test]
    fn a_gateway_without_routes_passes_the_default_check() {
        let not_found = response(404, r#"{"message":"no Route matched with those values"}"#, 3.0);
        assert_eq!(code(judged(&Check::default(), Ok(not_found))), "AllChecksPassed");
    }

    #[test]
    fn a_fault_of_the_server_fails_and_the_message_says_where_got_and_expected() {
        let Ok(Verdict::Fail(reason)) = judged(&Check::default(), Ok(response(500, "", 3.0))) else {
            panic!("no fail")
        };
        assert_eq!(reason.code, "UnexpectedStatus");
        assert_eq!(reason.message, "GET / on pod-a: status 500, expected below 500");
    }

    #[test]
    fn every_kind_of_condition_holds_and_breaks() {
        let body = r#"{"a":[{"b":1}],"c":"text"}"#;
        for (expect, code_wanted) in [
            (json!({"status": 200}), "AllChecksPassed"),
            (json!({"status": [201, 204]}), "UnexpectedStatus"),
            (json!({"status": {"from": 200, "to": 299}}), "AllChecksPassed"),
            (json!({"headers": {"Server": {"equals": "other"}}}), "AllChecksPassed"),
            (json!({"headers": {"server": {"equals": "kong"}}}), "HeaderMismatch"),
            (json!({"headers": {"server": {"contains": "kong/"}}}), "AllChecksPassed"),
            (json!({"headers": {"server": {"contains": "nginx"}}}), "HeaderMismatch"),
            (json!({"headers": {"server": {"matches": "^kong/3\\.\\d+$"}}}), "AllChecksPassed"),
            (json!({"headers": {"server": {"matches": "^3"}}}), "HeaderMismatch"),
            (json!({"headers": {"server": {"exists": true}}}), "AllChecksPassed"),
            (json!({"headers": {"server": {"exists": false}}}), "HeaderMismatch"),
            (json!({"headers": {"x-debug": {"exists": false}}}), "AllChecksPassed"),
            (json!({"headers": {"x-debug": {"exists": true}}}), "HeaderMismatch"),
            (json!({"body": {"": {"contains": "text"}}}), "AllChecksPassed"),
            (json!({"body": {"": {"equals": "text"}}}), "BodyMismatch"),
            (json!({"body": {"/a/0/b": {"equals": 1}}}), "AllChecksPassed"),
            (json!({"body": {"/a/0/b": {"equals": "1"}}}), "BodyMismatch"),
            (json!({"body": {"/c": {"matches": "^te"}}}), "AllChecksPassed"),
            (json!({"body": {"/d": {"exists": true}}}), "BodyMismatch"),
            (json!({"body": {"/d": {"exists": false}}}), "AllChecksPassed"),
        ] {
            assert_eq!(code(judged(&check(expect.clone()), Ok(response(200, body, 1.0)))), code_wanted, "{expect}");
        }
    }

    #[test]
    fn a_body_that_is_no_json_has_no_pointers() {
        let check = check(json!({"body": {"/a": {"exists": false}}}));
        assert_eq!(code(judged(&check, Ok(response(200, "<html>", 1.0)))), "BodyMismatch");
    }

    #[test]
    fn a_long_value_is_cut_in_the_message() {
        let check = check(json!({"body": {"": {"equals": "b"}}}));
        let Ok(Verdict::Fail(reason)) = judged(&check, Ok(response(200, &"a".repeat(10_000), 1.0))) else {
            panic!("no fail")
        };
        assert!(reason.message.len() < 300, "{}", reason.message.len());
    }

    #[test]
    fn one_silent_endpoint_among_others_is_a_bad_endpoint() {
        let check = Check::default();
        let made = [
            Made { check: &check, endpoint: "pod-a", result: Ok(response(404, "", 1.0)) },
            Made { check: &check, endpoint: "pod-b", result: Err(failure("connect")) },
        ];
        let Ok(Verdict::Fail(reason)) = judge(&made, Latency::default()) else { panic!("no fail") };
        assert_eq!((reason.code.as_str(), reason.message.as_str()), ("EndpointUnreachable", "GET / on pod-b: why"));
        assert_eq!(failures(&made), 1);
    }

    #[test]
    fn nobody_answering_is_no_knowledge_and_worth_another_attempt() {
        for kind in ["connect", "timeout"] {
            assert!(judged(&Check::default(), Err(failure(kind))).unwrap_err().retry, "{kind}");
        }
    }

    #[test]
    fn an_answer_that_is_no_http_is_the_candidates_fault() {
        for kind in ["protocol", "tls"] {
            assert_eq!(code(judged(&Check::default(), Err(failure(kind)))), "BrokenAnswer", "{kind}");
        }
    }

    #[test]
    fn what_the_host_refuses_is_trouble_that_stays() {
        for kind in ["denied", "invalid", "budget"] {
            assert!(!judged(&Check::default(), Err(failure(kind))).unwrap_err().retry, "{kind}");
        }
    }

    #[test]
    fn latency_is_judged_by_the_slowest_and_by_the_percentile() {
        let check = Check::default();
        let made: Vec<_> = (1..=100)
            .map(|latency| Made { check: &check, endpoint: "pod-a", result: Ok(response(200, "", f64::from(latency))) })
            .collect();
        assert_eq!(latencies(&made), Some(Latencies { p50: 50.0, p95: 95.0, max: 100.0 }));
        for (max_ms, p95_ms, wanted) in [
            (Some(100.0), Some(95.0), "AllChecksPassed"),
            (Some(99.0), None, "LatencyAboveThreshold"),
            (None, Some(94.0), "LatencyAboveThreshold"),
        ] {
            assert_eq!(code(judge(&made, Latency { max_ms, p95_ms })), wanted);
        }
    }
}
