//! The behaviour of a DataPlane as its users see it, by the labels of Kong's specification: what is Kong's, and what is
//! different and why.
//!
//! | labels | tests |
//! |---|---|
//! | `U-1` to `U-3`: Kong's own unit tests of blue/green; and the tables of their neighbours | [`kong_units`], `u_...` |
//! | 3.3: transitions of `RolledOut` | [`transitions`], `t_...`, a row each |
//! | 3.8: special situations | [`situations`], `s_...`, a row each |
//! | what people decide, and the ways out | [`people`] |
//! | gates behind the live Services, and the way back | [`after`] |
//! | every deadline of every phase | [`deadlines`] |
//! | nothing lost at the switch | [`switch`] |
//! | policies that come, go and change in every phase | [`policies`] |
//! | `G1` to `G24`: known defects of Kong's operator | [`defects`], `g_...`, by number |
//! | threats that decisions answer | [`threats`], `threat_...`, by the numbers that the tests of the gate host have too |
//!
//! [`writes`] sends what a pass writes to an API that refuses what was decided on something else.
//!
//! [`world`] plays the cluster around the pure corridor. Tables of one stage are in that stage: versions of images and
//! the word that approves in [`check`](super::check), the order of addresses in [`status`](super::status), equal ports
//! in [`build`](super::build), every combination of facts in [`plan::phase`](super::plan::phase).

mod after;
mod deadlines;
mod defects;
mod kong_units;
mod model;
mod people;
mod policies;
mod situations;
mod switch;
mod threats;
mod transitions;
mod world;
mod writes;
