//! What a user may set. `schema.json` says the same to the host; a test holds them together.

use std::{collections::BTreeMap, fmt};

use regex_lite::Regex;
use serde::Deserialize;
use serde_json::Value;
use sluice_gate::Problem;

/// The schema of [`Settings`].
pub const SCHEMA: &str = include_str!("schema.json");

/// Everything. Each field has a default, so that `{}` is a useful check of a gateway without routes.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Name of the target.
    pub target: String,
    /// Who is asked.
    pub endpoints: Endpoints,
    /// How often each check is made on each endpoint.
    pub repeat: u16,
    /// Requests in flight at once.
    pub concurrency: u16,
    /// Milliseconds for one request.
    pub timeout_ms: u32,
    /// Ceilings.
    pub latency: Latency,
    /// What is asked.
    pub checks: Vec<Check>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            target: "candidate/proxy".to_owned(),
            endpoints: Endpoints::Each,
            repeat: 1,
            concurrency: 8,
            timeout_ms: 5_000,
            latency: Latency::default(),
            checks: vec![Check::default()],
        }
    }
}

/// Who is asked.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Endpoints {
    /// Each Pod by its own address: one bad Pod of ten is found every time.
    Each,
    /// The Service in front of them.
    Service,
}

/// Ceilings in milliseconds, for whole exchanges.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Latency {
    /// Of every request.
    pub max_ms: Option<f64>,
    /// Of 95 of 100 requests.
    pub p95_ms: Option<f64>,
}

/// One request and what its answer must be.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Check {
    /// `GET` by default.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// `Host` header and TLS server name.
    pub host: Option<String>,
    /// Headers of the request.
    pub headers: BTreeMap<String, String>,
    /// Body of the request.
    pub body: String,
    /// What the answer must be.
    pub expect: Expect,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: None,
            headers: BTreeMap::new(),
            body: String::new(),
            expect: Expect::default(),
        }
    }
}

/// What an answer must be.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Expect {
    /// Its status.
    pub status: Status,
    /// Conditions by name of a header.
    pub headers: BTreeMap<String, Condition>,
    /// Conditions by JSON pointer into the body; the empty pointer is the body as text.
    pub body: BTreeMap<String, Condition>,
}

/// Statuses that are good.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Status {
    /// This one.
    One(u16),
    /// Any of these.
    Some(Vec<u16>),
    /// Any between these two, both included.
    #[serde(rename_all = "camelCase")]
    Range {
        /// The lowest.
        from: u16,
        /// The highest.
        to: u16,
    },
}

impl Default for Status {
    /// A gateway without routes answers 404: anything but a fault of the server is a sign of life.
    fn default() -> Self {
        Self::Range { from: 100, to: 499 }
    }
}

impl Status {
    /// Whether `status` is good.
    #[must_use]
    pub fn allows(&self, status: u16) -> bool {
        match self {
            Self::One(one) => status == *one,
            Self::Some(some) => some.contains(&status),
            Self::Range { from, to } => (*from..=*to).contains(&status),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(one) => write!(formatter, "{one}"),
            Self::Some(some) => {
                let some: Vec<_> = some.iter().map(ToString::to_string).collect();
                formatter.write_str(&some.join(" or "))
            }
            Self::Range { from: 100, to } => write!(formatter, "below {}", to + 1),
            Self::Range { from, to } => write!(formatter, "{from} to {to}"),
        }
    }
}

/// What a header or a part of the body must be. All that are given must hold.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Condition {
    /// There, or absent.
    pub exists: Option<bool>,
    /// Exactly this.
    pub equals: Option<Value>,
    /// With this in it.
    pub contains: Option<String>,
    /// Matching this regular expression.
    pub matches: Option<String>,
}

/// What the schema cannot say.
#[must_use]
pub fn problems(settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (position, check) in settings.checks.iter().enumerate() {
        let expect = format!("/checks/{position}/expect");
        if let Status::Range { from, to } = check.expect.status
            && from > to
        {
            problem(&mut problems, format!("{expect}/status"), format!("{from} is above {to}"));
        }
        for (part, conditions) in [("headers", &check.expect.headers), ("body", &check.expect.body)] {
            for (name, condition) in conditions {
                let Some(Err(error)) = condition.matches.as_deref().map(Regex::new) else { continue };
                // A name in a JSON pointer is escaped.
                let name = name.replace('~', "~0").replace('/', "~1");
                problem(&mut problems, format!("{expect}/{part}/{name}/matches"), error.to_string());
            }
        }
    }
    problems
}

fn problem(problems: &mut Vec<Problem>, pointer: String, message: String) {
    problems.push(Problem { pointer, message });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_settings_are_the_defaults() {
        assert_eq!(serde_json::from_value::<Settings>(json!({})).unwrap(), Settings::default());
    }

    #[test]
    fn the_schema_and_the_types_say_the_same() {
        let schema = jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap();
        let full = json!({
            "target": "candidate/proxy-ssl",
            "endpoints": "service",
            "repeat": 3,
            "concurrency": 4,
            "timeoutMs": 100,
            "latency": {"maxMs": 10, "p95Ms": 5.5},
            "checks": [{
                "method": "POST", "path": "/a?b=c", "host": "api.example.com", "headers": {"accept": "*/*"}, "body": "x",
                "expect": {
                    "status": {"from": 200, "to": 299},
                    "headers": {"server": {"contains": "kong", "matches": "^kong/"}, "x-a": {"exists": false}},
                    "body": {"": {"contains": "a"}, "/a/0": {"equals": 1}},
                },
            }],
        });
        for good in [json!({}), full, json!({"checks": [{"path": "/", "expect": {"status": [200, 404]}}]})] {
            assert!(schema.is_valid(&good), "{good}");
            assert!(serde_json::from_value::<Settings>(good.clone()).is_ok(), "{good}");
        }
        for bad in [
            json!({"pahts": []}),
            json!({"endpoints": "all"}),
            json!({"latency": {"max": 1}}),
            json!({"checks": [{"path": "/", "expects": {}}]}),
            json!({"checks": [{"path": "/", "expect": {"status": "2xx"}}]}),
            json!({"checks": [{"path": "/", "expect": {"headers": {"a": {"is": 1}}}}]}),
        ] {
            assert!(!schema.is_valid(&bad), "{bad}");
            assert!(serde_json::from_value::<Settings>(bad.clone()).is_err(), "{bad}");
        }
        let narrower = json!({"checks": [{"path": "no slash"}]});
        assert!(!schema.is_valid(&narrower));
    }

    #[test]
    fn the_defaults_of_the_schema_are_the_defaults() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let defaults = properties.iter().filter_map(|(name, of)| Some((name.clone(), of.get("default")?.clone())));
        let defaults = Value::Object(defaults.collect());
        assert_eq!(serde_json::from_value::<Settings>(defaults).unwrap(), Settings::default());
    }

    #[test]
    fn a_broken_expression_is_a_problem_with_its_pointer() {
        let settings = json!({"checks": [{"path": "/", "expect": {"body": {"/a": {"matches": "("}}}}]});
        let problems = problems(&serde_json::from_value(settings).unwrap());
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].pointer, "/checks/0/expect/body/~1a/matches");
    }

    #[test]
    fn a_range_the_wrong_way_round_is_a_problem() {
        let settings = json!({"checks": [{"path": "/", "expect": {"status": {"from": 299, "to": 200}}}]});
        assert_eq!(problems(&serde_json::from_value(settings).unwrap())[0].pointer, "/checks/0/expect/status");
    }
}
