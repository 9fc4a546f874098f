//! `http-smoke`: a gate that asks every endpoint of the candidate and judges status, headers, body and latency.
//!
//! `settings` is what a user may set, `judge` decides from answers, and here the requests are made.

pub mod judge;
pub mod settings;

use std::time::Duration;

use sluice_gate::{Description, Gate, Problem, Request, Trouble, Verdict};

use self::{
    judge::Made,
    settings::{Check, Endpoints, SCHEMA, Settings},
};

/// How often an endpoint that refuses the connection is asked again, and after what pause: a Service's rules
/// reach a node a moment after its endpoints are ready.
const RETRIES: u8 = 2;
const PAUSE: Duration = Duration::from_millis(250);

/// How a request without an endpoint is called in messages.
const SERVICE: &str = "the Service";

/// The gate. See `schema.json` for its settings.
pub struct HttpSmoke;

impl Gate for HttpSmoke {
    type Settings = Settings;

    fn describe() -> Description {
        Description {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: env!("CARGO_PKG_DESCRIPTION").to_owned(),
            settings_schema: SCHEMA.to_owned(),
        }
    }

    fn validate(settings: &Settings) -> Vec<Problem> {
        settings::problems(settings)
    }

    fn evaluate(settings: Settings) -> Result<Verdict, Trouble> {
        let endpoints = endpoints(&settings)?;
        let mut made: Vec<Made<'_>> = Vec::new();
        let wanted = plan(&settings, &endpoints);
        let requests = wanted.iter().map(|(check, endpoint)| request(&settings, check, endpoint.as_deref()));
        let results = sluice_gate::send_all(requests, settings.concurrency);
        for ((check, endpoint), result) in wanted.iter().zip(results) {
            made.push(Made { check, endpoint: endpoint.as_deref().unwrap_or(SERVICE), result });
        }
        ask_again(&settings, &mut made);
        measure(&settings, &made);
        judge::judge(&made, settings.latency)
    }
}

sluice_gate::export!(HttpSmoke);

/// Who is asked; `None` is the Service.
fn endpoints(settings: &Settings) -> Result<Vec<Option<String>>, Trouble> {
    match settings.endpoints {
        Endpoints::Service => Ok(vec![None]),
        Endpoints::Each => {
            let target = sluice_gate::targets().into_iter().find(|target| target.name == settings.target);
            match target {
                // Asked all the same: the host says no in its own words, and remembers it.
                None => Ok(vec![None]),
                Some(target) if target.endpoints.is_empty() => {
                    Err(Trouble::passing(format!("{} has no endpoints", settings.target)))
                }
                Some(target) => Ok(target.endpoints.into_iter().map(Some).collect()),
            }
        }
    }
}

/// Every request to be made: each check, on each endpoint, as often as it is to be repeated.
fn plan<'a>(settings: &'a Settings, endpoints: &'a [Option<String>]) -> Vec<(&'a Check, &'a Option<String>)> {
    let once = settings.checks.iter().flat_map(|check| endpoints.iter().map(move |endpoint| (check, endpoint)));
    std::iter::repeat_n(once, settings.repeat.into()).flatten().collect()
}

fn request(settings: &Settings, check: &Check, endpoint: Option<&str>) -> Request {
    let mut request = Request::new(&check.method, &settings.target, &check.path)
        .timeout(Duration::from_millis(settings.timeout_ms.into()))
        .body(check.body.as_bytes());
    if let Some(endpoint) = endpoint {
        request = request.endpoint(endpoint);
    }
    if let Some(host) = &check.host {
        request = request.host(host);
    }
    if check.expect.body.is_empty() {
        request = request.max_body(0);
    }
    check.headers.iter().fold(request, |request, (name, value)| request.header(name, value))
}

/// Asks those again that refused the connection.
fn ask_again(settings: &Settings, made: &mut [Made<'_>]) {
    for _ in 0..RETRIES {
        let refused: Vec<_> = made
            .iter_mut()
            .filter(|made| made.result.as_ref().is_err_and(|failure| failure.kind == "connect"))
            .collect();
        if refused.is_empty() {
            return;
        }
        sluice_gate::sleep(PAUSE);
        let endpoint = |made: &Made<'_>| (made.endpoint != SERVICE).then(|| made.endpoint.to_owned());
        let requests = refused.iter().map(|made| request(settings, made.check, endpoint(made).as_deref()));
        let results = sluice_gate::send_all(requests.collect::<Vec<_>>(), settings.concurrency);
        for (made, result) in refused.into_iter().zip(results) {
            made.result = result;
        }
    }
}

/// What is worth keeping as evidence.
fn measure(settings: &Settings, made: &[Made<'_>]) {
    // Counts of at most some ten thousands are exact in a float.
    sluice_gate::measure("requests", made.len() as f64, "requests", None);
    sluice_gate::measure("failures", judge::failures(made) as f64, "requests", Some(0.0));
    if let Some(latencies) = judge::latencies(made) {
        sluice_gate::measure("p50", latencies.p50, "ms", None);
        sluice_gate::measure("p95", latencies.p95, "ms", settings.latency.p95_ms);
        sluice_gate::measure("max", latencies.max, "ms", settings.latency.max_ms);
    }
}
