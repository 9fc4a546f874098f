//! Of several operators one works: the one that holds the Lease.
//!
//! | file | job |
//! |---|---|
//! | [`candidate`] | PURE: what an answer of the API means, and what to ask next |
//! | [`hold`] | until when this process may write, and the client that refuses to write for longer |
//! | [`campaign`] | asks: wins the Lease, keeps it, gives it up |
//!
//! As client-go has it, so that others can be in the same election: whoever has seen the Lease unchanged for as long as it
//! says may take it. No clock is compared with another one; the times in a Lease are for people. Who holds it stops
//! before anybody may take it: [`candidate::HOLD`] after the last renewal was sent, which is before others have seen it.
//!
//! Crates for this go by the times that others wrote, or have no end of their own by a clock of this machine.

pub mod campaign;
pub mod candidate;
pub mod hold;

pub use campaign::{Campaign, Lost};
pub use candidate::Lock;
pub use hold::{Hold, guard};

#[cfg(test)]
mod tests;
