//! What needs more than one room of the house.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod cluster;
mod gate;
mod health;
mod house;
mod prometheus;
mod registry;
