//! What the project is run, shown and tested with, on one machine.
//!
//! - [`cluster`]: a real single-node Kubernetes in a network namespace of its own, and one whose Pods are played
//! - [`images`]: container images made from local files, among them the stand-in gateway
//! - [`kit`]: what a test on the cluster gets; [`wait`]: waiting without sleeping; [`audit`]: what the apiserver was asked meanwhile
//! - [`proxy`] and [`operator`]: an operator that is watched writing, and killed at a chosen write
//! - [`install`]: the operator on that cluster; [`demo`]: the walk; [`verify`]: every suite in order; [`figures`]: what it all costs
//! - [`prometheus`]: a real one, with series made up
//! - [`registry`]: a real container registry, for the sources of plugins
//! - [`http`]: asking a gateway as its users do; [`load`]: users who ask all the time, and what they lose
//! - [`diagnosis`]: what there is to know of a namespace when something in it went wrong
//! - [`workspace`], [`command`], [`kubectl`], [`progress`]: where things are, running programs, a line per step
//!
//! The binary of this crate is a thin command line over it (`cargo cluster`, `cargo verify`, `cargo demo`,
//! `cargo figures`).

// A command line and a test kit: what they have to say goes to standard output and standard error.
#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod audit;
pub mod cluster;
pub mod command;
pub mod demo;
pub mod diagnosis;
pub mod figures;
pub mod http;
pub mod images;
pub mod install;
pub mod kit;
pub mod kubectl;
pub mod load;
pub mod operator;
pub mod progress;
pub mod prometheus;
pub mod proxy;
pub mod registry;
pub mod verify;
pub mod wait;
pub mod workspace;

/// For tests that make things up. From here, because a dependency of tests alone would have others built twice: with the
/// features that it asks for, and without.
pub use proptest;
