//! `sluice:gate/metrics`: named questions to the operator's Prometheus. `model::promql` says what may be asked.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Uri,
    header::{self, HeaderValue},
};
use serde::Deserialize;
use wasmtime::Result;

use super::{
    exchange::{Exchange, Peer, Tls},
    probe::{self, Failure, Kind, Response, failure},
    traffic::Traffic,
};
use crate::{
    gate::{reach::Prometheus, store::State, text},
    model::{promql::Template, trial::Query},
};

/// Series of one answer.
const SERIES: usize = 1_000;

/// Time of one query. One that takes longer asks for too much.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of what Prometheus says of a query that it refuses.
const QUOTE: usize = 256;

/// One line of an answer.
#[derive(Debug, PartialEq)]
pub(in crate::gate) struct Series {
    pub(in crate::gate) labels: Vec<(String, String)>,
    /// Seconds since 1970, and the value.
    pub(in crate::gate) points: Vec<(f64, f64)>,
}

impl State {
    pub(in crate::gate) async fn query(
        &mut self,
        name: &str,
        parameters: &[(String, String)],
    ) -> Result<Result<Vec<Series>, Failure>> {
        self.enter().await?;
        let exchange = match self.question(name, parameters) {
            Ok(exchange) => exchange,
            Err(failure) => return Ok(Err(failure)),
        };
        let limit = exchange.max_body;
        Ok(probe::sent(exchange).await.and_then(|answer| read(&answer, limit)))
    }

    /// Judges a query and takes it out of the budget of requests.
    fn question(&mut self, name: &str, parameters: &[(String, String)]) -> Result<Exchange, Failure> {
        let Some(query) = self.trial.grants.queries.iter().find(|query| query.name == name) else {
            self.record.deny(&format!("query {name}"));
            return Err(failure(Kind::Denied, format!("query {:?} was not granted", text::cut(name, QUOTE))));
        };
        let Some(prometheus) = &self.reach.prometheus else {
            let message = "this gate host has no Prometheus: its operator names one with --prometheus".into();
            return Err(failure(Kind::Denied, message));
        };
        let invalid = |why: String| failure(Kind::Invalid, format!("query {name:?}: {}", text::cut(&why, QUOTE)));
        let promql = Template::parse(&query.promql).and_then(|template| template.fill(&query.namespace, parameters));
        let tls = if prometheus.tls { Tls::Verified(self.reach.tls.clone()) } else { Tls::Off };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let exchange =
            asking(prometheus, tls, query, &promql.map_err(invalid)?, now, self.trial.limits.body, &self.traffic);
        let exchange = exchange?;
        self.spend(exchange.size())?;
        Ok(exchange)
    }
}

/// The request of Prometheus' HTTP API.
fn asking(
    prometheus: &Prometheus,
    tls: Tls,
    query: &Query,
    promql: &str,
    now: Duration,
    max_body: usize,
    traffic: &Traffic,
) -> Result<Exchange, Failure> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("query", promql).append_pair("timeout", &format!("{}s", TIMEOUT.as_secs()));
    let function = match query.range {
        None => "query",
        Some(range) => {
            form.append_pair("start", &now.saturating_sub(range.window).as_secs_f64().to_string())
                .append_pair("end", &now.as_secs_f64().to_string())
                .append_pair("step", &range.step.as_secs_f64().to_string());
            "query_range"
        }
    };
    let path = format!("{}/api/v1/{function}", prometheus.path);
    Ok(Exchange {
        peer: Peer::Prometheus {
            host: prometheus.authority.host().trim_matches(['[', ']']).into(),
            port: prometheus.port,
        },
        tls,
        authority: prometheus.authority.clone(),
        method: Method::POST,
        path: Uri::try_from(path).map_err(|error| failure(Kind::Invalid, error.to_string()))?,
        headers: HeaderMap::from_iter([(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        )]),
        body: Bytes::from(form.finish()),
        timeout: TIMEOUT,
        max_body,
        traffic: traffic.clone(),
    })
}

/// What Prometheus answers.
#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Answer {
    Success { data: Data },
    Error { error: String },
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Line>),
    Matrix(Vec<Line>),
    Scalar(Point),
    // Of no use to a gate, which wrote no query of it.
    String(serde::de::IgnoredAny),
}

/// One series. A line without `value` and `values` is a native histogram.
#[derive(Deserialize)]
struct Line {
    metric: std::collections::BTreeMap<String, String>,
    value: Option<Point>,
    values: Option<Vec<Point>>,
}

/// Numbers are written as text, for `NaN` and `+Inf` are no JSON.
#[derive(Deserialize)]
struct Point(f64, String);

impl Point {
    fn read(self) -> Result<(f64, f64), Failure> {
        let value = self.1.parse().map_err(|_| failure(Kind::Protocol, format!("{:?} is no number", self.1)))?;
        Ok((self.0, value))
    }
}

fn read(answer: &Response, limit: usize) -> Result<Vec<Series>, Failure> {
    if usize::try_from(answer.body_size).is_ok_and(|size| size > limit) {
        let message = format!("the answer has {} bytes, at most {limit} are taken", answer.body_size);
        return Err(failure(Kind::TooLarge, message));
    }
    let understood = serde_json::from_slice(&answer.body);
    let data = match understood {
        Ok(Answer::Success { data }) => data,
        Ok(Answer::Error { error }) => {
            return Err(failure(Kind::Refused, format!("Prometheus says: {}", text::cut(&error, QUOTE))));
        }
        Err(_) => {
            return Err(failure(Kind::Protocol, format!("status {}, and no answer of Prometheus", answer.status)));
        }
    };
    let lines = match data {
        Data::Vector(lines) | Data::Matrix(lines) => lines,
        Data::Scalar(point) => return Ok(vec![Series { labels: Vec::new(), points: vec![point.read()?] }]),
        Data::String(_) => return Err(failure(Kind::Invalid, "the query is a text, not a number".into())),
    };
    if lines.len() > SERIES {
        let message = format!("the answer has {} series, at most {SERIES} are taken", lines.len());
        return Err(failure(Kind::TooLarge, message));
    }
    lines.into_iter().map(line).collect()
}

fn line(line: Line) -> Result<Series, Failure> {
    let points: Vec<Point> = match (line.value, line.values) {
        (Some(value), _) => vec![value],
        (None, Some(values)) => values,
        (None, None) => {
            let message = "the answer is a native histogram; ask for histogram_quantile or histogram_count of it";
            return Err(failure(Kind::Invalid, message.into()));
        }
    };
    let points: Result<_, _> = points.into_iter().map(Point::read).collect();
    Ok(Series { labels: line.metric.into_iter().collect(), points: points? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &str) -> Response {
        Response {
            endpoint: String::new(),
            status: 200,
            http_version: "1.1",
            headers: vec![],
            body: body.into(),
            body_size: u32::try_from(body.len()).unwrap(),
            timings: (0.0, 0.0, 0.0, 0.0),
        }
    }

    fn reading(body: &str) -> Result<Vec<Series>, Kind> {
        read(&answer(body), 1 << 20).map_err(|failure| failure.kind)
    }

    #[test]
    fn every_type_of_answer_is_read() {
        let vector = r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{"a":"b"},"value":[1.5,"+Inf"]}]}}"#;
        let wanted = Series { labels: vec![("a".into(), "b".into())], points: vec![(1.5, f64::INFINITY)] };
        assert_eq!(reading(vector), Ok(vec![wanted]));
        let matrix = r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[1,"2"],[3,"4"]]}]}}"#;
        assert_eq!(reading(matrix), Ok(vec![Series { labels: vec![], points: vec![(1.0, 2.0), (3.0, 4.0)] }]));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"2"]}}"#;
        assert_eq!(reading(scalar), Ok(vec![Series { labels: vec![], points: vec![(1.0, 2.0)] }]));
    }

    #[test]
    fn what_is_no_answer_to_use_says_why() {
        let histogram =
            r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"histogram":[1,{}]}]}}"#;
        for (body, kind) in [
            (r#"{"status":"error","errorType":"bad_data","error":"no"}"#, Kind::Refused),
            (r#"{"status":"success","data":{"resultType":"string","result":[1,"a"]}}"#, Kind::Invalid),
            (r#"{"status":"success","data":{"resultType":"scalar","result":[1,"a"]}}"#, Kind::Protocol),
            (histogram, Kind::Invalid),
            ("<html>", Kind::Protocol),
            ("", Kind::Protocol),
        ] {
            assert_eq!(reading(body), Err(kind), "{body}");
        }
        let answer = Response { body_size: 11, ..answer("0123456789") };
        assert_eq!(read(&answer, 10).map_err(|failure| failure.kind), Err(Kind::TooLarge));
        let line = r#"{"metric":{},"value":[1,"2"]}"#;
        let lines = |count| {
            let lines = vec![line; count].join(",");
            reading(&format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{lines}]}}}}"#))
        };
        assert_eq!(lines(SERIES).map(|series| series.len()), Ok(SERIES));
        assert_eq!(lines(SERIES + 1), Err(Kind::TooLarge));
    }
}
