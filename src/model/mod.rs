//! The inner nouns. They know nobody.

pub mod duration;
pub mod names;
pub mod trial;
pub mod wish;

pub use names::Selector;
pub use wish::{Revision, Wish};
