//! Sluice runs Kong's `DataPlane` objects on Kubernetes, and lets WebAssembly gates judge the preview of an upgrade
//! before the annotation that promotes it is honoured. This page is the map of the house.
//!
//! # Bird's eye view
//!
//! A `DataPlane` becomes Deployments and Services. When its Pod template or its ports change, the live side keeps
//! serving while a second one, the candidate, starts behind preview Services. Policies attach gates to DataPlanes: each
//! gate is a component behind the contract in `wit/`, run in a sandbox of the gate host, a process of its own without a
//! token, and it speaks to the candidate only. When every gate has passed and somebody has approved, both live Services
//! switch; the replaced side lives on for a while and goes. A `Promotion` object records all of it.
//!
//! Three promises rank above everything else, in this order: **no bypass** (a live selector moves only to a revision
//! that passed every gate), **nothing lost** (a crash between any two writes heals by itself), **drop-in** (what was
//! written for Kong's operator works unchanged).
//!
//! # The corridor
//!
//! One pass over one DataPlane is the list of verbs in [`dataplane::reconcile`], each in a room of its own:
//!
//! ```text
//! check -> observe -> plan -> build -> apply -> jobs -> status -> publish
//! pure     caches     pure    pure     writes   tasks   pure      writes
//! ```
//!
//! Data changes its name with its state: objects -> [`model::Intent`] and [`model::Observed`] -> facts -> phase ->
//! [`model::Plan`] -> rendered objects -> status. Facts decide in one exhaustive match ([`dataplane::plan::phase`]);
//! the phase before is never asked. What cannot be observed again lives in the `Promotion`.
//!
//! **Intent first.** An attempt of a gate, the commit and the freeze of the spec are published in one pass, and only a
//! later pass that observes them starts the trial or switches a Service. So whoever is killed between two writes has
//! left behind either nothing or a promise that the next process keeps.
//!
//! **On record as it was rendered.** A wish and the Pod template made of it are written down before anything runs them, and
//! the live side is always rendered from there: another version of the operator, a crash or a roll-back reaches for
//! nothing that was not judged. What lives and is on no record, because Kong's operator made it or somebody deleted the
//! record, is taken over as it runs ([`dataplane::plan::adopt`]).
//!
//! # The rooms, in walking order
//!
//! | room | job |
//! |---|---|
//! | [`cli`] | the command line; the only room with `anyhow` |
//! | [`telemetry`] | logs, metrics, health |
//! | [`api`] | wire nouns: custom resources, the only room with schemas and CEL |
//! | [`model`] | inner nouns: intent, observed, plan, trial, names |
//! | [`cluster`] | what every controller needs: the Lease, caches by owner, memory of writes, back-off, who else is at work |
//! | [`dataplane`] | the corridor of a DataPlane |
//! | [`gateplugin`] | the corridor of a plugin: fetched -> verified -> loaded -> described |
//! | [`promotionpolicy`] | the corridor of a policy: what is wrong with it, before any upgrade |
//! | [`gate`] | runs trials; knows WebAssembly, not Kubernetes |
//!
//! Outside of `src`: `wit/` is the wall, `plugins/` the guest's side of it, `deploy/` what an admin applies, `tests/`
//! what needs more than one room and the cluster it runs on. `fuzzing`, in tests and under `tests/fuzz` only, is what has to
//! hold of everything that strangers write.
//!
//! # What is deliberately absent
//!
//! - **No await, clock, client or environment in `check`, `plan`, `build` and `status`.** `now` is an argument. A test
//!   (`tests/it/house.rs`) reads their sources.
//! - **Stages do not know each other**; only `reconcile` knows stages. `gate` does not know kube.
//! - **Nothing waits inside a pass.** Trials and connection checks are jobs that wake a later pass.
//! - **No decision on a read from the API.** Passes read caches, and never a cache older than their own last write. Three
//!   questions are asked of the API all the same: before a Service is switched, whether anything changed since; where a
//!   name is taken, by whom; and who holds the fields of an object that is taken over.
//! - **No write beside Kong's operator.** While its Lease is renewed, nothing is written ([`cluster::foreign`]).
//! - **No write without the Lease.** One of several operators holds it, and its client refuses to write for longer
//!   ([`cluster::leader`]). What is under way by then names the version that it was decided on ([`dataplane::apply`]).
//! - **No DNS and no addresses for gates.** They name targets; the host dials what it read from Kubernetes.
//! - **No host that an operator did not list.** References of plugins come from tenants; redirects and demands for tokens
//!   come from registries. None of them leads further than the file of `--plugin-sources`.
//! - **No foreign code beside the token.** `sluice operator` never runs a gate: `sluice gate-host` does, behind a Unix
//!   socket ([`gate::RemoteGateHost`]). When it dies, its trials are interrupted attempts, and the plugins are loaded again.
//! - **No compiler beside the gates.** A child compiles, confined, and ends ([`gate::Compiler`]); what it made is
//!   authenticated before it is mapped ([`gate::Cache`]).
//! - **No instance is used twice.** A trial gets a fresh store and leaves nothing behind.
//! - **No way to pass by breaking.** Whatever is not a verdict is an error, and an error is not a pass.

pub mod api;
pub mod cli;
pub mod cluster;
pub mod dataplane;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod gate;
pub mod gateplugin;
pub mod model;
pub mod promotionpolicy;
pub mod telemetry;
