//! Sluice.

pub mod gate;
pub mod model;
