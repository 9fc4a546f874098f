//! Sluice.

pub mod api;
pub mod cluster;
pub mod dataplane;
pub mod gate;
pub mod model;
