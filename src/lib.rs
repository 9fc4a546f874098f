//! Sluice.

pub mod api;
pub mod cluster;
pub mod gate;
pub mod model;
