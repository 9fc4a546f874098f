//! `sluice:gate@0.1`: its types, and the words of the house for them.

use std::time::Duration;

use async_trait::async_trait;
use wasmtime::{
    Result, Store,
    component::{HasSelf, InstancePre, Linker},
};

use super::{Description, Gate, Prepared, Track, Trouble, Verdict};
use crate::{
    gate::{
        host::{metrics::Series, probe},
        store::State,
    },
    model::{
        grants::Side,
        trial::{Problem, Reason},
    },
};

/// What the engine's macro makes of `wit/gate.wit`.
mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "gate",
        imports: { default: async | trappable },
        exports: { default: async },
    });
}

use generated::{
    exports::sluice::gate::evaluator,
    sluice::gate::{metrics as metrics_0_1, probe as probe_0_1, trial as trial_0_1},
};

pub(super) const TRACK: Track = Track { version: "0.1", imports: &["trial", "probe", "metrics"], link, prepare };

fn link(linker: &mut Linker<State>) -> Result<()> {
    generated::Gate::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

fn prepare(linked: InstancePre<State>) -> Result<Box<dyn Prepared>> {
    Ok(Box::new(generated::GatePre::new(linked)?))
}

#[async_trait]
impl Prepared for generated::GatePre<State> {
    async fn instantiate(&self, store: &mut Store<State>) -> Result<Box<dyn Gate>> {
        Ok(Box::new(self.instantiate_async(store).await?))
    }
}

#[async_trait]
impl Gate for generated::Gate {
    async fn describe(&self, store: &mut Store<State>) -> Result<Description> {
        let given = self.sluice_gate_evaluator().call_describe(store).await?;
        let evaluator::Description { name, version, summary, settings_schema } = given;
        Ok(Description { name, version, summary, settings_schema })
    }

    async fn validate(&self, store: &mut Store<State>, settings: &str) -> Result<Vec<Problem>> {
        let given = self.sluice_gate_evaluator().call_validate(store, settings).await?;
        Ok(given.into_iter().map(|evaluator::Problem { pointer, message }| Problem { pointer, message }).collect())
    }

    async fn evaluate(&self, store: &mut Store<State>, settings: &str) -> Result<Result<Verdict, Trouble>> {
        let given = self.sluice_gate_evaluator().call_evaluate(store, settings).await?;
        Ok(given.map(Into::into).map_err(|evaluator::Trouble { message, retry }| Trouble { message, retry }))
    }
}

impl From<evaluator::Verdict> for Verdict {
    fn from(given: evaluator::Verdict) -> Self {
        let reason = |evaluator::Reason { code, message }| Reason { code, message };
        match given {
            evaluator::Verdict::Pass(given) => Self::Pass(reason(given)),
            evaluator::Verdict::Fail(given) => Self::Fail(reason(given)),
            evaluator::Verdict::Inconclusive(given) => Self::Inconclusive(reason(given)),
            evaluator::Verdict::Wait(later) => {
                let after = Duration::from_millis(later.after.into());
                Self::Wait { reason: reason(later.reason), after, state: later.state }
            }
        }
    }
}

impl trial_0_1::Host for State {
    async fn id(&mut self) -> Result<String> {
        State::id(self).await
    }

    async fn phase(&mut self) -> Result<String> {
        State::phase(self).await
    }

    async fn manifest(&mut self, role: trial_0_1::Role) -> Result<Option<String>> {
        let side = match role {
            trial_0_1::Role::Candidate => Side::Candidate,
            trial_0_1::Role::Stable => Side::Stable,
        };
        State::manifest(self, side).await
    }

    async fn targets(&mut self) -> Result<Vec<trial_0_1::Target>> {
        let granted = State::targets(self).await?;
        Ok(granted.into_iter().map(|(name, endpoints)| trial_0_1::Target { name, endpoints }).collect())
    }

    async fn now(&mut self) -> Result<f64> {
        State::now(self).await
    }

    async fn remaining(&mut self) -> Result<f64> {
        State::remaining(self).await
    }

    async fn state(&mut self) -> Result<Option<Vec<u8>>> {
        State::state(self).await
    }

    async fn sleep(&mut self, milliseconds: u32) -> Result<()> {
        State::sleep(self, milliseconds).await
    }

    async fn log(&mut self, level: String, message: String, fields: Vec<(String, String)>) -> Result<()> {
        State::log(self, &level, &message, &fields).await
    }

    async fn measure(&mut self, name: String, value: f64, unit: String, threshold: Option<f64>) -> Result<()> {
        State::measure(self, name, value, unit, threshold).await
    }

    async fn valid_for(&mut self, milliseconds: u32) -> Result<()> {
        State::valid_for(self, milliseconds).await
    }

    async fn link(&mut self, title: String, url: String) -> Result<()> {
        State::link(self, title, url).await
    }
}

impl probe_0_1::Host for State {
    async fn send(
        &mut self,
        requests: Vec<probe_0_1::Request>,
        concurrency: u16,
    ) -> Result<Vec<Result<probe_0_1::Response, probe_0_1::Failure>>> {
        let answers = State::send(self, requests.into_iter().map(Into::into).collect(), concurrency).await?;
        let failure = |probe::Failure { kind, message }| probe_0_1::Failure { kind: kind.as_str().to_owned(), message };
        Ok(answers.into_iter().map(|answer| answer.map(Into::into).map_err(failure)).collect())
    }
}

impl From<probe_0_1::Request> for probe::Request {
    fn from(given: probe_0_1::Request) -> Self {
        let probe_0_1::Request { target, method, path, headers, body, options } = given;
        Self { target, method, path, headers, body, options }
    }
}

impl From<probe::Response> for probe_0_1::Response {
    fn from(answer: probe::Response) -> Self {
        let probe::Response { endpoint, status, http_version, headers, body, body_size, timings } = answer;
        Self { endpoint, status, http_version: http_version.to_owned(), headers, body, body_size, timings }
    }
}

impl metrics_0_1::Host for State {
    async fn query(
        &mut self,
        name: String,
        parameters: Vec<(String, String)>,
    ) -> Result<Result<Vec<metrics_0_1::Series>, metrics_0_1::Failure>> {
        let failure =
            |probe::Failure { kind, message }| metrics_0_1::Failure { kind: kind.as_str().to_owned(), message };
        let series = |Series { labels, points }| metrics_0_1::Series { labels, points };
        let answer = State::query(self, &name, &parameters).await?;
        Ok(answer.map(|answer| answer.into_iter().map(series).collect()).map_err(failure))
    }
}
