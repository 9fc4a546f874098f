//! Sluice.

pub mod api;
pub mod cluster;
pub mod dataplane;
pub mod gate;
pub mod gateplugin;
pub mod model;
pub mod promotionpolicy;
pub mod telemetry;
