//! Runs health checks as Argo CD and Flux run them. A crate of its own because the two interpreters ask for features of
//! crates that wasmtime uses too: as dev-dependencies they would have it built twice, for `build` and for `test`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::sync::Arc;

use cel::{Context, Env};
use mlua::{Lua, LuaOptions, LuaSerdeExt as _, StdLib};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A verdict of Argo CD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the words are Argo CD's")]
pub enum Health {
    Healthy,
    Suspended,
    Progressing,
    Degraded,
}

/// What Argo CD shows of an object.
#[derive(Debug, Deserialize)]
pub struct Shown {
    /// The verdict.
    pub status: Health,
    /// For people.
    #[serde(default)]
    pub message: String,
}

/// The checks of an `argocd-cm`.
pub struct ArgoCd(Map<String, Value>);

impl ArgoCd {
    /// The `data` of the ConfigMap.
    #[must_use]
    pub fn read(mut config_map: Value) -> Self {
        Self(serde_json::from_value(config_map["data"].take()).unwrap())
    }

    /// How many checks there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A fresh interpreter with the basic functions and `table` each time, and the object as the global `obj`.
    #[must_use]
    pub fn check(&self, group: &str, kind: &str, object: &Value) -> Shown {
        let script = self.0[&format!("resource.customizations.health.{group}_{kind}")].as_str().unwrap();
        let lua = Lua::new_with(StdLib::TABLE, LuaOptions::default()).unwrap();
        lua.globals().set("obj", lua.to_value(object).unwrap()).unwrap();
        lua.from_value(lua.load(script).eval().unwrap()).unwrap()
    }
}

/// A verdict of Flux, which has no suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words are Flux's")]
pub enum Progress {
    Current,
    InProgress,
    Failed,
}

/// The checks of a Kustomization.
pub struct Flux(Vec<Expressions>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expressions {
    api_version: String,
    kind: String,
    failed: String,
    current: String,
}

impl Flux {
    /// The `spec.healthCheckExprs` of the Kustomization.
    #[must_use]
    pub fn read(mut kustomization: Value) -> Self {
        Self(serde_json::from_value(kustomization["spec"]["healthCheckExprs"].take()).unwrap())
    }

    /// How many checks there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Every top-level field is a variable, `failed` is asked before `current`, and what is neither is in progress. So
    /// is what cannot be asked for want of a status.
    #[must_use]
    pub fn check(&self, api_version: &str, kind: &str, object: &Value) -> Progress {
        let check = self.0.iter().find(|check| check.api_version == api_version && check.kind == kind).unwrap();
        let env = Arc::new(Env::stdlib());
        let mut context = Context::with_env(env.clone());
        for (name, value) in object.as_object().unwrap() {
            context.add_variable(name.clone(), value).unwrap();
        }
        let holds = |expression: &str| match env.compile(expression).unwrap().execute(&context) {
            Ok(value) => value == true.into(),
            Err(_) if object.get("status").is_none() => false,
            Err(error) => panic!("{expression}: {error}"),
        };
        if holds(&check.failed) {
            Progress::Failed
        } else if holds(&check.current) {
            Progress::Current
        } else {
            Progress::InProgress
        }
    }
}
